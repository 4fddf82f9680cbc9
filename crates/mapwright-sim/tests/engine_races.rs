//! Pairs of operations on the same block or file, each over many seeds.

mod engine;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::oracle::Oracle;
use engine::{EIO, Opening, PAGE, ThreadWaker, block_on, for_seeds, pager};
use mapwright::engine::checked::Scope;
use mapwright::engine::file::File;
use mapwright::engine::kernel::{FaultMode, View};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::request::{Acquire, Request};
use mapwright::engine::{Handle, evict, write_back};
use mapwright::{Change, Error, Result};
use mapwright_sim::{Op, Options, SimHandle, SimStore, StoreOptions};

const BUDGET: u64 = 16 * PAGE;
const LEN: u64 = 12 * PAGE;

/// A pager with one file on one store.
struct Bench {
    sim: SimHandle,
    store: Arc<SimStore>,
    pager: Arc<Handle>,
    file: Arc<File>,
}

fn bench(sim: &SimHandle, told: &AtomicU64, options: StoreOptions, opening: &Opening) -> Bench {
    told.store(BUDGET, Ordering::SeqCst);
    let store = SimStore::new(sim, Oracle::pattern(LEN), options);
    let pager = pager(sim, BUDGET);
    let file = opening.open(&pager, &store).expect("open");
    Bench { sim: sim.clone(), store, pager, file }
}

fn either_mode(sim: &SimHandle) -> Opening {
    let mode = if sim.seed().is_multiple_of(2) { FaultMode::Thread } else { FaultMode::InThread };
    Opening { mode, ..Opening::default() }
}

fn remote() -> StoreOptions {
    StoreOptions { local: false, max_latency: Duration::from_micros(50), ..StoreOptions::default() }
}

fn races(name: &str, count: u64, body: fn(&SimHandle, &AtomicU64)) {
    for_seeds(name, count, &Options::default(), body);
}

impl Bench {
    fn address(&self, view: View) -> usize {
        self.file.frames().address(view).expect("both views can be made")
    }

    fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&SimHandle, &Arc<File>, usize) -> T + Send + 'static,
    ) -> mapwright_sim::JoinHandle<T> {
        let (sim, file, base) = (self.sim.clone(), Arc::clone(&self.file), self.address(View::Plain));
        self.sim.spawn(name, move || work(&sim, &file, base))
    }

    fn get(&self, blocks: std::ops::Range<u64>) -> Result<mapwright::engine::request::Held> {
        Request::new(&self.file, blocks.collect(), false)?.wait()
    }
}

fn flush_all(file: &Arc<File>) -> Result<()> {
    write_back::flush(file, 0..file.len())
}

#[test]
fn a_write_is_kept_while_its_block_is_evicted_and_flushed() {
    races("evict, flush and write", 300, |sim, told| {
        let bench = bench(sim, told, StoreOptions::nasty(), &either_mode(sim));
        let writer = bench.spawn("writer", |sim, _, base| {
            (1..=6).for_each(|value| sim.write_slice(base + 100, &[value; 5000]).expect("a good store"));
        });
        let evictor = bench.spawn("evictor", |_, file, _| {
            for _ in 0..6 {
                evict::drop_clean(file, 0..3);
            }
        });
        let flusher =
            bench.spawn("flusher", |_, file, _| (0..3).for_each(|_| flush_all(file).expect("a good store")));
        writer.join();
        evictor.join();
        flusher.join();
        assert_eq!(sim.read_slice(bench.address(View::Plain) + 100, 5000), Ok(vec![6; 5000]));
        flush_all(&bench.file).expect("a good store");
        assert_eq!(bench.store.crash_image()[100..5100], [6; 5000]);
        sim.assert_no_hole_reads();
    });
}

#[test]
fn a_pinned_block_stays() {
    races("evict and pin", 200, |sim, told| {
        let bench = bench(sim, told, StoreOptions::nasty(), &either_mode(sim));
        let held = bench.get(2..4).expect("room for two");
        let others = bench.spawn("others", |_, file, _| {
            let mut all = vec![0; LEN as usize];
            for _ in 0..3 {
                evict::drop_clean(file, 0..12);
                file.read_at(0, &mut all).expect("a good store");
            }
        });
        for _ in 0..20 {
            assert!(bench.file.is_resident(2 * PAGE) && bench.file.is_resident(3 * PAGE));
            let found = sim.read_slice(bench.address(View::Plain) + 2 * PAGE as usize, 2 * PAGE as usize);
            assert_eq!(found.expect("pinned"), Oracle::pattern(LEN)[2 * PAGE as usize..4 * PAGE as usize]);
        }
        others.join();
        assert_eq!(sim.fault_count(), 0, "what is pinned does not fault");
        drop(held);
        evict::drop_clean(&bench.file, 0..12);
        assert!(!bench.file.is_resident(2 * PAGE));
    });
}

#[test]
fn each_of_two_flushes_returns_when_its_pages_are_durable() {
    races("flush and flush", 300, |sim, told| {
        let bench = bench(sim, told, StoreOptions::nasty(), &either_mode(sim));
        bench.file.write_at(50, &[9; 9000]).expect("a good store");
        let fails = sim.seed().is_multiple_of(3);
        if fails {
            bench.store.fail_nth(Op::Sync, 0, EIO);
        }
        let flushers: Vec<_> = (0..2)
            .map(|_| {
                let store = Arc::clone(&bench.store);
                bench.spawn("flusher", move |_, file, _| {
                    let flushed = flush_all(file);
                    if flushed.is_ok() {
                        assert_eq!(store.crash_image()[50..9050], [9; 9000], "flushed and not durable");
                    }
                    flushed
                })
            })
            .collect();
        let failed: Vec<_> = flushers.into_iter().filter_map(|flusher| flusher.join().err()).collect();
        assert_eq!(failed.is_empty(), !fails, "{failed:?}");
        if fails {
            assert!(matches!(
                write_back::acknowledge(&bench.file),
                Some(Error::Io { operation: "sync", .. })
            ));
        }
        flush_all(&bench.file).expect("acknowledged");
        assert_eq!(bench.store.crash_image()[50..9050], [9; 9000]);
    });
}

#[test]
fn two_touches_of_a_block_make_one_read() {
    races("fault and fault", 300, |sim, told| {
        let options = StoreOptions { local: sim.seed() % 4 < 2, ..remote() };
        let bench = bench(sim, told, options, &either_mode(sim));
        let touch = |bench: &Bench| {
            bench.spawn("toucher", |sim, _, base| {
                sim.read_slice(base + 5 * PAGE as usize, 10).expect("a good store")
            })
        };
        let get = bench
            .spawn("getter", |_, file, _| drop(Request::new(file, vec![5], false).and_then(Request::wait)));
        let touchers = [touch(&bench), touch(&bench)];
        get.join();
        for toucher in touchers {
            assert_eq!(toucher.join(), Oracle::pattern(LEN)[5 * PAGE as usize..][..10]);
        }
        assert_eq!(bench.store.calls(Op::Read), 1);
    });
}

#[test]
fn a_hung_read_delays_nobody_else() {
    races("hung read", 200, |sim, told| {
        let opening = Opening { deadline: Duration::from_millis(200), ..either_mode(sim) };
        let bench = bench(sim, told, remote(), &opening);
        let good = SimStore::new(sim, Oracle::pattern(LEN), remote());
        let other = opening.open(&bench.pager, &good).expect("open");
        let held = bench.get(3..4).expect("not hung yet");
        bench.store.hang();
        // One, because there are two buffers: what hangs keeps its own.
        let stuck = bench.spawn("stuck", move |sim, _, base| sim.read_slice(base, 4));
        sim.sleep(Duration::from_millis(1));
        let begun = sim.now();
        let there = sim.read_slice(bench.address(View::Plain) + 3 * PAGE as usize, 4).expect("resident");
        assert_eq!(there, Oracle::pattern(LEN)[3 * PAGE as usize..][..4]);
        let base = other.frames().address(View::Plain).expect("the plain view");
        assert_eq!(sim.read_slice(base + 77, 4).expect("a good store"), Oracle::pattern(LEN)[77..81]);
        assert!(sim.now() - begun < Duration::from_millis(50), "it waited for another's hung read");
        let error = bench.get(9..10).err().expect("a hung store");
        let Error::TimedOut { path, offset, len, waited } = &error else { panic!("{error}") };
        assert_eq!((&path[..], *offset, *len), ("simulated", 9 * PAGE, PAGE));
        assert!(*waited >= Duration::from_millis(200));
        assert!(stuck.join().is_err(), "nothing can be read, so it is SIGBUS");
        bench.store.unhang();
        drop(held);
        sim.sleep(Duration::from_secs(1));
        let mut bytes = vec![0; LEN as usize];
        bench.file.read_at(0, &mut bytes).expect("it answers again");
        assert!(bytes == Oracle::pattern(LEN));
    });
}

#[test]
fn a_hung_store_leaves_buffers_to_others() {
    races("buffers hang", 100, |sim, told| {
        let opening = Opening { deadline: Duration::from_millis(200), ..either_mode(sim) };
        let bench = bench(sim, told, remote(), &opening);
        let good = SimStore::new(sim, Oracle::pattern(LEN), StoreOptions::default());
        let other = opening.open(&bench.pager, &good).expect("open");
        bench.store.hang();
        let stuck: Vec<_> = (0..3)
            .map(|n| bench.spawn("stuck", move |sim, _, base| sim.read_slice(base + n * PAGE as usize, 4)))
            .collect();
        sim.sleep(Duration::from_millis(50));
        drop(Request::new(&other, vec![1], false).and_then(Request::wait).expect("a buffer is left"));
        stuck.into_iter().for_each(|stuck| assert!(stuck.join().is_err()));
        bench.store.unhang();
        sim.sleep(Duration::from_secs(1));
        drop(Request::new(&other, vec![1], false).and_then(Request::wait).expect("buffers are back"));
    });
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    races("resize and fill", 300, |sim, told| {
        let opening = Opening { reserve: 20 * PAGE, advice: Advice::Sequential, ..either_mode(sim) };
        let bench = bench(sim, told, StoreOptions::nasty(), &opening);
        let touched = sim.rng(1).below(LEN);
        // Read-ahead goes on behind the resize.
        sim.read_slice(bench.address(View::Plain) + touched as usize, 1).expect("a good store");
        bench.file.write_at(LEN - 3000, &[5; 3000]).expect("a good store");
        let len = sim.rng(2).below(LEN);
        bench.file.resize(len).expect("nothing is pinned");
        if sim.seed().is_multiple_of(3) {
            flush_all(&bench.file).expect("a good store");
            assert_eq!(bench.store.crash_image().len() as u64, len);
        }
        bench.file.resize(15 * PAGE).expect("within the reserve");
        let mut all = vec![1; 15 * PAGE as usize];
        bench.file.read_at(0, &mut all).expect("a good store");
        let mut expected = Oracle::pattern(LEN);
        expected[LEN as usize - 3000..].fill(5);
        expected.truncate(len as usize);
        expected.resize(15 * PAGE as usize, 0);
        assert!(all == expected, "stale bytes past {len}");
        evict::drop_clean(&bench.file, 0..20);
        flush_all(&bench.file).expect("a good store");
        evict::drop_clean(&bench.file, 0..20);
        bench.file.read_at(0, &mut all).expect("a good store");
        assert!(
            all == expected && bench.store.crash_image() == expected,
            "stale bytes in the store past {len}"
        );
    });
}

#[test]
fn requests_larger_than_the_budget_are_refused_and_those_that_meet_both_end() {
    races("get_many", 200, |sim, told| {
        let opening = Opening { reserve: 64 * PAGE, ..either_mode(sim) };
        let bench = bench(sim, told, StoreOptions::nasty(), &opening);
        bench.file.resize(64 * PAGE).expect("within the reserve");
        let error = Request::new(&bench.file, (0..20).collect(), false).err().expect("20 of 16 blocks");
        let Error::BudgetExhausted { needed, budget, .. } = error else { panic!("{error}") };
        assert_eq!(
            (needed, budget),
            (20 * (PAGE + 16) + PAGE, BUDGET),
            "the blocks and a chunk of the table"
        );
        let getters: Vec<_> = (0..2)
            .map(|n| {
                bench.spawn("getter", move |sim, file, _| {
                    for _ in 0..2 {
                        let blocks = (0..9).map(|block| block * 2 + n + n * 20).collect();
                        let held = Request::new(file, blocks, false)
                            .and_then(Request::wait)
                            .expect("its turn comes");
                        sim.sleep(Duration::from_micros(300));
                        drop(held);
                    }
                })
            })
            .collect();
        getters.into_iter().for_each(|getter| getter.join());
        assert!(sim.now() < Duration::from_secs(10), "they held each other up");
    });
}

#[test]
fn a_pin_given_back_wakes_who_waits_for_room() {
    races("pins and room", 200, |sim, told| {
        let bench = bench(sim, told, StoreOptions::default(), &either_mode(sim));
        let opening = either_mode(sim);
        let more = SimStore::new(sim, Oracle::pattern(LEN), StoreOptions::default());
        let other = opening.open(&bench.pager, &more).expect("open");
        // 14 blocks, of which two pages are the tables of the two files.
        let held = bench.get(0..11).expect("there is room");
        let waiting = sim.spawn("waiting", {
            let other = Arc::clone(&other);
            move || {
                drop(
                    Request::new(&other, (0..6).collect(), false)
                        .and_then(Request::wait)
                        .expect("room comes"),
                )
            }
        });
        sim.sleep(Duration::from_millis(300));
        let released = sim.now();
        drop(held);
        waiting.join();
        assert!(sim.now() - released < Duration::from_millis(150), "{:?}", sim.now() - released);
    });
}

#[test]
fn a_file_may_go_while_fills_are_in_flight() {
    races("drop and fill", 200, |sim, told| {
        let opening = Opening { advice: Advice::Sequential, ..either_mode(sim) };
        let bench = bench(sim, told, remote(), &opening);
        let mut future = Acquire::new(Request::new(&bench.file, vec![1, 2, 9], true).expect("three blocks"));
        let waker = Waker::from(ThreadWaker::new(sim));
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
        if sim.seed().is_multiple_of(2) {
            sim.sleep(Duration::from_micros(30));
        }
        drop(future);
        let Bench { store, pager, file, .. } = bench;
        let gone = Arc::downgrade(&file);
        drop((file, pager));
        for _ in 0..100 {
            sim.sleep(Duration::from_millis(1));
        }
        assert_eq!(gone.strong_count(), 0);
        assert_eq!(sim.resident_bytes(), 0);
        drop(store);
    });
}

#[test]
fn futures_end_when_the_store_answers_and_at_the_deadline_when_it_does_not() {
    races("futures", 200, |sim, told| {
        let opening = Opening { deadline: Duration::from_millis(100), ..either_mode(sim) };
        let bench = bench(sim, told, remote(), &opening);
        let acquire =
            |blocks: Vec<u64>| Acquire::new(Request::new(&bench.file, blocks, false).expect("few blocks"));
        drop(block_on(sim, acquire(vec![0, 3, 4, 3])).expect("it answers"));
        bench.store.hang();
        let begun = sim.now();
        let error = block_on(sim, acquire(vec![0, 7])).err().expect("it hangs");
        let Error::TimedOut { offset, .. } = error else { panic!("{error}") };
        assert_eq!(offset, 7 * PAGE);
        let waited = sim.now() - begun;
        assert!((100..150).contains(&waited.as_millis()), "{waited:?}");
        bench.store.unhang();
        sim.sleep(Duration::from_millis(10));
        drop(block_on(sim, acquire(vec![7])).expect("it answers again"));
        bench.store.fail_nth(Op::Read, 0, EIO);
        evict::drop_clean(&bench.file, 0..12);
        match block_on(sim, acquire(vec![8])) {
            Err(Error::Io { operation: "read", offset, source, .. }) => {
                assert_eq!((offset, source.raw_os_error()), (8 * PAGE, Some(EIO)));
            }
            // The block settles before the error is told; who looks in between reads again, and this time it works.
            Ok(_) => assert_eq!(bench.store.calls(Op::Read), 6),
            Err(other) => panic!("{other}"),
        }
    });
}

#[test]
fn a_future_that_waits_for_anothers_fill_is_woken() {
    races("futures that join", 200, |sim, told| {
        let bench = bench(sim, told, remote(), &either_mode(sim));
        let pollers: Vec<_> = (0..3)
            .map(|_| {
                bench.spawn("poller", |sim, file, _| {
                    let request = Request::new(file, vec![2, 6], false).expect("two blocks");
                    drop(block_on(sim, Acquire::new(request)).expect("a good store"));
                })
            })
            .collect();
        pollers.into_iter().for_each(|poller| poller.join());
        assert!(sim.now() < Duration::from_secs(1));
    });
}

#[test]
fn a_failed_page_reads_as_zeros_in_scopes_only_and_they_tell() {
    races("checked", 300, |sim, told| {
        let bench = bench(sim, told, StoreOptions::default(), &either_mode(sim));
        let checked = bench.address(View::Checked);
        drop(bench.get(1..2).expect("a good store"));
        bench.store.set_options(|options| options.error_per_1000 = 1000);
        let expected = Oracle::pattern(LEN);
        let scope = Scope::enter(&bench.file).expect("the view can be made");
        assert_eq!(
            sim.read_slice(checked + PAGE as usize, 4).expect("resident"),
            expected[PAGE as usize..][..4]
        );
        assert_eq!(sim.read_slice(checked + 5 * PAGE as usize, 4), Ok(vec![0; 4]));
        // Somebody else touches a resident page outside, and is not concerned.
        let outside = bench.spawn("outside", |sim, _, base| sim.read_slice(base + PAGE as usize, 4));
        assert!(outside.join().is_ok());
        assert!(
            Scope::enter(&bench.file).is_err(),
            "a scope would see zeros, and keep them from being taken away"
        );
        match scope.end() {
            Err(Error::Io { operation: "read", path, offset, source, .. }) => {
                assert_eq!((&path[..], offset, source.raw_os_error()), ("simulated", 5 * PAGE, Some(EIO)));
            }
            other => panic!("{other:?}"),
        }
        bench.store.set_options(|options| options.error_per_1000 = 0);
        // A fault that was told twice may bring its error late, but then with the scope that sees the zeros.
        let clean = (0..5).any(|_| {
            let scope = Scope::enter(&bench.file).expect("the view exists");
            let found = sim.read_slice(checked, LEN as usize).expect("no SIGBUS in a scope");
            let ended = scope.end();
            assert!(ended.is_err() || found == expected, "zeros, and nobody told");
            ended.is_ok()
        });
        assert!(clean, "errors of a good store");
    });
}

#[test]
fn changes_by_others_are_named() {
    races("changed", 100, |sim, told| {
        let writable = sim.seed().is_multiple_of(2);
        let bench = bench(sim, told, StoreOptions::default(), &Opening { writable, ..either_mode(sim) });
        drop(bench.get(0..1).expect("unchanged"));
        bench.store.truncate_behind(3 * PAGE);
        for block in [1, 7] {
            let error = bench.get(block..block + 1).err().expect("changed");
            let Error::Changed { path, change, .. } = error else { panic!("{error}") };
            assert_eq!((&path[..], change), ("simulated", Change::Truncated { was: LEN, now: 3 * PAGE }));
        }
        let there = sim.read_slice(bench.address(View::Plain), 8).expect("resident");
        assert_eq!(there, Oracle::pattern(LEN)[..8]);
        if !writable {
            bench.store.truncate_behind(LEN);
            bench.store.modify_behind(0, b"new");
            let error = bench.get(1..2).err().expect("changed");
            assert!(matches!(error, Error::Changed { change: Change::Modified, .. }), "{error}");
        }
    });
}

#[test]
fn a_store_that_is_busy_for_a_while_is_asked_again() {
    races("transient", 50, |sim, told| {
        let options = StoreOptions { transient_per_1000: 1000, local: sim.seed() % 4 < 2, ..remote() };
        let store_options = StoreOptions { transient_per_1000: 0, ..options };
        let bench = bench(sim, told, store_options, &either_mode(sim));
        bench.store.set_options(|options| options.transient_per_1000 = 1000);
        let reader = bench.spawn("reader", |_, file, _| {
            let mut byte = [0];
            file.read_at(4 * PAGE, &mut byte).map(|()| byte[0])
        });
        sim.sleep(Duration::from_millis(400));
        bench.store.set_options(|options| options.transient_per_1000 = 0);
        assert_eq!(reader.join().expect("well before the deadline"), Oracle::pattern(LEN)[4 * PAGE as usize]);
    });
}

#[test]
fn the_engine_lives_with_short_memory() {
    let options = Options { frame_errors_per_1000: 30, ..Options::default() };
    for_seeds("frame errors", 300, &options, |sim, told| {
        let bench = bench(sim, told, StoreOptions::default(), &either_mode(sim));
        let oracle = Arc::new(Oracle::new(Oracle::pattern(LEN)));
        let users: Vec<_> = (0..2u64)
            .map(|n| {
                let oracle = Arc::clone(&oracle);
                bench.spawn("user", move |sim, file, _| {
                    let mut rng = sim.rng(n);
                    for _ in 0..20 {
                        let at = rng.below(LEN / 1024) * 1024 + 512 * n;
                        let bytes = oracle.begin_write(at..at + 512);
                        match file.write_at(at, &bytes) {
                            Ok(()) => oracle.end_write(at..at + 512),
                            Err(error) => assert_eq!(error.errno(), Some(12), "{error}"),
                        }
                        let before = oracle.before(at..at + 512);
                        let mut found = [0; 512];
                        match file.read_at(at, &mut found) {
                            Ok(()) => oracle.check_read(&before, &found, "read"),
                            Err(error) => assert_eq!(error.errno(), Some(12), "{error}"),
                        }
                    }
                })
            })
            .collect();
        users.into_iter().for_each(|user| user.join());
        // The page tables may not tell what was written, or not all of it.
        while let Err(error) = flush_all(&bench.file) {
            assert_eq!(error.errno(), Some(12), "{error}");
            write_back::acknowledge(&bench.file);
        }
        oracle.settled();
        oracle.check_disk(&bench.store.crash_image(), "at rest");
    });
}

/// Counts its wakes.
struct Count(AtomicU32);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_future_is_not_woken_for_nothing_after_it_is_dropped() {
    races("dropped future", 50, |sim, told| {
        let bench = bench(sim, told, remote(), &either_mode(sim));
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut future = Acquire::new(Request::new(&bench.file, vec![1], false).expect("one block"));
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
        assert!(matches!(polled, Poll::Pending));
        drop(future);
        sim.sleep(Duration::from_millis(10));
        assert!(bench.file.is_resident(PAGE), "its fill goes on");
        evict::drop_clean(&bench.file, 0..12);
        assert!(!bench.file.is_resident(PAGE), "and leaves no pin");
    });
}
