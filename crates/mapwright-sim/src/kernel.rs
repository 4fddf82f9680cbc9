//! The simulated kernel: threads, time, waiting and faults. Frames are in `frames.rs` and `moved.rs`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mapwright::engine::kernel::{Fault, FrameSpec, Frames, Kernel};

use crate::frames::SimFrames;
use crate::moved::SimMoved;
use crate::scheduler::Core;
use crate::state::On;

/// The kernel of one run.
pub struct SimKernel {
    core: Arc<Core>,
}

impl SimKernel {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }
}

impl Kernel for SimKernel {
    fn now(&self) -> Duration {
        self.core.step();
        self.core.now()
    }

    fn spawn(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.core.enter("spawn", [0; 3]);
        let per_1000 = self.core.options.spawn_errors_per_1000;
        if self.core.lock().rng.per_1000(per_1000) {
            self.core.note("no thread", [0; 3]);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let number = self.core.spawn(name, true, work)?;
        self.core.note("spawned", [number as u64, 0, 0]);
        self.core.step();
        Ok(())
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        self.core.step();
        // Nobody else runs between this look and `block`: together they are futex(2)'s atomic step.
        let found = word.load(Ordering::SeqCst);
        self.core.note("wait", [u64::from(expected), u64::from(found), 0]);
        if found == expected {
            self.core.block(On::Word(address_of(word)), timeout);
            self.core.note("waited", [0; 3]);
        }
        self.core.step();
    }

    fn wake(&self, word: &AtomicU32) {
        self.core.step();
        let address = address_of(word);
        let woken = self.core.lock().wake_where(|_, on| on == On::Word(address));
        self.core.note("wake", [woken as u64, 0, 0]);
        self.core.step();
    }

    fn frames(&self, spec: FrameSpec) -> mapwright::Result<Arc<dyn Frames>> {
        self.core.enter("frames", [spec.capacity, spec.writable.into(), 0]);
        let moves = spec.may_move();
        let frames = SimFrames::new(&self.core, spec);
        Ok(if moves { Arc::new(SimMoved(frames)) } else { Arc::new(frames) })
    }

    /// Gives a random part of the queue in random order, so that batches, overtaking and stale messages all happen.
    fn wait_faults(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        self.core.step();
        while !self.take_faults(faults) {
            self.core.block(On::Faults, None);
        }
        self.core.note("faults taken", [faults.len() as u64, 0, 0]);
        self.core.step();
        Ok(())
    }

    /// Every thread in `wait_faults` returns, and every thread that calls it later does so once: as many pagers as there are
    /// on this kernel, the one that is meant is told.
    fn interrupt_faults(&self) {
        self.core.enter("interrupt faults", [0; 3]);
        let state = &mut *self.core.lock();
        state.interrupts += 1;
        state.wake_where(|_, on| on == On::Faults);
    }
}

impl SimKernel {
    /// Whether `wait_faults` returns now.
    fn take_faults(&self, faults: &mut Vec<Fault>) -> bool {
        let me = self.core.me();
        let state = &mut *self.core.lock();
        let interrupts = state.interrupts;
        let told = state.interrupts_told.entry(me).or_default();
        // Faults and an interrupt at once: either may be told first.
        if *told < interrupts && (state.faults.is_empty() || state.rng.per_1000(500)) {
            *told = interrupts;
            return true;
        }
        if state.faults.is_empty() {
            return false;
        }
        for _ in 0..=state.rng.index(state.faults.len()) {
            let taken = state.rng.index(state.faults.len());
            let address = state.faults.swap_remove(taken).address;
            faults.push(Fault { address });
        }
        true
    }
}

/// What tells words apart, as for futex(2).
fn address_of(word: &AtomicU32) -> usize {
    (&raw const *word).addr()
}
