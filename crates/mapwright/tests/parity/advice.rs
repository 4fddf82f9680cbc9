//! Cases of madvise(2), mincore(2) and mlock(2).

use mapwright::mmap::Advice;

use crate::Case;
use crate::side::{Of, PAGE, Prot, file, in_child, letters, locked_kib, on_disk, peek, text};

const MADVISE: &str = "madvise(2)";
const MINCORE: &str = "mincore(2)";
const MLOCK: &str = "mlock(2)";

/// A mark for each page.
fn marks(pages: &[bool]) -> String {
    pages.iter().map(|page| if *page { 'x' } else { '-' }).collect()
}

/// An advice on anonymous memory with something in it: the outcome, and what is in it then.
fn advised(s: &mut dyn crate::side::Side, advice: Advice) -> Result<String, String> {
    let map = s.map(Of::Anon, 0, 2 * PAGE, Prot::Write)?;
    s.write(map, PAGE - 2, b"kept")?;
    s.advise(map, 0..2 * PAGE, advice)?;
    s.read(map, PAGE - 2, 4).map(text)
}

/// KSM is there or not.
fn without_ksm(seen: Result<String, String>) -> Result<String, String> {
    match seen {
        Ok(seen) if seen == "kept" => Ok("kept, or EINVAL without KSM".into()),
        Err(error) if error == "EINVAL" => Ok("kept, or EINVAL without KSM".into()),
        other => other,
    }
}

pub const CASES: &[Case] = &[
    Case::new(MADVISE, "MADV_NORMAL No special treatment.", "kept", |s| advised(s, Advice::Normal)),
    Case::new(MADVISE, "MADV_RANDOM Expect page references in random order.", "kept", |s| {
        advised(s, Advice::Random)
    }),
    Case::new(MADVISE, "MADV_SEQUENTIAL Expect page references in sequential order.", "kept", |s| {
        advised(s, Advice::Sequential)
    }),
    Case::new(MADVISE, "MADV_WILLNEED Expect access in the near future.", "kept", |s| {
        advised(s, Advice::WillNeed)
    }),
    Case::new(MADVISE, "This is a nondestructive operation.", "kept", |s| advised(s, Advice::Cold)),
    Case::new(
        MADVISE,
        "If a page is anonymous, it will be swapped out.",
        "kept",
        // Where there is swap; the contents stay in any case.
        |s| advised(s, Advice::PageOut),
    ),
    Case::new(
        MADVISE,
        "If a page is file-backed and dirty, it will be written back to the backing storage.",
        "new new",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Write)?;
            s.write(map, PAGE, b"new")?;
            s.advise(map, 0..2 * PAGE, Advice::PageOut)?;
            Ok(format!("{} {}", text(s.read(map, PAGE, 3)?), text(on_disk(s)[PAGE..PAGE + 3].to_vec())))
        },
    ),
    Case::new(
        MADVISE,
        "Ensures that memory in the address range specified by addr and length will not be backed by transparent hugepages.",
        "kept",
        |s| advised(s, Advice::NoHugePage),
    ),
    Case::new(
        MADVISE,
        "Exclude from a core dump those pages in the range specified by addr and length.",
        "kept",
        |s| advised(s, Advice::DontDump),
    ),
    Case::new(MADVISE, "Undo the effect of an earlier MADV_DONTDUMP.", "kept", |s| {
        advised(s, Advice::DoDump)
    }),
    Case::new(
        MADVISE,
        "Do not make the pages in this range available to the child after a fork(2).",
        "no access in the child",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.advise(map, 0..PAGE, Advice::DontFork)?;
            let address = s.address(map);
            Ok(if in_child(|| peek(address, 1).is_err()) { "no access in the child" } else { "there" }.into())
        },
    ),
    Case::new(
        MADVISE,
        "Undo the effect of MADV_DONTFORK, restoring the default behavior, whereby a mapping is inherited across fork(2).",
        "there",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.advise(map, 0..PAGE, Advice::DontFork)?;
            s.advise(map, 0..PAGE, Advice::DoFork)?;
            let address = s.address(map);
            Ok(if in_child(|| peek(address, 1).is_ok()) { "there" } else { "no access in the child" }.into())
        },
    ),
    Case::new(
        MADVISE,
        "Present the child process with zero-filled memory in this range after a fork(2).",
        "zero in the child, x here",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.advise(map, 0..PAGE, Advice::WipeOnFork)?;
            let address = s.address(map);
            let child = if in_child(|| peek(address, 1).as_deref() == Ok(&[0])) { "zero" } else { "other" };
            Ok(format!("{child} in the child, {} here", text(s.read(map, 0, 1)?)))
        },
    ),
    Case::new(
        MADVISE,
        "The MADV_WIPEONFORK operation can be applied only to private anonymous pages (see mmap(2)).",
        "EINVAL",
        |s| {
            let map = s.map(Of::AnonShared, 0, PAGE, Prot::Write)?;
            s.advise(map, 0..PAGE, Advice::WipeOnFork).map(|()| "done".into())
        },
    ),
    Case::new(MADVISE, "Undo the effect of an earlier MADV_WIPEONFORK.", "x in the child", |s| {
        let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"x")?;
        s.advise(map, 0..PAGE, Advice::WipeOnFork)?;
        s.advise(map, 0..PAGE, Advice::KeepOnFork)?;
        let address = s.address(map);
        Ok(if in_child(|| peek(address, 1).as_deref() == Ok(b"x")) { "x in the child" } else { "other" }
            .into())
    }),
    Case::new(
        MADVISE,
        "After a successful MADV_DONTNEED operation, the semantics of memory access in the specified region are changed: \
         subsequent accesses of pages in the range will succeed, but will result in either repopulating the memory contents \
         from the up-to-date contents of the underlying mapped file (for shared file mappings, shared anonymous mappings, and \
         shmem-based techniques such as System V shared memory segments) or zero-fill-on-demand pages for anonymous private \
         mappings.",
        "file kept, shared kept, private 0000",
        |s| {
            let file = file(s, &letters(1));
            let maps = [
                s.map(Of::Shared(&file), 0, PAGE, Prot::Write)?,
                s.map(Of::AnonShared, 0, PAGE, Prot::Write)?,
                s.map(Of::Anon, 0, PAGE, Prot::Write)?,
            ];
            for map in maps {
                s.write(map, 0, b"kept")?;
                s.dont_need(map, 0..PAGE)?;
            }
            let seen = |map| s.read(map, 0, 4).map(text);
            Ok(format!("file {}, shared {}, private {}", seen(maps[0])?, seen(maps[1])?, seen(maps[2])?))
        },
    ),
    Case::new(MADVISE, "MADV_DONTNEED Do not expect access in the near future.", "aaaa", |s| {
        let file = file(s, &letters(1));
        let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
        s.write(map, 0, b"mine")?;
        s.dont_need(map, 0..PAGE)?;
        s.read(map, 0, 4).map(text)
    }),
    Case::new(
        MADVISE,
        "MADV_DONTNEED cannot be applied to locked pages, or VM_PFNMAP pages.",
        "EINVAL",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.lock(map, false)?;
            s.dont_need(map, 0..PAGE).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "madvise() only operates on whole pages, therefore addr must be page-aligned.",
        "kept, kept, kept",
        |s| {
            // The raw side rounds down, as mapwright does for what keeps contents.
            let map = s.map(Of::Anon, 0, 3 * PAGE, Prot::Write)?;
            (0..3).try_for_each(|page| s.write(map, page * PAGE, b"kept"))?;
            s.advise(map, 1..PAGE + 1, Advice::Sequential)?;
            let seen = |page: usize| s.read(map, page * PAGE, 4).map(text);
            Ok(format!("{}, {}, {}", seen(0)?, seen(1)?, seen(2)?))
        },
    ),
    Case::new(MADVISE, "The value of length is rounded up to a multiple of page size.", "0000", |s| {
        let map = s.map(Of::Anon, 0, 2 * PAGE, Prot::Write)?;
        s.write(map, PAGE - 4, b"lost")?;
        s.dont_need(map, 0..1)?;
        s.read(map, PAGE - 4, 4).map(text)
    })
    .but_ours("EINVAL", "what is not in the range is not thrown away: name whole pages"),
    Case::new(
        MADVISE,
        "This is equivalent to punching a hole in the corresponding range of the backing store (see fallocate(2)).",
        "0000, 0000",
        |s| {
            let file = file(s, &letters(2));
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Write)?;
            s.remove(map, PAGE..2 * PAGE)?;
            Ok(format!("{}, {}", text(s.read(map, PAGE, 4)?), text(on_disk(s)[PAGE..PAGE + 4].to_vec())))
        },
    ),
    Case::new(
        MADVISE,
        "EACCES advice is MADV_REMOVE, but the specified address range is not a shared writable mapping.",
        "EACCES",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            s.remove(map, 0..PAGE).map(|()| "done".into())
        },
    )
    .but_ours("EINVAL", "the error is Invalid and says for which memory it is"),
    Case::new(MADVISE, "The specified address range must be mapped shared and writable.", "EACCES", |s| {
        file(s, &letters(1));
        let file = std::fs::File::open(s.dir().join("file")).unwrap(); // which can't become writable
        let map = s.map(Of::Shared(&file), 0, PAGE, Prot::Read)?;
        s.remove(map, 0..PAGE).map(|()| "done".into()) // on our side there is no such method
    }),
    Case::new(
        MADVISE,
        "Subsequent accesses in the specified address range will see data with a value of zero.",
        "0000 seen by the other mapping",
        |s| {
            let memory = s.memfd("hole", 2 * PAGE as u64)?;
            let one = s.map(Of::Shared(&memory), 0, 2 * PAGE, Prot::Write)?;
            let other = s.map(Of::Shared(&memory), 0, 2 * PAGE, Prot::Read)?;
            s.write(one, PAGE, b"gone")?;
            s.remove(one, PAGE..2 * PAGE)?;
            Ok(format!("{} seen by the other mapping", text(s.read(other, PAGE, 4)?)))
        },
    ),
    Case::new(
        MADVISE,
        "However, subsequent writes to pages in the range will succeed and then kernel cannot free those dirtied pages, so \
         that the caller can always see just written data.",
        "new",
        |s| {
            let map = s.map(Of::Anon, 0, 4 * PAGE, Prot::Write)?;
            s.write(map, 0, b"old")?;
            s.free_and_write(map)?;
            s.write(map, 0, b"new")?;
            s.read(map, 0, 3).map(text)
        },
    ),
    Case::new(
        MADVISE,
        "The MADV_FREE operation can be applied only to private anonymous pages (see mmap(2)).",
        "EINVAL",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            s.free_and_write(map).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "If MADV_POPULATE_READ succeeds, all page tables have been populated (prefaulted) readable once.",
        "xxxx",
        |s| {
            let map = s.map(Of::Anon, 0, 4 * PAGE, Prot::Write)?;
            s.advise(map, 0..4 * PAGE, Advice::PopulateRead)?;
            s.resident(map, 0..4 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MADVISE,
        "If MADV_POPULATE_WRITE succeeds, all page tables have been populated (prefaulted) writable once.",
        "-xx-",
        |s| {
            let map = s.map(Of::Anon, 0, 4 * PAGE, Prot::Write)?;
            s.advise(map, PAGE..3 * PAGE, Advice::PopulateWrite)?;
            s.resident(map, 0..4 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MADVISE,
        "If populating fails, a SIGBUS signal is not generated; instead, an error is returned.",
        "EFAULT",
        |s| {
            let file = file(s, b"short");
            let map = s.map(Of::Shared(&file), 0, 2 * PAGE, Prot::Read)?;
            s.advise(map, 0..2 * PAGE, Advice::PopulateRead).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "MADV_POPULATE_WRITE cannot be applied to mappings without write permissions and special mappings, for example, \
         mappings marked with kernel-internal flags such as VM_PFNMAP or VM_IO, or secret memory regions created using \
         memfd_secret(2).",
        "EINVAL",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Read)?;
            s.advise(map, 0..PAGE, Advice::PopulateWrite).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "MADV_POPULATE_READ cannot be applied to mappings without read permissions and special mappings, for example, \
         mappings marked with kernel-internal flags such as VM_PFNMAP or VM_IO, or secret memory regions created using \
         memfd_secret(2).",
        "EINVAL",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::None)?;
            s.advise(map, 0..PAGE, Advice::PopulateRead).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "EINVAL advice is MADV_COLD or MADV_PAGEOUT and the specified address range includes locked, Huge TLB pages, or \
         VM_PFNMAP pages.",
        "EINVAL EINVAL",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.lock(map, false)?;
            let [cold, out] =
                [Advice::Cold, Advice::PageOut].map(|advice| s.advise(map, 0..PAGE, advice).unwrap_err());
            Ok(format!("{cold} {out}"))
        },
    ),
    Case::new(
        MINCORE,
        "On return, the least significant bit of each byte will be set if the corresponding page is currently resident in \
         memory, and be clear otherwise.",
        "-x-x",
        |s| {
            let map = s.map(Of::Anon, 0, 4 * PAGE, Prot::Write)?;
            s.write(map, PAGE, b"x")?;
            s.write(map, 3 * PAGE, b"x")?;
            s.resident(map, 0..4 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MINCORE,
        "The length argument need not be a multiple of the page size, but since residency information is returned for whole \
         pages, length is effectively rounded up to the next multiple of the page size.",
        "x-",
        |s| {
            let map = s.map(Of::Anon, 0, 2 * PAGE, Prot::Write)?;
            s.write(map, 0, b"x")?;
            s.resident(map, 0..PAGE + 1).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MINCORE,
        "mincore() returns a vector that indicates whether pages of the calling process's virtual memory are resident in core \
         (RAM), and so will not cause a disk access (page fault) if referenced.",
        "xxx",
        |s| {
            let file = file(s, &letters(3)); // just written: in the page cache, though never touched here
            let map = s.map(Of::Shared(&file), 0, 3 * PAGE, Prot::Read)?;
            s.resident(map, 0..3 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MLOCK,
        "All pages that contain a part of the specified address range are guaranteed to be resident in RAM when the call \
         returns successfully; the pages are guaranteed to stay in RAM until later unlocked.",
        "xxx, 12 KiB",
        |s| {
            let before = locked_kib();
            let map = s.map(Of::Anon, 0, 3 * PAGE - 5, Prot::Write)?;
            s.lock(map, false)?;
            let pages = marks(&s.resident(map, 0..3 * PAGE - 5)?);
            Ok(format!("{pages}, {} KiB", locked_kib() - before))
        },
    ),
    Case::new(
        MLOCK,
        "Lock pages that are currently resident and mark the entire range so that the remaining nonresident pages are locked \
         when they are populated by a page fault.",
        "-x-",
        |s| {
            let map = s.map(Of::Anon, 0, 3 * PAGE, Prot::Write)?;
            s.lock(map, true)?;
            s.write(map, PAGE, b"x")?;
            s.resident(map, 0..3 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(
        MLOCK,
        "After this call, all pages that contain a part of the specified memory range can be moved to external swap space \
         again by the kernel.",
        "0 KiB",
        |s| {
            let before = locked_kib();
            let map = s.map(Of::Anon, 0, 3 * PAGE, Prot::Write)?;
            s.lock(map, false)?;
            s.unlock(map)?;
            Ok(format!("{} KiB", locked_kib() - before))
        },
    ),
    Case::new(
        MLOCK,
        "Memory locks do not stack, that is, pages which have been locked several times by calls to mlock(), mlock2(), or \
         mlockall() will be unlocked by a single call to munlock() for the corresponding range or by munlockall().",
        "0 KiB",
        |s| {
            let before = locked_kib();
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.lock(map, false)?;
            s.lock(map, false)?;
            s.unlock(map)?;
            Ok(format!("{} KiB", locked_kib() - before))
        },
    ),
    Case::new(
        MLOCK,
        "Memory locks are not inherited by a child created via fork(2) and are automatically removed (unlocked) during an execve(2) or when the process terminates.",
        "none in the child",
        |s| {
            let map = s.map(Of::Anon, 0, PAGE, Prot::Write)?;
            s.lock(map, false)?;
            Ok(if in_child(|| locked_kib() == 0) { "none in the child" } else { "some" }.into())
        },
    ),
    Case::new(
        MLOCK,
        "EAGAIN (mlock(), mlock2(), and munlock()) Some or all of the specified address range could not be locked.",
        "ENOMEM",
        |s| {
            // Pages past the end of a file: Linux says ENOMEM.
            let file = file(s, b"short");
            let map = s.map(Of::Shared(&file), 0, 3 * PAGE, Prot::Read)?;
            s.lock(map, false).map(|()| "locked".into())
        },
    ),
    Case::new(
        MADVISE,
        "Enable Kernel Samepage Merging (KSM) for the pages in the range specified by addr and length.",
        "kept, or EINVAL without KSM",
        |s| without_ksm(advised(s, Advice::Mergeable)),
    ),
    Case::new(
        MADVISE,
        "EINVAL advice is MADV_MERGEABLE or MADV_UNMERGEABLE, but the kernel was not configured with CONFIG_KSM.",
        "kept, or EINVAL without KSM",
        |s| without_ksm(advised(s, Advice::Unmergeable)),
    ),
    Case::new(
        MADVISE,
        "Enable Transparent Huge Pages (THP) for pages in the range specified by addr and length.",
        "kept",
        |s| advised(s, Advice::HugePage),
    ),
    Case::new(
        MADVISE,
        "Perform a best-effort synchronous collapse of the native pages mapped by the memory range into Transparent Huge Pages \
         (THPs).",
        "kept",
        |s| {
            let map = s.map(Of::Anon, 0, 6 << 20, Prot::Write)?;
            s.write(map, 3 << 20, b"kept")?;
            let _ = s.advise(map, 0..6 << 20, Advice::Collapse); // no huge page need be to be had
            s.read(map, 3 << 20, 4).map(text)
        },
    ),
    Case::new(MADVISE, "This flag cannot be applied to locked pages, or VM_PFNMAP pages.", "EINVAL", |s| {
        let memory = s.memfd("locked", PAGE as u64)?;
        let map = s.map(Of::Shared(&memory), 0, PAGE, Prot::Write)?;
        s.lock(map, false)?;
        s.remove(map, 0..PAGE).map(|()| "done".into())
    }),
    Case::new(
        MADVISE,
        "EINVAL advice is MADV_FREE or MADV_WIPEONFORK but the specified address range includes file, Huge TLB, MAP_SHARED, or \
         VM_PFNMAP ranges.",
        "EINVAL",
        |s| {
            let map = s.map(Of::AnonShared, 0, PAGE, Prot::Write)?;
            s.free_and_write(map).map(|()| "done".into())
        },
    ),
    Case::new(
        MADVISE,
        "One example use case is preallocating memory, breaking any CoW (Copy on Write).",
        "aaaa",
        |s| {
            let file = file(s, &letters(1));
            let map = s.map(Of::Private(&file), 0, PAGE, Prot::Write)?;
            s.advise(map, 0..PAGE, Advice::PopulateWrite)?;
            std::os::unix::fs::FileExt::write_all_at(&file, b"late", 0).unwrap();
            s.read(map, 0, 4).map(text)
        },
    ),
    Case::new(MADVISE, "files with holes will preallocate blocks.", "0 blocks before, some after", |s| {
        let memory = s.memfd("holes", 4 * PAGE as u64)?;
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&memory.metadata().unwrap());
        let before = blocks();
        let map = s.map(Of::Shared(&memory), 0, 4 * PAGE, Prot::Write)?;
        s.advise(map, 0..4 * PAGE, Advice::PopulateWrite)?;
        let after = if blocks() >= 4 * PAGE as u64 / 512 { "some" } else { "too few" };
        Ok(format!("{before} blocks before, {after} after"))
    }),
    Case::new(
        MADVISE,
        "In contrast to MAP_POPULATE, MADV_POPULATE_READ does not hide errors, can be applied to (parts of) existing mappings \
         and will always populate (prefault) page tables readable.",
        "-x--",
        |s| {
            let map = s.map(Of::Anon, 0, 4 * PAGE, Prot::Write)?;
            s.advise(map, PAGE + 9..PAGE + 10, Advice::PopulateRead)?;
            s.resident(map, 0..4 * PAGE).map(|pages| marks(&pages))
        },
    ),
    Case::new(MLOCK, "Memory locking and unlocking are performed in units of whole pages.", "4 KiB", |s| {
        let before = locked_kib();
        let map = s.map(Of::Anon, 0, 1, Prot::Write)?;
        s.lock(map, false)?;
        Ok(format!("{} KiB", locked_kib() - before))
    }),
    Case::new(
        MLOCK,
        "The memory lock on an address range is automatically removed if the address range is unmapped via munmap(2).",
        "0 KiB",
        |s| {
            let before = locked_kib();
            let map = s.map(Of::Anon, 0, 3 * PAGE, Prot::Write)?;
            s.lock(map, true)?;
            s.unmap(map, 0..3 * PAGE)?;
            Ok(format!("{} KiB", locked_kib() - before))
        },
    ),
];
