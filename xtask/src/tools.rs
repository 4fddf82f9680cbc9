//! The command beside the tools that do the same: `cargo xtask tools [--mib N] [--rounds N]`.
//!
//! `mapwright cache` beside fincore (util-linux) on a file that is in the page cache, and `mapwright map` beside `pmap -X` (procps)
//! on this very process; in turns, each first in every second round. The ratio is the median over all rounds. Each tool is a
//! process: on a small file, or a process with few mappings, what is compared is how long it takes to start.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::files;

/// A file that is removed in the end.
struct Sample(PathBuf);

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Two commands for the same, and how many times the other's time ours may take.
struct Pair {
    ours: Vec<OsString>,
    other: Vec<OsString>,
    goal: f64,
}

/// Measures, and fails if a goal is missed by the median.
pub fn run(arguments: &[&str]) -> ExitCode {
    let Some((mib, rounds)) = parse(arguments) else {
        eprintln!("usage: cargo xtask tools [--mib N] [--rounds N]: a file of N MiB (1024), N rounds (30)");
        return ExitCode::from(2);
    };
    match measure(mib, rounds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[&str]) -> Option<(u64, usize)> {
    let (mut mib, mut rounds) = (1024, 30);
    for pair in arguments.chunks(2) {
        match pair {
            ["--mib", count] => mib = count.parse().ok().filter(|mib| *mib > 0)?,
            ["--rounds", count] => rounds = count.parse().ok().filter(|rounds| *rounds > 0)?,
            _ => return None,
        }
    }
    Some((mib, rounds))
}

fn measure(mib: u64, rounds: usize) -> std::io::Result<bool> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| files::root().join("target"), PathBuf::from);
    build()?;
    let program = target.join("release").join("mapwright");
    let sample = sample(&target, mib)?;
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let with = |mut list: Vec<OsString>, last: &Path| {
        list.push(last.into());
        list
    };
    let ours = |first: &str| vec![program.clone().into_os_string(), first.into()];
    let process = std::process::id().to_string();
    let pairs = [
        Pair { ours: with(ours("cache"), &sample.0), other: with(words(&["fincore"]), &sample.0), goal: 1.0 },
        Pair {
            ours: with(ours("map"), Path::new(&process)),
            other: words(&["pmap", "-X", &process]),
            goal: 1.2,
        },
    ];
    let mut all = true;
    println!("{:<24}{:>12}{:>12}{:>9}{:>9}", "", "ours, ms", "other, ms", "ratio", "goal");
    for pair in &pairs {
        all &= pair.measure(rounds)?;
    }
    Ok(all)
}

fn build() -> std::io::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--package", "mapwright-cli"];
    let built = Command::new(cargo).args(arguments).current_dir(files::root()).status()?;
    if built.success() { Ok(()) } else { Err(std::io::Error::other("mapwright could not be built")) }
}

/// A file that was written just now.
fn sample(target: &Path, mib: u64) -> std::io::Result<Sample> {
    let sample = Sample(target.join(format!("tools-{}", std::process::id())));
    let mut file = File::options().write(true).create_new(true).open(&sample.0)?;
    let chunk = vec![7_u8; 1 << 20];
    (0..mib).try_for_each(|_| file.write_all(&chunk))?;
    file.sync_all()?;
    Ok(sample)
}

impl Pair {
    fn measure(&self, rounds: usize) -> std::io::Result<bool> {
        let name = format!("{} / {}", self.ours[1].display(), self.other[0].display());
        if time(&self.other).is_err() {
            println!("{name:<24}left out: {} is not installed", self.other[0].display());
            return Ok(true);
        }
        time(&self.ours)?;
        let mut of: [Vec<f64>; 3] = Default::default();
        for round in 0..rounds {
            let (ours, other) = if round % 2 == 0 {
                let ours = time(&self.ours)?;
                (ours, time(&self.other)?)
            } else {
                let other = time(&self.other)?;
                (time(&self.ours)?, other)
            };
            let [ours, other] = [ours, other].map(|time| time.as_secs_f64() * 1e3);
            of[0].push(ours);
            of[1].push(other);
            of[2].push(ours / other);
        }
        let [ours, other, ratio] = of.map(median);
        println!("{name:<24}{ours:>12.2}{other:>12.2}{ratio:>9.3}{:>9.2}", self.goal);
        Ok(ratio <= self.goal)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How long a command takes, from its start to the end of its output.
fn time(words: &[OsString]) -> std::io::Result<Duration> {
    let started = Instant::now();
    let mut command = Command::new(&words[0]);
    let mut child = command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut text = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_end(&mut text)?;
    }
    let status = child.wait()?;
    let taken = started.elapsed();
    if status.success() && !text.is_empty() {
        return Ok(taken);
    }
    Err(std::io::Error::other(format!("{}: {status}", words[0].display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_numbers_above_zero() {
        assert_eq!(parse(&[]), Some((1024, 30)));
        assert_eq!(parse(&["--rounds", "5", "--mib", "16"]), Some((16, 5)));
        for wrong in [&["--mib"][..], &["--mib", "0"], &["--rounds", "x"], &["--what", "1"]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_command_that_fails_or_says_nothing_is_not_timed() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(time(&words(&["echo", "x"])).is_ok());
        assert!(time(&words(&["true"])).is_err() && time(&words(&["sh", "-c", "echo x; exit 3"])).is_err());
        assert!(time(&words(&["no-such-tool"])).is_err());
        assert!(median(vec![3.0, 1.0, 2.0]) == 2.0);
    }
}
