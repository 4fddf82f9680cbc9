//! Faults served in the thread that touches, in a program that makes it hard: a SIGBUS handler of its own from before and one
//! from after, an allocator that can't be entered twice, signals that come all the time, a subscriber of `tracing`. The rules
//! that this tests are in docs/in-thread-faults.md. In a process of its own, which has the handlers and the allocator.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    PAGE, Rng, Watchdog, child, contents, file_of, paged, pager, require_userfaultfd, role, run_ok, scratch,
};
use mapwright::{Advice, FaultMode, FrameKind};

thread_local! {
    /// Calls of the allocator that this thread is in.
    static ALLOCATING: Cell<u32> = const { Cell::new(0) };
    /// Whether this thread is touching a slice.
    static TOUCHING: Cell<bool> = const { Cell::new(false) };
}

/// An allocator that is not made for being entered again by its own thread.
struct Once;

impl Once {
    fn alone<T>(work: impl FnOnce() -> T) -> T {
        let before = ALLOCATING.replace(1);
        if before != 0 {
            std::process::abort(); // a panic would allocate
        }
        let result = work();
        ALLOCATING.set(0);
        result
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Once {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        Self::alone(|| unsafe { System.alloc(layout) })
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        Self::alone(|| unsafe { System.dealloc(start, layout) })
    }
}

#[global_allocator]
static ALLOCATOR: Once = Once;

static ALARMS: AtomicU64 = AtomicU64::new(0);
static SEEN_FIRST: AtomicUsize = AtomicUsize::new(0);
static SEEN_LAST: AtomicUsize = AtomicUsize::new(0);
/// What was installed before the last handler, mapwright's: it has to be called for what is not ours.
static BEFORE_LAST: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());
/// A page of a kernel mapping past its file's end, which the first handler mends.
static BROKEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_alarm(_: libc::c_int) {
    ALARMS.fetch_add(1, Ordering::Relaxed);
}

/// The program's handler from before mapwright: it knows one page, and maps zeros there.
extern "C" fn first(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel, or a handler that was called by it, passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS from the kernel, si_addr is the address that was touched.
    let address = unsafe { info.si_addr() } as usize;
    if address & !(PAGE - 1) != BROKEN.load(Ordering::Relaxed) {
        std::process::abort();
    }
    SEEN_FIRST.fetch_add(1, Ordering::Relaxed);
    let place = (address & !(PAGE - 1)) as *mut libc::c_void;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: replaces a page of a mapping that this test owns and that no reference reaches into.
    let mended = unsafe { libc::mmap(place, PAGE, libc::PROT_READ, flags, -1, 0) };
    if mended == libc::MAP_FAILED {
        std::process::abort();
    }
}

/// The program's handler from after mapwright: it counts, and calls what it replaced, as mapwright asks for.
extern "C" fn last(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    SEEN_LAST.fetch_add(1, Ordering::Relaxed);
    let before = BEFORE_LAST.load(Ordering::Relaxed);
    // SAFETY: it was reported by sigaction as a handler with SA_SIGINFO.
    let before: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        unsafe { std::mem::transmute(before) };
    before(signal, info, context);
}

fn install(signal: libc::c_int, handler: usize, flags: libc::c_int) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handlers of this file have the signatures that their flags ask for.
    assert_eq!(unsafe { libc::sigaction(signal, &action, &mut previous) }, 0);
    previous
}

/// Sends SIGALRM to the process a thousand times a second.
fn start_alarms() {
    install(libc::SIGALRM, on_alarm as *const () as usize, libc::SA_RESTART);
    let interval = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: `timer` is valid for the call.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }, 0);
}

/// Allocates and locks at each event, as subscribers do; and says so if one comes from within a touch.
struct Subscriber(Mutex<Vec<String>>);

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.note(span.metadata());
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.note(event.metadata());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

impl Subscriber {
    fn note(&self, metadata: &tracing::Metadata<'_>) {
        assert!(!TOUCHING.get(), "{} is traced while a slice is touched", metadata.name());
        self.0.lock().unwrap().push(metadata.name().to_owned());
    }
}

/// Where a mapping of the kernel's has no file under it any more: a touch is SIGBUS, and not mapwright's.
fn break_a_page(dir: &std::path::Path) {
    use std::os::fd::AsRawFd;
    let path = dir.join("broken");
    std::fs::write(&path, vec![1; PAGE]).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, read, shared, file.as_raw_fd(), 0) };
    assert_ne!(start, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    BROKEN.store(start as usize, Ordering::Relaxed);
}

#[test]
fn faults_are_served_in_a_program_that_makes_it_hard() {
    const THREADS: u64 = 4;
    const PAGES: usize = 32768;
    if role().is_none() {
        if require_userfaultfd() {
            run_ok(child("faults_are_served_in_a_program_that_makes_it_hard", "hard"));
        }
        return;
    }
    let subscriber = Arc::new(Subscriber(Mutex::new(Vec::new())));
    tracing::subscriber::set_global_default(Arc::clone(&subscriber)).unwrap();
    install(libc::SIGBUS, first as *const () as usize, libc::SA_SIGINFO);
    let dir = scratch();
    let (path, bytes) = file_of(dir.path(), PAGES * PAGE);
    assert_eq!(bytes, contents(PAGES * PAGE));
    break_a_page(dir.path());
    // An eighth of the file: each thread's faults evict.
    let pager = pager((PAGES * PAGE / 8) as u64);
    let watchdog = Watchdog::new("faults in a hard program", Duration::from_secs(120));
    for frames in [FrameKind::Shared, FrameKind::Moved] {
        let map = paged(&pager, FaultMode::InThread).frames(frames).open(&path).unwrap();
        map.advise(Advice::Random).unwrap();
        if BEFORE_LAST.load(Ordering::Relaxed).is_null() {
            // After mapwright's, which the first map installed.
            let before =
                install(libc::SIGBUS, last as *const () as usize, libc::SA_SIGINFO | libc::SA_NODEFER);
            assert_ne!(before.sa_sigaction, first as *const () as usize, "mapwright has a handler now");
            BEFORE_LAST.store(before.sa_sigaction as *mut libc::c_void, Ordering::Relaxed);
            start_alarms();
        }
        let until = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (map, bytes) = (&map, &bytes);
                scope.spawn(move || {
                    let mut random = Rng(thread);
                    while Instant::now() < until {
                        let at = random.below(PAGES as u64) as usize * PAGE;
                        TOUCHING.set(true);
                        let found = map[at..at + 16] == bytes[at..at + 16];
                        TOUCHING.set(false);
                        assert!(found, "page {}", at / PAGE);
                        // Garbage for the allocator, and system calls on memory that is there.
                        std::hint::black_box(vec![at; 1 + at % 100]);
                    }
                });
            }
        });
    }
    // What is not mapwright's goes through all three.
    let before = SEEN_LAST.load(Ordering::Relaxed);
    // SAFETY: the page is mapped; the first handler puts zeros there.
    let mended = unsafe { std::ptr::read_volatile(BROKEN.load(Ordering::Relaxed) as *const u8) };
    assert_eq!((mended, SEEN_FIRST.load(Ordering::Relaxed)), (0, 1));
    assert_eq!(SEEN_LAST.load(Ordering::Relaxed), before + 1);
    drop(watchdog);
    let (faults, alarms) = (pager.stats().faults, ALARMS.load(Ordering::Relaxed));
    assert!(faults > 1000 && pager.stats().evictions > 1000, "{:?}", pager.stats());
    assert!(alarms > 100, "{alarms} signals came");
    println!("{faults} faults, {alarms} signals, {} events", subscriber.0.lock().unwrap().len());
}
