//! Bringing a file to a commit: what a checkpoint and recovery have in common.
//!
//! May be stopped at any point and begun again: every byte that it may change is one that the plan determines.

use super::disk;
use super::error::{JournalError, Result};
use super::format::{PAGE, RECORD, Record, Salt};
use super::index::{Piece, Plan, RecordAt};
use super::sabotage::{self, Sabotage};
use crate::stores::Store;

/// Most bytes written to the file in one call.
const RUN: usize = 1 << 20;

/// A replay on its way.
pub(super) struct Replay {
    plan: Plan,
    file_len: u64,
    /// From here on the file has had no bytes at some time since it was last known to be durable: a power failure may have
    /// left anything there, also beside what was written.
    unsure_from: u64,
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

/// Bytes for one place of the file.
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Replay {
    /// A replay of `plan`, after which the file has `file_len` bytes. It had `base_len` durably before the first change that
    /// the plan's index has.
    pub(super) fn new(plan: Plan, base_len: u64, file_len: u64) -> Self {
        let mut unsure_from = plan.shortest.min(base_len);
        if sabotage::is(Sabotage::SmallBeyondEnd) {
            unsure_from = u64::MAX;
        }
        Self { plan, file_len, unsure_from, next: 0, sized: false }
    }

    /// What it writes in all.
    pub(super) fn size(&self) -> Replayed {
        let bytes = self.plan.pieces.iter().map(|piece| u64::from(piece.len)).sum();
        Replayed { records: self.plan.pieces.len() as u64, bytes }
    }

    /// The shortest the file was on the way.
    pub(super) fn cut(&self) -> Option<u64> {
        self.plan.cut
    }

    /// Whether all is written.
    pub(super) fn is_done(&self) -> bool {
        self.sized && self.next >= self.plan.pieces.len()
    }

    /// Does a part of it, [`RUN`] bytes or so; `true` when all is written. The file is not synced. After an error the same
    /// part comes again.
    pub(super) fn step(&mut self, file: &dyn Store, journal: &dyn Store, salt: &Salt) -> Result<bool> {
        if !self.sized {
            self.set_len(file)?;
            self.sized = true;
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut next = self.next;
        while let Some((after, of_page)) = self.page(journal, salt, next)? {
            let continues = |last: &Run| {
                last.bytes.len() < RUN
                    && of_page.first().is_some_and(|run| last.start + last.bytes.len() as u64 == run.start)
            };
            if runs.last().is_some_and(|last| !continues(last)) {
                break;
            }
            of_page.into_iter().for_each(|run| append(&mut runs, run));
            next = after;
        }
        if sabotage::is(Sabotage::ResumeAfterError) {
            self.next = next;
        }
        runs.iter().try_for_each(|run| disk::write(file, run.start, &run.bytes))?;
        self.next = next;
        Ok(self.is_done())
    }

    /// What to write for one page, whose first piece is number `next`, and the number of the first piece of the page after it.
    /// What lies where the file is unsure is written whole: around the pieces it is zeros, because they are all that was ever
    /// written there. `None` if all pieces are done.
    pub(super) fn page(
        &self,
        journal: &dyn Store,
        salt: &Salt,
        next: usize,
    ) -> Result<Option<(usize, Vec<Run>)>> {
        let Some(first) = self.plan.pieces.get(next) else { return Ok(None) };
        let page = first.offset / PAGE;
        let of_page = self.plan.pieces[next..].iter().take_while(|piece| piece.offset / PAGE == page);
        let pieces = &self.plan.pieces[next..next + of_page.count()];
        let end = ((page + 1) * PAGE).min(self.file_len);
        let whole_from = (page * PAGE).max(self.unsure_from).min(end);
        let mut whole = vec![0; (end - whole_from) as usize];
        let (mut runs, mut data) = (Vec::new(), Vec::new());
        for piece in pieces {
            data.clear();
            read_piece(journal, salt, piece, &mut data)?;
            let sure = (whole_from.saturating_sub(piece.offset) as usize).min(data.len());
            if sure > 0 {
                append(&mut runs, Run { start: piece.offset, bytes: data[..sure].to_vec() });
            }
            if sure < data.len() {
                let at = (piece.offset + sure as u64 - whole_from) as usize;
                whole[at..at + data.len() - sure].copy_from_slice(&data[sure..]);
            }
        }
        if !whole.is_empty() {
            append(&mut runs, Run { start: whole_from, bytes: whole });
        }
        Ok(Some((next + pieces.len(), runs)))
    }

    /// Cuts the file to what was its shortest, so that what was cut off and has grown again is zeros, then sets its length.
    fn set_len(&self, file: &dyn Store) -> Result<()> {
        let now = disk::len(file)?;
        let mut len = now;
        let cut = self.plan.cut.filter(|_| !sabotage::is(Sabotage::NoCut));
        if let Some(cut) = cut.filter(|cut| *cut < now) {
            disk::set_len(file, cut)?;
            len = cut;
        }
        if len != self.file_len {
            disk::set_len(file, self.file_len)?;
        }
        Ok(())
    }
}

/// Adds a run to the last one where it continues that.
fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.start + last.bytes.len() as u64 == run.start => last.bytes.extend(run.bytes),
        _ => runs.push(run),
    }
}

/// Appends the data of a piece, once its checksum was found right.
pub(super) fn read_piece(journal: &dyn Store, salt: &Salt, piece: &Piece, into: &mut Vec<u8>) -> Result<()> {
    let RecordAt { position, sequence, data_len } = piece.at;
    let mut bytes = [0; RECORD + PAGE as usize];
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
