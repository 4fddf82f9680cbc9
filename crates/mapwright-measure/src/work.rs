//! The loops that read a file through a way, and measure it.

use std::time::Instant;

use crate::failure::{Failure, Result};
use crate::histogram::Histogram;
use crate::pages::PAGE;
use crate::ways::{Cursor, Source};

/// How much of a sequential scan one latency is of: 1 MiB, for every way.
pub const STEP: u64 = 1 << 20;

/// One thread's part of the work, and what it measured.
pub struct Share<'a> {
    /// The pages to read.
    pub pages: &'a [u64],
    /// Pages read.
    pub ops: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Sum of the words read.
    pub checksum: u64,
    /// How long each took.
    pub latencies: Histogram,
}

impl<'a> Share<'a> {
    /// Nothing read yet.
    pub fn new(pages: &'a [u64]) -> Self {
        Self { pages, ops: 0, bytes: 0, checksum: 0, latencies: Histogram::default() }
    }

    /// Adds what another thread did.
    pub fn add(&mut self, other: &Share<'_>) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.checksum = self.checksum.wrapping_add(other.checksum);
        self.latencies.merge(&other.latencies);
    }
}

/// Deals the pages out to threads; there is always one share.
pub fn shares(pages: &[u64], threads: usize) -> Vec<Share<'_>> {
    if pages.is_empty() {
        return vec![Share::new(&[])];
    }
    pages.chunks(pages.len().div_ceil(threads)).map(Share::new).collect()
}

/// How a file is read.
pub struct Reading {
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Pages handed over at once.
    pub batch: usize,
    /// When to stop early.
    pub stop_at: Option<Instant>,
}

impl Reading {
    fn is_over(&self, now: Instant) -> bool {
        self.stop_at.is_some_and(|stop| now >= stop)
    }

    /// Reads the first `bytes` of the file in steps.
    pub fn scan(&self, cursor: &mut dyn Cursor, bytes: u64, share: &mut Share<'_>) -> Result<()> {
        let end = bytes.min(self.file_len);
        let mut before = Instant::now();
        while share.bytes < end && !self.is_over(before) {
            let step = share.bytes..(share.bytes + STEP).min(end);
            let len = step.end - step.start;
            share.checksum = share.checksum.wrapping_add(cursor.range(step)?);
            share.bytes += len;
            share.ops += len.div_ceil(PAGE);
            let now = Instant::now();
            share.latencies.record(now - before, 1);
            before = now;
        }
        Ok(())
    }

    /// Reads the listed pages. Each page of a batch counts with the latency of the batch: that is how long it took to
    /// arrive.
    pub fn pick(&self, cursor: &mut dyn Cursor, share: &mut Share<'_>) -> Result<()> {
        let mut before = Instant::now();
        for batch in share.pages.chunks(self.batch) {
            if self.is_over(before) {
                break;
            }
            share.checksum = share.checksum.wrapping_add(cursor.pages(batch)?);
            share.ops += batch.len() as u64;
            share.bytes += batch.iter().map(|page| (self.file_len - page * PAGE).min(PAGE)).sum::<u64>();
            let now = Instant::now();
            share.latencies.record(now - before, batch.len() as u64);
            before = now;
        }
        Ok(())
    }

    /// The same with a thread for each share; one share is read by the thread that calls.
    pub fn pick_all(&self, source: &dyn Source, shares: &mut [Share<'_>]) -> Result<()> {
        if let [share] = shares {
            return self.pick(&mut *source.cursor()?, share);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = shares
                .iter_mut()
                .map(|share| scope.spawn(move || self.pick(&mut *source.cursor()?, share)))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Failure::Message("a reading thread panicked".to_owned())))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_in_one_share() {
        let pages: Vec<u64> = (0..10).collect();
        let seen: Vec<u64> = shares(&pages, 4).iter().flat_map(|share| share.pages.to_vec()).collect();
        assert_eq!(seen, pages);
        assert_eq!(shares(&[], 4).len(), 1);
    }
}
