//! Maps of a program that knows nothing of a pager: what the shim of `mapwright run` puts in the place of mmap(2).
//!
//! A [`GuestMap`] is served until something happens that can't be served right: then it is given back to the kernel
//! ([`mapwright_sys::guest`]), from which moment on it is what mmap(2) would have made. A page that can't be had, a server that is gone,
//! and somebody who opens the file for writing are such things: the program sees what it would have seen without a pager. The server keeps
//! writers out until nothing is shown of what they may write (`kernel_lease`).
//!
//! A file that its program has open alone may be written by the map ([`MapKind::Alone`]). Then the file is older than what is shown, and giving the map back begins at
//! the server, which ends the lease: it brings what was written into the file, and tells this process, whose connection's thread does the rest. Whoever wants the map given back waits for
//! that thread. Where what was written is lost, the map is broken off: [`GuestView::break_off`].
//!
//! A private map that may be written ([`MapKind::Copies`]) is given back with the pages that the program has changed. For that the server has closed its view
//! first: it has done so when it tells of a failure or of the end of a lease, and else is asked to, and waited for.
//!
//! # Invariant
//! The server shows nothing at addresses that are another view's: it is told that a file is closed before the addresses are free
//! (`GuestView::give_back`), it takes messages in order, and a view is registered only when it has answered that it knows it.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use mapwright_sys::futex;
use mapwright_sys::guest::can_keep_copies;
pub use mapwright_sys::guest::{
    GuestView, Identity, MapKind, Wanted, after_fork, are_twins, find, find_any, find_copies, is_empty,
};
pub use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::signals::print_raw;

pub use super::book::Record;
use super::connection::{Answer, Connection, Hears};
use super::protocol::{Access, Reply, Request};
use super::served::Failing;
use super::server::Server;
use crate::engine::PAGE;
use crate::engine::read_ahead::Advice;
use crate::error::{Error, Result};

/// How long the server may take to open a file.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to reach a server whose socket takes no message.
const PAUSE: Duration = Duration::from_millis(10);

/// A program's connection to the server of its tree.
pub struct Guest {
    connection: Arc<Connection>,
    hooks: Hooks,
    lowest: RawFd,
    pagemap: OnceLock<Option<Arc<Pagemap>>>,
}

/// A map is served.
const SERVED: u32 = 0;
/// It is the kernel's.
const GIVEN: u32 = 1;
/// It is nobody's: what it showed is lost.
const BROKEN: u32 = 2;
/// It could not be served, and nobody has learned where it is.
const NEVER: u32 = 3;

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
    /// Bytes of the file when it was opened, which it has for as long as it is served.
    len: u64,
    view: GuestView,
    /// What has become of it.
    settled: AtomicU32,
    /// Why the program wants it given back, if it does.
    why: OnceLock<String>,
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
        Ok(Self { connection, hooks, lowest, pagemap: OnceLock::new() })
    }

    /// How changed pages of private maps are found; nothing where that can't be done (before Linux 6.7, without `/proc`, or in a process that
    /// may not look at itself). It has a descriptor of its own, from the first call on.
    pub fn pagemap(&self) -> Option<&Arc<Pagemap>> {
        let open = || {
            let pagemap = Pagemap::open().and_then(|pagemap| pagemap.lifted(self.lowest)).ok()?;
            can_keep_copies(&pagemap).then(|| Arc::new(pagemap))
        };
        self.pagemap.get_or_init(open).as_ref()
    }

    /// All descriptors of the connection: nobody else in the program may close them.
    pub fn descriptors(&self) -> [RawFd; 3] {
        self.connection.descriptors()
    }

    /// Whether the server is gone.
    pub fn is_lost(&self) -> bool {
        self.connection.inner().lost().is_some()
    }

    /// Maps a file that is open for reading, called `name` in messages; for [`MapKind::Alone`] one that is open for reading and writing.
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
            access: if wanted.kind.is_alone() { Access::Alone } else { Access::Leased },
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
            len,
            view,
            settled: SERVED.into(),
            why: OnceLock::new(),
            connection: Arc::clone(connection),
            hooks: self.hooks,
        });
        connection.attach(Arc::downgrade(&map) as Weak<dyn Hears>);
        let show = Request::Show { file: number, checked: false, address: map.view.base() as u64 };
        let shown = match connection.call(&show, name).and_then(|call| call.wait(PATIENCE)) {
            Ok(Answer { reply: Reply::Done, .. }) => map.view.serve().map_err(failed),
            Ok(_) => Err(connection.inner().nonsense()),
            Err(error) => Err(error),
        };
        if let Err(error) = shown {
            // Its end may have been heard of meanwhile: then it is the kernel's, where it is.
            return if map.settle(NEVER) { Err(error) } else { Ok(map) };
        }
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

    /// How it is mapped.
    pub fn kind(&self) -> MapKind {
        self.view.kind()
    }

    /// Makes it the kernel's own mapping, at the same addresses. When this returns it is that, whoever did it, or lost. One of a file that the program has
    /// alone waits for the server, and all maps of that file are given back with it.
    ///
    /// # Errors
    /// `ENOMEM` when the process has as many mappings as it may have; then it is served still.
    pub fn give_back(&self, why: &str) -> io::Result<()> {
        if self.kind().is_alone() {
            self.wait_for_its_end(why);
        } else if self.kind().has_copies() && !self.view.is_given() {
            // What can refuse does so before the server is told, after which there is no way back.
            drop(self.view.prepare(true)?);
            self.close();
            let _ = self.give_back_here(why, true).unwrap_or_else(|cause| self.fail(why, &cause));
        } else {
            self.give_back_here(why, true)?;
        }
        Ok(())
    }

    /// As [`give_back`](Self::give_back), of one that the program is about to unmap as a whole: what it has changed of a private map is not kept.
    ///
    /// # Errors
    /// As there.
    pub fn give_up(&self, why: &str) -> io::Result<()> {
        if !self.kind().has_copies() {
            return self.give_back(why);
        }
        self.give_back_here(why, false).map(drop)
    }

    /// Has the server show nothing in the view any more, however long that takes; or learns that there is no server.
    fn close(&self) {
        let close = Request::Close { file: self.number };
        loop {
            let answer = self.connection.call(&close, &self.name).map(|call| call.wait(PATIENCE));
            match answer {
                Ok(Err(Error::TimedOut { .. })) => {} // it is stopped, or very busy
                Ok(_) => return,                      // also if it was closed before
                Err(_) if self.connection.inner().lost().is_some() => return,
                Err(_) => pause(PAUSE),
            }
        }
    }

    fn wait_for_its_end(&self, why: &str) {
        if self.settled.load(Ordering::Acquire) == SERVED {
            let _ = self.why.set(why.to_owned());
            self.connection.tell(&Request::End { file: self.number });
        }
        self.wait_settled();
    }

    /// The connection's thread settles it, also when the server is gone.
    fn wait_settled(&self) {
        while self.settled.load(Ordering::Acquire) == SERVED {
            futex::wait(&self.settled, SERVED, None);
        }
    }

    /// The step itself. The server has closed the file, if the program's own pages are to be kept.
    fn give_back_here(&self, why: &str, with_copies: bool) -> io::Result<bool> {
        let prepared = self.view.prepare(with_copies)?;
        let given = self.view.give_back(prepared, || {
            self.connection.tell(&Request::Close { file: self.number });
            (self.hooks.before)(self, why);
        })?;
        Ok(given && self.settle(GIVEN))
    }

    /// Whether it was this that settled it.
    fn settle(&self, how: u32) -> bool {
        let settled = self.settled.compare_exchange(SERVED, how, Ordering::AcqRel, Ordering::Acquire).is_ok();
        futex::wake(&self.settled);
        settled
    }

    /// Takes it away, because what was written there is lost.
    fn break_off(&self, error: &Error) {
        if self.settled.load(Ordering::Acquire) != SERVED {
            return;
        }
        print_raw(&format!(
            "mapwright: {}: what the program wrote there since it was last flushed is lost: {error}\n",
            self.name
        ));
        (self.hooks.before)(self, &error.to_string());
        self.connection.tell(&Request::Close { file: self.number });
        self.view.break_off();
        if self.settle(BROKEN) {
            (self.hooks.after)(self);
        }
    }

    /// Makes what was written to some of its addresses durable; of a map that is not written there is nothing to do.
    ///
    /// # Errors
    /// What the server meets.
    pub fn flush(&self, addresses: Range<usize>) -> Result<()> {
        let Range { start, end } = self.inside(addresses);
        let range = start..end.min(self.len);
        if !self.kind().is_alone() || range.is_empty() {
            return Ok(());
        }
        let lost = || {
            let what = format!("{}: what was written there is lost", self.name);
            Err(Error::invalid(what, "open the file anew"))
        };
        match self.settled.load(Ordering::Acquire) {
            SERVED => {}
            BROKEN => return lost(),
            _ => return Ok(()),
        }
        let request = Request::Flush { file: self.number, range };
        // As long as that takes: fsync(2) has no limit either.
        match self.connection.call(&request, &self.name).and_then(|call| call.wait(Duration::MAX)) {
            // It is not open any more, and the word of its end is on its way.
            Err(Error::Invalid { .. } | Error::ServerLost { .. }) => {
                self.wait_settled();
                if self.is_lost() { lost() } else { Ok(()) }
            }
            flushed => flushed.map(drop),
        }
    }

    /// Bytes of the window at some addresses.
    fn inside(&self, addresses: Range<usize>) -> Range<u64> {
        let window = self.view.window();
        let at = |address: usize| address.saturating_sub(self.view.base()) as u64;
        at(addresses.start).max(window.start)..at(addresses.end).min(window.end)
    }

    /// Makes it the kernel's own mapping, because nobody serves it any more.
    fn must_give_back(&self, why: &str) {
        match self.give_back_here(why, true) {
            Ok(true) => (self.hooks.after)(self),
            Ok(false) => {}
            Err(cause) => self.fail(why, &cause),
        }
    }

    /// Threads wait for pages that will never come, and nothing can tell them.
    fn fail(&self, why: &str, cause: &io::Error) -> ! {
        print_raw(&format!("mapwright: {}: {why}; the map could not be given back: {cause}\n", self.name));
        std::process::abort();
    }

    /// Whether it is the kernel's by now.
    pub fn is_given_back(&self) -> bool {
        self.view.is_given()
    }

    /// Whether what was written there is lost, and whoever touches it gets a signal.
    pub fn is_lost(&self) -> bool {
        self.settled.load(Ordering::Acquire) == BROKEN
    }

    /// Passes advice on for the file.
    pub fn advise(&self, advice: Advice) {
        self.connection.tell(&Request::Advise { file: self.number, advice });
    }

    /// Has addresses of the window read ahead, as far as they are inside.
    pub fn will_need(&self, addresses: Range<usize>) {
        let range = self.inside(addresses);
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

    fn failed(&self, _: bool, _: Range<u64>, error: &Error, why: Failing) {
        if !self.kind().is_alone() {
            // The server has closed its view before it told.
            return self.must_give_back(&error.to_string());
        }
        if why == Failing::Server {
            return self.break_off(error);
        }
        let _ = self.why.set(error.to_string());
        self.connection.tell(&Request::End { file: self.number }); // and the kernel meets the same, or better
    }

    fn ended(&self) {
        self.must_give_back(self.why.get().map_or(ENDED, String::as_str));
    }

    fn unwritten(&self, error: &Error) {
        self.break_off(error);
    }

    fn lost(&self, error: &Error) {
        // What is not served yet nobody has written.
        if self.kind().is_alone() && self.view.is_served() {
            self.break_off(error);
        } else {
            self.must_give_back(&error.to_string());
        }
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
