//! Measures mapwright against the kernel's mmap(2), read(2), io_uring and embedded databases: `cargo xtask bench`.
//!
//! One program runs every row. A row is one or more comparisons (`case`), made by `rows` from the files in `materials`; `run`
//! lets the contenders of a comparison take turns, each in a child process (`work`); `report` and `plot` write what came out.
//! What must go away afterwards is held by guards: files, memory groups, the device's read-ahead, children. Exit codes: 0
//! success, 1 failure (also: contenders that disagree), 2 bad usage, 130 interrupted. A goal that is missed is no failure.

mod case;
mod how;
mod materials;
mod plot;
#[allow(unsafe_code)]
mod raw;
mod report;
mod rows;
mod run;
mod task;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};
use mapwright_measure::child::Enforcement;
use mapwright_measure::device::{Place, ReadAhead};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::machine::{self, Machine};
use mapwright_measure::{sample, signals, size};

use materials::Materials;
use report::Report;
use rows::{Row, Sizes};

/// Measure mapwright against other ways to reach the bytes of a file, and write the page of benchmarks
#[derive(Parser)]
#[command(name = "mapwright-bench", version)]
struct Options {
    /// Rows to run [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    rows: Vec<Row>,
    /// Size of the file that most rows read [default: 4GiB, or 16MiB with --quick]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    file_size: Option<u64>,
    /// Rounds to take the medians of [default: 5, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// A smoke run: tiny sizes, nothing is written unless --out or --json asks for it
    #[arg(long)]
    quick: bool,
    /// Folder for benchmarks.md and its plots [default: docs, if all rows run]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write everything that was measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for the files that are read, on a disk [default: that of this program]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The disk's read-ahead for the run, where it may be set; it is put back afterwards
    #[arg(long, value_name = "KIB", default_value_t = 128)]
    device_read_ahead: u64,
    #[command(subcommand)]
    command: Option<Worker>,
}

#[derive(Subcommand)]
enum Worker {
    /// One round of one contender (started by the program itself)
    #[command(hide = true)]
    Worker,
}

/// The smallest file that every row can be made from.
const LEAST_FILE: u64 = 16 << 20;

impl Options {
    fn rows(&self) -> Vec<Row> {
        let wanted = |row: &Row| self.rows.is_empty() || self.rows.contains(row);
        Row::value_variants().iter().copied().filter(wanted).collect()
    }

    fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 1 } else { 5 }, usize::from)
    }

    fn sizes(&self) -> Result<Sizes> {
        let file = self.file_size.unwrap_or(if self.quick { LEAST_FILE } else { 4 << 30 });
        if file < LEAST_FILE {
            return Err(Failure::Message(format!("--file-size is below {}", size::show(LEAST_FILE))));
        }
        Ok(Sizes::new(file, self.quick))
    }

    /// Where the page goes. A part of the rows does not replace the page of all of them unasked.
    fn out(&self) -> Option<PathBuf> {
        let is_whole = self.rows.is_empty() && !self.quick;
        self.out.clone().or_else(|| is_whole.then(|| PathBuf::from("docs")))
    }

    /// How to repeat the run: without folders, which are of one machine.
    fn command(&self, sizes: &Sizes) -> String {
        let mut features: Vec<&str> = Vec::new();
        for (name, is_on) in [
            ("peers-lmdb", cfg!(feature = "peers-lmdb")),
            ("peers-redb", cfg!(feature = "peers-redb")),
            ("peers-sqlite", cfg!(feature = "peers-sqlite")),
            ("peers-rocksdb", cfg!(feature = "peers-rocksdb")),
        ] {
            features.extend(is_on.then_some(name));
        }
        let mut command = "cargo xtask bench".to_owned();
        if !features.is_empty() {
            command += &format!(" --features {}", features.join(","));
        }
        if !self.rows.is_empty() {
            let names: Vec<String> = self
                .rows()
                .iter()
                .filter_map(|row| Some(row.to_possible_value()?.get_name().to_owned()))
                .collect();
            command += &format!(" --rows {}", names.join(","));
        }
        let quick = if self.quick { " --quick" } else { "" };
        let (file, rounds) = (size::show(sizes.file).replace(' ', ""), self.rounds());
        format!(
            "{command}{quick} --file-size {file} --rounds {rounds} --device-read-ahead {}",
            self.device_read_ahead
        )
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.command {
        Some(Worker::Worker) => work::run().map(|()| true),
        None => bench(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("mapwright-bench: {failure}");
            ExitCode::from(if matches!(failure, Failure::Interrupted) { 130 } else { 1 })
        }
    }
}

/// The whole run. Returns whether all contenders did the same work.
fn bench(options: &Options) -> Result<bool> {
    signals::install()?;
    let started = Instant::now();
    let (sizes, rows) = (options.sizes()?, options.rows());
    let dir = folder(options)?;
    let place = Place::of(&dir)?;
    let mut warnings = Vec::new();
    let _read_ahead = set_read_ahead(options, &place, &mut warnings);
    if options.rounds() < 5 {
        warnings.push(format!("only {} round(s): the medians are rough", options.rounds()));
    }
    let enforcement = Enforcement::find(sizes.limit, work::NAME)?;
    let machine = Machine::collect("", sizes.file, &place, sizes.limit, &enforcement);
    check_disk(&dir, sizes.disk(&rows))?;
    let available = machine::memory_bytes("MemAvailable").unwrap_or(0);
    sample::touch_memory(sizes.memory(&rows).min(available / 4 * 3));

    let mut materials = Materials::new(dir);
    let mut outcomes = Vec::new();
    for row in &rows {
        for case in rows::cases(*row, &sizes, &mut materials)? {
            let before = Instant::now();
            eprint!("{}: {} contenders … ", case.title, case.entries.len());
            let outcome = run::run(case, options.rounds(), &enforcement)?;
            eprintln!("{:.1} s", before.elapsed().as_secs_f64());
            outcomes.push(outcome);
        }
        materials.clear();
    }
    let report = Report {
        machine,
        command: options.command(&sizes),
        versions: report::versions(),
        rounds: options.rounds(),
        file_bytes: sizes.file,
        disk_bytes: sizes.disk(&rows),
        seconds: started.elapsed().as_secs_f64(),
        warnings,
        outcomes,
    };
    if let Some(out) = options.out() {
        report::write(&out, &report)?;
    }
    if let Some(path) = &options.json {
        run::write_json(path, &report)?;
    }
    let problems: Vec<&String> = report.outcomes.iter().flat_map(|outcome| &outcome.problems).collect();
    problems.iter().for_each(|problem| eprintln!("mapwright-bench: FAILED: {problem}"));
    Ok(problems.is_empty())
}

fn folder(options: &Options) -> Result<PathBuf> {
    let own = || std::env::current_exe().ok()?.parent().map(Path::to_owned);
    let dir = options.dir.clone().or_else(own);
    let dir =
        dir.ok_or_else(|| Failure::Message("no folder for the files; name one with --dir".to_owned()))?;
    // The children need not share our current directory.
    std::fs::canonicalize(&dir).map_err(|error| Failure::io("resolve", &dir, error))
}

/// The usual setting, unless the machine does not let us: then its own is stated.
fn set_read_ahead(options: &Options, place: &Place, warnings: &mut Vec<String>) -> Option<ReadAhead> {
    match ReadAhead::set(place, options.device_read_ahead) {
        Ok(guard) => Some(guard),
        Err(failure) => {
            warnings.push(format!(
                "the device's read-ahead could not be set to {} KiB ({failure}): memmap2 without advice and read(2) depend on it",
                options.device_read_ahead
            ));
            None
        }
    }
}

fn check_disk(dir: &Path, needed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(|error| Failure::io("statvfs", dir, error))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        return Err(Failure::Message(format!(
            "{} has {} free and the rows need {}: name another folder with --dir, or make --file-size smaller",
            dir.display(),
            size::show(free),
            size::show(needed)
        )));
    }
    Ok(())
}
