//! The report as text, with bars.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use mapwright_measure::size;

use super::{Faults, File, Process, Report, Share, Totals};
use crate::text;

/// Characters of the longest bar.
const BAR: usize = 20;
/// Files that were served, and processes, that are listed: those of which most was mapped, and those that waited longest for pages. JSON has all.
const FILES: usize = 12;
const PROCESSES: usize = 8;
/// Files that are named for one reason why they are the kernel's.
const NAMED: usize = 3;

/// A time in the unit that people would use.
pub(super) fn time(microseconds: f64) -> String {
    match microseconds {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.1} ms", us / 1e3),
        us => format!("{us:.1} µs"),
    }
}

/// How many faults there were and how long they took.
pub(super) fn faults(faults: &Faults) -> String {
    let mut out = format!("faults {}", faults.count);
    if let (Some(mean), Some(median), Some(most), Some(longest)) = (
        faults.mean_microseconds,
        faults.median_microseconds,
        faults.percentile_99_microseconds,
        faults.longest_microseconds,
    ) {
        let [all, mean, median, most, longest] =
            [faults.total_microseconds, mean, median, most, longest].map(time);
        let _ = write!(
            out,
            ", {all} in all: mean {mean}, half within {median}, 99% within {most}, longest {longest}"
        );
    }
    out
}

/// What a process ran.
pub(super) fn name(process: &Process) -> String {
    match (process.pid, &process.program) {
        (0, _) => "other processes".to_owned(),
        (pid, Some(program)) => format!("process {pid}, {}", text::show_path(Path::new(program))),
        (pid, None) => format!("process {pid}"),
    }
}

/// Processes that had something served, those that waited longest first, and how many there are beyond `most`.
pub(super) fn busiest(report: &Report, most: usize) -> (Vec<&Process>, usize) {
    let mut all: Vec<&Process> = report
        .processes
        .iter()
        .filter(|process| {
            process.cut_short || process.files.iter().any(|share| share.maps + share.faults.count > 0)
        })
        .collect();
    all.sort_by(|a, b| waited(b).total_cmp(&waited(a)));
    let more = all.len().saturating_sub(most);
    all.truncate(most);
    (all, more)
}

/// Microseconds that a process waited for pages.
fn waited(process: &Process) -> f64 {
    process.files.iter().map(|share| share.faults.total_microseconds).sum()
}

fn bar(part: f64, most: f64) -> String {
    let filled = if most > 0.0 { (part / most * BAR as f64).ceil() as usize } else { 0 };
    (0..BAR).map(|at| if at < filled { '#' } else { '.' }).collect()
}

/// The whole report.
pub(super) fn say(report: &Report) -> String {
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
    files(&mut out, report);
    processes(&mut out, report);
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

fn shown(path: &str) -> String {
    text::show_path(Path::new(path)).to_string()
}

fn files(out: &mut String, report: &Report) {
    if report.files.is_empty() {
        let _ = writeln!(out, "  no file was mapped by what can be served");
    }
    let mut served: Vec<&File> = report.files.iter().filter(|file| file.maps > 0).collect();
    served.sort_by_key(|file| std::cmp::Reverse(file.mapped_bytes));
    let most = |of: fn(&File) -> f64| served.iter().map(|file| of(file)).fold(0.0, f64::max);
    let most_mapped = most(|file| file.mapped_bytes as f64);
    let most_read = most(|file| file.pager.read_bytes as f64);
    let most_waited = most(|file| file.pager.faults.total_microseconds);
    for file in served.iter().take(FILES) {
        let (maps, processes, pager) = (file.maps, file.processes.len(), &file.pager);
        let _ = writeln!(out, "  {} ({})", shown(&file.path), size::show(file.length));
        let (mapped, read) = (size::show(file.mapped_bytes), size::show(pager.read_bytes));
        let of_mapped = bar(file.mapped_bytes as f64, most_mapped);
        let _ = writeln!(out, "    {of_mapped} served {mapped}, maps {maps}, processes {processes}");
        let of_read = bar(pager.read_bytes as f64, most_read);
        let (ahead, fills, evictions) = (size::show(pager.read_ahead_bytes), pager.fills, pager.evictions);
        let _ =
            write!(out, "    {of_read} read {read} ({ahead} ahead), fills {fills}, evictions {evictions}");
        if pager.failed_fills > 0 {
            let _ = write!(out, ", failed {}", pager.failed_fills);
        }
        if pager.written_back_bytes > 0 {
            let _ = write!(out, ", written back {}", size::show(pager.written_back_bytes));
        }
        let of_waited = bar(pager.faults.total_microseconds, most_waited);
        let _ = writeln!(out, "\n    {of_waited} {}", faults(&pager.faults));
        for (why, count) in &file.given_back {
            let _ = writeln!(out, "    given back to the kernel, maps {count}: {}", shown(why));
        }
    }
    if served.len() > FILES {
        let rest = &served[FILES..];
        let mapped = size::show(rest.iter().map(|file| file.mapped_bytes).sum());
        let _ = writeln!(out, "  and {} files more, served {mapped} (--json has all)", rest.len());
    }
    kernels(out, report);
}

/// What was not served, by the reason.
fn kernels(out: &mut String, report: &Report) {
    let mut reasons: BTreeMap<&str, Vec<&File>> = BTreeMap::new();
    for file in &report.files {
        file.kernel.iter().for_each(|why| reasons.entry(why).or_default().push(file));
    }
    for (why, files) in reasons {
        let _ = writeln!(out, "  the kernel's: {}", shown(why));
        for file in files.iter().take(NAMED) {
            let _ = writeln!(out, "    {} ({})", shown(&file.path), size::show(file.length));
        }
        if files.len() > NAMED {
            let _ = writeln!(out, "    and {} files more", files.len() - NAMED);
        }
    }
}

fn processes(out: &mut String, report: &Report) {
    let (listed, more) = busiest(report, PROCESSES);
    let most = listed.iter().map(|process| waited(process)).fold(0.0, f64::max);
    for process in listed {
        let sum = |of: fn(&Share) -> u64| process.files.iter().map(of).sum::<u64>();
        let (maps, mapped) = (sum(|share| share.maps), size::show(sum(|share| share.mapped_bytes)));
        let (count, waited) = (sum(|share| share.faults.count), waited(process));
        let files = process.files.iter().filter(|share| share.maps > 0).count();
        let _ = writeln!(out, "  {}", name(process));
        let (bar, waited) = (bar(waited, most), time(waited));
        let _ = writeln!(
            out,
            "    {bar} faults {count}, {waited} in all; served {mapped}, files {files}, maps {maps}"
        );
        if process.cut_short {
            let _ =
                writeln!(out, "    it had so much to tell that the rest of its maps is not in this report");
        }
    }
    if more > 0 {
        let _ = writeln!(out, "  and {more} processes more, which waited less (--json has all)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_all_of_it() {
        let text = say(&super::super::tests::example());
        for part in [
            "exit code 3",
            "/a\\x09b<& (8 KiB)",
            "#################### served 12 KiB, maps 2, processes 2",
            "read 8 KiB (4 KiB ahead), fills 2, evictions 1, written back 100 B",
            "faults 100, 2.0 ms in all: mean 20.0 µs, half within 2.0 µs, 99% within 2.0 µs, longest 1.9 ms",
            "maps 1: mprotect(2)",
            "less than 1 MiB",
            "the kernel's: less than 1 MiB mapped\n    /c (10 B)",
            "process 7, /bin/x\n    #################### faults 100, 2.0 ms in all; served 8 KiB, files 1, maps 1",
            "process 8, /bin/x\n    .................... faults 0, 0.0 µs in all; served 4 KiB, files 1, maps 1",
            "the rest of its maps is not in this report",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("other processes"), "which had nothing: {text}");
    }

    #[test]
    fn times_are_in_the_unit_that_fits() {
        let times = [0.25, 999.0, 1500.0, 2_500_000.0].map(time);
        assert_eq!(times, ["0.2 µs", "999.0 µs", "1.5 ms", "2.50 s"]);
    }
}
