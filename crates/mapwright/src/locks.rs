//! The locks of the engine and of the journal, and their order.
//!
//! | lock | may be held when it is taken | may be taken while it is held |
//! | --- | --- | --- |
//! | the policy | none | the files |
//! | the files of an engine | the policy | none |
//! | every other | none | none |
//!
//! None is held over a call into the kernel trait or a store, nor while a slice is touched. So a fault, whose service may run
//! in a signal handler of the thread that touched, never meets a lock that its own thread holds; and no cycle of threads can
//! wait for each other's locks.
//!
//! With debug assertions each thread keeps count of what it holds: taking a lock out of order panics, and the simulator asks
//! [`none_held`] at every call that the engine makes and at every touch.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(debug_assertions)]
thread_local!(static HELD: std::cell::Cell<u8> = const { std::cell::Cell::new(0) });

/// A lock's place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Rank {
    Policy = 1,
    Files = 1 << 1,
    Other = 1 << 2,
}

/// Notes that a lock is held, until it is dropped.
struct Note(#[cfg(debug_assertions)] Rank);

impl Note {
    #[cfg(debug_assertions)]
    fn take(rank: Rank) -> Self {
        let held = HELD.get();
        let may_be_held = if rank == Rank::Files { Rank::Policy as u8 } else { 0 };
        assert!(held & !may_be_held == 0, "a lock ({rank:?}) is taken while another ({held:#b}) is held");
        HELD.set(held | rank as u8);
        Self(rank)
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    fn take(_: Rank) -> Self {
        Self()
    }
}

#[cfg(debug_assertions)]
impl Drop for Note {
    fn drop(&mut self) {
        HELD.set(HELD.get() & !(self.0 as u8));
    }
}

/// Whether the calling thread holds no lock of any engine. Always `true` without debug assertions.
pub fn none_held() -> bool {
    #[cfg(debug_assertions)]
    return HELD.get() == 0;
    #[cfg(not(debug_assertions))]
    return true;
}

/// A lock that is held.
pub(crate) struct Held<G> {
    // First: the note outlives the guard.
    guard: G,
    _note: Note,
}

impl<G: Deref> Deref for Held<G> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Held<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// Locks, also after a panic of another holder: every critical section leaves its data consistent at each step.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Held<MutexGuard<'_, T>> {
    lock_as(Rank::Other, mutex)
}

/// As [`lock`], for a policy.
pub(crate) fn lock_policy<T>(mutex: &Mutex<T>) -> Held<MutexGuard<'_, T>> {
    lock_as(Rank::Policy, mutex)
}

#[inline]
fn lock_as<T>(rank: Rank, mutex: &Mutex<T>) -> Held<MutexGuard<'_, T>> {
    let note = Note::take(rank);
    Held { guard: mutex.lock().unwrap_or_else(PoisonError::into_inner), _note: note }
}

/// As [`lock`], for the files of an engine, to look.
pub(crate) fn read_files<T>(files: &RwLock<T>) -> Held<RwLockReadGuard<'_, T>> {
    let note = Note::take(Rank::Files);
    Held { guard: files.read().unwrap_or_else(PoisonError::into_inner), _note: note }
}

/// As [`lock`], for the files of an engine, to change them.
pub(crate) fn write_files<T>(files: &RwLock<T>) -> Held<RwLockWriteGuard<'_, T>> {
    let note = Note::take(Rank::Files);
    Held { guard: files.write().unwrap_or_else(PoisonError::into_inner), _note: note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "the order is checked with debug assertions")]
    fn the_order_is_kept() {
        let (policy, files, other, second) = (Mutex::new(1), RwLock::new(2), Mutex::new(3), Mutex::new(4));
        let fails = |work: &dyn Fn()| {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            caught.is_err_and(|panic| panic.downcast_ref::<String>().unwrap().contains("is taken while"))
        };
        {
            let held = lock_policy(&policy);
            assert_eq!(*read_files(&files) + *held, 3);
            assert!(!none_held());
            assert!(fails(&|| drop(lock(&other))), "the policy is no lock for others to follow");
        }
        {
            let mut held = write_files(&files);
            *held += 1;
            assert!(fails(&|| drop(lock_policy(&policy))), "the other way round");
        }
        let held = lock(&other);
        assert!(fails(&|| drop(lock(&second))));
        assert!(fails(&|| drop(read_files(&files))));
        drop(held);
        assert!(none_held());
        assert_eq!(*read_files(&files), 3);
    }
}
