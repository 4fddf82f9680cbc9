//! `mapwright explain`: one address of a process: its mapping, its file, its page-table entry, the page cache behind it, and
//! what a touch would do (`verdict`).
//!
//! The facts are read one after the other from a process that goes on running: they can be a moment apart.

mod verdict;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use mapwright_measure::failure::Result;
use mapwright_measure::size;
use mapwright_sys::page_state::{PageState, page_state};
use serde_json::{Value as Json, json};

use crate::cache::{Method, PAGE, Target, Want};
use crate::map::parse_address;
use crate::process::Process;
use crate::process::smaps::{Area, Kind, Smaps};
use crate::text;
use verdict::{Access, Effect, FilePage, Outcome};

const EXAMPLES: &str = "\
Examples:
  mapwright explain 4711 7f00deadb000           why does this address fault, and what would a touch cost?
  mapwright explain --json 4711 0x55d0c0de1000  the same for a program

`mapwright map PID` lists addresses. The page-table entry and the file of another user's process need root; the number of
the page frame always does.

Exit codes: 0 explained, also when a touch would be a signal; 1 the process could not be looked into; 2 bad usage.";

/// Explain an address of a process: mapping, file, page-table entry, page cache, and what a touch would do
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Process number, or `self`
    #[arg(value_name = "PID")]
    process: Process,
    /// The address, in hexadecimal
    #[arg(value_name = "ADDRESS", value_parser = parse_address)]
    address: u64,
    /// Print JSON
    #[arg(long, short = 'J')]
    json: bool,
}

/// All that was found.
struct Explanation<'a> {
    process: Process,
    address: u64,
    area: Option<&'a Area>,
    below: Option<&'a Area>,
    above: Option<&'a Area>,
    page: Option<PageState>,
    file: Option<FileFacts>,
    outcomes: [(Access, Outcome); 3],
    key: u64,
}

/// What is known of the file of a mapping.
struct FileFacts {
    path: String,
    offset: u64,
    seen: std::result::Result<Seen, String>,
}

#[derive(Clone, Copy)]
struct Seen {
    len: u64,
    page: FilePage,
    is_dirty: Option<bool>,
}

/// Looks and prints.
pub fn explain(options: &Options) -> Result<()> {
    let smaps = options.process.smaps()?;
    let explanation = Explanation::new(options.process, options.address, &smaps)?;
    text::print(&if options.json { text::json(&explanation.json())? } else { explanation.text() })
}

impl<'a> Explanation<'a> {
    fn new(process: Process, address: u64, smaps: &'a Smaps) -> Result<Self> {
        let behind = smaps.areas.partition_point(|area| area.end <= address);
        let above = smaps.areas.get(behind);
        let area = above.filter(|area| area.start <= address);
        let below = behind.checked_sub(1).and_then(|at| smaps.areas.get(at));
        let page = match area {
            Some(area) if area.kind() != Kind::Kernel => Some(read_page(process, address)?),
            _ => None,
        };
        let file = area.and_then(|area| FileFacts::new(process, area, address));
        let seen = file.as_ref().and_then(|file| file.seen.as_ref().ok()).map(|seen| seen.page);
        let outcome = |access| match area {
            Some(area) => verdict::touch(access, area, &page.unwrap_or_default(), seen),
            None => {
                let gap = below.map(|below| (address & !(PAGE - 1)).saturating_sub(below.end));
                verdict::unmapped(address, above, gap, stack_limit(process))
            }
        };
        let outcomes = [Access::Read, Access::Write, Access::Execute].map(|access| (access, outcome(access)));
        let key = smaps.fields.iter().position(|field| field.name == "ProtectionKey");
        let key = key.zip(area).and_then(|(at, area)| area.values.get(at).copied()).unwrap_or(0);
        Ok(Self { process, address, area, below, above, page, file, outcomes, key })
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("{:<12}{} ({})", "process", self.process.pid, self.process.command())];
        let mut line = |name: &str, what: String| lines.push(format!("{name:<12}{what}"));
        line("address", format!("{:012x}, byte {} of its page", self.address, self.address % PAGE));
        match self.area {
            Some(area) => {
                line("mapping", describe(area));
                line("flags", flags_in_words(area));
            }
            None => {
                line("mapping", "none".to_owned());
                self.below.iter().for_each(|area| line("below", describe(area)));
                self.above.iter().for_each(|area| line("above", describe(area)));
            }
        }
        if let Some(file) = &self.file {
            line("file", file.text());
            line("page cache", file.cache_text());
        }
        if let Some(page) = &self.page {
            line("page table", page_in_words(page));
        }
        for (access, outcome) in &self.outcomes {
            line(access.name(), format!("{}: {}", outcome.effect.name(), outcome.why));
        }
        if self.key != 0 {
            line("", format!("protection key {} may forbid a thread what the mapping allows", self.key));
        }
        lines.iter().flat_map(|line| [line, "\n"]).collect()
    }

    fn json(&self) -> Json {
        let area = |area: &Area| {
            json!({
                "start": area.start, "end": area.end, "permissions": area.permissions, "offset": area.offset,
                "kind": area.kind(), "name": String::from_utf8_lossy(&area.name),
                "flags": area.flags.split_whitespace().collect::<Vec<_>>(),
            })
        };
        let page = self.page.as_ref().map(|page| {
            json!({
                "present": page.is_present, "swapped": page.is_swapped, "file": page.is_file,
                "exclusive": page.is_exclusive, "soft_dirty": page.is_soft_dirty,
                "uffd_write_protected": page.is_uffd_protected, "guard": page.is_guard, "huge": page.is_huge,
                "zero_page": page.is_zero_page, "frame": page.frame,
                "swap": page.swap.map(|(area, place)| json!({ "area": area, "offset": place })),
            })
        });
        let touch: serde_json::Map<String, Json> = self
            .outcomes
            .iter()
            .map(|(access, outcome)| (access.name().to_owned(), json!(outcome)))
            .collect();
        json!({
            "pid": self.process.pid,
            "command": self.process.command(),
            "address": self.address,
            "mapping": self.area.map(area),
            "below": self.below.map(area),
            "above": if self.area.is_some() { None } else { self.above.map(area) },
            "file": self.file.as_ref().map(FileFacts::json),
            "page": page,
            "protection_key": self.key,
            "touch": touch,
        })
    }
}

impl FileFacts {
    /// Of the file that a mapping shows at an address; none for memory that is of no file.
    fn new(process: Process, area: &Area, address: u64) -> Option<Self> {
        let is_file = area.inode != 0 && !matches!(area.kind(), Kind::Device | Kind::Kernel | Kind::Hugetlb);
        if !is_file {
            return None;
        }
        let offset = area.offset + (address - area.start);
        let path = text::show_path(Path::new(std::ffi::OsStr::from_bytes(&area.name)));
        Some(Self { path, offset, seen: look(process, area, offset) })
    }

    fn text(&self) -> String {
        let len = match &self.seen {
            Ok(seen) => format!(" of {} ({})", seen.len, size::show(seen.len)),
            Err(_) => String::new(),
        };
        format!("byte {}{len}, page {}: {}", self.offset, self.offset / PAGE, self.path)
    }

    fn cache_text(&self) -> String {
        match &self.seen {
            Err(why) => format!("could not be asked: {why}"),
            Ok(seen) if seen.page.is_past_end => "the page lies behind the end of the file".to_owned(),
            Ok(seen) => match (seen.page.is_cached, seen.is_dirty) {
                (Some(true), Some(true)) => "has the page, changed and not yet written".to_owned(),
                (Some(true), Some(false)) => "has the page, clean".to_owned(),
                (Some(true), None) => "has the page".to_owned(),
                (Some(false), _) if seen.page.is_swapped => "has had the page".to_owned(),
                _ => "does not have the page".to_owned(),
            },
        }
    }

    fn json(&self) -> Json {
        let seen = self.seen.as_ref().ok();
        json!({
            "path": self.path,
            "offset": self.offset,
            "size": seen.map(|seen| seen.len),
            "past_end": seen.map(|seen| seen.page.is_past_end),
            "cached": seen.and_then(|seen| seen.page.is_cached),
            "dirty": seen.and_then(|seen| seen.is_dirty),
            "unknown_because": self.seen.as_ref().err(),
        })
    }
}

/// Asks the page cache about one page of the file behind a mapping.
fn look(process: Process, area: &Area, offset: u64) -> std::result::Result<Seen, String> {
    let target = open(process, area)?;
    let page = offset / PAGE * PAGE;
    if page >= target.len.next_multiple_of(PAGE) {
        let page = FilePage { is_past_end: true, is_cached: Some(false), is_swapped: false };
        return Ok(Seen { len: target.len, page, is_dirty: None });
    }
    let want = Want { cells: 1, runs: false, method: Method::Auto };
    let found = target.residency(&(page..page + PAGE), want).map_err(|failure| failure.to_string())?;
    let is_memory = matches!(area.kind(), Kind::Memfd | Kind::SharedMemory | Kind::PagerFrames);
    let is_swapped = is_memory && found.stat.is_some_and(|stat| stat.evicted > 0);
    let page = FilePage { is_past_end: false, is_cached: Some(found.cached > 0), is_swapped };
    Ok(Seen { len: target.len, page, is_dirty: found.stat.map(|stat| stat.dirty > 0) })
}

/// Opens the very file that is mapped, also one without a name, where this process may; else by its name, if that still
/// leads to it.
fn open(process: Process, area: &Area) -> std::result::Result<Target, String> {
    let by_mapping = process.path(&format!("map_files/{:x}-{:x}", area.start, area.end));
    if let Ok(target) = Target::open(&by_mapping) {
        return Ok(target);
    }
    let name = Path::new(std::ffi::OsStr::from_bytes(&area.name));
    let Ok(below_root) = name.strip_prefix("/") else { return Err("it has no name".to_owned()) };
    let path: PathBuf = process.path("root").join(below_root);
    let is_same = |metadata: &fs::Metadata| metadata.ino() == area.inode;
    match fs::metadata(&path) {
        Ok(metadata) if is_same(&metadata) => Target::open(&path).map_err(|failure| failure.to_string()),
        _ => Err("its name leads elsewhere or is hidden; run this as root to see the file itself".to_owned()),
    }
}

fn read_page(process: Process, address: u64) -> Result<PageState> {
    let pagemap = process.open("pagemap")?;
    page_state(&pagemap, address).map_err(|error| process.why(&error))
}

/// The soft limit of its stack, in bytes; none where there is no limit.
fn stack_limit(process: Process) -> Option<u64> {
    let limits = fs::read_to_string(process.path("limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max stack size"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn describe(area: &Area) -> String {
    let name = text::show_path(Path::new(std::ffi::OsStr::from_bytes(&area.name)));
    let name = if name.is_empty() { String::new() } else { format!(": {name}") };
    let len = size::show(area.end - area.start);
    format!("{:012x}-{:012x} {} {}, {len}{name}", area.start, area.end, area.permissions, area.kind().name())
}

/// What two-letter flags mean, as far as they say something that the permissions do not
/// (Documentation/filesystems/proc.rst).
fn flags_in_words(area: &Area) -> String {
    const WORDS: [(&str, &str); 17] = [
        ("gd", "grows down"),
        ("pf", "frames without a page"),
        ("lo", "locked"),
        ("io", "memory of a device"),
        ("sr", "advised sequential"),
        ("rr", "advised random"),
        ("dc", "not copied on fork"),
        ("de", "can't grow"),
        ("nr", "no swap reserved"),
        ("ht", "huge pages of a pool"),
        ("dd", "left out of core dumps"),
        ("sd", "soft-dirty"),
        ("hg", "advised huge pages"),
        ("nh", "advised no huge pages"),
        ("mg", "advised mergeable"),
        ("wf", "wiped on fork"),
        ("sl", "sealed"),
    ];
    const USERFAULTFD: [(&str, &str); 3] =
        [("um", "userfaultfd: missing"), ("uw", "userfaultfd: write-protect"), ("ui", "userfaultfd: minor")];
    let known = WORDS.iter().chain(&USERFAULTFD).filter(|(flag, _)| area.has_flag(flag));
    let words: Vec<_> = known.map(|(_, words)| *words).collect();
    let words = if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) };
    format!("{}{words}", area.flags)
}

fn page_in_words(page: &PageState) -> String {
    let mut words = Vec::new();
    if page.is_present {
        words.push("present".to_owned());
        words.push(
            if page.is_file { "page of a file or of shared memory" } else { "private page" }.to_owned(),
        );
        words.push(if page.is_exclusive { "mapped here only" } else { "others may map it too" }.to_owned());
    } else if page.is_swapped {
        words.push("swapped out, or being moved".to_owned());
    } else if page.is_guard {
        words.push("a guard".to_owned());
    } else {
        words.push("no entry".to_owned());
    }
    let marks = [
        (page.is_zero_page == Some(true), "the page of zeros"),
        (page.is_huge == Some(true), "in a huge page"),
        (page.is_soft_dirty, "soft-dirty"),
        (page.is_uffd_protected, "write-protected for a userfaultfd"),
    ];
    words.extend(marks.iter().filter(|(is_set, _)| *is_set).map(|(_, mark)| (*mark).to_owned()));
    words.extend(page.frame.map(|frame| format!("frame {frame:#x}")));
    words.extend(page.swap.map(|(area, place)| format!("swap area {area}, place {place}")));
    words.join(", ")
}

impl Access {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
        }
    }
}

impl Effect {
    fn name(self) -> &'static str {
        match self {
            Self::NoFault => "no fault",
            Self::MinorFault => "minor fault",
            Self::MajorFault => "major fault",
            Self::CopyOnWrite => "minor fault with a copy",
            Self::Userfaultfd => "userfaultfd",
            Self::Sigbus => "SIGBUS",
            Self::Sigsegv => "SIGSEGV",
            Self::Fault => "a fault",
        }
    }
}
