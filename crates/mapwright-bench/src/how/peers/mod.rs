//! Embedded databases that hold the pages of the sample as values, by page number. Each is behind a feature.
//!
//! They promise more than a map of a file does: transactions, snapshots, keys of any order. They are context, not rivals.

#[cfg(feature = "peers-lmdb")]
mod lmdb;
#[cfg(feature = "peers-redb")]
mod redb;
#[cfg(feature = "peers-rocksdb")]
mod rocksdb;
#[cfg(feature = "peers-sqlite")]
mod sqlite;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::PAGE;
use mapwright_measure::ways::{Source, Updater, increment_word};

use crate::task::{How, Measured, Peer, Program, Task};

/// Values that one transaction of a load writes.
const LOADED_AT_ONCE: u64 = 16 << 10;

/// Opens the database in the task's folder for reading.
pub fn open(peer: Peer, task: &Task) -> Result<Box<dyn Source>> {
    match peer {
        #[cfg(feature = "peers-lmdb")]
        Peer::Lmdb => lmdb::open(task),
        #[cfg(feature = "peers-redb")]
        Peer::Redb => redb::open(task),
        #[cfg(feature = "peers-sqlite")]
        Peer::Sqlite => sqlite::open(task),
        #[cfg(feature = "peers-rocksdb")]
        Peer::Rocksdb => rocksdb::open(task),
        #[allow(unreachable_patterns)] // with all features
        _ => Err(missing(peer, task)),
    }
}

/// Opens the database in the task's folder for reading, by a map of its file as long as the file.
pub fn open_mapped(peer: Peer, task: &Task) -> Result<Box<dyn Source>> {
    match peer {
        #[cfg(feature = "peers-lmdb")]
        Peer::Lmdb => lmdb::open_mapped(task),
        #[cfg(feature = "peers-sqlite")]
        Peer::Sqlite => sqlite::open_mapped(task),
        #[allow(unreachable_patterns)] // with all features
        _ => Err(missing(peer, task)),
    }
}

/// The files in the task's folder that a database maps.
pub const MAPPED_FILES: [&str; 2] = ["values.sqlite", "data.mdb"];

/// Opens the database in the task's folder for commits that are synced.
pub fn open_mut(peer: Peer, task: &Task) -> Result<Box<dyn Updater>> {
    match peer {
        #[cfg(feature = "peers-lmdb")]
        Peer::Lmdb => lmdb::open_mut(task),
        #[cfg(feature = "peers-redb")]
        Peer::Redb => redb::open_mut(task),
        #[cfg(feature = "peers-sqlite")]
        Peer::Sqlite => sqlite::open_mut(task),
        #[allow(unreachable_patterns)] // with all features
        _ => Err(missing(peer, task)),
    }
}

/// Pages, by number, and the places in them of words to be increased.
#[derive(Default)]
#[allow(dead_code)] // without features
struct Increments(BTreeMap<u64, Vec<u64>>);

#[allow(dead_code)] // without features
impl Increments {
    fn note(&mut self, offsets: &[u64]) {
        offsets.iter().for_each(|offset| self.0.entry(offset / PAGE).or_default().push(offset % PAGE));
    }

    /// The pages noted, each with what makes its new bytes of its old ones.
    fn take(&mut self) -> impl Iterator<Item = (u64, impl Fn(&[u8]) -> Vec<u8> + use<>)> + use<> {
        std::mem::take(&mut self.0).into_iter().map(|(page, words)| {
            let change = move |old: &[u8]| {
                let mut bytes = old.to_vec();
                words.iter().for_each(|word| increment_word(&mut bytes, *word));
                bytes
            };
            (page, change)
        })
    }
}

/// Builds the database in the task's folder from the first `task.len` bytes of the sample.
pub fn load(task: &Task) -> Result<Measured> {
    let (How::Peer(peer) | How::Program(Program::Peer(peer), _), Some(sample)) = (task.how, &task.sample)
    else {
        return Err(Failure::Unsupported(format!("{:?} is no database", task.how)));
    };
    let is_there = MAPPED_FILES.iter().any(|name| task.path.join(name).exists());
    if is_there && matches!(task.how, How::Program(..)) {
        return Ok(Measured::default()); // by another contender, who reads the same one
    }
    let file = File::open(sample).map_err(|error| Failure::io("open", sample, error))?;
    let pages = Pages { file, path: sample, count: task.len / PAGE };
    match peer {
        #[cfg(feature = "peers-lmdb")]
        Peer::Lmdb => lmdb::load(task, &pages),
        #[cfg(feature = "peers-redb")]
        Peer::Redb => redb::load(task, &pages),
        #[cfg(feature = "peers-sqlite")]
        Peer::Sqlite => sqlite::load(task, &pages),
        #[cfg(feature = "peers-rocksdb")]
        Peer::Rocksdb => rocksdb::load(task, &pages),
        #[allow(unreachable_patterns)] // with all features
        _ => Err(missing(peer, task)),
    }?;
    Ok(Measured { ops: pages.count, bytes: task.len, ..Measured::default() })
}

fn missing(peer: Peer, task: &Task) -> Failure {
    let name = format!("{peer:?}").to_lowercase();
    Failure::Unsupported(format!(
        "{} was not built in (cargo xtask bench --features peers-{name})",
        task.path.file_name().unwrap_or_default().to_string_lossy()
    ))
}

/// An error of a database, as one of ours.
#[allow(dead_code)] // without features
fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Message(error.to_string())
}

#[allow(dead_code)] // without features
fn no_value(page: u64) -> Failure {
    Failure::Message(format!("there is no value for page {page}"))
}

/// The pages of the sample, in batches.
#[allow(dead_code)] // without features
struct Pages<'a> {
    file: File,
    path: &'a Path,
    count: u64,
}

#[allow(dead_code)] // without features
impl Pages<'_> {
    /// Calls `each` with every batch of page numbers and the bytes of a page.
    fn batches(
        &self,
        mut each: impl FnMut(&mut dyn Iterator<Item = Result<(u64, Vec<u8>)>>) -> Result<()>,
    ) -> Result<()> {
        for start in (0..self.count).step_by(LOADED_AT_ONCE as usize) {
            let batch = start..(start + LOADED_AT_ONCE).min(self.count);
            each(&mut batch.map(|page| {
                let mut bytes = vec![0; PAGE as usize];
                let read = self.file.read_exact_at(&mut bytes, page * PAGE);
                read.map(|()| (page, bytes)).map_err(|error| Failure::io("read", self.path, error))
            }))?;
        }
        Ok(())
    }
}
