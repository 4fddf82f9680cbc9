//! Functions shaped like mmap(2) and its like, over the pager: to be called by renaming. They return what their namesakes return, and set
//! errno.
//!
//! What can't be served is an error with a text, never something else than what was asked for. `views.rs` knows what was given out.

use std::ffi::{c_int, c_void};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libc::{MAP_NORESERVE, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use mapwright::{Advice, Durability, Strategy};

use crate::error::{Failure, Result, like_the_kernel, quietly, status};
use crate::map::{open_fd, write_residency};
use crate::options::{self, Options, Settings};
use crate::pointers::{Output, at_exit, duplicate};
use crate::views::{self, Owner, PAGE, View, pages, whole_pages};

/// What files are opened with; the defaults if nobody has said otherwise.
static SETTINGS: Mutex<Option<Settings>> = Mutex::new(None);

/// The process that has called first.
static OPENED_BY: OnceLock<u32> = OnceLock::new();

fn unsupported(text: impl Into<String>) -> Failure {
    Failure::new(libc::EOPNOTSUPP, text)
}

/// Settings for the files that mapwright_mmap opens from now on: the pager and so the budget, advice, block size, who serves faults. NULL for
/// the defaults. They are copied: the handle may be closed.
///
/// Returns 0; -EINVAL for settings with a range, with MAPWRIGHT_STRATEGY_BUFFER, or with another durability than MAPWRIGHT_DURABILITY_FLUSH; -EBADF. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mmap_options(options: *mut Options) -> c_int {
    status(|| {
        let settings = options::settings(options)?;
        if settings.has_range || settings.strategy == Strategy::Buffer {
            return Err(Failure::invalid(
                "mapwright_mmap maps whole pages that are shared: no range, and no buffer",
            ));
        }
        if settings.durability != Durability::Flush {
            return Err(Failure::invalid(
                "mapwright_msync does what msync(2) does: MAPWRIGHT_DURABILITY_FLUSH; for commits use mapwright_map_open_mut",
            ));
        }
        *SETTINGS.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        Ok(())
    })
}

/// mmap(2) over the pager: gives addresses at which a file's bytes are, read as they are touched.
///
/// address: NULL: the library chooses. length: in bytes, not 0. protection: PROT_READ, or PROT_READ | PROT_WRITE. flags: MAP_SHARED, or, for reading, MAP_PRIVATE;
/// with MAP_POPULATE or MAP_NORESERVE if you like. fd: an open file, which may be closed afterwards. offset: a multiple of 4096.
///
/// Otherwise than mmap(2): the range must not reach beyond the file's last page. Two mappings of one file may have the same addresses. A file is mapped
/// by readers or by one writer: once it is mapped for reading, mapping it for writing is EBUSY (map it for writing first; readers then share
/// that). What is written reaches the file by mapwright_msync, mapwright_munmap and exit(3), and when the budget forces it out: a program that
/// is killed loses the rest. What other programs write is not seen, but is an error. A page that can't be read is SIGBUS, after a message.
///
/// Returns the address, or MAP_FAILED and errno: EINVAL for an address, a length of 0, an offset inside a page, or flags without a meaning;
/// EOPNOTSUPP for what the pager has not: MAP_FIXED, MAP_ANONYMOUS, private writing, PROT_EXEC, PROT_NONE, huge or locked pages (mapwright_mapping_* has most of them);
/// EACCES, EBADF, ENODEV as mmap(2); ENXIO past the file's end; EBUSY; ESTALE, EIO and so on from reading with MAP_POPULATE. Any thread may call
/// it; not for children of fork(2).
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    like_the_kernel(|| {
        check_request(address, protection, flags)?;
        if length == 0 {
            return Err(Failure::invalid("a length of 0"));
        }
        let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(PAGE));
        let offset = offset.ok_or_else(|| Failure::invalid("the offset is not that of a page"))?;
        let end = offset.checked_add(whole_pages(length)?);
        let end = end.ok_or_else(|| Failure::new(libc::EOVERFLOW, "the range ends beyond all offsets"))?;
        let view = map(fd, protection & PROT_WRITE != 0, offset..end)?;
        let start = view.addresses.start;
        if flags & MAP_POPULATE != 0 {
            let filled =
                view.owner.map.using().and_then(|using| using.prefetch(view.owner.bytes(&view.addresses)?));
            filled.inspect_err(|_| drop(unmap(&view.addresses)))?;
        }
        Ok(start)
    }) as *mut c_void
}

/// What of a request the pager has.
fn check_request(address: *mut c_void, protection: c_int, flags: c_int) -> Result<()> {
    if flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0 {
        return Err(unsupported("MAP_FIXED: the library chooses the address"));
    }
    if !address.is_null() {
        return Err(Failure::invalid("an address that is not NULL: the library chooses it"));
    }
    if flags & libc::MAP_ANONYMOUS != 0 {
        return Err(unsupported("MAP_ANONYMOUS: use mapwright_mapping_anonymous, or mmap itself"));
    }
    let writes = protection & PROT_WRITE != 0;
    if protection & !PROT_WRITE != PROT_READ {
        return Err(unsupported(format!(
            "the protection {protection:#x}: PROT_READ, or PROT_READ | PROT_WRITE"
        )));
    }
    match flags & libc::MAP_TYPE {
        MAP_SHARED | libc::MAP_SHARED_VALIDATE => {}
        MAP_PRIVATE if writes => {
            return Err(unsupported(
                "a private copy to write to: use mapwright_mapping_open with MAPWRIGHT_ACCESS_COPY",
            ));
        }
        MAP_PRIVATE => {}
        _ => return Err(Failure::invalid("neither MAP_SHARED nor MAP_PRIVATE")),
    }
    match flags
        & !(libc::MAP_TYPE | MAP_POPULATE | MAP_NORESERVE | libc::MAP_DENYWRITE | libc::MAP_EXECUTABLE)
    {
        0 => Ok(()),
        others => Err(unsupported(format!("the flags {others:#x}"))),
    }
}

/// Finds or opens the file behind a descriptor, and gives a range of it out.
fn map(fd: c_int, write: bool, range: std::ops::Range<usize>) -> Result<View> {
    let copy = duplicate(fd)?;
    let failed =
        |error: rustix::io::Errno| Failure::new(error.raw_os_error(), format!("descriptor {fd}: {error}"));
    let stat = rustix::fs::fstat(copy.as_fd()).map_err(failed)?;
    let file = (stat.st_dev, stat.st_ino);
    let mode = rustix::fs::fcntl_getfl(&copy).map_err(failed)? & rustix::fs::OFlags::RWMODE;
    if mode == rustix::fs::OFlags::WRONLY || (write && mode != rustix::fs::OFlags::RDWR) {
        return Err(Failure::new(libc::EACCES, format!("descriptor {fd} was not opened for that")));
    }
    let mut views = views::lock();
    let found = views.owner(file);
    if found.as_ref().is_some_and(|owner| write && !owner.writable) {
        let what = "the file is mapped for reading: unmap that, or map it for writing first";
        return Err(Failure::new(libc::EBUSY, what));
    }
    // A reader that was opened when the file was shorter does not have what was added.
    let fits = |owner: &Arc<Owner>| owner.writable || in_file(owner, &range).is_ok();
    let owner = match found.filter(fits) {
        Some(owner) => owner,
        None => Arc::new(open(fd, file, write)?),
    };
    in_file(&owner, &range)?;
    let view = View { addresses: owner.base + range.start..owner.base + range.end, owner };
    views.add(view.clone());
    Ok(view)
}

/// Whether the pages of a range hold bytes of the file.
fn in_file(owner: &Owner, range: &std::ops::Range<usize>) -> Result<()> {
    let length = owner.map.using()?.length()?;
    if length > 0 && range.end as u64 <= length.next_multiple_of(PAGE as u64) {
        return Ok(());
    }
    let what = format!(
        "the range ends at {}, and the file has {length} bytes: make it longer before you map it",
        range.end
    );
    Err(Failure::new(libc::ENXIO, what))
}

fn open(fd: c_int, file: (u64, u64), write: bool) -> Result<Owner> {
    OPENED_BY.get_or_init(|| {
        at_exit(flush_all);
        std::process::id()
    });
    let settings = SETTINGS.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
    let with = |strategy| Settings { map: settings.map.clone().strategy(strategy), ..settings.clone() };
    let map = match settings.strategy {
        // Small files too: a buffer is not at the address of a page.
        Strategy::Auto => match open_fd(fd, write, &with(Strategy::Pager)) {
            Err(failure) if failure.errno == libc::EOPNOTSUPP => open_fd(fd, write, &with(Strategy::Kernel))?,
            opened => opened?,
        },
        _ => open_fd(fd, write, &settings)?,
    };
    let base = map.using()?.start()?.addr();
    Ok(Owner { file, map, writable: write, base })
}

/// Flushes what is still mapped when the program ends. A child of fork(2) has none of it.
extern "C" fn flush_all() {
    quietly((), || {
        if OPENED_BY.get() != Some(&std::process::id()) {
            return;
        }
        for owner in views::lock().writers() {
            let flushed = owner.map.using().and_then(|using| Ok(using.writer()?.flush_range(..)?));
            if let Err(failure) = flushed {
                eprintln!("mapwright: changes were lost at exit: {}", failure.text());
            }
        }
    });
}

/// munmap(2): takes addresses back, all that was given out or a part.
///
/// address: of a page. length: in bytes; whole pages are unmapped. A range may be in the middle of a mapping, which then becomes two, or cover several.
/// Addresses of a part may stay readable until the whole file is unmapped: nobody may use them. With the last part of a file that is
/// written, its changes are made durable.
///
/// Returns 0, or -1 and errno: EINVAL for an address inside a page, a length of 0, or a range of which nothing was given out by mapwright_mmap (where
/// munmap(2) is content); EIO, ENOSPC, ESTALE and so on if the changes could not be written: then all is mapped as before. Any thread may call
/// it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_munmap(address: *mut c_void, length: usize) -> c_int {
    like_the_kernel(|| {
        if length == 0 {
            return Err(Failure::invalid("a length of 0"));
        }
        unmap(&pages(address.addr(), length)?).map(|()| 0)
    }) as c_int
}

fn unmap(addresses: &std::ops::Range<usize>) -> Result<()> {
    let mut views = views::lock();
    let (left, is_changed) = views.without(addresses);
    if !is_changed {
        return Err(Failure::invalid("nothing of the range was given out by mapwright_mmap"));
    }
    for owner in views.ended(&left).iter().filter(|owner| owner.writable) {
        // While it can still be tried again.
        owner.map.using()?.writer()?.flush_range(..)?;
    }
    *views = left;
    Ok(())
}

/// Runs something for each part of a range that was given out.
fn each(address: *mut c_void, length: usize, run: impl Fn(&View) -> Result<()>) -> Result<usize> {
    let range = pages(address.addr(), length)?;
    let parts = views::lock().cover(&range)?; // without the lock from here on: this may take long
    parts.iter().try_for_each(run).map(|()| 0)
}

/// msync(2): makes the changes of a range durable, with MS_SYNC; MS_ASYNC does nothing, as with Linux. MS_INVALIDATE is taken and does nothing.
///
/// Returns 0, or -1 and errno: EINVAL for an address inside a page or flags that exclude each other; ENOMEM for addresses that were not given out; EIO,
/// ENOSPC, ESTALE and so on: no page counts as clean then, and the next call tries again. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_msync(address: *mut c_void, length: usize, flags: c_int) -> c_int {
    like_the_kernel(|| {
        let (sync, known) =
            (flags & libc::MS_SYNC != 0, libc::MS_SYNC | libc::MS_ASYNC | libc::MS_INVALIDATE);
        if flags & !known != 0 || (sync && flags & libc::MS_ASYNC != 0) {
            return Err(Failure::invalid(format!("the flags {flags:#x} for msync")));
        }
        each(address, length, |view| {
            if !sync || !view.owner.writable {
                return Ok(());
            }
            let using = view.owner.map.using()?;
            let writer = using.writer()?;
            // Who calls again has seen the error.
            drop(writer.acknowledge_error());
            Ok(writer.flush_range(view.owner.bytes(&view.addresses)?)?)
        })
    }) as c_int
}

/// mprotect(2), as far as it says what is so already: PROT_READ | PROT_WRITE of what was mapped for writing, PROT_READ of what was mapped for reading. The
/// pager's memory has one protection, that of its map.
///
/// Returns 0, or -1 and errno: EACCES for writing to what was mapped for reading; EOPNOTSUPP for less than was asked for, and PROT_EXEC; EINVAL for an address
/// inside a page; ENOMEM for addresses that were not given out. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mprotect(address: *mut c_void, length: usize, protection: c_int) -> c_int {
    like_the_kernel(|| {
        each(address, length, |view| match (protection, view.owner.writable) {
            (PROT_READ, false) => Ok(()),
            (protection, true) if protection == PROT_READ | PROT_WRITE => Ok(()),
            (protection, false) if protection & PROT_WRITE != 0 => {
                Err(Failure::new(libc::EACCES, "the file was mapped for reading"))
            }
            _ => Err(unsupported(format!(
                "the protection {protection:#x}: memory of the pager keeps that of its map"
            ))),
        })
    }) as c_int
}

/// madvise(2): MADV_NORMAL, MADV_SEQUENTIAL and MADV_RANDOM, for the whole file; MADV_WILLNEED; MADV_POPULATE_READ and MADV_POPULATE_WRITE, which wait
/// and return errors; MADV_DONTNEED, MADV_COLD and MADV_PAGEOUT, which drop what is clean and never lose a change.
///
/// Returns 0, or -1 and errno: EINVAL for another advice, or an address inside a page; ENOMEM for addresses that were not given out; EIO, ESTALE and so on from
/// reading. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    like_the_kernel(|| {
        each(address, length, |view| {
            let (using, bytes) = (view.owner.map.using()?, view.owner.bytes(&view.addresses)?);
            match advice {
                libc::MADV_NORMAL => using.advise(Advice::Normal),
                libc::MADV_SEQUENTIAL => using.advise(Advice::Sequential),
                libc::MADV_RANDOM => using.advise(Advice::Random),
                libc::MADV_WILLNEED => using.will_need(bytes),
                libc::MADV_POPULATE_READ => using.prefetch(bytes),
                libc::MADV_POPULATE_WRITE if view.owner.writable => using.prefetch(bytes),
                libc::MADV_DONTNEED | libc::MADV_COLD | libc::MADV_PAGEOUT => using.evict(bytes).map(drop),
                other => Err(Failure::invalid(format!("the advice {other} for memory of the pager"))),
            }
        })
    }) as c_int
}

/// mincore(2): which pages of a range are in the pager's memory. vector: room for a byte for each page, which gets 1 or 0.
///
/// Returns 0, or -1 and errno: EINVAL for an address inside a page; ENOMEM for addresses that were not given out; EFAULT if vector is NULL. Any thread may
/// call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mincore(address: *mut c_void, length: usize, mut vector: Output) -> c_int {
    like_the_kernel(|| {
        let range = pages(address.addr(), length)?;
        let parts = views::lock().cover(&range)?;
        let mut left = vector.bytes(range.len() / PAGE)?;
        for view in parts {
            let (part, rest) = left.split_at_mut(view.addresses.len() / PAGE);
            write_residency(&view.owner.map.using()?.residency(view.owner.bytes(&view.addresses)?)?, part);
            left = rest;
        }
        Ok(0)
    }) as c_int
}

/// mremap(2): changes the length of a mapping. The address never changes.
///
/// address, old_length: a whole mapping, as it was given out or was left. new_length: in bytes, not 0. flags: 0 or MREMAP_MAYMOVE. What grows beyond the end of a
/// file that is written makes the file longer, to the byte, with zeros: mremap(2) does not, and such programs call ftruncate(2) before; here they
/// must not.
///
/// Returns the address, or MAP_FAILED and errno: EINVAL for what is no mapping, for other flags, and past what mapwright_options_set_reserve reserved;
/// EBUSY while another call on the file has not returned; ENXIO beyond the end of a file that is mapped for reading. Any thread may call
/// it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_mremap(
    address: *mut c_void,
    old_length: usize,
    new_length: usize,
    flags: c_int,
) -> *mut c_void {
    like_the_kernel(|| {
        if flags & !libc::MREMAP_MAYMOVE != 0 || new_length == 0 {
            return Err(Failure::invalid(
                "mremap with a length of 0, or with flags other than MREMAP_MAYMOVE",
            ));
        }
        let (old, new) = (pages(address.addr(), old_length)?, pages(address.addr(), new_length)?);
        if new.end < old.end {
            return unmap(&(new.end..old.end)).map(|()| new.start);
        }
        let mut views = views::lock();
        let view = views.find(&old);
        let view = view.ok_or_else(|| Failure::invalid("the range is no mapping of mapwright_mmap"))?;
        let owner = &view.owner;
        let offset = new.start - owner.base;
        if in_file(owner, &(offset..offset + new.len())).is_err() {
            if !owner.writable {
                return Err(Failure::new(libc::ENXIO, "the file ends before, and is mapped for reading"));
            }
            owner.map.resize((offset + new_length) as u64)?;
        }
        views.replace(&old, new.clone());
        Ok(new.start)
    }) as *mut c_void
}
