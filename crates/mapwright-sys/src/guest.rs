//! Files that a program maps by mmap(2) and a pager server serves, in the process of that program, which knows nothing of it.
//!
//! A [`GuestView`] is a mapping of lent frames, and somewhere else, untouched, the very mapping of the file that the program has
//! asked for: its *twin*. To give a map back to the kernel is to move the twin over the part of the view that the program
//! knows (its *window*), in one step of the kernel's: at no time is anything else there. So whatever can't be served right is given
//! back first, at any time and without a descriptor; a child of fork(2), which has no views, gets its copies of the twins.
//!
//! The views of the process are in a table that is read without locks, because mmap(2) and its kin are called from everywhere: inside of
//! allocators, in signal handlers, in children between fork and exec. States of a slot:
//!
//! | from | to | by |
//! | --- | --- | --- |
//! | free | making | [`GuestView::new`] |
//! | making | served | [`GuestView::serve`]: the program may learn the address |
//! | served | free | [`GuestView::give_back`]: the twin is in place |
//! | making | free | drop: the program never learned the address; [`GuestView::give_back`], before it was served |
//! | any | free | [`after_fork`], in the child |
//!
//! # Locks
//! `given` of a view is held while its pages are taken out of the page tables ([`GuestView::unmap`]) and while it is given back: after that nothing
//! is done to its window any more. Nothing that is served is touched under it.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mremap_fixed, munmap};

use crate::PAGE_SIZE;
use crate::mapping::{Reservation, reserve_again, try_a_move};
use crate::signals::print_raw;
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
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        state: AtomicU32::new(FREE),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        twin: AtomicUsize::new(0),
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
    /// MAP_SHARED, or MAP_PRIVATE.
    pub shared: bool,
}

/// A mapping of a file for reading that a server serves, until it is given back to the kernel.
pub struct GuestView {
    whole: Option<Reservation>,
    window: Range<u64>,
    slot: &'static Slot,
    uffd: Arc<Uffd>,
    given: Mutex<bool>,
}

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
        whole.map_privately(frames)?;
        whole.keep_private(0..capacity)?;
        let slot = take_slot()?;
        let view = Self { whole: Some(whole), window: start..end, slot, uffd, given: Mutex::new(false) };
        let sharing = if wanted.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        let (len, flags) = ((end - start) as usize, sharing | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let twin = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, file, start) }?;
        slot.twin.store(twin as usize, Ordering::Relaxed);
        slot.start.store(view.address(), Ordering::Relaxed);
        slot.len.store(len, Ordering::Relaxed);
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
        self.uffd.register(self.whole().addresses(&(0..self.capacity())), false)?;
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

    /// Takes ranges out of the view, if it still is one; the frames stay.
    ///
    /// # Errors
    /// Whatever madvise(2) says.
    ///
    /// # Panics
    /// If a range is not inside.
    pub fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let given = self.lock();
        if *given {
            return Ok(()); // what lies there now is the kernel's, and may hold bytes of the program's own
        }
        zap(ranges.iter().map(|range| self.whole().addresses(range)))
    }

    /// Whether it was given back.
    pub fn is_given(&self) -> bool {
        *self.lock()
    }

    /// Makes threads that wait for pages of the view touch them again.
    pub fn wake(&self) {
        self.uffd.wake(self.whole().addresses(&(0..self.capacity())));
    }

    /// Puts the kernel's own mapping of the file in the place of the window, in one step; `farewell` is called when nothing can keep it from
    /// that, before it is done. Whether it was this call that did it: when it returns, it is done.
    ///
    /// # Errors
    /// `ENOMEM` when the process has as many mappings as it may have (`vm.max_map_count`): then all is as before.
    ///
    /// Ends the process if the kernel took the view away and did not put the twin there, so that there is a hole in the program's memory. It
    /// looks for every reason to refuse before it does so, but for being out of memory for itself.
    pub fn give_back(&self, farewell: impl FnOnce()) -> io::Result<bool> {
        let mut given = self.lock();
        if *given {
            return Ok(false);
        }
        try_a_move()?;
        farewell();
        let (twin, len) = (self.slot.twin.load(Ordering::Relaxed), self.slot.len.load(Ordering::Relaxed));
        let to = self.address() as *mut _;
        // SAFETY: the twin is this view's own and never touched; the window shows the same file, and the program, which may hold
        // references into it, sees the same bytes after the move as it would have seen by mmap(2).
        let moved = unsafe { mremap_fixed(twin as *mut _, len, len, MremapFlags::MAYMOVE, to) };
        if let Err(error) = moved {
            print_raw(&format!("mapwright: a map could not be given back to the kernel: {error}\n"));
            std::process::abort();
        }
        *given = true;
        release(self.slot);
        // Those who wait for the server touch the kernel's mapping now.
        self.wake();
        Ok(true)
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
    served().find_map(|slot| {
        let start = slot.start.load(Ordering::Relaxed);
        let end = start + slot.len.load(Ordering::Relaxed);
        (start < range.end && range.start < end).then_some(start)
    })
}

/// The start of any served window.
pub fn find_any() -> Option<usize> {
    served().next().map(|slot| slot.start.load(Ordering::Relaxed))
}

/// Puts the kernel's mappings where the parent's served windows were. Called in a child of fork(2), before anything else runs there;
/// makes nothing but system calls. Whether all could be had.
pub fn after_fork() -> bool {
    let mut all = true;
    for slot in &TABLE[..END.load(Ordering::Relaxed)] {
        let state = slot.state.swap(FREE, Ordering::Relaxed);
        let (twin, start) = (slot.twin.load(Ordering::Relaxed), slot.start.load(Ordering::Relaxed));
        let len = slot.len.load(Ordering::Relaxed);
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
