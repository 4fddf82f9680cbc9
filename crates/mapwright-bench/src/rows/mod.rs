//! The rows: which comparisons there are, with their goals. Sizes and counts follow from the size of the file.

mod costs;
mod growth;
mod journal;
mod programs;
mod reads;

use std::path::Path;

use clap::ValueEnum;
use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::ways::pager::Way;
use serde::Serialize;

use crate::case::Case;
use crate::materials::Materials;
use crate::task::{How, Task, Work};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// a file that is all in memory
    Resident,
    /// a cold file from its start to its end
    Scan,
    /// random pages, no hints, on 1, 4 and 16 threads
    Random,
    /// random pages in batches, beside the disk's own rate
    Batches,
    /// few pages often, most seldom, budget a quarter of the file
    Zipf,
    /// zipf reads while another thread scans
    Beside,
    /// random writes, then a flush
    Update,
    /// commits of 1 to 4,096 random pages, beside msync and embedded databases; beside checkpoints; recovery
    Commits,
    /// faults on blocks that are in memory, beside the cost of waking a thread
    Faults,
    /// a get of a resident page
    Get,
    /// memory beyond the budget
    Memory,
    /// opening a very large file, and many small ones
    Opening,
    /// how costs grow with file, budget, threads and mappings
    Growth,
    /// embedded databases, as context
    Databases,
    /// programs as they are under `mapwright run`, beside the same under the kernel
    Run,
}

/// The sizes that everything else follows from.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sizes {
    /// Bytes of the file that most rows read.
    pub file: u64,
    /// The memory limit of most rows: an eighth of the file.
    pub limit: u64,
    /// A smoke run: the least that still does everything.
    pub quick: bool,
}

impl Sizes {
    /// For a file of that many bytes.
    pub fn new(file: u64, quick: bool) -> Self {
        let file = file / (1 << 20) * (1 << 20);
        Self { file, limit: (file / 8).max(1 << 20), quick }
    }

    /// Pages of the limit: reading a quarter more evicts.
    fn limit_pages(&self) -> u64 {
        self.limit / PAGE
    }

    /// A number that does not follow from the file, less of it in a smoke run.
    fn scaled(&self, count: u64) -> u64 {
        if self.quick { count / 50 } else { count }
    }

    /// Bytes of disk that the largest row needs.
    pub fn disk(&self, rows: &[Row]) -> u64 {
        let most = rows.iter().map(|row| match row {
            Row::Growth => self.file * (growth::LARGEST + 1) + self.file / 4,
            Row::Databases => self.file * 3,
            Row::Run => self.file * 2,
            _ => self.file + self.file / 4,
        });
        most.max().unwrap_or(0)
    }

    /// Bytes of memory that a contender may use at most.
    pub fn memory(&self, rows: &[Row]) -> u64 {
        if rows.contains(&Row::Resident) { self.file * 9 / 4 + (64 << 20) } else { self.file / 2 }
    }
}

/// Makes what a row reads, and says what is compared.
pub fn cases(row: Row, sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    match row {
        Row::Resident => reads::resident(sizes, materials),
        Row::Scan => reads::scan(sizes, materials),
        Row::Random => reads::random(sizes, materials),
        Row::Batches => reads::batches(sizes, materials),
        Row::Zipf => reads::zipf(sizes, materials),
        Row::Beside => reads::beside(sizes, materials),
        Row::Update => costs::update(sizes, materials),
        Row::Commits => {
            let mut cases = costs::commits(sizes, materials)?;
            cases.push(journal::checkpoints(sizes, materials)?);
            cases.push(journal::recovery(sizes, materials)?);
            Ok(cases)
        }
        Row::Faults => costs::faults(sizes, materials),
        Row::Get => costs::get(sizes, materials),
        Row::Memory => costs::memory(sizes, materials),
        Row::Opening => costs::opening(sizes, materials),
        Row::Growth => growth::growth(sizes, materials),
        Row::Databases => reads::databases(sizes, materials),
        Row::Run => programs::cases(sizes, materials),
    }
}

/// mapwright with its default blocks.
fn pager(way: Way) -> How {
    How::Pager(way, PAGE as usize)
}

/// A task on one thread, a page at a time.
fn task(work: Work, how: How, path: &Path, len: u64, budget: u64) -> Task {
    Task { work, how, path: path.to_owned(), len, budget, threads: 1, batch: 1, sample: None }
}
