//! The pager's engine. Not part of the public interface: the simulator uses it.
//!
//! One [`Engine`] is one pager: a budget, an eviction policy, threads, and the files opened under it. The walks of a fault,
//! a fill, an eviction and a write-back are each told by one function, in `fault`, `fill`, `evict` and `write_back`.
//!
//! # Concurrency
//! The state of a block is one atomic word ([`block`]), and its transitions settle who may touch its frame. For pairs of
//! operations on one block:
//!
//! | | pin (get, read, write) | fault | fill | evict | write back | resize |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | **pin** | count | count | waits for Filling | pins exclude Evicting | count | `&mut` excludes |
//! | **fault** | | both map; the second skips | joins | waits for Evicting | pin | `&mut` excludes |
//! | **fill** | | | one claimant | waits for Evicting (a region's Absent blocks too) | only Resident is pinned | waits for Filling |
//! | **evict** | | | | one claimant | pins exclude Evicting | waits for Evicting |
//! | **write back** | | | | | the file's turn | the file's turn |
//!
//! The order of the locks is in [`locks`]. Fault service may run in a signal handler of any thread that touches a slice: what
//! that asks of the engine and of programs is in docs/in-thread-faults.md.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::Duration;

use crate::error::{Error, Result};
pub use crate::locks;

pub mod block;
pub mod budget;
pub mod checked;
pub mod commit;
pub mod evict;
pub mod fault;
pub mod file;
mod fill;
mod gate;
mod ghost;
pub mod host;
mod host_frames;
pub mod kernel;
pub mod opened;
mod page_set;
pub mod policy;
pub mod pool;
pub mod read_ahead;
pub mod record;
mod region;
pub mod request;
pub(crate) mod resize;
#[doc(hidden)]
pub mod sabotage;
mod spec;
pub mod stats;
pub(crate) mod unwritten;
pub(crate) mod vanished;
mod watch;
pub mod write_back;

use budget::{Budget, Buffers};
use file::{File, FileSpec};
use kernel::{Fault, FaultMode, FaultOutcome, FaultSink, Kernel, View};
use locks::{lock, lock_policy, read_files, write_files};
use policy::{Key, Policy};
use pool::{Kind, Pool};
use record::Recorder;
use stats::{Counters, Stats};

/// Bytes in a page.
pub const PAGE: u64 = mapwright_sys::PAGE_SIZE as u64;

/// One pager.
pub struct Engine {
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) budget: Budget,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) policy: Mutex<Policy>,
    files: RwLock<Files>,
    pub(crate) pool: Pool,
    pub(crate) counters: Counters,
    /// Blocks evicted since the start, wrapping: the clock by which regions are unmapped.
    pub(crate) dropped: AtomicU32,
    /// Bytes of blocks that are dirty or being written, of all files that are lent.
    pub(crate) unwritten: AtomicU64,
    evictor_runs: AtomicBool,
    /// There is, or was, a file whose regions take the pages of buffers.
    has_moved: AtomicBool,
    serving: AtomicBool,
    /// Regions whose blocks are all resident, to be put on one frame each. Not empty while `region::run_collapses` runs.
    to_collapse: Mutex<Collapses>,
    /// Requests that could not get all their blocks at once go on one at a time.
    pub(crate) hungry: gate::Gate,
    pub(crate) watch: watch::Watch,
    /// Where misses are written down, if they are.
    pub(crate) recorder: OnceLock<Recorder>,
    weak: Weak<Engine>,
}

/// Files and runs of blocks.
type Collapses = VecDeque<(Weak<File>, Range<u64>)>;

/// The files of a pager by every key they are looked up with.
#[derive(Default)]
struct Files {
    by_slot: BTreeMap<u32, Weak<File>>,
    /// Start of a view → its end.
    by_address: BTreeMap<usize, (usize, View, Weak<File>)>,
    last_slot: u32,
    /// Slots of files that are gone and of which the policy may still hold entries, `stale` of them at most.
    dead: BTreeSet<u32>,
    stale: u64,
}

impl Files {
    /// A slot that no file has and the policy knows nothing of.
    fn new_slot(&mut self) -> u32 {
        loop {
            self.last_slot = (self.last_slot + 1) % Key::SLOTS;
            if !self.by_slot.contains_key(&self.last_slot) && !self.dead.contains(&self.last_slot) {
                return self.last_slot;
            }
        }
    }
}

/// The policy is purged of files that are gone when it may hold this many of their entries, or a quarter of all.
const MAX_STALE: u64 = 4096;

/// Keeps a pager open; the last one closes it.
pub struct Handle(Arc<Engine>);

impl std::ops::Deref for Handle {
    type Target = Arc<Engine>;
    fn deref(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.pool.close(&self.0);
        self.0.watch.close(&self.0);
        self.0.kernel.interrupt_faults();
    }
}

impl Engine {
    /// A pager with a budget of `budget_bytes` on `kernel`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the budget is below eight pages.
    pub fn open(kernel: Arc<dyn Kernel>, budget_bytes: u64) -> Result<Arc<Handle>> {
        let least = budget::MIN_BLOCKS * PAGE;
        if budget_bytes < least {
            return Err(Error::invalid(
                format!("a budget of {budget_bytes} bytes"),
                "give the pager at least 32 KiB, and at least eight blocks of every file it opens",
            ));
        }
        let budget = Budget::new(budget_bytes);
        let blocks = usize::try_from(budget.limit() / (PAGE + budget::BLOCK_METADATA)).unwrap_or(usize::MAX);
        let engine = Arc::new_cyclic(|weak| Self {
            kernel,
            buffers: Arc::new(Buffers::new(budget_bytes)),
            budget,
            policy: Mutex::new(Policy::new(blocks.max(1))),
            files: RwLock::default(),
            pool: Pool::default(),
            counters: Counters::default(),
            dropped: AtomicU32::new(0),
            unwritten: AtomicU64::new(0),
            evictor_runs: AtomicBool::new(false),
            has_moved: AtomicBool::new(false),
            serving: AtomicBool::new(false),
            to_collapse: Mutex::default(),
            hungry: gate::Gate::default(),
            watch: watch::Watch::default(),
            recorder: OnceLock::new(),
            weak: weak.clone(),
        });
        Ok(Arc::new(Handle(engine)))
    }

    /// Writes down what is missed from now on; nothing is read ahead any more, as that would hide misses.
    ///
    /// # Errors
    /// As for [`Recorder::create`]; [`Error::Invalid`] if there is a recording already.
    pub fn record(&self, path: &std::path::Path) -> Result<()> {
        let recorder = Recorder::create(path, self.budget.limit() / PAGE)?;
        let again = |_| Error::invalid("a second recording of one pager", "make another pager");
        self.recorder.set(recorder).map_err(again)
    }

    /// Opens a store as a file of this pager, or shares the file if it is open for reading in the same way.
    ///
    /// # Errors
    /// See [`File::open`]; [`Error::Locked`] if one of the two openings writes.
    pub fn open_file(handle: &Arc<Handle>, spec: FileSpec) -> Result<Arc<File>> {
        let version = fill::patiently(handle, handle.now() + spec.deadline, || spec.store.version())
            .map_err(|e| Error::io("open", spec.store.name(), 0, 0, e))?;
        if let Some(file) = handle.shareable(&spec, version)? {
            return Ok(file);
        }
        let slot = write_files(&handle.files).new_slot();
        let file = File::open(Arc::clone(handle), spec.clone(), slot, version)?;
        if file.mode == FaultMode::Thread {
            handle.serve_faults()?;
        }
        commit::open(&file)?;
        let address = file.frames.address(View::Plain)?;
        let mut files = write_files(&handle.files);
        // Upgraded files are let go after the lock: dropping the last hold of one takes it.
        let others: Vec<Arc<File>> = files.by_slot.values().filter_map(Weak::upgrade).collect();
        let same = || others.iter().filter(|other| other.identity() == file.identity());
        let shared = same().find(|other| other.is_shareable(&spec, version));
        if let Some(shared) = shared.filter(|shared| !shared.writable || shared.is_shared_by(&spec)) {
            drop(files);
            return Ok(Arc::clone(shared));
        }
        if same().any(|other| other.writable || file.writable) {
            drop(files);
            return Err(Error::Locked { path: file.name.clone(), holder: "a map opened at the same time" });
        }
        files.by_slot.insert(slot, Arc::downgrade(&file));
        let end = address + file.capacity as usize;
        files.by_address.insert(address, (end, View::Plain, Arc::downgrade(&file)));
        Ok(file)
    }

    fn shareable(&self, spec: &FileSpec, version: crate::stores::Version) -> Result<Option<Arc<File>>> {
        let candidates: Vec<Arc<File>> = {
            let files = read_files(&self.files);
            files.by_slot.values().filter_map(Weak::upgrade).collect()
        };
        let same = |file: &&Arc<File>| file.identity() == version.identity;
        for file in candidates.iter().filter(same) {
            if (file.writable || spec.writable) && !file.is_shared_by(spec) {
                let holder =
                    if file.writable { "another MapMut of this pager" } else { "a Map of this pager" };
                return Err(Error::Locked { path: file.name.clone(), holder });
            }
            if file.is_shareable(spec, version) {
                return Ok(Some(Arc::clone(file)));
            }
            if file.writable {
                let holder = "maps that write it in blocks of another size";
                return Err(Error::Locked { path: file.name.clone(), holder });
            }
        }
        Ok(None)
    }

    /// Makes the checked view of a file findable by its addresses.
    pub(crate) fn register_checked(&self, file: &Arc<File>, address: usize) {
        let end = address + file.capacity as usize;
        let entry = (end, View::Checked, Arc::downgrade(file));
        write_files(&self.files).by_address.insert(address, entry);
    }

    /// Forgets a file that is being dropped, with up to `entries` entries in the policy.
    pub(crate) fn forget(&self, slot: u32, entries: u64) {
        let most = MAX_STALE.max(lock_policy(&self.policy).len() as u64 / 4);
        let dead = {
            let mut files = write_files(&self.files);
            files.by_slot.remove(&slot);
            files.by_address.retain(|_, (_, _, file)| file.strong_count() > 0);
            if entries > 0 {
                files.dead.insert(slot);
                files.stale += entries;
            }
            if files.stale < most {
                return;
            }
            files.stale = 0;
            std::mem::take(&mut files.dead)
        };
        lock_policy(&self.policy).forget_files(|slot| dead.contains(&slot));
    }

    /// The file in a slot.
    pub(crate) fn file(&self, slot: u32) -> Option<Arc<File>> {
        read_files(&self.files).by_slot.get(&slot)?.upgrade()
    }

    /// What is mapped at an address: file, view, byte offset in the file.
    pub(crate) fn locate(&self, address: usize) -> Option<(Arc<File>, View, u64)> {
        let files = read_files(&self.files);
        let (start, (end, view, file)) = files.by_address.range(..=address).next_back()?;
        // Nothing may fail after the upgrade: dropping the last hold of a file takes this lock.
        (address < *end).then(|| file.upgrade().map(|file| (file, *view, (address - start) as u64)))?
    }

    /// Starts the service of thread-mode faults, once.
    fn serve_faults(&self) -> Result<()> {
        if !self.serving.swap(true, Ordering::AcqRel) {
            self.pool.submit(&self.this(), Kind::Urgent, Box::new(fault::lead));
            if self.pool.threads() == 0 {
                self.serving.store(false, Ordering::Release);
                let source = std::io::Error::from(std::io::ErrorKind::WouldBlock).into();
                let remedy =
                    "raise the limit on threads (ulimit -u, pids cgroup), or use FaultMode::InThread";
                return Err(Error::Unsupported { feature: "a pager thread", remedy, source });
            }
        }
        Ok(())
    }

    /// Whether little of the budget is left.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.budget.free() < self.budget.limit() / 64
    }

    /// Makes room in the background when little is left.
    pub(crate) fn evict_ahead(&self) {
        let is_small = self.budget.limit() / 64 < 64 * PAGE;
        if is_small || !self.is_short_of_room() || self.evictor_runs.swap(true, Ordering::AcqRel) {
            return;
        }
        self.pool.submit(&self.this(), Kind::Ordinary, Box::new(evict::run_evictor));
    }

    pub(crate) fn evictor_ended(&self) {
        self.evictor_runs.store(false, Ordering::Release);
    }

    /// This engine, to be held by a job.
    pub(crate) fn this(&self) -> Arc<Engine> {
        self.weak.upgrade().expect("the engine lives while it is used")
    }

    /// Time since some fixed point.
    pub(crate) fn now(&self) -> Duration {
        self.kernel.now()
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        let load = |atomic: &AtomicU64| atomic.load(Ordering::Relaxed);
        Stats {
            faults: counters.faults.get(),
            hits: counters.hits.get(),
            fills: counters.fills.get(),
            filled_bytes: counters.filled_bytes.get(),
            read_ahead_bytes: counters.read_ahead_bytes.get(),
            failed_fills: counters.failed_fills.get(),
            retries: counters.retries.get(),
            evictions: counters.evictions.get(),
            refaults: counters.refaults.get(),
            collapses: counters.collapses.get(),
            write_backs: counters.write_backs.get(),
            written_back_bytes: counters.written_back_bytes.get(),
            queue_depth: load(&counters.fills_in_flight),
            max_queue_depth: load(&counters.max_fills_in_flight),
            fault_latency: counters.fault_latency(),
            used_bytes: self.budget.used(),
            budget_bytes: self.budget.total(),
        }
    }
}

impl FaultSink for Engine {
    fn serve_in_thread(&self, fault: Fault) -> FaultOutcome {
        fault::serve_in_thread(self, fault)
    }
}
