//! The kernel strategy: mmap(2), with a guard against SIGBUS.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mapwright_sys::mapping::{FileMapping, KernelAdvice};
use mapwright_sys::signals::{BusGuard, BusOutcome, GuardToken, guard, print_raw};

use crate::engine::read_ahead::Advice;
use crate::error::{Change, Error, Result};
use crate::stores::{FileStore, Store};

/// What mincore(2) tells residency in, in bytes.
const PAGE: u64 = mapwright_sys::PAGE_SIZE as u64;
/// Bytes that are copied and written at once.
const COPY: usize = 256 << 10;

/// A file mapped by the kernel.
pub(super) struct KernelFile {
    /// Dropped first: no handler runs for addresses that are being unmapped.
    guards: Mutex<Vec<GuardToken>>,
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<FileStore>,
    mapping: Arc<FileMapping>,
    /// What the file had when it was opened or was given by us since, in bytes. Changed while the map is borrowed as mutable.
    len: AtomicU64,
    writable: bool,
    scopes: Mutex<Scopes>,
}

/// Checked scopes: as in `engine::checked`, with the kernel's pages.
#[derive(Default)]
struct Scopes {
    active: usize,
    failures: u64,
    error: Option<Error>,
}

/// One checked scope.
pub(super) struct KernelScope {
    inner: Arc<Inner>,
    failures_before: u64,
    ended: bool,
}

impl KernelFile {
    /// Maps a file, reserving `capacity` bytes of address space for its growth.
    ///
    /// # Errors
    /// Whatever mmap(2) says.
    pub(super) fn map(store: Arc<FileStore>, capacity: u64, writable: bool) -> Result<Self> {
        let name = store.name();
        let len = store.version().map_err(|e| Error::io("open", name.clone(), 0, 0, e))?.len;
        let failed = |e| Error::io("mmap", name.clone(), 0, len, e);
        let mapping = FileMapping::new(store.as_fd(), len, capacity, writable).map_err(failed)?;
        let mapping = Arc::new(mapping);
        let views = mapping.views();
        let inner = Arc::new(Inner { store, mapping, len: len.into(), writable, scopes: Mutex::default() });
        let guards = views
            .into_iter()
            .map(|view| guard(view, Arc::clone(&inner) as Arc<dyn BusGuard>))
            .collect::<std::io::Result<_>>()
            .map_err(failed)?;
        Ok(Self { guards: Mutex::new(guards), inner })
    }

    pub(super) fn name(&self) -> &str {
        self.inner.store.path().to_str().unwrap_or("(a path that is not UTF-8)")
    }

    pub(super) fn mapping(&self) -> &Arc<FileMapping> {
        &self.inner.mapping
    }

    pub(super) fn store(&self) -> &Arc<FileStore> {
        &self.inner.store
    }

    /// Reads a range into the page cache and maps it; an error where a touch would be SIGBUS.
    pub(super) fn populate(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.inner.mapping.advise(range.clone(), KernelAdvice::Populate).map_err(|e| {
            self.inner.truncation(range.start).unwrap_or_else(|| self.inner.error("read", &range, e))
        })
    }

    /// Which pages of the file are in the page cache, as mincore(2) tells it.
    pub(super) fn residency(&self, pages: &Range<u64>) -> Result<Vec<u8>> {
        let mut resident = vec![0; (pages.end - pages.start) as usize];
        mapwright_sys::page_cache::mincore(self.inner.store.as_fd(), pages.start, &mut resident)
            .map_err(|e| self.inner.error("mincore", &(pages.start * PAGE..pages.end * PAGE), e))?;
        Ok(resident)
    }

    pub(super) fn will_need(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.inner
            .mapping
            .advise(range.clone(), KernelAdvice::WillNeed)
            .map_err(|e| self.inner.error("prefetch", &range, e))
    }

    pub(super) fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let advice = match advice {
            Advice::Normal => KernelAdvice::Normal,
            Advice::Sequential => KernelAdvice::Sequential,
            Advice::Random => KernelAdvice::Random,
        };
        self.inner.mapping.advise(range.clone(), advice).map_err(|e| self.inner.error("advise", &range, e))
    }

    /// Reads by the descriptor: errors are values.
    pub(super) fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let range = offset..offset + into.len() as u64;
        let mut done = 0;
        while done < into.len() {
            match self.inner.store.read_at(offset + done as u64, &mut into[done..]) {
                Ok(0) => {
                    let ended = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(self
                        .inner
                        .truncation(offset)
                        .unwrap_or_else(|| self.inner.error("read", &range, ended)));
                }
                Ok(n) => done += n,
                Err(error) => return Err(self.inner.error("read", &range, error)),
            }
        }
        Ok(())
    }

    /// Writes by the descriptor: a full disk is an error where a store to the mapping would be SIGBUS.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.inner.check_length(offset)?;
        let mut at = offset;
        for part in bytes.chunks(COPY) {
            // A copy: the bytes may be a slice of another map, at whose absent pages the system call may get EFAULT.
            let part = part.to_vec();
            let mut done = 0;
            while done < part.len() {
                let rest = &part[done..];
                let range = at..at + rest.len() as u64;
                let n = self.inner.store.write_at(at, rest);
                let n = n.map_err(|e| self.inner.error("write", &range, e))?;
                done += n;
                at += n as u64;
            }
        }
        Ok(())
    }

    /// msync(2); for an empty range a sync of the file.
    pub(super) fn flush(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return self.inner.store.sync().map_err(|e| self.inner.error("sync", &range, e));
        }
        self.inner.mapping.flush(range.clone()).map_err(|e| self.inner.error("msync", &range, e))
    }

    /// Changes the file's length, at once.
    pub(super) fn resize(&self, len: u64) -> Result<()> {
        let range = len..len;
        if len > self.inner.mapping.views()[0].len() as u64 {
            return Err(Error::invalid(
                format!("{}: a length of {len} bytes is past what was reserved", self.name()),
                "open it with MapOptions::reserve() large enough for what it may grow to",
            ));
        }
        self.inner.check_length(len)?;
        if let Err(error) = self.inner.store.set_len(len) {
            // Perhaps it is done all the same: no cut by somebody else, then, and another attempt succeeds.
            if self.inner.store.version().is_ok_and(|version| version.len == len) {
                self.inner.len.store(len, Ordering::Relaxed);
            }
            return Err(self.inner.error("set length", &range, error));
        }
        self.inner.len.store(len, Ordering::Relaxed);
        self.inner
            .mapping
            .extend(self.inner.store.as_fd(), len)
            .map_err(|e| self.inner.error("mmap", &range, e))
    }

    /// Enters a checked scope.
    ///
    /// # Errors
    /// The error of a page that reads as zeros for scopes that have not ended: this one would see the zeros and return that
    /// error. If it were let in all the same, threads that always overlap would keep the zeros for ever.
    pub(super) fn enter(&self) -> Result<KernelScope> {
        let mut scopes = lock(&self.inner.scopes);
        self.inner.heal(&mut scopes); // could not be done when the last scope ended, perhaps
        if let Some(error) = &scopes.error {
            return Err(error.clone());
        }
        scopes.active += 1;
        Ok(KernelScope { inner: Arc::clone(&self.inner), failures_before: scopes.failures, ended: false })
    }
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        self.guards.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Inner {
    fn error(&self, operation: &'static str, range: &Range<u64>, source: std::io::Error) -> Error {
        Error::io(operation, self.store.name(), range.start, range.end - range.start, source)
    }

    /// The error for a file that has become shorter than it was.
    fn truncation(&self, offset: u64) -> Option<Error> {
        let now = self.store.version().ok()?.len;
        let was = self.len.load(Ordering::Relaxed);
        let change = Change::Truncated { was, now };
        (now < was).then(|| Error::Changed { path: self.store.name(), offset, change })
    }

    /// Fails for a file that has become shorter: a write past its end would extend it again, and hide that.
    fn check_length(&self, offset: u64) -> Result<()> {
        self.truncation(offset).map_or(Ok(()), Err)
    }

    /// Takes the zeros away when nobody touches the view: under the lock, so that no scope begins meanwhile.
    fn heal(&self, scopes: &mut Scopes) {
        if scopes.active == 0 && scopes.error.is_some() && self.mapping.restore(self.store.as_fd()).is_ok() {
            scopes.error = None;
        }
    }

    fn failure(&self, offset: u64) -> Error {
        let failed = || std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        self.truncation(offset).unwrap_or_else(|| self.error("read", &(offset..offset + 1), failed()))
    }
}

impl BusGuard for Inner {
    fn on_bus(&self, address: usize) -> BusOutcome {
        let [plain, checked] = self.mapping.views();
        if plain.contains(&address) {
            let error = self.failure((address - plain.start) as u64);
            print_raw(&format!(
                "mapwright: a slice was touched at a page that cannot be read; SIGBUS follows \
                 (use Map::get or Map::checked to get the error as a value): {error}\n"
            ));
            return BusOutcome::Pass;
        }
        let error = self.failure((address - checked.start) as u64);
        {
            // Before the zeros are shown: a scope that saw them sees this.
            let mut scopes = lock(&self.scopes);
            scopes.failures += 1;
            scopes.error.get_or_insert(error);
        }
        if self.mapping.zero(address).is_ok() { BusOutcome::Retry } else { BusOutcome::Pass }
    }
}

impl KernelScope {
    /// Leaves the scope.
    ///
    /// # Errors
    /// The error of the first page that read as zeros while this scope was active.
    pub(super) fn end(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let mut scopes = lock(&self.inner.scopes);
        scopes.active -= 1;
        let failed = scopes.failures > self.failures_before || scopes.error.is_some();
        let outcome = scopes.error.clone().filter(|_| failed).map_or(Ok(()), Err);
        self.inner.heal(&mut scopes);
        outcome
    }
}

impl Drop for KernelScope {
    fn drop(&mut self) {
        let _ = self.leave();
    }
}

/// A leaf lock, taken in the signal handler too: nobody touches the mapping while holding it.
fn lock(scopes: &Mutex<Scopes>) -> MutexGuard<'_, Scopes> {
    scopes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for KernelFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelFile").field("writable", &self.inner.writable).finish_non_exhaustive()
    }
}
