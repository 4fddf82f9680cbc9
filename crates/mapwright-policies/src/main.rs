//! Prints `docs/policies.md`: `cargo xtask policies [--trace FILE]...`.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Compares mapwright's eviction and read-ahead with the textbook's, on workloads made from a seed and on recorded traces.
Prints docs/policies.md.

usage: cargo xtask policies [--trace FILE]...

  --trace FILE   also replay a trace that PagerBuilder::record or mapwright compare --record has written";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let pairs = arguments.chunks(2);
    let traces: Option<Vec<PathBuf>> = pairs
        .map(|pair| matches!(pair, [flag, _] if flag == "--trace").then(|| PathBuf::from(&pair[1])))
        .collect();
    let Some(traces) = traces else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match print(&traces) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("policies: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All traces are read before anything is computed or printed, so that a bad one is told at once.
fn print(traces: &[PathBuf]) -> Result<(), mapwright::Error> {
    let read = |path: &PathBuf| report::Recorded::read(Path::new(path));
    let traces = traces.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    print!("{}", report::document(&traces));
    Ok(())
}
