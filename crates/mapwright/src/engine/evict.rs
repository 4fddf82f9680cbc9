//! Making room: see docs/life-of-a-write-back.md for what becomes of dirty blocks.
//!
//! A batch goes in two stages, as the policy says: blocks are *unmapped* first and stay for a while, so that a touch shows
//! that they are in use; later they are *dropped*. A block with dirty pages is never dropped: it is written back first, and
//! only when there is not enough that is clean.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::block::{self, DIRTY, MAPPED, MAPPED_CHECKED, QUEUED, SHOWN, State, TOUCHED};
use super::file::{File, mapped_bit};
use super::kernel::REGION;
use super::policy::{Key, Policy, Seen, Victim};
use super::pool::Kind;
use super::sabotage::{self, Sabotage};
use super::write_back;
use super::{Engine, PAGE, lock, lock_policy};
use crate::error::{Error, Result};

/// Blocks handled together at most: enough to pay for the calls, few enough not to keep faults waiting.
const MAX_BATCH: usize = 256;
/// Dirty bytes written back under one sync when nothing clean is left, at most.
const PRESSURE_BATCH: u64 = 8 << 20;
/// How often victims are chosen in vain because they could not be written back.
const MAX_TRIES: u32 = 4;

/// A block that this thread has claimed (Resident → Evicting), with the bits it had.
struct Claimed {
    block: u64,
    bits: u32,
}

/// What the policy chose in one file.
struct Choice {
    file: Arc<File>,
    unmap: Vec<Claimed>,
    drop: Vec<Claimed>,
    /// Whole regions, all blocks of which are claimed.
    unmap_regions: Vec<Range<u64>>,
    drop_regions: Vec<Range<u64>>,
    /// Blocks claimed in vain: others of their region are in use.
    spare: Vec<u64>,
}

impl Choice {
    fn new(file: Arc<File>) -> Self {
        let (unmap, drop, unmap_regions, drop_regions, spare) = Default::default();
        Self { file, unmap, drop, unmap_regions, drop_regions, spare }
    }

    fn is_empty(&self) -> bool {
        let blocks = self.unmap.is_empty() && self.drop.is_empty();
        blocks && self.unmap_regions.is_empty() && self.drop_regions.is_empty()
    }

    /// Claims what the policy chose, a block or a whole region; the bytes that will be dropped if they are clean. What was to be
    /// dropped and can't be claimed stays with the policy.
    fn claim(&mut self, policy: &mut Policy, victim: Victim) -> u64 {
        let (Victim::Unmap(key) | Victim::Evict(key)) = victim;
        let drops = matches!(victim, Victim::Evict(_));
        let block = key.block();
        let claimed = if self.file.is_whole(block) {
            let region = self.file.region_of(block);
            let claimed = self.claim_region(&region).then_some(self.file.region_size);
            let regions = if drops { &mut self.drop_regions } else { &mut self.unmap_regions };
            regions.extend(claimed.map(|_| region));
            claimed
        } else {
            self.claim_block(block, drops)
        };
        match claimed {
            Some(bytes) if drops => {
                self.file.word(block).clear(self.file.queued_bit(key));
                bytes
            }
            None if drops => {
                policy.requeue(key);
                0
            }
            _ => 0,
        }
    }

    /// Claims a block that is not in a whole region; its bytes.
    fn claim_block(&mut self, block: u64, drops: bool) -> Option<u64> {
        let bits = self.file.word(block).claim_eviction()?;
        if self.file.is_whole(block) {
            self.spare.push(block); // since a moment ago: another time, by the entry of its region
            return Some(0);
        }
        let blocks = if drops { &mut self.drop } else { &mut self.unmap };
        blocks.push(Claimed { block, bits });
        Some(self.file.block_size())
    }

    /// Claims all blocks of a whole region; whether it got them.
    fn claim_region(&mut self, region: &Range<u64>) -> bool {
        let claims = region.clone().take_while(|&block| self.file.word(block).claim_eviction().is_some());
        let claimed = region.start..region.start + claims.count() as u64;
        if claimed == *region && self.file.is_whole_region(region) {
            return true;
        }
        self.spare.extend(claimed);
        false
    }
}

/// What to do where nothing clean is left to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// Write it back. The caller holds no buffer: a write-back needs one, and would wait for its own caller.
    WriteBack,
    /// Leave it.
    Keep,
}

/// What trying to make room came to.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// Something was evicted, or is closer to it.
    pub progress: bool,
    /// What could not be written back: slots of files, and why.
    pub failures: Vec<(u32, Error)>,
}

impl Made {
    fn note(&mut self, file: &File, failure: Option<Error>) {
        self.failures.extend(failure.map(|error| (file.slot, error)));
    }
}

/// Makes room for at least `bytes`, if anything can be evicted.
pub(crate) fn make_room(engine: &Engine, bytes: u64, what: Dirty) -> Made {
    let batch = (engine.budget.limit() / 32).min(MAX_BATCH as u64 * PAGE).max(bytes);
    let wanted = (batch / PAGE).clamp(1, MAX_BATCH as u64) as usize;
    let mut made = Made::default();
    // What can't be written is passed over from then on: others may have something to drop.
    for _ in 0..MAX_TRIES {
        let mut dirty = Vec::new();
        let (mut unmapped, mut freed) = (false, 0);
        for mut choice in choose(engine, wanted) {
            unmapped |= !choice.unmap.is_empty() || !choice.unmap_regions.is_empty();
            give_back(&mut choice);
            unmap_stage(&mut choice);
            freed += drop_stage(&choice, &mut dirty);
        }
        made.progress = freed > 0 || unmapped && dirty.is_empty();
        if made.progress || dirty.is_empty() || what == Dirty::Keep {
            break;
        }
        made.progress = unmapped;
        for (file, blocks) in dirty {
            match relieve(&file, blocks) {
                Ok(true) => made.progress = true,
                // Somebody else is at it. If that went wrong before, it is why there is no room.
                Ok(false) => made.note(&file, lock(&file.latch).as_deref().cloned()),
                Err(error) => made.note(&file, Some(error)),
            }
        }
        if made.progress {
            break;
        }
    }
    made
}

/// Evicts in the background until a reasonable part of the budget is free.
pub(crate) fn run_evictor(engine: &Arc<Engine>) {
    // Where regions take the pages of buffers, not many more than there are of those.
    let enough = (engine.budget.limit() / 32).min(engine.budget.limit() / 64 + 2 * REGION);
    while engine.budget.free() < enough && !engine.pool.is_closing() {
        if engine.has_moved.load(Ordering::Relaxed) && !engine.buffers.may_take_pages(REGION) {
            break; // the fills that hold the buffers make room themselves
        }
        if !make_room(engine, PAGE, Dirty::WriteBack).progress {
            break;
        }
    }
    engine.evictor_ended();
}

/// Asks the policy for victims and claims them, sorted by file and place.
fn choose(engine: &Engine, wanted: usize) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    let mut files = KnownFiles { engine, now: engine.now(), known: Vec::new() };
    let mut policy = lock_policy(&engine.policy);
    let mut notes = Notes::default();
    let (mut bytes, enough) = (0, wanted as u64 * PAGE);
    for _ in 0..4 * wanted {
        let victim = policy.next_victim(&mut |key| look(&mut files, key, &mut notes));
        let Some(victim) = victim else { break };
        let (Victim::Unmap(key) | Victim::Evict(key)) = victim;
        let Some(file) = files.get(key.slot()) else { continue };
        let index = choices.iter().position(|choice| choice.file.slot == file.slot).unwrap_or_else(|| {
            choices.push(Choice::new(file));
            choices.len() - 1
        });
        bytes += choices[index].claim(&mut policy, victim);
        if bytes >= enough {
            break;
        }
    }
    drop(policy);
    if choices.iter().all(Choice::is_empty)
        && let Some(key) = notes.stuck
        && let Some(file) = files.get(key.slot())
    {
        choices.extend(split(&file, file.region_of(key.block())));
    }
    drop(files); // may be the last to hold a file: outside the lock
    for choice in &mut choices {
        choice.unmap.sort_unstable_by_key(|claimed| claimed.block);
        choice.drop.sort_unstable_by_key(|claimed| claimed.block);
    }
    choices
}

/// Files looked up during one choice. Held until the policy's lock is free: dropping a file takes that lock.
struct KnownFiles<'a> {
    engine: &'a Engine,
    now: Duration,
    known: Vec<(u32, Option<Arc<File>>)>,
}

impl KnownFiles<'_> {
    fn get(&mut self, slot: u32) -> Option<Arc<File>> {
        if let Some((_, file)) = self.known.iter().find(|(known, _)| *known == slot) {
            return file.clone();
        }
        let file = self.engine.file(slot);
        self.known.push((slot, file.clone()));
        file
    }
}

/// Makes ordinary blocks of a whole region, so that those can be dropped that are not in use; the first of `blocks` is.
fn split(file: &Arc<File>, mut blocks: Range<u64>) -> Option<Choice> {
    let claimed =
        blocks.find_map(|block| Some(Claimed { block, bits: file.word(block).claim_eviction()? }))?;
    let mut choice = Choice::new(Arc::clone(file));
    if file.split_region(claimed.block) {
        choice.drop.push(claimed);
    } else {
        choice.spare.push(claimed.block);
    }
    Some(choice)
}

/// Ends claims that led to nothing.
fn give_back(choice: &mut Choice) {
    for block in choice.spare.drain(..) {
        choice.file.settle(block, State::Resident, 0, 0, 0);
    }
}

/// What was noticed while the policy looked.
#[derive(Default)]
struct Notes {
    /// A region that is in use, but not all of it.
    stuck: Option<Key>,
}

/// What the policy shall know of a block or a region. Runs under the policy's lock.
fn look(files: &mut KnownFiles<'_>, key: Key, notes: &mut Notes) -> Seen {
    let Some(file) = files.get(key.slot()) else { return Seen::Gone };
    let word = file.word(key.block());
    let queued = file.queued_bit(key);
    let whole = file.is_whole(key.block()).then(|| file.region_of(key.block()));
    let right = whole.as_ref().map_or_else(|| file.key_of(key.block()), |region| file.region_key(region));
    if key != right {
        word.clear(queued); // the region, or each of its blocks, has an entry of its own
        return Seen::Gone;
    }
    if let Some(region) = whole {
        let seen = file.look_at_region(region.clone());
        let stuck = seen == Seen::Busy && region.into_iter().any(|block| file.word(block).is_idle());
        if stuck && notes.stuck.is_none() {
            notes.stuck = Some(key);
        }
        return seen;
    }
    let bits = word.bits();
    match block::state(bits) {
        State::Absent => {
            word.clear(queued);
            Seen::Gone
        }
        State::Filling | State::Evicting => Seen::Busy,
        State::Resident if block::pins(bits) > 0 => Seen::Busy,
        State::Resident if bits & DIRTY != 0 && file.relief.is_passed_over(files.now) => Seen::Busy,
        State::Resident if bits & TOUCHED != 0 => {
            word.clear(TOUCHED);
            Seen::Touched
        }
        State::Resident if bits & (MAPPED | MAPPED_CHECKED) != 0 && file.writable => Seen::Idle,
        State::Resident if bits & (MAPPED | MAPPED_CHECKED) != 0 => Seen::IdleClean,
        State::Resident => Seen::IdleUnmapped,
    }
}

/// Unmaps claimed blocks and lets them go on as resident. Where a victim's region was not unmapped for a while, all of it is,
/// but for what is pinned or in transition: unmapping shared frames costs a system call and an interrupt of every other
/// processor a range, so a region at a time is far cheaper than a page at a time, and what is used comes back by a soft fault as
/// any block that is looked at does. Moved frames pay for each page that is there, and have victims unmapped only.
fn unmap_stage(choice: &mut Choice) {
    let file = Arc::clone(&choice.file);
    for region in choice.unmap_regions.drain(..) {
        let unmapped = file.unmap_region(region.start);
        let clear = if unmapped.is_ok() { MAPPED | MAPPED_CHECKED | SHOWN } else { 0 };
        region.for_each(|block| file.settle(block, State::Resident, 0, 0, clear));
    }
    let mut claimed = std::mem::take(&mut choice.unmap);
    let mut region = None;
    for victim in 0..claimed.len() {
        let around = file.region_of(claimed[victim].block);
        let by_region = !file.frames.has_copies();
        if by_region && region.replace(around.clone()) != Some(around.clone()) && file.unmap_is_due(&around) {
            // The victims among them are claimed already.
            let others =
                around.filter_map(|block| Some(Claimed { block, bits: file.word(block).claim_idle()? }));
            claimed.extend(others);
        }
    }
    claimed.sort_unstable_by_key(|claimed| claimed.block);
    let unmapped = unmap(&file, &claimed);
    let clear = if unmapped.is_ok() { MAPPED | MAPPED_CHECKED | SHOWN } else { SHOWN };
    for Claimed { block, bits } in claimed {
        file.settle(block, block::state(bits), 0, 0, clear);
    }
}

/// Drops claimed blocks that are clean; adds the others to `dirty`. Bytes freed.
fn drop_stage(choice: &Choice, dirty: &mut Vec<(Arc<File>, Vec<u64>)>) -> u64 {
    let file = &choice.file;
    for region in &choice.drop_regions {
        file.take_region(region);
        region.clone().for_each(|block| file.dropped(block));
    }
    let blocks: u64 = choice.drop_regions.iter().map(|region| region.end - region.start).sum();
    let freed = gave_up(file, blocks);
    if choice.drop.is_empty() {
        return freed;
    }
    // Only a page that may have been written unseen makes a difference: others leave every view as they are released.
    let unmapped = if file.page_tables_tell() { unmap(file, &choice.drop) } else { Ok(()) };
    let (kept, clean): (Vec<_>, Vec<_>) = choice
        .drop
        .iter()
        .map(|claimed| claimed.block)
        .partition(|&block| unmapped.is_err() || file.word(block).bits() & DIRTY != 0);
    let released = file.frames.release(&ranges(file, &clean));
    for &block in &clean {
        // Punching holes fails only when the kernel is out of memory: what is gone then is gone, the rest would be read
        // again over whatever the frame still holds.
        debug_assert!(released.is_ok(), "release: {released:?}");
        file.count_out(block);
        file.dropped(block);
    }
    let freed = freed + gave_up(file, clean.len() as u64);
    if !kept.is_empty() {
        requeue(file, &kept);
        let clear = if unmapped.is_ok() { MAPPED | MAPPED_CHECKED | SHOWN } else { SHOWN };
        for &block in &kept {
            file.settle(block, State::Resident, 0, 0, clear);
        }
        dirty.push((Arc::clone(file), kept));
    }
    freed
}

/// Accounts for blocks that were dropped; their bytes.
pub(super) fn gave_up(file: &File, blocks: u64) -> u64 {
    let freed = blocks * file.block_charge();
    if freed > 0 {
        file.counted.evicted(blocks);
        file.pager.dropped.fetch_add(blocks as u32, Ordering::Relaxed);
        file.pager.budget.release(&*file.pager.kernel, freed);
    }
    freed
}

fn requeue(file: &File, blocks: &[u64]) {
    let mut policy = lock_policy(&file.pager.policy);
    for &block in blocks {
        if file.word(block).set(QUEUED) & QUEUED == 0 {
            policy.requeue(file.key_of(block));
        }
    }
}

/// Takes claimed blocks, sorted, out of every view and moves what was written there to the dirty set. No write can be missed:
/// after the unmapping every touch is a fault, which waits for the claim to end, and the page tables still tell what was
/// written. Absent blocks among them only join their neighbours.
fn unmap(file: &File, claimed: &[Claimed]) -> Result<()> {
    let runs: Vec<&[Claimed]> = claimed
        .chunk_by(|a, b| a.block + 1 == b.block)
        .filter_map(|run| {
            let shown = |claimed: &Claimed| claimed.bits & (MAPPED | MAPPED_CHECKED) != 0;
            Some(&run[run.iter().position(shown)?..=run.iter().rposition(shown)?])
        })
        .collect();
    let bytes = |run: &[Claimed]| file.bytes_of(&(run[0].block..run[run.len() - 1].block + 1));
    let everywhere: Vec<_> = runs.iter().map(|run| bytes(run)).collect();
    let Some(first) = everywhere.first() else { return Ok(()) };
    let failed = |e| Error::io("unmap", file.name.clone(), first.start, 0, e);
    file.frames.unmap(&everywhere).map_err(failed)?;
    if !file.page_tables_tell() || sabotage::is(Sabotage::BlindEviction) {
        return Ok(());
    }
    for view in file.views() {
        for run in &runs {
            let mut written = Vec::new();
            if file.frames.written(view, bytes(run), &mut written).is_err() {
                // They are unmapped already, so nothing would tell later: what is shown counts as written.
                written = vec![bytes(run)];
            }
            // Page tables without an entry look written: only a block that this view shows counts.
            let shown = |block: u64| run[(block - run[0].block) as usize].bits & mapped_bit(view) != 0;
            for range in written {
                for block in file.blocks_of(range.clone()).filter(|&block| shown(block)) {
                    let block = file.bytes_of(&(block..block + 1));
                    file.mark_dirty(range.start.max(block.start) / PAGE..range.end.min(block.end) / PAGE);
                }
            }
        }
    }
    Ok(())
}

/// The byte ranges of sorted blocks, neighbours joined.
fn ranges(file: &File, blocks: &[u64]) -> Vec<Range<u64>> {
    blocks.chunk_by(|a, b| a + 1 == *b).map(|run| file.bytes_of(&(run[0]..run[run.len() - 1] + 1))).collect()
}

/// Dirty bytes written back under one sync when nothing clean is left.
pub(super) fn pressure_batch(engine: &Engine) -> u64 {
    PRESSURE_BATCH.min(engine.budget.limit() / 8)
}

/// Writes dirty blocks back so that they can be dropped; `false` if somebody else writes the file back already, or does so from here
/// on: who waits for room sees what that makes evictable.
pub(super) fn relieve(file: &Arc<File>, blocks: Vec<u64>) -> Result<bool> {
    if file.frames.is_lent() {
        relieve_elsewhere(file, blocks);
        return Ok(false);
    }
    let relieved = relieve_now(file, blocks);
    if !matches!(relieved, Ok(false)) {
        file.relief.ended(&relieved, file.pager.now());
    }
    relieved
}

/// As [`relieve`], on a thread that can be spared: a page that is written back is protected first in all clients, and waits for their
/// address spaces. Meanwhile the file's dirty blocks are passed over.
fn relieve_elsewhere(file: &Arc<File>, blocks: Vec<u64>) {
    if !file.relief.begin() {
        return; // one is at it
    }
    let own = Arc::clone(file);
    let work = move |engine: &Arc<Engine>| {
        let relieved = relieve_now(&own, blocks);
        own.relief.ended(&relieved, engine.now());
        engine.budget.progressed(&*engine.kernel);
    };
    // Urgent: all threads that there are may be waiting for the room.
    file.pager.pool.submit(&file.pager, Kind::Urgent, Box::new(work));
}

/// Writes dirty blocks back, and with them what else of the file is known to be dirty, because one sync serves all; `false` if
/// somebody else writes back already.
pub(super) fn relieve_now(file: &Arc<File>, mut blocks: Vec<u64>) -> Result<bool> {
    let most = (pressure_batch(&file.pager) / PAGE).max(1) as usize;
    let pages_in_block = file.block_size() / PAGE;
    let known = lock(&file.dirty).runs_in(&(0..u64::MAX / PAGE), most);
    let known =
        known.into_iter().flat_map(|run| run.start / pages_in_block..run.end.div_ceil(pages_in_block));
    blocks.extend(known.take(most));
    blocks.sort_unstable();
    blocks.dedup();
    write_back::write_back_blocks(file, &blocks)
}

/// Drops every clean, unpinned block of a run, whatever the policy thinks of it.
pub fn drop_clean(file: &Arc<File>, blocks: Range<u64>) -> u64 {
    let mut freed = 0;
    for run in file.used_runs(blocks) {
        let mut choice = Choice::new(Arc::clone(file));
        let mut start = run.start;
        while start < run.end {
            let part = start..run.end.min(file.region_of(start).end);
            start = part.end;
            if file.is_whole(part.start) {
                let all = part == file.region_of(part.start) && choice.claim_region(&part);
                give_back(&mut choice);
                if all {
                    choice.drop_regions.push(part);
                    continue;
                }
                let Some(mut apart) = split(file, part.clone()) else { continue };
                give_back(&mut apart);
                freed += drop_stage(&apart, &mut Vec::new());
            }
            let claim = |block| Some(Claimed { block, bits: file.word(block).claim_eviction()? });
            // One that was claimed just before its region became whole, or before the split of that failed, goes on.
            let (apart, whole) = part.filter_map(claim).partition(|claimed| !file.is_whole(claimed.block));
            choice.drop.extend::<Vec<Claimed>>(apart);
            choice.spare.extend(whole.into_iter().map(|claimed: Claimed| claimed.block));
        }
        give_back(&mut choice);
        freed += drop_stage(&choice, &mut Vec::new());
    }
    freed
}
