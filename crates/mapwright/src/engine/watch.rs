//! Deadlines of futures: a runtime's timers are not ours, so a pool thread wakes a task whose time is up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use super::pool::Kind;
use super::{Engine, lock};

/// Tasks to be woken at a time.
#[derive(Default)]
pub(crate) struct Watch {
    state: Mutex<WatchState>,
    changed: AtomicU32,
}

#[derive(Default)]
struct WatchState {
    entries: Vec<(Duration, Waker)>,
    running: bool,
}

impl Watch {
    /// Wakes a task at a time of the engine's clock.
    pub(crate) fn at(&self, engine: &Arc<Engine>, time: Duration, waker: Waker) {
        let start = {
            let mut state = lock(&self.state);
            state.entries.push((time, waker));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            engine.pool.submit(engine, Kind::Ordinary, Box::new(|engine| engine.watch.run(engine)));
        } else {
            self.look_again(engine);
        }
    }

    /// Lets the watching thread end.
    pub(crate) fn close(&self, engine: &Engine) {
        self.look_again(engine);
    }

    fn look_again(&self, engine: &Engine) {
        self.changed.fetch_add(1, Ordering::AcqRel);
        engine.kernel.wake(&self.changed);
    }

    fn run(&self, engine: &Engine) {
        loop {
            let seen = self.changed.load(Ordering::Acquire);
            let now = engine.now();
            let (due, next) = {
                let mut state = lock(&self.state);
                let due: Vec<_> = state.entries.extract_if(.., |(time, _)| *time <= now).collect();
                let next = state.entries.iter().map(|(time, _)| *time).min();
                state.running = next.is_some() && !engine.pool.is_closing();
                (due, next.filter(|_| state.running))
            };
            due.into_iter().for_each(|(_, waker)| waker.wake());
            match next {
                Some(next) => engine.kernel.wait(&self.changed, seen, Some(next - now)),
                None => return,
            }
        }
    }
}
