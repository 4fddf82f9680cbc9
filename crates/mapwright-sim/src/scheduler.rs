//! Virtual threads, simulated time, and who runs next.
//!
//! A virtual thread is an OS thread that runs only while it holds the one token. At a yield point ([`Core::step`]) it draws
//! from the seeded generator who holds the token next; where it blocks ([`Core::block`]) somebody else does. So a run
//! follows from its seed alone, provided that the code under test draws nothing from elsewhere (real time, addresses,
//! `RandomState`).
//!
//! | thread state | → | by |
//! | --- | --- | --- |
//! | Runnable | Blocked | `block` |
//! | Blocked | Runnable | `wake_where`, its deadline, a spurious wake-up |
//! | Runnable | Ended | its closure returned |
//!
//! Locks: `state` and `outcome`. Neither is held while a thread waits for the token or while code under test runs; the panic
//! hook takes `outcome` only, so a panic under `state` is still reported. A failed run leaves its threads parked for good:
//! unwinding them would run destructors of the code under test in states nobody designed.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::frames::Space;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::{Failure, Options, Report};

/// What a blocked thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// `Kernel::wait` on the word at this address.
    Word(usize),
    /// A touch of an absent page at this address.
    Fault(usize),
    /// `Kernel::wait_faults`.
    Faults,
    /// The end of another thread.
    Join(usize),
    /// Nothing but time.
    Sleep,
    /// A call into the store with this number, which hangs.
    Hang(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Runnable,
    Blocked { on: On, deadline_ns: Option<u64> },
    Ended,
}

struct Virtual {
    name: String,
    /// Spawned by the code under test, not by the test.
    daemon: bool,
    /// How often it is chosen, against the others.
    weight: u64,
    status: Status,
    slot: Arc<Slot>,
}

/// Where a thread waits for the token.
#[derive(Default)]
struct Slot {
    turn: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Slot {
    fn give(&self) {
        self.turn.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn take(&self) {
        while !self.turn.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// A fault that nobody has taken from the queue yet.
pub(crate) struct QueuedFault {
    pub(crate) address: usize,
    pub(crate) thread: usize,
}

/// Everything a run has; guarded by `Core::state`.
pub(crate) struct State {
    pub(crate) rng: Rng,
    pub(crate) faults: Vec<QueuedFault>,
    /// Calls of `interrupt_faults` that found nobody waiting.
    pub(crate) interrupts: u64,
    /// Threads that `interrupt_faults` found waiting and that have not returned yet.
    pub(crate) interrupted: Vec<usize>,
    pub(crate) spaces: Vec<Arc<Space>>,
    pub(crate) stores: usize,
    pub(crate) hole_reads: u64,
    pub(crate) resident_pages: u64,
    pub(crate) peak_resident_pages: u64,
    now_ns: u64,
    steps: u64,
    threads: Vec<Virtual>,
    os_threads: Vec<JoinHandle<()>>,
    trace: Trace,
    spurious_per_1000: u32,
    uneven: bool,
    body_ended_ns: Option<u64>,
}

enum Outcome {
    Done,
    Failed(String),
}

/// Who is to run next.
enum Next {
    Thread(usize),
    AllEnded,
    Stuck(&'static str),
}

/// One run.
pub(crate) struct Core {
    pub(crate) seed: u64,
    pub(crate) options: Options,
    state: Mutex<State>,
    outcome: Mutex<Option<Outcome>>,
    outcome_set: Condvar,
    failed: AtomicBool,
    steps_seen: AtomicU64,
}

thread_local! {
    /// The run and number of the virtual thread that this OS thread is.
    static CURRENT: RefCell<Option<(Arc<Core>, usize)>> = const { RefCell::new(None) };
}

/// Runs `body` as virtual thread 0 and everything it spawns, to the end.
pub(crate) fn run(
    seed: u64,
    options: &Options,
    body: impl FnOnce(&Arc<Core>) + Send + 'static,
) -> Result<Report, Failure> {
    install_panic_hook();
    let core = Arc::new(Core::new(seed, options.clone()));
    let cpu = options.pin.then(rustix::thread::sched_getcpu);
    let for_body = Arc::clone(&core);
    let main = move || {
        body(&for_body);
        let mut state = for_body.lock();
        state.body_ended_ns = Some(state.now_ns);
    };
    let spawned = core.spawn_in(&mut core.lock(), "body", false, cpu, Box::new(main));
    if let Err(error) = spawned {
        return Err(core.failure(format!("cannot spawn the first thread: {error}")));
    }
    let first = Arc::clone(&core.lock().threads[0].slot);
    first.give();
    match core.wait_for_outcome() {
        Outcome::Failed(why) => Err(core.failure(why)),
        Outcome::Done => Ok(core.report()),
    }
}

impl Core {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        // Spurious wake-ups and extra time hide lost wake-ups: half of all seeds go without the former.
        let spurious_per_1000 = if rng.per_1000(500) { options.spurious_per_1000 } else { 0 };
        let uneven = rng.per_1000(500);
        let state = State {
            rng,
            faults: Vec::new(),
            interrupts: 0,
            interrupted: Vec::new(),
            spaces: Vec::new(),
            stores: 0,
            hole_reads: 0,
            resident_pages: 0,
            peak_resident_pages: 0,
            now_ns: 0,
            steps: 0,
            threads: Vec::new(),
            os_threads: Vec::new(),
            trace: Trace::new(),
            spurious_per_1000,
            uneven,
            body_ended_ns: None,
        };
        Self {
            seed,
            options,
            state: Mutex::new(state),
            outcome: Mutex::new(None),
            outcome_set: Condvar::new(),
            failed: AtomicBool::new(false),
            steps_seen: AtomicU64::new(0),
        }
    }

    /// The run's state. Not to be held over `step` or `block`.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A yield point: another thread may run here.
    pub(crate) fn step(&self) {
        let me = self.me();
        let mut state = self.lock();
        self.tick(&mut state);
        let next = state.next(Some((me, self.options.stay_percent)), &self.options);
        self.pass(state, Some(me), next);
    }

    /// A yield point `percent` times of 100.
    pub(crate) fn maybe_step(&self, percent: u32) {
        if self.lock().rng.per_1000(percent * 10) {
            self.step();
        }
    }

    /// A yield point, then a line in the trace: how every simulated call begins.
    pub(crate) fn enter(&self, what: &'static str, numbers: [u64; 3]) {
        self.step();
        self.note(what, numbers);
    }

    /// A line in the trace.
    pub(crate) fn note(&self, what: &'static str, numbers: [u64; 3]) {
        let me = self.me();
        let state = &mut *self.lock();
        state.trace.note(state.steps, state.now_ns, me, what, numbers);
    }

    /// Blocks the calling thread until somebody wakes it or `timeout` has passed.
    pub(crate) fn block(&self, on: On, timeout: Option<Duration>) {
        let me = self.me();
        let mut state = self.lock();
        self.tick(&mut state);
        let deadline_ns = timeout.map(|timeout| state.now_ns.saturating_add(nanos(timeout)));
        state.threads[me].status = Status::Blocked { on, deadline_ns };
        let next = state.next(None, &self.options);
        self.pass(state, Some(me), next);
    }

    /// Blocks for a simulated time.
    pub(crate) fn sleep(&self, time: Duration) {
        self.block(On::Sleep, Some(time));
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.lock().now_ns)
    }

    /// Tells the serving threads of a touch by the calling thread, now and then twice.
    pub(crate) fn queue_fault(&self, address: usize) {
        let thread = self.me();
        let state = &mut *self.lock();
        let count = if state.rng.per_1000(100) { 2 } else { 1 };
        state.faults.extend((0..count).map(|_| QueuedFault { address, thread }));
        state.wake_where(|_, on| on == On::Faults);
    }

    /// Starts a virtual thread; its number.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &str,
        daemon: bool,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<usize> {
        self.spawn_in(&mut self.lock(), name, daemon, None, work)
    }

    pub(crate) fn ended(&self, thread: usize) -> bool {
        self.lock().threads[thread].status == Status::Ended
    }

    /// The number of the calling virtual thread. After a failure nobody comes back from here.
    ///
    /// # Panics
    /// When the calling thread is none of this run's.
    pub(crate) fn me(&self) -> usize {
        if self.failed.load(Ordering::Acquire) {
            park_for_good();
        }
        let mine = CURRENT.with_borrow(|current| match current {
            Some((core, number)) if std::ptr::eq(&raw const **core, self) => Some(*number),
            _ => None,
        });
        mine.expect("a call into the simulation from a thread that the simulation did not start")
    }

    fn spawn_in(
        self: &Arc<Self>,
        state: &mut State,
        name: &str,
        daemon: bool,
        cpu: Option<usize>,
        work: Box<dyn FnOnce() + Send>,
    ) -> std::io::Result<usize> {
        let number = state.threads.len();
        let slot = Arc::new(Slot::default());
        let (core, mine) = (Arc::clone(self), Arc::clone(&slot));
        let os_thread = std::thread::Builder::new()
            .name(format!("sim-{name}"))
            .spawn(move || core.live(number, &mine, cpu, work))?;
        let _ = slot.thread.set(os_thread.thread().clone());
        let weight = if state.uneven && state.rng.per_1000(300) { 1 } else { 16 };
        state.os_threads.push(os_thread);
        state.threads.push(Virtual { name: name.to_owned(), daemon, weight, status: Status::Runnable, slot });
        Ok(number)
    }

    /// The life of a virtual thread.
    fn live(self: Arc<Self>, number: usize, slot: &Slot, cpu: Option<usize>, work: Box<dyn FnOnce() + Send>) {
        if let Some(cpu) = cpu {
            // Threads spawned from here inherit it. Failure costs speed only.
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            let _ = rustix::thread::sched_setaffinity(None, &set);
        }
        slot.take();
        CURRENT.set(Some((Arc::clone(&self), number)));
        let result = catch_unwind(AssertUnwindSafe(work));
        if let Err(payload) = result {
            // The hook has told; `resume_unwind` is the one panic that goes past it.
            self.fail(text_of(&*payload));
        }
        if self.failed.load(Ordering::Acquire) {
            CURRENT.set(None);
            return;
        }
        let mut state = self.lock();
        state.threads[number].status = Status::Ended;
        state.wake_where(|_, on| on == On::Join(number));
        let next = state.next(None, &self.options);
        CURRENT.set(None);
        self.pass(state, None, next);
    }

    /// Gives the token to `next` and, when `me` is given, waits to get it back.
    fn pass(&self, state: MutexGuard<'_, State>, me: Option<usize>, next: Next) {
        let next = match next {
            Next::Thread(next) if Some(next) == me => return,
            Next::Thread(next) => next,
            Next::AllEnded => {
                drop(state);
                return self.finish(Outcome::Done);
            }
            Next::Stuck(why) => {
                drop(state);
                self.fail(why.to_owned());
                if me.is_some() {
                    park_for_good();
                }
                return;
            }
        };
        let to = Arc::clone(&state.threads[next].slot);
        let from = me.map(|me| Arc::clone(&state.threads[me].slot));
        drop(state);
        to.give();
        if let Some(from) = from {
            from.take();
        }
    }

    /// Lets a step's time pass.
    fn tick(&self, state: &mut State) {
        state.steps += 1;
        self.steps_seen.store(state.steps, Ordering::Relaxed);
        if state.steps > self.options.max_steps {
            self.fail(format!("livelock? {} steps and no end", self.options.max_steps));
        }
        let stall = state.rng.per_1000(2);
        let most = if stall { self.options.max_stall } else { self.options.max_step };
        let time_ns = state.rng.below(nanos(most).max(1));
        state.advance_to(state.now_ns + time_ns);
        if state.rng.per_1000(state.spurious_per_1000) {
            state.wake_one_spuriously();
        }
    }

    /// Ends the run as failed. The first failure counts.
    fn fail(&self, why: String) {
        self.finish(Outcome::Failed(why));
    }

    fn finish(&self, outcome: Outcome) {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            self.failed.store(matches!(outcome, Outcome::Failed(_)), Ordering::Release);
            *slot = Some(outcome);
            self.outcome_set.notify_all();
        }
    }

    /// Waits for the end, and for a thread that blocks where the simulation cannot see it.
    fn wait_for_outcome(&self) -> Outcome {
        let (mut seen, mut since) = (0, Instant::now());
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            let steps = self.steps_seen.load(Ordering::Relaxed);
            if steps != seen {
                (seen, since) = (steps, Instant::now());
            } else if since.elapsed() > self.options.stuck_after {
                self.failed.store(true, Ordering::Release);
                return Outcome::Failed(format!(
                    "no yield point for {:?} of real time: a thread spins, or holds a lock over a call",
                    self.options.stuck_after
                ));
            }
            let waited = self.outcome_set.wait_timeout(outcome, Duration::from_secs(1));
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn failure(&self, why: String) -> Failure {
        let state = self.lock();
        let mut message = format!("seed {}: {why}\n\nthreads at {:?}:\n", self.seed, state.now());
        for (number, thread) in state.threads.iter().enumerate() {
            let daemon = if thread.daemon { " (daemon)" } else { "" };
            let name = &thread.name;
            let _ = writeln!(message, "  {number}:{name}{daemon}: {}", state.describe(thread.status));
        }
        let trace = state.trace.render(|thread| state.threads[thread].name.as_str());
        let _ = write!(message, "\nlast events (step, time, thread, what, numbers):\n{trace}");
        Failure { seed: self.seed, why, message }
    }

    fn report(&self) -> Report {
        let os_threads = std::mem::take(&mut self.lock().os_threads);
        for os_thread in os_threads {
            let _ = os_thread.join();
        }
        let state = self.lock();
        Report {
            seed: self.seed,
            trace_hash: state.trace.hash(),
            steps: state.steps,
            time: state.now(),
            threads: state.threads.len(),
            hole_reads: state.hole_reads,
            peak_resident_bytes: state.peak_resident_pages * crate::PAGE_SIZE,
        }
    }
}

impl State {
    /// Makes threads runnable that wait for something `which` says yes to; how many.
    pub(crate) fn wake_where(&mut self, which: impl Fn(usize, On) -> bool) -> usize {
        let mut woken = 0;
        for number in 0..self.threads.len() {
            if let Status::Blocked { on, .. } = self.threads[number].status
                && which(number, on)
            {
                self.make_runnable(number, on);
                woken += 1;
            }
        }
        woken
    }

    /// The threads that wait for exactly this.
    pub(crate) fn waiting_on(&self, what: On) -> Vec<usize> {
        let waits = |thread: &Virtual| matches!(thread.status, Status::Blocked { on, .. } if on == what);
        (0..self.threads.len()).filter(|&number| waits(&self.threads[number])).collect()
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns)
    }

    fn make_runnable(&mut self, number: usize, on: On) {
        self.threads[number].status = Status::Runnable;
        // A thread that stops waiting takes its message with it, unless a server has read it already: both happen.
        if matches!(on, On::Fault(_)) && self.rng.per_1000(500) {
            self.faults.retain(|fault| fault.thread != number);
        }
    }

    fn wake_one_spuriously(&mut self) {
        let number = self.rng.index(self.threads.len());
        if let Status::Blocked { on: on @ (On::Word(_) | On::Fault(_)), .. } = self.threads[number].status {
            self.make_runnable(number, on);
        }
    }

    fn advance_to(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        for number in 0..self.threads.len() {
            if let Status::Blocked { on, deadline_ns: Some(deadline_ns) } = self.threads[number].status
                && deadline_ns <= now_ns
            {
                self.make_runnable(number, on);
            }
        }
    }

    /// Chooses who runs. `running` is the thread that could go on, and how often (of 100) it does without a draw.
    fn next(&mut self, running: Option<(usize, u32)>, options: &Options) -> Next {
        if let Some((me, stay_percent)) = running
            && self.rng.per_1000(stay_percent * 10)
        {
            return Next::Thread(me);
        }
        loop {
            let weight = |thread: &Virtual| match thread.status {
                Status::Runnable => thread.weight,
                _ => 0,
            };
            let total: u64 = self.threads.iter().map(weight).sum();
            if total > 0 {
                let mut draw = self.rng.below(total);
                for (number, thread) in self.threads.iter().enumerate() {
                    match draw.checked_sub(weight(thread)) {
                        Some(rest) => draw = rest,
                        None => return Next::Thread(number),
                    }
                }
            }
            if let Some(end) = self.nothing_runs(options) {
                return end;
            }
        }
    }

    /// Nobody can run: time jumps to the earliest deadline, or the run is at its end (`Some`).
    fn nothing_runs(&mut self, options: &Options) -> Option<Next> {
        if self.threads.iter().all(|thread| thread.status == Status::Ended) {
            return Some(Next::AllEnded);
        }
        let leak = "leak: the test has ended, these threads have not";
        let daemons_only = self.threads.iter().all(|thread| thread.daemon || thread.status == Status::Ended);
        let deadline = |thread: &Virtual| match thread.status {
            Status::Blocked { deadline_ns, .. } => deadline_ns,
            _ => None,
        };
        let Some(deadline_ns) = self.threads.iter().filter_map(deadline).min() else {
            let why =
                if daemons_only { leak } else { "deadlock: nobody can run, and no time-out will change it" };
            return Some(Next::Stuck(why));
        };
        let ended_ns = self.body_ended_ns.unwrap_or(u64::MAX);
        if daemons_only && deadline_ns.saturating_sub(nanos(options.leak_grace)) > ended_ns {
            return Some(Next::Stuck(leak));
        }
        self.advance_to(deadline_ns.max(self.now_ns));
        None
    }

    fn describe(&self, status: Status) -> String {
        let Status::Blocked { on, deadline_ns } = status else {
            return format!("{status:?}");
        };
        let what = match on {
            On::Word(address) => format!("waits on the word at {address:#x}"),
            On::Fault(address) => format!("waits for the page at {address:#x}"),
            On::Faults => "waits for faults".to_owned(),
            On::Join(thread) => format!("joins {thread}:{}", self.threads[thread].name),
            On::Sleep => "sleeps".to_owned(),
            On::Hang(store) => format!("hangs in store {store}"),
        };
        match deadline_ns {
            Some(deadline_ns) => format!("{what} until {:?}", Duration::from_nanos(deadline_ns)),
            None => what,
        }
    }
}

/// A duration in nanoseconds; 584 years at most.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The end of a thread of a failed run.
fn park_for_good() -> ! {
    loop {
        std::thread::park();
    }
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panic").to_owned()
}

/// A panic in a virtual thread goes into the run's report, at once: what unwinding does afterwards may never end.
fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let core =
                CURRENT.try_with(|current| current.borrow().as_ref().map(|(core, _)| Arc::clone(core)));
            match core {
                Ok(Some(core)) => {
                    core.fail(format!("{info}\n{}", std::backtrace::Backtrace::capture()));
                }
                _ => before(info),
            }
        }));
    });
}
