//! A run's state: its threads, its time, and the draw of who runs next.
//!
//! | thread state | → | by |
//! | --- | --- | --- |
//! | Runnable | Blocked | `block` |
//! | Blocked | Runnable | `wake_where`, its deadline, a spurious wake-up |
//! | Runnable | Ended | `end_thread`: its closure returned |
//!
//! No locks of its own: all of it is guarded by `Core::state`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::frames::Space;
use crate::rng::Rng;
use crate::scheduler::Slot;
use crate::trace::Trace;
use crate::{Options, Report};

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

/// A fault that nobody has taken from the queue yet.
pub(crate) struct QueuedFault {
    pub(crate) address: usize,
    pub(crate) thread: usize,
}

/// Everything a run has; guarded by `Core::state`.
pub(crate) struct State {
    pub(crate) rng: Rng,
    pub(crate) faults: Vec<QueuedFault>,
    /// Calls of `interrupt_faults`.
    pub(crate) interrupts: u64,
    /// How many of them each thread has been told of.
    pub(crate) interrupts_told: BTreeMap<usize, u64>,
    pub(crate) spaces: Vec<Arc<Space>>,
    pub(crate) stores: usize,
    pub(crate) hole_reads: u64,
    /// Touches of absent pages so far.
    pub(crate) fault_count: u64,
    pub(crate) resident_pages: u64,
    pub(crate) peak_resident_pages: u64,
    now_ns: u64,
    steps: u64,
    threads: Vec<Virtual>,
    /// Who has the token.
    running: usize,
    os_threads: Vec<JoinHandle<()>>,
    trace: Trace,
    spurious_per_1000: u32,
    uneven: bool,
    body_ended_ns: Option<u64>,
}

/// Who is to run next.
pub(crate) enum Next {
    Thread(usize),
    AllEnded,
    Stuck(&'static str),
}

impl State {
    pub(crate) fn new(seed: u64, options: &Options) -> Self {
        let mut rng = Rng::new(seed);
        // Spurious wake-ups and extra time hide lost wake-ups: half of all seeds go without the former.
        let spurious_per_1000 = if rng.per_1000(500) { options.spurious_per_1000 } else { 0 };
        let uneven = rng.per_1000(500);
        Self {
            rng,
            faults: Vec::new(),
            interrupts: 0,
            interrupts_told: BTreeMap::new(),
            spaces: Vec::new(),
            stores: 0,
            hole_reads: 0,
            fault_count: 0,
            resident_pages: 0,
            peak_resident_pages: 0,
            now_ns: 0,
            steps: 0,
            threads: Vec::new(),
            running: 0,
            os_threads: Vec::new(),
            trace: Trace::new(),
            spurious_per_1000,
            uneven,
            body_ended_ns: None,
        }
    }

    /// Adds a runnable thread.
    pub(crate) fn add_thread(
        &mut self,
        name: &str,
        daemon: bool,
        slot: Arc<Slot>,
        os_thread: JoinHandle<()>,
    ) {
        let weight = if self.uneven && self.rng.per_1000(300) { 1 } else { 16 };
        let status = Status::Runnable;
        self.threads.push(Virtual { name: name.to_owned(), daemon, weight, status, slot });
        self.os_threads.push(os_thread);
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.threads.len()
    }

    pub(crate) fn take_os_threads(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.os_threads)
    }

    pub(crate) fn slot(&self, thread: usize) -> Arc<Slot> {
        Arc::clone(&self.threads[thread].slot)
    }

    pub(crate) fn note(&mut self, thread: usize, what: &'static str, numbers: [u64; 3]) {
        self.trace.note(self.steps, self.now_ns, thread, what, numbers);
    }

    /// Lets a step's time pass; how many steps there were.
    pub(crate) fn tick(&mut self, options: &Options) -> u64 {
        self.steps += 1;
        let stall = self.rng.per_1000(2);
        let most = if stall { options.max_stall } else { options.max_step };
        let time_ns = self.rng.below(nanos(most).max(1));
        self.advance_to(self.now_ns + time_ns);
        if self.rng.per_1000(self.spurious_per_1000) {
            self.wake_one_spuriously();
        }
        self.steps
    }

    pub(crate) fn block(&mut self, thread: usize, on: On, timeout: Option<Duration>) {
        let deadline_ns = timeout.map(|timeout| self.now_ns.saturating_add(nanos(timeout)));
        self.threads[thread].status = Status::Blocked { on, deadline_ns };
    }

    pub(crate) fn end_thread(&mut self, thread: usize) {
        self.threads[thread].status = Status::Ended;
        self.wake_where(|_, on| on == On::Join(thread));
    }

    pub(crate) fn has_ended(&self, thread: usize) -> bool {
        self.threads[thread].status == Status::Ended
    }

    pub(crate) fn end_body(&mut self) {
        self.body_ended_ns = Some(self.now_ns);
    }

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

    pub(crate) fn now(&self) -> Duration {
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
    pub(crate) fn next(&mut self, running: Option<(usize, u32)>, options: &Options) -> Next {
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
                        None => {
                            self.running = number;
                            return Next::Thread(number);
                        }
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

    pub(crate) fn report(&self, seed: u64) -> Report {
        Report {
            seed,
            trace_hash: self.trace.hash(),
            steps: self.steps,
            time: self.now(),
            threads: self.threads.len(),
            hole_reads: self.hole_reads,
            fault_count: self.fault_count,
            peak_resident_bytes: self.peak_resident_pages * crate::PAGE_SIZE,
        }
    }

    /// What every thread is doing, and the last events.
    pub(crate) fn dump(&self) -> String {
        let mut text = format!("threads at {:?}:\n", self.now());
        let mut words = Vec::new();
        for (number, thread) in self.threads.iter().enumerate() {
            let daemon = if thread.daemon { " (daemon)" } else { "" };
            let name = &thread.name;
            let doing = match thread.status {
                Status::Runnable if number == self.running => "runs".to_owned(),
                Status::Runnable => "could run".to_owned(),
                Status::Ended => "has ended".to_owned(),
                Status::Blocked { on, deadline_ns } => self.describe(on, deadline_ns, &mut words),
            };
            let _ = writeln!(text, "  {number}:{name}{daemon}: {doing}");
        }
        let trace = self.trace.render(|thread| self.threads[thread].name.as_str());
        let _ = write!(text, "\nlast events (step, time, thread, what, numbers):\n{trace}");
        text
    }

    /// What a thread waits for. Words get numbers in order of appearance: their addresses differ from run to run.
    fn describe(&self, on: On, deadline_ns: Option<u64>, words: &mut Vec<usize>) -> String {
        let what = match on {
            On::Word(address) => {
                let known = words.iter().position(|&word| word == address);
                let index = known.unwrap_or_else(|| {
                    words.push(address);
                    words.len() - 1
                });
                format!("waits on word #{index}")
            }
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
