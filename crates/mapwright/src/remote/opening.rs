//! What a client says of a file that it opens, and how the server opens it then.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use mapwright_sys::page_cache::cachestat;

use super::kernel_lease::KernelLease;
use super::own_file::OwnFile;
use super::protocol::{Access, LEASE};
use super::server::{DEADLINE, Shared};
use crate::engine::PAGE;
use crate::engine::file::{FileSpec, Keep};
use crate::engine::kernel::{FaultMode, FrameKind};
use crate::error::{Error, Result};
use crate::stores::{FileOptions, FileStore, Store};

/// Address space of all files that one client has open, in bytes.
const MAX_CAPACITY: u64 = 8 << 40;

/// What a client says.
pub(super) struct OpenSpec {
    pub(super) fd: OwnedFd,
    pub(super) block_size: u32,
    pub(super) direct: Option<bool>,
    pub(super) advice: crate::Advice,
    pub(super) access: Access,
    pub(super) reserve: u64,
    pub(super) name: String,
}

/// What the engine is to open.
pub(super) struct Prepared {
    pub(super) spec: FileSpec,
    pub(super) identity: u128,
    /// The lease that it is served under, if it is.
    pub(super) kernel: Option<Arc<KernelLease>>,
}

impl OpenSpec {
    /// Makes a store of the client's descriptor, under a lease if it is to be one. The client has `held` bytes of address space already.
    ///
    /// # Errors
    /// What making the store meets; [`Error::Io`] with the operation [`LEASE`] where no lease can be had; [`Error::Invalid`] for too much address space.
    pub(super) fn prepare(self, shared: &Arc<Shared>, held: u64) -> Result<Prepared> {
        let Self { fd, block_size, direct, advice, access, reserve, name } = self;
        // What others may have mapped too does not grow.
        let reserve = if access == Access::Write { reserve } else { 0 };
        let failed = |e| Error::io("open", name.clone(), 0, 0, e);
        let of_lease = fd.try_clone().map_err(failed)?;
        let own = match access {
            Access::Alone => Some(Arc::new(OwnFile::new(fd.try_clone().map_err(failed)?, &name)?)),
            _ => None,
        };
        let store = match &own {
            Some(own) => Arc::clone(own) as Arc<dyn Store>,
            None => store_of(shared, fd, &name, access, direct)?,
        };
        let identity = store.version().map_err(failed)?.identity;
        let kernel = match access {
            Access::Leased | Access::Alone => {
                let taken = shared.lease((identity, access), of_lease.as_fd());
                Some(taken.map_err(|e| Error::io(LEASE, name.clone(), 0, 0, e))?)
            }
            Access::Read | Access::Write | Access::Share => None,
        };
        if let (Some(kernel), Some(own)) = (&kernel, own)
            && !kernel.close_at_its_end(own)
        {
            return Err(Error::io(LEASE, name, 0, 0, rustix::io::Errno::AGAIN.into()));
        }
        let version = store.version().map_err(failed)?; // under the lease
        if held.saturating_add(version.len.max(reserve)) > MAX_CAPACITY {
            return Err(Error::invalid(format!("more than {MAX_CAPACITY} bytes mapped by one client"), ""));
        }
        let spec = FileSpec {
            store,
            writable: access.writes(),
            mode: FaultMode::Thread,
            frames: FrameKind::Shared,
            block_size: block_size.into(),
            reserve,
            deadline: DEADLINE,
            advice,
            keep: match (&kernel, access) {
                (Some(kernel), Access::Alone) => Keep::Alone(kernel.number),
                (Some(kernel), _) => Keep::Leased(kernel.number),
                (None, Access::Share) => Keep::Shared,
                (None, _) => Keep::Flushed,
            },
        };
        Ok(Prepared { spec, identity, kernel })
    }
}

fn store_of(
    shared: &Shared,
    fd: OwnedFd,
    name: &str,
    access: Access,
    direct: Option<bool>,
) -> Result<Arc<dyn Store>> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::io("open", name.to_owned(), 0, 0, e.into()))?;
    let large = u64::try_from(stat.st_size).is_ok_and(|len| len > shared.handle.budget.total());
    // What such a program has mapped would be in the kernel's cache too, outside of the limit that was set for it.
    // What is cached already is taken from there, if the kernel tells.
    let around_cache = access == Access::Leased && cachestat(fd.as_fd(), 0..PAGE).is_ok();
    let options = FileOptions { write: access.writes(), direct: direct.unwrap_or(large || around_cache) };
    let mut store = FileStore::from_file(fd.into(), name, &options)?;
    if around_cache {
        store.take_cached();
    }
    Ok(Arc::new(store))
}
