//! Linux, as the engine sees it.

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mapwright_sys::frames::SharedFrames;
use mapwright_sys::futex;
use mapwright_sys::moved::MovedFrames;
use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::uffd::{Features, Source, Uffd};

use super::host_frames::{Guards, Moved, Shared};
use super::kernel::{Fault, FaultMode, FrameKind, FrameSpec, Frames, Kernel, View};
use crate::error::{Error, Result};

/// What reading needs: faults on absent and on unmapped pages of shared memory.
const READ_FEATURES: Features = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM);
/// What writing needs beside it: writes tracked by the kernel.
const WRITE_FEATURES: Features = Features::WP_HUGETLBFS_SHMEM.with(Features::WP_ASYNC);
/// What writing frames of another process needs beside it: a first write is a fault.
const REMOTE_WRITE_FEATURES: Features = Features::WP_HUGETLBFS_SHMEM.with(Features::WRITE_PROTECT);

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
    for wanted in [WRITE_FEATURES, Features::POISON, Features::MOVE] {
        if offered.contains(wanted) {
            features = features.with(wanted);
        }
    }
    if mode == FaultMode::InThread {
        features = features.with(Features::SIGBUS);
    }
    Uffd::open(features).map_err(refused)
}

/// A userfaultfd for memory whose faults another process serves.
///
/// # Errors
/// [`Error::Unsupported`] where the machine has none, or can't stop a thread at a page that will never come.
pub(crate) fn open_uffd_of_client() -> Result<Uffd> {
    let (offered, _) = Uffd::offered().map_err(refused)?;
    let wanted = READ_FEATURES.with(Features::POISON);
    if !offered.contains(wanted) {
        return Err(too_old("userfaultfd that can refuse pages (POISON)"));
    }
    let for_writing = wanted.with(REMOTE_WRITE_FEATURES);
    Uffd::open(if offered.contains(for_writing) { for_writing } else { wanted }).map_err(refused)
}

/// Whether a userfaultfd for frames of another process is one for writing too.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn check_uffd_for_writing(uffd: &Uffd) -> Result<()> {
    if uffd.features().contains(REMOTE_WRITE_FEATURES) {
        return Ok(());
    }
    Err(too_old("write protection of shared memory by userfaultfd (WP_HUGETLBFS_SHMEM)"))
}

/// Frames that move, where the kernel can move pages (6.8).
fn move_frames(spec: &FrameSpec, uffd: &Arc<Uffd>, guards: Guards) -> Result<Arc<dyn Frames>> {
    if !uffd.features().contains(Features::MOVE) {
        return Err(too_old("pages that move (UFFDIO_MOVE)"));
    }
    let frames = MovedFrames::new(spec.capacity, Arc::clone(uffd)).map_err(|e| Error::Unsupported {
        feature: "private address space for the mapping",
        remedy: "set vm.overcommit_memory to 0 or 1, raise RLIMIT_AS or vm.max_map_count, or use FrameKind::Shared",
        source: Arc::new(e),
    })?;
    let frames = Moved::new(frames, guards);
    guarded(&frames)?;
    Ok(Arc::new(frames))
}

/// Makes sure that faults of the plain view reach the engine.
fn guarded(frames: &dyn Frames) -> Result<()> {
    frames.address(View::Plain).map(drop).map_err(|error| match error {
        Error::Unsupported { source, .. } => {
            Error::Unsupported { feature: "a SIGBUS handler", remedy: "use FaultMode::Thread", source }
        }
        error => error,
    })
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
        let guards = Guards::new(&spec);
        if spec.may_move() {
            match move_frames(&spec, &uffd, guards.clone()) {
                Err(error) if spec.kind == FrameKind::Moved => return Err(error),
                Err(_) => {} // shared ones ask for less: no address space that is private and writable
                frames => return frames,
            }
        }
        let pagemap = self.pagemap(spec.writable)?;
        // What these ask for is not everybody's to have: others will do.
        let large = || SharedFrames::new_large(spec.capacity, Arc::clone(&uffd), Arc::clone(&pagemap)).ok();
        let frames = match spec.lent.then(large).flatten() {
            Some(large) => Ok(large),
            None => SharedFrames::new(spec.capacity, spec.writable, uffd, pagemap),
        };
        let frames = frames.map_err(|e| Error::Unsupported {
            feature: "address space and a memfd for the mapping",
            remedy: "raise RLIMIT_AS, RLIMIT_NOFILE or vm.max_map_count, or reserve less (MapOptions::reserve)",
            source: Arc::new(e),
        })?;
        let frames = Shared::new(frames, guards);
        guarded(&frames)?;
        Ok(Arc::new(frames))
    }

    fn serves_user_mode_only(&self) -> bool {
        self.by_thread.get().is_some_and(|uffd| uffd.source() == Source::UserModeOnly)
    }

    fn wait_faults(&self, faults: &mut Vec<Fault>) -> io::Result<()> {
        let Some(uffd) = self.by_thread.get() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut touches = Vec::with_capacity(16);
        uffd.wait_faults(&mut touches)?;
        faults.extend(touches.into_iter().map(|touch| Fault { address: touch.address }));
        Ok(())
    }

    fn interrupt_faults(&self) {
        self.by_thread.get().into_iter().for_each(|uffd| uffd.interrupt());
    }
}
