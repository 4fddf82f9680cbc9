//! The messages between clients and a pager server, byte by byte as in docs/server-protocol.md.
//!
//! Everything is little-endian. Decoding trusts nothing: sizes are checked before they are used, and a message must end where
//! its last field does. Encoding cannot fail: what is too long is cut where it may be (texts), or is never made.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::read_ahead::Advice;
use crate::engine::stats::{BUCKETS, Stats};
use crate::error::{Change, Error};

/// The first word of a connection.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"mapwrite");
/// Raised when a message changes. Client and server must have the same.
pub(crate) const VERSION: u32 = 4;
/// Bytes of the longest message.
pub(crate) const MAX_MESSAGE: usize = 32 << 10;
/// Ranges in one message.
pub(crate) const MAX_RANGES: usize = 1024;
/// Bytes of the longest text: a path or an error.
const MAX_TEXT: usize = 4096;

/// How a client has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading, beside others who read.
    Read,
    /// For writing, alone.
    Write,
    /// For writing, beside others who write.
    Share,
    /// For reading, for as long as nobody writes the file: the server holds a lease of the kernel's on it.
    Leased,
    /// For writing, for as long as nobody else has the file open: the server holds a lease of the kernel's on the client's own open file
    /// description.
    Alone,
}

impl Access {
    /// Whether it may be written.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Share | Self::Alone)
    }
}

/// What a client asks. Every message carries a number that the answer repeats.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// The first message, with a userfaultfd.
    Hello {
        magic: u64,
        version: u32,
    },
    /// With the file's descriptor.
    Open {
        block_size: u32,
        direct: Option<bool>,
        advice: Advice,
        access: Access,
        /// Bytes of address space, for growth; at least the file's length is taken.
        reserve: u64,
        name: String,
    },
    /// The client has mapped and registered a view.
    Show {
        file: u32,
        checked: bool,
        address: u64,
    },
    Pin {
        file: u32,
        in_order: bool,
        /// The bytes of the ranges are about to be written.
        writes: bool,
        ranges: Vec<Range<u64>>,
    },
    /// Has no answer.
    Unpin {
        pin: u64,
    },
    Prefetch {
        file: u32,
        range: Range<u64>,
    },
    /// Has no answer.
    WillNeed {
        file: u32,
        range: Range<u64>,
    },
    /// Has no answer.
    Advise {
        file: u32,
        advice: Advice,
    },
    Evict {
        file: u32,
        range: Range<u64>,
    },
    Resident {
        file: u32,
    },
    Stats,
    Close {
        file: u32,
    },
    /// Makes what was written there durable.
    Flush {
        file: u32,
        range: Range<u64>,
    },
    Resize {
        file: u32,
        len: u64,
    },
    /// Takes the error of an earlier write-back: it is the answer, if there is one.
    Acknowledge {
        file: u32,
    },
    /// Ends the lease under which it was opened, as if somebody had opened the file. Has no answer: [`Event::Ended`] tells every client that has it open.
    End {
        file: u32,
    },
}

/// What a server says.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Welcome {
        budget: u64,
    },
    /// With a descriptor of the frames.
    Opened {
        file: u32,
        len: u64,
        capacity: u64,
    },
    Done,
    Pinned {
        pin: u64,
    },
    Count {
        bytes: u64,
    },
    Stats(Box<Stats>),
    Refused(Error),
    /// It is being worked on, and gets on; the answer is yet to come.
    Working,
}

/// What a server says unasked: the number of the message is 0.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Take these ranges out of the view, so that it is seen what is used.
    Unmap { file: u32, ranges: Vec<Range<u64>> },
    /// A page of this range was touched and can't be had; or, if a write is refused, can't be written, and may be shown.
    Failed { file: u32, checked: bool, refused: bool, range: Range<u64>, error: Error },
    /// Somebody is about to write a file that was opened under a lease: it is closed, and nothing of it is shown any more.
    Ended { file: u32 },
    /// The lease has ended, and the file is closed, but what was written could not be brought into it: it must not be taken for what the client knows.
    Unwritten { file: u32, error: Error },
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

type Decoded<T> = std::result::Result<T, Malformed>;

/// A message being written.
struct Encoder(Vec<u8>);

impl Encoder {
    fn new(kind: u16, number: u32) -> Self {
        let mut out = Self(Vec::with_capacity(64));
        out.0.extend(kind.to_le_bytes());
        out.0.extend(0u16.to_le_bytes());
        out.u32(number)
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn range(self, range: &Range<u64>) -> Self {
        self.u64(range.start).u64(range.end)
    }

    fn ranges(self, ranges: &[Range<u64>]) -> Self {
        let some = &ranges[..ranges.len().min(MAX_RANGES)];
        some.iter().fold(self.u32(some.len() as u32), |out, range| out.range(range))
    }

    fn text(self, text: &str) -> Self {
        let end = (0..=text.len().min(MAX_TEXT)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let mut out = self.u32(end as u32);
        out.0.extend(&text.as_bytes()[..end]);
        out
    }

    fn error(self, error: &Error) -> Self {
        // A variant the other side rebuilds, or only its text.
        match error {
            Error::Io { operation, offset, len, source, .. } => {
                let out = self.u8(1).u64(*offset).u64(*len).u64(source.raw_os_error().unwrap_or(0) as u64);
                out.text(operation).text(&source.to_string())
            }
            Error::Changed { offset, change, .. } => {
                let (kind, was, now) = match change {
                    Change::Truncated { was, now } => (0, *was, *now),
                    Change::Modified => (1, 0, 0),
                    Change::Replaced => (2, 0, 0),
                };
                self.u8(2).u64(*offset).u8(kind).u64(was).u64(now)
            }
            Error::TimedOut { offset, len, waited, .. } => {
                self.u8(3).u64(*offset).u64(*len).u64(waited.as_nanos().try_into().unwrap_or(u64::MAX))
            }
            Error::BudgetExhausted { needed, budget, .. } => self.u8(4).u64(*needed).u64(*budget),
            Error::OutOfRange { offset, end, file_len, .. } => {
                self.u8(5).u64(*offset).u64(*end).u64(*file_len)
            }
            Error::Invalid { what, .. } => self.u8(6).text(what),
            Error::ReadOnly { .. } => self.u8(7),
            Error::Locked { .. } => self.u8(8),
            Error::Latched { source, .. } => self.u8(9).error(source),
            other => self.u8(0).text(&other.to_string()),
        }
    }
}

/// A message being read.
struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed("it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Malformed("it ends too early"))
    }

    fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Decoded<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Decoded<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag is neither 0 nor 1")),
        }
    }

    fn range(&mut self) -> Decoded<Range<u64>> {
        let range = self.u64()?..self.u64()?;
        if range.start <= range.end { Ok(range) } else { Err(Malformed("a range ends before it starts")) }
    }

    fn ranges(&mut self) -> Decoded<Vec<Range<u64>>> {
        let count = self.u32()? as usize;
        if count > MAX_RANGES {
            return Err(Malformed("too many ranges"));
        }
        (0..count).map(|_| self.range()).collect()
    }

    fn text(&mut self) -> Decoded<String> {
        let len = self.u32()? as usize;
        if len > MAX_TEXT {
            return Err(Malformed("a text is too long"));
        }
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| Malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn advice(&mut self) -> Decoded<Advice> {
        match self.u8()? {
            0 => Ok(Advice::Normal),
            1 => Ok(Advice::Sequential),
            2 => Ok(Advice::Random),
            _ => Err(Malformed("advice of no known kind")),
        }
    }

    fn access(&mut self) -> Decoded<Access> {
        match self.u8()? {
            0 => Ok(Access::Read),
            1 => Ok(Access::Write),
            2 => Ok(Access::Share),
            3 => Ok(Access::Leased),
            4 => Ok(Access::Alone),
            _ => Err(Malformed("access of no known kind")),
        }
    }

    /// An error, of the file that the client calls `path`.
    fn error(&mut self, path: &str) -> Decoded<Error> {
        self.any_error(path, true)
    }

    fn any_error(&mut self, path: &str, may_nest: bool) -> Decoded<Error> {
        let path = path.to_owned();
        Ok(match self.u8()? {
            1 => {
                let (offset, len, errno) = (self.u64()?, self.u64()?, self.u64()?);
                let (operation, text) = (known_operation(&self.text()?), self.text()?);
                let source = match i32::try_from(errno) {
                    Ok(errno @ 1..) => std::io::Error::from_raw_os_error(errno),
                    _ => std::io::Error::other(text),
                };
                Error::Io { operation, path, offset, len, source: Arc::new(source) }
            }
            2 => {
                let (offset, kind, was, now) = (self.u64()?, self.u8()?, self.u64()?, self.u64()?);
                let change = match kind {
                    0 => Change::Truncated { was, now },
                    1 => Change::Modified,
                    2 => Change::Replaced,
                    _ => return Err(Malformed("a change of no known kind")),
                };
                Error::Changed { path, offset, change }
            }
            3 => {
                let (offset, len) = (self.u64()?, self.u64()?);
                Error::TimedOut { path, offset, len, waited: Duration::from_nanos(self.u64()?) }
            }
            4 => {
                let (needed, budget) = (self.u64()?, self.u64()?);
                let remedy =
                    "drop Pinned values that are no longer needed, or start the server with a higher limit";
                Error::BudgetExhausted { path, needed, budget, remedy }
            }
            5 => {
                let (offset, end, file_len) = (self.u64()?, self.u64()?, self.u64()?);
                Error::OutOfRange { path, offset, end, file_len }
            }
            6 => Error::invalid(format!("{path}: {}", self.text()?), "the pager server refuses that"),
            7 => Error::ReadOnly { path },
            8 => Error::Locked {
                path,
                holder: "another map, of a client of the pager server or of somebody else",
            },
            9 if may_nest => {
                let source = Arc::new(self.any_error(&path, false)?);
                Error::Latched { path, source }
            }
            0 => Error::io("serve", path, 0, 0, std::io::Error::other(self.text()?)),
            _ => return Err(Malformed("an error of no known kind")),
        })
    }

    fn end<T>(self, value: T) -> Decoded<T> {
        if self.0.is_empty() { Ok(value) } else { Err(Malformed("it goes on after its end")) }
    }
}

/// The operation of errors about leases of the kernel's.
pub const LEASE: &str = "lease";

/// The operations that errors name: their texts are part of the program.
fn known_operation(text: &str) -> &'static str {
    const KNOWN: [&str; 13] = [
        "open",
        "read",
        "check",
        "map",
        "store a frame",
        "reserve the block table",
        "lend",
        "lock",
        "write",
        "sync",
        "set length",
        "load a frame",
        LEASE,
    ];
    KNOWN.into_iter().find(|known| *known == text).unwrap_or("serve")
}

fn advice_code(advice: Advice) -> u8 {
    match advice {
        Advice::Normal => 0,
        Advice::Sequential => 1,
        Advice::Random => 2,
    }
}

impl Request {
    /// The bytes of a message.
    pub(crate) fn encode(&self, number: u32) -> Vec<u8> {
        let out = |kind| Encoder::new(kind, number);
        let out = match self {
            Self::Hello { magic, version } => out(1).u64(*magic).u32(*version),
            Self::Open { block_size, direct, advice, access, reserve, name } => {
                let out = out(2).u32(*block_size).u8(direct.map_or(2, u8::from)).u8(advice_code(*advice));
                out.u8(*access as u8).u64(*reserve).text(name)
            }
            Self::Show { file, checked, address } => out(3).u32(*file).u8((*checked).into()).u64(*address),
            Self::Pin { file, in_order, writes, ranges } => {
                out(4).u32(*file).u8((*in_order).into()).u8((*writes).into()).ranges(ranges)
            }
            Self::Unpin { pin } => out(5).u64(*pin),
            Self::Prefetch { file, range } => out(6).u32(*file).range(range),
            Self::WillNeed { file, range } => out(7).u32(*file).range(range),
            Self::Advise { file, advice } => out(8).u32(*file).u8(advice_code(*advice)),
            Self::Evict { file, range } => out(9).u32(*file).range(range),
            Self::Resident { file } => out(10).u32(*file),
            Self::Stats => out(11),
            Self::Close { file } => out(12).u32(*file),
            Self::Flush { file, range } => out(13).u32(*file).range(range),
            Self::Resize { file, len } => out(14).u32(*file).u64(*len),
            Self::Acknowledge { file } => out(15).u32(*file),
            Self::End { file } => out(16).u32(*file),
        };
        out.0
    }

    /// The message and its number.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<(u32, Self)> {
        let mut from = Decoder(bytes);
        let (kind, number) = header(&mut from)?;
        let request = match kind {
            1 => Self::Hello { magic: from.u64()?, version: from.u32()? },
            2 => {
                let block_size = from.u32()?;
                let direct = match from.u8()? {
                    0 => Some(false),
                    1 => Some(true),
                    2 => None,
                    _ => return Err(Malformed("neither direct nor not")),
                };
                let (advice, access, reserve) = (from.advice()?, from.access()?, from.u64()?);
                Self::Open { block_size, direct, advice, access, reserve, name: from.text()? }
            }
            3 => Self::Show { file: from.u32()?, checked: from.flag()?, address: from.u64()? },
            4 => {
                let (file, in_order, writes) = (from.u32()?, from.flag()?, from.flag()?);
                Self::Pin { file, in_order, writes, ranges: from.ranges()? }
            }
            5 => Self::Unpin { pin: from.u64()? },
            6 => Self::Prefetch { file: from.u32()?, range: from.range()? },
            7 => Self::WillNeed { file: from.u32()?, range: from.range()? },
            8 => Self::Advise { file: from.u32()?, advice: from.advice()? },
            9 => Self::Evict { file: from.u32()?, range: from.range()? },
            10 => Self::Resident { file: from.u32()? },
            11 => Self::Stats,
            12 => Self::Close { file: from.u32()? },
            13 => Self::Flush { file: from.u32()?, range: from.range()? },
            14 => Self::Resize { file: from.u32()?, len: from.u64()? },
            15 => Self::Acknowledge { file: from.u32()? },
            16 => Self::End { file: from.u32()? },
            _ => return Err(Malformed("a request of no known kind")),
        };
        from.end((number, request))
    }
}

impl Reply {
    /// The bytes of a message, `number` being that of the request.
    pub(crate) fn encode(&self, number: u32) -> Vec<u8> {
        let out = |kind| Encoder::new(kind, number);
        let out = match self {
            Self::Welcome { budget } => out(100).u32(VERSION).u64(*budget),
            Self::Opened { file, len, capacity } => out(101).u32(*file).u64(*len).u64(*capacity),
            Self::Done => out(102),
            Self::Pinned { pin } => out(103).u64(*pin),
            Self::Count { bytes } => out(104).u64(*bytes),
            Self::Stats(stats) => stats_words(stats).into_iter().fold(out(105), Encoder::u64),
            Self::Refused(error) => out(106).error(error),
            Self::Working => out(107),
        };
        out.0
    }
}

impl Event {
    /// The bytes of a message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let out = |kind| Encoder::new(kind, 0);
        let out = match self {
            Self::Unmap { file, ranges } => out(120).u32(*file).ranges(ranges),
            Self::Failed { file, checked, refused, range, error } => {
                out(121).u32(*file).u8((*checked).into()).u8((*refused).into()).range(range).error(error)
            }
            Self::Ended { file } => out(122).u32(*file),
            Self::Unwritten { file, error } => out(123).u32(*file).error(error),
        };
        out.0
    }
}

/// What a client hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Reply(u32, Reply),
    Event(Event),
}

impl Heard {
    /// A message of the server; errors name `path`, what the client calls the file that it asked about.
    pub(crate) fn decode(bytes: &[u8], path: impl Fn(About) -> String) -> Decoded<Self> {
        let mut from = Decoder(bytes);
        let (kind, number) = header(&mut from)?;
        let heard = match kind {
            100 => {
                if from.u32()? != VERSION {
                    return Err(Malformed("the server speaks another version"));
                }
                Self::Reply(number, Reply::Welcome { budget: from.u64()? })
            }
            101 => {
                let (file, len, capacity) = (from.u32()?, from.u64()?, from.u64()?);
                Self::Reply(number, Reply::Opened { file, len, capacity })
            }
            102 => Self::Reply(number, Reply::Done),
            103 => Self::Reply(number, Reply::Pinned { pin: from.u64()? }),
            104 => Self::Reply(number, Reply::Count { bytes: from.u64()? }),
            105 => {
                let mut words = [0; STATS_WORDS];
                for word in &mut words {
                    *word = from.u64()?;
                }
                Self::Reply(number, Reply::Stats(Box::new(stats_of_words(&words))))
            }
            106 => Self::Reply(number, Reply::Refused(from.error(&path(About::Request(number)))?)),
            107 => Self::Reply(number, Reply::Working),
            120 => Self::Event(Event::Unmap { file: from.u32()?, ranges: from.ranges()? }),
            121 => {
                let (file, checked, refused) = (from.u32()?, from.flag()?, from.flag()?);
                let (range, error) = (from.range()?, from.error(&path(About::File(file)))?);
                Self::Event(Event::Failed { file, checked, refused, range, error })
            }
            122 => Self::Event(Event::Ended { file: from.u32()? }),
            123 => {
                let file = from.u32()?;
                Self::Event(Event::Unwritten { file, error: from.error(&path(About::File(file)))? })
            }
            _ => return Err(Malformed("a message of no known kind")),
        };
        from.end(heard)
    }
}

/// What an error is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum About {
    Request(u32),
    File(u32),
}

fn header(from: &mut Decoder<'_>) -> Decoded<(u16, u32)> {
    let (kind, reserved, number) = (from.u16()?, from.u16()?, from.u32()?);
    if reserved == 0 { Ok((kind, number)) } else { Err(Malformed("a reserved field is not 0")) }
}

const STATS_WORDS: usize = 16 + BUCKETS;

fn stats_words(stats: &Stats) -> [u64; STATS_WORDS] {
    let mut words = [0; STATS_WORDS];
    words[..16].copy_from_slice(&[
        stats.faults,
        stats.hits,
        stats.fills,
        stats.filled_bytes,
        stats.read_ahead_bytes,
        stats.failed_fills,
        stats.retries,
        stats.evictions,
        stats.refaults,
        stats.collapses,
        stats.write_backs,
        stats.written_back_bytes,
        stats.queue_depth,
        stats.max_queue_depth,
        stats.used_bytes,
        stats.budget_bytes,
    ]);
    words[16..].copy_from_slice(&stats.fault_latency);
    words
}

/// The counters of a server that can't be asked.
pub(crate) fn no_stats() -> Stats {
    stats_of_words(&[0; STATS_WORDS])
}

fn stats_of_words(words: &[u64; STATS_WORDS]) -> Stats {
    Stats {
        faults: words[0],
        hits: words[1],
        fills: words[2],
        filled_bytes: words[3],
        read_ahead_bytes: words[4],
        failed_fills: words[5],
        retries: words[6],
        evictions: words[7],
        refaults: words[8],
        collapses: words[9],
        write_backs: words[10],
        written_back_bytes: words[11],
        queue_depth: words[12],
        max_queue_depth: words[13],
        used_bytes: words[14],
        budget_bytes: words[15],
        fault_latency: std::array::from_fn(|bucket| words[16 + bucket]),
    }
}
