//! Faults of a real file system under maps: a program that writes, flushes or commits, spills, resizes, rolls back and recovers runs
//! again and again, and each time another of its system calls for file and journal fails. What fails is a typed error, the program
//! goes on, and the file holds what was acknowledged.
//!
//! The program is a child process, whose calls are answered by `mapwright_sys::testing::watched`. `MAPWRIGHT_FAULTS=all` tries every
//! way to fail and to go on at every call; a failure prints an order, which `MAPWRIGHT_FAULT=ORDER` runs alone.
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod judge;
mod order;
mod program;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Watchdog, child, contents, require_userfaultfd, role, run_ok, scratch};
use judge::run;
use mapwright_sys::testing::watched::{Answer, watch};
use mapwright_sys::testing::{Fork, IO_URING, refuse_system_calls};
use order::{BUDGET, Fault, Kind, LEN, Order, Then, written};
use program::Program;
use watcher::{Watcher, say};

/// Runs at the same time: they wait for the disk, mostly.
const WORKERS: usize = 4;
/// No call: nothing fails.
const NEVER: u64 = u64::MAX;

/// Not a test by itself: what the others run.
#[test]
fn a_program_whose_calls_fail() {
    let Some(role) = role() else { return };
    let (order, path) = Order::parse(&role);
    let path = fs::canonicalize(path).unwrap();
    if !order.kind.prelude().is_empty() {
        // Before there is any other thread.
        let killed = Fork::new(|| {
            let mut program = Program::new(order, &path);
            program.map = Some(order.kind.open(&path, BUDGET, Duration::from_secs(30)).unwrap());
            let steps = order.kind.prelude().into_iter().enumerate();
            steps.for_each(|(nth, step)| program.step(1000 + nth, step).unwrap());
            Fork::die();
        });
        assert_eq!(killed.unwrap().wait(), -libc::SIGKILL);
    }
    let _watchdog = Watchdog::new(order.text(), Duration::from_secs(60));
    if !order.ring {
        refuse_system_calls(&IO_URING, libc::EPERM).unwrap();
    }
    let folder = path.parent().unwrap().to_owned();
    let (unsynced, lost) = (BTreeSet::new(), BTreeSet::new());
    let watcher = Watcher { order, folder, seen: 0, first: None, unsynced, lost };
    let watcher = Arc::new(Mutex::new(watcher));
    let own = Arc::clone(&watcher);
    if let Err(error) = watch(move |call| own.lock().unwrap().answer(call)) {
        say(&format!("unwatched {error}"));
        std::process::exit(0);
    }
    let mut program = Program::new(order, &path);
    program.watcher = Some(Arc::clone(&watcher));
    program.run();
    drop(program);
    let seen = watcher.lock().unwrap().seen;
    say(&format!("seen {seen}"));
    std::process::exit(0); // the filter outlives everything but the process
}

/// Every way to fail and to go on.
fn tries_all() -> bool {
    std::env::var("MAPWRIGHT_FAULTS").is_ok_and(|how| how == "all")
}

/// What else to do with a call of which it is known what it is. All of it, where it is one of a few of its class and file; else one
/// thing or another.
fn orders(kind: Kind, at: u64, hit: &str) -> Vec<Order> {
    let all = tries_all();
    let order = |errno, fault, then| Order::new(kind, at, errno, fault, then);
    let reads = hit.starts_with("Read") || hit.starts_with("Open");
    let mut orders = vec![order(libc::ENOSPC, Fault::ForGood, Then::GoesOn)];
    if !reads {
        orders.push(order(libc::EIO, Fault::DoneOnce, Then::Dies));
    }
    if kind == Kind::Kernel && hit.starts_with("Length") {
        orders.push(order(libc::EIO, Fault::DoneOnce, Then::GoesOn));
    }
    if kind.is_atomic() && hit.contains("journal") && (hit.starts_with("Write") || hit.starts_with("Sync")) {
        orders.push(order(libc::EIO, Fault::Once, Then::RollsBack));
        if all {
            orders.push(order(libc::EIO, Fault::DoneOnce, Then::RollsBack));
        }
    }
    if all {
        orders.push(order(libc::EIO, Fault::Once, Then::Dies));
        orders.push(order(libc::EIO, Fault::DoneOnce, Then::GoesOn));
        orders.push(order(libc::ENOSPC, Fault::Once, Then::GoesOn));
        orders.push(order(libc::EDQUOT, Fault::Once, Then::Dies));
        orders.push(order(libc::EIO, Fault::ForGood, Then::GoesOn));
    }
    let is_frequent = ["Read", "Write", "Sync data"].iter().any(|often| hit.starts_with(often));
    if is_frequent && !all {
        // With some left out for reads, of which there is one way only.
        let which = at as usize % if reads { 6 } else { orders.len() };
        return orders.into_iter().skip(which).take(1).collect();
    }
    orders
}

/// Every call of the program fails in turn; how often a call of each class and file did.
fn every_call_fails(kind: Kind) -> BTreeMap<String, u64> {
    if !require_userfaultfd() {
        return BTreeMap::new();
    }
    if let Ok(order) = std::env::var("MAPWRIGHT_FAULT") {
        let (order, _) = Order::parse(&order);
        if order.kind == kind {
            run(order).lines.iter().for_each(|line| println!("{line}"));
        }
        return BTreeMap::new();
    }
    // Nothing fails; with io_uring too.
    let clean = Order::new(kind, NEVER, libc::EIO, Fault::Once, Then::GoesOn);
    let told = run(clean);
    if let Some(why) = told.all("unwatched ").next() {
        common::skip(&format!("system calls can't be watched here: {why}"));
        return BTreeMap::new();
    }
    assert!(told.has("end") && run(Order { ring: true, ..clean }).has("end"));
    let calls: u64 = told.all("seen ").next().unwrap().parse().unwrap();
    // Nothing is promised of scratch files but errors.
    let step = if kind == Kind::Scratch && !tries_all() { 5 } else { 1 };
    let (next, is_past) = (AtomicU64::new(0), AtomicBool::new(false));
    let (runs, hits) = (AtomicU64::new(2), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(step, Ordering::Relaxed);
                    // What threads do beside each other is not the same number of calls each time.
                    if is_past.load(Ordering::Relaxed) {
                        return;
                    }
                    let told = run(Order { at, ..clean });
                    runs.fetch_add(1, Ordering::Relaxed);
                    let Some(hit) = told.hit() else {
                        is_past.fetch_or(at >= calls, Ordering::Relaxed);
                        continue;
                    };
                    *hits.lock().unwrap().entry(hit.to_owned()).or_insert(0) += 1;
                    for order in orders(kind, at, hit) {
                        run(order);
                        runs.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let hits = hits.into_inner().unwrap();
    println!("{kind:?}: {calls} calls, {runs:?} runs; failed once: {hits:?}");
    hits
}

/// Each of these classes and files was among them, so often at least; nothing if the suite was skipped.
fn were_among(hits: &BTreeMap<String, u64>, wanted: &[(&str, u64)]) {
    for (what, least) in wanted.iter().filter(|_| !hits.is_empty()) {
        let n = hits.get(*what).copied().unwrap_or(0);
        assert!(n >= *least, "{what}: {n} of {least}");
    }
}

#[test]
fn commits() {
    let wanted = [
        ("Create data.mapwright-journal.new", 1),
        ("Name data.mapwright-journal.new", 2),
        ("Name data.mapwright-journal", 1),
        ("Sync folder", 2),
        ("Write data.mapwright-journal", 10),
        ("Sync data.mapwright-journal", 10),
        ("Read data.mapwright-journal", 5),
        ("Read data", 10),
        ("Write data", 2),
        ("Sync data", 2),
    ];
    were_among(&every_call_fails(Kind::Atomic), &wanted);
}

#[test]
fn recovery() {
    let wanted = [
        ("Read data.mapwright-journal", 2),
        ("Create data.mapwright-journal.new", 2),
        ("Write data.mapwright-journal.new", 2),
        ("Write data", 2),
        ("Length data", 1),
        ("Sync data", 2),
        ("Sync folder", 3),
    ];
    were_among(&every_call_fails(Kind::Recovery), &wanted);
}

#[test]
fn flushes() {
    let wanted = [("Read data", 10), ("Write data", 10), ("Length data", 2), ("Sync data", 5)];
    were_among(&every_call_fails(Kind::Flush), &wanted);
}

#[test]
fn scratch_files() {
    were_among(&every_call_fails(Kind::Scratch), &[("Read data", 3), ("Write data", 3)]);
}

#[test]
fn flushes_of_kernel_mappings() {
    were_among(&every_call_fails(Kind::Kernel), &[("Sync mapped", 3), ("Length data", 2)]);
}

#[test]
fn flushes_of_buffers() {
    were_among(&every_call_fails(Kind::Buffer), &[("Write data", 3), ("Length data", 2), ("Sync data", 3)]);
}

/// Writes to the file fail for good; the journal goes on. Checkpoints are tried again, but not without end.
#[test]
fn a_checkpoint_that_fails_is_not_tried_without_end() {
    static FAILED: AtomicU64 = AtomicU64::new(0);
    let Some(path) = role() else {
        let dir = scratch();
        let path = dir.path().join("data");
        fs::write(&path, contents(LEN)).unwrap();
        if require_userfaultfd() {
            let this = "a_checkpoint_that_fails_is_not_tried_without_end";
            println!("{}", run_ok(child(this, path.to_str().unwrap())));
        }
        return;
    };
    let path = fs::canonicalize(path).unwrap();
    let data = path.clone();
    refuse_system_calls(&IO_URING, libc::EPERM).unwrap();
    let watched = watch(move |call| {
        if call.number() != libc::SYS_pwrite64 || call.file(0).as_ref() != Some(&data) {
            return Answer::GoesOn;
        }
        FAILED.fetch_add(1, Ordering::SeqCst);
        Answer::Fails(libc::EIO)
    });
    if let Err(error) = watched {
        return common::skip(&format!("system calls can't be watched here: {error}"));
    }
    let mut map = Kind::Atomic.open(&path, BUDGET, Duration::from_secs(30)).unwrap();
    for number in 0..4 {
        map.write_at(0, &written(number, LEN)).unwrap();
        map.commit().unwrap();
    }
    // What is looked for is what happens while nobody does anything: there is nothing to wait for.
    std::thread::sleep(Duration::from_millis(300));
    let failed = FAILED.load(Ordering::SeqCst);
    println!("{failed} writes failed");
    assert!((1..500).contains(&failed), "{failed} writes failed");
    let mut bytes = vec![0; LEN];
    map.read_at(0, &mut bytes).unwrap();
    assert!(bytes == written(3, LEN), "the journal has it");
    assert_eq!(map.close().unwrap_err().errno(), Some(libc::EIO));
}
