//! Batches of reads and of writes through io_uring.
//!
//! [`Ring::read_batch`] and [`Ring::write_batch`] are safe although the kernel uses the caller's buffers behind the compiler's
//! back, because they neither return nor unwind before the kernel has let go of every buffer. What to do where io_uring is refused, and
//! how rings are shared, is for the caller.
//!
//! # Invariants
//! 1. A slot is *busy* from the moment its entry is in the submission queue until its completion has been taken. A busy
//!    slot's buffer belongs to the kernel; nobody else touches it.
//! 2. Between batches no slot is busy, or the ring is *broken* and makes no system call any more.
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

/// The most bytes one read(2) or write(2) transfers: `MAX_RW_COUNT` in include/linux/fs.h.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// Called once for each read as it ends: its position in the batch, its buffer, and the number of bytes read.
pub type ReadDone<'a> = dyn FnMut(usize, &mut [u8], io::Result<usize>) + 'a;

/// Called once for each write as it ends: its position in the batch, and the number of bytes written.
pub type WriteDone<'a> = dyn FnMut(usize, io::Result<usize>) + 'a;

/// An io_uring instance for batches of reads and of writes.
pub struct Ring {
    uring: IoUring,
    /// One for each transfer that can be in flight; an entry's user data is its slot's index.
    slots: Vec<Slot>,
    /// Indices of the slots that are not busy.
    free: Vec<u32>,
    /// The process that made the ring. A forked child sees the same queues and must keep its hands off.
    owner: Option<rustix::process::Pid>,
    /// The kernel refused to go on; what is left in the queue must never be submitted.
    broken: bool,
}

/// A transfer in flight: which one of the batch, and its buffer.
#[derive(Clone, Copy)]
struct Slot {
    index: usize,
    start: NonNull<u8>,
    len: usize,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
}

// SAFETY: the pointers in `slots` are meaningful only inside a batch, which one thread runs from beginning to end;
// everything else in a ring may change threads (it is not set up with SINGLE_ISSUER).
unsafe impl Send for Ring {}

impl Ring {
    /// A ring that keeps up to `depth` transfers in flight (at least 1, at most [`MAX_DEPTH`]).
    ///
    /// Costs tens of microseconds and a descriptor: keep it.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where the kernel, a sandbox or the administrator refuses io_uring, `ENOMEM` where the limit on
    /// locked memory is too low (before Linux 5.12), `EMFILE` and `ENFILE`, and [`io::ErrorKind::Unsupported`] before
    /// Linux 5.6, which lacks plain reads and writes.
    pub fn new(depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let uring = Self::set_up(depth)?;
        let mut probe = Probe::new();
        match uring.submitter().register_probe(&mut probe) {
            Ok(()) if probe.is_supported(opcode::Read::CODE) => {}
            // The probe came with the plain read and write, in 5.6.
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

    /// How many transfers the ring keeps in flight.
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
        let reads = reads.map(|(offset, buf)| (offset, buf.len(), NonNull::from(buf).cast::<u8>()));
        self.run(fd, Way::Read, reads, &mut |slot, result| {
            // SAFETY: `start` and `len` were taken from a `&'a mut [u8]` that this call consumed, 'a outlives the call, and
            // the kernel gave the buffer back (or never got it): nobody else can reach it now.
            let buf = unsafe { std::slice::from_raw_parts_mut(slot.start.as_ptr(), slot.len) };
            done(slot.index, buf, result);
        });
    }

    /// Writes each `(offset, buffer)` of `writes` to `fd`, in any order, and calls `done` with its position in `writes` and the
    /// number of bytes written; else as [`read_batch`](Self::read_batch).
    ///
    /// # Panics
    /// If `writes` or `done` panics; the panic goes on when every write in flight has ended.
    pub fn write_batch<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        writes: impl Iterator<Item = (u64, &'a [u8])>,
        done: &mut WriteDone<'_>,
    ) {
        let writes = writes.map(|(offset, buf)| (offset, buf.len(), NonNull::from(buf).cast::<u8>()));
        self.run(fd, Way::Write, writes, &mut |slot, result| done(slot.index, result));
    }

    /// Runs transfers, given as offset, length and address, whose buffers the caller's caller lends for longer than this call.
    fn run(
        &mut self,
        fd: BorrowedFd<'_>,
        way: Way,
        transfers: impl Iterator<Item = (u64, usize, NonNull<u8>)>,
        done: &mut dyn FnMut(Slot, io::Result<usize>),
    ) {
        let mut transfers = transfers.enumerate().fuse();
        if self.is_usable() {
            let mut batch = Batch { ring: self, way, queued: 0 };
            while batch.has_room() && batch.push_next(fd, &mut transfers) {}
            while batch.busy() > 0 {
                if batch.submit_and_wait(batch.worth_waiting_for()).is_err() {
                    batch.abandon(done);
                    break;
                }
                // A slot is free again before `done` hears of it, so a panic there finds the books in order.
                while let Some((slot, result)) = batch.next_completion() {
                    done(slot, result);
                    batch.push_next(fd, &mut transfers);
                    // When `done` is slow or many have ended, don't let the device run dry meanwhile. A failure shows
                    // again in the submission that waits.
                    if batch.queued >= batch.submit_early_at() {
                        let _ = batch.submit_and_wait(0);
                    }
                }
            }
        }
        for (index, (_, len, start)) in transfers {
            done(Slot { index, start, len }, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("depth", &self.depth()).field("broken", &self.broken).finish()
    }
}

/// One batch. Dropping it waits for the kernel, however the batch ended.
struct Batch<'r> {
    ring: &'r mut Ring,
    way: Way,
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
    /// slow ones can't hold back the news of all the others.
    fn worth_waiting_for(&self) -> usize {
        (self.busy() / 16).max(1)
    }

    fn submit_early_at(&self) -> usize {
        (self.ring.slots.len() / 4).max(8)
    }

    /// Puts the next transfer in the queue, if there is one. The caller knows that a slot is free.
    fn push_next(
        &mut self,
        fd: BorrowedFd<'_>,
        transfers: &mut impl Iterator<Item = (usize, (u64, usize, NonNull<u8>))>,
    ) -> bool {
        let Some((index, (offset, len, start))) = transfers.next() else { return false };
        let slot = self.ring.free.pop().expect("a slot is free");
        self.ring.slots[slot as usize] = Slot { index, start, len };
        let (fd, bytes) = (types::Fd(fd.as_raw_fd()), len.min(MAX_TRANSFER) as u32);
        let entry = match self.way {
            Way::Read => opcode::Read::new(fd, start.as_ptr(), bytes).offset(offset).build(),
            Way::Write => opcode::Write::new(fd, start.as_ptr(), bytes).offset(offset).build(),
        };
        self.push(&entry.user_data(u64::from(slot)));
        true
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.uring.submission();
        // SAFETY: the descriptor is borrowed and the buffer lent, exclusively where it is read to, for longer than this batch,
        // which ends only when the kernel is done with both (invariants 1 and 2).
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

    fn next_completion(&mut self) -> Option<(Slot, io::Result<usize>)> {
        let entry = self.ring.uring.completion().next()?;
        let slot = entry.user_data() as u32;
        self.ring.free.push(slot);
        let result = entry.result();
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((self.ring.slots[slot as usize], result))
    }

    /// After a final error of io_uring_enter: waits for what the kernel has taken, tells `done` that the rest was not
    /// attempted, and retires the ring.
    fn abandon(&mut self, done: &mut dyn FnMut(Slot, io::Result<usize>)) {
        self.ring.broken = true;
        while self.busy() > self.unsubmitted() {
            match self.next_completion() {
                Some((slot, result)) => done(slot, result),
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
            done(self.ring.slots[slot], Err(io::Error::from_raw_os_error(libc::ECANCELED)));
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
