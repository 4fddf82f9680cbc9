//! A mutex with a value, and a condition to wait for.
//!
//! The mutex is one word, changed by compare-and-swap alone. Low half: who holds it, and whether somebody sleeps. High half: what
//! its value is worth.
//!
//! | state | low half | high half | next |
//! | --- | --- | --- | --- |
//! | free | 0 | sound or abandoned | held, by [`Mutex::lock`] |
//! | held | a name, [`SLEEPERS`] | the same | free, by a guard's drop; held by another, once the name's owner is dead: abandoned |
//! | not recoverable | 0 | [`NOT_RECOVERABLE`] | never another |
//!
//! Whoever dies on its way leaves one of these. Between the word's becoming free and the call that wakes a sleeper a death loses the
//! wake: sleepers watch the presence of the last holder besides, and look again every now and then.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::plan::Plain;
use super::segment::{Found, Life, NAME, Object, sealed};
use crate::error::{Error, Result};

/// Bit of the low half: somebody sleeps, or may.
pub(super) const SLEEPERS: u32 = 1 << 31;
const SOUND: u32 = 0;
const ABANDONED: u32 = 1;
const NOT_RECOVERABLE: u32 = 2;
/// Looks at a held mutex before sleeping.
const SPINS: u32 = 100;

/// A mutex between processes, with a value of type `T`, zeros at first.
///
/// The value is copied out and in: whoever has the memory can write to it, mutex or not, so there is no reference to it. If the
/// holder dies or panics, the next to lock it is told ([`Locked::OwnerDied`]), and says when the value is right again.
///
/// A thread that locks it twice waits for itself. A guard that is forgotten is held until the process detaches or ends.
///
/// # Threads and fork
/// `Send` and `Sync`. For fork, see [`Segment`](super::Segment); a guard that a child inherits is the parent's.
///
/// ```
/// use mapwright::mmap::MemoryFile;
/// use mapwright::sync::{Locked, Plan, Segment};
///
/// let mut plan = Plan::new(1);
/// let place = plan.mutex::<[u64; 2]>(); // two balances, whose sum stays the same
/// let segment = Segment::attach(MemoryFile::create("balances", plan.len())?, &plan)?;
/// let balances = segment.get(place)?;
/// let mut guard = match balances.lock()? {
///     Locked::Sound(guard) => guard,
///     Locked::OwnerDied(mut guard) => {
///         guard.set(&[0, 0])?; // somebody died in the middle: make it right
///         guard.mark_consistent()
///     }
/// };
/// guard.update(|[from, to]| (*from, *to) = (from.wrapping_sub(1), to.wrapping_add(1)))?;
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct Mutex<T> {
    pub(super) found: Found,
    value: PhantomData<fn() -> T>,
}

impl<T: Plain> sealed::Sealed for Mutex<T> {}

impl<T: Plain> Object for Mutex<T> {
    fn found(found: Found) -> Self {
        Self { found, value: PhantomData }
    }
}

/// A mutex that was locked, and in what state its value is.
#[derive(Debug)]
#[must_use = "it is unlocked at once otherwise"]
pub enum Locked<'m, T: Plain> {
    /// Its last holder has unlocked it.
    Sound(MutexGuard<'m, T>),
    /// Its last holder has died or panicked with it, and nobody has said since that the value is right.
    OwnerDied(OrphanGuard<'m, T>),
}

impl<'m, T: Plain> Locked<'m, T> {
    /// The guard. If the owner has died, `repair` makes the value right first; it gets the value as it was left.
    ///
    /// # Errors
    /// As for [`MutexGuard::get`].
    pub fn repair(self, repair: impl FnOnce(&mut T)) -> Result<MutexGuard<'m, T>> {
        match self {
            Self::Sound(guard) => Ok(guard),
            Self::OwnerDied(mut guard) => {
                guard.update(repair)?;
                Ok(guard.mark_consistent())
            }
        }
    }

    /// Whether the owner has died.
    pub fn is_orphaned(&self) -> bool {
        matches!(self, Self::OwnerDied(_))
    }
}

impl<T: Plain> Mutex<T> {
    /// Locks it, and waits as long as that takes.
    ///
    /// # Errors
    /// [`NotRecoverable`](Error::NotRecoverable) if somebody has given its value up; [`Changed`](Error::Changed) if the memory
    /// was cut; [`Invalid`](Error::Invalid) in a child made by fork.
    #[inline]
    pub fn lock(&self) -> Result<Locked<'_, T>> {
        if let Some(locked) = self.lock_at_once()? {
            return Ok(locked);
        }
        loop {
            if let Some(locked) = self.lock_slowly(None)? {
                return Ok(locked);
            }
        }
    }

    /// Locks it if nobody else holds it.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    pub fn try_lock(&self) -> Result<Option<Locked<'_, T>>> {
        match self.lock_at_once()? {
            Some(locked) => Ok(Some(locked)),
            None => self.lock_slowly(Some(Instant::now())),
        }
    }

    /// Locks it, and waits for at most `timeout`.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    pub fn lock_timeout(&self, timeout: Duration) -> Result<Option<Locked<'_, T>>> {
        match self.lock_at_once()? {
            Some(locked) => Ok(Some(locked)),
            // A time that never comes is no deadline.
            None => self.lock_slowly(Instant::now().checked_add(timeout)),
        }
    }

    #[inline]
    fn lock_at_once(&self) -> Result<Option<Locked<'_, T>>> {
        self.found.inner.check()?;
        let free = join(SOUND, 0);
        let mine = join(SOUND, self.found.inner.name);
        let word = self.found.inner.words().word(self.found.at);
        let locked = word.compare_exchange(free, mine, Ordering::Acquire, Ordering::Relaxed).is_ok();
        Ok(locked.then(|| Locked::Sound(MutexGuard::new(self))))
    }

    #[cold]
    fn lock_slowly(&self, deadline: Option<Instant>) -> Result<Option<Locked<'_, T>>> {
        let Found { inner, at, .. } = &self.found;
        let word = inner.words().word(*at);
        // Who has slept does not know whether others do.
        let mut sleepers = 0;
        let mut spins = if deadline.is_some_and(|deadline| deadline <= Instant::now()) { 0 } else { SPINS };
        loop {
            inner.check()?;
            let now = word.load(Ordering::Acquire);
            let (worth, low) = split(now);
            if worth == NOT_RECOVERABLE {
                return Err(Error::NotRecoverable { path: inner.path() });
            }
            let on = match low & NAME {
                0 => None,
                holder if spins > 0 => {
                    let _ = holder;
                    spins -= 1;
                    std::hint::spin_loop();
                    continue;
                }
                holder => Some(inner.life(holder)),
            };
            let Some(Life::Here(on)) = on else {
                let worth = if on.is_none() { worth } else { ABANDONED };
                let mine = join(worth, inner.name | sleepers | low & SLEEPERS);
                if word.compare_exchange(now, mine, Ordering::Acquire, Ordering::Relaxed).is_err() {
                    continue;
                }
                let guard = MutexGuard::new(self);
                return Ok(Some(match worth {
                    SOUND => Locked::Sound(guard),
                    _ => Locked::OwnerDied(OrphanGuard { guard }),
                }));
            };
            let told = join(worth, low | SLEEPERS);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // The wake that came for this one may have been all that was left of another sleeper: the holder is to wake that one.
                let owes_a_wake = sleepers != 0 && low & SLEEPERS == 0;
                if owes_a_wake
                    && word.compare_exchange(now, told, Ordering::Relaxed, Ordering::Relaxed).is_err()
                {
                    continue;
                }
                return Ok(None);
            }
            if word.compare_exchange(now, told, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                sleepers = SLEEPERS;
                inner.sleep(*at, low | SLEEPERS, Some(on), deadline);
            }
        }
    }

    /// Unlocks it, if this process holds it. Whether it did.
    #[inline]
    fn unlock(&self, worth: u32) -> bool {
        let Found { inner, at, .. } = &self.found;
        if !inner.is_here() {
            return true; // inherited by a child: the parent unlocks it
        }
        let word = inner.words().word(*at);
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let (_, low) = split(now);
            if low & NAME != inner.name {
                return false;
            }
            match word.compare_exchange_weak(now, join(worth, 0), Ordering::Release, Ordering::Relaxed) {
                Ok(_) if low & SLEEPERS == 0 => return true,
                Ok(_) => {
                    inner.words().wake(*at, if worth == NOT_RECOVERABLE { i32::MAX as u32 } else { 1 });
                    return true;
                }
                Err(other) => now = other,
            }
        }
    }
}

/// A mutex that this process holds; dropping it unlocks. Dropped while its thread panics, it leaves the value for the next holder to
/// make right, as a death does.
pub struct MutexGuard<'m, T: Plain> {
    mutex: &'m Mutex<T>,
    /// What the value is worth when the guard is dropped in the ordinary way.
    worth: u32,
    was_panicking: bool,
    /// Guards stay in their thread, as those of other mutexes do.
    here: PhantomData<*const ()>,
}

impl<'m, T: Plain> MutexGuard<'m, T> {
    #[inline]
    fn new(mutex: &'m Mutex<T>) -> Self {
        Self { mutex, worth: SOUND, was_panicking: std::thread::panicking(), here: PhantomData }
    }

    /// A copy of the value.
    ///
    /// # Errors
    /// [`Changed`](Error::Changed) if the memory was cut; [`Invalid`](Error::Invalid) in a child made by fork.
    pub fn get(&self) -> Result<T> {
        let Found { inner, at, .. } = &self.mutex.found;
        let mut value = T::new_zeroed();
        inner.words().load(at + 1, value.as_mut_bytes());
        inner.check()?;
        Ok(value)
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// As for [`get`](Self::get); nobody sees it then.
    pub fn set(&mut self, value: &T) -> Result<()> {
        let Found { inner, at, .. } = &self.mutex.found;
        inner.check()?;
        inner.words().store(at + 1, value.as_bytes());
        inner.check()
    }

    /// Changes the value: a copy is changed, and copied back.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub fn update<R>(&mut self, change: impl FnOnce(&mut T) -> R) -> Result<R> {
        let mut value = self.get()?;
        let result = change(&mut value);
        self.set(&value)?;
        Ok(result)
    }

    /// Unlocks it, and says whether it was held all the time.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) if the memory says that somebody else holds it, which nobody does who keeps to the rules.
    pub fn unlock(self) -> Result<()> {
        let guard = std::mem::ManuallyDrop::new(self);
        if guard.mutex.unlock(guard.worth) {
            return Ok(());
        }
        Err(guard.mutex.found.inner.garbled("a mutex that is held here is somebody else's".to_owned()))
    }
}

impl<T: Plain> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let has_panicked = !self.was_panicking && std::thread::panicking();
        // Of a mutex that is no longer its own there is nothing to be unlocked.
        let _ = self.mutex.unlock(if has_panicked { ABANDONED } else { self.worth });
    }
}

impl<T: Plain> std::fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MutexGuard").field("worth", &self.worth).finish_non_exhaustive()
    }
}

/// A mutex that this process holds, whose last holder has died or panicked with it. Make the value right, then
/// [say so](Self::mark_consistent). Dropped without that, it makes the mutex not recoverable, for everybody and for good.
#[derive(Debug)]
pub struct OrphanGuard<'m, T: Plain> {
    guard: MutexGuard<'m, T>,
}

impl<'m, T: Plain> OrphanGuard<'m, T> {
    /// The value is right: the next holder finds an ordinary mutex.
    pub fn mark_consistent(self) -> MutexGuard<'m, T> {
        let mutex = self.guard.mutex;
        std::mem::forget(self); // held on by the other guard
        MutexGuard::new(mutex)
    }
}

impl<'m, T: Plain> Deref for OrphanGuard<'m, T> {
    type Target = MutexGuard<'m, T>;
    fn deref(&self) -> &Self::Target {
        &self.guard
    }
}

impl<T: Plain> DerefMut for OrphanGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.guard
    }
}

impl<T: Plain> Drop for OrphanGuard<'_, T> {
    fn drop(&mut self) {
        self.guard.worth = NOT_RECOVERABLE;
    }
}

/// Something to wait for with a [`Mutex`] unlocked: that what it protects has changed.
///
/// A process that dies while it waits takes nothing with it but a notification that was meant for it; one that dies while it
/// notifies may have done so or not. Where that matters, wait with a time-out and look.
///
/// # Threads and fork
/// `Send` and `Sync`; for fork, see [`Segment`](super::Segment).
///
/// ```
/// use mapwright::mmap::MemoryFile;
/// use mapwright::sync::{Plan, Segment};
///
/// let mut plan = Plan::new(1);
/// let (ready, changed) = (plan.mutex::<u32>(), plan.condition());
/// let segment = Segment::attach(MemoryFile::create("ready", plan.len())?, &plan)?;
/// let (ready, changed) = (segment.get(ready)?, segment.get(changed)?);
/// std::thread::scope(|scope| {
///     scope.spawn(|| { // as well another process
///         ready.lock()?.repair(|_| ())?.set(&1)?;
///         changed.notify_all()
///     });
///     let guard = ready.lock()?.repair(|_| ())?;
///     let guard = changed.wait_while(guard, |ready| *ready == 0)?.repair(|_| ())?;
///     assert_eq!(guard.get()?, 1);
///     Ok::<(), mapwright::Error>(())
/// })?;
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Debug)]
pub struct Condition {
    pub(super) found: Found,
}

impl sealed::Sealed for Condition {}

impl Object for Condition {
    fn found(found: Found) -> Self {
        Self { found }
    }
}

impl Condition {
    /// Unlocks the mutex, waits to be notified, and locks it again. It may return without a notification: look whether what is
    /// waited for is the case, or let [`wait_while`](Self::wait_while) do that.
    ///
    /// # Errors
    /// As for [`Mutex::lock`]; the mutex is unlocked then.
    pub fn wait<'m, T: Plain>(&self, guard: MutexGuard<'m, T>) -> Result<Locked<'m, T>> {
        self.wait_until(guard, None).map(|(locked, _)| locked)
    }

    /// As [`wait`](Self::wait), for at most `timeout`, besides the time to lock. Whether the time is up is the second value.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn wait_timeout<'m, T: Plain>(
        &self,
        guard: MutexGuard<'m, T>,
        timeout: Duration,
    ) -> Result<(Locked<'m, T>, bool)> {
        self.wait_until(guard, Instant::now().checked_add(timeout))
    }

    /// Waits while `is_so` says of the value that there is something to wait for. Returns early with
    /// [`OwnerDied`](Locked::OwnerDied), whatever the value is.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn wait_while<'m, T: Plain>(
        &self,
        mut guard: MutexGuard<'m, T>,
        mut is_so: impl FnMut(&T) -> bool,
    ) -> Result<Locked<'m, T>> {
        while is_so(&guard.get()?) {
            match self.wait(guard)? {
                Locked::Sound(again) => guard = again,
                orphaned => return Ok(orphaned),
            }
        }
        Ok(Locked::Sound(guard))
    }

    fn wait_until<'m, T: Plain>(
        &self,
        guard: MutexGuard<'m, T>,
        deadline: Option<Instant>,
    ) -> Result<(Locked<'m, T>, bool)> {
        let Found { inner, at, .. } = &self.found;
        inner.check()?;
        let mutex = guard.mutex;
        let before = inner.words().word(*at).load(Ordering::SeqCst) as u32;
        guard.unlock()?;
        let mut is_late = false;
        while !is_late && inner.words().word(*at).load(Ordering::SeqCst) as u32 == before {
            inner.check()?;
            is_late = !inner.sleep(*at, before, None, deadline);
        }
        Ok((mutex.lock()?, is_late))
    }

    /// Wakes one who waits, if any.
    ///
    /// # Errors
    /// [`Changed`](Error::Changed) if the memory was cut; [`Invalid`](Error::Invalid) in a child made by fork.
    pub fn notify_one(&self) -> Result<()> {
        self.notify(1)
    }

    /// Wakes all who wait.
    ///
    /// # Errors
    /// As for [`notify_one`](Self::notify_one).
    pub fn notify_all(&self) -> Result<()> {
        self.notify(i32::MAX as u32)
    }

    fn notify(&self, count: u32) -> Result<()> {
        let Found { inner, at, .. } = &self.found;
        inner.check()?;
        inner.words().word(*at).fetch_add(1, Ordering::SeqCst);
        inner.words().wake(*at, count);
        Ok(())
    }
}

/// High and low half.
fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
