//! Counters by file, beside those of the pager.

use std::time::{Duration, Instant};

use mapwright::{FileStats, Map, MapOptions, Pager, Strategy};

const MIB: u64 = 1 << 20;

fn sum(of: fn(&FileStats) -> u64, files: &[&FileStats]) -> u64 {
    files.iter().map(|stats| of(stats)).sum()
}

/// Waits: what is read ahead is shown a moment before it is counted, and may go on when nobody touches anything any more.
#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(20), "it never was so");
        std::thread::yield_now();
    }
}

#[test]
fn each_file_has_counters_of_its_own_and_the_pager_has_their_sum() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [small, large] = [("small", MIB / 4), ("large", 6 * MIB)].map(|(name, len)| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![7; len as usize]).unwrap();
        path
    });
    let pager = Pager::builder().budget(MIB).build().unwrap();
    let open = |path| MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(path).unwrap();
    let (first, second): (Map, Map) = (open(&small), open(&large));
    let again = open(&large);
    assert_eq!(first.stats(), Some(FileStats::default()), "nothing was touched");
    assert!(first.iter().chain(second.iter()).all(|byte| *byte == 7));
    until(|| {
        let (of_first, of_second, all) = (first.stats().unwrap(), second.stats().unwrap(), pager.stats());
        let all_read = of_second.filled_bytes >= 6 * MIB && all.queue_depth == 0;
        all_read && of_first.fills + of_second.fills == all.fills
    });
    let (of_first, of_second) = (first.stats().unwrap(), second.stats().unwrap());
    assert_eq!(of_first.filled_bytes, MIB / 4);
    assert!(of_first.evictions <= 64 && of_second.evictions > 1000, "{of_second:?}");
    assert!(of_second.filled_bytes >= 6 * MIB && of_second.read_ahead_bytes > 0 && of_second.fills >= 1536);
    let times = &of_second.faults;
    assert!(times.count() > 0 && times.longest > Duration::ZERO && times.longest <= times.total);
    assert!(times.quantile(0.5) <= times.quantile(0.99) && times.mean().unwrap() <= times.longest);
    assert_eq!(again.stats().unwrap().fills, of_second.fills, "maps of one file share its counters");
    let all = pager.stats();
    let both = [&of_first, &of_second];
    assert_eq!(sum(|stats| stats.faults.count(), &both), all.faults);
    assert_eq!(sum(|stats| stats.fills, &both), all.fills);
    assert_eq!(sum(|stats| stats.filled_bytes, &both), all.filled_bytes);
    assert_eq!(all.fault_latency.iter().sum::<u64>(), all.faults);
    drop((first, second, again));
    let after = pager.stats();
    assert_eq!((after.faults, after.fault_latency), (all.faults, all.fault_latency), "nothing is forgotten");
    assert_eq!(open(&large).stats(), Some(FileStats::default()), "a file that is opened anew begins anew");
}

#[test]
fn what_is_written_back_is_counted_by_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; MIB as usize]).unwrap();
    let pager = Pager::builder().budget(MIB).build().unwrap();
    let mut map = MapOptions::new().pager(&pager).open_mut(&path).unwrap();
    map[5000] = 8;
    map.flush().unwrap();
    let stats = map.stats().unwrap();
    assert!(stats.write_backs > 0 && stats.written_back_bytes >= 4096, "{stats:?}");
    assert_eq!(stats.written_back_bytes, pager.stats().written_back_bytes);
}

#[test]
fn where_the_kernel_maps_nothing_is_counted() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    for strategy in [Strategy::Kernel, Strategy::Buffer] {
        assert_eq!(MapOptions::new().strategy(strategy).open(&path).unwrap().stats(), None);
    }
}
