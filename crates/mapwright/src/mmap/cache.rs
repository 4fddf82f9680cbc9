//! The kernel's page cache of one file, without a mapping that is touched: what is in it, what of it is dirty, and bringing it
//! back as it was.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use mapwright_sys::mmap::Advice;
use mapwright_sys::page_cache::cachestat;
use rustix::fs::fstat;
use rustix::io::Errno;

use super::mapping::MmapRawRead;
use super::options::MmapOptions;
use super::residency::Residency;
use crate::error::{Error, Result};

const PAGE: u64 = mapwright_sys::PAGE_SIZE as u64;
/// Bytes that are mapped at once to be looked at: bounds the memory for mincore's answer to 256 KiB.
const WINDOW: u64 = 1 << 30;

pub use mapwright_sys::page_cache::CacheStat;

/// Counts the pages of a range of a file that the kernel has in memory, by state (cachestat(2)).
///
/// ```
/// # let path = std::env::temp_dir().join(format!("mapwright-stat-{}", std::process::id()));
/// std::fs::write(&path, [0; 40_960])?;
/// let file = std::fs::File::open(&path)?;
/// match mapwright::mmap::cache_stat(&file, 0..40_960) {
///     Ok(stat) => assert_eq!(stat.cached, 10), // pages
///     Err(error) => println!("{error}"),       // before Linux 6.5
/// }
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// [`Unsupported`](Error::Unsupported) before Linux 6.5 and on file systems without a page cache; [`Io`](Error::Io) with
/// `EPERM` for files that the caller neither owns nor may write.
pub fn cache_stat(file: impl AsFd, range: Range<u64>) -> Result<CacheStat> {
    stat(file.as_fd(), range)
}

fn stat(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<CacheStat> {
    cachestat(fd, range.clone()).map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => Error::unsupported(
            "cachestat(2)",
            "Linux 6.5 or later has it; cached_ranges needs mincore(2) only",
            error,
        ),
        Some(Errno::OPNOTSUPP) => {
            Error::unsupported("cachestat(2)", "the file system keeps no page cache", error)
        }
        _ => Error::io("cachestat", "a file", range.start, range.end.saturating_sub(range.start), error),
    })
}

/// The runs of pages of a range of a file that are dirty: written, and not yet on the device. Found by halving, in a number of
/// system calls that grows with the number of runs. The kernel may keep one mark for several pages that lie together (a large
/// folio): then all of them are dirty as soon as one is.
///
/// # Errors
/// As for [`cache_stat`].
pub fn dirty_ranges(file: impl AsFd, range: Range<u64>) -> Result<Residency> {
    let fd = file.as_fd();
    let end = file_len(fd)?.min(range.end);
    let pages = range.start / PAGE..end.div_ceil(PAGE);
    let mut runs: Vec<Range<u64>> = Vec::new();
    // Depth first, so that runs come in order.
    let mut parts = vec![pages.clone()];
    while let Some(part) = parts.pop().filter(|_| !pages.is_empty()) {
        let dirty = stat(fd, part.start * PAGE..part.end * PAGE)?.dirty;
        let len = part.end - part.start;
        if dirty >= len {
            match runs.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => runs.push(part),
            }
        } else if dirty > 0 && len > 1 {
            let middle = part.start + len / 2;
            parts.extend([middle..part.end, part.start..middle]);
        }
    }
    Ok(Residency::from_runs(end.div_ceil(PAGE), runs))
}

/// Which pages of a file are in the kernel's page cache: a dump of its residency, which [`Residency::restore`] brings back.
/// Page numbers are the file's.
///
/// # Errors
/// As for [`MmapOptions::map_raw_read_only`] and [`residency`](super::Mapping::residency).
pub fn cached_ranges(file: impl AsFd) -> Result<Residency> {
    let fd = file.as_fd();
    let len = file_len(fd)?;
    let mut runs: Vec<Range<u64>> = Vec::new();
    for start in (0..len).step_by(WINDOW as usize) {
        let window = MmapOptions::new().offset(start).len(WINDOW.min(len - start) as usize);
        let map: MmapRawRead = window.map_raw_read_only(fd)?;
        let first = start / PAGE;
        for run in map.residency(..)?.runs() {
            match runs.last_mut() {
                Some(last) if last.end == run.start + first => last.end = run.end + first,
                _ => runs.push(run.start + first..run.end + first),
            }
        }
    }
    Ok(Residency::from_runs(len.div_ceil(PAGE), runs))
}

/// What [`Residency::restore`] did, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Read, or found in memory.
    pub pages: u64,
    /// Past the end of the file, which is shorter than it was.
    pub skipped: u64,
}

impl Residency {
    /// Reads the pages into the kernel's page cache that were there when this was taken, and waits for them. What the file has lost
    /// since is skipped. Nothing is evicted.
    ///
    /// # Errors
    /// [`Io`](Error::Io) if the file can't be read: some pages have been read then. As for
    /// [`MmapOptions::map_raw_read_only`] otherwise.
    pub fn restore(&self, file: impl AsFd) -> Result<Restored> {
        let fd = file.as_fd();
        let end = file_len(fd)?.div_ceil(PAGE);
        let mut restored = Restored { pages: 0, skipped: 0 };
        for run in self.runs() {
            let there = run.start.min(end)..run.end.min(end);
            restored.skipped += (run.end - run.start) - (there.end - there.start);
            let (mut at, end) = (there.start * PAGE, there.end * PAGE);
            while at < end {
                let len = WINDOW.min(end - at);
                let map = MmapOptions::new().offset(at).len(len as usize).map_raw_read_only(fd)?;
                read_in(&map)?;
                restored.pages += len / PAGE;
                at += len;
            }
        }
        Ok(restored)
    }
}

/// Has the pages read: in order, so that read-ahead works, and with errors.
fn read_in(map: &MmapRawRead) -> Result<()> {
    match map.advise(Advice::PopulateRead) {
        // Before Linux 5.14: a byte of each page, copied.
        Err(Error::Unsupported { .. }) => {
            (0..map.len()).step_by(PAGE as usize).try_for_each(|at| map.read_at(at, &mut [0]))
        }
        read => read,
    }
}

/// A file's length now, a block device's size.
pub(super) fn file_len(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = fstat(fd).map_err(|error| Error::io("stat", "a file", 0, 0, error.into()))?;
    // To a file or another device the number of the ioctl may mean something else.
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::BlockDevice {
        return mapwright_sys::file::block_device_len(fd)
            .map_err(|error| Error::io("ask for the size of", "a block device", 0, 0, error));
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}
