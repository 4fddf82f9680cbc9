//! Counters: of a pager, striped, and of each of its files, which are added to by whoever works on that file.
//!
//! How long faults took is counted by file alone: a pager's histogram is the sum of those of its files, and of what files had when they were
//! closed. So a fault adds to no line that the faults of other files add to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::locks::lock;

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
    files: Mutex<Files>,
}

/// The counters of files that are open, by their addresses, and the histogram of those that were.
#[derive(Debug)]
struct Files {
    /// A tree: of a hash table nothing points to where its memory begins, so that leak checkers take it for lost in a pager that is never dropped.
    open: BTreeMap<usize, Arc<FileCounters>>,
    closed: [u64; BUCKETS],
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
            files: Mutex::new(Files { open: BTreeMap::new(), closed: [0; BUCKETS] }),
        }
    }
}

impl Counters {
    /// Counters for a file that is opened.
    pub fn file_opened(&self) -> Arc<FileCounters> {
        let counters = Arc::<FileCounters>::default();
        lock(&self.files).open.insert(Arc::as_ptr(&counters) as usize, Arc::clone(&counters));
        counters
    }

    /// Keeps what a file that is closed has counted.
    pub fn file_closed(&self, counters: &Arc<FileCounters>) {
        let mut files = lock(&self.files);
        // In one step, so that who asks meanwhile sees it once.
        if files.open.remove(&(Arc::as_ptr(counters) as usize)).is_some() {
            counters.faults.add_to(&mut files.closed);
        }
    }

    /// Faults by the time they took, of all files.
    pub fn fault_latency(&self) -> [u64; BUCKETS] {
        let files = lock(&self.files);
        let mut sum = files.closed;
        files.open.values().for_each(|counters| counters.faults.add_to(&mut sum));
        sum
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

/// Faults by the time they took, with their sum: the count and the sum of a bucket are in one line of the cache.
#[derive(Debug)]
pub struct Times {
    /// Faults, and nanoseconds together.
    buckets: [(AtomicU64, AtomicU64); BUCKETS],
    longest: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self { buckets: [const { (AtomicU64::new(0), AtomicU64::new(0)) }; BUCKETS], longest: 0.into() }
    }
}

impl Times {
    /// Notes a fault that took so long.
    pub fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let (count, sum) = &self.buckets[(nanos.ilog2() as usize).min(BUCKETS - 1)];
        count.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(nanos, Ordering::Relaxed);
        if nanos > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(nanos, Ordering::Relaxed);
        }
    }

    fn add_to(&self, histogram: &mut [u64; BUCKETS]) {
        for (sum, (count, _)) in histogram.iter_mut().zip(&self.buckets) {
            *sum += count.load(Ordering::Relaxed);
        }
    }

    /// What was counted until now.
    pub fn told(&self) -> FaultTimes {
        let mut told = FaultTimes {
            longest: Duration::from_nanos(self.longest.load(Ordering::Relaxed)),
            ..FaultTimes::default()
        };
        self.add_to(&mut told.histogram);
        let sum = self.buckets.iter().fold(0u64, |sum, (_, nanos)| {
            sum.saturating_add(nanos.load(Ordering::Relaxed)) // 584 years
        });
        told.total = Duration::from_nanos(sum);
        told
    }
}

/// The counters of one file.
#[derive(Debug, Default)]
#[allow(missing_docs)] // each is documented at its namesake in `FileStats`
#[repr(align(128))] // no two files share a line
pub struct FileCounters {
    pub faults: Times,
    pub fills: AtomicU64,
    pub filled_bytes: AtomicU64,
    pub read_ahead_bytes: AtomicU64,
    pub failed_fills: AtomicU64,
    pub evictions: AtomicU64,
    pub write_backs: AtomicU64,
    pub written_back_bytes: AtomicU64,
}

impl FileCounters {
    /// What was counted until now.
    pub fn told(&self) -> FileStats {
        let load = |atomic: &AtomicU64| atomic.load(Ordering::Relaxed);
        FileStats {
            faults: self.faults.told(),
            fills: load(&self.fills),
            filled_bytes: load(&self.filled_bytes),
            read_ahead_bytes: load(&self.read_ahead_bytes),
            failed_fills: load(&self.failed_fills),
            evictions: load(&self.evictions),
            write_backs: load(&self.write_backs),
            written_back_bytes: load(&self.written_back_bytes),
        }
    }
}

/// The counters of a file, for as long as there is one.
pub(crate) struct Counted {
    pub(crate) own: Arc<FileCounters>,
    engine: Arc<super::Engine>,
}

impl Counted {
    pub(crate) fn new(engine: Arc<super::Engine>) -> Self {
        Self { own: engine.counters.file_opened(), engine }
    }

    /// Notes a served fault and how long it took.
    pub(crate) fn fault_served(&self, took: Duration) {
        self.engine.counters.faults.add(1);
        self.own.faults.add(took);
    }

    /// Notes blocks that were read, and how many bytes they have together.
    pub(crate) fn filled(&self, blocks: u64, bytes: u64, ahead: bool) {
        let all = &self.engine.counters;
        all.fills.add(blocks);
        all.filled_bytes.add(bytes);
        self.own.fills.fetch_add(blocks, Ordering::Relaxed);
        self.own.filled_bytes.fetch_add(bytes, Ordering::Relaxed);
        if ahead {
            all.read_ahead_bytes.add(bytes);
            self.own.read_ahead_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Notes blocks that could not be read.
    pub(crate) fn not_filled(&self, blocks: u64) {
        self.engine.counters.failed_fills.add(blocks);
        self.own.failed_fills.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Notes blocks that were dropped to make room.
    pub(crate) fn evicted(&self, blocks: u64) {
        self.engine.counters.evictions.add(blocks);
        self.own.evictions.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Notes a run of pages that was written.
    pub(crate) fn written_back(&self, bytes: u64) {
        let all = &self.engine.counters;
        all.write_backs.add(1);
        all.written_back_bytes.add(bytes);
        self.own.write_backs.fetch_add(1, Ordering::Relaxed);
        self.own.written_back_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.engine.counters.file_closed(&self.own);
    }
}

/// How long faults took: a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultTimes {
    /// Faults by the time they took: entry `i` counts those of 2^i to 2^(i+1) nanoseconds.
    pub histogram: [u64; BUCKETS],
    /// All together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for FaultTimes {
    fn default() -> Self {
        Self { histogram: [0; BUCKETS], total: Duration::ZERO, longest: Duration::ZERO }
    }
}

impl FaultTimes {
    /// How many faults there were.
    pub fn count(&self) -> u64 {
        self.histogram.iter().sum()
    }

    /// The mean; `None` if there was no fault.
    pub fn mean(&self) -> Option<Duration> {
        let nanos = self.total.as_nanos().checked_div(self.count().into())?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// The time within which the fraction `quantile` (0.0 to 1.0) of faults was served: at most twice the true value, and not above the
    /// longest. `None` if there was no fault.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        quantile_of(&self.histogram, quantile).map(|upper| upper.min(self.longest))
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.histogram.iter_mut().zip(other.histogram).for_each(|(sum, more)| *sum += more);
        self.total = self.total.saturating_add(other.total);
        self.longest = self.longest.max(other.longest);
    }
}

/// What a pager did for one file since it was opened: a snapshot. All maps of a file share one as long as any of them is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStats {
    /// Touches of slices that found no page, and how long they took: as [`Stats::faults`].
    pub faults: FaultTimes,
    /// Blocks read from the store, read-ahead included.
    pub fills: u64,
    /// Bytes read from the store.
    pub filled_bytes: u64,
    /// Bytes of `filled_bytes` that were read ahead.
    pub read_ahead_bytes: u64,
    /// Fills that failed.
    pub failed_fills: u64,
    /// Blocks dropped to make room, for this file or for others.
    pub evictions: u64,
    /// Runs of pages written to the store.
    pub write_backs: u64,
    /// Bytes written to the store.
    pub written_back_bytes: u64,
}

impl FileStats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.faults.add(&other.faults);
        self.fills += other.fills;
        self.filled_bytes += other.filled_bytes;
        self.read_ahead_bytes += other.read_ahead_bytes;
        self.failed_fills += other.failed_fills;
        self.evictions += other.evictions;
        self.write_backs += other.write_backs;
        self.written_back_bytes += other.written_back_bytes;
    }
}

fn quantile_of(histogram: &[u64; BUCKETS], quantile: f64) -> Option<Duration> {
    let total: u64 = histogram.iter().sum();
    let rank = (quantile.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        seen += count;
        if total > 0 && seen >= rank {
            return Some(Duration::from_nanos(2 << bucket));
        }
    }
    None
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
        quantile_of(&self.fault_latency, quantile)
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

    #[test]
    fn a_pagers_histogram_is_that_of_its_files_open_or_closed() {
        let counters = Counters::default();
        let (first, second) = (counters.file_opened(), counters.file_opened());
        first.faults.add(Duration::from_nanos(1));
        first.faults.add(Duration::from_nanos(1000));
        second.faults.add(Duration::from_secs(1 << 20));
        let before = counters.fault_latency();
        assert_eq!((before[0], before[9], before[BUCKETS - 1]), (1, 1, 1));
        counters.file_closed(&first);
        counters.file_closed(&first);
        assert_eq!(counters.fault_latency(), before);
        counters.file_closed(&second);
        assert_eq!(counters.fault_latency(), before);
    }

    #[test]
    fn times_have_a_mean_quantiles_and_a_longest() {
        let times = Times::default();
        let none = times.told();
        assert_eq!((none.count(), none.mean(), none.quantile(0.5)), (0, None, None));
        (0..99).for_each(|_| times.add(Duration::from_nanos(1000)));
        times.add(Duration::from_micros(500));
        let told = times.told();
        assert_eq!((told.count(), told.total), (100, Duration::from_nanos(599_000)));
        assert_eq!(told.mean(), Some(Duration::from_nanos(5990)));
        let half = told.quantile(0.5).unwrap();
        assert!(half >= Duration::from_nanos(1000) && half <= Duration::from_nanos(2000), "{half:?}");
        // No more than there was, although the bucket's end is above it.
        assert_eq!((told.quantile(1.0), told.longest), (Some(told.longest), Duration::from_micros(500)));
        let mut sum = told.clone();
        sum.add(&told);
        assert_eq!((sum.count(), sum.mean(), sum.longest), (200, told.mean(), told.longest));
    }
}
