//! Reading a cold file, and one that is all in memory.

use std::hint::black_box;
use std::time::Instant;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::{self, PAGE, Random};
use mapwright_measure::raw;
use mapwright_measure::ways::pager;
use mapwright_measure::work::{self, Reading, Share};

use super::{Clock, SEED, chill, each, tally};
use crate::how::{self, fio, ring};
use crate::task::{How, Measured, Task, Work};

/// Reads a cold file; opening it counts.
pub fn cold(task: &Task) -> Result<Measured> {
    chill(task)?;
    let (pages, scans) = match task.work {
        Work::Pages { count, zipf: false } => (pages::uniform(task.len / PAGE, count, SEED), false),
        Work::Pages { count, zipf: true } => (pages::zipf(task.len / PAGE, count, SEED), false),
        _ => (Vec::new(), true),
    };
    if task.how == How::Fio {
        return fio::read(task, pages.len() as u64);
    }
    let mut shares = work::shares(&pages, task.threads);
    let clock = Clock::start();
    if let How::Ring { drained } = task.how {
        ring::read(task, drained, &mut shares[0])?;
        return Ok(tally(clock, &shares));
    }
    let source = how::open(task)?;
    let reading = Reading { file_len: task.len, batch: task.batch, stop_at: None };
    if task.how == How::Rayon {
        // All at once: its threads divide the work themselves.
        shares[0].checksum = source.cursor()?.range(0..task.len)?;
        (shares[0].ops, shares[0].bytes) = (task.len / PAGE, task.len);
    } else if scans {
        reading.scan(&mut *source.cursor()?, task.len, &mut shares[0])?;
    } else {
        reading.pick_all(&*source, &mut shares)?;
    }
    let measured = tally(clock, &shares);
    let hits = |misses: u64| 1.0 - misses as f64 / measured.ops.max(1) as f64;
    Ok(Measured { hit_ratio: source.misses().filter(|_| !scans).map(hits), note: source.note(), ..measured })
}

/// Sums up, and loads words from, a file that was brought into memory before.
pub fn resident(task: &Task, passes: u64, loads: u64) -> Result<Measured> {
    match task.how {
        How::Mmap(advice) => {
            let file =
                std::fs::File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
            let map = raw::map(&file).map_err(|error| Failure::io("mmap", &task.path, error))?;
            how::memmap2_advice(advice)
                .map_or(Ok(()), |advice| map.advise(advice))
                .map_err(|error| Failure::io("advise", &task.path, error))?;
            measure(&map[..task.len as usize], passes, loads)
        }
        How::Pager(way, block) => {
            let adjust = |options: mapwright::MapOptions| options.range(..task.len).block_size(block);
            let opened = pager::open(way, &task.path, task.budget, adjust)?;
            measure(opened.map(), passes, loads)
        }
        _ => Err(Failure::Unsupported(format!("{:?} keeps no file in memory", task.how))),
    }
}

/// Reads all values of a database, and then some that count.
pub fn warm(task: &Task, count: u64) -> Result<Measured> {
    let source = how::open(task)?;
    let mut cursor = source.cursor()?;
    let reading = Reading { file_len: task.len, batch: task.batch, stop_at: None };
    let all: Vec<u64> = (0..task.len / PAGE).collect();
    reading.pick(&mut *cursor, &mut Share::new(&all))?;
    let pages = pages::uniform(task.len / PAGE, count, SEED);
    let mut share = Share::new(&pages);
    let clock = Clock::start();
    reading.pick(&mut *cursor, &mut share)?;
    Ok(tally(clock, &[share]))
}

fn measure(bytes: &[u8], passes: u64, loads: u64) -> Result<Measured> {
    // Brings in, and maps, whatever is not there yet.
    let mut checksum = sum(bytes);
    let mut share = Share::new(&[]);
    let clock = Clock::start();
    for _ in 0..passes {
        checksum = checksum.wrapping_add(sum(black_box(bytes)));
    }
    let measured = clock.stop(passes * bytes.len() as u64 / PAGE, passes * bytes.len() as u64);
    let mut random = Random::new(SEED);
    let words = bytes.len() as u64 / 8;
    let before = Instant::now();
    for _ in 0..loads {
        let at = random.below(words) as usize * 8;
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        share.checksum = share.checksum.wrapping_add(u64::from_le_bytes(word));
    }
    let load_ns = each(before.elapsed(), loads);
    let checksum = Some(checksum.wrapping_add(share.checksum));
    Ok(Measured { checksum, extra: [("load, ns".to_owned(), load_ns)].into(), ..measured })
}
