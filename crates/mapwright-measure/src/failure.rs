//! Why a command stops. `main` turns this into a message and an exit code.

use std::fmt;
use std::path::Path;

/// Result of anything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command stops.
#[derive(Debug)]
pub enum Failure {
    /// Something failed; the text names what, with its values.
    Message(String),
    /// This machine, file system or build does not offer what was asked for; a comparison goes on without it.
    Unsupported(String),
    /// SIGINT or SIGTERM arrived.
    Interrupted,
}

impl Failure {
    /// An I/O error with what was being done, to which path.
    pub fn io(what: &str, path: &Path, error: impl Into<std::io::Error>) -> Self {
        Self::Message(format!("{}: {what}: {}", path.display(), error.into()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(text) | Self::Unsupported(text) => f.write_str(text),
            Self::Interrupted => f.write_str("interrupted; nothing was left behind"),
        }
    }
}
