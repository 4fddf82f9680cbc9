//! Random writes, made durable at the end.

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::update_offsets;
use mapwright_measure::ways::{kernel_mmap, pager};

use super::{Clock, SEED, chill};
use crate::how::memmap2_advice;
use crate::task::{How, Measured, Task};

/// Adds 1 to `count` words. The parent reads back what that left in the file.
pub fn update(task: &Task, count: u64) -> Result<Measured> {
    chill(task)?;
    let offsets = update_offsets(task.len, count, SEED);
    let clock = Clock::start();
    let mut updater = match task.how {
        How::Mmap(advice) => kernel_mmap::open_mut(&task.path, memmap2_advice(advice))?,
        How::Pager(way, _) => pager::open_mut(way, &task.path, task.budget)?,
        _ => return Err(Failure::Unsupported(format!("{:?} writes nothing", task.how))),
    };
    for batch in offsets.chunks(task.batch) {
        updater.increment(batch)?;
    }
    let stored = clock.0.elapsed().as_secs_f64();
    updater.make_durable()?;
    let measured = clock.stop(count, count * 8);
    let flush = measured.seconds - stored;
    Ok(Measured { extra: [("of it flush, s".to_owned(), flush)].into(), ..measured })
}
