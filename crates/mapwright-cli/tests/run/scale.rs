//! Many processes, many maps, and little of what a program needs.

use std::path::Path;

use super::common::{folder, mapwright, text};
use super::{Ran, both, both_of, program, serves, write_file};

/// `MAPWRIGHT_RUN_CLIENTS` processes, 60 unless told, each with ten maps: 1000 of them is what the server must take.
#[test]
fn many_processes_with_many_maps_are_served() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    let clients = std::env::var("MAPWRIGHT_RUN_CLIENTS").map_or(60, |count| count.parse::<u64>().unwrap());
    let dir = folder();
    write_file(&dir.path().join("file"));
    let mut run = mapwright(
        dir.path(),
        &["run", "--json", "--report=report", "--limit", "4MiB", "--", program, "many", "file"],
    );
    let output = run.env("PROCESSES", clients.to_string()).env("MAPS", "10").output().unwrap();
    let report = std::fs::read_to_string(dir.path().join("report")).unwrap();
    assert_eq!(text(&output.stdout), "right\n", "{}{report}", text(&output.stderr));
    let ran = Ran { output, report: serde_json::from_str(&report).unwrap() };
    assert_eq!(ran.maps(), clients * 10, "{:#}", ran.file("/file")["kernel"]);
    assert_eq!(ran.report["processes"].as_array().unwrap().len() as u64, clients + 1);
}

#[test]
fn one_process_has_more_maps_than_can_be_served() {
    const SERVED_AT_MOST: u64 = 1024;
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    let dir = folder();
    write_file(&dir.path().join("file"));
    let mut run = mapwright(
        dir.path(),
        &["run", "--json", "--report=report", "--limit", "4MiB", "--", program, "crowded", "file"],
    );
    let output = run.env("MAPS", "1500").output().unwrap();
    let report = std::fs::read_to_string(dir.path().join("report")).unwrap();
    assert_eq!(text(&output.stdout), "right\n", "{}{report}", text(&output.stderr));
    let ran = Ran { output, report: serde_json::from_str(&report).unwrap() };
    // The last one finds room again.
    assert_eq!(ran.maps(), SERVED_AT_MOST + 1, "{:#}", ran.file("/file"));
}

#[test]
fn a_program_that_is_short_of_something_runs_as_without() {
    for what in ["descriptors", "space"] {
        let Some(ran) = both(what) else { return };
        let file = ran.file("/file");
        assert!(!file["kernel"].as_array().unwrap().is_empty(), "{what}: {:#}", ran.report);
    }
    // And one whose server has no more memory than it must have.
    for what in ["whole", "threads", "fork"] {
        let Some(program) = program() else { return };
        let Some(_) = both_of(program, what, &["--limit", "32KiB"]) else { return };
    }
}
