//! What becomes of a journal that is found when a file is opened.
//!
//! First everything is checked, then the file is written and synced, then the journal is removed and the directory synced.
//! Who is killed on the way has changed nothing that the next one would not do again. The file's lock is taken first.
//!
//! What is read may be in the kernel's cache and not on the disk: the program was killed before its sync, or its sync had
//! failed, after which the cache is called clean and syncing proves nothing. To replay that, and lose power, would leave a part of a
//! commit in the file and none of it in the journal. Commits that a later entry names as durable are; what comes after them,
//! mostly one commit, is written anew, to a journal that takes the place of the first, before it is replayed (2).

use std::sync::Arc;

use super::disk::{self, Place};
use super::error::{JournalError, Result};
use super::format::{Anchor, Entry, HEAD, Header, Kind, PAGE, Record};
use super::replay::{Pace, Replay, Replayed};
use super::sabotage::{self, Sabotage};
use super::scan::Scan;
use crate::stores::Store;

/// Bytes of records in an entry that recovery writes, or a little more; and what it writes to the file at once.
const ENTRY: usize = 1 << 20;

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
    let replay = {
        let plan = scan.index.plan(scan.last_commit);
        Replay::new(plan, scan.anchor.file_len, scan.file_len, ENTRY, Pace::Fast).size()
    };
    Ok(Found { scan, replay })
}

/// Takes the file's lock, for as long as the store is open; replays its journal, if there is one, and removes it.
///
/// # Errors
/// As for [`inspect`], and [`JournalError::Refused`] where another program has the file's lock, with nothing changed;
/// [`JournalError::Io`] if file or journal cannot be written: the next one goes on.
pub fn recover(place: &dyn Place, file: &dyn Store, accept: Accept) -> Result<Option<Found>> {
    disk::lock(file)?;
    // Between opening and locking somebody may have put another file in its place.
    place.confirm()?;
    let Some(journal) = place.open()? else {
        // Perhaps it was removed a moment before the machine stopped, and the name is not durably gone; or one was begun.
        place.remove()?;
        if !sabotage::is(Sabotage::NoGoneSync) {
            place.sync()?;
        }
        return Ok(None);
    };
    let found = check(&*journal, place, file, accept)?;
    let scan = &found.scan;
    if sabotage::is(Sabotage::RetireFirst) {
        retire(place)?;
    }
    make_found_durable(place, &*journal)?;
    let (base_len, (claimed, claimed_len)) = (scan.anchor.file_len, scan.claimed);
    let bring =
        |commit, file_len| Replay::new(scan.index.plan(commit), base_len, file_len, ENTRY, Pace::Fast);
    if scan.last_commit > claimed && !sabotage::is(Sabotage::TrustCache) {
        let mut first = bring(claimed, claimed_len);
        write_all(file, &*journal, scan, &mut first)?;
        if !sabotage::is(Sabotage::NoClaimedSync) {
            disk::sync(file)?;
        }
        // Pages in whole, where the file is unsure: a recovery that found more in the kernel's cache than there is now may have
        // begun to write them, and left anything beyond the end of the file.
        let rest = scan.index.plan_between(claimed, scan.last_commit);
        let rest = Replay::new(rest, base_len, scan.file_len, ENTRY, Pace::Fast);
        log_anew(place, &*journal, scan, &rest)?;
        replay(file, &*journal, scan, rest)?;
    } else {
        replay(file, &*journal, scan, bring(scan.last_commit, scan.file_len))?;
    }
    if !sabotage::is(Sabotage::RetireFirst) {
        retire(place)?;
    }
    Ok(Some(found))
}

/// Makes durable what the file is about to depend on: a recovery that was killed after it had put a new journal in the place
/// of an old one may have left the new name in the kernel's cache only, and a program that was killed the entry that names the
/// last commit as durable. A copy of a journal may not have been synced at all.
fn make_found_durable(place: &dyn Place, journal: &dyn Store) -> Result<()> {
    if sabotage::is(Sabotage::NoFoundNameSync) {
        return Ok(());
    }
    if !sabotage::is(Sabotage::NoFoundSync) {
        disk::sync(journal)?;
    }
    place.sync()
}

/// Brings the file to a commit, durably.
fn replay(file: &dyn Store, journal: &dyn Store, scan: &Scan, mut replay: Replay) -> Result<()> {
    write_all(file, journal, scan, &mut replay)?;
    if sabotage::is(Sabotage::RetireFirst) { Ok(()) } else { disk::sync(file) }
}

fn write_all(file: &dyn Store, journal: &dyn Store, scan: &Scan, replay: &mut Replay) -> Result<()> {
    while !replay.step(file, journal, &scan.header.salt)? {}
    Ok(())
}

/// Writes what follows the claimed commit to a new journal, as one commit, and puts that in the place of the old one.
fn log_anew(place: &dyn Place, old: &dyn Store, scan: &Scan, rest: &Replay) -> Result<()> {
    let header = Header { unit: scan.header.unit, salt: place.salt()?, identity: place.identity()? };
    let anchor = Anchor { counter: 1, start: header.base(), sequence: 0, file_len: scan.claimed.1 };
    let journal = place.create()?;
    write_beginning(&*journal, &header, &anchor)?;
    let mut log = Log {
        journal,
        header,
        position: header.base(),
        sequence: 0,
        durable_commit: 0,
        buffer: vec![0; HEAD],
    };
    rest.cut().into_iter().for_each(|len| log.push(Record::Length(len), &[]));
    log.push(Record::Length(scan.file_len), &[]);
    let (mut next, mut image) = (0, vec![0; PAGE as usize]);
    while let Some(of_page) = rest.page(old, &scan.header.salt, next, &mut image)? {
        next = of_page.next;
        if log.buffer.len() >= ENTRY {
            log.write(Kind::Part)?;
        }
        for range in of_page.ranges {
            let record = Record::Data { offset: of_page.start + range.start as u64, len: range.len() as u32 };
            log.push(record, &image[range]);
        }
    }
    log.write(Kind::Commit { file_len: scan.file_len })?;
    // Named as durable, so that damage to it is found while the file has a part of it. It is by the time the journal has its name.
    log.durable_commit = log.sequence;
    log.write(Kind::Part)?;
    if !sabotage::is(Sabotage::NoAnewSync) {
        disk::sync(&*log.journal)?;
    }
    place.replace()?;
    if sabotage::is(Sabotage::NoReplaceSync) { Ok(()) } else { place.sync() }
}

/// A journal with one transaction.
struct Log {
    journal: Arc<dyn Store>,
    header: Header,
    position: u64,
    /// Numbers of the last entry, and of the commit that is durable.
    sequence: u64,
    durable_commit: u64,
    /// Room for an entry's head, then records.
    buffer: Vec<u8>,
}

impl Log {
    fn push(&mut self, record: Record, data: &[u8]) {
        record.append(&mut self.buffer, data, self.sequence + 1, &self.header.salt);
    }

    fn write(&mut self, kind: Kind) -> Result<()> {
        let (previous, begins) = (self.sequence, self.sequence == self.durable_commit);
        self.sequence += 1;
        let entry = Entry {
            kind,
            begins,
            position: self.position,
            sequence: self.sequence,
            previous,
            durable_commit: self.durable_commit,
            records: (self.buffer.len() - HEAD) as u32,
        };
        self.buffer[..HEAD].copy_from_slice(&entry.encode(&self.header.salt));
        self.buffer.resize(entry.size(&self.header) as usize, 0);
        disk::write(&*self.journal, self.position, &self.buffer)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.resize(HEAD, 0);
        Ok(())
    }
}

/// Writes header and anchor of a new journal.
pub(super) fn write_beginning(journal: &dyn Store, header: &Header, anchor: &Anchor) -> Result<()> {
    let unit = header.unit as usize;
    let mut bytes = vec![0; 3 * unit];
    bytes[..HEAD].copy_from_slice(&header.encode());
    bytes[unit..unit + HEAD].copy_from_slice(&anchor.encode(&header.salt));
    disk::write(journal, 0, &bytes)
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
