//! Ranges of address space of one's own, and the kernel's own file mappings.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, MsyncFlags, ProtFlags, madvise, mmap, mmap_anonymous, msync, munmap};

use crate::PAGE_SIZE;
use crate::process::Owner;
use crate::window::{AddressRange, Claims};

/// A reserved range of addresses. Whatever is mapped into it is unmapped with it.
#[derive(Debug)]
pub(crate) struct Reservation {
    start: usize,
    len: usize,
    /// Whether a part may be somebody else's memory by now, so that the range must never be unmapped nor mapped over: see
    /// [`NotPlaced`].
    lost: AtomicBool,
    /// Where it is kept from children, the process that it is in.
    owner: Owner,
}

/// Why nothing could be placed over a part of a reservation.
#[derive(Debug)]
pub(crate) struct NotPlaced {
    pub(crate) error: io::Error,
    /// Whether the part is inaccessible memory of the reservation's, as before. Otherwise nobody knows: the kernel takes the
    /// old mapping away before it makes the new one, and into the gap may come any mapping of another thread.
    pub(crate) is_reserved: bool,
}

/// Places a new mapping over reserved addresses. It is made where the kernel likes first, so that what refuses it (a limit,
/// a file system, an empty pool of huge pages) does so before the reservation is touched.
///
/// # Safety
/// `at` is the caller's own mapped memory, to be given up; `map` makes a mapping of `at.len()` bytes that nobody else knows of.
pub(crate) unsafe fn place_over(
    at: Range<usize>,
    map: impl FnOnce() -> io::Result<usize>,
) -> Result<(), NotPlaced> {
    let made = map().map_err(|error| NotPlaced { error, is_reserved: true })?;
    if let Err(error) = try_a_move() {
        // SAFETY: made just now; nobody else knows of it.
        let _ = unsafe { munmap(made as *mut _, at.len()) };
        return Err(NotPlaced { error, is_reserved: true });
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // Not rustix's `mremap_fixed`: where any crate of the program has it use the C library, that passes another flag (1.1.6), which
    // the kernel refuses.
    // SAFETY: the mapping is new and moves over memory that the caller gives up.
    let moved = unsafe { libc::syscall(libc::SYS_mremap, made, at.len(), at.len(), flags, at.start) };
    let Err(error) = crate::check(moved) else { return Ok(()) };
    // SAFETY: a move that fails leaves what was to be moved where it was; nobody else knows of it.
    let _ = unsafe { munmap(made as *mut _, at.len()) };
    Err(NotPlaced { error, is_reserved: reserve_again(at) })
}

/// Moves a page that nobody uses, to see whether vm.max_map_count is met. A move to a fixed address looks at it before it touches
/// that, as this one does; what it can't tell is which of the two reasons for `ENOMEM` there was, this or one that left a gap.
pub(crate) fn try_a_move() -> io::Result<()> {
    /// A page that is never unmapped, and never touched.
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let mut page = PAGE.load(Ordering::Acquire);
    if page == 0 {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let made =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE, ProtFlags::empty(), flags) }? as usize;
        page = match PAGE.compare_exchange(0, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(other) => {
                // SAFETY: made just now; nobody else knows of it.
                let _ = unsafe { munmap(made as *mut _, PAGE_SIZE) };
                other
            }
        };
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    // Not by a function of four arguments: with this flag the kernel takes a fifth for a hint, which must be a page.
    // SAFETY: the page stays, and what it moves elsewhere are no bytes: it can't be touched.
    let copy = unsafe { libc::syscall(libc::SYS_mremap, page, PAGE_SIZE, PAGE_SIZE, flags, 0) };
    match crate::check(copy) {
        // SAFETY: made just now; nobody else knows of it.
        Ok(copy) => Ok(unsafe { munmap(copy as *mut _, PAGE_SIZE) }?),
        // Linux before 5.7: the move itself must tell.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes the page-table entry of a page of a shared mapping away, a marker too. The mapping stays as it is, and registered with
/// the userfaultfd that it is registered with (mremap(2), MREMAP_DONTUNMAP).
pub(crate) fn clear_entry(page: usize) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    // SAFETY: the page stays mapped, and its bytes are in the object that is mapped.
    let copy = unsafe { libc::syscall(libc::SYS_mremap, page, PAGE_SIZE, PAGE_SIZE, flags, 0) };
    let copy = crate::check(copy)?;
    // SAFETY: made just now; nobody else knows of it.
    Ok(unsafe { munmap(copy as *mut _, PAGE_SIZE) }?)
}

/// Reserves addresses from which the kernel may have taken the mapping away, unless anything is there: what was there
/// before, if it did not, or what somebody else has mapped since. Whether they are reserved.
pub(crate) fn reserve_again(range: Range<usize>) -> bool {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: a new mapping where nothing is mapped disturbs nothing.
    let made = unsafe { mmap_anonymous(range.start as *mut _, range.len(), ProtFlags::empty(), flags) };
    match made {
        Ok(start) if start as usize == range.start => true,
        Ok(elsewhere) => {
            // SAFETY: a kernel before 4.17 took the address for a hint; nobody else knows of this mapping.
            let _ = unsafe { munmap(elsewhere, range.len()) };
            false
        }
        Err(_) => false,
    }
}

impl Reservation {
    /// Reserves `len` bytes, a multiple of the page size, that fault with SIGSEGV until something is mapped there.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        Ok(Self { start: start as usize, len, lost: AtomicBool::new(false), owner: Owner::default() })
    }

    /// Reserves `len` bytes at a multiple of `align`, both multiples of the page size.
    pub(crate) fn aligned(len: usize, align: usize) -> io::Result<Self> {
        let mut wide = Self::new(len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?)?;
        let start = wide.start.next_multiple_of(align);
        let end = wide.start + wide.len;
        for excess in [wide.start..start, start + len..end].into_iter().filter(|excess| !excess.is_empty()) {
            // SAFETY: a part of the new mapping that nobody knows of, outside of what is kept.
            unsafe { munmap(excess.start as *mut _, excess.len()) }?;
            // What a failure of the next call leaves behind is unmapped by drop.
            if excess.end == start {
                (wide.start, wide.len) = (start, end - start);
            } else {
                wide.len = excess.start - wide.start;
            }
        }
        Ok(wide)
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The addresses of a range of this reservation.
    ///
    /// # Panics
    /// If the range is not inside.
    pub(crate) fn addresses(&self, range: &Range<u64>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.len as u64, "{range:?} of {} bytes", self.len);
        self.start + range.start as usize..self.start + range.end as usize
    }

    /// Maps `fd` from offset `range.start` on over that range of the reservation.
    pub(crate) fn map_file(&self, fd: BorrowedFd<'_>, range: Range<u64>, writable: bool) -> io::Result<()> {
        let at = self.addresses(&range);
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let map = || {
            // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
            let made =
                unsafe { mmap(std::ptr::null_mut(), at.len(), protection(writable), flags, fd, range.start) };
            Ok(made? as usize)
        };
        // SAFETY: the range lies inside this reservation, which nothing but its owner uses; live slices of it see the
        // file's bytes change places only where the owner says that it is unmapped.
        unsafe { self.place(at.clone(), map) }
    }

    /// As [`map_file`](Self::map_file), private, from offset 0 on over all of it. A userfaultfd takes shared mappings only of what this
    /// process may write; private ones of what it may read, and shows the file's own pages there. Of those that are written the kernel
    /// makes copies, if it may be written.
    pub(crate) fn map_privately(&self, fd: BorrowedFd<'_>, writable: bool) -> io::Result<()> {
        let at = self.start..self.start + self.len;
        let (protection, flags) = (protection(writable), MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let map = || unsafe { Ok(mmap(std::ptr::null_mut(), at.len(), protection, flags, fd, 0)? as usize) };
        // SAFETY: all of this reservation, of which nobody has a slice yet.
        unsafe { self.place(at.clone(), map) }
    }

    /// Places a mapping over a part. After a failure that may have left a gap, nothing is placed any more.
    ///
    /// # Safety
    /// As for [`place_over`], of a part of this reservation.
    pub(crate) unsafe fn place(
        &self,
        at: Range<usize>,
        map: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<()> {
        self.refuse_if_lost()?;
        // SAFETY: passed on to the caller.
        let placed = unsafe { place_over(at, map) };
        placed.map_err(|failed| {
            self.lost.fetch_or(!failed.is_reserved, Ordering::SeqCst);
            failed.error
        })
    }

    fn refuse_if_lost(&self) -> io::Result<()> {
        if self.lost.load(Ordering::SeqCst) { Err(rustix::io::Errno::NOMEM.into()) } else { Ok(()) }
    }

    /// Lets a range read as zeros: private anonymous memory over whatever is mapped there.
    pub(crate) fn map_zeros(&self, range: Range<u64>, writable: bool) -> io::Result<()> {
        self.refuse_if_lost()?;
        let at = self.addresses(&range);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as in `map_file`.
        let mapped = unsafe { mmap_anonymous(at.start as *mut _, at.len(), protection(writable), flags) };
        if let Err(error) = mapped {
            // In a signal handler: nothing but system calls and the flag.
            self.lost.fetch_or(!reserve_again(at), Ordering::SeqCst);
            return Err(error.into());
        }
        Ok(())
    }

    /// Unmaps all but some parts, which may be somebody else's by now.
    pub(crate) fn unmap_without(self, kept: impl Iterator<Item = Range<usize>>) {
        let mut at = self.start;
        let end = self.start + self.len;
        std::mem::forget(self);
        for part in kept.chain(std::iter::once(end..end)) {
            if part.start > at {
                // SAFETY: a part of the reservation, which its owner gives up and which was never lost.
                let _ = unsafe { munmap(at as *mut _, part.start - at) };
            }
            at = part.end;
        }
    }

    /// Keeps a range from children and from core dumps.
    pub(crate) fn keep_private(&self, range: Range<u64>) -> io::Result<()> {
        self.keep_from_children(range.clone())?;
        self.advise(&range, Advice::LinuxDontDump)
    }

    /// Keeps a range from children.
    pub(crate) fn keep_from_children(&self, range: Range<u64>) -> io::Result<()> {
        self.owner.keep();
        self.advise(&range, Advice::LinuxDontFork)
    }

    /// madvise(2) on a range. Callers pass advice that keeps contents.
    pub(crate) fn advise(&self, range: &Range<u64>, advice: Advice) -> io::Result<()> {
        let at = self.addresses(range);
        // SAFETY: the range lies inside this reservation; no advice used here changes contents.
        unsafe { madvise(at.start as *mut _, at.len(), advice) }?;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if *self.lost.get_mut() || !self.owner.is_here() {
            return;
        }
        // SAFETY: the reservation is the owner's; slices of it borrow from the owner and are gone.
        let _ = unsafe { munmap(self.start as *mut _, self.len) };
    }
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// A file mapped by the kernel: mmap(2), shared, with a second view for checked access.
///
/// Its bytes are the kernel's page cache: another process that writes the file changes them under a slice. That is the
/// kernel strategy's documented weakness and the reason why it is not the first choice.
#[derive(Debug)]
pub struct FileMapping {
    plain: Reservation,
    checked: Reservation,
    mapped: std::sync::atomic::AtomicU64,
    claims: Claims,
    writable: bool,
}

impl FileMapping {
    /// Reserves `capacity` bytes and maps the first `len` bytes of `fd` there; both are rounded up to whole pages.
    ///
    /// # Errors
    /// Whatever mmap(2) says: `ENODEV` for files that can't be mapped, `ENOMEM`, `EACCES`.
    pub fn new(fd: BorrowedFd<'_>, len: u64, capacity: u64, writable: bool) -> io::Result<Self> {
        let capacity = whole_pages(capacity.max(len).max(1))?;
        let mapping = Self {
            plain: Reservation::new(capacity as usize)?,
            checked: Reservation::new(capacity as usize)?,
            mapped: 0.into(),
            claims: Claims::new(writable),
            writable,
        };
        mapping.extend(fd, len)?;
        Ok(mapping)
    }

    /// Maps the file as far as `len`, if that is further than before. The addresses stay.
    ///
    /// # Errors
    /// As for [`new`](Self::new); `OutOfMemory` past the capacity.
    pub fn extend(&self, fd: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        let end = whole_pages(len)?;
        let from = self.mapped.load(Ordering::Acquire);
        if end > self.plain.len() as u64 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        if end > from {
            self.plain.map_file(fd, from..end, self.writable)?;
            self.checked.map_file(fd, from..end, self.writable)?;
            self.mapped.store(end, Ordering::Release);
        }
        Ok(())
    }

    /// msync(2), synchronous, of the pages that hold `range`.
    ///
    /// # Errors
    /// Whatever msync(2) says.
    pub fn flush(&self, range: Range<u64>) -> io::Result<()> {
        let start = range.start / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        let at = self.plain.addresses(&(start..range.end));
        // SAFETY: the range is mapped, being inside the file's mapping.
        unsafe { msync(at.start as *mut _, at.len(), MsyncFlags::SYNC) }?;
        Ok(())
    }

    /// madvise(2) on both views, by an advice that keeps contents.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    pub fn advise(&self, range: Range<u64>, advice: KernelAdvice) -> io::Result<()> {
        let start = range.start / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        let range = start..range.end;
        let advice = match advice {
            KernelAdvice::Normal => Advice::Normal,
            KernelAdvice::Sequential => Advice::Sequential,
            KernelAdvice::Random => Advice::Random,
            KernelAdvice::WillNeed => Advice::WillNeed,
            KernelAdvice::Populate => Advice::LinuxPopulateRead,
        };
        self.plain.advise(&range, advice)?;
        if matches!(advice, Advice::WillNeed | Advice::LinuxPopulateRead) {
            return Ok(()); // once fills the page cache for both
        }
        self.checked.advise(&range, advice)
    }

    /// Addresses of the two views: plain, checked.
    pub fn views(&self) -> [Range<usize>; 2] {
        [&self.plain, &self.checked].map(|view| view.start()..view.start() + view.len())
    }

    /// Lets the page of the checked view at `address` read as zeros, until [`restore`](Self::restore).
    ///
    /// # Errors
    /// Whatever mmap(2) says.
    pub fn zero(&self, address: usize) -> io::Result<()> {
        let page = ((address - self.checked.start()) / PAGE_SIZE * PAGE_SIZE) as u64;
        self.checked.map_zeros(page..page + PAGE_SIZE as u64, self.writable)
    }

    /// Shows the file again in the whole checked view.
    ///
    /// # Errors
    /// Whatever mmap(2) says.
    pub fn restore(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mapped = self.mapped.load(std::sync::atomic::Ordering::Acquire);
        if mapped > 0 { self.checked.map_file(fd, 0..mapped, self.writable) } else { Ok(()) }
    }
}

/// Advice that a kernel mapping passes on: see madvise(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelAdvice {
    /// MADV_NORMAL
    Normal,
    /// MADV_SEQUENTIAL
    Sequential,
    /// MADV_RANDOM
    Random,
    /// MADV_WILLNEED
    WillNeed,
    /// MADV_POPULATE_READ: an error instead of SIGBUS
    Populate,
}

fn whole_pages(bytes: u64) -> io::Result<u64> {
    let page = PAGE_SIZE as u64;
    bytes
        .checked_next_multiple_of(page)
        .filter(|end| *end <= 1 << 47)
        .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

// SAFETY: both views stay mapped while `self` lives. That the bytes may be changed by other processes is the documented
// exception of this kind of mapping.
unsafe impl AddressRange for FileMapping {
    fn base(&self, checked: bool) -> io::Result<usize> {
        Ok(if checked { self.checked.start() } else { self.plain.start() })
    }

    fn len(&self) -> usize {
        self.plain.len()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }
}
