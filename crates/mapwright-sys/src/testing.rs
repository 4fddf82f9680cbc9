//! What tests need to make the kernel less friendly than it is. Not part of the public interface.

use std::io;
use std::os::fd::BorrowedFd;

pub mod watched;

/// Makes the kernel answer `errno` to these system calls, for this thread and all that it starts, for good: what the
/// seccomp profile of a container does. For test processes of their own.
///
/// # Errors
/// `EINVAL` where the kernel has no seccomp filters.
pub fn refuse_system_calls(calls: &[libc::c_long], errno: i32) -> io::Result<()> {
    let mut filter = filter_of(calls, libc::SECCOMP_RET_ERRNO | errno as u32);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    promise_no_new_privileges()?;
    // SAFETY: `program` and the filter it points to live across the call, which copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A filter that has `action` for these system calls, and lets all others pass.
fn filter_of(calls: &[libc::c_long], action: u32) -> Vec<libc::sock_filter> {
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
    filter.push(statement(ret, 0, action));
    filter
}

/// What the kernel asks of a thread without privileges before it takes a filter of its.
fn promise_no_new_privileges() -> io::Result<()> {
    // SAFETY: changes a flag of this thread; no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a thread of this process, named as gettid(2) does, is in a call that waits for a futex. (futex(2) is also what wakes.)
pub fn waits_for_a_futex(thread: i32) -> bool {
    let waits = [libc::SYS_futex, libc::SYS_futex_waitv];
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
    let number = call.split_ascii_whitespace().next().and_then(|number| number.parse().ok()); // or that it runs
    number.is_some_and(|number| waits.contains(&number))
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

/// Whether the calling test is in a process of its own. If it is not, it has been run in one, and has nothing left to do. For tests
/// whose forks start threads: a thread of another test may hold a lock of the standard library's while this one forks, and the
/// child would wait for it for ever.
///
/// # Panics
/// If the test fails there.
pub fn in_its_own_process() -> bool {
    const ALONE: &str = "MAPWRIGHT_TEST_ALONE";
    let thread = std::thread::current();
    // The harness names a test's thread by the test. One by one it runs them in the main thread, with no other.
    let test = thread.name().filter(|name| *name != "main");
    let (Some(test), None) = (test, std::env::var_os(ALONE)) else { return true };
    let mut command = std::process::Command::new(std::env::current_exe().expect("this test's binary"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    let output = command.output().expect("a process of its own");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{test}, by itself: {}\n{out}\n{err}", output.status);
    eprint!("{err}");
    false
}

/// A child made by fork(2), without exec. It is ended and waited for when this is dropped.
#[derive(Debug)]
pub struct Fork(libc::pid_t);

impl Fork {
    /// Runs `run` in a child, which then ends: with 0, or 101 if it has panicked.
    ///
    /// # Errors
    /// What fork(2) says.
    pub fn new(run: impl FnOnce()) -> io::Result<Self> {
        // SAFETY: the child has this thread only. What it runs is a test's, whose locks are the C library's allocator's, which
        // are in order after fork, and the child never returns from here.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                // SAFETY: it ends the process, and runs nothing that the parent has left to be run at the end.
                unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 101 }) }
            }
            child => Ok(Self(child)),
        }
    }

    /// Ends the calling process at once, by SIGKILL.
    pub fn die() -> ! {
        // SAFETY: raise takes a number.
        unsafe { libc::raise(libc::SIGKILL) };
        std::process::abort()
    }

    /// Ends the child by SIGKILL.
    pub fn kill(&self) {
        // SAFETY: kill takes numbers; the child has not been waited for, so that its id is still its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }

    /// Whether the child has ended, and how, as [`wait`](Self::wait) tells; it still can be waited for.
    #[must_use]
    pub fn has_ended(&self) -> Option<i32> {
        // SAFETY: an all-zero siginfo is a valid value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: it looks at a child of this process and writes to `info`.
        unsafe { libc::waitid(libc::P_PID, self.0 as libc::id_t, &mut info, flags) };
        // SAFETY: it was filled in, or is zero.
        let ended = unsafe { info.si_pid() } == self.0;
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        ended.then_some(if info.si_code == libc::CLD_EXITED { status } else { -status })
    }

    /// Waits for the child: its exit code, or minus the signal that has ended it.
    #[must_use]
    pub fn wait(self) -> i32 {
        let status = self.wait_for();
        std::mem::forget(self);
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
    }

    fn wait_for(&self) -> libc::c_int {
        let mut status = 0;
        loop {
            // SAFETY: it waits for a child of this process and writes to `status`.
            let waited = unsafe { libc::waitpid(self.0, &mut status, 0) };
            if waited != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return status;
            }
        }
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait_for();
    }
}
