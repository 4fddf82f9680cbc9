//! Shared memory with a name, as shm_open(3) has it: the same names, in the same place, so that other languages' programs
//! find it.
//!
//! What is found under a name was put there by somebody. It is used only if it is a regular file, not reached by a symbolic link
//! or a second name, owned by who may own it, with no more permissions than expected, and no longer than allowed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, open, openat, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::geteuid;

use super::mapping::{MmapRaw, MmapRawRead, Origin};
use super::options::MmapOptions;
use crate::error::{Error, Result};

/// Where shm_open(3) keeps its objects on Linux: "a dedicated tmpfs(5) filesystem that is normally mounted under /dev/shm".
const PLACE: &str = "/dev/shm";
/// NAME_MAX.
const NAME_MAX: usize = 255;

/// How to create or open named shared memory.
#[derive(Clone, Debug)]
pub struct SharedMemoryOptions {
    mode: u32,
    owner: Option<u32>,
    max_len: u64,
}

impl Default for SharedMemoryOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedMemoryOptions {
    /// For this user alone (mode 0600), of any length.
    pub fn new() -> Self {
        Self { mode: 0o600, owner: None, max_len: u64::MAX }
    }

    /// The permissions: what is created gets them, less the umask; what is opened may have no others for group and others.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o777;
        self
    }

    /// The user who must own what is opened: by default the effective user of this process.
    #[must_use]
    pub fn owner(mut self, uid: u32) -> Self {
        self.owner = Some(uid);
        self
    }

    /// The longest that what is opened may be, in bytes.
    #[must_use]
    pub fn max_len(mut self, bytes: u64) -> Self {
        self.max_len = bytes;
        self
    }

    /// Creates memory of `len` zero bytes; it must not exist (O_CREAT and O_EXCL).
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `EEXIST`; [`Invalid`](Error::Invalid) for a name that is none; otherwise what the kernel says.
    pub fn create_new(&self, name: &str, len: u64) -> Result<SharedMemory> {
        let object = Name::new(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = object.open(flags, self.mode).map_err(|error| object.failed("shm_open", error))?;
        let set = first_len(fd.as_fd(), len);
        if set.is_err() && object.is(fd.as_fd()) {
            let _ = object.unlink(); // what it has become is of no use to anybody
        }
        match set.map_err(|error| object.failed("set length", error))? {
            now if now == len => SharedMemory::new(object, fd, len),
            now => Err(other_len(object.path_string(), now, len)), // somebody opened it at once, for another length
        }
    }

    /// Opens memory, or creates it with `len` zero bytes. What exists and is empty, because its creator has not set its length
    /// yet, gets that length too; what exists and has another length is refused.
    ///
    /// # Errors
    /// As for [`open`](Self::open) and [`create_new`](Self::create_new).
    pub fn create(&self, name: &str, len: u64) -> Result<SharedMemory> {
        loop {
            match self.create_new(name, len) {
                Err(error) if error.errno() == Some(Errno::EXIST.raw_os_error()) => {}
                made => return made,
            }
            let found = match self.open(name) {
                // Somebody has unlinked it meanwhile.
                Err(error) if error.errno() == Some(Errno::NOENT.raw_os_error()) => continue,
                found => found?,
            };
            return found.with_first_len(len);
        }
    }

    /// Opens memory that exists, for reading and writing.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `ENOENT`; [`ReadOnly`](Error::ReadOnly) without permission to write;
    /// [`NotTrusted`](Error::NotTrusted) for a symbolic link, a file with several names, another owner, more permissions than
    /// expected, or too many bytes; [`Invalid`](Error::Invalid) for a name that is none.
    pub fn open(&self, name: &str) -> Result<SharedMemory> {
        self.open_with(name, OFlags::RDWR)
    }

    /// Opens memory that exists, for reading.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_read_only(&self, name: &str) -> Result<SharedMemory> {
        self.open_with(name, OFlags::RDONLY)
    }

    fn open_with(&self, name: &str, flags: OFlags) -> Result<SharedMemory> {
        let object = Name::new(name)?;
        // A FIFO in its place must not make us wait.
        let fd = object.open(flags | OFlags::NONBLOCK, 0).map_err(|error| match error {
            Errno::LOOP => object.refused("a symbolic link".to_owned()),
            Errno::NXIO => object.refused("a socket or a pipe".to_owned()),
            Errno::ISDIR => object.refused("a directory".to_owned()),
            Errno::ACCESS | Errno::PERM if flags == OFlags::RDWR => {
                Error::ReadOnly { path: object.path_string() }
            }
            error => object.failed("shm_open", error),
        })?;
        let len = self.check(&object, fd.as_fd())?;
        SharedMemory::new(object, fd, len)
    }

    fn check(&self, object: &Name, fd: BorrowedFd<'_>) -> Result<u64> {
        let stat = fstat(fd).map_err(|error| object.failed("stat", error))?;
        let owner = self.owner.unwrap_or_else(|| geteuid().as_raw());
        let permissions = stat.st_mode & 0o077;
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let wrong = if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            "no regular file".to_owned()
        } else if stat.st_uid != owner {
            format!("it belongs to user {} and not to {owner}", stat.st_uid)
        } else if stat.st_nlink > 1 {
            format!("it has {} names", stat.st_nlink)
        } else if permissions & !self.mode != 0 {
            format!("its mode {:03o} gives others more than {:03o}", stat.st_mode & 0o777, self.mode)
        } else if len > self.max_len {
            format!("it has {len} bytes, more than {}", self.max_len)
        } else {
            return Ok(len);
        };
        Err(object.refused(wrong))
    }
}

/// Shared memory with a name: other processes open it by that, until somebody [unlinks](Self::unlink) it. It lives on while
/// it is open or mapped, and until the machine stops.
///
/// # Threads and fork
/// `Send` and `Sync`. A child made by fork has it open too.
///
/// ```
/// use mapwright::mmap::SharedMemory;
///
/// let name = format!("/mapwright-doc-{}", std::process::id());
/// let memory = SharedMemory::create_new(&name, 4096)?;
/// memory.map()?.write_at(0, b"hello")?;
///
/// let other = SharedMemory::open(&name)?; // in another process
/// assert_eq!(other.map_read_only()?.to_vec(..5)?, b"hello");
/// SharedMemory::unlink(&name)?;
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct SharedMemory {
    origin: Arc<Origin>,
}

impl SharedMemory {
    /// As [`SharedMemoryOptions::create_new`], for this user alone.
    ///
    /// # Errors
    /// As there.
    pub fn create_new(name: &str, len: u64) -> Result<Self> {
        SharedMemoryOptions::new().create_new(name, len)
    }

    /// As [`SharedMemoryOptions::create`], for this user alone.
    ///
    /// # Errors
    /// As there.
    pub fn create(name: &str, len: u64) -> Result<Self> {
        SharedMemoryOptions::new().create(name, len)
    }

    /// As [`SharedMemoryOptions::open`], for this user alone.
    ///
    /// # Errors
    /// As there.
    pub fn open(name: &str) -> Result<Self> {
        SharedMemoryOptions::new().open(name)
    }

    /// Takes a name away. Who has the memory open or mapped keeps it.
    ///
    /// # Errors
    /// [`Io`](Error::Io) with `ENOENT` or `EACCES`; [`Invalid`](Error::Invalid) for a name that is none.
    pub fn unlink(name: &str) -> Result<()> {
        let object = Name::new(name)?;
        object.unlink().map_err(|error| object.failed("shm_unlink", error))
    }

    fn new(object: Name, fd: OwnedFd, len: u64) -> Result<Self> {
        let origin = Origin { file: File::from(fd), path: object.path(), len: Some(len) };
        Ok(Self { origin: Arc::new(origin) })
    }

    fn with_first_len(self, len: u64) -> Result<Self> {
        let path = self.path().display().to_string();
        let now = match self.len() {
            // Its creator has not set it yet, or has by now.
            0 => first_len(self.as_fd(), len)
                .map_err(|error| Error::io("set length", path.clone(), len, 0, error.into()))?,
            now => now,
        };
        if now != len {
            return Err(other_len(path, now, len));
        }
        let mut origin = self.origin;
        if let Some(origin) = Arc::get_mut(&mut origin) {
            origin.len = Some(len); // just opened: nobody else has it
        }
        Ok(Self { origin })
    }

    /// Length in bytes when it was opened or last [resized](Self::resize) here.
    pub fn len(&self) -> u64 {
        self.origin.len.unwrap_or(0)
    }

    /// Whether the length was zero then.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file behind it.
    pub fn path(&self) -> &Path {
        &self.origin.path
    }

    /// Changes the length for all who have it. Mappings don't follow: map it anew, or [resize](super::Mapping::resize) them. What
    /// is cut off under a mapping is an error there ([`Changed`](Error::Changed)).
    ///
    /// # Errors
    /// [`Io`](Error::Io) with what ftruncate(2) says.
    pub fn resize(&mut self, len: u64) -> Result<()> {
        let file = self.origin.file.try_clone();
        let name = || self.path().display().to_string();
        // First what can fail without changing anything; mappings keep the old one.
        let file = file.map_err(|error| Error::io("dup", name(), 0, 0, error))?;
        ftruncate(&file, len).map_err(|error| Error::io("set length", name(), len, 0, error.into()))?;
        self.origin = Arc::new(Origin { file, path: self.path().to_owned(), len: Some(len) });
        Ok(())
    }

    /// Maps all of it for reading and writing, by copies: others may write it at any time. Its length is what it was when it
    /// was opened, whatever others have made of it since.
    ///
    /// # Errors
    /// [`ReadOnly`](Error::ReadOnly) if it was opened for reading; otherwise as for [`MmapOptions::map_raw`].
    pub fn map(&self) -> Result<MmapRaw> {
        self.all()?.map_origin(&self.origin, true)
    }

    /// Maps all of it for reading, by copies.
    ///
    /// # Errors
    /// As for [`MmapOptions::map_raw_read_only`].
    pub fn map_read_only(&self) -> Result<MmapRawRead> {
        self.all()?.map_origin(&self.origin, true)
    }

    fn all(&self) -> Result<MmapOptions> {
        let too_long =
            |_| Error::io("mmap", self.path().display().to_string(), 0, self.len(), Errno::OVERFLOW.into());
        Ok(MmapOptions::new().len(usize::try_from(self.len()).map_err(too_long)?))
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.origin.file.as_fd()
    }
}

/// A name that shm_open(3) takes, without its slash.
struct Name(String);

impl Name {
    fn new(name: &str) -> Result<Self> {
        let plain = name.strip_prefix('/').unwrap_or(name);
        let is_bad = plain.is_empty()
            || plain == "."
            || plain == ".."
            || plain.len() > NAME_MAX
            || plain.bytes().any(|byte| byte == b'/' || byte == 0);
        if is_bad {
            return Err(Error::invalid(
                format!("the name {name:?} for shared memory"),
                "a slash, then 1 to 255 bytes without slashes or zeros",
            ));
        }
        Ok(Self(plain.to_owned()))
    }

    fn open(&self, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        openat(place()?, &*self.0, flags, Mode::from_raw_mode(mode))
    }

    fn unlink(&self) -> rustix::io::Result<()> {
        unlinkat(place()?, &*self.0, AtFlags::empty())
    }

    /// Whether the name is still this file's.
    fn is(&self, fd: BorrowedFd<'_>) -> bool {
        let named = place().and_then(|place| statat(place, &*self.0, AtFlags::SYMLINK_NOFOLLOW));
        let (Ok(named), Ok(ours)) = (named, fstat(fd)) else { return false };
        (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
    }

    fn path(&self) -> PathBuf {
        Path::new(PLACE).join(&self.0)
    }

    fn path_string(&self) -> String {
        self.path().display().to_string()
    }

    fn failed(&self, operation: &'static str, error: Errno) -> Error {
        Error::io(operation, self.path_string(), 0, 0, error.into())
    }

    fn refused(&self, what: String) -> Error {
        let remedy = "find out who put it there; SharedMemoryOptions says what is expected";
        Error::NotTrusted { path: self.path_string(), what, remedy }
    }
}

/// Gives a file that is empty its length, once: two who create it at the same time ask one after the other (flock(2), which is
/// held by open descriptions, so that threads count too). What its length is now.
fn first_len(fd: BorrowedFd<'_>, len: u64) -> rustix::io::Result<u64> {
    retry_on_intr(|| flock(fd, FlockOperation::LockExclusive))?;
    let set = fstat(fd).and_then(|stat| match u64::try_from(stat.st_size).unwrap_or(0) {
        0 => ftruncate(fd, len).map(|()| len),
        now => Ok(now),
    });
    let _ = flock(fd, FlockOperation::Unlock);
    set
}

fn other_len(path: String, now: u64, len: u64) -> Error {
    let what = format!("it has {now} bytes and not {len}");
    Error::NotTrusted { path, what, remedy: "open it and take its length, or unlink it first" }
}

fn place() -> rustix::io::Result<OwnedFd> {
    open(PLACE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
