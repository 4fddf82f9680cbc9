//! Filling: from claimed blocks to resident ones.
//!
//! The caller has claimed the blocks (Absent → Filling); here each of them becomes Resident or Absent again, whatever
//! happens, and every waiter is woken.

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::block::{MAPPED, SHOWN, State, TRIGGER};
use super::budget::Lent;
use super::evict;
use super::file::{CHUNK, File};
use super::kernel::View;
use super::sabotage::{self, Sabotage};
use super::{Engine, PAGE, lock};
use crate::error::{Change, Error, Result};
use crate::stores::Read;

/// Reads in flight at once from one call.
const MAX_BATCH: usize = 256;
const FIRST_BACKOFF: Duration = Duration::from_micros(200);
const MAX_BACKOFF: Duration = Duration::from_millis(100);

/// How long to wait for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until this time.
    Until(Duration),
    /// Not at all, nor for a write-back: read-ahead that finds no room is not worth waiting for, and a batch that holds
    /// buffers must not.
    Never,
}

/// What a fill is for.
pub(crate) struct Purpose<'a> {
    /// How long to wait for room.
    pub room: Patience,
    /// Until when transient errors of the store are tried again.
    pub deadline: Duration,
    /// Called for each filled block, which then holds a pin for the caller. Without it blocks are left unpinned.
    pub pin: Option<&'a mut dyn FnMut(u64)>,
    /// Nobody asked for the blocks yet. One of them may be left unmapped, to trigger the next read-ahead.
    pub read_ahead: Option<Option<u64>>,
}

/// A run of claimed blocks with room in the budget and a buffer to read into.
struct Piece {
    blocks: Range<u64>,
    buffer: Lent,
}

/// Fills runs of claimed blocks. The walk: room in the budget → a buffer → the store's bytes, whole and of the right
/// version → the frame → shown in the plain view → waiters woken.
///
/// # Errors
/// The first failure. Blocks that could not be filled are absent again; the others are resident.
pub(crate) fn fill(file: &Arc<File>, runs: &[Range<u64>], mut purpose: Purpose<'_>) -> Result<()> {
    let engine = &***file.pager;
    let mut outcome = Ok(());
    let mut waiting = cut(file, runs, purpose.read_ahead.flatten()).into_iter().peekable();
    while waiting.peek().is_some() {
        let mut batch = Vec::new();
        while let Some(blocks) = waiting.peek().cloned() {
            match prepare(file, blocks.clone(), &purpose, batch.is_empty()) {
                Ok(Some(buffer)) => batch.push(Piece { blocks, buffer }),
                Ok(None) => break, // no more room just now: read what there is first
                Err(error) => {
                    give_up(file, &blocks, false);
                    outcome = outcome.and(Err(error));
                }
            }
            waiting.next();
            if batch.len() == MAX_BATCH {
                break;
            }
        }
        let blocks = batch.iter().map(|piece| piece.blocks.end - piece.blocks.start).sum();
        engine.counters.fills_started(blocks);
        let read = read(file, batch, &mut purpose);
        engine.counters.fills_ended(blocks);
        outcome = outcome.and(read);
    }
    outcome
}

/// Makes claimed blocks resident with given contents instead of the store's, dirty; what `bytes` does not reach is zero.
///
/// # Errors
/// As for [`fill`]; all blocks are absent again then.
pub(crate) fn install(file: &Arc<File>, blocks: Range<u64>, bytes: &[u8]) -> Result<()> {
    // This copy may fault on `bytes`, which may be a slice of another mapping: it is made while no buffer is held.
    let mut contents = vec![0; ((blocks.end - blocks.start) << file.block_shift) as usize];
    contents[..bytes.len()].copy_from_slice(bytes);
    let patience = Patience::Until(file.pager.now() + file.deadline);
    let charge = (blocks.end - blocks.start) * file.block_charge();
    let room = charge_tables(file, &blocks, patience).and_then(|()| reserve(file, charge, patience));
    if let Err(error) = room {
        give_up(file, &blocks, false);
        return Err(error);
    }
    let at = blocks.start << file.block_shift;
    // Shown at once: a page that raised SIGBUS does so until it is mapped.
    let shown = match show(file, &blocks, &mut contents, None) {
        Ok(shown) => shown,
        Err(error) => {
            let _ = file.frames.release(&[file.bytes_of(&blocks)]);
            give_up(file, &blocks, true);
            return Err(Error::io("store a frame", file.name.clone(), at, contents.len() as u64, error));
        }
    };
    file.mark_dirty(at / PAGE..(at + bytes.len() as u64).div_ceil(PAGE));
    for block in blocks {
        file.filled(block, 0, if shown { SHOWN } else { 0 }, false);
    }
    Ok(())
}

/// Cuts runs into pieces that one buffer holds: whole regions where there are any, but for one that has the trigger inside,
/// because a region is shown as one.
fn cut(file: &File, runs: &[Range<u64>], trigger: Option<u64>) -> Vec<Range<u64>> {
    let step = (file.pager.buffers.max_run() >> file.block_shift).max(1);
    let mut pieces = Vec::new();
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let part = start..run.end.min(file.region_of(start).end);
            let split = trigger.is_some_and(|trigger| trigger != part.start && part.contains(&trigger));
            let whole = file.may_be_whole(&part) && !split;
            let piece = start..if whole { part.end } else { part.end.min(start + step) };
            start = piece.end;
            pieces.push(piece);
        }
    }
    pieces
}

/// Room and a buffer for a piece; `None` if it would have to wait and need not, because others can go first.
fn prepare(file: &Arc<File>, blocks: Range<u64>, purpose: &Purpose<'_>, must: bool) -> Result<Option<Lent>> {
    let engine = &***file.pager;
    let patience = if must { purpose.room } else { Patience::Never };
    let count = blocks.end - blocks.start;
    let bytes = count * file.block_charge();
    let room = charge_tables(file, &blocks, patience).and_then(|()| reserve(file, bytes, patience));
    if let Err(error) = room {
        return if must { Err(error) } else { Ok(None) };
    }
    let len = (count << file.block_shift) as usize;
    let buffer = match must {
        true => file.take_buffer(len, purpose.deadline),
        false => file.try_take_buffer(len),
    };
    if buffer.is_none() {
        engine.budget.release(&*engine.kernel, bytes);
    }
    if must && buffer.is_none() {
        // The deadline was set when the operation began.
        let waited = (engine.now() + file.deadline).saturating_sub(purpose.deadline);
        return Err(file.timed_out(file.bytes_of(&blocks), waited));
    }
    Ok(buffer)
}

/// Charges the parts of the block table that come into use with a run of blocks.
fn charge_tables(file: &File, blocks: &Range<u64>, patience: Patience) -> Result<()> {
    for chunk in blocks.start / CHUNK..=(blocks.end - 1) / CHUNK {
        if file.is_chunk_used(chunk) {
            continue;
        }
        // Charged before it is marked: what others see as used must never be taken back, they may fill blocks there.
        reserve(file, PAGE, patience)?;
        if file.use_chunk(chunk) {
            file.chunk_charged();
        } else {
            file.pager.budget.release(&*file.pager.kernel, PAGE);
        }
    }
    Ok(())
}

/// Takes room in the budget, evicting what is needed.
///
/// # Errors
/// [`Error::BudgetExhausted`] when nothing can be evicted for as long as `patience` lasts; the failure of a write-back of this file
/// if that is why. That another can't be written is for those to hear who have it.
pub(crate) fn reserve(file: &File, bytes: u64, patience: Patience) -> Result<()> {
    let engine = &***file.pager;
    if engine.budget.try_reserve(bytes) {
        engine.evict_ahead();
        return Ok(());
    }
    let dirty = if patience == Patience::Never { evict::Dirty::Keep } else { evict::Dirty::WriteBack };
    let mut waiter = engine.budget.waiter();
    let mut backoff = FIRST_BACKOFF;
    let mut write_back_failed = None;
    loop {
        let made = evict::make_room(engine, bytes, dirty);
        if engine.budget.try_reserve(bytes) {
            return Ok(());
        }
        if made.progress {
            continue;
        }
        let failed = !made.failures.is_empty();
        let own = made.failures.into_iter().find(|(slot, _)| *slot == file.slot);
        write_back_failed = own.map(|(_, error)| error).or(write_back_failed);
        let now = engine.now();
        let left = match patience {
            Patience::Until(deadline) if now < deadline && !file.cutting.load(Ordering::Acquire) => {
                deadline - now
            }
            _ => {
                let why = write_back_failed.or_else(|| file.room_failure());
                return Err(why.unwrap_or_else(|| exhausted(file, bytes)));
            }
        };
        if !failed {
            waiter.wait(&*engine.kernel, left.min(MAX_BACKOFF));
        } else {
            // A write-back that fails gives pins back, which looks like progress: without a pause it would run in circles.
            let nobody = AtomicU32::new(0);
            engine.kernel.wait(&nobody, 0, Some(left.min(backoff)));
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
}

fn exhausted(file: &File, needed: u64) -> Error {
    exhausted_by(
        file,
        needed,
        "drop Pinned values that are no longer needed, or raise Pager::builder().budget()",
    )
}

/// An [`Error::BudgetExhausted`] of a file.
pub(super) fn exhausted_by(file: &File, needed: u64, remedy: &'static str) -> Error {
    Error::BudgetExhausted { path: file.name.clone(), needed, budget: file.pager.budget.total(), remedy }
}

/// Gives up blocks that were claimed and for which nothing was done yet.
pub(crate) fn abandon(file: &File, runs: &[Range<u64>]) {
    runs.iter().for_each(|run| give_up(file, run, false));
}

/// Makes claimed blocks absent again.
fn give_up(file: &File, blocks: &Range<u64>, reserved: bool) {
    let engine = &file.pager;
    for block in blocks.clone() {
        file.settle(block, State::Absent, 0, 0, MAPPED | SHOWN);
    }
    file.counted.not_filled(blocks.end - blocks.start);
    if reserved {
        engine.budget.release(&*engine.kernel, (blocks.end - blocks.start) * file.block_charge());
    }
}

/// Reads pieces and makes each resident as its bytes arrive.
fn read(file: &Arc<File>, mut batch: Vec<Piece>, purpose: &mut Purpose<'_>) -> Result<()> {
    let backed = lock(&file.lengths).backed;
    let deadline = purpose.deadline;
    // Before anything is read: a checkpoint may end meanwhile.
    let overlays: Vec<_> =
        batch.iter().filter_map(|piece| file.overlay(file.bytes_of(&piece.blocks))).collect();
    if let [piece] = &mut batch[..] {
        let got = read_exactly(
            file,
            piece.blocks.start << file.block_shift,
            &mut piece.buffer,
            0,
            backed,
            deadline,
        );
        let offset = piece.blocks.start << file.block_shift;
        let got = got.and_then(|()| file.lay_over(overlays.first(), offset, &mut piece.buffer));
        let finished = finish(file, piece.blocks.clone(), &mut piece.buffer, got, purpose);
        piece.buffer.set_hollow(file.has_taken_pages(piece.blocks.start));
        return finished;
    }
    let mut outcome = Ok(());
    let places: Vec<Range<u64>> = batch.iter().map(|piece| piece.blocks.clone()).collect();
    let mut ended = vec![false; batch.len()];
    let mut asked = Vec::with_capacity(batch.len());
    let mut reads = Vec::with_capacity(batch.len());
    for (index, piece) in batch.iter_mut().enumerate() {
        let offset = piece.blocks.start << file.block_shift;
        if valid_bytes(offset, piece.buffer.len(), backed) > 0 {
            asked.push(index);
            reads.push(Read { offset, buf: &mut piece.buffer });
        } else {
            // Beyond what the store backs there are zeros, and nothing to read.
            piece.buffer.fill(0);
            ended[index] = true;
            outcome = outcome.and(finish(file, places[index].clone(), &mut piece.buffer, Ok(()), purpose));
        }
    }
    let _ = guarded(|| {
        file.store.read_many(&mut reads, &mut |read, buffer, got| {
            let index = asked[read];
            if std::mem::replace(&mut ended[index], true) {
                return; // a store that reports twice
            }
            let offset = places[index].start << file.block_shift;
            let len = (places[index].end - places[index].start) << file.block_shift;
            let got = match got {
                Ok(n) => read_exactly(file, offset, buffer, n, backed, deadline),
                Err(error) if is_transient(&error) => read_exactly(file, offset, buffer, 0, backed, deadline),
                Err(error) => Err(Error::io("read", file.name.clone(), offset, len, error)),
            };
            let got = got.and_then(|()| file.lay_over(overlays.get(index), offset, buffer));
            let finished = finish(file, places[index].clone(), buffer, got, purpose);
            if outcome.is_ok() {
                outcome = finished;
            }
        });
        Ok(())
    });
    drop(reads);
    for piece in &mut batch {
        piece.buffer.set_hollow(file.has_taken_pages(piece.blocks.start));
    }
    for (index, _) in ended.iter().enumerate().filter(|(_, ended)| !**ended) {
        let bytes = file.bytes_of(&places[index]);
        let error = io::Error::other("the store's read_many did not report this read");
        let error = Error::io("read", file.name.clone(), bytes.start, bytes.end - bytes.start, error);
        outcome = outcome.and(finish(file, places[index].clone(), &mut [], Err(error), purpose));
    }
    outcome
}

/// How many bytes from `offset` on the store backs, at most `len`.
fn valid_bytes(offset: u64, len: usize, backed: u64) -> usize {
    backed.saturating_sub(offset).min(len as u64) as usize
}

/// Reads until the buffer holds all that the store backs, the first `got` bytes being there, and zeros the rest.
fn read_exactly(
    file: &File,
    offset: u64,
    buffer: &mut [u8],
    mut got: usize,
    backed: u64,
    deadline: Duration,
) -> Result<()> {
    let valid = valid_bytes(offset, buffer.len(), backed);
    let whole = valid.next_multiple_of(PAGE as usize);
    while got < valid {
        let at = offset + got as u64;
        let n = retried(file, "read", at, (valid - got) as u64, deadline, || {
            file.store.read_at(at, &mut buffer[got..whole])
        })?;
        if n == 0 && file.commits.is_some() {
            // A checkpoint will make it longer. Whether somebody else has cut it, `check_version` looks.
            buffer[got..].fill(0);
            return Ok(());
        }
        if n == 0 {
            return Err(ended_early(file, at, (valid - got) as u64, deadline));
        }
        got += n.min(whole - got);
    }
    buffer[valid..].fill(0);
    Ok(())
}

/// Why a store ended before the length it had when it was opened.
fn ended_early(file: &File, offset: u64, len: u64, deadline: Duration) -> Error {
    match check_version(file, offset, deadline) {
        Err(change) => change,
        Ok(()) => Error::io("read", file.name.clone(), offset, len, io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Whether the store is still what was opened.
pub(crate) fn check_version(file: &File, offset: u64, deadline: Duration) -> Result<()> {
    // Before the look at the store: a write-back that cuts and extends it may be under way.
    let (expected, changes) = file.least_stored();
    let held = sabotage::is(Sabotage::LockOverCall).then(|| lock(&file.lengths));
    let now = retried(file, "check", offset, 0, deadline, || file.store.version())?;
    drop(held);
    let opened = file.version();
    let changed = |change| Err(Error::Changed { path: file.name.clone(), offset, change });
    if now.identity != opened.identity {
        return changed(Change::Replaced);
    }
    // A writable file changes by our own write-backs, and others are locked out: only its length is held against it.
    if now.len < expected && file.least_stored().1 != changes {
        return check_version(file, offset, deadline); // a checkpoint that cuts it has begun since
    }
    if now.len < expected {
        return changed(Change::Truncated { was: expected, now: now.len });
    }
    if !file.writable && now != opened {
        return changed(Change::Modified);
    }
    Ok(())
}

/// Makes a piece resident once its bytes are read, or absent if they could not be.
fn finish(
    file: &Arc<File>,
    blocks: Range<u64>,
    bytes: &mut [u8],
    got: Result<()>,
    purpose: &mut Purpose<'_>,
) -> Result<()> {
    let at = blocks.start << file.block_shift;
    let len = (blocks.end - blocks.start) << file.block_shift;
    // A page that raised SIGBUS does so until it is mapped: after that all are.
    let trigger = purpose.read_ahead.flatten().filter(|block| blocks.contains(block) && !file.was_poisoned());
    let stored = got.and_then(|()| check_version(file, at, purpose.deadline)).and_then(|()| {
        show(file, &blocks, bytes, trigger)
            .map_err(|e| Error::io("store a frame", file.name.clone(), at, len, e))
    });
    let shown = match stored {
        Ok(shown) => shown,
        Err(error) => {
            // What was stored in part must not stay: an absent block has no frame.
            let _ = file.frames.release(&[file.bytes_of(&blocks)]);
            give_up(file, &blocks, true);
            return Err(error);
        }
    };
    let count = blocks.end - blocks.start;
    file.counted.filled(count, count << file.block_shift, purpose.read_ahead.is_some());
    let whole = file.is_whole(blocks.start);
    for block in blocks {
        let set = match trigger {
            Some(trigger) if trigger == block || whole => TRIGGER,
            _ if shown => SHOWN,
            _ => 0,
        };
        file.filled(block, u32::from(purpose.pin.is_some()), set, purpose.read_ahead.is_some());
        if let Some(pin) = &mut purpose.pin {
            pin(block);
        }
    }
    Ok(())
}

/// Makes bytes the contents of blocks and shows them in the plain view, all but the trigger; whether they are shown. The bit is
/// set before the page tables change: invariant (3) of `block`.
fn show(file: &File, blocks: &Range<u64>, bytes: &mut [u8], trigger: Option<u64>) -> io::Result<bool> {
    if let Some(regions) = file.frames.regions()
        && file.may_be_whole(blocks)
        && trigger.is_none_or(|trigger| trigger == blocks.start)
    {
        // Lent, each process has what it touches shown in its own view.
        let shown = trigger.is_none() && !file.frames.is_lent();
        return file.fill_region(regions, blocks, bytes, shown).map(|()| shown);
    }
    let bytes = &*bytes;
    let of = |run: &Range<u64>| {
        let place = |block: u64| ((block - blocks.start) << file.block_shift) as usize;
        &bytes[place(run.start)..place(run.end)]
    };
    let around = match trigger {
        Some(trigger) => [blocks.start..trigger, trigger + 1..blocks.end],
        None => [blocks.clone(), blocks.end..blocks.end],
    };
    let around = || around.iter().filter(|run| !run.is_empty()).cloned();
    let mapped = |run: Range<u64>| run.for_each(|block| _ = file.word(block).set(MAPPED));
    if file.frames.is_lent() {
        // Each process has what it touches shown in its own view.
        return file.frames.store(file.bytes_of(blocks).start, bytes).map(|()| false);
    }
    if file.writable {
        // In two steps: a page that is shown may be written at once, and then the run can't fail any more. What could not be
        // mapped is left to the touch that maps it again.
        file.frames.store(file.bytes_of(blocks).start, bytes)?;
        around().for_each(mapped);
        return Ok(around().all(|run| file.frames.map(View::Plain, file.bytes_of(&run)).is_ok()));
    }
    if let Some(trigger) = trigger {
        let run = trigger..trigger + 1;
        file.frames.store(file.bytes_of(&run).start, of(&run))?;
    }
    for run in around() {
        mapped(run.clone());
        file.frames.fill(file.bytes_of(&run).start, of(&run))?;
    }
    Ok(true)
}

/// Runs a store call again while its error is transient, until a deadline.
///
/// # Errors
/// The last error, with the range.
pub(crate) fn retried<T>(
    file: &File,
    operation: &'static str,
    offset: u64,
    len: u64,
    deadline: Duration,
    call: impl FnMut() -> io::Result<T>,
) -> Result<T> {
    patiently(&file.pager, deadline, call)
        .map_err(|e| Error::io(operation, file.name.clone(), offset, len, e))
}

/// As [`retried`], for a store that is not a file yet.
///
/// # Errors
/// The last error.
pub(crate) fn patiently<T>(
    engine: &Engine,
    deadline: Duration,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let error = match guarded(&mut call) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let now = engine.now();
        if !is_transient(&error) || now >= deadline {
            return Err(error);
        }
        engine.counters.retries.add(1);
        if error.kind() != io::ErrorKind::Interrupted {
            let nobody = AtomicU32::new(0);
            engine.kernel.wait(&nobody, 0, Some(backoff.min(deadline - now)));
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
}

pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Turns a panic of a store into an error: blocks must settle whatever a store does.
pub(crate) fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(io::Error::other("the store panicked")))
}
