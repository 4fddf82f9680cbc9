//! Pagers.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use crate::error::{Failure, Result, status};
use crate::handles::{self, Object};
use crate::pointers::Record;
use crate::stats::Stats;

/// A page cache with a hard budget, shared by all maps that are opened with it.
pub struct Pager(pub(crate) mapwright::Pager);

impl Object for Pager {
    const KIND: u64 = 1;
    const NAME: &'static str = "the pager";
}

/// Hands an object out, and nothing if that fails.
pub(crate) fn give<T: Object>(
    out: Option<&mut MaybeUninit<*mut T>>,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    let out = out.ok_or_else(|| Failure::null("where the handle goes"))?;
    out.write(std::ptr::null_mut());
    out.write(handles::open(make()?)?);
    Ok(())
}

/// Writes a result where C wants it, if it does.
pub(crate) fn put<T>(out: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(out) = out {
        out.write(value);
    }
}

/// Makes a pager.
///
/// budget: the most memory that it uses, in bytes, for frames, buffers and tables together; at least 32 KiB and eight blocks of each file;
/// 0 for a quarter of what is available. out: gets the handle, or NULL; close it by mapwright_pager_close.
///
/// Returns 0; -EINVAL for a budget that is too small; -EFAULT if out is NULL. Any thread may call it. After fork(2) the child
/// has neither the pager's threads nor its maps, and may use neither; an exec is fine.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_pager_new(budget: u64, out: Option<&mut MaybeUninit<*mut Pager>>) -> c_int {
    status(|| {
        give(out, || {
            let builder = mapwright::Pager::builder();
            let builder = if budget == 0 { builder } else { builder.budget(budget) };
            Ok(Pager(builder.build()?))
        })
    })
}

/// The pager of the process, which maps use that name none. Its budget is a quarter of the memory that was available when it was
/// first used. out: gets a handle of its own, or NULL; close it like any other, which does not end the pager.
///
/// Returns 0; -EFAULT if out is NULL. Any thread may call it; for fork(2) see mapwright_pager_new.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_pager_global(out: Option<&mut MaybeUninit<*mut Pager>>) -> c_int {
    status(|| give(out, || Ok(Pager(mapwright::Pager::global()?))))
}

/// Closes a handle of a pager. The pager ends, and its threads with it, when its last map is closed too.
///
/// Returns 0; -EBADF for a handle that was closed before; -EFAULT for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_pager_close(pager: *mut Pager) -> c_int {
    status(|| handles::close(pager).map(drop))
}

/// Copies the counters of a pager. out: a structure whose field size is set: see mapwright_stats.
///
/// Returns 0; -EINVAL for a size that is none; -EBADF, -EFAULT. Any thread may call it; the counters are those of one moment, more or
/// less.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_pager_stats(pager: *mut Pager, mut out: Record<Stats>) -> c_int {
    status(|| out.fill(Stats::from(handles::get(pager)?.0.stats())))
}
