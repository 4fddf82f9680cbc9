//! Where in the journal the next entry goes.
//!
//! What is still needed is a list of *runs*, in the order of the chain; inside a run entries lie one behind the other, and from
//! the end of a run a jump leads to the next. Everything else is free. Behind every entry some units stay free, so that a
//! claim and a jump always have their place; and they are written with the entry, so that the file system has blocks for them
//! when the disk is full.
//!
//! An entry goes behind the last one where that is free and below the soft limit; else to the beginning of the journal; else
//! behind everything: a journal grows only when its live part leaves no room. When the disk is full the soft limit is where
//! the blocks end.

use std::collections::VecDeque;
use std::ops::Range;

/// A journal grows by as much as it has, below its soft limit, but by so many units at least and so many bytes at most.
const GROW_UNITS: u64 = 16;
const GROW_BYTES: u64 = 1 << 20;

/// Where an entry is in its batch: others come before its sync, or it is the last of several, or the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InBatch {
    /// More are written before the next sync.
    Inner,
    /// The next sync follows it.
    Last,
    /// The next sync follows it, and nothing was written since the one before.
    Only,
}

/// A run of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
}

/// A place between two entries of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Number of the run, counted since the journal was made.
    run: u64,
    /// Position in bytes.
    pub position: u64,
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Position of the jump that is needed first, if one is.
    pub jump: Option<u64>,
    /// Position of the entry.
    pub position: u64,
}

/// The space of a journal.
#[derive(Clone, Debug)]
pub struct Space {
    unit: u64,
    base: u64,
    soft_end: u64,
    first: u64,
    runs: VecDeque<Run>,
    /// The file system has blocks for everything before this.
    backed: u64,
    /// It had none when more was asked for last.
    is_full: bool,
}

impl Space {
    /// The space of an empty journal, whose entries begin at `base` and should end before `soft_end`.
    pub fn new(unit: u64, base: u64, soft_end: u64) -> Self {
        let runs = VecDeque::from([Run { start: base, end: base }]);
        Self { unit, base, soft_end, first: 0, runs, backed: base, is_full: false }
    }

    /// Up to where there must be blocks behind an entry that ends at `end`, and up to where some should be asked for: where both
    /// are its end there is nothing to ask for.
    pub fn wants_backed(&self, end: u64, ahead: u64, place: InBatch) -> Range<u64> {
        let must = end + ahead;
        if must <= self.backed {
            return end..end;
        }
        // Many units at once: each growth costs the file system a change of its own metadata in the next sync. What is written
        // before that sync shares it, and a batch of many bytes would use up what was written ahead and grow all the same.
        let least = GROW_UNITS * self.unit;
        let step = match place {
            InBatch::Inner => 0,
            InBatch::Last => least,
            InBatch::Only => (self.backed - self.base).min(GROW_BYTES).max(least),
        };
        let more = if self.is_full { 0 } else { (end + step).min(self.soft_end) };
        must..must.max(more)
    }

    /// Takes note of what was written, and so has blocks.
    pub fn note_backed(&mut self, end: u64) {
        if end > self.backed {
            (self.backed, self.is_full) = (end, false);
        }
    }

    /// Takes note that there were no more blocks.
    pub fn note_full(&mut self) {
        self.is_full = true;
    }

    /// Whether there were no more blocks when some were asked for last.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes note that the journal was cut to a length.
    pub fn note_cut(&mut self, len: u64) {
        self.backed = self.backed.min(len);
    }

    fn last(&self) -> Run {
        self.runs.back().copied().unwrap_or(Run { start: self.base, end: self.base })
    }

    /// Where the chain ends.
    pub fn tip(&self) -> Tip {
        Tip { run: self.first + self.runs.len() as u64 - 1, position: self.last().end }
    }

    /// Bytes that can't be reused now.
    pub fn live(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Bytes that can't be reused once everything before `tip` is free.
    pub fn live_from(&self, tip: Tip) -> u64 {
        let later = self.runs.iter().skip((tip.run - self.first) as usize);
        let before = later.clone().next().map_or(0, |run| tip.position - run.start);
        later.map(|run| run.end - run.start).sum::<u64>() - before
    }

    /// The end of everything live.
    pub fn high(&self) -> u64 {
        self.runs.iter().map(|run| run.end).max().unwrap_or(self.base)
    }

    /// Takes the place for an entry of `size` bytes, a multiple of the unit, with `ahead` bytes free behind it, a unit at
    /// least.
    pub fn place(&mut self, size: u64, ahead: u64) -> Placed {
        let end = self.last().end;
        let above =
            self.runs.iter().map(|run| run.start).filter(|start| *start >= end && *start > self.last().start);
        let above = above.min().unwrap_or(u64::MAX);
        let lowest = self.runs.iter().map(|run| run.start).min().unwrap_or(self.base);
        let fits_here = end + size + ahead <= above;
        let fits_low = self.base + size + ahead <= lowest;
        let is_below = if self.is_full {
            end + size + ahead <= self.soft_end.min(self.backed)
        } else {
            end + size <= self.soft_end
        };
        if fits_here && (above != u64::MAX || is_below || !fits_low) {
            self.extend(size);
            return Placed { jump: None, position: end };
        }
        self.extend(self.unit);
        let position = if fits_low { self.base } else { self.high() };
        self.runs.push_back(Run { start: position, end: position + size });
        Placed { jump: Some(end), position }
    }

    fn extend(&mut self, size: u64) {
        if let Some(run) = self.runs.back_mut() {
            run.end += size;
        }
    }

    /// Gives back what was taken after `tip`.
    ///
    /// # Panics
    /// When `tip` is not in the live part.
    pub fn rewind(&mut self, tip: Tip) {
        assert!(tip.run >= self.first, "a tip that was freed");
        self.runs.truncate((tip.run - self.first + 1) as usize);
        let run = self.runs.back_mut().expect("the run of a tip is live");
        assert!((run.start..=run.end).contains(&tip.position), "a tip outside its run");
        run.end = tip.position;
    }

    /// Frees what lies before `tip` in the chain.
    ///
    /// # Panics
    /// When `tip` is not in the live part.
    pub fn free_before(&mut self, tip: Tip) {
        assert!(tip.run >= self.first, "freed twice");
        self.runs.drain(..(tip.run - self.first) as usize);
        self.first = tip.run;
        let run = self.runs.front_mut().expect("the run of a tip is live");
        assert!((run.start..=run.end).contains(&tip.position), "a tip outside its run");
        run.start = tip.position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 8;

    /// Live entries never overlap, whatever is placed, rewound and freed; every jump has its unit.
    #[test]
    fn live_entries_never_overlap() {
        let mut seed = 5u64;
        let mut random = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        let mut wrapped = 0;
        for _ in 0..200 {
            let mut space = Space::new(UNIT, 24, 24 + 20 * UNIT);
            // Entries with the tip after each.
            let mut live: VecDeque<(Tip, Vec<(u64, u64)>)> = VecDeque::new();
            let mut start = space.tip();
            for _ in 0..200 {
                match random(8) {
                    0 if !live.is_empty() => {
                        let keep = random(live.len() as u64 + 1) as usize;
                        live.truncate(keep);
                        space.rewind(live.back().map_or(start, |(tip, _)| *tip));
                    }
                    1 | 2 if !live.is_empty() => {
                        let gone = random(live.len() as u64) as usize;
                        start = live[gone].0;
                        live.drain(..=gone);
                        space.free_before(start);
                    }
                    _ => {
                        let size = (1 + random(6)) * UNIT;
                        let placed = space.place(size, (1 + random(2)) * UNIT);
                        let mut taken = vec![(placed.position, placed.position + size)];
                        taken.extend(placed.jump.map(|jump| (jump, jump + UNIT)));
                        wrapped += u64::from(placed.jump.is_some() && placed.position == 24);
                        for (from, to) in &taken {
                            assert!(*from >= 24);
                            let mut others = live.iter().flat_map(|(_, taken)| taken);
                            assert!(
                                others.all(|(other, end)| to <= other || from >= end),
                                "{taken:?} {live:?}"
                            );
                        }
                        live.push_back((space.tip(), taken));
                    }
                }
                let taken: u64 = live.iter().flat_map(|(_, taken)| taken).map(|(from, to)| to - from).sum();
                assert!(space.live() >= taken);
            }
        }
        assert!(wrapped > 100, "{wrapped}");
    }

    #[test]
    fn on_a_full_disk_what_has_blocks_is_used_again() {
        let mut space = Space::new(UNIT, 24, 24 + 100 * UNIT);
        let placed = space.place(4 * UNIT, 2 * UNIT);
        let end = placed.position + 4 * UNIT;
        let wanted = space.wants_backed(end, 2 * UNIT, InBatch::Only);
        assert_eq!(wanted, end + 2 * UNIT..end + GROW_UNITS * UNIT, "more than must be");
        space.note_full();
        let wanted = space.wants_backed(end, 2 * UNIT, InBatch::Only);
        assert_eq!(wanted, end + 2 * UNIT..end + 2 * UNIT);
        space.note_backed(wanted.end);
        assert!(!space.is_full());
        space.note_full();
        // The claim is small enough, what comes next is not, until something is free.
        let claim = space.place(UNIT, UNIT);
        assert_eq!(
            (claim, space.wants_backed(end + UNIT, UNIT, InBatch::Only)),
            (Placed { jump: None, position: end }, end + UNIT..end + UNIT)
        );
        let tip = space.tip();
        let mut grown = space.clone();
        assert_eq!(grown.place(UNIT, 2 * UNIT).position, end + UNIT);
        space.free_before(tip);
        let low = space.place(2 * UNIT, 2 * UNIT);
        assert_eq!(low, Placed { jump: Some(end + UNIT), position: 24 });
        assert!(end + 2 * UNIT <= wanted.end, "the jump's unit has blocks");
    }

    #[test]
    fn a_journal_grows_by_what_it_has_up_to_a_step() {
        const UNIT: u64 = 4096;
        let (base, soft_end) = (3 * UNIT, 3 * UNIT + (8 << 20));
        let mut space = Space::new(UNIT, base, soft_end);
        let (mut growths, mut largest) = (0, 0);
        loop {
            let end = space.place(2 * UNIT, 2 * UNIT).position + 2 * UNIT;
            if end + 2 * UNIT > soft_end {
                break;
            }
            let wanted = space.wants_backed(end, 2 * UNIT, InBatch::Only);
            if wanted.is_empty() && wanted.start == end {
                continue;
            }
            assert!(wanted.end <= soft_end && wanted.start == end + 2 * UNIT, "{wanted:?}");
            let within = space.wants_backed(end, 2 * UNIT, InBatch::Inner);
            assert_eq!(within, wanted.start..wanted.start, "no more than must be where others follow");
            let least = (end + GROW_UNITS * UNIT).min(soft_end);
            assert_eq!(space.wants_backed(end, 2 * UNIT, InBatch::Last).end, wanted.start.max(least));
            (growths, largest) = (growths + 1, largest.max(wanted.end - end));
            space.note_backed(wanted.end);
        }
        assert_eq!(largest, GROW_BYTES);
        assert!((8..20).contains(&growths), "{growths}");
    }

    #[test]
    fn the_beginning_is_used_again_before_the_journal_grows() {
        let mut space = Space::new(UNIT, 24, 24 + 4 * UNIT);
        for _ in 0..4 {
            assert_eq!(space.place(UNIT, UNIT).jump, None);
        }
        let tip = space.tip();
        assert_eq!(space.place(UNIT, UNIT), Placed { jump: None, position: 24 + 4 * UNIT });
        space.free_before(tip);
        assert_eq!(space.place(UNIT, UNIT), Placed { jump: Some(24 + 5 * UNIT), position: 24 });
    }
}
