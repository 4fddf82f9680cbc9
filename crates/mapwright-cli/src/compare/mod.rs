//! `mapwright compare`: the same work through every way to read or update a file, under the same memory limit.
//!
//! Each method and round runs in a child process of its own (`worker`), started by `child::run`. Rounds are interleaved: every
//! round runs every method once, in an order that turns from round to round, after a warm-up that also finds how many
//! operations a round should have. What must go away afterwards is held by guards: files (`sample::OwnFile`), memory groups
//! (`cgroup::Group`), the device's read-ahead (`device::ReadAhead`), children (`child::run`).

mod plan;
mod progress;
mod record;
mod report;
pub mod rows;
mod svg;
pub mod worker;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use mapwright_measure::child::{self, Enforcement};
use mapwright_measure::device::{Place, ReadAhead};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::machine::Machine;
use mapwright_measure::pages::{PAGE, update_offsets};
use mapwright_measure::sample::{self, OwnFile};
use mapwright_measure::{signals, size};
use serde::{Deserialize, Serialize};

use crate::methods::Method;
use plan::Plan;
use progress::Progress;
use rows::{Group, Report, Row, Skipped};
use worker::{Measured, Task};

/// The order in which pages are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// from the start to the end
    Sequential,
    /// any page, all equally likely
    Random,
    /// few pages often, most seldom (zipf, skew 0.99)
    Zipf,
    /// add 1 to words of random pages, then make it durable (needs --write)
    Update,
}

impl Pattern {
    /// The name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
            Self::Zipf => "zipf",
            Self::Update => "update",
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  mapwright compare                             on a sample of 1 GiB, made and removed: about five minutes
  mapwright compare --rounds 2 data.bin         on a file of yours, quicker and rougher
  mapwright compare --write --limit 64M data.bin     also updates of a copy, with 64 MiB of memory
  mapwright compare --threads 1,4,16 --json out.json --svg out.svg data.bin

Exit codes: 0 done, 1 a method failed, two disagreed on what they read, or a budget was not kept, 2 bad usage, 130 interrupted.";

/// Compare every way to read (and with --write, update) a file on this machine
///
/// Reads FILE sequentially, at random and zipf-distributed through read(2), pread(2), O_DIRECT, the kernel's mmap and
/// mapwright, all under the same memory limit, and says which is fastest here. The file must not change meanwhile.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// File to read; without it a sample of 1 GiB is made in $TMPDIR or the current directory, and removed afterwards
    file: Option<PathBuf>,
    /// Also update random words of a copy of the file (made beside it and removed afterwards)
    #[arg(long)]
    write: bool,
    /// Memory that each method may use, such as 64M or 1GiB [default: an eighth of the file]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    limit: Option<u64>,
    /// Patterns to run [default: sequential,random,zipf, and update with --write]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    patterns: Vec<Pattern>,
    /// Methods to run [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Threads of the random pattern; several numbers give a comparison for each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Rounds to take the medians of
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long a round of a typical method should take
    #[arg(long, value_name = "SECONDS", default_value_t = 1.5, value_parser = parse_seconds)]
    seconds_per_round: f64,
    /// Operations a round, instead of finding out
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    ops: Option<u64>,
    /// Bytes of a sequential round [default: the file up to 4 GiB, less where that takes too long]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    sequential_bytes: Option<u64>,
    /// Pages that mapwright-explicit asks for at once
    #[arg(long, value_name = "PAGES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Where the lists of pages start from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Size of the sample when no FILE is given
    #[arg(long, value_name = "SIZE", value_parser = size::parse, conflicts_with = "file", default_value = "1GiB")]
    sample_size: u64,
    /// Write everything that was measured as JSON (- for stdout, the table then goes to stderr)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to mmap-advised
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also write the pages of each pattern, one after the other, as a trace for `cargo xtask policies --trace`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Set the disk's read-ahead for the comparison, and put it back afterwards
    #[arg(long, value_name = "KIB")]
    device_read_ahead: Option<u64>,
    /// No table and no progress
    #[arg(long, short)]
    quiet: bool,
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("between 0.01 and 3600".to_owned()),
    }
}

/// The smallest budget of a pager, in bytes.
const LEAST_LIMIT: u64 = 32 << 10;

impl Options {
    /// Bad combinations of options, in words.
    pub fn check(&self) -> std::result::Result<(), String> {
        if self.patterns.contains(&Pattern::Update) && !self.write {
            return Err(
                "the pattern update needs --write (a copy of the file is updated, not the file)".to_owned()
            );
        }
        if self.json.is_some() && self.json == self.svg {
            return Err("--json and --svg name the same file".to_owned());
        }
        if self.record.is_some() && (self.record == self.json || self.record == self.svg) {
            return Err("--record names the file of another result".to_owned());
        }
        if self.limit.is_some_and(|limit| limit < LEAST_LIMIT) {
            return Err(format!(
                "--limit is below {} KiB, the least that a pager works with",
                LEAST_LIMIT >> 10
            ));
        }
        let patterns = self.patterns();
        match self.methods.iter().find(|method| !patterns.iter().any(|pattern| method.does(*pattern))) {
            Some(method) => Err(format!(
                "the method {} does none of the patterns asked for: name others with --patterns, or add --write for updates",
                method.name()
            )),
            None => Ok(()),
        }
    }

    fn patterns(&self) -> Vec<Pattern> {
        let mut patterns = match self.patterns.as_slice() {
            [] => vec![Pattern::Sequential, Pattern::Random, Pattern::Zipf],
            asked => asked.to_vec(),
        };
        if self.write {
            patterns.push(Pattern::Update);
        }
        patterns.sort_unstable();
        patterns.dedup();
        patterns
    }

    fn methods(&self, pattern: Pattern) -> Vec<Method> {
        let wanted = |method: &Method| self.methods.is_empty() || self.methods.contains(method);
        Method::ALL.into_iter().filter(wanted).filter(|method| method.does(pattern)).collect()
    }

    /// Every pattern with every number of threads it is run with.
    fn groups(&self) -> Vec<(Pattern, usize)> {
        let mut threads: Vec<usize> = self.threads.iter().map(|count| usize::from(*count)).collect();
        threads.sort_unstable();
        threads.dedup();
        let mut groups = Vec::new();
        for pattern in self.patterns() {
            match pattern {
                Pattern::Random => groups.extend(threads.iter().map(|count| (pattern, *count))),
                _ => groups.push((pattern, 1)),
            }
        }
        groups
    }
}

/// Makes sure, before anything is measured, that a result can be written.
fn check_writable(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    let opened = fs::File::options().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| Failure::io("write the result to", path, error))
}

/// The whole comparison. Returns whether it passed: checksums agree and budgets were kept.
pub fn compare(options: &Options) -> Result<bool> {
    signals::install()?;
    options
        .json
        .iter()
        .chain(&options.svg)
        .chain(&options.record)
        .try_for_each(|path| check_writable(path))?;
    let target = Target::prepare(options)?;
    let place = Place::of(&target.path)?;
    let _read_ahead = options.device_read_ahead.map(|kib| ReadAhead::set(&place, kib)).transpose()?;
    let limit = options.limit.unwrap_or((target.len / 8).max(1 << 20)).next_multiple_of(PAGE);
    let enforcement = Enforcement::find(limit, worker::NAME)?;
    let machine =
        Machine::collect(&target.path.display().to_string(), target.len, &place, limit, &enforcement);
    let mut output = output_stream(options);
    if !options.quiet {
        print(&mut output, &report::header(&machine, &target.describe()))?;
    }

    let rounds = options.rounds as usize;
    let steps: usize =
        options.groups().iter().map(|(pattern, _)| options.methods(*pattern).len() * (rounds + 1)).sum();
    let mut comparison = Comparison {
        options,
        target,
        limit,
        enforcement,
        report: Report {
            machine,
            rows: Vec::new(),
            recommendation: String::new(),
            skipped: Vec::new(),
            warnings: Vec::new(),
            problems: Vec::new(),
        },
        progress: Progress::new(options.quiet, steps as u64),
        rounds: Vec::new(),
    };
    comparison.warn_about(&place);
    for (pattern, threads) in options.groups() {
        comparison.run_group(pattern, threads)?;
    }
    comparison.progress.end();
    if let Some(trace) = &options.record {
        comparison.record(trace)?;
    }
    let mut report = comparison.report;
    report.recommendation = report::recommendation(&report.rows);

    if !options.quiet {
        print(&mut output, &report::tables(&report))?;
    }
    if let Some(path) = &options.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &options.svg {
        svg::draw(path, &report)?;
    }
    for problem in &report.problems {
        eprintln!("mapwright compare: FAILED: {problem}");
    }
    Ok(report.problems.is_empty())
}

/// The table's stream: stdout, unless the JSON goes there.
fn output_stream(options: &Options) -> Box<dyn Write> {
    if options.json.as_deref() == Some(Path::new("-")) {
        Box::new(std::io::stderr())
    } else {
        Box::new(std::io::stdout())
    }
}

fn print(output: &mut dyn Write, text: &str) -> Result<()> {
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(|error| Failure::Message(format!("cannot print: {error}")))
}

fn write_json(path: &Path, report: &Report) -> Result<()> {
    let mut json = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::Message(format!("cannot write the report as JSON: {error}")))?;
    json.push('\n');
    if path == Path::new("-") {
        return print(&mut std::io::stdout(), &json);
    }
    fs::write(path, json).map_err(|error| Failure::io("write", path, error))
}

/// The file that is read, and the copy that is updated.
struct Target {
    path: PathBuf,
    len: u64,
    /// Removed when the comparison ends, however it ends.
    sample: Option<OwnFile>,
    copy: Option<OwnFile>,
}

impl Target {
    fn prepare(options: &Options) -> Result<Self> {
        let (path, sample) = match &options.file {
            Some(path) => (path.clone(), None),
            None => {
                if !options.quiet {
                    eprintln!("mapwright compare: making a sample of {}", size::show(options.sample_size));
                }
                let sample = sample::make(options.sample_size)?;
                (sample.path.clone(), Some(sample))
            }
        };
        let meta = fs::metadata(&path).map_err(|error| Failure::io("cannot be read", &path, error))?;
        let refuse = |why: &str| Err(Failure::Message(format!("{}: {why}", path.display())));
        if meta.is_dir() {
            return refuse("is a directory; name a file");
        }
        if !meta.is_file() {
            return refuse("is not a regular file; name one, since only those can be mapped by every method");
        }
        if meta.len() == 0 {
            return refuse("is empty; there is nothing to read");
        }
        if options.write && meta.len() < 8 {
            return refuse("is shorter than the 8 bytes that an update changes");
        }
        File::open(&path).map_err(|error| Failure::io("cannot be read", &path, error))?;
        // Absolute, so that the workers and the copy do not depend on the current directory.
        let path = fs::canonicalize(&path).map_err(|error| Failure::io("resolve", &path, error))?;
        let copy = options.write.then(|| sample::copy(&path)).transpose()?;
        Ok(Self { path, len: meta.len(), sample, copy })
    }

    fn describe(&self) -> String {
        let kind =
            if self.sample.is_some() { ", a sample of pseudo-random bytes, removed afterwards" } else { "" };
        format!("{} ({}{kind})", self.path.display(), size::show(self.len))
    }

    fn path_for(&self, pattern: Pattern) -> &Path {
        match (&self.copy, pattern) {
            (Some(copy), Pattern::Update) => &copy.path,
            _ => &self.path,
        }
    }
}

struct Comparison<'a> {
    options: &'a Options,
    target: Target,
    limit: u64,
    enforcement: Enforcement,
    report: Report,
    progress: Progress,
    /// Each pattern with the operations of its rounds.
    rounds: Vec<(Pattern, u64)>,
}

impl Comparison<'_> {
    fn warn_about(&mut self, place: &Place) {
        if place.is_memory() {
            let warning =
                format!("the file is on {}, which is memory: no disk is measured", place.file_system);
            self.report.warnings.push(warning);
        }
        if let Some(kib) = self.report.machine.device_read_ahead_kib.filter(|kib| *kib != 128) {
            self.report.warnings.push(format!(
                "the disk's read-ahead is {kib} KiB, not the usual 128: mmap without advice and read(2) depend on it \
                 (--device-read-ahead 128 sets it for the comparison)"
            ));
        }
        if self.limit >= self.target.len {
            self.report.warnings.push("the whole file fits the limit: nothing has to be evicted".to_owned());
        }
        if self.options.rounds < 5 {
            self.report.warnings.push(format!("only {} rounds: the medians are rough", self.options.rounds));
        }
    }

    fn record(&self, trace: &Path) -> Result<()> {
        let Target { path, len, .. } = &self.target;
        let count = record::record(trace, path, *len, &self.rounds, self.options.seed)?;
        if !self.options.quiet {
            eprintln!("{}: {count} references", trace.display());
        }
        Ok(())
    }

    /// One table: a pattern with a number of threads.
    fn run_group(&mut self, pattern: Pattern, threads: usize) -> Result<()> {
        self.progress.begin();
        let mut plan = Plan::new(self.options, pattern, self.target.len, self.limit);
        let methods = self.warm_up(pattern, threads, &mut plan)?;
        if !self.rounds.iter().any(|(known, _)| *known == pattern) {
            self.rounds.push((pattern, plan.ops));
        }
        let mut measured: Vec<(Method, Vec<Measured>)> =
            methods.iter().map(|method| (*method, Vec::new())).collect();
        for round in 0..self.options.rounds as usize {
            for turn in 0..methods.len() {
                let index = (turn + round) % methods.len();
                self.progress.doing(&format!("{} through {}", pattern.name(), methods[index].name()));
                let task = self.task(methods[index], pattern, threads, plan.ops, None);
                self.progress.did(1);
                // One that failed once is not asked again: its rounds would not be comparable.
                if measured[index].1.len() < round {
                    continue;
                }
                match self.run_one(&task) {
                    Ok(result) => measured[index].1.push(result),
                    Err(failure) => self.note_failure(failure, pattern)?,
                }
            }
        }
        measured.retain(|(_, rounds)| rounds.len() == self.options.rounds as usize);
        self.judge(pattern, threads, &plan, &measured);
        let group = Group {
            pattern,
            threads,
            limit: self.limit,
            enforced: self.enforcement.cgroup.is_ok(),
            batch: usize::from(self.options.batch),
        };
        self.report.rows.extend(measured.iter().map(|(method, rounds)| Row::of(&group, *method, rounds)));
        Ok(())
    }

    /// A round that does not count: it finds the methods that work here and how many operations a round should have.
    fn warm_up(&mut self, pattern: Pattern, threads: usize, plan: &mut Plan) -> Result<Vec<Method>> {
        let mut working = Vec::new();
        let mut speeds = Vec::new();
        for method in self.options.methods(pattern) {
            self.progress.doing(&format!("warm-up: {} through {}", pattern.name(), method.name()));
            let task = self.task(method, pattern, threads, plan.warm_up_ops, Some(plan.warm_up_seconds));
            match self.run_one(&task) {
                Ok(measured) => {
                    working.push(method);
                    speeds.push(measured.ops as f64 / measured.seconds.max(1e-9));
                    self.progress.did(1);
                }
                Err(Failure::Unsupported(why)) => {
                    self.report.skipped.push(Skipped { pattern, method, why });
                    self.progress.did(1 + u64::from(self.options.rounds));
                }
                Err(failure) => {
                    self.note_failure(failure, pattern)?;
                    self.progress.did(1 + u64::from(self.options.rounds));
                }
            }
        }
        plan.choose(&speeds);
        Ok(working)
    }

    fn task(
        &self,
        method: Method,
        pattern: Pattern,
        threads: usize,
        ops: u64,
        stop_after: Option<f64>,
    ) -> Task {
        Task {
            method,
            pattern,
            path: self.target.path_for(pattern).to_owned(),
            file_len: self.target.len,
            limit: self.limit,
            ops,
            seed: self.options.seed,
            threads,
            batch: usize::from(self.options.batch),
            stop_after,
        }
    }

    /// One cold round of one method; after an update the copy is checked and put back.
    fn run_one(&mut self, task: &Task) -> Result<Measured> {
        signals::check()?;
        let context = |failure| match failure {
            Failure::Message(why) => {
                Failure::Message(format!("{} through {}: {why}", task.pattern.name(), task.method.name()))
            }
            other => other,
        };
        let file = File::open(&task.path).map_err(|error| Failure::io("open", &task.path, error))?;
        sample::drop_cache(&file);
        let mut measured: Measured =
            child::run(worker::NAME, task, Some(task.limit), &self.enforcement).map_err(context)?;
        if measured.cached_pages_before.is_some_and(|pages| pages > 0) {
            self.warn_once(format!("{} could not be dropped from the page cache", task.path.display()));
        } else if measured.cached_pages_before.is_none() {
            self.warn_once(
                "the kernel does not tell whether the page cache was empty before a round".to_owned(),
            );
        }
        if task.pattern == Pattern::Update {
            let mut offsets = update_offsets(task.file_len, task.ops, task.seed);
            offsets.truncate(measured.ops as usize);
            let checked = sample::check_and_restore(&self.target.path, &task.path, &offsets);
            measured.checksum = checked.map_err(context)?;
        }
        Ok(measured)
    }

    /// A method that fails makes the run a failure, but the others are measured all the same.
    fn note_failure(&mut self, failure: Failure, pattern: Pattern) -> Result<()> {
        let why = match failure {
            Failure::Message(why) | Failure::Unsupported(why) => why,
            Failure::Interrupted => return Err(Failure::Interrupted),
        };
        self.report.problems.push(why);
        if pattern == Pattern::Update {
            // Nobody knows what the failed one left in the copy. The old one goes first: they have the same name.
            self.target.copy = None;
            self.target.copy = Some(sample::copy(&self.target.path)?);
        }
        Ok(())
    }

    fn warn_once(&mut self, warning: String) {
        if !self.report.warnings.contains(&warning) {
            self.report.warnings.push(warning);
        }
    }

    /// Whether all methods read the same bytes, and whether mapwright kept to its budget.
    fn judge(&mut self, pattern: Pattern, threads: usize, plan: &Plan, measured: &[(Method, Vec<Measured>)]) {
        if let Some(problem) = plan::checksum_problem(pattern, threads, measured) {
            self.report.problems.push(problem);
        }
        for (method, rounds) in measured.iter().filter(|(method, _)| method.is_mapwright()) {
            self.report.problems.extend(plan::budget_problem(pattern, *method, self.limit, rounds));
        }
        if pattern != Pattern::Sequential && plan.ops * PAGE < self.limit {
            self.warn_once(format!(
                "{}: the {} pages of a round fit the limit: what eviction costs is not in these rows (--ops {} would)",
                pattern.name(),
                plan.ops,
                self.limit / PAGE * 2
            ));
        }
    }
}
