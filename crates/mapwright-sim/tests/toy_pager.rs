//! A toy pager on the traits: the simulator catches the bug it was written for, and not its absence.
//!
//! Two threads write through slices; one serving thread fills, writes back and evicts. Two bugs can be switched on: the
//! dirty mark is cleared after the write instead of before it, and eviction looks for dirt before it unmaps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use mapwright::engine::kernel::{
    Fault, FaultMode, FaultOutcome, FaultSink, FrameKind, FrameSpec, Frames, Kernel, View,
};
use mapwright::stores::Store;
use mapwright_sim::{Failure, Op, Options, Report, SimHandle, SimStore, Simulation, StoreOptions};

const PAGE: u64 = 4096;
const PAGES: u64 = 5;
const BUDGET: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    ClearsAfterWriting,
    LooksBeforeUnmapping,
}

struct Nobody;

impl FaultSink for Nobody {
    fn serve_in_thread(&self, _: Fault) -> FaultOutcome {
        FaultOutcome::NotOurs
    }
}

struct Toy {
    frames: Arc<dyn Frames>,
    store: Arc<SimStore>,
    bug: Bug,
    resident: Vec<u64>,
}

impl Toy {
    fn serve(mut self, kernel: &dyn Kernel, base: usize) {
        loop {
            let mut faults = Vec::new();
            kernel.wait_faults(&mut faults).unwrap();
            if faults.is_empty() {
                break;
            }
            for fault in faults {
                let page = (fault.address - base) as u64 / PAGE;
                if !self.resident.contains(&page) {
                    self.fill(page);
                }
                self.frames.map(View::Plain, range_of(page)).unwrap();
            }
        }
        while !self.resident.is_empty() {
            self.evict_oldest();
        }
    }

    fn fill(&mut self, page: u64) {
        if self.resident.len() == BUDGET {
            self.flush();
            self.evict_oldest();
        }
        let mut bytes = vec![0; PAGE as usize];
        transfer(PAGE, |done| self.store.read_at(page * PAGE + done, &mut bytes[done as usize..]));
        self.frames.store(page * PAGE, &bytes).unwrap();
        self.resident.push(page);
    }

    fn flush(&mut self) {
        for &page in &self.resident {
            let (mut dirt, mut ignored) = (Vec::new(), Vec::new());
            if self.bug == Bug::ClearsAfterWriting {
                self.frames.written(View::Plain, range_of(page), &mut dirt).unwrap();
                self.write_back(&dirt);
                self.frames.take_written(View::Plain, range_of(page), &mut ignored).unwrap();
            } else {
                self.frames.take_written(View::Plain, range_of(page), &mut dirt).unwrap();
                self.write_back(&dirt);
            }
        }
    }

    fn evict_oldest(&mut self) {
        let range = [range_of(self.resident.remove(0))];
        let mut dirt = Vec::new();
        if self.bug != Bug::LooksBeforeUnmapping {
            self.frames.unmap(&range).unwrap();
        }
        self.frames.written(View::Plain, range[0].clone(), &mut dirt).unwrap();
        self.write_back(&dirt);
        self.frames.release(&range).unwrap();
    }

    fn write_back(&self, dirt: &[Range<u64>]) {
        for range in dirt {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.frames.load(range.start, &mut bytes).unwrap();
            transfer(bytes.len() as u64, |done| {
                self.store.write_at(range.start + done, &bytes[done as usize..])
            });
        }
    }
}

fn range_of(page: u64) -> Range<u64> {
    page * PAGE..(page + 1) * PAGE
}

/// Repeats short and transiently failing calls until `len` bytes are through.
fn transfer(len: u64, mut call: impl FnMut(u64) -> std::io::Result<usize>) {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let mut done = 0;
    while done < len {
        match call(done) {
            Ok(count) => done += count as u64,
            Err(error) if matches!(error.kind(), Interrupted | TimedOut | WouldBlock) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes and reads back what is this thread's alone; gives its model.
fn user(sim: &SimHandle, base: usize, number: u64) -> BTreeMap<u64, u8> {
    let mut rng = sim.rng(number);
    let mut model = BTreeMap::new();
    for _ in 0..12 {
        // Every second run of 16 bytes is this thread's.
        let at = rng.below(PAGES * PAGE / 32) * 32 + number * 16;
        if rng.per_1000(700) {
            let bytes: Vec<u8> = (0..16).map(|_| rng.next_u64() as u8).collect();
            sim.write_slice(base + at as usize, &bytes).unwrap();
            model.extend((at..).zip(bytes));
        }
        let read = sim.read_slice(base + at as usize, 16).unwrap();
        let expected: Vec<u8> = (at..at + 16).map(|at| model.get(&at).copied().unwrap_or(0)).collect();
        assert_eq!(read, expected, "read at {at:#x}");
    }
    model
}

fn program(sim: &SimHandle, bug: Bug) {
    let kernel = sim.kernel();
    let store = SimStore::new(sim, vec![0; (PAGES * PAGE) as usize], StoreOptions::nasty());
    let sink: Weak<dyn FaultSink> = Weak::<Nobody>::new();
    let spec = FrameSpec {
        capacity: PAGES * PAGE,
        writable: true,
        kind: FrameKind::Shared,
        lent: false,
        mode: FaultMode::Thread,
        sink,
    };
    let frames = kernel.frames(spec).unwrap();
    let base = frames.address(View::Plain).unwrap();
    let toy = Toy { frames, store: Arc::clone(&store), bug, resident: Vec::new() };
    let ended = Arc::new(AtomicU32::new(0));
    let work = {
        let (ended, kernel) = (Arc::clone(&ended), sim.kernel());
        move || {
            toy.serve(&*kernel, base);
            ended.store(1, Ordering::SeqCst);
            kernel.wake(&ended);
        }
    };
    kernel.spawn("server", Box::new(work)).unwrap();
    let users: Vec<_> = (0..2)
        .map(|number| {
            let sim = sim.clone();
            sim.clone().spawn("user", move || user(&sim, base, number))
        })
        .collect();
    let models: Vec<_> = users.into_iter().map(|user| user.join()).collect();
    while ended.load(Ordering::SeqCst) == 0 {
        kernel.interrupt_faults();
        kernel.wait(&ended, 0, Some(std::time::Duration::from_millis(1)));
    }
    let mut expected = vec![0; (PAGES * PAGE) as usize];
    models.into_iter().flatten().for_each(|(at, byte)| expected[at as usize] = byte);
    assert!(store.contents() == expected, "a write was lost");
    assert!(store.calls(Op::Write) > 0);
    assert_eq!(sim.resident_bytes(), 0);
    sim.assert_no_hole_reads();
}

fn run(seed: u64, bug: Bug) -> Result<Report, Failure> {
    Simulation::try_run(seed, &Options::default(), move |sim| program(sim, bug))
}

#[test]
fn lost_writes_are_found() {
    for bug in [Bug::ClearsAfterWriting, Bug::LooksBeforeUnmapping] {
        let failure = (0..300).find_map(|seed| run(seed, bug).err());
        let failure = failure.unwrap_or_else(|| panic!("300 seeds find {bug:?}"));
        println!("{bug:?} found by seed {}: {}", failure.seed, failure.why);
        let again = run(failure.seed, bug).expect_err("the seed fails again");
        assert_eq!(again.message, failure.message, "word for word");
    }
}

#[test]
fn a_right_pager_passes_and_stays_in_its_budget() {
    let (begun, mut steps) = (Instant::now(), 0);
    for seed in 0..300 {
        let report = run(seed, Bug::None).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(report.peak_resident_bytes <= BUDGET as u64 * PAGE);
        steps += report.steps;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{:.0} seeds/s, {:.0} steps/s", 300.0 / seconds, steps as f64 / seconds);
}

#[test]
fn equal_seeds_give_equal_runs_of_the_pager() {
    for seed in 0..20 {
        let report = run(seed, Bug::None).unwrap();
        assert_eq!(run(seed, Bug::None).unwrap(), report);
        assert!(report.fault_count >= PAGES, "a pager that never faults tests nothing");
        println!("{seed}: {report:?}");
    }
}
