//! Traces that follow from a seed.

use mapwright_measure::pages::Random;

/// A kind of trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
    /// Few blocks often, most seldom, with this skew; neighbours in popularity are not neighbours in the file.
    Zipf(f64),
    /// The same blocks over and over, a tenth more than the cache holds.
    Loop,
    /// Zipf with skew 0.99, and between any two of its accesses a step of a scan through as many other blocks.
    ScanAndZipf,
    /// Scans of the whole file; each step also goes back to one of the 64 blocks before it.
    ScanWithReuse,
    /// Zipf with skew 0.99; eight times in a trace, all popular blocks are others.
    ShiftingHotSet,
}

impl Workload {
    /// All, in the order of the tables.
    pub const ALL: [Self; 7] = [
        Self::Zipf(0.6),
        Self::Zipf(0.8),
        Self::Zipf(0.99),
        Self::ScanAndZipf,
        Self::ShiftingHotSet,
        Self::Loop,
        Self::ScanWithReuse,
    ];

    /// The name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Zipf(skew) => format!("zipf {skew}"),
            Self::Loop => "loop".to_owned(),
            Self::ScanAndZipf => "scan + zipf".to_owned(),
            Self::ScanWithReuse => "scan with reuse".to_owned(),
            Self::ShiftingHotSet => "shifting hot set".to_owned(),
        }
    }

    /// `length` accesses to a file of `footprint` blocks through a cache of `capacity` blocks.
    pub fn trace(self, footprint: u64, capacity: u64, length: usize) -> Vec<u64> {
        let mut random = Random::new(1);
        match self {
            Self::Zipf(skew) => {
                let zipf = Zipf::new(footprint, skew);
                (0..length).map(|_| scatter(zipf.rank(&mut random), footprint)).collect()
            }
            Self::Loop => (0..length as u64).map(|at| at % (capacity * 11 / 10).max(capacity + 1)).collect(),
            Self::ScanAndZipf => {
                let hot = footprint / 2;
                let zipf = Zipf::new(hot, 0.99);
                let access = |at: u64, random: &mut Random| match at % 2 {
                    0 => scatter(zipf.rank(random), hot),
                    _ => hot + at / 2 % hot,
                };
                (0..length as u64).map(|at| access(at, &mut random)).collect()
            }
            Self::ScanWithReuse => {
                let back =
                    |at: u64, random: &mut Random| (at / 2 - random.below(64.min(at / 2 + 1))) % footprint;
                let access = |at: u64, random: &mut Random| match at % 2 {
                    0 => at / 2 % footprint,
                    _ => back(at, random),
                };
                (0..length as u64).map(|at| access(at, &mut random)).collect()
            }
            Self::ShiftingHotSet => {
                let zipf = Zipf::new(footprint, 0.99);
                let shift = |at: usize| (at * 8 / length) as u64 * (footprint * 3 / 10);
                let access =
                    |at, random: &mut Random| scatter((zipf.rank(random) + shift(at)) % footprint, footprint);
                (0..length).map(|at| access(at, &mut random)).collect()
            }
        }
    }
}

/// Zipf-distributed ranks, by a table of sums.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(ranks: u64, skew: f64) -> Self {
        let weights = (1..=ranks).map(|rank| (rank as f64).powf(-skew));
        Self(
            weights
                .scan(0.0, |sum, weight| {
                    *sum += weight;
                    Some(*sum)
                })
                .collect(),
        )
    }

    /// A rank, from 0.
    fn rank(&self, random: &mut Random) -> u64 {
        let total = self.0.last().copied().unwrap_or_default();
        let at = random.unit() * total;
        self.0.partition_point(|sum| *sum <= at) as u64
    }
}

/// Where a rank lies in the file: a permutation, as an odd factor has no divisor in common with a power of two.
///
/// # Panics
/// When `footprint` is no power of two.
fn scatter(rank: u64, footprint: u64) -> u64 {
    assert!(footprint.is_power_of_two(), "a footprint of {footprint} blocks");
    rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % footprint
}
