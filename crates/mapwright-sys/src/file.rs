//! What rustix lacks for files: opening one anew, locks that belong to an open file, the size of a block device, and writing back without syncing.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Opens what `fd` is of once more, close-on-exec, with flags and a position of its own, through `/proc`.
///
/// # Errors
/// `ENOENT` without `/proc`; whatever open(2) says.
pub fn open_again(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(link, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Takes an exclusive lock on the whole file, without waiting.
///
/// It is an open-file-description lock (`F_OFD_SETLK`, fcntl_locking(2)): it excludes every other open of the file, in this
/// process too, and is not lost when some other descriptor of the same file is closed. `fd` must be open for writing.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when somebody else holds a lock; otherwise what the kernel says, for example `EBADF` for
/// a read-only descriptor or `ENOLCK` and `EOPNOTSUPP` on file systems without locks.
pub fn lock_exclusive(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_lock(fd, libc::F_WRLCK)
}

/// Gives the lock of [`lock_exclusive`] back, also for processes that inherited the descriptor.
///
/// # Errors
/// What the kernel says.
pub fn unlock(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_lock(fd, libc::F_UNLCK)
}

/// Whether somebody else, by any other open of the file, holds a lock that [`lock_exclusive`] would meet. `fd` need not be open for
/// writing.
///
/// # Errors
/// What the kernel says, for example `EOPNOTSUPP` on file systems without locks.
pub fn is_locked(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file(libc::F_WRLCK);
    // SAFETY: `fd` is open and `lock` is a `flock` that lives across the call, which writes nothing else.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result == 0 {
        Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    // `l_pid` must be 0; start 0 with length 0 means the whole file, however long it grows.
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn set_lock(fd: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    let lock = whole_file(kind);
    loop {
        // SAFETY: `fd` is open and `lock` is a `flock` that lives across the call, which only reads it.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // POSIX allows either for "held by somebody else".
            Some(libc::EACCES) => return Err(io::ErrorKind::WouldBlock.into()),
            _ => return Err(error),
        }
    }
}

/// The size of a block device in bytes (`BLKGETSIZE64`), without moving the descriptor's position.
///
/// # Errors
/// `ENOTTY` when `fd` is not a block device; otherwise what the kernel says.
pub fn block_device_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    /// `_IOR(0x12, 114, size_t)` in linux/fs.h; the result is 64 bits wide wherever we run.
    const BLKGETSIZE64: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<usize>(0x12, 114);
    // SAFETY: the request writes one u64, as declared.
    let request = unsafe { rustix::ioctl::Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: the request only reads the device's size.
    let len = unsafe { rustix::ioctl::ioctl(fd, request) }?;
    Ok(len)
}

/// Writes what the kernel's cache has of `len` bytes of a file from `start` on, or of all from there on if `len` is 0, to its device, and
/// waits until it is written: sync_file_range(2). Not durable, for no metadata is written and no device told to flush; but a write that
/// failed is an error, which a later sync does not tell again.
///
/// # Errors
/// What the kernel says: `EIO`, `ENOSPC`; `EINVAL` for a range that ends past `i64::MAX`.
pub fn write_out(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let place =
        |at: u64| libc::off64_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (start, len) = (place(start)?, place(len)?);
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    loop {
        // SAFETY: `fd` is open; the call changes no contents.
        let written = unsafe { libc::sync_file_range(fd.as_raw_fd(), start, len, all) };
        match crate::check(written.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}
