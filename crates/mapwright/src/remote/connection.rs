//! A client's connection to a pager server.
//!
//! One thread listens to the server. When the server is gone the same thread serves the faults of this process, in the only way
//! that is left: the page raises SIGBUS after a message, or reads as zeros inside a checked scope, which then returns the error.
//! The userfaultfd belongs to this process too, so a touch waits for that, and never reads as zeros by itself.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use mapwright_sys::signals::print_raw;
use mapwright_sys::uffd::{Source, Touch, Uffd};
use rustix::net::{connect, shutdown, sockopt};

use super::lease::lock;
use super::protocol::{About, Event, Heard, MAGIC, MAX_MESSAGE, Reply, Request, VERSION};
use super::served::Failing;
use super::server::{address, is_trusted, socket};
use super::wire::{self, Received};
use crate::engine::stats::Stats;
use crate::error::{Error, Result};

/// Beyond the time that the server gives an operation.
const GRACE: Duration = Duration::from_secs(5);
/// How long a server may take to say that it is there.
const GREETING: Duration = Duration::from_secs(10);

/// A connection, for as long as a [`Pager`](crate::Pager) or a map needs it.
pub(crate) struct Connection {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    path: PathBuf,
    socket: OwnedFd,
    pub(super) uffd: Arc<Uffd>,
    budget: OnceLock<u64>,
    calls: Mutex<HashMap<u32, Arc<Slot>>>,
    last: AtomicU32,
    served: Mutex<Vec<Weak<dyn Hears>>>,
    closing: AtomicBool,
    lost: OnceLock<Error>,
}

/// A file that the server has opened for this process: what it hears of it, in the connection's thread. It may be the last to hold
/// this, but never the connection.
pub(super) trait Hears: Send + Sync {
    /// What the server calls it.
    fn number(&self) -> u32;
    /// What it is called in messages.
    fn name(&self) -> &str;
    /// Where an address lies: in the checked view or not, and which block of the file it is in.
    fn locate(&self, address: usize) -> Option<(bool, Range<u64>)>;
    /// Takes ranges out of the plain view, as the server asks.
    fn unmap(&self, ranges: &[Range<u64>]);
    /// Brings a page that can't be had to whoever touched it.
    fn failed(&self, checked: bool, range: Range<u64>, error: &Error, why: Failing);
    /// Its lease has ended: the server shows nothing of it any more, and serves no touch.
    fn ended(&self);
    /// The same, and what was written is not in the file.
    fn unwritten(&self, error: &Error);
    /// The server is gone, and may have taken note of touches that nobody will serve now.
    fn lost(&self, error: &Error);
}

/// Where the answer to a request arrives.
struct Slot {
    /// What the file is called that the request is about.
    name: String,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    answer: Option<Result<Answer>>,
    waker: Option<Waker>,
    /// When the server last said that it gets on.
    got_on: Option<Instant>,
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// A request that was sent. Also a future.
pub(super) struct Call {
    inner: Arc<Inner>,
    number: u32,
    slot: Arc<Slot>,
    since: Instant,
}

impl Connection {
    /// Connects to a server.
    ///
    /// # Errors
    /// See [`Pager::connect`](crate::Pager::connect).
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        Self::open_from(path, 0)
    }

    /// As [`open`](Self::open), with descriptors that are not below `lowest`.
    ///
    /// # Errors
    /// As for `open`.
    pub(crate) fn open_from(path: &Path, lowest: RawFd) -> Result<Arc<Self>> {
        let failed = |e: io::Error| Error::io("connect", path.display().to_string(), 0, 0, e);
        let socket = rustix::io::fcntl_dupfd_cloexec(&socket().map_err(failed)?, lowest)
            .map_err(|e| failed(e.into()))?;
        connect(&socket, &address(path)?).map_err(|e| failed(e.into()))?;
        let server = sockopt::socket_peercred(&socket).map_err(|e| failed(e.into()))?.uid.as_raw();
        if !is_trusted(server) {
            return Err(Error::NotTrusted {
                path: path.display().to_string(),
                what: format!("a pager server of user {server} could change this process's memory"),
                remedy: "connect to a server of your own, or of root",
            });
        }
        let uffd = crate::engine::host::open_uffd_of_client()?;
        let uffd = Arc::new(uffd.lifted(lowest).map_err(failed)?);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            socket,
            uffd,
            budget: OnceLock::new(),
            calls: Mutex::default(),
            last: 0.into(),
            served: Mutex::default(),
            closing: AtomicBool::new(false),
            lost: OnceLock::new(),
        });
        let own = Arc::clone(&inner);
        let spawned = std::thread::Builder::new().name("mapwright-remote".into()).spawn(move || own.listen());
        spawned.map_err(|e| {
            Error::unsupported("a thread", "raise the limit on threads (ulimit -u, pids cgroup)", e)
        })?;
        let connection = Arc::new(Self { inner });
        let hello = Request::Hello { magic: MAGIC, version: VERSION };
        let call = connection.call_with(&hello, Some(connection.inner.uffd.as_fd()), "connect")?;
        match call.wait(GREETING)?.reply {
            Reply::Welcome { budget } => _ = connection.inner.budget.set(budget),
            _ => return Err(connection.inner.nonsense()),
        }
        Ok(connection)
    }

    /// Where the server listens.
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The server's budget in bytes.
    pub(crate) fn budget(&self) -> u64 {
        self.inner.budget.get().copied().unwrap_or(0)
    }

    /// Whether system calls that meet an absent page get EFAULT.
    pub(crate) fn serves_user_mode_only(&self) -> bool {
        self.inner.uffd.source() == Source::UserModeOnly
    }

    /// All descriptors that it has.
    pub(crate) fn descriptors(&self) -> [RawFd; 3] {
        let [uffd, interrupt] = self.inner.uffd.descriptors();
        [self.inner.socket.as_raw_fd(), uffd, interrupt]
    }

    /// The server's counters; `None` when it is gone.
    pub(crate) fn stats(&self) -> Option<Stats> {
        let call = self.call(&Request::Stats, "statistics").ok()?;
        match call.wait(GREETING).ok()?.reply {
            Reply::Stats(stats) => Some(*stats),
            _ => None,
        }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Sends a request about a file called `name`.
    ///
    /// # Errors
    /// [`Error::ServerLost`].
    pub(super) fn call(&self, request: &Request, name: &str) -> Result<Call> {
        self.call_with(request, None, name)
    }

    /// As [`call`](Self::call), with a descriptor.
    ///
    /// # Errors
    /// [`Error::ServerLost`].
    pub(super) fn call_with(
        &self,
        request: &Request,
        descriptor: Option<BorrowedFd<'_>>,
        name: &str,
    ) -> Result<Call> {
        let inner = &self.inner;
        let slot = Arc::new(Slot { name: name.to_owned(), state: Mutex::default(), arrived: Condvar::new() });
        let number = {
            let mut calls = lock(&inner.calls);
            let mut next = || inner.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let number = std::iter::repeat_with(&mut next)
                .find(|n| *n != 0 && *n != u32::MAX && !calls.contains_key(n));
            let number = number.unwrap_or(1);
            calls.insert(number, Arc::clone(&slot));
            number
        };
        let call = Call { inner: Arc::clone(inner), number, slot, since: Instant::now() };
        // After the call is known: who loses the server answers all that are.
        if let Some(lost) = inner.lost.get() {
            return Err(lost.clone());
        }
        match wire::send(inner.socket.as_fd(), &request.encode(number), descriptor, true) {
            // The connection's thread hears why, if the server has said so, and answers all calls.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {}
            sent => sent.map_err(|e| inner.lost_by(e))?,
        }
        Ok(call)
    }

    /// Sends a request that has no answer.
    pub(super) fn tell(&self, request: &Request) {
        if self.inner.lost.get().is_none() {
            // A failure is one of the connection, which its thread sees too. Nobody waits for what is answered.
            let _ = wire::send(self.inner.socket.as_fd(), &request.encode(u32::MAX), None, true);
        }
    }

    /// Lets a file hear what the server says of it.
    pub(super) fn attach(&self, file: Weak<dyn Hears>) {
        let mut known = lock(&self.inner.served);
        known.retain(|other| other.strong_count() > 0);
        known.push(file);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.inner.closing.store(true, Ordering::Release);
        let _ = shutdown(&self.inner.socket, rustix::net::Shutdown::Both);
        self.inner.uffd.interrupt();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Inner {
    /// The error of a server that is gone.
    fn lost_by(&self, source: io::Error) -> Error {
        Error::ServerLost { path: self.path.display().to_string(), source: Arc::new(source) }
    }

    /// Why the server is gone, if it is.
    pub(super) fn lost(&self) -> Option<&Error> {
        self.lost.get()
    }

    /// The error of an answer to another question.
    pub(super) fn nonsense(&self) -> Error {
        self.lost_by(io::Error::new(io::ErrorKind::InvalidData, "it gave an answer to another question"))
    }

    /// Listens until the connection is closed, from here or from there.
    fn listen(&self) {
        let source = loop {
            match wire::receive(&self.socket, true) {
                Ok(Some(received)) => {
                    if let Err(error) = self.hear(received) {
                        break error;
                    }
                }
                Ok(None) => break io::ErrorKind::UnexpectedEof.into(),
                Err(error) => break error,
            }
        };
        let error = self.lost.get_or_init(|| self.lost_by(source)).clone();
        let _ = shutdown(&self.socket, rustix::net::Shutdown::Both);
        let calls = std::mem::take(&mut *lock(&self.calls));
        calls.values().for_each(|slot| slot.arrive(Err(error.clone())));
        if !self.closing.load(Ordering::Acquire) {
            self.all_served().iter().for_each(|served| served.lost(&error));
        }
        self.fail_faults(&error);
    }

    /// Undoes what was done for a caller that has stopped waiting.
    fn unwanted(&self, answer: Result<Answer>) {
        let undo = match answer {
            Ok(Answer { reply: Reply::Opened { file, .. }, .. }) => Request::Close { file },
            Ok(Answer { reply: Reply::Pinned { pin }, .. }) => Request::Unpin { pin },
            _ => return,
        };
        // Without waiting: this thread is the one that makes room. What is not undone ends with the connection.
        let _ = wire::send(self.socket.as_fd(), &undo.encode(u32::MAX), None, false);
    }

    /// Takes a message of the server's.
    fn hear(&self, received: Received) -> io::Result<()> {
        let Received { bytes, descriptors } = received;
        debug_assert!(bytes.len() <= MAX_MESSAGE);
        let own = || self.path.display().to_string();
        let name = |about| match about {
            About::Request(number) => {
                lock(&self.calls).get(&number).map_or_else(own, |slot| slot.name.clone())
            }
            About::File(number) => self.served(number).map_or_else(own, |served| served.name().to_owned()),
        };
        let heard = Heard::decode(&bytes, name);
        let heard =
            heard.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("its message: {}", e.0)))?;
        match heard {
            Heard::Reply(0, Reply::Refused(error)) => return Err(io::Error::other(error.to_string())),
            Heard::Reply(u32::MAX, _) => {} // of a Close that nobody waits for
            Heard::Reply(number, Reply::Working) => {
                let slot = lock(&self.calls).get(&number).map(Arc::clone);
                slot.into_iter().for_each(|slot| slot.gets_on());
            }
            Heard::Reply(number, reply) => {
                let slot = lock(&self.calls).remove(&number);
                let answer = match reply {
                    Reply::Refused(error) => Err(error),
                    reply => Ok(Answer { reply, descriptors }),
                };
                match slot {
                    Some(slot) => slot.arrive(answer),
                    None => self.unwanted(answer),
                }
            }
            Heard::Event(Event::Unmap { file, ranges }) => {
                self.served(file).into_iter().for_each(|served| served.unmap(&ranges));
            }
            Heard::Event(Event::Failed { file, checked, refused, range, error }) => {
                let why = if refused { Failing::Write } else { Failing::Page };
                self.served(file)
                    .into_iter()
                    .for_each(|served| served.failed(checked, range.clone(), &error, why));
            }
            Heard::Event(Event::Ended { file }) => {
                self.served(file).into_iter().for_each(|served| served.ended());
            }
            Heard::Event(Event::Unwritten { file, error }) => {
                self.served(file).into_iter().for_each(|served| served.unwritten(&error));
            }
        }
        Ok(())
    }

    fn served(&self, number: u32) -> Option<Arc<dyn Hears>> {
        self.all_served().into_iter().find(|served| served.number() == number)
    }

    /// All files. None is let go under the lock.
    fn all_served(&self) -> Vec<Arc<dyn Hears>> {
        lock(&self.served).iter().filter_map(Weak::upgrade).collect()
    }

    /// Serves faults when the server is gone, until the connection is closed from here.
    fn fail_faults(&self, error: &Error) {
        let mut faults = Vec::new();
        while !self.closing.load(Ordering::Acquire) {
            if let Err(cause) = self.uffd.wait_faults(&mut faults) {
                print_raw(&format!("mapwright: {error}; faults can't be answered: {cause}\n"));
                std::process::abort();
            }
            for Touch { address, .. } in faults.drain(..) {
                let known = self.all_served();
                let found = known.iter().find_map(|served| Some((served, served.locate(address)?)));
                if let Some((served, (checked, range))) = found {
                    served.failed(checked, range, error, Failing::Server);
                }
            }
        }
    }
}

impl Slot {
    fn gets_on(&self) {
        lock(&self.state).got_on = Some(Instant::now());
        self.arrived.notify_all();
    }

    fn arrive(&self, answer: Result<Answer>) {
        let waker = {
            let mut state = lock(&self.state);
            state.answer.get_or_insert(answer);
            state.waker.take()
        };
        self.arrived.notify_all();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Call {
    /// Waits for the answer: until the server has not said that it gets on for so long, beside what the way takes.
    ///
    /// # Errors
    /// What the server answered; [`Error::TimedOut`], and then it may go on; [`Error::ServerLost`].
    pub(super) fn wait(self, patience: Duration) -> Result<Answer> {
        self.wait_all(patience.min(Duration::from_secs(1 << 32)) + GRACE)
    }

    /// As [`wait`](Self::wait), the way included.
    pub(super) fn wait_all(self, patience: Duration) -> Result<Answer> {
        let mut state = lock(&self.slot.state);
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            let until = state.got_on.unwrap_or(self.since) + patience;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = self.since.elapsed();
                return Err(Error::TimedOut { path: self.slot.name.clone(), offset: 0, len: 0, waited });
            }
            let waited = self.slot.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Future for Call {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.slot.state);
        match state.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        lock(&self.inner.calls).remove(&self.number);
    }
}
