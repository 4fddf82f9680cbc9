//! Writing back: see docs/life-of-a-write-back.md.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::block::{self, Pin, State};
use super::budget::Lent;
use super::commit;
use super::file::{File, mapped_bit};
use super::fill::{check_version, guarded, is_transient, retried};
use super::request;
use super::sabotage::{self, Sabotage};
use super::vanished;
use super::{PAGE, lock};
use crate::error::{Error, Result};
use crate::runs::union;
use crate::stores::Write;

/// Buffers under way to the store at once, at most: the second and later ones are taken only where they are free.
const PARCELS: usize = 4;
/// Clean pages between two dirty ones that are asked about with them. To pin a block costs tens of nanoseconds, to ask the page tables
/// once more two microseconds.
const BRIDGED: u64 = 32;

/// Makes everything in `bytes` durable that was written before the call; changes of length too. A file with a journal commits
/// everything.
///
/// # Errors
/// [`Error::Latched`] if an earlier write-back failed and was not acknowledged; [`Error::Io`] or [`Error::TimedOut`] if
/// this one fails. All pages concerned are then still dirty.
pub fn flush(file: &Arc<File>, bytes: Range<u64>) -> Result<()> {
    if file.commits.is_some() {
        return commit::commit(file); // a part of a commit can't be durable alone
    }
    if let Some(source) = lock(&file.latch).clone() {
        return Err(Error::Latched { path: file.name.clone(), source });
    }
    flush_anew(file, bytes)
}

/// As [`flush`], for somebody else, who waits for as long as it gets on: a store that may hang is given up only when it has not done
/// anything for the file's deadline.
///
/// # Errors
/// As for `flush`.
pub(crate) fn flush_to_the_end(file: &Arc<File>, bytes: Range<u64>) -> Result<()> {
    loop {
        let before = file.progress();
        match flush(file, bytes.clone()) {
            Err(Error::TimedOut { .. }) if file.progress() != before => {} // it keeps the turn, and this waits for that
            flushed => return flushed,
        }
    }
}

/// As [`flush`], also after a failure that nobody has acknowledged: it stays to be acknowledged. Of files without a journal.
///
/// # Errors
/// As for `flush`, but for `Latched`.
pub(crate) fn flush_anew(file: &Arc<File>, bytes: Range<u64>) -> Result<()> {
    let blocks = file.blocks_of(bytes);
    where_it_may_hang(file, move |file| {
        let _turn = file.take_turn()?;
        // Not before the turn: what another write-back has taken is dirty again if it fails.
        let dirty = dirty_blocks(file, blocks.clone())?;
        write_back(file, &dirty)
    })
}

/// Writes all that is dirty back, also after a failure that nobody has acknowledged, and however long others keep it waiting.
///
/// # Errors
/// As for [`flush_anew`], but for `TimedOut` of a store that is local.
pub(crate) fn write_however_long(file: &Arc<File>) -> Result<()> {
    loop {
        match flush_anew(file, 0..file.len()) {
            Err(Error::TimedOut { .. }) if file.local => {}
            flushed => return flushed,
        }
    }
}

/// Writes blocks back because room is needed; `false` if somebody else has the file's turn. The caller may have claimed
/// blocks that the other waits for, so it must not wait for the other; it will see what the other makes evictable.
///
/// # Errors
/// As for [`flush`], but for `Latched`.
pub(crate) fn write_back_blocks(file: &Arc<File>, blocks: &[u64]) -> Result<bool> {
    let blocks = blocks.to_vec();
    let had_turn = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&had_turn);
    where_it_may_hang(file, move |file| {
        let Some(_turn) = file.turn.try_enter(&*file.pager.kernel) else { return Ok(()) };
        told.store(true, Ordering::Release);
        write_back(file, &blocks)
    })?;
    Ok(had_turn.load(Ordering::Acquire))
}

/// Takes the error of an earlier write-back that nobody has acknowledged yet. Pages that could not be written are still
/// dirty: the next flush writes them again.
pub fn acknowledge(file: &File) -> Option<Error> {
    lock(&file.latch).take().map(|error| (*error).clone())
}

/// Runs a write-back here if the store is local. If it is not, on a thread that can be spared: the caller gives up at its
/// deadline, while the write-back keeps the file's turn, so that a late write never lands on a newer one.
pub(super) fn where_it_may_hang(
    file: &Arc<File>,
    work: impl Fn(&Arc<File>) -> Result<()> + Send + 'static,
) -> Result<()> {
    if file.local {
        return work(file);
    }
    request::run_elsewhere(file, 0..file.len(), move |file| work(file))
}

/// No `tracing` here: it may run in a signal handler, and what a subscriber does there is not known.
///
/// The walk, in the file's turn: batches of dirty pages, each taken and re-protected in one step → the length settled →
/// pages copied out through the frames, written, synced → clean, but for what was written meanwhile.
fn write_back(file: &Arc<File>, blocks: &[u64]) -> Result<()> {
    if let Some(commits) = &file.commits {
        return latched(file, commit::spill(file, commits, blocks));
    }
    let most = ((file.pager.budget.limit() / 4) >> file.block_shift).max(1) as usize;
    let write = |file: &File, taken: &Taken| {
        if taken.pages.is_empty() { Ok(()) } else { write_and_sync(file, &taken.pages) }
    };
    let written = blocks.chunks(most).try_for_each(|batch| write_batch(file, batch, write)).and_then(|()| {
        let settled = lock(&file.lengths).are_settled();
        if settled { Ok(()) } else { write_and_sync(file, &[]) }
    });
    latched(file, written)
}

/// Keeps the first error until it is acknowledged.
fn latched(file: &File, outcome: Result<()>) -> Result<()> {
    outcome.inspect_err(|error| {
        lock(&file.latch).get_or_insert_with(|| Arc::new(error.clone()));
    })
}

/// Which blocks of a run have dirty pages: those the page tables tell of and those the dirty set knows. In this order:
/// eviction moves pages from the former to the latter.
pub(super) fn dirty_blocks(file: &File, blocks: Range<u64>) -> Result<Vec<u64>> {
    let pages_in_block = file.block_size() / PAGE;
    let bytes = file.bytes_of(&blocks);
    let mut found: Vec<u64> = Vec::new();
    for view in file.views() {
        let mut written = Vec::new();
        for run in union(file.used_runs(blocks.clone()).collect()) {
            let bytes = file.bytes_of(&run);
            file.frames
                .written(view, bytes.clone(), &mut written)
                .map_err(|e| Error::io("find dirty pages", file.name.clone(), bytes.start, 0, e))?;
        }
        // Page tables without an entry look written: only a block that this view shows counts.
        let shown = |block: &u64| file.word(*block).bits() & mapped_bit(view) != 0;
        found.extend(written.into_iter().flat_map(|bytes| file.blocks_of(bytes)).filter(shown));
    }
    let known = lock(&file.dirty).runs_in(&(bytes.start / PAGE..bytes.end / PAGE), usize::MAX);
    found.extend(
        known.into_iter().flat_map(|run| run.start / pages_in_block..run.end.div_ceil(pages_in_block)),
    );
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Dirty pages that count as clean from when they were taken on.
#[derive(Default)]
pub(super) struct Taken {
    /// All of them: sorted, those that touch joined.
    pub(super) pages: Vec<Range<u64>>,
    /// Those that the dirty set had, in the same way.
    known: Vec<Range<u64>>,
    /// Blocks of which it had any.
    blocks_known: u64,
}

impl Taken {
    /// Whether the dirty set had the page.
    pub(super) fn was_known(&self, page: u64) -> bool {
        if sabotage::is(Sabotage::PartOfDirty) {
            return false;
        }
        let after = self.known.partition_point(|run| run.end <= page);
        self.known.get(after).is_some_and(|run| run.contains(&page))
    }
}

/// Makes the dirty pages of some blocks durable by `write`. The blocks are pinned from before their pages are taken until that is
/// done: an evictor that found them clean meanwhile would drop what nobody else has yet.
pub(super) fn write_batch(
    file: &File,
    blocks: &[u64],
    write: impl FnOnce(&File, &Taken) -> Result<()>,
) -> Result<()> {
    let mut pinned = Vec::with_capacity(blocks.len());
    let mut outcome = Ok(());
    for &block in blocks {
        match file.pin_written(block) {
            Ok(true) => pinned.push(block),
            Ok(false) => {}
            Err(error) => outcome = Err(error),
        }
    }
    if sabotage::is(Sabotage::UnpinnedWriteBack) {
        pinned.drain(..).for_each(|block| file.unpin(block));
        pinned.extend(blocks);
    }
    let mut taken = Taken::default();
    let was_taken = take_dirty_pages(file, &pinned, &mut taken);
    let lost = vanished::leave_out(file, &mut taken.pages);
    let written = outcome.and(was_taken).and_then(|()| write(file, &taken)).and(lost);
    if written.is_err() && !sabotage::is(Sabotage::ForgetFailedWrite) {
        taken.pages.iter().for_each(|run| file.mark_dirty(run.clone()));
    }
    file.count_written(taken.blocks_known);
    if sabotage::is(Sabotage::CleanAfterWrite) {
        let _ = take_dirty_pages(file, &pinned, &mut Taken::default());
    }
    if sabotage::is(Sabotage::UnpinnedWriteBack) {
        return written;
    }
    file.unpin_all(pinned);
    written
}

/// Takes the dirty pages of pinned blocks, sorted and joined; they count as clean from here on. Blocks between them are pinned
/// for as long as that takes, so that one question answers for many; what is found dirty there stays dirty.
fn take_dirty_pages(file: &File, pinned: &[u64], taken: &mut Taken) -> Result<()> {
    let Taken { known, blocks_known, .. } = taken;
    file.frames.revoke(&mut || {
        let mut take = |&block: &u64| {
            let pages = file.take_dirty(block);
            *blocks_known += u64::from(!pages.is_empty());
            pages
        };
        *known = union(pinned.iter().flat_map(&mut take).collect());
        known.iter().map(|run| run.start * PAGE..run.end * PAGE).collect()
    });
    let mut pages = taken.known.clone();
    let bridges = pin_bridges(file, pinned);
    let asked = union(pinned.iter().map(|&block| block..block + 1).chain(bridges.iter().cloned()).collect());
    let mut written = Vec::new();
    // Also where it fails: what was found until then is clean in the page tables now.
    let outcome = take_written_pages(file, &asked, &mut written);
    for run in written {
        keep_or_take(file, &bridges, run, &mut pages);
    }
    file.unpin_all(bridges.into_iter().flatten());
    taken.pages = union(pages);
    outcome
}

/// Pins the blocks between blocks that are near to each other, all of a gap or none: a block without a pin could be filled,
/// written to and evicted while the page tables are asked about it. Runs of blocks, in order; none where page tables tell nothing.
fn pin_bridges(file: &File, pinned: &[u64]) -> Vec<Range<u64>> {
    let longest = if file.page_tables_tell() { BRIDGED / (file.block_size() / PAGE) } else { 0 };
    let mut bridges = Vec::new();
    for pair in pinned.windows(2) {
        let gap = pair[0] + 1..pair[1];
        if gap.is_empty() || gap.end - gap.start > longest {
            continue;
        }
        let held = |block: &u64| matches!(file.word(*block).pin_untouched(), Pin::Held(_));
        let count = gap.clone().take_while(held).count() as u64;
        if count == gap.end - gap.start {
            bridges.push(gap);
        } else {
            file.unpin_all(gap.start..gap.start + count);
        }
    }
    bridges
}

/// Takes what the page tables of every view tell of runs of blocks, which are pinned: runs of pages. Where it fails, what was
/// taken all the same.
fn take_written_pages(file: &File, asked: &[Range<u64>], written: &mut Vec<Range<u64>>) -> Result<()> {
    let mut outcome = Ok(());
    let mut found = Vec::new();
    for view in file.views() {
        let shown = |block: &u64| file.word(*block).bits() & mapped_bit(view) != 0;
        for run in asked {
            let mut rest = run.clone();
            while let Some(start) = rest.find(shown) {
                let end = rest.find(|block| !shown(block)).unwrap_or(run.end);
                let bytes = file.bytes_of(&(start..end));
                if let Err(error) = file.frames.take_written(view, bytes.clone(), &mut found) {
                    outcome = Err(Error::io("take dirty pages", file.name.clone(), bytes.start, 0, error));
                }
            }
        }
    }
    written.extend(found.into_iter().map(|bytes| bytes.start / PAGE..bytes.end / PAGE));
    outcome
}

/// Adds a run of pages that were found written to `taken`, without those of bridges, which nobody has asked for: these are marked
/// dirty.
fn keep_or_take(file: &File, bridges: &[Range<u64>], run: Range<u64>, taken: &mut Vec<Range<u64>>) {
    let pages_in_block = file.block_size() / PAGE;
    let mut at = run.start;
    for blocks in &bridges[bridges.partition_point(|blocks| blocks.end * pages_in_block <= run.start)..] {
        let pages = blocks.start * pages_in_block..blocks.end * pages_in_block;
        if pages.start >= run.end {
            break;
        }
        if at < pages.start {
            taken.push(at..pages.start);
        }
        if !sabotage::is(Sabotage::ForgetBridges) {
            file.mark_dirty(pages.start.max(run.start)..pages.end.min(run.end));
        }
        at = pages.end;
    }
    if at < run.end {
        taken.push(at..run.end);
    }
}

/// Copies pages out through their frames and writes them, many at once, as far as the file reaches.
fn write_pages(file: &File, pages: &[Range<u64>]) -> Result<()> {
    let end = file.len();
    let cut = |run: &Range<u64>| run.start * PAGE..(run.end * PAGE).min(end);
    let mut runs: VecDeque<_> = pages.iter().map(cut).filter(|run| !run.is_empty()).collect();
    let mut left: u64 = runs.iter().map(in_buffer).sum();
    while left > 0 {
        let mut parcels = Vec::new();
        while left > 0 && parcels.len() < PARCELS {
            let len = left.min(file.pager.buffers.max_run());
            let buffer = match parcels.is_empty() {
                true => Some(wait_for_buffer(file, &runs[0], len as usize)?),
                false => file.try_take_buffer(len as usize),
            };
            let Some(buffer) = buffer else { break };
            parcels.push(Parcel::pack(file, buffer, &mut runs)?);
            left -= len;
        }
        write_parcels(file, &parcels)?;
    }
    Ok(())
}

fn wait_for_buffer(file: &File, first: &Range<u64>, len: usize) -> Result<Lent> {
    let since = file.pager.now();
    let buffer = file.take_buffer(len, since + file.deadline);
    buffer.ok_or_else(|| file.timed_out(first.start..first.start + len as u64, file.pager.now() - since))
}

/// What a run takes of a buffer: whole pages, where the file's end cuts the last one too.
fn in_buffer(run: &Range<u64>) -> u64 {
    (run.end - run.start).next_multiple_of(PAGE)
}

/// Pages copied out of their frames, on their way to the store.
struct Parcel {
    buffer: Lent,
    /// Byte ranges of the file, one behind the other in the buffer.
    runs: Vec<Range<u64>>,
}

impl Parcel {
    /// Fills a buffer with the first of some runs, and takes those off the list.
    fn pack(file: &File, mut buffer: Lent, runs: &mut VecDeque<Range<u64>>) -> Result<Self> {
        let mut packed = Vec::new();
        let mut place = 0;
        while place < buffer.len() as u64
            && let Some(run) = runs.front_mut()
        {
            let part = run.start..run.end.min(run.start + buffer.len() as u64 - place);
            let target = &mut buffer[place as usize..][..(part.end - part.start) as usize];
            file.frames.load(part.start, target).map_err(|e| {
                Error::io("load a frame", file.name.clone(), part.start, part.end - part.start, e)
            })?;
            // Since a moment ago: the next time it is left out.
            let pages = part.start..part.end.next_multiple_of(PAGE);
            if let Some(hole) = vanished::holes(file, pages)?.into_iter().next() {
                return Err(vanished::lost(file, hole));
            }
            place += in_buffer(&part);
            run.start = part.end;
            if run.is_empty() {
                runs.pop_front();
            }
            packed.push(part);
        }
        Ok(Self { buffer, runs: packed })
    }

    fn writes(&self) -> impl Iterator<Item = Write<'_>> {
        let mut place = 0;
        self.runs.iter().map(move |run| {
            let buf = &self.buffer[place..][..(run.end - run.start) as usize];
            place += in_buffer(run) as usize;
            Write { offset: run.start, buf }
        })
    }
}

/// Writes parcels. What the store did in part, or could not do just now, or did not report, is written on its own.
fn write_parcels(file: &File, parcels: &[Parcel]) -> Result<()> {
    let writes: Vec<Write<'_>> = parcels.iter().flat_map(Parcel::writes).collect();
    let mut done = vec![0; writes.len()];
    let mut outcome = Ok(());
    let report = &mut |index: usize, result: io::Result<usize>| match (writes.get(index), result) {
        (Some(write), Ok(written)) => done[index] = written.min(write.buf.len()),
        (Some(write), Err(error)) if !is_transient(&error) && outcome.is_ok() => {
            outcome = Err(Error::io("write", file.name.clone(), write.offset, write.buf.len() as u64, error));
        }
        _ => {}
    };
    let _ = guarded(|| {
        file.store.write_many(&writes, report);
        Ok(())
    });
    outcome?;
    for (write, done) in writes.iter().zip(done) {
        write_all(file, write.offset + done as u64, &write.buf[done..])?;
        file.counted.written_back(write.buf.len() as u64);
        file.got_on();
    }
    Ok(())
}

fn write_all(file: &File, at: u64, bytes: &[u8]) -> Result<()> {
    let deadline = file.pager.now() + file.deadline;
    let mut done = 0;
    while done < bytes.len() {
        let offset = at + done as u64;
        let rest = &bytes[done..];
        let n = retried(file, "write", offset, rest.len() as u64, deadline, || {
            match file.store.write_at(offset, rest)? {
                0 => Err(std::io::ErrorKind::WriteZero.into()),
                n => Ok(n.min(rest.len())),
            }
        })?;
        done += n;
    }
    Ok(())
}

/// Settles the length, writes pages and syncs. After a sync that failed nothing is promised of what was written since the
/// last one, so all of it is done again, also when the failure was one that passes.
fn write_and_sync(file: &File, pages: &[Range<u64>]) -> Result<()> {
    let deadline = file.pager.now() + file.deadline;
    let mut outcome = Ok(());
    retried(file, "sync", 0, 0, deadline, || {
        // First: what is written past a cut by somebody else would extend the store again, and hide the cut.
        outcome = check_version(file, 0, deadline)
            .and_then(|()| settle_length(file))
            .and_then(|()| write_pages(file, pages));
        if outcome.is_err() {
            return Ok(());
        }
        let skips = file.skips_sync || sabotage::is(Sabotage::NoSync);
        let mut synced = if skips { Ok(()) } else { file.store.sync() };
        if synced.is_err() && sabotage::is(Sabotage::SyncAgainOnly) {
            synced = file.store.sync();
        }
        let mut lengths = lock(&file.lengths);
        file.got_on();
        match (&synced, lengths.unsynced) {
            (Ok(()), _) => lengths.unsynced = None,
            (Err(_), Some(backed)) => lengths.backed = lengths.backed.min(backed),
            (Err(_), None) => {}
        }
        synced
    })?;
    outcome
}

/// Gives the store the file's length. What lies between the prefix that is still the file's and its end is cut off first,
/// so that old bytes don't come back as it grows again.
fn settle_length(file: &File) -> Result<()> {
    let before = *lock(&file.lengths);
    let set_len = |len: u64| -> Result<()> {
        let deadline = file.pager.now() + file.deadline;
        {
            let mut lengths = lock(&file.lengths);
            lengths.unsynced =
                Some(lengths.unsynced.map_or(before.backed, |backed| backed.min(before.backed)));
        }
        retried(file, "set length", len, 0, deadline, || file.store.set_len(len))?;
        lock(&file.lengths).stored = len;
        Ok(())
    };
    if before.backed < before.stored {
        set_len(before.backed)?;
    }
    if lock(&file.lengths).stored != before.mapped {
        set_len(before.mapped)?;
    }
    let mut lengths = lock(&file.lengths);
    lengths.backed = lengths.stored;
    Ok(())
}

/// Whether a page of the block that holds `offset` is dirty, for tests and reports.
///
/// # Errors
/// [`Error::Io`] if the page tables can't be read.
pub fn is_dirty(file: &File, offset: u64) -> Result<bool> {
    let block = offset >> file.block_shift;
    let resident = block::state(file.word(block).bits()) == State::Resident;
    Ok(resident && file.writable && !dirty_blocks(file, block..block + 1)?.is_empty())
}
