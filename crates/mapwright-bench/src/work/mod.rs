//! The child process: does one task and measures it.

mod beside;
mod faults;
mod files;
mod hot;
mod journal;
mod memory;
mod programs;
mod reading;
mod update;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use mapwright_measure::child::{self, cpu_seconds, status_bytes};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::sample;
use mapwright_measure::work::Share;

use crate::how::peers;
use crate::task::{How, Measured, Task, Work};

/// The name of the hidden subcommand.
pub const NAME: &str = "worker";

/// Where every list of pages comes from.
pub const SEED: u64 = 1;

/// The hidden subcommand.
pub fn run() -> Result<()> {
    child::serve(NAME, measure)
}

fn measure(task: &Task) -> Result<Measured> {
    if let (How::Program(program, under), false) = (task.how, task.work == Work::Load) {
        return programs::measure(task, program, under);
    }
    let measured = match &task.work {
        Work::Scan | Work::Pages { .. } => reading::cold(task),
        Work::Resident { passes, loads } => reading::resident(task, *passes, *loads),
        Work::Zipf { count, beside_scan } => beside::zipf(task, *count, *beside_scan),
        Work::Update { count } => update::update(task, *count),
        Work::Commits { dirty, count } => update::commits(task, *dirty, *count),
        Work::Checkpoints { rounds } => journal::checkpoints(task, *rounds),
        Work::Journal { bytes, recovers } => journal::left_over(task, *bytes, *recovers),
        Work::Faults { stride, passes } => faults::faults(task, *stride, *passes),
        Work::Wake { count } => faults::wake(task, *count),
        Work::Hot { count } => hot::hot(task, *count),
        Work::Memory => memory::memory(task),
        Work::Open { count } => files::open(task, *count),
        Work::SmallFiles => files::small_files(task),
        Work::ManyMaps { count } => files::many_maps(task, *count),
        Work::Warm { count } => reading::warm(task, *count),
        Work::Together { processes } => programs::together(task, *processes),
        Work::Laps { from } => programs::laps(task, *from),
        Work::Load => peers::load(task),
        Work::Start { .. } | Work::Search { .. } => {
            Err(Failure::Unsupported(format!("{:?} is no program", task.how)))
        }
    }?;
    Ok(Measured { peak_rss_bytes: status_bytes("VmHWM:"), ..measured })
}

/// Takes the task's file, or the files of its folder, out of the page cache.
fn chill(task: &Task) -> Result<()> {
    if task.path.is_dir() {
        return files::of(&task.path)?.iter().try_for_each(|path| chill_file(path));
    }
    chill_file(&task.path)
}

fn chill_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    match sample::drop_cache(&file) {
        Some(pages) if pages > 0 => Err(Failure::Message(format!(
            "{}: {pages} pages stay in the page cache: close what maps or writes the file",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// A clock of wall and CPU time.
struct Clock(Instant, f64);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    fn stop(self, ops: u64, bytes: u64) -> Measured {
        let seconds = self.0.elapsed().as_secs_f64();
        Measured { ops, bytes, seconds, cpu_seconds: cpu_seconds() - self.1, ..Measured::default() }
    }
}

/// Adds the shares of all threads to what the clock measured.
fn tally(clock: Clock, shares: &[Share<'_>]) -> Measured {
    let mut total = Share::new(&[]);
    let measured = clock.stop(0, 0);
    shares.iter().for_each(|share| total.add(share));
    with_latencies(
        Measured { ops: total.ops, bytes: total.bytes, checksum: Some(total.checksum), ..measured },
        &total.latencies,
    )
}

fn with_latencies(measured: Measured, latencies: &Histogram) -> Measured {
    // Nothing takes no time: no latency was recorded.
    let nanos = |fraction| Some(latencies.quantile_us(fraction) * 1000.0).filter(|nanos| *nanos > 0.0);
    Measured { p50_ns: nanos(0.5), p99_ns: nanos(0.99), ..measured }
}

/// Times one operation.
fn time(latencies: &mut Histogram, operation: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = Instant::now();
    operation()?;
    latencies.record(before.elapsed(), 1);
    Ok(())
}

/// Nanoseconds of one of so many operations.
fn each(total: Duration, operations: u64) -> f64 {
    total.as_nanos() as f64 / operations.max(1) as f64
}
