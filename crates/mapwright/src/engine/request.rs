//! Explicit access: pins on many blocks at once, blocking or as a future; and work on threads that can be spared.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin as Pinning;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::block::{Pin, SHOWN, TRIGGER};
use super::fault;
use super::file::{CHUNK, File};
use super::fill::{self, Patience, Purpose};
use super::kernel::View;
use super::{PAGE, lock};
use crate::error::{Error, Result};

/// How long a request that holds pins waits for room before it lets them go, so that two of them can't starve each other.
const HOLD: Duration = Duration::from_millis(20);

/// Blocks to be pinned and those pinned so far. Dropping it gives the pins back.
pub struct Request {
    file: Arc<File>,
    wanted: Vec<u64>,
    held: Vec<u64>,
    /// Where the blocks are to be shown.
    view: View,
    /// From the first block wanted to the last.
    span: Range<u64>,
    /// Whether misses are told to read-ahead: they are when the caller goes through the file one range at a time.
    tell: bool,
    since: Duration,
    deadline: Duration,
}

/// What is left to do for a request.
struct Step {
    /// Blocks that this request has claimed and must get filled, as runs.
    claimed: Vec<Range<u64>>,
    /// A block that somebody else is filling or evicting.
    busy: Option<u64>,
}

impl Request {
    /// A request for blocks, in any order, repeated or not: each mention gets a pin of its own.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`] if they can't all be resident at once, the block table charged too, whatever is evicted.
    pub fn new(file: &Arc<File>, blocks: Vec<u64>, tell: bool) -> Result<Self> {
        let mut wanted = blocks;
        wanted.sort_unstable();
        let distinct = wanted.chunk_by(|a, b| a == b).count() as u64;
        // What the table has taken is looked at first: what comes into use meanwhile must not be counted twice.
        let tables = file.table_bytes();
        let chunks = wanted.chunk_by(|a, b| a / CHUNK == b / CHUNK).map(|chunk| chunk[0] / CHUNK);
        let new_chunks = chunks.filter(|chunk| !file.is_chunk_used(*chunk)).count() as u64;
        let needed = distinct * file.block_charge() + new_chunks * PAGE;
        if needed + tables > file.pager.budget.limit() {
            return Err(Error::BudgetExhausted {
                path: file.name.clone(),
                needed,
                budget: file.pager.budget.total(),
                remedy: "ask for less at a time, or raise Pager::builder().budget()",
            });
        }
        let since = file.pager.now();
        let deadline = since + file.deadline;
        let span = wanted.first().copied().unwrap_or(0)..wanted.last().map_or(0, |last| last + 1);
        let view = View::Plain;
        Ok(Self { file: Arc::clone(file), wanted, held: Vec::new(), view, span, tell, since, deadline })
    }

    /// The same blocks, to be shown in another view than the plain one.
    #[must_use]
    pub fn shown_in(mut self, view: View) -> Self {
        self.view = view;
        self
    }

    /// Whether a block that is pinned is yet to be shown, by its bits.
    fn is_unshown(view: View, bits: u32) -> bool {
        view != View::Plain || bits & SHOWN == 0
    }

    /// Pins what is resident, claims what is absent.
    fn advance(&mut self) -> Result<Step> {
        let file = Arc::clone(&self.file);
        let mut claimed = Vec::new();
        let mut busy = None;
        let mut unmapped = Vec::new();
        let mut triggered = None;
        let mut overflow = false;
        let view = self.view;
        let held = &mut self.held;
        let before = held.len();
        self.wanted.retain(|&block| match file.word(block).pin() {
            Pin::Held(bits) => {
                if Self::is_unshown(view, bits) {
                    unmapped.push(block);
                }
                if bits & TRIGGER != 0 {
                    triggered = file.take_trigger(block).or(triggered);
                }
                held.push(block);
                false
            }
            Pin::Absent if file.word(block).claim() => {
                claimed.push(block);
                true
            }
            Pin::Absent | Pin::Busy => {
                busy = busy.or(Some(block));
                true
            }
            Pin::Overflow => {
                overflow = true;
                true
            }
        });
        file.pager.counters.hits.add((self.held.len() - before) as u64);
        let step = Step { claimed: as_runs(&claimed), busy };
        step.claimed.iter().cloned().for_each(|run| file.missed(run));
        let shown = unmapped
            .chunk_by(|a, b| a + 1 == *b)
            .try_for_each(|run| file.map(view, run[0]..run[run.len() - 1] + 1));
        if let Err(error) = shown.and(if overflow { Err(file.too_many_pins()) } else { Ok(()) }) {
            fill::abandon(&file, &step.claimed);
            return Err(error);
        }
        if self.tell {
            let missed = step.claimed.first().map(|run| run.start);
            if triggered.or(missed).is_some() {
                fault::read_ahead(&file, self.span.clone());
            }
        }
        Ok(step)
    }

    /// Pins everything, waiting as long as it takes, up to the deadline.
    ///
    /// # Errors
    /// What the fills meet; [`Error::TimedOut`]; [`Error::BudgetExhausted`].
    pub fn wait(mut self) -> Result<Held> {
        let pager = Arc::clone(&self.file.pager);
        let mut alone = None;
        loop {
            let step = self.advance()?;
            let filled = if step.claimed.is_empty() {
                match step.busy {
                    None => return Ok(self.into_held()),
                    Some(block) => self.file.wait_settled(block, self.since, self.deadline),
                }
            } else {
                self.fill(step.claimed)
            };
            match filled {
                Ok(()) => {}
                Err(Error::BudgetExhausted { .. }) if pager.now() < self.deadline && alone.is_none() => {
                    // Others that hold pins may be waiting for the same room: let go, and go on one at a time.
                    self.let_go();
                    alone = pager.hungry.enter(&*pager.kernel, Some(self.deadline));
                }
                Err(Error::BudgetExhausted { .. }) if pager.now() < self.deadline => self.let_go(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Fills claimed runs: here, with the blocks pinned as they arrive, if the store is local.
    fn fill(&mut self, claimed: Vec<Range<u64>>) -> Result<()> {
        let file = Arc::clone(&self.file);
        if !file.local {
            let outcome = fill_elsewhere(
                &file,
                claimed.clone(),
                self.deadline,
                self.deadline.min(file.pager.now() + HOLD),
            );
            let bytes = file.bytes_of(&(claimed[0].start..claimed[claimed.len() - 1].end));
            for block in claimed.into_iter().flatten() {
                file.wait_settled(block, self.since, self.deadline)?;
            }
            return outcome.wait(&file, bytes, self.since, self.deadline);
        }
        let view = self.view;
        let Self { wanted, held, .. } = self;
        let deadline = self.deadline;
        let room = Patience::Until(deadline.min(file.pager.now() + HOLD));
        let first = held.len();
        let mut pin = |block: u64| held.push(block);
        let purpose = Purpose { room, deadline, pin: Some(&mut pin), read_ahead: None };
        let filled = fill::fill(&file, &claimed, purpose);
        // One mention of each block that was filled is served by the pin it came with.
        let mut served = held[first..].to_vec();
        served.sort_unstable();
        wanted.retain(|block| match served.binary_search(block) {
            Ok(index) => {
                served.remove(index);
                false
            }
            Err(_) => true,
        });
        let unshown: Vec<u64> = held[first..]
            .iter()
            .copied()
            .filter(|&block| Self::is_unshown(view, file.word(block).bits()))
            .collect();
        unshown.into_iter().try_for_each(|block| file.map(view, block..block + 1))?;
        filled
    }

    /// Gives all pins back and asks for them again.
    fn let_go(&mut self) {
        for block in self.held.drain(..) {
            self.file.unpin(block);
            self.wanted.push(block);
        }
        self.wanted.sort_unstable();
    }

    fn into_held(mut self) -> Held {
        Held { file: Arc::clone(&self.file), blocks: std::mem::take(&mut self.held) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.held.iter().for_each(|&block| self.file.unpin(block));
    }
}

/// Pins on blocks. Dropping it gives them back.
pub struct Held {
    file: Arc<File>,
    blocks: Vec<u64>,
}

impl Held {
    /// Hands the pins to the caller, who gives each back with [`File::unpin`]: one for each of the blocks returned.
    pub(crate) fn keep(mut self) -> Vec<u64> {
        std::mem::take(&mut self.blocks)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|&block| self.file.unpin(block));
    }
}

/// Sorted blocks as runs.
fn as_runs(blocks: &[u64]) -> Vec<Range<u64>> {
    blocks.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1).collect()
}

/// Claims what is absent of some runs.
pub(crate) fn claim_absent(file: &File, runs: &[Range<u64>]) -> Vec<Range<u64>> {
    let claimed: Vec<u64> =
        runs.iter().cloned().flatten().filter(|&block| file.word(block).claim()).collect();
    as_runs(&claimed)
}

/// Brings blocks into memory, as far as there is room, and lets them go again.
///
/// # Errors
/// What the fills meet; [`Error::BudgetExhausted`] if nothing can be evicted.
pub fn prefetch(file: &Arc<File>, bytes: Range<u64>) -> Result<()> {
    prefetch_parts(file, bytes)
        .try_for_each(|part| Request::new(file, part.collect(), false)?.wait().map(drop))
}

/// Cuts a range into runs of blocks that are brought in together, each well within the budget.
pub fn prefetch_parts(file: &File, bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = file.blocks_of(bytes);
    let step = (file.pager.budget.limit() / 4 / file.block_charge()).clamp(1, 4096);
    (start..end).step_by(step as usize).map(move |first| first..(first + step).min(end))
}

/// The result of work on another thread.
#[derive(Default)]
pub(crate) struct Outcome {
    state: Mutex<OutcomeState>,
    /// Number of parts still running; waited on.
    running: AtomicU32,
}

#[derive(Default)]
struct OutcomeState {
    error: Option<Error>,
    waker: Option<Waker>,
}

impl Outcome {
    /// The first error so far.
    fn error(&self) -> Option<Error> {
        lock(&self.state).error.clone()
    }

    /// Waits until all parts have ended, which is a moment after their blocks have settled; the first error.
    pub(crate) fn wait(
        &self,
        file: &File,
        bytes: Range<u64>,
        since: Duration,
        deadline: Duration,
    ) -> Result<()> {
        loop {
            let running = self.running.load(Ordering::Acquire);
            if running == 0 {
                return self.error().map_or(Ok(()), Err);
            }
            let now = file.pager.now();
            if now >= deadline {
                return Err(file.timed_out(bytes, now - since));
            }
            file.pager.kernel.wait(&self.running, running, Some(deadline - now));
        }
    }

    fn ended(&self, file: &File, result: Result<()>) {
        let waker = {
            let mut state = lock(&self.state);
            if let Err(error) = result {
                state.error.get_or_insert(error);
            }
            self.running.fetch_sub(1, Ordering::AcqRel);
            state.waker.take()
        };
        file.pager.kernel.wake(&self.running);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Fills claimed runs on pool threads, each on one of its own: stores that are not local may hang on any of them.
pub(crate) fn fill_elsewhere(
    file: &Arc<File>,
    runs: Vec<Range<u64>>,
    deadline: Duration,
    room_until: Duration,
) -> Arc<Outcome> {
    let jobs: Vec<Vec<Range<u64>>> =
        if file.local { vec![runs] } else { runs.into_iter().map(|run| vec![run]).collect() };
    let outcome = Arc::new(Outcome::default());
    outcome.running.store(jobs.len() as u32, Ordering::Release);
    for runs in jobs {
        let (own, told) = (Arc::clone(file), Arc::clone(&outcome));
        file.pager.pool.submit(
            &file.pager,
            file.job_kind(),
            Box::new(move |_| {
                let room = Patience::Until(room_until);
                let purpose = Purpose { room, deadline, pin: None, read_ahead: None };
                let filled = fill::fill(&own, &runs, purpose);
                told.ended(&own, filled);
            }),
        );
    }
    outcome
}

/// Runs work on a pool thread and waits for it until the file's deadline; the work goes on if it takes longer.
pub(crate) fn run_elsewhere(
    file: &Arc<File>,
    bytes: Range<u64>,
    work: impl FnOnce(&Arc<File>) -> Result<()> + Send + 'static,
) -> Result<()> {
    let since = file.pager.now();
    let outcome = Arc::new(Outcome::default());
    outcome.running.store(1, Ordering::Release);
    let (own, told) = (Arc::clone(file), Arc::clone(&outcome));
    file.pager.pool.submit(
        &file.pager,
        file.job_kind(),
        Box::new(move |_| {
            let result = work(&own);
            told.ended(&own, result);
        }),
    );
    outcome.wait(file, bytes, since, since + file.deadline)
}

/// A request as a future: no thread waits while the store is at work. Dropping it gives the pins back; fills go on.
pub struct Acquire {
    request: Option<Request>,
    outcome: Option<Arc<Outcome>>,
    watched: bool,
}

impl Acquire {
    /// Awaits a request.
    pub fn new(request: Request) -> Self {
        Self { request: Some(request), outcome: None, watched: false }
    }
}

impl Future for Acquire {
    type Output = Result<Held>;

    fn poll(mut self: Pinning<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let Some(request) = &mut this.request else {
                return Poll::Ready(Err(Error::invalid(
                    "a future polled after it was ready",
                    "await it once",
                )));
            };
            if let Some(error) = this.outcome.as_ref().and_then(|outcome| outcome.error()) {
                if !matches!(error, Error::BudgetExhausted { .. })
                    || request.file.pager.now() >= request.deadline
                {
                    this.request = None;
                    return Poll::Ready(Err(error));
                }
                // Other tasks that hold pins may be waiting for the same room: let go, and ask again.
                request.let_go();
                this.outcome = None;
            }
            let step = match request.advance() {
                Ok(step) => step,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let file = Arc::clone(&request.file);
            let now = file.pager.now();
            let waits_for = match (step.claimed.first(), step.busy) {
                (Some(run), _) => run.start,
                (None, Some(block)) => block,
                (None, None) => {
                    let Some(request) = this.request.take() else { continue };
                    return Poll::Ready(Ok(request.into_held()));
                }
            };
            if !step.claimed.is_empty() {
                let room_until = request.deadline.min(now + HOLD);
                this.outcome = Some(fill_elsewhere(&file, step.claimed, request.deadline, room_until));
            } else if now >= request.deadline {
                let bytes = file.bytes_of(&(waits_for..waits_for + 1));
                let error = file.timed_out(bytes, now - request.since);
                this.request = None;
                return Poll::Ready(Err(error));
            }
            if !file.local && !std::mem::replace(&mut this.watched, true) {
                file.pager.watch.at(&file.pager, request.deadline, context.waker().clone());
            }
            if let Some(outcome) = &this.outcome {
                lock(&outcome.state).waker = Some(context.waker().clone());
            }
            if file.wake_when_settled(waits_for, context.waker()) {
                return Poll::Pending;
            }
        }
    }
}
