//! System calls that are answered by the test: what is needed to make one call fail, and no other, on a real file system.
//!
//! A filter of seccomp(2) hands the calls that change or read files (`CALLS`), of one thread and all that it starts, to a thread of
//! the same process, the watcher, which the filter does not apply to: see seccomp_unotify(2). The calls of io_uring are not seen:
//! [`refuse_system_calls`](super::refuse_system_calls) takes them away. Which call is to fail is the test's business.
//!
//! While a call waits for its answer, so does the thread that makes it: what its arguments point to stays what it is.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The calls that are answered. All of them mean the same in every thread of a process.
const CALLS: &[libc::c_long] = &[
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_msync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_openat,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
];

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The kernel goes on with it.
    GoesOn,
    /// Nothing is done, and it returns this error number.
    Fails(i32),
    /// It is done, and returns this error number all the same.
    DoneAndFails(i32),
}

/// A call that waits for its answer.
pub struct Call(libc::seccomp_data);

impl Call {
    /// Its number: one of `libc::SYS_*`.
    #[must_use]
    pub fn number(&self) -> libc::c_long {
        self.0.nr.into()
    }

    /// One of its six arguments, counted from 0; 0 past the end.
    #[must_use]
    pub fn argument(&self, index: usize) -> u64 {
        self.0.args.get(index).copied().unwrap_or(0)
    }

    /// The path of the file whose descriptor is the argument `index`; `None` if there is no such descriptor.
    #[must_use]
    pub fn file(&self, index: usize) -> Option<PathBuf> {
        let descriptor = self.argument(index) as libc::c_int;
        if descriptor == libc::AT_FDCWD {
            return std::env::current_dir().ok();
        }
        std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()
    }

    /// The path that the argument `index` points to, from the directory in the argument before it; what /proc has of a descriptor
    /// stands for the file behind it. `None` if there is no string.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<PathBuf> {
        let text = string_at(self.argument(index))?;
        let path = Path::new(OsStr::from_bytes(&text));
        if path.starts_with("/proc/self/fd") {
            return std::fs::read_link(path).ok();
        }
        Some(if path.is_absolute() { path.to_owned() } else { self.file(index.checked_sub(1)?)?.join(path) })
    }

    /// Makes the call here, in place of the thread that waits.
    fn make(&self) {
        let [a, b, c, d, e, f] = self.0.args;
        // SAFETY: the call is one of `CALLS`, with the arguments that a thread of this process has made it with: it is as sound here
        // as it was there. What they point to lives, because that thread waits for the answer.
        unsafe { libc::syscall(self.number(), a, b, c, d, e, f) };
    }
}

/// The bytes at an address of this process up to a zero, by way of the kernel, which says where there is no memory.
fn string_at(address: u64) -> Option<Vec<u8>> {
    const MOST: usize = 4096;
    let memory = File::open("/proc/self/mem").ok()?;
    let mut text = Vec::new();
    while text.len() < MOST {
        let mut part = [0; 64];
        let at = address + text.len() as u64;
        // What lies behind the string may be absent: no further than the end of the page.
        let len = part.len().min(crate::PAGE_SIZE - at as usize % crate::PAGE_SIZE);
        memory.read_exact_at(&mut part[..len], at).ok()?;
        match part[..len].iter().position(|byte| *byte == 0) {
            Some(end) => {
                text.extend(&part[..end]);
                return Some(text);
            }
            None => text.extend(&part[..len]),
        }
    }
    None
}

/// Has `answer` say what becomes of the calls that this thread, and all that it starts from now on, makes for files; for good.
/// It runs in a thread of its own, whose calls are its own business.
///
/// # Errors
/// `EINVAL` or `ENOSYS` where the kernel has no such filters (before Linux 5.5), `EBUSY` where the thread has one already.
pub fn watch(mut answer: impl FnMut(&Call) -> Answer + Send + 'static) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel::<OwnedFd>();
    // First: threads made later inherit the filter.
    std::thread::Builder::new().name("watcher".into()).spawn(move || {
        let Ok(listener) = receiver.recv() else { return };
        let ended = catch_unwind(AssertUnwindSafe(|| while serve(listener.as_fd(), &mut answer) {}));
        if ended.is_err() {
            std::process::abort(); // who waits would be told that there are no such calls, and go on
        }
    })?;
    let listener = listen()?;
    sender.send(listener).map_err(|_| io::Error::other("the watcher has ended"))
}

/// Puts the filter in place.
fn listen() -> io::Result<OwnedFd> {
    let mut filter = super::filter_of(CALLS, libc::SECCOMP_RET_USER_NOTIF);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    super::promise_no_new_privileges()?;
    // SAFETY: `program` and the filter it points to live across the call, which copies them.
    let listener = crate::check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    })?;
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as libc::c_int) })
}

/// Answers one call; `false` when there is nobody left to answer.
fn serve(listener: BorrowedFd<'_>, answer: &mut impl FnMut(&Call) -> Answer) -> bool {
    // SAFETY: an all-zero notification is a valid value.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one notification to `notice`, which is zero as it must be.
    let got = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notice) };
    if got == -1 {
        return match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => true,
            // Whoever made the call was ended meanwhile, or there is nobody left.
            Some(libc::ENOENT) => !is_deserted(listener),
            _ => false,
        };
    }
    let call = Call(notice.data);
    let (error, flags) = match answer(&call) {
        Answer::GoesOn => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Fails(errno) => (-errno, 0),
        Answer::DoneAndFails(errno) => {
            call.make();
            (-errno, 0)
        }
    };
    let response = libc::seccomp_notif_resp { id: notice.id, val: 0, error, flags };
    // Fails where the thread was ended meanwhile, which needs no answer any more.
    // SAFETY: the call reads one response.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    true
}

/// Whether all threads that the filter applies to have ended.
fn is_deserted(listener: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the call reads and writes one `pollfd`.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents & libc::POLLHUP != 0
}
