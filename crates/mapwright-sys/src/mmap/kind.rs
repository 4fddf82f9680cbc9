//! The kinds of mapping, as types: what may be done to the bytes now.
//!
//! | marker | protection | bytes | may become |
//! | --- | --- | --- | --- |
//! | [`Read`] | read | shared slices | [`Write`], [`Exec`], [`NoAccess`] |
//! | [`Write`] | read, write | shared and exclusive slices | [`Read`], [`Exec`], [`NoAccess`] |
//! | [`Exec`] | read, execute | shared slices | [`Read`], [`Write`], [`NoAccess`] |
//! | [`NoAccess`] | none | none | [`Read`], [`Write`], [`Exec`] |
//! | [`Volatile`] | read | copies | [`VolatileMut`] |
//! | [`VolatileMut`] | read, write | copies | [`Volatile`] |
//! | [`VolatileExec`] | read, execute | copies | nothing else |
//!
//! Nothing passes between the upper four, whose bytes nobody else changes, and the lower three. None is writable and executable.

use rustix::mm::{MprotectFlags, ProtFlags};

mod sealed {
    /// Keeps kinds of other crates out: slices are made by what a kind says.
    pub trait Sealed {}
}

/// What may be done to the bytes of a mapping.
pub trait Kind: sealed::Sealed + Send + Sync + 'static {
    /// As PROT_READ, PROT_WRITE and PROT_EXEC.
    #[doc(hidden)]
    const PROTECTION: u32;
    /// In words, for messages.
    const NAME: &'static str;
    /// The kind for reading only.
    type ReadOnly: Kind;
    /// The kind for writing.
    type Writable: Kind;
}

/// Bytes that nobody outside of this process changes.
pub trait Stable: Kind {}
/// Bytes that may be seen through `&[u8]`.
pub trait Slices: Stable {}
/// Bytes that may be seen through `&mut [u8]`.
pub trait SlicesMut: Slices {}
/// Bytes that others may change: they are copied.
pub trait Copies: Kind {}
/// Bytes that others may change, and so may this process.
pub trait CopiesMut: Copies {}
/// Bytes that are code: they may be jumped to.
pub trait Executes: Kind {}
/// A kind that may become `K` by a change of protection.
pub trait Becomes<K: Kind>: Kind {}

/// Readable; nobody writes.
#[derive(Debug)]
pub enum Read {}
/// Readable and writable, by this process alone.
#[derive(Debug)]
pub enum Write {}
/// Readable and executable; nobody writes.
#[derive(Debug)]
pub enum Exec {}
/// Neither readable nor writable: a touch is SIGSEGV.
#[derive(Debug)]
pub enum NoAccess {}
/// Readable; others may write, or cut the file.
#[derive(Debug)]
pub enum Volatile {}
/// Readable and writable, by others too.
#[derive(Debug)]
pub enum VolatileMut {}

/// Readable and executable; another mapping of the same memory may write.
#[derive(Debug)]
pub enum VolatileExec {}

macro_rules! kinds {
    ($($kind:ident, $bits:expr, $name:literal, $read:ident, $write:ident, [$($other:ident),*];)*) => {$(
        impl sealed::Sealed for $kind {}
        impl Kind for $kind {
            const PROTECTION: u32 = $bits;
            const NAME: &'static str = $name;
            type ReadOnly = $read;
            type Writable = $write;
        }
        $(impl Becomes<$other> for $kind {})*
    )*};
}

const R: u32 = ProtFlags::READ.bits();
const W: u32 = ProtFlags::WRITE.bits();
const X: u32 = ProtFlags::EXEC.bits();

kinds! {
    Read, R, "read-only", Read, Write, [Read, Write, Exec, NoAccess];
    Write, R | W, "writable", Read, Write, [Read, Write, Exec, NoAccess];
    Exec, R | X, "executable", Read, Write, [Read, Write, Exec, NoAccess];
    NoAccess, 0, "inaccessible", Read, Write, [Read, Write, Exec, NoAccess];
    Volatile, R, "read-only", Volatile, VolatileMut, [Volatile, VolatileMut];
    VolatileMut, R | W, "writable", Volatile, VolatileMut, [Volatile, VolatileMut];
    VolatileExec, R | X, "executable", VolatileExec, VolatileExec, [];
}

impl Stable for Read {}
impl Stable for Write {}
impl Stable for Exec {}
impl Stable for NoAccess {}
impl Slices for Read {}
impl Slices for Write {}
impl Slices for Exec {}
impl SlicesMut for Write {}
impl Copies for Volatile {}
impl Copies for VolatileMut {}
impl Copies for VolatileExec {}
impl Executes for Exec {}
impl Executes for VolatileExec {}
impl CopiesMut for VolatileMut {}

pub(super) fn protection<K: Kind>() -> ProtFlags {
    ProtFlags::from_bits_retain(K::PROTECTION)
}

pub(super) fn may_write<K: Kind>() -> bool {
    K::PROTECTION & W != 0
}

pub(super) fn mprotection<K: Kind>() -> MprotectFlags {
    MprotectFlags::from_bits_retain(K::PROTECTION)
}
