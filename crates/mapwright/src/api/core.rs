//! What `Map` and `MapMut` have in common: a part of something that is read, mapped by the kernel, or paged.

use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use super::kernel_map::KernelFile;
use super::pinned::Pins;
use super::strategy::Choice;
use crate::engine::checked::Scope;
use crate::engine::file::File;
use crate::engine::opened::Opened;
use crate::engine::read_ahead::Advice;
use crate::engine::request::{Acquire, Request};
use crate::engine::stats::FileStats;
use crate::engine::{evict, fault, request};
use crate::error::{Error, Result};
use crate::mmap::Residency;
use crate::remote::served::{Served, ServedPin, ServedScope};
use crate::stores::Store;

/// What residency is told in, in bytes.
const PAGE: u64 = mapwright_sys::PAGE_SIZE as u64;

/// Where a map's bytes are.
pub(super) enum Behind {
    /// On the heap.
    Buffer {
        store: Option<Arc<dyn Store>>,
        name: String,
    },
    Kernel(Arc<KernelFile>),
    Pager(Opened),
    Server(Arc<Served>),
}

/// A part of a file: `offset..offset + len` of it, all else in the map's own coordinates.
pub(super) struct Core {
    pub(super) behind: Behind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) choice: Choice,
}

/// A checked scope of whichever kind.
pub(super) enum AnyScope {
    None,
    Kernel(super::kernel_map::KernelScope),
    Pager(Scope),
    Server(ServedScope),
}

impl AnyScope {
    /// Leaves the scope.
    pub(super) fn end(self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Kernel(scope) => scope.end(),
            Self::Pager(scope) => scope.end(),
            Self::Server(scope) => scope.end(),
        }
    }
}

impl Core {
    pub(super) fn name(&self) -> &str {
        match &self.behind {
            Behind::Buffer { name, .. } => name,
            Behind::Kernel(kernel) => kernel.name(),
            Behind::Pager(file) => &file.name,
            Behind::Server(served) => served.name(),
        }
    }

    /// Turns a range of the map into start and end in the map.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Invalid`] if the end is before the start.
    pub(super) fn resolve(&self, range: impl RangeBounds<u64>) -> Result<Range<u64>> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len,
        };
        if start <= end && end <= self.len {
            return Ok(start..end);
        }
        if start > end && !matches!(range.end_bound(), Bound::Unbounded) {
            let what = format!("{}: a range from {start} to {end}", self.name());
            return Err(Error::invalid(what, "give the start first: it must not be above the end"));
        }
        Err(Error::OutOfRange { path: self.name().to_owned(), offset: start, end, file_len: self.len })
    }

    /// The same range in the file.
    pub(super) fn in_file(&self, range: &Range<u64>) -> Range<u64> {
        self.offset + range.start..self.offset + range.end
    }

    /// The same range as an index into slices of the whole address range.
    pub(super) fn as_index(&self, range: &Range<u64>) -> Range<usize> {
        let range = self.in_file(range);
        range.start as usize..range.end as usize
    }

    /// Makes a range resident and holds it there, where that needs pins.
    #[inline]
    pub(super) fn pin(&self, range: &Range<u64>) -> Result<Option<Pins<'_>>> {
        match &self.behind {
            Behind::Pager(file) => {
                let blocks = file.blocks_of(self.in_file(range));
                if !pin_hits(file, &blocks) {
                    Request::new(file, blocks.clone().collect(), true)?.wait()?.keep();
                }
                Ok(Some(Pins::Own { file, blocks }))
            }
            Behind::Server(served) => {
                let pin = served.pin(&[self.in_file(range)], true)?;
                Ok(Some(Pins::Server(Arc::new(pin))))
            }
            Behind::Kernel(kernel) => kernel.populate(self.in_file(range)).map(|()| None),
            Behind::Buffer { .. } => Ok(None),
        }
    }

    /// As [`pin`](Self::pin), as a future. The kernel's mmap has no asynchronous form: there it blocks.
    pub(super) async fn pin_async(&self, range: &Range<u64>) -> Result<Option<Pins<'_>>> {
        if let Behind::Server(served) = &self.behind {
            let pin = served.pin_async(&[self.in_file(range)], true).await?;
            return Ok(Some(Pins::Server(Arc::new(pin))));
        }
        let Behind::Pager(file) = &self.behind else { return self.pin(range) };
        let blocks = file.blocks_of(self.in_file(range));
        if !pin_hits(file, &blocks) {
            Acquire::new(Request::new(file, blocks.clone().collect(), true)?).await?.keep();
        }
        Ok(Some(Pins::Own { file, blocks }))
    }

    /// Makes many ranges resident in one submission and holds them.
    pub(super) fn pin_many(&self, ranges: &[Range<u64>]) -> Result<Vec<Option<Pins<'_>>>> {
        if let Behind::Server(served) = &self.behind {
            return Ok(shared(served.pin(&self.all_in_file(ranges), false)?, ranges.len()));
        }
        let Behind::Pager(file) = &self.behind else {
            return ranges.iter().map(|range| self.pin(range)).collect();
        };
        self.many(file, ranges)?.wait()?.keep();
        Ok(self.pins_of(file, ranges))
    }

    /// As [`pin_many`](Self::pin_many), as a future.
    pub(super) async fn pin_many_async(&self, ranges: &[Range<u64>]) -> Result<Vec<Option<Pins<'_>>>> {
        if let Behind::Server(served) = &self.behind {
            return Ok(shared(served.pin_async(&self.all_in_file(ranges), false).await?, ranges.len()));
        }
        let Behind::Pager(file) = &self.behind else { return self.pin_many(ranges) };
        Acquire::new(self.many(file, ranges)?).await?.keep();
        Ok(self.pins_of(file, ranges))
    }

    fn all_in_file(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        ranges.iter().map(|range| self.in_file(range)).collect()
    }

    fn many(&self, file: &Arc<File>, ranges: &[Range<u64>]) -> Result<Request> {
        let blocks = ranges.iter().flat_map(|range| file.blocks_of(self.in_file(range))).collect();
        Request::new(file, blocks, false)
    }

    fn pins_of<'m>(&self, file: &'m Arc<File>, ranges: &[Range<u64>]) -> Vec<Option<Pins<'m>>> {
        ranges
            .iter()
            .map(|range| Some(Pins::Own { file, blocks: file.blocks_of(self.in_file(range)) }))
            .collect()
    }

    /// Brings a range into memory.
    pub(super) fn prefetch(&self, range: &Range<u64>) -> Result<()> {
        match &self.behind {
            Behind::Pager(file) => {
                let _span =
                    tracing::debug_span!("prefetch", file = %file.name, start = range.start, end = range.end)
                        .entered();
                request::prefetch(file, self.in_file(range))
            }
            Behind::Server(served) => served.prefetch(self.in_file(range)),
            Behind::Kernel(kernel) => kernel.will_need(self.in_file(range)),
            Behind::Buffer { .. } => Ok(()),
        }
    }

    /// Starts to bring a range into memory.
    pub(super) fn will_need(&self, range: &Range<u64>) -> Result<()> {
        match &self.behind {
            Behind::Pager(file) => {
                fault::read_soon(file, vec![file.blocks_of(self.in_file(range))], None);
                Ok(())
            }
            Behind::Server(served) => {
                served.will_need(self.in_file(range));
                Ok(())
            }
            Behind::Kernel(kernel) => kernel.will_need(self.in_file(range)),
            Behind::Buffer { .. } => Ok(()),
        }
    }

    /// As [`prefetch`](Self::prefetch), as a future.
    pub(super) async fn prefetch_async(&self, range: &Range<u64>) -> Result<()> {
        if let Behind::Server(served) = &self.behind {
            return served.prefetch_async(self.in_file(range)).await;
        }
        let Behind::Pager(file) = &self.behind else { return self.prefetch(range) };
        for part in request::prefetch_parts(file, self.in_file(range)) {
            drop(Acquire::new(Request::new(file, part.collect(), false)?).await?);
        }
        Ok(())
    }

    /// Copies bytes out.
    pub(super) fn read_at(&self, bytes: &[u8], offset: u64, into: &mut [u8]) -> Result<()> {
        let range = self.resolve(offset..offset.saturating_add(into.len() as u64))?;
        match &self.behind {
            Behind::Pager(file) => file.read_at(self.offset + range.start, into),
            Behind::Server(served) => {
                let from = &bytes[range.start as usize..range.end as usize];
                served.read_at(self.offset + range.start, from, into)
            }
            Behind::Kernel(kernel) => kernel.read_at(self.offset + range.start, into),
            Behind::Buffer { .. } => {
                into.copy_from_slice(&bytes[range.start as usize..range.end as usize]);
                Ok(())
            }
        }
    }

    pub(super) fn enter_checked(&self) -> Result<AnyScope> {
        Ok(match &self.behind {
            Behind::Pager(file) => AnyScope::Pager(Scope::enter(file)?),
            Behind::Server(served) => AnyScope::Server(served.enter()?),
            Behind::Kernel(kernel) => AnyScope::Kernel(kernel.enter()?),
            Behind::Buffer { .. } => AnyScope::None,
        })
    }

    pub(super) fn advise(&self, advice: Advice) -> Result<()> {
        match &self.behind {
            Behind::Pager(file) => file.advise(advice),
            Behind::Server(served) => served.advise(advice),
            Behind::Kernel(kernel) => kernel.advise(self.in_file(&(0..self.len)), advice)?,
            Behind::Buffer { .. } => {}
        }
        Ok(())
    }

    /// Drops the clean, unpinned blocks of a range from memory; bytes freed.
    pub(super) fn evict(&self, range: &Range<u64>) -> u64 {
        match &self.behind {
            Behind::Pager(file) => evict::drop_clean(file, file.blocks_of(self.in_file(range))),
            Behind::Server(served) => served.evict(self.in_file(range)),
            Behind::Kernel(_) | Behind::Buffer { .. } => 0,
        }
    }

    /// Which pages of a range are in memory, from the page of the file that holds its first byte.
    pub(super) fn residency(&self, range: &Range<u64>) -> Result<Residency> {
        let bytes = self.in_file(range);
        let first = bytes.start / PAGE;
        let pages = if range.is_empty() { first..first } else { first..bytes.end.div_ceil(PAGE) };
        let resident: Vec<u8> = match &self.behind {
            Behind::Pager(file) => pages.map(|page| u8::from(file.is_resident(page * PAGE))).collect(),
            Behind::Server(served) => {
                let what = format!("{}: which pages are in memory, by a pager server", served.name());
                return Err(Error::invalid(what, "ask for resident_bytes, which it knows"));
            }
            Behind::Kernel(kernel) => kernel.residency(&pages)?,
            Behind::Buffer { .. } => pages.map(|_| 1).collect(),
        };
        Ok(Residency::new(&resident))
    }

    /// What the pager did for the file, where it is one of this process.
    pub(super) fn stats(&self) -> Option<FileStats> {
        match &self.behind {
            Behind::Pager(file) => Some(file.counted.own.told()),
            Behind::Server(_) | Behind::Kernel(_) | Behind::Buffer { .. } => None,
        }
    }

    /// Bytes of this file that the pager holds now.
    pub(super) fn resident_bytes(&self) -> u64 {
        match &self.behind {
            Behind::Pager(file) => file.resident_bytes(),
            Behind::Server(served) => served.resident_bytes(),
            Behind::Kernel(_) | Behind::Buffer { .. } => self.len,
        }
    }
}

/// One pin for many ranges.
fn shared<'m>(pin: ServedPin, count: usize) -> Vec<Option<Pins<'m>>> {
    let pin = Arc::new(pin);
    (0..count).map(|_| Some(Pins::Server(Arc::clone(&pin)))).collect()
}

/// Pins a run of blocks if all are hits, else none.
#[inline]
fn pin_hits(file: &File, blocks: &Range<u64>) -> bool {
    for block in blocks.clone() {
        if !file.word(block).pin_hit() {
            (blocks.start..block).for_each(|block| file.unpin(block));
            return false;
        }
    }
    file.pager.counters.hits.add(blocks.end - blocks.start);
    true
}
