//! Simulated frames that move: private memory of files that are only read, page by page and by whole regions.
//!
//! | a page is | frame | entry in the plain view |
//! | --- | --- | --- |
//! | absent | none | None, Poison |
//! | stored | one | None, Poison |
//! | mapped | one | Clean |
//!
//! The checked view shows copies (Clean), which count as memory, or zeros. Nothing is ever write-protected or written.
//!
//! | a region is | until | by |
//! | --- | --- | --- |
//! | made of pages | it is whole | `Regions::fill` |
//! | `Whole::Still` | it moves, or is made of pages | `Regions::map`, `unmap`; `take`, `split`, `Frames::release` of all of it |
//! | `Whole::Moving` | the call ends: nobody else may ask anything of it | |
//!
//! What the engine may not ask panics. A buffer that was moved from or to holds garbage.

use std::io;
use std::ops::Range;

use mapwright::engine::kernel::{Buffer, Frames, Regions, View};

use crate::PAGE_SIZE;
use crate::frames::{Entry, Page, SimFrames, SpaceState};

/// Pages of a region: few, so that small budgets have whole ones.
const PAGES: u64 = 4;
/// What a buffer holds whose pages were moved.
const GARBAGE: u8 = 0xdb;

/// A region whose frame is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whole {
    Still,
    Moving,
}

/// `Frames` that move, of one file in a run.
pub(crate) struct SimMoved(pub(crate) SimFrames);

/// The first page of the region of a page.
fn region_of(page: u64) -> u64 {
    page / PAGES * PAGES
}

/// Where a page of a region must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Absent,
    Stored,
    Mapped,
}

impl Place {
    fn of(state: &SpaceState, page: u64) -> Self {
        let mapped = state.entry(View::Plain, page).is_mapped();
        match (state.frames.contains_key(&page), mapped) {
            (false, false) => Self::Absent,
            (true, false) => Self::Stored,
            (true, true) => Self::Mapped,
            (false, true) => panic!("page {page} is mapped and has no frame"),
        }
    }

    fn shown(shown: bool) -> Self {
        if shown { Self::Mapped } else { Self::Stored }
    }
}

fn assert_of_pages(state: &SpaceState, page: u64, what: &str) {
    let whole = state.regions.get(&region_of(page));
    assert!(whole.is_none(), "{what} of page {page}, whose region is whole: {whole:?}");
}

impl SimMoved {
    /// Puts a page where there is none.
    fn put(&self, state: &mut SpaceState, page: u64, bytes: &[u8], shown: bool) -> io::Result<()> {
        let place = Place::of(state, page);
        assert!(place == Place::Absent && !state.copies.contains_key(&page), "page {page} is {place:?}");
        self.0.fail_at_random()?;
        state.frames.insert(page, Page::from(bytes));
        self.0.count_frames(1);
        if shown {
            self.show(state, page);
        }
        Ok(())
    }

    fn show(&self, state: &mut SpaceState, page: u64) {
        state.set(View::Plain, page, Entry::Clean);
        self.0.wake_waiters(&[View::Plain], page..page + 1);
    }

    fn drop_copy(&self, state: &mut SpaceState, page: u64) {
        state.set(View::Checked, page, Entry::None);
        if state.copies.remove(&page).is_some() {
            self.0.count_frames(-1);
        }
    }

    fn drop_page(&self, state: &mut SpaceState, page: u64) {
        state.set(View::Plain, page, Entry::None);
        if state.frames.remove(&page).is_some() {
            self.0.count_frames(-1);
        }
    }

    fn put_all(&self, what: &'static str, at: u64, bytes: &[u8], shown: bool) -> io::Result<()> {
        let range = at..at + bytes.len() as u64;
        self.0.enter(what, range.start, range.end);
        self.0.each_page(&range, |state, page| {
            assert_of_pages(state, page, what);
            let from = (page * PAGE_SIZE - at) as usize;
            self.put(state, page, &bytes[from..from + PAGE_SIZE as usize], shown)
        })?;
        self.0.core.step();
        Ok(())
    }

    /// Begins to move a region of which every page is in `place`: nobody else may until it is `Still` again.
    fn begin(&self, at: u64, place: Place) -> Range<u64> {
        let state = &mut *self.0.space.lock();
        let range = at..at + PAGES * PAGE_SIZE;
        let pages = self.0.pages(&range);
        assert!(pages.start == region_of(pages.start), "no region begins at {at:#x}");
        let expected = (place != Place::Absent).then_some(Whole::Still);
        let whole = state.regions.insert(pages.start, Whole::Moving);
        assert!(whole == expected, "region {} is {whole:?}, not {expected:?}", pages.start);
        for page in pages {
            assert_eq!(Place::of(state, page), place, "page {page} of a region");
        }
        range
    }

    /// Ends what `begin` began: the region is whole, or not.
    fn end(&self, range: &Range<u64>, whole: bool) {
        let regions = &mut self.0.space.lock().regions;
        let first = range.start / PAGE_SIZE;
        match whole {
            true => regions.insert(first, Whole::Still),
            false => regions.remove(&first),
        };
    }
}

impl Frames for SimMoved {
    fn address(&self, view: View) -> mapwright::Result<usize> {
        self.0.address(view)
    }

    fn has_copies(&self) -> bool {
        true
    }

    fn regions(&self) -> Option<&dyn Regions> {
        Some(self)
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.put_all("store", at, bytes, false)
    }

    fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.put_all("fill", at, bytes, true)
    }

    fn load(&self, at: u64, _into: &mut [u8]) -> io::Result<()> {
        panic!("load at {at:#x}, which is for files that are written");
    }

    fn map(&self, view: View, range: Range<u64>) -> io::Result<()> {
        self.0.enter(
            if view == View::Plain { "map plain" } else { "copy to checked" },
            range.start,
            range.end,
        );
        self.0.each_page(&range, |state, page| {
            self.0.fail_at_random()?;
            let place = Place::of(state, page);
            match view {
                View::Plain => {
                    assert_of_pages(state, page, "map");
                    assert!(place != Place::Absent, "map of page {page}, which is absent");
                    self.show(state, page);
                }
                View::Checked => {
                    assert!(place == Place::Mapped, "a copy of page {page}, which is {place:?}");
                    assert!(state.checked_exists, "a copy for a view whose address nobody asked for");
                    if state.entry(View::Checked, page) == Entry::None {
                        state.copies.insert(page, state.frames[&page].clone());
                        state.set(View::Checked, page, Entry::Clean);
                        self.0.count_frames(1);
                    }
                    self.0.wake_waiters(&[View::Checked], page..page + 1);
                }
                View::Remote(_) => unreachable!("frames that are moved are shown to nobody else"),
            }
            Ok(())
        })?;
        self.0.core.step();
        Ok(())
    }

    /// Pages that are held by I/O stay; all others leave.
    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut outcome = Ok(());
        for range in ranges {
            self.0.enter("unmap", range.start, range.end);
            self.0.every_page(range, |state, page| {
                assert_of_pages(state, page, "unmap");
                match self.0.fail_at_random() {
                    Ok(()) => state.set(View::Plain, page, Entry::None),
                    Err(error) => outcome = Err(error),
                }
            });
        }
        ranges.iter().for_each(|range| self.0.every_page(range, |state, page| self.drop_copy(state, page)));
        self.0.core.step();
        outcome
    }

    fn written(&self, _: View, range: Range<u64>, _: &mut Vec<Range<u64>>) -> io::Result<()> {
        panic!("written asked of a read-only file: {range:#x?}");
    }

    fn take_written(&self, _: View, range: Range<u64>, _: &mut Vec<Range<u64>>) -> io::Result<()> {
        panic!("take written asked of a read-only file: {range:#x?}");
    }

    fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            self.0.enter("release", range.start, range.end);
            let pages = self.0.pages(range);
            self.0.every_page(range, |state, page| {
                let region = region_of(page);
                if pages.contains(&region) && pages.end >= region + PAGES {
                    let whole = state.regions.remove(&region);
                    assert!(whole != Some(Whole::Moving), "release of region {region}, which moves");
                }
                assert_of_pages(state, page, "release");
                self.drop_page(state, page);
                self.drop_copy(state, page);
            });
        }
        self.0.core.step();
        Ok(())
    }

    fn wake(&self, range: Range<u64>) {
        self.0.wake(range);
    }

    fn copy_out(&self, at: u64, into: &mut [u8]) {
        self.0.copy_out(at, into);
    }

    fn copy_in(&self, at: u64, _bytes: &[u8]) {
        panic!("a write to a read-only file at {at:#x}");
    }

    /// Copies that are there stay.
    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.0.enter("zero", range.start, range.end);
        self.0.every_page(&range, |state, page| {
            if state.entry(View::Checked, page) == Entry::None {
                state.set(View::Checked, page, Entry::Zeros);
            }
            self.0.wake_waiters(&[View::Checked], page..page + 1);
        });
        self.0.core.step();
        Ok(())
    }

    fn restore(&self, range: Range<u64>) -> io::Result<()> {
        self.0.enter("restore", range.start, range.end);
        self.0.every_page(&range, |state, page| self.drop_copy(state, page));
        self.0.core.step();
        Ok(())
    }

    /// Pages that are mapped stay so.
    fn poison(&self, range: Range<u64>) -> io::Result<()> {
        self.0.enter("poison", range.start, range.end);
        self.0.every_page(&range, |state, page| {
            if !state.entry(View::Plain, page).is_mapped() {
                state.set(View::Plain, page, Entry::Poison);
            }
            self.0.wake_waiters(&[View::Plain], page..page + 1);
        });
        self.0.core.step();
        Ok(())
    }
}

impl Regions for SimMoved {
    fn size(&self) -> u64 {
        PAGES * PAGE_SIZE
    }

    fn fill(&self, at: u64, buffer: &mut [u8], shown: bool) -> io::Result<()> {
        self.0.enter("fill region", at, shown.into());
        assert_eq!(buffer.len() as u64, self.size(), "the buffer of a region");
        let range = self.begin(at, Place::Absent);
        let filled = self.0.each_page(&range, |state, page| {
            state.set(View::Plain, page, Entry::None); // poison
            let from = (page * PAGE_SIZE - at) as usize;
            let bytes = &mut buffer[from..from + PAGE_SIZE as usize];
            let put = self.put(state, page, bytes, shown);
            bytes.fill(GARBAGE);
            put
        });
        self.end(&range, filled.is_ok());
        self.0.core.step();
        filled
    }

    fn map(&self, at: u64) -> io::Result<()> {
        self.0.enter("map region", at, 0);
        let range = self.begin(at, Place::Stored);
        let failed = self.0.fail_at_random();
        if failed.is_ok() {
            self.0.every_page(&range, |state, page| self.show(state, page));
        }
        self.end(&range, true);
        self.0.core.step();
        failed
    }

    fn unmap(&self, at: u64) -> io::Result<()> {
        self.0.enter("unmap region", at, 0);
        let range = self.begin(at, Place::Mapped);
        let failed = self.0.fail_at_random();
        if failed.is_ok() {
            self.0.every_page(&range, |state, page| state.set(View::Plain, page, Entry::None));
        }
        self.0.every_page(&range, |state, page| self.drop_copy(state, page));
        self.end(&range, true);
        self.0.core.step();
        failed
    }

    fn take(&self, at: u64, shown: bool, buffer: &mut Buffer) -> io::Result<()> {
        self.0.enter("take region", at, shown.into());
        let range = self.begin(at, Place::shown(shown));
        buffer[..PAGES as usize * PAGE_SIZE as usize].fill(GARBAGE);
        self.0.every_page(&range, |state, page| {
            self.drop_page(state, page);
            self.drop_copy(state, page);
        });
        self.end(&range, false);
        let failed = self.0.fail_at_random();
        self.0.core.step();
        failed
    }

    /// As on Linux, one page of it changes its place.
    fn split(&self, at: u64, shown: bool) -> io::Result<()> {
        self.0.enter("split region", at, shown.into());
        let page = at / PAGE_SIZE;
        let range = self.begin(region_of(page) * PAGE_SIZE, Place::shown(shown));
        self.0.core.step();
        let failed = self.0.fail_at_random();
        if failed.is_ok() {
            let state = &mut *self.0.space.lock();
            match shown {
                true => state.set(View::Plain, page, Entry::None),
                false => self.show(state, page),
            }
        }
        self.0.core.step();
        self.end(&range, failed.is_err());
        failed
    }
}
