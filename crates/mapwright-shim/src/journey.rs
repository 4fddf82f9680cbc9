//! What `mapwright run` reports: one line for each thing worth telling, appended to a file in memory that `run` has made.
//!
//! A line is fields with tabs between them, in which backslash, tab and line end are escaped: kind, process, device, inode, length of
//! the file, start and end of the map in bytes of the file, why, path. Kinds: `started`, `served`, `returned` (given back to the kernel), `kernel`
//! (never served, told once for a file and a reason), `forked` (a child of fork(2), which has something to tell), `cut` (it told so many lines that
//! it tells no more).

use std::fmt::Write as _;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::serve;

/// Lines of one process: one that maps and unmaps for ever must not fill the memory.
const MOST: u32 = 20_000;
/// Bytes of a path that are told.
const PATH: usize = 512;

static FILE: OnceLock<Option<OwnedFd>> = OnceLock::new();
static LINES: AtomicU32 = AtomicU32::new(0);
/// The process that was named by `started` or `forked`.
static NAMED: AtomicU32 = AtomicU32::new(0);

/// The line of a program that begins.
pub(crate) const STARTED: &str = "started";

/// What a line is about.
pub(crate) struct Line<'a> {
    pub(crate) kind: &'static str,
    pub(crate) file: Option<crate::beneath::Regular>,
    pub(crate) window: Range<u64>,
    pub(crate) why: &'a str,
    pub(crate) path: &'a str,
}

impl Line<'_> {
    fn of_process(kind: &'static str) -> Self {
        Self { kind, file: None, window: 0..0, why: "", path: "" }
    }
}

/// Opens the file.
pub(crate) fn open(path: &Path) {
    let open = || {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        rustix::io::fcntl_dupfd_cloexec(&file, serve::lowest_descriptor()).ok()
    };
    FILE.get_or_init(open);
}

/// The descriptor of the file.
pub(crate) fn descriptor() -> Option<i32> {
    FILE.get()?.as_ref().map(AsRawFd::as_raw_fd)
}

/// Appends a line.
pub(crate) fn tell(line: &Line<'_>) {
    let Some(Some(_)) = FILE.get() else { return };
    let pid = std::process::id();
    if NAMED.swap(pid, Ordering::Relaxed) != pid {
        LINES.store(0, Ordering::Relaxed);
        if line.kind != STARTED {
            let program = std::env::current_exe().unwrap_or_default();
            append(pid, &Line { path: &program.to_string_lossy(), ..Line::of_process("forked") });
        }
    }
    match LINES.fetch_add(1, Ordering::Relaxed) {
        ..MOST => append(pid, line),
        MOST => append(pid, &Line::of_process("cut")),
        _ => LINES.store(MOST + 1, Ordering::Relaxed), // it stays above
    }
}

fn append(pid: u32, line: &Line<'_>) {
    let Some(Some(file)) = FILE.get() else { return };
    let identity = line.file.map(|file| file.identity);
    let (device, inode) = identity.map_or((0, 0), |identity| (identity.device, identity.inode));
    let len = line.file.map_or(0, |file| file.len);
    let Range { start, end } = line.window;
    let mut text = String::with_capacity(128);
    let _ = write!(text, "{}\t{pid}\t{device}\t{inode}\t{len}\t{start}\t{end}\t", line.kind);
    escape(&mut text, line.why);
    text.push('\t');
    escape(&mut text, line.path);
    text.push('\n');
    // In one call, so that lines of many processes do not mix. Who does not hear it has lost a line of a report.
    let _ = rustix::io::write(file, text.as_bytes());
}

fn escape(into: &mut String, text: &str) {
    for c in text.chars().take(PATH) {
        match c {
            '\t' => into.push_str("\\t"),
            '\n' => into.push_str("\\n"),
            '\\' => into.push_str("\\\\"),
            other => into.push(other),
        }
    }
}
