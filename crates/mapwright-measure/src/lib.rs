//! What `mapwright compare` and the benchmarks measure with: files made for it, lists of pages, memory groups, the device's
//! read-ahead, child processes that do one round each, and the ways to reach the bytes of a file.
//!
//! What is measured, and what is said about it, is left to the two programs.

pub mod cgroup;
pub mod checksum;
pub mod child;
pub mod device;
pub mod failure;
pub mod histogram;
pub mod machine;
pub mod pages;
#[allow(unsafe_code)]
pub mod raw;
pub mod sample;
pub mod signals;
pub mod size;
pub mod ways;
pub mod work;
