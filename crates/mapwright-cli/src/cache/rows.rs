//! The lines of `mapwright cache`: one for each file, a sum, as a table, as plain words or as JSON.

use std::ops::Range;
use std::path::Path;

use clap::ValueEnum;
use mapwright_measure::size;
use serde::Serialize;

use super::residency::{PAGE, Residency};
use crate::text::{self, Heading, Table};

/// What can be shown of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Column {
    /// the cached share of the pages
    Percent,
    /// cached bytes, in whole pages
    Res,
    /// cached pages
    Pages,
    /// pages in the file or range
    TotalPages,
    /// bytes in the file
    Size,
    /// changed and not yet written, in bytes
    Dirty,
    /// the same in pages
    DirtyPages,
    /// being written now, in bytes
    Writeback,
    /// the same in pages
    WritebackPages,
    /// once cached and evicted since, in bytes
    Evicted,
    /// the same in pages
    EvictedPages,
    /// evicted recently, in bytes
    RecentlyEvicted,
    /// the same in pages
    RecentlyEvictedPages,
    /// how many runs of cached pages there are
    Runs,
    /// which parts are cached
    Bar,
    /// the name
    File,
}

/// Shown unless asked otherwise.
pub const DEFAULT_COLUMNS: [Column; 6] =
    [Column::Percent, Column::Res, Column::Size, Column::Dirty, Column::Bar, Column::File];

/// How lines are written.
#[derive(Clone, Debug)]
pub struct Style {
    /// Which, in which order.
    pub columns: Vec<Column>,
    /// Numbers of bytes instead of sizes for people.
    pub bytes: bool,
    /// For programs that split at white space.
    pub raw: bool,
    /// Whether the columns have names above them.
    pub headings: bool,
    /// Whether the bar is drawn in ASCII.
    pub ascii: bool,
    /// The runs of every file below its line.
    pub ranges: bool,
}

/// One file.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name; where that is no UTF-8, as well as text can say it.
    pub path: String,
    /// Its name as bytes, where that is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// How it is shown.
    #[serde(skip)]
    shown: String,
    #[serde(skip)]
    cells: Vec<f64>,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// Byte ranges that are cached, in whole pages, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<Range<u64>>>,
}

/// The figures of a file, or of all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Bytes in the file.
    pub size: u64,
    /// Pages looked at.
    pub total_pages: u64,
    /// Of these, cached.
    pub cached_pages: u64,
    /// The same in bytes.
    pub cached_bytes: u64,
    /// Of these, changed and not yet written; absent where only mincore(2) answers.
    pub dirty_pages: Option<u64>,
    /// Of these, being written.
    pub writeback_pages: Option<u64>,
    /// Once cached, and evicted since.
    pub evicted_pages: Option<u64>,
    /// Of those, recently.
    pub recently_evicted_pages: Option<u64>,
}

impl Row {
    /// Of one file; `ranges` says whether its runs are wanted.
    pub fn new(path: &Path, len: u64, found: Residency, ranges: bool) -> Self {
        let stat = found.stat.as_ref();
        let figures = Figures {
            size: len,
            total_pages: found.pages,
            cached_pages: found.cached,
            cached_bytes: found.cached * PAGE,
            dirty_pages: stat.map(|stat| stat.dirty),
            writeback_pages: stat.map(|stat| stat.writeback),
            evicted_pages: stat.map(|stat| stat.evicted),
            recently_evicted_pages: stat.map(|stat| stat.recently_evicted),
        };
        let in_bytes = |run: &Range<u64>| run.start * PAGE..run.end * PAGE;
        Self {
            path: path.to_string_lossy().into_owned(),
            path_bytes: text::path_bytes(path),
            shown: text::show_path(path),
            cells: found.cells,
            figures,
            ranges: ranges.then(|| found.runs.iter().map(in_bytes).collect()),
        }
    }

    /// The name, safe on a terminal.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// A number to sort by.
    pub fn key(&self, column: Column) -> f64 {
        match column {
            Column::Runs => self.ranges.as_ref().map_or(0.0, |ranges| ranges.len() as f64),
            column => self.figures.key(column),
        }
    }
}

impl Figures {
    /// The sum of several; what one of them lacks, the sum lacks.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let zero = Some(0);
        let none = Self {
            dirty_pages: zero,
            writeback_pages: zero,
            evicted_pages: zero,
            recently_evicted_pages: zero,
            ..Self::default()
        };
        let add = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        all.fold(none, |sum, one| Self {
            size: sum.size + one.size,
            total_pages: sum.total_pages + one.total_pages,
            cached_pages: sum.cached_pages + one.cached_pages,
            cached_bytes: sum.cached_bytes + one.cached_bytes,
            dirty_pages: add(sum.dirty_pages, one.dirty_pages),
            writeback_pages: add(sum.writeback_pages, one.writeback_pages),
            evicted_pages: add(sum.evicted_pages, one.evicted_pages),
            recently_evicted_pages: add(sum.recently_evicted_pages, one.recently_evicted_pages),
        })
    }

    fn percent(&self) -> f64 {
        if self.total_pages == 0 { 0.0 } else { 100.0 * self.cached_pages as f64 / self.total_pages as f64 }
    }

    fn key(&self, column: Column) -> f64 {
        let pages = match column {
            Column::Percent => return self.percent(),
            Column::Size => self.size,
            Column::TotalPages => self.total_pages,
            Column::Dirty | Column::DirtyPages => self.dirty_pages.unwrap_or(0),
            Column::Writeback | Column::WritebackPages => self.writeback_pages.unwrap_or(0),
            Column::Evicted | Column::EvictedPages => self.evicted_pages.unwrap_or(0),
            Column::RecentlyEvicted | Column::RecentlyEvictedPages => {
                self.recently_evicted_pages.unwrap_or(0)
            }
            Column::Res | Column::Pages | Column::Runs | Column::Bar | Column::File => self.cached_pages,
        };
        pages as f64
    }
}

impl Style {
    fn size(&self, bytes: u64) -> String {
        let shown = if self.bytes { bytes.to_string() } else { size::show(bytes) };
        if self.raw { shown.replace(' ', "") } else { shown }
    }

    fn cell(&self, column: Column, figures: &Figures, row: Option<&Row>) -> String {
        let pages = |pages: Option<u64>| pages.map_or(String::new(), |pages| pages.to_string());
        let bytes = |pages: Option<u64>| pages.map_or(String::new(), |pages| self.size(pages * PAGE));
        match column {
            Column::Percent if figures.total_pages == 0 => String::new(),
            Column::Percent => format!("{:.1}%", floor_share(figures)),
            Column::Res => self.size(figures.cached_bytes),
            Column::Pages => figures.cached_pages.to_string(),
            Column::TotalPages => figures.total_pages.to_string(),
            Column::Size => self.size(figures.size),
            Column::Dirty => bytes(figures.dirty_pages),
            Column::DirtyPages => pages(figures.dirty_pages),
            Column::Writeback => bytes(figures.writeback_pages),
            Column::WritebackPages => pages(figures.writeback_pages),
            Column::Evicted => bytes(figures.evicted_pages),
            Column::EvictedPages => pages(figures.evicted_pages),
            Column::RecentlyEvicted => bytes(figures.recently_evicted_pages),
            Column::RecentlyEvictedPages => pages(figures.recently_evicted_pages),
            Column::Runs => row
                .and_then(|row| row.ranges.as_ref())
                .map_or(String::new(), |ranges| ranges.len().to_string()),
            Column::Bar => row.map_or(String::new(), |row| bar(&row.cells, self.ascii)),
            Column::File => match row {
                Some(row) if self.raw => row.shown.replace(' ', "\\x20"),
                Some(row) => row.shown.clone(),
                None => "total".to_owned(),
            },
        }
    }

    fn cells(&self, figures: &Figures, row: Option<&Row>) -> Vec<String> {
        self.columns.iter().map(|column| self.cell(*column, figures, row)).collect()
    }

    /// The lines for `rows`, of `files` that were looked at; the sum last where there is more than one file.
    pub fn lines(&self, rows: &[Row], total: &Figures, only_total: bool, files: usize) -> Vec<String> {
        let columns = self.columns.iter().map(|column| column.heading()).collect();
        let mut table = Table { columns, rows: Vec::new() };
        table.rows.extend(rows.iter().filter(|_| !only_total).map(|row| self.cells(&row.figures, Some(row))));
        if only_total || files > 1 && !self.raw {
            table.rows.push(self.cells(total, None));
        }
        let lines = if self.raw { table.raw_lines(self.headings) } else { table.lines(self.headings) };
        if !self.ranges || only_total {
            return lines;
        }
        let mut all = Vec::new();
        for (index, line) in lines.into_iter().enumerate() {
            all.push(line);
            let row = index.checked_sub(usize::from(self.headings)).and_then(|index| rows.get(index));
            let ranges = row.and_then(|row| row.ranges.as_ref());
            all.extend(ranges.into_iter().flatten().map(|range| self.range(range)));
        }
        all
    }

    fn range(&self, range: &Range<u64>) -> String {
        format!("  {}..{}  {}", range.start, range.end, self.size(range.end - range.start))
    }
}

/// A share that reads 100.0 only when nothing is missing, and 0.0 only when nothing is there.
fn floor_share(figures: &Figures) -> f64 {
    let percent = figures.percent();
    if figures.cached_pages < figures.total_pages && percent > 99.9 {
        99.9
    } else if figures.cached_pages > 0 && percent < 0.1 {
        0.1
    } else {
        percent
    }
}

/// One character for each cell: nothing, some, much or all of it cached.
fn bar(cells: &[f64], ascii: bool) -> String {
    let marks = if ascii { [' ', '.', '-', '=', '#'] } else { [' ', '░', '▒', '▓', '█'] };
    let mark = |share: &f64| match *share {
        share if share <= 0.0 => marks[0],
        share if share < 1.0 / 3.0 => marks[1],
        share if share < 2.0 / 3.0 => marks[2],
        share if share < 1.0 => marks[3],
        _ => marks[4],
    };
    format!("[{}]", cells.iter().map(mark).collect::<String>())
}

impl Column {
    fn heading(self) -> Heading {
        let name = self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_uppercase());
        Heading { name, right: !matches!(self, Self::Bar | Self::File) }
    }
}
