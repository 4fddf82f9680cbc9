//! Counters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const STRIPES: usize = 16;
/// Buckets of the latency histogram: bucket `i` counts faults of 2^i to 2^(i+1) nanoseconds.
pub const BUCKETS: usize = 40;

/// A counter that threads add to without sharing a cache line.
#[derive(Debug, Default)]
pub struct Counter([Stripe; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(AtomicU64);

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
    // A thread that is ending has no locals any more: any stripe will do.
    MINE.try_with(|mine| *mine).unwrap_or(0)
}

impl Counter {
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0[stripe()].0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum.
    pub fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.load(Ordering::Relaxed)).sum()
    }
}

/// All counters of a pager.
#[derive(Debug)]
#[allow(missing_docs)] // each is documented at its namesake in `Stats`
pub struct Counters {
    pub faults: Counter,
    pub hits: Counter,
    pub fills: Counter,
    pub filled_bytes: Counter,
    pub read_ahead_bytes: Counter,
    pub evictions: Counter,
    pub refaults: Counter,
    pub collapses: Counter,
    pub write_backs: Counter,
    pub written_back_bytes: Counter,
    pub retries: Counter,
    pub failed_fills: Counter,
    pub fills_in_flight: AtomicU64,
    pub max_fills_in_flight: AtomicU64,
    pub fault_latency: [AtomicU64; BUCKETS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            faults: Counter::default(),
            hits: Counter::default(),
            fills: Counter::default(),
            filled_bytes: Counter::default(),
            read_ahead_bytes: Counter::default(),
            evictions: Counter::default(),
            refaults: Counter::default(),
            collapses: Counter::default(),
            write_backs: Counter::default(),
            written_back_bytes: Counter::default(),
            retries: Counter::default(),
            failed_fills: Counter::default(),
            fills_in_flight: 0.into(),
            max_fills_in_flight: 0.into(),
            fault_latency: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Counters {
    /// Notes a served fault and how long it took.
    pub fn fault_served(&self, took: Duration) {
        self.faults.add(1);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let bucket = (nanos.ilog2() as usize).min(BUCKETS - 1);
        self.fault_latency[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the start of `blocks` fills.
    pub fn fills_started(&self, blocks: u64) {
        let now = self.fills_in_flight.fetch_add(blocks, Ordering::Relaxed) + blocks;
        self.max_fills_in_flight.fetch_max(now, Ordering::Relaxed);
    }

    /// Notes the end of `blocks` fills.
    pub fn fills_ended(&self, blocks: u64) {
        self.fills_in_flight.fetch_sub(blocks, Ordering::Relaxed);
    }
}

/// What a pager did since it was built, and what it holds now: a snapshot. Counters only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Touches of slices that found no page: served by the pager's thread or in the faulting thread.
    pub faults: u64,
    /// Blocks that explicit access found resident and mapped.
    pub hits: u64,
    /// Blocks read from stores, read-ahead included.
    pub fills: u64,
    /// Bytes read from stores.
    pub filled_bytes: u64,
    /// Bytes of `filled_bytes` that were read ahead.
    pub read_ahead_bytes: u64,
    /// Fills that failed.
    pub failed_fills: u64,
    /// Store calls that were tried again after a transient error.
    pub retries: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// Fills of blocks that had been evicted a short time before.
    pub refaults: u64,
    /// Runs of 2 MiB, filled piece by piece, that were put on a huge page.
    pub collapses: u64,
    /// Runs of pages written to stores.
    pub write_backs: u64,
    /// Bytes written to stores.
    pub written_back_bytes: u64,
    /// Blocks being filled now.
    pub queue_depth: u64,
    /// The most blocks that were being filled at one time.
    pub max_queue_depth: u64,
    /// Faults by the time they took: entry `i` counts those of 2^i to 2^(i+1) nanoseconds.
    pub fault_latency: [u64; BUCKETS],
    /// Bytes of frames and metadata in use now.
    pub used_bytes: u64,
    /// The budget in bytes.
    pub budget_bytes: u64,
}

impl Stats {
    /// The time within which the fraction `quantile` (0.0 to 1.0) of faults was served: the upper end of the histogram's
    /// bucket, so at most twice the true value. `None` if there was no fault.
    pub fn fault_latency_quantile(&self, quantile: f64) -> Option<Duration> {
        let total: u64 = self.fault_latency.iter().sum();
        let rank = (quantile.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.fault_latency.iter().enumerate() {
            seen += count;
            if total > 0 && seen >= rank {
                return Some(Duration::from_nanos(2 << bucket));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|_| counter.add(2)));
            }
        });
        assert_eq!(counter.get(), 40_000);
    }
}
