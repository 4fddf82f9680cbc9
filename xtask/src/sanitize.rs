//! Tests under the sanitizers of the compiler: `cargo xtask sanitize [address|thread]...`.
//!
//! The runtime libraries are part of the stable toolchain; the flags are not, which is why the compiler is told to take them
//! (RUSTC_BOOTSTRAP). Under the address sanitizer the standard library is as it was built: errors inside it are not seen. The thread
//! sanitizer would take all that the library synchronizes by for races, so the library is built anew with it, from its sources.

use std::path::Path;
use std::process::{Command, ExitCode, Output};

use crate::files;

/// What is run under a sanitizer.
struct Run {
    sanitizer: &'static str,
    flags: &'static str,
    /// The standard library is built anew with it.
    builds_std: bool,
    /// For the runtime: signals are the program's own, children of fork go on.
    options: (&'static str, &'static str),
    canaries: &'static [Canary],
    /// What of `cargo test`, one after the other.
    tests: &'static [&'static str],
}

/// A program of `crates/mapwright-sys/examples`, and whether the sanitizer must find something in it.
struct Canary {
    program: &'static str,
    argument: &'static str,
    is_found: bool,
}

impl Canary {
    const fn planted(argument: &'static str, is_found: bool) -> Self {
        Self { program: "planted_races", argument, is_found }
    }
}

/// What a report begins with.
const REPORT: &str = "WARNING: ThreadSanitizer: data race";

const RUNS: [Run; 2] = [
    Run {
        sanitizer: "address",
        flags: "-Zsanitizer=address",
        builds_std: false,
        options: ("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0:detect_leaks=0:allocator_may_return_null=1"),
        canaries: &[],
        tests: &["-p mapwright-sys --lib"],
    },
    Run {
        sanitizer: "thread",
        // The C library's calls, which the sanitizer watches, rather than system calls of our own: it has to know which mappings end.
        flags: "-Zsanitizer=thread --cfg=rustix_use_libc",
        builds_std: true,
        options: ("TSAN_OPTIONS", "die_after_fork=0:handle_segv=0:handle_sigbus=0"),
        canaries: &[
            Canary::planted("race", true),
            Canary::planted("relaxed", true),
            Canary::planted("ordered", false),
            Canary::planted("std", false),
            Canary::planted("reused", false),
        ],
        tests: &[
            // mlock(2) does nothing under it.
            "-p mapwright-sys --lib -- --skip locked_pages_are_locked_and_no_others",
            "-p mapwright --lib",
            // Its children are forked where no other thread holds a lock of the sanitizer's.
            "-p mapwright --test sync -- --test-threads=1",
        ],
    },
];

/// Runs the sanitizers that are named, or all.
pub fn run(names: &[&str]) -> ExitCode {
    if let Some(unknown) = names.iter().find(|name| RUNS.iter().all(|run| run.sanitizer != **name)) {
        eprintln!("xtask: there is no sanitizer {unknown:?} here: address, thread");
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
        if let Some(missing) = self.missing() {
            eprintln!("xtask: the {} sanitizer can't run: {missing}", self.sanitizer);
            return false;
        }
        // A sanitizer that misses what is planted, or finds what is not there, says nothing about the tests.
        let wrong = self.canaries.iter().filter(|canary| !self.is_right(canary, host, root)).count();
        if wrong > 0 {
            eprintln!("xtask: the {} sanitizer can't be believed here; no test was run", self.sanitizer);
            return false;
        }
        let mut all = true;
        for tests in self.tests {
            println!("=== {} sanitizer: cargo test {tests} ===", self.sanitizer);
            all &= self.test(tests, host).current_dir(root).status().is_ok_and(|status| status.success());
        }
        all
    }

    /// What the toolchain lacks, and how it is had.
    fn missing(&self) -> Option<String> {
        if !self.builds_std {
            return None;
        }
        let lock = printed(&["--print", "sysroot"])
            .map(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.lock"))?;
        (!lock.exists()).then(|| {
            let lock = lock.display();
            format!("the standard library's sources are not there ({lock}): rustup component add rust-src")
        })
    }

    /// Whether the sanitizer finds in a canary what it must.
    fn is_right(&self, canary: &Canary, host: &str, root: &Path) -> bool {
        let Canary { program, argument, is_found } = canary;
        let mut command = self.command("run", host);
        command.args(["--quiet", "-p", "mapwright-sys", "--example", program, "--", argument]);
        let wrong = match command.current_dir(root).output() {
            Ok(output) => canary.wrong(&output),
            Err(error) => Some(error.to_string()),
        };
        let what = if *is_found { "is found" } else { "is not taken for one" };
        match &wrong {
            None => println!("{} sanitizer: {program} {argument}: {what}", self.sanitizer),
            Some(why) => {
                eprintln!("{} sanitizer: {program} {argument}: not so: {what}\n{why}", self.sanitizer)
            }
        }
        wrong.is_none()
    }

    fn test(&self, tests: &str, host: &str) -> Command {
        let mut command = self.command("test", host);
        command.arg("--no-fail-fast").args(tests.split(' '));
        command
    }

    /// For a named target, so that build scripts and macros are built without the sanitizer.
    fn command(&self, what: &str, host: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let folder = format!("sanitize-{}", self.sanitizer);
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new("target").join(&folder), |target| Path::new(&target).join(&folder));
        command.args([what, "--target", host]);
        if self.builds_std {
            command.arg("-Zbuild-std");
        }
        command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", self.flags).env("CARGO_TARGET_DIR", target);
        command.env(self.options.0, self.options.1);
        command
    }
}

impl Canary {
    /// Why its outcome is not what it must be.
    fn wrong(&self, output: &Output) -> Option<String> {
        let said = String::from_utf8_lossy(&output.stderr);
        let is_found = said.contains(REPORT) && said.contains(self.program);
        let is_right = is_found == self.is_found && output.status.success() != self.is_found;
        (!is_right).then(|| format!("{}\n{said}", output.status))
    }
}

/// The name of the machine that this runs on, as the compiler has it.
fn host() -> Option<String> {
    printed(&["-vV"])?.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

/// What the compiler prints when it is asked.
fn printed(arguments: &[&str]) -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    String::from_utf8(Command::new(rustc).args(arguments).output().ok()?.stdout).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn the_host_has_a_name() {
        assert!(host().is_some_and(|host| host.contains("-linux-")));
    }

    #[test]
    fn tests_and_canaries_that_are_named_exist() {
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
            for canary in run.canaries {
                let path = format!("crates/mapwright-sys/examples/{}.rs", canary.program);
                let source = std::fs::read_to_string(files::root().join(path)).unwrap();
                assert!(source.contains(&format!("\"{}\" =>", canary.argument)), "{}", canary.argument);
            }
        }
    }

    #[test]
    fn the_sanitizer_is_for_the_target_alone() {
        let words = |command: &Command| -> Vec<String> {
            command.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect()
        };
        let [address, thread] = RUNS.each_ref().map(|run| words(&run.test("-p mapwright-sys --lib", "x")));
        assert_eq!(address, ["test", "--target", "x", "--no-fail-fast", "-p", "mapwright-sys", "--lib"]);
        assert_eq!(thread[..4], ["test", "--target", "x", "-Zbuild-std"]);
        assert_eq!(thread[4..], address[3..]);
    }

    #[test]
    fn a_canary_is_right_where_its_report_and_its_end_agree() {
        let ended = |code: i32, said: &str| Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: Vec::new(),
            stderr: said.into(),
        };
        let report = format!("{REPORT}\n #0 planted::set");
        let canary = |is_found| Canary { program: "planted", argument: "x", is_found };
        assert!(canary(true).wrong(&ended(66, &report)).is_none());
        assert!(canary(false).wrong(&ended(0, "")).is_none());
        for (is_found, code, said) in [
            (true, 0, ""),
            (true, 66, ""),
            (true, 101, "error: could not compile"),
            (true, 66, REPORT),
            (false, 66, &report),
            (false, 1, ""),
        ] {
            assert!(canary(is_found).wrong(&ended(code, said)).is_some(), "{is_found} {code} {said}");
        }
    }
}
