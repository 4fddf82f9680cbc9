//! Memory-mapped files in user space.

#![forbid(unsafe_code)]

mod error;

#[doc(hidden)]
pub mod engine;
pub mod stores;

pub use error::{Change, Error, Result};
