//! A lock that may be held over I/O: waiting for it goes through the kernel trait, so the simulator sees it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::kernel::Kernel;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// One turn at a time.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

/// A turn. Ends when dropped.
pub(crate) struct Turn<'a> {
    gate: &'a Gate,
    kernel: &'a dyn Kernel,
}

impl Gate {
    /// Waits for a turn, until `deadline` if there is one.
    pub(crate) fn enter<'a>(
        &'a self,
        kernel: &'a dyn Kernel,
        deadline: Option<Duration>,
    ) -> Option<Turn<'a>> {
        let mut seen = self.0.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        while seen.is_err() {
            if self.0.swap(CONTENDED, Ordering::Acquire) == FREE {
                break;
            }
            let left = match deadline {
                Some(deadline) => Some(deadline.checked_sub(kernel.now()).filter(|left| !left.is_zero())?),
                None => None,
            };
            kernel.wait(&self.0, CONTENDED, left);
            seen = Err(CONTENDED);
        }
        Some(Turn { gate: self, kernel })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.gate.0.swap(FREE, Ordering::Release) == CONTENDED {
            self.kernel.wake(&self.gate.0);
        }
    }
}
