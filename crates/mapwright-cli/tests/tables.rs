//! The shim's tables by themselves, with the tests that stand there: the shim is no crate whose tests could run, because they would have its
//! functions for those of their own C library.

#[path = "../../mapwright-shim/src/tables.rs"]
mod tables;
