//! The facts about the kernel that serving private mappings stands on which are written to: what becomes of pages that were copied when they were
//! stored to, and how a view with such pages is given back.
#![allow(clippy::single_range_in_vec_init)] // lists of one range are meant
#![allow(missing_docs)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use mapwright_sys::frames::SharedFrames;
use mapwright_sys::guest::{GuestView, Identity, MapKind, Wanted, can_keep_copies, find, find_copies};
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::remote::RemoteView;
use mapwright_sys::uffd::{Features, Uffd};

const PAGE: usize = 4096;
const PAGES: usize = 32;
const LEN: usize = PAGES * PAGE;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const MISSING_AND_MINOR: u64 = 5;

/// A userfaultfd as clients have; `None` after a loud message, which CI does not take.
fn uffd() -> Option<Arc<Uffd>> {
    let reading = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM).with(Features::POISON);
    let writing = Features::WRITE_PROTECT.with(Features::WP_HUGETLBFS_SHMEM);
    match Uffd::open(reading.with(writing)) {
        Ok(uffd) => Some(Arc::new(uffd)),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            None
        }
    }
}

/// What the file holds on a page.
fn byte_of(page: usize) -> u8 {
    10 + page as u8
}

/// Frames of a file of `PAGES` pages, and a thread that serves a view of them as a server does.
struct Server {
    frames: Arc<SharedFrames>,
    uffd: Arc<Uffd>,
    served: Arc<AtomicUsize>,
    wrote: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn new() -> Option<Self> {
        let own = Uffd::open(Features::MISSING_SHMEM.with(Features::MINOR_SHMEM)).ok();
        let uffd = uffd()?;
        let pagemap = Arc::new(Pagemap::open().unwrap());
        let frames = Arc::new(SharedFrames::new(LEN as u64, false, Arc::new(own?), pagemap).unwrap());
        let (served, wrote) = Default::default();
        Some(Self { frames, uffd, served, wrote, thread: None })
    }

    /// Serves touches of a view that begins at an address, until it is dropped.
    fn serve(&mut self, base: usize) {
        let (uffd, frames) = (Arc::clone(&self.uffd), Arc::clone(&self.frames));
        let (served, wrote) = (Arc::clone(&self.served), Arc::clone(&self.wrote));
        let view = RemoteView::new(Arc::clone(&uffd), base, LEN as u64, false).unwrap();
        self.thread = Some(std::thread::spawn(move || {
            let mut touches = Vec::new();
            loop {
                uffd.wait_faults(&mut touches).unwrap();
                if touches.is_empty() {
                    return;
                }
                for touch in touches.drain(..) {
                    let Some(offset) = view.offset_of(touch.address) else { continue };
                    let at = offset / PAGE as u64 * PAGE as u64;
                    let range = at..at + PAGE as u64;
                    if !frames.holes(range.clone()).unwrap().is_empty() {
                        frames.store(at, &[byte_of(at as usize / PAGE); PAGE]).unwrap();
                    }
                    wrote.fetch_or(touch.writes, Ordering::Relaxed);
                    served.fetch_add(1, Ordering::Relaxed);
                    match view.map(range.clone()) {
                        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => view.wake(range), // punched
                        mapped => mapped.unwrap(),
                    }
                }
            }
        }));
    }

    /// Serves no touch any more.
    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.uffd.interrupt();
            thread.join().unwrap();
        }
    }

    /// What the frames hold of a page.
    fn frame(&self, page: usize) -> u8 {
        let mut byte = [0];
        self.frames.load((page * PAGE) as u64, &mut byte).unwrap();
        byte[0]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A private mapping of the frames that may be written, registered by hand.
struct Map(usize);

impl Map {
    fn new(server: &mut Server) -> Self {
        let lent = server.frames.lend().unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), LEN, protection, libc::MAP_PRIVATE, lent.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let mut register = [at as u64, LEN as u64, MISSING_AND_MINOR, 0];
        let uffd = server.uffd.as_fd().as_raw_fd();
        // SAFETY: four words are what `struct uffdio_register` is.
        assert_eq!(unsafe { libc::ioctl(uffd, UFFDIO_REGISTER, register.as_mut_ptr()) }, 0);
        server.serve(at as usize);
        Self(at as usize)
    }

    fn read(&self, page: usize) -> u8 {
        read(self.0, page)
    }

    fn write(&self, page: usize, byte: u8) {
        write(self.0, page, byte);
    }

    /// The pages that are the program's own.
    fn own(&self) -> Vec<usize> {
        own(self.0)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the test's own mapping.
        unsafe { libc::munmap(self.0 as *mut _, LEN) };
    }
}

fn read(base: usize, page: usize) -> u8 {
    // SAFETY: inside a mapping of the test's own.
    unsafe { ((base + page * PAGE) as *const u8).read_volatile() }
}

fn write(base: usize, page: usize, byte: u8) {
    // SAFETY: as above.
    unsafe { ((base + page * PAGE) as *mut u8).write_volatile(byte) }
}

fn own(base: usize) -> Vec<usize> {
    let mut found = Vec::new();
    Pagemap::open().unwrap().owned(base..base + LEN, &mut found).unwrap();
    found.into_iter().flat_map(|run| (run.start - base) / PAGE..(run.end - base) / PAGE).collect()
}

/// By a store or a system call, to a page that is shown, one that is stored and not shown, and one that is a hole.
#[test]
fn a_page_that_is_shown_in_a_private_mapping_is_copied_when_it_is_stored_to() {
    let Some(mut server) = Server::new() else { return };
    server.frames.store(2 * PAGE as u64, &[byte_of(2); PAGE]).unwrap();
    let map = Map::new(&mut server);
    assert_eq!((map.read(1), map.own()), (byte_of(1), vec![]));
    for page in [1, 2, 3] {
        map.write(page, 200);
        assert_eq!((map.read(page), server.frame(page)), (200, byte_of(page)), "page {page}");
        let rest = (map.0 + page * PAGE + 1) as *const u8;
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { rest.read_volatile() }, byte_of(page), "the rest of page {page}");
    }
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[201]).unwrap();
    // SAFETY: inside the mapping, of which nobody else has a reference.
    reader.read_exact(unsafe { std::slice::from_raw_parts_mut((map.0 + 4 * PAGE) as *mut u8, 1) }).unwrap();
    assert_eq!((map.read(4), server.frame(4)), (201, byte_of(4)));
    assert_eq!(map.own(), [1, 2, 3, 4]);
    assert!(server.wrote.load(Ordering::Relaxed), "a fault tells that it was a write");
    // No fault is told of a store to a page that is shown.
    assert_eq!(server.served.load(Ordering::Relaxed), 4);
}

/// By which the server evicts, and takes back what somebody is about to write.
#[test]
fn punching_takes_the_frames_out_of_private_mappings_and_leaves_what_was_copied() {
    let Some(mut server) = Server::new() else { return };
    let map = Map::new(&mut server);
    (0..8).for_each(|page| assert_eq!(map.read(page), byte_of(page)));
    [1, 2, 6].into_iter().for_each(|page| map.write(page, 200));
    let before = server.served.load(Ordering::Relaxed);
    server.frames.release(&[0..LEN as u64]).unwrap();
    assert_eq!(map.own(), [1, 2, 6]);
    (0..8).for_each(|page| {
        assert_eq!(map.read(page), if [1, 2, 6].contains(&page) { 200 } else { byte_of(page) });
    });
    assert_eq!(server.served.load(Ordering::Relaxed) - before, 5, "the others are served anew");
}

/// Why suggestions to unmap are not followed.
#[test]
fn unmapping_pages_throws_away_what_was_copied() {
    let Some(mut server) = Server::new() else { return };
    let map = Map::new(&mut server);
    map.write(1, 200);
    // SAFETY: the test's own mapping.
    assert_eq!(unsafe { libc::madvise(map.0 as *mut _, LEN, libc::MADV_DONTNEED) }, 0);
    assert_eq!((map.read(1), map.own()), (byte_of(1), vec![]));
}

/// What was paged out is the program's own still, where there is somewhere to page to.
#[test]
fn copies_that_are_paged_out_are_found() {
    let Some(mut server) = Server::new() else { return };
    let map = Map::new(&mut server);
    (0..PAGES).for_each(|page| map.write(page, 200));
    // SAFETY: the test's own mapping.
    assert_eq!(unsafe { libc::madvise(map.0 as *mut _, LEN, libc::MADV_PAGEOUT) }, 0);
    assert_eq!(map.own(), (0..PAGES).collect::<Vec<_>>());
    (0..PAGES).for_each(|page| assert_eq!(map.read(page), 200));
}

/// mremap(2) with MREMAP_DONTUNMAP, of a part: the part is empty and served as before, and its pages are where nobody serves.
#[test]
fn all_pages_of_a_mapping_can_be_taken_out_of_it_in_one_step() {
    let Some(mut server) = Server::new() else { return };
    let map = Map::new(&mut server);
    (0..8).for_each(|page| assert_eq!(map.read(page), byte_of(page)));
    [1, 5, 9].into_iter().for_each(|page| map.write(page, 200));
    let (part, len) = (map.0 + 4 * PAGE, 8 * PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let aside = unsafe { libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_NONE, flags, -1, 0) } as usize;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: both are the test's own.
    let moved =
        unsafe { libc::mremap(part as *mut _, len, len, flags, (aside + 4 * PAGE) as *mut libc::c_void) };
    assert_eq!(moved as usize, aside + 4 * PAGE);
    assert_eq!((own(aside), map.own()), (vec![5, 9], vec![1]));
    let before = server.served.load(Ordering::Relaxed);
    assert_eq!([4, 5, 9].map(|page| map.read(page)), [4, 5, 9].map(byte_of), "the file's");
    assert_eq!(server.served.load(Ordering::Relaxed) - before, 3, "and served");
    assert_eq!([4, 5, 9].map(|page| read(aside, page)), [byte_of(4), 200, 200]);
    map.write(5, 77);
    assert_eq!((read(aside, 5), map.read(5), map.read(1)), (200, 77, 200));
    // SAFETY: the test's own.
    unsafe { libc::munmap(aside as *mut _, LEN) };
}

/// A view as a program has it, and the file that it shows.
fn view(server: &mut Server, window: Range<u64>) -> (GuestView, File) {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| byte_of(at / PAGE)).collect();
    file.write_all_at(&bytes, 0).unwrap();
    let lent = server.frames.lend().unwrap();
    let pagemap = Arc::new(Pagemap::open().unwrap());
    assert!(can_keep_copies(&pagemap));
    let identity = Identity { device: 0, inode: 0 };
    let wanted = Wanted { identity, window, kind: MapKind::Copies { counted: true }, pagemap: Some(pagemap) };
    let uffd = Arc::clone(&server.uffd);
    let view = GuestView::new(lent.as_fd(), LEN as u64, file.as_fd(), &wanted, uffd).unwrap();
    server.serve(view.base());
    view.serve().unwrap();
    (view, file)
}

#[test]
fn a_view_is_given_back_with_what_the_program_has_changed() {
    let Some(mut server) = Server::new() else { return };
    let (view, file) = view(&mut server, 4 * PAGE as u64..30 * PAGE as u64);
    let base = view.base();
    [4, 9, 10, 29].into_iter().for_each(|page| write(base, page, 200));
    assert_eq!(read(base, 5), byte_of(5));
    assert_eq!(find_copies(base..base + LEN), Some(view.address()));
    // As a server suggests for blocks that nobody seems to touch: it would lose them.
    view.unmap(&[0..LEN as u64]).unwrap();
    assert_eq!((read(base, 9), read(base, 10)), (200, 200));
    server.frames.release(&[0..LEN as u64]).unwrap();
    server.stop();
    let prepared = view.prepare(true).unwrap();
    assert!(view.give_back(prepared, || ()).unwrap() && view.is_given());
    assert!(!view.give_back(view.prepare(true).unwrap(), || panic!("twice")).unwrap());
    assert_eq!(find(base..base + LEN), None);
    for page in 4..30 {
        let changed = [4, 9, 10, 29].contains(&page);
        assert_eq!(read(base, page), if changed { 200 } else { byte_of(page) }, "page {page}");
        write(base, page, 201);
    }
    let mut bytes = [0; 1];
    file.read_exact_at(&mut bytes, 9 * PAGE as u64).unwrap();
    assert_eq!(bytes, [byte_of(9)], "the file is as it was");
}

#[test]
fn what_is_unmapped_as_a_whole_need_not_be_copied() {
    let Some(mut server) = Server::new() else { return };
    let (view, _file) = view(&mut server, 0..LEN as u64);
    write(view.base(), 9, 200);
    assert!(view.give_back(view.prepare(false).unwrap(), || ()).unwrap());
    assert_eq!(read(view.base(), 9), byte_of(9));
}

/// What is shown may hold what the program has changed: a core dump has it, as of the kernel's mapping. A child has no view.
#[test]
fn views_of_copies_are_in_core_dumps_and_in_no_child() {
    let Some(mut server) = Server::new() else { return };
    let (view, _file) = view(&mut server, 0..LEN as u64);
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", view.base());
    let flags =
        maps.lines().skip_while(|line| !line.starts_with(&start)).find(|line| line.starts_with("VmFlags"));
    let flags: Vec<&str> = flags.unwrap().split_whitespace().collect();
    assert!(flags.contains(&"dc") && !flags.contains(&"dd"), "{flags:?}");
}

/// Threads count in their pages while the view is given back: nothing that they have counted is lost, and all go on.
#[test]
fn no_store_is_lost_when_a_view_is_given_back() {
    const THREADS: usize = 4;
    for round in 0..8 {
        let Some(mut server) = Server::new() else { return };
        let (view, _file) = view(&mut server, 0..LEN as u64);
        let (base, stop, counted) = (view.base(), AtomicBool::new(false), AtomicU64::new(0));
        let count = |thread: usize| {
            let mut counts = [0_u64; PAGES / THREADS];
            while !stop.load(Ordering::Relaxed) {
                for (index, count) in counts.iter_mut().enumerate() {
                    let at = (base + (thread + index * THREADS) * PAGE + 8) as *mut u64;
                    // SAFETY: inside the view, in a page that is this thread's alone.
                    let before = unsafe { at.read_volatile() };
                    assert_eq!(before & 0xff_ffff, *count & 0xff_ffff, "thread {thread}, its page {index}");
                    *count += 1;
                    // SAFETY: as above. The upper bytes are the file's.
                    unsafe { at.write_volatile(before & !0xff_ffff | *count & 0xff_ffff) };
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        for page in 0..PAGES {
            // The file's own bytes there are no count.
            let at = (base + page * PAGE + 8) as *mut u64;
            // SAFETY: inside the view; no thread runs yet.
            let before = unsafe { at.read_volatile() };
            // SAFETY: as above.
            unsafe { at.write_volatile(before & !0xff_ffff) };
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || count(thread))).collect();
            let wait = |more: u64| {
                let until = counted.load(Ordering::Relaxed) + more;
                while counted.load(Ordering::Relaxed) < until
                    && !threads.iter().any(|thread| thread.is_finished())
                {
                    std::thread::yield_now();
                }
            };
            wait(50 * (round + 1));
            server.frames.release(&[0..LEN as u64]).unwrap();
            server.stop();
            assert!(view.give_back(view.prepare(true).unwrap(), || ()).unwrap());
            wait(100);
            stop.store(true, Ordering::Relaxed);
        });
    }
}
