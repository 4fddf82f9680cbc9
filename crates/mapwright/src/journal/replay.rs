//! Bringing a file to a commit: what a checkpoint and recovery have in common.
//!
//! May be stopped at any point and begun again: every byte that it may change is one that the plan determines.

use std::ops::Range;

use mapwright_sys::buffer::Buffer;

use super::disk;
use super::error::{JournalError, Result};
use super::format::{PAGE, RECORD, Record, Salt};
use super::index::{Piece, Plan, RecordAt};
use super::sabotage::{self, Sabotage};
use crate::runs::union;
use crate::stores::{Store, Write};

/// A replay on its way.
pub(super) struct Replay {
    plan: Plan,
    file_len: u64,
    /// From here on the file has had no bytes at some time since it was last known to be durable: a power failure may have
    /// left anything there, also beside what was written.
    unsure_from: u64,
    next: usize,
    sized: bool,
    pages_at_once: usize,
    pace: Pace,
    /// Images of the pages of the last step.
    images: Option<Buffer>,
}

/// How much of a replay the disk has to do at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as it can: nobody else is there.
    Fast,
    /// A few writes, so that commits beside it wait for no more.
    Gentle,
}

/// Writes at a [gentle](Pace::Gentle) pace: enough to keep a disk busy, and done in less time than a sync takes.
const FEW: usize = 16;

/// What a replay wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records written to the file.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is to be written to one page.
pub(super) struct OfPage {
    /// Number of the first piece of the page after it.
    pub(super) next: usize,
    /// Where the page begins in the file, in bytes.
    pub(super) start: u64,
    /// Which bytes of the image are to be written: in order, and not touching.
    pub(super) ranges: Vec<Range<usize>>,
}

/// Bytes of memory that a replay takes which is to write so many at once: whole pages, one at least.
pub(super) fn buffer_bytes(at_once: usize) -> u64 {
    (at_once as u64 / PAGE).max(1) * PAGE
}

impl Replay {
    /// A replay of `plan`, after which the file has `file_len` bytes. It had `base_len` durably before the first change that
    /// the plan's index has. So many bytes are written by a step, a page at least.
    pub(super) fn new(plan: Plan, base_len: u64, file_len: u64, at_once: usize, pace: Pace) -> Self {
        let mut unsure_from = plan.shortest.min(base_len);
        if sabotage::is(Sabotage::SmallBeyondEnd) {
            unsure_from = u64::MAX;
        }
        let pages_at_once = (buffer_bytes(at_once) / PAGE) as usize;
        Self { plan, file_len, unsure_from, next: 0, sized: false, pages_at_once, pace, images: None }
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

    /// Does a part of it; `true` when all is written. The file is not synced. After an error the same part comes again, or
    /// all of it where that is to be written again.
    pub(super) fn step(&mut self, file: &dyn Store, journal: &dyn Store, salt: &Salt) -> Result<bool> {
        if !self.sized {
            self.set_len(file)?;
            self.sized = true;
        }
        let pages = (self.plan.pieces.len() - self.next).clamp(1, self.pages_at_once);
        let enough = |images: &Buffer| images.len() >= pages * PAGE as usize;
        let images = self.images.take().filter(enough);
        let mut images = images.unwrap_or_else(|| Buffer::zeroed(pages * PAGE as usize));
        let mut runs: Vec<(u64, Range<usize>)> = Vec::new();
        let mut next = self.next;
        for (place, image) in images.chunks_exact_mut(PAGE as usize).take(pages).enumerate() {
            let Some(of_page) = self.page(journal, salt, next, image)? else { break };
            for range in of_page.ranges {
                let offset = of_page.start + range.start as u64;
                let range = place * PAGE as usize + range.start..place * PAGE as usize + range.end;
                match runs.last_mut() {
                    Some((start, last))
                        if last.end == range.start && *start + last.len() as u64 == offset =>
                    {
                        last.end = range.end;
                    }
                    _ => runs.push((offset, range)),
                }
            }
            next = of_page.next;
        }
        if sabotage::is(Sabotage::ResumeAfterError) {
            self.next = next;
        }
        let writes: Vec<Write<'_>> =
            runs.into_iter().map(|(offset, range)| Write { offset, buf: &images[range] }).collect();
        let at_once = if self.pace == Pace::Gentle { FEW } else { writes.len().max(1) };
        for writes in writes.chunks(at_once) {
            write_all(file, writes)?;
            if self.pace == Pace::Gentle
                && let Err(error) = disk::write_out(file, span(writes))
            {
                if !sabotage::is(Sabotage::ResumeAfterLoss) {
                    (self.next, self.sized) = (0, false);
                }
                return Err(error);
            }
        }
        (self.next, self.images) = (next, Some(images));
        Ok(self.is_done())
    }

    /// Lays the pieces of one page, whose first one is number `next`, into its image, a page long, whose other bytes may be
    /// anything. What lies where the file is unsure is written whole: around the pieces it is zeros, because they are all that was
    /// ever written there. `None` if all pieces are done.
    pub(super) fn page(
        &self,
        journal: &dyn Store,
        salt: &Salt,
        next: usize,
        image: &mut [u8],
    ) -> Result<Option<OfPage>> {
        let Some(first) = self.plan.pieces.get(next) else { return Ok(None) };
        let start = first.offset / PAGE * PAGE;
        let of_page = self.plan.pieces[next..].iter().take_while(|piece| piece.offset / PAGE * PAGE == start);
        let pieces = &self.plan.pieces[next..next + of_page.count()];
        let end = (start + PAGE).min(self.file_len);
        let whole = (start.max(self.unsure_from).min(end) - start) as usize..(end - start) as usize;
        image[whole.clone()].fill(0);
        let mut ranges = Vec::with_capacity(pieces.len() + 1);
        let mut record = [0; RECORD + PAGE as usize];
        for piece in pieces {
            let data = read_piece(journal, salt, piece, &mut record)?;
            let at = (piece.offset - start) as usize;
            image[at..at + data.len()].copy_from_slice(data);
            ranges.push(at..at + data.len());
        }
        ranges.extend(Some(whole).filter(|whole| !whole.is_empty()));
        Ok(Some(OfPage { next: next + pieces.len(), start, ranges: union(ranges) }))
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

/// Writes runs in the order of the file: whole pages with as much in flight at once as the store can, others one by one.
fn write_all(file: &dyn Store, writes: &[Write<'_>]) -> Result<()> {
    let is_whole = |write: &Write<'_>| (write.offset | write.buf.len() as u64).is_multiple_of(PAGE);
    let (whole, parts): (Vec<_>, Vec<_>) = writes.iter().copied().partition(is_whole);
    parts.iter().try_for_each(|write| disk::write(file, write.offset, write.buf))?;
    disk::write_many(file, &whole)
}

/// From the first byte of writes in the order of the file to the last.
fn span(writes: &[Write<'_>]) -> Range<u64> {
    let start = writes.first().map_or(0, |write| write.offset);
    start..writes.last().map_or(start, |write| write.offset + write.buf.len() as u64)
}

/// The data of a piece, once its checksum was found right, by way of room for a record.
pub(super) fn read_piece<'a>(
    journal: &dyn Store,
    salt: &Salt,
    piece: &Piece,
    room: &'a mut [u8; RECORD + PAGE as usize],
) -> Result<&'a [u8]> {
    let RecordAt { position, sequence, data_len } = piece.at;
    let bytes = &mut room[..RECORD + data_len as usize];
    let got = disk::read(journal, position, bytes)?;
    if got < bytes.len() || Record::verify(bytes, data_len as usize, sequence, salt).is_err() {
        return Err(JournalError::damaged(
            journal.name(),
            position,
            "a record read back is not what was written",
        ));
    }
    Ok(&bytes[RECORD..RECORD + piece.len as usize])
}
