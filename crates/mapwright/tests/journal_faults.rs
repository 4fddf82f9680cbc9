//! Commits on real file systems that fail: every write, sync and change of a name with EIO in turn; a disk that is full; a
//! program that is killed. On the file system of the scratch folder, and on ext4, XFS and btrfs in loop devices where the machine
//! has them.

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::journal::{Sample, parts};
use common::{PAGE, Rng};
use mapwright::journal::error::Result as JournalResult;
use mapwright::journal::format::{Identity, Salt};
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, Place, recover};
use mapwright::stores::{FileStore, Store, Version};

const LIMITS: Limits = Limits { unit: 4096, entry: 20_000, checkpoint: 96 << 10 };

/// Which operation fails, of those that change something.
struct Fault {
    done: AtomicU64,
    at: u64,
    /// It takes effect all the same.
    takes_effect: bool,
}

impl Fault {
    fn on<T, E>(&self, operation: impl FnOnce() -> Result<T, E>, failed: impl FnOnce() -> E) -> Result<T, E> {
        if self.done.fetch_add(1, Ordering::SeqCst) != self.at {
            return operation();
        }
        if self.takes_effect {
            drop(operation());
        }
        Err(failed())
    }
}

/// A store in front of a real file.
struct Faulty {
    store: Arc<dyn Store>,
    fault: Arc<Fault>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Store for Faulty {
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
        self.fault.on(|| self.store.write_at(offset, buf), eio)
    }

    fn write_out(&self, range: Range<u64>) -> io::Result<()> {
        self.fault.on(|| self.store.write_out(range), eio)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fault.on(|| self.store.set_len(len), eio)
    }

    fn sync(&self) -> io::Result<()> {
        self.fault.on(|| self.store.sync(), eio)
    }

    fn is_local(&self) -> bool {
        true
    }

    fn lock(&self) -> io::Result<()> {
        self.store.lock()
    }
}

/// A place in front of a real folder.
struct FaultyPlace {
    place: Arc<dyn Place>,
    fault: Arc<Fault>,
}

impl FaultyPlace {
    fn on<T>(&self, operation: impl FnOnce(&dyn Place) -> JournalResult<T>) -> JournalResult<T> {
        let failed = || JournalError::io("injected", self.place.name(), 0, eio());
        self.fault.on(|| operation(&*self.place), failed)
    }

    fn faulty(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Faulty { store, fault: Arc::clone(&self.fault) })
    }
}

impl Place for FaultyPlace {
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
        Ok(self.place.open()?.map(|journal| self.faulty(journal)))
    }

    fn create(&self) -> JournalResult<Arc<dyn Store>> {
        self.on(|place| place.create()).map(|journal| self.faulty(journal))
    }

    fn publish(&self) -> JournalResult<()> {
        self.on(|place| place.publish())
    }

    fn replace(&self) -> JournalResult<()> {
        self.on(|place| place.replace())
    }

    fn remove(&self) -> JournalResult<()> {
        self.on(|place| place.remove())
    }

    fn confirm(&self) -> JournalResult<()> {
        self.place.confirm()
    }

    fn sync(&self) -> JournalResult<()> {
        self.on(|place| place.sync())
    }
}

fn open(sample: &Sample, fault: &Arc<Fault>) -> JournalResult<AtomicFile> {
    let (place, store) = sample.parts();
    let place = Arc::new(FaultyPlace { place, fault: Arc::clone(fault) });
    let file = Arc::new(Faulty { store, fault: Arc::clone(fault) });
    AtomicFile::open(place, file, LIMITS).map(|(atomic, _)| atomic)
}

fn commit(atomic: &AtomicFile, pages: std::ops::Range<usize>, value: u8) -> JournalResult<()> {
    let mut batch = atomic.begin();
    pages.into_iter().try_for_each(|page| batch.put((page * PAGE) as u64, &[value; PAGE]))?;
    batch.commit().map(drop)
}

/// The first byte of each page, after the recovery of a copy of file and journal as they are now.
fn after_kill(sample: &Sample) -> Vec<u8> {
    let folder = sample.folder.path().join("copy");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(sample.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.join(sample.path.file_name().unwrap());
    let (place, file) = parts(&path);
    recover(&*place, &*file, Accept::Copy).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    bytes.chunks(PAGE).map(|page| page[0]).collect()
}

/// A program of a few commits in which the n-th operation fails, for every n. How many operations it has.
fn every_operation_fails_once(folder: &Path) -> u64 {
    for n in 0.. {
        let mut failed = 0;
        for takes_effect in [false, true] {
            let sample = Sample::at(folder);
            let fault = Arc::new(Fault { done: AtomicU64::new(0), at: n, takes_effect });
            let mut atomic = None;
            // A step, again if it failed; before that, what a kill would leave.
            let mut step = |before: &[u8], after: &[u8], call: &mut dyn FnMut() -> JournalResult<()>| {
                let Err(error) = call() else { return };
                let JournalError::Io { source, .. } = &error else { panic!("operation {n}: {error}") };
                assert_eq!(source.raw_os_error(), Some(libc::EIO), "operation {n}");
                let left = after_kill(&sample);
                assert!(left == before || left == after, "operation {n} ({takes_effect}): {left:?}");
                failed += 1;
                call().unwrap_or_else(|error| panic!("operation {n} is over, and yet: {error}"));
            };
            let states: [&[u8]; 4] =
                [&[1; 8], &[1, 2, 1, 1, 1, 1, 1, 1], &[1, 2, 1, 1, 1, 4, 4, 4, 4], &[6; 9]];
            step(states[0], states[0], &mut || open(&sample, &fault).map(|opened| atomic = Some(opened)));
            let atomic = atomic.unwrap();
            step(states[0], states[1], &mut || commit(&atomic, 1..2, 2));
            step(states[1], states[1], &mut || {
                let mut batch = atomic.begin();
                batch.put(0, &[9; 7 * PAGE])?;
                batch.spill()
            });
            step(states[1], states[1], &mut || atomic.rollback());
            step(states[1], states[2], &mut || {
                atomic.set_len(9 * PAGE as u64);
                commit(&atomic, 5..9, 4)
            });
            step(states[2], states[2], &mut || atomic.checkpoint().map(drop));
            step(states[2], states[3], &mut || commit(&atomic, 0..9, 6));
            let mut open_again = Some(atomic);
            step(states[3], states[3], &mut || match open_again.take() {
                Some(atomic) => atomic.close(),
                None => open(&sample, &fault)?.close(),
            });
            let bytes = fs::read(&sample.path).unwrap();
            assert!(bytes == vec![6; 9 * PAGE] && sample.all().len() == 1, "operation {n}");
        }
        if failed == 0 {
            return n;
        }
    }
    unreachable!("a program ends")
}

/// Kills a writer again and again; what is left is always a commit, and none older than it has told of.
fn kills(folder: &Path, rounds: u32) {
    let sample = Sample::at(folder);
    let mut rng = Rng(7);
    let (mut last, mut told_in_all) = (0, 0);
    for round in 0..rounds {
        let mut command = common::child("a_writer_that_is_killed", &sample.path.display().to_string());
        let mut child = command
            .env("MAPWRIGHT_TEST_FROM", last.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = |line: io::Result<String>| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok();
        let first = lines.by_ref().find_map(told);
        // The moment is what is tried here: nothing is waited for.
        std::thread::sleep(Duration::from_micros(rng.below(12_000)));
        child.kill().unwrap();
        let acknowledged = lines.filter_map(told).last().or(first).unwrap_or(last);
        child.wait().unwrap();
        sample.recover().unwrap();
        let bytes = fs::read(&sample.path).unwrap();
        let found = (acknowledged..=acknowledged + 1).find(|n| bytes == state(*n));
        last = found.unwrap_or_else(|| panic!("round {round}: not what commit {acknowledged} left"));
        told_in_all += acknowledged;
    }
    assert!(told_in_all > 0);
    println!("{rounds} kills, {last} commits");
}

/// The pages that a commit changes.
fn changed(n: u64) -> [usize; 2] {
    [(n * 7 % 8) as usize, (n * 5 % 8 + 3) as usize % 8]
}

/// The file after a commit.
fn state(n: u64) -> Vec<u8> {
    let mut bytes = vec![1; 8 * PAGE];
    for n in n.saturating_sub(100).max(1)..=n {
        for page in changed(n) {
            bytes[page * PAGE..(page + 1) * PAGE]
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&n.to_le_bytes()));
        }
    }
    bytes
}

/// Not a test by itself: what [`kills`] kills.
#[test]
fn a_writer_that_is_killed() {
    let (Some(path), Ok(from)) = (common::role(), std::env::var("MAPWRIGHT_TEST_FROM")) else { return };
    let (place, file) = parts(Path::new(&path));
    let (atomic, _) = AtomicFile::open(place, file, LIMITS).unwrap();
    for n in from.parse::<u64>().unwrap() + 1.. {
        for (nth, page) in changed(n).into_iter().enumerate() {
            let mut batch = atomic.begin();
            batch.put((page * PAGE) as u64, &n.to_le_bytes().repeat(PAGE / 8)).unwrap();
            if nth == 0 { batch.spill().unwrap() } else { batch.commit().map(drop).unwrap() }
        }
        let line = format!("committed {n}\n");
        io::stdout().write_all(line.as_bytes()).unwrap();
        if atomic.wants_checkpoint() {
            atomic.checkpoint().unwrap();
        }
    }
}

/// Commits while the disk is full: each is acknowledged and kept, or refused for that reason. `goes_on`: what a checkpoint frees
/// can be written again, as where blocks are written in place.
fn a_full_disk(folder: &Path, goes_on: bool) {
    let sample = Sample::at(folder);
    let (place, file) = sample.parts();
    let (atomic, _) = AtomicFile::open(place, file, LIMITS).unwrap();
    let disk = common::FullDisk::fill(folder, 160 << 10);
    let mut rng = Rng(3);
    let (mut now, mut refused, mut kept) = (vec![1; 8], 0, 0);
    for round in 0..150 {
        let from = rng.below(8) as usize;
        let pages = from..(from + 1 + rng.below(3) as usize).min(8);
        let value = round as u8 + 10;
        let is_full = |error: JournalError| {
            let JournalError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{error}");
        };
        let mut committed = commit(&atomic, pages.clone(), value);
        if let Err(error) = committed {
            is_full(error);
            refused += 1;
            match atomic.checkpoint() {
                Ok(_) => {}
                Err(error) if !goes_on => is_full(error),
                Err(error) => panic!("round {round}: {error}"),
            }
            committed = commit(&atomic, pages.clone(), value);
        }
        match committed {
            Ok(()) => {
                kept += 1;
                now[pages].fill(value);
            }
            Err(error) if goes_on => panic!("round {round}: {error}"),
            Err(error) => {
                is_full(error);
                // Its pages are given up.
                if atomic.rollback().is_err() {
                    break;
                }
            }
        }
    }
    println!("{refused} refused, {kept} kept");
    assert!(refused > 0 && kept > 0);
    drop(atomic);
    drop(disk);
    sample.recover().unwrap();
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!(bytes.chunks(PAGE).map(|page| page[0]).collect::<Vec<_>>(), now);
}

#[test]
fn every_operation_may_fail_once_on_a_real_file_system() {
    let operations = every_operation_fails_once(common::scratch().path());
    println!("{operations} operations");
    assert!(operations > 25, "{operations}");
}

#[test]
fn a_killed_writer_leaves_a_commit() {
    kills(common::scratch().path(), 200);
}

#[test]
fn on_ext4_in_a_loop_device() {
    common::on_a_loop_device("on_ext4_in_a_loop_device", "ext4", 16, |folder| {
        a_full_disk(folder, true);
        every_operation_fails_once(folder);
        kills(folder, 20);
    });
}

#[test]
fn on_xfs_in_a_loop_device() {
    common::on_a_loop_device("on_xfs_in_a_loop_device", "xfs", 320, |folder| {
        a_full_disk(folder, true);
        every_operation_fails_once(folder);
        kills(folder, 20);
    });
}

#[test]
fn on_btrfs_in_a_loop_device() {
    common::on_a_loop_device("on_btrfs_in_a_loop_device", "btrfs", 256, |folder| {
        // What is written again goes elsewhere there, and needs room.
        a_full_disk(folder, false);
        every_operation_fails_once(folder);
        kills(folder, 20);
    });
}

/// The store's type is real: what is promised of stores holds for it under a journal too.
#[test]
fn the_lock_of_the_file_is_the_stores() {
    let sample = Sample::new();
    let (_, file): (_, Arc<FileStore>) = sample.parts();
    file.lock().unwrap();
    let fault = Arc::new(Fault { done: AtomicU64::new(0), at: u64::MAX, takes_effect: false });
    assert!(matches!(open(&sample, &fault), Err(JournalError::Refused { .. })));
}
