//! Failures of stores and files: typed errors with the values in them, and a process that lives.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    FaultyStore, MODES, Mishap, PAGE, child, contents, dies_by_sigbus, file_of, paged, pager,
    require_userfaultfd, role, run_ok, scratch,
};
use mapwright::stores::Store;
use mapwright::{Advice, Change, Error, Map, MapMut, MapOptions, Strategy};

fn map_of(store: &Arc<FaultyStore>, pager: &mapwright::Pager, mode: mapwright::FaultMode) -> Map {
    paged(pager, mode)
        .deadline(Duration::from_millis(400))
        .open_store(Arc::clone(store) as Arc<dyn Store>)
        .unwrap()
}

fn map_mut_of(store: &Arc<FaultyStore>, pager: &mapwright::Pager, mode: mapwright::FaultMode) -> MapMut {
    paged(pager, mode)
        .deadline(Duration::from_millis(400))
        .open_store_mut(Arc::clone(store) as Arc<dyn Store>)
        .unwrap()
}

#[test]
fn a_read_that_fails_is_an_error_with_its_place_and_number() {
    if !require_userfaultfd() {
        return;
    }
    for (mode, local) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let bytes = contents(64 * PAGE + 5);
        let pager = pager(1 << 20);
        let (bad, good) = (FaultyStore::new(bytes.clone(), local), FaultyStore::new(bytes.clone(), local));
        let (map, other) = (map_of(&bad, &pager, mode), map_of(&good, &pager, mode));
        for mishap in [Mishap::Errno(libc::EIO), Mishap::Empty, Mishap::Panic] {
            bad.on_read(mishap);
            for error in [
                map.get(20480..20490).unwrap_err(),
                map.get_many(&[20480..20490, 81920..81921]).unwrap_err(),
                map.read_at(20480, &mut [0; 8]).unwrap_err(),
                map.prefetch(20480..20481).unwrap_err(),
                map.checked(|view| view[20480]).unwrap_err(),
            ] {
                let Error::Io { operation: "read", path, offset, .. } = &error else {
                    panic!("{mishap:?}: {error:?}")
                };
                assert_eq!(path, "faulty");
                assert!([20480, 81920].contains(offset), "{error}");
                if let Mishap::Errno(errno) = mishap {
                    assert_eq!(error.errno(), Some(errno));
                }
            }
            assert_eq!(other.get(20480..20490).unwrap()[..], bytes[20480..20490], "other maps go on");
            assert_eq!(other[40000], bytes[40000]);
            bad.heal();
            assert!(map.checked(|view| view == &bytes[..]).unwrap(), "healed after {mishap:?}");
            assert!(map[..] == bytes[..]);
            map.evict(..).unwrap();
        }
        assert!(pager.stats().used_bytes <= pager.stats().budget_bytes);
    }
}

#[test]
fn short_and_interrupted_calls_are_no_errors() {
    if !require_userfaultfd() {
        return;
    }
    for mishap in [Mishap::Short, Mishap::Interrupted] {
        let mut bytes = contents(40 * PAGE + 123);
        let store = FaultyStore::new(bytes.clone(), true);
        store.on_read(mishap);
        store.on_write(mishap);
        let pager = pager(16 * PAGE as u64);
        let mut map = paged(&pager, MODES[0]).open_store_mut(Arc::clone(&store) as Arc<dyn Store>).unwrap();
        assert!(map[..] == bytes[..], "{mishap:?}");
        for at in (0..bytes.len()).step_by(3000) {
            map[at] ^= 1;
            bytes[at] ^= 1;
        }
        map.flush().unwrap();
        assert!(store.inner.contents() == bytes, "{mishap:?}");
    }
}

#[test]
fn a_failed_write_is_latched_and_nothing_is_lost() {
    if !require_userfaultfd() {
        return;
    }
    for (mode, local) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        for (on_sync, errno) in [(false, libc::ENOSPC), (false, libc::EIO), (true, libc::EIO)] {
            let mut bytes = contents(64 * PAGE);
            let store = FaultyStore::new(bytes.clone(), local);
            let pager = pager(16 * PAGE as u64);
            let mut map = map_mut_of(&store, &pager, mode);
            map[5000] = 42;
            bytes[5000] = 42;
            if on_sync {
                store.on_sync(Mishap::Errno(errno))
            } else {
                store.on_write(Mishap::Errno(errno))
            }
            let error = map.flush().unwrap_err();
            assert_eq!(error.errno(), Some(errno), "{error}");
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            let again = map.flush().unwrap_err();
            assert!(matches!(&again, Error::Latched { path, .. } if path == "faulty"), "{again:?}");
            store.heal();
            assert!(matches!(map.flush(), Err(Error::Latched { .. })), "until it is acknowledged");
            assert_eq!(map.acknowledge_error().unwrap().errno(), Some(errno));
            assert!(map.acknowledge_error().is_none());
            map.flush().unwrap();
            assert!(store.inner.contents() == bytes, "{mode:?} {local}");
        }
    }
}

#[test]
fn a_full_store_under_pressure_loses_nothing() {
    if !require_userfaultfd() {
        return;
    }
    let mut bytes = contents(64 * PAGE);
    let store = FaultyStore::new(bytes.clone(), true);
    let pager = pager(12 * PAGE as u64);
    let mut map = map_mut_of(&store, &pager, MODES[0]);
    store.on_write(Mishap::Errno(libc::ENOSPC));
    let mut refused = 0;
    for page in 0..32 {
        match map.write_at((page * PAGE) as u64, &[9; 10]) {
            Ok(()) => bytes[page * PAGE..page * PAGE + 10].fill(9),
            Err(error) => {
                assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
        }
    }
    assert!(refused > 0, "the budget is smaller than what was written");
    store.heal();
    assert!(map.acknowledge_error().is_some());
    map.flush().unwrap();
    assert!(store.inner.contents() == bytes);
}

/// One file has most of the budget dirty, and can't be written: others get the rest of it, and nobody else's error.
#[test]
fn a_full_store_is_no_error_of_others() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let bytes = contents(64 * PAGE);
        let (full, good) = (FaultyStore::new(bytes.clone(), true), FaultyStore::new(bytes.clone(), true));
        let pager = pager(64 * PAGE as u64);
        let mut map = map_mut_of(&full, &pager, mode);
        let other = map_of(&good, &pager, mode);
        full.on_write(Mishap::Errno(libc::ENOSPC));
        (0..48).for_each(|page| map[page * PAGE] = 99);
        for round in 0..4 {
            for page in 0..64 {
                let page = (page * 7 + round) % 64 * PAGE;
                let got = other.get(page as u64..(page + PAGE) as u64);
                let got = got.unwrap_or_else(|error| panic!("{mode:?}, page at {page}: {error}"));
                assert!(got[..] == bytes[page..page + PAGE]);
            }
        }
        // What there is no room for is the budget's failure.
        let all = other.get(..40 * PAGE as u64).map(drop);
        assert!(matches!(all, Err(Error::BudgetExhausted { .. })), "{all:?}");
        assert_eq!(map.acknowledge_error().and_then(|error| error.errno()), Some(libc::ENOSPC));
        full.heal();
        map.flush().unwrap();
        let mut expected = bytes.clone();
        (0..48).for_each(|page| expected[page * PAGE] = 99);
        assert!(full.inner.contents() == expected);
    }
}

#[test]
fn a_hanging_store_is_given_up_at_the_deadline_and_others_go_on() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let bytes = contents(600 * PAGE);
        let pager = pager(8 << 20);
        let (bad, good) = (FaultyStore::new(bytes.clone(), false), FaultyStore::new(bytes.clone(), false));
        let (map, other) = (map_of(&bad, &pager, mode), map_of(&good, &pager, mode));
        bad.on_read(Mishap::Hang);
        let since = Instant::now();
        let error = map.get(8192..8193).unwrap_err();
        assert!(matches!(error, Error::TimedOut { offset: 8192, len: 4096, .. }), "{error:?}");
        // More reads than the pager has threads.
        let many: Vec<_> = (0..290u64).map(|i| i * 8192..i * 8192 + 1).collect();
        assert!(matches!(map.get_many(&many), Err(Error::TimedOut { .. })));
        assert!(matches!(map.checked(|view| view[400_000]), Err(Error::TimedOut { .. })));
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        bad.heal();
        assert_eq!(other.get(0..10).unwrap()[..], bytes[..10], "other maps go on");
        assert_eq!(other[77_777], bytes[77_777]);
        while bad.hanging.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        assert!(map.checked(|view| view == &bytes[..]).unwrap(), "after it healed");
    }
}

#[test]
fn other_maps_go_on_while_a_store_hangs_on_more_reads_than_there_are_threads() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let bytes = contents(600 * PAGE);
        let pager = pager(8 << 20);
        let (bad, good) = (FaultyStore::new(bytes.clone(), false), FaultyStore::new(bytes.clone(), true));
        let (map, other) = (map_of(&bad, &pager, mode), map_of(&good, &pager, mode));
        bad.on_read(Mishap::Hang);
        let many: Vec<_> = (0..290u64).map(|i| i * 8192..i * 8192 + 1).collect();
        assert!(matches!(map.get_many(&many), Err(Error::TimedOut { .. })));
        let watchdog =
            common::Watchdog::new(format!("a local map beside a hung one, {mode:?}"), Duration::from_secs(5));
        assert_eq!(other.get(0..10).unwrap()[..], bytes[..10]);
        assert_eq!(other[77_777], bytes[77_777]);
        drop(watchdog);
        bad.heal();
    }
}

#[test]
fn files_changed_by_others() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let dir = scratch();
        let pager = pager(1 << 20);
        let options = paged(&pager, mode);
        let open = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, contents(256 * PAGE)).unwrap();
            (path.clone(), options.clone().open(&path).unwrap())
        };
        let (path, map) = open("truncated");
        assert_eq!(map[0], 1);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let error = map.get(900_000..900_001).unwrap_err();
        let Error::Changed { path: told, change: Change::Truncated { was: 1_048_576, now: 5000 }, .. } =
            &error
        else {
            panic!("{error:?}")
        };
        assert_eq!(told, path.to_str().unwrap());
        assert!(matches!(map.checked(|view| view[800_000]), Err(Error::Changed { .. })));
        let (path, map) = open("modified");
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, vec![9; 256 * PAGE]).unwrap();
        let error = map.get(900_000..900_001).unwrap_err();
        assert!(matches!(error, Error::Changed { change: Change::Modified, .. }), "{error:?}");
        // Replaced and deleted: what was opened is what is read.
        let (path, map) = open("replaced");
        let bytes = contents(256 * PAGE);
        std::fs::write(dir.path().join("new"), b"other").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(map[..] == bytes[..]);
        let (path, map) = open("deleted");
        std::fs::remove_file(&path).unwrap();
        assert!(map.checked(|view| view == &bytes[..]).unwrap());
        let path = dir.path().join("truncated-mut");
        std::fs::write(&path, contents(256 * PAGE)).unwrap();
        let map = options.open_mut(&path).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        assert!(matches!(map.get(900_000..900_001), Err(Error::Changed { .. })));
    }
}

#[test]
fn a_cut_by_another_is_not_hidden_by_our_own_write_back() {
    for strategy in [Strategy::Pager, Strategy::Kernel] {
        if strategy == Strategy::Pager && !require_userfaultfd() {
            continue;
        }
        let dir = scratch();
        let (path, bytes) = file_of(dir.path(), 256 * PAGE);
        let pager = pager(1 << 20);
        let mut map = MapOptions::new().pager(&pager).strategy(strategy).open_mut(&path).unwrap();
        let last = bytes.len() as u64 - 10;
        map.write_at(last, &[7; 10]).unwrap();
        map.flush().unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let cut = |error: Error| {
            let change = Change::Truncated { was: 256 * PAGE as u64, now: 5000 };
            assert!(matches!(&error, Error::Changed { change: told, .. } if *told == change), "{error:?}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 5000, "not extended again");
        };
        if strategy == Strategy::Kernel {
            cut(map.write_at(last, &[8; 10]).unwrap_err());
            cut(map.resize(300 * PAGE as u64).unwrap_err());
            continue;
        }
        map.write_at(last, &[8; 10]).unwrap();
        cut(map.flush().unwrap_err());
        cut(map.acknowledge_error().unwrap());
        map.append(b"more").unwrap();
        cut(map.flush().unwrap_err());
        map.acknowledge_error();
        // What is left of it can still be had.
        map.resize(5000).unwrap();
        map.close().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes[..5000]);
    }
}

#[test]
fn our_own_shrink_is_not_taken_for_anothers() {
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 256 * PAGE);
    let mut map = MapOptions::new().strategy(Strategy::Kernel).open_mut(&path).unwrap();
    map.resize(64 * PAGE as u64).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let was = |error: Error| match error {
        Error::Changed { change: Change::Truncated { was, now: 5000 }, .. } => was,
        error => panic!("{error:?}"),
    };
    assert_eq!(was(map.get(50_000..50_001).unwrap_err()), 64 * PAGE as u64);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(64 * PAGE as u64).unwrap();
    map.resize(32 * PAGE as u64).unwrap();
    map.resize(128 * PAGE as u64).unwrap();
    assert_eq!(map.get(500_000..500_001).unwrap()[0], 0);
}

#[test]
fn truncation_under_the_kernel_strategy() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 256 * PAGE);
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let truncated =
        |error: Error| matches!(error, Error::Changed { change: Change::Truncated { now: 8192, .. }, .. });
    assert!(truncated(map.get(900_000..900_001).unwrap_err()));
    assert!(truncated(map.read_at(900_000, &mut [0; 9]).unwrap_err()));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert!(truncated(map.checked(|view| view[500_000]).unwrap_err())));
        }
    });
    std::fs::write(&path, &bytes).unwrap();
    assert!(map.checked(|view| view == &bytes[..]).unwrap(), "healed");
}

#[test]
fn many_checked_scopes_while_the_file_is_truncated_and_comes_back() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let store = FaultyStore::new(contents(512 * PAGE), true);
        let bytes = contents(512 * PAGE);
        let pager = pager(64 * PAGE as u64);
        let map = map_of(&store, &pager, mode);
        let failed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for own in 0..16 {
                let (map, bytes, failed) = (&map, &bytes, &failed);
                scope.spawn(move || {
                    let mut rng = common::Rng(own);
                    for _ in 0..60 {
                        let page = rng.below(512) as usize;
                        let range = page * PAGE..(page + 3).min(512) * PAGE;
                        match map.checked(|view| view[range.clone()] == bytes[range.clone()]) {
                            Ok(same) => assert!(same, "zeros were shown and nobody was told"),
                            Err(error) => {
                                assert!(matches!(error, Error::Io { .. }), "{error:?}");
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..20 {
                    store.on_read(Mishap::Errno(libc::EIO));
                    std::thread::sleep(Duration::from_millis(3));
                    store.heal();
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        });
        assert!(failed.load(Ordering::Relaxed) > 0);
        map.evict(..).unwrap();
        assert!(map.checked(|view| view == &bytes[..]).unwrap(), "later access works");
    }
}

extern "C" fn own_handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    mapwright_sys::signals::print_raw("own handler called\n");
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(77) };
}

#[test]
fn slices_outside_checked_die_by_sigbus_with_a_message() {
    let this = "slices_outside_checked_die_by_sigbus_with_a_message";
    let Some(role) = role() else {
        if require_userfaultfd() {
            for mode in ["thread", "in-thread"] {
                let text = dies_by_sigbus(child(this, mode));
                assert!(
                    text.contains("use Map::get or Map::checked")
                        && text.contains("faulty: read at offset 8192"),
                    "{text}"
                );
                let output = common::run(child(this, &format!("{mode} own")));
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(77), "{text}");
                assert!(text.contains("own handler called"), "{text}");
            }
        }
        return;
    };
    if role.contains("own") {
        // SAFETY: an all-zero sigaction is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = own_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    }
    let mode = MODES[usize::from(role.starts_with("in-thread"))];
    let store = FaultyStore::new(contents(16 * PAGE), true);
    let pager = pager(1 << 20);
    let map = map_of(&store, &pager, mode);
    store.on_read(Mishap::Errno(libc::EIO));
    assert_ne!(map[8192], 0);
}

#[test]
fn many_threads_enter_the_first_checked_scope_at_once() {
    if !require_userfaultfd() {
        return;
    }
    for (mode, _) in MODES.into_iter().flat_map(|mode| (0..150).map(move |round| (mode, round))) {
        let bytes = contents(4 * PAGE);
        let store = FaultyStore::new(bytes.clone(), true);
        let pager = pager(1 << 20);
        let map = map_of(&store, &pager, mode);
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    together.wait();
                    assert!(map.checked(|view| view == &bytes[..]).unwrap());
                });
            }
        });
    }
}

#[test]
fn a_slice_of_the_kernel_strategy_dies_by_sigbus_with_a_message() {
    let this = "a_slice_of_the_kernel_strategy_dies_by_sigbus_with_a_message";
    if role().is_none() {
        let text = dies_by_sigbus(child(this, "kernel"));
        assert!(text.contains("use Map::get or Map::checked") && text.contains("truncated"), "{text}");
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 256 * PAGE);
    let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    std::fs::remove_file(&path).unwrap(); // this process will not come to its end
    std::fs::remove_dir(dir.path()).unwrap();
    assert_ne!(map[900_000], 0);
}

#[test]
fn a_programs_own_sigbus_stays_its_own() {
    let this = "a_programs_own_sigbus_stays_its_own";
    if role().is_none() {
        if require_userfaultfd() {
            let output = common::run(child(this, "own"));
            assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stderr));
        }
        return;
    }
    // SAFETY: an all-zero sigaction is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = own_handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for.
    unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    let store = FaultyStore::new(contents(16 * PAGE), true);
    let pager = pager(1 << 20);
    let map = map_of(&store, &pager, mapwright::FaultMode::InThread);
    assert_eq!(map[8192], contents(16 * PAGE)[8192], "faults of ours are served");
    // A mapping of the program's own, past the end of its file.
    let dir = scratch();
    let (path, _) = file_of(dir.path(), PAGE);
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: nothing else uses the file.
    let own = unsafe { memmap2::MmapOptions::new().len(4 * PAGE).map(&file) }.unwrap();
    drop(dir);
    assert_ne!(own[2 * PAGE], 0, "the program's handler ends the process before this is compared");
}

#[test]
fn a_writable_file_that_is_replaced_or_deleted_is_written_where_it_is() {
    if !require_userfaultfd() {
        return;
    }
    for strategy in [Strategy::Pager, Strategy::Kernel] {
        let dir = scratch();
        let (path, bytes) = file_of(dir.path(), 64 * PAGE);
        let kept = std::fs::File::open(&path).unwrap();
        let pager = pager(1 << 20);
        let mut map = MapOptions::new().pager(&pager).strategy(strategy).open_mut(&path).unwrap();
        std::fs::write(dir.path().join("new"), b"other").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(map[..] == bytes[..], "what was opened is what is read");
        map[5000] ^= 1;
        map.flush().unwrap();
        std::fs::remove_file(&path).unwrap();
        map[6000] ^= 1;
        map.close().unwrap();
        let mut found = vec![0; bytes.len()];
        std::os::unix::fs::FileExt::read_exact_at(&kept, &mut found, 0).unwrap();
        assert_eq!((found[5000], found[6000]), (bytes[5000] ^ 1, bytes[6000] ^ 1));
    }
}

#[test]
fn a_real_file_system_that_is_full() {
    if !require_userfaultfd() {
        return;
    }
    common::on_a_small_file_system("a_real_file_system_that_is_full", |path| {
        let pager = pager(8 << 20);
        let mut map = paged(&pager, MODES[0]).open_mut(path).unwrap();
        map.fill(3);
        let error = map.flush().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().contains("sparse"), "{error}");
        assert!(map.iter().all(|byte| *byte == 3), "still there");
        map.acknowledge_error();
        map.resize(512 << 10).unwrap();
        map.close().unwrap();
        assert!(std::fs::read(path).unwrap() == vec![3; 512 << 10]);
    });
}

/// Makes page `bad` read as zeros in the scope of `view`, then lets the store heal.
fn touch_unreadable(store: &FaultyStore, view: &[u8], bad: usize) {
    store.on_read(Mishap::Errno(libc::EIO));
    assert_eq!(view[bad * PAGE], 0);
    store.heal();
}

#[test]
fn a_flush_beside_zeros_in_a_checked_scope_is_no_error() {
    if !require_userfaultfd() {
        return;
    }
    for mode in MODES {
        let store = FaultyStore::new(contents(64 * PAGE), true);
        let pager = pager(1 << 20);
        let mut map = map_mut_of(&store, &pager, mode);
        map.advise(Advice::Random).unwrap();
        map[PAGE] = 77;
        let mut flushed = Ok(());
        let outcome = map.checked(|view| {
            assert_eq!(view[9 * PAGE + 20], contents(64 * PAGE)[9 * PAGE + 20]);
            touch_unreadable(&store, view, 10);
            flushed = map.flush();
        });
        assert!(matches!(outcome, Err(Error::Io { .. })), "{outcome:?}");
        flushed.unwrap();
        assert_eq!(store.inner.contents()[PAGE], 77);
    }
}

#[test]
fn a_page_that_raised_sigbus_can_be_overwritten_and_touched() {
    static RAISED: AtomicBool = AtomicBool::new(false);
    extern "C" fn sleep_on(_: libc::c_int) {
        RAISED.store(true, Ordering::SeqCst);
        loop {
            // SAFETY: pause has no preconditions.
            unsafe { libc::pause() };
        }
    }
    let this = "a_page_that_raised_sigbus_can_be_overwritten_and_touched";
    if role().is_none() {
        if require_userfaultfd() {
            run_ok(child(this, "survivor"));
        }
        return;
    }
    // SAFETY: the handler only stores to an atomic and calls pause, which are async-signal-safe.
    unsafe { libc::signal(libc::SIGBUS, sleep_on as *const () as usize) };
    let mut bytes = contents(64 * PAGE);
    let store = FaultyStore::new(bytes.clone(), true);
    let pager = pager(1 << 20);
    let mut map = map_mut_of(&store, &pager, MODES[0]);
    map.advise(Advice::Random).unwrap();
    store.on_read(Mishap::Errno(libc::EIO));
    let at = map[5 * PAGE..].as_ptr() as usize;
    // SAFETY: the address is one of the map's, which lives until the process ends.
    std::thread::spawn(move || unsafe { std::ptr::read_volatile(at as *const u8) });
    let watchdog = common::Watchdog::new("a page that cannot be read", Duration::from_secs(5));
    while !RAISED.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(watchdog);
    store.heal();
    map.overwrite(5 * PAGE as u64, &[7; PAGE]).unwrap();
    bytes[5 * PAGE..6 * PAGE].fill(7);
    let watchdog = common::Watchdog::new("a page that was overwritten", Duration::from_secs(5));
    assert!(map[..] == bytes[..]);
    drop(watchdog);
    std::mem::forget(map); // a thread still has its address
}
