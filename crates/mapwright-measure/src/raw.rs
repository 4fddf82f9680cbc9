//! The only unsafe code of this crate: kernel mappings of files, and the two system calls that tell how much of a file
//! is in the page cache.
//!
//! A mapping of a file that others change is not a valid `&[u8]`. `compare` maps the file that its user names and says in
//! its help that the file must not change meanwhile; copies and samples are its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use memmap2::{Mmap, MmapMut};

/// The whole file, mapped for reading.
pub fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: nobody changes or truncates the file while the map lives: the condition under which `compare` runs (see the
    // header); the map lives within one round.
    unsafe { Mmap::map(file) }
}

/// The whole file, mapped shared for writing.
pub fn map_mut(file: &File) -> io::Result<MmapMut> {
    // SAFETY: as in `map`; only `compare`'s own copy is mapped for writing, and no other mapping of it exists.
    unsafe { MmapMut::map_mut(file) }
}

/// `struct cachestat_range`, include/uapi/linux/mman.h.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

/// `struct cachestat`, include/uapi/linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cache: u64,
    dirty: u64,
    write_back: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// `cachestat(2)` (Linux 6.5), the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// How many pages of the file the page cache holds; `None` where neither cachestat(2) nor mincore(2) answers.
pub fn cached_pages(file: &File) -> Option<u64> {
    cachestat(file).or_else(|| mincore(file))
}

fn cachestat(file: &File) -> Option<u64> {
    // A length of 0 means to the end of the file.
    let range = CachestatRange { offset: 0, len: 0 };
    let mut stat = Cachestat::default();
    // SAFETY: both pointers are to live values of the layouts that the call documents, it writes only `stat`, and the
    // descriptor is open for as long as `file` lives.
    let answer =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    (answer == 0).then_some(stat.cache)
}

fn mincore(file: &File) -> Option<u64> {
    let map = map(file).ok()?;
    let mut resident = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the address and length are those of a live mapping, and `resident` has one byte for each 4 KiB page of it
    // (more than needed where pages are larger).
    let answer = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), resident.as_mut_ptr()) };
    (answer == 0).then(|| resident.iter().filter(|page| **page & 1 == 1).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn both_calls_count_the_same_cached_pages() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 3 * 4096 + 1]).unwrap();
        assert_eq!(mincore(&file), Some(4));
        if let Some(pages) = cachestat(&file) {
            assert_eq!(pages, 4);
        }
    }
}
