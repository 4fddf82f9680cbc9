//! Files that live in memory and have no name: to be shared by handing their descriptor on, and to be sealed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::mmap::{Region, SealedFd, Seen};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;

use super::change::Refused;
use super::fail::{Attempt, OrFailed};
use super::mapping::{Mapping, Mmap, MmapRaw, MmapRawRead};
use super::options::MmapOptions;
use crate::error::{Error, Result};

const NAME: &str = "a memory file";

/// A file in memory without a name (memfd_create(2)). Whoever gets its descriptor, a child or the other end of a Unix socket,
/// can map it.
///
/// ```
/// use mapwright::mmap::MemoryFile;
///
/// let file = MemoryFile::create("frames", 8192)?;
/// file.map()?.write_at(0, b"written once")?;
/// let sealed = file.seal()?; // nobody can write or shorten it any more
/// let bytes = sealed.map()?; // so this is a slice, with no promise
/// assert_eq!(&bytes[..12], b"written once");
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryFile(OwnedFd);

impl MemoryFile {
    /// A file of `len` zero bytes. The label is shown in /proc, and need not be unique.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a label longer than 249 bytes or with a zero byte; [`Io`](Error::Io) for a length
    /// that no file has, or for the limits of the system.
    pub fn create(label: &str, len: u64) -> Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Not executable, since Linux 6.3, and where a sysctl asks for it by name.
        let fd = match memfd_create(label, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(label, flags),
            made => made,
        };
        Self::sized(label, fd, len)
    }

    /// As [`create`](Self::create), of reserved huge pages (hugetlb) of two to this power in bytes: 21 for 2 MiB. The length
    /// is a multiple of the page size.
    ///
    /// # Errors
    /// As for [`create`](Self::create); [`Unsupported`](Error::Unsupported) for a size that the machine does not have.
    pub fn create_huge(label: &str, len: u64, page_bits: u8) -> Result<Self> {
        let size = MemfdFlags::from_bits_retain(u32::from(page_bits) << 26); // MFD_HUGE_SHIFT, linux/memfd.h
        let fd =
            memfd_create(label, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | size);
        if let Err(error @ (Errno::NODEV | Errno::INVAL | Errno::NOENT)) = fd
            && label.len() < 200
        {
            let remedy = "see /sys/kernel/mm/hugepages for the sizes there are";
            return Err(Error::unsupported("huge pages of that size", remedy, error.into()));
        }
        Self::sized(label, fd, len)
    }

    fn sized(label: &str, fd: rustix::io::Result<OwnedFd>, len: u64) -> Result<Self> {
        let fd = fd.map_err(|error| match error {
            Errno::INVAL => Error::invalid(
                format!("the label {label:?} for a memory file"),
                "give it at most 249 bytes, none of them zero",
            ),
            error => Error::io("memfd_create", NAME, 0, 0, error.into()),
        })?;
        let file = Self(fd);
        file.resize(len)?;
        Ok(file)
    }

    /// Takes a descriptor that somebody handed over.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) if it is no file in memory, with the descriptor. Besides memfds, files of a tmpfs or of
    /// hugetlbfs are.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Refused<OwnedFd>> {
        // Only files that can be sealed have seals: memfds, and shared memory of the kernel's own.
        match rustix::fs::fcntl_get_seals(&fd) {
            Ok(_) => Ok(Self(fd)),
            Err(_) => Err(Refused::new(fd, not_a_memory_file())),
        }
    }

    /// Length in bytes, now.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn len(&self) -> Result<u64> {
        let stat = fstat(&self.0).map_err(|error| Error::io("stat", NAME, 0, 0, error.into()))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Whether the length is zero now.
    ///
    /// # Errors
    /// As for [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Changes the length. Who has more of it mapped than is left gets errors for the rest, or SIGBUS in slices.
    ///
    /// # Errors
    /// [`Io`](Error::Io): `EPERM` if the length is sealed, `EINVAL` or `EFBIG` for a length that no file has.
    pub fn resize(&self, len: u64) -> Result<()> {
        ftruncate(&self.0, len).map_err(|error| Error::io("set length", NAME, len, 0, error.into()))
    }

    /// Maps all of it for reading and writing by copies; [`MmapOptions::map_raw`] has options.
    ///
    /// # Errors
    /// As for [`MmapOptions::map_raw`].
    pub fn map(&self) -> Result<MmapRaw> {
        MmapOptions::new().map_raw(&self.0)
    }

    /// Maps all of it for reading by copies.
    ///
    /// # Errors
    /// As for [`MmapOptions::map_raw_read_only`].
    pub fn map_read_only(&self) -> Result<MmapRawRead> {
        MmapOptions::new().map_raw_read_only(&self.0)
    }

    /// Fixes the length for good (F_SEAL_SHRINK, F_SEAL_GROW): nobody can cut it under a mapping.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `EPERM` if sealing was sealed.
    pub fn seal_length(&self) -> Result<()> {
        fcntl_add_seals(&self.0, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(|error| Error::io("seal", NAME, 0, 0, error.into()))
    }

    /// Fixes contents and length for good, for everybody.
    ///
    /// # Errors
    /// [`Refused`]: [`Locked`](Error::Locked) while it is mapped for writing anywhere; [`Io`](Error::Io) with `EPERM` if
    /// sealing was sealed.
    pub fn seal(self) -> Result<SealedMemory, Refused<Self>> {
        let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        if let Err(error) = fcntl_add_seals(&self.0, all) {
            let error = match error {
                Errno::BUSY => Error::Locked {
                    path: NAME.to_owned(),
                    holder: "a shared mapping of a descriptor open for writing",
                },
                error => Error::io("seal", NAME, 0, 0, error.into()),
            };
            return Err(Refused::new(self, error));
        }
        SealedMemory::from_fd(self.0)
            .map_err(|Refused { mapping, error }| Refused { mapping: Self(mapping), error })
    }
}

fn not_a_memory_file() -> Error {
    Error::NotTrusted {
        path: NAME.to_owned(),
        what: "the descriptor is of another kind of file".to_owned(),
        remedy: "have the other side send a memfd",
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<MemoryFile> for OwnedFd {
    fn from(file: MemoryFile) -> Self {
        file.0
    }
}

/// A memory file whose contents and length nobody can change any more.
///
/// # Threads and fork
/// `Send` and `Sync`; its descriptor is inherited by children made by fork, not across exec.
#[derive(Debug)]
pub struct SealedMemory(SealedFd);

impl SealedMemory {
    /// Takes a descriptor that somebody handed over, if it is sealed against writing and shrinking.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) if it is not, with the descriptor: the sender could still change the bytes.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Refused<OwnedFd>> {
        SealedFd::new(fd).map(Self).map_err(|(fd, source)| {
            let error = if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) {
                Error::NotTrusted {
                    path: NAME.to_owned(),
                    what: "it is not sealed against writing and shrinking".to_owned(),
                    remedy: "have the other side seal it first, or map it by copies: MemoryFile::from_fd",
                }
            } else {
                not_a_memory_file()
            };
            Refused::new(fd, error)
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Maps all of it: a slice, because the kernel lets nobody write it.
    ///
    /// # Errors
    /// As for [`map_part`](Self::map_part).
    pub fn map(&self) -> Result<Mmap> {
        let len = usize::try_from(self.len()).map_err(|_| self.out_of_range(0, self.len()))?;
        self.map_part(0, len)
    }

    /// Maps `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`OutOfRange`](Error::OutOfRange); [`LimitReached`](Error::LimitReached) and [`Io`](Error::Io) from mmap(2).
    pub fn map_part(&self, offset: u64, len: usize) -> Result<Mmap> {
        let end = offset.saturating_add(len as u64);
        if end > self.len() {
            return Err(self.out_of_range(offset, end));
        }
        let page = self.page_size();
        let attempt =
            Attempt { operation: "mmap", name: NAME, offset, len: len as u64, huge: page != PAGE_SIZE };
        let region = Region::sealed(&self.0, offset, len, page).or_failed(attempt)?;
        Ok(Mapping::new(region, None))
    }

    fn page_size(&self) -> usize {
        Seen::look(self.0.as_fd()).map_or(PAGE_SIZE, |seen| seen.page_size())
    }

    fn out_of_range(&self, offset: u64, end: u64) -> Error {
        Error::OutOfRange { path: NAME.to_owned(), offset, end, file_len: self.len() }
    }
}

impl AsFd for SealedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<SealedMemory> for OwnedFd {
    fn from(memory: SealedMemory) -> Self {
        memory.0.into_fd()
    }
}
