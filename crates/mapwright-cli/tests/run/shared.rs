//! Maps by which a program writes a file that it has alone. What it does beside that, by the descriptor, is in `descriptors`.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use super::common::{compile, folder, mapwright, serves, text};
use super::{Ran, both_of, remove_what_is_left_of, write_file};

fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("shared", "shared.c", &[])).as_deref().map(Path::new)
}

#[track_caller]
fn both(what: &str) -> Option<Ran> {
    both_of(program()?, what, &[])
}

#[test]
fn what_a_program_stores_is_in_the_file_that_it_has_alone() {
    for (what, maps) in
        [("whole", 1), ("left", 1), ("windows", 24), ("synced", 1), ("tail", 1), ("killed", 1)]
    {
        let Some(ran) = both(what) else { return };
        assert_eq!((ran.maps(), ran.given_back("")), (maps, 0), "{what}: {:#}", ran.report);
        if what == "whole" {
            let totals = &ran.report["totals"];
            let evictions = totals["evictions"].as_u64().unwrap();
            assert!(evictions > 0, "more than the limit was written, and nothing evicted: {totals}");
        }
    }
}

#[test]
fn who_opens_the_file_waits_until_it_has_what_was_stored() {
    let Some(ran) = both("others") else { return };
    let ended = (ran.given_back("opened"), ran.given_back("popen(3)"));
    assert_eq!((ran.maps(), ended), (3, (2, 1)), "{:#}", ran.report);
    let Some(ran) = both("sleep") else { return };
    assert_eq!((ran.maps(), ran.given_back("opened")), (10, 10), "{:#}", ran.report);
    let Some(ran) = both("threads") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (6, 6), "{:#}", ran.report);
}

#[test]
fn what_else_is_done_to_a_map_that_is_written_is_the_kernels() {
    for (what, maps, given_back) in
        [("twice", 2, 1), ("changed", 3, 2), ("reading", 1, 1), ("fork", 1, 1), ("stream", 1, 1)]
    {
        let Some(ran) = both(what) else { return };
        assert!(ran.maps() >= maps && ran.given_back("") >= given_back, "{what}: {:#}", ran.report);
    }
}

/// What was stored and not flushed is lost with the server: the program is told, and is not shown the file as it was before.
#[test]
fn a_server_that_is_killed_is_no_silent_loss() {
    let Some(program) = program().and_then(Path::to_str) else { return };
    if !serves() {
        return;
    }
    let dir = folder();
    for kills in [false, true] {
        write_file(&dir.path().join("file"));
        let mut run = mapwright(dir.path(), &["run", "--limit", "64M", "--", program, "hold", "file"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut from = BufReader::new(run.stdout.take().unwrap());
        let (mut input, mut errors) = (run.stdin.take().unwrap(), run.stderr.take().unwrap());
        let mut stored = String::new();
        from.read_line(&mut stored).unwrap();
        let mut said = [0; 4096];
        let mut len = 0;
        if kills {
            run.kill().unwrap();
            len = errors.read(&mut said).unwrap();
        }
        input.write_all(if kills { b"k" } else { b"\n" }).unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let status = run.wait().unwrap();
        let said = text(&said[..len]);
        assert_eq!(stored, "stored\n");
        if kills {
            remove_what_is_left_of(run.id());
            assert!(line == "signal\n" && said.contains("is lost") && said.contains("file"), "{line}{said}");
        } else {
            assert_eq!((line.as_str(), status.code()), ("right\n", Some(0)));
        }
    }
}
