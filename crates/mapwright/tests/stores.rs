//! The stores that come with the library, against real files and a real kernel.
//!
//! What needs a process of its own (other users, refused system calls, other lock holders) runs in a copy of this test
//! program: see [`in_child`].

use std::fs::{File, Permissions};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mapwright::stores::{FileOptions, FileStore, MemoryStore, Read, Store, Version, Write, conformance};
use mapwright::{Error, Result};
use mapwright_sys::buffer::Buffer;
use mapwright_sys::testing;

const READ: FileOptions = FileOptions { write: false, direct: false };
const WRITE: FileOptions = FileOptions { write: true, direct: false };
const READ_DIRECT: FileOptions = FileOptions { write: false, direct: true };
const WRITE_DIRECT: FileOptions = FileOptions { write: true, direct: true };

/// A directory on a real disk that everybody may enter.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 4096 * 31 + at * 7) as u8 | 1).collect()
}

fn file_in(directory: &tempfile::TempDir, contents: &[u8]) -> PathBuf {
    let path = directory.path().join("data");
    std::fs::write(&path, contents).unwrap();
    path
}

/// Runs the test `name` of this program in a process of its own, prepared by `prepare`; there [`child_argument`] is set.
fn in_child(name: &str, argument: &Path, prepare: impl FnOnce(&mut Command)) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("MAPWRIGHT_TEST_ARGUMENT", argument);
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn child_argument() -> Option<PathBuf> {
    std::env::var_os("MAPWRIGHT_TEST_ARGUMENT").map(PathBuf::from)
}

/// Runs the suite on files in `directory`, each made anew.
fn conforms(directory: &Path, options: FileOptions) {
    conformance::check(|contents| {
        // Unlinked at once; the store keeps the inode.
        let file = tempfile::NamedTempFile::new_in(directory).unwrap();
        file.as_file().write_all_at(contents, 0).unwrap();
        Box::new(FileStore::open(file.path(), &options).unwrap())
    });
}

/// Reads the whole file, a page a read, in one batch; returns the bytes.
fn read_in_one_batch(store: &FileStore) -> Vec<u8> {
    let len = store.version().unwrap().len as usize;
    let mut memory = Buffer::zeroed(len.next_multiple_of(4096));
    let pages = memory.chunks_exact_mut(4096).enumerate();
    let mut reads: Vec<Read<'_>> =
        pages.map(|(page, buf)| Read { offset: page as u64 * 4096, buf }).collect();
    store.read_many(&mut reads, &mut |_, _, result| {
        result.unwrap();
    });
    memory[..len].to_vec()
}

#[test]
fn memory_conforms() {
    conformance::check(|contents| Box::new(MemoryStore::new(contents.to_vec())));
}

#[test]
fn files_conform() {
    for options in [READ, WRITE, READ_DIRECT, WRITE_DIRECT] {
        conforms(directory().path(), options);
    }
}

#[test]
fn files_in_memory_conform() {
    // The file system is tmpfs: since Linux 6.6 it takes O_DIRECT, before it has none.
    if Path::new("/dev/shm").is_dir() {
        conforms(Path::new("/dev/shm"), WRITE_DIRECT);
    }
}

#[test]
fn open_files_conform() {
    conformance::check(|contents| {
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.write_all_at(contents, 0).unwrap();
        Box::new(FileStore::from_file(file, "an unnamed file", &WRITE_DIRECT).unwrap())
    });
}

#[test]
fn files_conform_where_io_uring_is_refused() {
    let Some(directory) = child_argument() else {
        let directory = directory();
        return in_child("files_conform_where_io_uring_is_refused", directory.path(), |_| {});
    };
    if let Err(error) =
        testing::refuse_system_calls(&testing::IO_URING, rustix::io::Errno::PERM.raw_os_error())
    {
        return eprintln!("skipped: no seccomp here ({error})");
    }
    assert!(mapwright_sys::ring::Ring::new(8).is_err());
    conforms(&directory, READ_DIRECT);
    conforms(&directory, WRITE);
    panics_are_passed_on(&directory);
}

#[test]
fn a_panic_of_done_is_passed_on_and_harms_nothing() {
    panics_are_passed_on(directory().path());
}

fn panics_are_passed_on(directory: &Path) {
    let bytes = pattern(300 * 4096);
    let path = directory.join("panics");
    std::fs::write(&path, &bytes).unwrap();
    let store = FileStore::open(&path, &READ_DIRECT).unwrap();
    for panic_at in [0, 7, 299] {
        let mut memory = Buffer::zeroed(bytes.len());
        let mut ended = 0;
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let pages = memory.chunks_exact_mut(4096).enumerate();
            let mut reads: Vec<Read<'_>> =
                pages.map(|(page, buf)| Read { offset: page as u64 * 4096, buf }).collect();
            store.read_many(&mut reads, &mut |_, _, _| {
                assert!(ended != panic_at, "wanted");
                ended += 1;
            });
        }));
        assert!(panic.is_err());
        memory.fill(0xEE);
        assert!(read_in_one_batch(&store) == bytes);
        assert!(memory.iter().all(|&byte| byte == 0xEE), "a read was still in flight");
    }
}

#[test]
fn a_batch_that_fits_no_direct_read_is_read_all_the_same() {
    let directory = directory();
    let bytes = pattern(20 * 4096);
    let store = FileStore::open(file_in(&directory, &bytes), &READ_DIRECT).unwrap();
    let mut memory = vec![0; 8 * 1000];
    // Neither address, nor length, nor offset are aligned; the last two positions are where pread(2) says EINVAL.
    let offsets = [1, 4096, 77, 20 * 4096 - 1, 20 * 4096, 50_000, i64::MAX as u64 - 10, u64::MAX];
    let mut reads: Vec<Read<'_>> =
        memory.chunks_exact_mut(1000).zip(offsets).map(|(buf, offset)| Read { offset, buf }).collect();
    let mut ended = 0;
    store.read_many(&mut reads, &mut |index, buf, result| {
        let rest = usize::try_from(offsets[index]).ok().and_then(|at| bytes.get(at..)).unwrap_or(&[]);
        let expected = &rest[..rest.len().min(1000)];
        assert_eq!(buf.len(), 1000);
        assert_eq!(&buf[..result.unwrap()], expected);
        ended += 1;
    });
    assert_eq!(ended, 8);
}

#[test]
fn many_batches_at_once_share_the_rings() {
    let directory = directory();
    let bytes = pattern(64 * 4096);
    let store = FileStore::open(file_in(&directory, &bytes), &READ_DIRECT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert!(read_in_one_batch(&store) == bytes);
                }
            });
        }
    });
}

#[test]
fn a_batch_within_a_batch_works() {
    let directory = directory();
    let bytes = pattern(8 * 4096);
    let store = FileStore::open(file_in(&directory, &bytes), &READ_DIRECT).unwrap();
    let mut memory = Buffer::zeroed(8 * 4096);
    let mut reads: Vec<Read<'_>> =
        memory.chunks_exact_mut(4096).map(|buf| Read { offset: 4096, buf }).collect();
    store.read_many(&mut reads, &mut |_, buf, result| {
        assert_eq!(&buf[..result.unwrap()], &bytes[4096..8192]);
        assert!(read_in_one_batch(&store) == bytes);
    });
}

/// Pages of the file that the kernel keeps.
fn cached_pages(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    testing::pages_in_kernel_cache(file.as_fd(), file.metadata().unwrap().len() as usize).unwrap()
}

/// A batch over bytes that are there goes around the kernel's cache; where there are holes it goes through it, and a sync
/// clears it.
#[test]
fn batches_of_writes_leave_nothing_in_the_kernels_cache() {
    const PAGES: usize = 64;
    let directory = directory();
    let path = file_in(&directory, &pattern(PAGES * 4096));
    let store = FileStore::open(&path, &WRITE_DIRECT).unwrap();
    store.sync().unwrap();
    assert!(store.is_direct(), "the target directory's file system can do O_DIRECT");
    rustix::fs::fadvise(&store, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    if cached_pages(&path) > 0 {
        return eprintln!("skipped: this file system is a cache itself");
    }
    let mut memory = Buffer::zeroed(PAGES * 4096);
    memory.copy_from_slice(&pattern(PAGES * 4096 + 1)[1..]);
    let write = |store: &FileStore| {
        let writes: Vec<Write<'_>> = (memory.chunks_exact(4096).enumerate())
            .map(|(index, buf)| Write { offset: (index * 4096) as u64, buf })
            .collect();
        store.write_many(&writes, &mut |_, result| assert_eq!(result.unwrap(), 4096));
    };
    write(&store);
    assert_eq!(cached_pages(&path), 0, "written directly");
    assert!(std::fs::read(&path).unwrap() == memory[..]);

    let path = directory.path().join("hollow");
    File::create(&path).unwrap().set_len((PAGES * 4096) as u64).unwrap();
    let store = FileStore::open(&path, &WRITE_DIRECT).unwrap();
    write(&store);
    assert_eq!(cached_pages(&path), PAGES, "holes are filled through the cache");
    store.sync().unwrap();
    assert_eq!(cached_pages(&path), 0, "and dropped from it");
    assert!(std::fs::read(&path).unwrap() == memory[..]);
}

#[test]
fn direct_stores_leave_nothing_in_the_kernels_cache() {
    let directory = directory();
    let bytes = pattern(256 * 4096);
    let path = file_in(&directory, &bytes);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, NonZeroU64::new(bytes.len() as u64), rustix::fs::Advice::DontNeed).unwrap();
    if cached_pages(&path) > 0 {
        return eprintln!("skipped: this file system is a cache itself");
    }

    let store = FileStore::open(&path, &WRITE_DIRECT).unwrap();
    assert!(store.is_direct(), "the target directory's file system can do O_DIRECT");
    assert!(read_in_one_batch(&store) == bytes);
    let mut page = Buffer::zeroed(4096);
    assert_eq!(store.read_at(4096, &mut page).unwrap(), 4096);
    assert_eq!(cached_pages(&path), 0, "after direct reads");

    let mut reversed = bytes.clone();
    reversed.reverse();
    assert_eq!(store.write_at(0, &reversed).unwrap(), bytes.len());
    assert_eq!(cached_pages(&path), 256, "writes are buffered");
    store.sync().unwrap();
    assert_eq!(cached_pages(&path), 0, "after a sync");
    assert!(read_in_one_batch(&store) == reversed);

    // And a buffered store does use the cache, which is what makes the above worth asserting.
    let store = FileStore::open(&path, &READ).unwrap();
    assert!(!store.is_direct());
    assert!(read_in_one_batch(&store) == reversed);
    assert_eq!(cached_pages(&path), 256, "after buffered reads");
}

#[test]
fn versions_tell_changes_of_bytes_from_other_changes() {
    let directory = directory();
    let path = file_in(&directory, &pattern(10_000));
    let store = FileStore::open(&path, &READ).unwrap();
    let first = store.version().unwrap();
    let tick = || std::thread::sleep(Duration::from_millis(25));

    tick();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let link = directory.path().join("link");
    std::fs::hard_link(&path, &link).unwrap();
    let moved = directory.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    std::fs::remove_file(&link).unwrap();
    std::fs::read(&moved).unwrap();
    assert_eq!(store.version().unwrap(), first, "no byte has changed");

    File::options().write(true).open(&moved).unwrap().write_all_at(b"x", 5).unwrap();
    let written = store.version().unwrap();
    assert_ne!(written, first);
    assert_eq!(Version { modification: 0, ..written }, Version { modification: 0, ..first });

    tick();
    File::options().write(true).open(&moved).unwrap().set_len(50).unwrap();
    let cut = store.version().unwrap();
    assert_eq!((cut.len, cut.identity), (50, first.identity));
    assert_ne!(cut.modification, written.modification);

    std::fs::remove_file(&moved).unwrap();
    assert_eq!(store.version().unwrap(), cut, "an unlinked file is still there");
    assert_ne!(
        FileStore::open(file_in(&directory, b""), &READ).unwrap().version().unwrap().identity,
        first.identity
    );
}

fn refusal(result: Result<FileStore>) -> (&'static str, String) {
    match result {
        Err(error @ Error::NotMappable { kind, .. }) => (kind, error.to_string()),
        other => panic!("not refused by kind: {other:?}"),
    }
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let directory = directory();
    let start = Instant::now();
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let cases = [
        (directory.path(), "a directory"),
        (&pipe, "a pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a character device"),
        (Path::new("/proc/self/status"), "a kernel file that does not know its own size"),
        (Path::new("/sys/kernel/uevent_seqnum"), "a kernel file that does not know its own size"),
    ];
    for (path, kind) in cases {
        for options in [READ, WRITE_DIRECT] {
            let (refused, message) = refusal(FileStore::open(path, &options));
            assert_eq!(refused, kind, "{}", path.display());
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }
    let (reader, _writer) = io::pipe().unwrap();
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    assert_eq!(refusal(FileStore::from_file(reader, "a pipe's end", &READ)).0, "a pipe");
    assert!(start.elapsed() < Duration::from_secs(5), "nothing waited for the other end of a pipe");

    match FileStore::open(directory.path().join("nothing"), &WRITE) {
        Err(error @ Error::Io { operation: "open", .. }) => {
            assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT.raw_os_error()));
        }
        other => panic!("{other:?}"),
    }
    assert!(!directory.path().join("nothing").exists());
}

#[test]
fn an_empty_file_is_a_file() {
    let directory = directory();
    let store = FileStore::open(file_in(&directory, b""), &READ_DIRECT).unwrap();
    assert_eq!(store.version().unwrap().len, 0);
    assert_eq!(store.read_at(0, &mut [0; 10]).unwrap(), 0);
}

#[test]
fn permissions_are_those_of_the_user() {
    const NOBODY: u32 = 65534;
    let Some(directory) = child_argument() else {
        let directory = directory();
        for (name, mode) in [("secret", 0o000), ("read-only", 0o444)] {
            let path = directory.path().join(name);
            std::fs::write(&path, b"bytes").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        // Root may open everything, so the test must be somebody else.
        let root = rustix::process::geteuid().is_root();
        return in_child("permissions_are_those_of_the_user", directory.path(), |command| {
            if root {
                command.uid(NOBODY).gid(NOBODY);
            }
        });
    };
    let read_only = directory.join("read-only");
    FileStore::open(&read_only, &READ_DIRECT).unwrap();
    match FileStore::open(&read_only, &WRITE) {
        Err(Error::ReadOnly { path }) => assert_eq!(path, read_only.to_str().unwrap()),
        other => panic!("{other:?}"),
    }
    match FileStore::open(directory.join("secret"), &READ) {
        Err(error @ Error::Io { operation: "open", .. }) => {
            assert_eq!(error.errno(), Some(rustix::io::Errno::ACCESS.raw_os_error()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_descriptors_own_restrictions_hold() {
    let directory = directory();
    let path = file_in(&directory, b"0123456789");
    let read_only = File::open(&path).unwrap();
    assert!(matches!(FileStore::from_file(read_only, &path, &WRITE), Err(Error::ReadOnly { .. })));
    let write_only = File::options().write(true).open(&path).unwrap();
    assert!(matches!(FileStore::from_file(write_only, &path, &READ), Err(Error::Invalid { .. })));
    // Appending would ignore the offset.
    let appending = File::options().read(true).append(true).open(&path).unwrap();
    let store = FileStore::from_file(appending, &path, &WRITE).unwrap();
    store.write_at(2, b"ab").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"01ab456789");
    // A running program can't be written, which is not a matter of permission.
    match FileStore::open(std::env::current_exe().unwrap(), &WRITE) {
        Err(error @ Error::Io { operation: "open", .. }) => {
            assert_eq!(error.errno(), Some(rustix::io::Errno::TXTBSY.raw_os_error()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_store_of_a_file_leaves_its_position_alone() {
    use std::io::{Read as _, Seek};
    let directory = directory();
    let path = file_in(&directory, b"0123456789");
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let store = FileStore::from_file(file.try_clone().unwrap(), &path, &WRITE).unwrap();
    file.seek(io::SeekFrom::Start(4)).unwrap();
    store.version().unwrap();
    store.read_at(0, &mut [0; 8]).unwrap();
    store.write_at(7, b"x").unwrap();
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "456x89");
}

#[test]
fn files_open_where_proc_is_not_mounted() {
    let Some(root) = child_argument() else {
        let directory = directory();
        file_in(&directory, &pattern(5 * 4096));
        return in_child("files_open_where_proc_is_not_mounted", directory.path(), |_| {});
    };
    if let Err(error) = rustix::process::chroot(&root) {
        return eprintln!("skipped: not root ({error})");
    }
    let store = FileStore::open("/data", &WRITE_DIRECT).unwrap();
    assert!(store.is_direct());
    assert!(read_in_one_batch(&store) == pattern(5 * 4096));
    store.lock().unwrap();
    let file = File::options().read(true).write(true).open("/data").unwrap();
    let other = FileStore::from_file(file, "/data", &WRITE).unwrap();
    assert_eq!(other.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // With neither /proc nor the right name, the descriptor itself must do, and its lock must count as well.
    let file = File::options().read(true).write(true).open("/data").unwrap();
    let shared = file.try_clone().unwrap();
    drop((store, other));
    let one = FileStore::from_file(file, "/no such name", &WRITE).unwrap();
    let two = FileStore::from_file(shared, "/no such name", &WRITE).unwrap();
    one.lock().unwrap();
    assert_eq!(two.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(one);
    two.lock().unwrap();
}

#[test]
fn block_devices_can_be_read() {
    let Some(device) = std::fs::read_dir("/sys/class/block").ok().and_then(|mut devices| {
        devices.find_map(|entry| {
            let name = entry.ok()?.file_name();
            let sectors: u64 =
                std::fs::read_to_string(Path::new("/sys/class/block").join(&name).join("size"))
                    .ok()?
                    .trim()
                    .parse()
                    .ok()?;
            let path = Path::new("/dev").join(name);
            (sectors > 0 && File::open(&path).is_ok()).then_some((path, sectors * 512))
        })
    }) else {
        return eprintln!("skipped: no block device that we may read");
    };
    let (path, len) = device;
    let store = FileStore::open(&path, &READ_DIRECT).unwrap();
    let version = store.version().unwrap();
    assert_eq!(version.len, len);
    let (mut one, mut other) = (Buffer::zeroed(4096), vec![0; 4096]);
    let middle = len / 2 / 4096 * 4096;
    assert_eq!(store.read_at(middle, &mut one).unwrap(), 4096);
    File::open(&path).unwrap().read_exact_at(&mut other, middle).unwrap();
    assert_eq!(store.read_at(len, &mut one).unwrap(), 0);
    assert!(!store.is_writable());
}

#[test]
fn the_lock_excludes_every_other_store_until_it_is_dropped() {
    let refused = |store: &FileStore| store.lock().unwrap_err().kind() == io::ErrorKind::WouldBlock;
    if let Some(path) = child_argument() {
        // The other process: it must not get the lock, and not disturb it by opening and closing the file.
        let store = FileStore::open(&path, &WRITE).unwrap();
        assert!(refused(&store));
        return;
    }
    let directory = directory();
    let path = file_in(&directory, b"contents");
    let holder = FileStore::open(&path, &WRITE).unwrap();
    holder.lock().unwrap();
    holder.lock().unwrap();

    let second = FileStore::open(&path, &WRITE_DIRECT).unwrap();
    assert!(refused(&second));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    drop(FileStore::from_file(file.try_clone().unwrap(), &path, &WRITE).unwrap());
    assert!(refused(&FileStore::from_file(file, &path, &WRITE).unwrap()));
    in_child("the_lock_excludes_every_other_store_until_it_is_dropped", &path, |_| {});
    assert!(refused(&second), "nothing of that has released it");
    // A child that inherits the descriptor (all are close-on-exec, but a fork alone keeps them) keeps no lock.
    let inherited = rustix::io::dup(holder.as_fd()).unwrap();
    drop(holder);
    second.lock().unwrap();
    drop(second);
    drop(inherited);

    let reader = FileStore::open(&path, &READ).unwrap();
    assert_eq!(reader.lock().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn local_file_systems_are_told_from_the_others() {
    let directory = directory();
    assert!(FileStore::open(file_in(&directory, b"x"), &READ).unwrap().is_local());
    assert!(MemoryStore::new(Vec::new()).is_local());
}

#[test]
fn memory_changes_behind_the_pagers_back() {
    let store = MemoryStore::new(vec![1, 2, 3]);
    let before = store.version().unwrap();
    store.replace(vec![1, 2, 4]);
    let after = store.version().unwrap();
    assert_ne!(before, after);
    assert_eq!(before.identity, after.identity);
    assert_eq!(store.contents(), [1, 2, 4]);
    assert_ne!(MemoryStore::new(vec![1, 2, 4]).version().unwrap().identity, after.identity);
    // What does not fit is refused, not attempted.
    assert_eq!(store.set_len(u64::MAX).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(store.write_at(u64::MAX, b"xy").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(store.contents(), [1, 2, 4]);
}

/// What an interrupted sync had found is not told again: to repeat it would prove nothing.
#[test]
fn an_interrupted_sync_of_a_file_has_failed() {
    if child_argument().is_none() {
        let directory = directory();
        return in_child("an_interrupted_sync_of_a_file_has_failed", directory.path(), |_| {});
    }
    let path = child_argument().unwrap().join("data");
    std::fs::write(&path, [1; 100]).unwrap();
    let store = FileStore::open(path, &WRITE).unwrap();
    store.write_at(0, &[2; 10]).unwrap();
    testing::refuse_system_calls(&[testing::FDATASYNC], rustix::io::Errno::INTR.raw_os_error()).unwrap();
    assert_eq!(store.sync().unwrap_err().kind(), io::ErrorKind::Interrupted);
}
