//! The protocol of commits over one file and its journal: docs/decisions/0010-atomic-commit.md, whose invariants are
//! meant where a comment names one by number.
//!
//! The pager's engine decides what is dirty and when; this module decides what is written, where and in which order. It holds
//! no pages: what a batch is given is on its way to the journal, and what is asked for is read from the journal or the file.
//!
//! # Concurrency
//! | | batch, rollback, resize | checkpoint | read, snapshot |
//! | --- | --- | --- | --- |
//! | **batch, rollback, resize** | the caller's turn (asserted) | side by side: a checkpoint writes durable commits only | side by side |
//! | **checkpoint** | | one at a time (asserted) | the index has what the file may lack |
//!
//! One lock, `AtomicFile::state`, held for no I/O (12); its place in the order is in `locks`.
//!
//! # States of a commit
//! | state | → | by |
//! | --- | --- | --- |
//! | collected | written | [`Batch::put`], [`Batch::commit`] |
//! | written | durable: acknowledged, in the index | the journal's sync |
//! | written | in doubt | a write or sync that failed |
//! | in doubt | gone | a later batch that became durable, or [`AtomicFile::rollback`] |
//! | durable | in the file | [`Checkpoint::finish`] |
//! | in the file | forgotten, space free | the sync after an anchor was written |

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{self, Place};
use super::error::{JournalError, Result};
use super::format::{Anchor, HEAD, Header, Kind, PAGE, Record, Salt, UNIT};
use super::index::Index;
use super::recover::{self, Accept, Found};
use super::replay::{self, Pace, Replay, Replayed};
use super::sabotage::{self, Sabotage};
use super::space::{Space, Tip};
use crate::locks::{self, Held};
use crate::stores::Store;

mod batch;
mod view;

pub use batch::Batch;
pub use view::{Overlay, Snapshot};

/// Bytes of memory that the index takes for a record, at most: its place in the list of its page, the list itself, and the page's
/// entry; and what a batch notes of it until it is durable.
pub const PIECE_BYTES: u64 = 256;

/// Pages of the index that are looked at under one hold of the lock.
const PART: usize = 256;

/// How large things may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a unit of the journal: a power of two from 512 to 65,536.
    pub unit: u32,
    /// Bytes of an entry, 1 GiB at most: what a batch has in memory at most, and what a checkpoint has there and writes at once.
    pub entry: usize,
    /// Live bytes of the journal from which on a checkpoint is due; commits wait for it at twice this. The journal is longer for
    /// a moment, some four times this, because what a checkpoint frees can be written again only after the next commit; and
    /// longer for as long as a transaction or a snapshot is.
    pub checkpoint: u64,
}

impl Limits {
    fn check(&self, path: &str) -> Result<()> {
        let refused = |why: String, remedy| JournalError::Refused { path: path.to_owned(), why, remedy };
        if !self.unit.is_power_of_two() || !(512..=65_536).contains(&self.unit) {
            let why = format!("a unit of {} bytes", self.unit);
            return Err(refused(why, "choose a power of two from 512 to 65,536"));
        }
        if self.entry > 1 << 30 {
            return Err(refused(format!("entries of {} bytes", self.entry), "choose 1 GiB at most"));
        }
        if self.checkpoint > 1 << 60 {
            let why = format!("a checkpoint after {} bytes", self.checkpoint);
            return Err(refused(why, "choose 1 EiB at most"));
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { unit: UNIT, entry: 1 << 20, checkpoint: 32 << 20 }
    }
}

/// A place in the chain of entries.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// Number of the entry before it.
    sequence: u64,
    tip: Tip,
}

/// A durable commit.
#[derive(Clone, Copy, Debug)]
struct Committed {
    at: Point,
    file_len: u64,
}

struct State {
    /// The last durable commit.
    committed: Committed,
    /// The last durable entry. Nothing before it is written again until a checkpoint has freed it.
    durable: Point,
    /// Whether durable entries belong to the transaction under way.
    spilled: bool,
    /// The newest commit that a durable entry names as durable: the file may have what is up to it.
    claimed: u64,
    /// The number the next entry gets (6).
    next_sequence: u64,
    space: Space,
    /// What durable commits changed and the file may lack, and the file's length before the first of them.
    index: Index,
    base_len: u64,
    /// The commit that a checkpoint collects the pieces of just now: what it shows must not be dropped for being hidden later.
    planned: u64,
    /// What the transaction under way has spilled, durably.
    pending: Index,
    /// Changes of length of the transaction under way that are not durable in the journal.
    unlogged: Vec<u64>,
    /// Length with the transaction under way, and as far as that is durable in the journal.
    len: u64,
    logged_len: u64,
    /// A commit failed after its last entry may have reached the disk.
    in_doubt: bool,
    /// The anchor that is durable, and the one to be written with the next batch.
    anchor: Anchor,
    due: Option<(Anchor, Tip)>,
    /// Commits after the one that the file is known to have, oldest first.
    recent: VecDeque<Committed>,
    /// Commits that somebody looks at, with how many do.
    snapshots: BTreeMap<u64, usize>,
    /// How often space was freed: what a reader found in the index may be gone if it changed.
    epoch: u64,
    /// The least length that the transaction under way has had, and that it began with; `None` if it never changed.
    least: Option<u64>,
    /// The least length that the file may have now, and how often that changed.
    shortest: u64,
    lengths_changed: u64,
    /// The buffer of the last batch, for the next one.
    buffer: Vec<u8>,
    end: End,
}

/// Whether it is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing is committed any more; the journal is removed when the last snapshot is dropped.
    Closing,
    Closed,
}

/// What the transaction under way has changed so far, other than in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncommitted {
    /// Pages that were spilled.
    pub pages: Vec<u64>,
    /// From here on, in bytes, it may have made zeros of what was there; `u64::MAX` if the length never changed.
    pub from: u64,
}

/// A file whose changes become durable all together.
pub struct AtomicFile {
    file: Arc<dyn Store>,
    journal: Arc<dyn Store>,
    place: Arc<dyn Place>,
    header: Header,
    limits: Limits,
    state: Mutex<State>,
    /// A batch, rollback or resize is under way.
    busy: AtomicBool,
    /// A checkpoint is under way.
    checkpointing: AtomicBool,
}

impl AtomicFile {
    /// Recovers the file if its journal is there, makes its bytes durable as they are, and starts a journal. Takes the
    /// file's lock, for as long as the store is open. Says what was recovered.
    ///
    /// # Errors
    /// Every refusal of [`JournalError`], with nothing changed but what recovery has done, which comes first; [`JournalError::Io`].
    pub fn open(
        place: Arc<dyn Place>,
        file: Arc<dyn Store>,
        limits: Limits,
    ) -> Result<(Self, Option<Found>)> {
        limits.check(&file.name())?;
        let recovered = recover::recover(&*place, &*file, Accept::Own)?;
        if recovered.is_some() {
            // It was there, so nobody has asked yet whether one may be begun.
            drop(place.open()?);
        }
        if !sabotage::is(Sabotage::NoBaseSync) {
            disk::sync(&*file)?;
        }
        let file_len = disk::len(&*file)?;
        let header = Header { unit: limits.unit, salt: place.salt()?, identity: place.identity()? };
        let anchor = Anchor { counter: 1, start: header.base(), sequence: 0, file_len };
        let journal = start_journal(&*place, &header, &anchor)?;
        let unit = u64::from(header.unit);
        let space = Space::new(unit, header.base(), header.base() + 2 * limits.checkpoint);
        let at = Point { sequence: 0, tip: space.tip() };
        let state = State {
            committed: Committed { at, file_len },
            durable: at,
            spilled: false,
            claimed: 0,
            next_sequence: 1,
            space,
            index: Index::default(),
            base_len: file_len,
            planned: u64::MAX,
            pending: Index::default(),
            unlogged: Vec::new(),
            len: file_len,
            logged_len: file_len,
            in_doubt: false,
            anchor,
            due: None,
            recent: VecDeque::new(),
            snapshots: BTreeMap::new(),
            epoch: 0,
            least: None,
            shortest: file_len,
            lengths_changed: 0,
            buffer: Vec::new(),
            end: End::Open,
        };
        let (busy, checkpointing) = (AtomicBool::new(false), AtomicBool::new(false));
        let atomic =
            Self { file, journal, place, header, limits, state: Mutex::new(state), busy, checkpointing };
        Ok((atomic, recovered))
    }

    fn lock(&self) -> Held<MutexGuard<'_, State>> {
        locks::lock(&self.state)
    }

    /// Length in bytes, with the transaction under way.
    pub fn len(&self) -> u64 {
        self.lock().len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the journal that are needed until the next checkpoint.
    pub fn live_bytes(&self) -> u64 {
        self.lock().space.live()
    }

    /// Whether a checkpoint should be made soon, and none that ended has done so already: what its anchor frees does not count.
    pub fn wants_checkpoint(&self) -> bool {
        let state = self.lock();
        state.backlog() >= self.limits.checkpoint && state.may_pass_a_commit()
    }

    /// Whether the journal is longer than it should get, and a checkpoint can help that: commits had better wait for it.
    pub fn is_full(&self) -> bool {
        let state = self.lock();
        state.backlog() >= 2 * self.limits.checkpoint && state.may_pass_a_commit()
    }

    /// Whether there are commits that the file may lack and that no snapshot keeps from it.
    pub fn lacks_a_checkpoint(&self) -> bool {
        self.lock().may_pass_a_commit()
    }

    /// Whether a commit would write something: what was spilled, a change of length, or a word about a commit in doubt.
    pub fn has_changes(&self) -> bool {
        let state = self.lock();
        state.spilled || !state.unlogged.is_empty() || state.in_doubt
    }

    /// What the transaction under way has changed in journal and length: what a rollback takes back. The caller has the turn.
    pub fn uncommitted(&self) -> Uncommitted {
        let state = self.lock();
        let from = state.least.map_or(u64::MAX, |least| least.min(state.committed.file_len));
        Uncommitted { pages: state.pending.pages().collect(), from }
    }

    /// The least length that the file may have now, a checkpoint under way or not, and how often that has changed. A file
    /// that is found shorter was cut by somebody else, if both are the same before and after the look.
    pub fn least_len(&self) -> (u64, u64) {
        let state = self.lock();
        (state.shortest, state.lengths_changed)
    }

    /// Bytes of memory that the index takes, or a little more.
    pub fn index_bytes(&self) -> u64 {
        let state = self.lock();
        (state.index.pieces() + state.pending.pieces()) as u64 * PIECE_BYTES
    }

    /// Bytes of memory that a batch and a checkpoint beside it take.
    pub fn buffer_bytes(&self) -> u64 {
        self.batch_bytes() + replay::buffer_bytes(self.limits.entry)
    }

    /// Bytes of memory that a batch takes.
    fn batch_bytes(&self) -> u64 {
        let largest = HEAD + Record::Data { offset: 0, len: PAGE as u32 }.size();
        (self.limits.entry.max(largest) as u64).next_multiple_of(u64::from(self.header.unit))
    }

    /// Whether it is being closed, or is closed: nothing may be committed any more.
    pub fn is_closing(&self) -> bool {
        self.lock().end != End::Open
    }

    /// Whether a commit failed of which a crash now may show all or nothing.
    pub fn is_in_doubt(&self) -> bool {
        self.lock().in_doubt
    }

    /// Changes the length, as part of the transaction under way.
    ///
    /// # Panics
    /// When a batch is under way: our mistake.
    pub fn set_len(&self, len: u64) {
        let _turn = Flag::raise(&self.busy, "resize beside a batch");
        let mut state = self.lock();
        if len != state.len {
            state.least = Some(state.least.unwrap_or(state.len).min(len));
            state.unlogged.push(len);
            state.len = len;
        }
    }

    /// Begins to append to the journal.
    ///
    /// # Panics
    /// When another batch is under way: our mistake.
    pub fn begin(&self) -> Batch<'_> {
        let turn = Flag::raise(&self.busy, "two batches at a time");
        let gap = self.draw_gap();
        let mut state = self.lock();
        assert!(state.end != End::Closed, "a batch after the end");
        // What an earlier batch has left unfinished is written over, under new numbers.
        let durable = state.durable;
        state.space.rewind(durable.tip);
        let mut batch = Batch {
            atomic: self,
            _turn: turn,
            buffer: self.empty_buffer(&mut state),
            sequence: 0,
            chain: durable,
            begun_after: durable.sequence,
            begins: !state.spilled,
            claims: 0,
            written: Vec::new(),
            buffered: Vec::new(),
            len: state.len,
            numberless: None,
        };
        batch.take_number(&mut state, gap);
        let lengths = if sabotage::is(Sabotage::ForgetCut) {
            state.unlogged.last().copied().into_iter().collect()
        } else {
            state.unlogged.clone()
        };
        drop(state);
        lengths.into_iter().for_each(|len| batch.push_length(len));
        batch
    }

    /// The buffer of the last batch, or a new one: of the size that it is said to have, and so never moved.
    fn empty_buffer(&self, state: &mut State) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        buffer.reserve_exact(self.batch_bytes() as usize);
        buffer
    }

    /// How many numbers to leave out: docs/fault-model.md, "bytes of the file chosen by somebody".
    fn draw_gap(&self) -> Result<u64> {
        let Salt([a, b, c, d, ..]) = self.place.salt()?;
        Ok(u32::from_le_bytes([a, b, c, d]).into())
    }

    /// Drops everything since the last commit. Where that commit's successor is in doubt, makes sure that it never comes
    /// back.
    ///
    /// # Errors
    /// [`JournalError::Io`] if it is in doubt still. What was changed is dropped all the same.
    ///
    /// # Panics
    /// When a batch is under way: our mistake.
    pub fn rollback(&self) -> Result<()> {
        let in_doubt = {
            let _turn = Flag::raise(&self.busy, "rollback beside a batch");
            let mut state = self.lock();
            state.pending = Index::default();
            state.unlogged.clear();
            (state.len, state.logged_len) = (state.committed.file_len, state.committed.file_len);
            // What was spilled stays where it is: the next entry says that it begins a transaction.
            (state.spilled, state.least) = (false, None);
            state.in_doubt
        };
        if !in_doubt || sabotage::is(Sabotage::ForgetDoubt) {
            self.lock().in_doubt = false;
            return Ok(());
        }
        self.write_claim()
    }

    /// Writes an entry that has no records behind the last durable one, and syncs.
    fn write_claim(&self) -> Result<()> {
        let mut batch = self.begin();
        batch.write_last(Kind::Part)?;
        batch.sync()?;
        batch.publish(false);
        Ok(())
    }

    /// Makes the last commit one that a checkpoint may bring to the file: see [`begin_checkpoint`](Self::begin_checkpoint). A
    /// sync of the journal where the commit is the newest entry, nothing otherwise.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    ///
    /// # Panics
    /// When a batch is under way: our mistake.
    pub fn claim(&self) -> Result<()> {
        let is_claimed = {
            let state = self.lock();
            state.claimed == state.committed.at.sequence
        };
        if is_claimed { Ok(()) } else { self.write_claim() }
    }

    /// Begins to bring the file to the last commit, or as near as is allowed: not past a snapshot, and not past what a durable
    /// entry names as durable (2), so that damage to the newest commit is never taken for a torn one when the file has a part
    /// of it. The next commit or spill names it, or [`claim`](Self::claim). `None` if there is nothing to do.
    ///
    /// # Panics
    /// When another checkpoint is under way: our mistake.
    pub fn begin_checkpoint(&self) -> Option<Checkpoint<'_>> {
        self.begin_at(Pace::Gentle)
    }

    fn begin_at(&self, pace: Pace) -> Option<Checkpoint<'_>> {
        let turn = Flag::raise(&self.checkpointing, "two checkpoints at a time");
        let mut state = self.lock();
        let mut most = state.snapshots.keys().next().copied().unwrap_or(u64::MAX);
        if !sabotage::is(Sabotage::CheckpointUnclaimed) {
            most = most.min(state.claimed);
        }
        let target = state.recent.iter().copied().rfind(|commit| commit.at.sequence <= most)?;
        let commit = target.at.sequence;
        let (base_len, mut plan) = (state.base_len, state.index.plan_lengths(commit));
        state.planned = commit;
        drop(state);
        // A part at a time: faults wait for this lock.
        let mut page = Some(0);
        while let Some(from) = page {
            page = self.lock().index.plan_part(commit, from, PART, &mut plan.pieces);
        }
        let mut state = self.lock();
        state.planned = u64::MAX;
        if sabotage::is(Sabotage::CheckpointUncommitted) {
            plan.pieces.extend(state.pending.plan(u64::MAX).pieces);
        }
        drop(state);
        let replay = Replay::new(plan, base_len, target.file_len, self.limits.entry, pace);
        Some(Checkpoint { atomic: self, _turn: turn, target, replay })
    }

    /// A whole checkpoint at once, of the last commit where snapshots allow it; what it wrote. Where the last commit cannot be
    /// [claimed](Self::claim), one of what can be brought to the file all the same, and then the error.
    ///
    /// # Errors
    /// [`JournalError::Io`]: nothing is lost, the next checkpoint writes all of it again.
    ///
    /// # Panics
    /// When a batch or another checkpoint is under way: our mistake.
    pub fn checkpoint(&self) -> Result<Replayed> {
        let claimed = self.claim();
        let replayed = match self.begin_at(Pace::Fast) {
            Some(mut checkpoint) => {
                while !checkpoint.step()? {}
                checkpoint.finish()?
            }
            None => Replayed::default(),
        };
        if claimed.is_err() {
            // Perhaps the disk is full. What was claimed before is in the file now: an anchor, whose place the journal has, frees
            // what that took, for the next attempt.
            let _turn = Flag::raise(&self.busy, "a checkpoint beside a batch");
            if self.lock().due.is_some() {
                self.sync_journal()?;
            }
        }
        claimed.map(|()| replayed)
    }

    /// Drops what is not committed, brings the file to the last commit, and removes the journal. While there are snapshots the
    /// journal stays, and dropping the last of them removes it. Nothing is committed any more, whatever comes of it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: file and journal are left for the next open, or for another call.
    ///
    /// # Panics
    /// When a batch or a checkpoint is under way: our mistake.
    pub fn close(&self) -> Result<()> {
        let is_closed = {
            let mut state = self.lock();
            state.end = if state.end == End::Closed { End::Closed } else { End::Closing };
            state.end == End::Closed
        };
        if is_closed {
            return Ok(());
        }
        self.rollback()?;
        let is_viewed = !self.lock().snapshots.is_empty();
        if is_viewed {
            return Ok(());
        }
        self.checkpoint()?;
        recover::retire(&*self.place)?;
        self.lock().end = End::Closed;
        Ok(())
    }

    /// Writes the anchor that is due, syncs the journal, and takes note of what is durable now.
    fn sync_journal(&self) -> Result<()> {
        let due = self.lock().due;
        if let Some((anchor, _)) = due {
            let mut at = anchor;
            if sabotage::is(Sabotage::OneAnchor) {
                at.counter = 1;
            }
            disk::write(&*self.journal, at.position(&self.header), &anchor.encode(&self.header.salt))?;
        }
        disk::sync(&*self.journal)?;
        let mut state = self.lock();
        if let Some((anchor, tip)) = due {
            state.anchor = anchor;
            // A newer one may be due by now, under the same counter: it goes to the other place next time.
            state.due = state
                .due
                .filter(|(newer, _)| newer.sequence != anchor.sequence)
                .map(|(newer, tip)| (Anchor { counter: anchor.counter + 1, ..newer }, tip));
            if !sabotage::is(Sabotage::EarlyReuse) {
                state.space.free_before(tip);
            }
            state.epoch += 1;
            drop(state);
            self.trim();
        }
        Ok(())
    }

    /// Where the disk is full, the anchor that is due gets a sync of its own: what it frees has blocks.
    fn free_on_full_disk(&self) -> Result<()> {
        let frees = {
            let state = self.lock();
            state.space.is_full() && state.due.is_some()
        };
        if frees { self.sync_journal() } else { Ok(()) }
    }

    /// Cuts the journal back when little of it is needed after a large transaction.
    fn trim(&self) {
        // What was written ahead stays.
        let high = self.lock().space.high() + 2 * u64::from(self.header.unit);
        let high = high.max(self.header.base() + 2 * self.limits.checkpoint);
        if disk::len(&*self.journal).is_ok_and(|len| len > high) {
            self.lock().space.note_cut(high);
            // Nothing depends on it: a journal that stays long is long.
            let _ = disk::set_len(&*self.journal, high);
        }
    }
}

impl std::fmt::Debug for AtomicFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtomicFile").field("file", &self.file.name()).finish_non_exhaustive()
    }
}

/// Writes a new journal and gives it its name, in the order of (8) and (9).
fn start_journal(place: &dyn Place, header: &Header, anchor: &Anchor) -> Result<Arc<dyn Store>> {
    let journal = place.create()?;
    recover::write_beginning(&*journal, header, anchor)?;
    if sabotage::is(Sabotage::RenameFirst) {
        place.publish()?;
        place.sync()?;
        disk::sync(&*journal)?;
        return Ok(journal);
    }
    disk::sync(&*journal)?;
    place.publish()?;
    if !sabotage::is(Sabotage::NoNameSync) {
        place.sync()?;
    }
    Ok(journal)
}

/// A checkpoint on its way. Dropped before its end, it has changed nothing that counts.
pub struct Checkpoint<'a> {
    atomic: &'a AtomicFile,
    _turn: Flag<'a>,
    target: Committed,
    replay: Replay,
}

impl Checkpoint<'_> {
    /// Writes a part to the file, as much as an entry has; `true` when all is written. After an error it may be called again, and
    /// writes the same part.
    ///
    /// # Errors
    /// [`JournalError::Io`]; [`JournalError::Damaged`] if a record is not what was written.
    pub fn step(&mut self) -> Result<bool> {
        self.replay.step(&*self.atomic.file, &*self.atomic.journal, &self.atomic.header.salt)
    }

    /// Syncs the file, and lets the journal forget what it has. What was written in all.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the journal keeps everything.
    ///
    /// # Panics
    /// When [`step`](Self::step) has not said that all is written: our mistake.
    pub fn finish(self) -> Result<Replayed> {
        assert!(self.replay.is_done(), "a checkpoint finished before its last step");
        if !sabotage::is(Sabotage::NoFileSync) {
            disk::sync(&*self.atomic.file)?;
        }
        let Committed { at, file_len } = self.target;
        let mut state = self.atomic.lock();
        state.index.forget(at.sequence);
        state.base_len = file_len;
        state.shortest = file_len.min(state.index.shortest());
        state.lengths_changed += 1;
        state.recent.retain(|commit| commit.at.sequence > at.sequence);
        let counter = state.anchor.counter + 1;
        let anchor = Anchor { counter, start: at.tip.position, sequence: at.sequence, file_len };
        state.due = Some((anchor, at.tip));
        if sabotage::is(Sabotage::EarlyReuse) {
            state.space.free_before(at.tip);
        }
        drop(state);
        let mut page = Some(0);
        while let Some(from) = page {
            page = self.atomic.lock().index.sweep(from, PART);
        }
        Ok(self.replay.size())
    }
}

impl State {
    /// Bytes of the journal that are needed when the anchor that is due has been written.
    fn backlog(&self) -> u64 {
        self.due.map_or_else(|| self.space.live(), |(_, tip)| self.space.live_from(tip))
    }

    /// Whether a checkpoint would bring the file any further, once the last commit is claimed.
    fn may_pass_a_commit(&self) -> bool {
        let most = self.snapshots.keys().next().copied().unwrap_or(u64::MAX);
        self.recent.front().is_some_and(|commit| commit.at.sequence <= most)
    }
}

/// One at a time, by agreement.
struct Flag<'a>(&'a AtomicBool);

impl<'a> Flag<'a> {
    fn raise(flag: &'a AtomicBool, what: &str) -> Self {
        assert!(!flag.swap(true, Ordering::AcqRel), "{what}");
        Self(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
