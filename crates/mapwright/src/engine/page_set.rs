//! A set of page indices kept as disjoint, non-touching runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// Pages, as runs: start → end.
#[derive(Debug, Default)]
pub struct PageSet(BTreeMap<u64, u64>);

impl PageSet {
    /// Adds a run of pages.
    pub fn insert(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        let Range { mut start, mut end } = pages;
        while let Some((&run_start, &run_end)) = self.0.range(..=end).next_back() {
            if run_end < start {
                break;
            }
            start = start.min(run_start);
            end = end.max(run_end);
            self.0.remove(&run_start);
        }
        self.0.insert(start, end);
    }

    /// Removes a run of pages and returns the parts of it that were in the set, in order.
    pub fn take(&mut self, pages: Range<u64>) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        if pages.is_empty() {
            return taken;
        }
        while let Some((&run_start, &run_end)) = self.0.range(..pages.end).next_back() {
            if run_end <= pages.start {
                break;
            }
            self.0.remove(&run_start);
            if run_start < pages.start {
                self.0.insert(run_start, pages.start);
            }
            if run_end > pages.end {
                self.0.insert(pages.end, run_end);
            }
            taken.push(run_start.max(pages.start)..run_end.min(pages.end));
        }
        taken.reverse();
        taken
    }

    /// The parts of the run that are in the set, in order, at most `limit` of them.
    pub fn runs_in(&self, pages: &Range<u64>, limit: usize) -> Vec<Range<u64>> {
        let first = self.0.range(..pages.start).next_back().filter(|(_, end)| **end > pages.start);
        first
            .into_iter()
            .chain(self.0.range(pages.clone()))
            .take(limit)
            .map(|(&start, &end)| start.max(pages.start)..end.min(pages.end))
            .collect()
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    /// Number of pages.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a plain bitmap, over a deterministic walk.
    #[test]
    fn behaves_as_a_bitmap() {
        const PAGES: usize = 64;
        let mut set = PageSet::default();
        let mut bits = [false; PAGES];
        let mut seed = 1u64;
        let mut random = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        for _ in 0..20_000 {
            let start = random(PAGES);
            let end = start + random(PAGES - start + 1);
            let run = start as u64..end as u64;
            let inside = |bits: &[bool; PAGES]| (start..end).filter(|&page| bits[page]).collect::<Vec<_>>();
            let pages =
                |runs: Vec<Range<u64>>| runs.into_iter().flatten().map(|p| p as usize).collect::<Vec<_>>();
            assert_eq!(pages(set.runs_in(&run, usize::MAX)), inside(&bits));
            if random(2) == 0 {
                set.insert(run);
                bits[start..end].fill(true);
            } else {
                assert_eq!(pages(set.take(run)), inside(&bits));
                bits[start..end].fill(false);
            }
            assert_eq!(set.len() as usize, bits.iter().filter(|bit| **bit).count());
            assert_eq!(set.is_empty(), !bits.contains(&true));
            let runs: Vec<_> = set.0.iter().collect();
            assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "runs touch: {runs:?}");
        }
    }
}
