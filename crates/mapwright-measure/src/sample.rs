//! Files that a comparison makes for itself, and the page cache of those it reads.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::checksum::sum;
use crate::device::Place;
use crate::failure::{Failure, Result};
use crate::pages::{PAGE, Random};
use crate::{signals, size};

const CHUNK: usize = 1 << 20;

/// A file that is removed when dropped.
pub struct OwnFile {
    /// Where it is.
    pub path: PathBuf,
}

impl OwnFile {
    fn create(path: PathBuf) -> Result<(Self, File)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Failure::io("create", &path, error))?;
        Ok((Self { path }, file))
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("mapwright: {} could not be removed: {error}", self.path.display());
        }
    }
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Makes a file of pseudo-random bytes in a folder on a disk.
pub fn make_in(dir: &Path, bytes: u64) -> Result<OwnFile> {
    usable(dir, bytes).map_err(|why| Failure::Message(format!("{}: {why}; name another", dir.display())))?;
    write_sample(dir, bytes)
}

/// Makes a file of pseudo-random bytes on a disk: in $TMPDIR, else in the current directory, else in /var/tmp.
pub fn make(bytes: u64) -> Result<OwnFile> {
    let mut reasons = Vec::new();
    let tmpdir = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    for dir in [tmpdir, Some(OsString::from(".")), Some(OsString::from("/var/tmp"))].into_iter().flatten() {
        let dir = PathBuf::from(dir);
        match usable(&dir, bytes) {
            Ok(()) => match write_sample(&dir, bytes) {
                Err(Failure::Message(why)) => reasons.push(why),
                made => return made,
            },
            Err(why) => reasons.push(format!("{}: {why}", dir.display())),
        }
    }
    Err(Failure::Message(format!(
        "no place for a sample of {}: {}; name a file, or set TMPDIR",
        size::show(bytes),
        reasons.join("; ")
    )))
}

fn usable(dir: &Path, bytes: u64) -> std::result::Result<(), String> {
    let place = Place::of(dir).map_err(|failure| failure.to_string())?;
    if place.is_memory() {
        return Err(format!("{} is memory, not a disk", place.file_system));
    }
    let stat = rustix::fs::statvfs(dir).map_err(|error| error.to_string())?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // As much again for the copy that updates go to, and for others.
    if free < bytes.saturating_mul(2) {
        return Err(format!("only {} free", size::show(free)));
    }
    Ok(())
}

fn write_sample(dir: &Path, bytes: u64) -> Result<OwnFile> {
    let (own, mut file) = OwnFile::create(dir.join(format!(
        ".mapwright-sample-{}-{}",
        std::process::id(),
        SERIAL.fetch_add(1, Ordering::Relaxed)
    )))?;
    let mut random = Random::new(bytes);
    let mut chunk = vec![0u8; CHUNK];
    let mut left = bytes;
    while left > 0 {
        signals::check()?;
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&random.bits().to_le_bytes());
        }
        let count = left.min(CHUNK as u64);
        file.write_all(&chunk[..count as usize]).map_err(|error| Failure::io("write", &own.path, error))?;
        left -= count;
    }
    file.sync_all().map_err(|error| Failure::io("sync", &own.path, error))?;
    Ok(own)
}

/// Copies the file beside itself, sharing its blocks where the file system can.
pub fn copy(original: &Path) -> Result<OwnFile> {
    let mut name = OsString::from(".");
    name.push(original.file_name().unwrap_or_default());
    name.push(format!(".mapwright-copy-{}", std::process::id()));
    let (own, mut to) = OwnFile::create(original.with_file_name(name))?;
    let mut from = File::open(original).map_err(|error| Failure::io("open", original, error))?;
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        let mut chunk = vec![0u8; CHUNK];
        loop {
            signals::check()?;
            let count = from.read(&mut chunk).map_err(|error| Failure::io("read", original, error))?;
            if count == 0 {
                break;
            }
            to.write_all(&chunk[..count]).map_err(|error| Failure::io("write", &own.path, error))?;
        }
    }
    to.sync_all().map_err(|error| Failure::io("sync", &own.path, error))?;
    Ok(own)
}

/// Takes the file out of the page cache; how many of its pages stayed, where the kernel tells.
pub fn drop_cache(file: &File) -> Option<u64> {
    // Dirty pages stay whatever the advice says.
    let _ = rustix::fs::fsync(file);
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    crate::raw::cached_pages(file)
}

/// Checks what a round of updates left in the copy against the original, and puts the original's bytes back.
///
/// Returns the checksum of the whole copy as the kernel reads it.
pub fn check_and_restore(original: &Path, copy: &Path, offsets: &[u64]) -> Result<u64> {
    let from = File::open(original).map_err(|error| Failure::io("open", original, error))?;
    let to = OpenOptions::new()
        .read(true)
        .write(true)
        .open(copy)
        .map_err(|error| Failure::io("open", copy, error))?;
    drop_cache(&to);
    let checksum = file_checksum(&to, copy)?;

    let mut sorted = offsets.to_vec();
    sorted.sort_unstable();
    let mut lost = 0;
    for same in sorted.chunk_by(|a, b| a == b) {
        signals::check()?;
        let before = read_word(&from, original, same[0])?;
        let after = read_word(&to, copy, same[0])?;
        if after != before.wrapping_add(same.len() as u64) {
            lost += 1;
        }
        to.write_all_at(&before.to_le_bytes(), same[0])
            .map_err(|error| Failure::io("restore", copy, error))?;
    }
    drop_cache(&to);
    if lost > 0 {
        return Err(Failure::Message(format!(
            "{lost} words of the file do not hold what was written to them"
        )));
    }
    Ok(checksum)
}

fn read_word(file: &File, path: &Path, offset: u64) -> Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, offset).map_err(|error| Failure::io("read back", path, error))?;
    Ok(u64::from_le_bytes(word))
}

/// The sum of a file, as the kernel reads it.
pub fn file_checksum(file: &File, path: &Path) -> Result<u64> {
    let len = file.metadata().map_err(|error| Failure::io("stat", path, error))?.len();
    let mut chunk = vec![0u8; CHUNK];
    let mut total = 0u64;
    let mut offset = 0;
    while offset < len {
        signals::check()?;
        let count = (len - offset).min(CHUNK as u64);
        let bytes = &mut chunk[..count as usize];
        file.read_exact_at(bytes, offset).map_err(|error| Failure::io("read back", path, error))?;
        total = total.wrapping_add(sum(bytes));
        offset += count;
    }
    Ok(total)
}

/// Touches `bytes` of memory and gives it back, as small pages and as huge ones: machines that hand memory over lazily do it
/// now, not to the first contender. (What is free as small pages is seldom what is free as huge ones.)
pub fn touch_memory(bytes: u64) {
    for advice in [memmap2::Advice::NoHugePage, memmap2::Advice::HugePage] {
        let Ok(mut memory) = memmap2::MmapMut::map_anon(bytes as usize) else { continue };
        let _ = memory.advise(advice); // a kernel without huge pages has no use for them either
        memory.chunks_mut(PAGE as usize).for_each(|page| page[0] = 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_finds_lost_and_misplaced_updates() {
        let dir = tempfile::tempdir().unwrap();
        let original = dir.path().join("original");
        fs::write(&original, vec![7u8; 10_000]).unwrap();
        let copied = copy(&original).unwrap();
        let expected = sum(&fs::read(&original).unwrap());

        let file = OpenOptions::new().write(true).open(&copied.path).unwrap();
        let word = u64::from_le_bytes([7; 8]);
        file.write_all_at(&(word + 2).to_le_bytes(), 4096).unwrap();
        assert_eq!(check_and_restore(&original, &copied.path, &[4096, 4096]).unwrap(), expected + 2);
        assert_eq!(fs::read(&original).unwrap(), fs::read(&copied.path).unwrap());

        file.write_all_at(&(word + 1).to_le_bytes(), 8).unwrap();
        assert!(check_and_restore(&original, &copied.path, &[16]).is_err());

        let path = copied.path.clone();
        drop(copied);
        assert!(!path.exists());
    }
}
