//! Python: its own tests of mmap, numpy's of memmap, and both at work.

use std::path::Path;
use std::process::Output;

use crate::common::text;
use crate::trial::{MIB, OPEN_FOR_WRITING, SMALL, Trial, beside_the_build, noise, source};

fn python() -> Option<String> {
    beside_the_build("python/bin/python")
}

/// The file that scripts map: no whole pages.
fn file(dir: &Path) {
    std::fs::write(dir.join("file"), noise(7, 8 * MIB + 123)).unwrap();
}

/// How many tests ran and were left out: "Ran 44 tests in 0.1s", "OK (skipped=8)", "21 passed, 1 warning in 0.3s".
fn counts(output: &Output) -> String {
    let all = text(&output.stdout) + &text(&output.stderr);
    let is_count =
        |line: &&str| line.starts_with("Ran ") || line.starts_with("OK") || line.contains(" passed");
    all.lines().filter(is_count).map(|line| line.split(" in ").next().unwrap()).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_tests_of_mmap_pass() {
    let Some(python) = python() else { return };
    let trial = Trial::new(&[&python, "-m", "unittest", "-q", "test.test_mmap"]).saying(|output| {
        let counts = counts(output);
        assert!(counts.starts_with("Ran ") && counts.contains("OK"), "{counts}: {}", text(&output.stderr));
        counts
    });
    for report in trial.run().into_iter().flatten() {
        report.is_the_kernels("_tmp\u{e6}", SMALL);
    }
}

#[test]
fn the_tests_of_memmap_pass() {
    let Some(python) = python() else { return };
    let pytest = [&python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "--basetemp=tmp"];
    let tests = ["--pyargs", "numpy._core.tests.test_memmap"];
    let trial = Trial::new(&[&pytest[..], &tests].concat()).leaving(|_| false).saying(|output| {
        let counts = counts(output);
        assert!(
            counts.contains(" passed") && !counts.contains("failed"),
            "{counts}: {}",
            text(&output.stdout)
        );
        counts
    });
    for report in trial.tight().run().into_iter().flatten() {
        report.is_the_kernels("mmap", SMALL);
    }
}

#[test]
fn memmaps_are_read_by_threads_and_processes() {
    let Some(python) = python() else { return };
    let script = source("numpy_work.py");
    let Some(reports) = Trial::new(&[&python, &script, "read"]).on(file).run() else { return };
    for report in reports {
        // Three of the parent's, of which one is copied on write, and 16 by each kind of child.
        assert_eq!(report.served("/file"), 3 + 16 + 16, "{:#}", report.0);
        assert_eq!(report.given_back("/file", "fork(2)"), 1, "{:#}", report.0);
        report.did_work();
    }
}

#[test]
fn memmaps_are_written() {
    let Some(python) = python() else { return };
    let script = source("numpy_work.py");
    let Some(reports) = Trial::new(&[&python, &script, "write"]).on(file).tight().run() else { return };
    for report in reports {
        report.is_the_kernels("/file", OPEN_FOR_WRITING);
        assert!(report.served("/file") >= 1 && report.served("/saved.npy") == 1, "{:#}", report.0);
    }
}

#[test]
fn maps_are_resized_cut_and_shared_with_children_of_every_kind() {
    let Some(python) = python() else { return };
    let script = source("python_maps.py");
    let Some(reports) = Trial::new(&[&python, &script]).on(file).run() else { return };
    for report in reports {
        assert!(report.served("/file") >= 100, "{:#}", report.0);
        report.is_the_kernels("/file", OPEN_FOR_WRITING);
        report.did_work();
    }
}
