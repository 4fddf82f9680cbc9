//! Cases of shm_open(3), memfd_create(2) and file seals (fcntl(2)).

use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use crate::Case;
use crate::side::{Of, PAGE, Prot, Shm, Side, letters, text};

const SHM: &str = "shm_open(3)";
const MEMFD: &str = "memfd_create(2)";
const SEALS: &str = "fcntl(2)";

/// Runs a case with a name of its own, which is gone afterwards.
fn named(
    s: &mut dyn Side,
    work: fn(&mut dyn Side, &str) -> Result<String, String>,
) -> Result<String, String> {
    let name = format!("/mapwright-parity-{}", std::process::id());
    let seen = work(s, &name);
    let _ = s.shm_unlink(&name);
    seen
}

pub const CASES: &[Case] = &[
    Case::new(
        SHM,
        "ENOENT An attempt was made to shm_open() a name that did not exist, and O_CREAT was not specified.",
        "ENOENT",
        |s| named(s, |s, name| s.shm(name, Shm::Open, 0).map(|_| "opened".into())),
    ),
    Case::new(
        SHM,
        "EEXIST Both O_CREAT and O_EXCL were specified to shm_open() and the shared memory object specified by name already exists.",
        "EEXIST",
        |s| {
            named(s, |s, name| {
                s.shm(name, Shm::CreateNew, 1)?;
                s.shm(name, Shm::CreateNew, 1).map(|_| "created".into())
            })
        },
    ),
    Case::new(
        SHM,
        "ENOENT An attempt was to made to shm_unlink() a name that does not exist.",
        "ENOENT",
        |s| named(s, |s, name| s.shm_unlink(name).map(|()| "unlinked".into())),
    ),
    Case::new(
        SHM,
        "The newly allocated bytes of a shared memory object are automatically initialized to 0.",
        "000",
        |s| {
            named(s, |s, name| {
                let memory = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Read)?;
                s.read(map, PAGE - 3, 3).map(text)
            })
        },
    ),
    Case::new(
        SHM,
        "A POSIX shared memory object is in effect a handle which can be used by unrelated processes to mmap(2) the same \
         region of shared memory.",
        "hello",
        |s| {
            named(s, |s, name| {
                let one = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let two = s.shm(name, Shm::Open, 0)?;
                let (one, two) = (
                    s.map(Of::Shared(&one), 0, PAGE, Prot::Write)?,
                    s.map(Of::Shared(&two), 0, PAGE, Prot::Read)?,
                );
                s.write(one, 9, b"hello")?;
                s.read(two, 9, 5).map(text)
            })
        },
    ),
    Case::new(
        SHM,
        "A shared memory object opened in this way can be mmap(2)ed only for read (PROT_READ) access.",
        "EACCES",
        |s| {
            named(s, |s, name| {
                s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let memory = s.shm(name, Shm::OpenReadOnly, 0)?;
                s.map(Of::Shared(&memory), 0, PAGE, Prot::Read)?;
                s.map(Of::Shared(&memory), 0, PAGE, Prot::Write).map(|_| "mapped".into())
            })
        },
    ),
    Case::new(
        SHM,
        "After a call to mmap(2) the file descriptor may be closed without affecting the memory mapping.",
        "kept",
        |s| {
            named(s, |s, name| {
                let memory = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Write)?;
                drop(memory);
                s.write(map, 0, b"kept")?;
                s.read(map, 0, 4).map(text)
            })
        },
    ),
    Case::new(
        SHM,
        "The operation of shm_unlink() is analogous to unlink(2): it removes a shared memory object name, and, once all \
         processes have unmapped the object, deallocates and destroys the contents of the associated memory region.",
        "kept",
        |s| {
            named(s, |s, name| {
                let memory = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Write)?;
                s.write(map, 0, b"kept")?;
                s.shm_unlink(name)?;
                drop(memory);
                s.read(map, 0, 4).map(text)
            })
        },
    ),
    Case::new(
        SHM,
        "After a successful shm_unlink(), attempts to shm_open() an object with the same name fail (unless O_CREAT was \
         specified, in which case a new, distinct object is created).",
        "ENOENT, then 000",
        |s| {
            named(s, |s, name| {
                let old = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let map = s.map(Of::Shared(&old), 0, PAGE, Prot::Write)?;
                s.write(map, 0, b"old")?;
                s.shm_unlink(name)?;
                let error = s.shm(name, Shm::Open, 0).unwrap_err();
                let new = s.shm(name, Shm::CreateNew, PAGE as u64)?;
                let new = s.map(Of::Shared(&new), 0, PAGE, Prot::Read)?;
                Ok(format!("{error}, then {}", text(s.read(new, 0, 3)?)))
            })
        },
    ),
    Case::new(
        SHM,
        "The user and group ownership of the object are taken from the corresponding effective IDs of the calling process, \
         and the object's permission bits are set according to the low-order 9 bits of mode, except that those bits set in \
         the process file mode creation mask (see umask(2)) are cleared for the new object.",
        "600",
        |s| {
            named(s, |s, name| {
                let memory = s.shm(name, Shm::CreateNew, 1)?;
                Ok(format!("{:o}", memory.metadata().unwrap().permissions().mode() & 0o777))
            })
        },
    ),
    Case::new(SHM, "The FD_CLOEXEC flag (see fcntl(2)) is set for the file descriptor.", "set", |s| {
        named(s, |s, name| {
            let memory = s.shm(name, Shm::CreateNew, 1)?;
            let flags = rustix::io::fcntl_getfd(&memory).unwrap();
            Ok(if flags.contains(rustix::io::FdFlags::CLOEXEC) { "set" } else { "clear" }.into())
        })
    }),
    Case::new(SHM, "EINVAL The name argument to shm_open() was invalid.", "EINVAL EINVAL", |s| {
        let [slash, inner] = ["/", "/a/b"].map(|name| s.shm(name, Shm::Open, 0).map(drop).unwrap_err());
        Ok(format!("{slash} {inner}"))
    }),
    Case::new(SHM, "ENAMETOOLONG The length of name exceeds PATH_MAX.", "ENAMETOOLONG", |s| {
        match s.shm(&format!("/{}", "x".repeat(5000)), Shm::Open, 0).map(drop).unwrap_err().as_str() {
            // glibc checks the length first.
            "EINVAL" | "ENAMETOOLONG" => Ok("ENAMETOOLONG".into()),
            other => Err(other.into()),
        }
    }),
    Case::new(
        MEMFD,
        "The file behaves like a regular file, and so can be modified, truncated, memory-mapped, and so on.",
        "ab, no access",
        |s| {
            let memory = s.memfd("plain", 2 * PAGE as u64)?;
            let map = s.map(Of::Shared(&memory), 0, 2 * PAGE, Prot::Write)?;
            std::os::unix::fs::FileExt::write_all_at(&memory, b"ab", 0).unwrap();
            memory.set_len(PAGE as u64).unwrap();
            Ok(format!("{}, {}", text(s.read(map, 0, 2)?), s.read(map, PAGE, 1).unwrap_err()))
        },
    ),
    Case::new(MEMFD, "EINVAL name was too long.", "EINVAL", |s| {
        s.memfd(&"x".repeat(250), 1).map(|_| "made".into())
    }),
    Case::new(
        MEMFD,
        "Names do not affect the behavior of the file descriptor, and as such multiple files can have the same name without \
         any side effects.",
        "one two",
        |s| {
            let files = [s.memfd("same", PAGE as u64)?, s.memfd("same", PAGE as u64)?];
            let maps = [
                s.map(Of::Shared(&files[0]), 0, PAGE, Prot::Write)?,
                s.map(Of::Shared(&files[1]), 0, PAGE, Prot::Write)?,
            ];
            s.write(maps[0], 0, b"one")?;
            s.write(maps[1], 0, b"two")?;
            Ok(format!("{} {}", text(s.read(maps[0], 0, 3)?), text(s.read(maps[1], 0, 3)?)))
        },
    ),
    Case::new(
        SEALS,
        "Using the F_ADD_SEALS operation to set the F_SEAL_WRITE seal fails with EBUSY if any writable, shared mapping exists.",
        "EBUSY",
        |s| {
            let memory = s.memfd("busy", PAGE as u64)?;
            s.map(Of::Shared(&memory), 0, PAGE, Prot::Write)?;
            s.seal(&memory).map(|()| "sealed".into())
        },
    ),
    Case::new(
        SEALS,
        "Furthermore, trying to create new shared, writable memory-mappings via mmap(2) will also fail with EPERM.",
        "EPERM",
        |s| {
            let memory = s.memfd("sealed", PAGE as u64)?;
            s.seal(&memory)?;
            s.map(Of::Shared(&memory), 0, PAGE, Prot::Write).map(|_| "mapped".into())
        },
    ),
    Case::new(
        SEALS,
        "If this seal is set, you cannot modify the contents of the file.",
        "aa, errno EPERM",
        |s| {
            let memory = s.memfd("sealed", 0)?;
            std::os::unix::fs::FileExt::write_all_at(&memory, &letters(1), 0).unwrap();
            s.seal(&memory)?;
            let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Read)?;
            let error = std::os::unix::fs::FileExt::write_at(&memory, b"x", 0).unwrap_err();
            let name = crate::side::name_of(error.raw_os_error().unwrap());
            Ok(format!("{}, errno {name}", text(s.read(map, 0, 2)?)))
        },
    ),
    Case::new(
        SEALS,
        "If this seal is set, the file in question cannot be reduced in size.",
        "EPERM EPERM",
        |s| {
            let memory: File = s.memfd("sealed", PAGE as u64)?;
            s.seal(&memory)?;
            let set = |len| crate::side::name_of(memory.set_len(len).unwrap_err().raw_os_error().unwrap());
            Ok(format!("{} {}", set(0), set(2 * PAGE as u64)))
        },
    ),
    Case::new(
        SEALS,
        "If this seal is set, any further call to fcntl() with F_ADD_SEALS fails with the error EPERM.",
        "EPERM",
        |s| {
            let memory = s.memfd("sealed", PAGE as u64)?;
            s.seal(&memory)?;
            s.seal(&memory).map(|()| "sealed twice".into())
        },
    ),
    Case::new(
        SEALS,
        "Currently, file seals can be applied only to a file descriptor returned by memfd_create(2) (if the \
         MFD_ALLOW_SEALING was employed).",
        "EINVAL",
        |s| {
            let file = crate::side::file(s, b"on disk");
            s.seal(&file).map(|()| "sealed".into())
        },
    )
    .but_ours("refused", "the error is NotTrusted: a descriptor that somebody sent is no memfd"),
    Case::new(SHM, "O_RDWR Open the object for read-write access.", "both", |s| {
        named(s, |s, name| {
            s.shm(name, Shm::CreateNew, PAGE as u64)?;
            let memory = s.shm(name, Shm::Open, 0)?;
            let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Write)?;
            s.write(map, 1, b"both")?;
            s.read(map, 1, 4).map(text)
        })
    }),
    Case::new(
        SHM,
        "shm_open() creates and opens a new, or opens an existing, POSIX shared memory object.",
        "0 bytes, then 4096",
        |s| {
            named(s, |s, name| {
                let memory = s.shm(name, Shm::CreateNew, 0)?;
                let before = memory.metadata().unwrap().len();
                memory.set_len(PAGE as u64).unwrap();
                let now = s.shm(name, Shm::Open, 0)?.metadata().unwrap().len();
                Ok(format!("{before} bytes, then {now}"))
            })
        },
    ),
    Case::new(
        SHM,
        "ENOENT An attempt was made to shm_open() a name that did not exist, and O_CREAT was not specified.",
        "ENOENT",
        |s| named(s, |s, name| s.shm(name, Shm::OpenReadOnly, 0).map(|_| "opened".into())),
    ),
    Case::new(MEMFD, "The initial size of the file is set to 0.", "0, then 5", |s| {
        let memory = s.memfd("sized", 0)?;
        let before = memory.metadata().unwrap().len();
        std::os::unix::fs::FileExt::write_all_at(&memory, b"abcde", 0).unwrap();
        Ok(format!("{before}, then {}", memory.metadata().unwrap().len()))
    }),
    Case::new(
        MEMFD,
        "This file descriptor is opened for both reading and writing (O_RDWR) and O_LARGEFILE is set for the file descriptor.",
        "both, 5 GiB",
        |s| {
            let memory = s.memfd("large", 5 << 30)?;
            let map = s.map(Of::Shared(&memory), (5 << 30) - PAGE as u64, PAGE, Prot::Write)?;
            s.write(map, PAGE - 4, b"both")?;
            Ok(format!("{}, {} GiB", text(s.read(map, PAGE - 4, 4)?), memory.metadata().unwrap().len() >> 30))
        },
    ),
    Case::new(MEMFD, "Set the close-on-exec (FD_CLOEXEC) flag on the new file descriptor.", "set", |s| {
        let flags = rustix::io::fcntl_getfd(s.memfd("exec", 1)?).unwrap();
        Ok(if flags.contains(rustix::io::FdFlags::CLOEXEC) { "set" } else { "clear" }.into())
    }),
    Case::new(
        SEALS,
        "Thus, all open file descriptors referring to the same inode share the same set of seals.",
        "EPERM",
        |s| {
            let memory = s.memfd("shared seals", PAGE as u64)?;
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
            let other = File::options().read(true).write(true).open(path).unwrap();
            s.seal(&memory)?;
            s.map(Of::Shared(&other), 0, PAGE, Prot::Write).map(|_| "mapped".into())
        },
    ),
];
