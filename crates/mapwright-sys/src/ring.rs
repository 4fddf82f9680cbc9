//! Batches of reads through io_uring.
//!
//! [`Ring::read_batch`] is safe although the kernel writes into the caller's buffers behind the compiler's back, because
//! it neither returns nor unwinds before the kernel has let go of every buffer. What to do where io_uring is refused, and
//! how rings are shared, is for the caller.
//!
//! # Invariants
//! 1. A slot is *busy* from the moment its entry is in the submission queue until its completion has been taken. A busy
//!    slot's buffer belongs to the kernel; nobody else touches it.
//! 2. Between calls of `read_batch` no slot is busy, or the ring is *broken* and makes no system call any more.
//! 3. At most `depth` slots are busy, and the completion queue has room for twice as many: it cannot overflow.
//!
//! One `&mut Ring` serves one batch at a time, so there is nothing to lock.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};

/// Most reads a ring keeps in flight; more is clamped. The kernel's own limit is 32768 entries.
pub const MAX_DEPTH: u32 = 4096;

/// The most bytes one read(2) transfers: `MAX_RW_COUNT` in include/linux/fs.h.
const MAX_READ: usize = 0x7fff_f000;

/// Called once for each read as it ends: its position in the batch, its buffer, and the number of bytes read.
pub type ReadDone<'a> = dyn FnMut(usize, &mut [u8], io::Result<usize>) + 'a;

/// An io_uring instance for batches of reads.
pub struct Ring {
    uring: IoUring,
    /// One for each read that can be in flight; an entry's user data is its slot's index.
    slots: Vec<Slot>,
    /// Indices of the slots that are not busy.
    free: Vec<u32>,
    /// The process that made the ring. A forked child sees the same queues and must keep its hands off.
    owner: Option<rustix::process::Pid>,
    /// The kernel refused to go on; what is left in the queue must never be submitted.
    broken: bool,
}

/// A read in flight: which one, and the buffer the kernel writes to.
#[derive(Clone, Copy)]
struct Slot {
    index: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointers in `slots` are meaningful only inside `read_batch`, which one thread runs from beginning to end;
// everything else in a ring may change threads (it is not set up with SINGLE_ISSUER).
unsafe impl Send for Ring {}

impl Ring {
    /// A ring that keeps up to `depth` reads in flight (at least 1, at most [`MAX_DEPTH`]).
    ///
    /// Costs tens of microseconds and a descriptor: keep it.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where the kernel, a sandbox or the administrator refuses io_uring, `ENOMEM` where the limit on
    /// locked memory is too low (before Linux 5.12), `EMFILE` and `ENFILE`, and [`io::ErrorKind::Unsupported`] before
    /// Linux 5.6, which lacks plain reads.
    pub fn new(depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let uring = Self::set_up(depth)?;
        let mut probe = Probe::new();
        match uring.submitter().register_probe(&mut probe) {
            Ok(()) if probe.is_supported(opcode::Read::CODE) => {}
            // The probe came with the plain read, in 5.6.
            Ok(()) => return Err(io::ErrorKind::Unsupported.into()),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Err(error) => return Err(error),
        }
        let idle = Slot { index: 0, start: NonNull::dangling(), len: 0 };
        let mut ring = Self {
            uring,
            slots: vec![idle; depth as usize],
            free: (0..depth).rev().collect(),
            owner: Some(rustix::process::getpid()),
            broken: false,
        };
        ring.try_nop()?;
        Ok(ring)
    }

    /// Sets the queues up with the best flags the kernel knows.
    ///
    /// `COOP_TASKRUN` (5.19) saves an interrupt a completion, `SUBMIT_ALL` (5.18) lets a batch go on behind an entry that
    /// failed. `SINGLE_ISSUER` with `DEFER_TASKRUN` was rejected: it ties a ring to one thread for life, and its
    /// completions can't be seen without a working io_uring_enter(2), on which our waiting for the kernel must not rest.
    fn set_up(depth: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_submit_all();
        match builder.build(depth) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(depth),
            other => other,
        }
    }

    /// One round trip through the kernel: some sandboxes let a ring be made and refuse to let it be used.
    fn try_nop(&mut self) -> io::Result<()> {
        let entry = opcode::Nop::new().build();
        // SAFETY: a no-op names no memory.
        unsafe { self.uring.submission().push(&entry) }.expect("a new queue has room for one entry");
        loop {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
            if self.uring.completion().next().is_some() {
                return Ok(());
            }
        }
    }

    /// How many reads the ring keeps in flight.
    pub fn depth(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether a batch can be read: not after the kernel refused to go on, and not in a forked child of the process that
    /// made the ring (where dropping the ring is all one may do, and harmless to the parent).
    pub fn is_usable(&self) -> bool {
        !self.broken && self.owner == Some(rustix::process::getpid())
    }

    /// Reads each `(offset, buffer)` of `reads` from `fd` and calls `done` with its position in `reads`, its buffer and
    /// the number of bytes read, in the order in which they end. Up to [`depth`](Self::depth) are in flight at once, and
    /// those that end are replaced by the next in the same system call that waits for more. Returns when all have ended.
    ///
    /// A read gets what read(2) would return, short reads and errors included. `ECANCELED` means that the read was not
    /// attempted because the ring is not [usable](Self::is_usable) (any more): read it another way.
    ///
    /// # Panics
    /// If `reads` or `done` panics; the panic goes on when every read in flight has ended.
    pub fn read_batch<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        reads: impl Iterator<Item = (u64, &'a mut [u8])>,
        done: &mut ReadDone<'_>,
    ) {
        let mut reads = reads.enumerate().fuse();
        if self.is_usable() {
            let mut batch = Batch { ring: self, queued: 0 };
            while batch.has_room() && batch.push_next(fd, &mut reads) {}
            while batch.busy() > 0 {
                if batch.submit_and_wait(batch.worth_waiting_for()).is_err() {
                    batch.abandon(done);
                    break;
                }
                // A slot is free again before `done` hears of it, so a panic there finds the books in order.
                while let Some((slot, result)) = batch.next_completion() {
                    slot.report(result, done);
                    batch.push_next(fd, &mut reads);
                    // When `done` is slow or many have ended, don't let the device run dry meanwhile. A failure shows
                    // again in the submission that waits.
                    if batch.queued >= batch.submit_early_at() {
                        let _ = batch.submit_and_wait(0);
                    }
                }
            }
        }
        for (index, (_, buf)) in reads {
            done(index, buf, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("depth", &self.depth()).field("broken", &self.broken).finish()
    }
}

impl Slot {
    /// Hands the buffer of an ended read to `done`.
    fn report(self, result: i32, done: &mut ReadDone<'_>) {
        // SAFETY: `start` and `len` were taken from a `&'a mut [u8]` that `read_batch` consumed, 'a outlives that call, and
        // the kernel gave the buffer back (or never got it): nobody else can reach it now.
        let buf = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) };
        let result = match usize::try_from(result) {
            Ok(read) => Ok(read),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        done(self.index, buf, result);
    }
}

/// One run of `read_batch`. Dropping it waits for the kernel, however the run ended.
struct Batch<'r> {
    ring: &'r mut Ring,
    /// Entries pushed since the last submission; an estimate that only paces submissions.
    queued: usize,
}

impl Batch<'_> {
    fn busy(&self) -> usize {
        self.ring.slots.len() - self.ring.free.len()
    }

    fn has_room(&self) -> bool {
        !self.ring.free.is_empty()
    }

    /// How many completions to sleep for: several, to save system calls and wake-ups, but few enough that a handful of
    /// slow reads can't hold back the news of all the others.
    fn worth_waiting_for(&self) -> usize {
        (self.busy() / 16).max(1)
    }

    fn submit_early_at(&self) -> usize {
        (self.ring.slots.len() / 4).max(8)
    }

    /// Puts the next read in the queue, if there is one. The caller knows that a slot is free.
    fn push_next<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        reads: &mut impl Iterator<Item = (usize, (u64, &'a mut [u8]))>,
    ) -> bool {
        let Some((index, (offset, buf))) = reads.next() else { return false };
        let slot = self.ring.free.pop().expect("a slot is free");
        let len = buf.len();
        let start = NonNull::from(buf).cast::<u8>();
        self.ring.slots[slot as usize] = Slot { index, start, len };
        let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), start.as_ptr(), len.min(MAX_READ) as u32)
            .offset(offset)
            .build()
            .user_data(u64::from(slot));
        self.push(&entry);
        true
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.uring.submission();
        // SAFETY: the descriptor is borrowed and the buffer exclusively held for longer than this batch, which ends only
        // when the kernel is done with both (invariants 1 and 2).
        unsafe { queue.push(entry) }.expect("the queue has an entry for every slot");
        self.queued += 1;
    }

    /// Hands the queue to the kernel and sleeps until `want` completions are there. An error is final: the passing ones
    /// mean "take completions, then ask again", which is what the caller does after `Ok` anyway.
    fn submit_and_wait(&mut self, want: usize) -> io::Result<()> {
        self.queued = 0;
        match self.ring.uring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn next_completion(&mut self) -> Option<(Slot, i32)> {
        let entry = self.ring.uring.completion().next()?;
        let slot = entry.user_data() as u32;
        self.ring.free.push(slot);
        Some((self.ring.slots[slot as usize], entry.result()))
    }

    /// After a final error of io_uring_enter: waits for the reads the kernel has taken, tells `done` that the others were
    /// not attempted, and retires the ring.
    fn abandon(&mut self, done: &mut ReadDone<'_>) {
        self.ring.broken = true;
        while self.busy() > self.unsubmitted() {
            match self.next_completion() {
                Some((slot, result)) => slot.report(result, done),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        // The kernel never saw the rest, and never will: a broken ring submits nothing.
        let mut is_free = vec![false; self.ring.slots.len()];
        for &slot in &self.ring.free {
            is_free[slot as usize] = true;
        }
        for slot in (0..self.ring.slots.len()).filter(|&slot| !is_free[slot]) {
            self.ring.free.push(slot as u32);
            self.ring.slots[slot].report(-libc::ECANCELED, done);
        }
    }

    /// Entries the kernel has not taken from the queue.
    fn unsubmitted(&mut self) -> usize {
        self.ring.uring.submission().len()
    }
}

impl Drop for Batch<'_> {
    /// Waits until the kernel holds no buffer. Does nothing after an orderly end; after a panic it also submits what is
    /// queued, because an entry can't be taken back and its buffer is still good.
    fn drop(&mut self) {
        while self.busy() > 0 {
            if self.ring.broken && self.busy() <= self.unsubmitted() {
                return; // a panic in the middle of `abandon`
            }
            if self.next_completion().is_some() {
                continue;
            }
            if self.ring.broken {
                std::thread::sleep(Duration::from_millis(1));
            } else if self.submit_and_wait(1).is_err() {
                self.ring.broken = true;
            }
        }
    }
}

/// Errors of io_uring_enter(2) after which one takes completions and asks again.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR // a signal came while waiting
            | libc::EAGAIN // no memory for a request right now
            | libc::EBUSY // completions must be taken first
        )
    )
}
