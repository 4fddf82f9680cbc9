//! A file that a program has open alone, as a store: by the program's own open file description, because there must be no other
//! ([`FileLease::take_alone`](mapwright_sys::lease::FileLease::take_alone)). The program's position and flags stay as they are.
//!
//! Its bytes pass through the kernel's page cache, which other descriptors of the program see, and are dropped there where the kernel can (RWF_DONTCACHE, Linux 6.14):
//! the pager has its own copy.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use mapwright_sys::file::open_again;
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};
use crate::stores::{Store, Version, identity_of};

/// Of the kernel's fs.h.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// Bytes that a file system must have free for what a file has no blocks for, beside twice that.
const SPARE: u64 = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct OwnFile {
    /// Nothing once the lease has ended: then the program's open file description is its own alone, and nothing is written by it any more.
    file: RwLock<Option<OwnedFd>>,
    name: String,
    /// The kernel takes [`DONT_CACHE`] for it.
    drops: AtomicBool,
}

impl OwnFile {
    /// # Errors
    /// [`Error::Invalid`] if it is no regular file, or not open for reading and writing, or to append or directly.
    pub(super) fn new(file: OwnedFd, name: &str) -> Result<Self> {
        let failed = |e: Errno| Error::io("open", name.to_owned(), 0, 0, e.into());
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let flags = rustix::fs::fcntl_getfl(&file).map_err(failed)?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_regular
            || flags & OFlags::RWMODE != OFlags::RDWR
            || flags.intersects(OFlags::APPEND | OFlags::DIRECT | OFlags::PATH)
        {
            let what = format!(
                "{name}: the descriptor is not that of a regular file, for reading and writing anywhere"
            );
            return Err(Error::invalid(what, "open it O_RDWR, without O_APPEND and O_DIRECT"));
        }
        let file = RwLock::new(Some(file));
        Ok(Self { file, name: name.to_owned(), drops: AtomicBool::new(true) })
    }

    /// Closes it, when nobody is reading or writing.
    pub(super) fn close(&self) {
        drop(self.file.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Does something with the descriptor.
    ///
    /// # Errors
    /// `EBADF` if it is closed.
    fn with<T>(&self, work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        work(file.as_ref().ok_or(Errno::BADF)?.as_fd())
    }

    /// Reads or writes, so that the kernel keeps nothing of it if it can do that.
    fn transfer(
        &self,
        mut call: impl FnMut(ReadWriteFlags) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let drops = self.drops.load(Ordering::Relaxed);
            match call(if drops { DONT_CACHE } else { ReadWriteFlags::empty() }) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL) if drops => self.drops.store(false, Ordering::Relaxed),
                done => return Ok(done?),
            }
        }
    }
}

/// Whether what has no blocks yet of a file can be written, as far as can be known: nobody could be told otherwise when a write-back fails.
/// Opens the file anew for a moment.
///
/// # Errors
/// `ENOSPC` if not; what open(2) says.
pub(super) fn check_room(file: BorrowedFd<'_>) -> io::Result<()> {
    // Not the program's own, of which this would be the position; nor to wait for a lease of somebody else's.
    let other = open_again(file, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let stat = rustix::fs::fstat(&other)?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    // A store by a map has no such limit, and the server's write would end it (SIGXFSZ).
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < len) {
        return Err(Errno::FBIG.into());
    }
    if rustix::fs::seek(&other, SeekFrom::Hole(0)).is_ok_and(|hole| hole >= len) {
        return Ok(());
    }
    let missing = len.saturating_sub(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
    let free = rustix::fs::fstatvfs(&other)?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    if free < missing.saturating_mul(2).saturating_add(SPARE) {
        return Err(Errno::NOSPC.into());
    }
    Ok(())
}

impl Store for OwnFile {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> io::Result<Version> {
        let stat = self.with(|file| Ok(rustix::fs::fstat(file)?))?;
        let modified = i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128;
        Ok(Version { len: stat.st_size as u64, identity: identity_of(&stat), modification: modified as u128 })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|file| {
            self.transfer(|flags| rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, flags))
        })
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let write = |file: BorrowedFd<'_>| {
            self.transfer(|flags| rustix::io::pwritev2(file, &[IoSlice::new(buf)], offset, flags))
        };
        match self.with(write)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|file| Ok(rustix::fs::fdatasync(file)?))
    }

    fn is_local(&self) -> bool {
        true
    }
}
