//! What the tests of the journal share: a file in a folder of its own, and how it is opened, recovered and left.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mapwright::journal::place::Directory;
use mapwright::journal::{Accept, AtomicFile, JournalError, Limits, inspect, recover};
use mapwright::stores::{FileOptions, FileStore};

use super::PAGE;

/// A file of eight pages in a folder of its own.
pub struct Sample {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Sample {
    pub fn new() -> Self {
        Self::at(&std::env::temp_dir())
    }

    pub fn at(folder: &Path) -> Self {
        let folder = tempfile::tempdir_in(folder).unwrap();
        let path = folder.path().join("data.bin");
        fs::write(&path, vec![1; 8 * PAGE]).unwrap();
        Self { folder, path }
    }

    pub fn journal(&self) -> PathBuf {
        self.folder.path().join("data.bin.mapwright-journal")
    }

    pub fn parts(&self) -> (Arc<Directory>, Arc<FileStore>) {
        parts(&self.path)
    }

    pub fn open(&self) -> Result<AtomicFile, JournalError> {
        let (place, file) = self.parts();
        AtomicFile::open(place, file, Limits::default()).map(|(atomic, _)| atomic)
    }

    pub fn inspect(&self) -> Result<Option<u64>, JournalError> {
        let (place, file) = self.parts();
        inspect(&*place, &*file, Accept::Own).map(|found| found.map(|found| found.scan.commits))
    }

    pub fn recover(&self) -> Result<Option<u64>, JournalError> {
        let (place, file) = self.parts();
        recover(&*place, &*file, Accept::Own).map(|found| found.map(|found| found.scan.commits))
    }

    /// Everything in the folder, to see that nothing was changed.
    pub fn all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut all: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        all.sort();
        all
    }

    /// Refused, and nothing is changed by trying.
    pub fn is_refused(&self) -> JournalError {
        let before = self.all();
        let refused = self.recover().expect_err("refused");
        self.inspect().expect_err("refused too");
        self.open().map(drop).expect_err("refused as well");
        assert_eq!(self.all(), before, "a refusal changed something: {refused}");
        refused
    }
}

pub fn parts(path: &Path) -> (Arc<Directory>, Arc<FileStore>) {
    let store = FileStore::open(path, &FileOptions { write: true, direct: false }).unwrap();
    (Arc::new(Directory::of(store.as_fd(), path).unwrap()), Arc::new(store))
}

pub fn commit(atomic: &AtomicFile, page: usize, value: u8) {
    let mut batch = atomic.begin();
    batch.put((page * PAGE) as u64, &[value; PAGE]).unwrap();
    batch.commit().unwrap();
}

/// Commits `count` pages and leaves without closing, as a killed program does.
pub fn leave_commits(sample: &Sample, count: usize) {
    let atomic = sample.open().unwrap();
    (0..count).for_each(|page| commit(&atomic, page, 10 + page as u8));
}
