//! Files that their programs have left, kept open for the next ones: a page cache outlives programs.
//!
//! Only those under a lease of the kernel's: whoever wants to write one gets it at once. One is let go when it has been left for some
//! seconds, has been removed (its blocks are its file system's again), has lost its lease, or when others need its place. The memory of its
//! pages is the budget's, as that of all others.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::kernel_lease::KernelLease;
use super::lease::lock;
use crate::engine::opened::Opened;

/// How many are kept: each has some descriptors.
const MOST: usize = 128;
/// How long: as programs follow each other in a build or a pipeline. Its file system can't be unmounted as long.
const TIME: Duration = Duration::from_secs(10);

/// Files that are kept. Under its lock leases are looked at, with theirs, and nothing is let go.
#[derive(Default)]
pub(super) struct Kept(Mutex<Files>);

#[derive(Default)]
struct Files {
    all: Vec<KeptFile>,
    /// No more are kept.
    closed: bool,
}

/// A file that is kept. Dropping it may wait for work on the file.
pub(super) struct KeptFile {
    _file: Opened,
    /// Dropped after the file.
    kernel: Arc<KernelLease>,
    left: Instant,
}

impl KeptFile {
    fn is_spent(&self) -> bool {
        self.left.elapsed() > TIME || self.kernel.is_ended() || self.kernel.is_removed()
    }
}

impl Kept {
    /// Keeps a file that a program leaves now; what has to go for it.
    pub(super) fn keep(&self, file: Opened, kernel: Arc<KernelLease>) -> Vec<KeptFile> {
        let number = kernel.number;
        let new = KeptFile { _file: file, kernel, left: Instant::now() };
        let mut files = lock(&self.0);
        if files.closed || new.kernel.is_ended() {
            drop(files);
            return vec![new];
        }
        let mut spare: Vec<_> = files.all.extract_if(.., |kept| kept.kernel.number == number).collect();
        if files.all.len() >= MOST {
            spare.push(files.all.remove(0)); // the one that was left first
        }
        files.all.push(new);
        spare
    }

    /// What is not to be kept any longer.
    pub(super) fn take_spent(&self) -> Vec<KeptFile> {
        lock(&self.0).all.extract_if(.., |kept| kept.is_spent()).collect()
    }

    /// Keeps nothing from now on; what was kept.
    pub(super) fn close(&self) -> Vec<KeptFile> {
        let mut files = lock(&self.0);
        files.closed = true;
        std::mem::take(&mut files.all)
    }
}
