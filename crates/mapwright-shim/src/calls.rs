//! The functions that take the place of the C library's, by their names there.
//!
//! What lies in one's own hands is looked at first, then the call goes on as it came. Those that the C library may cancel a thread in
//! are of the kind that unwinds.

use std::ffi::{c_int, c_uint, c_void};

use libc::{MAP_FAILED, off_t, size_t};

use crate::beneath;
use crate::serve::{self, Request, leave};

/// Advice that the server takes. The kernel is not told: it would make one mapping of frames several, across which pages can't be shown.
const ADVICE: [c_int; 4] = [libc::MADV_NORMAL, libc::MADV_RANDOM, libc::MADV_SEQUENTIAL, libc::MADV_WILLNEED];

macro_rules! exported {
    ($($(#[doc = $text:literal])* $abi:literal fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {$(
        $(#[doc = $text])*
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
    serve::map(request).unwrap_or_else(|| beneath::mmap(hint, len, protection, flags, fd, offset))
}

fn advise(address: *mut c_void, len: size_t, advice: c_int) -> c_int {
    if ADVICE.contains(&advice) && serve::advise(address, len, advice) {
        return 0;
    }
    if advice != libc::MADV_DONTNEED && !leave(address, len, "madvise(2)") {
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
        if leave(address, len, "unmapped") { beneath::munmap(address, len) } else { -1 }
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
        if first > last {
            return beneath::close_range(first, last, flags);
        }
        let mut next = u64::from(first);
        for own in serve::own_in(u64::from(first)..u64::from(last) + 1) {
            if next < own {
                let closed = beneath::close_range(next as c_uint, (own - 1) as c_uint, flags);
                if closed != 0 {
                    return closed;
                }
            }
            next = own + 1;
        }
        if next > u64::from(last) { 0 } else { beneath::close_range(next as c_uint, last, flags) }
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
        beneath::dup2(from, to)
    }
    /// dup3(2)
    "C-unwind" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        if serve::is_own(to) {
            beneath::set_errno(libc::EBUSY);
            return -1;
        }
        beneath::dup3(from, to, flags)
    }
}
