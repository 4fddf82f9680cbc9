//! read(2), pread(2), O_DIRECT and pwrite(2).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Cursor, Source, Updater, page_range};
use crate::checksum::sum;
use crate::failure::{Failure, Result};
use crate::pages::PAGE;

/// What a sequential read(2) or pread(2) takes at once: fits the second-level cache, which larger buffers lose by.
pub const BUFFER: usize = 256 << 10;

/// What a sequential O_DIRECT read takes at once: there is no read-ahead to help it.
pub const DIRECT_BUFFER: usize = 1 << 20;

/// The system call that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// lseek(2) and read(2).
    Read,
    /// pread(2).
    Pread,
    /// pread(2) of a file opened with O_DIRECT.
    Direct,
}

struct Opened {
    call: Call,
    path: PathBuf,
    file_len: u64,
    buffer: usize,
}

/// Opens the file for one of the three ways to read it. `buffer` is what a scan takes at once, in bytes: whole pages.
pub fn open(call: Call, path: &Path, file_len: u64, buffer: usize) -> Result<Box<dyn Source>> {
    let opened = Opened { call, path: path.to_owned(), file_len, buffer };
    // Fails here rather than in a thread.
    opened.file()?;
    Ok(Box::new(opened))
}

impl Opened {
    fn file(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true);
        if self.call == Call::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(&self.path).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput if self.call == Call::Direct => {
                Failure::Unsupported("this file system has no O_DIRECT".to_owned())
            }
            _ => Failure::io("open", &self.path, error),
        })
    }
}

impl Source for Opened {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(Reader { opened: self, file: self.file()?, buffer: Aligned::new(self.buffer) }))
    }
}

/// A buffer at a multiple of the page size, as O_DIRECT wants it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE as usize];
        let start = bytes.as_ptr().align_offset(PAGE as usize);
        Self { bytes, start, len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

struct Reader<'a> {
    opened: &'a Opened,
    file: File,
    buffer: Aligned,
}

impl Reader<'_> {
    /// Reads a range that fits the buffer, and sums it up.
    fn read(&mut self, range: Range<u64>) -> Result<u64> {
        let wanted = (range.end - range.start) as usize;
        let buffer = self.buffer.slice();
        let failed =
            |error| Failure::io(&format!("read {wanted} bytes at {}", range.start), &self.opened.path, error);
        match self.opened.call {
            Call::Read => {
                self.file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
                self.file.read_exact(&mut buffer[..wanted]).map_err(failed)?;
            }
            Call::Direct => {
                // Whole pages are asked for, also past the end, where the answer is short.
                let asked = wanted.next_multiple_of(PAGE as usize);
                let mut done = 0;
                while done < wanted {
                    // Only the end of the file stops at something else than a multiple of the block size.
                    match self.file.read_at(&mut buffer[done..asked], range.start + done as u64) {
                        Ok(0) => return Err(failed(ErrorKind::UnexpectedEof.into())),
                        Ok(count) => done += count,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
            _ => self.file.read_exact_at(&mut buffer[..wanted], range.start).map_err(failed)?,
        }
        Ok(sum(&buffer[..wanted]))
    }
}

impl Cursor for Reader<'_> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        let mut total = 0u64;
        for page in pages {
            total = total.wrapping_add(self.read(page_range(*page, self.opened.file_len))?);
        }
        Ok(total)
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        let mut total = 0u64;
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + self.buffer.len as u64);
            total = total.wrapping_add(self.read(start..end)?);
            start = end;
        }
        Ok(total)
    }
}

struct Writer {
    file: File,
    path: PathBuf,
}

/// Opens the file for pread(2) and pwrite(2).
pub fn open_mut(path: &Path) -> Result<Box<dyn Updater>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Failure::io("open for writing", path, error))?;
    Ok(Box::new(Writer { file, path: path.to_owned() }))
}

impl Updater for Writer {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        for offset in offsets {
            let failed = |error| Failure::io(&format!("update the word at {offset}"), &self.path, error);
            let mut word = [0; 8];
            self.file.read_exact_at(&mut word, *offset).map_err(failed)?;
            let value = u64::from_le_bytes(word).wrapping_add(1);
            self.file.write_all_at(&value.to_le_bytes(), *offset).map_err(failed)?;
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| Failure::io("fdatasync", &self.path, error))
    }
}
