//! The kinds of kernel mappings: what can be made, what each shows to whom, and how one becomes another.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{PAGE, child, contents, file_of, role, run, run_ok, scratch};
use mapwright::Error;
use mapwright::mmap::{
    GuardKind, MapAssumed, MapAssumedWith, Mapping, Mmap, MmapMut, MmapOptions, MmapRaw, NumaPolicy,
    Reservation, Resize,
};

fn read_write(path: &std::path::Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// The permissions of the mapping at an address, as /proc/self/maps shows them.
fn permissions(address: *const u8) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let number = |hex| usize::from_str_radix(hex, 16).unwrap();
        if (number(start)..number(end)).contains(&(address as usize)) {
            return rest[..4].to_owned();
        }
    }
    "none".to_owned()
}

#[test]
fn anonymous_memory_is_zero_private_and_goes_through_all_kinds() {
    let mut memory = MmapMut::map_anon(10_000).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0) && memory.len() == 10_000);
    memory[9_999] = 7;
    assert_eq!(permissions(memory.as_ptr()), "rw-p");
    let memory = memory.make_read_only().unwrap();
    assert_eq!((permissions(memory.as_ptr()).as_str(), memory[9_999]), ("r--p", 7));
    let memory = memory.make_exec().unwrap();
    assert_eq!((permissions(memory.as_ptr()).as_str(), memory[9_999]), ("r-xp", 7));
    let memory = memory.make_none().unwrap();
    let address = memory.as_ptr();
    assert_eq!(permissions(address), "---p");
    let mut memory = memory.make_mut().unwrap();
    memory[0] = 1;
    assert_eq!((memory[0], memory[9_999]), (1, 7));
    memory.close().unwrap();
    assert_ne!(permissions(address), "rw-p", "unmapped");
    assert!(
        MmapOptions::new().len(PAGE).map_none().unwrap().make_read_only().unwrap().iter().all(|b| *b == 0)
    );
}

#[test]
fn any_offset_and_length_of_a_file() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 5 * PAGE + 123);
    let file = File::open(&path).unwrap();
    let ends = [0, 1, 4095, 4096, 4097, 8191, 12_288, 5 * PAGE + 122, 5 * PAGE + 123];
    for (start, end) in ends.iter().flat_map(|start| ends.map(|end| (*start, end))).filter(|(a, b)| a <= b) {
        let options = MmapOptions::new().offset(start as u64).len(end - start).clone();
        let raw = options.map_raw_read_only(&file).unwrap();
        assert!(raw.to_vec(..).unwrap() == bytes[start..end], "{start}..{end}");
        // SAFETY: nobody changes the file.
        let map = unsafe { options.map(&file) }.unwrap();
        assert!(map[..] == bytes[start..end], "{start}..{end}");
        assert_eq!((map.file_offset(), map.len()), (start as u64, end - start));
    }
    // SAFETY: nobody changes the file.
    let whole = unsafe { Mmap::map(&file) }.unwrap();
    drop(file);
    assert!(whole[..] == bytes[..], "it outlives the descriptor");
    let error = MmapOptions::new().offset(30_000).open(&path).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { offset: 30_000, file_len: 20_603, .. }), "{error:?}");
    let past = MmapOptions::new().len(40_000);
    // SAFETY: nobody changes the file.
    let error = unsafe { past.map(File::open(&path).unwrap()) }.unwrap_err();
    assert!(matches!(error, Error::OutOfRange { end: 40_000, file_len: 20_603, .. }), "{error:?}");
    let error = MmapOptions::new().offset(u64::MAX - 5).len(3).open(&path).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EOVERFLOW), "{error}");
    let error = MmapOptions::new().len(usize::MAX).open(&path).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EOVERFLOW), "{error}");
}

#[test]
fn empty_files_and_empty_memory_are_empty() {
    let dir = scratch();
    let path = dir.path().join("empty");
    File::create(&path).unwrap();
    let raw = MmapOptions::new().open_mut(&path).unwrap();
    assert!(raw.is_empty() && raw.to_vec(..).unwrap().is_empty());
    raw.flush().unwrap();
    raw.lock().unwrap();
    assert_eq!(raw.residency(..).unwrap().pages(), 0);
    let (front, back) = raw.split_at(0).unwrap();
    assert!(front.is_empty() && back.is_empty());
    let mut memory = MmapMut::map_anon(0).unwrap();
    assert!(memory.is_empty());
    memory.discard(..).unwrap();
    assert!(memory.make_exec().unwrap().make_none().unwrap().is_empty());
    // SAFETY: nobody changes the file.
    assert!(unsafe { Mmap::map(read_write(&path)) }.unwrap().is_empty());
}

#[test]
fn what_is_shared_is_seen_and_what_is_private_is_not() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 3 * PAGE);
    let file = read_write(&path);
    let shared = MmapOptions::new().map_raw(&file).unwrap();
    let read = MmapOptions::new().open(&path).unwrap();
    let copy = MmapOptions::new().open_copy(&path).unwrap();
    copy.write_at(PAGE, b"mine").unwrap();
    shared.write_at(0, b"all").unwrap();
    assert_eq!(read.to_vec(0..3).unwrap(), b"all");
    assert_eq!(copy.to_vec(PAGE..PAGE + 4).unwrap(), b"mine");
    assert_eq!(read.to_vec(PAGE..PAGE + 4).unwrap(), bytes[PAGE..PAGE + 4]);
    assert_eq!(std::fs::read(&path).unwrap()[..3], *b"all");
    file.write_at(b"file", 2 * PAGE as u64).unwrap();
    assert_eq!(shared.to_vec(2 * PAGE..2 * PAGE + 4).unwrap(), b"file");
    shared.flush().unwrap();
    shared.flush_async_range(1..5).unwrap();
    drop((shared, read, copy));
    // SAFETY: nobody else changes the file from here on.
    let mut owned = unsafe { MmapMut::map_mut(&file) }.unwrap();
    owned[1] = b'A';
    owned.flush_range(0..2).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[..3], *b"aAl");
    drop(owned);
    // SAFETY: as above.
    let mut private = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
    private.fill(9);
    assert_eq!(std::fs::read(&path).unwrap()[..3], *b"aAl");
    assert_eq!(private.own_pages(..).unwrap(), [0..3 * PAGE]);
    private.discard(PAGE..2 * PAGE).unwrap();
    assert_eq!(private.own_pages(..).unwrap(), [0..PAGE, 2 * PAGE..3 * PAGE]);
    assert_eq!((private[0], private[PAGE + 50]), (9, bytes[PAGE + 50]));
}

#[test]
fn a_promise_to_read_is_no_leave_to_write() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGE);
    let file = read_write(&path);
    // SAFETY: nobody changes the file.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    let refused = map.make_mut().unwrap_err();
    assert!(matches!(*refused.error, Error::Invalid { .. }), "{}", refused.error);
    assert!(refused.mapping[..] == bytes[..], "it is as it was");
    // SAFETY: nobody changes the file.
    let private = unsafe { MmapOptions::new().map_copy_read_only(&file) }.unwrap();
    private.make_mut().unwrap()[0] = 1;
    assert!(std::fs::read(&path).unwrap() == bytes);
    // SAFETY: nobody changes the first bytes of the file.
    let mut part = unsafe { MmapOptions::new().len(100).map(&file) }.unwrap();
    assert!(
        matches!(part.resize(101, Resize::MayMove), Err(Error::Invalid { .. })),
        "nothing was promised of the rest"
    );
    part.resize(50, Resize::InPlace).unwrap();
    assert!(matches!(part.resize(100, Resize::InPlace), Err(Error::Invalid { .. })));
    assert!(part[..] == bytes[..50]);
    drop(part);
    let read = MmapOptions::new().open(&path).unwrap();
    let refused = read.make_mut().unwrap_err();
    assert!(matches!(*refused.error, Error::ReadOnly { .. }), "{}", refused.error);
    assert!(refused.mapping.to_vec(..).unwrap() == bytes);
    let write = MmapOptions::new().map_raw(&file).unwrap().make_read_only().unwrap().make_mut().unwrap();
    write.write_at(0, b"x").unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[0], b'x');
    let error = MmapOptions::new().map_raw(File::open(&path).unwrap()).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error:?}");
}

#[test]
fn split_and_partial_unmap() {
    let mut memory = MmapMut::map_anon(8 * PAGE).unwrap();
    memory.copy_from_slice(&contents(8 * PAGE));
    let bytes = contents(8 * PAGE);
    let refused = memory.split_at(100).unwrap_err();
    assert!(matches!(*refused.error, Error::Invalid { .. }));
    let refused = refused.mapping.split_at(8 * PAGE + 1).unwrap_err();
    assert!(matches!(*refused.error, Error::OutOfRange { .. }));
    let start = refused.mapping.as_ptr();
    let refused = refused.mapping.unmap(PAGE..PAGE + 1).unwrap_err();
    let (front, back) = refused.mapping.unmap(2 * PAGE..4 * PAGE).unwrap();
    assert!(front[..] == bytes[..2 * PAGE] && back[..] == bytes[4 * PAGE..]);
    assert_eq!(permissions(start.wrapping_add(2 * PAGE)), "none");
    let front = front.make_read_only().unwrap();
    let (a, b) = back.split_at(PAGE).unwrap();
    drop(a);
    assert!(front[..] == bytes[..2 * PAGE] && b[..] == bytes[5 * PAGE..], "pieces live on their own");

    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 5 * PAGE);
    let map = MmapOptions::new().offset(100).open(&path).unwrap();
    let (front, back) = map.split_at(2 * PAGE - 100).unwrap();
    assert_eq!(back.file_offset(), 2 * PAGE as u64);
    assert!(
        front.to_vec(..).unwrap() == bytes[100..2 * PAGE] && back.to_vec(..).unwrap() == bytes[2 * PAGE..]
    );
    let (all, none) = back.split_at(3 * PAGE).unwrap();
    assert!(none.is_empty() && all.len() == 3 * PAGE);
}

#[test]
fn memory_grows_and_shrinks() {
    let mut memory = MmapMut::map_anon(3 * PAGE).unwrap();
    memory.fill(5);
    memory.resize(300 * PAGE + 7, Resize::MayMove).unwrap();
    assert!(memory[..3 * PAGE].iter().all(|b| *b == 5) && memory[3 * PAGE..].iter().all(|b| *b == 0));
    memory.resize(PAGE, Resize::InPlace).unwrap();
    assert_eq!(memory.len(), PAGE);
    memory.resize(2 * PAGE, Resize::MayMove).unwrap();
    assert!(memory[PAGE..].iter().all(|b| *b == 0), "what was cut off is gone");
    memory.resize(0, Resize::InPlace).unwrap();
    assert!(matches!(memory.resize(1, Resize::MayMove), Err(Error::Invalid { .. })));
    let mut shared = MmapOptions::new().len(PAGE).map_anon_shared().unwrap();
    assert!(matches!(shared.resize(2 * PAGE, Resize::MayMove), Err(Error::Invalid { .. })));

    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 2 * PAGE);
    let file = read_write(&path);
    let mut map = MmapOptions::new().offset(10).map_raw(&file).unwrap();
    file.set_len(4 * PAGE as u64).unwrap();
    map.resize(4 * PAGE - 10, Resize::MayMove).unwrap();
    map.write_at(4 * PAGE - 11, b"!").unwrap();
    assert!(map.to_vec(..2 * PAGE - 10).unwrap() == bytes[10..]);
    assert_eq!(std::fs::read(&path).unwrap()[4 * PAGE - 1], b'!');
}

#[test]
fn a_file_that_grows_under_a_mapping_becomes_visible() {
    let dir = scratch();
    let (path, _) = file_of(dir.path(), PAGE);
    let map = MmapOptions::new().len(3 * PAGE).open(&path).unwrap();
    let error = map.read_at(PAGE, &mut [0]).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { file_len: 4096, .. }), "{error:?}");
    std::fs::write(&path, contents(3 * PAGE)).unwrap();
    assert!(map.to_vec(..).unwrap() == contents(3 * PAGE));
}

#[test]
fn reservations_keep_their_addresses() {
    let space = Reservation::new(64 * PAGE).unwrap();
    let place = |at: usize, len: usize| MmapOptions::new().len(len).place(&space, at);
    let mut first = place(0, PAGE).map_anon().unwrap();
    first[0] = 1;
    let address = first.as_ptr();
    assert_eq!(address, space.as_ptr());
    first.resize(8 * PAGE - 5, Resize::InPlace).unwrap();
    assert_eq!((first.as_ptr(), first[0], first[8 * PAGE - 6]), (address, 1, 0));
    for at in [0, PAGE, 7 * PAGE] {
        let error = place(at, PAGE).map_anon().unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
    }
    assert_eq!(
        place(63 * PAGE, 2 * PAGE).map_anon().unwrap_err().errno(),
        Some(libc::ENOMEM),
        "past the end"
    );
    assert_eq!(place(100, PAGE).map_anon().unwrap_err().errno(), Some(libc::EINVAL), "inside a page");
    let second = place(9 * PAGE, PAGE).map_anon().unwrap();
    let error = first.resize(10 * PAGE, Resize::MayMove).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
    assert_eq!((first.len(), first[0]), (8 * PAGE - 5, 1), "as it was");
    drop(second);
    assert_eq!(permissions(space.as_ptr().wrapping_add(9 * PAGE)), "---p", "still reserved");
    first.resize(10 * PAGE, Resize::InPlace).unwrap();
    assert_eq!(space.taken(), [0..10 * PAGE]);
    first.resize(PAGE, Resize::InPlace).unwrap();
    assert_eq!(space.taken(), [0..PAGE]);
    let (front, back) = place(16 * PAGE, 4 * PAGE).map_anon().unwrap().split_at(PAGE).unwrap();
    drop(front);
    assert_eq!(space.taken(), [0..PAGE, 17 * PAGE..20 * PAGE]);
    drop(space);
    drop(first);
    assert_eq!(back[0], 0, "the reservation lives as long as what is in it");
    assert!(back.seal().is_err(), "a seal would keep the reservation for ever");

    let dir = scratch();
    let (path, _) = file_of(dir.path(), 2 * PAGE);
    let file = read_write(&path);
    let space = Reservation::aligned(64 * PAGE, 2 << 20).unwrap();
    assert_eq!(space.as_ptr() as usize % (2 << 20), 0);
    let mut map = MmapOptions::new().offset(PAGE as u64 + 5).place(&space, 0).map_raw(&file).unwrap();
    drop(file);
    std::fs::write(&path, contents(6 * PAGE)).unwrap();
    let address = map.as_ptr();
    map.resize(5 * PAGE - 5, Resize::InPlace).unwrap();
    assert_eq!(map.as_ptr(), address);
    assert!(map.to_vec(..).unwrap() == contents(6 * PAGE)[PAGE + 5..]);
}

#[test]
fn a_place_in_a_reservation_is_taken_by_one_thread() {
    let space = Reservation::new(64 * PAGE).unwrap();
    let taken: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16_u8)
            .map(|thread| {
                let space = &space;
                scope.spawn(move || {
                    let mut rng = common::Rng(u64::from(thread));
                    let mut taken = 0;
                    for _ in 0..500 {
                        let (at, len) = (rng.below(60) as usize * PAGE, (1 + rng.below(4) as usize) * PAGE);
                        match MmapOptions::new().len(len).place(space, at).map_anon() {
                            Ok(mut map) => {
                                assert!(map.iter().all(|byte| *byte == 0), "somebody else's");
                                map.fill(thread + 1);
                                std::thread::yield_now();
                                assert!(map.iter().all(|byte| *byte == thread + 1), "somebody else's");
                                taken += 1;
                            }
                            Err(error) => assert_eq!(error.errno(), Some(libc::EEXIST), "{error}"),
                        }
                    }
                    taken
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(taken.iter().all(|count| *count > 0) && space.taken().is_empty(), "{taken:?}");
}

#[test]
fn guard_pages_stop_who_runs_over_the_end() {
    let this = "guard_pages_stop_who_runs_over_the_end";
    let guarded = |options: MmapOptions| options.len(3 * PAGE).guard_pages(2).map_anon().unwrap();
    if let Some(part) = role() {
        let memory = guarded(MmapOptions::new());
        let place = if part == "before" {
            memory.as_ptr().wrapping_sub(1)
        } else {
            memory.as_ptr().wrapping_add(3 * PAGE)
        };
        // SAFETY: none: this is the mistake that the guard is for, and it ends the process.
        let byte = unsafe { place.read_volatile() };
        panic!("{part}: read {byte}");
    }
    for part in ["before", "behind"] {
        let output = run(child(this, part));
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{part}: {output:?}");
    }
    let mut memory = guarded(MmapOptions::new());
    memory.fill(1);
    let expected = if kernel_at_least(6, 13) { GuardKind::Markers } else { GuardKind::Mappings };
    assert_eq!(memory.guard(), expected);
    assert!(matches!(memory.resize(PAGE, Resize::MayMove), Err(Error::Invalid { .. })));
    let space = Reservation::new(16 * PAGE).unwrap();
    let placed = guarded(MmapOptions::new().place(&space, PAGE));
    assert_eq!(
        (placed.as_ptr(), placed.guard()),
        (space.as_ptr().wrapping_add(3 * PAGE), GuardKind::Mappings)
    );
    assert_eq!(permissions(placed.as_ptr().wrapping_add(3 * PAGE)), "---p");
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 2 * PAGE);
    let file = MmapOptions::new().guard_pages(1).open(&path).unwrap();
    assert_eq!(permissions(file.as_ptr().wrapping_sub(1)), "---p");
    assert!(file.to_vec(..).unwrap() == bytes);
    let address = file.as_ptr();
    file.close().unwrap();
    for part in [address.wrapping_sub(1), address, address.wrapping_add(2 * PAGE)] {
        assert_ne!(permissions(part), "---p", "guards go with it");
    }
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}

#[test]
fn sealed_mappings_never_change() {
    let mut memory = MmapMut::map_anon(2 * PAGE).unwrap();
    memory[5] = 7;
    let sealed = match memory.make_read_only().unwrap().seal() {
        Ok(sealed) => sealed,
        Err(refused) => {
            assert!(matches!(*refused.error, Error::Unsupported { .. }), "{}", refused.error);
            assert!(!kernel_at_least(6, 10), "{}", refused.error);
            return assert_eq!(refused.mapping[5], 7, "as it was");
        }
    };
    let bytes: &'static [u8] = sealed.leak();
    let address = bytes.as_ptr().cast_mut().cast();
    // SAFETY: the kernel refuses, which is what is tested; it would be this test's own memory.
    assert_eq!(unsafe { libc::munmap(address, 2 * PAGE) }, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::mprotect(address, PAGE, libc::PROT_NONE) }, -1);
    assert_eq!(bytes[5], 7);
}

#[test]
fn where_there_is_no_mseal_the_error_says_so() {
    let this = "where_there_is_no_mseal_the_error_says_so";
    if role().is_none() {
        run_ok(child(this, "refused"));
        return;
    }
    mapwright_sys::testing::refuse_system_calls(&[libc::SYS_mseal, libc::SYS_mbind], libc::ENOSYS).unwrap();
    let memory = MmapMut::map_anon(PAGE).unwrap();
    let refused = memory.seal().unwrap_err();
    assert!(matches!(*refused.error, Error::Unsupported { feature: "mseal(2)", .. }), "{}", refused.error);
    let error = refused.mapping.bind(NumaPolicy::Prefer(0)).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn devices_have_the_length_that_is_given() {
    let error = MmapOptions::new().open("/dev/zero").unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    let zeros = MmapOptions::new().len(3 * PAGE + 5).open("/dev/zero").unwrap();
    assert!(zeros.to_vec(..).unwrap().iter().all(|byte| *byte == 0));
    let error = MmapOptions::new().len(PAGE).open("/dev/null").unwrap_err();
    assert!(matches!(error, Error::NotMappable { .. }), "{error:?}");
    let dir = scratch();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for path in [dir.path(), &fifo] {
        let error = MmapOptions::new().open(path).unwrap_err();
        assert!(matches!(error, Error::NotMappable { .. }), "{error:?}");
    }
    let error = MmapOptions::new().open("/proc/self/status").unwrap_err();
    assert!(matches!(error, Error::NotMappable { .. }) || error.errno() == Some(libc::EIO), "{error:?}");
    let error = MmapOptions::new().open(dir.path().join("none")).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
}

#[test]
fn locks_populate_and_policies() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 16 * PAGE);
    let map = MmapOptions::new().populate(true).locked(true).open(&path).unwrap();
    assert_eq!(map.residency(..).unwrap().resident_pages(), 16);
    assert!(smaps("Locked", map.as_ptr()) >= 64, "KiB");
    map.unlock().unwrap();
    assert_eq!(smaps("Locked", map.as_ptr()), 0);
    assert!(map.to_vec(..).unwrap() == bytes);
    let memory = MmapOptions::new().len(16 * PAGE).no_reserve(true).stack(true).map_anon().unwrap();
    memory.lock_on_fault().unwrap();
    assert_eq!(memory.residency(..).unwrap().resident_pages(), 0, "not before they are touched");
    let populated = MmapOptions::new().len(16 * PAGE).populate(true).map_anon().unwrap();
    assert_eq!(populated.residency(..).unwrap().resident_pages(), 16);
    match populated.bind(NumaPolicy::Prefer(0)) {
        Ok(()) => {
            populated.bind(NumaPolicy::Interleave).unwrap();
            let error = populated.bind(NumaPolicy::Bind(777)).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
            let policy = MmapOptions::new().len(PAGE).numa(NumaPolicy::Bind(0)).map_anon().unwrap();
            assert_eq!(policy[0], 0);
        }
        Err(error) => assert!(matches!(error, Error::Unsupported { .. }), "{error:?}"),
    }
}

/// A value in KiB of the mapping at an address.
fn smaps(field: &str, address: *const u8) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", address as usize);
    let part = &text[text.find(&start).expect("mapped")..];
    let at = part.find(&format!("\n{field}:")).unwrap();
    part[at + field.len() + 2..].split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn huge_pages_are_had_or_the_pool_is_named() {
    match MmapOptions::new().len(5 << 20).huge(Some(21)).map_anon() {
        Ok(mut memory) => {
            memory.fill(1);
            assert_eq!((memory.page_size(), memory.as_ptr() as usize % (2 << 20)), (2 << 20, 0));
            let (front, back) = memory.split_at(2 << 20).unwrap();
            front.close().unwrap();
            back.close().unwrap();
        }
        Err(error) => {
            assert!(matches!(error, Error::LimitReached { limit: "vm.nr_hugepages", .. }), "{error:?}");
        }
    }
    let error = MmapOptions::new().len(1).huge(Some(60)).map_anon().unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    let memory = MmapOptions::new().len(4 << 20).transparent_huge_pages(true).map_anon().unwrap();
    assert!(memory.iter().all(|byte| *byte == 0));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    assert!(matches!(MmapOptions::new().map_anon(), Err(Error::Invalid { .. })));
    assert!(matches!(MmapOptions::new().len(5).offset(1).map_anon(), Err(Error::Invalid { .. })));
    assert_eq!(MmapMut::map_anon(usize::MAX).unwrap_err().errno(), Some(libc::EOVERFLOW));
    assert_eq!(MmapMut::map_anon(1 << 50).unwrap_err().errno(), Some(libc::ENOMEM));
    let memory = MmapOptions::new().len(PAGE).map_anon_shared().unwrap();
    assert!(matches!(memory.read_at(PAGE, &mut [0]), Err(Error::OutOfRange { .. })));
    assert!(matches!(memory.read_at(usize::MAX, &mut [0, 0]), Err(Error::OutOfRange { .. })));
    assert!(matches!(memory.write_at(PAGE - 1, &[0, 0]), Err(Error::OutOfRange { .. })));
    assert!(matches!(memory.flush_range(5..9999), Err(Error::OutOfRange { .. })));
    assert!(matches!(Reservation::new(0), Err(Error::Invalid { .. })));
    assert!(matches!(Reservation::aligned(1, 3), Err(Error::Invalid { .. })));
    assert!(Reservation::new(usize::MAX).is_err());
}

#[test]
fn threads_share_what_is_shared() {
    fn both<T: Send + Sync>() {}
    both::<Mmap>();
    both::<MmapMut>();
    both::<MmapRaw>();
    both::<Mapping<mapwright::mmap::NoAccess>>();
    let shared = MmapOptions::new().len(64 * PAGE).map_anon_shared().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let shared = &shared;
            scope.spawn(move || shared.write_at(thread * 4 * PAGE, &[thread as u8 + 1; 4 * PAGE]).unwrap());
        }
    });
    let bytes = shared.to_vec(..).unwrap();
    assert!((0..64 * PAGE).all(|at| bytes[at] as usize == at / (4 * PAGE) + 1));
    let mut memory = MmapMut::map_anon(2 * PAGE).unwrap();
    let (front, back) = memory.split_at_mut(PAGE);
    std::thread::scope(|scope| {
        scope.spawn(|| front.fill(1));
        scope.spawn(|| back.fill(2));
    });
    assert_eq!((memory[0], memory[PAGE]), (1, 2));
}

#[test]
fn anonymous_memory_across_fork() {
    let this = "anonymous_memory_across_fork";
    if role().is_none() {
        run_ok(child(this, "forks"));
        return;
    }
    let shared = MmapOptions::new().len(PAGE).map_anon_shared().unwrap();
    let mut private = MmapMut::map_anon(PAGE).unwrap();
    private[0] = 1;
    // SAFETY: the child writes memory of its own and of the mapping, and ends without running anything else.
    match unsafe { libc::fork() } {
        0 => {
            private[0] = 2;
            let written = shared.write_at(0, b"child").is_ok();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if written { 0 } else { 1 }) };
        }
        pid => {
            let mut status = 0;
            // SAFETY: the child is this process's, and `status` lives across the call.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(status, 0);
        }
    }
    assert_eq!(shared.to_vec(0..5).unwrap(), b"child");
    assert_eq!(private[0], 1);
}

/// Whether all of a range is mapped, as /proc/self/maps shows it, without access.
fn is_all_reserved(start: usize, len: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut at = start;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let number = |hex| usize::from_str_radix(hex, 16).unwrap();
        if (number(from)..number(to)).contains(&at) && rest.starts_with("---p") {
            at = number(to);
        }
    }
    at >= start + len
}

#[test]
fn what_can_not_be_placed_leaves_the_reservation_whole() {
    let this = "what_can_not_be_placed_leaves_the_reservation_whole";
    if role().is_none() {
        run_ok(child(this, "alone")); // nothing else is to fall into a gap
        return;
    }
    // Shared memory is accounted after the kernel has made room for it, and there is not so much.
    let len = 1 << 45;
    let space = Reservation::new(len).unwrap();
    let start = space.as_ptr() as usize;
    let (done, gaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut resident = 0_u8;
            while !done.load(Ordering::SeqCst) {
                // SAFETY: looks at one page, of which it says one byte; no memory is touched.
                let looked = unsafe { libc::mincore(start as *mut _, PAGE, &raw mut resident) };
                gaps.fetch_add(usize::from(looked != 0), Ordering::SeqCst);
            }
        });
        for _ in 0..20_000 {
            let error = MmapOptions::new().len(len).place(&space, 0).map_anon_shared().unwrap_err();
            let is_memory = error.errno() == Some(libc::ENOMEM);
            assert!(is_memory || matches!(error, Error::LimitReached { .. }), "{error}");
            if gaps.load(Ordering::SeqCst) > 0 {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(gaps.into_inner(), 0, "gaps, into which somebody else's memory can come");
    assert!(is_all_reserved(start, len));
    assert_eq!(space.taken(), []);
    let memory = MmapOptions::new().len(PAGE).place(&space, PAGE).map_anon().unwrap();
    assert_eq!(memory[0], 0);
}

#[test]
fn a_place_of_which_nobody_knows_what_lies_there_is_never_touched_again() {
    let this = "a_place_of_which_nobody_knows_what_lies_there_is_never_touched_again";
    if role().is_none() {
        run_ok(child(this, "refused"));
        return;
    }
    // As from a kernel that can't be asked before (Linux before 5.7): an error that comes first leaves nothing in doubt.
    mapwright_sys::testing::refuse_system_calls(&[libc::SYS_mremap], libc::EINVAL).unwrap();
    let space = Reservation::new(8 * PAGE).unwrap();
    let start = space.as_ptr() as usize;
    MmapOptions::new().len(2 * PAGE).place(&space, PAGE).map_anon().unwrap_err();
    assert_eq!(space.taken(), [PAGE..3 * PAGE]);
    drop(space);
    let seen: Vec<_> = (0..8).map(|page| permissions((start + page * PAGE) as *const u8)).collect();
    assert_eq!(seen[1..3], ["---p", "---p"], "{seen:?}");
    assert_eq!((&*seen[0], &*seen[3]), ("none", "none"), "{seen:?}");
}

#[test]
fn what_memory_grows_by_inside_a_page_is_zeros() {
    let mut memory = MmapMut::map_anon(2 * PAGE).unwrap();
    memory.fill(1);
    memory.resize(10, Resize::InPlace).unwrap();
    memory.resize(PAGE - 1, Resize::InPlace).unwrap();
    assert!(memory[..10] == [1; 10] && memory[10..].iter().all(|byte| *byte == 0));
    memory.fill(2);
    memory.resize(100, Resize::InPlace).unwrap();
    let mut memory = memory.make_read_only().unwrap();
    memory.resize(3 * PAGE, Resize::MayMove).unwrap();
    assert!(memory[..100] == [2; 100] && memory[100..].iter().all(|byte| *byte == 0), "shrunk as writable");
    memory.resize(50, Resize::InPlace).unwrap();
    let mut memory = memory.make_mut().unwrap();
    memory.resize(2 * PAGE, Resize::MayMove).unwrap();
    assert!(memory[..50] == [2; 50] && memory[50..].iter().all(|byte| *byte == 0), "grown as writable");
}

#[test]
fn a_change_of_kind_that_fails_half_way_is_taken_back() {
    let this = "a_change_of_kind_that_fails_half_way_is_taken_back";
    if role().is_none() {
        run_ok(child(this, "limited"));
        return;
    }
    let half = 64 << 20;
    let memory = MmapMut::map_anon(2 * half).unwrap().make_read_only().unwrap();
    memory.advise_range(half.., mapwright::mmap::Advice::DontDump).unwrap(); // two mappings of one
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let data = status.split_once("VmData:").unwrap().1.split_whitespace().next().unwrap();
    let most = (data.parse::<u64>().unwrap() << 10) + (half + half / 2) as u64;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit lives across the call. It is this child's own.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) }, 0);
    let refused = memory.make_mut().unwrap_err();
    let start = refused.mapping.as_ptr();
    assert_eq!(permissions(start), "r--p", "the half for which there was room");
    assert_eq!(permissions(start.wrapping_add(half)), "r--p");
}

/// Types of somebody else's, which make more of a promise than it was.
struct Greedy(MmapMut);

impl MapAssumed for Greedy {
    type Error = Error;
    fn map_promised(promise: mapwright::mmap::Promise<'_>) -> Result<Self, Error> {
        MmapOptions::new().write_promised(true, promise).map(Greedy)
    }
}

#[test]
fn a_promise_is_good_for_what_it_was_given_for() {
    let dir = scratch();
    let (path, _) = file_of(dir.path(), PAGE);
    let file = read_write(&path);
    // SAFETY: nobody else has the file.
    let greedy = unsafe { Greedy::map(&file) };
    assert_eq!(greedy.map(|_| ()).unwrap_err().errno(), Some(libc::EINVAL));
    // SAFETY: as above.
    assert!(unsafe { MmapMut::map(&file) }.is_err(), "map is for reading");
    // SAFETY: as above.
    let mut greedy = unsafe { Greedy::map_mut(&file) }.unwrap();
    greedy.0[0] = 9;
    drop(greedy);
    assert_eq!(std::fs::read(&path).unwrap()[0], 9);
    // SAFETY: as above.
    let mut copy = unsafe { MmapOptions::new().map_copy_read_only(&file) }.unwrap().make_mut().unwrap();
    copy[0] = 8;
}

#[test]
fn anonymous_memory_has_no_offset_and_no_node_has_the_last_number() {
    let (front, back) = MmapMut::map_anon(2 * PAGE).unwrap().split_at(PAGE).unwrap();
    assert_eq!((front.file_offset(), back.file_offset()), (0, 0));
    for policy in [NumaPolicy::Bind(u32::MAX), NumaPolicy::Prefer(u32::MAX)] {
        assert!(front.bind(policy).is_err(), "{policy:?} is not all nodes");
    }
}
