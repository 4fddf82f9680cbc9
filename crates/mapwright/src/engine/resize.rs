//! Length: growing, shrinking, and writing what need not be read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::block::{State, state};
use super::file::File;
use super::request::Request;
use super::sabotage::{self, Sabotage};
use super::{PAGE, fill, lock};
use crate::error::{Error, Result};

impl File {
    /// Changes the length of what is mapped. The store's length follows at the next write-back. New bytes read as zeros.
    /// The caller has exclusive access: nobody holds a slice or a pin.
    ///
    /// # Errors
    /// [`Error::Invalid`] past the reserved address space; [`Error::TimedOut`] if a block in transition does not settle: the
    /// length is then as before, and what lies past `len` may read as zeros already.
    pub fn resize(self: &Arc<Self>, len: u64) -> Result<()> {
        if len > self.capacity {
            return Err(Error::invalid(
                format!("{}: a length of {len} bytes with {} reserved", self.name, self.capacity),
                "open it with MapOptions::reserve() large enough for what it may grow to",
            ));
        }
        let _turn = self.take_turn()?;
        let before = self.set_lengths(len);
        if len < before {
            let forgotten = self.while_cutting(|| self.forget_beyond(len, before));
            forgotten.inspect_err(|_| _ = self.set_lengths(before))?;
        }
        Ok(())
    }

    /// Notes a length, in the journal too if there is one; the length before.
    fn set_lengths(&self, len: u64) -> u64 {
        let before = {
            let mut lengths = lock(&self.lengths);
            let before = lengths.mapped;
            lengths.mapped = len;
            lengths.backed = lengths.backed.min(len);
            if self.commits.is_some() {
                lengths.settle_at(len);
            }
            before
        };
        if let Some(commits) = &self.commits {
            commits.atomic.set_len(len);
        }
        before
    }

    /// Does `work`, in the file's turn, which waits for fills: they must not wait for room that a write-back would make.
    fn while_cutting(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.cutting.store(true, Ordering::Release);
        let outcome = work();
        self.cutting.store(false, Ordering::Release);
        outcome
    }

    /// Drops blocks, dirty or not, in the file's turn.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if one in transition does not settle: it and the later ones are there still.
    pub(super) fn forget_blocks(&self, blocks: &[u64]) -> Result<()> {
        let since = self.pager.now();
        self.while_cutting(|| blocks.iter().try_for_each(|&block| self.forget_block(block, since)))
    }

    /// Drops what was cached of `len..before`, dirty or not, and zeros the rest of the last block.
    fn forget_beyond(self: &Arc<Self>, len: u64, before: u64) -> Result<()> {
        let blocks = self.blocks_of(len..before);
        if !len.is_multiple_of(self.block_size()) && self.pin_settled(blocks.start)? {
            let end = self.bytes_of(&(blocks.start..blocks.start + 1)).end;
            let plain = super::kernel::View::Plain;
            let by_view = !self.frames.is_lent();
            let shown = if by_view { self.map(plain, blocks.start..blocks.start + 1) } else { Ok(()) };
            if shown.is_ok() && !sabotage::is(Sabotage::KeepTail) {
                zero(self, len..end);
            }
            self.unpin(blocks.start);
            shown?;
        }
        let whole = len.div_ceil(self.block_size())..blocks.end;
        let since = self.pager.now();
        for run in self.used_runs(whole.clone()).collect::<Vec<_>>() {
            run.into_iter().try_for_each(|block| self.forget_block(block, since))?;
        }
        Ok(())
    }

    /// Drops a block, dirty or not, once it has settled and nobody pins it: the service of a fault that was told twice may.
    fn forget_block(&self, block: u64, since: Duration) -> Result<()> {
        let kernel = &*self.pager.kernel;
        let deadline = since + self.deadline;
        let mut waiter = None;
        loop {
            self.wait_settled(block, since, deadline)?;
            let bits = self.word(block).bits();
            if state(bits) == State::Absent {
                return Ok(());
            }
            if self.word(block).claim_eviction().is_some() {
                return self.discard(block);
            }
            let now = self.pager.now();
            if now >= deadline {
                return Err(self.timed_out(self.bytes_of(&(block..block + 1)), now - since));
            }
            // Made before the second look: the pin may have been given back meanwhile.
            match &mut waiter {
                None => waiter = Some(self.pager.budget.waiter()),
                Some(waiter) => waiter.wait(kernel, deadline - now),
            }
        }
    }

    /// Drops one claimed block, dirty or not.
    fn discard(&self, block: u64) -> Result<()> {
        let bytes = self.bytes_of(&(block..block + 1));
        let released = self.frames.release(std::slice::from_ref(&bytes));
        self.count_written(u64::from(!self.take_dirty(block).is_empty()));
        self.dropped(block);
        self.pager.budget.release(&*self.pager.kernel, self.block_charge());
        released.map_err(|e| Error::io("release", self.name.clone(), bytes.start, self.block_size(), e))
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; what the fills meet.
    pub fn read_at(self: &Arc<Self>, offset: u64, into: &mut [u8]) -> Result<()> {
        self.check_range(offset, into.len() as u64)?;
        for (at, range) in self.steps(offset, into.len()) {
            let _held =
                Request::new(self, self.blocks_of(at..at + range.len() as u64).collect(), true)?.wait()?;
            self.frames.copy_out(at, &mut into[range]);
        }
        Ok(())
    }

    /// Copies bytes in. Blocks that are absent are read first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; what the fills meet. Bytes before the failing block have been copied then.
    pub fn write_at(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        self.check_writable()?;
        for (at, range) in self.steps(offset, bytes.len()) {
            let _held =
                Request::new(self, self.blocks_of(at..at + range.len() as u64).collect(), true)?.wait()?;
            let (end, looks) = (at + range.len() as u64, self.looks());
            self.frames.copy_in(at, &bytes[range]);
            self.note_written(at..end, looks);
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::ReadOnly { path: self.name.clone() }) }
    }

    /// Cuts a copy into parts of a few blocks: offset in the file, range in the buffer.
    fn steps(&self, offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        parts_of_copy(offset, len, self.pager.buffers.max_run().max(self.block_size()))
    }

    /// Copies bytes in; what is replaced wholly is not read first. Blocks that are replaced in part, at the two ends, are
    /// read if they are absent.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn overwrite(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        self.check_writable()?;
        let end = offset + bytes.len() as u64;
        let whole_from = offset.next_multiple_of(self.block_size());
        // The last block is replaced wholly as well if the bytes reach the end of the file.
        let whole_to = if end == self.len() { end } else { end & !(self.block_size() - 1) };
        if whole_from >= whole_to {
            return self.write_at(offset, bytes);
        }
        let part = |range: Range<u64>| &bytes[(range.start - offset) as usize..(range.end - offset) as usize];
        self.write_at(offset, part(offset..whole_from))?;
        let step = self.pager.buffers.max_run().max(self.block_size());
        let mut at = whole_from;
        while at < whole_to {
            let next = ((at / step + 1) * step).min(whole_to);
            self.replace_blocks(at, part(at..next))?;
            at = next;
        }
        self.write_at(whole_to, part(whole_to..end))
    }

    /// Replaces whole blocks, the last perhaps up to the end of the file only.
    fn replace_blocks(self: &Arc<Self>, at: u64, bytes: &[u8]) -> Result<()> {
        let blocks = self.blocks_of(at..at + bytes.len() as u64);
        let part = |run: &Range<u64>| {
            let range = self.bytes_of(run);
            let end = ((range.end - at) as usize).min(bytes.len());
            &bytes[(range.start - at) as usize..end]
        };
        let mut block = blocks.start;
        while block < blocks.end {
            let first = block;
            while block < blocks.end && self.word(block).claim() {
                block += 1;
            }
            if first < block {
                let run = first..block;
                fill::install(self, run.clone(), part(&run))?;
            } else {
                let run = block..block + 1;
                self.write_at(self.bytes_of(&run).start, part(&run))?;
                block += 1;
            }
        }
        Ok(())
    }
}

/// Cuts a copy of `len` bytes at the multiples of `step`: offset in the file, range in the buffer.
pub(crate) fn parts_of_copy(offset: u64, len: usize, step: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + len as u64;
    let next = move |at: &u64| Some((at / step + 1) * step).filter(|next| *next < end);
    let starts = std::iter::successors((len > 0).then_some(offset), next);
    starts.map(move |at| (at, (at - offset) as usize..(((at / step + 1) * step).min(end) - offset) as usize))
}

/// Writes zeros over a range of one pinned block, which is mapped unless the frames are lent.
fn zero(file: &File, bytes: Range<u64>) {
    if file.frames.is_lent() {
        let stored = file.frames.store(bytes.start, &vec![0; (bytes.end - bytes.start) as usize]);
        debug_assert!(stored.is_ok(), "pages that are there are stored over: {stored:?}");
        return file.mark_dirty(bytes.start / PAGE..bytes.end.div_ceil(PAGE));
    }
    let (written, looks) = (bytes.clone(), file.looks());
    static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    let mut at = bytes.start;
    while at < bytes.end {
        let n = (bytes.end - at).min(PAGE);
        file.frames.copy_in(at, &ZEROS[..n as usize]);
        at += n;
    }
    file.note_written(written, looks);
}
