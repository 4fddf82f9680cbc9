//! Bringing a file to a commit: what a checkpoint and recovery have in common.
//!
//! May be stopped at any point and begun again: every byte that it may change is one that the plan determines.

use super::disk;
use super::error::{JournalError, Result};
use super::format::{RECORD, Record, Salt};
use super::index::{Piece, Plan, RecordAt};
use crate::stores::Store;

/// Most bytes written to the file in one call.
const RUN: usize = 1 << 20;

/// A replay on its way.
pub(super) struct Replay {
    plan: Plan,
    file_len: u64,
    next: usize,
    sized: bool,
}

/// What a replay wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records written to the file.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Replay {
    /// A replay of `plan`, after which the file has `file_len` bytes.
    pub(super) fn new(plan: Plan, file_len: u64) -> Self {
        Self { plan, file_len, next: 0, sized: false }
    }

    /// What it writes in all.
    pub(super) fn size(&self) -> Replayed {
        let bytes = self.plan.pieces.iter().map(|piece| u64::from(piece.len)).sum();
        Replayed { records: self.plan.pieces.len() as u64, bytes }
    }

    /// Does a part of it, [`RUN`] bytes or so; `true` when all is written. The file is not synced.
    pub(super) fn step(&mut self, file: &dyn Store, journal: &dyn Store, salt: &Salt) -> Result<bool> {
        if !self.sized {
            self.set_len(file)?;
            self.sized = true;
        }
        let (mut start, mut run, mut first) = (0, Vec::new(), true);
        while let Some(piece) = self.plan.pieces.get(self.next) {
            let continues = !first && piece.offset == start + run.len() as u64;
            if !first && (!continues || run.len() >= RUN) {
                break;
            }
            if first {
                (start, first) = (piece.offset, false);
            }
            read_piece(journal, salt, piece, &mut run)?;
            self.next += 1;
        }
        disk::write(file, start, &run)?;
        Ok(self.next >= self.plan.pieces.len())
    }

    /// Cuts the file to what was its shortest, so that what was cut off and has grown again is zeros, then sets its length.
    fn set_len(&self, file: &dyn Store) -> Result<()> {
        let now = disk::len(file)?;
        let mut len = now;
        if let Some(cut) = self.plan.cut.filter(|cut| *cut < now) {
            disk::set_len(file, cut)?;
            len = cut;
        }
        if len != self.file_len {
            disk::set_len(file, self.file_len)?;
        }
        Ok(())
    }
}

/// Appends the data of a piece, once its checksum was found right.
pub(super) fn read_piece(journal: &dyn Store, salt: &Salt, piece: &Piece, into: &mut Vec<u8>) -> Result<()> {
    let RecordAt { position, sequence, data_len } = piece.at;
    let mut bytes = [0; RECORD + super::format::PAGE as usize];
    let bytes = &mut bytes[..RECORD + data_len as usize];
    let got = disk::read(journal, position, bytes)?;
    if got < bytes.len() || Record::verify(bytes, data_len as usize, sequence, salt).is_err() {
        return Err(JournalError::damaged(
            journal.name(),
            position,
            "a record read back is not what was written",
        ));
    }
    into.extend_from_slice(&bytes[RECORD..RECORD + piece.len as usize]);
    Ok(())
}
