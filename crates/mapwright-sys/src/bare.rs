//! A kernel mapping as bare as it comes, touched byte by byte, to show what a touch does. Nothing guards it: a touch may
//! end the process by SIGSEGV or SIGBUS, as it would in any program.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{
    MapFlags, MprotectFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, mprotect, msync, munmap,
};

use crate::{PAGE_SIZE, check};

/// Whether stores are seen by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// MAP_SHARED: stores change the file.
    Shared,
    /// MAP_PRIVATE: stores change a copy of the page.
    Private,
}

/// A mapping that is touched a byte at a time, by atomic accesses: other threads and processes may do the same.
#[derive(Debug)]
pub struct BareMap {
    start: *mut u8,
    len: usize,
    writable: bool,
}

/// Page faults of a thread so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Without I/O.
    pub minor: u64,
    /// With I/O.
    pub major: u64,
}

impl BareMap {
    /// Maps the first `len` bytes of a file.
    ///
    /// # Errors
    /// What mmap(2) says: `EINVAL` for a length of 0, `ENODEV` for files that can't be mapped, `EACCES` where the descriptor
    /// does not allow it.
    pub fn of_file(fd: BorrowedFd<'_>, len: usize, sharing: Sharing, writable: bool) -> io::Result<Self> {
        let sharing = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection(writable), sharing, fd, 0) }?;
        Ok(Self { start: start.cast(), len, writable })
    }

    /// Maps `len` bytes of private memory.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        // SAFETY: as in `of_file`.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection(true), MapFlags::PRIVATE) }?;
        Ok(Self { start: start.cast(), len, writable: true })
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.start as usize
    }

    /// Loads a byte. Behind the end of the file it raises SIGBUS, in a guard page SIGSEGV.
    ///
    /// # Panics
    /// If `offset` is not inside.
    pub fn load(&self, offset: usize) -> u8 {
        self.byte(offset).load(Ordering::Relaxed)
    }

    /// Stores a byte. Signals as for [`load`](Self::load).
    ///
    /// # Panics
    /// If `offset` is not inside, or the mapping is for reading only.
    pub fn store(&self, offset: usize, value: u8) {
        assert!(self.writable, "a mapping for reading");
        self.byte(offset).store(value, Ordering::Relaxed);
    }

    /// Writes what was stored to the file, and waits until it is there: msync(2) with MS_SYNC.
    ///
    /// # Errors
    /// What msync(2) says: `EIO` if the file could not be written.
    pub fn flush(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own; msync changes no contents.
        unsafe { msync(self.start.cast(), self.len, MsyncFlags::SYNC) }?;
        Ok(())
    }

    /// Takes all access away from some pages: a touch there raises SIGSEGV from now on.
    ///
    /// # Errors
    /// What mprotect(2) says.
    ///
    /// # Panics
    /// If the pages are not all inside.
    pub fn guard(&mut self, pages: Range<usize>) -> io::Result<()> {
        let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
        assert!(bytes.start <= bytes.end && bytes.end <= self.len, "{pages:?} of {} bytes", self.len);
        // SAFETY: the range lies inside the mapping, so the result is inside the same allocation.
        let start = unsafe { self.start.add(bytes.start) };
        // SAFETY: the range is the mapping's own, and no reference into it lives: accesses make theirs for a moment only.
        unsafe { mprotect(start.cast(), bytes.len(), MprotectFlags::empty()) }?;
        Ok(())
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.len, "byte {offset} of {}", self.len);
        // SAFETY: inside the mapping, by the assertion.
        let byte = unsafe { self.start.add(offset) };
        // SAFETY: the byte is mapped while `self` lives, every access of this process to it is atomic, and one that the
        // kernel refuses raises a signal and gives no value.
        unsafe { AtomicU8::from_ptr(byte) }
    }
}

impl Drop for BareMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; references into it borrow from it and are gone.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// The page faults of the calling thread since it began: getrusage(2) with RUSAGE_THREAD.
///
/// # Errors
/// None that Linux knows of.
///
/// # Examples
/// ```
/// use mapwright_sys::bare::{BareMap, faults};
/// let map = BareMap::anonymous(4096)?;
/// let before = faults()?;
/// map.store(0, 1);
/// assert!(faults()?.minor > before.minor);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn faults() -> io::Result<Faults> {
    // SAFETY: all zeros is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live value of the type that the call fills in.
    check(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) }.into())?;
    Ok(Faults { minor: usage.ru_minflt as u64, major: usage.ru_majflt as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn shared_stores_reach_the_file_and_private_ones_do_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 2 * PAGE_SIZE]).unwrap();
        let map = |sharing| BareMap::of_file(file.as_fd(), 2 * PAGE_SIZE, sharing, true).unwrap();
        let (shared, private) = (map(Sharing::Shared), map(Sharing::Private));
        private.store(PAGE_SIZE, 2);
        shared.store(0, 3);
        shared.flush().unwrap();
        let mut bytes = [0; PAGE_SIZE + 1];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[PAGE_SIZE]), (3, 1));
        assert_eq!((private.load(PAGE_SIZE), private.load(0), shared.load(PAGE_SIZE)), (2, 3, 1));
    }

    #[test]
    fn a_guard_is_a_mapping_without_access() {
        let mut map = BareMap::anonymous(3 * PAGE_SIZE).unwrap();
        map.guard(1..2).unwrap();
        map.store(0, 1);
        map.store(2 * PAGE_SIZE, 1);
        let guard = format!("{:x}-{:x} ---p", map.address() + PAGE_SIZE, map.address() + 2 * PAGE_SIZE);
        assert!(std::fs::read_to_string("/proc/self/maps").unwrap().contains(&guard), "{guard}");
    }

    #[test]
    #[should_panic(expected = "of 4096")]
    fn what_is_outside_is_refused() {
        BareMap::anonymous(PAGE_SIZE).unwrap().load(PAGE_SIZE);
    }
}
