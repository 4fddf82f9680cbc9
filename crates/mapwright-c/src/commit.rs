//! Commits of maps that were opened with MAPWRIGHT_DURABILITY_ATOMIC, and closing without changes.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::Arc;

use mapwright::Durability;

use crate::error::{Failure, Result, status};
use crate::handles;
use crate::map::{Inner, Map, closed, read_only};
use crate::options::{self, Options, Settings};
use crate::pager::give;

/// Makes all changes of a map since the last commit durable together, bytes and length: after any crash all of them are there, or none. For
/// maps opened with MAPWRIGHT_DURABILITY_ATOMIC.
///
/// It costs one sync, of which threads that ask at the same time share one. What others write while it runs may be included or not, each page as it was
/// at some time. Pins may be held, and addresses stay good.
///
/// Returns 0; -EIO, -ENOSPC and so on from the device, or -ETIMEDOUT: not committed yet, everything is dirty still, and later calls are
/// MAPWRIGHT_ERR_LATCHED until mapwright_map_acknowledge or mapwright_map_rollback (a crash before the next commit or rollback that succeeds may show this
/// commit, whole); MAPWRIGHT_ERR_BUDGET if there is no room for the index of what the file lacks; -EINVAL for another durability; -EACCES for a map
/// opened for reading; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_commit(map: *mut Map) -> c_int {
    status(|| Ok(handles::get(map)?.using()?.writer()?.shared().commit()?))
}

/// Drops all changes of a map since the last commit, of length too. For maps opened with MAPWRIGHT_DURABILITY_ATOMIC. The address stays. Nobody may
/// touch the memory meanwhile.
///
/// Returns 0; -EBUSY while pins are held or another call on the map has not returned: then nothing has happened; -EIO and so on if a commit that failed before may be on
/// the disk and could not be undone: the changes are dropped all the same, and a crash may show that commit; -ETIMEDOUT if a page can't be dropped:
/// then commits are refused until a rollback succeeds; -EINVAL, -EACCES, -EBADF, -EFAULT as mapwright_map_commit. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_rollback(map: *mut Map) -> c_int {
    status(|| match &mut *handles::get(map)?.alone("rolling a map back")? {
        Some(Inner::Write(map)) => Ok(map.rollback()?),
        Some(Inner::Read(_)) => Err(read_only()),
        None => Err(closed()),
    })
}

/// Maps the last commit of a map for reading: its bytes stay what they are while writing goes on. For maps opened with
/// MAPWRIGHT_DURABILITY_ATOMIC.
///
/// options: as for mapwright_map_open, or NULL; MAPWRIGHT_STRATEGY_KERNEL is -EINVAL, since no file has these bytes. out: gets the handle of another
/// map, or NULL; the caller closes it by mapwright_map_close, before or after the first. As long as it is open the journal grows, and the file stays
/// locked.
///
/// Returns 0; -EINVAL, -EACCES, -EBADF, -EFAULT as mapwright_map_commit; otherwise as mapwright_map_open. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_snapshot(
    map: *mut Map,
    options: *mut Options,
    out: Option<&mut MaybeUninit<*mut Map>>,
) -> c_int {
    status(|| give(out, || snapshot(&*handles::get(map)?, &options::settings(options)?)))
}

fn snapshot(map: &Map, settings: &Settings) -> Result<Map> {
    let snapshot = map.using()?.writer()?.shared().snapshot()?;
    Ok(Map::new(Inner::Read(settings.map.open_store(Arc::new(snapshot))?), Durability::Flush))
}

/// Closes a map without its changes. With MAPWRIGHT_DURABILITY_ATOMIC what was not committed is dropped, the file brought to the last commit, and the
/// journal removed. With MAPWRIGHT_DURABILITY_NONE nothing is written any more: some of the changes may be in the file already.
///
/// Returns 0; -EINVAL with MAPWRIGHT_DURABILITY_FLUSH, -EACCES for a map opened for reading, and -EBUSY while pins are held or another call on the map has
/// not returned: then it is still open; what mapwright_map_rollback and the file return, and the map is closed all the same: the journal has the last
/// commit then, for the next who opens the file for writing; -EBADF, -EFAULT. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_abandon(map: *mut Map) -> c_int {
    status(|| {
        let object = handles::get(map)?;
        let mut guard = object.alone("closing a map")?;
        match &*guard {
            Some(Inner::Write(_)) if object.durability == Durability::Flush => {
                return Err(Failure::invalid(
                    "closing a map without its changes, some of which may be in the file: close it, or open it with another durability",
                ));
            }
            Some(Inner::Write(_)) => {}
            _ => return Err(read_only()),
        }
        let inner = guard.take();
        drop(guard);
        handles::close(map)?;
        match inner {
            Some(Inner::Write(mut map)) if object.durability == Durability::Atomic => {
                // Otherwise it is dropped, which commits nothing either: closing would.
                map.rollback()?;
                Ok(map.close()?)
            }
            _ => Ok(()), // dropped, it writes nothing
        }
    })
}
