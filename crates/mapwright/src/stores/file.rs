//! Local files and block devices as stores.
//!
//! [`FileStore`] holds one open file through up to two descriptors: a *buffered* one, which can do everything, and for
//! direct stores a second one opened with `O_DIRECT`, for aligned reads and batches of aligned writes. This file is the
//! [`Store`] implementation; `open` decides what may be opened and how, `batch` keeps many reads or writes in flight.
//!
//! # Invariants
//! 1. Both descriptors are of the same inode. Neither changes while the store lives.
//! 2. A read sees what was written, whichever descriptors they take: the kernel writes dirty pages of the range out before it
//!    reads around the page cache (`kiocb_write_and_wait`), and drops what it has of a range that it writes around it, before
//!    and after (`kiocb_invalidate_pages`, `kiocb_invalidate_post_direct_write`).
//! 3. A result of a direct read or write that the buffered descriptor could do better (`EINVAL`) is never shown to the caller.
//! 4. Only bytes that a file has blocks for are written directly: where holes are filled, the kernel's delayed allocation
//!    makes fewer fragments.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mapwright_sys::page_cache::cachestat;
use rustix::fs::{Advice, SeekFrom, fadvise};
use rustix::io::Errno;

use super::{Read, ReadDone, Store, Version, Write, WriteDone};
use crate::Result;

mod batch;
mod open;
pub(crate) use open::{identity as identity_of, is_made_up_size};

/// What direct reads need of offset, length and address: what the contract of [`Read`] promises.
const DIRECT_ALIGNMENT: u64 = 4096;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Open for writing too. Without it the store cannot change the file.
    pub write: bool,
    /// Keep the file's bytes out of the kernel's page cache where the file system allows it, because the pager keeps its
    /// own copy: `O_DIRECT`, or else dropping what was read. Worth it for files larger than the pager's budget.
    pub direct: bool,
}

/// A local file or block device.
///
/// All descriptors are close-on-exec. After fork(2) the child may go on using the store; a [lock](Store::lock) stays with
/// the process that took it.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    buffered: OwnedFd,
    /// The same inode, opened with `O_DIRECT`.
    direct: Option<OwnedFd>,
    /// The file system took the `O_DIRECT` open and then refused an aligned read: use `buffered` from now on.
    direct_refused: AtomicBool,
    options: FileOptions,
    /// A direct store takes what the kernel has in its page cache from there.
    takes_cached: bool,
    kind: open::Kind,
    is_local: bool,
    /// Smallest range that covers all buffered writes since the last successful sync; empty when there are none. Its lock is a leaf
    /// and held for a few instructions.
    unsynced: Mutex<Range<u64>>,
    /// The process that opened the store: the only one that may lock it, because a forked child shares the open file
    /// description, and so the kernel's idea of who holds the lock.
    opened_by: u32,
    is_locked: AtomicBool,
}

/// Process and inode of what stores of this process have locked. The kernel's lock belongs to the open file description,
/// and two stores made [from files](FileStore::from_file) may share one. Held for one fcntl(2) that does not wait.
static LOCKED_HERE: Mutex<BTreeSet<(u32, u128)>> = Mutex::new(BTreeSet::new());

impl FileStore {
    /// Opens the regular file or block device at `path`. Changes nothing, creates nothing, and does not hang on pipes.
    ///
    /// # Errors
    /// - [`Error::NotMappable`](crate::Error::NotMappable) for anything else, and for files of /proc and /sys that do not
    ///   know their size.
    /// - [`Error::ReadOnly`](crate::Error::ReadOnly) when `options.write` is set and the file, its file system or its
    ///   permissions forbid writing.
    /// - [`Error::Io`](crate::Error::Io) with operation `"open"` for all else.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self> {
        Self::from_opened(open::by_path(path.as_ref(), options)?, path.as_ref(), options)
    }

    /// Makes a store of a file that is already open; `path` is only for messages.
    ///
    /// The store opens the inode anew where it can, so that the caller's descriptor keeps its position, flags and advice
    /// to itself; where it can't (no /proc, or permissions that have changed since) it uses `file` itself.
    ///
    /// # Errors
    /// As [`open`](Self::open); also [`Error::ReadOnly`](crate::Error::ReadOnly) when `options.write` is set and `file` is
    /// not open for reading and writing, and [`Error::Invalid`](crate::Error::Invalid) when it is not open for reading, or
    /// opened with `O_APPEND` and can't be opened anew.
    pub fn from_file(file: File, path: impl AsRef<Path>, options: &FileOptions) -> Result<Self> {
        Self::from_opened(open::by_file(file, path.as_ref(), options)?, path.as_ref(), options)
    }

    fn from_opened(opened: open::Opened, path: &Path, options: &FileOptions) -> Result<Self> {
        // The engine reads ahead by itself, in runs as long as it wants them: kernel read-ahead would read things twice.
        // Advice can't fail in a way that matters.
        let _ = fadvise(&opened.buffered, 0, None, Advice::Random);
        Ok(Self {
            path: path.to_owned(),
            buffered: opened.buffered,
            direct: opened.direct,
            direct_refused: AtomicBool::new(false),
            options: *options,
            takes_cached: false,
            kind: opened.kind,
            is_local: opened.is_local,
            unsynced: Mutex::new(0..0),
            opened_by: std::process::id(),
            is_locked: AtomicBool::new(false),
        })
    }

    /// The path the store was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether reads bypass the kernel's page cache now. `false` although [`FileOptions::direct`] was set means that the
    /// file system can't; what was read is then dropped from the cache instead.
    pub fn is_direct(&self) -> bool {
        self.direct().is_some()
    }

    /// Lets a direct store take what the kernel has in its page cache from there, and leave it there: a copy costs less than a read of the disk,
    /// and no more memory than there is in use already.
    pub(crate) fn take_cached(&mut self) {
        self.takes_cached = true;
    }

    /// Whether all of a range is in the kernel's page cache and to be taken from there.
    fn is_cached(&self, offset: u64, len: usize) -> bool {
        let bytes = offset..offset.saturating_add(len as u64);
        let pages = bytes.end.div_ceil(DIRECT_ALIGNMENT) - bytes.start / DIRECT_ALIGNMENT;
        self.takes_cached && cachestat(self.buffered.as_fd(), bytes).is_ok_and(|stat| stat.cached >= pages)
    }

    fn direct(&self) -> Option<BorrowedFd<'_>> {
        if self.direct_refused.load(Ordering::Relaxed) {
            None
        } else {
            self.direct.as_ref().map(OwnedFd::as_fd)
        }
    }

    /// One read of a range: direct where that is possible, buffered otherwise.
    fn read_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(len) = clamp_to_file_range(offset, buf.len()) else { return Ok(0) };
        let buf = &mut buf[..len];
        if self.is_cached(offset, len) {
            return Ok(pread(self.buffered.as_fd(), offset, buf)?);
        }
        if let Some(direct) = self.direct().filter(|_| is_aligned(offset, buf)) {
            match pread(direct, offset, buf) {
                Err(Errno::INVAL) => self.direct_refused.store(true, Ordering::Relaxed),
                other => return Ok(other?),
            }
        }
        let read = pread(self.buffered.as_fd(), offset, buf)?;
        self.drop_from_kernel_cache(offset, read);
        Ok(read)
    }

    /// The descriptor for direct writes to a range, if there is one and the file has blocks for all of the range.
    fn direct_for_writes(&self, range: Range<u64>) -> Option<BorrowedFd<'_>> {
        let direct = self.direct().filter(|_| self.options.write)?;
        // Not by `buffered`, whose position may be that of a descriptor of the caller's.
        let hole = rustix::fs::seek(direct, SeekFrom::Hole(range.start)).ok()?;
        (hole >= range.end).then_some(direct)
    }

    /// After a buffered read in a store that wanted a direct one: the pager has its own copy now.
    fn drop_from_kernel_cache(&self, offset: u64, len: usize) {
        // The kernel drops whole folios only. Those that our own reads brought in are no larger than the read; what
        // somebody else has put there may stay.
        if self.options.direct
            && let Some(len) = NonZeroU64::new(len as u64)
        {
            let _ = fadvise(&self.buffered, offset, Some(len), Advice::DontNeed);
        }
    }

    fn unsynced(&self) -> MutexGuard<'_, Range<u64>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_unsynced(&self, range: Range<u64>) {
        let mut unsynced = self.unsynced();
        *unsynced = if unsynced.is_empty() {
            range
        } else {
            unsynced.start.min(range.start)..unsynced.end.max(range.end)
        };
    }

    fn identity(&self) -> io::Result<u128> {
        Ok(open::identity(&rustix::fs::fstat(&self.buffered)?))
    }
}

impl AsFd for FileStore {
    /// The buffered descriptor. Changing the file through it is changing it behind the pager's back.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }
}

impl Store for FileStore {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Length, device and inode, and modification time in nanoseconds. Why not the change time, and what escapes the
    /// modification time: docs/decisions/0003-what-counts-as-a-change.md.
    fn version(&self) -> io::Result<Version> {
        let stat = rustix::fs::fstat(&self.buffered)?;
        let len = match self.kind {
            open::Kind::Regular => stat.st_size as u64,
            open::Kind::BlockDevice => mapwright_sys::file::block_device_len(self.buffered.as_fd())?,
        };
        let modified = i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128;
        Ok(Version { len, identity: open::identity(&stat), modification: modified as u128 })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read_once(offset, buf)
    }

    fn read_many(&self, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
        batch::read_many(self, reads, done);
    }

    /// Asks the kernel to read the range, 32 MiB of it at most, into its page cache (posix_fadvise(2), `WILLNEED`); not where reads
    /// go around that.
    fn prefetch(&self, range: Range<u64>) {
        /// The kernel cuts a call to what it reads ahead on its own (mm/readahead.c, `force_page_cache_ra`): 128 KiB unless the
        /// administrator has said otherwise.
        const STEP: u64 = 128 << 10;
        const MOST: u64 = 32 << 20;
        if self.is_direct() {
            return;
        }
        let end = range.end.min(range.start.saturating_add(MOST));
        for start in (range.start..end).step_by(STEP as usize) {
            let _ = fadvise(&self.buffered, start, NonZeroU64::new(STEP.min(end - start)), Advice::WillNeed);
        }
    }

    fn is_writable(&self) -> bool {
        self.options.write
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        self.refuse_if_read_only()?;
        if buf.is_empty() {
            return Ok(0);
        }
        // Noted before the write: a sync that begins after this write returned must find it.
        self.note_unsynced(offset..offset.saturating_add(buf.len() as u64));
        loop {
            match rustix::io::pwrite(&self.buffered, buf, offset) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                other => return Ok(other?),
            }
        }
    }

    fn write_many(&self, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
        batch::write_many(self, writes, done);
    }

    /// By sync_file_range(2); where a sandbox or the file has no such call, nothing is done.
    fn write_out(&self, range: Range<u64>) -> io::Result<()> {
        let len = range.end.min(i64::MAX as u64).saturating_sub(range.start);
        if len == 0 {
            return Ok(()); // what the kernel takes for everything
        }
        let written = mapwright_sys::file::write_out(self.buffered.as_fd(), range.start, len);
        written.or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOSYS | Errno::PERM | Errno::SPIPE) => Ok(()),
            _ => Err(error),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.refuse_if_read_only()?;
        loop {
            match rustix::fs::ftruncate(&self.buffered, len) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        if !self.options.write {
            return Ok(());
        }
        let written = std::mem::replace(&mut *self.unsynced(), 0..0);
        // The length is metadata that fdatasync(2) does write. Not again after EINTR: an error is told once only, and may have
        // been told to the call that was interrupted (a FUSE server's answer comes too late), so that the next would succeed and
        // prove nothing. To be sure, what is dirty must be written again.
        if let Err(error) = rustix::fs::fdatasync(&self.buffered) {
            if !written.is_empty() {
                self.note_unsynced(written);
            }
            return Err(error.into());
        }
        // Only clean pages can be dropped, which is why it is done here. What was written meanwhile stays.
        self.drop_from_kernel_cache(written.start, written.end.saturating_sub(written.start) as usize);
        Ok(())
    }

    fn is_local(&self) -> bool {
        self.is_local
    }

    /// Takes an open-file-description lock on the whole file: it excludes other `FileStore`s, in this process too, and
    /// every program that uses fcntl(2) locks. Other programs are not kept from writing. Taking it twice does nothing.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else holds it, and in a forked child of the process that opened the store (open it anew
    /// there); `PermissionDenied` for a read-only store; on file systems without locks
    /// what the kernel says (`ENOLCK`, `EOPNOTSUPP`).
    fn lock(&self) -> io::Result<()> {
        self.refuse_if_read_only()?;
        let key = (self.opened_by, self.identity()?);
        let mut locked_here = LOCKED_HERE.lock().unwrap_or_else(PoisonError::into_inner);
        if self.opened_by != std::process::id() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.is_locked.load(Ordering::Relaxed) {
            return Ok(());
        }
        if locked_here.contains(&key) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        mapwright_sys::file::lock_exclusive(self.buffered.as_fd())?;
        locked_here.insert(key);
        self.is_locked.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl FileStore {
    fn refuse_if_read_only(&self) -> io::Result<()> {
        if self.options.write { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        // Closing would do, were it not for children that inherited the descriptor; and such a child's copy of this store
        // must not give away what is the parent's.
        if !*self.is_locked.get_mut() || self.opened_by != std::process::id() {
            return;
        }
        let Ok(identity) = self.identity() else { return };
        let mut locked_here = LOCKED_HERE.lock().unwrap_or_else(PoisonError::into_inner);
        locked_here.remove(&(self.opened_by, identity));
        let _ = mapwright_sys::file::unlock(self.buffered.as_fd());
    }
}

fn pread(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        match rustix::io::pread(fd, &mut *buf, offset) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// How much of `len` bytes at `offset` a file can have at all: the kernel refuses ranges that end past `i64::MAX` with
/// EINVAL, where the contract says that there is nothing to read.
fn clamp_to_file_range(offset: u64, len: usize) -> Option<usize> {
    let room = (i64::MAX as u64).checked_sub(offset)?;
    Some(len.min(usize::try_from(room).unwrap_or(usize::MAX)))
}

fn is_aligned(offset: u64, buf: &[u8]) -> bool {
    (offset | buf.as_ptr().addr() as u64 | buf.len() as u64).is_multiple_of(DIRECT_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mapwright_sys::buffer::Buffer;
    use mapwright_sys::testing::pages_in_kernel_cache;

    #[test]
    fn where_direct_reads_are_refused_the_kernel_keeps_nothing_either() {
        // Where the program is, because /tmp is often a file system in memory.
        let directory = std::env::current_exe().unwrap();
        let path = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
        std::fs::write(path.path(), vec![7; 64 * 4096]).unwrap();
        path.as_file().sync_all().unwrap();
        // What writing has left is in folios larger than the reads below, which can only be dropped whole.
        fadvise(path.as_file(), 0, None, Advice::DontNeed).unwrap();
        if pages_in_kernel_cache(path.as_fd(), 64 * 4096).unwrap() > 0 {
            return eprintln!("skipped: this file system is a cache itself");
        }
        let store = FileStore::open(path.path(), &FileOptions { write: false, direct: true }).unwrap();
        store.direct_refused.store(true, Ordering::Relaxed);
        assert!(!store.is_direct());
        let mut memory = Buffer::zeroed(64 * 4096);
        let mut reads: Vec<Read<'_>> = memory
            .chunks_exact_mut(4096)
            .enumerate()
            .map(|(page, buf)| Read { offset: page as u64 * 4096, buf })
            .collect();
        let mut ended = 0;
        store.read_many(&mut reads, &mut |_, _, result| ended += result.unwrap());
        assert_eq!(ended, 64 * 4096);
        assert_eq!(store.read_at(4096, &mut memory[..8192]).unwrap(), 8192);
        assert_eq!(pages_in_kernel_cache(store.as_fd(), 64 * 4096).unwrap(), 0);
    }

    #[test]
    fn what_is_cached_is_taken_and_nothing_else_is_cached() {
        const LEN: usize = 64 * 4096;
        // Where the program is, because /tmp is often a file system in memory.
        let directory = std::env::current_exe().unwrap();
        let path = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
        std::fs::write(path.path(), (0..LEN).map(|at| (at / 4096) as u8).collect::<Vec<_>>()).unwrap();
        path.as_file().sync_all().unwrap();
        let drop_all = || fadvise(path.as_file(), 0, None, Advice::DontNeed).unwrap();
        let cached = || pages_in_kernel_cache(path.as_fd(), LEN).unwrap();
        drop_all();
        if cached() > 0 || cachestat(path.as_fd(), 0..4096).is_err() {
            return eprintln!("skipped: this file system is a cache itself, or the kernel does not tell");
        }
        let mut store = FileStore::open(path.path(), &FileOptions { write: false, direct: true }).unwrap();
        store.take_cached();
        let mut memory = Buffer::zeroed(LEN);
        let read_all = |memory: &mut Buffer| {
            memory.fill(0xff);
            assert_eq!(store.read_at(0, &mut memory[..4096]).unwrap(), 4096);
            let pieces = memory[4096..].chunks_exact_mut(4096).enumerate();
            let mut reads: Vec<Read<'_>> =
                pieces.map(|(page, buf)| Read { offset: (page as u64 + 1) * 4096, buf }).collect();
            store.read_many(&mut reads, &mut |_, _, result| assert_eq!(result.unwrap(), 4096));
            assert!(memory.iter().enumerate().all(|(at, byte)| *byte == (at / 4096) as u8));
        };
        read_all(&mut memory);
        assert_eq!(cached(), 0, "the pager has its own copy");
        let _ = std::fs::read(path.path()).unwrap();
        assert_eq!(cached(), 64);
        assert!(store.is_cached(0, LEN));
        read_all(&mut memory);
        assert_eq!(cached(), 64, "it is others' too");
        drop_all();
        assert!(!store.is_cached(0, 4096));
    }

    #[test]
    fn the_kernel_fetches_what_it_is_told_of() {
        const LEN: u64 = 64 * 4096;
        // Where the program is, because /tmp is often a file system in memory.
        let directory = std::env::current_exe().unwrap();
        let path = tempfile::NamedTempFile::new_in(directory.parent().unwrap()).unwrap();
        std::fs::write(path.path(), vec![7; LEN as usize]).unwrap();
        path.as_file().sync_all().unwrap();
        fadvise(path.as_file(), 0, None, Advice::DontNeed).unwrap();
        let fetched = || pages_in_kernel_cache(path.as_fd(), LEN as usize).unwrap();
        if fetched() > 0 {
            return eprintln!("skipped: this file system is a cache itself");
        }
        let store = FileStore::open(path.path(), &FileOptions { write: false, direct: false }).unwrap();
        store.prefetch(LEN..LEN);
        store.prefetch(LEN / 2..u64::MAX);
        let since = std::time::Instant::now();
        while fetched() < 32 {
            assert!(since.elapsed().as_secs() < 20, "{} pages of 32", fetched());
            std::thread::yield_now();
        }
        assert_eq!(fetched(), 32, "the other half was not asked for");
        let direct = FileStore::open(path.path(), &FileOptions { write: false, direct: true }).unwrap();
        if direct.is_direct() {
            direct.prefetch(0..LEN);
            assert_eq!(fetched(), 32, "a direct read would not find it there");
        }
    }

    #[test]
    fn ranges_are_cut_at_the_largest_file() {
        const MAX: u64 = i64::MAX as u64;
        assert_eq!(clamp_to_file_range(0, 5), Some(5));
        assert_eq!(clamp_to_file_range(MAX - 3, 5), Some(3));
        assert_eq!(clamp_to_file_range(MAX, 5), Some(0));
        assert_eq!(clamp_to_file_range(MAX + 1, 5), None);
    }

    #[test]
    fn unsynced_ranges_grow_together() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let store = FileStore::open(path.path(), &FileOptions { write: true, direct: false }).unwrap();
        store.write_at(100, &[1; 10]).unwrap();
        store.write_at(5, &[1; 10]).unwrap();
        store.write_at(50, &[]).unwrap();
        assert_eq!(*store.unsynced(), 5..110);
        store.sync().unwrap();
        assert!(store.unsynced().is_empty());
    }
}
