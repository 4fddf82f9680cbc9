//! Pages of lent frames that a process which writes them has given back (MADV_REMOVE, or a hole punched): they are read again
//! from the file, and never written to it as the zeros that are there then. docs/decisions/0013-server.md has the rule.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::io::Errno;

use super::block::{self, State};
use super::file::File;
use super::write_back::flush_anew;
use super::{PAGE, evict};
use crate::error::{Error, Result};

/// Between two tries to drop a block that somebody holds.
const MOMENT: Duration = Duration::from_millis(1);

/// Whether a page could not be shown because another process has given it back.
pub(crate) fn has_vanished(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::FAULT.raw_os_error())
}

/// Leaves out pages that another process has given back: what is read there is not what was written.
///
/// # Errors
/// [`Error::Io`], which is all that is left of them.
pub(super) fn leave_out(file: &File, pages: &mut Vec<Range<u64>>) -> Result<()> {
    if !file.frames.is_lent() {
        return Ok(());
    }
    let mut outcome = Ok(());
    let mut left = Vec::with_capacity(pages.len());
    for run in pages.iter() {
        let mut at = run.start;
        for hole in holes(file, run.start * PAGE..run.end * PAGE)? {
            left.push(at..hole.start / PAGE);
            at = hole.end / PAGE;
            outcome = outcome.and_then(|()| Err(lost(file, hole)));
        }
        left.push(at..run.end);
    }
    left.retain(|run| !run.is_empty());
    *pages = left;
    outcome
}

/// The parts of a range that are gone.
pub(super) fn holes(file: &File, bytes: Range<u64>) -> Result<Vec<Range<u64>>> {
    let failed = |e| Error::io("load a frame", file.name.clone(), bytes.start, bytes.end - bytes.start, e);
    file.frames.vanished(bytes.clone()).map_err(failed)
}

/// What there is to say of them if they were dirty.
pub(super) fn lost(file: &File, bytes: Range<u64>) -> Error {
    let what = io::Error::other("a process that maps the file too has given back what was written there");
    Error::io("load a frame", file.name.clone(), bytes.start, bytes.end - bytes.start, what)
}

/// Makes a block whole that another process has given back pages of, by dropping it: what it had is read again. What is written
/// of it is written back first. Whether there were any. The caller has no pin on it.
///
/// # Errors
/// [`Error::Io`] if what was given back was written; [`Error::TimedOut`] if others hold it until the file's deadline.
pub(crate) fn drop_if_vanished(file: &Arc<File>, block: u64) -> Result<bool> {
    let since = file.pager.now();
    let bytes = file.bytes_of(&(block..block + 1));
    let mut any = false;
    while !holes(file, bytes.clone())?.is_empty() {
        any = true;
        if block::state(file.word(block).bits()) != State::Resident {
            break; // dropped, or about to be filled or evicted
        }
        if file.word(block).bits() & block::DIRTY != 0 {
            flush_anew(file, bytes.start..bytes.end.min(file.len()))?;
        }
        if evict::drop_clean(file, block..block + 1) > 0 {
            break;
        }
        let waited = file.pager.now() - since;
        let Some(left) = file.deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return Err(file.timed_out(bytes, waited));
        };
        file.pager.kernel.wait(&AtomicU32::new(0), 0, Some(left.min(MOMENT)));
    }
    Ok(any)
}
