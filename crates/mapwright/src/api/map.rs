//! Maps for reading.

use std::ops::{Deref, Range, RangeBounds};
use std::path::Path;

use mapwright_sys::window::{Fixed, Reader};

use super::core::Core;
use super::options::MapOptions;
use super::pinned::Pinned;
use super::strategy::Choice;
use crate::engine::read_ahead::Advice;
use crate::error::Result;

/// A file, or a part of one, mapped for reading. Derefs to its bytes.
///
/// Nothing is read when it is made (but for small files, see [`Strategy::Auto`](crate::Strategy::Auto)). There are two ways
/// to the bytes, at the same time on the same map:
///
/// - *Transparent*: the slice. An absent page is a fault, which the pager serves. A page that cannot be read raises SIGBUS,
///   after a message, unless the slice was got from [`checked`](Self::checked).
/// - *Explicit*: [`get`](Self::get), [`get_many`](Self::get_many), [`read_at`](Self::read_at), [`prefetch`](Self::prefetch).
///   No faults; errors are values; many pages in one submission; awaitable with `_async`.
///
/// What was opened is what is read: if the file is changed by somebody else, reading what is not in memory yet is the error
/// [`Changed`](crate::Error::Changed), never a mixture. (With the kernel strategy, changes show at once.)
///
/// # Threads and fork
/// `Send` and `Sync`. A pager's mapping is not there in a child made by fork(2): a touch is SIGSEGV.
/// With [`FaultMode::InThread`](crate::FaultMode::InThread), or where only an unprivileged userfaultfd is allowed, a system
/// call that is handed a pointer to an absent page gets EFAULT; pass it bytes from [`get`](Self::get) instead.
///
/// ```
/// # let path = std::env::temp_dir().join(format!("mapwright-doc-{}", std::process::id()));
/// # std::fs::write(&path, vec![b'\n'; 100_000]).unwrap();
/// let map = mapwright::Map::open(&path)?;
/// let lines = map.iter().filter(|byte| **byte == b'\n').count(); // faults are served
/// let first = map.get(0..4096)?;                                 // no fault; errors are values
/// assert_eq!((lines, first.len()), (100_000, 4096));
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
pub struct Map {
    /// Dropped first: no slice outlives what serves its faults.
    bytes: Fixed,
    core: Core,
}

impl Map {
    pub(super) fn new(core: Core, reader: Reader) -> Self {
        let bytes = reader.fix(core.as_index(&(0..core.len)));
        Self { bytes, core }
    }

    /// Maps a file for reading with the default options.
    ///
    /// # Errors
    /// See [`MapOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        MapOptions::new().open(path)
    }

    /// Which strategy is in use, and why.
    pub fn strategy(&self) -> &Choice {
        &self.core.choice
    }

    /// The bytes of a range (in bytes, of the map), resident for as long as the result lives.
    ///
    /// # Errors
    /// [`OutOfRange`](crate::Error::OutOfRange), [`Io`](crate::Error::Io), [`Changed`](crate::Error::Changed),
    /// [`TimedOut`](crate::Error::TimedOut), and [`BudgetExhausted`](crate::Error::BudgetExhausted) if the range is larger
    /// than what the budget has unpinned.
    #[inline]
    pub fn get(&self, range: impl RangeBounds<u64>) -> Result<Pinned<'_>> {
        let range = self.core.resolve(range)?;
        let pins = self.core.pin(&range)?;
        Ok(self.pinned(&range, pins))
    }

    /// As [`get`](Self::get), without blocking the thread while bytes are read. Any runtime can await it. Dropping the
    /// future is safe; reads that were started go on.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn get_async(&self, range: impl RangeBounds<u64>) -> Result<Pinned<'_>> {
        let range = self.core.resolve(range)?;
        let pins = self.core.pin_async(&range).await?;
        Ok(self.pinned(&range, pins))
    }

    /// The bytes of many ranges, in the order asked for, read in one submission where they are not resident.
    ///
    /// # Errors
    /// As for [`get`](Self::get); then none is held.
    pub fn get_many(&self, ranges: &[Range<u64>]) -> Result<Vec<Pinned<'_>>> {
        let ranges = self.resolve_all(ranges)?;
        let pins = self.core.pin_many(&ranges)?;
        Ok(ranges.iter().zip(pins).map(|(range, pins)| self.pinned(range, pins)).collect())
    }

    /// As [`get_many`](Self::get_many), as a future.
    ///
    /// # Errors
    /// As for [`get`](Self::get); then none is held.
    pub async fn get_many_async(&self, ranges: &[Range<u64>]) -> Result<Vec<Pinned<'_>>> {
        let ranges = self.resolve_all(ranges)?;
        let pins = self.core.pin_many_async(&ranges).await?;
        Ok(ranges.iter().zip(pins).map(|(range, pins)| self.pinned(range, pins)).collect())
    }

    fn resolve_all(&self, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        ranges.iter().map(|range| self.core.resolve(range.clone())).collect()
    }

    #[inline]
    fn pinned<'m>(&'m self, range: &Range<u64>, pins: Option<super::pinned::Pins<'m>>) -> Pinned<'m> {
        Pinned::new(&self.bytes[range.start as usize..range.end as usize], pins)
    }

    /// Brings a range into memory, as far as the budget allows, and returns when it is there. What is not used soon may be
    /// evicted again.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub fn prefetch(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.core.prefetch(&self.core.resolve(range)?)
    }

    /// Starts to bring a range into memory, as far as the budget allows, and returns at once. Failures show where the
    /// bytes are used.
    ///
    /// # Errors
    /// [`OutOfRange`](crate::Error::OutOfRange).
    pub fn will_need(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.core.will_need(&self.core.resolve(range)?)
    }

    /// As [`prefetch`](Self::prefetch), as a future.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub async fn prefetch_async(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.core.prefetch_async(&self.core.resolve(range)?).await
    }

    /// Copies bytes from `offset` on into `into`, all of it.
    ///
    /// # Errors
    /// As for [`get`](Self::get); `into` may be filled in part then.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.core.read_at(&self.bytes, offset, into)
    }

    /// Runs `work` on the bytes. If a page can't be read it reads as zeros there, and only there, and `checked` returns the
    /// error instead of what `work` returned. The slice lies at other addresses than the map's own.
    ///
    /// A system call that is handed the slice is not `work` reading it: where such calls get EFAULT (see [`Map`]), they get
    /// it here too, and `checked` returns `Ok`. Hand them the bytes of [`get`](Self::get).
    ///
    /// ```
    /// # let path = std::env::temp_dir().join(format!("mapwright-checked-{}", std::process::id()));
    /// # std::fs::write(&path, vec![1u8; 100_000]).unwrap();
    /// let map = mapwright::Map::open(&path)?;
    /// let total = map.checked(|bytes| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())?;
    /// assert_eq!(total, 100_000);
    /// # std::fs::remove_file(&path).unwrap();
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// The error of the first page that could not be read while the closure ran: by it, or by another checked scope of the
    /// same file at the same time.
    pub fn checked<R>(&self, work: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let scope = self.core.enter_checked()?;
        let result = work(self.bytes.reader().slice(true, self.core.as_index(&(0..self.core.len))));
        scope.end().map(|()| result)
    }

    /// Says how the file will be read, for all maps of it in this pager.
    ///
    /// # Errors
    /// [`Io`](crate::Error::Io) from the kernel strategy.
    pub fn advise(&self, advice: Advice) -> Result<()> {
        self.core.advise(advice)
    }

    /// Drops what is clean and unpinned of a range from memory and returns the number of bytes freed. 0 for strategies
    /// other than the pager.
    ///
    /// # Errors
    /// [`OutOfRange`](crate::Error::OutOfRange).
    pub fn evict(&self, range: impl RangeBounds<u64>) -> Result<u64> {
        Ok(self.core.evict(&self.core.resolve(range)?))
    }

    /// Bytes of the file that the pager holds in memory; the whole length for the other strategies, where it isn't known.
    pub fn resident_bytes(&self) -> u64 {
        self.core.resident_bytes()
    }
}

impl Deref for Map {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map")
            .field("name", &self.core.name())
            .field("offset", &self.core.offset)
            .field("len", &self.core.len)
            .field("strategy", &self.core.choice.strategy())
            .finish_non_exhaustive()
    }
}
