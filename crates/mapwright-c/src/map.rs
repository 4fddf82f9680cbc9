//! Maps of files: open, look, copy, write, flush, resize, close. Pins are in `pins.rs`, commits in `commit.rs`.
//!
//! One lock a map: shared by calls that read, write bytes, flush or commit, exclusive for resize, rollback and close, which don't wait
//! for it but say EBUSY. So no call waits for another, and nothing that C does inside `mapwright_map_checked` can wait for itself.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use mapwright::Durability;

use crate::error::{Failure, Result, number, status};
use crate::handles::{self, Object};
use crate::options::{self, Options, Settings};
use crate::pager::{give, put};
use crate::pointers::{Input, Output, Text, duplicate};

/// A file, or a part of one, in memory: opened for reading, or for reading and writing.
pub struct Map {
    inner: RwLock<Option<Inner>>,
    /// That are held.
    pub(crate) pins: AtomicUsize,
    pub(crate) durability: Durability,
}

/// What is opened.
pub(crate) enum Inner {
    Read(mapwright::Map),
    Write(mapwright::SharedMapMut),
}

/// Calls a method that both kinds have.
macro_rules! either {
    ($inner:expr, $map:ident => $call:expr) => {
        match $inner {
            $crate::map::Inner::Read($map) => $call,
            $crate::map::Inner::Write($map) => $call,
        }
    };
}
pub(crate) use either;

impl Object for Map {
    const KIND: u64 = 3;
    const NAME: &'static str = "the map";
}

/// Shared access to what a map has opened.
pub(crate) struct Using<'m>(RwLockReadGuard<'m, Option<Inner>>);

impl Map {
    pub(crate) fn new(inner: Inner, durability: Durability) -> Self {
        Self { inner: RwLock::new(Some(inner)), pins: AtomicUsize::new(0), durability }
    }

    /// Opens a file by path.
    pub(crate) fn open(path: &Path, settings: &Settings, write: bool) -> Result<Self> {
        let inner = if write {
            Inner::Write(settings.map.open_mut(path)?.into_shared())
        } else {
            Inner::Read(settings.map.open(path)?)
        };
        Ok(Self::new(inner, settings.durability))
    }

    pub(crate) fn using(&self) -> Result<Using<'_>> {
        let guard = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(Using(guard)) } else { Err(closed()) }
    }

    /// Exclusive access, if nobody uses the map.
    pub(crate) fn alone(&self, what: &str) -> Result<RwLockWriteGuard<'_, Option<Inner>>> {
        let busy = |why: &str| Failure::new(libc::EBUSY, format!("{what}: {why}"));
        let guard = match self.inner.try_write() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(busy("another call on the map has not returned")),
        };
        if guard.is_none() {
            return Err(closed());
        }
        match self.pins.load(Ordering::Acquire) {
            0 => Ok(guard),
            pins => Err(busy(&format!("{pins} pins are held: release them first"))),
        }
    }

    pub(crate) fn resize(&self, length: u64) -> Result<()> {
        match &mut *self.alone("resizing a map")? {
            Some(Inner::Write(map)) => Ok(map.resize(length)?),
            Some(Inner::Read(_)) => Err(read_only()),
            None => Err(closed()),
        }
    }
}

impl Using<'_> {
    pub(crate) fn inner(&self) -> Result<&Inner> {
        self.0.as_ref().ok_or_else(closed)
    }

    pub(crate) fn writer(&self) -> Result<&mapwright::SharedMapMut> {
        match self.inner()? {
            Inner::Write(map) => Ok(map),
            Inner::Read(_) => Err(read_only()),
        }
    }

    /// The first byte. C reads and writes there as it pleases: no slice of it is read here.
    pub(crate) fn start(&self) -> Result<*const c_void> {
        Ok(match self.inner()? {
            Inner::Read(map) => map.as_ptr().cast(),
            Inner::Write(map) => map.as_ptr().cast_const().cast(),
        })
    }

    /// The same, to be read only: commits do not look for what is written by it.
    pub(crate) fn start_to_read(&self) -> Result<*const c_void> {
        Ok(match self.inner()? {
            Inner::Read(map) => map.as_ptr().cast(),
            Inner::Write(map) => map.as_const_ptr().cast(),
        })
    }

    pub(crate) fn length(&self) -> Result<u64> {
        Ok(either!(self.inner()?, map => map.len() as u64))
    }

    pub(crate) fn prefetch(&self, range: std::ops::Range<u64>) -> Result<()> {
        Ok(either!(self.inner()?, map => map.prefetch(range))?)
    }

    pub(crate) fn will_need(&self, range: std::ops::Range<u64>) -> Result<()> {
        Ok(either!(self.inner()?, map => map.will_need(range))?)
    }

    pub(crate) fn evict(&self, range: std::ops::Range<u64>) -> Result<u64> {
        Ok(either!(self.inner()?, map => map.evict(range))?)
    }

    pub(crate) fn advise(&self, advice: mapwright::Advice) -> Result<()> {
        Ok(either!(self.inner()?, map => map.advise(advice))?)
    }

    pub(crate) fn residency(&self, range: std::ops::Range<u64>) -> Result<mapwright::mmap::Residency> {
        Ok(either!(self.inner()?, map => map.residency(range))?)
    }
}

pub(crate) fn closed() -> Failure {
    Failure::new(libc::EBADF, "the map: it was closed before")
}

pub(crate) fn read_only() -> Failure {
    Failure::new(libc::EACCES, "the map was opened for reading: open it by mapwright_map_open_mut")
}

/// A range from offset and length.
pub(crate) fn range(offset: u64, length: u64) -> Result<std::ops::Range<u64>> {
    let end = offset.checked_add(length);
    end.map(|end| offset..end)
        .ok_or_else(|| Failure::new(libc::ERANGE, format!("{length} bytes from {offset} on")))
}

/// A range of a map, with a length of 0 for all that follows.
fn range_or_rest(using: &Using<'_>, offset: u64, length: u64) -> Result<std::ops::Range<u64>> {
    match length {
        0 => Ok(offset..using.length()?.max(offset)),
        length => range(offset, length),
    }
}

/// Writes a byte for each page, as mincore(2) does.
pub(crate) fn write_residency(residency: &mapwright::mmap::Residency, into: &mut [u8]) {
    into.fill(0);
    for run in residency.runs() {
        into[run.start as usize..run.end as usize].fill(1);
    }
}

/// Maps a file for reading.
///
/// path: of a regular file or a block device. options: settings, or NULL for the defaults; read during the call only. out: gets
/// the handle, or NULL; the caller closes it by mapwright_map_close. Nothing is read yet, but for small files.
///
/// Returns 0; -ENOENT, -EACCES and so on from open(2); -ENODEV for what can't be mapped; -ERANGE for a range past the end; -EINVAL
/// for settings that make no sense; -EOPNOTSUPP if the strategy asked for needs what the machine lacks; -EBUSY if the same pager has
/// the file open for writing; MAPWRIGHT_ERR_UNRECOVERED for a file that a killed program has left; -EFAULT if path or out is NULL. Any
/// thread may call it. A map is not for the children of fork(2).
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_open(
    path: Text,
    options: *mut Options,
    out: Option<&mut MaybeUninit<*mut Map>>,
) -> c_int {
    status(|| give(out, || Map::open(path.path()?, &options::settings(options)?, false)))
}

/// Maps a file for reading and writing. It must exist. What is written reaches it by mapwright_map_flush and mapwright_map_close,
/// and when the budget forces it out: a program that is killed loses the rest. mapwright_options_set_durability has other ways.
///
/// As mapwright_map_open; also -EACCES without permission to write, -EBUSY if anybody else writes the file by mapwright, or the
/// same pager has it open for reading. A file that a killed program has left is brought to its last commit first, whatever the
/// durability: MAPWRIGHT_ERR_JOURNAL if its journal can't be used.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_open_mut(
    path: Text,
    options: *mut Options,
    out: Option<&mut MaybeUninit<*mut Map>>,
) -> c_int {
    status(|| give(out, || Map::open(path.path()?, &options::settings(options)?, true)))
}

/// As mapwright_map_open and, if writable is not 0, mapwright_map_open_mut, for a file that is open. The descriptor stays the
/// caller's, who may close it at once. It needs /proc; errors name the file as a path there.
///
/// Returns as these do; -EBADF for what is no open descriptor; -EACCES for one that was not opened for that.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_open_fd(
    fd: c_int,
    writable: c_int,
    options: *mut Options,
    out: Option<&mut MaybeUninit<*mut Map>>,
) -> c_int {
    status(|| give(out, || open_fd(fd, writable != 0, &options::settings(options)?)))
}

/// Opens the inode behind a descriptor anew, if that was opened for it.
pub(crate) fn open_fd(fd: c_int, write: bool, settings: &Settings) -> Result<Map> {
    use rustix::fs::OFlags;
    let copy = duplicate(fd)?;
    let flags =
        rustix::fs::fcntl_getfl(&copy).map_err(|error| Failure::new(error.raw_os_error(), "fcntl"))?;
    let mode = flags & OFlags::RWMODE;
    // Opening anew would lift a restriction that somebody put on this descriptor.
    let may = !flags.contains(OFlags::PATH) && (mode == OFlags::RDWR || (mode == OFlags::RDONLY && !write));
    if !may {
        let need = if write { "reading and writing" } else { "reading" };
        return Err(Failure::new(libc::EACCES, format!("descriptor {fd} was not opened for {need}")));
    }
    Map::open(Path::new(&format!("/proc/self/fd/{}", copy.as_raw_fd())), settings, write)
}

/// Flushes a map and closes it. Its memory is gone then: a touch is SIGSEGV, or somebody else's memory. With
/// MAPWRIGHT_DURABILITY_ATOMIC what was changed is committed, the file brought to it, and the journal removed; mapwright_map_abandon
/// closes a map without its changes.
///
/// Returns 0; what mapwright_map_flush returns, and the map is closed all the same; -EBUSY while pins are held or another call on
/// the map has not returned: then nothing has happened; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread
/// may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_close(map: *mut Map) -> c_int {
    status(|| {
        let object = handles::get(map)?;
        let inner = object.alone("closing a map")?.take();
        handles::close(map)?;
        match inner {
            Some(Inner::Write(map)) => Ok(map.close()?),
            _ => Ok(()),
        }
    })
}

/// The bytes of a map, as memory.
///
/// data: gets the address of the first byte, valid until the map is closed; it does not change when the map is resized, but with
/// MAPWRIGHT_STRATEGY_BUFFER. length: gets the number of bytes. Either may be NULL. Memory of a map opened for reading must not be written: see
/// MAPWRIGHT_FRAMES_MOVED for what happens otherwise.
///
/// A touch of an absent page waits until it is read. If that fails there is a message on standard error, and SIGBUS: see
/// mapwright_map_read_at, mapwright_map_get and mapwright_map_checked, which return errors. Several threads may read and write it as
/// they may any memory. Not in children of fork(2), and not in signal handlers.
///
/// Returns 0; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_data(
    map: *mut Map,
    data: Option<&mut MaybeUninit<*mut c_void>>,
    length: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    status(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        let (start, bytes) = (using.start()?, using.length()? as usize);
        put(data, start.cast_mut());
        put(length, bytes);
        Ok(())
    })
}

/// The length of a map in bytes, or -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_length(map: *mut Map) -> i64 {
    number(|| handles::get(map)?.using()?.length())
}

/// Which strategy a map has: a MAPWRIGHT_STRATEGY_ constant other than AUTO. reason: NULL, or room for size bytes, which gets why,
/// in words, cut to fit, with a zero at the end.
///
/// Returns the constant; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_strategy(map: *mut Map, mut reason: Output, size: usize) -> c_int {
    number(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        let choice = either!(using.inner()?, map => map.strategy());
        let text = reason.bytes(size)?;
        if let Some(most) = text.len().checked_sub(1) {
            let words = choice.reason().as_bytes();
            let n = words.len().min(most);
            text[..n].copy_from_slice(&words[..n]);
            text[n] = 0;
        }
        Ok(match choice.strategy() {
            mapwright::Strategy::Buffer => 1,
            mapwright::Strategy::Kernel => 2,
            _ => 3,
        })
    }) as c_int
}

/// Copies bytes out of a map, with an error where a touch would be SIGBUS.
///
/// offset: of the first byte, in the map. into: room for length bytes, which must not lie in a map; NULL if length is 0.
///
/// Returns 0; -ERANGE past the end, and nothing is copied; MAPWRIGHT_ERR_CHANGED if somebody changed or cut the file; -EIO and so on
/// from the device; -ETIMEDOUT; MAPWRIGHT_ERR_BUDGET; -EBADF, -EFAULT. into may be written in part then. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_read_at(
    map: *mut Map,
    offset: u64,
    mut into: Output,
    length: usize,
) -> c_int {
    status(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        Ok(either!(using.inner()?, map => map.read_at(offset, into.bytes(length)?))?)
    })
}

/// Copies bytes into a map. Pages that are absent are read first.
///
/// from: length bytes, which may lie in memory that is not in a map only; NULL if length is 0. Several threads may write: what two write to
/// one place ends as some mixture. A map never grows by it.
///
/// Returns 0; -EACCES for a map opened for reading; otherwise as mapwright_map_read_at, and a part may have been written then. -EINVAL
/// with MAPWRIGHT_STRATEGY_BUFFER: write by mapwright_map_data there.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_write_at(map: *mut Map, offset: u64, from: Input, length: usize) -> c_int {
    status(|| write(map, offset, &from, length, false))
}

/// As mapwright_map_write_at, without reading pages that are replaced as a whole.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_overwrite(map: *mut Map, offset: u64, from: Input, length: usize) -> c_int {
    status(|| write(map, offset, &from, length, true))
}

fn write(map: *mut Map, offset: u64, from: &Input, length: usize, whole: bool) -> Result<()> {
    let map = handles::get(map)?;
    let using = map.using()?;
    let (writer, bytes) = (using.writer()?, from.bytes(length)?);
    let shared = writer.shared();
    let written = if whole { shared.overwrite(offset, bytes) } else { shared.write_at(offset, bytes) };
    Ok(written?)
}

/// Runs a function of the caller on the bytes of a map: a page that can't be read is zeros there, and only there, and the error is returned
/// when work has returned.
///
/// work: gets an address, which is another than that of mapwright_map_data and is valid until it returns, the length in bytes, and user. It
/// must return: no longjmp, no exception, no exit of the thread. In it the map can be neither closed nor resized. What it returns is dropped; say
/// it through user.
///
/// Returns 0; the error of the first page that could not be read while work ran, as for mapwright_map_read_at; -EBADF, -EFAULT if work is
/// NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_checked(
    map: *mut Map,
    work: Option<extern "C" fn(data: *const c_void, length: usize, user: *mut c_void)>,
    user: *mut c_void,
) -> c_int {
    status(|| {
        let work = work.ok_or_else(|| Failure::null("the function to be run"))?;
        let map = handles::get(map)?;
        let using = map.using()?;
        Ok(match using.inner()? {
            Inner::Read(map) => map.checked(|bytes| work(bytes.as_ptr().cast(), bytes.len(), user)),
            Inner::Write(map) => map.checked(|start, length| work(start.cast(), length, user)),
        }?)
    })
}

/// Brings a range into memory, as far as the budget allows, and returns when it is there. length: 0 for all that follows offset.
///
/// Returns 0; errors as for mapwright_map_read_at. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_prefetch(map: *mut Map, offset: u64, length: u64) -> c_int {
    status(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        using.prefetch(range_or_rest(&using, offset, length)?)
    })
}

/// As mapwright_map_prefetch, without waiting. Errors show where the bytes are used. Returns 0; -ERANGE, -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_will_need(map: *mut Map, offset: u64, length: u64) -> c_int {
    status(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        using.will_need(range_or_rest(&using, offset, length)?)
    })
}

/// Says how the file will be read: a MAPWRIGHT_ADVICE_ constant, for all maps of the file in its pager.
///
/// Returns 0; -EINVAL for another number; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_advise(map: *mut Map, advice: c_int) -> c_int {
    status(|| handles::get(map)?.using()?.advise(options::advice(advice)?))
}

/// Drops from memory what is clean and not pinned of a range. length: 0 for all that follows offset. Nothing is lost.
///
/// Returns the number of bytes freed, 0 for strategies other than the pager; -ERANGE, -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_evict(map: *mut Map, offset: u64, length: u64) -> i64 {
    number(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        using.evict(range_or_rest(&using, offset, length)?)
    })
}

/// Which pages of a range are in memory, as mincore(2) tells it: in the pager's, or in the kernel's page cache with
/// MAPWRIGHT_STRATEGY_KERNEL.
///
/// Pages are those of the file, of 4096 bytes, from the one that holds the byte at offset. into: room for size bytes; each page of the range gets
/// 1 or 0. It may have changed when this returns.
///
/// Returns the number of pages; -ERANGE past the end; -EINVAL if there are more pages than size, and nothing is written then; -EBADF,
/// -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_residency(
    map: *mut Map,
    offset: u64,
    length: u64,
    mut into: Output,
    size: usize,
) -> i64 {
    number(|| {
        let map = handles::get(map)?;
        let residency = map.using()?.residency(range(offset, length)?)?;
        give_residency(&residency, into.bytes(size)?)
    })
}

/// Writes residency where there is room; the number of pages.
pub(crate) fn give_residency(residency: &mapwright::mmap::Residency, into: &mut [u8]) -> Result<u64> {
    let pages = residency.pages();
    let Some(into) = usize::try_from(pages).ok().and_then(|pages| into.get_mut(..pages)) else {
        return Err(Failure::invalid(format!("there are {pages} pages: make room for a byte for each")));
    };
    write_residency(residency, into);
    Ok(pages)
}

/// Bytes of the file that the pager holds in memory, in whole blocks; the length for other strategies, where it isn't known. Or -EBADF,
/// -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_resident_bytes(map: *mut Map) -> i64 {
    number(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        Ok(either!(using.inner()?, map => map.resident_bytes()))
    })
}

/// Makes the changes of a range durable, and the length: they are on the device when it returns. length: 0 for all that follows offset. With
/// MAPWRIGHT_DURABILITY_ATOMIC everything is committed, and with MAPWRIGHT_DURABILITY_NONE nothing waits for the device.
///
/// Returns 0; -EIO, -ENOSPC and so on from the device, and no page counts as clean then; MAPWRIGHT_ERR_LATCHED as long as an earlier failure is
/// not acknowledged: see mapwright_map_acknowledge; MAPWRIGHT_ERR_CHANGED if somebody cut the file; -EACCES for a map opened for
/// reading; -ERANGE, -EBADF, -EFAULT. Any thread may call it, also while others write: what they write meanwhile may or may not be included.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_flush(map: *mut Map, offset: u64, length: u64) -> c_int {
    status(|| {
        let map = handles::get(map)?;
        let using = map.using()?;
        let writer = using.writer()?;
        Ok(writer.flush_range(range_or_rest(&using, offset, length)?)?)
    })
}

/// Takes note of a write-back that failed, so that the next flush tries again. The pages concerned are still there and dirty.
///
/// Returns 1 if there was a failure, whose text mapwright_last_error then is; 0 if there was none; -EACCES for a map opened for reading; -EBADF,
/// -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_acknowledge(map: *mut Map) -> c_int {
    number(|| {
        let latched = handles::get(map)?.using()?.writer()?.acknowledge_error();
        let Some(error) = latched else { return Ok(0) };
        crate::error::remember(&error.into());
        Ok(1)
    }) as c_int
}

/// Changes the length of a map of a whole file, in bytes; new ones are zeros. The address stays, but with MAPWRIGHT_STRATEGY_BUFFER. The file changes
/// at the next flush. Nobody may touch what is cut off.
///
/// Returns 0; -EINVAL past what was reserved, or for a map of a part; -EACCES for a map opened for reading; -EBUSY while pins are
/// held or another call on the map has not returned; errors of writing as for mapwright_map_flush; -EBADF, -EFAULT.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_resize(map: *mut Map, length: u64) -> c_int {
    status(|| handles::get(map)?.resize(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overflow() {
        assert_eq!(range(5, 7).unwrap(), 5..12);
        assert_eq!(range(u64::MAX, 1).unwrap_err().code, -libc::ERANGE);
    }

    #[test]
    fn null_is_an_error_and_no_crash() {
        let null: *mut Map = std::ptr::null_mut();
        assert_eq!(mapwright_map_open(Text::of(None), null.cast(), None), -libc::EFAULT);
        let mut out = MaybeUninit::new(std::ptr::without_provenance_mut(1));
        assert_eq!(mapwright_map_open(Text::of(None), null.cast(), Some(&mut out)), -libc::EFAULT);
        assert_eq!(mapwright_map_open(Text::of(Some(c"/")), null.cast(), Some(&mut out)), -libc::ENODEV);
        assert_eq!(mapwright_map_length(null), (-libc::EFAULT).into());
        assert_eq!(crate::error::mapwright_last_error_code(), -libc::EFAULT);
    }
}
