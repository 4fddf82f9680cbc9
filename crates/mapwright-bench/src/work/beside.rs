//! Zipf-distributed reads of one half of a file, by themselves or beside a thread that scans the other half.
//!
//! Misses are counted where the kernel attributes them to the thread that reads: its major faults for the kernel's mmap,
//! and for mapwright, whose misses are O_DIRECT reads in the thread that faults or calls, the bytes it had the disk read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use mapwright_measure::child::{major_faults, thread_read_bytes};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::{self, PAGE};
use mapwright_measure::raw;
use mapwright_measure::ways::kernel_mmap::Slice;
use mapwright_measure::ways::pager;
use mapwright_measure::ways::pager::Way;
use mapwright_measure::ways::{Cursor, Source};
use mapwright_measure::work::{Reading, STEP, Share};

use super::{Clock, SEED, chill, tally};
use crate::task::{How, Measured, Task};

/// Reads `count` pages to warm up and `count` pages that count.
pub fn zipf(task: &Task, count: u64, beside_scan: bool) -> Result<Measured> {
    chill(task)?;
    match task.how {
        How::Mmap(_) => {
            let failed = |what| move |error| Failure::io(what, &task.path, error);
            let file = std::fs::File::open(&task.path).map_err(failed("open"))?;
            // Two maps, so that each pattern has the advice that is best for it.
            let (picked, scanned) =
                (raw::map(&file).map_err(failed("mmap"))?, raw::map(&file).map_err(failed("mmap"))?);
            picked.advise(memmap2::Advice::Random).map_err(failed("madvise"))?;
            scanned.advise(memmap2::Advice::Sequential).map_err(failed("madvise"))?;
            let misses = || major_faults("/proc/thread-self/stat");
            run(task, count, beside_scan, &mut Slice(&picked), || Box::new(Slice(&scanned)), misses)
        }
        How::Pager(Way::InThread | Way::Explicit, block) => {
            let How::Pager(way, _) = task.how else { unreachable!("matched above") };
            let adjust = |options: mapwright::MapOptions| options.range(..task.len).block_size(block);
            let opened = pager::open(way, &task.path, task.budget, adjust)?;
            let misses = || thread_read_bytes().map(|bytes| bytes / PAGE);
            let scanner = || Box::new(Slice(opened.map())) as Box<dyn Cursor>;
            run(task, count, beside_scan, &mut *opened.cursor()?, scanner, misses)
        }
        _ => Err(Failure::Unsupported(format!("misses of one thread through {:?} cannot be told", task.how))),
    }
}

fn run<'a>(
    task: &Task,
    count: u64,
    beside_scan: bool,
    picker: &mut dyn Cursor,
    scanner: impl Fn() -> Box<dyn Cursor + 'a> + Sync,
    misses: impl Fn() -> Option<u64>,
) -> Result<Measured> {
    let half = task.len / 2;
    let list = pages::zipf(half / PAGE, 2 * count, SEED);
    let (warm_up, counted) = list.split_at(count as usize);
    let reading = Reading { file_len: half, batch: task.batch, stop_at: None };
    let (is_over, scanned) = (AtomicBool::new(!beside_scan), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let scan = scope.spawn(|| -> Result<()> {
            let mut cursor = scanner();
            while !is_over.load(Ordering::Relaxed) {
                for start in (half..task.len).step_by(STEP as usize) {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let step = start..(start + STEP).min(task.len);
                    scanned.fetch_add(step.end - step.start, Ordering::Relaxed);
                    std::hint::black_box(cursor.range(step)?);
                }
            }
            Ok(())
        });
        let picked = (|| {
            reading.pick(picker, &mut Share::new(warm_up))?;
            let scanned_before = scanned.load(Ordering::Relaxed);
            let misses_before = misses();
            let mut share = Share::new(counted);
            let (clock, started) = (Clock::start(), Instant::now());
            reading.pick(picker, &mut share)?;
            let seconds = started.elapsed().as_secs_f64();
            let missed = misses().zip(misses_before).map(|(now, before)| now - before);
            let scanned_mib = (scanned.load(Ordering::Relaxed) - scanned_before) as f64 / f64::from(1 << 20);
            let extra = if beside_scan {
                [("scan, MiB/s".to_owned(), scanned_mib / seconds)].into()
            } else {
                Default::default()
            };
            let hit_ratio = missed.map(|missed| 1.0 - missed as f64 / count as f64);
            Ok(Measured { hit_ratio, extra, ..tally(clock, &[share]) })
        })();
        is_over.store(true, Ordering::Relaxed);
        scan.join().unwrap_or_else(|_| Err(Failure::Message("the scanning thread panicked".to_owned())))?;
        picked
    })
}
