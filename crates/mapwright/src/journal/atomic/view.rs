//! What is read: the file's bytes, with what the journal has and the file may lack laid over them.

use std::ops::Range;
use std::sync::Arc;

use super::{AtomicFile, Committed, End};
use crate::journal::disk;
use crate::journal::error::Result;
use crate::journal::format::{PAGE, RECORD};
use crate::journal::index::Piece;
use crate::journal::replay::read_piece;

/// What to lay over a page.
struct Layer {
    range: Range<u64>,
    /// From here on what is below is zeros.
    zeros_from: u64,
    /// Bytes, oldest first.
    pieces: Vec<Piece>,
}

impl AtomicFile {
    /// The bytes at `offset`, with what the transaction under way has spilled; bytes read, fewer only at the end of the file.
    ///
    /// # Errors
    /// [`JournalError::Io`]; [`JournalError::Damaged`] if a record is not what was written.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.read_view(offset, into, None)
    }

    fn read_view(&self, offset: u64, into: &mut [u8], commit: Option<Committed>) -> Result<usize> {
        loop {
            let overlay = self.overlay_of(offset, into.len(), commit);
            let n = overlay.len.saturating_sub(offset).min(into.len() as u64) as usize;
            let got = disk::read(&*self.file, offset, &mut into[..n])?;
            into[got..n].fill(0);
            if overlay.apply(&mut into[..n])? {
                return Ok(n);
            }
        }
    }

    /// What the file lacks of a range, for a caller that reads the file itself, many ranges at once. Taken before the file is
    /// read, applied after it: a checkpoint may end between the two.
    pub fn overlay(&self, offset: u64, len: usize) -> Overlay<'_> {
        self.overlay_of(offset, len, None)
    }

    fn overlay_of(&self, offset: u64, len: usize, commit: Option<Committed>) -> Overlay<'_> {
        let state = self.lock();
        let upto = commit.map_or(u64::MAX, |commit| commit.at.sequence);
        let mut layers = Vec::new();
        let mut lay = |page: u64, (zeros_from, pieces): (u64, Vec<Piece>)| {
            let range = page * PAGE..(page + 1) * PAGE;
            if zeros_from < range.end || !pieces.is_empty() {
                layers.push(Layer { range, zeros_from, pieces });
            }
        };
        for page in offset / PAGE..(offset + len as u64).div_ceil(PAGE) {
            lay(page, state.index.page(page, upto));
            if commit.is_none() {
                lay(page, state.pending.page(page, u64::MAX));
                // Cuts that are not in the journal yet.
                state.unlogged.iter().for_each(|len| lay(page, (*len, Vec::new())));
            }
        }
        let len = commit.map_or(state.len, |commit| commit.file_len);
        Overlay { atomic: self, offset, layers, len, epoch: state.epoch }
    }

    /// A view of the last commit that stays what it is.
    pub fn snapshot(self: &Arc<Self>) -> Snapshot {
        let mut state = self.lock();
        let commit = state.committed;
        *state.snapshots.entry(commit.at.sequence).or_default() += 1;
        Snapshot { atomic: Arc::clone(self), commit }
    }
}

/// What the file lacks of a range: see [`AtomicFile::overlay`].
pub struct Overlay<'a> {
    atomic: &'a AtomicFile,
    offset: u64,
    /// Oldest first, page by page.
    layers: Vec<Layer>,
    /// Length of the view.
    len: u64,
    epoch: u64,
}

impl Overlay<'_> {
    /// Whether the file has all of the range.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Lays it over what was read of the file, zeros past its end. `false` if space was used again meanwhile: then the file
    /// has more than it had, and both are to be read anew.
    ///
    /// # Errors
    /// [`JournalError::Io`]; [`JournalError::Damaged`] if a record is not what was written.
    pub fn apply(&self, into: &mut [u8]) -> Result<bool> {
        let outcome = self.lay(into);
        match outcome {
            Err(_) if self.atomic.lock().epoch != self.epoch => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn lay(&self, into: &mut [u8]) -> Result<()> {
        let (offset, end) = (self.offset, self.offset + into.len() as u64);
        let inside = |range: Range<u64>| range.start.clamp(offset, end)..range.end.clamp(offset, end);
        let mut record = [0; RECORD + PAGE as usize];
        for Layer { range, zeros_from, pieces } in &self.layers {
            let zeros = inside(range.start.max(*zeros_from)..range.end);
            if zeros.start < zeros.end {
                into[(zeros.start - offset) as usize..(zeros.end - offset) as usize].fill(0);
            }
            for piece in pieces {
                let (range, part) = (piece.range(), inside(piece.range()));
                if part.is_empty() {
                    continue;
                }
                let data = read_piece(&*self.atomic.journal, &self.atomic.header.salt, piece, &mut record)?;
                let data = &data[(part.start - range.start) as usize..(part.end - range.start) as usize];
                into[(part.start - offset) as usize..(part.end - offset) as usize].copy_from_slice(data);
            }
        }
        Ok(())
    }
}

/// The last commit at some time: what is read through it does not change.
pub struct Snapshot {
    atomic: Arc<AtomicFile>,
    commit: Committed,
}

impl Snapshot {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.commit.file_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes at `offset`; bytes read, fewer only at the end.
    ///
    /// # Errors
    /// As for [`AtomicFile::read`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.atomic.read_view(offset, into, Some(self.commit))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let was_waited_for = {
            let mut state = self.atomic.lock();
            if let Some(count) = state.snapshots.get_mut(&self.commit.at.sequence) {
                *count -= 1;
                if *count == 0 {
                    state.snapshots.remove(&self.commit.at.sequence);
                }
            }
            state.end == End::Closing && state.snapshots.is_empty()
        };
        if was_waited_for {
            // What fails is left for the next open, which is what a journal is for.
            let _ = self.atomic.close();
        }
    }
}
