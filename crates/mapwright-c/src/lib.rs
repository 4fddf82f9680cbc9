//! mapwright for C: `libmapwright`, whose header is `include/mapwright.h`.
//!
//! Rust programs use the crate `mapwright`; nothing of this one is for them. Each file has the entries of one group of the header, which
//! cbindgen makes of their signatures and comments: a test compares (`tests/header.rs`), `cargo xtask header` writes it anew.
//!
//! Rules: (1) every entry runs inside a guard of `error.rs`, so that no panic crosses the boundary; (2) unsafe code is in `pointers.rs`
//! alone, where addresses from C become slices and strings; elsewhere the word stands only in `#[unsafe(no_mangle)]`; (3) handles are
//! numbers, looked up in `handles.rs`; (4) no lock is held while C code runs that could wait for it.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("handles are numbers of 64 bits in the place of pointers");

mod cache;
mod commit;
mod error;
mod handles;
mod map;
mod mapping;
mod options;
mod pager;
mod pins;
mod pointers;
mod shaped;
mod shared;
mod stats;
mod version;
mod views;
