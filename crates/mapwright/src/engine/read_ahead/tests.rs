//! Single rules, and readers in front of a cache that never evicts.

use super::*;
use std::collections::HashSet;

const FILE: u64 = 1 << 20;

fn blocks_of(plan: &Plan) -> Vec<u64> {
    plan.blocks.iter().cloned().flatten().collect()
}

/// What a plan of one range has for blocks.
fn one(blocks: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(blocks).collect()
}

/// A reader in front of a cache that never evicts: read-ahead is told what a pager would tell it.
struct Reader {
    read_ahead: ReadAhead,
    file_blocks: u64,
    resident: HashSet<u64>,
    triggers: HashSet<u64>,
    misses: u64,
    plans: Vec<Plan>,
}

impl Reader {
    fn new(window_max: u64, file_blocks: u64) -> Self {
        Self {
            read_ahead: ReadAhead::new(window_max),
            file_blocks,
            resident: HashSet::new(),
            triggers: HashSet::new(),
            misses: 0,
            plans: Vec::new(),
        }
    }

    fn read(&mut self, block: u64) {
        let hit = !self.resident.insert(block);
        if hit && !self.triggers.remove(&block) {
            return;
        }
        self.misses += u64::from(!hit);
        if let Some(plan) = self.read_ahead.touched(block, self.file_blocks) {
            let blocks = blocks_of(&plan);
            assert!(!blocks.is_empty() && !blocks.contains(&block));
            assert!(blocks.iter().all(|&block| block < self.file_blocks));
            assert!(plan.trigger.is_none_or(|trigger| blocks.contains(&trigger)));
            self.resident.extend(blocks);
            self.triggers.extend(plan.trigger);
            self.plans.push(plan);
        }
    }

    fn planned(&self) -> usize {
        self.plans.iter().map(|plan| blocks_of(plan).len()).sum()
    }

    fn assert_nothing_planned_twice(&self) {
        let mut planned = HashSet::new();
        for block in self.plans.iter().flat_map(blocks_of) {
            assert!(planned.insert(block), "block {block} is planned twice");
        }
    }
}

#[test]
fn sequential_windows_double_and_continue() {
    let mut read_ahead = ReadAhead::new(16);
    assert_eq!(read_ahead.touched(10, FILE), None);
    let plan = |blocks: Range<u64>, trigger| Some(Plan { blocks: one(blocks), trigger: Some(trigger) });
    assert_eq!(read_ahead.touched(11, FILE), plan(12..16, 13));
    assert_eq!(read_ahead.touched(13, FILE), plan(16..24, 19));
    assert_eq!(read_ahead.touched(19, FILE), plan(24..40, 31));
    assert_eq!(read_ahead.touched(31, FILE), plan(40..56, 47));
}

#[test]
fn sequential_reader_misses_two_blocks_only() {
    for window_max in [2, 3, 5, 8, 64, 100] {
        let mut reader = Reader::new(window_max, FILE);
        (1000..50_000).for_each(|block| reader.read(block));
        assert_eq!(reader.misses, 2, "window {window_max}");
        reader.assert_nothing_planned_twice();
        assert!(reader.planned() <= 49_000 + 2 * window_max as usize);
    }
}

#[test]
fn half_a_window_is_ahead_at_the_trigger() {
    for window_max in [1, 2, 3, 7, 8, 64] {
        let mut reader = Reader::new(window_max, FILE);
        (0..5000).for_each(|block| reader.read(block));
        for plan in &reader.plans[8..] {
            let ahead = plan.blocks[0].end - 1 - plan.trigger.unwrap();
            assert!(ahead >= window_max / 2, "window {window_max}: {ahead}");
        }
    }
}

#[test]
fn miss_just_past_the_plan_continues_it() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.touched(0, FILE);
    assert_eq!(read_ahead.touched(1, FILE).unwrap().blocks, one(2..6));
    assert_eq!(read_ahead.touched(6, FILE).unwrap().blocks, one(7..15), "the missed block is not planned");
    assert_eq!(read_ahead.touched(16, FILE).unwrap().blocks, [15..16, 17..33], "the block passed over is");
}

#[test]
fn reverse() {
    let mut read_ahead = ReadAhead::new(8);
    assert_eq!(read_ahead.touched(102, FILE), None);
    assert_eq!(read_ahead.touched(101, FILE), None);
    let plan = |blocks: Range<u64>, trigger| Some(Plan { blocks: one(blocks), trigger: Some(trigger) });
    assert_eq!(read_ahead.touched(100, FILE), plan(96..100, 98));
    assert_eq!(read_ahead.touched(98, FILE), plan(88..96, 92));
    let mut reader = Reader::new(32, FILE);
    (0..10_000).rev().for_each(|block| reader.read(block));
    assert_eq!(reader.misses, 3);
    reader.assert_nothing_planned_twice();
}

#[test]
fn strides_of_either_sign() {
    for stride in [2, 3, 17, 1000, 4096] {
        let mut forth = Reader::new(256, 1 << 40);
        (0..2000).for_each(|step| forth.read(7 + step * stride));
        let mut back = Reader::new(256, 1 << 40);
        (0..2000).rev().for_each(|step| back.read(7 + step * stride));
        for reader in [forth, back] {
            assert_eq!(reader.misses, 4, "stride {stride}");
            reader.assert_nothing_planned_twice();
            let lengths: Vec<usize> = reader.plans.iter().map(|plan| blocks_of(plan).len()).collect();
            assert_eq!(lengths[..4], [4, 8, 16, 32]);
            assert_eq!(lengths.iter().max(), Some(&32));
            assert!(reader.plans.iter().flat_map(blocks_of).all(|block| block % stride == 7 % stride));
        }
    }
}

#[test]
fn stride_needs_three_equal_deltas() {
    let mut read_ahead = ReadAhead::new(64);
    assert!([0, 50, 100].iter().all(|&block| read_ahead.touched(block, FILE).is_none()));
    let plan = read_ahead.touched(150, FILE).unwrap();
    assert_eq!((plan.blocks, plan.trigger), (vec![200..201, 250..251, 300..301, 350..351], Some(250)));
}

#[test]
fn sixteen_interleaved_sequential_streams() {
    let mut reader = Reader::new(64, FILE);
    for step in 0..2000 {
        (0..16).for_each(|stream| reader.read(stream * 50_000 + step));
    }
    assert_eq!(reader.misses, 2 * 16);
    reader.assert_nothing_planned_twice();
}

#[test]
fn sixteen_interleaved_streams_of_all_kinds() {
    let mut reader = Reader::new(64, 1 << 40);
    for step in 0..500u64 {
        for stream in 0..16 {
            let begin = (stream + 1) * 10_000_000;
            match stream % 4 {
                0 => reader.read(begin + step),
                1 => reader.read(begin - step),
                2 => reader.read(begin + step * (100 + stream)),
                _ => reader.read(begin - step * (3000 + stream)),
            }
        }
    }
    assert!(reader.misses <= 4 * (2 + 4 + 4 + 4), "{} misses", reader.misses);
}

#[test]
fn sixteen_interleaved_strided_streams() {
    let mut reader = Reader::new(64, 1 << 40);
    for step in 0..500u64 {
        (0..16).for_each(|stream| reader.read(stream * 10_000_000 + step * (100 + stream)));
    }
    assert_eq!(reader.misses, 16 * 4);
}

#[test]
fn strided_streams_close_together() {
    // Column by column through a matrix with rows of 100 blocks, four columns at once.
    let mut reader = Reader::new(64, FILE);
    for row in 0..1000 {
        [0, 10, 33, 71].iter().for_each(|column| reader.read(row * 100 + column));
    }
    assert!(reader.misses <= 4 * 4, "{} misses", reader.misses);
}

#[test]
fn sequential_stream_among_random_touches() {
    let (mut reader, mut random) = (Reader::new(64, 1 << 30), Random(3));
    for step in 0..5000 {
        reader.read((1 << 29) + step);
        (0..3).for_each(|_| reader.read(random.below(1 << 28)));
    }
    assert!(reader.misses < 15_000 + 60, "{} misses", reader.misses);
}

#[test]
fn threads_out_of_order() {
    let mut random = Random(11);
    let mut reader = Reader::new(32, FILE);
    let mut blocks: Vec<u64> = (0..10_000).collect();
    for at in 0..blocks.len() - 3 {
        let with = at + random.below(3) as usize;
        blocks.swap(at, with);
    }
    blocks.iter().for_each(|&block| reader.read(block));
    assert!(reader.misses <= 8, "{} misses", reader.misses);
    reader.assert_nothing_planned_twice();
}

#[test]
fn touches_of_blocks_on_their_way_plan_nothing() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.touched(0, FILE);
    let plan = read_ahead.touched(1, FILE).unwrap();
    assert_eq!(plan.blocks, one(2..6));
    assert_eq!(read_ahead.touched(2, FILE), None);
    assert!(read_ahead.touched(3, FILE).is_some());
    assert!((2..9).all(|block| read_ahead.touched(block, FILE).is_none()));
}

#[test]
fn random_touches_plan_next_to_nothing() {
    for (seed, file_blocks) in [(1, 4096), (2, 4096), (3, 5000), (4, 65_536), (5, 1 << 30)] {
        for window_max in [8, 512] {
            let (mut read_ahead, mut random) = (ReadAhead::new(window_max), Random(seed));
            let (mut plans, mut blocks, touches) = (0, 0, 100_000);
            for _ in 0..touches {
                if let Some(plan) = read_ahead.touched(random.below(file_blocks), file_blocks) {
                    plans += 1;
                    blocks += blocks_of(&plan).len();
                }
            }
            println!(
                "random over {file_blocks}, window {window_max}: {plans} plans, {blocks} blocks of {touches}"
            );
            assert!(plans * 100 < touches * 2, "{plans} plans");
            assert!(blocks * 100 < touches * 5, "{blocks} blocks");
        }
    }
}

#[test]
fn trigger_counts_more_than_the_window_of_another_stream() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.touched(0, FILE);
    assert_eq!(read_ahead.touched(1, FILE).unwrap().trigger, Some(3));
    assert!([12, 11].iter().all(|&block| read_ahead.touched(block, FILE).is_none()));
    assert_eq!(read_ahead.touched(10, FILE).unwrap().trigger, Some(8));
    assert_eq!(read_ahead.touched(8, FILE).unwrap().blocks, one(0..6), "this one meets the other");
    assert_eq!(read_ahead.touched(3, FILE).unwrap().blocks, one(6..14));
}

#[test]
fn advice_random_never_plans() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.touched(0, FILE);
    read_ahead.touched(1, FILE).unwrap();
    read_ahead.advise(Advice::Random);
    assert!((2..1000).all(|block| read_ahead.touched(block, FILE).is_none()));
    read_ahead.advise(Advice::Normal);
    assert_eq!(read_ahead.touched(3, FILE), None, "what was seen before is forgotten");
}

#[test]
fn advice_sequential_is_at_full_window_at_once() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.advise(Advice::Sequential);
    let plan = read_ahead.touched(0, FILE).unwrap();
    assert_eq!((plan.blocks, plan.trigger), (one(1..65), Some(32)));
    assert_eq!(read_ahead.touched(32, FILE).unwrap().blocks, one(65..129));
}

#[test]
fn runs_that_follow_each_other_are_a_stream() {
    let mut read_ahead = ReadAhead::new(64);
    assert_eq!(read_ahead.touched_run(0..10, FILE), None);
    let mut planned_to = 0;
    for (count, start) in (10..5000).step_by(10).enumerate() {
        let Some(plan) = read_ahead.touched_run(start..start + 10, FILE) else { continue };
        assert!(plan.blocks[0].start >= planned_to.max(start + 10), "{plan:?} after {planned_to}");
        planned_to = plan.blocks[0].end;
        assert!(count < 10 || planned_to > start + 10 + 32, "half a window is ahead: {plan:?} at {start}");
    }
    assert!(planned_to > 5000);
    for start in (100_000..200_000).step_by(5000) {
        assert_eq!(read_ahead.touched_run(start..start + 10, FILE), None, "runs apart are no stream");
    }
}

#[test]
fn a_stream_of_long_runs_begins_with_a_long_plan() {
    let mut read_ahead = ReadAhead::new(2048).in_regions_of(512);
    assert_eq!(read_ahead.touched_run(0..256, FILE), None);
    let plan = read_ahead.touched_run(256..512, FILE).expect("a stream");
    assert_eq!(
        (plan.blocks, plan.trigger),
        (one(512..1024), Some(512)),
        "two runs more, to the region's end"
    );
}

#[test]
fn long_plans_are_made_of_regions() {
    let mut reader = Reader::new(64, FILE);
    reader.read_ahead = ReadAhead::new(64).in_regions_of(16);
    (5..5000).for_each(|block| reader.read(block));
    assert_eq!(reader.misses, 2);
    reader.assert_nothing_planned_twice();
    for plan in reader.plans.iter().filter(|plan| blocks_of(plan).len() >= 16) {
        assert_eq!(plan.blocks.last().unwrap().end % 16, 0, "{plan:?}");
    }
    for plan in reader.plans.iter().filter(|plan| blocks_of(plan).len() >= 32) {
        assert_eq!(plan.trigger.unwrap() % 16, 0, "{plan:?}");
    }
    assert!(reader.planned() < 5000 + 3 * 64);
}

#[test]
fn streams_share_what_may_be_ahead() {
    let mut read_ahead = ReadAhead::new(64).within(64);
    let mut lengths = Vec::new();
    let mut go = |stream: u64, from: u64| {
        let plan = read_ahead.touched(stream * 10_000 + from, FILE)?;
        let blocks = blocks_of(&plan);
        lengths.push(blocks.len());
        plan.trigger.map(|trigger| trigger - stream * 10_000)
    };
    let mut at: Vec<u64> = vec![1; 4];
    assert_eq!(go(0, 0), None);
    for _ in 0..8 {
        at[0] = go(0, at[0]).unwrap();
    }
    for (stream, at) in at.iter_mut().enumerate().skip(1) {
        assert_eq!(go(stream as u64, 0), None);
        *at = go(stream as u64, 1).unwrap();
    }
    for _ in 0..8 {
        (0..4).for_each(|stream| at[stream] = go(stream as u64, at[stream]).unwrap());
    }
    assert_eq!(lengths[..8], [4, 8, 16, 32, 64, 64, 64, 64], "alone");
    assert_eq!(lengths[lengths.len() - 4..], [16; 4], "one of four");
}

#[test]
fn window_of_one() {
    let mut reader = Reader::new(1, 100);
    (0..100).for_each(|block| reader.read(block));
    assert_eq!(reader.misses, 2);
    assert!(reader.plans.iter().all(|plan| blocks_of(plan).len() == 1));
    assert_eq!(ReadAhead::new(0).window_max, 1);
}

#[test]
fn tiny_files_and_ends() {
    for file_blocks in 0..12 {
        for window_max in [1, 4, 64] {
            let mut reader = Reader::new(window_max, file_blocks);
            (0..file_blocks).for_each(|block| reader.read(block));
            (0..file_blocks).rev().for_each(|block| reader.read(block));
            assert!(reader.misses <= 2);
            assert_eq!(
                reader.plans.last().and_then(|plan| plan.trigger),
                None,
                "nothing comes after the end"
            );
        }
    }
    let mut shrunk = ReadAhead::new(4);
    assert_eq!(shrunk.touched(5, 5), None);
    assert_eq!(shrunk.touched(6, 100), None, "what is not there has no successor");
}

#[test]
fn growing_file_is_followed() {
    let mut read_ahead = ReadAhead::new(64);
    read_ahead.touched(0, 4);
    assert_eq!(read_ahead.touched(1, 4).unwrap(), Plan { blocks: one(2..4), trigger: None });
    assert_eq!(read_ahead.touched(4, 100).unwrap().blocks, one(5..13));
}

#[test]
fn far_ends_of_the_number_range() {
    let end = u64::MAX;
    for advice in [Advice::Normal, Advice::Sequential] {
        for stride in [1, 2, 4096] {
            let mut up = ReadAhead::new(u64::MAX);
            up.advise(advice);
            let mut down = ReadAhead::new(u64::MAX);
            down.advise(advice);
            for step in (0..20).rev() {
                let plans = [up.touched(end - 1 - step * stride, end), down.touched(step * stride, end)];
                let inside = |plan: &Plan| plan.blocks.iter().all(|range| range.start < range.end);
                assert!(plans.iter().flatten().all(inside));
            }
            assert!(up.touched(0, end).is_none() || advice == Advice::Sequential);
            assert!(down.touched(end - 1, end).is_none());
        }
    }
}

#[test]
fn plans_stay_inside_and_never_repeat() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let file_blocks = 1 + random.below(3000);
        let mut reader = Reader::new(1 + random.below(80), file_blocks);
        let begin = random.below(file_blocks);
        for block in begin..file_blocks {
            reader.read(block);
            if random.below(4) == 0 {
                reader.read(begin + random.below(block - begin + 1));
            }
        }
        assert!(reader.misses <= 2);
        reader.assert_nothing_planned_twice();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(end)) >> 64) as u64
    }
}
