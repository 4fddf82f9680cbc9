//! What `mapwright run` says at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use mapwright::Stats;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;
use serde::Serialize;

use crate::text;

/// Bytes that a bar of the text stands for at most: all that was mapped of one file.
const BAR: usize = 20;

/// The program that ran.
pub struct Ran<'a> {
    pub program: &'a Path,
    pub status: ExitStatus,
    /// Why nothing was served.
    pub obstacle: Option<String>,
    pub limit: Option<u64>,
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
    fault_median_microseconds: Option<f64>,
    fault_99th_percentile_microseconds: Option<f64>,
}

/// One line of a shim: see `journey.rs` of mapwright-shim.
struct Line<'a> {
    kind: &'a str,
    pid: u32,
    file: (u64, u64),
    length: u64,
    bytes: u64,
    why: String,
    path: String,
}

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

/// Puts together what is known.
pub fn make(ran: &Ran<'_>, lines: Option<String>, stats: Option<Stats>) -> Report {
    let (mut programs, mut files) = (Vec::new(), BTreeMap::<(u64, u64), File>::new());
    for line in lines.iter().flat_map(|text| text.lines()).filter_map(parse) {
        if line.kind == "started" {
            programs.push(Started { pid: line.pid, path: line.path });
            continue;
        }
        let file = files.entry(line.file).or_default();
        if file.path.is_empty() || !line.path.is_empty() {
            file.path = line.path; // the latest that is known: behind chroot(2) there may be none
        }
        file.length = file.length.max(line.length);
        match line.kind {
            "served" => {
                file.maps += 1;
                file.mapped_bytes += line.bytes;
                if !file.processes.contains(&line.pid) {
                    file.processes.push(line.pid);
                }
            }
            "returned" if line.why != "unmapped" => *file.given_back.entry(line.why).or_default() += 1,
            "kernel" if !file.kernel.contains(&line.why) => file.kernel.push(line.why),
            _ => {}
        }
    }
    Report {
        program: ran.program.to_string_lossy().into_owned(),
        exit_code: ran.status.code(),
        signal: ran.status.signal(),
        not_served: ran.obstacle.clone(),
        limit_bytes: ran.limit,
        programs,
        files: files.into_values().collect(),
        totals: stats.as_ref().map(totals),
    }
}

fn totals(stats: &Stats) -> Totals {
    let microseconds =
        |quantile| stats.fault_latency_quantile(quantile).map(|time| time.as_nanos() as f64 / 1000.0);
    Totals {
        faults: stats.faults,
        fills: stats.fills,
        read_bytes: stats.filled_bytes,
        read_ahead_bytes: stats.read_ahead_bytes,
        evictions: stats.evictions,
        failed_fills: stats.failed_fills,
        fault_median_microseconds: microseconds(0.5),
        fault_99th_percentile_microseconds: microseconds(0.99),
    }
}

/// Writes it to standard error, for `-`, or to a file.
pub fn write(report: &Report, to: &Path, as_json: bool) -> Result<()> {
    let text = if as_json { text::json(report)? } else { in_words(report) };
    if to.as_os_str() == "-" {
        // Who has closed standard error does not want to know.
        let _ = std::io::stderr().write_all(text.as_bytes());
        return Ok(());
    }
    std::fs::write(to, text).map_err(|error| Failure::io("cannot write the report", to, error))
}

fn in_words(report: &Report) -> String {
    let shown = |path: &str| text::show_path(Path::new(path));
    let mut out = format!("mapwright run: {}", shown(&report.program));
    match (report.exit_code, report.signal) {
        (Some(code), _) => _ = writeln!(out, " ended with exit code {code}"),
        (_, Some(signal)) => _ = writeln!(out, " was ended by signal {signal}"),
        _ => out.push('\n'),
    }
    if let Some(why) = &report.not_served {
        let _ = writeln!(out, "  on the kernel's mmap: {why}");
        return out;
    }
    let most = report.files.iter().map(|file| file.mapped_bytes).max().unwrap_or(0);
    for file in &report.files {
        let _ = writeln!(out, "  {} ({})", shown(&file.path), size::show(file.length));
        if file.maps > 0 {
            let filled = (file.mapped_bytes as u128 * BAR as u128).div_ceil(most.max(1).into()) as usize;
            let bar: String = (0..BAR).map(|at| if at < filled { '#' } else { '.' }).collect();
            let (maps, processes) = (file.maps, file.processes.len());
            let bytes = size::show(file.mapped_bytes);
            let _ = writeln!(out, "    {bar} served {bytes}, maps {maps}, processes {processes}");
        }
        for (why, count) in &file.given_back {
            let _ = writeln!(out, "    given back to the kernel, maps {count}: {}", shown(why));
        }
        for why in &file.kernel {
            let _ = writeln!(out, "    the kernel's: {}", shown(why));
        }
    }
    if report.files.is_empty() {
        let _ = writeln!(out, "  no file was mapped by what can be served");
    }
    if let (Some(totals), Some(limit)) = (&report.totals, report.limit_bytes) {
        let Totals { faults, fills, evictions, .. } = totals;
        let (read, ahead) = (size::show(totals.read_bytes), size::show(totals.read_ahead_bytes));
        let _ = writeln!(
            out,
            "  in all, with a limit of {}: faults {faults}, fills {fills}, read {read} ({ahead} ahead), evictions {evictions}",
            size::show(limit)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let lines = "started\t7\t0\t0\t0\t0\t0\t\t/bin/x\n\
                     served\t7\t1\t2\t8192\t0\t8192\t\t/a\\tb\n\
                     served\t8\t1\t2\t8192\t0\t4096\t\t/a\\tb\n\
                     returned\t7\t1\t2\t0\t0\t8192\tunmapped\t/a\\tb\n\
                     returned\t8\t1\t2\t0\t0\t4096\tmprotect(2)\t/a\\tb\n\
                     kernel\t7\t1\t3\t10\t0\t10\tless than 1 MiB mapped\t/c\n\
                     no line at all\n";
        let ran = Ran {
            program: Path::new("/bin/x"),
            status: ExitStatus::from_raw(3 << 8),
            obstacle: None,
            limit: Some(1 << 20),
        };
        make(&ran, Some(lines.to_owned()), Some(mapwright::Pager::builder().build().unwrap().stats()))
    }

    #[test]
    fn lines_become_files() {
        let report = example();
        assert_eq!(report.programs, [Started { pid: 7, path: "/bin/x".to_owned() }]);
        let [served, kernel] = &report.files[..] else { panic!("{report:?}") };
        assert_eq!((served.path.as_str(), served.length, served.maps), ("/a\tb", 8192, 2));
        assert_eq!((served.mapped_bytes, &served.processes[..]), (12288, &[7, 8][..]));
        assert_eq!(served.given_back.iter().collect::<Vec<_>>(), [(&"mprotect(2)".to_owned(), &1)]);
        assert_eq!(kernel.kernel, ["less than 1 MiB mapped"]);
        assert_eq!((report.exit_code, report.signal), (Some(3), None));
    }

    #[test]
    fn the_text_names_all_of_it() {
        let text = in_words(&example());
        for part in [
            "exit code 3",
            "/a\\x09b (8 KiB)",
            "served 12 KiB, maps 2",
            "maps 1: mprotect(2)",
            "less than 1 MiB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
