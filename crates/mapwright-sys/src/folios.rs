//! Files in memory of which whole 2 MiB can be on huge pages: a tmpfs of this process's own.
//!
//! What memfd_create(2) makes is on a mount of the kernel's, whose huge pages the administrator allows, and mostly does not. On a mount of one's own one
//! says so oneself (`huge=advise` in tmpfs(5)): a page fault in a mapping with MADV_HUGEPAGE makes a huge page, and everything else makes ordinary
//! ones. To mount takes CAP_SYS_ADMIN.
//!
//! The mount is shown nowhere. A second one of the same tmpfs is read-only, and what is opened by that can't be opened again for writing, by
//! nobody and by no name in `/proc`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
};

use crate::check;

/// The tmpfs, to be written and to be read by.
struct Mounts {
    writable: OwnedFd,
    readable: OwnedFd,
}

/// One file of no bytes, open in both ways. It has no name, and ends with its last descriptor and mapping.
pub(crate) struct Folios {
    /// For reading and writing.
    pub(crate) file: OwnedFd,
    /// For reading, to be handed out.
    pub(crate) readable: OwnedFd,
}

impl Folios {
    /// A new file.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; `ENOSYS` or `EINVAL` where the kernel can't mount so (before Linux 6.15 it can't mount twice what is shown
    /// nowhere); `EMFILE`.
    pub(crate) fn new() -> io::Result<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let mounts = mounts()?;
        // Of a process, and of its children: the mounts are theirs too. It is shown as that of a memfd is.
        let name =
            format!("memfd:mapwright-frames-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&mounts.writable, &name, flags, Mode::RUSR | Mode::WUSR)?;
        let readable = openat(&mounts.readable, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        unlinkat(&mounts.writable, &name, AtFlags::empty())?;
        Ok(Self { file, readable: readable? })
    }
}

/// Mounts once in a process, and does not try again where that can't be done.
fn mounts() -> io::Result<&'static Mounts> {
    static MOUNTS: OnceLock<Result<Mounts, i32>> = OnceLock::new();
    let mounted = MOUNTS.get_or_init(|| mount().map_err(|error| error.raw_os_error().unwrap_or(libc::EPERM)));
    mounted.as_ref().map_err(|&error| io::Error::from_raw_os_error(error))
}

fn mount() -> io::Result<Mounts> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What limits the frames is the pager's budget.
    for (key, value) in [("huge", "advise"), ("size", "0"), ("nr_inodes", "0"), ("mode", "0700")] {
        fsconfig_set_string(tmpfs.as_fd(), key, value)?;
    }
    fsconfig_create(tmpfs.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let writable = fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let readable = open_tree(writable.as_fd(), "", flags)?;
    make_read_only(readable.as_fd())?;
    Ok(Mounts { writable, readable })
}

fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the path is a string that ends, and `attributes` has the size that is told.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes,
            size,
        )
    };
    check(answer).map(drop)
}
