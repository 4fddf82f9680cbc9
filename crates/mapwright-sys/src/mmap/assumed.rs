//! What the kernel can't say and a caller must promise: that nobody else changes a file while it is mapped.
//!
//! The unsafe functions are default methods here, because unsafe code lives in this crate alone; the types that offer them
//! implement a safe method that takes the promise.

use std::os::fd::{AsFd, BorrowedFd};

/// What a caller has promised of one file, by the unsafe functions of [`MapAssumed`] and [`MapAssumedWith`], which alone
/// make it. It is good for one mapping, and for no more access than the function is for: who implements the traits can't turn
/// a promise for reading into a writable mapping.
#[derive(Debug)]
pub struct Promise<'f> {
    file: BorrowedFd<'f>,
    access: Access,
}

/// What a promise is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// A shared mapping that is read.
    Read,
    /// A shared mapping that is written.
    Write,
    /// A private mapping, in which writes are copies.
    Copy,
}

impl<'f> Promise<'f> {
    /// The file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'f> {
        self.file
    }

    /// Whether a mapping like this is no more than was promised.
    pub(super) fn allows(&self, shared: bool, write: bool) -> bool {
        match self.access {
            Access::Read => shared && !write,
            Access::Write => shared,
            Access::Copy => !shared,
        }
    }
}

/// Maps a file on the caller's promise that nobody else changes it. memmap2's `Mmap::map` and `MmapMut::map_mut`.
pub trait MapAssumed: Sized {
    /// The error type.
    type Error;

    #[doc(hidden)]
    fn map_promised(promise: Promise<'_>) -> Result<Self, Self::Error>;

    /// Maps the whole file, for slices of its bytes. Not for types that are written: those have [`map_mut`](Self::map_mut).
    ///
    /// # Safety
    /// As for [`MapAssumedWith`].
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map(file: impl AsFd) -> Result<Self, Self::Error> {
        Self::map_promised(Promise { file: file.as_fd(), access: Access::Read })
    }

    /// As [`map`](Self::map), by memmap2's name for it on `MmapMut`.
    ///
    /// # Safety
    /// As for [`MapAssumedWith`].
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map_mut(file: impl AsFd) -> Result<Self, Self::Error> {
        Self::map_promised(Promise { file: file.as_fd(), access: Access::Write })
    }
}

/// Maps files by options on the caller's promise that nobody else changes them.
///
/// # Safety
/// This is the contract of all its unsafe functions, and of [`MapAssumed`]'s. As long as the mapping lives, or what it is
/// turned into or split up in (the mapped bytes are those that the type says it maps: by `MmapOptions`, of its offset and length;
/// by `Mmap`, `MmapMut` and any type that doesn't say, all of the file):
///
/// - nobody changes the mapped bytes, in this process or another, by a mapping, by write(2) or otherwise, except through this
///   mapping; for `map` and `map_copy_read_only`, other mappings that only read are fine;
/// - what is mapped as writable and shared is not mapped elsewhere in this process, nor read while it is written;
/// - the file is not made shorter than what is mapped of it; if it is, a touch raises SIGBUS, which is not undefined but ends
///   the process;
/// - for `map_exec`: the bytes are only jumped to if they are code for this machine.
pub trait MapAssumedWith {
    /// The read-only type.
    type Read;
    /// The writable type.
    type Write;
    /// The executable type.
    type Exec;
    /// The error type.
    type Error;

    #[doc(hidden)]
    fn read_promised(&self, shared: bool, promise: Promise<'_>) -> Result<Self::Read, Self::Error>;
    #[doc(hidden)]
    fn write_promised(&self, shared: bool, promise: Promise<'_>) -> Result<Self::Write, Self::Error>;
    #[doc(hidden)]
    fn exec_promised(&self, promise: Promise<'_>) -> Result<Self::Exec, Self::Error>;

    /// Maps a file for reading, shared.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map(&self, file: impl AsFd) -> Result<Self::Read, Self::Error> {
        self.read_promised(true, Promise { file: file.as_fd(), access: Access::Read })
    }

    /// Maps a file for reading and writing, shared: the file changes with the memory.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map_mut(&self, file: impl AsFd) -> Result<Self::Write, Self::Error> {
        self.write_promised(true, Promise { file: file.as_fd(), access: Access::Write })
    }

    /// Maps a file copy-on-write: what is written stays in this mapping.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map_copy(&self, file: impl AsFd) -> Result<Self::Write, Self::Error> {
        self.write_promised(false, Promise { file: file.as_fd(), access: Access::Copy })
    }

    /// Maps a file privately for reading; it may be made writable later, as a copy.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map_copy_read_only(&self, file: impl AsFd) -> Result<Self::Read, Self::Error> {
        self.read_promised(false, Promise { file: file.as_fd(), access: Access::Copy })
    }

    /// Maps a file as code, privately.
    ///
    /// # Safety
    /// See the trait.
    ///
    /// # Errors
    /// As for the safe constructors.
    unsafe fn map_exec(&self, file: impl AsFd) -> Result<Self::Exec, Self::Error> {
        self.exec_promised(Promise { file: file.as_fd(), access: Access::Copy })
    }
}
