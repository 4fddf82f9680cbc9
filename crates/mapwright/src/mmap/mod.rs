//! The kernel's own mappings, of every kind: what mmap(2) offers, with types for what may be done to the bytes.
//!
//! [`Map`](crate::Map) and [`MapMut`](crate::MapMut) bring a file into memory by the best of three strategies. This module is
//! for the rest of the facility: anonymous memory, private copies of files, code, inaccessible memory, reservations of address
//! space, named shared memory and memfds, devices, locks, huge pages, advice, residency.
//!
//! | type | bytes | made by |
//! | --- | --- | --- |
//! | [`MmapMut`] | `&mut [u8]` | [`MmapMut::map_anon`]; of a file by promise: [`MapAssumed`] |
//! | [`Mmap`] | `&[u8]` | [`SealedMemory::map`], [`Mapping::make_read_only`]; of a file by promise |
//! | [`MmapExec`] | `&[u8]`, executable | [`Mapping::make_exec`] |
//! | [`MmapCode`] | copied, executable | [`CodeWriter`], which writes them meanwhile |
//! | [`MmapNone`] | none | [`MmapOptions::map_none`], [`Mapping::make_none`] |
//! | [`MmapRaw`], [`MmapRawRead`] | copied, errors are values | [`MmapOptions::open`], [`MmapOptions::map_raw`], [`SharedMemory`] |
//!
//! ```
//! use mapwright::mmap::{MmapMut, MmapOptions};
//!
//! let mut memory = MmapMut::map_anon(1 << 20)?; // zeros, this process's own
//! memory[..5].copy_from_slice(b"hello");
//! let memory = memory.make_read_only()?; // no slice of the old kind can be alive
//! assert_eq!(&memory[..5], b"hello");
//!
//! # let path = std::env::temp_dir().join(format!("mapwright-mmap-{}", std::process::id()));
//! # std::fs::write(&path, vec![7u8; 10_000]).unwrap();
//! let file = MmapOptions::new().offset(1001).open(&path)?; // others may write it: bytes are copied
//! let mut bytes = [0; 4];
//! file.read_at(8000, &mut bytes)?;
//! assert_eq!(bytes, [7; 4]);
//! std::fs::File::options().write(true).open(&path)?.set_len(5)?; // somebody cuts it
//! assert!(file.read_at(8000, &mut bytes).is_err()); // and this process lives
//! # std::fs::remove_file(&path).unwrap();
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # What is safe, and what is a promise
//! A slice says that nobody changes the bytes. Of a file, or of shared memory, nobody can know that, so those are copied
//! ([`MmapRaw`]). Whoever does know it may say so, in the words of memmap2: `unsafe { Mmap::map(&file)? }`, with
//! [`MapAssumed`] or [`MapAssumedWith`] in scope. A touch of a page that can't be had is then SIGBUS, as with memmap2.
//!
//! # Threads and fork
//! All mappings are `Send` and `Sync`. In a child made by fork(2), private mappings are copies and shared ones are shared,
//! unless [`Advice::DontFork`] or [`Advice::WipeOnFork`] says otherwise: a child must not touch a mapping that it has not got,
//! though it may drop it, and must not rely on bytes that are wiped. In a thread that blocks SIGBUS, a page that can't be had ends
//! the process under a copy too. Dropping unmaps; [`Mapping::close`] says whether that failed.

mod advice;
mod cache;
mod change;
mod code;
mod fail;
mod mapping;
mod memory_file;
mod options;
mod reservation;
mod residency;
mod shared_memory;
mod support;

pub use advice::Freed;
pub use cache::{CacheStat, Restored, cache_stat, cached_ranges, dirty_ranges};
pub use change::{Refused, Resize};
pub use code::{CodeWriter, MmapCode};
pub use mapping::{Mapping, Mmap, MmapExec, MmapMut, MmapNone, MmapRaw, MmapRawRead};
pub use mapwright_sys::mmap::{
    Advice, Becomes, Copies, CopiesMut, Exec, Executes, GuardKind, Kind, MapAssumed, MapAssumedWith,
    NoAccess, NumaPolicy, Promise, Read, Sealed, Slices, SlicesMut, Stable, Volatile, VolatileExec,
    VolatileMut, Write,
};
pub use memory_file::{MemoryFile, SealedMemory};
pub use options::MmapOptions;
pub use reservation::Reservation;
pub use residency::Residency;
pub use shared_memory::{SharedMemory, SharedMemoryOptions};
pub use support::Support;
