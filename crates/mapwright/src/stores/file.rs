//! Local files.

/// How a file is opened.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {}

/// A local file.
#[derive(Debug)]
pub struct FileStore {}
