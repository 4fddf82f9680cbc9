//! Tests under a sanitizer of the compiler: `cargo xtask sanitize [address]`.
//!
//! The runtime libraries are part of the stable toolchain; the flag is not, which is why the compiler is told to take it
//! (RUSTC_BOOTSTRAP). The standard library itself is as it was built: errors inside it are not seen.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::files;

/// What is run under a sanitizer.
struct Run {
    sanitizer: &'static str,
    flags: &'static str,
    /// For the runtime: signals are the program's own.
    options: (&'static str, &'static str),
    /// What of `cargo test`, one after the other.
    tests: &'static [&'static str],
}

const RUNS: [Run; 1] = [Run {
    sanitizer: "address",
    flags: "-Zsanitizer=address",
    options: ("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0:detect_leaks=0:allocator_may_return_null=1"),
    tests: &["-p mapwright-sys --lib"],
}];

/// Runs the sanitizers that are named, or all.
pub fn run(names: &[&str]) -> ExitCode {
    if let Some(unknown) = names.iter().find(|name| RUNS.iter().all(|run| run.sanitizer != **name)) {
        eprintln!("xtask: there is no sanitizer {unknown:?} here: address");
        return ExitCode::from(2);
    }
    let Some(host) = host() else {
        eprintln!("xtask: `rustc -vV` does not tell the host's name");
        return ExitCode::FAILURE;
    };
    let chosen = RUNS.iter().filter(|run| names.is_empty() || names.contains(&run.sanitizer));
    let failed = chosen.filter(|run| !run.passes(&host, &files::root())).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Run {
    fn passes(&self, host: &str, root: &Path) -> bool {
        let mut all = true;
        for tests in self.tests {
            println!("=== {} sanitizer: cargo test {tests} ===", self.sanitizer);
            all &= self.command(host, tests).current_dir(root).status().is_ok_and(|status| status.success());
        }
        all
    }

    /// For a named target, so that build scripts and macros are built without the sanitizer.
    fn command(&self, host: &str, tests: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let folder = format!("sanitize-{}", self.sanitizer);
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new("target").join(&folder), |target| Path::new(&target).join(&folder));
        command.args(["test", "--target", host, "--no-fail-fast"]).args(tests.split(' '));
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", self.flags).env("CARGO_TARGET_DIR", target);
        command.env(self.options.0, self.options.1);
        command
    }
}

/// The name of the machine that this runs on, as the compiler has it.
fn host() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_a_name() {
        assert!(host().is_some_and(|host| host.contains("-linux-")));
    }

    #[test]
    fn tests_that_are_named_exist() {
        for run in &RUNS {
            for tests in run.tests {
                let words: Vec<&str> = tests.split(' ').collect();
                for (at, _) in words.iter().enumerate().filter(|(_, word)| **word == "--test") {
                    let crates = files::root().join("crates").join(words[1]).join("tests");
                    let name = words[at + 1];
                    let there = crates.join(format!("{name}.rs")).exists() || crates.join(name).exists();
                    assert!(there, "{name}");
                }
            }
        }
    }

    #[test]
    fn the_sanitizer_is_for_the_target_alone() {
        let command = RUNS[0].command("x", "-p mapwright-sys --lib");
        let arguments: Vec<_> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        assert_eq!(arguments, ["test", "--target", "x", "--no-fail-fast", "-p", "mapwright-sys", "--lib"]);
    }
}
