//! `mapwright run`: a program on a pager of its own.
//!
//! A server for the program and all that it starts, and a shim (`mapwright-shim`, carried in this binary) that is preloaded into them. docs/run.md
//! says what it covers.

mod program;
mod report;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use clap::Args;
use mapwright::guest::{keep_a_book, read_book, without_leases};
use mapwright::{Machine, Pager, Server};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;
use mapwright_sys::forward::{Blocked, end_by, stop_by};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};

use crate::text;

/// The shim, as the build script made it.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libmapwright_shim.so"));
/// How often the kernel is asked to seal it.
const TRIES_TO_SEAL: usize = 20;
/// Signals that are passed on.
const PASSED_ON: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
/// Exit codes of shells, for what could not be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

const EXAMPLES: &str = "\
Examples:
  mapwright run -- sha256sum big.iso
                                   a program that maps nothing: as without
  mapwright run --limit 64MiB --report -- rg --mmap pattern big.log
                                   64 MiB for all that it maps, and what became of it
  mapwright run --report=report.svg -- ./program argument
                                   a picture of it, for a browser

What is mapped of regular files on local disks, 1 MiB or more, for reading, or to be written by a program that has the file alone, is served by a pager
with its own limit; all else is the kernel's, as without. Static programs and set-user-id programs run on the kernel's mmap, or not at all with --strict.

Exit codes: those of the program; if a signal ends it, this one ends by the same; 127 there is no such program, 126 it could not be
run, 1 it was not run, 2 bad usage.";

/// Run a program on a pager of its own
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The most memory for what is mapped, frames and tables together [default: an eighth of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    limit: Option<u64>,
    /// Bytes that are read and evicted together: a power of two from 4 KiB to 2 MiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = parse_block)]
    block: u32,
    /// Do not run what can't be served
    #[arg(long)]
    strict: bool,
    /// Report at the end, to standard error or to a file; one that is called .svg gets a picture, and one called .json JSON
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    report: Option<PathBuf>,
    /// Report as JSON
    #[arg(long, requires = "report")]
    json: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

fn parse_block(text: &str) -> std::result::Result<u32, String> {
    let bytes = size::parse(text)?;
    match u32::try_from(bytes) {
        Ok(block) if block.is_power_of_two() && (4096..=2 << 20).contains(&block) => Ok(block),
        _ => Err(format!("blocks of {bytes} bytes: give a power of two from 4 KiB to 2 MiB")),
    }
}

/// Runs the program; the exit code.
pub fn run(options: &Options) -> Result<u8> {
    let none = || Failure::Message("no program".to_owned());
    let (name, arguments) = options.program.split_first().ok_or_else(none)?;
    let Some(path) = program::find(name) else {
        text::warn(format_args!("{}: there is no such program", text::show_path(Path::new(name))));
        return Ok(NOT_FOUND);
    };
    let obstacle = obstacle(&path);
    if let (Some(why), true) = (&obstacle, options.strict) {
        return Err(Failure::Message(why.clone()));
    }
    let signals: Vec<i32> = PASSED_ON.iter().copied().chain([SIGCHLD, SIGTSTP]).collect();
    // Before any thread is there, so that none of them gets a signal.
    let blocked = Blocked::block(&signals).map_err(|e| Failure::Message(format!("signals: {e}")))?;
    let mut command = Command::new(name);
    command.args(arguments);
    blocked.restore_in(&mut command);
    let tree = match &obstacle {
        None => Some(Tree::prepare(options, &mut command)?),
        Some(_) => None,
    };
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            text::warn(format_args!("{}: {error}", text::show_path(&path)));
            return Ok(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
        }
    };
    crate::serve::raise_descriptor_limit(); // of this process alone: the program keeps its own
    let server = tree.as_ref().map(|tree| &tree.server);
    let status =
        supervise(&blocked, &mut child, server).map_err(|e| Failure::io("cannot wait for it", &path, e))?;
    if let Some(to) = &options.report {
        let ran = report::Ran { program: &path, status, obstacle, limit: tree.as_ref().map(Tree::limit) };
        let report = report::make(&ran, tree.as_ref().map(Tree::told).transpose()?);
        report::write(&report, to, options.json)?;
    }
    drop(tree);
    if let Some(signal) = status.signal() {
        let _ = end_by(signal);
        return Ok(u8::try_from(128 + signal).unwrap_or(1));
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Whether this binary carries what is preloaded.
pub fn has_shim() -> bool {
    !SHIM.is_empty()
}

/// Why nothing can be served, if it is so.
fn obstacle(program: &Path) -> Option<String> {
    if !has_shim() {
        return Some("this mapwright was built without the shim that is preloaded into programs".to_owned());
    }
    program::obstacle(program).or_else(|| match Machine::probe().userfaultfd {
        Err(error) => Some(error.to_string()),
        Ok(facts) if facts.user_mode_only => Some(
            "this user's userfaultfd does not serve system calls, to which programs hand what they have mapped: run as root, set \
             vm.unprivileged_userfaultfd=1, or allow /dev/userfaultfd (mapwright doctor says more)"
                .to_owned(),
        ),
        Ok(_) => None,
    })
}

/// Waits for the program's end, and passes signals on meanwhile.
fn supervise(blocked: &Blocked, child: &mut Child, server: Option<&Server>) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let arrived = blocked.wait()?;
        if arrived.signal == SIGTSTP {
            // A server that is stopped keeps those waiting who write what it serves.
            match server {
                Some(server) => without_leases(server, || stop_by(SIGTSTP))?,
                None => stop_by(SIGTSTP)?,
            }
        }
        // What a terminal sends, the program has got too.
        if PASSED_ON.contains(&arrived.signal)
            && arrived.by_process
            && let Some(signal) = Signal::from_named_raw(arrived.signal)
        {
            let _ = kill_process(Pid::from_child(child), signal); // it may have ended
        }
    }
}

/// What a tree of processes is served with. Dropped when the program has ended: what goes on running has its maps from the kernel.
struct Tree {
    pager: Pager,
    server: Server,
    _shim: OwnedFd,
    lines: File,
    _folder: Folder,
}

impl Tree {
    /// Starts a server, and has the shim preloaded.
    fn prepare(options: &Options, command: &mut Command) -> Result<Self> {
        let failed = |error: mapwright::Error| Failure::Message(error.to_string());
        let limit = options.limit.unwrap_or_else(an_eighth);
        let pager = Pager::builder().budget(limit).build().map_err(failed)?;
        let folder = Folder::make()?;
        let socket = folder.0.join("socket");
        let server = Server::bind(&pager, &socket).map_err(failed)?;
        if options.report.is_some() {
            keep_a_book(&server);
        }
        let in_memory = |e: io::Error| Failure::Message(format!("a file in memory: {e}"));
        let shim = shim().map_err(in_memory)?;
        let lines =
            memfd_create("mapwright-run-report", MemfdFlags::CLOEXEC).map_err(|e| in_memory(e.into()))?;
        let path = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        let mut preload = std::env::var_os("LD_PRELOAD").unwrap_or_default();
        if !preload.is_empty() {
            preload.push(":");
        }
        preload.push(path(&shim));
        command.env("LD_PRELOAD", preload).env("MAPWRIGHT_RUN_SOCKET", &socket);
        command
            .env("MAPWRIGHT_RUN_REPORT", path(&lines))
            .env("MAPWRIGHT_RUN_BLOCK", options.block.to_string());
        Ok(Self { pager, server, _shim: shim, lines: lines.into(), _folder: folder })
    }

    fn limit(&self) -> u64 {
        self.pager.budget()
    }

    /// What is known at the end.
    fn told(&self) -> Result<report::Told> {
        let (lines, stats) = (self.lines()?, self.pager.stats());
        Ok(report::Told { lines, book: read_book(&self.server), stats })
    }

    /// What the shims have told.
    fn lines(&self) -> Result<String> {
        use std::os::unix::fs::FileExt as _;
        let failed = |e: io::Error| Failure::Message(format!("the report: {e}"));
        let len = self.lines.metadata().map_err(failed)?.len();
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.lines.read_exact_at(&mut bytes, 0).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The shim as a file in memory that nobody can change.
fn shim() -> io::Result<OwnedFd> {
    let fd = memfd_create("libmapwright_shim.so", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = SHIM;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = &rest[written..];
    }
    seal(&fd)?;
    Ok(fd)
}

/// Seals a file that nobody maps. The kernel may have its pages in hand all the same, to move them or to see who uses them, and then waits 150 ms
/// before it says EBUSY (`memfd_wait_for_pins`).
fn seal(fd: &OwnedFd) -> io::Result<()> {
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    let mut tries = std::iter::repeat_with(|| fcntl_add_seals(fd, all)).take(TRIES_TO_SEAL);
    Ok(tries.find(|sealed| *sealed != Err(Errno::BUSY)).unwrap_or(Err(Errno::BUSY))?)
}

/// An eighth of the machine's memory, in bytes.
fn an_eighth() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64 * u64::from(info.mem_unit) / 8).max(8 << 20)
}

/// A folder for the socket, which nobody else may enter.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self> {
        // A socket's path is short: TMPDIR may not be.
        let of_user = std::env::temp_dir();
        let base = if of_user.as_os_str().len() < 60 { of_user } else { PathBuf::from("/tmp") };
        let mut number = [0; 8];
        let _ = rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty());
        let name = format!("mapwright-run-{}-{:016x}", std::process::id(), u64::from_ne_bytes(number));
        let path = base.join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::io("cannot make a folder for the socket", &path, error))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The server takes its socket away.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
