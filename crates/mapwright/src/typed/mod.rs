//! Mapped bytes as values: views of them where they lie, copies, and a vector on a file.
//!
//! Which types bytes may be is what the traits of `zerocopy` say. A view is checked for its bounds and its alignment, each time.

mod map_vec;
mod views;

pub use map_vec::MapVec;
pub use views::{Views, ViewsMut};
