//! A journal's place on a file system: beside the file, under the file's name.
//!
//! The file's own directory is opened once, through the path the kernel has for the file (/proc/self/fd), so that a symbolic
//! link to the file leads to the same journal; a file that is renamed leaves it behind. Everything after that is relative to the directory's descriptor. Names are never
//! followed where they are links. What is found under the journal's name is trusted only if nobody could have put it there or
//! written to it who may not write the file. A journal is begun only where whoever opens the file next will find and trust it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, StatxFlags, Uid};
use rustix::io::Errno;

use super::disk::Place;
use super::error::{JournalError, Result};
use super::format::{Identity, Salt};
use crate::stores::{FileOptions, FileStore, Store};

/// What a journal's name ends with.
pub const SUFFIX: &str = ".mapwright-journal";
/// What is added while it is not complete.
const UNFINISHED: &str = ".new";

/// Bytes from which on a journal is refused that has hardly any on the disk: to look through it would take for ever. Below it
/// nothing is concluded from the blocks, which compressing file systems count in their own way.
const SPARSE: u64 = 64 << 30;

/// The place of one file's journal.
#[derive(Debug)]
pub struct Directory {
    directory: OwnedFd,
    file: OwnedFd,
    path: PathBuf,
    name: OsString,
}

impl Directory {
    /// The place of the journal of `file`, which is open; `path` is for messages.
    ///
    /// # Errors
    /// [`JournalError::Refused`] for what is no regular file, has no name any more, is mounted by itself, or lies on a file system
    /// that numbers its files anew at each mount; [`JournalError::Io`].
    pub fn of(file: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let refused = |why: &str, remedy| JournalError::Refused {
            path: path.display().to_string(),
            why: why.to_owned(),
            remedy,
        };
        let failed = |operation, error: Errno| {
            JournalError::io(operation, path.display().to_string(), 0, error.into())
        };
        let stat = rustix::fs::fstat(file).map_err(|error| failed("stat", error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("only a regular file can have a journal", "use Durability::Flush"));
        }
        if stat.st_nlink == 0 {
            return Err(refused("the file has no name any more", "name a file that exists"));
        }
        let magic =
            rustix::fs::fstatfs(file).map_err(|error| failed("find the file system of", error))?.f_type;
        if numbers_files_anew(magic as u64 & 0xffff_ffff) {
            let why = "the file system numbers its files anew at each mount, so that no journal could name its file";
            return Err(refused(why, "use Durability::Flush, or another file system"));
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let real =
            rustix::fs::readlink(&link, Vec::new()).map_err(|error| failed("find the path of", error))?;
        let real = PathBuf::from(OsStr::from_bytes(real.to_bytes()));
        let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else {
            return Err(refused("the file has no directory", "name a file in a directory"));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|error| failed("open the directory of", error))?;
        let there = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("find the name of", error))?;
        if (there.st_dev, there.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(refused("another file has its name now", "open it again"));
        }
        if mount_of(file).map_err(|error| failed("find the mount of", error))?
            != mount_of(directory.as_fd())
                .map_err(|error| failed("find the mount of the directory of", error))?
        {
            let why = "the file is mounted by itself, and its journal would lie on another file system";
            return Err(refused(why, "open it by its name in the directory that it is in"));
        }
        let file = file.try_clone_to_owned().map_err(|error| {
            JournalError::io("duplicate the descriptor of", path.display().to_string(), 0, error)
        })?;
        let mut journal = name.to_owned();
        journal.push(SUFFIX);
        Ok(Self { directory, file, path: parent.join(&journal), name: journal })
    }

    /// Where the journal is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn unfinished(&self) -> OsString {
        let mut name = self.name.clone();
        name.push(UNFINISHED);
        name
    }

    fn failed(&self, operation: &'static str, error: impl Into<io::Error>) -> JournalError {
        JournalError::io(operation, self.name(), 0, error.into())
    }

    fn stat_file(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.file).map_err(|error| self.failed("stat the file of", error))
    }

    fn store(&self, journal: OwnedFd) -> Result<Arc<dyn Store>> {
        let options = FileOptions { write: true, direct: false };
        let store = FileStore::from_file(File::from(journal), &self.path, &options)
            .map_err(|error| self.failed("open", io::Error::from(error)))?;
        Ok(Arc::new(store))
    }

    /// Whether what lies under the journal's name may be believed.
    fn trust(&self, journal: BorrowedFd<'_>) -> std::result::Result<(), String> {
        let unseen = |error: Errno| format!("it cannot be looked at: {}", io::Error::from(error));
        let has_list = has_access_list(journal).map_err(unseen)?
            || has_access_list(self.file.as_fd()).map_err(unseen)?;
        let journal = &rustix::fs::fstat(journal).map_err(unseen)?;
        let Ok(file) = self.stat_file() else { return Err("the file cannot be looked at".to_owned()) };
        if FileType::from_raw_mode(journal.st_mode) != FileType::RegularFile {
            return Err("not a regular file".to_owned());
        }
        if journal.st_nlink != 1 && !(journal.st_nlink == 2 && self.is_unfinished(journal)) {
            return Err(format!("it has {} names", journal.st_nlink));
        }
        let (bytes, allocated) = (journal.st_size as u64, journal.st_blocks as u64 * 512);
        if bytes > SPARSE && allocated < bytes / 1024 {
            return Err(format!(
                "{bytes} bytes long, of which {allocated} are on the disk: no journal is so sparse"
            ));
        }
        let trusted = [file.st_uid, rustix::process::geteuid().as_raw(), 0];
        if !trusted.contains(&journal.st_uid) {
            return Err(format!("owned by user {}, the file by user {}", journal.st_uid, file.st_uid));
        }
        // Where there is an access list the group's bits are those of everybody on it, at most.
        let (writers, group) = (journal.st_mode & 0o022, journal.st_mode & 0o020 != 0);
        if writers & !file.st_mode != 0 || (group && (journal.st_gid != file.st_gid || has_list)) {
            return Err(format!(
                "mode {:o} lets those write it who may not write the file",
                journal.st_mode & 0o7777
            ));
        }
        Ok(())
    }

    /// Refuses a file that has other names besides, by which its journal may be, or would not be found.
    fn has_one_name(&self) -> Result<()> {
        match self.stat_file()?.st_nlink {
            1 => Ok(()),
            names => Err(JournalError::Refused {
                path: self.name(),
                why: format!(
                    "there is none, and the file has {names} names, of which a journal is found by one only"
                ),
                remedy: "if a program was killed that had it open, recover it by the name it was opened by; then remove the \
                         other names, or copy it to a file of its own",
            }),
        }
    }

    /// Whether the journal has the unfinished name too: link(2) gave it the final one, and whoever did it was killed before
    /// taking the other away.
    fn is_unfinished(&self, journal: &Stat) -> bool {
        let there = rustix::fs::statat(&self.directory, self.unfinished(), AtFlags::SYMLINK_NOFOLLOW);
        there.is_ok_and(|there| (there.st_dev, there.st_ino) == (journal.st_dev, journal.st_ino))
    }

    /// Gives a new journal the owner of the file, who else would not trust it, its group where that is allowed, and at most its
    /// permissions.
    fn take_after_file(&self, journal: BorrowedFd<'_>) -> Result<()> {
        let file = self.stat_file()?;
        let made = rustix::fs::fstat(journal).map_err(|error| self.failed("stat", error))?;
        let (owner, group) = (Some(Uid::from_raw(file.st_uid)), Some(Gid::from_raw(file.st_gid)));
        if made.st_gid != file.st_gid {
            // May be refused: then the group's permissions are left out below.
            let _ = rustix::fs::fchown(journal, None, group);
        }
        if made.st_uid != file.st_uid {
            rustix::fs::fchown(journal, owner, None).map_err(|error| JournalError::Refused {
                path: self.name(),
                why: format!(
                    "user {} owns the file, and could not be given its journal ({}), which nobody else's program would trust",
                    file.st_uid,
                    io::Error::from(error)
                ),
                remedy: "open the file as its owner, or own it",
            })?;
        }
        // One that the directory gives to everything made in it.
        match rustix::fs::fremovexattr(journal, ACCESS_LIST) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(self.failed("remove the access list of", error)),
        }
        let has_list =
            has_access_list(self.file.as_fd()).map_err(|error| self.failed("look at the file of", error))?;
        let made = rustix::fs::fstat(journal).map_err(|error| self.failed("stat", error))?;
        let kept = match (has_list, made.st_gid == file.st_gid) {
            (true, _) => 0o600,
            (false, true) => 0o666,
            (false, false) => 0o606,
        };
        let mode = Mode::from_raw_mode(file.st_mode & kept);
        rustix::fs::fchmod(journal, mode).map_err(|error| self.failed("set the permissions of", error))
    }

    fn unlink(&self, name: &OsStr) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The extended attribute that holds POSIX access control lists: acl(5).
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Whether more is said of who may use a file than its mode says.
fn has_access_list(file: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    match rustix::fs::fgetxattr_query(file, ACCESS_LIST) {
        Ok(len) => Ok(len > 0),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of a file's mount; `None` before Linux 5.8, which does not say. Not the device: file systems with several volumes,
/// such as btrfs, and overlays have several.
fn mount_of(file: BorrowedFd<'_>) -> rustix::io::Result<Option<u64>> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok((stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id))
}

/// Whether inode numbers last as long as a mount only: fs/fat/inode.c and fs/exfat/inode.c draw them (`iunique`).
fn numbers_files_anew(magic: u64) -> bool {
    matches!(magic, 0x4d44 | 0x2011_bab0)
}

impl Place for Directory {
    fn confirm(&self) -> Result<()> {
        let file = self.stat_file()?;
        let name = self.name.as_bytes();
        let name = OsStr::from_bytes(&name[..name.len() - SUFFIX.len()]);
        let there = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Some((there.st_dev, there.st_ino)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(self.failed("find the name of the file of", error)),
        };
        if there == Some((file.st_dev, file.st_ino)) {
            return Ok(());
        }
        Err(JournalError::Refused {
            path: self.name(),
            why: "the file has lost its name to another, or has none any more".to_owned(),
            remedy: "open it again by its name",
        })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn identity(&self) -> Result<Identity> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = rustix::fs::statx(&self.file, "", AtFlags::EMPTY_PATH, wanted)
            .map_err(|error| self.failed("stat the file of", error))?;
        let is_known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = stat.stx_btime.tv_sec.saturating_mul(1_000_000_000) + i64::from(stat.stx_btime.tv_nsec);
        Ok(Identity { inode: stat.stx_ino, born_ns: if is_known { born } else { 0 } })
    }

    fn salt(&self) -> Result<Salt> {
        let mut salt = [0; 16];
        let mut filled = 0;
        while filled < salt.len() {
            match rustix::rand::getrandom(&mut salt[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed("draw a salt for", error)),
            }
        }
        Ok(Salt(salt))
    }

    fn open(&self) -> Result<Option<Arc<dyn Store>>> {
        // O_NONBLOCK: a pipe in its place must not make us wait.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let refused = |why: String| JournalError::Refused {
            path: self.name(),
            why,
            remedy: "look who put it there; move it away if it is not this file's journal",
        };
        let journal = match rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty()) {
            Ok(journal) => journal,
            Err(Errno::NOENT) => return self.has_one_name().map(|()| None),
            Err(Errno::LOOP) => return Err(refused("a symbolic link".to_owned())),
            Err(Errno::ISDIR | Errno::NXIO) => return Err(refused("not a regular file".to_owned())),
            Err(error) => return Err(self.failed("open", error)),
        };
        self.trust(journal.as_fd()).map_err(refused)?;
        self.store(journal).map(Some)
    }

    fn create(&self) -> Result<Arc<dyn Store>> {
        let name = self.unfinished();
        self.unlink(&name).map_err(|error| self.failed("remove an unfinished", error))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let journal = rustix::fs::openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.failed("create", error))?;
        if let Err(error) = self.take_after_file(journal.as_fd()) {
            // Left there, it would be removed by the next one.
            let _ = self.unlink(&name);
            return Err(error);
        }
        self.store(journal)
    }

    fn publish(&self) -> Result<()> {
        let (from, directory) = (self.unfinished(), self.directory.as_fd());
        match rustix::fs::renameat_with(directory, &from, directory, &self.name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(JournalError::Exists { path: self.name() }),
            // File systems without NOREPLACE: link(2) does not replace either.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match rustix::fs::linkat(directory, &from, directory, &self.name, AtFlags::empty()) {
                    Ok(()) => rustix::fs::unlinkat(directory, &from, AtFlags::empty())
                        .map_err(|error| self.failed("rename", error)),
                    Err(Errno::EXIST) => Err(JournalError::Exists { path: self.name() }),
                    Err(error) => Err(self.failed("rename", error)),
                }
            }
            Err(error) => Err(self.failed("rename", error)),
        }
    }

    fn replace(&self) -> Result<()> {
        let directory = self.directory.as_fd();
        rustix::fs::renameat(directory, self.unfinished(), directory, &self.name)
            .map_err(|error| self.failed("rename", error))
    }

    fn remove(&self) -> Result<()> {
        self.unlink(&self.name).map_err(|error| self.failed("remove", error))?;
        self.unlink(&self.unfinished()).map_err(|error| self.failed("remove an unfinished", error))
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.directory).map_err(|error| self.failed("sync the directory of", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_without_lasting_numbers_are_known() {
        // MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC; ext4, XFS, btrfs, tmpfs: statfs(2) and linux/magic.h.
        assert!([0x4d44, 0x2011_bab0].into_iter().all(numbers_files_anew));
        assert!(![0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994].into_iter().any(numbers_files_anew));
    }
}
