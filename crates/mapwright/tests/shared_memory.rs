//! Shared memory by name and by descriptor: who sees what, and what is refused of what others prepared.
#![allow(missing_docs)]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use common::{PAGE, child, role, run_ok, scratch};
use mapwright::mmap::{MemoryFile, MmapOptions, Resize, SealedMemory, SharedMemory, SharedMemoryOptions};
use mapwright::{Change, Error};

/// A name of this test's own, which is gone in the end.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        let name = Self(format!("/mapwright-test-{}-{what}", std::process::id()));
        let _ = std::fs::remove_file(name.path());
        name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/dev/shm").join(&self.0[1..])
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let path = self.path();
        let _ = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
    }
}

#[test]
fn created_opened_and_unlinked_by_name() {
    let name = Name::new("life");
    assert_eq!(SharedMemory::open(&name.0).unwrap_err().errno(), Some(libc::ENOENT));
    let memory = SharedMemory::create_new(&name.0, 3 * PAGE as u64).unwrap();
    assert_eq!(std::fs::metadata(name.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(SharedMemory::create_new(&name.0, 1).unwrap_err().errno(), Some(libc::EEXIST));
    let map = memory.map().unwrap();
    assert!(map.to_vec(..).unwrap().iter().all(|byte| *byte == 0));
    map.write_at(PAGE, b"hello").unwrap();
    let other = SharedMemory::open(name.0.trim_start_matches('/')).unwrap();
    assert_eq!(other.len(), 3 * PAGE as u64);
    let seen = other.map_read_only().unwrap();
    drop((memory, map));
    SharedMemory::unlink(&name.0).unwrap();
    assert_eq!(seen.to_vec(PAGE..PAGE + 5).unwrap(), b"hello", "who has it keeps it");
    assert_eq!(SharedMemory::unlink(&name.0).unwrap_err().errno(), Some(libc::ENOENT));
    let read_only = {
        SharedMemory::create_new(&name.0, 10).unwrap();
        SharedMemoryOptions::new().open_read_only(&name.0).unwrap()
    };
    assert!(matches!(read_only.map(), Err(Error::ReadOnly { .. })));
    assert_eq!(read_only.map_read_only().unwrap().len(), 10);
}

#[test]
fn create_opens_what_is_there_if_it_is_the_same() {
    let name = Name::new("create");
    let first = SharedMemory::create(&name.0, 100).unwrap();
    first.map().unwrap().write_at(0, b"x").unwrap();
    let second = SharedMemory::create(&name.0, 100).unwrap();
    assert_eq!(second.map().unwrap().to_vec(0..2).unwrap(), b"x\0");
    let error = SharedMemory::create(&name.0, 101).unwrap_err();
    assert!(
        matches!(&error, Error::NotTrusted { what, .. } if what.contains("100") && what.contains("101")),
        "{error}"
    );
    // Its creator has not set the length yet.
    std::fs::File::options().write(true).open(name.path()).unwrap().set_len(0).unwrap();
    assert_eq!(SharedMemory::create(&name.0, 64).unwrap().len(), 64);
    // Many at once: all get the same.
    SharedMemory::unlink(&name.0).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let name = &name;
            scope.spawn(move || {
                let memory = SharedMemory::create(&name.0, 16).unwrap();
                memory.map().unwrap().write_at(thread, &[1]).unwrap();
            });
        }
    });
    assert_eq!(SharedMemory::open(&name.0).unwrap().map().unwrap().to_vec(..).unwrap(), [1; 16]);
}

#[test]
fn unrelated_processes_see_the_same_bytes() {
    let this = "unrelated_processes_see_the_same_bytes";
    if let Some(name) = role() {
        let memory = SharedMemory::open(&name).unwrap().map().unwrap();
        assert_eq!(memory.to_vec(0..6).unwrap(), b"parent");
        return memory.write_at(PAGE, b"child").unwrap();
    }
    let name = Name::new("processes");
    let memory = SharedMemory::create_new(&name.0, 2 * PAGE as u64).unwrap().map().unwrap();
    memory.write_at(0, b"parent").unwrap();
    run_ok(child(this, &name.0));
    assert_eq!(memory.to_vec(PAGE..PAGE + 5).unwrap(), b"child");
}

#[test]
fn what_somebody_planted_is_refused() {
    let refused = |name: &Name, options: &SharedMemoryOptions, why: &str| {
        for outcome in [options.open(&name.0), options.open_read_only(&name.0), options.create(&name.0, 5)] {
            let error = outcome.unwrap_err();
            assert!(matches!(&error, Error::NotTrusted { what, .. } if what.contains(why)), "{why}: {error}");
        }
    };
    let (mine, dir) = (SharedMemoryOptions::new(), scratch());
    let target = dir.path().join("target");
    std::fs::write(&target, [0; 5]).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();

    let name = Name::new("symlink");
    symlink(&target, name.path()).unwrap();
    refused(&name, &mine, "symbolic link");
    assert_eq!(std::fs::read(&target).unwrap(), [0; 5]);

    let name = Name::new("dangling");
    symlink(dir.path().join("new"), name.path()).unwrap();
    assert_eq!(SharedMemory::create_new(&name.0, 5).unwrap_err().errno(), Some(libc::EEXIST));
    assert!(!dir.path().join("new").exists(), "nothing is made through a link");

    let (name, second) = (Name::new("hardlink"), Name::new("hardlink-2"));
    SharedMemory::create_new(&name.0, 5).unwrap();
    std::fs::hard_link(name.path(), second.path()).unwrap();
    refused(&name, &mine, "2 names");

    let name = Name::new("mode");
    SharedMemory::create_new(&name.0, 5).unwrap();
    std::fs::set_permissions(name.path(), std::fs::Permissions::from_mode(0o620)).unwrap();
    refused(&name, &mine, "mode 620");
    SharedMemoryOptions::new().mode(0o660).open(&name.0).unwrap();

    let name = Name::new("size");
    SharedMemory::create_new(&name.0, 1 << 40).unwrap();
    refused(&name, &SharedMemoryOptions::new().max_len(1 << 30), "1099511627776 bytes");

    let name = Name::new("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, name.path(), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let error = SharedMemory::open(&name.0).unwrap_err();
    assert!(matches!(error, Error::NotTrusted { .. }), "{error}");
    let name = Name::new("dir");
    std::fs::create_dir(name.path()).unwrap();
    let error = SharedMemory::open(&name.0).unwrap_err();
    assert!(matches!(error, Error::NotTrusted { .. }), "{error}");

    for bad in ["", "/", ".", "/..", "a/b", "//a", "a\0b", &"x".repeat(256)] {
        for outcome in [SharedMemory::open(bad), SharedMemory::create_new(bad, 1)] {
            assert!(matches!(outcome, Err(Error::Invalid { .. })), "{bad:?}");
        }
        assert!(matches!(SharedMemory::unlink(bad), Err(Error::Invalid { .. })), "{bad:?}");
    }
}

#[test]
fn memory_of_another_user_is_refused() {
    if !common::require_root() {
        return;
    }
    let name = Name::new("owner");
    SharedMemory::create_new(&name.0, 5).unwrap();
    std::os::unix::fs::chown(name.path(), Some(65_534), None).unwrap();
    let error = SharedMemory::open(&name.0).unwrap_err();
    assert!(matches!(&error, Error::NotTrusted { what, .. } if what.contains("65534")), "{error}");
    SharedMemoryOptions::new().owner(65_534).open(&name.0).unwrap();
}

#[test]
fn a_length_that_cannot_be_is_an_error_and_leaves_nothing() {
    let name = Name::new("length");
    let error = SharedMemory::create_new(&name.0, u64::MAX).unwrap_err();
    assert!(matches!(error.errno(), Some(libc::EINVAL | libc::EFBIG)), "{error}");
    assert!(!name.path().exists());
    let huge = SharedMemory::create_new(&name.0, 1 << 60).unwrap();
    assert!(matches!(huge.map().unwrap_err().errno(), Some(libc::ENOMEM | libc::EOVERFLOW)));
}

#[test]
fn a_peer_that_cuts_it_is_an_error() {
    let name = Name::new("cut");
    let mut memory = SharedMemory::create_new(&name.0, 8 * PAGE as u64).unwrap();
    let mut map = memory.map().unwrap();
    map.write_at(7 * PAGE, b"x").unwrap();
    SharedMemory::open(&name.0).unwrap().resize(PAGE as u64).unwrap();
    let error = map.read_at(7 * PAGE, &mut [0]).unwrap_err();
    let change = Change::Truncated { was: 8 * PAGE as u64, now: PAGE as u64 };
    assert!(matches!(&error, Error::Changed { change: told, .. } if *told == change), "{error:?}");
    memory.resize(16 * PAGE as u64).unwrap();
    map.resize(16 * PAGE, Resize::MayMove).unwrap();
    map.write_at(15 * PAGE, b"y").unwrap();
    assert_eq!(memory.map().unwrap().to_vec(15 * PAGE..15 * PAGE + 1).unwrap(), b"y");
    assert_eq!(std::fs::metadata(memory.path()).unwrap().size(), 16 * PAGE as u64);
}

#[test]
fn sealed_memory_is_a_slice_and_nobody_can_change_it() {
    let file = MemoryFile::create("sealed", 2 * PAGE as u64 + 5).unwrap();
    let map = file.map().unwrap();
    map.write_at(PAGE, b"for ever").unwrap();
    let refused = file.seal().unwrap_err();
    assert!(matches!(*refused.error, Error::Locked { .. }), "{}", refused.error);
    let file = refused.mapping;
    drop(map);
    let sealed = file.seal().unwrap();
    let bytes = sealed.map().unwrap();
    assert_eq!((&bytes[PAGE..PAGE + 8], bytes.len()), (&b"for ever"[..], 2 * PAGE + 5));
    let part = sealed.map_part(PAGE as u64 + 4, 4).unwrap();
    assert_eq!(&part[..], b"ever");
    assert!(matches!(sealed.map_part(PAGE as u64, 2 * PAGE), Err(Error::OutOfRange { .. })));
    assert!(bytes.make_mut().is_err(), "not by a change of protection either");
    let fd: OwnedFd = sealed.into();
    assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
    let file = MemoryFile::from_fd(fd.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(file.resize(1).unwrap_err().errno(), Some(libc::EPERM));
    assert!(file.map().is_err() && file.map_read_only().is_ok());
    // The other side of a socket checks before it trusts.
    assert_eq!(SealedMemory::from_fd(fd).unwrap().len(), 2 * PAGE as u64 + 5);
    let open = MemoryFile::create("open", 10).unwrap();
    open.seal_length().unwrap();
    assert_eq!(open.resize(11).unwrap_err().errno(), Some(libc::EPERM));
    let refused = SealedMemory::from_fd(open.into()).unwrap_err();
    assert!(matches!(*refused.error, Error::NotTrusted { .. }), "{}", refused.error);
    let file = MemoryFile::from_fd(refused.mapping).unwrap();
    file.map().unwrap().write_at(0, b"still writable").unwrap_err();
    file.map().unwrap().write_at(0, b"writable").unwrap();
}

#[test]
fn other_descriptors_are_no_memory_files() {
    let dir = scratch();
    let path = dir.path().join("file");
    std::fs::write(&path, b"on disk").unwrap();
    let fd = || OwnedFd::from(std::fs::File::open(&path).unwrap());
    assert!(matches!(*SealedMemory::from_fd(fd()).unwrap_err().error, Error::NotTrusted { .. }));
    assert!(matches!(*MemoryFile::from_fd(fd()).unwrap_err().error, Error::NotTrusted { .. }));
    assert!(matches!(MemoryFile::create("zero\0byte", 1), Err(Error::Invalid { .. })));
    assert!(matches!(MemoryFile::create(&"x".repeat(250), 1), Err(Error::Invalid { .. })));
    assert!(MemoryFile::create("too long", u64::MAX).is_err());
    let empty = MemoryFile::create("", 0).unwrap();
    assert!(empty.is_empty().unwrap() && empty.seal().unwrap().map().unwrap().is_empty());
}

#[test]
fn huge_memory_files_are_had_or_refused_by_name() {
    match MemoryFile::create_huge("huge", 4 << 20, 21) {
        Ok(file) => match file.map() {
            Ok(map) => {
                map.write_at((2 << 20) - 1, b"ab").unwrap();
                assert_eq!(
                    (map.page_size(), map.to_vec(2 << 20..(2 << 20) + 1).unwrap()),
                    (2 << 20, b"b".to_vec())
                );
                let (front, back) = map.split_at(2 << 20).unwrap();
                front.close().unwrap();
                back.close().unwrap();
            }
            Err(error) => {
                assert!(matches!(error, Error::LimitReached { limit: "vm.nr_hugepages", .. }), "{error:?}");
            }
        },
        Err(error) => assert!(matches!(error, Error::Unsupported { .. } | Error::Io { .. }), "{error:?}"),
    }
    assert!(MemoryFile::create_huge("no such size", 1, 13).is_err());
    let options = MmapOptions::new().huge(None);
    let file = MemoryFile::create("small", 10).unwrap();
    assert!(matches!(options.map_raw(&file), Err(Error::Invalid { .. })));
}

#[test]
fn of_two_who_create_it_with_different_lengths_one_is_told() {
    for round in 0..200 {
        let name = Name::new(&format!("race-{round}"));
        let lens = [PAGE as u64, 2 * PAGE as u64];
        let barrier = std::sync::Barrier::new(2);
        let made = std::thread::scope(|scope| {
            let threads = lens.map(|len| {
                let (name, barrier) = (&name, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    SharedMemory::create(&name.0, len).map(|memory| memory.len())
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let is = std::fs::metadata(name.path()).unwrap().len();
        for (made, len) in made.iter().zip(lens) {
            match made {
                Ok(has) => assert_eq!((*has, len), (is, is), "round {round}"),
                Err(error) => assert!(matches!(error, Error::NotTrusted { .. }), "{error}"),
            }
        }
    }
}
