//! A file that a client has opened: its views in the client's address space, and the pins that the client holds.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

use mapwright_sys::remote::RemoteView;

use super::kernel_lease::KernelLease;
use super::protocol::{Access, Event, MAX_RANGES};
use super::server::Leaving;
use super::session::Session;
use crate::engine::PAGE;
use crate::engine::fault::{SHOWN_AHEAD, SHOWN_AHEAD_IN_ORDER};
use crate::engine::kernel::{self, REGION};
use crate::engine::opened::Opened;
use crate::engine::stats::Times;

/// A view of a file in a client's address space.
pub(super) struct View {
    remote: RemoteView,
    pub(super) file: u32,
    pub(super) checked: bool,
    /// What the frames call it.
    number: OnceLock<u32>,
    /// Held for reading by whoever shows or protects pages.
    stage: RwLock<Stage>,
    shown: Shown,
    session: Weak<Session>,
    /// The page that was touched last, and how many were to be shown from there on. Hints, which need not fit each other.
    touched: AtomicU64,
    ahead: AtomicU64,
}

/// What may be done to a view. It gets on and never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// Nothing more is shown; what is shown can be protected.
    Ending,
    /// Nothing: the client may use its addresses for something else.
    Closed,
}

/// Where a view may show pages: a bit for each part of it. Who shows nothing of what is to be unmapped need not be asked to do so: of thousands of
/// views of one file most have shown nothing since they were last asked.
struct Shown(Vec<AtomicU64>);

impl Shown {
    fn new(capacity: u64) -> Self {
        let words = capacity.div_ceil(REGION).div_ceil(u64::from(u64::BITS));
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn parts(range: &Range<u64>) -> Range<u64> {
        range.start / REGION..range.end.div_ceil(REGION)
    }

    fn word(&self, part: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::try_from(part / u64::from(u64::BITS)).ok()?)?;
        Some((word, 1 << (part % u64::from(u64::BITS))))
    }

    /// Pages are about to be shown.
    fn note(&self, range: &Range<u64>) {
        for (word, bit) in Self::parts(range).filter_map(|part| self.word(part)) {
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// Whether pages of a range may be shown. Takes note that they are not any more, where it has most of a part.
    fn take(&self, range: &Range<u64>) -> bool {
        let mut any = false;
        for part in Self::parts(range) {
            let Some((word, bit)) = self.word(part) else { continue };
            let of_part = range.end.min((part + 1) * REGION) - range.start.max(part * REGION);
            let before = if of_part > REGION / 2 {
                word.fetch_and(!bit, Ordering::AcqRel)
            } else {
                word.load(Ordering::Acquire)
            };
            any |= before & bit != 0;
        }
        any
    }
}

impl View {
    pub(super) fn new(remote: RemoteView, file: u32, checked: bool, session: Weak<Session>) -> Self {
        let (number, stage) = (OnceLock::new(), RwLock::new(Stage::Open));
        let shown = Shown::new(remote.capacity());
        let (touched, ahead) = (AtomicU64::new(0), AtomicU64::new(SHOWN_AHEAD));
        Self { remote, file, checked, number, stage, shown, session, touched, ahead }
    }

    /// What the engine calls it.
    pub(super) fn name(&self) -> Option<kernel::View> {
        self.number.get().map(|number| kernel::View::Remote(*number))
    }

    pub(super) fn offset_of(&self, address: usize) -> Option<u64> {
        self.remote.offset_of(address)
    }

    /// How many pages to show for a touch: twice as many as for the last one if that was a little before it. Several threads of a client that
    /// go through it in turns get as many as one that jumps.
    pub(super) fn pages_for(&self, offset: u64) -> u64 {
        let page = offset / PAGE;
        let before = self.touched.swap(page, Ordering::Relaxed);
        let pages = pages_after(before, self.ahead.load(Ordering::Relaxed), page);
        self.ahead.store(pages, Ordering::Relaxed);
        pages
    }

    /// When this returns it is at that stage, and whatever was done to it before is done.
    fn get_to(&self, stage: Stage) {
        *self.stage.write().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> RwLockReadGuard<'_, Stage> {
        self.stage.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many pages to show from `page` on, when `ahead` were to be shown from `before` on.
fn pages_after(before: u64, ahead: u64, page: u64) -> u64 {
    match page {
        _ if page == before => ahead, // it was being filled, and is touched again
        _ if before < page && page <= before.saturating_add(ahead) => (ahead * 2).min(SHOWN_AHEAD_IN_ORDER),
        _ => SHOWN_AHEAD,
    }
}

impl kernel::RemoteView for View {
    fn map(&self, range: Range<u64>) -> io::Result<()> {
        let stage = self.stage();
        self.shown.note(&range);
        if *stage == Stage::Open { self.remote.map(range) } else { Ok(()) }
    }

    fn map_ahead(&self, range: Range<u64>, needed: u64) -> io::Result<()> {
        let stage = self.stage();
        self.shown.note(&range);
        if *stage == Stage::Open { self.remote.map_ahead(range, needed) } else { Ok(()) }
    }

    fn map_writable(&self, range: Range<u64>) -> io::Result<()> {
        let stage = self.stage();
        self.shown.note(&range);
        if *stage == Stage::Open { self.remote.map_writable(range) } else { Ok(()) }
    }

    fn protect(&self, range: Range<u64>) {
        let stage = self.stage();
        if *stage != Stage::Closed && self.remote.protect(range).is_err() {
            // What it writes from now on is nobody's to keep.
            self.session.upgrade().into_iter().for_each(|session| session.cut_off());
        }
    }

    fn wake(&self, range: Range<u64>) {
        self.remote.wake(range);
    }

    fn unmap(&self, ranges: &[Range<u64>]) {
        if self.checked {
            return; // it lasts for a scope, and may have zeros
        }
        let Some(session) = self.session.upgrade() else { return };
        let ranges: Vec<Range<u64>> = ranges.iter().filter(|range| self.shown.take(range)).cloned().collect();
        for part in ranges.chunks(MAX_RANGES) {
            session.suggest(&Event::Unmap { file: self.file, ranges: part.to_vec() });
        }
    }
}

/// Bytes that clients hold pinned: of one of them, or of all.
#[derive(Debug)]
pub(super) struct Quota {
    used: AtomicU64,
    limit: u64,
}

impl Quota {
    pub(super) fn new(limit: u64) -> Self {
        Self { used: 0.into(), limit }
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|now| *now <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Room in the quotas of a session and of all, given back when dropped.
pub(super) struct Room<'a> {
    quotas: [&'a Quota; 2],
    bytes: u64,
}

impl<'a> Room<'a> {
    /// Takes room, if both have it.
    pub(super) fn take(quotas: [&'a Quota; 2], bytes: u64) -> Option<Self> {
        let [own, all] = quotas;
        if !own.take(bytes) {
            return None;
        }
        if !all.take(bytes) {
            own.give_back(bytes);
            return None;
        }
        Some(Self { quotas, bytes })
    }

    /// Keeps `bytes` of it for good: whoever gives up what they were for gives them back to the quotas.
    pub(super) fn keep(mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// Room that was kept, to be given back.
    pub(super) fn kept(quotas: [&'a Quota; 2], bytes: u64) -> Self {
        Self { quotas, bytes }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.quotas.iter().for_each(|quota| quota.give_back(self.bytes));
    }
}

/// A file opened by a client.
pub(super) struct Lease {
    pub(super) number: u32,
    pub(super) file: Opened,
    pub(super) access: Access,
    /// The kernel's lease, if the file is served under one.
    pub(super) kernel: Option<Arc<KernelLease>>,
    /// Where the client's faults are counted too, if somebody wants to know.
    pub(super) times: Option<Arc<Times>>,
    views: Mutex<Views>,
    pins: Mutex<Pins>,
    /// Set when the client has left it. Dropped after the file, and after the kernel's lease.
    pub(super) leaving: OnceLock<Leaving>,
}

/// The plain view and the checked one.
#[derive(Default)]
struct Views {
    /// There will be none any more.
    closed: bool,
    both: [Option<Arc<View>>; 2],
}

/// Why a view does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// There is one of that kind.
    Second,
    Closed,
}

/// How often the client holds each block. The engine sees one pin on each, however often that is.
#[derive(Default)]
struct Pins {
    closed: bool,
    blocks: BTreeMap<u64, u32>,
}

impl Lease {
    pub(super) fn new(
        number: u32,
        file: Opened,
        access: Access,
        kernel: Option<Arc<KernelLease>>,
        times: Option<Arc<Times>>,
    ) -> Self {
        let (views, pins, leaving) = Default::default();
        Self { number, file, access, kernel, times, views, pins, leaving }
    }

    /// Whether it was opened under a lease of the kernel's that has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.kernel.as_ref().is_some_and(|kernel| kernel.is_ended())
    }

    /// What the engine calls one of the two views, if it is there.
    pub(super) fn view(&self, checked: bool) -> Option<kernel::View> {
        lock(&self.views).both[usize::from(checked)].as_ref().and_then(|view| view.name())
    }

    /// Lets a view take part, or says why not.
    ///
    /// # Errors
    /// Where frames can't be lent.
    pub(super) fn admit(&self, view: &Arc<View>) -> io::Result<Result<(), NotAdmitted>> {
        let place = usize::from(view.checked);
        let obstacle = |views: &Views| match views {
            Views { closed: true, .. } => Err(NotAdmitted::Closed),
            Views { both, .. } if both[place].is_some() => Err(NotAdmitted::Second),
            _ => Ok(()),
        };
        // One thread alone takes this session's messages; but a lease of the kernel's may end at any time.
        if let Err(obstacle) = obstacle(&lock(&self.views)) {
            return Ok(Err(obstacle));
        }
        let number = self.file.frames().admit(Arc::clone(view) as Arc<dyn kernel::RemoteView>)?;
        let _ = view.number.set(number);
        let admitted = {
            let mut views = lock(&self.views);
            let admitted = obstacle(&views);
            if admitted.is_ok() {
                views.both[place] = Some(Arc::clone(view));
            }
            admitted
        };
        if admitted.is_err() {
            view.get_to(Stage::Closed);
            self.file.frames().dismiss(number);
        }
        Ok(admitted)
    }

    /// Takes over one pin on each of some blocks, no two the same; how many of them were not pinned before.
    pub(super) fn hold(&self, blocks: &[u64]) -> u64 {
        let (mut new, mut spare) = (0, Vec::new());
        {
            let mut pins = lock(&self.pins);
            for &block in blocks {
                if pins.closed {
                    spare.push(block);
                    continue;
                }
                let count = pins.blocks.entry(block).or_default();
                *count += 1;
                if *count == 1 { new += 1 } else { spare.push(block) }
            }
        }
        spare.into_iter().for_each(|block| self.file.unpin(block));
        new
    }

    /// Gives blocks back once each; how many of them are not pinned any more.
    pub(super) fn let_go(&self, blocks: &[u64]) -> u64 {
        let mut free = Vec::new();
        {
            let mut pins = lock(&self.pins);
            for &block in blocks {
                let Some(count) = pins.blocks.get_mut(&block) else { continue };
                *count -= 1;
                if *count == 0 {
                    pins.blocks.remove(&block);
                    free.push(block);
                }
            }
        }
        free.iter().for_each(|&block| self.file.unpin(block));
        free.len() as u64
    }

    /// How many blocks the client holds that would go with a length of `len` bytes.
    pub(super) fn pinned_from(&self, len: u64) -> usize {
        let first = len.div_ceil(self.file.block_size());
        lock(&self.pins).blocks.range(first..).count()
    }

    /// Shows nothing more in its views. What is shown stays, and can be protected.
    pub(super) fn stop(&self) {
        let views: Vec<_> = lock(&self.views).both.iter().flatten().map(Arc::clone).collect();
        views.iter().for_each(|view| view.get_to(Stage::Ending));
    }

    /// Ends it: nothing is shown in its views any more, and nothing pinned. How many blocks were.
    pub(super) fn close(&self) -> u64 {
        let views = {
            let mut views = lock(&self.views);
            views.closed = true;
            std::mem::take(&mut views.both)
        };
        for view in views.into_iter().flatten() {
            view.get_to(Stage::Closed);
            view.number.get().into_iter().for_each(|&number| self.file.frames().dismiss(number));
        }
        let blocks = {
            let mut pins = lock(&self.pins);
            pins.closed = true;
            std::mem::take(&mut pins.blocks)
        };
        blocks.keys().for_each(|&block| self.file.unpin(block));
        blocks.len() as u64
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_asked_to_unmap_where_it_has_shown_something_since() {
        let shown = Shown::new(200 * REGION + 1);
        let all = 0..201 * REGION;
        assert!(!shown.take(&all));
        shown.note(&(70 * REGION - 1..70 * REGION + 1));
        assert!(!shown.take(&(0..69 * REGION)) && !shown.take(&(71 * REGION..201 * REGION)));
        // A page of a part says nothing of the others.
        assert!(shown.take(&(70 * REGION + 4096..70 * REGION + 8192)));
        assert!(shown.take(&(70 * REGION..71 * REGION)) && !shown.take(&(70 * REGION..71 * REGION)));
        assert!(shown.take(&all) && !shown.take(&all), "the part before is told by itself");
        shown.note(&(500 * REGION..501 * REGION));
        assert!(!shown.take(&all), "past its end is nothing");
    }

    #[test]
    fn who_goes_on_is_shown_more_and_who_jumps_is_not() {
        let touches = |pages: &[u64]| -> Vec<u64> {
            let mut last = (0, SHOWN_AHEAD);
            let mut next = |&page: &u64| {
                last = (page, pages_after(last.0, last.1, page));
                last.1
            };
            pages.iter().map(&mut next).collect()
        };
        assert_eq!(touches(&[16, 48, 112, 240, 496]), [32, 64, 128, 256, 256]);
        assert_eq!(touches(&[16, 20, 21]), [32, 64, 128], "what follows was not there yet");
        assert_eq!(touches(&[16, 48, 500, 400, 400]), [32, 64, 16, 16, 16]);
        assert_eq!(pages_after(u64::MAX, SHOWN_AHEAD, 0), SHOWN_AHEAD);
        assert_eq!(pages_after(7, 2 * SHOWN_AHEAD, 7), 2 * SHOWN_AHEAD, "what waits for a fill comes twice");
    }
}
