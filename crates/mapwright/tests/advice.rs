//! Advice that keeps contents, what takes them away, and what is in memory.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

mod common;

use std::fs::File;

use common::{PAGE, child, contents, file_of, role, run_ok, scratch};
use mapwright::Error;
use mapwright::mmap::{
    Advice, MapAssumedWith, MmapMut, MmapOptions, Reservation, Residency, Resize, Restored, Support,
    cache_stat, cached_ranges, dirty_ranges,
};

const PAGES: usize = 64;

fn synced(path: &std::path::Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.sync_all().unwrap();
    file
}

fn drop_cache(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[test]
fn no_advice_changes_contents() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGES * PAGE);
    let file = synced(&path);
    let raw = MmapOptions::new().open_mut(&path).unwrap();
    // SAFETY: nobody changes the file.
    let copy = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
    let mut anonymous = MmapMut::map_anon(PAGES * PAGE).unwrap();
    anonymous.copy_from_slice(&bytes);
    for advice in Advice::ALL {
        let outcomes = [
            raw.advise(advice),
            raw.advise_range(PAGE + 1..5 * PAGE - 1, advice),
            copy.advise(advice),
            anonymous.advise(advice),
            anonymous.advise_range(PAGE..PAGE, advice),
        ];
        for outcome in outcomes {
            match outcome {
                Ok(()) => assert!(advice.is_supported(), "{advice:?}"),
                Err(Error::Unsupported { .. }) => assert!(!advice.is_supported(), "{advice:?}"),
                Err(Error::Invalid { .. }) => assert!(advice.is_supported(), "{advice:?}"),
                // No huge page is to be had, or the file is on no file system that has them.
                Err(Error::Io { .. }) => assert_eq!(advice, Advice::Collapse),
                Err(error) => panic!("{advice:?}: {error:?}"),
            }
        }
        assert!(
            raw.to_vec(..).unwrap() == bytes && copy[..] == bytes[..] && anonymous[..] == bytes[..],
            "{advice:?}"
        );
    }
    assert!(matches!(raw.advise(Advice::WipeOnFork), Err(Error::Invalid { .. } | Error::Unsupported { .. })));
    assert!(matches!(raw.advise_range(5..PAGES * PAGE + 1, Advice::Normal), Err(Error::OutOfRange { .. })));
}

#[test]
fn what_is_supported_is_found_by_asking() {
    assert!(Advice::Normal.is_supported() && Advice::WillNeed.is_supported());
    assert!(!mapwright_sys::mmap::is_advice_supported(9999));
    let numbers: std::collections::BTreeSet<i32> = Advice::ALL.iter().map(|advice| advice.number()).collect();
    assert_eq!(numbers.len(), Advice::ALL.len(), "each has a number of its own");
    let support = Support::probe();
    let sealed = MmapMut::map_anon(PAGE).unwrap().seal();
    assert_eq!(support.mseal, sealed.is_ok());
    let guarded = MmapOptions::new().len(PAGE).guard_pages(1).map_anon().unwrap();
    assert_eq!(support.guard_markers, guarded.guard() == mapwright::mmap::GuardKind::Markers);
    let dir = scratch();
    let (path, _) = file_of(dir.path(), PAGE);
    assert_eq!(support.cachestat, cache_stat(File::open(&path).unwrap(), 0..1).is_ok());
}

#[test]
fn what_takes_contents_away_has_its_own_names_and_conditions() {
    let mut memory = MmapMut::map_anon(4 * PAGE + 10).unwrap();
    memory.fill(7);
    assert!(matches!(memory.discard(1..PAGE), Err(Error::Invalid { .. })), "not whole pages");
    assert!(matches!(memory.discard(PAGE..PAGE + 5), Err(Error::Invalid { .. })), "not whole pages");
    assert!(matches!(memory.release(..), Err(Error::Invalid { .. })), "it has its contents nowhere else");
    assert!(memory.iter().all(|byte| *byte == 7));
    memory.discard(PAGE..2 * PAGE).unwrap();
    memory.discard(4 * PAGE..).unwrap(); // the last page, of which a part is mapped
    assert!((0..memory.len()).all(|at| memory[at] == if at / PAGE == 1 || at / PAGE == 4 { 0 } else { 7 }));
    memory.lock().unwrap();
    assert!(matches!(memory.discard(..), Err(Error::Invalid { .. })), "locked");
    memory.unlock().unwrap();

    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 4 * PAGE);
    let mut shared = MmapOptions::new().open_mut(&path).unwrap();
    assert!(matches!(shared.discard(..), Err(Error::Invalid { .. })), "shared: the file keeps it");
    shared.write_at(0, b"kept").unwrap();
    shared.release(..).unwrap();
    assert_eq!(shared.to_vec(0..4).unwrap(), b"kept");
    match shared.punch_hole(PAGE..2 * PAGE) {
        Ok(()) => {
            assert!(shared.to_vec(PAGE..2 * PAGE).unwrap().iter().all(|byte| *byte == 0));
            assert!(
                std::fs::read(&path).unwrap()[PAGE..2 * PAGE].iter().all(|byte| *byte == 0),
                "in the file too"
            );
        }
        Err(error) => assert_eq!(error.errno(), Some(libc::EOPNOTSUPP), "{error}"),
    }
    assert!(shared.to_vec(2 * PAGE..).unwrap() == bytes[2 * PAGE..]);
    let mut part = MmapOptions::new().len(2 * PAGE + 100).open_mut(&path).unwrap();
    for range in [2 * PAGE..2 * PAGE + 100, PAGE..2 * PAGE + 100] {
        assert!(matches!(part.punch_hole(range), Err(Error::Invalid { .. })), "the file goes on behind it");
    }
    assert!(std::fs::read(&path).unwrap()[2 * PAGE..] == bytes[2 * PAGE..]);
    let mut copy = MmapOptions::new().open_copy(&path).unwrap();
    copy.write_at(3 * PAGE, b"mine").unwrap();
    copy.discard(3 * PAGE..).unwrap();
    assert!(copy.to_vec(3 * PAGE..).unwrap() == bytes[3 * PAGE..], "the file shows again");
    assert!(matches!(copy.punch_hole(..), Err(Error::Invalid { .. })), "private");
}

#[test]
fn freed_memory_comes_back_whole_or_as_zeros_and_stays() {
    let mut memory = MmapMut::map_anon(PAGES * PAGE).unwrap();
    memory.copy_from_slice(&contents(PAGES * PAGE));
    let freed = memory.free().unwrap();
    assert_eq!(freed.len(), PAGES * PAGE);
    let memory = freed.reuse();
    for (was, is) in contents(PAGES * PAGE).chunks(PAGE).zip(memory.chunks(PAGE)) {
        assert!(is == was || is.iter().all(|byte| *byte == 0));
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGE);
    // SAFETY: nobody changes the file.
    let copy = unsafe { MmapOptions::new().map_copy(File::open(&path).unwrap()) }.unwrap();
    let refused = copy.free().unwrap_err();
    assert!(matches!(*refused.error, Error::Invalid { .. }) && refused.mapping[..] == bytes[..]);
}

#[test]
fn pages_that_the_kernel_took_are_zeros_after_reuse() {
    let Some(guard) = MemoryGroup::new(8 << 20) else {
        return common::skip("no memory cgroup can be made here");
    };
    let this = "pages_that_the_kernel_took_are_zeros_after_reuse";
    if role().is_none() {
        let mut command = child(this, "presses");
        command.env("MAPWRIGHT_TEST_GROUP", &guard.0);
        run_ok(command);
        return;
    }
    std::fs::write(
        std::path::Path::new(&std::env::var_os("MAPWRIGHT_TEST_GROUP").unwrap()).join("cgroup.procs"),
        std::process::id().to_string(),
    )
    .unwrap();
    let mut memory = MmapMut::map_anon(4 << 20).unwrap();
    memory.fill(7);
    let freed = memory.free().unwrap();
    let mut pressure = MmapMut::map_anon(6 << 20).unwrap();
    pressure.fill(1); // the group has 8 MiB and no swap: the freed pages have to go
    drop(pressure); // to be had again, they need room
    let memory = freed.reuse();
    let zeros = memory.chunks(PAGE).filter(|page| page.iter().all(|byte| *byte == 0)).count();
    assert!(
        memory.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])),
        "each page whole or zeros"
    );
    assert!(zeros > 0, "the kernel took some");
}

/// A memory cgroup with a limit, removed in the end; its parent's child makes it again and finds it there.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(bytes: u64) -> Option<Self> {
        if let Some(dir) = std::env::var_os("MAPWRIGHT_TEST_GROUP") {
            return Some(Self(dir.into()));
        }
        let name = format!("mapwright-test-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        {
            let dir = std::path::Path::new(root).join(&name);
            if std::fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            let set = |file: &str, value: &str| {
                let path = group.0.join(file);
                path.exists() && std::fs::write(path, value).is_ok()
            };
            let swapless = set("memory.swap.max", "0") || set("memory.swappiness", "0");
            if swapless && set(limit, &bytes.to_string()) {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if role().is_none() {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

#[test]
fn fork_advice_is_followed() {
    let this = "fork_advice_is_followed";
    if role().is_none() {
        run_ok(child(this, "forks"));
        return;
    }
    let mut wiped = MmapMut::map_anon(PAGE).unwrap();
    wiped[0] = 7;
    if !Advice::WipeOnFork.is_supported() {
        return;
    }
    wiped.advise(Advice::WipeOnFork).unwrap();
    let absent = MmapOptions::new().len(PAGE).map_anon_shared().unwrap();
    absent.advise(Advice::DontFork).unwrap();
    let address = absent.as_ptr().cast_mut().cast();
    // SAFETY: the child reads memory of its own, asks about an address, and ends.
    match unsafe { libc::fork() } {
        0 => {
            let mut resident = 0_u8;
            // SAFETY: only asks; `resident` has room for the one page.
            let gone = unsafe { libc::mincore(address, PAGE, &raw mut resident) } == -1;
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if wiped[0] == 0 && gone { 0 } else { 1 }) };
        }
        pid => {
            let mut status = 0;
            // SAFETY: the child is this process's, and `status` lives across the call.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(status, 0);
        }
    }
    assert_eq!((wiped[0], absent.to_vec(..1).unwrap()), (7, vec![0]));
}

#[test]
fn what_a_child_has_not_got_it_may_drop() {
    let this = "what_a_child_has_not_got_it_may_drop";
    if role().is_none() {
        run_ok(child(this, "forks"));
        return;
    }
    let space = Reservation::new(16 * PAGE).unwrap();
    let placed = MmapOptions::new().len(2 * PAGE).place(&space, PAGE).map_anon().unwrap();
    let anonymous = MmapMut::map_anon(4 * PAGE).unwrap();
    for map in [&placed, &anonymous] {
        map.advise(Advice::DontFork).unwrap();
    }
    let (front, back) = anonymous.split_at(2 * PAGE).unwrap();
    let addresses = [&placed, &front, &back].map(|map| map.as_ptr() as usize);
    // SAFETY: the child touches what it maps itself, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // What somebody maps there in the child is not for the parent's mappings to touch.
            for address in addresses {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                let access = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: a new mapping where there is none.
                let made = unsafe { libc::mmap(address as *mut _, 2 * PAGE, access, flags, -1, 0) };
                assert_eq!(made as usize, address);
                // SAFETY: mapped just now.
                unsafe { made.cast::<u8>().write(9) };
            }
            assert_eq!(placed.advise(Advice::DontFork).unwrap_err().errno(), Some(libc::EFAULT));
            let refused = front.make_read_only().unwrap_err();
            assert_eq!(refused.error.errno(), Some(libc::EFAULT));
            let mut front = refused.mapping;
            assert_eq!(front.discard(..).unwrap_err().errno(), Some(libc::EFAULT));
            assert_eq!(front.resize(PAGE, Resize::InPlace).unwrap_err().errno(), Some(libc::EFAULT));
            front.close().unwrap();
            drop((placed, back, space));
            for address in addresses {
                // SAFETY: mapped above.
                assert_eq!(unsafe { (address as *const u8).read() }, 9);
            }
        }));
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(status.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's, and `status` lives across the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
    // Shared again, it is unmapped as ever.
    placed.advise(Advice::DoFork).unwrap();
    placed.close().unwrap();
    assert_eq!(space.taken(), []);
}

#[test]
fn residency_is_seen_dumped_and_brought_back() {
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGES * PAGE + 100);
    let file = synced(&path);
    assert_eq!(cached_ranges(&file).unwrap().resident_pages(), PAGES as u64 + 1);
    drop_cache(&file);
    if cached_ranges(&file).unwrap().resident_pages() > 0 {
        return common::skip("the page cache can't be dropped here");
    }
    let map = MmapOptions::new().open(&path).unwrap();
    map.advise(Advice::Random).unwrap();
    for page in [3, 4, 5, 40, PAGES] {
        map.read_at(page * PAGE, &mut [0]).unwrap();
    }
    let dump = cached_ranges(&file).unwrap();
    assert_eq!((dump.runs(), dump.pages()), (&[3..6, 40..41, 64..65][..], PAGES as u64 + 1));
    let part = map.residency(4 * PAGE + 5..41 * PAGE).unwrap();
    assert_eq!((part.runs(), part.pages()), (&[0..2, 36..37][..], 37));
    drop(map);
    drop_cache(&file);
    assert_eq!(cached_ranges(&file).unwrap().resident_pages(), 0);
    let dump: Residency = dump.to_string().parse().unwrap();
    assert_eq!(dump.restore(&file).unwrap(), Restored { pages: 5, skipped: 0 });
    let now = cached_ranges(&file).unwrap();
    assert!(dump.runs().iter().flat_map(Clone::clone).all(|page| now.is_resident(page)), "{now}");
    file.set_len(4 * PAGE as u64).unwrap();
    assert_eq!(dump.restore(&file).unwrap(), Restored { pages: 1, skipped: 4 });
    assert!(std::fs::read(&path).unwrap() == bytes[..4 * PAGE]);
}

#[test]
fn dirty_pages_are_counted_and_found() {
    let dir = scratch();
    let (path, _) = file_of(dir.path(), PAGES * PAGE);
    let file = synced(&path);
    match cache_stat(&file, 0..(PAGES * PAGE) as u64) {
        Ok(stat) => assert_eq!((stat.cached, stat.dirty), (PAGES as u64, 0)),
        Err(Error::Unsupported { .. }) => return common::skip("no cachestat here"),
        Err(error) => panic!("{error:?}"),
    }
    let map = MmapOptions::new().open_mut(&path).unwrap();
    for page in [7, 8, 33] {
        map.write_at(page * PAGE + 9, b"dirty").unwrap();
    }
    let all = 0..u64::MAX;
    let found = dirty_ranges(&file, all.clone()).unwrap();
    // The kernel may keep one mark for several pages that lie together (a large folio).
    assert!([7, 8, 33].into_iter().all(|page| found.is_resident(page)), "{found}");
    assert_eq!(found.resident_pages(), cache_stat(&file, 0..(PAGES * PAGE) as u64).unwrap().dirty);
    assert!(cache_stat(&file, 8 * PAGE as u64..34 * PAGE as u64).unwrap().dirty >= 2);
    let part = dirty_ranges(&file, 8 * PAGE as u64..33 * PAGE as u64).unwrap();
    assert!(part.is_resident(8) && !part.is_resident(7) && !part.is_resident(33), "{part}");
    assert_eq!(cache_stat(&file, 5..5).unwrap().cached, 0);
    map.flush().unwrap();
    assert!(dirty_ranges(&file, all).unwrap().runs().is_empty());
    assert!(
        dirty_ranges(File::open(dir.path().join("file-262144")).unwrap(), 5..5).unwrap().runs().is_empty()
    );
}

#[test]
fn pages_of_ones_own_are_those_that_were_written() {
    let mut memory = MmapMut::map_anon(PAGES * PAGE).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0), "read, and still the page of zeros");
    match memory.own_pages(..) {
        Ok(own) => assert!(own.is_empty(), "{own:?}"),
        Err(Error::Unsupported { .. }) => return common::skip("no PAGEMAP_SCAN here"),
        Err(error) => panic!("{error:?}"),
    }
    memory[5 * PAGE] = 1;
    memory[6 * PAGE + 7] = 1;
    assert_eq!(memory.own_pages(..).unwrap(), [5 * PAGE..7 * PAGE]);
    assert_eq!(memory.own_pages(6 * PAGE..7 * PAGE).unwrap(), [6 * PAGE..7 * PAGE]);
}

#[test]
fn memory_that_can_not_all_be_freed_is_not_taken_later() {
    let mut memory = MmapMut::map_anon(1024 * PAGE).unwrap();
    memory.advise(Advice::NoHugePage).unwrap();
    memory.fill(7);
    // SAFETY: locks change no bytes; the range is the mapping's second half.
    assert_eq!(unsafe { libc::mlock(memory.as_ptr().wrapping_add(512 * PAGE).cast(), 512 * PAGE) }, 0);
    let refused = memory.free().unwrap_err();
    let memory = refused.mapping;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = memory.as_ptr() as usize;
    let block = smaps.split_once(&format!("{start:x}-")).map(|(_, rest)| rest.to_owned());
    let lazy = block.as_deref().and_then(|block| block.lines().find(|line| line.starts_with("LazyFree:")));
    assert_eq!(lazy.map(|line| line.split_whitespace().nth(1)), Some(Some("0")));
}
