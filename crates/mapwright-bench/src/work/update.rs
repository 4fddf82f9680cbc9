//! Random writes, made durable at the end or again and again.

use std::time::Instant;

use mapwright::Durability;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::pages::update_offsets;
use mapwright_measure::ways::{Updater, kernel_mmap, pager};

use super::{Clock, SEED, chill, each, time, with_latencies};
use crate::how::{memmap2_advice, peers};
use crate::task::{How, Measured, Task};

/// Adds 1 to `count` words. The parent reads back what that left in the file.
pub fn update(task: &Task, count: u64) -> Result<Measured> {
    chill(task)?;
    let offsets = update_offsets(task.len, count, SEED);
    let clock = Clock::start();
    let mut updater = open(task)?;
    for batch in offsets.chunks(task.batch) {
        updater.increment(batch)?;
    }
    let stored = clock.0.elapsed().as_secs_f64();
    updater.make_durable()?;
    let measured = clock.stop(count, count * 8);
    let flush = measured.seconds - stored;
    Ok(Measured { extra: [("of it flush, s".to_owned(), flush)].into(), ..measured })
}

/// Commits `count` times, each time after 1 was added to `dirty` words. All of the file is in memory before the clock starts. The
/// parent reads back what that left in the file.
pub fn commits(task: &Task, dirty: u64, count: u64) -> Result<Measured> {
    /// Commits without a change, after the others.
    const EMPTY: u64 = 1000;
    let offsets = update_offsets(task.len, dirty * count, SEED);
    let mut updater = open(task)?;
    updater.warm_up()?;
    let (mut latencies, mut counted) = (Histogram::default(), 0);
    let clock = Clock::start();
    for batch in offsets.chunks(dirty as usize) {
        time(&mut latencies, || {
            updater.increment(batch)?;
            updater.make_durable()
        })?;
        counted += 1;
    }
    let measured = clock.stop(counted, dirty * counted * 8);
    let clock = Instant::now();
    for _ in 0..EMPTY {
        updater.make_durable()?;
    }
    let extra = [("commit of nothing, ns".to_owned(), each(clock.elapsed(), EMPTY))].into();
    Ok(with_latencies(Measured { extra, ..measured }, &latencies))
}

/// Opens what the task writes to.
fn open(task: &Task) -> Result<Box<dyn Updater>> {
    Ok(match task.how {
        How::Mmap(advice) => kernel_mmap::open_mut(&task.path, memmap2_advice(advice))?,
        How::Pager(way, _) => pager::open_mut(way, &task.path, task.budget, Durability::Flush)?,
        How::Atomic(way) => pager::open_mut(way, &task.path, task.budget, Durability::Atomic)?,
        How::Peer(peer) => peers::open_mut(peer, task)?,
        _ => return Err(Failure::Unsupported(format!("{:?} writes nothing", task.how))),
    })
}
