//! How much of one file the page cache holds, and where.
//!
//! cachestat(2) counts without a mapping and at the price of what is cached, so that a sparse file of 1 TiB costs nothing.
//! Where exactly the pages are only mincore(2) tells at a bearable price; it is asked for those windows alone that are
//! neither empty nor full. Kernels and file systems without cachestat(2) get mincore(2) on every window. On overlayfs
//! cachestat(2) counts the pages of the upper inode, which has none, and is not believed.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::{machine, signals};
use mapwright_sys::PAGE_SIZE;
use mapwright_sys::page_cache::{self, CacheStat};
use rustix::fs::{Access, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

/// Bytes in a page.
pub const PAGE: u64 = PAGE_SIZE as u64;
/// Pages that one call asks about: 64 MiB, a vector of 16 KiB.
const WINDOW: u64 = 16 << 10;
/// `OVERLAYFS_SUPER_MAGIC`, include/uapi/linux/magic.h.
const OVERLAYFS: u64 = 0x794c_7630;

/// Which system call tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// cachestat(2) where it answers, else mincore(2)
    Auto,
    /// cachestat(2), Linux 6.5
    Cachestat,
    /// mincore(2), without dirty, writeback and evicted pages
    Mincore,
}

/// A file, opened without side effects.
pub struct Target {
    /// As it was named.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// In bytes.
    pub len: u64,
    /// Whether mincore(2) tells the truth about it to this process.
    is_ours: bool,
    is_overlay: bool,
}

/// What of a file is looked at.
#[derive(Clone, Copy)]
pub struct Want {
    /// Parts of equal size that are counted apart.
    pub cells: u64,
    /// Whether the runs of cached pages are wanted.
    pub runs: bool,
    /// Which call to use.
    pub method: Method,
}

/// What is cached of a range of a file.
#[derive(Debug, Default)]
pub struct Residency {
    /// Pages in the range.
    pub pages: u64,
    /// Of these, in the page cache.
    pub cached: u64,
    /// What only cachestat(2) tells.
    pub stat: Option<CacheStat>,
    /// Cached share of each cell, from 0 to 1.
    pub cells: Vec<f64>,
    /// Page numbers of what is cached, where asked for.
    pub runs: Vec<Range<u64>>,
}

impl Target {
    /// Opens a regular file or a block device; anything else is refused without being opened.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Failure::io(&what, path, error)
        };
        let before = fs::metadata(path).map_err(failed("cannot look"))?;
        if !(before.is_file() || before.file_type().is_block_device()) {
            let what = if before.is_dir() { "a folder" } else { "not a regular file or block device" };
            return Err(Failure::Message(format!("{}: {what}: nothing of it is cached", path.display())));
        }
        let file = open_quietly(path).map_err(failed("cannot open"))?;
        let now = file.metadata().map_err(failed("cannot look"))?;
        if (now.dev(), now.ino()) != (before.dev(), before.ino()) {
            return Err(Failure::Message(format!(
                "{}: replaced while it was opened; try again",
                path.display()
            )));
        }
        let len =
            if now.is_file() { now.len() } else { device_len(&file).map_err(failed("cannot measure"))? };
        let is_overlay = rustix::fs::fstatfs(&file).is_ok_and(|fs| fs.f_type as u64 == OVERLAYFS);
        let is_ours = is_told_the_truth(&file, &now);
        Ok(Self { path: path.to_owned(), file, len, is_ours, is_overlay })
    }

    /// The pages that a range of bytes touches, as far as the file goes.
    pub fn pages(&self, bytes: &Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.len).div_ceil(PAGE);
        (bytes.start / PAGE).min(end)..end
    }

    /// Looks at the pages that `bytes` touches.
    pub fn residency(&self, bytes: &Range<u64>, want: Want) -> Result<Residency> {
        let pages = self.pages(bytes);
        let use_cachestat = want.method != Method::Mincore && !self.is_overlay;
        if use_cachestat {
            match self.by_cachestat(&pages, want) {
                Err(Answer::Other(error)) if want.method == Method::Cachestat || !may_lack(&error) => {
                    return Err(self.hidden_or(error, "cachestat"));
                }
                Err(Answer::Other(_)) => {}
                Err(Answer::Stop(failure)) => return Err(failure),
                Ok(residency) => return Ok(residency),
            }
        } else if want.method == Method::Cachestat {
            let why = "cachestat(2) does not see through overlayfs; use --method mincore";
            return Err(Failure::Message(format!("{}: {why}", self.path.display())));
        }
        self.by_mincore(&pages, want)
    }

    fn by_cachestat(&self, pages: &Range<u64>, want: Want) -> std::result::Result<Residency, Answer> {
        let mut found = Residency { pages: pages.end - pages.start, ..Residency::default() };
        let mut sum = CacheStat::default();
        let mut runs = Runs::default();
        let steps = if want.runs { windows(pages) } else { parts(pages, want.cells) };
        for part in steps {
            let stat = self.count(&part)?;
            sum += stat;
            let len = part.end - part.start;
            if !want.runs {
                found.cells.push(stat.cached as f64 / len as f64);
            } else if stat.cached >= len {
                runs.add(part);
            } else if stat.cached > 0 && (!self.is_ours || !self.look(&part, &mut runs)) {
                self.halve(&part, &mut runs)?;
            }
            signals::check().map_err(Answer::Stop)?;
        }
        found.cached = sum.cached;
        if want.runs {
            found.settle(pages, runs, want.cells);
        }
        // The sum and the runs were taken at slightly different times.
        found.stat = Some(CacheStat { cached: found.cached, ..sum });
        Ok(found)
    }

    fn count(&self, pages: &Range<u64>) -> std::result::Result<CacheStat, Answer> {
        page_cache::cachestat(self.file.as_fd(), pages.start * PAGE..pages.end * PAGE).map_err(Answer::Other)
    }

    /// Adds the runs of one window by mincore(2); false where it does not answer.
    fn look(&self, window: &Range<u64>, runs: &mut Runs) -> bool {
        let mut resident = vec![0; (window.end - window.start) as usize];
        let answer = page_cache::mincore(self.file.as_fd(), window.start, &mut resident);
        if answer.is_ok() {
            runs.add_bytes(window.start, &resident);
        }
        answer.is_ok()
    }

    /// Finds runs by cachestat(2) alone: for those whom mincore(2) does not tell, and for files that can't be mapped.
    fn halve(&self, pages: &Range<u64>, runs: &mut Runs) -> std::result::Result<(), Answer> {
        let stat = self.count(pages)?;
        let len = pages.end - pages.start;
        if stat.cached >= len {
            runs.add(pages.clone());
        } else if stat.cached > 0 && len > 1 {
            let middle = pages.start + len / 2;
            self.halve(&(pages.start..middle), runs)?;
            self.halve(&(middle..pages.end), runs)?;
        }
        Ok(())
    }

    fn by_mincore(&self, pages: &Range<u64>, want: Want) -> Result<Residency> {
        if !self.is_ours {
            return Err(self.hidden_or(Errno::PERM.into(), "mincore"));
        }
        let mut found = Residency { pages: pages.end - pages.start, ..Residency::default() };
        let mut runs = Runs::default();
        let mut resident = Vec::new();
        for window in windows(pages) {
            resident.clear();
            resident.resize((window.end - window.start) as usize, 0);
            page_cache::mincore(self.file.as_fd(), window.start, &mut resident)
                .map_err(|error| self.hidden_or(error, "mincore"))?;
            runs.add_bytes(window.start, &resident);
            signals::check()?;
        }
        found.settle(pages, runs, want.cells);
        if !want.runs {
            found.runs = Vec::new();
        }
        Ok(found)
    }

    fn hidden_or(&self, error: io::Error, call: &str) -> Failure {
        if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
            let why = "the kernel tells only its owner, or who may write it, what is cached of it; run this as its owner or as root";
            return Failure::Message(format!("{}: {why}", self.path.display()));
        }
        Failure::io(&format!("{call}(2)"), &self.path, error)
    }
}

impl Residency {
    fn settle(&mut self, pages: &Range<u64>, runs: Runs, cells: u64) {
        self.runs = runs.0;
        self.cached = self.runs.iter().map(|run| run.end - run.start).sum();
        let parts: Vec<_> = parts(pages, cells).collect();
        self.cells = vec![0.0; parts.len()];
        let mut first = 0;
        for (part, cell) in parts.iter().zip(&mut self.cells) {
            while self.runs.get(first).is_some_and(|run| run.end <= part.start) {
                first += 1;
            }
            let touching = self.runs[first..].iter().take_while(|run| run.start < part.end);
            let cached: u64 = touching.map(|run| run.end.min(part.end) - run.start.max(part.start)).sum();
            *cell = cached as f64 / (part.end - part.start) as f64;
        }
    }
}

/// Why cachestat(2) gave no residency.
enum Answer {
    Other(io::Error),
    Stop(Failure),
}

/// Runs of pages, in order, none touching the next.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn add(&mut self, run: Range<u64>) {
        match self.0.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.0.push(run),
        }
    }

    fn add_bytes(&mut self, first: u64, resident: &[u8]) {
        let mut page = first;
        for same in resident.chunk_by(|a, b| a & 1 == b & 1) {
            let end = page + same.len() as u64;
            if same[0] & 1 == 1 {
                self.add(page..end);
            }
            page = end;
        }
    }
}

fn windows(pages: &Range<u64>) -> Box<dyn Iterator<Item = Range<u64>>> {
    let end = pages.end;
    Box::new((pages.start..end).step_by(WINDOW as usize).map(move |start| start..(start + WINDOW).min(end)))
}

/// `count` parts of nearly equal size, none of them empty: fewer where there are fewer pages.
fn parts(pages: &Range<u64>, count: u64) -> Box<dyn Iterator<Item = Range<u64>>> {
    let (start, len) = (pages.start, pages.end - pages.start);
    let count = count.clamp(1, len.max(1));
    let edge = move |index: u64| start + (u128::from(len) * u128::from(index) / u128::from(count)) as u64;
    Box::new((0..if len == 0 { 0 } else { count }).map(move |index| edge(index)..edge(index + 1)))
}

/// Errors by which kernels and file systems say that they have no cachestat(2); a seccomp profile says EPERM to it.
fn may_lack(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM))
}

/// Opens for reading without waiting for anybody, and without changing the time of last access where that is allowed.
pub fn open_quietly(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::open(path, flags, Mode::empty())?,
        other => other?,
    };
    Ok(file.into())
}

fn device_len(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok(len)
}

/// The rule of `can_do_mincore` in mm/mincore.c: the owner, who may act as owner (CAP_FOWNER), and who may write the file.
fn is_told_the_truth(file: &File, metadata: &fs::Metadata) -> bool {
    const CAP_FOWNER: u32 = 3;
    let has_capability = || {
        machine::first_value("/proc/self/status", "CapEff")
            .and_then(|mask| u64::from_str_radix(&mask, 16).ok())
            .is_some_and(|mask| mask >> CAP_FOWNER & 1 == 1)
    };
    let may_write = || {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    };
    metadata.uid() == rustix::process::geteuid().as_raw() || may_write() || has_capability()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_pages_without_overlap() {
        for (len, count) in [(0, 5), (1, 5), (5, 5), (7, 5), (1 << 28, 32), (9, 1)] {
            let parts: Vec<_> = parts(&(3..3 + len), count).collect();
            assert!(parts.iter().all(|part| part.start < part.end), "{parts:?}");
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start), "{parts:?}");
            assert_eq!(parts.iter().map(|part| part.end - part.start).sum::<u64>(), len);
            assert_eq!(parts.len() as u64, count.min(len));
        }
    }

    #[test]
    fn runs_are_merged() {
        let mut runs = Runs::default();
        runs.add_bytes(10, &[0, 1, 0xff, 0, 1]);
        runs.add_bytes(15, &[1, 0, 2]);
        runs.add(17..20);
        assert_eq!(runs.0, [11..13, 14..16, 17..20]);
    }

    #[test]
    fn cells_follow_from_runs() {
        let mut found = Residency::default();
        found.settle(&(0..8), Runs(vec![0..1, 3..6]), 4);
        assert_eq!(found.cells, [0.5, 0.5, 1.0, 0.0]);
        assert_eq!(found.cached, 4);
    }
}
