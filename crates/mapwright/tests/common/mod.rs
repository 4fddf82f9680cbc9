//! What the tests on the real kernel share: requirements, scratch directories, random numbers, a store that fails on
//! demand, a watchdog, and child processes made of this very test.
#![allow(dead_code, missing_docs)]

pub mod journal;

use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use mapwright::stores::{MemoryStore, Store, Version};
use mapwright::{FaultMode, Machine, MapOptions, Pager, Strategy};

pub const PAGE: usize = 4096;
pub const MODES: [FaultMode; 2] = [FaultMode::Thread, FaultMode::InThread];

/// Skips loudly; in CI, where the machine is chosen to have everything, it fails instead.
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this test: {why}");
    eprintln!("######## SKIPPED: {why} ########");
}

/// Whether userfaultfd, with tracking of writes, can be used here. `false` only after a loud message.
#[must_use]
pub fn require_userfaultfd() -> bool {
    let machine = Machine::probe();
    let missing = machine.userfaultfd.err().or(machine.pagemap_scan.err());
    if let Some(error) = &missing {
        skip(&error.to_string());
    }
    missing.is_none()
}

/// Whether this test runs as root, which some of them need.
#[must_use]
pub fn require_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip("needs root");
    }
    root
}

pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A file with recognisable contents.
pub fn file_of(dir: &Path, len: usize) -> (PathBuf, Vec<u8>) {
    let path = dir.join(format!("file-{len}"));
    let bytes = contents(len);
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// Bytes of which no two pages of a file are equal.
pub fn contents(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 | 1).collect();
    for (page, start) in (0..len).step_by(PAGE).enumerate() {
        let tag = (page as u64 + 1).to_le_bytes();
        let n = tag.len().min(len - start);
        bytes[start..start + n].copy_from_slice(&tag[..n]);
    }
    bytes
}

pub fn pager(budget: u64) -> Pager {
    Pager::builder().budget(budget).build().unwrap()
}

pub fn paged(pager: &Pager, mode: FaultMode) -> MapOptions {
    MapOptions::new().pager(pager).strategy(Strategy::Pager).fault_mode(mode)
}

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        bytes
    }
}

/// What a [`FaultyStore`] does to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    None,
    /// This error number.
    Errno(i32),
    /// Every second call is interrupted.
    Interrupted,
    /// A few bytes at a time.
    Short,
    /// The store ends early.
    Empty,
    /// Does not return until the store heals.
    Hang,
    Panic,
}

/// A store in memory that fails on demand, from a given offset on.
pub struct FaultyStore {
    pub inner: MemoryStore,
    pub local: bool,
    /// Reads at or above this offset fail.
    pub from: AtomicU64,
    pub reads: AtomicUsize,
    pub hanging: AtomicUsize,
    state: Mutex<Mishaps>,
    healed: Condvar,
}

#[derive(Clone, Copy)]
struct Mishaps {
    read: Mishap,
    write: Mishap,
    sync: Mishap,
}

impl FaultyStore {
    pub fn new(bytes: Vec<u8>, local: bool) -> Arc<Self> {
        let state = Mishaps { read: Mishap::None, write: Mishap::None, sync: Mishap::None };
        Arc::new(Self {
            inner: MemoryStore::new(bytes),
            local,
            from: 0.into(),
            reads: 0.into(),
            hanging: 0.into(),
            state: Mutex::new(state),
            healed: Condvar::new(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Mishaps)) {
        change(&mut self.state.lock().unwrap());
        self.healed.notify_all();
    }

    pub fn on_read(&self, mishap: Mishap) {
        self.change(|state| state.read = mishap);
    }

    pub fn on_write(&self, mishap: Mishap) {
        self.change(|state| state.write = mishap);
    }

    pub fn on_sync(&self, mishap: Mishap) {
        self.change(|state| state.sync = mishap);
    }

    pub fn heal(&self) {
        self.change(|state| *state = Mishaps { read: Mishap::None, write: Mishap::None, sync: Mishap::None });
    }

    /// Meets the mishap; the number of bytes to handle otherwise.
    fn meet(&self, of: impl Fn(&Mishaps) -> Mishap, len: usize) -> io::Result<usize> {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let mut state = self.state.lock().unwrap();
        self.hanging.fetch_add(1, Ordering::SeqCst);
        while of(&state) == Mishap::Hang {
            state = self.healed.wait(state).unwrap();
        }
        self.hanging.fetch_sub(1, Ordering::SeqCst);
        let mishap = of(&state);
        drop(state);
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        match mishap {
            Mishap::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Mishap::Interrupted if call.is_multiple_of(2) => Err(io::Error::from_raw_os_error(libc::EINTR)),
            Mishap::Short => Ok(len.min(1 + call % 1500)),
            Mishap::Empty => Ok(0),
            Mishap::Panic => panic!("the store panics, as it was told to"),
            Mishap::None | Mishap::Interrupted | Mishap::Hang => Ok(len),
        }
    }
}

impl Store for FaultyStore {
    fn name(&self) -> String {
        "faulty".into()
    }

    fn version(&self) -> io::Result<Version> {
        self.inner.version()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let concerned = offset + buf.len() as u64 > self.from.load(Ordering::SeqCst);
        let len = if concerned { self.meet(|m| m.read, buf.len())? } else { buf.len() };
        self.inner.read_at(offset, &mut buf[..len])
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<usize> {
        let len = self.meet(|m| m.write, buf.len())?;
        self.inner.write_at(offset, &buf[..len])
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.meet(|m| m.sync, 0).map(drop)
    }

    fn is_local(&self) -> bool {
        self.local
    }
}

struct ThreadWaker(std::thread::Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives one future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(ThreadWaker(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let since = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park_timeout(Duration::from_secs(60));
        assert!(since.elapsed() < Duration::from_secs(60), "a future was never woken");
    }
}

/// Ends the process with a dump when nothing has been reported for `patience`. Ends with the value.
pub struct Watchdog {
    progress: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Watchdog {
    pub fn new(what: impl Into<String>, patience: Duration) -> Self {
        let (progress, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, over, what) = (Arc::clone(&progress), Arc::clone(&ended), what.into());
        std::thread::spawn(move || {
            let mut last = (u64::MAX, Instant::now());
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(100));
                let now = seen.load(Ordering::SeqCst);
                if now != last.0 {
                    last = (now, Instant::now());
                } else if last.1.elapsed() > patience && !over.load(Ordering::SeqCst) {
                    dump_threads();
                    eprintln!("watchdog: {what}: no progress for {patience:?}");
                    std::process::exit(101);
                }
            }
        });
        Self { progress, ended }
    }

    pub fn tick(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

/// Prints where each thread of this process waits.
pub fn dump_threads() {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (comm, wchan, call) = (read("comm"), read("wchan"), read("syscall"));
        eprintln!("{:?} {} wchan {wchan} syscall {}", task.file_name(), comm.trim(), call.trim());
    }
}

/// The name of the part a child is to play; `None` in the parent.
pub fn role() -> Option<String> {
    std::env::var("MAPWRIGHT_TEST_ROLE").ok()
}

/// Runs test `test` of this binary again, in a process of its own that plays `role`.
pub fn child(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("MAPWRIGHT_TEST_ROLE", role);
    command
}

/// As [`child`], as user nobody: the binary and `dir` are made readable for it.
pub fn child_as_nobody(test: &str, role: &str, dir: &Path) -> Command {
    use std::os::unix::fs::PermissionsExt;
    // The build directory may lie where nobody may go: a copy in /tmp may be run by anyone.
    let copy = dir.join("test-binary");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for path in [dir, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(copy);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("MAPWRIGHT_TEST_ROLE", role);
    command
}

/// Runs `body` with a sparse file of 4 MiB on a file system that has room for 1 MiB: in a process of its own, which is test
/// `test` again, as root. The mount is in a namespace of that process, so that it ends with it, however it ends.
pub fn on_a_small_file_system(test: &str, body: impl FnOnce(&Path)) {
    let dir = scratch();
    let Some(place) = role() else {
        if require_root() {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
            command.args([test, "--exact", "--nocapture"]).env("MAPWRIGHT_TEST_ROLE", dir.path());
            run_ok(command);
        }
        return;
    };
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"]).arg(&place).status();
    if !mount.is_ok_and(|status| status.success()) {
        return skip("tmpfs can't be mounted here");
    }
    let path = Path::new(&place).join("sparse");
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    body(&path);
}

/// Runs `body` with a folder on a file system of the kind `kind` in a loop device of `mib` MiB, sparse: in a process of its own,
/// which is test `test` again, as root. The mount, and with it the device, ends with that process. Where the machine has no such
/// file system, or no program that makes one, it says so and does nothing, in CI too.
pub fn on_a_loop_device(test: &str, kind: &str, mib: u64, body: impl FnOnce(&Path)) {
    if let Some(place) = role() {
        return body(Path::new(&place));
    }
    let say = |why: &str| eprintln!("######## {kind} is not tried here: {why} ########");
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return say("needs root");
    }
    let dir = scratch();
    let (image, place) = (dir.path().join("image"), dir.path().join("place"));
    std::fs::create_dir(&place).unwrap();
    std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let made = Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).output();
    match made {
        Ok(output) if output.status.success() => {}
        Ok(output) => return say(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => return say(&format!("mkfs.{kind}: {error}")),
    }
    let mut command = Command::new("unshare");
    // 77: it could not be mounted.
    let script = "mount -t \"$1\" -o loop \"$2\" \"$3\" || exit 77; test=$4; shift 4; exec \"$test\" \"$@\"";
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", kind]);
    command.args([&image, &place]).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("MAPWRIGHT_TEST_ROLE", &place);
    let output = run(command);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        return say(&text);
    }
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
    println!("{text}");
}

/// A file that takes all of its file system but for some bytes. Gone, and the room given back, when it is dropped.
pub struct FullDisk(PathBuf);

impl FullDisk {
    /// Takes all but `left` bytes, about.
    pub fn fill(folder: &Path, left: u64) -> Self {
        use rustix::fs::{FallocateFlags, fallocate};
        let path = folder.join("filler");
        let filler = std::fs::File::create_new(&path).unwrap();
        let disk = Self(path);
        let (mut step, mut len) = (1u64 << 24, 0);
        while step >= 4096 {
            match fallocate(&filler, FallocateFlags::empty(), len, step) {
                Ok(()) => len += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => panic!("{error}"),
            }
        }
        filler.set_len(len.saturating_sub(left)).unwrap();
        filler.sync_all().unwrap();
        disk
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let removed = std::fs::remove_file(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        if let Some(folder) = self.0.parent().and_then(|folder| std::fs::File::open(folder).ok()) {
            let _ = rustix::fs::syncfs(folder); // some file systems free blocks later
        }
    }
}

/// Runs a child; the process is ended after a minute.
pub fn run(mut command: Command) -> Output {
    use std::process::Stdio;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    let killer = std::thread::spawn(move || {
        let since = Instant::now();
        while !seen.load(Ordering::SeqCst) {
            if since.elapsed() > Duration::from_secs(60) {
                // SAFETY: kill takes numbers; the child has not been waited for, so its id is still its own.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut out = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = io::Read::read_to_end(&mut out, &mut bytes);
        bytes
    });
    let mut stderr = Vec::new();
    let _ = io::Read::read_to_end(&mut child.stderr.take().unwrap(), &mut stderr);
    let stdout = reader.join().unwrap();
    let status = loop {
        // Not `wait`: the killer must not outlive the id.
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    done.store(true, Ordering::SeqCst);
    killer.join().unwrap();
    Output { status, stdout, stderr }
}

#[track_caller]
pub fn run_ok(command: Command) -> String {
    let output = run(command);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    assert!(!text.contains("running 0 tests"), "no such test\n{text}");
    text
}

#[track_caller]
pub fn dies_by_sigbus(command: Command) -> String {
    let output = run(command);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{:?}\n{text}", output.status);
    text
}

/// Where slices of a temp directory for another user can live: /tmp, not below root's own directories.
pub fn public_scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}
