//! What lies beneath the shim: the kernel's calls and those of the C library whose place it takes. All unsafe code of this crate.
//!
//! What is passed on is the program's own call with the program's own arguments: whatever it asks for is its to answer for, with
//! the shim or without it. Each function here is called for that and nothing else, but for those at the end, which look
//! at arguments that the call itself would have looked at.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{off_t, size_t};
use mapwright::guest::Identity;

/// Called by the loader before the program's own constructors.
extern "C" fn start() {
    crate::serve::start();
}

#[used]
// SAFETY: the loader calls what is listed there, as a function without arguments that it needs.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// System calls, by their numbers: they do not pass through the C library's functions, which are replaced, and set errno.
macro_rules! system_calls {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty = $number:ident;)*) => {$(
        pub(crate) fn $name($($argument: $type),*) -> $result {
            // SAFETY: the program's own call, passed on.
            unsafe { libc::syscall(libc::$number $(, $argument as c_long)*) as $result }
        }
    )*};
}

system_calls! {
    mmap(address: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void = SYS_mmap;
    munmap(address: *mut c_void, len: size_t) -> c_int = SYS_munmap;
    mprotect(address: *mut c_void, len: size_t, protection: c_int) -> c_int = SYS_mprotect;
    mremap(address: *mut c_void, len: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void = SYS_mremap;
    madvise(address: *mut c_void, len: size_t, advice: c_int) -> c_int = SYS_madvise;
    mlock(address: *const c_void, len: size_t) -> c_int = SYS_mlock;
    mlock2(address: *const c_void, len: size_t, flags: c_uint) -> c_int = SYS_mlock2;
    munlock(address: *const c_void, len: size_t) -> c_int = SYS_munlock;
    mlockall(flags: c_int) -> c_int = SYS_mlockall;
    remap_file_pages(address: *mut c_void, len: size_t, protection: c_int, page: size_t, flags: c_int) -> c_int = SYS_remap_file_pages;
}

/// The C library's functions: close(2) is a point where a thread may be cancelled. It unwinds through here, where nothing is to be dropped.
macro_rules! next {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $failed:expr;)*) => {$(
        pub(crate) fn $name($($argument: $type),*) -> $result {
            static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let next = find(&NEXT, concat!(stringify!($name), "\0"));
            if next.is_null() {
                set_errno(libc::ENOSYS);
                return $failed;
            }
            // SAFETY: the C library's function of that name, whose arguments and result are these.
            let next: extern "C-unwind" fn($($type),*) -> $result = unsafe { std::mem::transmute(next) };
            next($($argument),*)
        }
    )*};
}

next! {
    close(fd: c_int) -> c_int, -1;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, -1;
    dup2(from: c_int, to: c_int) -> c_int, -1;
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int, -1;
}

/// The next function of a name after this object's own, looked up once.
fn find(place: &AtomicPtr<c_void>, name: &'static str) -> *mut c_void {
    let mut found = place.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name ends with a zero.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
        place.store(found, Ordering::Relaxed);
    }
    found
}

/// The calling thread's errno.
pub(crate) fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sets the calling thread's errno.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: gives the address of this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid for as long as the thread lives, and nobody else's.
    unsafe { *place = value }
}

/// Has a function called in children of fork(2) before they go on.
pub(crate) fn after_fork_in_child(call: extern "C" fn()) {
    // SAFETY: the function lives as long as the process: this object is not unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(call)) };
}

/// Closes a descriptor of the shim's own that the child of a fork has a copy of.
pub(crate) fn close_own(fd: c_int) {
    // SAFETY: the caller's own descriptor, which nothing in this process uses any more.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// Says something on standard error.
pub(crate) fn complain(text: &str) {
    // SAFETY: the bytes are valid for the call.
    unsafe { libc::syscall(libc::SYS_write, 2, text.as_ptr(), text.len()) };
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, before: *mut c_int) -> c_int;
}

/// `PTHREAD_CANCEL_DISABLE` of pthread.h.
const CANCEL_DISABLE: c_int = 1;

/// Runs something in which the calling thread can't be cancelled, and gets no signals: mmap(2) and its kin are no cancellation points, while what
/// goes on in their place closes descriptors; and a handler of the program's, which may map files too, would wait for a lock of the very
/// thread that it has interrupted. Threads that are started meanwhile get no signals for ever.
pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let mut cancel = 0;
    // SAFETY: the pointer is to an integer, which the call may fill.
    unsafe { pthread_setcancelstate(CANCEL_DISABLE, &raw mut cancel) };
    let mut all = MaybeUninit::uninit();
    // SAFETY: the pointer is to a set, which is filled.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::uninit();
    // SAFETY: the first set was filled above, the second is filled by the call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let done = work();
    // SAFETY: filled by the first call, which can't fail with these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    // SAFETY: the state that the thread had; the second pointer may be null.
    unsafe { pthread_setcancelstate(cancel, std::ptr::null_mut()) };
    done
}

/// A regular file, as far as the shim wants to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regular {
    pub(crate) identity: Identity,
    pub(crate) len: u64,
}

/// The regular file that a descriptor is of.
pub(crate) fn file_of(fd: c_int) -> Option<Regular> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to a structure of that type, which the call fills if it returns 0.
    let found = unsafe { libc::fstat(fd, stat.as_mut_ptr()) };
    if found != 0 {
        return None;
    }
    // SAFETY: filled, because the call returned 0.
    let stat = unsafe { stat.assume_init_ref() };
    let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
    let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    is_regular.then_some(Regular { identity, len: u64::try_from(stat.st_size).unwrap_or(0) })
}

/// A descriptor of the program's, for as long as the call that it was handed to.
pub(crate) fn borrow<'call>(fd: c_int) -> Option<std::os::fd::BorrowedFd<'call>> {
    // SAFETY: not -1; a program that closes a descriptor while it hands it to mmap(2) gets the error of either order, or another file, as
    // it would from the kernel.
    (fd >= 0).then(|| unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) })
}

unsafe extern "C" {
    fn __libc_malloc(len: size_t) -> *mut c_void;
    fn __libc_memalign(align: size_t, len: size_t) -> *mut c_void;
    fn __libc_free(start: *mut c_void);
}

/// The C library's own allocator, by the names that a program's own malloc does not take the place of: that may know of one thread only, as
/// programs of one thread may, and the connection's thread allocates too.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// What malloc aligns to.
const ALIGNED: usize = 16;

// SAFETY: memory of malloc, aligned as asked for, is the caller's until it is freed.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= ALIGNED {
            // SAFETY: any length will do.
            unsafe { __libc_malloc(layout.size()) }.cast()
        } else {
            // SAFETY: the alignment is a power of two, as that of every layout.
            unsafe { __libc_memalign(layout.align(), layout.size()) }.cast()
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, _: Layout) {
        // SAFETY: from one of the two above, by the caller's promise.
        unsafe { __libc_free(start.cast()) }
    }
}

/// What was made for the whole life of the process, and never dropped.
pub(crate) fn forever<T>(made: *const T) -> &'static T {
    // SAFETY: from `Box::into_raw`, and dropped by nobody but `discard`, which is called before anybody else has the address.
    unsafe { &*made }
}

/// Drops what was made and not needed.
pub(crate) fn discard<T>(made: *mut T) {
    // SAFETY: from `Box::into_raw` just now; nobody else has the address.
    drop(unsafe { Box::from_raw(made) });
}
