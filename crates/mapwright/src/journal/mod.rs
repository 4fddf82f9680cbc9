//! Commits that are all or nothing: a redo journal beside the file. Not part of the public interface: the simulator and the
//! command use it.
//!
//! Why it is so: docs/decisions/0010-atomic-commit.md. Byte by byte: docs/journal-format.md. What is relied on, and what is
//! promised: docs/fault-model.md.
//!
//! From below: `format` is the bytes, `index` and `space` are plain data, `disk` does whole reads and writes and says where a
//! journal lies, `scan` reads a journal, `replay` brings a file to a commit, `recover` is for what is found at open, `atomic` is
//! the protocol that the engine calls. `place` is the journal's place on a real file system, `beside` looks whether one is there.

pub mod atomic;
pub mod beside;
pub mod disk;
pub mod error;
pub mod format;
pub mod index;
pub mod place;
pub mod recover;
mod replay;
#[doc(hidden)]
pub mod sabotage;
pub mod scan;
pub mod space;

pub use atomic::{AtomicFile, Batch, Checkpoint, Limits, Overlay, Snapshot, Uncommitted};
pub use disk::Place;
pub use error::JournalError;
pub use recover::{Accept, Found, discard, inspect, recover};
pub use replay::Replayed;
