//! The one error type of the library.
//!
//! Every variant carries the values a caller needs to act (path, offset, length, errno) and its message ends with what to
//! do. Errors are cheap to clone because one failed fill may have many waiters.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::journal::JournalError;

/// Result of a mapwright operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What another program did to a file while it was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The file is shorter than when it was opened (both in bytes).
    Truncated {
        /// Length in bytes when the map was made or last refreshed.
        was: u64,
        /// Length in bytes now.
        now: u64,
    },
    /// The contents were modified: the modification time or the length differs.
    Modified,
    /// The store now names another object.
    Replaced,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated { was, now } => write!(f, "it was truncated from {was} to {now} bytes"),
            Self::Modified => f.write_str("its contents were modified"),
            Self::Replaced => f.write_str("it was replaced by another file"),
        }
    }
}

/// Why bytes can't be seen as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewProblem {
    /// There are fewer bytes than the value has.
    TooShort {
        /// Bytes that the value, or all values, would need.
        needed: usize,
        /// Bytes from the offset to the end.
        left: usize,
    },
    /// The bytes don't begin at a multiple of the value's alignment.
    Misaligned {
        /// The alignment in bytes.
        align: usize,
        /// By how many bytes the address is past such a multiple.
        rest: usize,
    },
    /// The length is no multiple of the value's size.
    NotWhole {
        /// Size of a value in bytes.
        size: usize,
        /// Length in bytes.
        len: usize,
    },
}

impl std::fmt::Display for ViewProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooShort { needed, left } => {
                write!(f, "it has {needed} bytes, and {left} are left; end at or before the last byte")
            }
            Self::Misaligned { align, rest } => write!(
                f,
                "its address must be a multiple of {align}, and is {rest} past one; choose another offset, read_value, or a \
                 type without alignment, such as those of zerocopy::byteorder"
            ),
            Self::NotWhole { size, len } => {
                write!(f, "{len} bytes are no multiple of its size of {size}; view a slice of them")
            }
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store returned an error.
    #[error("{path}: {operation}{}: {source}", place(*.offset, *.len))]
    Io {
        /// What was being done: `"read"`, `"write"`, `"sync"`, `"set length"`, `"open"`, …
        operation: &'static str,
        /// The store's name, a path for files.
        path: String,
        /// First byte concerned.
        offset: u64,
        /// Number of bytes concerned; 0 where the operation has no range.
        len: u64,
        /// The error as the kernel or the store gave it.
        source: Arc<io::Error>,
    },
    /// The file was changed by somebody else since it was opened; what was read since would mix two versions.
    #[error(
        "{path}: changed while mapped: {change} (seen at offset {offset}); open it again (who writes it by MapMut locks it, \
         which keeps out those who lock too)"
    )]
    Changed {
        /// The store's name.
        path: String,
        /// Where the change was noticed.
        offset: u64,
        /// What changed.
        change: Change,
    },
    /// The store did not answer within the deadline. What was begun may go on: a write-back keeps other ones of the file waiting, and
    /// says by the next flush if it failed in the end. Through a pager server: it said nothing for the deadline and five seconds more, which
    /// it does not do as long as a flush gets on.
    #[error(
        "{path}: no answer for offset {offset} ({len} bytes) within {waited:?}; raise MapOptions::deadline or check the device"
    )]
    TimedOut {
        /// The store's name.
        path: String,
        /// First byte waited for.
        offset: u64,
        /// Number of bytes waited for.
        len: u64,
        /// How long the operation waited.
        waited: Duration,
    },
    /// Everything in the budget is pinned or could not be written back.
    #[error("{path}: the pager's budget of {budget} bytes is exhausted ({needed} more needed): {remedy}")]
    BudgetExhausted {
        /// The store's name.
        path: String,
        /// Bytes that were asked for.
        needed: u64,
        /// The pager's budget in bytes.
        budget: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// A range reaches past the end.
    #[error(
        "{path}: range {offset}..{end} reaches past the end; end it at {file_len} or below, or resize the map first"
    )]
    OutOfRange {
        /// The store's name.
        path: String,
        /// First byte asked for.
        offset: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Length in bytes of what is mapped.
        file_len: u64,
    },
    /// An option or argument makes no sense.
    #[error("{what}: {remedy}")]
    Invalid {
        /// What was wrong, values included.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The machine does not offer what the operation needs.
    #[error("{feature} is not available here ({source}): {remedy}")]
    Unsupported {
        /// The facility that is missing.
        feature: &'static str,
        /// What to do about it.
        remedy: &'static str,
        /// What the kernel answered.
        source: Arc<io::Error>,
    },
    /// Somebody holds the file: another writer, or a mapping of the other kind in this pager.
    #[error(
        "{path}: in use by {holder}: a file is mapped by readers or by one writer; close that map first, or read through it"
    )]
    Locked {
        /// The store's name.
        path: String,
        /// Who holds it, as far as is known.
        holder: &'static str,
    },
    /// The store cannot be written.
    #[error("{path}: not writable; open it with Map::open, or give yourself write permission")]
    ReadOnly {
        /// The store's name.
        path: String,
    },
    /// This kind of file cannot be mapped.
    #[error("{path}: {kind} cannot be mapped: {remedy}")]
    NotMappable {
        /// The path.
        path: String,
        /// What it is: `"a directory"`, `"a pipe"`, …
        kind: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Something that others prepared is not what it must be to be used.
    #[error("{path}: refused: {what}: {remedy}")]
    NotTrusted {
        /// Its path or name.
        path: String,
        /// What is wrong with it, values included.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Bytes can't be seen as a value of a type.
    #[error("a view of {type_name} at offset {offset}: {problem}")]
    View {
        /// The type.
        type_name: &'static str,
        /// Offset in bytes.
        offset: usize,
        /// What is wrong.
        problem: ViewProblem,
    },
    /// A mutex whose owner died, and whose value the next holder has given up.
    #[error(
        "{path}: a mutex is not recoverable: its owner died, and who held it next did not mark its value consistent; unlink \
         the memory and let all attach to a new one"
    )]
    NotRecoverable {
        /// Path of the shared memory.
        path: String,
    },
    /// There is nobody at the other end, and nothing to do without.
    #[error(
        "{path}: the {who} has {}: wait for another to come, and try again",
        if *.died { "died" } else { "left" }
    )]
    PeerGone {
        /// Path of the shared memory.
        path: String,
        /// Whom there is none of: `"producer"` or `"consumer"`.
        who: &'static str,
        /// Whether the last one died, rather than left.
        died: bool,
    },
    /// A limit of the system or the process is met.
    #[error("{path}: {operation}: the limit {limit} of {value} is reached: {remedy}")]
    LimitReached {
        /// What was being done: `"mmap"`, `"mlock"`, …
        operation: &'static str,
        /// What it was done to: a path, or a kind of memory.
        path: String,
        /// The limit's own name: `"vm.max_map_count"`, `"RLIMIT_MEMLOCK"`, …
        limit: &'static str,
        /// Its value, in its own unit: mappings, bytes, pages.
        value: u64,
        /// What to do.
        remedy: &'static str,
        /// What the kernel answered.
        source: Arc<io::Error>,
    },
    /// The pager server that served a map, or was to, is not there any more.
    #[error(
        "{path}: the pager server is gone ({source}): start it again, connect anew and open the files again"
    )]
    ServerLost {
        /// Where it listened.
        path: String,
        /// How that was noticed.
        source: Arc<io::Error>,
    },
    /// An earlier write-back or sync failed and was not acknowledged yet. Nothing was dropped: the pages are still dirty.
    #[error("{path}: an earlier write-back failed and is not acknowledged: {source}")]
    Latched {
        /// The store's name.
        path: String,
        /// The first failure.
        source: Arc<Error>,
    },
    /// A file's journal is in the way: it is damaged, another file's, or not replayed yet.
    #[error(transparent)]
    Journal(Arc<JournalError>),
}

/// Where an operation failed, in words; nothing where it has no place.
fn place(offset: u64, len: u64) -> String {
    match (offset, len) {
        (0, 0) => String::new(),
        (offset, 0) => format!(" at offset {offset}"),
        (offset, len) => format!(" at offset {offset} ({len} bytes)"),
    }
}

impl Error {
    /// An [`Error::Io`] for a range of a store.
    pub fn io(
        operation: &'static str,
        path: impl Into<String>,
        offset: u64,
        len: u64,
        source: io::Error,
    ) -> Self {
        Self::Io { operation, path: path.into(), offset, len, source: Arc::new(source) }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, remedy: &'static str) -> Self {
        Self::Invalid { what: what.into(), remedy }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(feature: &'static str, remedy: &'static str, source: io::Error) -> Self {
        Self::Unsupported { feature, remedy, source: Arc::new(source) }
    }

    /// The kernel's error number behind this error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. }
            | Self::Unsupported { source, .. }
            | Self::LimitReached { source, .. }
            | Self::ServerLost { source, .. } => source.raw_os_error(),
            Self::Latched { source, .. } => source.errno(),
            _ => None,
        }
    }
}

impl From<JournalError> for Error {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Io { operation, path, offset, source } => {
                Self::Io { operation, path, offset, len: 0, source }
            }
            other => Self::Journal(Arc::new(other)),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. }
            | Error::Unsupported { source, .. }
            | Error::LimitReached { source, .. }
            | Error::ServerLost { source, .. } => source.kind(),
            Error::TimedOut { .. } => io::ErrorKind::TimedOut,
            Error::OutOfRange { .. }
            | Error::Invalid { .. }
            | Error::NotMappable { .. }
            | Error::View { .. } => io::ErrorKind::InvalidInput,
            Error::Locked { .. } => io::ErrorKind::WouldBlock,
            Error::ReadOnly { .. } | Error::NotTrusted { .. } => io::ErrorKind::PermissionDenied,
            Error::BudgetExhausted { .. } => io::ErrorKind::OutOfMemory,
            Error::PeerGone { .. } => io::ErrorKind::BrokenPipe,
            Error::Journal(error) if matches!(**error, JournalError::Refused { .. }) => {
                io::ErrorKind::PermissionDenied
            }
            Error::Journal(_) => io::ErrorKind::InvalidData,
            Error::Changed { .. } | Error::Latched { .. } | Error::NotRecoverable { .. } => {
                io::ErrorKind::Other
            }
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_a_place_only_where_there_is_one() {
        let text = |operation, offset, len| {
            Error::io(operation, "file", offset, len, io::ErrorKind::NotFound.into()).to_string()
        };
        assert_eq!(text("open", 0, 0), "file: open: entity not found");
        assert_eq!(text("set length", 5000, 0), "file: set length at offset 5000: entity not found");
        assert_eq!(text("read", 0, 10), "file: read at offset 0 (10 bytes): entity not found");
    }
}
