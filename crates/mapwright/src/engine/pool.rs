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

/// Enough for stores that hang on many reads at once; threads are made only when jobs wait.
const MAX_THREADS: usize = 256;

/// Work for a pool thread.
pub type Job = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// The threads and their jobs.
#[derive(Default)]
pub struct Pool {
    state: Mutex<PoolState>,
    closing: AtomicBool,
}

#[derive(Default)]
struct PoolState {
    jobs: VecDeque<Job>,
    /// Parked threads, the latest last: it is woken first, its cache being warmest.
    idle: Vec<Arc<AtomicU32>>,
    threads: usize,
}

impl Pool {
    /// Runs `job` on a pool thread, soon.
    pub fn submit(&self, engine: &Arc<Engine>, job: Job) {
        enum Then {
            Wake(Arc<AtomicU32>),
            Spawn,
            Nothing,
        }
        let then = {
            let mut state = lock(&self.state);
            state.jobs.push_back(job);
            match state.idle.pop() {
                Some(parked) => Then::Wake(parked),
                None if state.threads < MAX_THREADS => {
                    state.threads += 1;
                    Then::Spawn
                }
                None => Then::Nothing,
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
                Some(job) => job(engine),
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
