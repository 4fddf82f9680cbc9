//! Which files a run is about: those named, those in the folders named, and those listed; each inode once.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use glob::Pattern;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::{signals, size};
use walkdir::WalkDir;

use crate::text;

/// Filters.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which files")]
pub struct Selection {
    /// Files, block devices, and folders with everything below them
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Read more names from a file, one a line (- for stdin)
    #[arg(long, value_name = "FILE")]
    pub files_from: Option<PathBuf>,
    /// Names in --files-from end with a zero byte, as `find -print0` writes them
    #[arg(long, short = '0', requires = "files_from")]
    null: bool,
    /// In folders, only files that match: the name, or the whole path where the pattern has a `/`; may be repeated
    #[arg(long, value_name = "PATTERN")]
    include: Vec<Pattern>,
    /// In folders, no files and folders that match; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<Pattern>,
    /// In folders, no smaller files
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    min_size: Option<u64>,
    /// In folders, no larger files
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    max_size: Option<u64>,
    /// Stay on the file systems of the folders named
    #[arg(long, short = 'x')]
    one_file_system: bool,
    /// Follow symbolic links inside folders (those named are always followed)
    #[arg(long, short = 'L')]
    follow: bool,
    /// Count a file once for each of its names, not once in all
    #[arg(long)]
    count_links: bool,
}

/// What was found.
#[derive(Default)]
pub struct Selected {
    /// In the order of the command line; folders sorted by name.
    pub paths: Vec<PathBuf>,
    /// Whether something could not be looked at; it was said.
    pub has_failures: bool,
}

impl Selection {
    /// Whether no file was named in any way.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.files_from.is_none()
    }

    /// Walks.
    pub fn select(&self, listed: &[PathBuf]) -> Result<Selected> {
        let mut selected = Selected::default();
        let mut seen = HashSet::new();
        for root in self.files.iter().chain(listed) {
            match fs::metadata(root) {
                Ok(metadata) if metadata.is_dir() => self.walk(root, &mut seen, &mut selected)?,
                Ok(metadata) => {
                    if self.count_links || seen.insert((metadata.dev(), metadata.ino())) {
                        selected.paths.push(root.clone());
                    }
                }
                Err(error) => selected.fail(root, &error.to_string()),
            }
            signals::check()?;
        }
        Ok(selected)
    }

    fn walk(&self, root: &Path, seen: &mut HashSet<(u64, u64)>, selected: &mut Selected) -> Result<()> {
        let entries = WalkDir::new(root)
            .follow_links(self.follow)
            .follow_root_links(true)
            .same_file_system(self.one_file_system)
            .sort_by_file_name();
        let is_kept = |entry: &walkdir::DirEntry| entry.depth() == 0 || !matches(&self.exclude, entry.path());
        for entry in entries.into_iter().filter_entry(is_kept) {
            signals::check()?;
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_owned();
                    let why = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                    selected.fail(&path, &why);
                    continue;
                }
            };
            // Devices in folders are nodes of /dev: named ones are looked at, found ones are not.
            if !entry.file_type().is_file() || entry.file_type().is_block_device() {
                continue;
            }
            if !self.include.is_empty() && !matches(&self.include, entry.path()) {
                continue;
            }
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    selected.fail(entry.path(), &error.to_string());
                    continue;
                }
            };
            let is_small = self.min_size.is_some_and(|least| metadata.len() < least);
            let is_large = self.max_size.is_some_and(|most| metadata.len() > most);
            let is_new =
                self.count_links || !is_small && !is_large && seen.insert((metadata.dev(), metadata.ino()));
            if !is_small && !is_large && is_new {
                selected.paths.push(entry.into_path());
            }
        }
        Ok(())
    }

    /// The names in `--files-from`. Stdin can be read once only, so a watch reads them before it begins.
    pub fn listed(&self) -> Result<Vec<PathBuf>> {
        let Some(path) = &self.files_from else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        let read = if path.as_os_str() == "-" {
            std::io::stdin().read_to_end(&mut names)
        } else {
            fs::File::open(path).and_then(|mut file| file.read_to_end(&mut names))
        };
        read.map_err(|error| Failure::io("cannot read the names", path, error))?;
        let end = if self.null { 0 } else { b'\n' };
        let names = names.split(|byte| *byte == end).filter(|name| !name.is_empty());
        Ok(names.map(|name| PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()))).collect())
    }
}

impl Selected {
    fn fail(&mut self, path: &Path, why: &str) {
        self.has_failures = true;
        text::warn(format_args!("{}: {why}", text::show_path(path)));
    }
}

fn matches(patterns: &[Pattern], path: &Path) -> bool {
    let name = path.file_name().map(OsStr::as_bytes).map(String::from_utf8_lossy).unwrap_or_default();
    patterns.iter().any(|pattern| {
        if pattern.as_str().contains('/') { pattern.matches_path(path) } else { pattern.matches(&name) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_or_paths() {
        let patterns = |text: &str| vec![Pattern::new(text).unwrap()];
        assert!(matches(&patterns("*.db"), Path::new("a/b.db")));
        assert!(!matches(&patterns("*.db"), Path::new("a.db/b")));
        assert!(matches(&patterns("*/b.*"), Path::new("a/b.db")));
        assert!(!matches(&patterns("c/*"), Path::new("a/b.db")));
    }
}
