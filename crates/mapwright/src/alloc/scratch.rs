//! A file without a name, as a store for one allocation.
//!
//! | bytes of the file | hold | on disk |
//! | --- | --- | --- |
//! | below `written` | what was written, or zeros | reserved |
//! | from `written` to `reserved` | zeros, which need not be read | reserved |
//! | from `reserved` on | zeros | nothing: punched out, or never had |
//!
//! Its length as a store is kept here: cutting the file itself would give back what is reserved. Nobody else can open the file
//! (but through /proc, by who may also write this process's memory), so that its version is counted here too.
//!
//! [`Store::sync`] does not make anything durable: nothing is to survive. It writes out what the kernel's cache holds and waits,
//! because a write that fails later, after the pager has dropped the page, would be a silent loss.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags, fadvise, fallocate};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::stores::{FileOptions, FileStore, Read, ReadDone, Store, Version, Write, WriteDone};

/// Names tried where a file can't be made without one.
const ATTEMPTS: u32 = 100;

pub(super) struct Scratch {
    file: FileStore,
    identity: u128,
    len: AtomicU64,
    written: AtomicU64,
    reserved: AtomicU64,
    /// Counts changes.
    modification: AtomicU64,
    /// Every write fails.
    #[cfg(test)]
    pub(super) broken: std::sync::atomic::AtomicBool,
}

impl Scratch {
    /// Makes a file in a folder, with disk space for `len` bytes.
    ///
    /// # Errors
    /// [`Error::Io`] with the folder's path: from making the file, and with `ENOSPC`, `EDQUOT` or `EFBIG` where there is no room.
    /// [`Error::Unsupported`] where the file system can't reserve space.
    pub(super) fn new(folder: &Path, len: u64) -> Result<Self> {
        let name = folder.join("(scratch)");
        let failed =
            |error: io::Error| Error::io("make a scratch file in", folder.display().to_string(), 0, 0, error);
        let file = File::from(unnamed(folder).map_err(|error| failed(error.into()))?);
        let file = FileStore::from_file(file, &name, &FileOptions { write: true, direct: true })?;
        let identity = file.version().map_err(failed)?.identity;
        let zero = || AtomicU64::new(0);
        let scratch = Self {
            file,
            identity,
            len: zero(),
            written: zero(),
            reserved: zero(),
            modification: zero(),
            #[cfg(test)]
            broken: false.into(),
        };
        scratch.reserve(len)?;
        Ok(scratch)
    }

    /// Has disk space for the first `len` bytes.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub(super) fn reserve(&self, len: u64) -> Result<()> {
        let from = self.reserved.load(Ordering::Acquire);
        if len <= from {
            return Ok(());
        }
        self.allocate(FallocateFlags::empty(), from, len - from).map_err(|error| match error {
            Errno::OPNOTSUPP | Errno::NOSYS => Error::unsupported(
                "reserving disk space (fallocate(2))",
                "name a folder on ext4, XFS, Btrfs, F2FS or tmpfs",
                error.into(),
            ),
            error => Error::io("reserve disk space", self.file.name(), from, len - from, error.into()),
        })?;
        self.reserved.store(len, Ordering::Release);
        Ok(())
    }

    /// Gives disk space back but for the first `len` bytes. The pager has nothing to write behind them.
    pub(super) fn give_back(&self, len: u64) {
        let reserved = self.reserved.load(Ordering::Acquire);
        if len >= reserved {
            return;
        }
        // What fails leaves the space reserved, until the file is gone.
        if self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, len, reserved - len).is_ok()
        {
            self.reserved.store(len, Ordering::Release);
            self.written.fetch_min(len, Ordering::AcqRel);
        }
    }

    fn allocate(&self, flags: FallocateFlags, from: u64, len: u64) -> Result<(), Errno> {
        loop {
            match fallocate(self.file.as_fd(), flags, from, len) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn note_written(&self, end: u64) {
        self.written.fetch_max(end, Ordering::AcqRel);
        self.len.fetch_max(end, Ordering::AcqRel);
        self.modification.fetch_add(1, Ordering::AcqRel);
    }

    /// How many of `len` bytes at `offset` there are, and whether all of them are zeros.
    fn look(&self, offset: u64, len: usize) -> (usize, bool) {
        let room = self.len.load(Ordering::Acquire).saturating_sub(offset);
        let there = usize::try_from(room).unwrap_or(usize::MAX).min(len);
        (there, offset >= self.written.load(Ordering::Acquire))
    }
}

impl Store for Scratch {
    fn name(&self) -> String {
        self.file.name()
    }

    fn version(&self) -> io::Result<Version> {
        let modification = u128::from(self.modification.load(Ordering::Acquire));
        Ok(Version { len: self.len.load(Ordering::Acquire), identity: self.identity, modification })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let (there, are_zeros) = self.look(offset, buf.len());
        if are_zeros {
            buf[..there].fill(0);
            return Ok(there);
        }
        match self.file.read_at(offset, &mut buf[..there]) {
            // The file may end where it was punched or not reserved; the store does not.
            Ok(0) => {
                buf[..there].fill(0);
                Ok(there)
            }
            other => other,
        }
    }

    fn read_many(&self, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
        let plain = |read: &Read<'_>| {
            let (there, are_zeros) = self.look(read.offset, read.buf.len());
            there == read.buf.len() && !are_zeros
        };
        if reads.iter().all(plain) {
            return self.file.read_many(reads, done);
        }
        for (index, read) in reads.iter_mut().enumerate() {
            let result = self.read_at(read.offset, read.buf);
            done(index, read.buf, result);
        }
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if self.broken.load(Ordering::SeqCst) {
            return Err(Errno::IO.into());
        }
        if !buf.is_empty() {
            self.note_written(offset.saturating_add(buf.len() as u64));
        }
        self.file.write_at(offset, buf)
    }

    fn write_many(&self, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
        #[cfg(test)]
        if self.broken.load(Ordering::SeqCst) {
            return (0..writes.len()).for_each(|index| done(index, Err(Errno::IO.into())));
        }
        let whole = writes.iter().filter(|write| !write.buf.is_empty());
        if let Some(end) = whole.map(|write| write.offset.saturating_add(write.buf.len() as u64)).max() {
            self.note_written(end);
        }
        self.file.write_many(writes, done);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let written = self.written.load(Ordering::Acquire);
        if len < written {
            // Zeros, when it grows again; and reserved all the same.
            let reserved = self.reserved.load(Ordering::Acquire);
            self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, len, written - len)?;
            self.written.fetch_min(len, Ordering::AcqRel);
            if let Some(again) = reserved.checked_sub(len).filter(|again| *again > 0) {
                self.allocate(FallocateFlags::empty(), len, again)?;
            }
        }
        self.len.store(len, Ordering::Release);
        self.modification.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        mapwright_sys::file::write_out(self.file.as_fd(), 0, 0)?;
        // Clean now: the pager has its own copies. It is only advice.
        let _ = fadvise(self.file.as_fd(), 0, None, Advice::DontNeed);
        Ok(())
    }

    fn is_local(&self) -> bool {
        self.file.is_local()
    }
}

/// A new file that has no name, or not for long.
fn unnamed(folder: &Path) -> Result<OwnedFd, Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags | OFlags::TMPFILE, mode) {
        // EISDIR: a kernel that does not know the flag sees a folder opened for writing (open(2), ERRORS).
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        other => return other,
    }
    for _ in 0..ATTEMPTS {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = folder.join(format!(".mapwright-{:016x}", u64::from_ne_bytes(random)));
        match rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode) {
            Ok(file) => {
                rustix::fs::unlink(&path)?;
                return Ok(file);
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::conformance;

    fn folder() -> tempfile::TempDir {
        // Where the program is: /tmp is often a file system in memory.
        let program = std::env::current_exe().unwrap();
        tempfile::tempdir_in(program.parent().unwrap()).unwrap()
    }

    fn blocks(scratch: &Scratch) -> u64 {
        rustix::fs::fstat(scratch.file.as_fd()).unwrap().st_blocks as u64 * 512
    }

    #[test]
    fn space_is_reserved_and_given_back() {
        let folder = folder();
        let scratch = Scratch::new(folder.path(), 1 << 20).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        assert!(blocks(&scratch) >= 1 << 20);
        scratch.reserve(3 << 20).unwrap();
        assert!(blocks(&scratch) >= 3 << 20);
        scratch.give_back(1 << 20);
        assert!((1 << 20..2 << 20).contains(&blocks(&scratch)), "{}", blocks(&scratch));
        // What the pager cuts stays reserved: it may write there again.
        scratch.write_at(0, &[7; 8192]).unwrap();
        scratch.set_len(100).unwrap();
        scratch.set_len(8192).unwrap();
        assert!(blocks(&scratch) >= 1 << 20);
        let mut bytes = [1; 8192];
        assert_eq!(scratch.read_at(0, &mut bytes).unwrap(), 8192);
        assert!(bytes[..100] == [7; 100] && bytes[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn it_is_a_store() {
        let folder = folder();
        conformance::check(|bytes| {
            let scratch = Scratch::new(folder.path(), 1 << 16).unwrap();
            scratch.set_len(bytes.len() as u64).unwrap();
            let mut done = 0;
            while done < bytes.len() {
                done += scratch.write_at(done as u64, &bytes[done..]).unwrap();
            }
            Box::new(scratch)
        });
    }

    #[test]
    fn what_was_given_back_is_zeros() {
        let folder = folder();
        let scratch = Scratch::new(folder.path(), 16384).unwrap();
        scratch.write_at(0, &[7; 16384]).unwrap();
        scratch.give_back(5000);
        let mut bytes = [1; 16384];
        let mut done = 0;
        while done < bytes.len() {
            done += scratch.read_at(done as u64, &mut bytes[done..]).unwrap();
        }
        assert!(bytes[..5000] == [7; 5000] && bytes[5000..].iter().all(|byte| *byte == 0));
    }
}
