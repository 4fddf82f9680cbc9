//! Tests of the tests: an engine that is broken on purpose must be found out.

mod engine;

use std::sync::atomic::AtomicU64;

use engine::workload::{self, Kind};
use engine::{readers, try_seed};
use mapwright::engine::sabotage::{Sabotage, choose};
use mapwright_sim::{Failure, Options, SimHandle};

/// Seeds of each kind within which every sabotage is to be found.
const SEEDS: u64 = 1000;

fn find<K: Copy + Send + 'static>(kinds: &[K], run: fn(&SimHandle, &AtomicU64, K)) -> Option<Failure> {
    let options = Options { max_steps: 500_000, ..Options::default() };
    (0..SEEDS).find_map(|seed| {
        kinds.iter().find_map(|&kind| try_seed(seed, &options, move |sim, told| run(sim, told, kind)).err())
    })
}

/// One test: what is sabotaged is chosen for the whole process.
#[test]
fn every_sabotage_is_found() {
    let good = Kind::default();
    let errors = Kind { errors: true, ..good };
    let resizes = Kind { resizes: true, ..good };
    let cases: [(Sabotage, &[Kind]); 11] = [
        (Sabotage::UnpinnedWriteBack, &[good]),
        (Sabotage::LateMappedBit, &[good]),
        (Sabotage::CleanAfterWrite, &[good]),
        (Sabotage::BlindEviction, &[good]),
        (Sabotage::ForgetFailedWrite, &[errors]),
        (Sabotage::SilentSettle, &[good]),
        (Sabotage::KeepTail, &[resizes]),
        (Sabotage::NoSync, &[good]),
        (Sabotage::SyncAgainOnly, &[errors]),
        (Sabotage::LockOverCall, &[good]),
        (Sabotage::ForgetBridges, &[good]),
    ];
    let mut missed = Vec::new();
    for (sabotage, kinds) in cases {
        choose(Some(sabotage));
        match find(kinds, workload::run) {
            Some(failure) => println!("{sabotage:?}: seed {}: {}", failure.seed, failure.why),
            None => missed.push(sabotage),
        }
    }
    let regions = [readers::Kind::default(), readers::Kind { errors: true, ..readers::Kind::default() }];
    for sabotage in [Sabotage::ForgetSplit, Sabotage::HastyShow, Sabotage::FreeCopy] {
        choose(Some(sabotage));
        match find(&regions, readers::run) {
            Some(failure) => println!("{sabotage:?}: seed {}: {}", failure.seed, failure.why),
            None => missed.push(sabotage),
        }
    }
    choose(None);
    assert!(missed.is_empty(), "{SEEDS} seeds do not find {missed:?}");
}
