//! The rule of the journal, asserted from outside, at the two stores: SQLite's `test_journal.c` does the same to its pager. What
//! this knows is the format and docs/decisions/0010-atomic-commit.md, and nothing of how the protocol is written.
//!
//! * Nothing is written to the file that no synced journal holds: every byte is one of a record whose entry, whose commit entry
//!   and an entry that names that commit as durable were synced before; or a zero where the file was cut or has grown.
//! * The file gets no length that is not in the synced journal.
//! * What a synced journal needs is not written again: no entry from the anchor on, and not the anchor that counts.
//! * An anchor is written only when the file has, synced, every byte of the commits before it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use mapwright::journal::disk::Place;
use mapwright::journal::error::Result as JournalResult;
use mapwright::journal::format::{Anchor, Entry, HEAD, Header, Identity, Kind, RECORD, Record, Salt};
use mapwright::journal::sabotage::{Sabotage, choose};
use mapwright::journal::scan::Scan;
use mapwright::journal::{AtomicFile, Limits};
use mapwright::stores::{MemoryStore, Store, Version};
use mapwright_sim::Rng;
use mapwright_sim::disk::{Disk, DiskPlace};

const PAGE: u64 = 4096;

/// What is known from outside.
#[derive(Default)]
struct Rule {
    /// The journal as it was synced last.
    synced: Vec<u8>,
    /// The file as it was synced last.
    synced_file: Vec<u8>,
    /// Writes to the file that were looked at, and writes to the journal.
    looked_at: (u64, u64),
}

/// What a synced journal allows.
struct Allowed {
    header: Header,
    anchor: Anchor,
    /// Entries from the anchor on: where each begins and ends.
    entries: Vec<(u64, u64)>,
    /// Records of commits that are named as durable: the commit, where, and the bytes.
    records: Vec<(u64, u64, Vec<u8>)>,
    lengths: Vec<u64>,
}

impl Allowed {
    fn by(journal: &[u8]) -> Self {
        let mut told: Vec<(Entry, Vec<(u64, Record)>)> = Vec::new();
        let store = MemoryStore::new(journal.to_vec());
        let scan = Scan::read_with(&store, None, &mut |seen| told.push((seen.entry, seen.records.to_vec())))
            .unwrap_or_else(|error| panic!("a synced journal is not read: {error}"));
        let (mut records, mut lengths, mut open) = (Vec::new(), vec![scan.anchor.file_len], Vec::new());
        for (entry, own) in &told {
            if entry.begins {
                open.clear();
            }
            open.extend(own.iter().copied());
            let Kind::Commit { file_len } = entry.kind else { continue };
            if entry.sequence > scan.claimed.0 {
                break;
            }
            lengths.push(file_len);
            for (at, record) in open.drain(..) {
                match record {
                    Record::Length(len) => lengths.push(len),
                    Record::Data { offset, len } => {
                        let at = at as usize + RECORD;
                        records.push((entry.sequence, offset, journal[at..at + len as usize].to_vec()));
                    }
                }
            }
        }
        let unit = u64::from(scan.header.unit);
        let end = |entry: &Entry| {
            let size = (HEAD as u64 + u64::from(entry.records)).next_multiple_of(unit);
            (entry.position, entry.position + size)
        };
        let entries = told.iter().map(|(entry, _)| end(entry)).collect();
        Self { header: scan.header, anchor: scan.anchor, entries, records, lengths }
    }

    /// Whether a byte of the file may be written.
    fn has(&self, at: u64, byte: u8) -> bool {
        let of =
            |(_, offset, bytes): &(u64, u64, Vec<u8>)| bytes.get(at.checked_sub(*offset)? as usize).copied();
        let shortest = self.lengths.iter().min().copied().unwrap_or(0);
        self.records.iter().any(|record| of(record) == Some(byte)) || (byte == 0 && at >= shortest)
    }
}

impl Allowed {
    /// Every byte of the commits up to one is in the file, or what replaced it.
    fn is_in(&self, file: &[u8], commit: u64) {
        for (_, offset, bytes) in self.records.iter().filter(|(of, ..)| *of <= commit) {
            for at in *offset..(offset + bytes.len() as u64).min(file.len() as u64) {
                let byte = file[at as usize];
                assert!(
                    self.has(at, byte),
                    "an anchor says that the file has byte {at}, which was not synced"
                );
            }
        }
    }
}

impl Rule {
    fn file_is_written(&mut self, offset: u64, bytes: &[u8]) {
        let allowed = Allowed::by(&self.synced);
        for (at, byte) in (offset..).zip(bytes) {
            assert!(
                allowed.has(at, *byte),
                "byte {at} of the file is written, and no synced journal holds it"
            );
        }
        self.looked_at.0 += 1;
    }

    fn file_gets_length(&mut self, len: u64) {
        let allowed = Allowed::by(&self.synced);
        assert!(allowed.lengths.contains(&len), "the file gets {len} bytes, which no synced journal says");
    }

    fn journal_is_written(&mut self, offset: u64, bytes: &[u8]) {
        if self.synced.is_empty() {
            return;
        }
        let (end, allowed) = (offset + bytes.len() as u64, Allowed::by(&self.synced));
        for (from, to) in &allowed.entries {
            assert!(end <= *from || offset >= *to, "a synced entry at {from} is written over");
        }
        let anchor = allowed.anchor.position(&allowed.header);
        assert!(end <= anchor || offset >= anchor + HEAD as u64, "the anchor that counts is written over");
        if offset < allowed.header.base() {
            let anchor = Anchor::decode(bytes, &allowed.header).unwrap();
            allowed.is_in(&self.synced_file, anchor.sequence);
        }
        self.looked_at.1 += 1;
    }
}

/// The file or its journal, with the rule before it.
struct Watched {
    store: Arc<dyn Store>,
    rule: Arc<Mutex<Rule>>,
    is_journal: bool,
}

impl Watched {
    fn rule<T>(&self, look: impl FnOnce(&mut Rule) -> T) -> T {
        look(&mut self.rule.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store for Watched {
    fn name(&self) -> String {
        self.store.name()
    }

    fn version(&self) -> io::Result<Version> {
        self.store.version()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.store.read_at(offset, buf)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        self.rule(|rule| match self.is_journal {
            true => rule.journal_is_written(offset, buf),
            false => rule.file_is_written(offset, buf),
        });
        self.store.write_at(offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.is_journal {
            self.rule(|rule| rule.file_gets_length(len));
        }
        self.store.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut bytes = vec![0; self.store.version()?.len as usize];
        let read = self.store.read_at(0, &mut bytes)?;
        assert_eq!(read, bytes.len());
        self.store.sync()?;
        self.rule(|rule| match self.is_journal {
            true => rule.synced = bytes,
            false => rule.synced_file = bytes,
        });
        Ok(())
    }

    fn is_local(&self) -> bool {
        true
    }

    fn lock(&self) -> io::Result<()> {
        self.store.lock()
    }
}

/// A place whose journals are watched.
struct WatchedPlace {
    place: DiskPlace,
    rule: Arc<Mutex<Rule>>,
}

impl WatchedPlace {
    fn watched(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Watched { store, rule: Arc::clone(&self.rule), is_journal: true })
    }
}

impl Place for WatchedPlace {
    fn name(&self) -> String {
        self.place.name()
    }

    fn identity(&self) -> JournalResult<Identity> {
        self.place.identity()
    }

    fn salt(&self) -> JournalResult<Salt> {
        self.place.salt()
    }

    fn open(&self) -> JournalResult<Option<Arc<dyn Store>>> {
        Ok(self.place.open()?.map(|journal| self.watched(journal)))
    }

    fn create(&self) -> JournalResult<Arc<dyn Store>> {
        // Another one: what the last one held is in the file.
        self.rule.lock().unwrap_or_else(PoisonError::into_inner).synced.clear();
        self.place.create().map(|journal| self.watched(journal))
    }

    fn publish(&self) -> JournalResult<()> {
        self.place.publish()
    }

    fn replace(&self) -> JournalResult<()> {
        self.place.replace()
    }

    fn remove(&self) -> JournalResult<()> {
        self.place.remove()
    }

    fn confirm(&self) -> JournalResult<()> {
        self.place.confirm()
    }

    fn sync(&self) -> JournalResult<()> {
        self.place.sync()
    }
}

/// A program drawn from a seed; panics where it breaks the rule.
fn run(seed: u64) -> (u64, u64) {
    let mut rng = Rng::stream(seed, 9);
    let disk = Disk::with_file("data", vec![1; 5 * PAGE as usize]);
    let rule = Arc::new(Mutex::new(Rule::default()));
    let store: Arc<dyn Store> = Arc::new(disk.file("data").unwrap());
    let file = Arc::new(Watched { store, rule: Arc::clone(&rule), is_journal: false });
    let place = WatchedPlace { place: DiskPlace::new(&disk, "data"), rule: Arc::clone(&rule) };
    let limits = Limits { unit: 512, entry: [700, 6000][rng.index(2)], checkpoint: 512 * rng.within(8..50) };
    let atomic = AtomicFile::open(Arc::new(place), file, limits).unwrap().0;
    let mut checkpoint = None;
    for _ in 0..60 {
        let mut batch = atomic.begin();
        for _ in 0..rng.below(4) {
            let from = rng.below(atomic.len().max(1));
            let len = [rng.below(100), PAGE][rng.index(2)].min(atomic.len() - from);
            batch.put(from, &vec![rng.within(2..256) as u8; len as usize]).unwrap();
        }
        match rng.below(10) {
            0 | 1 => batch.spill().unwrap(),
            2 => drop(batch),
            3 => {
                drop(batch);
                atomic.rollback().unwrap();
            }
            4 => {
                drop(batch);
                atomic.set_len(rng.below(7 * PAGE));
            }
            _ => drop(batch.commit().unwrap()),
        }
        checkpoint = match checkpoint.take() {
            None if rng.below(3) == 0 || atomic.wants_checkpoint() => atomic.begin_checkpoint(),
            None => None,
            Some(running) => {
                let mut running: mapwright::journal::Checkpoint<'_> = running;
                if running.step().unwrap() {
                    running.finish().unwrap();
                    None
                } else {
                    Some(running)
                }
            }
        };
    }
    drop(checkpoint);
    atomic.close().unwrap();
    rule.lock().unwrap().looked_at
}

/// One test: what is sabotaged is chosen for the whole process.
#[test]
fn nothing_is_written_to_the_file_before_the_journal_that_holds_it_is_synced() {
    let mut looked_at = (0, 0);
    for seed in 0..40 {
        let (file, journal) = run(seed);
        looked_at = (looked_at.0 + file, looked_at.1 + journal);
    }
    assert!(looked_at.0 > 500 && looked_at.1 > 1500, "{looked_at:?}");
    // The rule finds what it is for.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for sabotage in [
        Sabotage::NoCommitSync,
        Sabotage::CheckpointUncommitted,
        Sabotage::CheckpointUnclaimed,
        Sabotage::NoFileSync,
        Sabotage::EarlyReuse,
        Sabotage::OneAnchor,
    ] {
        choose(Some(sabotage));
        let found = (0..40).find_map(|seed| std::panic::catch_unwind(|| run(seed)).err());
        match found {
            Some(why) => {
                let text = why.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| why.downcast_ref::<&str>().copied());
                println!("{sabotage:?}: {}", text.unwrap_or("panic"));
            }
            None => missed.push(sabotage),
        }
    }
    choose(None);
    std::panic::set_hook(hook);
    assert!(missed.is_empty(), "the rule does not see {missed:?}");
}
