//! Files under atomic commit on a simulated disk: a program that changes, commits, rolls back and resizes while readers, the
//! evictor and checkpoints are at work, and a crash after every operation of the disk.
//!
//! What a crash may leave is what recovery makes of it: the last acknowledged commit, or one that was on its way or failed since.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mapwright::engine::file::{File, FileSpec, Keep};
use mapwright::engine::kernel::{FaultMode, FrameKind, Kernel, View};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::{Engine, Handle, commit, evict, request, write_back};
use mapwright::journal::disk::Place;
use mapwright::journal::format::{Identity, Salt};
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, recover};
use mapwright::stores::{Store, Version};
use mapwright::{Error, Result};
use mapwright_sim::disk::{Disk, DiskFile, DiskPlace, Draw};
use mapwright_sim::{Rng, SimHandle};

use crate::engine::{PAGE, frame_limit, pager, pick};

pub const FILE: &str = "data";

/// A file of the disk, each call of which is a point where another thread may run.
struct Stepping {
    sim: SimHandle,
    file: DiskFile,
    syncs: Arc<AtomicU64>,
}

impl Stepping {
    fn step(&self) {
        let _ = self.sim.kernel().now();
    }
}

impl Store for Stepping {
    fn name(&self) -> String {
        self.file.name()
    }

    fn version(&self) -> std::io::Result<Version> {
        self.step();
        self.file.version()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.step();
        let read = self.file.read_at(offset, buf);
        self.step();
        read
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<usize> {
        self.step();
        // In parts, as a real one is not atomic against reads either.
        let half = buf.len().min((buf.len() / 2).max(1000));
        let written = self.file.write_at(offset, &buf[..half])?;
        self.step();
        Ok(written)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.step();
        self.file.set_len(len)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.step();
        let synced = self.file.sync();
        self.step();
        synced
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// A place whose journals step too.
struct SteppingPlace {
    sim: SimHandle,
    disk: Disk,
    place: DiskPlace,
    syncs: Arc<AtomicU64>,
}

type Journaled<T> = std::result::Result<T, JournalError>;

impl SteppingPlace {
    fn stepping(&self, name: &str) -> Arc<dyn Store> {
        let file = self.disk.file(name).expect("it was made just now");
        Arc::new(Stepping { sim: self.sim.clone(), file, syncs: Arc::clone(&self.syncs) })
    }
}

impl Place for SteppingPlace {
    fn name(&self) -> String {
        self.place.name()
    }

    fn identity(&self) -> Journaled<Identity> {
        self.place.identity()
    }

    fn salt(&self) -> Journaled<Salt> {
        self.place.salt()
    }

    fn open(&self) -> Journaled<Option<Arc<dyn Store>>> {
        Ok(self.place.open()?.map(|_| self.stepping(&self.name())))
    }

    fn create(&self) -> Journaled<Arc<dyn Store>> {
        self.place.create()?;
        Ok(self.stepping(&(self.name() + ".new")))
    }

    fn publish(&self) -> Journaled<()> {
        self.place.publish()
    }

    fn replace(&self) -> Journaled<()> {
        self.place.replace()
    }

    fn remove(&self) -> Journaled<()> {
        self.place.remove()
    }

    fn confirm(&self) -> Journaled<()> {
        self.place.confirm()
    }

    fn sync(&self) -> Journaled<()> {
        self.place.sync()
    }
}

/// How a file is opened, and where.
pub struct Opening {
    pub disk: Disk,
    pub limits: Limits,
    pub mode: FaultMode,
    pub block_size: u64,
    /// Syncs of journals.
    pub syncs: Arc<AtomicU64>,
}

impl Opening {
    /// Opens the file, which recovers it first.
    pub fn open(&self, sim: &SimHandle, pager: &Arc<Handle>) -> Result<Arc<File>> {
        let file = self.disk.file(FILE).expect("the file is there");
        let store: Arc<dyn Store> = Arc::new(Stepping { sim: sim.clone(), file, syncs: Arc::default() });
        let place = SteppingPlace {
            sim: sim.clone(),
            disk: self.disk.clone(),
            place: DiskPlace::new(&self.disk, FILE),
            syncs: Arc::clone(&self.syncs),
        };
        let (atomic, _) = AtomicFile::open(Arc::new(place), Arc::clone(&store), self.limits)?;
        let spec = FileSpec {
            store,
            writable: true,
            mode: self.mode,
            frames: FrameKind::Auto,
            block_size: self.block_size,
            reserve: 64 * PAGE,
            deadline: Duration::from_secs(20),
            advice: Advice::Normal,
            keep: Keep::Atomic { atomic: Arc::new(atomic), in_parts: true },
        };
        Engine::open_file(pager, spec)
    }
}

/// What a crash may leave.
#[derive(Default)]
struct Truth {
    acknowledged: Vec<u8>,
    /// Commits on their way or in doubt.
    doubt: Vec<Vec<u8>>,
    /// What the map showed before and after the change under way; counts changes that began or ended.
    before: Vec<u8>,
    now: Vec<u8>,
    changes: u64,
    found: Option<String>,
    states: u64,
}

impl Truth {
    fn allows(&self, bytes: &[u8]) -> bool {
        self.acknowledged == bytes || self.doubt.iter().any(|doubt| doubt == bytes)
    }

    fn acknowledge(&mut self, bytes: Vec<u8>) {
        self.acknowledged = bytes;
        self.doubt.clear();
    }
}

/// What recovery makes of a disk.
fn recovered(disk: &Disk) -> std::result::Result<Vec<u8>, String> {
    let file = disk.file(FILE).map_err(|error| error.to_string())?;
    recover(&DiskPlace::new(disk, FILE), &file, Accept::Own).map_err(|error| format!("recovery: {error}"))?;
    disk.contents(FILE).map_err(|error| error.to_string())
}

/// A power failure or a kill after some of the operations of the disk.
fn watch(disk: &Disk, truth: &Arc<Mutex<Truth>>, mut rng: Rng, every: u64) {
    let truth = Arc::clone(truth);
    disk.observe(move |image| {
        let truth = &mut *truth.lock().unwrap();
        if truth.found.is_some() || rng.below(every) > 0 {
            return;
        }
        let kept_per_1000 = [0, 100, 500, 900, 1000][rng.index(5)];
        let draw = Draw { kept_per_1000, destroys: false, garbage: rng.per_1000(500) };
        let disk = if rng.per_1000(300) { image.kill() } else { image.crash(&mut rng, draw) };
        truth.states += 1;
        match recovered(&disk) {
            Ok(bytes) if truth.allows(&bytes) => {}
            Ok(bytes) => {
                let at = bytes.iter().zip(&truth.acknowledged).position(|(a, b)| a != b);
                let (len, doubt) = (truth.acknowledged.len(), truth.doubt.len());
                let what = format!(
                    "{} bytes instead of {len}, first difference at {at:?}, {doubt} in doubt",
                    bytes.len()
                );
                truth.found = Some(what);
            }
            Err(why) => truth.found = Some(why),
        }
    });
}

/// What a workload is like; the rest is drawn from the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// Writes and syncs of the disk fail.
    pub errors: bool,
}

/// What a thread needs.
#[derive(Clone)]
struct User {
    sim: SimHandle,
    file: Arc<File>,
    truth: Arc<Mutex<Truth>>,
    kind: Kind,
}

/// Runs one workload.
pub fn run(sim: &SimHandle, told: &AtomicU64, kind: Kind) {
    let mut rng = sim.rng(0);
    let block_size = pick(&mut rng, &[PAGE, PAGE, 4 * PAGE]);
    let budget = pick(&mut rng, &[20, 24, 40]) * block_size;
    told.store(frame_limit(budget), Ordering::SeqCst);
    let len = rng.within(1..30 * PAGE);
    let bytes: Vec<u8> = (0..len).map(|at| (at / PAGE * 7 + at % 251 + 1) as u8).collect();
    let disk = Disk::with_file(FILE, bytes.clone());
    disk.file(FILE).and_then(|file| file.sync()).expect("a disk without errors");
    let unit = pick(&mut rng, &[512, 4096]);
    let opening = Opening {
        disk: disk.clone(),
        limits: Limits {
            unit,
            entry: pick(&mut rng, &[700, 5000, 9000]),
            checkpoint: u64::from(unit) * rng.within(8..60),
        },
        mode: pick(&mut rng, &[FaultMode::Thread, FaultMode::InThread]),
        block_size,
        syncs: Arc::default(),
    };
    let truth = Arc::new(Mutex::new(Truth {
        acknowledged: bytes.clone(),
        before: bytes.clone(),
        now: bytes,
        ..Truth::default()
    }));
    watch(&disk, &truth, sim.rng(1), 4);
    for session in 0..rng.within(1..4) {
        let pager = pager(sim, budget);
        let file = opening.open(sim, &pager).expect("open");
        let user = User { sim: sim.clone(), file, truth: Arc::clone(&truth), kind };
        user.opened(&disk);
        if kind.errors {
            disk.set_errors(pick(&mut rng, &[5, 40]), sim.rng(50 + session));
        }
        for round in 0..rng.within(1..5) {
            user.work(&mut rng, 100 * (session * 10 + round + 1), budget);
        }
        disk.set_errors(0, sim.rng(0));
        let closes = rng.per_1000(500);
        user.end(closes, &disk);
        let engine = Arc::downgrade(&**pager);
        drop(pager);
        // All pagers of a run share one queue of faults.
        wait_for("the threads of a pager end", sim, || engine.strong_count() == 0);
    }
    let truth = truth.lock().unwrap();
    assert_eq!(truth.found, None, "after {} states", truth.states);
    sim.assert_no_hole_reads();
}

impl User {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// What was opened is one of what was allowed.
    fn opened(&self, disk: &Disk) {
        let bytes = disk.contents(FILE).expect("the file is there");
        let mut truth = self.truth();
        assert!(truth.allows(&bytes), "opened: {} bytes, {} in doubt", bytes.len(), truth.doubt.len());
        truth.acknowledge(bytes.clone());
        (truth.before, truth.now) = (bytes.clone(), bytes);
    }

    /// A writer beside readers; then, alone, what needs exclusive access.
    fn work(&self, rng: &mut Rng, stream: u64, budget: u64) {
        let readers: Vec<_> = (0..rng.below(3))
            .map(|number| {
                let (user, mut rng) = (self.clone(), self.sim.rng(stream + number));
                self.sim
                    .spawn("reader", move || (0..rng.within(2..12)).for_each(|_| user.look(&mut rng, budget)))
            })
            .collect();
        let by_slices = rng.per_1000(500);
        let went_well = (0..rng.within(2..12)).all(|_| match rng.below(10) {
            0..=2 => self.commit(),
            _ => self.change(rng, by_slices),
        });
        readers.into_iter().for_each(|reader| reader.join());
        match rng.below(5) {
            _ if !went_well => self.rollback(),
            0 if self.commit() => {}
            0 | 1 => self.rollback(),
            2 | 3 => {
                let len = rng.below(40 * PAGE);
                self.file.resize(len).expect("nobody else is at it");
                let truth = &mut *self.truth();
                truth.now.resize(len as usize, 0);
                truth.before.clone_from(&truth.now);
                truth.changes += 1;
            }
            _ => {}
        }
        let len = self.truth().now.len();
        if let Some(all) = self.read(0, len) {
            assert!(all == self.truth().now, "at rest");
        }
    }

    fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.file.read_at(at, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.expected("read", &error);
                None
            }
        }
    }

    /// Errors only where the disk gave some.
    fn expected(&self, what: &str, error: &Error) {
        assert!(self.kind.errors, "{what}: {error}");
        let cause = match error {
            Error::Latched { source, .. } => &**source,
            error => error,
        };
        assert!(matches!(cause, Error::Io { .. }), "{what}: {error:?}");
    }

    fn look(&self, rng: &mut Rng, budget: u64) {
        assert!(self.sim.resident_bytes() <= budget, "above the budget");
        let (len, before, now, changes) = {
            let truth = self.truth();
            (truth.now.len() as u64, truth.before.clone(), truth.now.clone(), truth.changes)
        };
        let start = rng.below(len + 1);
        let range = start..start + rng.below((4 * self.file.block_size()).min(len - start) + 1);
        let found = match rng.below(8) {
            0 => {
                let blocks = len.div_ceil(self.file.block_size());
                evict::drop_clean(&self.file, 0..blocks);
                return;
            }
            1 => {
                if let Err(error) = request::prefetch(&self.file, range) {
                    self.expected("prefetch", &error);
                }
                return;
            }
            2 => return self.view(),
            3..=5 => self.read(range.start, (range.end - range.start) as usize),
            _ => {
                let address =
                    self.file.frames().address(View::Plain).expect("it is there") + range.start as usize;
                let found = self.sim.read_slice(address, (range.end - range.start) as usize);
                assert!(found.is_ok() || self.kind.errors, "SIGBUS, and the disk gave no error");
                found.ok()
            }
        };
        if self.truth().changes != changes {
            return; // it cannot be told what was to be seen
        }
        for (at, found) in (range.start as usize..).zip(found.unwrap_or_default()) {
            assert!(
                found == before[at] || found == now[at],
                "{at:#x} is {found}, not {} or {}",
                before[at],
                now[at]
            );
        }
    }

    /// A snapshot is the last commit, whatever goes on.
    fn view(&self) {
        let allowed = {
            let truth = self.truth();
            let mut allowed = truth.doubt.clone();
            allowed.push(truth.acknowledged.clone());
            allowed
        };
        let view = commit::snapshot(&self.file).expect("it has commits");
        let later = {
            let truth = self.truth();
            let mut later = truth.doubt.clone();
            later.push(truth.acknowledged.clone());
            later
        };
        for _ in 0..2 {
            let mut bytes = vec![0; view.len() as usize];
            let read = view.read(0, &mut bytes).expect("reads do not fail");
            assert_eq!(read as u64, view.len());
            assert!(allowed.contains(&bytes) || later.contains(&bytes), "a snapshot of no commit");
            self.sim.sleep(Duration::from_millis(1));
        }
    }

    /// Changes a range, in one of the ways there are; whether all of it was changed.
    fn change(&self, rng: &mut Rng, by_slices: bool) -> bool {
        let (range, new) = {
            let truth = &mut *self.truth();
            let len = truth.now.len() as u64;
            let start = rng.below(len + 1);
            let most = pick(rng, &[20, PAGE / 2, 3 * PAGE]);
            let range = start..start + rng.below(most.min(len - start) + 1);
            let new: Vec<u8> = range.clone().map(|_| rng.next_u64() as u8).collect();
            truth.now[range.start as usize..range.end as usize].copy_from_slice(&new);
            truth.changes += 1;
            (range, new)
        };
        let written = match rng.below(if by_slices { 4 } else { 2 }) {
            0 => self.file.overwrite(range.start, &new),
            1 => self.file.write_at(range.start, &new),
            _ => {
                let view = pick(rng, &[View::Plain, View::Plain, View::Checked]);
                self.write_slice(view, range.start, &new)
            }
        };
        if let Err(error) = written {
            self.expected("write", &error);
            return false; // who knows what of it was written
        }
        let truth = &mut *self.truth();
        truth.before.clone_from(&truth.now);
        truth.changes += 1;
        true
    }

    fn write_slice(&self, view: View, at: u64, bytes: &[u8]) -> Result<()> {
        let scope = match view {
            View::Checked => Some(mapwright::engine::checked::Scope::enter(&self.file)?),
            View::Plain | View::Remote(_) => None,
        };
        let address = self.file.frames().address(view).expect("it is there") + at as usize;
        let written = self.sim.write_slice(address, bytes);
        self.file.note_slices();
        if let Some(scope) = scope {
            scope.end()?;
        }
        written.map_err(|_| Error::io("write", FILE, at, 0, std::io::Error::other("SIGBUS")))
    }

    /// Whether it was committed; if not it is in doubt.
    fn commit(&self) -> bool {
        let now = self.truth().now.clone();
        self.truth().doubt.push(now.clone());
        loop {
            match commit::commit(&self.file) {
                Ok(()) => break,
                Err(error) => {
                    self.expected("commit", &error);
                    let _ = write_back::acknowledge(&self.file);
                    if self.sim.rng(self.sim.now().as_nanos() as u64).per_1000(300) {
                        return false;
                    }
                }
            }
        }
        self.truth().acknowledge(now);
        true
    }

    fn rollback(&self) {
        self.truth().changes += 1;
        for attempt in 0.. {
            match commit::rollback(&self.file) {
                Ok(()) => break,
                Err(error) => self.expected("rollback", &error),
            }
            assert!(attempt < 100, "a rollback fails for ever");
        }
        let truth = &mut *self.truth();
        let bytes = truth.acknowledged.clone();
        truth.doubt.clear();
        (truth.before, truth.now) = (bytes.clone(), bytes);
        truth.changes += 1;
        assert_eq!(self.file.len(), truth.now.len() as u64);
    }

    /// Closes, or is killed.
    fn end(self, closes: bool, disk: &Disk) {
        if closes {
            commit::close(&self.file).expect("a healed disk");
            let bytes = disk.contents(FILE).expect("the file is there");
            assert!(self.truth().allows(&bytes), "closed");
            assert!(disk.file(&format!("{FILE}.mapwright-journal")).is_err(), "the journal is left");
        }
        let file = Arc::downgrade(&self.file);
        let sim = self.sim.clone();
        drop(self);
        // A checkpoint may be under way.
        wait_for("a file that nobody uses is closed", &sim, || file.strong_count() == 0);
    }
}

fn wait_for(what: &str, sim: &SimHandle, is_so: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if is_so() {
            return;
        }
        sim.sleep(Duration::from_millis(1));
    }
    panic!("in vain: {what}");
}

/// Threads that write parts of the same pages and commit: what a commit has acknowledged survives, and they share syncs. Commits and syncs.
pub fn group(sim: &SimHandle) -> (u64, u64) {
    const THREADS: u64 = 4;
    const PAGES: u64 = 2;
    let disk = Disk::with_file(FILE, vec![0; (PAGES * PAGE) as usize]);
    disk.file(FILE).and_then(|file| file.sync()).expect("a disk without errors");
    let limits = Limits { entry: 9000, checkpoint: 1 << 20, ..Limits::default() };
    let (mode, syncs) = (FaultMode::Thread, Arc::new(AtomicU64::new(0)));
    let opening = Opening { disk: disk.clone(), limits, mode, block_size: PAGE, syncs: Arc::clone(&syncs) };
    let pager = pager(sim, 64 * PAGE);
    let file = opening.open(sim, &pager).expect("open");
    let before = syncs.load(Ordering::SeqCst);
    let mut commits = 0;
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let at = thread % PAGES * PAGE + thread * 300;
            let (sim, file, disk) = (sim.clone(), Arc::clone(&file), disk.clone());
            let mut rng = sim.rng(thread);
            commits += 3;
            sim.clone().spawn("committer", move || {
                for round in 1..4u8 {
                    file.write_at(at, &[round; 100]).expect("write");
                    commit::commit(&file).expect("commit");
                    let none = Draw { kept_per_1000: 0, destroys: false, garbage: false };
                    let left = recovered(&disk.crash(&mut rng, none)).expect("recovery");
                    let left = &left[at as usize..at as usize + 100];
                    assert!(left.iter().all(|byte| *byte == round), "an acknowledged commit is gone");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join());
    let after = syncs.load(Ordering::SeqCst);
    commit::commit(&file).expect("commit");
    assert_eq!(syncs.load(Ordering::SeqCst), after, "a commit of nothing syncs");
    commit::close(&file).expect("close");
    drop((file, pager));
    (commits, after - before)
}
