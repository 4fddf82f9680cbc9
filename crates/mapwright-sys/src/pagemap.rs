//! PAGEMAP_SCAN: which pages of a range were written (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::{PAGE_SIZE, check};

pub(crate) const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Regions fetched a call. One call tells of this many runs of written pages.
const REGIONS: usize = 256;

#[repr(C)]
pub(crate) struct ScanArgument {
    pub(crate) size: u64,
    pub(crate) flags: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) walk_end: u64,
    pub(crate) vec: u64,
    pub(crate) vec_len: u64,
    pub(crate) max_pages: u64,
    pub(crate) category_inverted: u64,
    pub(crate) category_mask: u64,
    pub(crate) category_anyof_mask: u64,
    pub(crate) return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Region {
    start: u64,
    end: u64,
    pub(crate) categories: u64,
}

/// Which pages to report: those with all of some bits and any of others, after some are inverted.
struct Categories {
    inverted: u64,
    all: u64,
    any: u64,
}

const WRITTEN: Categories = Categories { inverted: 0, all: PAGE_IS_WRITTEN, any: 0 };
const OWNED: Categories = Categories {
    inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
    all: PAGE_IS_FILE | PAGE_IS_PFNZERO,
    any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
};

/// This process's page tables, as `/proc/self/pagemap` shows them.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of this process.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::open("/proc/self/pagemap")?))
    }

    /// The same with a descriptor that is not below `lowest`: out of the way of those that a program counts on.
    ///
    /// # Errors
    /// `EMFILE` if there is no room; `EINVAL` if the process may not have such descriptors.
    pub fn lifted(self, lowest: i32) -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(&self.0, lowest)?.into()))
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Whether this kernel has PAGEMAP_SCAN.
    ///
    /// # Errors
    /// `ENOTTY` where it does not.
    pub fn probe(&self) -> io::Result<()> {
        let mut nothing = Vec::new();
        self.scan(0..PAGE_SIZE, 0, &WRITTEN, &mut nothing)
    }

    /// Appends the address ranges inside `range` that were written since they were write-protected, merged where they
    /// touch. A page without a page-table entry counts as written unless a write-protect marker stands there. Memory whose
    /// writes are not tracked may be among it, such as the zeros of a checked view: what is told of that says nothing.
    ///
    /// # Errors
    /// Whatever the kernel says: `ENOTTY` before Linux 6.7.
    pub fn written(&self, range: Range<usize>, out: &mut Vec<Range<usize>>) -> io::Result<()> {
        self.scan(range, 0, &WRITTEN, out)
    }

    /// As [`written`](Self::written), and write-protects what it reports in the same step: a write that is not in this
    /// report is in the next one.
    ///
    /// # Errors
    /// As for [`written`](Self::written). What was write-protected until then is in `out`.
    pub fn take_written(&self, range: Range<usize>, out: &mut Vec<Range<usize>>) -> io::Result<()> {
        self.scan(range, PM_SCAN_WP_MATCHING, &WRITTEN, out)
    }

    /// Appends the address ranges inside `range` whose pages are anonymous memory, in memory or swapped: neither a file's
    /// nor the page of zeros.
    ///
    /// # Errors
    /// As for [`written`](Self::written).
    pub fn owned(&self, range: Range<usize>, out: &mut Vec<Range<usize>>) -> io::Result<()> {
        self.scan(range, 0, &OWNED, out)
    }

    fn scan(
        &self,
        range: Range<usize>,
        flags: u64,
        look_for: &Categories,
        out: &mut Vec<Range<usize>>,
    ) -> io::Result<()> {
        let mut regions = [Region::default(); REGIONS];
        let mut start = range.start as u64;
        while start < range.end as u64 {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags,
                start,
                end: range.end as u64,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: look_for.inverted,
                category_mask: look_for.all,
                category_anyof_mask: look_for.any,
                return_mask: look_for.all | look_for.any,
            };
            // SAFETY: the argument has the kernel's layout and size, and `regions` has room for `vec_len` regions.
            let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &mut argument) };
            let found = match check(found.into()) {
                Ok(found) => found as usize,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => 0,
                Err(error) => return Err(error),
            };
            for region in &regions[..found] {
                push_merged(out, region.start as usize..region.end as usize);
            }
            start = argument.walk_end.max(start);
        }
        Ok(())
    }
}

fn push_merged(out: &mut Vec<Range<usize>>, range: Range<usize>) {
    match out.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => out.push(range),
    }
}
