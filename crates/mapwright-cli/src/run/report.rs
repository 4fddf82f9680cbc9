//! What `mapwright run` says at the end: put together here from the lines of the shims (what was mapped, given back, not served) and
//! the book of the server (what was read, evicted and written, and how long faults took); shown by `words` and `picture`, or as JSON.

mod picture;
mod words;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use mapwright::guest::Record;
use mapwright::{FaultTimes, FileStats, Stats};
use mapwright_measure::failure::{Failure, Result};
use serde::Serialize;

use crate::text;

/// The program that ran.
pub struct Ran<'a> {
    pub program: &'a Path,
    pub status: ExitStatus,
    /// Why nothing was served.
    pub obstacle: Option<String>,
    pub limit: Option<u64>,
}

/// What a server and the shims have told.
pub struct Told {
    pub lines: String,
    pub book: Vec<Record>,
    pub stats: Stats,
}

/// The whole report; as JSON, its fields are these.
#[derive(Debug, Serialize)]
pub struct Report {
    program: String,
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// Why nothing was served at all.
    not_served: Option<String>,
    limit_bytes: Option<u64>,
    /// Programs that were started with the shim, by their executable files.
    programs: Vec<Started>,
    files: Vec<File>,
    processes: Vec<Process>,
    totals: Option<Totals>,
}

#[derive(Debug, Serialize, PartialEq)]
struct Started {
    pid: u32,
    path: String,
}

/// What became of one file.
#[derive(Debug, Default, Serialize)]
struct File {
    path: String,
    length: u64,
    /// Maps that the pager served, and their bytes.
    maps: u64,
    mapped_bytes: u64,
    processes: Vec<u32>,
    /// Maps that were given back to the kernel before they were unmapped, by the reason.
    given_back: BTreeMap<String, u64>,
    /// Why other maps of it were the kernel's from the beginning.
    kernel: Vec<String>,
    /// What the pager did for it.
    pager: Work,
}

/// What the pager did.
#[derive(Debug, Default, Serialize)]
struct Work {
    faults: Faults,
    fills: u64,
    read_bytes: u64,
    read_ahead_bytes: u64,
    failed_fills: u64,
    evictions: u64,
    write_backs: u64,
    written_back_bytes: u64,
}

/// Touches of absent pages, and how long they took from when the server heard of them.
#[derive(Debug, Default, Serialize)]
struct Faults {
    count: u64,
    total_microseconds: f64,
    mean_microseconds: Option<f64>,
    median_microseconds: Option<f64>,
    percentile_99_microseconds: Option<f64>,
    longest_microseconds: Option<f64>,
}

/// What became of the maps of one process.
#[derive(Debug, Default, Serialize)]
struct Process {
    pid: u32,
    /// What it ran, the last if it was several.
    program: Option<String>,
    /// It told no more, having told so much.
    cut_short: bool,
    files: Vec<Share>,
}

/// What one process had of one file.
#[derive(Debug, Default, Serialize)]
struct Share {
    path: String,
    maps: u64,
    mapped_bytes: u64,
    given_back: u64,
    faults: Faults,
}

/// What the pager did for all files.
#[derive(Debug, Serialize)]
struct Totals {
    faults: u64,
    fills: u64,
    read_bytes: u64,
    read_ahead_bytes: u64,
    evictions: u64,
    failed_fills: u64,
    written_back_bytes: u64,
    fault_median_microseconds: Option<f64>,
    fault_99th_percentile_microseconds: Option<f64>,
}

/// One line of a shim: see `journey.rs` of mapwright-shim.
struct Line<'a> {
    kind: &'a str,
    pid: u32,
    file: Key,
    length: u64,
    bytes: u64,
    why: String,
    path: String,
}

/// Device and inode.
type Key = (u64, u64);

fn parse(line: &str) -> Option<Line<'_>> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [kind, pid, device, inode, length, start, end, why, path] = fields[..] else { return None };
    let number = |text: &str| text.parse::<u64>().ok();
    Some(Line {
        kind,
        pid: pid.parse().ok()?,
        file: (number(device)?, number(inode)?),
        length: number(length)?,
        bytes: number(end)?.checked_sub(number(start)?)?,
        why: unescape(why),
        path: unescape(path),
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '\\' => match rest.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                other => other.unwrap_or('\\'),
            },
            other => other,
        });
    }
    plain
}

/// What is collected on the way to a report.
#[derive(Default)]
struct Collected {
    programs: Vec<Started>,
    files: BTreeMap<Key, File>,
    processes: BTreeMap<u32, Process>,
    shares: BTreeMap<(u32, Key), Share>,
}

impl Collected {
    fn process(&mut self, pid: u32) -> &mut Process {
        let process = self.processes.entry(pid).or_default();
        process.pid = pid;
        process
    }

    /// Takes a line of a shim.
    fn hear(&mut self, line: Line<'_>) {
        match line.kind {
            "started" => {
                self.process(line.pid).program = Some(line.path.clone());
                self.programs.push(Started { pid: line.pid, path: line.path });
                return;
            }
            "forked" => {
                self.process(line.pid).program = Some(line.path);
                return;
            }
            "cut" => {
                self.process(line.pid).cut_short = true;
                return;
            }
            _ => {}
        }
        let file = self.files.entry(line.file).or_default();
        if file.path.is_empty() || !line.path.is_empty() {
            file.path = line.path; // the latest that is known: behind chroot(2) there may be none
        }
        file.length = file.length.max(line.length);
        let is_served = line.kind == "served";
        if !is_served && line.kind != "returned" {
            if line.kind == "kernel" && !file.kernel.contains(&line.why) {
                file.kernel.push(line.why);
            }
            return;
        }
        let share = self.shares.entry((line.pid, line.file)).or_default();
        if is_served {
            (file.maps, share.maps) = (file.maps + 1, share.maps + 1);
            file.mapped_bytes += line.bytes;
            share.mapped_bytes += line.bytes;
            if !file.processes.contains(&line.pid) {
                file.processes.push(line.pid);
            }
        } else if line.why != "unmapped" {
            share.given_back += 1;
            *file.given_back.entry(line.why).or_default() += 1;
        }
    }

    /// Takes what the server has written down of a file.
    fn read(&mut self, record: &Record) {
        let key = (record.identity.device, record.identity.inode);
        self.files.entry(key).or_default().pager = work(&record.stats);
        for (pid, times) in &record.processes {
            self.shares.entry((*pid, key)).or_default().faults = faults(times);
        }
    }
}

/// Puts together what is known.
pub fn make(ran: &Ran<'_>, told: Option<Told>) -> Report {
    let mut collected = Collected::default();
    if let Some(told) = &told {
        told.lines.lines().filter_map(parse).for_each(|line| collected.hear(line));
        told.book.iter().for_each(|record| collected.read(record));
    }
    for ((pid, key), mut share) in std::mem::take(&mut collected.shares) {
        share.path = collected.files.get(&key).map(|file| file.path.clone()).unwrap_or_default();
        collected.process(pid).files.push(share);
    }
    Report {
        program: ran.program.to_string_lossy().into_owned(),
        exit_code: ran.status.code(),
        signal: ran.status.signal(),
        not_served: ran.obstacle.clone(),
        limit_bytes: ran.limit,
        programs: collected.programs,
        files: collected.files.into_values().collect(),
        processes: collected.processes.into_values().collect(),
        totals: told.map(|told| totals(&told.stats)),
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn faults(times: &FaultTimes) -> Faults {
    let count = times.count();
    Faults {
        count,
        total_microseconds: microseconds(times.total),
        mean_microseconds: times.mean().map(microseconds),
        median_microseconds: times.quantile(0.5).map(microseconds),
        percentile_99_microseconds: times.quantile(0.99).map(microseconds),
        longest_microseconds: (count > 0).then(|| microseconds(times.longest)),
    }
}

fn work(stats: &FileStats) -> Work {
    Work {
        faults: faults(&stats.faults),
        fills: stats.fills,
        read_bytes: stats.filled_bytes,
        read_ahead_bytes: stats.read_ahead_bytes,
        failed_fills: stats.failed_fills,
        evictions: stats.evictions,
        write_backs: stats.write_backs,
        written_back_bytes: stats.written_back_bytes,
    }
}

fn totals(stats: &Stats) -> Totals {
    let quantile = |quantile| stats.fault_latency_quantile(quantile).map(microseconds);
    Totals {
        faults: stats.faults,
        fills: stats.fills,
        read_bytes: stats.filled_bytes,
        read_ahead_bytes: stats.read_ahead_bytes,
        evictions: stats.evictions,
        failed_fills: stats.failed_fills,
        written_back_bytes: stats.written_back_bytes,
        fault_median_microseconds: quantile(0.5),
        fault_99th_percentile_microseconds: quantile(0.99),
    }
}

/// Writes it to standard error, for `-`, or to a file; as JSON if that is asked for or the file's name ends so, or as a picture.
pub fn write(report: &Report, to: &Path, as_json: bool) -> Result<()> {
    let ends = |ending: &str| to.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
    let text = if as_json || ends("json") {
        text::json(report)?
    } else if ends("svg") {
        picture::draw(report).map_err(|error| Failure::Message(format!("the report: {error}")))?
    } else {
        words::say(report)
    };
    if to.as_os_str() == "-" {
        // Who has closed standard error does not want to know.
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Ok(());
    }
    std::fs::write(to, text).map_err(|error| Failure::io("cannot write the report", to, error))
}

#[cfg(test)]
pub(super) mod tests {
    use mapwright::guest::Identity;

    use super::*;

    /// A report of one file served to two processes, and one that was not served.
    pub(in crate::run) fn example() -> Report {
        let lines = "started\t7\t0\t0\t0\t0\t0\t\t/bin/x\n\
                     served\t7\t1\t2\t8192\t0\t8192\t\t/a\\tb<&\n\
                     forked\t8\t0\t0\t0\t0\t0\t\t/bin/x\n\
                     served\t8\t1\t2\t8192\t0\t4096\t\t/a\\tb<&\n\
                     returned\t7\t1\t2\t0\t0\t8192\tunmapped\t/a\\tb<&\n\
                     returned\t8\t1\t2\t0\t0\t4096\tmprotect(2)\t/a\\tb<&\n\
                     kernel\t7\t1\t3\t10\t0\t10\tless than 1 MiB mapped\t/c\n\
                     cut\t8\t0\t0\t0\t0\t0\t\t\n\
                     no line at all\n";
        let ran = Ran {
            program: Path::new("/bin/x"),
            status: ExitStatus::from_raw(3 << 8),
            obstacle: None,
            limit: Some(1 << 20),
        };
        let mut times = FaultTimes::default();
        (times.histogram[10], times.histogram[20]) = (99, 1);
        (times.total, times.longest) = (Duration::from_millis(2), Duration::from_micros(1900));
        let mut stats = FileStats::default();
        (stats.faults, stats.filled_bytes, stats.fills, stats.evictions) = (times.clone(), 8192, 2, 1);
        (stats.read_ahead_bytes, stats.written_back_bytes) = (4096, 100);
        let identity = Identity { device: 1, inode: 2 };
        let book = vec![Record { identity, stats, processes: vec![(7, times), (0, FaultTimes::default())] }];
        let all = mapwright::Pager::builder().build().unwrap().stats();
        make(&ran, Some(Told { lines: lines.to_owned(), book, stats: all }))
    }

    #[test]
    fn lines_become_files() {
        let report = example();
        assert_eq!(report.programs, [Started { pid: 7, path: "/bin/x".to_owned() }]);
        let [served, kernel] = &report.files[..] else { panic!("{report:?}") };
        assert_eq!((served.path.as_str(), served.length, served.maps), ("/a\tb<&", 8192, 2));
        assert_eq!((served.mapped_bytes, &served.processes[..]), (12288, &[7, 8][..]));
        assert_eq!(served.given_back.iter().collect::<Vec<_>>(), [(&"mprotect(2)".to_owned(), &1)]);
        assert_eq!(kernel.kernel, ["less than 1 MiB mapped"]);
        assert_eq!((report.exit_code, report.signal), (Some(3), None));
    }

    #[test]
    fn the_book_is_told_by_file_and_by_process() {
        let report = example();
        let pager = &report.files[0].pager;
        assert_eq!((pager.faults.count, pager.fills, pager.read_bytes, pager.evictions), (100, 2, 8192, 1));
        assert_eq!(pager.faults.mean_microseconds, Some(20.0));
        assert_eq!(pager.faults.longest_microseconds, Some(1900.0));
        assert_eq!(
            (report.files[1].pager.faults.count, report.files[1].pager.faults.mean_microseconds),
            (0, None)
        );
        let [others, seven, eight] = &report.processes[..] else { panic!("{report:?}") };
        assert_eq!((others.pid, others.program.as_deref()), (0, None));
        assert_eq!((seven.pid, seven.program.as_deref(), seven.cut_short), (7, Some("/bin/x"), false));
        let share = |process: &Process| {
            let [share] = &process.files[..] else { panic!("{process:?}") };
            (share.maps, share.mapped_bytes, share.given_back, share.faults.count)
        };
        assert_eq!((share(seven), share(eight)), ((1, 8192, 0, 100), (1, 4096, 1, 0)));
        assert!(eight.cut_short && eight.files[0].path == "/a\tb<&");
    }
}
