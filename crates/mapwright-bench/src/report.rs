//! The page: machine, versions and commands, every goal with what was measured, then every comparison.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::machine::Machine;
use mapwright_measure::size::show;
use serde::Serialize;

use crate::case::{Entry, Want};
use crate::plot::{self, plain, short};
use crate::run::{Outcome, Verdict, median};
use crate::task::Measured;

/// Crates whose versions a reader wants, and whether they are built in.
const CRATES: [(&str, bool); 10] = [
    ("mapwright", true),
    ("memmap2", true),
    ("mmap-io", true),
    ("io-uring", true),
    ("rayon", true),
    ("rustix", true),
    ("heed", cfg!(feature = "peers-lmdb")),
    ("redb", cfg!(feature = "peers-redb")),
    ("rusqlite", cfg!(feature = "peers-sqlite")),
    ("rocksdb", cfg!(feature = "peers-rocksdb")),
];

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was run.
    pub command: String,
    /// Programs and crates, with their versions.
    pub versions: Vec<(String, String)>,
    /// Rounds that the medians are of.
    pub rounds: usize,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of disk that the run needed at most.
    pub disk_bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What to keep in mind.
    pub warnings: Vec<String>,
    /// What was compared.
    pub outcomes: Vec<Outcome>,
}

/// Versions of the toolchain, of fio, and of the crates as they are locked.
pub fn versions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for program in ["rustc", "fio"] {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        found.push((program.to_owned(), text.unwrap_or_else(|_| "not installed".to_owned())));
    }
    let lock = include_str!("../../../Cargo.lock");
    for (name, _) in CRATES.iter().filter(|(_, is_built)| *is_built) {
        let version = lock.split("[[package]]").find_map(|package| {
            let mut lines = package.trim().lines();
            (lines.next()? == format!("name = \"{name}\"")).then_some(())?;
            lines.next()?.strip_prefix("version = \"")?.strip_suffix('"')
        });
        found.extend(version.map(|version| ((*name).to_owned(), version.to_owned())));
    }
    found
}

/// Writes `benchmarks.md` and the plots beside it.
pub fn write(out: &Path, report: &Report) -> Result<()> {
    let plots = out.join("benchmarks");
    // Plots of another run would stand beside those of this one.
    let _ = fs::remove_dir_all(&plots);
    fs::create_dir_all(&plots).map_err(|error| Failure::io("create", &plots, error))?;
    for outcome in report.outcomes.iter().filter(|outcome| has_results(outcome)) {
        plot::draw(&plots.join(file_name(outcome)), outcome)?;
    }
    let path = out.join("benchmarks.md");
    fs::write(&path, page(report)).map_err(|error| Failure::io("write", &path, error))
}

fn has_results(outcome: &Outcome) -> bool {
    outcome.measured.iter().any(|rounds| !rounds.is_empty())
}

fn file_name(outcome: &Outcome) -> String {
    let title = outcome.case.title.to_lowercase();
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-") + ".svg"
}

fn page(report: &Report) -> String {
    let mut page = String::new();
    head(&mut page, report);
    goals(&mut page, report);
    report.outcomes.iter().for_each(|outcome| comparison(&mut page, outcome));
    page
}

/// Writing to a `String` does not fail.
macro_rules! put {
    ($page:expr, $($arguments:tt)*) => { let _ = writeln!($page, $($arguments)*); };
}

fn head(page: &mut String, report: &Report) {
    let machine = &report.machine;
    put!(page, "# Benchmarks\n");
    put!(page, "Written by `{}` in {:.0} minutes.", report.command, report.seconds / 60.0);
    put!(
        page,
        "Medians of {} round(s). Contenders take turns within each round, each in a child process of its own; their order turns from \
         round to round, and their files are dropped from the page cache before they are read cold. Contenders of one table read \
         the same bytes: their checksums agree. Compare figures of one table, not of two.\n",
        report.rounds
    );
    put!(page, "| machine | |\n| --- | --- |");
    let mut line = |name: &str, value: &str| {
        put!(page, "| {name} | {value} |");
    };
    line("processor", &format!("{}, {} CPUs", machine.cpu_model, machine.cpus));
    line("kernel", &machine.kernel);
    line("memory", &show(machine.memory_bytes));
    let device = machine.device.as_deref().unwrap_or("no block device");
    line("disk", &format!("{device}, {}", machine.file_system));
    let read_ahead = machine.device_read_ahead_kib.map_or("unknown".to_owned(), |kib| format!("{kib} KiB"));
    line("device read-ahead", &read_ahead);
    line("memory limit", &machine.limit_enforcement);
    line("disk needed", &show(report.disk_bytes));
    for (name, version) in &report.versions {
        line(name, version);
    }
    put!(page, "");
    report.warnings.iter().for_each(|warning| {
        put!(page, "**Note:** {warning}.\n");
    });
}

fn goals(page: &mut String, report: &Report) {
    put!(page, "## Goals\n");
    put!(
        page,
        "A ratio is the median of the rounds' ratios, with the least and the most in brackets. Where several are named, the best of \
         them counts.\n"
    );
    put!(page, "| what | of | divided by | goal | measured | |\n| --- | --- | --- | --- | --- | --- |");
    for outcome in &report.outcomes {
        for verdict in &outcome.verdicts {
            goal(page, outcome, verdict);
        }
    }
    put!(page, "");
}

fn goal(page: &mut String, outcome: &Outcome, verdict: &Verdict) {
    let goal = &verdict.goal;
    let against = match &verdict.against {
        Some(name) if goal.against.len() > 1 => format!("{name} (the best)"),
        Some(name) => name.clone(),
        None => goal.against.join(", "),
    };
    let want = match goal.want {
        Want::AtLeast(value) => format!("≥ {}", wanted(value)),
        Want::AtMost(value) => format!("≤ {}", wanted(value)),
    };
    let (value, is_met) = match verdict.value {
        None => ("not measured".to_owned(), ""),
        Some([median, least, most]) => (
            format!("{} ({}–{})", short(median), short(least), short(most)),
            if goal.want.is_met(median) { "met" } else { "**missed**" },
        ),
    };
    put!(
        page,
        "| {}: {} | {} | {against} | {want} | {value} | {is_met} |",
        outcome.case.title,
        goal.figure.name(),
        goal.ours
    );
}

/// A goal's value, rounded to what was asked for.
fn wanted(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn comparison(page: &mut String, outcome: &Outcome) {
    put!(page, "## {}\n\n{}\n", outcome.case.title, outcome.case.about);
    if has_results(outcome) {
        match outcome.case.over {
            Some(quantity) => lines(page, outcome, quantity),
            None => table(page, outcome),
        }
        put!(page, "\n![{}](benchmarks/{})\n", outcome.case.title, file_name(outcome));
    }
    for (name, why) in &outcome.skipped {
        put!(page, "Not measured: {name}: {why}.\n");
    }
}

/// The median of a figure over the rounds; `None` where a round lacks it.
fn over(rounds: &[Measured], figure: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = rounds.iter().map(figure).collect();
    values.filter(|values| !values.is_empty()).map(|values| median(&values))
}

type Column = (String, Box<dyn Fn(&Measured) -> Option<f64>>);

/// The columns that some contender has something for.
fn columns(outcome: &Outcome) -> Vec<Column> {
    let shown = outcome.case.shown;
    let mut columns: Vec<Column> = vec![
        (shown.unit(), Box::new(move |measured| shown.of(measured))),
        ("CPU s".to_owned(), Box::new(|measured| Some(measured.cpu_seconds))),
        ("p50, µs".to_owned(), Box::new(|measured| measured.p50_ns.map(|nanos| nanos / 1000.0))),
        ("p99, µs".to_owned(), Box::new(|measured| measured.p99_ns.map(|nanos| nanos / 1000.0))),
        ("hits".to_owned(), Box::new(|measured| measured.hit_ratio)),
        (
            "peak MiB".to_owned(),
            Box::new(|measured| Some(measured.peak_rss_bytes as f64 / f64::from(1 << 20))),
        ),
    ];
    let mut names: Vec<&String> =
        outcome.measured.iter().flatten().flat_map(|measured| measured.extra.keys()).collect();
    names.sort();
    names.dedup();
    for name in names.into_iter().filter(|name| **name != shown.unit()) {
        let key = name.clone();
        columns.push((name.clone(), Box::new(move |measured| measured.extra.get(&key).copied())));
    }
    columns.retain(|(_, figure)| outcome.measured.iter().any(|rounds| over(rounds, figure).is_some()));
    columns
}

fn table(page: &mut String, outcome: &Outcome) {
    let columns = columns(outcome);
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    put!(page, "| contender | {} | guarantee |", names.join(" | "));
    put!(page, "| --- |{} --- |", " ---: |".repeat(columns.len()));
    for (entry, rounds) in outcome.case.entries.iter().zip(&outcome.measured) {
        if rounds.is_empty() {
            continue;
        }
        let cells: Vec<String> =
            columns.iter().map(|(_, figure)| over(rounds, figure).map_or(String::new(), short)).collect();
        put!(page, "| {} | {} | {} |", entry.name, cells.join(" | "), entry.promise());
    }
}

/// A line of the table for each value of the quantity, a column for each contender.
fn lines(page: &mut String, outcome: &Outcome, quantity: &str) {
    let mut names: Vec<&str> = Vec::new();
    let mut values: Vec<f64> = Vec::new();
    for Entry { name, x, .. } in &outcome.case.entries {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
        values.extend(x.filter(|x| !values.contains(x)));
    }
    let shown = outcome.case.shown;
    put!(page, "In {}:\n", shown.unit());
    put!(page, "| {quantity} | {} |", names.join(" | "));
    put!(page, "| ---: |{}", " ---: |".repeat(names.len()));
    for value in values {
        let cells: Vec<String> = names
            .iter()
            .map(|name| {
                let mut entries = outcome.case.entries.iter().zip(&outcome.measured);
                let rounds = entries.find(|(entry, _)| entry.name == *name && entry.x == Some(value));
                rounds
                    .and_then(|(_, rounds)| over(rounds, |round| shown.of(round)))
                    .map_or(String::new(), short)
            })
            .collect();
        put!(page, "| {} | {} |", plain(value), cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, Figure, Shown};
    use crate::task::{Advice, How, Task, Work};

    fn outcome() -> Outcome {
        let mut case = Case::new("Random 4 KiB, 1 thread", "Some pages.", Shown::Speed("pages"));
        for name in ["ours", "theirs", "absent"] {
            let (work, how) = (Work::Scan, How::Mmap(Advice::None));
            let path = "x".into();
            let task = Task { work, how, path, len: 1, budget: 1, threads: 1, batch: 1, sample: None };
            case.entry(name, task, None);
        }
        case.goal("ours", &["theirs"], Figure::Speed, Want::AtLeast(1.1));
        case.goal("absent", &[], Figure::Median, Want::AtMost(20.0));
        let measured = |seconds| vec![Measured { ops: 1000, seconds, ..Measured::default() }];
        let goals = case.goals.clone();
        let values = [(Some("theirs".to_owned()), Some([0.5, 0.5, 0.5])), (None, None)];
        let verdicts = goals.into_iter().zip(values);
        let verdicts = verdicts.map(|(goal, (against, value))| Verdict { goal, against, value }).collect();
        Outcome {
            case,
            measured: vec![measured(2.0), measured(1.0), Vec::new()],
            skipped: vec![("absent".to_owned(), "not built in".to_owned())],
            verdicts,
            problems: Vec::new(),
        }
    }

    #[test]
    fn goals_stand_beside_what_was_measured() {
        let (mut page, outcome) = (String::new(), outcome());
        outcome.verdicts.iter().for_each(|verdict| goal(&mut page, &outcome, verdict));
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines[0].ends_with("| ours | theirs | ≥ 1.1 | 0.50 (0.50–0.50) | **missed** |"), "{page}");
        assert!(lines[1].ends_with("| absent |  | ≤ 20 | not measured |  |"), "{page}");
    }

    #[test]
    fn a_table_has_the_columns_that_were_measured() {
        let (mut page, outcome) = (String::new(), outcome());
        comparison(&mut page, &outcome);
        assert!(page.contains("| contender | pages/s | CPU s | peak MiB | guarantee |"), "{page}");
        assert!(page.contains("| ours | 500 |") && page.contains("| theirs | 1,000 |"), "{page}");
        assert!(page.contains("(benchmarks/random-4-kib-1-thread.svg)"), "{page}");
        assert!(page.contains("Not measured: absent: not built in."), "{page}");
    }

    #[test]
    fn plots_and_versions_are_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        plot::draw(&path, &outcome()).unwrap();
        let svg = fs::read_to_string(&path).unwrap();
        assert!(svg.contains("ours") && svg.contains("theirs") && !svg.contains("absent"));
        let versions = versions();
        assert!(versions.iter().any(|(name, version)| name == "memmap2" && version.starts_with("0.9")));
    }
}
