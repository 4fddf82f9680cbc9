//! Everything that must hold, one step after the other; the last line is of the kind that `cargo test` prints.
//!
//! A step is a program with a time limit, so that a hang is a failure and not a wait. All steps run, also after one has
//! failed. What they leave behind is in the build folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::{files, links, tidy};

/// Most time for a step, in seconds: several times what it takes on two slow cores.
const STEP_SECONDS: u64 = 900;
/// The same, of all tests.
const TESTS_SECONDS: u64 = 2700;
/// Most time for a run of a program, in seconds, what is left to build included.
const RUN_SECONDS: u64 = 180;
/// How long the stress test runs, in seconds.
const STRESS_SECONDS: &str = "60";
/// Seeds that each test of the simulator tries at least.
const SIM_SEEDS: &str = "2000";
/// States of the disk after a power failure that are drawn at least.
const CRASH_STATES: &str = "300000";
/// Mutations of journals that are read.
const FUZZ_ROUNDS: &str = "100000";
/// Bytes of the file that the smoke runs read.
const SAMPLE: usize = 4 << 20;

/// What the steps found.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<String>,
}

/// Runs all steps.
pub fn run() -> ExitCode {
    let started = Instant::now();
    let root = files::root();
    let scratch = match Scratch::new(&root) {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("xtask: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut tally = Tally::default();
    for step in steps(&scratch) {
        println!("\n=== {} ===", step.name);
        println!("$ {}", step.line());
        flush();
        let before = Instant::now();
        let failed_before = tally.failed;
        let outcome = step.run(&root, &mut tally);
        match outcome {
            Ok(()) => tally.passed += u64::from(!step.counts_itself),
            Err(why) => {
                println!("FAILED: {}: {why}", step.name);
                tally.failed += u64::from(tally.failed == failed_before);
                tally.failures.push(format!("{}: {why}", step.name));
            }
        }
        println!("({:.1} s)", before.elapsed().as_secs_f64());
    }
    for (name, check) in [("tidy", tidy::check as fn(&[_]) -> _), ("links", links::check)] {
        own_check(name, check, &root, &mut tally);
    }
    println!();
    if !tally.failures.is_empty() {
        println!("failures:");
        tally.failures.iter().for_each(|failure| println!("    {failure}"));
        println!();
    }
    let verdict = if tally.failures.is_empty() { "ok" } else { "FAILED" };
    let Tally { passed, failed, ignored, .. } = tally;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; finished in {seconds:.2}s"
    );
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A check of this program's own.
fn own_check(name: &str, check: fn(&[files::SourceFile]) -> Vec<String>, root: &Path, tally: &mut Tally) {
    println!("\n=== {name} ===");
    let found = files::read_all(root).map_or_else(|error| vec![error.to_string()], |files| check(&files));
    found.iter().for_each(|line| println!("{line}"));
    if found.is_empty() {
        tally.passed += 1;
    } else {
        tally.failed += 1;
        tally.failures.push(format!("{name}: {} violations", found.len()));
    }
}

/// One program to run.
struct Step {
    name: &'static str,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    /// It prints results of its own, which are added up.
    counts_itself: bool,
    /// The exit code that is right.
    exit: i32,
    limit: Duration,
}

fn cargo(name: &'static str, arguments: &str) -> Step {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let seconds =
        if arguments.first().is_some_and(|command| command == "run") { RUN_SECONDS } else { STEP_SECONDS };
    let limit = Duration::from_secs(seconds);
    Step { name, arguments, environment: Vec::new(), counts_itself: false, exit: 0, limit }
}

/// The same, of `cargo test`.
fn tests(name: &'static str, arguments: &str) -> Step {
    Step { counts_itself: true, ..cargo(name, &format!("test {arguments}")) }
}

impl Step {
    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    fn within(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    fn and(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}

fn steps(scratch: &Scratch) -> Vec<Step> {
    let sample = scratch.sample();
    let example =
        |name, arguments: &str| cargo(name, &format!("run --quiet -p mapwright --example {arguments}"));
    let mut steps = vec![
        cargo("formatting", "fmt --all --check"),
        cargo("clippy", "clippy --workspace --all-targets -- -D warnings"),
        // By itself, so that the limit of the next step is for what runs.
        cargo("tests, built", "test --workspace --lib --bins --tests --no-run"),
        // All in one step, so that nothing is built twice, as it is where packages are selected.
        tests("tests", "--workspace --lib --bins --tests --no-fail-fast")
            .within(TESTS_SECONDS)
            .with("MAPWRIGHT_STRESS_SECONDS", STRESS_SECONDS)
            .with("MAPWRIGHT_SIM_SEEDS", SIM_SEEDS)
            .with("MAPWRIGHT_CRASH_STATES", CRASH_STATES)
            .with("MAPWRIGHT_FUZZ_ROUNDS", FUZZ_ROUNDS),
        tests("documentation examples", "--workspace --doc"),
        cargo("documentation", "doc --workspace --no-deps").with("RUSTDOCFLAGS", "-D warnings"),
        cargo(
            "compare, smoke run",
            "run --quiet -- compare --write --rounds 1 --seconds-per-round 0.1 --quiet --limit 1M",
        )
        .and(&*sample),
        cargo("doctor, smoke run", "run --quiet -- doctor"),
        cargo("benchmarks, smoke run", "run --quiet -p mapwright-bench -- --quick"),
        example("example: count lines", "count_lines --").and(&*sample),
        example("example: sort in place", "sort_in_place -- --mib 8 --budget-mib 2"),
        example("example: look up an index", "index_lookup -- --records 100000 --lookups 2000"),
        example("example: asynchronous server", "async_server -- --self-test"),
        cargo("benchmarks build", "bench --workspace --no-run --profile dev"),
        // Built and not only checked: assembly is read when code is generated.
        cargo(
            "AArch64, the library",
            "build -p mapwright --lib --features allocator-api2 --target aarch64-unknown-linux-gnu",
        ),
        // As no shared object, for which there may be no linker.
        cargo(
            "AArch64, the shim",
            "rustc -p mapwright-shim --lib --crate-type lib --target aarch64-unknown-linux-gnu",
        ),
    ];
    for name in ["count_lines", "sort_in_place", "index_lookup", "async_server"] {
        steps.push(example("example: its usage", &format!("{name} -- --help")));
        steps.push(Step { exit: 2, ..example("example: bad usage", &format!("{name} -- --no-such-option")) });
    }
    steps
}

impl Step {
    fn line(&self) -> String {
        let environment: String =
            self.environment.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
        format!("{environment}cargo {}", self.arguments.join(" "))
    }

    fn run(&self, root: &Path, tally: &mut Tally) -> Result<(), String> {
        if let Some(what) = self.missing_target() {
            tally.ignored += 1;
            println!("left out: there is no {what}");
            return Ok(());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let child = Command::new(cargo)
            .args(&self.arguments)
            .envs(self.environment.iter().copied())
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cargo could not be started: {error}"))?;
        supervise(child, self.limit, self.exit, |line| {
            if let Some((passed, failed, ignored)) = counts(line).filter(|_| self.counts_itself) {
                tally.passed += passed;
                tally.failed += failed;
                tally.ignored += ignored;
            }
        })
    }

    /// A machine that this step builds for and that the toolchain has no library for.
    fn missing_target(&self) -> Option<String> {
        let at = self.arguments.iter().position(|argument| argument == "--target")?;
        let target = self.arguments.get(at + 1)?;
        library_of(target).is_none().then(|| format!("library for {target}: rustup target add {target}"))
    }
}

/// Where the toolchain has the standard library for a machine.
fn library_of(target: &str) -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_dir().then_some(path)
}

/// Passes a program's output on until it ends, or ends it with everything it has started when its time is up.
fn supervise(
    mut child: Child,
    limit: Duration,
    exit: i32,
    mut on_line: impl FnMut(&str),
) -> Result<(), String> {
    let (sender, lines) = std::sync::mpsc::channel();
    let Some(output) = child.stdout.take() else { return Err("no output".to_owned()) };
    let reader = std::thread::spawn(move || read_lines(output, |line| drop(sender.send(line))));
    let deadline = Instant::now() + limit;
    let mut is_late = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                println!("{line}");
                on_line(&line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                is_late = true;
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
                break;
            }
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let _ = reader.join();
    flush();
    match status {
        _ if is_late => Err(format!("not done after {} s", limit.as_secs())),
        status if status.code() == Some(exit) => Ok(()),
        status => Err(status.to_string()),
    }
}

fn read_lines(output: impl Read, mut each: impl FnMut(String)) {
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        each(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
        line.clear();
    }
}

fn flush() {
    // A closed output is noticed by whoever reads the exit code.
    let _ = std::io::stdout().flush();
}

/// Passed, failed and ignored in a closing line of `cargo test`.
fn counts(line: &str) -> Option<(u64, u64, u64)> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let count = |what: &str| {
        let at = rest.find(what)?;
        rest[..at].trim_end().rsplit([' ', ';', '.']).next()?.parse().ok()
    };
    Some((count(" passed")?, count(" failed")?, count(" ignored")?))
}

/// A folder in the build folder, removed in the end, with a file for the smoke runs.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> std::io::Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let folder = target.join(format!("ci-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let scratch = Self(folder);
        let line = b"a line of the sample file, long enough to fill a few pages\n";
        std::fs::write(scratch.sample(), line.iter().copied().cycle().take(SAMPLE).collect::<Vec<u8>>())?;
        Ok(scratch)
    }

    fn sample(&self) -> String {
        self.0.join("sample").display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("xtask: {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let line =
            "test result: ok. 12 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(line), Some((12, 1, 3)));
        assert_eq!(counts("test x ... ok"), None);
    }

    #[test]
    fn a_step_that_fails_is_a_failure() {
        let child = |script: &str| {
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).process_group(0).spawn().unwrap()
        };
        let limit = Duration::from_secs(60);
        let mut lines = Vec::new();
        assert_eq!(supervise(child("echo a; echo b"), limit, 0, |line| lines.push(line.to_owned())), Ok(()));
        assert_eq!(lines, ["a", "b"]);
        assert!(supervise(child("exit 3"), limit, 0, |_| {}).is_err());
        assert_eq!(supervise(child("exit 2"), limit, 2, |_| {}), Ok(()));
        assert!(supervise(child("exit 0"), limit, 2, |_| {}).is_err());
        let late = supervise(child("echo a; sleep 100 | cat"), Duration::from_millis(200), 0, |_| {});
        assert!(late.is_err_and(|why| why.contains("not done")));
    }

    #[test]
    fn a_target_that_is_not_there_is_noticed() {
        assert!(cargo("x", "build --target no-such-machine").missing_target().is_some());
        assert_eq!(cargo("x", "build").missing_target(), None);
    }
}
