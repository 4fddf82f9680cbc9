//! The engine against an oracle: random work from several threads on simulated stores, good and bad.

mod engine;

use mapwright_sim::Options;

use engine::for_seeds;
use engine::readers;
use engine::workload::{self, Kind};

fn run(name: &str, count: u64, kind: Kind) {
    for_seeds(name, count, &Options::default(), move |sim, told| workload::run(sim, told, kind));
}

#[test]
fn readers_see_the_file() {
    run("readers", 600, Kind { read_only: true, ..Kind::default() });
}

#[test]
fn writers_lose_nothing() {
    run("writers", 1500, Kind::default());
}

#[test]
fn lengths_change_and_nothing_stale_shows() {
    run("resizes", 800, Kind { resizes: true, ..Kind::default() });
}

#[test]
fn readers_of_a_failing_store_get_errors_and_never_wrong_bytes() {
    run("failing reads", 400, Kind { read_only: true, errors: true, ..Kind::default() });
}

#[test]
fn a_failing_store_loses_nothing_that_was_flushed() {
    run("failing writes", 1000, Kind { errors: true, ..Kind::default() });
}

#[test]
fn lengths_change_on_a_failing_store() {
    run("failing resizes", 500, Kind { errors: true, resizes: true, ..Kind::default() });
}

fn read(name: &str, count: u64, kind: readers::Kind) {
    for_seeds(name, count, &kind.options(), move |sim, told| readers::run(sim, told, kind));
}

#[test]
fn readers_of_whole_regions_see_their_files() {
    read("regions", 1500, readers::Kind::default());
}

#[test]
fn readers_of_whole_regions_meet_failing_stores() {
    read("regions, failing reads", 700, readers::Kind { errors: true, ..readers::Kind::default() });
}

#[test]
fn readers_of_whole_regions_live_with_short_memory() {
    read("regions, short memory", 700, readers::Kind { short_memory: true, ..readers::Kind::default() });
}
