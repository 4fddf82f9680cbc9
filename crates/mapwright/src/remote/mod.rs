//! One pager for many processes: a server that holds the cache, and clients that map its frames.
//!
//! The server is an ordinary [`Pager`](crate::Pager) with its engine, budget and policy; a client's mapping is one more view of
//! a file's frames ([`View::Remote`](crate::engine::kernel::View)). What is said between the two is in docs/server-protocol.md,
//! why it is so in docs/decisions/0013-server.md.
//!
//! | file | side | what it does |
//! | --- | --- | --- |
//! | `protocol` | both | messages to bytes and back |
//! | `wire` | both | messages and descriptors over a socket |
//! | `server` | server | listens, starts sessions, shares limits out |
//! | `session` | server | one client: its requests and its faults |
//! | `unread` | server | what a client has not read yet |
//! | `lease` | server | a file that a client has opened: views, pins |
//! | `book` | server | what is taken note of for a report |
//! | `kernel_lease` | server | keeps out those who write a file, until it is shown nowhere any more |
//! | `kept` | server | files that programs have left, for the next ones |
//! | `connection` | client | the socket, calls, and what to do when the server is gone |
//! | `served` | client | a mapped file |
//! | `opening` | server | how a file is opened for a client |
//! | `own_file` | server | the file of a program that has it alone, as a store |
//! | `guest` | client | a map of a program that knows of no pager |
//!
//! # Locks
//! Each lock here is taken alone, but that of files that are kept, under which leases are looked at; and none is held over a call into the engine, but for `ending` of a lease of the kernel's, and that of a view ([`lease::View`]): who
//! shows pages there holds it, so that the client may rely on nothing being shown any more once the view is closed. And files are
//! opened for writing one at a time.

mod book;
pub(crate) mod connection;
pub mod guest;
mod kept;
mod kernel_lease;
mod lease;
mod opening;
mod own_file;
pub(crate) mod protocol;
pub(crate) mod served;
pub(crate) mod server;
mod session;
#[cfg(test)]
mod tests;
mod threads;
mod unread;
mod wire;

pub(crate) use protocol::Access;
pub use server::Server;
