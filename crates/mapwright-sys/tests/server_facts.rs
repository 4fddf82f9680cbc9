//! The facts about the kernel that serving another process's faults stands on, most of them seen between two processes.
#![allow(clippy::single_range_in_vec_init)] // lists of one range are meant
#![allow(missing_docs)]

mod common;

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{receive, send, socket};
use mapwright_sys::frames::SharedFrames;
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::remote::{LentFrames, RemoteView};
use mapwright_sys::uffd::{Features, Source, Uffd};
use mapwright_sys::window::Reader;
use rustix::net::SocketAddrUnix;

const PAGE: u64 = 4096;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const MISSING_AND_MINOR: u64 = 5;
const EVENT_FORK: Features = Features(1 << 1);
const EVENT_REMAP: Features = Features(1 << 2);
const EVENT_REMOVE: Features = Features(1 << 3);
const EVENT_UNMAP: Features = Features(1 << 6);

fn reading() -> Features {
    Features::MISSING_SHMEM.with(Features::MINOR_SHMEM).with(Features::POISON)
}

/// A userfaultfd; `None` after a loud message, which CI does not take.
fn uffd(features: Features) -> Option<Arc<Uffd>> {
    match Uffd::open(features) {
        Ok(uffd) => Some(Arc::new(uffd)),
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
            eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            None
        }
    }
}

fn frames(pages: u64) -> Option<Arc<SharedFrames>> {
    let pagemap = Arc::new(Pagemap::open().unwrap());
    Some(Arc::new(SharedFrames::new(pages * PAGE, false, uffd(reading())?, pagemap).unwrap()))
}

fn page(number: u64) -> Range<u64> {
    number * PAGE..(number + 1) * PAGE
}

/// Whether this process is the client of a test; its connection.
fn as_client() -> Option<OwnedFd> {
    let path = std::env::var_os("MAPWRIGHT_TEST_ROLE")?;
    let socket = socket();
    rustix::net::connect(&socket, &SocketAddrUnix::new(Path::new(&path)).unwrap()).unwrap();
    Some(socket)
}

/// A client that is killed when the test ends.
struct Client {
    child: Child,
    socket: OwnedFd,
    _dir: tempfile::TempDir,
}

impl Client {
    fn start(test: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = socket();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("MAPWRIGHT_TEST_ROLE", &path);
        let child = command.spawn().unwrap();
        let socket = rustix::net::accept(&listener).unwrap();
        Self { child, socket, _dir: dir }
    }

    fn ended_well(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What write(2) to a pipe says when it is handed `bytes`.
fn write_to_pipe(bytes: &[u8]) -> Result<usize, i32> {
    let (_reader, writer) = std::io::pipe().unwrap();
    rustix::io::write(&writer, bytes).map_err(rustix::io::Errno::raw_os_error)
}

/// Touches of absent pages, of pages that are stored and not shown, and by system calls; and again after the hole was punched.
#[test]
fn faults_of_another_process_are_served() {
    if let Some(server) = as_client() {
        let Some(uffd) = uffd(reading()) else { return };
        let (_, mut descriptors) = receive(&server).unwrap();
        let view = Arc::new(
            LentFrames::new(descriptors.pop().unwrap(), 8 * PAGE, false, Arc::clone(&uffd)).unwrap(),
        );
        send(&server, view.address(false).unwrap() as u64, &[uffd.as_fd()]);
        receive(&server).unwrap();
        let reader = Reader::claim(view).unwrap();
        let byte = |page: u64| reader.slice(false, (page * PAGE) as usize..(page * PAGE + 1) as usize)[0];
        assert_eq!([byte(0), byte(2), byte(5), byte(0)], [100, 9, 105, 100]);
        let absent = reader.slice(false, 3 * PAGE as usize..4 * PAGE as usize);
        let wrote = write_to_pipe(absent);
        let expected = if uffd.source() == Source::UserModeOnly { Err(libc::EFAULT) } else { Ok(4096) };
        assert_eq!(wrote, expected);
        send(&server, 1, &[]); // punch
        receive(&server).unwrap();
        assert_eq!([byte(0), byte(2), byte(7)], [100, 102, 107], "served anew");
        return;
    }
    let Some(frames) = frames(8) else { return };
    let client = Client::start("faults_of_another_process_are_served");
    frames.store(2 * PAGE, &[9; PAGE as usize]).unwrap();
    send(&client.socket, 0, &[frames.lend().unwrap().as_fd()]);
    let Some((address, mut descriptors)) = receive(&client.socket) else { return };
    let uffd = Arc::new(Uffd::received(descriptors.pop().unwrap()).unwrap());
    let view = RemoteView::new(Arc::clone(&uffd), address as usize, 8 * PAGE, false).unwrap();
    send(&client.socket, 0, &[]);
    let mut stored = vec![2];
    loop {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [
            PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN),
            PollFd::new(&client.socket, PollFlags::IN),
        ];
        poll(&mut fds, None).unwrap();
        let mut faults = Vec::new();
        uffd.take_faults(&mut faults).unwrap();
        for touch in faults {
            let number = view.offset_of(touch.address).unwrap() / PAGE;
            if !stored.contains(&number) {
                frames.store(number * PAGE, &[100 + number as u8; PAGE as usize]).unwrap();
                stored.push(number);
            }
            view.map(page(number)).unwrap();
            // Once more changes nothing. The client may have ended meanwhile: what is served is all that it waited for.
            let again = view.map(page(number)).map_err(|error| error.raw_os_error());
            assert!(matches!(again, Ok(()) | Err(Some(libc::ENOENT | libc::ESRCH))), "{again:?}");
        }
        if !fds[1].revents().is_empty() {
            if receive(&client.socket).is_none() {
                break;
            }
            frames.release(&[0..8 * PAGE]).unwrap();
            stored.clear();
            send(&client.socket, 0, &[]);
        }
    }
    assert!(client.ended_well());
    // Of one that is gone: its memory first, then all of it.
    if let Err(error) = view.map(page(0)) {
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}

/// A private or a shared mapping of a descriptor, registered by hand; whether it could be.
fn register_by_hand(fd: BorrowedFd<'_>, len: usize, shared: bool, uffd: &Uffd) -> Result<usize, i32> {
    let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, fd.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let mut register = [at as u64, len as u64, MISSING_AND_MINOR, 0];
    // SAFETY: four words are what `struct uffdio_register` is.
    let answer = unsafe { libc::ioctl(uffd.as_fd().as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
    if answer == 0 { Ok(at as usize) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
}

/// Why clients map privately.
#[test]
fn shared_mappings_of_what_can_only_be_read_can_not_be_registered() {
    let (Some(frames), Some(uffd)) = (frames(4), uffd(reading())) else { return };
    let lent = frames.lend().unwrap();
    assert_eq!(register_by_hand(lent.as_fd(), 4 * PAGE as usize, true, &uffd), Err(libc::EPERM));
    assert!(register_by_hand(lent.as_fd(), 4 * PAGE as usize, false, &uffd).is_ok());
    assert_eq!(rustix::io::pwrite(&lent, b"no", 0), Err(rustix::io::Errno::BADF));
}

/// Whoever can read the memory can put pages of zeros into its holes: by a mapping that nobody serves, not by read(2).
#[test]
fn reading_a_hole_makes_a_page_unless_it_is_served() {
    let Some(frames) = frames(4) else { return };
    let lent = frames.lend().unwrap();
    let blocks = || rustix::fs::fstat(&lent).unwrap().st_blocks;
    let mut byte = [1];
    assert_eq!((rustix::io::pread(&lent, &mut byte, 0), byte, blocks()), (Ok(1), [0], 0));
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            lent.as_raw_fd(),
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: just mapped.
    assert_eq!((unsafe { at.cast::<u8>().read_volatile() }, blocks()), (0, 8));
    let full = frames.fill(0, &[7; PAGE as usize]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::EEXIST), "which UFFDIO_COPY does not fill");
    frames.store(0, &[7; PAGE as usize]).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { at.cast::<u8>().read_volatile() }, 7);
}

/// A server that dies with a fault in its hands: the client's thread goes on waiting, and its own process ends that.
#[test]
fn the_end_of_a_server_is_a_wait_and_no_zeros() {
    if let Some(server) = as_client() {
        let Some(uffd) = uffd(reading()) else { return };
        if uffd.source() == Source::UserModeOnly {
            return eprintln!("######## SKIPPED: system calls are not served here ########");
        }
        let (_, mut descriptors) = receive(&server).unwrap();
        let view = Arc::new(
            LentFrames::new(descriptors.pop().unwrap(), 4 * PAGE, false, Arc::clone(&uffd)).unwrap(),
        );
        let address = view.address(false).unwrap();
        send(&server, address as u64, &[uffd.as_fd()]);
        let reader = Reader::claim(Arc::clone(&view) as Arc<_>).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let toucher = scope.spawn(|| {
                let wrote = write_to_pipe(&reader.slice(false, PAGE as usize..2 * PAGE as usize)[..16]);
                done.store(true, Ordering::SeqCst);
                wrote
            });
            assert!(receive(&server).is_none(), "the server is gone");
            std::thread::sleep(Duration::from_millis(100));
            assert!(!done.load(Ordering::SeqCst), "nobody has served it");
            let mut faults = Vec::new();
            assert_eq!(uffd.take_faults(&mut faults).unwrap(), 0, "the server has taken the event with it");
            view.wake(0..4 * PAGE);
            uffd.wait_faults(&mut faults).unwrap();
            assert_eq!(faults[0].address, address + PAGE as usize, "told again");
            view.poison(false, page(1)).unwrap();
            assert_eq!(toucher.join().unwrap(), Err(libc::EFAULT), "a load would get SIGBUS");
        });
        return;
    }
    let Some(frames) = frames(4) else { return };
    let mut client = Client::start("the_end_of_a_server_is_a_wait_and_no_zeros");
    send(&client.socket, 0, &[frames.lend().unwrap().as_fd()]);
    if let Some((_, mut descriptors)) = receive(&client.socket) {
        let uffd = Uffd::received(descriptors.pop().unwrap()).unwrap();
        let mut faults = Vec::new();
        uffd.wait_faults(&mut faults).unwrap();
        assert_eq!(faults.len(), 1);
    } // dies here, by what the client sees of it
    client.socket = socket();
    assert!(client.ended_well());
}

/// The control: a process that does not keep its own userfaultfd reads zeros.
#[test]
fn without_a_userfaultfd_holes_read_as_zeros() {
    let (Some(frames), Some(uffd)) = (frames(4), uffd(reading())) else { return };
    let lent = frames.lend().unwrap();
    let at = register_by_hand(lent.as_fd(), 4 * PAGE as usize, false, &uffd).unwrap();
    drop(uffd);
    // SAFETY: mapped just now, and nobody unmaps it.
    assert_eq!(unsafe { (at as *const u8).read_volatile() }, 0);
}

/// An event of fork(2) brings a descriptor to whoever reads it: one that a server did not ask for must not stay.
#[test]
fn descriptors_of_fork_events_do_not_pile_up() {
    let (Some(frames), Some(plain)) = (frames(4), uffd(reading())) else { return };
    let forking = match Uffd::open(reading().with(EVENT_FORK)) {
        Ok(uffd) => uffd,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "which takes CAP_SYS_PTRACE");
            return eprintln!("######## SKIPPED: events of fork are for the privileged ########");
        }
    };
    drop(plain);
    let lent = frames.lend().unwrap();
    register_by_hand(lent.as_fd(), 4 * PAGE as usize, false, &forking).unwrap();
    let own = || {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.as_os_str() == "anon_inode:[userfaultfd]").count()
    };
    let ended = AtomicBool::new(false);
    let events = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut events, mut most) = (0, 0);
            while !ended.load(Ordering::SeqCst) {
                events += forking.take_faults(&mut Vec::new()).unwrap();
                most = most.max(own());
                std::thread::yield_now();
            }
            (events, most)
        });
        for _ in 0..8 {
            // The call returns when the event was read; fork(3) would hold the allocator's locks as long, which the reader takes.
            // SAFETY: as fork(2); the child does nothing but end, which is allowed in a threaded process.
            let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
            if child == 0 {
                // SAFETY: ends the child without running anything else.
                unsafe { libc::_exit(0) };
            }
            // SAFETY: waits for the child just made; a null status is not written.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
        ended.store(true, Ordering::SeqCst);
        server.join().unwrap()
    });
    assert!(events.0 >= 8, "{events:?}");
    assert!(events.1 <= 8 + 8, "{} userfaultfds: other tests have some", events.1);
}

/// A client that asks for events and leaves them unread: operations on its memory answer EAGAIN for as long, and that is given up.
#[test]
fn an_unread_event_keeps_nobody_for_ever() {
    let features = reading().with(EVENT_REMAP).with(EVENT_REMOVE).with(EVENT_UNMAP);
    let (Some(frames), Some(uffd)) = (frames(4), uffd(features)) else { return };
    let lent = frames.lend().unwrap();
    let at = register_by_hand(lent.as_fd(), 4 * PAGE as usize, false, &uffd).unwrap();
    frames.store(0, &[1; 4 * PAGE as usize]).unwrap();
    let view = RemoteView::new(Arc::clone(&uffd), at, 4 * PAGE, false).unwrap();
    view.map(page(0)).unwrap();
    std::thread::scope(|scope| {
        // SAFETY: mapped above, and nobody holds a reference.
        let removing =
            scope.spawn(move || unsafe { libc::madvise(at as *mut _, PAGE as usize, libc::MADV_DONTNEED) });
        let blocked = std::iter::repeat_with(|| view.map(page(1))).take(1_000_000).find_map(Result::err);
        assert_eq!(blocked.expect("until the event is read").kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(uffd.take_faults(&mut Vec::new()).unwrap(), 1);
        assert_eq!(removing.join().unwrap(), 0);
    });
    view.map(page(1)).unwrap();
}

/// Pages that nobody asked for are shown up to the first that is shown already: each of those would cost a call.
#[test]
fn what_is_shown_ahead_ends_at_what_is_shown() {
    let (Some(frames), Some(uffd)) = (frames(8), uffd(reading())) else { return };
    let lent = frames.lend().unwrap();
    let at = register_by_hand(lent.as_fd(), 8 * PAGE as usize, false, &uffd).unwrap();
    frames.store(0, &[1; 8 * PAGE as usize]).unwrap();
    let view = RemoteView::new(Arc::clone(&uffd), at, 8 * PAGE, false).unwrap();
    let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
    let shown = || -> Vec<u64> {
        let is_shown = |page: &u64| {
            let (mut entry, place) = ([0; 8], (at as u64 / PAGE + page) * 8);
            std::os::unix::fs::FileExt::read_exact_at(&pages, &mut entry, place).unwrap();
            u64::from_le_bytes(entry) >> 63 == 1
        };
        (0..8).filter(is_shown).collect()
    };
    view.map(page(1)).unwrap();
    view.map(page(4)).unwrap();
    view.map_ahead(0..8 * PAGE, 3 * PAGE).unwrap();
    assert_eq!(shown(), [0, 1, 2, 3, 4], "what was asked for, and what follows it");
    view.map_ahead(5 * PAGE..8 * PAGE, PAGE).unwrap();
    assert_eq!(shown().len(), 8);
}

#[test]
fn what_is_no_userfaultfd_is_refused() {
    let Some(real) = uffd(reading()) else { return };
    for fd in [std::fs::File::open("/dev/null").unwrap().into(), socket(), std::io::pipe().unwrap().0.into()]
    {
        assert_eq!(Uffd::received(fd).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    let same = Arc::new(Uffd::received(real.as_fd().try_clone_to_owned().unwrap()).unwrap());
    for (start, len) in
        [(0, PAGE), (4097, PAGE), (4096, 5), (4096, 0), (usize::MAX - 4095, PAGE), (1 << 63, PAGE)]
    {
        assert!(RemoteView::new(Arc::clone(&same), start, len, false).is_err(), "{start:#x} {len}");
    }
}

/// A descriptor that its owner has made to block is not waited for.
#[test]
fn reading_never_waits_whatever_the_owner_says() {
    let Some(uffd) = uffd(reading()) else { return };
    rustix::fs::fcntl_setfl(uffd.as_fd(), rustix::fs::OFlags::empty()).unwrap();
    assert_eq!(uffd.take_faults(&mut Vec::new()).unwrap(), 0);
}
