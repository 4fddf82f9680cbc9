//! Maps for reading.

use std::ops::Deref;
use std::path::Path;

use mapwright_sys::window::{Fixed, Reader};

use super::core::Core;
use super::options::MapOptions;
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
    pub(super) bytes: Fixed,
    pub(super) core: Core,
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
