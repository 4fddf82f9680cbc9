//! An allocator that gives each large allocation a mapping of its own.
//!
//! It is fit for a global allocator: it allocates nothing, takes no lock, has no state, and makes system calls only. What it must
//! know of an allocation when that is freed follows from its address and layout:
//!
//! | | without guards | with guards |
//! | --- | --- | --- |
//! | mapped | `size`, rounded up to pages | the same, and a page before and behind |
//! | the allocation begins | with the first page | so that it ends at the guard behind it, as far as its alignment allows |
//! | first page | the address | the address, rounded down to a page |
//! | last page ends | at address + size, rounded up to a page | the same |
//!
//! With guards the gap between the allocation's end and the guard is smaller than the alignment, and the alignment is at most a
//! page where there is one: so both roundings find the page.
//!
//! Memory is turned into references by the callers of the allocator, under the contract of `GlobalAlloc`, not here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::ptr::{self, null_mut};

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap};

use crate::kernel_page_size;

/// What transparent huge pages are aligned to, where pages are of 4096 bytes.
const HUGE: usize = 2 << 20;

/// An allocator that gives each large allocation a mapping of its own, and gives it back to the system at once when it is freed.
/// What is smaller than the threshold goes to the system allocator.
///
/// - *Freeing* returns memory and addresses at the call, whatever lies around them: nothing is kept for later, nothing
///   fragments.
/// - *Growing and shrinking* moves pages in the page tables (mremap(2)) instead of copying bytes. With guard pages, or an
///   alignment above a page where it can't grow in place, bytes are copied.
/// - *Zeroed* memory is as cheap as any: the kernel's pages are zeros.
/// - *Guard pages* on both sides, if asked for: who runs over the end gets SIGSEGV. The allocation ends at the guard behind
///   it, as far as its alignment allows: of one whose size is a multiple of its alignment, the first byte too many is caught;
///   otherwise the first behind the next multiple. What runs over the start is caught up to a page away.
///   A `Vec` has its capacity allocated, not its length.
/// - *Alignments* of any size, above a page too.
///
/// It costs a system call each way and a page fault for each page touched, which is why the threshold is not small. Each
/// allocation may count against vm.max_map_count; without guards the kernel makes one of neighbours. At that limit an
/// allocation fails, and freeing one gives its memory back, but may leave its addresses in use.
///
/// # Threads and fork
/// `Send` and `Sync`, without locks and without a state: a child made by fork(2), also from a program with threads, may allocate
/// and free at once, as far as the system allocator lets it. All values with the same settings are the same allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedAlloc {
    threshold: usize,
    guards: bool,
    huge: bool,
}

impl Default for MappedAlloc {
    fn default() -> Self {
        Self::new()
    }
}

impl MappedAlloc {
    /// From 1 MiB on, without guard pages, and without advice on huge pages.
    #[must_use]
    pub const fn new() -> Self {
        Self { threshold: 1 << 20, guards: false, huge: false }
    }

    /// Sizes in bytes from which on an allocation is mapped.
    #[must_use]
    pub const fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// Whether there is an inaccessible page before and behind each mapped allocation.
    #[must_use]
    pub const fn guard_pages(mut self, guards: bool) -> Self {
        self.guards = guards;
        self
    }

    /// Whether to ask for transparent huge pages (MADV_HUGEPAGE) under what is mapped; from 2 MiB on it is aligned to them too.
    #[must_use]
    pub const fn huge_pages(mut self, huge: bool) -> Self {
        self.huge = huge;
        self
    }

    fn is_mapped(self, size: usize) -> bool {
        size >= self.threshold
    }

    /// A new mapping, or null.
    fn map(self, layout: Layout) -> *mut u8 {
        let page = kernel_page_size();
        let Some(len) = round_up(layout.size(), page) else { return null_mut() };
        if !self.guards && !self.huge && layout.align() <= page {
            return map(len).map_or(null_mut(), |start| start as *mut u8);
        }
        let guard = if self.guards { page } else { 0 };
        let align = layout.align().max(if self.huge && len >= HUGE { HUGE } else { page });
        let Some(start) = map_aligned(len, guard, align) else { return null_mut() };
        if self.guards && !guard_ends(start - guard..start + len + guard, guard) {
            unmap(start - guard..start + len + guard);
            return null_mut();
        }
        if self.huge {
            // SAFETY: the pages are new and this function's own; the advice changes no contents. It is only advice.
            let _ = unsafe { madvise(start as *mut _, len, Advice::LinuxHugepage) };
        }
        let pushed = if self.guards { (len - layout.size()) / layout.align() * layout.align() } else { 0 };
        (start + pushed) as *mut u8
    }

    /// What is mapped for an allocation, guards included.
    fn mapped(self, start: *mut u8, size: usize) -> Range<usize> {
        let page = kernel_page_size();
        let guard = if self.guards { page } else { 0 };
        let (first, last) = (start as usize, start as usize + size - 1);
        (first & !(page - 1)) - guard..(last | (page - 1)) + 1 + guard
    }

    /// Another size of a mapped allocation, without copying; null where that can't be.
    ///
    /// # Safety
    /// `start` is a mapped allocation of this allocator with this layout, without guards; a result that is not null replaces it.
    unsafe fn remap(self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let page = kernel_page_size();
        let old = self.mapped(start, layout.size());
        let Some(len) = round_up(size, page) else { return null_mut() };
        if len <= old.len() {
            unmap(old.start + len..old.end);
            return start;
        }
        // Where the kernel moves it to is a multiple of a page only.
        let flags = if layout.align() <= page { MremapFlags::MAYMOVE } else { MremapFlags::empty() };
        // SAFETY: the range is the caller's allocation, which is moved as a whole; references to it end with it.
        unsafe { mremap(old.start as *mut _, old.len(), len, flags) }.map_or(null_mut(), |moved| moved.cast())
    }

    /// Another size by a new allocation.
    ///
    /// # Safety
    /// As for `GlobalAlloc::realloc`.
    unsafe fn copy(self, start: *mut u8, layout: Layout, to: Layout) -> *mut u8 {
        // SAFETY: the size is not zero, by the caller.
        let new = unsafe { self.alloc(to) };
        if !new.is_null() {
            // SAFETY: both are allocated with at least so many bytes, and the new one is nobody else's.
            unsafe { ptr::copy_nonoverlapping(start, new, layout.size().min(to.size())) };
            // SAFETY: by the caller; it is replaced by the new one.
            unsafe { self.dealloc(start, layout) };
        }
        new
    }
}

// SAFETY: what is returned is either the system allocator's, for which this holds, or a new mapping of at least the size asked
// for, at a multiple of the alignment, that stays until it is passed to `dealloc` or replaced by `realloc`. Nothing here panics:
// the arithmetic on sizes is checked, that on addresses is of mapped memory. Which of the two it was follows from the size.
unsafe impl GlobalAlloc for MappedAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_mapped(layout.size()) {
            return self.map(layout);
        }
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.is_mapped(layout.size()) {
            return self.map(layout); // of zeros
        }
        // SAFETY: passed on from the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if self.is_mapped(layout.size()) {
            return unmap(self.mapped(start, layout.size()));
        }
        // SAFETY: passed on from the caller; it was the system allocator's, by its size.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (was, will) = (self.is_mapped(layout.size()), self.is_mapped(size));
        if !was && !will {
            // SAFETY: passed on from the caller; it was the system allocator's, by its size.
            return unsafe { System.realloc(start, layout, size) };
        }
        if was && will && !self.guards {
            // SAFETY: it is mapped, without guards; the rest is the caller's.
            let moved = unsafe { self.remap(start, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        let Ok(to) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        // SAFETY: passed on from the caller.
        unsafe { self.copy(start, layout, to) }
    }
}

/// The next multiple of a page, a power of two, without a division.
#[inline]
fn round_up(len: usize, page: usize) -> Option<usize> {
    len.checked_add(page - 1).map(|end| end & !(page - 1))
}

/// Maps `len` bytes of zeros at a multiple of `align`, with `guard` bytes more on each side; the address of the first.
fn map_aligned(len: usize, guard: usize, align: usize) -> Option<usize> {
    let total = len.checked_add(2 * guard)?;
    let first = map(total)?;
    if (first + guard).is_multiple_of(align) {
        return Some(first + guard);
    }
    unmap(first..first + total);
    let wide = total.checked_add(align)?;
    let outer = map(wide)?;
    let start = (outer + guard).next_multiple_of(align);
    unmap(outer..start - guard);
    unmap(start + len + guard..outer + wide);
    Some(start)
}

fn map(len: usize) -> Option<usize> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let made = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE) };
    made.ok().map(|start| start as usize)
}

/// Makes the ends of a new mapping inaccessible.
fn guard_ends(outer: Range<usize>, guard: usize) -> bool {
    [outer.start, outer.end - guard].into_iter().all(|start| {
        // Markers cost no mappings, where the kernel has them (Linux 6.13) and memory is not locked.
        // SAFETY: a page of a new mapping of the caller's, to which nobody has a reference.
        let marked = unsafe { libc::madvise(start as *mut _, guard, crate::mmap::MADV_GUARD_INSTALL) } == 0;
        // SAFETY: as above.
        marked || unsafe { libc::mprotect(start as *mut _, guard, libc::PROT_NONE) } == 0
    })
}

/// Gives pages back that nobody has a reference to. Where that would make two mappings of one, at vm.max_map_count, their
/// addresses stay in use; the memory never does.
fn unmap(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    // SAFETY: the range is the allocator's own, part of a mapping that its caller gives up.
    if unsafe { munmap(range.start as *mut _, range.len()) }.is_err() {
        // SAFETY: as above.
        let _ = unsafe { madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) };
    }
}

#[cfg(feature = "allocator-api2")]
mod api2 {
    //! The same by the trait that the standard library has on the nightly toolchain.

    use std::alloc::{GlobalAlloc, Layout};
    use std::ptr::NonNull;

    use allocator_api2::alloc::{AllocError, Allocator};

    use super::{MappedAlloc, kernel_page_size};

    impl MappedAlloc {
        /// Another size or alignment.
        ///
        /// # Safety
        /// As for `Allocator::grow` and `Allocator::shrink`.
        unsafe fn change(
            self,
            start: NonNull<u8>,
            old: Layout,
            new: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            let moved = match (old.size(), new.size()) {
                (0, _) => return self.allocate(new),
                (_, 0) => {
                    // SAFETY: passed on from the caller.
                    unsafe { self.deallocate(start, old) };
                    return self.allocate(new);
                }
                // SAFETY: passed on from the caller; the size is not zero, and a layout's, so that it rounds up.
                _ if old.align() == new.align() => unsafe { self.realloc(start.as_ptr(), old, new.size()) },
                // SAFETY: as above.
                _ => unsafe { self.copy(start.as_ptr(), old, new) },
            };
            slice(moved, new.size())
        }
    }

    fn slice(start: *mut u8, len: usize) -> Result<NonNull<[u8]>, AllocError> {
        NonNull::new(start).map(|start| NonNull::slice_from_raw_parts(start, len)).ok_or(AllocError)
    }

    /// No bytes, at some address.
    fn nothing(layout: Layout) -> NonNull<[u8]> {
        let start = std::ptr::without_provenance_mut(layout.align());
        // An alignment is not zero.
        NonNull::slice_from_raw_parts(NonNull::new(start).unwrap_or(NonNull::dangling()), 0)
    }

    // SAFETY: as for `GlobalAlloc`, and values with the same settings free what the others have allocated: there is no state.
    // Slices are as long as was asked for, so that a layout that fits has the size that decides where it came from.
    unsafe impl Allocator for MappedAlloc {
        fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            if layout.size() == 0 {
                return Ok(nothing(layout));
            }
            // SAFETY: the size is not zero.
            slice(unsafe { self.alloc(layout) }, layout.size())
        }

        fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            if layout.size() == 0 {
                return Ok(nothing(layout));
            }
            // SAFETY: the size is not zero.
            slice(unsafe { self.alloc_zeroed(layout) }, layout.size())
        }

        unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
            if layout.size() > 0 {
                // SAFETY: passed on from the caller.
                unsafe { self.dealloc(start.as_ptr(), layout) };
            }
        }

        unsafe fn grow(
            &self,
            start: NonNull<u8>,
            old: Layout,
            new: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            // SAFETY: passed on from the caller.
            unsafe { self.change(start, old, new) }
        }

        unsafe fn grow_zeroed(
            &self,
            start: NonNull<u8>,
            old: Layout,
            new: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            // SAFETY: passed on from the caller.
            let grown = unsafe { self.change(start, old, new) }?;
            // Of a mapping only the page that the old end fell into can hold anything else: the rest is new, or new to the old.
            let (from, size) = (old.size(), new.size());
            let is_new = self.is_mapped(size);
            let to = if is_new { from.next_multiple_of(kernel_page_size()).min(size) } else { size };
            // SAFETY: inside the allocation, which is nobody else's yet.
            let first = unsafe { grown.cast::<u8>().as_ptr().add(from) };
            // SAFETY: as above.
            unsafe { first.write_bytes(0, to - from) };
            Ok(grown)
        }

        unsafe fn shrink(
            &self,
            start: NonNull<u8>,
            old: Layout,
            new: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            // SAFETY: passed on from the caller.
            unsafe { self.change(start, old, new) }
        }
    }
}
