//! `mapwright map`: what processes map, from one read of their smaps: all that `pmap -X` shows, sorted, filtered and
//! summed by any column.

mod columns;
mod filter;
mod json;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use mapwright::Map;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;

use crate::process::Process;
use crate::process::smaps::{Area, Smaps};
use crate::text::{self, Heading, Table};
use columns::{Column, Line, Preset, Unit};
use filter::{Condition, Filter};

const EXAMPLES: &str = "\
Examples:
  mapwright map 4711                            what process 4711 maps
  mapwright map 4711 --sort rss                 the most resident first
  mapwright map 4711 --by mapping --sort pss    sums for each file
  mapwright map 4711 --by kind                  heap, stack, files, ...: what takes how much
  mapwright map 4711 --where 'swap>0' --where perm~*w*     only what is swapped out and writable
  mapwright map 4711 -X                         the columns of pmap -X
  mapwright map self --open data.bin            what opening a file with mapwright maps

Columns: Address, Perm, Offset, Device, Inode, Kind, Mapping, VmFlags, Note, Count, Uss (what goes away with the process),
Dirty, and all that /proc/PID/smaps tells, under the kernel's names. Letter case, - and _ make no difference.

Exit codes: 0 done, 1 a process could not be looked into, 2 bad usage.";

/// Show what a process maps: every column of smaps, sorted, filtered and summed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Process numbers, or `self`
    #[arg(value_name = "PID", required = true)]
    processes: Vec<Process>,
    /// Columns to show, in this order
    #[arg(long, short = 'o', value_name = "LIST", value_delimiter = ',')]
    columns: Vec<String>,
    /// The columns of pmap -X
    #[arg(long, short = 'X', conflicts_with_all = ["columns", "all"])]
    extended: bool,
    /// Every column there is
    #[arg(long, short, conflicts_with = "columns")]
    all: bool,
    /// Sort by a column, numbers with the largest first
    #[arg(long, value_name = "COLUMN")]
    sort: Option<String>,
    /// The other way round
    #[arg(long, requires = "sort")]
    reverse: bool,
    /// Sums for each value of a column, such as mapping, kind, perm or device
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
    /// Only mappings that meet a condition: COLUMN, one of = != < <= > >= ~ (like), VALUE; may be repeated
    #[arg(long = "where", short = 'w', value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Only mappings that touch these addresses (hexadecimal), such as 7f00..7fff or 7f1234.. or one address
    #[arg(long, short = 'A', value_name = "LOW..HIGH", value_parser = parse_addresses)]
    range: Option<Range<u64>>,
    /// With `self`: open a file with mapwright first, and say which mappings are its; may be repeated
    #[arg(long, value_name = "FILE")]
    open: Vec<PathBuf>,
    /// Sizes in bytes instead of KiB
    #[arg(long, short, conflicts_with = "human")]
    bytes: bool,
    /// Sizes with units
    #[arg(long, short = 'H')]
    human: bool,
    /// No process above, no names, no sum below
    #[arg(long, short)]
    quiet: bool,
    /// Print JSON, sizes in bytes
    #[arg(long, short = 'J')]
    json: bool,
}

fn parse_addresses(text: &str) -> std::result::Result<Range<u64>, String> {
    let (low, high) = text.split_once("..").unwrap_or((text, ""));
    let is_one = !text.contains("..");
    let low = if low.is_empty() { 0 } else { parse_address(low)? };
    let high = match high {
        "" if is_one => low.saturating_add(1),
        "" => u64::MAX,
        high => parse_address(high)?,
    };
    if low < high { Ok(low..high) } else { Err(format!("the range `{text}` is empty")) }
}

/// A hexadecimal address, with or without `0x`.
pub fn parse_address(text: &str) -> std::result::Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let address = is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    address.ok_or_else(|| format!("`{text}` is not an address; write it in hexadecimal, like 7f0012345000"))
}

impl Options {
    /// Bad combinations of options, in words.
    pub fn check(&self) -> std::result::Result<(), String> {
        if !self.open.is_empty() && !self.processes.iter().any(|process| process.is_self) {
            return Err("--open is for `self`: only this process opens files here".to_owned());
        }
        Ok(())
    }
}

/// Prints; whether every process could be looked into.
pub fn map(options: &Options) -> Result<bool> {
    let opened = open(&options.open)?;
    let mut is_fine = true;
    let mut all = Vec::new();
    for (index, process) in options.processes.iter().enumerate() {
        let seen = process.smaps().and_then(|smaps| {
            let notes = if process.is_self { &opened[..] } else { &[] };
            View::new(options, *process, smaps, notes)
        });
        match seen {
            Ok(view) if options.json => all.push(view),
            Ok(view) => {
                let gap = if index > 0 && !options.quiet { "\n" } else { "" };
                text::print(&format!("{gap}{}", view.table(options)))?;
            }
            Err(failure) => {
                is_fine = false;
                text::warn(failure);
            }
        }
    }
    if options.json {
        text::print(&text::json(&json::Output { processes: &all })?)?;
    }
    Ok(is_fine)
}

/// A file that this process has opened with mapwright.
struct Opened {
    path: PathBuf,
    map: Map,
}

fn open(paths: &[PathBuf]) -> Result<Vec<Opened>> {
    let open = |path: &PathBuf| match Map::open(path) {
        Ok(map) => Ok(Opened { path: path.clone(), map }),
        Err(error) => Err(Failure::Message(error.to_string())),
    };
    paths.iter().map(open).collect()
}

impl Opened {
    /// What mapwright knows of an area, if it is this file's.
    fn note(&self, area: &Area) -> Option<String> {
        let start = self.map.as_ptr() as u64;
        let end = start + self.map.len() as u64;
        let (from, to) = (start.max(area.start), end.min(area.end));
        (from < to).then(|| {
            let choice = self.map.strategy();
            format!(
                "bytes {}..{} of {}, by {:?}; {} of it resident",
                from - start,
                to - start,
                text::show_path(&self.path),
                choice.strategy(),
                size::show(self.map.resident_bytes())
            )
        })
    }
}

/// What is shown of one process.
struct View {
    process: Process,
    smaps: Smaps,
    columns: Vec<Column>,
    lines: Vec<Line>,
    total: Line,
    is_grouped: bool,
}

impl View {
    fn new(options: &Options, process: Process, smaps: Smaps, opened: &[Opened]) -> Result<Self> {
        let usage = |why: String| -> Failure { crate::bad_usage("map", &why) };
        let find = |name: &String| Column::find(name, &smaps).map_err(usage);
        let filters =
            options.conditions.iter().map(|condition| Filter::new(condition, &smaps).map_err(usage));
        let filters: Vec<Filter> = filters.collect::<Result<_>>()?;
        let is_in = |line: &Line| {
            options
                .range
                .as_ref()
                .is_none_or(|range| line.area.start < range.end && range.start < line.area.end)
        };
        let note =
            |area: &Area| opened.iter().filter_map(|file| file.note(area)).collect::<Vec<_>>().join("; ");
        let lines = smaps.areas.iter().map(|area| Line { area: area.clone(), count: 1, note: note(area) });
        let kept = |line: &Line| is_in(line) && filters.iter().all(|filter| filter.admits(line, &smaps));
        let mut lines: Vec<Line> = lines.filter(kept).collect();
        let total = sum(&lines, &smaps);
        let mut columns = choose(options, &smaps, !opened.is_empty())?;
        if let Some(by) = &options.by {
            let by = find(by)?;
            lines = group(lines, &by, &smaps);
            let is_chosen = !options.columns.is_empty();
            columns.retain(|column| *column != by && (is_chosen || column.is_summed(&smaps)));
            if !is_chosen {
                columns.push(Column::Count);
            }
            columns.push(by);
        }
        if let Some(sort) = &options.sort {
            let column = find(sort)?;
            let key = |line: &Line| column.value(line, &smaps);
            lines.sort_by(|a, b| {
                let ascending = key(a).compare(&key(b));
                let order = if column.is_number() { ascending.reverse() } else { ascending };
                if options.reverse { order.reverse() } else { order }
            });
        }
        Ok(Self { process, smaps, columns, lines, total, is_grouped: options.by.is_some() })
    }

    fn table(&self, options: &Options) -> String {
        let unit = match (options.bytes, options.human) {
            (true, _) => Unit::Bytes,
            (_, true) => Unit::Human,
            _ => Unit::Kib,
        };
        let heading = |column: &Column| Heading { name: column.name(&self.smaps), right: column.is_number() };
        let cell = |line: &Line, column: &Column| column.value(line, &self.smaps).show(column, unit);
        let mut table = Table { columns: self.columns.iter().map(heading).collect(), rows: Vec::new() };
        for line in &self.lines {
            table.rows.push(self.columns.iter().map(|column| cell(line, column)).collect());
        }
        if !options.quiet {
            let sum = |column: &Column| {
                if column.is_summed(&self.smaps) { cell(&self.total, column) } else { String::new() }
            };
            let mut sums: Vec<String> = self.columns.iter().map(sum).collect();
            if let Some(free) = sums.iter_mut().rev().find(|cell| cell.is_empty()) {
                "total".clone_into(free);
            }
            table.rows.push(sums);
        }
        let head = if options.quiet {
            String::new()
        } else {
            let unit = ["sizes in KiB", "sizes in bytes", ""][unit as usize];
            let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
            format!("{}: {}{unit}\n", self.process.pid, self.process.command())
        };
        table.lines(!options.quiet).iter().fold(head, |text, line| text + line + "\n")
    }
}

fn choose(options: &Options, smaps: &Smaps, has_notes: bool) -> Result<Vec<Column>> {
    if !options.columns.is_empty() {
        let find = |name: &String| Column::find(name, smaps).map_err(|why| crate::bad_usage("map", &why));
        return options.columns.iter().map(find).collect();
    }
    let preset = match (options.extended, options.all) {
        (true, _) => Preset::Extended,
        (_, true) => Preset::All,
        _ => Preset::Short,
    };
    let mut columns = Column::preset(preset, smaps);
    if has_notes {
        columns.push(Column::Note);
    }
    Ok(columns)
}

/// One line for each value of a column, in the order in which they first come.
fn group(lines: Vec<Line>, by: &Column, smaps: &Smaps) -> Vec<Line> {
    let mut groups: Vec<Vec<Line>> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for line in lines {
        let key = by.value(&line, smaps).show(by, Unit::Bytes);
        let at = *known.entry(key).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Vec::new());
        }
        groups[at].push(line);
    }
    groups.iter().map(|lines| sum(lines, smaps)).collect()
}

/// The sum of lines; what is no sum is that of the first.
fn sum(lines: &[Line], smaps: &Smaps) -> Line {
    let area = lines.first().map(|line| line.area.clone()).unwrap_or_default();
    let mut total = Line { area, count: lines.iter().map(|line| line.count).sum(), note: String::new() };
    total.area.values.resize(smaps.fields.len(), 0);
    for at in (0..smaps.fields.len()).filter(|at| Column::Field(*at).is_summed(smaps)) {
        total.area.values[at] = lines.iter().map(|line| line.area.values[at]).sum();
    }
    total
}
