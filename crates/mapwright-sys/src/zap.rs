//! Removing page-table entries of many ranges at once.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::check;

/// Ranges passed to one process_madvise(2): below IOV_MAX.
const BATCH: usize = 512;

/// MADV_DONTNEED on address ranges: in one call for many of them where the kernel allows that (6.13), one by one elsewhere.
/// Shared memory keeps its contents, private memory loses them. The ranges are the caller's own reservations.
pub(crate) fn zap(ranges: impl Iterator<Item = Range<usize>>) -> io::Result<()> {
    let ranges: Vec<libc::iovec> = ranges
        .filter(|range| !range.is_empty())
        .map(|range| libc::iovec { iov_base: range.start as *mut _, iov_len: range.len() })
        .collect();
    ranges.chunks(BATCH).try_for_each(zap_some)
}

fn zap_some(ranges: &[libc::iovec]) -> io::Result<()> {
    static BATCHES_REFUSED: AtomicBool = AtomicBool::new(false);
    if ranges.len() > 1 && !BATCHES_REFUSED.load(Ordering::Relaxed) {
        if zap_batch(ranges).is_ok() {
            return Ok(());
        }
        BATCHES_REFUSED.store(true, Ordering::Relaxed);
    }
    for range in ranges {
        // SAFETY: the caller's range, of which nobody holds a reference that outlives the contents.
        let advised = unsafe { libc::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) };
        check(advised.into())?;
    }
    Ok(())
}

fn zap_batch(vectors: &[libc::iovec]) -> io::Result<()> {
    let pidfd = own_pidfd()?;
    let total: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // SAFETY: as in `zap_some`; the descriptor is this process's own.
    let advised = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            libc::MADV_DONTNEED,
            0,
        )
    };
    let advised = check(advised)? as usize;
    if advised == total { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

fn own_pidfd() -> io::Result<BorrowedPidfd> {
    static PIDFD: OnceLock<(u32, OwnedFd)> = OnceLock::new();
    let own = std::process::id();
    if let Some((pid, fd)) = PIDFD.get() {
        // A child of fork has another id and no mappings of ours to zap: a stale descriptor is never used.
        return if *pid == own { Ok(BorrowedPidfd(fd)) } else { Err(io::ErrorKind::Unsupported.into()) };
    }
    // SAFETY: pidfd_open takes numbers and returns a descriptor or an error.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, own, 0) })?;
    // SAFETY: the kernel just returned this descriptor and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let (_, fd) = PIDFD.get_or_init(|| (own, fd));
    Ok(BorrowedPidfd(fd))
}

struct BorrowedPidfd(&'static OwnedFd);

impl AsRawFd for BorrowedPidfd {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}
