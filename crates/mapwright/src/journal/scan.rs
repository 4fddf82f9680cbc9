//! Reading a journal: what it holds, where it ends, and whether that end was torn or damaged. Changes nothing.
//!
//! The five steps are those of docs/journal-format.md, "Reading".

use std::ops::Range;

use super::disk::Window;
use super::error::{JournalError, Result};
use super::format::{Anchor, Entry, HEAD, Header, Identity, Kind, Malformed, PAGE, RECORD, Record, VERSION};
use super::index::{Index, Piece, RecordAt};
use super::sabotage::{self, Sabotage};
use crate::stores::Store;

/// One entry of the chain, as [`Scan::read_with`] tells of it.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Its head.
    pub entry: Entry,
    /// Its records, with their positions.
    pub records: &'a [(u64, Record)],
}

/// What a journal holds.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Its header.
    pub header: Header,
    /// The anchor that counts.
    pub anchor: Anchor,
    /// What its commits changed.
    pub index: Index,
    /// Commits after the anchor.
    pub commits: u64,
    /// Sequence number of the last commit; the anchor's if there is none after it.
    pub last_commit: u64,
    /// Length of the file after the last commit, in bytes.
    pub file_len: u64,
    /// The newest commit that an entry names as durable: what comes after it may be in the kernel's cache only. With the
    /// length of the file after it.
    pub claimed: (u64, u64),
    /// The least and the most that the file's length can be, whatever part of the journal was replayed.
    pub lengths: (u64, u64),
    /// Position behind the last commit.
    pub end: u64,
    /// Entries after the last commit, which were never acknowledged.
    pub tail_entries: u64,
    /// Bytes of the journal.
    pub bytes: u64,
}

/// What the records of a transaction that has not ended did.
struct Open {
    index: Index,
    len: u64,
    lengths: (u64, u64),
    entries: u64,
}

/// What was followed of the chain: entries whose heads and records are right.
struct Chain {
    /// Where they lie, in bytes; those that touch joined.
    runs: Vec<Range<u64>>,
    /// The newest commit that one of them names as durable.
    named: u64,
}

impl Scan {
    /// Reads a journal.
    ///
    /// # Errors
    /// See [`JournalError`]: whatever is not a journal of this version for the file `identity`, or is damaged. `None` for the
    /// identity takes any.
    pub fn read(journal: &dyn Store, identity: Option<Identity>) -> Result<Self> {
        Self::read_with(journal, identity, &mut |_| {})
    }

    /// As [`read`](Self::read), and tells of every entry of the chain, the tail's too.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_with(
        journal: &dyn Store,
        identity: Option<Identity>,
        tell: &mut dyn FnMut(&Seen<'_>),
    ) -> Result<Self> {
        let name = journal.name();
        let mut window = Window::new(journal)?;
        let header = read_header(&mut window, &name, identity)?;
        let anchor = read_anchor(&mut window, &name, &header)?;
        let mut scan = Self {
            header,
            anchor,
            index: Index::default(),
            commits: 0,
            last_commit: anchor.sequence,
            file_len: anchor.file_len,
            claimed: (anchor.sequence, anchor.file_len),
            lengths: (anchor.file_len, anchor.file_len),
            end: anchor.start,
            tail_entries: 0,
            bytes: window.len(),
        };
        let chain = scan.follow(&mut window, &name, tell)?;
        if let Some(at) = scan.find_damage(&mut window, chain)?
            && !sabotage::is(Sabotage::BlindToDamage)
        {
            let what = "a later entry proves that a commit was durable which cannot be read";
            return Err(JournalError::damaged(name, at, what));
        }
        Ok(scan)
    }

    /// Follows the chain from the anchor to where it ends.
    fn follow(
        &mut self,
        window: &mut Window<'_>,
        name: &str,
        tell: &mut dyn FnMut(&Seen<'_>),
    ) -> Result<Chain> {
        let mut position = self.anchor.start;
        let mut previous = self.anchor.sequence;
        let mut chain = Chain { runs: Vec::new(), named: 0 };
        let mut open = self.begin();
        let mut records = Vec::new();
        while let Some(entry) = self.chained(window, name, position, previous)? {
            records.clear();
            if !self.records(window, name, &entry, &mut records)? {
                break;
            }
            tell(&Seen { entry, records: &records });
            chain.add(&entry, entry.size(&self.header));
            // Of the commits, which are in order, the last that was read is the only one that can be named now.
            if entry.durable_commit == self.last_commit {
                self.claimed = (self.last_commit, self.file_len);
            }
            if entry.begins {
                open = Open { entries: open.entries, ..self.begin() };
            }
            for (at, record) in &records {
                open.add(*at, record, entry.sequence)
                    .map_err(|what| JournalError::damaged(name, *at, what))?;
            }
            previous = entry.sequence;
            position = match entry.kind {
                Kind::Jump { to } => to,
                Kind::Part | Kind::Commit { .. } => position + entry.size(&self.header),
            };
            open.entries += 1;
            if let Kind::Commit { file_len } = entry.kind {
                if open.len != file_len {
                    return Err(JournalError::damaged(
                        name,
                        entry.position,
                        "a commit's length is not that of its records",
                    ));
                }
                self.close(open, &entry, position);
                open = self.begin();
            }
        }
        self.tail_entries = open.entries;
        if sabotage::is(Sabotage::ReplayTail) && open.entries > 0 {
            self.index.absorb(open.index, u64::MAX - 1, 0);
            (self.file_len, self.lengths) = (open.len, open.lengths);
            self.last_commit = u64::MAX - 1;
        }
        Ok(chain)
    }

    fn begin(&self) -> Open {
        Open { index: Index::default(), len: self.file_len, lengths: self.lengths, entries: 0 }
    }

    fn close(&mut self, open: Open, entry: &Entry, end: u64) {
        // Recovery asks for what is claimed, and for the last.
        self.index.absorb(open.index, entry.sequence, self.claimed.0);
        self.commits += 1;
        self.last_commit = entry.sequence;
        (self.file_len, self.lengths, self.end) = (open.len, open.lengths, end);
    }

    /// The entry at `position`, if it continues the chain.
    fn chained(
        &self,
        window: &mut Window<'_>,
        name: &str,
        position: u64,
        previous: u64,
    ) -> Result<Option<Entry>> {
        let Some(bytes) = window.get(position, HEAD)? else { return Ok(None) };
        let entry = match Entry::decode(bytes, &self.header) {
            Ok(entry) => entry,
            Err(Malformed::Unknown(what)) => return Err(JournalError::damaged(name, position, what)),
            Err(_) => return Ok(None),
        };
        let follows = entry.position == position && entry.previous == previous && entry.sequence > previous;
        Ok(Some(entry).filter(|_| follows))
    }

    /// Reads the records of an entry; `false` if they are not all right.
    fn records(
        &self,
        window: &mut Window<'_>,
        name: &str,
        entry: &Entry,
        into: &mut Vec<(u64, Record)>,
    ) -> Result<bool> {
        let mut at = entry.position + HEAD as u64;
        let end = at + u64::from(entry.records);
        if end > window.len() {
            return Ok(false);
        }
        while at < end {
            let Some(head) = window.get(at, RECORD)? else { return Ok(false) };
            let record = match Record::decode(head) {
                Ok(record) => record,
                Err(malformed) => return self.unknown_record(window, name, at, entry, malformed),
            };
            if at + record.size() as u64 > end {
                return Ok(false);
            }
            let Some(bytes) = window.get(at, RECORD + record.data_len())? else { return Ok(false) };
            let verified = Record::verify(bytes, record.data_len(), entry.sequence, &self.header.salt);
            if verified.is_err() && !sabotage::is(Sabotage::TrustRecords) {
                return Ok(false);
            }
            into.push((at, record));
            at += record.size() as u64;
        }
        Ok(true)
    }

    /// A record that can't be read: refused if its checksum says that it was written so, torn otherwise.
    fn unknown_record(
        &self,
        window: &mut Window<'_>,
        name: &str,
        at: u64,
        entry: &Entry,
        malformed: Malformed,
    ) -> Result<bool> {
        let Malformed::Unknown(what) = malformed else { return Ok(false) };
        let len =
            window.get(at, RECORD)?.and_then(|head| head.get(8..12)?.try_into().ok()).map(u32::from_le_bytes);
        // No writer of this version makes longer ones: the length is of torn bytes, or meant to use up memory.
        let longest = entry.records.min(PAGE as u32);
        let Some(len) = len.filter(|len| *len <= longest) else { return Ok(false) };
        let Some(bytes) = window.get(at, RECORD + len as usize)? else { return Ok(false) };
        match Record::verify(bytes, len as usize, entry.sequence, &self.header.salt) {
            Ok(()) => Err(JournalError::damaged(name, at, what)),
            Err(_) => Ok(false),
        }
    }

    /// Looks for an entry that knows a commit to be durable which the chain has not reached; where the chain's last commit ends if
    /// there is one. Every unit may begin one, but for those inside an entry of the chain: these are known to be data.
    fn find_damage(&self, window: &mut Window<'_>, mut chain: Chain) -> Result<Option<u64>> {
        if chain.named > self.last_commit {
            return Ok(Some(self.end));
        }
        chain.runs.sort_unstable_by_key(|run| run.start);
        let mut known = chain.runs.into_iter().peekable();
        let mut at = self.header.base();
        loop {
            while let Some(run) = known.next_if(|run| run.start <= at) {
                at = at.max(run.end);
            }
            let Some(bytes) = window.get(at, HEAD)? else { return Ok(None) };
            let proves = |entry: Entry| entry.position == at && entry.durable_commit > self.last_commit;
            if Entry::decode(bytes, &self.header).is_ok_and(proves) {
                return Ok(Some(self.end));
            }
            at += u64::from(self.header.unit);
        }
    }
}

impl Chain {
    fn add(&mut self, entry: &Entry, size: u64) {
        self.named = self.named.max(entry.durable_commit);
        let end = entry.position + size;
        match self.runs.last_mut() {
            Some(last) if last.end == entry.position => last.end = end,
            _ => self.runs.push(entry.position..end),
        }
    }
}

impl Open {
    fn add(&mut self, at: u64, record: &Record, sequence: u64) -> std::result::Result<(), &'static str> {
        match *record {
            Record::Length(len) => {
                if len < self.len {
                    self.index.cut(len, 0);
                }
                self.len = len;
                self.lengths = (self.lengths.0.min(len), self.lengths.1.max(len));
            }
            Record::Data { offset, len } => {
                if offset + u64::from(len) > self.len {
                    return Err("a record past the end of the file");
                }
                let at = RecordAt { position: at, sequence, data_len: len };
                self.index.data(Piece { offset, len, at }, 0);
            }
        }
        Ok(())
    }
}

fn read_header(window: &mut Window<'_>, name: &str, identity: Option<Identity>) -> Result<Header> {
    let not_a_journal = || JournalError::NotAJournal { path: name.to_owned() };
    let bytes = window.get(0, HEAD)?.ok_or_else(not_a_journal)?;
    let header = match Header::decode(bytes) {
        Ok(header) => header,
        Err(Malformed::Magic | Malformed::Short) => return Err(not_a_journal()),
        Err(Malformed::Version(version)) => {
            return Err(JournalError::OtherVersion { path: name.to_owned(), version, known: VERSION });
        }
        Err(Malformed::Checksum) => return Err(JournalError::damaged(name, 0, "the checksum of the header")),
        Err(Malformed::Unknown(what)) => return Err(JournalError::damaged(name, 0, what)),
    };
    match identity {
        Some(here) if here != header.identity => Err(JournalError::OtherFile {
            path: name.to_owned(),
            inode: header.identity.inode,
            born_ns: header.identity.born_ns,
            inode_here: here.inode,
            born_here_ns: here.born_ns,
        }),
        _ => Ok(header),
    }
}

fn read_anchor(window: &mut Window<'_>, name: &str, header: &Header) -> Result<Anchor> {
    let mut newest: Option<Anchor> = None;
    for unit in [1, 2] {
        let position = unit * u64::from(header.unit);
        let Some(bytes) = window.get(position, HEAD)? else { continue };
        match Anchor::decode(bytes, header) {
            Ok(anchor) if newest.is_none_or(|newest| newest.counter < anchor.counter) => {
                newest = Some(anchor)
            }
            Err(Malformed::Unknown(what)) => return Err(JournalError::damaged(name, position, what)),
            Ok(_) | Err(_) => {}
        }
    }
    newest.ok_or_else(|| JournalError::damaged(name, u64::from(header.unit), "neither anchor can be read"))
}
