//! The allocator of mappings, as the global allocator of this very program: whatever runs here allocates by it.
#![allow(missing_docs)]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use common::{PAGE, Rng, child, role, run_ok};
use mapwright::alloc::MappedAlloc;

const THRESHOLD: usize = 64 << 10;

#[global_allocator]
static ALLOCATOR: MappedAlloc = MappedAlloc::new().threshold(THRESHOLD);

const GUARDED: MappedAlloc = MappedAlloc::new().threshold(PAGE).guard_pages(true);

/// Whether each page of a range is mapped, and in memory: mincore(2) says ENOMEM where nothing is mapped.
fn residency(start: usize, len: usize) -> Option<usize> {
    let mut pages = vec![0_u8; len.div_ceil(PAGE)];
    // SAFETY: the call writes a byte for each page, for which there is room, and looks at addresses only.
    let result = unsafe { libc::mincore((start / PAGE * PAGE) as *mut _, len, pages.as_mut_ptr()) };
    (result == 0).then(|| pages.iter().filter(|page| **page & 1 == 1).count())
}

fn is_mapped(address: usize) -> bool {
    residency(address, 1).is_some()
}

#[test]
fn large_allocations_are_mappings_that_the_system_has_back_at_once() {
    // In a child: between freeing and looking another test's thread might map there.
    if role().is_none() {
        run_ok(child("large_allocations_are_mappings_that_the_system_has_back_at_once", "alone"));
        return;
    }
    for len in [THRESHOLD, THRESHOLD + 1, 10 << 20] {
        let bytes = vec![1_u8; len];
        let start = bytes.as_ptr() as usize;
        assert!(start.is_multiple_of(PAGE) && residency(start, len) == Some(len.div_ceil(PAGE)), "{len}");
        drop(bytes);
        assert!(!is_mapped(start) && !is_mapped(start + len - 1), "{len}");
    }
    // What is smaller has no mapping of its own.
    let small = vec![1_u8; THRESHOLD - 1];
    assert!(!(small.as_ptr() as usize).is_multiple_of(PAGE));
}

#[test]
fn zeroed_memory_is_free_of_cost() {
    let zeros = vec![0_u8; 256 << 20];
    assert_eq!(residency(zeros.as_ptr() as usize, zeros.len()), Some(0));
    assert!(zeros.iter().step_by(1 << 20).all(|byte| *byte == 0));
}

#[test]
fn growing_moves_pages_and_copies_nothing() {
    let faults = || mapwright_sys::bare::faults().unwrap().minor;
    let mut bytes = vec![0_u8; 32 << 20];
    bytes.iter_mut().step_by(PAGE).for_each(|byte| *byte = 7);
    let before = faults();
    bytes.reserve_exact(64 << 20);
    // A copy would touch 8192 pages.
    assert!(faults() - before < 1000, "{} faults", faults() - before);
    assert!(bytes.iter().step_by(PAGE).all(|byte| *byte == 7));
    bytes.truncate(THRESHOLD);
    bytes.shrink_to_fit();
    assert!(bytes.iter().step_by(PAGE).all(|byte| *byte == 7));
    bytes.truncate(100);
    bytes.shrink_to_fit(); // the system allocator's now
    assert_eq!((bytes.capacity(), bytes[0]), (100, 7));
    bytes.resize(2 * THRESHOLD, 8); // and back
    assert_eq!((bytes[0], bytes[100], bytes[2 * THRESHOLD - 1]), (7, 8, 8));
}

#[test]
fn alignments_above_a_page_are_kept() {
    for allocator in [ALLOCATOR, GUARDED, ALLOCATOR.huge_pages(true)] {
        for align in [8, PAGE, 2 * PAGE, 64 << 10, 2 << 20, 16 << 20] {
            for size in [THRESHOLD, 3 << 20] {
                let layout = Layout::from_size_align(size + 8, align).unwrap();
                // SAFETY: the size is not zero.
                let start = unsafe { allocator.alloc(layout) };
                assert!(!start.is_null() && (start as usize).is_multiple_of(align), "{layout:?}");
                // SAFETY: allocated just now, with that size.
                unsafe { start.write_bytes(7, layout.size()) };
                // SAFETY: allocated with that layout; the size is not zero and rounds up.
                let grown = unsafe { allocator.realloc(start, layout, 2 * size) };
                assert!(!grown.is_null() && (grown as usize).is_multiple_of(align), "{layout:?}");
                // SAFETY: the first bytes are those of before.
                let bytes = unsafe { std::slice::from_raw_parts(grown, layout.size()) };
                assert!(bytes.iter().all(|byte| *byte == 7), "{layout:?}");
                let layout = Layout::from_size_align(2 * size, align).unwrap();
                // SAFETY: allocated with that layout.
                unsafe { allocator.dealloc(grown, layout) };
            }
        }
    }
}

#[test]
fn huge_pages_are_asked_for_where_they_fit() {
    let allocator = ALLOCATOR.huge_pages(true);
    let layout = Layout::from_size_align(8 << 20, 1).unwrap();
    // SAFETY: the size is not zero.
    let start = unsafe { allocator.alloc(layout) };
    assert!((start as usize).is_multiple_of(2 << 20));
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mapping = smaps.split("VmFlags:").find_map(|part| {
        let header =
            part.lines().find(|line| line.split(' ').next().is_some_and(|range| range.contains('-')))?;
        let (from, to) = header.split(' ').next()?.split_once('-')?;
        let [from, to] = [from, to].map(|address| usize::from_str_radix(address, 16).unwrap_or(0));
        (from..to).contains(&(start as usize)).then_some(smaps.find(header)?)
    });
    let flags = smaps[mapping.unwrap()..].split("VmFlags:").nth(1).unwrap().lines().next().unwrap();
    // SAFETY: allocated with that layout.
    unsafe { allocator.dealloc(start, layout) };
    if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        assert!(flags.contains(" hg"), "{flags}");
    } else {
        common::skip("a kernel without transparent huge pages");
    }
}

#[test]
fn guarded_allocations_end_at_the_guard_as_far_as_they_can() {
    for (size, align) in [(5000, 1), (8192, 1), (5000, 8), (5001, 8), (4097, 4096), (10_000, 64 << 10)] {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the size is not zero.
        let start = unsafe { GUARDED.alloc_zeroed(layout) } as usize;
        let gap = (start + size).next_multiple_of(PAGE) - (start + size);
        assert!(gap < align.min(PAGE) && start.is_multiple_of(align), "{layout:?}: a gap of {gap}");
        // SAFETY: allocated with that layout.
        unsafe { GUARDED.dealloc(start as *mut u8, layout) };
    }
}

#[test]
fn who_runs_over_an_end_gets_sigsegv() {
    let this = "who_runs_over_an_end_gets_sigsegv";
    let Some(role) = role() else {
        for role in ["behind", "before"] {
            let output = common::run(child(this, role));
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{role}: {output:?}");
        }
        run_ok(child(this, "inside"));
        return;
    };
    let layout = Layout::from_size_align(2 * PAGE, 1).unwrap();
    // SAFETY: the size is not zero.
    let start = unsafe { GUARDED.alloc(layout) };
    let at = match role.as_str() {
        "behind" => start.wrapping_add(layout.size()),
        "before" => start.wrapping_sub(1),
        _ => start,
    };
    // SAFETY: none: it is what the guards are for. The process ends here, or the byte is the allocation's.
    unsafe { at.write_volatile(1) };
    // SAFETY: allocated with that layout.
    unsafe { GUARDED.dealloc(start, layout) };
}

#[test]
fn no_memory_is_null_and_not_the_end() {
    for size in [1 << 46, (isize::MAX as usize) - PAGE, isize::MAX as usize] {
        assert!(Vec::<u8>::new().try_reserve_exact(size).is_err(), "{size}");
        let layout = Layout::from_size_align(size, 1).unwrap();
        // SAFETY: the size is not zero.
        assert!(unsafe { GUARDED.alloc(layout) }.is_null(), "{size}");
    }
}

#[test]
fn the_limit_on_mappings_is_met_and_met_again() {
    let this = "the_limit_on_mappings_is_met_and_met_again";
    if role().is_none() {
        run_ok(child(this, "many"));
        return;
    }
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let limit: usize = text.trim().parse().unwrap();
    if limit > 200_000 {
        return common::skip("vm.max_map_count is too large to be met");
    }
    // Locked memory has no guard markers, so that each guard is a mapping: an allocation counts twice at least.
    // SAFETY: the call changes how memory is held, not what it holds.
    let locked = unsafe { libc::mlockall(libc::MCL_FUTURE | libc::MCL_ONFAULT) } == 0;
    if !locked {
        return common::skip("no memory may be locked here");
    }
    let layout = Layout::from_size_align(PAGE, 1).unwrap();
    // SAFETY: the size is not zero.
    let allocate = || unsafe { GUARDED.alloc(layout) };
    let mut all = Vec::with_capacity(limit);
    for _ in 0..2 {
        loop {
            let one = allocate();
            if one.is_null() {
                break;
            }
            // SAFETY: allocated just now.
            unsafe { one.write(7) };
            all.push(one);
        }
        assert!(all.len() > limit / 3, "{} of {limit}", all.len());
        let met = all.len();
        for one in all.drain(..) {
            // SAFETY: allocated with that layout, and written.
            assert_eq!(unsafe { one.read() }, 7);
            // SAFETY: allocated with that layout.
            unsafe { GUARDED.dealloc(one, layout) };
        }
        println!("{met} allocations of {limit} mappings");
    }
    assert!(mapwright_sys::mmap::count_mappings().unwrap() < 1000);
}

#[test]
fn a_child_of_fork_allocates_while_other_threads_did() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(relaxed) {
                    std::hint::black_box(vec![1_u8; THRESHOLD]);
                }
            });
        }
        let kept = vec![5_u8; 4 * THRESHOLD];
        for _ in 0..20 {
            // SAFETY: the child only allocates large memory, which takes no lock, and ends by `_exit`.
            let pid = unsafe { libc::fork() };
            assert!(pid >= 0);
            if pid == 0 {
                let layout = Layout::from_size_align(THRESHOLD, 1).unwrap_or(Layout::new::<u8>());
                // SAFETY: the size is not zero.
                let one = unsafe { ALLOCATOR.alloc(layout) };
                // SAFETY: allocated with that size; what the parent had is there as well, as a copy.
                unsafe { one.write_bytes(kept[THRESHOLD], layout.size()) };
                // SAFETY: inside the allocation.
                let last = unsafe { one.add(THRESHOLD - 1) };
                // SAFETY: written just now.
                let last = unsafe { last.read() };
                // SAFETY: allocated with that layout.
                unsafe { ALLOCATOR.dealloc(one, layout) };
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(i32::from(last) + 37) };
            }
            let mut status = 0;
            // SAFETY: waits for the child made above.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(libc::WEXITSTATUS(status), 42, "{status}");
        }
        stop.store(true, relaxed);
    });
}

#[test]
fn what_threads_allocate_is_theirs() {
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            scope.spawn(move || {
                let mut random = Rng(thread);
                let mut all: Vec<Vec<u64>> = Vec::new();
                for _ in 0..2000 {
                    match random.below(4) {
                        0 if all.len() > 8 => drop(all.swap_remove(random.below(all.len() as u64) as usize)),
                        1 if !all.is_empty() => {
                            let one = random.below(all.len() as u64) as usize;
                            let (len, tag) =
                                (random.below(4 * THRESHOLD as u64 / 8) as usize + 1, all[one][0]);
                            all[one].resize(len, tag);
                            all[one].shrink_to_fit();
                        }
                        _ => {
                            let tag = random.next();
                            all.push(vec![tag; random.below(4 * THRESHOLD as u64 / 8) as usize + 1]);
                        }
                    }
                }
                for one in &all {
                    assert!(one.iter().all(|word| *word == one[0]));
                }
            });
        }
    });
}

#[test]
fn programs_can_be_started_under_it() {
    let output = Command::new("sh").args(["-c", "echo started"]).output().unwrap();
    assert_eq!(output.stdout, b"started\n");
}
