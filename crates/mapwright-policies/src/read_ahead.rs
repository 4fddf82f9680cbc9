//! Read-ahead in front of a cache: which misses it spares, and what it reads for nothing.
//!
//! Reads take no time here: what is planned at one access is there at the next. So the numbers tell what was foreseen, not
//! whether it came in time; windows are large for the sake of time and cost precision at the end of a stream.

use std::collections::HashSet;
use std::ops::Range;

use mapwright::engine::read_ahead::ReadAhead;
use mapwright_measure::pages::Random;

use crate::Cache;
use crate::shipped::Shipped;

/// Who reads ahead, with the largest window in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Nobody.
    None,
    /// The kernel's way: [`Ondemand`].
    Kernel(u64),
    /// mapwright's own, whose streams share a window: it is told of misses and touched triggers only.
    Shipped(u64),
    /// The same with a window for each stream.
    Unshared(u64),
}

/// What became of a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Accesses.
    pub accesses: u64,
    /// Accesses that found nothing.
    pub misses: u64,
    /// Blocks read before they were asked for.
    pub ahead: u64,
    /// Those of `ahead` that were then asked for before they were evicted.
    pub useful: u64,
}

impl Outcome {
    /// The fraction of the blocks read ahead that was worth it; 1 where there is none.
    pub fn precision(&self) -> f64 {
        if self.ahead == 0 { 1.0 } else { self.useful as f64 / self.ahead as f64 }
    }

    /// The fraction of the misses that it spared, of those that `none`, the same without read-ahead, has.
    pub fn coverage(&self, none: &Outcome) -> f64 {
        1.0 - self.misses as f64 / none.misses.max(1) as f64
    }
}

/// Replays a trace of a file of `file_blocks`.
pub fn replay(trace: &[u64], file_blocks: u64, reader: Reader, cache: &mut Shipped) -> Outcome {
    let mut outcome = Outcome::default();
    let mut ondemand = Ondemand::new(if let Reader::Kernel(window) = reader { window } else { 1 });
    let mut shipped = match reader {
        Reader::Shipped(window) => ReadAhead::new(window).within(window),
        Reader::Unshared(window) => ReadAhead::new(window),
        _ => ReadAhead::new(1),
    };
    // Blocks read ahead and not asked for yet, and those of them that say when to go on.
    let (mut unasked, mut marks) = (HashSet::new(), HashSet::new());
    for &block in trace {
        let hit = cache.contains(block);
        let marked = marks.remove(&block) && hit;
        outcome.accesses += 1;
        outcome.misses += u64::from(!hit);
        outcome.useful += u64::from(unasked.remove(&block) && hit);
        let (plan, mark) = match reader {
            Reader::None => (Vec::new(), None),
            Reader::Kernel(_) => {
                let plan = ondemand.accessed(block, hit, marked, |block| cache.contains(block));
                plan.map_or((Vec::new(), None), |(blocks, mark)| (vec![blocks], Some(mark)))
            }
            Reader::Shipped(_) | Reader::Unshared(_) if hit && !marked => (Vec::new(), None),
            Reader::Shipped(_) | Reader::Unshared(_) => {
                let plan = shipped.touched(block, file_blocks);
                plan.map_or((Vec::new(), None), |plan| (plan.blocks, plan.trigger))
            }
        };
        cache.access(block);
        for ahead in plan.into_iter().flatten().filter(|ahead| *ahead < file_blocks) {
            if !cache.contains(ahead) {
                cache.fill_ahead(ahead, mark != Some(ahead));
                unasked.insert(ahead);
                outcome.ahead += 1;
                if mark == Some(ahead) {
                    marks.insert(ahead);
                }
            }
        }
    }
    outcome
}

/// On-demand read-ahead as Linux has it (Wu, Xi, Xu: "On the design of a new Linux readahead framework", ACM SIGOPS Operating
/// Systems Review 42(5), 2008; the rules and sizes are those of mm/readahead.c in 6.6), for reads of one block. It sees every
/// access, and may ask the page cache for the traces of a stream that it has forgotten.
pub struct Ondemand {
    window_max: u64,
    start: u64,
    size: u64,
    async_size: u64,
    previous: Option<u64>,
}

impl Ondemand {
    /// Of a file just opened.
    pub fn new(window_max: u64) -> Self {
        Self { window_max, start: 0, size: 0, async_size: 0, previous: None }
    }

    /// A block is read: it is `resident` or not, and `marked` if the last plan said so. What to read, and what to mark in it.
    pub fn accessed(
        &mut self,
        block: u64,
        resident: bool,
        marked: bool,
        is_cached: impl Fn(u64) -> bool,
    ) -> Option<(Range<u64>, u64)> {
        let previous = self.previous.replace(block);
        if resident && !marked {
            return None;
        }
        let is_next = previous.is_some_and(|previous| block == previous || block == previous + 1);
        if marked && block == self.start + self.size - self.async_size {
            self.start += self.size;
            self.grow(self.size);
        } else if marked {
            // Another stream's mark: its window begins where what is cached ends.
            let mut ahead = (block + 1..=block + self.window_max).skip_while(|block| is_cached(*block));
            self.start = ahead.next()?;
            self.grow(self.start - block + 1);
        } else if block == 0 || is_next {
            self.start = block;
            self.size = first_window(self.window_max);
            self.async_size = if self.size > 1 { self.size - 1 } else { 1 };
        } else {
            let behind =
                (1..=self.window_max.min(block)).take_while(|back| is_cached(block - back)).count() as u64;
            if behind <= 1 {
                return None;
            }
            let history = if behind >= block { behind * 2 } else { behind };
            (self.start, self.size, self.async_size) = (block, (history + 1).min(self.window_max), 1);
        }
        if block == self.start && self.size == self.async_size {
            // The mark would be this very block: the next window is read at once.
            self.async_size = next_window(self.size, self.window_max);
            self.size = (self.size + self.async_size).min(self.window_max);
            self.async_size = self.async_size.min(self.size / 2).max(1);
        }
        let end = self.start + self.size;
        Some((self.start..end, end - self.async_size))
    }

    fn grow(&mut self, from: u64) {
        self.size = next_window(from, self.window_max);
        self.async_size = self.size;
    }
}

fn first_window(max: u64) -> u64 {
    match max {
        32.. => 4,
        4.. => 2,
        _ => max,
    }
}

fn next_window(size: u64, max: u64) -> u64 {
    if size < max / 16 { size * 4 } else { (size * 2).min(max) }
}

/// A way to go through a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// From the start on.
    Sequential,
    /// From the end back.
    Reverse,
    /// Every so-many-th block.
    Strided(u64),
    /// All blocks alike.
    Random,
    /// 16 blocks on from a random one, again and again.
    Runs,
    /// So many sequential ones by turns.
    Interleaved(u64),
    /// Sequential, reverse and two strided ones by turns.
    Mixed,
    /// A sequential one; after each of its accesses three random ones.
    AmongRandom,
    /// Sequential, by threads that are up to three blocks apart.
    OutOfOrder,
}

impl Stream {
    /// All, in the order of the table.
    pub const ALL: [Self; 11] = [
        Self::Sequential,
        Self::OutOfOrder,
        Self::Reverse,
        Self::Strided(5),
        Self::Strided(100),
        Self::Interleaved(4),
        Self::Interleaved(16),
        Self::Mixed,
        Self::AmongRandom,
        Self::Runs,
        Self::Random,
    ];

    /// Blocks of the file.
    pub const FILE: u64 = 1 << 22;
    /// Accesses of a trace.
    pub const LENGTH: u64 = 32_000;

    /// The name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Sequential => "sequential".to_owned(),
            Self::Reverse => "reverse".to_owned(),
            Self::Strided(stride) => format!("every {stride}th block"),
            Self::Random => "random".to_owned(),
            Self::Runs => "runs of 16 at random".to_owned(),
            Self::Interleaved(count) => format!("{count} sequential by turns"),
            Self::Mixed => "sequential, reverse, 2 strided by turns".to_owned(),
            Self::AmongRandom => "sequential among random (1 in 4)".to_owned(),
            Self::OutOfOrder => "sequential, out of order by threads".to_owned(),
        }
    }

    /// The blocks in the order in which they are asked for.
    pub fn trace(self) -> Vec<u64> {
        let mut random = Random::new(1);
        let quarter = Self::FILE / 4;
        let mut begin = 0;
        let mut access = |at: u64| match self {
            Self::Sequential | Self::OutOfOrder => 1000 + at,
            Self::Reverse => Self::FILE - 1 - at,
            Self::Strided(stride) => 1000 + at * stride,
            Self::Random => random.below(Self::FILE),
            Self::Runs => {
                begin = if at.is_multiple_of(16) { random.below(Self::FILE - 16) } else { begin };
                begin + at % 16
            }
            Self::Interleaved(count) => at % count * (Self::FILE / count) + 1000 + at / count,
            Self::Mixed => match at % 4 {
                0 => 1000 + at / 4,
                1 => 2 * quarter - at / 4,
                2 => 2 * quarter + at / 4 * 7,
                _ => 4 * quarter - 1 - at / 4 * 30,
            },
            Self::AmongRandom if at.is_multiple_of(4) => 1000 + at / 4,
            Self::AmongRandom => quarter + random.below(3 * quarter),
        };
        let mut trace: Vec<u64> = (0..Self::LENGTH).map(&mut access).collect();
        if self == Self::OutOfOrder {
            (0..trace.len() - 3).for_each(|at| trace.swap(at, at + random.below(4) as usize));
        }
        trace
    }
}

/// `streams` sequential streams by turns, and after each of their accesses one to a hot set as large as the cache (zipf,
/// skew 0.99), which lies behind them in the file. Marks which accesses are the streams'.
pub fn streams_and_hot_set(streams: u64, capacity: u64, length: u64) -> (Vec<u64>, u64) {
    let hot = crate::workloads::Workload::Zipf(0.99).trace(capacity, capacity, length as usize);
    let share = length; // blocks of the file for each stream: more than it reads
    let behind = streams * share;
    let accesses =
        (0..length).zip(hot).flat_map(|(at, hot)| [at % streams * share + at / streams, behind + hot]);
    (accesses.collect(), behind + capacity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shipped::Access;

    fn run(trace: &[u64], reader: Reader) -> Outcome {
        replay(trace, Stream::FILE, reader, &mut Shipped::new(1 << 20, Access::Slices))
    }

    #[test]
    fn the_kernels_windows_are_those_of_readahead_c() {
        // 128 KiB, from the start of a file: 4 blocks, 8, 16, 32, 32, each announced by a mark at its beginning.
        let mut ondemand = Ondemand::new(32);
        let mut reader = |block, marked| ondemand.accessed(block, marked, marked, |other| other < block);
        assert_eq!(reader(0, false), Some((0..4, 1)));
        assert_eq!(reader(1, true), Some((4..12, 4)));
        assert_eq!(reader(4, true), Some((12..28, 12)));
        assert_eq!(reader(12, true), Some((28..60, 28)));
        assert_eq!(reader(28, true), Some((60..92, 60)));
        assert_eq!(ondemand.accessed(5000, false, false, |_| false), None, "a lone miss reads itself");
        assert_eq!(ondemand.accessed(5001, false, false, |_| false), Some((5001..5005, 5002)));
    }

    #[test]
    fn the_kernel_finds_a_forgotten_stream_by_what_it_left_in_the_cache() {
        let mut ondemand = Ondemand::new(32);
        let cached = |block| (100..110).contains(&block);
        assert_eq!(ondemand.accessed(110, false, false, cached), Some((110..121, 120)));
        // A mark of a stream that is not the one of the window: what is cached behind it counts as its last window.
        assert_eq!(ondemand.accessed(104, true, true, cached), Some((110..124, 110)));
    }

    #[test]
    fn without_read_ahead_everything_new_is_missed() {
        let none = run(&Stream::Interleaved(4).trace(), Reader::None);
        assert_eq!(none, Outcome { accesses: Stream::LENGTH, misses: Stream::LENGTH, ahead: 0, useful: 0 });
        assert_eq!((none.precision(), none.coverage(&none)), (1.0, 0.0));
    }

    #[test]
    fn sequential_reading_is_foreseen_by_both() {
        for reader in [Reader::Kernel(32), Reader::Shipped(32)] {
            let outcome = run(&Stream::Sequential.trace(), reader);
            assert!(outcome.misses <= 2, "{reader:?}: {outcome:?}");
            assert!(outcome.ahead - outcome.useful <= 64, "{reader:?}: {outcome:?}");
        }
    }

    #[test]
    fn what_is_evicted_before_use_is_not_useful() {
        // A window larger than the cache.
        let mut cache = Shipped::new(16, Access::Slices);
        let trace: Vec<u64> = (0..2000).collect();
        let outcome = replay(&trace, 1 << 20, Reader::Shipped(256), &mut cache);
        assert!(outcome.precision() < 0.5, "{outcome:?}");
    }

    #[test]
    fn streams_and_hot_set_take_turns() {
        let (trace, file_blocks) = streams_and_hot_set(2, 64, 4);
        assert_eq!(file_blocks, 8 + 64);
        assert_eq!([trace[0], trace[2], trace[4], trace[6]], [0, 4, 1, 5]);
        assert!([1, 3, 5, 7].iter().all(|&at| (8..8 + 64).contains(&trace[at])));
    }
}
