//! A pager server and its clients: shared frames, the budget, errors, and what remains when either side is killed.
#![allow(missing_docs)]

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clients::{Talking, as_role, hear, parts, say, until};
use common::{
    PAGE, Rng, Watchdog, block_on, child, child_as_nobody, contents, dies_by_sigbus, file_of, pager,
    public_scratch, require_userfaultfd, role, run_ok,
};
use mapwright::{
    Advice, Change, Durability, Error, FaultMode, FrameKind, Map, MapOptions, Pager, Server, Strategy,
};

const MIB: usize = 1 << 20;

fn served(pager: &Pager, path: &Path) -> Map {
    MapOptions::new().pager(pager).strategy(Strategy::Pager).open(path).unwrap()
}

/// Two processes read one file: it is read once, and is in memory once.
#[test]
fn clients_share_frames() {
    let this = "clients_share_frames";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = served(&pager, &path);
        assert!(map.strategy().reason().contains("served by the pager server"), "{}", map.strategy());
        assert!(*map == *std::fs::read(&path).unwrap());
        say("read");
        hear();
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 16 * MIB + 100);
    let (own, socket) = (pager(64 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let role = as_role("read", &socket, &path);
    let mut clients = [(); 3].map(|()| Talking::start(this, &role));
    clients.iter_mut().for_each(|client| assert_eq!(client.hear(), "read"));
    assert_eq!(server.clients(), 3);
    let stats = own.stats();
    let blocks = bytes.len().div_ceil(PAGE) as u64;
    assert_eq!(stats.fills, blocks, "each block is read once");
    assert!(stats.used_bytes < bytes.len() as u64 + (2 << 20), "{} bytes for one file", stats.used_bytes);
    // By the kernel's own count too: pages of shared memory of one client are those of all.
    let shared: u64 = clients.iter().map(|client| shared_kib(client.child.id())).sum();
    assert!(shared < 3 * 1024, "{shared} KiB of the clients are their own");
    clients.iter_mut().for_each(|client| client.say("end"));
    until("clients that end are forgotten", || server.clients() == 0);
    drop(server);
    assert!(!socket.exists(), "the socket is taken away");
}

/// The part of the frames that a process has alone: shared memory with no other process, in KiB.
fn shared_kib(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut inside = false;
    let mut total = 0;
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0].contains('-') && !words[0].ends_with(':') {
            inside = line.contains("memfd:mapwright");
        } else if inside && words[0].starts_with("Private_") {
            total += words[1].parse::<u64>().unwrap();
        }
    }
    total
}

/// A file larger than the budget, read by two processes at random and from end to end: right everywhere, and within the budget.
#[test]
fn eviction_reaches_every_client() {
    let this = "eviction_reaches_every_client";
    const LEN: usize = 24 * MIB;
    if let Some(role) = role() {
        let (part, pager, path) = parts(&role);
        let map = served(&pager, &path);
        let bytes = contents(LEN);
        let mut rng = Rng(part.len() as u64);
        for _ in 0..2 {
            for _ in 0..4000 {
                let page = rng.below((LEN / PAGE) as u64) as usize * PAGE;
                assert!(map[page..page + PAGE] == bytes[page..page + PAGE], "page at {page}");
            }
            assert!(*map == *bytes);
        }
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(60));
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), LEN);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let children: Vec<_> = ["one", "other"]
        .map(|part| child(this, &as_role(part, &socket, &path)))
        .into_iter()
        .map(|command| std::thread::spawn(move || run_ok(command)))
        .collect();
    let mut most = 0;
    while children.iter().any(|child| !child.is_finished()) {
        most = most.max(own.stats().used_bytes);
        most = most.max(frames_of(LEN as u64));
        std::thread::sleep(Duration::from_millis(1));
    }
    children.into_iter().for_each(|child| _ = child.join().unwrap());
    assert!(most <= 4 << 20, "{most} bytes of 4 MiB");
    assert!(own.stats().evictions > 3 * (LEN / PAGE) as u64, "{:?}", own.stats());
    drop(server);
}

/// Bytes of the frames of a file of this length, by what the kernel says of the files in memory that this process has.
fn frames_of(len: u64) -> u64 {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let frames = entries.flatten().filter_map(|entry| {
        let link = std::fs::read_link(entry.path()).ok()?;
        let metadata = std::fs::metadata(entry.path()).ok()?;
        let are_frames = link.to_string_lossy().starts_with("/memfd:mapwright") && metadata.len() == len;
        are_frames.then(|| metadata.blocks() * 512)
    });
    frames.max().unwrap_or(0)
}

/// All that a map can be asked, by a client in this process.
#[test]
fn the_whole_interface_works_through_a_server() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 2 * MIB + 10);
    let (own, socket) = (pager(16 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    assert_eq!(client.budget(), 16 << 20);
    let map = served(&client, &path);
    assert_eq!((map.len(), map.resident_bytes()), (bytes.len(), 0));
    assert!(map.get(5000..9000).unwrap()[..] == bytes[5000..9000]);
    let parts = map.get_many(&[0..10, 1_000_000..1_100_000, 5..5]).unwrap();
    assert!(
        parts[1][..] == bytes[1_000_000..1_100_000] && parts[0][..] == bytes[..10] && parts[2].is_empty()
    );
    drop(parts);
    let held = map.hold_many(&[0..10, 1_000_000..1_100_000, 5..5]).unwrap();
    map.evict(..).unwrap();
    assert!(map.resident_bytes() >= 100_000, "what is held stays");
    drop(held);
    until("what was held is given back", || map.evict(..).unwrap() + map.resident_bytes() == 0);
    let last = block_on(map.get_async(2 * MIB as u64..)).unwrap();
    assert!(last[..] == bytes[2 * MIB..]);
    assert_eq!(map.evict(2 * MIB as u64..).unwrap(), 0, "what is pinned stays");
    drop(last);
    until("the pin is given back", || map.evict(2 * MIB as u64..).unwrap() > 0);
    block_on(map.prefetch_async(0..MIB as u64)).unwrap();
    map.prefetch(..).unwrap();
    assert!(map.resident_bytes() >= bytes.len() as u64);
    assert_eq!(client.stats().fills, own.stats().fills);
    let mut copied = vec![0; 700_000];
    map.read_at(333, &mut copied).unwrap();
    assert!(copied[..] == bytes[333..700_333]);
    assert!(map.checked(|inside| inside == &bytes[..]).unwrap());
    map.evict(..).unwrap();
    assert!(*map == *bytes, "after eviction");
    assert!(map.checked(|inside| inside == &bytes[..]).unwrap());
    map.advise(Advice::Random).unwrap();
    map.will_need(..).unwrap();
    let part =
        MapOptions::new().pager(&client).strategy(Strategy::Pager).range(13..50_000).open(&path).unwrap();
    assert!(*part == bytes[13..50_000]);
    assert!(matches!(part.get(0..60_000), Err(Error::OutOfRange { .. })));
    // A system call that is handed an absent page, where the machine lets faults of the kernel be served.
    map.evict(..).unwrap();
    if !map.strategy().reason().contains("EFAULT") {
        let out = tempfile::tempfile().unwrap();
        // SAFETY: the slice is mapped, and the descriptor open.
        let wrote = unsafe { libc::write(out.as_raw_fd(), map[8192..].as_ptr().cast(), 10_000) };
        assert_eq!(wrote, 10_000);
    }
}

#[test]
fn what_a_server_can_not_do_is_said() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(16 << 20), dir.path().join("socket"));
    let refused = Pager::connect(&socket).unwrap_err();
    assert!(matches!(&refused, Error::Io { operation: "connect", .. }), "{refused}");
    std::fs::write(&socket, "no socket").unwrap();
    assert!(matches!(Server::bind(&own, &socket), Err(Error::Invalid { .. })));
    assert_eq!(std::fs::read(&socket).unwrap(), b"no socket", "nothing but a socket is replaced");
    std::fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()); // a socket that nobody listens on
    let server = Server::bind(&own, &socket).unwrap();
    let second = Server::bind(&own, &socket).unwrap_err();
    assert!(matches!(&second, Error::Locked { .. }), "{second}");
    let client = Pager::connect(&socket).unwrap();
    let options = || MapOptions::new().pager(&client);
    assert!(matches!(Server::bind(&client, dir.path().join("other")), Err(Error::Invalid { .. })));
    assert!(matches!(options().durability(Durability::Atomic).open_mut(&path), Err(Error::Invalid { .. })));
    assert!(matches!(options().fault_mode(FaultMode::InThread).open(&path), Err(Error::Invalid { .. })));
    assert!(matches!(options().frames(FrameKind::Moved).open(&path), Err(Error::Invalid { .. })));
    assert!(matches!(options().block_size(5000).open(&path), Err(Error::Invalid { .. })));
    assert!(matches!(options().open(dir.path()), Err(Error::NotMappable { .. })));
    assert!(matches!(options().open(dir.path().join("none")), Err(Error::Io { .. })));
    // The budget is the server's: a client may hold a quarter of it.
    let (large, _) = file_of(dir.path(), 8 * MIB);
    let map = served(&client, &large);
    let error = map.get(..).unwrap_err();
    assert!(matches!(error, Error::BudgetExhausted { budget: 0x100_0000, .. }), "{error}");
    let held = map.get(..3 * MIB as u64).unwrap();
    assert!(matches!(map.get(3 * MIB as u64..6 * MIB as u64), Err(Error::BudgetExhausted { .. })));
    drop(held);
    until("room comes back", || map.get(3 * MIB as u64..6 * MIB as u64).is_ok());
    drop(server);
}

/// A file that is cut under its readers: a typed error, with the client's own name for the file.
#[test]
fn a_failed_fill_is_an_error_of_whoever_asked() {
    let this = "a_failed_fill_is_an_error_of_whoever_asked";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = served(&pager, &path);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(PAGE as u64).unwrap();
        std::hint::black_box(map[MIB]);
        unreachable!("SIGBUS");
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 2 * MIB);
    let (own, socket) = (pager(16 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let text = dies_by_sigbus(child(this, &as_role("cut", &socket, &path)));
    assert!(text.contains("a slice was touched at a page that cannot be read; SIGBUS follows"), "{text}");
    assert!(text.contains("truncated from 2097152 to 4096"), "{text}");

    std::fs::write(&path, &bytes).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = served(&client, &path);
    assert_eq!(map[0], bytes[0]);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(PAGE as u64).unwrap();
    let truncated = |error: &Error| match error {
        Error::Changed { path: of, change, .. } => {
            assert_eq!(of, path.to_str().unwrap());
            assert_eq!(*change, Change::Truncated { was: 2 * MIB as u64, now: PAGE as u64 });
        }
        other => panic!("{other}"),
    };
    truncated(&map.get(MIB as u64..MIB as u64 + 1).unwrap_err());
    truncated(&map.prefetch(..).unwrap_err());
    let mut seen = 1;
    truncated(&map.checked(|inside| seen = inside[MIB]).unwrap_err());
    assert_eq!(seen, 0, "zeros inside the scope, which returns the error");
    truncated(&map.checked(|inside| inside[MIB]).unwrap_err());
    assert_eq!(map.checked(|inside| inside[0]).unwrap(), bytes[0], "a scope that meets nothing of it");
}

/// What a killed client held is free for others, and the server has as many descriptors and mappings as before.
#[test]
fn a_killed_client_leaves_nothing() {
    let this = "a_killed_client_leaves_nothing";
    let part = role();
    if let Some(role) = part.as_ref().filter(|part| part.starts_with("hold")) {
        let (_, pager, path) = parts(role);
        let map = served(&pager, &path);
        let _held = map.get(..MIB as u64 / 2).unwrap();
        let _read = map.checked(|inside| inside.iter().fold(0u8, |sum, byte| sum ^ byte)).unwrap();
        say("held");
        loop {
            // Killed at any time of a fault.
            map.evict(..).unwrap();
            std::hint::black_box(map.iter().step_by(PAGE).fold(0u8, |sum, byte| sum ^ byte));
        }
    }
    if part.is_none() {
        if require_userfaultfd() {
            run_ok(child(this, "alone")); // descriptors of other tests must not count
        }
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 2 * MIB);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    assert!(*served(&client, &path) == *bytes); // what is made once is there
    until("the file is closed", || own.stats().used_bytes == 0 && mappings() == 0);
    let before = (descriptors(), mappings());
    for round in 0..4 {
        let mut killed = Talking::start(this, &as_role("hold", &socket, &path));
        assert_eq!(killed.hear(), "held");
        std::thread::sleep(Duration::from_millis(10 * round));
        let map = served(&client, &path);
        assert!(own.stats().used_bytes > MIB as u64 / 2);
        killed.kill();
        until("it is forgotten", || server.clients() == 1);
        assert!(*map == *bytes, "the others go on");
        until("its pins are given back", || {
            map.evict(..).unwrap();
            map.resident_bytes() == 0
        });
        drop(map);
    }
    until("all is given back", || own.stats().used_bytes == 0);
    until("descriptors and mappings are those of before", || (descriptors(), mappings()) == before);
}

/// Descriptors of what a client brings and gets. Threads of the pager have others of their own, made as they are needed.
fn descriptors() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links =
        entries.filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string()));
    let kinds = ["memfd:mapwright", "userfaultfd", "socket:", "/file-"];
    links.filter(|link| kinds.iter().any(|kind| link.contains(kind))).count()
}

/// Mappings of frames.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:mapwright").count()
}

/// A killed server: what is shown can be read, everything else stops its clients by an error or by SIGBUS with a message.
#[test]
fn a_killed_server_is_never_zeros() {
    let this = "a_killed_server_is_never_zeros";
    if let Some(role) = role() {
        let mut parts_of = role.split('|');
        if parts_of.next() == Some("serve") {
            let own = pager(16 << 20);
            let _server = Server::bind(&own, parts_of.next().unwrap()).unwrap();
            say("ready");
            hear();
            return;
        }
        let (part, pager, path) = parts(&role);
        let bytes = std::fs::read(&path).unwrap();
        let map = served(&pager, &path);
        map.advise(Advice::Random).unwrap();
        assert_eq!((map[0], map.checked(|inside| inside[PAGE]).unwrap()), (bytes[0], bytes[PAGE]));
        say("mapped");
        hear(); // the server is dead now
        assert_eq!(map[1], bytes[1], "a page that is shown stays");
        match part.as_str() {
            "explicit" => {
                let error = map.get(MIB as u64..MIB as u64 + 10).unwrap_err();
                assert!(matches!(&error, Error::ServerLost { .. }), "{error}");
                assert!(matches!(map.prefetch(..), Err(Error::ServerLost { .. })));
                assert!(matches!(served_again(&pager, &path), Err(Error::ServerLost { .. })));
                let error = map.checked(|inside| inside[MIB]).unwrap_err();
                assert!(matches!(error, Error::ServerLost { .. }), "{error}");
                assert_eq!(pager.stats().fills, 0);
                drop(map);
                say("told");
            }
            _ => unreachable!("SIGBUS at {}", map[MIB]),
        }
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(60));
    for part in ["explicit", "slice"] {
        let dir = public_scratch();
        let (path, _) = file_of(dir.path(), 2 * MIB);
        let socket = dir.path().join("socket");
        let mut server = Talking::start(this, &format!("serve|{}|", socket.display()));
        assert_eq!(server.hear(), "ready");
        let role = as_role(part, &socket, &path);
        if part == "explicit" {
            let mut client = Talking::start(this, &role);
            assert_eq!(client.hear(), "mapped");
            server.kill();
            client.say("go on");
            assert_eq!(client.hear(), "told");
            continue;
        }
        // Its standard input ends when the server is dead, which lets it go on.
        let mut command = child(this, &role);
        let (reader, writer) = std::io::pipe().unwrap();
        let mut client = command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut from = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("mapped") {
            line.clear();
            assert!(from.read_line(&mut line).unwrap() > 0);
        }
        server.kill();
        drop((writer, command));
        let output = client.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(libc::SIGBUS), "{:?} {text}", output.status);
        assert!(text.contains("the pager server is gone"), "{text}");
    }
}

fn served_again(pager: &Pager, path: &Path) -> mapwright::Result<Map> {
    MapOptions::new().pager(pager).strategy(Strategy::Pager).open(path)
}

/// A server that ends while its clients are in the same process, as in a test suite: everything is let go.
#[test]
fn a_server_that_ends_lets_go_of_its_clients() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = served(&client, &path);
    assert!(*map == *bytes);
    drop(server);
    until("the loss is noticed", || matches!(map.get(..10), Err(Error::ServerLost { .. })));
    until("the server holds nothing for it", || own.stats().used_bytes == 0);
    // Once more, on the same path.
    let _server = Server::bind(&own, &socket).unwrap();
    let again = Pager::connect(&socket).unwrap();
    assert!(*served(&again, &path) == *bytes);
}

/// The socket is its user's: by its mode, and where that is changed by the user of the peer. And all works without privileges.
#[test]
fn users_are_kept_apart() {
    let this = "users_are_kept_apart";
    if let Some(role) = role() {
        let parts: Vec<&str> = role.split('|').collect();
        let (socket, file) = (Path::new(parts[1]), Path::new(parts[2]));
        match parts[0] {
            "kept out" => {
                let error = Pager::connect(socket).unwrap_err();
                assert_eq!(error.errno(), Some(libc::EACCES), "{error}");
            }
            "turned away" => {
                let error = Pager::connect(socket).unwrap_err();
                assert!(error.to_string().contains("clients run as the server's user"), "{error}");
            }
            _ => {
                let own = pager(4 << 20);
                let _server = Server::bind(&own, socket).unwrap();
                let client = Pager::connect(socket).unwrap();
                let map = served(&client, file);
                assert!(*map == *contents(6 * MIB));
                assert!(map.checked(|inside| inside == contents(6 * MIB)).unwrap());
                assert_eq!(map.get(..10).unwrap()[..], contents(10)[..]);
                say(map.strategy());
            }
        }
        return;
    }
    if !require_userfaultfd() || !common::require_root() {
        return;
    }
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), 6 * MIB);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let nobody =
        |part, socket: &Path| run_ok(child_as_nobody(this, &as_role(part, socket, &path), dir.path()));
    nobody("kept out", &socket);
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    nobody("turned away", &socket);
    drop(server);
    let theirs = dir.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    let text = nobody("alone", &theirs.join("socket"));
    assert!(text.contains("served by the pager server"), "{text}");
}

/// Whether this process's page tables show the first page of a slice.
fn is_shown(bytes: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let mut entry = [0; 8];
    let page = bytes.as_ptr() as u64 / PAGE as u64;
    std::fs::File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, page * 8).unwrap();
    u64::from_le_bytes(entry) >> 63 == 1
}

/// Many threads of one client and maps that come and go, at a budget of a few blocks.
#[test]
fn threads_of_a_client_do_not_disturb_each_other() {
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new("threads of a client", Duration::from_secs(60));
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 2 * MIB);
    let (own, socket) = (pager(256 << 10), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = served(&client, &path);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (map, bytes, client, path) = (&map, &bytes, &client, &path);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for round in 0..300 {
                    let page = rng.below((2 * MIB / PAGE) as u64) as usize * PAGE;
                    match round % 5 {
                        0 => {
                            let held = map.get(page as u64..(page + PAGE) as u64);
                            match held {
                                Ok(held) => {
                                    assert!(is_shown(&held), "page at {page} is pinned");
                                    assert!(held[..] == bytes[page..page + PAGE]);
                                    std::thread::yield_now();
                                    assert!(is_shown(&held), "page at {page} is pinned");
                                }
                                Err(Error::BudgetExhausted { .. }) => {} // the others hold it
                                Err(error) => panic!("{error}"),
                            }
                        }
                        1 if round % 50 == 1 => {
                            let own = served(client, path);
                            assert!(own[page..page + PAGE] == bytes[page..page + PAGE]);
                        }
                        2 => assert!(
                            map.checked(|inside| inside[page..page + PAGE] == bytes[page..page + PAGE])
                                .unwrap()
                        ),
                        _ => assert!(map[page..page + PAGE] == bytes[page..page + PAGE]),
                    }
                }
            });
        }
    });
}
