//! Mutexes and rings in shared memory, beside the C library's mutex and what the machine's caches allow: `cargo bench -p
//! mapwright-bench --bench sharing`. Ratios inside one group count.
//!
//! The bound of a ring is a cache line from one core to another for each message. It is measured by the least that can do that:
//! lines of 56 bytes and a number, written by one process and read by another, which tells how far it is once in a while.

#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mapwright::mmap::MemoryFile;
use mapwright::sync::{Consumer, Plan, Producer, Segment};
use mapwright_sys::shared::Words;
use mapwright_sys::testing::Fork;

type Message = [u64; 8];

/// Messages that a ring has room for.
const ROOM: u32 = 1024;
/// Messages that are sent and taken at once by the batched forms.
const BATCH: usize = 16;

/// The C library's mutex, robust and shared between processes.
struct Pthread(Box<libc::pthread_mutex_t>);

impl Pthread {
    fn new() -> Self {
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let mut mutex = Box::new(libc::PTHREAD_MUTEX_INITIALIZER);
        // SAFETY: it initialises the attributes.
        assert_eq!(unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) }, 0);
        // SAFETY: the attributes are initialised.
        let robust =
            unsafe { libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST) };
        // SAFETY: as above.
        let shared = unsafe {
            libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED)
        };
        assert_eq!((robust, shared), (0, 0));
        // SAFETY: the mutex lies in a box, and moves no more.
        assert_eq!(unsafe { libc::pthread_mutex_init(&raw mut *mutex, attributes.as_ptr()) }, 0);
        Self(mutex)
    }

    fn lock(&mut self) {
        // SAFETY: it is initialised, and this thread does not hold it.
        assert_eq!(unsafe { libc::pthread_mutex_lock(&raw mut *self.0) }, 0);
    }

    fn unlock(&mut self) {
        // SAFETY: this thread holds it.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(&raw mut *self.0) }, 0);
    }
}

fn mutex_uncontended(c: &mut Criterion) {
    let mut group = c.benchmark_group("mutex-uncontended");
    let mut pthread = Pthread::new();
    group.bench_function("pthread-robust", |b| {
        b.iter(|| {
            black_box(&mut pthread).lock();
            pthread.unlock();
        });
    });
    let mut plan = Plan::new(1);
    let place = plan.mutex::<u64>();
    let memory = MemoryFile::create("bench", plan.len()).expect("memory");
    let mutex = Segment::attach(&memory, &plan).expect("attach").get(place).expect("mutex");
    group.bench_function("mapwright", |b| b.iter(|| drop(black_box(&mutex).lock().expect("lock"))));
    group.finish();
}

/// What one side of a ring does `count` times.
trait Side {
    fn run(&mut self, count: u64);
}

struct One<T>(T);
struct Many<T>(T);

impl Side for One<Producer<Message>> {
    fn run(&mut self, count: u64) {
        (0..count).for_each(|number| self.0.send(&[number; 8]).expect("send"));
    }
}

impl Side for One<Consumer<Message>> {
    fn run(&mut self, count: u64) {
        for number in 0..count {
            assert_eq!(self.0.receive().expect("receive")[7], number);
        }
    }
}

impl Side for Many<Producer<Message>> {
    fn run(&mut self, count: u64) {
        let mut sent = 0;
        while sent < count {
            let batch: [Message; BATCH] = std::array::from_fn(|at| [sent + at as u64; 8]);
            let left = usize::try_from(count - sent).unwrap_or(BATCH).min(BATCH);
            let done = self.0.try_send_many(&batch[..left]).expect("send");
            if done == 0 {
                self.0.send(&batch[0]).expect("send");
                sent += 1;
            }
            sent += done as u64;
        }
    }
}

impl Side for Many<Consumer<Message>> {
    fn run(&mut self, count: u64) {
        let (mut taken, mut batch) = (0, [[0; 8]; BATCH]);
        while taken < count {
            let done = self.0.try_receive_many(&mut batch).expect("receive");
            if done == 0 {
                assert_eq!(self.0.receive().expect("receive")[7], taken);
                taken += 1;
            }
            for (message, number) in batch[..done].iter().zip(taken..) {
                assert_eq!(message[7], number);
            }
            taken += done as u64;
        }
    }
}

/// The least: lines with a number in their last word.
struct Bare<'w>(&'w Words);

const FIRST_LINE: usize = 16;

impl Bare<'_> {
    fn line(number: u64) -> usize {
        FIRST_LINE + 8 * (number % u64::from(ROOM)) as usize
    }

    fn send(&self, count: u64) {
        let (mut taken, mut spins) = (0, 0);
        for number in 0..count {
            while number - taken >= u64::from(ROOM) {
                pause(&mut spins);
                taken = self.0.word(0).load(Ordering::Acquire);
            }
            let line = Self::line(number);
            (0..7).for_each(|word| self.0.word(line + word).store(number, Ordering::Relaxed));
            self.0.word(line + 7).store(number + 1, Ordering::Release);
        }
    }

    fn receive(&self, count: u64) {
        let mut spins = 0;
        for number in 0..count {
            let line = Self::line(number);
            while self.0.word(line + 7).load(Ordering::Acquire) != number + 1 {
                pause(&mut spins);
            }
            let sum = (0..7)
                .fold(0u64, |sum, word| sum.wrapping_add(self.0.word(line + word).load(Ordering::Relaxed)));
            assert_eq!(sum, number.wrapping_mul(7));
            if number % 64 == 63 || number + 1 == count {
                self.0.word(0).store(number + 1, Ordering::Release);
            }
        }
    }
}

/// A pause between two looks. Where the other side has no core of its own, it gets this one now and then.
fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(1 << 12) {
        std::thread::yield_now();
    }
    std::hint::spin_loop();
}

/// The time for `count` messages from a child of this process to it.
fn bare(count: u64) -> Duration {
    let len = (FIRST_LINE + 8 * ROOM as usize) * 8;
    let len = len.next_multiple_of(4096);
    let memory = MemoryFile::create("bare", len as u64).expect("memory");
    let words = Words::map(std::os::fd::AsFd::as_fd(&memory), len).expect("map");
    timed(|| Bare(&words).send(count), || Bare(&words).receive(count))
}

fn timed(child: impl FnOnce(), parent: impl FnOnce()) -> Duration {
    let started = Instant::now();
    let child = Fork::new(child).expect("fork");
    parent();
    let took = started.elapsed();
    assert_eq!(child.wait(), 0);
    took
}

/// The same through a ring.
fn ring(is_for_many: bool, batched: bool, count: u64) -> Duration {
    let mut plan = Plan::new(1);
    let (one, many) = (plan.ring(ROOM).expect("ring"), plan.ring_of_many(ROOM).expect("ring"));
    let memory = MemoryFile::create("ring", plan.len()).expect("memory");
    let segment = Segment::attach(&memory, &plan).expect("attach");
    let consumer = match is_for_many {
        true => segment.get(many).and_then(|ring| ring.consumer()),
        false => segment.get(one).and_then(|ring| ring.consumer()),
    };
    let consumer = consumer.expect("consumer");
    let child = || {
        let segment = segment.attach_again().expect("attach");
        let producer = match is_for_many {
            true => segment.get(many).and_then(|ring| ring.producer()),
            false => segment.get(one).and_then(|ring| ring.producer()),
        };
        let producer = producer.expect("producer");
        if batched { Many(producer).run(count) } else { One(producer).run(count) }
    };
    timed(child, || if batched { Many(consumer).run(count) } else { One(consumer).run(count) })
}

/// An iteration is many messages, so that the fork does not count.
fn rings(c: &mut Criterion) {
    const EACH: u64 = 100_000;
    let mut group = c.benchmark_group("ring-64-bytes-two-processes");
    group.throughput(Throughput::Elements(EACH)).sample_size(10).measurement_time(Duration::from_secs(4));
    group.bench_function("cache-line-transfer", |b| b.iter_custom(|rounds| bare(rounds * EACH)));
    for (name, is_for_many, batched) in [
        ("one-producer", false, false),
        ("one-producer-batches-of-16", false, true),
        ("many-producers", true, false),
        ("many-producers-batches-of-16", true, true),
    ] {
        group.bench_function(name, |b| b.iter_custom(|rounds| ring(is_for_many, batched, rounds * EACH)));
    }
    group.finish();
}

criterion_group!(sharing, mutex_uncontended, rings);
criterion_main!(sharing);
