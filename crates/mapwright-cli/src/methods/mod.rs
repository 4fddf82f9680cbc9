//! The ways to read and update a file that `compare` runs against each other.
//!
//! All do the same work: every operation folds one whole page into the checksum, or adds 1 to one word of the file.

mod kernel_mmap;
mod mapwright;
mod system_calls;

pub use mapwright::uffd_probe;

use std::ops::Range;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::compare::Pattern;
use crate::failure::Result;

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
            (Self::MapwrightExplicit, Pattern::Sequential) => "Map::will_need and get",
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
    /// How many pages [`Cursor::pages`] is given at most.
    pub batch: usize,
}

/// An opened file that any number of threads read.
pub trait Source: Sync {
    /// The state of one reading thread.
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>>;

    /// What the method has to say about how it went, for a person to read.
    fn note(&self) -> Option<String> {
        None
    }
}

/// One thread's way to read.
pub trait Cursor {
    /// The checksum of the bytes of these pages. A method that has no batches is given one page at a time.
    fn pages(&mut self, pages: &[u64]) -> Result<u64>;

    /// The checksum of a range that starts at a page; ranges come in ascending order.
    fn range(&mut self, range: Range<u64>) -> Result<u64>;
}

/// An opened file that one thread updates.
pub trait Updater {
    /// Adds 1 to the little-endian u64 at each offset.
    fn increment(&mut self, offsets: &[u64]) -> Result<()>;

    /// Makes all of it durable.
    fn make_durable(&mut self) -> Result<()>;
}

impl Method {
    /// How many pages an operation of this method hands over at once.
    pub fn batch(self, asked: usize) -> usize {
        if self == Self::MapwrightExplicit { asked } else { 1 }
    }

    /// Opens the file for reading.
    pub fn open(self, setup: &Setup<'_>) -> Result<Box<dyn Source>> {
        match self {
            Self::Read | Self::Pread | Self::Direct | Self::Pwrite => system_calls::open(self, setup),
            Self::Mmap | Self::MmapAdvised => kernel_mmap::open(self == Self::MmapAdvised, setup),
            Self::Mapwright | Self::MapwrightInThread | Self::MapwrightExplicit => {
                mapwright::open(self, setup)
            }
        }
    }

    /// Opens the file for updates.
    pub fn open_mut(self, setup: &Setup<'_>) -> Result<Box<dyn Updater>> {
        match self {
            Self::Read | Self::Pread | Self::Direct | Self::Pwrite => system_calls::open_mut(setup),
            Self::Mmap | Self::MmapAdvised => kernel_mmap::open_mut(self == Self::MmapAdvised, setup),
            Self::Mapwright | Self::MapwrightInThread | Self::MapwrightExplicit => {
                mapwright::open_mut(self, setup)
            }
        }
    }
}

/// The bytes of a page that the file has: fewer than a page at its end.
pub fn page_range(page: u64, file_len: u64) -> Range<u64> {
    let start = page * crate::compare::PAGE;
    start..(start + crate::compare::PAGE).min(file_len)
}

/// The same as positions in a slice.
fn in_memory(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Adds 1 to the word at an offset of a mapped file.
fn increment_word(bytes: &mut [u8], offset: u64) {
    let word = &mut bytes[in_memory(offset..offset + 8)];
    let mut value = [0; 8];
    value.copy_from_slice(word);
    word.copy_from_slice(&u64::from_le_bytes(value).wrapping_add(1).to_le_bytes());
}
