//! The functions that take the place of the C library's, by their names there.
//!
//! What lies in one's own hands is looked at first, then the call goes on as it came. Those that the C library may cancel a thread in
//! are of the kind that unwinds.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};

use libc::{AT_FDCWD, MAP_ANONYMOUS, MAP_FAILED, MS_SYNC, mode_t, off_t, size_t};

use crate::serve::{self, Request, leave};
use crate::{beneath, descriptors, last, sharing, written};

/// Advice that the server takes. The kernel is not told: it would make one mapping of frames several, across which pages can't be shown.
const ADVICE: [c_int; 4] = [libc::MADV_NORMAL, libc::MADV_RANDOM, libc::MADV_SEQUENTIAL, libc::MADV_WILLNEED];

macro_rules! exported {
    ($($(#[doc = $text:literal])* $abi:literal fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {$(
        $(#[doc = $text])*
        #[allow(non_snake_case)] // the C library's name
        #[unsafe(no_mangle)]
        pub extern $abi fn $name($($argument: $type),*) -> $result $body
    )*};
}

fn map(request: Request) -> *mut c_void {
    let Request { hint, len, protection, flags, fd, offset } = request;
    let replaces = flags & libc::MAP_FIXED != 0;
    if replaces && !leave(hint, len, "something else was mapped there") {
        return MAP_FAILED;
    }
    match serve::map(request) {
        Some(served) => served,
        None if flags & MAP_ANONYMOUS != 0 => beneath::mmap(hint, len, protection, flags, fd, offset),
        None => {
            let noted = written::note(fd); // what the kernel maps is seen by who is about to serve it
            let may_go_on = serve::about_to_map(fd);
            let mapped =
                if may_go_on { beneath::mmap(hint, len, protection, flags, fd, offset) } else { MAP_FAILED };
            drop(noted);
            mapped
        }
    }
}

fn advise(address: *mut c_void, len: size_t, advice: c_int) -> c_int {
    if ADVICE.contains(&advice) && serve::advise(address, len, advice) {
        return 0;
    }
    // Of a private map it throws away what the program has changed.
    let leave = if advice == libc::MADV_DONTNEED { serve::leave_copies } else { leave };
    if !leave(address, len, "madvise(2)") {
        return -1;
    }
    beneath::madvise(address, len, advice)
}

exported! {
    /// mmap(2)
    "C" fn mmap(hint: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void {
        map(Request { hint, len, protection, flags, fd, offset })
    }
    /// mmap(2)
    "C" fn mmap64(hint: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void {
        map(Request { hint, len, protection, flags, fd, offset })
    }
    /// munmap(2)
    "C" fn munmap(address: *mut c_void, len: size_t) -> c_int {
        if serve::leave_for_good(address, len) { beneath::munmap(address, len) } else { -1 }
    }
    /// mprotect(2)
    "C" fn mprotect(address: *mut c_void, len: size_t, protection: c_int) -> c_int {
        if leave(address, len, "mprotect(2)") { beneath::mprotect(address, len, protection) } else { -1 }
    }
    /// mremap(2)
    "C" fn mremap(address: *mut c_void, len: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void {
        let replaces = flags & libc::MREMAP_FIXED != 0;
        if !leave(address, len, "mremap(2)") || replaces && !leave(to, new, "something else was moved there") {
            return MAP_FAILED;
        }
        beneath::mremap(address, len, new, flags, to)
    }
    /// remap_file_pages(2)
    "C" fn remap_file_pages(address: *mut c_void, len: size_t, protection: c_int, page: size_t, flags: c_int) -> c_int {
        if !leave(address, len, "remap_file_pages(2)") {
            return -1;
        }
        beneath::remap_file_pages(address, len, protection, page, flags)
    }
    /// madvise(2)
    "C" fn madvise(address: *mut c_void, len: size_t, advice: c_int) -> c_int {
        advise(address, len, advice)
    }
    /// posix_madvise(3): the error is the result. Its POSIX_MADV_DONTNEED does nothing.
    "C" fn posix_madvise(address: *mut c_void, len: size_t, advice: c_int) -> c_int {
        if advice == libc::POSIX_MADV_DONTNEED {
            return 0;
        }
        let before = beneath::errno();
        let failed = if advise(address, len, advice) == 0 { 0 } else { beneath::errno() };
        beneath::set_errno(before);
        failed
    }
    /// msync(2)
    "C-unwind" fn msync(address: *mut c_void, len: size_t, flags: c_int) -> c_int {
        if flags & MS_SYNC != 0 && !serve::flush(address, len) { -1 } else { beneath::msync(address, len, flags) }
    }
    /// mlock(2)
    "C" fn mlock(address: *const c_void, len: size_t) -> c_int {
        if leave(address, len, "mlock(2)") { beneath::mlock(address, len) } else { -1 }
    }
    /// mlock2(2)
    "C" fn mlock2(address: *const c_void, len: size_t, flags: c_uint) -> c_int {
        if leave(address, len, "mlock2(2)") { beneath::mlock2(address, len, flags) } else { -1 }
    }
    /// munlock(2)
    "C" fn munlock(address: *const c_void, len: size_t) -> c_int {
        if leave(address, len, "munlock(2)") { beneath::munlock(address, len) } else { -1 }
    }
    /// mlockall(2)
    "C" fn mlockall(flags: c_int) -> c_int {
        if serve::leave_all("mlockall(2)") { beneath::mlockall(flags) } else { -1 }
    }
}

exported! {
    /// close(2), of all but the shim's own descriptors, which are not open for the program
    "C-unwind" fn close(fd: c_int) -> c_int {
        if serve::is_own(fd) {
            beneath::set_errno(libc::EBADF);
            return -1;
        }
        beneath::close(fd)
    }
    /// close_range(2), around the shim's own descriptors
    "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        if !sharing::may_close(flags) {
            return -1;
        }
        close_around(first, last, |first, last| beneath::close_range(first, last, flags))
    }
    /// closefrom(3)
    "C-unwind" fn closefrom(first: c_int) -> () {
        close_range(first.max(0) as c_uint, c_uint::MAX, 0);
    }
    /// dup2(2)
    "C-unwind" fn dup2(from: c_int, to: c_int) -> c_int {
        if serve::is_own(to) {
            beneath::set_errno(libc::EBUSY);
            return -1;
        }
        if !descriptors::spoil(from, "put in the place of another descriptor") {
            return -1;
        }
        beneath::dup2(from, to)
    }
    /// dup3(2)
    "C-unwind" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        if serve::is_own(to) {
            beneath::set_errno(libc::EBUSY);
            return -1;
        }
        if !descriptors::spoil(from, "put in the place of another descriptor") {
            return -1;
        }
        beneath::dup3(from, to, flags)
    }
    /// open(2), whose mode is there or not
    "C-unwind" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        opened(AT_FDCWD, path, flags, || beneath::open(path, flags, mode))
    }
    /// open(2)
    "C-unwind" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        opened(AT_FDCWD, path, flags, || beneath::open64(path, flags, mode))
    }
    /// openat(2), whose mode is there or not
    "C-unwind" fn openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        opened(folder, path, flags, || beneath::openat(folder, path, flags, mode))
    }
    /// openat(2)
    "C-unwind" fn openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        opened(folder, path, flags, || beneath::openat64(folder, path, flags, mode))
    }
    /// What open(2) is in programs that are built with `_FORTIFY_SOURCE`
    "C-unwind" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        opened(AT_FDCWD, path, flags, || beneath::__open_2(path, flags))
    }
    /// The same
    "C-unwind" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        opened(AT_FDCWD, path, flags, || beneath::__open64_2(path, flags))
    }
    /// The same
    "C-unwind" fn __openat_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
        opened(folder, path, flags, || beneath::__openat_2(folder, path, flags))
    }
    /// The same
    "C-unwind" fn __openat64_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
        opened(folder, path, flags, || beneath::__openat64_2(folder, path, flags))
    }
    /// pthread_exit(3), which does not return
    "C-unwind" fn pthread_exit(value: *mut c_void) -> () {
        serve::careful((), last::thread_ends);
        beneath::pthread_exit(value);
    }
    /// thrd_exit(3), which does not return
    "C-unwind" fn thrd_exit(code: c_int) -> () {
        serve::careful((), last::thread_ends);
        beneath::thrd_exit(code);
    }
}

/// Opens a file. One that is cut by that without being opened for writing is kept from being served meanwhile.
fn opened(folder: c_int, path: *const c_char, flags: c_int, open: impl FnOnce() -> c_int) -> c_int {
    if !serve::cuts_unseen(flags) {
        return open();
    }
    beneath::without_cancellation(|| {
        serve::cutting(|| beneath::find_file(folder, path, flags), || open().into())
    }) as c_int
}

/// Closes a range of descriptors around the shim's own.
fn close_around(first: c_uint, last: c_uint, close: impl Fn(c_uint, c_uint) -> c_int) -> c_int {
    if first > last {
        return close(first, last);
    }
    let mut next = u64::from(first);
    for own in serve::own_in(u64::from(first)..u64::from(last) + 1) {
        if next < own {
            let closed = close(next as c_uint, (own - 1) as c_uint);
            if closed != 0 {
                return closed;
            }
        }
        next = own + 1;
    }
    if next > u64::from(last) { 0 } else { close(next as c_uint, last) }
}

/// A system call that came by syscall(2), and whose number is among those that are looked at. It is no point where a thread
/// may be cancelled, and has six arguments, of which those that were not given are anything.
pub(crate) extern "C" fn dispatch(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let (start, len) = (a as *mut c_void, b as usize);
    let on = || beneath::pass_on(number, [a, b, c, d, e, f]);
    let refused = |errno| {
        beneath::set_errno(errno);
        -1
    };
    match number {
        libc::SYS_mmap => mmap(start, len, c as c_int, d as c_int, e as c_int, f) as c_long,
        libc::SYS_munmap => munmap(start, len).into(),
        libc::SYS_mprotect => mprotect(start, len, c as c_int).into(),
        libc::SYS_mremap => mremap(start, len, c as size_t, d as c_int, e as *mut c_void) as c_long,
        libc::SYS_madvise => madvise(start, len, c as c_int).into(),
        libc::SYS_msync => msync(start, len, c as c_int).into(),
        libc::SYS_mlock => mlock(start, len).into(),
        libc::SYS_mlock2 => mlock2(start, len, c as c_uint).into(),
        libc::SYS_munlock => munlock(start, len).into(),
        libc::SYS_mlockall => mlockall(a as c_int).into(),
        libc::SYS_remap_file_pages => {
            remap_file_pages(start, len, c as c_int, d as size_t, e as c_int).into()
        }
        libc::SYS_close if serve::is_own(a as c_int) => refused(libc::EBADF),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => dup2(a as c_int, b as c_int).into(),
        libc::SYS_dup3 => dup3(a as c_int, b as c_int, c as c_int).into(),
        libc::SYS_close_range if !sharing::may_close(c as c_int) => -1,
        libc::SYS_close_range => {
            let close = |first, last| {
                beneath::pass_on(number, [c_long::from(first), c_long::from(last), c, d, e, f]) as c_int
            };
            close_around(a as c_uint, b as c_uint, close).into()
        }
        libc::SYS_exit => {
            if last::is_first() {
                last::thread_ends_with(a as c_int);
            }
            on()
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open if serve::cuts_unseen(b as c_int) => {
            serve::cutting(|| beneath::find_file(AT_FDCWD, a as *const c_char, b as c_int), on)
        }
        libc::SYS_openat if serve::cuts_unseen(c as c_int) => {
            serve::cutting(|| beneath::find_file(a as c_int, b as *const c_char, c as c_int), on)
        }
        libc::SYS_openat2 => match beneath::how_to_open(c, d) {
            Some(how) if serve::cuts_unseen(how[0] as c_int) => {
                serve::cutting(|| beneath::find_file_by(a, b, how), on)
            }
            _ => on(),
        },
        _ => descriptors::by_number(number, [a, b, c, d, e, f], on),
    }
}
