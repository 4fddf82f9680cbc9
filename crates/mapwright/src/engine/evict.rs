//! Making room: see docs/life-of-a-write-back.md for what becomes of dirty blocks.
//!
//! A batch goes in two stages, as the policy says: blocks are *unmapped* first and stay for a while, so that a touch shows
//! that they are in use; later they are *dropped*. A block with dirty pages is never dropped: it is written back first, and
//! only when there is not enough that is clean.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::block::{self, DIRTY, MAPPED, MAPPED_CHECKED, QUEUED, SHOWN, State, TOUCHED};
use super::file::{File, mapped_bit};
use super::policy::{Key, Seen, Victim};
use super::sabotage::{self, Sabotage};
use super::write_back;
use super::{Engine, PAGE, lock};
use crate::error::{Error, Result};

/// Blocks handled together at most: enough to pay for the calls, few enough not to keep faults waiting.
const MAX_BATCH: usize = 256;
/// Dirty bytes written back under one sync when nothing clean is left.
const PRESSURE_BATCH: u64 = 8 << 20;

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
}

/// What to do where nothing clean is left to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// Write it back. The caller holds no buffer: a write-back needs one, and would wait for its own caller.
    WriteBack,
    /// Leave it.
    Keep,
}

/// Makes room for at least `bytes`, if anything can be evicted; whether there was any progress.
///
/// # Errors
/// The failure of a write-back, if nothing clean was left to drop.
pub(crate) fn make_room(engine: &Engine, bytes: u64, what: Dirty) -> Result<bool> {
    let batch = (engine.budget.limit() / 32).min(MAX_BATCH as u64 * PAGE).max(bytes);
    let wanted = (batch / PAGE).clamp(1, MAX_BATCH as u64) as usize;
    let mut dirty = Vec::new();
    let mut progress = false;
    let mut freed = 0;
    for mut choice in choose(engine, wanted) {
        progress |= !choice.unmap.is_empty();
        unmap_stage(&mut choice);
        freed += drop_stage(&choice, &mut dirty);
    }
    if freed > 0 || progress && dirty.is_empty() {
        return Ok(true);
    }
    if what == Dirty::Keep {
        return Ok(false);
    }
    let mut failure = Ok(());
    for (file, blocks) in dirty {
        match relieve(&file, blocks) {
            Ok(true) => progress = true,
            // Somebody else is at it. If that went wrong before, it is why there is no room.
            Ok(false) => failure = lock(&file.latch).as_ref().map_or(failure, |error| Err((**error).clone())),
            Err(error) => failure = Err(error),
        }
    }
    if progress { Ok(true) } else { failure.map(|()| false) }
}

/// Evicts in the background until a reasonable part of the budget is free.
pub(crate) fn run_evictor(engine: &Arc<Engine>) {
    let enough = engine.budget.limit() / 32;
    while engine.budget.free() < enough && !engine.pool.is_closing() {
        if !make_room(engine, PAGE, Dirty::WriteBack).is_ok_and(|progress| progress) {
            break;
        }
    }
    engine.evictor_ended();
}

/// Asks the policy for victims and claims them, sorted by file and place.
fn choose(engine: &Engine, wanted: usize) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    let mut policy = lock(&engine.policy);
    let mut files = KnownFiles { engine, known: Vec::new() };
    let mut bytes = 0;
    for _ in 0..4 * wanted {
        let Some(victim) = policy.next_victim(&mut |key| look(&mut files, key)) else { break };
        let key = match victim {
            Victim::Unmap(key) | Victim::Evict(key) => key,
        };
        let Some(file) = files.get(key.slot()) else { continue };
        let word = file.word(key.block());
        if let Victim::Evict(_) = victim {
            word.clear(QUEUED);
        }
        let Some(bits) = word.claim_eviction() else {
            if let Victim::Evict(_) = victim {
                word.set(QUEUED);
                policy.requeue(key);
            }
            continue;
        };
        let claimed = Claimed { block: key.block(), bits };
        let index = choices.iter().position(|choice| choice.file.slot == file.slot).unwrap_or_else(|| {
            choices.push(Choice { file: Arc::clone(&file), unmap: Vec::new(), drop: Vec::new() });
            choices.len() - 1
        });
        match victim {
            Victim::Unmap(_) => choices[index].unmap.push(claimed),
            Victim::Evict(_) => {
                choices[index].drop.push(claimed);
                bytes += file.block_size();
            }
        }
        if bytes >= wanted as u64 * PAGE {
            break;
        }
    }
    drop(policy);
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

/// What the policy shall know of a block. Runs under the policy's lock.
fn look(files: &mut KnownFiles<'_>, key: Key) -> Seen {
    let Some(file) = files.get(key.slot()) else { return Seen::Gone };
    let word = file.word(key.block());
    let bits = word.bits();
    match block::state(bits) {
        State::Absent => {
            word.clear(QUEUED);
            Seen::Gone
        }
        State::Filling | State::Evicting => Seen::Busy,
        State::Resident if block::pins(bits) > 0 => Seen::Busy,
        State::Resident if bits & TOUCHED != 0 => {
            word.clear(TOUCHED);
            Seen::Touched
        }
        State::Resident if bits & (MAPPED | MAPPED_CHECKED) != 0 => Seen::Idle,
        State::Resident => Seen::IdleUnmapped,
    }
}

/// Unmaps claimed blocks and lets them go on as resident. Where a victim's region was not unmapped for a while, all of it is,
/// but for what is pinned or in transition: unmapping costs a system call and an interrupt of every other processor a range,
/// so a region at a time is far cheaper than a page at a time, and what is used comes back by a soft fault as any block that
/// is looked at does.
fn unmap_stage(choice: &mut Choice) {
    let file = Arc::clone(&choice.file);
    let mut claimed = std::mem::take(&mut choice.unmap);
    let mut region = None;
    for victim in 0..claimed.len() {
        let around = file.region_of(claimed[victim].block);
        if region.replace(around.clone()) != Some(around.clone()) && file.unmap_is_due(&around) {
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
    if choice.drop.is_empty() {
        return 0;
    }
    // Only a written page makes a difference: a read-only file's blocks leave every view as they are released.
    let unmapped = if file.writable { unmap(file, &choice.drop) } else { Ok(()) };
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
        file.dropped(block);
    }
    let freed = clean.len() as u64 * file.block_charge();
    if freed > 0 {
        file.pager.counters.evictions.add(clean.len() as u64);
        file.pager.dropped.fetch_add(clean.len() as u32, Ordering::Relaxed);
        file.pager.budget.release(&*file.pager.kernel, freed);
    }
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

fn requeue(file: &File, blocks: &[u64]) {
    let mut policy = lock(&file.pager.policy);
    for &block in blocks {
        if file.word(block).set(QUEUED) & QUEUED == 0 {
            policy.requeue(Key::new(file.slot, block));
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
    if !file.writable || sabotage::is(Sabotage::BlindEviction) {
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

/// Writes dirty blocks back so that they can be dropped, and with them what else of the file is known to be dirty, because
/// one sync serves all; `false` if somebody else writes back already.
fn relieve(file: &Arc<File>, mut blocks: Vec<u64>) -> Result<bool> {
    let most = (PRESSURE_BATCH.min(file.pager.budget.limit() / 8) / PAGE).max(1) as usize;
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
        let claimed = run
            .filter_map(|block| Some(Claimed { block, bits: file.word(block).claim_eviction()? }))
            .collect();
        let choice = Choice { file: Arc::clone(file), unmap: Vec::new(), drop: claimed };
        freed += drop_stage(&choice, &mut Vec::new());
    }
    freed
}
