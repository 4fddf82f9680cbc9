//! What the thread sanitizer must find, and what it must not: each planted, to be run under it by `cargo xtask sanitize thread`.
//!
//! ```text
//! planted_races race|relaxed          two threads meet at a byte of a mapping: a data race
//! planted_races ordered|std|reused    they do not: no report
//! ```
//!
//! All of them do the same to the eye of a processor of x86-64, and end well without the sanitizer. That `std` is quiet shows that the
//! sanitizer sees what the standard library synchronises by; that `reused` is, that it sees which mappings end.
#![allow(missing_docs)]

use std::hint::spin_loop;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, RwLock, mpsc};

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::mmap::{Region, Request, Source, Write};

/// Turns of each thread in `std`.
const TURNS: usize = 200;

/// The first byte of a mapping, for whoever has its address.
struct Byte {
    address: usize,
    _region: Region<Write>,
}

impl Byte {
    fn new() -> std::io::Result<Self> {
        let region = Region::<Write>::anonymous(&Request::new(Source::Anonymous, PAGE_SIZE))?;
        Ok(Self { address: region.start(), _region: region })
    }

    fn set(&self, value: u8) {
        // SAFETY: the byte is mapped while `self` lives, and no slice of the region is made. That nobody else uses it at the same
        // time is what the callers of `race` and `relaxed` break on purpose: the sanitizer shall see it.
        unsafe { *(self.address as *mut u8) = value }
    }

    fn get(&self) -> u8 {
        // SAFETY: as above.
        unsafe { *(self.address as *const u8) }
    }
}

fn main() -> ExitCode {
    let which = std::env::args().nth(1).unwrap_or_default();
    let outcome = match which.as_str() {
        "race" => race(),
        "relaxed" => passed_on(Ordering::Relaxed, Ordering::Relaxed),
        "ordered" => passed_on(Ordering::Release, Ordering::Acquire),
        "std" => by_the_standard_library(),
        "reused" => reused(),
        _ => {
            eprintln!("usage: planted_races race|relaxed|ordered|std|reused");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(sum) => {
            println!("{which}: {sum}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{which}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Both write, and nothing is between them.
fn race() -> std::io::Result<usize> {
    let (byte, there) = (Byte::new()?, AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for value in [1, 2] {
            let (byte, there) = (&byte, &there);
            scope.spawn(move || {
                // Both have started, which passes nothing on: a thread's start and end may be ordered by the way.
                there.fetch_add(1, Ordering::Relaxed);
                while there.load(Ordering::Relaxed) < 2 {
                    spin_loop();
                }
                byte.set(value);
            });
        }
    });
    Ok(usize::from(byte.get() > 0))
}

/// One writes and sets a flag, the other waits for the flag and reads.
fn passed_on(set: Ordering, get: Ordering) -> std::io::Result<usize> {
    let (byte, flag, goes) = (Byte::new()?, AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Only when it has been spawned: who drops the handle of a thread that has ended is ordered after it.
            while !goes.load(Ordering::Relaxed) {
                spin_loop();
            }
            byte.set(7);
            flag.store(true, set);
        });
        goes.store(true, Ordering::Relaxed);
        while !flag.load(get) {
            spin_loop();
        }
        Ok(usize::from(byte.get()))
    })
}

/// The byte is handed around by what the standard library has for that.
fn by_the_standard_library() -> std::io::Result<usize> {
    let byte = Byte::new()?;
    let (mutex, changed, rw_lock, once) =
        (Mutex::new(0), Condvar::new(), RwLock::new(()), OnceLock::<Vec<u8>>::new());
    let barrier = Barrier::new(4);
    let (sender, receiver) = mpsc::channel::<Arc<Vec<u8>>>();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (byte, mutex, changed, rw_lock, once, barrier) =
                (&byte, &mutex, &changed, &rw_lock, &once, &barrier);
            let sender = sender.clone();
            scope.spawn(move || {
                for _ in 0..TURNS {
                    let mut turn = mutex.lock().unwrap();
                    while *turn % 4 != thread {
                        turn = changed.wait(turn).unwrap();
                    }
                    byte.set(byte.get().wrapping_add(1));
                    *turn += 1;
                    changed.notify_all();
                }
                barrier.wait();
                for _ in 0..TURNS {
                    let held = rw_lock.write().unwrap();
                    byte.set(byte.get().wrapping_add(1));
                    drop(held);
                    let _held = rw_lock.read().unwrap();
                    std::hint::black_box(byte.get());
                }
                let shared = Arc::new(once.get_or_init(|| vec![1; 100]).clone());
                sender.send(Arc::clone(&shared)).unwrap();
                drop(shared); // freed by whoever is last
            });
        }
    });
    drop(sender);
    Ok(receiver.iter().map(|bytes| bytes.len()).sum::<usize>() + usize::from(byte.get()))
}

/// One ends a mapping; the other, whom it has told nothing but by the kernel, gets its addresses anew.
fn reused() -> std::io::Result<usize> {
    let first = Byte::new()?;
    let (address, done, goes) = (first.address, AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !goes.load(Ordering::Relaxed) {
                spin_loop();
            }
            first.set(1);
            drop(first);
            done.store(true, Ordering::Relaxed);
        });
        goes.store(true, Ordering::Relaxed);
        while !done.load(Ordering::Relaxed) {
            spin_loop();
        }
        // The kernel gives what was freed last, as a rule; what else it gives is kept, so that it gives the rest in the end.
        let mut others = Vec::new();
        while others.len() < 10_000 {
            let second = Byte::new()?;
            if second.address == address {
                assert_eq!(second.get(), 0);
                second.set(2);
                return Ok(usize::from(second.get()));
            }
            others.push(second);
        }
        Err(std::io::Error::other("the addresses are not given again"))
    })
}
