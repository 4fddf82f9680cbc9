//! Power failures at every point of the protocol of commits: a program that changes a file, commits, spills, rolls back,
//! resizes, takes snapshots and checkpoints, on a [`Disk`]; after every operation that changes the disk some of the states
//! are drawn that a power failure or a kill may leave, recovery runs on each, with more power failures and kills in it, and what is
//! then in the file must be allowed, and durable.
//!
//! What is allowed (docs/fault-model.md):
//! * the last acknowledged commit;
//! * while a commit is on its way or in doubt, that one too;
//! * after a bit of the journal was flipped: a refusal, or one of these, or the commit before, because damage to the newest commit can't be
//!   told from a torn one. Never anything else.
//!
//! The file's model is a `Vec<u8>`. All draws come from the seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mapwright::journal::scan::Scan;
use mapwright::journal::{Accept, AtomicFile, Checkpoint, JournalError, Limits, Snapshot, recover};
use mapwright::stores::Store;

use crate::disk::{Disk, DiskPlace, Draw, Image};
use crate::rng::Rng;

const FILE: &str = "data";
const PAGE: u64 = 4096;

/// What a run was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// States of the disk that recovery ran on, those in the middle of recovery included.
    pub states: u64,
    /// Those of them that a kill left.
    pub kills: u64,
    /// Checkpoints that went on after an error.
    pub resumed: u64,
    /// Commits of nothing while another was in doubt.
    pub empty: u64,
    /// Commits that were acknowledged.
    pub commits: u64,
    /// Checkpoints that ended.
    pub checkpoints: u64,
    /// Commits that failed.
    pub failures: u64,
    /// Operations for which the disk was full.
    pub full: u64,
    /// Checkpoints that ended while a batch was being filled.
    pub beside: u64,
    /// Pages that were an error because a bit had been flipped while the file was open.
    pub unreadable: u64,
    /// Journals with a flipped bit that were refused.
    pub refused: u64,
    /// Journals with a flipped bit that were read all the same.
    pub read: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.states += other.states;
        self.kills += other.kills;
        self.resumed += other.resumed;
        self.empty += other.empty;
        self.commits += other.commits;
        self.checkpoints += other.checkpoints;
        self.failures += other.failures;
        self.full += other.full;
        self.beside += other.beside;
        self.unreadable += other.unreadable;
        self.refused += other.refused;
        self.read += other.read;
    }

    fn count(&mut self, end: End) {
        self.states += 1;
        self.kills += u64::from(matches!(end, End::Kill));
    }
}

/// Runs one seed.
///
/// # Errors
/// What was found, with the seed.
pub fn run(seed: u64) -> Result<Tally, String> {
    let truth = Arc::new(Mutex::new(Truth::default()));
    let told = Arc::clone(&truth);
    let outcome = catch_unwind(AssertUnwindSafe(move || Run::new(seed, told).go()));
    let why = match outcome {
        Ok(Ok(())) => truth.lock().unwrap_or_else(PoisonError::into_inner).found.take(),
        Ok(Err(why)) => Some(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Some(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic").to_owned())
        }
    };
    match why {
        Some(why) => Err(format!("seed {seed}: {why}")),
        None => Ok(truth.lock().unwrap_or_else(PoisonError::into_inner).tally),
    }
}

/// What may be in the file after a power failure, and what was found.
#[derive(Default)]
struct Truth {
    /// The last acknowledged commit; none while nothing is promised.
    acknowledged: Option<Vec<u8>>,
    /// The one before.
    before: Option<Vec<u8>>,
    /// Commits on their way, or in doubt.
    doubt: Vec<Vec<u8>>,
    found: Option<String>,
    tally: Tally,
}

impl Truth {
    fn allows(&self, bytes: &[u8]) -> bool {
        let Some(acknowledged) = &self.acknowledged else { return true };
        acknowledged == bytes || self.doubt.iter().any(|doubt| doubt == bytes)
    }

    fn acknowledge(&mut self, bytes: &[u8]) {
        // A commit without changes writes nothing: the one before it is still the one before.
        if self.acknowledged.as_deref() != Some(bytes) {
            self.before = self.acknowledged.replace(bytes.to_vec());
        }
        self.doubt.clear();
    }

    fn describe(&self, bytes: &[u8]) -> String {
        let Some(acknowledged) = &self.acknowledged else { return "nothing was promised".to_owned() };
        let differ: Vec<usize> =
            (0..bytes.len().min(acknowledged.len())).filter(|at| bytes[*at] != acknowledged[*at]).collect();
        let runs: Vec<String> = (differ.chunk_by(|a, b| a + 1 == *b))
            .map(|run| {
                let (at, end) = (run[0], run[run.len() - 1] + 1);
                format!("{at}..{end} ({} for {})", bytes[at], acknowledged[at])
            })
            .collect();
        format!(
            "{} bytes instead of {}, {} in doubt, not as in the last acknowledged commit: {}",
            bytes.len(),
            acknowledged.len(),
            self.doubt.len(),
            runs.join(", ")
        )
    }
}

/// How one run goes; drawn from its seed.
#[derive(Clone, Copy, Debug)]
struct Style {
    limits: Limits,
    /// Whole pages and lengths in whole pages only, and sectors are destroyed.
    destroys: bool,
    /// Writes and syncs fail, of 1000.
    errors_per_1000: u32,
    pages: u64,
    /// The disk is full now and then.
    fills: bool,
}

struct Run {
    seed: u64,
    rng: Rng,
    style: Style,
    disk: Disk,
    truth: Arc<Mutex<Truth>>,
    /// What the program sees, what the journal and the file have of it, and where they differ.
    now: Vec<u8>,
    logged: Vec<u8>,
    dirty: Vec<(u64, u64)>,
    /// A bit was flipped under the open file: the end.
    has_flipped: bool,
}

impl Run {
    fn new(seed: u64, truth: Arc<Mutex<Truth>>) -> Self {
        let mut rng = Rng::stream(seed, 1);
        let unit = [512, 512, 512, 4096][rng.index(4)];
        let limits = Limits {
            unit,
            entry: [700, 5000, 20_000][rng.index(3)],
            checkpoint: u64::from(unit) * rng.within(8..60),
        };
        let destroys = rng.below(3) == 0;
        let errors_per_1000 = if rng.below(3) == 0 { [40, 250][rng.index(2)] } else { 0 };
        let (pages, fills) = (rng.within(2..7), rng.below(4) == 0);
        let style = Style { limits, destroys, errors_per_1000, pages, fills };
        let bytes = vec![1; (style.pages * PAGE) as usize];
        let disk = Disk::with_file(FILE, bytes.clone());
        disk.set_links(rng.below(4) == 0);
        // Where syncs fail, what others wrote before must be durable: opening can sync it, and not write it again.
        let is_durable = errors_per_1000 == 0 || disk.file(FILE).and_then(|file| file.sync()).is_ok();
        assert!(is_durable, "a disk without errors");
        let logged = bytes.clone();
        Self { seed, rng, style, disk, truth, logged, now: bytes, dirty: Vec::new(), has_flipped: false }
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an operation may fail now.
    fn may_fail(&self) -> bool {
        self.style.errors_per_1000 > 0 || self.style.fills
    }

    fn watch(&self) {
        let mut rng = Rng::stream(self.seed, 2 + self.disk.operations());
        let (truth, destroys) = (Arc::clone(&self.truth), self.style.destroys);
        self.disk.observe(move |image| {
            let truth = &mut *truth.lock().unwrap_or_else(PoisonError::into_inner);
            if truth.found.is_none()
                && let Err(why) = look(image, truth, &mut rng, destroys)
            {
                truth.found = Some(why);
            }
        });
    }

    fn go(mut self) -> Result<(), String> {
        self.watch();
        for session in 0..self.rng.within(1..4) {
            self.session().map_err(|why| format!("session {session}: {why}"))?;
            if self.has_flipped {
                break;
            }
            if let Some(why) = self.truth().found.take() {
                return Err(format!("session {session}: {why}"));
            }
        }
        Ok(())
    }

    fn set_errors(&mut self, on: bool) {
        let rng = Rng::new(self.rng.next_u64());
        self.disk.set_errors(if on { self.style.errors_per_1000 } else { 0 }, rng);
    }

    /// Opens, works, and ends by closing, by a kill or by a power failure.
    fn session(&mut self) -> Result<(), String> {
        let fails = self.rng.below(4) == 0;
        self.set_errors(fails);
        let atomic = match self.open() {
            Ok(atomic) => atomic,
            Err(why) if self.style.errors_per_1000 == 0 => return Err(why),
            Err(_) => {
                self.set_errors(false);
                self.open()?
            }
        };
        {
            let mut truth = self.truth();
            let opened = self.disk.contents(FILE).map_err(|error| error.to_string())?;
            if !truth.allows(&opened) {
                return Err(format!("opened: {}", truth.describe(&opened)));
            }
            truth.acknowledge(&opened);
            truth.before = None;
            drop(truth);
            (self.now, self.logged) = (opened.clone(), opened);
            self.dirty.clear();
        }
        self.set_errors(true);
        let shorts = (self.rng.below(2) == 0).then(|| Rng::new(self.rng.next_u64()));
        self.disk.set_shorts(shorts);
        let atomic = Arc::new(atomic);
        self.work(&atomic)?;
        self.disk.set_room(None);
        self.disk.set_shorts(None);
        if self.rng.below(8) == 0 && self.truth().found.is_none() {
            return self.flip(&atomic);
        }
        let atomic = Arc::try_unwrap(atomic).map_err(|_| "a snapshot is left")?;
        match self.rng.below(3) {
            0 => self.close(atomic),
            1 => {
                drop(atomic); // killed
                self.set_errors(false);
                Ok(())
            }
            _ => {
                drop(atomic);
                let draw = draw(&mut self.rng, self.style.destroys);
                self.disk = self.disk.crash(&mut self.rng, draw);
                self.watch();
                Ok(())
            }
        }
    }

    fn open(&self) -> Result<AtomicFile, String> {
        let place = Arc::new(DiskPlace::new(&self.disk, FILE));
        let file = self.disk.file(FILE).map_err(|error| error.to_string())?;
        let opened = AtomicFile::open(place, Arc::new(file), self.style.limits);
        opened.map(|(atomic, _)| atomic).map_err(|error| format!("open: {error}"))
    }

    /// Closes; then perhaps the file is changed without a journal, as any program may.
    fn close(&mut self, atomic: AtomicFile) -> Result<(), String> {
        let fails = self.rng.below(4) == 0;
        self.set_errors(fails);
        let closed = atomic.close();
        self.set_errors(false);
        if let Err(error) = closed {
            return if self.style.errors_per_1000 > 0 { Ok(()) } else { Err(format!("close: {error}")) };
        }
        let bytes = self.disk.contents(FILE).map_err(|error| error.to_string())?;
        {
            let mut truth = self.truth();
            truth.doubt.clear();
            if !truth.allows(&bytes) {
                return Err(format!("closed: {}", truth.describe(&bytes)));
            }
        }
        if self.rng.below(2) == 0 {
            let file = self.disk.file(FILE).map_err(|error| error.to_string())?;
            self.truth().acknowledged = None;
            let at = self.rng.below(bytes.len().max(1) as u64) / PAGE * PAGE;
            let len = PAGE.min(bytes.len() as u64 - at);
            let value = self.rng.next_u64() as u8;
            let wrote = file.write_at(at, &vec![value; len as usize]).and_then(|_| file.sync());
            wrote.map_err(|error| format!("an ordinary write: {error}"))?;
            let bytes = self.disk.contents(FILE).map_err(|error| error.to_string())?;
            self.truth().acknowledge(&bytes);
            self.truth().before = None;
            // Something that the observer sees.
            file.sync().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn work(&mut self, atomic: &Arc<AtomicFile>) -> Result<(), String> {
        let mut checkpoint = None;
        let mut snapshots: Vec<(Snapshot, Vec<u8>)> = Vec::new();
        for _ in 0..self.rng.within(5..40) {
            match self.rng.below(100) {
                0..=37 => {
                    self.change();
                    self.commit(atomic, &mut checkpoint)?;
                }
                // What a failed commit left, or nothing.
                38..=41 => self.commit(atomic, &mut None)?,
                42..=44 => self.drop_half_way(atomic),
                45..=54 => {
                    self.change();
                    self.spill(atomic, &mut checkpoint)?;
                }
                55..=61 => self.change(),
                62..=68 => self.rollback(atomic)?,
                69..=78 => self.resize(atomic),
                79..=81 if snapshots.len() < 2 => {
                    let bytes = self.truth().acknowledged.clone().unwrap_or_default();
                    snapshots.push((atomic.snapshot(), bytes));
                }
                82..=84 if !snapshots.is_empty() => {
                    let (snapshot, bytes) = snapshots.swap_remove(self.rng.index(snapshots.len()));
                    self.is_read(&bytes, "snapshot", |at, into| snapshot.read(at, into))?;
                }
                91..=93 => self.claim(atomic)?,
                94..=99 if self.style.fills => {
                    let full = self.rng.below(2) == 0;
                    let room = self.rng.below(8 * u64::from(self.style.limits.unit));
                    self.disk.set_room(full.then_some(room));
                }
                85..=90 => {
                    let logged = self.logged.clone();
                    self.is_read(&logged, "read", |at, into| atomic.read(at, into))?;
                }
                _ => {}
            }
            // A checkpoint goes on beside everything else.
            checkpoint = match checkpoint.take() {
                None if atomic.wants_checkpoint() || self.rng.below(12) == 0 => atomic.begin_checkpoint(),
                None => None,
                Some(running) => self.go_on(running)?,
            };
            if self.truth().found.is_some() {
                break;
            }
        }
        for (snapshot, bytes) in snapshots {
            self.is_read(&bytes, "snapshot", |at, into| snapshot.read(at, into))?;
        }
        Ok(())
    }

    fn go_on<'a>(&mut self, mut running: Checkpoint<'a>) -> Result<Option<Checkpoint<'a>>, String> {
        let outcome = match running.step() {
            Ok(false) => return Ok(Some(running)),
            Ok(true) => running.finish().map(drop),
            Err(_) if self.may_fail() && self.rng.below(2) == 0 => {
                self.truth().tally.resumed += 1;
                return Ok(Some(running));
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => self.truth().tally.checkpoints += 1,
            Err(error) if !self.may_fail() => return Err(format!("checkpoint: {error}")),
            Err(_) => {}
        }
        Ok(None)
    }

    /// Changes some pages, in memory.
    fn change(&mut self) {
        for _ in 0..self.rng.within(1..4) {
            if self.now.is_empty() {
                return;
            }
            let page = self.rng.below((self.now.len() as u64).div_ceil(PAGE)) * PAGE;
            let end = (page + PAGE).min(self.now.len() as u64);
            let (mut from, mut to) = (page, end);
            if !self.style.destroys && self.rng.below(2) == 0 {
                from = self.rng.within(page..end);
                to = self.rng.within(from..end) + 1;
            }
            let value = self.rng.next_u64() as u8;
            self.now[from as usize..to as usize].fill(value);
            self.dirty.push((from, to));
        }
    }

    fn resize(&mut self, atomic: &AtomicFile) {
        let most = (self.style.pages + 2) * PAGE;
        let mut len = self.rng.below(most + 1);
        if self.style.destroys || self.rng.below(2) == 0 {
            len = len / PAGE * PAGE;
        }
        atomic.set_len(len);
        self.now.resize(len as usize, 0);
        self.logged.resize(len as usize, 0);
        self.dirty.retain_mut(|(from, to)| {
            *to = (*to).min(len);
            from < to
        });
    }

    /// Lets a checkpoint go on while a batch is open.
    fn go_on_beside(&mut self, checkpoint: &mut Option<Checkpoint<'_>>) -> Result<(), String> {
        while self.rng.below(3) > 0
            && let Some(running) = checkpoint.take()
        {
            let before = self.truth().tally.checkpoints;
            *checkpoint = self.go_on(running)?;
            let mut truth = self.truth();
            truth.tally.beside += truth.tally.checkpoints - before;
        }
        Ok(())
    }

    /// A batch that was begun and is given up, with some of it written.
    fn drop_half_way(&mut self, atomic: &AtomicFile) {
        let mut batch = atomic.begin();
        for (from, to) in &self.dirty {
            if batch.put(*from, &self.now[*from as usize..*to as usize]).is_err() || self.rng.below(3) == 0 {
                break;
            }
        }
    }

    fn claim(&mut self, atomic: &AtomicFile) -> Result<(), String> {
        match atomic.claim() {
            Err(error) if !self.may_fail() => Err(format!("claim: {error}")),
            _ => {
                // What was in doubt has been written over, or was not looked at.
                if !atomic.is_in_doubt() {
                    self.truth().doubt.clear();
                }
                Ok(())
            }
        }
    }

    fn commit(&mut self, atomic: &AtomicFile, checkpoint: &mut Option<Checkpoint<'_>>) -> Result<(), String> {
        let now = self.now.clone();
        self.truth().doubt.push(now.clone());
        let mut batch = atomic.begin();
        let put =
            self.dirty.iter().try_for_each(|(from, to)| batch.put(*from, &now[*from as usize..*to as usize]));
        self.go_on_beside(checkpoint)?;
        // A batch that fails before its last entry leaves nothing in doubt, but what was in doubt before stays.
        match put.and_then(|()| batch.commit()) {
            Ok(_) => {
                let mut truth = self.truth();
                truth.acknowledge(&now);
                truth.tally.commits += 1;
                drop(truth);
                self.logged = now;
                self.dirty.clear();
                Ok(())
            }
            Err(error) if !self.may_fail() => Err(format!("commit: {error}")),
            Err(error) => {
                self.truth().tally.failures += 1;
                self.truth().tally.full += u64::from(error.to_string().contains("storage space"));
                // Often it is given up, and where that fails too, nothing is committed on top of it.
                if self.rng.below(2) == 0 { self.rollback(atomic) } else { Ok(()) }
            }
        }
    }

    fn spill(&mut self, atomic: &AtomicFile, checkpoint: &mut Option<Checkpoint<'_>>) -> Result<(), String> {
        let some = self.rng.index(self.dirty.len() + 1);
        let spilled: Vec<(u64, u64)> = self.dirty[..some].to_vec();
        let mut batch = atomic.begin();
        let put = spilled
            .iter()
            .try_for_each(|(from, to)| batch.put(*from, &self.now[*from as usize..*to as usize]));
        self.go_on_beside(checkpoint)?;
        match put.and_then(|()| batch.spill()) {
            Ok(()) => {
                for (from, to) in spilled {
                    let range = from as usize..to as usize;
                    self.logged[range.clone()].copy_from_slice(&self.now[range]);
                }
                self.dirty.drain(..some);
                if !atomic.is_in_doubt() {
                    self.truth().doubt.clear();
                }
                Ok(())
            }
            Err(error) if !self.may_fail() => Err(format!("spill: {error}")),
            Err(_) => Ok(()),
        }
    }

    /// Flips bits of the journal under the open file: what is read then is right or an error, also for a checkpoint; and
    /// recovery refuses the journal, or finds what it may.
    fn flip(&mut self, atomic: &AtomicFile) -> Result<(), String> {
        self.has_flipped = true;
        self.set_errors(false);
        self.disk.observe(|_| {});
        let journal = format!("{FILE}.mapwright-journal");
        if !(0..self.rng.within(1..9)).all(|_| self.disk.flip_bit(&journal, &mut self.rng)) {
            return Ok(());
        }
        for (page, expected) in self.logged.chunks(PAGE as usize).enumerate() {
            let mut bytes = vec![0; expected.len()];
            match atomic.read(page as u64 * PAGE, &mut bytes) {
                Ok(_) if bytes != expected => return Err(format!("a flipped bit was read in page {page}")),
                Ok(_) => {}
                Err(JournalError::Damaged { .. }) => self.truth().tally.unreadable += 1,
                Err(error) => return Err(format!("a flipped bit: {error}")),
            }
        }
        if self.rng.below(2) == 0 {
            // Whatever was damaged is not the newest any more.
            self.change();
            self.commit(atomic, &mut None)?;
        }
        match atomic.checkpoint() {
            Ok(_) | Err(JournalError::Damaged { .. }) => {}
            Err(error) => return Err(format!("a checkpoint after a flipped bit: {error}")),
        }
        let (truth, disk) = (self.truth(), self.disk.kill());
        match recovered(&disk) {
            Ok(bytes) if !truth.allows(&bytes) => {
                Err(format!("flipped while open: {}", truth.describe(&bytes)))
            }
            _ => Ok(()),
        }
    }

    fn rollback(&mut self, atomic: &AtomicFile) -> Result<(), String> {
        let rolled_back = atomic.rollback();
        let acknowledged = self.truth().acknowledged.clone().unwrap_or_default();
        (self.now, self.logged) = (acknowledged.clone(), acknowledged);
        self.dirty.clear();
        match rolled_back {
            Ok(()) => self.truth().doubt.clear(),
            Err(error) if !self.may_fail() => return Err(format!("rollback: {error}")),
            Err(_) if self.rng.below(2) == 0 => {
                self.truth().tally.empty += 1;
                self.commit(atomic, &mut None)?;
                self.disk.show();
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn is_read(
        &self,
        expected: &[u8],
        what: &str,
        read: impl Fn(u64, &mut [u8]) -> Result<usize, mapwright::journal::JournalError>,
    ) -> Result<(), String> {
        let mut bytes = vec![0; expected.len() + 10];
        let n = match read(0, &mut bytes) {
            Ok(n) => n,
            Err(JournalError::Io { .. }) if self.style.errors_per_1000 > 0 => return Ok(()),
            Err(error) => return Err(format!("{what}: {error}")),
        };
        if bytes[..n] == *expected {
            return Ok(());
        }
        let at = bytes.iter().zip(expected).position(|(a, b)| a != b);
        Err(format!("{what}: {n} bytes instead of {}, first difference at {at:?}", expected.len()))
    }
}

fn draw(rng: &mut Rng, destroys: bool) -> Draw {
    let kept_per_1000 = [0, 100, 500, 900, 1000][rng.index(5)];
    Draw { kept_per_1000, destroys: destroys && rng.below(2) == 0, garbage: rng.below(2) == 0 }
}

/// How a program ends that does not end itself.
#[derive(Clone, Copy, Debug)]
enum End {
    /// What it wrote is in the kernel's cache.
    Kill,
    Power(#[expect(dead_code, reason = "for messages")] Draw),
}

impl End {
    /// Draws one, and what is left after it.
    fn of(image: &Image, rng: &mut Rng, destroys: bool) -> (Self, Disk) {
        if rng.below(3) == 0 {
            return (Self::Kill, image.kill());
        }
        let draw = draw(rng, destroys);
        (Self::Power(draw), image.crash(rng, draw))
    }
}

/// Draws states of the disk and looks whether recovery makes something allowed of each.
fn look(image: &Image, truth: &mut Truth, rng: &mut Rng, destroys: bool) -> Result<(), String> {
    for _ in 0..3 {
        let (end, mut disk) = End::of(image, rng, destroys);
        let mut ends = vec![end];
        truth.tally.count(end);
        // Ends during recovery, and during the recovery from that.
        for _ in 0..rng.below(4) {
            if rng.below(4) == 0 {
                // Failures that pass: whoever tries again begins anew.
                disk.set_errors(150, Rng::new(rng.next_u64()));
                disk.set_shorts(Some(Rng::new(rng.next_u64())));
                let _ = recovered(&disk);
            } else {
                disk.fail_after(Some(rng.below(14)));
                let outcome = recovered(&disk);
                if !disk.is_dead() {
                    outcome.map_err(|why| format!("{why} (after {ends:?})"))?;
                }
            }
            let (end, next) = disk.with_image(|image| End::of(image, rng, destroys));
            disk = next;
            ends.push(end);
            truth.tally.count(end);
        }
        let before = entries(&disk);
        let bytes = recovered(&disk).map_err(|why| format!("{why} (after {ends:?}): {before}"))?;
        if !truth.allows(&bytes) {
            return Err(format!("{} (after {ends:?}): {before}", truth.describe(&bytes)));
        }
        let journal = format!("{FILE}.mapwright-journal");
        if disk.file(&journal).is_ok() {
            return Err("a journal is left after recovery".to_owned());
        }
        // Before the first open nobody has promised that what others wrote is durable.
        if truth.acknowledged.is_some() && rng.below(4) == 0 {
            let last = draw(rng, destroys);
            let later = disk.crash(rng, last);
            truth.tally.states += 1;
            if later.file(&journal).is_ok() || later.contents(FILE).ok().as_ref() != Some(&bytes) {
                return Err(format!("what was recovered is not durable (after {ends:?}, {last:?})"));
            }
        }
    }
    if rng.below(2) == 0
        && let Some(disk) = flipped(image, rng, destroys)
    {
        truth.tally.states += 1;
        let before = entries(&disk);
        match recovered(&disk) {
            Err(_) => truth.tally.refused += 1,
            Ok(bytes) if truth.allows(&bytes) || truth.before.as_ref() == Some(&bytes) => {
                truth.tally.read += 1
            }
            Ok(bytes) => return Err(format!("a flipped bit: {}: {before}", truth.describe(&bytes))),
        }
    }
    Ok(())
}

/// A bit of the journal flipped: at once, or after a recovery that did not come to its end.
fn flipped(image: &Image, rng: &mut Rng, destroys: bool) -> Option<Disk> {
    const JOURNAL: &str = "data.mapwright-journal";
    if rng.below(2) == 0 {
        return image.with_flipped_bit(JOURNAL, rng);
    }
    let disk = image.kill();
    disk.fail_after(Some(rng.below(14)));
    let _ = recovered(&disk);
    let (_, left) = disk.with_image(|image| End::of(image, rng, destroys));
    left.with_image(|image| image.with_flipped_bit(JOURNAL, rng))
}

/// The entries of a journal, for messages.
fn entries(disk: &Disk) -> String {
    let Ok(journal) = disk.file(&format!("{FILE}.mapwright-journal")) else { return "no journal".to_owned() };
    let mut text = String::new();
    let scan = Scan::read_with(&journal, None, &mut |seen| {
        text += &format!("\n  {:?}", seen.entry);
        seen.records.iter().for_each(|(_, record)| text += &format!("\n    {record:?}"));
    });
    match scan {
        Ok(scan) => format!("{:?}, {} in the tail{text}", scan.anchor, scan.tail_entries),
        Err(error) => format!("{error}{text}"),
    }
}

/// Recovers, and what is in the file then.
fn recovered(disk: &Disk) -> Result<Vec<u8>, String> {
    let file = disk.file(FILE).map_err(|error| error.to_string())?;
    recover(&DiskPlace::new(disk, FILE), &file, Accept::Own).map_err(|error| format!("recovery: {error}"))?;
    disk.contents(FILE).map_err(|error| error.to_string())
}
