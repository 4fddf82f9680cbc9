//! Files of which whole regions are read, and stand on huge pages where the user may have those: under limits at which they are evicted as such, in part, and not
//! at all.

use std::cell::Cell;
use std::path::Path;
use std::process::Command;

use super::{FOR_WRITING, Ran, common, compile, folder, not_root, serves, text};

#[track_caller]
fn under_limits(what: &str, limits: &[&str], look: impl Fn(&Ran, &str)) {
    let Some(program) = compile("large", "large.c", &[]).filter(|_| serves()) else { return };
    let dir = folder();
    let alone = |what: &str| {
        let arguments = [what, "file"];
        let output = Command::new(&program).args(arguments).current_dir(dir.path()).output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(0), "right\n"),
            "{what} without run"
        );
    };
    alone("make");
    alone(what);
    for limit in limits {
        let ran = run(dir.path(), limit, &program, what);
        look(&ran, limit);
    }
}

#[track_caller]
fn run(dir: &Path, limit: &str, program: &str, what: &str) -> Ran {
    let ran = Ran::with(dir, &["--limit", limit], &[program, what, "file"]);
    let said = (ran.output.status.code(), text(&ran.output.stdout), text(&ran.output.stderr));
    assert_eq!(said, (Some(0), "right\n".to_owned(), String::new()), "{what}, {limit}: {:#}", ran.report);
    ran
}

fn evictions(ran: &Ran) -> u64 {
    ran.report["totals"]["evictions"].as_u64().unwrap()
}

/// How many huge pages of files there ever were.
fn huge_pages_of_files() -> u64 {
    let all = std::fs::read_to_string("/proc/vmstat").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("thp_file_alloc "));
    line.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn whole_regions_are_on_huge_pages() {
    if !rustix::process::geteuid().is_root() {
        return not_root("frames on huge pages need CAP_SYS_ADMIN");
    }
    if mapwright_sys::frames::can_be_large().is_err() {
        return common::skip("this kernel can't mount twice what is shown nowhere (Linux 6.15)");
    }
    let last = Cell::new(huge_pages_of_files());
    under_limits("order", &["1GiB", "96MiB"], |ran, limit| {
        assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{limit}: {:#}", ran.report);
        // Of 74 regions. Where room is short a region may be read in parts; what other tests make meanwhile comes on top.
        let now = huge_pages_of_files();
        let made = now - last.replace(now);
        assert!(made >= if limit == "1GiB" { 40 } else { 20 }, "{limit}: {made} huge pages");
    });
}

#[test]
fn whole_regions_are_read_and_evicted_under_many_readers() {
    under_limits("readers", &["1GiB", "120MiB", "80MiB", "16MiB"], |ran, limit| {
        assert_eq!((ran.maps(), ran.given_back("")), (3, 0), "{limit}: {:#}", ran.report);
        assert_eq!(evictions(ran) > 0, limit != "1GiB", "{limit}: {:#}", ran.report);
    });
}

#[test]
fn regions_are_given_back_when_somebody_writes() {
    under_limits("writer", &["96MiB"], |ran, _| {
        assert!(ran.maps() >= 1 && ran.given_back(FOR_WRITING) >= 1, "{:#}", ran.report);
    });
}

#[test]
fn a_program_has_pages_of_its_own_among_regions() {
    under_limits("copies", &["1GiB", "80MiB"], |ran, limit| {
        assert_eq!((ran.maps(), ran.given_back("")), (1, 0), "{limit}: {:#}", ran.report);
    });
}

#[test]
fn system_calls_are_handed_regions() {
    under_limits("calls", &["80MiB"], |ran, _| {
        assert!(ran.maps() == 1 && evictions(ran) > 0, "{:#}", ran.report);
    });
}
