//! What to read before it is asked for.
use std::ops::Range;

/// What is known of the access pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Advice {
    /// Nothing: it is found out.
    #[default]
    Normal,
    /// From front to back.
    Sequential,
    /// No order.
    Random,
}

/// What to read now.
pub struct Plan {
    /// Runs of blocks.
    pub blocks: Vec<Range<u64>>,
    /// The block to leave unmapped.
    pub trigger: Option<u64>,
}

/// The detector.
pub struct ReadAhead;

impl ReadAhead {
    /// New.
    pub fn new(_max_window: u64) -> Self {
        Self
    }
    /// Advice.
    pub fn advise(&mut self, _advice: Advice) {}
    /// A miss.
    pub fn touched(&mut self, _block: u64, _file_blocks: u64) -> Option<Plan> {
        None
    }
}
