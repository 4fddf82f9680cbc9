//! Recording what is missed: a trace for the simulator of policies (docs/policies.md), and its format.
//!
//! A pager sees misses only, so a recording pager is a filter: with a budget of a few blocks nearly every change from one
//! block to another is a miss, and what the filter hides, immediate repetition, any larger cache would hit as well (trace
//! reduction: Smith, "Two methods for the efficient analysis of memory address trace data", IEEE TSE 3(1), 1977). The filter's
//! size is in the trace; caches not much larger can't be judged by it.
//!
//! Numbers are little-endian. A file is header, references, end:
//!
//! | part | bytes | what |
//! | --- | --- | --- |
//! | header | 8 | `mwtrace\0` |
//! | | 4 | version: 1 |
//! | | 4 | bytes in a page: 4096 |
//! | | 8 | the budget of the pager that recorded, in pages |
//! | reference | LEB128 | `zigzag(page − last page) << 1`, plus 1 if the file is another than the last one's |
//! | | LEB128 | then, and only then: the number of the file |
//! | end | 8 | number of references |
//! | | 8 | FNV-1a of all bytes before the end, 64 bits |
//! | | 8 | `mwtrend\0` |
//!
//! The page is the first of the block that was missed; the last page and file are 0 before the first reference. File numbers
//! mean nothing but that files are different.
//!
//! A thread of its own writes the file, so that a miss costs a few stores under a lock that is held over no I/O. Its first
//! error ends the writing and is what [`Recorder::end`] returns. The buffers are not part of the budget.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::{PAGE, lock};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"mwtrace\0";
const MAGIC_END: &[u8; 8] = b"mwtrend\0";
const VERSION: u32 = 1;
const HEADER: usize = 24;
const END: usize = 24;
/// Bytes handed to the writing thread at a time.
const CHUNK: usize = 16 << 10;

/// A block that was missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// The file's number.
    pub file: u32,
    /// The first page of the block.
    pub page: u64,
}

/// A trace as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The budget of the pager that recorded, in pages.
    pub filter_pages: u64,
    /// In the order in which they were missed.
    pub references: Vec<Reference>,
}

/// Writes a trace.
pub struct Recorder {
    path: PathBuf,
    /// None once the recording has ended.
    state: Mutex<Option<State>>,
}

struct State {
    last: Reference,
    count: u64,
    checksum: u64,
    chunk: Vec<u8>,
    chunks: Sender<Vec<u8>>,
    writer: JoinHandle<io::Result<()>>,
}

impl Recorder {
    /// Begins a trace in a new file, or in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be made; [`Error::Unsupported`] if there is no thread to be had.
    pub fn create(path: &Path, filter_pages: u64) -> Result<Self> {
        let failed = |e| Error::io("record", path.display().to_string(), 0, 0, e);
        let mut file = File::create(path).map_err(failed)?;
        let (chunks, received) = channel::<Vec<u8>>();
        let write = move || received.iter().try_for_each(|chunk| file.write_all(&chunk));
        let writer = std::thread::Builder::new().name("mapwright-record".to_owned()).spawn(write);
        let writer = writer.map_err(|e| Error::Unsupported {
            feature: "a thread for the recording",
            remedy: "raise the limit on threads (ulimit -u, pids cgroup), or don't record",
            source: e.into(),
        })?;
        let header = [
            MAGIC.as_slice(),
            &VERSION.to_le_bytes(),
            &(PAGE as u32).to_le_bytes(),
            &filter_pages.to_le_bytes(),
        ];
        let last = Reference::default();
        let checksum = FNV_START;
        let mut state = State { last, count: 0, checksum, chunk: Vec::new(), chunks, writer };
        state.put(&header.concat());
        Ok(Self { path: path.to_owned(), state: Mutex::new(Some(state)) })
    }

    /// Notes a miss.
    pub fn missed(&self, missed: Reference) {
        if let Some(state) = &mut *lock(&self.state) {
            state.missed(missed);
        }
    }

    /// Ends the trace: how many references it has.
    ///
    /// # Errors
    /// The first failure to write it; [`Error::Invalid`] if it was ended before.
    pub fn end(&self) -> Result<u64> {
        let state = lock(&self.state).take();
        let state = state.ok_or_else(|| {
            let what = format!("{}: the recording has ended", self.path.display());
            Error::invalid(what, "end a recording once")
        })?;
        let count = state.count;
        let written = state.end();
        written.map(|()| count).map_err(|e| Error::io("record", self.path.display().to_string(), 0, 0, e))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl State {
    fn missed(&mut self, missed: Reference) {
        let distance = missed.page.wrapping_sub(self.last.page) as i64;
        let zigzag = (distance << 1 ^ distance >> 63) as u64;
        let is_other = missed.file != self.last.file;
        let mut bytes = leb128(zigzag << 1 | u64::from(is_other));
        if is_other {
            bytes.extend(leb128(u64::from(missed.file)));
        }
        self.put(&bytes);
        self.last = missed;
        self.count += 1;
    }

    fn put(&mut self, bytes: &[u8]) {
        self.checksum = fnv(self.checksum, bytes);
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            // If it has failed, nobody receives: `end` tells why.
            let _ = self.chunks.send(std::mem::take(&mut self.chunk));
        }
    }

    fn end(mut self) -> io::Result<()> {
        self.chunk.extend(self.count.to_le_bytes());
        self.chunk.extend(self.checksum.to_le_bytes());
        self.chunk.extend(MAGIC_END);
        let _ = self.chunks.send(self.chunk);
        drop(self.chunks);
        self.writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
    }
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for what is no trace, is one of another version, is cut short or damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", name.as_str(), 0, 0, e))?;
        Self::decode(&bytes).map_err(|(what, remedy)| Error::invalid(format!("{name}: {what}"), remedy))
    }

    /// What is in the bytes of a file, or what is wrong with them and what to do.
    fn decode(bytes: &[u8]) -> std::result::Result<Self, (String, &'static str)> {
        let damaged = |what: String| (format!("the trace is damaged: {what}"), "record it again");
        let Some((header, rest)) =
            bytes.split_at_checked(HEADER).filter(|(header, _)| header.starts_with(MAGIC))
        else {
            let remedy = "name a file that PagerBuilder::record or mapwright compare --record has written";
            return Err(("this is no trace".to_owned(), remedy));
        };
        if header[8..12] != VERSION.to_le_bytes() {
            let version = u64_at(header, 8) as u32;
            let what = format!("a trace of version {version}, where version {VERSION} is known");
            return Err((what, "record it again with this version"));
        }
        if header[12..16] != (PAGE as u32).to_le_bytes() {
            return Err(damaged(format!("pages of {} bytes", u64_at(header, 12) as u32)));
        }
        let Some((body, end)) = rest
            .len()
            .checked_sub(END)
            .map(|at| rest.split_at(at))
            .filter(|(_, end)| end.ends_with(MAGIC_END))
        else {
            let remedy = "record it again, and let the program end or call Pager::end_recording";
            return Err(("the trace is cut short: it has no end".to_owned(), remedy));
        };
        let (count, expected, found) = (u64_at(end, 0), u64_at(end, 8), fnv(fnv(FNV_START, header), body));
        if expected != found {
            return Err(damaged(format!("its checksum is {found:016x}, not {expected:016x}")));
        }
        let mut references = Vec::new();
        let (mut body, mut last) = (body, Reference::default());
        while !body.is_empty() {
            last = next(&mut body, last).ok_or_else(|| damaged("a reference has no end".to_owned()))?;
            references.push(last);
        }
        if references.len() as u64 != count {
            return Err(damaged(format!("{} references instead of {count}", references.len())));
        }
        Ok(Self { filter_pages: u64_at(header, 16), references })
    }
}

/// Takes the next reference from the front.
fn next(body: &mut &[u8], last: Reference) -> Option<Reference> {
    let step = take_leb128(body)?;
    let zigzag = step >> 1;
    let distance = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    let file = if step & 1 == 1 { u32::try_from(take_leb128(body)?).ok()? } else { last.file };
    Some(Reference { file, page: last.page.wrapping_add_signed(distance) })
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn leb128(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    while value >= 1 << 7 {
        bytes.push(value as u8 | 1 << 7);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn take_leb128(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte >> 7 == 0 {
            return Some(value);
        }
    }
    None
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// FNV-1a (Fowler, Noll, Vo): finds what goes wrong by itself, and is no protection against intent.
fn fnv(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

#[cfg(test)]
mod tests {
    use super::*;

    fn references() -> Vec<Reference> {
        let near = (0..20_000).map(|at| Reference { file: 1, page: at * 3 });
        let far = [(7, (1 << 40) - 1), (7, 0), (u32::MAX, 1 << 39), (0, 5)];
        near.chain(far.map(|(file, page)| Reference { file, page })).collect()
    }

    fn recorded() -> Vec<u8> {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let recorder = Recorder::create(&path, 8).unwrap();
        references().into_iter().for_each(|reference| recorder.missed(reference));
        assert_eq!(recorder.end().unwrap(), references().len() as u64);
        recorder.missed(Reference::default());
        assert!(recorder.end().unwrap_err().to_string().contains("end a recording once"));
        let trace = Trace::read(&path).unwrap();
        assert_eq!(trace, Trace { filter_pages: 8, references: references() });
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn what_is_recorded_is_read() {
        assert!(recorded().len() < references().len() + 100, "a byte for a near reference");
    }

    #[test]
    fn checksum_is_fnv_1a() {
        // From the test vectors of draft-eastlake-fnv.
        assert_eq!(fnv(FNV_START, b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_recording_that_is_dropped_is_ended() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        drop(Recorder::create(&path, 8).unwrap());
        assert_eq!(Trace::read(&path).unwrap().references, []);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = recorded();
        let why = |bytes: &[u8]| {
            let (what, remedy) = Trace::decode(bytes).unwrap_err();
            format!("{what}: {remedy}")
        };
        assert!(why(b"").contains("this is no trace"));
        assert!(why(&[b'x'; 100]).contains("this is no trace"));
        let mut newer = good.clone();
        newer[8] = 2;
        assert!(why(&newer).contains("version 2"));
        assert!(why(&good[..good.len() - 1]).contains("cut short"));
        assert!(why(&good[..HEADER]).contains("cut short"));
        for at in (HEADER..good.len() - 8).step_by(101).chain([16, good.len() - 9, good.len() - 17]) {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            assert!(why(&damaged).contains("damaged"), "byte {at}");
        }
        // Bytes that end in the middle of a reference, with a checksum that is right.
        let mut odd = good[..HEADER].to_vec();
        odd.push(0x80);
        let checksum = fnv(FNV_START, &odd);
        odd.extend([1u64.to_le_bytes(), checksum.to_le_bytes(), *MAGIC_END].concat());
        assert!(why(&odd).contains("has no end"));
    }

    #[test]
    fn a_disk_that_is_full_is_reported_at_the_end() {
        let recorder = Recorder::create(Path::new("/dev/full"), 8).unwrap();
        references().into_iter().for_each(|reference| recorder.missed(reference));
        assert_eq!(recorder.end().unwrap_err().errno(), Some(28));
    }
}
