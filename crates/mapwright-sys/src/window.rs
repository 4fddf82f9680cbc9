//! The one place where mapped memory becomes a Rust slice.
//!
//! | who holds | may make | so |
//! | --- | --- | --- |
//! | [`Reader`]s of a range, any number | `&[u8]` | nobody has a [`Writer`] of it |
//! | the [`Writer`] of a range, one at most | `&[u8]` from `&self`, `&mut [u8]` from `&mut self` | nobody has a `Reader` |
//!
//! The claim is kept in the range itself ([`Claims`]), so that the rule holds however the pieces are put together.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An address range that stays mapped for as long as the value lives.
///
/// # Safety
/// `base(checked)` must return the start of `len()` bytes that stay mapped at that address while `self` lives, and whose
/// bytes change only through a [`Writer`]'s slices, through raw copies by the engine, or by eviction and refill with the same
/// bytes. Two views of one range may show the same memory.
pub unsafe trait AddressRange: Send + Sync {
    /// Start of the range, or of its second view for checked access.
    ///
    /// # Errors
    /// When the checked view cannot be made.
    fn base(&self, checked: bool) -> io::Result<usize>;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// Whether the length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Who may make slices.
    fn claims(&self) -> &Claims;
}

/// Whether a range is for readers or for one writer.
#[derive(Debug)]
pub struct Claims {
    writable: bool,
    writer: AtomicBool,
}

impl Claims {
    /// For a range that is never written, or for one that has a writer.
    #[must_use]
    pub const fn new(writable: bool) -> Self {
        Self { writable, writer: AtomicBool::new(false) }
    }
}

/// Shared access to a range that nobody writes.
#[derive(Clone)]
pub struct Reader(Arc<dyn AddressRange>);

impl Reader {
    /// Claims shared access; `None` if the range is one that is written.
    pub fn claim(range: Arc<dyn AddressRange>) -> Option<Self> {
        (!range.claims().writable).then_some(Self(range))
    }

    /// The bytes at `range`, of the plain or the checked view.
    ///
    /// # Panics
    /// If the range reaches past the end, or the checked view can't be made: callers have made it before.
    pub fn slice(&self, checked: bool, range: Range<usize>) -> &[u8] {
        let (start, len) = locate(&*self.0, checked, range);
        // SAFETY: the range is mapped while `self.0` lives, and by `Claims` nobody has a `Writer` of it.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The bytes at `range` of the plain view, as a value that derefs to them at no cost.
    ///
    /// # Panics
    /// As for [`slice`](Self::slice).
    #[must_use]
    pub fn fix(self, range: Range<usize>) -> Fixed {
        let (start, len) = locate(&*self.0, false, range);
        Fixed { start, len, reader: self }
    }
}

/// A fixed part of a range, for reading.
pub struct Fixed {
    start: *const u8,
    len: usize,
    reader: Reader,
}

impl Fixed {
    /// The reader that it came from.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl Deref for Fixed {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `locate` checked the part; its range is mapped while `self.reader` lives, and nobody has a `Writer`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

// SAFETY: the pointer is to memory that `reader`, itself Send and Sync, keeps mapped; access is shared and only reads.
unsafe impl Send for Fixed {}
// SAFETY: as above.
unsafe impl Sync for Fixed {}

/// Exclusive access to a range.
pub struct Writer(Arc<dyn AddressRange>);

impl Writer {
    /// Claims exclusive access; `None` if somebody has it, or the range is one that is never written.
    pub fn claim(range: Arc<dyn AddressRange>) -> Option<Self> {
        let claims = range.claims();
        let won = claims.writable && !claims.writer.swap(true, Ordering::Acquire);
        won.then(|| Self(range))
    }

    /// The bytes at `range`.
    ///
    /// # Panics
    /// As for [`Reader::slice`].
    pub fn slice(&self, checked: bool, range: Range<usize>) -> &[u8] {
        let (start, len) = locate(&*self.0, checked, range);
        // SAFETY: the range is mapped while `self.0` lives; this is the only `Writer`, and it is borrowed shared.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Address of the bytes at `range`, of the plain or the checked view.
    ///
    /// # Panics
    /// As for [`Reader::slice`].
    #[must_use]
    pub fn address(&self, checked: bool, range: Range<usize>) -> *const u8 {
        locate(&*self.0, checked, range).0
    }

    /// The bytes at `range`, to be written.
    ///
    /// # Panics
    /// As for [`Reader::slice`].
    pub fn slice_mut(&mut self, checked: bool, range: Range<usize>) -> &mut [u8] {
        let (start, len) = locate(&*self.0, checked, range);
        // SAFETY: as in `slice`, and the only `Writer` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.cast_mut(), len) }
    }
}

impl Writer {
    /// The bytes at `range` of the plain view, as a value that derefs to them at no cost.
    ///
    /// # Panics
    /// As for [`Reader::slice`].
    #[must_use]
    pub fn fix(self, range: Range<usize>) -> FixedMut {
        let (start, len) = locate(&*self.0, false, range);
        FixedMut { start: start.cast_mut(), len, writer: self }
    }
}

/// A fixed part of a range, for writing.
pub struct FixedMut {
    start: *mut u8,
    len: usize,
    writer: Writer,
}

impl FixedMut {
    /// The writer that it came from.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// The writer that it came from, for exclusive access.
    pub fn writer_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Bytes from where it begins to the end of the range.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let range = &*self.writer.0;
        let base = range.base(false).unwrap_or(usize::MAX);
        (base.saturating_add(range.len())).saturating_sub(self.start as usize)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Becomes another part of the same range.
    ///
    /// # Panics
    /// As for [`Reader::slice`].
    pub fn set_range(&mut self, range: Range<usize>) {
        let (start, len) = locate(&*self.writer.0, false, range);
        (self.start, self.len) = (start.cast_mut(), len);
    }
}

impl Deref for FixedMut {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `locate` checked the part; its range is mapped while `self.writer` lives, the only `Writer`, which is
        // borrowed shared with `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for FixedMut {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, the only `Writer` being borrowed exclusively with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

// SAFETY: the pointer is to memory that `writer`, itself Send and Sync, keeps mapped; access follows Rust's borrows.
unsafe impl Send for FixedMut {}
// SAFETY: as above.
unsafe impl Sync for FixedMut {}

/// Bytes on the heap as an address range: small files are read, not mapped.
pub struct HeapBytes {
    bytes: *mut [u8],
    claims: Claims,
}

impl HeapBytes {
    /// Bytes for readers, or for one writer.
    #[must_use]
    pub fn new(bytes: Vec<u8>, writable: bool) -> Self {
        Self { bytes: Box::into_raw(bytes.into_boxed_slice()), claims: Claims::new(writable) }
    }
}

impl Drop for HeapBytes {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` and is freed once; slices of it have ended with their owners.
        drop(unsafe { Box::from_raw(self.bytes) });
    }
}

// SAFETY: the bytes are on the heap, owned, and reached only through `Reader` and `Writer`.
unsafe impl Send for HeapBytes {}
// SAFETY: as above.
unsafe impl Sync for HeapBytes {}

// SAFETY: the allocation lives as long as `self` and does not move; both views are the same bytes.
unsafe impl AddressRange for HeapBytes {
    fn base(&self, _checked: bool) -> io::Result<usize> {
        Ok(self.bytes.cast::<u8>() as usize)
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.claims().writer.store(false, Ordering::Release);
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("len", &self.0.len()).finish()
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("len", &self.0.len()).finish()
    }
}

fn locate(range: &dyn AddressRange, checked: bool, bytes: Range<usize>) -> (*const u8, usize) {
    assert!(bytes.start <= bytes.end && bytes.end <= range.len(), "slice {bytes:?} of {} bytes", range.len());
    let base = range.base(checked).expect("the checked view was made before it is shown");
    ((base + bytes.start) as *const u8, bytes.end - bytes.start)
}
