//! Which block to evict.
//!
//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023): new blocks enter a
//! *small* queue; those asked for twice more there move on to the *main* queue, the others leave early and are remembered by a
//! *ghost*, so that a second request soon after brings them into main. A long scan thus passes through small and leaves main
//! alone. The paper gives small a tenth of the capacity. Here what leaves small stays for a while (below), so the two share
//! that tenth: small has 1/20 and limbo 1/16. docs/policies.md tells how that compares.
//!
//! The algorithm must see hits, and user space does not see the touches of a mapped block. So a block on its way out is
//! first unmapped and waits in *limbo*, where a touch is a cheap soft fault that promotes it (the second chance of VMS: Turner
//! and Levy, "Segmented FIFO page replacement", SIGMETRICS 1981; Mach's inactive queue). Hits by explicit access set a flag
//! that the caller keeps with the block; blocks that no mapping shows leave without limbo.
//!
//! ```text
//!   insert ──(in ghost?)── no ──▶ small ─touched ×2▶ main ◀─┐ touched, or frequency left
//!                 │                 │                 │ └───┘
//!                 └── yes ─▶ main   └──▶ limbo ◀──────┘ idle: Unmap
//!                                          │ └─touched─▶ main
//!                                          ▼ Evict (from small: remembered by the ghost)
//! ```
//!
//! What becomes of a block that is looked at (`unasked`: read ahead, no touch seen yet; its first touch counts as its
//! insertion, no more). One look tells one touch from many no better than the flag does, so small wants two looks that find
//! the block touched: a scan that asks for each block many times in a row is seen once and stays out of main.
//!
//! Blocks that are read ahead have two queues for themselves, and no ghost: a scan as fast as the disk would flush those that
//! others ask for out of small before they can be asked for again. In *ahead* is what nobody has touched yet; what was touched
//! goes on in *behind*, which is like small. So what a scan has read leaves before what it is about to read.
//!
//! | seen | in small, ahead or behind | in main | in limbo |
//! | --- | --- | --- | --- |
//! | `Gone` | entry dropped | entry dropped | entry dropped |
//! | `Busy` | its tail | main's tail | limbo's tail |
//! | `Touched` | its tail, from ahead behind's; second time: main | main's tail, frequency + 1 | main; unasked: behind's tail |
//! | `Idle` | `Unmap`, to limbo | frequency left: − 1, main's tail; else `Unmap`, to limbo | `Unmap` again, limbo's tail |
//! | `IdleClean` | as `Idle`, or as `IdleUnmapped` where limbo is not worth its price (see `Limbo`) | | `Unmap` again |
//! | `IdleUnmapped` | `Evict`; if asked, to ghost | frequency left: − 1, main's tail; else `Evict` | `Evict`; from small: to ghost |
//!
//! Left to the caller: the blocks themselves, their flags, locks, unmapping, write-back.
//!
//! Invariants:
//! 1. A key is in at most one queue, provided that the caller inserts no key that is there.
//! 2. `Evict` is said only of a block last seen as `IdleUnmapped` or `IdleClean`.
//! 3. In one round no entry is looked at twice but one that moves from ahead to behind, and a call makes at most four rounds, one
//!    if all are `Busy`.

use super::ghost::Ghost;
use std::ops::Range;

/// What is evicted as one: a block, or a run of blocks that has one frame. File slot, index of the first block in the file, and
/// size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    const BLOCK_BITS: u32 = 36;
    const SLOT_BITS: u32 = 22;
    const SIZE_SHIFT: u32 = Self::BLOCK_BITS + Self::SLOT_BITS;
    const SIZE_BITS: u32 = 4;
    /// Slots are below this.
    pub const SLOTS: u32 = 1 << Self::SLOT_BITS;

    /// The key of a block of one page.
    ///
    /// # Panics
    /// When `slot` is not below 2^22 or `block` not below 2^36.
    pub fn new(slot: u32, block: u64) -> Self {
        Self::sized(slot, block, 0)
    }

    /// The key of 2^`log2_pages` pages from a block on.
    ///
    /// # Panics
    /// As for [`new`](Self::new), and when `log2_pages` is not below 16.
    pub fn sized(slot: u32, block: u64, log2_pages: u32) -> Self {
        assert!(slot >> Self::SLOT_BITS == 0, "file slot {slot} is too large");
        assert!(block >> Self::BLOCK_BITS == 0, "block index {block} is too large");
        assert!(log2_pages >> Self::SIZE_BITS == 0, "2^{log2_pages} pages are too many");
        Self(u64::from(log2_pages) << Self::SIZE_SHIFT | u64::from(slot) << Self::BLOCK_BITS | block)
    }

    /// The file's slot.
    pub fn slot(self) -> u32 {
        (self.0 >> Self::BLOCK_BITS) as u32 & (Self::SLOTS - 1)
    }

    /// How many pages it has.
    pub fn pages(self) -> usize {
        1 << (self.0 >> Self::SIZE_SHIFT)
    }

    /// The key of its first block, whatever its size: what a request may come back for.
    fn first(self) -> Self {
        Self(self.0 & ((1 << Self::SIZE_SHIFT) - 1))
    }

    /// The block's index in the file.
    pub fn block(self) -> u64 {
        self.0 & ((1 << Self::BLOCK_BITS) - 1)
    }
}

/// What the caller saw when it looked at a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Not resident any more: its entry is dropped.
    Gone,
    /// Pinned or in transition: it stays, others are looked at first.
    Busy,
    /// Referenced since the last look, and this look cleared that. The request that filled a block is no reference.
    Touched,
    /// Mapped, not known to be referenced.
    Idle,
    /// As `Idle`, and it may be evicted without having been unmapped.
    IdleClean,
    /// Shown by no mapping and not referenced.
    IdleUnmapped,
}

/// What the caller shall do next to get memory back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// Unmap the block. It is in limbo now and will be evicted later, unless touched. Until it is unmapped, looks should say
    /// `Busy`, or it may be offered again.
    Unmap(Key),
    /// Evict the block. Its entry has been removed: if it can't be evicted, `requeue` it.
    Evict(Key),
}

/// The queues of one cache. Holds at most 16 bytes a block of capacity, allocated at once.
pub struct Policy {
    queues: Queues,
    ghost: Ghost,
    small_target: usize,
    ahead_target: usize,
    behind_target: usize,
    limbo_target: usize,
    limbo: Limbo,
    /// The blocks inserted last, youngest first: victims of last resort. One instruction may need four pages at once, and
    /// would never end if the fourth threw out the first.
    recent: [Option<Key>; RECENT],
}

const RECENT: usize = 3;

/// How many blocks a call passes over, because they are in use, before it takes the next one that isn't `Busy`. When so many
/// in a row are in use the choice matters little, and a cache where all are must not be walked from end to end at every
/// fault.
const SPARED_MAX: usize = 1024;

impl Policy {
    /// A policy for a cache of `capacity` blocks. More may be inserted for a while; then the queues grow.
    ///
    /// # Panics
    /// When `capacity` is zero or not below 2^32 - 1.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity >= 1, "a cache of no blocks");
        Self {
            queues: Queues::new(capacity),
            ghost: Ghost::new(capacity),
            small_target: (capacity / 20).max(1),
            ahead_target: (capacity / 16).max(1),
            behind_target: (capacity / 24).max(1),
            limbo_target: if capacity >= 8 { (capacity / 16).max(1) } else { 0 },
            limbo: Limbo::new(capacity),
            recent: [None; RECENT],
        }
    }

    /// A block was filled because it was asked for. It must not be in the policy.
    pub fn insert(&mut self, key: Key) {
        self.recent.rotate_right(1);
        self.recent[0] = Some(key);
        if self.ghost.take(key.first()) {
            self.queues.push(Stage::Main, Entry::new(key, 0));
        } else {
            self.queues.push(Stage::Small, Entry::new(key, ASKED));
        }
    }

    /// A block was filled by read-ahead and nobody has asked for it yet. It must not be in the policy.
    pub fn insert_once(&mut self, key: Key) {
        self.queues.push(Stage::Ahead, Entry::new(key, UNASKED));
    }

    /// A block of which `next_victim` said `Evict` could not be evicted: it was pinned meanwhile, or its write-back failed.
    pub fn requeue(&mut self, key: Key) {
        self.ghost.take(key.first());
        self.queues.push(Stage::Main, Entry::new(key, 0));
    }

    /// A block that was part of a region has become one of its own; nothing is known of it. It must not be in the policy.
    pub fn insert_part(&mut self, key: Key) {
        self.queues.push(Stage::Small, Entry::new(key, ASKED));
    }

    /// Blocks have become a region, which has to show its worth anew: that one of them was asked for says nothing of the others.
    /// It must not be in the policy; entries of its blocks are `Gone`.
    pub fn insert_whole(&mut self, key: Key) {
        self.queues.push(Stage::Behind, Entry::new(key, UNASKED));
    }

    /// Chooses what to unmap or evict next. Call it again until enough was evicted.
    ///
    /// `look` tells the state of a block; it is called at most five times for an entry. None when no block can go: all are
    /// `Busy`, or there are none.
    pub fn next_victim(&mut self, look: &mut dyn FnMut(Key) -> Seen) -> Option<Victim> {
        for patience in PATIENCE {
            match self.round(&patience, look) {
                Round::Found(victim) => return Some(victim),
                Round::Spared => {}
                Round::Nothing => return None,
            }
        }
        None
    }

    /// Drops everything known of a file. Takes time in proportion to the capacity.
    pub fn forget_file(&mut self, slot: u32) {
        self.queues.retain(|key| key.slot() != slot);
        self.ghost.forget_file(slot);
        self.forget_recent(|key| key.slot() == slot);
    }

    /// Drops the entries of files that are gone, all at once; their ghosts fade by themselves. Takes time in proportion to the
    /// number of entries.
    pub fn forget_files(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.queues.retain(|key| !is_gone(key.slot()));
        self.forget_recent(|key| is_gone(key.slot()));
    }

    /// Drops the entries of some blocks of a file, as when it shrinks. Without it they are dropped when seen as `Gone`, which
    /// does as well unless the same blocks may come back before. Takes time in proportion to the number of entries.
    pub fn forget_blocks(&mut self, slot: u32, blocks: Range<u64>) {
        let hit = |key: Key| key.slot() == slot && blocks.contains(&key.block());
        self.queues.retain(|key| !hit(key));
        self.forget_recent(hit);
    }

    /// Entries in all queues, in blocks. Those whose blocks are gone count until they are looked at.
    pub fn len(&self) -> usize {
        STAGES.iter().map(|&stage| self.queues.len(stage)).sum()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory held by queues and ghost, in bytes.
    pub fn bytes(&self) -> usize {
        self.queues.bytes() + self.ghost.bytes()
    }

    /// Looks at each entry at most once, until a victim is found.
    fn round(&mut self, patience: &Patience, look: &mut dyn FnMut(Key) -> Seen) -> Round {
        let mut unseen = STAGES.map(|stage| self.queues.len(stage));
        let mut spared = 0;
        while let Some(stage) = self.choose(&unseen) {
            unseen[stage as usize] -= 1;
            let entry = self.queues.pop(stage);
            let key = entry.key();
            let hurry = patience.hurry || spared >= SPARED_MAX;
            let mut seen = look(key);
            let origin = match (stage, entry.mark()) {
                (Stage::Limbo, FROM_MAIN) => Stage::Main,
                (Stage::Limbo, UNASKED) => Stage::Ahead,
                (Stage::Limbo, _) => Stage::Small,
                (stage, _) => stage,
            };
            self.limbo.learn(origin, seen);
            if stage != Stage::Limbo && seen == Seen::IdleClean && self.limbo.is_not_worth_it(origin, key) {
                seen = Seen::IdleUnmapped;
            }
            let mut fate = fate(stage, entry.mark(), seen, hurry);
            if fate.is_victim() && self.recent[..patience.recent].contains(&Some(key)) {
                fate = Fate::Spare(stage, entry.mark());
            }
            match fate {
                Fate::Drop => {}
                Fate::Skip => self.queues.push(stage, entry),
                Fate::Spare(to, mark) => {
                    spared += 1;
                    // What was read is to leave in this round, if need be: the rest of ahead is yet to be.
                    unseen[to as usize] += usize::from((stage, to) == (Stage::Ahead, Stage::Behind));
                    self.queues.push(to, Entry::new(key, mark));
                }
                Fate::Unmap(mark) => {
                    self.queues.push(Stage::Limbo, Entry::new(key, mark));
                    return Round::Found(Victim::Unmap(key));
                }
                Fate::Evict { remember } => {
                    self.limbo.evicted(key);
                    if remember {
                        self.ghost.add(key.first());
                    }
                    return Round::Found(Victim::Evict(key));
                }
            }
        }
        if spared > 0 { Round::Spared } else { Round::Nothing }
    }

    /// The queue to look at next: one that is too long, else main, else what is left.
    fn choose(&self, unseen: &[usize; STAGES.len()]) -> Option<Stage> {
        let some = |stage: Stage| unseen[stage as usize] > 0;
        if some(Stage::Limbo) && self.queues.pages(Stage::Limbo) > self.limbo_target {
            return Some(Stage::Limbo);
        }
        if some(Stage::Behind) && self.queues.pages(Stage::Behind) > self.behind_target {
            return Some(Stage::Behind);
        }
        if some(Stage::Ahead) && self.queues.pages(Stage::Ahead) > self.ahead_target {
            return Some(Stage::Ahead);
        }
        if some(Stage::Small) && self.queues.pages(Stage::Small) > self.small_target {
            return Some(Stage::Small);
        }
        [Stage::Main, Stage::Behind, Stage::Ahead, Stage::Small, Stage::Limbo]
            .into_iter()
            .find(|&stage| some(stage))
    }

    fn forget_recent(&mut self, hit: impl Fn(Key) -> bool) {
        for recent in &mut self.recent {
            if recent.is_some_and(&hit) {
                *recent = None;
            }
        }
    }
}

/// Whether limbo is worth its price: unmapping a page that nobody touches costs some microseconds for nothing. Where less than
/// one look in `WORTH` finds what was unmapped touched, blocks that may be evicted at once are, all but those of some regions by
/// which this goes on to be learned. Small and main are judged apart: what a scan leaves in small says nothing of a hot set in
/// main.
struct Limbo {
    /// Of the looks at what was in small, main or ahead, the fraction that found it touched: averages with a memory of some 64, in
    /// 2^-16.
    touched: [u32; STAGES.len()],
    /// Pages evicted since the sample changed.
    evicted: usize,
    capacity: usize,
    sample: u64,
}

impl Limbo {
    const ONE: u32 = 1 << 16;
    const MEMORY: u32 = 64;
    const WORTH: u32 = 32;
    /// One region of so many is in the sample.
    const SAMPLE: u64 = 16;
    /// Pages of a region: they are unmapped together.
    const REGION_SHIFT: u32 = 9;

    fn new(capacity: usize) -> Self {
        Self { touched: [Self::ONE; STAGES.len()], evicted: 0, capacity, sample: 0 }
    }

    /// Notes what a look found.
    fn learn(&mut self, origin: Stage, seen: Seen) {
        let touched = &mut self.touched[origin as usize];
        match seen {
            Seen::Touched => *touched += (Self::ONE - *touched) / Self::MEMORY,
            Seen::IdleUnmapped => *touched -= *touched / Self::MEMORY,
            Seen::Gone | Seen::Busy | Seen::Idle | Seen::IdleClean => {}
        }
    }

    fn evicted(&mut self, key: Key) {
        self.evicted += key.pages();
        if self.evicted >= self.capacity {
            self.evicted = 0;
            self.sample = (self.sample + 1) % Self::SAMPLE;
        }
    }

    fn is_not_worth_it(&self, origin: Stage, key: Key) -> bool {
        let region = key.block() >> Self::REGION_SHIFT.saturating_sub(key.pages().trailing_zeros());
        let sample = region.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32; // Fibonacci hashing: strides are no sample
        self.touched[origin as usize] < Self::ONE / Self::WORTH && sample % Self::SAMPLE != self.sample
    }
}

/// What a round respects.
struct Patience {
    /// A touch counts for nothing, nor does frequency.
    hurry: bool,
    /// How many of the blocks inserted last are spared.
    recent: usize,
}

/// The rounds of a call.
const PATIENCE: [Patience; 4] = [
    Patience { hurry: false, recent: RECENT },
    Patience { hurry: true, recent: RECENT },
    Patience { hurry: true, recent: 1 },
    Patience { hurry: true, recent: 0 },
];

enum Round {
    Found(Victim),
    /// Nothing found, but some blocks were spared that a round with less patience may take.
    Spared,
    Nothing,
}

/// What becomes of an entry after a look.
enum Fate {
    Drop,
    Skip,
    Spare(Stage, Mark),
    Unmap(Mark),
    Evict { remember: bool },
}

impl Fate {
    fn is_victim(&self) -> bool {
        matches!(self, Self::Unmap(_) | Self::Evict { .. })
    }
}

/// The table in the header. In a hurry a touch counts for nothing, nor does frequency.
fn fate(stage: Stage, mark: Mark, seen: Seen, hurry: bool) -> Fate {
    let from_small = match stage {
        Stage::Small | Stage::Ahead | Stage::Behind => true,
        Stage::Main => false,
        Stage::Limbo => mark != FROM_MAIN,
    };
    let limbo_mark = if from_small { mark } else { FROM_MAIN };
    let frequency = if stage == Stage::Main { mark } else { 0 };
    match seen {
        Seen::Gone => Fate::Drop,
        Seen::Busy => Fate::Skip,
        Seen::Touched if hurry => Fate::Unmap(limbo_mark),
        Seen::Touched if stage == Stage::Small && mark < TOUCHED => Fate::Spare(Stage::Small, mark + 1),
        Seen::Touched if stage == Stage::Behind && mark < ASKED => Fate::Spare(Stage::Behind, mark + 1),
        Seen::Touched if stage == Stage::Ahead => Fate::Spare(Stage::Behind, UNASKED),
        Seen::Touched if stage == Stage::Limbo && mark == UNASKED => Fate::Spare(Stage::Behind, UNASKED),
        Seen::Touched => Fate::Spare(Stage::Main, (frequency + 1).min(FREQUENCY_MAX)),
        Seen::Idle | Seen::IdleClean | Seen::IdleUnmapped if frequency > 0 && !hurry => {
            Fate::Spare(Stage::Main, frequency - 1)
        }
        Seen::Idle | Seen::IdleClean => Fate::Unmap(limbo_mark),
        Seen::IdleUnmapped => Fate::Evict { remember: from_small && mark != UNASKED },
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Small,
    Main,
    Limbo,
    Ahead,
    Behind,
}

/// In the order of their numbers.
const STAGES: [Stage; 5] = [Stage::Small, Stage::Main, Stage::Limbo, Stage::Ahead, Stage::Behind];

/// Two bits an entry carries. In main: the frequency, how many idle rounds it may still survive. In small: how far it has
/// come: `ASKED`, `TOUCHED`; in ahead and behind `UNASKED` before `ASKED`. In limbo: the same for what came from these, else
/// `FROM_MAIN`.
type Mark = u64;
const UNASKED: Mark = 0;
const ASKED: Mark = 1;
const TOUCHED: Mark = 2;
const FROM_MAIN: Mark = 3;
const FREQUENCY_MAX: Mark = 3;

/// A key with its mark in the two bits above.
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    const MARK_SHIFT: u32 = Key::SIZE_SHIFT + Key::SIZE_BITS;

    fn new(key: Key, mark: Mark) -> Self {
        debug_assert!(key.0 >> Self::MARK_SHIFT == 0);
        Self(key.0 | mark << Self::MARK_SHIFT)
    }

    fn key(self) -> Key {
        Key(self.0 & ((1 << Self::MARK_SHIFT) - 1))
    }

    fn mark(self) -> Mark {
        self.0 >> Self::MARK_SHIFT
    }
}

/// Linked lists in one pool of entries, because any of them may hold nearly all blocks: ring buffers would need room
/// for several times as many.
struct Queues {
    entries: Vec<Entry>,
    /// The place behind an entry in its queue, or the next free place.
    next: Vec<u32>,
    free: u32,
    lists: [List; STAGES.len()],
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
    pages: usize,
}

const NOWHERE: u32 = u32::MAX;

impl Queues {
    fn new(capacity: usize) -> Self {
        assert!(capacity < NOWHERE as usize, "a cache of {capacity} blocks");
        let empty = List { head: NOWHERE, tail: NOWHERE, len: 0, pages: 0 };
        Self {
            entries: Vec::with_capacity(capacity),
            next: Vec::with_capacity(capacity),
            free: NOWHERE,
            lists: [empty; STAGES.len()],
        }
    }

    fn len(&self, stage: Stage) -> usize {
        self.lists[stage as usize].len
    }

    fn pages(&self, stage: Stage) -> usize {
        self.lists[stage as usize].pages
    }

    fn push(&mut self, stage: Stage, entry: Entry) {
        let place = self.place(entry);
        let list = &mut self.lists[stage as usize];
        if list.len == 0 {
            list.head = place;
        } else {
            self.next[list.tail as usize] = place;
        }
        list.tail = place;
        list.len += 1;
        list.pages += entry.key().pages();
    }

    /// Takes the head of a queue that isn't empty.
    fn pop(&mut self, stage: Stage) -> Entry {
        let list = &mut self.lists[stage as usize];
        let place = list.head;
        list.head = self.next[place as usize];
        list.len -= 1;
        self.next[place as usize] = self.free;
        self.free = place;
        let entry = self.entries[place as usize];
        list.pages -= entry.key().pages();
        entry
    }

    fn retain(&mut self, keep: impl Fn(Key) -> bool) {
        for stage in STAGES {
            for _ in 0..self.len(stage) {
                let entry = self.pop(stage);
                if keep(entry.key()) {
                    self.push(stage, entry);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.next.capacity() * size_of::<u32>()
    }

    /// Puts an entry into a free place of the pool.
    fn place(&mut self, entry: Entry) -> u32 {
        if self.free == NOWHERE {
            let place = self.entries.len();
            assert!(place < NOWHERE as usize, "too many blocks in the cache");
            self.entries.push(entry);
            self.next.push(NOWHERE);
            return place as u32;
        }
        let place = self.free;
        self.free = self.next[place as usize];
        self.entries[place as usize] = entry;
        self.next[place as usize] = NOWHERE;
        place
    }
}

#[cfg(test)]
mod tests;
