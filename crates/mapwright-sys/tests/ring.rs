//! Batches of reads through io_uring, under what users do to them. Where io_uring is refused there is nothing to test.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;

use mapwright_sys::buffer::Buffer;
use mapwright_sys::ring::Ring;

const PAGE: usize = 4096;

/// A file of pages that each begin with their number, open for direct reads, and a ring; `None` without io_uring.
fn set_up(depth: u32, pages: u32) -> Option<(File, Ring)> {
    let ring = match Ring::new(depth) {
        Ok(ring) => ring,
        Err(error) => {
            eprintln!("skipped: no io_uring here ({error})");
            return None;
        }
    };
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes: Vec<u8> = (0..pages).flat_map(page).collect();
    std::fs::write(file.path(), bytes).unwrap();
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(file.path()).unwrap();
    Some((file, ring))
}

fn page(number: u32) -> [u8; PAGE] {
    let mut page = [number as u8; PAGE];
    page[..4].copy_from_slice(&number.to_le_bytes());
    page
}

/// Reads `pages` pages in one batch and checks every one; `each` is called as they end.
fn read_all(file: &File, ring: &mut Ring, pages: u32, mut each: impl FnMut(u32)) {
    let mut memory = Buffer::zeroed((pages as usize * PAGE).max(PAGE));
    let reads = memory.chunks_exact_mut(PAGE).enumerate().map(|(index, buf)| ((index * PAGE) as u64, buf));
    let reads = reads.take(pages as usize);
    let mut ended = vec![false; pages as usize];
    ring.read_batch(file.as_fd(), reads, &mut |index, buf, result| {
        assert_eq!(result.unwrap(), PAGE);
        assert_eq!(buf, page(index as u32));
        assert!(!std::mem::replace(&mut ended[index], true), "read {index} ended twice");
        each(index as u32);
    });
    assert!(ended.into_iter().all(|ended| ended));
}

#[test]
fn every_depth_reads_every_batch() {
    for depth in [1, 2, 7, 64, 1000] {
        let Some((file, mut ring)) = set_up(depth, 300) else { return };
        assert_eq!(ring.depth(), depth);
        for pages in [0, 1, 2, 7, 64, 65, 300] {
            read_all(&file, &mut ring, pages, |_| {});
        }
    }
}

#[test]
fn the_end_of_the_file_and_errors_are_told_apart() {
    let Some((file, mut ring)) = set_up(4, 3) else { return };
    let mut memory = Buffer::zeroed(8 * PAGE);
    let offsets = [2 * PAGE, 3 * PAGE, 9 * PAGE, 100];
    let reads = memory.chunks_exact_mut(2 * PAGE).zip(offsets).map(|(buf, offset)| (offset as u64, buf));
    let results = RefCell::new([const { None }; 4]);
    ring.read_batch(file.as_fd(), reads, &mut |index, buf, result| {
        assert_eq!(buf.len(), 2 * PAGE);
        results.borrow_mut()[index] = Some(result.map_err(|error| error.raw_os_error().unwrap()));
    });
    assert_eq!(results.into_inner(), [Some(Ok(PAGE)), Some(Ok(0)), Some(Ok(0)), Some(Err(libc::EINVAL))]);
}

#[test]
fn a_panic_waits_for_the_reads_in_flight_and_leaves_the_ring_usable() {
    let Some((file, mut ring)) = set_up(16, 300) else { return };
    for panic_at in [0, 5, 299] {
        let mut memory = Buffer::zeroed(300 * PAGE);
        let mut ended = 0;
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let reads =
                memory.chunks_exact_mut(PAGE).enumerate().map(|(index, buf)| ((index * PAGE) as u64, buf));
            ring.read_batch(file.as_fd(), reads, &mut |_, _, _| {
                assert!(ended != panic_at, "wanted");
                ended += 1;
            });
        }));
        assert!(panic.is_err());
        // If a read were still in flight it would show up in the memory, or as a completion of the next batch.
        memory.fill(0xEE);
        read_all(&file, &mut ring, 300, |_| {});
        assert!(memory.iter().all(|&byte| byte == 0xEE));
    }
    // A panic of the iterator, with the ring full.
    let mut memory = Buffer::zeroed(300 * PAGE);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let reads = memory.chunks_exact_mut(PAGE).enumerate().map(|(index, buf)| {
            assert!(index < 20, "wanted");
            ((index * PAGE) as u64, buf)
        });
        ring.read_batch(file.as_fd(), reads, &mut |_, _, _| {});
    }));
    assert!(panic.is_err());
    read_all(&file, &mut ring, 300, |_| {});
}

#[test]
fn signals_interrupt_the_wait_and_nothing_else() {
    static HITS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: libc::c_int) {
        HITS.fetch_add(1, Ordering::Relaxed);
    }
    let Some((file, mut ring)) = set_up(4, 300) else { return };
    // SAFETY: all-zero is a valid `sigaction`: no flags, so no SA_RESTART, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only touches an atomic; nobody else in this process uses SIGUSR1.
    let result = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
    assert_eq!(result, 0);

    // SAFETY: no conditions.
    let reader = unsafe { libc::pthread_self() };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // SAFETY: the reader lives: it waits for this thread before it ends.
                unsafe { libc::pthread_kill(reader, libc::SIGUSR1) };
                std::thread::yield_now();
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..20 {
                read_all(&file, &mut ring, 300, |_| {});
            }
        }));
        over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    assert!(HITS.load(Ordering::Relaxed) > 20, "the reader was hit by signals");
}

#[test]
fn a_ring_may_change_threads() {
    let Some((file, mut ring)) = set_up(8, 100) else { return };
    read_all(&file, &mut ring, 100, |_| {});
    let (sender, receiver) = mpsc::channel::<(File, Ring)>();
    let other = std::thread::spawn(move || {
        let (file, mut ring) = receiver.recv().unwrap();
        read_all(&file, &mut ring, 100, |_| {});
        (file, ring)
    });
    sender.send((file, ring)).unwrap();
    let (file, mut ring) = other.join().unwrap();
    read_all(&file, &mut ring, 100, |_| {});
}

#[test]
fn a_forked_child_keeps_its_hands_off() {
    let Some((file, mut ring)) = set_up(8, 100) else { return };
    read_all(&file, &mut ring, 100, |_| {});
    // SAFETY: the child only makes system calls and drops a ring, then leaves without running anything else.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        let mut page = [0; 8];
        let mut errors = 0;
        ring.read_batch(file.as_fd(), std::iter::once((0, &mut page[..])), &mut |_, _, result| {
            errors += i32::from(result.unwrap_err().raw_os_error() == Some(libc::ECANCELED));
        });
        let status = if ring.is_usable() || errors != 1 { 1 } else { 0 };
        drop(ring);
        // SAFETY: no conditions.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's wait status");
    read_all(&file, &mut ring, 100, |_| {});
}

#[test]
fn every_depth_writes_every_batch() {
    for depth in [1, 7, 64] {
        let Some((file, mut ring)) = set_up(depth, 1) else { return };
        drop(file);
        for pages in [0, 1, 2, 65, 300] {
            let path = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path.path()).unwrap();
            let mut memory = Buffer::zeroed((pages as usize * PAGE).max(PAGE));
            memory
                .chunks_exact_mut(PAGE)
                .zip(0..pages)
                .for_each(|(buf, number)| buf.copy_from_slice(&page(number)));
            // From the last to the first, so that a batch is not what one write would do.
            let writes = memory.chunks_exact(PAGE).enumerate().take(pages as usize).rev();
            let mut ended = vec![0; pages as usize];
            ring.write_batch(
                file.as_fd(),
                writes.map(|(index, buf)| ((index * PAGE) as u64, buf)),
                &mut |index, result| {
                    assert_eq!(result.unwrap(), PAGE);
                    ended[index] += 1;
                },
            );
            assert!(ended.iter().all(|&ended| ended == 1), "{ended:?}");
            let expected: Vec<u8> = (0..pages).flat_map(page).collect();
            assert!(std::fs::read(path.path()).unwrap() == expected, "depth {depth}, {pages} pages");
        }
    }
}

#[test]
fn a_write_that_fails_says_so_and_the_others_go_on() {
    let Some((read_only, mut ring)) = set_up(4, 3) else { return };
    let memory = Buffer::zeroed(3 * PAGE);
    let writes = || memory.chunks_exact(PAGE).enumerate().map(|(index, buf)| ((index * PAGE) as u64, buf));
    let mut errors = 0;
    ring.write_batch(read_only.as_fd(), writes(), &mut |_, result| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        errors += 1;
    });
    assert_eq!(errors, 3);
    let path = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path.path()).unwrap();
    let offsets = [0, 100, PAGE as u64]; // the second is not aligned
    let mut results = [const { None }; 3];
    let writes = memory.chunks_exact(PAGE).zip(offsets).map(|(buf, offset)| (offset, buf));
    ring.write_batch(file.as_fd(), writes, &mut |index, result| {
        results[index] = Some(result.map_err(|error| error.raw_os_error().unwrap()));
    });
    assert_eq!(results, [Some(Ok(PAGE)), Some(Err(libc::EINVAL)), Some(Ok(PAGE))]);
}
