//! Simulated frames: a file's memory and its two views, page by page, as Linux treats a memfd with `UFFD_WP_ASYNC`. Those that
//! move are in `moved.rs`, made of the same parts.
//!
//! A page's entry in a view (writable files; in read-only files nothing is write-protected, and `Marker` never appears):
//!
//! | entry | → | by |
//! | --- | --- | --- |
//! | None, Marker, Poison | Clean | `map` |
//! | Clean | Written | a write through the view, `copy_in` |
//! | Written | Clean | `take_written` |
//! | None | Marker | `take_written` |
//! | Clean | Marker | `unmap`, `release`: "zap, then look" tells clean from written |
//! | Written | None | `unmap`, `release` |
//! | Poison | None | `unmap` (MADV_DONTNEED drops poison; a punched hole does not) |
//! | None, Marker | Poison | `poison` (plain view) |
//! | any | Zeros, Zeros → None | `zero`, `restore` (checked view) |
//!
//! `written` reports None, Written, Poison and Zeros, as PAGEMAP_SCAN does for entries without the write-protect bit.
//!
//! Locks: `Space::state`, never held over a yield point. What breaks the contract of `Frames` panics here: it is a bug of
//! the caller. Steps that are atomic: one page of each call; one piece of a copy.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mapwright::engine::kernel::{FaultMode, FaultSink, FrameSpec, Frames, View};

use crate::PAGE_SIZE;
use crate::moved::Whole;
use crate::scheduler::Core;
use crate::state::On;

/// log2 of the bytes between two views: nothing is anywhere near anything else.
const VIEW_SHIFT: u32 = 41;
/// How often, of 100, somebody else may run between two pages of a call.
const BETWEEN_PAGES_PERCENT: u32 = 25;
/// How often, of 1000, a copy is cut at the next byte count drawn, with a yield point there.
const CUT_PER_1000: u32 = 300;

/// A page's entry in a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    None,
    Marker,
    Clean,
    Written,
    Zeros,
    Poison,
}

impl Entry {
    pub(crate) fn is_mapped(self) -> bool {
        matches!(self, Self::Clean | Self::Written)
    }

    fn zapped(self, writable: bool) -> Self {
        match self {
            Self::Clean if writable => Self::Marker,
            Self::Clean | Self::Written => Self::None,
            other => other,
        }
    }
}

pub(crate) type Page = Box<[u8]>;

#[derive(Default)]
pub(crate) struct SpaceState {
    /// The `Frames` was dropped: its addresses are nobody's.
    gone: bool,
    pub(crate) checked_exists: bool,
    pub(crate) frames: BTreeMap<u64, Page>,
    /// What the checked view shows of frames that move.
    pub(crate) copies: BTreeMap<u64, Page>,
    /// Whole regions of frames that move, by their first page.
    pub(crate) regions: BTreeMap<u64, Whole>,
    entries: [BTreeMap<u64, Entry>; 2],
    /// What was written over the zeros of the checked view: lost at `restore`.
    over_zeros: BTreeMap<u64, Page>,
}

/// One file's memory and address ranges.
pub(crate) struct Space {
    id: usize,
    pub(crate) capacity: u64,
    writable: bool,
    /// Whether the checked view shows copies.
    copies: bool,
    pub(crate) mode: FaultMode,
    pub(crate) sink: Weak<dyn FaultSink>,
    state: Mutex<SpaceState>,
}

/// One piece of an access: within one page.
pub(crate) enum Access<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Done,
    Fault,
    Bus,
}

impl Space {
    pub(crate) fn lock(&self) -> MutexGuard<'_, SpaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn base(&self, view: View) -> usize {
        (1 + self.id * 2 + index(view)) << VIEW_SHIFT
    }

    /// The view and offset behind an address, when it is of this space.
    pub(crate) fn locate(&self, address: usize) -> Option<(View, u64)> {
        let inside = |view| {
            let offset = address.checked_sub(self.base(view))? as u64;
            (offset < self.capacity).then_some((view, offset))
        };
        inside(View::Plain).or_else(|| inside(View::Checked)).filter(|_| !self.lock().gone)
    }

    /// A user's touch of bytes of one page.
    pub(crate) fn touch(&self, view: View, offset: u64, access: Access<'_>) -> Touch {
        let state = &mut *self.lock();
        let page = offset / PAGE_SIZE;
        if let Access::Write(_) = access {
            assert!(self.writable, "SIGSEGV: a write to the read-only file {} at {offset:#x}", self.id);
        }
        match state.entry(view, page) {
            Entry::None | Entry::Marker => return Touch::Fault,
            Entry::Poison => return Touch::Bus,
            Entry::Zeros => {
                let zeros = state.over_zeros.entry(page).or_insert_with(zero_page);
                copy_piece(zeros, offset, access);
            }
            Entry::Clean | Entry::Written => {
                if let Access::Write(_) = access {
                    state.set(view, page, Entry::Written);
                }
                let copied = self.copies && view == View::Checked;
                let frames = if copied { &mut state.copies } else { &mut state.frames };
                let frame = frames.get_mut(&page).expect("a mapped page has a frame");
                copy_piece(frame, offset, access);
            }
        }
        Touch::Done
    }
}

impl SpaceState {
    pub(crate) fn entry(&self, view: View, page: u64) -> Entry {
        self.entries[index(view)].get(&page).copied().unwrap_or(Entry::None)
    }

    pub(crate) fn set(&mut self, view: View, page: u64, entry: Entry) {
        match entry {
            Entry::None => self.entries[index(view)].remove(&page),
            entry => self.entries[index(view)].insert(page, entry),
        };
    }

    fn zap(&mut self, page: u64, writable: bool) {
        for view in [View::Plain, View::Checked] {
            self.set(view, page, self.entry(view, page).zapped(writable));
        }
    }
}

/// `Frames` of one file in a run.
pub(crate) struct SimFrames {
    pub(crate) core: Arc<Core>,
    pub(crate) space: Arc<Space>,
}

impl SimFrames {
    pub(crate) fn new(core: &Arc<Core>, spec: FrameSpec) -> Self {
        assert!(
            spec.capacity.is_multiple_of(PAGE_SIZE),
            "capacity {} is not a multiple of the page",
            spec.capacity
        );
        assert!(spec.capacity < 1 << (VIEW_SHIFT - 1), "capacity {} is too large to simulate", spec.capacity);
        let spaces = &mut core.lock().spaces;
        let space = Arc::new(Space {
            id: spaces.len(),
            capacity: spec.capacity,
            writable: spec.writable,
            copies: spec.may_move(),
            mode: spec.mode,
            sink: spec.sink,
            state: Mutex::default(),
        });
        spaces.push(Arc::clone(&space));
        Self { core: Arc::clone(core), space }
    }

    pub(crate) fn enter(&self, what: &'static str, from: u64, to: u64) {
        self.core.enter(what, [self.space.id as u64, from, to]);
    }

    /// The pages of a range of offsets, checked.
    pub(crate) fn pages(&self, range: &Range<u64>) -> Range<u64> {
        let (start, end) = (range.start, range.end);
        assert!(
            start.is_multiple_of(PAGE_SIZE)
                && end.is_multiple_of(PAGE_SIZE)
                && start <= end
                && end <= self.space.capacity,
            "a bad range for a file of capacity {:#x}: {range:#x?}",
            self.space.capacity
        );
        start / PAGE_SIZE..end / PAGE_SIZE
    }

    /// Does `act` for every page of `range`, with a chance for others between pages.
    pub(crate) fn each_page(
        &self,
        range: &Range<u64>,
        mut act: impl FnMut(&mut SpaceState, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        for page in self.pages(range) {
            act(&mut self.space.lock(), page)?;
            self.core.maybe_step(BETWEEN_PAGES_PERCENT);
        }
        Ok(())
    }

    /// As `each_page`, for what can't fail.
    pub(crate) fn every_page(&self, range: &Range<u64>, mut act: impl FnMut(&mut SpaceState, u64)) {
        let done = self.each_page(range, |state, page| {
            act(state, page);
            Ok(())
        });
        debug_assert!(done.is_ok());
    }

    /// Lets threads that wait for a page of `pages` in a view touch it again.
    pub(crate) fn wake_waiters(&self, views: &[View], pages: Range<u64>) {
        self.core.lock().wake_where(|_, on| {
            let On::Fault(address) = on else { return false };
            views.iter().any(|&view| {
                let offset = (address as u64).checked_sub(self.space.base(view) as u64);
                offset.is_some_and(|offset| pages.contains(&(offset / PAGE_SIZE)))
            })
        });
    }

    pub(crate) fn fail_at_random(&self) -> io::Result<()> {
        let per_1000 = self.core.options.frame_errors_per_1000;
        if self.core.lock().rng.per_1000(per_1000) {
            self.core.note("no memory", [self.space.id as u64, 0, 0]);
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        Ok(())
    }

    pub(crate) fn count_frames(&self, change: i64) {
        let state = &mut *self.core.lock();
        state.resident_pages =
            state.resident_pages.checked_add_signed(change).expect("no more frames go than came");
        state.peak_resident_pages = state.peak_resident_pages.max(state.resident_pages);
    }

    /// What `written` and `take_written` share: reports pages for which `take` (given state and page) says yes. Where it fails,
    /// what it has come to until then is done and reported.
    fn scan(
        &self,
        what: &'static str,
        range: &Range<u64>,
        out: &mut Vec<Range<u64>>,
        mut take: impl FnMut(&mut SpaceState, u64) -> bool,
    ) -> io::Result<()> {
        assert!(self.space.writable, "{what} asked of a read-only file");
        self.enter(what, range.start, range.end);
        let before = out.len();
        let outcome = self.each_page(range, |state, page| {
            self.fail_at_random()?;
            if take(state, page) {
                let (start, end) = (page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
                match out[before..].last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => out.push(start..end),
                }
            }
            Ok(())
        });
        self.core.note("found", [(out.len() - before) as u64, 0, 0]);
        self.core.step();
        outcome
    }
}

const EFAULT: i32 = 14;
const ENOMEM: i32 = 12;
const EEXIST: i32 = 17;

impl Frames for SimFrames {
    fn address(&self, view: View) -> mapwright::Result<usize> {
        self.enter("address", index(view) as u64, 0);
        if view == View::Checked {
            self.space.lock().checked_exists = true;
        }
        Ok(self.space.base(view))
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let range = at..at + bytes.len() as u64;
        self.enter("store", range.start, range.end);
        self.each_page(&range, |state, page| {
            for view in [View::Plain, View::Checked] {
                let entry = state.entry(view, page);
                assert!(!entry.is_mapped(), "store to page {page}, which is {entry:?} in {view:?}");
            }
            self.fail_at_random()?;
            let from = (page * PAGE_SIZE - at) as usize;
            let contents = Page::from(&bytes[from..from + PAGE_SIZE as usize]);
            if state.frames.insert(page, contents).is_none() {
                self.count_frames(1);
            }
            Ok(())
        })?;
        self.core.step();
        Ok(())
    }

    fn load(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.enter("load", at, at + into.len() as u64);
        cut_copy(&self.core, at, into.len(), |offset, part| {
            let state = &mut *self.space.lock();
            match state.frames.get_mut(&(offset / PAGE_SIZE)) {
                Some(frame) => copy_piece(frame, offset, Access::Read(&mut into[part])),
                None => {
                    into[part].fill(0);
                    self.core.note("hole read", [self.space.id as u64, offset, 0]);
                    self.core.lock().hole_reads += 1;
                }
            }
        });
        self.core.step();
        Ok(())
    }

    fn map(&self, view: View, range: Range<u64>) -> io::Result<()> {
        self.enter(if view == View::Plain { "map plain" } else { "map checked" }, range.start, range.end);
        assert!(
            view == View::Plain || self.space.lock().checked_exists,
            "map in the checked view, whose address nobody asked for"
        );
        self.each_page(&range, |state, page| {
            self.fail_at_random()?;
            match state.entry(view, page) {
                Entry::Clean | Entry::Written | Entry::Zeros => {}
                Entry::None | Entry::Marker | Entry::Poison if state.frames.contains_key(&page) => {
                    state.set(view, page, Entry::Clean);
                }
                _ => return Err(io::Error::from_raw_os_error(EFAULT)),
            }
            self.wake_waiters(&[view], page..page + 1);
            Ok(())
        })?;
        self.core.step();
        Ok(())
    }

    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            self.enter("unmap", range.start, range.end);
            self.every_page(range, |state, page| {
                state.zap(page, self.space.writable);
                if state.entry(View::Plain, page) == Entry::Poison {
                    state.set(View::Plain, page, Entry::None);
                }
            });
        }
        self.core.step();
        Ok(())
    }

    fn written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.scan("written", &range, out, |state, page| {
            exists(state, view) && !matches!(state.entry(view, page), Entry::Clean | Entry::Marker)
        })
    }

    fn take_written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.scan("take written", &range, out, |state, page| {
            let entry = state.entry(view, page);
            match entry {
                _ if !exists(state, view) => return false,
                Entry::Clean | Entry::Marker => return false,
                Entry::Written => state.set(view, page, Entry::Clean),
                Entry::None => state.set(view, page, Entry::Marker),
                Entry::Zeros | Entry::Poison => {}
            }
            true
        })
    }

    fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            self.enter("release", range.start, range.end);
            self.every_page(range, |state, page| {
                state.zap(page, self.space.writable);
                if state.frames.remove(&page).is_some() {
                    self.count_frames(-1);
                }
            });
        }
        self.core.step();
        Ok(())
    }

    fn wake(&self, range: Range<u64>) {
        self.enter("wake pages", range.start, range.end);
        self.wake_waiters(&[View::Plain, View::Checked], self.pages(&range));
        self.core.step();
    }

    fn copy_out(&self, at: u64, into: &mut [u8]) {
        self.enter("copy out", at, at + into.len() as u64);
        cut_copy(&self.core, at, into.len(), |offset, part| {
            self.touch_held(offset, Access::Read(&mut into[part]));
        });
        self.core.step();
    }

    fn copy_in(&self, at: u64, bytes: &[u8]) {
        self.enter("copy in", at, at + bytes.len() as u64);
        cut_copy(&self.core, at, bytes.len(), |offset, part| {
            self.touch_held(offset, Access::Write(&bytes[part]));
        });
        self.core.step();
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.enter("zero", range.start, range.end);
        self.every_page(&range, |state, page| {
            state.set(View::Checked, page, Entry::Zeros);
            self.wake_waiters(&[View::Checked], page..page + 1);
        });
        self.core.step();
        Ok(())
    }

    fn restore(&self, range: Range<u64>) -> io::Result<()> {
        self.enter("restore", range.start, range.end);
        self.every_page(&range, |state, page| {
            state.over_zeros.remove(&page);
            state.set(View::Checked, page, Entry::None);
        });
        self.core.step();
        Ok(())
    }

    fn poison(&self, range: Range<u64>) -> io::Result<()> {
        self.enter("poison", range.start, range.end);
        self.each_page(&range, |state, page| {
            if state.entry(View::Plain, page).is_mapped() {
                return Err(io::Error::from_raw_os_error(EEXIST));
            }
            state.set(View::Plain, page, Entry::Poison);
            self.wake_waiters(&[View::Plain], page..page + 1);
            Ok(())
        })?;
        self.core.step();
        Ok(())
    }
}

impl SimFrames {
    fn touch_held(&self, offset: u64, access: Access<'_>) {
        let page = offset / PAGE_SIZE;
        let entry = self.space.lock().entry(View::Plain, page);
        assert!(
            entry.is_mapped(),
            "the engine touched page {page} of file {}, which it does not hold: {entry:?}",
            self.space.id
        );
        self.space.touch(View::Plain, offset, access);
    }
}

/// Unmaps everything. Not a yield point: it may run while a thread unwinds.
impl Drop for SimFrames {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *self.space.lock());
        self.space.lock().gone = true;
        let pages = held.frames.len() + held.copies.len();
        self.count_frames(-i64::try_from(pages).expect("frames fit"));
    }
}

/// The place of a view in arrays of both.
fn index(view: View) -> usize {
    match view {
        View::Plain => 0,
        View::Checked => 1,
        View::Remote(_) => unreachable!("simulated frames are shown to nobody else"),
    }
}

fn exists(state: &SpaceState, view: View) -> bool {
    view == View::Plain || state.checked_exists
}

fn zero_page() -> Page {
    vec![0; PAGE_SIZE as usize].into_boxed_slice()
}

/// Copies a piece that lies within one page, from or to its frame.
fn copy_piece(frame: &mut [u8], offset: u64, access: Access<'_>) {
    let from = (offset % PAGE_SIZE) as usize;
    match access {
        Access::Read(into) => into.copy_from_slice(&frame[from..from + into.len()]),
        Access::Write(bytes) => frame[from..from + bytes.len()].copy_from_slice(bytes),
    }
}

/// Does `act` for the pieces of a copy: at most to the end of a page, and cut anywhere else at random. Others may run
/// between pieces.
pub(crate) fn cut_copy(core: &Core, at: u64, len: usize, mut act: impl FnMut(u64, Range<usize>)) {
    let mut done = 0;
    while done < len {
        let offset = at + done as u64;
        let to_page_end = PAGE_SIZE - offset % PAGE_SIZE;
        let mut piece = to_page_end.min((len - done) as u64);
        let cut = {
            let rng = &mut core.lock().rng;
            let cut = piece > 1 && rng.per_1000(CUT_PER_1000);
            if cut {
                piece = rng.within(1..piece);
            }
            cut
        };
        act(offset, done..done + piece as usize);
        done += piece as usize;
        if cut {
            core.step();
        } else {
            core.maybe_step(BETWEEN_PAGES_PERCENT);
        }
    }
}
