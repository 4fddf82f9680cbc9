//! Connections that send rubbish: messages with bytes changed, cut, or made up, with descriptors or without, before a greeting and
//! after. Each may end its own connection; the server and another client go on. `MAPWRIGHT_RUBBISH_SEEDS` runs more of them.

use std::io::pipe;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::messages_tests::{random, requests};
use super::{MIB, Raw, Scene, open_as, open_request};
use crate::remote::protocol::{Access, Request};
use crate::remote::server::socket;
use crate::remote::wire;
use crate::{MapOptions, Pager, Strategy};

/// Messages of one connection, at most.
const MESSAGES: usize = 60;

/// Counts panics of the threads that serve, from here on.
fn count_panics() -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (told, before) = (Arc::clone(&count), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("mapwright")) {
            told.fetch_add(1, Ordering::SeqCst);
        }
        before(panic);
    }));
    count
}

/// A message that makes sense as such, whatever it says; rarely one that does not, and ends the connection.
fn message(samples: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    loop {
        let bytes = changed(samples, state);
        if random(state).is_multiple_of(120) || Request::decode(&bytes).is_ok() {
            return bytes;
        }
    }
}

/// A message that is nearly one, or none at all.
fn changed(samples: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    let mut draw = |below: usize| random(state) as usize % below.max(1);
    let mut bytes = samples[draw(samples.len())].clone();
    match draw(8) {
        0 => (0..draw(200)).map(|_| draw(256) as u8).collect(),
        1 => {
            bytes.truncate(draw(bytes.len() + 1));
            bytes
        }
        2 => {
            bytes.extend((0..draw(40)).map(|_| draw(256) as u8));
            bytes
        }
        3 => vec![draw(256) as u8; draw(40 << 10)],
        4 => bytes,
        _ => {
            for _ in 0..1 + draw(3) {
                let at = draw(bytes.len());
                // Most numbers that mean something are small.
                bytes[at] = [0, 1, 2, 255, draw(256) as u8][draw(5)];
            }
            bytes
        }
    }
}

#[test]
fn rubbish_ends_its_own_connection_alone() {
    let Some(scene) = Scene::new() else { return };
    let panics = count_panics();
    let seeds = std::env::var("MAPWRIGHT_RUBBISH_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    // All but the greeting, which comes once.
    let mut samples: Vec<Vec<u8>> = requests().iter().skip(1).map(|request| request.encode(3)).collect();
    // More of what opens a file, and of what reaches it then.
    samples.extend([Access::Read, Access::Write, Access::Share].map(|access| open_as(access).encode(2)));
    for file in [1, 2] {
        let ranges = vec![0..1, 4096..MIB];
        samples.extend([
            Request::Show { file, checked: false, address: 1 << 40 }.encode(4),
            Request::Pin { file, in_order: true, writes: true, ranges }.encode(5),
            Request::Prefetch { file, range: 0..MIB }.encode(6),
            Request::Flush { file, range: 0..4096 }.encode(7),
            Request::Resize { file, len: 5 * 4096 }.encode(8),
            Request::Close { file }.encode(9),
        ]);
    }
    let written = scene.dir.path().join("written");
    scene.write(&written);
    let writable = std::fs::File::options().read(true).write(true).open(&written).unwrap();
    let others: [OwnedFd; 4] = [scene.file(), writable.into(), socket().unwrap(), pipe().unwrap().0.into()];
    let client = Pager::connect(scene.server.path()).unwrap();
    let path = scene.dir.path().join("file");
    let map = MapOptions::new().pager(&client).strategy(Strategy::Pager).open(path).unwrap();
    for seed in 0..seeds.unwrap_or(500) {
        let mut state = seed;
        let (raw, uffd) = if seed % 4 == 0 {
            (Raw::connect(scene.server.path()), None)
        } else {
            let (raw, uffd) = Raw::greeted(&scene);
            if seed % 4 == 1 {
                raw.send(&open_request().encode(1), Some(others[0].as_fd()));
            }
            (raw, Some(uffd))
        };
        for _ in 0..MESSAGES {
            let bytes = message(&samples, &mut state);
            let is_open = matches!(Request::decode(&bytes), Ok((_, Request::Open { .. })));
            let descriptor: Option<BorrowedFd<'_>> = match random(&mut state) % 256 {
                0 => uffd.as_ref().map(|uffd| uffd.as_fd()),
                1 => None,
                draw if is_open || draw == 2 => Some(others[[0, 1, 1, 2, 3][draw as usize % 5]].as_fd()),
                _ => None,
            };
            match wire::send(raw.0.as_fd(), &bytes, descriptor, false) {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => {}
            }
            if random(&mut state).is_multiple_of(8) {
                // So that some of it is done before the end.
                let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
                let _ = poll(&mut [PollFd::new(&raw.0, PollFlags::IN)], Some(&moment));
            }
            // It reads what it is told, or does not.
            while seed % 3 > 0 && matches!(wire::receive(&raw.0, false), Ok(Some(_))) {}
        }
        let at = (random(&mut state) % MIB) as usize;
        assert_eq!(map[at], 7, "another client, after seed {seed}");
        let stats = scene.pager.stats();
        assert!(stats.used_bytes <= stats.budget_bytes, "seed {seed}: {stats:?}");
        assert_eq!(panics.load(Ordering::SeqCst), 0, "seed {seed}");
    }
    map.prefetch(..).unwrap();
    drop((map, client));
    assert!(scene.serves());
    scene.settles();
    assert_eq!(panics.load(Ordering::SeqCst), 0);
}
