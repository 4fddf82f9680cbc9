//! A program that works on a file at random, by mappings and by descriptors, in several processes, and compares with a model at each
//! step: `tests/programs/exerciser`. It knows of no pager, and must find nothing either with one or without.
//!
//! A few thousand operations of a few seeds here; with MAPWRIGHT_EXERCISER_OPERATIONS and MAPWRIGHT_EXERCISER_SEEDS many more.

use std::process::Command;

use crate::common::{folder, text};
use crate::trial::{Report, Trial, clean, compile};

/// What an environment variable says, where it is set.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// Runs some seeds with so many processes. What the report says is no more than that much was served and given back: when, is the machine's matter.
#[track_caller]
fn seeds_differ_in_nothing(processes: &str) {
    let Some(exerciser) = compile("exerciser", "exerciser", &[]) else { return };
    let operations = number("MAPWRIGHT_EXERCISER_OPERATIONS", 20_000);
    let seconds = operations / 500; // some thousands in a second, on a busy machine
    let operations = operations.to_string();
    let mut all = Vec::new();
    for seed in 1..=number("MAPWRIGHT_EXERCISER_SEEDS", 2) {
        let seed = seed.to_string();
        let command = [&exerciser, "file", &seed, &operations, processes];
        let trial = Trial::new(&command).short().within(seconds);
        // The pager has nothing to say either.
        let trial = trial.saying(|output| text(&output.stdout) + &text(&output.stderr));
        let Some(reports) = trial.run() else { return };
        for report in &reports {
            // Where nothing is served nothing is shown.
            assert!(report.served("") >= 10, "{:#}", report.0);
            report.did_work();
        }
        all.extend(reports);
    }
    let written = |report: &Report| report.0["totals"]["written_back_bytes"].as_u64().unwrap();
    assert!(all.iter().map(written).sum::<u64>() > 0, "nothing was served for writing");
    for why in ["opened it for writing", "mremap(2)", "mprotect(2)", "something else was mapped there"] {
        let times: u64 = all.iter().map(|report| report.given_back("", why)).sum();
        assert!(times > 0, "no map was given back because of {why}");
    }
}

#[test]
fn one_process_finds_no_difference() {
    seeds_differ_in_nothing("1");
}

#[test]
fn three_processes_find_no_difference() {
    seeds_differ_in_nothing("3");
}

/// The model is told a lie: that writes are shorter than they are, that what is cut off stays in the last page, that private copies don't change.
#[test]
fn a_wrong_model_is_found_out() {
    for lie in 1..=3 {
        let flag = format!("-DCANARY={lie}");
        let Some(exerciser) = compile("exerciser-canary", "exerciser", &[&flag]) else { return };
        let dir = folder();
        let output =
            clean(Command::new(&exerciser).args(["file", "1", "20000"]).current_dir(dir.path())).output();
        let output = output.unwrap();
        let said = text(&output.stdout);
        assert!(output.status.code() == Some(1) && said.starts_with("different: seed 1, "), "{lie}: {said}");
    }
}
