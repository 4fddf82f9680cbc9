//! Memory that is shared with other processes, as atomic words.
//!
//! The rule on aliasing: what is mapped here is reached through `&AtomicU64` only, one for each aligned eight bytes, so that no two
//! accesses of one place have different sizes, and no access races that is not atomic. No slice of it exists. What others write,
//! wrong or hostile as it may be, is some value of a word.
//!
//! A page that can't be had, because somebody has cut the file, is replaced by private zeros: nobody dies, and
//! [`Words::is_lost`] says so from then on.
//!
//! Below the mapping lies a private page that nobody else sees: the links of the list by which the kernel learns what to mark
//! when this process dies ([`presence`]).

pub mod presence;
mod wait;

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::PAGE_SIZE;
use crate::mmap::{AddressSpace, Region, Request, Source, VolatileMut, Write};
use crate::signals::{BusGuard, BusOutcome, GuardToken, guard};

pub use wait::{Waiting, is_wait_for_two_supported};

/// Bytes in a word.
pub const WORD: usize = 8;

/// A shared mapping of a file from its first byte on, as words.
#[derive(Debug)]
pub struct Words {
    /// Dropped first: no handler runs for addresses that are being unmapped.
    _guard: GuardToken,
    shared: Region<VolatileMut>,
    links: Region<Write>,
    lost: Arc<Lost>,
}

/// Replaces pages that can't be had.
#[derive(Debug)]
struct Lost {
    range: Range<usize>,
    is_lost: AtomicBool,
}

impl Words {
    /// Maps the first `len` bytes of a file, a multiple of the page size.
    ///
    /// # Errors
    /// What mmap(2) says; `EINVAL` for another length.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let total = len.checked_add(PAGE_SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
        let space = Arc::new(AddressSpace::new(total, PAGE_SIZE)?);
        let links = Request { place: Some((&space, 0)), ..Request::new(Source::Anonymous, PAGE_SIZE) };
        let links = Region::<Write>::anonymous(&links)?;
        let source = Source::File { fd, offset: 0, shared: true };
        let shared = Request { place: Some((&space, PAGE_SIZE)), ..Request::new(source, len) };
        let shared = Region::<VolatileMut>::volatile(&shared)?;
        let range = shared.start()..shared.start() + len;
        let lost = Arc::new(Lost { range: range.clone(), is_lost: AtomicBool::new(false) });
        let guard = guard(range, Arc::clone(&lost) as Arc<dyn BusGuard>)?;
        Ok(Self { _guard: guard, shared, links, lost })
    }

    /// Number of words.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.len() / WORD
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a page could not be had since it was mapped: what is read since may be zeros, what is written seen by nobody.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost.load(Ordering::Relaxed)
    }

    /// A word, by its index.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len(), "word {index} of {}", self.len());
        let address = self.shared.start() + index * WORD;
        // SAFETY: the word is inside the mapping, which lives as long as `self`, and aligned, because mappings begin at
        // pages; it is only ever accessed as this atomic.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }
    }

    /// Copies bytes out, word by word, from the word at `index` on. What others write at the same time may be seen in part.
    ///
    /// # Panics
    /// If they reach past the end.
    #[inline]
    pub fn load(&self, index: usize, into: &mut [u8]) {
        let words = self.range(index, into.len());
        for (word, part) in words.iter().zip(into.chunks_mut(WORD)) {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
    }

    /// Copies bytes in, word by word; what is left of the last word becomes zero.
    ///
    /// # Panics
    /// If they reach past the end.
    #[inline]
    pub fn store(&self, index: usize, bytes: &[u8]) {
        let words = self.range(index, bytes.len());
        for (word, part) in words.iter().zip(bytes.chunks(WORD)) {
            let mut whole = [0; WORD];
            whole[..part.len()].copy_from_slice(part);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
    }

    /// The words that hold `len` bytes.
    #[inline]
    fn range(&self, index: usize, len: usize) -> &[AtomicU64] {
        let count = len.div_ceil(WORD);
        assert!(
            index <= self.len() && count <= self.len() - index,
            "{count} words at {index} of {}",
            self.len()
        );
        let address = self.shared.start() + index * WORD;
        // SAFETY: as for `word`, for each of them.
        unsafe { std::slice::from_raw_parts(address as *const AtomicU64, count) }
    }

    /// Address of the half of a word that futexes look at: the low one.
    fn half(&self, index: usize) -> usize {
        assert!(index < self.len(), "word {index} of {}", self.len());
        self.shared.start() + index * WORD + presence::LOW_HALF
    }

    /// The private link that belongs to a word of the first page.
    fn link(&self, index: usize) -> &AtomicUsize {
        assert!(index < PAGE_SIZE / WORD, "word {index} has no link");
        let address = self.links.start() + index * WORD;
        // SAFETY: inside the private page, which lives as long as `self`, and aligned; only ever accessed as this atomic, for
        // no slice of the region is ever made.
        unsafe { AtomicUsize::from_ptr(address as *mut usize) }
    }
}

impl BusGuard for Lost {
    fn on_bus(&self, address: usize) -> BusOutcome {
        self.is_lost.store(true, Ordering::SeqCst);
        let page = address / PAGE_SIZE * PAGE_SIZE;
        if !self.range.contains(&page) {
            return BusOutcome::Pass;
        }
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the page is a part of the mapping, which is there while this guard is in force; it is seen through atomics
        // only, for which the change is one of the values.
        match unsafe { mmap_anonymous(page as *mut _, PAGE_SIZE, protection, flags) } {
            Ok(_) => BusOutcome::Retry,
            Err(_) => BusOutcome::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use super::Words;
    use crate::PAGE_SIZE;

    fn words(pages: usize) -> (std::fs::File, Words) {
        let file = tempfile::tempfile().unwrap();
        file.set_len((pages * PAGE_SIZE) as u64).unwrap();
        let words = Words::map(file.as_fd(), pages * PAGE_SIZE).unwrap();
        (file, words)
    }

    #[test]
    fn two_mappings_of_a_file_see_the_same_words() {
        let (file, one) = words(2);
        let two = Words::map(file.as_fd(), 2 * PAGE_SIZE).unwrap();
        one.word(600).store(7, Ordering::SeqCst);
        assert_eq!((two.word(600).load(Ordering::SeqCst), two.len()), (7, 1024));
        one.store(10, b"eleven bytes");
        let mut bytes = [0; 12];
        two.load(10, &mut bytes);
        assert_eq!(&bytes, b"eleven bytes");
        assert_eq!(two.word(11).load(Ordering::SeqCst).to_ne_bytes(), *b"ytes\0\0\0\0");
    }

    #[test]
    fn a_cut_file_is_told_and_kills_nobody() {
        let (file, words) = words(3);
        words.word(1200).store(5, Ordering::SeqCst);
        file.set_len(PAGE_SIZE as u64).unwrap();
        assert!(!words.is_lost());
        assert_eq!(words.word(1200).load(Ordering::SeqCst), 0);
        assert!(words.is_lost());
        words.word(1200).store(6, Ordering::SeqCst);
        assert_eq!(words.word(1200).load(Ordering::SeqCst), 6);
    }

    #[test]
    #[should_panic(expected = "word 512 of 512")]
    fn there_is_nothing_past_the_end() {
        let (_file, words) = words(1);
        let _ = words.word(512);
    }

    #[test]
    fn lengths_are_whole_pages() {
        let file = tempfile::tempfile().unwrap();
        for len in [0, 1, 4097, usize::MAX] {
            assert!(Words::map(file.as_fd(), len).is_err(), "{len}");
        }
    }
}
