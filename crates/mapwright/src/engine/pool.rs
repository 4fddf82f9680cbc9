//! Threads that serve: fault service, read-ahead, fills of stores that may hang, background eviction.
//!
//! Jobs are taken in order by whichever thread is idle; a new thread is made when none is and the limit allows. Fault
//! service follows the leader/followers pattern (Schmidt et al., 2000): the job that waits for faults hands that role on
//! before it serves one that needs I/O, so no fault waits for another's I/O and none changes threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::Engine;
use super::lock;

/// Threads are made only when jobs wait.
const MAX_THREADS: usize = 256;
/// Jobs that a store may hang run on this many threads at most: there are always some for the rest.
const MAX_HANGING: usize = MAX_THREADS / 2;

/// Work for a pool thread.
pub type Job = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// What a job is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Gets a thread of its own at once, whatever the limit: the wait for faults.
    Urgent,
    /// Ends by itself.
    Ordinary,
    /// Calls a store that may hang.
    MayHang,
}

/// The threads and their jobs.
#[derive(Default)]
pub struct Pool {
    state: Mutex<PoolState>,
    closing: AtomicBool,
}

#[derive(Default)]
struct PoolState {
    /// Jobs to be taken, and whether each counts in `hanging`.
    jobs: VecDeque<(Job, bool)>,
    /// Jobs of `Kind::MayHang` beyond those that may be taken now.
    held_back: VecDeque<Job>,
    /// Jobs of `Kind::MayHang` taken or to be taken.
    hanging: usize,
    /// Parked threads, the latest last: it is woken first, its cache being warmest.
    idle: Vec<Arc<AtomicU32>>,
    threads: usize,
}

impl PoolState {
    /// Queues a job; whether a thread should be found for it.
    fn queue(&mut self, job: Job, kind: Kind) -> bool {
        match kind {
            Kind::Urgent => self.jobs.push_front((job, false)),
            Kind::Ordinary => self.jobs.push_back((job, false)),
            Kind::MayHang if self.hanging == MAX_HANGING => {
                self.held_back.push_back(job);
                return false;
            }
            Kind::MayHang => {
                self.hanging += 1;
                self.jobs.push_back((job, true));
            }
        }
        true
    }

    /// Notes the end of a job that counted in `hanging`: another takes its place.
    fn one_came_back(&mut self) {
        match self.held_back.pop_front() {
            Some(job) => self.jobs.push_back((job, true)),
            None => self.hanging -= 1,
        }
    }
}

impl Pool {
    /// Runs `job` on a pool thread, soon.
    pub fn submit(&self, engine: &Arc<Engine>, kind: Kind, job: Job) {
        enum Then {
            Wake(Arc<AtomicU32>),
            Spawn,
            Nothing,
        }
        let then = {
            let mut state = lock(&self.state);
            match state.queue(job, kind).then(|| state.idle.pop()) {
                Some(Some(parked)) => Then::Wake(parked),
                Some(None) if state.threads < MAX_THREADS || kind == Kind::Urgent => {
                    state.threads += 1;
                    Then::Spawn
                }
                _ => Then::Nothing,
            }
        };
        match then {
            Then::Wake(parked) => {
                parked.store(1, Ordering::Release);
                engine.kernel.wake(&parked);
            }
            Then::Spawn => self.spawn(engine),
            Then::Nothing => {}
        }
    }

    fn spawn(&self, engine: &Arc<Engine>) {
        let own = Arc::clone(engine);
        let spawned = engine.kernel.spawn("mapwright", Box::new(move || own.pool.work(&own)));
        if spawned.is_err() {
            // The job stays queued for the threads there are. The first one is made at open, where failure is reported.
            lock(&self.state).threads -= 1;
        }
    }

    fn work(&self, engine: &Arc<Engine>) {
        let parked = Arc::new(AtomicU32::new(0));
        loop {
            let job = {
                let mut state = lock(&self.state);
                let job = state.jobs.pop_front();
                if job.is_none() {
                    if self.closing.load(Ordering::Acquire) {
                        state.threads -= 1;
                        return;
                    }
                    parked.store(0, Ordering::Release);
                    state.idle.push(Arc::clone(&parked));
                }
                job
            };
            match job {
                Some((job, may_hang)) => {
                    job(engine);
                    if may_hang {
                        lock(&self.state).one_came_back();
                    }
                }
                None => {
                    while parked.load(Ordering::Acquire) == 0 {
                        engine.kernel.wait(&parked, 0, None);
                    }
                }
            }
        }
    }

    /// Number of threads now.
    pub fn threads(&self) -> usize {
        lock(&self.state).threads
    }

    /// Whether the pager is closing.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Lets all threads end once the queue is empty.
    pub fn close(&self, engine: &Engine) {
        self.closing.store(true, Ordering::Release);
        let idle = std::mem::take(&mut lock(&self.state).idle);
        for parked in idle {
            parked.store(1, Ordering::Release);
            engine.kernel.wake(&parked);
        }
    }
}
