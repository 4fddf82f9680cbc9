//! Which blocks stay in memory, and which are read before they are asked for: mapwright's own rules and the textbook's, as
//! functions of a trace. `cargo xtask policies` prints the tables that `docs/policies.md` has.
//!
//! Nothing here does I/O or measures time. A trace is a list of blocks in the order in which they are asked for, from
//! [`workloads`] or recorded from a program
//! ([`mapwright::engine::record`]); hit ratios follow from it alone.

#![forbid(unsafe_code)]

mod queue;
pub mod read_ahead;
pub mod shipped;
pub mod textbook;
pub mod workloads;

use shipped::{Access, Shipped};
use textbook::{Arc, Belady, Clock, Lru, S3Fifo, Sieve, TwoQ};

/// A cache of a fixed number of blocks.
pub trait Cache {
    /// Asks for a block: whether it was resident. It is afterwards.
    fn access(&mut self, block: u64) -> bool;

    /// Blocks that are resident, at most the capacity.
    fn resident(&self) -> usize;
}

/// The policies of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// [`Belady`]
    Optimum,
    /// [`Shipped`] with [`Access::Explicit`]
    ShippedExplicit,
    /// [`Shipped`] with [`Access::Slices`]
    ShippedSlices,
    /// [`Shipped`] with [`Access::MovedSlices`]
    ShippedMoved,
    /// [`S3Fifo`]
    S3Fifo,
    /// [`Sieve`]
    Sieve,
    /// [`Arc`]
    Arc,
    /// [`TwoQ`]
    TwoQ,
    /// [`Clock`]
    Clock,
    /// [`Lru`]
    Lru,
}

impl Policy {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Optimum,
        Self::ShippedExplicit,
        Self::ShippedSlices,
        Self::ShippedMoved,
        Self::S3Fifo,
        Self::Sieve,
        Self::Arc,
        Self::TwoQ,
        Self::Clock,
        Self::Lru,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Optimum => "optimum (Belady)",
            Self::ShippedExplicit => "shipped, explicit",
            Self::ShippedSlices => "shipped, slices",
            Self::ShippedMoved => "shipped, slices, moved",
            Self::S3Fifo => "S3-FIFO",
            Self::Sieve => "SIEVE",
            Self::Arc => "ARC",
            Self::TwoQ => "2Q",
            Self::Clock => "CLOCK",
            Self::Lru => "LRU",
        }
    }

    /// Whether a program can have it: it need not know the future.
    pub fn is_realizable(self) -> bool {
        self != Self::Optimum
    }

    /// Whether it is the one that the pager uses.
    pub fn is_shipped(self) -> bool {
        matches!(self, Self::ShippedExplicit | Self::ShippedSlices | Self::ShippedMoved)
    }

    /// An empty cache for this trace.
    pub fn cache(self, trace: &[u64], capacity: usize) -> Box<dyn Cache + '_> {
        match self {
            Self::Optimum => Box::new(Belady::new(trace, capacity)),
            Self::ShippedExplicit => Box::new(Shipped::new(capacity, Access::Explicit)),
            Self::ShippedSlices => Box::new(Shipped::new(capacity, Access::Slices)),
            Self::ShippedMoved => Box::new(Shipped::new(capacity, Access::MovedSlices)),
            Self::S3Fifo => Box::new(S3Fifo::new(capacity)),
            Self::Sieve => Box::new(Sieve::new(capacity)),
            Self::Arc => Box::new(Arc::new(capacity)),
            Self::TwoQ => Box::new(TwoQ::new(capacity)),
            Self::Clock => Box::new(Clock::new(capacity)),
            Self::Lru => Box::new(Lru::new(capacity)),
        }
    }

    /// The fraction of a trace that finds its block resident, beginning with an empty cache.
    pub fn hit_ratio(self, trace: &[u64], capacity: usize) -> f64 {
        let mut cache = self.cache(trace, capacity);
        let hits = trace.iter().filter(|block| cache.access(**block)).count();
        hits as f64 / trace.len().max(1) as f64
    }
}
