//! Linux, as the engine sees it.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use mapwright_sys::frames::SharedFrames;
use mapwright_sys::futex;
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::signals::{BusGuard, BusOutcome, GuardToken, guard};
use mapwright_sys::uffd::{Features, Source, Uffd};
use mapwright_sys::window::AddressRange;

use super::kernel::{Fault, FaultMode, FaultOutcome, FaultSink, FrameSpec, Frames, Kernel, View};
use super::lock;
use crate::error::{Error, Result};

/// What reading needs: faults on absent and on unmapped pages of shared memory.
const READ_FEATURES: Features = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM);
/// What writing needs beside it: writes tracked by the kernel.
const WRITE_FEATURES: Features = Features::WP_HUGETLBFS_SHMEM.with(Features::WP_ASYNC);

/// The kernel that this process runs on.
pub struct Host {
    started: Instant,
    by_thread: OnceLock<Arc<Uffd>>,
    in_thread: OnceLock<Arc<Uffd>>,
    pagemap: OnceLock<Arc<Pagemap>>,
}

impl Host {
    /// The kernel.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            by_thread: OnceLock::new(),
            in_thread: OnceLock::new(),
            pagemap: OnceLock::new(),
        }
    }

    fn uffd(&self, mode: FaultMode, writable: bool) -> Result<Arc<Uffd>> {
        let place = match mode {
            FaultMode::Thread => &self.by_thread,
            FaultMode::InThread => &self.in_thread,
        };
        let uffd = match place.get() {
            Some(uffd) => uffd,
            None => {
                let opened = Arc::new(open_uffd(mode)?);
                place.get_or_init(|| opened)
            }
        };
        if writable && !uffd.features().contains(WRITE_FEATURES) {
            return Err(too_old("tracking of writes (userfaultfd WP_ASYNC)"));
        }
        Ok(Arc::clone(uffd))
    }

    fn pagemap(&self, writable: bool) -> Result<Arc<Pagemap>> {
        let pagemap = match self.pagemap.get() {
            Some(pagemap) => pagemap,
            None => {
                let opened = Pagemap::open().map_err(|e| Error::Unsupported {
                    feature: "/proc/self/pagemap",
                    remedy: "mount /proc in this container",
                    source: Arc::new(e),
                })?;
                self.pagemap.get_or_init(|| Arc::new(opened))
            }
        };
        if writable && pagemap.probe().is_err() {
            return Err(too_old("PAGEMAP_SCAN"));
        }
        Ok(Arc::clone(pagemap))
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

fn open_uffd(mode: FaultMode) -> Result<Uffd> {
    let (offered, _) = Uffd::offered().map_err(refused)?;
    if !offered.contains(READ_FEATURES) {
        return Err(too_old("userfaultfd for shared memory"));
    }
    let mut features = READ_FEATURES;
    for wanted in [WRITE_FEATURES, Features::POISON] {
        if offered.contains(wanted) {
            features = features.with(wanted);
        }
    }
    if mode == FaultMode::InThread {
        features = features.with(Features::SIGBUS);
    }
    Uffd::open(features).map_err(refused)
}

fn refused(error: io::Error) -> Error {
    let remedy = match error.raw_os_error() {
        Some(errno) if errno == rustix::io::Errno::NOSYS.raw_os_error() => {
            "run Linux 6.8 or newer with CONFIG_USERFAULTFD, or use Strategy::Kernel"
        }
        _ => {
            "allow userfaultfd in the container's seccomp profile, or give the process /dev/userfaultfd, or set \
             vm.unprivileged_userfaultfd=1; or use Strategy::Kernel"
        }
    };
    Error::Unsupported { feature: "userfaultfd", remedy, source: Arc::new(error) }
}

fn too_old(feature: &'static str) -> Error {
    let source = Arc::new(io::Error::from(io::ErrorKind::Unsupported));
    Error::Unsupported { feature, remedy: "run Linux 6.8 or newer, or use Strategy::Kernel", source }
}

impl Kernel for Host {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn spawn(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        std::thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(work).map(drop)
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        futex::wait(word, expected, timeout);
    }

    fn wake(&self, word: &AtomicU32) {
        futex::wake(word);
    }

    fn frames(&self, spec: FrameSpec) -> Result<Arc<dyn Frames>> {
        let uffd = self.uffd(spec.mode, spec.writable)?;
        let pagemap = self.pagemap(spec.writable)?;
        let frames = SharedFrames::new(spec.capacity, spec.writable, uffd, pagemap).map_err(|e| Error::Unsupported {
            feature: "address space and a memfd for the mapping",
            remedy: "raise RLIMIT_AS, RLIMIT_NOFILE or vm.max_map_count, or reserve less (MapOptions::reserve)",
            source: Arc::new(e),
        })?;
        let bus = (spec.mode == FaultMode::InThread).then(|| Arc::new(InThread(spec.sink)));
        let frames =
            HostFrames { inner: Arc::new(frames), capacity: spec.capacity, bus, guards: Default::default() };
        frames.guard_view(View::Plain).map_err(|e| Error::Unsupported {
            feature: "a SIGBUS handler",
            remedy: "use FaultMode::Thread",
            source: Arc::new(e),
        })?;
        Ok(Arc::new(frames))
    }

    fn serves_user_mode_only(&self) -> bool {
        self.by_thread.get().is_some_and(|uffd| uffd.source() == Source::UserModeOnly)
    }

    fn wait_faults(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        let Some(uffd) = self.by_thread.get() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut addresses = Vec::with_capacity(16);
        uffd.wait_faults(&mut addresses)?;
        faults.extend(addresses.into_iter().map(|address| Fault { address }));
        Ok(())
    }

    fn interrupt_faults(&self) {
        self.by_thread.get().into_iter().for_each(|uffd| uffd.interrupt());
    }
}

/// Passes SIGBUS of in-thread faults to the engine.
struct InThread(Weak<dyn FaultSink>);

impl BusGuard for InThread {
    fn on_bus(&self, address: usize) -> BusOutcome {
        let Some(sink) = self.0.upgrade() else { return BusOutcome::Pass };
        match sink.serve_in_thread(Fault { address }) {
            FaultOutcome::Served => BusOutcome::Retry,
            FaultOutcome::Failed | FaultOutcome::NotOurs => BusOutcome::Pass,
        }
    }
}

/// Shared frames, and the guards of their views if faults are served in the faulting thread.
struct HostFrames {
    /// Dropped before the frames: no handler runs for addresses that are being unmapped.
    guards: Mutex<[Option<GuardToken>; 2]>,
    inner: Arc<SharedFrames>,
    capacity: u64,
    bus: Option<Arc<InThread>>,
}

impl HostFrames {
    fn guard_view(&self, view: View) -> io::Result<usize> {
        let start = self.inner.address(view == View::Checked)?;
        // One thread registers: a second token for the same range would take the guard away when it is dropped.
        let token = &mut lock(&self.guards)[usize::from(view == View::Checked)];
        if let (Some(bus), None) = (&self.bus, &token) {
            let made = guard(start..start + self.capacity as usize, Arc::clone(bus) as Arc<dyn BusGuard>)?;
            *token = Some(made);
        }
        Ok(start)
    }
}

impl Frames for HostFrames {
    fn address(&self, view: View) -> Result<usize> {
        self.guard_view(view).map_err(|e| Error::Unsupported {
            feature: "a second view for checked access",
            remedy: "raise RLIMIT_AS or vm.max_map_count, or reserve less (MapOptions::reserve)",
            source: Arc::new(e),
        })
    }

    fn memory(&self) -> Option<Arc<dyn AddressRange>> {
        Some(Arc::clone(&self.inner) as Arc<dyn AddressRange>)
    }

    fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.store(at, bytes)
    }

    fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.fill(at, bytes)
    }

    fn load(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.load(at, into)
    }

    fn map(&self, view: View, range: Range<u64>) -> io::Result<()> {
        self.inner.map(view == View::Checked, range)
    }

    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.inner.unmap(ranges)
    }

    fn written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.inner.written(view == View::Checked, range, out)
    }

    fn take_written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.inner.take_written(view == View::Checked, range, out)
    }

    fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.inner.release(ranges)
    }

    fn wake(&self, range: Range<u64>) {
        self.inner.wake(range);
    }

    fn copy_out(&self, at: u64, into: &mut [u8]) {
        self.inner.copy_out(at, into);
    }

    fn copy_in(&self, at: u64, bytes: &[u8]) {
        self.inner.copy_in(at, bytes);
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.zero(range)
    }

    fn restore(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.restore(range)
    }

    fn poison(&self, range: Range<u64>) -> io::Result<()> {
        self.inner.poison(range)
    }
}
