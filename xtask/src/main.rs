//! Maintenance commands of the workspace: `cargo xtask help`.
//!
//! `ci` runs everything that must hold (`ci.rs` lists it); `tidy` and `links` are two of its steps, by themselves. `bench`
//! builds and runs the benchmarks, `crash` the power-failure simulator. All of them need nothing but a Rust toolchain.

mod bench;
mod ci;
mod docs;
mod files;
mod install;
mod links;
mod sanitize;
mod source;
mod tidy;
mod tools;

use std::process::ExitCode;

const HELP: &str = "\
Maintenance commands of the mapwright workspace

usage: cargo xtask COMMAND

  ci      run every check: formatting, lints, tests, documentation, stress, smoke runs
  tidy    check the rules of the source that no compiler knows
  links   check the links between the documents
  policies [--trace FILE]...   print docs/policies.md: eviction and read-ahead against the textbook's
  man FOLDER   write the man pages of the command
  install [--prefix DIR] [--destdir DIR] [--profile NAME]   install the command with its pages and completions, and
          the C library with its header and pkg-config file: below /usr/local, built for release, unless told
  header  write the header of the C library anew, from its source
  crash [--hours N] [--seed N]   power failures against the protocol of commits, for an hour or as long as told
  sanitize [address|thread]...   tests of the unsafe code under the compiler's sanitizers, on the stable toolchain
  tools [--mib N] [--rounds N]   the command's time beside fincore's and pmap's
  bench   measure, and write docs/benchmarks.md: see `cargo xtask bench --help`;
          `--features LIST`, first, adds databases: peers, peers-rocksdb
  help    print this";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["ci"] => ci::run(),
        ["tidy"] => report(tidy::check),
        ["links"] => report(links::check),
        ["policies", ..] => program("--release", "mapwright-policies", "mapwright-policies", &arguments[1..]),
        ["man", folder] => program("--release", "mapwright-cli", "mapwright", &["man-pages", folder]),
        ["install", ref rest @ ..] => install::run(rest),
        ["header"] => header(),
        ["crash", ..] => program("--profile=sim", "mapwright-sim", "mapwright-crash", &arguments[1..]),
        ["sanitize", ref rest @ ..] => sanitize::run(rest),
        ["tools", ref rest @ ..] => tools::run(rest),
        ["bench", ref rest @ ..] => bench::run(rest),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

/// Runs a program of the workspace: this one has no dependencies.
fn program(profile: &str, package: &str, name: &str, arguments: &[&str]) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = ["run", "--quiet", profile, "--package", package, "--bin", name, "--"];
    match std::process::Command::new(cargo).args(run).args(arguments).status() {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code as u8)),
        Err(error) => {
            eprintln!("xtask: cargo could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The test that compares the header writes it, when told.
fn header() -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["test", "--quiet", "-p", "mapwright-c", "--test", "header"];
    match std::process::Command::new(cargo).args(arguments).env("MAPWRIGHT_WRITE_HEADER", "1").status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cargo could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what a check found wrong.
fn report(check: impl Fn(&[files::SourceFile]) -> Vec<String>) -> ExitCode {
    let files = match files::read_all(&files::root()) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("xtask: {error}");
            return ExitCode::FAILURE;
        }
    };
    let found = check(&files);
    found.iter().for_each(|line| println!("{line}"));
    println!("{} files, {} violations", files.len(), found.len());
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
