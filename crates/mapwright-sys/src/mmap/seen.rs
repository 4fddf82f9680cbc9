//! A file that was looked at before it is mapped: once, by fstat(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{Stat, fstat, fstatfs};

use crate::PAGE_SIZE;

const HUGETLBFS_MAGIC: u64 = 0x9584_58f6; // include/uapi/linux/magic.h
/// Bytes in the smallest page of a hugetlbfs.
const SMALLEST_HUGE: u64 = 64 << 10;

/// What fstat(2) says of a file, and the size of the pages that the kernel maps it with. Borrows the descriptor, so that it stays
/// the same file's.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'f> {
    fd: BorrowedFd<'f>,
    stat: Stat,
    page: usize,
}

impl<'f> Seen<'f> {
    /// Looks at a file.
    ///
    /// # Errors
    /// What fstat(2) and fstatfs(2) say.
    pub fn look(fd: BorrowedFd<'f>) -> io::Result<Self> {
        let stat = fstat(fd)?;
        // On hugetlbfs, where offsets and lengths go by its own pages, the block size is theirs; others are not asked twice.
        let block_size = stat.st_blksize as u64;
        let may_be_huge = block_size.is_power_of_two() && block_size >= SMALLEST_HUGE;
        // The field's type differs between architectures, and is signed on some.
        let is_huge = may_be_huge && fstatfs(fd)?.f_type as u64 & 0xffff_ffff == HUGETLBFS_MAGIC;
        Ok(Self { fd, stat, page: if is_huge { block_size as usize } else { PAGE_SIZE } })
    }

    /// What fstat(2) said.
    #[must_use]
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Bytes in a page: 4096, but on hugetlbfs.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.page
    }

    /// The same for a descriptor, if this is what was looked at.
    pub(super) fn page_of(&self, fd: BorrowedFd<'_>) -> Option<usize> {
        (self.fd.as_raw_fd() == fd.as_raw_fd()).then_some(self.page)
    }
}
