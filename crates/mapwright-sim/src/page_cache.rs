//! What a simulated store holds: the contents that reads see, the contents that a crash leaves, and which sectors differ.
//!
//! It behaves like an ordinary file behind the kernel's page cache: sectors are written out by `sync` or whenever the
//! kernel likes, in any order; a sector is atomic, a write of several is not; a failed sync may leave sectors that are
//! called clean and are not on the disk ("fsyncgate": Rebello et al., "Can Applications Recover from fsync Failures?",
//! USENIX ATC 2020).
//!
//! | sector | → | by |
//! | --- | --- | --- |
//! | clean | dirty | `write`, `set_len` that extends |
//! | dirty | clean, durable | `write_out` |
//! | dirty | clean, but not durable | `lose` with `forget` |
//! | dirty | clean, contents gone back | `lose` with `evict` |

use std::collections::BTreeSet;

use crate::rng::Rng;

/// Bytes written atomically by a disk: nothing larger may be relied on.
pub(crate) const SECTOR: u64 = 512;

/// One file behind a page cache.
pub(crate) struct PageCache {
    volatile: Vec<u8>,
    disk: Vec<u8>,
    disk_len: u64,
    dirty: BTreeSet<u64>,
}

impl PageCache {
    pub(crate) fn new(contents: Vec<u8>) -> Self {
        let disk_len = contents.len() as u64;
        Self { disk: contents.clone(), volatile: contents, disk_len, dirty: BTreeSet::new() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.volatile.len() as u64
    }

    pub(crate) fn contents(&self) -> &[u8] {
        &self.volatile
    }

    /// The bytes at `offset`, up to the end.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let from = offset.min(self.len()) as usize;
        let count = into.len().min(self.volatile.len() - from);
        into[..count].copy_from_slice(&self.volatile[from..from + count]);
        count
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        if end > self.len() {
            self.set_len(end);
        }
        self.volatile[offset as usize..end as usize].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        let old = self.len();
        self.volatile.resize(len as usize, 0);
        if len > old {
            self.dirty.extend(old / SECTOR..len.div_ceil(SECTOR));
        } else {
            self.dirty.split_off(&len.div_ceil(SECTOR));
        }
    }

    pub(crate) fn dirty(&self) -> Vec<u64> {
        self.dirty.iter().copied().collect()
    }

    /// Brings a sector to the disk if it is dirty.
    pub(crate) fn write_out(&mut self, sector: u64) {
        if self.dirty.remove(&sector) {
            put_sector(&mut self.disk, sector, &self.volatile);
        }
    }

    /// Makes the length durable.
    pub(crate) fn write_out_len(&mut self) {
        self.disk_len = self.len();
    }

    /// A sector that a failed sync could not write: now called clean, and read as before (`evict` false) or as on the disk.
    pub(crate) fn lose(&mut self, sector: u64, evict: bool) {
        if !self.dirty.remove(&sector) || !evict {
            return;
        }
        for at in sector * SECTOR..((sector + 1) * SECTOR).min(self.len()) {
            self.volatile[at as usize] = self.disk.get(at as usize).copied().unwrap_or(0);
        }
    }

    /// What the disk holds.
    pub(crate) fn crash_image(&self) -> Vec<u8> {
        let mut image = self.disk.clone();
        image.resize(self.disk_len as usize, 0);
        image
    }

    /// What the disk may hold: any of the dirty sectors may have been written.
    pub(crate) fn torn_crash_image(&self, rng: &mut Rng) -> Vec<u8> {
        let mut image = self.disk.clone();
        for &sector in &self.dirty {
            if rng.per_1000(500) {
                put_sector(&mut image, sector, &self.volatile);
            }
        }
        let len = if rng.per_1000(500) { self.len() } else { self.disk_len };
        image.resize(len as usize, 0);
        image
    }
}

fn put_sector(disk: &mut Vec<u8>, sector: u64, contents: &[u8]) {
    let start = (sector * SECTOR) as usize;
    let end = (start + SECTOR as usize).min(contents.len());
    if start >= end {
        return;
    }
    if disk.len() < end {
        disk.resize(end, 0);
    }
    disk[start..end].copy_from_slice(&contents[start..end]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_out_survives() {
        let mut cache = PageCache::new(vec![1; 1024]);
        cache.write(0, &[2; 1024]);
        cache.write_out(1);
        assert_eq!(cache.crash_image(), [vec![1; 512], vec![2; 512]].concat());
        let mut rng = Rng::new(1);
        let images: BTreeSet<u8> = (0..50).map(|_| cache.torn_crash_image(&mut rng)[0]).collect();
        assert_eq!(images, BTreeSet::from([1, 2]));
    }

    #[test]
    fn a_cut_and_regrown_file_reads_as_zeros_also_after_a_crash() {
        let mut cache = PageCache::new(vec![1; 2000]);
        cache.set_len(700);
        cache.set_len(2000);
        let expected = [vec![1; 700], vec![0; 1300]].concat();
        assert_eq!(cache.contents(), expected);
        cache.dirty().into_iter().for_each(|sector| cache.write_out(sector));
        cache.write_out_len();
        assert_eq!(cache.crash_image(), expected);
    }

    #[test]
    fn lost_sectors_never_reach_the_disk() {
        let mut cache = PageCache::new(vec![1; 1024]);
        cache.write(0, &[2; 1024]);
        cache.lose(0, true);
        cache.lose(1, false);
        assert_eq!(cache.contents(), [vec![1; 512], vec![2; 512]].concat());
        assert!(cache.dirty().is_empty());
        assert_eq!(cache.crash_image(), [1; 1024]);
    }
}
