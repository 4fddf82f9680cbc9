//! Bytes in memory.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Store, Version};

/// A store in memory: for tests, and for putting bytes one already has under a pager.
///
/// Its modification is a counter that every change bumps, whoever makes it: writes and length changes through the store as
/// well as [`replace`](Self::replace). So it behaves like a file, whose modification time doesn't tell either. It is always
/// writable, durable for as long as it lives, and never blocks for longer than a copy takes.
#[derive(Debug)]
pub struct MemoryStore {
    identity: u128,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    modification: u128,
}

impl MemoryStore {
    /// A store that contains `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let identity = u128::from(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { identity, inner: RwLock::new(Inner { bytes, modification: 0 }) }
    }

    /// A copy of the contents.
    pub fn contents(&self) -> Vec<u8> {
        self.read().bytes.clone()
    }

    /// Changes everything behind the back of whoever maps the store, as another program does to a file.
    pub fn replace(&self, bytes: Vec<u8>) {
        let mut inner = self.write();
        inner.bytes = bytes;
        inner.modification += 1;
    }

    // A panic under the lock can only be a failed allocation, before which nothing was changed.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes the contents at least `len` bytes long.
    fn grow(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if len > self.bytes.len() {
            self.bytes.try_reserve(len - self.bytes.len()).map_err(|_| io::ErrorKind::StorageFull)?;
            self.bytes.resize(len, 0);
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn name(&self) -> String {
        format!("memory:{}", self.identity)
    }

    fn version(&self) -> io::Result<Version> {
        let inner = self.read();
        Ok(Version {
            len: inner.bytes.len() as u64,
            identity: self.identity,
            modification: inner.modification,
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let inner = self.read();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(rest) = inner.bytes.get(start..) else { return Ok(0) };
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut inner = self.write();
        inner.grow(end)?;
        inner.bytes[offset as usize..end as usize].copy_from_slice(buf);
        inner.modification += 1;
        Ok(buf.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.write();
        inner.grow(len)?;
        inner.bytes.truncate(len as usize);
        inner.modification += 1;
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }
}
