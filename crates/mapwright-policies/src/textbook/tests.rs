//! Known sequences, and oracles too simple to be wrong.

use super::*;
use crate::Policy;
use mapwright_measure::pages::Random;

/// The sequence of Belady, Nelson and Shedler ("An anomaly in space-time characteristics", 1969).
const ANOMALY: [u64; 12] = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];

fn misses(mut cache: impl Cache, trace: &[u64]) -> usize {
    trace.iter().filter(|block| !cache.access(**block)).count()
}

/// The accesses that hit, as `h`, and those that miss, as `.`.
fn marks(mut cache: impl Cache, trace: &[u64]) -> String {
    trace.iter().map(|block| if cache.access(*block) { 'h' } else { '.' }).collect()
}

fn random_trace(seed: u64, blocks: u64, length: usize) -> Vec<u64> {
    let mut random = Random::new(seed);
    // Squared, so that some blocks are asked for more often than others.
    (0..length).map(|_| random.below(blocks) * random.below(blocks) / blocks).collect()
}

#[test]
fn the_anomaly_of_fifo_is_none_of_lru_and_of_the_optimum() {
    let lru = [3, 4].map(|capacity| misses(Lru::new(capacity), &ANOMALY));
    let optimum = [3, 4].map(|capacity| misses(Belady::new(&ANOMALY, capacity), &ANOMALY));
    assert_eq!((lru, optimum), ([10, 8], [7, 6]));
}

#[test]
fn lru_hits_what_was_asked_for_fewer_blocks_ago_than_it_holds() {
    for seed in 0..50 {
        let trace = random_trace(seed, 30, 500);
        let capacity = 1 + seed as usize % 12;
        let is_near = |at: usize| {
            let since = trace[..at].iter().rposition(|block| *block == trace[at]);
            let distinct = |since: usize| trace[since..at].iter().collect::<BTreeSet<_>>().len();
            since.is_some_and(|since| distinct(since) <= capacity)
        };
        let expected: String = (0..trace.len()).map(|at| if is_near(at) { 'h' } else { '.' }).collect();
        assert_eq!(marks(Lru::new(capacity), &trace), expected);
    }
}

#[test]
fn clock_is_fifo_with_a_second_chance() {
    for seed in 0..50 {
        let trace = random_trace(seed, 30, 500);
        let capacity = 1 + seed as usize % 12;
        let mut fifo = std::collections::VecDeque::new();
        let mut expected = String::new();
        for &block in &trace {
            if let Some((_, touched)) = fifo.iter_mut().find(|(other, _)| *other == block) {
                *touched = true;
                expected.push('h');
                continue;
            }
            while fifo.len() == capacity {
                let (oldest, touched) = fifo.pop_front().unwrap();
                if touched {
                    fifo.push_back((oldest, false));
                }
            }
            fifo.push_back((block, false));
            expected.push('.');
        }
        assert_eq!(marks(Clock::new(capacity), &trace), expected);
    }
}

/// The fewest misses there can be: every choice of a victim is tried.
fn fewest_misses(trace: &[u64], capacity: usize, resident: &mut Vec<u64>) -> usize {
    let Some((block, rest)) = trace.split_first() else { return 0 };
    if resident.contains(block) {
        return fewest_misses(rest, capacity, resident);
    }
    if resident.len() < capacity {
        resident.push(*block);
        let fewest = 1 + fewest_misses(rest, capacity, resident);
        resident.pop();
        return fewest;
    }
    let mut fewest = usize::MAX;
    for place in 0..capacity {
        let victim = std::mem::replace(&mut resident[place], *block);
        // What is pushed further down is popped there: the others stand where they stood.
        fewest = fewest.min(1 + fewest_misses(rest, capacity, resident));
        resident[place] = victim;
    }
    fewest
}

#[test]
fn the_optimum_is_what_trying_every_choice_finds() {
    for seed in 0..200 {
        let trace = random_trace(seed, 7, 14);
        for capacity in 1..=3 {
            let fewest = fewest_misses(&trace, capacity, &mut Vec::new());
            assert_eq!(misses(Belady::new(&trace, capacity), &trace), fewest, "{trace:?}, {capacity} blocks");
        }
    }
}

#[test]
fn nobody_holds_more_than_it_may_and_nobody_beats_the_optimum() {
    for seed in 0..40 {
        let trace = random_trace(seed, 200, 2000);
        for capacity in [1, 2, 3, 7, 20, 64] {
            let optimum = misses(Belady::new(&trace, capacity), &trace);
            for policy in Policy::ALL {
                let mut cache = policy.cache(&trace, capacity);
                let mut known = BTreeSet::new();
                let mut misses = 0;
                for &block in &trace {
                    let hit = cache.access(block);
                    assert!(known.contains(&block) || !hit, "{policy:?} hits what it never saw");
                    known.insert(block);
                    misses += usize::from(!hit);
                    assert!(cache.resident() <= capacity, "{policy:?} of {capacity}");
                }
                assert!(misses >= optimum, "{policy:?} of {capacity}: {misses}, optimum {optimum}");
            }
        }
    }
}

#[test]
fn what_fits_is_missed_once_by_everyone() {
    let trace = random_trace(1, 30, 1000);
    let distinct = trace.iter().collect::<BTreeSet<_>>().len();
    for policy in Policy::ALL {
        let mut cache = policy.cache(&trace, 30);
        let misses = trace.iter().filter(|block| !cache.access(**block)).count();
        assert_eq!(misses, distinct, "{policy:?}");
    }
}

#[test]
fn two_q_lets_only_what_comes_back_into_main() {
    // Kin is 1 and Kout 2. A hit among the newcomers changes nothing: 1 leaves first all the same.
    let mut cache = TwoQ::new(4);
    assert_eq!([1, 2, 3, 4, 1].map(|block| cache.access(block)), [false, false, false, false, true]);
    cache.access(5);
    assert!(!cache.newcomers.contains(1) && cache.ghosts.contains(1));
    assert!(!cache.access(1));
    assert!(cache.main.contains(1) && cache.ghosts.contains(2));
    // 2's ghost is the older of two when 3 and 4 leave: it is forgotten.
    [6, 7].iter().for_each(|block| _ = cache.access(*block));
    assert!(!cache.ghosts.contains(2) && cache.ghosts.contains(3) && cache.ghosts.contains(4));
    // A scan passes through the newcomers and leaves main alone.
    (100..200).for_each(|block| _ = cache.access(block));
    assert!(cache.access(1));
}

#[test]
fn s3_fifo_wants_two_hits_or_a_ghost() {
    // The small queue is 1 block and main 9.
    let trace: Vec<u64> = [1, 1, 1, 2, 2, 3].into_iter().chain(10..17).collect();
    let mut cache = S3Fifo::new(10);
    trace.iter().for_each(|block| _ = cache.access(*block));
    assert_eq!(cache.resident(), 10);
    cache.access(17);
    assert!(cache.main.contains(1), "two hits");
    assert!(cache.ghosts.contains(2) && !cache.frequency.contains_key(&2), "one hit");
    cache.access(2);
    assert!(cache.main.contains(2), "in the ghost");
    assert!(!cache.ghosts.contains(2) && cache.ghosts.contains(3));
}

#[test]
fn s3_fifo_main_goes_round_as_often_as_a_block_was_hit() {
    let mut cache = S3Fifo::new(10);
    for (block, frequency) in [(1, 2), (2, 0), (3, 0), (4, 0)] {
        cache.main.push(block);
        cache.frequency.insert(block, frequency);
    }
    let mut evicted = Vec::new();
    for _ in 0..20 {
        let before: BTreeSet<u64> = cache.frequency.keys().copied().collect();
        cache.evict_main();
        evicted.extend(before.into_iter().filter(|block| !cache.frequency.contains_key(block)));
    }
    assert_eq!(evicted, [2, 3, 4, 1]);
}

#[test]
fn sieve_keeps_visited_blocks_where_they_stand() {
    // From the paper's idea: the hand passes 1 and 2, evicts 3, and goes on from there, not from the oldest.
    let mut cache = Sieve::new(4);
    [1, 2, 3, 4, 1, 2, 5].iter().for_each(|block| _ = cache.access(*block));
    let order = |cache: &Sieve| cache.by_turn.values().map(|(block, _)| *block).collect::<Vec<_>>();
    assert_eq!(order(&cache), [1, 2, 4, 5]);
    cache.access(6);
    assert_eq!(
        order(&cache),
        [1, 2, 5, 6],
        "4 is next after the hand; 1 and 2 lost their marks but not their places"
    );
    [1, 2, 7, 8, 9].iter().for_each(|block| _ = cache.access(*block));
    assert_eq!(order(&cache), [1, 2, 8, 9], "5, 6 and 7 were not visited");
    let mut cache = Sieve::new(2);
    [1, 2, 1, 3].iter().for_each(|block| _ = cache.access(*block));
    assert_eq!(order(&cache), [1, 3], "the hand passed 1 and took the youngest");
    cache.access(4);
    assert_eq!(order(&cache), [3, 4], "so that it began again at the oldest");
}

#[test]
fn arc_moves_its_border_towards_the_ghost_that_is_hit() {
    let mut cache = Arc::new(4);
    [1, 1, 2, 2, 3, 4].iter().for_each(|block| _ = cache.access(*block));
    assert_eq!((cache.lists[0].len(), cache.lists[1].len(), cache.target), (2, 2, 0));
    cache.access(5);
    assert!(cache.ghosts[0].contains(3), "the oldest of those seen once leaves");
    cache.access(3);
    assert!(
        cache.lists[1].contains(3) && cache.target == 1,
        "its ghost was hit: there should be more of its kind"
    );
    let often = cache.ghosts[1].len();
    let ghost = (1..3).find(|block| cache.ghosts[1].contains(*block));
    assert!(often <= 1);
    if let Some(ghost) = ghost {
        cache.access(ghost);
        assert_eq!(cache.target, 0, "and back");
    }
}
