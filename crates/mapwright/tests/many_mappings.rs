//! 60,000 mappings in one process, and the limit on them. In a child: its limits are its own.
#![allow(missing_docs)]

mod common;

use common::{PAGE, child, role, run_ok};
use mapwright::Error;
use mapwright::mmap::{MmapMut, MmapOptions, MmapRawRead, Reservation};

fn limit() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

#[test]
fn the_limit_on_mappings_is_met_by_name_and_mappings_come_back() {
    let this = "the_limit_on_mappings_is_met_by_name_and_mappings_come_back";
    if role().is_none() {
        run_ok(child(this, "many"));
        return;
    }
    if limit() > 200_000 {
        return common::skip("vm.max_map_count is too large to be met");
    }
    let dir = common::scratch();
    let (path, bytes) = common::file_of(dir.path(), 2 * PAGE);
    let file = std::fs::File::open(&path).unwrap();
    // The same page of a file: the kernel can't make one mapping of neighbours.
    let map = || -> Result<MmapRawRead, Error> { MmapOptions::new().len(PAGE).map_raw_read_only(&file) };
    let mut maps = Vec::with_capacity(limit() + 10);
    let error = loop {
        match map() {
            Ok(one) => maps.push(one),
            Err(error) => break error,
        }
    };
    let Error::LimitReached { limit: name, value, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*name, *value), ("vm.max_map_count", limit() as u64));
    assert!(error.to_string().contains("vm.max_map_count") && error.errno() == Some(libc::ENOMEM), "{error}");
    assert!(maps.len() >= limit() - 500, "{} mappings", maps.len());
    for one in maps.iter().step_by(997) {
        assert!(one.to_vec(..).unwrap() == bytes[..PAGE]);
    }
    let before = maps.len();
    maps.truncate(before / 2);
    while maps.len() < before {
        maps.push(map().expect("what was freed can be had again"));
    }
    assert!(map().is_err() && MmapMut::map_anon(PAGE).is_err());
    drop(maps);

    // A change of protection splits mappings, and meets the limit as well: the mapping is given back.
    let whole = MmapMut::map_anon(2 * PAGE * limit()).unwrap();
    let mut kept = Vec::with_capacity(limit());
    let mut rest = whole;
    let refused = loop {
        let (one, more) = rest.split_at(PAGE).unwrap();
        let (other, more) = more.split_at(PAGE).unwrap();
        rest = more;
        match one.make_read_only() {
            Ok(one) => kept.push((one, other)),
            Err(refused) => break refused,
        }
    };
    assert!(
        matches!(&*refused.error, Error::LimitReached { limit: "vm.max_map_count", .. }),
        "{}",
        refused.error
    );
    let mut one = refused.mapping;
    one[0] = 1;
    assert!(kept.len() > limit() / 2 - 500, "{} protected", kept.len());
    // Unmapping the middle of a mapping at the limit can't succeed; the memory is freed all the same, and nothing ends.
    let closed = one.close();
    assert!(
        closed.is_ok() || matches!(&closed, Err(Error::LimitReached { operation: "munmap", .. })),
        "{closed:?}"
    );
    drop((kept, rest));
    let again: Vec<MmapRawRead> = (0..60_000.min(limit() - 1000)).map(|_| map().unwrap()).collect();
    assert!(again.len() >= 60_000 || limit() < 61_000);
}

/// A move over reserved addresses meets the limit a little earlier than a new mapping does: where the latter still succeeds, nothing
/// of the reservation is lost.
#[test]
fn a_place_that_met_the_limit_is_free_again() {
    let this = "a_place_that_met_the_limit_is_free_again";
    if role().is_none() {
        run_ok(child(this, "many"));
        return;
    }
    if limit() > 200_000 {
        return common::skip("vm.max_map_count is too large to be met");
    }
    let dir = common::scratch();
    let (path, _) = common::file_of(dir.path(), PAGE);
    let file = std::fs::File::open(&path).unwrap();
    let map = || MmapOptions::new().len(PAGE).map_raw_read_only(&file);
    let space = Reservation::new(64 * PAGE).unwrap();
    let place = |at: usize| MmapOptions::new().len(PAGE).place(&space, at * PAGE).map_raw_read_only(&file);
    let mut maps = Vec::with_capacity(limit() + 10);
    while let Ok(one) = map() {
        maps.push(one);
    }
    for free in 1..16 {
        maps.pop(); // one mapping more below the limit each time
        let before = space.taken();
        match place(free * 2) {
            Ok(one) => one.close().unwrap(),
            Err(error) => {
                assert!(matches!(&error, Error::LimitReached { limit: "vm.max_map_count", .. }), "{error}");
                assert_eq!(space.taken(), before, "{free} below the limit");
            }
        }
    }
    drop(maps);
    let all: Vec<_> = (0..64).map(|at| place(at).expect("all of it is free")).collect();
    assert_eq!(space.taken().len(), 64);
    drop(all);
    assert_eq!(space.taken(), []);
}
