//! The ways to read and update a file that `compare` runs against each other.
//!
//! All do the same work: every operation folds one whole page into the checksum, or adds 1 to one word of the file.

use std::path::Path;

use clap::ValueEnum;
use mapwright::Durability;
use mapwright_measure::failure::Result;
use mapwright_measure::ways::pager::{self, Way};
use mapwright_measure::ways::system_calls::{self, BUFFER, Call, DIRECT_BUFFER};
use mapwright_measure::ways::{Source, Updater, kernel_mmap};
use memmap2::Advice;
use serde::{Deserialize, Serialize};

use crate::compare::Pattern;

/// One way to reach the bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// lseek(2) and read(2) into a buffer
    Read,
    /// pread(2) into a buffer
    Pread,
    /// pread(2) with O_DIRECT, past the page cache
    Direct,
    /// update only: pread(2) and pwrite(2), fdatasync(2) at the end
    Pwrite,
    /// mmap(2) without advice; msync(2) after updates
    Mmap,
    /// mmap(2) with MADV_RANDOM or MADV_SEQUENTIAL
    MmapAdvised,
    /// mapwright's slice as it is by default: a thread of the pager serves the faults
    Mapwright,
    /// mapwright's slice, faults served in the thread that faults
    MapwrightInThread,
    /// mapwright's get and get_many, no faults
    MapwrightExplicit,
}

impl Method {
    /// Every method, in the order of the table.
    pub const ALL: [Self; 9] = [
        Self::Read,
        Self::Pread,
        Self::Direct,
        Self::Pwrite,
        Self::Mmap,
        Self::MmapAdvised,
        Self::Mapwright,
        Self::MapwrightInThread,
        Self::MapwrightExplicit,
    ];

    /// The name in options, tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Pread => "pread",
            Self::Direct => "direct",
            Self::Pwrite => "pwrite",
            Self::Mmap => "mmap",
            Self::MmapAdvised => "mmap-advised",
            Self::Mapwright => "mapwright",
            Self::MapwrightInThread => "mapwright-in-thread",
            Self::MapwrightExplicit => "mapwright-explicit",
        }
    }

    /// Whether the method exists for the pattern.
    pub fn does(self, pattern: Pattern) -> bool {
        match self {
            Self::Read | Self::Pread | Self::Direct => pattern != Pattern::Update,
            Self::Pwrite => pattern == Pattern::Update,
            _ => true,
        }
    }

    /// Whether the pager of this project does the work, so that its budget is the limit.
    pub fn is_mapwright(self) -> bool {
        matches!(self, Self::Mapwright | Self::MapwrightInThread | Self::MapwrightExplicit)
    }

    /// What a program calls to get it.
    pub fn calls(self, pattern: Pattern) -> &'static str {
        match (self, pattern) {
            (Self::Read, _) => "read(2)",
            (Self::Pread, _) => "pread(2)",
            (Self::Direct, _) => "open(2) with O_DIRECT",
            (Self::Pwrite, _) => "pwrite(2)",
            (Self::Mmap, _) => "mmap(2), or MapOptions::strategy(Strategy::Kernel)",
            (Self::MmapAdvised, Pattern::Sequential) => {
                "madvise(2), or MapOptions::strategy(Strategy::Kernel) and advice(Advice::Sequential)"
            }
            (Self::MmapAdvised, _) => {
                "madvise(2), or MapOptions::strategy(Strategy::Kernel) and advice(Advice::Random)"
            }
            (Self::Mapwright, Pattern::Update) => "MapMut::open and its slice",
            (Self::Mapwright, _) => "Map::open and its slice",
            (Self::MapwrightInThread, _) => "MapOptions::fault_mode(FaultMode::InThread)",
            (Self::MapwrightExplicit, Pattern::Sequential) => "Map::get",
            (Self::MapwrightExplicit, Pattern::Update) => "MapMut::get_many and write_at",
            (Self::MapwrightExplicit, _) => "Map::get_many",
        }
    }

    /// What the method promises for the bytes when the clock stops.
    pub fn guarantee(self, pattern: Pattern) -> &'static str {
        match (pattern, self) {
            (Pattern::Update, Self::Pwrite) => "durable after one fdatasync at the end",
            (Pattern::Update, Self::Mmap | Self::MmapAdvised) => "durable after one msync at the end",
            (Pattern::Update, _) => "durable after one flush at the end",
            (_, Self::Mmap | Self::MmapAdvised) => "an I/O error or a truncation is SIGBUS",
            (_, Self::Mapwright) => "an I/O error or a truncation is an error in checked()",
            (_, Self::MapwrightInThread) => {
                "an I/O error or a truncation is an error in checked(); a system call handed an absent page gets EFAULT"
            }
            _ => "an I/O error or a truncation is an error",
        }
    }
}

/// What a method needs to know to open the file.
pub struct Setup<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its length in bytes.
    pub file_len: u64,
    /// What will be done.
    pub pattern: Pattern,
    /// The memory that a pager may use, in bytes.
    pub limit: u64,
    /// How many pages [`Cursor::pages`](mapwright_measure::ways::Cursor::pages) is given at most.
    pub batch: usize,
}

impl Method {
    /// How many pages an operation of this method hands over at once.
    pub fn batch(self, asked: usize) -> usize {
        if self == Self::MapwrightExplicit { asked } else { 1 }
    }

    /// Opens the file for reading.
    pub fn open(self, setup: &Setup<'_>) -> Result<Box<dyn Source>> {
        let call = |call, buffer| system_calls::open(call, setup.path, setup.file_len, buffer);
        match self {
            Self::Read => call(Call::Read, BUFFER),
            Self::Pread | Self::Pwrite => call(Call::Pread, BUFFER),
            Self::Direct => call(Call::Direct, DIRECT_BUFFER),
            Self::Mmap | Self::MmapAdvised => kernel_mmap::open(setup.path, self.advice(setup.pattern)),
            Self::Mapwright | Self::MapwrightInThread | Self::MapwrightExplicit => {
                Ok(Box::new(pager::open(self.way(), setup.path, setup.limit, |options| options)?))
            }
        }
    }

    /// Opens the file for updates.
    pub fn open_mut(self, setup: &Setup<'_>) -> Result<Box<dyn Updater>> {
        match self {
            Self::Read | Self::Pread | Self::Direct | Self::Pwrite => system_calls::open_mut(setup.path),
            Self::Mmap | Self::MmapAdvised => kernel_mmap::open_mut(setup.path, self.advice(setup.pattern)),
            Self::Mapwright | Self::MapwrightInThread | Self::MapwrightExplicit => {
                pager::open_mut(self.way(), setup.path, setup.limit, Durability::Flush)
            }
        }
    }

    fn advice(self, pattern: Pattern) -> Option<Advice> {
        (self == Self::MmapAdvised).then_some(match pattern {
            Pattern::Sequential => Advice::Sequential,
            Pattern::Random | Pattern::Zipf | Pattern::Update => Advice::Random,
        })
    }

    fn way(self) -> Way {
        match self {
            Self::MapwrightInThread => Way::InThread,
            Self::MapwrightExplicit => Way::Explicit,
            _ => Way::Thread,
        }
    }
}
