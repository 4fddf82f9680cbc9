//! Sorts a file of `u64` in place, through `&mut [u64]`, with less memory than the file is long.
//!
//! Shows a writable map as a typed slice (by zerocopy), a budget smaller than the file, and what `flush` and `close` are
//! for: whatever the budget forces out is written back on the way, and the rest when it is told to. The numbers are in the
//! machine's byte order. A crash in the middle leaves a mixture of sorted and unsorted: sort a copy if that matters.
//!
//! ```text
//! cargo run --release -p mapwright --example sort_in_place -- [--budget-mib N] [--record TRACE] FILE
//! cargo run --release -p mapwright --example sort_in_place -- [--budget-mib N] [--mib N]    # makes a file of its own
//! ```

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use mapwright::{MapMut, MapOptions, Pager, Strategy};
use zerocopy::FromBytes;

const USAGE: &str = "usage: sort_in_place [--budget-mib N] [--record TRACE] [--mib N | FILE]";

struct Arguments {
    file: Option<PathBuf>,
    /// Size of the file that is made when none is given.
    bytes: u64,
    budget: u64,
    /// Where to record what is missed.
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    if std::env::args_os().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sort_in_place: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let builder = Pager::builder().budget(arguments.budget);
    let (builder, strategy) = match &arguments.trace {
        Some(trace) => (builder.record(trace), Strategy::Pager),
        None => (builder, Strategy::Auto),
    };
    let pager = builder.build()?;
    let options = MapOptions::new().pager(&pager).strategy(strategy);
    match &arguments.file {
        Some(path) => sort(path, &options, &pager)?,
        None => {
            let sample = tempfile::NamedTempFile::new()?;
            fill(sample.as_file(), arguments.bytes)?;
            sort(sample.path(), &options, &pager)?;
        }
    }
    if arguments.trace.is_some() {
        println!("{} references recorded", pager.end_recording()?);
    }
    Ok(())
}

fn sort(path: &Path, options: &MapOptions, pager: &Pager) -> Result<(), Box<dyn Error>> {
    let mut map = options.open_mut(path)?;
    let before = Digest::of(numbers(&mut map)?);
    let started = Instant::now();
    numbers(&mut map)?.sort_unstable();
    let sorted = started.elapsed();
    map.flush()?; // durable from here on
    let after = Digest::of(numbers(&mut map)?);
    if !after.is_sorted || (after.sum, after.xor) != (before.sum, before.xor) {
        return Err("the result is not the sorted input".into());
    }
    let stats = pager.stats();
    println!(
        "sorted {} numbers in {sorted:.1?} with {} MiB of memory for {} MiB of file ({})",
        map.len() / 8,
        pager.budget() >> 20,
        map.len() >> 20,
        map.strategy()
    );
    println!(
        "{} faults, {} blocks read, {} evicted, {} bytes written back",
        stats.faults, stats.fills, stats.evictions, stats.written_back_bytes
    );
    Ok(map.close()?)
}

/// The file as numbers. The map starts at a page, so only the length can be wrong.
fn numbers(map: &mut MapMut) -> Result<&mut [u64], String> {
    let len = map.len();
    <[u64]>::mut_from_bytes(map).map_err(|_| format!("{len} bytes are not a whole number of u64"))
}

/// Enough to tell whether a file holds the same numbers as before.
struct Digest {
    sum: u64,
    xor: u64,
    is_sorted: bool,
}

impl Digest {
    fn of(numbers: &[u64]) -> Self {
        let mut digest = Self { sum: 0, xor: 0, is_sorted: true };
        let mut previous = 0;
        for &number in numbers {
            digest.sum = digest.sum.wrapping_add(number);
            digest.xor ^= number;
            digest.is_sorted &= previous <= number;
            previous = number;
        }
        digest
    }
}

/// Fills a file with numbers in no order (xorshift64: Marsaglia, 2003).
fn fill(file: &std::fs::File, bytes: u64) -> std::io::Result<()> {
    let mut writer = std::io::BufWriter::new(file);
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        writer.write_all(&number.to_ne_bytes())?;
    }
    writer.flush()
}

/// `None` if they are wrong.
fn arguments() -> Option<Arguments> {
    let mut parsed = Arguments { file: None, bytes: 64 << 20, budget: 16 << 20, trace: None };
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut mib = || {
            let value = arguments.next().and_then(|value| value.to_str()?.parse::<u64>().ok());
            value.filter(|mib| (1..1 << 20).contains(mib)).map(|mib| mib << 20)
        };
        match argument.to_str() {
            Some("--mib") => parsed.bytes = mib()?,
            Some("--budget-mib") => parsed.budget = mib()?,
            Some("--record") => parsed.trace = Some(arguments.next()?.into()),
            Some(option) if option.starts_with('-') => return None,
            _ if parsed.file.is_none() => parsed.file = Some(argument.into()),
            _ => return None,
        }
    }
    Some(parsed)
}
