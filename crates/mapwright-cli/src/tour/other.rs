//! The other process of the tour: this program again, told to map a file and touch it, which now and then kills it.
//!
//! Commands come as lines on its stdin: `load OFFSET` maps the file shared, where it is not mapped yet, and answers with the
//! byte there; `guard` answers `ready` and then touches a guard page.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use mapwright_measure::failure::{Failure, Result};
use mapwright_sys::PAGE_SIZE;
use mapwright_sys::bare::{BareMap, Sharing};
use rustix::process::{Resource, Rlimit, setrlimit};

/// The hidden subcommand.
pub const COMMAND: &str = "tour-worker";

/// The process, seen from the tour. Ended when dropped.
pub struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

/// What became of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It said this.
    Said(String),
    /// It was killed by this signal.
    Killed(i32),
}

impl Other {
    /// Starts it.
    pub fn start(path: &Path) -> Result<Self> {
        let start = || -> io::Result<Self> {
            let mut child = Command::new(std::env::current_exe()?)
                .args([OsStr::new(COMMAND), path.as_os_str()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let input = child.stdin.take();
            let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(Self { child, input, output: BufReader::new(output) })
        };
        start().map_err(|error| failed(&error))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command and waits for the answer, or the end.
    pub fn ask(&mut self, command: &str) -> Result<Answer> {
        let input = self.input.as_mut().ok_or_else(|| failed(&io::ErrorKind::BrokenPipe.into()))?;
        let mut line = String::new();
        let answered = writeln!(input, "{command}").and_then(|()| self.output.read_line(&mut line));
        match answered {
            Ok(read) if read > 0 => Ok(Answer::Said(line.trim_end().to_owned())),
            // Its pipes are closed: it has ended.
            _ => self.end(),
        }
    }

    /// Waits until it ends by itself.
    pub fn end(&mut self) -> Result<Answer> {
        self.input = None;
        let status: ExitStatus = self.child.wait().map_err(|error| failed(&error))?;
        match status.signal() {
            Some(signal) => Ok(Answer::Killed(signal)),
            None => Err(Failure::Message(format!("the other process of the tour ended with {status}"))),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Without its stdin it ends; where it hangs it is made to. Both fail only if it has ended.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(error: &io::Error) -> Failure {
    Failure::Message(format!("the other process of the tour: {error}"))
}

/// The process itself.
pub fn run(path: &Path) -> Result<()> {
    // It is there to be killed: a core dump would be left behind.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let failed = |error: io::Error| Failure::io("the other process of the tour", path, error);
    let mut map = None;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(failed)?;
        match line.split_once(' ') {
            Some(("load", offset)) => {
                let offset = offset.parse().map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
                let map = match &map {
                    Some(map) => map,
                    None => map.insert(map_shared(path).map_err(failed)?),
                };
                say(&map.load(offset).to_string()).map_err(failed)?;
            }
            _ => touch_guard().map_err(failed)?,
        }
    }
    Ok(())
}

fn map_shared(path: &Path) -> io::Result<BareMap> {
    let file = File::open(path)?;
    let len = file.metadata()?.len() as usize;
    BareMap::of_file(file.as_fd(), len, Sharing::Shared, false)
}

fn touch_guard() -> io::Result<()> {
    let mut map = BareMap::anonymous(2 * PAGE_SIZE)?;
    map.guard(1..2)?;
    map.store(PAGE_SIZE - 1, 1);
    say("ready")?;
    map.store(PAGE_SIZE, 1);
    Ok(())
}

fn say(what: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{what}")?;
    stdout.flush()
}
