//! Pins: ranges of maps that are held in memory, one at a time or many.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mapwright::Held;

use crate::error::{Result, status};
use crate::handles::{self, Object};
use crate::map::{Map, Using, either, range};
use crate::pager::{give, put};
use crate::pointers::{Items, Room};

/// Ranges of a map that are held in memory.
pub struct Pin {
    _held: Held,
    map: Arc<Map>,
}

impl Object for Pin {
    const KIND: u64 = 4;
    const NAME: &'static str = "the pin";
}

impl Pin {
    /// Counts what is held. Nobody has closed or resized the map since it was: `using` is still in use.
    fn new(held: Held, map: &Arc<Map>, using: Using<'_>) -> Self {
        map.pins.fetch_add(1, Ordering::AcqRel);
        drop(using);
        Self { _held: held, map: Arc::clone(map) }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.map.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A range of a map, as mapwright_map_get_many takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RangeOf {
    /// The first byte, in the map.
    pub offset: u64,
    /// How many bytes; there may be none.
    pub length: u64,
}

/// Bytes of a map, as mapwright_map_get_many gives them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// The first byte.
    pub data: *const c_void,
    /// How many bytes.
    pub length: usize,
}

/// Holds a range; its address.
fn hold(map: &Arc<Map>, offset: u64, length: u64) -> Result<(Pin, *const c_void)> {
    let using = map.using()?;
    let range = range(offset, length)?;
    let held = either!(using.inner()?, map => map.hold(range))?;
    let start = using.start_to_read()?.wrapping_add(offset as usize);
    Ok((Pin::new(held, map, using), start))
}

/// Holds many ranges, and says where they are. Nothing is written to `into` unless all of them are held.
fn hold_many(map: &Arc<Map>, ranges: &[RangeOf], into: &mut [MaybeUninit<Bytes>]) -> Result<Pin> {
    let using = map.using()?;
    let in_map = ranges.iter().map(|of| range(of.offset, of.length)).collect::<Result<Vec<_>>>()?;
    let held = either!(using.inner()?, map => map.hold_many(&in_map))?;
    let start = using.start_to_read()?;
    for (of, into) in ranges.iter().zip(into) {
        into.write(Bytes { data: start.wrapping_add(of.offset as usize), length: of.length as usize });
    }
    Ok(Pin::new(held, map, using))
}

/// Makes a range of a map resident and holds it there: reading it neither fails nor faults until the pin is released.
///
/// offset, length: in bytes, of the map. pin: gets a handle, or NULL; release it by mapwright_pin_release, from any thread. data: gets the
/// address of the range, to be read: a commit may miss what is written by it; may be NULL. What is pinned counts against the budget and can't be evicted: hold it briefly.
///
/// Returns 0; -ERANGE past the end; errors of reading as for mapwright_map_read_at; MAPWRIGHT_ERR_BUDGET if there is no room
/// within the deadline; -EBADF, -EFAULT if pin is NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_get(
    map: *mut Map,
    offset: u64,
    length: usize,
    pin: Option<&mut MaybeUninit<*mut Pin>>,
    data: Option<&mut MaybeUninit<*const c_void>>,
) -> c_int {
    status(|| {
        let mut start = std::ptr::null();
        let held = give(pin, || {
            let (pin, at) = hold(&handles::get(map)?, offset, length as u64)?;
            start = at;
            Ok(pin)
        });
        put(data, start);
        held
    })
}

/// As mapwright_map_get, for many ranges, which are read in one submission where they are not in memory, and held by one pin.
///
/// ranges: count of them, in any order; they may overlap. pin: gets a handle, or NULL; release it by mapwright_pin_release, from any thread,
/// and with it all of them. bytes: room for count structures, which get address and length of each range, in the same order; nothing is
/// written there unless all are held. ranges and bytes may be NULL if count is 0.
///
/// Returns as mapwright_map_get; MAPWRIGHT_ERR_BUDGET if all of them together are more than the budget has room for; -EFAULT if ranges, bytes
/// or pin is NULL; -EINVAL for more than memory has, and for addresses that are not aligned. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_map_get_many(
    map: *mut Map,
    ranges: Items<RangeOf>,
    count: usize,
    pin: Option<&mut MaybeUninit<*mut Pin>>,
    mut bytes: Room<Bytes>,
) -> c_int {
    status(|| {
        give(pin, || {
            let map = handles::get(map)?;
            hold_many(&map, ranges.items("the ranges", count)?, bytes.items("room for the bytes", count)?)
        })
    })
}

/// Releases a pin. Returns 0; -EBADF for one that was released before; -EFAULT for NULL. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_pin_release(pin: *mut Pin) -> c_int {
    status(|| handles::close(pin).map(drop))
}
