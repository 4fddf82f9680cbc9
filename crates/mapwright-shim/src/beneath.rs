//! What lies beneath the shim: the kernel's calls and those of the C library whose place it takes. All unsafe code of this crate.
//!
//! What is passed on is the program's own call with the program's own arguments: whatever it asks for is its to answer for, with
//! the shim or without it. Each function here is called for that and nothing else, but for those at the end and in `memory`, which look
//! at arguments that the call itself would have looked at.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::naked_asm;
use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{mode_t, off_t, size_t};
use mapwright::guest::Identity;

/// Called by the loader before the program's own constructors.
extern "C" fn start() {
    // SAFETY: the name ends with a zero.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
    if !next.is_null() {
        NEXT_SYSCALL.store(next, Ordering::Relaxed);
    }
    descriptors::find_all();
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
            let arguments = [$($argument as c_long),*];
            // SAFETY: the program's own call, passed on.
            unsafe { system_call(libc::$number, &arguments) as $result }
        }
    )*};
}

/// Numbers of system calls that are looked at when they come by syscall(2).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES_OWN: [c_long; 3] = [libc::SYS_dup2, libc::SYS_fork, libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES_OWN: [c_long; 0] = [];
const LOOKED_AT: [c_long; 19] = [
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_remap_file_pages,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup3,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_openat,
    libc::SYS_openat2,
];
/// Numbers in the table. Higher ones are none of ours.
const NUMBERS: usize = 512;

/// By number, whether it is looked at.
static IS_LOOKED_AT: [u8; NUMBERS] = {
    let mut table = [0; NUMBERS];
    let mut index = 0;
    while index < LOOKED_AT.len() + ARCHITECTURES_OWN.len() {
        let number = if index < LOOKED_AT.len() {
            LOOKED_AT[index]
        } else {
            ARCHITECTURES_OWN[index - LOOKED_AT.len()]
        };
        table[number as usize] = 1;
        index += 1;
    }
    index = 0;
    while index < descriptors::LOOKED_AT.len() {
        table[descriptors::LOOKED_AT[index] as usize] = 1;
        index += 1;
    }
    table
};

/// Where syscall(2) goes on: the C library's, once that is known.
static NEXT_SYSCALL: AtomicPtr<c_void> = AtomicPtr::new(kernel_call as *mut c_void);

/// syscall(2). What is not looked at goes on with all registers and the stack as they came, but for those that no
/// callee has to keep and that hold no argument; the rest has its arguments where `dispatch` expects them.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn syscall() -> c_long {
    naked_asm!(
        "cmp rdi, {numbers}",
        "jae 2f",
        "lea r11, [rip + {table}]",
        "cmp byte ptr [r11 + rdi], 0",
        "jne {dispatch}",
        "2:",
        "jmp qword ptr [rip + {next}]",
        numbers = const NUMBERS,
        table = sym IS_LOOKED_AT,
        dispatch = sym crate::calls::dispatch,
        next = sym NEXT_SYSCALL,
    )
}

/// As above: x16 and x17 are for such purposes.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn syscall() -> c_long {
    naked_asm!(
        "cmp x0, #{numbers}",
        "b.hs 2f",
        "adrp x16, {table}",
        "add x16, x16, :lo12:{table}",
        "ldrb w16, [x16, x0]",
        "cbz w16, 2f",
        "b {dispatch}",
        "2:",
        "adrp x17, {next}",
        "ldr x17, [x17, :lo12:{next}]",
        "br x17",
        numbers = const NUMBERS,
        table = sym IS_LOOKED_AT,
        dispatch = sym crate::calls::dispatch,
        next = sym NEXT_SYSCALL,
    )
}

/// A system call as syscall(2) makes it, which this object has taken the place of: -1, with errno set, if it fails.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn kernel_call(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    naked_asm!(
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 2f",
        "ret",
        "2:",
        "mov rdi, rax",
        "jmp {failed}",
        failed = sym failed,
    )
}

/// As above.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn kernel_call(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    naked_asm!(
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc #0",
        "cmn x0, #4095",
        "b.hs 2f",
        "ret",
        "2:",
        "b {failed}",
        failed = sym failed,
    )
}

/// The end of a system call that has failed.
extern "C" fn failed(result: c_long) -> c_long {
    set_errno(-result as c_int);
    -1
}

/// Makes a system call, with at most six arguments.
///
/// # Safety
/// As for the call itself.
pub(crate) unsafe fn system_call(number: c_long, arguments: &[c_long]) -> c_long {
    let at = |index: usize| arguments.get(index).copied().unwrap_or(0);
    kernel_call(number, at(0), at(1), at(2), at(3), at(4), at(5))
}

/// As [`system_call`], of the program's own by syscall(2).
pub(crate) fn pass_on(number: c_long, arguments: [c_long; 6]) -> c_long {
    // SAFETY: the program's own call, passed on.
    unsafe { system_call(number, &arguments) }
}

/// The flags and the stack in what clone3(2) is handed, if it is as long as that.
pub(crate) fn clone_arguments(start: c_long, len: c_long) -> Option<(u64, u64)> {
    const STACK: usize = 5;
    const LEAST: usize = 6 * size_of::<u64>();
    if start == 0 || (len as usize) < LEAST {
        return None; // who asks whether there is such a call
    }
    let at = |index: usize| (start as *const u64).wrapping_add(index);
    // SAFETY: the call itself would look there, and the program says that it has so many bytes.
    let flags = unsafe { at(0).read_unaligned() };
    // SAFETY: as above.
    let stack = unsafe { at(STACK).read_unaligned() };
    Some((flags, stack))
}

/// What a program's open(2) is about to find, without opening it: of `flags` those that say how names are followed are kept.
pub(crate) fn find_file(folder: c_int, path: *const c_char, flags: c_int) -> Option<OwnedFd> {
    let flags = flags & libc::O_NOFOLLOW | libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the kernel looks at the program's own path, and answers for an address that is none.
    let fd = unsafe { system_call(libc::SYS_openat, &[folder.into(), path as c_long, flags.into(), 0]) };
    owned(fd)
}

/// As [`find_file`], as openat2(2) follows names.
pub(crate) fn find_file_by(folder: c_long, path: c_long, how: [u64; 3]) -> Option<OwnedFd> {
    let how = [how[0] & libc::O_NOFOLLOW as u64 | (libc::O_PATH | libc::O_CLOEXEC) as u64, 0, how[2]];
    let len = size_of_val(&how) as c_long;
    // SAFETY: as there, and the second structure is one of that length.
    let fd = unsafe { system_call(libc::SYS_openat2, &[folder, path, how.as_ptr() as c_long, len]) };
    owned(fd)
}

fn owned(fd: c_long) -> Option<OwnedFd> {
    // SAFETY: made just now, and nobody else's.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// What openat2(2) is handed, if it is as long as it was in the beginning.
pub(crate) fn how_to_open(start: c_long, len: c_long) -> Option<[u64; 3]> {
    if start == 0 || (len as usize) < size_of::<[u64; 3]>() {
        return None;
    }
    // SAFETY: the call itself would look there, and the program says that it has so many bytes.
    Some(unsafe { (start as *const [u64; 3]).read_unaligned() })
}

/// Runs something in which the thread is not cancelled.
pub(crate) fn without_cancellation<T>(work: impl FnOnce() -> T) -> T {
    let mut before = 0;
    // SAFETY: fills the integer.
    unsafe { pthread_setcancelstate(CANCEL_DISABLE, &raw mut before) };
    let done = work();
    // SAFETY: as above, from what it was.
    unsafe { pthread_setcancelstate(before, std::ptr::null_mut()) };
    done
}

/// What runs in a child that clone(3) makes.
pub(crate) type Start = extern "C-unwind" fn(*mut c_void) -> c_int;

/// The program's own.
struct Inside {
    start: Start,
    argument: *mut c_void,
}

extern "C-unwind" fn in_clone(inside: *mut c_void) -> c_int {
    // SAFETY: the copy that this process has of what is on the stack of the thread that has made it.
    let Inside { start, argument } = unsafe { inside.cast::<Inside>().read() };
    crate::serve::in_child();
    let code = start(argument);
    crate::last::thread_ends_with(code);
    code
}

/// clone(3), whose child has a copy of memory and begins with what [`in_child`](crate::serve::in_child) does.
pub(crate) fn clone_apart(
    start: Start,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    rest: [*mut c_void; 3],
) -> c_int {
    let mut inside = Inside { start, argument };
    clone(Some(in_clone), stack, flags, (&raw mut inside).cast(), rest[0], rest[1], rest[2])
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
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty $(, $failed:expr)?;)*) => {$(
        #[allow(non_snake_case)] // the C library's name
        pub(crate) fn $name($($argument: $type),*) -> $result {
            static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            let next = find(&NEXT, concat!(stringify!($name), "\0"));
            if next.is_null() {
                set_errno(libc::ENOSYS);
                return $($failed)?;
            }
            // SAFETY: the C library's function of that name, whose arguments and result are these.
            let next: extern "C-unwind" fn($($type),*) -> $result = unsafe { std::mem::transmute(next) };
            next($($argument),*)
        }
    )*};
}

next! {
    msync(address: *mut c_void, len: size_t, flags: c_int) -> c_int, -1;
    close(fd: c_int) -> c_int, -1;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, -1;
    dup2(from: c_int, to: c_int) -> c_int, -1;
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int, -1;
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1;
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1;
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1;
    openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, -1;
    __open_2(path: *const c_char, flags: c_int) -> c_int, -1;
    __open64_2(path: *const c_char, flags: c_int) -> c_int, -1;
    __openat_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int, -1;
    __openat64_2(folder: c_int, path: *const c_char, flags: c_int) -> c_int, -1;
    pthread_exit(value: *mut c_void) -> ();
    thrd_exit(code: c_int) -> ();
    _Fork() -> c_int, -1;
    clone(start: Option<Start>, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int, -1;
}

// Here, where the macros are known.
mod assembly;
mod descriptors;
mod memory;
mod sharing;

pub(crate) use descriptors::*;
pub(crate) use memory::*;
pub(crate) use sharing::*;

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

/// Has functions called before fork(2), after it, and in its children before they go on.
pub(crate) fn around_fork(before: extern "C" fn(), after: extern "C" fn(), in_child: extern "C" fn()) {
    // SAFETY: the functions live as long as the process: this object is not unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(after), Some(in_child)) };
}

/// Closes a descriptor of the shim's own that the child of a fork has a copy of.
pub(crate) fn close_own(fd: c_int) {
    // SAFETY: the caller's own descriptor, which nothing in this process uses any more.
    unsafe { system_call(libc::SYS_close, &[fd.into()]) };
}

/// Ends a lease on a file.
pub(crate) fn end_lease(fd: c_int) {
    // SAFETY: the arguments are numbers.
    unsafe {
        system_call(libc::SYS_fcntl, &[fd.into(), libc::F_SETLEASE.into(), libc::F_UNLCK.into()]);
    }
}

/// Ends the process at once.
pub(crate) fn exit_group(code: c_int) {
    // SAFETY: the program's own wish, in other words.
    unsafe { system_call(libc::SYS_exit_group, &[code.into()]) };
}

/// Says something on standard error.
pub(crate) fn complain(text: &str) {
    // SAFETY: the bytes are valid for the call.
    unsafe { system_call(libc::SYS_write, &[2, text.as_ptr() as c_long, text.len() as c_long]) };
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
