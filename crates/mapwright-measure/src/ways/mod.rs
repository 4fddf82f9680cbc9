//! The ways to read and update a file that are measured against each other.
//!
//! All do the same work: every operation folds one whole page into the checksum, or adds 1 to one word of the file.

pub mod kernel_mmap;
pub mod pager;
pub mod system_calls;

use std::ops::Range;

use crate::failure::{Failure, Result};
use crate::pages::PAGE;

/// An opened file that any number of threads read.
pub trait Source: Sync {
    /// The state of one reading thread.
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>>;

    /// Touches so far that had to wait for the disk, of all threads, where the way can tell.
    fn misses(&self) -> Option<u64> {
        None
    }

    /// What the way has to say about how it went, for a person to read.
    fn note(&self) -> Option<String> {
        None
    }
}

/// One thread's way to read.
pub trait Cursor {
    /// The checksum of the bytes of these pages. A way that has no batches is given one page at a time.
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

    /// Brings all of the file into memory, for ways that keep it there.
    fn warm_up(&mut self) -> Result<()> {
        Err(Failure::Unsupported("this way keeps nothing in memory".to_owned()))
    }
}

/// The bytes of a page that the file has: fewer than a page at its end.
pub fn page_range(page: u64, file_len: u64) -> Range<u64> {
    let start = page * PAGE;
    start..(start + PAGE).min(file_len)
}

/// The same as positions in a slice.
pub fn in_memory(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Adds 1 to the word at an offset of a mapped file.
pub fn increment_word(bytes: &mut [u8], offset: u64) {
    let word = &mut bytes[in_memory(offset..offset + 8)];
    let mut value = [0; 8];
    value.copy_from_slice(word);
    word.copy_from_slice(&u64::from_le_bytes(value).wrapping_add(1).to_le_bytes());
}
