//! Several processes that write the same file by a pager server, at random, against a model: each has bytes of its own in every
//! page, and remembers what it wrote there. `MAPWRIGHT_SERVER_SEED` runs one seed again, `MAPWRIGHT_SERVER_SEEDS` more of them.
#![allow(missing_docs)]

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clients::{Talking, as_role, hear, parts, say, until};
use common::{PAGE, Rng, Watchdog, pager, public_scratch, require_userfaultfd, role};
use mapwright::{Error, MapMut, MapOptions, Pager, Server, SharedMapMut, Strategy};

/// Processes that write one file; each has every so manyth line of 32 bytes.
const WRITERS: usize = 3;
const LINE: usize = 32;
const STEPS: usize = 400;

/// What a seed decides of a run, alike in all its processes.
struct Plan {
    len: usize,
    block_size: usize,
    budget: u64,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let block_size = [PAGE, PAGE, 4 * PAGE, 16 * PAGE][rng.below(4) as usize];
        let budget = (8 * block_size as u64).max(256 << 10) + (rng.below(64) << 12);
        // Mostly no multiple of a page, and several times the budget.
        let len = budget as usize * 2 + rng.below(1 << 20) as usize;
        Self { len, block_size, budget }
    }

    fn options(&self, pager: &Pager) -> MapOptions {
        MapOptions::new().pager(pager).strategy(Strategy::Pager).block_size(self.block_size)
    }
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("MAPWRIGHT_SERVER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("MAPWRIGHT_SERVER_SEEDS").unwrap_or(4)).collect(),
    }
}

/// What a child is told beside its place: the seed and its number.
fn seed_and_number(part: &str) -> (u64, usize) {
    let (seed, number) = part.split_once(',').unwrap();
    (seed.parse().unwrap(), number.parse().unwrap())
}

/// A writer beside others, and what it knows of its own bytes.
struct Writer {
    map: SharedMapMut,
    model: Vec<u8>,
    number: usize,
    rng: Rng,
}

impl Writer {
    fn is_own(&self, at: usize) -> bool {
        at / LINE % WRITERS == self.number
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.map.len());
        // SAFETY: inside the map.
        let at = unsafe { self.map.as_ptr().add(at) };
        // SAFETY: the map lives as long as the result; nobody has a slice, and all reach these bytes by atomics or copies.
        unsafe { AtomicU8::from_ptr(at) }
    }

    /// A part of one of its own lines.
    fn own_part(&mut self) -> std::ops::Range<usize> {
        loop {
            let at = self.rng.below(self.model.len() as u64) as usize;
            if self.is_own(at) {
                let end = (at / LINE + 1) * LINE;
                return at..end.min(self.model.len());
            }
        }
    }

    fn step(&mut self) {
        let part = self.own_part();
        match self.rng.below(16) {
            0..5 => {
                let value = self.rng.next() as u8;
                self.byte(part.start).store(value, Ordering::Relaxed);
                self.model[part.start] = value;
            }
            5..8 => {
                let bytes = self.rng.bytes(part.len());
                self.map.shared().write_at(part.start as u64, &bytes).unwrap();
                self.model[part].copy_from_slice(&bytes);
            }
            8..11 => self.check(part.start),
            11 => {
                let mut bytes = vec![0; part.len()];
                self.map.read_at(part.start as u64, &mut bytes).unwrap();
                assert!(bytes == self.model[part.clone()], "{part:?} by a copy");
            }
            12 => self.map.flush_range(part.start as u64..part.end as u64).unwrap(),
            13 => _ = self.map.evict(..).unwrap(),
            14 => {
                let own = &self.model[part.clone()];
                let same = |start: *const u8, _| {
                    // SAFETY: inside the map; others write other bytes.
                    let at = unsafe { start.add(part.start) };
                    // SAFETY: as above, for as long as the scope lasts; nobody writes these bytes meanwhile.
                    own == unsafe { std::slice::from_raw_parts(at, own.len()) }
                };
                assert!(self.map.checked(same).unwrap(), "{part:?} in a checked scope");
            }
            _ if self.rng.below(8) == 0 => self.map.flush_range(..).unwrap(),
            _ => self.map.will_need(part.start as u64..).unwrap(),
        }
    }

    fn check(&self, at: usize) {
        let found = self.byte(at).load(Ordering::Relaxed);
        assert_eq!(found, self.model[at], "byte {at} of writer {}", self.number);
    }

    fn check_all(&self) {
        (0..self.model.len()).filter(|&at| self.is_own(at)).for_each(|at| self.check(at));
    }
}

fn write_beside_others(role: &str) {
    let (part, pager, path) = parts(role);
    let (seed, number) = seed_and_number(&part);
    let plan = Plan::new(seed);
    let rng = Rng(seed * 100 + number as u64 + 1);
    let mut writer = Writer {
        map: plan.options(&pager).open_shared(&path).unwrap(),
        model: vec![0; plan.len],
        number,
        rng,
    };
    for _ in 0..STEPS {
        writer.step();
    }
    writer.check_all();
    say("done");
    hear();
    // Others have written all theirs: nothing of that has changed what is ours.
    writer.check_all();
    let own: Vec<u8> = (0..plan.len).filter(|&at| writer.is_own(at)).map(|at| writer.model[at]).collect();
    std::fs::write(path.with_extension(number.to_string()), own).unwrap();
    if number == 0 {
        writer.map.close().unwrap();
        say("gone");
    } else {
        say("gone"); // and is killed: what it wrote is in the file all the same
        hear();
    }
}

#[test]
fn writers_beside_each_other_keep_what_they_wrote() {
    let this = "writers_beside_each_other_keep_what_they_wrote";
    if let Some(role) = role() {
        return write_beside_others(&role);
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(120));
    for seed in seeds() {
        eprintln!("MAPWRIGHT_SERVER_SEED={seed}");
        let plan = Plan::new(seed);
        let dir = public_scratch();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![0; plan.len]).unwrap();
        let (own, socket) = (pager(plan.budget), dir.path().join("socket"));
        let server = Server::bind(&own, &socket).unwrap();
        let start = |number| Talking::start(this, &as_role(&format!("{seed},{number}"), &socket, &path));
        let mut writers: Vec<Talking> = (0..WRITERS).map(start).collect();
        writers.iter_mut().for_each(|writer| assert_eq!(writer.hear(), "done"));
        writers.iter_mut().for_each(|writer| writer.say("look again"));
        writers.iter_mut().for_each(|writer| assert_eq!(writer.hear(), "gone"));
        writers.iter_mut().for_each(Talking::kill);
        until("all are forgotten", || server.clients() == 0 && own.stats().used_bytes == 0);
        assert!(own.stats().evictions > 0);
        compare(&path, plan.len);
    }
}

/// Whether a file has what each of its writers had at last.
fn compare(path: &Path, len: usize) {
    let found = std::fs::read(path).unwrap();
    assert_eq!(found.len(), len);
    for number in 0..WRITERS {
        let expected = std::fs::read(path.with_extension(number.to_string())).unwrap();
        let own = (0..len).filter(|at| at / LINE % WRITERS == number);
        let wrong: Vec<usize> =
            own.zip(&expected).filter(|(at, byte)| found[*at] != **byte).map(|(at, _)| at).collect();
        assert!(
            wrong.is_empty(),
            "{} bytes of writer {number}, the first at {:?}",
            wrong.len(),
            wrong.first()
        );
    }
}

/// One that has the file alone, beside others with files of their own under the same budget: bytes and length.
fn write_alone(role: &str) {
    let (part, pager, path) = parts(role);
    let (seed, number) = seed_and_number(&part);
    let plan = Plan::new(seed);
    let path = path.with_extension(number.to_string());
    let mut rng = Rng(seed * 100 + number as u64 + 1);
    let mut model = rng.bytes(plan.len);
    std::fs::write(&path, &model).unwrap();
    let reserve = plan.len as u64 + (1 << 20);
    let open = || plan.options(&pager).reserve(reserve).open_mut(&path).unwrap();
    let mut map = open();
    for _ in 0..STEPS / 2 {
        let at = rng.below(model.len() as u64 + 1) as usize;
        let most = [9, PAGE, 5 * plan.block_size][rng.below(3) as usize];
        let count = (rng.below(most as u64) as usize).min(model.len() - at);
        let bytes = rng.bytes(count);
        let range = at..at + bytes.len();
        let choice = rng.below(14);
        if choice < 6 {
            model[range.clone()].copy_from_slice(&bytes);
        }
        match choice {
            0..3 => map[range.clone()].copy_from_slice(&bytes),
            3 => map.write_at(at as u64, &bytes).unwrap(),
            4 => map.overwrite(at as u64, &bytes).unwrap(),
            5 => map.checked_mut(|all| all[range.clone()].copy_from_slice(&bytes)).unwrap(),
            6 => map.flush_range(at as u64..).unwrap(),
            7 => _ = map.evict(..).unwrap(),
            8 => {
                // Often by a little, within a page.
                let by = [7, PAGE as u64, 256 << 10][rng.below(3) as usize];
                let len = (model.len() as u64 + rng.below(2 * by)).saturating_sub(by).min(reserve) as usize;
                map.resize(len as u64).unwrap();
                model.resize(len, 0);
            }
            9 if model.len() + bytes.len() <= reserve as usize => {
                map.append(&bytes).unwrap();
                model.extend(&bytes);
            }
            10 if rng.below(8) == 0 => {
                map.close().unwrap();
                assert!(std::fs::read(&path).unwrap() == model, "writer {number} has closed the file");
                map = open();
            }
            _ => assert!(map[range.clone()] == model[range], "{at} of writer {number}"),
        }
    }
    assert_same(&map, &model);
    let past = map.resize(map.len() as u64 + (2 << 20));
    assert!(matches!(past, Err(Error::Invalid { .. })), "past what is reserved: {past:?}");
    drop(map);
    assert!(std::fs::read(&path).unwrap() == model, "writer {number}");
    say("done");
}

fn assert_same(map: &MapMut, model: &[u8]) {
    assert_eq!(map.len(), model.len());
    let wrong = (0..model.len()).filter(|&at| map[at] != model[at]).count();
    assert_eq!(wrong, 0, "bytes that are not what was written");
}

#[test]
fn writers_alone_do_what_a_vector_does() {
    let this = "writers_alone_do_what_a_vector_does";
    if let Some(role) = role() {
        return write_alone(&role);
    }
    if !require_userfaultfd() {
        return;
    }
    let _dog = Watchdog::new(this, Duration::from_secs(120));
    for seed in seeds() {
        eprintln!("MAPWRIGHT_SERVER_SEED={seed}");
        let plan = Plan::new(seed);
        let dir = public_scratch();
        let (own, socket) = (pager(plan.budget), dir.path().join("socket"));
        let server = Server::bind(&own, &socket).unwrap();
        let path = dir.path().join("file");
        let start = |number| Talking::start(this, &as_role(&format!("{seed},{number}"), &socket, &path));
        let mut writers: Vec<Talking> = (0..WRITERS).map(start).collect();
        writers.iter_mut().for_each(|writer| assert_eq!(writer.hear(), "done"));
        drop(writers);
        until("all are forgotten", || server.clients() == 0 && own.stats().used_bytes == 0);
    }
}
