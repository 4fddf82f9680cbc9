//! Many reads or writes in flight: by io_uring where the kernel lets us. Where it doesn't, a few threads read, and writes go
//! through the page cache, from which the kernel writes many at once.
//!
//! Rings are leased from a pool of the process, because making one is dear and a descriptor each. A forked child throws
//! the parent's rings away. Not for signal handlers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError, mpsc};

use mapwright_sys::ring::Ring;
use rustix::io::Errno;

use super::{FileStore, clamp_to_file_range, is_aligned};
use crate::stores::{Read, ReadDone, Store, Write, WriteDone};

/// Reads or writes in flight on one ring. Four times what the fastest disks we measured gain from; a ring of this depth takes
/// 20 KiB.
const DEPTH: u32 = 128;

/// Rings kept for the next batch; a process with more batches at once makes and drops the others.
const POOLED: usize = 16;

/// Without io_uring: threads a batch, and the batch size up to which starting them is not worth it.
const THREADS: usize = 8;
const TOO_FEW_FOR_THREADS: usize = 4;

/// Idle rings. Each place has a lock of its own, held for a move and never waited for: a fork at the wrong moment costs
/// the child one place, not its life.
static POOL: [Mutex<Option<Ring>>; POOLED] = [const { Mutex::new(None) }; POOLED];

/// The kernel, a sandbox or the administrator said no; asking again at each batch would only cost time.
static REFUSED: AtomicBool = AtomicBool::new(false);

pub(super) fn read_many(store: &FileStore, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
    // The kernel refuses ranges that end past `i64::MAX`; what to say instead is `read_once`'s business.
    let is_bounded =
        |read: &Read<'_>| clamp_to_file_range(read.offset, read.buf.len()) == Some(read.buf.len());
    if reads.len() <= 1 || !reads.iter().all(is_bounded) {
        return one_after_the_other(store, reads, done);
    }
    if reads.iter().all(|read| store.is_cached(read.offset, read.buf.len())) {
        return one_after_the_other(store, reads, done); // there is nothing to wait for
    }
    match lease() {
        Some(mut ring) => {
            with_ring(store, &mut ring, reads, done);
            give_back(ring);
        }
        None if reads.len() <= TOO_FEW_FOR_THREADS => one_after_the_other(store, reads, done),
        None => with_threads(store, reads, done),
    }
}

fn one_after_the_other(store: &FileStore, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
    for (index, read) in reads.iter_mut().enumerate() {
        let result = store.read_once(read.offset, read.buf);
        done(index, read.buf, result);
    }
}

fn with_ring(store: &FileStore, ring: &mut Ring, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
    // One descriptor a batch: the direct one when every read fits it, which is what the contract of `Read` promises.
    let direct = store.direct().filter(|_| reads.iter().all(|read| is_aligned(read.offset, read.buf)));
    let is_direct = direct.is_some();
    let fd: BorrowedFd<'_> = direct.unwrap_or(store.buffered.as_fd());
    let offsets: Vec<u64> = reads.iter().map(|read| read.offset).collect();
    let targets = reads.iter_mut().map(|read| (read.offset, &mut *read.buf));
    ring.read_batch(fd, targets, &mut |index, buf, result| {
        let offset = offsets[index];
        let result = match result {
            // The ring's way, not the file, was at fault: the plain way knows what to do about each of these.
            Err(error) if is_worth_another_way(&error) => store.read_once(offset, buf),
            Ok(read) if !is_direct => {
                store.drop_from_kernel_cache(offset, read);
                Ok(read)
            }
            other => other,
        };
        done(index, buf, result);
    });
}

/// Writes directly what can be, if it is more than one write: a single one that waits for the disk, and then for the sync, is
/// slower than one that only waits for the sync.
pub(super) fn write_many(store: &FileStore, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
    let (aligned, others): (Vec<usize>, Vec<usize>) =
        (0..writes.len()).partition(|&index| fits_direct(&writes[index]));
    let of_aligned = || aligned.iter().map(|&index| &writes[index]);
    let start = of_aligned().map(|write| write.offset).min().unwrap_or(0);
    let end = of_aligned().map(|write| write.offset + write.buf.len() as u64).max().unwrap_or(0);
    let way = (aligned.len() > 1).then(|| store.direct_for_writes(start..end)).flatten();
    let others = match way.and_then(|direct| Some((direct, lease()?))) {
        Some((direct, mut ring)) => {
            let sources = of_aligned().map(|write| (write.offset, write.buf));
            ring.write_batch(direct, sources, &mut |position, result| {
                let index = aligned[position];
                let result = match result {
                    Err(error) if is_worth_another_way(&error) => {
                        store.write_at(writes[index].offset, writes[index].buf)
                    }
                    other => other,
                };
                done(index, result);
            });
            give_back(ring);
            others
        }
        None => (0..writes.len()).collect(),
    };
    for index in others {
        done(index, store.write_at(writes[index].offset, writes[index].buf));
    }
}

fn fits_direct(write: &Write<'_>) -> bool {
    let is_bounded = clamp_to_file_range(write.offset, write.buf.len()) == Some(write.buf.len());
    is_bounded && !write.buf.is_empty() && is_aligned(write.offset, write.buf)
}

fn is_worth_another_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(
            Errno::INTR // a signal hit the kernel's worker thread
            | Errno::AGAIN // no memory for the request, or it can't wait there
            | Errno::CANCELED // the ring went out of order
            | Errno::INVAL // direct I/O refused after all
            | Errno::OPNOTSUPP // no such operation for this file
        )
    )
}

fn with_threads(store: &FileStore, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
    let threads = THREADS.min(reads.len());
    let waiting = Mutex::new(reads.iter_mut().enumerate());
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let (sender, ended) = mpsc::channel();
        for _ in 0..threads {
            let sender = sender.clone();
            let work = move || {
                while let Some((index, read)) = take() {
                    let result = store.read_once(read.offset, read.buf);
                    // Nobody listens any more when `done` has panicked.
                    if sender.send((index, read, result)).is_err() {
                        return;
                    }
                }
            };
            // No thread to be had: those that run, or else this one, do all the work.
            if std::thread::Builder::new().name("mapwright-read".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        drop(sender);
        for (index, read, result) in ended {
            done(index, read.buf, result);
        }
        while let Some((index, read)) = take() {
            let result = store.read_once(read.offset, read.buf);
            done(index, read.buf, result);
        }
    });
}

fn lease() -> Option<Ring> {
    for place in &POOL {
        let ring = match place.try_lock() {
            Ok(mut place) => place.take(),
            Err(TryLockError::Poisoned(place)) => place.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(ring) = ring.filter(Ring::is_usable) {
            return Some(ring);
        }
    }
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    match Ring::new(DEPTH) {
        Ok(ring) => Some(ring),
        Err(error) => {
            // Descriptors and memory for them may be free again next time; everything else stays as it is.
            let passes = matches!(
                error.raw_os_error().map(Errno::from_raw_os_error),
                Some(Errno::MFILE | Errno::NFILE | Errno::AGAIN)
            );
            if !passes && !REFUSED.swap(true, Ordering::Relaxed) {
                tracing::info!(%error, "io_uring is not available; batches are read by threads");
            }
            None
        }
    }
}

fn give_back(ring: Ring) {
    if !ring.is_usable() {
        return;
    }
    for place in &POOL {
        if let Ok(mut place) = place.try_lock()
            && place.is_none()
        {
            *place = Some(ring);
            return;
        }
    }
}
