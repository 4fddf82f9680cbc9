//! Whole reads and writes over a [`Store`], with errors that name the path; and [`Place`], where a file's journal lies.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::error::{JournalError, Result};
use super::format::{Identity, Salt};
use crate::stores::{Store, Write};

/// Where the journal of one file lies: names in a directory, and what identifies the file.
///
/// # Contract
/// 1. `open` gives the journal under its final name, `None` if there is no such name and a journal may be begun. It follows no
///    link, changes nothing, and refuses what may have been put there by somebody who may not write the file.
/// 2. `create` makes an empty journal under the unfinished name, which it takes away first if it is there. Exclusively: it
///    never opens what is there.
/// 3. `publish` gives the created journal its final name, atomically, and fails if that name is taken; `replace` takes the
///    name from the journal that has it, which can be read on by whoever has it open.
/// 4. `remove` takes both names away; that there is none is no error.
/// 5. `confirm` looks whether the file still has the name that the journal is called after.
/// 6. Names are durable when `sync` returned `Ok`, and perhaps before.
pub trait Place: Send + Sync {
    /// What to call the journal in messages.
    fn name(&self) -> String;

    /// Which file it is for.
    ///
    /// # Errors
    /// What the file system answers.
    fn identity(&self) -> Result<Identity>;

    /// Sixteen bytes that nobody could foresee.
    ///
    /// # Errors
    /// What the kernel answers.
    fn salt(&self) -> Result<Salt>;

    /// The journal, if there is one.
    ///
    /// # Errors
    /// [`JournalError::Refused`] for one that is not to be trusted, and where there is none and none may be begun; what the file
    /// system answers.
    fn open(&self) -> Result<Option<Arc<dyn Store>>>;

    /// A new journal under the unfinished name.
    ///
    /// # Errors
    /// What the file system answers.
    fn create(&self) -> Result<Arc<dyn Store>>;

    /// Renames the new journal to its final name.
    ///
    /// # Errors
    /// [`JournalError::Exists`]; what the file system answers.
    fn publish(&self) -> Result<()>;

    /// Renames the new journal to its final name, in place of the one that has it.
    ///
    /// # Errors
    /// What the file system answers.
    fn replace(&self) -> Result<()>;

    /// Removes the journal's names.
    ///
    /// # Errors
    /// What the file system answers.
    fn remove(&self) -> Result<()>;

    /// Refuses a file that has not its name any more: the journal would be another file's.
    ///
    /// # Errors
    /// [`JournalError::Refused`]; what the file system answers.
    fn confirm(&self) -> Result<()>;

    /// Makes all changes of names durable.
    ///
    /// # Errors
    /// What the file system answers.
    fn sync(&self) -> Result<()>;
}

/// Tries again what a signal interrupted. Other errors that may pass are the caller's: a store that has them is wrapped.
fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reads until the buffer is full or the store ends; bytes read.
pub(super) fn read(store: &dyn Store, offset: u64, into: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < into.len() {
        let at = offset + done as u64;
        match again(|| store.read_at(at, &mut into[done..])) {
            Ok(0) => break,
            Ok(n) => done += n.min(into.len() - done),
            Err(error) => return Err(JournalError::io("read", store.name(), at, error)),
        }
    }
    Ok(done)
}

/// Writes all of it.
pub(super) fn write(store: &dyn Store, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let written = again(|| store.write_at(at, &bytes[done..]));
        match written.and_then(|n| if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) }) {
            Ok(n) => done += n.min(bytes.len() - done),
            Err(error) => return Err(JournalError::io("write", store.name(), at, error)),
        }
    }
    Ok(())
}

/// Writes all of many, whole pages no two of which overlap, with as much in flight at once as the store can.
pub(super) fn write_many(store: &dyn Store, writes: &[Write<'_>]) -> Result<()> {
    let (mut done, mut failed) = (vec![0; writes.len()], None);
    store.write_many(writes, &mut |index, written| match (writes.get(index), written) {
        (Some(write), Ok(n)) => done[index] = n.min(write.buf.len()),
        (Some(write), Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
            failed = Some(JournalError::io("write", store.name(), write.offset, error));
        }
        _ => {}
    });
    if let Some(error) = failed {
        return Err(error);
    }
    // What was written in part.
    let rests = writes.iter().zip(done).filter(|(Write { buf, .. }, done)| *done < buf.len());
    rests.into_iter().try_for_each(|(rest, done)| write(store, rest.offset + done as u64, &rest.buf[done..]))
}

/// Waits until what was written to a range is on its way no more. An error is that of a sync.
pub(super) fn write_out(store: &dyn Store, range: Range<u64>) -> Result<()> {
    let start = range.start;
    store.write_out(range).map_err(|error| JournalError::io("sync", store.name(), start, error))
}

/// Syncs. An interrupted sync has failed: what it had found is not looked for again.
pub(super) fn sync(store: &dyn Store) -> Result<()> {
    store.sync().map_err(|error| JournalError::io("sync", store.name(), 0, error))
}

/// Takes the file's lock; it holds as long as the store is open.
pub(super) fn lock(file: &dyn Store) -> Result<()> {
    file.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => JournalError::Refused {
            path: file.name(),
            why: "in use by another program".to_owned(),
            remedy: "what it has committed is safe: close it there first",
        },
        _ => JournalError::io("lock", file.name(), 0, error),
    })
}

/// Sets the length.
pub(super) fn set_len(store: &dyn Store, len: u64) -> Result<()> {
    again(|| store.set_len(len)).map_err(|error| JournalError::io("set length", store.name(), len, error))
}

/// The length now.
pub(super) fn len(store: &dyn Store) -> Result<u64> {
    let version = again(|| store.version());
    version.map(|version| version.len).map_err(|error| JournalError::io("stat", store.name(), 0, error))
}

/// A reader that goes forward through a store, a large piece at a time, while the store fetches what comes next.
pub(super) struct Window<'a> {
    store: &'a dyn Store,
    len: u64,
    piece: Vec<u8>,
    start: u64,
    /// What the store was told of, from some piece on.
    told: Range<u64>,
}

impl<'a> Window<'a> {
    /// Bytes read at once.
    const PIECE: usize = 1 << 20;
    /// Bytes behind a piece that the store is told of: while one is checked the disk is not idle.
    const AHEAD: u64 = 4 << 20;

    /// A window at the beginning.
    pub(super) fn new(store: &'a dyn Store) -> Result<Self> {
        Ok(Self { store, len: len(store)?, piece: Vec::new(), start: 0, told: 0..0 })
    }

    /// Bytes in the store.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes at `at`; `None` if they end past the end of the store.
    pub(super) fn get(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        let Some(end) = at.checked_add(len as u64).filter(|end| *end <= self.len) else { return Ok(None) };
        if at < self.start || end > self.start + self.piece.len() as u64 {
            let want = (self.len - at).min(Self::PIECE.max(len) as u64) as usize;
            self.tell(at, at + want as u64);
            self.piece.resize(want, 0);
            self.start = at;
            let got = read(self.store, at, &mut self.piece)?;
            self.piece.truncate(got);
        }
        let from = (at - self.start) as usize;
        Ok(self.piece.get(from..from + len))
    }

    /// Tells the store what is read now and what comes next, but for what it was told of.
    fn tell(&mut self, start: u64, end: u64) {
        let end = end.saturating_add(Self::AHEAD).min(self.len);
        let from = if self.told.contains(&start) { self.told.end } else { start };
        if from < end {
            self.store.prefetch(from..end);
        }
        self.told = start..end.max(from);
    }
}
