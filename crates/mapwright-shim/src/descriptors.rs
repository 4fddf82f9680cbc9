//! What a program does by descriptors, which would pass by the pages of a file that is served for writing: such a file is the kernel's before the
//! call goes on, and stays so. Calls that bring a file to the disk are the exception: what was written in the maps is written to the file first.
//!
//! Each call notes its descriptors and looks whether anything is served for writing at all, and goes on: all of a program's reading and writing comes
//! through here.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

use libc::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, FILE, iovec, off_t, size_t, ssize_t};

use mapwright::guest::Identity;

use crate::{beneath, serve, written};

/// Requests of ioctl(2) that read another descriptor's file (linux/fs.h).
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;
const FIDEDUPERANGE: u32 = 0xc018_9436;
/// Commands of fcntl(2) that change what an open file description does, or whom it tells of something: the server's lease is one of those.
const CHANGES: [c_int; 5] = [libc::F_SETFL, libc::F_SETLEASE, libc::F_SETOWN, F_SETSIG, F_SETOWN_EX];
/// And those that tell it.
const TELLS: [c_int; 4] = [libc::F_GETLEASE, libc::F_GETOWN, F_GETSIG, F_GETOWN_EX];
const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;
const F_SETOWN_EX: c_int = 15;
const F_GETOWN_EX: c_int = 16;

/// Makes a call by descriptors, when nothing is served for writing any more of what they are of. -1 with errno set if that can't be.
#[inline]
fn by<T: From<i8>, const COUNT: usize>(fds: [c_int; COUNT], why: &str, call: impl FnOnce() -> T) -> T {
    let noted = fds.map(written::note);
    let done = if written::is_empty() || leave(&fds, why) { call() } else { T::from(-1) };
    drop(noted);
    done
}

#[cold]
fn leave(fds: &[c_int], why: &str) -> bool {
    fds.iter().filter_map(|fd| written::served_by(*fd)).all(|file| serve::leave_file(file, why))
}

/// Makes a call that brings what was written of a descriptor's file to the disk.
fn flushed<T: From<i8>>(fd: c_int, call: impl FnOnce() -> T) -> T {
    if written::is_empty() || written::served_by(fd).is_none_or(serve::flush_file) {
        call()
    } else {
        T::from(-1)
    }
}

/// The same, of all files of the descriptor's file system, or of all.
fn all_flushed<T: From<i8>>(fd: Option<c_int>, call: impl FnOnce() -> T) -> T {
    let device = fd.and_then(written::device_of);
    let mut files = written::files().filter(|file| fd.is_none() || Some(file.device) == device);
    if files.all(serve::flush_file) { call() } else { T::from(-1) }
}

/// Makes a call that changes the times of a file, which the writing of its pages would change again.
fn timed(find: impl FnOnce() -> Option<Identity>, call: impl FnOnce() -> c_int) -> c_int {
    let file = if written::is_empty() { None } else { find().filter(|file| written::is_served(*file)) };
    if file.is_none_or(|file| serve::leave_file(file, "its times were set")) { call() } else { -1 }
}

/// The file of a path, as calls that set times find it: of the descriptor itself if there is no path.
fn named(folder: c_int, path: *const c_char, flags: c_int) -> Option<Identity> {
    if path.is_null() { written::served_by(folder) } else { beneath::identity_at(folder, path, flags) }
}

/// A file that is open for reading and writing is from now on read and written by somebody who does not call what is here. `false` with errno set if
/// it can't be given back.
pub(crate) fn spoil(fd: c_int, why: &str) -> bool {
    let Some(file) = written::writable(fd) else { return true };
    written::never_again(file);
    written::is_empty() || !written::is_served(file) || serve::leave_file(file, why)
}

/// Makes a call after which files may be read and written by somebody who does not call what is here: nothing is served for writing any more.
pub(crate) fn unwatched<T>(why: &str, failed: T, call: impl FnOnce() -> T) -> T {
    written::nothing_any_more();
    if written::is_empty() || serve::leave_written(why) { call() } else { failed }
}

/// Functions that are about their descriptors' files, and then the C library's.
macro_rules! by_descriptor {
    ($($(#[doc = $text:literal])* $abi:literal fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty, by $($fd:ident)+ => $next:ident;)*) => {
        exported! {$(
            $(#[doc = $text])*
            $abi fn $name($($argument: $type),*) -> $result {
                by([$($fd),+], concat!(stringify!($name), "(2)"), || beneath::$next($($argument),*))
            }
        )*}
    };
}

by_descriptor! {
    /// read(2)
    "C-unwind" fn read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t, by fd => read;
    /// read(2)
    "C-unwind" fn __read(fd: c_int, to: *mut c_void, len: size_t) -> ssize_t, by fd => read;
    /// What read(2) is in programs that are built with `_FORTIFY_SOURCE`
    "C-unwind" fn __read_chk(fd: c_int, to: *mut c_void, len: size_t, room: size_t) -> ssize_t, by fd => __read_chk;
    /// pread(2)
    "C-unwind" fn pread(fd: c_int, to: *mut c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pread;
    /// pread(2)
    "C-unwind" fn pread64(fd: c_int, to: *mut c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pread;
    /// pread(2)
    "C-unwind" fn __pread64(fd: c_int, to: *mut c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pread;
    /// What pread(2) is in programs that are built with `_FORTIFY_SOURCE`
    "C-unwind" fn __pread_chk(fd: c_int, to: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t, by fd => __pread_chk;
    /// The same
    "C-unwind" fn __pread64_chk(fd: c_int, to: *mut c_void, len: size_t, offset: off_t, room: size_t) -> ssize_t, by fd => __pread_chk;
    /// readv(2)
    "C-unwind" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, by fd => readv;
    /// preadv(2)
    "C-unwind" fn preadv(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, by fd => preadv;
    /// preadv(2)
    "C-unwind" fn preadv64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, by fd => preadv;
    /// preadv2(2)
    "C-unwind" fn preadv2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, by fd => preadv2;
    /// preadv2(2)
    "C-unwind" fn preadv64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, by fd => preadv2;
    /// write(2)
    "C-unwind" fn write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t, by fd => write;
    /// write(2)
    "C-unwind" fn __write(fd: c_int, from: *const c_void, len: size_t) -> ssize_t, by fd => write;
    /// pwrite(2)
    "C-unwind" fn pwrite(fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pwrite;
    /// pwrite(2)
    "C-unwind" fn pwrite64(fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pwrite;
    /// pwrite(2)
    "C-unwind" fn __pwrite64(fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t, by fd => pwrite;
    /// writev(2)
    "C-unwind" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, by fd => writev;
    /// pwritev(2)
    "C-unwind" fn pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, by fd => pwritev;
    /// pwritev(2)
    "C-unwind" fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t, by fd => pwritev;
    /// pwritev2(2)
    "C-unwind" fn pwritev2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, by fd => pwritev2;
    /// pwritev2(2)
    "C-unwind" fn pwritev64v2(fd: c_int, parts: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, by fd => pwritev2;
    /// ftruncate(2)
    "C" fn ftruncate(fd: c_int, len: off_t) -> c_int, by fd => ftruncate;
    /// ftruncate(2)
    "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int, by fd => ftruncate;
    /// fallocate(2)
    "C-unwind" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, by fd => fallocate;
    /// fallocate(2)
    "C-unwind" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, by fd => fallocate;
    /// copy_file_range(2)
    "C-unwind" fn copy_file_range(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t, by from to => copy_file_range;
    /// sendfile(2)
    "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t, by to from => sendfile;
    /// sendfile(2)
    "C" fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t, by to from => sendfile;
    /// splice(2)
    "C-unwind" fn splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint) -> ssize_t, by from to => splice;
    /// vdprintf(3)
    "C-unwind" fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, by fd => vdprintf;
    /// What vdprintf(3) is in programs that are built with `_FORTIFY_SOURCE`
    "C-unwind" fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, by fd => __vdprintf_chk;
}

/// dprintf(3), when its arguments are laid out.
pub(crate) extern "C-unwind" fn print(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
    by([fd], "dprintf(3)", || beneath::vdprintf(fd, format, arguments))
}

/// The same of `__dprintf_chk`.
pub(crate) extern "C-unwind" fn print_checked(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    arguments: *mut c_void,
) -> c_int {
    by([fd], "dprintf(3)", || beneath::__vdprintf_chk(fd, flag, format, arguments))
}

fn seek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    let on = || beneath::lseek(fd, offset, whence);
    // Positions are the kernel's, and so is the length: the rest asks what is in the file.
    if whence == libc::SEEK_DATA || whence == libc::SEEK_HOLE { by([fd], "lseek(2)", on) } else { on() }
}

fn allocate(fd: c_int, offset: off_t, len: off_t) -> c_int {
    let before = beneath::errno();
    let mut failed = libc::EIO;
    by([fd], "posix_fallocate(3)", || {
        failed = beneath::posix_fallocate(fd, offset, len);
        0
    });
    beneath::set_errno(before);
    failed
}

/// ioctl(2): what it does to a file is known of some requests only.
fn control<T: From<i8>>(fd: c_int, request: c_ulong, argument: *mut c_void, on: impl FnOnce() -> T) -> T {
    const WHY: &str = "ioctl(2)";
    // The kernel takes no more of it.
    match request as u32 {
        FICLONE => by([fd, argument.addr() as c_int], WHY, on),
        FICLONERANGE => by([fd, beneath::cloned_from(argument)], WHY, on),
        // Of any number of files.
        FIDEDUPERANGE if !written::is_empty() && !serve::leave_written(WHY) => T::from(-1),
        _ => by([fd], WHY, on),
    }
}

fn change<T: From<i8>>(fd: c_int, command: c_int, on: impl FnOnce() -> T) -> T {
    const WHY: &str = "fcntl(2)";
    if CHANGES.contains(&command) {
        // What it has changed is not changed back by whoever serves it later.
        if command == libc::F_SETFL || spoil(fd, WHY) { by([fd], WHY, on) } else { T::from(-1) }
    } else if TELLS.contains(&command) {
        by([fd], WHY, on)
    } else {
        on()
    }
}

exported! {
    /// lseek(2)
    "C" fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
        seek(fd, offset, whence)
    }
    /// lseek(2)
    "C" fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t {
        seek(fd, offset, whence)
    }
    /// lseek(2)
    "C" fn __lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
        seek(fd, offset, whence)
    }
    /// posix_fallocate(3): the error is the result
    "C-unwind" fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int {
        allocate(fd, offset, len)
    }
    /// posix_fallocate(3)
    "C-unwind" fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int {
        allocate(fd, offset, len)
    }
    /// ioctl(2), whose argument is there or not
    "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
        control(fd, request, argument, || beneath::ioctl(fd, request, argument))
    }
    /// fcntl(2), whose argument is there or not
    "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
        change(fd, command, || beneath::fcntl(fd, command, argument))
    }
    /// fcntl(2)
    "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
        change(fd, command, || beneath::fcntl(fd, command, argument))
    }
    /// fcntl(2)
    "C-unwind" fn __fcntl(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
        change(fd, command, || beneath::fcntl(fd, command, argument))
    }
    /// fdopen(3): streams read and write by themselves
    "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
        if spoil(fd, "fdopen(3)") { beneath::fdopen(fd, mode) } else { std::ptr::null_mut() }
    }
    /// fileno(3)
    "C" fn fileno(stream: *mut FILE) -> c_int {
        told(beneath::fileno(stream))
    }
    /// fileno(3)
    "C" fn fileno_unlocked(stream: *mut FILE) -> c_int {
        told(beneath::fileno_unlocked(stream))
    }
}

/// A stream's descriptor, which the program may map a file by.
fn told(fd: c_int) -> c_int {
    if fd < 0 || spoil(fd, "fileno(3)") { fd } else { -1 }
}

exported! {
    /// fsync(2)
    "C-unwind" fn fsync(fd: c_int) -> c_int {
        flushed(fd, || beneath::fsync(fd))
    }
    /// fdatasync(2)
    "C-unwind" fn fdatasync(fd: c_int) -> c_int {
        flushed(fd, || beneath::fdatasync(fd))
    }
    /// sync_file_range(2)
    "C-unwind" fn sync_file_range(fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int {
        flushed(fd, || beneath::sync_file_range(fd, offset, len, flags))
    }
    /// sync(2), which can't fail
    "C" fn sync() -> () {
        all_flushed(None, || 0);
        beneath::sync();
    }
    /// syncfs(2)
    "C" fn syncfs(fd: c_int) -> c_int {
        all_flushed(Some(fd), || beneath::syncfs(fd))
    }
    /// futimens(3)
    "C" fn futimens(fd: c_int, times: *const libc::timespec) -> c_int {
        timed(|| written::served_by(fd), || beneath::futimens(fd, times))
    }
    /// futimes(3)
    "C" fn futimes(fd: c_int, times: *const libc::timeval) -> c_int {
        timed(|| written::served_by(fd), || beneath::futimes(fd, times))
    }
    /// utimensat(2)
    "C" fn utimensat(folder: c_int, path: *const c_char, times: *const libc::timespec, flags: c_int) -> c_int {
        timed(|| named(folder, path, flags), || beneath::utimensat(folder, path, times, flags))
    }
    /// futimesat(2)
    "C" fn futimesat(folder: c_int, path: *const c_char, times: *const libc::timeval) -> c_int {
        timed(|| named(folder, path, 0), || beneath::futimesat(folder, path, times))
    }
    /// utimes(2)
    "C" fn utimes(path: *const c_char, times: *const libc::timeval) -> c_int {
        timed(|| named(AT_FDCWD, path, 0), || beneath::utimes(path, times))
    }
    /// lutimes(3)
    "C" fn lutimes(path: *const c_char, times: *const libc::timeval) -> c_int {
        timed(|| named(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW), || beneath::lutimes(path, times))
    }
    /// utime(2)
    "C" fn utime(path: *const c_char, times: *const libc::utimbuf) -> c_int {
        timed(|| named(AT_FDCWD, path, 0), || beneath::utime(path, times))
    }
}

/// Reading and writing by threads of the C library's own.
fn by_another_thread(call: impl FnOnce() -> c_int) -> c_int {
    unwatched("aio(7)", -1, call)
}

exported! {
    /// aio_read(3)
    "C" fn aio_read(control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_read(control))
    }
    /// aio_read(3)
    "C" fn aio_read64(control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_read(control))
    }
    /// aio_write(3)
    "C" fn aio_write(control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_write(control))
    }
    /// aio_write(3)
    "C" fn aio_write64(control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_write(control))
    }
    /// aio_fsync(3)
    "C" fn aio_fsync(what: c_int, control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_fsync(what, control))
    }
    /// aio_fsync(3)
    "C" fn aio_fsync64(what: c_int, control: *mut c_void) -> c_int {
        by_another_thread(|| beneath::aio_fsync(what, control))
    }
    /// lio_listio(3)
    "C-unwind" fn lio_listio(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void) -> c_int {
        by_another_thread(|| beneath::lio_listio(mode, list, count, event))
    }
    /// lio_listio(3)
    "C-unwind" fn lio_listio64(mode: c_int, list: *const *mut c_void, count: c_int, event: *mut c_void) -> c_int {
        by_another_thread(|| beneath::lio_listio(mode, list, count, event))
    }
}

/// A system call by its number, if it is one of these: `on` goes on with it.
pub(crate) fn by_number(number: c_long, arguments: [c_long; 6], on: impl Fn() -> c_long) -> c_long {
    let [a, b, c, d, ..] = arguments;
    let fd = a as c_int;
    let timed_by = |folder, path, flags| c_long::from(timed(|| named(folder, path, flags), || on() as c_int));
    match number {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => {
            by([fd], "read(2)", on)
        }
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
            by([fd], "write(2)", on)
        }
        libc::SYS_ftruncate | libc::SYS_fallocate => by([fd], "ftruncate(2)", on),
        libc::SYS_lseek if c as c_int == libc::SEEK_DATA || c as c_int == libc::SEEK_HOLE => {
            by([fd], "lseek(2)", on)
        }
        libc::SYS_copy_file_range | libc::SYS_splice => by([fd, c as c_int], "copy_file_range(2)", on),
        libc::SYS_sendfile => by([fd, b as c_int], "sendfile(2)", on),
        libc::SYS_ioctl => control(fd, b as c_ulong, c as *mut c_void, on),
        libc::SYS_fcntl => change(fd, b as c_int, on),
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_sync_file_range => flushed(fd, on),
        libc::SYS_sync => {
            all_flushed(None, || 0);
            on()
        }
        libc::SYS_syncfs => all_flushed(Some(fd), on),
        libc::SYS_utimensat => timed_by(fd, b as *const c_char, d as c_int),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_futimesat => timed_by(fd, b as *const c_char, 0),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utime | libc::SYS_utimes => timed_by(AT_FDCWD, a as *const c_char, 0),
        libc::SYS_io_setup | libc::SYS_io_uring_setup => unwatched("io_uring(7)", -1, on),
        _ => crate::sharing::by_number(number, arguments, on),
    }
}
