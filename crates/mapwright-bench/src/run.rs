//! Runs a comparison: the contenders in turns, round after round, each in a child process of its own.

use std::fs::{self, File};

use mapwright_measure::child::{self, Enforcement};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::{sample, signals};
use memmap2::{Advice, MmapOptions};
use serde::Serialize;

use crate::case::{Case, Entry, Goal};
use crate::task::{How, Measured, Program, Task, Work};
use crate::work;

/// What came out of a comparison.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was compared.
    pub case: Case,
    /// For each contender what each round measured; nothing where it could not run.
    pub measured: Vec<Vec<Measured>>,
    /// Contenders that could not run, and why.
    pub skipped: Vec<(String, String)>,
    /// The goals, judged.
    pub verdicts: Vec<Verdict>,
    /// What went wrong: a run with an entry here has failed.
    pub problems: Vec<String>,
}

/// A goal and what was measured.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The goal.
    pub goal: Goal,
    /// What it was held against: the best of those named.
    pub against: Option<String>,
    /// Median, least and most over the rounds, of the figure or of its ratio; `None` where it was not measured.
    pub value: Option<[f64; 3]>,
}

/// Runs `rounds` rounds.
pub fn run(case: Case, rounds: usize, enforcement: &Enforcement) -> Result<Outcome> {
    let count = case.entries.len();
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); count];
    let (mut skipped, mut problems) = (Vec::new(), Vec::new());
    // Says why a contender is out, unless its failure ends the run.
    let mut put_out = |entry: &Entry, failure: Failure| {
        match failure {
            Failure::Interrupted => return Err(failure),
            Failure::Unsupported(why) => skipped.push((entry.name.clone(), why)),
            Failure::Message(why) => problems.push(format!("{}, {}: {why}", case.title, entry.name)),
        }
        Ok(())
    };
    let mut is_out = vec![false; count];
    for (index, entry) in case.entries.iter().enumerate() {
        if let Err(failure) = build(entry, enforcement) {
            put_out(entry, failure)?;
            is_out[index] = true;
        }
    }
    for round in 0..rounds {
        for turn in 0..count {
            let index = (turn + round) % count;
            // One that failed once is not asked again: its rounds would not be comparable.
            if is_out[index] {
                continue;
            }
            let entry = &case.entries[index];
            match run_one(entry, enforcement) {
                Ok(result) => measured[index].push(result),
                Err(failure) => {
                    put_out(entry, failure)?;
                    is_out[index] = true;
                }
            }
        }
    }
    measured.iter_mut().filter(|results| results.len() < rounds).for_each(Vec::clear);
    problems.extend(disagreements(&case, &measured));
    let verdicts = case.goals.iter().map(|goal| judge(goal, &case.entries, &measured)).collect();
    Ok(Outcome { case, measured, skipped, verdicts, problems })
}

/// Builds the database that a contender reads: in a child, without a limit.
fn build(entry: &Entry, enforcement: &Enforcement) -> Result<()> {
    if !matches!(entry.task.how, How::Peer(_) | How::Program(Program::Peer(_), _)) {
        return Ok(());
    }
    let task = Task { work: Work::Load, ..entry.task.clone() };
    child::run::<_, Measured>(work::NAME, &task, None, enforcement).map(drop)
}

fn run_one(entry: &Entry, enforcement: &Enforcement) -> Result<Measured> {
    signals::check()?;
    let task = &entry.task;
    if matches!(task.how, How::Program(..)) {
        warm_memory(task.budget);
    }
    let count = match (&task.work, task.how) {
        // The words are in a database.
        (_, How::Peer(_)) => None,
        (Work::Update { count }, _) => Some(*count),
        (Work::Commits { dirty, count }, _) => Some(dirty * count),
        _ => None,
    };
    let Some(count) = count else {
        return child::run(work::NAME, task, entry.limit, enforcement);
    };
    let before = checksum(task)?;
    let mut measured: Measured = child::run(work::NAME, task, entry.limit, enforcement)?;
    let written = checksum(task)?.wrapping_sub(before);
    if written != count {
        return Err(Failure::Message(format!(
            "the file shows {written} updates where {count} were made durable"
        )));
    }
    measured.checksum = Some(written);
    Ok(measured)
}

/// Has the host of a virtual machine give it so much memory, of which it may have taken back what is free: each contender pays for that otherwise that makes larger
/// pages than the one before it.
fn warm_memory(bytes: u64) {
    let map = usize::try_from(bytes).ok().and_then(|len| MmapOptions::new().len(len).map_anon().ok());
    for advice in [Advice::HugePage, Advice::PopulateWrite] {
        let _ = map.as_ref().map(|map| map.advise(advice)); // where it can't be had, it is as cold for all
    }
}

/// The sum of the task's file as it is on the disk.
fn checksum(task: &Task) -> Result<u64> {
    let file = File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
    sample::drop_cache(&file);
    let sum = sample::file_checksum(&file, &task.path);
    sample::drop_cache(&file);
    sum
}

/// Contenders that read other bytes than the first one of the same work.
fn disagreements(case: &Case, measured: &[Vec<Measured>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut first: Vec<(String, &str, u64)> = Vec::new();
    for (entry, results) in case.entries.iter().zip(measured) {
        let key = entry.work_key();
        for checksum in results.iter().filter_map(|result| result.checksum) {
            match first.iter().find(|(of, ..)| *of == key) {
                Some((_, other, expected)) if *expected != checksum => {
                    found.push(format!(
                        "{}: {} read {checksum:016x} where {other} read {expected:016x}",
                        case.title, entry.name
                    ));
                }
                Some(_) => {}
                None => first.push((key.clone(), &entry.name, checksum)),
            }
        }
    }
    found.dedup();
    found
}

fn judge(goal: &Goal, entries: &[Entry], measured: &[Vec<Measured>]) -> Verdict {
    let values = |name: &str| -> Option<Vec<f64>> {
        let index = entries.iter().position(|entry| entry.name == name)?;
        let values: Option<Vec<f64>> = measured[index].iter().map(|result| goal.figure.of(result)).collect();
        values.filter(|values| !values.is_empty())
    };
    let best = |a: f64, b: f64| if goal.figure.more_is_better() { a > b } else { a < b };
    let rival = goal
        .against
        .iter()
        .filter_map(|name| Some((name, values(name)?)))
        .reduce(|one, other| if best(median(&other.1), median(&one.1)) { other } else { one });
    let value = match (values(&goal.ours), &rival) {
        (Some(ours), Some((_, theirs))) => {
            // Round by round: what drifts between rounds drifts for both.
            Some(spread(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>()))
        }
        (Some(ours), None) if goal.against.is_empty() => Some(spread(&ours)),
        _ => None,
    };
    Verdict { goal: goal.clone(), against: rival.map(|(name, _)| name.clone()), value }
}

/// Median, least and most.
fn spread(values: &[f64]) -> [f64; 3] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [median(values), least, most]
}

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// Writes everything that was measured.
pub fn write_json(path: &std::path::Path, report: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(report)
        .map_err(|error| Failure::Message(format!("cannot write the result as JSON: {error}")))?;
    fs::write(path, json).map_err(|error| Failure::io("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Figure, Shown, Want};
    use crate::task::Advice;

    fn measured(seconds: f64, checksum: u64) -> Measured {
        Measured { ops: 100, seconds, checksum: Some(checksum), ..Measured::default() }
    }

    fn case(names: &[&str]) -> Case {
        let mut case = Case::new("a case", "", Shown::Speed("pages"));
        for name in names {
            let how = How::Mmap(Advice::None);
            let task = Task {
                work: Work::Scan,
                how,
                path: "x".into(),
                len: 1,
                budget: 1,
                threads: 1,
                batch: 1,
                sample: None,
            };
            case.entry(*name, task, None);
        }
        case
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds_with_the_best_rival() {
        let mut case = case(&["ours", "slow", "fast"]);
        case.goal("ours", &["slow", "fast"], Figure::Speed, Want::AtLeast(1.1));
        let rounds = |seconds: [f64; 3]| seconds.map(|seconds| measured(seconds, 1)).to_vec();
        let all = [rounds([1.0, 2.0, 4.0]), rounds([9.0, 9.0, 9.0]), rounds([2.0, 4.0, 4.0])];
        let verdict = judge(&case.goals[0], &case.entries, &all);
        assert_eq!(verdict.against.as_deref(), Some("fast"));
        assert_eq!(verdict.value, Some([2.0, 1.0, 2.0]));
        assert!(case.goals[0].want.is_met(2.0) && !case.goals[0].want.is_met(1.0));
        let absent = judge(&case.goals[0], &case.entries, &[rounds([1.0; 3]), Vec::new(), Vec::new()]);
        assert_eq!(absent.value, None);
    }

    #[test]
    fn contenders_that_read_other_bytes_are_named() {
        let case = case(&["one", "other"]);
        assert!(disagreements(&case, &[vec![measured(1.0, 7)], vec![measured(1.0, 7)]]).is_empty());
        let found = disagreements(&case, &[vec![measured(1.0, 7)], vec![measured(1.0, 7), measured(1.0, 8)]]);
        assert!(found.len() == 1 && found[0].contains("other read"), "{found:?}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
