//! Starts a worker for one method and one round, in a memory group of its own, and waits for its answer.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::worker::{Answer, Measured, Task};
use crate::cgroup;
use crate::failure::{Failure, Result};
use crate::{signals, size};

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
    /// Finds out by making a group and moving a process into it.
    pub fn find(limit: u64) -> Result<Self> {
        let cgroup = match cgroup::find() {
            Ok(parent) => try_out(&parent, limit)?.map(|()| parent),
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
                "NOT enforced for read, pread, direct, pwrite and mmap, which use what memory is free: no memory cgroup ({why}); \
                 mapwright's budget is the limit all the same"
            ),
        }
    }
}

fn try_out(parent: &cgroup::Parent, limit: u64) -> Result<std::result::Result<(), String>> {
    let mut child = Reaped(spawn()?);
    let group = match cgroup::Group::create(parent, limit + slack(limit)) {
        Ok(group) => group,
        Err(error) => return Ok(Err(format!("{}: {error}", parent.dir.display()))),
    };
    let moved = group.add(child.0.id());
    drop(child.0.stdin.take());
    let _ = child.0.wait();
    Ok(moved.map_err(|error| format!("moving a process below {}: {error}", parent.dir.display())))
}

fn spawn() -> Result<Child> {
    let failed = |error| Failure::Message(format!("cannot start a worker: {error}"));
    Command::new(std::env::current_exe().map_err(failed)?)
        .arg("compare-worker")
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

/// Runs one round of one method. `Unsupported` says that the method does not work here.
pub fn run(task: &Task, enforcement: &Enforcement) -> Result<Measured> {
    // The group is declared first, so that it goes last: when the child is gone.
    let group = match &enforcement.cgroup {
        Ok(parent) => Some(
            cgroup::Group::create(parent, task.limit + slack(task.limit))
                .map_err(|error| Failure::io("make a memory group", &parent.dir, error))?,
        ),
        Err(_) => None,
    };
    let mut child = Reaped(spawn()?);
    if let Some(group) = &group {
        group.add(child.0.id()).map_err(|error| {
            Failure::Message(format!("cannot move a worker into its memory group: {error}"))
        })?;
    }
    let parameters = serde_json::to_vec(task).map_err(|error| {
        Failure::Message(format!("cannot describe the work of {}: {error}", task.method.name()))
    })?;
    if let Some(mut stdin) = child.0.stdin.take() {
        // A worker that died before it read this is reported below.
        let _ = stdin.write_all(&parameters);
    }
    let answer = wait_for_answer(&mut child.0)?;
    let status =
        child.0.wait().map_err(|error| Failure::Message(format!("cannot wait for a worker: {error}")))?;
    signals::check()?;
    match serde_json::from_slice(&answer) {
        Ok(Answer::Done(measured)) if status.success() => Ok(*measured),
        Ok(Answer::Unsupported(why)) => Err(Failure::Unsupported(why)),
        Ok(Answer::Failed(why)) => Err(Failure::Message(why)),
        _ if matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM)) => Err(Failure::Interrupted),
        _ if group.is_some_and(|group| group.oom_kills() > 0) => Err(Failure::Message(format!(
            "the kernel killed it for using more than {} + {}",
            size::show(task.limit),
            size::show(slack(task.limit))
        ))),
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
