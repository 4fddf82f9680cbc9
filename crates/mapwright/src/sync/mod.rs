//! Working together in shared memory: mutexes, conditions, and rings of messages, whose users survive each other's death.
//!
//! A [`Plan`] says what the memory holds. Every process makes the same plan and attaches ([`Segment::attach`]): to named
//! [`SharedMemory`](crate::mmap::SharedMemory) if it is unrelated to the others, to a [`MemoryFile`](crate::mmap::MemoryFile) whose
//! descriptor it got, or again after fork.
//!
//! | object | what it does | when somebody dies |
//! | --- | --- | --- |
//! | [`Mutex`] | one process and thread at a time, and a value | the next one gets it, and is told: [`Locked::OwnerDied`] |
//! | [`Condition`] | waits for a change with a mutex unlocked | nothing |
//! | [`Ring`] | messages from one producer to one consumer | its role is free; [`PeerGone`](crate::Error::PeerGone) for who would wait |
//! | [`RingOfMany`] | messages from up to 64 producers to one consumer | the same; a message that was being written is skipped |
//!
//! ```
//! use mapwright::mmap::SharedMemory;
//! use mapwright::sync::{Plan, Segment};
//!
//! /// The same in every program that takes part.
//! fn plan() -> mapwright::Result<(Plan, mapwright::sync::Place<mapwright::sync::RingOfMany<u64>>)> {
//!     let mut plan = Plan::new(0x6c6f_6701);
//!     let events = plan.ring_of_many(1 << 10)?;
//!     Ok((plan, events))
//! }
//!
//! let name = format!("/mapwright-doc-sync-{}", std::process::id());
//! let (plan, events) = plan()?;
//! let segment = Segment::attach(SharedMemory::create(&name, plan.len())?, &plan)?;
//! let mut consumer = segment.get(events)?.consumer()?;
//! // In another process: the same, and
//! segment.get(events)?.producer()?.send(&42)?;
//! assert_eq!(consumer.receive()?, 42);
//! SharedMemory::unlink(&name)?;
//! # Ok::<(), mapwright::Error>(())
//! ```
//!
//! # What is promised
//! - **Death.** However a process dies, SIGKILL and exec included, the kernel marks its presence in the segment, and who waits for it
//!   is woken (at once since Linux 5.16, within a tenth of a second before). A *thread* that ends while its process lives on
//!   has its guards dropped like any other value; a guard that was forgotten is held until the process ends.
//! - **Scribbling.** Whoever may write to the memory may break what is agreed on in it: let two hold a mutex, lose messages,
//!   make others wait for ever. It can't make this process do anything undefined: no pointer, offset or length is ever read from
//!   the memory, values are copied, and every pattern of bytes is a value of its type ([`Plain`]). What can't be is
//!   [`NotTrusted`](crate::Error::NotTrusted).
//! - **Truncation.** Memory that somebody cuts is [`Changed`](crate::Error::Changed), not SIGBUS. That is for good: attach anew.
//!   In a thread that blocks SIGBUS it ends the process.
//! - **Namespaces.** Processes in different PID namespaces, such as containers, can share a segment.
//! - **Time.** A mutex that several wait for goes to whoever comes first after it is free.
//!
//! A process counts as attached, and what it holds as held, until the last segment and object of it are dropped. Decision
//! 0012 has why these are not the C library's mutexes.

mod mutex;
mod plan;
mod ring;
mod segment;
#[cfg(test)]
mod tests;

pub use mutex::{Condition, Locked, Mutex, MutexGuard, OrphanGuard};
pub use plan::{Place, Plain, Plan};
pub use ring::{Consumer, Producer, Ring, RingOfMany};
pub use segment::{Object, Segment};
