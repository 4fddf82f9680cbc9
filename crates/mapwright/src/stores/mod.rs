//! Stores: where bytes come from and go to.
//!
//! A store is a flat array of bytes with a length. The engine calls it from many threads at once, never under a lock, and
//! never through a mapping that the same pager serves. [`conformance`] checks a store against the contract below.

use std::io;
use std::ops::Range;

use crate::error::{Error, Result};

pub mod conformance;
mod file;
mod memory;

pub use file::{FileOptions, FileStore};
pub(crate) use file::{identity_of, is_made_up_size};
pub use memory::MemoryStore;

/// What a store's contents were when it was looked at. Two equal versions mean: not one byte differs, as far as the store
/// can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Length in bytes.
    pub len: u64,
    /// Which object this is: device and inode for files, a hash of bucket and key for objects. Never changes while open.
    pub identity: u128,
    /// Changes whenever the contents may have changed: modification time for files, a hash of the ETag for objects.
    pub modification: u128,
}

/// Keeps other writers out: see [`Store::lock`].
///
/// # Errors
/// [`Error::Locked`]; [`Error::Io`].
pub(crate) fn lock_for_writing(store: &dyn Store) -> Result<()> {
    store.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            Error::Locked { path: store.name(), holder: "a writer in this or another process" }
        }
        _ => Error::io("lock", store.name(), 0, 0, error),
    })
}

/// One read of a batch: see [`Store::read_many`].
#[derive(Debug)]
pub struct Read<'a> {
    /// Where in the store to read, in bytes; a multiple of 4096.
    pub offset: u64,
    /// Where to put the bytes. Its address and length are multiples of 4096.
    pub buf: &'a mut [u8],
}

/// Called once for each read of a batch as it ends: index of the read, its buffer, and the number of bytes read.
pub type ReadDone<'a> = dyn FnMut(usize, &mut [u8], io::Result<usize>) + 'a;

/// One write of a batch: see [`Store::write_many`].
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Where in the store to write, in bytes; a multiple of 4096.
    pub offset: u64,
    /// What to write. Its address is a multiple of 4096; so is its length, unless the store is to end with it.
    pub buf: &'a [u8],
}

/// Called once for each write of a batch as it ends: index of the write, and the number of bytes written.
pub type WriteDone<'a> = dyn FnMut(usize, io::Result<usize>) + 'a;

/// A flat array of bytes that a pager can map.
///
/// # Contract
/// 1. *Positions.* `read_at(o, buf)` returns the bytes at `o..o + n`, for any `o`. `n < buf.len()` says nothing (a short
///    read: the caller asks again for the rest) unless `n == 0` for a buffer that is not empty, which means that `o` is at
///    or past the end. What the buffer holds after its first `n` bytes is not defined. `read_many` does the same for each
///    of its reads, and calls `done` once for each, with that read's buffer, before it returns.
/// 2. *What was written is read.* After `write_at(o, b)` returned `Ok(n)`, every read that starts later sees `b[..n]`, in
///    this process, synced or not. `write_many` does the same for each of its writes, and calls `done` once for each before it
///    returns.
/// 3. *Durability.* After `sync` returned `Ok`, all writes and length changes that returned before it began survive a crash
///    of the machine. After it or `write_out` returned `Err`, nothing is promised of writes since the last `Ok` of `sync`: the
///    caller writes again.
/// 4. *Length.* `set_len(n)` cuts or extends; new bytes read as zeros. A write past the end extends; the gap reads as zeros.
/// 5. *Versions.* `version` changes whenever somebody may have changed the contents, this store's own writes included: after
///    writing, the engine looks again. It does not change by looking or reading, its `len` is the length now, and its
///    `identity` never changes.
/// 6. *Threads.* All methods may be called at the same time from many threads, on overlapping ranges.
/// 7. *Errors.* `Interrupted` and `WouldBlock` and `TimedOut` are transient: the engine tries again until the map's
///    deadline. Every other kind is final for that call. A store never panics.
/// 8. *Time.* A store whose calls may take long or hang returns `false` from [`is_local`](Store::is_local); the engine then
///    calls it only from threads it can spare, and gives up waiting at the deadline.
/// 9. *Permission.* Where `is_writable` is `false`, `write_at` and `set_len` fail with `PermissionDenied` and change nothing.
/// 10. *Exclusion.* `lock` may be called again and changes nothing then. Where a store can exclude other writers, their
///     `lock` fails with `WouldBlock` until this store is dropped.
pub trait Store: Send + Sync + 'static {
    /// What to call this store in messages: a path, a URL.
    fn name(&self) -> String;

    /// Length and version now.
    ///
    /// # Errors
    /// Whatever the store meets when it asks.
    fn version(&self) -> io::Result<Version>;

    /// Reads at a position: see the contract.
    ///
    /// # Errors
    /// Whatever the store meets; nothing may be assumed of `buf` then.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads a batch, with as much in flight at once as the store can; calls `done` once for each read, in any order, as
    /// it ends, from the calling thread, and returns when all have ended. A panic of `done` is passed on, but not before
    /// nobody else writes to any of the buffers. The default reads one after the other.
    fn read_many(&self, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
        for (index, read) in reads.iter_mut().enumerate() {
            let result = self.read_at(read.offset, read.buf);
            done(index, read.buf, result);
        }
    }

    /// Tells that a range will be read soon, some megabytes at most, so that the store may begin to fetch it. A hint: it returns
    /// promptly, changes nothing that anybody reads, and has no errors, because the read will tell. The default does nothing.
    fn prefetch(&self, _range: Range<u64>) {}

    /// Whether `write_at`, `set_len` and `sync` can work. The default is `false`.
    fn is_writable(&self) -> bool {
        false
    }

    /// Writes at a position: see the contract. May write less than asked, never `Ok(0)` for a buffer that is not empty.
    ///
    /// # Errors
    /// Whatever the store meets; any part of the range may then have been written. The default: `PermissionDenied`.
    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Writes a batch, no two of which overlap, with as much in flight at once as the store can; calls `done` once for each
    /// write, in any order, as it ends, from the calling thread, and returns when all have ended. A panic of `done` is passed on,
    /// but not before nobody reads any of the buffers. The default writes one after the other.
    fn write_many(&self, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
        for (index, write) in writes.iter().enumerate() {
            done(index, self.write_at(write.offset, write.buf));
        }
    }

    /// Waits until what was written to a range has left the store's caches for its disk: then a later [`sync`](Store::sync) has
    /// less to do, and whoever syncs something else on that disk does not wait behind all of it. Nothing is durable by it, and the
    /// range may be any. The default, for stores that have no caches or can't wait for a part of them: does nothing.
    ///
    /// # Errors
    /// As `sync`, and with the same meaning.
    fn write_out(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    /// Cuts or extends the store to `len` bytes.
    ///
    /// # Errors
    /// Whatever the store meets. The default: `PermissionDenied`.
    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// Whatever the store meets. What a sync that failed was to make durable, an interrupted one too, may be lost: it is to be
    /// written again, not only synced again. The default, for stores that can't be written: `Ok`.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether calls end promptly without outside help (local disk, memory), so that any thread may make them. The default
    /// is `false`: the engine uses threads it can spare.
    fn is_local(&self) -> bool {
        false
    }

    /// Excludes other writers for as long as this store is open, or says that somebody else has done so. The default does
    /// nothing.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else holds the lock.
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
}
