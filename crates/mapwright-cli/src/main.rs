//! The `mapwright` command: `compare` measures every way to read a file on this machine, `doctor` says what the machine
//! allows. Exit codes: 0 success, 1 failure, 2 bad usage, 130 interrupted.

mod compare;
mod doctor;
mod methods;
mod probe;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use mapwright_measure::failure::{Failure, Result};

/// Memory-mapped files in user space: compare ways to read a file, and see what this machine allows
#[derive(Parser)]
#[command(name = "mapwright", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compare(Box<compare::Options>),
    Doctor(doctor::Options),
    /// One round of one method (started by compare)
    #[command(hide = true)]
    CompareWorker,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("mapwright: {failure}");
            ExitCode::from(if matches!(failure, Failure::Interrupted) { 130 } else { 1 })
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Compare(options) => {
            if let Err(why) = options.check() {
                let mut command = Arguments::command();
                command.build();
                let compare = command.find_subcommand_mut("compare");
                compare
                    .map_or_else(Arguments::command, |compare| compare.clone())
                    .error(ErrorKind::ArgumentConflict, why)
                    .exit();
            }
            compare::compare(&options)
        }
        Command::Doctor(options) => doctor::doctor(&options).map(|()| true),
        Command::CompareWorker => compare::worker::run().map(|()| true),
    }
}
