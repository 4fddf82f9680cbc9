//! How to make a mapping.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use mapwright_sys::mmap::{Advice, Kind, MapAssumedWith, NumaPolicy, Promise, Region, Request, Seen, Source};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::fail::{Attempt, OrFailed};
use super::mapping::{Mapping, Mmap, MmapExec, MmapMut, MmapNone, MmapRaw, MmapRawRead, Origin};
use super::reservation::Reservation;
use crate::error::{Error, Result};
use crate::stores::is_made_up_size;

/// A page where no huge pages are involved.
const PAGE: usize = mapwright_sys::PAGE_SIZE;

/// Settings of a mapping: names as in memmap2 where it has them.
///
/// ```
/// use mapwright::mmap::MmapOptions;
///
/// let stack = MmapOptions::new().len(256 << 10).guard_pages(1).no_reserve(true).map_anon()?;
/// assert_eq!(stack.len(), 256 << 10);
/// let zeros = MmapOptions::new().len(8192).open("/dev/zero")?; // a device has no length of its own
/// assert_eq!(zeros.to_vec(8000..)?, [0; 192]);
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MmapOptions {
    offset: u64,
    len: Option<usize>,
    populate: bool,
    no_reserve: bool,
    stack: bool,
    huge: Option<u8>,
    transparent: Option<bool>,
    guard_pages: usize,
    lock: bool,
    numa: Option<NumaPolicy>,
    place: Option<(Reservation, usize)>,
}

impl MmapOptions {
    /// The defaults: from the beginning of the file to its end.
    pub fn new() -> Self {
        Self::default()
    }

    /// First byte of the file: any, also inside a page.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Length in bytes: any. Anonymous memory and character devices need one. [`MmapRaw`] and [`MmapRawRead`] may reach
    /// past the end of the file: what a file gains while it is mapped can be read then.
    #[must_use]
    pub fn len(mut self, len: usize) -> Self {
        self.len = Some(len);
        self
    }

    /// Whether to read the file, or to give memory to all pages, before the call returns. What can't be had is left to
    /// the first touch: [`Mapping::advise`] with [`Advice::PopulateRead`] returns errors instead.
    #[must_use]
    pub fn populate(mut self, populate: bool) -> Self {
        self.populate = populate;
        self
    }

    /// Whether to set no swap space aside for private memory, as vm.overcommit_memory allows.
    #[must_use]
    pub fn no_reserve(mut self, no_reserve: bool) -> Self {
        self.no_reserve = no_reserve;
        self
    }

    /// Whether it is for the stack of a thread, as far as the kernel cares.
    #[must_use]
    pub fn stack(mut self, stack: bool) -> Self {
        self.stack = stack;
        self
    }

    /// Anonymous memory of reserved huge pages (hugetlb), of two to this power in bytes: 21 for 2 MiB, 30 for 1 GiB; `None`
    /// for the machine's default size, which is taken to be 2 MiB. The length is rounded up to whole ones in memory.
    #[must_use]
    pub fn huge(mut self, page_bits: Option<u8>) -> Self {
        self.huge = Some(page_bits.unwrap_or(21));
        self
    }

    /// Whether to ask for transparent huge pages, or for none.
    #[must_use]
    pub fn transparent_huge_pages(mut self, ask: bool) -> Self {
        self.transparent = Some(ask);
        self
    }

    /// Inaccessible pages on both sides: who runs over the end gets SIGSEGV instead of a neighbour's bytes.
    #[must_use]
    pub fn guard_pages(mut self, pages: usize) -> Self {
        self.guard_pages = pages;
        self
    }

    /// Whether to keep its pages in memory: see [`Mapping::lock`].
    #[must_use]
    pub fn locked(mut self, locked: bool) -> Self {
        self.lock = locked;
        self
    }

    /// From which NUMA node its pages shall come.
    #[must_use]
    pub fn numa(mut self, policy: NumaPolicy) -> Self {
        self.numa = Some(policy);
        self
    }

    /// Where: `at` bytes after the start of a reservation of one's own, a multiple of the page size. There is no form that
    /// unmaps what is there. Guard pages count: with one, the bytes begin a page further.
    #[must_use]
    pub fn place(mut self, reservation: &Reservation, at: usize) -> Self {
        self.place = Some((reservation.clone(), at));
        self
    }

    /// Private memory of zeros, for this process alone.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) without a length; [`LimitReached`](Error::LimitReached) at vm.max_map_count,
    /// vm.nr_hugepages, RLIMIT_AS or RLIMIT_MEMLOCK; [`Io`](Error::Io) with `ENOMEM`, or with `EEXIST` for a place that is
    /// taken.
    pub fn map_anon(&self) -> Result<MmapMut> {
        self.map_private()
    }

    /// As [`map_anon`](Self::map_anon), out of reach until its kind is changed.
    ///
    /// # Errors
    /// As for [`map_anon`](Self::map_anon).
    pub fn map_none(&self) -> Result<MmapNone> {
        self.map_private()
    }

    fn map_private<K: mapwright_sys::mmap::Stable>(&self) -> Result<Mapping<K>> {
        let request = self.anonymous(Source::Anonymous)?;
        let region = Region::anonymous(&request).or_failed(self.attempt("anonymous memory", request.len))?;
        self.finish(Mapping::new(region, None))
    }

    /// Memory of zeros that children made by fork share with this process. For processes that are no children there are
    /// [`SharedMemory`](super::SharedMemory) and [`MemoryFile`](super::MemoryFile).
    ///
    /// # Errors
    /// As for [`map_anon`](Self::map_anon).
    pub fn map_anon_shared(&self) -> Result<MmapRaw> {
        let request = self.anonymous(Source::AnonymousShared)?;
        let region = Region::volatile(&request).or_failed(self.attempt("anonymous memory", request.len))?;
        self.finish(Mapping::new(region, None))
    }

    /// Opens and maps a file or a device for reading. What becomes of the file is told by errors: it stays open.
    ///
    /// # Errors
    /// [`Io`](Error::Io) from opening; [`NotMappable`](Error::NotMappable) for directories, pipes, sockets and for what has no
    /// mappings; [`Invalid`](Error::Invalid) for a device without a length; [`OutOfRange`](Error::OutOfRange) for an offset past
    /// the end; [`LimitReached`](Error::LimitReached).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<MmapRawRead> {
        self.open_as(path.as_ref(), false, true)
    }

    /// Opens and maps a file or a device for reading and writing: what is written reaches the file.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and [`ReadOnly`](Error::ReadOnly).
    pub fn open_mut(&self, path: impl AsRef<Path>) -> Result<MmapRaw> {
        self.open_as(path.as_ref(), true, true)
    }

    /// Opens a file for reading and maps it copy-on-write: what is written stays in this mapping.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_copy(&self, path: impl AsRef<Path>) -> Result<MmapRaw> {
        self.open_as(path.as_ref(), false, false)
    }

    fn open_as<K: mapwright_sys::mmap::Copies>(
        &self,
        path: &Path,
        write: bool,
        shared: bool,
    ) -> Result<Mapping<K>> {
        let name = path.display().to_string();
        // A FIFO or a device without a carrier would wait; a terminal would become the controlling one.
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
        let file =
            File::options().read(true).write(write).custom_flags(flags).open(path).map_err(|error| {
                match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) if write => {
                        Error::ReadOnly { path: name.clone() }
                    }
                    Some(Errno::ISDIR) => not_mappable(&name, "a directory"),
                    Some(Errno::NXIO) => not_mappable(&name, "a socket or an absent device"),
                    _ => Error::io("open", name.clone(), 0, 0, error),
                }
            })?;
        let len = self.shape(file.as_fd(), &name)?.file_len;
        self.map_origin(&Arc::new(Origin { file, path: path.to_owned(), len }), shared)
    }

    /// Maps a file that stays open, so that errors can say what became of it.
    pub(super) fn map_origin<K: mapwright_sys::mmap::Copies>(
        &self,
        origin: &Arc<Origin>,
        shared: bool,
    ) -> Result<Mapping<K>> {
        let (fd, name) = (origin.file.as_fd(), origin.path.display().to_string());
        let shape = self.shape(fd, &name)?;
        let region = self.map_file(fd, &shape, shared, &name, Region::volatile)?;
        self.finish(Mapping::new(region, Some(Arc::clone(origin))))
    }

    /// Maps an open file or device, shared, for reading and writing by copies: it need not be promised that nobody else
    /// writes it. The mapping outlives the descriptor.
    ///
    /// # Errors
    /// As for [`open_mut`](Self::open_mut).
    pub fn map_raw(&self, file: impl AsFd) -> Result<MmapRaw> {
        self.map_volatile(file.as_fd(), true)
    }

    /// As [`map_raw`](Self::map_raw), for reading.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn map_raw_read_only(&self, file: impl AsFd) -> Result<MmapRawRead> {
        self.map_volatile(file.as_fd(), true)
    }

    /// As [`map_raw`](Self::map_raw), copy-on-write: what is written stays in this mapping.
    ///
    /// # Errors
    /// As for [`open_copy`](Self::open_copy).
    pub fn map_raw_copy(&self, file: impl AsFd) -> Result<MmapRaw> {
        self.map_volatile(file.as_fd(), false)
    }

    fn map_volatile<K: mapwright_sys::mmap::Copies>(
        &self,
        fd: BorrowedFd<'_>,
        shared: bool,
    ) -> Result<Mapping<K>> {
        let name = "a file";
        let shape = self.shape(fd, name)?;
        let region = self.map_file(fd, &shape, shared, name, Region::volatile)?;
        self.finish(Mapping::new(region, None))
    }

    fn promised<K: mapwright_sys::mmap::Stable>(
        &self,
        shared: bool,
        promise: Promise<'_>,
    ) -> Result<Mapping<K>> {
        let fd = promise.file();
        let name = "a file";
        let shape = self.shape(fd, name)?;
        let end = self.offset.saturating_add(shape.len as u64);
        if let Some(file_len) = shape.file_len.filter(|file_len| end > *file_len) {
            return Err(Error::OutOfRange { path: name.to_owned(), offset: self.offset, end, file_len });
        }
        let region =
            self.map_file(fd, &shape, shared, name, move |request| Region::promised(request, promise))?;
        self.finish(Mapping::new(region, None))
    }

    fn map_file<K: Kind>(
        &self,
        fd: BorrowedFd<'_>,
        shape: &Shape<'_>,
        shared: bool,
        name: &str,
        map: impl FnOnce(&Request<'_>) -> std::io::Result<Region<K>>,
    ) -> Result<Region<K>> {
        if self.huge.is_some() {
            return Err(Error::invalid(
                format!("{name}: huge pages of a file"),
                "MmapOptions::huge is for anonymous memory: a MemoryFile may be made of huge pages",
            ));
        }
        let source = Source::File { fd, offset: self.offset, shared };
        let page = shape.seen.page_size();
        let request = Request { page, seen: Some(&shape.seen), ..self.request(source, shape.len) };
        let attempt = Attempt { huge: page != PAGE, ..self.attempt(name, shape.len) };
        map(&request).or_failed(attempt)
    }

    fn anonymous(&self, source: Source<'static>) -> Result<Request<'_>> {
        let Some(len) = self.len else {
            return Err(Error::invalid("anonymous memory without a length", "say MmapOptions::len"));
        };
        if self.offset != 0 {
            return Err(Error::invalid(
                format!("an offset of {} bytes into anonymous memory", self.offset),
                "leave the offset out: there is no file",
            ));
        }
        let Some(bits) = self.huge else { return Ok(self.request(source, len)) };
        if !(12..=40).contains(&bits) {
            return Err(Error::invalid(
                format!("huge pages of 2^{bits} bytes"),
                "name a size of /sys/kernel/mm/hugepages as a power of two: 21 for 2 MiB",
            ));
        }
        Ok(Request { page: 1 << bits, huge: Some(bits), ..self.request(source, len) })
    }

    fn request<'a>(&'a self, source: Source<'a>, len: usize) -> Request<'a> {
        let place = self.place.as_ref().map(|(reservation, at)| (reservation.space(), *at));
        Request {
            guard_pages: self.guard_pages,
            populate: self.populate,
            no_reserve: self.no_reserve,
            stack: self.stack,
            place,
            ..Request::new(source, len)
        }
    }

    fn attempt<'a>(&self, name: &'a str, len: usize) -> Attempt<'a> {
        Attempt { operation: "mmap", name, offset: self.offset, len: len as u64, huge: self.huge.is_some() }
    }

    /// What is told to the kernel once the mapping is there.
    fn finish<K: Kind>(&self, mapping: Mapping<K>) -> Result<Mapping<K>> {
        if let Some(policy) = self.numa {
            mapping.bind(policy)?;
        }
        match self.transparent {
            Some(true) => mapping.advise(Advice::HugePage)?,
            Some(false) => mapping.advise(Advice::NoHugePage)?,
            None => {}
        }
        if self.lock {
            mapping.lock()?;
        }
        Ok(mapping)
    }

    /// How long the file is, and how much of it is asked for.
    fn shape<'f>(&self, fd: BorrowedFd<'f>, name: &str) -> Result<Shape<'f>> {
        let seen = Seen::look(fd).map_err(|error| Error::io("stat", name, 0, 0, error))?;
        let stat = seen.stat();
        let file_len = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Some(u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::BlockDevice => {
                let len = mapwright_sys::file::block_device_len(fd);
                Some(len.map_err(|error| Error::io("size of the device", name, 0, 0, error))?)
            }
            FileType::CharacterDevice => None,
            FileType::Directory => return Err(not_mappable(name, "a directory")),
            FileType::Fifo => return Err(not_mappable(name, "a pipe")),
            FileType::Socket => return Err(not_mappable(name, "a socket")),
            FileType::Symlink | FileType::Unknown => {
                return Err(not_mappable(name, "a file of unknown type"));
            }
        };
        let len = match (self.len, file_len) {
            (Some(len), _) => len,
            (None, None) => {
                return Err(Error::invalid(
                    format!("{name}: a character device without a length"),
                    "say MmapOptions::len: a device does not tell how long it is",
                ));
            }
            (None, Some(file_len)) if self.offset > file_len => {
                let (offset, end) = (self.offset, self.offset);
                return Err(Error::OutOfRange { path: name.to_owned(), offset, end, file_len });
            }
            (None, Some(_)) if is_made_up_size(fd, stat.st_size) => {
                return Err(not_mappable(name, "a kernel file that does not know its own size"));
            }
            (None, Some(file_len)) => usize::try_from(file_len - self.offset)
                .map_err(|_| Error::io("mmap", name, self.offset, file_len, Errno::OVERFLOW.into()))?,
        };
        Ok(Shape { len, file_len, seen })
    }
}

/// A file's length, where it has one, the bytes to be mapped, and what was seen of it.
struct Shape<'f> {
    len: usize,
    file_len: Option<u64>,
    seen: Seen<'f>,
}

fn not_mappable(name: &str, kind: &'static str) -> Error {
    Error::NotMappable { path: name.to_owned(), kind, remedy: "name a regular file or a device" }
}

impl MapAssumedWith for MmapOptions {
    type Read = Mmap;
    type Write = MmapMut;
    type Exec = MmapExec;
    type Error = Error;

    fn read_promised(&self, shared: bool, promise: Promise<'_>) -> Result<Mmap> {
        self.promised(shared, promise)
    }

    fn write_promised(&self, shared: bool, promise: Promise<'_>) -> Result<MmapMut> {
        self.promised(shared, promise)
    }

    fn exec_promised(&self, promise: Promise<'_>) -> Result<MmapExec> {
        self.promised(false, promise)
    }
}
