//! A file: one store opened by a pager, its blocks, and what is known of them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;
use std::time::Duration;

use mapwright_sys::table::Table;

use super::block::{self, DIRTY, MAPPED, MAPPED_CHECKED, Pin, SHOWN, State, TOUCHED, TRIGGER, WAITERS, Word};
use super::budget::{BLOCK_METADATA, Lent, MIN_BLOCKS};
use super::checked::Scopes;
use super::commit::Commits;
use super::gate::{Gate, Turn};
use super::kernel::{FaultMode, FaultSink, FrameKind, FrameSpec, Frames, REGION, View};
use super::opened::Gone;
use super::page_set::PageSet;
use super::pool::Kind;
use super::read_ahead::{Advice, ReadAhead};
use super::record::Reference;
use super::sabotage::{self, Sabotage};
pub use super::spec::{FileSpec, Keep};
use super::stats::Counted;
use super::unwritten::Relief;
use super::{Engine, Handle, PAGE, lock, lock_policy};
use crate::error::{Error, Result};
use crate::stores::{Store, Version};

/// Words of the block table in a page of memory: the unit in which the table is charged to the budget and searched.
pub const CHUNK: u64 = PAGE / size_of::<AtomicU32>() as u64;
const MAX_BLOCK: u64 = 2 << 20;
/// The least budget under which frames are moved.
pub(crate) const MOVED_BUDGET: u64 = 16 << 20;
/// The furthest that one stream is read ahead, in bytes.
const MAX_READ_AHEAD: u64 = 4 << 20;
/// The most that is read for one miss because it turned out to be asked for together, in bytes.
const MAX_CLUSTER: u64 = 64 << 10;
/// The part of the budget by which all streams of a file are read ahead together: one of so many. The policy keeps a tenth for
/// newcomers; of a window, up to one and a half are there at a time, and explicit access brings each block back once.
const READ_AHEAD_SHARE: u64 = 32;

/// The three lengths of a file. `backed <= stored`, and after a flush all three are equal.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// What the mapping shows, in bytes.
    pub mapped: u64,
    /// The prefix of the store whose bytes are this file's; beyond it the file reads as zeros until written back.
    pub backed: u64,
    /// What the store was last set to.
    pub stored: u64,
    /// The least that `backed` was since the store's length was changed, until that is durable.
    pub unsynced: Option<u64>,
}

impl Lengths {
    /// Makes all of them `len`: what a file with a journal has, whose store's length is the journal's business.
    pub(super) fn settle_at(&mut self, len: u64) {
        *self = Self { mapped: len, backed: len, stored: len, unsynced: None };
    }

    /// Whether the store's length is the file's, for good.
    pub(crate) fn are_settled(self) -> bool {
        self.mapped == self.stored && self.backed == self.stored && self.unsynced.is_none()
    }
}

/// One store opened by a pager.
pub struct File {
    pub(crate) pager: Arc<Handle>,
    pub(crate) slot: u32,
    pub(crate) store: Arc<dyn Store>,
    /// The store's name, for messages.
    pub name: String,
    pub(crate) frames: Arc<dyn Frames>,
    kind: FrameKind,
    pub(crate) block_shift: u32,
    pub(crate) writable: bool,
    pub(crate) mode: FaultMode,
    pub(crate) capacity: u64,
    pub(crate) deadline: Duration,
    pub(crate) local: bool,
    blocks: Table,
    /// A bit for each chunk of the table that was ever used.
    used_chunks: Table,
    /// A word for each region: see `region`.
    pub(super) regions: Table,
    /// Bytes of a region.
    pub(super) region_size: u64,
    /// What the pager's `dropped` was when a region was last unmapped whole.
    unmapped_at: Table,
    pub(crate) lengths: Mutex<Lengths>,
    version: Version,
    pub(crate) dirty: Mutex<PageSet>,
    pub(crate) read_ahead: Mutex<ReadAhead>,
    wakers: Mutex<HashMap<u64, Vec<Waker>>>,
    pub(crate) latch: Mutex<Option<Arc<Error>>>,
    pub(super) relief: Relief,
    /// Flushes do not sync.
    pub(crate) skips_sync: bool,
    /// It may be written, and opened again for that.
    is_shared: bool,
    /// The lease under which alone it is shared: what was read without it, or before it, may be older than the file.
    lease: Option<u64>,
    /// Where changes are committed rather than flushed.
    pub(crate) commits: Option<Commits>,
    pub(crate) scopes: Mutex<Scopes>,
    /// Changes when a checked scope may go on; see `checked`.
    pub(crate) scopes_changed: AtomicU32,
    poisoned: AtomicBool,
    /// Held over a write-back or a resize.
    pub(crate) turn: Gate,
    /// Its end is being cut off, by one who holds the turn: a fill must not wait for room that a write-back would make.
    pub(super) cutting: AtomicBool,
    pub(super) charges: Charges,
    pub(crate) counted: Counted,
    /// The last field, and so the last to be dropped.
    pub(super) gone: Gone,
}

fn lease_of(keep: &Keep) -> Option<u64> {
    match keep {
        Keep::Leased(number) | Keep::Alone(number) => Some(*number),
        _ => None,
    }
}

/// What a file has taken of the budget. Stands behind the frames in [`File`]: given back when the frames are gone.
pub(super) struct Charges {
    pager: Arc<Handle>,
    block_charge: u64,
    /// Blocks.
    resident: AtomicU64,
    /// Blocks copied for the checked view.
    pub(super) copies: AtomicU64,
    /// Bytes of the block table.
    tables: AtomicU64,
    /// Bytes of the journal's buffer and index.
    pub(super) journal: AtomicU64,
}

impl Drop for Charges {
    fn drop(&mut self) {
        let copies = self.copies.load(Ordering::Acquire) * (self.block_charge - BLOCK_METADATA);
        let blocks = self.resident.load(Ordering::Acquire) * self.block_charge + copies;
        let tables = self.tables.load(Ordering::Acquire);
        let journal = self.journal.load(Ordering::Acquire);
        self.pager.budget.release(&*self.pager.kernel, blocks + tables + journal);
    }
}

impl File {
    /// Opens a store.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a bad block size, reserve or a budget too small for it; [`Error::ReadOnly`];
    /// [`Error::Locked`]; [`Error::Unsupported`] where the machine lacks a facility.
    pub(crate) fn open(pager: Arc<Handle>, spec: FileSpec, slot: u32, version: Version) -> Result<Arc<Self>> {
        let name = spec.store.name();
        check_block_size(spec.block_size, pager.budget.total())?;
        if spec.writable && !spec.store.is_writable() {
            return Err(Error::ReadOnly { path: name });
        }
        let wanted = version.len.max(spec.reserve).max(1);
        let capacity = wanted.checked_next_multiple_of(spec.block_size).filter(|bytes| *bytes < 1 << 46);
        let capacity = capacity.ok_or_else(|| {
            Error::invalid(format!("{wanted} bytes of address space"), "reserve less than 64 TiB")
        })?;
        let sink: Weak<dyn FaultSink> = Weak::<Engine>::clone(&pager.weak);
        let FileSpec { writable, mode, frames: kind, .. } = spec;
        let skips_sync = matches!(spec.keep, Keep::Scratch | Keep::Alone(_));
        let is_shared = matches!(spec.keep, Keep::Shared | Keep::Alone(_));
        let lease = lease_of(&spec.keep);
        let lent = matches!(spec.keep, Keep::Leased(_));
        let commits = match spec.keep {
            Keep::Atomic { atomic, in_parts } => Some(Commits::new(atomic, in_parts)),
            Keep::Flushed | Keep::Scratch | Keep::Shared | Keep::Leased(_) | Keep::Alone(_) => None,
        };
        // A small budget has no buffers for regions, and no room to spare for the copies that the checked view of moved frames has.
        let small = kind == FrameKind::Auto && pager.budget.total() < MOVED_BUDGET;
        let chosen = if small { FrameKind::Shared } else { kind };
        let frames = pager.kernel.frames(FrameSpec { capacity, writable, kind: chosen, lent, mode, sink })?;
        let blocks = capacity / spec.block_size;
        let no_memory = |e| Error::io("reserve the block table", name.clone(), 0, capacity, e);
        let table = Table::new(blocks as usize).map_err(no_memory)?;
        let chunks = Table::new(blocks.div_ceil(CHUNK * 32) as usize).map_err(no_memory)?;
        let region_size = frames.regions().map_or(REGION, |regions| regions.size());
        let count = capacity.div_ceil(region_size) as usize;
        let unmapped_at = Table::new(count).map_err(no_memory)?;
        let regions = Table::new(count).map_err(no_memory)?;
        let ahead_max = pager.budget.limit() / READ_AHEAD_SHARE;
        let in_regions = frames.regions().is_some() && pager.buffers.lends_regions(region_size);
        let mut read_ahead =
            ReadAhead::new(ahead_max.min(MAX_READ_AHEAD).max(spec.block_size) / spec.block_size)
                .within(ahead_max / spec.block_size)
                .in_clusters_of(ahead_max.min(MAX_CLUSTER) / spec.block_size);
        if frames.regions().is_some_and(|regions| regions.moves()) {
            pager.has_moved.store(true, Ordering::Relaxed);
        }
        if in_regions {
            read_ahead = read_ahead.in_regions_of(region_size / spec.block_size);
        }
        read_ahead.advise(spec.advice);
        let len = version.len;
        let gone = Gone { life: Arc::default(), engine: pager.this() };
        Ok(Arc::new(Self {
            gone,
            slot,
            local: spec.store.is_local(),
            store: spec.store,
            frames,
            kind,
            block_shift: spec.block_size.trailing_zeros(),
            writable: spec.writable,
            mode: spec.mode,
            capacity,
            deadline: spec.deadline,
            blocks: table,
            used_chunks: chunks,
            regions,
            region_size,
            unmapped_at,
            lengths: Mutex::new(Lengths { mapped: len, backed: len, stored: len, unsynced: None }),
            version,
            dirty: Mutex::default(),
            read_ahead: Mutex::new(read_ahead),
            wakers: Mutex::default(),
            latch: Mutex::default(),
            relief: Relief::default(),
            skips_sync,
            is_shared,
            lease,
            commits,
            scopes: Mutex::default(),
            scopes_changed: 0.into(),
            poisoned: AtomicBool::new(false),
            turn: Gate::default(),
            cutting: AtomicBool::new(false),
            charges: Charges {
                pager: Arc::clone(&pager),
                block_charge: spec.block_size + BLOCK_METADATA,
                resident: 0.into(),
                copies: 0.into(),
                tables: 0.into(),
                journal: 0.into(),
            },
            counted: Counted::new(pager.this()),
            name,
            pager,
        }))
    }

    /// Whether an opening may share this file instead of making its own.
    pub(crate) fn is_shareable(&self, spec: &FileSpec, version: Version) -> bool {
        let alike = self.mode == spec.mode
            && self.kind == spec.frames
            && self.block_size() == spec.block_size
            && self.lease == lease_of(&spec.keep);
        // One that is written changes by that, and each fill checks that nobody else has cut it.
        alike && (self.version == version || self.is_shared_by(spec))
    }

    /// Whether both are for many who write.
    pub(crate) fn is_shared_by(&self, spec: &FileSpec) -> bool {
        self.is_shared
            && matches!(spec.keep, Keep::Shared | Keep::Alone(_))
            && self.lease == lease_of(&spec.keep)
    }

    /// Which object this is.
    pub(crate) fn identity(&self) -> u128 {
        self.version.identity
    }

    /// What the store was when this file was opened.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Whether calls of the store end promptly.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// Whether its frames are private memory that is moved, not shared memory.
    pub fn has_moved_frames(&self) -> bool {
        self.frames.has_copies()
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    /// Length in bytes of what is mapped.
    pub fn len(&self) -> u64 {
        lock(&self.lengths).mapped
    }

    /// Bytes of address space reserved: as far as the length can grow.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The frames, for those who make slices of them.
    pub fn frames(&self) -> &Arc<dyn Frames> {
        &self.frames
    }

    /// Checks that `offset..offset + len` is inside the file.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let file_len = self.len();
        match offset.checked_add(len) {
            Some(end) if end <= file_len => Ok(()),
            end => {
                let end = end.unwrap_or(u64::MAX);
                Err(Error::OutOfRange { path: self.name.clone(), offset, end, file_len })
            }
        }
    }

    /// The word of a block.
    #[inline]
    pub(crate) fn word(&self, block: u64) -> Word<'_> {
        Word(&self.blocks[block as usize])
    }

    /// Number of blocks that hold the file's bytes now.
    pub(crate) fn block_count(&self) -> u64 {
        self.len().div_ceil(self.block_size())
    }

    /// The blocks that hold a byte range.
    #[inline]
    pub(crate) fn blocks_of(&self, bytes: Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return bytes.start >> self.block_shift..bytes.start >> self.block_shift;
        }
        bytes.start >> self.block_shift..((bytes.end - 1) >> self.block_shift) + 1
    }

    /// The bytes of a run of blocks.
    pub(crate) fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start << self.block_shift..blocks.end << self.block_shift
    }

    /// The blocks of the region that holds a block.
    pub(crate) fn region_of(&self, block: u64) -> Range<u64> {
        let blocks = (self.region_size >> self.block_shift).max(1);
        let start = block / blocks * blocks;
        start..(start + blocks).min(self.capacity >> self.block_shift)
    }

    /// Whether a region was not unmapped for as long as it takes to evict half of what the budget holds. Notes that it is now.
    pub(crate) fn unmap_is_due(&self, region: &Range<u64>) -> bool {
        let now = self.pager.dropped.load(Ordering::Relaxed) | 1; // 0 stands for never
        let half = self.pager.budget.limit() / self.block_charge() / 2;
        let last = &self.unmapped_at[((region.start << self.block_shift) / self.region_size) as usize];
        let due = match last.load(Ordering::Relaxed) {
            0 => true,
            then => u64::from(now.wrapping_sub(then)) >= half,
        };
        if due {
            last.store(now, Ordering::Relaxed);
        }
        due
    }

    /// Tells the recording, if there is one, that blocks were missed.
    pub(crate) fn missed(&self, blocks: Range<u64>) {
        if let Some(recorder) = self.pager.recorder.get() {
            let page = |block| self.bytes_of(&(block..block + 1)).start / PAGE;
            blocks.for_each(|block| recorder.missed(Reference { file: self.slot, page: page(block) }));
        }
    }

    /// The pages of a block.
    pub(crate) fn pages_of(&self, block: u64) -> Range<u64> {
        let bytes = self.bytes_of(&(block..block + 1));
        bytes.start / PAGE..bytes.end / PAGE
    }

    /// Shows blocks that are pinned or claimed in a view, their copies charged. The bits keep invariant (3) of `block`.
    ///
    /// # Errors
    /// When page tables can't be had, or memory for what the checked view has of its own.
    pub(crate) fn map(&self, view: View, blocks: Range<u64>) -> Result<()> {
        if view == View::Checked && self.frames.has_copies() {
            self.map(View::Plain, blocks.clone())?; // to be copied from there
        }
        if view != View::Plain || self.frames.regions().is_none() {
            return self.map_blocks(view, blocks, u64::MAX);
        }
        let Range { mut start, end } = blocks;
        while start < end {
            let part = start..end.min(self.region_of(start).end);
            start = part.end;
            if !self.show_region(&part)? {
                self.map_blocks(view, part, u64::MAX)?;
            }
        }
        Ok(())
    }

    /// Shows pinned blocks in the view of another process, the first of which was touched, the others as far as it is cheap.
    pub(crate) fn map_ahead(&self, view: View, blocks: Range<u64>) -> Result<()> {
        self.map_blocks(view, blocks, self.block_size())
    }

    fn map_blocks(&self, view: View, blocks: Range<u64>, needed: u64) -> Result<()> {
        let bit = mapped_bit(view);
        let late = sabotage::is(Sabotage::LateMappedBit);
        let announce = || {
            for block in blocks.clone() {
                self.word(block).set(bit);
            }
        };
        if !late {
            announce();
        }
        let bytes = self.bytes_of(&blocks);
        self.frames
            .map_ahead(view, bytes.clone(), needed)
            .map_err(|e| Error::io("map", self.name.clone(), bytes.start, bytes.end - bytes.start, e))?;
        if late {
            announce();
        }
        match view {
            View::Plain => blocks.for_each(|block| _ = self.word(block).set(SHOWN)),
            View::Remote(_) => self.shown_elsewhere(&blocks),
            View::Checked => {}
        }
        Ok(())
    }

    /// Ends the transition of a block and wakes everybody who waited for that.
    pub(crate) fn settle(&self, block: u64, to: State, pins: u32, set: u32, clear: u32) {
        let before = self.word(block).settle(to, pins, set, clear);
        if before & clear & MAPPED_CHECKED != 0 && self.frames.has_copies() {
            self.charges.copies.fetch_sub(1, Ordering::Relaxed);
            self.pager.budget.release(&*self.pager.kernel, self.block_size());
        }
        if before & WAITERS != 0 && !sabotage::is(Sabotage::SilentSettle) {
            self.wake_waiters(block);
        }
    }

    fn wake_waiters(&self, block: u64) {
        self.pager.kernel.wake(self.word(block).0);
        let wakers = lock(&self.wakers).remove(&block);
        wakers.into_iter().flatten().for_each(Waker::wake);
        if self.mode == FaultMode::Thread {
            self.frames.wake(self.bytes_of(&(block..block + 1)));
        }
    }

    /// Gives a pin back.
    #[inline]
    pub(crate) fn unpin(&self, block: u64) {
        if self.word(block).unpin() {
            self.pager.budget.progressed(&*self.pager.kernel);
        }
    }

    /// Gives one pin back of each of some blocks.
    pub(crate) fn unpin_all(&self, blocks: impl IntoIterator<Item = u64>) {
        let last = blocks.into_iter().filter(|block| self.word(*block).unpin()).count();
        if last > 0 {
            self.pager.budget.progressed(&*self.pager.kernel);
        }
    }

    /// Sleeps until a block that is being filled or evicted settles, or until `deadline`.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub(crate) fn wait_settled(&self, block: u64, since: Duration, deadline: Duration) -> Result<()> {
        while let Some(bits) = self.word(block).announce_waiter() {
            let now = self.pager.now();
            if now >= deadline {
                let bytes = self.bytes_of(&(block..block + 1));
                return Err(self.timed_out(bytes, now - since));
            }
            self.pager.kernel.wait(self.word(block).0, bits, Some(deadline - now));
        }
        Ok(())
    }

    /// Waits for the turn to write back or to resize: for as long as it takes where the store can't hang.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub(crate) fn take_turn(&self) -> Result<Turn<'_>> {
        let since = self.pager.now();
        let deadline = (!self.local).then(|| since + self.deadline);
        let turn = self.turn.enter(&*self.pager.kernel, deadline);
        turn.ok_or_else(|| self.timed_out(0..self.len(), self.pager.now() - since))
    }

    /// An [`Error::TimedOut`] for a byte range of this file.
    pub(crate) fn timed_out(&self, bytes: Range<u64>, waited: Duration) -> Error {
        Error::TimedOut { path: self.name.clone(), offset: bytes.start, len: bytes.end - bytes.start, waited }
    }

    /// Pins a block that may be in transition, waiting for it; `false` if it is absent.
    pub(crate) fn pin_settled(&self, block: u64) -> Result<bool> {
        let since = self.pager.now();
        loop {
            match self.word(block).pin_untouched() {
                Pin::Held(_) => return Ok(true),
                Pin::Absent => return Ok(false),
                Pin::Overflow => return Err(self.too_many_pins()),
                Pin::Busy => self.wait_settled(block, since, since + self.deadline)?,
            }
        }
    }

    /// As [`pin_settled`](Self::pin_settled), for a write-back: also `false` if the block is being filled and not shown yet.
    /// Then nothing of it is dirty, and its filler may be waiting for the very turn that the caller holds. Once the block is
    /// shown it may be dirty, and its filler waits for nothing any more.
    pub(crate) fn pin_written(&self, block: u64) -> Result<bool> {
        let word = self.word(block);
        let unshown = |bits| block::state(bits) == State::Filling && bits & MAPPED == 0;
        let since = self.pager.now();
        loop {
            match word.pin_untouched() {
                Pin::Held(_) => return Ok(true),
                Pin::Absent => return Ok(false),
                Pin::Overflow => return Err(self.too_many_pins()),
                Pin::Busy if unshown(word.bits()) => return Ok(false),
                Pin::Busy => {
                    let Some(bits) = word.announce_waiter() else { continue };
                    let waited = self.pager.now() - since;
                    let Some(left) = self.deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
                        return Err(self.timed_out(self.bytes_of(&(block..block + 1)), waited));
                    };
                    if !unshown(bits) {
                        self.pager.kernel.wait(word.0, bits, Some(left));
                    }
                }
            }
        }
    }

    pub(crate) fn too_many_pins(&self) -> Error {
        Error::invalid(
            format!("{}: one block is pinned 16383 times", self.name),
            "drop pins that are no longer needed",
        )
    }

    /// Registers a task to be woken when a block settles; `false` if it is not in transition.
    pub(crate) fn wake_when_settled(&self, block: u64, waker: &Waker) -> bool {
        lock(&self.wakers).entry(block).or_default().push(waker.clone());
        if self.word(block).announce_waiter().is_some() {
            return true;
        }
        // It settled meanwhile, perhaps before it could see the waker: the caller looks again by itself.
        if let Some(wakers) = lock(&self.wakers).get_mut(&block) {
            wakers.retain(|other| !other.will_wake(waker));
        }
        false
    }

    /// Ends a successful fill of one block: it becomes resident, with `pins` pins and the bits `set`, and the policy learns
    /// of it. The fill does not count as a touch.
    pub(crate) fn filled(self: &Arc<Self>, block: u64, pins: u32, set: u32, ahead: bool) {
        self.charges.resident.fetch_add(1, Ordering::Relaxed);
        let whole = self.is_whole(block);
        let key = match whole {
            false => Some(self.key_of(block)),
            true => Some(self.region_of(block))
                .filter(|region| region.start == block)
                .map(|region| self.region_key(&region)),
        };
        let complete = !whole && self.count_in(block);
        if let Some(key) = key {
            let mut policy = lock_policy(&self.pager.policy);
            let queued = self.queued_bit(key);
            match self.word(block).set(queued) & queued == 0 {
                true if ahead => policy.insert_once(key),
                true => policy.insert(key),
                false => {}
            }
        }
        self.settle(block, State::Resident, pins, set, 0);
        if complete {
            self.collapse_soon(self.region_of(block));
        }
    }

    /// Ends the dropping of one block; the caller has released its frame.
    pub(crate) fn dropped(&self, block: u64) {
        self.charges.resident.fetch_sub(1, Ordering::Relaxed);
        self.settle(block, State::Absent, 0, 0, MAPPED | MAPPED_CHECKED | SHOWN | TOUCHED | TRIGGER);
    }

    /// Bytes charged to the budget for one block.
    pub(crate) fn block_charge(&self) -> u64 {
        self.charges.block_charge
    }

    /// Whether a chunk of the table was ever used.
    pub(crate) fn is_chunk_used(&self, chunk: u64) -> bool {
        self.used_chunks[(chunk / 32) as usize].load(Ordering::Acquire) & 1 << (chunk % 32) != 0
    }

    /// Marks a chunk of the table as used; whether it was not.
    pub(crate) fn use_chunk(&self, chunk: u64) -> bool {
        let bit = 1 << (chunk % 32);
        self.used_chunks[(chunk / 32) as usize].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Notes that a chunk of the table is charged.
    pub(crate) fn chunk_charged(&self) {
        self.charges.tables.fetch_add(PAGE, Ordering::Release);
    }

    /// Bytes charged for what stays: chunks of the table, of which [`is_chunk_used`](Self::is_chunk_used) tells afterwards, and
    /// the journal's buffer and index.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.charges.tables.load(Ordering::Acquire) + self.charges.journal.load(Ordering::Acquire)
    }

    /// The runs of blocks inside `blocks` whose chunks of the table were ever used: all others are absent.
    pub(crate) fn used_runs(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let chunks = blocks.start / CHUNK..blocks.end.div_ceil(CHUNK);
        let words = chunks.start / 32..chunks.end.div_ceil(32);
        words
            .filter(|&word| self.used_chunks[word as usize].load(Ordering::Acquire) != 0)
            .flat_map(|word| word * 32..word * 32 + 32)
            .filter(|&chunk| self.is_chunk_used(chunk))
            .map(move |chunk| (chunk * CHUNK).max(blocks.start)..((chunk + 1) * CHUNK).min(blocks.end))
            .filter(|run| !run.is_empty())
    }

    /// Whether page tables tell what was written. Where other processes write, each page is called dirty before they can:
    /// [`grant`](Self::grant).
    pub(crate) fn page_tables_tell(&self) -> bool {
        self.writable && !self.frames.is_lent()
    }

    /// The views whose page tables tell what was written.
    pub(crate) fn views(&self) -> impl Iterator<Item = View> + use<> {
        let tells = self.page_tables_tell();
        let checked = lock(&self.scopes).view_exists.then_some(View::Checked);
        std::iter::once(View::Plain).chain(checked).filter(move |_| tells)
    }

    /// Adds pages to the dirty set.
    pub(crate) fn mark_dirty(&self, pages: Range<u64>) {
        let mut dirty = lock(&self.dirty);
        let pages_in_block = self.block_size() / PAGE;
        let mut new = 0;
        for block in pages.start / pages_in_block..pages.end.div_ceil(pages_in_block) {
            new += u64::from(self.word(block).set(DIRTY) & DIRTY == 0);
        }
        self.count_unwritten(new);
        dirty.insert(pages);
    }

    /// Takes the pages of a block out of the dirty set. If there are any, the block counts as unwritten until that is taken back:
    /// `File::count_written`.
    pub(crate) fn take_dirty(&self, block: u64) -> Vec<Range<u64>> {
        if self.word(block).bits() & DIRTY == 0 {
            return Vec::new();
        }
        let mut dirty = lock(&self.dirty);
        self.word(block).clear(DIRTY);
        dirty.take(self.pages_of(block))
    }

    /// Whether the last map of it was dropped: what was planned for later is not worth doing.
    pub(crate) fn is_closed(&self) -> bool {
        let life = &self.gone.life;
        life.opened.load(Ordering::Acquire) != 0 && life.maps.load(Ordering::Acquire) == 0
    }

    /// Notes that a page of this file raises SIGBUS until it is mapped.
    pub(crate) fn poisons(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Whether any page ever did.
    pub(crate) fn was_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// What jobs that call the store are like.
    pub(crate) fn job_kind(&self) -> Kind {
        if self.local { Kind::Ordinary } else { Kind::MayHang }
    }

    /// On whose account buffers are lent that may not come back.
    fn buffer_owner(&self) -> Option<u32> {
        (!self.local).then_some(self.slot)
    }

    /// Takes a buffer for the store's bytes, waiting until `deadline`; `None` if none came back by then.
    pub(crate) fn take_buffer(&self, len: usize, deadline: Duration) -> Option<Lent> {
        self.pager.buffers.take(&self.pager.kernel, len, self.buffer_owner(), deadline)
    }

    /// As [`take_buffer`](Self::take_buffer), without waiting.
    pub(crate) fn try_take_buffer(&self, len: usize) -> Option<Lent> {
        self.pager.buffers.try_take(&self.pager.kernel, len, self.buffer_owner())
    }

    /// Sets the pattern that read-ahead assumes.
    pub fn advise(&self, advice: Advice) {
        lock(&self.read_ahead).advise(advice);
    }

    /// Bytes of blocks resident now: whole blocks, so it may be above the length.
    pub fn resident_bytes(&self) -> u64 {
        self.charges.resident.load(Ordering::Relaxed) << self.block_shift
    }

    /// Whether the block that holds `offset` is resident, for tests and reports.
    pub fn is_resident(&self, offset: u64) -> bool {
        block::state(self.word(offset >> self.block_shift).bits()) == State::Resident
    }
}

/// The bit that says that a view shows a block.
pub(crate) fn mapped_bit(view: View) -> u32 {
    match view {
        // What other processes show is not told apart: for files that are read it decides only in which order things are evicted.
        View::Plain | View::Remote(_) => MAPPED,
        View::Checked => MAPPED_CHECKED,
    }
}

fn check_block_size(block_size: u64, budget: u64) -> Result<()> {
    if !block_size.is_power_of_two() || !(PAGE..=MAX_BLOCK).contains(&block_size) {
        return Err(Error::invalid(
            format!("a block size of {block_size} bytes"),
            "use a power of two from 4096 (4 KiB) to 2097152 (2 MiB)",
        ));
    }
    if budget / MIN_BLOCKS < block_size {
        return Err(Error::invalid(
            format!("a budget of {budget} bytes for blocks of {block_size} bytes"),
            "give the pager at least eight blocks, or use smaller blocks",
        ));
    }
    Ok(())
}

impl Drop for File {
    fn drop(&mut self) {
        self.count_none();
        let resident = self.charges.resident.load(Ordering::Acquire);
        let tables = self.charges.tables.load(Ordering::Acquire);
        // A file that was ever filled may have left entries of blocks that are gone.
        self.pager.forget(self.slot, resident.max(tables / PAGE));
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("name", &self.name).finish_non_exhaustive()
    }
}
