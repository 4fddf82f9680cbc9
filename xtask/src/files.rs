//! The files of the workspace, as text.

use std::io;
use std::path::{Path, PathBuf};

/// A text file: path from the root, with `/`, and contents.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path from the root of the workspace.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Every text file below `root`, in order of path, without build folders and version control.
pub fn read_all(root: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if !is_skipped(&entry.file_name().to_string_lossy()) {
                    folders.push(path);
                }
            } else if kind.is_file() && !is_skipped(&entry.file_name().to_string_lossy()) {
                // What is not text is no business of these checks.
                if let Ok(text) = std::fs::read_to_string(&path) {
                    let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                    files.push(SourceFile { path, text });
                }
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_skipped(name: &str) -> bool {
    // `.git` is a file in a linked worktree.
    matches!(name, "target" | ".git" | "Cargo.lock")
}

#[cfg(test)]
pub fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: path.to_owned(), text: text.to_owned() }
}
