//! Commits, recovery and refusals over real files: what the journal promises where there is no power failure to simulate.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mapwright::journal::format::{Entry, HEAD, Header, Kind, RECORD, Record, UNIT};
use mapwright::journal::scan::Scan;
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, Place, discard, recover};
use mapwright::stores::{FileOptions, FileStore, Store, Version};

mod common;

use common::PAGE;
use common::journal::{Sample, commit, leave_commits, parts};

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Positions of the commit entries in a journal.
fn commits(sample: &Sample) -> Vec<u64> {
    let bytes = fs::read(sample.journal()).unwrap();
    let header = Header::decode(&bytes).unwrap();
    let units =
        bytes.chunks_exact(UNIT as usize).filter_map(|unit| Entry::decode(&unit[..HEAD], &header).ok());
    units.filter(|entry| matches!(entry.kind, Kind::Commit { .. })).map(|entry| entry.position).collect()
}

#[test]
fn a_commit_survives_and_what_was_not_committed_does_not() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    commit(&atomic, 2, 7);
    let mut batch = atomic.begin();
    batch.put(0, &[9; PAGE]).unwrap();
    batch.spill().unwrap();
    assert_eq!(fs::read(&sample.path).unwrap(), vec![1; 8 * PAGE], "the file is written later");
    drop(atomic);
    assert_eq!(sample.recover().unwrap(), Some(1));
    let bytes = fs::read(&sample.path).unwrap();
    assert!(bytes[2 * PAGE..3 * PAGE].iter().all(|byte| *byte == 7));
    assert!(bytes[..2 * PAGE].iter().chain(&bytes[3 * PAGE..]).all(|byte| *byte == 1));
    assert!(!sample.journal().exists());
    assert_eq!(sample.recover().unwrap(), None, "a second time there is nothing to do");
}

#[test]
fn closing_leaves_the_file_alone_in_its_folder() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    assert!(sample.journal().exists());
    atomic.set_len(3 * PAGE as u64 + 5);
    commit(&atomic, 1, 8);
    atomic.close().unwrap();
    assert_eq!(sample.all().len(), 1);
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!((bytes.len(), bytes[PAGE], bytes[3 * PAGE + 4]), (3 * PAGE + 5, 8, 1));
}

#[test]
fn a_commit_without_changes_writes_nothing() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    commit(&atomic, 0, 3);
    let before = sample.all();
    assert_eq!(atomic.begin().commit().unwrap(), atomic.begin().commit().unwrap());
    assert_eq!(sample.all(), before);
}

#[test]
fn reads_see_commits_and_spills_and_snapshots_see_their_commit() {
    let sample = Sample::new();
    let atomic = Arc::new(sample.open().unwrap());
    commit(&atomic, 0, 3);
    let snapshot = atomic.snapshot();
    let mut batch = atomic.begin();
    batch.put(10, &[4; 5]).unwrap();
    batch.spill().unwrap();
    let mut bytes = [0; 20];
    assert_eq!(atomic.read(0, &mut bytes).unwrap(), 20);
    assert_eq!(bytes, *b"\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x04\x04\x04\x04\x04\x03\x03\x03\x03\x03");
    atomic.begin().commit().unwrap();
    atomic.set_len(12);
    atomic.begin().commit().unwrap();
    atomic.checkpoint().unwrap();
    assert_eq!(atomic.read(0, &mut bytes).unwrap(), 12);
    assert_eq!(
        (snapshot.read(0, &mut bytes).unwrap(), bytes, snapshot.len()),
        (20, [3; 20], 8 * PAGE as u64)
    );
    let mut last = [0; PAGE];
    snapshot.read(7 * PAGE as u64, &mut last).unwrap();
    assert_eq!(last, [1; PAGE]);
    drop(snapshot);
    assert!(atomic.checkpoint().unwrap().records > 0, "the snapshot held the checkpoint");
    assert_eq!(fs::metadata(&sample.path).unwrap().len(), 12);
}

#[test]
fn an_overlay_completes_what_was_read_of_the_file() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    commit(&atomic, 1, 6);
    let overlay = atomic.overlay(0, 3 * PAGE);
    let mut bytes = fs::read(&sample.path).unwrap()[..3 * PAGE].to_vec();
    // A checkpoint meanwhile does no harm: what was read is completed all the same.
    atomic.checkpoint().unwrap();
    assert!(!overlay.is_empty() && overlay.apply(&mut bytes).unwrap());
    assert_eq!([bytes[0], bytes[PAGE], bytes[2 * PAGE - 1], bytes[2 * PAGE]], [1, 6, 6, 1]);
    assert!(atomic.overlay(0, 3 * PAGE).is_empty(), "the file has it now");
    assert!(atomic.overlay(4 * PAGE as u64, PAGE).is_empty());
}

#[test]
fn a_rollback_drops_pages_spills_and_lengths() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    commit(&atomic, 0, 3);
    atomic.set_len(PAGE as u64);
    let mut batch = atomic.begin();
    batch.put(0, &[9; PAGE]).unwrap();
    batch.spill().unwrap();
    atomic.rollback().unwrap();
    assert_eq!(atomic.len(), 8 * PAGE as u64);
    let mut page = [0; PAGE];
    atomic.read(0, &mut page).unwrap();
    assert_eq!(page, [3; PAGE]);
    commit(&atomic, 1, 5);
    drop(atomic);
    assert_eq!(sample.recover().unwrap(), Some(2));
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!((bytes.len(), bytes[0], bytes[PAGE], bytes[2 * PAGE]), (8 * PAGE, 3, 5, 1));
}

#[test]
fn a_transaction_may_be_larger_than_what_is_in_memory_and_the_journal_shrinks_after_it() {
    let sample = Sample::new();
    let (place, file) = sample.parts();
    let limits = Limits { entry: 64 << 10, checkpoint: 1 << 20, ..Limits::default() };
    let (atomic, _) = AtomicFile::open(place, file, limits).unwrap();
    atomic.set_len(32 << 20);
    let mut batch = atomic.begin();
    for page in 0..(32 << 20) / PAGE {
        batch.put((page * PAGE) as u64, &[page as u8; PAGE]).unwrap();
        if page % 1000 == 999 {
            batch.spill().unwrap();
            batch = atomic.begin();
        }
    }
    batch.commit().unwrap();
    assert!(atomic.wants_checkpoint() && atomic.live_bytes() > 32 << 20);
    // The first commit after a checkpoint goes behind everything, with the anchor that frees it; the next to the beginning.
    for value in [200, 201] {
        atomic.checkpoint().unwrap();
        commit(&atomic, 0, 199);
        commit(&atomic, 0, value);
    }
    assert!(fs::metadata(sample.journal()).unwrap().len() <= 3 << 20);
    assert!(!atomic.wants_checkpoint());
    atomic.close().unwrap();
    let bytes = fs::read(&sample.path).unwrap();
    assert_eq!((bytes.len(), bytes[0], bytes[5000 * PAGE]), (32 << 20, 201, (5000 % 256) as u8));
}

#[test]
fn space_is_used_again_after_checkpoints() {
    let sample = Sample::new();
    let (place, file) = sample.parts();
    let (atomic, _) =
        AtomicFile::open(place, file, Limits { checkpoint: 64 << 10, ..Limits::default() }).unwrap();
    for round in 0..400 {
        commit(&atomic, round % 8, round as u8);
        if atomic.wants_checkpoint() {
            atomic.checkpoint().unwrap();
        }
    }
    let len = fs::metadata(sample.journal()).unwrap().len();
    assert!(len <= 160 << 10, "400 commits in {len} bytes");
    drop(atomic);
    sample.recover().unwrap();
    let bytes = fs::read(&sample.path).unwrap();
    (0..8).for_each(|page| assert_eq!(bytes[page * PAGE], (392 + page) as u8));
}

#[test]
fn damage_in_the_middle_is_refused_and_nothing_is_changed() {
    let sample = Sample::new();
    leave_commits(&sample, 4);
    let pristine = fs::read(sample.journal()).unwrap();
    let commits = commits(&sample);
    assert_eq!(commits.len(), 4);
    for commit in &commits[..3] {
        for at in [0, 20, 63, 64, 100, 4000] {
            flip(&sample.journal(), *commit as usize + at);
            let refused = sample.is_refused();
            assert!(matches!(refused, JournalError::Damaged { .. }), "{refused}");
            fs::write(sample.journal(), &pristine).unwrap();
        }
    }
    // A sector of zeros instead.
    let mut bytes = pristine.clone();
    bytes[commits[1] as usize..][..512].fill(0);
    fs::write(sample.journal(), bytes).unwrap();
    assert!(matches!(sample.is_refused(), JournalError::Damaged { .. }));
    fs::write(sample.journal(), pristine).unwrap();
    assert_eq!(sample.recover().unwrap(), Some(4));
}

/// What the format cannot promise, as docs/fault-model.md says.
#[test]
fn damage_to_the_newest_commit_looks_like_a_torn_one() {
    let sample = Sample::new();
    leave_commits(&sample, 3);
    flip(&sample.journal(), *commits(&sample).last().unwrap() as usize + 100);
    assert_eq!(sample.recover().unwrap(), Some(2));
}

#[test]
fn damage_to_header_or_anchors_is_refused() {
    let sample = Sample::new();
    leave_commits(&sample, 1);
    let pristine = fs::read(sample.journal()).unwrap();
    for (at, is_it) in [
        (3, (|error| matches!(error, JournalError::NotAJournal { .. })) as fn(&JournalError) -> bool),
        (8, |error| matches!(error, JournalError::OtherVersion { version: 0, known: 1, .. })),
        (20, |error| matches!(error, JournalError::Damaged { at: 0, .. })),
        (UNIT as usize + 9, |error| matches!(error, JournalError::Damaged { at: 4096, .. })),
    ] {
        flip(&sample.journal(), at);
        let refused = sample.is_refused();
        assert!(is_it(&refused), "{at}: {refused}");
        fs::write(sample.journal(), &pristine).unwrap();
    }
    fs::write(sample.journal(), b"").unwrap();
    assert!(matches!(sample.is_refused(), JournalError::NotAJournal { .. }));
}

#[test]
fn a_journal_of_another_file_is_refused_unless_the_file_is_a_copy() {
    let sample = Sample::new();
    leave_commits(&sample, 2);
    fs::copy(&sample.path, sample.folder.path().join("copy")).unwrap();
    fs::rename(sample.folder.path().join("copy"), &sample.path).unwrap();
    let refused = sample.is_refused();
    assert!(matches!(refused, JournalError::OtherFile { .. }), "{refused}");
    let (place, file) = sample.parts();
    assert!(recover(&*place, &*file, Accept::Copy).unwrap().is_some());
    assert_eq!(fs::read(&sample.path).unwrap()[0], 10);
}

#[test]
fn a_file_that_somebody_else_has_cut_or_extended_is_refused() {
    for len in [7 * PAGE as u64, 9 * PAGE as u64] {
        let sample = Sample::new();
        leave_commits(&sample, 1);
        File::options().write(true).open(&sample.path).unwrap().set_len(len).unwrap();
        let refused = sample.is_refused();
        assert!(matches!(refused, JournalError::FileLength { .. }), "{refused}");
        discard(&*sample.parts().0).unwrap();
        assert_eq!(sample.inspect().unwrap(), None);
        assert_eq!(fs::read(&sample.path).unwrap()[0], 1, "discarding does not replay");
    }
}

#[test]
fn links_pipes_and_folders_in_the_journals_place_are_refused() {
    let sample = Sample::new();
    let elsewhere = sample.folder.path().join("elsewhere");
    fs::write(&elsewhere, b"not yours").unwrap();
    symlink(&elsewhere, sample.journal()).unwrap();
    assert!(matches!(sample.is_refused(), JournalError::Refused { .. }));
    fs::remove_file(sample.journal()).unwrap();
    fs::create_dir(sample.journal()).unwrap();
    assert!(matches!(sample.is_refused(), JournalError::Refused { .. }));
    fs::remove_dir(sample.journal()).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(sample.journal()).status();
    if fifo.is_ok_and(|status| status.success()) {
        let (place, _) = sample.parts();
        assert!(matches!(place.open().err(), Some(JournalError::Refused { .. })));
        fs::remove_file(sample.journal()).unwrap();
    }
    // A link in the unfinished journal's place is taken away, not followed.
    symlink(&elsewhere, sample.folder.path().join("data.bin.mapwright-journal.new")).unwrap();
    sample.open().unwrap().close().unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"not yours");
}

#[test]
fn a_journal_that_others_may_write_is_refused() {
    let sample = Sample::new();
    leave_commits(&sample, 1);
    fs::set_permissions(&sample.path, fs::Permissions::from_mode(0o644)).unwrap();
    for mode in [0o666, 0o664, 0o646] {
        fs::set_permissions(sample.journal(), fs::Permissions::from_mode(mode)).unwrap();
        let refused = sample.is_refused();
        assert!(matches!(refused, JournalError::Refused { .. }), "{mode:o}: {refused}");
    }
    fs::set_permissions(sample.journal(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(sample.journal(), sample.folder.path().join("second name")).unwrap();
    assert!(matches!(sample.is_refused(), JournalError::Refused { .. }));
}

#[test]
fn a_journal_has_at_most_the_files_permissions() {
    for mode in [0o600, 0o640, 0o644, 0o660, 0o666, 0o755] {
        let sample = Sample::new();
        fs::set_permissions(&sample.path, fs::Permissions::from_mode(mode)).unwrap();
        let atomic = sample.open().unwrap();
        let made = fs::metadata(sample.journal()).unwrap();
        assert_eq!(made.mode() & 0o7777, mode & 0o666, "{mode:o}");
        assert_eq!((made.uid(), made.gid()), {
            let file = fs::metadata(&sample.path).unwrap();
            (file.uid(), file.gid())
        });
        atomic.close().unwrap();
    }
}

#[test]
fn a_link_to_the_file_leads_to_the_same_journal() {
    let sample = Sample::new();
    leave_commits(&sample, 1);
    let other = tempfile::tempdir().unwrap();
    let link = other.path().join("link");
    symlink(&sample.path, &link).unwrap();
    let (place, file) = parts(&link);
    assert!(recover(&*place, &*file, Accept::Own).unwrap().is_some());
}

#[test]
fn two_journals_never_take_one_place() {
    let sample = Sample::new();
    let (place, _) = sample.parts();
    place.create().unwrap();
    fs::write(sample.journal(), b"there already").unwrap();
    assert!(matches!(place.publish(), Err(JournalError::Exists { .. })));
    assert_eq!(fs::read(sample.journal()).unwrap(), b"there already");
}

/// Random damage of every kind: the reader answers with a state that was committed, or refuses; it never panics.
#[test]
fn the_reader_survives_random_damage() {
    let sample = Sample::new();
    leave_commits(&sample, 6);
    let pristine = fs::read(sample.journal()).unwrap();
    let mut seed = 11u64;
    let mut random = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    let memory = |bytes: Vec<u8>| mapwright::stores::MemoryStore::new(bytes);
    let (mut refused, mut read) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = pristine.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes.truncate(at),
                2 => {
                    let (from, n) = (random(bytes.len()), random(5000).min(bytes.len() - at));
                    let piece: Vec<u8> =
                        bytes[from..].iter().copied().chain(std::iter::repeat(0)).take(n).collect();
                    bytes[at..at + n].copy_from_slice(&piece);
                }
                _ => {
                    let n = random(9000).min(bytes.len() - at);
                    bytes[at..at + n].iter_mut().for_each(|byte| *byte = random(256) as u8);
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        match Scan::read(&memory(bytes), None) {
            Ok(scan) => {
                read += 1;
                assert!(scan.commits <= 6 && scan.file_len == 8 * PAGE as u64);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000 && read > 100, "{refused} {read}");
}

/// The lock of the store is what keeps a second process from recovering under a writer.
#[test]
fn the_files_lock_excludes_a_second_writer() {
    let sample = Sample::new();
    let (_, file) = sample.parts();
    file.lock().unwrap();
    let (_, second) = sample.parts();
    assert_eq!(second.lock().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn opening_and_recovering_take_the_files_lock_themselves() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    let before = sample.all();
    for refused in [sample.open().map(drop), sample.recover().map(drop)] {
        assert!(matches!(refused, Err(JournalError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(sample.all(), before);
    drop(atomic);
    assert_eq!(sample.recover().unwrap(), Some(0));
}

#[test]
fn a_file_that_lost_its_name_before_it_was_locked_is_refused() {
    let sample = Sample::new();
    let (place, file) = sample.parts();
    fs::rename(&sample.path, sample.folder.path().join("moved")).unwrap();
    let refuse = || recover(&*place, &*file, Accept::Own).unwrap_err();
    assert!(matches!(refuse(), JournalError::Refused { .. }));
    fs::write(&sample.path, b"another").unwrap();
    assert!(matches!(refuse(), JournalError::Refused { .. }));
}

#[test]
fn limits_that_the_format_cannot_have_are_refused() {
    let sample = Sample::new();
    let good = Limits::default();
    for unit in [0, 256, 1000, 131_072] {
        let (place, file) = sample.parts();
        let refused = AtomicFile::open(place, file, Limits { unit, ..good }).map(drop);
        assert!(matches!(refused, Err(JournalError::Refused { .. })), "{unit}: {refused:?}");
    }
    for limits in [Limits { entry: usize::MAX, ..good }, Limits { checkpoint: u64::MAX, ..good }] {
        let (place, file) = sample.parts();
        let refused = AtomicFile::open(place, file, limits).map(drop);
        assert!(matches!(refused, Err(JournalError::Refused { .. })), "{refused:?}");
    }
    assert_eq!(sample.inspect().unwrap(), None);
}

#[test]
fn a_journal_of_holes_is_refused_and_not_read_through() {
    let sample = Sample::new();
    leave_commits(&sample, 1);
    let journal = File::options().write(true).open(sample.journal()).unwrap();
    if let Err(error) = journal.set_len(1 << 42) {
        assert!(std::env::var_os("CI").is_none(), "no file of 4 TiB here: {error}");
        println!("skipped: no file of 4 TiB here: {error}");
        return;
    }
    let (place, file) = sample.parts();
    let refused = recover(&*place, &*file, Accept::Own).unwrap_err();
    assert!(matches!(refused, JournalError::Refused { .. }), "{refused}");
}

/// A writer, a checkpoint and readers of snapshots side by side: every snapshot is one commit, whole, for as long as it is held,
/// while space is used again under it.
#[test]
fn snapshots_are_whole_beside_commits_and_checkpoints() {
    use std::sync::atomic::AtomicBool;
    let sample = Sample::new();
    let (place, file) = sample.parts();
    let limits = Limits { entry: 10_000, checkpoint: 128 << 10, ..Limits::default() };
    let atomic = Arc::new(AtomicFile::open(place, file, limits).unwrap().0);
    let (done, checkpoints, seen) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if let Some(mut checkpoint) = atomic.begin_checkpoint() {
                    while !checkpoint.step().unwrap() {}
                    checkpoint.finish().unwrap();
                    checkpoints.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bytes = vec![0; 8 * PAGE];
                while !done.load(Ordering::Acquire) {
                    let snapshot = atomic.snapshot();
                    let mut value = None;
                    for _ in 0..3 {
                        assert_eq!(snapshot.read(0, &mut bytes).unwrap(), 8 * PAGE);
                        let first = *value.get_or_insert(bytes[0]);
                        assert!(bytes.iter().all(|byte| *byte == first), "a mixture of commits");
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..150u64 {
            let value = round as u8;
            let mut batch = atomic.begin();
            batch.put(0, &vec![value; 4 * PAGE]).unwrap();
            batch.spill().unwrap();
            if round % 5 == 4 {
                atomic.rollback().unwrap();
                continue;
            }
            let mut batch = atomic.begin();
            batch.put(4 * PAGE as u64, &vec![value; 4 * PAGE]).unwrap();
            batch.commit().unwrap();
            let mut page = vec![0; PAGE];
            atomic.read((round % 8) * PAGE as u64, &mut page).unwrap();
            assert!(page.iter().all(|byte| *byte == value), "what was committed is read");
        }
        done.store(true, Ordering::Release);
    });
    assert!(checkpoints.into_inner() > 3 && seen.into_inner() > 3);
    drop(atomic);
    sample.recover().unwrap();
    assert_eq!(fs::read(&sample.path).unwrap(), vec![148; 8 * PAGE]);
}

/// Bytes that look like a commit of "forged" to the beginning of the file: what somebody may write to the file who can read the
/// journal's salt.
fn forged(sample: &Sample, position: u64, previous: u64) -> Vec<u8> {
    let header = Header::decode(&fs::read(sample.journal()).unwrap()).unwrap();
    let sequence = u64::MAX - 1;
    let mut records = Vec::new();
    Record::Data { offset: 0, len: 6 }.append(&mut records, b"forged", sequence, &header.salt);
    let entry = Entry {
        kind: Kind::Commit { file_len: 8 * PAGE as u64 },
        begins: true,
        position,
        sequence,
        previous,
        durable_commit: 0,
        records: records.len() as u32,
    };
    let mut bytes = entry.encode(&header.salt).to_vec();
    bytes.extend(records);
    bytes
}

/// Somebody's bytes lie in the journal where the next entry would be, with everything right but for the number of the entry
/// before it, which was drawn after them.
#[test]
fn bytes_that_look_like_an_entry_are_none_without_the_number_before() {
    const UNIT: usize = 512;
    for knows in [false, true] {
        for guess in 1..30 {
            let sample = Sample::new();
            let (place, file) = sample.parts();
            let limits = Limits { unit: UNIT as u32, entry: 4300, ..Limits::default() };
            let (atomic, _) = AtomicFile::open(place, file, limits).unwrap();
            commit(&atomic, 0, 2);
            let position = atomic.live_bytes() + 3 * UNIT as u64;
            // Written and given up; behind the first unit of the entry lies what was chosen.
            let target = position + UNIT as u64;
            let last = last_number(&sample);
            let mut page = vec![0; PAGE];
            let chosen = forged(&sample, target, last + guess);
            page[UNIT - HEAD - RECORD..][..chosen.len()].copy_from_slice(&chosen);
            let mut batch = atomic.begin();
            batch.put(PAGE as u64, &page).unwrap();
            batch.put(2 * PAGE as u64, &page).unwrap();
            drop(batch);
            // A commit of one unit, behind which it lies.
            let mut batch = atomic.begin();
            batch.put(100, b"small").unwrap();
            batch.commit().unwrap();
            drop(atomic);
            let there = fs::read(sample.journal()).unwrap()[target as usize..][..chosen.len()].to_vec();
            assert_eq!(there, chosen, "the bytes lie where they are looked for");
            if knows {
                let right = forged(&sample, target, last_number(&sample));
                let journal = File::options().write(true).open(sample.journal()).unwrap();
                journal.write_all_at(&right, target).unwrap();
            }
            sample.recover().unwrap();
            let is_forged = fs::read(&sample.path).unwrap().starts_with(b"forged");
            assert_eq!(is_forged, knows, "only the number tells them from an entry");
            if knows {
                break;
            }
        }
    }
}

/// The number of the last entry of the chain.
fn last_number(sample: &Sample) -> u64 {
    let store = FileStore::open(sample.journal(), &FileOptions::default()).unwrap();
    let mut last = 0;
    Scan::read_with(&store, None, &mut |seen| last = seen.entry.sequence).unwrap();
    last
}

/// Somebody's bytes in the middle of an entry are data, whatever they look like. When the entry is no part of the chain any more they
/// look like damage, as docs/fault-model.md says.
#[test]
fn bytes_that_name_a_later_commit_are_data_inside_an_entry_of_the_chain() {
    const UNIT: usize = 512;
    let sample = Sample::new();
    let (place, file) = sample.parts();
    let (atomic, _) =
        AtomicFile::open(place, file, Limits { unit: UNIT as u32, ..Limits::default() }).unwrap();
    commit(&atomic, 0, 2);
    let position = atomic.live_bytes() + 3 * UNIT as u64;
    let header = Header::decode(&fs::read(sample.journal()).unwrap()).unwrap();
    let claims = Entry {
        kind: Kind::Part,
        begins: true,
        position: position + UNIT as u64,
        sequence: u64::MAX - 1,
        previous: u64::MAX - 2,
        durable_commit: u64::MAX - 2,
        records: 0,
    };
    let mut page = [7; PAGE];
    page[UNIT - HEAD - RECORD..][..HEAD].copy_from_slice(&claims.encode(&header.salt));
    let mut batch = atomic.begin();
    batch.put(PAGE as u64, &page).unwrap();
    batch.commit().unwrap();
    drop(atomic);
    let there = &fs::read(sample.journal()).unwrap()[claims.position as usize..][..HEAD];
    assert_eq!(*there, claims.encode(&header.salt), "the bytes lie where an entry may begin");
    flip(&sample.journal(), position as usize + HEAD + RECORD);
    assert!(matches!(sample.is_refused(), JournalError::Damaged { .. }));
    flip(&sample.journal(), position as usize + HEAD + RECORD);
    assert_eq!(sample.recover().unwrap(), Some(2));
    assert_eq!(fs::read(&sample.path).unwrap()[PAGE..2 * PAGE], page);
}

/// A journal as it is read: how much, and how far the store was told before.
struct Counted {
    journal: FileStore,
    read: AtomicU64,
    told: AtomicU64,
    least_ahead: AtomicU64,
}

impl Store for Counted {
    fn name(&self) -> String {
        self.journal.name()
    }

    fn version(&self) -> std::io::Result<Version> {
        self.journal.version()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let ahead = self.told.load(Ordering::SeqCst).saturating_sub(offset);
        if self.told.load(Ordering::SeqCst) < self.version()?.len {
            self.least_ahead.fetch_min(ahead, Ordering::SeqCst);
        }
        let read = self.journal.read_at(offset, buf)?;
        self.read.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.told.fetch_max(range.end, Ordering::SeqCst);
        self.journal.prefetch(range);
    }
}

#[test]
fn a_journal_is_read_once_and_fetched_ahead() {
    let sample = Sample::new();
    let (place, file) = sample.parts();
    let (atomic, _) = AtomicFile::open(place, file, Limits::default()).unwrap();
    atomic.set_len(16 << 20);
    for round in 0..12 {
        let mut batch = atomic.begin();
        batch.put(round << 20, &vec![round as u8; 1 << 20]).unwrap();
        batch.commit().unwrap();
    }
    drop(atomic);
    let journal = FileStore::open(sample.journal(), &FileOptions::default()).unwrap();
    let len = journal.version().unwrap().len;
    let (read, told, least_ahead) = (0.into(), 0.into(), u64::MAX.into());
    let counted = Counted { journal, read, told, least_ahead };
    assert_eq!(Scan::read(&counted, None).unwrap().commits, 12);
    // What lies across the end of a piece is read twice.
    let (read, ahead) = (counted.read.into_inner(), counted.least_ahead.into_inner());
    assert!((len..len + (1 << 20)).contains(&read), "{read} bytes read of {len}");
    assert!((4 << 20..8 << 20).contains(&ahead), "{ahead} bytes ahead of what is read");
}

/// A large transaction of tiny changes, replayed in a time that grows with their number and not with its square.
#[test]
fn many_small_changes_of_one_page_take_no_time() {
    let sample = Sample::new();
    let atomic = sample.open().unwrap();
    let mut batch = atomic.begin();
    for n in 0..300_000u64 {
        batch.put(n * 7919 % 4000, &n.to_le_bytes()).unwrap();
    }
    batch.commit().unwrap();
    let mut expected = vec![1; PAGE];
    (0..300_000u64)
        .for_each(|n| expected[(n * 7919 % 4000) as usize..][..8].copy_from_slice(&n.to_le_bytes()));
    let mut page = vec![0; PAGE];
    for _ in 0..20 {
        atomic.read(0, &mut page).unwrap();
        assert_eq!(page, expected);
    }
    drop(atomic);
    sample.recover().unwrap();
    assert_eq!(fs::read(&sample.path).unwrap()[..PAGE], expected);
}
