//! The steps of the tour. Each does what it tells of, measures it, and says whether it came about.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use mapwright::Map;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;
use mapwright_sys::bare::{BareMap, Faults, Sharing, faults};
use mapwright_sys::page_cache::{CacheStat, cachestat};
use mapwright_sys::page_state::page_state;
use serde_json::{Value as Json, json};

use super::other::{Answer, Other};
use crate::cache::{Method, PAGE, Target, Want};

/// `SIGBUS` and `SIGSEGV` (signal(7); the same on every architecture that this builds for).
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
/// Bytes around the page to be touched that are dropped from the page cache.
const COLD: u64 = 8 << 20;
/// Bytes around it of which the cached pages are counted: more than any read-ahead fetches.
const NEAR: u64 = 128 << 20;
/// Loads of the second touch.
const REPEATS: u32 = 1000;

/// One step, done.
pub struct Step {
    /// A name for programs.
    pub name: &'static str,
    /// What was done.
    pub title: String,
    /// The figures, for people.
    pub measured: String,
    /// What it shows, in a sentence or two.
    pub words: &'static str,
    /// The figures, for programs.
    pub figures: Json,
    /// Whether what `words` claims was seen.
    pub holds: bool,
}

/// What the tour is about.
pub struct Ground<'a> {
    /// The user's file, only ever read.
    pub file: &'a Target,
    /// A file of the tour's own, with the same first bytes.
    pub copy: &'a File,
    /// Where that is.
    pub copy_path: &'a Path,
    /// Its length: at least two pages.
    pub copy_len: u64,
}

/// A step: does, measures, tells.
pub type Walk = fn(&Ground<'_>) -> Result<Vec<Step>>;

/// All of them, in order.
pub const WALKS: [Walk; 5] = [read, share, write, guard, truncate];

fn failed(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Message(format!("{what}: {error}"))
}

/// What a piece of work takes: time and faults.
fn measure<T>(work: impl FnOnce() -> T) -> Result<(T, Duration, Faults)> {
    let before = faults().map_err(failed("getrusage(2)"))?;
    let started = Instant::now();
    let done = work();
    let time = started.elapsed();
    let after = faults().map_err(failed("getrusage(2)"))?;
    Ok((done, time, Faults { minor: after.minor - before.minor, major: after.major - before.major }))
}

fn micros(time: Duration) -> String {
    let micros = time.as_nanos() as f64 / 1000.0;
    if micros < 10.0 { format!("{micros:.2} µs") } else { format!("{micros:.0} µs") }
}

fn show_faults(faults: Faults) -> String {
    match (faults.minor, faults.major) {
        (0, 0) => "no fault".to_owned(),
        (minor, 0) => format!("{minor} minor"),
        (0, major) => format!("{major} major"),
        (minor, major) => format!("{major} major, {minor} minor"),
    }
}

/// Mapping, the first touch, the second touch.
fn read(ground: &Ground<'_>) -> Result<Vec<Step>> {
    let target = ground.file;
    let len = target.len as usize;
    let middle = target.len.div_ceil(PAGE) / 2 * PAGE;
    let middle = middle.min((target.len - 1) / PAGE * PAGE);
    chill(target, middle)?;
    let around = middle.saturating_sub(NEAR / 2)..(middle + NEAR / 2).min(target.len);
    // The kernel tells it only to the owner of the file and to who may write it.
    let want = Want { cells: 1, runs: false, method: Method::Auto };
    let cached = || target.residency(&around, want).ok().map(|found| found.cached);
    let read_since = |before: Option<u64>| Some(cached()?.saturating_sub(before?));
    let show = |pages: Option<u64>| {
        pages.map_or_else(|| "pages read: not told here".to_owned(), |pages| format!("{pages} pages read"))
    };
    let before = cached();

    let (map, time, _) = measure(|| BareMap::of_file(target.file.as_fd(), len, Sharing::Shared, false))?;
    let map = map.map_err(|error| Failure::io("cannot map", &target.path, error))?;
    let (is_present, read) = (is_present(&map, middle)?, read_since(before));
    let mapped = Step {
        name: "map",
        title: format!("map all {} of it", size::show(target.len)),
        measured: format!("{}, {}", micros(time), show(read)),
        words: "mmap(2) only notes which bytes belong to which addresses: nothing is read, no page is there.",
        figures: json!({
            "microseconds": time.as_secs_f64() * 1e6, "pages_read": read, "present": is_present,
        }),
        // Pages that others read meanwhile say nothing against it.
        holds: !is_present,
    };

    let at = middle as usize;
    let (_, time, first) = measure(|| map.load(at))?;
    let read = read_since(before);
    let touched = Step {
        name: "first-touch",
        title: format!("touch one byte, at {middle}"),
        measured: format!("{}, {}, {}", micros(time), show_faults(first), show(read)),
        words: if first.major > 0 {
            "The load faults: the kernel reads the page, and by read-ahead its neighbours, while the thread waits."
        } else {
            "The load faults. The page was in the page cache already, so the kernel only had to map it."
        },
        figures: json!({
            "microseconds": time.as_secs_f64() * 1e6, "minor_faults": first.minor, "major_faults": first.major,
            "pages_read": read,
        }),
        holds: first.minor + first.major > 0,
    };

    let (_, time, second) = measure(|| (0..REPEATS).fold(0_u64, |sum, _| sum + u64::from(map.load(at))))?;
    let nanos = time.as_nanos() as f64 / f64::from(REPEATS);
    let again = Step {
        name: "second-touch",
        title: "touch it again".to_owned(),
        measured: format!("{nanos:.1} ns, {}", show_faults(second)),
        words: "Now the page is mapped: a load is a load, and the kernel hears nothing of it.",
        figures: json!({
            "nanoseconds": nanos, "minor_faults": second.minor, "major_faults": second.major,
        }),
        holds: second.major == 0 && second.minor == 0,
    };
    Ok(vec![mapped, touched, again])
}

/// Drops a part of the user's file from the page cache, so that the first touch shows a read. What stays, stays.
fn chill(target: &Target, middle: u64) -> Result<()> {
    let start = middle.saturating_sub(COLD / 2);
    let len = std::num::NonZeroU64::new((middle + COLD / 2).min(target.len).next_multiple_of(PAGE) - start);
    rustix::fs::fadvise(&target.file, start, len, rustix::fs::Advice::DontNeed)
        .map_err(|error| Failure::io("posix_fadvise(2)", &target.path, error))
}

fn is_present(map: &BareMap, offset: u64) -> Result<bool> {
    let state = File::open("/proc/self/pagemap")
        .and_then(|pagemap| page_state(&pagemap, map.address() as u64 + offset));
    state.map(|state| state.is_present).map_err(failed("/proc/self/pagemap"))
}

/// A shared page and a private one, with another process looking.
fn share(ground: &Ground<'_>) -> Result<Vec<Step>> {
    let map = |sharing| {
        BareMap::of_file(ground.copy.as_fd(), ground.copy_len as usize, sharing, true)
            .map_err(failed("cannot map the copy"))
    };
    let (shared, private) = (map(Sharing::Shared)?, map(Sharing::Private)?);
    let mut other = Other::start(ground.copy_path)?;
    let old = shared.load(0);
    let new = old ^ 0x55;
    other.ask("load 0")?; // it has the page mapped from here on
    shared.store(0, new);
    let started = Instant::now();
    let seen = other.ask("load 0")?;
    let time = started.elapsed();
    let is_seen = seen == Answer::Said(new.to_string());
    let shared_step = Step {
        name: "shared-page",
        title: format!("store a byte in a shared mapping; process {} looks", other.pid()),
        measured: format!(
            "{}, asked and answered in {}",
            if is_seen { "seen" } else { "NOT seen" },
            micros(time)
        ),
        words: "Both map the same page of the page cache: a store is seen at once, without a system call.",
        figures: json!({ "seen": is_seen, "round_trip_microseconds": time.as_secs_f64() * 1e6 }),
        holds: is_seen,
    };

    let page = PAGE as usize;
    let before = private.load(page);
    let (_, time, copied) = measure(|| private.store(page, before ^ 0x55))?;
    let is_unseen = other.ask(&format!("load {page}"))? == Answer::Said(before.to_string());
    let mut byte = [0];
    ground.copy.read_exact_at(&mut byte, PAGE).map_err(failed("cannot read the copy"))?;
    let is_kept = byte[0] == before && private.load(page) == before ^ 0x55;
    let private_step = Step {
        name: "private-page",
        title: "store a byte in a private mapping; it looks again".to_owned(),
        measured: format!(
            "{}, {}, {}",
            if is_unseen { "not seen" } else { "SEEN" },
            micros(time),
            show_faults(copied)
        ),
        words: "The store faults and gets a copy of the page: others, and the file, keep the old byte.",
        figures: json!({
            "seen": !is_unseen, "file_unchanged": is_kept, "microseconds": time.as_secs_f64() * 1e6,
            "minor_faults": copied.minor,
        }),
        holds: is_unseen && is_kept && copied.minor + copied.major > 0,
    };
    Ok(vec![shared_step, private_step])
}

/// A store, the dirty page, the flush.
fn write(ground: &Ground<'_>) -> Result<Vec<Step>> {
    let map = BareMap::of_file(ground.copy.as_fd(), ground.copy_len as usize, Sharing::Shared, true)
        .map_err(failed("cannot map the copy"))?;
    map.flush().map_err(failed("msync(2)"))?;
    let dirty =
        || cachestat(ground.copy.as_fd(), 0..ground.copy_len).ok().map(|CacheStat { dirty, .. }| dirty);
    let show =
        |dirty: Option<u64>| dirty.map_or_else(|| "not told here".to_owned(), |dirty| dirty.to_string());
    let clean = dirty();
    let (_, time, stored) = measure(|| map.store(0, map.load(0) ^ 0xaa))?;
    let after = dirty();
    let stored_step = Step {
        name: "write",
        title: "store a byte in the shared mapping of the copy".to_owned(),
        measured: format!("{}, {}, dirty pages: {}", micros(time), show_faults(stored), show(after)),
        words: if after.zip(clean).is_some_and(|(after, clean)| after > clean + 1) {
            "The page is dirty, and with it the folio of pages that it is cached in. The kernel writes them when it likes."
        } else {
            "The page is dirty: read(2) sees the byte, the disk does not have it. The kernel writes it when it likes."
        },
        figures: json!({
            "microseconds": time.as_secs_f64() * 1e6, "minor_faults": stored.minor, "dirty_pages": after,
        }),
        holds: after.zip(clean).is_none_or(|(after, clean)| after > clean),
    };
    let (flushed, time, _) = measure(|| map.flush())?;
    flushed.map_err(failed("msync(2)"))?;
    let left = dirty();
    let flushed_step = Step {
        name: "flush",
        title: "flush it: msync(2)".to_owned(),
        measured: format!("{}, dirty pages: {}", micros(time), show(left)),
        words: "Only when msync(2) has returned is the byte on the disk.",
        figures: json!({ "microseconds": time.as_secs_f64() * 1e6, "dirty_pages": left }),
        holds: left.is_none_or(|left| left == 0),
    };
    Ok(vec![stored_step, flushed_step])
}

/// The other process touches a guard page.
fn guard(ground: &Ground<'_>) -> Result<Vec<Step>> {
    let mut other = Other::start(ground.copy_path)?;
    let ready = other.ask("guard")?;
    let end = if ready == Answer::Said("ready".to_owned()) { other.end()? } else { ready };
    Ok(vec![Step {
        name: "guard-page",
        title: format!("process {} writes past its buffer, into a guard page", other.pid()),
        measured: show_end(&end),
        words: "A page without access stands behind the buffer: the first byte too many stops the program, not its data.",
        figures: json!({ "signal": signal(&end) }),
        holds: end == Answer::Killed(SIGSEGV),
    }])
}

/// The copy is cut short under two mappings: the kernel's in the other process, mapwright's in this one.
fn truncate(ground: &Ground<'_>) -> Result<Vec<Step>> {
    let last = ground.copy_len - 1;
    let map = Map::open(ground.copy_path).map_err(|error| Failure::Message(error.to_string()))?;
    let mut other = Other::start(ground.copy_path)?;
    other.ask("load 0")?;
    ground.copy.set_len(PAGE).map_err(failed("cannot cut the copy"))?;
    let end = other.ask(&format!("load {last}"))?;
    let killed = Step {
        name: "truncate-kernel",
        title: format!("cut the file; process {} touches what is gone", other.pid()),
        measured: show_end(&end),
        words: "A mapping of the kernel's outlives the bytes behind it, and the touch kills the program.",
        figures: json!({ "signal": signal(&end) }),
        holds: end == Answer::Killed(SIGBUS),
    };
    let (answer, time, _) = measure(|| map.checked(|bytes| bytes[last as usize]))?;
    let error = answer.err().map(|error| error.to_string());
    let strategy = format!("{:?}", map.strategy().strategy()).to_lowercase();
    let survived = Step {
        name: "truncate-mapwright",
        title: format!("we touch the same byte, by mapwright (strategy {strategy})"),
        measured: format!("{}, {}", if error.is_some() { "an error" } else { "NO error" }, micros(time)),
        words: "Map::checked gives an error as a value, with path and offset: this program goes on.",
        figures: json!({
            "microseconds": time.as_secs_f64() * 1e6, "error": error, "strategy": strategy,
        }),
        holds: error.is_some(),
    };
    Ok(vec![killed, survived])
}

fn signal(answer: &Answer) -> Option<i32> {
    match answer {
        Answer::Killed(signal) => Some(*signal),
        Answer::Said(_) => None,
    }
}

fn show_end(answer: &Answer) -> String {
    match answer {
        Answer::Killed(SIGSEGV) => "killed by SIGSEGV".to_owned(),
        Answer::Killed(SIGBUS) => "killed by SIGBUS".to_owned(),
        Answer::Killed(signal) => format!("killed by signal {signal}"),
        Answer::Said(_) => "NOT killed".to_owned(),
    }
}
