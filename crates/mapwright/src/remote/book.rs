//! What a server takes note of for whoever reports in the end: what was done for each file, also when it was opened anew in between, and how long the
//! faults of each process took. A server that nobody has told to keeps no book: it may run for years.
//!
//! # Locks
//! That of the pages is taken alone, when a file is opened and when somebody reads. What is counted takes none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use mapwright_sys::guest::Identity;

use super::lease::lock;
use crate::engine::file::File;
use crate::engine::stats::{FaultTimes, FileCounters, FileStats, Times};

/// Pairs of a process and a file that are told apart. What comes beyond is counted together, file by file, for process 0.
const MOST: usize = 1 << 14;

/// The book of a server, once it is begun.
#[derive(Default)]
pub(super) struct Book(OnceLock<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    files: HashMap<u128, Entry>,
    /// By process and file.
    faults: HashMap<(u32, u128), Arc<Times>>,
}

/// One file.
#[derive(Default)]
struct Entry {
    /// What was counted while it was open before.
    past: FileStats,
    /// More than one where it is open in blocks of several sizes, or under several leases.
    open: Vec<Arc<FileCounters>>,
}

/// What was done for one file.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which file.
    pub identity: Identity,
    /// What the pager did.
    pub stats: FileStats,
    /// Processes whose touches were served, and how long that took from when the server heard of them. Process 0 stands for many.
    pub processes: Vec<(u32, FaultTimes)>,
}

impl Book {
    /// From now on it is kept.
    pub(super) fn begin(&self) {
        let _ = self.0.set(Mutex::default());
    }

    /// A process has opened a file: where its faults are to be counted.
    pub(super) fn note(&self, pid: u32, file: &File) -> Option<Arc<Times>> {
        let (counters, identity) = (&file.counted.own, file.identity());
        let mut pages = lock(self.0.get()?);
        let entry = pages.files.entry(identity).or_default();
        if !entry.open.iter().any(|open| Arc::ptr_eq(open, counters)) {
            entry.let_go();
            entry.open.push(Arc::clone(counters));
        }
        let is_full = pages.faults.len() >= MOST && !pages.faults.contains_key(&(pid, identity));
        let key = (if is_full { 0 } else { pid }, identity);
        Some(Arc::clone(pages.faults.entry(key).or_default()))
    }

    /// What it says.
    pub(super) fn read(&self) -> Vec<Record> {
        let Some(pages) = self.0.get() else { return Vec::new() };
        let pages = lock(pages);
        let record = |(identity, entry): (&u128, &Entry)| {
            let mut stats = entry.past.clone();
            entry.open.iter().for_each(|open| stats.add(&open.told()));
            let own = pages.faults.iter().filter(|((_, file), _)| file == identity);
            let mut processes: Vec<(u32, FaultTimes)> =
                own.map(|((pid, _), times)| (*pid, times.told())).collect();
            processes.sort_by_key(|(pid, _)| *pid);
            let identity = Identity { device: (identity >> 64) as u64, inode: *identity as u64 };
            Record { identity, stats, processes }
        };
        pages.files.iter().map(record).collect()
    }
}

impl Entry {
    /// Adds up what files have counted that are closed.
    fn let_go(&mut self) {
        let past = &mut self.past;
        self.open.retain(|open| {
            let is_open = Arc::strong_count(open) > 1;
            if !is_open {
                past.add(&open.told());
            }
            is_open
        });
    }
}
