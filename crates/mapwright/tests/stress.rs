//! Eviction against reads, writes, pins and flushes, with the budget always full. MAPWRIGHT_STRESS_SECONDS says for how long.
#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PAGE, Rng, Watchdog, paged, pager, require_userfaultfd, scratch};
use mapwright::FaultMode;

const PAGES: usize = 160;
const WRITERS: usize = 4;
const WORDS: usize = PAGES * PAGE / 8;

/// Each word belongs to one writer and holds its own index and a sequence number, so that a word in the wrong place, a
/// lost write and a stale page all show.
fn word(index: usize, sequence: u64) -> u64 {
    (index as u64) << 40 | sequence
}

fn run(mode: FaultMode, block: usize, time: Duration) {
    let dir = scratch();
    let path = dir.path().join("file");
    let start: Vec<u8> = (0..WORDS).flat_map(|index| word(index, 0).to_le_bytes()).collect();
    std::fs::write(&path, &start).unwrap();
    let pager = pager(12 * block as u64);
    let mut map = paged(&pager, mode).block_size(block).open_mut(&path).unwrap();
    let watchdog = Watchdog::new(format!("stress {mode:?} {block}"), Duration::from_secs(20));
    let over = AtomicBool::new(false);
    let shared = map.shared();
    let last: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let (over, watchdog, pager) = (&over, &watchdog, &pager);
        let writers: Vec<_> = (0..WRITERS)
            .map(|own| {
                scope.spawn(move || {
                    let mut rng = Rng(own as u64);
                    let mut mine = vec![0u64; WORDS];
                    while !over.load(Ordering::Relaxed) {
                        // Neighbouring words belong to different writers: every page is written by all.
                        let index = rng.below((WORDS / WRITERS) as u64) as usize * WRITERS + own;
                        let at = index as u64 * 8;
                        let mut bytes = [0; 8];
                        shared.read_at(at, &mut bytes).unwrap();
                        assert_eq!(
                            u64::from_le_bytes(bytes),
                            word(index, mine[index]),
                            "word {index} of writer {own}"
                        );
                        mine[index] += 1;
                        shared.write_at(at, &word(index, mine[index]).to_le_bytes()).unwrap();
                        watchdog.tick();
                    }
                    mine
                })
            })
            .collect();
        scope.spawn(move || {
            let mut rng = Rng(50);
            while !over.load(Ordering::Relaxed) {
                let page = rng.below(PAGES as u64) * PAGE as u64;
                let mut bytes = [0; PAGE];
                shared.read_at(page, &mut bytes).unwrap();
                for (i, bytes) in bytes.chunks(8).enumerate() {
                    let found = u64::from_le_bytes(bytes.try_into().unwrap());
                    assert_eq!(found >> 40, page / 8 + i as u64, "a word in the wrong place");
                }
            }
        });
        scope.spawn(move || {
            let mut rng = Rng(60);
            while !over.load(Ordering::Relaxed) {
                shared.flush().unwrap();
                shared.evict(..).unwrap();
                let page = rng.below(PAGES as u64 - 8) * PAGE as u64;
                shared.prefetch(page..page + 8 * PAGE as u64).unwrap();
                let stats = pager.stats();
                assert!(stats.used_bytes <= stats.budget_bytes, "{stats:?}");
            }
        });
        let since = Instant::now();
        while since.elapsed() < time && writers.iter().all(|writer| !writer.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let oracle: Vec<u8> =
        (0..WORDS).flat_map(|index| word(index, last[index % WRITERS][index]).to_le_bytes()).collect();
    assert!(map[..] == oracle[..], "through the slice");
    map.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == oracle, "in the file");
}

/// Slices instead of copies: threads write parts of one slice, split, while the budget is too small for any of them.
fn slices(mode: FaultMode, time: Duration) {
    let dir = scratch();
    let (path, mut oracle) = common::file_of(dir.path(), PAGES * PAGE);
    let pager = pager(12 * PAGE as u64);
    let mut map = paged(&pager, mode).open_mut(&path).unwrap();
    let watchdog = Watchdog::new(format!("slices {mode:?}"), Duration::from_secs(20));
    let since = Instant::now();
    let parts = map.chunks_mut(PAGES * PAGE / 5 + 100).zip(oracle.chunks_mut(PAGES * PAGE / 5 + 100));
    std::thread::scope(|scope| {
        for (own, (part, mine)) in parts.enumerate() {
            let watchdog = &watchdog;
            scope.spawn(move || {
                let mut rng = Rng(own as u64);
                while since.elapsed() < time {
                    let at = rng.below(part.len() as u64) as usize;
                    assert_eq!(part[at], mine[at], "at {at} of part {own}");
                    let byte = rng.next() as u8;
                    (part[at], mine[at]) = (byte, byte);
                    watchdog.tick();
                }
            });
        }
    });
    assert!(map[..] == oracle[..]);
    map.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == oracle);
}

/// Reading by slices, pins held for a while, batches, prefetches and futures, while everything is evicted all the time.
fn readers(mode: FaultMode, time: Duration) {
    let dir = scratch();
    let (path, bytes) = common::file_of(dir.path(), PAGES * PAGE + 77);
    let pager = pager(24 * PAGE as u64);
    let map = paged(&pager, mode).open(&path).unwrap();
    let watchdog = Watchdog::new(format!("readers {mode:?}"), Duration::from_secs(20));
    let since = Instant::now();
    std::thread::scope(|scope| {
        for own in 0..6u64 {
            let (map, bytes, watchdog) = (&map, &bytes, &watchdog);
            scope.spawn(move || {
                let mut rng = Rng(own);
                let mut held = Vec::new();
                while since.elapsed() < time {
                    let at = rng.below((bytes.len() - 300) as u64);
                    let range = at as usize..at as usize + 300;
                    match own {
                        0 | 1 => assert!(map[range.clone()] == bytes[range], "a slice at {at}"),
                        2 => {
                            // Two pins at most stay, of two blocks each at most: well within the budget.
                            let pinned = map.get(at..at + 300).unwrap();
                            held.push((range, pinned));
                            if held.len() > 2 {
                                let (range, pinned) = held.remove(0);
                                assert!(pinned[..] == bytes[range], "a pin at {at}");
                            }
                        }
                        3 => {
                            let places = [at, at / 2, at / 3].map(|at| at..at + 9);
                            for (place, pinned) in places.iter().zip(map.get_many(&places).unwrap()) {
                                assert!(pinned[..] == bytes[place.start as usize..place.end as usize]);
                            }
                        }
                        4 => {
                            let pinned = common::block_on(map.get_async(at..at + 300)).unwrap();
                            assert!(pinned[..] == bytes[range], "a future at {at}");
                        }
                        _ => {
                            map.will_need(at..at + 300).unwrap();
                            map.evict(at / 2..).unwrap();
                        }
                    }
                    watchdog.tick();
                }
            });
        }
    });
    assert!(map[..] == bytes[..]);
    assert!(pager.stats().evictions > 0 && pager.stats().used_bytes <= pager.budget());
}

#[test]
fn nothing_is_lost_or_stale_under_pressure() {
    if !require_userfaultfd() {
        return;
    }
    let seconds = std::env::var("MAPWRIGHT_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(10)) / 8;
    for mode in common::MODES {
        run(mode, PAGE, time);
        run(mode, 16 * PAGE, time);
        slices(mode, time);
        readers(mode, time);
    }
}
