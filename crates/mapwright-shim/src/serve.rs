//! What is served, and what becomes of it.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_long, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use mapwright::guest::{self, Guest, GuestMap, Hooks, Identity, LEASE, Wanted};
use mapwright::{Advice, Error};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::{self, Regular};
use crate::journey::{self, Line};
use crate::last;

/// Smaller maps are the kernel's: nothing is to be gained.
const SMALLEST: usize = 1 << 20;
const PAGE: usize = 4096;
/// File systems on local disks, by their `f_type` (statfs(2), and the kernel's magic.h): where what a file holds changes by this machine alone,
/// and by those who have opened the file. Not overlayfs: a writable mapping there is one of the file below, and no hindrance to a lease above.
const DISKS: [u64; 14] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0xe0f5_e1e2, // EROFS
    0x7371_7368, // SquashFS
    0x9660,      // ISO 9660
    0x1501_3346, // UDF
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
    0x7366_746e, // NTFS3
    0x3153_464a, // JFS
];

struct Settings {
    socket: PathBuf,
    block: u32,
}

/// Set once, before the program runs.
static SETTINGS: OnceLock<Settings> = OnceLock::new();
/// Made when it is first needed; a child of fork makes its own.
static STATE: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());
/// Descriptors that the program can't close: three of the connection, one of the report.
static OWN: [AtomicI32; 4] = [const { AtomicI32::new(-1) }; 4];
#[derive(Default)]
struct State {
    guest: OnceLock<Result<Guest, String>>,
    /// By the address that the program knows.
    maps: Mutex<HashMap<usize, Arc<GuestMap>>>,
    /// What was told already.
    told: Mutex<HashSet<(&'static str, Identity)>>,
    /// Everything is to be locked into memory: nothing is served any more.
    locked: AtomicBool,
}

/// Why something is the kernel's.
enum Why {
    /// As any program's: not worth telling.
    Ordinary,
    Told(&'static str),
    Failed(String),
}

/// A call of mmap(2).
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) hint: *mut c_void,
    pub(crate) len: usize,
    pub(crate) protection: c_int,
    pub(crate) flags: c_int,
    pub(crate) fd: c_int,
    pub(crate) offset: i64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads what `run` has left for the shim.
pub(crate) fn start() {
    careful((), || {
        let Some(socket) = std::env::var_os("MAPWRIGHT_RUN_SOCKET") else { return };
        let number = |name| std::env::var(name).ok()?.parse().ok();
        let block = number("MAPWRIGHT_RUN_BLOCK").unwrap_or(16 << 10);
        if let Some(report) = std::env::var_os("MAPWRIGHT_RUN_REPORT") {
            journey::open(Path::new(&report));
            OWN[3].store(journey::descriptor().unwrap_or(-1), Ordering::Release);
        }
        beneath::after_fork_in_child(in_child);
        let _ = SETTINGS.set(Settings { socket: socket.into(), block });
        let program = std::env::current_exe().unwrap_or_default();
        let path = program.to_string_lossy();
        journey::tell(&Line { kind: journey::STARTED, file: None, window: 0..0, why: "", path: &path });
    });
}

/// Runs in a child of fork before the program's own code, and makes nothing but system calls: other threads of the parent may have held any lock.
pub(crate) extern "C" fn in_child() {
    let all = guest::after_fork();
    last::in_child();
    STATE.store(std::ptr::null_mut(), Ordering::Release);
    for own in &OWN[..3] {
        let fd = own.swap(-1, Ordering::AcqRel);
        if fd >= 0 {
            beneath::close_own(fd); // the parent's connection, which would seem to live on
        }
    }
    if !all {
        beneath::complain("mapwright: a child of fork could not be given its maps\n");
        std::process::abort();
    }
}

/// Runs what goes on in between a program's call and the kernel's: errno stays as it was, no signal and no cancellation comes in between, and a
/// mistake of the shim's own is no end of the program.
pub(crate) fn careful<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    let before = beneath::errno();
    let done = beneath::undisturbed(|| catch_unwind(AssertUnwindSafe(work)).unwrap_or(otherwise));
    beneath::set_errno(before);
    done
}

fn state() -> &'static State {
    let mut state = STATE.load(Ordering::Acquire);
    if state.is_null() {
        let made = Box::into_raw(Box::<State>::default());
        match STATE.compare_exchange(state, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => state = made,
            Err(other) => {
                beneath::discard(made);
                state = other;
            }
        }
    }
    beneath::forever(state)
}

/// The lowest descriptor that the shim takes: out of the way of those that programs count on, and below where many would make
/// the kernel's table large.
pub(crate) fn lowest_descriptor() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    i32::try_from(limit.unwrap_or(1024).min(1024).saturating_sub(64)).unwrap_or(0)
}

/// Whether there is a thread that listens to the server.
pub(crate) fn has_thread() -> bool {
    OWN[0].load(Ordering::SeqCst) >= 0
}

/// Whether a descriptor is the shim's.
pub(crate) fn is_own(fd: c_int) -> bool {
    fd >= 0 && OWN.iter().any(|own| own.load(Ordering::Acquire) == fd)
}

/// The shim's descriptors in a range, lowest first.
pub(crate) fn own_in(range: Range<u64>) -> impl Iterator<Item = u64> {
    let mut all = OWN.each_ref().map(|own| own.load(Ordering::Acquire));
    all.sort_unstable();
    all.into_iter().filter_map(|fd| u64::try_from(fd).ok()).filter(move |fd| range.contains(fd))
}

/// Maps a file by the server, if it can be served.
pub(crate) fn map(request: Request) -> Option<*mut c_void> {
    let is_file = request.flags & libc::MAP_ANONYMOUS == 0 && request.fd >= 0;
    if !is_file || request.protection & libc::PROT_EXEC != 0 || SETTINGS.get().is_none() {
        return None;
    }
    careful(None, || {
        let file = beneath::file_of(request.fd)?;
        match try_map(&request, file) {
            Ok(address) => Some(address as *mut c_void),
            Err(why) => {
                tell_why(&request, file, &why);
                None
            }
        }
    })
}

fn try_map(request: &Request, file: Regular) -> Result<usize, Why> {
    let settings = SETTINGS.get().ok_or(Why::Ordinary)?;
    let window = window_of(request, file)?;
    let fd = beneath::borrow(request.fd).ok_or(Why::Ordinary)?;
    if !rustix::fs::fstatfs(fd).is_ok_and(|of| DISKS.contains(&(of.f_type as u64))) {
        return Err(Why::Told("not on a file system of a local disk"));
    }
    if rustix::process::getrlimit(rustix::process::Resource::As).current.is_some() {
        return Err(Why::Told("the program's address space is limited (RLIMIT_AS)"));
    }
    let state = state();
    if state.locked.load(Ordering::Acquire) {
        return Err(Why::Told("mlockall(2) was called"));
    }
    let guest =
        state.guest.get_or_init(|| connect(settings)).as_ref().map_err(|why| Why::Failed(why.clone()))?;
    if guest.is_lost() {
        return Err(Why::Told("the server is gone"));
    }
    let shared = request.flags & libc::MAP_TYPE == libc::MAP_SHARED;
    let path = path_of(request.fd);
    let wanted = Wanted { identity: file.identity, window: window.clone(), shared };
    let map = guest.map(fd, &path, &wanted, settings.block).map_err(why_not)?;
    let address = map.address();
    let before = lock(&state.maps).insert(address, Arc::clone(&map));
    drop(before); // given back, and unmapped by the program
    journey::tell(&Line { kind: "served", file: Some(file), window, why: "", path: &path });
    if map.is_given_back() {
        remove(&map); // by the connection's thread, before it could be found here
    }
    Ok(address)
}

/// What the server has refused.
fn why_not(error: Error) -> Why {
    let Error::Io { operation: LEASE, source, .. } = &error else { return Why::Failed(error.to_string()) };
    match source.raw_os_error() {
        Some(libc::EAGAIN) => Why::Told("open for writing, by this program or another"),
        Some(libc::EACCES | libc::EPERM) => Why::Told(
            "another user's, or not to be opened anew: those who write it can't be kept waiting (F_SETLEASE)",
        ),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP) => {
            Why::Told("on a file system that can't keep those who write waiting (F_SETLEASE)")
        }
        _ => Why::Failed(error.to_string()),
    }
}

/// The bytes of the file that a call asks for, if they can be served.
fn window_of(request: &Request, file: Regular) -> Result<Range<u64>, Why> {
    let (kind, other) = (request.flags & libc::MAP_TYPE, request.flags & !libc::MAP_TYPE);
    let len = request.len.checked_next_multiple_of(PAGE).ok_or(Why::Ordinary)? as u64;
    let start = u64::try_from(request.offset).map_err(|_| Why::Ordinary)?;
    let end = start.checked_add(len).ok_or(Why::Ordinary)?;
    if len == 0
        || !start.is_multiple_of(PAGE as u64)
        || ![libc::MAP_SHARED, libc::MAP_PRIVATE].contains(&kind)
    {
        return Err(Why::Ordinary);
    }
    if len < SMALLEST as u64 {
        return Err(Why::Told("less than 1 MiB mapped"));
    }
    if request.protection != libc::PROT_READ {
        return Err(Why::Told("mapped for more than reading"));
    }
    if other & !libc::MAP_NORESERVE != 0 || !request.hint.is_null() {
        return Err(Why::Told("mapped at a wanted address, locked or populated"));
    }
    if end > file.len.next_multiple_of(PAGE as u64) {
        return Err(Why::Told("mapped past its end"));
    }
    Ok(start..end)
}

fn connect(settings: &Settings) -> Result<Guest, String> {
    let hooks = Hooks { before: tell_returned, after: forget };
    let guest = Guest::connect(&settings.socket, lowest_descriptor(), hooks);
    let guest = guest.map_err(|error| error.to_string())?;
    for (own, fd) in OWN.iter().zip(guest.descriptors()) {
        own.store(fd, Ordering::SeqCst);
    }
    last::has_thread();
    Ok(guest)
}

/// What a file is called.
fn path_of(fd: c_int) -> String {
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    path.to_string_lossy().into_owned()
}

fn tell_why(request: &Request, file: Regular, why: &Why) {
    let (why, key) = match why {
        Why::Ordinary => return,
        Why::Told(why) => (*why, *why),
        Why::Failed(why) => (why.as_str(), ""),
    };
    if !lock(&state().told).insert((key, file.identity)) {
        return;
    }
    let start = u64::try_from(request.offset).unwrap_or(0);
    let window = start..start.saturating_add(request.len as u64);
    journey::tell(&Line { kind: "kernel", file: Some(file), window, why, path: &path_of(request.fd) });
}

/// A map is about to be the kernel's.
fn tell_returned(map: &GuestMap, why: &str) {
    careful((), || {
        let file = Regular { identity: map.identity(), len: 0 };
        journey::tell(&Line {
            kind: "returned",
            file: Some(file),
            window: map.window(),
            why,
            path: map.name(),
        });
    });
}

/// A map could not be served any more, and is the kernel's. In the connection's thread.
fn forget(map: &GuestMap) {
    careful((), || remove(map));
}

/// Takes a map that is the kernel's off the list. Its addresses may be those of another one by now, which stays.
fn remove(map: &GuestMap) {
    let removed = {
        let mut maps = lock(&state().maps);
        let is_it = maps.get(&map.address()).is_some_and(|found| std::ptr::eq(&raw const **found, map));
        if is_it { maps.remove(&map.address()) } else { None }
    };
    drop(removed); // outside of the lock: it unmaps
}

/// Gives the map that begins at an address back. `false` if the kernel had no room for that.
fn give_back(start: usize, why: &str) -> bool {
    let state = state();
    let found = lock(&state.maps).get(&start).map(Arc::clone);
    let Some(map) = found else {
        std::thread::yield_now(); // it is being made or given back by another thread, which is about to say so
        return true;
    };
    match map.give_back(why) {
        Ok(_) => {
            remove(&map);
            true
        }
        Err(_) => false,
    }
}

/// Whether open(2) with such flags cuts a file, and the kernel's leases don't know it: they look at what it is opened for.
pub(crate) fn cuts_unseen(flags: c_int) -> bool {
    let told = flags & (libc::O_ACCMODE | libc::O_TRUNC | libc::O_EXCL | libc::O_PATH);
    told == libc::O_RDONLY | libc::O_TRUNC && SETTINGS.get().is_some()
}

/// Opens a file that is cut by that. The file that is found by `find` is opened for writing first, as whoever cuts it may: that
/// waits until nobody is shown it any more, in whatever process, and nobody is again before it is closed.
pub(crate) fn cutting(find: impl FnOnce() -> Option<OwnedFd>, open: impl FnOnce() -> c_long) -> c_long {
    let kept = careful(Ok(None), || find().map_or(Ok(None), |found| open_to_write(&found)));
    let kept = match kept {
        Ok(kept) => kept,
        Err(short) => {
            beneath::set_errno(short.raw_os_error());
            return -1;
        }
    };
    let opened = open();
    careful((), || drop(kept));
    opened
}

/// Opens a file for writing that was found by name, if that can be done.
///
/// # Errors
/// Where descriptors are short.
fn open_to_write(found: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    // Others are not cut, and wait or do more when they are opened.
    if !rustix::fs::fstat(found)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    loop {
        match rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(kept) => return Ok(Some(kept)),
            Err(Errno::INTR) => {}
            Err(short @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(short),
            Err(_) => return Ok(None), // the call itself will say so
        }
    }
}

/// Makes whatever is served at some addresses the kernel's. `false`, with errno set, if it had no room for that.
pub(crate) fn leave(address: *const c_void, len: usize, why: &str) -> bool {
    give_all_back(why, || {
        let start = address as usize;
        guest::find(start..start.saturating_add(len.max(1)))
    })
}

/// As [`leave`], of everything, and for good.
pub(crate) fn leave_all(why: &str) -> bool {
    if SETTINGS.get().is_some() {
        careful((), || state().locked.store(true, Ordering::Release));
    }
    give_all_back(why, guest::find_any)
}

fn give_all_back(why: &str, find: impl Fn() -> Option<usize>) -> bool {
    if guest::is_empty() {
        return true;
    }
    let done = careful(false, || {
        while let Some(start) = find() {
            if !give_back(start, why) {
                return false;
            }
        }
        true
    });
    if !done {
        beneath::set_errno(libc::ENOMEM);
    }
    done
}

/// Passes advice on whole pages of one served map to the server. Whether that is all there is to do.
pub(crate) fn advise(address: *const c_void, len: usize, advice: c_int) -> bool {
    let (start, whole) = (address as usize, len.checked_next_multiple_of(PAGE));
    let Some(end) = whole.and_then(|len| start.checked_add(len)) else { return false };
    if guest::is_empty() || len == 0 || !start.is_multiple_of(PAGE) {
        return false;
    }
    careful(false, || {
        let inside = |map: &&Arc<GuestMap>| {
            let window = map.window();
            map.address() <= start && end <= map.address() + (window.end - window.start) as usize
        };
        let Some(map) = lock(&state().maps).values().find(inside).map(Arc::clone) else { return false };
        match advice {
            libc::MADV_NORMAL => map.advise(Advice::Normal),
            libc::MADV_RANDOM => map.advise(Advice::Random),
            libc::MADV_SEQUENTIAL => map.advise(Advice::Sequential),
            _ => map.will_need(start..end),
        }
        true
    })
}
