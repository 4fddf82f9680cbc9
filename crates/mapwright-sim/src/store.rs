//! A simulated store: in memory, and as bad as it is told to be.
//!
//! Every call goes: yield, hang (if told), latency, faults, then the operation, in pieces where a real one is not atomic.
//! All draws come from the run's generator.
//!
//! Locks: `SimStore::inner`, never held over a yield point.

use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mapwright::stores::{Read, ReadDone, Store, Version, Write, WriteDone};

use crate::handle::SimHandle;
use crate::page_cache::PageCache;
use crate::rng::Rng;
use crate::scheduler::Core;
use crate::state::On;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `read_at`, and each read of `read_many`.
    Read,
    /// `write_at`, and each write of `write_many`.
    Write,
    /// `sync`.
    Sync,
    /// `set_len`.
    SetLen,
    /// `version`.
    Version,
}

/// How bad a store is. The default is a perfect local one, without latency.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What it is called.
    pub name: String,
    /// Whether it can be written.
    pub writable: bool,
    /// What `is_local` says.
    pub local: bool,
    /// Most simulated time a call takes; zero for none.
    pub max_latency: Duration,
    /// How often, of 1000 reads or writes of more than one byte, only a part is done.
    pub short_per_1000: u32,
    /// How often, of 1000 calls, the answer is a transient error.
    pub transient_per_1000: u32,
    /// How often, of 1000 calls except `version`, the answer is EIO.
    pub error_per_1000: u32,
    /// Largest length: writes past it get ENOSPC.
    pub capacity: u64,
    /// A failed sync may lose unsynced writes, now or at a crash after a later sync that succeeds.
    pub lossy_failed_sync: bool,
    /// Unsynced writes may become durable at any time, in any order.
    pub write_out_early: bool,
    /// The version changes with one's own writes too, as a file's modification time does.
    pub own_writes_change_version: bool,
    /// `lock` finds that somebody else has it.
    pub locked: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            name: "simulated".to_owned(),
            writable: true,
            local: true,
            max_latency: Duration::ZERO,
            short_per_1000: 0,
            transient_per_1000: 0,
            error_per_1000: 0,
            capacity: u64::MAX,
            lossy_failed_sync: false,
            write_out_early: false,
            own_writes_change_version: true,
            locked: false,
        }
    }
}

impl StoreOptions {
    /// Latency, short calls and transient errors: an engine has to give right results and no error over such a store.
    pub fn nasty() -> Self {
        Self {
            max_latency: Duration::from_micros(200),
            short_per_1000: 100,
            transient_per_1000: 50,
            write_out_early: true,
            ..Self::default()
        }
    }
}

struct Inner {
    options: StoreOptions,
    cache: PageCache,
    modification: u128,
    hanging: bool,
    planned: Vec<Planned>,
    counts: [u64; 5],
}

/// What is to happen to one later call.
struct Planned {
    op: Op,
    /// How many calls of this kind go as usual first.
    after: u64,
    /// The error it gives; none for a call that hangs.
    errno: Option<i32>,
}

/// A simulated store.
pub struct SimStore {
    core: Arc<Core>,
    number: usize,
    inner: Mutex<Inner>,
}

impl SimStore {
    /// A store with `contents`, which are durable.
    pub fn new(sim: &SimHandle, contents: Vec<u8>, options: StoreOptions) -> Arc<Self> {
        let core = Arc::clone(sim.core());
        let number = {
            let state = &mut *core.lock();
            state.stores += 1;
            state.stores
        };
        let inner = Inner {
            options,
            cache: PageCache::new(contents),
            modification: 1,
            hanging: false,
            planned: Vec::new(),
            counts: [0; 5],
        };
        Arc::new(Self { core, number, inner: Mutex::new(inner) })
    }

    /// Changes how bad it is, from the next call on.
    pub fn set_options(&self, change: impl FnOnce(&mut StoreOptions)) {
        change(&mut self.lock().options);
    }

    /// Lets one call of this kind fail with `errno`, after `after` more calls of the kind.
    pub fn fail_nth(&self, op: Op, after: u64, errno: i32) {
        self.lock().planned.push(Planned { op, after, errno: Some(errno) });
    }

    /// Lets the store begin to hang with a call of this kind, after `after` more calls of the kind; see `hang`.
    pub fn hang_nth(&self, op: Op, after: u64) {
        self.lock().planned.push(Planned { op, after, errno: None });
    }

    /// Takes back what `fail_nth` and `hang_nth` planned and did not happen yet.
    pub fn heal(&self) {
        self.lock().planned.clear();
    }

    /// From now on every call hangs, also those that are in flight, until `unhang`.
    pub fn hang(&self) {
        self.lock().hanging = true;
    }

    /// Lets all calls go on.
    pub fn unhang(&self) {
        self.lock().hanging = false;
        let number = self.number;
        self.core.lock().wake_where(|_, on| on == On::Hang(number));
    }

    /// How many calls of a kind there were, failed ones included.
    pub fn calls(&self, op: Op) -> u64 {
        self.lock().counts[op as usize]
    }

    /// What a reader of the whole store would get now.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().cache.contents().to_vec()
    }

    /// Somebody else cuts or extends the store.
    pub fn truncate_behind(&self, len: u64) {
        self.core.note("truncate behind", [self.number as u64, len, 0]);
        let inner = &mut *self.lock();
        inner.cache.set_len(len);
        inner.modification += 1;
    }

    /// Somebody else writes.
    pub fn modify_behind(&self, offset: u64, bytes: &[u8]) {
        self.core.note("modify behind", [self.number as u64, offset, bytes.len() as u64]);
        let inner = &mut *self.lock();
        inner.cache.write(offset, bytes);
        inner.modification += 1;
    }

    /// What a crash of the machine would leave if nothing more than was written out reached the disk.
    pub fn crash_image(&self) -> Vec<u8> {
        self.lock().cache.crash_image()
    }

    /// What a crash of the machine may leave: any of the sectors not yet written out may have been, and the length too.
    pub fn torn_crash_image(&self, rng: &mut Rng) -> Vec<u8> {
        self.lock().cache.torn_crash_image(rng)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How every call begins.
    fn begin(&self, op: Op, what: &'static str, offset: u64, len: u64) -> io::Result<()> {
        self.core.enter(what, [self.number as u64, offset, len]);
        self.lock().counts[op as usize] += 1;
        let planned = self.lock().due(op);
        if planned == Some(None) {
            self.hang();
        }
        self.hang_while_told();
        let max_latency = self.lock().options.max_latency;
        if max_latency > Duration::ZERO {
            let most_ns = u64::try_from(max_latency.as_nanos()).unwrap_or(u64::MAX);
            let latency_ns = self.core.lock().rng.below(most_ns);
            self.core.sleep(Duration::from_nanos(latency_ns));
            self.hang_while_told();
        }
        match planned.flatten() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.fail_at_random(op),
        }
    }

    fn hang_while_told(&self) {
        while self.lock().hanging {
            self.core.block(On::Hang(self.number), None);
        }
    }

    fn fail_at_random(&self, op: Op) -> io::Result<()> {
        let inner = &*self.lock();
        let rng = &mut self.core.lock().rng;
        if rng.per_1000(inner.options.transient_per_1000) {
            let kinds = [ErrorKind::Interrupted, ErrorKind::WouldBlock, ErrorKind::TimedOut];
            return Err(kinds[rng.index(kinds.len())].into());
        }
        if op != Op::Version && rng.per_1000(inner.options.error_per_1000) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    /// How every call ends.
    fn end<T>(&self, what: &'static str, result: io::Result<T>) -> io::Result<T> {
        let errno = match &result {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().map_or(u64::MAX, |errno| errno as u64),
        };
        self.core.note(what, [self.number as u64, errno, 0]);
        self.core.step();
        result
    }

    /// How much of a transfer is done in this call.
    fn shortened(&self, len: usize) -> usize {
        let per_1000 = self.lock().options.short_per_1000;
        let rng = &mut self.core.lock().rng;
        if len > 1 && rng.per_1000(per_1000) { 1 + rng.index(len - 1) } else { len }
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        // Bytes that a read does not promise are garbage.
        buf.fill(0xdb);
        self.begin(Op::Read, "store read", offset, buf.len() as u64)?;
        let part = self.shortened(buf.len());
        // Not atomic against writes, as no pread is: in two halves.
        let half = self.core.lock().rng.index(part + 1);
        let first = self.lock().cache.read(offset, &mut buf[..half]);
        if first < half {
            return Ok(first);
        }
        if half > 0 {
            self.core.maybe_step(25);
        }
        Ok(first + self.lock().cache.read(offset + half as u64, &mut buf[half..part]))
    }

    fn write_now(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        self.check_writable()?;
        let begun = self.begin(Op::Write, "store write", offset, buf.len() as u64);
        if let Err(error) = begun {
            // Any part may have been written.
            let end = self.core.lock().rng.index(buf.len() + 1);
            let start = self.core.lock().rng.index(end + 1);
            let end = end.min(self.room(offset));
            if start < end {
                self.put(offset + start as u64, &buf[start..end]);
            }
            return Err(error);
        }
        let part = self.shortened(buf.len()).min(self.room(offset));
        if part == 0 && !buf.is_empty() {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let half = self.core.lock().rng.index(part + 1);
        self.put(offset, &buf[..half]);
        self.core.maybe_step(25);
        self.put(offset + half as u64, &buf[half..part]);
        Ok(part)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.lock().options.writable { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }

    /// Bytes that fit from `offset` on.
    fn room(&self, offset: u64) -> usize {
        usize::try_from(self.lock().options.capacity.saturating_sub(offset)).unwrap_or(usize::MAX)
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let inner = &mut *self.lock();
        inner.cache.write(offset, bytes);
        inner.count_own_change();
        let rng = &mut self.core.lock().rng;
        if inner.options.write_out_early && rng.per_1000(125) {
            for sector in inner.cache.dirty() {
                if rng.per_1000(500) {
                    inner.cache.write_out(sector);
                }
            }
        }
    }

    fn sync_now(&self) -> io::Result<()> {
        self.check_writable()?;
        // What is dirty when the call begins; what comes later may or may not be part of it.
        let sectors = self.lock().cache.dirty();
        if let Err(error) = self.begin(Op::Sync, "store sync", 0, sectors.len() as u64) {
            self.fail_sync(&sectors);
            return Err(error);
        }
        for sector in sectors {
            self.lock().cache.write_out(sector);
            self.core.maybe_step(5);
        }
        self.lock().cache.write_out_len();
        Ok(())
    }

    /// Each sector was written, or not; and what was not may be forgotten.
    fn fail_sync(&self, sectors: &[u64]) {
        let inner = &mut *self.lock();
        let rng = &mut self.core.lock().rng;
        for &sector in sectors {
            match rng.below(4) {
                0 => inner.cache.write_out(sector),
                1 if inner.options.lossy_failed_sync => inner.cache.lose(sector, true),
                2 if inner.options.lossy_failed_sync => inner.cache.lose(sector, false),
                _ => {}
            }
        }
    }

    fn set_len_now(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.begin(Op::SetLen, "store set length", len, 0)?;
        let inner = &mut *self.lock();
        if len > inner.options.capacity {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        inner.cache.set_len(len);
        inner.count_own_change();
        Ok(())
    }
}

impl Inner {
    /// What was planned for this call: an error, or to hang (`Some(None)`).
    fn due(&mut self, op: Op) -> Option<Option<i32>> {
        let mut due = None;
        for (at, planned) in self.planned.iter_mut().enumerate().filter(|(_, planned)| planned.op == op) {
            match planned.after.checked_sub(1) {
                Some(rest) => planned.after = rest,
                None => due = due.or(Some(at)),
            }
        }
        due.map(|at| self.planned.remove(at).errno)
    }

    fn count_own_change(&mut self) {
        if self.options.own_writes_change_version {
            self.modification += 1;
        }
    }
}

impl Store for SimStore {
    fn name(&self) -> String {
        self.lock().options.name.clone()
    }

    fn version(&self) -> io::Result<Version> {
        let begun = self.begin(Op::Version, "store version", 0, 0);
        let version = begun.map(|()| {
            let inner = self.lock();
            Version {
                len: inner.cache.len(),
                identity: self.number as u128,
                modification: inner.modification,
            }
        });
        self.end("version", version)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.read_now(offset, buf);
        self.end("read", read)
    }

    /// The reads end in random order.
    fn read_many(&self, reads: &mut [Read<'_>], done: &mut ReadDone<'_>) {
        let mut order: Vec<usize> = (0..reads.len()).collect();
        self.core.lock().rng.shuffle(&mut order);
        for index in order {
            let read = &mut reads[index];
            let address = read.buf.as_ptr().addr();
            assert!(
                read.offset.is_multiple_of(4096)
                    && read.buf.len().is_multiple_of(4096)
                    && address.is_multiple_of(4096),
                "a read of a batch is not aligned: offset {:#x}, {:#x} bytes to {address:#x}",
                read.offset,
                read.buf.len()
            );
            let result = self.read_at(read.offset, read.buf);
            done(index, read.buf, result);
        }
    }

    fn is_writable(&self) -> bool {
        self.lock().options.writable
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        let written = self.write_now(offset, buf);
        self.end("write", written)
    }

    /// The writes are done, and end, in random order.
    fn write_many(&self, writes: &[Write<'_>], done: &mut WriteDone<'_>) {
        let mut order: Vec<usize> = (0..writes.len()).collect();
        self.core.lock().rng.shuffle(&mut order);
        for index in order {
            let Write { offset, buf } = writes[index];
            let address = buf.as_ptr().addr();
            assert!(
                offset.is_multiple_of(4096) && address.is_multiple_of(4096),
                "a write of a batch is not aligned: offset {offset:#x}, from {address:#x}"
            );
            done(index, self.write_at(offset, buf));
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let set = self.set_len_now(len);
        self.end("set length", set)
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.sync_now();
        self.end("sync", synced)
    }

    fn is_local(&self) -> bool {
        self.lock().options.local
    }

    fn lock(&self) -> io::Result<()> {
        self.core.enter("store lock", [self.number as u64, 0, 0]);
        if SimStore::lock(self).options.locked { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}
