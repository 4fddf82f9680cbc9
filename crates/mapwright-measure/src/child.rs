//! A child process for one round of one contender, in a memory group of its own.
//!
//! Parameters go as JSON to its stdin, the answer comes as JSON from its stdout. The parent moves the process into its group
//! before it writes the parameters.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::{cgroup, sample, signals, size};

/// A worker that takes longer than this is stopped: something hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// What a worker may use beyond the limit: its own code, stacks and page tables. The same for every method.
pub fn slack(limit: u64) -> u64 {
    (12 << 20) + limit / 50
}

/// Who holds the contenders to the memory limit.
pub struct Enforcement {
    /// Where groups are made, or why none can be.
    pub cgroup: std::result::Result<cgroup::Parent, String>,
    limit: u64,
}

impl Enforcement {
    /// Finds out by making a group and moving a process into it: this program, told to be a `worker`.
    pub fn find(limit: u64, worker: &str) -> Result<Self> {
        let cgroup = match cgroup::find() {
            Ok(parent) => try_out(&parent, limit, worker)?.map(|()| parent),
            Err(why) => Err(why),
        };
        Ok(Self { cgroup, limit })
    }

    /// One line for a person.
    pub fn describe(&self) -> String {
        let slack = size::show(slack(self.limit));
        match &self.cgroup {
            Ok(parent) => {
                let version = match parent.version {
                    cgroup::Version::V1 => "v1",
                    cgroup::Version::V2 => "v2",
                };
                format!(
                    "a memory cgroup ({version}) holds every method, page cache included, with {slack} more for the process itself; \
                     mapwright's budget is the limit"
                )
            }
            Err(why) => format!(
                "NOT enforced for the kernel's own ways, which use what memory is free: no memory cgroup ({why}); \
                 mapwright's budget is the limit all the same"
            ),
        }
    }
}

fn try_out(parent: &cgroup::Parent, limit: u64, worker: &str) -> Result<std::result::Result<(), String>> {
    let mut child = Reaped(spawn(worker)?);
    let group = match cgroup::Group::create(parent, limit + slack(limit)) {
        Ok(group) => group,
        Err(error) => return Ok(Err(format!("{}: {error}", parent.dir.display()))),
    };
    let moved = group.add(child.0.id());
    drop(child.0.stdin.take());
    let _ = child.0.wait();
    Ok(moved.map_err(|error| format!("moving a process below {}: {error}", parent.dir.display())))
}

fn spawn(worker: &str) -> Result<Child> {
    let failed = |error| Failure::Message(format!("cannot start a worker: {error}"));
    Command::new(std::env::current_exe().map_err(failed)?)
        .arg(worker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)
}

/// A child that is killed and waited for when dropped, so that its group can go.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A worker's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<M> {
    /// It went well.
    Done(Box<M>),
    /// The machine or the build cannot do it.
    Unsupported(String),
    /// It failed.
    Failed(String),
}

/// The worker's side, the subcommand `worker`: reads the task, does it, answers.
pub fn serve<T: DeserializeOwned, M: Serialize>(
    worker: &str,
    measure: impl FnOnce(&T) -> Result<M>,
) -> Result<()> {
    // A parent that is killed leaves nobody to read the answer.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Failure::Message(format!("{worker}: {what}: {error}"));
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| failed("stdin", &error))?;
    if text.is_empty() {
        // The parent tries out whether a process can be moved into a group.
        return Ok(());
    }
    let task = serde_json::from_str(&text).map_err(|error| failed("parameters", &error))?;
    let answer = match measure(&task) {
        Ok(measured) => Answer::Done(Box::new(measured)),
        Err(Failure::Unsupported(text)) => Answer::Unsupported(text),
        Err(failure) => Answer::Failed(failure.to_string()),
    };
    let json = serde_json::to_string(&answer).map_err(|error| failed("answer", &error))?;
    std::io::stdout().write_all(json.as_bytes()).map_err(|error| failed("stdout", &error))
}

/// Does one task in a child, within `limit` bytes where there is one. `Unsupported` says that it does not work here.
pub fn run<T: Serialize, M: DeserializeOwned>(
    worker: &str,
    task: &T,
    limit: Option<u64>,
    enforcement: &Enforcement,
) -> Result<M> {
    // The group is declared first, so that it goes last: when the child is gone.
    let group = match (&enforcement.cgroup, limit) {
        (Ok(parent), Some(limit)) => Some(
            cgroup::Group::create(parent, limit + slack(limit))
                .map_err(|error| Failure::io("make a memory group", &parent.dir, error))?,
        ),
        _ => None,
    };
    let mut child = Reaped(spawn(worker)?);
    if let Some(group) = &group {
        group.add(child.0.id()).map_err(|error| {
            Failure::Message(format!("cannot move a worker into its memory group: {error}"))
        })?;
    }
    if let Some(limit) = limit {
        // A host may have taken back what the last worker freed, and hands it over anew to whoever comes next.
        sample::touch_memory(limit + slack(limit));
    }
    let (answer, status) = converse(&mut child.0, task)?;
    let is_done = matches!(answer, Some(Answer::Done(_)));
    if !is_done && group.is_some_and(|group| group.oom_kills() > 0) {
        let limit = limit.unwrap_or_default();
        return Err(Failure::Message(format!(
            "the kernel killed it for using more than {} + {}",
            size::show(limit),
            size::show(slack(limit))
        )));
    }
    taken(answer, status)
}

/// Has a program do one task that serves it as [`serve`] does, itself or by a worker that it starts, in the group of whoever calls this.
pub fn ask<T: Serialize, M: DeserializeOwned>(command: &mut Command, task: &T) -> Result<M> {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let failed =
        |error| Failure::Message(format!("cannot start {}: {error}", command.get_program().display()));
    let mut child = Reaped(spawned.map_err(failed)?);
    let (answer, status) = converse(&mut child.0, task)?;
    taken(answer, status)
}

/// Sends the task and waits for the end; the answer, if it is one, and how the child ended.
fn converse<T: Serialize, M: DeserializeOwned>(
    child: &mut Child,
    task: &T,
) -> Result<(Option<Answer<M>>, ExitStatus)> {
    let parameters = serde_json::to_vec(task)
        .map_err(|error| Failure::Message(format!("cannot describe the work of a worker: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A worker that died before it read this is reported by its end.
        let _ = stdin.write_all(&parameters);
    }
    let answer = wait_for_answer(child)?;
    let status =
        child.wait().map_err(|error| Failure::Message(format!("cannot wait for a worker: {error}")))?;
    signals::check()?;
    Ok((serde_json::from_slice(&answer).ok(), status))
}

fn taken<M>(answer: Option<Answer<M>>, status: ExitStatus) -> Result<M> {
    match answer {
        Some(Answer::Done(measured)) if status.success() => Ok(*measured),
        Some(Answer::Unsupported(why)) => Err(Failure::Unsupported(why)),
        Some(Answer::Failed(why)) => Err(Failure::Message(why)),
        _ if matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM)) => Err(Failure::Interrupted),
        _ => Err(Failure::Message(format!("the worker ended without an answer ({status})"))),
    }
}

/// Everything that the child writes, up to its end; returns early when a signal arrives.
fn wait_for_answer(child: &mut Child) -> Result<Vec<u8>> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(Vec::new()) };
    let failed = |error: std::io::Error| Failure::Message(format!("cannot read a worker's answer: {error}"));
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    let deadline = Instant::now() + LONGEST;
    // Woken four times a second: a signal may arrive just before poll(2) and would not interrupt it.
    let patience = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
    loop {
        signals::check()?;
        if Instant::now() > deadline {
            return Err(Failure::Message(format!("the worker did not finish within {LONGEST:?}")));
        }
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&patience)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(failed(error.into())),
        }
        match stdout.read(&mut chunk).map_err(failed)? {
            0 => return Ok(answer),
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// User and system time of this process so far, all threads, in seconds.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// User and system time of all children that this process has waited for, and of theirs, in seconds. In steps of 10 ms.
pub fn children_cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 16 and 17 of proc_pid_stat(5), counted from behind the name, which may hold anything.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// A line of /proc/self/status that counts KiB, in bytes; 0 where the kernel does not tell.
pub fn status_bytes(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Faults that had to wait for a disk: of the process (`/proc/self/stat`) or of this thread (`/proc/thread-self/stat`).
pub fn major_faults(stat: &str) -> Option<u64> {
    let text = fs::read_to_string(stat).ok()?;
    // Field 12 of proc_pid_stat(5), counted from behind the name, which may hold anything.
    text.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

/// Bytes that this thread had the disk read, where the kernel keeps account.
pub fn thread_read_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_page_cache_is_counted() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&[1; 1 << 20]).unwrap();
        let cached = crate::sample::drop_cache(&file);
        let Some(before) = thread_read_bytes() else { return };
        let map = crate::raw::map(&file).unwrap();
        map.advise(memmap2::Advice::Random).unwrap();
        let faults = major_faults("/proc/thread-self/stat").unwrap();
        assert_eq!(map.iter().step_by(1 << 16).map(|byte| u64::from(*byte)).sum::<u64>(), 16);
        // A file system in memory reads no disk.
        if cached == Some(0) {
            assert_eq!(thread_read_bytes().unwrap() - before, 16 << 12);
            assert_eq!(major_faults("/proc/thread-self/stat").unwrap() - faults, 16);
        }
    }

    #[test]
    fn this_process_has_memory() {
        // In this order: other tests of this process take memory meanwhile. The kernel's counters lag by a few pages a CPU.
        let now = status_bytes("VmRSS:");
        let peak = status_bytes("VmHWM:");
        assert!(now > 0 && peak + (1 << 20) >= now, "{now} now, {peak} at most");
    }
}
