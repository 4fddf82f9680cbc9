//! Faults of slices: see docs/life-of-a-fault.md.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::block::{Pin, SHOWN, TRIGGER};
use super::file::File;
use super::fill::{self, Patience, Purpose};
use super::kernel::{Fault, FaultMode, FaultOutcome, View};
use super::pool::Kind;
use super::read_ahead::Miss;
use super::request;
use super::stats::Times;
use super::{Engine, PAGE, lock, vanished};
use crate::error::{Error, Result};

/// Pages shown from a touched one on in another process's view, where they are there: as the kernel does around a fault
/// (`fault_around_bytes`), because a fault that another process serves costs more than showing so many pages.
pub(crate) const SHOWN_AHEAD: u64 = 16;
/// The same at most for a process that goes through its view in order. Showing so many takes about as long as two faults.
pub(crate) const SHOWN_AHEAD_IN_ORDER: u64 = 256;
/// Groups of blocks that are claimed when they are planned, not when they are read.
const CLAIMED_EARLY: usize = 4;
/// Between two tries to wait for faults, when the kernel is short of something.
const PAUSE: Duration = Duration::from_millis(100);

/// A touch that waits to be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    /// Where.
    pub view: View,
    /// Its place in the file, in bytes.
    pub offset: u64,
    /// Whether it was to write, in a view of another process: the page is called dirty before it can.
    pub writes: bool,
    /// How many pages are shown from there on, in a view of another process, as far as they are resident.
    pub ahead: u64,
}

/// Serves the faults of `FaultMode::Thread` until the pager closes. The thread that waits for faults is the leader; before
/// it serves one that needs I/O it hands the lead to another thread, so that no fault waits for another's I/O.
pub(crate) fn lead(engine: &Arc<Engine>) {
    let mut faults = Vec::new();
    while !engine.pool.is_closing() {
        if let Err(error) = engine.kernel.wait_faults(&mut faults) {
            let text = format!("mapwright: the kernel refused to report faults, trying again: {error}\n");
            mapwright_sys::signals::print_raw(&text);
            engine.kernel.wait(&AtomicU32::new(0), 0, Some(PAUSE));
        }
        let slow: Vec<Fault> = faults.drain(..).filter(|fault| !serve_resident(engine, *fault)).collect();
        let Some((last, others)) = slow.split_last() else { continue };
        engine.pool.submit(engine, Kind::Urgent, Box::new(lead));
        for &fault in others {
            engine.pool.submit(engine, Kind::Urgent, Box::new(move |engine| serve_in_pager(engine, fault)));
        }
        return serve_in_pager(engine, *last);
    }
}

/// Serves a fault that needs no I/O and no waiting; whether it did.
fn serve_resident(engine: &Engine, fault: Fault) -> bool {
    let since = engine.now();
    let Some((file, touch)) = touched(engine, fault) else { return true };
    serve_resident_at(&file, touch, since, None)
}

/// What a fault in a view of this process touched.
fn touched(engine: &Engine, fault: Fault) -> Option<(Arc<File>, Touch)> {
    let (file, view, offset) = engine.locate(fault.address)?;
    Some((file, Touch { view, offset, writes: false, ahead: 1 }))
}

/// As [`serve_resident`], where the address is known, of a fault that was heard of at `since`. It is counted in `also`, too.
pub(crate) fn serve_resident_at(
    file: &Arc<File>,
    touch: Touch,
    since: Duration,
    also: Option<&Times>,
) -> bool {
    let block = touch.offset >> file.block_shift;
    let Pin::Held(bits) = file.word(block).pin() else { return false };
    if bits & TRIGGER != 0 {
        file.unpin(block); // the pager thread plans the next read-ahead
        return false;
    }
    let shown = file.charge_copy(touch.view, block).and_then(|()| show(file, touch));
    file.unpin(block);
    served(file, since, also);
    shown.is_ok()
}

/// Serves a fault in a view of another process, whose affair it is what becomes of the error. It was heard of at `since`, and may have waited for
/// a thread.
pub(crate) fn serve_remote(
    file: &Arc<File>,
    touch: Touch,
    since: Duration,
    also: Option<&Times>,
) -> Result<()> {
    let outcome = serve(file, touch, file.pager.now());
    served(file, since, also);
    outcome
}

/// Counts a fault, with the file's and in `also`.
fn served(file: &File, since: Duration, also: Option<&Times>) {
    let took = file.pager.now() - since;
    file.counted.fault_served(took);
    also.into_iter().for_each(|times| times.add(took));
}

/// Shows a touched block that is pinned, in another process's view with those that follow and are resident too.
fn show(file: &File, touch: Touch) -> Result<()> {
    let Touch { view, offset, writes, ahead } = touch;
    let block = offset >> file.block_shift;
    if writes {
        let page = offset / PAGE;
        // Who writes in order will write the rest of the block too. Others pay for what is granted and not written: it is written back.
        let in_order = ahead > SHOWN_AHEAD;
        let end = if in_order { file.pages_of(block).end } else { page + 1 };
        return file.grant(view, page..end);
    }
    if !matches!(view, View::Remote(_)) {
        return file.map(view, block..block + 1);
    }
    let most = ((ahead * PAGE) >> file.block_shift).max(1);
    let mut end = block + 1;
    while end < (block + most).min(file.block_count()) {
        match file.word(end).pin_untouched() {
            Pin::Held(bits) if bits & TRIGGER == 0 => end += 1,
            Pin::Held(_) => {
                file.unpin(end); // it is to be touched
                break;
            }
            _ => break,
        }
    }
    // What follows may be gone (`vanished::drop_if_vanished`): its own touch sees to that.
    let shown = file.map_ahead(view, block..end).or_else(|_| file.map(view, block..block + 1));
    (block + 1..end).for_each(|block| file.unpin(block));
    shown
}

fn serve_in_pager(engine: &Arc<Engine>, fault: Fault) {
    let started = engine.now();
    let Some((file, touch)) = touched(engine, fault) else { return };
    let epoch = file.scope_epoch(touch.view);
    if let Err(error) = serve(&file, touch, started) {
        deliver(&file, touch, error, epoch);
    }
    served(&file, started, None);
}

/// Serves a fault in the thread that met it. Runs in a signal handler: see the rules in `engine`.
pub(crate) fn serve_in_thread(engine: &Engine, fault: Fault) -> FaultOutcome {
    let started = engine.now();
    let Some((file, touch)) = touched(engine, fault) else { return FaultOutcome::NotOurs };
    let epoch = file.scope_epoch(touch.view);
    let outcome = match serve(&file, touch, started) {
        Ok(()) => FaultOutcome::Served,
        Err(error) => deliver(&file, touch, error, epoch),
    };
    served(&file, started, None);
    outcome
}

/// One fault, from the touched page to the page shown. The walk:
/// block → pinned if resident, joined if another thread fills it, else filled → shown in the view → read-ahead told.
fn serve(file: &Arc<File>, touch: Touch, since: Duration) -> Result<()> {
    let Touch { view, offset, .. } = touch;
    let block = offset >> file.block_shift;
    let deadline = since + file.deadline;
    let mut filled_here = false;
    let mut alone = false;
    loop {
        // The touch that fills a block is not a second one.
        let word = file.word(block);
        match if filled_here { word.pin_untouched() } else { word.pin() } {
            Pin::Held(_) if file.charge_copy(view, block).is_err() => {
                file.unpin(block);
                file.wait_for_copy(deadline)?;
            }
            Pin::Held(bits) => {
                let shown_by_fill = filled_here && view == View::Plain && bits & SHOWN != 0;
                let shown = if shown_by_fill { Ok(()) } else { show(file, touch) };
                file.unpin(block);
                if let Err(Error::Io { source, .. }) = &shown
                    && vanished::has_vanished(source)
                    && file.pager.now() < deadline
                    && vanished::drop_if_vanished(file, block)?
                {
                    filled_here = false;
                    continue; // to be filled again
                }
                if bits & TRIGGER != 0
                    && let Some(trigger) = file.take_trigger(block)
                {
                    read_ahead(file, trigger..trigger + 1);
                }
                return shown;
            }
            Pin::Absent if file.word(block).claim() => {
                file.missed(block..block + 1);
                let run = if alone { block..block + 1 } else { cluster(file, block) };
                // What was read with it is nobody's yet: if that can't be had, it is to be read by itself.
                alone = run.end - run.start > 1;
                match fill_run(file, run, since, deadline) {
                    Err(_) if alone => continue,
                    filled => filled?,
                }
                filled_here = true;
            }
            Pin::Absent => {} // another thread was faster
            Pin::Busy => {
                let filler_wakes = file.mode == FaultMode::Thread && file.local;
                if filler_wakes && file.word(block).announce_waiter().is_some() {
                    return Ok(()); // whoever settles the block makes the faulting thread touch it again
                }
                file.wait_settled(block, since, deadline)?;
            }
            Pin::Overflow => return Err(file.too_many_pins()),
        }
    }
}

/// What to read for a block that was missed and is claimed: that, and what is asked for together with it, as far as it is absent, claimed too.
/// Read-ahead is told, and what it plans is started.
fn cluster(file: &Arc<File>, block: u64) -> Range<u64> {
    let mut run = block..block + 1;
    if file.pager.recorder.get().is_some() {
        return run; // it would hide misses
    }
    let count = file.block_count();
    let plan = {
        let mut read_ahead = lock(&file.read_ahead);
        let tell = match read_ahead.missed(block) {
            Miss::Continues { probe } => !probe,
            Miss::Lone(len) => {
                let most = block.saturating_add(len).min(count).min(file.region_of(block).end);
                while run.end < most && file.word(run.end).claim() {
                    run.end += 1;
                }
                if run.end == block + len {
                    read_ahead.read(run.end);
                }
                true
            }
        };
        tell.then(|| read_ahead.touched_run(run.clone(), count)).flatten()
    };
    plan.into_iter().for_each(|plan| read_soon(file, plan.blocks, plan.trigger));
    run
}

/// Fills a claimed run: here if the store is local, else on a thread that can be spared.
fn fill_run(file: &Arc<File>, run: Range<u64>, since: Duration, deadline: Duration) -> Result<()> {
    // For what nobody has asked for yet nothing is waited for, nor tried again.
    let is_lone = run.end - run.start == 1;
    let patient_until = if is_lone { deadline } else { file.pager.now() };
    if file.local {
        let room = if is_lone { Patience::Until(deadline) } else { Patience::Never };
        let purpose = Purpose { room, deadline: patient_until, pin: None, read_ahead: None };
        return fill::fill(file, &[run], purpose);
    }
    let (block, bytes) = (run.start, file.bytes_of(&run));
    let outcome = request::fill_elsewhere(file, vec![run], patient_until, patient_until);
    file.wait_settled(block, since, deadline)?;
    outcome.wait(file, bytes, since, deadline)
}

/// Tells read-ahead of a touched trigger, or of a miss of explicit access, and starts what it plans.
pub(crate) fn read_ahead(file: &Arc<File>, run: Range<u64>) {
    if file.pager.recorder.get().is_some() {
        return; // it would hide misses
    }
    let count = file.block_count();
    let Some(plan) = lock(&file.read_ahead).touched_run(run, count) else { return };
    read_soon(file, plan.blocks, plan.trigger);
}

/// Fills what is absent of some runs, on other threads, so that one part is read while another is stored, and as far as there
/// is room. Failures are left to whoever touches the block.
pub(crate) fn read_soon(file: &Arc<File>, runs: Vec<Range<u64>>, trigger: Option<u64>) {
    for (index, group) in split(file, runs).enumerate() {
        let own = Arc::clone(file);
        // A region is claimed before anybody comes for one page of it, and by that makes it many pages. Not those that are far down the queue:
        // who touches one of them would wait for all before it.
        let soon = index < CLAIMED_EARLY && file.region_blocks().is_some();
        let early = soon.then(|| ClaimedRuns::new(file, &group));
        let read = move |_: &Arc<Engine>| {
            if own.is_closed() {
                return;
            }
            let claimed = early.unwrap_or_else(|| ClaimedRuns::new(&own, &group)).take();
            let deadline = own.pager.now();
            let purpose = Purpose { room: Patience::Never, deadline, pin: None, read_ahead: Some(trigger) };
            let _ = fill::fill(&own, &claimed, purpose);
        };
        file.pager.pool.submit(&file.pager, file.job_kind(), Box::new(read));
    }
}

/// Runs of claimed blocks. They are absent again when it is dropped: a job may never run.
struct ClaimedRuns {
    file: Arc<File>,
    runs: Vec<Range<u64>>,
}

impl ClaimedRuns {
    /// Claims what is absent of some runs.
    fn new(file: &Arc<File>, runs: &[Range<u64>]) -> Self {
        Self { file: Arc::clone(file), runs: request::claim_absent(file, runs) }
    }

    /// Hands the claims to the caller.
    fn take(mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.runs)
    }
}

impl Drop for ClaimedRuns {
    fn drop(&mut self) {
        fill::abandon(&self.file, &self.runs);
    }
}

/// Cuts runs into groups for one thread each: of a megabyte, or of the blocks of a region where those may become whole.
fn split(file: &File, runs: Vec<Range<u64>>) -> impl Iterator<Item = Vec<Range<u64>>> {
    let most = file.region_blocks().unwrap_or((1 << 20 >> file.block_shift).max(1));
    let mut groups: Vec<Vec<Range<u64>>> = Vec::new();
    let mut size = u64::MAX;
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            if size >= most || file.region_blocks().is_some_and(|region| start.is_multiple_of(region)) {
                groups.push(Vec::new());
                size = 0;
            }
            let end = run.end.min(start + most - size).min(file.region_of(start).end);
            size += end - start;
            if let Some(group) = groups.last_mut() {
                group.push(start..end);
            }
            start = end;
        }
    }
    groups.into_iter()
}

/// Brings a failed fill to whoever touched the page: a checked scope reads zeros and returns the error at its end; outside
/// of one the message is printed and the thread gets SIGBUS.
fn deliver(file: &Arc<File>, touch: Touch, error: Error, epoch: u64) -> FaultOutcome {
    let Touch { view, offset, .. } = touch;
    let block = offset >> file.block_shift;
    let bytes = file.bytes_of(&(block..block + 1));
    match view {
        View::Checked => match file.latch_in_scope(bytes, &error, epoch) {
            Ok(()) => FaultOutcome::Served,
            Err(cause) => fatal(file, offset, &format!("{error}; zeros could not be shown: {cause}")),
        },
        View::Plain | View::Remote(_) => {
            let text = format!(
                "mapwright: a slice was touched at a page that cannot be read; SIGBUS follows \
                 (use Map::get or Map::checked to get the error as a value): {error}\n"
            );
            mapwright_sys::signals::print_raw(&text);
            if file.mode == FaultMode::InThread {
                return FaultOutcome::Failed;
            }
            file.poisons();
            match file.frames.poison(bytes.clone()) {
                Ok(()) => FaultOutcome::Failed,
                // Where frames tell so: another thread had more luck with the block, and it is to be touched again.
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {
                    file.frames.wake(bytes);
                    FaultOutcome::Served
                }
                Err(cause) => fatal(file, offset, &format!("{error}; SIGBUS could not be raised: {cause}")),
            }
        }
    }
}

/// The last way out: a thread waits for a page that will never come, and nothing can tell it.
fn fatal(file: &File, offset: u64, what: &str) -> ! {
    mapwright_sys::signals::print_raw(&format!("mapwright: {} at offset {offset}: {what}\n", file.name));
    std::process::abort()
}
