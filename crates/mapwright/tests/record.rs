//! A recorded trace has what was touched, in order.
#![allow(missing_docs)]

mod common;

use common::{MODES, PAGE, Rng, file_of, paged, require_userfaultfd, scratch};
use mapwright::Pager;
use mapwright::engine::record::Trace;

const FILTER: u64 = 64 << 10;

#[test]
fn what_is_touched_is_recorded_in_order_by_slices_and_by_explicit_access() {
    if !require_userfaultfd() {
        return;
    }
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), 256 * PAGE);
    let mut rng = Rng(5);
    // A stretch in sequence, where read-ahead would hide misses, and then no page twice within the filter.
    let mut pages: Vec<u64> = (0..64).chain((100..256).step_by(3)).collect();
    pages.extend((0..100).map(|at| at * 67 % 256).collect::<Vec<u64>>());
    for mode in MODES {
        for explicit in [false, true] {
            let trace = dir.path().join("trace");
            let pager = Pager::builder().budget(FILTER).record(&trace).build().unwrap();
            let map = paged(&pager, mode).open(&path).unwrap();
            for &page in &pages {
                let at = page as usize * PAGE + rng.below(PAGE as u64) as usize;
                let byte = if explicit { map.get(at as u64..at as u64 + 1).unwrap()[0] } else { map[at] };
                assert_eq!(byte, bytes[at]);
            }
            assert_eq!(pager.end_recording().unwrap(), pages.len() as u64, "{mode:?}, explicit {explicit}");
            let read = Trace::read(&trace).unwrap();
            let recorded: Vec<u64> = read.references.iter().map(|reference| reference.page).collect();
            assert_eq!(recorded, pages, "{mode:?}, explicit {explicit}");
            assert!(read.references.windows(2).all(|pair| pair[0].file == pair[1].file));
            assert!((8..=FILTER / PAGE as u64).contains(&read.filter_pages));
            assert_eq!(pager.stats().read_ahead_bytes, 0);
        }
    }
}

#[test]
fn a_pager_that_records_nothing_says_so() {
    let error = Pager::builder().budget(FILTER).build().unwrap().end_recording().unwrap_err();
    assert!(error.to_string().contains("begin one with"), "{error}");
    let error = Pager::builder().budget(FILTER).record("/nowhere/trace").build().unwrap_err();
    assert!(error.to_string().contains("/nowhere/trace"), "{error}");
}
