//! What is served, and what becomes of it.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_int, c_long, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mapwright::guest::{self, Guest, GuestMap, Hooks, Identity, LEASE, MapKind, Pagemap, Wanted};
use mapwright::{Advice, Error};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::{self, Regular};
use crate::journey::{self, Line};
use crate::{last, sharing, written};

/// Smaller maps are the kernel's: nothing is to be gained.
const SMALLEST: usize = 1 << 20;
const PAGE: usize = 4096;
/// Between two looks for what another thread is about to do.
const MOMENT: Duration = Duration::from_micros(200);
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
/// Descriptors that the program can't close: three of the connection, one of the page map, and the last of the report.
static OWN: [AtomicI32; 5] = [const { AtomicI32::new(-1) }; 5];
const PAGE_MAP: usize = 3;
const REPORT: usize = 4;
/// Threads that make a child just now. Its parent's private maps were given back by then, and there must be no new ones.
static FORKING: AtomicU32 = AtomicU32::new(0);
/// A private map could not be given back before a child was made, which has none of its pages.
static LEFT_BEHIND: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct State {
    guest: OnceLock<Result<Guest, String>>,
    /// By the address that the program knows.
    maps: Mutex<HashMap<usize, Arc<GuestMap>>>,
    /// What was told already.
    told: Mutex<HashSet<(&'static str, Identity)>>,
    /// Files that are older than the program knows.
    lost: Mutex<HashSet<Identity>>,
    /// Where such files were mapped.
    lost_at: Mutex<Vec<Range<usize>>>,
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
            OWN[REPORT].store(journey::descriptor().unwrap_or(-1), Ordering::Release);
        }
        beneath::around_fork(sharing::before_fork, sharing::after_fork, in_child);
        let _ = SETTINGS.set(Settings { socket: socket.into(), block });
        written::start();
        let program = std::env::current_exe().unwrap_or_default();
        let path = program.to_string_lossy();
        journey::tell(&Line { kind: journey::STARTED, file: None, window: 0..0, why: "", path: &path });
    });
}

/// Runs in a child of fork before the program's own code, and makes nothing but system calls: other threads of the parent may have held any lock.
pub(crate) extern "C" fn in_child() {
    let all = guest::after_fork() && !LEFT_BEHIND.load(Ordering::Relaxed);
    FORKING.store(0, Ordering::Relaxed);
    last::in_child();
    written::in_child();
    STATE.store(std::ptr::null_mut(), Ordering::Release);
    let own_now = if sharing::has_own_table() { &OWN[..REPORT] } else { &[] };
    for own in own_now {
        let fd = own.swap(-1, Ordering::AcqRel);
        if fd >= 0 {
            beneath::close_own(fd); // the parent's connection, which would seem to live on, and page map
        }
    }
    if !all {
        beneath::complain("mapwright: a child of fork could not be given its maps\n");
        std::process::abort();
    }
}

/// Before a child is made that has a copy of memory: private maps that may be written become the kernel's, because the child would have none
/// of the pages that were changed. `false`, with errno set, if the kernel had no room for that: a child that is made all the same ends at once.
/// [`after_fork`] is due in any case.
pub(crate) fn before_fork() -> bool {
    FORKING.fetch_add(1, Ordering::SeqCst);
    // Who has made a map looks at the counter after the map can be found.
    fence(Ordering::SeqCst);
    let all = give_all_back("fork(2)", || guest::find_copies(0..usize::MAX));
    LEFT_BEHIND.store(!all, Ordering::SeqCst);
    all
}

/// In the parent, whether there is a child or not.
pub(crate) fn after_fork() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
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
    let kind = kind_of(request, fd)?;
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
    let path = path_of(request.fd);
    let pagemap = if kind.has_copies() { Some(for_copies(guest)?) } else { None };
    let wanted = Wanted { identity: file.identity, window: window.clone(), kind, pagemap };
    if kind.is_alone() {
        written::begin(file.identity, request.fd).map_err(Why::Told)?;
    }
    let map = if kind.is_alone() && is_mapped_by_the_kernel(file.identity) {
        Err(Why::Told("mapped by the kernel already, in this program"))
    } else {
        guest.map(fd, &path, &wanted, settings.block).map_err(|error| why_not(error, kind))
    };
    let map = map.inspect_err(|_| {
        if kind.is_alone() {
            written::end(file.identity);
        }
    })?;
    let address = map.address();
    let before = lock(&state.maps).insert(address, Arc::clone(&map));
    drop(before); // given back, and unmapped by the program
    fence(Ordering::SeqCst); // see `before_fork`
    if kind.has_copies() && FORKING.load(Ordering::SeqCst) > 0 && map.give_back("fork(2)").is_err() {
        remove(&map);
        return Err(Why::Told("mapped while another thread made a child")); // and nobody has learned where it is
    }
    journey::tell(&Line { kind: "served", file: Some(file), window, why: "", path: &path });
    if map.is_given_back() {
        remove(&map); // by the connection's thread, before it could be found here
    }
    Ok(address)
}

/// How a map that is asked for can be served.
fn kind_of(request: &Request, fd: BorrowedFd<'_>) -> Result<MapKind, Why> {
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|_| Why::Ordinary)?;
    let is_shared = request.flags & libc::MAP_TYPE == libc::MAP_SHARED;
    let reads_alone = request.protection == libc::PROT_READ;
    match flags & OFlags::RWMODE {
        OFlags::RDWR if is_shared && flags.intersects(OFlags::APPEND | OFlags::DIRECT) => {
            Err(Why::Told("opened for writing, with O_APPEND or O_DIRECT"))
        }
        OFlags::RDWR if is_shared => Ok(MapKind::Alone { writes: !reads_alone }),
        _ if !reads_alone && is_shared => {
            Err(Why::Told("mapped for more than reading, by a descriptor for reading")) // which fails
        }
        _ if !reads_alone => Ok(MapKind::Copies { counted: request.flags & libc::MAP_NORESERVE == 0 }),
        _ if is_shared => Ok(MapKind::Shared),
        _ => Ok(MapKind::Private),
    }
}

/// What a private map takes that may be written, if it can be served.
fn for_copies(guest: &Guest) -> Result<Arc<Pagemap>, Why> {
    use rustix::process::{Resource, getrlimit};
    if getrlimit(Resource::Data).current.is_some() {
        return Err(Why::Told("mapped to be written, and the program's data is limited (RLIMIT_DATA)"));
    }
    // Twice what the program asks for would be counted, and could be refused when it is given back.
    let overcommits = std::fs::read("/proc/sys/vm/overcommit_memory");
    if !overcommits.is_ok_and(|mode| mode.starts_with(b"0") || mode.starts_with(b"1")) {
        return Err(Why::Told(
            "mapped to be written, where all such memory may be counted (vm.overcommit_memory)",
        ));
    }
    let Some(pagemap) = guest.pagemap() else {
        return Err(Why::Told("mapped to be written, and what was written can't be found (PAGEMAP_SCAN)"));
    };
    OWN[PAGE_MAP].store(pagemap.descriptor(), Ordering::SeqCst);
    Ok(Arc::clone(pagemap))
}

/// Whether this process has mappings of a file that are the kernel's: what is written to them is not seen by the server.
fn is_mapped_by_the_kernel(identity: Identity) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return true };
    // Address range, rights, offset, device, inode. The device may be another name of the file's: btrfs.
    maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (addresses, inode) = (fields.next(), fields.nth(3));
        let is_it = inode.and_then(|inode| inode.parse().ok()) == Some(identity.inode);
        let range = || {
            let (start, end) = addresses?.split_once('-')?;
            let at = |text| usize::from_str_radix(text, 16).ok();
            Some(at(start)?..at(end)?)
        };
        is_it && !range().is_some_and(guest::are_twins)
    })
}

/// What the server has refused.
fn why_not(error: Error, kind: MapKind) -> Why {
    let Error::Io { operation: LEASE, source, .. } = &error else { return Why::Failed(error.to_string()) };
    match source.raw_os_error() {
        Some(libc::EAGAIN) if kind.is_alone() => {
            Why::Told("opened for writing, and open more than once, by this program or another")
        }
        Some(libc::ENOSPC) => {
            Why::Told("opened for writing, with holes for which its file system may have no room")
        }
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
    if request.protection != libc::PROT_READ && request.protection != libc::PROT_READ | libc::PROT_WRITE {
        return Err(Why::Told("mapped for neither reading nor reading and writing"));
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
    careful((), || {
        remove(map);
        if map.is_lost() {
            let window = map.window();
            let end = map.address() + (window.end - window.start) as usize;
            lock(&state().lost_at).push(map.address()..end);
            written::give_up_lease(map.identity());
            lock(&state().lost).insert(map.identity()); // and stays among those that are served: each call by a descriptor comes to look
        } else if map.kind().is_alone() {
            written::end(map.identity());
        }
    });
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

/// Gives the map that begins at an address back, as `how` does it. `false` if the kernel had no room for that.
fn give_back(start: usize, how: impl Fn(&GuestMap) -> std::io::Result<()>) -> bool {
    let state = state();
    let found = lock(&state.maps).get(&start).map(Arc::clone);
    let Some(map) = found else {
        std::thread::yield_now(); // it is being made or given back by another thread, which is about to say so
        return true;
    };
    match how(&map) {
        Ok(_) => {
            remove(&map);
            true
        }
        Err(_) => false,
    }
}

/// Has whatever is served of a file that this program may write given back, and never served so again, before something is done that the server would not see. `false`, with
/// errno set, if what was written is lost: then it must not be done, because the file is older than the program knows.
pub(crate) fn leave_file(identity: Identity, why: &str) -> bool {
    written::never_again(identity);
    let is_lost = || lock(&state().lost).contains(&identity);
    let left = careful(false, || {
        leave_those(why, || written::is_served(identity) && !is_lost(), |map| map.identity() == identity);
        !is_lost()
    });
    if !left {
        beneath::set_errno(libc::EIO);
    }
    left
}

/// As [`leave_file`], of all such files, but for those that were lost before.
pub(crate) fn leave_written(why: &str) -> bool {
    let is_left = || {
        let lost = lock(&state().lost);
        written::files().any(|identity| !lost.contains(&identity))
    };
    let left = careful(false, || {
        let before = lock(&state().lost).len();
        leave_those(why, is_left, |_| true);
        lock(&state().lost).len() == before
    });
    if !left {
        beneath::set_errno(libc::EIO);
    }
    left
}

/// Gives back the maps of files that are served to be written, until there are none of those `wanted`.
fn leave_those(why: &str, is_left: impl Fn() -> bool, wanted: impl Fn(&GuestMap) -> bool) {
    while is_left() {
        let alone = |map: &&Arc<GuestMap>| map.kind().is_alone() && wanted(map);
        let found = lock(&state().maps).values().find(alone).map(Arc::clone);
        let Some(map) = found else {
            guest::pause(MOMENT); // another thread is about to make one, or has just given it back
            continue;
        };
        let _ = map.give_back(why); // or it is lost
        remove(&map);
    }
}

/// Brings what was written by maps of a file into it, durably. `false`, with errno set, if that can't be done.
pub(crate) fn flush_file(identity: Identity) -> bool {
    flush_those(0..usize::MAX, |map| map.identity() == identity, || lock(&state().lost).contains(&identity))
}

/// As [`flush_file`], what was written at some addresses.
pub(crate) fn flush(address: *const c_void, len: usize) -> bool {
    let start = address as usize;
    let addresses = start..start.saturating_add(len);
    let overlaps = |lost: &Range<usize>| lost.start < addresses.end && addresses.start < lost.end;
    let is_lost = || lock(&state().lost_at).iter().any(overlaps);
    written::is_empty() || flush_those(addresses.clone(), |_| true, is_lost)
}

fn flush_those(
    addresses: Range<usize>,
    wanted: impl Fn(&GuestMap) -> bool,
    is_lost: impl Fn() -> bool,
) -> bool {
    let done = careful(false, || {
        let alone = |map: &&Arc<GuestMap>| map.kind().is_alone() && wanted(map);
        let found: Vec<_> = lock(&state().maps).values().filter(alone).map(Arc::clone).collect();
        let flushed = found.iter().all(|map| map.flush(addresses.clone()).is_ok());
        flushed && !is_lost() // which it may have been before, and is found so when it was flushed
    });
    if !done {
        beneath::set_errno(libc::EIO);
    }
    done
}

/// A file is about to be mapped by the kernel: one that is served to be written is given back first.
pub(crate) fn about_to_map(fd: c_int) -> bool {
    if written::is_empty() || fd < 0 {
        return true;
    }
    match beneath::file_of(fd) {
        Some(file) if written::is_served(file.identity) => leave_file(file.identity, "mapped once more"),
        _ => true,
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
    forget_lost(&range_of(address, len));
    give_all_back(why, || guest::find(range_of(address, len)))
}

/// What was lost at some addresses is not asked for there any more: something else is about to be there.
fn forget_lost(addresses: &Range<usize>) {
    if !written::is_empty() {
        let is_apart = |lost: &Range<usize>| lost.end <= addresses.start || addresses.end <= lost.start;
        careful((), || lock(&state().lost_at).retain(is_apart));
    }
}

fn range_of(address: *const c_void, len: usize) -> Range<usize> {
    let start = address as usize;
    start..start.saturating_add(len.max(1))
}

/// As [`leave`], of what may have pages of the program's own.
pub(crate) fn leave_copies(address: *const c_void, len: usize, why: &str) -> bool {
    give_all_back(why, || guest::find_copies(range_of(address, len)))
}

/// As [`leave`], of what is about to be unmapped: what the program has changed of whole maps is not kept.
pub(crate) fn leave_for_good(address: *const c_void, len: usize) -> bool {
    forget_lost(&range_of(address, len));
    const WHY: &str = "unmapped";
    let range = range_of(address, len);
    let is_valid = range.start.is_multiple_of(PAGE) && len > 0;
    let end = range.end.checked_next_multiple_of(PAGE).unwrap_or(range.end);
    let is_inside = |map: &GuestMap| {
        let window = map.window();
        range.start <= map.address() && map.address() + (window.end - window.start) as usize <= end
    };
    let how = |map: &GuestMap| if is_valid && is_inside(map) { map.give_up(WHY) } else { map.give_back(WHY) };
    give_back_by(|| guest::find(range.clone()), how)
}

/// As [`leave`], of everything, and for good.
pub(crate) fn leave_all(why: &str) -> bool {
    if SETTINGS.get().is_some() {
        careful((), || state().locked.store(true, Ordering::Release));
    }
    give_all_back(why, guest::find_any)
}

fn give_all_back(why: &str, find: impl Fn() -> Option<usize>) -> bool {
    give_back_by(find, |map| map.give_back(why))
}

fn give_back_by(find: impl Fn() -> Option<usize>, how: impl Fn(&GuestMap) -> std::io::Result<()>) -> bool {
    if find().is_none() {
        return true;
    }
    let done = careful(false, || {
        while let Some(start) = find() {
            if !give_back(start, &how) {
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
