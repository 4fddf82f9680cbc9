//! Files that are only read: whole regions on one frame, against what the file holds, with everything at once.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{MODES, PAGE, Rng, Watchdog, paged, pager, require_userfaultfd, scratch};
use mapwright::{Advice, Error, FaultMode, FrameKind, Map, Pager};

const REGION: usize = 2 << 20;
/// Not a whole number of regions, nor of pages.
const LEN: usize = 60 * REGION + 12_345;
/// Enough to read whole regions ahead.
const BUDGET: u64 = 80 << 20;

/// A file whose 8-byte words are their own offsets, mixed.
fn word(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1
}

fn write_file(dir: &Path) -> PathBuf {
    let path = dir.join("words");
    let bytes: Vec<u8> = (0..LEN.div_ceil(8)).flat_map(|index| word(index * 8).to_le_bytes()).collect();
    std::fs::write(&path, &bytes[..LEN]).unwrap();
    path
}

fn check(bytes: &[u8], at: usize) {
    for (index, chunk) in bytes.chunks_exact(8).enumerate().step_by(61) {
        let expected = word(at + index * 8);
        assert_eq!(u64::from_le_bytes(chunk.try_into().unwrap()), expected, "at {}", at + index * 8);
    }
}

/// KiB on huge pages in the mapping that holds an address.
fn on_huge_pages(address: usize) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let holds = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        Some((parse(start)?..parse(end)?).contains(&address))
    };
    let mut lines = smaps.lines().skip_while(|line| holds(line) != Some(true));
    let line = lines.find(|line| line.starts_with("AnonHugePages:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn huge_pages_are_there() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let there = !enabled.is_empty() && !enabled.contains("[never]");
    if !there {
        common::skip("no huge pages");
    }
    there
}

fn open(pager: &Pager, path: &Path, mode: FaultMode) -> Map {
    paged(pager, mode).frames(FrameKind::Moved).deadline(Duration::from_secs(20)).open(path).unwrap()
}

#[test]
fn a_scan_is_served_by_huge_pages() {
    if !require_userfaultfd() || !huge_pages_are_there() {
        return;
    }
    let dir = scratch();
    let path = write_file(dir.path());
    for mode in MODES {
        let pager = pager(BUDGET);
        let map = open(&pager, &path, mode);
        let mut most = 0;
        for _ in 0..3 {
            for at in (0..LEN).step_by(REGION) {
                check(&map[at..LEN.min(at + REGION)], at);
                most = most.max(on_huge_pages(map.as_ptr().addr()));
            }
            assert!(pager.stats().used_bytes <= BUDGET);
        }
        assert!(most > (BUDGET >> 11) as usize, "{mode:?}: {most} KiB on huge pages");
        let faults = pager.stats().faults;
        assert!(faults < 3 * (LEN / PAGE) as u64 / 20, "{mode:?}: {faults} faults");
    }
}

/// Pages that came one by one, in any order, are put on huge pages when all of a region are there.
#[test]
fn regions_filled_page_by_page_collapse() {
    if !require_userfaultfd() || !huge_pages_are_there() {
        return;
    }
    const REGIONS: usize = 8;
    let dir = scratch();
    let path = write_file(dir.path());
    for mode in MODES {
        let pager = pager(BUDGET);
        let map = open(&pager, &path, mode);
        map.advise(Advice::Random).unwrap();
        let mut pages: Vec<usize> = (0..REGIONS * REGION / PAGE).collect();
        let mut rng = Rng(7);
        for end in (1..pages.len()).rev() {
            pages.swap(end, rng.below(end as u64 + 1) as usize);
        }
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (map, ended) = (&map, &ended);
            // Somebody reads all the time: what collapses under it shows the same bytes.
            let reader = scope.spawn(move || {
                let mut rng = Rng(8);
                while !ended.load(Ordering::Relaxed) {
                    let at = rng.below((REGIONS * REGION / PAGE) as u64) as usize * PAGE;
                    check(&map[at..at + PAGE], at);
                }
            });
            let _watchdog = Watchdog::new("collapse", Duration::from_secs(60));
            pages.iter().for_each(|page| check(&map[page * PAGE..][..64], page * PAGE));
            while pager.stats().collapses < REGIONS as u64 - 1 {
                std::thread::sleep(Duration::from_millis(1)); // done in the background
            }
            ended.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        check(&map[..REGIONS * REGION], 0);
        // One may have been in use when its last page came.
        let kib = on_huge_pages(map.as_ptr() as usize);
        assert!(kib >= (REGIONS - 1) * REGION / 1024, "{mode:?}: {kib} KiB on huge pages");
    }
}

#[test]
fn pins_all_over_leave_the_rest_to_be_evicted() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let path = write_file(dir.path());
    for mode in MODES {
        let pager = pager(BUDGET);
        let map = open(&pager, &path, mode);
        check(&map, 0);
        // One page of every region: they hold no more than themselves.
        let pins: Vec<_> = (0..60).map(|region| (region * REGION + 8 * PAGE) as u64).collect();
        let pins: Vec<_> = pins.iter().map(|&at| map.get(at..at + PAGE as u64).unwrap()).collect();
        for _ in 0..2 {
            check(&map, 0);
            for (region, pin) in pins.iter().enumerate() {
                check(pin, region * REGION + 8 * PAGE);
            }
        }
        assert!(pager.stats().used_bytes <= BUDGET);
        drop(pins);
        check(&map, 0);
        assert!(map.evict(..).unwrap() > 0);
        let left = map.resident_bytes();
        assert!(
            left <= (8 * REGION) as u64,
            "{left} bytes are left, more than read-ahead may bring in again"
        );
        check(&map, 0);
    }
}

#[test]
fn everything_at_once_reads_what_the_file_holds() {
    if !require_userfaultfd() {
        return;
    }
    let _watchdog = Watchdog::new("everything at once", Duration::from_secs(240));
    let dir = scratch();
    let path = write_file(dir.path());
    for (round, mode) in MODES.into_iter().cycle().take(4).enumerate() {
        let pager = pager(BUDGET >> (round / 2));
        let map = &open(&pager, &path, mode);
        let over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                scope.spawn(move || {
                    let mut rng = Rng((round * 10 + thread) as u64 + 1);
                    while !over.load(Ordering::Relaxed) {
                        one_operation(map, thread, &mut rng);
                    }
                });
            }
            for _ in 0..3 {
                check(map, 0);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(pager.stats().used_bytes <= pager.stats().budget_bytes);
    }
}

fn one_operation(map: &Map, thread: usize, rng: &mut Rng) {
    let at = rng.below((LEN - REGION) as u64 / 8) as usize * 8;
    let len = 1 + rng.below(if thread == 0 { 2 * PAGE as u64 } else { REGION as u64 }) as usize;
    let range = at as u64..(at + len) as u64;
    match thread {
        0 => check(&map[at..at + len], at),
        1 => check(&map.get(range).unwrap(), at),
        2 => map.checked(|bytes| check(&bytes[at..at + len.min(64 * PAGE)], at)).unwrap(),
        3 => {
            let places: Vec<_> = (0..20).map(|_| rng.below(LEN as u64 / 8 - 8) * 8).collect();
            let ranges: Vec<_> = places.iter().map(|&at| at..at + 64).collect();
            for (pin, at) in map.get_many(&ranges).unwrap().iter().zip(places) {
                check(pin, at as usize);
            }
        }
        4 => {
            map.prefetch(range).unwrap();
            let mut bytes = vec![0; len];
            map.read_at(at as u64, &mut bytes).unwrap();
            check(&bytes, at);
        }
        _ => {
            map.evict(range).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn moved_frames_want_a_budget_that_has_room_for_copies() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let path = write_file(dir.path());
    let small = pager((16 << 20) - 1);
    let refused = paged(&small, MODES[0]).frames(FrameKind::Moved).open(&path).unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }) && refused.to_string().contains("16 MiB"), "{refused}");
    assert!(paged(&small, MODES[0]).open(&path).is_ok(), "Auto has shared frames there");
}
