//! What `mapwright cache` does to the page cache: reads files into it, drops them from it, locks them in it.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::{machine, signals, size};
use mapwright_sys::page_cache::LockedPages;
use rustix::fs::Advice;
use rustix::process::{Resource, getrlimit};

use super::residency::{Method, PAGE, Residency, Target, Want};

/// Bytes read at once.
const STEP: usize = 1 << 20;
/// Bytes that are at least asked for ahead of what is read.
const AHEAD: u64 = 4 << 20;

/// How far long work is: a bar on a terminal, nothing elsewhere.
pub struct Progress(ProgressBar);

impl Progress {
    /// Of so many bytes.
    pub fn new(quiet: bool, bytes: u64) -> Self {
        // indicatif itself draws nothing where stderr is no terminal.
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let style = "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left: {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// Of so many files that are looked at.
    pub fn of_files(quiet: bool, files: usize) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(files as u64), target);
        let style = "{bar:30} {pos}/{len} files, {eta} left: {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// One of them is done.
    pub fn did_file(&self) {
        self.0.inc(1);
    }

    /// What is being done now.
    pub fn doing(&self, what: String) {
        self.0.set_message(what);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// Refuses to bring more into memory than is free: the first pages would be gone before the last come.
pub fn check_memory(bytes: u64, verb: &str) -> Result<()> {
    let Some(free) = machine::memory_bytes("MemAvailable").filter(|free| *free < bytes) else {
        return Ok(());
    };
    Err(Failure::Message(format!(
        "{} to {verb}, {} of memory available: choose less with --range or --max-size, or insist with --force",
        size::show(bytes),
        size::show(free)
    )))
}

/// Reads a range of a file, so that it is in the page cache, and nothing beside it: the kernel's own read-ahead is off, and
/// the next step is asked for while this one is read.
pub fn touch(target: &Target, bytes: &Range<u64>, progress: &Progress) -> Result<()> {
    let end = bytes.end.min(target.len);
    advise(&target.file, 0..end, Advice::Random);
    let mut buffer = vec![0; STEP];
    let mut at = bytes.start;
    let mut asked = bytes.start;
    while at < end {
        if asked < (at + AHEAD).min(end) {
            let next = (at + 2 * AHEAD).min(end);
            advise(&target.file, asked..next, Advice::WillNeed);
            asked = next;
        }
        let wanted = (end - at).min(STEP as u64) as usize;
        match target.file.read_at(&mut buffer[..wanted], at) {
            Ok(0) => return Ok(()), // it has become shorter
            Ok(read) => {
                at += read as u64;
                progress.0.inc(read as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::io(&format!("cannot read at {at}"), &target.path, error)),
        }
        signals::check()?;
    }
    Ok(())
}

/// Drops a range of a file from the page cache: whole pages. Changed pages can't be dropped until they are written; with
/// `sync` they are written first.
pub fn evict(target: &Target, bytes: &Range<u64>, sync: bool) -> Result<()> {
    if sync {
        // Also through a descriptor for reading: fsync(2).
        rustix::fs::fdatasync(&target.file)
            .map_err(|error| Failure::io("cannot write its changed pages", &target.path, error))?;
    }
    let pages = target.pages(bytes);
    let len = NonZeroU64::new((pages.end - pages.start) * PAGE);
    if len.is_none() {
        return Ok(()); // a length of 0 would mean up to the end of the file
    }
    rustix::fs::fadvise(&target.file, pages.start * PAGE, len, Advice::DontNeed)
        .map_err(|error| Failure::io("posix_fadvise(2)", &target.path, error))
}

/// Why pages are still cached after an eviction.
pub fn why_stayed(found: &Residency) -> String {
    let stayed = found.cached;
    match found.stat {
        Some(stat) if stat.dirty + stat.writeback > 0 => {
            let busy = (stat.dirty + stat.writeback).min(stayed);
            let rest = stayed - busy;
            let others =
                if rest > 0 { format!(", {rest} are mapped, locked or in use") } else { String::new() };
            format!("{busy} have changes to be written (--sync writes them first){others}")
        }
        Some(_) => "they are mapped by a program, locked or in use".to_owned(),
        None => "they have changes to be written (--sync writes them first), or are mapped, locked or in use"
            .to_owned(),
    }
}

/// Locks a range of a file into memory.
pub fn lock(target: &Target, bytes: &Range<u64>) -> Result<Option<LockedPages>> {
    let pages = target.pages(bytes);
    if pages.is_empty() {
        return Ok(None);
    }
    let locked = LockedPages::new(target.file.as_fd(), pages.start, pages.end - pages.start);
    locked.map(Some).map_err(|error| {
        let limit = getrlimit(Resource::Memlock).current;
        let limit = limit.map_or_else(|| "unlimited".to_owned(), size::show);
        let remedy = "raise it with `ulimit -l`, run this as root, or lock less with --range";
        let what = format!("cannot lock (this process may lock {limit} in all: {remedy})");
        Failure::io(&what, &target.path, error)
    })
}

/// How much of these ranges is not cached yet, in bytes.
pub fn absent(target: &Target, bytes: &Range<u64>, method: Method) -> Result<u64> {
    let found = target.residency(bytes, Want { cells: 1, runs: false, method })?;
    Ok((found.pages - found.cached) * PAGE)
}

/// Advice is advice: a file system that takes none is read all the same.
fn advise(file: &File, bytes: Range<u64>, advice: Advice) {
    if let Some(len) = NonZeroU64::new(bytes.end.saturating_sub(bytes.start)) {
        let _ = rustix::fs::fadvise(file, bytes.start, Some(len), advice);
    }
}
