//! Runs of pages, blocks or bytes.

use std::ops::Range;

/// The same in order, those that touch or overlap joined.
pub(crate) fn union<T: Copy + Ord>(mut runs: Vec<Range<T>>) -> Vec<Range<T>> {
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|later, earlier| {
        let touches = later.start <= earlier.end;
        if touches {
            earlier.end = earlier.end.max(later.end);
        }
        touches
    });
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_or_overlap_are_one() {
        assert_eq!(union(vec![8..9, 0..2, 2..3, 5..8, 1..2, 6..7]), [0..3, 5..9]);
        assert_eq!(union(Vec::<Range<u64>>::new()), []);
    }
}
