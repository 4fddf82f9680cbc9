//! Deaths at each step, one at a time, and memory in which somebody has scribbled.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mapwright_sys::shared::Words;
use mapwright_sys::testing::{Fork, in_its_own_process, waits_for_a_futex};

use super::mutex::SLEEPERS;
use super::plan::{PRESENCES, PROCESSES, RING_HEAD};
use super::{Condition, Locked, Mutex, Plan, Ring, RingOfMany, Segment};
use crate::error::Error;
use crate::mmap::MemoryFile;

const SOON: Duration = Duration::from_secs(20);

/// A segment with one of each, and its words as a hostile peer has them.
struct All {
    segment: Segment,
    file: MemoryFile,
    words: Words,
    mutex: Mutex<[u64; 2]>,
    condition: Condition,
    ring: Ring<[u64; 2]>,
    many: RingOfMany<[u64; 2]>,
}

fn all() -> All {
    let mut plan = Plan::new(9);
    let (mutex, condition) = (plan.mutex(), plan.condition());
    let (ring, many) = (plan.ring(4).unwrap(), plan.ring_of_many(4).unwrap());
    let file = MemoryFile::create("all", plan.len()).unwrap();
    let segment = Segment::attach(&file, &plan).unwrap();
    let words = Words::map(file.as_fd(), plan.len() as usize).unwrap();
    All {
        mutex: segment.get(mutex).unwrap(),
        condition: segment.get(condition).unwrap(),
        ring: segment.get(ring).unwrap(),
        many: segment.get(many).unwrap(),
        segment,
        file,
        words,
    }
}

impl All {
    /// What a child has that attaches again.
    fn again(&self) -> Self {
        let segment = self.segment.attach_again().unwrap();
        let plan = &segment.inner().plan;
        let words = Words::map(self.file.as_fd(), plan.len() as usize).unwrap();
        let fd = self.file.as_fd().try_clone_to_owned().unwrap();
        let find = |found: &super::segment::Found| super::segment::Found {
            inner: std::sync::Arc::clone(segment.inner()),
            ..*found
        };
        use super::segment::Object;
        Self {
            mutex: Mutex::found(find(&self.mutex.found)),
            condition: Condition::found(find(&self.condition.found)),
            ring: Ring::found(find(&self.ring.slots.found)),
            many: RingOfMany::found(find(&self.many.slots.found)),
            file: MemoryFile::from_fd(fd).unwrap(),
            segment,
            words,
        }
    }

    /// Runs `work` in a child that is attached by itself, and dies when that is done.
    fn die_after<R>(&self, work: impl FnOnce(&Self) -> R) {
        let child = Fork::new(|| {
            let own = self.again();
            let _held = work(&own);
            Fork::die();
        });
        assert_eq!(child.unwrap().wait(), -9, "the child panicked before its time");
    }
}

#[test]
fn who_dies_with_a_mutex_leaves_it_to_the_next() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    all.die_after(|own| {
        let mut guard = own.mutex.lock().unwrap().repair(|_| panic!("nobody has died")).unwrap();
        guard.set(&[1, 0]).unwrap();
        std::mem::forget(guard);
    });
    let since = Instant::now();
    let Some(Locked::OwnerDied(mut orphan)) = all.mutex.try_lock().unwrap() else { panic!("nobody noticed") };
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(orphan.get().unwrap(), [1, 0]);
    orphan.update(|[one, two]| *two = *one).unwrap();
    drop(orphan.mark_consistent());
    let Locked::Sound(guard) = all.mutex.lock().unwrap() else { panic!("it was marked consistent") };
    assert_eq!(guard.get().unwrap(), [1, 1]);
}

#[test]
fn who_dies_while_it_repairs_leaves_that_to_the_next() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    for _ in 0..3 {
        all.die_after(|own| std::mem::forget(own.mutex.lock().unwrap()));
    }
    assert!(all.mutex.lock().unwrap().is_orphaned()); // and dropped as it is
    for error in [all.mutex.lock().unwrap_err(), all.mutex.try_lock().unwrap_err()] {
        assert!(matches!(error, Error::NotRecoverable { .. }), "{error}");
    }
}

#[test]
fn a_sleeper_is_woken_by_a_death() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    let locked = all.words.word(all.mutex.found.at);
    let child = Fork::new(|| {
        let own = all.again();
        std::mem::forget(own.mutex.lock().unwrap());
        std::thread::sleep(SOON);
    });
    let child = child.unwrap();
    while locked.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert!(all.mutex.lock_timeout(Duration::from_millis(30)).unwrap().is_none());
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let mutex = &all.mutex;
        let sleeper = scope.spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let since = Instant::now();
            let is_orphaned = mutex.lock().unwrap().is_orphaned();
            (is_orphaned, since.elapsed())
        });
        let thread = told.recv_timeout(SOON).unwrap();
        while !(sleeper.is_finished() || waits_for_a_futex(thread)) {
            std::thread::yield_now();
        }
        child.kill();
        let (is_orphaned, after) = sleeper.join().unwrap();
        assert!(is_orphaned && after < SOON / 2, "{after:?}");
    });
}

/// One is woken for a mutex that another has locked by then, and gives up: that other is to wake whoever sleeps still.
#[test]
fn who_gives_up_leaves_nobody_asleep() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    let word = all.words.word(all.mutex.found.at);
    let knows_of_sleepers = || word.load(Ordering::SeqCst) as u32 & SLEEPERS != 0;
    let guard = all.mutex.lock().unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let mutex = &all.mutex;
        let wait = move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            // Less than the time after which sleepers look by themselves.
            mutex.lock_timeout(Duration::from_millis(80)).unwrap().is_none()
        };
        let waiter = scope.spawn(wait);
        let thread = told.recv_timeout(SOON).unwrap();
        while !(waiter.is_finished() || knows_of_sleepers() && waits_for_a_futex(thread)) {
            std::thread::yield_now();
        }
        word.fetch_and(!u64::from(SLEEPERS), Ordering::SeqCst); // unlocked, and locked by another
        assert!(waiter.join().unwrap());
    });
    assert!(knows_of_sleepers());
    drop(guard);
}

#[test]
fn a_panic_leaves_the_value_to_the_next_and_a_guard_of_the_parents_is_not_the_childs() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    std::thread::scope(|scope| {
        let panicked = scope.spawn(|| {
            let _guard = all.mutex.lock().unwrap();
            panic!("as it was told to");
        });
        assert!(panicked.join().is_err());
    });
    let guard = all.mutex.lock().unwrap();
    assert!(guard.is_orphaned());
    let guard = guard.repair(|_| ()).unwrap();
    let child = Fork::new(|| {
        drop(guard.get().map(|_| ()).unwrap_err());
        assert!(matches!(all.mutex.try_lock(), Err(Error::Invalid { .. })));
        assert!(matches!(all.condition.notify_one(), Err(Error::Invalid { .. })));
        assert!(all.again().mutex.try_lock().unwrap().is_none(), "the parent holds it");
    });
    assert_eq!(child.unwrap().wait(), 0);
    guard.unlock().unwrap();
}

#[test]
fn a_producer_that_dies_in_a_slot_is_skipped() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    let mut consumer = all.many.consumer().unwrap();
    let mut other = all.many.producer().unwrap();
    // It has said that the slot is its own: with the tail moved, and without.
    for is_moved in [true, false] {
        assert!(other.try_send(&[1, 1]).unwrap());
        all.die_after(|own| {
            let producer = own.many.producer().unwrap();
            let reserved = producer.reserve().unwrap();
            if !is_moved {
                producer.slots.word(super::ring::TAIL).fetch_sub(1, Ordering::SeqCst);
            }
            std::mem::forget(producer);
            reserved
        });
        assert!(other.try_send(&[2, 2]).unwrap());
        assert_eq!(consumer.receive().unwrap(), [1, 1]);
        let skipped = consumer.skipped();
        let since = Instant::now();
        assert_eq!(
            if is_moved {
                consumer.receive().unwrap()
            } else {
                loop {
                    if let Some(message) = consumer.try_receive().unwrap() {
                        break message;
                    }
                }
            },
            [2, 2]
        );
        assert!(since.elapsed() < Duration::from_secs(5));
        assert_eq!(consumer.skipped(), skipped + 1);
    }
    assert!(consumer.try_receive().unwrap().is_none());
}

#[test]
fn a_ring_full_of_the_dead_is_not_full_for_ever() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    all.die_after(|own| {
        let producer = own.many.producer().unwrap();
        (0..4).for_each(|_| assert!(producer.reserve().unwrap().is_some()));
        assert!(producer.reserve().unwrap().is_none());
        std::mem::forget(producer);
    });
    let mut producer = all.many.producer().unwrap();
    assert!(!producer.try_send(&[1, 1]).unwrap());
    let mut consumer = all.many.consumer().unwrap();
    assert!(consumer.receive_timeout(Duration::from_millis(10)).unwrap().is_none());
    assert_eq!(consumer.skipped(), 4);
    producer.send(&[3, 3]).unwrap();
    assert_eq!(consumer.receive().unwrap(), [3, 3]);
}

#[test]
fn the_single_producer_and_the_consumer_take_over_in_the_middle() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    // It has published, and not moved the tail.
    all.die_after(|own| {
        let mut producer = own.ring.producer().unwrap();
        for n in 0..3 {
            producer.send(&[n, n]).unwrap();
        }
        producer.slots.word(super::ring::TAIL).fetch_sub(2, Ordering::SeqCst);
        std::mem::forget(producer);
    });
    let mut producer = all.ring.producer().unwrap();
    assert!(matches!(all.ring.producer(), Err(Error::Locked { .. })));
    producer.send(&[3, 3]).unwrap();
    assert!(!producer.try_send(&[9, 9]).unwrap(), "there are four slots");
    // It has taken two, and not moved the head.
    all.die_after(|own| {
        let mut consumer = own.ring.consumer().unwrap();
        for n in 0..2 {
            assert_eq!(consumer.receive().unwrap(), [n, n]);
        }
        consumer.slots.word(super::ring::HEAD).store(0, Ordering::SeqCst);
        std::mem::forget(consumer);
    });
    producer.send(&[4, 4]).unwrap(); // where the head still is
    let mut consumer = all.ring.consumer().unwrap();
    producer.send(&[5, 5]).unwrap();
    for n in 2..6 {
        assert_eq!(consumer.receive().unwrap(), [n, n]);
    }
}

#[test]
fn nobody_waits_for_who_is_gone() {
    if !in_its_own_process() {
        return;
    }
    let all = all();
    let mut consumer = all.ring.consumer().unwrap();
    assert!(consumer.receive_timeout(Duration::from_millis(10)).unwrap().is_none(), "none has come yet");
    for dies in [false, true] {
        let work = |own: &All| {
            let mut producer = own.ring.producer().unwrap();
            producer.send(&[5, 5]).unwrap();
            if dies {
                std::mem::forget(producer);
            }
        };
        all.die_after(work);
        assert_eq!(consumer.receive().unwrap(), [5, 5], "what was sent is there");
        let error = consumer.receive().unwrap_err();
        assert!(matches!(error, Error::PeerGone { who: "producer", died, .. } if died == dies), "{error}");
    }
    drop(consumer);
    let mut producer = all.ring.producer().unwrap();
    (0..4).for_each(|_| producer.send(&[6, 6]).unwrap());
    let error = producer.send(&[6, 6]).unwrap_err();
    assert!(matches!(error, Error::PeerGone { who: "consumer", died: false, .. }), "{error}");
    std::mem::forget(all.ring.consumer().unwrap());
    assert!(!producer.send_timeout(&[6, 6], Duration::from_millis(10)).unwrap(), "this process lives");
}

#[test]
fn places_of_the_dead_are_taken_again_and_the_living_are_counted() {
    let all = all();
    let table = |word: usize| all.words.word(PRESENCES + word).load(Ordering::SeqCst);
    // Everybody but this process has died.
    let living = (0..255).filter(|place| table(*place) as u32 & 0x3fff_ffff != 0).collect::<Vec<_>>();
    assert_eq!(living.len(), 1);
    for place in (0..255).filter(|place| *place != living[0]) {
        all.words.word(PRESENCES + place).store(7 << 32 | 0xc000_0000, Ordering::SeqCst);
        all.words.word(PROCESSES + place).store(u64::MAX, Ordering::SeqCst);
    }
    let others: Vec<_> = (0..254).map(|_| all.segment.attach_again().unwrap()).collect();
    assert!((0..255).all(|place| table(place) >> 32 == if place == living[0] { 1 } else { 8 }));
    let error = all.segment.attach_again().unwrap_err();
    assert!(matches!(error, Error::LimitReached { value: 255, .. }), "{error}");
    drop(others);
    all.segment.attach_again().unwrap();
}

#[test]
fn any_garbage_is_an_error_or_a_value_and_never_more() {
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut refused, mut passed) = (0, 0);
    for round in 0..400 {
        let all = all();
        let (mut producer, mut consumer) = (all.many.producer().unwrap(), all.many.consumer().unwrap());
        let mut single = all.ring.producer().unwrap();
        let objects = all.mutex.found.at..all.words.len();
        for _ in 0..1 + round % 64 {
            let word = objects.start + next() as usize % objects.len();
            let garbage = [next(), next() & 0xff, u64::MAX, next() & 0xffff_ffff_0000_0003][round % 4];
            all.words.word(word).store(garbage, Ordering::SeqCst);
        }
        if round % 3 == 0 {
            let ring = all.many.slots.found.at;
            (0..RING_HEAD + 12).for_each(|word| all.words.word(ring + word).store(next(), Ordering::SeqCst));
        }
        let mut count = |is_ok: bool| if is_ok { passed += 1 } else { refused += 1 };
        let short = Duration::from_micros(10);
        for n in 0..12 {
            count(all.mutex.lock_timeout(short).is_ok());
            count(producer.try_send(&[n, n]).is_ok());
            count(single.try_send(&[n, n]).is_ok());
            count(producer.send_timeout(&[n, n], short).is_ok());
            count(consumer.try_receive().is_ok());
            count(consumer.receive_timeout(short).is_ok());
            count(all.ring.consumer().is_ok());
            count(all.condition.notify_all().is_ok());
        }
    }
    assert!(refused > 1000 && passed > 1000, "{refused} {passed}");
}

#[test]
fn who_forges_presences_makes_nobody_do_more_than_err() {
    let all = all();
    let (mut producer, mut consumer) = (all.many.producer().unwrap(), all.many.consumer().unwrap());
    let guard = all.mutex.lock().unwrap();
    for forged in [0, u64::MAX, 0x4000_0000, 1 << 63, 0xc000_0000 | 7 << 32] {
        (0..255).for_each(|place| all.words.word(PRESENCES + place).store(forged, Ordering::SeqCst));
        assert!(producer.try_send(&[1, 1]).unwrap());
        assert_eq!(consumer.receive().unwrap(), [1, 1]);
        let _ = all.segment.attach_again();
    }
    drop(guard); // somebody may have taken it away meanwhile, or not
    drop((producer, consumer));
    assert!(all.mutex.lock_timeout(Duration::from_millis(500)).is_ok());
}
