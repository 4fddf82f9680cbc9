//! The block device and the file system under a file, and the device's read-ahead setting.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// What lies under a file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file system's name, as in /proc/self/mountinfo.
    pub file_system: String,
    /// The whole disk (not the partition), or why there is none.
    pub device: std::result::Result<Device, String>,
}

/// A block device with a queue.
#[derive(Clone, Debug)]
pub struct Device {
    /// As in /sys/block.
    pub name: String,
    dir: PathBuf,
}

impl Place {
    /// Looks up what lies under an existing file.
    pub fn of(path: &Path) -> Result<Self> {
        let absolute = fs::canonicalize(path).map_err(|error| Failure::io("resolve", path, error))?;
        let meta = fs::metadata(&absolute).map_err(|error| Failure::io("stat", path, error))?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let file_system = file_system(&mountinfo, &absolute).unwrap_or_else(|| "unknown".to_owned());
        let device = Device::of_number(meta.dev()).map_err(|why| format!("{why} ({file_system})"));
        Ok(Self { file_system, device })
    }

    /// Whether the file lives in memory: a comparison there measures no device.
    pub fn is_memory(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs")
    }
}

impl Device {
    fn of_number(dev: u64) -> std::result::Result<Self, String> {
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let mut dir =
            fs::canonicalize(&link).map_err(|_| "the file system names no block device".to_owned())?;
        if dir.join("partition").exists() {
            dir.pop();
        }
        if !dir.join("queue").is_dir() {
            return Err(format!("{} has no queue", dir.display()));
        }
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, dir })
    }

    /// The kernel's read-ahead for this device in KiB.
    pub fn read_ahead_kib(&self) -> Option<u64> {
        self.queue("read_ahead_kb")
    }

    /// Whether the kernel takes the device for a spinning disk.
    pub fn rotational(&self) -> Option<bool> {
        self.queue("rotational").map(|value| value == 1)
    }

    fn queue(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join("queue").join(file)).ok()?.trim().parse().ok()
    }
}

/// The type of the mount with the longest path that leads to the file; of two on the same path the later covers the other.
fn file_system(mountinfo: &str, absolute: &Path) -> Option<String> {
    let mut best: Option<(usize, String)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        let point = point.replace("\\040", " ");
        if absolute.starts_with(&point) && best.as_ref().is_none_or(|(len, _)| *len <= point.len()) {
            best = Some((point.len(), kind.to_owned()));
        }
    }
    best.map(|(_, kind)| kind)
}

/// A changed read-ahead setting that is put back when dropped.
pub struct ReadAhead {
    file: PathBuf,
    before_kib: u64,
}

impl ReadAhead {
    /// Sets the device's read-ahead.
    pub fn set(place: &Place, kib: u64) -> Result<Self> {
        let device = place.device.as_ref().map_err(|why| {
            Failure::Message(format!(
                "--device-read-ahead: {why}; give a file on a disk, or leave the option out"
            ))
        })?;
        let file = device.dir.join("queue/read_ahead_kb");
        let before_kib = device.read_ahead_kib().ok_or_else(|| {
            Failure::Message(format!("--device-read-ahead: cannot read {}", file.display()))
        })?;
        fs::write(&file, kib.to_string()).map_err(|error| {
            Failure::Message(format!("--device-read-ahead: {}: {error}; this needs root", file.display()))
        })?;
        Ok(Self { file, before_kib })
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.file, self.before_kib.to_string()) {
            let (file, kib) = (self.file.display(), self.before_kib);
            eprintln!("mapwright: {file} could not be put back to {kib}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_latest_mount_decides() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /tmp rw - tmpfs tmpfs rw\n\
            3 1 8:2 / /tmp rw shared:1 - xfs /dev/b rw\n4 1 8:3 / /my\\040disk rw - btrfs /dev/c rw\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")).as_deref(), Some("xfs"));
        assert_eq!(file_system(mounts, Path::new("/tmpx")).as_deref(), Some("ext4"));
        assert_eq!(file_system(mounts, Path::new("/my disk/x")).as_deref(), Some("btrfs"));
    }

    #[test]
    fn a_file_without_a_device_is_a_clear_error() {
        let place = Place::of(Path::new("/proc/self/status")).unwrap();
        let Err(error) = ReadAhead::set(&place, 128) else { panic!("/proc has no read-ahead") };
        assert!(error.to_string().contains("names no block device (proc)"), "{error}");
    }
}
