//! What becomes of a journal that is found when a file is opened.
//!
//! First everything is checked, then the file is written and synced, then the journal is removed and the directory synced.
//! Who is killed on the way has changed nothing that the next one would not do again. The caller holds the file's lock.

use super::disk::{self, Place};
use super::error::{JournalError, Result};
use super::replay::{Replay, Replayed};
use super::sabotage::{self, Sabotage};
use super::scan::Scan;
use crate::stores::Store;

/// Which files a journal is accepted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// The file it was written for.
    #[default]
    Own,
    /// Any: the file is a copy of that one, made together with the journal.
    Copy,
}

/// What a journal holds for its file.
#[derive(Clone, Debug)]
pub struct Found {
    /// The journal.
    pub scan: Scan,
    /// What a replay writes.
    pub replay: Replayed,
}

/// Looks whether there is a journal, and checks it. Changes nothing.
///
/// # Errors
/// See [`JournalError`]: every refusal.
pub fn inspect(place: &dyn Place, file: &dyn Store, accept: Accept) -> Result<Option<Found>> {
    let Some(journal) = place.open()? else { return Ok(None) };
    check(&*journal, place, file, accept).map(Some)
}

fn check(journal: &dyn Store, place: &dyn Place, file: &dyn Store, accept: Accept) -> Result<Found> {
    let identity = match accept {
        Accept::Own => Some(place.identity()?),
        Accept::Copy => None,
    };
    let scan = Scan::read(journal, identity)?;
    let (least, most) = scan.lengths;
    let len = disk::len(file)?;
    if !(least..=most).contains(&len) {
        return Err(JournalError::FileLength { path: file.name(), len, least, most });
    }
    let replay = Replay::new(scan.index.plan(scan.last_commit), scan.file_len).size();
    Ok(Found { scan, replay })
}

/// Replays a file's journal, if there is one, and removes it.
///
/// # Errors
/// As for [`inspect`], with nothing changed; [`JournalError::Io`] if the file cannot be written, with the journal as it was.
pub fn recover(place: &dyn Place, file: &dyn Store, accept: Accept) -> Result<Option<Found>> {
    let Some(journal) = place.open()? else {
        // Perhaps it was removed a moment before the machine stopped, and the name is not durably gone.
        place.sync()?;
        return Ok(None);
    };
    let found = check(&*journal, place, file, accept)?;
    let scan = &found.scan;
    if sabotage::is(Sabotage::RetireFirst) {
        retire(place)?;
    }
    let mut replay = Replay::new(scan.index.plan(scan.last_commit), scan.file_len);
    while !replay.step(file, &*journal, &scan.header.salt)? {}
    if !sabotage::is(Sabotage::RetireFirst) {
        disk::sync(file)?;
        retire(place)?;
    }
    Ok(Some(found))
}

/// Removes a journal without replaying it: the file stays what it is, which may be a mixture of commits.
///
/// # Errors
/// What the file system answers.
pub fn discard(place: &dyn Place) -> Result<()> {
    retire(place)
}

/// Takes the journal away, for good.
pub(super) fn retire(place: &dyn Place) -> Result<()> {
    place.remove()?;
    if sabotage::is(Sabotage::NoRemovalSync) { Ok(()) } else { place.sync() }
}
