//! The allocator that spills: each allocation is a file without a name, paged under the budget of a pager.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mapwright_sys::alloc::{Backing, OwnedAlloc};
use mapwright_sys::window::FixedMut;

use super::scratch::Scratch;
use crate::api::{MapOptions, Pager};
use crate::engine::file::File;
use crate::engine::opened::Opened;
use crate::engine::write_back;
use crate::error::{Error, Result};

/// An allocator whose large allocations may outgrow memory: each is paged to a file without a name, under the budget of a
/// [`Pager`]. Made by [`SpillOptions::open`]; what more there is to do with it is at [`Spill`], to which it derefs.
///
/// It is an `Allocator` of the crate `allocator-api2`, and so for its `Vec` and `Box`, for hashbrown's tables and others. Clones are
/// the same allocator.
///
/// # What it costs
/// An allocation is a file, a pager's mapping and two descriptors: hundreds of microseconds, and some system calls. Growing in its
/// reservation costs a system call and copies nothing. A touch of a page that is not in memory is a fault of the pager's.
/// Smaller allocations than [`SpillOptions::threshold`] are the system allocator's, outside of the budget.
///
/// # Failures
/// | what | becomes |
/// | --- | --- |
/// | no disk space, no descriptors, no room in the budget, no address space | the allocation fails, or does not grow: `AllocError`; [`Spill::take_error`] says why |
/// | a full disk later | nothing: space is reserved when it is allocated (fallocate(2)) |
/// | a page that can't be written out | it stays in memory and is not lost: [`Spill::acknowledge_error`] says why, and lets it be tried again |
/// | no memory for a page because none can be written out; a page that can't be read back | the thread that touches it gets SIGBUS, after a message: there is nobody to return an error to |
///
/// On file systems that copy on write (Btrfs), reserved space may still run out when a page is written a second time: that is a
/// page that can't be written out.
///
/// # Threads and fork
/// `Send` and `Sync`. In a child made by fork(2) spilled memory is not there: the child must neither touch nor free it.
///
/// # Examples
/// ```
/// use allocator_api2::vec::Vec;
/// use mapwright::Pager;
/// use mapwright::alloc::SpillOptions;
///
/// # if mapwright::Machine::probe().userfaultfd.is_err() { return Ok(()) }
/// let pager = Pager::builder().budget(4 << 20).build()?; // bytes of memory
/// let spill = SpillOptions::new().open(&pager, std::env::temp_dir())?;
/// let mut numbers = Vec::new_in(spill.clone());
/// numbers.extend(0..2_000_000_u64); // 16 MB
/// assert_eq!(numbers.iter().sum::<u64>(), 1_999_999_000_000);
/// assert_eq!(spill.count(), 1); // of them all
/// # Ok::<(), mapwright::Error>(())
/// ```
pub type SpillAlloc = OwnedAlloc<Spill>;

/// What a [`SpillAlloc`] makes its allocations of.
pub struct Spill {
    folder: PathBuf,
    options: MapOptions,
    state: Mutex<State>,
}

/// Guarded by a leaf lock, not held over calls into the kernel or the engine.
#[derive(Default)]
struct State {
    error: Option<Error>,
    /// Files of allocations; of some that were freed too, until the next one is made.
    files: Vec<Weak<File>>,
}

/// Settings of a [`SpillAlloc`].
#[derive(Clone, Debug)]
pub struct SpillOptions {
    threshold: usize,
    reserve: u64,
    block_size: usize,
    deadline: Duration,
}

impl Default for SpillOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl SpillOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        let deadline = Duration::from_secs(30);
        Self { threshold: 1 << 20, reserve: 16 << 30, block_size: 64 << 10, deadline }
    }

    /// Bytes from which on an allocation is spilled: 1 MiB by default.
    #[must_use]
    pub fn threshold(mut self, bytes: usize) -> Self {
        self.threshold = bytes;
        self
    }

    /// Address space for each allocation, in bytes: how far it may grow at its address. Beyond, it is copied to a new one. It costs
    /// nothing else; the default is 16 GiB, or twice the allocation if that is more.
    #[must_use]
    pub fn reserve(mut self, bytes: u64) -> Self {
        self.reserve = bytes;
        self
    }

    /// Bytes that are read and written out together: see [`MapOptions::block_size`]. 64 KiB by default; 4096 for memory that is
    /// touched here and there.
    #[must_use]
    pub fn block_size(mut self, bytes: usize) -> Self {
        self.block_size = bytes;
        self
    }

    /// How long a fault waits for the disk, transient errors included, and for room in the budget: 30 s by default.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Makes the allocator. Its files are in `folder`, of which they take space only. On a tmpfs that space is memory.
    ///
    /// A page is allocated and freed to see whether it can be.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no userfaultfd(2), or the file system can't reserve space; [`Error::Io`] for a folder
    /// in which no file can be made; [`Error::Invalid`] for a block size or a deadline that can't be.
    pub fn open(&self, pager: &Pager, folder: impl AsRef<Path>) -> Result<SpillAlloc> {
        let options = MapOptions::new().pager(pager).block_size(self.block_size).deadline(self.deadline);
        let spill = Spill {
            folder: folder.as_ref().to_owned(),
            options: options.reserve(self.reserve),
            state: Mutex::default(),
        };
        drop(spill.allocate(mapwright_sys::PAGE_SIZE)?);
        Ok(OwnedAlloc::new(spill, self.threshold))
    }
}

impl Spill {
    /// Why the last allocation that failed did; taken once. Of allocations that fail at the same time one error is kept.
    pub fn take_error(&self) -> Option<Error> {
        self.lock().error.take()
    }

    /// Takes the error of a page that could not be written out, if there is one that was not taken yet. No page is lost by it; those
    /// of the allocation concerned are tried again from now on.
    pub fn acknowledge_error(&self) -> Option<Error> {
        let files: Vec<_> = self.lock().files.iter().filter_map(Weak::upgrade).collect();
        files.iter().find_map(|file| write_back::acknowledge(file))
    }

    fn allocate(&self, len: usize) -> Result<(FixedMut, SpilledMemory)> {
        let scratch = Arc::new(Scratch::new(&self.folder, len as u64)?);
        let reserve = (len as u64).saturating_mul(2);
        let options = self.options.clone().reserve_at_least(reserve);
        let (file, writer) = options.open_scratch(Arc::clone(&scratch) as _)?;
        file.resize(len as u64)?;
        Ok((writer.fix(0..len), SpilledMemory { file, scratch }))
    }

    fn resize(&self, memory: &SpilledMemory, len: u64) -> Result<()> {
        let before = memory.file.len();
        memory.scratch.reserve(len)?;
        memory.file.resize(len)?;
        if len < before {
            // Blocks are written whole.
            memory.scratch.give_back(len.next_multiple_of(memory.file.block_size()));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps an allocation. Nothing is flushed when it is dropped.
pub struct SpilledMemory {
    file: Opened,
    scratch: Arc<Scratch>,
}

impl Backing for Spill {
    type Memory = SpilledMemory;

    fn make(&self, len: usize) -> Option<(FixedMut, SpilledMemory)> {
        match self.allocate(len) {
            Ok((bytes, memory)) => {
                let mut state = self.lock();
                if state.files.len() == state.files.capacity() {
                    state.files.retain(|file| file.strong_count() > 0);
                }
                state.files.push(Arc::downgrade(&memory.file));
                Some((bytes, memory))
            }
            Err(error) => {
                self.lock().error = Some(error);
                None
            }
        }
    }

    fn resize(&self, memory: &mut SpilledMemory, len: usize) -> bool {
        match Self::resize(self, memory, len as u64) {
            Ok(()) => true,
            Err(error) => {
                self.lock().error = Some(error);
                false
            }
        }
    }
}

impl std::fmt::Debug for Spill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spill").field("folder", &self.folder).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_out_stays_in_memory() {
        let pager = Pager::builder().budget(2 << 20).build().unwrap();
        let program = std::env::current_exe().unwrap();
        let options = SpillOptions::new().block_size(16 << 10);
        let spill = match options.open(&pager, program.parent().unwrap()) {
            Err(Error::Unsupported { .. }) => {
                return eprintln!("######## SKIPPED: no userfaultfd here ########");
            }
            spill => spill.unwrap(),
        };
        let (mut bytes, memory) = spill.make(8 << 20).unwrap();
        memory.scratch.broken.store(true, std::sync::atomic::Ordering::SeqCst);
        let expected: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251) as u8).collect();
        std::thread::scope(|scope| {
            // Waits where the budget is used up, for longer than the repair takes.
            scope.spawn(|| bytes.copy_from_slice(&expected));
            let error = loop {
                match spill.acknowledge_error() {
                    Some(error) => break error,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(error.errno(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
            memory.scratch.broken.store(false, std::sync::atomic::Ordering::SeqCst);
            while spill.acknowledge_error().is_some() {}
        });
        assert!(bytes[..] == expected, "nothing was lost");
        assert!(pager.stats().evictions > 0);
        drop(bytes);
        drop(memory);
    }
}
