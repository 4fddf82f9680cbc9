//! How a file is opened.

use std::sync::Arc;
use std::time::Duration;

use super::kernel::{FaultMode, FrameKind};
use super::read_ahead::Advice;
use crate::journal::AtomicFile;
use crate::stores::Store;

/// How to open a file.
#[derive(Clone)]
pub struct FileSpec {
    /// Where its bytes are.
    pub store: Arc<dyn Store>,
    /// Whether it will be written.
    pub writable: bool,
    /// Who serves its faults.
    pub mode: FaultMode,
    /// What its memory is like.
    pub frames: FrameKind,
    /// Bytes in a block: a power of two from 4 KiB to 2 MiB.
    pub block_size: u64,
    /// Address space to reserve in bytes, for growth; at least the store's length is reserved.
    pub reserve: u64,
    /// How long operations wait for the store and for room.
    pub deadline: Duration,
    /// What is known of the access pattern.
    pub advice: Advice,
    /// What becomes of changes.
    pub keep: Keep,
}

/// What becomes of changes.
#[derive(Clone, Debug, Default)]
pub enum Keep {
    /// They reach the store by flushes, which sync.
    #[default]
    Flushed,
    /// They reach the store by flushes, which do not.
    Scratch,
    /// They reach the store by flushes, which sync; whoever opens the same file in the same way shares it.
    Shared,
    /// There are none as long as this lease of the kernel's lasts; whoever opens the same file under the same one shares it, and nobody else.
    Leased(u64),
    /// They reach the store by flushes, which do not sync: a program that has the file alone makes them, as long as this lease of the kernel's lasts. It shares
    /// the file with itself, and with nobody else.
    Alone(u64),
    /// They reach the journal of this file by commits, and the store by checkpoints.
    Atomic {
        /// The file and its journal.
        atomic: Arc<AtomicFile>,
        /// A commit may log parts of pages. Dear where the kernel caches nothing of the file: a checkpoint that writes a part of a
        /// page waits for the rest to be read.
        in_parts: bool,
    },
}
