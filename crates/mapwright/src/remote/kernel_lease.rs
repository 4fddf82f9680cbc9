//! The kernel's leases on files that are served to programs which know of no pager ([`Access::Leased`] and [`Access::Alone`]).
//!
//! As long as a lease for reading lasts nobody can have the file open for writing, so what clients are shown is what the file holds; and under one for writing
//! nobody else has it open at all, so what its program is shown need not be in the file. Who opens it (for
//! writing, or at all), or cuts it, waits in open(2) until the lease is given up, and that is done only when no page of the file is shown anywhere any more:
//!
//! 0. Of a file that its program writes: nothing more is shown ([`Lease::stop`]), and what was written is brought into the file, for which each page is protected
//!    first: whoever writes it then waits.
//! 1. The clients' views are closed: whoever shows a page there has done so, and nobody will ([`Lease::close`]).
//! 2. The frames are punched. This takes their pages out of every mapping of every process, so no client is waited for, and one
//!    that is stopped can't keep a writer waiting, or see old bytes when it goes on.
//! 3. The lease is given up; the writer goes on.
//! 4. The clients are told ([`Event::Ended`](super::protocol::Event), or `Unwritten`), and give their maps back to the kernel. Whoever touches a page before that waits
//!    for it.
//!
//! What was read under a lease is shared under that lease alone ([`Keep::Leased`](crate::engine::file::Keep)): frames of an ended one are never shown again.
//!
//! # Locks
//! Those of `KernelLeases` and `KernelLease` are taken alone, and nothing is done under them but to look, to take note, and once to start a thread;
//! but for `taking`, which comes before all others, and is held over the call that takes a lease, which does not wait, and `ending`, which is held
//! while a lease ends, so that whoever ends it again returns when it has ended; it comes before those of the engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use mapwright_sys::futex;
use mapwright_sys::lease::{Breaks, FileLease, Listener};
use mapwright_sys::signals::print_raw;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::kept::Kept;
use super::lease::{Lease, lock};
use super::own_file::OwnFile;
use super::protocol::Access;
use super::server::Shared;
use super::session::Session;
use crate::engine::kernel::Frames;
use crate::engine::write_back;
use crate::error::Error;

/// How often files that are kept are looked at.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Between two tries to punch frames, when the kernel is out of memory.
const PAUSE: Duration = Duration::from_millis(10);
/// And how often it is tried: for longer the kernel would not wait either.
const TRIES: u32 = 4500;
/// How long a lease has ended just now, and who wants another waits for it.
const JUST_NOW: Duration = Duration::from_millis(200);

/// The leases of a server.
#[derive(Default)]
pub(super) struct KernelLeases {
    /// The thread that is told of writers who wait, once there was a lease. Held while it is started.
    listener: Mutex<Option<Listener>>,
    held: Mutex<Vec<Weak<KernelLease>>>,
    /// Held while one is looked for and taken: clients that open a file at the same time share it, and with it the frames.
    taking: Mutex<()>,
    ended: Arc<Ended>,
    last: AtomicU64,
    /// There are none, and none is given.
    paused: AtomicBool,
    /// Files whose leases nobody needs just now.
    pub(super) kept: Kept,
}

/// Files whose leases have ended just now. The server's own descriptors of them may be open for a moment still.
#[derive(Default)]
struct Ended(Mutex<Vec<(u128, Instant)>>);

impl Ended {
    fn note(&self, identity: u128) {
        let mut all = lock(&self.0);
        all.retain(|(_, when)| when.elapsed() < JUST_NOW);
        all.push((identity, Instant::now()));
    }

    fn has(&self, identity: u128) -> bool {
        lock(&self.0).iter().any(|(ended, when)| *ended == identity && when.elapsed() < JUST_NOW)
    }
}

/// A lease on one file, for as long as clients have it open, and some time longer ([`Kept`]).
pub(super) struct KernelLease {
    identity: u128,
    /// No two are the same in a server.
    pub(super) number: u64,
    access: Access,
    all_ended: Arc<Ended>,
    kernel: Mutex<Option<FileLease>>,
    ending: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    holders: Vec<Holder>,
    /// By what the server reads and writes the file, to be closed before the lease is given up.
    own: Vec<Arc<OwnFile>>,
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
    /// A lease on a file, [`Access::Leased`] or [`Access::Alone`]: the one that there is, or, after a look at the file, a new one.
    ///
    /// # Errors
    /// As for [`FileLease::take`] and [`FileLease::take_alone`]; those of the look; where a thread can't be had.
    pub(super) fn take(
        &self,
        shared: &Arc<Shared>,
        (identity, access): (u128, Access),
        file: BorrowedFd<'_>,
        look: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Arc<KernelLease>> {
        let one_at_a_time = lock(&self.taking);
        let fits = |lease: &Arc<KernelLease>| {
            lease.identity == identity && lease.access == access && !lease.is_ended()
        };
        if let Some(found) = self.all().into_iter().find(fits) {
            return Ok(found);
        }
        look()?;
        let listener = self.listener(shared)?;
        let kernel = match access {
            Access::Alone => FileLease::take_alone(file, listener),
            _ => FileLease::take(file, listener),
        }?;
        let lease = Arc::new(KernelLease {
            identity,
            number: self.last.fetch_add(1, Ordering::Relaxed),
            access,
            all_ended: Arc::clone(&self.ended),
            kernel: Mutex::new(Some(kernel)),
            ending: Mutex::default(),
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

    /// Whether a lease on a file has ended just now.
    pub(super) fn has_just_ended(&self, identity: u128) -> bool {
        self.ended.has(identity)
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
        !self.is_ended() && lock(&self.kernel).as_ref().is_some_and(FileLease::is_wanted)
    }

    /// Whether the file has no name any more.
    pub(super) fn is_removed(&self) -> bool {
        lock(&self.kernel).as_ref().is_some_and(FileLease::is_removed)
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

    /// Has a descriptor closed before the lease is given up. `false` if it has ended.
    pub(super) fn close_at_its_end(&self, own: Arc<OwnFile>) -> bool {
        let mut state = lock(&self.state);
        let lasts = !state.ended;
        if lasts {
            state.own.push(own);
        }
        lasts
    }

    /// Gives the lease up, when nothing of the file is shown any more and what was written is in it, and then tells the clients.
    pub(super) fn end(&self) {
        let _one_at_a_time = lock(&self.ending);
        let (holders, frames, own) = {
            let mut state = lock(&self.state);
            state.ended = true;
            // A lease that is gone was closed before, and what it had written is in the file. Under the lock: who closes one and finds that this has ended
            // leaves the writing to whoever ends it.
            let hold = |holder: Holder| {
                let lease = holder.lease.upgrade()?; // first: a session is not to be let go here
                Some((holder.session.upgrade(), lease))
            };
            let holders: Vec<(Option<Arc<Session>>, Arc<Lease>)> =
                std::mem::take(&mut state.holders).into_iter().filter_map(hold).collect();
            (holders, std::mem::take(&mut state.frames), std::mem::take(&mut state.own))
        };
        let lost = if self.access == Access::Alone { write_what_was_written(&holders) } else { None };
        for (session, lease) in &holders {
            match session {
                Some(session) => session.close_lease(lease),
                None => _ = lease.close(),
            }
        }
        punch(&frames);
        own.iter().for_each(|own| own.close());
        self.all_ended.note(self.identity);
        drop(lock(&self.kernel).take());
        for (session, lease) in &holders {
            session.iter().for_each(|session| session.recall(lease.number, lost.clone()));
        }
    }
}

/// Brings what a program has written into its file, when nothing more is shown to it. What can't be.
fn write_what_was_written(holders: &[(Option<Arc<Session>>, Arc<Lease>)]) -> Option<Error> {
    holders.iter().for_each(|(_, lease)| lease.stop());
    let mut lost = None;
    for (_, lease) in holders {
        if let Err(error) = write_back::write_however_long(&lease.file) {
            print_raw(&format!(
                "mapwright: what a program wrote could not be brought into its file: {error}\n"
            ));
            lost = Some(error);
        }
    }
    lost
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
