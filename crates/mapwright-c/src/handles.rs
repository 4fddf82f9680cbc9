//! Handles: what C holds of an object.
//!
//! A handle has the type of a pointer, so that the C compiler tells them apart, and is a number: tag, kind, index into the table
//! below, and generation. It is looked up, never followed. So a handle that was closed, is of another kind, or was made up is an
//! error and not a wrong access; a call in one thread keeps the object alive while another closes it. The tag makes it no
//! address that can be mapped.
//!
//! ```text
//! 63      56 55    52 51              28 27             0
//! |  0x4d   |  kind  |      index       |  generation   |
//! ```

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Failure, Result};

const TAG: u64 = 0x4d << 56;
const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 28;
/// Slots rest that long before they are used again, so that the table and not luck finds a stale handle.
const LAST_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

/// An object that C has handles of.
pub trait Object: Any + Send + Sync {
    /// Different for each type, below 16.
    const KIND: u64;
    /// For messages.
    const NAME: &'static str;
}

struct Slot {
    generation: u32,
    object: Option<Arc<dyn Any + Send + Sync>>,
}

struct Table {
    slots: Vec<Slot>,
    free: VecDeque<usize>,
}

static TABLE: RwLock<Table> = RwLock::new(Table { slots: Vec::new(), free: VecDeque::new() });

/// Gives an object to C.
///
/// # Errors
/// `EMFILE` with 16 million handles open.
pub fn open<T: Object>(object: T) -> Result<*mut T> {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let index = match table.free.pop_front() {
        Some(index) => index,
        None if table.slots.len() < 1 << INDEX_BITS => {
            table.slots.push(Slot { generation: 0, object: None });
            table.slots.len() - 1
        }
        None => return Err(Failure::new(libc::EMFILE, "too many handles are open: close some")),
    };
    let slot = &mut table.slots[index];
    slot.generation += 1;
    slot.object = Some(Arc::new(object));
    let number = TAG
        | T::KIND << (INDEX_BITS + GENERATION_BITS)
        | (index as u64) << GENERATION_BITS
        | u64::from(slot.generation);
    Ok(std::ptr::without_provenance_mut(number as usize))
}

/// Finds the object of a handle.
///
/// # Errors
/// `EFAULT` for NULL, `EBADF` for what is no open handle of this kind.
pub fn get<T: Object>(handle: *mut T) -> Result<Arc<T>> {
    let (index, generation) = decode(handle)?;
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let slot = table.slots.get(index).filter(|slot| slot.generation == generation);
    let object = slot.and_then(|slot| slot.object.clone());
    object.and_then(|object| object.downcast().ok()).ok_or_else(closed::<T>)
}

/// Takes a handle away from C; whoever is using the object keeps it until done.
///
/// # Errors
/// As for [`get`].
pub fn close<T: Object>(handle: *mut T) -> Result<Arc<T>> {
    let (index, generation) = decode(handle)?;
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let slot = table.slots.get_mut(index).filter(|slot| slot.generation == generation);
    let object = slot.and_then(|slot| slot.object.take()).ok_or_else(closed::<T>)?;
    if generation < LAST_GENERATION {
        table.free.push_back(index);
    }
    object.downcast().map_err(|_| closed::<T>())
}

fn decode<T: Object>(handle: *mut T) -> Result<(usize, u32)> {
    if handle.is_null() {
        return Err(Failure::null(T::NAME));
    }
    let number = handle.addr() as u64;
    let (rest, generation) = (number >> GENERATION_BITS, number & u64::from(LAST_GENERATION));
    let (kind, index) = (rest >> INDEX_BITS, rest & ((1 << INDEX_BITS) - 1));
    if kind == TAG >> (INDEX_BITS + GENERATION_BITS) | T::KIND {
        return Ok((index as usize, generation as u32));
    }
    let is_ours = kind >> 4 == TAG >> 56;
    let what = if is_ours { "a handle of another kind" } else { "no handle of this library" };
    Err(Failure::new(libc::EBADF, format!("{what}, where {} belongs", T::NAME)))
}

fn closed<T: Object>() -> Failure {
    Failure::new(libc::EBADF, format!("{}: it was closed before", T::NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct One(u32);
    #[derive(Debug)]
    struct Other;
    impl Object for One {
        const KIND: u64 = 14;
        const NAME: &'static str = "one";
    }
    impl Object for Other {
        const KIND: u64 = 15;
        const NAME: &'static str = "other";
    }

    #[test]
    fn a_handle_is_good_until_it_is_closed() {
        let handle = open(One(7)).unwrap();
        let held = get(handle).unwrap();
        assert_eq!(*held, One(7));
        assert_eq!(*close(handle).unwrap(), One(7));
        assert_eq!(get(handle).unwrap_err().code, -libc::EBADF);
        assert_eq!(close(handle).unwrap_err().code, -libc::EBADF);
        let again = open(One(8)).unwrap();
        assert_ne!(again, handle);
        assert_eq!(get(handle).unwrap_err().code, -libc::EBADF, "also where its place is used again");
        assert_eq!(*held, One(7));
        close(again).unwrap();
    }

    #[test]
    fn what_is_no_handle_is_an_error() {
        let handle = open(Other).unwrap();
        assert_eq!(get::<One>(handle.cast()).unwrap_err().code, -libc::EBADF);
        assert_eq!(close::<One>(handle.cast()).unwrap_err().code, -libc::EBADF);
        close(handle).unwrap();
        assert_eq!(get::<One>(std::ptr::null_mut()).unwrap_err().code, -libc::EFAULT);
        for number in
            [1_usize, 0x4d << 56, usize::MAX, 0x7fff_0000_0000, (0x4d << 56) | (14 << 52) | (99 << 28)]
        {
            let made_up = std::ptr::without_provenance_mut::<One>(number);
            assert_eq!(get(made_up).unwrap_err().code, -libc::EBADF, "{number:#x}");
        }
    }
}
