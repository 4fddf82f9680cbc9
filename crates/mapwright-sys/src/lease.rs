//! The kernel's leases on files (fcntl(2), F_SETLEASE): who opens a file for writing waits until those who read it by a lease have let
//! go of it.
//!
//! A lease [for reading](FileLease::take) is given only while nobody has the file open for writing, a shared writable mapping included. From then on
//! open(2) for writing and truncate(2) wait in the kernel until it is dropped, or until `/proc/sys/fs/lease-break-time` seconds are over: then the kernel
//! takes it away. One [for writing](FileLease::take_alone) is given only while nobody else has the file open at all, and every other open(2) waits. That
//! somebody waits is told by SIGIO to one thread, the one of a [`Breaks`], which keeps that signal blocked and reads
//! it from a descriptor; which lease it is about is asked of each ([`FileLease::is_wanted`]), so that no queue of signals can overflow.
//!
//! An open with O_RDONLY and O_TRUNC, which POSIX leaves undefined, cuts a file in spite of a lease.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use crate::check;
use crate::file::open_again;
use crate::forward::Blocked;

// Of the kernel's asm-generic/fcntl.h.
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;
const F_GETLEASE: libc::c_int = 1025;

/// `struct f_owner_ex`
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// The thread that is told of leases that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub struct Listener(libc::pid_t);

/// Tells the calling thread, and no other, when somebody waits for a lease. Readable ([`AsFd`]) when there is something to look for.
#[derive(Debug)]
pub struct Breaks {
    signals: OwnedFd,
    listener: Listener,
    /// A signal of a thread is read by that thread.
    _of_one_thread: PhantomData<*const ()>,
}

impl Breaks {
    /// Makes the calling thread one that is told. It keeps SIGIO blocked from here on.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn of_this_thread() -> io::Result<Self> {
        let _ = Blocked::block(&[libc::SIGIO])?; // for good: a late one must not end the process
        let mut set = MaybeUninit::uninit();
        // SAFETY: the pointer is to a set, which is emptied.
        check(unsafe { libc::sigemptyset(set.as_mut_ptr()) }.into())?;
        // SAFETY: the set was emptied above.
        check(unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGIO) }.into())?;
        // SAFETY: the set is valid for the call, which makes a new descriptor.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        let fd = check(fd.into())?;
        // SAFETY: made just now, and nobody else's.
        let signals = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let listener = Listener(rustix::thread::gettid().as_raw_pid());
        Ok(Self { signals, listener, _of_one_thread: PhantomData })
    }

    /// This thread, for those who take leases.
    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// Takes note of what was told. Leases are to be looked at after it.
    pub fn take(&self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.signals, &mut info).is_ok_and(|len| len > 0) {}
    }
}

impl AsFd for Breaks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// A lease on a file. Dropping it lets in who waits.
#[derive(Debug)]
pub struct FileLease {
    file: OwnedFd,
    kind: libc::c_int,
}

impl FileLease {
    /// Takes a lease for reading on an open regular file, by an open file description of its own, of which `listener` is told if somebody waits for it.
    ///
    /// # Errors
    /// `EAGAIN` if anybody has it open for writing; `EACCES` if it is another user's and this process lacks CAP_LEASE, or can't be opened anew;
    /// `EINVAL`, `ENOLCK` or `EOPNOTSUPP` where the file system gives no leases.
    pub fn take(file: BorrowedFd<'_>, listener: Listener) -> io::Result<Self> {
        // Not to wait for a lease of somebody else's.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        Self::set_on(open_again(file, flags)?, libc::F_RDLCK, listener)
    }

    /// Takes a lease for writing on the very open file description of `file`, a regular file that is open for reading and writing, and by it alone:
    /// whoever shares it (dup(2), fork(2), mappings) is not kept out. From here on every other open(2) waits.
    ///
    /// # Errors
    /// As for [`take`](Self::take), but `EAGAIN` if there is any other open file description of it.
    pub fn take_alone(file: BorrowedFd<'_>, listener: Listener) -> io::Result<Self> {
        Self::set_on(rustix::io::fcntl_dupfd_cloexec(file, 3)?, libc::F_WRLCK, listener)
    }

    fn set_on(file: OwnedFd, kind: libc::c_int, listener: Listener) -> io::Result<Self> {
        let owner = Owner { kind: F_OWNER_TID, pid: listener.0 };
        // SAFETY: the descriptor is open, and `owner` has the kernel's layout and lives across the call, which reads it.
        check(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) }.into())?;
        set(file.as_fd(), kind)?;
        Ok(Self { file, kind })
    }

    /// Whether the file has no name any more.
    pub fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Whether somebody waits for its end, or the kernel has ended it.
    pub fn is_wanted(&self) -> bool {
        // SAFETY: the descriptor is open; there is no argument.
        unsafe { libc::fcntl(self.file.as_raw_fd(), F_GETLEASE) != self.kind }
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        // Closing would do, were it not for others who have the open file description.
        let _ = set(self.file.as_fd(), libc::F_UNLCK);
    }
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::path::PathBuf;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::PAGE_SIZE;

    /// A file that is taken away again, on a file system that gives leases.
    struct Sample(PathBuf);

    impl Sample {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mapwright-lease-{name}-{}", std::process::id()));
            std::fs::write(&path, "some bytes").unwrap();
            Self(path)
        }

        fn lease(&self, breaks: &Breaks) -> io::Result<FileLease> {
            FileLease::take(File::open(&self.0).unwrap().as_fd(), breaks.listener())
        }

        fn writer(&self) -> io::Result<File> {
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.0)
        }
    }

    impl Drop for Sample {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A shared writable mapping of a file's first page.
    struct Map(*mut libc::c_void);

    impl Map {
        fn of(file: &File) -> Self {
            let (protection, sharing) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start = unsafe {
                libc::mmap(std::ptr::null_mut(), PAGE_SIZE, protection, sharing, file.as_raw_fd(), 0)
            };
            assert_ne!(start, libc::MAP_FAILED);
            Self(start)
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            // SAFETY: the mapping made above, to which there are no references.
            assert_eq!(unsafe { libc::munmap(self.0, PAGE_SIZE) }, 0);
        }
    }

    fn is_told(breaks: &Breaks, seconds: i64) -> bool {
        let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let told = poll(&mut [PollFd::new(breaks, PollFlags::IN)], Some(&limit)).unwrap() > 0;
        breaks.take();
        told
    }

    #[test]
    fn who_writes_waits_for_the_end_of_a_lease_and_the_thread_is_told() {
        let sample = Sample::new("waits");
        let breaks = Breaks::of_this_thread().unwrap();
        let lease = sample.lease(&breaks).unwrap();
        File::open(&sample.0).unwrap(); // readers do not mind
        assert!(!lease.is_wanted() && !is_told(&breaks, 0));
        assert_eq!(sample.writer().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(is_told(&breaks, 5) && lease.is_wanted());
        let path = sample.0.clone();
        let writer = std::thread::spawn(move || OpenOptions::new().write(true).open(path).unwrap());
        std::thread::park_timeout(Duration::from_millis(50));
        assert!(!writer.is_finished(), "the file was opened in spite of the lease");
        drop(lease);
        let writer = writer.join().unwrap();
        assert_eq!(sample.lease(&breaks).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        drop(sample.lease(&breaks).unwrap());
    }

    #[test]
    fn a_file_that_may_be_written_by_a_mapping_gives_no_lease() {
        let sample = Sample::new("mapped");
        let breaks = Breaks::of_this_thread().unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&sample.0).unwrap();
        let map = Map::of(&file);
        drop(file);
        assert_eq!(sample.lease(&breaks).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(map);
        drop(sample.lease(&breaks).unwrap());
    }

    #[test]
    fn who_has_a_file_alone_keeps_readers_out_too() {
        let sample = Sample::new("alone");
        let breaks = Breaks::of_this_thread().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&sample.0).unwrap();
        let file = open();
        let reader = File::open(&sample.0).unwrap();
        let refused = FileLease::take_alone(file.as_fd(), breaks.listener()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "it is open twice");
        drop(reader);
        let map = Map::of(&file);
        let again = file.try_clone().unwrap();
        let lease = FileLease::take_alone(file.as_fd(), breaks.listener()).unwrap();
        assert!(!lease.is_wanted(), "a mapping and a duplicate are of the same open file description");
        drop((file, again));
        let reader = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&sample.0);
        assert_eq!(reader().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(is_told(&breaks, 5) && lease.is_wanted());
        drop(map);
        drop(lease);
        reader().unwrap();
    }
}
