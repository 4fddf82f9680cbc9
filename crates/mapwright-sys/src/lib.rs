//! The unsafe half of mapwright.
//!
//! Every `unsafe` block of the engine's path to the kernel lives in this crate, behind functions that are safe to call. It
//! knows system calls, addresses and buffers; it knows nothing of files, blocks, budgets or policies: that is `mapwright`.
//!
//! The rule on aliasing, which the rest relies on: memory that user code may see through a slice is turned into a Rust
//! reference in two places only: [`window`], for files behind a `Map`, and [`mmap`], for the kernel's own mappings; their types
//! make shared and exclusive access exclude each other. [`shared`] makes references to atomic words of memory of which no slice
//! exists. Everything else reaches it by system calls or by raw copies.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("mapwright runs on 64-bit Linux only");

pub mod alloc;
pub mod bare;
pub mod buffer;
mod copies;
mod copy;
pub mod file;
mod folios;
pub mod forward;
pub mod frames;
pub mod futex;
pub mod guest;
pub mod lease;
pub mod mapping;
pub mod mmap;
pub mod moved;
pub mod page_cache;
pub mod page_state;
pub mod pagemap;
mod process;
pub mod remote;
pub mod ring;
pub mod shared;
pub mod signals;
mod sleepers;
pub mod table;
#[doc(hidden)]
pub mod testing;
pub mod uffd;
pub mod window;
mod zap;

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes in a page: the unit of dirt, protection and mapping.
pub const PAGE_SIZE: usize = 4096;

/// The last system call's error, as a result for `-1`.
fn check(result: libc::c_long) -> std::io::Result<libc::c_long> {
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// Bytes in a page of the kernel: 4096, but on some machines more. Allocates nothing.
pub(crate) fn kernel_page_size() -> usize {
    /// Asked for once, not at every mapping: a call into the C library after a system call costs more than it looks.
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    let known = PAGE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: the call has no conditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).unwrap_or(PAGE_SIZE);
    PAGE.store(page, Ordering::Relaxed);
    page
}
