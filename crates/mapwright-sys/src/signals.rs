//! One SIGBUS handler for the process, chained before whatever handled SIGBUS until then.
//!
//! It looks at faults of the kernel only (never at signals that were sent), at addresses inside ranges that asked for it
//! ([`guard`]) or inside a copy that comes back (`copy.rs`), and passes everything else on. It runs on the faulting thread's own stack, not on the alternate one, which
//! Rust makes too small to read files on; it keeps errno. A program that installs its own SIGBUS handler afterwards must
//! call the old one, as it must for any library. The lock of the ranges is held over fork(2), so that a child can take and give up
//! guards whatever other threads of the parent were doing. In a thread that blocks SIGBUS a fault ends the process: no handler is asked.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};

use crate::check;

/// What to do with a thread that got SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusOutcome {
    /// The cause is gone: touch the address again.
    Retry,
    /// Pass the signal on.
    Pass,
}

/// Handles SIGBUS for a range of addresses.
pub trait BusGuard: Send + Sync {
    /// Called in the signal handler of the thread that touched `address`. That thread may hold any lock of the program's;
    /// it holds none that is taken by code which never touches guarded memory.
    fn on_bus(&self, address: usize) -> BusOutcome;
}

type Guards = BTreeMap<usize, (usize, Arc<dyn BusGuard>)>;

/// Ranges by start. Taken for reading in the handler: nobody touches guarded memory while holding it.
static GUARDS: RwLock<Guards> = RwLock::new(BTreeMap::new());
/// The lock of [`GUARDS`], while it is held by a thread that forks.
static FORKING: Forking = Forking(UnsafeCell::new(None));
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Whether the previous handler has given way to the default action, as it would have done without ours.
static SPENT: AtomicBool = AtomicBool::new(false);

struct Forking(UnsafeCell<Option<RwLockWriteGuard<'static, Guards>>>);

// SAFETY: it is reached by the thread that forks only, between taking the lock and giving it back: before that the lock keeps
// others out.
unsafe impl Sync for Forking {}

extern "C" fn before_fork() {
    let guards = GUARDS.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: this thread has the lock, so no other one is here.
    unsafe { *FORKING.0.get() = Some(guards) };
}

extern "C" fn after_fork() {
    // SAFETY: this thread has had the lock since `before_fork`, or is the child's copy of one that had.
    let guards = unsafe { (*FORKING.0.get()).take() };
    drop(guards);
}

/// Keeps a guard in force.
#[derive(Debug)]
pub struct GuardToken(usize);

/// Sends SIGBUS for addresses in `range` to `guard` until the token is dropped.
///
/// # Errors
/// Whatever sigaction(2) says.
pub fn guard(range: Range<usize>, guard: Arc<dyn BusGuard>) -> io::Result<GuardToken> {
    install()?;
    let mut guards = GUARDS.write().unwrap_or_else(PoisonError::into_inner);
    guards.insert(range.start, (range.end, guard));
    Ok(GuardToken(range.start))
}

impl Drop for GuardToken {
    fn drop(&mut self) {
        let removed = GUARDS.write().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        drop(removed); // outside the lock: the guard's own drop may be long
    }
}

/// Writes a message to standard error without taking any lock: the faulting thread may hold the lock of `stderr`.
pub fn print_raw(message: &str) {
    let mut rest = message.as_bytes();
    while !rest.is_empty() {
        // SAFETY: descriptor 2 is standard error by convention; a closed one only makes the write fail.
        let stderr = unsafe { std::os::fd::BorrowedFd::borrow_raw(2) };
        match rustix::io::write(stderr, rest) {
            Ok(n) => rest = &rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Installs the handler, once for the process.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.load(Ordering::Acquire) {
        return Ok(());
    }
    install_once()?;
    INSTALLED.store(true, Ordering::Release);
    Ok(())
}

fn install_once() -> io::Result<()> {
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: the three live as long as the program, and call nothing that forks.
    let registered = unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
    if registered != 0 {
        return Err(io::Error::from_raw_os_error(registered));
    }
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action only asks; `previous` has room for the answer.
    check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) }.into())?;
    // SAFETY: the successful call above filled it in.
    let previous = unsafe { previous.assume_init() };
    let _ = PREVIOUS.set(previous);
    set_handler()
}

fn set_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value: default action, empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and lives as long as the program.
    check(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }.into()).map(drop)
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let saved = errno();
    // SAFETY: the kernel passes a valid siginfo for the time of the call.
    let details = unsafe { &*info };
    let from_kernel = is_touch(details.si_code);
    // SAFETY: for SIGBUS from the kernel, si_addr is the address that was touched; otherwise it is not used.
    let address = unsafe { details.si_addr() } as usize;
    // Copies first, without a lock: in a child of fork the lock of the guards may be held by a thread that isn't there. What
    // is copied that way lies in no guard's range.
    let is_done =
        from_kernel && (crate::copy::recover(context, address) || ask_guard(address) == BusOutcome::Retry);
    if !is_done {
        pass_on(signal, info, context, from_kernel);
    }
    set_errno(saved);
}

/// Whether a SIGBUS is about an address that this thread touches. Others come from kill(2) and the like, or tell of broken
/// memory that nobody has touched yet (sigaction(2), BUS_MCEERR_AO).
fn is_touch(code: libc::c_int) -> bool {
    code > 0 && code != libc::BUS_MCEERR_AO
}

fn ask_guard(address: usize) -> BusOutcome {
    let guard = {
        let guards = GUARDS.read().unwrap_or_else(PoisonError::into_inner);
        match guards.range(..=address).next_back() {
            Some((_, (end, guard))) if address < *end => Arc::clone(guard),
            _ => return BusOutcome::Pass,
        }
    };
    guard.on_bus(address)
}

/// Does what the process would have done without this handler.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, from_kernel: bool) {
    let previous = PREVIOUS.get().filter(|_| !SPENT.load(Ordering::SeqCst));
    match previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        libc::SIG_IGN if !from_kernel => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: SIG_DFL is a valid action; the signal then comes again (a fault by its instruction, a sent one by
            // the raise) and does what it does by default.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            if !from_kernel {
                // SAFETY: raise takes a number.
                unsafe { libc::raise(signal) };
            }
        }
        handler => {
            let flags = previous.map_or(0, |action| action.sa_flags);
            if flags & libc::SA_RESETHAND != 0 {
                SPENT.store(true, Ordering::SeqCst);
            }
            if flags & libc::SA_SIGINFO != 0 {
                // SAFETY: sigaction reported this address as a handler with SA_SIGINFO's signature.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: sigaction reported this address as a handler of the plain signature.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
            if !from_kernel {
                come_back();
            }
        }
    }
}

/// Takes the signal again if a handler set the default action, as Rust's own does, which then expects the fault to come again;
/// a signal that was sent does not, and the process lives on. The next one is left to the default.
fn come_back() {
    let mut now = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action only asks; `now` has room for the answer.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), now.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: the successful call above filled it in.
    if unsafe { now.assume_init() }.sa_sigaction == libc::SIG_DFL {
        SPENT.store(true, Ordering::SeqCst);
        let _ = set_handler();
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn set_errno(value: i32) {
    // SAFETY: the call has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is this thread's errno.
    unsafe { *errno = value }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{GUARDS, PoisonError, is_touch};
    use crate::PAGE_SIZE;
    use crate::mmap::{Region, Request, Source, VolatileMut};

    #[test]
    fn a_copy_that_comes_back_waits_for_no_lock() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE_SIZE as u64).unwrap();
        let source = Source::File { fd: file.as_fd(), offset: 0, shared: true };
        let region = Region::<VolatileMut>::volatile(&Request::new(source, 2 * PAGE_SIZE)).unwrap();
        file.set_len(PAGE_SIZE as u64).unwrap();
        // As in a child of fork, whose parent was taking or giving up a guard.
        let held = GUARDS.write().unwrap_or_else(PoisonError::into_inner);
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 8];
            let _ = sender.send(region.copy_out(PAGE_SIZE, &mut bytes));
        });
        let copied = receiver.recv_timeout(Duration::from_secs(20));
        drop(held);
        thread.join().unwrap();
        assert_eq!(copied, Ok(Err(0)));
    }

    #[test]
    fn a_child_takes_guards_whatever_the_parents_threads_do() {
        use crate::shared::Words;
        use crate::testing::Fork;
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_SIZE as u64).unwrap();
        let map = || drop(Words::map(file.as_fd(), PAGE_SIZE).unwrap());
        map();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    map();
                }
            });
            for round in 0..100 {
                let child = Fork::new(map).unwrap();
                let since = std::time::Instant::now();
                let mut status = None;
                while status.is_none() && since.elapsed() < Duration::from_secs(20) {
                    status = child.has_ended();
                    std::thread::yield_now();
                }
                is_over.store(round == 99 || status != Some(0), std::sync::atomic::Ordering::Relaxed);
                assert_eq!(status, Some(0), "round {round}");
            }
        });
    }

    #[test]
    fn a_touch_is_told_from_what_is_sent_and_from_broken_memory_elsewhere() {
        for code in [libc::BUS_ADRERR, libc::BUS_ADRALN, libc::BUS_OBJERR, libc::BUS_MCEERR_AR] {
            assert!(is_touch(code), "{code}");
        }
        for code in [libc::SI_USER, libc::SI_TKILL, libc::SI_QUEUE, libc::BUS_MCEERR_AO] {
            assert!(!is_touch(code), "{code}");
        }
    }
}
