//! Maps of a program that knows nothing of a pager: what the shim of `mapwright run` puts in the place of mmap(2).
//!
//! A [`GuestMap`] is served until something happens that can't be served right: then it is given back to the kernel
//! ([`mapwright_sys::guest`]), from which moment on it is what mmap(2) would have made. A page that can't be had, a server that is gone,
//! and somebody who opens the file for writing are such things: the program sees what it would have seen without a pager. The server keeps
//! writers out until nothing is shown of what they may write (`kernel_lease`).
//!
//! # Invariant
//! The server shows nothing at addresses that are another view's: it is told that a file is closed before the addresses are free
//! (`GuestView::give_back`), it takes messages in order, and a view is registered only when it has answered that it knows it.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mapwright_sys::futex;
pub use mapwright_sys::guest::{GuestView, Identity, Wanted, after_fork, find, find_any, is_empty};
use mapwright_sys::signals::print_raw;

pub use super::book::Record;
use super::connection::{Connection, Hears};
use super::protocol::{Access, Reply, Request};
use super::served::Failing;
use super::server::Server;
use crate::engine::PAGE;
use crate::engine::read_ahead::Advice;
use crate::error::{Error, Result};

/// How long the server may take to open a file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program's connection to the server of its tree.
pub struct Guest {
    connection: Arc<Connection>,
    hooks: Hooks,
}

/// What is called when maps are given back.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Just before it is done, with the reason: nobody can see yet that it is. It must not let the last hold of the map go.
    pub before: fn(&GuestMap, &str),
    /// In the connection's thread, when it was done because the map could not be served any more.
    pub after: fn(&GuestMap),
}

/// The operation of [`Error::Io`] when a file can't be served because no lease can be had on it.
pub use super::protocol::LEASE;

/// Why a map was given back whose file somebody else is about to write.
const ENDED: &str = "somebody opened it for writing";

/// A mapping that a server serves, or served.
pub struct GuestMap {
    number: u32,
    name: String,
    identity: Identity,
    block_size: u64,
    view: GuestView,
    connection: Arc<Connection>,
    hooks: Hooks,
}

impl Guest {
    /// Connects, with descriptors that are not below `lowest`. The thread that listens inherits the calling thread's signal mask.
    ///
    /// # Errors
    /// As for [`Pager::connect`](crate::Pager::connect); [`Error::Unsupported`] where system calls that meet an absent page would fail: a program
    /// that knows of no pager hands them what it has mapped.
    pub fn connect(path: &Path, lowest: RawFd, hooks: Hooks) -> Result<Self> {
        let connection = Connection::open_from(path, lowest)?;
        if connection.serves_user_mode_only() {
            return Err(Error::unsupported(
                "userfaultfd that serves system calls",
                "run as root, set vm.unprivileged_userfaultfd=1, or allow /dev/userfaultfd",
                io::ErrorKind::PermissionDenied.into(),
            ));
        }
        Ok(Self { connection, hooks })
    }

    /// All descriptors of the connection: nobody else in the program may close them.
    pub fn descriptors(&self) -> [RawFd; 3] {
        self.connection.descriptors()
    }

    /// Whether the server is gone.
    pub fn is_lost(&self) -> bool {
        self.connection.inner().lost().is_some()
    }

    /// Maps a file that is open for reading, called `name` in messages.
    ///
    /// # Errors
    /// What the server answers, [`Error::Io`] with the operation [`LEASE`] where no lease can be had; [`Error::ServerLost`];
    /// [`Error::OutOfRange`] for bytes past the end of the file; [`Error::Io`] where address space or mappings are short.
    pub fn map(
        &self,
        file: BorrowedFd<'_>,
        name: &str,
        wanted: &Wanted,
        block: u32,
    ) -> Result<Arc<GuestMap>> {
        let connection = &self.connection;
        let open = Request::Open {
            block_size: block,
            direct: None,
            advice: Advice::Normal,
            access: Access::Leased,
            reserve: 0,
            name: name.to_owned(),
        };
        let answer = connection.call_with(&open, Some(file), name)?.wait(PATIENCE)?;
        let (reply, mut descriptors) = (answer.reply, answer.descriptors);
        let (number, len, capacity, frames) = match (reply, descriptors.pop()) {
            (Reply::Opened { file, len, capacity }, Some(frames)) => (file, len, capacity, frames),
            _ => return Err(connection.inner().nonsense()),
        };
        let close = |error: Error| {
            connection.tell(&Request::Close { file: number });
            error
        };
        let Range { start, end } = wanted.window;
        if end > len.next_multiple_of(PAGE).min(capacity) {
            let path = name.to_owned();
            return Err(close(Error::OutOfRange { path, offset: start, end, file_len: len }));
        }
        let failed = |e| Error::io("map", name.to_owned(), start, end - start, e);
        let uffd = Arc::clone(&connection.inner().uffd);
        let view = GuestView::new(std::os::fd::AsFd::as_fd(&frames), capacity, file, wanted, uffd);
        let view = view.map_err(|e| close(failed(e)))?;
        let map = Arc::new(GuestMap {
            number,
            name: name.to_owned(),
            identity: wanted.identity,
            block_size: block.into(),
            view,
            connection: Arc::clone(connection),
            hooks: self.hooks,
        });
        connection.attach(Arc::downgrade(&map) as Weak<dyn Hears>);
        let show = Request::Show { file: number, checked: false, address: map.view.base() as u64 };
        match connection.call(&show, name)?.wait(PATIENCE)?.reply {
            Reply::Done => {}
            _ => return Err(connection.inner().nonsense()),
        }
        map.view.serve().map_err(failed)?;
        if let Some(lost) = connection.inner().lost() {
            map.lost(lost); // its end may have been told before the view was there
        }
        Ok(map)
    }
}

/// Does `work`, such as to stop this process, while `server` serves no maps of programs that know of no pager: what it has served is given
/// back to the kernel first, so that nobody who writes the files has to wait for a server that can't answer.
pub fn without_leases<T>(server: &Server, work: impl FnOnce() -> T) -> T {
    server.without_leases(work)
}

/// Waits for so long: what is preloaded into programs has no sleep of its own.
pub fn pause(time: Duration) {
    futex::wait(&AtomicU32::new(0), 0, Some(time));
}

/// Has a server keep a book of what it does for each file and each process from now on.
pub fn keep_a_book(server: &Server) {
    server.keep_a_book();
}

/// What the book of a server says; nothing, if it keeps none.
pub fn read_book(server: &Server) -> Vec<Record> {
    server.read_book()
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl GuestMap {
    /// What mmap(2) returns.
    pub fn address(&self) -> usize {
        self.view.address()
    }

    /// Which bytes of the file it shows.
    pub fn window(&self) -> Range<u64> {
        self.view.window()
    }

    /// Which file it is of.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What the file was called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it the kernel's own mapping, at the same addresses. When this returns it is that, whoever did it.
    ///
    /// # Errors
    /// `ENOMEM` when the process has as many mappings as it may have; then it is served still.
    pub fn give_back(&self, why: &str) -> io::Result<bool> {
        self.view.give_back(|| {
            self.connection.tell(&Request::Close { file: self.number });
            (self.hooks.before)(self, why);
        })
    }

    /// Makes it the kernel's own mapping, because nobody serves it any more.
    fn must_give_back(&self, why: &str) {
        match self.give_back(why) {
            Ok(true) => (self.hooks.after)(self),
            Ok(false) => {}
            Err(cause) => {
                // Threads wait for pages that will never come, and nothing can tell them.
                print_raw(&format!(
                    "mapwright: {}: {why}; the map could not be given back: {cause}\n",
                    self.name
                ));
                std::process::abort();
            }
        }
    }

    /// Whether it is the kernel's by now.
    pub fn is_given_back(&self) -> bool {
        self.view.is_given()
    }

    /// Passes advice on for the file.
    pub fn advise(&self, advice: Advice) {
        self.connection.tell(&Request::Advise { file: self.number, advice });
    }

    /// Has addresses of the window read ahead, as far as they are inside.
    pub fn will_need(&self, addresses: Range<usize>) {
        let window = self.view.window();
        let at = |address: usize| address.saturating_sub(self.view.base()) as u64;
        let range = at(addresses.start).max(window.start)..at(addresses.end).min(window.end);
        if !range.is_empty() {
            self.connection.tell(&Request::WillNeed { file: self.number, range });
        }
    }
}

impl Hears for GuestMap {
    fn number(&self) -> u32 {
        self.number
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn locate(&self, address: usize) -> Option<(bool, Range<u64>)> {
        let start = self.view.locate(address)? / self.block_size * self.block_size;
        Some((false, start..start + self.block_size))
    }

    fn unmap(&self, ranges: &[Range<u64>]) {
        let capacity = self.view.capacity();
        let inside = |range: &Range<u64>| {
            let start = range.start.min(capacity) / PAGE * PAGE;
            start..range.end.min(capacity).next_multiple_of(PAGE).max(start)
        };
        let ranges: Vec<Range<u64>> = ranges.iter().map(inside).collect();
        let _ = self.view.unmap(&ranges); // it is advice
    }

    fn failed(&self, _: bool, _: Range<u64>, error: &Error, _: Failing) {
        self.must_give_back(&error.to_string());
    }

    fn ended(&self) {
        self.must_give_back(ENDED);
    }

    fn lost(&self, error: &Error) {
        self.must_give_back(&error.to_string());
    }
}

impl Drop for GuestMap {
    fn drop(&mut self) {
        if !self.view.is_given() {
            self.connection.tell(&Request::Close { file: self.number }); // before its addresses are free
        }
    }
}

impl std::fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMap").field("name", &self.name).field("view", &self.view).finish_non_exhaustive()
    }
}
