//! What `mapwright run` must withstand: real programs, each without `run` as the control and with it under several limits. Both must end
//! alike, say the same and leave the same bytes in their files. The report tells whether a program was served: a run that served nothing would pass
//! all other tests.
//!
//! Needs programs that `./test` installs: fails in CI where one is missing, and says so loudly elsewhere. `trial` compares; the rest are
//! tests by the kind of program. `MAPWRIGHT_PROGRAMS=all` runs each at all limits, and more work.

#[path = "../common/mod.rs"]
mod common;

mod databases;
mod exerciser;
mod memmap2;
mod odd;
mod python;
mod tools;
mod trial;
