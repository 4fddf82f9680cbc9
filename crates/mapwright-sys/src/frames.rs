//! Shared frames: a memfd whose offset is the file's offset, and the views that show it.
//!
//! Every page is absent (a hole), stored (in the memfd), or stored and mapped. All facts used here are measured by the
//! probes in `tests/kernel_facts.rs`. A write through a view is tracked by WP_ASYNC; unmapping a clean page leaves a
//! write-protect marker in the page table and unmapping a written one leaves nothing, so [`SharedFrames::written`] tells
//! them apart afterwards without a race.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use crate::mapping::Reservation;
use crate::pagemap::Pagemap;
use crate::uffd::Uffd;
use crate::window::{AddressRange, Claims};
use crate::zap::zap;

/// The frames of one file.
pub struct SharedFrames {
    memfd: OwnedFd,
    plain: Reservation,
    checked: OnceLock<Reservation>,
    making_checked: std::sync::Mutex<()>,
    uffd: Arc<Uffd>,
    pagemap: Arc<Pagemap>,
    claims: Claims,
    writable: bool,
}

impl SharedFrames {
    /// Frames for a file of up to `capacity` bytes, a multiple of the page size, faults going to `uffd`.
    ///
    /// # Errors
    /// `ENOMEM`/`EFBIG` when address space is short, `EMFILE`, or what registering the range meets.
    pub fn new(capacity: u64, writable: bool, uffd: Arc<Uffd>, pagemap: Arc<Pagemap>) -> io::Result<Self> {
        let memfd = memfd_create("mapwright", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memfd, capacity)?;
        // Whoever it may be lent to can't cut it: past its end a mapping raises SIGBUS without asking anybody.
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let plain = make_view(&memfd, capacity, writable, &uffd)?;
        let claims = Claims::new(writable);
        let making_checked = std::sync::Mutex::new(());
        Ok(Self { memfd, plain, checked: OnceLock::new(), making_checked, uffd, pagemap, claims, writable })
    }

    /// Address of offset 0 in the plain or the checked view; makes the checked one when it is first asked for.
    ///
    /// # Errors
    /// What making the checked view meets.
    pub fn address(&self, checked: bool) -> io::Result<usize> {
        Ok(self.view(checked)?.start())
    }

    /// A descriptor of the memory, for writing if the frames are, to be handed to another process. Who runs as the same user can
    /// open one that is for reading for writing all the same.
    ///
    /// # Errors
    /// Whatever opening it through `/proc` says.
    pub fn lend(&self) -> io::Result<OwnedFd> {
        // Opened anew: the flags of a duplicate would be shared, and O_APPEND makes pwrite(2) ignore where it is to write.
        let access = if self.writable {
            rustix::fs::OFlags::RDWR
        } else {
            rustix::fs::fchmod(&self.memfd, rustix::fs::Mode::RUSR)?;
            rustix::fs::OFlags::RDONLY
        };
        let link = format!("/proc/self/fd/{}", self.memfd.as_raw_fd());
        let flags = access | rustix::fs::OFlags::CLOEXEC;
        Ok(rustix::fs::open(link, flags, rustix::fs::Mode::empty())?)
    }

    fn view(&self, checked: bool) -> io::Result<&Reservation> {
        if !checked {
            return Ok(&self.plain);
        }
        if let Some(view) = self.checked.get() {
            return Ok(view);
        }
        let _one = self.making_checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.checked.get().is_none() {
            let view = make_view(&self.memfd, self.plain.len() as u64, self.writable, &self.uffd)?;
            let _ = self.checked.set(view);
        }
        Ok(self.checked.get().expect("set above"))
    }

    fn views(&self) -> impl Iterator<Item = &Reservation> {
        std::iter::once(&self.plain).chain(self.checked.get())
    }

    /// Makes `bytes` the contents from `at` on.
    ///
    /// # Errors
    /// `ENOSPC`/`ENOMEM` when memory is short.
    pub fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.memfd, &bytes[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes `bytes` the contents of absent pages from `at` on and shows them in the plain view, clean and (if writable)
    /// write-protected, in one step. Cheaper than [`store`](Self::store) and [`map`](Self::map): 2.5 µs a single page
    /// against 3.3.
    ///
    /// # Errors
    /// `EEXIST` if a page is not absent; `ENOMEM` when memory is short. Pages may then be stored in part.
    pub fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let to = self.plain.addresses(&(at..at + bytes.len() as u64));
        self.uffd.copy(to.start, bytes, self.writable)
    }

    /// Copies contents out through the memfd.
    ///
    /// # Errors
    /// Whatever pread(2) says.
    pub fn load(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(&self.memfd, &mut into[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Shows stored pages in a view, clean and (if writable) write-protected, and wakes who waits for them there.
    ///
    /// # Errors
    /// `EFAULT` if a page of the range is a hole.
    pub fn map(&self, checked: bool, range: Range<u64>) -> io::Result<()> {
        let at = self.view(checked)?.addresses(&range);
        self.uffd.resume(at, self.writable)
    }

    /// Shows the ranges in no view any more.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    pub fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        // Shared mappings: page-table entries go, contents stay.
        self.views().try_for_each(|view| zap(ranges.iter().map(|range| view.addresses(range))))
    }

    /// Appends the file ranges inside `range` written through a view since they were mapped or last taken.
    ///
    /// # Errors
    /// Whatever PAGEMAP_SCAN says.
    pub fn written(&self, checked: bool, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.scan(checked, range, out, Pagemap::written)
    }

    /// As [`written`](Self::written), making those pages clean and write-protected in the same step.
    ///
    /// # Errors
    /// Whatever PAGEMAP_SCAN says. What was made clean until then is in `out`.
    pub fn take_written(
        &self,
        checked: bool,
        range: Range<u64>,
        out: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        self.scan(checked, range, out, Pagemap::take_written)
    }

    fn scan(
        &self,
        checked: bool,
        range: Range<u64>,
        out: &mut Vec<Range<u64>>,
        scan: impl Fn(&Pagemap, Range<usize>, &mut Vec<Range<usize>>) -> io::Result<()>,
    ) -> io::Result<()> {
        let view = self.view(checked)?;
        let mut found = Vec::new();
        let outcome = scan(&self.pagemap, view.addresses(&range), &mut found);
        let offset = |address: usize| (address - view.start()) as u64;
        out.extend(found.into_iter().map(|at| offset(at.start)..offset(at.end)));
        outcome
    }

    /// The parts of a range that have no contents.
    ///
    /// # Errors
    /// Whatever lseek(2) says.
    pub fn holes(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        let (mut holes, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let start = seek(&self.memfd, SeekFrom::Hole(at))?; // its end is one, as far as this is concerned
            if start >= range.end {
                break;
            }
            at = match seek(&self.memfd, SeekFrom::Data(start)) {
                Ok(data) => data.min(range.end),
                Err(rustix::io::Errno::NXIO) => range.end, // there is no more
                Err(error) => return Err(error.into()),
            };
            holes.push(start..at);
        }
        Ok(holes)
    }

    /// Drops contents and returns the memory.
    ///
    /// # Errors
    /// Whatever fallocate(2) says.
    pub fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for range in ranges {
            loop {
                match fallocate(&self.memfd, punch, range.start, range.end - range.start) {
                    Ok(()) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Makes threads that wait for pages of `range` in any view touch them again.
    pub fn wake(&self, range: Range<u64>) {
        for view in self.views() {
            self.uffd.wake(view.addresses(&range));
        }
    }

    /// Copies bytes out through the plain view, whose pages the caller holds mapped.
    pub fn copy_out(&self, at: u64, into: &mut [u8]) {
        let from = self.plain.addresses(&(at..at + into.len() as u64));
        // SAFETY: the range is inside the view, which is mapped while `self` lives; `into` is another object. Threads that
        // write the same bytes meanwhile race as they would on any shared mapping: bytes old or new.
        unsafe { std::ptr::copy_nonoverlapping(from.start as *const u8, into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes in through the plain view, whose pages the caller holds mapped.
    ///
    /// # Panics
    /// If the frames are read-only.
    pub fn copy_in(&self, at: u64, bytes: &[u8]) {
        assert!(self.writable, "frames of a read-only file are not written");
        let to = self.plain.addresses(&(at..at + bytes.len() as u64));
        // SAFETY: the range is inside the view, mapped writable while `self` lives. `bytes` may lie in the same view (a
        // copy within one file): `copy` allows overlap.
        unsafe { std::ptr::copy(bytes.as_ptr(), to.start as *mut u8, bytes.len()) }
    }

    /// Lets `range` of the checked view read as zeros.
    ///
    /// # Errors
    /// Whatever mmap(2) says.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let view = self.view(true)?;
        view.map_zeros(range.clone(), self.writable)?;
        view.keep_private(range.clone())?;
        self.uffd.wake(view.addresses(&range));
        Ok(())
    }

    /// Makes `range` of the checked view show the frames again.
    ///
    /// # Errors
    /// Whatever mmap(2) or registering says.
    pub fn restore(&self, range: Range<u64>) -> io::Result<()> {
        let view = self.view(true)?;
        view.map_file(self.memfd.as_fd(), range.clone(), self.writable)?;
        view.keep_private(range.clone())?;
        self.uffd.register(view.addresses(&range), self.writable)
    }

    /// Makes every touch of `range` in the plain view raise SIGBUS, until it is mapped.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.6.
    pub fn poison(&self, range: Range<u64>) -> io::Result<()> {
        self.uffd.poison(self.plain.addresses(&range), self.writable)
    }
}

fn make_view(memfd: &OwnedFd, capacity: u64, writable: bool, uffd: &Uffd) -> io::Result<Reservation> {
    let view = Reservation::new(usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
    view.map_file(memfd.as_fd(), 0..capacity, writable)?;
    view.keep_private(0..capacity)?;
    uffd.register(view.addresses(&(0..capacity)), writable)?;
    Ok(view)
}

// SAFETY: both views stay mapped while `self` lives; bytes change through writers, or by eviction and refill that the
// engine checks against the version the file was opened with.
unsafe impl AddressRange for SharedFrames {
    fn base(&self, checked: bool) -> io::Result<usize> {
        self.address(checked)
    }

    fn len(&self) -> usize {
        self.plain.len()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }
}

impl std::fmt::Debug for SharedFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedFrames").field("plain", &self.plain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uffd::Features;

    const PAGE: u64 = 4096;

    #[test]
    fn what_was_found_until_a_scan_failed_is_told() {
        let features = Features::MISSING_SHMEM
            .with(Features::MINOR_SHMEM)
            .with(Features::WP_HUGETLBFS_SHMEM)
            .with(Features::WP_ASYNC);
        let uffd = match Uffd::open(features) {
            Ok(uffd) => Arc::new(uffd),
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
                return eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            }
        };
        let pagemap = Arc::new(Pagemap::open().unwrap());
        let frames = SharedFrames::new(4 * PAGE, true, uffd, pagemap).unwrap();
        let mut found = Vec::new();
        let scanned = frames.scan(false, PAGE..4 * PAGE, &mut found, |_, at, out| {
            out.push(at.start..at.start + PAGE as usize);
            Err(io::ErrorKind::OutOfMemory.into())
        });
        assert_eq!(scanned.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(
            found,
            std::iter::once(PAGE..2 * PAGE).collect::<Vec<_>>(),
            "it is clean in the page tables now"
        );
    }
}
