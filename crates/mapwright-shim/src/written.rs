//! Which files are served for writing, and which never are.
//!
//! Such a file is the program's alone, by one open file description: the kernel's lease on it says so, and whoever opens it waits until it is the
//! kernel's again. What is left to be watched is what goes through that description itself: calls by its descriptors (`descriptors`), and those who
//! are about to share it (`sharing`). They find here whether a file is served.
//!
//! # Invariants
//! 1. A call by a descriptor of a file that is served for writing goes on when all maps of that file are the kernel's, and the file is *unfit*: it is
//!    never served for writing in this process again.
//! 2. So is a file whose open file description another process has, or had, or is about to have.
//! 3. Whoever maps a file enters it and looks then whether it is fit ([`begin`]). Whoever makes it unfit says so first, and looks then whether it was entered: then
//!    he waits until the map is there, and gives it back.
//! 4. While somebody is about to share descriptors ([`close_gate`]) nothing is entered.
//!
//! Nothing here takes a lock that is held for more than a moment, and nothing but [`files`] allocates.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};

use mapwright::guest::Identity;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::beneath;
use crate::tables::{InFlight, Noted, Served, Unfit};

static SERVED: Served<1024> = Served::new();
static UNFIT: Unfit<4096> = Unfit::new();
static IN_FLIGHT: InFlight<256> = InFlight::new();
/// How many are about to share descriptors.
static GATE: AtomicUsize = AtomicUsize::new(0);
/// Nothing is served for writing any more.
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// The process that this memory belongs to: not a child that runs in it until exec. 0 where nothing is served at all.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// Bytes of directory entries that are read at a time: this runs on small stacks, too.
const ENTRIES: usize = 1024;
/// What the descriptor of a ring is called.
const RING: &[u8] = b"anon_inode:[io_uring]";

/// The program begins: what is open already others have, too.
pub(crate) fn start() {
    begin_anew();
}

/// A child of fork(2) begins, whose parent serves what it serves. Makes nothing but system calls.
pub(crate) fn in_child() {
    SERVED.clear();
    IN_FLIGHT.clear();
    GATE.store(0, SeqCst);
    if OWNER.load(SeqCst) != 0 {
        begin_anew();
    }
}

fn begin_anew() {
    OWNER.store(rustix::process::getpid().as_raw_nonzero().get(), SeqCst);
    spoil_open(Which::All);
}

/// A file is about to be served for writing by the open file description of `fd`; once for each map.
///
/// # Errors
/// Why it can't be.
pub(crate) fn begin(identity: Identity, fd: c_int) -> Result<(), &'static str> {
    refusal(identity).map_or(Ok(()), Err)?;
    if !SERVED.insert(identity) {
        return Err("too many maps for writing");
    }
    let is_it = |fd| identity_of(fd) == Some(identity);
    let refused = if IN_FLIGHT.any(is_it) {
        Some("another thread reads or writes it by a descriptor")
    } else {
        refusal(identity).or_else(|| unusual(fd))
    };
    match refused {
        None => Ok(()),
        Some(why) => {
            end(identity);
            Err(why)
        }
    }
}

fn refusal(identity: Identity) -> Option<&'static str> {
    if OWNER.load(SeqCst) == 0 || IS_OVER.load(SeqCst) || UNFIT.is_full() {
        Some("the program does what maps for writing can't be served beside")
    } else if GATE.load(SeqCst) > 0 {
        Some("open for writing while a process is started")
    } else if UNFIT.contains(identity) {
        Some("open for writing, and read or written by its descriptor, or shared with another process")
    } else {
        None
    }
}

/// Why a descriptor is none to serve a file for writing by.
fn unusual(fd: c_int) -> Option<&'static str> {
    let flags = beneath::borrow(fd).and_then(|fd| rustix::fs::fcntl_getfl(fd).ok());
    if !flags.is_some_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR) {
        return Some("not open for reading and writing");
    }
    if flags.is_some_and(|flags| flags.intersects(OFlags::APPEND | OFlags::DIRECT)) {
        return Some("open with O_APPEND or O_DIRECT");
    }
    // What the C library writes there itself is not seen.
    if (0..=2).any(|standard| identity_of(standard) == identity_of(fd)) {
        return Some("a standard stream of the program");
    }
    let mut has_ring = false;
    let looked = each_descriptor(|name, folder| {
        let mut target = [MaybeUninit::<u8>::uninit(); RING.len() + 1];
        has_ring |=
            rustix::fs::readlinkat_raw(folder, name, &mut target).is_ok_and(|(target, _)| target == RING);
    });
    match looked {
        Ok(()) => has_ring.then_some("the program has an io_uring"),
        Err(_) => Some("it can't be seen which descriptors there are"),
    }
}

/// One map of it fewer.
pub(crate) fn end(identity: Identity) {
    SERVED.remove(identity);
}

/// Never served for writing in this process again. Said before its maps are given back.
pub(crate) fn never_again(identity: Identity) {
    UNFIT.insert(identity);
}

/// Whether a file is never served for writing.
pub(crate) fn is_unfit(identity: Identity) -> bool {
    UNFIT.contains(identity)
}

/// Whether a file is served for writing, or is about to be.
pub(crate) fn is_served(identity: Identity) -> bool {
    SERVED.contains(identity)
}

/// Whether nothing is.
#[inline]
pub(crate) fn is_empty() -> bool {
    SERVED.is_empty()
}

/// The file of each map for writing.
pub(crate) fn files() -> impl Iterator<Item = Identity> {
    SERVED.files().into_iter()
}

/// Notes that a call by a descriptor is under way, before anything is looked at.
#[inline]
pub(crate) fn note(fd: c_int) -> Noted<'static> {
    let here = 0u8;
    IN_FLIGHT.note(fd, (&raw const here).addr())
}

/// The file of a descriptor, if it is served for writing and this may be a descriptor of the open file description that it is served by. For any other its
/// open(2) has waited until the file was as the program knows it.
pub(crate) fn served_by(fd: c_int) -> Option<Identity> {
    identity_of(fd).filter(|identity| is_served(*identity) && writable(fd).is_some())
}

/// The file of a descriptor, if it is regular and open for reading and writing: one that could be served for writing.
pub(crate) fn writable(fd: c_int) -> Option<Identity> {
    let flags = rustix::fs::fcntl_getfl(beneath::borrow(fd)?).ok()?;
    if flags & OFlags::RWMODE == OFlags::RDWR { identity_of(fd) } else { None }
}

/// The file of a descriptor, if it is regular. errno stays as it is.
fn identity_of(fd: c_int) -> Option<Identity> {
    let stat = rustix::fs::fstat(beneath::borrow(fd)?).ok()?;
    let is_regular = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    is_regular.then_some(Identity { device: stat.st_dev, inode: stat.st_ino })
}

/// The file system of a descriptor.
pub(crate) fn device_of(fd: c_int) -> Option<u64> {
    Some(rustix::fs::fstat(beneath::borrow(fd)?).ok()?.st_dev)
}

/// Nothing is served for writing in this process any more. Said before what is served is given back.
pub(crate) fn nothing_any_more() {
    IS_OVER.store(true, SeqCst);
}

/// Nothing new is served for writing, until [`open_gate`].
pub(crate) fn close_gate() {
    GATE.fetch_add(1, SeqCst);
}

/// As many times as [`close_gate`].
pub(crate) fn open_gate() {
    GATE.fetch_sub(1, SeqCst);
}

/// Gives up the lease of a server that is gone. It is on the program's own open file description, and would keep everybody waiting who opens the file.
pub(crate) fn give_up_lease(identity: Identity) {
    let _ = each_descriptor(|name, _| {
        let fd = name.to_str().ok().and_then(|name| name.parse().ok());
        let is_it = |fd: &c_int| writable(*fd) == Some(identity);
        fd.filter(is_it).into_iter().for_each(beneath::end_lease);
    });
}

/// Whether this memory is the calling process's own, and anything in it may be served.
pub(crate) fn is_owner() -> bool {
    OWNER.load(SeqCst) == rustix::process::getpid().as_raw_nonzero().get()
}

/// Which descriptors another process has.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Which {
    All,
    /// Those that exec leaves open.
    Inherited,
}

/// Makes files unfit that are open for reading and writing: another process has them, too.
pub(crate) fn spoil_open(which: Which) {
    if OWNER.load(SeqCst) == 0 {
        return;
    }
    let looked = each_descriptor(|name, _| {
        let Some(fd) = name.to_str().ok().and_then(|name| name.parse().ok()) else { return };
        let Some(file) = writable(fd) else { return };
        if which == Which::All || is_inherited(fd) {
            never_again(file);
        }
    });
    if looked.is_err() {
        nothing_any_more(); // no descriptor is left to look with, or there is no /proc
    }
}

fn is_inherited(fd: c_int) -> bool {
    let flags = beneath::borrow(fd).and_then(|fd| rustix::io::fcntl_getfd(fd).ok());
    !flags.is_some_and(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC))
}

/// Calls a function with the name of each descriptor, and the folder that the names are in.
fn each_descriptor(mut each: impl FnMut(&CStr, &OwnedFd)) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Not of the process: its first thread may have ended.
    let folder = rustix::fs::open(c"/proc/thread-self/fd", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(&folder, &mut buffer);
    let done = loop {
        match entries.next() {
            Some(Ok(entry)) => each(entry.file_name(), &folder),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    beneath::close_own(folder.into_raw_fd()); // close(2) of the C library is a point where a thread may be cancelled
    done
}
