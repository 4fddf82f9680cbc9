//! Mappings of the kernel's, of every kind: mmap(2) and what belongs to it, behind functions that are safe to call.
//!
//! The rule on aliasing, before the code that rests on it. A [`Region`] owns its address range alone: no other value names
//! an address in it, and it is never cloned.
//!
//! | what | borrows | so |
//! | --- | --- | --- |
//! | a slice, `&[u8]` or `&mut [u8]`, of a [`Slices`] kind | the region, shared or exclusively | it ends before the next two |
//! | what changes or takes away bytes: discard, punch, resize | the region, exclusively | no slice is alive |
//! | what changes the kind, the owner or the bounds: protection, split, seal, free, drop | the region itself | the same |
//! | what keeps bytes: advice, residency, locks, flush | the region, shared | slices may be alive |
//! | copies of a [`Copies`] kind | the region, shared | no reference to mapped memory ever exists |
//!
//! Slices need bytes that nobody else changes. Which those are, and who says so:
//!
//! | memory | why nobody else changes it |
//! | --- | --- |
//! | private anonymous | no other mapping of it exists; a child of fork gets copies |
//! | a memfd with F_SEAL_WRITE and F_SEAL_SHRINK | the kernel refuses: [`SealedFd`] asks it |
//! | a file | the caller promises, by an unsafe function: [`Promise`] |
//!
//! A page that can't be had (past the end of a file that was cut, or unreadable) raises SIGBUS under a slice, which ends the
//! process; it is no undefined behaviour. Under a copy it is an error: `copy.rs`.

mod advise;
mod assumed;
mod change;
mod code;
mod kind;
mod region;
mod sealed_fd;
mod seen;
mod space;

pub use advise::{Advice, Freed, is_advice_supported};
pub use assumed::{MapAssumed, MapAssumedWith, Promise};
pub use change::{NumaPolicy, Sealed, is_mseal_supported, is_numa_supported};
pub use code::{synchronise_code, synchronise_new_code, synchronises_code};
pub use kind::{
    Becomes, Copies, CopiesMut, Exec, Executes, Kind, NoAccess, Read, Slices, SlicesMut, Stable, Volatile,
    VolatileExec, VolatileMut, Write,
};
pub(crate) use region::MADV_GUARD_INSTALL;
pub use region::{GuardKind, Region, Request, Source, is_guard_supported};
pub use sealed_fd::SealedFd;
pub use seen::Seen;
pub use space::AddressSpace;

use std::io;

/// The error that the kernel has for an argument it refuses.
fn refused(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

/// Refuses to map where pages are not what the arithmetic here counts in: parts of pages would be unmapped, which are whole
/// pages then, with somebody's slices in them.
fn check_page_size(page: usize) -> io::Result<()> {
    if page == crate::PAGE_SIZE {
        return Ok(());
    }
    let what = format!("this kernel has pages of {page} bytes, and mappings are made of pages of 4096");
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

/// Lines of /proc/self/maps: the mappings that count against vm.max_map_count. Allocates nothing, because there may be no
/// memory to be had.
///
/// # Errors
/// When /proc is not mounted.
pub fn count_mappings() -> io::Result<u64> {
    use rustix::fs::{Mode, OFlags};
    let maps = rustix::fs::open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut chunk = [0; 16 << 10];
    let mut lines = 0;
    loop {
        match rustix::io::read(&maps, &mut chunk) {
            Ok(0) => return Ok(lines),
            Ok(n) => lines += chunk[..n].iter().filter(|byte| **byte == b'\n').count() as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn other_pages_are_refused_by_size() {
        assert!(super::check_page_size(4096).is_ok());
        for page in [16 << 10, 64 << 10] {
            let error = super::check_page_size(page).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
            assert!(error.to_string().contains(&page.to_string()), "{error}");
        }
    }
}
