//! Random work on one file, from several threads, held against the oracle.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mapwright::engine::checked::Scope;
use mapwright::engine::file::File;
use mapwright::engine::kernel::{FaultMode, FrameKind, View};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::request::{self, Acquire, Request};
use mapwright::engine::{Handle, evict, write_back};
use mapwright::{Error, Result};
use mapwright_sim::{Bus, Op, Rng, SimHandle, SimStore, StoreOptions};

use crate::engine::oracle::Oracle;
use crate::engine::readers::REGION;
use crate::engine::{EIO, ENOSPC, Opening, PAGE, block_on, frame_limit, pager, pick};

/// What a workload is like; the rest is drawn from the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// The store gives errors, and may hang.
    pub errors: bool,
    /// Nobody writes.
    pub read_only: bool,
    /// The length changes.
    pub resizes: bool,
}

struct Plan {
    opening: Opening,
    store: StoreOptions,
    budget: u64,
    len: u64,
    threads: u64,
    /// Bytes in a row that belong to one thread.
    stripe: u64,
    operations: u64,
    hangs: bool,
}

/// What a thread needs.
#[derive(Clone)]
struct User {
    sim: SimHandle,
    file: Arc<File>,
    store: Arc<SimStore>,
    oracle: Arc<Oracle>,
    kind: Kind,
    number: u64,
    threads: u64,
    stripe: u64,
    budget: u64,
    hangs: bool,
    /// How long the engine tries, and when this thread's operation began.
    deadline: Duration,
    began: Cell<Duration>,
}

fn plan(rng: &mut Rng, kind: Kind) -> Plan {
    let block_size = pick(rng, &[PAGE, PAGE, PAGE, 16 << 10, 16 << 10, 64 << 10]);
    let most_blocks = if block_size > 16 << 10 { 14 } else { 40 };
    let len = match rng.below(12) {
        0 if !kind.errors => 0,
        1 => rng.within(1..PAGE),
        2 => block_size * rng.within(1..most_blocks),
        _ => rng.within(1..block_size * most_blocks),
    };
    let threads = if kind.resizes { rng.within(1..3) } else { rng.within(1..5) };
    let stripe = pick(rng, &[16, 200, 3000, block_size, 3 * block_size]);
    let local = rng.per_1000(700);
    let base = if rng.per_1000(500) { StoreOptions::nasty() } else { StoreOptions::default() };
    let store = StoreOptions { local, lossy_failed_sync: kind.errors, ..base };
    let hangs = kind.errors && !local && rng.per_1000(300);
    let opening = Opening {
        writable: !kind.read_only,
        mode: pick(rng, &[FaultMode::Thread, FaultMode::InThread]),
        // Blocks are never larger than regions.
        frames: match kind.read_only && block_size <= REGION && rng.per_1000(500) {
            true => FrameKind::Auto,
            false => FrameKind::Shared,
        },
        block_size,
        reserve: if kind.resizes { len + rng.below(8 * block_size) } else { 0 },
        deadline: if hangs { Duration::from_millis(50) } else { Duration::from_secs(20) },
        advice: pick(rng, &[Advice::Normal, Advice::Random, Advice::Sequential]),
    };
    let blocks = if kind.read_only && rng.per_1000(200) { 80 } else { pick(rng, &[8, 8, 9, 12, 20, 40]) };
    let operations = rng.within(4..24);
    Plan { opening, store, budget: blocks * block_size, len, threads, stripe, operations, hangs }
}

/// Runs one workload: several rounds of threads at work, each ended by a check of the disk.
pub fn run(sim: &SimHandle, told: &AtomicU64, kind: Kind) {
    let mut rng = sim.rng(0);
    let plan = plan(&mut rng, kind);
    told.store(frame_limit(plan.budget), Ordering::SeqCst);
    let contents = Oracle::pattern(plan.len);
    let store = SimStore::new(sim, contents.clone(), plan.store.clone());
    let oracle = Arc::new(Oracle::new(contents));
    let mut pager_now = pager(sim, plan.budget);
    let mut file = plan.opening.open(&pager_now, &store).expect("open");
    let rounds = rng.within(1..4);
    for round in 0..rounds {
        if kind.errors {
            plan_errors(&mut rng, &store, plan.hangs, oracle.len());
        }
        let user = User {
            sim: sim.clone(),
            file: Arc::clone(&file),
            store: Arc::clone(&store),
            oracle: Arc::clone(&oracle),
            kind,
            number: 0,
            threads: plan.threads,
            stripe: plan.stripe,
            budget: plan.budget,
            hangs: plan.hangs,
            deadline: plan.opening.deadline,
            began: Cell::new(sim.now()),
        };
        let users: Vec<_> = (0..plan.threads)
            .map(|number| {
                let user = User { number, ..user.clone() };
                let mut rng = sim.rng(100 * (round + 1) + number);
                sim.spawn("user", move || (0..plan.operations).for_each(|_| user.act(&mut rng)))
            })
            .collect();
        users.into_iter().for_each(|user| user.join());
        user.crash(&mut rng);
        if kind.resizes {
            if plan.hangs {
                heal(&store);
                sim.sleep(Duration::from_millis(100)); // what hung ends
            }
            user.resize(&mut rng);
        }
        if rng.per_1000(500) || round + 1 == rounds {
            heal(&store);
            user.settle();
        }
        drop(user);
        if store_is_settled(&file, &oracle, kind) && rng.per_1000(400) {
            heal(&store);
            (pager_now, file) = reopen(sim, &plan, (pager_now, file), &store);
        }
    }
    heal(&store);
    let (pager_now, file) = reopen(sim, &plan, (pager_now, file), &store);
    let mut all = vec![0; oracle.len() as usize];
    file.read_at(0, &mut all).expect("a healed store");
    oracle.check_read(&oracle.before(0..oracle.len()), &all, "after opening again");
    assert!(sim.resident_bytes() <= plan.budget);
    drop(file);
    drop(pager_now);
    sim.assert_no_hole_reads();
}

/// Whether nothing would be lost by closing now.
fn store_is_settled(file: &Arc<File>, oracle: &Oracle, kind: Kind) -> bool {
    kind.read_only
        || (0..oracle.len())
            .step_by(PAGE as usize)
            .all(|at| matches!(write_back::is_dirty(file, at), Ok(false)))
            && oracle.is_settled()
}

/// Closes and opens again, sometimes under a new pager.
fn reopen(
    sim: &SimHandle,
    plan: &Plan,
    (pager_now, file): (Arc<Handle>, Arc<File>),
    store: &Arc<SimStore>,
) -> (Arc<Handle>, Arc<File>) {
    let (still_open, engine) = (Arc::downgrade(&file), Arc::downgrade(&**pager_now));
    drop(file);
    drop(pager_now);
    // What a pool thread does on the file's behalf may hold it a little longer; so may a call that hung. The engine's own
    // threads must be gone because all pagers of a run share one queue of faults.
    for _ in 0..1000 {
        if still_open.strong_count() + engine.strong_count() == 0 && sim.resident_bytes() == 0 {
            break;
        }
        sim.sleep(Duration::from_millis(1));
    }
    assert_eq!(still_open.strong_count(), 0, "a file that nobody uses stays open");
    assert_eq!(sim.resident_bytes(), 0, "frames that outlive their file");
    let pager_now = pager(sim, plan.budget);
    let file = plan.opening.open(&pager_now, store).expect("open again");
    (pager_now, file)
}

fn plan_errors(rng: &mut Rng, store: &SimStore, hangs: bool, len: u64) {
    for _ in 0..rng.below(4) {
        let op = pick(rng, &[Op::Read, Op::Write, Op::Sync, Op::SetLen]);
        store.fail_nth(op, rng.below(12), EIO);
    }
    match rng.below(4) {
        0 => store.set_options(|options| options.error_per_1000 = 100),
        1 => store.set_options(|options| options.capacity = len / 2),
        2 if hangs => store.hang_nth(pick(rng, &[Op::Read, Op::Write, Op::Sync]), rng.below(8)),
        _ => {}
    }
}

fn heal(store: &SimStore) {
    store.heal();
    store.unhang();
    store.set_options(|options| {
        options.error_per_1000 = 0;
        options.capacity = u64::MAX;
    });
}

impl User {
    /// A range within the file, up to `most` bytes.
    fn any_range(&self, rng: &mut Rng, most: u64) -> std::ops::Range<u64> {
        let len = self.oracle.len();
        let start = rng.below(len + 1);
        start..start + rng.below(most.min(len - start) + 1)
    }

    /// A range that this thread alone writes.
    fn own_range(&self, rng: &mut Rng) -> Option<std::ops::Range<u64>> {
        let len = self.oracle.len();
        if self.threads == 1 {
            return Some(self.any_range(rng, 3 * self.stripe.max(5000)));
        }
        let stripes = len.div_ceil(self.stripe);
        let mine = stripes.saturating_sub(self.number).div_ceil(self.threads);
        let stripe = rng.below(mine.max(1)) * self.threads + self.number;
        let (start, end) = (stripe * self.stripe, ((stripe + 1) * self.stripe).min(len));
        if start >= end {
            return None;
        }
        Some(match rng.below(3) {
            0 => start..end,
            _ => {
                let from = rng.within(start..end);
                from..rng.within(from..end + 1)
            }
        })
    }

    fn address(&self, view: View) -> usize {
        self.file.frames().address(view).expect("both views can be made")
    }

    fn act(&self, rng: &mut Rng) {
        self.began.set(self.sim.now());
        assert!(self.sim.resident_bytes() <= self.budget, "above the budget");
        let most = 3 * self.file.block_size();
        let operations = if self.kind.read_only { 7 } else { 12 };
        match rng.below(operations) {
            0 => self.read(rng, most),
            1 => self.read_slice(rng, most),
            2 => self.get(rng, most),
            3 => self.checked(rng, most),
            4 => {
                let bytes = self.any_range(rng, most);
                self.expect("prefetch", request::prefetch(&self.file, bytes));
            }
            5 => {
                let advice = pick(rng, &[Advice::Normal, Advice::Random, Advice::Sequential]);
                self.file.advise(advice);
                evict::drop_clean(&self.file, self.file_blocks(rng));
            }
            6 => self.get_future(rng, most),
            7 | 8 => self.write(rng),
            9 => self.write_slice(rng),
            10 => self.overwrite(rng),
            _ => self.flush(rng),
        }
        if rng.per_1000(100) {
            self.crash(rng);
        }
    }

    fn file_blocks(&self, rng: &mut Rng) -> std::ops::Range<u64> {
        let blocks = self.oracle.len().div_ceil(self.file.block_size());
        let start = rng.below(blocks + 1);
        start..blocks
    }

    fn read(&self, rng: &mut Rng, most: u64) {
        let range = self.any_range(rng, most);
        let before = self.oracle.before(range.clone());
        let mut found = vec![0xaa; (range.end - range.start) as usize];
        if self.expect("read", self.file.read_at(range.start, &mut found)) {
            self.oracle.check_read(&before, &found, "read_at");
        }
    }

    fn read_slice(&self, rng: &mut Rng, most: u64) {
        let range = self.any_range(rng, most);
        let before = self.oracle.before(range.clone());
        let address = self.address(View::Plain) + range.start as usize;
        if let Some(found) = self.expect_bus(self.sim.read_slice(address, (range.end - range.start) as usize))
        {
            self.oracle.check_read(&before, &found, "slice");
        }
    }

    /// Reads what is pinned: that never faults, so it can't fail.
    fn get(&self, rng: &mut Rng, most: u64) {
        let range = self.any_range(rng, most.min(self.budget / 4));
        let blocks = self.blocks(&range);
        match Request::new(&self.file, blocks, rng.per_1000(500)).and_then(Request::wait) {
            Ok(held) => {
                self.read_held(&range);
                drop(held);
            }
            Err(error) => self.check_error("get", &error),
        }
    }

    fn get_future(&self, rng: &mut Rng, most: u64) {
        let range = self.any_range(rng, most.min(self.budget / 8));
        let blocks = self.blocks(&range);
        let request = Request::new(&self.file, blocks, rng.per_1000(500)).expect("well within the budget");
        match block_on(&self.sim, Acquire::new(request)) {
            Ok(held) => {
                self.read_held(&range);
                drop(held);
            }
            Err(error) => self.check_error("get", &error),
        }
    }

    fn read_held(&self, range: &std::ops::Range<u64>) {
        let before = self.oracle.before(range.clone());
        let address = self.address(View::Plain) + range.start as usize;
        let found = self.sim.read_slice(address, (range.end - range.start) as usize);
        self.oracle.check_read(&before, &found.expect("what is pinned can be read"), "pinned");
    }

    fn blocks(&self, range: &std::ops::Range<u64>) -> Vec<u64> {
        let size = self.file.block_size();
        if range.is_empty() { Vec::new() } else { (range.start / size..(range.end - 1) / size + 1).collect() }
    }

    fn checked(&self, rng: &mut Rng, most: u64) {
        let range = self.any_range(rng, most);
        let scope = match Scope::enter(&self.file) {
            Ok(scope) => scope,
            Err(error) => return self.check_error("checked", &error),
        };
        let before = self.oracle.before(range.clone());
        let address = self.address(View::Checked) + range.start as usize;
        let found = self.sim.read_slice(address, (range.end - range.start) as usize);
        let found = found.expect("no SIGBUS in a checked scope");
        if self.expect("checked", scope.end()) {
            self.oracle.check_read(&before, &found, "checked");
        }
    }

    fn write(&self, rng: &mut Rng) {
        let Some(range) = self.own_range(rng) else { return };
        let bytes = self.oracle.begin_write(range.clone());
        if self.expect("write", self.file.write_at(range.start, &bytes)) {
            self.oracle.end_write(range);
        }
    }

    fn overwrite(&self, rng: &mut Rng) {
        let Some(range) = self.own_range(rng) else { return };
        let bytes = self.oracle.begin_write(range.clone());
        if self.expect("overwrite", self.file.overwrite(range.start, &bytes)) {
            self.oracle.end_write(range);
        }
    }

    fn write_slice(&self, rng: &mut Rng) {
        let Some(range) = self.own_range(rng) else { return };
        let bytes = self.oracle.begin_write(range.clone());
        // Writes through the checked view are kept unless a page failed there.
        let view = if self.kind.errors {
            View::Plain
        } else {
            pick(rng, &[View::Plain, View::Plain, View::Checked])
        };
        let scope = match (view == View::Checked).then(|| Scope::enter(&self.file)).transpose() {
            Ok(scope) => scope,
            Err(error) => return self.check_error("checked", &error),
        };
        let address = self.address(view) + range.start as usize;
        let written = self.expect_bus(self.sim.write_slice(address, &bytes));
        if let Some(scope) = scope {
            self.expect("checked", scope.end());
        }
        if written.is_some() {
            self.oracle.end_write(range);
        }
    }

    fn flush(&self, rng: &mut Rng) {
        let len = self.oracle.len();
        let range = if rng.per_1000(500) { 0..len } else { self.any_range(rng, len) };
        let before = self.oracle.before(range.clone());
        if self.expect("flush", write_back::flush(&self.file, range)) {
            self.oracle.flushed(&before);
            self.oracle.check_disk(&self.store.crash_image(), "after a flush");
        }
    }

    /// Looks at what a crash would leave.
    fn crash(&self, rng: &mut Rng) {
        self.oracle.check_disk(&self.store.torn_crash_image(rng), "after a crash");
    }

    fn resize(&self, rng: &mut Rng) {
        let most =
            (self.oracle.len().max(1)).next_multiple_of(self.file.block_size()) + 4 * self.file.block_size();
        for _ in 0..rng.below(4) {
            let len = rng.below(most);
            match self.file.resize(len) {
                Ok(()) => {
                    self.oracle.resize(len);
                    assert_eq!(self.file.len(), len);
                }
                Err(Error::Invalid { .. }) => assert!(len > self.file.capacity()),
                Err(error) => panic!("resize to {len}: {error}"),
            }
            if rng.per_1000(300) {
                self.read(rng, 4 * self.file.block_size());
            }
        }
    }

    /// Flushes until everything is durable, with a healed store and nobody else at work.
    fn settle(&self) {
        if self.kind.read_only {
            return;
        }
        let len = self.oracle.len();
        for attempt in 0.. {
            match write_back::flush(&self.file, 0..len) {
                Ok(()) => break,
                Err(error) => self.check_error("flush", &error),
            }
            assert!(attempt < 10, "a healed store, and flush fails still");
        }
        self.oracle.settled();
        self.oracle.check_disk(&self.store.crash_image(), "at rest");
        for at in (0..len).step_by(PAGE as usize) {
            // A page that is being shown looks written for a moment; a fault told twice may still be at it.
            let clean = (0..10).any(|_| {
                let dirty = write_back::is_dirty(&self.file, at).expect("page tables can be read");
                if dirty {
                    self.sim.sleep(Duration::from_millis(1));
                }
                !dirty
            });
            assert!(clean, "{at:#x} is dirty at rest");
        }
    }

    /// Whether it went well; otherwise checks how it failed.
    fn expect(&self, what: &str, result: Result<()>) -> bool {
        if let Err(error) = &result {
            self.check_error(what, error);
        }
        result.is_ok()
    }

    fn expect_bus<T>(&self, result: std::result::Result<T, Bus>) -> Option<T> {
        assert!(self.kind.errors || result.is_ok(), "SIGBUS, and the store gave no error");
        result.ok()
    }

    /// Errors only where the store gave some, and of a kind that tells of them.
    fn check_error(&self, what: &str, error: &Error) {
        assert!(self.kind.errors, "{what}: {error}, and the store gave none");
        let cause = match error {
            Error::Latched { path, source } => {
                assert_eq!(path, "simulated");
                let latched = write_back::acknowledge(&self.file);
                // Somebody else may have acknowledged it already.
                assert!(latched.is_none_or(|latched| !matches!(latched, Error::Latched { .. })));
                &**source
            }
            error => error,
        };
        match cause {
            Error::Io { operation, path, offset, source, .. } => {
                assert_eq!(path, "simulated");
                assert!(
                    ["read", "write", "sync", "set length", "check"].contains(operation),
                    "{operation}: {error}"
                );
                assert!(*offset <= self.file.capacity(), "{error}");
                let errno = source.raw_os_error();
                // What passes is an error once the time for trying again is used up, by a call that hung or by waiting for room.
                let waited = self.sim.now() - self.began.get() >= self.deadline;
                let passes = (self.hangs || waited) && errno.is_none();
                let told = errno == Some(EIO) || errno == Some(ENOSPC) && *operation != "read";
                assert!(told || passes, "{what}: {error}");
            }
            Error::TimedOut { path, waited, .. } => {
                assert_eq!(path, "simulated");
                assert!(*waited >= Duration::from_millis(50), "{error}");
            }
            // What hangs keeps its room.
            Error::BudgetExhausted { .. } if self.hangs => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}
