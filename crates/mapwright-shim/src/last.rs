//! The end of a program that ends thread by thread. A process ends with its last thread, and the shim has one that the program knows nothing of,
//! which waits for the server for ever. So when the first thread ends by itself, somebody watches for the end of the others.
//!
//! A program whose first thread returns from `main`, or that calls exit(3), pays nothing for this.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mapwright::guest::pause;
use rustix::process::getpid;
use rustix::thread::gettid;

use crate::{beneath, serve};

/// What threads of the shim are called, as far as the kernel keeps names.
const OWN: [&str; 2] = ["mapwright-remot", "mapwright-last"];
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The first thread has ended, or is about to.
static HAS_ENDED: AtomicBool = AtomicBool::new(false);
/// Somebody looks for the end of the others.
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether the calling thread is the process's first.
pub(crate) fn is_first() -> bool {
    getpid().as_raw_nonzero() == gettid().as_raw_nonzero()
}

/// The calling thread is about to end, and not the process.
pub(crate) fn thread_ends() {
    if !is_first() {
        return;
    }
    HAS_ENDED.store(true, Ordering::SeqCst);
    if serve::has_thread() {
        watch();
    }
}

/// The calling thread is about to end, with a code that is the process's if it is the last.
pub(crate) fn thread_ends_with(code: c_int) {
    if serve::has_thread() && serve::careful(false, || !others()) {
        beneath::exit_group(code);
    }
    serve::careful((), thread_ends);
}

/// There is a thread of the shim now.
pub(crate) fn has_thread() {
    if HAS_ENDED.load(Ordering::SeqCst) {
        watch();
    }
}

/// A child of fork(2) begins with one thread, which is its first.
pub(crate) fn in_child() {
    HAS_ENDED.store(false, Ordering::Relaxed);
    IS_WATCHED.store(false, Ordering::Relaxed);
}

/// Called where no signals come, so that the new thread gets none.
fn watch() {
    if IS_WATCHED.swap(true, Ordering::SeqCst) {
        return;
    }
    let look = || {
        while others() {
            pause(PAUSE);
        }
        // As the C library does when the last thread that it knows of ends.
        std::process::exit(0);
    };
    // Where no thread can be had the process stays, with nothing to do.
    let _ = std::thread::Builder::new().name(OWN[1].to_owned()).spawn(look);
}

/// Whether there are threads of the program's but the calling one and the first, if that has ended.
fn others() -> bool {
    let Ok(all) = std::fs::read_dir("/proc/self/task") else { return true };
    let this = gettid().as_raw_nonzero().get();
    let first = HAS_ENDED.load(Ordering::SeqCst).then(|| getpid().as_raw_nonzero().get());
    all.flatten().any(|entry| {
        let thread = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let is_own = || {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            OWN.contains(&name.trim_end())
        };
        thread.is_some_and(|thread| thread != this && Some(thread) != first) && !is_own()
    })
}
