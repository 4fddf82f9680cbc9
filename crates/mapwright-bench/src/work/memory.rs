//! Memory that a pager takes beside its frames.

use mapwright_measure::child::status_bytes;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::PAGE;
use mapwright_measure::ways::{Source, pager};
use mapwright_measure::work::{Reading, Share};

use super::{Clock, chill, tally};
use crate::task::{How, Measured, Task};

/// Scans a file that is larger than the budget. Frames are shared memory, so that what is anonymous in the process since the
/// pager was made is what it added: tables, buffers, stacks.
pub fn memory(task: &Task) -> Result<Measured> {
    let How::Pager(way, block) = task.how else {
        return Err(Failure::Unsupported(format!("{:?} has no pager", task.how)));
    };
    chill(task)?;
    let mut share = Share::new(&[]);
    let (resident_before, anonymous_before) = (status_bytes("VmRSS:"), status_bytes("RssAnon:"));
    let clock = Clock::start();
    let opened =
        pager::open(way, &task.path, task.budget, |options| options.range(..task.len).block_size(block))?;
    let reading = Reading { file_len: task.len, batch: 1, stop_at: None };
    reading.scan(&mut *opened.cursor()?, task.len, &mut share)?;
    let measured = tally(clock, &[share]);

    let added = status_bytes("RssAnon:").saturating_sub(anonymous_before) as f64;
    let beyond = status_bytes("VmRSS:").saturating_sub(resident_before) as f64 - task.budget as f64;
    let absent = (task.len - opened.map().resident_bytes().min(task.len)) / (block as u64).max(PAGE);
    let allowance = 0.004 * task.budget as f64 + 4.0 * absent as f64;
    let extra = [
        ("added, KiB", added / 1024.0),
        ("allowed, KiB", allowance / 1024.0),
        ("added of allowed", added / allowance),
        ("beyond the budget, %", beyond / task.budget as f64 * 100.0),
    ];
    let extra = extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Measured { extra, note: opened.note(), ..measured })
}
