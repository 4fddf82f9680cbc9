//! Sleeping until a word of shared memory changes: futex(2), between processes.
//!
//! A sleeper may watch two words (futex_waitv(2), Linux 5.16): what it wants, and the presence of whom it waits for. Where the
//! call is missing it watches the first only, and its time-out is what notices the second.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Words;

const FUTEX2_SIZE_U32: u32 = 2; // include/uapi/linux/futex.h

/// Set once the kernel has said that it has no futex_waitv(2).
static IS_MISSING: AtomicBool = AtomicBool::new(false);

/// A word to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its index.
    pub word: usize,
    /// What its low half is expected to be.
    pub expected: u32,
}

/// struct futex_waitv.
#[repr(C)]
struct Waiter {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// Whether this kernel can wait for two words at once, as far as was seen.
#[must_use]
pub fn is_wait_for_two_supported() -> bool {
    !IS_MISSING.load(Ordering::Relaxed)
}

impl Words {
    /// Sleeps while the low half of each word is what is expected, until woken or until `timeout` has passed. Returns early on a
    /// signal, and at once where memory was [lost](Words::is_lost).
    pub fn wait(&self, first: Waiting, second: Option<Waiting>, timeout: Duration) {
        match second {
            Some(second) if is_wait_for_two_supported() => {
                if !self.wait_for_two(first, second, timeout) {
                    self.wait_for_one(first, timeout);
                }
            }
            _ => self.wait_for_one(first, timeout),
        }
    }

    /// Wakes up to `count` of those who sleep on a word.
    pub fn wake(&self, word: usize, count: u32) {
        let address = self.half(word);
        // SAFETY: a wake looks at the address only.
        unsafe { libc::syscall(libc::SYS_futex, address, libc::FUTEX_WAKE, count) };
    }

    fn wait_for_one(&self, first: Waiting, timeout: Duration) {
        let timeout = timespec(timeout);
        let address = self.half(first.word);
        // Every outcome (woken, changed, interrupted, time is up, no page) means the same to callers: look again.
        // SAFETY: the kernel reads four bytes at the address, which is mapped and aligned, and the time.
        unsafe {
            libc::syscall(libc::SYS_futex, address, libc::FUTEX_WAIT, first.expected, &raw const timeout)
        };
    }

    /// Whether the kernel has the call.
    fn wait_for_two(&self, first: Waiting, second: Waiting, timeout: Duration) -> bool {
        let waiters = [first, second].map(|waiting| Waiter {
            value: u64::from(waiting.expected),
            address: self.half(waiting.word) as u64,
            flags: FUTEX2_SIZE_U32,
            reserved: 0,
        });
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let until = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32).saturating_add(timeout);
        let until = timespec(until);
        // SAFETY: the kernel reads the two waiters, four bytes at the address of each, which are mapped and aligned, and the
        // time.
        let result = unsafe {
            let none = 0;
            libc::syscall(
                libc::SYS_futex_waitv,
                waiters.as_ptr(),
                waiters.len(),
                none,
                &raw const until,
                libc::CLOCK_MONOTONIC,
            )
        };
        let error = (result == -1).then(io::Error::last_os_error).and_then(|error| error.raw_os_error());
        let is_missing = matches!(error, Some(libc::ENOSYS | libc::EPERM));
        if is_missing {
            IS_MISSING.store(true, Ordering::Relaxed);
        }
        !is_missing
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::Waiting;
    use crate::PAGE_SIZE;
    use crate::shared::Words;
    use crate::testing::waits_for_a_futex;

    #[test]
    fn a_change_of_either_word_ends_the_sleep() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_SIZE as u64).unwrap();
        let words = Words::map(file.as_fd(), PAGE_SIZE).unwrap();
        let watch = |word| Waiting { word, expected: 0 };
        for woken in [3, 4] {
            let since = Instant::now();
            std::thread::scope(|scope| {
                let (tell, told) = std::sync::mpsc::channel();
                let words = &words;
                scope.spawn(move || {
                    tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                    while words.word(woken).load(Ordering::SeqCst) == 0 {
                        words.wait(watch(3), Some(watch(4)), Duration::from_secs(30));
                    }
                });
                let sleeper = told.recv().unwrap();
                while !waits_for_a_futex(sleeper) {
                    std::thread::yield_now();
                }
                words.word(woken).store(1, Ordering::SeqCst);
                words.wake(woken, 1);
            });
            assert!(since.elapsed() < Duration::from_secs(10), "word {woken}");
            words.word(woken).store(0, Ordering::SeqCst);
        }
        // The high half is not looked at.
        words.word(5).store(9 << 32, Ordering::SeqCst);
        let since = Instant::now();
        words.wait(watch(5), None, Duration::from_millis(50));
        words.wait(watch(5), Some(watch(6)), Duration::from_millis(50));
        assert!(since.elapsed() >= Duration::from_millis(90));
    }
}
