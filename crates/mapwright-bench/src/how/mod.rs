//! The contenders, opened.

pub mod fio;
pub mod peers;
pub mod ring;

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::system_calls::{self, Call};
use mapwright_measure::ways::{Cursor, Source, in_memory, kernel_mmap, page_range, pager};
use mapwright_measure::{child, raw};
use memmap2::Mmap;
use mmap_io::{MemoryMappedFile, MmapAdvice};
use rayon::prelude::*;

use crate::task::{Advice, How, Task, Work};

/// Opens the file of the task for reading.
pub fn open(task: &Task) -> Result<Box<dyn Source>> {
    Ok(match task.how {
        How::Mmap(Advice::PopulateRead) => Box::new(Populated::open(task)?),
        How::Mmap(advice) => kernel_mmap::open(&task.path, memmap2_advice(advice))?,
        How::MmapIo => Box::new(MmapIo::open(task)?),
        How::Rayon => Box::new(Rayon::open(&task.path)?),
        How::Read(buffer) => system_calls::open(Call::Read, &task.path, task.len, buffer)?,
        How::Direct(buffer) => system_calls::open(Call::Direct, &task.path, task.len, buffer)?,
        How::Pager(way, block) => Box::new(pager::open(way, &task.path, task.budget, |options| {
            options.range(..task.len).block_size(block)
        })?),
        How::Peer(peer) => peers::open(peer, task)?,
        How::MappedPeer(peer) => peers::open_mapped(peer, task)?,
        How::FsRead
        | How::Ring { .. }
        | How::Fio
        | How::Atomic(_)
        | How::Journal
        | How::Eventfd
        | How::Futex
        | How::Signal
        | How::Program(..) => {
            return Err(Failure::Unsupported(format!("{:?} opens no file for {:?}", task.how, task.work)));
        }
    })
}

/// The advice that memmap2 gives for all of a file.
pub fn memmap2_advice(advice: Advice) -> Option<memmap2::Advice> {
    match advice {
        Advice::None => None,
        Advice::Random => Some(memmap2::Advice::Random),
        Advice::Sequential => Some(memmap2::Advice::Sequential),
        Advice::WillNeed => Some(memmap2::Advice::WillNeed),
        Advice::PopulateRead => Some(memmap2::Advice::PopulateRead),
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Failure::io("open", path, error))?;
    raw::map(&file).map_err(|error| Failure::io("mmap", path, error))
}

/// memmap2, with a window populated whenever the reader enters it: all of the file does not fit the limit.
struct Populated {
    map: Mmap,
    window: u64,
    len: u64,
}

impl Populated {
    fn open(task: &Task) -> Result<Self> {
        let window = (task.budget / 8).next_power_of_two().clamp(1 << 20, 32 << 20);
        Ok(Self { map: map(&task.path)?, window, len: task.len })
    }
}

impl Source for Populated {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(Windows { opened: self, populated: 0 }))
    }
}

struct Windows<'a> {
    opened: &'a Populated,
    populated: u64,
}

impl Cursor for Windows<'_> {
    fn pages(&mut self, _pages: &[u64]) -> Result<u64> {
        Err(Failure::Unsupported("windows are populated for scans only".to_owned()))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        while self.populated < range.end {
            let window = self.populated..(self.populated + self.opened.window).min(self.opened.len);
            let (start, len) = (window.start as usize, (window.end - window.start) as usize);
            (self.opened.map.advise_range(memmap2::Advice::PopulateRead, start, len))
                .map_err(|error| Failure::Unsupported(format!("MADV_POPULATE_READ: {error}")))?;
            self.populated = window.end;
        }
        Ok(sum(&self.opened.map[in_memory(range)]))
    }
}

struct MmapIo {
    file: MemoryMappedFile,
    len: u64,
}

impl MmapIo {
    fn open(task: &Task) -> Result<Self> {
        let failed = |error| Failure::Message(format!("mmap-io: {error}"));
        let file = MemoryMappedFile::open_ro(&task.path).map_err(failed)?;
        let advice = match task.work {
            Work::Scan => MmapAdvice::Sequential,
            _ => MmapAdvice::Random,
        };
        file.advise(0, file.len(), advice).map_err(failed)?;
        Ok(Self { file, len: task.len })
    }
}

impl Source for MmapIo {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(self))
    }

    fn misses(&self) -> Option<u64> {
        child::major_faults("/proc/self/stat")
    }
}

impl Cursor for &MmapIo {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        pages
            .iter()
            .try_fold(0u64, |total, page| Ok(total.wrapping_add(self.range(page_range(*page, self.len))?)))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        let bytes = self.file.as_slice_bytes(range.start, range.end - range.start);
        bytes.map(sum).map_err(|error| Failure::Message(format!("mmap-io: {error}")))
    }
}

struct Rayon(Mmap);

impl Rayon {
    fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        map.advise(memmap2::Advice::Sequential).map_err(|error| Failure::io("madvise", path, error))?;
        Ok(Self(map))
    }
}

impl Source for Rayon {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(self))
    }
}

impl Cursor for &Rayon {
    fn pages(&mut self, _pages: &[u64]) -> Result<u64> {
        Err(Failure::Unsupported("rayon is here for scans only".to_owned()))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        let bytes = &self.0[in_memory(range)];
        Ok(bytes.par_chunks(1 << 20).map(sum).reduce(|| 0, u64::wrapping_add))
    }
}
