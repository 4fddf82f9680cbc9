//! Advice on ranges. What takes contents away has names of its own, and needs the mapping for itself.

use std::ops::RangeBounds;

use mapwright_sys::mmap::{Advice, Kind, VolatileMut, Write};
use rustix::io::Errno;

use super::change::Refused;
use super::mapping::{Mapping, MmapMut};
use super::residency::Residency;
use crate::error::{Error, Result};

impl<K: Kind> Mapping<K> {
    /// Advises the kernel on all pages. No [`Advice`] changes contents.
    ///
    /// # Errors
    /// As for [`advise_range`](Self::advise_range).
    pub fn advise(&self, advice: Advice) -> Result<()> {
        self.advise_range(.., advice)
    }

    /// Advises the kernel on the pages that hold a range.
    ///
    /// ```
    /// use mapwright::mmap::{Advice, MmapMut};
    ///
    /// let memory = MmapMut::map_anon(1 << 20)?;
    /// memory.advise(Advice::Sequential)?;
    /// if Advice::PopulateWrite.is_supported() {
    ///     memory.advise_range(0..64 << 10, Advice::PopulateWrite)?; // no fault in there from now on
    /// }
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Unsupported`](Error::Unsupported) if this kernel does not know the advice, [`Invalid`](Error::Invalid) if it knows it but
    /// not for this memory, [`OutOfRange`](Error::OutOfRange); for populating, [`Io`](Error::Io) where a touch would be SIGBUS
    /// (`EFAULT`).
    pub fn advise_range(&self, range: impl RangeBounds<usize>, advice: Advice) -> Result<()> {
        let range = self.resolve(range)?;
        self.region.advise(range.clone(), advice).map_err(|error| {
            if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) {
                return self.failed("madvise", &range, error);
            }
            if !advice.is_supported() {
                return Error::unsupported("this advice", "a newer kernel, or one built with it: see mapwright doctor", error);
            }
            Error::invalid(
                format!("{}: the advice {advice:?} for {} memory", self.name(), K::NAME),
                "the kernel takes it for other kinds of memory only, or not for pages that are locked or huge: see madvise(2)",
            )
        })
    }

    /// Drops the page-table entries of the pages that hold a range of shared memory: the contents stay with the file, and the
    /// next touch is a fault. This is MADV_DONTNEED where it loses nothing; where it does, it is [`discard`](MmapMut::discard).
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for private memory and locked pages; [`OutOfRange`](Error::OutOfRange).
    pub fn release(&self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.resolve(range)?;
        self.region
            .release(range.clone())
            .map_err(|error| self.not_for_this("releasing pages", &range, error))
    }

    /// Which pages of a range are in memory (mincore(2)): of a file, in the page cache, whoever brought them there. Of a file
    /// that the caller neither owns nor may write, the kernel says that all are.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange), and what mincore(2) says.
    pub fn residency(&self, range: impl RangeBounds<usize>) -> Result<Residency> {
        let range = self.resolve(range)?;
        self.region
            .residency(range.clone(), Residency::new)
            .map_err(|error| self.failed("mincore", &range, error))
    }

    /// The runs of pages that this mapping has of its own: what was written to private memory, in memory or in swap. In bytes,
    /// from the page of the first byte.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange); [`Unsupported`](Error::Unsupported) before Linux 6.7.
    pub fn own_pages(&self, range: impl RangeBounds<usize>) -> Result<Vec<std::ops::Range<usize>>> {
        let range = self.resolve(range)?;
        self.region.own_pages(range.clone()).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOTTY) => Error::unsupported("PAGEMAP_SCAN", "Linux 6.7 or later has it", error),
                _ => self.failed("pagemap", &range, error),
            }
        })
    }

    fn not_for_this(&self, what: &str, range: &std::ops::Range<usize>, error: std::io::Error) -> Error {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        if !matches!(errno, Some(Errno::INVAL | Errno::ACCESS)) {
            return self.failed("madvise", range, error);
        }
        let sharing = if self.is_shared() { "shared" } else { "private" };
        let backing = if self.is_anonymous() { "anonymous memory" } else { "mapping of a file" };
        Error::invalid(
            format!("{}: {what} of bytes {range:?} of a {sharing} {backing}", self.name()),
            "name whole pages that are not locked: release is for shared memory, discard for private, punch_hole for \
             files mapped shared",
        )
    }
}

impl Mapping<Write> {
    /// Throws the contents of whole pages of private memory away: anonymous memory is zeros then, a copy of a file shows the
    /// file. The memory goes back to the system at once. This is MADV_DONTNEED where it loses what was written.
    ///
    /// ```
    /// # use mapwright::mmap::MmapMut;
    /// let mut memory = MmapMut::map_anon(8192)?;
    /// memory.fill(1);
    /// memory.discard(4096..8192)?; // needs the mapping for itself: no slice is alive
    /// assert_eq!((memory[4095], memory[4096]), (1, 0));
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for shared memory, locked pages and ranges that are not whole pages;
    /// [`OutOfRange`](Error::OutOfRange).
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.resolve(range)?;
        self.region.discard(range.clone()).map_err(|error| self.not_for_this("discarding", &range, error))
    }

    /// Frees the file's own storage of whole pages of a shared mapping: they are zeros then, in the file too (MADV_REMOVE).
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for private memory, locked pages and ranges that are not whole pages;
    /// [`Io`](Error::Io) with `EOPNOTSUPP` where the file system can't; [`OutOfRange`](Error::OutOfRange).
    pub fn punch_hole(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.resolve(range)?;
        self.region
            .punch_hole_mut(range.clone())
            .map_err(|error| self.not_for_this("punching a hole", &range, error))
    }

    /// Lets the kernel take the pages when memory is short, and not before (MADV_FREE). They can't be looked at until
    /// [`Freed::reuse`], because they may turn into zeros at any time.
    ///
    /// ```
    /// # use mapwright::mmap::MmapMut;
    /// let mut memory = MmapMut::map_anon(8192)?;
    /// memory.fill(1);
    /// let memory = memory.free()?.reuse(); // each page is as it was, or zeros
    /// assert!([0, 1].contains(&memory[8191]));
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Refused`]: [`Invalid`](Error::Invalid) if it is not private anonymous memory.
    pub fn free(self) -> Result<Freed, Refused<Self>> {
        let Self { region, origin } = self;
        match region.free() {
            Ok(freed) => Ok(Freed { freed, origin }),
            Err((region, source)) => {
                let mapping = Self { region, origin };
                let error = mapping.not_for_this("freeing", &(0..mapping.len()), source);
                Err(Refused::new(mapping, error))
            }
        }
    }
}

/// Memory whose pages the kernel may take: see [`MmapMut::free`].
#[derive(Debug)]
pub struct Freed {
    freed: mapwright_sys::mmap::Freed,
    origin: Option<std::sync::Arc<super::mapping::Origin>>,
}

impl Freed {
    /// The memory as before. Each page is as it was or zeros, and stays so: every page is written to find out.
    pub fn reuse(self) -> MmapMut {
        Mapping::new(self.freed.reuse(), self.origin)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.freed.len()
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.freed.is_empty()
    }
}

impl Mapping<VolatileMut> {
    /// Throws the private copies of whole pages away: the file shows again. For mappings made by
    /// [`MmapOptions::map_raw_copy`](super::MmapOptions::map_raw_copy) and its like.
    ///
    /// # Errors
    /// As for [`MmapMut::discard`].
    pub fn discard(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.resolve(range)?;
        self.region
            .discard_copies(range.clone())
            .map_err(|error| self.not_for_this("discarding", &range, error))
    }

    /// Frees the file's own storage of whole pages, for all who have it: they are zeros then (MADV_REMOVE).
    ///
    /// # Errors
    /// As for [`MmapMut::punch_hole`].
    pub fn punch_hole(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = self.resolve(range)?;
        self.region
            .punch_hole(range.clone())
            .map_err(|error| self.not_for_this("punching a hole", &range, error))
    }
}
