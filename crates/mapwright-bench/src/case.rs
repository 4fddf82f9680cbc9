//! A comparison: contenders at the same work, the goals that they are held to, and how the figures are shown.

use serde::Serialize;

use crate::task::{How, Measured, Peer, Task, Under, Work};
use mapwright_measure::ways::pager::Way;

/// Contenders that are run in turns.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// A heading.
    pub title: String,
    /// What is done, to what, under which limit.
    pub about: String,
    /// Who does it.
    pub entries: Vec<Entry>,
    /// What was asked of it.
    pub goals: Vec<Goal>,
    /// The figure that tables begin with and plots show.
    pub shown: Shown,
    /// Shown as lines over this quantity, rather than as a table of contenders.
    pub over: Option<&'static str>,
}

/// One contender.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// As in tables; in a comparison over a quantity, the name of the line.
    pub name: String,
    /// The quantity, where the comparison is over one.
    pub x: Option<f64>,
    /// What it does.
    pub task: Task,
    /// Most memory of its memory group in bytes, page cache included.
    pub limit: Option<u64>,
}

/// A figure of a contender, and the value that is wanted.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// The contender.
    pub ours: String,
    /// What its figure is divided by: the best of these, each round by itself. None: the figure itself counts.
    pub against: Vec<String>,
    /// The figure.
    pub figure: Figure,
    /// The value.
    pub want: Want,
}

/// Which value is wanted.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Want {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// A figure that goals are about.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Figure {
    /// Operations a second.
    Speed,
    /// CPU seconds.
    Cpu,
    /// Wall seconds.
    Time,
    /// Median latency.
    Median,
    /// Hit ratio.
    Hits,
    /// One of [`Measured::extra`].
    Extra(&'static str),
}

/// What tables begin with and plots show.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Shown {
    /// Operations a second, and what an operation is.
    Speed(&'static str),
    /// GiB a second.
    Throughput,
    /// Median latency in microseconds.
    Median,
    /// Time of an operation in microseconds.
    Each,
    /// One of [`Measured::extra`].
    Extra(&'static str),
}

impl Case {
    /// A comparison without goals, shown as a table.
    pub fn new(title: impl Into<String>, about: impl Into<String>, shown: Shown) -> Self {
        Self {
            title: title.into(),
            about: about.into(),
            entries: Vec::new(),
            goals: Vec::new(),
            shown,
            over: None,
        }
    }

    /// Adds a contender.
    pub fn entry(&mut self, name: impl Into<String>, task: Task, limit: Option<u64>) {
        self.entries.push(Entry { name: name.into(), x: None, task, limit });
    }

    /// Adds a goal.
    pub fn goal(&mut self, ours: &str, against: &[&str], figure: Figure, want: Want) {
        let against = against.iter().map(|name| (*name).to_owned()).collect();
        self.goals.push(Goal { ours: ours.to_owned(), against, figure, want });
    }
}

impl Figure {
    /// The value of one round; `None` where it was not measured.
    pub fn of(self, measured: &Measured) -> Option<f64> {
        match self {
            Self::Speed => (measured.seconds > 0.0).then(|| measured.ops as f64 / measured.seconds),
            Self::Cpu => Some(measured.cpu_seconds),
            Self::Time => Some(measured.seconds),
            Self::Median => measured.p50_ns,
            Self::Hits => measured.hit_ratio,
            Self::Extra(name) => measured.extra.get(name).copied(),
        }
    }

    /// Whether a larger value is the better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Speed | Self::Hits)
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Speed => "speed",
            Self::Cpu => "CPU time",
            Self::Time => "time",
            Self::Median => "median, ns",
            Self::Hits => "hit ratio",
            Self::Extra(name) => name,
        }
    }
}

impl Want {
    /// Whether a value is what is wanted.
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(wanted) => value >= wanted,
            Self::AtMost(wanted) => value <= wanted,
        }
    }
}

impl Shown {
    /// The value of one round.
    pub fn of(self, measured: &Measured) -> Option<f64> {
        match self {
            Self::Speed(_) => Figure::Speed.of(measured),
            Self::Throughput => (measured.seconds > 0.0)
                .then(|| measured.bytes as f64 / measured.seconds / (1u64 << 30) as f64),
            Self::Median => measured.p50_ns.map(|nanos| nanos / 1000.0),
            Self::Each => (measured.ops > 0).then(|| measured.seconds * 1e6 / measured.ops as f64),
            Self::Extra(name) => measured.extra.get(name).copied(),
        }
    }

    /// Its unit.
    pub fn unit(self) -> String {
        match self {
            Self::Speed(operation) => format!("{operation}/s"),
            Self::Throughput => "GiB/s".to_owned(),
            Self::Median => "median, µs".to_owned(),
            Self::Each => "µs each".to_owned(),
            Self::Extra(name) => name.to_owned(),
        }
    }
}

impl Entry {
    /// What the contender promises, for the reader to weigh its figures with.
    pub fn promise(&self) -> &'static str {
        match (&self.task.work, self.task.how) {
            (_, How::Atomic(_) | How::Journal) => {
                "all or nothing after any crash; checksummed journal; one sync a commit"
            }
            (Work::Commits { .. }, How::Mmap(_) | How::Pager(..)) => {
                "durable after each msync or flush; a crash may leave any part of it"
            }
            (Work::Update { .. }, How::Mmap(_)) => {
                "durable after one msync; the kernel may write any page earlier"
            }
            (Work::Update { .. }, _) => {
                "durable after one flush; before it only what the budget forces out is written"
            }
            (_, How::Mmap(_) | How::MmapIo | How::Rayon) => "an I/O error or a truncation is SIGBUS",
            (_, How::Read(_) | How::FsRead) => "errors are values; the bytes are a copy",
            (_, How::Ring { .. } | How::Direct(_) | How::Fio) => "errors are values; no cache",
            (_, How::Pager(Way::Explicit, _)) => "errors are values; a changed file is an error",
            (_, How::Pager(..)) => "errors are values in checked(), else SIGBUS; a changed file is an error",
            (_, How::Program(_, Under::Kernel) | How::MappedPeer(_)) => "as the program has it",
            (_, How::Program(_, Under::Run(_))) => {
                "as the program has it; no byte older than the file; what can't be served is the kernel's"
            }
            (_, How::Eventfd | How::Futex | How::Signal) => "",
            (_, How::Peer(Peer::Lmdb)) => "snapshots; commits are synced; an I/O error is SIGBUS",
            (_, How::Peer(Peer::Redb)) => "snapshots; commits are synced and checksummed; errors are values",
            (_, How::Peer(Peer::Sqlite)) => "snapshots; commits are synced; errors are values",
            (_, How::Peer(Peer::Rocksdb)) => {
                "snapshots; checksummed blocks, log not synced by default; errors are values"
            }
        }
    }

    /// What must agree among contenders, as text: the same pages of the same file were read, or the same number was written.
    pub fn work_key(&self) -> String {
        let work = match &self.task.work {
            // Another way to the same pages.
            Work::Zipf { count, .. } => format!("zipf {count}"),
            Work::Journal { bytes, .. } => format!("journal {bytes}"),
            work => format!("{work:?}"),
        };
        let threads = if matches!(self.task.work, Work::Hot { .. }) { self.task.threads } else { 0 };
        format!("{work} {} {threads}", self.task.len)
    }
}
