//! Shared frames: a memfd whose offset is the file's offset, and the views that show it.
//!
//! Frames that are made to be lent for reading are in a file of a tmpfs of their own where that can be had (`folios`): 2 MiB that are stored at once are
//! on one huge page then, which costs a tenth of what 512 pages do, to make and to give back.
//!
//! Every page is absent (a hole), stored (in the memfd), or stored and mapped. All facts used here are measured by the
//! probes in `tests/kernel_facts.rs`. A write through a view is tracked by WP_ASYNC; unmapping a clean page leaves a
//! write-protect marker in the page table and unmapping a written one leaves nothing, so [`SharedFrames::written`] tells
//! them apart afterwards without a race.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::{
    FallocateFlags, MemfdFlags, OFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use crate::PAGE_SIZE;
use crate::file::open_again;
use crate::folios::Folios;
use crate::mapping::Reservation;
use crate::moved::REGION;
use crate::pagemap::Pagemap;
use crate::uffd::Uffd;
use crate::window::{AddressRange, Claims};
use crate::zap::zap;

/// Bytes of a huge page.
const HUGE: u64 = REGION as u64;

/// The frames of one file.
pub struct SharedFrames {
    memfd: OwnedFd,
    large: Option<Large>,
    plain: Reservation,
    checked: OnceLock<Reservation>,
    making_checked: std::sync::Mutex<()>,
    uffd: Arc<Uffd>,
    pagemap: Arc<Pagemap>,
    claims: Claims,
    writable: bool,
}

/// Whether this process can have frames on huge pages.
///
/// # Errors
/// As for [`SharedFrames::new_large`].
pub fn can_be_large() -> io::Result<()> {
    Folios::new().map(drop)
}

/// What frames on huge pages have.
struct Large {
    /// What is lent.
    readable: OwnedFd,
    /// A mapping in which touches make huge pages, and where nothing else is done.
    maker: Reservation,
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
        Self::of(memfd, None, capacity, writable, uffd, pagemap)
    }

    /// As [`new`](Self::new), for reading, on huge pages where whole 2 MiB are stored at once.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; `ENOSYS` or `EINVAL` where the kernel can't do it (before Linux 6.15); and as for `new`.
    pub fn new_large(capacity: u64, uffd: Arc<Uffd>, pagemap: Arc<Pagemap>) -> io::Result<Self> {
        let Folios { file, readable } = Folios::new()?;
        ftruncate(&file, capacity)?;
        let len = usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let maker = Reservation::aligned(len, HUGE as usize)?;
        maker.map_file(file.as_fd(), 0..capacity, true)?;
        maker.keep_private(0..capacity)?;
        maker.advise(&(0..capacity), rustix::mm::Advice::LinuxHugepage)?;
        Self::of(file, Some(Large { readable, maker }), capacity, false, uffd, pagemap)
    }

    fn of(
        memfd: OwnedFd,
        large: Option<Large>,
        capacity: u64,
        writable: bool,
        uffd: Arc<Uffd>,
        pagemap: Arc<Pagemap>,
    ) -> io::Result<Self> {
        let plain = make_view(&memfd, capacity, writable, &uffd)?;
        let (checked, making_checked, claims) =
            (OnceLock::new(), std::sync::Mutex::new(()), Claims::new(writable));
        Ok(Self { memfd, large, plain, checked, making_checked, uffd, pagemap, claims, writable })
    }

    /// Whether these are on huge pages where whole 2 MiB are stored at once.
    pub fn is_large(&self) -> bool {
        self.large.is_some()
    }

    /// Address of offset 0 in the plain or the checked view; makes the checked one when it is first asked for.
    ///
    /// # Errors
    /// What making the checked view meets.
    pub fn address(&self, checked: bool) -> io::Result<usize> {
        Ok(self.view(checked)?.start())
    }

    /// A descriptor of the memory, for writing if the frames are, to be handed to another process. Who runs as the same user can
    /// open one that is for reading for writing all the same, unless it is [large](Self::new_large).
    ///
    /// # Errors
    /// Whatever opening it through `/proc` says.
    pub fn lend(&self) -> io::Result<OwnedFd> {
        // Opened anew: the flags of a duplicate would be shared, and O_APPEND makes pwrite(2) ignore where it is to write.
        if let Some(Large { readable, .. }) = &self.large {
            return open_again(readable.as_fd(), OFlags::RDONLY);
        }
        if self.writable {
            return open_again(self.memfd.as_fd(), OFlags::RDWR);
        }
        rustix::fs::fchmod(&self.memfd, rustix::fs::Mode::RUSR)?;
        open_again(self.memfd.as_fd(), OFlags::RDONLY)
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
        let huge = self.make_huge(at..at + bytes.len() as u64);
        self.write(at, bytes)?;
        // Out of the mapping alone: the pages are the file's.
        zap(huge.into_iter())
    }

    /// Has huge pages made for what of a range can be on such. Where there are none to be had, or ordinary pages are there already, those will do. The
    /// addresses where they are mapped then.
    fn make_huge(&self, range: Range<u64>) -> Option<Range<usize>> {
        let Large { maker, .. } = self.large.as_ref()?;
        let whole = range.start.next_multiple_of(HUGE)..range.end / HUGE * HUGE;
        if whole.is_empty() {
            return None;
        }
        for start in whole.clone().step_by(HUGE as usize) {
            // An error where a touch would be a signal.
            let _ = maker.advise(&(start..start + PAGE_SIZE as u64), rustix::mm::Advice::LinuxPopulateWrite);
        }
        Some(maker.addresses(&whole))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
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

    /// What frames are made with, unless the machine can't.
    fn kernel() -> Option<(Arc<Uffd>, Arc<Pagemap>)> {
        let features = Features::MISSING_SHMEM
            .with(Features::MINOR_SHMEM)
            .with(Features::WP_HUGETLBFS_SHMEM)
            .with(Features::WP_ASYNC);
        let uffd = unless_skipped("userfaultfd", Uffd::open(features))?;
        Some((Arc::new(uffd), Arc::new(Pagemap::open().unwrap())))
    }

    fn unless_skipped<T>(what: &str, made: io::Result<T>) -> Option<T> {
        if let Err(error) = &made {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {what}: {error}");
            eprintln!("######## SKIPPED: {what}: {error} ########");
        }
        made.ok()
    }

    fn large(capacity: u64) -> Option<SharedFrames> {
        let (uffd, pagemap) = kernel()?;
        unless_skipped("a tmpfs of one's own", SharedFrames::new_large(capacity, uffd, pagemap))
    }

    fn bytes(seed: u64, len: u64) -> Vec<u8> {
        (0..len).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
    }

    fn loaded(frames: &SharedFrames, range: Range<u64>) -> Vec<u8> {
        let mut into = vec![0; (range.end - range.start) as usize];
        frames.load(range.start, &mut into).unwrap();
        into
    }

    fn only(range: Range<u64>) -> Vec<Range<u64>> {
        std::iter::once(range).collect()
    }

    /// Bytes that are mapped as huge pages in the mapping that begins at an address.
    fn mapped_huge(start: usize) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = smaps.find(&format!("{start:x}-")).unwrap();
        let line = smaps[from..].lines().find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    #[test]
    fn what_is_stored_at_once_is_on_huge_pages() {
        let capacity = 4 * HUGE + 3 * PAGE;
        let Some(frames) = large(capacity) else { return };
        // From inside of the first 2 MiB to the end of the frames.
        let stored = bytes(1, capacity - 5 * PAGE);
        frames.store(5 * PAGE, &stored).unwrap();
        assert_eq!(loaded(&frames, 5 * PAGE..capacity), stored);
        assert_eq!(frames.holes(0..capacity).unwrap(), only(0..5 * PAGE));
        let lent = frames.lend().unwrap();
        let view = Reservation::aligned(capacity as usize, HUGE as usize).unwrap();
        view.map_file(lent.as_fd(), 0..capacity, false).unwrap();
        for at in (5 * PAGE..capacity).step_by(PAGE as usize) {
            // SAFETY: the view is mapped, and the page is stored.
            let byte = unsafe { ((view.start() as u64 + at) as *const u8).read_volatile() };
            assert_eq!(byte, stored[(at - 5 * PAGE) as usize]);
        }
        assert_eq!(mapped_huge(view.start()), 3 * HUGE);
        // A part can go by itself.
        frames.release(&only(HUGE + 7 * PAGE..HUGE + 9 * PAGE)).unwrap();
        assert_eq!(frames.holes(HUGE..capacity).unwrap(), only(HUGE + 7 * PAGE..HUGE + 9 * PAGE));
        assert_eq!(
            loaded(&frames, HUGE..HUGE + 7 * PAGE),
            stored[(HUGE - 5 * PAGE) as usize..][..7 * PAGE as usize]
        );
        let rest = HUGE + 9 * PAGE..capacity;
        assert_eq!(loaded(&frames, rest.clone()), stored[(rest.start - 5 * PAGE) as usize..]);
        // And is stored again, as what is there already is.
        let new = bytes(2, 2 * HUGE);
        frames.store(HUGE, &new).unwrap();
        assert_eq!(loaded(&frames, HUGE..3 * HUGE), new);
        frames.release(&only(0..capacity)).unwrap();
        assert_eq!(frames.holes(0..capacity).unwrap(), only(0..capacity));
    }

    #[test]
    fn what_is_lent_of_large_frames_is_for_reading_for_good() {
        let Some(frames) = large(HUGE) else { return };
        let lent = frames.lend().unwrap();
        assert_eq!(rustix::fs::ftruncate(&lent, 0), Err(rustix::io::Errno::INVAL));
        for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDONLY | OFlags::TRUNC] {
            let opened = open_again(lent.as_fd(), flags).map(drop).unwrap_err();
            assert_eq!(opened.raw_os_error(), Some(libc::EROFS), "{flags:?}");
        }
        assert_eq!(rustix::fs::fstat(&lent).unwrap().st_size, HUGE as i64);
        assert_eq!(rustix::fs::fchmod(&lent, rustix::fs::Mode::RWXU), Err(rustix::io::Errno::ROFS));
    }

    #[test]
    fn what_was_found_until_a_scan_failed_is_told() {
        let Some((uffd, pagemap)) = kernel() else { return };
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
