//! The tables of `written`: words that are read from everywhere and in children of fork(2), without locks and, but for the list of all files, without
//! allocation.
//! They know nothing of descriptors and files, so that they are tested by themselves: `tests/tables.rs` of mapwright-cli.
//!
//! | table | who enters | who looks |
//! | --- | --- | --- |
//! | [`Served`] | somebody is about to map a file | a call by a descriptor, when it has noted itself |
//! | [`InFlight`] | a call by a descriptor, before it looks | somebody who is about to map a file, when that is entered |
//! | [`Unfit`] | who finds that a file can't be served for writing | somebody who is about to map it, and again when the map is made |
//!
//! # Invariant
//! Of a call by a descriptor and somebody who is about to map the same file at least one sees the other: each enters first and looks then, and all of
//! that is sequentially consistent.

use std::ffi::c_int;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use mapwright::guest::Identity;

/// Files that are served for writing, or are about to be, with an entry for each of their maps. Entries of one file are alike.
///
/// Those who change it take turns, by making `turn` odd: for a moment, and where no signals come. Whoever finds that an entry is not there has looked while
/// nobody changed anything: an entry that others take out and put in again may be wherever he has looked before.
pub(crate) struct Served<const SLOTS: usize> {
    turn: AtomicUsize,
    count: AtomicUsize,
    /// Slots from here on were never taken.
    end: AtomicUsize,
    slots: [Slot; SLOTS],
}

struct Slot {
    is_taken: AtomicBool,
    device: AtomicU64,
    inode: AtomicU64,
}

/// How often a thread looks before it lets others run.
const PATIENCE: usize = 100;

impl<const SLOTS: usize> Served<SLOTS> {
    pub(crate) const fn new() -> Self {
        let slots = [const {
            Slot { is_taken: AtomicBool::new(false), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
        }; SLOTS];
        let (turn, count, end) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { turn, count, end, slots }
    }

    /// Whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(SeqCst) == 0
    }

    /// Enters one map of a file. `false` if there is no room.
    pub(crate) fn insert(&self, file: Identity) -> bool {
        self.changed(|| {
            let free = self.slots.iter().position(|slot| !slot.is_taken.load(SeqCst));
            let Some(index) = free else { return false };
            let slot = &self.slots[index];
            slot.device.store(file.device, SeqCst);
            slot.inode.store(file.inode, SeqCst);
            slot.is_taken.store(true, SeqCst);
            self.end.fetch_max(index + 1, SeqCst);
            self.count.fetch_add(1, SeqCst);
            true
        })
    }

    /// Takes one map of a file out. `false` if there is none.
    pub(crate) fn remove(&self, file: Identity) -> bool {
        self.changed(|| {
            let found = self.taken().find(|slot| slot.file() == file);
            found.is_some_and(|slot| {
                slot.is_taken.store(false, SeqCst);
                self.count.fetch_sub(1, SeqCst) > 0
            })
        })
    }

    fn changed<T>(&self, change: impl FnOnce() -> T) -> T {
        let turn = self.wait(|| {
            let turn = self.turn.load(SeqCst);
            let is_it = turn.is_multiple_of(2);
            (is_it && self.turn.compare_exchange(turn, turn + 1, SeqCst, SeqCst).is_ok()).then_some(turn)
        });
        let done = change();
        self.turn.store(turn.wrapping_add(2), SeqCst);
        done
    }

    /// Whether there is a map of a file.
    pub(crate) fn contains(&self, file: Identity) -> bool {
        if self.is_empty() {
            return false;
        }
        self.wait(|| {
            let turn = self.turn.load(SeqCst);
            let found = self.taken().any(|slot| slot.file() == file);
            (found || self.is_still(turn)).then_some(found)
        })
    }

    /// The file of each map, all of a moment.
    pub(crate) fn files(&self) -> Vec<Identity> {
        if self.is_empty() {
            return Vec::new();
        }
        self.wait(|| {
            let turn = self.turn.load(SeqCst);
            let all = self.taken().map(Slot::file).collect();
            self.is_still(turn).then_some(all)
        })
    }

    fn is_still(&self, turn: usize) -> bool {
        turn.is_multiple_of(2) && self.turn.load(SeqCst) == turn
    }

    fn wait<T>(&self, mut find: impl FnMut() -> Option<T>) -> T {
        let mut time = 0;
        loop {
            if let Some(found) = find() {
                return found;
            }
            time = (time + 1) % PATIENCE;
            if time == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn taken(&self) -> impl Iterator<Item = &Slot> {
        let end = if self.is_empty() { 0 } else { self.end.load(SeqCst) };
        self.slots[..end].iter().filter(|slot| slot.is_taken.load(SeqCst))
    }

    /// Forgets all, where there is one thread.
    pub(crate) fn clear(&self) {
        self.slots[..self.end.load(SeqCst)].iter().for_each(|slot| slot.is_taken.store(false, SeqCst));
        self.count.store(0, SeqCst);
        self.turn.store(0, SeqCst); // whose turn it was is not in this process
    }
}

impl Slot {
    fn file(&self) -> Identity {
        Identity { device: self.device.load(SeqCst), inode: self.inode.load(SeqCst) }
    }
}

/// Files that are never served for writing again. It only grows; what it says of a file that is not in it may be wrong, but for one in two to the
/// sixty-fourth.
pub(crate) struct Unfit<const ENTRIES: usize> {
    entries: [AtomicU64; ENTRIES],
    is_full: AtomicBool,
}

impl<const ENTRIES: usize> Unfit<ENTRIES> {
    pub(crate) const fn new() -> Self {
        Self { entries: [const { AtomicU64::new(0) }; ENTRIES], is_full: AtomicBool::new(false) }
    }

    pub(crate) fn insert(&self, file: Identity) {
        let key = key(file);
        for entry in self.places(key) {
            match entry.compare_exchange(0, key, SeqCst, SeqCst) {
                Ok(_) => return,
                Err(other) if other == key => return,
                Err(_) => {}
            }
        }
        self.is_full.store(true, SeqCst);
    }

    pub(crate) fn contains(&self, file: Identity) -> bool {
        let key = key(file);
        let mut found = self.places(key).map(|entry| entry.load(SeqCst)).take_while(|found| *found != 0);
        self.is_full() || found.any(|found| found == key)
    }

    /// Whether not all could be entered: every file is unfit.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(SeqCst)
    }

    fn places(&self, key: u64) -> impl Iterator<Item = &AtomicU64> {
        let first = (key >> 32) as usize % ENTRIES;
        self.entries[first..].iter().chain(&self.entries[..first])
    }
}

/// A word for a file, never 0.
fn key(file: Identity) -> u64 {
    let mixed = (file.inode ^ file.device.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29) ^ file.device).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 32)).max(1)
}

/// Descriptors in calls that have begun and not ended. A thread that leaves such a call by longjmp(3) leaves its entry: for as long as its descriptor
/// is of some file, that one is not served for writing.
pub(crate) struct InFlight<const SLOTS: usize> {
    slots: [Flight; SLOTS],
    /// Calls for which there was no room.
    unnoted: AtomicUsize,
}

/// Threads do not take turns at a line of the processor's cache.
#[repr(align(64))]
struct Flight(AtomicU32);

/// Tells a descriptor from nothing.
const NOTED: u32 = 1 << 31;
/// How many slots are tried.
const TRIES: usize = 8;

impl<const SLOTS: usize> InFlight<SLOTS> {
    pub(crate) const fn new() -> Self {
        Self { slots: [const { Flight(AtomicU32::new(0)) }; SLOTS], unnoted: AtomicUsize::new(0) }
    }

    /// Notes a descriptor. `at` is an address on the caller's stack: threads begin to look for a slot in different places.
    #[inline]
    pub(crate) fn note(&self, fd: c_int, at: usize) -> Noted<'_> {
        let first = (at >> 16).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        for try_at in first..first + TRIES {
            let slot = &self.slots[try_at % SLOTS].0;
            if slot.compare_exchange(0, fd as u32 | NOTED, SeqCst, Relaxed).is_ok() {
                return Noted { slot: Some(slot), unnoted: &self.unnoted };
            }
        }
        self.unnoted.fetch_add(1, SeqCst);
        Noted { slot: None, unnoted: &self.unnoted }
    }

    /// Whether a descriptor in a call is of some kind, or it is not known.
    pub(crate) fn any(&self, is_it: impl Fn(c_int) -> bool) -> bool {
        let noted = self.slots.iter().map(|slot| slot.0.load(SeqCst)).filter(|noted| *noted != 0);
        self.unnoted.load(SeqCst) > 0 || noted.map(|noted| (noted & !NOTED) as c_int).any(is_it)
    }

    /// Forgets all, where there is one thread.
    pub(crate) fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.0.store(0, Relaxed));
        self.unnoted.store(0, SeqCst);
    }
}

/// A call that goes on.
pub(crate) struct Noted<'table> {
    slot: Option<&'table AtomicU32>,
    unnoted: &'table AtomicUsize,
}

impl Drop for Noted<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.slot {
            Some(slot) => slot.store(0, Release),
            // In a child of fork(2) they may have been forgotten.
            None => drop(self.unnoted.fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicI32;

    use super::*;

    fn file(inode: u64) -> Identity {
        Identity { device: 7, inode }
    }

    #[test]
    fn a_file_is_served_for_as_long_as_one_of_its_maps() {
        let table = Served::<4>::new();
        assert!(table.is_empty() && !table.contains(file(1)) && !table.remove(file(1)));
        assert!(table.insert(file(1)) && table.insert(file(2)) && table.insert(file(1)));
        assert_eq!(table.files(), [file(1), file(2), file(1)]);
        assert!(table.remove(file(1)) && table.contains(file(1)));
        assert!(table.remove(file(1)) && !table.contains(file(1)) && !table.remove(file(1)));
        assert!(!table.is_empty() && !table.contains(Identity { device: 8, inode: 2 }));
        // Slots are taken again, and when there is none it is said.
        assert!([3, 4, 5].into_iter().all(|inode| table.insert(file(inode))) && !table.insert(file(6)));
        table.clear();
        assert!(table.is_empty() && table.files().is_empty() && table.insert(file(6)));
    }

    #[test]
    fn unfit_files_are_remembered_until_there_is_no_room_and_then_all_are() {
        let table = Unfit::<64>::new();
        for inode in 0..64 {
            assert!(!table.contains(file(inode)), "{inode}");
            table.insert(file(inode));
            table.insert(file(inode));
        }
        assert!((0..64).all(|inode| table.contains(file(inode))) && !table.contains(file(64)));
        assert!(!table.is_full());
        table.insert(file(64));
        assert!(table.is_full() && table.contains(file(65)));
    }

    #[test]
    fn words_of_files_differ() {
        let all = (0..50u64).flat_map(|device| (0..2000).map(move |inode| Identity { device, inode }));
        let keys: HashSet<_> = all.map(key).collect();
        assert_eq!((keys.len(), keys.contains(&0)), (50 * 2000, false));
        // All of them begin to look in different places, as far as there are any.
        let places: HashSet<_> = (0..4096).map(|inode| (key(file(inode)) >> 32) % 4096).collect();
        assert!(places.len() > 2200, "{}", places.len());
    }

    #[test]
    fn calls_are_noted_until_they_end() {
        let table = InFlight::<16>::new();
        let is = |fd: c_int| table.any(|noted| noted == fd);
        let (zero, five) = (table.note(0, 1 << 20), table.note(5, 1 << 20));
        assert!(is(0) && is(5) && !is(6) && !table.any(|fd| fd < 0));
        drop(zero);
        assert!(!is(0) && is(5));
        // One that is none: who looks finds out.
        drop((table.note(-1, 0), five));
        assert!(!table.any(|_| true));
        // More than there is room for in one place: whatever is asked for may be among them.
        let mut many: Vec<_> = (0..=TRIES as c_int).map(|fd| table.note(fd, 0)).collect();
        assert!(is(77));
        many.pop();
        assert!(!is(77) && is(0));
        drop(many);
        let unnoted: Vec<_> = (0..=TRIES as c_int).map(|fd| table.note(fd, 0)).collect();
        table.clear(); // in a child, where the calls of its parent never end
        assert!(!is(77) && !is(0));
        drop(unnoted);
        assert!(!table.any(|_| true));
    }

    /// Whoever calls and whoever maps see each other, in whatever order they come.
    #[test]
    fn of_a_call_and_a_map_one_gives_way() {
        const FD: c_int = 3;
        static SERVED: Served<8> = Served::new();
        static IN_FLIGHT: InFlight<256> = InFlight::new();
        /// Calls that go on, or, below zero, maps.
        static INSIDE: AtomicI32 = AtomicI32::new(0);
        let (calls, maps) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let enter = |step: i32, count: &AtomicUsize| {
            let before = INSIDE.fetch_add(step, SeqCst);
            assert!(before.signum() != -step.signum(), "a call and a map at a time");
            std::hint::spin_loop();
            INSIDE.fetch_sub(step, SeqCst);
            count.fetch_add(1, Relaxed);
        };
        let is_enough = |round: i32| round > 50_000 && calls.load(Relaxed) > 0 && maps.load(Relaxed) > 0;
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (calls, maps, enter, is_enough) = (&calls, &maps, &enter, &is_enough);
                scope.spawn(move || {
                    for _ in (0..).take_while(|round| !is_enough(*round)) {
                        let noted = IN_FLIGHT.note(FD, thread << 20);
                        if SERVED.is_empty() || !SERVED.contains(file(1)) {
                            enter(1, calls);
                        }
                        drop(noted);
                    }
                });
                scope.spawn(move || {
                    for _ in (0..).take_while(|round| !is_enough(*round)) {
                        assert!(SERVED.insert(file(1)));
                        if !IN_FLIGHT.any(|fd| fd == FD) {
                            enter(-1, maps);
                        }
                        assert!(SERVED.remove(file(1)));
                    }
                });
            }
        });
        assert!(SERVED.is_empty());
    }
}
