//! Maps of a file, and the wait for its end when the last of them is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Engine;
use super::file::File;

/// What those who wait for the end of a file look at; it outlives the file.
#[derive(Default)]
pub(super) struct Life {
    /// Maps of the file. Only [`Opened`] counts: the engine's own jobs hold the file too, for a moment.
    pub(super) maps: AtomicU32,
    /// 1 once there was a map.
    pub(super) opened: AtomicU32,
    /// 1 when the file is dropped, its store with it.
    gone: AtomicU32,
}

/// Tells those who wait when it is dropped, with the file.
pub(super) struct Gone {
    pub(super) life: Arc<Life>,
    pub(super) engine: Arc<Engine>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.life.gone.store(1, Ordering::Release);
        self.engine.kernel.wake(&self.life.gone);
    }
}

/// A file held by a map. When the last one is dropped, jobs of the engine may still hold the file: the drop waits for them,
/// so that the store is closed, its lock given back, and the file free to be opened again.
pub struct Opened {
    file: Arc<File>,
    /// Dropped after `file`.
    _farewell: Farewell,
}

struct Farewell {
    life: Arc<Life>,
    engine: Arc<Engine>,
    patience: Duration,
}

impl Opened {
    /// Counts a map.
    pub fn new(file: Arc<File>) -> Self {
        // A store that hangs must not keep its maps from being dropped.
        let patience = if file.local { file.deadline } else { file.deadline.min(Duration::from_millis(50)) };
        let life = Arc::clone(&file.gone.life);
        life.maps.fetch_add(1, Ordering::AcqRel);
        life.opened.store(1, Ordering::Release);
        let _farewell = Farewell { life, engine: file.pager.this(), patience };
        Self { file, _farewell }
    }
}

impl std::ops::Deref for Opened {
    type Target = Arc<File>;
    #[inline]
    fn deref(&self) -> &Arc<File> {
        &self.file
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let Self { life, engine, patience } = self;
        if life.maps.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let deadline = engine.now() + *patience;
        while life.gone.load(Ordering::Acquire) == 0 && life.maps.load(Ordering::Acquire) == 0 {
            let Some(left) = deadline.checked_sub(engine.now()).filter(|left| !left.is_zero()) else {
                return;
            };
            // In slices: another map may be made of the file meanwhile.
            engine.kernel.wait(&life.gone, 0, Some(left.min(Duration::from_millis(20))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PAGE;
    use crate::engine::file::{FileSpec, Keep};
    use crate::engine::host::Host;
    use crate::engine::kernel::{FaultMode, FrameKind};
    use crate::engine::read_ahead::Advice;
    use crate::error::Error;
    use crate::stores::MemoryStore;

    #[test]
    fn a_file_with_a_map_is_not_closed() {
        let pager = Engine::open(Arc::new(Host::new()), 1 << 20).expect("a pager");
        let spec = FileSpec {
            store: Arc::new(MemoryStore::new(vec![1; 1 << 16])),
            writable: false,
            mode: FaultMode::InThread,
            frames: FrameKind::Auto,
            block_size: PAGE,
            reserve: 0,
            deadline: Duration::from_nanos(1),
            advice: Advice::Normal,
            keep: Keep::Flushed,
        };
        let file = match Engine::open_file(&pager, spec) {
            Err(Error::Unsupported { .. }) => return eprintln!("######## SKIPPED: no userfaultfd ########"),
            opened => opened.expect("a file"),
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200_000 {
                        let map = Opened::new(Arc::clone(&file));
                        assert!(!map.is_closed(), "the drop of another map closed it");
                    }
                });
            }
        });
        assert!(file.is_closed());
    }
}
