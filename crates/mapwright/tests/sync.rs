//! Mutexes, conditions and rings between processes: unrelated ones, children of fork, and ones that are killed, hundreds of times.
#![cfg(feature = "zerocopy")]
#![allow(missing_docs)]

mod common;

use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Rng, child, role, run_ok};
use mapwright::mmap::{MemoryFile, SharedMemory, SharedMemoryOptions};
use mapwright::sync::{Condition, Locked, Mutex, Place, Plan, Ring, RingOfMany, Segment};
use mapwright::{Change, Error};
use mapwright_sys::testing::{Fork, in_its_own_process};

/// Longer than anything takes that is not stuck.
const STUCK: Duration = Duration::from_secs(20);

/// A name of this test's own, which is gone in the end.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        let name = Self(format!("/mapwright-test-{}-{what}", std::process::id()));
        let _ = SharedMemory::unlink(&name.0);
        name
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = SharedMemory::unlink(&self.0);
    }
}

/// A child process that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(test: &str, role: &str) -> Killed {
    let mut command = child(test, role);
    Killed(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// What the tests between unrelated processes share.
struct Places {
    plan: Plan,
    pair: Place<Mutex<[u64; 2]>>,
    changed: Place<Condition>,
    ring: Place<Ring<[u64; 8]>>,
    many: Place<RingOfMany<[u64; 8]>>,
}

fn places() -> Places {
    let mut plan = Plan::new(77);
    let (pair, changed) = (plan.mutex(), plan.condition());
    let (ring, many) = (plan.ring(64).unwrap(), plan.ring_of_many(64).unwrap());
    Places { plan, pair, changed, ring, many }
}

fn attach(name: &str, plan: &Plan) -> Segment {
    Segment::attach(SharedMemory::create(name, plan.len()).unwrap(), plan).unwrap()
}

/// Adds one to both numbers, with a moment in between at which they differ.
fn add(pair: &Mutex<[u64; 2]>) -> bool {
    let locked = pair.lock().unwrap();
    let is_orphaned = locked.is_orphaned();
    let [_, second] = match &locked {
        Locked::Sound(guard) => guard.get().unwrap(),
        Locked::OwnerDied(guard) => guard.get().unwrap(),
    };
    let mut guard = locked.repair(|[first, second]| *first = *second).unwrap();
    let [one, two] = guard.get().unwrap();
    assert_eq!(one, two, "two were inside at once (the second was {second}, orphaned: {is_orphaned})");
    guard.set(&[one + 1, two]).unwrap();
    std::hint::spin_loop();
    guard.set(&[one + 1, two + 1]).unwrap();
    is_orphaned
}

#[test]
fn unrelated_processes_count_together() {
    let this = "unrelated_processes_count_together";
    let places = places();
    if let Some(name) = role() {
        let segment = attach(&name, &places.plan);
        let (pair, changed) = (segment.get(places.pair).unwrap(), segment.get(places.changed).unwrap());
        for _ in 0..500 {
            assert!(!add(&pair));
        }
        return changed.notify_all().unwrap();
    }
    let name = Name::new("count");
    let segment = attach(&name.0, &places.plan);
    let (pair, changed) = (segment.get(places.pair).unwrap(), segment.get(places.changed).unwrap());
    let others: Vec<_> = (0..3).map(|_| start(this, &name.0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..500).for_each(|_| assert!(!add(&pair))));
        }
    });
    let guard = pair.lock().unwrap().repair(|_| panic!("nobody has died")).unwrap();
    let locked = changed.wait_while(guard, |[count, _]| *count < 2500).unwrap();
    assert!(!locked.is_orphaned());
    for mut other in others {
        assert!(other.0.wait().unwrap().success());
    }
}

#[test]
fn owners_are_killed_hundreds_of_times() {
    if !in_its_own_process() {
        return;
    }
    let places = places();
    let file = MemoryFile::create("killed", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let pair = segment.get(places.pair).unwrap();
    let mut random = Rng(0x6d75_7465);
    let (mut orphaned, mut last, began) = (0, 0, Instant::now());
    for round in 0..200 {
        let children: Vec<_> = (0..1 + round % 2)
            .map(|_| {
                Fork::new(|| {
                    let segment = segment.attach_again().unwrap();
                    let pair = segment.get(places.pair).unwrap();
                    loop {
                        add(&pair);
                    }
                })
                .unwrap()
            })
            .collect();
        // Until the child is at it, and then somewhere.
        while pair.lock().unwrap().repair(|[first, second]| *first = *second).unwrap().get().unwrap()[0]
            == last
        {
            std::thread::yield_now();
        }
        let until = Instant::now() + Duration::from_micros(random.below(800));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        for child in children {
            child.kill();
            assert_eq!(child.wait(), -libc::SIGKILL, "round {round}");
        }
        let locked = pair.lock_timeout(STUCK).unwrap().unwrap_or_else(|| panic!("stuck in round {round}"));
        orphaned += usize::from(locked.is_orphaned());
        last = locked.repair(|[first, second]| *first = *second).unwrap().get().unwrap()[0];
    }
    eprintln!("{orphaned} of 200 died with the mutex, in {:?}", began.elapsed());
    assert!(orphaned > 10, "{orphaned}: the test does not test what it is for");
}

#[test]
fn unrelated_owners_are_killed_under_a_sleeper() {
    let this = "unrelated_owners_are_killed_under_a_sleeper";
    let places = places();
    if let Some(name) = role() {
        let segment = attach(&name, &places.plan);
        let pair = segment.get(places.pair).unwrap();
        let mut guard = pair.lock().unwrap().repair(|_| ()).unwrap();
        guard.update(|[count, _]| *count += 1).unwrap();
        loop {
            std::thread::park();
        }
    }
    let name = Name::new("sleeper");
    let segment = attach(&name.0, &places.plan);
    let pair = segment.get(places.pair).unwrap();
    let since = Instant::now();
    for round in 1..=10 {
        let owner = start(this, &name.0);
        let is_held = || pair.lock_timeout(Duration::from_millis(1)).unwrap().is_none();
        while !is_held() {
            std::thread::yield_now();
            assert!(since.elapsed() < 3 * STUCK);
        }
        std::thread::scope(|scope| {
            let sleepers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let locked = pair.lock().unwrap();
                        let is_orphaned = locked.is_orphaned();
                        let guard = locked.repair(|_| ()).unwrap();
                        (is_orphaned, guard.get().unwrap()[0])
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(5));
            drop(owner);
            let found: Vec<_> = sleepers.into_iter().map(|sleeper| sleeper.join().unwrap()).collect();
            assert_eq!(found.iter().filter(|(is_orphaned, _)| *is_orphaned).count(), 1, "{found:?}");
            assert!(found.iter().all(|(_, count)| *count == round), "{found:?}");
        });
    }
}

/// A message that knows whether it is whole.
fn message(life: u64, number: u64) -> [u64; 8] {
    let mut words = [life, number, 0, 0, 0, 0, 0, 0];
    let seed = life.rotate_left(32) ^ number;
    for (word, index) in words[2..].iter_mut().zip(1..) {
        *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7 * index);
    }
    words
}

#[test]
fn many_messages_between_unrelated_processes() {
    let this = "many_messages_between_unrelated_processes";
    const COUNT: u64 = 200_000;
    let places = places();
    if let Some(name) = role() {
        let segment = attach(&name, &places.plan);
        let mut producer = segment.get(places.ring).unwrap().producer().unwrap();
        return (0..COUNT).for_each(|number| producer.send(&message(1, number)).unwrap());
    }
    let name = Name::new("messages");
    let segment = attach(&name.0, &places.plan);
    let mut consumer = segment.get(places.ring).unwrap().consumer().unwrap();
    let mut other = start(this, &name.0);
    for number in 0..COUNT {
        let next = consumer.receive_timeout(STUCK).unwrap().expect("a message");
        assert!(next == message(1, number), "{next:?} is not message {number}");
    }
    assert!(other.0.wait().unwrap().success());
    let error = consumer.receive().unwrap_err();
    assert!(matches!(error, Error::PeerGone { died: false, .. }), "{error}");
}

#[test]
fn producers_are_killed_hundreds_of_times() {
    if !in_its_own_process() {
        return;
    }
    let places = places();
    let file = MemoryFile::create("producers", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let mut consumer = segment.get(places.many).unwrap().consumer().unwrap();
    let mut random = Rng(0x7072_6f64);
    let produce = |life: u64| {
        Fork::new(|| {
            let segment = segment.attach_again().unwrap();
            let mut producer = segment.get(places.many).unwrap().producer().unwrap();
            for number in 0.. {
                producer.send(&message(life, number)).unwrap();
            }
        })
        .unwrap()
    };
    // What each life has sent: all of it in order, without a gap.
    let mut next = vec![0; 302];
    let mut producers = vec![produce(0), produce(1)];
    for life in 2..302 {
        for _ in 0..20 + random.below(100) {
            let since = Instant::now();
            let words = loop {
                match consumer.receive_timeout(STUCK) {
                    Ok(Some(words)) => break words,
                    // One is dead, and the other not there yet.
                    Err(Error::PeerGone { .. }) if since.elapsed() < STUCK => std::thread::yield_now(),
                    other => panic!("stuck at life {life}: {other:?}"),
                }
            };
            let [from, number, ..] = words;
            assert!(words == message(from, number), "a message in parts: {words:?}");
            assert_eq!(number, next[from as usize], "of life {from}");
            next[from as usize] += 1;
        }
        producers.remove(random.below(2) as usize).kill();
        producers.push(produce(life));
    }
    drop(producers);
    let error = loop {
        match consumer.receive() {
            Ok(words) => assert!(words == message(words[0], words[1])),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::PeerGone { who: "producer", died: true, .. }), "{error}");
    eprintln!("{} messages were skipped", consumer.skipped());
}

#[test]
fn consumers_are_killed_hundreds_of_times() {
    if !in_its_own_process() {
        return;
    }
    let places = places();
    let file = MemoryFile::create("consumers", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let seen = segment.get(places.pair).unwrap();
    let mut producer = segment.get(places.ring).unwrap().producer().unwrap();
    let mut random = Rng(0x636f_6e73);
    let mut sent = 0;
    for round in 0..200 {
        let child = Fork::new(|| {
            let segment = segment.attach_again().unwrap();
            let mut consumer = segment.get(places.ring).unwrap().consumer().unwrap();
            let seen = segment.get(places.pair).unwrap();
            let mut is_first = true;
            loop {
                let words = consumer.receive().unwrap();
                assert!(words == message(7, words[1]));
                let mut guard = seen.lock().unwrap().repair(|_| ()).unwrap();
                let [expected, _] = guard.get().unwrap();
                // Of what the last one took when it died, one message may come again, or never.
                let is_right = words[1] == expected
                    || is_first && (words[1] + 1 == expected || words[1] == expected + 1);
                let wrong = u64::from(!is_right);
                guard.update(|[next, bad]| (*next, *bad) = (words[1] + 1, *bad + wrong)).unwrap();
                is_first = false;
            }
        })
        .unwrap();
        for _ in 0..100 + random.below(100) {
            // Until this child is there, the last one is dead: the ring may be full, and nobody there.
            let since = Instant::now();
            while !producer.try_send(&message(7, sent)).unwrap() {
                assert!(since.elapsed() < STUCK, "stuck in round {round}");
                std::thread::yield_now();
            }
            sent += 1;
        }
        child.kill();
        assert_eq!(child.wait(), -libc::SIGKILL, "round {round}");
    }
    let mut consumer = segment.get(places.ring).unwrap().consumer().unwrap();
    let mut left = 0;
    while consumer.try_receive().unwrap().is_some() {
        left += 1;
    }
    let [next, wrong] = seen.lock().unwrap().repair(|_| ()).unwrap().get().unwrap();
    assert_eq!(wrong, 0);
    assert!(next + left + 1 >= sent && next <= sent, "{next} and {left} of {sent}");
}

#[test]
fn waiters_on_a_condition_are_killed_and_the_others_are_told() {
    if !in_its_own_process() {
        return;
    }
    let places = places();
    let file = MemoryFile::create("waiters", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let (pair, changed) = (segment.get(places.pair).unwrap(), segment.get(places.changed).unwrap());
    for round in 1..=40u64 {
        let wait = || {
            let segment = segment.attach_again().unwrap();
            let (pair, changed) = (segment.get(places.pair).unwrap(), segment.get(places.changed).unwrap());
            let guard = pair.lock().unwrap().repair(|_| ()).unwrap();
            let guard = changed.wait_while(guard, |[goal, _]| *goal < round).unwrap();
            guard.repair(|_| ()).unwrap().update(|[_, done]| *done += 1).unwrap();
            changed.notify_all().unwrap();
        };
        let (stays, goes) = (Fork::new(wait).unwrap(), Fork::new(wait).unwrap());
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(3));
        }
        goes.kill();
        let mut guard = pair.lock().unwrap().repair(|_| ()).unwrap();
        guard.update(|[goal, done]| (*goal, *done) = (round, 0)).unwrap();
        changed.notify_all().unwrap();
        let locked = changed.wait_while(guard, |[_, done]| *done == 0).unwrap();
        drop(locked.repair(|_| ()).unwrap());
        assert_eq!(stays.wait(), 0, "round {round}");
        drop(goes);
    }
    let guard = pair.lock().unwrap().repair(|_| ()).unwrap();
    let (locked, is_late) = changed.wait_timeout(guard, Duration::from_millis(20)).unwrap();
    assert!(is_late && !locked.is_orphaned());
}

#[test]
fn without_a_wait_for_two_words_deaths_are_noticed_too() {
    if !in_its_own_process() {
        return;
    }
    let this = "without_a_wait_for_two_words_deaths_are_noticed_too";
    if role().is_none() {
        run_ok(child(this, "refused"));
        return;
    }
    mapwright_sys::testing::refuse_system_calls(&[libc::SYS_futex_waitv], libc::ENOSYS).unwrap();
    let places = places();
    let file = MemoryFile::create("old", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let pair = segment.get(places.pair).unwrap();
    for _ in 0..3 {
        let child = Fork::new(|| {
            let segment = segment.attach_again().unwrap();
            let pair = segment.get(places.pair).unwrap();
            std::mem::forget(pair.lock().unwrap());
            std::thread::sleep(STUCK);
        })
        .unwrap();
        while pair.try_lock().unwrap().is_some_and(|locked| locked.repair(|_| ()).is_ok()) {
            std::thread::yield_now();
        }
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let since = Instant::now();
                let guard = pair.lock().unwrap().repair(|_| ()).unwrap();
                drop(guard);
                since.elapsed()
            });
            std::thread::sleep(Duration::from_millis(20));
            child.kill();
            assert!(sleeper.join().unwrap() < STUCK / 2);
        });
    }
    assert!(!mapwright_sys::shared::is_wait_for_two_supported());
}

#[test]
fn memory_that_is_no_segment_of_the_plan_is_refused() {
    let refused = |memory: &MemoryFile, plan: &Plan, why: &str| {
        let error = Segment::attach(memory, plan).unwrap_err();
        assert!(matches!(&error, Error::NotTrusted { what, .. } if what.contains(why)), "{why}: {error}");
    };
    let places = places();
    let plan = &places.plan;
    let fresh = || MemoryFile::create("plan", plan.len()).unwrap();

    refused(&MemoryFile::create("short", plan.len() - 1).unwrap(), plan, "the plan needs");
    refused(&MemoryFile::create("empty", 0).unwrap(), plan, "0 bytes");
    let other = fresh();
    other.map().unwrap().write_at(0, b"something else").unwrap();
    refused(&other, plan, "begins with");

    let file = fresh();
    drop(Segment::attach(&file, plan).unwrap());
    Segment::attach(&file, plan).unwrap();
    let mut wrong = Plan::new(78);
    wrong.mutex::<u64>();
    refused(&file, &wrong, "checksum");
    let mut same_tag = Plan::new(77);
    same_tag.mutex::<[u32; 4]>(); // as many bytes: the next object tells
    refused(&file, &same_tag, "checksum");

    // Each word of the header, with a bit turned.
    for word in 0..5 {
        let map = file.map().unwrap();
        let before = map.to_vec(8 * word..8 * word + 8).unwrap();
        map.write_at(8 * word, &[before[0] ^ 0x10]).unwrap();
        refused(&file, plan, if word == 0 { "begins with" } else { "word" });
        map.write_at(8 * word, &before).unwrap();
    }
    Segment::attach(&file, plan).unwrap();

    // A size that somebody has written is compared and not believed.
    let map = file.map().unwrap();
    map.write_at(8 * 770, &u64::MAX.to_ne_bytes()).unwrap();
    refused(&file, plan, "object");

    let mut second = Plan::new(1);
    second.condition();
    let foreign = second.mutex::<u64>();
    let segment = Segment::attach(fresh(), plan).unwrap();
    assert!(matches!(segment.get(foreign), Err(Error::Invalid { .. })));
}

#[test]
fn many_attach_at_once_to_fresh_memory_and_of_two_plans_one_wins() {
    let places = places();
    let mut other = Plan::new(5);
    let _ = other.mutex::<u64>();
    for _ in 0..30 {
        let file = MemoryFile::create("fresh", places.plan.len()).unwrap();
        let attached: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|thread| {
                    let plan = if thread % 2 == 0 { &places.plan } else { &other };
                    let file = &file;
                    scope.spawn(move || Segment::attach(file, plan).is_ok())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (even, odd): (Vec<_>, Vec<_>) = (0..6).partition(|thread| thread % 2 == 0);
        let all = |threads: &[usize], is: bool| threads.iter().all(|thread| attached[*thread] == is);
        assert!(all(&even, true) && all(&odd, false) || all(&even, false) && all(&odd, true), "{attached:?}");
    }
}

#[test]
fn memory_that_is_cut_is_an_error_for_everybody() {
    let places = places();
    let name = Name::new("cut");
    let mut memory = SharedMemory::create(&name.0, places.plan.len()).unwrap();
    let segment = Segment::attach(&memory, &places.plan).unwrap();
    let pair = segment.get(places.pair).unwrap();
    let mut producer = segment.get(places.ring).unwrap().producer().unwrap();
    producer.send(&message(0, 0)).unwrap();
    let guard = pair.lock().unwrap().repair(|_| ()).unwrap();
    memory.resize(4096).unwrap();
    let change = Change::Truncated { was: places.plan.len(), now: 4096 };
    let is_told = |error: Error| {
        assert!(matches!(error, Error::Changed { change: told, .. } if told == change), "{error}")
    };
    is_told(guard.get().unwrap_err());
    is_told(producer.try_send(&message(0, 1)).and_then(|_| producer.try_send(&message(0, 1))).unwrap_err());
    drop(guard);
    is_told(pair.lock().unwrap_err());
    let error = Segment::attach(&memory, &places.plan).unwrap_err();
    assert!(matches!(error, Error::NotTrusted { .. }), "{error}");
}

#[test]
fn memory_that_may_only_be_read_is_refused() {
    let places = places();
    let name = Name::new("read-only");
    SharedMemory::create(&name.0, places.plan.len()).unwrap();
    let memory = SharedMemoryOptions::new().open_read_only(&name.0).unwrap();
    let error = Segment::attach(&memory, &places.plan).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    assert!(memory.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn sixty_four_producers_and_no_more() {
    let places = places();
    let file = MemoryFile::create("producers", places.plan.len()).unwrap();
    let segment = Segment::attach(&file, &places.plan).unwrap();
    let many = segment.get(places.many).unwrap();
    let producers: Vec<_> = (0..64)
        .map(|_| segment.attach_again().unwrap().get(places.many).unwrap().producer().unwrap())
        .collect();
    assert!(matches!(many.producer(), Err(Error::LimitReached { value: 64, .. })));
    let mut consumer = many.consumer().unwrap();
    std::thread::scope(|scope| {
        for (life, mut producer) in (0..).zip(producers) {
            scope.spawn(move || (0..50).for_each(|number| producer.send(&message(life, number)).unwrap()));
        }
        let mut next = [0; 64];
        for _ in 0..64 * 50 {
            let words = consumer.receive_timeout(STUCK).unwrap().expect("a message");
            assert!(words == message(words[0], next[words[0] as usize]));
            next[words[0] as usize] += 1;
        }
    });
    assert!(consumer.receive().is_err() && many.producer().is_ok());
}
