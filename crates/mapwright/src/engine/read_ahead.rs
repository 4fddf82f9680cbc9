//! What to read before it is asked for.
//!
//! A pager sees little of how a file is read: misses, and the touch of a block that a plan left unmapped on purpose (its
//! *trigger*). From these it finds *streams*: sequential, reverse and strided ones, several interleaved. Each stream's plans
//! start small and double while it goes on, as in Linux's on-demand read-ahead (Wu, Xi, Xu: "On the design of a new Linux
//! readahead framework", ACM SIGOPS Operating Systems Review 42(5), 2008), whose mark page is our trigger. Unlike there,
//! nothing is read around a lone miss, unless it was learned to be asked for: that is what ruins random access; and the streams share what may be ahead at a time, since
//! what the cache has no room for is evicted before it is used.
//!
//! A touch is settled so:
//! 1. It belongs to a stream if it hits the trigger, lies among the blocks planned last, or up to `SLACK` steps past them
//!    (threads touch out of order). At the trigger, shortly behind it, or past the plan, the next blocks are planned; elsewhere
//!    the blocks are on their way, and there is nothing to do.
//! 2. Otherwise the last touches that belonged to no stream are searched for its predecessors. One is enough for a sequential
//!    stream, as this is so common; two for a reverse one; three, equally spaced, for a stride. Random touches rarely line
//!    up like that, and a stream that came about by chance is soon idle and then believed less.
//!
//! A third thing is learned from misses in a mapping that belong to no stream: how many blocks are asked for together (`clusters`).
//!
//! Left to the caller: what is resident or being read already, whether memory allows the plan, and the reading. No locks: the
//! caller keeps one `ReadAhead` an open file, under a lock of its own.

use std::ops::Range;

mod clusters;

use clusters::Clusters;
pub use clusters::Miss;

/// How the program says it will read a file or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Advice {
    /// Nothing is said: the pattern is detected.
    #[default]
    Normal,
    /// From lower to higher offsets: full read-ahead from the first touch on.
    Sequential,
    /// In no order: nothing is read before it is asked for, but for what turns out to be asked for together: records of several blocks, up to 64 KiB.
    Random,
}

/// What to read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Blocks in order of need, adjacent ones joined; all inside the file, none of them the touched one. A range of a reverse
    /// stream is needed from its end.
    pub blocks: Vec<Range<u64>>,
    /// The block of the plan to leave unmapped, so that its touch is noticed and the next plan made in time. None when there
    /// is nothing after this plan.
    pub trigger: Option<u64>,
}

/// Finds the patterns in the touches of one open file.
#[derive(Debug)]
pub struct ReadAhead {
    window_max: u64,
    /// Windows of this many blocks or more end where a multiple of it does, and so do the next plan's begin and trigger.
    region: u64,
    /// The most that the windows of all streams should have together, in blocks.
    ahead_max: u64,
    advice: Advice,
    /// Touches so far: the clock of `Stream::touched_at`.
    touches: u64,
    streams: Vec<Stream>,
    history: History,
    clusters: Clusters,
}

/// Streams followed at a time; then the one idle longest is given up. Some more than the 16 that must work, for those that
/// came about by chance.
const STREAMS: usize = 24;
/// First window of a stream, in blocks.
const WINDOW_FIRST: u64 = 4;
/// Keeps the time a plan takes to make below a millisecond.
const WINDOW_LIMIT: u64 = 1 << 16;
/// Blocks; what is farther apart is no stride.
const STRIDE_MAX: u64 = 4096;
/// Steps a touch may be off where a stream expects one.
const SLACK: i64 = 2;
/// Touches (of the file) after which a young stream counts as chance.
const YOUNG_IDLE: u64 = 64;
/// Touches after which a proven stream does. After `YOUNG_IDLE` only its very trigger counts.
const PROVEN_IDLE: u64 = 1024;
/// Plans that prove a stream.
const PLANS_PROVEN: u32 = 4;

impl ReadAhead {
    /// Read-ahead of about `max_window` blocks a plan at most; 0 counts as 1, and more than 2^16 as that.
    pub fn new(max_window: u64) -> Self {
        Self {
            window_max: max_window.clamp(1, WINDOW_LIMIT),
            region: 1,
            ahead_max: u64::MAX,
            advice: Advice::Normal,
            touches: 0,
            streams: Vec::new(),
            history: History::default(),
            clusters: Clusters::new(1),
        }
    }

    /// Lets so many blocks at most be read for a miss that belongs to no stream, where they turn out to be asked for together: a record.
    #[must_use]
    pub fn in_clusters_of(mut self, most: u64) -> Self {
        self.clusters = Clusters::new(most);
        self
    }

    /// Lets long sequential plans end at multiples of so many blocks, which then are read as one.
    #[must_use]
    pub fn in_regions_of(mut self, blocks: u64) -> Self {
        self.region = blocks.max(1);
        self
    }

    /// Lets the windows of all streams together have `ahead_max` blocks at most, but each one block. More than the cache keeps
    /// for newcomers would be evicted before it is used.
    #[must_use]
    pub fn within(mut self, ahead_max: u64) -> Self {
        self.ahead_max = ahead_max;
        self
    }

    /// Says how the file will be read from now on.
    pub fn advise(&mut self, advice: Advice) {
        if advice == Advice::Random {
            self.streams.clear();
            self.history = History::default();
        }
        self.advice = advice;
    }

    /// `block` was missed, by one who goes through a mapping; what kind of a miss that is. Of a lone one [`read`](Self::read) is told what is read. Comes
    /// before [`touched`](Self::touched), which need not be told of one that continues a probe.
    pub fn missed(&mut self, block: u64) -> Miss {
        let run = block..block + 1;
        if self.advice == Advice::Sequential
            || self.advice == Advice::Normal && self.stream_of(&run).is_some()
        {
            return Miss::Continues { probe: false };
        }
        self.clusters.missed(block)
    }

    /// For the miss that was the last one to be told all blocks up to `end` are read, as many as it was said to be worth.
    pub fn read(&mut self, end: u64) {
        self.clusters.read_to(end);
    }

    /// `block` of a file of `file_blocks` was missed, or was a trigger and was touched. Returns what to read now besides it.
    pub fn touched(&mut self, block: u64, file_blocks: u64) -> Option<Plan> {
        self.touched_run(block..block + 1, file_blocks)
    }

    /// As [`touched`](Self::touched), for blocks that are asked for together, one of which was missed or a trigger.
    pub fn touched_run(&mut self, run: Range<u64>, file_blocks: u64) -> Option<Plan> {
        if self.advice == Advice::Random || run.is_empty() || run.end > file_blocks {
            return None;
        }
        self.touches += 1;
        if let Some(index) = self.stream_of(&run) {
            return self.go_on(index, &run, file_blocks);
        }
        let block = run.end - 1;
        let found = match self.history.pattern_at(run.start) {
            Some(stride) if run.end - run.start > 1 && stride != 1 => None, // whole runs that are apart
            found => found,
        };
        self.history.push(block);
        let stride = match self.advice {
            Advice::Sequential => found.unwrap_or(1),
            _ => found?,
        };
        let index = self.start(block, stride, run.end - run.start);
        self.plan(index, &run, file_blocks)
    }

    /// The stream a touch belongs to; if there are several, the one whose trigger it is, else the one touched last.
    fn stream_of(&self, run: &Range<u64>) -> Option<usize> {
        let expects = |stream: &Stream| {
            let goes_on = run.end - run.start == 1 || stream.stride == 1;
            goes_on && stream.expects(run.start, self.touches)
        };
        let candidates = self.streams.iter().enumerate().filter(|(_, stream)| expects(stream));
        let is_trigger = |stream: &Stream| stream.trigger.is_some_and(|trigger| run.contains(&trigger));
        let best = candidates.max_by_key(|(_, stream)| (is_trigger(stream), stream.touched_at));
        best.map(|(index, _)| index)
    }

    fn go_on(&mut self, index: usize, run: &Range<u64>, file_blocks: u64) -> Option<Plan> {
        let window_max = self.window_max_of(self.streams[index].stride);
        let stream = &mut self.streams[index];
        stream.touched_at = self.touches;
        if !stream.is_due(run) {
            return None;
        }
        stream.window =
            if self.advice == Advice::Sequential { window_max } else { (stream.window * 2).min(window_max) };
        self.plan(index, run, file_blocks)
    }

    /// Makes a stream that begins behind `block`, in place of the one idle longest if there are too many. Who asks for long runs
    /// of `len` blocks will soon ask for two more.
    fn start(&mut self, block: u64, stride: i64, len: u64) -> usize {
        let window_max = self.window_max_of(stride);
        let first = if len > 1 { WINDOW_FIRST.max(2 * len) } else { WINDOW_FIRST };
        let window = if self.advice == Advice::Sequential { window_max } else { first.min(window_max) };
        let stream = Stream {
            stride,
            planned_to: block,
            planned_steps: 0,
            trigger: None,
            window,
            plans: 0,
            touched_at: self.touches,
        };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let idle = |&index: &usize| self.streams[index].touched_at;
        let index = (0..STREAMS).min_by_key(idle).unwrap_or(0);
        self.streams[index] = stream;
        index
    }

    fn plan(&mut self, index: usize, run: &Range<u64>, file_blocks: u64) -> Option<Plan> {
        let plan = self.streams[index].plan(run, file_blocks, self.region);
        (!plan.blocks.is_empty()).then_some(plan)
    }

    /// The largest window in steps: single blocks cost more each than a run of blocks, so strides get fewer; and all streams
    /// that are not idle share what may be ahead at a time.
    fn window_max_of(&self, stride: i64) -> u64 {
        let is_active = |stream: &&Stream| self.touches - stream.touched_at <= YOUNG_IDLE;
        let active = self.streams.iter().filter(is_active).count().max(1) as u64;
        let most = self.window_max.min(self.ahead_max / active).max(1);
        match stride {
            1 | -1 => most,
            _ => (self.window_max / 8).max(WINDOW_FIRST).min(most),
        }
    }
}

/// Blocks that are touched one after the other, `stride` apart.
#[derive(Debug)]
struct Stream {
    /// Blocks from one step to the next; negative for a reverse stream.
    stride: i64,
    /// The last block planned, or at the start the one touched.
    planned_to: u64,
    /// Steps of the last two plans: what may still be on its way.
    planned_steps: u64,
    trigger: Option<u64>,
    /// Steps in the last plan, or in the first.
    window: u64,
    plans: u32,
    touched_at: u64,
}

impl Stream {
    fn expects(&self, block: u64, now: u64) -> bool {
        let idle = now - self.touched_at;
        if idle > YOUNG_IDLE {
            let proven = self.plans >= PLANS_PROVEN;
            return proven && idle <= PROVEN_IDLE && self.trigger == Some(block);
        }
        let planned = self.planned_steps as i64;
        self.steps_past(block).is_some_and(|steps| -planned < steps && steps <= SLACK)
    }

    /// Whether a touch that belongs to the stream calls for the next plan.
    fn is_due(&self, run: &Range<u64>) -> bool {
        let (Some(first), Some(last)) = (self.steps_past(run.start), self.steps_past(run.end - 1)) else {
            return false;
        };
        let trigger = self.trigger.and_then(|trigger| self.steps_past(trigger));
        last > 0 || trigger.is_some_and(|trigger| trigger <= last && first <= trigger + SLACK)
    }

    /// Steps from the last planned block to this one; None when the stream steps over it.
    fn steps_past(&self, block: u64) -> Option<i64> {
        let (distance, stride) = (block.abs_diff(self.planned_to), self.stride.unsigned_abs());
        if distance % stride != 0 {
            return None;
        }
        let steps = i64::try_from(distance / stride).ok()?;
        let ahead = (block > self.planned_to) == (self.stride > 0);
        Some(if ahead { steps } else { -steps })
    }

    /// Plans a window beyond what was planned, and beyond the touched blocks if they are farther; leaves those out.
    fn plan(&mut self, touched: &Range<u64>, file_blocks: u64, region: u64) -> Plan {
        let ahead_of = self.steps_past(touched.end - 1).map_or(0, |steps| steps.max(0)) as u64;
        let in_regions = self.stride == 1 && self.window >= region;
        // What the end of the plan is short of the end of its region.
        let end = self.planned_to.saturating_add(ahead_of + self.window + 1);
        let short = end.checked_next_multiple_of(region).filter(|_| in_regions).map_or(0, |next| next - end);
        let window = self.window + short;
        let mut blocks = Vec::new();
        let mut trigger = None;
        let mut at = self.planned_to;
        for step in 1..=ahead_of + window {
            let Some(next) = self.step_from(at, file_blocks) else { break };
            at = next;
            if !touched.contains(&at) {
                join(&mut blocks, at);
            }
            // Half a window, rounded up, is behind the trigger or it; more, where the trigger is the first block of a region.
            let half = step <= ahead_of + self.window.div_ceil(2);
            if half && step > ahead_of && (!in_regions || at.is_multiple_of(region) || trigger.is_none()) {
                trigger = Some(at);
            }
        }
        let ended = self.step_from(at, file_blocks).is_none();
        self.trigger = trigger.filter(|_| !ended);
        self.planned_to = at;
        self.planned_steps = ahead_of + window + self.window / 2;
        self.plans = self.plans.saturating_add(1);
        Plan { blocks, trigger: self.trigger }
    }

    fn step_from(&self, block: u64, file_blocks: u64) -> Option<u64> {
        block.checked_add_signed(self.stride).filter(|&next| next < file_blocks)
    }
}

/// Appends a block, or lets the last range grow by it at either end.
fn join(blocks: &mut Vec<Range<u64>>, block: u64) {
    match blocks.last_mut() {
        Some(last) if last.end == block => last.end += 1,
        Some(last) if last.start == block + 1 => last.start = block,
        _ => blocks.push(block..block + 1),
    }
}

/// The last touches that belonged to no stream.
#[derive(Debug)]
struct History {
    /// Youngest first.
    blocks: [u64; HISTORY],
    len: usize,
    /// How many of them have an index of this remainder: most searches for a block end here.
    remainders: [u8; 256],
}

/// A touch and three before it make a stride, and 16 streams may take turns.
const HISTORY: usize = 48;
/// How far back a neighbour counts as the predecessor in a sequential or reverse stream. A longer memory would take random
/// touches for streams more often.
const NEIGHBOURS: usize = 16;

impl Default for History {
    fn default() -> Self {
        Self { blocks: [0; HISTORY], len: 0, remainders: [0; 256] }
    }
}

impl History {
    fn push(&mut self, block: u64) {
        if self.len == HISTORY {
            self.remainders[self.blocks[HISTORY - 1] as usize % 256] -= 1;
        }
        self.remainders[block as usize % 256] += 1;
        self.blocks.copy_within(..HISTORY - 1, 1);
        self.blocks[0] = block;
        self.len = (self.len + 1).min(HISTORY);
    }

    /// The stride of the stream that `block` makes together with what was touched before.
    fn pattern_at(&self, block: u64) -> Option<i64> {
        let follows = |stride: i64, steps: i64| {
            let before = block.checked_add_signed(-stride * steps);
            before.is_some_and(|before| self.find(before, 0).is_some_and(|at| at < NEIGHBOURS))
        };
        if follows(1, 1) {
            return Some(1);
        }
        if follows(-1, 1) && follows(-1, 2) {
            return Some(-1);
        }
        (0..self.len).find_map(|at| self.stride_through(block, at))
    }

    /// The distance of `block` from the touch at `at`, if two more before it are at the same distance each.
    fn stride_through(&self, block: u64, at: usize) -> Option<i64> {
        let before = self.blocks[at];
        let distance = block.abs_diff(before);
        if distance == 0 || distance > STRIDE_MAX {
            return None;
        }
        let stride = if block > before { distance as i64 } else { -(distance as i64) };
        let second = before.checked_add_signed(-stride)?;
        let third = second.checked_add_signed(-stride)?;
        let at = self.find(second, at + 1)?;
        self.find(third, at + 1).map(|_| stride)
    }

    /// Where the block was touched last, from `at` back.
    fn find(&self, block: u64, at: usize) -> Option<usize> {
        if self.remainders[block as usize % 256] == 0 {
            return None;
        }
        (at..self.len).find(|&at| self.blocks[at] == block)
    }
}

#[cfg(test)]
mod tests;
