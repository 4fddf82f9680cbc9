//! Programs that know of no pager: by themselves, and under `mapwright run`.
//!
//! Whoever does such a task starts the program and waits for its end. Both are in the memory group of the task, and so is the server of
//! `mapwright run`. What `run` says in the end is looked at: a program whose file was the kernel's all along is no contender.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mapwright_measure::cgroup::{self, Usage};
use mapwright_measure::checksum::sum;
use mapwright_measure::child::{self, children_cpu_seconds};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::histogram::Histogram;
use mapwright_measure::pages::PAGE;
use mapwright_measure::raw;
use mapwright_measure::work::STEP;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use super::{Clock, NAME, chill, with_latencies};
use crate::how::peers::MAPPED_FILES;
use crate::materials::WORD;
use crate::run::median;
use crate::task::{How, Measured, Program, Task, Under, Work};

/// Laps of each of several processes: the second begins when others are still at their first.
const LAPS: u64 = 2;

/// Does a task by a program.
pub fn measure(task: &Task, program: Program, under: Under) -> Result<Measured> {
    let cpu_before = children_cpu_seconds();
    let measured = match task.work {
        Work::Start { count, maps } => starts(task, under, count, maps),
        Work::Search { warm } => search(task, under, warm),
        _ => worker(task, program, under),
    }?;
    Ok(Measured { cpu_seconds: children_cpu_seconds() - cpu_before, ..measured })
}

/// This program again, as a worker that maps.
fn worker(task: &Task, program: Program, under: Under) -> Result<Measured> {
    let inner = Task { how: mapping(program)?, ..task.clone() };
    if matches!(task.work, Work::Together { .. }) {
        chill(task)?; // what is in the page cache already is not charged to the group
    }
    let before = cgroup::own_usage();
    let mut running = Running::new(task, under, own_program()?)?;
    let measured = child::ask(running.command.arg(NAME), &inner)?;
    let mut measured: Measured = running.ended(task, measured)?;
    if let (Work::Together { .. }, Ok(before), Ok(after)) = (&task.work, before, cgroup::own_usage()) {
        let used = |Usage { most, .. }: Usage| most.saturating_sub(before.now) as f64;
        measured.extra.insert("memory, of the file".to_owned(), used(after) / task.len as f64);
        measured.extra.insert("memory, of the limit".to_owned(), used(after) / task.budget as f64);
    }
    Ok(measured)
}

/// The way in which the worker reaches the file.
fn mapping(program: Program) -> Result<How> {
    match program {
        Program::Mmap(advice) => Ok(How::Mmap(advice)),
        Program::Peer(peer) => Ok(How::MappedPeer(peer)),
        Program::Ripgrep => Err(Failure::Unsupported("ripgrep is here for searches only".to_owned())),
    }
}

/// Starts a program and waits for its end, again and again. Under `run` in turns with the same by itself: what is added is of these pairs.
fn starts(task: &Task, under: Under, count: u64, maps: bool) -> Result<Measured> {
    let (mut own, mut alone, mut latencies) = (Vec::new(), Vec::new(), Histogram::default());
    start(task, under, maps)?; // what is read from the disk once
    for _ in 0..count {
        if under != Under::Kernel {
            alone.push(start(task, Under::Kernel, maps)?.as_secs_f64());
        }
        let took = start(task, under, maps)?;
        latencies.record(took, 1);
        own.push(took.as_secs_f64());
    }
    let mut measured = Measured { ops: count, seconds: own.iter().sum(), ..Measured::default() };
    if !alone.is_empty() {
        let added = (median(&own) - median(&alone)) * 1000.0;
        measured.extra.insert("added to a start, ms".to_owned(), added);
    }
    Ok(with_latencies(measured, &latencies))
}

/// How long a program takes from its start to its end.
fn start(task: &Task, under: Under, maps: bool) -> Result<Duration> {
    let inner = Task {
        work: Work::Pages { count: 1, zipf: false },
        how: How::Mmap(crate::task::Advice::None),
        ..task.clone()
    };
    let mut running = Running::new(task, under, own_program()?)?;
    running.command.arg(NAME);
    let before = Instant::now();
    if maps {
        let measured = child::ask(&mut running.command, &inner)?;
        let took = before.elapsed();
        return running.ended(task, measured).map(|_| took);
    }
    // A worker that is asked nothing does nothing.
    let ended = running.command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let took = before.elapsed();
    match ended {
        Ok(status) if status.success() => Ok(took),
        Ok(status) => Err(Failure::Message(format!("a program that does nothing: {status}"))),
        Err(error) => Err(Failure::Message(format!("a program could not be started: {error}"))),
    }
}

/// Has ripgrep count the lines with the word.
fn search(task: &Task, under: Under, warm: bool) -> Result<Measured> {
    let missing = |error| {
        Failure::Unsupported(format!("rg could not be started ({error}); install ripgrep to see its figure"))
    };
    Command::new("rg").arg("--version").stdout(Stdio::null()).status().map_err(missing)?;
    chill(task)?;
    if warm {
        warm_up(&task.path)?;
    }
    let mut running = Running::new(task, under, "rg")?;
    running.command.args(["--no-config", "--mmap", "--fixed-strings", "--count", WORD]).arg(&task.path);
    let before = Instant::now();
    let output = running.command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(missing)?;
    let seconds = before.elapsed().as_secs_f64();
    let found = String::from_utf8_lossy(&output.stdout).trim().parse::<u64>();
    let found = found.map_err(|_| Failure::Message(format!("rg counted nothing: {}", output.status)))?;
    let measured =
        Measured { ops: 1, bytes: task.len, seconds, checksum: Some(found), ..Measured::default() };
    running.ended(task, measured)
}

/// Brings a file into the page cache.
fn warm_up(path: &Path) -> Result<()> {
    let failed = |error| Failure::io("read", path, error);
    let (mut file, mut chunk) = (File::open(path).map_err(failed)?, vec![0; STEP as usize]);
    while file.read(&mut chunk).map_err(failed)? > 0 {}
    Ok(())
}

/// The worker's side of [`Work::Together`]: processes of its own, at a time.
pub fn together(task: &Task, processes: usize) -> Result<Measured> {
    let laps = |number: usize| {
        let from = task.len / STEP * number as u64 / processes as u64 * STEP;
        let lap = Task { work: Work::Laps { from }, ..task.clone() };
        child::ask::<_, Measured>(Command::new(own_program()?).arg(NAME), &lap)
    };
    let laps = &laps;
    let clock = Clock::start();
    let ended: Vec<Result<Measured>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..processes).map(|number| scope.spawn(move || laps(number))).collect();
        let panicked = |_| Err(Failure::Message("a thread that waits for a process panicked".to_owned()));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let mut checksum = 0u64;
    for lap in ended {
        checksum = checksum.wrapping_add(lap?.checksum.unwrap_or(0));
    }
    let bytes = task.len * LAPS * processes as u64;
    Ok(Measured { checksum: Some(checksum), ..clock.stop(bytes / PAGE, bytes) })
}

/// Reads all of a file from a place on, around its end and on to that place, more than once.
pub fn laps(task: &Task, from: u64) -> Result<Measured> {
    let failed = |what| move |error| Failure::io(what, &task.path, error);
    let file = File::open(&task.path).map_err(failed("open"))?;
    let map = raw::map(&file).map_err(failed("mmap"))?;
    let bytes = &map[..task.len as usize];
    let clock = Clock::start();
    let mut checksum = 0u64;
    for _ in 0..LAPS {
        let (before, after) = bytes.split_at(from as usize);
        for step in after.chunks(STEP as usize).chain(before.chunks(STEP as usize)) {
            checksum = checksum.wrapping_add(sum(step));
        }
    }
    let bytes = task.len * LAPS;
    Ok(Measured { checksum: Some(checksum), ..clock.stop(bytes / PAGE, bytes) })
}

/// A program that is about to be started, and what `run` will say of it.
struct Running {
    command: Command,
    report: Option<File>,
}

impl Running {
    fn new(task: &Task, under: Under, program: impl AsRef<OsStr>) -> Result<Self> {
        let Under::Run(block) = under else {
            return Ok(Self { command: Command::new(program), report: None });
        };
        match mapwright::Machine::probe().userfaultfd {
            Err(error) => return Err(unserved(error.to_string())),
            Ok(facts) if facts.user_mode_only => {
                return Err(unserved("this user's userfaultfd does not serve system calls".to_owned()));
            }
            Ok(_) => {}
        }
        // Open in what is started, too.
        let report = memfd_create("mapwright-bench-report", MemfdFlags::empty());
        let report: OwnedFd =
            report.map_err(|error| Failure::Message(format!("a file in memory: {error}")))?;
        let mut command = Command::new(mapwright_program()?);
        command.args(["run", "--json", "--limit", &task.budget.to_string(), "--block", &block.to_string()]);
        command.arg(format!("--report=/proc/self/fd/{}", report.as_raw_fd())).arg("--").arg(program);
        Ok(Self { command, report: Some(report.into()) })
    }

    /// What was measured, if the program's file was served to its end.
    fn ended(&self, task: &Task, mut measured: Measured) -> Result<Measured> {
        let Some(file) = &self.report else { return Ok(measured) };
        let failed = |error| Failure::Message(format!("the report of mapwright run: {error}"));
        let len = file.metadata().map_err(failed)?.len();
        let mut text = vec![0; len as usize];
        file.read_exact_at(&mut text, 0).map_err(failed)?;
        let report: Value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        is_served(task, &report)?;
        for (key, name) in [("faults", "faults"), ("evictions", "evictions")] {
            if let Some(count) = report["totals"][key].as_f64() {
                measured.extra.insert(name.to_owned(), count);
            }
        }
        Ok(measured)
    }
}

/// Whether the report says that the task's file was served, and to the end.
fn is_served(task: &Task, report: &Value) -> Result<()> {
    if let Some(why) = report["not_served"].as_str() {
        return Err(unserved(why.to_owned()));
    }
    let paths: Vec<PathBuf> =
        std::iter::once(task.path.clone()).chain(MAPPED_FILES.map(|name| task.path.join(name))).collect();
    let files = report["files"].as_array().into_iter().flatten();
    let file = files.into_iter().find(|file| {
        file["path"].as_str().is_some_and(|path| paths.iter().any(|known| known == Path::new(path)))
    });
    let file = file.ok_or_else(|| unserved("the file was not mapped".to_owned()))?;
    if file["maps"].as_u64().unwrap_or(0) == 0 {
        return Err(unserved(format!("the file was the kernel's: {}", file["kernel"])));
    }
    match file["given_back"].as_object() {
        Some(given) if !given.is_empty() => {
            Err(Failure::Message(format!("the file was given back to the kernel: {}", file["given_back"])))
        }
        _ => Ok(()),
    }
}

/// What can't be measured here; where everything has to be measured, that is a failure.
fn unserved(why: String) -> Failure {
    if std::env::var("CI").as_deref() == Ok("true") {
        Failure::Message(why)
    } else {
        Failure::Unsupported(why)
    }
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|error| Failure::Message(format!("/proc/self/exe: {error}")))
}

/// The command, which is built into the same folder.
fn mapwright_program() -> Result<PathBuf> {
    let program = own_program()?.with_file_name("mapwright");
    if program.is_file() {
        return Ok(program);
    }
    Err(unserved(format!(
        "{} is not there: build it with `cargo build -p mapwright-cli`, in the same profile, or use `cargo xtask bench`",
        program.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Advice;

    fn task() -> Task {
        Task {
            work: Work::Scan,
            how: How::Program(Program::Mmap(Advice::None), Under::Run(4096)),
            path: "/a/file".into(),
            len: 1,
            budget: 1,
            threads: 1,
            batch: 1,
            sample: None,
        }
    }

    #[test]
    fn only_what_was_served_to_its_end_counts() {
        let report = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let of = |file: &str| report(&format!(r#"{{"not_served": null, "files": [{file}]}}"#));
        let served = r#"{"path": "/a/file", "maps": 1, "given_back": {}, "kernel": []}"#;
        assert!(is_served(&task(), &of(served)).is_ok());
        assert!(is_served(&task(), &of(&served.replace("/a/file", "/a/file/data.mdb"))).is_ok());
        assert!(is_served(&task(), &of(&served.replace("/a/file", "/a/other"))).is_err());
        assert!(is_served(&task(), &of(&served.replace("1,", "0,"))).is_err());
        let given = served.replace("{}", r#"{"mprotect(2)": 1}"#);
        assert!(
            matches!(is_served(&task(), &of(&given)), Err(Failure::Message(why)) if why.contains("mprotect"))
        );
        let none = report(r#"{"not_served": "a static program", "files": []}"#);
        let why = is_served(&task(), &none).unwrap_err().to_string();
        assert!(why.contains("static"), "{why}");
    }
}
