//! What one client of a pager server may do to others, and what it may not: files that can't be written, clients that are
//! stopped, killed, or take back what they lent.
#![allow(missing_docs)]

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use clients::{Talking, as_role, parts, say, until};
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
