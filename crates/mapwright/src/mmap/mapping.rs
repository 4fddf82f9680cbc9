//! The mapping itself: its kinds by name, its bytes as slices or as copies.

use std::fs::File;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use mapwright_sys::mmap::{
    Copies, CopiesMut, Exec, GuardKind, Kind, MapAssumed, MapAssumedWith, NoAccess, Promise, Read, Region,
    Slices, SlicesMut, Volatile, VolatileMut, Write,
};
use rustix::io::Errno;

use super::fail::{Attempt, OrFailed};
use super::options::MmapOptions;
use crate::error::{Change, Error, Result};

/// Memory that is only read: a slice.
pub type Mmap = Mapping<Read>;
/// Memory of this process alone, read and written: a slice.
pub type MmapMut = Mapping<Write>;
/// Code: a slice, whose address may be jumped to.
pub type MmapExec = Mapping<Exec>;
/// Memory that can't be touched, until its kind is changed.
pub type MmapNone = Mapping<NoAccess>;
/// Memory that others may change too, such as a file: read and written by copies.
pub type MmapRaw = Mapping<VolatileMut>;
/// Memory that others may change, read by copies.
pub type MmapRawRead = Mapping<Volatile>;

/// A mapping of the kernel's. What may be done to its bytes is its kind, `K`: see the [module](crate::mmap) for the names.
///
/// It is unmapped when it is dropped; it outlives the descriptor that it was made of. Offsets and lengths are in bytes,
/// from its first byte.
///
/// # Threads and fork
/// `Send` and `Sync`. For fork(2) see the [module](crate::mmap).
#[derive(Debug)]
pub struct Mapping<K: Kind> {
    pub(super) region: Region<K>,
    pub(super) origin: Option<Arc<Origin>>,
}

/// A file that was opened by path: what errors are told with.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Its length in bytes when it was mapped; none for devices.
    pub(super) len: Option<u64>,
}

impl<K: Kind> Mapping<K> {
    pub(super) fn new(region: Region<K>, origin: Option<Arc<Origin>>) -> Self {
        Self { region, origin }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether the length is zero. Then nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// Address of the first byte, which stays the same until the mapping is dropped or [moved](super::Resize::MayMove).
    pub fn as_ptr(&self) -> *const u8 {
        self.region.start() as *const u8
    }

    /// As [`as_ptr`](Self::as_ptr), of memory that may be written.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.region.start() as *mut u8
    }

    /// Size in bytes of its pages: 4096, unless it consists of huge pages.
    pub fn page_size(&self) -> usize {
        self.region.page_size()
    }

    /// Whether others see what is written: other mappings of the file, or children of fork.
    pub fn is_shared(&self) -> bool {
        self.region.is_shared()
    }

    /// Whether it has no file.
    pub fn is_anonymous(&self) -> bool {
        self.region.is_anonymous()
    }

    /// Offset in the file of the first byte; 0 for anonymous memory.
    pub fn file_offset(&self) -> u64 {
        self.region.offset()
    }

    /// How the pages around it are guarded: see [`MmapOptions::guard_pages`].
    pub fn guard(&self) -> GuardKind {
        self.region.guard()
    }

    /// Unmaps it, and says whether that failed. Nothing is flushed: what was written to a shared mapping is the file's already.
    ///
    /// # Errors
    /// [`LimitReached`](Error::LimitReached) if the kernel would have to split a mapping at vm.max_map_count: the memory
    /// is freed, its addresses stay in use.
    pub fn close(self) -> Result<()> {
        let Self { region, origin } = self;
        let (offset, len) = (region.offset(), region.len() as u64);
        let name =
            origin.as_ref().map_or_else(|| "a mapping".into(), |origin| origin.path.display().to_string());
        region.unmap().or_failed(Attempt { operation: "munmap", name: &name, offset, len, huge: false })
    }

    pub(super) fn name(&self) -> String {
        match &self.origin {
            Some(origin) => origin.path.display().to_string(),
            None if self.is_anonymous() => "anonymous memory".to_owned(),
            None => "a mapped file".to_owned(),
        }
    }

    /// Turns an error of the unsafe layer into a typed one.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        range: &Range<usize>,
        error: std::io::Error,
    ) -> Error {
        let offset = self.file_offset() + range.start as u64;
        let huge = false;
        Attempt { operation, name: &self.name(), offset, len: range.len() as u64, huge }.failed(error)
    }

    /// A range of this mapping from bounds.
    pub(super) fn resolve(&self, range: impl RangeBounds<usize>) -> Result<Range<usize>> {
        use std::ops::Bound;
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len(),
        };
        if start <= end && end <= self.len() {
            return Ok(start..end);
        }
        Err(Error::OutOfRange {
            path: self.name(),
            offset: start as u64,
            end: end as u64,
            file_len: self.len() as u64,
        })
    }
}

impl<K: Copies> Mapping<K> {
    /// Copies bytes out, from `offset` on. What others write at the same time may be seen in part.
    ///
    /// ```
    /// use mapwright::mmap::MmapOptions;
    ///
    /// let shared = MmapOptions::new().len(8192).map_anon_shared()?; // children of fork see it too
    /// shared.write_at(4095, b"ab")?;
    /// let mut bytes = [0; 2];
    /// shared.read_at(4095, &mut bytes)?;
    /// assert_eq!(&bytes, b"ab");
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange). For a page that can't be had: [`Changed`](Error::Changed) if the file was opened
    /// by path and is shorter now, otherwise [`Io`](Error::Io), with `EIO`, or `EFAULT` where the file is not known. What is
    /// in `into` then is some mixture.
    pub fn read_at(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.resolve(offset..offset.saturating_add(into.len()))?;
        self.region.copy_out(offset, into).map_err(|at| self.no_page("read", offset + at))
    }

    /// Copies bytes out into a vector.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn to_vec(&self, range: impl RangeBounds<usize>) -> Result<Vec<u8>> {
        let range = self.resolve(range)?;
        let mut bytes = vec![0; range.len()];
        self.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// A copy of the value at `offset`, which may be any.
    ///
    /// ```
    /// let shared = mapwright::mmap::MmapOptions::new().len(4096).map_anon_shared()?;
    /// shared.write_value(13, &[7u32, 8])?;
    /// assert_eq!(shared.read_value::<u32>(17)?, 8);
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    #[cfg(feature = "zerocopy")]
    pub fn read_value<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        self.read_at(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// The error for a page at which the copy stopped.
    fn no_page(&self, operation: &'static str, at: usize) -> Error {
        let offset = self.file_offset() + at as u64;
        let Some(origin) = &self.origin else {
            return Error::io(operation, self.name(), offset, 1, Errno::FAULT.into());
        };
        let failed = || Error::io(operation, self.name(), offset, 1, Errno::IO.into());
        let Ok(now) = super::cache::file_len(origin.file.as_fd()) else { return failed() };
        let page = self.page_size() as u64;
        match origin.len {
            Some(was) if now < was => {
                let change = Change::Truncated { was, now };
                Error::Changed { path: self.name(), offset, change }
            }
            // Mapped past the end from the start, as may be asked for.
            Some(_) if now.div_ceil(page) <= offset / page => {
                Error::OutOfRange { path: self.name(), offset, end: offset + 1, file_len: now }
            }
            _ => failed(),
        }
    }
}

impl<K: CopiesMut> Mapping<K> {
    /// Copies bytes in, from `offset` on. Several threads may write at once; what two of them write to one place ends as
    /// some mixture.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at). A full disk under a sparse file counts as a page that can't be had. A part may
    /// have been written.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.resolve(offset..offset.saturating_add(bytes.len()))?;
        self.region.copy_in(offset, bytes).map_err(|at| self.no_page("write", offset + at))
    }

    /// Writes a value at `offset`, which may be any.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    #[cfg(feature = "zerocopy")]
    pub fn write_value<T: zerocopy::IntoBytes + zerocopy::Immutable>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<()> {
        self.write_at(offset, value.as_bytes())
    }
}

impl<K: Slices> Deref for Mapping<K> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.region
    }
}

impl<K: SlicesMut> DerefMut for Mapping<K> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.region
    }
}

impl<K: Slices> AsRef<[u8]> for Mapping<K> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<K: SlicesMut> AsMut<[u8]> for Mapping<K> {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Mapping<Write> {
    /// `len` bytes of zeros, private to this process. [`MmapOptions::map_anon`] has options.
    ///
    /// ```
    /// let mut memory = mapwright::mmap::MmapMut::map_anon(100_000)?;
    /// memory[99_999] = 1;
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// See [`MmapOptions::map_anon`].
    pub fn map_anon(len: usize) -> Result<Self> {
        MmapOptions::new().len(len).map_anon()
    }
}

impl Mapping<VolatileMut> {
    /// A whole file, shared, for reading and writing by copies. [`MmapOptions::map_raw`] has options.
    ///
    /// # Errors
    /// See [`MmapOptions::map_raw`].
    pub fn map_raw(file: impl AsFd) -> Result<Self> {
        MmapOptions::new().map_raw(file)
    }
}

impl MapAssumed for Mapping<Read> {
    type Error = Error;

    fn map_promised(promise: Promise<'_>) -> Result<Self> {
        MmapOptions::new().read_promised(true, promise)
    }
}

impl MapAssumed for Mapping<Write> {
    type Error = Error;

    fn map_promised(promise: Promise<'_>) -> Result<Self> {
        MmapOptions::new().write_promised(true, promise)
    }
}
