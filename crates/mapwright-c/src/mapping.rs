//! The kernel's own mappings: anonymous memory, files and shared memory, without a pager.
//!
//! One lock a mapping, as for maps: what changes or ends it does not wait for others, but says EBUSY.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use mapwright::mmap::{Advice, Mmap, MmapMut, MmapNone, MmapOptions, MmapRaw, MmapRawRead, Resize};

use crate::error::{Failure, Result, number, status};
use crate::handles::{self, Object};
use crate::map::give_residency;
use crate::pager::{give, put};
use crate::pointers::{Input, Output, Text, duplicate};

/// Reading.
pub const MAPWRIGHT_ACCESS_READ: c_int = 0;
/// Reading and writing: what is written reaches the file, and everybody who has it mapped.
pub const MAPWRIGHT_ACCESS_WRITE: c_int = 1;
/// Reading and writing of a private copy, made page by page when it is written.
pub const MAPWRIGHT_ACCESS_COPY: c_int = 2;

/// Memory that the kernel maps: anonymous, of a file, or shared.
pub struct Mapping(RwLock<Option<Any>>);

/// A mapping of any kind that this interface has.
pub(crate) enum Any {
    None(MmapNone),
    Read(Mmap),
    Write(MmapMut),
    Raw(MmapRaw),
    RawRead(MmapRawRead),
}

macro_rules! any {
    ($any:expr, $map:ident => $call:expr) => {
        match $any {
            Any::None($map) => $call,
            Any::Read($map) => $call,
            Any::Write($map) => $call,
            Any::Raw($map) => $call,
            Any::RawRead($map) => $call,
        }
    };
}

impl Object for Mapping {
    const KIND: u64 = 5;
    const NAME: &'static str = "the mapping";
}

impl Mapping {
    pub(crate) fn new(any: Any) -> Self {
        Self(RwLock::new(Some(any)))
    }

    fn using(&self) -> RwLockReadGuard<'_, Option<Any>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> Result<RwLockWriteGuard<'_, Option<Any>>> {
        match self.0.try_write() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(libc::EBUSY, "another call on the mapping has not returned"))
            }
        }
    }

    /// Runs something with the mapping, beside others.
    fn with<T>(handle: *mut Self, work: impl FnOnce(&Any) -> Result<T>) -> Result<T> {
        let mapping = handles::get(handle)?;
        let guard = mapping.using();
        work(guard.as_ref().ok_or_else(closed)?)
    }

    /// Runs something with the mapping, alone.
    fn with_mut<T>(handle: *mut Self, work: impl FnOnce(&mut Any) -> Result<T>) -> Result<T> {
        let mapping = handles::get(handle)?;
        let mut guard = mapping.alone()?;
        work(guard.as_mut().ok_or_else(closed)?)
    }
}

impl Any {
    fn length(&self) -> usize {
        any!(self, map => map.len())
    }

    /// A range that lies in the mapping; a length of 0 is for all that follows.
    fn range(&self, offset: usize, length: usize) -> Result<Range<usize>> {
        let end = if length == 0 { Some(self.length()) } else { offset.checked_add(length) };
        match end {
            Some(end) if offset <= end && end <= self.length() => Ok(offset..end),
            _ => {
                let all = self.length();
                Err(Failure::new(
                    libc::ERANGE,
                    format!("{length} bytes from {offset} on of a mapping of {all}"),
                ))
            }
        }
    }

    /// The same bytes with another protection, or the mapping as it was, and why.
    fn protect(self, protection: c_int) -> (Self, Result<(), Failure>) {
        const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
        macro_rules! change {
            ($map:ident, $how:ident, $to:ident, $from:ident) => {
                match $map.$how() {
                    Ok(map) => (Self::$to(map), Ok(())),
                    Err(refused) => (Self::$from(refused.mapping), Err(Failure::from(*refused.error))),
                }
            };
        }
        match (self, protection) {
            (Self::None(map), libc::PROT_READ) => change!(map, make_read_only, Read, None),
            (Self::None(map), READ_WRITE) => change!(map, make_mut, Write, None),
            (Self::Read(map), READ_WRITE) => change!(map, make_mut, Write, Read),
            (Self::Read(map), libc::PROT_NONE) => change!(map, make_none, None, Read),
            (Self::Write(map), libc::PROT_READ) => change!(map, make_read_only, Read, Write),
            (Self::Write(map), libc::PROT_NONE) => change!(map, make_none, None, Write),
            (Self::Raw(map), libc::PROT_READ) => change!(map, make_read_only, RawRead, Raw),
            (Self::RawRead(map), READ_WRITE) => change!(map, make_mut, Raw, RawRead),
            (same @ (Self::Read(_) | Self::RawRead(_)), libc::PROT_READ)
            | (same @ (Self::Write(_) | Self::Raw(_)), READ_WRITE)
            | (same @ Self::None(_), libc::PROT_NONE) => (same, Ok(())),
            (other, _) => {
                let text = format!(
                    "the protection {protection:#x} for this mapping: anonymous memory takes PROT_NONE, PROT_READ, and PROT_READ | PROT_WRITE; others the last two"
                );
                (other, Err(Failure::new(libc::EOPNOTSUPP, text)))
            }
        }
    }
}

fn closed() -> Failure {
    Failure::new(libc::EBADF, "the mapping: it was closed before")
}

fn not_for(what: &str) -> Failure {
    Failure::new(libc::EACCES, format!("{what}: the mapping's protection does not allow it"))
}

/// Maps memory of zeros, for this process alone.
///
/// length: in bytes, not 0. protection: PROT_NONE, PROT_READ, or PROT_READ | PROT_WRITE. out: gets the handle, or NULL; close it by
/// mapwright_mapping_close.
///
/// Returns 0; -EINVAL for no length, -EOPNOTSUPP for another protection; -ENOMEM; MAPWRIGHT_ERR_LIMIT at vm.max_map_count or a resource
/// limit; -EFAULT if out is NULL. Any thread may call it. Children of fork(2) have a copy of the memory; the handle is not for them.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_anonymous(
    length: usize,
    protection: c_int,
    out: Option<&mut MaybeUninit<*mut Mapping>>,
) -> c_int {
    status(|| {
        give(out, || {
            if length == 0 {
                return Err(Failure::invalid("anonymous memory without a length"));
            }
            let none = Any::None(MmapOptions::new().len(length).map_none()?);
            let (mapping, protected) = none.protect(protection);
            protected.map(|()| Mapping::new(mapping))
        })
    })
}

/// Maps a file or a device.
///
/// path: of what is mapped. access: a MAPWRIGHT_ACCESS_ constant. offset: any byte. length: 0 for all that follows; devices need one. out: gets
/// the handle, or NULL; close it by mapwright_mapping_close. What is written to the memory reaches the page cache at once, and survives
/// the program.
///
/// Returns 0; -ENOENT and so on from open(2); -EACCES; -ENODEV for what can't be mapped; -ERANGE for an offset past the end; -EINVAL;
/// MAPWRIGHT_ERR_LIMIT; -EFAULT. Any thread may call it; children of fork(2) have the memory too, but not the handle.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_open(
    path: Text,
    access: c_int,
    offset: u64,
    length: usize,
    out: Option<&mut MaybeUninit<*mut Mapping>>,
) -> c_int {
    status(|| {
        give(out, || {
            let (path, options) = (path.path()?, options(offset, length));
            Ok(Mapping::new(match access {
                MAPWRIGHT_ACCESS_READ => Any::RawRead(options.open(path)?),
                MAPWRIGHT_ACCESS_WRITE => Any::Raw(options.open_mut(path)?),
                MAPWRIGHT_ACCESS_COPY => Any::Raw(options.open_copy(path)?),
                other => return Err(bad_access(other)),
            }))
        })
    })
}

/// As mapwright_mapping_open, for what is open already. The descriptor stays the caller's, who may close it at once. An error at a page that can't
/// be had is -EFAULT: the library does not keep the file open to ask why.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_open_fd(
    fd: c_int,
    access: c_int,
    offset: u64,
    length: usize,
    out: Option<&mut MaybeUninit<*mut Mapping>>,
) -> c_int {
    status(|| {
        give(out, || {
            let (file, options) = (duplicate(fd)?, options(offset, length));
            let fd = file.as_fd();
            Ok(Mapping::new(match access {
                MAPWRIGHT_ACCESS_READ => Any::RawRead(options.map_raw_read_only(fd)?),
                MAPWRIGHT_ACCESS_WRITE => Any::Raw(options.map_raw(fd)?),
                MAPWRIGHT_ACCESS_COPY => Any::Raw(options.map_raw_copy(fd)?),
                other => return Err(bad_access(other)),
            }))
        })
    })
}

fn options(offset: u64, length: usize) -> MmapOptions {
    let options = MmapOptions::new().offset(offset);
    if length == 0 { options } else { options.len(length) }
}

fn bad_access(access: c_int) -> Failure {
    Failure::invalid(format!("the access {access}: use a MAPWRIGHT_ACCESS_ constant"))
}

/// Unmaps a mapping. Its addresses may be somebody else's then.
///
/// Returns 0; -EBUSY while another call on it has not returned; MAPWRIGHT_ERR_LIMIT if the kernel could not give the addresses back at
/// vm.max_map_count; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_close(mapping: *mut Mapping) -> c_int {
    status(|| {
        let any = handles::get(mapping)?.alone()?.take();
        handles::close(mapping)?;
        Ok(any!(any.ok_or_else(closed)?, map => map.close())?)
    })
}

/// The memory of a mapping.
///
/// data: gets the address of the first byte, valid until the mapping is closed, or resized so that it may move. length: gets its length in bytes. Either may
/// be NULL. A touch of a page that can't be had, such as past the end of a file that somebody cut, is SIGBUS; mapwright_mapping_read_at and
/// mapwright_mapping_write_at return errors.
///
/// Returns 0; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_data(
    mapping: *mut Mapping,
    data: Option<&mut MaybeUninit<*mut c_void>>,
    length: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    status(|| {
        Mapping::with(mapping, |any| {
            let start = any!(any, map => map.as_mut_ptr());
            put(data, start.cast());
            put(length, any.length());
            Ok(())
        })
    })
}

/// Copies bytes out of a mapping, with an error where a touch would be SIGBUS.
///
/// into: room for length bytes; NULL if length is 0. Returns 0; -ERANGE past the end, and nothing is copied; -EACCES for memory with
/// PROT_NONE; for a page that can't be had MAPWRIGHT_ERR_CHANGED, -EIO or -EFAULT; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_read_at(
    mapping: *mut Mapping,
    offset: usize,
    mut into: Output,
    length: usize,
) -> c_int {
    status(|| {
        Mapping::with(mapping, |any| {
            let into = into.bytes(length)?;
            if into.is_empty() {
                return any.range(offset, 0).map(drop);
            }
            let range = any.range(offset, length)?;
            match any {
                Any::None(_) => return Err(not_for("reading")),
                Any::Read(map) => into.copy_from_slice(&map[range]),
                Any::Write(map) => into.copy_from_slice(&map[range]),
                Any::Raw(map) => map.read_at(offset, into)?,
                Any::RawRead(map) => map.read_at(offset, into)?,
            }
            Ok(())
        })
    })
}

/// Copies bytes into a mapping, with an error where a touch would be SIGBUS.
///
/// from: length bytes; NULL if length is 0. Returns as mapwright_mapping_read_at; -EACCES for memory that is not writable; -EBUSY, of anonymous memory,
/// while another call on the mapping has not returned. A part may have been written. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_write_at(
    mapping: *mut Mapping,
    offset: usize,
    from: Input,
    length: usize,
) -> c_int {
    status(|| {
        let from = from.bytes(length)?;
        let is_anonymous = Mapping::with(mapping, |any| match any {
            Any::None(_) | Any::Read(_) | Any::RawRead(_) => Err(not_for("writing")),
            Any::Raw(map) => map.write_at(offset, from).map(|()| false).map_err(Failure::from),
            Any::Write(_) => Ok(true),
        })?;
        if !is_anonymous {
            return Ok(());
        }
        Mapping::with_mut(mapping, |any| {
            let range = if from.is_empty() { offset..offset } else { any.range(offset, length)? };
            match any {
                Any::Write(map) => {
                    let into = map.get_mut(range);
                    into.ok_or_else(|| Failure::new(libc::ERANGE, "past the end"))?.copy_from_slice(from);
                    Ok(())
                }
                _ => Err(not_for("writing")),
            }
        })
    })
}

/// Has the changed pages of a range written to the file, and waits until they are durable: msync(2) with MS_SYNC. length: 0 for all that follows.
///
/// Returns 0; what the device said; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_flush(mapping: *mut Mapping, offset: usize, length: usize) -> c_int {
    status(|| {
        Mapping::with(mapping, |any| {
            let range = any.range(offset, length)?;
            Ok(any!(any, map => map.flush_range(range))?)
        })
    })
}

/// Advises the kernel on the pages of a range. length: 0 for all that follows. advice: a MADV_ constant of sys/mman.h that keeps contents: what
/// takes them away has mapwright_mapping_discard.
///
/// Returns 0; -EINVAL for an advice that takes contents away, and for one that is not for this memory; -EOPNOTSUPP for one that the kernel does not
/// know; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_advise(
    mapping: *mut Mapping,
    offset: usize,
    length: usize,
    advice: c_int,
) -> c_int {
    status(|| {
        let found = Advice::ALL.into_iter().find(|known| known.number() == advice);
        let found = found.ok_or_else(|| {
            Failure::invalid(format!(
                "the advice {advice}: it takes contents away, or is none: see mapwright_mapping_discard"
            ))
        })?;
        Mapping::with(mapping, |any| {
            let range = any.range(offset, length)?;
            Ok(any!(any, map => map.advise_range(range, found))?)
        })
    })
}

/// Throws away what was written to whole pages of private memory (MADV_DONTNEED): anonymous memory is zeros then, a copy of a file shows the file.
/// length: 0 for all that follows.
///
/// Returns 0; -EINVAL for shared memory and for parts of pages; -EACCES for memory that is not writable; -EBUSY while another call on the mapping
/// has not returned; -ERANGE, -EBADF, -EFAULT. Nobody may use the bytes meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_discard(mapping: *mut Mapping, offset: usize, length: usize) -> c_int {
    status(|| {
        Mapping::with_mut(mapping, |any| {
            let range = any.range(offset, length)?;
            match any {
                Any::Write(map) => Ok(map.discard(range)?),
                Any::Raw(map) => Ok(map.discard(range)?),
                _ => Err(not_for("discarding")),
            }
        })
    })
}

/// Which pages of a range are in memory, by mincore(2). into: room for size bytes; each page from the one that holds the first byte gets 1 or 0.
/// length: 0 for all that follows.
///
/// Returns the number of pages; -EINVAL if there are more than size; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_residency(
    mapping: *mut Mapping,
    offset: usize,
    length: usize,
    mut into: Output,
    size: usize,
) -> i64 {
    number(|| {
        Mapping::with(mapping, |any| {
            let range = any.range(offset, length)?;
            give_residency(&any!(any, map => map.residency(range))?, into.bytes(size)?)
        })
    })
}

/// Changes what may be done to all of a mapping's bytes. protection: PROT_READ, PROT_READ | PROT_WRITE, and for anonymous memory
/// PROT_NONE. The address stays.
///
/// Returns 0; -EACCES for a shared mapping of a file that was opened for reading; -EOPNOTSUPP for another protection; -EBUSY while another call on the mapping
/// has not returned; MAPWRIGHT_ERR_LIMIT; -EBADF, -EFAULT. Who touches the bytes at the same time may get SIGSEGV.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_protect(mapping: *mut Mapping, protection: c_int) -> c_int {
    status(|| {
        let object = handles::get(mapping)?;
        let mut guard = object.alone()?;
        let (any, protected) = guard.take().ok_or_else(closed)?.protect(protection);
        *guard = Some(any);
        protected
    })
}

/// Keeps the pages of a mapping in memory, if locked is not 0, or lets them go again.
///
/// Returns 0; MAPWRIGHT_ERR_LIMIT at RLIMIT_MEMLOCK; -ENOMEM or -EAGAIN if some page could not be had; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_lock(mapping: *mut Mapping, locked: c_int) -> c_int {
    status(|| {
        Mapping::with(mapping, |any| {
            Ok(any!(any, map => if locked != 0 { map.lock() } else { map.unlock() })?)
        })
    })
}

/// Changes the length of a mapping, in bytes. Added bytes of anonymous memory are zeros; of a file they are what follows, also past its
/// end, where a touch is SIGBUS until it grows. may_move: whether the address may change, if not 0.
///
/// Returns 0; -ENOMEM where it can't grow in place and must not move; -EINVAL for what does not resize; -EBUSY while another call on the mapping has not
/// returned; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mapping_resize(mapping: *mut Mapping, length: usize, may_move: c_int) -> c_int {
    status(|| {
        let how = if may_move != 0 { Resize::MayMove } else { Resize::InPlace };
        Mapping::with_mut(mapping, |any| Ok(any!(any, map => map.resize(length, how))?))
    })
}
