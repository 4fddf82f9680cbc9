//! Virtual threads, simulated time, and who runs next.
//!
//! A virtual thread is an OS thread that runs only while it holds the one token. At a yield point ([`Core::step`]) it draws
//! from the seeded generator who holds the token next; where it blocks ([`Core::block`]) somebody else does. So a run
//! follows from its seed alone, provided that the code under test draws nothing from elsewhere (real time, addresses,
//! `RandomState`).
//!
//! Locks: `state` and `outcome`. Neither is held while a thread waits for the token or while code under test runs; the panic
//! hook takes `outcome` only, so a panic under `state` is still reported. A failed run leaves its threads parked for good:
//! unwinding them would run destructors of the code under test in states nobody designed.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use mapwright::engine::locks;

use crate::state::{Next, On, QueuedFault, State};
use crate::{Failure, Options, Report};

/// Where a thread waits for the token.
#[derive(Default)]
pub(crate) struct Slot {
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

enum Outcome {
    Done,
    /// Why, and a backtrace where there is one.
    Failed(String, String),
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
        for_body.lock().end_body();
    };
    let spawned = core.spawn_in(&mut core.lock(), "body", false, cpu, Box::new(main));
    if let Err(error) = spawned {
        return Err(core.failure(format!("cannot spawn the first thread: {error}"), ""));
    }
    let first = core.lock().slot(0);
    first.give();
    match core.wait_for_outcome() {
        Outcome::Failed(why, backtrace) => Err(core.failure(why, &backtrace)),
        Outcome::Done => Ok(core.report()),
    }
}

impl Core {
    fn new(seed: u64, options: Options) -> Self {
        let state = State::new(seed, &options);
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

    /// A yield point: another thread may run here. Every call of the engine into the kernel or a store is one, and every touch
    /// of a slice; the rule is that the engine holds no lock there.
    ///
    /// # Panics
    /// If the calling thread holds one.
    pub(crate) fn step(&self) {
        assert!(locks::none_held(), "the engine holds a lock over a call or a touch");
        let me = self.me();
        let mut state = self.lock_for_step();
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
        self.lock().note(me, what, numbers);
    }

    /// Blocks the calling thread until somebody wakes it or `timeout` has passed.
    ///
    /// # Panics
    /// If the calling thread holds a lock of the engine.
    pub(crate) fn block(&self, on: On, timeout: Option<Duration>) {
        assert!(locks::none_held(), "the engine waits and holds a lock");
        let me = self.me();
        let mut state = self.lock_for_step();
        state.block(me, on, timeout);
        let next = state.next(None, &self.options);
        self.pass(state, Some(me), next);
    }

    /// Blocks for a simulated time.
    pub(crate) fn sleep(&self, time: Duration) {
        self.block(On::Sleep, Some(time));
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().now()
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
        self.lock().has_ended(thread)
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
        let number = state.thread_count();
        let slot = Arc::new(Slot::default());
        let (core, mine) = (Arc::clone(self), Arc::clone(&slot));
        let os_thread = std::thread::Builder::new()
            .name(format!("sim-{name}"))
            .spawn(move || core.live(number, &mine, cpu, work))?;
        let _ = slot.thread.set(os_thread.thread().clone());
        state.add_thread(name, daemon, slot, os_thread);
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
        state.end_thread(number);
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
        let to = state.slot(next);
        let from = me.map(|me| state.slot(me));
        drop(state);
        to.give();
        if let Some(from) = from {
            from.take();
        }
    }

    /// Lets a step's time pass; from here to `pass` nobody else runs.
    fn lock_for_step(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        let steps = state.tick(&self.options);
        self.steps_seen.store(steps, Ordering::Relaxed);
        if steps > self.options.max_steps {
            drop(state);
            self.fail(format!("livelock? {} steps and no end", self.options.max_steps));
            park_for_good();
        }
        state
    }

    /// Ends the run as failed. The first failure counts.
    fn fail(&self, why: String) {
        self.finish(Outcome::Failed(why, String::new()));
    }

    fn finish(&self, outcome: Outcome) {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            self.failed.store(matches!(outcome, Outcome::Failed(..)), Ordering::Release);
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
                let limit = self.options.stuck_after;
                let why =
                    format!("no yield point for {limit:?}: a thread spins, or holds a lock over a call");
                return Outcome::Failed(why, String::new());
            }
            let waited = self.outcome_set.wait_timeout(outcome, Duration::from_secs(1));
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn failure(&self, why: String, backtrace: &str) -> Failure {
        let message = format!("seed {}: {why}\n\n{}{backtrace}", self.seed, self.lock().dump());
        Failure { seed: self.seed, why, message }
    }

    fn report(&self) -> Report {
        let os_threads = self.lock().take_os_threads();
        for os_thread in os_threads {
            let _ = os_thread.join();
        }
        self.lock().report(self.seed)
    }
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
                    let backtrace = Backtrace::capture();
                    let shown = backtrace.status() == BacktraceStatus::Captured;
                    let text = if shown { format!("\nbacktrace:\n{backtrace}") } else { String::new() };
                    core.finish(Outcome::Failed(info.to_string(), text));
                }
                _ => before(info),
            }
        }));
    });
}
