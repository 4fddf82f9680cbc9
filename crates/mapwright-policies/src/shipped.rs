//! mapwright's own policy, driven as `engine/evict.rs` drives it.
//!
//! What is modelled: blocks are mapped when they are filled; a touch of a mapped block is seen by explicit access only;
//! room is made in batches of 1/32 of the cache, 256 blocks at most; a victim's region of 2 MiB is unmapped whole if it was
//! not for as long as it takes to evict half of the cache. What is not: pins, dirty blocks, threads, and the evictor that
//! works ahead in the background. A block is a page.

use std::collections::HashMap;

use mapwright::engine::policy::{Key, Policy, Seen, Victim};

use crate::Cache;

/// How the program reaches the blocks, and so which hits the pager sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By `get` and its like: all hits are seen.
    Explicit,
    /// By slices: a hit is seen where the block was unmapped. Shared frames: regions are unmapped whole.
    Slices,
    /// By slices of moved frames, which files that are only read have: victims are unmapped, and only where that pays.
    MovedSlices,
}

/// A resident block.
struct Block {
    mapped: bool,
    touched: bool,
    /// Chosen for unmapping by the batch that is being put together.
    claimed: bool,
}

/// A cache of blocks with mapwright's eviction.
pub struct Shipped {
    policy: Policy,
    blocks: HashMap<Key, Block>,
    access: Access,
    capacity: usize,
    evicted: u64,
    /// When regions were last unmapped, in blocks evicted before.
    unmapped_at: HashMap<u64, u64>,
    soft_faults: u64,
}

const REGION_BLOCKS: u64 = 512;
const MAX_BATCH: usize = 256;

impl Shipped {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: usize, access: Access) -> Self {
        Self {
            policy: Policy::new(capacity),
            blocks: HashMap::new(),
            access,
            capacity,
            evicted: 0,
            unmapped_at: HashMap::new(),
            soft_faults: 0,
        }
    }

    /// Whether a block is resident.
    pub fn contains(&self, block: u64) -> bool {
        self.blocks.contains_key(&Key(block))
    }

    /// Fills a block that nobody has asked for yet, mapped or, as the trigger of the next read-ahead, not.
    pub fn fill_ahead(&mut self, block: u64, mapped: bool) {
        self.make_room();
        self.blocks.insert(Key(block), Block { mapped, touched: false, claimed: false });
        self.policy.insert_once(Key(block));
    }

    /// Touches of resident blocks that had to be mapped again.
    pub fn soft_faults(&self) -> u64 {
        self.soft_faults
    }

    /// `evict::make_room`, until there is room for a block.
    fn make_room(&mut self) {
        let wanted = (self.capacity / 32).clamp(1, MAX_BATCH);
        while self.blocks.len() >= self.capacity {
            let mut unmap = Vec::new();
            let enough = self.blocks.len() - wanted;
            for _ in 0..4 * wanted {
                let blocks = &mut self.blocks;
                let moved = self.access == Access::MovedSlices;
                match self.policy.next_victim(&mut |key| look(blocks, key, moved)) {
                    Some(Victim::Unmap(key)) => {
                        blocks.entry(key).and_modify(|block| block.claimed = true);
                        unmap.push(key);
                    }
                    Some(Victim::Evict(key)) => _ = blocks.remove(&key),
                    None => break,
                }
                if blocks.len() <= enough {
                    break;
                }
            }
            unmap.into_iter().for_each(|key| self.unmap(key));
            self.evicted += wanted.saturating_sub(self.blocks.len() - enough) as u64;
        }
    }

    /// `evict::unmap_stage` of one victim.
    fn unmap(&mut self, victim: Key) {
        let region = victim.0 / REGION_BLOCKS;
        let due = |at: &u64| self.evicted - at >= self.capacity as u64 / 2;
        let mut keys = victim.0..victim.0 + 1;
        if self.access != Access::MovedSlices && self.unmapped_at.get(&region).is_none_or(due) {
            self.unmapped_at.insert(region, self.evicted);
            keys = region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS;
        }
        for key in keys.chain([victim.0]) {
            self.blocks.entry(Key(key)).and_modify(|block| block.mapped = false);
        }
        self.blocks.entry(victim).and_modify(|block| block.claimed = false);
    }
}

/// `evict::look`.
fn look(blocks: &mut HashMap<Key, Block>, key: Key, moved: bool) -> Seen {
    let Some(block) = blocks.get_mut(&key) else { return Seen::Gone };
    if block.claimed {
        return Seen::Busy;
    }
    match (std::mem::take(&mut block.touched), block.mapped) {
        (true, _) => Seen::Touched,
        (false, true) if moved => Seen::IdleClean,
        (false, true) => Seen::Idle,
        (false, false) => Seen::IdleUnmapped,
    }
}

impl Cache for Shipped {
    fn access(&mut self, block: u64) -> bool {
        if let Some(block) = self.blocks.get_mut(&Key(block)) {
            block.touched |= self.access == Access::Explicit || !block.mapped;
            self.soft_faults += u64::from(!block.mapped);
            block.mapped = true;
            return true;
        }
        self.make_room();
        self.blocks.insert(Key(block), Block { mapped: true, touched: false, claimed: false });
        self.policy.insert(Key(block));
        false
    }

    fn resident(&self) -> usize {
        self.blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_seen_where_they_were_unmapped_and_explicit_access_everywhere() {
        for (access, seen) in
            [(Access::Explicit, true), (Access::Slices, false), (Access::MovedSlices, false)]
        {
            let mut cache = Shipped::new(8, access);
            assert!(!cache.access(1));
            assert!(cache.access(1));
            assert_eq!(cache.blocks[&Key(1)].touched, seen, "{access:?}");
            cache.unmap(Key(1));
            cache.blocks.get_mut(&Key(1)).unwrap().touched = false;
            assert!(cache.access(1));
            assert!(cache.blocks[&Key(1)].touched, "{access:?}");
            assert_eq!(cache.soft_faults(), 1);
        }
    }

    #[test]
    fn a_region_is_unmapped_whole_and_then_not_for_half_a_cache() {
        let mut cache = Shipped::new(8, Access::Slices);
        [1, 2, 3, 600].iter().for_each(|block| _ = cache.access(*block));
        cache.unmap(Key(1));
        let mapped = |cache: &Shipped, block| cache.blocks[&Key(block)].mapped;
        assert!(!mapped(&cache, 2) && mapped(&cache, 600));
        cache.access(2);
        cache.unmap(Key(3));
        assert!(mapped(&cache, 2), "nothing was evicted in between");
        cache.evicted += 4;
        cache.unmap(Key(3));
        assert!(!mapped(&cache, 2));
    }
}
