//! Remembers which blocks were evicted lately, in four bytes a block.
//!
//! The ghost queue of S3-FIFO as its paper proposes to build it: no queue and no keys, but a table of buckets
//! that hold a fingerprint and the time of eviction, counted in evictions. What is older than the ghost is long, is not in it;
//! a full bucket gives up its oldest entry. Answers may be wrong, rarely and harmlessly: a false "yes" (1 in 4,000) lets a
//! cold block into the main queue, a false "no" (a crowded bucket, up to 1 in 4) makes a block prove itself once more.
//!
//! An entry is 8 bits of a hash of the file slot (so that a file can be forgotten), 14 bits of a hash of the key, and 10 bits
//! of time in steps of 1/64 of the ghost's length. Time wraps after 16 lengths; by then a bucket has been overwritten many
//! times.

use super::policy::Key;

const WAYS: usize = 4;
const TIME_BITS: u32 = 10;
const PRINT_BITS: u32 = 14;
const TIME_MASK: u32 = (1 << TIME_BITS) - 1;
const PRINT_MASK: u32 = (1 << PRINT_BITS) - 1;
/// Time steps in the length of a long ghost.
const STEPS: usize = 64;
const EMPTY: u32 = 0;

pub(super) struct Ghost {
    /// Buckets of `WAYS` entries.
    entries: Vec<u32>,
    /// Evictions counted so far.
    evictions: u64,
    /// Evictions a step of time takes.
    evictions_per_step: u64,
    /// Steps after which an entry is too old.
    life_steps: u32,
}

impl Ghost {
    /// A ghost of about `length` blocks.
    pub(super) fn new(length: usize) -> Self {
        let evictions_per_step = length.div_ceil(STEPS).max(1);
        Self {
            entries: vec![EMPTY; length.div_ceil(WAYS).max(1) * WAYS],
            evictions: 0,
            evictions_per_step: evictions_per_step as u64,
            life_steps: length.div_ceil(evictions_per_step) as u32,
        }
    }

    pub(super) fn add(&mut self, key: Key) {
        self.evictions += 1;
        let now = self.now();
        let print = print(key);
        let bucket = self.bucket(key);
        let same = bucket.iter().position(|&entry| entry >> TIME_BITS == print);
        let way = same.unwrap_or_else(|| oldest(bucket, now));
        bucket[way] = print << TIME_BITS | now;
    }

    /// Whether the block is in the ghost; it is not any more.
    pub(super) fn take(&mut self, key: Key) -> bool {
        let (now, life_steps) = (self.now(), self.life_steps);
        let print = print(key);
        let found = self.bucket(key).iter_mut().find(|entry| **entry >> TIME_BITS == print);
        match found {
            Some(entry) => age(std::mem::replace(entry, EMPTY), now) <= life_steps,
            None => false,
        }
    }

    /// Forgets the blocks of a file, and 1 in 256 of the others.
    pub(super) fn forget_file(&mut self, slot: u32) {
        let tag = slot_tag(slot);
        for entry in &mut self.entries {
            if *entry >> (TIME_BITS + PRINT_BITS) == tag {
                *entry = EMPTY;
            }
        }
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<u32>()
    }

    fn now(&self) -> u32 {
        (self.evictions / self.evictions_per_step) as u32 & TIME_MASK
    }

    fn bucket(&mut self, key: Key) -> &mut [u32] {
        let buckets = self.entries.len() / WAYS;
        let index = (u128::from(mix(key.0)) * buckets as u128) >> 64;
        &mut self.entries[index as usize * WAYS..][..WAYS]
    }
}

/// The entry to give up: an empty one, or the one that was made first.
fn oldest(bucket: &[u32], now: u32) -> usize {
    let worth = |entry: u32| if entry == EMPTY { u32::MAX } else { age(entry, now) };
    (0..bucket.len()).max_by_key(|&way| worth(bucket[way])).unwrap_or(0)
}

fn age(entry: u32, now: u32) -> u32 {
    now.wrapping_sub(entry) & TIME_MASK
}

/// Never zero, so that no entry looks empty.
fn print(key: Key) -> u32 {
    let block_print = (mix(key.0) as u32 & PRINT_MASK).max(1);
    slot_tag(key.slot()) << PRINT_BITS | block_print
}

fn slot_tag(slot: u32) -> u32 {
    (mix(u64::from(slot)) >> 56) as u32
}

/// Spreads keys: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<u64>) -> impl Iterator<Item = Key> {
        range.map(|block| Key::new(1, block))
    }

    #[test]
    fn remembers_most_of_the_last_length_and_nothing_older() {
        let mut ghost = Ghost::new(1000);
        keys(0..10_000).for_each(|key| ghost.add(key));
        let old = keys(0..8_900).filter(|&key| ghost.take(key)).count();
        let young = keys(9_050..10_000).filter(|&key| ghost.take(key)).count();
        assert!(old <= 5, "{old} old blocks remembered");
        assert!(young >= 720, "only {young} of 950 remembered");
    }

    #[test]
    fn takes_once() {
        let mut ghost = Ghost::new(8);
        let key = Key::new(3, 7);
        ghost.add(key);
        assert!(ghost.take(key));
        assert!(!ghost.take(key));
    }

    #[test]
    fn adding_again_makes_young() {
        let mut ghost = Ghost::new(4);
        let key = Key::new(0, 0);
        ghost.add(key);
        keys(1..4).for_each(|other| ghost.add(other));
        ghost.add(key);
        keys(4..7).for_each(|other| ghost.add(other));
        assert!(ghost.take(key));
    }

    #[test]
    fn forgets_one_file_and_keeps_the_others() {
        let mut ghost = Ghost::new(400);
        (0..100).for_each(|block| ghost.add(Key::new(1, block)));
        (0..100).for_each(|block| ghost.add(Key::new(2, block)));
        ghost.forget_file(1);
        assert_eq!((0..100).filter(|&block| ghost.take(Key::new(1, block))).count(), 0);
        assert!((0..100).filter(|&block| ghost.take(Key::new(2, block))).count() > 90);
    }

    #[test]
    fn rarely_takes_a_stranger() {
        let mut ghost = Ghost::new(10_000);
        keys(0..10_000).for_each(|key| ghost.add(key));
        let wrong = keys(1_000_000..1_100_000).filter(|&key| ghost.take(key)).count();
        assert!(wrong < 60, "{wrong} of 100,000");
    }
}
