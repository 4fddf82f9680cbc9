//! What the engine asks of the kernel: threads, time, waiting, faults, and frames with their mappings.
//!
//! Two implementations: `host` (Linux) and the simulator's. Every call may be a point where another thread runs: the engine
//! makes none of them while it holds one of its own locks.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use mapwright_sys::buffer::Buffer;

use crate::error::Result;

/// Bytes of a region: what the kernel can map by one huge page.
pub const REGION: u64 = mapwright_sys::moved::REGION as u64;

/// Which of a file's two address ranges is meant. Offsets are the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// What `Deref` and `get` show.
    Plain,
    /// What a `checked` scope shows: a block that cannot be filled reads as zeros here, and only here.
    Checked,
    /// A view in the address space of another process, by the number that [`Frames::admit`] gave it. What becomes of a block
    /// that can't be filled is that process's affair.
    Remote(u32),
}

/// A view in the address space of another process.
pub trait RemoteView: Send + Sync {
    /// Shows stored pages there, and wakes who waits for them.
    ///
    /// # Errors
    /// When that process does not let it be done.
    fn map(&self, range: Range<u64>) -> io::Result<()>;

    /// As `map`, of which only the first `needed` bytes were asked for: the others as far as it is cheap.
    ///
    /// # Errors
    /// As for `map`.
    fn map_ahead(&self, range: Range<u64>, needed: u64) -> io::Result<()> {
        let _ = needed;
        self.map(range)
    }

    /// As `map`, to be written too.
    ///
    /// # Errors
    /// As for `map`; where the view is for reading.
    fn map_writable(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes every write to pages of the range there a fault. Where that can't be done, the process has no part in the file any
    /// more: what it writes then is its own loss.
    fn protect(&self, range: Range<u64>);

    /// Makes threads that wait there touch their pages again.
    fn wake(&self, range: Range<u64>);

    /// Asks that the ranges are shown there no more, so that it is seen what is touched again. That may come about later, or
    /// never: [`Frames::release`] does not depend on it.
    fn unmap(&self, ranges: &[Range<u64>]);
}

/// Who serves the faults of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum FaultMode {
    /// A thread of the pager. The default. Also serves system calls that are handed a pointer to an absent page, where the
    /// machine grants a full userfaultfd; where it grants one for user mode only, as ordinary users usually get, they get
    /// EFAULT. `mapwright doctor` and [`Map::strategy`](crate::Map::strategy) say which it is.
    #[default]
    Thread,
    /// The faulting thread itself, in a SIGBUS handler: several times faster, but a system call that is handed a pointer to
    /// an absent page gets EFAULT.
    InThread,
}

/// A touch of an absent page, to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The address touched.
    pub address: usize,
}

/// What became of a fault served in the faulting thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The page is there: touch it again.
    Served,
    /// It could not be filled, and a message was printed: the thread gets SIGBUS.
    Failed,
    /// The address is none of this engine's.
    NotOurs,
}

/// Serves faults in the faulting thread: the engine.
pub trait FaultSink: Send + Sync {
    /// Serves one fault. Called in a signal handler of the faulting thread, which may hold any lock but the engine's.
    fn serve_in_thread(&self, fault: Fault) -> FaultOutcome;
}

/// What the memory of a file's resident blocks is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum FrameKind {
    /// `Moved` for files opened for reading, where the machine can move pages and the budget is 16 MiB or more; else `Shared`.
    /// The default.
    #[default]
    Auto,
    /// Shared memory (a memfd; for programs under `mapwright run` with huge pages, where that can be had). A write through a stray pointer to a file that is opened for reading is SIGSEGV.
    Shared,
    /// Private memory whose pages the kernel moves between buffers and their place (Linux 6.8), cheaper to fill and to evict,
    /// on huge pages where whole 2 MiB are read; for files opened for reading. The kernel asks that such memory is mapped
    /// writable: a write through a stray pointer changes what this process reads there until the page is evicted. The file
    /// itself is never changed.
    Moved,
}

/// What a file's frames are to be like.
pub struct FrameSpec {
    /// Address space to reserve, in bytes: a multiple of the block size.
    pub capacity: u64,
    /// Whether slices may be written through, and so writes be tracked.
    pub writable: bool,
    /// Which of the kinds that suit the rest.
    pub kind: FrameKind,
    /// Whether they are to be lent for reading: then whole regions are on huge pages, where the machine allows that.
    pub lent: bool,
    /// Who serves faults.
    pub mode: FaultMode,
    /// The engine, for `FaultMode::InThread`.
    pub sink: Weak<dyn FaultSink>,
}

impl FrameSpec {
    /// Whether frames that move would do.
    pub fn may_move(&self) -> bool {
        !self.writable && self.kind != FrameKind::Shared
    }
}

/// The kernel as the engine sees it.
pub trait Kernel: Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn now(&self) -> Duration;

    /// Runs `work` in a new thread.
    ///
    /// # Errors
    /// When no thread can be had.
    fn spawn(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;

    /// Sleeps while `word` holds `expected`, until woken or until `timeout` has passed. May return early for no reason.
    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>);

    /// Wakes every thread that waits on `word`.
    fn wake(&self, word: &AtomicU32);

    /// Makes the frames of one file: address space and memory, all absent.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) with the remedy where the machine lacks a facility.
    fn frames(&self, spec: FrameSpec) -> Result<Arc<dyn Frames>>;

    /// Waits for faults of `FaultMode::Thread` and appends them to `faults`; returns with none when `interrupt_faults` was
    /// called.
    ///
    /// # Errors
    /// When the kernel refuses: the caller tries again a little later.
    fn wait_faults(&self, faults: &mut Vec<Fault>) -> io::Result<()>;

    /// Whether faults of system calls are not served, because only user mode's may be.
    fn serves_user_mode_only(&self) -> bool {
        false
    }

    /// Makes `wait_faults` return, now or at its next call.
    fn interrupt_faults(&self);
}

/// The memory of one file's resident blocks and the address ranges that show it.
///
/// A page of the file is *absent* (no frame), *stored* (a frame, shown nowhere) or *mapped* in one or both views. Ranges are
/// byte offsets in the file, multiples of the page size.
///
/// | from → to | by |
/// | --- | --- |
/// | absent → stored | `store` |
/// | absent → mapped in the plain view, clean and write-protected | `fill` |
/// | stored → mapped, clean and write-protected | `map` |
/// | mapped clean → mapped written | a write through the view: no call, no fault that anybody sees. In one of another process: `grant` |
/// | mapped written → mapped clean | `take_written`; `revoke` |
/// | mapped → stored | `unmap`; what was written is still told by `written` until the next `map` of that page |
/// | stored or mapped → absent | `release` |
///
/// A touch of a page that is not mapped in that view is a fault. This is the whole interface to memory: frames that move
/// between a pool and their place can stand behind it as well as frames that are shared.
pub trait Frames: Send + Sync {
    /// Address of offset 0 in a view.
    ///
    /// # Errors
    /// When the view does not exist yet and cannot be made.
    fn address(&self, view: View) -> Result<usize>;

    /// The memory behind the views, for slices of it; `None` in the simulator, which has none.
    fn memory(&self) -> Option<Arc<dyn mapwright_sys::window::AddressRange>> {
        None
    }

    /// Whether what the checked view shows are copies, with memory of their own. Then `map` of that view asks that the pages
    /// are shown in the plain one, and held by a pin or a claim.
    fn has_copies(&self) -> bool {
        false
    }

    /// Whether other processes have been given the memory. They may read holes of it, which puts pages of zeros there that
    /// nobody here asked for: absent pages are to be stored over, not filled.
    fn is_lent(&self) -> bool {
        false
    }

    /// A descriptor of the memory, to be mapped by another process: for writing if the frames are. From then on nobody writes by
    /// the views of this process.
    ///
    /// # Errors
    /// Where frames can't be lent, and when descriptors are short.
    fn lend(&self) -> io::Result<std::os::fd::OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Lets a view of another process take part, as [`View::Remote`] of the number returned, until [`dismiss`](Self::dismiss).
    ///
    /// # Errors
    /// Where frames can't be lent.
    fn admit(&self, _view: Arc<dyn RemoteView>) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Forgets a view of another process.
    fn dismiss(&self, _number: u32) {}

    /// Shows stored pages in a view of another process so that they can be written, and wakes who waits for them there. Before
    /// that they are called dirty, by `call_dirty`: both in one step as far as [`revoke`](Self::revoke) can tell.
    ///
    /// # Errors
    /// When that process does not let it be done, or its view is for reading. The pages may be called dirty then.
    fn grant(&self, _view: View, _range: Range<u64>, _call_dirty: &dyn Fn()) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Calls pages clean, by `call_clean`, which says which; then makes every write to them in a view of another process a fault.
    fn revoke(&self, call_clean: &mut dyn FnMut() -> Vec<Range<u64>>) {
        call_clean();
    }

    /// The parts of a range that should be stored, and are not: a process that may write lent memory can give it back too.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn vanished(&self, _range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }

    /// What these frames can do with whole regions, if they can.
    fn regions(&self) -> Option<&dyn Regions> {
        None
    }

    /// Makes `bytes` the contents of the absent or stored pages from `at` on.
    ///
    /// # Errors
    /// When memory is short; the pages may then be stored in part.
    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `bytes` the contents of the absent pages from `at` on and maps them in the plain view: `store` and `map` in one.
    ///
    /// # Errors
    /// When memory is short; the pages may then be stored or mapped in part.
    fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.store(at, bytes)?;
        self.map(View::Plain, at..at + bytes.len() as u64)
    }

    /// Copies the contents of stored or mapped pages out, by the frame and not by the mapping.
    ///
    /// # Errors
    /// Never in practice; whatever the kernel says.
    fn load(&self, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Shows stored pages in a view, clean and write-protected, and wakes the threads that wait for them there. Pages that
    /// are mapped already stay as they are.
    ///
    /// # Errors
    /// When page tables can't be had.
    fn map(&self, view: View, range: Range<u64>) -> io::Result<()>;

    /// As `map`, of which only the first `needed` bytes were asked for: the others as far as it is cheap.
    ///
    /// # Errors
    /// As for `map`.
    fn map_ahead(&self, view: View, range: Range<u64>, needed: u64) -> io::Result<()> {
        let _ = needed;
        self.map(view, range)
    }

    /// Shows the ranges in no view any more; contents stay.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()>;

    /// Appends the parts of `range` written through `view` since they were mapped or last taken, also if unmapped since.
    /// Tells nothing useful about pages that were never mapped in this view.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()>;

    /// As `written`, and in the same step makes those pages clean and write-protected again.
    ///
    /// # Errors
    /// Whatever the kernel says. What was made clean until then is in `out`.
    fn take_written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()>;

    /// Drops the contents of ranges and returns their memory; they are absent, in every view.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn release(&self, ranges: &[Range<u64>]) -> io::Result<()>;

    /// Makes threads that wait for pages of `range` in any view touch them again.
    fn wake(&self, range: Range<u64>);

    /// Copies bytes out through the plain view. All pages are mapped and held there by the caller.
    fn copy_out(&self, at: u64, into: &mut [u8]);

    /// Copies bytes in through the plain view, so that they count as written. All pages are mapped and held there.
    fn copy_in(&self, at: u64, bytes: &[u8]);

    /// Shows zeros for `range` in the checked view, until `restore`.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Makes `range` of the checked view an ordinary, unmapped part of the view again.
    ///
    /// # Errors
    /// Whatever the kernel says; the range still shows zeros then.
    fn restore(&self, range: Range<u64>) -> io::Result<()>;

    /// Lets every thread that touches `range` in the plain view get SIGBUS, until the range is mapped.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn poison(&self, range: Range<u64>) -> io::Result<()>;
}

/// Frames of whole *regions*, [`size`](Self::size) bytes at a multiple of that: filled from a buffer, shown and taken back as one, by
/// moving them, or where frames are shared by what is done to huge pages. A page of such a region is stored or mapped as the region is; a region that was split is made of ordinary pages.
///
/// | from → to | by |
/// | --- | --- |
/// | absent → mapped in the plain view, or stored | `fill` |
/// | stored → mapped | `map` |
/// | mapped → stored, copies dropped | `unmap` |
/// | either → absent | `take`, [`Frames::release`] |
pub trait Regions {
    /// Bytes of a region: [`REGION`], but for the simulator's, which has small ones.
    fn size(&self) -> u64 {
        REGION
    }

    /// Whether its pages are a buffer's before and after.
    fn moves(&self) -> bool {
        true
    }

    /// Makes the pages of a buffer of that size, or their contents, those of an absent region; the buffer's contents are undefined then.
    ///
    /// # Errors
    /// When memory is short; the region may be there in part then.
    fn fill(&self, at: u64, buffer: &mut [u8], shown: bool) -> io::Result<()>;

    /// Shows a stored region in the plain view, and wakes who waits for it there. One thread at a time does so for a region.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn map(&self, at: u64) -> io::Result<()>;

    /// Shows a region in no view any more.
    ///
    /// # Errors
    /// Whatever the kernel says; it is mapped still.
    fn unmap(&self, at: u64) -> io::Result<()>;

    /// Makes a region absent, and its pages those of a buffer that has none. Only of frames that [move](Self::moves).
    ///
    /// # Errors
    /// Whatever the kernel says. The region is absent all the same, its memory returned.
    fn take(&self, at: u64, shown: bool, buffer: &mut Buffer) -> io::Result<()>;

    /// Makes ordinary pages of a region: they can be unmapped and released one by one.
    ///
    /// # Errors
    /// When the pages are held by I/O.
    fn split(&self, at: u64, shown: bool) -> io::Result<()>;
}
