//! Eviction of pages that another process writes all the while: no write is lost. The way that maps for writing by a server will
//! go: splice a reference, punch the hole, ask the page tables of the other process.
#![allow(missing_docs)]

mod common;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use common::{receive, send, socket};
use mapwright_sys::uffd::{Features, Uffd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::net::SocketAddrUnix;

const PAGE: usize = 4096;
const PAGES: usize = 16;
const ROUNDS: u64 = 4000;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Missing, minor, write-protect.
const ALL_MODES: u64 = 7;
const WRITE_PROTECT: u64 = 2;

fn features() -> Features {
    let read = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM);
    read.with(Features::WP_HUGETLBFS_SHMEM).with(Features::WP_ASYNC)
}

/// Counts in every page of a shared mapping.
fn client(server: &OwnedFd) {
    let (_, frames) = receive(server).unwrap();
    let uffd = Uffd::open(features()).unwrap();
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let len = PAGES * PAGE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, frames[0].as_raw_fd(), 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    let mut register = [at as u64, len as u64, ALL_MODES, 0];
    // SAFETY: four words are what `struct uffdio_register` is.
    let answer = unsafe { libc::ioctl(uffd.as_fd().as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    send(server, at as u64, &[uffd.as_fd(), pagemap.as_fd()]);
    let counter = |page: usize| (at as usize + page * PAGE) as *mut u64;
    for round in 0..ROUNDS {
        for page in 0..PAGES {
            if (round + page as u64).is_multiple_of(7) {
                continue; // so that some pages are clean when they are evicted
            }
            // SAFETY: inside the mapping, aligned, and nobody else in this process touches it.
            let value = unsafe { counter(page).read_volatile() };
            // SAFETY: as above.
            unsafe { counter(page).write_volatile(value + 1) };
        }
    }
    for page in 0..PAGES {
        let expected = (0..ROUNDS).filter(|round| !(round + page as u64).is_multiple_of(7)).count() as u64;
        // SAFETY: as above.
        assert_eq!(unsafe { counter(page).read_volatile() }, expected, "page {page}");
    }
}

/// What a server has of a client that writes.
struct Served {
    frames: OwnedFd,
    uffd: Uffd,
    pagemap: OwnedFd,
    start: u64,
    /// The file, so to say.
    contents: Vec<Vec<u8>>,
    resident: [bool; PAGES],
    written: u64,
    clean: u64,
}

impl Served {
    fn address(&self, page: usize) -> u64 {
        self.start + (page * PAGE) as u64
    }

    fn serve(&mut self, page: usize) {
        if !self.resident[page] {
            rustix::io::pwrite(&self.frames, &self.contents[page], (page * PAGE) as u64).unwrap();
            self.resident[page] = true;
        }
        let mut argument = [self.address(page), PAGE as u64, WRITE_PROTECT, 0];
        // SAFETY: four words are what `struct uffdio_continue` is.
        let answer =
            unsafe { libc::ioctl(self.uffd.as_fd().as_raw_fd(), UFFDIO_CONTINUE, argument.as_mut_ptr()) };
        let error = std::io::Error::last_os_error();
        let gone = [libc::EEXIST, libc::ESRCH].map(Some).contains(&error.raw_os_error());
        assert!(answer == 0 || gone, "{error}");
    }

    fn is_written(&self, page: usize) -> bool {
        let mut regions = [0u64; 3];
        let (start, end) = (self.address(page), self.address(page + 1));
        let mut argument =
            [96, 0, start, end, 0, regions.as_mut_ptr() as u64, 1, 0, 0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN];
        // SAFETY: twelve words are what `struct pm_scan_arg` is, and there is room for one region of three.
        let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, argument.as_mut_ptr()) };
        assert!(found >= 0, "{}", std::io::Error::last_os_error());
        found == 1
    }

    fn evict(&mut self, page: usize) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let at = (page * PAGE) as u64;
        let mut offset = at as libc::loff_t;
        // SAFETY: both descriptors are open, and `offset` is the caller's own.
        let held = unsafe {
            let none = std::ptr::null_mut();
            libc::splice(self.frames.as_raw_fd(), &mut offset, writer.as_raw_fd(), none, PAGE, 0)
        };
        assert_eq!(held, PAGE as isize, "{}", std::io::Error::last_os_error());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.frames, punch, at, PAGE as u64).unwrap();
        self.resident[page] = false;
        let mut last = vec![0; PAGE];
        reader.read_exact(&mut last).unwrap();
        if self.is_written(page) {
            self.written += 1;
            self.contents[page] = last;
        } else {
            self.clean += 1;
            assert!(self.contents[page] == last, "a page that is called clean was written");
        }
    }
}

#[test]
fn eviction_of_what_another_process_writes_loses_nothing() {
    if let Some(path) = std::env::var_os("MAPWRIGHT_TEST_ROLE") {
        let server = socket();
        rustix::net::connect(&server, &SocketAddrUnix::new(std::path::Path::new(&path)).unwrap()).unwrap();
        return client(&server);
    }
    if let Err(error) = Uffd::open(features()) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
        return eprintln!("######## SKIPPED: userfaultfd: {error} ########");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = socket();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let test = "eviction_of_what_another_process_writes_loses_nothing";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("MAPWRIGHT_TEST_ROLE", &path);
    let mut child = command.spawn().unwrap();
    let socket = rustix::net::accept(&listener).unwrap();
    let frames = memfd_create("mapwright-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&frames, (PAGES * PAGE) as u64).unwrap();
    send(&socket, 0, &[frames.as_fd()]);
    let (start, mut descriptors) = receive(&socket).unwrap();
    let (pagemap, uffd) = (descriptors.pop().unwrap(), descriptors.pop().unwrap());
    let contents = vec![vec![0; PAGE]; PAGES];
    let uffd = Uffd::received(uffd).unwrap();
    let (resident, written, clean) = ([false; PAGES], 0, 0);
    let mut served = Served { frames, uffd, pagemap, start, contents, resident, written, clean };
    let mut faults = Vec::new();
    let mut next = 0;
    loop {
        let limit = Timespec { tv_sec: 0, tv_nsec: 20_000 };
        let mut fds = [
            PollFd::from_borrowed_fd(served.uffd.as_fd(), PollFlags::IN),
            PollFd::new(&socket, PollFlags::IN),
        ];
        poll(&mut fds, Some(&limit)).unwrap();
        if !fds[1].revents().is_empty() {
            break;
        }
        served.uffd.take_faults(&mut faults).unwrap();
        for address in std::mem::take(&mut faults) {
            served.serve((address - start as usize) / PAGE);
        }
        next = (next + 5) % PAGES;
        if served.resident[next] {
            served.evict(next);
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(served.written > 50, "{} evictions of written pages", served.written);
    assert!(served.clean > 0, "{} evictions of clean pages", served.clean);
}
