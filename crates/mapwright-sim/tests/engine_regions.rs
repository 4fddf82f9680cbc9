//! What happens to whole regions, each over many seeds.

mod engine;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::oracle::Oracle;
use engine::readers::REGION;
use engine::{Opening, PAGE, for_seeds, frame_limit, pager};
use mapwright::engine::budget::Buffers;
use mapwright::engine::checked::Scope;
use mapwright::engine::file::File;
use mapwright::engine::kernel::{FaultMode, FrameKind, Kernel, View};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::request::{Held, Request};
use mapwright::engine::{Handle, evict};
use mapwright_sim::{Options, SimHandle, SimStore, StoreOptions};

/// The least that has buffers for regions.
const BUDGET: u64 = 64 * PAGE;
/// Regions that the budget holds, with some pages to spare.
const REGIONS: u64 = 13;
const BLOCKS: u64 = REGION / PAGE;
const LEN: u64 = 2 * REGIONS * REGION;

struct Bench {
    sim: SimHandle,
    pager: Arc<Handle>,
    file: Arc<File>,
}

fn bench(sim: &SimHandle, told: &AtomicU64) -> Bench {
    told.store(frame_limit(BUDGET), Ordering::SeqCst);
    let mode = if sim.seed().is_multiple_of(2) { FaultMode::Thread } else { FaultMode::InThread };
    let store = SimStore::new(sim, Oracle::pattern(LEN), StoreOptions::default());
    let pager = pager(sim, BUDGET);
    let frames = FrameKind::Moved;
    let file =
        Opening { writable: false, mode, frames, ..Opening::default() }.open(&pager, &store).expect("open");
    Bench { sim: sim.clone(), pager, file }
}

impl Bench {
    fn get(&self, blocks: std::ops::Range<u64>) -> Held {
        Request::new(&self.file, blocks.collect(), false).and_then(Request::wait).expect("there is room")
    }

    /// Fills regions, each at once; they stay as long as there is room.
    fn fill_regions(&self) {
        (0..REGIONS).for_each(|region| drop(self.get(region * BLOCKS..(region + 1) * BLOCKS)));
    }

    fn check(&self, view: View, blocks: std::ops::Range<u64>) {
        let (start, end) = ((blocks.start * PAGE) as usize, (blocks.end * PAGE) as usize);
        let address = self.file.frames().address(view).expect("both views can be made");
        let found = self.sim.read_slice(address + start, end - start).expect("a good store");
        assert!(found == Oracle::pattern(LEN)[start..end], "blocks {blocks:?} in {view:?}");
    }
}

fn regions(name: &str, count: u64, body: fn(&SimHandle, &AtomicU64)) {
    for_seeds(name, count, &Options::default(), body);
}

#[test]
fn pins_all_over_leave_the_rest_to_be_evicted() {
    regions("pins all over", 100, |sim, told| {
        let bench = bench(sim, told);
        bench.fill_regions();
        let pinned: Vec<_> =
            (0..REGIONS).map(|region| region * BLOCKS + sim.rng(region).below(BLOCKS)).collect();
        let pins: Vec<_> = pinned.iter().map(|&block| bench.get(block..block + 1)).collect();
        // Twice as much as there is room for, block by block.
        for block in REGIONS * BLOCKS..2 * REGIONS * BLOCKS {
            bench.check(View::Plain, block..block + 1);
        }
        let rest: Vec<_> = (0..30).map(|number| REGIONS * BLOCKS + number).collect();
        let rest: Vec<_> = rest.iter().map(|&block| bench.get(block..block + 1)).collect();
        let faults = sim.fault_count();
        pinned.iter().for_each(|&block| bench.check(View::Plain, block..block + 1));
        assert_eq!(sim.fault_count(), faults, "what is pinned does not fault");
        drop((pins, rest));
    });
}

#[test]
fn nothing_takes_the_pages_of_regions_while_all_buffers_are_lent() {
    const SIZE: u64 = 2 << 20;
    for_seeds("lent buffers", 1, &Options::default(), |sim, told| {
        told.store(u64::MAX, Ordering::SeqCst);
        let kernel: Arc<dyn Kernel> = sim.kernel();
        let buffers = Arc::new(Buffers::new(64 << 20));
        let take = || buffers.try_take(&kernel, SIZE as usize, None);
        assert!(buffers.may_take_pages(SIZE), "there is room for one");
        let mut lent: Vec<_> = std::iter::from_fn(take).collect();
        assert!(lent.len() >= 2 && !buffers.may_take_pages(SIZE));
        lent[0].set_hollow(true);
        drop(lent.swap_remove(0));
        assert!(buffers.may_take_pages(SIZE), "its pages have moved");
        let taken = buffers.try_take_hollow(&kernel, SIZE).expect("it is there");
        assert!(!buffers.may_take_pages(SIZE));
        drop((taken, lent));
        assert!(buffers.may_take_pages(SIZE), "nobody will bring one back");
    });
}

#[test]
fn blocks_that_came_one_by_one_collapse_under_readers() {
    const COLLAPSING: u64 = 4;
    regions("collapse", 300, |sim, told| {
        let bench = bench(sim, told);
        bench.file.advise(Advice::Random);
        let mut blocks: Vec<_> = (0..COLLAPSING * BLOCKS).collect();
        sim.rng(0).shuffle(&mut blocks);
        blocks.iter().for_each(|&block| drop(bench.get(block..block + 1)));
        let readers: Vec<_> = (1..3)
            .map(|number| {
                let (mut rng, file, sim) = (sim.rng(number), Arc::clone(&bench.file), sim.clone());
                let reader = sim.clone();
                sim.spawn("reader", move || {
                    for _ in 0..60 {
                        let at = (rng.below(COLLAPSING * BLOCKS) * PAGE) as usize;
                        let address = file.frames().address(View::Plain).expect("it is there");
                        let found = reader.read_slice(address + at, PAGE as usize).expect("a good store");
                        assert!(found == Oracle::pattern(LEN)[at..at + PAGE as usize], "at {at:#x}");
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join());
        sim.sleep(Duration::from_millis(100));
        assert_eq!(bench.pager.stats().collapses, COLLAPSING, "nobody holds a block for long");
        // They are dropped as one, and accounted for.
        bench.check(View::Plain, 0..COLLAPSING * BLOCKS);
        let scope = Scope::enter(&bench.file).expect("the view can be made");
        bench.check(View::Checked, 0..2);
        scope.end().expect("a good store");
        sim.sleep(Duration::from_millis(100)); // whoever serves a fault a second time holds a pin
        evict::drop_clean(&bench.file, 0..COLLAPSING * BLOCKS);
        assert_eq!(bench.file.resident_bytes(), 0);
        bench.fill_regions();
        bench.check(View::Plain, 0..2 * REGIONS * BLOCKS);
    });
}

#[test]
fn regions_that_are_pinned_as_a_whole_hide_no_other() {
    regions("one region apart", 100, |sim, told| {
        let bench = bench(sim, told);
        bench.fill_regions();
        let apart = sim.rng(0).below(REGIONS);
        let mut pins: Vec<_> = (0..REGIONS)
            .map(|region| (region * BLOCKS, if region == apart { 1 } else { BLOCKS }))
            .map(|(start, count)| bench.get(start..start + count))
            .collect();
        let begun = sim.now();
        // More than there is room for without the three blocks that are not pinned.
        for block in REGIONS * BLOCKS..(REGIONS + 1) * BLOCKS {
            pins.push(bench.get(block..block + 1));
        }
        assert!(sim.now() - begun < Duration::from_secs(1), "it waited for pins");
        drop(pins);
    });
}

#[test]
fn copies_of_a_region_are_charged_once_and_go_with_it() {
    regions("copies", 200, |sim, told| {
        let bench = bench(sim, told);
        drop(bench.get(0..1)); // the table of the blocks is charged for good
        evict::drop_clean(&bench.file, 0..1);
        let tables = bench.pager.stats().used_bytes;
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (sim, file, pager) = (sim.clone(), Arc::clone(&bench.file), Arc::clone(&bench.pager));
                let bench = Bench { sim: sim.clone(), pager, file };
                sim.spawn("reader", move || {
                    let scope = Scope::enter(&bench.file).expect("the view can be made");
                    let held = bench.get(0..BLOCKS);
                    bench.check(View::Checked, 0..BLOCKS);
                    drop(held);
                    scope.end().expect("a good store");
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join());
        let charged = bench.pager.stats().used_bytes - tables;
        assert!((BLOCKS * PAGE..=BLOCKS * (2 * PAGE + 16)).contains(&charged), "{charged} bytes");
        // A fault that was told twice may still be at it.
        for _ in 0..10 {
            evict::drop_clean(&bench.file, 0..BLOCKS);
            sim.sleep(Duration::from_millis(1));
        }
        assert_eq!((bench.pager.stats().used_bytes, sim.resident_bytes()), (tables, 0));
    });
}
