//! A reserved range of addresses in which mappings are placed: the one way to say where a mapping shall be.
//!
//! Invariant: every byte of the range is mapped at all times, as inaccessible memory or as what was placed there, so that
//! nobody else's mapping can come to lie inside. `taken` says which parts have an owner. A part where the kernel failed
//! half-way may be unmapped, or somebody else's by now: it stays taken for ever and is not touched again, not even at the end.

use std::collections::BTreeMap;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use super::refused;
use crate::mapping::{Reservation, place_over, reserve_again};

/// Addresses of one's own.
#[derive(Debug)]
pub struct AddressSpace {
    memory: ManuallyDrop<Reservation>,
    /// Ends by start, as addresses. A leaf lock; mmap(2) over a part that is in here is called by its owner only.
    taken: Mutex<BTreeMap<usize, usize>>,
}

impl AddressSpace {
    /// Reserves `len` bytes, a multiple of the page size, at a multiple of `align`, a power of two of at least a page.
    ///
    /// # Errors
    /// `ENOMEM` when there is no such range; `EINVAL` for sizes that are no multiples of a page; `Unsupported` where pages are
    /// not of 4096 bytes.
    pub fn new(len: usize, align: usize) -> io::Result<Self> {
        super::check_page_size(crate::kernel_page_size())?;
        let page = crate::PAGE_SIZE;
        if len == 0 || !len.is_multiple_of(page) || !align.is_power_of_two() || align < page {
            return Err(refused(Errno::INVAL));
        }
        let memory = if align == page { Reservation::new(len)? } else { Reservation::aligned(len, align)? };
        Ok(Self { memory: ManuallyDrop::new(memory), taken: Mutex::default() })
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        self.memory.start()..self.memory.start() + self.memory.len()
    }

    /// The parts that are taken, as offsets from the start.
    #[must_use]
    pub fn taken(&self) -> Vec<Range<usize>> {
        let base = self.memory.start();
        self.lock().iter().map(|(start, end)| start - base..end - base).collect()
    }

    /// Takes a part, given as addresses.
    ///
    /// # Errors
    /// `EEXIST` if some of it is taken, `ENOMEM` if it is not all inside.
    pub(super) fn claim(&self, range: Range<usize>) -> io::Result<()> {
        let all = self.addresses();
        if range.start < all.start || range.end > all.end || range.is_empty() {
            return Err(refused(Errno::NOMEM));
        }
        let mut taken = self.lock();
        let before = taken.range(..range.end).next_back();
        if before.is_some_and(|(_, end)| *end > range.start) {
            return Err(refused(Errno::EXIST));
        }
        taken.insert(range.start, range.end);
        Ok(())
    }

    /// Makes one part of two, the second of which lies behind the first.
    pub(super) fn join(&self, first: Range<usize>, second: Range<usize>) {
        let mut taken = self.lock();
        taken.remove(&second.start);
        taken.insert(first.start, second.end);
    }

    /// Makes two parts of one.
    pub(super) fn split(&self, range: Range<usize>, at: usize) {
        if at <= range.start || at >= range.end {
            return;
        }
        let mut taken = self.lock();
        taken.insert(range.start, at);
        taken.insert(at, range.end);
    }

    /// Maps over a part of what the caller has claimed, `whole`. On an error all of it is given back, or stays taken for ever
    /// if it is not known what lies there.
    ///
    /// # Errors
    /// What `map` says, or mremap(2).
    pub(super) fn place(
        &self,
        whole: &Range<usize>,
        at: Range<usize>,
        map: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<()> {
        // SAFETY: the caller has claimed the part, in which nothing is mapped yet but the reservation.
        unsafe { place_over(at, map) }.map_err(|failed| {
            if failed.is_reserved {
                self.lock().remove(&whole.start);
            }
            failed.error
        })
    }

    /// Gives a part back: it is inaccessible again, and what was mapped there is gone.
    ///
    /// # Errors
    /// `ENOMEM` at vm.max_map_count. The contents are dropped as far as they are memory, and the part stays taken for ever.
    pub(super) fn release(&self, range: Range<usize>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        // Before and not after a failure: then it may be somebody else's memory.
        // SAFETY: the range was claimed by the caller, who owns what is mapped there and gives it up.
        let _ = unsafe { madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as above.
        let reserved =
            unsafe { mmap_anonymous(range.start as *mut _, range.len(), ProtFlags::empty(), flags) };
        if let Err(error) = reserved
            && !reserve_again(range.clone())
        {
            return Err(error.into());
        }
        self.lock().remove(&range.start);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        let taken = std::mem::take(self.taken.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: taken once, here, and `self` is used by nobody afterwards.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        // What was placed keeps the space alive: what is taken now is what was lost.
        memory.unmap_without(taken.into_iter().map(|(start, end)| start..end));
    }
}
