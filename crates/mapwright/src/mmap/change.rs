//! Changes of a mapping: its kind, its bounds, its length, its locks.

use std::ops::{Range, RangeBounds};

use mapwright_sys::mmap::{Becomes, Exec, Kind, NoAccess, NumaPolicy, Sealed, Stable};

use super::mapping::{Mapping, MmapExec, MmapNone};
use crate::error::{Error, Result};

/// A change that failed: the mapping as it was, and why. `?` turns it into an [`Error`] and drops the mapping.
#[derive(Debug)]
pub struct Refused<M> {
    /// The mapping, unchanged.
    pub mapping: M,
    /// Why it is unchanged.
    pub error: Box<Error>,
}

impl<M> Refused<M> {
    pub(super) fn new(mapping: M, error: Error) -> Self {
        Self { mapping, error: Box::new(error) }
    }
}

impl<M> From<Refused<M>> for Error {
    fn from(refused: Refused<M>) -> Self {
        *refused.error
    }
}

impl<M> From<Refused<M>> for std::io::Error {
    fn from(refused: Refused<M>) -> Self {
        (*refused.error).into()
    }
}

impl<M> std::fmt::Display for Refused<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl<M: std::fmt::Debug> std::error::Error for Refused<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

/// Whether a mapping may get another address when it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The address stays, or the resize is an error.
    InPlace,
    /// The kernel may move it: the address changes, the bytes are not copied.
    MayMove,
}

impl<K: Kind> Mapping<K> {
    fn become_kind<T: Kind>(self) -> Result<Mapping<T>, Refused<Self>>
    where
        K: Becomes<T>,
    {
        let Self { region, origin } = self;
        match region.become_kind() {
            Ok(region) => Ok(Mapping { region, origin }),
            Err((region, source)) => {
                let mapping = Self { region, origin };
                let error = mapping.protection_failed::<T>(source);
                Err(Refused::new(mapping, error))
            }
        }
    }

    fn protection_failed<T: Kind>(&self, source: std::io::Error) -> Error {
        use rustix::io::Errno;
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::ACCESS) => Error::ReadOnly { path: self.name() },
            Some(Errno::PERM) => Error::invalid(
                format!("{}: a shared mapping made for reading, to be {}", self.name(), T::NAME),
                "another mapping may rely on nobody writing: map it with map_mut, or privately with map_copy_read_only",
            ),
            _ => self.failed("mprotect", &(0..self.len()), source),
        }
    }

    /// The same bytes, to be read only.
    ///
    /// # Errors
    /// [`Refused`]: [`LimitReached`](Error::LimitReached) at vm.max_map_count, and what mprotect(2) says.
    pub fn make_read_only(self) -> Result<Mapping<K::ReadOnly>, Refused<Self>>
    where
        K: Becomes<<K as Kind>::ReadOnly>,
    {
        self.become_kind()
    }

    /// The same bytes, to be written.
    ///
    /// # Errors
    /// [`Refused`]: [`ReadOnly`](Error::ReadOnly) for a file opened for reading and mapped shared;
    /// [`Invalid`](Error::Invalid) for a shared file mapped on the promise that nobody writes it.
    pub fn make_mut(self) -> Result<Mapping<K::Writable>, Refused<Self>>
    where
        K: Becomes<<K as Kind>::Writable>,
    {
        self.become_kind()
    }

    /// The same bytes as code, not writable any more: see [`entry`](Self::entry). On AArch64 the caches of code are cleaned; on
    /// machines other than that and x86-64 the caller sees to it.
    ///
    /// # Errors
    /// [`Refused`]: [`ReadOnly`](Error::ReadOnly) where the file system is mounted `noexec`.
    pub fn make_exec(self) -> Result<MmapExec, Refused<Self>>
    where
        K: Becomes<Exec>,
    {
        let code: MmapExec = self.become_kind()?;
        // A kernel that refuses membarrier(2), or a machine that is not known: what other threads have fetched of these
        // addresses before is theirs to forget.
        let _ = mapwright_sys::mmap::synchronise_new_code(&code.region);
        Ok(code)
    }

    /// The same bytes, out of reach until the kind is changed again.
    ///
    /// # Errors
    /// [`Refused`], with what mprotect(2) says.
    pub fn make_none(self) -> Result<MmapNone, Refused<Self>>
    where
        K: Becomes<NoAccess>,
    {
        self.become_kind()
    }

    /// Makes two mappings of one: the bytes before `at`, and the rest. `at` falls on a page of the memory, so that for a
    /// mapping from an odd offset of a file it is odd as well.
    ///
    /// ```
    /// use mapwright::mmap::MmapMut;
    ///
    /// let (code, data) = MmapMut::map_anon(3 * 4096)?.split_at(4096)?;
    /// let code = code.make_exec()?;
    /// assert_eq!((code.len(), data.len()), (4096, 8192));
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Refused`]: [`Invalid`](Error::Invalid) inside a page, [`OutOfRange`](Error::OutOfRange) past the end.
    pub fn split_at(self, at: usize) -> Result<(Self, Self), Refused<Self>> {
        if let Err(error) = self.resolve(at..) {
            return Err(Refused::new(self, error));
        }
        let Self { region, origin } = self;
        match region.split(at) {
            Ok((first, rest)) => Ok((Self::new(first, origin.clone()), Self::new(rest, origin))),
            Err((region, _)) => {
                let mapping = Self { region, origin };
                let page = mapping.page_size();
                let error = Error::invalid(
                    format!("{}: a split at byte {at}, inside a page of {page} bytes", mapping.name()),
                    "split where (address + at) is a multiple of the page size",
                );
                Err(Refused::new(mapping, error))
            }
        }
    }

    /// Unmaps a range in the middle or at an end, and returns what is before and after it. Both ends fall on pages.
    ///
    /// # Errors
    /// As for [`split_at`](Self::split_at). At vm.max_map_count the memory of the range is freed all the same, but its addresses
    /// stay in use; that is no error here, where both sides are still the caller's. [`split_at`](Self::split_at) and
    /// [`close`](Self::close) tell.
    pub fn unmap(self, range: impl RangeBounds<usize>) -> Result<(Self, Self), Refused<Self>> {
        let range = match self.resolve(range) {
            Ok(range) => range,
            Err(error) => return Err(Refused::new(self, error)),
        };
        if let Err(error) = self.splits_at(range.end) {
            return Err(Refused::new(self, error));
        }
        let (front, rest) = self.split_at(range.start)?;
        match rest.split_at(range.len()) {
            Ok((middle, back)) => {
                drop(middle);
                Ok((front, back))
            }
            // Both places were looked at.
            Err(refused) => Err(refused),
        }
    }

    fn splits_at(&self, at: usize) -> Result<()> {
        let address = self.region.start() + at;
        if at == 0 || at == self.len() || address.is_multiple_of(self.page_size()) {
            return Ok(());
        }
        Err(Error::invalid(
            format!("{}: unmapping up to byte {at}, inside a page", self.name()),
            "end the range where (address + end) is a multiple of the page size",
        ))
    }

    /// Changes the length in bytes. Added bytes are zeros for anonymous memory and what follows in the file otherwise; of a
    /// file they may lie past its end, and then can't be had until it grows. No slice can be alive. Anonymous memory that is
    /// read-only, code or out of reach both when it shrinks and when it grows again shows in its last page what it held
    /// before.
    ///
    /// A mapping placed in a [`Reservation`](super::Reservation) grows in place as long as the reservation is free behind it.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `ENOMEM` where it can't grow in place and must not move; with `EEXIST` where something was
    /// placed behind it. [`Invalid`](Error::Invalid) for mappings that don't resize: empty ones, those with guard pages,
    /// shared anonymous memory (use a [`MemoryFile`](super::MemoryFile)); and for growing a slice of a file: it was promised that
    /// nobody changes what was mapped, and nothing of the rest. It is unchanged then. [`LimitReached`](Error::LimitReached)
    /// when shrinking splits a mapping at vm.max_map_count: it is shorter then, and the addresses stay in use.
    pub fn resize(&mut self, len: usize, how: Resize) -> Result<()> {
        let range = 0..len;
        self.region.resize(len, how == Resize::MayMove).map_err(|error| {
            use rustix::io::Errno;
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::OPNOTSUPP) => Error::invalid(
                    format!(
                        "{}: resizing a mapping that is empty, guarded, or shared and anonymous",
                        self.name()
                    ),
                    "map it anew; a MemoryFile is shared memory that grows",
                ),
                Some(Errno::PERM) => Error::invalid(
                    format!(
                        "{}: growing a mapping of a file that was made by promise, or is sealed",
                        self.name()
                    ),
                    "map it anew: the promise was for the bytes that are mapped",
                ),
                _ => self.failed("mremap", &range, error),
            }
        })
    }

    /// Never lets the address range change again, whoever asks: its protection, its place, that it is mapped (mseal(2),
    /// Linux 6.10). It is never unmapped.
    ///
    /// # Errors
    /// [`Refused`]: [`Unsupported`](Error::Unsupported) before Linux 6.10; [`Invalid`](Error::Invalid) for a mapping in a
    /// reservation.
    pub fn seal(self) -> Result<Sealed<K>, Refused<Self>>
    where
        K: Stable,
    {
        let Self { region, origin } = self;
        region.seal().map_err(|(region, source)| {
            let mapping = Self { region, origin };
            let error = match source.raw_os_error() {
                Some(errno) if errno == rustix::io::Errno::OPNOTSUPP.raw_os_error() => Error::invalid(
                    format!("{}: sealing a mapping in a reservation", mapping.name()),
                    "map it where the kernel chooses: a reservation must be able to end",
                ),
                Some(errno) if errno == rustix::io::Errno::NOSYS.raw_os_error() => {
                    Error::unsupported("mseal(2)", "Linux 6.10 or later has it", source)
                }
                _ => mapping.failed("mseal", &(0..mapping.len()), source),
            };
            Refused::new(mapping, error)
        })
    }

    /// Keeps all pages in memory: they are read now, and not reclaimed.
    ///
    /// # Errors
    /// [`LimitReached`](Error::LimitReached) for RLIMIT_MEMLOCK; [`Io`](Error::Io) with `ENOMEM` or `EAGAIN` if some page
    /// could not be had.
    pub fn lock(&self) -> Result<()> {
        self.region.lock(false).map_err(|error| self.failed("mlock", &(0..self.len()), error))
    }

    /// As [`lock`](Self::lock), each page from its first touch on.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    pub fn lock_on_fault(&self) -> Result<()> {
        self.region.lock(true).map_err(|error| self.failed("mlock", &(0..self.len()), error))
    }

    /// Lets pages be reclaimed again.
    ///
    /// # Errors
    /// What munlock(2) says.
    pub fn unlock(&self) -> Result<()> {
        self.region.unlock().map_err(|error| self.failed("munlock", &(0..self.len()), error))
    }

    /// Says from which NUMA node pages shall come that are not there yet.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a node that the machine does not have; [`Unsupported`](Error::Unsupported) in a
    /// kernel without NUMA.
    pub fn bind(&self, policy: NumaPolicy) -> Result<()> {
        self.region.bind(policy).map_err(|error| match error.raw_os_error() {
            Some(errno) if errno == rustix::io::Errno::INVAL.raw_os_error() => Error::invalid(
                format!("{}: the NUMA policy {policy:?}", self.name()),
                "name a node with memory: /sys/devices/system/node/has_memory",
            ),
            _ => self.failed("mbind", &(0..self.len()), error),
        })
    }

    /// Writes changed pages to the file and waits until they are durable: msync(2) with MS_SYNC.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with what the device said. The kernel then calls the pages clean all the same.
    pub fn flush(&self) -> Result<()> {
        self.flush_range(..)
    }

    /// As [`flush`](Self::flush), for the pages that hold a range.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush), and [`OutOfRange`](Error::OutOfRange).
    pub fn flush_range(&self, range: impl RangeBounds<usize>) -> Result<()> {
        self.sync(range, true)
    }

    /// Asks for changed pages to be written (MS_ASYNC). Since Linux 2.6.19 "MS_ASYNC is in fact a no-op, since the kernel properly
    /// tracks dirty pages and flushes them to storage as necessary" (msync(2)).
    ///
    /// # Errors
    /// What msync(2) says.
    pub fn flush_async(&self) -> Result<()> {
        self.sync(.., false)
    }

    /// As [`flush_async`](Self::flush_async), for the pages that hold a range.
    ///
    /// # Errors
    /// As for [`flush_async`](Self::flush_async), and [`OutOfRange`](Error::OutOfRange).
    pub fn flush_async_range(&self, range: impl RangeBounds<usize>) -> Result<()> {
        self.sync(range, false)
    }

    fn sync(&self, range: impl RangeBounds<usize>, wait: bool) -> Result<()> {
        let range: Range<usize> = self.resolve(range)?;
        self.region.flush(range.clone(), wait).map_err(|error| self.failed("msync", &range, error))
    }
}
