//! The budget is hard, as the kernel counts memory.
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::{
    MODES, PAGE, Rng, Watchdog, block_on, child, file_of, paged, pager, require_userfaultfd, role, run_ok,
    scratch,
};
use mapwright::Error;

/// Resident bytes of this process now, without pages of files.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn memory_stays_within_the_budget() {
    let this = "memory_stays_within_the_budget";
    let Some(role) = role() else {
        if require_userfaultfd() {
            for role in ["4 0", "4 1", "32 0", "32 1"] {
                run_ok(child(this, role));
            }
        }
        return;
    };
    let (mib, mode) = role.split_once(' ').unwrap();
    let budget = mib.parse::<u64>().unwrap() << 20;
    let mode = MODES[mode.parse::<usize>().unwrap()];
    let dir = scratch();
    let path = dir.path().join("file");
    let len = 8 * budget;
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    let pager = pager(budget);
    let options = paged(&pager, mode).block_size(16 * PAGE);
    let base = resident();
    let within = |what: &str| {
        let stats = pager.stats();
        assert!(stats.used_bytes <= stats.budget_bytes, "{what}: {stats:?}");
        let most = base + budget + budget / 50 + (8 << 20);
        assert!(resident() <= most, "{what}: {} of {most}", resident());
    };
    let mut map = options.open_mut(&path).unwrap();
    let mut rng = Rng(1);
    for at in (0..len as usize).step_by(PAGE) {
        assert_eq!(map[at], 0);
        if at % (1 << 20) == 0 {
            within("sequential");
        }
    }
    for i in 0..2000 {
        let at = rng.below(len - 8);
        assert_eq!(map.get(at..at + 8).unwrap()[0], 0);
        assert_eq!(map.get_many(&[at..at + 1, 0..1, len - 1..len]).unwrap()[2][0], 0);
        if i % 50 == 0 {
            within("random");
        }
    }
    for at in (0..len as usize).step_by(5 * 16 * PAGE + 3) {
        map[at] = 1;
        within("strided writes");
    }
    map.flush().unwrap();
    within("flush");
    let sum = map.checked(|view| view.iter().step_by(PAGE).map(|byte| u64::from(*byte)).sum::<u64>());
    assert!(sum.is_ok());
    within("checked");
}

#[test]
fn ranges_that_are_held_together_stay_and_go_together() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 40 * PAGE + 3);
    let map = paged(&pager(1 << 20), MODES[0]).advice(mapwright::Advice::Random).open(&path).unwrap();
    let page = PAGE as u64;
    // One of them in another, one that is there already, and one without bytes.
    drop(map.get(30 * page..30 * page + 1).unwrap());
    let ranges = [30 * page..31 * page, 0..2 * page, 5..6, 40 * page..40 * page + 3, 7..7];
    let held = map.hold_many(&ranges).unwrap();
    let again = map.hold_many(&ranges).unwrap();
    for held in [held, again] {
        map.evict(..).unwrap();
        assert_eq!(map.resident_bytes(), 4 * page);
        assert!(ranges.iter().all(|range| {
            let range = range.start as usize..range.end as usize;
            map[range.clone()] == bytes[range]
        }));
        drop(held);
    }
    map.evict(..).unwrap();
    assert_eq!(map.resident_bytes(), 0);
    drop(map.hold_many(&[]).unwrap());
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 64 * PAGE);
    let pager = pager(32 << 10);
    let hour = Duration::from_secs(3600);
    let map = paged(&pager, MODES[0]).deadline(hour).open(&path).unwrap();
    let watchdog = Watchdog::new("a request that can't fit", Duration::from_secs(20));
    // Six blocks fit the 28 KiB for frames and metadata; with the part of the block table that they need, they don't.
    let refused = [
        map.get(..6 * PAGE as u64).map(drop),
        map.get_many(&[0..1, 3 * PAGE as u64..8 * PAGE as u64]).map(drop),
        block_on(map.get_async(..6 * PAGE as u64)).map(drop),
    ];
    for error in refused.map(Result::unwrap_err) {
        let Error::BudgetExhausted { path: told, needed, budget, .. } = &error else { panic!("{error:?}") };
        assert_eq!((told.as_str(), *budget), (path.to_str().unwrap(), 32 << 10));
        assert_eq!(*needed, 6 * (PAGE as u64 + 16) + PAGE as u64);
    }
    assert_eq!(map.get(..5 * PAGE as u64).unwrap()[..], bytes[..5 * PAGE]);
    assert!(map.get(..6 * PAGE as u64).is_err(), "also when the table is charged already");
    drop(watchdog);
}

#[test]
fn a_huge_sparse_file_is_cheap() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let path = dir.path().join("huge");
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let pager = pager(1 << 20);
    let base = resident();
    let map = paged(&pager, MODES[0]).open(&path).unwrap();
    for at in [0, 1, (1 << 40) - 1, 123_456_789_012, 987_654_321_098] {
        assert_eq!(map[at], 0);
        assert_eq!(map.get(at as u64..at as u64 + 1).unwrap()[0], 0);
    }
    assert!(pager.stats().used_bytes <= 1 << 20 && resident() < base + (16 << 20));
}
