//! Blocks in the order in which they came: what all the textbook's lists are made of.

use std::collections::{BTreeMap, HashMap};

/// A queue from which a block can also be taken out of the middle. Holds each block at most once.
#[derive(Default)]
pub struct Queue {
    by_turn: BTreeMap<u64, u64>,
    turn_of: HashMap<u64, u64>,
    turns: u64,
}

impl Queue {
    /// Puts a block at the young end; it must not be there.
    pub fn push(&mut self, block: u64) {
        self.turns += 1;
        self.by_turn.insert(self.turns, block);
        let before = self.turn_of.insert(block, self.turns);
        debug_assert_eq!(before, None, "block {block} is queued twice");
    }

    /// Takes the oldest block.
    pub fn pop(&mut self) -> Option<u64> {
        let (_, block) = self.by_turn.pop_first()?;
        self.turn_of.remove(&block);
        Some(block)
    }

    /// Takes a block out, wherever it is; whether it was there.
    pub fn remove(&mut self, block: u64) -> bool {
        let turn = self.turn_of.remove(&block);
        turn.is_some_and(|turn| self.by_turn.remove(&turn).is_some())
    }

    /// Whether a block is there.
    pub fn contains(&self, block: u64) -> bool {
        self.turn_of.contains_key(&block)
    }

    /// Length in blocks.
    pub fn len(&self) -> usize {
        self.turn_of.len()
    }

    /// Whether no block is there.
    pub fn is_empty(&self) -> bool {
        self.turn_of.is_empty()
    }

    /// Takes the oldest blocks until `len` are left.
    pub fn shorten(&mut self, len: usize) {
        while self.len() > len {
            self.pop();
        }
    }
}
