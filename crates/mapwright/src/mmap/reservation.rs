//! Address space of one's own, in which mappings are placed.

use std::ops::Range;
use std::sync::Arc;

use mapwright_sys::mmap::AddressSpace;

use super::fail::{Attempt, OrFailed};
use crate::error::{Error, Result};

const PAGE: usize = mapwright_sys::PAGE_SIZE;

/// A range of addresses that costs no memory: a touch is SIGSEGV until something is placed there, by
/// [`MmapOptions::place`](super::MmapOptions::place).
///
/// Placed mappings keep the reservation: it ends with the last of them. A mapping that is dropped leaves its place free
/// again, and never to anybody else.
///
/// # Threads and fork
/// `Send`, `Sync`; clones are the same reservation. A child made by fork has a copy.
///
/// ```
/// use mapwright::mmap::{MmapOptions, Reservation, Resize};
///
/// let space = Reservation::new(1 << 30)?;
/// let mut first = MmapOptions::new().len(4096).place(&space, 0).map_anon()?;
/// let address = first.as_ptr();
/// first[0] = 1;
/// first.resize(1 << 20, Resize::InPlace)?; // the address stays
/// assert_eq!((first.as_ptr(), first[0]), (address, 1));
/// // What is taken is not taken again.
/// assert!(MmapOptions::new().len(4096).place(&space, 8192).map_anon().is_err());
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reservation {
    space: Arc<AddressSpace>,
}

impl Reservation {
    /// Reserves `len` bytes, rounded up to pages.
    ///
    /// # Errors
    /// As for [`aligned`](Self::aligned).
    pub fn new(len: usize) -> Result<Self> {
        Self::aligned(len, PAGE)
    }

    /// Reserves `len` bytes at a multiple of `align`, a power of two: huge pages want theirs.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a length of 0 or an alignment that is no power of two; [`Io`](Error::Io) with `ENOMEM` or
    /// [`LimitReached`](Error::LimitReached) if there is no such range.
    pub fn aligned(len: usize, align: usize) -> Result<Self> {
        let attempt =
            Attempt { operation: "mmap", name: "a reservation", offset: 0, len: len as u64, huge: false };
        if len == 0 || !align.is_power_of_two() {
            return Err(Error::invalid(
                format!("a reservation of {len} bytes at a multiple of {align}"),
                "reserve at least a byte, at a power of two",
            ));
        }
        let no_memory = || attempt.failed(rustix::io::Errno::NOMEM.into());
        let len = len.checked_next_multiple_of(PAGE).ok_or_else(no_memory)?;
        let space = AddressSpace::new(len, align.max(PAGE)).or_failed(attempt)?;
        Ok(Self { space: Arc::new(space) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.space.addresses().len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first address.
    pub fn as_ptr(&self) -> *const u8 {
        self.space.addresses().start as *const u8
    }

    /// The parts that mappings lie in, in bytes from the start, guards included.
    pub fn taken(&self) -> Vec<Range<usize>> {
        self.space.taken()
    }

    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }
}
