//! Allocators by the trait of allocator-api2: that of mappings, and the one that spills to a file.
#![allow(missing_docs)]

mod common;

use std::alloc::Layout;
use std::path::Path;
use std::ptr::NonNull;
use std::time::Duration;

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box as BoxIn;
use allocator_api2::vec::Vec as VecIn;
use common::{PAGE, Rng, Watchdog, pager, require_userfaultfd, scratch};
use mapwright::alloc::{MappedAlloc, SpillAlloc, SpillOptions};
use mapwright::{Error, Pager};

const MIB: usize = 1 << 20;

fn spill(pager: &Pager, folder: &Path) -> SpillAlloc {
    SpillOptions::new()
        .threshold(64 << 10)
        .block_size(16 << 10)
        .reserve(64 << 20)
        .open(pager, folder)
        .unwrap()
}

/// One allocation, and what must be in it.
struct Held {
    start: NonNull<u8>,
    layout: Layout,
    expected: Vec<u8>,
}

impl Held {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with that many bytes, all of them written or zeroed, and reached by this value alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    fn fill(&mut self, from: usize, random: &mut Rng) {
        let bytes = random.bytes(self.layout.size() - from);
        self.bytes()[from..].copy_from_slice(&bytes);
        self.expected.truncate(from);
        self.expected.extend_from_slice(&bytes);
    }

    fn check(&mut self) {
        assert!(self.start.as_ptr().addr().is_multiple_of(self.layout.align()));
        let expected = std::mem::take(&mut self.expected);
        assert!(self.bytes() == expected, "{:?}", self.layout);
        self.expected = expected;
    }
}

/// Allocates, grows, shrinks and frees at random, beside vectors that must hold the same.
fn like_an_oracle(allocator: &impl Allocator, seed: u64, most: usize, steps: usize) {
    let mut random = Rng(seed);
    let mut all: Vec<Held> = Vec::new();
    for _ in 0..steps {
        let size = match random.below(8) {
            0 => 0,
            1..4 => random.below(100 << 10) as usize,
            _ => random.below(most as u64) as usize,
        };
        let align = 1 << random.below(15);
        let layout = Layout::from_size_align(size, align).unwrap();
        let some = random.below(all.len() as u64) as usize;
        match random.below(6) {
            0 | 1 if all.len() < 6 => {
                let zeroed = random.below(2) == 0;
                let got = if zeroed { allocator.allocate_zeroed(layout) } else { allocator.allocate(layout) };
                let start = got.unwrap().cast();
                let mut held = Held { start, layout, expected: vec![0; size] };
                if !zeroed {
                    // SAFETY: allocated just now.
                    unsafe { start.write_bytes(1, size) };
                    held.fill(0, &mut random);
                }
                held.check();
                held.fill(size / 2, &mut random);
                all.push(held);
            }
            2 if !all.is_empty() => {
                let mut held = all.swap_remove(some);
                held.check();
                // SAFETY: allocated by this allocator with that layout.
                unsafe { allocator.deallocate(held.start, held.layout) };
            }
            _ if !all.is_empty() => {
                let held = &mut all[some];
                held.check();
                let old = held.layout;
                if size >= old.size() {
                    let zeroed = random.below(2) == 0;
                    let grown = if zeroed {
                        // SAFETY: allocated by this allocator with that layout, and the new one is no smaller.
                        unsafe { allocator.grow_zeroed(held.start, old, layout) }
                    } else {
                        // SAFETY: as above.
                        unsafe { allocator.grow(held.start, old, layout) }
                    };
                    (held.start, held.layout) = (grown.unwrap().cast(), layout);
                    if zeroed {
                        held.expected.resize(size, 0);
                    } else {
                        // SAFETY: inside the allocation, or at its end.
                        let added = unsafe { held.start.add(old.size()) };
                        // SAFETY: the bytes that were added.
                        unsafe { added.write_bytes(1, size - old.size()) };
                        held.fill(old.size(), &mut random);
                    }
                } else {
                    // SAFETY: allocated by this allocator with that layout, and the new one is smaller.
                    held.start = unsafe { allocator.shrink(held.start, old, layout) }.unwrap().cast();
                    held.layout = layout;
                    held.expected.truncate(size);
                }
                held.check();
            }
            _ => {}
        }
    }
    for mut held in all {
        held.check();
        // SAFETY: allocated by this allocator with that layout.
        unsafe { allocator.deallocate(held.start, held.layout) };
    }
}

#[test]
fn mapped_allocations_hold_what_an_oracle_holds() {
    let plain = MappedAlloc::new().threshold(32 << 10);
    for (allocator, seed) in [(plain, 1), (plain.guard_pages(true), 2), (plain.huge_pages(true), 3)] {
        like_an_oracle(&allocator, seed, 3 * MIB, 300);
    }
}

#[test]
fn spilled_allocations_hold_what_an_oracle_holds() {
    if !require_userfaultfd() {
        return;
    }
    let _watchdog = Watchdog::new("the oracle of spilled allocations", Duration::from_secs(120));
    let (dir, pager) = (scratch(), pager(4 << 20));
    let spill = spill(&pager, dir.path());
    for seed in 0..3 {
        like_an_oracle(&spill, seed, 3 * MIB, 60);
    }
    assert_eq!(spill.count(), 0);
    assert!(pager.stats().evictions > 0, "more than the budget was used: {:?}", pager.stats());
    assert!(spill.take_error().is_none() && spill.acknowledge_error().is_none());
}

#[test]
fn a_vector_outgrows_the_budget_at_its_address() {
    if !require_userfaultfd() {
        return;
    }
    let (dir, pager) = (scratch(), pager(4 << 20));
    let spill = spill(&pager, dir.path());
    let mut numbers = VecIn::with_capacity_in(16 << 10, spill.clone());
    let start = numbers.as_ptr();
    numbers.extend(0..4_u64 << 20); // 32 MiB: grown again and again
    assert_eq!((numbers.as_ptr(), spill.count()), (start, 1));
    assert!(numbers.iter().enumerate().all(|(index, number)| index as u64 == *number));
    let stats = pager.stats();
    assert!(stats.write_backs > 0 && stats.evictions > 1000, "{stats:?}");
    // In words of the machine: what is in memory of it is in the budget.
    let mut resident = vec![0_u8; (32 << 20) / PAGE];
    // SAFETY: looks at addresses, and writes a byte for each page.
    let looked = unsafe { libc::mincore(start as *mut _, 32 << 20, resident.as_mut_ptr()) };
    let pages = resident.iter().filter(|page| **page & 1 == 1).count();
    assert!(looked == 0 && pages * PAGE <= 4 << 20, "{pages} pages");
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!((numbers[0], numbers[numbers.len() - 1]), ((4 << 20) - 1, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files have no names");
}

#[test]
fn beyond_its_reservation_a_vector_moves() {
    if !require_userfaultfd() {
        return;
    }
    let (dir, pager) = (scratch(), pager(4 << 20));
    let spill = SpillOptions::new().threshold(1).reserve(MIB as u64).open(&pager, dir.path()).unwrap();
    let mut bytes = VecIn::new_in(spill.clone());
    bytes.resize(MIB, 7_u8);
    let before = bytes.as_ptr();
    bytes.reserve_exact(8 * MIB);
    assert!(bytes.as_ptr() != before && spill.take_error().is_none());
    bytes.resize(9 * MIB, 8);
    assert!(bytes[..MIB].iter().all(|byte| *byte == 7) && bytes[MIB..].iter().all(|byte| *byte == 8));
    assert_eq!(spill.count(), 1);
    let large = BoxIn::new_in([3_u8; 100_000], spill.clone());
    assert_eq!((large[99_999], spill.count()), (3, 2));
    drop(bytes);
    drop(large);
    assert_eq!(spill.count(), 0);
}

#[test]
fn a_full_disk_refuses_allocations_and_loses_nothing() {
    if !require_userfaultfd() {
        return;
    }
    common::on_a_small_file_system("a_full_disk_refuses_allocations_and_loses_nothing", |sparse| {
        let folder = sparse.parent().unwrap();
        let pager = pager(512 << 10);
        let spill = SpillOptions::new().threshold(PAGE).block_size(PAGE).open(&pager, folder).unwrap();
        let no_space = |error: Option<Error>| {
            let error = error.expect("an error is kept");
            assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
            assert!(error.to_string().contains(folder.to_str().unwrap()), "{error}");
        };
        let mut bytes = VecIn::new_in(spill.clone());
        assert!(bytes.try_reserve_exact(2 * MIB).is_err());
        no_space(spill.take_error());
        bytes.try_reserve_exact(768 << 10).unwrap();
        bytes.resize(600 << 10, 1_u8);
        // Growing fails, and the vector is as it was.
        assert!(bytes.try_reserve_exact(2 * MIB).is_err());
        no_space(spill.take_error());
        // The rest of the disk is somebody else's; what was reserved is there all the same.
        std::fs::write(folder.join("hog"), vec![0; MIB]).expect_err("the disk is full now");
        let mut random = Rng(1);
        let expected = random.bytes(768 << 10);
        bytes.clear();
        bytes.extend_from_slice(&expected);
        assert!(bytes[..] == expected);
        assert!(pager.stats().write_backs > 0, "it does not fit into the budget");
        assert!(spill.acknowledge_error().is_none());
        // What is freed is there for others.
        bytes.truncate(PAGE);
        bytes.shrink_to_fit();
        let mut more = VecIn::new_in(spill.clone());
        std::fs::remove_file(folder.join("hog")).unwrap();
        more.try_reserve_exact(900 << 10).unwrap();
        more.extend_from_slice(&expected[..900 << 9]);
        assert!(bytes[..] == expected[..PAGE] && more[..] == expected[..900 << 9]);
    });
}

#[test]
fn many_threads_spill_at_once() {
    if !require_userfaultfd() {
        return;
    }
    let _watchdog = Watchdog::new("threads that spill", Duration::from_secs(120));
    let (dir, pager) = (scratch(), pager(4 << 20));
    let spill = spill(&pager, dir.path());
    std::thread::scope(|scope| {
        for seed in 10..14 {
            let spill = spill.clone();
            scope.spawn(move || like_an_oracle(&spill, seed, MIB, 40));
        }
    });
    assert_eq!(spill.count(), 0);
}

#[test]
fn what_can_not_be_is_refused_when_it_is_opened() {
    if !require_userfaultfd() {
        return;
    }
    let (dir, pager) = (scratch(), pager(4 << 20));
    let open = |options: SpillOptions, folder: &Path| options.open(&pager, folder).unwrap_err();
    let error = open(SpillOptions::new(), &dir.path().join("nowhere"));
    assert_eq!(error.errno(), Some(libc::ENOENT), "{error}");
    assert!(matches!(open(SpillOptions::new().block_size(5000), dir.path()), Error::Invalid { .. }));
    assert!(matches!(open(SpillOptions::new().deadline(Duration::ZERO), dir.path()), Error::Invalid { .. }));
    // No files are made there, nor space reserved.
    let error = open(SpillOptions::new(), Path::new("/proc"));
    assert!(error.errno().is_some(), "{error}");
}
