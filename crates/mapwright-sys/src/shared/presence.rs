//! Being known to be alive: a word of shared memory that the kernel marks when this process dies, however it dies.
//!
//! The kernel does that by the list of robust futexes (set_robust_list(2)), of which each thread has one, and which the C library
//! has taken for its mutexes. So there is one thread whose list is ours: it does nothing but sleep, and holds no mutex of the C
//! library's. It is a thread of the process, and ends with it and never before.
//!
//! The kernel looks for a futex at a fixed distance from each link of the list. The links lie in a private page just below the
//! mapping of [`Words`], so that nobody else can turn them: who shares the memory reaches the marked word alone.
//!
//! Invariants: (1) at any moment the list leads from `first` over links back to `first`; a link is linked before it is reachable and
//! unreachable before it is changed. (2) A link that is not in the list is 0. (3) A word holds this process's mark only while
//! its link is in the list. `lock` is held to change the list; nothing is called under it.
//!
//! A child made by fork has neither the thread nor the presence: the page with all this is wiped there (MADV_WIPEONFORK), and
//! `epoch` tells what was made before from what is made after.
//!
//! Source: Documentation/locking/robust-futexes.rst and robust-futex-ABI.rst; kernel/futex/core.c, `handle_futex_death`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::{WORD, Words};
use crate::{PAGE_SIZE, check};

/// Bit of the low half: the kernel shall wake somebody when it sets [`DIED`].
pub const WAITERS: u32 = libc::FUTEX_WAITERS;
/// Bit of the low half: who was there has died.
pub const DIED: u32 = libc::FUTEX_OWNER_DIED;
/// Bits of the low half: the thread that is there; 0 for nobody.
pub const THREAD: u32 = libc::FUTEX_TID_MASK;

/// Where in a word the half is that the kernel looks at.
pub(super) const LOW_HALF: usize = if cfg!(target_endian = "big") { 4 } else { 0 };
/// The kernel follows no more links than this (ROBUST_LIST_LIMIT, include/linux/futex.h).
pub const MOST: u32 = 2048;

/// Stack of the thread, which calls next to nothing.
const STACK: usize = 64 << 10;

/// What the first page of `STATE` holds. All of it is zero at first, and in a child of fork.
#[repr(C)]
struct State {
    /// 0: no thread; 1: being made; 2: there.
    phase: AtomicU32,
    lock: AtomicU32,
    /// Links in the list.
    count: AtomicU32,
    thread: AtomicU32,
    epoch: AtomicU64,
    head: Head,
}

/// struct robust_list_head.
#[repr(C)]
struct Head {
    first: AtomicUsize,
    distance: AtomicIsize,
    pending: AtomicUsize,
}

static STATE: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());
/// Counts the processes, from this one's ancestors to itself, that had a presence: so it is never the same in two of them.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// The state, mapped at the first call and kept.
fn state() -> io::Result<&'static State> {
    if let Some(state) = made() {
        return Ok(state);
    }
    let flags = MapFlags::PRIVATE;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let page = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE, protection, flags) }?;
    // SAFETY: the page is new; zeros are what it holds.
    let wiped = unsafe { madvise(page, PAGE_SIZE, Advice::LinuxWipeOnFork) };
    let kept = wiped.is_ok()
        && STATE
            .compare_exchange(std::ptr::null_mut(), page.cast(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
    if !kept {
        // SAFETY: nobody else knows of the page.
        let _ = unsafe { munmap(page, PAGE_SIZE) };
        wiped?;
    }
    made().ok_or_else(|| Errno::NOMEM.into())
}

fn made() -> Option<&'static State> {
    // SAFETY: it is null, or a page that is never unmapped, for which zeros are a value; all of it is atomic.
    unsafe { STATE.load(Ordering::Acquire).as_ref() }
}

impl State {
    /// The state with its thread there.
    fn ready() -> io::Result<&'static Self> {
        let state = state()?;
        loop {
            match state.phase.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let started = state.start();
                    state.phase.store(if started.is_ok() { 2 } else { 0 }, Ordering::Release);
                    return started.map(|()| state);
                }
                Err(2) => return Ok(state),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn start(&'static self) -> io::Result<()> {
        let head = &raw const self.head as usize;
        self.head.first.store(head, Ordering::Relaxed);
        self.head.distance.store((PAGE_SIZE + LOW_HALF) as isize, Ordering::Relaxed);
        self.epoch.store(EPOCH.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let entered = self.enter();
            if entered.is_err() {
                let _ = sender.send(entered);
                return;
            }
            let _ = sender.send(Ok(()));
            loop {
                std::thread::park();
            }
        };
        std::thread::Builder::new().name("mapwright-alive".to_owned()).stack_size(STACK).spawn(body)?;
        receiver.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// What the thread does: it takes no signals, whose handlers could lock mutexes of the C library's, and gives the kernel
    /// our list.
    fn enter(&'static self) -> io::Result<()> {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: it fills the set in.
        check(unsafe { libc::sigfillset(all.as_mut_ptr()) }.into())?;
        // SAFETY: the set was filled in.
        let masked = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
        if masked != 0 {
            return Err(io::Error::from_raw_os_error(masked));
        }
        let head = &raw const self.head;
        // SAFETY: the head is never unmapped; the list that starts there obeys the invariants. This thread locks no mutex of
        // the C library's, which would use the list that is replaced.
        check(unsafe { libc::syscall(libc::SYS_set_robust_list, head, size_of::<Head>()) })?;
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::Release);
        Ok(())
    }

    fn locked<R>(&self, change: impl FnOnce() -> R) -> R {
        while self.lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
        let result = change();
        self.lock.store(0, Ordering::Release);
        result
    }

    /// Puts a link into the list; not one that is there already.
    fn link(&self, link: &AtomicUsize) -> io::Result<bool> {
        self.locked(|| {
            if link.load(Ordering::Relaxed) != 0 {
                return Ok(false);
            }
            if self.count.load(Ordering::Relaxed) >= MOST {
                return Err(Errno::USERS.into());
            }
            self.count.fetch_add(1, Ordering::Relaxed);
            link.store(self.head.first.load(Ordering::Relaxed), Ordering::SeqCst);
            self.head.first.store(std::ptr::from_ref(link) as usize, Ordering::SeqCst);
            Ok(true)
        })
    }

    fn unlink(&self, link: &AtomicUsize) {
        self.locked(|| {
            let target = std::ptr::from_ref(link) as usize;
            let mut before = &self.head.first;
            while before.load(Ordering::Relaxed) != target {
                let next = before.load(Ordering::Relaxed);
                assert_ne!(next, &raw const self.head as usize, "the link is in the list");
                // SAFETY: by invariant (1) it is a link, which lives while it is in the list: its owner unlinks it first.
                before = unsafe { AtomicUsize::from_ptr(next as *mut usize) };
            }
            before.store(link.load(Ordering::Relaxed), Ordering::SeqCst);
            link.store(0, Ordering::SeqCst);
            self.count.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// The presence of this process in a word, until it is dropped or the process dies.
#[derive(Debug)]
pub struct Presence {
    words: Arc<Words>,
    word: usize,
    high: u32,
    epoch: u64,
}

impl Presence {
    /// Replaces `expected` in a word of the first page by the presence of this process and `high` in the high half. None if the
    /// word is another by then, or is this process's already.
    ///
    /// # Errors
    /// `EAGAIN` if no thread can be had; `EUSERS` with [`MOST`] presences; `EINVAL` before Linux 4.14.
    pub fn enter(words: Arc<Words>, word: usize, expected: u64, high: u32) -> io::Result<Option<Self>> {
        let state = State::ready()?;
        let link = words.link(word);
        if !state.link(link)? {
            return Ok(None);
        }
        let low = state.thread.load(Ordering::Acquire) & THREAD | WAITERS;
        let mark = u64::from(high) << 32 | u64::from(low);
        let entered =
            words.word(word).compare_exchange(expected, mark, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !entered {
            state.unlink(link);
            return Ok(None);
        }
        let epoch = state.epoch.load(Ordering::Relaxed);
        Ok(Some(Self { words, word, high, epoch }))
    }

    /// Whether this is the process that has entered, and not a child made by fork since.
    #[inline]
    #[must_use]
    pub fn is_here(&self) -> bool {
        made().is_some_and(|state| state.epoch.load(Ordering::Relaxed) == self.epoch)
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &Arc<Words> {
        &self.words
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let Some(state) = made().filter(|_| self.is_here()) else { return };
        let word = self.words.word(self.word);
        let mine = |now: u64| (now >> 32) as u32 == self.high;
        // Nobody is there any more, in an orderly way. If others have changed the word, it is theirs.
        let left = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            mine(now).then_some(u64::from(self.high) << 32)
        });
        if left.is_ok() {
            self.words.wake(self.word, i32::MAX as u32);
        }
        state.unlink(self.words.link(self.word));
    }
}

/// Words of the first page, which alone can hold a presence.
pub const WORDS: usize = PAGE_SIZE / WORD;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::{DIED, MOST, Presence, THREAD, WAITERS, WORDS};
    use crate::PAGE_SIZE;
    use crate::shared::Words;
    use crate::testing::{Fork, in_its_own_process};

    fn words() -> Arc<Words> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_SIZE as u64).unwrap();
        Arc::new(Words::map(file.as_fd(), PAGE_SIZE).unwrap())
    }

    #[test]
    fn who_enters_is_there_until_it_leaves() {
        let words = words();
        let enter = |word, expected, high| Presence::enter(Arc::clone(&words), word, expected, high).unwrap();
        let low = |word: usize| words.word(word).load(Ordering::SeqCst) as u32;
        let one = enter(1, 0, 5).unwrap();
        assert!(enter(1, 0, 6).is_none(), "it is taken");
        assert!(enter(2, 77, 6).is_none(), "another value was expected");
        let two = enter(2, 0, 6).unwrap();
        assert!(one.is_here() && low(1) & THREAD != 0 && low(1) & WAITERS != 0);
        assert_eq!(low(1), low(2));
        drop(one);
        assert_eq!((words.word(1).load(Ordering::SeqCst), low(2) & DIED), (5 << 32, 0));
        drop(two);
        drop(enter(1, 5 << 32, 6).unwrap());
    }

    #[test]
    fn no_more_are_taken_on_than_the_kernel_marks() {
        if !in_its_own_process() {
            return;
        }
        let marked = words();
        // In a child, so that the others of these tests have theirs.
        let child = Fork::new(|| {
            let all: Vec<_> = (0..=MOST as usize / WORDS).map(|_| words()).collect();
            let places = all.iter().flat_map(|words| (0..WORDS).map(move |word| (words, word)));
            // The first one is the last that the kernel comes to.
            let mut taken = vec![Presence::enter(Arc::clone(&marked), 7, 0, 1).unwrap().unwrap()];
            taken.extend(
                places
                    .take(MOST as usize - 1)
                    .map(|(words, word)| Presence::enter(Arc::clone(words), word, 0, 1).unwrap().unwrap()),
            );
            let error = Presence::enter(Arc::clone(&marked), 8, 0, 1).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EUSERS));
            drop(taken.pop());
            taken.push(Presence::enter(Arc::clone(&marked), 8, 0, 1).unwrap().unwrap());
            Fork::die();
        });
        assert_eq!(child.unwrap().wait(), -libc::SIGKILL);
        for word in [7, 8] {
            assert_eq!(marked.word(word).load(Ordering::SeqCst) as u32, DIED | WAITERS, "{word}");
        }
    }

    #[test]
    fn a_child_that_dies_is_marked_and_is_not_its_parent() {
        if !in_its_own_process() {
            return;
        }
        let words = words();
        let parent = Presence::enter(Arc::clone(&words), 1, 0, 1).unwrap().unwrap();
        // What a child has inherited and drops is the parent's all the same.
        let second = std::cell::Cell::new(Presence::enter(Arc::clone(&words), 4, 0, 1).unwrap());
        assert_eq!(Fork::new(|| drop(second.take())).unwrap().wait(), 0);
        assert_ne!(words.word(4).load(Ordering::SeqCst) as u32 & THREAD, 0);
        let child = Fork::new(|| {
            let inherited = parent.is_here();
            let own = Presence::enter(Arc::clone(&words), 2, 0, 1).unwrap();
            assert!(!inherited && own.is_some());
            std::mem::forget(own);
            words.word(3).store(2, Ordering::SeqCst);
            Fork::die();
        });
        assert_eq!(child.unwrap().wait(), -libc::SIGKILL);
        assert_eq!(words.word(3).load(Ordering::SeqCst), 2);
        assert!(parent.is_here());
        assert_ne!(words.word(1).load(Ordering::SeqCst) as u32 & THREAD, 0);
        assert_eq!(words.word(2).load(Ordering::SeqCst), 1 << 32 | u64::from(DIED | WAITERS));
    }
}
