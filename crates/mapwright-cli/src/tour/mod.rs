//! `mapwright tour`: what memory-mapped files do, step by step, each done for real on a file and measured.
//!
//! The user's file is only ever read. What writes or truncates works on a copy of its first bytes, which is removed in the end
//! whatever happens.

pub mod other;
mod steps;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use clap::Args;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::sample::{self, OwnFile};
use mapwright_measure::{signals, size};
use serde_json::{Value as Json, json};

use crate::cache::Target;
use crate::text;
use steps::{Ground, Step, WALKS};

const EXAMPLES: &str = "\
Examples:
  mapwright tour data.bin          the tour on a file of yours, which is only read
  mapwright tour                   on a sample that is made and removed
  mapwright tour --json            the figures, for a program

A few MiB of the file around the byte that is touched are dropped from the page cache first, so that the first touch shows a
read. What writes works on a copy of at most 16 MiB in $TMPDIR, the current directory or /var/tmp.

Exit codes: 0 every step came about, 1 one did not, or failed, 2 bad usage, 130 interrupted.";

/// Walk through what memory-mapped files do, each step done for real and measured
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// A file to read; without it a sample of 16 MiB is made and removed afterwards
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, short = 'J')]
    json: bool,
}

/// The most that is copied.
const MOST: u64 = 16 << 20;
/// The least: a smaller file is continued with other bytes.
const LEAST: u64 = 1 << 20;

/// Walks; whether every step came about.
pub fn tour(options: &Options) -> Result<bool> {
    signals::install()?;
    let made = if options.file.is_none() { Some(sample::make(MOST)?) } else { None };
    let path = made.as_ref().map(|own| &own.path).or(options.file.as_ref());
    let path = path.ok_or_else(|| Failure::Message("no file".to_owned()))?;
    let target = Target::open(path)?;
    if target.len == 0 {
        return Err(Failure::Message(format!("{}: it is empty: there is nothing to map", path.display())));
    }
    let own = copy(&target)?;
    let copy = File::options().read(true).write(true).open(&own.path);
    let copy = copy.map_err(|error| Failure::io("cannot open", &own.path, error))?;
    let copy_len = copy.metadata().map_err(|error| Failure::io("cannot look", &own.path, error))?.len();
    let ground = Ground { file: &target, copy: &copy, copy_path: &own.path, copy_len };
    if !options.json {
        text::print(&format!(
            "{}, {}; what writes works on a copy of {}, removed in the end\n\n",
            text::show_path(path),
            size::show(target.len),
            size::show(copy_len)
        ))?;
    }
    let mut all = Vec::new();
    let mut holds = true;
    for walk in WALKS {
        for step in walk(&ground)? {
            holds &= step.holds;
            all.push(step_json(&step));
            if !options.json {
                text::print(&show(all.len(), &step))?;
            }
        }
        signals::check()?;
    }
    if options.json {
        let tour = json!({ "file": path.to_string_lossy(), "size": target.len, "copy_size": copy_len, "steps": all });
        text::print(&text::json(&tour)?)?;
    }
    Ok(holds)
}

/// A copy of the first bytes, on a disk.
fn copy(target: &Target) -> Result<OwnFile> {
    let len = target.len.clamp(LEAST, MOST);
    let own = sample::make(len)?;
    let fill = || -> std::io::Result<()> {
        let mut bytes = Vec::new();
        (&target.file).take(target.len.min(len)).read_to_end(&mut bytes)?;
        let to = File::options().write(true).open(&own.path)?;
        to.write_all_at(&bytes, 0)?;
        to.sync_all()
    };
    fill().map_err(|error| Failure::io("cannot copy", &target.path, error))?;
    Ok(own)
}

fn show(number: usize, step: &Step) -> String {
    let mark = if step.holds { "" } else { "   (this is not what should have been seen)" };
    format!("{number:>2}  {:<66} {}{mark}\n    {}\n\n", step.title, step.measured, step.words)
}

fn step_json(step: &Step) -> Json {
    json!({
        "step": step.name, "title": step.title, "says": step.words, "figures": step.figures, "came_about": step.holds,
    })
}
