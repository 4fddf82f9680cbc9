//! Opening: a very large file, many small ones, many mapped at a time.

use std::path::{Path, PathBuf};

use mapwright::Map;
use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::pages::{self, PAGE};
use mapwright_measure::raw;
use mapwright_measure::ways::pager;
use mapwright_measure::ways::{Cursor, in_memory, page_range};
use mapwright_measure::work::{Reading, Share};

use super::{Clock, SEED, chill, tally, time, with_latencies};
use crate::how::memmap2_advice;
use crate::task::{How, Measured, Task};

/// Maps the file `count` times, touching nothing.
pub fn open(task: &Task, count: u64) -> Result<Measured> {
    let mut latencies = Histogram::default();
    let pager = pager::pager(task.budget)?;
    let clock = Clock::start();
    for _ in 0..count {
        time(&mut latencies, || match task.how {
            How::Mmap(_) => map_file(&task.path).map(drop),
            How::Pager(way, _) => way.options(&pager).open(&task.path).map(drop).map_err(pager::failed),
            _ => Err(Failure::Unsupported(format!("{:?} maps nothing", task.how))),
        })?;
    }
    Ok(with_latencies(clock.stop(count, 0), &latencies))
}

/// Opens, sums and closes every file of the folder, twice: the second time counts, when all are in the page cache.
pub fn small_files(task: &Task) -> Result<Measured> {
    let files = of(&task.path)?;
    let pager = pager::pager(task.budget)?;
    let one = |path: &PathBuf| -> Result<u64> {
        Ok(match task.how {
            How::FsRead => sum(&std::fs::read(path).map_err(|error| Failure::io("read", path, error))?),
            How::Mmap(_) => sum(&map_file(path)?),
            // As a program that maps files of any size would: no strategy is asked for.
            How::Pager(..) => {
                sum(&mapwright::MapOptions::new().pager(&pager).open(path).map_err(pager::failed)?)
            }
            _ => return Err(Failure::Unsupported(format!("{:?} opens no files", task.how))),
        })
    };
    files.iter().try_for_each(|path| one(path).map(drop))?;
    let mut latencies = Histogram::default();
    let mut checksum = 0u64;
    let clock = Clock::start();
    for path in &files {
        time(&mut latencies, || {
            checksum = checksum.wrapping_add(one(path)?);
            Ok(())
        })?;
    }
    let count = files.len() as u64;
    let measured = Measured { checksum: Some(checksum), ..clock.stop(count, count * task.len) };
    Ok(with_latencies(measured, &latencies))
}

/// Reads random pages of all files of the folder, each `task.len` bytes long and mapped by itself, all in one pager.
pub fn many_maps(task: &Task, count: u64) -> Result<Measured> {
    let files = of(&task.path)?;
    chill(task)?;
    let pages = pages::uniform(files.len() as u64 * task.len / PAGE, count, SEED);
    let mut share = Share::new(&pages);
    let reading = Reading { file_len: files.len() as u64 * task.len, batch: 1, stop_at: None };
    let clock = Clock::start();
    match task.how {
        How::Mmap(advice) => {
            let maps = files.iter().map(|path| {
                let map = map_file(path)?;
                let advised = memmap2_advice(advice).map_or(Ok(()), |advice| map.advise(advice));
                advised.map(|()| map).map_err(|error| Failure::io("madvise", path, error))
            });
            let maps = maps.collect::<Result<Vec<_>>>()?;
            reading.pick(&mut Joined { maps: &maps, len: task.len }, &mut share)?;
        }
        How::Pager(way, block) => {
            let pager = pager::pager(task.budget)?;
            let open = |path| way.options(&pager).block_size(block).open(path).map_err(pager::failed);
            let maps = files.iter().map(open).collect::<Result<Vec<Map>>>()?;
            reading.pick(&mut Joined { maps: &maps, len: task.len }, &mut share)?;
        }
        _ => return Err(Failure::Unsupported(format!("{:?} maps nothing", task.how))),
    }
    Ok(tally(clock, &[share]))
}

/// Maps that follow one another, each `len` bytes long.
struct Joined<'a, M> {
    maps: &'a [M],
    len: u64,
}

impl<M: std::ops::Deref<Target = [u8]>> Cursor for Joined<'_, M> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        Ok(pages.iter().fold(0, |total, page| {
            let (map, page) = (page * PAGE / self.len, page % (self.len / PAGE));
            total.wrapping_add(sum(&self.maps[map as usize][in_memory(page_range(page, self.len))]))
        }))
    }

    fn range(&mut self, _range: std::ops::Range<u64>) -> Result<u64> {
        Err(Failure::Unsupported("many maps are not scanned".to_owned()))
    }
}

fn map_file(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|error| Failure::io("open", path, error))?;
    raw::map(&file).map_err(|error| Failure::io("mmap", path, error))
}

/// The files of a folder, always in the same order.
pub fn of(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Failure::io("list", folder, error);
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut files = entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
