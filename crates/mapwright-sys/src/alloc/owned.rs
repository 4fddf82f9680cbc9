//! An allocator of memory that somebody else makes: each allocation has an owner, which keeps its memory.
//!
//! What the memory holds is the backing's matter: as everywhere here, the engine is trusted to show zeros for what is new.
//!
//! The rule on aliasing: an allocation holds the one claim for writing on its memory ([`FixedMut`]), of which no slice is made
//! while the allocation lives. Who allocated it alone has its address.
//!
//! An owner is reached by its allocation's address, in a table under a lock. The lock is a leaf: it is held for a look at the table,
//! never while memory is made, changed or given up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allocator_api2::alloc::{AllocError, Allocator};

use crate::window::FixedMut;

/// Makes memory for allocations.
pub trait Backing: Send + Sync + 'static {
    /// What keeps an allocation's memory, beside the claim on it. It is dropped after the claim.
    type Memory: Send + 'static;

    /// Makes `len` bytes of zeros. The claim is on all of them, from the beginning of its range. None where there is no room;
    /// why, the backing keeps.
    fn make(&self, len: usize) -> Option<(FixedMut, Self::Memory)>;

    /// Changes the length of some memory at its address; what is added is zeros. Whether it could. It is not used meanwhile.
    fn resize(&self, memory: &mut Self::Memory, len: usize) -> bool;
}

/// One allocation.
struct Owned<M> {
    /// Dropped first.
    bytes: FixedMut,
    memory: M,
    /// Bytes before the allocation, for its alignment.
    lead: usize,
}

/// An allocator of memory of a [`Backing`]'s, for allocations of some size on; smaller ones are the system allocator's.
pub struct OwnedAlloc<B: Backing> {
    shared: Arc<Shared<B>>,
}

struct Shared<B: Backing> {
    backing: B,
    threshold: usize,
    owners: Mutex<BTreeMap<usize, Owned<B::Memory>>>,
}

impl<B: Backing> Clone for OwnedAlloc<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B: Backing> std::ops::Deref for OwnedAlloc<B> {
    type Target = B;
    fn deref(&self) -> &B {
        &self.shared.backing
    }
}

impl<B: Backing> std::fmt::Debug for OwnedAlloc<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnedAlloc").field("allocations", &self.count()).finish_non_exhaustive()
    }
}

impl<B: Backing> OwnedAlloc<B> {
    /// An allocator; sizes from `threshold` bytes on are the backing's.
    pub fn new(backing: B, threshold: usize) -> Self {
        let owners = Mutex::new(BTreeMap::new());
        Self { shared: Arc::new(Shared { backing, threshold: threshold.max(1), owners }) }
    }

    /// Allocations of the backing's memory now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.owners().len()
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<usize, Owned<B::Memory>>> {
        self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_owned(&self, size: usize) -> bool {
        size >= self.shared.threshold
    }

    fn make(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // Memory begins with a page.
        let room = layout.align().saturating_sub(crate::PAGE_SIZE);
        let len = layout.size().checked_add(room).ok_or(AllocError)?;
        let (bytes, memory) = self.shared.backing.make(len).ok_or(AllocError)?;
        let start = bytes.start() as usize;
        let lead = start.next_multiple_of(layout.align()) - start;
        if bytes.capacity() < len || lead > len - layout.size() {
            return Err(AllocError);
        }
        self.owners().insert(start + lead, Owned { bytes, memory, lead });
        slice(start + lead, layout.size())
    }

    fn give_up(&self, start: NonNull<u8>) {
        let owned = self.owners().remove(&start.addr().get());
        drop(owned); // not under the lock
    }

    /// Another size of an owned allocation, at its address. Its owner is out of the table meanwhile: nobody else may free it now.
    fn resize(&self, start: NonNull<u8>, size: usize) -> bool {
        let key = start.addr().get();
        let Some(mut owned) = self.owners().remove(&key) else { return false };
        let fits = owned.lead.checked_add(size).is_some_and(|len| {
            len <= owned.bytes.capacity() && self.shared.backing.resize(&mut owned.memory, len)
        });
        self.owners().insert(key, owned);
        fits
    }

    /// Another size or alignment.
    ///
    /// # Safety
    /// As for `Allocator::grow_zeroed` and `Allocator::shrink`.
    unsafe fn change(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
        zeroed: bool,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let is_aligned = start.addr().get().is_multiple_of(new.align());
        if self.is_owned(old.size())
            && self.is_owned(new.size())
            && is_aligned
            && self.resize(start, new.size())
        {
            return slice(start.addr().get(), new.size());
        }
        let made = if zeroed { self.allocate_zeroed(new) } else { self.allocate(new) }?;
        let kept = old.size().min(new.size());
        // SAFETY: both are allocated with at least so many bytes, and the new one is nobody else's.
        unsafe { made.cast::<u8>().copy_from_nonoverlapping(start, kept) };
        // SAFETY: passed on from the caller; it is replaced by the new one.
        unsafe { self.deallocate(start, old) };
        Ok(made)
    }
}

fn slice(start: usize, len: usize) -> Result<NonNull<[u8]>, AllocError> {
    let start = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(start)).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(start, len))
}

// SAFETY: an owned allocation lies in a range that its claim keeps mapped, of at least the size asked for, and no slice of the
// claim is made; the table keeps the claim until the allocation is freed or the last clone of this value is gone. Clones share
// the table, and what is the system allocator's is any clone's. Slices are as long as was asked for, so that a layout that fits has
// the size that decides which of the two it is. Nothing panics: sizes are checked, and the lock's poison is nobody's.
unsafe impl<B: Backing> Allocator for OwnedAlloc<B> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if self.is_owned(layout.size()) {
            return self.make(layout);
        }
        if layout.size() == 0 {
            let start = std::ptr::without_provenance_mut(layout.align());
            return NonNull::new(start)
                .map(|start| NonNull::slice_from_raw_parts(start, 0))
                .ok_or(AllocError);
        }
        // SAFETY: the size is not zero.
        let start = unsafe { System.alloc(layout) };
        NonNull::new(start).map(|start| NonNull::slice_from_raw_parts(start, layout.size())).ok_or(AllocError)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if self.is_owned(layout.size()) || layout.size() == 0 {
            return self.allocate(layout); // of zeros, as it is made
        }
        // SAFETY: the size is not zero.
        let start = unsafe { System.alloc_zeroed(layout) };
        NonNull::new(start).map(|start| NonNull::slice_from_raw_parts(start, layout.size())).ok_or(AllocError)
    }

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        if self.is_owned(layout.size()) {
            return self.give_up(start);
        }
        if layout.size() > 0 {
            // SAFETY: passed on from the caller; it was the system allocator's, by its size.
            unsafe { System.dealloc(start.as_ptr(), layout) };
        }
    }

    unsafe fn grow(&self, start: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on from the caller.
        unsafe { self.change(start, old, new, false) }
    }

    unsafe fn grow_zeroed(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on from the caller.
        unsafe { self.change(start, old, new, true) }
    }

    unsafe fn shrink(
        &self,
        start: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: passed on from the caller.
        unsafe { self.change(start, old, new, false) }
    }
}
