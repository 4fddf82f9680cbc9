//! `mapwright cache`: what the kernel's page cache holds of files; reading them into it, dropping them from it, locking
//! them in it, watching them, and keeping a residency for later.
//!
//! The walk is that of `cache`: choose the files (`select`), act on each (`act`), look at each (`residency`), print the
//! lines (`rows`). A file that fails is named on stderr, the others go on, and the exit code is 1.

mod act;
mod dump;
mod residency;
mod rows;
mod select;

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::{signals, size};
use mapwright_sys::page_cache::LockedPages;
use serde::Serialize;

use crate::text;
use crate::wait::Stopper;
use act::Progress;
use rows::{Column, DEFAULT_COLUMNS, Figures, Row, Style};
use select::Selection;

pub use residency::{Method, PAGE, Target, Want};

const EXAMPLES: &str = "\
Examples:
  mapwright cache data.bin                      how much of a file is in memory, and which parts
  mapwright cache --sort res /var/lib           what of a folder is, the most first
  mapwright cache --touch --range ..1G data.bin     read the first GiB into memory
  mapwright cache --evict --sync data.bin       drop it, once its changes are on the disk
  mapwright cache --lock index/                 hold it in memory until ctrl-C
  mapwright cache --watch 5 data.bin            look again every 5 seconds
  mapwright cache --dump warm.txt /srv          note what is in memory now ...
  mapwright cache --restore warm.txt            ... and read that in again after a reboot

Exit codes: 0 done, 1 a file failed, or something asked for did not come about, 2 bad usage, 130 interrupted.";

/// Show what the page cache holds of files; touch, evict, lock, watch, dump and restore it
///
/// FILE is a regular file, a block device, or a folder, which stands for all files below it. A file with several names is
/// counted once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    selection: Selection,
    /// Only these bytes of each file, rounded to whole pages, such as 0..64M, 1G.. or ..4096
    #[arg(long, value_name = "START..END", value_parser = text::parse_range)]
    range: Option<Range<u64>>,
    /// Read it into the page cache
    #[arg(long, short, group = "action", help_heading = "What to do, instead of only showing")]
    touch: bool,
    /// Drop it from the page cache; what stays is named
    #[arg(long, short, group = "action", help_heading = "What to do, instead of only showing")]
    evict: bool,
    /// With --evict: write changed pages first, which can't be dropped otherwise
    #[arg(long, requires = "evict", help_heading = "What to do, instead of only showing")]
    sync: bool,
    /// Lock it into memory, and stay until SIGINT, SIGTERM or SIGHUP; a line on stdout says when all is locked
    #[arg(long, short, group = "action", help_heading = "What to do, instead of only showing")]
    lock: bool,
    /// Look again and again, every 2 seconds unless said otherwise, until SIGINT, SIGTERM or SIGHUP
    #[arg(long, short, value_name = "SECONDS", group = "action", num_args = 0..=1, default_missing_value = "2",
          value_parser = parse_seconds, help_heading = "What to do, instead of only showing")]
    watch: Option<f64>,
    /// With --watch: end after so many looks
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..),
          help_heading = "What to do, instead of only showing")]
    count: Option<u64>,
    /// Write which ranges are cached to DUMP (- for stdout)
    #[arg(long, value_name = "DUMP", group = "action", help_heading = "What to do, instead of only showing")]
    dump: Option<PathBuf>,
    /// Read the ranges of DUMP into the page cache again (- for stdin)
    #[arg(long, value_name = "DUMP", group = "action", help_heading = "What to do, instead of only showing")]
    restore: Option<PathBuf>,
    /// Touch, lock or restore even what memory has no room for
    #[arg(long, help_heading = "What to do, instead of only showing")]
    force: bool,
    /// The system call that is asked
    #[arg(long, value_enum, default_value = "auto", help_heading = "Output")]
    method: Method,
    /// Columns to show, in this order [default: percent,res,size,dirty,bar,file]
    #[arg(long, short = 'o', value_name = "LIST", value_delimiter = ',', help_heading = "Output")]
    columns: Vec<Column>,
    /// Sort by a column: files by name, figures with the largest first
    #[arg(long, value_name = "COLUMN", help_heading = "Output")]
    sort: Option<Column>,
    /// Also list the ranges that are cached
    #[arg(long, help_heading = "Output")]
    ranges: bool,
    /// Only the sum of all files
    #[arg(long, short = 's', help_heading = "Output")]
    total_only: bool,
    /// Only files of which something is cached
    #[arg(long, help_heading = "Output")]
    cached_only: bool,
    /// Sizes in bytes
    #[arg(long, short, help_heading = "Output")]
    bytes: bool,
    /// Columns one space apart, for programs; white space in names as \x20
    #[arg(long, short, conflicts_with = "json", help_heading = "Output")]
    raw: bool,
    /// No names above the columns
    #[arg(long, short, help_heading = "Output")]
    no_headings: bool,
    /// Characters of the bar
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000),
          help_heading = "Output")]
    bar_width: u16,
    /// Draw the bar in ASCII
    #[arg(long, help_heading = "Output")]
    ascii: bool,
    /// Print JSON; with --watch an object a line
    #[arg(long, short = 'J', help_heading = "Output")]
    json: bool,
    /// Print nothing but errors, and no progress
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("between 0.05 and 86400 seconds".to_owned()),
    }
}

/// What one look found.
#[derive(Serialize)]
struct Look {
    files: Vec<Row>,
    total: Figures,
    #[serde(skip)]
    seen: usize,
    #[serde(skip)]
    has_failures: bool,
}

impl Options {
    /// Bad combinations of options, in words.
    pub fn check(&self) -> std::result::Result<(), String> {
        match (&self.restore, self.selection.is_empty()) {
            (None, true) => Err("name at least one FILE, or --files-from, or --restore".to_owned()),
            (Some(_), false) => Err("--restore takes its files from the dump: leave FILE out".to_owned()),
            (Some(_), true) if self.range.is_some() => {
                Err("--restore takes its ranges from the dump: leave --range out".to_owned())
            }
            _ if self.dump.is_some() && self.json => {
                Err("a dump has its own format: leave --json out".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> Range<u64> {
        self.range.clone().unwrap_or(0..u64::MAX)
    }

    fn style(&self) -> Style {
        let columns = if self.columns.is_empty() { DEFAULT_COLUMNS.to_vec() } else { self.columns.clone() };
        let Self { bytes, raw, ascii, ranges, .. } = *self;
        Style { columns, bytes, raw, headings: !self.no_headings, ascii, ranges }
    }

    fn want(&self) -> Want {
        let style = self.style();
        let has = |column| style.columns.contains(&column);
        let runs = self.ranges || self.dump.is_some() || has(Column::Runs) || self.sort == Some(Column::Runs);
        let cells = if has(Column::Bar) && !self.json { u64::from(self.bar_width) } else { 1 };
        Want { cells, runs, method: self.method }
    }
}

/// Does what was asked; whether all of it came about.
pub fn cache(options: &Options) -> Result<bool> {
    signals::install()?;
    let listed = options.selection.listed()?;
    if let Some(seconds) = options.watch {
        return watch(options, &listed, Duration::from_secs_f64(seconds));
    }
    if let Some(from) = &options.restore {
        return restore(options, &dump::read(from)?);
    }
    let selected = options.selection.select(&listed)?;
    let paths = &selected.paths;
    let done = if options.touch {
        touch(options, paths)?
    } else if options.evict {
        evict(options, paths)?
    } else if options.lock {
        return Ok(lock(options, paths, selected.has_failures)? && !selected.has_failures);
    } else if let Some(to) = &options.dump {
        dump_to(options, paths, to)?
    } else {
        show(options, look(options, paths)?)?
    };
    Ok(done && !selected.has_failures)
}

/// Looks at every file.
fn look(options: &Options, paths: &[PathBuf]) -> Result<Look> {
    let (bytes, want) = (options.bytes(), options.want());
    let mut files = Vec::new();
    // A watch draws in place and would be disturbed.
    let progress = Progress::of_files(options.quiet || options.watch.is_some(), paths.len());
    let looked = each(paths, |target| {
        progress.doing(text::show_path(&target.path));
        files.push(Row::new(&target.path, target.len, target.residency(&bytes, want)?, want.runs));
        progress.did_file();
        Ok(())
    });
    progress.end();
    let has_failures = !looked?;
    Ok(Look {
        total: Figures::sum(files.iter().map(|row| &row.figures)),
        seen: files.len(),
        files,
        has_failures,
    })
}

/// Runs `work` on every file; whether none failed. A signal ends it.
fn each(paths: &[PathBuf], mut work: impl FnMut(&Target) -> Result<()>) -> Result<bool> {
    let mut is_fine = true;
    for path in paths {
        match Target::open(path).and_then(|target| work(&target)) {
            Err(Failure::Interrupted) => return Err(Failure::Interrupted),
            Err(failure) => {
                is_fine = false;
                text::warn(failure);
            }
            Ok(()) => {}
        }
        signals::check()?;
    }
    Ok(is_fine)
}

/// Prints what a look found; whether it found all.
fn show(options: &Options, mut look: Look) -> Result<bool> {
    arrange(options, &mut look);
    if !options.quiet {
        text::print(&if options.json { text::json(&look)? } else { join(&lines(options, &look)) })?;
    }
    Ok(!look.has_failures)
}

fn lines(options: &Options, look: &Look) -> Vec<String> {
    options.style().lines(&look.files, &look.total, options.total_only, look.seen)
}

fn join(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

fn arrange(options: &Options, look: &mut Look) {
    match options.sort {
        Some(Column::File) => look.files.sort_by(|a, b| a.path.cmp(&b.path)),
        Some(column) => look.files.sort_by(|a, b| b.key(column).total_cmp(&a.key(column))),
        None => {}
    }
    if options.cached_only {
        look.files.retain(|row| row.figures.cached_pages > 0);
    }
    if options.total_only && options.json {
        look.files.clear();
    }
}

fn touch(options: &Options, paths: &[PathBuf]) -> Result<bool> {
    let bytes = options.bytes();
    let mut absent = 0;
    let mut all = 0;
    let is_readable = each(paths, |target| {
        all += bytes.end.min(target.len).saturating_sub(bytes.start);
        absent += act::absent(target, &bytes, options.method).unwrap_or(target.len);
        Ok(())
    })?;
    if !options.force {
        act::check_memory(absent, "touch")?;
    }
    if !is_readable {
        // Said above; the second time below would only repeat it.
        return Err(Failure::Message("nothing was touched: leave out what can't be read".to_owned()));
    }
    let progress = Progress::new(options.quiet, all);
    let started = Instant::now();
    let is_read = each(paths, |target| {
        progress.doing(text::show_path(&target.path));
        act::touch(target, &bytes, &progress)
    });
    progress.end();
    let is_read = is_read?;
    let found = look(options, paths)?;
    let is_resident = each_short(&found);
    let is_shown = show(options, found)?;
    if !options.quiet && !options.json && !options.raw {
        let seconds = started.elapsed().as_secs_f64();
        text::print(&format!("read {} in {seconds:.2} s\n", size::show(all)))?;
    }
    Ok(is_read && is_resident && is_shown)
}

/// Names files of which something is not cached; whether there is none.
fn each_short(look: &Look) -> bool {
    let mut is_resident = true;
    for row in &look.files {
        let absent = row.figures.total_pages - row.figures.cached_pages;
        if absent > 0 {
            is_resident = false;
            text::warn(format_args!(
                "{}: {absent} pages are not in the page cache although they were read: memory is short, or this file system keeps none",
                row.shown()
            ));
        }
    }
    is_resident
}

fn evict(options: &Options, paths: &[PathBuf]) -> Result<bool> {
    let bytes = options.bytes();
    let mut is_gone = true;
    let is_fine = each(paths, |target| {
        act::evict(target, &bytes, options.sync)?;
        let found = target.residency(&bytes, Want { cells: 1, runs: false, method: options.method })?;
        if found.cached > 0 {
            is_gone = false;
            let path = text::show_path(&target.path);
            text::warn(format_args!("{path}: {} pages stayed: {}", found.cached, act::why_stayed(&found)));
        }
        Ok(())
    })?;
    Ok(show(options, look(options, paths)?)? && is_fine && is_gone)
}

fn lock(options: &Options, paths: &[PathBuf], has_failures: bool) -> Result<bool> {
    let stopper = Stopper::new()?;
    let bytes = options.bytes();
    let mut all = 0;
    each(paths, |target| {
        all += act::absent(target, &bytes, options.method).unwrap_or(target.len);
        Ok(())
    })?;
    if !options.force {
        act::check_memory(all, "lock")?;
    }
    let mut locked: Vec<LockedPages> = Vec::new();
    let is_locked = each(paths, |target| {
        locked.extend(act::lock(target, &bytes)?);
        Ok(())
    })?;
    if !is_locked || has_failures {
        return Err(Failure::Message("not everything could be locked, so nothing is".to_owned()));
    }
    let found = look(options, paths)?;
    let total = found.total.cached_bytes;
    show(options, found)?;
    if !options.quiet && !options.json {
        text::print(&format!("locked {}; ctrl-C or SIGTERM ends it\n", size::show(total)))?;
    }
    stopper.wait(None)?;
    Ok(true)
}

fn dump_to(options: &Options, paths: &[PathBuf], to: &std::path::Path) -> Result<bool> {
    let (bytes, want) = (options.bytes(), options.want());
    let mut entries = Vec::new();
    let is_fine = each(paths, |target| {
        let found = target.residency(&bytes, want)?;
        let path =
            std::path::absolute(&target.path).map_err(|error| Failure::io("no path", &target.path, error))?;
        let in_bytes = |run: Range<u64>| run.start * PAGE..run.end * PAGE;
        entries.push(dump::Entry {
            path,
            len: target.len,
            ranges: found.runs.into_iter().map(in_bytes).collect(),
        });
        Ok(())
    })?;
    dump::write(to, &entries)?;
    Ok(is_fine)
}

fn restore(options: &Options, entries: &[dump::Entry]) -> Result<bool> {
    let all: u64 = entries.iter().flat_map(|entry| &entry.ranges).map(|range| range.end - range.start).sum();
    if !options.force {
        act::check_memory(all, "restore")?;
    }
    let progress = Progress::new(options.quiet, all);
    let mut is_restored = true;
    let mut paths = Vec::new();
    for entry in entries {
        let path = [entry.path.clone()];
        is_restored &= each(&path, |target| {
            progress.doing(text::show_path(&target.path));
            if target.len != entry.len {
                let path = text::show_path(&target.path);
                text::warn(format_args!(
                    "{path}: it had {} bytes when it was dumped and has {} now: restoring what there is",
                    entry.len, target.len
                ));
            }
            for range in &entry.ranges {
                act::touch(target, range, &progress)?;
            }
            paths.push(target.path.clone());
            let want = Want { cells: 1, runs: false, method: options.method };
            let missing = |range| target.residency(range, want).map(|found| found.pages - found.cached);
            let missing = entry.ranges.iter().map(missing).sum::<Result<u64>>()?;
            if missing > 0 {
                let why = "pages are not in the page cache although they were read: memory is short";
                return Err(Failure::Message(format!("{}: {missing} {why}", text::show_path(&target.path))));
            }
            Ok(())
        })?;
    }
    progress.end();
    Ok(show(options, look(options, &paths)?)? && is_restored)
}

/// Looks again and again. On a terminal in place, elsewhere line after line.
fn watch(options: &Options, listed: &[PathBuf], every: Duration) -> Result<bool> {
    let stopper = Stopper::new()?;
    let started = Instant::now();
    let mut is_fine = true;
    for turn in 0..options.count.unwrap_or(u64::MAX) {
        let selected = match options.selection.select(listed) {
            Err(Failure::Interrupted) => return Ok(is_fine),
            other => other?,
        };
        let mut found = match look(options, &selected.paths) {
            Err(Failure::Interrupted) => return Ok(is_fine),
            other => other?,
        };
        is_fine &= !found.has_failures && !selected.has_failures;
        arrange(options, &mut found);
        let seconds = started.elapsed().as_secs_f64();
        if options.json {
            text::print(&watch_json(&found, seconds)?)?;
        } else if !options.quiet {
            let mut lines = lines(options, &found);
            if text::is_terminal() {
                lines
                    .insert(0, format!("every {} s, after {seconds:.0} s; ctrl-C ends", every.as_secs_f64()));
                text::print(&text::in_place(&lines))?;
            } else {
                let skip = usize::from(turn > 0 && !options.no_headings);
                let lines = lines.iter().skip(skip).map(|line| format!("{seconds:>8.1}  {line}"));
                text::print(&join(&lines.collect::<Vec<_>>()))?;
            }
        }
        let is_last = options.count.is_some_and(|count| turn + 1 == count);
        if is_last || stopper.wait(Some(every))? {
            break;
        }
    }
    Ok(is_fine)
}

fn watch_json(look: &Look, seconds: f64) -> Result<String> {
    #[derive(Serialize)]
    struct Turn<'a> {
        seconds: f64,
        #[serde(flatten)]
        look: &'a Look,
    }
    serde_json::to_string(&Turn { seconds, look })
        .map(|json| json + "\n")
        .map_err(|error| Failure::Message(format!("cannot write JSON: {error}")))
}
