//! Power failures for as long as one likes: `cargo xtask crash --hours N`.
//!
//! Exit codes: 0 nothing found, 1 a loss was found (its seed is printed), 2 bad usage.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mapwright_sim::power::{self, Tally};

const USAGE: &str = "usage: mapwright-crash [--hours N] [--seed N]\n\n  --hours N  how long, a number such as 0.5; 1 if not given\n  --seed N   the first seed; with no --hours, that one only";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((hours, seed)) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let until = Instant::now() + hours.unwrap_or(Duration::from_secs(if seed.is_some() { 0 } else { 3600 }));
    let mut tally = Tally::default();
    let mut told = Instant::now();
    for seed in seed.unwrap_or(0).. {
        match power::run(seed) {
            Ok(one) => tally.add(&one),
            Err(why) => {
                eprintln!("{why}\nagain: cargo xtask crash --seed {seed}");
                return ExitCode::FAILURE;
            }
        }
        let now = Instant::now();
        if now >= until {
            println!("seeds to {seed}: {tally:?}, nothing lost");
            return ExitCode::SUCCESS;
        }
        if now - told > Duration::from_secs(60) {
            told = now;
            println!("seeds to {seed}: {tally:?}");
        }
    }
    ExitCode::SUCCESS
}

/// How long, and from which seed; none for what can't be read.
fn parse(arguments: &[String]) -> Option<(Option<Duration>, Option<u64>)> {
    let (mut hours, mut seed) = (None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = rest.next()?;
        match argument.as_str() {
            "--hours" => {
                let number: f64 = value.parse().ok()?;
                hours = Some(Duration::try_from_secs_f64(number * 3600.0).ok()?);
            }
            "--seed" => seed = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some((hours, seed))
}
