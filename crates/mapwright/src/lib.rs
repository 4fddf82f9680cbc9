//! Memory-mapped files in user space.
//!
//! mapwright maps files through a page cache of its own: a program gets a slice, and behind it a pager reads pages as they
//! are touched, keeps them within a hard budget, detects the access pattern, tracks what is written and writes it back when
//! told. Errors are values where the kernel's mmap(2) has SIGBUS.
//!
//! ```
//! use mapwright::{Map, MapOptions, Pager};
//!
//! # let path = std::env::temp_dir().join(format!("mapwright-lib-{}", std::process::id()));
//! # std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
//! let pager = Pager::builder().budget(64 << 20).build()?;
//! let map = MapOptions::new().pager(&pager).open(&path)?;
//! let sum: u64 = map.iter().map(|byte| u64::from(*byte)).sum(); // a slice: faults are served
//! let pages = map.get_many(&[0..64, 8192..8256])?;              // explicit: one submission, errors are values
//! println!("{sum} {:?} by {}", &pages[1][..4], map.strategy());
//! # drop(pages); drop(map); std::fs::remove_file(&path).unwrap();
//! # Ok::<(), mapwright::Error>(())
//! ```
//!
//! # Before you rely on it
//! - **Death.** A killed program loses what it has not flushed. With the kernel's mmap stores survive the program. With
//!   [`Durability::Atomic`], a crash of any kind leaves exactly what the last [`MapMut::commit`] left.
//! - **Fork.** A pager's mappings and threads are not there in the child.
//! - **System calls.** With [`FaultMode::InThread`], or an unprivileged userfaultfd, a system call handed a pointer to an
//!   absent page gets EFAULT. Hand it bytes from [`Map::get`].
//! - **Containers.** Default seccomp profiles refuse userfaultfd(2): [`Strategy::Auto`] then takes the kernel's mmap, and
//!   [`Map::strategy`] says so. `mapwright doctor` names the remedy.
//! - **SIGBUS.** A program that installs a SIGBUS handler after opening a map must call the previous one.

#![forbid(unsafe_code)]

pub mod alloc;
mod api;
mod error;

#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod locks;
pub mod mmap;
mod remote;
mod runs;
pub mod stores;
#[cfg(feature = "zerocopy")]
pub mod sync;
#[cfg(feature = "zerocopy")]
mod typed;

pub use api::{
    Choice, Durability, Held, Machine, Map, MapMut, MapOptions, Pager, PagerBuilder, Pinned, Shared,
    SharedMapMut, Snapshot, Strategy, UserfaultFacts,
};
pub use engine::kernel::{FaultMode, FrameKind};
pub use engine::read_ahead::Advice;
pub use engine::stats::{FaultTimes, FileStats, Stats};
pub use error::{Change, Error, Result, ViewProblem};
pub use journal::JournalError;
pub use remote::Server;
#[doc(hidden)]
pub use remote::guest;
#[cfg(feature = "zerocopy")]
pub use typed::{MapVec, Views, ViewsMut};

/// The programs of the README run as tests.
#[cfg(all(doctest, feature = "zerocopy"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// So do those of the page about memmap2.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/migrating.md")]
struct Migrating;
