//! What `Map` and `MapMut` have in common for their users: explicit access, and what is said of the map as a whole.
//!
//! Written once, as a macro: the methods are documented on both types, and neither derefs to anything but its bytes. Both
//! have the fields `core` and `bytes`.

use std::ops::{Range, RangeBounds};

use super::map::Map;
use super::map_mut::MapMut;
use super::pinned::{Held, Pinned, Pins};
use super::strategy::Choice;
use crate::engine::read_ahead::Advice;
use crate::error::Result;
use crate::mmap::Residency;

macro_rules! explicit_access {
    (impl $map:ident) => {
        impl $map {
            /// Which strategy is in use, and why.
            pub fn strategy(&self) -> &Choice {
                &self.core.choice
            }

            /// The bytes of a range (in bytes, of the map), resident for as long as the result lives.
            ///
            /// # Errors
            /// [`OutOfRange`](crate::Error::OutOfRange), [`Io`](crate::Error::Io), [`Changed`](crate::Error::Changed),
            /// [`TimedOut`](crate::Error::TimedOut), and [`BudgetExhausted`](crate::Error::BudgetExhausted) if the
            /// range is larger than what the budget has unpinned.
            #[inline]
            pub fn get(&self, range: impl RangeBounds<u64>) -> Result<Pinned<'_>> {
                let range = self.core.resolve(range)?;
                let pins = self.core.pin(&range)?;
                Ok(self.pinned(&range, pins))
            }

            /// Makes a range resident for as long as the result lives, which does not borrow the map: see [`Held`]. Programs in
            /// Rust want [`get`](Self::get).
            ///
            /// ```
            /// # let path = std::env::temp_dir().join(format!("mapwright-hold-{}", std::process::id()));
            /// # std::fs::write(&path, vec![1u8; 200_000]).unwrap();
            /// let map = mapwright::Map::open(&path)?;
            /// let held = map.hold(100_000..100_010)?;
            /// assert_eq!(map[100_000..100_010], [1; 10]); // no fault
            /// drop(held);
            /// # std::fs::remove_file(&path).unwrap();
            /// # Ok::<(), mapwright::Error>(())
            /// ```
            ///
            /// # Errors
            /// As for [`get`](Self::get).
            pub fn hold(&self, range: impl RangeBounds<u64>) -> Result<Held> {
                let range = self.core.resolve(range)?;
                Ok(Held::new(self.core.pin(&range)?))
            }

            /// Which pages of a range are in memory: in the pager's, or in the kernel's page cache with the kernel strategy; all of
            /// a buffer. Pages are those of the file, 4096 bytes each, counted from the one that holds the first byte of the
            /// range. It may have changed when this returns.
            ///
            /// ```
            /// # let path = std::env::temp_dir().join(format!("mapwright-residency-{}", std::process::id()));
            /// # std::fs::write(&path, vec![1u8; 200_000]).unwrap();
            /// let map = mapwright::Map::open(&path)?;
            /// map.prefetch(0..8192)?;
            /// let residency = map.residency(..)?;
            /// assert_eq!(residency.pages(), 49); // 200,000 bytes
            /// println!("{} of them in memory", residency.resident_pages());
            /// # std::fs::remove_file(&path).unwrap();
            /// # Ok::<(), mapwright::Error>(())
            /// ```
            ///
            /// # Errors
            /// [`OutOfRange`](crate::Error::OutOfRange); [`Io`](crate::Error::Io) from mincore(2) with the kernel strategy.
            pub fn residency(&self, range: impl RangeBounds<u64>) -> Result<Residency> {
                self.core.residency(&self.core.resolve(range)?)
            }

            /// As [`get`](Self::get), without blocking the thread while bytes are read. Any runtime can await it.
            /// Dropping the future is safe; reads that were started go on.
            ///
            /// # Errors
            /// As for [`get`](Self::get).
            pub async fn get_async(&self, range: impl RangeBounds<u64>) -> Result<Pinned<'_>> {
                let range = self.core.resolve(range)?;
                let pins = self.core.pin_async(&range).await?;
                Ok(self.pinned(&range, pins))
            }

            /// The bytes of many ranges, in the order asked for, read in one submission where they are not resident.
            ///
            /// # Errors
            /// As for [`get`](Self::get); then none is held.
            pub fn get_many(&self, ranges: &[Range<u64>]) -> Result<Vec<Pinned<'_>>> {
                let ranges = self.resolve_all(ranges)?;
                let pins = self.core.pin_many(&ranges)?;
                Ok(ranges.iter().zip(pins).map(|(range, pins)| self.pinned(range, pins)).collect())
            }

            /// As [`get_many`](Self::get_many), as a future.
            ///
            /// # Errors
            /// As for [`get`](Self::get); then none is held.
            pub async fn get_many_async(&self, ranges: &[Range<u64>]) -> Result<Vec<Pinned<'_>>> {
                let ranges = self.resolve_all(ranges)?;
                let pins = self.core.pin_many_async(&ranges).await?;
                Ok(ranges.iter().zip(pins).map(|(range, pins)| self.pinned(range, pins)).collect())
            }

            /// Makes many ranges resident, in one submission where they are not, for as long as the result lives, which does
            /// not borrow the map: see [`Held`]. Programs in Rust want [`get_many`](Self::get_many).
            ///
            /// ```
            /// # let path = std::env::temp_dir().join(format!("mapwright-hold-many-{}", std::process::id()));
            /// # std::fs::write(&path, vec![1u8; 200_000]).unwrap();
            /// let map = mapwright::Map::open(&path)?;
            /// let held = map.hold_many(&[0..10, 150_000..150_010, 50_000..60_000])?;
            /// assert_eq!(map[150_000..150_010], [1; 10]); // no fault
            /// drop(held); // all of them
            /// # std::fs::remove_file(&path).unwrap();
            /// # Ok::<(), mapwright::Error>(())
            /// ```
            ///
            /// # Errors
            /// As for [`get`](Self::get); then none is held.
            pub fn hold_many(&self, ranges: &[Range<u64>]) -> Result<Held> {
                let ranges = self.resolve_all(ranges)?;
                Ok(Held::all(self.core.pin_many(&ranges)?))
            }

            /// Brings a range into memory, as far as the budget allows, and returns when it is there. What is not used
            /// soon may be evicted again.
            ///
            /// # Errors
            /// As for [`get`](Self::get).
            pub fn prefetch(&self, range: impl RangeBounds<u64>) -> Result<()> {
                self.core.prefetch(&self.core.resolve(range)?)
            }

            /// Starts to bring a range into memory, as far as the budget allows, and returns at once. Failures show
            /// where the bytes are used.
            ///
            /// # Errors
            /// [`OutOfRange`](crate::Error::OutOfRange).
            pub fn will_need(&self, range: impl RangeBounds<u64>) -> Result<()> {
                self.core.will_need(&self.core.resolve(range)?)
            }

            /// As [`prefetch`](Self::prefetch), as a future.
            ///
            /// # Errors
            /// As for [`get`](Self::get).
            pub async fn prefetch_async(&self, range: impl RangeBounds<u64>) -> Result<()> {
                self.core.prefetch_async(&self.core.resolve(range)?).await
            }

            /// Copies bytes from `offset` on into `into`, all of it.
            ///
            /// # Errors
            /// As for [`get`](Self::get); `into` may be filled in part then.
            pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
                self.core.read_at(&self.bytes, offset, into)
            }

            /// Says how the file will be read, for all maps of it in this pager.
            ///
            /// # Errors
            /// [`Io`](crate::Error::Io) from the kernel strategy.
            pub fn advise(&self, advice: Advice) -> Result<()> {
                self.core.advise(advice)
            }

            /// Drops what is clean and unpinned of a range from memory and returns the number of bytes freed. 0 for
            /// strategies other than the pager.
            ///
            /// # Errors
            /// [`OutOfRange`](crate::Error::OutOfRange).
            pub fn evict(&self, range: impl RangeBounds<u64>) -> Result<u64> {
                Ok(self.core.evict(&self.core.resolve(range)?))
            }

            /// Bytes of the file that the pager holds in memory; the whole length for the other strategies, where it
            /// isn't known.
            pub fn resident_bytes(&self) -> u64 {
                self.core.resident_bytes()
            }

            /// What the pager did for the file, by all maps that share it: how many faults there were and how long they took, what was
            /// read, evicted and written back. `None` for strategies other than the pager, and for files of a pager server, whose
            /// [`Pager::stats`](crate::Pager::stats) tells of all that it serves.
            ///
            /// ```
            /// use mapwright::{MapOptions, Pager, Strategy};
            ///
            /// # let path = std::env::temp_dir().join(format!("mapwright-stats-doc-{}", std::process::id()));
            /// # std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
            /// let pager = Pager::builder().budget(64 << 20).build()?;
            /// let map = MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(&path)?;
            /// let sum: u64 = map.iter().map(|byte| u64::from(*byte)).sum();
            /// if let Some(stats) = map.stats() {
            ///     println!("{sum}: {} faults, 99% within {:?}", stats.faults.count(), stats.faults.quantile(0.99));
            /// }
            /// # drop(map); std::fs::remove_file(&path).unwrap();
            /// # Ok::<(), mapwright::Error>(())
            /// ```
            pub fn stats(&self) -> Option<crate::FileStats> {
                self.core.stats()
            }

            fn resolve_all(&self, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
                ranges.iter().map(|range| self.core.resolve(range.clone())).collect()
            }

            #[inline]
            fn pinned<'m>(&'m self, range: &Range<u64>, pins: Option<Pins<'m>>) -> Pinned<'m> {
                Pinned::new(&self.bytes[range.start as usize..range.end as usize], pins)
            }
        }
    };
}

explicit_access!(impl Map);
explicit_access!(impl MapMut);
