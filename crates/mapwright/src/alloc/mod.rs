//! Allocators on mappings: large allocations that the system has back as soon as they are freed, and such that outgrow memory.
//!
//! | allocator | for | large allocations are |
//! | --- | --- | --- |
//! | [`MappedAlloc`] | the whole program, or a collection | mappings of their own |
//! | `SpillAlloc` (with the feature `allocator-api2`) | a collection | files without a name, paged under the budget of a [`Pager`](crate::Pager) |
//!
//! ```
//! use mapwright::alloc::MappedAlloc;
//!
//! #[global_allocator]
//! static ALLOCATOR: MappedAlloc = MappedAlloc::new().threshold(256 << 10);
//!
//! let mut large = vec![0_u8; 1 << 30]; // no page of it is there yet
//! large[1 << 29] = 1; // now one is
//! large.resize(2 << 30, 0); // nothing is copied but what is written
//! drop(large); // now the system has it back
//! ```
//!
//! To find who writes past the end of a buffer, guard all of them of a page and more:
//!
//! ```
//! use mapwright::alloc::MappedAlloc;
//!
//! #[global_allocator]
//! static ALLOCATOR: MappedAlloc = MappedAlloc::new().threshold(4096).guard_pages(true);
//!
//! let bytes = vec![1_u8; 5000].into_boxed_slice();
//! assert_eq!(bytes.as_ptr_range().end as usize % 4096, 0); // the next byte is out of reach
//! ```
//!
//! With the feature `allocator-api2` both are `Allocator`s of the crate of that name, which mirrors the trait that the
//! standard library has on the nightly toolchain; hashbrown and bumpalo take it too.

#[cfg(feature = "allocator-api2")]
mod scratch;
#[cfg(feature = "allocator-api2")]
mod spill;

pub use mapwright_sys::alloc::MappedAlloc;
#[cfg(feature = "allocator-api2")]
pub use spill::{Spill, SpillAlloc, SpillOptions, SpilledMemory};
