//! A memfd whose contents the kernel has promised to keep.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

/// A descriptor of a file that can't be written or made shorter any more: F_SEAL_WRITE and F_SEAL_SHRINK are set, which
/// can't be undone (fcntl(2), "File Sealing").
#[derive(Debug)]
pub struct SealedFd {
    fd: OwnedFd,
    len: u64,
}

impl SealedFd {
    /// Takes a descriptor if its file is sealed.
    ///
    /// # Errors
    /// The descriptor, and `EPERM` if a seal is missing, `EINVAL` for files that can't be sealed.
    pub fn new(fd: OwnedFd) -> Result<Self, (OwnedFd, io::Error)> {
        let needed = SealFlags::WRITE | SealFlags::SHRINK;
        let len = fcntl_get_seals(&fd).and_then(|seals| {
            if !seals.contains(needed) {
                return Err(rustix::io::Errno::PERM);
            }
            fstat(&fd).map(|stat| stat.st_size as u64)
        });
        match len {
            Ok(len) => Ok(Self { fd, len }),
            Err(error) => Err((fd, error.into())),
        }
    }

    /// Length in bytes when it was looked at. It may have grown since, unless F_SEAL_GROW is set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for SealedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
