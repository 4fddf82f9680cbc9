//! One client of a server: its requests and its faults.
//!
//! A thread for each client waits for both and answers what is answered at once; the rest is done by threads of the pager, a
//! few at a time for one client. What a client does to its own memory or to its own socket can keep this thread waiting, and
//! those few, but nobody else's.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use mapwright_sys::remote::RemoteView;
use mapwright_sys::uffd::{Touch, Uffd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt;
use rustix::process::{PidfdFlags, pidfd_open};

use super::lease::{Lease, NotAdmitted, Quota, Room, View, lock};
use super::opening::{OpenSpec, Prepared};
use super::protocol::{Access, Event, LEASE, MAGIC, Reply, Request, VERSION};
use super::server::Shared;
use super::threads::Threads;
use super::unread::{Message, Unread};
use super::wire::{self, Received};
use crate::engine::file::File;
use crate::engine::kernel;
use crate::engine::pool::Kind;
use crate::engine::{Engine, PAGE, evict, fault, request, unwritten, vanished, write_back};
use crate::error::{Error, Result};

/// How long a new connection may take to say what it is, in seconds.
const GREETING_SECONDS: i64 = 10;
/// How often a client is told that what it waits for gets on.
const PROGRESS: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Faults of one client served by threads of the pager at once.
const MAX_FAULTS: u32 = 32;
/// Requests of one client being worked on at once.
const MAX_REQUESTS: u32 = 16;
/// Files that one client may have open.
const MAX_FILES: usize = 4096;
/// Pins that one client may hold, each on any number of blocks.
const MAX_PINS: usize = 1 << 16;

/// One client.
pub(super) struct Session {
    shared: Arc<Shared>,
    socket: OwnedFd,
    /// Tells its thread to look around.
    poke: OwnedFd,
    /// The client's process, where it could be had: a child that it has made by fork(2) keeps the socket open.
    process: Option<OwnedFd>,
    /// Its number, or 0 where it has none here.
    pid: u32,
    threads: Threads,
    unread: Unread,
    /// Views by their start in the client.
    views: Mutex<Views>,
    leases: Mutex<Leases>,
    /// Files whose leases of the kernel's have ended, to be closed.
    recalled: Mutex<Vec<(u32, Option<Error>)>>,
    pins: Mutex<Pins>,
    pinned: Quota,
    faults: AtomicU32,
    requests: AtomicU32,
    /// Those of them that may take long.
    long: Mutex<Vec<Long>>,
    weak: Weak<Session>,
}

/// Views and their files.
type Views = BTreeMap<usize, (Arc<View>, Arc<Lease>)>;

#[derive(Default)]
struct Leases {
    by_number: HashMap<u32, Arc<Lease>>,
    last: u32,
    /// Opened or being opened.
    count: usize,
}

#[derive(Default)]
struct Pins {
    by_number: HashMap<u64, (Arc<Lease>, Vec<u64>)>,
    last: u64,
    closed: bool,
}

/// Why a connection ends.
enum End {
    /// The client or the server wants it.
    Closed,
    /// The client broke a rule.
    Broke(&'static str),
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, socket: OwnedFd) -> io::Result<Arc<Self>> {
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let pinned = Quota::new(shared.handle.budget.limit() / 4);
        let peer = sockopt::socket_peercred(&socket).ok();
        let process = peer.and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()).ok());
        let pid = peer.map_or(0, |peer| peer.pid.as_raw_nonzero().get().unsigned_abs());
        let threads = Threads::of(peer.map(|peer| peer.pid));
        Ok(Arc::new_cyclic(|weak| Self {
            shared,
            socket,
            poke,
            process,
            pid,
            threads,
            unread: Unread::default(),
            views: Mutex::default(),
            leases: Mutex::default(),
            recalled: Mutex::default(),
            pins: Mutex::default(),
            pinned,
            faults: 0.into(),
            requests: 0.into(),
            long: Mutex::default(),
            weak: Weak::clone(weak),
        }))
    }

    /// Serves the client to its end.
    pub(super) fn run(&self) {
        let ended = match self.greet() {
            Ok(uffd) => self.serve(&uffd),
            Err(end) => end,
        };
        if let End::Broke(rule) = ended {
            // The last thing it hears, if it listens.
            let error = Error::invalid(rule.to_owned(), "");
            let _ = wire::send(self.socket.as_fd(), &Reply::Refused(error).encode(0), None, false);
        }
        self.end();
    }

    /// Waits for the first message; the userfaultfd that came with it.
    fn greet(&self) -> std::result::Result<Arc<Uffd>, End> {
        let limit = Timespec { tv_sec: GREETING_SECONDS, tv_nsec: 0 };
        let mut fds =
            [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.shared.stop, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => return Err(End::Broke("no greeting came")),
            Ok(_) if fds[1].revents().is_empty() => {}
            _ => return Err(End::Closed),
        }
        let Received { bytes, mut descriptors } = self.receive()?.ok_or(End::Closed)?;
        let number = match Request::decode(&bytes) {
            Ok((number, Request::Hello { magic: MAGIC, version: VERSION })) => number,
            Ok((_, Request::Hello { magic: MAGIC, .. })) => {
                return Err(End::Broke(
                    "the server speaks another version of the protocol: use the same release",
                ));
            }
            _ => return Err(End::Broke("that is no greeting")),
        };
        let fd = descriptors.pop().filter(|_| descriptors.is_empty());
        let uffd = fd.ok_or(End::Broke("a greeting comes with one descriptor"))?;
        let uffd = Uffd::received(uffd).map_err(|_| End::Broke("a greeting comes with a userfaultfd"))?;
        self.answer(number, Reply::Welcome { budget: self.shared.handle.budget.total() }, None);
        Ok(Arc::new(uffd))
    }

    /// Takes a message, if there is one.
    fn receive(&self) -> std::result::Result<Option<Received>, End> {
        match wire::receive(&self.socket, false) {
            Ok(None) => Err(End::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(End::Broke("a message is too long or has too many descriptors"))
            }
            Err(_) => Err(End::Closed),
            Ok(received) => Ok(received),
        }
    }

    fn serve(&self, uffd: &Arc<Uffd>) -> End {
        let mut faults = Vec::new();
        let mut told = Instant::now();
        loop {
            if self.unread.is_broken() {
                return End::Closed;
            }
            let mut of_socket = PollFlags::empty();
            of_socket.set(PollFlags::IN, self.requests.load(Ordering::Acquire) < MAX_REQUESTS);
            of_socket.set(PollFlags::OUT, !self.unread.is_empty());
            let may_fault = self.faults.load(Ordering::Acquire) < MAX_FAULTS;
            let of_faults = if may_fault { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(&self.socket, of_socket),
                PollFd::new(&self.poke, PollFlags::IN),
                PollFd::new(&self.shared.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(uffd.as_fd(), of_faults),
                match &self.process {
                    Some(process) => PollFd::new(process, PollFlags::IN),
                    None => PollFd::new(&self.poke, PollFlags::empty()),
                },
            ];
            let pause = (!lock(&self.long).is_empty()).then_some(PROGRESS);
            match poll(&mut fds, pause.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return End::Closed,
            }
            if pause.is_some() && told.elapsed() >= Duration::from_secs(PROGRESS.tv_sec as u64) {
                told = Instant::now();
                self.tell_progress();
            }
            let [of_socket, poked, stop, of_uffd, gone] = [0, 1, 2, 3, 4].map(|index| fds[index].revents());
            if !stop.is_empty() {
                self.close_recalled(); // who stops the server has ended the leases first
            }
            if !stop.is_empty() || gone.contains(PollFlags::IN) || of_socket.intersects(PollFlags::ERR) {
                return End::Closed;
            }
            if !poked.is_empty() {
                let _ = rustix::io::read(&self.poke, &mut [0; 8]);
                self.close_recalled();
            }
            if of_uffd.intersects(PollFlags::ERR | PollFlags::NVAL) {
                return End::Broke("the userfaultfd was made to block");
            }
            if of_uffd.contains(PollFlags::IN) {
                if uffd.take_faults(&mut faults).is_err() {
                    return End::Closed;
                }
                let since = self.shared.handle.now();
                faults.drain(..).for_each(|touch| self.serve_fault(touch, since));
            }
            if of_socket.contains(PollFlags::OUT) {
                self.unread.send_some(self.socket.as_fd());
            }
            if of_socket.contains(PollFlags::IN) {
                match self.receive() {
                    Ok(None) => {}
                    Ok(Some(received)) => {
                        if let Err(end) = self.take(uffd, received) {
                            return end;
                        }
                    }
                    Err(end) => return end,
                }
            } else if of_socket.contains(PollFlags::HUP) {
                return End::Closed;
            }
        }
    }

    /// Serves a touch at an address of the client's, heard of at `since`: here if nothing is to be read or waited for.
    fn serve_fault(&self, touch: Touch, since: Duration) {
        let Touch { address, writes } = touch;
        let found = {
            let views = lock(&self.views);
            let (_, (view, lease)) = match views.range(..=address).next_back() {
                Some(found) => found,
                None => return,
            };
            view.offset_of(address).map(|offset| (Arc::clone(view), Arc::clone(lease), offset))
        };
        let Some((view, lease, offset)) = found else { return };
        if lease.has_ended() {
            return; // whoever touches it there waits for the word of that, which is on its way
        }
        let Some(name) = view.name() else { return };
        // Of a file that the client has for reading a write is a fault that the kernel does not tell of, or one that lies.
        let ahead = view.pages_for(offset);
        let touch = fault::Touch { view: name, offset, writes: writes && lease.access.writes(), ahead };
        let block = lease.file.blocks_of(offset..offset + 1);
        let may_dirty = !touch.writes || lease.file.may_dirty(std::slice::from_ref(&block));
        if may_dirty && fault::serve_resident_at(&lease.file, touch, since, lease.times.as_deref()) {
            return;
        }
        // Nobody else of the client can wait for this one then, nor for anything that this thread should do meanwhile.
        let is_alone = lease.access == Access::Leased && self.is_of_one_thread();
        let serve = move |session: &Self| {
            let way = match touch.writes {
                true => unwritten::make_way(&lease.file, std::slice::from_ref(&block)),
                false => Ok(()),
            };
            let (file, checked, refused) = (lease.number, view.checked, way.is_err());
            if let Err(error) =
                way.and_then(|()| fault::serve_remote(&lease.file, touch, since, lease.times.as_deref()))
                && !lease.has_ended()
            {
                let page = offset / PAGE * PAGE;
                let range = if refused { page..page + PAGE } else { lease.file.bytes_of(&block) };
                // Such a client gives it back to the kernel for that: nothing may be shown there meanwhile.
                let _ = (lease.access == Access::Leased).then(|| session.close_lease(&lease));
                session.tell(&Event::Failed { file, checked, refused, range, error });
            }
        };
        if is_alone {
            return serve(self);
        }
        let Some(session) = self.weak.upgrade() else { return };
        self.faults.fetch_add(1, Ordering::AcqRel);
        let work = move |_: &Arc<Engine>| {
            serve(&session); // and lets go of the file first: it may be closed by this
            session.faults.fetch_sub(1, Ordering::AcqRel);
            session.poke();
        };
        let handle = &self.shared.handle;
        handle.pool.submit(handle, Kind::Urgent, Box::new(work));
    }

    /// Whether the client's program has but one thread, the one that waits here for a page; beside the one that listens to this server.
    fn is_of_one_thread(&self) -> bool {
        self.threads.count().is_some_and(|count| count <= 2)
    }

    /// Does what a message asks, or has it done.
    fn take(&self, uffd: &Arc<Uffd>, received: Received) -> std::result::Result<(), End> {
        let Received { bytes, mut descriptors } = received;
        let Ok((number, request)) = Request::decode(&bytes) else {
            return Err(End::Broke("a message makes no sense"));
        };
        let descriptor = descriptors.pop();
        if !descriptors.is_empty() || descriptor.is_some() != matches!(request, Request::Open { .. }) {
            return Err(End::Broke("a message has too many descriptors or too few"));
        }
        match request {
            Request::Hello { .. } => return Err(End::Broke("a second greeting")),
            Request::Unpin { pin } => self.unpin(pin),
            Request::WillNeed { file, range } => {
                if let Ok((lease, range)) = self.lease_of(file, range) {
                    fault::read_soon(&lease.file, vec![lease.file.blocks_of(range)], None);
                }
            }
            Request::Advise { file, advice } => {
                self.lease(file).into_iter().for_each(|lease| lease.file.advise(advice));
            }
            Request::Show { file, checked, address } => {
                let shown = self.show(uffd, file, checked, address);
                self.answer_with(number, shown.map(|()| Reply::Done));
            }
            Request::Resident { file } => {
                let bytes = self.lease(file).map(|lease| lease.file.resident_bytes());
                self.answer_with(number, bytes.map(|bytes| Reply::Count { bytes }));
            }
            Request::Stats => self.answer(number, Reply::Stats(Box::new(self.shared.handle.stats())), None),
            Request::Close { file } => {
                let closed = self.close(file);
                self.answer_with(number, closed.map(|()| Reply::Done));
            }
            Request::Open { block_size, direct, advice, access, reserve, name } => {
                let Some(fd) = descriptor else { return Err(End::Broke("no descriptor")) };
                if !self.may_open() {
                    let many = Error::invalid(format!("more than {MAX_FILES} files"), "");
                    self.answer_with(number, Err(many));
                    return Ok(());
                }
                self.elsewhere(number, move |session| {
                    let spec = OpenSpec { fd, block_size, direct, advice, access, reserve, name };
                    session.open(spec)
                });
            }
            Request::Pin { file, in_order, writes, ranges } => {
                let lease = if writes { self.writable(file) } else { self.lease(file) };
                self.elsewhere(number, move |session| {
                    let pin = session.pin(&lease?, in_order, writes, &ranges)?;
                    Ok((Reply::Pinned { pin }, None))
                });
            }
            Request::Prefetch { file, range } => {
                let found = self.lease_of(file, range);
                self.elsewhere(number, move |_| {
                    let (lease, range) = found?;
                    request::prefetch(&lease.file, range).map(|()| (Reply::Done, None))
                });
            }
            Request::Evict { file, range } => {
                let found = self.lease_of(file, range);
                self.elsewhere(number, move |_| {
                    let (lease, range) = found?;
                    let bytes = evict::drop_clean(&lease.file, lease.file.blocks_of(range));
                    Ok((Reply::Count { bytes }, None))
                });
            }
            Request::Flush { file, range } => {
                let found = self.writable(file).and_then(|_| self.lease_of(file, range));
                let lease = found.as_ref().ok().map(|(lease, _)| Arc::clone(lease));
                self.elsewhere_for_long(number, lease, move |_| {
                    let (lease, range) = found?;
                    if lease.access != Access::Alone {
                        return write_back::flush_to_the_end(&lease.file, range)
                            .map(|()| (Reply::Done, None));
                    }
                    // An earlier failure has lost nothing: what was not written then is now, or this fails too.
                    let _ = write_back::acknowledge(&lease.file);
                    write_back::flush_to_the_end(&lease.file, range)?;
                    sync(&lease.file)?;
                    Ok((Reply::Done, None))
                });
            }
            Request::Resize { file, len } => {
                let lease = self.writable(file);
                self.elsewhere_for_long(number, lease.as_ref().ok().map(Arc::clone), move |_| {
                    let lease = lease?;
                    if lease.access != Access::Write {
                        let what = "a change of length of a file that others may have mapped too";
                        return Err(Error::invalid(what, "open it with MapOptions::open_mut for that"));
                    }
                    match lease.pinned_from(len) {
                        // It would wait for pins that end when it is done.
                        held @ 1.. => Err(Error::invalid(
                            format!("a length of {len} bytes, and {held} blocks past it held: drop what holds them first"),
                            "",
                        )),
                        0 => lease.file.resize(len).map(|()| (Reply::Done, None)),
                    }
                });
            }
            Request::End { file } => {
                let lease = self.lease(file);
                self.elsewhere_for_long(number, lease.as_ref().ok().map(Arc::clone), move |_| {
                    lease?.kernel.iter().for_each(|kernel| kernel.end());
                    Ok((Reply::Done, None))
                });
            }
            Request::Acknowledge { file } => {
                let failed = self.writable(file).map(|lease| write_back::acknowledge(&lease.file));
                let answer = failed.and_then(|failed| failed.map_or(Ok(Reply::Done), Err));
                self.answer_with(number, answer);
            }
        }
        Ok(())
    }

    /// Works on a request in a thread of the pager, and answers.
    fn elsewhere(
        &self,
        number: u32,
        work: impl FnOnce(&Session) -> Result<(Reply, Option<OwnedFd>)> + Send + 'static,
    ) {
        let Some(session) = self.weak.upgrade() else { return };
        self.requests.fetch_add(1, Ordering::AcqRel);
        let work = move |_: &Arc<Engine>| {
            match work(&session) {
                Ok((reply, descriptor)) => session.answer(number, reply, descriptor),
                Err(error) => session.answer(number, Reply::Refused(error), None),
            }
            session.requests.fetch_sub(1, Ordering::AcqRel);
            session.poke();
        };
        let handle = &self.shared.handle;
        handle.pool.submit(handle, Kind::Urgent, Box::new(work));
    }

    /// As [`elsewhere`](Self::elsewhere), for what a write-back of a file may keep waiting: the client is told when that gets on.
    fn elsewhere_for_long(
        &self,
        number: u32,
        lease: Option<Arc<Lease>>,
        work: impl FnOnce(&Session) -> Result<(Reply, Option<OwnedFd>)> + Send + 'static,
    ) {
        let long = lease.map(|lease| Long { number, seen: lease.file.progress(), lease });
        lock(&self.long).extend(long);
        self.elsewhere(number, move |session| {
            let done = work(session);
            lock(&session.long).retain(|long| long.number != number);
            done
        });
    }

    /// Tells the client of each request that takes long whether it got on since it was last told.
    fn tell_progress(&self) {
        let mut got_on = Vec::new();
        for long in lock(&self.long).iter_mut() {
            let now = long.lease.file.progress();
            if std::mem::replace(&mut long.seen, now) != now {
                got_on.push(long.number);
            }
        }
        got_on.into_iter().for_each(|number| self.answer(number, Reply::Working, None));
    }

    fn lease(&self, number: u32) -> Result<Arc<Lease>> {
        let lease = lock(&self.leases).by_number.get(&number).map(Arc::clone);
        lease.ok_or_else(|| Error::invalid(format!("file {number}, which is not open"), ""))
    }

    /// A file that the client may write.
    fn writable(&self, number: u32) -> Result<Arc<Lease>> {
        let lease = self.lease(number)?;
        if lease.access.writes() { Ok(lease) } else { Err(Error::ReadOnly { path: lease.file.name.clone() }) }
    }

    /// A file and a range inside of it.
    fn lease_of(&self, number: u32, range: Range<u64>) -> Result<(Arc<Lease>, Range<u64>)> {
        let lease = self.lease(number)?;
        lease.file.check_range(range.start, range.end - range.start)?;
        Ok((lease, range))
    }

    /// Counts a file that is about to be opened.
    fn may_open(&self) -> bool {
        let mut leases = lock(&self.leases);
        let may = leases.count < MAX_FILES;
        leases.count += usize::from(may);
        may
    }

    /// Takes back the count of files that are not open, nor being opened, any more.
    fn uncount(&self, files: usize) {
        lock(&self.leases).count -= files;
    }

    /// Whether it is at its end, or its client: what it has is left soon.
    pub(super) fn is_ending(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::empty())];
        fds.extend(self.process.iter().map(|process| PollFd::new(process, PollFlags::IN)));
        let is_polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok();
        let has_ended = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::IN | PollFlags::HUP);
        self.unread.is_broken() || is_polled && fds.iter().any(has_ended)
    }

    /// Whether it has a file, or may have it in a moment.
    pub(super) fn may_have(&self, identity: u128) -> bool {
        let leases = lock(&self.leases);
        let is_opening = leases.count > leases.by_number.len();
        is_opening || leases.by_number.values().any(|lease| lease.file.identity() == identity)
    }

    /// Opens a file that the client has opened, with the rights of its descriptor.
    fn open(&self, spec: OpenSpec) -> Result<(Reply, Option<OwnedFd>)> {
        let opened = self.open_lease(spec);
        if opened.is_err() {
            self.uncount(1);
        }
        opened
    }

    fn open_lease(&self, spec: OpenSpec) -> Result<(Reply, Option<OwnedFd>)> {
        let (access, name) = (spec.access, spec.name.clone());
        let held: u64 = lock(&self.leases).by_number.values().map(|lease| lease.file.capacity()).sum();
        let Prepared { spec, identity, kernel } = spec.prepare(&self.shared, held)?;
        let file = self.shared.open(&spec, identity)?;
        let frames = file.frames().lend().map_err(|e| Error::io("lend", name, 0, 0, e))?;
        let (len, capacity) = (file.len(), file.capacity());
        let number = {
            let mut leases = lock(&self.leases);
            leases.last += 1; // fewer than 2^32 in a session: each takes a file to be opened
            leases.last
        };
        let times = self.shared.book.note(self.pid, &file);
        let lease = Arc::new(Lease::new(number, file, access, kernel, times));
        if lease.kernel.as_ref().is_some_and(|kernel| !kernel.join(&self.weak, &lease)) {
            return Err(lease_ended(lease.file.name.clone()));
        }
        lock(&self.leases).by_number.insert(number, lease);
        if self.unread.is_broken() {
            let _ = self.close(number); // the session may have ended meanwhile
        }
        Ok((Reply::Opened { file: number, len, capacity }, Some(frames)))
    }

    /// Lets a view of the client's take part.
    fn show(&self, uffd: &Arc<Uffd>, file: u32, checked: bool, address: u64) -> Result<()> {
        let lease = self.lease(file)?;
        let failed = |e| Error::io("map", lease.file.name.clone(), 0, lease.file.capacity(), e);
        let start = usize::try_from(address).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let (capacity, writes) = (lease.file.capacity(), lease.access.writes());
        let remote = RemoteView::new(Arc::clone(uffd), start, capacity, writes).map_err(failed)?;
        let view = Arc::new(View::new(remote, file, checked, Weak::clone(&self.weak)));
        match lease.admit(&view).map_err(failed)? {
            Ok(()) => {}
            Err(NotAdmitted::Second) => return Err(Error::invalid("a second view of one kind", "")),
            Err(NotAdmitted::Closed) => return Err(lease_ended(lease.file.name.clone())),
        }
        lock(&self.views).insert(start, (view, lease));
        Ok(())
    }

    /// Makes ranges resident, shows them in the client's plain view, to be written if it asks for that, and holds them there.
    fn pin(&self, lease: &Arc<Lease>, in_order: bool, writes: bool, ranges: &[Range<u64>]) -> Result<u64> {
        let file = &lease.file;
        let view = lease.view(false).ok_or_else(|| Error::invalid("pins before there is a view", ""))?;
        let (mut blocks, mut runs) = (Vec::new(), Vec::new());
        for range in ranges {
            file.check_range(range.start, range.end - range.start)?;
            let run = file.blocks_of(range.clone());
            let needed = (blocks.len() as u64 + run.end - run.start) * file.block_charge();
            if needed > self.shared.handle.budget.limit() {
                return Err(self.exhausted(lease, needed)); // before a list of them is made
            }
            runs.push(run.clone());
            blocks.extend(run);
        }
        blocks.sort_unstable();
        blocks.dedup();
        let bytes = blocks.len() as u64 * file.block_charge();
        let quotas = [&self.pinned, &self.shared.pinned];
        let room = Room::take(quotas, bytes).ok_or_else(|| self.exhausted(lease, bytes))?;
        if writes {
            unwritten::make_way(file, &runs)?;
        }
        let written: &[Range<u64>] = if writes { ranges } else { &[] };
        let held = match hold(file, &blocks, in_order, view, written) {
            Err(Error::Io { source, .. }) if vanished::has_vanished(&source) => {
                // Another client may have given pages back.
                let mend = |&block: &u64| vanished::drop_if_vanished(file, block).map(drop);
                blocks.iter().try_for_each(mend)?;
                hold(file, &blocks, in_order, view, written)
            }
            held => held,
        }?;
        let held = held.keep();
        // First of the lease, then of the session: what is in neither by the end of the session is let go here.
        let new = lease.hold(&held);
        room.keep(new * file.block_charge());
        let kept = {
            let mut pins = lock(&self.pins);
            if pins.closed || pins.by_number.len() >= MAX_PINS {
                Err(held)
            } else {
                pins.last += 1;
                let number = pins.last;
                pins.by_number.insert(number, (Arc::clone(lease), held));
                Ok(number)
            }
        };
        kept.map_err(|held| {
            self.let_go(lease, &held);
            Error::invalid(format!("more than {MAX_PINS} pins"), "")
        })
    }

    fn exhausted(&self, lease: &Lease, needed: u64) -> Error {
        Error::BudgetExhausted {
            path: lease.file.name.clone(),
            needed,
            budget: self.shared.handle.budget.total(),
            remedy: "clients may hold half of the budget pinned, and one of them a quarter",
        }
    }

    fn let_go(&self, lease: &Lease, blocks: &[u64]) {
        let freed = lease.let_go(blocks);
        drop(Room::kept([&self.pinned, &self.shared.pinned], freed * lease.file.block_charge()));
    }

    fn unpin(&self, number: u64) {
        let pin = lock(&self.pins).by_number.remove(&number);
        pin.into_iter().for_each(|(lease, blocks)| self.let_go(&lease, &blocks));
    }

    /// Closes a file. When this returns nothing is shown in its views any more.
    fn close(&self, number: u32) -> Result<()> {
        let lease = lock(&self.leases).by_number.remove(&number);
        let lease = lease.ok_or_else(|| Error::invalid(format!("file {number}, which is not open"), ""))?;
        self.close_lease(&lease);
        lock(&self.views).retain(|_, (_, of)| of.number != number);
        lock(&self.pins).by_number.retain(|_, (of, _)| of.number != number);
        self.shared.leave(lease);
        self.uncount(1);
        Ok(())
    }

    /// Ends the views and pins of a file. When this returns nothing is shown in its views any more.
    pub(super) fn close_lease(&self, lease: &Lease) {
        let freed = lease.close();
        drop(Room::kept([&self.pinned, &self.shared.pinned], freed * lease.file.block_charge()));
    }

    /// Has a file closed whose lease of the kernel's has ended, and the client told; also if what it wrote was `lost`.
    pub(super) fn recall(&self, number: u32, lost: Option<Error>) {
        lock(&self.recalled).push((number, lost));
        self.poke();
    }

    fn close_recalled(&self) {
        for (file, lost) in std::mem::take(&mut *lock(&self.recalled)) {
            self.tell(&match lost {
                Some(error) => Event::Unwritten { file, error },
                None => Event::Ended { file },
            });
            let _ = self.close(file); // the client may have been faster
        }
    }

    /// Ends it, for what the client has done to its memory: nothing can be promised to it any more.
    pub(super) fn cut_off(&self) {
        self.unread.break_off();
        self.poke();
    }

    /// Lets go of everything.
    fn end(&self) {
        self.unread.break_off();
        lock(&self.pins).closed = true;
        let leases = std::mem::take(&mut lock(&self.leases).by_number);
        leases.values().for_each(|lease| self.close_lease(lease));
        let pins = std::mem::take(&mut lock(&self.pins).by_number);
        let views = std::mem::take(&mut *lock(&self.views));
        drop((pins, views));
        let count = leases.len();
        leases.into_values().for_each(|lease| self.shared.leave(lease));
        self.uncount(count);
        self.unread.clear();
        // Jobs may hold the session, and with it the socket, for a while.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    fn poke(&self) {
        // Fails only when the counter is about to overflow: then it is set already.
        let _ = rustix::io::write(&self.poke, &1u64.to_ne_bytes());
    }

    fn answer_with(&self, number: u32, reply: Result<Reply>) {
        self.answer(number, reply.unwrap_or_else(Reply::Refused), None);
    }

    fn answer(&self, number: u32, reply: Reply, descriptor: Option<OwnedFd>) {
        self.send(reply.encode(number), descriptor);
    }

    /// Says something that must be heard.
    fn tell(&self, event: &Event) {
        self.send(event.encode(), None);
    }

    /// Says something that may be missed, if it can be sent at once.
    pub(super) fn suggest(&self, event: &Event) {
        if self.unread.is_empty() {
            let _ = wire::send(self.socket.as_fd(), &event.encode(), None, false);
        }
    }

    fn send(&self, bytes: Vec<u8>, descriptor: Option<OwnedFd>) {
        if self.unread.send(self.socket.as_fd(), Message { bytes, descriptor }) {
            self.poke();
        }
    }
}

/// Somebody writes the file, or is about to.
fn lease_ended(path: String) -> Error {
    Error::io(LEASE, path, 0, 0, io::Error::from(rustix::io::Errno::AGAIN))
}

/// Makes what is in a file durable.
fn sync(file: &File) -> Result<()> {
    file.store.sync().map_err(|e| Error::io("sync", file.name.clone(), 0, file.len(), e))
}

/// Pins blocks, shown in a client's view, parts of them to be written.
fn hold(
    file: &Arc<File>,
    blocks: &[u64],
    in_order: bool,
    view: kernel::View,
    written: &[Range<u64>],
) -> Result<request::Held> {
    let held = request::Request::new(file, blocks.to_vec(), in_order)?.shown_in(view).wait()?;
    let written = written.iter().filter(|range| !range.is_empty());
    for range in written {
        file.grant(view, range.start / PAGE..range.end.div_ceil(PAGE))?;
    }
    Ok(held)
}

/// A request that is worked on for as long as a write-back of a file takes.
struct Long {
    number: u32,
    lease: Arc<Lease>,
    /// The file's progress that the client was told of last.
    seen: u64,
}
