//! Maps for reading and writing.

use std::ops::{Deref, DerefMut, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mapwright_sys::signals::print_raw;
use mapwright_sys::window::{AddressRange, FixedMut, HeapBytes, Writer};

use super::commit::Durability;
use super::core::{Behind, Core};
use super::options::MapOptions;
use crate::engine::{commit, write_back};
use crate::error::{Error, Result};
use crate::stores::Store;

/// A file mapped for reading and writing. Derefs to its bytes.
///
/// Writes go to memory. Nothing reaches the file before [`flush`](Self::flush), except dirty pages that the budget forces
/// out (and with the kernel strategy, whenever the kernel likes). **When the process is killed, what was not flushed is
/// lost**: unlike the kernel's mmap, where stores survive the death of the program, though not of the machine.
///
/// Dropping a map flushes it; an error then can only be printed, so call [`close`](Self::close) to get it. With
/// [`Durability::Atomic`], changes are made durable by [`commit`](Self::commit), and **dropping a map drops what was not
/// committed**, as a crash does; [`Durability`] has the rest.
///
/// The file is locked against a second writer (an OFD lock: advisory, see fcntl(2)). Within one pager a file is mapped either
/// by readers or by one writer; readers in other pagers and processes are not kept out, and get
/// [`Changed`](crate::Error::Changed) when they read on.
///
/// It must exist: to make one, `File::create` it, open the empty file, and [`append`](Self::append) or
/// [`resize`](Self::resize).
///
/// A slice may be handed to read(2) and its like. Not to direct or asynchronous reads into it (O_DIRECT, io_uring): the kernel
/// writes to such memory later, past the page tables, and if the page is flushed or evicted meanwhile the write is lost. Read
/// into a buffer, and copy.
///
/// # Threads and fork
/// `Send` and `Sync`; Rust's borrows keep writers apart: split the slice, or use [`shared`](Self::shared). A pager's
/// mapping is not there in a child made by fork(2).
///
/// ```
/// # let path = std::env::temp_dir().join(format!("mapwright-mut-{}", std::process::id()));
/// # std::fs::write(&path, vec![0u8; 8192]).unwrap();
/// let mut map = mapwright::MapMut::open(&path)?;
/// map[..5].copy_from_slice(b"hello");
/// map.append(b"more")?;
/// map.flush()?; // durable now
/// assert_eq!(map.len(), 8196);
/// # drop(map);
/// # assert_eq!(std::fs::read(&path).unwrap()[8190..], *b"\0\0more");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
pub struct MapMut {
    /// Dropped first: no slice outlives what serves its faults.
    pub(super) bytes: FixedMut,
    pub(super) core: Core,
    /// Whether it is the whole file, whose length may change.
    whole: bool,
    pub(super) durability: Durability,
    /// A slice for writing was handed out since the file was last told.
    written: AtomicBool,
    /// An address was handed out by which it may be written at any time.
    pub(super) has_pointers: AtomicBool,
    /// Flushes of a buffer that have failed, and how many of them a later one has made good.
    failed: AtomicU64,
    made_good: AtomicU64,
    closed: bool,
}

impl MapMut {
    pub(super) fn new(core: Core, writer: Writer, whole: bool, durability: Durability) -> Self {
        let bytes = writer.fix(core.as_index(&(0..core.len)));
        let (written, has_pointers) = (AtomicBool::new(false), AtomicBool::new(false));
        let (failed, made_good) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { bytes, core, whole, durability, written, has_pointers, failed, made_good, closed: false }
    }

    /// Tells the file if slices may have been written through: page tables are dear to ask.
    pub(super) fn note_slices(&self) {
        let may_be_written =
            self.written.load(Ordering::Acquire) || self.has_pointers.load(Ordering::Acquire);
        if may_be_written && let Behind::Pager(file) = &self.core.behind {
            file.note_slices();
            // After that: whoever sees that there are none to tell of sees that the file knows.
            self.written.store(false, Ordering::Release);
        }
    }

    /// Becomes as long as the file is, if it is the whole file.
    pub(super) fn follow_len(&mut self, len: u64) {
        if self.whole {
            self.core.len = len;
            self.bytes.set_range(0..len as usize);
        }
    }

    /// Maps a file for reading and writing with the default options. It must exist.
    ///
    /// # Errors
    /// See [`MapOptions::open_mut`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        MapOptions::new().open_mut(path)
    }

    /// Copies `bytes` in at `offset`. Pages that are absent are read first: see [`overwrite`](Self::overwrite).
    ///
    /// # Errors
    /// As for [`get`](Self::get); a part may have been written then.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if !matches!(self.core.behind, Behind::Buffer { .. }) {
            return self.shared().write_at(offset, bytes);
        }
        let range = self.core.resolve(offset..offset.saturating_add(bytes.len() as u64))?;
        self.bytes[range.start as usize..range.end as usize].copy_from_slice(bytes);
        Ok(())
    }

    /// Replaces the bytes at `offset`. Pages that are replaced wholly are not read first, whatever the file holds there.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        match &self.core.behind {
            Behind::Buffer { .. } => self.write_at(offset, bytes),
            Behind::Pager(_) | Behind::Kernel(_) | Behind::Server(_) => {
                self.shared().overwrite(offset, bytes)
            }
        }
    }

    /// Makes all changes so far durable: bytes and length. Pages written while it runs may or may not be included. With
    /// [`Durability::Atomic`] it is [`commit`](Self::commit); with [`Durability::None`] the changes are written and not synced.
    ///
    /// # Errors
    /// [`Io`](Error::Io) or [`TimedOut`](Error::TimedOut) if writing or syncing fails, [`Changed`](Error::Changed) if somebody
    /// else has cut the file: no page is called clean then, and the failure is latched: later calls return
    /// [`Latched`](Error::Latched) until [`acknowledge_error`](Self::acknowledge_error). Some pages may have reached the file. With
    /// the buffer strategy nothing is latched, and the next flush writes all of it again. With the kernel strategy nothing is latched
    /// either, and the kernel may call pages clean that it could not write: write to them again before the next flush.
    pub fn flush(&self) -> Result<()> {
        self.flush_range(..)
    }

    /// As [`flush`](Self::flush), for the pages of a range; the length is made durable too. With [`Durability::Atomic`]
    /// everything is committed: a part of it can't be.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush), and [`OutOfRange`](Error::OutOfRange).
    pub fn flush_range(&self, range: impl RangeBounds<u64>) -> Result<()> {
        let range = self.core.resolve(range)?;
        let _span =
            tracing::debug_span!("flush", file = self.core.name(), start = range.start, end = range.end)
                .entered();
        match &self.core.behind {
            Behind::Pager(file) => {
                self.note_slices();
                write_back::flush(file, self.core.in_file(&range))
            }
            // The kernel has it already.
            Behind::Kernel(_) if self.durability == Durability::None => Ok(()),
            Behind::Kernel(kernel) => kernel.flush(self.core.in_file(&range)),
            Behind::Server(served) => served.flush(self.core.in_file(&range)),
            Behind::Buffer { store: Some(store), .. } => self.flush_buffer(&**store).inspect_err(|_| {
                self.failed.fetch_add(1, Ordering::AcqRel);
            }),
            Behind::Buffer { store: None, .. } => Ok(()),
        }
    }

    /// Writes a buffer back, and syncs. After a failure it is written again, whatever the store shows: what a failed sync has left the
    /// kernel may call clean, and show, though it is not on the disk. So does a flush beside which another has failed.
    fn flush_buffer(&self, store: &dyn Store) -> Result<()> {
        loop {
            let failed = self.failed.load(Ordering::Acquire);
            let anew = failed != self.made_good.load(Ordering::Acquire);
            if anew || differs(store, &self.bytes, self.core.offset, self.whole) {
                write_buffer(store, &self.bytes, self.core.offset, self.whole)?;
            }
            if self.durability != Durability::None {
                store.sync().map_err(|e| Error::io("sync", store.name(), 0, self.core.len, e))?;
            }
            self.made_good.store(failed, Ordering::Release);
            if self.failed.load(Ordering::Acquire) == failed {
                return Ok(());
            }
        }
    }

    /// Takes the error of an earlier write-back that failed, if there is one that was not taken yet. The pages concerned
    /// are still dirty; the next [`flush`](Self::flush) writes them again.
    pub fn acknowledge_error(&self) -> Option<Error> {
        match &self.core.behind {
            Behind::Pager(file) => write_back::acknowledge(file),
            Behind::Server(served) => served.acknowledge(),
            Behind::Kernel(_) | Behind::Buffer { .. } => None,
        }
    }

    /// Changes the length, in bytes. The address stays (but for the buffer strategy). New bytes are zero. The file itself
    /// changes at the next flush (with the kernel strategy, at once).
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) past what [`MapOptions::reserve`] reserved, or if the map is a part of the file; through a
    /// pager server also if something holds what would be cut off ([`Held`](crate::Held)). With the kernel strategy also [`Io`](Error::Io), and [`Changed`](Error::Changed) if somebody else has cut the file.
    pub fn resize(&mut self, len: u64) -> Result<()> {
        if !self.whole {
            let what = format!("{}: resizing a map of a part of the file", self.core.name());
            return Err(Error::invalid(what, "map the whole file to change its length"));
        }
        let _span = tracing::debug_span!("resize", file = self.core.name(), len).entered();
        match &self.core.behind {
            Behind::Pager(file) => file.resize(len)?,
            Behind::Kernel(kernel) => kernel.resize(len)?,
            Behind::Server(served) => served.resize(len)?,
            Behind::Buffer { .. } => {
                let no_memory = |_| {
                    let kind = std::io::ErrorKind::OutOfMemory;
                    Error::io("allocate", self.core.name(), 0, len, kind.into())
                };
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(len as usize).map_err(no_memory)?;
                bytes.extend_from_slice(&self.bytes[..self.bytes.len().min(len as usize)]);
                bytes.resize(len as usize, 0);
                let range = Arc::new(HeapBytes::new(bytes, true)) as Arc<dyn AddressRange>;
                let writer = Writer::claim(range).expect("made for writing just now");
                self.bytes = writer.fix(0..len as usize);
            }
        }
        self.follow_len(len);
        Ok(())
    }

    /// Adds bytes at the end, without reading anything.
    ///
    /// # Errors
    /// As for [`resize`](Self::resize) and [`overwrite`](Self::overwrite); the length is as before then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.core.len;
        self.resize(before.saturating_add(bytes.len() as u64))?;
        self.overwrite(before, bytes).or_else(|error| self.resize(before).and(Err(error)))
    }

    /// Access for many threads at once, without slices: bytes are copied in and out, and what two threads write to the same
    /// place at the same time ends up as some mixture of the two. Not for writing with [`Strategy::Buffer`], which makes the
    /// map a buffer of its own: see [`Shared::write_at`].
    ///
    /// [`Strategy::Buffer`]: crate::Strategy::Buffer
    pub fn shared(&mut self) -> Shared<'_> {
        self.as_shared()
    }

    /// The same, for those who see to it that there are no slices.
    pub(super) fn as_shared(&self) -> Shared<'_> {
        Shared { map: self }
    }

    /// Runs `work` on the bytes; a page that can't be read is an error: see [`Map::checked`](crate::Map::checked).
    ///
    /// # Errors
    /// As for [`Map::checked`](crate::Map::checked).
    pub fn checked<R>(&self, work: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let scope = self.core.enter_checked()?;
        let result = work(self.bytes.writer().slice(true, self.core.as_index(&(0..self.core.len))));
        scope.end().map(|()| result)
    }

    /// As [`checked`](Self::checked), for writing. What was written to a page that could not be read is dropped with it.
    ///
    /// # Errors
    /// As for [`Map::checked`](crate::Map::checked).
    pub fn checked_mut<R>(&mut self, work: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let scope = self.core.enter_checked()?;
        *self.written.get_mut() = true;
        let range = self.core.as_index(&(0..self.core.len));
        let result = work(self.bytes.writer_mut().slice_mut(true, range));
        scope.end().map(|()| result)
    }

    /// Its owner has flushed it, or has reported why not: nothing is done about that when it is dropped.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn set_closed(&mut self) {
        self.closed = true;
    }

    /// Flushes and closes the map. With [`Durability::Atomic`] that commits what was changed, brings the file to it, and removes
    /// the journal.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush). The map is closed all the same: call `flush` or `commit` first if you want to try again. Where
    /// the file can't be brought to the last commit, the journal has it, for the next open.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        let flushed = self.flush();
        match &self.core.behind {
            Behind::Pager(file) => flushed.and(commit::close(file)),
            Behind::Kernel(_) | Behind::Server(_) | Behind::Buffer { .. } => flushed,
        }
    }
}

/// Writes a buffer back whole.
fn write_buffer(store: &dyn Store, bytes: &[u8], offset: u64, whole: bool) -> Result<()> {
    let failed = |operation, at: u64, e| Error::io(operation, store.name(), at, bytes.len() as u64, e);
    if whole {
        store.set_len(bytes.len() as u64).map_err(|e| failed("set length", 0, e))?;
    }
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match store.write_at(at, &bytes[done..]) {
            Ok(0) => return Err(failed("write", at, std::io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("write", at, error)),
        }
    }
    Ok(())
}

/// Whether a store holds anything else than a buffer does: what was not changed is not written.
fn differs(store: &dyn Store, bytes: &[u8], offset: u64, whole: bool) -> bool {
    if whole && !store.version().is_ok_and(|version| version.len == bytes.len() as u64) {
        return true;
    }
    let mut chunk = vec![0; bytes.len().min(64 << 10)];
    let mut done = 0;
    while done < bytes.len() {
        match store.read_at(offset + done as u64, &mut chunk) {
            Ok(n) if n > 0 => {
                let n = n.min(bytes.len() - done);
                if chunk[..n] != bytes[done..done + n] {
                    return true;
                }
                done += n;
            }
            _ => return true,
        }
    }
    false
}

impl Drop for MapMut {
    fn drop(&mut self) {
        let (ended, what) = match (&self.core.behind, self.durability) {
            // Closed already, this does nothing.
            (Behind::Pager(file), Durability::Atomic) => {
                (commit::close(file), "the last commit is in the journal, for the next open for writing")
            }
            (_, Durability::None | Durability::Atomic) => return,
            _ if self.closed => return,
            (_, Durability::Flush) => (self.flush(), "changes were lost when a map was dropped"),
        };
        if let Err(error) = ended {
            print_raw(&format!("mapwright: {what} (call close to get this error): {error}\n"));
        }
    }
}

impl Deref for MapMut {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for MapMut {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        *self.written.get_mut() = true;
        &mut self.bytes
    }
}

impl AsRef<[u8]> for MapMut {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for MapMut {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl std::fmt::Debug for MapMut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapMut")
            .field("name", &self.core.name())
            .field("offset", &self.core.offset)
            .field("len", &self.core.len)
            .field("strategy", &self.core.choice.strategy())
            .finish_non_exhaustive()
    }
}

/// Access to a [`MapMut`] from many threads at once. Made by [`MapMut::shared`].
///
/// # Threads
/// `Send`, `Sync` and `Copy`.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'m> {
    map: &'m MapMut,
}

impl Shared<'_> {
    pub(super) fn map(&self) -> &MapMut {
        self.map
    }

    /// Copies bytes out: see [`MapMut::read_at`].
    ///
    /// # Errors
    /// As for [`MapMut::read_at`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.map.read_at(offset, into)
    }

    /// Copies bytes in: see [`MapMut::write_at`].
    ///
    /// # Errors
    /// As for [`MapMut::write_at`]; [`Invalid`](Error::Invalid) with the buffer strategy, which is in use if it was asked for,
    /// or for a store where there is no pager.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = self.start(offset, bytes)?;
        match &self.map.core.behind {
            Behind::Pager(file) => file.write_at(start, bytes),
            Behind::Kernel(kernel) => kernel.write_at(start, bytes),
            Behind::Server(served) => served.write_at(start, bytes),
            Behind::Buffer { .. } => Err(self.is_a_buffer()),
        }
    }

    /// Replaces bytes: see [`MapMut::overwrite`].
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = self.start(offset, bytes)?;
        match &self.map.core.behind {
            Behind::Pager(file) => file.overwrite(start, bytes),
            Behind::Kernel(kernel) => kernel.write_at(start, bytes),
            Behind::Server(served) => served.write_at(start, bytes),
            Behind::Buffer { .. } => Err(self.is_a_buffer()),
        }
    }

    /// Where in the file bytes at `offset` go.
    fn start(&self, offset: u64, bytes: &[u8]) -> Result<u64> {
        let range = self.map.core.resolve(offset..offset.saturating_add(bytes.len() as u64))?;
        Ok(self.map.core.in_file(&range).start)
    }

    fn is_a_buffer(&self) -> Error {
        let Core { choice, .. } = &self.map.core;
        Error::invalid(
            format!(
                "{}: a write through MapMut::shared with strategy {} ({})",
                self.map.core.name(),
                choice.strategy(),
                choice.reason()
            ),
            "open the map with Strategy::Pager or Strategy::Kernel, or write through the map itself",
        )
    }

    /// Makes all changes so far durable: see [`MapMut::flush`].
    ///
    /// # Errors
    /// As for [`MapMut::flush`].
    pub fn flush(&self) -> Result<()> {
        self.map.flush()
    }

    /// Brings a range into memory: see [`MapMut::prefetch`].
    ///
    /// # Errors
    /// As for [`MapMut::prefetch`].
    pub fn prefetch(&self, range: impl RangeBounds<u64>) -> Result<()> {
        self.map.prefetch(range)
    }

    /// Drops what is clean and unpinned of a range from memory; bytes freed.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange).
    pub fn evict(&self, range: impl RangeBounds<u64>) -> Result<u64> {
        self.map.evict(range)
    }
}
