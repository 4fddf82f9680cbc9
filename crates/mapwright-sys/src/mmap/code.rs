//! What must be done between writing code and running it.
//!
//! | machine | the writer | every other processor |
//! | --- | --- | --- |
//! | x86-64 | nothing: caches of code see stores (Intel SDM vol. 3, 13.6) | a serializing instruction |
//! | AArch64 | cleans the data cache and invalidates the instruction cache, line by line (Arm ARM, B2.7.4.2) | an ISB |
//!
//! The third column is what membarrier(2) with MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE does on all processors that run this
//! process, this one included.

use std::io;

use super::kind::Executes;
use super::region::Region;
use crate::check;

/// linux/membarrier.h.
const SYNC_CORE: libc::c_int = 1 << 5;
const REGISTER_SYNC_CORE: libc::c_int = 1 << 6;

/// Whether [`synchronise_code`] knows this machine: x86-64 and AArch64.
#[must_use]
pub const fn synchronises_code() -> bool {
    cfg!(any(target_arch = "x86_64", target_arch = "aarch64"))
}

/// Makes what was written to a range of code, by this mapping before it was executable or by another one, be what all threads
/// run that jump there after this.
///
/// # Errors
/// `Unsupported` on machines that are not known here; on AArch64 also what membarrier(2) says, where a kernel or a seccomp profile
/// refuses it: other threads may then run what was there before.
///
/// # Panics
/// If the range reaches past the end.
pub fn synchronise_code<K: Executes>(region: &Region<K>, range: std::ops::Range<usize>) -> io::Result<()> {
    assert!(range.start <= range.end && range.end <= region.len(), "{range:?} of {} bytes", region.len());
    if range.is_empty() {
        return Ok(());
    }
    let start = region.start() + range.start;
    clean(start..start + range.len())?;
    match synchronise_processors() {
        // To jump to what was never run before needs no more than that the address was passed on by a lock or an atomic, as
        // all programs pass it.
        Err(_) if cfg!(target_arch = "x86_64") => Ok(()),
        result => result,
    }
}

/// As [`synchronise_code`], of a region that was made executable just now. On x86-64 that has interrupted all processors with
/// older page tables, and returning from an interrupt serializes.
///
/// # Errors
/// As there.
pub fn synchronise_new_code<K: Executes>(region: &Region<K>) -> io::Result<()> {
    if cfg!(target_arch = "x86_64") { Ok(()) } else { synchronise_code(region, 0..region.len()) }
}

fn synchronise_processors() -> io::Result<()> {
    let membarrier = |command: libc::c_int| {
        // SAFETY: the call touches no memory.
        check(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
    };
    match membarrier(SYNC_CORE) {
        // Not registered yet.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            membarrier(REGISTER_SYNC_CORE)?;
            membarrier(SYNC_CORE)
        }
        result => result,
    }
}

#[cfg(target_arch = "x86_64")]
fn clean(_range: std::ops::Range<usize>) -> io::Result<()> {
    Ok(())
}

/// The range is mapped and readable: a line that is not raises SIGSEGV here.
#[cfg(target_arch = "aarch64")]
fn clean(range: std::ops::Range<usize>) -> io::Result<()> {
    use std::arch::asm;
    let kind: u64;
    // SAFETY: reads a register that user code may read (CTR_EL0).
    unsafe { asm!("mrs {}, ctr_el0", out(reg) kind, options(nomem, nostack, preserves_flags)) };
    let lines = |log2_words: u64| {
        let line = 4_usize << (log2_words & 15);
        (range.start / line * line..range.end).step_by(line)
    };
    // Without the bits IDC and DIC the caches do not follow each other by themselves.
    if kind & (1 << 28) == 0 {
        for line in lines(kind >> 16) {
            // SAFETY: cleans a cache line of mapped memory: no contents change.
            unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
        }
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    if kind & (1 << 29) == 0 {
        for line in lines(kind) {
            // SAFETY: as above, for the cache of instructions.
            unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
        }
    }
    // SAFETY: barriers.
    unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
    Ok(())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn clean(_range: std::ops::Range<usize>) -> io::Result<()> {
    let what = "caches of code are synchronised on x86-64 and AArch64 only";
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}
