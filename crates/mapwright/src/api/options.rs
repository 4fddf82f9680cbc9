//! How to open a map.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::{Bound, RangeBounds};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mapwright_sys::window::{AddressRange, HeapBytes, Reader, Writer};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::commit::{Durability, recover_first, refuse_unrecovered};
use super::core::{Behind, Core};
use super::kernel_map::KernelFile;
use super::map::Map;
use super::map_mut::MapMut;
use super::pager::{Backing, Pager};
use super::shared_map::SharedMapMut;
use super::strategy::{Choice, Strategy};
use crate::engine::file::{File as PagedFile, FileSpec, Keep, MOVED_BUDGET};
use crate::engine::kernel::{FaultMode, FrameKind};
use crate::engine::opened::Opened;
use crate::engine::read_ahead::Advice;
use crate::engine::{Engine, commit};
use crate::error::{Change, Error, Result};
use crate::journal::AtomicFile;
use crate::journal::beside;
use crate::journal::place::Directory;
use crate::remote::Access;
use crate::remote::connection::Connection;
use crate::remote::served::{Served, ServedSpec};
use crate::stores::{FileOptions, FileStore, Store, lock_for_writing};

/// Files up to this length are read rather than mapped, if they are opened for reading: a mapping costs more.
const SMALL: u64 = 64 << 10;
/// Address space reserved for the growth of a writable map, beside its length: it costs nothing until it is used.
const DEFAULT_GROWTH: u64 = 16 << 30;

/// As long as anybody waits; may be added to a time without overflow.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Settings of a map. Every default is right for most uses.
#[derive(Clone, Debug)]
pub struct MapOptions {
    pager: Option<Pager>,
    start: Bound<u64>,
    end: Bound<u64>,
    strategy: Strategy,
    fault_mode: FaultMode,
    frames: FrameKind,
    block_size: usize,
    advice: Advice,
    deadline: Duration,
    reserve: Option<u64>,
    direct: Option<bool>,
    durability: Durability,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl MapOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            pager: None,
            start: Bound::Unbounded,
            end: Bound::Unbounded,
            strategy: Strategy::Auto,
            fault_mode: FaultMode::Thread,
            frames: FrameKind::Auto,
            block_size: 4096,
            advice: Advice::Normal,
            deadline: Duration::from_secs(30),
            reserve: None,
            direct: None,
            durability: Durability::Flush,
        }
    }

    /// The pager to use; without it, [`Pager::global`].
    #[must_use]
    pub fn pager(mut self, pager: &Pager) -> Self {
        self.pager = Some(pager.clone());
        self
    }

    /// Which bytes of the file to map: any offset, any length. The default is all of them.
    #[must_use]
    pub fn range(mut self, range: impl RangeBounds<u64>) -> Self {
        (self.start, self.end) = (range.start_bound().cloned(), range.end_bound().cloned());
        self
    }

    /// How to bring the file into memory.
    #[must_use]
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Who serves the faults of the slice, for the pager strategy.
    #[must_use]
    pub fn fault_mode(mut self, mode: FaultMode) -> Self {
        self.fault_mode = mode;
        self
    }

    /// What the memory of resident blocks is like, for the pager strategy. Files opened for writing have shared frames. Under a
    /// pager's budget of less than 16 MiB, `Moved` is [`Error::Invalid`]: the copies that `checked` makes of such frames would
    /// leave no room for what it reads.
    #[must_use]
    pub fn frames(mut self, kind: FrameKind) -> Self {
        self.frames = kind;
        self
    }

    /// Bytes that are read and evicted together: a power of two from 4096, the default, to 2 MiB. Larger blocks make
    /// sequential work cheaper and random work dearer. Maps of one file in one pager with other block sizes or fault modes have
    /// caches of their own.
    #[must_use]
    pub fn block_size(mut self, bytes: usize) -> Self {
        self.block_size = bytes;
        self
    }

    /// What is known of the access pattern. Nothing need be: it is detected.
    #[must_use]
    pub fn advice(mut self, advice: Advice) -> Self {
        self.advice = advice;
        self
    }

    /// How long an operation waits for the store, transient errors included, and for room in the budget: 30 s by default. A flush
    /// takes as long as it takes, unless the store may hang; through a pager server, as long as the server says that it gets on.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(FOREVER);
        self
    }

    /// Address space to reserve, in bytes: how far a [`MapMut`] may grow at the same address. The default is twice its
    /// length and 16 GiB.
    #[must_use]
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.reserve = Some(bytes);
        self
    }

    /// As [`reserve`](Self::reserve), unless more is reserved already.
    #[cfg(feature = "allocator-api2")]
    pub(crate) fn reserve_at_least(self, bytes: u64) -> Self {
        let more = self.reserve.unwrap_or(0).max(bytes);
        self.reserve(more)
    }

    /// Whether to read past the kernel's page cache (O_DIRECT) where the file system can. The default: if the file is
    /// larger than the pager's budget, because the kernel would keep a second copy of what is evicted here.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = Some(direct);
        self
    }

    /// When changes reach the file, and what a crash leaves: for [`open_mut`](Self::open_mut). The default is
    /// [`Durability::Flush`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Maps a file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] (with the errno) and [`Error::NotMappable`] from opening; [`Error::OutOfRange`] for a range past the
    /// end; [`Error::Invalid`] for settings that make no sense; [`Error::Unsupported`] if the strategy asked for needs what
    /// the machine lacks (`Auto` then takes another); [`Error::Locked`] if this pager has the file open for
    /// writing (a small file is read all the same, as it is on disk); [`Error::Changed`] for a file that changes while it
    /// is read whole.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Map> {
        let path = path.as_ref();
        let _span = tracing::debug_span!("open", path = %path.display()).entered();
        self.check()?;
        if !matches!(self.strategy, Strategy::Auto | Strategy::Buffer) {
            refuse_unrecovered(path)?;
        } else if let Some(map) = self.open_small(path)? {
            return Ok(map);
        }
        if let (Strategy::Auto | Strategy::Pager, Some(Pager(Backing::Server(server)))) =
            (self.strategy, &self.pager)
        {
            return match self.open_served(path, server) {
                Err(error @ Error::Unsupported { .. }) if self.strategy == Strategy::Auto => {
                    self.open_kernel(self.file_store(path, false)?, &format!("no pager here: {error}"))
                }
                opened => opened,
            };
        }
        let store = self.file_store(path, false)?;
        match self.strategy {
            Strategy::Buffer => self.read_whole(store, "asked for"),
            Strategy::Kernel => self.open_kernel(store, "asked for"),
            Strategy::Pager => self.open_paged(store, "asked for"),
            Strategy::Auto => match self.open_paged(Arc::clone(&store) as Arc<dyn Store>, WHY_PAGER) {
                Err(error @ Error::Unsupported { .. }) => {
                    self.open_kernel(store, &format!("no pager here: {error}"))
                }
                opened => opened,
            },
        }
    }

    /// Maps a file for reading and writing. It must exist; nothing is changed before the first
    /// [`flush`](MapMut::flush), except when the budget forces dirty pages out.
    ///
    /// # Errors
    /// As for [`open`](Self::open); [`Error::ReadOnly`]; [`Error::Locked`] if any other process or map writes it.
    pub fn open_mut(&self, path: impl AsRef<Path>) -> Result<MapMut> {
        let path = path.as_ref();
        let _span = tracing::debug_span!("open_mut", path = %path.display()).entered();
        self.check()?;
        if let (Strategy::Auto | Strategy::Pager, Some(Pager(Backing::Server(server)))) =
            (self.strategy, &self.pager)
        {
            return self.open_served_mut(path, server, Access::Write);
        }
        if self.durability == Durability::Atomic {
            return self.open_atomic(path);
        }
        let store = self.file_store(path, true)?;
        lock_for_writing(&*store)?;
        recover_first(&store, path)?;
        match self.strategy {
            Strategy::Buffer => self.read_whole_mut(store, "asked for"),
            Strategy::Kernel => self.open_kernel_mut(store, "asked for"),
            Strategy::Pager => self.open_paged_mut(store, "asked for"),
            Strategy::Auto => match self.open_paged_mut(Arc::clone(&store) as Arc<dyn Store>, WHY_PAGER) {
                Err(error @ Error::Unsupported { .. }) => {
                    self.open_kernel_mut(store, &format!("no pager here: {error}"))
                }
                opened => opened,
            },
        }
    }

    /// Maps a file for reading and writing, without slices. By a pager server ([`Pager::connect`]) many processes may have the same
    /// file open so at once, and each sees what the others write as it is written, as with mmap(2) and MAP_SHARED: beside
    /// [`write_at`](crate::Shared::write_at), by atomics at [`as_ptr`](SharedMapMut::as_ptr). By a pager of this process it is
    /// [`open_mut`](Self::open_mut) and [`into_shared`](MapMut::into_shared).
    ///
    /// # Errors
    /// As for [`open_mut`](Self::open_mut). By a server, [`Error::Locked`] if the file is mapped in another way.
    pub fn open_shared(&self, path: impl AsRef<Path>) -> Result<SharedMapMut> {
        let path = path.as_ref();
        if let (Strategy::Auto | Strategy::Pager, Some(Pager(Backing::Server(server)))) =
            (self.strategy, &self.pager)
        {
            let _span = tracing::debug_span!("open_shared", path = %path.display()).entered();
            self.check()?;
            return self.open_served_mut(path, server, Access::Share).map(MapMut::into_shared);
        }
        self.open_mut(path).map(MapMut::into_shared)
    }

    /// Maps a store for reading: bytes in memory, or a store of one's own.
    ///
    /// # Errors
    /// As for [`open`](Self::open). [`Strategy::Kernel`] is [`Error::Invalid`]: the kernel maps files only.
    pub fn open_store(&self, store: Arc<dyn Store>) -> Result<Map> {
        self.check()?;
        match self.strategy {
            Strategy::Kernel => Err(kernel_maps_files_only()),
            Strategy::Buffer => self.read_whole(store, "asked for"),
            Strategy::Pager => self.open_paged(store, "asked for"),
            Strategy::Auto => {
                match self.open_paged(Arc::clone(&store), "a store is not for the kernel to map") {
                    Err(error @ Error::Unsupported { .. }) => {
                        self.read_whole(store, &format!("no pager here: {error}"))
                    }
                    opened => opened,
                }
            }
        }
    }

    /// Maps a store for reading and writing.
    ///
    /// # Errors
    /// As for [`open_mut`](Self::open_mut) and [`open_store`](Self::open_store).
    pub fn open_store_mut(&self, store: Arc<dyn Store>) -> Result<MapMut> {
        self.check()?;
        if self.durability == Durability::Atomic {
            return Err(Error::invalid(
                format!("{}: a store under Durability::Atomic", store.name()),
                "open a file by its path: a journal lies beside it",
            ));
        }
        if !store.is_writable() {
            return Err(Error::ReadOnly { path: store.name() });
        }
        lock_for_writing(&*store)?;
        match self.strategy {
            Strategy::Kernel => Err(kernel_maps_files_only()),
            Strategy::Buffer => self.read_whole_mut(store, "asked for"),
            Strategy::Pager => self.open_paged_mut(store, "asked for"),
            Strategy::Auto => {
                match self.open_paged_mut(Arc::clone(&store), "a store is not for the kernel to map") {
                    Err(error @ Error::Unsupported { .. }) => {
                        self.read_whole_mut(store, &format!("no pager here: {error}"))
                    }
                    opened => opened,
                }
            }
        }
    }

    fn check(&self) -> Result<()> {
        if self.deadline.is_zero() {
            return Err(Error::invalid(
                "a deadline of zero",
                "give operations some time, for example 30 seconds",
            ));
        }
        Ok(())
    }

    /// Reads a small regular file, in as few calls as it takes; `None` if it is not one. Refuses what has to be recovered, whatever
    /// its size.
    fn open_small(&self, path: &Path) -> Result<Option<Map>> {
        let failed = |e| Error::io("open", path.display().to_string(), 0, 0, e);
        let opened = match open_at_once(path, OFlags::NOFOLLOW) {
            Err(Errno::LOOP) => {
                refuse_unrecovered(path)?;
                open_at_once(path, OFlags::empty())
            }
            opened => {
                if opened.is_ok() && beside::is_there(path)? {
                    refuse_unrecovered(path)?;
                }
                opened
            }
        };
        let file = match opened {
            // A socket, or a device without hardware: opening it as a store says what it is.
            Err(Errno::NXIO) => return Ok(None),
            opened => File::from(opened.map_err(|e| failed(e.into()))?),
        };
        let metadata = file.metadata().map_err(failed)?;
        let len = metadata.len();
        if !metadata.is_file() || len == 0 || len > SMALL {
            return Ok(None);
        }
        let bytes = read_small(path, (&file).take(len), &metadata, || file.metadata())?;
        let reason = match self.strategy {
            Strategy::Auto => "the file is small: reading it costs less than mapping it",
            _ => "asked for",
        };
        self.buffered(bytes, None, path.display().to_string(), Choice::new(Strategy::Buffer, reason))
            .map(Some)
    }

    fn buffered(
        &self,
        bytes: Vec<u8>,
        store: Option<Arc<dyn Store>>,
        name: String,
        choice: Choice,
    ) -> Result<Map> {
        let len = bytes.len() as u64;
        let core = self.part(Behind::Buffer { store, name }, len, choice)?;
        Ok(Map::new(core, reader(Arc::new(HeapBytes::new(bytes, false)))))
    }

    fn read_whole(&self, store: Arc<dyn Store>, why: &str) -> Result<Map> {
        let bytes = read_all(&*store)?;
        let name = store.name();
        self.buffered(bytes, Some(store), name, Choice::new(Strategy::Buffer, why.to_owned()))
    }

    fn read_whole_mut(&self, store: Arc<dyn Store>, why: &str) -> Result<MapMut> {
        let bytes = read_all(&*store)?;
        let len = bytes.len() as u64;
        let behind = Behind::Buffer { name: store.name(), store: Some(store) };
        let core = self.part(behind, len, Choice::new(Strategy::Buffer, why.to_owned()))?;
        let writer = writer(Arc::new(HeapBytes::new(bytes, true)))?;
        Ok(MapMut::new(core, writer, self.is_whole(), self.durability))
    }

    fn open_kernel(&self, store: Arc<FileStore>, why: &str) -> Result<Map> {
        let kernel = Arc::new(KernelFile::map(store, 0, false)?);
        let core = self.kernel_part(&kernel, why)?;
        Ok(Map::new(core, reader(Arc::clone(kernel.mapping()) as Arc<dyn AddressRange>)))
    }

    fn open_kernel_mut(&self, store: Arc<FileStore>, why: &str) -> Result<MapMut> {
        let len = version_len(&*store)?;
        let kernel = Arc::new(KernelFile::map(store, self.capacity(len), true)?);
        let core = self.kernel_part(&kernel, why)?;
        let writer = writer(Arc::clone(kernel.mapping()) as Arc<dyn AddressRange>)?;
        Ok(MapMut::new(core, writer, self.is_whole(), self.durability))
    }

    fn kernel_part(&self, kernel: &Arc<KernelFile>, why: &str) -> Result<Core> {
        let len = version_len(&**kernel.store())?;
        let core = self.part(
            Behind::Kernel(Arc::clone(kernel)),
            len,
            Choice::new(Strategy::Kernel, why.to_owned()),
        )?;
        core.advise(self.advice)?;
        Ok(core)
    }

    fn open_paged(&self, store: Arc<dyn Store>, why: &'static str) -> Result<Map> {
        let (core, memory) = self.paged(store, None, why)?;
        Ok(Map::new(core, reader(memory)))
    }

    fn open_paged_mut(&self, store: Arc<dyn Store>, why: &'static str) -> Result<MapMut> {
        let keep = if self.durability == Durability::None { Keep::Scratch } else { Keep::Flushed };
        self.open_kept(store, keep, why)
    }

    /// Brings the file to its last commit, and starts a journal for it.
    fn open_atomic(&self, path: &Path) -> Result<MapMut> {
        if !matches!(self.strategy, Strategy::Auto | Strategy::Pager) {
            return Err(Error::invalid(
                format!("{}: Durability::Atomic with strategy {}", path.display(), self.strategy),
                "use Strategy::Pager or Auto: only the pager knows what is to be committed",
            ));
        }
        let pager = self.pager.clone().map_or_else(Pager::global, Ok)?;
        let pager = pager.own("a map for writing")?;
        let store = self.file_store(path, true)?;
        lock_for_writing(&*store)?;
        let place = Arc::new(Directory::of(store.as_fd(), path)?);
        let file = Arc::clone(&store) as Arc<dyn Store>;
        let (atomic, _) = AtomicFile::open(place, file, commit::limits(pager))?;
        let atomic = Arc::new(atomic);
        let keep = Keep::Atomic { atomic: Arc::clone(&atomic), in_parts: !store.is_direct() };
        let opened = self.open_kept(store, keep, "commits are the pager's");
        // Nothing was committed yet: if this fails too, the next open finds an empty journal.
        opened.inspect_err(|_| drop(atomic.close()))
    }

    fn open_kept(&self, store: Arc<dyn Store>, keep: Keep, why: &'static str) -> Result<MapMut> {
        let (core, memory) = self.paged(store, Some(keep), why)?;
        Ok(MapMut::new(core, writer(memory)?, self.is_whole(), self.durability))
    }

    /// Maps a file of a pager server, which reads it by a descriptor of this process's.
    fn open_served(&self, path: &Path, server: &Arc<Connection>) -> Result<Map> {
        let (core, memory) = self.served(path, server, Access::Read)?;
        Ok(Map::new(core, reader(memory)))
    }

    /// As [`open_served`](Self::open_served), for writing.
    fn open_served_mut(&self, path: &Path, server: &Arc<Connection>, access: Access) -> Result<MapMut> {
        if self.durability != Durability::Flush {
            return Err(Error::invalid(
                format!("{}: {:?}, by a pager server", path.display(), self.durability),
                "use Durability::Flush, or a pager of this process (Pager::builder)",
            ));
        }
        refuse_unrecovered(path)?;
        let (core, memory) = self.served(path, server, access)?;
        Ok(MapMut::new(core, writer(memory)?, self.is_whole(), self.durability))
    }

    fn served(
        &self,
        path: &Path,
        server: &Arc<Connection>,
        access: Access,
    ) -> Result<(Core, Arc<dyn AddressRange>)> {
        if self.fault_mode != FaultMode::Thread || self.frames == FrameKind::Moved {
            return Err(Error::invalid(
                "faults in the faulting thread or moved frames, by a pager server",
                "leave MapOptions::fault_mode and frames as they are, or use a pager of this process",
            ));
        }
        let block_size = u32::try_from(self.block_size).map_err(|_| {
            Error::invalid(format!("blocks of {} bytes", self.block_size), "use at most 2 MiB")
        })?;
        let options = FileOptions { write: access.writes(), ..FileOptions::default() };
        let store = FileStore::open(path, &options)?;
        let reserve = if access == Access::Write { self.capacity(version_len(&store)?) } else { 0 };
        let (direct, advice, deadline) = (self.direct, self.advice, self.deadline);
        let spec = ServedSpec { block_size, direct, advice, access, reserve, deadline };
        let served = Served::open(server, &store, &spec)?;
        let (len, memory) = (served.len(), Arc::clone(served.frames()) as Arc<dyn AddressRange>);
        let efault = if server.serves_user_mode_only() { EFAULT } else { "" };
        let why = format!("served by the pager server at {}{efault}", server.path().display());
        let core = self.part(Behind::Server(served), len, Choice::new(Strategy::Pager, why))?;
        Ok((core, memory))
    }

    fn paged(
        &self,
        store: Arc<dyn Store>,
        keep: Option<Keep>,
        why: &'static str,
    ) -> Result<(Core, Arc<dyn AddressRange>)> {
        let (file, memory) = self.open_file(store, keep)?;
        let len = file.len();
        let why = if file.has_moved_frames() { format!("{why}; frames are moved") } else { why.to_owned() };
        let why = match self.fault_mode {
            FaultMode::InThread => format!("{why}; faults are served in the faulting thread{EFAULT}"),
            FaultMode::Thread if file.pager.kernel.serves_user_mode_only() => {
                format!("{why}; userfaultfd is granted for user mode only{EFAULT}")
            }
            FaultMode::Thread => format!("{why}; faults are served by a thread"),
        };
        let core = self.part(Behind::Pager(Opened::new(file)), len, Choice::new(Strategy::Pager, why))?;
        Ok((core, memory))
    }

    /// Maps a store that is nobody else's for an allocation: what keeps it, and the claim on its bytes. Nothing is flushed when
    /// both are dropped.
    #[cfg(feature = "allocator-api2")]
    pub(crate) fn open_scratch(&self, store: Arc<dyn Store>) -> Result<(Opened, Writer)> {
        self.check()?;
        let (file, memory) = self.open_file(store, Some(Keep::Flushed))?;
        Ok((Opened::new(file), writer(memory)?))
    }

    fn open_file(
        &self,
        store: Arc<dyn Store>,
        keep: Option<Keep>,
    ) -> Result<(Arc<PagedFile>, Arc<dyn AddressRange>)> {
        let writable = keep.is_some();
        let pager = self.pager.clone().map_or_else(Pager::global, Ok)?;
        let pager = pager.own(if writable { "a map for writing" } else { "a store of one's own" })?;
        if self.frames == FrameKind::Moved && pager.budget.total() < MOVED_BUDGET {
            return Err(Error::invalid(
                format!("moved frames under a budget of {} bytes", pager.budget.total()),
                "raise Pager::builder().budget() to 16 MiB, or leave MapOptions::frames at Auto",
            ));
        }
        let len = version_len(&*store)?;
        let spec = FileSpec {
            store,
            writable,
            mode: self.fault_mode,
            frames: self.frames,
            block_size: self.block_size as u64,
            reserve: if writable { self.capacity(len) } else { 0 },
            deadline: self.deadline,
            advice: self.advice,
            keep: keep.unwrap_or_default(),
        };
        let file = Engine::open_file(pager, spec)?;
        let Some(memory) = file.frames().memory() else {
            return Err(Error::invalid("a simulated kernel", "use the engine's own interface there"));
        };
        Ok((file, memory))
    }

    fn capacity(&self, len: u64) -> u64 {
        self.reserve.unwrap_or_else(|| len.saturating_mul(2).max(len.saturating_add(DEFAULT_GROWTH))).max(len)
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!((self.start, self.end), (Bound::Unbounded | Bound::Included(0), Bound::Unbounded))
    }

    /// The part of something `file_len` bytes long that these options ask for.
    fn part(&self, behind: Behind, file_len: u64, choice: Choice) -> Result<Core> {
        let mut core = Core { behind, offset: 0, len: file_len, choice };
        let range = core.resolve((self.start, self.end))?;
        (core.offset, core.len) = (range.start, range.end - range.start);
        Ok(core)
    }

    fn file_store(&self, path: &Path, write: bool) -> Result<Arc<FileStore>> {
        let paged = matches!(self.strategy, Strategy::Auto | Strategy::Pager);
        let direct = match self.direct {
            Some(direct) => direct && paged,
            None if paged => {
                let budget = self.pager.clone().map_or_else(Pager::global, Ok)?.budget();
                std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > budget)
            }
            None => false,
        };
        FileStore::open(path, &FileOptions { write, direct }).map(Arc::new)
    }
}

const EFAULT: &str = ": system calls handed an absent page get EFAULT";
const WHY_PAGER: &str = "typed errors and a budget of its own, and userfaultfd is allowed here";

fn kernel_maps_files_only() -> Error {
    Error::invalid("Strategy::Kernel for a store", "use Strategy::Pager or Auto: the kernel maps files only")
}

fn reader(range: Arc<dyn AddressRange>) -> Reader {
    Reader::claim(range).expect("made for reading just now")
}

fn writer(range: Arc<dyn AddressRange>) -> Result<Writer> {
    Writer::claim(range).ok_or_else(|| Error::invalid("a second writer of one mapping", "use the first"))
}

fn version_len(store: &dyn Store) -> Result<u64> {
    Ok(store.version().map_err(|e| Error::io("open", store.name(), 0, 0, e))?.len)
}

/// Opens for reading, without waiting for what a device or a pipe would wait for.
fn open_at_once(path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
}

/// Reads a small file that did not change since `opened` was taken: what [`FileStore`] calls its version says so.
fn read_small(
    path: &Path,
    mut from: impl Read,
    opened: &Metadata,
    now: impl Fn() -> io::Result<Metadata>,
) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let failed = |e| Error::io("read", name(), 0, opened.len(), e);
    let mut bytes = Vec::with_capacity(opened.len() as usize);
    from.read_to_end(&mut bytes).map_err(failed)?;
    let now = now().map_err(failed)?;
    let version = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    let change = match (opened.len(), now.len()) {
        _ if version(&now) == version(opened) => return Ok(bytes),
        (was, now) if now < was => Change::Truncated { was, now },
        _ => Change::Modified,
    };
    Err(Error::Changed { path: name(), offset: 0, change })
}

/// Reads a whole store that did not change meanwhile.
fn read_all(store: &dyn Store) -> Result<Vec<u8>> {
    let failed = |offset: u64, e| Error::io("read", store.name(), offset, 0, e);
    let before = store.version().map_err(|e| failed(0, e))?;
    let mut bytes =
        vec![0; usize::try_from(before.len).map_err(|_| failed(0, io::ErrorKind::OutOfMemory.into()))?];
    let mut done = 0;
    while done < bytes.len() {
        match store.read_at(done as u64, &mut bytes[done..]) {
            Ok(0) => return Err(failed(done as u64, io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(done as u64, error)),
        }
    }
    if store.version().map_err(|e| failed(0, e))? != before {
        return Err(Error::Changed { path: store.name(), offset: 0, change: Change::Modified });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads from a file, and lets somebody else at it after the first half.
    struct Disturbed<'a, F> {
        file: &'a File,
        disturb: Option<F>,
        half: usize,
    }

    impl<F: FnOnce()> Read for Disturbed<'_, F> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let most = into.len().min(self.half);
            let n = self.file.read(&mut into[..most])?;
            self.disturb.take().into_iter().for_each(|disturb| disturb());
            Ok(n)
        }
    }

    #[test]
    fn a_small_file_that_changes_while_it_is_read_is_an_error() {
        let of = tempfile::NamedTempFile::new().unwrap();
        let read = |disturb: &dyn Fn()| {
            std::fs::write(of.path(), [1; 1000]).unwrap();
            let file = File::open(of.path()).unwrap();
            let opened = file.metadata().unwrap();
            let from = Disturbed { file: &file, disturb: Some(disturb), half: 500 };
            read_small(of.path(), from, &opened, || file.metadata())
        };
        assert_eq!(read(&|| {}).unwrap(), [1; 1000]);
        let modified = read(&|| {
            std::thread::sleep(Duration::from_millis(20)); // another tick of the file system's clock
            std::fs::write(of.path(), [2; 1000]).unwrap();
        });
        let of_change = |result: Result<Vec<u8>>| match result {
            Err(Error::Changed { path, change, .. }) if path == of.path().to_str().unwrap() => change,
            other => panic!("{other:?}"),
        };
        assert_eq!(of_change(modified), Change::Modified);
        let cut = read(&|| File::options().write(true).open(of.path()).unwrap().set_len(700).unwrap());
        assert_eq!(of_change(cut), Change::Truncated { was: 1000, now: 700 });
    }
}
