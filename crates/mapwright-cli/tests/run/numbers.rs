//! Calls that do not come by their names in the C library, or that end what others take for granted.

use std::path::Path;
use std::sync::OnceLock;

use super::{FOR_WRITING, both, both_of, compile, program};

/// The same program, which makes its calls by syscall(2).
fn program_by_syscall() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| compile("maps-by-syscall", "maps.c", &["-DBY_SYSCALL", "-Wno-unused-value"]))
        .as_deref()
        .map(Path::new)
}

#[test]
fn calls_by_their_numbers_are_the_same_calls() {
    let Some(program) = program_by_syscall() else { return };
    for what in
        ["whole", "private", "window", "end", "truncate", "threads", "close", "calls", "changed", "processes"]
    {
        let Some(ran) = both_of(program, what, &[]) else { return };
        assert!(ran.maps() > 0, "{what}: {:#}", ran.report);
    }
    for (what, why, at_least) in [
        ("protect", "mprotect(2)", 3),
        ("partial", "mremap(2)", 2),
        ("replace", "something else was mapped there", 2),
        ("advise", "madvise(2)", 1),
    ] {
        let Some(ran) = both_of(program, what, &[]) else { return };
        assert!(ran.given_back(why) >= at_least, "{what}: {:#}", ran.report);
    }
    let Some(ran) = both_of(program, "fork", &[]) else { return };
    assert_eq!(ran.maps(), 2 + 3, "{:#}", ran.report);
}

#[test]
fn other_system_calls_go_through_as_they_came() {
    let Some(ran) = both("through") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{:#}", ran.report);
}

#[test]
fn children_that_are_made_otherwise_have_the_kernels_maps_too() {
    let Some(ran) = both("children") else { return };
    assert_eq!(ran.maps(), 1 + 5, "{:#}", ran.report);
}

#[test]
fn a_program_ends_with_its_last_thread() {
    let Some(ran) = both("last") else { return };
    assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{:#}", ran.report);
}

#[test]
fn mincore_tells_what_the_pager_holds() {
    for program in [program(), program_by_syscall()] {
        let Some(ran) = program.and_then(|program| both_of(program, "resident", &[])) else { return };
        assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{:#}", ran.report);
    }
}

/// Which the kernel's leases do not know.
#[test]
fn what_is_opened_for_reading_and_cut_is_gone_everywhere() {
    for program in [program(), program_by_syscall()] {
        let Some(ran) = program.and_then(|program| both_of(program, "cut", &[])) else { return };
        assert!(ran.maps() >= 7 && ran.given_back(FOR_WRITING) >= 7, "{:#}", ran.report);
    }
}
