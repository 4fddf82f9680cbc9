//! Arguments and files that make no sense: a typed error that says what to do, and an untouched file.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{
    MODES, PAGE, child_as_nobody, file_of, paged, pager, require_root, require_userfaultfd, role, run_ok,
    scratch,
};
use mapwright::stores::MemoryStore;
use mapwright::{Error, Map, MapMut, MapOptions, Pager, Strategy};

#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, Error>, variant: &str, what: &str) {
    let error = result.expect_err("an error");
    let (name, text) = (format!("{error:?}"), error.to_string());
    assert!(name.starts_with(variant), "{variant}: {name}");
    assert!(text.contains(what), "{what:?} in {text:?}");
}

fn unchanged(path: &Path, bytes: &[u8], work: impl FnOnce()) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    work();
    assert!(std::fs::read(path).unwrap() == bytes);
    assert_eq!(std::fs::metadata(path).unwrap().modified().unwrap(), before);
}

#[test]
fn budgets_blocks_and_deadlines() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 300_001);
    unchanged(&path, &bytes, || {
        for budget in [0, 1, 4096, 32767] {
            says(Pager::builder().budget(budget).build(), "Invalid", "at least 32 KiB");
        }
        let pager = pager(16 << 20);
        for block in [0, 1, 2048, 4097, 12288, 4 << 20, usize::MAX] {
            says(paged(&pager, MODES[0]).block_size(block).open(&path), "Invalid", "power of two");
        }
        says(
            paged(&common::pager(64 << 10), MODES[0]).block_size(65536).open(&path),
            "Invalid",
            "at least eight",
        );
        says(paged(&pager, MODES[0]).deadline(Duration::ZERO).open(&path), "Invalid", "deadline");
        says(paged(&pager, MODES[0]).reserve(u64::MAX).open_mut(&path), "Invalid", "reserve less");
        let map = paged(&pager, MODES[0]).deadline(Duration::MAX).open(&path).unwrap();
        assert_eq!(map.get(0..8).unwrap()[0], 1, "a deadline of forever");
    });
}

#[test]
fn ranges() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 300_001);
    let has_pager = require_userfaultfd();
    unchanged(&path, &bytes, || {
        for strategy in [Strategy::Pager, Strategy::Kernel, Strategy::Buffer] {
            if strategy == Strategy::Pager && !has_pager {
                continue;
            }
            let options = MapOptions::new().strategy(strategy);
            let map = options.open(&path).unwrap();
            says(map.get(300_000..300_002), "OutOfRange", "past the end");
            says(map.get(u64::MAX..u64::MAX), "OutOfRange", "past the end");
            says(map.get(0..=u64::MAX), "OutOfRange", "past the end");
            #[allow(clippy::reversed_empty_ranges)]
            says(map.get(10..5), "Invalid", "start");
            says(map.get_many(&[0..1, 300_001..300_002]), "OutOfRange", "past the end");
            says(map.read_at(u64::MAX, &mut [0; 4]), "OutOfRange", "past the end");
            says(map.prefetch(..=300_001), "OutOfRange", "past the end");
            says(map.evict(300_002..), "OutOfRange", "past the end");
            says(options.clone().range(400_000..).open(&path), "OutOfRange", "past the end");
            assert!(map.get(5..5).unwrap().is_empty() && map.get(300_001..).unwrap().is_empty());
            assert!(map.get_many(&[]).unwrap().is_empty());
            says(map.hold_many(&[0..1, 300_001..300_002]), "OutOfRange", "past the end");
            drop(map.hold_many(&[]).unwrap());
            let part = options.clone().range(4097..8195).open(&path).unwrap();
            assert_eq!(part[..], bytes[4097..8195]);
            assert!(part.checked(|view| view == &bytes[4097..8195]).unwrap());
            assert!(options.clone().range(9..9).open(&path).unwrap().is_empty());
            drop((map, part));
            let mut part = options.clone().range(100..).open_mut(&path).unwrap();
            says(part.resize(5), "Invalid", "whole file");
            says(part.append(b"x"), "Invalid", "whole file");
            says(part.write_at(299_900, &[1, 2]), "OutOfRange", "past the end");
            says(part.overwrite(u64::MAX, &[1]), "OutOfRange", "past the end");
        }
    });
}

#[test]
fn growth_past_what_can_be() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 300_001);
    let has_pager = require_userfaultfd();
    unchanged(&path, &bytes, || {
        for strategy in [Strategy::Pager, Strategy::Kernel] {
            if strategy == Strategy::Pager && !has_pager {
                continue;
            }
            let mut map = MapOptions::new().strategy(strategy).reserve(400_000).open_mut(&path).unwrap();
            says(map.resize(1 << 30), "Invalid", "MapOptions::reserve()");
            says(map.append(&[0; 200_000]), "Invalid", "MapOptions::reserve()");
            says(map.resize(u64::MAX), "Invalid", "MapOptions::reserve()");
            assert_eq!(map.len(), 300_001);
        }
    });
    let mut map = MapOptions::new().strategy(Strategy::Buffer).open_mut(&path).unwrap();
    assert!(map.resize(u64::MAX).is_err() && map.resize(1 << 62).is_err());
    assert_eq!(map.len(), 300_001);
    says(map.shared().write_at(0, &[1]), "Invalid", "Strategy::Pager");
}

#[test]
fn things_that_are_no_files() {
    let dir = scratch();
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let missing = dir.path().join("missing");
    for strategy in [Strategy::Auto, Strategy::Pager, Strategy::Kernel, Strategy::Buffer] {
        let options = MapOptions::new().strategy(strategy);
        for (path, what) in [
            (dir.path(), "directory"),
            (&fifo, "cannot be mapped"),
            (&socket, "cannot be mapped"),
            (Path::new("/proc/self/status"), "cannot be mapped"),
        ] {
            says(options.open(path), "NotMappable", what);
        }
        let error = options.open(&missing).unwrap_err();
        assert!(
            matches!(&error, Error::Io { operation: "open", .. }) && error.errno() == Some(libc::ENOENT),
            "{error:?}"
        );
        assert!(options.open_mut(&missing).is_err() && !missing.exists());
    }
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert!(Map::open(&empty).unwrap().is_empty());
    let mut map = MapMut::open(&empty).unwrap();
    assert!(map.is_empty() && map.checked(<[u8]>::len).unwrap() == 0);
    map.append(b"no longer").unwrap();
    map.close().unwrap();
    assert_eq!(std::fs::read(&empty).unwrap(), b"no longer");
    let store = std::sync::Arc::new(MemoryStore::new(vec![1; PAGE]));
    says(MapOptions::new().strategy(Strategy::Kernel).open_store(store), "Invalid", "Strategy::Pager");
}

#[test]
fn files_one_may_not_touch() {
    let this = "files_one_may_not_touch";
    let dir = common::public_scratch();
    let Some(place) = role() else {
        if require_root() {
            use std::os::unix::fs::PermissionsExt;
            let (path, bytes) = file_of(dir.path(), 300_001);
            let secret = dir.path().join("secret");
            std::fs::write(&secret, &bytes).unwrap();
            std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
            unchanged(&path, &bytes, || {
                drop(run_ok(child_as_nobody(this, dir.path().to_str().unwrap(), dir.path())))
            });
        }
        return;
    };
    let place = Path::new(&place);
    says(MapMut::open(place.join("file-300001")), "ReadOnly", "write permission");
    for strategy in [Strategy::Auto, Strategy::Pager, Strategy::Kernel, Strategy::Buffer] {
        let error = MapOptions::new().strategy(strategy).open(place.join("secret")).unwrap_err();
        assert!(
            matches!(error, Error::Io { operation: "open", .. }) && error.errno() == Some(libc::EACCES),
            "{error:?}"
        );
    }
}
