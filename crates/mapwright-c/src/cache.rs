//! The kernel's page cache of a file.

use std::ffi::c_int;
use std::os::fd::AsFd;

use mapwright::mmap::{self, MmapOptions};

use crate::error::{number, status};
use crate::map::{give_residency, range};
use crate::pointers::{Output, Record, duplicate};

/// Pages of 4096 bytes of a file, by their state in the kernel's page cache. The caller sets size to sizeof(mapwright_cache_stats) before the
/// call: see mapwright_stats.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CacheStat {
    /// Bytes of this structure: set by the caller, and then what was written.
    pub size: usize,
    /// In the page cache.
    pub cached: u64,
    /// Of these, changed and not yet written.
    pub dirty: u64,
    /// Of these, being written now.
    pub writeback: u64,
    /// Were in the page cache once and are not now, as far as the kernel remembers.
    pub evicted: u64,
    /// Of those, evicted recently.
    pub recently_evicted: u64,
}

/// Counts the pages of a range of a file that the kernel has in memory, by state (cachestat(2)). fd: an open file, which stays the
/// caller's.
///
/// Returns 0; -EOPNOTSUPP before Linux 6.5; -EPERM for files that the caller neither owns nor may write; -EINVAL for a size that is
/// none; -ERANGE, -EBADF, -EFAULT. Any thread may call it, and children of fork(2).
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_cache_stat(
    fd: c_int,
    offset: u64,
    length: u64,
    mut out: Record<CacheStat>,
) -> c_int {
    status(|| {
        let stat = mmap::cache_stat(duplicate(fd)?, range(offset, length)?)?;
        out.fill(CacheStat {
            size: size_of::<CacheStat>(),
            cached: stat.cached,
            dirty: stat.dirty,
            writeback: stat.writeback,
            evicted: stat.evicted,
            recently_evicted: stat.recently_evicted,
        })
    })
}

/// Which pages of a file the kernel has in memory, by mincore(2): for a file that the caller neither owns nor may write, the kernel says all.
///
/// Pages are those of the file, from the one that holds the byte at offset; past the end none is. into: room for size bytes; each page gets 1 or 0.
///
/// Returns the number of pages; -EINVAL if there are more than size; -ENODEV for what can't be mapped; -ERANGE, -EBADF, -EFAULT.
/// Any thread may call it, and children of fork(2).
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_cache_residency(
    fd: c_int,
    offset: u64,
    length: usize,
    mut into: Output,
    size: usize,
) -> i64 {
    number(|| {
        range(offset, length as u64)?;
        let file = duplicate(fd)?;
        let map = MmapOptions::new().offset(offset).len(length).map_raw_read_only(file.as_fd())?;
        give_residency(&map.residency(..)?, into.bytes(size)?)
    })
}
