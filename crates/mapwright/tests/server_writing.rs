//! Clients of a pager server that write: one alone, many at once, killed ones, and what is left when the server is killed.
#![allow(missing_docs)]

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clients::{Talking, as_role, hear, parts, say, until};
use common::{PAGE, Rng, Watchdog, child, file_of, pager, public_scratch, require_userfaultfd, role, run_ok};
use mapwright::{Durability, Error, MapOptions, Pager, Server, SharedMapMut, Strategy};

const MIB: usize = 1 << 20;

fn options(pager: &Pager) -> MapOptions {
    MapOptions::new().pager(pager).strategy(Strategy::Pager)
}

/// A word of a file that others write too.
fn word(map: &SharedMapMut, index: usize) -> &AtomicU64 {
    assert!((index + 1) * 8 <= map.len());
    // SAFETY: inside the map.
    let at = unsafe { map.as_ptr().cast::<u64>().add(index) };
    // SAFETY: the map lives as long as the result; nobody has a slice, and all reach these words by atomics.
    unsafe { AtomicU64::from_ptr(at) }
}

fn words(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Which words a process counts in: any page, but words that are its own.
fn own_words(process: u64, words: usize) -> impl Iterator<Item = usize> {
    let mut rng = Rng(process + 1);
    std::iter::repeat_with(move || {
        let page = rng.below((words / 512) as u64) as usize;
        page * 512 + rng.below(128) as usize * 4 + process as usize
    })
}

/// Several processes count in the same pages, of a file much larger than the budget: every count arrives.
#[test]
fn what_many_processes_write_is_in_the_file() {
    let this = "what_many_processes_write_is_in_the_file";
    const LEN: usize = 12 * MIB;
    const COUNTS: usize = 30_000;
    if let Some(role) = role() {
        let (process, pager, path) = parts(&role);
        let map = options(&pager).open_shared(&path).unwrap();
        for (done, index) in own_words(process.parse().unwrap(), LEN / 8).take(COUNTS).enumerate() {
            word(&map, index).fetch_add(1, Ordering::Relaxed);
            if done % 5000 == 0 {
                map.flush_range(..).unwrap();
            }
        }
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(120));
    let dir = public_scratch();
    let path = dir.path().join("counters");
    std::fs::write(&path, vec![0; LEN]).unwrap();
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let children: Vec<_> = (0..4)
        .map(|process| child(this, &as_role(&process.to_string(), &socket, &path)))
        .map(|command| std::thread::spawn(move || run_ok(command)))
        .collect();
    let mut most = 0;
    while children.iter().any(|child| !child.is_finished()) {
        most = most.max(own.stats().used_bytes);
        std::thread::sleep(Duration::from_millis(1));
    }
    children.into_iter().for_each(|child| _ = child.join().unwrap());
    until("the file is closed", || own.stats().used_bytes == 0);
    let mut expected = vec![0; LEN / 8];
    (0..4).for_each(|process| {
        own_words(process, LEN / 8).take(COUNTS).for_each(|index| expected[index] += 1);
    });
    let found = words(&path);
    let wrong = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    assert_eq!(wrong, 0, "words that are not what was counted");
    assert!(most <= 4 << 20, "{most} bytes of 4 MiB");
    let stats = own.stats();
    assert!(stats.evictions > 1000 && stats.write_backs > 100, "{stats:?}");
    drop(server);
}

/// Two processes hand a number to and fro, while its page is evicted all the time.
#[test]
fn a_write_is_seen_by_others_at_once() {
    let this = "a_write_is_seen_by_others_at_once";
    const ROUNDS: u64 = 300;
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = options(&pager).open_shared(&path).unwrap();
        for round in 0..ROUNDS {
            until("the other's turn", || word(&map, 5).load(Ordering::Acquire) == 2 * round + 1);
            word(&map, 5).store(2 * round + 2, Ordering::Release);
        }
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let path = dir.path().join("number");
    std::fs::write(&path, vec![0; 4 * PAGE]).unwrap();
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = options(&client).open_shared(&path).unwrap();
    let command = child(this, &as_role("other", &socket, &path));
    let other = std::thread::spawn(move || run_ok(command));
    for round in 0..ROUNDS {
        word(&map, 5).store(2 * round + 1, Ordering::Release);
        if round % 3 == 0 {
            map.flush_range(..).unwrap();
            map.evict(..).unwrap();
        }
        until("the other's answer", || word(&map, 5).load(Ordering::Acquire) == 2 * round + 2);
    }
    other.join().unwrap();
    map.close().unwrap();
    assert_eq!(words(&path)[5], 2 * ROUNDS);
}

/// A writer that is killed, at any time: what it stored is in the file, once the server has let go of it.
#[test]
fn a_killed_writer_loses_nothing() {
    let this = "a_killed_writer_loses_nothing";
    const PAGES: usize = 1024;
    let page_of = |step: u64| (step * 7 % PAGES as u64) as usize;
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = options(&pager).open_shared(&path).unwrap();
        let first = 1 + (0..PAGES).map(|page| word(&map, page * 512).load(Ordering::Relaxed)).max().unwrap();
        for step in first.. {
            word(&map, page_of(step) * 512).store(step, Ordering::Relaxed);
            if step % 64 == 0 {
                say(step);
            }
        }
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(120));
    let dir = public_scratch();
    let path = dir.path().join("steps");
    std::fs::write(&path, vec![0; PAGES * PAGE]).unwrap();
    let (own, socket) = (pager(2 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let mut said = 0u64;
    for round in 0..8 {
        let mut writer = Talking::start(this, &as_role("write", &socket, &path));
        for _ in 0..20 + 17 * round {
            said = writer.hear().parse().unwrap();
        }
        writer.kill();
        until("it is forgotten", || server.clients() == 0 && own.stats().used_bytes == 0);
        let found = words(&path);
        for step in (said + 1).saturating_sub(PAGES as u64).max(1)..=said {
            let page = page_of(step);
            assert!(found[page * 512] >= step, "page {page} has {}, not {step}", found[page * 512]);
        }
    }
}

/// A map for writing alone does what one of this process does.
#[test]
fn a_writer_alone_has_the_whole_interface() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, mut bytes) = file_of(dir.path(), 2 * MIB + 10);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let mut map = options(&client).open_mut(&path).unwrap();
    assert!(*map == *bytes);
    map[5000..5005].copy_from_slice(b"hello");
    bytes[5000..5005].copy_from_slice(b"hello");
    let long = vec![7; 700_000];
    map.write_at(1_000_001, &long).unwrap();
    map.overwrite(300_000, &long[..10_000]).unwrap();
    bytes[1_000_001..1_700_001].copy_from_slice(&long);
    bytes[300_000..310_000].copy_from_slice(&long[..10_000]);
    assert!(std::fs::read(&path).unwrap() != bytes, "nothing is written before it is told");
    map.flush().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    map.evict(..).unwrap();
    assert!(*map == *bytes, "after eviction");
    map.checked_mut(|inside| inside[2 * MIB] = 1).unwrap();
    map[2 * MIB + 1] = 2;
    (bytes[2 * MIB], bytes[2 * MIB + 1]) = (1, 2);
    assert!(map.checked(|inside| inside == &bytes[..]).unwrap());
    map.append(b"and more").unwrap();
    bytes.extend(b"and more");
    map.resize(MIB as u64 + 3).unwrap();
    bytes.truncate(MIB + 3);
    map.resize(MIB as u64 + 5000).unwrap();
    bytes.resize(MIB + 5000, 0);
    assert!(*map == *bytes, "zeros where it was cut");
    // Nobody else has it meanwhile.
    for other in [options(&client).open_mut(&path).err(), options(&client).open(&path).err()] {
        assert!(matches!(other, Some(Error::Locked { .. })), "{other:?}");
    }
    assert!(matches!(options(&client).open_shared(&path), Err(Error::Locked { .. })));
    assert!(matches!(MapOptions::new().open_mut(&path), Err(Error::Locked { .. })));
    map.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    // It is free again at once, and a drop flushes.
    for round in 0..20u8 {
        let mut map = options(&client).open_mut(&path).unwrap();
        map[100] = round;
        drop(map);
        assert_eq!(std::fs::read(&path).unwrap()[100], round);
        let map = options(&client).open(&path).unwrap();
        assert_eq!(map[100], round);
    }
    for durability in [Durability::Atomic, Durability::None] {
        let refused = options(&client).durability(durability).open_mut(&path);
        assert!(matches!(refused, Err(Error::Invalid { .. })));
    }
    let shared = options(&client).open_shared(&path).unwrap();
    let mut again = options(&client).open_shared(&path).unwrap();
    assert!(matches!(again.resize(5), Err(Error::Invalid { .. })));
    assert!(matches!(options(&client).block_size(65536).open_shared(&path), Err(Error::Locked { .. })));
    shared.shared().write_at(100, b"by one").unwrap();
    let mut read = [0; 6];
    again.read_at(100, &mut read).unwrap();
    assert_eq!(&read, b"by one");
    drop(shared);
    again.close().unwrap();
    assert_eq!(&std::fs::read(&path).unwrap()[100..106], b"by one");
}

/// The server is killed: what was flushed is in the file, and whoever flushes what was not is told.
#[test]
fn a_killed_server_takes_what_was_not_flushed_with_it() {
    let this = "a_killed_server_takes_what_was_not_flushed_with_it";
    if let Some(role) = role() {
        let own = pager(16 << 20);
        let _server = Server::bind(&own, role).unwrap();
        say("ready");
        hear();
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, mut bytes) = file_of(dir.path(), MIB);
    let socket = dir.path().join("socket");
    let mut server = Talking::start(this, socket.to_str().unwrap());
    assert_eq!(server.hear(), "ready");
    let client = Pager::connect(&socket).unwrap();
    let mut map = options(&client).open_mut(&path).unwrap();
    map[..5].copy_from_slice(b"first");
    bytes[..5].copy_from_slice(b"first");
    map.flush().unwrap();
    map[..5].copy_from_slice(b"later");
    server.kill();
    assert!(matches!(map.flush(), Err(Error::ServerLost { .. })));
    assert!(matches!(map.write_at(500_000, b"x"), Err(Error::ServerLost { .. })));
    assert!(matches!(map.checked_mut(|inside| inside[600_000] = 1), Err(Error::ServerLost { .. })));
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert!(matches!(map.close(), Err(Error::ServerLost { .. })));
}

/// Threads of one client that copy more at once than it may hold pinned wait for each other.
#[test]
fn copies_of_many_threads_wait_for_each_other() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), 2 * MIB + 77);
    let (own, socket) = (pager(512 << 10), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = options(&client).open_shared(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut read = vec![0; bytes.len() - 5];
                map.read_at(5, &mut read).unwrap();
                assert!(read == bytes[5..]);
                map.shared().write_at(5, &read).unwrap();
            });
        }
    });
    map.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// One who shares a file leaves it after a failure: what it wrote is in the file all the same, and the others hear of the failure.
#[test]
fn who_leaves_does_not_take_the_failure_along() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let [one, other] = [(); 2].map(|()| Pager::connect(&socket).unwrap());
    let leaves = options(&one).open_shared(&path).unwrap();
    let stays = options(&other).open_shared(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    leaves.shared().write_at(5000, b"hello").unwrap();
    file.set_len(4096).unwrap();
    assert!(matches!(leaves.flush_range(..), Err(Error::Changed { .. })));
    file.set_len(bytes.len() as u64).unwrap();
    drop((leaves, one));
    until("it is written", || std::fs::read(&path).unwrap()[5000..5005] == *b"hello");
    assert!(matches!(stays.flush_range(..), Err(Error::Latched { .. })));
    assert!(matches!(stays.acknowledge_error(), Some(Error::Changed { .. })));
    stays.close().unwrap();
}

/// A file that another process cuts: the flush says so, later ones that it was said, and writing goes on once it is mended.
#[test]
fn a_file_that_is_cut_by_others_fails_its_flushes() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, mut bytes) = file_of(dir.path(), MIB + 10);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let first = options(&client).block_size(16384).open_shared(&path).unwrap();
    let second = options(&client).block_size(16384).open_shared(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    first.shared().write_at(5000, b"hello").unwrap();
    file.set_len(4096).unwrap();
    assert!(matches!(first.flush_range(..), Err(Error::Changed { .. })));
    assert!(matches!(second.flush_range(..), Err(Error::Latched { .. })));
    assert!(matches!(second.read_at(500_000, &mut [0; 5]), Err(Error::Changed { .. })));
    // In a checked scope zeros, and the error; what is written there is dropped.
    let wrote = second.checked(|start, len| {
        assert_eq!(len, bytes.len());
        let at = |index: usize| start.wrapping_add(index).cast_mut();
        // SAFETY: inside the view of the scope.
        unsafe { at(600_000).write_volatile(9) };
        // SAFETY: as above.
        unsafe { at(5000).read_volatile() }
    });
    assert!(matches!(wrote, Err(Error::Changed { .. })), "{wrote:?}");
    std::fs::write(&path, &bytes).unwrap();
    bytes[5000..5005].copy_from_slice(b"hello");
    let seen = second.checked(|start, len| {
        // SAFETY: the view of the scope; nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
    });
    assert!(seen.unwrap() == bytes, "no zeros stay, and no failure around where they were");
    assert!(matches!(second.acknowledge_error(), Some(Error::Changed { .. })));
    assert!(second.acknowledge_error().is_none() && first.acknowledge_error().is_none());
    second.shared().write_at(600_000, b"x").unwrap();
    bytes[600_000] = b'x';
    first.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    drop((second, client));
    until("all is given back", || own.stats().used_bytes == 0 && server.clients() == 0);
}

/// A client that is stopped with pages granted keeps nobody waiting: others flush, are served, and see what it wrote.
#[test]
fn a_stopped_writer_keeps_nobody_waiting() {
    let this = "a_stopped_writer_keeps_nobody_waiting";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = options(&pager).open_shared(&path).unwrap();
        (0..256).for_each(|page| word(&map, page * 512).store(7, Ordering::Relaxed));
        say("written");
        for step in 8.. {
            (0..256).for_each(|page| word(&map, page * 512).store(step, Ordering::Relaxed));
        }
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(60));
    let dir = public_scratch();
    let path = dir.path().join("stopped");
    std::fs::write(&path, vec![0; 4 * MIB]).unwrap();
    let (own, socket) = (pager(2 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let mut writer = Talking::start(this, &as_role("write", &socket, &path));
    assert_eq!(writer.hear(), "written");
    let client = Pager::connect(&socket).unwrap();
    let map = options(&client).open_shared(&path).unwrap();
    for _ in 0..20 {
        let pid = rustix::process::Pid::from_child(&writer.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        map.flush_range(..).unwrap();
        // All of the budget comes and goes, what the stopped one was granted too.
        let now: Vec<u64> = (0..1024).map(|page| word(&map, page * 512).load(Ordering::Relaxed)).collect();
        map.flush_range(..).unwrap();
        let found = words(&path);
        assert!((0..1024).all(|page| found[page * 512] == now[page]), "what it wrote is in the file");
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    writer.kill();
    until("it is forgotten", || server.clients() == 1);
    map.close().unwrap();
}

/// The server is dropped: what its clients wrote is in the files when that is done, and they are told that it is gone.
#[test]
fn a_server_that_is_dropped_has_written_everything() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let files: Vec<_> = (0..20).map(|index| file_of(dir.path(), 100_001 + index)).collect();
    let maps: Vec<_> = files.iter().map(|(path, _)| options(&client).open_shared(path).unwrap()).collect();
    maps.iter().for_each(|map| map.shared().write_at(100_000, b"x").unwrap());
    drop(server);
    for (path, mut bytes) in files {
        bytes[100_000] = b'x';
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
    assert_eq!(own.stats().used_bytes, 0);
    for map in maps {
        assert!(matches!(map.close(), Err(Error::ServerLost { .. })));
    }
}

/// Parts of files at odd places, and files without a byte.
#[test]
fn parts_and_empty_files_are_written() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, mut bytes) = file_of(dir.path(), 300_003);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let mut part = options(&client).block_size(65536).range(4099..300_001).open_mut(&path).unwrap();
    assert!(*part == bytes[4099..300_001]);
    part[0] = 1;
    *part.last_mut().unwrap() = 2;
    part.write_at(100_000, &[3; 70_000]).unwrap();
    (bytes[4099], bytes[300_000]) = (1, 2);
    bytes[104_099..174_099].fill(3);
    assert!(matches!(part.resize(5), Err(Error::Invalid { .. })));
    assert!(matches!(part.write_at(295_902, b"x"), Err(Error::OutOfRange { .. })));
    part.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    let path = dir.path().join("empty");
    std::fs::write(&path, b"").unwrap();
    let shared = options(&client).open_shared(&path).unwrap();
    assert!(shared.is_empty() && shared.shared().write_at(0, b"x").is_err());
    shared.close().unwrap();
    let mut map = options(&client).reserve(10_000).open_mut(&path).unwrap();
    map.append(&[5; 9_000]).unwrap();
    map.resize(0).unwrap();
    map.resize(12_288).unwrap();
    assert!(map.iter().all(|byte| *byte == 0), "zeros where it was cut");
    map[12_287] = 6;
    assert!(matches!(map.append(b"x"), Err(Error::Invalid { .. })), "all that is reserved, in whole pages");
    assert_eq!((map.len(), map[12_287]), (12_288, 6));
    map.close().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [&[0; 12_287][..], &[6]].concat());
}

/// A child that a client has made by fork(2) keeps its socket open: the end of the client is seen all the same.
#[test]
fn a_killed_writer_that_has_forked_is_forgotten() {
    let this = "a_killed_writer_that_has_forked_is_forgotten";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let map = options(&pager).open_shared(&path).unwrap();
        map.shared().write_at(0, b"by one that is killed").unwrap();
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: no preconditions.
            unsafe { libc::sleep(60) };
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        say(child);
        hear();
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(4 << 20), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let mut writer = Talking::start(this, &as_role("write", &socket, &path));
    let child: i32 = writer.hear().parse().unwrap();
    writer.kill();
    until("it is forgotten", || server.clients() == 0 && own.stats().used_bytes == 0);
    // SAFETY: a signal to the child of ours that sleeps.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0, "it was there still");
    assert!(std::fs::read(&path).unwrap().starts_with(b"by one that is killed"));
}
