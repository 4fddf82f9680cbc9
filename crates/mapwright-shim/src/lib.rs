//! The shim of `mapwright run`: a shared object that is preloaded into programs and takes the place of some calls of the C library.
//!
//! Mappings of regular files, for reading, private, or by a program that has the file alone, are served by the pager server that `run` has started; everything
//! else goes to the kernel as it came. What happens to a served map that can't be served right makes it the kernel's first, at the same address and in one step:
//! see `mapwright::guest`. docs/run.md says what is covered and what is not.
//!
//! | file | what it does |
//! | --- | --- |
//! | `calls` | the functions that take the place of the C library's |
//! | `descriptors` | the same, of calls that read and write by descriptors: what is served for writing is given back first |
//! | `sharing` | the same, of calls that hand descriptors to other processes |
//! | `written` | which files are served for writing, and which never are; `tables` is what it keeps them in |
//! | `serve` | decides what is served, finds what was, gives it back |
//! | `journey` | what `run` reports: lines in a file in memory |
//! | `last` | the end of programs whose first thread ends before others |
//! | `beneath` | the calls below: the kernel's, and those of the C library that were replaced. All unsafe code is there |
//!
//! # Rules
//! These functions are called from inside of allocators, from signal handlers, before the program's constructors have run, and in children
//! between fork and exec. So:
//! 1. What is not about a served map, and is no new mapping of a file, takes no lock and allocates nothing: the table of served maps is read
//!    without either.
//! 2. No lock is held over a call that could touch served memory, or that waits for the server.
//! 3. errno is the program's: what goes on here in between leaves it as it was. Signals wait meanwhile, and so does the end of a thread that is cancelled.
//! 4. A child of fork(2) has none of the parent's threads: it begins anew, with what `State` of its own it makes then.
//! 5. Descriptors of the shim are high, and can't be closed by the program.

mod beneath;
#[macro_use]
mod calls;
mod descriptors;
mod journey;
mod last;
mod serve;
mod sharing;
mod tables;
mod written;
