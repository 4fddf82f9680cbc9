//! Memory that a pager takes beyond its budget.

use mapwright_measure::child::status_bytes;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Source, pager};
use mapwright_measure::work::{Reading, Share};

use super::{Clock, chill, tally};
use crate::task::{How, Measured, Task};

/// Scans a file that is larger than the budget. What the process has had since the pager was made (frames, tables, buffers,
/// stacks) should be the budget; what is more, the pager added.
pub fn memory(task: &Task) -> Result<Measured> {
    let How::Pager(way, block) = task.how else {
        return Err(Failure::Unsupported(format!("{:?} has no pager", task.how)));
    };
    chill(task)?;
    let mut share = Share::new(&[]);
    let (anonymous_before, shared_before) = (status_bytes("RssAnon:"), status_bytes("RssShmem:"));
    let clock = Clock::start();
    let opened =
        pager::open(way, &task.path, task.budget, |options| options.range(..task.len).block_size(block))?;
    let reading = Reading { file_len: task.len, batch: 1, stop_at: None };
    reading.scan(&mut *opened.cursor()?, task.len, &mut share)?;
    let measured = tally(clock, &[share]);

    let anonymous = status_bytes("RssAnon:").saturating_sub(anonymous_before);
    let frames = opened.map().resident_bytes();
    // Frames that move are anonymous. Those of shared memory are counted by the pager: the process has only what is mapped.
    let shared = if status_bytes("RssShmem:") > shared_before { frames } else { 0 };
    let beyond = (anonymous + shared).saturating_sub(task.budget);
    let absent = task.len.saturating_sub(frames) / block as u64;
    let allowed = 0.004 * task.budget as f64 + 4.0 * absent as f64;
    let extra = [
        ("anonymous, KiB", anonymous as f64 / 1024.0),
        ("frames, KiB", frames as f64 / 1024.0),
        ("beyond the budget, KiB", beyond as f64 / 1024.0),
        ("allowed, KiB", allowed / 1024.0),
        ("beyond, of what is allowed", beyond as f64 / allowed),
    ];
    let extra = extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Measured { extra, note: opened.note(), ..measured })
}
