//! The rows of a comparison, and its JSON.

use serde::Serialize;

use super::Pattern;
use super::worker::Measured;
use crate::methods::Method;
use mapwright_measure::machine::Machine;

/// One method under one pattern: medians over the rounds. The field names are an interface: see the tests.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub pattern: Pattern,
    /// Through what.
    pub method: Method,
    /// The memory limit.
    pub limit_bytes: u64,
    /// Operations a round, each on one page.
    pub ops: u64,
    /// Bytes of the file that a round read, or that it changed.
    pub bytes: u64,
    /// Wall time of a round, from before the file is opened to after the last operation (and the durability step).
    pub seconds: f64,
    /// CPU time of a round, all threads.
    pub cpu_seconds: f64,
    /// `ops / seconds`.
    pub ops_per_second: f64,
    /// Median latency of what `latency_of` names.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// Largest resident memory of the process in any round (VmHWM).
    pub peak_rss_bytes: u64,
    /// Wrapping sum of the u64 words read, or of the file after the update, in hexadecimal.
    pub checksum: String,
    /// Threads that shared the operations.
    pub threads: usize,
    /// Rounds that were measured.
    pub rounds: usize,
    /// What a program calls to get the method.
    pub calls: &'static str,
    /// What the method promises.
    pub guarantee: &'static str,
    /// Whether the kernel held the process and its page cache to the limit.
    pub enforced: bool,
    /// Resident memory before the file was opened.
    pub baseline_rss_bytes: u64,
    /// Shortest round.
    pub seconds_min: f64,
    /// Longest round.
    pub seconds_max: f64,
    /// What a latency is the time of.
    pub latency_of: String,
    /// What the method said about the last round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What is the same for all rows of a group.
pub struct Group {
    /// The pattern.
    pub pattern: Pattern,
    /// Threads.
    pub threads: usize,
    /// The limit in bytes.
    pub limit: u64,
    /// Whether a cgroup held it.
    pub enforced: bool,
    /// Pages a batch.
    pub batch: usize,
}

impl Row {
    /// Medians over rounds; `rounds` is not empty.
    pub fn of(group: &Group, method: Method, rounds: &[Measured]) -> Self {
        let median_of = |field: &dyn Fn(&Measured) -> f64| median(rounds.iter().map(field).collect());
        let first = &rounds[0];
        let seconds = median_of(&|round| round.seconds);
        let batch = method.batch(group.batch);
        Self {
            pattern: group.pattern,
            method,
            limit_bytes: group.limit,
            ops: first.ops,
            bytes: first.bytes,
            seconds,
            cpu_seconds: median_of(&|round| round.cpu_seconds),
            ops_per_second: first.ops as f64 / seconds.max(1e-9),
            p50_us: median_of(&|round| round.p50_us),
            p99_us: median_of(&|round| round.p99_us),
            peak_rss_bytes: rounds.iter().map(|round| round.peak_rss_bytes).max().unwrap_or(0),
            checksum: format!("{:016x}", first.checksum),
            threads: group.threads,
            rounds: rounds.len(),
            calls: method.calls(group.pattern),
            guarantee: method.guarantee(group.pattern),
            enforced: group.enforced,
            baseline_rss_bytes: rounds.iter().map(|round| round.baseline_rss_bytes).min().unwrap_or(0),
            seconds_min: rounds.iter().map(|round| round.seconds).fold(f64::INFINITY, f64::min),
            seconds_max: rounds.iter().map(|round| round.seconds).fold(0.0, f64::max),
            latency_of: match group.pattern {
                Pattern::Sequential => "a step of 1 MiB".to_owned(),
                _ if batch > 1 => format!("the batch of {batch} pages that a page arrived in"),
                _ => "a page".to_owned(),
            },
            note: rounds.last().and_then(|round| round.note.clone()),
        }
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// A method that did not run under a pattern, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The pattern.
    pub pattern: Pattern,
    /// The method.
    pub method: Method,
    /// Why.
    pub why: String,
}

/// Everything that a comparison found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub rows: Vec<Row>,
    /// What follows from it, in words.
    pub recommendation: String,
    /// What did not run.
    pub skipped: Vec<Skipped>,
    /// What to keep in mind when reading the rows.
    pub warnings: Vec<String>,
    /// What went wrong: differing checksums, a budget that was not kept. A run with an entry here has failed.
    pub problems: Vec<String>,
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A row with the given speed.
    pub fn row(pattern: Pattern, method: Method, ops_per_second: f64) -> Row {
        let measured = Measured {
            ops: 1000,
            bytes: 4_096_000,
            seconds: 1000.0 / ops_per_second,
            cpu_seconds: 0.25,
            p50_us: 50.0,
            p99_us: 99.0,
            peak_rss_bytes: 64 << 20,
            baseline_rss_bytes: 4 << 20,
            checksum: 0xabc,
            ..Measured::default()
        };
        let group = Group { pattern, threads: 1, limit: 128 << 20, enforced: true, batch: 64 };
        Row::of(&group, method, &[measured])
    }

    #[test]
    fn the_field_names_are_the_interface() {
        let row = row(Pattern::Zipf, Method::MapwrightExplicit, 2000.0);
        let json = serde_json::to_value(&row).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        for name in [
            "pattern",
            "method",
            "limit_bytes",
            "ops",
            "bytes",
            "seconds",
            "cpu_seconds",
            "ops_per_second",
            "p50_us",
            "p99_us",
            "peak_rss_bytes",
            "checksum",
            "threads",
            "rounds",
            "calls",
            "guarantee",
            "enforced",
        ] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        assert_eq!(json["pattern"], "zipf");
        assert_eq!(json["method"], "mapwright-explicit");
        assert_eq!(json["ops_per_second"], 2000.0);
        assert_eq!(json["checksum"], "0000000000000abc");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }
}
