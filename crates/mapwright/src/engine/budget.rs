//! The hard limit: frames and metadata on one side, I/O buffers on the other.
//!
//! An eighth of the budget up to 8 MiB, a sixteenth up to 16 MiB, is set aside for the buffers of fills and write-backs; frames
//! and metadata share the rest. A thread that holds a buffer never waits for a frame, so buffers always come back.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::buffer::Buffer;

use super::kernel::Kernel;
use super::lock;

/// Bytes charged for each resident block beside its contents: its place in the eviction policy's queues and ghost.
pub const BLOCK_METADATA: u64 = 16;
/// A budget holds at least this many blocks of every file opened under it.
pub const MIN_BLOCKS: u64 = 8;
const MAX_BUFFER_RESERVE: u64 = 16 << 20;
/// Read or written in one piece at most: several pieces are in flight while others are stored.
const MAX_RUN: u64 = 256 << 10;

/// Bytes of frames and metadata in use, never above the limit.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    limit: u64,
    used: AtomicU64,
    waiters: AtomicU32,
    /// Changes whenever something became free or evictable while somebody waited.
    progress: AtomicU32,
}

impl Budget {
    /// A budget of `total` bytes, buffers included.
    pub fn new(total: u64) -> Self {
        let limit = total - buffer_reserve(total);
        Self { total, limit, used: 0.into(), waiters: 0.into(), progress: 0.into() }
    }

    /// The whole budget in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The part for frames and metadata, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes of frames and metadata in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Takes `bytes` if they are free.
    pub fn try_reserve(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.limit)
            })
            .is_ok()
    }

    /// Gives `bytes` back.
    pub fn release(&self, kernel: &dyn Kernel, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "released {bytes} of {before}");
        self.progressed(kernel);
    }

    /// Tells waiters that something became free or evictable.
    pub fn progressed(&self, kernel: &dyn Kernel) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.progress.fetch_add(1, Ordering::SeqCst);
            kernel.wake(&self.progress);
        }
    }

    /// Registers as a waiter; look for what is free after this and before [`Waiter::wait`].
    pub fn waiter(&self) -> Waiter<'_> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        Waiter { budget: self, seen: self.progress.load(Ordering::SeqCst) }
    }
}

/// A thread that waits for room.
pub struct Waiter<'a> {
    budget: &'a Budget,
    seen: u32,
}

impl Waiter<'_> {
    /// Sleeps until there was progress since this waiter was made, or for `timeout`.
    pub fn wait(&mut self, kernel: &dyn Kernel, timeout: Duration) {
        kernel.wait(&self.budget.progress, self.seen, Some(timeout));
        self.seen = self.budget.progress.load(Ordering::SeqCst);
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.budget.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

fn buffer_reserve(total: u64) -> u64 {
    let small = (total / MIN_BLOCKS).clamp(PAGE_SIZE as u64, MAX_BUFFER_RESERVE / 2);
    small.max(total / 16).min(MAX_BUFFER_RESERVE)
}

/// Page-aligned buffers in sizes of powers of two, reused.
#[derive(Debug)]
pub struct Buffers {
    state: Mutex<BufferState>,
    reserve: u64,
    returned: AtomicU32,
}

#[derive(Debug)]
struct Idle {
    buffer: Buffer,
    /// Its pages were moved elsewhere.
    is_hollow: bool,
}

#[derive(Debug, Default)]
struct BufferState {
    /// Free buffers by the logarithm of their size in pages, those without pages at the front.
    free: Vec<VecDeque<Idle>>,
    /// Bytes in free and lent buffers together; at most the reserve.
    allocated: u64,
    /// Bytes lent for stores that may hang, by the slot of the file.
    hanging: BTreeMap<u32, u64>,
    waiters: u32,
}

impl BufferState {
    /// Whether a file whose store may hang may have `size` bytes more: half of the reserve for one such file, three quarters
    /// for all of them, so that others get on; but one buffer at least.
    fn may_lend(&self, owner: u32, size: u64, reserve: u64) -> bool {
        let own = self.hanging.get(&owner).copied().unwrap_or(0);
        let all: u64 = self.hanging.values().sum();
        let kept_back = reserve / 4 / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        (own == 0 || own + size <= reserve / 2) && (all == 0 || all + size <= reserve - kept_back)
    }
}

impl Buffers {
    /// Buffers for a budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self { state: Mutex::default(), reserve: buffer_reserve(total), returned: 0.into() }
    }

    /// Bytes that one fill or write-back may move at once: a power of two.
    pub fn max_run(&self) -> u64 {
        let quarter = (self.reserve / 4).max(PAGE_SIZE as u64).min(MAX_RUN);
        1 << quarter.ilog2()
    }

    /// Whether buffers of a region's size are lent: two of them must fit.
    pub fn lends_regions(&self, size: u64) -> bool {
        self.reserve >= 2 * size
    }

    /// Takes a buffer of a region's size that has no pages, to move some there; `None` if that would take what smaller ones need.
    pub fn try_take_hollow(self: &Arc<Self>, kernel: &Arc<dyn Kernel>, size: u64) -> Option<Lent> {
        let class = (size / PAGE_SIZE as u64).ilog2() as usize;
        let idle = {
            let state = &mut *lock(&self.state);
            match state.free.get_mut(class) {
                Some(list) if list.front().is_some_and(|idle| idle.is_hollow) => list.pop_front(),
                Some(_) if self.may_make_hollow(state.allocated, size) => {
                    state.allocated += size;
                    None
                }
                _ => return None,
            }
        };
        let idle = idle.unwrap_or_else(|| Idle { buffer: new_buffer(size as usize), is_hollow: true });
        Some(self.lend(kernel, idle, size as usize, class, None))
    }

    /// Whether there is a buffer, or may be one, to take the pages of an evicted region of `size` bytes, or no use in waiting for
    /// one. What is evicted without one is memory given back, to be asked for again as zeros by the fill that comes next.
    pub fn may_take_pages(&self, size: u64) -> bool {
        let class = (size / PAGE_SIZE as u64).ilog2() as usize;
        let state = lock(&self.state);
        let hollow = state.free.get(class).and_then(VecDeque::front).is_some_and(|idle| idle.is_hollow);
        let idle =
            state.free.iter().enumerate().map(|(class, list)| (list.len() * (PAGE_SIZE << class)) as u64);
        let lent = state.allocated - idle.sum::<u64>();
        hollow || self.may_make_hollow(state.allocated, size) || lent < size
    }

    /// Whether one buffer more for the pages of regions may be made: not of what smaller ones need.
    fn may_make_hollow(&self, allocated: u64, size: u64) -> bool {
        allocated + size <= self.reserve / 8 * 7
    }

    /// Takes a buffer of at least `len` bytes, waiting for one to come back if all are lent; `None` if that takes longer than
    /// until `deadline`: reads and writes that hang keep theirs.
    ///
    /// # Panics
    /// If `len` is above the reserve: callers cut their runs.
    pub fn take(
        self: &Arc<Self>,
        kernel: &Arc<dyn Kernel>,
        len: usize,
        owner: Option<u32>,
        deadline: Duration,
    ) -> Option<Lent> {
        loop {
            if let Some(buffer) = self.try_take(kernel, len, owner) {
                return Some(buffer);
            }
            let left = deadline.checked_sub(kernel.now()).filter(|left| !left.is_zero())?;
            let seen = self.returned.load(Ordering::SeqCst);
            lock(&self.state).waiters += 1;
            let retry = self.try_take(kernel, len, owner);
            if retry.is_none() {
                kernel.wait(&self.returned, seen, Some(left));
            }
            lock(&self.state).waiters -= 1;
            if retry.is_some() {
                return retry;
            }
        }
    }

    /// As [`take`](Self::take), without waiting.
    pub fn try_take(
        self: &Arc<Self>,
        kernel: &Arc<dyn Kernel>,
        len: usize,
        owner: Option<u32>,
    ) -> Option<Lent> {
        let class = len.div_ceil(PAGE_SIZE).next_power_of_two().ilog2() as usize;
        let size = (PAGE_SIZE << class) as u64;
        assert!(size <= self.reserve.next_power_of_two(), "a buffer of {len} bytes from {}", self.reserve);
        let size = size.min(self.reserve);
        let reused = {
            let state = &mut *lock(&self.state);
            if owner.is_some_and(|owner| !state.may_lend(owner, size, self.reserve)) {
                return None;
            }
            if state.free.len() <= class {
                state.free.resize_with(class + 1, VecDeque::new);
            }
            let reused = state.free[class].pop_back();
            if reused.is_none() {
                let mut classes = state.free.iter_mut().enumerate();
                while state.allocated + size > self.reserve {
                    let (_, list) = classes.find(|(_, list)| !list.is_empty())?;
                    state.allocated -= list.drain(..).map(|idle| idle.buffer.len() as u64).sum::<u64>();
                }
                state.allocated += size;
            }
            if let Some(owner) = owner {
                *state.hanging.entry(owner).or_default() += size;
            }
            reused
        };
        let buffer = reused.unwrap_or_else(|| Idle { buffer: new_buffer(size as usize), is_hollow: false });
        let mut lent = self.lend(kernel, buffer, len, class, owner.map(|owner| (owner, size)));
        if std::mem::take(&mut lent.is_hollow) {
            lent.buffer().renew();
        }
        Some(lent)
    }

    fn lend(
        self: &Arc<Self>,
        kernel: &Arc<dyn Kernel>,
        idle: Idle,
        len: usize,
        class: usize,
        hanging: Option<(u32, u64)>,
    ) -> Lent {
        let Idle { buffer, is_hollow } = idle;
        let (home, kernel) = (Arc::clone(self), Arc::clone(kernel));
        Lent { buffer: Some(buffer), is_hollow, len, class, hanging, home, kernel }
    }
}

/// A buffer whose pages may move if it has the size of a region.
fn new_buffer(size: usize) -> Buffer {
    let region = (size == mapwright_sys::moved::REGION).then(Buffer::region);
    region.and_then(std::io::Result::ok).unwrap_or_else(|| Buffer::zeroed(size))
}

/// A buffer on loan: the bytes asked for, contents undefined. Goes back when dropped.
pub struct Lent {
    buffer: Option<Buffer>,
    is_hollow: bool,
    len: usize,
    class: usize,
    /// Who has it and its size, if it counts as lent for a store that may hang.
    hanging: Option<(u32, u64)>,
    home: Arc<Buffers>,
    kernel: Arc<dyn Kernel>,
}

impl Lent {
    /// Notes that its pages were moved elsewhere, or that it has pages again.
    pub fn set_hollow(&mut self, is_hollow: bool) {
        self.is_hollow = is_hollow;
    }

    /// The buffer, to move pages to.
    pub fn buffer(&mut self) -> &mut Buffer {
        self.buffer.as_mut().expect("present until drop")
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer.as_ref().expect("present until drop")[..self.len]
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut().expect("present until drop")[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let waiters = {
            let mut state = lock(&self.home.state);
            let idle = self.buffer.take().map(|buffer| Idle { buffer, is_hollow: self.is_hollow });
            match idle {
                Some(idle) if idle.is_hollow => state.free[self.class].push_front(idle),
                idle => state.free[self.class].extend(idle),
            }
            if let Some((owner, size)) = self.hanging
                && let Some(lent) = state.hanging.get_mut(&owner)
            {
                *lent -= size;
                if *lent == 0 {
                    state.hanging.remove(&owner);
                }
            }
            state.waiters
        };
        if waiters > 0 {
            self.home.returned.fetch_add(1, Ordering::SeqCst);
            self.kernel.wake(&self.home.returned);
        }
    }
}
