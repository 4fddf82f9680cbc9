//! One side: system calls as rustix and libc make them, and nothing else.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::null_mut;

use mapwright::mmap::Advice;
use rustix::fs::SealFlags;
use rustix::mm::{
    MapFlags, MlockFlags, MprotectFlags, MremapFlags, MsyncFlags, ProtFlags, mlock, mlock_with, mmap,
    mmap_anonymous, mprotect, mremap, msync, munlock, munmap,
};

use crate::side::{Extra, Of, Outcome, PAGE, Prot, Shm, Side, errno, name_of, peek, poke};

pub struct Raw {
    dir: tempfile::TempDir,
    /// Start of what is mapped, lead before the first byte, length from there.
    maps: Vec<(usize, usize, usize)>,
}

impl Raw {
    pub fn new() -> Self {
        Self { dir: crate::common::scratch(), maps: Vec::new() }
    }

    fn pages(&self, map: usize, range: &Range<usize>) -> (*mut libc::c_void, usize) {
        let first = (self.address(map) + range.start) / PAGE * PAGE;
        (first as *mut _, self.address(map) + range.end - first)
    }

    fn add(&mut self, start: *mut libc::c_void, lead: usize, len: usize) -> usize {
        self.maps.push((start as usize, lead, len));
        self.maps.len() - 1
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        for (start, lead, len) in &self.maps {
            // SAFETY: the case's own mapping, which is over.
            let _ = unsafe { munmap(*start as *mut _, lead + len) };
        }
    }
}

fn flags(prot: Prot) -> ProtFlags {
    match prot {
        Prot::None => ProtFlags::empty(),
        Prot::Read => ProtFlags::READ,
        Prot::Write => ProtFlags::READ | ProtFlags::WRITE,
        Prot::Exec => ProtFlags::READ | ProtFlags::EXEC,
    }
}

fn done(result: rustix::io::Result<()>) -> Outcome {
    result.map_err(errno)
}

fn madvise((start, len): (*mut libc::c_void, usize), advice: i32) -> Outcome {
    // SAFETY: pages of the case's own mapping, to which no reference exists.
    if unsafe { libc::madvise(start, len, advice) } == 0 {
        return Ok(());
    }
    Err(name_of(std::io::Error::last_os_error().raw_os_error().unwrap()))
}

impl Side for Raw {
    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn map(&mut self, of: Of<'_>, offset: u64, len: usize, prot: Prot) -> Outcome<usize> {
        // What a program with an odd offset does.
        let lead = (offset % PAGE as u64) as usize;
        let whole = lead.wrapping_add(len);
        let (fd, sharing) = match of {
            Of::Anon => (None, MapFlags::PRIVATE),
            Of::AnonShared => (None, MapFlags::SHARED),
            Of::Shared(file) => (Some(file), MapFlags::SHARED),
            Of::Private(file) => (Some(file), MapFlags::PRIVATE),
        };
        let start = match fd {
            // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
            None => unsafe { mmap_anonymous(null_mut(), whole, flags(prot), sharing) },
            // SAFETY: as above.
            Some(fd) => unsafe { mmap(null_mut(), whole, flags(prot), sharing, fd, offset - lead as u64) },
        };
        start.map(|start| self.add(start, lead, len)).map_err(errno)
    }

    fn map_with(&mut self, len: usize, extra: Extra) -> Outcome<usize> {
        let extra = match extra {
            Extra::Populate => MapFlags::POPULATE,
            Extra::NoReserve => MapFlags::NORESERVE,
            Extra::Stack => MapFlags::STACK,
            Extra::Locked => MapFlags::LOCKED,
            Extra::Huge => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        };
        // SAFETY: as in `map`.
        let start = unsafe { mmap_anonymous(null_mut(), len, flags(Prot::Write), MapFlags::PRIVATE | extra) };
        start.map(|start| self.add(start, 0, len)).map_err(errno)
    }

    fn guarded(&mut self, len: usize) -> Outcome<usize> {
        let all = len + 2 * PAGE;
        // SAFETY: as in `map`.
        let start = unsafe { mmap_anonymous(null_mut(), all, ProtFlags::empty(), MapFlags::PRIVATE) }
            .map_err(errno)?;
        let middle = (start as usize + PAGE) as *mut _;
        // SAFETY: the middle of the case's own mapping.
        done(unsafe { mprotect(middle, len, MprotectFlags::READ | MprotectFlags::WRITE) })?;
        Ok(self.add(start, PAGE, len + PAGE))
    }

    fn address(&self, map: usize) -> usize {
        self.maps[map].0 + self.maps[map].1
    }

    fn read(&self, map: usize, at: usize, len: usize) -> Outcome<Vec<u8>> {
        peek(self.address(map) + at, len)
    }

    fn write(&mut self, map: usize, at: usize, bytes: &[u8]) -> Outcome {
        poke(self.address(map) + at, bytes)
    }

    fn protect(&mut self, map: usize, prot: Prot) -> Outcome {
        let (start, lead, len) = self.maps[map];
        let flags = MprotectFlags::from_bits_retain(flags(prot).bits());
        // SAFETY: the case's own mapping, to which no reference exists.
        done(unsafe { mprotect(start as *mut _, lead + len, flags) })
    }

    fn unmap(&mut self, map: usize, range: Range<usize>) -> Outcome {
        let start = (self.address(map) + range.start) as *mut _;
        // SAFETY: a part of the case's own mapping.
        done(unsafe { munmap(start, range.len()) })
    }

    fn sync(&self, map: usize, range: Range<usize>, wait: bool) -> Outcome {
        let (start, len) = self.pages(map, &range);
        // SAFETY: pages of the case's own mapping.
        done(unsafe { msync(start, len, if wait { MsyncFlags::SYNC } else { MsyncFlags::ASYNC }) })
    }

    fn advise(&self, map: usize, range: Range<usize>, advice: Advice) -> Outcome {
        madvise(self.pages(map, &range), advice.number())
    }

    fn dont_need(&mut self, map: usize, range: Range<usize>) -> Outcome {
        madvise(self.pages(map, &range), libc::MADV_DONTNEED)
    }

    fn remove(&mut self, map: usize, range: Range<usize>) -> Outcome {
        madvise(self.pages(map, &range), libc::MADV_REMOVE)
    }

    fn free_and_write(&mut self, map: usize) -> Outcome {
        let len = self.maps[map].2;
        madvise(self.pages(map, &(0..len)), libc::MADV_FREE)?;
        (0..len).step_by(PAGE).try_for_each(|at| {
            let byte = self.read(map, at, 1)?;
            self.write(map, at, &byte)
        })
    }

    fn resident(&self, map: usize, range: Range<usize>) -> Outcome<Vec<bool>> {
        let (start, len) = self.pages(map, &range);
        let mut pages = vec![0_u8; len.div_ceil(PAGE)];
        // SAFETY: pages of the case's own mapping; the vector has a byte for each.
        if unsafe { libc::mincore(start, len, pages.as_mut_ptr()) } != 0 {
            return Err(name_of(std::io::Error::last_os_error().raw_os_error().unwrap()));
        }
        Ok(pages.into_iter().map(|page| page & 1 == 1).collect())
    }

    fn lock(&self, map: usize, on_fault: bool) -> Outcome {
        let (start, len) = self.pages(map, &(0..self.maps[map].2));
        if on_fault {
            // SAFETY: pages of the case's own mapping.
            return done(unsafe { mlock_with(start, len, MlockFlags::ONFAULT) });
        }
        // SAFETY: as above.
        done(unsafe { mlock(start, len) })
    }

    fn unlock(&self, map: usize) -> Outcome {
        let (start, len) = self.pages(map, &(0..self.maps[map].2));
        // SAFETY: as above.
        done(unsafe { munlock(start, len) })
    }

    fn resize(&mut self, map: usize, len: usize, may_move: bool) -> Outcome {
        let (start, lead, old) = self.maps[map];
        let flags = if may_move { MremapFlags::MAYMOVE } else { MremapFlags::empty() };
        // SAFETY: the case's own mapping, to which no reference exists.
        let start =
            unsafe { mremap(start as *mut _, lead + old, lead.wrapping_add(len), flags) }.map_err(errno)?;
        self.maps[map] = (start as usize, lead, len);
        Ok(())
    }

    fn place_twice(&mut self, len: usize) -> Outcome<usize> {
        let first = self.map(Of::Anon, 0, len, Prot::Write)?;
        let here = self.address(first) as *mut _;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: this flag replaces nothing.
        let second = unsafe { mmap_anonymous(here, len, ProtFlags::READ, flags) }.map_err(errno)?;
        Ok(self.add(second, 0, len))
    }

    fn shm(&mut self, name: &str, how: Shm, len: u64) -> Outcome<File> {
        let name = std::ffi::CString::new(name).map_err(|_| "EINVAL".to_owned())?;
        let flags = match how {
            Shm::CreateNew => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
            Shm::Open => libc::O_RDWR,
            Shm::OpenReadOnly => libc::O_RDONLY,
        };
        // SAFETY: the name ends with a zero and lives across the call.
        let fd = unsafe { libc::shm_open(name.as_ptr(), flags, 0o600) };
        if fd < 0 {
            return Err(name_of(std::io::Error::last_os_error().raw_os_error().unwrap()));
        }
        // SAFETY: the call just returned it, and nobody else has it.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        if how == Shm::CreateNew {
            done(rustix::fs::ftruncate(&file, len))?;
        }
        Ok(file)
    }

    fn shm_unlink(&mut self, name: &str) -> Outcome {
        let name = std::ffi::CString::new(name).map_err(|_| "EINVAL".to_owned())?;
        // SAFETY: the name ends with a zero and lives across the call.
        if unsafe { libc::shm_unlink(name.as_ptr()) } == 0 {
            return Ok(());
        }
        Err(name_of(std::io::Error::last_os_error().raw_os_error().unwrap()))
    }

    fn memfd(&mut self, label: &str, len: u64) -> Outcome<File> {
        let label = std::ffi::CString::new(label).map_err(|_| "EINVAL".to_owned())?;
        // SAFETY: the label ends with a zero and lives across the call.
        let fd = unsafe { libc::memfd_create(label.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(name_of(std::io::Error::last_os_error().raw_os_error().unwrap()));
        }
        // SAFETY: the call just returned it, and nobody else has it.
        let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        done(rustix::fs::ftruncate(&file, len))?;
        Ok(file)
    }

    fn seal(&mut self, file: &File) -> Outcome {
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        done(rustix::fs::fcntl_add_seals(file.as_fd(), seals))
    }
}
