//! Real kills: a program that commits is ended by SIGKILL at random times, again and again, and what the file holds then is what
//! one commit left, not older than the last that it has said was done.
//!
//! `MAPWRIGHT_KILLS` is how often, `MAPWRIGHT_KILL_DIR` a folder on another file system.
#![allow(missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{PAGE, Rng, Watchdog, child, contents, pager, require_userfaultfd, role, scratch};
use mapwright::{Durability, MapMut, MapOptions};

const THIS: &str = "a_killed_program_leaves_what_a_commit_left";
const KILLS: u64 = 40;
const MOST: u64 = 120 * PAGE as u64;

fn open(path: &str) -> MapMut {
    // Far less than the larger transactions change, so that they spill.
    let pager = pager(256 << 10);
    MapOptions::new().pager(&pager).durability(Durability::Atomic).reserve(MOST).open_mut(path).unwrap()
}

/// What transaction `number` does: the same in the program and in the model.
fn transaction(number: u64, mut resize: impl FnMut(u64), mut write: impl FnMut(u64, &[u8])) {
    let mut rng = Rng(number);
    let mut len = MOST;
    if number.is_multiple_of(7) {
        len = PAGE as u64 + rng.below(MOST - PAGE as u64);
        resize(len);
        if rng.below(2) == 0 {
            len = MOST;
            resize(len);
        }
    } else {
        resize(MOST);
    }
    let writes = if number.is_multiple_of(5) { 100 } else { 1 + rng.below(6) };
    for _ in 0..writes {
        let n = 1 + rng.below(2 * PAGE as u64);
        let at = 8 + rng.below(len - 8);
        write(at, &rng.bytes(n.min(len - at) as usize));
    }
    write(0, &number.to_le_bytes());
}

fn number_in(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// The program: commits as fast as it can, and says so.
fn commit_until_killed(path: &str) {
    let mut map = open(path);
    let mut out = std::io::stdout();
    for number in number_in(&map) + 1.. {
        if number.is_multiple_of(6) {
            // Never to be seen.
            map[..].fill(0xee);
            map.resize(3 * PAGE as u64).unwrap();
            map.rollback().unwrap();
        }
        let view = number.is_multiple_of(4).then(|| map.snapshot().unwrap());
        let map = std::cell::RefCell::new(&mut map);
        transaction(
            number,
            |len| map.borrow_mut().resize(len).unwrap(),
            |at, bytes| {
                let map = &mut **map.borrow_mut();
                match at % 3 {
                    0 => map.write_at(at, bytes).unwrap(),
                    1 => map.overwrite(at, bytes).unwrap(),
                    _ => map[at as usize..at as usize + bytes.len()].copy_from_slice(bytes),
                }
            },
        );
        map.borrow().commit().unwrap();
        writeln!(out, "committed {number}").unwrap();
        out.flush().unwrap();
        drop(view);
    }
}

/// What the file should be after some transaction.
struct Model {
    number: u64,
    bytes: Vec<u8>,
}

impl Model {
    fn go_to(&mut self, number: u64) {
        while self.number < number {
            self.number += 1;
            let bytes = std::cell::RefCell::new(&mut self.bytes);
            transaction(
                self.number,
                |len| bytes.borrow_mut().resize(len as usize, 0),
                |at, new| bytes.borrow_mut()[at as usize..at as usize + new.len()].copy_from_slice(new),
            );
        }
    }
}

#[test]
fn a_killed_program_leaves_what_a_commit_left() {
    if !require_userfaultfd() {
        return;
    }
    if let Some(path) = role() {
        return commit_until_killed(&path);
    }
    let kills = std::env::var("MAPWRIGHT_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let dir = match std::env::var_os("MAPWRIGHT_KILL_DIR") {
        Some(dir) => tempfile::tempdir_in(PathBuf::from(dir)).unwrap(),
        None => scratch(),
    };
    let path = dir.path().join("data");
    let mut model = Model { number: 0, bytes: contents(MOST as usize) };
    model.bytes[..8].fill(0);
    std::fs::write(&path, &model.bytes).unwrap();
    let path = path.to_str().unwrap();
    let watchdog = Watchdog::new("kills", Duration::from_secs(60));
    let mut rng = Rng(7);
    let (mut acknowledged, mut looks, mut early) = (0, 0, 0);
    let since = Instant::now();
    for kill in 0..kills {
        watchdog.tick();
        let mut program = child(THIS, path).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let mut told = |line: &str| {
            // The harness of tests writes lines too, the first of ours behind the test's name.
            let number = line.rsplit("committed ").next().filter(|_| line.contains("committed "));
            acknowledged = number.map_or(acknowledged, |number| number.parse().unwrap());
        };
        // While it starts and recovers, or later.
        if kill % 3 > 0 {
            for line in lines.by_ref() {
                let line = line.unwrap();
                told(&line);
                if line.contains("committed ") {
                    break;
                }
            }
        } else {
            early += 1;
        }
        std::thread::sleep(Duration::from_micros(rng.below(80_000)));
        program.kill().unwrap();
        lines.map_while(Result::ok).for_each(|line| told(&line));
        let status = program.wait().unwrap();
        assert!(status.code().is_none(), "it ended by itself: {status:?}");
        if kill % 2 == 1 && kill + 1 < kills {
            continue; // the next one recovers it, or is killed while it does
        }
        looks += 1;
        let map = open(path);
        let number = number_in(&map);
        assert!(number >= acknowledged, "kill {kill}: {number}, and {acknowledged} was acknowledged");
        assert!(number <= acknowledged + 2, "kill {kill}: {number} after {acknowledged}");
        model.go_to(number);
        assert!(map[..] == model.bytes[..], "kill {kill}: not what commit {number} left");
        drop(map);
        assert!(std::fs::read(path).unwrap() == model.bytes, "kill {kill}: the file after closing");
        acknowledged = number;
    }
    println!(
        "{kills} kills, {early} of them early, {looks} looks, {acknowledged} commits, {:.1?}",
        since.elapsed()
    );
    assert!(acknowledged > kills / 2, "the program did not get to commit");
}
