//! Commits of maps: how durable changes are, what commits and rolls back, and views of the last commit.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::core::Behind;
use super::map_mut::{MapMut, Shared};
use crate::engine::commit;
use crate::engine::opened::Opened;
use crate::error::{Error, Result};
use crate::journal;
use crate::journal::beside;
use crate::journal::place::Directory;
use crate::journal::{Accept, JournalError};
use crate::stores::{FileStore, Store, Version};

/// When changes of a [`MapMut`] reach the file, and what a crash leaves. Chosen by
/// [`MapOptions::durability`](crate::MapOptions::durability).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// [`MapMut::flush`] makes changes durable, as msync(2) does, with errors that are latched. A crash may leave some of what was
    /// changed since the last flush, or while it ran. The default.
    #[default]
    Flush,
    /// [`MapMut::commit`] makes all changes since the last one durable together: after any crash, of the program, the kernel or
    /// the machine, the next open for writing finds exactly what some commit left, and none older than the last that returned.
    ///
    /// Changes go to a *journal* beside the file, named as the file with `.mapwright-journal` added, and from there to the file, in
    /// the background and when the map is closed. While the map is open, other programs that read the file see what the last of
    /// these checkpoints left, or a mixture while one runs: to copy it, read from a [`MapMut::snapshot`]. Where a program was
    /// killed, [`Map::open`](crate::Map::open) refuses the file ([`JournalError::Unrecovered`]) until it was opened
    /// for writing once, or `mapwright recover` has run.
    ///
    /// For regular files with one name, on file systems with locks, and where the machine has what the pager needs. What is assumed
    /// of disks, and promised: docs/fault-model.md in the repository.
    Atomic,
    /// Scratch: [`MapMut::flush`] writes to the file and does not sync, dropping the map writes nothing, and a crash may leave
    /// anything.
    None,
}

impl MapMut {
    /// Makes all changes since the last commit durable together, bytes and length: after any crash all of them are there, or
    /// none. For maps with [`Durability::Atomic`]. Costs one sync, of which threads that ask at the same time share one; with
    /// nothing changed it costs next to nothing.
    ///
    /// A pointer into the map that was made before (`as_mut_ptr`) must be made anew after a commit: what is written through an
    /// old one may be missed by the next.
    ///
    /// ```
    /// use mapwright::{Durability, MapOptions};
    ///
    /// # let folder = std::env::temp_dir().join(format!("mapwright-commit-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder).unwrap();
    /// # let path = folder.join("accounts");
    /// # std::fs::write(&path, vec![0u8; 8192]).unwrap();
    /// # if let Err(error) = MapOptions::new().durability(Durability::Atomic).open_mut(&path) {
    /// #     eprintln!("######## SKIPPED: {error} ########");
    /// #     return Ok(());
    /// # }
    /// let mut map = MapOptions::new().durability(Durability::Atomic).open_mut(&path)?;
    /// map[0] = 70;
    /// map[4096] = 30;
    /// map.commit()?; // both, or none
    /// map[0] = 0;
    /// map.rollback()?;
    /// assert_eq!((map[0], map[4096]), (70, 30));
    /// # drop(map);
    /// # assert_eq!(std::fs::read(&path).unwrap()[4096], 30);
    /// # std::fs::remove_dir_all(&folder).unwrap();
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Io`](Error::Io), or [`TimedOut`](Error::TimedOut) from a file system that may hang: not committed yet; everything is dirty still, and the error is latched: later
    /// calls return [`Latched`](Error::Latched) until [`acknowledge_error`](Self::acknowledge_error) or a rollback. A crash before
    /// the next commit or rollback that succeeds may show this commit, whole. [`BudgetExhausted`](Error::BudgetExhausted) if the
    /// index of what the file lacks does not fit the budget. [`Invalid`](Error::Invalid) for another durability, or in a child
    /// made by fork(2).
    pub fn commit(&self) -> Result<()> {
        let file = self.committing()?;
        let _span = tracing::debug_span!("commit", file = %file.name).entered();
        self.note_slices();
        commit::commit(file)
    }

    /// Drops all changes since the last commit, of length too. For maps with [`Durability::Atomic`].
    ///
    /// # Errors
    /// [`Io`](Error::Io) if a commit that failed before may be on the disk and could not be undone: the changes are dropped all
    /// the same, and a crash may show that commit. [`TimedOut`](Error::TimedOut) if a page can't be dropped: then commits are
    /// refused until a rollback succeeds. [`Invalid`](Error::Invalid) as for [`commit`](Self::commit).
    pub fn rollback(&mut self) -> Result<()> {
        self.note_slices();
        let file = self.committing()?;
        let _span = tracing::debug_span!("rollback", file = %file.name).entered();
        let rolled_back = commit::rollback(file);
        let len = file.len();
        self.follow_len(len);
        rolled_back
    }

    /// A view of the last commit that stays what it is while writing goes on. For maps with [`Durability::Atomic`].
    ///
    /// While it lives the journal can't be emptied past its commit, and grows; the file stays locked, and the journal there, until
    /// it is dropped, also if the map is dropped before.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) as for [`commit`](Self::commit).
    pub fn snapshot(&self) -> Result<Snapshot> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let file = self.committing()?;
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("{} (a snapshot)", file.name);
        Ok(Snapshot { commit: commit::snapshot(file)?, name, number, local: file.is_local() })
    }

    fn committing(&self) -> Result<&Opened> {
        match &self.core.behind {
            Behind::Pager(file) if self.durability == Durability::Atomic => Ok(file),
            _ => Err(Error::invalid(
                format!("{}: a commit of a map that has no journal", self.core.name()),
                "open it with MapOptions::durability(Durability::Atomic)",
            )),
        }
    }
}

impl Shared<'_> {
    /// Makes all changes since the last commit durable together: see [`MapMut::commit`]. What other threads write while it runs may
    /// be included or not, each page as it was at some time.
    ///
    /// # Errors
    /// As for [`MapMut::commit`].
    pub fn commit(&self) -> Result<()> {
        self.map().commit()
    }

    /// A view of the last commit: see [`MapMut::snapshot`].
    ///
    /// # Errors
    /// As for [`MapMut::snapshot`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.map().snapshot()
    }
}

/// The bytes of a file as some commit left them. Made by [`MapMut::snapshot`].
///
/// It is a [`Store`] that can't be written, so it can be mapped:
///
/// ```
/// use std::sync::Arc;
/// use mapwright::{Durability, MapOptions};
///
/// # let folder = std::env::temp_dir().join(format!("mapwright-snapshot-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder).unwrap();
/// # let path = folder.join("data");
/// # std::fs::write(&path, vec![1u8; 8192]).unwrap();
/// # if let Err(error) = MapOptions::new().durability(Durability::Atomic).open_mut(&path) {
/// #     eprintln!("######## SKIPPED: {error} ########");
/// #     return Ok(());
/// # }
/// let mut map = MapOptions::new().durability(Durability::Atomic).open_mut(&path)?;
/// let view = MapOptions::new().open_store(Arc::new(map.snapshot()?))?;
/// map[..4].copy_from_slice(b"next");
/// map.commit()?;
/// assert_eq!((view[0], map[0]), (1, b'n'));
/// # drop((map, view));
/// # std::fs::remove_dir_all(&folder).unwrap();
/// # Ok::<(), mapwright::Error>(())
/// ```
///
/// # Threads and fork
/// `Send` and `Sync`. It must not be used in a child made by fork(2).
pub struct Snapshot {
    commit: journal::Snapshot,
    name: String,
    /// Which one of this process.
    number: u64,
    local: bool,
}

impl Snapshot {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.commit.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from `offset` on into `into`, all of it.
    ///
    /// # Errors
    /// [`Io`](Error::Io); [`OutOfRange`](Error::OutOfRange); [`Journal`](Error::Journal) if a record of the journal is not what
    /// was written there.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(into.len() as u64);
        if end > self.len() {
            return Err(Error::OutOfRange { path: self.name.clone(), offset, end, file_len: self.len() });
        }
        self.commit.read(offset, into)?;
        Ok(())
    }
}

impl Store for Snapshot {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> io::Result<Version> {
        // No file has such a device.
        let identity = u128::from(u64::MAX) << 64 | u128::from(self.number);
        Ok(Version { len: self.len(), identity, modification: 0 })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.commit.read(offset, buf).map_err(|error| Error::from(error).into())
    }

    fn is_local(&self) -> bool {
        self.local
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("name", &self.name).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Refuses to read a file whose last commit is in its journal, because whoever wrote it was killed. While somebody writes it,
/// it is what the last checkpoint left.
pub(super) fn refuse_unrecovered(path: &Path) -> Result<()> {
    let Some(journal) = beside::find(path)? else { return Ok(()) };
    if beside::is_in_use(path)? || beside::find(path)?.is_none() {
        return Ok(());
    }
    Err(JournalError::Unrecovered {
        path: path.display().to_string(),
        journal: journal.display().to_string(),
    }
    .into())
}

/// Brings a file that is opened for writing to the last commit of a program that was killed. The caller has the file's lock.
pub(super) fn recover_first(store: &Arc<FileStore>, path: &Path) -> Result<()> {
    use std::os::fd::AsFd;
    if beside::find(path)?.is_some() {
        let place = Directory::of(store.as_fd(), path)?;
        journal::recover(&place, &**store, Accept::Own)?;
    }
    Ok(())
}
