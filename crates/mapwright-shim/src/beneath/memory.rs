//! What a program's calls point to. It is looked at where the call itself would have looked, and nowhere if the pointer is null.

use super::*;

/// Reads a value of a program's.
///
/// # Safety
/// The program says by its call that there is one, of a type of which all bytes are values.
unsafe fn peek<T: Copy>(address: usize) -> T {
    // SAFETY: the caller's promise.
    unsafe { (address as *const T).read_unaligned() }
}

/// Calls a function with each descriptor that a message carries.
pub(crate) fn descriptors_in(message: *const libc::msghdr, mut each: impl FnMut(c_int)) {
    if message.is_null() {
        return;
    }
    // SAFETY: the program's own message, to be sent or just received.
    let message: libc::msghdr = unsafe { peek(message.addr()) };
    let (control, len) = (message.msg_control.addr(), message.msg_controllen);
    let header = size_of::<libc::cmsghdr>();
    let mut at = 0;
    while control != 0 && at + header <= len {
        // SAFETY: in the program's control data, which are of this length.
        let part: libc::cmsghdr = unsafe { peek(control + at) };
        let part_len = part.cmsg_len;
        if part_len < header {
            return;
        }
        let end = at.saturating_add(part_len).min(len);
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            let places = (at + header..end).step_by(size_of::<c_int>());
            for place in places.filter(|place| place + size_of::<c_int>() <= end) {
                // SAFETY: as above.
                each(unsafe { peek(control + place) });
            }
        }
        at = at.saturating_add(part_len).next_multiple_of(size_of::<size_t>());
    }
}

/// The messages that sendmmsg(2) and recvmmsg(2) are handed.
pub(crate) fn messages(
    first: *const libc::mmsghdr,
    count: usize,
) -> impl Iterator<Item = *const libc::msghdr> {
    let count = if first.is_null() { 0 } else { count };
    (0..count).map(move |index| first.wrapping_add(index).cast())
}

/// The descriptor that ioctl(2) with FICLONERANGE reads from.
pub(crate) fn cloned_from(argument: *const c_void) -> c_int {
    if argument.is_null() {
        return -1;
    }
    // SAFETY: the first of the program's own words.
    let fd: i64 = unsafe { peek(argument.addr()) };
    fd as c_int
}

/// Device and inode of what a path leads to, if it is a regular file. errno stays as it is.
pub(crate) fn identity_at(folder: c_int, path: *const c_char, flags: c_int) -> Option<Identity> {
    let before = errno();
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel looks at the program's own path, and answers for an address that is none; the third is of a structure that it fills.
    let found = unsafe { libc::fstatat(folder, path, stat.as_mut_ptr(), flags) };
    set_errno(before);
    if found != 0 {
        return None;
    }
    // SAFETY: filled, because the call returned 0.
    let stat = unsafe { stat.assume_init_ref() };
    let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    is_regular.then_some(Identity { device: stat.st_dev, inode: stat.st_ino })
}

/// The arguments of execle(3) without what follows them, and that: the environment.
pub(crate) fn environment_after(arguments: *const *const c_char) -> *const *const c_char {
    let mut at = arguments;
    loop {
        // SAFETY: the arguments end with a null pointer, as the program says by calling it.
        let argument: *const c_char = unsafe { peek(at.addr()) };
        at = at.wrapping_add(1);
        if argument.is_null() {
            break;
        }
    }
    // SAFETY: after that pointer there is the environment's.
    unsafe { peek(at.addr()) }
}
