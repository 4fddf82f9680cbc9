//! A writable map that gives no slices, so that many may use it at once for as long as it lives.

use std::ops::{Range, RangeBounds};
use std::sync::atomic::Ordering;

use super::map_mut::{MapMut, Shared};
use super::pinned::Held;
use super::strategy::Choice;
use crate::engine::read_ahead::Advice;
use crate::error::{Error, Result};
use crate::mmap::Residency;

/// A file mapped for reading and writing, without slices: its bytes are copied, or reached by address. Made by
/// [`MapMut::into_shared`], which says when it is wanted, and by [`MapOptions::open_shared`](crate::MapOptions::open_shared), for files that
/// many processes write; otherwise it is a [`MapMut`].
///
/// # Threads and fork
/// `Send` and `Sync`: unlike [`MapMut::shared`], this need not be borrowed exclusively first. For fork(2) see [`MapMut`].
///
/// ```
/// # let path = std::env::temp_dir().join(format!("mapwright-into-shared-{}", std::process::id()));
/// # std::fs::write(&path, vec![0u8; 8192]).unwrap();
/// let map = mapwright::MapMut::open(&path)?.into_shared();
/// std::thread::scope(|scope| {
///     scope.spawn(|| map.shared().write_at(0, b"one"));
///     scope.spawn(|| map.shared().write_at(4096, b"two"));
/// });
/// map.close()?;
/// # assert_eq!(std::fs::read(&path).unwrap()[4096..4099], *b"two");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct SharedMapMut {
    map: MapMut,
}

impl MapMut {
    /// Gives slices up for good, so that many threads may write by [`Shared`] without a borrow that ends: for bindings to other
    /// languages, and for maps behind an [`Arc`](std::sync::Arc).
    pub fn into_shared(self) -> SharedMapMut {
        SharedMapMut { map: self }
    }
}

impl SharedMapMut {
    /// Reading and writing by copies.
    pub fn shared(&self) -> Shared<'_> {
        self.map.as_shared() // there are no slices, and will be none
    }

    /// Address of the first byte, valid until the map is dropped, also when it is resized (but for the buffer strategy). Others
    /// write there at any time: what is made of it is the business of whoever uses it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.has_pointers.store(true, Ordering::Release);
        self.map.bytes.start()
    }

    /// The same address, to be read only. Once [`as_ptr`](Self::as_ptr) was called, every commit asks the page tables what was written; after
    /// this one it need not, and misses what is written by it.
    pub fn as_const_ptr(&self) -> *const u8 {
        self.map.bytes.start()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.core.len as usize
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which strategy is in use, and why.
    pub fn strategy(&self) -> &Choice {
        self.map.strategy()
    }

    /// Copies bytes out: see [`MapMut::read_at`].
    ///
    /// # Errors
    /// As for [`MapMut::read_at`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.map.read_at(offset, into)
    }

    /// Makes a range resident for as long as the result lives: see [`MapMut::hold`].
    ///
    /// # Errors
    /// As for [`MapMut::hold`].
    pub fn hold(&self, range: impl RangeBounds<u64>) -> Result<Held> {
        self.map.hold(range)
    }

    /// Makes many ranges resident in one submission for as long as the result lives: see [`MapMut::hold_many`].
    ///
    /// # Errors
    /// As for [`MapMut::hold_many`].
    pub fn hold_many(&self, ranges: &[Range<u64>]) -> Result<Held> {
        self.map.hold_many(ranges)
    }

    /// Brings a range into memory: see [`MapMut::prefetch`].
    ///
    /// # Errors
    /// As for [`MapMut::prefetch`].
    pub fn prefetch(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.map.prefetch(range)
    }

    /// Starts to bring a range into memory: see [`MapMut::will_need`].
    ///
    /// # Errors
    /// As for [`MapMut::will_need`].
    pub fn will_need(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.map.will_need(range)
    }

    /// Drops what is clean and unpinned of a range from memory; bytes freed.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange).
    pub fn evict(&self, range: impl RangeBounds<u64>) -> Result<u64> {
        self.map.evict(range)
    }

    /// Says how the file will be read: see [`MapMut::advise`].
    ///
    /// # Errors
    /// As for [`MapMut::advise`].
    pub fn advise(&self, advice: Advice) -> Result<()> {
        self.map.advise(advice)
    }

    /// Which pages of a range are in memory: see [`MapMut::residency`].
    ///
    /// # Errors
    /// As for [`MapMut::residency`].
    pub fn residency(&self, range: impl RangeBounds<u64>) -> Result<Residency> {
        self.map.residency(range)
    }

    /// Bytes of the file that the pager holds in memory: see [`MapMut::resident_bytes`].
    pub fn resident_bytes(&self) -> u64 {
        self.map.resident_bytes()
    }

    /// What the pager did for the file: see [`MapMut::stats`].
    pub fn stats(&self) -> Option<crate::FileStats> {
        self.map.stats()
    }

    /// Runs `work` on address and length of a view in which a page that can't be read is zeros, and returns the error then: see
    /// [`MapMut::checked`]. The view ends when `work` returns.
    ///
    /// # Errors
    /// As for [`MapMut::checked`].
    pub fn checked<R>(&self, work: impl FnOnce(*const u8, usize) -> R) -> Result<R> {
        let scope = self.map.core.enter_checked()?;
        let bytes = self.map.bytes.writer().address(true, self.map.core.as_index(&(0..self.map.core.len)));
        let result = work(bytes, self.len());
        scope.end().map(|()| result)
    }

    /// Makes changes durable: see [`MapMut::flush_range`].
    ///
    /// # Errors
    /// As for [`MapMut::flush_range`].
    pub fn flush_range(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.map.flush_range(range)
    }

    /// Takes the error of an earlier write-back: see [`MapMut::acknowledge_error`].
    pub fn acknowledge_error(&self) -> Option<Error> {
        self.map.acknowledge_error()
    }

    /// Drops all changes since the last commit: see [`MapMut::rollback`]. To commit, and to look at the last commit, there are
    /// [`Shared::commit`] and [`Shared::snapshot`]. Nobody may use addresses of the map meanwhile.
    ///
    /// # Errors
    /// As for [`MapMut::rollback`].
    pub fn rollback(&mut self) -> Result<()> {
        self.map.rollback()
    }

    /// Changes the length: see [`MapMut::resize`]. Nobody may use addresses of what is cut off.
    ///
    /// # Errors
    /// As for [`MapMut::resize`].
    pub fn resize(&mut self, len: u64) -> Result<()> {
        self.map.resize(len)
    }

    /// Flushes and closes the map.
    ///
    /// # Errors
    /// As for [`MapMut::close`].
    pub fn close(self) -> Result<()> {
        self.map.close()
    }
}
