//! The `tour` command from outside: every step comes about, the user's file stays as it was, and nothing is left behind.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{expect, folder, json};
use serde_json::Value;

const STEPS: [&str; 10] = [
    "map",
    "first-touch",
    "second-touch",
    "shared-page",
    "private-page",
    "write",
    "flush",
    "guard-page",
    "truncate-kernel",
    "truncate-mapwright",
];

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Figures by step; all of them must have come about.
#[track_caller]
fn figures(found: &Value) -> BTreeMap<String, Value> {
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(steps.iter().map(|step| step["step"].as_str().unwrap()).collect::<Vec<_>>(), STEPS);
    for step in steps {
        assert_eq!(step["came_about"], true, "{step}");
    }
    steps.iter().map(|step| (step["step"].as_str().unwrap().to_owned(), step["figures"].clone())).collect()
}

#[test]
fn every_step_comes_about_and_the_file_stays_as_it_was() {
    let dir = folder();
    let path = dir.path().join("data");
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let before = fs::metadata(&path).unwrap();

    let found = json(dir.path(), &["tour", "data"], 0);
    assert_eq!(found["size"], 3_000_001);
    let figures = figures(&found);
    assert_eq!(figures["map"]["present"], false);
    assert_eq!(figures["map"]["pages_read"], 0);
    let first = &figures["first-touch"];
    assert!(first["minor_faults"].as_u64().unwrap() + first["major_faults"].as_u64().unwrap() > 0);
    assert_eq!(figures["second-touch"]["minor_faults"], 0);
    assert_eq!(figures["shared-page"]["seen"], true);
    assert_eq!(figures["private-page"]["seen"], false);
    assert_eq!(figures["private-page"]["file_unchanged"], true);
    assert_eq!(figures["guard-page"]["signal"], 11);
    assert_eq!(figures["truncate-kernel"]["signal"], 7);
    assert!(figures["truncate-mapwright"]["error"].as_str().unwrap().contains("mapwright-sample"));
    if figures["write"]["dirty_pages"].is_u64() {
        assert!(figures["write"]["dirty_pages"].as_u64() > Some(0));
        assert_eq!(figures["flush"]["dirty_pages"], 0);
    }

    let after = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(
        (before.mtime(), before.mtime_nsec(), before.len()),
        (after.mtime(), after.mtime_nsec(), after.len())
    );
    assert_eq!(names(dir.path()), ["data"]);
}

#[test]
fn it_needs_no_file_and_speaks_to_people() {
    let dir = folder();
    let (said, _) = expect(dir.path(), &["tour"], 0);
    for part in
        ["a copy of 16 MiB", "mmap(2)", "killed by SIGSEGV", "killed by SIGBUS", "by mapwright", "an error"]
    {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[test]
fn a_tiny_file_will_do() {
    let dir = folder();
    fs::write(dir.path().join("tiny"), b"0123456789").unwrap();
    figures(&json(dir.path(), &["tour", "tiny"], 0));
    assert_eq!(names(dir.path()), ["tiny"]);
}

#[test]
fn what_it_can_not_do_it_says() {
    let dir = folder();
    fs::write(dir.path().join("empty"), b"").unwrap();
    for (file, why) in [
        ("empty", "empty"),
        ("missing", "No such file"),
        (".", "a folder"),
        ("/dev/null", "not a regular file"),
    ] {
        let (_, said) = expect(dir.path(), &["tour", file], 1);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(names(dir.path()), ["empty"]);
    expect(dir.path(), &["tour", "--nonsense"], 2);
    assert!(expect(dir.path(), &["tour", "--help"], 0).0.contains("Examples:"));
}
