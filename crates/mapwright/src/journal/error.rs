//! Why a journal could not be used. Every refusal leaves file and journal as they were.

use std::io;
use std::sync::Arc;

/// Result of an operation on a journal.
pub type Result<T, E = JournalError> = std::result::Result<T, E>;

/// Why an operation on a journal failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The store, the file system or the kernel returned an error.
    #[error("{path}: {operation} at offset {offset}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file or journal concerned.
        path: String,
        /// First byte concerned; 0 where there is none.
        offset: u64,
        /// The error as it came.
        source: Arc<io::Error>,
    },
    /// What lies in the journal's place is not a journal.
    #[error("{path}: not a journal; move it away if it is yours, and look for the journal of the file")]
    NotAJournal {
        /// The journal's path.
        path: String,
    },
    /// Another version of the format.
    #[error(
        "{path}: a journal of version {version}, this program reads version {known}: use the program that wrote it"
    )]
    OtherVersion {
        /// The journal's path.
        path: String,
        /// The version found.
        version: u32,
        /// The version this program reads.
        known: u32,
    },
    /// The journal was written for another file.
    #[error(
        "{path}: belongs to another file (inode {inode}, born {born_ns}; here inode {inode_here}, born {born_here_ns}): bring \
         back the file it belongs to, or if this is its copy, recover with --adopt"
    )]
    OtherFile {
        /// The journal's path.
        path: String,
        /// Inode the journal names.
        inode: u64,
        /// Time of birth the journal names, in nanoseconds since 1970.
        born_ns: i64,
        /// The file's inode.
        inode_here: u64,
        /// The file's time of birth.
        born_here_ns: i64,
    },
    /// Bytes that were durable cannot be read.
    #[error(
        "{path}: damaged at offset {at}: {what}; discard it with `mapwright recover --discard`, then restore a backup, or \
         keep what the file has"
    )]
    Damaged {
        /// The journal's path.
        path: String,
        /// Where in the journal, in bytes.
        at: u64,
        /// What was found.
        what: &'static str,
    },
    /// The file has a length that its journal can't have left.
    #[error(
        "{path}: {len} bytes long, where its journal left between {least} and {most}: somebody else has changed it; discard \
         the journal with `mapwright recover --discard`, then restore a backup, or keep what the file has"
    )]
    FileLength {
        /// The file's path.
        path: String,
        /// Its length in bytes.
        len: u64,
        /// The least that the journal can have left.
        least: u64,
        /// The most that it can have left.
        most: u64,
    },
    /// A file that must not be trusted or used.
    #[error("{path}: {why}: {remedy}")]
    Refused {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The program that wrote the file was killed, and what it committed last is in the journal only.
    #[error(
        "{path}: what was committed last is in {journal} only, because the program that wrote it was killed: open the file for \
         writing once, or run `mapwright recover`"
    )]
    Unrecovered {
        /// The file's path.
        path: String,
        /// The journal's path.
        journal: String,
    },
    /// A journal is there, and has to be replayed or discarded first.
    #[error("{path}: a journal is there already: recover the file first")]
    Exists {
        /// The journal's path.
        path: String,
    },
}

impl JournalError {
    /// An [`JournalError::Io`].
    pub fn io(operation: &'static str, path: impl Into<String>, offset: u64, source: io::Error) -> Self {
        Self::Io { operation, path: path.into(), offset, source: Arc::new(source) }
    }

    /// Whether there was no room for what was to be written.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }

    /// An [`JournalError::Damaged`].
    pub(crate) fn damaged(path: impl Into<String>, at: u64, what: &'static str) -> Self {
        Self::Damaged { path: path.into(), at, what }
    }
}
