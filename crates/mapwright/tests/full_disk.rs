//! Maps on a disk that is really full: an ext4 of a few MiB in a loop device. What can't be made durable is a typed error, nothing
//! that was acknowledged is lost, and when there is room again the same call succeeds.
//!
//! (The journal by itself is tried in `journal_faults`, on XFS and btrfs too.)
#![allow(missing_docs)]

mod common;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{FullDisk, PAGE, Rng, contents, on_a_loop_device, pager, require_userfaultfd};
use mapwright::{Durability, Error, JournalError, Map, MapMut, MapOptions, Strategy};

const LEN: usize = 64 * PAGE;

/// With a budget, for writing.
fn options(budget: u64) -> MapOptions {
    // Whoever needs room that only the disk could give waits for so long.
    let deadline = Duration::from_millis(200);
    MapOptions::new().pager(&pager(budget)).strategy(Strategy::Pager).reserve(16 << 20).deadline(deadline)
}

fn atomic(path: &Path, budget: u64) -> MapMut {
    options(budget).durability(Durability::Atomic).open_mut(path).unwrap()
}

fn on_ext4(test: &str, body: impl FnOnce(&Path)) {
    on_a_loop_device(test, "ext4", 16, |folder| {
        if require_userfaultfd() {
            body(folder);
        }
    });
}

/// A file that is on the disk.
fn file_in(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("data");
    fs::write(&path, bytes).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    path
}

/// The error of a full disk, or one before it that was latched.
#[track_caller]
fn is_full(error: &Error) {
    assert!(matches!(error, Error::Io { .. } | Error::Latched { .. }), "{error:?}");
    assert_eq!(error.errno(), Some(libc::ENOSPC), "{error:?}");
}

#[track_caller]
fn holds(map: &MapMut, bytes: &[u8]) {
    let mut is = vec![0; bytes.len()];
    assert_eq!(map.len(), bytes.len());
    map.read_at(0, &mut is).unwrap();
    assert!(is == bytes);
}

#[test]
fn commits_are_refused_or_kept() {
    on_ext4("commits_are_refused_or_kept", |folder| {
        let mut committed = contents(LEN);
        let path = file_in(folder, &committed);
        // Less than a transaction changes: it is spilled, which fails too.
        let mut map = atomic(&path, 128 << 10);
        let disk = FullDisk::fill(folder, 64 << 10);
        let mut rng = Rng(5);
        let (mut kept, mut refused) = (0, 0);
        for round in 0..40 {
            // Small ones go on for ever, in what checkpoints free of the journal.
            let is_large = round >= 30 && round % 3 == 0;
            let len = if is_large { LEN } else { 1 + rng.below(3 * PAGE as u64) as usize };
            let at = rng.below((LEN - len) as u64 + 1) as usize;
            let bytes = rng.bytes(len);
            // In parts, so that the first that finds no room ends it.
            let parts = bytes.chunks(PAGE).enumerate();
            let mut written = parts
                .map(|(nth, part)| map.write_at((at + nth * PAGE) as u64, part))
                .try_for_each(|written| written);
            if written.is_ok() {
                written = map.commit();
            }
            let Err(error) = written else {
                committed[at..at + len].copy_from_slice(&bytes);
                kept += 1;
                continue;
            };
            println!("round {round}, {len} bytes: {error}");
            assert!(round >= 30, "it would have fitted: {error}");
            is_full(&error);
            refused += 1;
            let _ = map.acknowledge_error();
            // The commit may be in doubt, and to undo that needs a block as well, which the journal keeps for it.
            map.rollback().unwrap();
            holds(&map, &committed);
        }
        println!("{kept} kept, {refused} refused");
        assert!(kept >= 30 && refused > 0, "{kept} kept, {refused} refused");
        drop(disk);
        committed.copy_from_slice(&Rng(6).bytes(LEN));
        map.write_at(0, &committed).unwrap();
        map.commit().unwrap();
        holds(&map, &committed);
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == committed);
    });
}

#[test]
fn a_commit_that_was_refused_succeeds_when_there_is_room() {
    on_ext4("a_commit_that_was_refused_succeeds_when_there_is_room", |folder| {
        let path = file_in(folder, &contents(LEN));
        let mut map = atomic(&path, 8 << 20);
        let disk = FullDisk::fill(folder, 0);
        let bytes = Rng(1).bytes(LEN + 70_000);
        map.resize(bytes.len() as u64).unwrap();
        map.write_at(0, &bytes).unwrap();
        is_full(&map.commit().unwrap_err());
        assert!(matches!(map.commit(), Err(Error::Latched { .. })), "until it is acknowledged");
        is_full(&map.acknowledge_error().unwrap());
        is_full(&map.commit().unwrap_err());
        let _ = map.acknowledge_error();
        holds(&map, &bytes);
        drop(disk);
        map.commit().unwrap();
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

#[test]
fn a_map_that_is_dropped_on_a_full_disk_leaves_its_last_commit() {
    on_ext4("a_map_that_is_dropped_on_a_full_disk_leaves_its_last_commit", |folder| {
        let path = file_in(folder, &contents(LEN));
        let mut map = atomic(&path, 8 << 20);
        let mut bytes = contents(LEN);
        bytes[5000..9000].fill(7);
        map.write_at(5000, &[7; 4000]).unwrap();
        map.commit().unwrap();
        let disk = FullDisk::fill(folder, 0);
        map.write_at(0, &Rng(2).bytes(LEN)).unwrap();
        is_full(&map.commit().unwrap_err());
        drop(map);
        drop(disk);
        let map = atomic(&path, 1 << 20);
        holds(&map, &bytes);
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

/// The journal has room for a commit, and the file has none.
#[test]
fn a_commit_that_the_file_has_no_room_for_stays_in_the_journal() {
    on_ext4("a_commit_that_the_file_has_no_room_for_stays_in_the_journal", |folder| {
        let mut bytes = contents(LEN);
        let path = file_in(folder, &bytes);
        let mut map = atomic(&path, 8 << 20);
        let disk = FullDisk::fill(folder, 1536 << 10);
        bytes.extend(Rng(3).bytes(1 << 20));
        map.append(&bytes[LEN..]).unwrap();
        map.commit().unwrap();
        holds(&map, &bytes);
        is_full(&map.close().unwrap_err());
        let refused = Map::open(&path).unwrap_err();
        assert!(
            matches!(&refused, Error::Journal(error) if matches!(**error, JournalError::Unrecovered { .. })),
            "{refused:?}"
        );
        // Recovery needs that room as well.
        is_full(&options(1 << 20).durability(Durability::Atomic).open_mut(&path).unwrap_err());
        drop(disk);
        let map = atomic(&path, 1 << 20);
        holds(&map, &bytes);
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

/// A flush that finds no room, and one that does.
fn refused_then_flushed(map: MapMut, path: &Path, bytes: &[u8], disk: FullDisk) {
    is_full(&map.flush().unwrap_err());
    assert!(matches!(map.flush(), Err(Error::Latched { .. })), "until it is acknowledged");
    is_full(&map.acknowledge_error().unwrap());
    is_full(&map.flush().unwrap_err());
    let _ = map.acknowledge_error();
    holds(&map, bytes);
    drop(disk);
    map.flush().unwrap();
    holds(&map, bytes);
    map.close().unwrap();
    assert!(fs::read(path).unwrap() == bytes);
}

#[test]
fn holes_that_cannot_be_filled_stay_dirty() {
    on_ext4("holes_that_cannot_be_filled_stay_dirty", |folder| {
        let path = folder.join("data");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut map = options(8 << 20).open_mut(&path).unwrap();
        let disk = FullDisk::fill(folder, 256 << 10);
        let bytes = Rng(4).bytes(4 << 20);
        map.write_at(0, &bytes).unwrap();
        refused_then_flushed(map, &path, &bytes, disk);
    });
}

#[test]
fn what_was_appended_stays_dirty() {
    on_ext4("what_was_appended_stays_dirty", |folder| {
        let mut bytes = contents(LEN);
        let path = file_in(folder, &bytes);
        let mut map = options(8 << 20).open_mut(&path).unwrap();
        let disk = FullDisk::fill(folder, 256 << 10);
        bytes.extend(Rng(4).bytes(1 << 20));
        map.append(&bytes[LEN..]).unwrap();
        refused_then_flushed(map, &path, &bytes, disk);
    });
}

/// Pages that the budget forces out and the disk has no room for: whoever needs the room is told.
#[test]
fn a_write_that_needs_room_of_a_full_disk_is_an_error() {
    on_ext4("a_write_that_needs_room_of_a_full_disk_is_an_error", |folder| {
        let path = folder.join("data");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut map = options(512 << 10).open_mut(&path).unwrap();
        let disk = FullDisk::fill(folder, 256 << 10);
        let bytes = Rng(4).bytes(4 << 20);
        let mut done = 0;
        let refused = loop {
            match map.write_at(done as u64, &bytes[done..done + PAGE]) {
                Ok(()) => done += PAGE,
                Err(error) => break error,
            }
        };
        is_full(&refused);
        assert!(done >= 256 << 10, "{done}");
        // Slices are told by the scope that they are in. Some pages may have room still.
        let mut touched = (done..).step_by(PAGE).take(64);
        let refused =
            touched.find_map(|at| map.checked_mut(|slice| slice[at..at + PAGE].fill(1)).err()).unwrap();
        is_full(&refused);
        drop(disk);
        // ext4 gives the room of a removed file away when its journal has committed that, which a busy disk may do after the deadline.
        let since = Instant::now();
        while let Err(error) = map.write_at(done as u64, &bytes[done..]) {
            is_full(&error);
            assert!(since.elapsed() < Duration::from_secs(60), "there is room, and {error}");
        }
        let _ = map.acknowledge_error(); // of what was forced out before there was room again
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

/// The kernel's own mapping: a store to a hole raises SIGBUS there, and is an error here.
#[test]
fn holes_under_the_kernel_strategy_are_errors() {
    on_ext4("holes_under_the_kernel_strategy_are_errors", |folder| {
        let path = folder.join("data");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut map = MapOptions::new().strategy(Strategy::Kernel).open_mut(&path).unwrap();
        let disk = FullDisk::fill(folder, 256 << 10);
        let bytes = Rng(4).bytes(4 << 20);
        let refused = map.checked_mut(|slice| slice.copy_from_slice(&bytes)).unwrap_err();
        assert!(matches!(refused, Error::Io { .. }), "{refused:?}");
        is_full(&map.write_at(0, &bytes).unwrap_err());
        drop(disk);
        map.checked_mut(|slice| slice.copy_from_slice(&bytes)).unwrap();
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

/// A buffer that is written back whole.
#[test]
fn a_buffer_that_finds_no_room_can_be_flushed_later() {
    on_ext4("a_buffer_that_finds_no_room_can_be_flushed_later", |folder| {
        let path = folder.join("data");
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        let mut map = MapOptions::new().strategy(Strategy::Buffer).open_mut(&path).unwrap();
        let disk = FullDisk::fill(folder, 256 << 10);
        let bytes = Rng(4).bytes(4 << 20);
        map.write_at(0, &bytes).unwrap();
        let refused = map.flush().unwrap_err();
        let Error::Io { source, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        drop(disk);
        map.flush().unwrap();
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    });
}
