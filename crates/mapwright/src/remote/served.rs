//! A file mapped by a client: views of the server's frames.
//!
//! Checked scopes work as those of the engine do (`engine::checked`): they look at a view of their own, where a page that can't
//! be had reads as zeros, and every scope during which anything was zero returns the error.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use mapwright_sys::futex;
use mapwright_sys::remote::LentFrames;
use mapwright_sys::signals::print_raw;

use super::connection::{Answer, Call, Connection, Hears};
use super::lease::lock;
use super::protocol::{Access, MAX_RANGES, Reply, Request};
use crate::engine::PAGE;
use crate::engine::host::check_uffd_for_writing;
use crate::engine::read_ahead::Advice;
use crate::engine::resize::parts_of_copy;
use crate::error::{Error, Result};
use crate::stores::{FileStore, Store as _};

/// Bytes copied under one pin, at most.
const COPY: u64 = 256 << 10;
/// And at most this part of the server's budget, because a client may hold a quarter pinned: so many threads copy at once.
const COPY_SHARE: u64 = 64;
/// Between two tries to pin what is to be copied, when others hold all that may be pinned.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
const MAX_PAUSE: Duration = Duration::from_millis(50);
/// How long closing waits for the server.
const FAREWELL: Duration = Duration::from_secs(1);

/// How to open a file of a server.
pub(crate) struct ServedSpec {
    pub(crate) block_size: u32,
    pub(crate) direct: Option<bool>,
    pub(crate) advice: Advice,
    pub(crate) access: Access,
    /// Bytes of address space, for growth.
    pub(crate) reserve: u64,
    pub(crate) deadline: Duration,
}

/// A file that a server serves. Dropping it closes it.
pub(crate) struct Served {
    connection: Arc<Connection>,
    len: u64,
    deadline: Duration,
    checked_shown: Mutex<bool>,
    views: Arc<Views>,
}

/// What the connection's thread knows of a file: it may be the last to hold this, but never the file.
pub(super) struct Views {
    number: u32,
    name: String,
    block_size: u64,
    frames: Arc<LentFrames>,
    scopes: Mutex<Scopes>,
    /// What pins span, from before they are asked for until they are given back. Held while ranges are taken out of the view: the
    /// server may have asked for that before it has shown what is pinned.
    held: Mutex<Vec<Range<u64>>>,
}

/// Why a page can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    /// The server could not bring it.
    Page,
    /// It may not be written, because too much can't be written back. It may be shown.
    Write,
    /// The server is gone.
    Server,
}

#[derive(Default)]
struct Scopes {
    active: usize,
    failures: u64,
    error: Option<Error>,
    zeroed: Vec<Range<u64>>,
}

/// One checked scope.
pub(crate) struct ServedScope {
    views: Arc<Views>,
    failures_before: u64,
    ended: bool,
}

/// A pin that the server holds. Dropping it gives it back.
pub(crate) struct ServedPin {
    connection: Arc<Connection>,
    pin: u64,
    _hold: Hold,
}

impl Drop for ServedPin {
    fn drop(&mut self) {
        self.connection.tell(&Request::Unpin { pin: self.pin });
    }
}

/// Keeps a range in the view, whatever the server asks.
struct Hold {
    views: Arc<Views>,
    span: Range<u64>,
}

impl Hold {
    /// Of all that lies between the first and the last of some ranges.
    fn new(views: &Arc<Views>, ranges: &[Range<u64>]) -> Self {
        let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        lock(&views.held).push(start..end);
        Self { views: Arc::clone(views), span: start..end }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.views.held);
        if let Some(index) = held.iter().rposition(|span| *span == self.span) {
            held.swap_remove(index);
        }
    }
}

impl Served {
    /// Opens a file that this process has opened.
    ///
    /// # Errors
    /// What the server answers; [`Error::ServerLost`]; [`Error::Io`] if the frames can't be mapped.
    pub(crate) fn open(
        connection: &Arc<Connection>,
        store: &FileStore,
        spec: &ServedSpec,
    ) -> Result<Arc<Self>> {
        let name = store.name();
        let ServedSpec { block_size, direct, advice, access, reserve, deadline } = *spec;
        if access.writes() {
            check_uffd_for_writing(&connection.inner().uffd)?;
        }
        let open = Request::Open { block_size, direct, advice, access, reserve, name: name.clone() };
        let call = connection.call_with(&open, Some(store.as_fd()), &name)?;
        let Answer { reply, mut descriptors } = call.wait(deadline)?;
        let (number, len, capacity, frames) = match (reply, descriptors.pop()) {
            (Reply::Opened { file, len, capacity }, Some(fd)) => (file, len, capacity, fd),
            _ => return Err(connection.inner().nonsense()),
        };
        let close = |error| {
            connection.tell(&Request::Close { file: number });
            error
        };
        if len > capacity {
            return Err(close(connection.inner().nonsense()));
        }
        let failed = |e| close(Error::io("map", name.clone(), 0, capacity, e));
        let frames = LentFrames::new(frames, capacity, access.writes(), Arc::clone(&connection.inner().uffd))
            .map_err(failed)?;
        let frames = Arc::new(frames);
        let views = Arc::new(Views {
            number,
            name,
            block_size: block_size.into(),
            frames,
            scopes: Mutex::default(),
            held: Mutex::default(),
        });
        connection.attach(Arc::downgrade(&views) as Weak<dyn Hears>);
        let connection = Arc::clone(connection);
        let served = Arc::new(Self { connection, len, deadline, checked_shown: Mutex::new(false), views });
        served.show(false)?;
        Ok(served)
    }

    /// Tells the server where a view lies.
    fn show(&self, checked: bool) -> Result<()> {
        let address = self.frames().address(checked);
        let address =
            address.map_err(|e| Error::io("map", self.views.name.clone(), 0, self.frames().capacity(), e))?;
        let show = Request::Show { file: self.views.number, checked, address: address as u64 };
        self.ask(&show)?.map_done(self)
    }

    /// Sends a request and waits for the answer.
    fn ask(&self, request: &Request) -> Result<Answer> {
        self.connection.call(request, &self.views.name)?.wait(self.deadline)
    }

    pub(crate) fn name(&self) -> &str {
        &self.views.name
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn frames(&self) -> &Arc<LentFrames> {
        &self.views.frames
    }

    /// Enters a checked scope.
    ///
    /// # Errors
    /// What making the view meets; the error of a page that reads as zeros for scopes that have not ended.
    pub(crate) fn enter(&self) -> Result<ServedScope> {
        {
            let mut shown = lock(&self.checked_shown);
            if !*shown {
                self.show(true)?;
                *shown = true;
            }
        }
        let mut scopes = lock(&self.views.scopes);
        if let (false, Some(error)) = (scopes.zeroed.is_empty(), &scopes.error) {
            return Err(error.clone());
        }
        scopes.active += 1;
        let failures_before = scopes.failures;
        Ok(ServedScope { views: Arc::clone(&self.views), failures_before, ended: false })
    }

    /// Asks for pins on ranges.
    ///
    /// # Errors
    /// [`Error::ServerLost`].
    fn ask_for_pins(&self, ranges: &[Range<u64>], in_order: bool, writes: bool) -> Result<(Call, Hold)> {
        if ranges.len() > MAX_RANGES {
            let what = format!("{}: {} ranges of a served file at once", self.views.name, ranges.len());
            return Err(Error::invalid(what, "ask for at most 1024 at a time"));
        }
        let pin = Request::Pin { file: self.views.number, in_order, writes, ranges: ranges.to_vec() };
        let hold = Hold::new(&self.views, ranges);
        Ok((self.connection.call(&pin, &self.views.name)?, hold))
    }

    fn pin_of(&self, answer: Answer, hold: Hold) -> Result<ServedPin> {
        match answer.reply {
            Reply::Pinned { pin } => {
                Ok(ServedPin { connection: Arc::clone(&self.connection), pin, _hold: hold })
            }
            _ => Err(self.connection.inner().nonsense()),
        }
    }

    /// Makes ranges resident and holds them.
    ///
    /// # Errors
    /// What the server answers; [`Error::ServerLost`]; [`Error::Invalid`] for more than 1024 ranges.
    pub(crate) fn pin(&self, ranges: &[Range<u64>], in_order: bool) -> Result<ServedPin> {
        let (call, hold) = self.ask_for_pins(ranges, in_order, false)?;
        self.pin_of(call.wait(self.deadline)?, hold)
    }

    /// As [`pin`](Self::pin), as a future.
    ///
    /// # Errors
    /// As for `pin`.
    pub(crate) async fn pin_async(&self, ranges: &[Range<u64>], in_order: bool) -> Result<ServedPin> {
        let (call, hold) = self.ask_for_pins(ranges, in_order, false)?;
        self.pin_of(call.await?, hold)
    }

    /// Cuts a copy into parts that are pinned one after the other: offset in the file, range in the buffer.
    fn parts(&self, offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        let block = self.views.block_size;
        let step = (COPY.min(self.connection.budget() / COPY_SHARE) / block).max(1) * block;
        parts_of_copy(offset, len, step)
    }

    /// Pins what is to be copied. As long as that is too much beside what others hold, it waits: until the deadline.
    ///
    /// # Errors
    /// As for [`pin`](Self::pin).
    fn pin_to_copy(&self, at: u64, len: usize, writes: bool) -> Result<ServedPin> {
        let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
        let range = at..at + len as u64;
        loop {
            let (call, hold) = self.ask_for_pins(std::slice::from_ref(&range), true, writes)?;
            match call.wait(self.deadline) {
                Err(Error::BudgetExhausted { .. }) if since.elapsed() < self.deadline => {
                    drop(hold);
                    futex::wait(&AtomicU32::new(0), 0, Some(pause)); // the server does not say when
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                answer => return self.pin_of(answer?, hold),
            }
        }
    }

    /// Copies bytes out of the map's own slice, held part by part.
    ///
    /// # Errors
    /// As for [`pin`](Self::pin).
    pub(crate) fn read_at(&self, offset: u64, from: &[u8], into: &mut [u8]) -> Result<()> {
        for (at, part) in self.parts(offset, into.len()) {
            let held = self.pin_to_copy(at, part.len(), false)?;
            into[part.clone()].copy_from_slice(&from[part]);
            drop(held);
        }
        Ok(())
    }

    /// Copies bytes in, part by part.
    ///
    /// # Errors
    /// As for [`pin`](Self::pin); what comes before the failing part has been copied then.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        for (at, part) in self.parts(offset, bytes.len()) {
            let held = self.pin_to_copy(at, part.len(), true)?;
            self.frames().copy_in(at, &bytes[part]);
            drop(held);
        }
        Ok(())
    }

    /// Makes what was written to a range durable.
    ///
    /// # Errors
    /// What the server answers; [`Error::ServerLost`].
    pub(crate) fn flush(&self, range: Range<u64>) -> Result<()> {
        self.ask(&Request::Flush { file: self.views.number, range })?.map_done(self)
    }

    /// Changes the length.
    ///
    /// # Errors
    /// What the server answers; [`Error::ServerLost`].
    pub(crate) fn resize(&self, len: u64) -> Result<()> {
        self.ask(&Request::Resize { file: self.views.number, len })?.map_done(self)
    }

    /// Takes the error of an earlier write-back, if there is one that nobody took.
    pub(crate) fn acknowledge(&self) -> Option<Error> {
        self.ask(&Request::Acknowledge { file: self.views.number }).err()
    }

    /// Brings a range into the server's memory.
    ///
    /// # Errors
    /// What the server answers; [`Error::ServerLost`].
    pub(crate) fn prefetch(&self, range: Range<u64>) -> Result<()> {
        self.ask(&Request::Prefetch { file: self.views.number, range })?.map_done(self)
    }

    /// As [`prefetch`](Self::prefetch), as a future.
    ///
    /// # Errors
    /// As for `prefetch`.
    pub(crate) async fn prefetch_async(&self, range: Range<u64>) -> Result<()> {
        let call =
            self.connection.call(&Request::Prefetch { file: self.views.number, range }, &self.views.name)?;
        call.await?.map_done(self)
    }

    pub(crate) fn will_need(&self, range: Range<u64>) {
        self.connection.tell(&Request::WillNeed { file: self.views.number, range });
    }

    pub(crate) fn advise(&self, advice: Advice) {
        self.connection.tell(&Request::Advise { file: self.views.number, advice });
    }

    /// Drops what nobody holds of a range; bytes freed, 0 if the server can't be asked.
    pub(crate) fn evict(&self, range: Range<u64>) -> u64 {
        self.count(&Request::Evict { file: self.views.number, range })
    }

    /// Bytes that the server holds of the file; 0 if it can't be asked.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.count(&Request::Resident { file: self.views.number })
    }

    fn count(&self, request: &Request) -> u64 {
        match self.ask(request) {
            Ok(Answer { reply: Reply::Count { bytes }, .. }) => bytes,
            _ => 0,
        }
    }
}

impl Hears for Views {
    fn number(&self) -> u32 {
        self.number
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn locate(&self, address: usize) -> Option<(bool, Range<u64>)> {
        let (checked, offset) = self.frames.locate(address)?;
        let start = offset / self.block_size * self.block_size;
        Some((checked, start..start + self.block_size))
    }

    fn unmap(&self, ranges: &[Range<u64>]) {
        let held = lock(&self.held);
        let is_free = |range: &Range<u64>| {
            held.iter().all(|span| {
                let span = self.whole_blocks(span);
                span.end <= range.start || range.end <= span.start
            })
        };
        let free: Vec<Range<u64>> = ranges.iter().map(|range| self.clamp(range)).filter(is_free).collect();
        let _ = self.frames.unmap(&free); // it is advice
    }

    fn failed(&self, checked: bool, range: Range<u64>, error: &Error, why: Failing) {
        let range = self.clamp(&range);
        let delivered = if checked { self.fail_in_scope(range, error) } else { self.fail(range, error, why) };
        if let Err(cause) = delivered {
            // A thread waits for a page that will never come, and nothing can tell it.
            print_raw(&format!("mapwright: {error}; SIGBUS could not be raised: {cause}\n"));
            std::process::abort();
        }
    }

    fn ended(&self) {} // it was not opened under a lease

    fn unwritten(&self, _: &Error) {} // nor this

    fn lost(&self, _: &Error) {
        // They touch their pages again, and get the signal.
        self.frames.wake(0..self.frames.capacity());
    }
}

impl Views {
    /// The file's bytes that lie in whole pages of a range.
    fn pages(&self, range: Range<u64>) -> Range<u64> {
        let capacity = self.frames.capacity();
        range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE).min(capacity)
    }

    /// The blocks that hold a range.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.block_size * self.block_size..range.end.next_multiple_of(self.block_size)
    }

    /// What of a range that another process names is inside.
    fn clamp(&self, range: &Range<u64>) -> Range<u64> {
        let capacity = self.frames.capacity();
        let range = self.pages(range.start.min(capacity)..range.end.min(capacity));
        range.start.min(range.end)..range.end
    }

    fn fail(&self, range: Range<u64>, error: &Error, why: Failing) -> std::io::Result<()> {
        let what = match why {
            Failing::Write => {
                "was written to at a page that cannot be; SIGBUS follows (use MapMut::write_at or \
                 MapMut::checked_mut to get the error as a value)"
            }
            Failing::Page | Failing::Server => {
                "was touched at a page that cannot be read; SIGBUS follows (use Map::get or Map::checked to get the \
                 error as a value)"
            }
        };
        print_raw(&format!("mapwright: {}: a slice {what}: {error}\n", self.name));
        match why {
            Failing::Page => self.frames.poison(false, range),
            Failing::Write => self.frames.poison_shown(range),
            Failing::Server => self.frames.poison_unserved(false, range),
        }
    }

    fn fail_in_scope(&self, range: Range<u64>, error: &Error) -> std::io::Result<()> {
        let mut scopes = lock(&self.scopes);
        if scopes.active == 0 {
            drop(scopes);
            self.frames.wake(range); // told late: whoever waits there now asks again
            return Ok(());
        }
        // Before the zeros are shown: a scope that saw them sees this.
        scopes.failures += 1;
        scopes.error.get_or_insert_with(|| error.clone());
        scopes.zeroed.push(range.clone());
        self.frames.zero(range)
    }
}

impl Answer {
    /// Nothing but the word that it is done.
    fn map_done(self, of: &Served) -> Result<()> {
        match self.reply {
            Reply::Done => Ok(()),
            _ => Err(of.connection.inner().nonsense()),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.connection.inner().lost().is_some() {
            return;
        }
        let close = self.connection.call(&Request::Close { file: self.views.number }, &self.views.name);
        let closed = close.and_then(|call| call.wait(FAREWELL));
        if matches!(closed, Err(Error::TimedOut { .. })) {
            // It may yet show pages at these addresses, which then must not be another map's.
            std::mem::forget(Arc::clone(&self.views));
        }
    }
}

impl ServedScope {
    /// Leaves the scope.
    ///
    /// # Errors
    /// The error of the first page that read as zeros while this scope was active.
    pub(crate) fn end(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let mut scopes = lock(&self.views.scopes);
        scopes.active -= 1;
        let failed = scopes.failures > self.failures_before || !scopes.zeroed.is_empty();
        let outcome = scopes.error.clone().filter(|_| failed).map_or(Ok(()), Err);
        if scopes.active == 0 {
            let frames = &self.views.frames;
            scopes.zeroed.retain(|range| frames.restore(range.clone()).is_err());
            if scopes.zeroed.is_empty() {
                scopes.error = None;
            }
        }
        outcome
    }
}

impl Drop for ServedScope {
    fn drop(&mut self) {
        // The closure panicked: that is reported already.
        let _ = self.leave();
    }
}
