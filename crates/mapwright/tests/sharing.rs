//! Who may have a file open, what is shared, what is left behind, and machines that allow less.
#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{
    MODES, PAGE, child, child_as_nobody, file_of, paged, pager, require_root, require_userfaultfd, role,
    run_ok, scratch,
};
use mapwright::{Error, FaultMode, Map, MapMut, MapOptions, Strategy};

#[test]
fn two_maps_of_a_file_share_one_cache() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 300 * PAGE);
    for mode in MODES {
        let pager = pager(8 << 20);
        let (one, two) = (paged(&pager, mode).open(&path).unwrap(), paged(&pager, mode).open(&path).unwrap());
        assert!(one[..] == bytes[..]);
        // Bytes may be read a moment before their fill is counted.
        let filled = || pager.stats().fills == 300;
        assert!((0..1000).any(|_| filled() || {
            std::thread::sleep(Duration::from_millis(1));
            false
        }));
        assert!(two[..] == bytes[..] && two.checked(|view| view == &bytes[..]).unwrap());
        assert!(filled(), "{}", pager.stats().fills);
        drop(pager);
        drop(one);
        assert!(two[..] == bytes[..], "a map outlives the pager's handle and the other map");
    }
}

#[test]
fn threads_share_a_writable_map_with_every_strategy_that_can() {
    for strategy in [Strategy::Pager, Strategy::Kernel, Strategy::Buffer] {
        if strategy == Strategy::Pager && !require_userfaultfd() {
            continue;
        }
        let dir = scratch();
        let (path, mut bytes) = file_of(dir.path(), 64 * PAGE + 5);
        let pager = pager(1 << 20);
        let options = MapOptions::new().pager(&pager).strategy(strategy).range(3..);
        let mut map = options.open_mut(&path).unwrap();
        let shared = map.shared();
        let mut head = [0; 100];
        shared.read_at(0, &mut head).unwrap();
        assert_eq!(head[..], bytes[3..103]);
        if strategy == Strategy::Buffer {
            for refused in [shared.write_at(0, &[1]), shared.overwrite(0, &[1])] {
                let text = refused.unwrap_err().to_string();
                assert!(text.contains("MapMut::shared with strategy buffer (asked for)"), "{text}");
                assert!(text.contains(path.to_str().unwrap()) && text.contains("Strategy::Kernel"), "{text}");
            }
            continue;
        }
        // Each thread has every fourth stretch of 1000 bytes: four of them at a time write to a page.
        std::thread::scope(|scope| {
            for own in 0..4u8 {
                scope.spawn(move || {
                    for at in (usize::from(own) * 1000..64 * PAGE - 1000).step_by(4000) {
                        if at % 8000 < 4000 {
                            shared.write_at(at as u64, &[own; 1000]).unwrap();
                        } else {
                            shared.overwrite(at as u64, &[own; 1000]).unwrap();
                        }
                    }
                });
            }
        });
        for own in 0..4u8 {
            for at in (usize::from(own) * 1000..64 * PAGE - 1000).step_by(4000) {
                bytes[3 + at..3 + at + 1000].fill(own);
            }
        }
        assert!(map[..] == bytes[3..], "{strategy}");
        map.close().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "{strategy}");
    }
}

#[test]
fn one_writer_and_no_readers_beside_it() {
    if !require_userfaultfd() {
        return;
    }
    let this = "one_writer_and_no_readers_beside_it";
    if let Some(path) = role() {
        let error = MapMut::open(&path).unwrap_err();
        assert!(matches!(&error, Error::Locked { path: told, .. } if *told == path), "{error:?}");
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 300 * PAGE);
    for mode in MODES {
        let pager = pager(8 << 20);
        let options = paged(&pager, mode);
        for _ in 0..20 {
            let reader = options.open(&path).unwrap();
            assert_eq!(reader[4096], 2);
            assert!(matches!(options.open_mut(&path), Err(Error::Locked { .. })));
            drop(reader);
            let writer = options.open_mut(&path).unwrap();
            assert_eq!(writer[4096], 2);
            assert!(matches!(options.open(&path), Err(Error::Locked { .. })));
            assert!(matches!(options.open_mut(&path), Err(Error::Locked { .. })));
        }
        let writer = options.open_mut(&path).unwrap();
        run_ok(child(this, path.to_str().unwrap()));
        writer.close().unwrap();
        options.open_mut(&path).unwrap().close().unwrap();
    }
}

fn count(what: &str) -> usize {
    match what {
        "maps" => std::fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
        what => std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count(),
    }
}

#[test]
fn a_thousand_maps_leave_nothing_behind() {
    let this = "a_thousand_maps_leave_nothing_behind";
    if role().is_none() {
        if require_userfaultfd() {
            run_ok(child(this, "alone"));
        }
        return;
    }
    let dir = scratch();
    let (path, _) = file_of(dir.path(), 40 * PAGE);
    let round = |n: usize| {
        for i in 0..n {
            let pager = pager(1 << 20);
            let map = paged(&pager, MODES[i % 2]).open(&path).unwrap();
            assert_eq!(map[4096 * 7] | 1, 9);
            map.checked(|view| assert_eq!(view[4096], 2)).unwrap();
            drop(map);
            let mut map = paged(&pager, MODES[i % 2]).open_mut(&path).unwrap();
            map[1] = 1;
            drop(map);
            let map = MapOptions::new().strategy(Strategy::Kernel).open(&path).unwrap();
            map.checked(|view| assert_eq!(view[4096], 2)).unwrap();
        }
    };
    let settled = |most: Option<[usize; 3]>| {
        let since = Instant::now();
        loop {
            let now = ["fd", "task", "maps"].map(count);
            let few = most.is_none_or(|most| now.iter().zip(most).all(|(now, most)| *now <= most));
            if few && since.elapsed() > Duration::from_millis(300) {
                return now;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "{now:?} after {most:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    round(30);
    let before = settled(None);
    round(333);
    // Thread stacks that the C library keeps for later come and go.
    settled(Some([before[0], before[1], before[2] + 24]));
}

#[test]
fn strategies_say_why() {
    let dir = scratch();
    let (small, _) = file_of(dir.path(), 100);
    let (large, _) = file_of(dir.path(), 1 << 20);
    let choice = |map: Map| (map.strategy().strategy(), map.strategy().reason().to_owned());
    let (strategy, reason) = choice(Map::open(&small).unwrap());
    assert!(strategy == Strategy::Buffer && reason.contains("small"), "{strategy} {reason}");
    for asked in [Strategy::Buffer, Strategy::Kernel] {
        let (strategy, reason) = choice(MapOptions::new().strategy(asked).open(&large).unwrap());
        assert!(strategy == asked && reason.contains("asked"), "{strategy} {reason}");
    }
    if require_userfaultfd() {
        let (strategy, reason) = choice(Map::open(&large).unwrap());
        assert!(strategy == Strategy::Pager && reason.contains("userfaultfd"), "{strategy} {reason}");
    }
}

#[test]
fn where_userfaultfd_is_refused_the_kernel_maps() {
    let this = "where_userfaultfd_is_refused_the_kernel_maps";
    let dir = common::public_scratch();
    let Some(path) = role() else {
        if require_root() {
            let (path, _) = file_of(dir.path(), 1 << 20);
            run_ok(child_as_nobody(this, path.to_str().unwrap(), dir.path()));
        }
        return;
    };
    mapwright_sys::testing::refuse_system_calls(&[libc::SYS_userfaultfd], libc::EPERM).unwrap();
    let map = Map::open(&path).unwrap();
    assert_eq!(map.strategy().strategy(), Strategy::Kernel);
    assert!(map.strategy().reason().contains("seccomp"), "{}", map.strategy());
    assert_eq!(map[4096], 2);
    let error = MapOptions::new().strategy(Strategy::Pager).open(&path).unwrap_err();
    assert!(matches!(error, Error::Unsupported { feature: "userfaultfd", .. }), "{error:?}");
    assert_eq!(error.errno(), Some(libc::EPERM));
}

#[test]
fn an_unprivileged_user_has_slices_in_both_modes() {
    let this = "an_unprivileged_user_has_slices_in_both_modes";
    let dir = common::public_scratch();
    let Some(path) = role() else {
        if require_root() && require_userfaultfd() {
            let (path, _) = file_of(dir.path(), 1 << 20);
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
            run_ok(child_as_nobody(this, path.to_str().unwrap(), dir.path()));
        }
        return;
    };
    let bytes = std::fs::read(&path).unwrap();
    for mode in [FaultMode::Thread, FaultMode::InThread] {
        let pager = pager(256 << 10);
        assert!(paged(&pager, mode).open(&path).unwrap()[..] == bytes[..], "{mode:?}");
        let mut map = paged(&pager, mode).open_mut(&path).unwrap();
        map[70_000] = map[70_000].wrapping_add(0);
        assert!(map.checked(|view| view == &bytes[..]).unwrap());
        map.close().unwrap();
    }
}

#[test]
fn where_userfaultfd_is_refused_a_store_is_read_and_the_reason_given() {
    let this = "where_userfaultfd_is_refused_a_store_is_read_and_the_reason_given";
    if role().is_none() {
        run_ok(common::child(this, "refused"));
        return;
    }
    mapwright_sys::testing::refuse_system_calls(&[libc::SYS_userfaultfd, libc::SYS_openat], libc::EPERM)
        .unwrap();
    let store = || std::sync::Arc::new(mapwright::stores::MemoryStore::new(vec![1; 1 << 20]));
    let pager = pager(1 << 20);
    let options = MapOptions::new().pager(&pager);
    let (map, map_mut) = (options.open_store(store()).unwrap(), options.open_store_mut(store()).unwrap());
    for choice in [map.strategy(), map_mut.strategy()] {
        assert_eq!(choice.strategy(), Strategy::Buffer);
        assert!(choice.reason().contains("userfaultfd"), "{choice}");
    }
    let asked = options.strategy(Strategy::Buffer).open_store(store()).unwrap();
    assert_eq!(asked.strategy().reason(), "asked for");
}
