//! The unsafe half of mapwright.
//!
//! Every `unsafe` block of the engine's path to the kernel lives in this crate, behind functions that are safe to call or
//! that state what the caller must hold. It knows system calls, addresses and buffers; it knows nothing of files, blocks,
//! budgets or mappings: that is `mapwright`.
//!
//! The rule on aliasing, which the rest relies on: memory that user code may see through a slice is never turned into a
//! Rust reference here. It is reached by system calls (`pread`, `pwrite` of the memfd) or by raw copies.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("mapwright runs on 64-bit Linux only");

pub mod buffer;
pub mod file;
pub mod ring;
#[doc(hidden)]
pub mod testing;

/// Bytes in a page: the unit of dirt, protection and mapping.
pub const PAGE_SIZE: usize = 4096;
