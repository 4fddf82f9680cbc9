//! Commits: what a write-back is for a file under atomic commit. The protocol is the journal's
//! (docs/decisions/0010-atomic-commit.md); here is what is dirty, and when.
//!
//! The walk of a commit, in the file's turn: blocks that may be dirty → room for the index → pages taken, re-protected and copied
//! into the journal's buffer → written, one sync → clean, but for what was written meanwhile → a checkpoint, if one is due.
//!
//! | | who | turn |
//! | --- | --- | --- |
//! | `commit` | a caller, for everybody who waits | the file's |
//! | `spill` | the evictor, where only dirty blocks are left | the file's |
//! | `rollback`, `File::resize` | a caller with exclusive access | the file's |
//! | a checkpoint | a pool thread | its own; the file's for a moment where the last commit is to be claimed |
//! | a fill | anybody | none: `Overlay` |
//!
//! Memory: the buffers of a batch and of a checkpoint are charged when the file is opened; the index record by record, ahead of the batch that adds to
//! it, with some slack that a batch may use where nothing can be evicted. What is charged changes in the file's turn only.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;

use super::evict;
use super::file::File;
use super::fill::{self, Patience};
use super::page_set::PageSet;
use super::sabotage::{self, Sabotage};
use super::write_back::{Taken, dirty_blocks, where_it_may_hang, write_batch};
use super::{PAGE, lock};
use crate::error::{Error, Result};
use crate::journal::atomic::PIECE_BYTES;
use crate::journal::{AtomicFile, Limits, Overlay, Snapshot};

/// A commit that nothing follows is in the file after this time.
const LATEST: Duration = Duration::from_secs(30);
/// Runs that calls have written: beyond so many the page tables are asked as a whole.
const MAX_RUNS: usize = 4096;
/// Bytes from which on a part of a page is logged as the whole page: it saves little, and a checkpoint that writes a part makes the
/// kernel read the rest.
const MOST_OF_PAGE: u16 = (PAGE / 2) as u16;

const IDLE: u32 = 0;
const RUNNING: u32 = 1;

/// The commits of one file.
pub(crate) struct Commits {
    pub(crate) atomic: Arc<AtomicFile>,
    /// Parts of pages may be logged.
    in_parts: bool,
    /// Commits that have begun to look what is dirty.
    begun: AtomicU64,
    /// The last one that has ended.
    ended: Mutex<Option<(u64, Result<()>)>>,
    /// Page tables are to be asked as a whole: slices were written through since that was last done.
    sliced: AtomicBool,
    /// What calls have written since.
    written: Mutex<Written>,
    /// How often a commit began to take what is dirty, or ended that: odd while one does. Begins under the lock of `written`.
    looks: AtomicU64,
    /// Bytes of the budget that the index may take. Changes in the file's turn.
    index_room: AtomicU64,
    /// Whether a checkpoint is queued or runs; waited on.
    checkpoint: AtomicU32,
    /// Whether one is to be made at some time.
    is_timed: AtomicBool,
    /// The journal was rolled back, and blocks that show something else may be left.
    is_half_undone: AtomicBool,
    is_closing: AtomicBool,
    /// Whoever has it after fork(2) must leave the journal alone.
    opened_by: u32,
}

impl Commits {
    pub(crate) fn new(atomic: Arc<AtomicFile>, in_parts: bool) -> Self {
        Self {
            atomic,
            in_parts,
            begun: 0.into(),
            ended: Mutex::default(),
            sliced: AtomicBool::new(false),
            written: Mutex::default(),
            looks: 0.into(),
            index_room: 0.into(),
            checkpoint: AtomicU32::new(IDLE),
            is_timed: AtomicBool::new(false),
            is_half_undone: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            opened_by: std::process::id(),
        }
    }
}

/// What calls that name their bytes have written.
#[derive(Default)]
struct Written {
    /// Pages that were written, or may have been, from their beginning to their end.
    pages: PageSet,
    parts: Parts,
}

/// Bytes of pages, from the first to the last that was written, by page.
type Parts = BTreeMap<u64, Range<u16>>;

impl Written {
    fn insert(&mut self, bytes: Range<u64>) {
        let whole = bytes.start.div_ceil(PAGE)..bytes.end / PAGE;
        for page in [bytes.start / PAGE, bytes.end / PAGE] {
            let start = bytes.start.clamp(page * PAGE, (page + 1) * PAGE) - page * PAGE;
            let end = bytes.end.clamp(page * PAGE, (page + 1) * PAGE) - page * PAGE;
            if start < end && !whole.contains(&page) {
                let part = self.parts.entry(page).or_insert(start as u16..end as u16);
                *part = part.start.min(start as u16)..part.end.max(end as u16);
            }
        }
        if !whole.is_empty() {
            self.pages.insert(whole);
        }
    }

    fn runs(&self) -> usize {
        self.pages.runs() + self.parts.len()
    }

    /// The pages, as runs in no order.
    fn all_pages(&self) -> Vec<Range<u64>> {
        let mut runs = self.pages.runs_in(&EVERYTHING, usize::MAX);
        runs.extend(self.parts.keys().map(|page| *page..page + 1));
        runs
    }

    /// The parts of pages that are not to be logged whole.
    fn into_parts(mut self) -> Parts {
        let pages = self.pages;
        self.parts.retain(|page, part| {
            part.end - part.start < MOST_OF_PAGE && pages.runs_in(&(*page..page + 1), 1).is_empty()
        });
        self.parts
    }
}

const EVERYTHING: Range<u64> = 0..u64::MAX / PAGE;

/// A commit that takes what is dirty, until it is dropped.
struct Look<'a>(&'a Commits);

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.0.looks.fetch_add(1, Ordering::AcqRel);
    }
}

impl Commits {
    /// Begins to take what is dirty, in the file's turn. Whoever wrote before this and has not noted it sees that, and marks whole pages.
    fn look(&self) -> (Look<'_>, Written) {
        let mut written = lock(&self.written);
        self.looks.fetch_add(1, Ordering::AcqRel);
        (Look(self), std::mem::take(&mut *written))
    }
}

/// The journal's limits for a pager with this budget: index and buffer within a small part of it.
pub fn limits(engine: &super::Engine) -> Limits {
    let most = Limits::default();
    // Records are pages, mostly: the index takes a sixteenth of what they do.
    let checkpoint = engine.budget.limit().clamp(64 << 10, most.checkpoint);
    Limits { entry: engine.buffers.max_run() as usize, checkpoint, ..most }
}

/// Charges what the journal needs of the budget for as long as the file is open.
///
/// # Errors
/// [`Error::BudgetExhausted`].
pub(crate) fn open(file: &File) -> Result<()> {
    let Some(commits) = &file.commits else { return Ok(()) };
    let fixed = commits.atomic.buffer_bytes();
    let slack = slack_pages(file) * PIECE_BYTES;
    fill::reserve(file, fixed + slack, Patience::Until(file.pager.now() + file.deadline))?;
    file.charges.journal.fetch_add(fixed + slack, Ordering::AcqRel);
    commits.index_room.store(slack, Ordering::Release);
    Ok(())
}

/// Pages that the index has room for though nothing can be evicted: a batch of the evictor's, and one block at least.
fn slack_pages(file: &File) -> u64 {
    const LEAST: u64 = 16;
    let batch = evict::pressure_batch(&file.pager) / PAGE;
    batch.max(file.block_size() / PAGE).max(LEAST)
}

/// Makes all changes so far durable together: all of them, or none.
///
/// # Errors
/// [`Error::Latched`] if an earlier commit or spill failed and was not acknowledged; what this one meets: it is latched, and
/// all pages concerned are dirty still.
pub fn commit(file: &Arc<File>) -> Result<()> {
    let commits = usable(file)?;
    if let Some(source) = lock(&file.latch).clone() {
        return Err(Error::Latched { path: file.name.clone(), source });
    }
    // What the caller wrote is before this, so the next commit that begins to look finds it.
    fence(Ordering::SeqCst);
    let covered_by = commits.begun.load(Ordering::SeqCst) + 1;
    where_it_may_hang(file, move |file| {
        let commits = usable(file)?;
        if may_have_changes(file, commits) {
            wait_for_checkpoint(file, commits);
        }
        let _turn = file.take_turn()?;
        if let Some((number, outcome)) = lock(&commits.ended).clone()
            && number >= covered_by
        {
            return outcome;
        }
        let number = commits.begun.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        let outcome = commit_all(file, commits).inspect_err(|error| {
            // Who knows what is dirty now.
            commits.sliced.store(true, Ordering::Release);
            lock(&file.latch).get_or_insert_with(|| Arc::new(error.clone()));
        });
        *lock(&commits.ended) = Some((number, outcome.clone()));
        look_after(file, commits);
        outcome
    })
}

/// Commits what is dirty, in the file's turn.
fn commit_all(file: &Arc<File>, commits: &Commits) -> Result<()> {
    if commits.is_half_undone.load(Ordering::Acquire) {
        return Err(Error::invalid(
            format!("{}: a commit after a rollback that failed", file.name),
            "roll back again first",
        ));
    }
    let (_look, written) = commits.look();
    let (blocks, parts) = changed_blocks(file, commits, written)?;
    if blocks.is_empty() && !commits.atomic.has_changes() {
        return Ok(());
    }
    log(file, commits, &blocks, &parts, Then::Commit)
}

/// Moves dirty pages to the journal, uncommitted, so that their frames may go. In the file's turn.
///
/// # Errors
/// What the journal meets: all of them are dirty still.
pub(crate) fn spill(file: &Arc<File>, commits: &Commits, blocks: &[u64]) -> Result<()> {
    if commits.opened_by != std::process::id() {
        return Ok(());
    }
    if commits.is_closing.load(Ordering::Acquire) {
        return write_batch(file, blocks, |_, _| Ok(())); // the map is gone, and what it did not commit with it
    }
    let spilled = log(file, commits, blocks, &Parts::new(), Then::Spill);
    look_after(file, commits);
    spilled
}

/// Drops all changes since the last commit. The caller has exclusive access: nobody holds a slice or a pin.
///
/// # Errors
/// [`Error::Io`] if an earlier commit is in doubt and could not be undone: the changes are dropped all the same.
/// [`Error::TimedOut`] if a block in transition does not settle, or what the page tables say: then nothing can be committed before
/// a rollback succeeds.
pub fn rollback(file: &Arc<File>) -> Result<()> {
    where_it_may_hang(file, |file| {
        let commits = usable(file)?;
        let _turn = file.take_turn()?;
        let undone = commits.atomic.uncommitted();
        let (_look, written) = commits.look();
        let (mut blocks, _) = changed_blocks(file, commits, written).inspect_err(|_| {
            commits.sliced.store(true, Ordering::Release);
        })?;
        let pages_in_block = file.block_size() / PAGE;
        blocks.extend(undone.pages.iter().map(|page| page / pages_in_block));
        let was_half = commits.is_half_undone.swap(true, Ordering::AcqRel);
        let from = if was_half { 0 } else { undone.from >> file.block_shift };
        let all = file.capacity() >> file.block_shift;
        // First: a fill that begins after this reads what was committed.
        let rolled_back = commits.atomic.rollback();
        let len = commits.atomic.len();
        lock(&file.lengths).settle_at(len);
        blocks.extend(file.used_runs(from.min(all)..all).flatten());
        blocks.sort_unstable();
        blocks.dedup();
        file.forget_blocks(&blocks)?;
        commits.is_half_undone.store(false, Ordering::Release);
        settle_room(file, commits);
        rolled_back?;
        *lock(&file.latch) = None;
        Ok(())
    })
}

/// A view of the last commit that stays what it is.
///
/// # Errors
/// [`Error::Invalid`] if the file is not under atomic commit.
pub fn snapshot(file: &File) -> Result<Snapshot> {
    Ok(usable(file)?.atomic.snapshot())
}

/// Ends the commits of a file: what is not committed is dropped, the file brought to the last commit, the journal removed.
///
/// # Errors
/// What journal and file meet: both are left for the next open.
pub fn close(file: &Arc<File>) -> Result<()> {
    let Some(commits) = &file.commits else { return Ok(()) };
    if commits.opened_by != std::process::id() {
        return Ok(());
    }
    commits.is_closing.store(true, Ordering::Release);
    where_it_may_hang(file, |file| {
        let commits = usable(file)?;
        let since = file.pager.now();
        while commits.checkpoint.load(Ordering::Acquire) == RUNNING {
            let waited = file.pager.now() - since;
            if waited >= file.deadline {
                return Err(file.timed_out(0..file.len(), waited));
            }
            file.pager.kernel.wait(&commits.checkpoint, RUNNING, Some(file.deadline - waited));
        }
        let _turn = file.take_turn()?;
        Ok(commits.atomic.close()?)
    })
}

/// The commits of a file that this process may change.
fn usable(file: &File) -> Result<&Commits> {
    let refused = |what, remedy| Err(Error::invalid(format!("{}: {what}", file.name), remedy));
    match &file.commits {
        None => refused("a commit of a file that has no journal", "open it with Durability::Atomic"),
        Some(commits) if commits.opened_by != std::process::id() => {
            refused("a commit in a child made by fork(2)", "commit in the process that opened the file")
        }
        Some(commits) => Ok(commits),
    }
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Commit,
    Spill,
}

/// Blocks that may be dirty: all that the dirty set knows, and those that were written to since the last look, or where slices
/// were, what the page tables tell. And which of their pages were written in part only.
fn changed_blocks(file: &File, commits: &Commits, written: Written) -> Result<(Vec<u64>, Parts)> {
    let all = 0..file.block_count();
    if commits.sliced.swap(false, Ordering::AcqRel) {
        return Ok((dirty_blocks(file, all)?, Parts::new()));
    }
    let mut runs = written.all_pages();
    runs.extend(lock(&file.dirty).runs_in(&EVERYTHING, usize::MAX));
    let pages_in_block = file.block_size() / PAGE;
    let blocks =
        runs.into_iter().flat_map(|run| run.start / pages_in_block..run.end.div_ceil(pages_in_block));
    let mut blocks: Vec<u64> = blocks.filter(|block| all.contains(block)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let parts = if commits.in_parts { written.into_parts() } else { Parts::new() };
    Ok((blocks, parts))
}

/// Logs the dirty pages of blocks: in one batch, with one sync, unless the memory for its index can't be had at once.
fn log(file: &Arc<File>, commits: &Commits, blocks: &[u64], parts: &Parts, then: Then) -> Result<()> {
    let pages_in_block = file.block_size() / PAGE;
    let mut rest = blocks;
    loop {
        let mut room = index_room(file, commits, rest.len() as u64 * pages_in_block) / pages_in_block;
        if room == 0 && !rest.is_empty() {
            shrink_index(file, commits)?;
            room = index_room(file, commits, rest.len() as u64 * pages_in_block) / pages_in_block;
        }
        if room == 0 && !rest.is_empty() {
            return Err(Error::BudgetExhausted {
                path: file.name.clone(),
                needed: rest.len() as u64 * pages_in_block * PIECE_BYTES,
                budget: file.pager.budget.total(),
                remedy: "the index of the journal takes the rest: commit more often, or raise Pager::builder().budget()",
            });
        }
        let (now, later) = rest.split_at((room as usize).min(rest.len()));
        let is_last = later.is_empty();
        let then = if is_last { then } else { Then::Spill };
        let attempt = || write_batch(file, now, |file, taken| log_pages(file, commits, taken, parts, then));
        let mut logged = attempt();
        // What the journal has and the file may have is room on a full disk, which no new block gives.
        if logged.as_ref().is_err_and(is_full)
            && commits.atomic.lacks_a_checkpoint()
            && shrink_index(file, commits).is_ok()
        {
            logged = attempt();
        }
        logged?;
        settle_room(file, commits);
        if is_last {
            return Ok(());
        }
        rest = later;
    }
}

/// Whether there was no room on the disk.
fn is_full(error: &Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let Error::Io { source, .. } = error else { return false };
    matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Copies pages out through their frames into the journal, as far as the file reaches, or the parts of them that were written, and
/// syncs. A page that the dirty set had was changed by more than the calls whose parts are known.
fn log_pages(file: &File, commits: &Commits, taken: &Taken, parts: &Parts, then: Then) -> Result<()> {
    let end = file.len();
    let mut batch = commits.atomic.begin();
    let mut put = |bytes: Range<u64>| {
        let bytes = bytes.start..bytes.end.min(end);
        if bytes.is_empty() {
            return Ok(());
        }
        file.counted.written_back(bytes.end - bytes.start);
        batch.put_with(bytes, |at, slot| {
            let len = slot.len() as u64;
            let failed = |error| Error::io("load a frame", file.name.clone(), at, len, error);
            file.frames.load(at, slot).map_err(failed)
        })
    };
    for run in &taken.pages {
        let mut whole_from = run.start;
        for (&page, part) in parts.range(run.clone()).filter(|(page, _)| !taken.was_known(**page)) {
            put(whole_from * PAGE..page * PAGE)?;
            put(page * PAGE + u64::from(part.start)..page * PAGE + u64::from(part.end))?;
            whole_from = page + 1;
        }
        put(whole_from * PAGE..run.end * PAGE)?;
    }
    match then {
        Then::Commit => batch.commit().map(drop)?,
        Then::Spill => batch.spill()?,
    }
    Ok(())
}

/// Charges the index for up to `pages` more records; for how many there is room.
fn index_room(file: &Arc<File>, commits: &Commits, pages: u64) -> u64 {
    let used = commits.atomic.index_bytes();
    let have = commits.index_room.load(Ordering::Acquire);
    let slack = slack_pages(file);
    for wanted in [pages + slack, file.block_size() / PAGE] {
        let more = (used + wanted * PIECE_BYTES).saturating_sub(have);
        if more == 0 {
            break;
        }
        if take_room(file, commits, more) {
            break;
        }
    }
    ((commits.index_room.load(Ordering::Acquire) - used) / PIECE_BYTES).min(pages)
}

/// Charges the index for so many more bytes, if there is anything clean to drop for them. In the file's turn.
fn take_room(file: &Arc<File>, commits: &Commits, bytes: u64) -> bool {
    let engine = &***file.pager;
    let mut is_there = fill::reserve(file, bytes, Patience::Never).is_ok();
    if !is_there {
        // The policy looked at a few blocks only, which were dirty.
        evict::drop_clean(file, 0..file.block_count());
        is_there = engine.budget.try_reserve(bytes);
    }
    if is_there {
        file.charges.journal.fetch_add(bytes, Ordering::AcqRel);
        commits.index_room.fetch_add(bytes, Ordering::AcqRel);
    }
    is_there
}

/// Lets index and journal forget what a checkpoint can bring to the file, here and now, or by one that runs. In the file's turn.
fn shrink_index(file: &Arc<File>, commits: &Commits) -> Result<()> {
    let since = file.pager.now();
    while commits.checkpoint.swap(RUNNING, Ordering::AcqRel) == RUNNING {
        // It does not wait for the turn.
        let waited = file.pager.now() - since;
        if waited >= file.deadline {
            return Err(file.timed_out(0..file.len(), waited));
        }
        file.pager.kernel.wait(&commits.checkpoint, RUNNING, Some(file.deadline - waited));
    }
    let claimed = commits.atomic.claim().map_err(Error::from);
    let brought = bring(commits, || false);
    end_checkpoint(file, commits);
    claimed.and(brought)
}

/// Gives back what the index does not need any more, all but the slack, or takes slack anew: blocks that a batch has made clean
/// can be dropped for it. In the file's turn.
fn settle_room(file: &Arc<File>, commits: &Commits) {
    let wanted = commits.atomic.index_bytes() + slack_pages(file) * PIECE_BYTES;
    let have = commits.index_room.load(Ordering::Acquire);
    if have < wanted {
        take_room(file, commits, wanted - have);
    } else if have > wanted {
        commits.index_room.store(wanted, Ordering::Release);
        file.charges.journal.fetch_sub(have - wanted, Ordering::AcqRel);
        file.pager.budget.release(&*file.pager.kernel, have - wanted);
    }
}

/// Lets a checkpoint run soon where one is due, or later.
fn look_after(file: &Arc<File>, commits: &Commits) {
    if commits.atomic.wants_checkpoint() {
        checkpoint_soon(file, commits, false);
    } else {
        checkpoint_later(file, commits);
    }
}

/// Lets a checkpoint run when its time has come, if there is anything to bring to the file.
fn checkpoint_later(file: &Arc<File>, commits: &Commits) {
    if commits.atomic.lacks_a_checkpoint() && !commits.is_timed.swap(true, Ordering::AcqRel) {
        let waker = Waker::from(Arc::new(Later(Arc::downgrade(file))));
        file.pager.watch.at(&file.pager, file.pager.now() + LATEST, waker);
    }
}

/// Whether a commit that begins now is likely to write anything.
fn may_have_changes(file: &File, commits: &Commits) -> bool {
    commits.sliced.load(Ordering::Acquire)
        || lock(&commits.written).runs() > 0
        || lock(&file.dirty).runs() > 0
        || commits.atomic.has_changes()
}

/// A commit must not fill the journal faster than checkpoints empty it: where it is twice as long as it should get, it waits for
/// the one that runs, but not for ever.
fn wait_for_checkpoint(file: &File, commits: &Commits) {
    let until = file.pager.now() + file.deadline;
    while commits.checkpoint.load(Ordering::Acquire) == RUNNING && commits.atomic.is_full() {
        let Some(left) = until.checked_sub(file.pager.now()).filter(|left| !left.is_zero()) else { return };
        file.pager.kernel.wait(&commits.checkpoint, RUNNING, Some(left));
    }
}

/// Asks for a checkpoint when its time has come.
struct Later(Weak<File>);

impl Wake for Later {
    fn wake(self: Arc<Self>) {
        let Some(file) = self.0.upgrade() else { return };
        let Some(commits) = &file.commits else { return };
        commits.is_timed.store(false, Ordering::Release);
        if commits.atomic.lacks_a_checkpoint() {
            checkpoint_soon(&file, commits, true);
        }
    }
}

/// Lets a pool thread make a checkpoint, if none runs; of the last commit too if `all`.
fn checkpoint_soon(file: &Arc<File>, commits: &Commits, all: bool) {
    if commits.is_closing.load(Ordering::Acquire)
        || commits.checkpoint.swap(RUNNING, Ordering::AcqRel) == RUNNING
    {
        return;
    }
    let own = Arc::clone(file);
    let job = move |_: &Arc<super::Engine>| {
        let Some(commits) = &own.commits else { return };
        let brought = checkpoint(&own, commits, all);
        end_checkpoint(&own, commits);
        match brought {
            Ok(()) => look_after(&own, commits),
            Err(error) => {
                // Nothing is lost: the journal keeps everything, and the next one writes all of it again. Not at once: what broke
                // this one, a disk that is full perhaps, breaks the next as well for a while.
                tracing::warn!(file = %own.name, %error, "a checkpoint failed");
                checkpoint_later(&own, commits);
            }
        }
    };
    file.pager.pool.submit(&file.pager, file.job_kind(), Box::new(job));
}

/// Brings the file to what was committed, but for the last commit perhaps: that is claimed, which costs a sync, where it is asked
/// for or the rest is too little.
fn checkpoint(file: &Arc<File>, commits: &Commits, all: bool) -> Result<()> {
    let is_closing = || commits.is_closing.load(Ordering::Acquire);
    for claims in if all { &[true][..] } else { &[false, true] } {
        // Without waiting: whoever has the turn may wait for this checkpoint, and whatever it commits names what came before.
        if *claims
            && let Some(_turn) = file.turn.try_enter(&*file.pager.kernel)
            && !is_closing()
        {
            commits.atomic.claim()?;
        }
        bring(commits, is_closing)?;
        // Where somebody else has the turn, that one does it.
        if let Some(_turn) = file.turn.try_enter(&*file.pager.kernel) {
            settle_room(file, commits);
        }
        if is_closing() || !commits.atomic.wants_checkpoint() {
            return Ok(());
        }
    }
    Ok(())
}

/// Brings the file to the commits that it may be brought to, unless told to stop.
fn bring(commits: &Commits, stops: impl Fn() -> bool) -> Result<()> {
    let Some(mut checkpoint) = commits.atomic.begin_checkpoint() else { return Ok(()) };
    while !checkpoint.step()? {
        if stops() {
            return Ok(());
        }
    }
    checkpoint.finish()?;
    Ok(())
}

fn end_checkpoint(file: &File, commits: &Commits) {
    commits.checkpoint.store(IDLE, Ordering::Release);
    file.pager.kernel.wake(&commits.checkpoint);
}

impl File {
    /// Notes that slices of it were written through, or may have been, since the last commit.
    pub fn note_slices(&self) {
        if let Some(commits) = &self.commits {
            commits.sliced.store(true, Ordering::Release);
        }
    }

    /// To be asked before bytes are written that [`note_written`](Self::note_written) is told of.
    pub(super) fn looks(&self) -> u64 {
        self.commits.as_ref().map_or(0, |commits| commits.looks.load(Ordering::Acquire))
    }

    /// Notes that bytes were written by a call, after they were, while their blocks are pinned; `looks` is what [`looks`](Self::looks)
    /// said before.
    ///
    /// A commit that took these pages meanwhile may have logged a part of them, the one that another call has noted, and called
    /// them clean: so they are marked dirty.
    pub(super) fn note_written(&self, bytes: Range<u64>, looks: u64) {
        let Some(commits) = &self.commits else { return };
        if bytes.is_empty() {
            return;
        }
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        let mut written = lock(&commits.written);
        let now = commits.looks.load(Ordering::Acquire);
        if (now != looks || now % 2 == 1) && !sabotage::is(Sabotage::LateNote) {
            drop(written);
            return self.mark_dirty(pages);
        }
        if commits.sliced.load(Ordering::Acquire) {
            return;
        }
        written.insert(bytes);
        if written.runs() > MAX_RUNS {
            *written = Written::default();
            commits.sliced.store(true, Ordering::Release);
        }
    }

    /// The least length that the store may have if nobody else has cut it, and how often that has changed by the journal.
    pub(super) fn least_stored(&self) -> (u64, u64) {
        match &self.commits {
            Some(commits) => commits.atomic.least_len(),
            None if self.writable => (lock(&self.lengths).backed, 0),
            None => (self.version().len, 0),
        }
    }

    /// What the store lacks of a range, to be laid over what is read of it; taken before it is read.
    pub(super) fn overlay(&self, bytes: Range<u64>) -> Option<Overlay<'_>> {
        let commits = self.commits.as_ref()?;
        Some(commits.atomic.overlay(bytes.start, (bytes.end - bytes.start) as usize))
    }

    /// Lays over what was read from `offset` on what the store lacks; reads anew what a checkpoint has overtaken.
    pub(super) fn lay_over(
        &self,
        overlay: Option<&Overlay<'_>>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let (Some(commits), Some(overlay)) = (&self.commits, overlay) else { return Ok(()) };
        if !overlay.apply(buffer)? {
            let got = commits.atomic.read(offset, buffer)?;
            buffer[got..].fill(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_pages_are_noted_beside_whole_ones() {
        let mut written = Written::default();
        for bytes in [
            10..20,
            100..110,
            4 * PAGE - 3..4 * PAGE + 2,
            8 * PAGE + 1..11 * PAGE,
            9 * PAGE + 1..9 * PAGE + 2,
        ] {
            written.insert(bytes);
        }
        assert_eq!(written.runs(), 6);
        assert_eq!(written.all_pages().into_iter().flatten().collect::<Vec<_>>(), [9, 10, 0, 3, 4, 8, 9]);
        let parts: Vec<_> = written.into_parts().into_iter().collect();
        assert_eq!(parts, [(0, 10..110), (3, 4093..4096), (4, 0..2)], "8 is nearly whole, 9 is");
    }

    /// Against a list of bytes, over a walk.
    #[test]
    fn what_is_noted_holds_every_byte_that_was_written() {
        const PAGES: u64 = 5;
        let mut seed = 1u64;
        let mut random = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        for _ in 0..300 {
            let (mut written, mut bytes) = (Written::default(), vec![false; (PAGES * PAGE) as usize]);
            for _ in 0..random(5) {
                let start = random(PAGES * PAGE);
                let most = [20, PAGE, 3 * PAGE][random(3) as usize];
                let end = (start + random(most) + 1).min(PAGES * PAGE);
                written.insert(start..end);
                bytes[start as usize..end as usize].fill(true);
            }
            let mut noted = vec![false; bytes.len()];
            let pages: Vec<u64> = written.all_pages().into_iter().flatten().collect();
            let parts = written.into_parts();
            for page in pages {
                let part = parts.get(&page).map_or(0..PAGE, |part| part.start.into()..part.end.into());
                noted[(page * PAGE + part.start) as usize..(page * PAGE + part.end) as usize].fill(true);
            }
            assert!(bytes.iter().zip(&noted).all(|(written, noted)| !written || *noted));
            let of_page =
                |bytes: &[bool], page: usize| bytes[page * PAGE as usize..][..PAGE as usize].contains(&true);
            assert!((0..PAGES as usize).all(|page| of_page(&bytes, page) == of_page(&noted, page)));
        }
    }
}
