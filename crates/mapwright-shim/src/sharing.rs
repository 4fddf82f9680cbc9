//! What hands a program's descriptors to other processes: children, programs that are executed, and whoever is sent one. They read and write by them
//! without being seen, so before that all maps for writing are the kernel's, and the files are never served for writing again.
//!
//! Which descriptors a child has is known when it is there: those that are open then, and a few that other threads open meanwhile, of which nothing is served
//! ([`written::close_gate`]).

use std::ffi::{c_char, c_int, c_long, c_uint, c_void};
use std::mem::forget;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use libc::{FILE, size_t, ssize_t};

use crate::beneath::{self, Start};
use crate::descriptors::spoil;
use crate::written::Which;
use crate::{serve, written};

/// What programs are handed: pointers to strings, and null.
type Strings = *const *const c_char;

/// `CLOSE_RANGE_UNSHARE` of linux/close_range.h.
const CLOSE_RANGE_UNSHARE: c_uint = 1 << 1;

/// A child is being made that has no copy of the descriptors, but the very ones.
static SHARES_TABLE: AtomicBool = AtomicBool::new(false);

/// While this is there, descriptors are being shared: all, or those that are not closed by exec.
struct Sharing(Which);

impl Sharing {
    /// Nothing of them is served for writing. `None` with errno set if that can't be.
    fn begin(which: Which, why: &str) -> Option<Self> {
        written::close_gate();
        let sharing = Self(which);
        let may_go_on = written::is_empty()
            || match which {
                Which::All => serve::leave_written(why),
                Which::Inherited => {
                    serve::careful((), || written::spoil_open(which));
                    written::files()
                        .filter(|file| written::is_unfit(*file))
                        .all(|file| serve::leave_file(file, why))
                }
            };
        may_go_on.then_some(sharing)
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        serve::careful((), || written::spoil_open(self.0));
        written::open_gate();
    }
}

/// Makes a call that starts a process.
fn starting<T>(why: &str, failed: T, call: impl FnOnce() -> T) -> T {
    let Some(_sharing) = Sharing::begin(Which::All, why) else { return failed };
    call()
}

/// Makes a call that starts a program, without anything done in between by the process that becomes it: what is closed by exec nobody else has.
fn starting_a_program<T>(why: &str, failed: T, call: impl FnOnce() -> T) -> T {
    let Some(_sharing) = Sharing::begin(Which::Inherited, why) else { return failed };
    call()
}

/// posix_spawn(3), whose actions may have any descriptor inherited.
fn spawning(actions: *const c_void, call: impl FnOnce() -> c_int) -> c_int {
    let start = if actions.is_null() { starting_a_program } else { starting };
    start("posix_spawn(3)", libc::EIO, call)
}

/// As [`starting`], of a call that returns in both: 0 in the child, whose memory is a copy.
fn forking<T: From<i8> + PartialEq>(why: &str, call: impl FnOnce() -> T) -> T {
    let Some(sharing) = Sharing::begin(Which::All, why) else { return T::from(-1) };
    let pid = with_copies(call);
    if pid == T::from(0) {
        forget(sharing); // the parent's
        serve::in_child();
    }
    pid
}

/// Makes a child that has a copy of memory, and with it what was changed of private maps.
fn with_copies<T: From<i8> + PartialEq>(call: impl FnOnce() -> T) -> T {
    let pid = if serve::before_fork() { call() } else { T::from(-1) };
    if pid != T::from(0) {
        serve::after_fork();
    }
    pid
}

/// Makes a call that returns only if it fails: what was written in the maps must be in the files when the program begins.
fn executing<T: From<i8>>(why: &str, call: impl FnOnce() -> T) -> T {
    // A child of vfork(2) ends in this call, and leaves its parent's gate as it is: that is closed while there is such a child.
    let is_owner = written::is_owner();
    if is_owner {
        written::close_gate();
    }
    let may_go_on = written::is_empty() || serve::leave_written(why);
    let failed = if may_go_on { call() } else { T::from(-1) };
    if is_owner {
        written::open_gate();
    }
    failed
}

/// Called by fork(2), which can't be kept from going on.
pub(crate) extern "C" fn before_fork() {
    serve::before_fork();
    written::close_gate();
    if !written::is_empty() {
        serve::leave_written("fork(2)");
    }
}

/// Called by fork(2) in the parent, also if there is no child.
pub(crate) extern "C" fn after_fork() {
    drop(Sharing(Which::All));
    serve::after_fork();
}

/// Called before vfork(2). 0, with errno set, if there must be none.
pub(crate) extern "C" fn before_vfork() -> c_int {
    Sharing::begin(Which::All, "vfork(2)").map_or(0, |sharing| {
        forget(sharing);
        1
    })
}

/// Called in the parent with what the kernel has returned: what vfork(2) returns.
pub(crate) extern "C" fn after_vfork(pid: c_long) -> c_long {
    drop(Sharing(Which::All));
    if pid < 0 {
        beneath::set_errno(-pid as c_int);
        return -1;
    }
    pid
}

/// clone(2), of which the child returns here only where it has its parent's stack. Threads are no processes.
fn cloned(flags: c_long, stack: u64, call: impl FnOnce() -> c_long) -> c_long {
    let has = |flag: c_int| flags & c_long::from(flag) != 0;
    match (has(libc::CLONE_VM), has(libc::CLONE_FILES)) {
        (true, true) => return call(),
        (false, true) => {
            written::nothing_any_more(); // what one of them opens the other has, too
            SHARES_TABLE.store(true, SeqCst);
        }
        (true, false) if !has(libc::CLONE_VFORK) => written::nothing_any_more(), // numbers mean different files
        (_, false) => {}
    }
    let pid = if has(libc::CLONE_VM) {
        starting("clone(2)", -1, call)
    } else if stack != 0 {
        starting("clone(2)", -1, || with_copies(call))
    } else {
        forking("clone(2)", call)
    };
    SHARES_TABLE.store(false, SeqCst);
    pid
}

/// Whether the descriptors of the child that this process is are its own, to be closed. Asked once.
pub(crate) fn has_own_table() -> bool {
    !SHARES_TABLE.swap(false, SeqCst)
}

/// A thread has descriptors of its own from now on, and numbers mean different files.
fn parted() -> bool {
    written::nothing_any_more();
    written::is_empty() || serve::leave_written("unshare(2)")
}

fn sent(message: *const libc::msghdr) -> bool {
    let mut all = true;
    beneath::descriptors_in(message, |fd| all &= spoil(fd, "sent to another process"));
    all
}

/// What was received has another process, too.
fn received(message: *const libc::msghdr) {
    beneath::descriptors_in(message, |fd| _ = spoil(fd, "received from another process"));
}

/// execv(3), of arguments that are laid out.
pub(crate) extern "C" fn run(path: *const c_char, arguments: Strings) -> c_int {
    executing("execve(2)", || beneath::execv(path, arguments))
}

/// execvp(3), of the same.
pub(crate) extern "C" fn run_found(file: *const c_char, arguments: Strings) -> c_int {
    executing("execve(2)", || beneath::execvp(file, arguments))
}

/// execve(2), of arguments that the environment follows.
pub(crate) extern "C" fn run_in(path: *const c_char, arguments: Strings) -> c_int {
    let environment = beneath::environment_after(arguments);
    executing("execve(2)", || beneath::execve(path, arguments, environment))
}

exported! {
    /// execve(2)
    "C" fn execve(path: *const c_char, arguments: Strings, environment: Strings) -> c_int {
        executing("execve(2)", || beneath::execve(path, arguments, environment))
    }
    /// execv(3)
    "C" fn execv(path: *const c_char, arguments: Strings) -> c_int {
        run(path, arguments)
    }
    /// execvp(3)
    "C" fn execvp(file: *const c_char, arguments: Strings) -> c_int {
        run_found(file, arguments)
    }
    /// execvpe(3)
    "C" fn execvpe(file: *const c_char, arguments: Strings, environment: Strings) -> c_int {
        executing("execve(2)", || beneath::execvpe(file, arguments, environment))
    }
    /// fexecve(3)
    "C" fn fexecve(fd: c_int, arguments: Strings, environment: Strings) -> c_int {
        executing("execve(2)", || beneath::fexecve(fd, arguments, environment))
    }
    /// execveat(2)
    "C" fn execveat(folder: c_int, path: *const c_char, arguments: Strings, environment: Strings, flags: c_int) -> c_int {
        executing("execve(2)", || beneath::execveat(folder, path, arguments, environment, flags))
    }
    /// posix_spawn(3): the error is the result
    "C" fn posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings, environment: Strings) -> c_int {
        spawning(actions, || beneath::posix_spawn(pid, path, actions, attributes, arguments, environment))
    }
    /// posix_spawnp(3)
    "C" fn posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings, environment: Strings) -> c_int {
        spawning(actions, || beneath::posix_spawnp(pid, file, actions, attributes, arguments, environment))
    }
    /// pidfd_spawn(3)
    "C" fn pidfd_spawn(pidfd: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings, environment: Strings) -> c_int {
        spawning(actions, || beneath::pidfd_spawn(pidfd, path, actions, attributes, arguments, environment))
    }
    /// pidfd_spawnp(3)
    "C" fn pidfd_spawnp(pidfd: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings, environment: Strings) -> c_int {
        spawning(actions, || beneath::pidfd_spawnp(pidfd, file, actions, attributes, arguments, environment))
    }
    /// system(3)
    "C-unwind" fn system(command: *const c_char) -> c_int {
        starting_a_program("system(3)", -1, || beneath::system(command))
    }
    /// popen(3)
    "C-unwind" fn popen(command: *const c_char, kind: *const c_char) -> *mut FILE {
        starting_a_program("popen(3)", std::ptr::null_mut(), || beneath::popen(command, kind))
    }
    /// wordexp(3), which may start a shell
    "C-unwind" fn wordexp(words: *const c_char, to: *mut c_void, flags: c_int) -> c_int {
        starting_a_program("wordexp(3)", beneath::WRDE_NOSPACE, || beneath::wordexp(words, to, flags))
    }
    /// _Fork(3): as fork(2), without calling those who want to be called
    "C" fn _Fork() -> c_int {
        forking("_Fork(3)", beneath::_Fork)
    }
    /// clone(2), whose further arguments are there or not
    "C" fn clone(start: Option<Start>, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int {
        cloned(flags.into(), stack.addr() as u64, || match start {
            Some(start) if flags & libc::CLONE_VM == 0 => {
                beneath::clone_apart(start, stack, flags, argument, [parent, tls, child])
            }
            start => beneath::clone(start, stack, flags, argument, parent, tls, child),
        }.into()) as c_int
    }
    /// unshare(2)
    "C" fn unshare(flags: c_int) -> c_int {
        if flags & libc::CLONE_FILES != 0 && !parted() { -1 } else { beneath::unshare(flags) }
    }
    /// pidfd_getfd(2)
    "C" fn pidfd_getfd(process: c_int, fd: c_int, flags: c_uint) -> c_int {
        taken(beneath::pidfd_getfd(process, fd, flags).into()) as c_int
    }
    /// sendmsg(2)
    "C-unwind" fn sendmsg(socket: c_int, message: *const libc::msghdr, flags: c_int) -> ssize_t {
        if sent(message) { beneath::sendmsg(socket, message, flags) } else { -1 }
    }
    /// sendmmsg(2)
    "C-unwind" fn sendmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if all_sent(messages, count) { beneath::sendmmsg(socket, messages, count, flags) } else { -1 }
    }
    /// sendmmsg(2)
    "C-unwind" fn __sendmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int {
        if all_sent(messages, count) { beneath::sendmmsg(socket, messages, count, flags) } else { -1 }
    }
    /// recvmsg(2)
    "C-unwind" fn recvmsg(socket: c_int, message: *mut libc::msghdr, flags: c_int) -> ssize_t {
        let len = beneath::recvmsg(socket, message, flags);
        if len >= 0 {
            received(message);
        }
        len
    }
    /// recvmmsg(2)
    "C-unwind" fn recvmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int, timeout: *mut libc::timespec) -> c_int {
        let got = beneath::recvmmsg(socket, messages, count, flags, timeout);
        beneath::messages(messages, usize::try_from(got).unwrap_or(0)).for_each(received);
        got
    }
}

fn all_sent(messages: *const libc::mmsghdr, count: c_uint) -> bool {
    beneath::messages(messages, count as size_t).all(sent)
}

/// A descriptor that was another process's, or an error.
fn taken(fd: c_long) -> c_long {
    if fd >= 0 {
        spoil(fd as c_int, "taken from another process");
    }
    fd
}

/// What [`descriptors::by_number`](crate::descriptors::by_number) leaves over.
pub(crate) fn by_number(number: c_long, arguments: [c_long; 6], on: impl Fn() -> c_long) -> c_long {
    let [a, b, c, ..] = arguments;
    match number {
        libc::SYS_execve | libc::SYS_execveat => executing("execve(2)", on),
        libc::SYS_unshare if a as c_int & libc::CLONE_FILES != 0 && !parted() => -1,
        libc::SYS_pidfd_getfd => taken(on()),
        libc::SYS_sendmsg if !sent(b as *const libc::msghdr) => -1,
        libc::SYS_sendmmsg if !all_sent(b as *const libc::mmsghdr, c as c_uint) => -1,
        libc::SYS_recvmsg => {
            let len = on();
            if len >= 0 {
                received(b as *const libc::msghdr);
            }
            len
        }
        libc::SYS_recvmmsg => {
            let got = on();
            let got_any = usize::try_from(got).unwrap_or(0);
            beneath::messages(b as *const libc::mmsghdr, got_any).for_each(received);
            got
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => forking("fork(2)", on),
        libc::SYS_clone => cloned(a, b as u64, on),
        libc::SYS_clone3 => match beneath::clone_arguments(a, b) {
            Some((flags, stack)) => cloned(flags as c_long, stack, on),
            None => on(),
        },
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork => starting("vfork(2)", -1, on),
        _ => on(),
    }
}

/// Whether close_range(2) with such flags may go on.
pub(crate) fn may_close(flags: c_int) -> bool {
    flags as c_uint & CLOSE_RANGE_UNSHARE == 0 || parted()
}
