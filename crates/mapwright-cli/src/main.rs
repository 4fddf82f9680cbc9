//! The `mapwright` command: `compare` measures every way to read a file on this machine, `doctor` says what the machine
//! allows, `cache` what the page cache holds, `map` what a process maps, `explain` what one address of it is, `tour` what
//! memory-mapped files do, `serve` serves one page cache to many processes, `run` runs a program on a pager, `recover` and `dump` are for the journals of atomic commit. Exit codes: 0 success,
//! 1 failure, 2 bad usage, 130 interrupted.

mod cache;
mod compare;
mod doctor;
mod explain;
mod journal;
mod map;
mod methods;
mod pages;
mod probe;
mod process;
mod run;
mod serve;
mod text;
mod tour;
mod wait;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use mapwright_measure::failure::{Failure, Result};

/// Memory-mapped files in user space: measure them, and see what is cached, what is mapped, and what this machine allows
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
    Cache(Box<cache::Options>),
    Map(Box<map::Options>),
    Explain(explain::Options),
    Serve(serve::Options),
    Run(run::Options),
    Tour(tour::Options),
    Recover(journal::Recover),
    Dump(journal::Dump),
    Completions(pages::Completions),
    #[command(hide = true)]
    ManPages(pages::ManPages),
    /// One round of one method (started by compare)
    #[command(hide = true)]
    CompareWorker,
    /// The other process of the tour (started by tour)
    #[command(hide = true)]
    TourWorker {
        /// The file to map
        file: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("mapwright: {failure}");
            ExitCode::from(if matches!(failure, Failure::Interrupted) { 130 } else { 1 })
        }
    }
}

/// The exit code of a command.
fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Run(options) => run::run(&options),
        other => succeeds(other).map(|success| u8::from(!success)),
    }
}

/// Whether a command that is no program of somebody else's succeeds.
fn succeeds(command: Command) -> Result<bool> {
    match command {
        Command::Compare(options) => {
            options.check().unwrap_or_else(|why| bad_usage("compare", &why));
            compare::compare(&options)
        }
        Command::Doctor(options) => doctor::doctor(&options).map(|()| true),
        Command::Cache(options) => {
            options.check().unwrap_or_else(|why| bad_usage("cache", &why));
            cache::cache(&options)
        }
        Command::Map(options) => {
            options.check().unwrap_or_else(|why| bad_usage("map", &why));
            map::map(&options)
        }
        Command::Explain(options) => explain::explain(&options).map(|()| true),
        Command::Serve(options) => serve::serve(&options).map(|()| true),
        Command::Run(options) => run::run(&options).map(|code| code == 0),
        Command::Tour(options) => tour::tour(&options),
        Command::Recover(options) => journal::run_recover(&options),
        Command::Dump(options) => journal::run_dump(&options),
        Command::Completions(options) => pages::completions(&options, Arguments::command()).map(|()| true),
        Command::ManPages(options) => pages::man_pages(&options, Arguments::command()).map(|()| true),
        Command::TourWorker { file } => tour::other::run(&file).map(|()| true),
        Command::CompareWorker => compare::worker::run().map(|()| true),
    }
}

/// Ends as clap itself does: the reason, how the command is called, exit code 2.
fn bad_usage(name: &str, why: &str) -> ! {
    let mut command = Arguments::command();
    command.build();
    let found = command.find_subcommand_mut(name).map(|found| found.clone());
    found.unwrap_or_else(Arguments::command).error(ErrorKind::ArgumentConflict, why).exit()
}
