//! How much to read for a miss that continues nothing.
//!
//! Records of a file may be in no order and yet be longer than a block: whoever asks for their first block asks for the rest a moment later. Each
//! such miss costs a wait for the disk, which reads two neighbours as fast as one. So what follows a lone miss is looked at: where the block behind
//! what was read is missed soon after, nearly always, as many again are read from then on, up to a limit. Now and then half as many are read, as
//! a probe: where what was left out is not missed in most cases, less is read again. So accesses that are random in truth read single blocks.

/// Lone misses whose continuations are waited for.
const TRIALS: usize = 16;
/// How many lone misses there are to a probe.
const PROBE_EVERY: u32 = 16;
/// Scores are of this many, each the average of about the last [`WEIGHT`] trials.
const WHOLE: u32 = 1 << 12;
const WEIGHT: u32 = 8;
/// From here on the blocks behind what is read are missed often enough to be read too.
const GROW: u32 = WHOLE / 4 * 3;
/// Below this the second half of what is read isn't asked for often enough.
const SHRINK: u32 = WHOLE / 2;

/// Learns how many blocks are asked for together.
#[derive(Debug)]
pub(super) struct Clusters {
    /// Blocks, a power of two.
    len: u64,
    max: u64,
    trials: [Option<Trial>; TRIALS],
    next: usize,
    misses: u32,
    /// How often what is read was continued, and what probes have read.
    continued: u32,
    probed: u32,
}

/// A lone miss for which some blocks were read.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The block that would continue it.
    end: u64,
    /// For a probe, the end of what would have been read without it.
    left_out: Option<u64>,
    is_continued: bool,
}

/// What a miss is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The first of so many blocks that are worth reading.
    Lone(u64),
    /// It continues one before it.
    Continues {
        /// Which was read in part to see that, and this is of the rest.
        probe: bool,
    },
}

impl Clusters {
    /// Of at most `max` blocks.
    pub(super) fn new(max: u64) -> Self {
        let max = 1 << max.max(1).ilog2();
        Self { len: 1, max, trials: [None; TRIALS], next: 0, misses: 0, continued: 0, probed: WHOLE }
    }

    /// A block was missed that belongs to no stream.
    pub(super) fn missed(&mut self, block: u64) -> Miss {
        let continued = self.trials.iter_mut().flatten().find(|trial| trial.end == block);
        if let Some(trial) = continued {
            trial.is_continued = true;
            trial.end += 1; // for one that goes on
            return Miss::Continues { probe: trial.left_out.is_some_and(|end| block < end) };
        }
        self.misses = self.misses.wrapping_add(1);
        Miss::Lone(if self.is_probe() { self.len / 2 } else { self.len })
    }

    fn is_probe(&self) -> bool {
        self.len > 1 && self.misses.is_multiple_of(PROBE_EVERY)
    }

    /// For the lone miss of which was told last, all blocks up to `end` are read, and none of them was there before.
    pub(super) fn read_to(&mut self, end: u64) {
        let left_out = self.is_probe().then(|| end + self.len / 2);
        let trial = Trial { end, left_out, is_continued: false };
        let ended = self.trials[self.next].replace(trial);
        self.next = (self.next + 1) % TRIALS;
        if let Some(ended) = ended {
            self.learn(ended);
        }
    }

    fn learn(&mut self, trial: Trial) {
        let is_probe = trial.left_out.is_some();
        let score = if is_probe { &mut self.probed } else { &mut self.continued };
        *score = *score - *score / WEIGHT + if trial.is_continued { WHOLE / WEIGHT } else { 0 };
        let len = match is_probe {
            false if *score >= GROW => (self.len * 2).min(self.max),
            true if *score < SHRINK => self.len / 2,
            _ => return,
        };
        if len != self.len {
            *self = Self { len, misses: self.misses, ..Self::new(self.max) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads records of `len` blocks at places far apart; how many blocks were missed, and how many were read and not asked for, of the last
    /// thousand records.
    fn records(clusters: &mut Clusters, len: impl Fn(u64) -> u64) -> (u64, u64) {
        let (mut misses, mut spare) = (0, 0);
        for record in 0..2000 {
            let start = record * 7919 % 2003 * 1000;
            let end = start + len(record);
            let mut at = start;
            let (mut missed, mut read) = (0, 0);
            while at < end {
                missed += 1;
                let got = match clusters.missed(at) {
                    Miss::Lone(count) => {
                        clusters.read_to(at + count);
                        count
                    }
                    Miss::Continues { .. } => 1,
                };
                read += got;
                at += got;
            }
            if record >= 1000 {
                misses += missed;
                spare += read - len(record);
            }
        }
        (misses, spare)
    }

    #[test]
    fn what_is_asked_for_together_is_read_together() {
        for len in [2, 4, 8, 16] {
            let (misses, spare) = records(&mut Clusters::new(16), |_| len);
            assert!(misses <= 1000 + 1000 / 16 * len / 2 + len, "{misses} misses of records of {len}");
            assert_eq!(spare, 0, "of records of {len}");
        }
    }

    #[test]
    fn single_blocks_are_read_alone() {
        assert_eq!(records(&mut Clusters::new(16), |_| 1), (1000, 0));
    }

    #[test]
    fn what_is_mostly_not_continued_is_read_alone() {
        assert_eq!(records(&mut Clusters::new(16), |record| 1 + u64::from(record % 2 == 0)).1, 0);
    }

    #[test]
    fn what_is_not_asked_for_any_more_is_not_read_for_long() {
        let mut clusters = Clusters::new(16);
        records(&mut clusters, |_| 8);
        assert_eq!(clusters.len, 8);
        let (misses, spare) = records(&mut clusters, |_| 1);
        assert_eq!((misses, spare), (1000, 0), "a thousand records later");
        assert_eq!(clusters.len, 1);
    }

    /// Whoever goes on behind a record is told of, so that it is found to be a stream.
    #[test]
    fn what_goes_on_behind_a_probe_is_not_taken_for_a_record() {
        for phase in 0..u64::from(PROBE_EVERY) {
            let mut clusters = Clusters::new(16);
            records(&mut clusters, |_| 8);
            (0..phase).for_each(|record| assert!(matches!(clusters.missed(record * 1000), Miss::Lone(_))));
            let start = 1 << 30;
            let Miss::Lone(read) = clusters.missed(start) else { panic!("in phase {phase}") };
            clusters.read_to(start + read);
            let of_probe = (start + read..start + 100)
                .filter(|&at| clusters.missed(at) == Miss::Continues { probe: true });
            assert_eq!(of_probe.count() as u64, 8 - read, "in phase {phase}");
        }
    }

    #[test]
    fn the_limit_holds() {
        for max in [0, 1, 3, 4] {
            let mut clusters = Clusters::new(max);
            records(&mut clusters, |_| 100);
            assert_eq!(clusters.len, if max < 2 { 1 } else { max.min(4) / 2 * 2 });
        }
    }
}
