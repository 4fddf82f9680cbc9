//! Latencies in buckets that are a 32nd of a power of two wide: at most 3 % off, 16 KiB whatever the number of operations.

use std::time::Duration;

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) * SUB as usize;

/// Counts of latencies.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    /// An empty histogram. Its memory is touched here, so that it is not charged to what is measured later.
    fn default() -> Self {
        let mut counts = vec![1; BUCKETS];
        counts.fill(0);
        Self { counts, total: 0 }
    }
}

impl Histogram {
    /// Counts `operations` operations that each took `latency`.
    pub fn record(&mut self, latency: Duration, operations: u64) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += operations;
        self.total += operations;
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.total += other.total;
    }

    /// The latency in microseconds that `fraction` of the operations do not exceed; 0 when nothing was recorded.
    pub fn quantile_us(&self, fraction: f64) -> f64 {
        let rank = ((self.total as f64 * fraction).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(index) / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let exponent = 63 - nanos.leading_zeros();
    let sub = (nanos >> (exponent - SUB_BITS)) - SUB;
    ((u64::from(exponent - SUB_BITS) + 1) * SUB + sub) as usize
}

fn middle(index: usize) -> f64 {
    let index = index as u64;
    if index < SUB {
        return index as f64;
    }
    let shift = index / SUB - 1;
    let low = (SUB + index % SUB) << shift;
    low as f64 + ((1u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_close() {
        let mut last = 0;
        for nanos in (0..100_000).chain([1 << 40, u64::MAX / 2, u64::MAX]) {
            let index = bucket(nanos);
            assert!(index >= last && index < BUCKETS, "{nanos}");
            last = index;
            assert!((middle(index) - nanos as f64).abs() <= nanos as f64 / 32.0 + 1.0, "{nanos}");
        }
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros), 1);
        }
        assert!((histogram.quantile_us(0.5) - 500.0).abs() < 20.0);
        assert!((histogram.quantile_us(0.99) - 990.0).abs() < 35.0);
        let mut both = Histogram::default();
        both.record(Duration::from_secs(1), 1000);
        both.merge(&histogram);
        assert!((both.quantile_us(0.99) - 1e6).abs() < 4e4);
    }

    #[test]
    fn empty_is_zero() {
        assert_eq!(Histogram::default().quantile_us(0.5), 0.0);
    }
}
