//! Entries on their way to the journal: what a commit and a spill have in common.

use std::ops::Range;

use super::{AtomicFile, Committed, Flag, Point, State};
use crate::journal::disk;
use crate::journal::error::{JournalError, Result};
use crate::journal::format::{Entry, HEAD, Kind, PAGE, Record};
use crate::journal::index::{Piece, RecordAt};
use crate::journal::sabotage::{self, Sabotage};
use crate::journal::space::InBatch;

/// From this number on none are left out any more, so that numbers last: some billion entries are before it, and as many
/// after it as nobody can write.
const LAST_GAP: u64 = 1 << 63;

/// What is written ahead.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Entries on their way to the journal. Dropped without [`commit`](Self::commit) or [`spill`](Self::spill), nothing has
/// happened: the next batch writes over it.
pub struct Batch<'a> {
    pub(super) atomic: &'a AtomicFile,
    pub(super) _turn: Flag<'a>,
    /// The entry being filled: room for its head, then records.
    pub(super) buffer: Vec<u8>,
    /// Its number.
    pub(super) sequence: u64,
    /// Where the chain ends, with what this batch has written.
    pub(super) chain: Point,
    /// Where it ended before.
    pub(super) begun_after: u64,
    /// Whether the next entry is the first of its transaction.
    pub(super) begins: bool,
    /// The commit that its last entry names as durable.
    pub(super) claims: u64,
    /// Changes in entries that were written, and in the buffer; positions of the latter count from its beginning.
    pub(super) written: Vec<Change>,
    pub(super) buffered: Vec<Change>,
    /// Length of the file with the transaction under way.
    pub(super) len: u64,
    /// Why there is no number for the entry being filled.
    pub(super) numberless: Option<JournalError>,
}

#[derive(Clone, Copy)]
pub(super) enum Change {
    Data(Piece),
    Length(u64),
}

impl Batch<'_> {
    /// Adds bytes that were changed. Where two runs of a batch overlap, the later one counts.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the batch has failed, and nothing has happened.
    ///
    /// # Panics
    /// Past the end of the file: our mistake.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let of = |at: u64, len: usize| &bytes[(at - offset) as usize..][..len];
        self.put_with(offset..offset + bytes.len() as u64, |at, slot| {
            slot.copy_from_slice(of(at, slot.len()));
            Ok::<(), JournalError>(())
        })
    }

    /// As [`put`](Self::put), with the bytes put in their place by `fill`, which is called with an offset in the file and where
    /// the bytes from there on go, for a page or less at a time.
    ///
    /// # Errors
    /// [`JournalError::Io`], and what `fill` returns: the batch has failed, and nothing has happened.
    ///
    /// # Panics
    /// Past the end of the file: our mistake.
    pub fn put_with<E: From<JournalError>>(
        &mut self,
        bytes: Range<u64>,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(bytes.end <= self.len, "bytes past the end of the file");
        let mut at = bytes.start;
        while at < bytes.end {
            let end = ((at / PAGE + 1) * PAGE).min(bytes.end);
            let record = Record::Data { offset: at, len: (end - at) as u32 };
            if self.buffer.len() + record.size() > self.atomic.limits.entry.max(HEAD + record.size()) {
                self.write(Kind::Part, InBatch::Inner)?;
            }
            self.push_with(record, |slot| fill(at, slot))?;
            at = end;
        }
        Ok(())
    }

    pub(super) fn push_length(&mut self, len: u64) {
        let pushed = self.push_with(Record::Length(len), |_| Ok::<(), std::convert::Infallible>(()));
        pushed.unwrap_or_else(|never| match never {});
    }

    fn push_with<E>(
        &mut self,
        record: Record,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let position = self.buffer.len() as u64;
        record.append_with(&mut self.buffer, self.sequence, &self.atomic.header.salt, fill)?;
        self.buffered.push(match record {
            Record::Length(len) => Change::Length(len),
            Record::Data { offset, len } => {
                let at = RecordAt { position, sequence: self.sequence, data_len: len };
                Change::Data(Piece { offset, len, at })
            }
        });
        Ok(())
    }

    /// Gives the buffer to a new entry. Numbers are given out two at a time: the one before is for a jump, of which nobody
    /// knows yet whether it is needed, while the records' checksums need the entry's own. Before them some are left out, by
    /// chance, so that nobody can foresee them.
    pub(super) fn take_number(&mut self, state: &mut State, gap: Result<u64>) {
        let gap = gap.unwrap_or_else(|error| {
            self.numberless = Some(error);
            0
        });
        let gap = if state.next_sequence < LAST_GAP { gap } else { 0 };
        self.sequence = state.next_sequence + gap + 1;
        state.next_sequence = self.sequence + 1;
        if sabotage::is(Sabotage::ReuseSequence) {
            self.sequence = self.chain.sequence + 2;
        }
        self.buffer.clear();
        self.buffer.resize(HEAD, 0);
    }

    /// Writes the entry, the last one before a sync, and a jump before it if it needs one. Not synced.
    pub(super) fn write_last(&mut self, kind: Kind) -> Result<()> {
        let place = if self.chain.sequence == self.begun_after { InBatch::Only } else { InBatch::Last };
        self.write(kind, place)
    }

    fn write(&mut self, kind: Kind, place: InBatch) -> Result<()> {
        if let Some(error) = self.numberless.take() {
            return Err(error);
        }
        let atomic = self.atomic;
        let header = &atomic.header;
        let unit = u64::from(header.unit);
        let size = (self.buffer.len() as u64).next_multiple_of(unit);
        // Behind whatever a checkpoint may have to bring to the file there is place for a claim, and behind that for a jump.
        let is_claim = kind == Kind::Part && self.buffer.len() == HEAD;
        let ahead = if is_claim { unit } else { 2 * unit };
        atomic.free_on_full_disk()?;
        let (placed, tip, mut durable_commit, backed) = {
            let mut state = atomic.lock();
            let placed = state.space.place(size, ahead);
            let backed = state.space.wants_backed(placed.position + size, ahead, place);
            (placed, state.space.tip(), state.committed.at.sequence, backed)
        };
        if sabotage::is(Sabotage::EarlyClaim) && matches!(kind, Kind::Commit { .. }) {
            durable_commit = self.sequence;
        }
        let mut previous = self.chain.sequence;
        if let Some(position) = placed.jump {
            let kind = Kind::Jump { to: placed.position };
            let sequence = self.sequence - 1;
            let jump =
                Entry { kind, begins: false, position, sequence, previous, durable_commit, records: 0 };
            disk::write(&*atomic.journal, position, &jump.encode(&header.salt))?;
            previous = sequence;
        }
        let records = (self.buffer.len() - HEAD) as u32;
        let entry = Entry {
            kind,
            begins: self.begins,
            position: placed.position,
            sequence: self.sequence,
            previous,
            durable_commit,
            records,
        };
        self.buffer[..HEAD].copy_from_slice(&entry.encode(&header.salt));
        self.buffer.resize(size as usize, 0);
        self.write_backed(placed.position, backed)?;
        self.chain = Point { sequence: self.sequence, tip };
        (self.claims, self.begins) = (durable_commit, false);
        for change in self.buffered.drain(..) {
            self.written.push(match change {
                Change::Data(mut piece) => {
                    piece.at.position += placed.position;
                    Change::Data(piece)
                }
                length => length,
            });
        }
        let gap = atomic.draw_gap();
        self.take_number(&mut atomic.lock(), gap);
        Ok(())
    }

    /// Writes the buffer, with zeros behind it up to the end of `backed`, or on a full disk up to its beginning.
    fn write_backed(&mut self, position: u64, backed: Range<u64>) -> Result<()> {
        let atomic = self.atomic;
        let after = position + self.buffer.len() as u64;
        // Not in the buffer, whose memory is charged.
        let attempt = |end: u64| {
            disk::write(&*atomic.journal, position, &self.buffer)?;
            let mut starts = (after..end).step_by(ZEROS.len());
            starts.try_for_each(|at| {
                disk::write(&*atomic.journal, at, &ZEROS[..(end - at).min(ZEROS.len() as u64) as usize])
            })
        };
        let mut end = backed.end;
        let mut written = attempt(end);
        if written.as_ref().is_err_and(JournalError::is_full) && backed.start < end {
            end = backed.start;
            written = attempt(end);
        }
        let mut state = atomic.lock();
        match &written {
            Ok(()) => state.space.note_backed(end),
            Err(error) if error.is_full() => state.space.note_full(),
            Err(_) => {}
        }
        written
    }

    /// Makes everything since the last commit durable, with what is in this batch: all of it, or, where it fails, none or all.
    /// The commit's number; that of the last one, without any I/O, if nothing was changed and no commit is in doubt.
    ///
    /// # Errors
    /// [`JournalError::Io`]: not committed, and in doubt until the next batch that succeeds, or a rollback.
    pub fn commit(mut self) -> Result<u64> {
        let last = {
            let state = self.atomic.lock();
            let nothing = self.written.is_empty() && self.buffered.is_empty();
            // While another is in doubt, this one says that it is not to be.
            let in_doubt = state.in_doubt && !sabotage::is(Sabotage::EmptyInDoubt);
            (nothing && !state.spilled && !in_doubt).then_some(state.committed.at.sequence)
        };
        if let Some(last) = last {
            return Ok(last);
        }
        let durable = self.write_last(Kind::Commit { file_len: self.len }).and_then(|()| self.sync());
        if durable.is_err() {
            self.atomic.lock().in_doubt = true;
        }
        durable?;
        let sequence = self.chain.sequence;
        self.publish(true);
        Ok(sequence)
    }

    /// Makes what is in this batch durable in the journal, without committing it. After it, [`AtomicFile::read`] gives it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: not spilled.
    pub fn spill(mut self) -> Result<()> {
        if self.written.is_empty() && self.buffered.is_empty() {
            return Ok(());
        }
        self.write_last(Kind::Part)?;
        if !sabotage::is(Sabotage::NoSpillSync) {
            self.sync()?;
        }
        self.publish(false);
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        if sabotage::is(Sabotage::NoCommitSync) {
            return Ok(());
        }
        let synced = self.atomic.sync_journal();
        if synced.is_err() && sabotage::is(Sabotage::SyncAgainOnly) {
            self.atomic.sync_journal()
        } else {
            synced
        }
    }

    /// Takes note of what is durable now.
    pub(super) fn publish(&mut self, is_commit: bool) {
        let mut state = self.atomic.lock();
        let state = &mut *state;
        for change in &self.written {
            match *change {
                Change::Data(piece) => state.pending.data(piece, u64::MAX),
                Change::Length(len) => {
                    if len < state.logged_len {
                        state.pending.cut(len, u64::MAX);
                    }
                    state.logged_len = len;
                }
            }
        }
        state.unlogged.clear();
        state.spilled = !is_commit && (state.spilled || !self.written.is_empty());
        (state.durable, state.claimed) = (self.chain, self.claims);
        state.in_doubt = false;
        if is_commit {
            let pending = std::mem::take(&mut state.pending);
            let shortest = pending.shortest().min(self.len).min(state.shortest);
            state.lengths_changed += u64::from(shortest != state.shortest);
            (state.shortest, state.least) = (shortest, None);
            let viewed = state.snapshots.keys().next().copied().unwrap_or(u64::MAX);
            let oldest = viewed.min(state.claimed).min(state.planned);
            state.index.absorb(pending, self.chain.sequence, oldest);
            state.committed = Committed { at: self.chain, file_len: self.len };
            state.recent.push_back(state.committed);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.atomic.lock().buffer = std::mem::take(&mut self.buffer);
    }
}
