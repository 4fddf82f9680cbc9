//! `mapwright recover` and `mapwright dump`: what became of a file under atomic commit whose program ended without closing it.
//!
//! `recover` changes nothing unless it is told to: it says what is there and what a replay would do. Opening the file for
//! atomic commit recovers it as well; the command is for looking first, for copies, and for giving a damaged journal up.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use mapwright::journal::format::{Kind, Record};
use mapwright::journal::place::{Directory, SUFFIX};
use mapwright::journal::scan::{Scan, Seen};
use mapwright::journal::{Accept, Found, JournalError, Place, discard, inspect, recover};
use mapwright::stores::{FileOptions, FileStore, Store};
use mapwright_measure::failure::{Failure, Result};
use serde::Serialize;

/// Bring a file to its last commit after a crash; without --replay or --discard, only say what is there
#[derive(Debug, Args)]
pub struct Recover {
    /// The file (not its journal)
    file: PathBuf,
    /// Replay the journal into the file, and remove it
    #[arg(long, conflicts_with = "discard")]
    replay: bool,
    /// Remove the journal without replaying it: the file stays as it is, which may be a mixture of commits
    #[arg(long)]
    discard: bool,
    /// The file is a copy, made together with its journal: accept a journal of another file
    #[arg(long, conflicts_with = "discard")]
    adopt: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Print what is in a file's journal; changes nothing
#[derive(Debug, Args)]
pub struct Dump {
    /// The journal is what is printed (there is nothing else yet that could be)
    #[arg(long, required = true)]
    journal: bool,
    /// Print every record too
    #[arg(long)]
    records: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// The file, or the journal itself
    file: PathBuf,
}

/// What `recover` prints as JSON.
#[derive(Debug, Serialize)]
struct Report {
    journal: String,
    /// `"none"`, `"found"`, `"replayed"`, `"discarded"` or `"refused"`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(flatten)]
    found: Option<Contents>,
}

/// What a journal holds for its file.
#[derive(Debug, Serialize)]
struct Contents {
    commits: u64,
    last_commit: u64,
    file_bytes: u64,
    replayed_records: u64,
    replayed_bytes: u64,
    uncommitted_entries: u64,
    journal_bytes: u64,
}

impl Contents {
    fn of(found: &Found) -> Self {
        Self {
            commits: found.scan.commits,
            last_commit: found.scan.last_commit,
            file_bytes: found.scan.file_len,
            replayed_records: found.replay.records,
            replayed_bytes: found.replay.bytes,
            uncommitted_entries: found.scan.tail_entries,
            journal_bytes: found.scan.bytes,
        }
    }
}

/// Looks, and does what it is told to; `false` if the journal was refused.
pub fn run_recover(options: &Recover) -> Result<bool> {
    let failed = |error: &dyn std::fmt::Display| Failure::Message(error.to_string());
    let file = FileStore::open(&options.file, &FileOptions { write: true, direct: false })
        .map_err(|error| failed(&error))?;
    file.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => Failure::Message(format!(
            "{}: in use by another program: what it has committed is safe, close it first",
            options.file.display()
        )),
        _ => Failure::io("lock", &options.file, error),
    })?;
    let place = Directory::of(file.as_fd(), &options.file).map_err(|error| failed(&error))?;
    let report = attempt(options, &place, &file)?;
    let text = if options.json { to_json(&report)? } else { present(&report) };
    print(&text)?;
    Ok(report.refused.is_none())
}

fn attempt(options: &Recover, place: &Directory, file: &FileStore) -> Result<Report> {
    let accept = if options.adopt { Accept::Copy } else { Accept::Own };
    let journal = place.path().display().to_string();
    let report = |outcome, found: Option<&Found>| Report {
        journal: journal.clone(),
        outcome,
        refused: None,
        found: found.map(Contents::of),
    };
    if options.discard {
        // Whatever it is: a journal that cannot be read is what this is for. A link or somebody else's file is only unlinked.
        let is_there = std::fs::symlink_metadata(place.path()).is_ok();
        discard(place).map_err(|error| Failure::Message(error.to_string()))?;
        return Ok(report(if is_there { "discarded" } else { "none" }, None));
    }
    let looked = if options.replay { recover(place, file, accept) } else { inspect(place, file, accept) };
    match looked {
        Ok(None) => Ok(report("none", None)),
        Ok(Some(found)) => Ok(report(if options.replay { "replayed" } else { "found" }, Some(&found))),
        Err(error @ JournalError::Io { .. }) => Err(Failure::Message(error.to_string())),
        Err(error) => Ok(Report { refused: Some(error.to_string()), ..report("refused", None) }),
    }
}

fn present(report: &Report) -> String {
    let journal = &report.journal;
    if let Some(why) = &report.refused {
        return format!("{why}\nnothing was changed\n");
    }
    let Some(found) = &report.found else {
        return match report.outcome {
            "discarded" => format!("{journal}: removed, not replayed\n"),
            _ => format!("{journal}: there is none; the file is what its last commit left\n"),
        };
    };
    let mut text = String::new();
    let done = report.outcome == "replayed";
    let _ = writeln!(text, "{journal}: {} commits, the last is number {}", found.commits, found.last_commit);
    let _ = writeln!(
        text,
        "  {} records, {} bytes {} written to the file, which {} {} bytes long",
        found.replayed_records,
        found.replayed_bytes,
        if done { "were" } else { "would be" },
        if done { "is now" } else { "would be" },
        found.file_bytes
    );
    if found.uncommitted_entries > 0 {
        let _ = writeln!(
            text,
            "  {} entries after the last commit {} dropped",
            found.uncommitted_entries,
            if done { "were" } else { "would be" }
        );
    }
    if !done {
        text.push_str("  nothing was changed; --replay does it\n");
    }
    text
}

/// What `dump` prints as JSON.
#[derive(Debug, Serialize)]
struct Dumped {
    journal: String,
    /// A program has the file open, and may have written meanwhile; absent where that can't be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderOut>,
    entries: Vec<EntryOut>,
}

#[derive(Debug, Serialize)]
struct HeaderOut {
    version: u32,
    unit: u32,
    inode: u64,
    born_ns: i64,
    anchor: u64,
    start: u64,
    after_commit: u64,
    file_bytes: u64,
    commits: u64,
    last_commit: u64,
    durable_commit: u64,
    tail_entries: u64,
    journal_bytes: u64,
}

#[derive(Debug, Serialize)]
struct EntryOut {
    kind: &'static str,
    position: u64,
    sequence: u64,
    previous: u64,
    durable_commit: u64,
    begins: bool,
    record_bytes: u32,
    records: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<RecordOut>,
}

#[derive(Debug, Serialize)]
struct RecordOut {
    position: u64,
    kind: &'static str,
    /// Data: where in the file. Length: the length.
    at: u64,
    bytes: u32,
}

impl EntryOut {
    fn of(seen: &Seen<'_>, with_records: bool) -> Self {
        let entry = &seen.entry;
        let (kind, file_bytes, to) = match entry.kind {
            Kind::Part => ("part", None, None),
            Kind::Commit { file_len } => ("commit", Some(file_len), None),
            Kind::Jump { to } => ("jump", None, Some(to)),
        };
        let details = seen.records.iter().filter(|_| with_records).map(|(position, record)| {
            let (kind, at, bytes) = match *record {
                Record::Data { offset, len } => ("data", offset, len),
                Record::Length(len) => ("length", len, 0),
            };
            RecordOut { position: *position, kind, at, bytes }
        });
        Self {
            kind,
            position: entry.position,
            sequence: entry.sequence,
            previous: entry.previous,
            durable_commit: entry.durable_commit,
            begins: entry.begins,
            record_bytes: entry.records,
            records: seen.records.len(),
            file_bytes,
            to,
            details: details.collect(),
        }
    }
}

/// A journal to be printed.
struct Opened {
    path: PathBuf,
    /// Or why it is not to be trusted.
    journal: std::result::Result<Arc<dyn Store>, JournalError>,
    /// Whether a program has the file locked; `None` if that can't be found out.
    in_use: Option<bool>,
    /// Keeps the lock.
    _file: Option<FileStore>,
}

/// Prints a journal; `false` if it can't be read to its end.
pub fn run_dump(options: &Dump) -> Result<bool> {
    debug_assert!(options.journal, "clap requires it");
    let Opened { path, journal, in_use, _file } = open_journal(&options.file)?;
    let mut entries = Vec::new();
    let scan = journal.and_then(|journal| {
        Scan::read_with(&*journal, None, &mut |seen| entries.push(EntryOut::of(seen, options.records)))
    });
    let (header, refused) = match scan {
        Ok(scan) => (Some(header_of(&scan)), None),
        Err(error @ JournalError::Io { .. }) => return Err(Failure::Message(error.to_string())),
        Err(error) => (None, Some(error.to_string())),
    };
    let dumped = Dumped { journal: path.display().to_string(), in_use, refused, header, entries };
    let text = if options.json { to_json(&dumped)? } else { present_dump(&dumped) };
    print(&text)?;
    Ok(dumped.refused.is_none())
}

/// Opens the journal of a file, which is locked where nobody else has locked it; or a journal that lies there without its file.
fn open_journal(given: &Path) -> Result<Opened> {
    let real = std::fs::canonicalize(given).map_err(|error| Failure::io("open", given, error))?;
    let (file, path) = match real.as_os_str().as_bytes().strip_suffix(SUFFIX.as_bytes()) {
        Some(file) => (PathBuf::from(OsStr::from_bytes(file)), real),
        None => (
            real.clone(),
            PathBuf::from([real.as_os_str(), OsStr::new(SUFFIX)].into_iter().collect::<OsString>()),
        ),
    };
    if !path.symlink_metadata().is_ok_and(|there| there.is_file()) {
        return Err(Failure::Message(format!(
            "{}: has no journal: it was closed, or never opened for atomic commit",
            given.display()
        )));
    }
    let Ok(store) = FileStore::open(&file, &FileOptions { write: true, direct: false }) else {
        // There is none, or it may not be written, and so not be locked either.
        let journal = FileStore::open(&path, &FileOptions::default())
            .map_err(|error| Failure::Message(error.to_string()))?;
        return Ok(Opened { path, journal: Ok(Arc::new(journal)), in_use: None, _file: None });
    };
    let in_use = match store.lock() {
        Ok(()) => Some(false),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(true),
        Err(_) => None,
    };
    let opened = Directory::of(store.as_fd(), &file).and_then(|place| place.open());
    let gone = || Failure::Message(format!("{}: was removed a moment ago", path.display()));
    let journal = opened.transpose().ok_or_else(gone)?;
    Ok(Opened { path, journal, in_use, _file: Some(store) })
}

fn header_of(scan: &Scan) -> HeaderOut {
    HeaderOut {
        version: mapwright::journal::format::VERSION,
        unit: scan.header.unit,
        inode: scan.header.identity.inode,
        born_ns: scan.header.identity.born_ns,
        anchor: scan.anchor.counter,
        start: scan.anchor.start,
        after_commit: scan.anchor.sequence,
        file_bytes: scan.anchor.file_len,
        commits: scan.commits,
        last_commit: scan.last_commit,
        durable_commit: scan.claimed.0,
        tail_entries: scan.tail_entries,
        journal_bytes: scan.bytes,
    }
}

fn present_dump(dumped: &Dumped) -> String {
    let mut text = format!("{}\n", dumped.journal);
    match dumped.in_use {
        Some(false) => {}
        Some(true) => {
            text.push_str("  in use by another program: what it wrote meanwhile may look like damage\n")
        }
        None => text.push_str(
            "  not locked, because the file is not here or may not be written: perhaps it is in use\n",
        ),
    }
    if let Some(header) = &dumped.header {
        let _ = writeln!(
            text,
            "  version {}, unit {}, for inode {} born {}\n  anchor {}: from {} on, after commit {}, file of {} bytes",
            header.version,
            header.unit,
            header.inode,
            header.born_ns,
            header.anchor,
            header.start,
            header.after_commit,
            header.file_bytes
        );
    }
    for entry in &dumped.entries {
        let more = match (entry.file_bytes, entry.to) {
            (Some(len), _) => format!(", file of {len} bytes"),
            (_, Some(to)) => format!(" to {to}"),
            _ => String::new(),
        };
        let begins = if entry.begins { ", begins a transaction" } else { "" };
        let _ = writeln!(
            text,
            "{:>12}  {:<6} number {} after {}: {} records, {} bytes{more}{begins}; durable: {}",
            entry.position,
            entry.kind,
            entry.sequence,
            entry.previous,
            entry.records,
            entry.record_bytes,
            entry.durable_commit
        );
        for record in &entry.details {
            let _ = writeln!(
                text,
                "{:>12}    {} {} ({} bytes)",
                record.position, record.kind, record.at, record.bytes
            );
        }
    }
    match (&dumped.refused, &dumped.header) {
        (Some(why), _) => {
            let _ = writeln!(text, "{why}");
        }
        (None, Some(header)) => {
            let _ = writeln!(
                text,
                "  {} commits, the last is number {}; {} entries after it",
                header.commits, header.last_commit, header.tail_entries
            );
        }
        (None, None) => {}
    }
    text
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|error| Failure::Message(format!("cannot write the findings as JSON: {error}")))
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::Message(format!("cannot print: {error}")))
}
