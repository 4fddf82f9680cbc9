//! Moved frames: private anonymous memory that has one address at a time.
//!
//! Against shared frames ([`crate::frames`]) a single page costs 1.7 µs to fill and 0.7 to drop, not 2.5 and 2.9, and a
//! *region*, 2 MiB that are filled and dropped together, moves as one page-table entry: about 1.3 µs from the buffer that the
//! disk filled to its place, and as much back. All facts used here are measured by the probes in `tests/moved_facts.rs`.
//!
//! Every page is absent, *stored* in the range aside, or *mapped* in the plain one. The checked view has copies, because a
//! page has one address only. Pages arrive writable and without a way to tell whether they were written, so these frames are
//! for files that are only read; the ranges are mapped writable all the same, since UFFDIO_MOVE asks for that. They don't
//! survive a fork in the child (MADV_DONTFORK), which is also what keeps their pages movable in the parent.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::Advice;

use crate::PAGE_SIZE;
use crate::buffer::Buffer;
use crate::mapping::Reservation;
use crate::uffd::Uffd;
use crate::window::{AddressRange, Claims};
use crate::zap::zap;

/// Bytes of a region: what one entry of the second-lowest level of page tables maps.
pub const REGION: usize = 2 << 20;

/// The frames of one file.
pub struct MovedFrames {
    plain: Reservation,
    aside: Reservation,
    checked: OnceLock<Reservation>,
    making_checked: Mutex<()>,
    poison: Poison,
    uffd: Arc<Uffd>,
    claims: Claims,
}

/// Pages of the plain view that raise SIGBUS: nothing can be put there before that is undone. Where there ever were any, the
/// lock is held over what poisons, cures, fills and maps, so that no page that is there counts as poisoned.
#[derive(Default)]
struct Poison {
    any: AtomicBool,
    pages: Mutex<BTreeSet<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MovedFrames {
    /// Frames for a file of up to `capacity` bytes, a multiple of the page size, faults going to `uffd`.
    ///
    /// # Errors
    /// `ENOMEM` when address space is short or may not be overcommitted; what registering the ranges meets.
    pub fn new(capacity: u64, uffd: Arc<Uffd>) -> io::Result<Self> {
        let plain = make_range(capacity, &uffd)?;
        let aside = make_range(capacity, &uffd)?;
        let (checked, making_checked, poison) = Default::default();
        Ok(Self { plain, aside, checked, making_checked, poison, uffd, claims: Claims::new(false) })
    }

    /// Address of offset 0 in the plain or the checked view; makes the checked one when it is first asked for.
    ///
    /// # Errors
    /// What making the checked view meets.
    pub fn address(&self, checked: bool) -> io::Result<usize> {
        Ok(if checked { self.checked()?.start() } else { self.plain.start() })
    }

    fn checked(&self) -> io::Result<&Reservation> {
        let _one = self.checked.get().is_none().then(|| lock(&self.making_checked));
        if self.checked.get().is_none() {
            let _ = self.checked.set(make_range(self.plain.len() as u64, &self.uffd)?);
        }
        Ok(self.checked.get().expect("set above"))
    }

    /// Makes `bytes` the contents of absent pages from `at` on, shown nowhere.
    ///
    /// # Errors
    /// `ENOMEM` when memory is short. Pages may then be stored in part.
    pub fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.uffd.copy(self.aside.addresses(&range_of(at, bytes)).start, bytes, false)
    }

    /// Makes `bytes` the contents of absent pages from `at` on and shows them in the plain view.
    ///
    /// # Errors
    /// `ENOMEM` when memory is short. Pages may then be mapped in part.
    pub fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let range = range_of(at, bytes);
        let _cured = self.cure(&range)?;
        self.uffd.copy(self.plain.addresses(&range).start, bytes, false)
    }

    /// Shows stored pages in the plain view, or copies of those that are shown there and held in the checked one; wakes who waits
    /// for them there.
    ///
    /// # Errors
    /// `ENOMEM` when memory is short.
    pub fn map(&self, checked: bool, range: Range<u64>) -> io::Result<()> {
        let plain = self.plain.addresses(&range);
        if checked {
            return self.uffd.copy_within(self.checked()?.addresses(&range).start, plain);
        }
        let _cured = self.cure(&range)?;
        // SAFETY: no reference is ever made to the range aside.
        unsafe { self.uffd.move_pages(plain.start, self.aside.addresses(&range)) }
    }

    /// Shows the ranges in no view any more.
    ///
    /// # Errors
    /// `EBUSY` for pages that are held by I/O; all others are done then.
    pub fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut outcome = Ok(());
        for range in ranges {
            let _cured = self.cure(range)?; // a page with poison does not move: EFAULT for it and all behind it
            let (plain, aside) = (self.plain.addresses(range), self.aside.addresses(range));
            // SAFETY: slices of the plain view may exist. A touch of a moved page is a fault, which moves it back first.
            let moved = unsafe { self.uffd.move_pages(aside.start, plain.clone()) };
            outcome = match moved {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    self.unmap_singly(plain, aside).and(outcome)
                }
                moved => moved.and(outcome),
            };
        }
        self.drop_copies(ranges).and(outcome)
    }

    fn unmap_singly(&self, plain: Range<usize>, aside: Range<usize>) -> io::Result<()> {
        let mut outcome = Ok(());
        for at in (0..plain.len()).step_by(PAGE_SIZE) {
            let page = plain.start + at..plain.start + at + PAGE_SIZE;
            // SAFETY: as in `unmap`.
            outcome = unsafe { self.uffd.move_pages(aside.start + at, page) }.and(outcome);
        }
        outcome
    }

    fn drop_copies(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let Some(checked) = self.checked.get() else { return Ok(()) };
        zap(ranges.iter().map(|range| checked.addresses(range)))
    }

    /// Drops contents and returns the memory.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    pub fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            self.cure(range)?;
        }
        let places = [Some(&self.plain), Some(&self.aside), self.checked.get()];
        let addresses =
            |range| places.into_iter().flatten().map(move |place: &Reservation| place.addresses(range));
        zap(ranges.iter().flat_map(addresses))
    }

    /// Makes a whole region of absent pages hold the pages of a buffer, whose contents are undefined then: shown in the plain
    /// view, or only stored. What the buffer does not own alone (it is held by I/O, say) is copied.
    ///
    /// # Errors
    /// `ENOMEM` when memory is short. Pages may then be there in part.
    ///
    /// # Panics
    /// If the buffer is not [`REGION`] bytes at a multiple of the page size.
    pub fn fill_region(&self, at: u64, buffer: &mut [u8], shown: bool) -> io::Result<()> {
        assert!(
            buffer.len() == REGION && buffer.as_ptr().addr().is_multiple_of(PAGE_SIZE),
            "a region's buffer"
        );
        let range = at..at + REGION as u64;
        let _cured = self.cure(&range)?;
        let (plain, aside) = (self.plain.addresses(&range), self.aside.addresses(&range));
        let (to, other) = if shown { (plain, aside) } else { (aside, plain) };
        zap([to.clone(), other].into_iter())?; // it will move to the other one day: see `replace`
        let from = buffer.as_ptr().addr();
        // SAFETY: the buffer is borrowed exclusively, and whatever it reads as afterwards is as good as any bytes.
        match unsafe { self.uffd.move_all(to.start, from..from + REGION) } {
            Err((done, error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                self.uffd.copy(to.start + done, &buffer[done..], false)
            }
            moved => moved.map_err(|(_, error)| error),
        }
    }

    /// Shows a stored region in the plain view, of which nothing is there. One thread at a time does so for a region.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn map_region(&self, at: u64) -> io::Result<()> {
        let range = at..at + REGION as u64;
        let cured = self.cure(&range)?;
        let plain = self.plain.addresses(&range);
        zap(std::iter::once(plain.clone()))?; // page tables that faults have left there: see `replace`
        // SAFETY: no reference is ever made to the range aside.
        let moved = unsafe { self.uffd.move_pages(plain.start, self.aside.addresses(&range)) };
        drop(cured); // `unmap` takes the same lock
        // What was moved in part goes back: the next call zaps what it finds here.
        moved.or_else(|error| self.unmap(std::slice::from_ref(&range)).and(Err(error)))
    }

    /// Shows a region, all of it mapped, in no view any more.
    ///
    /// # Errors
    /// `EBUSY` when a page is held by I/O; it is mapped still, or in part.
    pub fn unmap_region(&self, at: u64) -> io::Result<()> {
        let range = at..at + REGION as u64;
        let moved = self.replace(self.aside.addresses(&range), self.plain.addresses(&range));
        // What was moved in part goes back.
        let moved = moved.or_else(|error| self.map(false, range.clone()).and(Err(error)));
        self.drop_copies(std::slice::from_ref(&range)).and(moved)
    }

    /// Makes a region absent and its pages those of a buffer that has none, to be filled anew.
    ///
    /// # Errors
    /// `Unsupported` if the buffer is not one of [`Buffer::region`]; whatever the kernel says. The region is absent then too.
    pub fn take_region(&self, at: u64, shown: bool, buffer: &mut Buffer) -> io::Result<()> {
        let range = at..at + REGION as u64;
        let place = if shown { &self.plain } else { &self.aside };
        let moved =
            buffer.accept_moves(&self.uffd).and_then(|buffer| self.replace(buffer, place.addresses(&range)));
        match moved {
            Ok(()) => self.drop_copies(std::slice::from_ref(&range)),
            Err(error) => self.release(std::slice::from_ref(&range)).and(Err(error)),
        }
    }

    /// Splits the frame of a region into pages that can be dropped one by one: the kernel does so when one page of it moves.
    ///
    /// # Errors
    /// `EBUSY` when its pages are held by I/O.
    pub fn split_region(&self, at: u64, shown: bool) -> io::Result<()> {
        let page = at..at + PAGE_SIZE as u64;
        let (plain, aside) = (self.plain.addresses(&page), self.aside.addresses(&page));
        let (from, to) = if shown { (plain, aside) } else { (aside, plain) };
        // SAFETY: nobody reads the range aside; a touch of the plain one is a fault.
        unsafe { self.uffd.move_pages(to.start, from) }
    }

    /// Moves a region to where there is nothing. Page tables of `to` that are empty are given up first, or the kernel would
    /// split the region into pages: 290 µs against 1.3.
    fn replace(&self, to: Range<usize>, from: Range<usize>) -> io::Result<()> {
        zap(std::iter::once(to.clone()))?;
        // SAFETY: a slice's touch of a page that has left the plain view is a fault, and nobody reads the range aside.
        unsafe { self.uffd.move_all(to.start, from) }.map_err(|(_, error)| error)
    }

    /// Takes back that pages of a range raise SIGBUS. While the result is kept, no others do.
    fn cure(&self, range: &Range<u64>) -> io::Result<Option<MutexGuard<'_, BTreeSet<u64>>>> {
        if !self.poison.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let mut pages = lock(&self.poison.pages);
        let cured: Vec<u64> = pages.range(range.clone()).copied().collect();
        zap(cured.iter().map(|&page| self.plain.addresses(&(page..page + PAGE_SIZE as u64))))?;
        cured.iter().for_each(|page| _ = pages.remove(page));
        Ok(Some(pages))
    }

    /// Makes threads that wait for pages of `range` in any view touch them again.
    pub fn wake(&self, range: Range<u64>) {
        for view in std::iter::once(&self.plain).chain(self.checked.get()) {
            self.uffd.wake(view.addresses(&range));
        }
    }

    /// Copies bytes out through the plain view, whose pages the caller holds mapped.
    pub fn copy_out(&self, at: u64, into: &mut [u8]) {
        let from = self.plain.addresses(&(at..at + into.len() as u64));
        // SAFETY: the range is inside the view, which is mapped while `self` lives; `into` is another object.
        unsafe { std::ptr::copy_nonoverlapping(from.start as *const u8, into.as_mut_ptr(), into.len()) }
    }

    /// Lets absent pages of the checked view read as zeros.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.uffd.zero(self.checked()?.addresses(&range))
    }

    /// Makes `range` of the checked view absent again.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    pub fn restore(&self, range: Range<u64>) -> io::Result<()> {
        self.drop_copies(std::slice::from_ref(&range))
    }

    /// Makes every touch of `range` in the plain view raise SIGBUS, until it is mapped.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.6.
    pub fn poison(&self, range: Range<u64>) -> io::Result<()> {
        self.poison.any.store(true, Ordering::Release);
        let mut pages = lock(&self.poison.pages);
        for page in range.step_by(PAGE_SIZE) {
            if self.uffd.poison_absent(self.plain.addresses(&(page..page + PAGE_SIZE as u64)))? {
                pages.insert(page);
            }
        }
        Ok(())
    }
}

fn range_of(at: u64, bytes: &[u8]) -> Range<u64> {
    at..at + bytes.len() as u64
}

fn make_range(capacity: u64, uffd: &Uffd) -> io::Result<Reservation> {
    let len = usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let range = if len < REGION { Reservation::new(len)? } else { Reservation::aligned(len, REGION)? };
    range.map_zeros(0..capacity, true)?;
    range.keep_private(0..capacity)?;
    // The kernel's khugepaged must not join pages that are dropped one by one: the memory of such a page would stay in use.
    // Kernels without huge pages refuse the advice and need none.
    let _ = range.advise(&(0..capacity), Advice::LinuxNoHugepage);
    uffd.register_anonymous(range.addresses(&(0..capacity)))?;
    Ok(range)
}

// SAFETY: both views stay mapped while `self` lives; their bytes change by eviction and refill only, which the engine checks
// against the version the file was opened with.
unsafe impl AddressRange for MovedFrames {
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

impl std::fmt::Debug for MovedFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MovedFrames").field("plain", &self.plain).finish_non_exhaustive()
    }
}
