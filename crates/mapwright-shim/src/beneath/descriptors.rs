//! Calls by descriptors, and what they come to: the C library's functions, which are found before the program begins, and the kernel's calls where
//! a thread can't be cancelled.
//!
//! Found early, because dlsym(3) takes the loader's lock: a thread that writes for the first time would wait for one that loads an object, which may wait for
//! the first one. Those that are looked up when they are called (`next!`) are rare, or not there in every C library.

use super::*;
use libc::{iovec, ssize_t};

/// Numbers of system calls that go through descriptors or share them, and are looked at when they come by syscall(2).
pub(super) const LOOKED_AT: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_utimensat,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_unshare,
    libc::SYS_io_setup,
    libc::SYS_io_uring_setup,
    libc::SYS_pidfd_getfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// As `next!`, found by [`find_all`].
macro_rules! found_early {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty $(, $failed:expr)?;)*) => {
        /// Where each is, by its name.
        #[allow(non_upper_case_globals)] // the C library's names
        mod place {
            use super::{AtomicPtr, c_void};
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());)*
        }

        /// Finds all that are called while other threads may do anything.
        pub(super) fn find_all() {
            $(find(&place::$name, concat!(stringify!($name), "\0"));)*
        }

        $(
            #[allow(non_snake_case)] // the C library's name
            pub(crate) fn $name($($argument: $type),*) -> $result {
                let next = find(&place::$name, concat!(stringify!($name), "\0"));
                if next.is_null() {
                    set_errno(libc::ENOSYS);
                    return $($failed)?;
                }
                // SAFETY: the C library's function of that name, whose arguments and result are these.
                let next: extern "C-unwind" fn($($type),*) -> $result = unsafe { std::mem::transmute(next) };
                next($($argument),*)
            }
        )*
    };
}

found_early! {
    read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t, -1;
    write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t, -1;
    pread(fd: c_int, to: *mut c_void, len: size_t, offset: off_t) -> ssize_t, -1;
    pwrite(fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t, -1;
    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, -1;
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, -1;
    preadv(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, -1;
    pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, -1;
    preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, -1;
    pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, -1;
    fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int, -1;
    fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, -1;
    copy_file_range(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t, -1;
    splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t, -1;
    fsync(fd: c_int) -> c_int, -1;
    fdatasync(fd: c_int) -> c_int, -1;
    sync_file_range(fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int, -1;
    vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, -1;
    fdopen(fd: c_int, mode: *const c_char) -> *mut libc::FILE, std::ptr::null_mut();
    fileno(stream: *mut libc::FILE) -> c_int, -1;
    fileno_unlocked(stream: *mut libc::FILE) -> c_int, -1;
    sendmsg(socket: c_int, message: *const libc::msghdr, flags: c_int) -> ssize_t, -1;
    recvmsg(socket: c_int, message: *mut libc::msghdr, flags: c_int) -> ssize_t, -1;
}

next! {
    __read_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t) -> ssize_t, -1;
    __pread_chk(fd: c_int, to: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t, -1;
    __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, -1;
    posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int, libc::ENOSYS;
    futimens(fd: c_int, times: *const libc::timespec) -> c_int, -1;
    futimes(fd: c_int, times: *const libc::timeval) -> c_int, -1;
    utimensat(folder: c_int, path: *const c_char, times: *const libc::timespec, flags: c_int) -> c_int, -1;
    futimesat(folder: c_int, path: *const c_char, times: *const libc::timeval) -> c_int, -1;
    utimes(path: *const c_char, times: *const libc::timeval) -> c_int, -1;
    lutimes(path: *const c_char, times: *const libc::timeval) -> c_int, -1;
    utime(path: *const c_char, times: *const libc::utimbuf) -> c_int, -1;
    aio_read(control: *mut c_void) -> c_int, -1;
    aio_write(control: *mut c_void) -> c_int, -1;
    aio_fsync(what: c_int, control: *mut c_void) -> c_int, -1;
    lio_listio(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void) -> c_int, -1;
}

system_calls! {
    lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t = SYS_lseek;
    ftruncate(fd: c_int, len: off_t) -> c_int = SYS_ftruncate;
    sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t = SYS_sendfile;
    ioctl(fd: c_int, request: libc::c_ulong, argument: *mut c_void) -> c_int = SYS_ioctl;
    sync() -> c_int = SYS_sync;
    syncfs(fd: c_int) -> c_int = SYS_syncfs;
}
