//! Builds the benchmarks as they are released, and runs them.

use std::process::{Command, ExitCode};

use crate::files;

/// What one of the rows runs, which must lie beside the program.
const COMMAND: [&str; 5] = ["build", "--quiet", "--release", "--package", "mapwright-cli"];

/// Hands everything to the program, but `--features LIST` in front, which is for cargo.
pub fn run(arguments: &[&str]) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let cargo = |arguments: &[&str]| Command::new(&cargo).args(arguments).current_dir(files::root()).status();
    let built = cargo(&COMMAND);
    let status = if built.as_ref().is_ok_and(|status| status.success()) {
        cargo(&cargo_arguments(arguments))
    } else {
        built
    };
    match status {
        // The program's own codes are small; none is a signal's.
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: cargo could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn cargo_arguments<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let (features, rest) = match arguments {
        ["--features", list, rest @ ..] => (vec!["--features", *list], rest),
        rest => (Vec::new(), rest),
    };
    let run = ["run", "--quiet", "--release", "--package", "mapwright-bench"];
    run.into_iter().chain(features).chain(["--"]).chain(rest.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_for_cargo_and_the_rest_is_not() {
        let line = cargo_arguments(&["--features", "peers", "--rows", "scan"]).join(" ");
        assert!(line.ends_with("--package mapwright-bench --features peers -- --rows scan"), "{line}");
        assert!(cargo_arguments(&["--quick"]).join(" ").ends_with("mapwright-bench -- --quick"));
    }
}
