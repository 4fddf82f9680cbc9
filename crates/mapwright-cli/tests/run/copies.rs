//! Private maps that are written: the program has copies of the pages that it changes, which nothing may lose, and the file stays as it is.

use std::path::Path;
use std::sync::OnceLock;

use super::{BUSY, FOR_WRITING, Ran, both_of, compile, outlives_its_server};

fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile("copies", "copies.c", &[])).as_deref().map(Path::new)
}

#[track_caller]
fn both(what: &str) -> Option<Ran> {
    both_of(program()?, what, &[])
}

#[test]
fn what_is_stored_is_kept_when_pages_are_evicted() {
    let Some(ran) = both("stores") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (3, 0), "{:#}", ran.report);
    assert!(ran.report["totals"]["evictions"].as_u64().unwrap() > 100, "{:#}", ran.report);
    // And when there is next to no room.
    let Some(ran) = both_of(program().unwrap(), "stores", &["--limit", "128KiB"]) else { return };
    assert!(ran.maps() >= 1, "{:#}", ran.report);
}

/// Four threads count in their pages when the map is given back: nothing that was counted is lost.
#[test]
fn no_store_is_lost_when_a_map_is_given_back() {
    for (what, why, count) in [
        ("written", FOR_WRITING, 4),
        ("protected", "mprotect(2)", 4),
        ("unmapped", "", 0), // which is not told: it is the end of every map
        ("children", "fork(2)", 4),
    ] {
        let Some(ran) = both(what) else { return };
        assert_eq!((ran.maps(), ran.given_back(why)), (4, count), "{what}: {:#}", ran.report);
    }
}

#[test]
fn children_have_what_their_parent_has_changed() {
    let Some(ran) = both("fork") else { return };
    // All but the one whose child had no memory of its own.
    assert_eq!((ran.maps(), ran.given_back("fork(2)")), (8, 7), "{:#}", ran.report);
    let Some(ran) = both("meanwhile") else { return };
    assert!(ran.maps() > 60, "{:#}", ran.report);
    // And what was mapped and changed when all was given back already.
    let Some(ran) = both("late") else { return };
    assert_eq!((ran.maps(), ran.given_back("fork(2)")), (2, 2), "{:#}", ran.report);
}

/// It would show the file's page where the program has changed it, if it came late.
#[test]
fn a_map_is_given_back_when_the_server_has_let_go_of_it() {
    let Some(ran) = both("stopped") else { return };
    assert_eq!((ran.maps(), ran.given_back("mprotect(2)")), (1, 1), "{:#}", ran.report);
}

#[test]
fn what_is_changed_of_a_map_keeps_what_was_stored() {
    let by_syscall = compile("copies-by-syscall", "copies.c", &["-DBY_SYSCALL", "-Wno-unused-value"]);
    for program in [program(), by_syscall.as_deref().map(Path::new)] {
        let Some(ran) = program.and_then(|program| both_of(program, "altered", &[])) else { return };
        assert_eq!(ran.maps(), 5, "{:#}", ran.report);
        for why in ["mprotect(2)", "mremap(2)", "madvise(2)"] {
            assert!(ran.given_back(why) >= 1, "{why}: {:#}", ran.report);
        }
    }
}

#[test]
fn a_file_that_is_cut_takes_what_was_stored_behind_its_end_along() {
    let Some(ran) = both("cut") else { return };
    assert_eq!((ran.maps(), ran.given_back(FOR_WRITING)), (1, 1), "{:#}", ran.report);
    // Where no lease tells of it, by a page that can't be read.
    let Some(ran) = both("unseen") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (1, 1), "{:#}", ran.report);
}

#[test]
fn private_maps_that_can_not_be_served_are_told_apart() {
    let Some(ran) = both("others") else { return };
    let kernel = ran.file("/file")["kernel"].to_string();
    assert_eq!(ran.maps(), 0, "{:#}", ran.report);
    for why in [BUSY, "by the kernel already", "mapped for neither reading", "RLIMIT_DATA"] {
        assert!(kernel.contains(why), "{why}: {kernel}");
    }
}

#[test]
fn what_was_stored_outlives_the_server() {
    if let Some(program) = program() {
        outlives_its_server(program);
    }
}
