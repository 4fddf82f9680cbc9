//! Threads that sleep in a futex of a mapping that is about to be another.
//!
//! The kernel knows who sleeps in a futex that processes share by the file of its page and the place in it (futex(2)). When the kernel's mapping of a file takes the
//! place of one of lent frames, those who wake look there by the file, and those who sleep are noted by the frames. So they are woken by
//! another mapping of the frames, find their word as it is, as after any spurious wake-up, and sleep anew, noted by the file.
//!
//! Nobody falls asleep by the frames after that: who is about to looks at the word, in a page that is shown no more, and waits there for the
//! mapping that takes the place.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::futex;

use crate::futex::wait;
use crate::mapping::Reservation;

/// futex_wait(2), which has the same number everywhere.
const SYS_FUTEX_WAIT: libc::c_long = 455;
/// Between two looks: who was about to fall asleep at the first, and not running, sleeps by then.
const PAUSE: Duration = Duration::from_millis(1);

/// Another mapping of the frames of a view, which nobody touches but here.
pub(crate) struct Sleepers(Reservation);

impl Sleepers {
    /// Maps `capacity` bytes of frames, of which this process may write.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub(crate) fn of(frames: BorrowedFd<'_>, capacity: u64) -> io::Result<Self> {
        let len = usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let alias = Reservation::new(len)?;
        alias.map_file(frames, 0..capacity, true)?;
        alias.keep_private(0..capacity)?;
        Ok(Self(alias))
    }

    /// Wakes the threads of this process that sleep in a futex of a view that begins at `base`, at some addresses of it, where the frames are shown no
    /// more. Without `/proc` it wakes nobody.
    pub(crate) fn wake(&self, base: usize, addresses: &Range<usize>) {
        for look in 0..2 {
            if look > 0 {
                wait(&AtomicU32::new(0), 0, Some(PAUSE));
            }
            let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
            for thread in threads.flatten() {
                let call = std::fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
                if let Some(address) = sleeps_at(&call).filter(|address| addresses.contains(address)) {
                    self.wake_at(address - base);
                }
            }
        }
    }

    fn wake_at(&self, offset: usize) {
        if !offset.is_multiple_of(size_of::<AtomicU32>()) {
            return; // the kernel would not have let it sleep there
        }
        // SAFETY: inside of the mapping, which lives as long as `self`, and aligned; whatever is there is a number.
        let word = unsafe { AtomicU32::from_ptr((self.0.start() + offset) as *mut u32) };
        let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
    }
}

/// The address of the futex in which a thread sleeps, by what `/proc/PID/task/TID/syscall` says of it: the number of its call, and its arguments.
fn sleeps_at(call: &str) -> Option<usize> {
    let mut words = call.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?; // or that it runs
    let address = words.next()?.strip_prefix("0x")?;
    let waits = [libc::SYS_futex, SYS_FUTEX_WAIT].contains(&number);
    waits.then(|| usize::from_str_radix(address, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_told_from_who_does_something_else() {
        let futex = libc::SYS_futex;
        assert_eq!(sleeps_at(&format!("{futex} 0x7f00 0x80 0x1 0x0 0x0 0x0 0x7ffd 0x7f11\n")), Some(0x7f00));
        assert_eq!(sleeps_at("455 0x10 0x0"), Some(0x10));
        for other in ["running\n", "-1 0x7ffd 0x7f11", "1000 0x7f00 0x1", "", "202", "202 7f00"] {
            assert_eq!(sleeps_at(other), None, "{other}");
        }
    }
}
