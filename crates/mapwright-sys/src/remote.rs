//! Memory of one process whose faults another serves: the client's views, and what the server has of them.
//!
//! The server owns the frames, a file in memory, and hands out a descriptor of it. One that can only be read the client maps
//! *privately*: userfaultfd(2) registers shared mappings only of what a process may write, and CONTINUE shows the file's own
//! pages in private ones too. Nothing is ever written through such a view, so it never has pages of its own, but for the zeros
//! of [`LentFrames::zero`].
//!
//! One that can be written is mapped shared, and every page shown is write-protected until the server has noted that it will be
//! dirty: a first write is a fault that the server serves ([`RemoteView::map_writable`]), and before it copies a page out it
//! protects it again ([`RemoteView::protect`]). So the server knows what was written by what it has allowed, and asks nobody's page
//! tables.
//!
//! The client keeps its userfaultfd for as long as it has views. So a touch of an absent page waits when the server is gone, and
//! does not read as zeros; the client's own thread sees the closed socket and ends the wait: [`LentFrames::poison`].

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::PAGE_SIZE;
use crate::mapping::Reservation;
use crate::uffd::Uffd;
use crate::window::{AddressRange, Claims};
use crate::zap::zap;

/// Where user space ends at the latest: 5-level page tables.
const USER_SPACE: usize = 1 << 56;

/// The frames of a file in the process that reads them: descriptor, views.
pub struct LentFrames {
    fd: OwnedFd,
    plain: Reservation,
    checked: OnceLock<Reservation>,
    making_checked: Mutex<()>,
    uffd: Arc<Uffd>,
    claims: Claims,
    writable: bool,
}

impl LentFrames {
    /// Maps `capacity` bytes of frames, a multiple of the page size, for reading or also for writing, faults going to `uffd`.
    ///
    /// # Errors
    /// `InvalidData` if there are not that many; `ENOMEM` when address space is short; what registering meets.
    pub fn new(fd: OwnedFd, capacity: u64, writable: bool, uffd: Arc<Uffd>) -> io::Result<Self> {
        // Past its end a mapping raises SIGBUS without asking anybody.
        let len = rustix::fs::fstat(&fd)?.st_size;
        if capacity == 0 || !capacity.is_multiple_of(PAGE_SIZE as u64) || u64::try_from(len) != Ok(capacity) {
            let what = format!("{len} bytes of frames, said to be {capacity}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let plain = make_view(&fd, capacity, writable, &uffd)?;
        let (checked, making_checked) = Default::default();
        Ok(Self { fd, plain, checked, making_checked, uffd, claims: Claims::new(writable), writable })
    }

    /// Address of offset 0 in the plain or the checked view; makes the checked one when it is first asked for.
    ///
    /// # Errors
    /// What making the checked view meets.
    pub fn address(&self, checked: bool) -> io::Result<usize> {
        Ok(self.view(checked)?.start())
    }

    fn view(&self, checked: bool) -> io::Result<&Reservation> {
        if !checked {
            return Ok(&self.plain);
        }
        if let Some(view) = self.checked.get() {
            return Ok(view);
        }
        let _one = self.making_checked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.checked.get().is_none() {
            let view = make_view(&self.fd, self.plain.len() as u64, self.writable, &self.uffd)?;
            let _ = self.checked.set(view);
        }
        Ok(self.checked.get().expect("set above"))
    }

    /// Where an address lies: in the checked view or not, and at which offset.
    pub fn locate(&self, address: usize) -> Option<(bool, u64)> {
        let inside = |view: &Reservation| {
            let offset = address.checked_sub(view.start())?;
            (offset < view.len()).then_some(offset as u64)
        };
        inside(&self.plain)
            .map(|offset| (false, offset))
            .or_else(|| Some((true, self.checked.get().and_then(inside)?)))
    }

    /// Takes ranges out of the plain view; the frames stay.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    ///
    /// # Panics
    /// If a range is not inside.
    pub fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        // The plain one alone: there may be zeros in the other.
        zap(ranges.iter().map(|range| self.plain.addresses(range)))
    }

    /// Makes every touch of the absent pages of a range raise SIGBUS, and wakes who waits there. Pages that are shown stay, and
    /// are as protected as before: the server may have shown them meanwhile, and must hear of the first write.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.6; what mremap(2) says, and reading `/proc/self/pagemap`.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn poison(&self, checked: bool, range: Range<u64>) -> io::Result<()> {
        let at = self.view(checked)?.addresses(&range);
        if self.writable { self.uffd.poison_guarded(at) } else { self.uffd.poison(at, false) }
    }

    /// As [`poison`](Self::poison) of the plain view, also of pages that are shown: they are not shown there any more. What was written to
    /// them is in the frames.
    ///
    /// # Errors
    /// As for `poison`.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn poison_shown(&self, range: Range<u64>) -> io::Result<()> {
        self.uffd.poison_shown(self.plain.addresses(&range))
    }

    /// As [`poison`](Self::poison), when there is no server any more: pages that are shown may be written from here on.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.6.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn poison_unserved(&self, checked: bool, range: Range<u64>) -> io::Result<()> {
        self.uffd.poison(self.view(checked)?.addresses(&range), self.writable)
    }

    /// Lets the absent pages of a range of the checked view read as zeros, and wakes who waits there, until
    /// [`restore`](Self::restore).
    ///
    /// # Errors
    /// When memory is short.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn zero(&self, range: Range<u64>) -> io::Result<()> {
        let view = self.view(true)?;
        let at = view.addresses(&range);
        if self.writable {
            // A page put into a shared mapping would be the file's.
            view.map_zeros(range.clone(), true)?;
            view.keep_private(range)?;
            self.uffd.wake(at);
            return Ok(());
        }
        for page in at.step_by(PAGE_SIZE) {
            match self.uffd.copy(page, &[0; PAGE_SIZE], false) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.uffd.wake(page..page + PAGE_SIZE);
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Makes a range of the checked view show the frames again.
    ///
    /// # Errors
    /// Whatever madvise(2), mmap(2) or registering says.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn restore(&self, range: Range<u64>) -> io::Result<()> {
        if self.writable {
            let view = self.view(true)?;
            view.map_file(self.fd.as_fd(), range.clone(), true)?;
            view.keep_private(range.clone())?;
            return self.uffd.register(view.addresses(&range), true);
        }
        zap(std::iter::once(self.view(true)?.addresses(&range)))
    }

    /// Makes threads that wait for pages of a range touch them again.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn wake(&self, range: Range<u64>) {
        for view in std::iter::once(&self.plain).chain(self.checked.get()) {
            self.uffd.wake(view.addresses(&range));
        }
    }

    /// Bytes in a view.
    pub fn capacity(&self) -> u64 {
        self.plain.len() as u64
    }

    /// Copies bytes in through the plain view, pages of which the caller holds.
    ///
    /// # Panics
    /// If the frames are read-only, or the range is not inside.
    pub fn copy_in(&self, at: u64, bytes: &[u8]) {
        assert!(self.writable, "frames of a read-only file are not written");
        let to = self.plain.addresses(&(at..at + bytes.len() as u64));
        // SAFETY: the range is inside the view, mapped writable while `self` lives. `bytes` may lie in the same view: `copy`
        // allows overlap. Others who write the same bytes meanwhile race as on any shared mapping: bytes old or new.
        unsafe { std::ptr::copy(bytes.as_ptr(), to.start as *mut u8, bytes.len()) }
    }
}

fn make_view(fd: &OwnedFd, capacity: u64, writable: bool, uffd: &Uffd) -> io::Result<Reservation> {
    let view = Reservation::new(usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
    match writable {
        true => view.map_file(fd.as_fd(), 0..capacity, true)?,
        false => view.map_privately(fd.as_fd(), false)?,
    }
    view.keep_private(0..capacity)?;
    uffd.register(view.addresses(&(0..capacity)), writable)?;
    Ok(view)
}

// SAFETY: both views stay mapped while `self` lives; bytes change through writers, or by eviction and refill, which the server
// checks against the version the file was opened with.
unsafe impl AddressRange for LentFrames {
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

impl std::fmt::Debug for LentFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentFrames").field("plain", &self.plain).finish_non_exhaustive()
    }
}

/// What a server has of one view of a client's: nothing here touches memory of the server's own, whatever the client says.
#[derive(Debug)]
pub struct RemoteView {
    uffd: Arc<Uffd>,
    start: usize,
    len: u64,
    writable: bool,
}

impl RemoteView {
    /// The view of `len` bytes at `start` in the process that made `uffd`, for reading or also for writing.
    ///
    /// # Errors
    /// `InvalidInput` if no view can lie there.
    pub fn new(uffd: Arc<Uffd>, start: usize, len: u64, writable: bool) -> io::Result<Self> {
        let whole = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE as u64);
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
        if !whole || len == 0 || start == 0 || end.is_none_or(|end| end > USER_SPACE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a view of {len} bytes at {start:#x}"),
            ));
        }
        Ok(Self { uffd, start, len, writable })
    }

    fn addresses(&self, range: &Range<u64>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        self.start + range.start as usize..self.start + range.end as usize
    }

    /// The offset of an address in this view.
    pub fn offset_of(&self, address: usize) -> Option<u64> {
        let offset = address.checked_sub(self.start)? as u64;
        (offset < self.len).then_some(offset)
    }

    /// How many bytes it has.
    pub fn capacity(&self) -> u64 {
        self.len
    }

    /// Shows stored pages there, write-protected if the view may be written, and wakes who waits for them.
    ///
    /// # Errors
    /// `ENOENT`, `EFAULT` or `WouldBlock` where the client has not mapped what it said it has, or keeps this from being done.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn map(&self, range: Range<u64>) -> io::Result<()> {
        let at = self.addresses(&range);
        self.uffd.resume_for_another(at.clone(), at.len(), self.writable)
    }

    /// As [`map`](Self::map), of which only the first `needed` bytes were asked for: behind them it ends at the first page that is shown
    /// already.
    ///
    /// # Errors
    /// As for `map`.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn map_ahead(&self, range: Range<u64>, needed: u64) -> io::Result<()> {
        let at = self.addresses(&range);
        let needed = usize::try_from(needed).map_or(at.len(), |needed| needed.min(at.len()));
        self.uffd.resume_for_another(at, needed, self.writable)
    }

    /// Shows stored pages there so that they can be written, and wakes who waits for them.
    ///
    /// # Errors
    /// As for [`map`](Self::map); `InvalidInput` for a view that is for reading.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn map_writable(&self, range: Range<u64>) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write to a view that is for reading"));
        }
        let at = self.addresses(&range);
        self.uffd.resume_for_another(at.clone(), at.len(), false)?;
        // What was shown before is protected still.
        self.uffd.protect_for_another(at, false)
    }

    /// Makes every write to the pages of a range a fault, whether they are shown there or not.
    ///
    /// # Errors
    /// `WouldBlock` where the client keeps this from being done. What it has not mapped as it said, it does not write there.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn protect(&self, range: Range<u64>) -> io::Result<()> {
        if !self.writable {
            return Ok(());
        }
        let at = self.addresses(&range);
        match self.uffd.protect_for_another(at.clone(), true) {
            // A part shows something else: zeros, in a checked scope.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                at.step_by(PAGE_SIZE).try_for_each(|page| {
                    match self.uffd.protect_for_another(page..page + PAGE_SIZE, true) {
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                        protected => protected,
                    }
                })
            }
            protected => protected,
        }
    }

    /// Makes threads that wait there touch their pages again.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn wake(&self, range: Range<u64>) {
        self.uffd.wake(self.addresses(&range));
    }
}
