//! The frames of a file on Linux, shared or moved, and the guards of their views where faults are served in the faulting
//! thread.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use mapwright_sys::buffer::Buffer;
use mapwright_sys::frames::SharedFrames;
use mapwright_sys::moved::MovedFrames;
use mapwright_sys::signals::{BusGuard, BusOutcome, GuardToken, guard};
use mapwright_sys::window::AddressRange;

use super::kernel::{
    Fault, FaultMode, FaultOutcome, FaultSink, FrameSpec, Frames, Regions, RemoteView, View,
};
use super::lock;
use crate::error::{Error, Result};

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

/// The guards of a file's views. None are needed where a thread of the pager serves faults.
#[derive(Clone)]
pub(super) struct Guards {
    tokens: Arc<Mutex<[Option<GuardToken>; 2]>>,
    capacity: u64,
    bus: Option<Arc<InThread>>,
}

impl Guards {
    /// Guards for frames of this kind.
    pub(super) fn new(spec: &FrameSpec) -> Self {
        let bus = (spec.mode == FaultMode::InThread).then(|| Arc::new(InThread(Weak::clone(&spec.sink))));
        Self { tokens: Arc::default(), capacity: spec.capacity, bus }
    }

    /// Guards a view that starts at `start`, unless it is guarded; the start.
    fn guard(&self, view: View, start: io::Result<usize>) -> Result<usize> {
        let guarded = start.and_then(|start| {
            // One thread registers: a second token for the same range would take the guard away when it is dropped.
            let token = &mut lock(&self.tokens)[usize::from(view == View::Checked)];
            if let (Some(bus), None) = (&self.bus, &token) {
                let made =
                    guard(start..start + self.capacity as usize, Arc::clone(bus) as Arc<dyn BusGuard>)?;
                *token = Some(made);
            }
            Ok(start)
        });
        guarded.map_err(|e| Error::Unsupported {
            feature: "a second view for checked access",
            remedy: "raise RLIMIT_AS or vm.max_map_count, or reserve less (MapOptions::reserve)",
            source: Arc::new(e),
        })
    }
}

/// The methods that both kinds of frames have alike: those of the same names of `inner`, views being guarded by `guards`.
macro_rules! frames_of_inner {
    () => {
        fn address(&self, view: View) -> Result<usize> {
            self.guards.guard(view, self.inner.address(view == View::Checked))
        }

        fn memory(&self) -> Option<Arc<dyn AddressRange>> {
            Some(Arc::clone(&self.inner) as Arc<dyn AddressRange>)
        }

        fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
            self.inner.store(at, bytes)
        }

        fn release(&self, ranges: &[Range<u64>]) -> io::Result<()> {
            self.inner.release(ranges)
        }

        fn copy_out(&self, at: u64, into: &mut [u8]) {
            self.inner.copy_out(at, into);
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
    };
}

/// Frames that every view shows, views of other processes too, and that can be written.
pub(super) struct Shared {
    /// Dropped before the frames: no handler runs for addresses that are being unmapped.
    guards: Guards,
    inner: Arc<SharedFrames>,
    lent: AtomicBool,
    /// Not held over a call to one of them.
    remote: Mutex<Remote>,
    /// Held for reading while pages are called dirty and made writable in a view of another process, for writing while they are
    /// called clean and protected in all of them.
    granting: RwLock<()>,
}

/// Views of other processes by number. No number is given twice: what is late for a view that is gone must not go to another.
#[derive(Default)]
struct Remote {
    views: BTreeMap<u32, Arc<dyn RemoteView>>,
    last: u32,
}

impl Shared {
    pub(super) fn new(frames: SharedFrames, guards: Guards) -> Self {
        let (lent, remote, granting) = Default::default();
        Self { guards, inner: Arc::new(frames), lent, remote, granting }
    }

    fn remote_view(&self, number: u32) -> Option<Arc<dyn RemoteView>> {
        lock(&self.remote).views.get(&number).map(Arc::clone)
    }

    fn remote(&self) -> Vec<Arc<dyn RemoteView>> {
        if !self.is_lent() {
            return Vec::new();
        }
        lock(&self.remote).views.values().map(Arc::clone).collect()
    }
}

impl Frames for Shared {
    frames_of_inner!();

    fn regions(&self) -> Option<&dyn Regions> {
        self.inner.is_large().then_some(self)
    }

    fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Acquire)
    }

    fn lend(&self) -> io::Result<OwnedFd> {
        self.lent.store(true, Ordering::Release);
        self.inner.lend()
    }

    fn admit(&self, view: Arc<dyn RemoteView>) -> io::Result<u32> {
        let mut remote = lock(&self.remote);
        remote.last = remote.last.checked_add(1).ok_or(io::ErrorKind::OutOfMemory)?;
        let number = remote.last;
        remote.views.insert(number, view);
        Ok(number)
    }

    fn dismiss(&self, number: u32) {
        let view = lock(&self.remote).views.remove(&number);
        drop(view); // outside of the lock: its own drop may be long
    }

    fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.inner.fill(at, bytes) {
            // A reader in another process has put zeros there.
            Err(error) if self.is_lent() && error.kind() == io::ErrorKind::AlreadyExists => {
                self.store(at, bytes)?;
                Frames::map(self, View::Plain, at..at + bytes.len() as u64)
            }
            filled => filled,
        }
    }

    fn map(&self, view: View, range: Range<u64>) -> io::Result<()> {
        let View::Remote(number) = view else { return self.inner.map(view == View::Checked, range) };
        self.remote_view(number).map_or(Ok(()), |remote| remote.map(range)) // of one that is gone nobody waits
    }

    fn map_ahead(&self, view: View, range: Range<u64>, needed: u64) -> io::Result<()> {
        let View::Remote(number) = view else { return Frames::map(self, view, range) };
        self.remote_view(number).map_or(Ok(()), |remote| remote.map_ahead(range, needed))
    }

    fn grant(&self, view: View, range: Range<u64>, call_dirty: &dyn Fn()) -> io::Result<()> {
        let View::Remote(number) = view else { return Err(io::ErrorKind::Unsupported.into()) };
        let Some(remote) = self.remote_view(number) else { return Ok(()) };
        let _one_step = self.granting.read().unwrap_or_else(PoisonError::into_inner);
        call_dirty();
        remote.map_writable(range)
    }

    fn revoke(&self, call_clean: &mut dyn FnMut() -> Vec<Range<u64>>) {
        if !self.is_lent() {
            call_clean();
            return;
        }
        let _one_step = self.granting.write().unwrap_or_else(PoisonError::into_inner);
        // Within the step: a view that is admitted before it may have been granted what is called clean here.
        let views = self.remote();
        for range in call_clean() {
            views.iter().for_each(|view| view.protect(range.clone()));
        }
    }

    fn vanished(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        if self.is_lent() { self.inner.holes(range) } else { Ok(Vec::new()) }
    }

    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.remote().iter().for_each(|view| view.unmap(ranges));
        self.inner.unmap(ranges)
    }

    fn wake(&self, range: Range<u64>) {
        self.remote().iter().for_each(|view| view.wake(range.clone()));
        self.inner.wake(range);
    }

    fn load(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.load(at, into)
    }

    fn written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.inner.written(view == View::Checked, range, out)
    }

    fn take_written(&self, view: View, range: Range<u64>, out: &mut Vec<Range<u64>>) -> io::Result<()> {
        self.inner.take_written(view == View::Checked, range, out)
    }

    fn copy_in(&self, at: u64, bytes: &[u8]) {
        self.inner.copy_in(at, bytes);
    }
}

/// Of large frames.
impl Regions for Shared {
    fn moves(&self) -> bool {
        false
    }

    fn fill(&self, at: u64, buffer: &mut [u8], shown: bool) -> io::Result<()> {
        self.inner.store(at, buffer)?;
        if shown { Regions::map(self, at) } else { Ok(()) }
    }

    fn map(&self, at: u64) -> io::Result<()> {
        self.inner.map(false, at..at + self.size())
    }

    fn unmap(&self, at: u64) -> io::Result<()> {
        let range = at..at + self.size();
        Frames::unmap(self, std::slice::from_ref(&range))
    }

    fn take(&self, _at: u64, _shown: bool, _buffer: &mut Buffer) -> io::Result<()> {
        unreachable!("no buffer has its pages")
    }

    /// The kernel does so when a part is released.
    fn split(&self, _at: u64, _shown: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Frames that are moved between buffers and their place, for files that are only read.
pub(super) struct Moved {
    /// Dropped before the frames.
    guards: Guards,
    inner: Arc<MovedFrames>,
}

impl Moved {
    pub(super) fn new(frames: MovedFrames, guards: Guards) -> Self {
        Self { guards, inner: Arc::new(frames) }
    }
}

impl Frames for Moved {
    frames_of_inner!();

    fn has_copies(&self) -> bool {
        true
    }

    fn fill(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.fill(at, bytes)
    }

    fn map(&self, view: View, range: Range<u64>) -> io::Result<()> {
        self.inner.map(view == View::Checked, range)
    }

    fn unmap(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.inner.unmap(ranges)
    }

    fn wake(&self, range: Range<u64>) {
        self.inner.wake(range);
    }

    fn regions(&self) -> Option<&dyn Regions> {
        Some(self)
    }

    fn load(&self, _at: u64, _into: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into()) // write-back's way
    }

    fn written(&self, _view: View, _range: Range<u64>, _out: &mut Vec<Range<u64>>) -> io::Result<()> {
        Ok(())
    }

    fn take_written(&self, _view: View, _range: Range<u64>, _out: &mut Vec<Range<u64>>) -> io::Result<()> {
        Ok(())
    }

    fn copy_in(&self, _at: u64, _bytes: &[u8]) {
        unreachable!("a file that is only read");
    }
}

impl Regions for Moved {
    fn fill(&self, at: u64, buffer: &mut [u8], shown: bool) -> io::Result<()> {
        self.inner.fill_region(at, buffer, shown)
    }

    fn map(&self, at: u64) -> io::Result<()> {
        self.inner.map_region(at)
    }

    fn unmap(&self, at: u64) -> io::Result<()> {
        self.inner.unmap_region(at)
    }

    fn take(&self, at: u64, shown: bool, buffer: &mut Buffer) -> io::Result<()> {
        self.inner.take_region(at, shown, buffer)
    }

    fn split(&self, at: u64, shown: bool) -> io::Result<()> {
        self.inner.split_region(at, shown)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::engine::PAGE;
    use crate::engine::host::Host;
    use crate::engine::kernel::{FrameKind, Kernel as _};

    /// A view of nobody's that notes whether it may be written.
    #[derive(Default)]
    struct Noted(AtomicBool);

    impl RemoteView for Noted {
        fn map(&self, _: Range<u64>) -> io::Result<()> {
            Ok(())
        }

        fn map_writable(&self, _: Range<u64>) -> io::Result<()> {
            self.0.store(true, Ordering::SeqCst);
            Ok(())
        }

        fn protect(&self, _: Range<u64>) {
            self.0.store(false, Ordering::SeqCst);
        }

        fn wake(&self, _: Range<u64>) {}

        fn unmap(&self, _: &[Range<u64>]) {}
    }

    struct Deaf;

    impl FaultSink for Deaf {
        fn serve_in_thread(&self, _: Fault) -> FaultOutcome {
            FaultOutcome::NotOurs
        }
    }

    /// Views come and are granted a page while it is called clean again and again: one that may write it and is not called dirty
    /// would lose what it writes.
    #[test]
    fn a_view_that_comes_during_a_revocation_is_revoked_too() {
        let sink: Weak<dyn FaultSink> = Weak::<Deaf>::new();
        let (kind, mode) = (FrameKind::Shared, FaultMode::Thread);
        let spec = FrameSpec { capacity: PAGE, writable: true, kind, lent: false, mode, sink };
        let frames = match Host::new().frames(spec) {
            Err(Error::Unsupported { .. }) => return eprintln!("######## SKIPPED: no userfaultfd ########"),
            frames => frames.unwrap(),
        };
        drop(frames.lend().unwrap());
        let (dirty, stop, rounds) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        frames.revoke(&mut || {
                            dirty.swap(false, Ordering::SeqCst).then_some(0..PAGE).into_iter().collect()
                        });
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let since = Instant::now();
            let mut lost = 0;
            while since.elapsed() < Duration::from_millis(500) && lost == 0 {
                let view = Arc::new(Noted::default());
                let number = frames.admit(Arc::clone(&view) as Arc<dyn RemoteView>).unwrap();
                let call_dirty = || dirty.store(true, Ordering::SeqCst);
                frames.grant(View::Remote(number), 0..PAGE, &call_dirty).unwrap();
                let before = rounds.load(Ordering::SeqCst);
                while rounds.load(Ordering::SeqCst) < before + 4 {
                    std::thread::yield_now();
                }
                frames.revoke(&mut || {
                    lost += usize::from(view.0.load(Ordering::SeqCst) && !dirty.load(Ordering::SeqCst));
                    Vec::new()
                });
                frames.dismiss(number);
            }
            stop.store(true, Ordering::SeqCst);
            assert_eq!(lost, 0, "a view may write a page that counts as clean");
        });
    }
}
