//! What tests need to make the kernel less friendly than it is. Not part of the public interface.

use std::io;
use std::os::fd::BorrowedFd;

/// Makes the kernel answer `errno` to these system calls, for this thread and all that it starts, for good: what the
/// seccomp profile of a container does. For test processes of their own.
///
/// # Errors
/// `EINVAL` where the kernel has no seccomp filters.
pub fn refuse_system_calls(calls: &[libc::c_long], errno: i32) -> io::Result<()> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let ret = libc::BPF_RET | libc::BPF_K;
    let statement = |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    // `nr` comes first in `struct seccomp_data`. The architecture isn't checked: these are no adversaries.
    let mut filter = vec![statement(load, 0, 0)];
    for (index, &call) in calls.iter().enumerate() {
        // Over the remaining comparisons and the ALLOW.
        filter.push(statement(jump, (calls.len() - index) as u8, call as u32));
    }
    filter.push(statement(ret, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(statement(ret, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: changes a flag of this thread; no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` and the filter it points to live across the call, which copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The system calls of io_uring.
pub const IO_URING: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// The system call that syncs a file.
pub const FDATASYNC: libc::c_long = libc::SYS_fdatasync;

/// How many pages of a file's first `len` bytes are in the kernel's page cache. (A read with `RWF_NOWAIT` tells too, but starts
/// read-ahead.)
///
/// # Errors
/// As for [`mincore`](crate::page_cache::mincore).
pub fn pages_in_kernel_cache(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let mut resident = vec![0; len.div_ceil(crate::PAGE_SIZE)];
    crate::page_cache::mincore(fd, 0, &mut resident)?;
    Ok(resident.iter().filter(|&&page| page & 1 != 0).count())
}
