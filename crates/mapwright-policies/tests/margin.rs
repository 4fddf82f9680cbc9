//! What ships is among the best of what a program can have. Hit ratios follow from seeds alone: no clock is asked.

use mapwright_policies::Policy;
use mapwright_policies::read_ahead::{Reader, Stream, replay, streams_and_hot_set};
use mapwright_policies::shipped::{Access, Shipped};
use mapwright_policies::workloads::Workload;

/// The file, in blocks.
const FOOTPRINT: u64 = 1 << 12;
const LENGTH: usize = 60_000;
/// How far the shipped policy may be behind the best one, as a part of all accesses.
const MARGIN: f64 = 0.01;
/// The same for slices of moved frames, of which only victims are unmapped, so that less is seen of them: the price of an
/// interrupt of every processor for each page that is unmapped.
const MOVED: f64 = 0.055;

#[test]
fn the_shipped_policy_is_near_the_best_on_zipf_and_on_a_scan_beside_it() {
    for workload in [Workload::Zipf(0.6), Workload::Zipf(0.8), Workload::Zipf(0.99), Workload::ScanAndZipf] {
        for divisor in [32, 16, 8, 4] {
            let capacity = FOOTPRINT / divisor;
            let trace = workload.trace(FOOTPRINT, capacity, LENGTH);
            let ratio = |policy: Policy| policy.hit_ratio(&trace, capacity as usize);
            let others =
                Policy::ALL.into_iter().filter(|policy| policy.is_realizable() && !policy.is_shipped());
            let best = others.map(ratio).fold(0.0, f64::max);
            let all = [
                (Policy::ShippedExplicit, MARGIN),
                (Policy::ShippedSlices, MARGIN),
                (Policy::ShippedMoved, MOVED),
            ];
            for (shipped, margin) in all {
                let ours = ratio(shipped);
                println!(
                    "{}, 1/{divisor}: {} {ours:.4}, best other {best:.4}",
                    workload.name(),
                    shipped.name()
                );
                assert!(ours > best - margin, "{}, 1/{divisor}: {ours}, best {best}", workload.name());
            }
        }
    }
}

#[test]
fn what_streams_read_ahead_beside_a_hot_set_is_there_when_it_is_asked_for() {
    for access in [Access::Explicit, Access::Slices] {
        for streams in [1, 4, 16] {
            let (trace, file_blocks) = streams_and_hot_set(streams, 2048, 30_000);
            let outcome =
                replay(&trace, file_blocks, Reader::Shipped(2048 / 32), &mut Shipped::new(2048, access));
            println!("{streams} streams, {access:?}: {outcome:?}");
            assert!(outcome.precision() > 0.95, "{streams} streams, {access:?}: {outcome:?}");
        }
    }
}

#[test]
fn read_ahead_foresees_patterns_and_leaves_random_reading_alone() {
    for stream in Stream::ALL {
        let trace = stream.trace();
        let run = |reader| replay(&trace, Stream::FILE, reader, &mut Shipped::new(1 << 20, Access::Slices));
        let (none, ours) = (run(Reader::None), run(Reader::Shipped(32)));
        match stream {
            Stream::Random => assert!(ours.ahead < ours.accesses / 100, "{ours:?}"),
            Stream::Runs => assert!(ours.coverage(&none) > 0.8 && ours.precision() > 0.45, "{ours:?}"),
            Stream::AmongRandom => {
                assert!(ours.coverage(&none) > 0.24 && ours.precision() > 0.95, "{ours:?}")
            }
            _ => assert!(ours.coverage(&none) > 0.99 && ours.precision() > 0.95, "{stream:?}: {ours:?}"),
        }
    }
}
