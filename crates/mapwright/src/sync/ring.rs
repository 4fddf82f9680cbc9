//! Rings of messages from one or many producers to one consumer.
//!
//! A ring is a number of slots. Message `n` goes through slot `n % capacity`, in lap `n / capacity`. The state of a slot is one word:
//! kind, name of the producer, lap.
//!
//! | state of slot of message n | who changes it | to |
//! | --- | --- | --- |
//! | free, lap | a producer, by `reserve` (a ring for many), or by `publish` | reserved by it, or published |
//! | reserved, name, lap | that producer, by `publish` | published |
//! | reserved, name, lap, and the name's owner is dead | the consumer, by `take` | free, lap + 1: the message was never written |
//! | published, lap | the consumer, by `take` | free, lap + 1 |
//!
//! `head` and `tail` say where to look first; what counts are the slots. A ring for many is reserved by the slot, and `tail` follows
//! by whoever sees that it lags: a producer that dies between two steps leaves a slot that bears its name, and nobody waits for
//! `tail`. Of one that has died in a slot the message is skipped.
//!
//! Sleeping: who is about to sleep raises a flag, looks once more, and sleeps on the flag; who has changed a slot looks at the flag
//! after a fence. A death between the change and the wake is found by the sleeper, who watches the other's presence.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use mapwright_sys::shared::Waiting;

use super::plan::{MOST_PRODUCERS, Plain, RING_HEAD};
use super::segment::{Found, Life, NAME, Object, sealed};
use crate::error::{Error, Result};
use rustix::io::Errno;

// Words from the ring's first. What the consumer writes, what producers write, and what both rarely do, lie apart.
pub(super) const HEAD: usize = 0;
const LOST: usize = 1;
const DRAINED: usize = 2;
pub(super) const TAIL: usize = 16;
const FILLED: usize = 17;
const CONSUMER: usize = 32;
const PRODUCERS: usize = 48;

/// In the high half of a role's word: somebody has been there.
const CAME: u64 = 1 << 32;
/// Looks at a slot before sleeping, and pauses between two of them: a slot that is looked at all the time is slow to change.
const LOOKS: u32 = 64;
const PAUSES: u32 = 16;

const FREE: u64 = 0;
const RESERVED: u64 = 1;
const PUBLISHED: u64 = 2;

/// A ring of messages from one producer to one consumer, each in any process.
///
/// Messages are fixed in size and copied. A producer or consumer that dies makes room for another in its role. What it had
/// published is there; a message that it was taking may be taken once more.
///
/// # Threads and fork
/// `Send` and `Sync`; its ends are `Send`. For fork, see [`Segment`](super::Segment).
///
/// ```
/// use mapwright::mmap::MemoryFile;
/// use mapwright::sync::{Plan, Segment};
///
/// let mut plan = Plan::new(1);
/// let jobs = plan.ring::<[u8; 64]>(256)?;
/// let segment = Segment::attach(MemoryFile::create("jobs", plan.len())?, &plan)?;
/// let jobs = segment.get(jobs)?;
/// let (mut producer, mut consumer) = (jobs.producer()?, jobs.consumer()?); // in one process each, as a rule
/// producer.send(&[7; 64])?;
/// assert_eq!(consumer.receive()?, [7; 64]);
/// drop(producer);
/// assert!(consumer.receive().is_err()); // nobody is there who could send any more
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct Ring<T> {
    pub(super) slots: Slots<T>,
}

/// As [`Ring`], for up to 64 producers at a time. A producer that dies while it writes a message costs that message, and nobody
/// waits for it: see [`Consumer::skipped`].
#[derive(Debug)]
pub struct RingOfMany<T> {
    pub(super) slots: Slots<T>,
}

impl<T: Plain> sealed::Sealed for Ring<T> {}
impl<T: Plain> sealed::Sealed for RingOfMany<T> {}

impl<T: Plain> Object for Ring<T> {
    fn found(found: Found) -> Self {
        Self { slots: Slots::new(found, 1) }
    }
}

impl<T: Plain> Object for RingOfMany<T> {
    fn found(found: Found) -> Self {
        Self { slots: Slots::new(found, MOST_PRODUCERS) }
    }
}

impl<T: Plain> Ring<T> {
    /// Becomes the producer.
    ///
    /// # Errors
    /// [`Locked`](Error::Locked) while there is another; [`NotTrusted`](Error::NotTrusted) for a ring in which somebody has
    /// scribbled; [`Changed`](Error::Changed) if the memory was cut; [`Invalid`](Error::Invalid) in a child made by fork.
    pub fn producer(&self) -> Result<Producer<T>> {
        let role = self.slots.enter(PRODUCERS..PRODUCERS + 1)?;
        let role = role.ok_or_else(|| self.slots.taken("another producer"))?;
        let mut producer = Producer { slots: self.slots.clone(), role, tail: 0, is_alone: true };
        // The last one may have died before it had moved the tail.
        producer.tail =
            producer.slots.first(TAIL, |found, lap| found == published(lap) || found == free(lap + 1))?;
        Ok(producer)
    }

    /// Becomes the consumer.
    ///
    /// # Errors
    /// As for [`producer`](Self::producer).
    pub fn consumer(&self) -> Result<Consumer<T>> {
        self.slots.consumer()
    }
}

impl<T: Plain> RingOfMany<T> {
    /// Becomes one of the producers.
    ///
    /// # Errors
    /// [`LimitReached`](Error::LimitReached) while there are 64 others; otherwise as for [`Ring::producer`].
    pub fn producer(&self) -> Result<Producer<T>> {
        let role =
            self.slots.enter(PRODUCERS..PRODUCERS + MOST_PRODUCERS)?.ok_or_else(|| Error::LimitReached {
                operation: "become a producer",
                path: self.slots.found.inner.path(),
                limit: "producers of a ring",
                value: MOST_PRODUCERS as u64,
                remedy: "drop some, or share one between threads behind a lock",
                source: std::sync::Arc::new(Errno::USERS.into()),
            })?;
        Ok(Producer { slots: self.slots.clone(), role, tail: 0, is_alone: false })
    }

    /// Becomes the consumer.
    ///
    /// # Errors
    /// As for [`Ring::producer`].
    pub fn consumer(&self) -> Result<Consumer<T>> {
        self.slots.consumer()
    }
}

/// A ring's words.
#[derive(Debug)]
pub(super) struct Slots<T> {
    pub(super) found: Found,
    producers: usize,
    /// Words of a message.
    stride: usize,
    /// Two to this power slots.
    log2: u32,
    message: PhantomData<fn() -> T>,
}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Self { found: self.found.clone(), ..*self }
    }
}

/// What is to be waited for, and on whom.
enum Wait {
    /// Nothing: try again.
    Not,
    /// Somebody, who may be watched.
    On(Option<Waiting>),
}

impl<T: Plain> Slots<T> {
    fn new(found: Found, producers: usize) -> Self {
        let log2 = found.count.trailing_zeros();
        Self { found, producers, stride: size_of::<T>().div_ceil(8), log2, message: PhantomData }
    }

    #[inline]
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        self.found.inner.words().word(self.found.at + index)
    }

    #[inline]
    fn slot(&self, message: u64) -> usize {
        (message & (u64::from(self.found.count) - 1)) as usize
    }

    #[inline]
    fn lap(&self, message: u64) -> u64 {
        message >> self.log2
    }

    #[inline]
    fn state(&self, message: u64) -> &AtomicU64 {
        self.word(RING_HEAD + self.slot(message))
    }

    /// First word of a message's bytes.
    #[inline]
    fn bytes(&self, message: u64) -> usize {
        self.found.at + RING_HEAD + self.found.count as usize + self.slot(message) * self.stride
    }

    /// The message from which on a role has not done its work: where it is said to be, or behind, if who said so has died meanwhile.
    fn first(&self, said: usize, is_done: impl Fn(u64, u64) -> bool) -> Result<u64> {
        let said = self.word(said).load(Ordering::Acquire);
        let mut message = said;
        while is_done(self.state(message).load(Ordering::Acquire), self.lap(message)) {
            message = message.wrapping_add(1);
            if message.wrapping_sub(said) > u64::from(self.found.count) {
                return Err(self.garbled(message));
            }
        }
        Ok(message)
    }

    /// Takes one of several roles; none if all are taken.
    fn enter(&self, roles: std::ops::Range<usize>) -> Result<Option<usize>> {
        let inner = &self.found.inner;
        inner.check()?;
        for role in roles {
            let word = self.word(role);
            let now = word.load(Ordering::SeqCst);
            let name = now as u32 & NAME;
            if name != 0 && inner.life(name) != Life::Gone {
                continue;
            }
            let mine = CAME | u64::from(inner.name);
            if word.compare_exchange(now, mine, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Ok(Some(role));
            }
        }
        Ok(None)
    }

    /// Leaves a role, and lets those know who wait for it.
    fn leave(&self, role: usize, flag: usize) {
        if !self.found.inner.is_here() {
            return; // a child has inherited it: the parent leaves it
        }
        let mine = CAME | u64::from(self.found.inner.name);
        let _ = self.word(role).compare_exchange(mine, CAME, Ordering::SeqCst, Ordering::SeqCst);
        self.wake(flag);
    }

    fn consumer(&self) -> Result<Consumer<T>> {
        let role = self.enter(CONSUMER..CONSUMER + 1)?.ok_or_else(|| self.taken("another consumer"))?;
        let mut consumer = Consumer { slots: self.clone(), role, head: 0 };
        // The last one may have died before it had moved the head; producers have gone on since, into the next lap.
        consumer.head = self.first(HEAD, |found, lap| lap_of(found) == (lap + 1) & LAPS)?;
        Ok(consumer)
    }

    /// Whether anybody in these roles is there: whom to watch if it is one, or an error if all who ever came are gone.
    fn wait_for(&self, roles: std::ops::Range<usize>, who: &'static str) -> Result<Option<Waiting>> {
        let (mut came, mut died) = (false, false);
        let is_one = roles.len() == 1;
        for role in roles {
            let now = self.word(role).load(Ordering::SeqCst);
            let name = now as u32 & NAME;
            came |= now != 0;
            if name == 0 {
                continue;
            }
            match self.found.inner.life(name) {
                Life::Here(on) => return Ok(is_one.then_some(on)),
                Life::Gone => died = true,
            }
        }
        if came { Err(Error::PeerGone { path: self.found.inner.path(), who, died }) } else { Ok(None) }
    }

    /// Wakes who sleeps on a flag.
    #[inline]
    fn wake(&self, flag: usize) {
        fence(Ordering::SeqCst);
        if self.word(flag).load(Ordering::Relaxed) != 0 {
            self.word(flag).swap(0, Ordering::SeqCst);
            self.found.inner.words().wake(self.found.at + flag, i32::MAX as u32);
        }
    }

    /// Calls `work` until it has done something, and sleeps on `flag` in between. Whether it has before the deadline.
    fn until(
        &self,
        flag: usize,
        deadline: Option<Instant>,
        mut work: impl FnMut() -> Result<bool>,
        wait: impl Fn() -> Result<Wait>,
    ) -> Result<bool> {
        for _ in 0..LOOKS {
            if work()? {
                return Ok(true);
            }
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
        loop {
            self.word(flag).store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let wait = wait();
            if work()? {
                return Ok(true);
            }
            match wait? {
                Wait::Not => {}
                Wait::On(on) => {
                    if !self.found.inner.sleep(self.found.at + flag, 1, on, deadline) {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn taken(&self, holder: &'static str) -> Error {
        Error::Locked { path: self.found.inner.path(), holder }
    }

    #[cold]
    fn garbled(&self, message: u64) -> Error {
        let found = self.state(message).load(Ordering::Relaxed);
        let slot = self.slot(message);
        self.found.inner.garbled(format!("slot {slot} of a ring is in no state it could be in: {found:#x}"))
    }
}

/// The end of a ring at which messages go in. Dropping it leaves the role to another.
#[derive(Debug)]
pub struct Producer<T: Plain> {
    pub(super) slots: Slots<T>,
    role: usize,
    /// The next message, if it is alone; otherwise the ring knows.
    tail: u64,
    is_alone: bool,
}

impl<T: Plain> Producer<T> {
    /// Sends a message, and waits for room as long as that takes.
    ///
    /// # Errors
    /// [`PeerGone`](Error::PeerGone) if the ring is full and its consumer has left or died, until there is another; otherwise
    /// as for [`try_send_many`](Self::try_send_many).
    pub fn send(&mut self, message: &T) -> Result<()> {
        while !self.send_until(message, None)? {}
        Ok(())
    }

    /// As [`send`](Self::send), for at most `timeout`. Whether it was sent.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_timeout(&mut self, message: &T, timeout: Duration) -> Result<bool> {
        self.send_until(message, Instant::now().checked_add(timeout))
    }

    /// Sends a message if there is room. Whether it was sent.
    ///
    /// # Errors
    /// As for [`try_send_many`](Self::try_send_many).
    #[inline]
    pub fn try_send(&mut self, message: &T) -> Result<bool> {
        self.try_send_many(std::slice::from_ref(message)).map(|sent| sent == 1)
    }

    /// Sends the first of some messages, as far as there is room. How many.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) for a ring in which somebody has scribbled; [`Changed`](Error::Changed) if the memory was
    /// cut; [`Invalid`](Error::Invalid) in a child made by fork.
    pub fn try_send_many(&mut self, messages: &[T]) -> Result<usize> {
        self.slots.found.inner.check()?;
        let mut sent = 0;
        for message in messages {
            let put = if self.is_alone { self.put(message) } else { self.reserve_and_put(message) };
            match put {
                Ok(true) => sent += 1,
                Ok(false) => break,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break, // it comes again with the next call
            }
        }
        if sent > 0 {
            self.slots.wake(FILLED);
        }
        Ok(sent)
    }

    fn send_until(&mut self, message: &T, deadline: Option<Instant>) -> Result<bool> {
        if self.try_send(message)? {
            return Ok(true);
        }
        let slots = self.slots.clone();
        let wait = || slots.wait_for(CONSUMER..CONSUMER + 1, "consumer").map(Wait::On);
        slots.until(DRAINED, deadline, || self.try_send(message), wait)
    }

    /// Writes the next message, as the only producer. Whether there was room.
    #[inline]
    fn put(&mut self, message: &T) -> Result<bool> {
        let (slots, next) = (&self.slots, self.tail);
        let lap = slots.lap(next);
        let state = slots.state(next);
        let found = state.load(Ordering::Acquire);
        if found != free(lap) {
            let is_full = lap > 0 && found == published(lap - 1);
            return if is_full { Ok(false) } else { Err(slots.garbled(next)) };
        }
        slots.found.inner.words().store(slots.bytes(next), message.as_bytes());
        state.store(published(lap), Ordering::Release);
        self.tail = next.wrapping_add(1);
        slots.word(TAIL).store(self.tail, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the next message, beside other producers. Whether there was room.
    #[inline]
    fn reserve_and_put(&mut self, message: &T) -> Result<bool> {
        let slots = &self.slots;
        let Some(next) = self.reserve()? else { return Ok(false) };
        slots.found.inner.words().store(slots.bytes(next), message.as_bytes());
        let lap = slots.lap(next);
        let mine = reserved(lap, slots.found.inner.name);
        let done =
            slots.state(next).compare_exchange(mine, published(lap), Ordering::Release, Ordering::Relaxed);
        // Only of the dead is a slot taken away.
        done.map(|_| true).map_err(|_| slots.garbled(next))
    }

    /// A slot that bears this process's name; none if all are full.
    #[inline]
    pub(super) fn reserve(&self) -> Result<Option<u64>> {
        let slots = &self.slots;
        let tail = slots.word(TAIL);
        loop {
            let next = tail.load(Ordering::Acquire);
            let lap = slots.lap(next);
            let found = slots.state(next).load(Ordering::Acquire);
            let pass = || {
                let _ =
                    tail.compare_exchange(next, next.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed);
            };
            if found == free(lap) {
                let mine = reserved(lap, slots.found.inner.name);
                if slots
                    .state(next)
                    .compare_exchange(found, mine, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    pass();
                    return Ok(Some(next));
                }
            } else if found == free(lap + 1) || (lap_of(found) == lap & LAPS && kind(found) != FREE) {
                pass(); // somebody else's, who has not moved the tail yet
            } else if lap > 0 && lap_of(found) == (lap - 1) & LAPS && kind(found) != FREE {
                return Ok(None);
            } else if tail.load(Ordering::Acquire) == next
                && slots.state(next).load(Ordering::Acquire) == found
            {
                return Err(slots.garbled(next));
            }
        }
    }
}

impl<T: Plain> Drop for Producer<T> {
    fn drop(&mut self) {
        self.slots.leave(self.role, FILLED);
    }
}

/// The end of a ring at which messages come out. Dropping it leaves the role to another.
#[derive(Debug)]
pub struct Consumer<T: Plain> {
    pub(super) slots: Slots<T>,
    role: usize,
    /// The next message.
    head: u64,
}

impl<T: Plain> Consumer<T> {
    /// Takes a message, and waits for one as long as that takes.
    ///
    /// # Errors
    /// [`PeerGone`](Error::PeerGone) if the ring is empty and its producers have left or died, until there is another; otherwise
    /// as for [`try_receive_many`](Self::try_receive_many).
    pub fn receive(&mut self) -> Result<T> {
        loop {
            if let Some(message) = self.receive_until(None)? {
                return Ok(message);
            }
        }
    }

    /// As [`receive`](Self::receive), for at most `timeout`; none then.
    ///
    /// # Errors
    /// As for [`receive`](Self::receive).
    pub fn receive_timeout(&mut self, timeout: Duration) -> Result<Option<T>> {
        self.receive_until(Instant::now().checked_add(timeout))
    }

    /// Takes a message if there is one.
    ///
    /// # Errors
    /// As for [`try_receive_many`](Self::try_receive_many).
    #[inline]
    pub fn try_receive(&mut self) -> Result<Option<T>> {
        let mut message = T::new_zeroed();
        let count = self.try_receive_many(std::slice::from_mut(&mut message))?;
        Ok((count == 1).then_some(message))
    }

    /// Takes as many messages as there are and have room. How many.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) for a ring in which somebody has scribbled; [`Changed`](Error::Changed) if the memory was
    /// cut; [`Invalid`](Error::Invalid) in a child made by fork.
    pub fn try_receive_many(&mut self, into: &mut [T]) -> Result<usize> {
        self.slots.found.inner.check()?;
        let mut taken = 0;
        while taken < into.len() {
            match self.take(&mut into[taken]) {
                Ok(true) => taken += 1,
                Ok(false) => break,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break, // it comes again with the next call
            }
        }
        if taken > 0 {
            self.slots.wake(DRAINED);
        }
        self.slots.found.inner.check()?; // what was read from memory that is lost is no message
        Ok(taken)
    }

    /// How many messages were skipped since the ring was made, because the producer died while it wrote.
    pub fn skipped(&self) -> u64 {
        self.slots.word(LOST).load(Ordering::Relaxed)
    }

    fn receive_until(&mut self, deadline: Option<Instant>) -> Result<Option<T>> {
        let mut message = T::new_zeroed();
        if self.try_receive_many(std::slice::from_mut(&mut message))? == 1 {
            return Ok(Some(message));
        }
        let slots = self.slots.clone();
        let head = std::cell::Cell::new(self.head);
        let work = || {
            let taken = self.try_receive_many(std::slice::from_mut(&mut message))?;
            head.set(self.head);
            Ok(taken == 1)
        };
        let wait = || slots.awaited(head.get());
        let is_taken = slots.until(FILLED, deadline, work, wait)?;
        Ok(is_taken.then_some(message))
    }

    /// Takes the next message. Whether there was one.
    #[inline]
    fn take(&mut self, into: &mut T) -> Result<bool> {
        loop {
            let (slots, next) = (&self.slots, self.head);
            let lap = slots.lap(next);
            let state = slots.state(next);
            let found = state.load(Ordering::Acquire);
            if found == published(lap) {
                slots.found.inner.words().load(slots.bytes(next), into.as_mut_bytes());
                state.store(free(lap + 1), Ordering::Release);
                self.pass();
                return Ok(true);
            }
            if !slots.is_passed(next, found)? {
                return Ok(false);
            }
            self.pass();
        }
    }

    #[inline]
    fn pass(&mut self) {
        self.head = self.head.wrapping_add(1);
        self.slots.word(HEAD).store(self.head, Ordering::Relaxed);
    }
}

impl<T: Plain> Slots<T> {
    /// Whether there will be no message in a slot that holds none: it was taken by a consumer that died at once, or is a dead
    /// producer's, and is made free.
    #[inline]
    fn is_passed(&self, next: u64, found: u64) -> Result<bool> {
        let lap = self.lap(next);
        if found == free(lap) {
            return Ok(false);
        }
        if found == free(lap + 1) {
            return Ok(true);
        }
        if kind(found) != RESERVED || lap_of(found) != lap & LAPS {
            return Err(self.garbled(next));
        }
        if self.found.inner.life(name(found)) != Life::Gone {
            return Ok(false);
        }
        let state = self.state(next);
        let skip = state.compare_exchange(found, free(lap + 1), Ordering::AcqRel, Ordering::Relaxed);
        if skip.is_ok() {
            self.word(LOST).fetch_add(1, Ordering::Relaxed);
            self.wake(DRAINED);
        }
        Ok(skip.is_ok()) // otherwise it was published before its producer died
    }

    /// Whom to wait for at a slot without a message.
    fn awaited(&self, next: u64) -> Result<Wait> {
        let found = self.state(next).load(Ordering::Acquire);
        if kind(found) != RESERVED {
            return self.wait_for(PRODUCERS..PRODUCERS + self.producers, "producer").map(Wait::On);
        }
        Ok(match self.found.inner.life(name(found)) {
            Life::Here(on) => Wait::On(Some(on)),
            Life::Gone => Wait::Not,
        })
    }
}

impl<T: Plain> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.slots.leave(self.role, DRAINED);
    }
}

/// Laps are counted in 32 bits.
const LAPS: u64 = (1 << 32) - 1;

fn free(lap: u64) -> u64 {
    (lap & LAPS) << 32 | FREE
}

fn reserved(lap: u64, name: u32) -> u64 {
    (lap & LAPS) << 32 | u64::from(name) << 2 | RESERVED
}

fn published(lap: u64) -> u64 {
    (lap & LAPS) << 32 | PUBLISHED
}

fn kind(state: u64) -> u64 {
    state & 3
}

fn lap_of(state: u64) -> u64 {
    state >> 32
}

fn name(state: u64) -> u32 {
    (state >> 2) as u32 & NAME
}
