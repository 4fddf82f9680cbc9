//! userfaultfd(2): being asked for pages (Documentation/admin-guide/mm/userfaultfd.rst).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::mapping::clear_entry;
use crate::page_state::page_state;
use crate::{PAGE_SIZE, check};

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
const UFFDIO_POISON: libc::c_ulong = 0xc020_aa08;
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_FORK: u8 = 0x13;
/// What the link of a userfaultfd in `/proc/self/fd` says.
const LINK: &str = "anon_inode:[userfaultfd]";
/// Tries of an operation on another process's memory, which that process may keep from ever ending.
const TRIES: u32 = 64;
const CONTINUE_MODE_WP: u64 = 1 << 1;
const COPY_MODE_WP: u64 = 1 << 1;
const MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
/// A fault by a write, and one of a page that is there and write-protected.
const FAULT_BY_WRITE: u64 = 1 | 1 << 1;
const REGISTER_MISSING: u64 = 1;
const REGISTER_WP: u64 = 2;
const REGISTER_MINOR: u64 = 4;

/// A set of `UFFD_FEATURE_*` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features(pub u64);

impl Features {
    /// Faults on write-protected pages.
    pub const WRITE_PROTECT: Self = Self(1);
    /// Faults on absent pages of shared memory.
    pub const MISSING_SHMEM: Self = Self(1 << 5);
    /// A signal instead of an event.
    pub const SIGBUS: Self = Self(1 << 7);
    /// Faults on pages of shared memory that exist but are not mapped.
    pub const MINOR_SHMEM: Self = Self(1 << 10);
    /// Write protection of shared memory.
    pub const WP_HUGETLBFS_SHMEM: Self = Self(1 << 12);
    /// Pages that raise SIGBUS when touched.
    pub const POISON: Self = Self(1 << 14);
    /// Write-protect faults that the kernel resolves itself and PAGEMAP_SCAN reports.
    pub const WP_ASYNC: Self = Self(1 << 15);
    /// Pages that move between private anonymous ranges.
    pub const MOVE: Self = Self(1 << 16);

    /// Every feature bit with its name, lowest first.
    pub const NAMES: [(&'static str, u64); 17] = [
        ("PAGEFAULT_FLAG_WP", 1),
        ("EVENT_FORK", 1 << 1),
        ("EVENT_REMAP", 1 << 2),
        ("EVENT_REMOVE", 1 << 3),
        ("MISSING_HUGETLBFS", 1 << 4),
        ("MISSING_SHMEM", 1 << 5),
        ("EVENT_UNMAP", 1 << 6),
        ("SIGBUS", 1 << 7),
        ("THREAD_ID", 1 << 8),
        ("MINOR_HUGETLBFS", 1 << 9),
        ("MINOR_SHMEM", 1 << 10),
        ("EXACT_ADDRESS", 1 << 11),
        ("WP_HUGETLBFS_SHMEM", 1 << 12),
        ("WP_UNPOPULATED", 1 << 13),
        ("POISON", 1 << 14),
        ("WP_ASYNC", 1 << 15),
        ("MOVE", 1 << 16),
    ];

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How a userfaultfd was obtained, which decides what it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// userfaultfd(2) with the right to serve system calls too (root, CAP_SYS_PTRACE or `vm.unprivileged_userfaultfd=1`).
    SystemCall,
    /// `/dev/userfaultfd`: serves system calls too.
    Device,
    /// userfaultfd(2) restricted to faults of user code: a system call that meets an absent page gets EFAULT.
    UserModeOnly,
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Wake {
    start: u64,
    len: u64,
}

/// `struct uffdio_copy` and `struct uffdio_move`, which have the same shape.
#[repr(C)]
struct Transfer {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// `struct uffdio_continue`, `uffdio_poison` and `uffdio_zeropage`, which have the same shape.
#[repr(C)]
struct Resolve {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// A touch that waits to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The address touched.
    pub address: usize,
    /// Whether it was to be written to.
    pub writes: bool,
}

/// A userfaultfd and the means to stop waiting on it.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    interrupt: OwnedFd,
    source: Source,
    features: Features,
}

impl Uffd {
    /// Opens a userfaultfd with the given features, by the most capable way that this process is allowed.
    ///
    /// # Errors
    /// `EPERM` where policy forbids it (seccomp, sysctl), `ENOSYS` where the kernel lacks it, `EINVAL` where it lacks one
    /// of the features.
    pub fn open(features: Features) -> io::Result<Self> {
        let (fd, source) = open_descriptor()?;
        let mut api = Api { api: UFFD_API, features: features.0, ioctls: 0 };
        // SAFETY: `api` has the kernel's layout of `struct uffdio_api`.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) };
        check(answer.into())?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, interrupt, source, features })
    }

    /// The features that this kernel offers, and how a userfaultfd was obtained to ask.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn offered() -> io::Result<(Features, Source)> {
        let (fd, source) = open_descriptor()?;
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: `api` has the kernel's layout of `struct uffdio_api`.
        let answer = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api) };
        check(answer.into())?;
        Ok((Features(api.features), source))
    }

    /// Takes a userfaultfd that another process made and handed over: what is done with it is done to that process's memory.
    /// Its features are that process's to know.
    ///
    /// # Errors
    /// `InvalidInput` if the descriptor is of something else; whatever reading its link in `/proc` says.
    pub fn received(fd: OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != LINK {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a userfaultfd: {link:?}")));
        }
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, interrupt, source: Source::SystemCall, features: Features::default() })
    }

    /// The same with descriptors that are not below `lowest`: out of the way of those that a program counts on.
    ///
    /// # Errors
    /// `EMFILE` if there is no room; `EINVAL` if the process may not have such descriptors.
    pub fn lifted(mut self, lowest: i32) -> io::Result<Self> {
        self.fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, lowest)?;
        self.interrupt = rustix::io::fcntl_dupfd_cloexec(&self.interrupt, lowest)?;
        Ok(self)
    }

    /// The descriptors that it has.
    pub fn descriptors(&self) -> [i32; 2] {
        [self.fd.as_raw_fd(), self.interrupt.as_raw_fd()]
    }

    /// How this userfaultfd was obtained. Of one that was received nothing is known, and the first is said.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The features it was opened with.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Makes touches of absent and of unmapped pages in `range` faults of this userfaultfd, and tracks writes if asked.
    ///
    /// # Errors
    /// `EBUSY` if another userfaultfd has the range, `EINVAL` if the mapping is of a kind that can't be registered.
    pub(crate) fn register(&self, range: Range<usize>, track_writes: bool) -> io::Result<()> {
        let writes = if track_writes { REGISTER_WP } else { 0 };
        self.register_as(range, REGISTER_MISSING | REGISTER_MINOR | writes)
    }

    /// Makes touches of absent pages of anonymous memory faults of this userfaultfd.
    ///
    /// # Errors
    /// As for [`register`](Self::register).
    pub(crate) fn register_anonymous(&self, range: Range<usize>) -> io::Result<()> {
        self.register_as(range, REGISTER_MISSING)
    }

    /// Lets pages be moved to anonymous memory, whose absent pages the kernel goes on to fill by itself: MOVE asks only that
    /// its destination is registered somehow (`validate_move_areas` in mm/userfaultfd.c).
    ///
    /// # Errors
    /// As for [`register`](Self::register).
    pub(crate) fn register_for_moves(&self, range: Range<usize>) -> io::Result<()> {
        self.register_as(range, REGISTER_WP)
    }

    fn register_as(&self, range: Range<usize>, mode: u64) -> io::Result<()> {
        let mut register =
            Register { start: range.start as u64, len: (range.end - range.start) as u64, mode, ioctls: 0 };
        // SAFETY: `register` has the kernel's layout of `struct uffdio_register`.
        let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &mut register) };
        check(answer.into()).map(drop)
    }

    /// Maps existing pages of shared memory at `range`, write-protected if asked, and wakes who waits for them.
    pub(crate) fn resume(&self, range: Range<usize>, write_protect: bool) -> io::Result<()> {
        let mode = if write_protect { CONTINUE_MODE_WP } else { 0 };
        self.resolve(UFFDIO_CONTINUE, range, mode)
    }

    /// Fills absent pages from `to` on with `bytes`, whole pages, and maps them, write-protected if asked, in one step; wakes
    /// who waits for them. The memory is registered, so nobody sees a page before it is whole.
    pub(crate) fn copy(&self, to: usize, bytes: &[u8], write_protect: bool) -> io::Result<()> {
        let mode = if write_protect { COPY_MODE_WP } else { 0 };
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            // SAFETY: it reads `bytes` and writes only to pages that are registered with this userfaultfd and absent.
            match unsafe { self.transfer(UFFDIO_COPY, to + done, rest.as_ptr() as usize, rest.len(), mode) } {
                Ok(step) => done += step,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies pages from one registered range to absent pages of another, and wakes who waits for them. Pages that are there
    /// already stay.
    pub(crate) fn copy_within(&self, to: usize, from: Range<usize>) -> io::Result<()> {
        // SAFETY: it reads pages that the caller holds, and writes only to registered ones that are absent.
        self.stepwise(to, from.len(), |at, len| unsafe {
            self.transfer(UFFDIO_COPY, to + at, from.start + at, len, 0)
        })
    }

    /// Moves the pages that are there of `from` to `to`, and wakes who waits for them. Pages of `to` that are there already
    /// stay, as does what would go there.
    ///
    /// # Errors
    /// `EBUSY` when a page is held by I/O; others may have been moved then.
    ///
    /// # Safety
    /// `from` is private anonymous memory of which nobody holds a reference: it reads as zeros, or is a fault, afterwards.
    pub(crate) unsafe fn move_pages(&self, to: usize, from: Range<usize>) -> io::Result<()> {
        // SAFETY: the caller's promise; the kernel puts pages only where there are none and this userfaultfd is registered.
        self.stepwise(to, from.len(), |at, len| unsafe {
            self.transfer(UFFDIO_MOVE, to + at, from.start + at, len, MOVE_MODE_ALLOW_SRC_HOLES)
        })
    }

    /// As [`move_pages`](Self::move_pages), for a range of pages that are all there, to where none is.
    ///
    /// # Errors
    /// `ENOENT` or `EEXIST` if that is not so, `EBUSY` when a page is held by I/O; with the number of bytes moved before.
    ///
    /// # Safety
    /// As for `move_pages`.
    pub(crate) unsafe fn move_all(&self, to: usize, from: Range<usize>) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        while done < from.len() {
            let rest = from.start + done..from.end;
            // SAFETY: the caller's promise; the kernel puts pages only where there are none.
            let step = unsafe { self.transfer(UFFDIO_MOVE, to + done, rest.start, rest.len(), 0) };
            done += step.map_err(|error| (done, error))?;
        }
        Ok(())
    }

    /// Runs a transfer over `len` bytes for `to`, stepping over pages that are there already.
    fn stepwise(
        &self,
        to: usize,
        len: usize,
        transfer: impl Fn(usize, usize) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            match transfer(done, len - done) {
                Ok(step) => done += step,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.wake(to + done..to + done + PAGE_SIZE);
                    done += PAGE_SIZE;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One COPY or MOVE; how many bytes it did before the address space changed.
    ///
    /// # Safety
    /// What the operation does to its ranges is the caller's to answer for.
    unsafe fn transfer(
        &self,
        request: libc::c_ulong,
        to: usize,
        from: usize,
        len: usize,
        mode: u64,
    ) -> io::Result<usize> {
        loop {
            let mut argument = Transfer { to: to as u64, from: from as u64, len: len as u64, mode, done: 0 };
            // SAFETY: `argument` has the kernel's layout of `struct uffdio_copy` and `struct uffdio_move`; the rest is the
            // caller's promise.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &mut argument) };
            let Err(error) = check(answer.into()) else { return Ok(len) };
            match error.raw_os_error() {
                _ if argument.done > 0 => return Ok(argument.done as usize),
                Some(libc::EAGAIN | libc::EINTR) => {} // the address space was changing
                _ => return Err(error),
            }
        }
    }

    /// Lets absent pages of anonymous memory read as zeros, and wakes who waits for them.
    pub(crate) fn zero(&self, range: Range<usize>) -> io::Result<()> {
        self.resolve(UFFDIO_ZEROPAGE, range, 0)
    }

    /// Makes every touch of `range` raise SIGBUS, and wakes who waits there.
    pub(crate) fn poison(&self, range: Range<usize>, write_protected: bool) -> io::Result<()> {
        if write_protected {
            self.clear_markers(range.clone())?; // POISON gives EEXIST over a write-protect marker
        }
        self.resolve(UFFDIO_POISON, range, 0)
    }

    /// Makes every touch of one absent page raise SIGBUS, and wakes who waits there; `false` if it is not absent.
    pub(crate) fn poison_absent(&self, page: Range<usize>) -> io::Result<bool> {
        let mut argument = Resolve { start: page.start as u64, len: page.len() as u64, mode: 0, done: 0 };
        loop {
            // SAFETY: `argument` has the kernel's layout of `struct uffdio_poison`.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_POISON, &mut argument) };
            let Err(error) = check(answer.into()) else { return Ok(true) };
            match error.raw_os_error() {
                Some(libc::EEXIST) => {
                    self.wake(page);
                    return Ok(false);
                }
                Some(libc::EAGAIN | libc::EINTR) => {} // the address space was changing
                _ => return Err(error),
            }
        }
    }

    /// As [`poison`](Self::poison), of memory whose protection is another process's to take off: pages that are shown stay, and
    /// stay protected.
    pub(crate) fn poison_guarded(&self, range: Range<usize>) -> io::Result<()> {
        let pagemap = File::open("/proc/self/pagemap")?;
        for page in range.step_by(PAGE_SIZE) {
            let poisoned = self.poison_absent(page..page + PAGE_SIZE)?;
            if poisoned || page_state(&pagemap, page as u64)?.is_present {
                continue;
            }
            // A write-protect marker. Taken off as others are, it would take the protection off a page that is shown just now.
            clear_entry(page)?;
            self.poison_absent(page..page + PAGE_SIZE)?;
        }
        Ok(())
    }

    /// As [`poison`](Self::poison), of a shared mapping, also of pages that are shown there: their entries are taken away first, as often
    /// as another process shows them meanwhile.
    pub(crate) fn poison_shown(&self, range: Range<usize>) -> io::Result<()> {
        for page in range.step_by(PAGE_SIZE) {
            clear_entry(page)?;
            while !self.poison_absent(page..page + PAGE_SIZE)? {
                clear_entry(page)?;
            }
        }
        Ok(())
    }

    /// Takes write-protect markers, and protection, off a range.
    fn clear_markers(&self, range: Range<usize>) -> io::Result<()> {
        loop {
            let mut argument = WriteProtect { start: range.start as u64, len: range.len() as u64, mode: 0 };
            // SAFETY: `argument` has the kernel's layout of `struct uffdio_writeprotect`.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &mut argument) };
            match check(answer.into()) {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs CONTINUE, POISON or ZEROPAGE over a range, stepping over pages that are mapped already.
    fn resolve(&self, request: libc::c_ulong, range: Range<usize>, mode: u64) -> io::Result<()> {
        let mut start = range.start;
        while start < range.end {
            let mut argument =
                Resolve { start: start as u64, len: (range.end - start) as u64, mode, done: 0 };
            // SAFETY: `argument` has the kernel's layout of the three operations' structures.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &mut argument) };
            let Err(error) = check(answer.into()) else { return Ok(()) };
            if argument.done > 0 {
                start += argument.done as usize; // EAGAIN: it got this far
                continue;
            }
            match error.raw_os_error() {
                Some(libc::EEXIST) => {
                    self.wake(start..start + PAGE_SIZE); // mapped already; who waits there may look again
                    start += PAGE_SIZE;
                }
                Some(libc::EAGAIN | libc::EINTR) => {} // the address space was changing
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// As [`resume`](Self::resume), for memory of another process, which may be gone, or may keep this from ever being done.
    /// Pages that are mapped already stay as they are. Past the first `needed` bytes of the range it ends at the first of those.
    ///
    /// # Errors
    /// `WouldBlock` when it was not done after some tries.
    pub(crate) fn resume_for_another(
        &self,
        range: Range<usize>,
        needed: usize,
        write_protect: bool,
    ) -> io::Result<()> {
        let mode = if write_protect { CONTINUE_MODE_WP } else { 0 };
        let mut start = range.start;
        let mut tries = 0;
        while start < range.end {
            let mut argument =
                Resolve { start: start as u64, len: (range.end - start) as u64, mode, done: 0 };
            // SAFETY: `argument` has the kernel's layout of `struct uffdio_continue`. It shows pages that exist, in memory that
            // its owner has registered for that.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_CONTINUE, &mut argument) };
            let Err(error) = check(answer.into()) else { return Ok(()) };
            if argument.done > 0 {
                start += argument.done as usize;
                continue;
            }
            match error.raw_os_error() {
                Some(libc::EEXIST) if start >= range.start + needed => return Ok(()),
                Some(libc::EEXIST) => {
                    self.wake(start..start + PAGE_SIZE);
                    start += PAGE_SIZE;
                }
                Some(libc::ESRCH) => return Ok(()), // it is gone, and nobody waits
                Some(libc::EAGAIN | libc::EINTR) => try_again(&mut tries)?,
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes write protection off pages of another process's memory that are mapped, and wakes who waits for them; or makes every
    /// write to the pages of the range a fault.
    ///
    /// # Errors
    /// `ENOENT` if a part is not registered for that; `WouldBlock` when it was not done after some tries.
    pub(crate) fn protect_for_another(&self, range: Range<usize>, protect: bool) -> io::Result<()> {
        let mode = if protect { WRITEPROTECT_MODE_WP } else { 0 };
        let mut tries = 0;
        loop {
            let mut argument = WriteProtect { start: range.start as u64, len: range.len() as u64, mode };
            // SAFETY: `argument` has the kernel's layout of `struct uffdio_writeprotect`.
            let answer = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &mut argument) };
            let Err(error) = check(answer.into()) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::ESRCH) => return Ok(()), // it is gone, and nobody writes
                Some(libc::EAGAIN | libc::EINTR) => try_again(&mut tries)?,
                _ => return Err(error),
            }
        }
    }

    /// Makes threads that wait for a page of `range` touch it again.
    pub(crate) fn wake(&self, range: Range<usize>) {
        let mut wake = Wake { start: range.start as u64, len: (range.end - range.start) as u64 };
        // SAFETY: `wake` has the kernel's layout of `struct uffdio_range`. Its only error is a bad range, which a
        // registered range is not.
        let _ = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &mut wake) };
    }

    /// Waits for faults and appends them; returns with none once [`interrupt`](Self::interrupt) was called.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn wait_faults(&self, touches: &mut Vec<Touch>) -> io::Result<()> {
        loop {
            if self.read_faults(touches)? > 0 {
                return Ok(());
            }
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&self.interrupt, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if fds[1].revents().contains(PollFlags::IN) => return Ok(()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Appends the faults that are there already; how many events there were. Never waits, also where another
    /// process that has the userfaultfd too says that it may.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn take_faults(&self, touches: &mut Vec<Touch>) -> io::Result<usize> {
        self.read_events(touches, |messages, room| {
            let part = libc::iovec { iov_base: messages.cast(), iov_len: room };
            // SAFETY: `part` is room for plain data, and the only one.
            let read = unsafe { libc::preadv2(self.fd.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) };
            if read >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP) {
                return read;
            }
            // Before Linux 6.10 the flag of the descriptor alone decides: set again, it is right but for a moment.
            let _ = rustix::fs::fcntl_setfl(&self.fd, rustix::fs::OFlags::NONBLOCK);
            // SAFETY: the same room.
            unsafe { libc::read(self.fd.as_raw_fd(), messages.cast(), room) }
        })
    }

    fn read_faults(&self, touches: &mut Vec<Touch>) -> io::Result<usize> {
        // SAFETY: `read_events` hands over plain data with room for so many bytes.
        self.read_events(touches, |messages, room| unsafe {
            libc::read(self.fd.as_raw_fd(), messages.cast(), room)
        })
    }

    fn read_events(
        &self,
        touches: &mut Vec<Touch>,
        read: impl Fn(*mut Message, usize) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let mut messages = [Message::default(); 16];
        let read = read(messages.as_mut_ptr(), size_of_val(&messages));
        let read = match check(read as libc::c_long) {
            Ok(bytes) => bytes as usize / size_of::<Message>(),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => 0,
            Err(error) => return Err(error),
        };
        for fork in messages[..read].iter().filter(|message| message.event == UFFD_EVENT_FORK) {
            // Nobody here asks for this event; another process may have. The first field is a descriptor, made for us.
            // SAFETY: the kernel made the descriptor in this process as the message was read, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fork.flags as u32 as i32) });
        }
        let faults = messages[..read].iter().filter(|message| message.event == UFFD_EVENT_PAGEFAULT);
        touches.extend(faults.map(|message| Touch {
            address: message.address as usize,
            writes: message.flags & FAULT_BY_WRITE != 0,
        }));
        Ok(read)
    }

    /// Makes every `wait_faults`, now and later, return without faults.
    pub fn interrupt(&self) {
        // Fails only when the counter is about to overflow: then it is set already.
        let _ = rustix::io::write(&self.interrupt, &1u64.to_ne_bytes());
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Gives another process a moment.
///
/// # Errors
/// `WouldBlock` when it was given too many.
fn try_again(tries: &mut u32) -> io::Result<()> {
    *tries += 1;
    if *tries > TRIES {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    std::thread::yield_now();
    Ok(())
}

fn open_descriptor() -> io::Result<(OwnedFd, Source)> {
    let refusal = match userfaultfd(0) {
        Ok(fd) => return Ok((fd, Source::SystemCall)),
        Err(error) => error,
    };
    if let Ok(fd) = from_device() {
        return Ok((fd, Source::Device));
    }
    match userfaultfd(UFFD_USER_MODE_ONLY) {
        Ok(fd) => Ok((fd, Source::UserModeOnly)),
        Err(_) => Err(refusal),
    }
}

fn userfaultfd(extra: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags only and returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | extra) };
    let fd = check(fd)?;
    // SAFETY: the kernel just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn from_device() -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a descriptor or an error.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    let fd = check(fd.into())?;
    // SAFETY: the kernel just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
