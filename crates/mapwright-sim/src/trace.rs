//! What happened in a run: a hash over every event (two runs are the same when it is) and the last events as text.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// How many events a failure report shows.
const KEPT: usize = 200;

/// One thing that happened. Numbers only: text is made when somebody wants to read it.
#[derive(Clone, Copy, Debug)]
struct Event {
    step: u64,
    now_ns: u64,
    thread: usize,
    what: &'static str,
    numbers: [u64; 3],
}

/// The hash and the ring.
pub(crate) struct Trace {
    hash: u64,
    ring: VecDeque<Event>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, ring: VecDeque::with_capacity(KEPT) }
    }

    /// Notes an event. `numbers` must follow from the seed: no real addresses, no real time.
    pub(crate) fn note(
        &mut self,
        step: u64,
        now_ns: u64,
        thread: usize,
        what: &'static str,
        numbers: [u64; 3],
    ) {
        self.mix(step);
        self.mix(now_ns);
        self.mix(thread as u64);
        for &byte in what.as_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        numbers.into_iter().for_each(|number| self.mix(number));
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(Event { step, now_ns, thread, what, numbers });
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The last events, oldest first; `name` gives a thread's name.
    pub(crate) fn render<'a>(&self, name: impl Fn(usize) -> &'a str) -> String {
        let mut text = String::new();
        for event in &self.ring {
            let [a, b, c] = event.numbers;
            let _ = writeln!(
                text,
                "  {:>7} {:>14?} {:<16} {:<18} {a:#x} {b:#x} {c:#x}",
                event.step,
                Duration::from_nanos(event.now_ns),
                format!("{}:{}", event.thread, name(event.thread)),
                event.what,
            );
        }
        text
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash ^= self.hash >> 29;
    }
}
