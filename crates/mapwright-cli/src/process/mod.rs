//! Other processes, as /proc shows them: which one is meant, what it maps, and why it can't be seen.

pub mod smaps;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use mapwright_measure::failure::{Failure, Result};
use rustix::io::Errno;

use crate::text;

/// A process by its number, or this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Whether it was called `self`.
    pub is_self: bool,
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "self" {
            return Ok(Self { pid: std::process::id(), is_self: true });
        }
        let pid = text.parse().ok().filter(|pid| (1..1 << 31).contains(pid));
        let pid = pid.ok_or_else(|| format!("`{text}` is not a process number, nor `self`"))?;
        Ok(Self { pid, is_self: false })
    }
}

impl Process {
    /// A file of its folder in /proc.
    pub fn path(self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.pid).into()
    }

    /// Opens a file of its folder in /proc.
    pub fn open(self, name: &str) -> Result<File> {
        File::open(self.path(name)).map_err(|error| self.why(&error))
    }

    /// Reads a file of its folder in /proc, whole.
    pub fn read(self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(256 << 10);
        self.open(name)?.read_to_end(&mut bytes).map_err(|error| self.why(&error))?;
        Ok(bytes)
    }

    /// Its arguments, for people.
    pub fn command(self) -> String {
        let arguments = fs::read(self.path("cmdline")).unwrap_or_default();
        let words: Vec<_> = arguments.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        if words.is_empty() {
            // A kernel thread, or one that has ended.
            return fs::read_to_string(self.path("comm"))
                .map_or_else(|_| "?".to_owned(), |name| format!("[{}]", name.trim()));
        }
        let show = |word: &[u8]| text::show_path(std::path::Path::new(std::ffi::OsStr::from_bytes(word)));
        use std::os::unix::ffi::OsStrExt as _;
        words.into_iter().map(show).collect::<Vec<_>>().join(" ")
    }

    /// What an error of a file in /proc means, and what to do.
    pub fn why(self, error: &io::Error) -> Failure {
        let pid = self.pid;
        Failure::Message(match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH) => {
                format!("there is no process {pid} (any more): `ps -e` lists those there are")
            }
            Some(Errno::ACCESS | Errno::PERM) => {
                let owner = fs::metadata(self.path("")).map(|metadata| metadata.uid());
                let owner = owner.map_or_else(|_| String::new(), |uid| format!(" belongs to user {uid} and"));
                format!(
                    "process {pid}{owner} may not be looked into: run this as that user or as root; where it is your own, \
                     it is protected (see prctl(2), PR_SET_DUMPABLE, and /proc/sys/kernel/yama/ptrace_scope)"
                )
            }
            _ => format!("process {pid}: {error}"),
        })
    }

    /// All that it maps. A kernel thread or one that has ended maps nothing, which is a failure.
    pub fn smaps(self) -> Result<smaps::Smaps> {
        let text = self.read("smaps")?;
        let smaps = smaps::parse(&text).map_err(|why| {
            Failure::Message(format!("/proc/{}/smaps is not as this version knows it: {why}", self.pid))
        })?;
        if smaps.areas.is_empty() {
            let what = "has no memory of its own: it is a thread of the kernel, or has ended";
            return Err(Failure::Message(format!("process {} ({}) {what}", self.pid, self.command())));
        }
        Ok(smaps)
    }
}
