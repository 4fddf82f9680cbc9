//! The facts about the kernel that the design stands on, seen through this crate's own types.
#![allow(clippy::single_range_in_vec_init)] // lists of one range are meant
#![allow(missing_docs)]

use std::ops::Range;
use std::sync::Arc;

use mapwright_sys::frames::SharedFrames;
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::uffd::{Features, Touch, Uffd};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

fn frames(capacity: u64, in_thread: bool) -> Option<(Arc<SharedFrames>, Arc<Uffd>)> {
    let mut features = Features::MISSING_SHMEM
        .with(Features::MINOR_SHMEM)
        .with(Features::WP_HUGETLBFS_SHMEM)
        .with(Features::WP_ASYNC)
        .with(Features::POISON);
    if in_thread {
        features = features.with(Features::SIGBUS);
    }
    let uffd = match Uffd::open(features) {
        Ok(uffd) => Arc::new(uffd),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            return None;
        }
    };
    let pagemap = Arc::new(Pagemap::open().unwrap());
    Some((Arc::new(SharedFrames::new(capacity, true, Arc::clone(&uffd), pagemap).unwrap()), uffd))
}

fn written(frames: &SharedFrames, checked: bool, range: Range<u64>) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    frames.written(checked, range, &mut out).unwrap();
    out
}

fn taken(frames: &SharedFrames, range: Range<u64>) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    frames.take_written(false, range, &mut out).unwrap();
    out
}

/// Writes through the plain view, as a slice would.
fn touch(frames: &SharedFrames, at: u64) {
    frames.copy_in(at, &[7]);
}

fn stored_and_mapped(pages: u64) -> Option<(Arc<SharedFrames>, Arc<Uffd>)> {
    let (frames, uffd) = frames(pages * PAGE, false)?;
    frames.store(0, &vec![1; (pages * PAGE) as usize]).unwrap();
    frames.map(false, 0..pages * PAGE).unwrap();
    Some((frames, uffd))
}

#[test]
fn pages_arrive_clean_and_writes_are_told_once() {
    let Some((frames, _uffd)) = stored_and_mapped(8) else { return };
    assert_eq!(written(&frames, false, 0..8 * PAGE), []);
    touch(&frames, 2 * PAGE + 5);
    touch(&frames, 3 * PAGE);
    assert_eq!(written(&frames, false, 0..8 * PAGE), [2 * PAGE..4 * PAGE]);
    assert_eq!(taken(&frames, 0..8 * PAGE), [2 * PAGE..4 * PAGE]);
    assert_eq!(taken(&frames, 0..8 * PAGE), [], "taken once");
    touch(&frames, 3 * PAGE);
    assert_eq!(taken(&frames, 0..8 * PAGE), [3 * PAGE..4 * PAGE], "a write after it was taken");
    frames.map(false, 0..8 * PAGE).unwrap();
    assert_eq!(taken(&frames, 0..8 * PAGE), [], "mapping what is mapped changes nothing");
    touch(&frames, 0);
    frames.map(false, 0..8 * PAGE).unwrap();
    assert_eq!(taken(&frames, 0..8 * PAGE), [0..PAGE], "nor does it forget writes");
}

#[test]
fn zap_then_look_tells_written_from_clean() {
    let Some((frames, _uffd)) = stored_and_mapped(8) else { return };
    touch(&frames, PAGE);
    frames.unmap(&[0..2 * PAGE, 4 * PAGE..5 * PAGE, 6 * PAGE..7 * PAGE]).unwrap();
    assert_eq!(written(&frames, false, 0..8 * PAGE), [PAGE..2 * PAGE]);
    let mut back = [0; 1];
    frames.load(PAGE, &mut back).unwrap();
    assert_eq!(back, [7], "contents stay");
    frames.release(&[0..PAGE]).unwrap();
    assert_eq!(written(&frames, false, 0..PAGE), [], "the marker of a clean page survives the hole");
    assert_eq!(
        frames.map(false, 0..PAGE).unwrap_err().raw_os_error(),
        Some(libc::EFAULT),
        "a hole can't be mapped"
    );
    frames.store(0, &[9; 4096]).unwrap();
    frames.map(false, 0..2 * PAGE).unwrap();
    assert_eq!(written(&frames, false, 0..2 * PAGE), [], "mapped anew, clean");
    frames.copy_out(0, &mut back);
    assert_eq!(back, [9]);
}

/// A page table all of whose pages were written is empty once they are zapped, and since Linux 6.14 it may be freed then.
#[test]
fn zap_then_look_works_for_whole_page_tables() {
    let Some((frames, _uffd)) = stored_and_mapped(4 * HUGE / PAGE) else { return };
    for at in (0..4 * HUGE).step_by(PAGE as usize) {
        touch(&frames, at);
    }
    frames.unmap(&[0..4 * HUGE]).unwrap();
    assert_eq!(written(&frames, false, 0..4 * HUGE), [0..4 * HUGE]);
}

#[test]
fn the_same_in_batches_and_in_the_checked_view() {
    let Some((frames, _uffd)) = stored_and_mapped(2048) else { return };
    frames.map_checked_whole(2048 * PAGE);
    let odd: Vec<Range<u64>> = (0..1024).map(|i| (2 * i + 1) * PAGE..(2 * i + 2) * PAGE).collect();
    odd.iter().for_each(|range| touch(&frames, range.start));
    frames.unmap(&odd).unwrap(); // more than one call of process_madvise
    assert_eq!(written(&frames, false, 0..2048 * PAGE), odd);
    assert_eq!(written(&frames, true, 0..2048 * PAGE), [], "each view has its own marks");
}

trait Checked {
    fn map_checked_whole(&self, len: u64);
}

impl Checked for SharedFrames {
    fn map_checked_whole(&self, len: u64) {
        self.address(true).unwrap();
        self.map(true, 0..len).unwrap();
    }
}

#[test]
fn zeros_in_the_checked_view_come_and_go() {
    let Some((frames, _uffd)) = stored_and_mapped(8) else { return };
    frames.map_checked_whole(8 * PAGE);
    let at = |offset: u64| (frames.address(true).unwrap() as u64 + offset) as *const u8;
    // SAFETY: the view is mapped while `frames` lives, and these pages are shown in it.
    let read = |offset: u64| unsafe { at(offset).read_volatile() };
    assert_eq!(read(2 * PAGE), 1);
    frames.zero(2 * PAGE..4 * PAGE).unwrap();
    assert_eq!((read(2 * PAGE), read(PAGE), read(4 * PAGE)), (0, 1, 1));
    frames.restore(2 * PAGE..4 * PAGE).unwrap();
    frames.map(true, 2 * PAGE..4 * PAGE).unwrap();
    assert_eq!((read(2 * PAGE), read(3 * PAGE)), (1, 1));
    assert_eq!(written(&frames, true, 0..8 * PAGE), []);
}

/// What write(2) to a pipe says when it is handed `at`.
fn write_to_pipe(at: usize) -> Result<isize, i32> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the kernel checks the address.
    let wrote = unsafe { libc::write(ends[1], at as *const _, 16) };
    let error = std::io::Error::last_os_error().raw_os_error();
    for end in ends {
        // SAFETY: both descriptors are this function's own.
        unsafe { libc::close(end) };
    }
    if wrote < 0 { Err(error.unwrap()) } else { Ok(wrote) }
}

#[test]
fn poison_is_there_until_the_page_is_mapped_also_over_a_marker() {
    let Some((frames, _uffd)) = stored_and_mapped(4) else { return };
    let start = frames.address(false).unwrap();
    frames.unmap(&[PAGE..2 * PAGE]).unwrap(); // leaves a write-protect marker
    frames.poison(PAGE..3 * PAGE).unwrap(); // one marker, one page that is mapped
    // A system call that meets poison gets an error, where a load would get SIGBUS.
    assert_eq!(write_to_pipe(start + PAGE as usize), Err(libc::EFAULT));
    assert_eq!(write_to_pipe(start + 2 * PAGE as usize), Ok(16), "mapped pages stay");
    frames.map(false, PAGE..2 * PAGE).unwrap();
    assert_eq!(write_to_pipe(start + PAGE as usize), Ok(16));
    // The page that was mapped lost its protection: it counts as written, which costs a write-back and loses nothing.
    assert_eq!(taken(&frames, 0..4 * PAGE), [2 * PAGE..3 * PAGE], "the page that was poisoned is clean");
    touch(&frames, PAGE);
    assert_eq!(written(&frames, false, 0..4 * PAGE), [PAGE..2 * PAGE], "and tracked");
}

#[test]
fn system_calls_are_served_by_a_thread_and_refused_in_thread() {
    let Some((by_thread, uffd)) = frames(4 * PAGE, false) else { return };
    let start = by_thread.address(false).unwrap();
    let server = {
        let (frames, uffd) = (Arc::clone(&by_thread), Arc::clone(&uffd));
        std::thread::spawn(move || {
            let mut faults = Vec::new();
            uffd.wait_faults(&mut faults).unwrap();
            assert_eq!(faults, [Touch { address: start + PAGE as usize, writes: false }]);
            frames.store(PAGE, &[5; 4096]).unwrap();
            frames.map(false, PAGE..2 * PAGE).unwrap();
        })
    };
    assert_eq!(write_to_pipe(start + PAGE as usize), Ok(16));
    server.join().unwrap();
    let Some((in_thread, _uffd)) = frames(4 * PAGE, true) else { return };
    assert_eq!(write_to_pipe(in_thread.address(false).unwrap()), Err(libc::EFAULT));
}

#[test]
fn a_forked_child_has_no_mapping() {
    let Some((frames, _uffd)) = stored_and_mapped(1) else { return };
    let at = frames.address(false).unwrap() as *const u8;
    // SAFETY: the child makes one load and one system call, both allowed after fork in a threaded process.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: expected to end the child by SIGSEGV.
        let byte = unsafe { at.read_volatile() };
        // SAFETY: ends the child without running anything else.
        unsafe { libc::_exit(i32::from(byte)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "status {status:#x}");
}
