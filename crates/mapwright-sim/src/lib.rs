//! A simulated kernel, store and clock for mapwright's engine, driven by a seed.
//!
//! The engine reaches the world through two traits, `Kernel` (with `Frames`) and `Store`. This crate implements both in
//! plain memory. All threads are virtual: one runs at a time, and at every call into the simulation a seeded generator
//! draws who goes on. A run follows from its seed, so a failure can be looked at again and again.
//!
//! What is modelled, and what is not:
//! * Page tables: for each view and page none, a write-protect marker, clean, written, zeros, poisoned, as in `frames.rs`.
//! * Frames that move, for files that are only read, and their regions, as in `moved.rs`.
//! * Interleavings at calls, between the pages of a call, and between any two bytes of a copy. Code between two calls runs
//!   in one piece, and memory is sequentially consistent: races on atomics alone are for loom.
//! * Stores: short and failing calls, hangs, changes by others, lost writes after a failed sync, crash images with torn
//!   writes.
//!
//! Beside it, without virtual threads: a disk with a directory ([`disk`]), and a program that commits on it while the power fails
//! ([`power`]); and what must hold for any bytes in a journal's place ([`fuzz`]).
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use mapwright::engine::kernel::Kernel;
//! use mapwright_sim::{Options, Simulation};
//!
//! Simulation::run(1, &Options::default(), |sim| {
//!     let word = Arc::new(AtomicU32::new(0));
//!     let setter = sim.spawn("setter", {
//!         let (word, kernel) = (Arc::clone(&word), sim.kernel());
//!         move || {
//!             word.store(1, Ordering::SeqCst);
//!             kernel.wake(&word);
//!         }
//!     });
//!     while word.load(Ordering::SeqCst) == 0 {
//!         sim.kernel().wait(&word, 0, None);
//!     }
//!     setter.join();
//! });
//! ```

#![forbid(unsafe_code)]

pub mod disk;
mod frames;
pub mod fuzz;
mod handle;
mod kernel;
mod moved;
mod page_cache;
pub mod power;
mod rng;
mod scheduler;
mod state;
mod store;
mod trace;

use std::ops::Range;
use std::time::Duration;

pub use handle::{Bus, JoinHandle, SimHandle};
pub use kernel::SimKernel;
pub use rng::Rng;
pub use store::{Op, SimStore, StoreOptions};

/// Bytes in a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often, of 100, a thread just goes on at a yield point. Lower finds more and runs slower.
    pub stay_percent: u32,
    /// Yield points after which a run counts as a livelock.
    pub max_steps: u64,
    /// Most time that passes at a yield point.
    pub max_step: Duration,
    /// Most time that passes at two of 1000 yield points, to let time-outs fire while others can run.
    pub max_stall: Duration,
    /// How often, of 1000 yield points, a waiting thread wakes for no reason; in half of all seeds it never does.
    pub spurious_per_1000: u32,
    /// How often, of 1000 pages or regions, what moves pages of the simulated frames, or asks what was written to them, fails for
    /// want of memory.
    pub frame_errors_per_1000: u32,
    /// How often, of 1000 calls, `Kernel::spawn` fails.
    pub spawn_errors_per_1000: u32,
    /// Simulated time that threads of the code under test may live on their timers once all threads of the test ended.
    pub leak_grace: Duration,
    /// Real time without a yield point after which the run is given up.
    pub stuck_after: Duration,
    /// Keep the run's threads on one CPU: passing the token is several times faster.
    pub pin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stay_percent: 50,
            max_steps: 2_000_000,
            max_step: Duration::from_micros(2),
            max_stall: Duration::from_millis(5),
            spurious_per_1000: 10,
            frame_errors_per_1000: 0,
            spawn_errors_per_1000: 0,
            leak_grace: Duration::from_secs(60),
            stuck_after: Duration::from_secs(30),
            pin: true,
        }
    }
}

/// What a run that ended well was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// A hash over everything that happened: equal for equal runs.
    pub trace_hash: u64,
    /// Yield points passed.
    pub steps: u64,
    /// Simulated time it took.
    pub time: Duration,
    /// Virtual threads it had.
    pub threads: usize,
    /// Pieces read by `Frames::load` where there was no frame.
    pub hole_reads: u64,
    /// Touches of absent pages.
    pub fault_count: u64,
    /// Most bytes of frames at one time, over all files.
    pub peak_resident_bytes: u64,
}

/// How a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The panic's message, or what was wrong.
    pub why: String,
    /// `why`, what every thread was doing, and the last events.
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Runs programs in simulation.
#[derive(Debug)]
pub struct Simulation;

impl Simulation {
    /// Runs `body` and all threads it leads to, to the end.
    ///
    /// # Panics
    /// With seed, threads and last events when a thread panicked, nobody could run any more, threads were left over, or the
    /// run did not end within its steps.
    pub fn run(seed: u64, options: &Options, body: impl FnOnce(&SimHandle) + Send + 'static) -> Report {
        match Self::try_run(seed, options, body) {
            Ok(report) => report,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As `run`, with the failure as a value. The threads of a failed run stay parked until the process ends.
    ///
    /// # Errors
    /// What `run` panics with.
    pub fn try_run(
        seed: u64,
        options: &Options,
        body: impl FnOnce(&SimHandle) + Send + 'static,
    ) -> Result<Report, Failure> {
        scheduler::run(seed, options, move |core| body(&SimHandle::new(core)))
    }

    /// Runs `body` once for each of [`seeds`].
    ///
    /// # Panics
    /// As `run`, at the first seed that fails; as `seeds`.
    pub fn run_seeds(count: u64, options: &Options, body: impl Fn(&SimHandle) + Clone + Send + 'static) {
        for seed in seeds(count) {
            let body = body.clone();
            Self::run(seed, options, move |sim| body(sim));
        }
    }
}

/// The seeds to run: `0..count`. In the environment `MAPWRIGHT_SIM_SEEDS` asks for at least so many, and `MAPWRIGHT_SIM_SEED` for that one only.
///
/// # Panics
/// When a variable is not a number.
pub fn seeds(count: u64) -> Range<u64> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
    };
    match number("MAPWRIGHT_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MAPWRIGHT_SIM_SEEDS").unwrap_or(0).max(count),
    }
}
