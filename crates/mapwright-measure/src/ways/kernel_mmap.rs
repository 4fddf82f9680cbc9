//! The kernel's own mmap(2), with and without advice.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, MmapMut};

use super::{Cursor, Source, Updater, in_memory, increment_word, page_range};
use crate::checksum::sum;
use crate::failure::{Failure, Result};
use crate::{child, raw};

struct Mapped(Mmap);

/// Maps the file for reading, and tells the kernel the pattern.
pub fn open(path: &Path, advice: Option<Advice>) -> Result<Box<dyn Source>> {
    let failed = |what| move |error| Failure::io(what, path, error);
    let file = File::open(path).map_err(failed("open"))?;
    let map = raw::map(&file).map_err(failed("mmap"))?;
    advice.map_or(Ok(()), |advice| map.advise(advice)).map_err(failed("madvise"))?;
    Ok(Box::new(Mapped(map)))
}

impl Source for Mapped {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(Slice(&self.0)))
    }

    fn misses(&self) -> Option<u64> {
        child::major_faults("/proc/self/stat")
    }
}

/// A cursor over bytes that are simply there; mapwright's slices use it too.
pub struct Slice<'a>(pub &'a [u8]);

impl Cursor for Slice<'_> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        let len = self.0.len() as u64;
        Ok(pages
            .iter()
            .fold(0, |total, page| total.wrapping_add(sum(&self.0[in_memory(page_range(*page, len))]))))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        Ok(sum(&self.0[in_memory(range)]))
    }
}

struct MappedMut {
    map: MmapMut,
    path: PathBuf,
}

/// Maps the file shared for writing, and tells the kernel the pattern.
pub fn open_mut(path: &Path, advice: Option<Advice>) -> Result<Box<dyn Updater>> {
    let failed = |what| move |error| Failure::io(what, path, error);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open for writing"))?;
    let map = raw::map_mut(&file).map_err(failed("mmap"))?;
    advice.map_or(Ok(()), |advice| map.advise(advice)).map_err(failed("madvise"))?;
    Ok(Box::new(MappedMut { map, path: path.to_owned() }))
}

impl Updater for MappedMut {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        for offset in offsets {
            increment_word(&mut self.map, *offset);
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        self.map.flush().map_err(|error| Failure::io("msync", &self.path, error))
    }

    fn warm_up(&mut self) -> Result<()> {
        std::hint::black_box(sum(&self.map));
        Ok(())
    }
}
