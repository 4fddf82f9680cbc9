//! Whether there is a journal at all: what an opening that needs none has to ask, in as few calls as it takes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::error::{JournalError, Result};
use super::place::SUFFIX;

/// The name of the journal of the file at `path`, if anything has it.
///
/// # Errors
/// [`JournalError::Io`] where a link can't be followed. That there is no such file, or none that can be looked at, is no error: whoever
/// opens it will say so.
pub fn find(path: &Path) -> Result<Option<PathBuf>> {
    let is_link = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
    let mut journal = match is_link {
        false => OsString::from(path),
        true => match std::fs::canonicalize(path) {
            Ok(real) => real.into(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(JournalError::io("find the path of", path.display().to_string(), 0, error));
            }
        },
    };
    journal.push(SUFFIX);
    Ok(look_for(&journal)?.then(|| journal.into()))
}

/// Whether anything has the name of the journal of the file at `path`, which is no link itself.
///
/// # Errors
/// [`JournalError::Io`].
pub fn is_there(path: &Path) -> Result<bool> {
    let mut journal = OsString::with_capacity(path.as_os_str().len() + SUFFIX.len());
    journal.push(path);
    journal.push(SUFFIX);
    look_for(&journal)
}

fn look_for(journal: &OsStr) -> Result<bool> {
    match rustix::fs::statat(CWD, journal, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        // What can't be looked at for other reasons, the name being too long for one, was not made by us either.
        Err(
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::ACCESS | Errno::LOOP | Errno::INVAL,
        ) => Ok(false),
        Err(error) => Err(JournalError::io("look for", journal.to_string_lossy(), 0, error.into())),
    }
}

/// Whether somebody has the lock of the file at `path`: then its journal is in use.
///
/// # Errors
/// [`JournalError::Io`].
pub fn is_in_use(path: &Path) -> Result<bool> {
    let failed = |error| JournalError::io("look for the lock of", path.display().to_string(), 0, error);
    let file = File::open(path).map_err(failed)?;
    mapwright_sys::file::is_locked(file.as_fd()).map_err(failed)
}
