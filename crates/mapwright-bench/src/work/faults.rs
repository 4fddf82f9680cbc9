//! Faults on blocks that are in memory and not mapped, and what it costs this machine to wake a thread.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mapwright::engine::Engine;
use mapwright::engine::file::{FileSpec, Keep};
use mapwright::engine::host::Host;
use mapwright::stores::{FileOptions, FileStore};
use mapwright::{Advice, FaultMode, FrameKind};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::ways::pager::{Way, failed};
use mapwright_sys::window::Reader;
use rustix::event::{EventfdFlags, eventfd};

use super::{Clock, chill, time, with_latencies};
use crate::raw;
use crate::task::{How, Measured, Task};

/// Touches one byte of every `stride`, after the pages were unmapped, `passes` times. Each touch is a fault, and is timed.
pub fn faults(task: &Task, stride: u64, passes: u64) -> Result<Measured> {
    match task.how {
        How::Mmap(_) => {
            let failed = |what| move |error| Failure::io(what, &task.path, error);
            let file = std::fs::File::open(&task.path).map_err(failed("open"))?;
            chill(task)?;
            let map = mapwright_measure::raw::map(&file).map_err(failed("mmap"))?;
            // Read page by page, or the page cache holds it in large folios, which are mapped whole by one fault.
            map.advise(memmap2::Advice::Random).map_err(failed("madvise"))?;
            let unmap = || raw::unmap_pages(&map).map_err(failed("madvise"));
            touch(&map, stride, passes, unmap)
        }
        How::Pager(way, block) => {
            let engine = Engine::open(Arc::new(Host::new()), task.budget).map_err(failed)?;
            let store = Arc::new(FileStore::open(&task.path, &FileOptions::default()).map_err(failed)?);
            let mode = if way == Way::InThread { FaultMode::InThread } else { FaultMode::Thread };
            let (deadline, advice) = (Duration::from_secs(30), Advice::Random);
            let spec = FileSpec {
                store,
                writable: false,
                mode,
                frames: FrameKind::Auto,
                block_size: block as u64,
                reserve: 0,
                deadline,
                advice,
                keep: Keep::Flushed,
            };
            let file = Engine::open_file(&engine, spec).map_err(failed)?;
            let reader = file.frames().memory().and_then(Reader::claim);
            let missing = || Failure::Unsupported("the file has no memory that could be mapped".to_owned());
            let bytes = reader.ok_or_else(missing)?.fix(0..task.len as usize);
            // Through the engine: the library has no call that unmaps and keeps.
            let unmap = || {
                let all = 0..task.len;
                let unmapped = file.frames().unmap(std::slice::from_ref(&all));
                unmapped.map_err(|error| Failure::Message(format!("unmap: {error}")))
            };
            touch(&bytes, stride, passes, unmap)
        }
        _ => Err(Failure::Unsupported(format!("{:?} has no faults", task.how))),
    }
}

fn touch(bytes: &[u8], stride: u64, passes: u64, unmap: impl Fn() -> Result<()>) -> Result<Measured> {
    // Brings all of it into memory.
    black_box(bytes.iter().step_by(4096).fold(0u64, |total, byte| total + u64::from(*byte)));
    let mut latencies = Histogram::default();
    let (mut ops, mut checksum) = (0, 0u64);
    let clock = Clock::start();
    for _ in 0..passes {
        unmap()?;
        for byte in bytes.iter().step_by(stride as usize) {
            time(&mut latencies, || {
                checksum += u64::from(*black_box(byte));
                Ok(())
            })?;
            ops += 1;
        }
    }
    let measured = Measured { checksum: Some(checksum), ..clock.stop(ops, ops * stride) };
    Ok(with_latencies(measured, &latencies))
}

/// Round trips between two threads, each of which sleeps until the other wakes it: what a fault served by another thread
/// cannot do without. And a signal, what one served in the thread cannot do without.
pub fn wake(task: &Task, count: u64) -> Result<Measured> {
    match task.how {
        How::Eventfd => eventfds(count),
        How::Futex => Ok(parks(count)),
        How::Signal => signals(count),
        _ => Err(Failure::Unsupported(format!("{:?} wakes nobody", task.how))),
    }
}

fn eventfds(count: u64) -> Result<Measured> {
    let failed = |error: rustix::io::Errno| Failure::Message(format!("eventfd: {error}"));
    let (ping, pong) = (
        eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?,
        eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?,
    );
    let wait = |fd| rustix::io::read(fd, &mut [0u8; 8]).map(drop).map_err(failed);
    let wake = |fd| rustix::io::write(fd, &1u64.to_ne_bytes()).map(drop).map_err(failed);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| (0..count).try_for_each(|_| wait(&ping).and_then(|()| wake(&pong))));
        let mut latencies = Histogram::default();
        let clock = Clock::start();
        for _ in 0..count {
            time(&mut latencies, || wake(&ping).and_then(|()| wait(&pong)))?;
        }
        let measured = with_latencies(clock.stop(count, 0), &latencies);
        other.join().unwrap_or_else(|_| Err(Failure::Message("the other thread panicked".to_owned())))?;
        Ok(measured)
    })
}

fn parks(count: u64) -> Measured {
    let turns = AtomicU64::new(0);
    let mine = std::thread::current();
    let wait_for = |turn| {
        while turns.load(Ordering::Acquire) != turn {
            std::thread::park();
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for turn in 0..count {
                wait_for(2 * turn + 1);
                turns.store(2 * turn + 2, Ordering::Release);
                mine.unpark();
            }
        });
        let mut latencies = Histogram::default();
        let clock = Clock::start();
        for turn in 0..count {
            let before = std::time::Instant::now();
            turns.store(2 * turn + 1, Ordering::Release);
            other.thread().unpark();
            wait_for(2 * turn + 2);
            latencies.record(before.elapsed(), 1);
        }
        with_latencies(clock.stop(count, 0), &latencies)
    })
}

fn signals(count: u64) -> Result<Measured> {
    let failed = |error: &dyn std::fmt::Display| Failure::Message(format!("SIGUSR1: {error}"));
    let came = Arc::new(AtomicBool::new(false));
    let registered = signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&came))
        .map_err(|error| failed(&error))?;
    let process = rustix::process::getpid();
    let mut latencies = Histogram::default();
    let clock = Clock::start();
    for _ in 0..count {
        time(&mut latencies, || {
            came.store(false, Ordering::Relaxed);
            rustix::process::kill_process(process, rustix::process::Signal::USR1)
                .map_err(|error| failed(&error))?;
            // Delivered before kill(2) returns, if no other thread takes it.
            while !came.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            Ok(())
        })?;
    }
    let measured = with_latencies(clock.stop(count, 0), &latencies);
    signal_hook::low_level::unregister(registered);
    Ok(measured)
}
