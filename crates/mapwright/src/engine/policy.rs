//! Which block to evict.
//!
//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023): new blocks enter a
//! *small* queue of a tenth of the capacity; those asked for twice more there move on to the *main* queue, the others leave
//! early and are remembered by a *ghost*, so that a second request soon after brings them into main. A long scan thus passes
//! through small and leaves main alone.
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
//! | seen | in small | in main | in limbo |
//! | --- | --- | --- | --- |
//! | `Gone` | entry dropped | entry dropped | entry dropped |
//! | `Busy` | small's tail | main's tail | limbo's tail |
//! | `Touched` | small's tail; second time: main | main's tail, frequency + 1 | main; unasked: small's tail |
//! | `Idle` | `Unmap`, to limbo | frequency left: − 1, main's tail; else `Unmap`, to limbo | `Unmap` again, limbo's tail |
//! | `IdleUnmapped` | `Evict`, to ghost | frequency left: − 1, main's tail; else `Evict` | `Evict`; from small: to ghost |
//!
//! Left to the caller: the blocks themselves, their flags, locks, unmapping, write-back. Over 800 lines because the tests
//! bring a model cache along, to measure the rules above against LRU and the optimum.
//!
//! Invariants:
//! 1. A key is in at most one queue, provided that the caller inserts no key that is there.
//! 2. `Evict` is said only of a block last seen as `IdleUnmapped`.
//! 3. In one round no entry is looked at twice, and a call makes at most four rounds, one if all are `Busy`.

use super::ghost::Ghost;
use std::ops::Range;

/// A block in the cache: file slot and index of the block in the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    const BLOCK_BITS: u32 = 40;
    const SLOT_BITS: u32 = 22;
    /// Slots are below this.
    pub const SLOTS: u32 = 1 << Self::SLOT_BITS;

    /// Makes a key.
    ///
    /// # Panics
    /// When `slot` is not below 2^22 or `block` not below 2^40.
    pub fn new(slot: u32, block: u64) -> Self {
        assert!(slot >> Self::SLOT_BITS == 0, "file slot {slot} is too large");
        assert!(block >> Self::BLOCK_BITS == 0, "block index {block} is too large");
        Self(u64::from(slot) << Self::BLOCK_BITS | block)
    }

    /// The file's slot.
    pub fn slot(self) -> u32 {
        (self.0 >> Self::BLOCK_BITS) as u32
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
    limbo_target: usize,
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
        let limbo_target = if capacity >= 8 { capacity / 8 } else { 0 };
        Self {
            queues: Queues::new(capacity),
            ghost: Ghost::new(capacity),
            small_target: (capacity / 10).max(1),
            limbo_target,
            recent: [None; RECENT],
        }
    }

    /// A block was filled because it was asked for. It must not be in the policy.
    pub fn insert(&mut self, key: Key) {
        self.recent.rotate_right(1);
        self.recent[0] = Some(key);
        if self.ghost.take(key) {
            self.queues.push(Stage::Main, Entry::new(key, 0));
        } else {
            self.queues.push(Stage::Small, Entry::new(key, ASKED));
        }
    }

    /// A block was filled by read-ahead and nobody has asked for it yet. It must not be in the policy.
    pub fn insert_once(&mut self, key: Key) {
        self.queues.push(Stage::Small, Entry::new(key, UNASKED));
    }

    /// A block of which `next_victim` said `Evict` could not be evicted: it was pinned meanwhile, or its write-back failed.
    pub fn requeue(&mut self, key: Key) {
        self.ghost.take(key);
        self.queues.push(Stage::Main, Entry::new(key, 0));
    }

    /// Chooses what to unmap or evict next. Call it again until enough was evicted.
    ///
    /// `look` tells the state of a block; it is called at most four times for an entry. None when no block can go: all are
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
            let mut fate = fate(stage, entry.mark(), look(key), hurry);
            if fate.is_victim() && self.recent[..patience.recent].contains(&Some(key)) {
                fate = Fate::Spare(stage, entry.mark());
            }
            match fate {
                Fate::Drop => {}
                Fate::Skip => self.queues.push(stage, entry),
                Fate::Spare(stage, mark) => {
                    spared += 1;
                    self.queues.push(stage, Entry::new(key, mark));
                }
                Fate::Unmap(mark) => {
                    self.queues.push(Stage::Limbo, Entry::new(key, mark));
                    return Round::Found(Victim::Unmap(key));
                }
                Fate::Evict { remember } => {
                    if remember {
                        self.ghost.add(key);
                    }
                    return Round::Found(Victim::Evict(key));
                }
            }
        }
        if spared > 0 { Round::Spared } else { Round::Nothing }
    }

    /// The queue to look at next: one that is too long, else main, else what is left.
    fn choose(&self, unseen: &[usize; 3]) -> Option<Stage> {
        let some = |stage: Stage| unseen[stage as usize] > 0;
        if some(Stage::Limbo) && self.queues.len(Stage::Limbo) > self.limbo_target {
            return Some(Stage::Limbo);
        }
        if some(Stage::Small) && self.queues.len(Stage::Small) > self.small_target {
            return Some(Stage::Small);
        }
        [Stage::Main, Stage::Small, Stage::Limbo].into_iter().find(|&stage| some(stage))
    }

    fn forget_recent(&mut self, hit: impl Fn(Key) -> bool) {
        for recent in &mut self.recent {
            if recent.is_some_and(&hit) {
                *recent = None;
            }
        }
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
        Stage::Small => true,
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
        Seen::Touched if stage == Stage::Limbo && mark == UNASKED => Fate::Spare(Stage::Small, ASKED),
        Seen::Touched => Fate::Spare(Stage::Main, (frequency + 1).min(FREQUENCY_MAX)),
        Seen::Idle | Seen::IdleUnmapped if frequency > 0 && !hurry => Fate::Spare(Stage::Main, frequency - 1),
        Seen::Idle => Fate::Unmap(limbo_mark),
        Seen::IdleUnmapped => Fate::Evict { remember: from_small },
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Small,
    Main,
    Limbo,
}

/// In the order of their numbers.
const STAGES: [Stage; 3] = [Stage::Small, Stage::Main, Stage::Limbo];

/// Two bits an entry carries. In main: the frequency, how many idle rounds it may still survive. In small: how far it has
/// come, in this order: `UNASKED`, `ASKED`, `TOUCHED`. In limbo: the same for what came from small, else `FROM_MAIN`.
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
    const MARK_SHIFT: u32 = Key::BLOCK_BITS + Key::SLOT_BITS;

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

/// Three linked lists in one pool of entries, because any of them may hold nearly all blocks: three ring buffers would need
/// room for three times as many.
struct Queues {
    entries: Vec<Entry>,
    /// The place behind an entry in its queue, or the next free place.
    next: Vec<u32>,
    free: u32,
    lists: [List; 3],
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    len: usize,
}

const NOWHERE: u32 = u32::MAX;

impl Queues {
    fn new(capacity: usize) -> Self {
        assert!(capacity < NOWHERE as usize, "a cache of {capacity} blocks");
        let empty = List { head: NOWHERE, tail: NOWHERE, len: 0 };
        Self {
            entries: Vec::with_capacity(capacity),
            next: Vec::with_capacity(capacity),
            free: NOWHERE,
            lists: [empty; 3],
        }
    }

    fn len(&self, stage: Stage) -> usize {
        self.lists[stage as usize].len
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
    }

    /// Takes the head of a queue that isn't empty.
    fn pop(&mut self, stage: Stage) -> Entry {
        let list = &mut self.lists[stage as usize];
        let place = list.head;
        list.head = self.next[place as usize];
        list.len -= 1;
        self.next[place as usize] = self.free;
        self.free = place;
        self.entries[place as usize]
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
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    // --- Single rules: blocks of file 0, whose states a table says.

    fn key(block: u64) -> Key {
        Key::new(0, block)
    }

    fn policy_with(capacity: usize, blocks: Range<u64>) -> Policy {
        let mut policy = Policy::new(capacity);
        blocks.for_each(|block| policy.insert(key(block)));
        policy
    }

    fn next(policy: &mut Policy, seen: Seen) -> Option<Victim> {
        policy.next_victim(&mut |_| seen)
    }

    /// The next victim when some blocks were touched (seen so once), and the others are `Idle`.
    fn next_touched(policy: &mut Policy, touched: &[u64]) -> Option<Victim> {
        let mut touched = touched.to_vec();
        policy.next_victim(&mut |key| match touched.iter().position(|&block| block == key.block()) {
            Some(index) => {
                touched.swap_remove(index);
                Seen::Touched
            }
            None => Seen::Idle,
        })
    }

    fn stage_of(policy: &mut Policy, block: u64) -> Option<Stage> {
        let mut found = None;
        for stage in STAGES {
            for _ in 0..policy.queues.len(stage) {
                let entry = policy.queues.pop(stage);
                if entry.key() == key(block) {
                    assert_eq!(found.replace(stage), None, "{block} is there twice");
                }
                policy.queues.push(stage, entry);
            }
        }
        found
    }

    #[test]
    fn key_keeps_its_parts() {
        let key = Key::new((1 << 22) - 1, (1 << 40) - 1);
        assert_eq!((key.slot(), key.block()), ((1 << 22) - 1, (1 << 40) - 1));
        let entry = Entry::new(key, FREQUENCY_MAX);
        assert_eq!((entry.key(), entry.mark()), (key, FREQUENCY_MAX));
    }

    #[test]
    fn mapped_block_is_unmapped_first_and_evicted_from_limbo() {
        let mut policy = policy_with(8, 0..8);
        assert_eq!(next(&mut policy, Seen::Idle), Some(Victim::Unmap(key(0))));
        assert_eq!(next(&mut policy, Seen::Idle), Some(Victim::Unmap(key(1))), "limbo's target is one block");
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        assert_eq!(policy.len(), 7);
    }

    #[test]
    fn touch_in_limbo_promotes() {
        let mut policy = policy_with(8, 0..8);
        next(&mut policy, Seen::Idle);
        next(&mut policy, Seen::Idle);
        assert_eq!(next_touched(&mut policy, &[0]), Some(Victim::Unmap(key(2))));
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
    }

    #[test]
    fn block_mapped_in_limbo_without_a_touch_is_unmapped_again() {
        let mut policy = policy_with(8, 0..8);
        next(&mut policy, Seen::Idle);
        next(&mut policy, Seen::Idle);
        assert_eq!(next(&mut policy, Seen::Idle), Some(Victim::Unmap(key(0))));
    }

    #[test]
    fn unmapped_block_needs_no_limbo() {
        let mut policy = policy_with(100, 0..100);
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        assert_eq!(stage_of(&mut policy, 0), None);
    }

    /// Block 0 is seen touched at each look, the others idle, until they are evicted, and 0 was looked at `looks` times.
    fn look_at_zero(policy: &mut Policy, looks: u32) {
        let mut seen = 0;
        while seen < looks {
            let victim = policy.next_victim(&mut |key| {
                seen += u32::from(key.block() == 0);
                if key.block() == 0 { Seen::Touched } else { Seen::IdleUnmapped }
            });
            let Some(Victim::Evict(key)) = victim else { panic!("{victim:?}") };
            policy.insert_once(Key::new(0, key.block() + 1000));
        }
    }

    #[test]
    fn second_look_that_finds_it_touched_moves_a_block_to_main() {
        let mut policy = policy_with(20, 0..20);
        look_at_zero(&mut policy, 1);
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
        look_at_zero(&mut policy, 1);
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
    }

    #[test]
    fn first_touch_of_a_block_read_ahead_is_its_insertion() {
        let mut policy = Policy::new(20);
        (0..20).for_each(|block| policy.insert_once(key(block)));
        look_at_zero(&mut policy, 2);
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
        look_at_zero(&mut policy, 1);
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
    }

    #[test]
    fn first_touch_in_limbo_of_a_block_read_ahead_is_its_insertion() {
        let mut policy = Policy::new(8);
        (0..8).for_each(|block| policy.insert_once(key(block)));
        next(&mut policy, Seen::Idle);
        next(&mut policy, Seen::Idle);
        next_touched(&mut policy, &[0]);
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
    }

    #[test]
    fn evicted_from_small_comes_back_to_main() {
        let mut policy = policy_with(20, 0..20);
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        policy.insert(key(0));
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
        next(&mut policy, Seen::IdleUnmapped);
        policy.insert_once(key(1));
        assert_eq!(stage_of(&mut policy, 1), Some(Stage::Small), "read-ahead is no request");
    }

    #[test]
    fn evicted_from_main_is_not_remembered() {
        let mut policy = Policy::new(20);
        (0..10).for_each(|block| policy.requeue(key(block)));
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        policy.insert(key(0));
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
    }

    #[test]
    fn main_block_survives_as_many_idle_rounds_as_touched_ones_at_most_three() {
        for (touched_rounds, idle_rounds) in [(0, 0), (1, 1), (2, 2), (3, 3), (5, 3)] {
            let mut policy = Policy::new(100);
            let (hot, cold) = (key(0), key(1));
            policy.requeue(hot);
            policy.requeue(cold);
            let mut round = |hot_seen| {
                let victim =
                    policy.next_victim(&mut |key| if key == hot { hot_seen } else { Seen::IdleUnmapped });
                policy.requeue(cold);
                victim
            };
            for _ in 0..touched_rounds {
                assert_eq!(round(Seen::Touched), Some(Victim::Evict(cold)));
            }
            for _ in 0..idle_rounds {
                assert_eq!(round(Seen::IdleUnmapped), Some(Victim::Evict(cold)));
            }
            assert_eq!(round(Seen::IdleUnmapped), Some(Victim::Evict(hot)), "touched {touched_rounds} times");
        }
    }

    #[test]
    fn small_goes_first_only_when_above_its_share() {
        let mut policy = Policy::new(20);
        (0..10).for_each(|block| policy.requeue(key(block)));
        (10..12).for_each(|block| policy.insert_once(key(block)));
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        policy.insert_once(key(12));
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(10))));
    }

    #[test]
    fn busy_blocks_are_passed_over_in_every_queue() {
        let mut policy = policy_with(20, 0..10);
        policy.requeue(key(10));
        let only_main = &mut |key: Key| if key.block() < 10 { Seen::Busy } else { Seen::IdleUnmapped };
        assert_eq!(policy.next_victim(only_main), Some(Victim::Evict(key(10))));
        assert_eq!(policy.len(), 10);
    }

    #[test]
    fn all_busy_is_none_after_one_look_each() {
        let mut policy = policy_with(1000, 0..1000);
        let mut looks = 0;
        let victim = policy.next_victim(&mut |_| {
            looks += 1;
            Seen::Busy
        });
        assert_eq!((victim, looks, policy.len()), (None, 1000, 1000));
    }

    #[test]
    fn all_touched_all_the_time_still_yields() {
        let mut policy = policy_with(100_000, 0..100_000);
        let mut looks = 0;
        let victim = policy.next_victim(&mut |_| {
            looks += 1;
            Seen::Touched
        });
        assert!(matches!(victim, Some(Victim::Unmap(_))));
        assert!(looks < 2000, "{looks} looks");
    }

    #[test]
    fn gone_blocks_are_dropped() {
        let mut policy = policy_with(10, 0..10);
        assert_eq!(next(&mut policy, Seen::Gone), None);
        assert!(policy.is_empty());
        assert_eq!(next(&mut policy, Seen::Idle), None);
    }

    #[test]
    fn requeued_block_goes_last() {
        let mut policy = policy_with(4, 0..4);
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
        policy.requeue(key(0));
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
        assert_eq!(policy.len(), 4);
    }

    #[test]
    fn forgetting_a_file_leaves_the_others() {
        let mut policy = Policy::new(100);
        for block in 0..50 {
            policy.insert(Key::new(1, block));
            policy.insert(Key::new(2, block));
        }
        next(&mut policy, Seen::Idle);
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(Key::new(2, 0))));
        policy.forget_file(1);
        assert_eq!(policy.len(), 49);
        policy.forget_blocks(2, 40..100);
        assert_eq!(policy.len(), 39);
        policy.insert(Key::new(2, 0));
        assert_eq!(policy.queues.len(Stage::Main), 1, "the other file's ghost is still there");
    }

    #[test]
    fn next_file_in_a_slot_finds_no_ghosts() {
        let mut policy = policy_with(20, 0..20);
        let victim = next(&mut policy, Seen::IdleUnmapped);
        assert_eq!(victim, Some(Victim::Evict(key(0))));
        policy.forget_file(0);
        policy.insert(key(0));
        assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
    }

    #[test]
    fn forgotten_blocks_are_not_spared_when_they_come_back() {
        let mut policy = policy_with(4, 0..3);
        policy.forget_file(0);
        (1..4).for_each(|block| policy.insert_once(key(block)));
        assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(1))));
    }

    #[test]
    fn small_caches_keep_what_one_instruction_needs() {
        for capacity in 1..=16usize {
            for mapped in [false, true] {
                let mut model = Model::new(capacity, mapped);
                for block in 0..200 {
                    model.access(block * 7 % 23);
                }
                // Retries one instruction that needs up to four blocks, until none of them is missed.
                let needs = capacity.min(4) as u64;
                let mut tries = 0;
                while (0..needs).any(|block| !model.shown(100 + block)) {
                    let missing = (0..needs).find(|&block| !model.shown(100 + block)).unwrap();
                    model.access(100 + missing);
                    tries += 1;
                    assert!(tries <= 8, "capacity {capacity}, mapped {mapped}: livelock");
                }
            }
        }
    }

    #[test]
    fn youngest_block_is_no_victim_while_there_is_another() {
        let mut random = Random(7);
        for capacity in 2..=8usize {
            let mut policy = Policy::new(capacity);
            let mut resident = BTreeSet::new();
            for _ in 0..2000 {
                let young = key(random.below(12));
                if !resident.insert(young) {
                    continue;
                }
                policy.insert(young);
                while resident.len() > capacity - 1 {
                    let seen = [Seen::Idle, Seen::IdleUnmapped, Seen::Touched][random.below(3) as usize];
                    let victim = next(&mut policy, seen).unwrap();
                    if resident.len() > 1 {
                        assert!(victim != Victim::Unmap(young) && victim != Victim::Evict(young));
                    }
                    if let Victim::Evict(key) = victim {
                        resident.remove(&key);
                    }
                }
            }
        }
    }

    #[test]
    fn metadata_is_small() {
        for capacity in [1000, 65_536, 1_000_000] {
            assert!(Policy::new(capacity).bytes() <= 16 * capacity);
        }
    }

    #[test]
    fn nothing_is_lost_or_doubled() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let capacity = 1 + random.below(64) as usize;
            let mut policy = Policy::new(capacity);
            let mut there = BTreeSet::new();
            for _ in 0..3000 {
                let key = Key::new(random.below(3) as u32, random.below(100));
                match random.below(20) {
                    0..8 if there.len() < capacity + 2 && there.insert(key) => policy.insert(key),
                    8..10 if there.len() < capacity + 2 && there.insert(key) => policy.insert_once(key),
                    10 if random.below(20) == 0 => {
                        policy.forget_file(key.slot());
                        there.retain(|other| other.slot() != key.slot());
                    }
                    11..20 => step(&mut policy, &mut there, &mut random),
                    _ => {}
                }
                assert_eq!(policy.len(), there.len());
            }
            while !there.is_empty() {
                let Some(Victim::Evict(key)) = next(&mut policy, Seen::IdleUnmapped) else {
                    panic!("none left")
                };
                assert!(there.remove(&key), "doubled");
            }
            assert_eq!(next(&mut policy, Seen::IdleUnmapped), None);
        }
    }

    /// One call with random answers, and what the caller does then.
    fn step(policy: &mut Policy, there: &mut BTreeSet<Key>, random: &mut Random) {
        let entries = there.len() as u64;
        let mut looks = 0;
        let victim = policy.next_victim(&mut |key| {
            looks += 1;
            assert!(there.contains(&key), "unknown key");
            match random.below(10) {
                0 => {
                    there.remove(&key);
                    Seen::Gone
                }
                1..4 => Seen::Busy,
                4..6 => Seen::Touched,
                6..8 => Seen::Idle,
                _ => Seen::IdleUnmapped,
            }
        });
        assert!(looks <= 4 * entries);
        match victim {
            Some(Victim::Unmap(key)) => assert!(there.contains(&key)),
            Some(Victim::Evict(key)) if random.below(4) == 0 => policy.requeue(key),
            Some(Victim::Evict(key)) => assert!(there.remove(&key)),
            None => {}
        }
    }

    // --- Hit ratios, against LRU and Belady's optimum.

    /// A cache that sees hits as the engine does: those of mapped blocks not at all.
    struct Model {
        policy: Policy,
        capacity: usize,
        mapped_access: bool,
        blocks: HashMap<Key, Shown>,
        soft_faults: u64,
    }

    #[derive(Default)]
    struct Shown {
        mapped: bool,
        referenced: bool,
    }

    impl Model {
        fn new(capacity: usize, mapped_access: bool) -> Self {
            let policy = Policy::new(capacity);
            Self { policy, capacity, mapped_access, blocks: HashMap::new(), soft_faults: 0 }
        }

        /// Whether an instruction could use the block without a fault.
        fn shown(&self, block: u64) -> bool {
            self.blocks.get(&key(block)).is_some_and(|shown| shown.mapped || !self.mapped_access)
        }

        /// True for a hit.
        fn access(&mut self, block: u64) -> bool {
            if let Some(shown) = self.blocks.get_mut(&key(block)) {
                if !shown.mapped {
                    shown.referenced = true;
                    shown.mapped = self.mapped_access;
                    self.soft_faults += u64::from(self.mapped_access);
                }
                return true;
            }
            while self.blocks.len() >= self.capacity {
                self.make_room();
            }
            self.blocks.insert(key(block), Shown { mapped: self.mapped_access, referenced: false });
            self.policy.insert(key(block));
            false
        }

        fn make_room(&mut self) {
            let blocks = &mut self.blocks;
            let victim = self.policy.next_victim(&mut |key| match blocks.get_mut(&key) {
                None => Seen::Gone,
                Some(Shown { referenced, .. }) if *referenced => {
                    *referenced = false;
                    Seen::Touched
                }
                Some(shown) if shown.mapped => Seen::Idle,
                Some(_) => Seen::IdleUnmapped,
            });
            match victim.expect("nothing is busy") {
                Victim::Unmap(key) => blocks.get_mut(&key).unwrap().mapped = false,
                Victim::Evict(key) => assert!(!blocks.remove(&key).unwrap().mapped),
            }
        }
    }

    /// xorshift64* (Vigna 2016).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = if self.0 == 0 { 0x9e37_79b9 } else { self.0 };
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, end: u64) -> u64 {
            ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
        }
    }

    fn zipf(seed: u64, blocks: u64, length: usize) -> Vec<u64> {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=blocks)
            .map(|rank| {
                sum += (rank as f64).powf(-0.99);
                sum
            })
            .collect();
        let mut random = Random(seed);
        let mut draw = || random.below(1 << 53) as f64 / (1u64 << 53) as f64 * sum;
        (0..length)
            .map(|_| {
                let at = draw();
                sums.partition_point(|&sum| sum < at) as u64
            })
            .collect()
    }

    /// Zipf, and after each of its accesses one block of a scan that never comes back, asked for `times` in a row.
    fn zipf_and_scan(zipf: &[u64], times: usize) -> Vec<u64> {
        let with_scan = |(index, &block): (usize, &u64)| {
            let scanned = std::iter::repeat_n(SCAN + index as u64, times);
            std::iter::once(block).chain(scanned)
        };
        zipf.iter().enumerate().flat_map(with_scan).collect()
    }

    fn ratio(hits: usize, accesses: usize) -> f64 {
        hits as f64 / accesses as f64
    }

    /// Counts the accesses to all blocks.
    const ALL: u64 = u64::MAX;
    /// First block of the scan; as a bound, counts the others only.
    const SCAN: u64 = 1_000_000;

    #[derive(Debug)]
    struct Measured {
        hit_ratio: f64,
        soft_faults_per_access: f64,
    }

    impl Measured {
        /// Replays a trace and counts the accesses below `count_below`.
        fn of(trace: &[u64], capacity: usize, mapped: bool, count_below: u64) -> Self {
            let mut model = Model::new(capacity, mapped);
            let (mut hits, mut count) = (0, 0);
            for &block in trace {
                let hit = model.access(block);
                if block < count_below {
                    hits += usize::from(hit);
                    count += 1;
                }
            }
            let soft_faults_per_access = model.soft_faults as f64 / trace.len() as f64;
            Self { hit_ratio: ratio(hits, count), soft_faults_per_access }
        }
    }

    fn lru_ratio(trace: &[u64], capacity: usize, count_below: u64) -> f64 {
        let (mut last_use, mut by_use) = (HashMap::new(), BTreeMap::new());
        let (mut hits, mut count) = (0, 0);
        for (now, &block) in trace.iter().enumerate() {
            let before = last_use.insert(block, now);
            if block < count_below {
                hits += usize::from(before.is_some());
                count += 1;
            }
            if let Some(before) = before {
                by_use.remove(&before);
            }
            by_use.insert(now, block);
            if by_use.len() > capacity {
                let (_, oldest) = by_use.pop_first().unwrap();
                last_use.remove(&oldest);
            }
        }
        ratio(hits, count)
    }

    /// Belady 1966: evicts the block whose next use is farthest.
    fn optimal_ratio(trace: &[u64], capacity: usize) -> f64 {
        let mut seen_at = HashMap::new();
        let mut next_use: Vec<usize> = (0..trace.len())
            .rev()
            .map(|at| seen_at.insert(trace[at], at).unwrap_or(usize::MAX - at))
            .collect();
        next_use.reverse();
        let (mut resident, mut by_next) = (HashMap::new(), BTreeMap::new());
        let mut hits = 0;
        for (now, &block) in trace.iter().enumerate() {
            if let Some(next) = resident.insert(block, next_use[now]) {
                hits += 1;
                by_next.remove(&next);
            }
            by_next.insert(next_use[now], block);
            if by_next.len() > capacity {
                let (_, farthest) = by_next.pop_last().unwrap();
                resident.remove(&farthest);
            }
        }
        ratio(hits, trace.len())
    }

    #[test]
    fn zipf_beats_lru_that_sees_everything() {
        for (capacity, floor_of_optimum) in [(50, 0.7), (1000, 0.82)] {
            let trace = zipf(1, 10_000, 100_000);
            let (lru, optimum) = (lru_ratio(&trace, capacity, ALL), optimal_ratio(&trace, capacity));
            for mapped in [false, true] {
                let ours = Measured::of(&trace, capacity, mapped, ALL);
                println!(
                    "zipf, {capacity} blocks, mapped {mapped}: {ours:?}, LRU {lru:.4}, optimum {optimum:.4}"
                );
                assert!(lru < ours.hit_ratio && ours.hit_ratio < optimum);
                assert!(ours.hit_ratio > floor_of_optimum * optimum);
                assert!(ours.soft_faults_per_access < 0.03);
            }
        }
    }

    #[test]
    fn a_scan_leaves_the_hot_set_alone() {
        for (capacity, times) in [(50, 1), (50, 8), (1000, 1), (1000, 8)] {
            let alone = zipf(1, 10_000, 50_000);
            let mixed = zipf_and_scan(&alone, times);
            let lru = lru_ratio(&mixed, capacity, SCAN);
            for mapped in [false, true] {
                let without = Measured::of(&alone, capacity, mapped, SCAN);
                let with = Measured::of(&mixed, capacity, mapped, SCAN);
                println!(
                    "zipf and scan x{times}, {capacity} blocks, mapped {mapped}: {with:?}, LRU {lru:.4}"
                );
                assert!(with.hit_ratio > 0.93 * without.hit_ratio);
                assert!(with.hit_ratio > lru + 0.1);
            }
        }
    }

    #[test]
    fn a_hot_set_that_moves_is_followed() {
        let drift = |(at, &block): (usize, &u64)| (block + at as u64 / 20_000 * 3000) % 10_000;
        let trace: Vec<u64> = zipf(1, 10_000, 100_000).iter().enumerate().map(drift).collect();
        for capacity in [50, 1000] {
            let lru = lru_ratio(&trace, capacity, ALL);
            for mapped in [false, true] {
                let ours = Measured::of(&trace, capacity, mapped, ALL);
                println!("moving zipf, {capacity} blocks, mapped {mapped}: {ours:?}, LRU {lru:.4}");
                assert!(ours.hit_ratio > lru);
            }
        }
    }

    #[test]
    fn a_loop_larger_than_the_cache_hits_where_lru_never_does() {
        for (blocks, floor) in [(1100, 0.55), (1500, 0.3), (2000, 0.25)] {
            let trace: Vec<u64> = (0..60_000).map(|at| at % blocks).collect();
            let (lru, optimum) = (lru_ratio(&trace, 1000, ALL), optimal_ratio(&trace, 1000));
            assert_eq!(lru, 0.0);
            for mapped in [false, true] {
                let ours = Measured::of(&trace, 1000, mapped, ALL);
                println!("loop of {blocks}, 1000 blocks, mapped {mapped}: {ours:?}, optimum {optimum:.4}");
                assert!(floor < ours.hit_ratio && ours.hit_ratio < optimum);
            }
        }
    }
}
