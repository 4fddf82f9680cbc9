//! The page-table entry of one page, of this process or another: /proc/PID/pagemap and, for what that does not tell,
//! PAGEMAP_SCAN (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::pagemap::{PAGEMAP_SCAN, Region, ScanArgument};
use crate::{PAGE_SIZE, check};

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// What a page-table entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageState {
    /// A page is mapped there.
    pub is_present: bool,
    /// The page is in swap, or on its way from one place to another.
    pub is_swapped: bool,
    /// The page is of a file or of shared memory, not private.
    pub is_file: bool,
    /// Nobody else maps the page.
    pub is_exclusive: bool,
    /// Written since somebody cleared the mark; never set where the kernel is built without it.
    pub is_soft_dirty: bool,
    /// Write-protected for a userfaultfd.
    pub is_uffd_protected: bool,
    /// A guard that madvise(2) has installed (Linux 6.15 tells it here).
    pub is_guard: bool,
    /// The page is part of one that is mapped as a huge page; unknown before Linux 6.7.
    pub is_huge: Option<bool>,
    /// The page of zeros that everybody shares; unknown before Linux 6.7.
    pub is_zero_page: Option<bool>,
    /// Number of the page frame; hidden from those without CAP_SYS_ADMIN.
    pub frame: Option<u64>,
    /// Number of the swap area and place in it.
    pub swap: Option<(u64, u64)>,
}

/// The state of the page at `address`, from an open `/proc/PID/pagemap`.
///
/// # Errors
/// What read(2) says: nothing to read at addresses that belong to the kernel is `UnexpectedEof`.
///
/// # Examples
/// ```
/// let here = Box::new(1_u8);
/// let pagemap = std::fs::File::open("/proc/self/pagemap")?;
/// let state = mapwright_sys::page_state::page_state(&pagemap, &raw const *here as u64)?;
/// assert!(state.is_present && !state.is_file);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn page_state(pagemap: &File, address: u64) -> io::Result<PageState> {
    let page = address / PAGE_SIZE as u64;
    let mut bytes = [0; 8];
    pagemap.read_exact_at(&mut bytes, page * 8)?;
    let mut state = from_entry(u64::from_ne_bytes(bytes));
    if let Ok(categories) = scan(pagemap, page * PAGE_SIZE as u64) {
        let is = |category| categories & (category | PAGE_IS_PRESENT) == category | PAGE_IS_PRESENT;
        state.is_huge = Some(is(PAGE_IS_HUGE));
        state.is_zero_page = Some(is(PAGE_IS_PFNZERO));
    }
    Ok(state)
}

fn from_entry(entry: u64) -> PageState {
    let bit = |number: u32| entry >> number & 1 == 1;
    let low = entry & ((1 << 55) - 1);
    PageState {
        is_present: bit(63),
        is_swapped: bit(62),
        is_file: bit(61),
        is_guard: bit(58),
        is_uffd_protected: bit(57),
        is_exclusive: bit(56),
        is_soft_dirty: bit(55),
        is_huge: None,
        is_zero_page: None,
        frame: (bit(63) && low != 0).then_some(low),
        swap: (bit(62) && low != 0).then_some((low & 0x1f, low >> 5)),
    }
}

/// The categories of one page; none where it has no entry at all.
fn scan(pagemap: &File, page: u64) -> io::Result<u64> {
    let mut region = Region::default();
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: 0,
        start: page,
        end: page + PAGE_SIZE as u64,
        walk_end: 0,
        vec: &raw mut region as u64,
        vec_len: 1,
        max_pages: 1,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
    };
    // SAFETY: the argument has the kernel's layout and size, and `region` has room for the one region that `vec_len` allows;
    // both live across the call.
    let found = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) }.into())?;
    Ok(if found > 0 { region.categories } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_places() {
        let state = from_entry(1 << 63 | 1 << 61 | 1 << 55 | 77);
        assert!(state.is_present && state.is_file && state.is_soft_dirty && !state.is_exclusive);
        assert_eq!((state.frame, state.swap), (Some(77), None));
        let state = from_entry(1 << 62 | 1 << 57 | (9 << 5 | 2));
        assert!(state.is_swapped && state.is_uffd_protected && !state.is_present);
        assert_eq!((state.frame, state.swap), (None, Some((2, 9))));
        assert!(from_entry(1 << 58).is_guard && from_entry(1 << 56).is_exclusive);
        assert_eq!(from_entry(0), PageState::default());
    }

    #[test]
    fn a_page_is_absent_until_it_is_touched() {
        let pages = 1 << 20;
        let table = crate::table::Table::new(pages).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        // Far from the ends, where huge pages could have come with a neighbour.
        let middle = &table[pages / 2];
        let state = || page_state(&pagemap, std::ptr::from_ref(middle) as u64).unwrap();
        assert!(!state().is_present);
        middle.store(1, std::sync::atomic::Ordering::Relaxed);
        let after = state();
        assert!(after.is_present && after.is_exclusive && !after.is_file, "{after:?}");
        if let Some(is_zero) = after.is_zero_page {
            assert!(!is_zero);
        }
    }
}
