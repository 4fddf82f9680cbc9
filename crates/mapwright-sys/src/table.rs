//! A large table of atomic words whose untouched parts cost nothing.

use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A fixed-size array of `AtomicU32`, all zero at first, on memory that is only used where it is written.
pub struct Table {
    start: NonNull<AtomicU32>,
    len: usize,
}

impl Table {
    /// A table of `len` words.
    ///
    /// # Errors
    /// `ENOMEM` when the address space is exhausted.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                Self::bytes(len)?,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    fn bytes(len: usize) -> io::Result<usize> {
        len.checked_mul(size_of::<AtomicU32>()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Deref for Table {
    type Target = [AtomicU32];
    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: `start` is the page-aligned start of a live mapping of `len` words, zero being a valid AtomicU32; all
        // access is atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU32>();
        // SAFETY: the range is this table's own mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
    }
}

// SAFETY: the table owns its mapping and gives out only atomic access.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_huge_table_is_cheap_and_zero() {
        let table = Table::new(1 << 32).expect("16 GiB of address space");
        assert_eq!(table[(1 << 32) - 1].load(Ordering::Relaxed), 0);
        table[7].store(3, Ordering::Relaxed);
        assert_eq!(table[7].load(Ordering::Relaxed), 3);
    }
}
