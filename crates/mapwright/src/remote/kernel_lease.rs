//! The kernel's leases on files that are served to programs which know of no pager ([`Access::Leased`](super::Access)).
//!
//! As long as a lease lasts nobody can have the file open for writing, so what clients are shown is what the file holds. Who opens it for
//! writing, or cuts it, waits in open(2) until the lease is given up, and that is done only when no page of the file is shown anywhere any more:
//!
//! 1. The clients' views are closed: whoever shows a page there has done so, and nobody will ([`Lease::close`]).
//! 2. The frames are punched. This takes their pages out of every mapping of every process, so no client is waited for, and one
//!    that is stopped can't keep a writer waiting, or see old bytes when it goes on.
//! 3. The lease is given up; the writer goes on.
//! 4. The clients are told ([`Event::Ended`](super::protocol::Event)), and give their maps back to the kernel. Whoever touches a page before that waits
//!    for it.
//!
//! What was read under a lease is shared under that lease alone ([`Keep::Leased`](crate::engine::file::Keep)): frames of an ended one are never shown again.
//!
//! # Locks
//! Those of `KernelLeases` and `KernelLease` are taken alone, and nothing is done under them but to look, to take note, and once to start a thread;
//! but for `taking`, which comes before all others, and is held over the call that takes a lease, which does not wait.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;

use mapwright_sys::futex;
use mapwright_sys::lease::{Breaks, Listener, ReadLease};
use mapwright_sys::signals::print_raw;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::kept::Kept;
use super::lease::{Lease, lock};
use super::server::Shared;
use super::session::Session;
use crate::engine::kernel::Frames;

/// How often files that are kept are looked at.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Between two tries to punch frames, when the kernel is out of memory.
const PAUSE: Duration = Duration::from_millis(10);
/// And how often it is tried: for longer the kernel would not wait either.
const TRIES: u32 = 4500;

/// The leases of a server.
#[derive(Default)]
pub(super) struct KernelLeases {
    /// The thread that is told of writers who wait, once there was a lease. Held while it is started.
    listener: Mutex<Option<Listener>>,
    held: Mutex<Vec<Weak<KernelLease>>>,
    /// Held while one is looked for and taken: clients that open a file at the same time share it, and with it the frames.
    taking: Mutex<()>,
    last: AtomicU64,
    /// There are none, and none is given.
    paused: AtomicBool,
    /// Files whose leases nobody needs just now.
    pub(super) kept: Kept,
}

/// A lease on one file, for as long as clients have it open, and some time longer ([`Kept`]).
pub(super) struct KernelLease {
    identity: u128,
    /// No two are the same in a server.
    pub(super) number: u64,
    kernel: Mutex<Option<ReadLease>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    holders: Vec<Holder>,
    /// What was filled under it, and how many bytes that may be. Held here, so that no page can be shown somewhere that can't be punched.
    frames: Vec<(Arc<dyn Frames>, u64)>,
}

/// A client that has the file open.
#[derive(Clone)]
struct Holder {
    session: Weak<Session>,
    lease: Weak<Lease>,
}

impl KernelLeases {
    /// A lease on a file: the one that there is, or a new one.
    ///
    /// # Errors
    /// As for [`ReadLease::take`]; where a thread can't be had.
    pub(super) fn take(
        &self,
        shared: &Arc<Shared>,
        identity: u128,
        file: BorrowedFd<'_>,
    ) -> io::Result<Arc<KernelLease>> {
        let one_at_a_time = lock(&self.taking);
        if let Some(found) =
            self.all().into_iter().find(|lease| lease.identity == identity && !lease.is_ended())
        {
            return Ok(found);
        }
        let listener = self.listener(shared)?;
        let kernel = ReadLease::take(file, listener)?;
        let lease = Arc::new(KernelLease {
            identity,
            number: self.last.fetch_add(1, Ordering::Relaxed),
            kernel: Mutex::new(Some(kernel)),
            state: Mutex::default(),
        });
        let mut held = lock(&self.held);
        held.retain(|other| other.strong_count() > 0);
        held.push(Arc::downgrade(&lease));
        drop(held);
        drop(one_at_a_time);
        // Somebody may have come before the lease was among those that the listener looks at, and that a pause ends.
        if self.paused.load(Ordering::SeqCst) {
            lease.end();
            return Err(io::Error::other("the server is about to be stopped"));
        }
        if lease.is_wanted() {
            lease.end();
            return Err(rustix::io::Errno::AGAIN.into());
        }
        Ok(lease)
    }

    /// Ends all, and gives none until [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        self.all().iter().for_each(|lease| lease.end());
    }

    pub(super) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// All of them. None is let go under the lock.
    fn all(&self) -> Vec<Arc<KernelLease>> {
        lock(&self.held).iter().filter_map(Weak::upgrade).collect()
    }

    /// The thread that is told; starts it.
    fn listener(&self, shared: &Arc<Shared>) -> io::Result<Listener> {
        let mut listener = lock(&self.listener);
        if let Some(listener) = *listener {
            return Ok(listener);
        }
        let (tell, told) = mpsc::sync_channel(1);
        let own = Arc::clone(shared);
        let run = move || {
            let breaks = Breaks::of_this_thread();
            let _ = tell.send(breaks.as_ref().map(Breaks::listener).map_err(io::Error::kind));
            if let Ok(breaks) = breaks {
                listen(&own, &breaks);
            }
        };
        std::thread::Builder::new().name("mapwright-leases".into()).stack_size(256 << 10).spawn(run)?;
        let started = told.recv().unwrap_or(Err(io::ErrorKind::Other))?;
        *listener = Some(started);
        Ok(started)
    }
}

/// Ends leases that somebody waits for, until the server ends: then all end with their files. And lets go of files that were kept.
fn listen(shared: &Arc<Shared>, breaks: &Breaks) {
    loop {
        let mut fds = [PollFd::new(breaks, PollFlags::IN), PollFd::new(&shared.stop, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&LOOK));
        if !fds[1].revents().is_empty() {
            return;
        }
        shared.let_go(shared.kernel_leases.kept.take_spent());
        breaks.take();
        for lease in shared.kernel_leases.all().into_iter().filter(|lease| lease.is_wanted()) {
            // Of its own thread: what one client does to its memory keeps those waiting who write its files, and nobody else.
            let (own, of_all) = (Arc::clone(&lease), Arc::clone(shared));
            let end = move || {
                own.end();
                of_all.let_go(of_all.kernel_leases.kept.take_spent());
            };
            let thread = std::thread::Builder::new().name("mapwright-break".into()).stack_size(256 << 10);
            if thread.spawn(end).is_err() {
                lease.end();
            }
        }
    }
}

impl KernelLease {
    /// Whether nothing may be shown under it any more.
    pub(super) fn is_ended(&self) -> bool {
        lock(&self.state).ended
    }

    /// Whether somebody waits for its end, which has not begun.
    fn is_wanted(&self) -> bool {
        !self.is_ended() && lock(&self.kernel).as_ref().is_some_and(ReadLease::is_wanted)
    }

    /// Whether the file has no name any more.
    pub(super) fn is_removed(&self) -> bool {
        lock(&self.kernel).as_ref().is_some_and(ReadLease::is_removed)
    }

    /// Notes a client that has opened the file, before anything is shown to it. `false` if the lease has ended: nothing may be.
    pub(super) fn join(&self, session: &Weak<Session>, lease: &Arc<Lease>) -> bool {
        let frames = lease.file.frames();
        let unused: Vec<_> = {
            let mut state = lock(&self.state);
            if state.ended {
                return false;
            }
            state.holders.retain(|holder| holder.lease.strong_count() > 0);
            state.holders.push(Holder { session: Weak::clone(session), lease: Arc::downgrade(lease) });
            if !state.frames.iter().any(|(known, _)| Arc::ptr_eq(known, frames)) {
                state.frames.push((Arc::clone(frames), lease.file.capacity()));
            }
            state.frames.extract_if(.., |(known, _)| Arc::strong_count(known) == 1).collect()
        };
        punch(&unused);
        true
    }

    /// Gives the lease up, when nothing of the file is shown any more, and then tells the clients.
    fn end(&self) {
        let (holders, frames) = {
            let mut state = lock(&self.state);
            state.ended = true;
            (std::mem::take(&mut state.holders), std::mem::take(&mut state.frames))
        };
        let holders: Vec<(Arc<Session>, Arc<Lease>)> = holders
            .iter()
            // A session or a lease that is gone was closed before.
            .filter_map(|holder| Some((holder.session.upgrade()?, holder.lease.upgrade()?)))
            .collect();
        holders.iter().for_each(|(session, lease)| session.close_lease(lease));
        punch(&frames);
        drop(lock(&self.kernel).take());
        holders.iter().for_each(|(session, lease)| session.recall(lease.number));
    }
}

impl Drop for KernelLease {
    fn drop(&mut self) {
        // The clients have closed the file. One that was cut off may have it mapped still, and does not see another byte.
        self.end();
    }
}

/// Takes the pages of frames out of every mapping.
fn punch(all: &[(Arc<dyn Frames>, u64)]) {
    for (frames, capacity) in all {
        let punched = (0..TRIES).any(|_| {
            let done = frames.release(std::slice::from_ref(&(0..*capacity))).is_ok();
            if !done {
                futex::wait(&AtomicU32::new(0), 0, Some(PAUSE));
            }
            done
        });
        if !punched {
            print_raw("mapwright: pages of a file that is about to be written could not be taken back\n");
        }
    }
}
