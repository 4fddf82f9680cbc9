//! Getting a page that is resident, again and again.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use mapwright::Map;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::pages::PAGE;
use mapwright_measure::raw;
use mapwright_measure::ways::pager;

use super::{Clock, each, with_latencies};
use crate::task::{How, Measured, Task};

/// Gets that are timed together: a clock costs more than a get.
const RUN: u64 = 1000;

/// Each thread gets a page of its own, a region of the page tables apart, `count` times, and reads one byte of it.
pub fn hot(task: &Task, count: u64) -> Result<Measured> {
    match task.how {
        How::Mmap(_) => {
            let file =
                std::fs::File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
            let map = raw::map(&file).map_err(|error| Failure::io("mmap", &task.path, error))?;
            threads(task, count, |start| {
                let page = black_box(&map[..]).get(start as usize..(start + PAGE) as usize);
                Ok(page.map_or(0, |page| black_box(page)[0]))
            })
        }
        How::Pager(way, block) => {
            let opened = pager::open(way, &task.path, task.budget, |options| options.block_size(block))?;
            let map: &Map = opened.map();
            threads(task, count, |start| {
                let page = black_box(map).get(start..start + PAGE).map_err(pager::failed)?;
                Ok(black_box(&page)[0])
            })
        }
        _ => Err(Failure::Unsupported(format!("{:?} gets nothing", task.how))),
    }
}

/// What one thread did, between two moments.
struct Ran {
    from: Instant,
    to: Instant,
    checksum: u64,
    latencies: Histogram,
}

fn threads(task: &Task, count: u64, get: impl Fn(u64) -> Result<u8> + Sync) -> Result<Measured> {
    let apart = (2 << 20).min(task.len / task.threads as u64 / PAGE * PAGE);
    let ready = Barrier::new(task.threads);
    let one = |thread: u64| -> Result<Ran> {
        let start = thread * apart;
        let first = get(start);
        ready.wait();
        let (mut checksum, mut latencies) = (u64::from(first?), Histogram::default());
        let from = Instant::now();
        for _ in 0..count / RUN {
            let before = Instant::now();
            for _ in 0..RUN {
                checksum += u64::from(get(start)?);
            }
            latencies.record(Duration::from_nanos(each(before.elapsed(), RUN).round() as u64), RUN);
        }
        Ok(Ran { from, to: Instant::now(), checksum, latencies })
    };
    let one = &one;
    let clock = Clock::start();
    let ran: Vec<Ran> = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..task.threads as u64).map(|thread| scope.spawn(move || one(thread))).collect();
        let panicked = |_| Err(Failure::Message("a getting thread panicked".to_owned()));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect::<Result<_>>()
    })?;
    let measured = clock.stop(count / RUN * RUN * task.threads as u64, 0);
    let mut all = Histogram::default();
    ran.iter().for_each(|ran| all.merge(&ran.latencies));
    let (from, to) = (ran.iter().map(|ran| ran.from).min(), ran.iter().map(|ran| ran.to).max());
    // From the first get to the last: making threads is not what is measured.
    let seconds = to.zip(from).map_or(measured.seconds, |(to, from)| (to - from).as_secs_f64());
    let checksum = Some(ran.iter().map(|ran| ran.checksum).sum());
    Ok(with_latencies(Measured { checksum, seconds, ..measured }, &all))
}
