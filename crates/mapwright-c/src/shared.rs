//! Shared memory with a name.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mapwright::mmap::{SharedMemory, SharedMemoryOptions};

use crate::error::{Failure, number, status};
use crate::handles::{self, Object};
use crate::mapping::{Any, Mapping};
use crate::pager::give;
use crate::pointers::Text;

/// Create the memory if it does not exist.
pub const MAPWRIGHT_SHM_CREATE: c_int = 1;
/// Create it, and fail if it exists.
pub const MAPWRIGHT_SHM_EXCLUSIVE: c_int = 2;
/// Open it for reading only. Not with the other two.
pub const MAPWRIGHT_SHM_READ_ONLY: c_int = 4;

/// Creating is asked for by asking for that it is new.
const EXCLUSIVE_ALONE: c_int = MAPWRIGHT_SHM_EXCLUSIVE;
const EXCLUSIVE_TOO: c_int = MAPWRIGHT_SHM_EXCLUSIVE | MAPWRIGHT_SHM_CREATE;

/// Memory with a name, which other processes open by it.
pub struct Shared {
    memory: Mutex<SharedMemory>,
    read_only: bool,
}

impl Object for Shared {
    const KIND: u64 = 6;
    const NAME: &'static str = "the shared memory";
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SharedMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens or creates shared memory with a name, as shm_open(3) does, where other programs find it.
///
/// name: a slash and up to 255 bytes without another, in UTF-8. flags: MAPWRIGHT_SHM_ constants, or 0 to open for reading and writing what exists. mode:
/// permissions, such as 0600: what is created gets them, less the umask, and what is opened may give others no more. length: in bytes, of
/// what is created. out: gets the handle, or NULL; close it by mapwright_shm_close, which leaves the name.
///
/// What exists must be a regular file of the effective user, not a symbolic link and without a second name: otherwise
/// MAPWRIGHT_ERR_NOT_TRUSTED.
///
/// Returns 0; -ENOENT, -EEXIST; -EACCES without permission to write; MAPWRIGHT_ERR_NOT_TRUSTED, also where what exists has another length than that to be
/// created; -EINVAL for a name or flags that are none; -EILSEQ; -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_open(
    name: Text,
    flags: c_int,
    mode: u32,
    length: u64,
    out: Option<&mut MaybeUninit<*mut Shared>>,
) -> c_int {
    status(|| {
        give(out, || {
            let name = name.utf8("the name")?;
            let options = SharedMemoryOptions::new().mode(mode);
            let memory = match flags {
                0 => options.open(name)?,
                MAPWRIGHT_SHM_READ_ONLY => options.open_read_only(name)?,
                MAPWRIGHT_SHM_CREATE => options.create(name, length)?,
                EXCLUSIVE_ALONE | EXCLUSIVE_TOO => options.create_new(name, length)?,
                other => return Err(Failure::invalid(format!("the flags {other:#x} for shared memory"))),
            };
            Ok(Shared { memory: Mutex::new(memory), read_only: flags == MAPWRIGHT_SHM_READ_ONLY })
        })
    })
}

/// Takes a name away. Who has the memory open or mapped keeps it. Returns 0; -ENOENT, -EACCES, -EINVAL, -EILSEQ; -EFAULT for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_unlink(name: Text) -> c_int {
    status(|| Ok(SharedMemory::unlink(name.utf8("the name")?)?))
}

/// The length in bytes when it was opened or last resized here, or -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_length(shm: *mut Shared) -> i64 {
    number(|| Ok(handles::get(shm)?.lock().len()))
}

/// Changes the length, in bytes, for all who have it. Mappings keep theirs: a touch of what was cut off is SIGBUS there.
///
/// Returns 0; what ftruncate(2) says; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_resize(shm: *mut Shared, length: u64) -> c_int {
    status(|| Ok(handles::get(shm)?.lock().resize(length)?))
}

/// Maps all of the memory, for reading and, unless it was opened for reading only, writing. out: gets the handle of a mapping, or NULL; close it by
/// mapwright_mapping_close. It outlives the handle shm.
///
/// Returns 0; MAPWRIGHT_ERR_LIMIT; -EBADF; -EFAULT if shm or out is NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_map(shm: *mut Shared, out: Option<&mut MaybeUninit<*mut Mapping>>) -> c_int {
    status(|| {
        give(out, || {
            let shm = handles::get(shm)?;
            let memory = shm.lock();
            Ok(Mapping::new(if shm.read_only {
                Any::RawRead(memory.map_read_only()?)
            } else {
                Any::Raw(memory.map()?)
            }))
        })
    })
}

/// Closes shared memory. Its name stays, and its mappings. Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_shm_close(shm: *mut Shared) -> c_int {
    status(|| handles::close(shm).map(drop))
}
