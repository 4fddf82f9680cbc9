//! Allocators: the traits for them are unsafe to implement, so that they are implemented here.
//!
//! | allocator | an allocation is | state of its own |
//! | --- | --- | --- |
//! | [`MappedAlloc`] | a mapping of its own, from some size on; the system allocator's below | none |
//! | `OwnedAlloc` | memory that somebody else makes and keeps, one owner each | a table of the owners |

mod mapped;
#[cfg(feature = "allocator-api2")]
mod owned;

pub use mapped::MappedAlloc;
#[cfg(feature = "allocator-api2")]
pub use owned::{Backing, OwnedAlloc};
