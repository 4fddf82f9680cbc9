//! Clients that keep to no rule.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mapwright_sys::remote::LentFrames;
use mapwright_sys::uffd::Uffd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::protocol::{Access, Event, Heard, MAGIC, Reply, Request, VERSION};
use super::server::{Server, address, socket};
use super::wire::{self, Received};
use crate::error::Error;
use crate::{Advice, MapOptions, Pager, Strategy};
use messages_tests::{heard, random};

mod alone_tests;
mod messages_tests;
mod rubbish_tests;
mod stalled_tests;

const MIB: u64 = 1 << 20;

/// A server with a file, and clients of any manners.
struct Scene {
    pager: Pager,
    server: Server,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Option<Self> {
        if let Err(error) = crate::engine::host::open_uffd_of_client() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this test: {error}");
            eprintln!("######## SKIPPED: {error} ########");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let pager = Pager::builder().budget(8 * MIB).build().unwrap();
        std::fs::write(dir.path().join("file"), vec![7; MIB as usize]).unwrap();
        let server = Server::bind(&pager, dir.path().join("socket")).unwrap();
        Some(Self { pager, server, dir })
    }

    fn file(&self) -> OwnedFd {
        self.open(OFlags::RDONLY)
    }

    fn open(&self, flags: OFlags) -> OwnedFd {
        rustix::fs::open(self.dir.path().join("file"), flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// Makes a file that is to be written, unless it is there.
    fn write(&self, path: &Path) {
        if !path.exists() {
            std::fs::write(path, vec![9; 300_001]).unwrap();
        }
    }

    /// Whether a client that keeps the rules is served.
    fn serves(&self) -> bool {
        let client = Pager::connect(self.server.path()).unwrap();
        let map = MapOptions::new().pager(&client).strategy(Strategy::Pager);
        let map = map.open(self.dir.path().join("file")).unwrap();
        map.iter().all(|byte| *byte == 7) && map.get(..4096).is_ok()
    }

    fn settles(&self) {
        let since = Instant::now();
        while self.server.clients() > 0 || self.pager.stats().used_bytes > 0 {
            assert!(since.elapsed() < Duration::from_secs(20), "{:?} {:?}", self.server, self.pager.stats());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A client by hand.
struct Raw(OwnedFd);

impl Raw {
    fn connect(path: &Path) -> Self {
        let socket = socket().unwrap();
        rustix::net::connect(&socket, &address(path).unwrap()).unwrap();
        Self(socket)
    }

    /// One that has been welcomed, and its userfaultfd.
    fn greeted(scene: &Scene) -> (Self, Arc<Uffd>) {
        let raw = Self::connect(scene.server.path());
        let uffd = Arc::new(crate::engine::host::open_uffd_of_client().unwrap());
        let hello = Request::Hello { magic: MAGIC, version: VERSION };
        let welcome = raw.ask(&hello, Some(uffd.as_fd()));
        assert!(matches!(welcome, Some((Reply::Welcome { budget }, _)) if budget == 8 * MIB), "{welcome:?}");
        (raw, uffd)
    }

    fn send(&self, bytes: &[u8], descriptor: Option<std::os::fd::BorrowedFd<'_>>) {
        let _ = wire::send(self.0.as_fd(), bytes, descriptor, true);
    }

    /// The next answer; `None` at the end.
    fn hear(&self) -> Option<(Reply, Vec<OwnedFd>)> {
        loop {
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            let told = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)).unwrap();
            assert!(told > 0, "nothing in 20 s");
            let Received { bytes, descriptors } = wire::receive(&self.0, true).ok()??;
            if let Heard::Reply(_, reply) = heard(&bytes).unwrap() {
                return Some((reply, descriptors));
            }
        }
    }

    fn ask(
        &self,
        request: &Request,
        descriptor: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Option<(Reply, Vec<OwnedFd>)> {
        self.send(&request.encode(1), descriptor);
        self.hear()
    }

    #[track_caller]
    fn refused(&self, request: &Request, descriptor: Option<std::os::fd::BorrowedFd<'_>>) -> String {
        match self.ask(request, descriptor) {
            Some((Reply::Refused(error), _)) => error.to_string(),
            other => panic!("{request:?}: {other:?}"),
        }
    }

    /// Whether the server has hung up, at most after a last word.
    fn is_over(&self) -> bool {
        std::iter::repeat_with(|| self.hear()).take(3).any(|heard| heard.is_none())
    }

    /// The frames of a file that it writes.
    fn open_to_write(&self, path: &Path, access: Access) -> OwnedFd {
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        match self.ask(&open_as(access), Some(file.as_fd())) {
            Some((Reply::Opened { .. }, mut descriptors)) => descriptors.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, scene: &Scene) -> (u32, OwnedFd) {
        match self.ask(&open_request(), Some(scene.file().as_fd())) {
            Some((Reply::Opened { file, len: MIB, capacity: MIB }, mut descriptors)) => {
                (file, descriptors.pop().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn open_request() -> Request {
    open_as(Access::Read)
}

fn open_as(access: Access) -> Request {
    let (block_size, name) = (4096, "here".to_owned());
    Request::Open { block_size, direct: None, advice: Advice::Normal, access, reserve: 0, name }
}

#[test]
fn who_does_not_greet_is_turned_away() {
    let Some(scene) = Scene::new() else { return };
    let uffd = crate::engine::host::open_uffd_of_client().unwrap();
    let hello = |version| Request::Hello { magic: MAGIC, version }.encode(1);
    let file = scene.file();
    let greetings: [(&[u8], Option<std::os::fd::BorrowedFd<'_>>); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (&[0; 32 << 10], None),
        (&hello(VERSION), None),
        (&hello(VERSION), Some(file.as_fd())),
        (&hello(VERSION + 1), Some(uffd.as_fd())),
        (&Request::Stats.encode(1), Some(uffd.as_fd())),
    ];
    for (bytes, descriptor) in greetings {
        let raw = Raw::connect(scene.server.path());
        raw.send(bytes, descriptor);
        assert!(raw.is_over());
    }
    drop(Raw::connect(scene.server.path())); // and says nothing
    assert!(scene.serves());
    scene.settles();
}

#[test]
fn what_a_client_may_not_ask_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let (raw, uffd) = Raw::greeted(&scene);
    let descriptors = [
        (scene.open(OFlags::WRONLY), "not open for reading"),
        (scene.open(OFlags::PATH), "not open for reading"),
        (std::io::pipe().unwrap().0.into(), "a pipe cannot be mapped"),
        (rustix::fs::open(scene.dir.path(), OFlags::RDONLY, Mode::empty()).unwrap(), "a directory"),
        (socket().unwrap(), "a socket"),
    ];
    for (descriptor, why) in descriptors {
        let text = raw.refused(&open_request(), Some(descriptor.as_fd()));
        assert!(text.contains(why), "{text}");
    }
    let (file, frames) = raw.open(&scene);
    let pin = |range| Request::Pin { file, in_order: false, writes: false, ranges: vec![range] };
    assert!(raw.refused(&pin(0..1), None).contains("before there is a view"));
    for address in [0, 1, 4097, 1 << 47 | 1, u64::MAX - 4095, 1 << 63] {
        raw.refused(&Request::Show { file, checked: false, address }, None);
    }
    for other in [0, file + 1, u32::MAX] {
        raw.refused(&Request::Show { file: other, checked: false, address: 1 << 40 }, None);
        raw.refused(&Request::Close { file: other }, None);
        raw.refused(&Request::Resident { file: other }, None);
        raw.send(&Request::Advise { file: other, advice: Advice::Random }.encode(0), None);
    }
    raw.send(&Request::Unpin { pin: 12 }.encode(0), None);
    raw.refused(&Request::Prefetch { file, range: 0..2 * MIB }, None);
    raw.refused(&Request::Evict { file, range: MIB..u64::MAX }, None);
    // A view where it has mapped nothing: its own pins fail, and nobody else's.
    assert!(matches!(
        raw.ask(&Request::Show { file, checked: false, address: 1 << 40 }, None),
        Some((Reply::Done, _))
    ));
    assert!(raw.refused(&pin(0..4096), None).contains("map"));
    raw.refused(&pin(0..MIB + 1), None);
    raw.refused(&Request::Show { file, checked: false, address: 1 << 41 }, None);
    // The frames can be read, and no more.
    assert_eq!(rustix::io::pwrite(&frames, b"no", 0), Err(rustix::io::Errno::BADF));
    let mut byte = [0];
    assert_eq!(rustix::io::pread(&frames, &mut byte, 0), Ok(1));
    assert!(rustix::fs::ftruncate(&frames, 0).is_err());
    drop(uffd);
    assert!(scene.serves());
    drop(raw);
    scene.settles();
}

/// What a client may do by writing is decided by its descriptor, and by what it has opened the file for.
#[test]
fn writes_that_a_client_may_not_ask_are_refused() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    for access in [Access::Write, Access::Share] {
        for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::PATH] {
            raw.refused(&open_as(access), Some(scene.open(flags).as_fd()));
        }
    }
    let (file, _frames) = raw.open(&scene);
    let ranges = std::iter::once(0..1).collect();
    let by_writing = [
        Request::Pin { file, in_order: false, writes: true, ranges },
        Request::Flush { file, range: 0..1 },
        Request::Resize { file, len: 5 },
        Request::Acknowledge { file },
    ];
    for request in by_writing {
        raw.refused(&request, None);
    }
    let path = scene.dir.path().join("written");
    scene.write(&path);
    // What was opened to append is written where it should be.
    let appends = rustix::fs::open(&path, OFlags::RDWR | OFlags::APPEND, Mode::empty()).unwrap();
    let open = Request::Open {
        block_size: 65536,
        direct: None,
        advice: Advice::Normal,
        access: Access::Share,
        reserve: 1 << 30,
        name: "shared".to_owned(),
    };
    let answer = raw.ask(&open, Some(appends.as_fd()));
    let Some((Reply::Opened { file, len: 300_001, capacity }, frames)) = answer else { panic!("{answer:?}") };
    assert_eq!(capacity, 5 * 65536, "one that others may have open does not grow");
    rustix::io::pwrite(&frames[0], b"by one", 100).unwrap();
    raw.refused(&Request::Resize { file, len: 5 }, None);
    for range in [0..300_002, 300_001..300_002, u64::MAX - 1..u64::MAX] {
        raw.refused(&Request::Flush { file, range: range.clone() }, None);
        raw.refused(&Request::Pin { file, in_order: true, writes: true, ranges: vec![range] }, None);
    }
    for range in [0..0, 300_001..300_001, 299_999..300_001] {
        assert!(matches!(raw.ask(&Request::Flush { file, range }, None), Some((Reply::Done, _))));
    }
    assert!(matches!(raw.ask(&Request::Close { file }, None), Some((Reply::Done, _))));
    raw.refused(&Request::Flush { file, range: 0..1 }, None);
    drop(raw);
    scene.settles();
    assert!(
        std::fs::read(&path).unwrap() == vec![9; 300_001],
        "nobody was allowed to write what was written"
    );
}

/// Whether this process has a page at an address.
fn is_present(address: usize) -> bool {
    let mut entry = [0; 8];
    let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&pages, &mut entry, address as u64 / 4096 * 8).unwrap();
    u64::from_le_bytes(entry) >> 63 == 1
}

/// Who writes a file is let in without any help of the clients that have it mapped, and nothing older than that is shown or shared afterwards.
#[test]
fn a_lease_ends_without_its_client() {
    let Some(scene) = Scene::new() else { return };
    let (raw, uffd) = Raw::greeted(&scene);
    let (file, leased) = (scene.file(), open_as(Access::Leased));
    let writer = scene.open(OFlags::WRONLY);
    let refused = raw.refused(&leased, Some(file.as_fd()));
    assert!(refused.contains("lease"), "{refused}");
    drop(writer);
    let open = || match raw.ask(&leased, Some(file.as_fd())) {
        Some((Reply::Opened { file, .. }, mut frames)) => (file, frames.pop().unwrap()),
        other => panic!("{other:?}"),
    };
    let done =
        |request: &Request| assert!(matches!(raw.ask(request, None), Some((Reply::Done, _))), "{request:?}");
    let (number, frames) = open();
    let copy = frames.try_clone().unwrap();
    let view = LentFrames::new(frames, MIB, false, uffd).unwrap();
    let address = view.address(false).unwrap();
    done(&Request::Show { file: number, checked: false, address: address as u64 });
    let ranges = std::iter::once(0..8192).collect();
    let pin = raw.ask(&Request::Pin { file: number, in_order: false, writes: false, ranges }, None);
    assert!(matches!(pin, Some((Reply::Pinned { .. }, _))), "{pin:?}");
    assert!(is_present(address) && is_present(address + 4096));
    let writer = scene.open(OFlags::WRONLY); // waits for the end of the lease
    assert!(
        !is_present(address) && !is_present(address + 4096),
        "pages are shown that are about to be written"
    );
    rustix::io::pwrite(&writer, b"new", 0).unwrap();
    let ended = loop {
        let Some(Received { bytes, .. }) = wire::receive(&raw.0, true).unwrap() else { panic!("the end") };
        if let Heard::Event(Event::Ended { file }) = heard(&bytes).unwrap() {
            break file;
        }
    };
    assert_eq!(ended, number);
    for request in
        [Request::Resident { file: number }, Request::Show { file: number, checked: true, address: 1 << 40 }]
    {
        raw.refused(&request, None);
    }
    raw.refused(&leased, Some(file.as_fd()));
    drop(writer);
    let (again, frames) = open();
    assert_ne!(again, number);
    done(&Request::Prefetch { file: again, range: 0..MIB });
    let mut bytes = [1; 4];
    assert_eq!((rustix::io::pread(&frames, &mut bytes, 0), bytes), (Ok(4), *b"new\x07"));
    assert_eq!(
        (rustix::io::pread(&copy, &mut bytes, 0), bytes),
        (Ok(4), [0; 4]),
        "nothing is filled there any more"
    );
    // Those who have it without a lease do not share what is read under one.
    let (_, without) = raw.open(&scene);
    assert_eq!((rustix::io::pread(&without, &mut bytes, 0), bytes), (Ok(4), [0; 4]));
    drop((raw, without));
    // The next one finds what the last one has left, until somebody writes the file, or removes it.
    let left = || {
        let since = Instant::now();
        while scene.server.clients() > 0 {
            assert!(since.elapsed() < Duration::from_secs(20), "{:?}", scene.server);
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let next = |fills: bool| {
        let (raw, _uffd) = Raw::greeted(&scene);
        let Some((Reply::Opened { file: number, .. }, frames)) = raw.ask(&leased, Some(file.as_fd())) else {
            panic!("not opened")
        };
        if fills {
            assert!(matches!(
                raw.ask(&Request::Prefetch { file: number, range: 0..MIB }, None),
                Some((Reply::Done, _))
            ));
        }
        let mut bytes = [1; 4];
        assert_eq!((rustix::io::pread(&frames[0], &mut bytes, 0), bytes), (Ok(4), *b"new\x07"), "{fills}");
    };
    left();
    next(false);
    left();
    drop(scene.open(OFlags::WRONLY));
    scene.settles();
    next(true);
    left();
    next(false);
    std::fs::remove_file(scene.dir.path().join("file")).unwrap();
    scene.settles();
}

/// Clients that open a file at the same time share one lease, and the frames with it.
#[test]
fn clients_that_come_at_once_share_a_lease() {
    let Some(scene) = Scene::new() else { return };
    let file = scene.file();
    let clients: Vec<Raw> = (0..8).map(|_| Raw::greeted(&scene).0).collect();
    for round in 0..30 {
        let ready = std::sync::Barrier::new(clients.len());
        let open = |raw: &Raw| {
            ready.wait();
            match raw.ask(&open_as(Access::Leased), Some(file.as_fd())) {
                Some((Reply::Opened { file, .. }, frames)) => {
                    (file, rustix::fs::fstat(&frames[0]).unwrap().st_ino)
                }
                other => panic!("{other:?}"),
            }
        };
        let opened: Vec<(u32, u64)> = std::thread::scope(|scope| {
            let running: Vec<_> = clients.iter().map(|raw| scope.spawn(|| open(raw))).collect();
            running.into_iter().map(|client| client.join().unwrap()).collect()
        });
        assert!(opened.iter().all(|(_, frames)| *frames == opened[0].1), "round {round}: {opened:?}");
        for (raw, (file, _)) in clients.iter().zip(&opened) {
            assert!(matches!(raw.ask(&Request::Close { file: *file }, None), Some((Reply::Done, _))));
        }
    }
}

#[test]
fn rules_that_are_broken_end_the_connection() {
    let Some(scene) = Scene::new() else { return };
    type Breach<'a> = &'a dyn Fn(&Raw, &Uffd);
    let breaches: [Breach<'_>; 5] = [
        &|raw, uffd| {
            raw.send(&Request::Hello { magic: MAGIC, version: VERSION }.encode(1), Some(uffd.as_fd()))
        },
        &|raw, _| raw.send(&[1, 2, 3], None),
        &|raw, _| raw.send(&vec![0; 40 << 10], None),
        &|raw, uffd| raw.send(&Request::Stats.encode(1), Some(uffd.as_fd())),
        &|raw, _| raw.send(&open_request().encode(1), None),
    ];
    for breach in breaches {
        let (raw, uffd) = Raw::greeted(&scene);
        raw.open(&scene);
        breach(&raw, &uffd);
        assert!(raw.is_over());
    }
    assert!(scene.serves());
    scene.settles();
}

/// Pages of zeros that a client puts into the frames by reading holes are no contents of anybody's.
#[test]
fn holes_that_a_client_reads_are_filled_all_the_same() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    let (_file, frames) = raw.open(&scene);
    // By a mapping that nobody serves: a read of a hole in shared memory makes a page of zeros there.
    let map = crate::mmap::MmapOptions::new().map_raw_read_only(&frames).unwrap();
    let mut zeros = vec![1; MIB as usize];
    map.read_at(0, &mut zeros).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
    assert!(scene.serves());
    drop((raw, map));
    scene.settles();
}

#[test]
fn a_client_that_does_not_listen_is_let_go() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    raw.open(&scene);
    let request = Request::Stats.encode(1);
    let since = Instant::now();
    while wire::send(raw.0.as_fd(), &request, None, false)
        .map_or_else(|error| error.kind() == std::io::ErrorKind::WouldBlock, |()| true)
    {
        assert!(since.elapsed() < Duration::from_secs(20), "it is still listened to");
    }
    assert!(scene.serves());
    scene.settles();
}

/// A client that waits for a write-back is told when it gets on, and not when it hangs.
#[test]
fn a_client_is_told_that_its_flush_gets_on() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    let path = scene.dir.path().join("written");
    scene.write(&path);
    let _frames = raw.open_to_write(&path, Access::Share);
    let engine = &**scene.pager.own("a test").unwrap();
    let file = (0..64).filter_map(|slot| engine.file(slot)).find(|file| file.writable).unwrap();
    // Somebody else is at it.
    let turn = file.take_turn().unwrap();
    raw.send(&Request::Flush { file: 1, range: 0..100 }.encode(77), None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(2500));
            for _ in 0..2 {
                file.got_on();
                std::thread::sleep(Duration::from_millis(1200));
            }
            drop(turn);
        });
        let (since, mut told) = (Instant::now(), Vec::new());
        loop {
            let Received { bytes, .. } = wire::receive(&raw.0, true).unwrap().unwrap();
            match heard(&bytes).unwrap() {
                Heard::Reply(77, Reply::Working) => told.push(since.elapsed()),
                Heard::Reply(77, Reply::Done) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(!told.is_empty() && told.len() <= 2, "{told:?}");
        assert!(told[0] >= Duration::from_millis(2400), "{told:?}");
    });
    drop((file, raw));
    scene.settles();
}

/// A client waits for a server that says that it gets on, longer than for one that says nothing.
#[test]
fn a_client_waits_as_long_as_the_server_gets_on() {
    let Some(scene) = Scene::new() else { return };
    let path = scene.dir.path().join("another");
    let listener = socket().unwrap();
    rustix::net::bind(&listener, &address(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let server = std::thread::spawn(move || {
        let client = rustix::net::accept(&listener).unwrap();
        let take = || {
            let Received { bytes, .. } = wire::receive(&client, true).unwrap().unwrap();
            Request::decode(&bytes).unwrap().0
        };
        let send = |number: u32, reply: Reply| {
            wire::send(client.as_fd(), &reply.encode(number), None, true).unwrap();
        };
        send(take(), Reply::Welcome { budget: MIB });
        let flush = take();
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(200));
            send(flush, Reply::Working);
        }
        send(flush, Reply::Done);
        let _silent = take();
        let _ = wire::receive(&client, true); // until it goes
    });
    let connection = super::connection::Connection::open(&path).unwrap();
    let flush = || connection.call(&Request::Flush { file: 1, range: 0..1 }, "here").unwrap();
    let answer = flush().wait_all(Duration::from_millis(800));
    assert!(matches!(answer.map(|answer| answer.reply), Ok(Reply::Done)));
    let answer = flush().wait_all(Duration::from_millis(300));
    assert!(matches!(answer, Err(Error::TimedOut { .. })), "{answer:?}");
    drop(connection);
    server.join().unwrap();
}

/// A view whose pages can't be protected for as long as somebody holds its lock: an address space that is busy.
struct Busy(std::sync::Mutex<()>);

impl crate::engine::kernel::RemoteView for Busy {
    fn map(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
        Ok(())
    }

    fn map_writable(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
        Ok(())
    }

    fn protect(&self, _: std::ops::Range<u64>) {
        drop(self.0.lock());
    }

    fn wake(&self, _: std::ops::Range<u64>) {}

    fn unmap(&self, _: &[std::ops::Range<u64>]) {}
}

/// A client whose address space is busy has written pages, of which some are to be written back for room: others have what else there
/// is dropped, and go on.
#[test]
fn an_address_space_that_is_busy_keeps_no_other_file_waiting() {
    let Some(scene) = Scene::new() else { return };
    let (raw, _uffd) = Raw::greeted(&scene);
    let path = scene.dir.path().join("written");
    std::fs::write(&path, vec![9; 2 * MIB as usize]).unwrap();
    let large = scene.dir.path().join("large");
    std::fs::write(&large, vec![7; 20 * MIB as usize]).unwrap();
    let _frames = raw.open_to_write(&path, Access::Share);
    let engine = &**scene.pager.own("a test").unwrap();
    let file = (0..64).filter_map(|slot| engine.file(slot)).find(|file| file.writable).unwrap();
    let busy = Arc::new(Busy(std::sync::Mutex::new(())));
    let number =
        file.frames().admit(Arc::clone(&busy) as Arc<dyn crate::engine::kernel::RemoteView>).unwrap();
    for page in 0..512 {
        let held = crate::engine::request::Request::new(&file, vec![page], false).unwrap();
        let held = held.shown_in(crate::engine::kernel::View::Remote(number)).wait().unwrap();
        if file.may_dirty(std::slice::from_ref(&(page..page + 1))) {
            file.grant(crate::engine::kernel::View::Remote(number), page..page + 1).unwrap();
        }
        drop(held);
    }
    assert!(file.unwritten() > MIB);
    let (end, is_over) = std::sync::mpsc::channel::<()>();
    let (begin, has_begun) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let _held = busy.0.lock().unwrap();
        begin.send(()).unwrap();
        let _ = is_over.recv_timeout(Duration::from_secs(30));
    });
    has_begun.recv().unwrap();
    let client = Pager::connect(scene.server.path()).unwrap();
    let options = MapOptions::new().strategy(Strategy::Pager).advice(Advice::Random);
    let map = options.pager(&client).open(&large).unwrap();
    let since = Instant::now();
    for _ in 0..2 {
        for at in (0..20 * MIB as usize).step_by(4096) {
            assert_eq!(map[at], 7);
        }
    }
    assert!(map.get(..MIB).is_ok());
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    end.send(()).unwrap();
    holder.join().unwrap();
    drop((map, client));
    crate::engine::write_back::flush(&file, 0..2 * MIB).unwrap();
    assert_eq!(file.unwritten(), 0);
    file.frames().dismiss(number);
    drop((file, raw));
    scene.settles();
}

/// Random requests of a client that has no shame: two files for reading, or two more that it writes, alone and beside others, their
/// views registered as they should be or not. Others read right bytes meanwhile, and nothing stays.
#[test]
fn a_client_of_random_requests_harms_nobody() {
    let Some(scene) = Scene::new() else { return };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(scene.serves());
                rounds += 1;
            }
            rounds
        });
        for seed in 0..6 {
            let mut state = seed;
            let (raw, uffd) = Raw::greeted(&scene);
            let mut lent = Vec::new();
            let kinds = [[Access::Read; 2], [Access::Write, Access::Share], [Access::Share, Access::Share]];
            for (index, access) in kinds[seed as usize % 3].into_iter().enumerate() {
                // Every second client that writes has registered a view without write protection.
                let for_writing = access.writes() && (seed < 3 || index > 0);
                let frames = if access.writes() {
                    let path = scene.dir.path().join(format!("written-{}", access as u8));
                    scene.write(&path);
                    raw.open_to_write(&path, access)
                } else {
                    raw.open(&scene).1
                };
                let capacity = rustix::fs::fstat(&frames).unwrap().st_size as u64;
                lent.push(LentFrames::new(frames, capacity, for_writing, Arc::clone(&uffd)).unwrap());
            }
            for _ in 0..300 {
                let mut draw = |below: u64| random(&mut state) % below;
                let start = [0, 4096, 5, MIB, u64::MAX][draw(5) as usize];
                let range = start..start.saturating_add([0, 1, 8192, MIB, u64::MAX][draw(5) as usize]);
                let file = draw(4) as u32;
                let address = match draw(3) {
                    0 => draw(u64::MAX),
                    n => lent[n as usize - 1].address(draw(2) == 1).unwrap() as u64,
                };
                let request = match draw(12) {
                    0 | 1 => Request::Show { file, checked: draw(2) == 1, address },
                    2 | 3 => Request::Pin {
                        file,
                        in_order: draw(2) == 1,
                        writes: draw(4) == 0,
                        ranges: vec![range],
                    },
                    4 => Request::Unpin { pin: draw(20) },
                    5 => Request::Prefetch { file, range },
                    6 => Request::Evict { file, range },
                    7 => Request::WillNeed { file, range },
                    8 => Request::Flush { file, range },
                    9 if draw(4) == 0 => Request::Resize { file, len: draw(2 * MIB) },
                    10 => Request::Acknowledge { file },
                    11 if draw(8) == 0 => Request::End { file },
                    _ if draw(20) == 0 => Request::Close { file },
                    _ => Request::Resident { file },
                };
                raw.send(&request.encode(draw(1 << 32) as u32), None);
                while let Ok(Some(_)) = wire::receive(&raw.0, false) {}
            }
            assert!(scene.serves());
            drop(raw);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(others.join().unwrap() > 0);
    });
    scene.settles();
}
