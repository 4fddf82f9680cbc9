//! What is tried with any bytes in a journal's place: the fuzzer of `fuzz/` and `tests/journal_reader.rs` call it.
//!
//! Random bytes would end at the first checksum. So the first byte of an input may ask that all checksums be made right
//! before the rest is read as a journal; what is then found behind them may still be anything. Or it asks that the rest be read as a
//! program that writes a journal: then the chain is right too, and what varies is what transactions do, and which of them
//! are named as durable.
//!
//! The oracle follows docs/journal-format.md in the simplest way: the entries that the reader tells of, transaction by
//! transaction, byte by byte, into a `Vec<u8>`.

use std::sync::Arc;

use mapwright::journal::format::{Anchor, Entry, HEAD, Header, Identity, Kind, RECORD, Record, Salt};
use mapwright::journal::scan::Scan;
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, inspect, recover};

use crate::disk::{Disk, DiskPlace};
use crate::rng::Rng;

const FILE: &str = "data";
const JOURNAL: &str = "data.mapwright-journal";
/// The longest file that is really made.
const MOST: u64 = 1 << 17;
/// In the first byte: checksums are made right.
pub const SEAL: u8 = 1;
/// In the first byte: the rest is a program.
pub const WRITE: u8 = 2;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The journal was refused, and nothing was changed.
    Refused,
    /// It was read; the file would be too long to make it here.
    Read,
    /// It was replayed, and the file is what the oracle says.
    Replayed,
}

/// An input to begin with: the journal that a short session leaves, drawn from a seed.
///
/// # Panics
/// When the journal does not do what it should on a disk without errors.
pub fn sample(seed: u64) -> Vec<u8> {
    let mut rng = Rng::stream(seed, 3);
    let disk = Disk::with_file(FILE, vec![1; 3 * 4096]);
    let limits = Limits { unit: 512, entry: 400, checkpoint: 2048 + 1024 * rng.below(4) };
    let file = Arc::new(disk.file(FILE).expect("it was just made"));
    let opened = AtomicFile::open(Arc::new(DiskPlace::new(&disk, FILE)), file, limits);
    let (atomic, _) = opened.expect("a disk without errors");
    let mut work = || -> Result<(), JournalError> {
        for _ in 0..rng.within(2..14) {
            let mut batch = atomic.begin();
            for _ in 0..rng.below(4) {
                let from = rng.below(atomic.len().max(1));
                let to = (from + 1 + rng.below(500)).min(atomic.len());
                batch.put(from, &vec![rng.next_u64() as u8; to.saturating_sub(from) as usize])?;
            }
            match rng.below(8) {
                0 => batch.spill()?,
                1 => drop(batch),
                2 => {
                    drop(batch);
                    atomic.rollback()?;
                }
                _ => drop(batch.commit()?),
            }
            match rng.below(6) {
                0 => atomic.set_len(rng.below(5 * 4096)),
                1 => drop(atomic.checkpoint()?),
                _ => {}
            }
        }
        Ok(())
    };
    work().expect("a disk without errors");
    let mut input = vec![0];
    input.extend(disk.contents(JOURNAL).expect("a journal is open"));
    input
}

/// Reads and replays one input.
///
/// # Panics
/// When something is wrong: that is what a fuzzer looks for.
pub fn try_journal(input: &[u8]) -> Outcome {
    let Some((flags, bytes)) = input.split_first() else { return Outcome::Refused };
    let mut bytes = if flags & WRITE != 0 { Writer::run(bytes) } else { bytes.to_vec() };
    if flags & SEAL != 0 {
        seal(&mut bytes);
    }
    let disk = Disk::default();
    disk.put_file(JOURNAL, bytes.clone());
    let Some(journal) = disk.file(JOURNAL).ok() else { return Outcome::Refused };
    let mut told = Vec::new();
    let scan = Scan::read_with(&journal, None, &mut |seen| told.push((seen.entry, seen.records.to_vec())));
    let Ok(scan) = scan.inspect_err(|error| assert!(!matches!(error, JournalError::Io { .. }), "{error}"))
    else {
        return Outcome::Refused;
    };
    if scan.lengths.1.max(scan.file_len).max(scan.anchor.file_len) > MOST {
        return Outcome::Read;
    }
    let base: Vec<u8> = (0..scan.anchor.file_len).map(|at| at as u8 | 1).collect();
    let expected = naive(&bytes, base.clone(), &told, scan.last_commit);
    disk.put_file(FILE, base.clone());
    let (place, Ok(file)) = (DiskPlace::new(&disk, FILE), disk.file(FILE)) else { return Outcome::Refused };
    let found = inspect(&place, &file, Accept::Copy);
    assert!(found.is_ok_and(|found| found.is_some()), "what the reader takes is not accepted");
    let contents = |name| disk.contents(name).unwrap_or_default();
    assert!(contents(FILE) == base && contents(JOURNAL) == bytes, "looking has changed something");
    let recovered = recover(&place, &file, Accept::Copy);
    assert!(recovered.is_ok(), "what was accepted is not replayed: {recovered:?}");
    let now = contents(FILE);
    assert_eq!(now.len(), expected.len(), "length");
    let differs = now.iter().zip(&expected).position(|(now, expected)| now != expected);
    assert_eq!(differs, None, "first byte that differs");
    assert!(disk.file(JOURNAL).is_err(), "the journal is left");
    Outcome::Replayed
}

/// The file after a commit, from entries in the order of the chain.
fn naive(journal: &[u8], mut file: Vec<u8>, told: &[(Entry, Vec<(u64, Record)>)], last: u64) -> Vec<u8> {
    let mut open: Vec<(u64, Record)> = Vec::new();
    for (entry, records) in told.iter().take_while(|(entry, _)| entry.sequence <= last) {
        if entry.begins {
            open.clear();
        }
        open.extend(records);
        if !matches!(entry.kind, Kind::Commit { .. }) {
            continue;
        }
        for (position, record) in open.drain(..) {
            match record {
                Record::Length(len) => file.resize(len as usize, 0),
                Record::Data { offset, len } => {
                    let data = &journal[position as usize + RECORD..][..len as usize];
                    file[offset as usize..][..len as usize].copy_from_slice(data);
                }
            }
        }
    }
    file
}

/// Writes a journal as an input says, byte by byte.
struct Writer {
    header: Header,
    journal: Vec<u8>,
    records: Vec<u8>,
    /// Number of the last entry, and numbers of commits.
    last: u64,
    commits: Vec<u64>,
    claim: usize,
    /// Whether no entry of the transaction was written yet.
    begins: bool,
    /// Length after the last commit, and now.
    committed_len: u64,
    len: u64,
}

impl Writer {
    const UNIT: u32 = 512;

    fn run(program: &[u8]) -> Vec<u8> {
        let mut next = program.iter().copied();
        let mut number = move || next.next().map(u64::from);
        let header = Header { unit: Self::UNIT, salt: Salt([5; 16]), identity: Identity::default() };
        let len = number().unwrap_or(0) * 97;
        let anchor = Anchor { counter: 1, start: header.base(), sequence: 0, file_len: len };
        let mut journal = vec![0; header.base() as usize];
        journal[..HEAD].copy_from_slice(&header.encode());
        let at = anchor.position(&header) as usize;
        journal[at..at + HEAD].copy_from_slice(&anchor.encode(&header.salt));
        let (records, commits) = (Vec::new(), vec![0]);
        let mut writer = Self {
            header,
            journal,
            records,
            last: 0,
            commits,
            claim: 0,
            begins: true,
            committed_len: len,
            len,
        };
        while let Some(operation) = number() {
            if writer.operate(operation, &mut number).is_none() || writer.journal.len() > 1 << 15 {
                break;
            }
        }
        writer.journal
    }

    /// One operation; `None` when there is nothing more to read.
    fn operate(&mut self, operation: u64, number: &mut impl FnMut() -> Option<u64>) -> Option<()> {
        match operation % 16 {
            0..=5 => {
                let offset = (number()? << 8 | number()?) % self.len.max(1);
                let most = (4096 - offset % 4096).min(self.len.saturating_sub(offset));
                let wanted = if operation.is_multiple_of(2) { 1 + number()? } else { 4096 };
                let (data, len) = (vec![operation as u8; wanted.min(most) as usize], wanted.min(most) as u32);
                if len > 0 {
                    self.push(Record::Data { offset, len }, &data);
                }
            }
            6..=8 => {
                self.len = number()? << 7 | number()?;
                self.push(Record::Length(self.len), &[]);
            }
            9 => self.end(Kind::Part, self.begins),
            // A rollback before it.
            10 => {
                let records = std::mem::take(&mut self.records);
                self.end(Kind::Part, self.begins);
                (self.len, self.records) = (self.committed_len, records);
                self.records.clear();
                self.begins = true;
            }
            11 => self.claim = self.commits.len() - 1,
            12 => {
                // A jump over some units.
                let to = self.journal.len() as u64 + u64::from(Self::UNIT) * (1 + number()? % 4);
                self.records.clear();
                self.end(Kind::Jump { to }, false);
                self.journal.resize(to as usize, 0);
            }
            _ => {
                self.end(Kind::Commit { file_len: self.len }, self.begins);
                self.commits.push(self.last);
                (self.committed_len, self.begins) = (self.len, true);
            }
        }
        Some(())
    }

    fn push(&mut self, record: Record, data: &[u8]) {
        record.append(&mut self.records, data, self.last + 1, &self.header.salt);
    }

    fn end(&mut self, kind: Kind, begins: bool) {
        let previous = self.last;
        self.last += 1;
        let entry = Entry {
            kind,
            begins,
            position: self.journal.len() as u64,
            sequence: self.last,
            previous,
            durable_commit: self.commits[self.claim],
            records: self.records.len() as u32,
        };
        self.journal.extend(entry.encode(&self.header.salt));
        self.journal.append(&mut self.records);
        self.journal.resize(self.journal.len().next_multiple_of(Self::UNIT as usize), 0);
        self.begins = begins && matches!(kind, Kind::Jump { .. });
    }
}

/// Makes the checksums right of everything that looks like a part of a journal.
fn seal(bytes: &mut [u8]) {
    let Some(head) = bytes.first_chunk_mut::<HEAD>() else { return };
    let mut salt = [0; 16];
    salt.copy_from_slice(&head[16..32]);
    let salt = Salt(salt);
    seal_head(head, &salt);
    let Ok(header) = Header::decode(&*head) else { return };
    let unit = header.unit as usize;
    for at in (unit..bytes.len()).step_by(unit) {
        let Some(head) = bytes[at..].first_chunk_mut::<HEAD>() else { return };
        if !matches!(&head[..4], b"MWan" | b"MWen") {
            continue;
        }
        seal_head(head, &salt);
        if &head[..4] == b"MWen" {
            let (sequence, len) = (u64_at(head, 16), u64::from(u32_at(head, 48)));
            let end = (at as u64 + HEAD as u64 + len).min(bytes.len() as u64) as usize;
            seal_records(&mut bytes[at + HEAD..end], sequence, &salt);
        }
    }
}

fn seal_head(head: &mut [u8; HEAD], salt: &Salt) {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&salt.0), &head[..HEAD - 4]);
    head[HEAD - 4..].copy_from_slice(&sum.to_le_bytes());
}

fn seal_records(mut bytes: &mut [u8], sequence: u64, salt: &Salt) {
    while bytes.len() >= RECORD {
        let len = (u32_at(bytes, 8) as usize).min(bytes.len() - RECORD);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&salt.0), &sequence.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, &bytes[..20]);
        let sum = crc32c::crc32c_append(sum, &bytes[RECORD..RECORD + len]);
        bytes[20..24].copy_from_slice(&sum.to_le_bytes());
        let next = (RECORD + len.next_multiple_of(8)).min(bytes.len());
        bytes = &mut bytes[next..];
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(array)
}

/// Changes an input in a way drawn by `rng`; `other` is one to take pieces of.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    const UNIT: usize = 512;
    for _ in 0..=rng.below(4) {
        if input.len() < 2 {
            input.extend_from_slice(other);
            return;
        }
        let at = rng.index(input.len());
        // Most of what matters lies in the first 96 bytes of a unit.
        let head = 1 + rng.index(input.len().div_ceil(UNIT)) * UNIT + rng.index(96);
        let at = if rng.below(3) > 0 { head.min(input.len() - 1) } else { at };
        match rng.below(8) {
            0 => input[at] ^= 1 << rng.below(8),
            1 => input[at] = [0, 1, 2, 3, 0x7f, 0x80, 0xff][rng.index(7)],
            2 => input.truncate(at),
            3 => {
                // One unit over another.
                let to = 1 + rng.index(input.len() / UNIT + 1) * UNIT;
                let from = 1 + rng.index(other.len() / UNIT + 1) * UNIT;
                let len = UNIT.min(input.len().saturating_sub(to)).min(other.len().saturating_sub(from));
                if len > 0 {
                    input[to..to + len].copy_from_slice(&other[from..from + len]);
                }
            }
            4 => {
                let value = [0, 1, 24, 512, 4096, 1 << 16, 1 << 31, u64::MAX >> 1, u64::MAX][rng.index(9)];
                let value = value.wrapping_add(rng.below(3)).to_le_bytes();
                let end = (at + 8).min(input.len());
                input[at..end].copy_from_slice(&value[..end - at]);
            }
            5 => {
                // A number that is somewhere else already.
                let (from, n) = (rng.index(input.len()), 8.min(input.len() - at));
                let n = n.min(input.len() - from);
                input.copy_within(from..from + n, at);
            }
            6 => input[at] = input[at].wrapping_add(1),
            _ => input[0] |= SEAL,
        }
    }
}
