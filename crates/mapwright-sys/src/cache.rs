//! cachestat(2): what the kernel's page cache holds of a range of a file (Linux 6.5).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::check;

/// The same number on every architecture (arch/*/syscall tables, Linux 6.5); libc has no name for it yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of a range of a file, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CacheStat {
    /// In memory.
    pub cached: u64,
    /// In memory and not written yet.
    pub dirty: u64,
    /// Being written.
    pub writeback: u64,
    /// Evicted, as far as the kernel remembers.
    pub evicted: u64,
    /// Evicted so recently that they would be taken for a part of the working set.
    pub recently_evicted: u64,
}

#[repr(C)]
struct CacheStatRange {
    offset: u64,
    len: u64,
}

/// Counts the pages of a range of bytes.
///
/// # Errors
/// `ENOSYS` before Linux 6.5, `EOPNOTSUPP` for hugetlbfs, `EPERM` for files that the caller could not write (Linux 6.16).
pub fn cachestat(fd: BorrowedFd<'_>, range: Range<u64>) -> io::Result<CacheStat> {
    if range.is_empty() {
        return Ok(CacheStat::default()); // a length of 0 would mean: to the end
    }
    let range = CacheStatRange { offset: range.start, len: range.end - range.start };
    let mut stat = CacheStat::default();
    // SAFETY: both structures have the kernel's layout and live across the call.
    let looked = unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    check(looked)?;
    Ok(stat)
}
