//! Pagers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::engine::host::Host;
use crate::engine::stats::Stats;
use crate::engine::{Engine, Handle};
use crate::error::{Error, Result};
use crate::remote::connection::Connection;
use crate::remote::protocol::no_stats;

/// A page cache with a hard budget, shared by all files that are opened with it: one of this process, or one of a
/// [`Server`](crate::Server) that other processes use too. Cheap to clone; the last clone or map of it closes it and ends its
/// threads.
///
/// # Threads and fork
/// `Send` and `Sync`. The pager has threads of its own, made as they are needed. They do not exist in a child made by
/// fork(2): maps of the pager are not there either (a touch is SIGSEGV), and the child must not use the pager.
#[derive(Clone)]
pub struct Pager(pub(crate) Backing);

/// Where a pager's cache is.
#[derive(Clone)]
pub(crate) enum Backing {
    /// In this process.
    Own(Arc<Handle>),
    /// In a server.
    Server(Arc<Connection>),
}

/// Settings of a [`Pager`].
#[derive(Clone, Debug, Default)]
pub struct PagerBuilder {
    budget: Option<u64>,
    record: Option<PathBuf>,
}

impl Pager {
    /// Starts the settings of a pager.
    pub fn builder() -> PagerBuilder {
        PagerBuilder::default()
    }

    /// The pager of the process, used where none is named. Its budget is a quarter of the memory that was available when
    /// it was first used: what the machine has free or what the memory cgroup allows, whichever is less.
    ///
    /// # Errors
    /// As for [`PagerBuilder::build`].
    pub fn global() -> Result<Self> {
        static GLOBAL: OnceLock<Pager> = OnceLock::new();
        if let Some(pager) = GLOBAL.get() {
            return Ok(pager.clone());
        }
        let pager = Self::builder().build()?;
        Ok(GLOBAL.get_or_init(|| pager).clone())
    }

    /// Connects to a pager server, one of `mapwright serve` or a [`Server`](crate::Server), that listens at `path`. Files that
    /// are opened with the pager returned are mapped from the server's frames: what several processes map is in memory once, and
    /// the server's budget is for all of them. [`MapOptions::open_shared`](crate::MapOptions::open_shared) lets many of them write
    /// the same file; what a process wrote that is killed is written back all the same.
    ///
    /// When the server ends, touching a page that is not shown yet raises SIGBUS after a message, and explicit access is
    /// [`Error::ServerLost`]. Pages never read as zeros for that. What was written and not flushed is lost with a server that is
    /// killed.
    ///
    /// What such a pager can't do so far is [`Error::Invalid`]: commits ([`Durability`](crate::Durability)), stores other than files,
    /// [`FaultMode::InThread`](crate::FaultMode::InThread), [`FrameKind::Moved`](crate::FrameKind::Moved) and recordings.
    ///
    /// # Errors
    /// [`Error::Io`] if nobody listens there; [`Error::NotTrusted`] if the server runs as another user than this process or root;
    /// [`Error::Unsupported`] where the machine has no userfaultfd; [`Error::ServerLost`] if the server refuses, with its reason.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Connection::open(path.as_ref()).map(|connection| Self(Backing::Server(connection)))
    }

    /// The engine, where it is in this process.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is in a server, which can't do `what`.
    pub(crate) fn own(&self, what: &str) -> Result<&Arc<Handle>> {
        match &self.0 {
            Backing::Own(handle) => Ok(handle),
            Backing::Server(_) => Err(Error::invalid(
                format!("{what}, by a pager server"),
                "use a pager of this process (Pager::builder) for that",
            )),
        }
    }

    /// A snapshot of the counters of everything opened with this pager; of a server's, of everything that it serves. All are 0
    /// when the server is gone.
    pub fn stats(&self) -> Stats {
        match &self.0 {
            Backing::Own(handle) => handle.stats(),
            Backing::Server(connection) => connection.stats().unwrap_or_else(no_stats),
        }
    }

    /// Ends the recording that [`PagerBuilder::record`] has begun: how many references were recorded. A recording that is not
    /// ended ends with the pager, and its errors go unseen.
    ///
    /// # Errors
    /// The first failure to write the trace; [`Error::Invalid`] if there is no recording, or none any more.
    pub fn end_recording(&self) -> Result<u64> {
        let none = || Error::invalid("no recording to end", "begin one with Pager::builder().record(path)");
        self.own("a recording")?.recorder.get().ok_or_else(none)?.end()
    }

    /// The budget in bytes.
    pub fn budget(&self) -> u64 {
        match &self.0 {
            Backing::Own(handle) => handle.budget.total(),
            Backing::Server(connection) => connection.budget(),
        }
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("budget", &self.budget()).finish_non_exhaustive()
    }
}

impl PagerBuilder {
    /// The most memory that the pager may use, in bytes: frames, I/O buffers and metadata together. At least 32 KiB, and at
    /// least eight blocks of every file. The default is a quarter of the memory available.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Records which blocks are missed, in a file that `cargo xtask policies --trace` replays; what is there is replaced. Only
    /// misses are seen: give the pager a budget of a few blocks, besides 1/1024 of the files for its tables, and open maps with
    /// [`Strategy::Pager`](crate::Strategy::Pager). Nothing is read ahead meanwhile, and all is slow. What is prefetched counts as
    /// missed; what is overwritten unread is not seen. [`Pager::end_recording`] ends it.
    ///
    /// ```
    /// use mapwright::{MapOptions, Pager, Strategy};
    ///
    /// # let (path, trace) = (std::env::temp_dir(), std::env::temp_dir());
    /// # let path = path.join(format!("mapwright-record-{}", std::process::id()));
    /// # let trace = trace.join(format!("mapwright-record-{}.trace", std::process::id()));
    /// # std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    /// let pager = Pager::builder().budget(64 << 10).record(&trace).build()?;
    /// let map = MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(&path)?;
    /// let page = map.get(4096..8192)?;
    /// assert_eq!((page[0], pager.end_recording()?), (7, 1));
    /// # drop(page); drop(map); std::fs::remove_file(&path).unwrap(); std::fs::remove_file(&trace).unwrap();
    /// # Ok::<(), mapwright::Error>(())
    /// ```
    #[must_use]
    pub fn record(mut self, path: impl Into<PathBuf>) -> Self {
        self.record = Some(path.into());
        self
    }

    /// Makes the pager.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the budget is too small; [`Error::Io`] if the trace can't be recorded.
    pub fn build(self) -> Result<Pager> {
        let budget = self.budget.unwrap_or_else(|| available_memory() / 4);
        let engine = Engine::open(Arc::new(Host::new()), budget)?;
        self.record.iter().try_for_each(|path| engine.record(path))?;
        Ok(Pager(Backing::Own(engine)))
    }
}

/// Bytes of memory that this process may still use; a guess of 1 GiB where /proc does not tell.
fn available_memory() -> u64 {
    let of_machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
        })
        .map_or(1 << 30, |kib| kib << 10);
    let of_cgroup = cgroup_limits().min().unwrap_or(u64::MAX);
    of_machine.min(of_cgroup).max(1 << 20)
}

/// The memory limits of the cgroups that this process is in, of either version and at every level, in bytes.
fn cgroup_limits() -> impl Iterator<Item = u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (roots, file): (&[&str], _) = match controllers {
            "" => (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes")
            }
            _ => (&[], ""),
        };
        let at = |root: &str| {
            let levels: Vec<_> =
                Path::new(path).ancestors().map(|level| level.to_string_lossy().into_owned()).collect();
            let root = root.to_owned();
            levels.into_iter().map(move |level| format!("{root}/{}/{file}", level.trim_start_matches('/')))
        };
        roots.iter().flat_map(|root| at(root)).collect::<Vec<_>>()
    });
    files
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .collect::<Vec<u64>>()
        .into_iter()
}
