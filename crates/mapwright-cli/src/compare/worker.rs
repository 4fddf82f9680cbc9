//! The child process of a comparison: one method, one round.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mapwright_measure::child::{self, cpu_seconds, status_bytes};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::{self, PAGE, update_offsets};
use mapwright_measure::sample;
use mapwright_measure::work::{self, Reading, Share};
use serde::{Deserialize, Serialize};

use super::Pattern;
use crate::methods::{Method, Setup};

/// The name of the hidden subcommand.
pub const NAME: &str = "compare-worker";

/// What a worker is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The method.
    pub method: Method,
    /// The pattern.
    pub pattern: Pattern,
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub file_len: u64,
    /// The memory limit in bytes.
    pub limit: u64,
    /// Operations, each on one page; for the sequential pattern the number of pages read from the start.
    pub ops: u64,
    /// Where the list of pages comes from.
    pub seed: u64,
    /// Threads that share the operations.
    pub threads: usize,
    /// Pages handed over at once by the method that can.
    pub batch: usize,
    /// Seconds after which to stop early: for the warm-up, whose checksums are not compared.
    pub stop_after: Option<f64>,
}

/// What a worker measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Operations done.
    pub ops: u64,
    /// Bytes of the file that they touched.
    pub bytes: u64,
    /// From before the file was opened to after the last operation.
    pub seconds: f64,
    /// User and system time of the process in the same span, all threads.
    pub cpu_seconds: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99th percentile of latency.
    pub p99_us: f64,
    /// VmHWM at the end.
    pub peak_rss_bytes: u64,
    /// VmRSS before the file was opened.
    pub baseline_rss_bytes: u64,
    /// Sum of the words read; 0 for updates, whose result the parent reads back.
    pub checksum: u64,
    /// Pages of the file in the page cache before it was opened, where the kernel tells.
    pub cached_pages_before: Option<u64>,
    /// What the method says about how it went.
    pub note: Option<String>,
}

/// The hidden subcommand.
pub fn run() -> Result<()> {
    child::serve(NAME, measure)
}

fn measure(task: &Task) -> Result<Measured> {
    let file = File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
    let cached_pages_before = sample::drop_cache(&file);
    drop(file);
    let setup = Setup {
        path: &task.path,
        file_len: task.file_len,
        pattern: task.pattern,
        limit: task.limit,
        batch: task.method.batch(task.batch),
    };
    let work = Work::new(task);
    let baseline_rss_bytes = status_bytes("VmRSS:");
    let mut shares = work.shares();

    let cpu_before = cpu_seconds();
    let start = Instant::now();
    let stop_at = task.stop_after.map(|seconds| start + Duration::from_secs_f64(seconds));
    let note = match task.pattern {
        Pattern::Update => update(task, &setup, &work, stop_at, &mut shares[0])?,
        _ => read(task, &setup, stop_at, &mut shares)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds() - cpu_before;

    let peak_rss_bytes = status_bytes("VmHWM:");
    let mut total = Share::new(&[]);
    for share in &shares {
        total.add(share);
    }
    Ok(Measured {
        ops: total.ops,
        bytes: total.bytes,
        seconds,
        cpu_seconds,
        p50_us: total.latencies.quantile_us(0.5),
        p99_us: total.latencies.quantile_us(0.99),
        peak_rss_bytes,
        baseline_rss_bytes,
        checksum: total.checksum,
        cached_pages_before,
        note,
    })
}

/// The pages of a round, made before the clock starts.
struct Work {
    pages: Vec<u64>,
    offsets: Vec<u64>,
    threads: usize,
}

impl Work {
    fn new(task: &Task) -> Self {
        let pages = match task.pattern {
            Pattern::Sequential => Vec::new(),
            Pattern::Random => pages::uniform(task.file_len.div_ceil(PAGE), task.ops, task.seed),
            Pattern::Zipf => pages::zipf(task.file_len.div_ceil(PAGE), task.ops, task.seed),
            Pattern::Update => Vec::new(),
        };
        let offsets = match task.pattern {
            Pattern::Update => update_offsets(task.file_len, task.ops, task.seed),
            _ => Vec::new(),
        };
        Self { pages, offsets, threads: task.threads }
    }

    fn shares(&self) -> Vec<Share<'_>> {
        work::shares(&self.pages, self.threads)
    }
}

fn read(
    task: &Task,
    setup: &Setup<'_>,
    stop_at: Option<Instant>,
    shares: &mut [Share<'_>],
) -> Result<Option<String>> {
    let source = task.method.open(setup)?;
    let reading = Reading { file_len: setup.file_len, batch: setup.batch, stop_at };
    match shares {
        [share] if task.pattern == Pattern::Sequential => {
            reading.scan(&mut *source.cursor()?, task.ops * PAGE, share)?;
        }
        shares => reading.pick_all(&*source, shares)?,
    }
    Ok(source.note())
}

/// Increments the listed words and makes all of it durable, both inside the time.
fn update(
    task: &Task,
    setup: &Setup<'_>,
    work: &Work,
    stop_at: Option<Instant>,
    share: &mut Share<'_>,
) -> Result<Option<String>> {
    let mut updater = task.method.open_mut(setup)?;
    let mut before = Instant::now();
    for batch in work.offsets.chunks(setup.batch) {
        if stop_at.is_some_and(|stop| before >= stop) {
            break;
        }
        updater.increment(batch)?;
        share.ops += batch.len() as u64;
        share.bytes += batch.len() as u64 * 8;
        let now = Instant::now();
        share.latencies.record(now - before, batch.len() as u64);
        before = now;
    }
    updater.make_durable()?;
    Ok(None)
}
