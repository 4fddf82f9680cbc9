//! What the tests of the engine share: seeds, a pager over a simulated store, futures, and an oracle.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod atomic;
pub mod oracle;
pub mod readers;
pub mod workload;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use mapwright::Result;
use mapwright::engine::file::{File, FileSpec, Keep};
use mapwright::engine::kernel::{FaultMode, FrameKind, Kernel};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::{Engine, Handle};
use mapwright_sim::{Failure, Options, Report, Rng, SimHandle, SimKernel, SimStore, Simulation, seeds};

pub const PAGE: u64 = 4096;
pub const EIO: i32 = 5;
pub const ENOMEM: i32 = 12;
pub const ENOSPC: i32 = 28;

pub fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.index(from.len())]
}

/// What frames may take of a budget: all but the buffers.
pub fn frame_limit(budget: u64) -> u64 {
    budget - (budget / 8).max(PAGE)
}

/// Runs `body` for one seed. It tells what frames may take by the counter it is given: they never go above it.
pub fn try_seed(
    seed: u64,
    options: &Options,
    body: impl FnOnce(&SimHandle, &AtomicU64) + Send + 'static,
) -> std::result::Result<Report, Failure> {
    let budget = Arc::new(AtomicU64::new(u64::MAX));
    let told = Arc::clone(&budget);
    let report = Simulation::try_run(seed, options, move |sim| body(sim, &told))?;
    let budget = budget.load(Ordering::SeqCst);
    if report.peak_resident_bytes > budget {
        let why = format!("{} bytes of frames, which may be {budget}", report.peak_resident_bytes);
        return Err(Failure { seed, message: format!("seed {seed}: {why}"), why });
    }
    Ok(report)
}

/// Runs `body` for many seeds and prints how long that took.
pub fn for_seeds(
    name: &str,
    count: u64,
    options: &Options,
    body: impl Fn(&SimHandle, &AtomicU64) + Clone + Send + 'static,
) {
    for_each(name, seeds(count), options, body);
}

/// As [`for_seeds`], for these.
pub fn for_each(
    name: &str,
    seeds: std::ops::Range<u64>,
    options: &Options,
    body: impl Fn(&SimHandle, &AtomicU64) + Clone + Send + 'static,
) {
    let begun = std::time::Instant::now();
    let (mut steps, mut faults) = (0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let report =
            try_seed(seed, options, body.clone()).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        steps += report.steps;
        faults += report.fault_count;
    }
    println!("{name}: {count} seeds, {steps} steps, {faults} faults, {:.1?}", begun.elapsed());
}

/// How a file of a test is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    pub writable: bool,
    pub mode: FaultMode,
    pub frames: FrameKind,
    pub block_size: u64,
    pub reserve: u64,
    pub deadline: Duration,
    pub advice: Advice,
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            writable: true,
            mode: FaultMode::Thread,
            frames: FrameKind::Auto,
            block_size: PAGE,
            reserve: 0,
            deadline: Duration::from_secs(20),
            advice: Advice::Random,
        }
    }
}

impl Opening {
    pub fn open(&self, pager: &Arc<Handle>, store: &Arc<SimStore>) -> Result<Arc<File>> {
        let spec = FileSpec {
            store: Arc::clone(store) as Arc<dyn mapwright::stores::Store>,
            writable: self.writable,
            mode: self.mode,
            frames: self.frames,
            block_size: self.block_size,
            reserve: self.reserve,
            deadline: self.deadline,
            advice: self.advice,
            keep: Keep::Flushed,
        };
        Engine::open_file(pager, spec)
    }
}

/// A pager with `budget` bytes.
pub fn pager(sim: &SimHandle, budget: u64) -> Arc<Handle> {
    Engine::open(sim.kernel(), budget).expect("the budget is large enough")
}

/// Wakes the virtual thread that polls.
pub struct ThreadWaker {
    kernel: Arc<SimKernel>,
    pub woken: AtomicU32,
}

impl ThreadWaker {
    pub fn new(sim: &SimHandle) -> Arc<Self> {
        Arc::new(Self { kernel: sim.kernel(), woken: AtomicU32::new(0) })
    }
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.woken.store(1, Ordering::SeqCst);
        self.kernel.wake(&self.woken);
    }
}

/// Polls a future to its end.
pub fn block_on<T>(sim: &SimHandle, future: impl Future<Output = T>) -> T {
    let woken = ThreadWaker::new(sim);
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    loop {
        woken.woken.store(0, Ordering::SeqCst);
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        while woken.woken.load(Ordering::SeqCst) == 0 {
            sim.kernel().wait(&woken.woken, 0, None);
        }
    }
}
