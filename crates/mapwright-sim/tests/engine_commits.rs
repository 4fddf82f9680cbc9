//! Commits through the whole engine, with a crash after every few operations of the disk; and that the simulator would find
//! what it looks for.

mod engine;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::atomic::{self, Kind};
use engine::{for_each, try_seed};
use mapwright::engine::sabotage::{Sabotage as Engine, choose as break_engine};
use mapwright::journal::sabotage::{Sabotage as Journal, choose as break_journal};
use mapwright_sim::{Options, seeds};

/// A fifth of the seeds that others run: each of these looks at some hundred states of the disk.
fn some_seeds(count: u64) -> std::ops::Range<u64> {
    let seeds = seeds(5 * count);
    seeds.start..seeds.start + (seeds.end - seeds.start).div_ceil(5)
}

fn run(name: &str, count: u64, kind: Kind) {
    for_each(name, some_seeds(count), &Options::default(), move |sim, told| atomic::run(sim, told, kind));
}

fn find(kind: Kind) -> Option<String> {
    let options = Options { max_steps: 500_000, ..Options::default() };
    (0..1500).find_map(|seed| {
        let failure = try_seed(seed, &options, move |sim, told| atomic::run(sim, told, kind)).err()?;
        Some(format!("seed {seed}: {}", failure.why))
    })
}

/// One test, in this order: what is broken is chosen for the whole process.
#[test]
fn a_crash_leaves_the_last_commit() {
    run("commits", 400, Kind::default());
    run("commits, failing disk", 400, Kind { errors: true });

    let (good, errors) = (Kind::default(), Kind { errors: true });
    let mut missed = Vec::new();
    for (sabotage, kind) in [
        (Journal::NoCommitSync, good),
        (Journal::NoSpillSync, errors),
        (Journal::CheckpointUncommitted, good),
        (Journal::EarlyReuse, good),
        (Journal::ForgetCut, good),
        (Journal::ForgetDoubt, errors),
    ] {
        break_journal(Some(sabotage));
        match find(kind) {
            Some(why) => println!("{sabotage:?}: {why}"),
            None => missed.push(format!("{sabotage:?}")),
        }
    }
    break_journal(None);
    for (sabotage, kind) in
        [(Engine::ForgetFailedWrite, errors), (Engine::BlindEviction, good), (Engine::PartOfDirty, good)]
    {
        break_engine(Some(sabotage));
        match find(kind) {
            Some(why) => println!("{sabotage:?}: {why}"),
            None => missed.push(format!("{sabotage:?}")),
        }
    }
    break_engine(Some(Engine::LateNote));
    let options = Options { max_steps: 500_000, ..Options::default() };
    match (0..1500).find_map(|seed| try_seed(seed, &options, |sim, _| _ = atomic::group(sim)).err()) {
        Some(failure) => println!("{:?}: seed {}: {}", Engine::LateNote, failure.seed, failure.why),
        None => missed.push(format!("{:?}", Engine::LateNote)),
    }
    break_engine(None);
    assert!(missed.is_empty(), "not found: {missed:?}");

    let (commits, syncs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let told = (Arc::clone(&commits), Arc::clone(&syncs));
    for_each("group commit", some_seeds(100), &Options::default(), move |sim, _| {
        let (commits, syncs) = atomic::group(sim);
        assert!(syncs <= commits, "{syncs} syncs for {commits} commits");
        told.0.fetch_add(commits, Ordering::SeqCst);
        told.1.fetch_add(syncs, Ordering::SeqCst);
    });
    let (commits, syncs) = (commits.load(Ordering::SeqCst), syncs.load(Ordering::SeqCst));
    println!("{syncs} syncs for {commits} commits");
    assert!(syncs * 4 < commits * 3, "{syncs} syncs for {commits} commits: nobody shared");
}
