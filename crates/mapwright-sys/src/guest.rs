//! Files that a program maps by mmap(2) and a pager server serves, in the process of that program, which knows nothing of it.
//!
//! A [`GuestView`] is a mapping of lent frames, and somewhere else, untouched, the very mapping of the file that the program has
//! asked for: its *twin*. To give a map back to the kernel is to move the twin over the part of the view that the program
//! knows (its *window*), in one step of the kernel's: at no time is anything else there. So whatever can't be served right is given
//! back first, at any time and without a descriptor; a child of fork(2), which has no views, gets its copies of the twins.
//!
//! A view of a file that the program has alone may be written ([`MapKind::Alone`]). Its file may be older than what it shows, so it is given back only when
//! the server has brought what was written into the file, and if that can't be, nothing is put in its place that could be taken for the file: whoever
//! touches it gets SIGBUS ([`GuestView::break_off`]), and a child of fork(2) SIGSEGV.
//!
//! A map that the program may write privately ([`MapKind::Copies`]) is served like one for reading: the kernel gives it a copy of each page that it stores to
//! (copy-on-write), and the frames stay as they are. Before the twin takes its place, the program's own pages are copied into the twin
//! (`copies`), while whoever touches the window waits. Until then the server must not show pages there: who gives such a map back has
//! had the server close it. Its pages are not taken out of the page tables when the server suggests that, because the program's own ones would
//! be lost. A child of fork(2) would have none of those, so such maps are given back before ([`find_copies`]).
//!
//! The views of the process are in a table that is read without locks, because mmap(2) and its kin are called from everywhere: inside of
//! allocators, in signal handlers, in children between fork and exec. States of a slot:
//!
//! | from | to | by |
//! | --- | --- | --- |
//! | free | making | [`GuestView::new`] |
//! | making | served | [`GuestView::serve`]: the program may learn the address |
//! | served | free | [`GuestView::give_back`]: the twin is in place; [`GuestView::break_off`] |
//! | making | free | drop: the program never learned the address; [`GuestView::give_back`], before it was served |
//! | any | free | [`after_fork`], in the child |
//!
//! # Locks
//! `given` of a view is held while its pages are taken out of the page tables ([`GuestView::unmap`]) and while it is given back: after that nothing
//! is done to its window any more. Nothing that is served is touched under it.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};

use crate::PAGE_SIZE;
use crate::copies::{Aside, can_copy};
use crate::mapping::{Reservation, reserve_again, try_a_move};
use crate::pagemap::Pagemap;
use crate::signals::print_raw;
use crate::sleepers::Sleepers;
use crate::uffd::Uffd;
use crate::zap::zap;

/// Views in one process.
const SLOTS: usize = 1024;
const FREE: u32 = 0;
const MAKING: u32 = 1;
const SERVED: u32 = 2;

/// One view, as others find it.
struct Slot {
    state: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    twin: AtomicUsize,
    /// [`MapKind::Alone`]
    alone: AtomicBool,
    /// [`MapKind::Copies`]
    copies: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        twin: AtomicUsize::new(0),
        alone: AtomicBool::new(false),
        copies: AtomicBool::new(false),
    }
}; SLOTS];
/// Slots that are not free.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
/// Slots from here on were never taken.
static END: AtomicUsize = AtomicUsize::new(0);

/// Which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// What a program has asked mmap(2) for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Which file.
    pub identity: Identity,
    /// Which bytes of it, whole pages.
    pub window: Range<u64>,
    /// How it is mapped.
    pub kind: MapKind,
    /// For [`MapKind::Copies`]: how the pages are found that the program has written to.
    pub pagemap: Option<Arc<Pagemap>>,
}

/// How a program has mapped a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// MAP_SHARED, for reading, beside others who read.
    Shared,
    /// MAP_PRIVATE, for reading.
    Private,
    /// MAP_PRIVATE, for reading and writing: of what it writes to, the program has copies.
    Copies {
        /// Without MAP_NORESERVE: the kernel counts memory for all pages that may be written.
        counted: bool,
    },
    /// MAP_SHARED, by a descriptor for reading and writing of the only open file description that there is; for reading alone, or also for writing.
    Alone {
        /// PROT_WRITE
        writes: bool,
    },
}

impl MapKind {
    /// Whether what it shows may be newer than the file.
    pub fn is_alone(self) -> bool {
        matches!(self, Self::Alone { .. })
    }

    /// Whether it may have pages of the program's own.
    pub fn has_copies(self) -> bool {
        matches!(self, Self::Copies { .. })
    }

    fn of_twin(self) -> (MapFlags, ProtFlags) {
        match self {
            Self::Shared | Self::Alone { writes: false } => {
                (MapFlags::SHARED | MapFlags::NORESERVE, ProtFlags::READ)
            }
            Self::Private => (MapFlags::PRIVATE | MapFlags::NORESERVE, ProtFlags::READ),
            Self::Copies { counted } => {
                let counted = if counted { MapFlags::empty() } else { MapFlags::NORESERVE };
                (MapFlags::PRIVATE | counted, ProtFlags::READ | ProtFlags::WRITE)
            }
            Self::Alone { writes: true } => {
                (MapFlags::SHARED | MapFlags::NORESERVE, ProtFlags::READ | ProtFlags::WRITE)
            }
        }
    }
}

/// A mapping of a file that a server serves, until it is given back to the kernel.
pub struct GuestView {
    whole: Option<Reservation>,
    window: Range<u64>,
    kind: MapKind,
    slot: &'static Slot,
    uffd: Arc<Uffd>,
    pagemap: Option<Arc<Pagemap>>,
    /// Who may sleep in what a program shares with others.
    sleepers: Option<Sleepers>,
    given: Mutex<bool>,
}

/// What giving a view back takes: see [`GuestView::prepare`].
pub struct Prepared(Option<Aside>);

impl GuestView {
    /// Maps `capacity` bytes of frames, a multiple of the page size, and the twin of `file`. Touches are not served yet.
    ///
    /// # Errors
    /// `InvalidData` if there are not that many, or the window is not inside; `ENOMEM` when address space, mappings or slots
    /// are short; what mmap(2) says of the file.
    pub fn new(
        frames: BorrowedFd<'_>,
        capacity: u64,
        file: BorrowedFd<'_>,
        wanted: &Wanted,
        uffd: Arc<Uffd>,
    ) -> io::Result<Self> {
        let Range { start, end } = wanted.window;
        let page = PAGE_SIZE as u64;
        let whole_pages = [start, end, capacity].iter().all(|at| at.is_multiple_of(page));
        let len = rustix::fs::fstat(frames)?.st_size; // past its end a mapping raises SIGBUS without asking anybody
        if !whole_pages || start >= end || end > capacity || u64::try_from(len) != Ok(capacity) {
            let what = format!("{len} bytes of frames, said to be {capacity}, for {start}..{end}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let short = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let whole = Reservation::new(usize::try_from(capacity).map_err(short)?)?;
        match wanted.kind {
            MapKind::Alone { writes } => whole.map_file(frames, 0..capacity, writes)?,
            MapKind::Shared | MapKind::Private | MapKind::Copies { .. } => {
                whole.map_privately(frames, wanted.kind.has_copies())?;
            }
        }
        match wanted.kind {
            // What the program has changed belongs into a core dump, as it would of the kernel's mapping.
            MapKind::Copies { .. } => whole.keep_from_children(0..capacity)?,
            MapKind::Shared | MapKind::Private | MapKind::Alone { .. } => whole.keep_private(0..capacity)?,
        }
        let sleepers = wanted.kind.is_alone().then(|| Sleepers::of(frames, capacity)).transpose()?;
        let slot = take_slot()?;
        slot.alone.store(wanted.kind.is_alone(), Ordering::Relaxed);
        slot.copies.store(wanted.kind.has_copies(), Ordering::Relaxed);
        let (kind, given, pagemap) =
            (wanted.kind, Mutex::new(false), wanted.pagemap.as_ref().map(Arc::clone));
        let view =
            Self { whole: Some(whole), window: start..end, kind, slot, uffd, pagemap, sleepers, given };
        let (flags, protection) = kind.of_twin();
        let len = (end - start) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let twin = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, file, start) }?;
        slot.start.store(view.address(), Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
        slot.twin.store(twin as usize, Ordering::Release); // last: see `are_twins`
        Ok(view)
    }

    /// Lets the server serve touches, of which it must know where they will be, and the table know the view; unless it was given
    /// back already.
    ///
    /// # Errors
    /// What registering meets.
    pub fn serve(&self) -> io::Result<()> {
        let given = self.lock();
        if *given {
            return Ok(());
        }
        self.uffd.register(self.whole().addresses(&(0..self.capacity())), self.kind.is_alone())?;
        self.slot.state.store(SERVED, Ordering::Release);
        Ok(())
    }

    fn whole(&self) -> &Reservation {
        self.whole.as_ref().expect("taken by drop alone")
    }

    /// Where offset 0 of the file lies, or would lie.
    pub fn base(&self) -> usize {
        self.whole().start()
    }

    /// Where the window begins: what mmap(2) returns.
    pub fn address(&self) -> usize {
        self.base() + self.window.start as usize
    }

    /// How it is mapped.
    pub fn kind(&self) -> MapKind {
        self.kind
    }

    /// The bytes of the file that the program has mapped.
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Bytes in the view.
    pub fn capacity(&self) -> u64 {
        self.whole().len() as u64
    }

    /// At which offset of the file an address is, if it is in the view.
    pub fn locate(&self, address: usize) -> Option<u64> {
        let offset = address.checked_sub(self.base())? as u64;
        (offset < self.capacity()).then_some(offset)
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes ranges out of the view, if it still is one; the frames stay. Not of one that may have pages of the program's own: the
    /// server can take the frames out of that too, which leaves those.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    ///
    /// # Panics
    /// If a range is not inside.
    pub fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        if self.kind.has_copies() {
            return Ok(());
        }
        let given = self.lock();
        if *given {
            return Ok(()); // what lies there now is the kernel's, and may hold bytes of the program's own
        }
        zap(ranges.iter().map(|range| self.whole().addresses(range)))
    }

    /// Whether the program may have learned where it is, and it is not given back.
    pub fn is_served(&self) -> bool {
        let given = self.lock();
        !*given && self.slot.state.load(Ordering::Acquire) == SERVED
    }

    /// Whether it was given back.
    pub fn is_given(&self) -> bool {
        *self.lock()
    }

    /// Makes threads that wait for pages of the view touch them again.
    pub fn wake(&self) {
        self.uffd.wake(self.whole().addresses(&(0..self.capacity())));
    }

    /// Puts something in the place of the window that raises SIGBUS when it is touched, because what it showed is lost and not in the file. In one
    /// step; whether it was this call that did it.
    ///
    /// Ends the process if that can't be done.
    pub fn break_off(&self) -> bool {
        let mut given = self.lock();
        if *given {
            return false;
        }
        let (len, at) = (self.slot.len.load(Ordering::Relaxed), self.address() as *mut _);
        // Past the end of a file that has no bytes; or, where there is no descriptor to be had, what raises SIGSEGV.
        let empty = rustix::fs::memfd_create("mapwright-lost", MemfdFlags::CLOEXEC);
        let put = match &empty {
            // SAFETY: the window is this view's own; who holds references into it gets a signal when it touches them.
            Ok(empty) => unsafe {
                mmap(at, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, empty, 0)
            },
            // SAFETY: as above.
            Err(_) => unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                mmap_anonymous(at, len, ProtFlags::empty(), flags)
            },
        };
        if let Err(error) = put {
            print_raw(&format!(
                "mapwright: a map whose contents are lost could not be taken away: {error}\n"
            ));
            std::process::abort();
        }
        *given = true;
        // SAFETY: the twin is this view's own and never touched.
        let _ = unsafe { munmap(self.slot.twin.load(Ordering::Relaxed) as *mut _, len) };
        release(self.slot);
        self.wake();
        true
    }

    /// Looks whether the view can be given back, and keeps what that takes; with the program's own pages, or without, which is right for
    /// one that the program unmaps as a whole.
    ///
    /// # Errors
    /// `ENOMEM` when the process has as many mappings as it may have (`vm.max_map_count`), or a limit of its own leaves no room for pages to
    /// be put aside.
    pub fn prepare(&self, with_copies: bool) -> io::Result<Prepared> {
        if !with_copies || !self.kind.has_copies() {
            return Ok(Prepared(None)); // the rest is looked at by the step itself
        }
        let aside = Aside::reserve(self.slot.len.load(Ordering::Relaxed))?;
        try_a_move()?;
        Ok(Prepared(Some(aside)))
    }

    /// Puts the kernel's own mapping of the file in the place of the window, in one step; `farewell` is called when nothing can keep it from
    /// that, before it is done. Whether it was this call that did it: when it returns, it is done.
    ///
    /// If the program's own pages are to be kept, the server shows nothing in the view any more. While they are copied, which reads the same
    /// pages of the file, whoever touches the window waits.
    ///
    /// # Errors
    /// `ENOMEM` as for [`prepare`](Self::prepare): then all is as before.
    ///
    /// Ends the process if the kernel took the view away and did not put the twin there, so that there is a hole in the program's memory, or
    /// if the program's own pages could not be copied. It looks for every reason to refuse before it does so, but for being out of memory for
    /// itself.
    pub fn give_back(&self, prepared: Prepared, farewell: impl FnOnce()) -> io::Result<bool> {
        let mut given = self.lock();
        if *given {
            return Ok(false);
        }
        try_a_move()?;
        farewell();
        let (twin, len) = (self.slot.twin.load(Ordering::Relaxed), self.slot.len.load(Ordering::Relaxed));
        let to = self.address() as *mut _;
        let kept = self.copy_to_the_twin(prepared);
        let moved = kept.and_then(|aside| {
            // SAFETY: the twin is this view's own and never touched; the window shows the same file, and the program, which may hold
            // references into it, sees the same bytes after the move as it would have seen by mmap(2): those that it has written
            // itself are in the twin.
            unsafe { mremap_fixed(twin as *mut _, len, len, MremapFlags::MAYMOVE, to) }?;
            Ok(aside)
        });
        let aside = moved.unwrap_or_else(|error| {
            print_raw(&format!("mapwright: a map could not be given back to the kernel: {error}\n"));
            std::process::abort();
        });
        *given = true;
        release(self.slot);
        // Those who wait for the server touch the kernel's mapping now.
        self.wake();
        drop(given);
        let window = self.whole().addresses(&self.window);
        self.sleepers.iter().for_each(|sleepers| sleepers.wake(self.base(), &window));
        drop(aside); // large ones take some time
        Ok(true)
    }

    /// Copies the program's own pages of the window to the twin, if there may be some. They are gone from the window then.
    fn copy_to_the_twin(&self, prepared: Prepared) -> io::Result<Option<Aside>> {
        let (Prepared(Some(mut aside)), Some(pagemap)) = (prepared, &self.pagemap) else { return Ok(None) };
        // SAFETY: the window is registered, nobody shows pages there, and the twin will be there with the same bytes.
        unsafe { aside.take(self.address()) }?;
        // SAFETY: the twin is this view's own and never touched.
        unsafe { aside.copy_to(self.slot.twin.load(Ordering::Relaxed), pagemap) }?;
        Ok(Some(aside))
    }
}

impl Drop for GuestView {
    fn drop(&mut self) {
        let Some(whole) = self.whole.take() else { return };
        let window = whole.addresses(&self.window);
        if *self.lock() {
            whole.unmap_without(std::iter::once(window));
            return;
        }
        // Nobody has learned where it is: a view that is served is given back, or kept for ever.
        let (twin, len) = (self.slot.twin.load(Ordering::Relaxed), self.slot.len.load(Ordering::Relaxed));
        if twin != 0 {
            // SAFETY: the twin is this view's own and never touched.
            let _ = unsafe { munmap(twin as *mut _, len) };
        }
        release(self.slot);
    }
}

impl std::fmt::Debug for GuestView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestView").field("window", &self.window).finish_non_exhaustive()
    }
}

fn take_slot() -> io::Result<&'static Slot> {
    let exchange =
        |slot: &&Slot| slot.state.compare_exchange(FREE, MAKING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let (index, slot) =
        TABLE.iter().enumerate().find(|(_, slot)| exchange(slot)).ok_or(io::ErrorKind::OutOfMemory)?;
    slot.twin.store(0, Ordering::Relaxed);
    END.fetch_max(index + 1, Ordering::AcqRel);
    TAKEN.fetch_add(1, Ordering::AcqRel);
    Ok(slot)
}

fn release(slot: &Slot) {
    slot.twin.store(0, Ordering::Relaxed);
    slot.state.store(FREE, Ordering::Release);
    TAKEN.fetch_sub(1, Ordering::AcqRel);
}

/// Whether nothing is served in this process. Takes no lock, as all of the table's functions.
#[inline]
pub fn is_empty() -> bool {
    TAKEN.load(Ordering::Acquire) == 0
}

fn served() -> impl Iterator<Item = &'static Slot> {
    let end = if is_empty() { 0 } else { END.load(Ordering::Acquire) };
    TABLE[..end].iter().filter(|slot| slot.state.load(Ordering::Acquire) == SERVED)
}

/// The start of a served window that has bytes in a range of addresses.
pub fn find(range: Range<usize>) -> Option<usize> {
    find_of(range, |_| true)
}

fn find_of(range: Range<usize>, is_it: impl Fn(&Slot) -> bool) -> Option<usize> {
    served().find_map(|slot| {
        let start = slot.start.load(Ordering::Relaxed);
        let end = start + slot.len.load(Ordering::Relaxed);
        (start < range.end && range.start < end && is_it(slot)).then_some(start)
    })
}

/// The same, of one that may have pages of the program's own.
pub fn find_copies(range: Range<usize>) -> Option<usize> {
    find_of(range, |slot| slot.copies.load(Ordering::Relaxed))
}

/// Whether pages of the program's own can be kept when a map is given back: by a page map that can be asked for them (Linux 6.7), and
/// process_vm_writev(2), which a filter of system calls may forbid.
pub fn can_keep_copies(pagemap: &Pagemap) -> bool {
    pagemap.probe().is_ok() && can_copy()
}

/// The start of any served window.
pub fn find_any() -> Option<usize> {
    served().next().map(|slot| slot.start.load(Ordering::Relaxed))
}

/// Whether the kernel's mappings of a file that are views' own, untouched and out of sight, cover a range of addresses.
pub fn are_twins(range: Range<usize>) -> bool {
    let mut at = range.start;
    while at < range.end {
        let end_of_twin = |slot: &Slot| {
            let start = slot.twin.load(Ordering::Acquire);
            let end = start + slot.len.load(Ordering::Relaxed);
            (start != 0 && (start..end).contains(&at)).then_some(end)
        };
        let taken = TABLE[..END.load(Ordering::Acquire)].iter();
        let taken = taken.filter(|slot| slot.state.load(Ordering::Acquire) != FREE);
        let Some(end) = taken.filter_map(end_of_twin).max() else { return false };
        at = end;
    }
    true
}

/// Puts the kernel's mappings where the parent's served windows were. Called in a child of fork(2), before anything else runs there;
/// makes nothing but system calls. Whether all could be had.
pub fn after_fork() -> bool {
    let mut all = true;
    for slot in &TABLE[..END.load(Ordering::Relaxed)] {
        let state = slot.state.swap(FREE, Ordering::Relaxed);
        let (twin, start) = (slot.twin.load(Ordering::Relaxed), slot.start.load(Ordering::Relaxed));
        let len = slot.len.load(Ordering::Relaxed);
        if state == SERVED && slot.alone.load(Ordering::Relaxed) {
            continue; // it could not be given back before: the file is older than what the parent knows
        }
        // Another thread may have been giving it back: then the kernel's is there already, and nothing is done.
        if state == SERVED && reserve_again(start..start + len) {
            let flags = MremapFlags::MAYMOVE;
            // SAFETY: the twin's copy moves over what was reserved just now; views are kept from children.
            let moved = unsafe { mremap_fixed(twin as *mut _, len, len, flags, start as *mut _) };
            all &= moved.is_ok();
        }
    }
    TAKEN.store(0, Ordering::Relaxed);
    END.store(0, Ordering::Relaxed);
    all
}
