//! Single rules, and hit ratios of a model cache against LRU and the optimum.

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
    let key = Key::sized((1 << 22) - 1, (1 << 36) - 1, 9);
    assert_eq!((key.slot(), key.block(), key.pages()), ((1 << 22) - 1, (1 << 36) - 1, 512));
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

/// Block 0 is seen touched at each look, the others idle, until they are evicted and others inserted, and 0 was looked at `looks`
/// times.
fn look_at_zero(policy: &mut Policy, looks: u32, insert: fn(&mut Policy, Key)) {
    let mut seen = 0;
    while seen < looks {
        let victim = policy.next_victim(&mut |key| {
            seen += u32::from(key.block() == 0);
            if key.block() == 0 { Seen::Touched } else { Seen::IdleUnmapped }
        });
        let Some(Victim::Evict(key)) = victim else { panic!("{victim:?}") };
        insert(policy, Key::new(0, key.block() + 1000));
    }
}

#[test]
fn second_look_that_finds_it_touched_moves_a_block_to_main() {
    let mut policy = policy_with(20, 0..20);
    look_at_zero(&mut policy, 1, Policy::insert);
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
    look_at_zero(&mut policy, 1, Policy::insert);
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
}

#[test]
fn first_touch_of_a_block_read_ahead_is_its_insertion() {
    let mut policy = Policy::new(20); // ahead and behind may have one block each
    (0..20).for_each(|block| policy.insert_once(key(block)));
    let look = &mut |key: Key| if key.block() < 2 { Seen::Touched } else { Seen::IdleUnmapped };
    assert_eq!(policy.next_victim(look), Some(Victim::Evict(key(2))));
    assert_eq!([0, 1].map(|block| stage_of(&mut policy, block)), [Some(Stage::Behind); 2]);
    assert_eq!(policy.next_victim(look), Some(Victim::Evict(key(3))));
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
}

#[test]
fn first_touch_in_limbo_of_a_block_read_ahead_is_its_insertion() {
    let mut policy = Policy::new(8);
    (0..8).for_each(|block| policy.insert_once(key(block)));
    next(&mut policy, Seen::Idle);
    next(&mut policy, Seen::Idle);
    next_touched(&mut policy, &[0]);
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Behind));
}

#[test]
fn evicted_from_small_comes_back_to_main() {
    let mut policy = policy_with(20, 0..20);
    assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
    policy.insert(key(0));
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Main));
    next(&mut policy, Seen::IdleUnmapped);
    policy.insert_once(key(1));
    assert_eq!(stage_of(&mut policy, 1), Some(Stage::Ahead), "read-ahead is no request");
}

#[test]
fn a_scan_that_is_read_ahead_leaves_newcomers_alone() {
    let mut policy = Policy::new(100);
    policy.insert(key(0));
    for block in 1000..100_000 {
        policy.insert_once(key(block));
        if block >= 1099 {
            assert!(
                matches!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key)) if key.block() >= 1000)
            );
        }
    }
    assert_eq!(stage_of(&mut policy, 0), Some(Stage::Small));
    policy.insert(key(1000));
    assert_eq!(stage_of(&mut policy, 1000), Some(Stage::Small), "what nobody asked for is not remembered");
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
fn what_is_read_ahead_goes_first_only_when_above_its_share() {
    let mut policy = Policy::new(48);
    (0..10).for_each(|block| policy.requeue(key(block)));
    (10..13).for_each(|block| policy.insert_once(key(block)));
    assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
    policy.insert_once(key(13));
    assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(10))));
}

#[test]
fn a_share_is_a_share_of_pages() {
    let mut policy = Policy::new(1100);
    (0..10).for_each(|block| policy.requeue(key(block)));
    policy.insert_once(Key::sized(0, 512, 6));
    assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(key(0))));
    policy.insert_once(Key::sized(0, 1024, 6));
    assert_eq!(next(&mut policy, Seen::IdleUnmapped), Some(Victim::Evict(Key::sized(0, 512, 6))));
}

#[test]
fn what_a_scan_has_read_leaves_before_what_it_is_about_to_read() {
    let region = |number: u64| Key::sized(0, number * 64, 6);
    let mut policy = Policy::new(1100);
    (0..4).for_each(|number| policy.insert_once(region(number)));
    // The first two were read, the others wait for their reader.
    let mut seen: BTreeSet<Key> = BTreeSet::new();
    let mut victim = |policy: &mut Policy| {
        policy.next_victim(&mut |key| match key.block() < 128 && seen.insert(key) {
            true => Seen::Touched,
            false => Seen::IdleUnmapped,
        })
    };
    assert_eq!(victim(&mut policy), Some(Victim::Evict(region(0))));
    assert_eq!(victim(&mut policy), Some(Victim::Evict(region(1))));
}

#[test]
fn blocks_that_become_a_region_do_not_pass_for_hot() {
    let mut policy = Policy::new(1100);
    (0..64).for_each(|block| policy.requeue(key(block))); // all of them in main
    let whole = Key::sized(0, 0, 6);
    policy.insert_whole(whole);
    (1000..1500).for_each(|block| policy.requeue(key(block)));
    let look =
        &mut |key: Key| if key.pages() == 1 && key.block() < 64 { Seen::Gone } else { Seen::IdleUnmapped };
    assert_eq!(policy.next_victim(look), Some(Victim::Evict(whole)));
}

/// A cache that sees no touches: `touched` tells whether a block was, when it is in limbo for the first time. How many blocks
/// are unmapped of so many.
fn unmapped_of(rounds: u64, seen: Seen, touched: impl Fn(u64) -> bool) -> u64 {
    let mut policy = policy_with(4096, 0..4096);
    let (mut unmapped, mut limbo, mut known) = (0, BTreeSet::new(), BTreeSet::new());
    for block in 4096..4096 + rounds {
        policy.insert(key(block));
        while let Some(Victim::Unmap(key)) = policy.next_victim(&mut |key| match limbo.take(&key) {
            None => seen,
            Some(_) if touched(key.block()) && known.insert(key) => Seen::Touched,
            Some(_) => Seen::IdleUnmapped,
        }) {
            unmapped += 1;
            limbo.insert(key);
            assert!(unmapped < 10 * rounds);
        }
    }
    unmapped
}

#[test]
fn limbo_goes_on_only_where_it_is_worth_it() {
    let (rounds, some) = (100_000, |block: u64| block.is_multiple_of(4));
    let unmapped = unmapped_of(rounds, Seen::IdleClean, some);
    assert!(unmapped > rounds / 2, "{unmapped} where a quarter of those in limbo are asked for");
    let sampled = unmapped_of(rounds, Seen::IdleClean, |_| false);
    assert!((rounds / 100..rounds / 8).contains(&sampled), "a sample of {sampled}");
    assert!(unmapped_of(rounds, Seen::Idle, |_| false) > rounds / 2, "what must be unmapped is");
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
            let Some(Victim::Evict(key)) = next(&mut policy, Seen::IdleUnmapped) else { panic!("none left") };
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
    let mut next_use: Vec<usize> =
        (0..trace.len()).rev().map(|at| seen_at.insert(trace[at], at).unwrap_or(usize::MAX - at)).collect();
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
            println!("zipf and scan x{times}, {capacity} blocks, mapped {mapped}: {with:?}, LRU {lru:.4}");
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
