//! The pager's engine. Not part of the public interface: the simulator uses it.

mod ghost;
pub mod kernel;
pub mod policy;
pub mod read_ahead;
