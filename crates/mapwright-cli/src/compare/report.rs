//! What a person reads: the header, the tables, the recommendation.

use std::fmt::Write;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::Pattern;
use super::rows::{Report, Row};
use crate::methods::Method;
use mapwright_measure::machine::Machine;
use mapwright_measure::size;

/// Two methods closer than this are called equal.
const TIE: f64 = 1.05;

/// The facts that decide how the rows are to be read.
pub fn header(machine: &Machine, file: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line(
        "machine",
        &format!(
            "{}, {} CPUs ({}), {} memory",
            machine.kernel,
            machine.cpus,
            machine.cpu_model,
            size::show(machine.memory_bytes)
        ),
    );
    line("file", file);
    let read_ahead = match machine.device_read_ahead_kib {
        Some(kib) => format!("read-ahead {kib} KiB"),
        None => "read-ahead unknown".to_owned(),
    };
    let device = machine.device.as_deref().unwrap_or("unknown device");
    line("storage", &format!("{} on {device}, {read_ahead}", machine.file_system));
    line("limit", &format!("{}: {}", size::show(machine.limit_bytes), machine.limit_enforcement));
    text
}

/// All tables, what did not run, and the recommendation.
pub fn tables(report: &Report) -> String {
    let mut text = String::new();
    for group in report.rows.chunk_by(|a, b| (a.pattern, a.threads) == (b.pattern, b.threads)) {
        table(&mut text, group);
    }
    legend(&mut text, &report.rows);
    if !report.skipped.is_empty() {
        text.push_str("\nnot run\n");
        for reason in reasons(report) {
            let _ = writeln!(text, "  {reason}");
        }
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "\nnote: {warning}");
    }
    let _ = write!(text, "\n{}", report.recommendation);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What the names of mapwright's own methods stand for; those of the kernel's are its calls.
fn legend(text: &mut String, rows: &[Row]) {
    let ran = |method: &Method| method.is_mapwright() && rows.iter().any(|row| row.method == *method);
    for (index, method) in Method::ALL.into_iter().filter(ran).enumerate() {
        let value = method.to_possible_value();
        let help = value.as_ref().and_then(PossibleValue::get_help).map(ToString::to_string);
        let gap = if index == 0 { "\n" } else { "" };
        let _ = writeln!(text, "{gap}{:<21}{}", method.name(), help.unwrap_or_default());
    }
}

/// One line for each method and reason, patterns together.
fn reasons(report: &Report) -> Vec<String> {
    let mut lines: Vec<(Method, &str, Vec<&str>)> = Vec::new();
    for skipped in &report.skipped {
        let name = skipped.pattern.name();
        match lines.iter_mut().find(|(method, why, _)| (*method, *why) == (skipped.method, &skipped.why)) {
            Some((_, _, patterns)) if patterns.last() != Some(&name) => patterns.push(name),
            Some(_) => {}
            None => lines.push((skipped.method, &skipped.why, vec![name])),
        }
    }
    lines
        .iter()
        .map(|(method, why, patterns)| format!("{} ({}): {why}", method.name(), patterns.join(", ")))
        .collect()
}

fn table(text: &mut String, rows: &[Row]) {
    let first = &rows[0];
    let sequential = first.pattern == Pattern::Sequential;
    let _ = writeln!(text, "\n{}: {}", title(first.pattern, first.threads), what(first));
    let speed_name = if sequential { "GB/s" } else { "ops/s" };
    let mut cells = vec![
        ["method", speed_name, "vs advised", "p50 µs", "p99 µs", "CPU s", "peak RSS"].map(str::to_owned),
    ];
    for row in rows {
        cells.push([
            row.method.name().to_owned(),
            if sequential {
                format!("{:.2}", row.bytes_per_second() / 1e9)
            } else {
                grouped(row.ops_per_second)
            },
            ratio_to_advised(rows, row).map_or("-".to_owned(), |ratio| format!("{ratio:.2}×")),
            format!("{:.1}", row.p50_us),
            format!("{:.1}", row.p99_us),
            format!("{:.2}", row.cpu_seconds),
            size::show(row.peak_rss_bytes),
        ]);
    }
    let mut widths = [0; 7];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in &cells {
        let _ = write!(text, "  {:<width$}", line[0], width = widths[0]);
        for (cell, width) in line[1..].iter().zip(&widths[1..]) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    if let Some(row) = rows.iter().find(|row| row.latency_of.starts_with("the batch")) {
        let _ = writeln!(text, "  the latencies of {} are of {}", row.method.name(), row.latency_of);
    }
}

/// The pattern, and the threads where there are several.
pub fn title(pattern: Pattern, threads: usize) -> String {
    match threads {
        1 => pattern.name().to_owned(),
        count => format!("{}, {count} threads", pattern.name()),
    }
}

fn what(row: &Row) -> String {
    let rounds = format!("medians of {} rounds", row.rounds);
    match row.pattern {
        Pattern::Sequential => {
            format!("{} from the start, latencies of {}; {rounds}", size::show(row.bytes), row.latency_of)
        }
        Pattern::Update => {
            format!("{} words of random pages, then made durable; {rounds}", grouped(row.ops as f64))
        }
        _ => format!("{} reads of 4 KiB; {rounds}", grouped(row.ops as f64)),
    }
}

/// A whole number with commas between the thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many times faster than mmap with advice, of the same pattern and threads.
pub fn ratio_to_advised(rows: &[Row], row: &Row) -> Option<f64> {
    let advised = rows.iter().find(|other| {
        other.method == Method::MmapAdvised && (other.pattern, other.threads) == (row.pattern, row.threads)
    })?;
    Some(row.ops_per_second / advised.ops_per_second)
}

/// What follows from the rows, one sentence or two a table.
pub fn recommendation(rows: &[Row]) -> String {
    let mut lines = vec!["recommendation".to_owned()];
    for group in rows.chunk_by(|a, b| (a.pattern, a.threads) == (b.pattern, b.threads)) {
        lines.push(format!("  {}: {}", title(group[0].pattern, group[0].threads), verdict(group)));
    }
    if lines.len() == 1 {
        lines.push("  nothing ran, so nothing follows".to_owned());
    }
    lines.join("\n")
}

fn verdict(rows: &[Row]) -> String {
    let best = |wanted: &dyn Fn(&Row) -> bool| {
        rows.iter().filter(|row| wanted(row)).max_by(|a, b| a.ops_per_second.total_cmp(&b.ops_per_second))
    };
    let Some(first) = best(&|_| true) else { return String::new() };
    let ours = best(&|row| row.method.is_mapwright());
    let kernel = best(&|row| !row.method.is_mapwright());
    let mut text = match (ours, kernel) {
        (Some(ours), Some(kernel)) => {
            let ratio = ours.ops_per_second / kernel.ops_per_second;
            let calls = |row: &Row| format!("{} ({})", row.method.name(), row.calls);
            let (our_name, kernel_name) = (ours.method.name(), kernel.method.name());
            if ratio > TIE {
                format!("use {}: {ratio:.2}× the best of the kernel's ways ({kernel_name})", calls(ours))
            } else if ratio < 1.0 / TIE {
                let ratio = 1.0 / ratio;
                format!(
                    "the kernel wins: use {}, {ratio:.2}× {our_name}, the best of mapwright's",
                    calls(kernel)
                )
            } else {
                format!(
                    "{} and {} are equally fast (within 5 %): choose by what else they give",
                    calls(ours),
                    calls(kernel)
                )
            }
        }
        _ => format!("{} ({}) is the fastest that ran", first.method.name(), first.calls),
    };
    if let Some(ratio) = ratio_to_advised(rows, first)
        && first.method != Method::MmapAdvised
    {
        text.push_str(&format!("; {} is {ratio:.2}× mmap with advice", first.method.name()));
    }
    let find = |method| rows.iter().find(|row| row.method == method);
    if let (Some(plain), Some(advised)) = (find(Method::Mmap), find(Method::MmapAdvised)) {
        let ratio = advised.ops_per_second / plain.ops_per_second;
        if ratio > 1.2 {
            text.push_str(&format!("; with mmap, give the advice: it is {ratio:.1}× as fast as without"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    #[test]
    fn says_when_mapwright_wins_and_by_how_much() {
        let rows = [
            row(Pattern::Random, Method::Pread, 20_000.0),
            row(Pattern::Random, Method::Mmap, 6_000.0),
            row(Pattern::Random, Method::MmapAdvised, 18_000.0),
            row(Pattern::Random, Method::MapwrightExplicit, 60_000.0),
        ];
        let text = recommendation(&rows);
        assert!(
            text.contains(
                "use mapwright-explicit (Map::get_many): 3.00× the best of the kernel's ways (pread)"
            ),
            "{text}"
        );
        assert!(text.contains("mapwright-explicit is 3.33× mmap with advice"), "{text}");
        assert!(text.contains("it is 3.0× as fast as without"), "{text}");
    }

    #[test]
    fn says_when_the_kernel_wins() {
        let rows = [
            row(Pattern::Sequential, Method::MmapAdvised, 20_000.0),
            row(Pattern::Sequential, Method::Mapwright, 10_000.0),
        ];
        let text = recommendation(&rows);
        assert!(text.contains("the kernel wins: use mmap-advised (madvise(2), or"), "{text}");
        assert!(text.contains("2.00× mapwright, the best of mapwright's"), "{text}");
    }

    #[test]
    fn names_the_setting_that_makes_the_difference() {
        let rows = [
            row(Pattern::Random, Method::Pread, 10_000.0),
            row(Pattern::Random, Method::Mapwright, 12_000.0),
            row(Pattern::Random, Method::MapwrightInThread, 20_000.0),
        ];
        let text = recommendation(&rows);
        let wanted = "use mapwright-in-thread (MapOptions::fault_mode(FaultMode::InThread)): 2.00×";
        assert!(text.contains(wanted), "{text}");
        let mut text = String::new();
        legend(&mut text, &rows);
        let starts: Vec<_> = text.lines().map(|line| line.split("  ").next().unwrap()).collect();
        assert_eq!(starts, ["", "mapwright", "mapwright-in-thread"]);
        assert!(text.lines().nth(1).unwrap().contains("by default"), "{text}");
    }

    #[test]
    fn calls_a_tie_a_tie() {
        let rows =
            [row(Pattern::Zipf, Method::Pread, 10_000.0), row(Pattern::Zipf, Method::Mapwright, 10_200.0)];
        assert!(recommendation(&rows).contains("equally fast"));
    }

    #[test]
    fn only_what_ran_is_recommended() {
        assert!(recommendation(&[]).contains("nothing ran"));
        let text = recommendation(&[row(Pattern::Zipf, Method::Pread, 10_000.0)]);
        assert!(
            text.contains("pread (pread(2)) is the fastest that ran") && !text.contains("mapwright"),
            "{text}"
        );
    }

    #[test]
    fn the_table_is_aligned() {
        let mut text = String::new();
        table(
            &mut text,
            &[
                row(Pattern::Random, Method::MmapAdvised, 2_000.0),
                row(Pattern::Random, Method::MapwrightInThread, 1_234_567.0),
            ],
        );
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{text}");
        assert!(lines[2].contains("1,234,567") && lines[2].contains("617.28×"), "{text}");
        assert!(lines[1].contains("1.00×") && lines[1].contains("64 MiB"), "{text}");
    }

    #[test]
    fn thousands() {
        assert_eq!(grouped(0.0), "0");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }
}
