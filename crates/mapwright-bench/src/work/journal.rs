//! The journal by itself: commits beside checkpoints, and reading a journal that a killed program has left.
//!
//! Through the journal's own interface, as the engine uses it, because a map does not say when a checkpoint runs.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mapwright::JournalError;
use mapwright::journal::place::Directory;
use mapwright::journal::{Accept, AtomicFile, Limits, inspect, recover};
use mapwright::stores::{FileOptions, FileStore};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::pages::{PAGE, Random};
use mapwright_measure::ways::pager;
use mapwright_measure::ways::system_calls::{self, Call};

use super::{Clock, SEED, chill_file, time};
use crate::task::{How, Measured, Task};

/// Pages of the transaction that makes a checkpoint due: 32 MiB, as many as the default limit is.
const LARGE: u64 = 8192;

/// `rounds` times: a large transaction, then commits of one page while a checkpoint brings it to the file, and as many, but a hundred
/// at least, when it has.
pub fn checkpoints(task: &Task, rounds: u64) -> Result<Measured> {
    const LEAST: u64 = 100;
    let (place, file) = parts(task)?;
    let (atomic, _) = AtomicFile::open(place, file, Limits::default()).map_err(failed)?;
    let mut pages = Pages::of(task);
    let (mut beside, mut alone) = (Histogram::default(), Histogram::default());
    let (mut commits, mut seconds) = (0, 0.0);
    let clock = Clock::start();
    for _ in 0..rounds {
        let large = LARGE.min(task.len / PAGE / 2);
        pages.commit(&atomic, large)?;
        // Names the large one as durable.
        pages.commit(&atomic, 1)?;
        let runs = AtomicBool::new(true);
        let mut during = 0;
        let checkpointed = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| {
                let before = Instant::now();
                let written = bring(&atomic);
                runs.store(false, Ordering::Release);
                written.map(|()| before.elapsed().as_secs_f64())
            });
            while runs.load(Ordering::Acquire) {
                time(&mut beside, || pages.commit(&atomic, 1))?;
                during += 1;
            }
            checkpoint.join().map_err(|_| Failure::Message("a checkpoint panicked".to_owned()))?
        })?;
        seconds += checkpointed;
        let after = during.max(LEAST);
        for _ in 0..after {
            time(&mut alone, || pages.commit(&atomic, 1))?;
        }
        commits += 2 + during + after;
    }
    let measured = clock.stop(commits, 0);
    atomic.close().map_err(failed)?;
    let (beside, alone) = (|at| beside.quantile_us(at), |at| alone.quantile_us(at));
    let extra = [
        ("p99 beside a checkpoint, µs", beside(0.99)),
        ("p99 without, µs", alone(0.99)),
        ("p50 beside a checkpoint, µs", beside(0.5)),
        ("p50 without, µs", alone(0.5)),
        ("p99 beside a checkpoint, of that without", beside(0.99) / alone(0.99)),
        ("a checkpoint, ms", seconds / rounds as f64 * 1000.0),
    ];
    Ok(Measured { extra: extra.map(|(name, value)| (name.to_owned(), value)).into(), ..measured })
}

/// One whole checkpoint, as far as it may go without a word of its own in the journal.
fn bring(atomic: &AtomicFile) -> Result<()> {
    let Some(mut checkpoint) = atomic.begin_checkpoint() else { return Ok(()) };
    while !checkpoint.step().map_err(failed)? {}
    checkpoint.finish().map(drop).map_err(failed)
}

/// Leaves a journal of `bytes` bytes as a killed program does, cold, and reads it; through the journal's own interface, checks it or
/// recovers the file from it.
pub fn left_over(task: &Task, bytes: u64, recovers: bool) -> Result<Measured> {
    let mut journal = task.path.clone().into_os_string();
    journal.push(".mapwright-journal");
    let journal = PathBuf::from(journal);
    let len = leave(task, bytes)?;
    chill_file(&journal)?;
    chill_file(&task.path)?;
    let clock = Clock::start();
    match task.how {
        How::Read(buffer) => read(Call::Read, &journal, len, buffer)?,
        How::Direct(buffer) => read(Call::Direct, &journal, len, buffer)?,
        How::Journal => {
            let (place, file) = parts(task)?;
            let found = if recovers {
                recover(&*place, &*file, Accept::Own)
            } else {
                inspect(&*place, &*file, Accept::Own)
            };
            let found = found.map_err(failed)?.filter(|found| found.scan.commits > 0);
            found.ok_or_else(|| Failure::Message("the journal was not found".to_owned()))?;
        }
        how => return Err(Failure::Unsupported(format!("{how:?} reads no journal"))),
    }
    let measured = clock.stop(len / PAGE, len);
    if journal.exists() {
        fs::remove_file(&journal).map_err(|error| Failure::io("remove", &journal, error))?;
    }
    Ok(measured)
}

/// Commits until the journal has `bytes` bytes; its length.
fn leave(task: &Task, bytes: u64) -> Result<u64> {
    /// Pages of a transaction: 1 MiB.
    const PAGES: u64 = 256;
    let (place, file) = parts(task)?;
    let limits = Limits { checkpoint: bytes, ..Limits::default() };
    let (atomic, _) = AtomicFile::open(place, file, limits).map_err(failed)?;
    let mut pages = Pages::of(task);
    while atomic.live_bytes() < bytes {
        pages.commit(&atomic, PAGES)?;
    }
    Ok(atomic.live_bytes())
}

fn read(call: Call, journal: &std::path::Path, len: u64, buffer: usize) -> Result<()> {
    let source = system_calls::open(call, journal, len, buffer)?;
    source.cursor()?.range(0..len).map(drop)
}

/// Where the journal of the task's file lies, and the file.
fn parts(task: &Task) -> Result<(Arc<Directory>, Arc<FileStore>)> {
    let file = File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
    let place = Directory::of(file.as_fd(), &task.path).map_err(failed)?;
    let store = FileStore::open(&task.path, &FileOptions { write: true, direct: false });
    Ok((Arc::new(place), Arc::new(store.map_err(pager::failed)?)))
}

fn failed(error: JournalError) -> Failure {
    Failure::Message(error.to_string())
}

/// Random pages of a file, and what is written to them.
struct Pages {
    random: Random,
    count: u64,
    bytes: Vec<u8>,
}

impl Pages {
    fn of(task: &Task) -> Self {
        Self { random: Random::new(SEED), count: task.len / PAGE, bytes: vec![0; PAGE as usize] }
    }

    /// Commits `count` of them.
    fn commit(&mut self, atomic: &AtomicFile, count: u64) -> Result<()> {
        let mut pages: Vec<u64> = (0..count).map(|_| self.random.below(self.count)).collect();
        pages.sort_unstable();
        pages.dedup();
        self.bytes[..8].copy_from_slice(&self.random.bits().to_le_bytes());
        let mut batch = atomic.begin();
        for page in pages {
            batch.put(page * PAGE, &self.bytes).map_err(failed)?;
        }
        batch.commit().map(drop).map_err(failed)
    }
}
