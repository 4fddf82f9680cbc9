//! The disk itself: O_DIRECT reads through an io_uring that is kept full, or drained batch by batch.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::PAGE;
use mapwright_measure::work::Share;

use crate::raw::Pages;
use crate::task::Task;

/// Reads the pages of a share, `task.batch` in flight.
pub fn read(task: &Task, drained: bool, share: &mut Share<'_>) -> Result<()> {
    let failed = |error| Failure::io("io_uring", &task.path, error);
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&task.path);
    let file = file.map_err(|error| Failure::Unsupported(format!("O_DIRECT: {error}")))?;
    let ring = Pages::new(file, task.batch);
    let mut ring = ring.map_err(|error| Failure::Unsupported(format!("io_uring: {error}")))?;
    let mut started = vec![Instant::now(); task.batch];
    let mut left = share.pages.iter();
    while ring.room() < task.batch || left.len() > 0 {
        if !drained || ring.room() == task.batch {
            for page in left.by_ref().take(ring.room()) {
                let buffer = ring.read(page * PAGE).map_err(failed)?;
                started[buffer] = Instant::now();
            }
        }
        ring.wait(|buffer, bytes| {
            share.checksum = share.checksum.wrapping_add(sum(bytes));
            share.ops += 1;
            share.bytes += PAGE;
            share.latencies.record(started[buffer].elapsed(), 1);
        })
        .map_err(failed)?;
    }
    Ok(())
}
