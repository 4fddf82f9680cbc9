//! What one client of a pager server may do to others, and what it may not: files that can't be written, clients that are
//! stopped, killed, or take back what they lent.
#![allow(missing_docs)]

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clients::{Talking, as_role, hear, parts, say, until};
use common::{
    PAGE, Watchdog, child, dies_by_sigbus, file_of, pager, public_scratch, require_userfaultfd, role,
};
use mapwright::{Error, MapOptions, Pager, Server, Strategy};

const MIB: usize = 1 << 20;
const BUDGET: u64 = 4 << 20;

fn options(pager: &Pager) -> MapOptions {
    MapOptions::new().pager(pager).strategy(Strategy::Pager)
}

fn signal(of: &Talking, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(&of.child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Cuts a file, so that it can't be written back, and gives it its length back.
fn cut(path: &Path) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(PAGE as u64).unwrap();
}

fn mend(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

/// A client writes a file that can't be written back until it is refused: by then it has a part of the budget, and others go on
/// reading and writing.
#[test]
fn a_file_that_cannot_be_written_takes_a_part_of_the_budget() {
    let this = "a_file_that_cannot_be_written_takes_a_part_of_the_budget";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let mut map = options(&pager).open_mut(&path).unwrap();
        assert_eq!(map.iter().step_by(PAGE).filter(|byte| **byte == 3).count(), 2, "all of it is read");
        cut(&path);
        for page in 0.. {
            map[page * PAGE + 8] = 3;
            println!("written: {page}");
        }
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(60));
    let dir = public_scratch();
    let (bad, bad_bytes) = file_of(dir.path(), 2 * MIB);
    let (good, good_bytes) = file_of(dir.path(), 9 * MIB);
    let (other, mut other_bytes) = file_of(dir.path(), 8 * MIB);
    let (own, socket) = (pager(BUDGET), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    // By a slice it is SIGBUS, at a page that is there.
    let text = dies_by_sigbus(child(this, &as_role("write", &socket, &bad)));
    assert!(text.contains("was written to at a page that cannot be; SIGBUS follows"), "{text}");
    let written = text.lines().filter(|line| line.starts_with("written: ")).count();
    assert!((100..300).contains(&written), "{written} pages of a budget of 1024");
    until("it is forgotten", || server.clients() == 0 && own.stats().used_bytes == 0);
    mend(&bad, &bad_bytes);

    let [spoils, reads] = [(); 2].map(|()| Pager::connect(&socket).unwrap());
    let map = options(&spoils).open_shared(&bad).unwrap();
    map.read_at(0, &mut vec![0; 2 * MIB]).unwrap();
    cut(&bad);
    let write = |page: usize| map.shared().write_at((page * PAGE + 8) as u64, b"dirty");
    let refused = (0..512).find_map(|page| write(page).err().map(|error| (page, error)));
    let (written, error) = refused.expect("it may write as much as it likes");
    assert!((100..300).contains(&written), "{written} pages of a budget of 1024");
    assert!(matches!(error, Error::Changed { .. }), "its own error: {error:?}");
    let since = Instant::now();
    let read = options(&reads).open(&good).unwrap();
    let mut all = vec![0; good_bytes.len()];
    read.read_at(0, &mut all).unwrap();
    assert!(all == good_bytes);
    assert!((0..good_bytes.len()).step_by(PAGE).all(|at| read[at] == good_bytes[at]));
    let mut writes = options(&reads).open_mut(&other).unwrap();
    for at in (0..8 * MIB).step_by(PAGE) {
        writes[at + 9] = 5;
        other_bytes[at + 9] = 5;
    }
    writes.write_at(17, &[6; 100_000]).unwrap();
    other_bytes[17..100_017].fill(6);
    writes.close().unwrap();
    assert!(std::fs::read(&other).unwrap() == other_bytes);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    // Once the cause is gone nothing was lost.
    mend(&bad, &bad_bytes);
    assert!(matches!(map.acknowledge_error(), Some(Error::Changed { .. })));
    write(written).unwrap();
    map.close().unwrap();
    let found = std::fs::read(&bad).unwrap();
    assert!((0..=written).all(|page| found[page * PAGE + 8..].starts_with(b"dirty")));
}

/// A client that is stopped after it has written: those who use other files get all of the budget, and what it wrote is written back.
#[test]
fn a_stopped_client_keeps_no_other_file_waiting() {
    let this = "a_stopped_client_keeps_no_other_file_waiting";
    if let Some(role) = role() {
        let (_, pager, path) = parts(&role);
        let mut map = options(&pager).open_mut(&path).unwrap();
        (0..2 * MIB).step_by(PAGE).for_each(|at| map[at + 8] = 3);
        say("written");
        loop {
            (0..2 * MIB).step_by(PAGE).for_each(|at| map[at + 8] ^= 3);
        }
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(60));
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), 2 * MIB);
    let (other, bytes) = file_of(dir.path(), 8 * MIB);
    let (own, socket) = (pager(BUDGET), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let mut writer = Talking::start(this, &as_role("write", &socket, &path));
    assert_eq!(writer.hear(), "written");
    let client = Pager::connect(&socket).unwrap();
    for round in 0..10 {
        signal(&writer, rustix::process::Signal::STOP);
        let map = options(&client).open(&other).unwrap();
        assert!(*map == *bytes, "round {round}");
        drop(map);
        signal(&writer, rustix::process::Signal::CONT);
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&writer, rustix::process::Signal::STOP);
    writer.kill();
    until("it is forgotten", || server.clients() == 1);
}

/// A client that shares a file gives back memory that others have written or read: they read the file, hear that something is lost,
/// and nothing is written in its place.
#[test]
fn pages_that_a_client_gives_back_are_read_again() {
    const LEN: usize = 269 * PAGE;
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), LEN);
    let (own, socket) = (pager(BUDGET), dir.path().join("socket"));
    let server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let map = options(&client).open_shared(&path).unwrap();
    // What any client has that may write the file: known by its size.
    let is_lent = |fd: &std::fs::File| fd.metadata().is_ok_and(|meta| meta.len() == LEN as u64);
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let memory = fds.filter(|fd| {
        std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with("/memfd:mapwright (deleted)"))
    });
    let open = |path| std::fs::File::options().read(true).write(true).open(path);
    let frames = memory.filter_map(|fd| open(fd.path()).ok()).find(is_lent).expect("it is lent");
    let give_back = |range: std::ops::Range<usize>| {
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let (start, len) = (range.start as u64, range.len() as u64);
        rustix::fs::fallocate(&frames, punch, start, len).unwrap();
    };
    let byte = |at: usize| {
        assert!(at < LEN);
        // SAFETY: inside the map.
        let at = unsafe { map.as_ptr().add(at) };
        // SAFETY: the map lives longer; nobody has a slice, and all reach these bytes by atomics or copies.
        unsafe { AtomicU8::from_ptr(at) }
    };
    let load = |at: usize| byte(at).load(Ordering::Relaxed);
    let store = |at: usize, value| byte(at).store(value, Ordering::Relaxed);
    let all_is_there = || (0..LEN).step_by(PAGE).all(|at| load(at) == bytes[at]);
    assert!(all_is_there());
    give_back(0..LEN);
    assert!(all_is_there(), "what was read only");
    give_back(0..LEN);
    let mut copy = vec![0; 50_000];
    map.read_at(3000, &mut copy).unwrap();
    assert!(copy == bytes[3000..53_000], "by a copy");
    give_back(0..LEN);
    store(5 * PAGE, 99);
    map.shared().write_at(70_000, b"stays").unwrap();
    map.flush_range(..).unwrap();
    let mut expected = bytes.clone();
    expected[5 * PAGE] = 99;
    expected[70_000..70_005].copy_from_slice(b"stays");
    assert!(std::fs::read(&path).unwrap() == expected, "a write to a page that was given back is no loss");
    store(8 * PAGE, 98);
    store(9 * PAGE, 97);
    expected[9 * PAGE] = 97;
    give_back(8 * PAGE..9 * PAGE);
    let error = map.flush_range(..).unwrap_err();
    let told = matches!(&error, Error::Io { operation: "load a frame", offset: 32768, len: 4096, .. });
    assert!(told, "{error:?}");
    assert!(map.acknowledge_error().is_some());
    map.flush_range(..).unwrap();
    assert!(std::fs::read(&path).unwrap() == expected, "what is lost is as it was, the rest is written");
    assert_eq!((load(8 * PAGE), load(9 * PAGE)), (bytes[8 * PAGE], 97));
    map.close().unwrap();
    drop(client);
    until("all is given back", || own.stats().used_bytes == 0 && server.clients() == 0);
}

/// A client that cuts off what it holds itself hears so at once: it would wait for itself.
#[test]
fn a_length_that_cuts_off_what_is_held_is_refused() {
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, bytes) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(BUDGET), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    let mut map = options(&client).open_mut(&path).unwrap().into_shared();
    let page = PAGE as u64;
    let held = map.hold_many(&[3 * page..5 * page, 200 * page..201 * page]).unwrap();
    let since = Instant::now();
    for (len, blocks) in [(5 * page - 1, 1), (4 * page, 2), (3 * page + 1, 2), (0, 3), (201 * page - 1, 0)] {
        let refused = map.resize(len).map_err(|error| error.to_string());
        match blocks {
            0 => refused.unwrap(),
            _ => assert!(refused.as_ref().unwrap_err().contains("held: drop"), "{len}: {refused:?}"),
        }
    }
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!(map.len() as u64, 201 * page - 1);
    drop(held);
    map.resize(3).unwrap();
    map.close().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes[..3]);
}

/// A client is killed, and its file opened at once by another: it is let go first, whatever that takes.
#[test]
fn a_file_of_a_killed_client_is_open_to_others_at_once() {
    let this = "a_file_of_a_killed_client_is_open_to_others_at_once";
    if let Some(role) = role() {
        let (part, pager, path) = parts(&role);
        let mut map = options(&pager).open_mut(&path).unwrap();
        map[0] = part.parse().unwrap();
        map[MIB - 1] = map[0];
        say("written");
        hear();
        return;
    }
    if !require_userfaultfd() {
        return;
    }
    let dir = public_scratch();
    let (path, _) = file_of(dir.path(), MIB);
    let (own, socket) = (pager(BUDGET), dir.path().join("socket"));
    let _server = Server::bind(&own, &socket).unwrap();
    let client = Pager::connect(&socket).unwrap();
    for round in 0..24 {
        let mut writer = Talking::start(this, &as_role(&round.to_string(), &socket, &path));
        assert_eq!(writer.hear(), "written");
        assert!(matches!(options(&client).open(&path), Err(Error::Locked { .. })), "it is alive");
        writer.kill();
        if round % 2 == 0 {
            let map = options(&client).open_mut(&path).unwrap();
            assert_eq!((map[0], map[MIB - 1]), (round, round));
        } else {
            let map = options(&client).open(&path).unwrap();
            assert_eq!((map[0], map[MIB - 1]), (round, round));
        }
    }
}
