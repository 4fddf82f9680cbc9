//! Shared memory with a plan: attached to by processes, each of which the others know to be alive or dead.
//!
//! A process is named by 30 bits: its place in the table of presences, and how often that place was taken before. What it holds
//! (a mutex, a slot, a role) bears its name. Whether it lives is asked of the table: the name's generation is the place's, and
//! the kernel has not marked the place.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mapwright_sys::shared::presence::{DIED, MOST, Presence, THREAD};
use mapwright_sys::shared::{Waiting, Words};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::plan::{MOST_PRESENCES, PRESENCES, PROCESSES, Place, Plan};
use crate::error::{Change, Error, Result};

/// Sleepers look again this often, so that a waker who is killed on its way costs no more than this.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a process whose death is marked is waited for until its last thread has ended.
const LAST_BREATH: Duration = Duration::from_millis(100);

const GENERATIONS: u32 = (1 << 22) - 1;
/// Bits of a word that a name fills.
pub(super) const NAME: u32 = (1 << 30) - 1;

/// Whether somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Alive: a word to watch, and what it is as long as that lasts.
    Here(Waiting),
    /// Gone, in order or not.
    Gone,
}

/// What an attached process shares with its objects.
#[derive(Debug)]
pub(super) struct Inner {
    /// Dropped first: it says good-bye in the words.
    presence: Presence,
    pub(super) plan: Plan,
    /// This process.
    pub(super) name: u32,
    fd: OwnedFd,
    path: String,
}

/// Shared memory that this process takes part in: mutexes, conditions and rings, by a [`Plan`].
///
/// Whoever dies, by SIGKILL too, is noticed by the others: see the [module](crate::sync).
///
/// # Threads and fork
/// `Send` and `Sync`, and so are its objects, which keep it attached. The first segment of a process starts a thread that
/// sleeps for ever, by which the kernel notices its death. In a child made by fork(2), what was attached before is the parent's,
/// and every call returns [`Invalid`](Error::Invalid): [`attach_again`](Self::attach_again) makes it a participant.
///
/// ```
/// use mapwright::mmap::SharedMemory;
/// use mapwright::sync::{Plan, Segment};
///
/// let mut plan = Plan::new(1);
/// let total = plan.mutex::<u64>();
/// let name = format!("/mapwright-doc-segment-{}", std::process::id());
/// let segment = Segment::attach(SharedMemory::create(&name, plan.len())?, &plan)?; // all do the same
/// let total = segment.get(total)?;
/// total.lock()?.repair(|total| *total = 0)?.update(|total| *total += 1)?;
/// SharedMemory::unlink(&name)?;
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Segment {
    inner: Arc<Inner>,
}

impl Segment {
    /// Attaches to shared memory: a [`SharedMemory`](crate::mmap::SharedMemory), a [`MemoryFile`](crate::mmap::MemoryFile), or any
    /// descriptor of a file that can be mapped for writing. Memory of zeros is made a segment of that plan; it does not matter who
    /// comes first.
    ///
    /// # Errors
    /// [`NotTrusted`](Error::NotTrusted) if the memory is shorter than the plan, holds something else, or was made for another
    /// plan; [`LimitReached`](Error::LimitReached) with 255 processes attached; [`ReadOnly`](Error::ReadOnly);
    /// [`Io`](Error::Io) from mmap(2).
    pub fn attach(memory: impl AsFd, plan: &Plan) -> Result<Self> {
        let fd = memory.as_fd();
        let path = path_of(fd);
        let failed = |operation, source| Error::io(operation, path.clone(), 0, plan.len(), source);
        let fd = fd.try_clone_to_owned().map_err(|error| failed("dup", error))?;
        let now = file_len(fd.as_fd()).map_err(|error| failed("stat", error))?;
        if now < plan.len() {
            let what = format!("it has {now} bytes, and the plan needs {}", plan.len());
            let remedy = "create it with the length of the plan: Plan::len";
            return Err(Error::NotTrusted { path, what, remedy });
        }
        let words =
            Words::map(fd.as_fd(), plan.len() as usize).map_err(|error| match error.raw_os_error() {
                Some(errno) if errno == Errno::ACCESS.raw_os_error() => {
                    Error::ReadOnly { path: path.clone() }
                }
                _ => failed("mmap", error),
            })?;
        agree(&words, plan, &path)?;
        let (presence, name) = enter(&Arc::new(words), &path)?;
        let inner = Inner { presence, plan: plan.clone(), name, fd, path };
        inner.check()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Attaches once more, as another participant: what a child made by fork(2) does, whose parent was attached.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_again(&self) -> Result<Self> {
        Self::attach(&self.inner.fd, &self.inner.plan)
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// An object, by its place in the plan.
    ///
    /// # Errors
    /// [`Invalid`](Error::Invalid) for a place of another plan.
    pub fn get<O: Object>(&self, place: Place<O>) -> Result<O> {
        if self.inner.plan.entry(place.index) != Some(&place.entry) {
            return Err(Error::invalid(
                format!("{}: a place of another plan", self.inner.path),
                "take places from the plan that the segment was attached with",
            ));
        }
        let at = self.inner.plan.first_object() + place.entry.at;
        Ok(O::found(Found { inner: Arc::clone(&self.inner), at, count: place.entry.count }))
    }
}

/// What a [`Segment`] can hold: [`Mutex`](super::Mutex), [`Condition`](super::Condition), [`Ring`](super::Ring),
/// [`RingOfMany`](super::RingOfMany).
pub trait Object: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn found(found: Found) -> Self;
}

pub(super) mod sealed {
    /// Keeps objects of other crates out.
    pub trait Sealed {}
}

/// An object's words.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) inner: Arc<Inner>,
    /// First word.
    pub(super) at: usize,
    /// Slots of a ring.
    pub(super) count: u32,
}

impl Inner {
    pub(super) fn words(&self) -> &Words {
        self.presence.words()
    }

    pub(super) fn path(&self) -> String {
        self.path.clone()
    }

    /// Fails in a child of fork, and where somebody has cut the memory.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        if self.presence.is_here() && !self.words().is_lost() { Ok(()) } else { Err(self.why_not()) }
    }

    /// Whether this process is the one that has attached.
    pub(super) fn is_here(&self) -> bool {
        self.presence.is_here()
    }

    #[cold]
    fn why_not(&self) -> Error {
        if !self.presence.is_here() {
            return Error::invalid(
                format!("{}: attached by the parent of this process", self.path),
                "attach again in a child made by fork: Segment::attach_again",
            );
        }
        let was = self.plan.len();
        match file_len(self.fd.as_fd()) {
            Ok(now) if now < was => {
                let change = Change::Truncated { was, now };
                Error::Changed { path: self.path(), offset: now, change }
            }
            // It was longer in between, or a page could not be had.
            _ => Error::io("read", self.path(), 0, was, Errno::IO.into()),
        }
    }

    /// The error for what nobody who keeps to the rules has written.
    #[cold]
    pub(super) fn garbled(&self, what: String) -> Error {
        let remedy = "find out who writes to it; unlink it, and let all attach to a new one";
        Error::NotTrusted { path: self.path(), what, remedy }
    }

    /// Whether somebody lives. Who is seen to have died has ended, when this returns, and all who watched it are awake.
    pub(super) fn life(&self, name: u32) -> Life {
        let (place, generation) = ((name & 0xff) as usize, name >> 8);
        if place == 0 || place > MOST_PRESENCES {
            return Life::Gone; // nobody's name
        }
        let word = PRESENCES + place - 1;
        let now = self.words().word(word).load(Ordering::SeqCst);
        if (now >> 32) as u32 & GENERATIONS != generation {
            return Life::Gone;
        }
        let low = now as u32;
        if low & THREAD != 0 {
            return Life::Here(Waiting { word, expected: low });
        }
        if low & DIED != 0 {
            bury(self.words(), place - 1, now);
        }
        Life::Gone
    }

    /// Sleeps while a word's low half is `expected` and who is waited for lives, until `deadline`, or less long. Whether there is
    /// time left.
    pub(super) fn sleep(
        &self,
        word: usize,
        expected: u32,
        on: Option<Waiting>,
        deadline: Option<Instant>,
    ) -> bool {
        let left = deadline.map_or(LOOK_AGAIN, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        self.words().wait(Waiting { word, expected }, on, left.min(LOOK_AGAIN));
        true
    }
}

/// Writes the plan into memory of zeros, or compares.
fn agree(words: &Words, plan: &Plan, path: &str) -> Result<()> {
    for (index, value, what) in plan.header() {
        let word = words.word(index);
        let found = match word.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => value,
            Err(found) => found,
        };
        if found != value {
            let what = match index {
                0 => format!("it begins with {found:#x}, and a segment with {value:#x}"),
                _ => format!("its {what} (word {index}) is {found:#x}, and the plan's {value:#x}"),
            };
            let remedy = "attach with the plan it was made with, or unlink it and make it anew";
            return Err(Error::NotTrusted { path: path.to_owned(), what, remedy });
        }
    }
    Ok(())
}

/// Takes a place in the table of presences.
fn enter(words: &Arc<Words>, path: &str) -> Result<(Presence, u32)> {
    let process = getpid().as_raw_nonzero().get() as u32;
    for step in 0..MOST_PRESENCES {
        // Not all at the same place: a name is good as long as its place was not taken four million times since.
        let place = (process as usize + step) % MOST_PRESENCES;
        let word = PRESENCES + place;
        let mut now = words.word(word).load(Ordering::SeqCst);
        if now as u32 & THREAD == 0 && now as u32 & DIED != 0 {
            bury(words, place, now);
            now = words.word(word).load(Ordering::SeqCst);
        }
        if now as u32 & THREAD != 0 {
            continue;
        }
        let generation = ((now >> 32) as u32).wrapping_add(1);
        let entered = Presence::enter(Arc::clone(words), word, now, generation)
            .map_err(|error| no_presence(path, error))?;
        if let Some(presence) = entered {
            words.word(PROCESSES + place).store(process.into(), Ordering::SeqCst);
            return Ok((presence, (generation & GENERATIONS) << 8 | (place as u32 + 1)));
        }
    }
    Err(Error::LimitReached {
        operation: "attach",
        path: path.to_owned(),
        limit: "processes attached to shared memory",
        value: MOST_PRESENCES as u64,
        remedy: "detach some by dropping their segments and objects, or make several segments",
        source: Arc::new(Errno::USERS.into()),
    })
}

/// The error for a process that can't be made known to live.
fn no_presence(path: &str, error: std::io::Error) -> Error {
    if error.raw_os_error() != Some(Errno::USERS.raw_os_error()) {
        return Error::io("start the thread that is known to live", path, 0, 0, error);
    }
    Error::LimitReached {
        operation: "attach",
        path: path.to_owned(),
        limit: "segments that a process is attached to",
        value: MOST.into(),
        remedy: "detach from some by dropping their segments and objects, or put more into one plan",
        source: Arc::new(error),
    }
}

/// What is done when a mark of the kernel's is found: everybody who watches it is woken, for the kernel has woken one; and the
/// process is waited for, because its other threads may end a little later than the one whose death is marked. Then the mark is
/// taken away, so that nobody waits for the process, or for another with its number, again.
#[cold]
fn bury(words: &Words, place: usize, marked: u64) {
    words.wake(PRESENCES + place, i32::MAX as u32);
    await_end(words, place);
    let gone = marked & !u64::from(u32::MAX);
    let _ = words.word(PRESENCES + place).compare_exchange(marked, gone, Ordering::SeqCst, Ordering::SeqCst);
}

fn await_end(words: &Words, place: usize) {
    let process = words.word(PROCESSES + place).load(Ordering::SeqCst);
    let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return };
    // If it is gone, fine. If it is somebody else's number by now, or another namespace's, the time is soon up.
    let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { return };
    let time = Timespec { tv_sec: 0, tv_nsec: i64::from(LAST_BREATH.subsec_nanos()) };
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&time));
}

fn file_len(fd: BorrowedFd<'_>) -> std::io::Result<u64> {
    Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0))
}

fn path_of(fd: BorrowedFd<'_>) -> String {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).map_or_else(|_| "shared memory".to_owned(), |path| path.display().to_string())
}
