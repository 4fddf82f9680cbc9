//! Eviction as the papers have it. Each policy sees every access, which no pager does for mapped blocks.
//!
//! None of them is tuned: the parameters are those that the papers recommend for caches of any kind.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::Cache;
use crate::queue::Queue;

/// Least recently used.
pub struct Lru {
    queue: Queue,
    capacity: usize,
}

impl Lru {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { queue: Queue::default(), capacity }
    }
}

impl Cache for Lru {
    fn access(&mut self, block: u64) -> bool {
        let hit = self.queue.remove(block);
        self.queue.shorten(self.capacity - 1);
        self.queue.push(block);
        hit
    }

    fn resident(&self) -> usize {
        self.queue.len()
    }
}

/// CLOCK, or second chance (Corbató: "A paging experiment with the Multics system", 1968): a ring of blocks, each with a bit
/// that a hit sets and that the hand clears as it passes.
pub struct Clock {
    ring: Vec<(u64, bool)>,
    place_of: HashMap<u64, usize>,
    hand: usize,
    capacity: usize,
}

impl Clock {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { ring: Vec::new(), place_of: HashMap::new(), hand: 0, capacity }
    }
}

impl Cache for Clock {
    fn access(&mut self, block: u64) -> bool {
        if let Some(&place) = self.place_of.get(&block) {
            self.ring[place].1 = true;
            return true;
        }
        if self.ring.len() < self.capacity {
            self.place_of.insert(block, self.ring.len());
            self.ring.push((block, false));
            return false;
        }
        while std::mem::take(&mut self.ring[self.hand].1) {
            self.hand = (self.hand + 1) % self.capacity;
        }
        self.place_of.remove(&self.ring[self.hand].0);
        self.ring[self.hand].0 = block;
        self.place_of.insert(block, self.hand);
        self.hand = (self.hand + 1) % self.capacity;
        false
    }

    fn resident(&self) -> usize {
        self.ring.len()
    }
}

/// 2Q, the full version (Johnson and Shasha: "2Q: a low overhead high performance buffer management replacement algorithm",
/// VLDB 1994), with the paper's Kin of a quarter and Kout of half the capacity.
pub struct TwoQ {
    /// A1in: a FIFO of newcomers. Hits leave it as it is.
    newcomers: Queue,
    /// A1out: what left `newcomers`, names only.
    ghosts: Queue,
    /// Am: what was asked for again after it left `newcomers`, by recency.
    main: Queue,
    capacity: usize,
}

impl TwoQ {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { newcomers: Queue::default(), ghosts: Queue::default(), main: Queue::default(), capacity }
    }

    fn make_room(&mut self) {
        if self.resident() < self.capacity {
            return;
        }
        if self.newcomers.len() > self.capacity / 4 || self.main.is_empty() {
            self.newcomers.pop().into_iter().for_each(|block| self.ghosts.push(block));
            self.ghosts.shorten(self.capacity / 2);
        } else {
            self.main.pop();
        }
    }
}

impl Cache for TwoQ {
    fn access(&mut self, block: u64) -> bool {
        if self.main.remove(block) {
            self.main.push(block);
            return true;
        }
        if self.newcomers.contains(block) {
            return true;
        }
        let known = self.ghosts.remove(block);
        self.make_room();
        if known {
            self.main.push(block);
        } else {
            self.newcomers.push(block);
        }
        false
    }

    fn resident(&self) -> usize {
        self.newcomers.len() + self.main.len()
    }
}

/// S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023): algorithm 1, with a
/// small queue of a tenth and a ghost as long as the main queue.
pub struct S3Fifo {
    small: Queue,
    main: Queue,
    ghosts: Queue,
    /// Of resident blocks: hits, 3 at most.
    frequency: HashMap<u64, u8>,
    capacity: usize,
}

impl S3Fifo {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        let (small, main, ghosts) = Default::default();
        Self { small, main, ghosts, frequency: HashMap::new(), capacity }
    }

    fn small_target(&self) -> usize {
        (self.capacity / 10).max(1)
    }

    fn evict(&mut self) {
        while self.resident() >= self.capacity {
            if self.small.len() >= self.small_target() || self.main.is_empty() {
                self.evict_small();
            } else {
                self.evict_main();
            }
        }
    }

    fn evict_small(&mut self) {
        let Some(block) = self.small.pop() else { return };
        let Some(frequency) = self.frequency.get_mut(&block) else { return };
        if *frequency > 1 {
            *frequency = 0;
            self.main.push(block);
            return;
        }
        self.frequency.remove(&block);
        self.ghosts.push(block);
        self.ghosts.shorten(self.capacity - self.small_target());
    }

    fn evict_main(&mut self) {
        let Some(block) = self.main.pop() else { return };
        match self.frequency.get_mut(&block) {
            Some(frequency) if *frequency > 0 => {
                *frequency -= 1;
                self.main.push(block);
            }
            _ => _ = self.frequency.remove(&block),
        }
    }
}

impl Cache for S3Fifo {
    fn access(&mut self, block: u64) -> bool {
        if let Some(frequency) = self.frequency.get_mut(&block) {
            *frequency = (*frequency + 1).min(3);
            return true;
        }
        self.evict();
        if self.ghosts.remove(block) {
            self.main.push(block);
        } else {
            self.small.push(block);
        }
        self.frequency.insert(block, 0);
        false
    }

    fn resident(&self) -> usize {
        self.frequency.len()
    }
}

/// SIEVE (Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is simpler than LRU", NSDI 2024): a FIFO whose hand passes over visited
/// blocks where they stand and evicts the first that was not.
pub struct Sieve {
    /// From the oldest to the youngest, by turn of insertion: the block, and whether it was visited.
    by_turn: BTreeMap<u64, (u64, bool)>,
    turn_of: HashMap<u64, u64>,
    turns: u64,
    /// The turn at which the hand stands; past the youngest it begins again at the oldest.
    hand: u64,
    capacity: usize,
}

impl Sieve {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { by_turn: BTreeMap::new(), turn_of: HashMap::new(), turns: 0, hand: 0, capacity }
    }

    fn evict(&mut self) {
        loop {
            let Some((&turn, (block, visited))) = self.by_turn.range_mut(self.hand..).next() else {
                self.hand = 0;
                continue;
            };
            self.hand = turn + 1;
            if !std::mem::take(visited) {
                self.turn_of.remove(block);
                self.by_turn.remove(&turn);
                if turn == self.turns {
                    self.hand = 0; // it was the youngest: the block that comes now is not next
                }
                return;
            }
        }
    }
}

impl Cache for Sieve {
    fn access(&mut self, block: u64) -> bool {
        if let Some((_, visited)) = self.turn_of.get(&block).and_then(|turn| self.by_turn.get_mut(turn)) {
            *visited = true;
            return true;
        }
        if self.resident() == self.capacity {
            self.evict();
        }
        self.turns += 1;
        self.by_turn.insert(self.turns, (block, false));
        self.turn_of.insert(block, self.turns);
        false
    }

    fn resident(&self) -> usize {
        self.turn_of.len()
    }
}

/// ARC (Megiddo and Modha: "ARC: a self-tuning, low overhead replacement cache", FAST 2003): a list of what was asked for once
/// and one of what was asked for more often, and a ghost of each whose hits move the border between the two.
pub struct Arc {
    /// T1 and T2.
    lists: [Queue; 2],
    /// B1 and B2.
    ghosts: [Queue; 2],
    /// What T1 should have, in blocks.
    target: usize,
    capacity: usize,
}

impl Arc {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { lists: Default::default(), ghosts: Default::default(), target: 0, capacity }
    }

    /// The paper's REPLACE.
    fn replace(&mut self, in_second_ghost: bool) {
        let once = self.lists[0].len();
        let from = usize::from(!(once > 0 && (once > self.target || in_second_ghost && once == self.target)));
        self.lists[from].pop().into_iter().for_each(|block| self.ghosts[from].push(block));
    }

    /// Room for a block that neither cache nor ghosts know: the paper's case IV.
    fn make_room(&mut self) {
        let first = self.lists[0].len() + self.ghosts[0].len();
        let all = first + self.lists[1].len() + self.ghosts[1].len();
        if first == self.capacity {
            if self.lists[0].len() < self.capacity {
                self.ghosts[0].pop();
                self.replace(false);
            } else {
                self.lists[0].pop();
            }
        } else if all >= self.capacity {
            if all == 2 * self.capacity {
                self.ghosts[1].pop();
            }
            self.replace(false);
        }
    }
}

impl Cache for Arc {
    fn access(&mut self, block: u64) -> bool {
        if self.lists.iter_mut().any(|list| list.remove(block)) {
            self.lists[1].push(block);
            return true;
        }
        let (once, often) = (self.ghosts[0].len(), self.ghosts[1].len());
        if self.ghosts[0].contains(block) {
            self.target = (self.target + (often / once).max(1)).min(self.capacity);
            self.replace(false);
            self.ghosts[0].remove(block);
            self.lists[1].push(block);
        } else if self.ghosts[1].contains(block) {
            self.target = self.target.saturating_sub((once / often).max(1));
            self.replace(true);
            self.ghosts[1].remove(block);
            self.lists[1].push(block);
        } else {
            self.make_room();
            self.lists[0].push(block);
        }
        false
    }

    fn resident(&self) -> usize {
        self.lists[0].len() + self.lists[1].len()
    }
}

/// The optimum (Belady: "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966):
/// evicts what is asked for again last of all. It has to know the future, so no program can have it.
pub struct Belady<'a> {
    trace: &'a [u64],
    /// For each access of the trace, when the same block is asked for next.
    next_use: Vec<usize>,
    now: usize,
    /// When each resident block is asked for next.
    resident: BTreeSet<usize>,
    capacity: usize,
}

impl<'a> Belady<'a> {
    /// An empty cache of `capacity` blocks that will be asked for just this trace.
    pub fn new(trace: &'a [u64], capacity: usize) -> Self {
        let mut seen_at = HashMap::new();
        // What never comes again gets a time of its own beyond the end, so that times are unique.
        let next_use = |at: usize| seen_at.insert(trace[at], at).unwrap_or(trace.len() + at);
        let mut next_use: Vec<usize> = (0..trace.len()).rev().map(next_use).collect();
        next_use.reverse();
        Self { trace, next_use, now: 0, resident: BTreeSet::new(), capacity }
    }
}

impl Cache for Belady<'_> {
    /// # Panics
    /// When the block is not the next one of the trace.
    fn access(&mut self, block: u64) -> bool {
        assert_eq!(self.trace[self.now], block, "access {} is another in the trace", self.now);
        let hit = self.resident.remove(&self.now);
        if self.resident.len() == self.capacity {
            self.resident.pop_last();
        }
        self.resident.insert(self.next_use[self.now]);
        self.now += 1;
        hit
    }

    fn resident(&self) -> usize {
        self.resident.len()
    }
}

#[cfg(test)]
mod tests;
