//! The facts about moved pages that `moved` stands on, seen through this crate's own types.
#![allow(clippy::single_range_in_vec_init)] // lists of one range are meant
#![allow(missing_docs)]

use std::sync::Arc;

use mapwright_sys::buffer::Buffer;
use mapwright_sys::moved::{MovedFrames, REGION};
use mapwright_sys::uffd::{Features, Uffd};

const PAGE: usize = 4096;

fn frames(regions: usize) -> Option<MovedFrames> {
    // With SIGBUS a touch of an absent page is a signal, not an endless wait: what a test gets wrong it says.
    let features = Features::MOVE.with(Features::POISON).with(Features::SIGBUS);
    let uffd = match Uffd::open(features) {
        Ok(uffd) => Arc::new(uffd),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            return None;
        }
    };
    Some(MovedFrames::new((regions * REGION) as u64, uffd).unwrap())
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..REGION).map(|at| (at / PAGE) as u8 ^ (at % 251) as u8 ^ seed).collect()
}

fn region(seed: u8) -> Buffer {
    let mut buffer = Buffer::region().unwrap();
    buffer.copy_from_slice(&pattern(seed));
    buffer
}

fn shown(frames: &MovedFrames, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    frames.copy_out(at as u64, &mut bytes);
    bytes
}

fn byte_range(pages: std::ops::Range<usize>) -> std::ops::Range<u64> {
    (pages.start * PAGE) as u64..(pages.end * PAGE) as u64
}

/// A field of /proc/self/smaps in KiB, for the mapping that holds an address.
fn smaps(address: usize, field: &str) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let parse = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (parse(start), parse(end)) {
                inside = (start..end).contains(&address);
                continue;
            }
        }
        if inside && first == field {
            return words.next().unwrap().parse().unwrap();
        }
    }
    panic!("no mapping at {address:#x}");
}

#[test]
fn pages_are_stored_mapped_unmapped_and_released() {
    let Some(frames) = frames(1) else { return };
    let bytes = pattern(1);
    frames.fill(0, &bytes[..4 * PAGE]).unwrap();
    frames.store(4 * PAGE as u64, &bytes[4 * PAGE..8 * PAGE]).unwrap();
    frames.map(false, byte_range(2..8)).unwrap();
    assert!(shown(&frames, 0, 8 * PAGE) == bytes[..8 * PAGE]);
    frames.unmap(&[byte_range(1..3), byte_range(6..20)]).unwrap();
    frames.unmap(&[byte_range(0..8)]).unwrap();
    frames.map(false, byte_range(0..8)).unwrap();
    frames.map(false, byte_range(0..8)).unwrap();
    assert!(shown(&frames, 0, 8 * PAGE) == bytes[..8 * PAGE], "contents stay");
    assert!(frames.fill(0, &bytes[..PAGE]).is_err(), "it is there already");
    frames.unmap(&[byte_range(0..2)]).unwrap();
    frames.release(&[byte_range(0..8)]).unwrap();
    frames.fill(0, &bytes[8 * PAGE..16 * PAGE]).unwrap();
    assert!(shown(&frames, 0, 8 * PAGE) == bytes[8 * PAGE..16 * PAGE], "nothing was left");
}

#[test]
fn the_checked_view_has_copies_and_zeros() {
    let Some(frames) = frames(1) else { return };
    let bytes = pattern(2);
    let checked = frames.address(true).unwrap();
    frames.fill(0, &bytes[..2 * PAGE]).unwrap();
    frames.unmap(&[byte_range(0..1)]).unwrap();
    frames.map(false, byte_range(0..2)).unwrap();
    frames.map(true, byte_range(0..2)).unwrap();
    frames.map(true, byte_range(0..2)).unwrap();
    assert!(shown(&frames, 0, 2 * PAGE) == bytes[..2 * PAGE], "held pages are in the plain view too");
    assert!(smaps(checked, "Rss:") == 8);
    frames.unmap(&[byte_range(0..2)]).unwrap();
    assert!(smaps(checked, "Rss:") == 0, "copies go when the page is unmapped");
    frames.zero(byte_range(5..7)).unwrap();
    frames.restore(byte_range(5..7)).unwrap();
    frames.fill((5 * PAGE) as u64, &bytes[..PAGE]).unwrap();
    frames.map(true, byte_range(5..6)).unwrap();
    frames.release(&[byte_range(0..7)]).unwrap();
    assert!(smaps(checked, "Rss:") == 0);
}

#[test]
fn poison_is_cured_by_whatever_fills_or_maps() {
    let Some(frames) = frames(1) else { return };
    let bytes = pattern(3);
    frames.store(0, &bytes[..PAGE]).unwrap();
    frames.fill(PAGE as u64, &bytes[PAGE..2 * PAGE]).unwrap();
    frames.poison(byte_range(0..4)).unwrap();
    frames.map(false, byte_range(0..2)).unwrap();
    frames.fill((2 * PAGE) as u64, &bytes[2 * PAGE..4 * PAGE]).unwrap();
    assert!(shown(&frames, 0, 4 * PAGE) == bytes[..4 * PAGE]);
    frames.map(false, byte_range(0..4)).unwrap();
    assert!(
        shown(&frames, 0, 4 * PAGE) == bytes[..4 * PAGE],
        "a page that was there when it was to be poisoned stays"
    );
    frames.release(&[byte_range(0..4)]).unwrap();
    frames.poison(byte_range(9..11)).unwrap();
    frames.fill_region(0, &mut region(4), true).unwrap();
    assert!(shown(&frames, 0, REGION) == pattern(4));
    frames.release(&[0..REGION as u64]).unwrap();
    let mut held = region(8);
    let ring = io_uring::IoUring::new(2).unwrap();
    let vector = [libc::iovec { iov_base: held[9 * PAGE..].as_mut_ptr().cast(), iov_len: PAGE }];
    // SAFETY: the page is mapped while the ring lives, and nothing is read into it.
    unsafe { ring.submitter().register_buffers(&vector) }.unwrap();
    frames.fill_region(0, &mut held, false).unwrap();
    frames.map_region(0).unwrap();
    assert!(shown(&frames, 0, REGION) == pattern(8), "what can't be moved is copied");
}

/// What makes a region cheap is that its huge page stays one, wherever it goes.
#[test]
fn a_region_goes_around_on_one_huge_page() {
    let Some(frames) = frames(3) else { return };
    let huge_pages =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let huge = if huge_pages.is_empty() || huge_pages.contains("[never]") { 0 } else { 2048 };
    let plain = frames.address(false).unwrap();
    let at = REGION as u64;
    let mut buffer = region(5);
    for round in 0..3 {
        // Page tables that other pages leave behind are no obstacle.
        frames.fill(at, &pattern(9)[..PAGE]).unwrap();
        frames.unmap(&[at..at + PAGE as u64]).unwrap();
        frames.release(&[at..at + PAGE as u64]).unwrap();
        let stored = round == 1;
        frames.fill_region(at, &mut buffer, !stored).unwrap();
        if stored {
            frames.map_region(at).unwrap();
        }
        assert_eq!(smaps(plain, "AnonHugePages:"), huge, "round {round}: shown");
        assert!(shown(&frames, REGION, REGION) == pattern(5));
        frames.unmap_region(at).unwrap();
        assert_eq!(smaps(plain, "Rss:"), 0, "round {round}: stored");
        frames.map_region(at).unwrap();
        assert!(shown(&frames, REGION, REGION) == pattern(5));
        assert_eq!(smaps(plain, "AnonHugePages:"), huge, "round {round}: shown again");
        if round == 2 {
            frames.unmap_region(at).unwrap();
        }
        frames.take_region(at, round < 2, &mut buffer).unwrap();
        assert_eq!(smaps(plain, "Rss:"), 0, "round {round}: taken");
        assert!(buffer[..] == pattern(5)[..], "round {round}: the buffer has its pages back");
    }
    frames.fill_region(0, &mut buffer, true).unwrap();
    assert!(buffer.iter().all(|&byte| byte == 0), "a buffer whose pages have gone gets new ones");
}

/// Where address space was short, a buffer is of the heap: its pages can go into a region, but none come back.
#[test]
fn a_region_is_dropped_where_a_buffer_takes_no_pages() {
    let Some(frames) = frames(1) else { return };
    let plain = frames.address(false).unwrap();
    let mut heap = Buffer::zeroed(REGION);
    for shown_first in [true, false] {
        heap.copy_from_slice(&pattern(7));
        frames.fill_region(0, &mut heap, shown_first).unwrap();
        let refused = frames.take_region(0, shown_first, &mut heap).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported, "{refused}");
        assert_eq!(smaps(plain, "Rss:"), 0, "shown first: {shown_first}");
    }
    frames.fill_region(0, &mut region(8), true).unwrap();
    assert!(shown(&frames, 0, REGION) == pattern(8), "the place is free for the next");
}

#[test]
fn a_region_can_be_split_and_dropped_in_parts() {
    let Some(frames) = frames(1) else { return };
    let plain = frames.address(false).unwrap();
    for shown_first in [true, false] {
        frames.fill_region(0, &mut region(6), shown_first).unwrap();
        frames.split_region(0, shown_first).unwrap();
        frames.map(false, 0..REGION as u64).unwrap();
        assert!(shown(&frames, 0, REGION) == pattern(6));
        assert_eq!(smaps(plain, "AnonHugePages:"), 0, "shown first: {shown_first}");
        frames.release(&[byte_range(0..256), byte_range(300..512)]).unwrap();
        assert_eq!(smaps(plain, "Rss:"), 44 * 4);
        assert!(shown(&frames, 256 * PAGE, 44 * PAGE) == pattern(6)[256 * PAGE..300 * PAGE]);
        frames.release(&[0..REGION as u64]).unwrap();
    }
}

/// A page that I/O holds can't be moved: everything else is, and nothing is lost.
#[test]
fn a_page_in_use_by_io_stays_mapped() {
    let Some(frames) = frames(1) else { return };
    frames.fill(0, &pattern(7)[..8 * PAGE]).unwrap();
    let address = frames.address(false).unwrap();
    // vmsplice(2) with a page of the view pins nothing for good, but a registered io_uring buffer does.
    let ring = io_uring::IoUring::new(2).unwrap();
    let held = [libc::iovec { iov_base: (address + 3 * PAGE) as *mut _, iov_len: PAGE }];
    // SAFETY: the page is mapped while the ring lives, and nothing is read into it.
    unsafe { ring.submitter().register_buffers(&held) }.unwrap();
    let refused = frames.unmap(&[byte_range(0..8)]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    assert_eq!(smaps(address, "Rss:"), 4, "all others are unmapped");
    frames.map(false, byte_range(0..8)).unwrap();
    assert!(shown(&frames, 0, 8 * PAGE) == pattern(7)[..8 * PAGE]);
    drop(ring);
    frames.release(&[byte_range(0..8)]).unwrap();
}

#[test]
fn a_page_with_poison_does_not_keep_its_neighbours_mapped() {
    let Some(frames) = frames(1) else { return };
    let bytes = pattern(5);
    frames.fill(0, &bytes[..PAGE]).unwrap();
    frames.fill(2 * PAGE as u64, &bytes[2 * PAGE..3 * PAGE]).unwrap();
    frames.poison(byte_range(1..2)).unwrap();
    frames.unmap(&[byte_range(0..3)]).unwrap();
    // What was mapped is stored, so it can be mapped again.
    frames.map(false, byte_range(0..1)).unwrap();
    frames.map(false, byte_range(2..3)).unwrap();
    assert!(shown(&frames, 0, PAGE) == bytes[..PAGE]);
    assert!(shown(&frames, 2 * PAGE, PAGE) == bytes[2 * PAGE..3 * PAGE]);
}
