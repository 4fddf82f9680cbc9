//! One SIGBUS handler for the process, chained before whatever handled SIGBUS until then.
//!
//! It looks at faults of the kernel only (never at signals that were sent), at addresses inside ranges that asked for it
//! ([`guard`]) or inside a copy that comes back (`copy.rs`), and passes everything else on. It runs on the faulting thread's own stack, not on the alternate one, which
//! Rust makes too small to read files on; it keeps errno. A program that installs its own SIGBUS handler afterwards must
//! call the old one, as it must for any library.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

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
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

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
    static INSTALLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering;
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
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null action only asks; `previous` has room for the answer.
    check(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) }.into())?;
    // SAFETY: the successful call above filled it in.
    let previous = unsafe { previous.assume_init() };
    let _ = PREVIOUS.set(previous);
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
    let from_kernel = details.si_code > 0;
    // SAFETY: for SIGBUS from the kernel, si_addr is the address that was touched; otherwise it is not used.
    let address = unsafe { details.si_addr() } as usize;
    let outcome = if from_kernel { ask_guard(address) } else { BusOutcome::Pass };
    if outcome == BusOutcome::Pass && !(from_kernel && crate::copy::recover(context, address)) {
        pass_on(signal, info, context, from_kernel);
    }
    set_errno(saved);
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
    let previous = PREVIOUS.get();
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
        }
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
