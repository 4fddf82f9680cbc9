//! Commits through maps: all or nothing, rolled back, viewed, larger than memory, shared, and left behind by a program that died.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MODES, PAGE, Rng, child, contents, file_of, pager, require_userfaultfd, role, run_ok, scratch};
use mapwright::journal::place::Directory;
use mapwright::journal::{Accept, recover};
use mapwright::stores::{FileOptions, FileStore};
use mapwright::{Durability, Error, JournalError, Map, MapMut, MapOptions, Pager, Strategy};

fn atomic(pager: &Pager) -> MapOptions {
    MapOptions::new().pager(pager).durability(Durability::Atomic)
}

fn journal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".mapwright-journal");
    name.into()
}

/// What recovery makes of a copy of file and journal as they are now: what a crash of the program leaves.
fn after_a_crash(path: &Path) -> Vec<u8> {
    let dir = scratch();
    let copy = dir.path().join(path.file_name().unwrap());
    // Not at one time: while a checkpoint or the evictor is at work, the two are copied again until the journal was the same all
    // the while. What a checkpoint writes to the file meanwhile is in that journal too.
    loop {
        let journal = fs::read(journal_of(path)).unwrap();
        fs::copy(path, &copy).unwrap();
        fs::write(journal_of(&copy), &journal).unwrap();
        if fs::read(journal_of(path)).unwrap() == journal {
            break;
        }
    }
    let store = FileStore::open(&copy, &FileOptions { write: true, direct: false }).unwrap();
    let place = Directory::of(store.as_fd(), &copy).unwrap();
    recover(&place, &store, Accept::Copy).unwrap().expect("a journal");
    fs::read(&copy).unwrap()
}

#[test]
fn a_commit_is_all_or_nothing() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 64 * PAGE + 5);
    for mode in MODES {
        let pager = pager(8 << 20);
        let mut map = atomic(&pager).fault_mode(mode).open_mut(&path).unwrap();
        for round in 1..20u8 {
            let committed = bytes.clone();
            for at in [usize::from(round), 5 * PAGE - 2, 64 * PAGE + 4] {
                map[at] = round;
                bytes[at] = round;
            }
            map.write_at(9 * PAGE as u64, &[round; 3]).unwrap();
            bytes[9 * PAGE..9 * PAGE + 3].fill(round);
            map.overwrite(20 * PAGE as u64, &[round; 2 * PAGE]).unwrap();
            bytes[20 * PAGE..22 * PAGE].fill(round);
            map.checked_mut(|slice| slice[30 * PAGE] = round).unwrap();
            bytes[30 * PAGE] = round;
            assert!(after_a_crash(&path) == committed, "round {round}: not committed yet");
            map.commit().unwrap();
            assert!(after_a_crash(&path) == bytes, "round {round}");
            map.commit().unwrap(); // of nothing
        }
        assert!(map[..] == bytes[..]);
        map[7] ^= 255;
        map.write_at(40_000, b"dropped").unwrap();
        drop(map);
        assert!(fs::read(&path).unwrap() == bytes, "what was committed, and nothing else");
        assert!(!journal_of(&path).exists());
    }
}

#[test]
fn close_and_flush_commit() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 9 * PAGE);
    let pager = pager(1 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    map[0] = 200;
    map[8 * PAGE] = 200;
    map.flush_range(0..1).unwrap();
    assert_eq!(after_a_crash(&path)[8 * PAGE], 200, "a part can't be committed");
    map[1] = 201;
    map.close().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[8 * PAGE]), (200, 201, 200));
    assert!(!journal_of(&path).exists());
}

#[test]
fn a_map_without_slices_commits_and_rolls_back() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 9 * PAGE);
    let mut map = atomic(&pager(1 << 20)).open_mut(&path).unwrap().into_shared();
    map.shared().write_at(5, b"kept").unwrap();
    bytes[5..9].copy_from_slice(b"kept");
    map.shared().commit().unwrap();
    let before = map.shared().snapshot().unwrap();
    map.shared().write_at(5, b"lost").unwrap();
    map.resize(20 * PAGE as u64).unwrap();
    map.rollback().unwrap();
    assert_eq!(map.len(), 9 * PAGE);
    let mut read = [0; 4];
    map.read_at(5, &mut read).unwrap();
    assert_eq!(&read, b"kept");
    before.read_at(5, &mut read).unwrap();
    assert_eq!(&read, b"kept");
    drop(before);
    map.close().unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn a_rollback_drops_what_was_changed() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 100 * PAGE + 17);
    for mode in MODES {
        let pager = pager(8 << 20);
        let mut map = atomic(&pager).fault_mode(mode).reserve(1 << 20).open_mut(&path).unwrap();
        let mut rng = Rng(3);
        for _ in 0..20 {
            for _ in 0..30 {
                let at = rng.below(map.len() as u64) as usize;
                match rng.below(5) {
                    0 => map[at] ^= 1 + rng.below(255) as u8,
                    1 => {
                        let n = (map.len() - at).min(9000);
                        map.overwrite(at as u64, &rng.bytes(n)).unwrap();
                    }
                    2 => map.resize(rng.below(140) * 3333).unwrap(),
                    3 => drop(map.evict(..).unwrap()),
                    _ => {
                        let n = (map.len() - at).min(40);
                        map.write_at(at as u64, &rng.bytes(n)).unwrap();
                    }
                }
                if map.is_empty() {
                    map.resize(5000).unwrap();
                }
            }
            map.rollback().unwrap();
            assert_eq!(map.len(), bytes.len());
            assert!(map[..] == bytes[..]);
        }
        map.commit().unwrap();
        map.close().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    }
}

#[test]
fn a_transaction_may_be_larger_than_the_budget() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, before) = file_of(dir.path(), 8 << 20);
    let pager = pager(1 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    let mut bytes = before.clone();
    let change = |map: &mut MapMut, bytes: &mut [u8], by: u8| {
        for at in (0..bytes.len()).step_by(PAGE) {
            map[at + 9] = map[at + 9].wrapping_add(by);
            bytes[at + 9] = bytes[at + 9].wrapping_add(by);
        }
    };
    change(&mut map, &mut bytes, 1);
    assert!(pager.stats().used_bytes <= 1 << 20);
    assert!(fs::metadata(journal_of(&path)).unwrap().len() > 6 << 20, "most of it was spilled");
    assert!(fs::read(&path).unwrap() == before, "nothing uncommitted reaches the file");
    assert!(map[..] == bytes[..], "what was spilled is read back");
    assert!(after_a_crash(&path) == before);
    map.rollback().unwrap();
    assert!(map[..] == before[..]);
    let mut bytes = before.clone();
    change(&mut map, &mut bytes, 7);
    map.commit().unwrap();
    assert!(after_a_crash(&path) == bytes);
    assert!(map[..] == bytes[..]);
    // And once more, while that is brought to the file.
    for by in 1..5 {
        change(&mut map, &mut bytes, by);
        map.commit().unwrap();
        assert!(after_a_crash(&path) == bytes);
    }
    map.close().unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(pager.stats().used_bytes <= 1 << 20);
}

#[test]
fn everything_is_given_back() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 4 << 20);
    let pager = pager(1 << 20);
    for _ in 0..3 {
        let mut map = atomic(&pager).open_mut(&path).unwrap();
        map[..].fill(3);
        map.commit().unwrap();
        map[..].fill(4);
        drop(map);
        assert_eq!(pager.stats().used_bytes, 0);
    }
}

#[test]
fn a_snapshot_stays_what_it_is() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 300 * PAGE + 9);
    let pager = pager(4 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    map[0] = 99;
    let snapshot = map.snapshot().unwrap();
    let mapped = MapOptions::new().pager(&pager).strategy(Strategy::Pager);
    let view = mapped.open_store(Arc::new(map.snapshot().unwrap())).unwrap();
    for round in 0..6u8 {
        map[..].fill(round);
        map.commit().unwrap();
        map.resize(u64::from(round) * 70_000).unwrap();
    }
    map.commit().unwrap();
    let mut read = vec![0; bytes.len()];
    snapshot.read_at(0, &mut read).unwrap();
    assert!(read == bytes, "what was committed when it was made");
    assert!(view[..] == bytes[..]);
    assert!(matches!(snapshot.read_at(5, &mut read), Err(Error::OutOfRange { .. })));
    let later = map.snapshot().unwrap();
    drop(map);
    assert!(journal_of(&path).exists(), "snapshots need it");
    assert!(matches!(atomic(&pager).open_mut(&path), Err(Error::Locked { .. })));
    let mut read = vec![0; bytes.len()];
    snapshot.read_at(0, &mut read).unwrap();
    assert!(read == bytes && later.len() == 350_000);
    drop((snapshot, view));
    let mut read = vec![9; 350_000];
    later.read_at(0, &mut read).unwrap();
    drop(later);
    assert!(!journal_of(&path).exists());
    assert!(fs::read(&path).unwrap() == read);
}

#[test]
fn the_length_is_a_part_of_the_commit() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 10 * PAGE);
    let pager = pager(1 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    map[9 * PAGE] = 77;
    map.resize(3 * PAGE as u64 + 100).unwrap();
    map.resize(12 * PAGE as u64).unwrap();
    map.append(b"end").unwrap();
    assert!(after_a_crash(&path) == bytes);
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    map.commit().unwrap();
    bytes.truncate(3 * PAGE + 100);
    bytes.resize(12 * PAGE, 0);
    bytes.extend_from_slice(b"end");
    assert!(after_a_crash(&path) == bytes);
    map.evict(..).unwrap();
    assert!(map[..] == bytes[..], "read back, with the file as it was");
    map.resize(0).unwrap();
    map.rollback().unwrap();
    assert!(map[..] == bytes[..]);
    map.close().unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
}

/// Against a plain array, with crashes at random times.
#[test]
fn whatever_is_done_a_crash_leaves_the_last_commit() {
    if !require_userfaultfd() {
        return;
    }
    for seed in 0..8 {
        let dir = scratch();
        let (path, mut bytes) = file_of(dir.path(), 150 * PAGE);
        let mut rng = Rng(seed);
        // Parts of pages are logged of files that are not larger than the budget, where no slices are written through.
        let (budget, slices) = [(256 << 10, true), (4 << 20, false)][(seed / 2 % 2) as usize];
        let pager = pager(budget);
        let options = atomic(&pager).fault_mode(MODES[(seed % 2) as usize]).reserve(4 << 20);
        let mut map = options.open_mut(&path).unwrap();
        let mut committed = bytes.clone();
        for _ in 0..400 {
            let len = bytes.len() as u64;
            let at = rng.below(len) as usize;
            let most = [20, 2000, 20_000][rng.below(3) as usize];
            let n = (1 + rng.below(most) as usize).min(bytes.len() - at);
            match rng.below(20) {
                0..=5 if slices => {
                    let new = rng.bytes(n);
                    map[at..at + n].copy_from_slice(&new);
                    bytes[at..at + n].copy_from_slice(&new);
                }
                0..=9 => {
                    let new = rng.bytes(n);
                    map.write_at(at as u64, &new).unwrap();
                    bytes[at..at + n].copy_from_slice(&new);
                }
                10 | 11 => {
                    let new = rng.bytes(n);
                    map.overwrite(at as u64, &new).unwrap();
                    bytes[at..at + n].copy_from_slice(&new);
                }
                12 => {
                    let len = 1 + rng.below(200 * PAGE as u64);
                    map.resize(len).unwrap();
                    bytes.resize(len as usize, 0);
                }
                13 => drop(map.evict(..).unwrap()),
                14 => {
                    map.rollback().unwrap();
                    bytes.clone_from(&committed);
                }
                15..=17 => {
                    map.commit().unwrap();
                    committed.clone_from(&bytes);
                }
                18 => assert!(after_a_crash(&path) == committed, "seed {seed}"),
                _ => assert!(map[..] == bytes[..], "seed {seed}"),
            }
        }
        assert!(map[..] == bytes[..], "seed {seed}");
        drop(map);
        assert!(fs::read(&path).unwrap() == committed, "seed {seed}");
    }
}

#[test]
fn small_writes_are_logged_as_small_as_they_are() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 64 * PAGE);
    let pager = pager(8 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    let logged = |map: &MapMut, bytes: &[u8]| {
        let before = pager.stats().written_back_bytes;
        map.commit().unwrap();
        assert!(after_a_crash(&path) == bytes);
        (pager.stats().written_back_bytes - before) as usize
    };
    for (at, len) in [(0, 8), (100, 8), (5 * PAGE - 4, 8), (7 * PAGE, PAGE + 1), (63 * PAGE + 4090, 6)] {
        map.write_at(at as u64, &vec![1; len]).unwrap();
        bytes[at..at + len].fill(1);
    }
    assert_eq!(logged(&map, &bytes), 108 + 8 + PAGE + 1 + 6, "from the first byte of a page to the last");
    map.write_at(0, &[2; 2500]).unwrap();
    bytes[..2500].fill(2);
    assert_eq!(logged(&map, &bytes), PAGE, "most of a page is the page");
    map.write_at(0, &[3; 8]).unwrap();
    map[9 * PAGE] = 3;
    bytes[..8].fill(3);
    bytes[9 * PAGE] = 3;
    assert_eq!(logged(&map, &bytes), 2 * PAGE, "nobody knows what was written through a slice");
    map.overwrite(10 * PAGE as u64, &[4; PAGE]).unwrap();
    map.write_at(10 * PAGE as u64 + 5, &[5; 5]).unwrap();
    bytes[10 * PAGE..11 * PAGE].fill(4);
    bytes[10 * PAGE + 5..10 * PAGE + 10].fill(5);
    assert_eq!(logged(&map, &bytes), PAGE);
    map.close().unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn checkpoints_keep_the_journal_short() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 2 << 20);
    let pager = pager(4 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    for round in 0..40u8 {
        for at in (0..bytes.len()).step_by(PAGE * 2) {
            map[at] = round;
            bytes[at] = round;
        }
        map.commit().unwrap();
    }
    assert!(fs::metadata(&path).unwrap().modified().unwrap() > before, "it was written meanwhile");
    let journal = fs::metadata(journal_of(&path)).unwrap().len();
    assert!(journal < 24 << 20, "{journal} bytes after 40 MiB of commits");
    assert!(map[..] == bytes[..]);
    assert!(after_a_crash(&path) == bytes);
}

#[test]
fn an_empty_commit_costs_nothing_to_speak_of() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 16 << 20);
    let pager = pager(32 << 20);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    assert!(map[..] == bytes[..]);
    map[0] = 1;
    map.commit().unwrap();
    let least = (0..1000).map(|_| {
        let since = Instant::now();
        map.commit().unwrap();
        since.elapsed()
    });
    let least = least.min().unwrap();
    println!("an empty commit with {} bytes resident: {least:?}", map.resident_bytes());
    // A debug build may take ten times as long.
    assert!(least < Duration::from_micros(50), "{least:?}");
}

#[test]
fn what_cannot_be_committed_is_said() {
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 3 * PAGE);
    let pager = pager(1 << 20);
    for strategy in [Strategy::Kernel, Strategy::Buffer] {
        let error = atomic(&pager).strategy(strategy).open_mut(&path).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        let mut map = MapOptions::new().strategy(strategy).open_mut(&path).unwrap();
        assert!(matches!(map.commit(), Err(Error::Invalid { .. })));
        assert!(matches!(map.rollback(), Err(Error::Invalid { .. })));
        assert!(matches!(map.snapshot(), Err(Error::Invalid { .. })));
    }
    let store = Arc::new(mapwright::stores::MemoryStore::new(vec![0; PAGE]));
    assert!(matches!(atomic(&pager).open_store_mut(store), Err(Error::Invalid { .. })));
    if !require_userfaultfd() {
        return;
    }
    fs::hard_link(&path, dir.path().join("second")).unwrap();
    let error = atomic(&pager).open_mut(&path).unwrap_err();
    assert!(matches!(&error, Error::Journal(source) if matches!(**source, JournalError::Refused { .. })));
    assert!(error.to_string().contains("names"), "{error}");
}

#[test]
fn scratch_files_are_written_and_not_kept() {
    for strategy in [Strategy::Pager, Strategy::Kernel, Strategy::Buffer] {
        if strategy == Strategy::Pager && !require_userfaultfd() {
            continue;
        }
        let dir = scratch();
        let (path, bytes) = file_of(dir.path(), 3 * PAGE);
        let options = MapOptions::new().strategy(strategy).durability(Durability::None);
        let mut map = options.open_mut(&path).unwrap();
        map[0] = 200;
        map.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap()[0], 200, "{strategy}: flush writes");
        map[0] = 201;
        drop(map);
        let kept = if strategy == Strategy::Kernel { 201 } else { 200 };
        assert_eq!(fs::read(&path).unwrap()[0], kept, "{strategy}: a drop does not");
        assert_eq!(fs::read(&path).unwrap()[1..], bytes[1..]);
    }
}

/// A way to open a file for writing.
type Way = fn(&Path) -> Result<MapMut, Error>;

/// Plays a program that is killed after a commit.
fn die_after_a_commit(path: &str) {
    let mut map = atomic(&pager(1 << 20)).open_mut(path).unwrap();
    map[0] = 200;
    map.commit().unwrap();
    map[0] = 201;
    // SAFETY: kill takes numbers; this process ends.
    unsafe { libc::kill(std::process::id() as i32, libc::SIGKILL) };
}

#[test]
fn a_file_that_a_killed_program_left_is_recovered_before_it_is_used() {
    if !require_userfaultfd() {
        return;
    }
    let this = "a_file_that_a_killed_program_left_is_recovered_before_it_is_used";
    if let Some(path) = role() {
        return die_after_a_commit(&path);
    }
    let ways: [Way; 4] = [
        |path| MapOptions::new().durability(Durability::Atomic).open_mut(path),
        |path| MapOptions::new().open_mut(path),
        |path| MapOptions::new().strategy(Strategy::Kernel).durability(Durability::None).open_mut(path),
        |path| MapOptions::new().strategy(Strategy::Buffer).open_mut(path),
    ];
    for open_mut in ways {
        let dir = scratch();
        let (path, mut bytes) = file_of(dir.path(), 20 * PAGE);
        let output = common::run(child(this, path.to_str().unwrap()));
        assert!(!output.status.success());
        assert!(journal_of(&path).exists());
        assert!(fs::read(&path).unwrap() == bytes, "the commit is in the journal only");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for name in [&path, &link] {
            let refused = Map::open(name).unwrap_err();
            let Error::Journal(source) = &refused else { panic!("{refused:?}") };
            assert!(matches!(**source, JournalError::Unrecovered { .. }), "{refused}");
            assert!(refused.to_string().contains("mapwright recover"), "{refused}");
        }
        let map = open_mut(&path).unwrap();
        bytes[0] = 200;
        assert!(map[..] == bytes[..]);
        drop(map);
        assert!(!journal_of(&path).exists());
        assert!(Map::open(&link).unwrap()[..] == bytes[..]);
    }
}

#[test]
fn another_process_reads_what_the_last_checkpoint_left_and_cannot_write() {
    if !require_userfaultfd() {
        return;
    }
    let this = "another_process_reads_what_the_last_checkpoint_left_and_cannot_write";
    if let Some(path) = role() {
        for durability in [Durability::Atomic, Durability::Flush] {
            let error = MapOptions::new().durability(durability).open_mut(&path).unwrap_err();
            assert!(matches!(&error, Error::Locked { path: told, .. } if *told == path), "{error:?}");
        }
        let map = Map::open(&path).unwrap();
        assert!(map[..] == contents(100 * PAGE)[..]);
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 100 * PAGE);
    let mut map = atomic(&pager(4 << 20)).open_mut(&path).unwrap();
    map[..].fill(9);
    map.commit().unwrap();
    run_ok(child(this, path.to_str().unwrap()));
    bytes.fill(9);
    drop(map);
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn a_child_made_by_fork_leaves_the_journal_alone() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 20 * PAGE);
    let mut map = atomic(&pager(1 << 20)).open_mut(&path).unwrap();
    map[0] = 99;
    map.commit().unwrap();
    // SAFETY: the child calls what a forked child may: the map, which must refuse, and _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused = matches!(map.commit(), Err(Error::Invalid { .. }));
        drop(map);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if refused { 7 } else { 8 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is an int that outlives the call; the child has not been waited for.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
    assert!(journal_of(&path).exists());
    bytes[0] = 99;
    assert!(after_a_crash(&path) == bytes);
    map[1] = 98;
    map.commit().unwrap();
    bytes[1] = 98;
    drop(map);
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn threads_write_and_commit_at_the_same_time() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 64 * PAGE);
    let pager = pager(512 << 10);
    let mut map = atomic(&pager).open_mut(&path).unwrap();
    let shared = map.shared();
    std::thread::scope(|scope| {
        for own in 0..4u64 {
            let path = &path;
            scope.spawn(move || {
                for round in 1..25u8 {
                    for page in (own..64).step_by(4) {
                        shared.write_at(page * PAGE as u64 + 11, &[round; 100]).unwrap();
                    }
                    shared.commit().unwrap();
                    if round % 8 != 0 {
                        continue;
                    }
                    let view = shared.snapshot().unwrap();
                    let mut read = vec![0; 64 * PAGE];
                    view.read_at(0, &mut read).unwrap();
                    for page in (own as usize..64).step_by(4) {
                        assert_eq!(read[page * PAGE + 11..][..100], [round; 100], "{path:?} {own} {page}");
                    }
                }
            });
        }
    });
    map.close().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!((0..64).all(|page| bytes[page * PAGE + 11..][..100] == [24; 100]));
}

#[test]
fn a_part_of_a_file_is_committed_too() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, mut bytes) = file_of(dir.path(), 20 * PAGE);
    let pager = pager(1 << 20);
    let mut map = atomic(&pager).range(5000..9000).block_size(16 << 10).open_mut(&path).unwrap();
    map[3999] = 1;
    map.commit().unwrap();
    bytes[8999] = 1;
    map[0] = 77;
    map.rollback().unwrap();
    assert!(map[..] == bytes[5000..9000]);
    assert!(map.resize(1).is_err());
    drop(map);
    assert!(fs::read(&path).unwrap() == bytes);
}
