//! Counts the lines of a file twice: through the map's slice, and inside a checked scope.
//!
//! Shows the two ways to treat a page that can't be read. A touch of the plain slice gets SIGBUS, as with mmap(2); inside
//! `checked` the page reads as zeros and the error comes back as a value, with the path and the offset in it.
//!
//! ```text
//! cargo run --release -p mapwright --example count_lines -- [--record TRACE] FILE
//! cargo run --release -p mapwright --example count_lines            # makes a small file of its own
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use mapwright::{Map, MapOptions, Pager, Strategy};

const USAGE: &str = "usage: count_lines [--record TRACE] [FILE]";
/// Memory for the pager, in bytes: far less than most files worth mapping.
const BUDGET: u64 = 16 << 20;
/// The same while what it misses is recorded, besides 1/1024 of the file for tables: all but what is touched in a row.
const RECORDING_BUDGET: u64 = 64 << 10;
/// Lines of the file that is made when none is given.
const SAMPLE_LINES: u64 = 100_000;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments == ["--help"] {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let is_recorded = arguments.len() > 1 && arguments[0] == "--record";
    let trace = is_recorded.then(|| arguments.drain(..2).nth(1)).flatten();
    let file = arguments.pop();
    let is_option = |file: &OsString| file.to_string_lossy().starts_with('-');
    if !arguments.is_empty() || file.as_ref().is_some_and(is_option) {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match run(trace.as_deref().map(Path::new), file.as_deref().map(Path::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("count_lines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(trace: Option<&Path>, file: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let sample = if file.is_none() { Some(sample()?) } else { None };
    let path = file.or(sample.as_ref().map(|sample| sample.path())).ok_or("no file")?;

    let pager = match &trace {
        Some(trace) => {
            let budget = RECORDING_BUDGET + std::fs::metadata(path)?.len() / 1024;
            Pager::builder().budget(budget).record(trace).build()?
        }
        None => Pager::builder().budget(BUDGET).build()?,
    };
    let strategy = if trace.is_some() { Strategy::Pager } else { Strategy::Auto };
    let map = MapOptions::new().pager(&pager).strategy(strategy).open(path)?;
    let transparent = count(&map);
    let checked = map.checked(count)?;
    println!("{transparent} lines ({})", map.strategy());
    if checked != transparent {
        return Err(format!("{checked} lines in a checked scope: the file changed meanwhile").into());
    }
    if sample.is_some() && transparent != SAMPLE_LINES {
        return Err(format!("the sample has {SAMPLE_LINES} lines").into());
    }
    report(&map, &pager);
    if trace.is_some() {
        println!("{} references recorded", pager.end_recording()?);
    }
    Ok(())
}

fn count(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn report(map: &Map, pager: &Pager) {
    let stats = pager.stats();
    println!(
        "{} of {} bytes in memory; {} faults, {} blocks read ({} bytes ahead of need), {} evicted",
        map.resident_bytes(),
        map.len(),
        stats.faults,
        stats.fills,
        stats.read_ahead_bytes,
        stats.evictions
    );
}

/// A file that is removed when it is dropped.
fn sample() -> Result<tempfile::NamedTempFile, std::io::Error> {
    let file = tempfile::NamedTempFile::new()?;
    let mut writer = std::io::BufWriter::new(&file);
    for line in 0..SAMPLE_LINES {
        writeln!(writer, "line {line}")?;
    }
    writer.flush()?;
    drop(writer);
    Ok(file)
}
