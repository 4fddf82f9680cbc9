//! What a failure means, one at a time: docs/fault-model.md, "What a failed sync means". The simulator of power failures tries
//! the same by the thousand; here each promise is a test with its name.

use std::sync::Arc;

use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, Place, recover};
use mapwright::stores::Store;
use mapwright_sim::Rng;
use mapwright_sim::disk::{Disk, DiskPlace, Draw};

const FILE: &str = "data";
const PAGE: usize = 4096;
const NOTHING: Draw = Draw { kept_per_1000: 0, destroys: false, garbage: false };
const EVERYTHING: Draw = Draw { kept_per_1000: 1000, destroys: false, garbage: false };

fn open(disk: &Disk) -> Result<AtomicFile, JournalError> {
    let file = Arc::new(disk.file(FILE).unwrap());
    let limits = Limits { unit: 512, entry: 6000, checkpoint: 16 << 10 };
    AtomicFile::open(Arc::new(DiskPlace::new(disk, FILE)), file, limits).map(|(atomic, _)| atomic)
}

fn opened() -> (Disk, AtomicFile) {
    let disk = Disk::with_file(FILE, vec![1; 4 * PAGE]);
    let atomic = open(&disk).unwrap();
    (disk, atomic)
}

fn commit(atomic: &AtomicFile, page: usize, value: u8) -> Result<u64, JournalError> {
    let mut batch = atomic.begin();
    batch.put((page * PAGE) as u64, &[value; PAGE])?;
    batch.commit()
}

/// The first byte of each page after a power failure and recovery.
fn after_crash(disk: &Disk, draw: Draw) -> Vec<u8> {
    let disk = disk.crash(&mut Rng::new(1), draw);
    recover(&DiskPlace::new(&disk, FILE), &disk.file(FILE).unwrap(), Accept::Own).unwrap();
    disk.contents(FILE).unwrap().chunks(PAGE).map(|page| page[0]).collect()
}

/// Entry and sync: the second operation of a commit of one page.
const SYNC: u64 = 1;

#[test]
fn a_commit_whose_sync_fails_is_not_seen_and_can_be_made_again() {
    let (disk, atomic) = opened();
    commit(&atomic, 0, 2).unwrap();
    disk.fail_once(SYNC);
    let error = commit(&atomic, 1, 3).unwrap_err();
    assert!(matches!(error, JournalError::Io { operation: "sync", .. }), "{error}");
    assert!(atomic.is_in_doubt());
    let mut page = [0; PAGE];
    atomic.read(PAGE as u64, &mut page).unwrap();
    assert_eq!(page, [1; PAGE], "what was not acknowledged is not read");
    assert_eq!(after_crash(&disk, NOTHING), [2, 1, 1, 1]);
    commit(&atomic, 1, 3).unwrap();
    assert!(!atomic.is_in_doubt());
    assert_eq!(after_crash(&disk, NOTHING), [2, 3, 1, 1], "writing again made it durable");
}

#[test]
fn a_rollback_makes_sure_that_a_commit_in_doubt_never_comes_back() {
    let (disk, atomic) = opened();
    let mut came_back = 0;
    for seed in 0..20 {
        disk.set_errors(0, Rng::new(seed));
        disk.fail_once(SYNC);
        commit(&atomic, 1, 3).unwrap_err();
        came_back += u32::from(after_crash(&disk, EVERYTHING) == [1, 3, 1, 1]);
        // A rollback that fails leaves the doubt.
        disk.fail_once(SYNC);
        atomic.rollback().unwrap_err();
        assert!(atomic.is_in_doubt());
        atomic.rollback().unwrap();
        assert!(!atomic.is_in_doubt());
        assert_eq!(after_crash(&disk, EVERYTHING), [1, 1, 1, 1]);
        assert_eq!(after_crash(&disk, NOTHING), [1, 1, 1, 1]);
    }
    assert!(came_back > 0, "the doubt was real");
}

#[test]
fn a_checkpoint_whose_sync_fails_loses_nothing_and_writes_all_of_it_again() {
    let (disk, atomic) = opened();
    commit(&atomic, 0, 2).unwrap();
    commit(&atomic, 1, 3).unwrap();
    atomic.claim().unwrap();
    // Length is as it was: a write of each page, as entries have no room for two, then the sync.
    disk.fail_once(2);
    let error = atomic.checkpoint().unwrap_err();
    assert!(matches!(error, JournalError::Io { operation: "sync", .. }), "{error}");
    for page in 0..2 {
        let mut bytes = [0; PAGE];
        atomic.read((page * PAGE) as u64, &mut bytes).unwrap();
        assert_eq!(bytes, [2 + page as u8; PAGE], "read from the journal");
    }
    assert_eq!(after_crash(&disk, NOTHING), [2, 3, 1, 1]);
    assert_eq!(atomic.checkpoint().unwrap().records, 2);
    atomic.close().unwrap();
    assert_eq!(disk.contents(FILE).unwrap()[PAGE], 3);
}

/// A fixed program, in which the n-th operation fails, for every n: the call that needed it fails, what is tried again
/// succeeds, no acknowledged commit is lost on the way, and the end is as without the failure.
#[test]
fn every_operation_may_fail_once() {
    let mut failures = 0;
    for n in 0.. {
        let disk = Disk::with_file(FILE, vec![1; 4 * PAGE]);
        // Durable before: a failed sync of what others have written is theirs to answer.
        disk.file(FILE).unwrap().sync().unwrap();
        disk.fail_once(n);
        let mut failed = 0;
        // The call, again if it failed.
        let mut twice = |call: &mut dyn FnMut() -> Result<(), JournalError>| {
            if let Err(error) = call() {
                assert!(matches!(error, JournalError::Io { .. }), "operation {n}: {error}");
                failed += 1;
                call().unwrap_or_else(|error| panic!("operation {n} is over, and yet: {error}"));
            }
        };
        let mut atomic = None;
        twice(&mut || open(&disk).map(|opened| atomic = Some(opened)));
        let atomic = atomic.unwrap();
        let holds = |state: &[u8]| {
            for draw in [NOTHING, Draw { kept_per_1000: 500, destroys: true, garbage: true }] {
                assert_eq!(after_crash(&disk, draw), state, "operation {n}");
            }
        };
        holds(&[1, 1, 1, 1]);
        twice(&mut || commit(&atomic, 0, 2).map(drop));
        holds(&[2, 1, 1, 1]);
        twice(&mut || {
            let mut batch = atomic.begin();
            batch.put(PAGE as u64, &[9; 3 * PAGE])?;
            batch.spill()
        });
        holds(&[2, 1, 1, 1]);
        twice(&mut || atomic.rollback());
        twice(&mut || {
            atomic.set_len(5 * PAGE as u64);
            commit(&atomic, 4, 3).map(drop)
        });
        holds(&[2, 1, 1, 1, 3]);
        twice(&mut || atomic.checkpoint().map(drop));
        holds(&[2, 1, 1, 1, 3]);
        for value in 4..12 {
            twice(&mut || commit(&atomic, 1, value).map(drop));
            twice(&mut || atomic.checkpoint().map(drop));
            holds(&[2, value, 1, 1, 3]);
        }
        let mut open_again = Some(atomic);
        twice(&mut || match open_again.take() {
            Some(atomic) => atomic.close(),
            None => open(&disk)?.close(),
        });
        let bytes = disk.contents(FILE).unwrap();
        assert_eq!(
            bytes.chunks(PAGE).map(|page| page[0]).collect::<Vec<_>>(),
            [2, 11, 1, 1, 3],
            "operation {n}"
        );
        failures += failed;
        if failed == 0 {
            assert!(n > 60, "a program of {n} operations only");
            break;
        }
    }
    assert!(failures > 60, "{failures}");
}

#[test]
fn a_commit_of_nothing_ends_the_doubt_about_the_one_before() {
    let (disk, atomic) = opened();
    commit(&atomic, 0, 2).unwrap();
    disk.fail_once(SYNC);
    commit(&atomic, 1, 3).unwrap_err();
    atomic.begin().commit().unwrap();
    assert!(!atomic.is_in_doubt());
    for draw in [NOTHING, EVERYTHING] {
        assert_eq!(after_crash(&disk, draw), [2, 1, 1, 1]);
    }
}

/// A disk that is full for good: a checkpoint frees what the journal has, and commits that fit there go on.
#[test]
fn on_a_full_disk_commits_go_on_in_what_a_checkpoint_frees() {
    let (disk, atomic) = opened();
    for value in 2..6 {
        commit(&atomic, 0, value).unwrap();
    }
    disk.set_room(Some(0));
    let mut refused = 0;
    for value in 10..110 {
        if let Err(error) = commit(&atomic, 1, value) {
            let JournalError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
            refused += 1;
            atomic.checkpoint().unwrap();
            commit(&atomic, 1, value).unwrap();
        }
        assert_eq!(after_crash(&disk, NOTHING), [5, value, 1, 1]);
        assert_eq!(after_crash(&disk, EVERYTHING), [5, value, 1, 1]);
    }
    assert!(refused > 3, "{refused}");
    // What does not fit is refused, until there is room.
    let all = |value| -> Result<u64, JournalError> {
        let mut batch = atomic.begin();
        batch.put(0, &[value; 4 * PAGE])?;
        batch.put(0, &[value; 4 * PAGE])?;
        batch.put(0, &[value; 4 * PAGE])?;
        batch.commit()
    };
    all(200).unwrap_err();
    atomic.checkpoint().unwrap();
    all(200).unwrap_err();
    assert_eq!(after_crash(&disk, NOTHING), [5, 109, 1, 1]);
    disk.set_room(None);
    all(200).unwrap();
    assert_eq!(after_crash(&disk, NOTHING), [200; 4]);
}

/// Wherever the room ends, in a claim, a jump or between them: the next checkpoint goes on, and so do small commits.
#[test]
fn room_that_ends_anywhere_leaves_place_for_a_claim_and_a_jump() {
    let mut refused = 0;
    for room in (16 * 512..48 * 512).step_by(128) {
        let (disk, atomic) = opened();
        disk.set_room(Some(room));
        let small = |value: u8| {
            let mut batch = atomic.begin();
            batch.put(0, &[value; 100])?;
            batch.commit()
        };
        for value in 2..100 {
            if small(value).is_ok() {
                continue;
            }
            refused += 1;
            atomic.checkpoint().unwrap_or_else(|error| panic!("room for {room} bytes: {error}"));
            small(value).unwrap_or_else(|error| panic!("room for {room} bytes: {error}"));
        }
        assert_eq!(after_crash(&disk, NOTHING)[0], 99);
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn an_interrupted_sync_has_failed() {
    let mut interrupted = 0;
    for round in 0..8 {
        let (disk, atomic) = opened();
        for value in 0..round {
            commit(&atomic, 0, value).unwrap();
        }
        disk.fail_once(SYNC);
        let JournalError::Io { source, .. } = commit(&atomic, 1, 3).unwrap_err() else { panic!() };
        interrupted += u32::from(source.kind() == std::io::ErrorKind::Interrupted);
        assert!(atomic.is_in_doubt());
    }
    assert!(interrupted > 0);
}

#[test]
fn an_unfinished_journal_is_removed_where_there_is_no_other() {
    let disk = Disk::with_file(FILE, vec![1; PAGE]);
    let place = DiskPlace::new(&disk, FILE);
    place.create().unwrap();
    assert!(disk.file("data.mapwright-journal.new").is_ok());
    recover(&place, &disk.file(FILE).unwrap(), Accept::Own).unwrap();
    assert!(disk.file("data.mapwright-journal.new").is_err());
}
