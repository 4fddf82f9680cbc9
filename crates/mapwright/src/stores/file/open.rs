//! What can be opened as a store, and how.
//!
//! An inode is first pinned with `O_PATH`, which opens nothing: a FIFO does not block, a watchdog is not armed, a tape
//! does not rewind. Only when it turns out to be a regular file or a block device is that very inode opened, through
//! /proc/self/fd; so nobody can put a FIFO in its place in between.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use super::{DIRECT_ALIGNMENT, FileOptions};
use crate::{Error, Result};

/// What may be a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    BlockDevice,
}

/// An inode opened by the rules of this module.
#[derive(Debug)]
pub(super) struct Opened {
    pub buffered: OwnedFd,
    pub direct: Option<OwnedFd>,
    pub kind: Kind,
    pub is_local: bool,
}

pub(super) fn by_path(path: &Path, options: &FileOptions) -> Result<Opened> {
    let pinned = retry(|| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
        .map_err(|error| open_error(path, error))?;
    let kind = mappable_kind(pinned.as_fd(), path)?;
    let buffered = match reopen(pinned.as_fd(), path, access(options)) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if options.write => {
            return Err(Error::ReadOnly { path: path.display().to_string() });
        }
        other => other.map_err(|error| open_error(path, error))?,
    };
    finish(buffered, path, kind, options)
}

pub(super) fn by_file(file: File, path: &Path, options: &FileOptions) -> Result<Opened> {
    let kind = mappable_kind(file.as_fd(), path)?;
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| open_error(path, error))?;
    // Checked here because opening anew would lift the restriction that somebody put on this descriptor.
    let mode = flags & OFlags::RWMODE;
    if options.write && mode != OFlags::RDWR {
        return Err(Error::ReadOnly { path: path.display().to_string() });
    }
    if mode == OFlags::WRONLY || flags.contains(OFlags::PATH) {
        let what = format!("{}: the descriptor is not open for reading", path.display());
        return Err(Error::invalid(what, "open the file for reading"));
    }
    let buffered = match reopen(file.as_fd(), path, access(options)) {
        Ok(buffered) => buffered,
        // Linux appends at the end whatever the offset says: pwrite(2), BUGS.
        Err(_) if options.write && flags.contains(OFlags::APPEND) => {
            let what = format!("{}: the descriptor was opened with O_APPEND", path.display());
            return Err(Error::invalid(what, "open the file without O_APPEND"));
        }
        Err(_) => file.into(),
    };
    finish(buffered, path, kind, options)
}

fn finish(buffered: OwnedFd, path: &Path, kind: Kind, options: &FileOptions) -> Result<Opened> {
    let is_local = is_local(buffered.as_fd()).map_err(|error| open_error(path, error))?;
    let direct = if options.direct { open_direct(buffered.as_fd(), path, kind, options) } else { None };
    Ok(Opened { buffered, direct, kind, is_local })
}

/// Device and inode. A block device is the same through every node that names it.
pub(crate) fn identity(stat: &Stat) -> u128 {
    let (device, inode) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => (stat.st_rdev, u64::MAX),
        _ => (stat.st_dev, stat.st_ino),
    };
    u128::from(device) << 64 | u128::from(inode)
}

/// Refuses what has no positions, no length or no bytes.
fn mappable_kind(fd: BorrowedFd<'_>, path: &Path) -> Result<Kind> {
    const PUMP: &str = "copy it to a file, or read it as a stream";
    let stat = rustix::fs::fstat(fd).map_err(|error| open_error(path, error))?;
    let refuse = |kind, remedy| Err(Error::NotMappable { path: path.display().to_string(), kind, remedy });
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if is_made_up_size(fd, stat.st_size) => refuse(
            "a kernel file that does not know its own size",
            "its contents are made up when it is read: read it with std::fs::read",
        ),
        FileType::RegularFile => Ok(Kind::Regular),
        FileType::BlockDevice => Ok(Kind::BlockDevice),
        FileType::Directory => refuse("a directory", "name a file in it"),
        FileType::Fifo => refuse("a pipe", PUMP),
        FileType::Socket => refuse("a socket", PUMP),
        FileType::CharacterDevice => {
            refuse("a character device", "only files and block devices have positions: read it as a stream")
        }
        FileType::Symlink | FileType::Unknown => refuse("a file of unknown type", "name a regular file"),
    }
}

/// Whether the size means nothing. Files of the kernel's own file systems claim to be empty, or on sysfs a page long, whatever they contain.
pub(crate) fn is_made_up_size(fd: BorrowedFd<'_>, size: i64) -> bool {
    if size != 0 && size != 4096 {
        return false; // no such file system makes that up: it need not be asked
    }
    let Ok(magic) = magic(fd) else { return false };
    match magic {
        SYSFS => size == 0 || size == 4096,
        PROC | DEBUGFS | TRACEFS | SECURITYFS | CONFIGFS | CGROUP | CGROUP2 => size == 0,
        _ => false,
    }
}

/// Opens the inode behind `fd` once more, with other flags.
///
/// Without /proc there is only the path; then `O_NONBLOCK` and a comparison guard against a changed name.
fn reopen(fd: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match retry(|| rustix::fs::open(&link, flags, Mode::empty())) {
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        other => return other,
    }
    let again = retry(|| rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::empty()))?;
    if identity(&rustix::fs::fstat(&again)?) != identity(&rustix::fs::fstat(fd)?) {
        return Err(Errno::STALE);
    }
    // Otherwise io_uring answers EAGAIN where it should wait.
    rustix::fs::fcntl_setfl(&again, rustix::fs::fcntl_getfl(&again)? - OFlags::NONBLOCK)?;
    Ok(again)
}

/// A descriptor for direct reads, and writes if there are to be any, aligned to [`DIRECT_ALIGNMENT`], or `None` where the file can't have one.
fn open_direct(buffered: BorrowedFd<'_>, path: &Path, kind: Kind, options: &FileOptions) -> Option<OwnedFd> {
    let alignment = match direct_alignment(buffered) {
        // The kernel or the file system doesn't say; a device's sector size is known all the same. For the rest, the first
        // read that is refused settles it.
        None if kind == Kind::BlockDevice => rustix::fs::ioctl_blksszget(buffered).ok().map(u64::from),
        other => other,
    };
    if alignment.is_some_and(|alignment| !DIRECT_ALIGNMENT.is_multiple_of(alignment)) {
        return None;
    }
    reopen(buffered, path, access(options) | OFlags::DIRECT).ok()
}

/// The alignment that direct I/O wants of addresses and offsets; 0 where there is none. `STATX_DIOALIGN`, Linux 6.1.
fn direct_alignment(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    if stat.stx_dio_offset_align == 0 {
        return Some(0);
    }
    Some(u64::from(stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)))
}

fn access(options: &FileOptions) -> OFlags {
    if options.write { OFlags::RDWR } else { OFlags::RDONLY }
}

fn open_error(path: &Path, error: Errno) -> Error {
    Error::io("open", path.display().to_string(), 0, 0, io::Error::from(error))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

// File system magics: include/uapi/linux/magic.h unless noted.
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;
const DEBUGFS: u64 = 0x6462_6720;
const TRACEFS: u64 = 0x7472_6163;
const SECURITYFS: u64 = 0x7363_6673;
const CONFIGFS: u64 = 0x6265_6570; // fs/configfs/mount.c
const CGROUP: u64 = 0x0027_e0eb;
const CGROUP2: u64 = 0x6367_7270;

/// File systems where a call may wait for another machine or another process.
const REMOTE: [u64; 14] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE (fs/fuse/inode.c)
    0x00c3_6400, // Ceph
    0x0102_1997, // 9P
    0x5346_414f, // AFS
    0x6b41_4653, // AFS, the kernel's own (fs/afs/super.c)
    0x7375_7245, // Coda
    0x0bd0_0bd0, // Lustre (outside the kernel)
    0x4750_4653, // GPFS (outside the kernel)
    0x0116_1970, // GFS2: waits for other nodes' locks
    0x7461_636f, // OCFS2: likewise
];

fn is_local(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(!REMOTE.contains(&magic(fd)?))
}

fn magic(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    // The field's type differs between architectures, and 32-bit magics come sign-extended on some.
    Ok(rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff)
}
