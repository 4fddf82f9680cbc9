//! What a child process is asked to do, and what it answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mapwright_measure::ways::pager::Way;
use serde::{Deserialize, Serialize};

/// One contender at one work, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// What is done.
    pub work: Work,
    /// Through what.
    pub how: How,
    /// The file, or the folder of the files.
    pub path: PathBuf,
    /// Bytes of the file that are used, from its start.
    pub len: u64,
    /// The budget of a pager and of a database's cache, in bytes.
    pub budget: u64,
    /// Threads that share the work.
    pub threads: usize,
    /// Pages handed over at once by what takes batches; what is in flight for what keeps a queue full.
    pub batch: usize,
    /// What a database is built from.
    pub sample: Option<PathBuf>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Reads all of a cold file from its start.
    Scan,
    /// Reads `count` pages of a cold file.
    Pages {
        /// Pages to read.
        count: u64,
        /// Few pages often, most seldom, rather than all alike.
        zipf: bool,
    },
    /// Sums a file that is all in memory, `passes` times, and loads `loads` words at random.
    Resident {
        /// Whole sums.
        passes: u64,
        /// Loads of 8 bytes.
        loads: u64,
    },
    /// Reads `count` zipf-distributed pages of the first half of the file after as many to warm up.
    Zipf {
        /// Pages to read.
        count: u64,
        /// Whether another thread scans the second half meanwhile, again and again.
        beside_scan: bool,
    },
    /// Adds 1 to a word of `count` random pages and makes it durable.
    Update {
        /// Pages to write to.
        count: u64,
    },
    /// Adds 1 to a word of each of `dirty` random pages and makes it durable, `count` times. All is in memory before the clock starts.
    Commits {
        /// Pages to write to before each commit.
        dirty: u64,
        /// Commits.
        count: u64,
    },
    /// Commits single pages beside checkpoints of 32 MiB and without.
    Checkpoints {
        /// Checkpoints.
        rounds: u64,
    },
    /// Reads the journal that a killed program has left.
    Journal {
        /// Bytes of the journal, about.
        bytes: u64,
        /// Recovers the file from it rather than only checking it.
        recovers: bool,
    },
    /// Touches blocks that are in memory but not mapped.
    Faults {
        /// Bytes between touches: a block.
        stride: u64,
        /// Times that the whole file is touched.
        passes: u64,
    },
    /// Two threads wake each other in turn.
    Wake {
        /// Round trips.
        count: u64,
    },
    /// Gets a resident page again and again, each thread its own.
    Hot {
        /// Gets of each thread.
        count: u64,
    },
    /// Scans the file, then asks how much memory the process has beyond its budget.
    Memory,
    /// Maps a file `count` times.
    Open {
        /// Times.
        count: u64,
    },
    /// Opens, sums and closes every file of a folder.
    SmallFiles,
    /// Reads `count` random pages of all files of a folder, each mapped.
    ManyMaps {
        /// Pages to read.
        count: u64,
    },
    /// Starts a program that maps the file and reads a page of it, or that maps nothing, and waits for its end, `count` times.
    Start {
        /// Times.
        count: u64,
        /// Whether it maps anything.
        maps: bool,
    },
    /// Reads all values of a database, and then `count` random ones, which count.
    Warm {
        /// Values to read.
        count: u64,
    },
    /// Looks for a word in all of the file.
    Search {
        /// Whether the file is in the page cache before.
        warm: bool,
    },
    /// Several processes read all of the file at a time, each in an order of its own.
    Together {
        /// How many.
        processes: usize,
    },
    /// One of them: reads all of the file from a place on, around its end, more than once.
    Laps {
        /// The place, in bytes.
        from: u64,
    },
    /// Builds the database of the folder from the sample.
    Load,
}

/// A contender.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// memmap2, with advice.
    Mmap(Advice),
    /// mmap-io, advised of the pattern.
    MmapIo,
    /// memmap2 advised to read sequentially, summed up by rayon's threads.
    Rayon,
    /// read(2) into a buffer of so many bytes.
    Read(usize),
    /// read(2) around the kernel's page cache (O_DIRECT) into a buffer of so many bytes.
    Direct(usize),
    /// std::fs::read.
    FsRead,
    /// O_DIRECT reads through an io_uring. `drained`: a batch is waited for before the next is asked for.
    Ring {
        /// Rather than kept full.
        drained: bool,
    },
    /// The same by fio.
    Fio,
    /// mapwright, with blocks of so many bytes.
    Pager(Way, usize),
    /// mapwright with commits that are all or nothing.
    Atomic(Way),
    /// mapwright's journal by itself.
    Journal,
    /// eventfd(2).
    Eventfd,
    /// futex(2), through std's park.
    Futex,
    /// A signal to oneself, with a handler that does next to nothing.
    Signal,
    /// A database.
    Peer(Peer),
    /// A database that is opened for reading and maps its file.
    MappedPeer(Peer),
    /// A program of its own, which maps the file by the C library's mmap(2).
    Program(Program, Under),
}

/// A program that knows of no pager.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// This one, as a worker that reads the file by memmap2, with advice.
    Mmap(Advice),
    /// This one, as a worker that reads a database, which maps its file.
    Peer(Peer),
    /// ripgrep, told to map.
    Ripgrep,
}

/// What a program's maps are served by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Under {
    /// The kernel.
    Kernel,
    /// `mapwright run`, with blocks of so many bytes.
    Run(u32),
}

/// Advice to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advice {
    /// None.
    None,
    /// MADV_RANDOM.
    Random,
    /// MADV_SEQUENTIAL.
    Sequential,
    /// MADV_WILLNEED.
    WillNeed,
    /// MADV_POPULATE_READ of a window at a time, ahead of the reader.
    PopulateRead,
}

/// A database.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// LMDB, through heed.
    Lmdb,
    /// redb.
    Redb,
    /// SQLite, through rusqlite.
    Sqlite,
    /// RocksDB.
    Rocksdb,
}

/// What a child measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Operations: pages read or written, gets, faults, files.
    pub ops: u64,
    /// Bytes of the file that they touched.
    pub bytes: u64,
    /// Wall time of the work, opening included where the file is cold.
    pub seconds: f64,
    /// User and system time of the process in the same span, all threads.
    pub cpu_seconds: f64,
    /// Median latency of an operation, or of the batch that it was part of, in nanoseconds.
    pub p50_ns: Option<f64>,
    /// 99th percentile of the same.
    pub p99_ns: Option<f64>,
    /// VmHWM at the end.
    pub peak_rss_bytes: u64,
    /// The part of the operations that had not to wait for the disk.
    pub hit_ratio: Option<f64>,
    /// Sum of the words read; the parent reads back what updates left.
    pub checksum: Option<u64>,
    /// Figures of this work only.
    pub extra: BTreeMap<String, f64>,
    /// What the contender says about how it went.
    pub note: Option<String>,
}
