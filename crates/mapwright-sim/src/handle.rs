//! What a test does in a run: threads, time, and touching slices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mapwright::engine::kernel::{Fault, FaultMode, FaultOutcome, View};

use crate::SimKernel;
use crate::frames::{Access, Space, Touch, cut_copy};
use crate::rng::Rng;
use crate::scheduler::Core;
use crate::state::On;

/// A touch that ended in SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bus {
    /// The address touched.
    pub address: usize,
}

/// A run, as its test sees it. All methods are to be called from the run's own threads.
#[derive(Clone)]
pub struct SimHandle {
    core: Arc<Core>,
}

/// A thread of the test.
pub struct JoinHandle<T> {
    core: Arc<Core>,
    thread: usize,
    result: Arc<Mutex<Option<T>>>,
}

impl<T> JoinHandle<T> {
    /// Waits for the thread's end; what its closure returned.
    pub fn join(self) -> T {
        self.core.enter("join", [self.thread as u64, 0, 0]);
        while !self.core.ended(self.thread) {
            self.core.block(On::Join(self.thread), None);
        }
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.expect("a thread that ended left its result")
    }
}

impl SimHandle {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The simulated kernel, to give to an engine.
    pub fn kernel(&self) -> Arc<SimKernel> {
        Arc::new(SimKernel::new(&self.core))
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.core.seed
    }

    /// A generator for the test's own choices: depends on the run's seed and `stream`, not on the schedule.
    pub fn rng(&self, stream: u64) -> Rng {
        Rng::stream(self.core.seed, stream)
    }

    /// Starts a thread of the test.
    ///
    /// # Panics
    /// When the machine gives no thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.core.enter("spawn user", [0; 3]);
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        let work = move || {
            let value = work();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        };
        let thread = self.core.spawn(name, false, Box::new(work));
        let thread = thread.unwrap_or_else(|error| panic!("cannot spawn {name}: {error}"));
        self.core.step();
        JoinHandle { core: Arc::clone(&self.core), thread, result }
    }

    /// Simulated time. Not a yield point.
    pub fn now(&self) -> Duration {
        self.core.now()
    }

    /// Lets simulated time pass.
    pub fn sleep(&self, time: Duration) {
        self.core.sleep(time);
    }

    /// Lets another thread run, perhaps.
    pub fn yield_now(&self) {
        self.core.step();
    }

    /// Writes a line into the trace.
    pub fn note(&self, what: &'static str, numbers: [u64; 3]) {
        self.core.note(what, numbers);
    }

    /// Bytes of frames there are now, over all files.
    pub fn resident_bytes(&self) -> u64 {
        self.core.lock().resident_pages * crate::PAGE_SIZE
    }

    /// Touches of absent pages so far: explicit access makes none.
    pub fn fault_count(&self) -> u64 {
        self.core.lock().fault_count
    }

    /// Checks that `Frames::load` was never asked for pages without a frame.
    ///
    /// # Panics
    /// When it was.
    pub fn assert_no_hole_reads(&self) {
        let hole_reads = self.core.lock().hole_reads;
        assert_eq!(hole_reads, 0, "Frames::load read pages that have no frame");
    }

    /// Reads memory as a user of a slice does: page by page, in pieces, faulting where a page is absent.
    ///
    /// # Errors
    /// [`Bus`] where the thread would get SIGBUS.
    ///
    /// # Panics
    /// Where it would get SIGSEGV: the addresses are nobody's.
    pub fn read_slice(&self, address: usize, len: usize) -> Result<Vec<u8>, Bus> {
        let mut bytes = vec![0; len];
        self.touch_slice("read slice", address, len, |space, view, offset, part| {
            space.touch(view, offset, Access::Read(&mut bytes[part]))
        })?;
        Ok(bytes)
    }

    /// Writes memory as a user of a mutable slice does.
    ///
    /// # Errors
    /// [`Bus`] where the thread would get SIGBUS; what comes before is written.
    ///
    /// # Panics
    /// Where it would get SIGSEGV: the addresses are nobody's, or read-only.
    pub fn write_slice(&self, address: usize, bytes: &[u8]) -> Result<(), Bus> {
        self.touch_slice("write slice", address, bytes.len(), |space, view, offset, part| {
            space.touch(view, offset, Access::Write(&bytes[part]))
        })
    }

    fn touch_slice(
        &self,
        what: &'static str,
        address: usize,
        len: usize,
        mut touch: impl FnMut(&Space, View, u64, std::ops::Range<usize>) -> Touch,
    ) -> Result<(), Bus> {
        self.core.enter(what, [address as u64, len as u64, 0]);
        let mut bus = None;
        cut_copy(&self.core, address as u64, len, |address, part| {
            let address = address as usize;
            while bus.is_none() {
                let (space, view, offset) = self.space_at(address);
                match touch(&space, view, offset, part.clone()) {
                    Touch::Done => break,
                    Touch::Bus => bus = Some(Bus { address }),
                    Touch::Fault => bus = self.fault(&space, address).err(),
                }
            }
        });
        self.core.note(if bus.is_some() { "bus" } else { "slice done" }, [address as u64, len as u64, 0]);
        bus.map_or(Ok(()), Err)
    }

    fn space_at(&self, address: usize) -> (Arc<Space>, View, u64) {
        let spaces = self.core.lock().spaces.clone();
        let found = spaces.iter().find_map(|space| {
            let (view, offset) = space.locate(address)?;
            Some((Arc::clone(space), view, offset))
        });
        found.unwrap_or_else(|| panic!("SIGSEGV at {address:#x}: no file is mapped there"))
    }

    /// A touch of an absent page: returns when it is to be tried again.
    fn fault(&self, space: &Space, address: usize) -> Result<(), Bus> {
        self.core.note("fault", [address as u64, 0, 0]);
        self.core.lock().fault_count += 1;
        match space.mode {
            FaultMode::InThread => {
                self.core.step();
                let sink = space.sink.upgrade().ok_or(Bus { address })?;
                match sink.serve_in_thread(Fault { address }) {
                    FaultOutcome::Served => Ok(()),
                    FaultOutcome::Failed | FaultOutcome::NotOurs => Err(Bus { address }),
                }
            }
            _ => {
                self.core.queue_fault(address);
                self.core.block(On::Fault(address), None);
                Ok(())
            }
        }
    }
}
