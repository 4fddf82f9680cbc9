//! Cases of mmap(2): what can be made, and what it shows.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::Case;
use crate::side::{Extra, Of, PAGE, Prot, file, in_child, letters, locked_kib, on_disk, peek, poke, text};

const MMAP: &str = "mmap(2)";
const POSIX: &str = "POSIX mmap";

pub const CASES: &[Case] = &[
    Case::new(
        MMAP,
        "The length argument specifies the length of the mapping (which must be greater than 0).",
        "EINVAL",
        |s| s.map(Of::Anon, 0, 0, Prot::Write).map(|_| "mapped".into()),
    )
    .but_ours("mapped", "nothing is a length like any other: an empty file is an empty mapping"),
    Case::new(
        MMAP,
        "The mapping is not backed by any file; its contents are initialized to zero.",
        "00000000",
        |s| {
            let map = s.map(Of::Anon, 0, 3 * PAGE, Prot::Write)?;
            s.read(map, 2 * PAGE - 4, 8).map(text)
        },
    ),
    Case::new(
        MMAP,
        "Support for MAP_ANONYMOUS in conjunction with MAP_SHARED was added in Linux 2.4.",
        "000",
        |s| {
            let map = s.map(Of::AnonShared, 0, PAGE, Prot::Write)?;
            s.read(map, 5, 3).map(text)
        },
    ),
    Case::new(
        MMAP,
        "The contents of a file mapping (as opposed to an anonymous mapping; see MAP_ANONYMOUS below), are initialized using \
         length bytes starting at offset offset in the file (or other object) referred to by the file descriptor fd.",
        "bbcc",
        |s| {
            let file = file(s, &letters(3));
            let map = s.map(Of::Shared(&file), PAGE as u64, 2 * PAGE, Prot::Read)?;
            s.read(map, PAGE - 2, 4).map(text)
        },
    ),
    Case::new(
        MMAP,
        "offset must be a multiple of the page size as returned by sysconf(_SC_PAGE_SIZE).",
        "abb",
        // The raw side does here what programs do: it rounds down, and skips.
        |s| {
            let file = file(s, &letters(3));
            let map = s.map(Of::Shared(&file), PAGE as u64 - 1, PAGE, Prot::Read)?;
            s.read(map, 0, 3).map(text)
        },
    ),
    Case::new(
        MMAP,
        "After the mmap() call has returned, the file descriptor, fd, can be closed immediately without invalidating the mapping.",
        "aa",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
            drop(file);
            s.read(map, 0, 2).map(text)
        },
    ),
    Case::new(
        POSIX,
        "The mmap() function shall add an extra reference to the file associated with the file descriptor fildes which is not \
         removed by a subsequent close() on that file descriptor.",
        "bb",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Private(&file), PAGE as u64, PAGE, Prot::Read)?;
            std::fs::remove_file(s.dir().join("file")).unwrap();
            drop(file);
            s.read(map, 7, 2).map(text)
        },
    ),
    Case::new(MMAP, "PROT_WRITE Pages may be written.", "new", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 100, b"new")?;
        s.read(map, 100, 3).map(text)
    }),
    Case::new(MMAP, "PROT_NONE Pages may not be accessed.", "no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::None)?;
        s.read(map, 0, 1).map(text)
    }),
    Case::new(MMAP, "SIGSEGV Attempted write into a region mapped as read-only.", "no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Read)?;
        s.read(map, 0, 1)?;
        s.write(map, 0, b"x").map(|()| "written".into())
    }),
    Case::new(MMAP, "PROT_EXEC Pages may be executed.", "00, then no access", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Exec)?;
        let read = s.read(map, 0, 2).map(text)?;
        Ok(format!("{read}, then {}", s.write(map, 0, b"x").unwrap_err()))
    }),
    Case::new(MMAP, "PROT_READ Pages may be read.", "aa", |s| {
        let file = file(s, &letters(1));
        let map = s.map(Of::Private(&file), 0, PAGE, Prot::Exec)?;
        s.read(map, PAGE - 2, 2).map(text)
    }),
    Case::new(
        MMAP,
        "Updates to the mapping are visible to other processes mapping the same region, and (in the case of file-backed \
         mappings) are carried through to the underlying file.",
        "new, new, seen by the child",
        |s| {
            let file = file(s, &letters(1));
            let (one, two) = (
                s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?,
                s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?,
            );
            s.write(one, 10, b"new")?;
            let address = s.address(two) + 10;
            let child = in_child(|| peek(address, 3).as_deref() == Ok(b"new"));
            let child = if child { "seen" } else { "not seen" };
            Ok(format!(
                "{}, {}, {child} by the child",
                text(s.read(two, 10, 3)?),
                text(on_disk(s)[10..13].to_vec())
            ))
        },
    ),
    Case::new(
        POSIX,
        "If MAP_SHARED is specified, write references shall change the underlying object.",
        "zz",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Shared(&file), PAGE as u64, PAGE, Prot::Write)?;
            s.write(map, 0, b"zz")?;
            Ok(text(on_disk(s)[PAGE..PAGE + 2].to_vec()))
        },
    ),
    Case::new(
        POSIX,
        "If MAP_PRIVATE is specified, modifications to the mapped data by the calling process shall be visible only to the \
         calling process and shall not change the underlying object.",
        "mine aaaa aaaa",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            let other = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
            s.write(map, 0, b"mine")?;
            let disk = text(on_disk(s)[..4].to_vec());
            Ok(format!("{} {} {disk}", text(s.read(map, 0, 4)?), text(s.read(other, 0, 4)?)))
        },
    ),
    Case::new(
        MMAP,
        "Updates to the mapping are not visible to other processes mapping the same file, and are not carried through to the \
         underlying file.",
        "one two",
        |s| {
            let file = file(s, &letters(1));
            let (one, two) = (
                s.map(Of::Private(&file), 0, PAGE, Prot::Write)?,
                s.map(Of::Private(&file), 0, PAGE, Prot::Write)?,
            );
            s.write(one, 0, b"one")?;
            s.write(two, 0, b"two")?;
            Ok(format!("{} {}", text(s.read(one, 0, 3)?), text(s.read(two, 0, 3)?)))
        },
    ),
    Case::new(MMAP, "Share this mapping.", "wr", |s| {
        // What write(2) writes is in the mapping, and the other way round.
        let file = file(s, &letters(1));
        let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
        file.write_all_at(b"w", 0).unwrap();
        s.write(map, 1, b"r")?;
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(s.read(map, 0, 2)?, bytes);
        Ok(text(bytes.to_vec()))
    }),
    Case::new(POSIX, "The mapping type is retained across fork().", "child aaaaa", |s| {
        let file = file(s, &letters(2));
        let shared = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
        let private = s.map(Of::Private(&file), PAGE as u64, PAGE, Prot::Write)?;
        s.write(private, 0, b"aaaaa")?;
        let addresses = [s.address(shared), s.address(private)];
        assert!(in_child(|| addresses.into_iter().all(|address| poke(address, b"child").is_ok())));
        Ok(format!("{} {}", text(s.read(shared, 0, 5)?), text(s.read(private, 0, 5)?)))
    }),
    Case::new(
        MMAP,
        "Memory mapped by mmap() is preserved across fork(2), with the same attributes.",
        "read only",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Read)?;
            let address = s.address(map);
            let same = in_child(|| peek(address, 1).is_ok() && poke(address, b"x").is_err());
            Ok(if same { "read only" } else { "other" }.into())
        },
    ),
    Case::new(
        POSIX,
        "The system shall always zero-fill any partial page at the end of an object.",
        "ab000",
        |s| {
            let file = file(s, b"ab");
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
            s.read(map, 0, 5).map(text)
        },
    ),
    Case::new(
        POSIX,
        "Further, the system shall never write out any modified portions of the last page of an object which are beyond its end.",
        "ab",
        |s| {
            let file = file(s, b"ab");
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            s.write(map, 2, b"cd")?;
            s.sync(map, 0..PAGE, true)?;
            Ok(text(on_disk(s)))
        },
    ),
    Case::new(
        POSIX,
        "References within the address range starting at pa and continuing for len bytes to whole pages following the end of \
         an object shall result in delivery of a SIGBUS signal.",
        "no access",
        |s| {
            let file = file(s, b"ab");
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Read)?;
            s.read(map, PAGE, 1).map(text)
        },
    ),
    Case::new(
        MMAP,
        "SIGBUS Attempted access to a page of the buffer that lies beyond the end of the mapped file.",
        "no access for writing either",
        |s| {
            let file = file(s, &letters(3));
            let map = s.map(Of::Shared(&file), 0, 3 * PAGE, Prot::Write)?;
            file.set_len(PAGE as u64).unwrap();
            Ok(format!("{} for writing either", s.write(map, 2 * PAGE, b"x").unwrap_err()))
        },
    ),
    Case::new(
        MMAP,
        "The effect of changing the size of the underlying file of a mapping on the pages that correspond to added or removed \
         regions of the file is unspecified.",
        "no access, then 0",
        |s| {
            // On Linux: they come and go with the file.
            let file = file(s, &letters(1));
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Read)?;
            let before = s.read(map, PAGE, 1).unwrap_err();
            file.set_len(2 * PAGE as u64).unwrap();
            Ok(format!("{before}, then {}", text(s.read(map, PAGE, 1)?)))
        },
    ),
    Case::new(
        POSIX,
        "[EACCES] The fildes argument is not open for read, regardless of the protection specified, or fildes is not open for \
         write and PROT_WRITE was specified for a MAP_SHARED type mapping.",
        "EACCES EACCES",
        |s| {
            file(s, &letters(1));
            let path = s.dir().join("file");
            let write_only = File::options().write(true).open(&path).unwrap();
            let read_only = File::open(&path).unwrap();
            let first = s.map(Of::Shared(&write_only), 0, PAGE, Prot::Write).unwrap_err();
            let second = s.map(Of::Shared(&read_only), 0, PAGE, Prot::Write).unwrap_err();
            Ok(format!("{first} {second}"))
        },
    ),
    Case::new(
        POSIX,
        "If PROT_WRITE is specified, the application shall ensure that it has opened the file descriptor fildes with write \
         permission unless MAP_PRIVATE is specified in the flags parameter as described below.",
        "mine",
        |s| {
            file(s, &letters(1));
            let read_only = File::open(s.dir().join("file")).unwrap();
            let map = s.map(Of::Private(&read_only), 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"mine")?;
            s.read(map, 0, 4).map(text)
        },
    ),
    Case::new(MMAP, "Or a file mapping was requested, but fd is not open for reading.", "EACCES", |s| {
        file(s, &letters(1));
        let write_only = File::options().write(true).open(s.dir().join("file")).unwrap();
        s.map(Of::Private(&write_only), 0, PAGE, Prot::Write).map(|_| "mapped".into())
    }),
    Case::new(MMAP, "Or PROT_WRITE is set, but the file is append-only.", "EACCES", |s| {
        file(s, &letters(1));
        // Opened for appending only, which is not for reading: as an inode attribute it needs a privilege.
        let append = File::options().append(true).open(s.dir().join("file")).unwrap();
        s.map(Of::Shared(&append), 0, PAGE, Prot::Write).map(|_| "mapped".into())
    }),
    Case::new(
        POSIX,
        "[ENODEV] The fildes argument refers to a file whose type is not supported by mmap().",
        "ENODEV",
        |s| {
            let directory = File::open(s.dir()).unwrap();
            s.map(Of::Shared(&directory), 0, PAGE, Prot::Read).map(|_| "mapped".into())
        },
    ),
    Case::new(
        MMAP,
        "ENODEV The underlying filesystem of the specified file does not support memory mapping.",
        "EIO or ENODEV",
        |s| {
            let status = File::open("/proc/self/status").unwrap();
            match s.map(Of::Private(&status), 0, PAGE, Prot::Write).unwrap_err().as_str() {
                "errno 5" | "ENODEV" => Ok("EIO or ENODEV".into()),
                other => Err(other.into()),
            }
        },
    ),
    Case::new(MMAP, "EACCES A file descriptor refers to a non-regular file.", "ENODEV", |s| {
        // Linux has had ENODEV for pipes since.
        let (pipe, _other) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        s.map(Of::Shared(&pipe), 0, PAGE, Prot::Read).map(|_| "mapped".into())
    }),
    Case::new(
        MMAP,
        "EINVAL We don't like addr, length, or offset (e.g., they are too large, or not aligned on a page boundary).",
        "ENOMEM",
        |s| s.map(Of::Anon, 0, 1 << 55, Prot::Write).map(|_| "mapped".into()),
    ),
    Case::new(MMAP, "ENOMEM No memory is available.", "ENOMEM", |s| {
        s.map(Of::Anon, 0, 1 << 47, Prot::None).map(|_| "mapped".into())
    }),
    Case::new(
        MMAP,
        "EOVERFLOW On 32-bit architecture together with the large file extension (i.e., using 64-bit off_t): the number of \
         pages used for length plus number of pages used for offset would overflow unsigned long (32 bits).",
        "EOVERFLOW",
        |s| {
            // On 64 bits it is the signed offset that overflows.
            let file = file(s, &letters(1));
            let offset = (i64::MAX as u64) / PAGE as u64 * PAGE as u64;
            s.map(Of::Shared(&file), offset, 2 * PAGE, Prot::Read).map(|_| "mapped".into())
        },
    ),
    Case::new(
        MMAP,
        "If another mapping already exists there, the kernel picks a new address that may or may not depend on the hint.",
        "other addresses",
        |s| {
            let maps = [0; 5].map(|_| s.map(Of::Anon, 0, PAGE, Prot::Write));
            let mut addresses = Vec::new();
            for map in maps {
                addresses.push(s.address(map?));
            }
            addresses.sort_unstable();
            let apart = addresses.windows(2).all(|two| two[1] - two[0] >= PAGE);
            Ok(if apart { "other addresses" } else { "the same" }.into())
        },
    ),
    Case::new(
        POSIX,
        "When the implementation selects a value for pa, it never places a mapping at address 0, nor does it replace any \
         extant mapping.",
        "kept",
        |s| {
            let first = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.write(first, 0, b"kept")?;
            let second = s.map(Of::Anon, 0, 100 * PAGE, Prot::Write)?;
            assert_ne!(s.address(second), 0);
            s.read(first, 0, 4).map(text)
        },
    ),
    Case::new(
        MMAP,
        "If the requested range would collide with an existing mapping, then this call fails with the error EEXIST.",
        "EEXIST",
        |s| s.place_twice(2 * PAGE).map(|_| "mapped".into()),
    ),
    Case::new(
        POSIX,
        "Thus, while the argument len need not meet a size or alignment constraint, the implementation shall include, in any \
         mapping operation, any partial page specified by the range [pa,pa+len).",
        "aab",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Shared(&file), 0, PAGE + 1, Prot::Read)?;
            s.read(map, PAGE - 2, 3).map(text)
        },
    ),
    Case::new(
        MMAP,
        "The st_ctime and st_mtime field for a file mapped with PROT_WRITE and MAP_SHARED will be updated after a write to \
         the mapped region, and before a subsequent msync(2) with the MS_SYNC or MS_ASYNC flag, if one occurs.",
        "updated",
        |s| {
            let file = file(s, &letters(1));
            let long_ago = std::time::SystemTime::UNIX_EPOCH;
            file.set_modified(long_ago).unwrap();
            let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.sync(map, 0..PAGE, true)?;
            let modified = file.metadata().unwrap().modified().unwrap();
            Ok(if modified > long_ago { "updated" } else { "as it was" }.into())
        },
    ),
    Case::new(MMAP, "PROT_NONE Pages may not be accessed.", "0, no access, no access", |s| {
        // Guard pages on both sides, by whatever means.
        let map = s.guarded(2 * PAGE)?;
        let address = s.address(map);
        let [below, above] = [address - 1, address + 2 * PAGE].map(|at| peek(at, 1).unwrap_err());
        Ok(format!("{}, {below}, {above}", text(s.read(map, 2 * PAGE - 1, 1)?)))
    }),
    Case::new(MMAP, "Populate (prefault) page tables for a mapping.", "4 of 4", |s| {
        let map = s.map_with(4 * PAGE, Extra::Populate)?;
        Ok(format!("{} of 4", s.resident(map, 0..4 * PAGE)?.into_iter().filter(|page| *page).count()))
    }),
    Case::new(MMAP, "Do not reserve swap space for this mapping.", "0", |s| {
        let map = s.map_with(1 << 40, Extra::NoReserve)?; // more than any swap space
        s.read(map, (1 << 40) - 1, 1).map(text)
    }),
    Case::new(
        MMAP,
        "Allocate the mapping at an address suitable for a process or thread stack.",
        "deep",
        |s| {
            let map = s.map_with(256 << 10, Extra::Stack)?;
            s.write(map, (256 << 10) - 4, b"deep")?;
            s.read(map, (256 << 10) - 4, 4).map(text)
        },
    ),
    Case::new(MMAP, "Mark the mapped region to be locked in the same way as mlock(2).", "8 KiB", |s| {
        let before = locked_kib();
        s.map_with(2 * PAGE, Extra::Locked)?;
        Ok(format!("{} KiB", locked_kib() - before))
    }),
    Case::new(MMAP, "Allocate the mapping using \"huge\" pages.", "huge, or ENOMEM for want of them", |s| {
        match s.map_with(2 << 20, Extra::Huge) {
            Ok(map) => s.write(map, (2 << 20) - 1, b"x").map(|()| "huge, or ENOMEM for want of them".into()),
            Err(error) if error == "ENOMEM" => Ok("huge, or ENOMEM for want of them".into()),
            Err(error) => Err(error),
        }
    }),
    Case::new(
        MMAP,
        "It is unspecified whether changes made to the file after the mmap() call are visible in the mapped region.",
        "new, then mine",
        |s| {
            // On Linux they are, until the page is the mapping's own.
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            file.write_all_at(b"new!", 0).unwrap();
            let before = text(s.read(map, 0, 3)?);
            s.write(map, 0, b"mine")?;
            file.write_all_at(b"late", 0).unwrap();
            Ok(format!("{before}, then {}", text(s.read(map, 0, 4)?)))
        },
    ),
];
