//! Frames that another process writes all the while, written back and evicted: no write is lost, and none is seen that was not
//! allowed first.
#![allow(missing_docs)]

mod common;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{receive, send, socket};
use mapwright_sys::frames::SharedFrames;
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::remote::{LentFrames, RemoteView};
use mapwright_sys::uffd::{Features, Touch, Uffd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketAddrUnix;

const PAGE: u64 = 4096;
const PAGES: u64 = 16;
const ROUNDS: u64 = 4000;

fn features() -> Features {
    let read = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM);
    read.with(Features::WP_HUGETLBFS_SHMEM).with(Features::WRITE_PROTECT)
}

/// Counts in every page of a shared mapping, but leaves some alone in each round, so that some are clean when they are evicted.
fn client(server: &OwnedFd) {
    let (_, mut descriptors) = receive(server).unwrap();
    let uffd = Arc::new(Uffd::open(features()).unwrap());
    let frames = descriptors.pop().unwrap();
    let view = LentFrames::new(frames, PAGES * PAGE, true, Arc::clone(&uffd)).unwrap();
    let start = view.address(false).unwrap();
    send(server, start as u64, &[uffd.as_fd()]);
    let counter = |page: u64| (start as u64 + page * PAGE) as *mut u64;
    let is_counted = |round: u64, page: u64| !(round + page).is_multiple_of(7);
    for round in 0..ROUNDS {
        for page in (0..PAGES).filter(|&page| is_counted(round, page)) {
            // SAFETY: inside the view, aligned, and nobody else in this process touches it.
            let value = unsafe { counter(page).read_volatile() };
            // SAFETY: as above.
            unsafe { counter(page).write_volatile(value + 1) };
        }
    }
    for page in 0..PAGES {
        let expected = (0..ROUNDS).filter(|&round| is_counted(round, page)).count() as u64;
        // SAFETY: as above.
        assert_eq!(unsafe { counter(page).read_volatile() }, expected, "page {page}");
    }
}

/// What a server has of a client that writes.
struct Served {
    frames: SharedFrames,
    view: RemoteView,
    /// The file, so to say.
    contents: Vec<Vec<u8>>,
    resident: [bool; PAGES as usize],
    dirty: [bool; PAGES as usize],
    written: u64,
    clean: u64,
}

impl Served {
    fn serve(&mut self, touch: Touch) {
        let page = (self.view.offset_of(touch.address).unwrap() / PAGE) as usize;
        let at = page as u64 * PAGE;
        if !self.resident[page] {
            self.frames.store(at, &self.contents[page]).unwrap();
            self.resident[page] = true;
        }
        let shown = if touch.writes {
            self.dirty[page] = true;
            self.view.map_writable(at..at + PAGE)
        } else {
            self.view.map(at..at + PAGE)
        };
        let error = shown.map_err(|error| error.raw_os_error());
        assert!(matches!(error, Ok(()) | Err(Some(libc::ENOENT | libc::ESRCH))), "{error:?}"); // it may be gone
    }

    fn load(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        self.frames.load(page as u64 * PAGE, &mut bytes).unwrap();
        bytes
    }

    /// Writes a page back, if it is dirty, and drops it.
    fn evict(&mut self, page: usize) {
        let range = page as u64 * PAGE..(page as u64 + 1) * PAGE;
        if std::mem::take(&mut self.dirty[page]) {
            self.view.protect(range.clone()).unwrap();
            self.contents[page] = self.load(page);
            self.written += 1;
            if self.written.is_multiple_of(3) {
                return; // it stays: the next write is a fault again
            }
        } else {
            self.clean += 1;
        }
        assert!(self.contents[page] == self.load(page), "a page that is clean was written");
        self.frames.release(&[range]).unwrap();
        self.resident[page] = false;
    }
}

#[test]
fn what_another_process_writes_is_not_lost() {
    if let Some(path) = std::env::var_os("MAPWRIGHT_TEST_ROLE") {
        let server = socket();
        rustix::net::connect(&server, &SocketAddrUnix::new(Path::new(&path)).unwrap()).unwrap();
        return client(&server);
    }
    let uffd = match Uffd::open(features()) {
        Ok(uffd) => Arc::new(uffd),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            return eprintln!("######## SKIPPED: userfaultfd: {error} ########");
        }
    };
    let pagemap = Arc::new(Pagemap::open().unwrap());
    let frames = SharedFrames::new(PAGES * PAGE, true, uffd, pagemap).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["what_another_process_writes_is_not_lost", "--exact", "--nocapture"]);
    let mut child = command.env("MAPWRIGHT_TEST_ROLE", &path).spawn().unwrap();
    let socket = rustix::net::accept(&listener).unwrap();
    let lent = frames.lend().unwrap();
    assert!(rustix::fs::ftruncate(&lent, 0).is_err(), "a client can't cut the frames");
    send(&socket, 0, &[lent.as_fd()]);
    let (start, mut descriptors) = receive(&socket).unwrap();
    let uffd = Arc::new(Uffd::received(descriptors.pop().unwrap()).unwrap());
    let view = RemoteView::new(Arc::clone(&uffd), start as usize, PAGES * PAGE, true).unwrap();
    let contents = vec![vec![0; PAGE as usize]; PAGES as usize];
    let (resident, dirty) = Default::default();
    let mut served = Served { frames, view, contents, resident, dirty, written: 0, clean: 0 };
    let mut faults = Vec::new();
    let mut next = 0;
    loop {
        let limit = Timespec { tv_sec: 0, tv_nsec: 20_000 };
        let mut fds =
            [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        poll(&mut fds, Some(&limit)).unwrap();
        if !fds[1].revents().is_empty() {
            break;
        }
        uffd.take_faults(&mut faults).unwrap();
        faults.drain(..).for_each(|touch| served.serve(touch));
        next = (next + 5) % PAGES as usize;
        if served.resident[next] {
            served.evict(next);
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(served.written > 50, "{} write-backs", served.written);
    assert!(served.clean > 0, "{} evictions of clean pages", served.clean);
}

/// Frames of some pages, and a view of them by which the same process plays the client.
fn both(pages: u64) -> Option<(SharedFrames, Arc<Uffd>, Arc<LentFrames>, RemoteView)> {
    let uffd = match Uffd::open(features().with(Features::POISON)) {
        Ok(uffd) => Arc::new(uffd),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            return None;
        }
    };
    let pagemap = Arc::new(Pagemap::open().unwrap());
    let own = Arc::new(Uffd::open(features()).unwrap());
    let frames = SharedFrames::new(pages * PAGE, true, own, pagemap).unwrap();
    let lent = frames.lend().unwrap();
    let view = Arc::new(LentFrames::new(lent, pages * PAGE, true, Arc::clone(&uffd)).unwrap());
    let start = view.address(false).unwrap();
    let remote = RemoteView::new(Arc::clone(&uffd), start, pages * PAGE, true).unwrap();
    Some((frames, uffd, view, remote))
}

/// A failure that is told late: pages that are shown by then stay protected, so that no write to them goes unseen.
#[test]
fn pages_that_are_shown_stay_protected_when_others_fail() {
    let Some((frames, uffd, view, remote)) = both(4) else { return };
    frames.store(0, &[1; PAGE as usize]).unwrap();
    remote.map(0..PAGE).unwrap();
    remote.protect(PAGE..2 * PAGE).unwrap(); // a marker
    view.poison(false, 0..3 * PAGE).unwrap();
    let start = view.address(false).unwrap();
    // By pipes: a load would get SIGBUS.
    let readable = |page: usize| {
        let (_reader, writer) = std::io::pipe().unwrap();
        // SAFETY: plain numbers; the kernel checks the address, of a page that the view has mapped.
        (unsafe { libc::write(writer.as_raw_fd(), (start + page * PAGE as usize) as *const _, 1) }) == 1
    };
    assert!(readable(0) && !readable(1) && !readable(2), "what is absent fails, with a marker or without");
    std::thread::scope(|scope| {
        // SAFETY: inside the view, and nobody else touches it.
        scope.spawn(|| unsafe { (start as *mut u8).write_volatile(2) });
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        let told = poll(&mut [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(told, 1, "the write went unseen");
        let mut faults = Vec::new();
        uffd.take_faults(&mut faults).unwrap();
        assert_eq!(faults, [Touch { address: start, writes: true }]);
        remote.map_writable(0..PAGE).unwrap();
    });
    // When nobody serves it, what is shown may be used.
    remote.protect(0..PAGE).unwrap();
    view.poison_unserved(false, 0..PAGE).unwrap();
    // SAFETY: as above.
    unsafe { (start as *mut u8).write_volatile(3) };
}

/// What a client does to its descriptor is done to its own alone.
#[test]
fn flags_of_a_lent_descriptor_are_not_the_servers() {
    let Some((frames, _uffd, _view, _remote)) = both(4) else { return };
    let lent = frames.lend().unwrap();
    rustix::fs::fcntl_setfl(&lent, rustix::fs::OFlags::APPEND).unwrap();
    frames.store(PAGE, &[5; PAGE as usize]).unwrap();
    let mut bytes = [0; PAGE as usize];
    frames.load(PAGE, &mut bytes).unwrap();
    assert!(bytes == [5; PAGE as usize]);
}
