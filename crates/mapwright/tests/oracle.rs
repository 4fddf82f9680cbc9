//! Maps against an oracle too simple to be wrong: a `Vec<u8>`. Random operations by seed, budgets of a few blocks.
//!
//! `MAPWRIGHT_ORACLE_SEED=n` runs one seed only; `MAPWRIGHT_ORACLE_SEEDS=n` that many.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{PAGE, Rng, Watchdog, block_on, contents, file_of, paged, pager, require_userfaultfd, scratch};
use mapwright::{Advice, FaultMode, MapMut, MapOptions, Pager, Strategy};

/// The longest that a file gets.
const MOST: usize = 3 << 20;

struct Case {
    seed: u64,
    block: usize,
    mode: FaultMode,
    strategy: Strategy,
    pager: Pager,
}

impl Case {
    fn new(seed: u64, strategy: Strategy) -> Self {
        let mut rng = Rng(seed);
        let block = [4096, 4096, 65536, 65536, 2 << 20][rng.below(5) as usize];
        let blocks = 8 + rng.below(9);
        let mode = common::MODES[rng.below(2) as usize];
        Self { seed, block, mode, strategy, pager: pager(blocks * block as u64) }
    }

    fn open(&self, path: &Path) -> MapMut {
        let options = match self.strategy {
            Strategy::Pager => paged(&self.pager, self.mode).block_size(self.block),
            other => MapOptions::new().strategy(other),
        };
        options.reserve(2 * MOST as u64).deadline(Duration::from_secs(10)).open_mut(path).unwrap()
    }
}

fn some_range(rng: &mut Rng, len: usize, most: usize) -> std::ops::Range<usize> {
    let start = rng.below(len as u64 + 1) as usize;
    let n = match rng.below(3) {
        0 => rng.below(100),
        1 => rng.below(3 * PAGE as u64),
        _ => rng.below(most as u64),
    };
    start..len.min(start + n as usize)
}

fn wide(range: &std::ops::Range<usize>) -> std::ops::Range<u64> {
    range.start as u64..range.end as u64
}

/// Printed when a case fails.
struct Log(Vec<String>);

impl Log {
    fn push(&mut self, line: String) {
        self.0.push(line);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("operations:\n{}", self.0.join("\n"));
        }
    }
}

fn run(case: &Case, watchdog: &Watchdog) {
    let dir = scratch();
    let mut rng = Rng(case.seed ^ 0x5eed);
    let len = 1 + 2 * rng.below(MOST as u64 / 4) as usize;
    let (path, mut oracle) = file_of(dir.path(), len);
    let mut map = case.open(&path);
    // What fits into the smallest budget at once, whatever the alignment, metadata aside.
    let held = 3 * case.block;
    let operations = if case.block > 65536 { 60 } else { 120 };
    let mut log = Log(Vec::new());
    for step in 0..operations {
        watchdog.tick();
        let at =
            format!("seed {} step {step} block {} {:?} {}", case.seed, case.block, case.mode, case.strategy);
        let range = some_range(&mut rng, oracle.len(), 40 * PAGE);
        let what = rng.below(19);
        log.push(format!(
            "{step}: {what} {range:?} page {}..{} len {}",
            range.start / PAGE,
            range.end / PAGE,
            oracle.len()
        ));
        match what {
            0 => assert!(map[range.clone()] == oracle[range.clone()], "{at}: slice {range:?}"),
            1 | 2 => {
                let bytes = rng.bytes(range.len());
                map[range.clone()].copy_from_slice(&bytes);
                oracle[range].copy_from_slice(&bytes);
            }
            3 => {
                for index in range.step_by(PAGE / 2 + 1) {
                    map[index] ^= 0xa5;
                    oracle[index] ^= 0xa5;
                }
            }
            4 => {
                let mut into = vec![0; range.len()];
                map.read_at(range.start as u64, &mut into).unwrap();
                assert!(into == oracle[range.clone()], "{at}: read_at {range:?}");
            }
            5 | 6 => {
                let bytes = rng.bytes(range.len());
                map.write_at(range.start as u64, &bytes).unwrap();
                oracle[range].copy_from_slice(&bytes);
            }
            7 | 8 => {
                let bytes = rng.bytes(range.len());
                map.overwrite(range.start as u64, &bytes).unwrap();
                oracle[range].copy_from_slice(&bytes);
            }
            9 => {
                let range = some_range(&mut rng, oracle.len(), held - case.block);
                let pinned = map.get(wide(&range)).unwrap_or_else(|e| panic!("{at}: get {range:?}: {e}"));
                assert!(pinned[..] == oracle[range.clone()], "{at}: get {range:?}");
            }
            10 => {
                let ranges: Vec<_> = (0..2)
                    .map(|_| rng.below(oracle.len() as u64) as usize)
                    .map(|start| start..oracle.len().min(start + 100))
                    .collect();
                let asked: Vec<_> = ranges.iter().map(wide).collect();
                let pinned =
                    map.get_many(&asked).unwrap_or_else(|e| panic!("{at}: get_many {ranges:?}: {e}"));
                for (range, bytes) in ranges.iter().zip(&pinned) {
                    assert!(bytes[..] == oracle[range.clone()], "{at}: get_many {range:?}");
                }
            }
            11 => map.prefetch(wide(&range)).unwrap(),
            12 => {
                let small = range.start..range.end.min(range.start + 3000);
                let pinned = block_on(map.get_async(wide(&small))).unwrap();
                assert!(pinned[..] == oracle[small.clone()], "{at}: get_async {small:?}");
                drop(pinned);
                block_on(map.prefetch_async(wide(&range))).unwrap();
            }
            13 => {
                let whole = rng.below(2) == 0;
                if whole {
                    map.flush().unwrap()
                } else {
                    map.flush_range(wide(&range)).unwrap()
                }
                if whole {
                    assert_file(&path, &oracle, &format!("{at}: the file after a flush"));
                }
            }
            14 | 15 => {
                let target = match rng.below(4) {
                    0 => rng.below(MOST as u64) as usize,
                    1 => oracle.len().saturating_sub(rng.below(3 * PAGE as u64) as usize),
                    2 => (oracle.len() + rng.below(3 * PAGE as u64) as usize).min(MOST),
                    _ => (oracle.len() / 2) | 1,
                };
                map.resize(target as u64).unwrap_or_else(|e| panic!("{at}: resize to {target}: {e}"));
                oracle.resize(target, 0);
                assert_eq!(map.len(), target, "{at}");
            }
            16 => {
                let len = (rng.below(2 * PAGE as u64) as usize).min(MOST - oracle.len().min(MOST));
                let bytes = rng.bytes(len);
                map.append(&bytes).unwrap();
                oracle.extend(&bytes);
            }
            17 => {
                let advice = [Advice::Normal, Advice::Sequential, Advice::Random][rng.below(3) as usize];
                map.advise(advice).unwrap();
                map.evict(wide(&range)).unwrap();
                assert!(
                    map.checked(|bytes| bytes[range.clone()] == oracle[range.clone()]).unwrap(),
                    "{at}: checked"
                );
                let n = range.len().min(5000);
                map.checked_mut(|bytes| bytes[range.start..range.start + n].fill(step as u8)).unwrap();
                oracle[range.start..range.start + n].fill(step as u8);
            }
            _ => {
                if rng.below(2) == 0 {
                    drop(map)
                } else {
                    map.close().unwrap()
                }
                assert_file(&path, &oracle, &format!("{at}: the file after closing"));
                map = case.open(&path);
            }
        }
        let stats = case.pager.stats();
        assert!(stats.used_bytes <= stats.budget_bytes, "{at}: {stats:?}");
    }
    assert!(map[..] == oracle[..], "seed {}: at the end", case.seed);
    map.flush().unwrap();
    assert!(std::fs::read(&path).unwrap() == oracle, "seed {}: the file at the end", case.seed);
}

/// Fails with the places that differ.
#[track_caller]
fn assert_file(path: &Path, oracle: &[u8], at: &str) {
    let file = std::fs::read(path).unwrap();
    if file == oracle {
        return;
    }
    let n = file.len().min(oracle.len());
    let wrong: Vec<_> = (0..n).filter(|&i| file[i] != oracle[i]).collect();
    let pages: Vec<_> = wrong.chunk_by(|a, b| a / PAGE == b / PAGE).map(|run| (run[0], run.len())).collect();
    panic!("{at}: {} bytes instead of {}; differs at (offset, count) {pages:?}", file.len(), oracle.len());
}

fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().unwrap());
    match number("MAPWRIGHT_ORACLE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("MAPWRIGHT_ORACLE_SEEDS").unwrap_or(count)).collect(),
    }
}

fn run_all(strategy: Strategy, count: u64) {
    let watchdog = Watchdog::new(format!("oracle {strategy}"), Duration::from_secs(40));
    for seed in seeds(count) {
        run(&Case::new(seed, strategy), &watchdog);
    }
}

#[test]
fn the_pager_does_what_a_vector_does() {
    if require_userfaultfd() {
        run_all(Strategy::Pager, 100);
    }
}

#[test]
fn the_kernel_strategy_does_what_a_vector_does() {
    run_all(Strategy::Kernel, 40);
}

#[test]
fn the_buffer_strategy_does_what_a_vector_does() {
    run_all(Strategy::Buffer, 20);
}

#[test]
fn shared_access_by_many_threads_to_interleaved_ranges() {
    if !require_userfaultfd() {
        return;
    }
    const THREADS: usize = 6;
    for (seed, mode) in (0..6).zip(common::MODES.into_iter().cycle()) {
        let block = [4096, 65536][seed as usize / 2 % 2];
        let dir = scratch();
        let len = 24 * block + 77;
        let (path, mut oracle) = file_of(dir.path(), len);
        let pager = pager(16 * block as u64);
        let mut map = paged(&pager, mode).block_size(block).open_mut(&path).unwrap();
        // Thread t owns every byte whose cell of 100 bytes is t modulo THREADS: each page belongs to all of them.
        const CELL: usize = 100;
        let shared = map.shared();
        let results: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|own| {
                    let mut mine = oracle.clone();
                    scope.spawn(move || {
                        let mut rng = Rng(seed * 100 + own as u64);
                        let cells = len / CELL;
                        for _ in 0..800 {
                            let cell = rng.below((cells / THREADS) as u64) as usize * THREADS + own;
                            let at = cell * CELL;
                            match rng.below(6) {
                                0..3 => {
                                    let bytes = rng.bytes(CELL);
                                    shared.write_at(at as u64, &bytes).unwrap();
                                    mine[at..at + CELL].copy_from_slice(&bytes);
                                }
                                3 | 4 => {
                                    let mut into = [0; CELL];
                                    shared.read_at(at as u64, &mut into).unwrap();
                                    assert!(
                                        into == mine[at..at + CELL],
                                        "lost or stale at {at}, seed {seed}"
                                    );
                                }
                                _ => match rng.below(20) {
                                    0 => shared.flush().unwrap(),
                                    1..8 => drop(shared.evict(..).unwrap()),
                                    _ => shared.prefetch(at as u64..(at + CELL) as u64).unwrap(),
                                },
                            }
                        }
                        mine
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        for (index, byte) in oracle.iter_mut().enumerate() {
            *byte = results[index / CELL % THREADS][index];
        }
        assert!(map[..] == oracle[..], "seed {seed}");
        map.close().unwrap();
        assert_file(&path, &oracle, &format!("seed {seed}"));
    }
}

#[test]
fn readers_while_others_evict_prefetch_and_get() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let len = (2 << 20) + 333;
    let path = dir.path().join("file");
    let bytes = contents(len);
    std::fs::write(&path, &bytes).unwrap();
    for (mode, block) in [(0, 4096), (1, 4096), (0, 65536), (1, 65536)] {
        let pager = pager(12 * block as u64);
        let map = paged(&pager, common::MODES[mode]).block_size(block).open(&path).unwrap();
        let (map, bytes) = (&map, &bytes);
        std::thread::scope(|scope| {
            for own in 0..3 {
                scope.spawn(move || {
                    let mut rng = Rng(own);
                    for _ in 0..1500 {
                        let range = some_range(&mut rng, len, 2 * PAGE);
                        assert!(map[range.clone()] == bytes[range.clone()], "slice {range:?}");
                    }
                });
            }
            scope.spawn(move || {
                let mut rng = Rng(77);
                for _ in 0..500 {
                    let range = some_range(&mut rng, len, block);
                    assert!(map.get(wide(&range)).unwrap()[..] == bytes[range.clone()], "get {range:?}");
                    let range = some_range(&mut rng, len, 8 * PAGE);
                    map.prefetch(wide(&range)).unwrap();
                    map.checked(|view| assert!(view[range.clone()] == bytes[range.clone()])).unwrap();
                }
            });
            scope.spawn(move || {
                let mut rng = Rng(99);
                for _ in 0..1500 {
                    map.evict(wide(&some_range(&mut rng, len, len))).unwrap();
                }
            });
        });
        let stats = pager.stats();
        assert!(stats.used_bytes <= stats.budget_bytes, "{stats:?}");
    }
}
