//! Advice to the kernel, by range: what keeps bytes, and apart from it what takes them away.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use super::kind::{CopiesMut, Kind, NoAccess, SlicesMut, Write};
use super::refused;
use super::region::Region;
use crate::{PAGE_SIZE, check};

/// Advice that keeps contents (madvise(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// MADV_NORMAL: no special treatment.
    Normal,
    /// MADV_SEQUENTIAL: read ahead much, and drop soon.
    Sequential,
    /// MADV_RANDOM: read ahead little.
    Random,
    /// MADV_WILLNEED: read ahead now, without waiting.
    WillNeed,
    /// MADV_COLD (Linux 5.4): first to be reclaimed when memory is short.
    Cold,
    /// MADV_PAGEOUT (Linux 5.4): reclaimed now: written out and dropped from memory.
    PageOut,
    /// MADV_POPULATE_READ (Linux 5.14): readable without faults when it returns.
    PopulateRead,
    /// MADV_POPULATE_WRITE (Linux 5.14): writable without faults when it returns. It dirties no file page by itself, but
    /// makes private copies.
    PopulateWrite,
    /// MADV_HUGEPAGE: transparent huge pages, where they are on request.
    HugePage,
    /// MADV_NOHUGEPAGE: no transparent huge pages.
    NoHugePage,
    /// MADV_COLLAPSE (Linux 6.1): made huge pages of now.
    Collapse,
    /// MADV_MERGEABLE: pages that are equal may be made one, copied at the first write.
    Mergeable,
    /// MADV_UNMERGEABLE: no longer.
    Unmergeable,
    /// MADV_DONTDUMP: not in core dumps.
    DontDump,
    /// MADV_DODUMP: in core dumps again.
    DoDump,
    /// MADV_DONTFORK: not there in children. A child made by fork(2) must not touch the mapping: at its addresses there is nothing, or
    /// what the child has mapped there since. It may drop it, which does nothing there; changes and advice are refused with
    /// `EFAULT`. That goes by the mapping as a whole, also where only a part of it is kept from children.
    DontFork,
    /// MADV_DOFORK: there in children again.
    DoFork,
    /// MADV_WIPEONFORK (Linux 4.14): zeros in children. For private anonymous memory. A child made by fork(2) must not use values
    /// that it has references to in there, unless zeros are values of their types, nor hold a slice across the fork.
    WipeOnFork,
    /// MADV_KEEPONFORK (Linux 4.14): no longer.
    KeepOnFork,
}

const MADV_COLLAPSE: libc::c_int = 25; // include/uapi/asm-generic/mman-common.h

impl Advice {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Normal,
        Self::Sequential,
        Self::Random,
        Self::WillNeed,
        Self::Cold,
        Self::PageOut,
        Self::PopulateRead,
        Self::PopulateWrite,
        Self::HugePage,
        Self::NoHugePage,
        Self::Collapse,
        Self::Mergeable,
        Self::Unmergeable,
        Self::DontDump,
        Self::DoDump,
        Self::DontFork,
        Self::DoFork,
        Self::WipeOnFork,
        Self::KeepOnFork,
    ];

    /// The kernel's number for it.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Normal => libc::MADV_NORMAL,
            Self::Sequential => libc::MADV_SEQUENTIAL,
            Self::Random => libc::MADV_RANDOM,
            Self::WillNeed => libc::MADV_WILLNEED,
            Self::Cold => libc::MADV_COLD,
            Self::PageOut => libc::MADV_PAGEOUT,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
            Self::HugePage => libc::MADV_HUGEPAGE,
            Self::NoHugePage => libc::MADV_NOHUGEPAGE,
            Self::Collapse => MADV_COLLAPSE,
            Self::Mergeable => libc::MADV_MERGEABLE,
            Self::Unmergeable => libc::MADV_UNMERGEABLE,
            Self::DontDump => libc::MADV_DONTDUMP,
            Self::DoDump => libc::MADV_DODUMP,
            Self::DontFork => libc::MADV_DONTFORK,
            Self::DoFork => libc::MADV_DOFORK,
            Self::WipeOnFork => libc::MADV_WIPEONFORK,
            Self::KeepOnFork => libc::MADV_KEEPONFORK,
        }
    }

    /// Whether this kernel knows the advice: "madvise(0, 0, advice) will return zero iff advice is supported by the kernel
    /// and can be relied on to probe for support" (madvise(2), VERSIONS).
    #[must_use]
    pub fn is_supported(self) -> bool {
        is_advice_supported(self.number())
    }
}

/// Whether this kernel knows an advice by its number: see [`Advice::is_supported`].
#[must_use]
pub fn is_advice_supported(advice: i32) -> bool {
    // SAFETY: of no bytes at all.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, advice) == 0 }
}

impl<K: Kind> Region<K> {
    /// Gives advice on the pages that hold a range of bytes.
    ///
    /// # Errors
    /// What madvise(2) says: `EINVAL` for what the kernel doesn't know, `EFAULT` for populating past the end of a file,
    /// `ENOMEM`, `EIO`.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        let pages = self.inner.pages_of(range);
        self.inner.check_here()?;
        if advice == Advice::DontFork {
            // Before: it may fail half-way.
            self.inner.owner.keep();
        }
        let shares_all = advice == Advice::DoFork && pages == self.inner.pages();
        // SAFETY: the pages are this region's, and no `Advice` changes what they hold in this process. What a child of fork
        // finds there is another matter: fork is unsafe to call, and its caller keeps to what `DontFork` and `WipeOnFork` say.
        unsafe { self.madvise(pages, advice.number()) }?;
        if shares_all {
            self.inner.owner.share();
        }
        Ok(())
    }

    /// Drops the page-table entries of shared memory: contents stay with the file or the other sharers. The first meaning
    /// of MADV_DONTNEED.
    ///
    /// # Errors
    /// `EINVAL` for private memory, which has its contents nowhere else, and for locked pages.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn release(&self, range: Range<usize>) -> io::Result<()> {
        if !self.inner.facts.shared {
            return Err(refused(Errno::INVAL));
        }
        let pages = self.inner.pages_of(range);
        // SAFETY: the pages are this region's; those of shared memory keep their contents (madvise(2)).
        unsafe { self.madvise(pages, libc::MADV_DONTNEED) }
    }

    /// Which pages of a range are in memory: `look` gets a byte for each page, the lowest bit of which says so (mincore(2)).
    ///
    /// # Errors
    /// What mincore(2) says.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn residency<R>(&self, range: Range<usize>, look: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
        /// Pages that are looked at without an allocation: that takes as long as some of the call.
        const FEW: usize = 256;
        let pages = self.inner.pages_of(range);
        let count = pages.len() / PAGE_SIZE;
        let (mut few, mut many) = ([0_u8; FEW], Vec::new());
        let resident = if count <= FEW {
            &mut few[..count]
        } else {
            many.resize(count, 0_u8);
            &mut many[..]
        };
        if count > 0 {
            // SAFETY: the pages are this region's, and `resident` has a byte for each of them.
            let looked = unsafe { libc::mincore(pages.start as *mut _, pages.len(), resident.as_mut_ptr()) };
            check(looked.into())?;
        }
        Ok(look(resident))
    }

    /// The runs of pages that this mapping has copies of its own of: what was written to private memory. Offsets from the
    /// first byte's page, in bytes.
    ///
    /// # Errors
    /// `ENOTTY` before Linux 6.7.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn own_pages(&self, range: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let pages = self.inner.pages_of(range);
        let base = self.inner.pages().start;
        let mut found = Vec::new();
        crate::pagemap::Pagemap::open()?.owned(pages, &mut found)?;
        Ok(found.into_iter().map(|run| run.start - base..run.end - base).collect())
    }

    /// # Safety
    /// No reference may be alive to pages that the advice changes.
    unsafe fn madvise(&self, pages: Range<usize>, advice: i32) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.inner.check_here()?;
        // SAFETY: the pages are this region's; the rest is the caller's condition.
        let advised = unsafe { libc::madvise(pages.start as *mut _, pages.len(), advice) };
        check(advised.into()).map(drop)
    }

    /// The pages of a range that is whole pages.
    fn whole_pages(&self, range: Range<usize>) -> io::Result<Range<usize>> {
        let pages = self.inner.pages_of(range.clone());
        let is_whole = pages.len() == range.len() && pages.start == self.inner.start + range.start;
        if range.is_empty() || is_whole { Ok(pages) } else { Err(refused(Errno::INVAL)) }
    }

    /// As [`whole_pages`](Self::whole_pages), where the region's last page may be a part of one: for what takes only this
    /// mapping's own bytes away, not the file's behind the region's end.
    fn whole_pages_or_last(&self, range: Range<usize>) -> io::Result<Range<usize>> {
        let pages = self.inner.pages_of(range.clone());
        let ends_it = range.end == self.inner.len && pages.start == self.inner.start + range.start;
        if ends_it { Ok(pages) } else { self.whole_pages(range) }
    }
}

impl<K: SlicesMut> Region<K> {
    /// Throws the contents of whole pages away: anonymous memory is zeros then, a private copy of a file shows the file.
    /// The second meaning of MADV_DONTNEED. The last page of the region may be a part of one.
    ///
    /// # Errors
    /// `EINVAL` for shared memory, for ranges that are not whole pages, and for locked pages.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn discard(&mut self, range: Range<usize>) -> io::Result<()> {
        if self.inner.facts.shared {
            return Err(refused(Errno::INVAL));
        }
        let pages = self.whole_pages_or_last(range)?;
        // SAFETY: the region is borrowed exclusively: nobody has a slice of it.
        unsafe { self.madvise(pages, libc::MADV_DONTNEED) }
    }

    /// As for [`Copies`](super::Copies) kinds.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn punch_hole_mut(&mut self, range: Range<usize>) -> io::Result<()> {
        let pages = self.whole_pages(range)?;
        // SAFETY: as in `discard`.
        unsafe { self.madvise(pages, libc::MADV_REMOVE) }
    }
}

impl<K: CopiesMut> Region<K> {
    /// Frees the file's own storage of whole pages, for all who map or read it: they are zeros then (MADV_REMOVE). A part of a
    /// page is refused at the end too: behind it the file may have more bytes.
    ///
    /// # Errors
    /// `EINVAL` for private memory, locked pages and ranges that are not whole pages; `EOPNOTSUPP` where the file system can't.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn punch_hole(&self, range: Range<usize>) -> io::Result<()> {
        let pages = self.whole_pages(range)?;
        // SAFETY: of a `Copies` kind no reference exists.
        unsafe { self.madvise(pages, libc::MADV_REMOVE) }
    }

    /// Throws the private copies of whole pages away: the file shows again.
    ///
    /// # Errors
    /// As for `discard` of the other kinds.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn discard_copies(&self, range: Range<usize>) -> io::Result<()> {
        if self.inner.facts.shared {
            return Err(refused(Errno::INVAL));
        }
        let pages = self.whole_pages_or_last(range)?;
        // SAFETY: of a `Copies` kind no reference exists.
        unsafe { self.madvise(pages, libc::MADV_DONTNEED) }
    }
}

/// Memory whose pages the kernel may take whenever it likes: they can't be looked at until they are taken back.
#[derive(Debug)]
pub struct Freed(Region<Write>);

impl Region<Write> {
    /// Lets the kernel take the pages when memory is short (MADV_FREE). Pages that it took are zeros afterwards.
    ///
    /// # Errors
    /// The region, and `EINVAL` if it is not private anonymous memory of small pages. Of memory that is locked in part, some
    /// pages may be zeros then.
    pub fn free(self) -> Result<Freed, (Self, io::Error)> {
        let facts = self.inner.facts;
        if !facts.anonymous || facts.shared || facts.huge.is_some() {
            return Err((self, refused(Errno::INVAL)));
        }
        let pages = self.inner.pages();
        // SAFETY: the region is owned, so that nobody has a slice of it, nor gets one before `reuse`.
        match unsafe { self.madvise(pages, libc::MADV_FREE) } {
            Ok(()) => Ok(Freed(self)),
            // It may have failed half-way: the kernel may take pages before that.
            Err(error) => Err((Freed(self).reuse(), error)),
        }
    }
}

impl Freed {
    /// The memory as before; each page is as it was or zeros, and stays so.
    #[must_use]
    pub fn reuse(self) -> Region<Write> {
        let page = self.0.page_size();
        let start = self.0.start() / page * page;
        debug_assert_eq!(start, self.0.start(), "anonymous memory begins with a page");
        for at in (0..self.0.len()).step_by(page) {
            let byte = (start + at) as *mut u8;
            // SAFETY: the byte is in the region, mapped, aligned, and reached by nobody else: the region is owned. What may
            // change it is the kernel, which gives a zero page for the old one at once.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            // A write keeps the page (madvise(2), MADV_FREE: "subsequent writes to pages in the range will succeed, and then
            // kernel cannot free those dirtied pages"). It must not bring an old byte into a page that has become zeros.
            let mut was = byte.load(Ordering::Relaxed);
            while let Err(is) = byte.compare_exchange(was, was, Ordering::Relaxed, Ordering::Relaxed) {
                was = is;
            }
        }
        self.0
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Region<NoAccess> {
    /// Throws all contents away; private memory only, as [`Region::discard`].
    ///
    /// # Errors
    /// `EINVAL` for shared memory.
    pub fn discard_all(&mut self) -> io::Result<()> {
        if self.inner.facts.shared {
            return Err(refused(Errno::INVAL));
        }
        let pages = self.inner.pages();
        // SAFETY: nobody can have a slice of inaccessible memory.
        unsafe { self.madvise(pages, libc::MADV_DONTNEED) }
    }
}
