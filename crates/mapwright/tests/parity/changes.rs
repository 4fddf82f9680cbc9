//! Cases of mprotect(2), munmap(2), msync(2) and mremap(2).

use std::fs::File;

use crate::Case;
use crate::side::{Of, PAGE, Prot, file, letters, locked_kib, on_disk, peek, text};

const MPROTECT: &str = "mprotect(2)";
const MUNMAP: &str = "munmap(2)";
const MSYNC: &str = "msync(2)";
const MREMAP: &str = "mremap(2)";

pub const CASES: &[Case] = &[
    Case::new(MPROTECT, "PROT_NONE The memory cannot be accessed at all.", "no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"x")?;
        s.protect(map, Prot::None)?;
        s.read(map, 0, 1).map(text)
    }),
    Case::new(MPROTECT, "PROT_READ The memory can be read.", "x, then no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"x")?;
        s.protect(map, Prot::Read)?;
        Ok(format!("{}, then {}", text(s.read(map, 0, 1)?), s.write(map, 0, b"y").unwrap_err()))
    }),
    Case::new(MPROTECT, "PROT_WRITE The memory can be modified.", "xy", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"x")?;
        s.protect(map, Prot::None)?;
        s.protect(map, Prot::Write)?;
        s.write(map, 1, b"y")?;
        s.read(map, 0, 2).map(text)
    }),
    Case::new(MPROTECT, "PROT_EXEC The memory can be executed.", "code, then no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"code")?;
        s.protect(map, Prot::Exec)?;
        Ok(format!("{}, then {}", text(s.read(map, 0, 4)?), s.write(map, 0, b"y").unwrap_err()))
    }),
    Case::new(
        MPROTECT,
        "This can happen, for example, if you mmap(2) a file to which you have read-only access, then ask mprotect() to mark \
         it PROT_WRITE.",
        "EACCES",
        |s| {
            file(s, &letters(1));
            let read_only = File::open(s.dir().join("file")).unwrap();
            let map = s.map(Of::Shared(&read_only), 0, PAGE, Prot::Read)?;
            s.protect(map, Prot::Write).map(|()| "writable".into())
        },
    ),
    Case::new(MPROTECT, "EACCES The memory cannot be given the specified access.", "aa, as before", |s| {
        file(s, &letters(1));
        let read_only = File::open(s.dir().join("file")).unwrap();
        let map = s.map(Of::Shared(&read_only), 0, PAGE, Prot::Read)?;
        let _ = s.protect(map, Prot::Write);
        Ok(format!("{}, as before", text(s.read(map, 0, 2)?)))
    }),
    Case::new(
        MPROTECT,
        "mprotect() changes the access protections for the calling process's memory pages containing any part of the address \
         range in the interval [addr, addr+len-1].",
        "no access at the page's end",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE + 1, Prot::Write)?;
            s.protect(map, Prot::None)?;
            Ok(format!("{} at the page's end", peek(s.address(map) + 2 * PAGE - 1, 1).unwrap_err()))
        },
    ),
    Case::new(MPROTECT, "The memory can be modified.", "mine, aaaa in the file", |s| {
        // A private mapping of a file opened for reading becomes writable: writes are its own.
        file(s, &letters(1));
        let read_only = File::open(s.dir().join("file")).unwrap();
        let map = s.map(Of::Private(&read_only), 0, PAGE, Prot::Read)?;
        s.protect(map, Prot::Write)?;
        s.write(map, 0, b"mine")?;
        Ok(format!("{}, {} in the file", text(s.read(map, 0, 4)?), text(on_disk(s)[..4].to_vec())))
    }),
    Case::new(
        MPROTECT,
        "If the calling process tries to access memory in a manner that violates the protections, then the kernel generates a \
         SIGSEGV signal for the process.",
        "no access, then aa",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            s.protect(map, Prot::Read)?;
            let refused = match crate::side::poke(s.address(map), b"x") {
                Ok(()) => "written".to_owned(),
                Err(refused) => refused,
            };
            Ok(format!("{refused}, then {}", text(on_disk(s)[..2].to_vec())))
        },
    ),
    Case::new(
        MUNMAP,
        "The munmap() system call deletes the mappings for the specified address range, and causes further references to \
         addresses within the range to generate invalid memory references.",
        "a, no access, c",
        |s| {
            let file = file(s, &letters(3));
            let map = s.map(Of::Shared(&file), 0, 3 * PAGE, Prot::Read)?;
            let address = s.address(map);
            s.unmap(map, PAGE..2 * PAGE)?;
            let seen = |page| peek(address + page * PAGE, 1).map_or_else(|error| error, text);
            Ok(format!("{}, {}, {}", seen(0), seen(1), seen(2)))
        },
    ),
    Case::new(
        MUNMAP,
        "All pages containing a part of the indicated range are unmapped, and subsequent references to these pages will \
         generate SIGSEGV.",
        "no access",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE + 1, Prot::Write)?;
            let address = s.address(map);
            s.unmap(map, 0..PAGE + 1)?;
            peek(address + 2 * PAGE - 1, 1).map(text)
        },
    ),
    Case::new(
        MUNMAP,
        "The address addr must be a multiple of the page size (but length need not be).",
        "EINVAL",
        |s| {
            let map = s.map(Of::Anon, 0, 2 * PAGE, Prot::Write)?;
            s.unmap(map, 1..PAGE).map(|()| "unmapped".into())
        },
    ),
    Case::new(
        "POSIX munmap",
        "If a mapping to be removed was private, any modifications made in this address range shall be discarded.",
        "aaaa",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Private(&file), 0, 2 * PAGE, Prot::Write)?;
            s.write(map, 0, b"gone")?;
            s.unmap(map, 0..PAGE)?;
            Ok(text(on_disk(s)[..4].to_vec()))
        },
    ),
    Case::new(
        "POSIX munmap",
        "Any memory locks (see mlock(3p) and mlockall(3p)) associated with this address range shall be removed, as if by an \
         appropriate call to munlock().",
        "4 KiB less",
        |s| {
            let map = s.map(Of::Anon, 0, 2 * PAGE, Prot::Write)?;
            s.lock(map, false)?;
            let before = locked_kib();
            s.unmap(map, 0..PAGE)?;
            Ok(format!("{} KiB less", before - locked_kib()))
        },
    ),
    Case::new(
        MUNMAP,
        "On the other hand, closing the file descriptor does not unmap the region.",
        "aa",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            drop(file);
            s.sync(map, 0..PAGE, true)?;
            s.read(map, 0, 2).map(text)
        },
    ),
    Case::new(
        MSYNC,
        "msync() flushes changes made to the in-core copy of a file that was mapped into memory using mmap(2) back to the \
         filesystem.",
        "new on the device",
        |s| {
            let file = file(s, &letters(2));
            file.sync_all().unwrap();
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Write)?;
            s.write(map, PAGE, b"new")?;
            s.sync(map, PAGE..PAGE + 3, true)?;
            // Clean pages can be dropped, and are read from the device then.
            let dirty = mapwright::mmap::cache_stat(&file, 0..2 * PAGE as u64).map_or(0, |stat| stat.dirty);
            assert_eq!(dirty, 0);
            Ok(format!("{} on the device", text(on_disk(s)[PAGE..PAGE + 3].to_vec())))
        },
    ),
    Case::new(
        MSYNC,
        "MS_ASYNC Specifies that an update be scheduled, but the call returns immediately.",
        "done",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.sync(map, 0..PAGE, false).map(|()| "done".into())
        },
    ),
    Case::new(
        "POSIX msync",
        "When the msync() function is called on MAP_PRIVATE mappings, any modified data shall not be written to the underlying \
         object and shall not cause such data to be made visible to other processes.",
        "aaaa, mine",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"mine")?;
            s.sync(map, 0..PAGE, true)?;
            Ok(format!("{}, {}", text(on_disk(s)[..4].to_vec()), text(s.read(map, 0, 4)?)))
        },
    ),
    Case::new(
        MSYNC,
        "To be more precise, the part of the file that corresponds to the memory area starting at addr and having length \
         length is updated.",
        "done",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.sync(map, 0..PAGE, true).map(|()| "done".into()) // there is no file: nothing to do
        },
    ),
    Case::new(
        "POSIX msync",
        "The msync() function shall write all modified data to permanent storage locations, if any, in those whole pages \
         containing any part of the address space of the process starting at address addr and continuing for len bytes.",
        "done, also of read-only mappings",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
            s.sync(map, 5..6, true)?;
            Ok("done, also of read-only mappings".into())
        },
    ),
    Case::new(
        MREMAP,
        "mremap() expands (or shrinks) an existing memory mapping, potentially moving it at the same time (controlled by the \
         flags argument and the available virtual address space).",
        "kept, 0000, shrunk",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.write(map, PAGE - 4, b"kept")?;
            s.resize(map, 300 * PAGE, true)?;
            let (kept, new) = (text(s.read(map, PAGE - 4, 4)?), text(s.read(map, 299 * PAGE, 4)?));
            s.resize(map, PAGE, false)?;
            let rest = peek(s.address(map) + PAGE, 1).map_or("shrunk", |_| "still there");
            Ok(format!("{kept}, {new}, {rest}"))
        },
    ),
    Case::new(
        MREMAP,
        "By default, if there is not sufficient space to expand a mapping at its current location, then mremap() fails.",
        "ENOMEM",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.resize(map, 1 << 46, false).map(|()| "grown".into())
        },
    ),
    Case::new(
        MREMAP,
        "If this flag is specified, then the kernel is permitted to relocate the mapping to a new virtual address, if \
         necessary.",
        "aa bb cc",
        |s| {
            let file = file(s, &letters(3));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
            s.resize(map, 3 * PAGE, true)?;
            let letter = |page| s.read(map, page * PAGE, 2).map(text);
            Ok(format!("{} {} {}", letter(0)?, letter(1)?, letter(2)?))
        },
    ),
    Case::new(MREMAP, "Or, there is not enough (virtual) memory available.", "ENOMEM, as it was", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"as it was")?;
        let error = s.resize(map, 1 << 46, true).unwrap_err();
        Ok(format!("{error}, {}", text(s.read(map, 0, 9)?)))
    }),
    Case::new(MREMAP, "EINVAL An invalid argument was given.", "EINVAL", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.resize(map, 0, true).map(|()| "empty".into())
    })
    .but_ours("empty", "nothing is a length like any other"),
    Case::new(
        MREMAP,
        "If the memory segment specified by old_address and old_size is locked (using mlock(2) or similar), then this lock is \
         maintained when the segment is resized and/or relocated.",
        "12 KiB more",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.lock(map, false)?;
            let before = locked_kib();
            s.resize(map, 4 * PAGE, true)?;
            Ok(format!("{} KiB more", locked_kib() - before))
        },
    ),
    Case::new(
        "mmap(2)",
        "SIGBUS Attempted access to a page of the buffer that lies beyond the end of the mapped file.",
        "no access past the end of the file",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            s.resize(map, 2 * PAGE, true)?;
            Ok(format!("{} past the end of the file", s.read(map, PAGE, 1).unwrap_err()))
        },
    ),
];
