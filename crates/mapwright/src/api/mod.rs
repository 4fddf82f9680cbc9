//! The public interface: maps, pagers, pins, options. It checks arguments and chooses the strategy; the work is the
//! engine's.

mod commit;
mod core;
mod explicit;
mod kernel_map;
mod machine;
mod map;
mod map_mut;
mod options;
mod pager;
mod pinned;
mod shared_map;
mod strategy;

pub use commit::{Durability, Snapshot};
pub use machine::{Machine, UserfaultFacts};
pub use map::Map;
pub use map_mut::{MapMut, Shared};
pub use options::MapOptions;
pub use pager::{Pager, PagerBuilder};
pub use pinned::{Held, Pinned};
pub use shared_map::SharedMapMut;
pub use strategy::{Choice, Strategy};
