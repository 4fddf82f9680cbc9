//! What the kernel's page cache holds of a file, and keeping it there: cachestat(2), mincore(2) and mlock(2).
//!
//! All of it works on a descriptor and a range; which files, and what is said about them, is left to callers. The mappings
//! made here are never read or written: nothing here can fault, whatever happens to the file meanwhile.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

use crate::{PAGE_SIZE, check};

/// `cachestat(2)` (Linux 6.5), the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`, include/uapi/linux/mman.h.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

/// `struct cachestat`, include/uapi/linux/mman.h: counts of pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStat {
    /// In the page cache.
    pub cached: u64,
    /// Of these, changed and not yet written to the file system.
    pub dirty: u64,
    /// Of these, being written now.
    pub writeback: u64,
    /// Were in the page cache once and are not now, as far as the kernel remembers.
    pub evicted: u64,
    /// Of those, evicted so recently that reading them again would show memory pressure.
    pub recently_evicted: u64,
}

impl std::ops::AddAssign for CacheStat {
    fn add_assign(&mut self, other: Self) {
        self.cached += other.cached;
        self.dirty += other.dirty;
        self.writeback += other.writeback;
        self.evicted += other.evicted;
        self.recently_evicted += other.recently_evicted;
    }
}

/// Asks cachestat(2) about the pages that `bytes` touches. Nothing is said of an empty range.
///
/// # Errors
/// `ENOSYS` before Linux 6.5, `EOPNOTSUPP` on hugetlbfs, `EPERM` where the caller neither owns the file nor may write it
/// (Linux 6.14).
///
/// # Examples
/// ```
/// use std::os::fd::AsFd;
/// let program = std::fs::File::open("/proc/self/exe")?;
/// match mapwright_sys::page_cache::cachestat(program.as_fd(), 0..4096) {
///     Ok(stat) => assert_eq!(stat.cached, 1), // the page that is being run
///     Err(error) => println!("cachestat(2) does not answer here: {error}"),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn cachestat(fd: BorrowedFd<'_>, bytes: Range<u64>) -> io::Result<CacheStat> {
    let mut stat = CacheStat::default();
    if bytes.start >= bytes.end {
        return Ok(stat); // a length of 0 would mean up to the end of the file
    }
    let range = CachestatRange { offset: bytes.start, len: bytes.end - bytes.start };
    // SAFETY: both pointers are to live values of the layouts that the call documents; it writes only `stat`.
    check(unsafe { libc::syscall(SYS_CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut stat, 0) })?;
    Ok(stat)
}

/// Asks mincore(2) which pages from `first_page` on are in the page cache: bit 0 of each byte of `resident`. Pages past the
/// end of the file are not.
///
/// For a file that the caller neither owns nor may write, the kernel calls every page resident (since Linux 5.2).
///
/// # Errors
/// What mmap(2) and mincore(2) say: `ENODEV` for files that can't be mapped, `ENOMEM`.
pub fn mincore(fd: BorrowedFd<'_>, first_page: u64, resident: &mut [u8]) -> io::Result<()> {
    if resident.is_empty() {
        return Ok(());
    }
    let window = Untouched::map(fd, first_page, resident.len() as u64)?;
    loop {
        // SAFETY: the range is the mapping's own, and `resident` has a byte for each of its pages.
        let answer = unsafe { libc::mincore(window.start, window.len, resident.as_mut_ptr()) };
        match check(answer.into()) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Pages of a file that are read into the page cache and stay there until this is dropped.
///
/// The lock belongs to the process: a child after fork(2) has none of it.
#[derive(Debug)]
pub struct LockedPages(#[allow(dead_code, reason = "holds the mapping")] Untouched);

impl LockedPages {
    /// Locks `count` pages from `first_page` on; reads what is absent. A range that reaches past the end of the file fails
    /// with `ENOMEM`.
    ///
    /// # Errors
    /// What mmap(2) and mlock(2) say: `ENOMEM` or `EAGAIN` past RLIMIT_MEMLOCK, `EPERM` where that limit is 0.
    ///
    /// # Examples
    /// ```
    /// use std::os::fd::AsFd;
    /// let program = std::fs::File::open("/proc/self/exe")?;
    /// let locked = mapwright_sys::page_cache::LockedPages::new(program.as_fd(), 0, 1)?;
    /// drop(locked);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(fd: BorrowedFd<'_>, first_page: u64, count: u64) -> io::Result<Self> {
        let pages = Untouched::map(fd, first_page, count)?;
        // SAFETY: the range is the mapping's own; locking changes no contents.
        unsafe { mlock(pages.start, pages.len) }?;
        Ok(Self(pages))
    }
}

/// A mapping of a file that nobody loads from or stores to.
#[derive(Debug)]
struct Untouched {
    start: *mut libc::c_void,
    len: usize,
}

impl Untouched {
    fn map(fd: BorrowedFd<'_>, first_page: u64, pages: u64) -> io::Result<Self> {
        let bytes = |pages: u64| pages.checked_mul(PAGE_SIZE as u64).ok_or(io::ErrorKind::InvalidInput);
        let (offset, len) = (bytes(first_page)?, bytes(pages)? as usize);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, fd, offset) }?;
        Ok(Self { start, len })
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody else knows its address.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

// SAFETY: the address is only handed to system calls on the whole mapping, from whichever thread owns the value.
unsafe impl Send for Untouched {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn file(bytes: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        file
    }

    #[test]
    fn both_calls_count_the_same_pages() {
        let file = file(3 * PAGE_SIZE + 1);
        let mut resident = [0; 6];
        mincore(file.as_fd(), 0, &mut resident).unwrap();
        assert_eq!(resident.map(|page| page & 1), [1, 1, 1, 1, 0, 0]);
        match cachestat(file.as_fd(), 0..6 * PAGE_SIZE as u64) {
            Ok(stat) => assert_eq!(stat.cached, 4),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}"),
        }
    }

    #[test]
    fn an_empty_range_is_not_the_whole_file() {
        let file = file(PAGE_SIZE);
        if let Ok(stat) = cachestat(file.as_fd(), 5..5) {
            assert_eq!(stat, CacheStat::default());
        }
        mincore(file.as_fd(), 0, &mut []).unwrap();
    }

    #[test]
    fn locked_pages_are_locked_and_no_others() {
        /// Whether the mapping that begins there has the flag `lo`; none where no mapping does.
        fn is_locked(start: usize) -> Option<bool> {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let at = smaps.find(&format!("\n{start:x}-"))?;
            let flags = smaps[at..].lines().find(|line| line.starts_with("VmFlags:"))?;
            Some(flags.split_whitespace().any(|flag| flag == "lo"))
        }
        let file = file(16 * PAGE_SIZE);
        let locked = LockedPages::new(file.as_fd(), 4, 8).unwrap();
        assert_eq!(locked.0.len, 8 * PAGE_SIZE);
        assert_eq!(is_locked(locked.0.start as usize), Some(true));
        let untouched = Untouched::map(file.as_fd(), 0, 2).unwrap();
        assert_ne!(is_locked(untouched.start as usize), Some(true));
    }
}
