//! What waits to be written back: how much of the budget it may take, and which files are passed over where that fails.
//!
//! Pages that other processes write are dirty before they are written ([`File::grant`]). So it can be bounded what of the budget
//! can't be given back until a store takes it: a file may have one block more dirty as long as what it has and what all such
//! files have, together, is at most half of the budget. One alone gets a quarter; when that can't be written, the next one gets
//! half of what is left, and so on; and half of the budget stays for those who read. Who wants more writes back first
//! ([`make_way`]). Of files that this process writes itself it is not known before their page tables are asked.
//!
//! What can't be written is passed over while room is made, for a while that doubles with each failure, so that others get what
//! else there is. That their room is taken is all that others hear of it. Of lent files it is passed over also while it is being
//! written, on a thread of its own, because that may have to wait for a client's address space.
//!
//! Left to others: what is dirty (`File::mark_dirty`), the write-back (`write_back`), who needs room (`fill::reserve`).

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::block::{DIRTY, MAPPED};
use super::file::File;
use super::kernel::View;
use super::{Engine, PAGE, evict, fill, lock, read_files, vanished};
use crate::error::{Error, Result};

/// For how long dirty blocks are passed over after a write-back for room has failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const MAX_PAUSE: Duration = Duration::from_millis(100);

const UNDER_WAY: u64 = u64::MAX;

/// How write-backs for room have gone, and how much waits for one.
#[derive(Debug, Default)]
pub(super) struct Relief {
    /// Until when dirty blocks are passed over, in nanoseconds of the kernel trait's time; `UNDER_WAY` while another thread writes
    /// some back.
    until: AtomicU64,
    /// How many failed since one went well.
    failures: AtomicU32,
    /// Why the last one failed, if it did.
    failure: Mutex<Option<Error>>,
    /// Bytes of blocks that are dirty or being written, where the frames are lent. Grows under the lock of the dirty set.
    unwritten: AtomicU64,
    /// Changes whenever a write-back of any kind gets on.
    progress: AtomicU64,
}

impl Relief {
    /// Notes that a write-back on another thread begins; `false` if one is under way. It ends by [`ended`](Self::ended).
    pub(super) fn begin(&self) -> bool {
        self.until.swap(UNDER_WAY, Ordering::AcqRel) != UNDER_WAY
    }

    /// Notes how a write-back for room has ended.
    pub(super) fn ended<T>(&self, outcome: &Result<T>, now: Duration) {
        *lock(&self.failure) = outcome.as_ref().err().cloned();
        let until = match outcome {
            Ok(_) => {
                self.failures.store(0, Ordering::Relaxed);
                Duration::ZERO
            }
            Err(_) => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                now + (FIRST_PAUSE * (1 << failures.min(16))).min(MAX_PAUSE)
            }
        };
        self.until.store(until.as_nanos() as u64, Ordering::Release);
    }

    /// Whether dirty blocks are passed over.
    pub(super) fn is_passed_over(&self, now: Duration) -> bool {
        self.until.load(Ordering::Acquire) > now.as_nanos() as u64
    }
}

impl File {
    /// Lets another process write pages of pinned blocks: they are dirty from here on.
    ///
    /// # Errors
    /// [`Error::Io`] where that process does not let it be done, or has the file for reading; with `EFAULT` if another has given
    /// the page back ([`vanished::drop_if_vanished`](super::vanished::drop_if_vanished)).
    pub(crate) fn grant(&self, view: View, pages: Range<u64>) -> Result<()> {
        let bytes = pages.start * PAGE..pages.end * PAGE;
        self.blocks_of(bytes.clone()).for_each(|block| _ = self.word(block).set(MAPPED));
        let was_clean = Cell::new(false);
        let call_dirty = || {
            was_clean.set(self.are_clean(&pages));
            self.mark_dirty(pages.clone());
        };
        let granted = self.frames.grant(view, bytes.clone(), &call_dirty);
        if granted.as_ref().is_err_and(vanished::has_vanished) && was_clean.get() {
            self.call_clean(pages); // nobody has written what is not there
        }
        granted.map_err(|e| Error::io("map", self.name.clone(), bytes.start, bytes.end - bytes.start, e))
    }

    fn are_clean(&self, pages: &Range<u64>) -> bool {
        let blocks = self.blocks_of(pages.start * PAGE..pages.end * PAGE);
        let is_clean = |block| self.word(block).bits() & DIRTY == 0;
        blocks.into_iter().all(is_clean) || lock(&self.dirty).runs_in(pages, 1).is_empty()
    }

    /// Takes pages out of the dirty set that were put there for nothing.
    fn call_clean(&self, pages: Range<u64>) {
        let mut dirty = lock(&self.dirty);
        dirty.take(pages.clone());
        let mut clean = 0;
        for block in self.blocks_of(pages.start * PAGE..pages.end * PAGE) {
            let is_clean = dirty.runs_in(&self.pages_of(block), 1).is_empty();
            clean += u64::from(is_clean && self.word(block).clear(DIRTY) & DIRTY != 0);
        }
        self.count_written(clean);
    }

    /// Counts blocks that have become dirty.
    pub(super) fn count_unwritten(&self, blocks: u64) {
        if blocks > 0 && self.frames.is_lent() {
            self.relief.unwritten.fetch_add(blocks * self.block_charge(), Ordering::AcqRel);
            self.pager.unwritten.fetch_add(blocks * self.block_charge(), Ordering::AcqRel);
        }
    }

    /// Takes back what was counted of blocks that were dirty, when they are written, dropped, or counted again.
    pub(super) fn count_written(&self, blocks: u64) {
        if blocks > 0 && self.frames.is_lent() {
            self.relief.unwritten.fetch_sub(blocks * self.block_charge(), Ordering::AcqRel);
            self.pager.unwritten.fetch_sub(blocks * self.block_charge(), Ordering::AcqRel);
        }
    }

    /// Takes back all, when the file is dropped.
    pub(super) fn count_none(&self) {
        let rest = self.relief.unwritten.swap(0, Ordering::AcqRel);
        self.pager.unwritten.fetch_sub(rest, Ordering::AcqRel);
    }

    /// Notes that a write-back got on.
    pub(crate) fn got_on(&self) {
        self.relief.progress.fetch_add(1, Ordering::Release);
    }

    /// Changes whenever a write-back gets on: what two looks find the same may hang.
    pub(crate) fn progress(&self) -> u64 {
        self.relief.progress.load(Ordering::Acquire)
    }

    /// Bytes of blocks that are dirty or being written, where the frames are lent.
    pub(crate) fn unwritten(&self) -> u64 {
        self.relief.unwritten.load(Ordering::Acquire)
    }

    /// Why the file can't be written back, if that is why there is no room.
    pub(super) fn room_failure(&self) -> Option<Error> {
        lock(&self.relief.failure).clone()
    }

    /// Whether blocks may become dirty beside what waits to be written, or are. What many threads ask at once may be a little more.
    pub(crate) fn may_dirty(&self, blocks: &[Range<u64>]) -> bool {
        let clean = |block: &u64| self.word(*block).bits() & DIRTY == 0;
        let more = blocks.iter().cloned().flatten().filter(clean).count() as u64 * self.block_charge();
        let all = self.pager.unwritten.load(Ordering::Acquire);
        more == 0 || self.unwritten() + all + more <= self.pager.budget.limit() / 2
    }
}

/// Sees to it that blocks of a file that other processes write may become dirty: writes back what it has, or others have, as long as that is
/// too much.
///
/// # Errors
/// What writing the file itself back meets; [`Error::BudgetExhausted`] if others have too much that can't be written, at the
/// file's deadline.
pub(crate) fn make_way(file: &Arc<File>, blocks: &[Range<u64>]) -> Result<()> {
    let engine = &***file.pager;
    let since = engine.now();
    let mut waiter = None;
    while !file.may_dirty(blocks) {
        let now = engine.now();
        let Some(left) = (since + file.deadline).checked_sub(now).filter(|left| !left.is_zero()) else {
            let needed = blocks.iter().map(|run| run.end - run.start).sum::<u64>() * file.block_charge();
            return Err(exhausted(file, needed));
        };
        // Made before another look: what was in the way may have been written meanwhile.
        let Some(waiter) = &mut waiter else {
            waiter = Some(engine.budget.waiter());
            continue;
        };
        let relieved = match file.unwritten() {
            0 => engine.relieve_another(file, now),
            _ => evict::relieve_now(file, Vec::new())?,
        };
        if !relieved {
            waiter.wait(&*engine.kernel, left.min(MAX_PAUSE));
        }
    }
    Ok(())
}

fn exhausted(file: &File, needed: u64) -> Error {
    let remedy = "look why other files can't be written, or raise Pager::builder().budget()";
    fill::exhausted_by(file, needed, remedy)
}

impl Engine {
    /// Writes back what a file has, not this one, that has most to be written; whether that was done.
    fn relieve_another(&self, but: &File, now: Duration) -> bool {
        let files: Vec<Arc<File>> = {
            let files = read_files(&self.files);
            files.by_slot.values().filter_map(std::sync::Weak::upgrade).collect()
        };
        let others = files.iter().filter(|file| file.slot != but.slot && !file.relief.is_passed_over(now));
        let most = others.filter(|file| file.unwritten() > 0).max_by_key(|file| file.unwritten());
        most.is_some_and(|file| evict::relieve(file, Vec::new()).is_ok_and(|relieved| relieved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_is_passed_over_for_longer_and_longer() {
        let relief = Relief::default();
        let failed = |relief: &Relief, now| relief.ended(&Err::<(), _>(Error::invalid("a test", "")), now);
        assert!(!relief.is_passed_over(Duration::ZERO));
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            failed(&relief, Duration::from_secs(1));
            let until = Duration::from_nanos(relief.until.load(Ordering::Relaxed)) - Duration::from_secs(1);
            assert!(until >= last.max(FIRST_PAUSE) && until <= MAX_PAUSE, "{until:?}");
            last = until;
        }
        assert_eq!(last, MAX_PAUSE);
        assert!(relief.is_passed_over(Duration::from_secs(1)));
        assert!(!relief.is_passed_over(Duration::from_secs(2)), "for ever");
        relief.ended(&Ok(()), Duration::from_secs(1));
        assert!(!relief.is_passed_over(Duration::from_secs(1)));
        failed(&relief, Duration::ZERO);
        assert!(!relief.is_passed_over(FIRST_PAUSE), "what went well counts");
        assert!(relief.begin() && !relief.begin(), "one at a time");
        assert!(relief.is_passed_over(Duration::from_secs(1 << 30)));
        relief.ended(&Ok(()), Duration::ZERO);
        assert!(!relief.is_passed_over(Duration::ZERO) && relief.begin());
    }
}
