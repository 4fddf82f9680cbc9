//! Vectors on files, and views: what is kept, what is refused, what is told.
#![cfg(feature = "zerocopy")]
#![allow(missing_docs)]

mod common;

use std::path::Path;

use common::{child, on_a_small_file_system, pager, require_userfaultfd, role, run, scratch};
use mapwright::mmap::{MemoryFile, MmapMut, MmapOptions};
use mapwright::{Error, MapMut, MapOptions, MapVec, Strategy, ViewProblem, Views, ViewsMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Point {
    x: u32,
    y: u32,
    z: u64,
}

fn point(n: u64) -> Point {
    Point { x: n as u32, y: !(n as u32), z: n.wrapping_mul(0x9e37_79b9) }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(256))]
struct Wide([u8; 256]);

fn strategies() -> Vec<Strategy> {
    if require_userfaultfd() { vec![Strategy::Pager, Strategy::Kernel] } else { vec![Strategy::Kernel] }
}

#[test]
fn it_is_a_vector_by_every_strategy() {
    for strategy in strategies() {
        let dir = scratch();
        let path = dir.path().join("points");
        let pager = pager(1 << 20);
        let options = MapOptions::new().pager(&pager).strategy(strategy);
        let mut vector = MapVec::<Point>::create_with(&options, &path, 7).unwrap();
        assert!(vector.is_empty() && vector.pop().is_none());
        let mut model = Vec::new();
        // More than the pager's budget, so that some of it is read again.
        for n in 0..100_000 {
            vector.push(point(n)).unwrap();
            model.push(point(n));
        }
        let more: Vec<_> = (0..5000).map(point).collect();
        vector.extend_from_slice(&more).unwrap();
        vector.extend(more.iter().copied()).unwrap();
        model.extend(more.iter().chain(&more));
        assert!(vector[..] == model[..], "{strategy}");
        for _ in 0..100 {
            assert_eq!(vector.pop(), model.pop());
        }
        vector.truncate(60_000);
        model.truncate(60_000);
        vector.truncate(90_000);
        vector[5].z = 1;
        model[5].z = 1;
        vector.reverse();
        model.reverse();
        assert!(vector[..] == model[..]);
        vector.close().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 + 60_000 * 16);

        let mut vector = MapVec::<Point>::open_with(&options, &path, 7).unwrap();
        assert!(vector[..] == model[..] && vector.tag() == 7 && vector.map().len() == 64 + 60_000 * 16);
        vector.clear();
        vector.push(point(1)).unwrap();
        drop(vector); // flushes and cuts, too
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 64 + 16);
        let vector = MapVec::<Point>::open_with(&options, &path, 7).unwrap();
        assert_eq!(vector[..], [point(1)]);
    }
}

#[test]
fn growth_is_amortised_and_the_address_stays() {
    for strategy in strategies() {
        let dir = scratch();
        let options = MapOptions::new().strategy(strategy);
        let mut vector = MapVec::<u64>::create_with(&options, dir.path().join("numbers"), 0).unwrap();
        vector.push(0).unwrap();
        let address = vector.as_ptr();
        let (mut steps, mut capacity) = (0, vector.capacity());
        for n in 1..1 << 20 {
            vector.push(n).unwrap();
            if vector.capacity() != capacity {
                (steps, capacity) = (steps + 1, vector.capacity());
            }
        }
        assert!(steps < 20, "{strategy}: {steps} times for a million");
        assert_eq!(vector.as_ptr(), address);
        vector.shrink_to_fit().unwrap();
        assert_eq!(vector.capacity(), 1 << 20);
        vector.reserve(1).unwrap();
        assert!(vector.capacity() > 1 << 20);
        assert!(matches!(vector.reserve(usize::MAX / 2), Err(Error::Invalid { .. })));
        assert!(matches!(vector.reserve(1 << 40), Err(Error::Invalid { .. })), "past what was reserved");
        assert!(vector.iter().copied().eq(0..1 << 20));
    }
    // What is reserved is used to the end.
    let dir = scratch();
    let options = MapOptions::new().strategy(Strategy::Kernel).reserve(100_000);
    let mut vector = MapVec::<[u8; 1000]>::create_with(&options, dir.path().join("reserved"), 0).unwrap();
    let pushed = (0..200).take_while(|n| vector.push([*n; 1000]).is_ok()).count();
    assert!((90..=102).contains(&pushed) && vector.len() == pushed, "{pushed}");
}

#[test]
fn elements_are_aligned_as_they_want() {
    let dir = scratch();
    let path = dir.path().join("wide");
    let mut vector = MapVec::<Wide>::create(&path).unwrap();
    vector.push(Wide([1; 256])).unwrap();
    vector.push(Wide([2; 256])).unwrap();
    assert_eq!(vector.as_ptr() as usize % 256, 0);
    vector.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * 256);
    assert_eq!(MapVec::<Wide>::open(&path).unwrap()[1].0, [2; 256]);
}

#[track_caller]
fn refused<T: FromBytes + IntoBytes + Immutable + KnownLayout>(path: &Path, tag: u64, why: &str) {
    let before = std::fs::read(path).unwrap();
    let error = MapVec::<T>::open_with(&MapOptions::new(), path, tag).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::NotTrusted { what, .. } if what.contains(why)), "{why}: {error}");
    assert!(std::fs::read(path).unwrap() == before, "it was changed");
}

#[test]
fn files_of_another_kind_are_refused_and_not_touched() {
    let dir = scratch();
    let path = dir.path().join("vector");
    let mut vector = MapVec::<Point>::create_with(&MapOptions::new(), &path, 3).unwrap();
    vector.extend((0..100).map(point)).unwrap();
    vector.close().unwrap();
    refused::<u64>(&path, 3, "size of elements is 16, and not 8");
    refused::<u128>(&path, 3, "alignment of elements is 8, and not 16");
    refused::<Point>(&path, 4, "tag is 3, and not 4");
    let good = std::fs::read(&path).unwrap();

    // Any byte of the header turned is noticed; so is a header that is right in itself and wrong about the file.
    for at in 0..64 {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        std::fs::write(&path, &bad).unwrap();
        refused::<Point>(&path, 3, "");
    }
    let signed = |change: &dyn Fn(&mut [u8])| {
        let mut bad = good.clone();
        change(&mut bad);
        let checksum = crc32c(&bad[..60]);
        bad[60..64].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, &bad).unwrap();
    };
    for count in [101, 1 << 32, u64::MAX / 16, u64::MAX / 16 + 1, u64::MAX] {
        signed(&|bad| bad[32..40].copy_from_slice(&u64::to_le_bytes(count)));
        refused::<Point>(&path, 3, "have no room");
    }
    signed(&|bad| bad[8] = 2);
    refused::<Point>(&path, 3, "version is 2, and not 1");
    signed(&|bad| bad[44] = 3 - bad[44]);
    refused::<Point>(&path, 3, "byte order");
    signed(&|bad| bad[12..16].copy_from_slice(&u32::MAX.to_le_bytes()));
    refused::<Point>(&path, 3, "first offset");
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    refused::<Point>(&path, 3, "have no room");
    for len in [0, 1, 63] {
        std::fs::write(&path, &good[..len]).unwrap();
        refused::<Point>(&path, 3, "no vector");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(MapVec::<Point>::open_with(&MapOptions::new(), &path, 3).unwrap().len(), 100);
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[test]
fn nothing_is_made_over_what_is_there_nor_through_a_link() {
    let dir = scratch();
    let path = dir.path().join("there");
    std::fs::write(&path, b"mine").unwrap();
    assert_eq!(MapVec::<u8>::create(&path).unwrap_err().errno(), Some(libc::EEXIST));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    let (link, target) = (dir.path().join("link"), dir.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(MapVec::<u8>::create(&link).unwrap_err().errno(), Some(libc::EEXIST));
    assert!(!target.exists());

    let new = dir.path().join("new");
    for options in [MapOptions::new().range(1..), MapOptions::new().strategy(Strategy::Buffer)] {
        assert!(matches!(MapVec::<u8>::create_with(&options, &new, 0), Err(Error::Invalid { .. })));
        assert!(!new.exists(), "what could not be used is removed");
    }
    let vector = MapVec::<u8>::create(&new).unwrap();
    assert!(matches!(MapVec::<u8>::open(&new), Err(Error::Locked { .. })));
    drop(vector);
}

#[test]
fn a_killed_program_leaves_what_it_has_flushed() {
    let this = "a_killed_program_leaves_what_it_has_flushed";
    if let Some(role) = role() {
        let (strategy, path) = role.split_once(' ').unwrap();
        let strategy = if strategy == "kernel" { Strategy::Kernel } else { Strategy::Pager };
        let options = MapOptions::new().strategy(strategy);
        let mut vector = MapVec::<Point>::create_with(&options, path, 0).unwrap();
        vector.extend((0..30_000).map(point)).unwrap();
        vector.flush().unwrap();
        vector.extend((0..30_000).map(point)).unwrap();
        // SAFETY: raise takes a number.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    for strategy in strategies() {
        let dir = scratch();
        let path = dir.path().join("killed");
        run(child(this, &format!("{strategy} {}", path.display())));
        let mut vector = MapVec::<Point>::open(&path).unwrap();
        assert!(vector.iter().copied().eq((0..30_000).map(point)), "{strategy}: {}", vector.len());
        vector.push(point(30_000)).unwrap();
        vector.close().unwrap();
        assert_eq!(MapVec::<Point>::open(&path).unwrap().len(), 30_001);
    }
}

#[test]
fn a_full_disk_is_an_error_of_flush_and_the_vector_stays_what_it_was() {
    let this = "a_full_disk_is_an_error_of_flush_and_the_vector_stays_what_it_was";
    on_a_small_file_system(this, |sparse| {
        if !require_userfaultfd() {
            return;
        }
        let path = sparse.with_file_name("vector");
        let pager = pager(8 << 20);
        let options = MapOptions::new().pager(&pager).strategy(Strategy::Pager);
        let mut vector = MapVec::<u64>::create_with(&options, &path, 0).unwrap();
        vector.extend(0..1000).unwrap();
        vector.flush().unwrap();
        vector.extend(0..1 << 18).unwrap(); // 2 MiB, where there is room for one
        let error = vector.flush().unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
        assert!(matches!(vector.flush(), Err(Error::Latched { .. })));
        assert!(vector.acknowledge_error().is_some());
        vector.truncate(1000);
        vector.shrink_to_fit().unwrap();
        vector.close().unwrap();
        assert!(MapVec::<u64>::open(&path).unwrap().iter().copied().eq(0..1000));
    });
}

/// A flush that fails at the header has changed it in memory, where it counts elements that are dropped before the next flush.
#[test]
fn elements_dropped_after_a_flush_that_failed_are_not_counted_again() {
    for strategy in strategies() {
        for is_cut in [false, true] {
            let dir = scratch();
            let path = dir.path().join("vector");
            let options = MapOptions::new().strategy(strategy);
            let mut vector = MapVec::<u64>::create_with(&options, &path, 0).unwrap();
            vector.extend(0..5).unwrap();
            vector.flush().unwrap();
            vector.extend(5..10_000).unwrap();
            vector.map().flush().unwrap(); // what is left for the vector's own flush is the header
            // A filter is for the thread that asks for it.
            std::thread::scope(|scope| {
                let flush = || {
                    let syncs = [libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_msync];
                    let calls = [&syncs[..], &mapwright_sys::testing::IO_URING].concat();
                    mapwright_sys::testing::refuse_system_calls(&calls, libc::EIO).unwrap();
                    assert_eq!(vector.flush().unwrap_err().errno(), Some(libc::EIO), "{strategy}");
                };
                scope.spawn(flush).join().unwrap();
            });
            vector.acknowledge_error();
            vector.truncate(5);
            if is_cut {
                vector.shrink_to_fit().unwrap();
                drop(vector.map().flush()); // a file that is cut before its header says so is not opened again
                assert_eq!(counted(&path), 5, "{strategy}");
            }
            vector.close().unwrap();
            assert!(MapVec::<u64>::open(&path).unwrap().iter().copied().eq(0..5), "{strategy}");
        }
    }
}

/// How many elements the header in a file counts.
fn counted(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    u64::from_le_bytes(bytes[32..40].try_into().unwrap())
}

#[test]
fn views_are_for_all_that_has_bytes() {
    let dir = scratch();
    let path = dir.path().join("file");
    let points: Vec<_> = (0..10_000).map(point).collect();
    std::fs::write(&path, points.as_bytes()).unwrap();
    for strategy in [strategies(), vec![Strategy::Buffer]].concat() {
        let options = MapOptions::new().strategy(strategy);
        let map = options.open(&path).unwrap();
        assert_eq!(map.view_all::<Point>().unwrap(), points, "{strategy}");
        assert_eq!(*map.view::<Point>(160).unwrap(), points[10]);
        assert_eq!(map.get(160..192).unwrap().view_slice::<Point>(0, 2).unwrap(), &points[10..12]);
        drop(map);
        let part = options.clone().range(1..).open(&path).unwrap();
        if strategy != Strategy::Buffer {
            let error = part.view::<Point>(160).unwrap_err();
            let problem = ViewProblem::Misaligned { align: 8, rest: 1 };
            assert!(matches!(error, Error::View { problem: told, .. } if told == problem), "{error}");
        }
        assert_eq!(part.read_value::<Point>(159).unwrap(), points[10]);
        drop(part);
        let mut map: MapMut = options.open_mut(&path).unwrap();
        map.view_slice_mut::<Point>(0, 2).unwrap().swap(0, 1);
        map.view_slice_mut::<Point>(0, 2).unwrap().swap(0, 1);
        map.close().unwrap();
    }
    let mut memory = MmapMut::map_anon(8192).unwrap();
    memory.write_value(4093, &points[3]).unwrap();
    assert_eq!(memory.read_value::<Point>(4093).unwrap(), points[3]);
    assert!(memory.view_slice::<u64>(0, 1025).is_err());

    // Shared memory is copied, over page ends and unaligned too.
    let shared = MemoryFile::create("values", 8192).unwrap().map().unwrap();
    shared.write_value(4091, &points[4]).unwrap();
    assert_eq!(shared.read_value::<Point>(4091).unwrap(), points[4]);
    assert!(matches!(shared.read_value::<Point>(8180), Err(Error::OutOfRange { .. })));
    assert!(matches!(shared.write_value(usize::MAX, &points[4]), Err(Error::OutOfRange { .. })));
    let read = MmapOptions::new().offset(1).open(&path).unwrap();
    assert_eq!(read.read_value::<Point>(159).unwrap(), points[10]);
}
