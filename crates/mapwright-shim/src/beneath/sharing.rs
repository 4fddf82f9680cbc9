//! Calls that hand descriptors to other processes or take theirs.

use std::ffi::CStr;

use super::*;

next! {
    recvmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int, timeout: *mut libc::timespec) -> c_int, -1;
    sendmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int, -1;
    posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    pidfd_spawn(pidfd: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    pidfd_spawnp(pidfd: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, libc::ENOSYS;
    system(command: *const c_char) -> c_int, -1;
    popen(command: *const c_char, kind: *const c_char) -> *mut libc::FILE, std::ptr::null_mut();
    wordexp(words: *const c_char, to: *mut c_void, flags: c_int) -> c_int, WRDE_NOSPACE;
    execv(path: *const c_char, arguments: *const *const c_char) -> c_int, -1;
    execvp(file: *const c_char, arguments: *const *const c_char) -> c_int, -1;
    execvpe(file: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, -1;
    fexecve(fd: c_int, arguments: *const *const c_char, environment: *const *const c_char) -> c_int, -1;
}

/// `WRDE_NOSPACE` of wordexp.h.
pub(crate) const WRDE_NOSPACE: c_int = 1;

system_calls! {
    execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int = SYS_execve;
    execveat(folder: c_int, path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char, flags: c_int) -> c_int = SYS_execveat;
    unshare(flags: c_int) -> c_int = SYS_unshare;
    pidfd_getfd(process: c_int, fd: c_int, flags: c_uint) -> c_int = SYS_pidfd_getfd;
}

/// A function of a library that a program may have loaded for itself alone, as liburing or libaio: not among those that follow this object then, but
/// in sight of whoever calls. -ENOSYS, as those libraries say it, if there is none.
pub(crate) fn library_call(name: &'static CStr, own: usize, arguments: [usize; 5], caller: usize) -> c_int {
    // SAFETY: the name ends with a zero.
    let mut found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    if found.is_null() {
        found = find_for(caller, name);
    }
    if found.is_null() || found.addr() == own {
        return -libc::ENOSYS;
    }
    let [a, b, c, d, e] = arguments;
    // SAFETY: the library's function of that name, which has at most five arguments, all of them in registers for whole numbers.
    let next: extern "C" fn(usize, usize, usize, usize, usize) -> c_int =
        unsafe { std::mem::transmute(found) };
    next(a, b, c, d, e)
}

/// What a name means in the object that an address is in, and in those that it needs.
fn find_for(caller: usize, name: &CStr) -> *mut c_void {
    let nothing = std::ptr::null_mut();
    let mut object = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the pointer is to a structure of that type, which the call fills if it does not return 0.
    if unsafe { libc::dladdr(caller as *const c_void, object.as_mut_ptr()) } == 0 {
        return nothing;
    }
    // SAFETY: zeroes are a value of it, and the call has filled it.
    let path = unsafe { object.assume_init_ref() }.dli_fname;
    // SAFETY: the loader's own name of the object, which is loaded, because it calls.
    let handle = unsafe { libc::dlopen(path, libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    if handle.is_null() {
        return nothing;
    }
    // SAFETY: the handle is valid, the name ends with a zero.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    // SAFETY: of the call above, and not used again; the object stays, because it calls.
    unsafe { libc::dlclose(handle) };
    found
}
