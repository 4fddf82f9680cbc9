//! Page-aligned buffers of one's own, fit for O_DIRECT and io_uring; and such whose pages may be moved elsewhere.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use rustix::mm::Advice;

use crate::PAGE_SIZE;
use crate::mapping::Reservation;
use crate::moved::REGION;
use crate::uffd::Uffd;

/// A page-aligned, zeroed buffer that owns its memory.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// Where the memory is a mapping of its own.
    mapping: Option<Mapping>,
}

struct Mapping {
    memory: Reservation,
    /// Whether pages may move there at all: it is a region.
    is_region: bool,
    accepts_moves: bool,
}

impl Mapping {
    fn addresses(&self) -> Range<usize> {
        self.memory.addresses(&(0..self.memory.len() as u64))
    }
}

impl Buffer {
    /// A buffer of `len` bytes, all zero, its address a multiple of [`PAGE_SIZE`]. It is a mapping of its own where the process
    /// may have one more: what an allocator is given back it may keep, and glibc's keeps ever more of small aligned pieces (2 MiB
    /// a thread were seen where 32 KiB were in use).
    ///
    /// # Panics
    /// If `len` is zero or larger than `isize::MAX`; aborts when memory is exhausted, as `Vec` does.
    pub fn zeroed(len: usize) -> Self {
        assert!(len > 0, "a buffer has at least one byte");
        if let Ok(mut buffer) = Self::mapped(len.next_multiple_of(PAGE_SIZE)) {
            buffer.len = len;
            return buffer;
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero, as asserted above.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len, mapping: None }
    }

    /// A buffer of [`REGION`] bytes whose pages can move to a place of [`MovedFrames`](crate::moved::MovedFrames): one huge page
    /// where the kernel has one to give. Once they have moved the buffer has none, which the kernel makes up for with zeros
    /// when it is next used.
    ///
    /// # Errors
    /// `ENOMEM` when address space is short.
    pub fn region() -> io::Result<Self> {
        let memory = Reservation::aligned(REGION, REGION)?;
        Self::over(memory, true)
    }

    fn mapped(len: usize) -> io::Result<Self> {
        Self::over(Reservation::new(len)?, false)
    }

    fn over(memory: Reservation, is_region: bool) -> io::Result<Self> {
        let all = 0..memory.len() as u64;
        memory.map_zeros(all.clone(), true)?;
        memory.keep_private(all.clone())?;
        if is_region {
            // A kernel without huge pages refuses; small ones do as well.
            let _ = memory.advise(&all, Advice::LinuxHugepage);
        }
        let start = NonNull::new(memory.start() as *mut u8).ok_or(io::ErrorKind::OutOfMemory)?;
        let len = memory.len();
        Ok(Self { start, len, mapping: Some(Mapping { memory, is_region, accepts_moves: false }) })
    }

    /// Gives up what a buffer still has after its pages were moved elsewhere, empty page tables above all: with them the kernel
    /// would make up for the pages one by one, not by a huge one.
    pub fn renew(&mut self) {
        if let Some(mapping) = &self.mapping {
            let _ = crate::zap::zap(std::iter::once(mapping.addresses())); // worth a try
        }
    }

    /// Makes it a place that pages can be moved to; its addresses.
    ///
    /// # Errors
    /// `Unsupported` if it is not one of [`Buffer::region`], `EBUSY` if another userfaultfd moves pages here already.
    pub(crate) fn accept_moves(&mut self, uffd: &Uffd) -> io::Result<Range<usize>> {
        let mapping = self.mapping.as_mut().filter(|mapping| mapping.is_region);
        let mapping = mapping.ok_or(io::ErrorKind::Unsupported)?;
        if !mapping.accepts_moves {
            uffd.register_for_moves(mapping.addresses())?;
            mapping.accepts_moves = true;
        }
        Ok(mapping.addresses())
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, PAGE_SIZE).expect("buffer length fits the address space")
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that this buffer alone owns; after a move they read
        // as zeros.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.mapping.is_some() {
            return; // unmapped with it
        }
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

// SAFETY: the buffer owns its memory exclusively; nothing in it is tied to a thread.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_leave_the_allocator_alone() {
        let mut buffer = Buffer::zeroed(PAGE_SIZE + 1);
        assert!(buffer.mapping.is_some());
        assert_eq!((buffer.as_ptr() as usize % PAGE_SIZE, buffer.len()), (0, PAGE_SIZE + 1));
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer.fill(7);
    }
}
