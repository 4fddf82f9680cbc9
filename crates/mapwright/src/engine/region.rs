//! Regions: runs of blocks that have one frame between them.
//!
//! A region that is filled at once becomes *whole*: its frame moves as one, or where frames are shared is one huge page, and the policy has one entry for it. A whole region
//! is shown, unmapped and dropped as one: who shows it holds a pin on one of its blocks, who unmaps or drops it has claimed all
//! of them. So while a block is pinned its region stays where it is. Where that is in the way, because nothing else can be
//! dropped, the region is *split*: its blocks go on as ordinary ones.
//!
//! Blocks that were filled one by one have a frame each. When the last one of a region has come they are *collapsed*: copied to
//! a buffer on a huge page, which becomes the region's frame, and costs one address translation where there were hundreds.
//!
//! The word of a region:
//!
//! | from | to | by | who may |
//! | --- | --- | --- | --- |
//! | 0 | WHOLE, or WHOLE and ASIDE | [`File::fill_region`] | who has claimed all blocks, to fill or to collapse them |
//! | WHOLE, ASIDE | and BUSY | [`File::show_region`] | who has a pin on a block |
//! | WHOLE, ASIDE, BUSY | WHOLE | `show_region`, done | the same |
//! | WHOLE, ASIDE | WHOLE | [`File::shown_elsewhere`], where frames are lent | who has a pin on a block |
//! | WHOLE | WHOLE, ASIDE | [`File::unmap_region`] | who has claimed all blocks |
//! | WHOLE | 0 | [`File::take_region`] | who has claimed all blocks |
//! | WHOLE | SPLIT | [`File::split_region`] | who has claimed a block, if not BUSY |
//! | SPLIT | 0 | `split_region`, done | the same |
//! | SPLIT | WHOLE | `split_region`, failed | the same |
//!
//! (ASIDE stays as it is through a split that fails.) While a region is being split nothing in it is mapped, unmapped or dropped.
//! Of a region that is not whole the word counts the resident blocks, in steps of ONE_BLOCK; who has claimed a block counts.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::block::{
    MAPPED, MAPPED_CHECKED, QUEUED, QUEUED_WHOLE, SHOWN, State, TOUCHED, TRIGGER, pins, state,
};
use super::budget::Lent;
use super::evict;
use super::file::File;
use super::kernel::{Regions, View};
use super::policy::{Key, Seen};
use super::pool::Kind;
use super::sabotage::{self, Sabotage};
use super::{Engine, PAGE, lock, lock_policy};
use crate::error::{Error, Result};

/// One frame for all blocks.
const WHOLE: u32 = 1;
/// The frame is stored, not mapped.
const ASIDE: u32 = 1 << 1;
/// It is about to be mapped.
const BUSY: u32 = 1 << 2;
/// Its frame is being made into pages.
const SPLIT: u32 = 1 << 3;
/// One resident block of a region that is not whole.
const ONE_BLOCK: u32 = 1 << 16;
/// Between tries to collapse a region: who has filled its last block holds that for a moment.
const PAUSES: [Duration; 3] =
    [Duration::from_micros(200), Duration::from_millis(2), Duration::from_millis(20)];
/// Waiting for another thread that shows or splits a region: a moment, unless that thread has lost its processor.
const MOMENT: Duration = Duration::from_millis(1);

/// Collapses regions that are due, one at a time, until there are none.
pub(super) fn run_collapses(engine: &Arc<Engine>) {
    loop {
        let next = lock(&engine.to_collapse).front().cloned();
        let Some((file, region)) = next else { return };
        if let Some(file) = file.upgrade() {
            file.collapse(&region);
        }
        let mut due = lock(&engine.to_collapse);
        due.pop_front();
        if due.is_empty() {
            return; // whoever notes the next one starts this again
        }
    }
}

impl File {
    /// Notes that all blocks of a region have become resident, one by one.
    pub(super) fn collapse_soon(self: &Arc<Self>, region: Range<u64>) {
        let is_first = {
            let mut due = lock(&self.pager.to_collapse);
            due.push_back((Arc::downgrade(self), region));
            due.len() == 1
        };
        if is_first {
            self.pager.pool.submit(&self.pager, Kind::Ordinary, Box::new(run_collapses));
        }
    }

    /// Which region a block is in.
    fn region_index(&self, block: u64) -> usize {
        ((block << self.block_shift) / self.region_size) as usize
    }

    /// Whether a run of blocks that the caller has claimed, all of them, is a whole region.
    pub(super) fn is_whole_region(&self, region: &Range<u64>) -> bool {
        self.regions[self.region_index(region.start)].load(Ordering::Acquire) & WHOLE != 0
    }

    /// Whether a block's region is whole, or being split. Stays so while the caller holds a claim or a pin on it, unless another
    /// splits it.
    pub(super) fn is_whole(&self, block: u64) -> bool {
        self.regions[self.region_index(block)].load(Ordering::Acquire) & (WHOLE | SPLIT) != 0
    }

    /// Whether the region of a block has become whole by taking the pages of a buffer.
    pub(super) fn has_taken_pages(&self, block: u64) -> bool {
        self.moves() && self.is_whole(block)
    }

    fn moves(&self) -> bool {
        self.frames.regions().is_some_and(|regions| regions.moves())
    }

    /// Blocks of a region, where regions may become whole: not with the buffers of a small budget.
    pub(super) fn region_blocks(&self) -> Option<u64> {
        let may = self.frames.regions().is_some() && self.pager.buffers.lends_regions(self.region_size);
        may.then_some(self.region_size >> self.block_shift).filter(|&blocks| blocks > 0)
    }

    /// Whether a run of blocks is one region that may be filled as such.
    pub(super) fn may_be_whole(&self, blocks: &Range<u64>) -> bool {
        self.region_blocks() == Some(blocks.end - blocks.start) && *blocks == self.region_of(blocks.start)
    }

    /// The key under which the policy has a block, or its region if that is whole.
    pub(super) fn key_of(&self, block: u64) -> Key {
        Key::sized(self.slot, block, self.block_shift - PAGE.trailing_zeros())
    }

    /// The key of a whole region.
    pub(super) fn region_key(&self, region: &Range<u64>) -> Key {
        Key::sized(self.slot, region.start, (self.region_size / PAGE).ilog2())
    }

    /// The bit that tells that the policy has an entry of this key.
    pub(super) fn queued_bit(&self, key: Key) -> u32 {
        if (key.pages() as u64) << PAGE.trailing_zeros() == self.block_size() { QUEUED } else { QUEUED_WHOLE }
    }

    /// Makes the bytes of a buffer those of a region whose blocks the caller has claimed, shown in the plain view or only stored.
    pub(super) fn fill_region(
        &self,
        regions: &dyn Regions,
        blocks: &Range<u64>,
        bytes: &mut [u8],
        shown: bool,
    ) -> io::Result<()> {
        let word = &self.regions[self.region_index(blocks.start)];
        if shown {
            self.mark(blocks, MAPPED); // first: invariant (3) of `block`
        }
        regions.fill(blocks.start << self.block_shift, bytes, shown)?;
        word.store(if shown { WHOLE } else { WHOLE | ASIDE }, Ordering::Release);
        Ok(())
    }

    /// Shows the region of pinned blocks, all in one region, if it is whole; whether it is.
    pub(super) fn show_region(&self, held: &Range<u64>) -> Result<bool> {
        let Some(regions) = self.frames.regions() else { return Ok(false) };
        let kernel = &*self.pager.kernel;
        let word = &self.regions[self.region_index(held.start)];
        let region = self.region_of(held.start);
        let in_work = if sabotage::is(Sabotage::HastyShow) { BUSY } else { BUSY | SPLIT };
        loop {
            let now = word.load(Ordering::Acquire);
            match now {
                // One that is being split may stay whole after all, and must not be mapped in part then.
                now if now & in_work != 0 => kernel.wait(word, now, Some(MOMENT)),
                now if now & WHOLE == 0 => return Ok(false),
                _ if self.is_shown_here(now, held.start) => {
                    // The caller may have met an unmapped page just before: it is to be touched again.
                    self.frames.wake(self.bytes_of(held));
                    self.mark(held, MAPPED | SHOWN);
                    return Ok(true);
                }
                now => {
                    if word.compare_exchange(now, now | BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                        break;
                    }
                }
            }
        }
        // All of its blocks are resident and stay so: some are held, and while it is BUSY nobody splits it.
        self.mark(&region, MAPPED);
        let shown = regions.map(region.start << self.block_shift);
        if shown.is_ok() {
            self.mark(&region, SHOWN);
        }
        word.fetch_and(if shown.is_ok() { !(BUSY | ASIDE) } else { !BUSY }, Ordering::AcqRel);
        kernel.wake(word);
        let bytes = self.bytes_of(&region);
        shown.map_err(|e| Error::io("map", self.name.clone(), bytes.start, bytes.end - bytes.start, e))?;
        Ok(true)
    }

    /// Whether a whole region is shown in the plain view, by its word and one of its blocks. If it is lent the word tells of all views.
    fn is_shown_here(&self, word: u32, block: u64) -> bool {
        match self.frames.is_lent() {
            true => self.word(block).bits() & SHOWN != 0,
            false => word & ASIDE == 0,
        }
    }

    /// Notes that pinned blocks are shown in a view of another process.
    pub(super) fn shown_elsewhere(&self, held: &Range<u64>) {
        if self.frames.regions().is_none() || held.is_empty() {
            return;
        }
        for region in self.region_index(held.start)..=self.region_index(held.end - 1) {
            let word = &self.regions[region];
            if word.load(Ordering::Acquire) & ASIDE != 0 {
                word.fetch_and(!ASIDE, Ordering::AcqRel);
            }
        }
    }

    /// Counts a claimed block that becomes resident, and is not in a whole region; whether all of its region are now, and it is to be collapsed.
    pub(super) fn count_in(&self, block: u64) -> bool {
        let Some(blocks) = self.region_blocks().filter(|&blocks| blocks > 1) else { return false };
        let before = self.regions[self.region_index(block)].fetch_add(ONE_BLOCK, Ordering::AcqRel);
        u64::from(before / ONE_BLOCK) + 1 == blocks && self.moves()
    }

    /// Takes back a count: the block, claimed and not in a whole region, is about to be absent.
    pub(super) fn count_out(&self, block: u64) {
        if self.region_blocks().is_some_and(|blocks| blocks > 1) {
            self.regions[self.region_index(block)].fetch_sub(ONE_BLOCK, Ordering::AcqRel);
        }
    }

    /// Makes a region whole whose blocks are all resident, each on a frame of its own. Gives up where one stays in use, no buffer
    /// comes free, or room is short: then the region would soon be evicted, or split.
    fn collapse(&self, region: &Range<u64>) {
        for pause in PAUSES {
            if self.is_closed() || self.pager.is_short_of_room() || self.is_whole(region.start) {
                return;
            }
            if let Some(buffer) = self.try_take_buffer(self.region_size as usize) {
                let claims = region.clone().take_while(|&block| self.word(block).claim_eviction().is_some());
                let claimed = region.start..region.start + claims.count() as u64;
                if claimed == *region {
                    return self.collapse_claimed(region, buffer);
                }
                claimed.for_each(|block| self.settle(block, State::Resident, 0, 0, 0));
            }
            self.pager.kernel.wait(&AtomicU32::new(0), 0, Some(pause));
        }
    }

    fn collapse_claimed(&self, region: &Range<u64>, mut buffer: Lent) {
        let give_back =
            |clear| region.clone().for_each(|block| self.settle(block, State::Resident, 0, 0, clear));
        let Some(regions) = self.frames.regions() else { return give_back(0) };
        if self.is_whole(region.start) || self.show_singly(region).is_err() {
            return give_back(0);
        }
        let bytes = self.bytes_of(region);
        self.frames.copy_out(bytes.start, &mut buffer);
        // From here on a touch is a fault, which waits for the claim to end.
        let released = self.frames.release(std::slice::from_ref(&bytes));
        debug_assert!(released.is_ok(), "release: {released:?}");
        self.regions[self.region_index(region.start)].store(0, Ordering::Release);
        match self.fill_region(regions, region, &mut buffer, true) {
            Ok(()) => {
                buffer.set_hollow(true);
                self.pager.counters.collapses.add(1);
                let mut policy = lock_policy(&self.pager.policy);
                if self.word(region.start).set(QUEUED_WHOLE) & QUEUED_WHOLE == 0 {
                    policy.insert_whole(self.region_key(region));
                }
                drop(policy);
                give_back(MAPPED_CHECKED);
            }
            Err(_) => {
                let _ = self.frames.release(std::slice::from_ref(&bytes));
                region.clone().for_each(|block| self.dropped(block));
                evict::gave_up(self, region.end - region.start);
            }
        }
    }

    /// Shows what may be only stored of claimed blocks, so that all of them can be copied out.
    fn show_singly(&self, blocks: &Range<u64>) -> Result<()> {
        let stored = |&block: &u64| self.word(block).bits() & SHOWN == 0;
        blocks.clone().filter(stored).try_for_each(|block| self.map(View::Plain, block..block + 1))
    }

    fn mark(&self, blocks: &Range<u64>, bits: u32) {
        blocks.clone().for_each(|block| _ = self.word(block).set(bits));
    }

    /// Takes back that the first touch of a block, or of one of its whole region, asks for read-ahead; for which block it did.
    pub(super) fn take_trigger(&self, block: u64) -> Option<u64> {
        if self.word(block).clear(TRIGGER) & TRIGGER == 0 {
            return None;
        }
        if !self.is_whole(block) {
            return Some(block);
        }
        let region = self.region_of(block);
        region.clone().for_each(|block| _ = self.word(block).clear(TRIGGER));
        Some(region.start)
    }

    /// Shows a whole region, all of whose blocks the caller has claimed, in no view any more.
    pub(super) fn unmap_region(&self, block: u64) -> io::Result<()> {
        let word = &self.regions[self.region_index(block)];
        let Some(regions) = self.frames.regions() else { return Ok(()) };
        if word.load(Ordering::Acquire) & ASIDE == 0 {
            regions.unmap(self.region_of(block).start << self.block_shift)?;
            word.fetch_or(ASIDE, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Drops the contents of a whole region, all of whose blocks the caller has claimed; its pages go to a buffer that has none,
    /// if there is one.
    pub(super) fn take_region(&self, region: &Range<u64>) {
        let word = &self.regions[self.region_index(region.start)];
        let shown = word.load(Ordering::Acquire) & ASIDE == 0;
        let bytes = self.bytes_of(region);
        let hollow = self
            .moves()
            .then(|| self.pager.buffers.try_take_hollow(&self.pager.kernel, self.region_size))
            .flatten();
        let released = match (self.frames.regions(), hollow) {
            (Some(regions), Some(mut lent)) => {
                let taken = regions.take(bytes.start, shown, lent.buffer());
                lent.set_hollow(taken.is_err());
                Ok(())
            }
            _ => self.frames.release(std::slice::from_ref(&bytes)),
        };
        debug_assert!(released.is_ok(), "release: {released:?}");
        word.store(0, Ordering::Release);
    }

    /// Makes ordinary blocks of a whole region's, one of which the caller has claimed and drops next, and gives them to the
    /// policy; whether it did.
    pub(super) fn split_region(&self, block: u64) -> bool {
        let word = &self.regions[self.region_index(block)];
        let Some(regions) = self.frames.regions() else { return false };
        let now = word.load(Ordering::Acquire);
        if now & (WHOLE | BUSY | SPLIT) != WHOLE {
            return false;
        }
        if word.compare_exchange(now, now & ASIDE | SPLIT, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let region = self.region_of(block);
        let split = regions.split(block << self.block_shift, now & ASIDE == 0);
        let blocks = (region.end - region.start) as u32;
        let counted =
            if self.region_blocks().is_some_and(|blocks| blocks > 1) { blocks * ONE_BLOCK } else { 0 };
        word.store(if split.is_ok() { counted } else { now }, Ordering::Release);
        self.pager.kernel.wake(word);
        if split.is_ok() && !sabotage::is(Sabotage::ForgetSplit) {
            let mut policy = lock_policy(&self.pager.policy);
            for block in region.filter(|&block| state(self.word(block).bits()) != State::Absent) {
                if self.word(block).set(QUEUED) & QUEUED == 0 {
                    policy.insert_part(self.key_of(block));
                }
            }
        }
        split.is_ok()
    }

    /// What the policy shall know of a whole region: busy if one of its blocks is, touched if one was.
    pub(super) fn look_at_region(&self, region: Range<u64>) -> Seen {
        let word = self.regions[self.region_index(region.start)].load(Ordering::Acquire);
        let mut seen = 0;
        for block in region.clone() {
            let bits = self.word(block).bits();
            if word & SPLIT != 0 || state(bits) != State::Resident || pins(bits) > 0 {
                return Seen::Busy;
            }
            seen |= bits;
        }
        if seen & TOUCHED != 0 {
            region.for_each(|block| _ = self.word(block).clear(TOUCHED));
            return Seen::Touched;
        }
        if word & ASIDE != 0 && seen & MAPPED_CHECKED == 0 { Seen::IdleUnmapped } else { Seen::IdleClean }
    }
}
