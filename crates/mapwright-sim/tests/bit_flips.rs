//! Every bit of a journal, flipped: what docs/fault-model.md promises for the place where it lies, and nothing else.

use std::sync::Arc;

use mapwright::journal::format::{Entry, HEAD, Header, Kind, RECORD, Record};
use mapwright::journal::scan::Scan;
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, recover};
use mapwright_sim::disk::{Disk, DiskPlace};

const FILE: &str = "data";
const JOURNAL: &str = "data.mapwright-journal";
const UNIT: usize = 512;

/// A file of one page after three commits, of which the file has two already, and its journal.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let disk = Disk::with_file(FILE, vec![1; 4096]);
    let limits = Limits { unit: UNIT as u32, entry: 700, checkpoint: 1 << 20 };
    let file = Arc::new(disk.file(FILE).unwrap());
    let (atomic, _) = AtomicFile::open(Arc::new(DiskPlace::new(&disk, FILE)), file, limits).unwrap();
    for value in [2, 3, 4] {
        let mut batch = atomic.begin();
        batch.put(0, &[value; 40]).unwrap();
        batch.put(1000, &[value; 600]).unwrap();
        batch.commit().unwrap();
        if value == 3 {
            atomic.checkpoint().unwrap();
        }
    }
    (disk.contents(FILE).unwrap(), disk.contents(JOURNAL).unwrap())
}

fn recovered(file: &[u8], journal: Vec<u8>) -> Result<Vec<u8>, JournalError> {
    let disk = Disk::default();
    disk.put_file(FILE, file.to_vec());
    disk.put_file(JOURNAL, journal.clone());
    let outcome = recover(&DiskPlace::new(&disk, FILE), &disk.file(FILE).unwrap(), Accept::Copy);
    let now = disk.contents(FILE).unwrap();
    if outcome.is_err() {
        assert!(now == file && disk.contents(JOURNAL).unwrap() == journal, "a refusal has changed something");
    }
    outcome.map(|_| now)
}

/// What a flipped bit may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Nothing is there.
    NoMatter,
    /// Refused.
    Found,
    /// The anchor that counts: refused, or the other one serves, whose entries are still there.
    FoundOrOther,
    /// The newest commit, which no entry names as durable: looks like a torn one.
    Before,
}

#[test]
fn every_flipped_bit_does_what_is_promised() {
    for claimed in [false, true] {
        let (file, mut journal) = sample();
        if claimed {
            // Somebody named the last commit as durable: from then on damage to it is found.
            journal = with_claim(&journal);
        }
        let intact = recovered(&file, journal.clone()).unwrap();
        let header = Header::decode(&journal).unwrap();
        let scan = Scan::read(&mapwright::stores::MemoryStore::new(journal.clone()), None).unwrap();
        let mut before = file.clone();
        before[..40].fill(3);
        before[1000..1600].fill(3);
        let mut counts = [0; 4];
        for at in 0..journal.len() {
            let promise = promised(&journal, &header, &scan, at, claimed);
            counts[promise as usize] += 1;
            for bit in 0..8 {
                let mut flipped = journal.clone();
                flipped[at] ^= 1 << bit;
                let outcome = recovered(&file, flipped);
                let is_kept = match (promise, &outcome) {
                    (Promise::NoMatter, Ok(bytes)) => *bytes == intact,
                    (Promise::Found, Err(_)) => true,
                    (Promise::FoundOrOther, Err(_)) => true,
                    (Promise::FoundOrOther, Ok(bytes)) => *bytes == intact,
                    (Promise::Before, Ok(bytes)) => *bytes == before,
                    _ => false,
                };
                assert!(is_kept, "bit {bit} of byte {at}, {promise:?}, claimed: {claimed}: {outcome:?}");
            }
        }
        println!("bytes by promise: {counts:?}");
        assert!(counts[Promise::Found as usize] >= 64 && counts[Promise::FoundOrOther as usize] == 64);
        assert_eq!(counts[Promise::Before as usize] > 600, !claimed);
    }
}

/// What is promised for a byte.
fn promised(journal: &[u8], header: &Header, scan: &Scan, at: usize, claimed: bool) -> Promise {
    let anchor = scan.anchor.position(header) as usize;
    if at < HEAD {
        return Promise::Found;
    }
    if (anchor..anchor + HEAD).contains(&at) {
        return Promise::FoundOrOther;
    }
    // From the anchor on, entry by entry.
    let mut position = scan.anchor.start as usize;
    while let Some(entry) =
        journal.get(position..position + HEAD).and_then(|head| Entry::decode(head, header).ok())
    {
        let used = HEAD + entry.records as usize;
        if (position..position + used).contains(&at) {
            return match (is_padding(journal, position, used, at), entry.sequence <= scan.last_commit) {
                // Behind the newest commit there is only the entry that names it: without it, it is the newest again.
                (true, _) | (_, false) => Promise::NoMatter,
                (false, true) if claimed => Promise::Found,
                (false, true) => Promise::Before,
            };
        }
        position += entry.size(header) as usize;
    }
    Promise::NoMatter
}

/// Whether a byte is one of those after a record's data, up to a multiple of 8.
fn is_padding(journal: &[u8], position: usize, used: usize, byte: usize) -> bool {
    let mut at = position + HEAD;
    while at < position + used {
        let record = Record::decode(&journal[at..]).unwrap();
        let data_end = at + RECORD + record.data_len();
        if (data_end..at + record.size()).contains(&byte) {
            return true;
        }
        at += record.size();
    }
    false
}

/// The journal with an empty entry behind its last, which names that as durable.
fn with_claim(journal: &[u8]) -> Vec<u8> {
    let mut bytes = journal.to_vec();
    let header = Header::decode(&bytes).unwrap();
    let mut last = None;
    let store = mapwright::stores::MemoryStore::new(bytes.clone());
    let scan = Scan::read_with(&store, None, &mut |seen| last = Some(seen.entry)).unwrap();
    let last = last.unwrap();
    let position = last.position + last.size(&header);
    let claim = Entry {
        kind: Kind::Part,
        begins: true,
        position,
        sequence: last.sequence + 1,
        previous: last.sequence,
        durable_commit: scan.last_commit,
        records: 0,
    };
    bytes.resize(bytes.len().max(position as usize + UNIT), 0);
    bytes[position as usize..][..HEAD].copy_from_slice(&claim.encode(&header.salt));
    bytes
}

/// The file has no checksums: docs/fault-model.md says so, and so does this.
#[test]
fn a_flipped_bit_of_the_file_is_not_found() {
    let (mut file, journal) = sample();
    let intact = recovered(&file, journal.clone()).unwrap();
    file[3000] ^= 1;
    let flipped = recovered(&file, journal).unwrap();
    assert_eq!(flipped.iter().zip(&intact).filter(|(a, b)| a != b).count(), 1);
}
