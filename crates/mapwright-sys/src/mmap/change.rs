//! Changes of what a region is: its kind, its bounds, its place; and what the kernel keeps about it.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::mm::{
    MapFlags, MlockFlags, MprotectFlags, MremapFlags, MsyncFlags, ProtFlags, mlock, mlock_with, mprotect,
    mremap, msync, munlock,
};

use super::kind::{Becomes, Kind, Slices, SlicesMut, Stable, mprotection, protection};
use super::refused;
use super::region::{GuardKind, Inner, Region, Source, map_anywhere, unmap_part};
use crate::check;
use crate::process::Owner;

impl<K: Kind> Region<K> {
    /// Changes the protection, and with it the kind.
    ///
    /// # Errors
    /// The region as it was, and what mprotect(2) says; `EPERM` if `T` is writable and the region was made on the promise
    /// that nobody writes. If a part has changed and can't be changed back, the error says so.
    pub fn become_kind<T: Kind>(self) -> Result<Region<T>, (Self, io::Error)>
    where
        K: Becomes<T>,
    {
        // SAFETY: `self` is owned, so that no slice of the old kind is alive.
        match unsafe { self.inner.protect(mprotection::<T>(), mprotection::<K>()) } {
            Ok(()) => Ok(Region { inner: self.inner, kind: PhantomData }),
            Err(error) => Err((self, error)),
        }
    }

    /// Makes two regions of one: the bytes before `at`, and the rest. `at` must fall on a page of the file or the memory.
    ///
    /// # Errors
    /// The region as it was, and `EINVAL` if `at` is inside a page or past the end.
    pub fn split(mut self, at: usize) -> Result<(Self, Self), (Self, io::Error)> {
        match self.inner.split(at) {
            Ok(inner) => Ok((self, Self { inner, kind: PhantomData })),
            Err(error) => Err((self, error)),
        }
    }

    /// Changes the length. What is added are zeros for anonymous memory, and what follows in the file otherwise. Anonymous
    /// memory that can't be written when it shrinks nor when it grows may show what it held in its last page before.
    ///
    /// # Errors
    /// `ENOMEM` if there is no room: in place unless `may_move`, in its address space if it was placed. `EEXIST` if
    /// something else was placed behind it. `EPERM` for growing a file mapped by promise or a sealed one. `EOPNOTSUPP` for regions with guards, for shared anonymous memory, which can't
    /// grow, and for empty ones.
    pub fn resize(&mut self, len: usize, may_move: bool) -> io::Result<()> {
        self.inner.resize(len, may_move, protection::<K>())
    }

    /// Never lets the address range change again: not its protection, nor its place, nor that it is mapped (mseal(2)).
    ///
    /// # Errors
    /// The region as it was, and `ENOSYS` before Linux 6.10; `EOPNOTSUPP` for a placed region.
    pub fn seal(self) -> Result<Sealed<K>, (Self, io::Error)>
    where
        K: Stable,
    {
        if self.inner.home.is_some() {
            return Err((self, refused(Errno::OPNOTSUPP)));
        }
        if let Err(error) = self.inner.check_here() {
            return Err((self, error));
        }
        let outer = self.inner.outer.clone();
        if !outer.is_empty() {
            // SAFETY: the range is this region's, mapped; sealing it keeps it so.
            let sealed = unsafe { libc::syscall(libc::SYS_mseal, outer.start, outer.len(), 0) };
            if let Err(error) = check(sealed) {
                return Err((self, error));
            }
        }
        Ok(Sealed(std::mem::ManuallyDrop::new(self)))
    }

    /// Keeps the pages in memory: reads them now, or `on_fault` as they are touched.
    ///
    /// # Errors
    /// What mlock(2) says: `ENOMEM`, `EPERM` or `EAGAIN` for RLIMIT_MEMLOCK.
    pub fn lock(&self, on_fault: bool) -> io::Result<()> {
        let pages = self.inner.pages();
        if pages.is_empty() {
            return Ok(());
        }
        let start = pages.start as *mut _;
        if on_fault {
            // SAFETY: locks change no bytes; the pages are this region's.
            unsafe { mlock_with(start, pages.len(), MlockFlags::ONFAULT) }?;
        } else {
            // SAFETY: as above.
            unsafe { mlock(start, pages.len()) }?;
        }
        Ok(())
    }

    /// Takes the lock back.
    ///
    /// # Errors
    /// What munlock(2) says.
    pub fn unlock(&self) -> io::Result<()> {
        let pages = self.inner.pages();
        if pages.is_empty() {
            return Ok(());
        }
        // SAFETY: as in `lock`.
        unsafe { munlock(pages.start as *mut _, pages.len()) }?;
        Ok(())
    }

    /// Writes the pages that hold a range of bytes to the file: msync(2).
    ///
    /// # Errors
    /// What msync(2) says: `EIO`.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn flush(&self, range: Range<usize>, wait: bool) -> io::Result<()> {
        let pages = self.inner.pages_of(range);
        if pages.is_empty() {
            return Ok(());
        }
        let flags = if wait { MsyncFlags::SYNC } else { MsyncFlags::ASYNC };
        // SAFETY: the pages are this region's; msync changes no bytes.
        unsafe { msync(pages.start as *mut _, pages.len(), flags) }?;
        Ok(())
    }

    /// Says which node's memory pages shall come from that are not there yet: mbind(2).
    ///
    /// # Errors
    /// What mbind(2) says: `EINVAL` for a node that there is not, `ENOSYS` in a kernel without NUMA.
    pub fn bind(&self, policy: NumaPolicy) -> io::Result<()> {
        let pages = self.inner.pages();
        if pages.is_empty() {
            return Ok(());
        }
        let (mode, mask) = match policy {
            NumaPolicy::Prefer(node) => (libc::MPOL_PREFERRED, one_node(node)?),
            NumaPolicy::Bind(node) => (libc::MPOL_BIND, one_node(node)?),
            NumaPolicy::Interleave => (libc::MPOL_INTERLEAVE, online_nodes()?),
        };
        // SAFETY: the pages are this region's; the mask has as many bits as the call is told, less the one that the kernel
        // subtracts (mbind(2), NOTES). No bytes change.
        let bound = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                pages.start,
                pages.len(),
                mode,
                mask.as_ptr(),
                MASK_WORDS * 64 + 1,
                0,
            )
        };
        check(bound).map(drop)
    }
}

/// Whether this kernel has mseal(2).
#[must_use]
pub fn is_mseal_supported() -> bool {
    // SAFETY: of no bytes at all.
    unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) == 0 }
}

/// Whether this kernel has mbind(2).
#[must_use]
pub fn is_numa_supported() -> bool {
    // SAFETY: asks for the policy of this thread, and wants no answer (get_mempolicy(2)).
    unsafe { libc::syscall(libc::SYS_get_mempolicy, 0, 0, 0, 0, 0) == 0 }
}

/// Words in a mask of NUMA nodes: 1024 nodes, the most that kernels are built for.
const MASK_WORDS: usize = 16;

/// Where new pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumaPolicy {
    /// From this node if it has room.
    Prefer(u32),
    /// From this node only.
    Bind(u32),
    /// From all nodes in turn.
    Interleave,
}

fn one_node(node: u32) -> io::Result<[u64; MASK_WORDS]> {
    let mut mask = [0; MASK_WORDS];
    let word = mask.get_mut((node / 64) as usize).ok_or_else(|| refused(Errno::INVAL))?;
    *word = 1 << (node % 64);
    Ok(mask)
}

/// Nodes with memory, from `/sys/devices/system/node/has_memory`: a list such as `0-3,5`.
fn online_nodes() -> io::Result<[u64; MASK_WORDS]> {
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory")
        .map_err(|_| io::Error::from_raw_os_error(libc::ENOSYS))?;
    let mut mask = [0; MASK_WORDS];
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            (first..=last.min(MASK_WORDS * 64 - 1)).for_each(|node| mask[node / 64] |= 1 << (node % 64));
        }
    }
    Ok(mask)
}

impl Inner {
    /// The whole pages that hold a range of bytes; nothing for an empty range.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub(super) fn pages_of(&self, range: Range<usize>) -> Range<usize> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        if range.is_empty() {
            return 0..0;
        }
        let page = self.facts.page;
        (self.start + range.start) & !(page - 1)..(self.start + range.end + page - 1) & !(page - 1)
    }

    /// Changes the protection of all pages, or of none.
    ///
    /// # Safety
    /// Nobody has a reference to the bytes, and nobody makes one by what the protection was.
    unsafe fn protect(&self, to: MprotectFlags, back: MprotectFlags) -> io::Result<()> {
        if to.contains(MprotectFlags::WRITE) && !self.facts.may_write {
            return Err(refused(Errno::PERM));
        }
        self.check_here()?;
        let pages = self.pages();
        if pages.is_empty() {
            return Ok(());
        }
        // SAFETY: the pages are this region's; the rest is the caller's condition.
        let changed = unsafe { mprotect(pages.start as *mut _, pages.len(), to) };
        let Err(error) = changed else { return Ok(()) };
        // The kernel goes mapping by mapping, of which a region may have several, and may have done some.
        // SAFETY: as above; it is the protection that the region still has.
        match unsafe { mprotect(pages.start as *mut _, pages.len(), back) } {
            Ok(()) => Err(error.into()),
            Err(again) => Err(io::Error::other(format!(
                "{error}; and a part may have the new protection already, which can't be taken back: {again}"
            ))),
        }
    }

    fn split(&mut self, at: usize) -> io::Result<Self> {
        let address = self.start + at.min(self.len);
        if at > self.len || (at != 0 && at != self.len && !address.is_multiple_of(self.facts.page)) {
            return Err(refused(Errno::INVAL));
        }
        let offset = if self.facts.anonymous { 0 } else { self.facts.offset + at as u64 };
        let facts = super::region::Facts { offset, ..self.facts };
        let home = |inner: &Self| {
            inner.home.as_ref().map(|home| super::region::Home {
                space: std::sync::Arc::clone(&home.space),
                file: home.file.clone(),
            })
        };
        let owner = self.owner.clone();
        let empty = |start| Self { outer: 0..0, start, len: 0, facts, home: None, owner: Owner::default() };
        if at == self.len {
            return Ok(empty(address));
        }
        if at == 0 {
            let all = std::mem::replace(self, empty(address));
            return Ok(all);
        }
        if let Some(home) = &self.home {
            home.space.split(self.outer.clone(), address);
        }
        let rest = Self {
            outer: address..self.outer.end,
            start: address,
            len: self.len - at,
            facts,
            home: home(self),
            owner,
        };
        self.outer.end = address;
        self.len = at;
        Ok(rest)
    }

    fn resize(&mut self, len: usize, may_move: bool, protection: ProtFlags) -> io::Result<()> {
        if len == self.len {
            return Ok(());
        }
        self.check_here()?;
        if len > self.len && !self.facts.may_grow {
            return Err(refused(Errno::PERM));
        }
        if self.len == 0 || self.facts.guard != GuardKind::None {
            return Err(refused(Errno::OPNOTSUPP));
        }
        self.zero_last_page(len, protection);
        if len == 0 {
            let owner = Owner::default();
            let empty = Self { outer: 0..0, start: self.start, len: 0, facts: self.facts, home: None, owner };
            return std::mem::replace(self, empty).unmap();
        }
        let page = self.facts.page;
        let end = self.start.checked_add(len).and_then(|end| end.checked_next_multiple_of(page));
        let end = end.filter(|end| *end <= 1 << 56).ok_or_else(|| refused(Errno::OVERFLOW))?;
        let before = self.outer.clone();
        if end < before.end {
            if let Some(home) = &self.home {
                home.space.split(before.clone(), end);
            }
            self.outer.end = end;
            self.len = len;
            return unmap_part(self.home.as_ref(), end..before.end);
        }
        if end > before.end {
            if self.facts.anonymous && self.facts.shared {
                return Err(refused(Errno::OPNOTSUPP));
            }
            if self.home.is_some() {
                self.grow_at_home(end, protection)?;
            } else {
                self.grow(end, may_move)?;
            }
        }
        self.len = len;
        Ok(())
    }

    /// Makes zeros of what follows the shorter of two lengths in its page, so that it is zeros when it is shown again: what is
    /// cut off inside a page stays mapped. Where it can't be written now, it is when it becomes writable and grows or shrinks.
    fn zero_last_page(&mut self, len: usize, protection: ProtFlags) {
        if !self.facts.anonymous || self.facts.shared || !protection.contains(ProtFlags::WRITE) {
            return;
        }
        let from = self.start + len.min(self.len);
        let to = from.next_multiple_of(self.facts.page).min(self.start + len.max(self.len));
        // SAFETY: the bytes lie in a page of this region's, mapped and writable, and it is borrowed exclusively.
        unsafe { std::ptr::write_bytes(from as *mut u8, 0, to - from) };
    }

    fn grow(&mut self, end: usize, may_move: bool) -> io::Result<()> {
        let flags = if may_move { MremapFlags::MAYMOVE } else { MremapFlags::empty() };
        let (old, len) = (self.outer.clone(), end - self.outer.start);
        // SAFETY: the range is this region's and borrowed exclusively, so that nobody has a reference to it; where it moves
        // to is of the kernel's choice and disturbs nothing.
        let start = unsafe { mremap(old.start as *mut _, old.len(), len, flags) }? as usize;
        self.start = start + (self.start - old.start);
        self.outer = start..start + len;
        Ok(())
    }

    /// Maps what is added where it belongs: mremap(2) would not grow over the reservation.
    fn grow_at_home(&mut self, end: usize, protection: ProtFlags) -> io::Result<()> {
        let Some(home) = &self.home else { return Err(refused(Errno::NOMEM)) };
        let facts = self.facts;
        let added = self.outer.end..end;
        let offset = facts.offset + (self.outer.end - self.start) as u64;
        let source = match &home.file {
            Some(fd) => Source::File { fd: fd.as_fd(), offset, shared: facts.shared },
            None => Source::Anonymous,
        };
        let mut flags = if facts.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        flags.set(MapFlags::NORESERVE, facts.no_reserve);
        if let Some(log2) = facts.huge {
            flags |= MapFlags::HUGETLB | MapFlags::from_bits_retain(u32::from(log2) << libc::MAP_HUGE_SHIFT);
        }
        home.space.claim(added.clone())?;
        home.space
            .place(&added, added.clone(), || map_anywhere(source, offset, added.len(), protection, flags))?;
        home.space.join(self.outer.clone(), added);
        self.outer.end = end;
        Ok(())
    }
}

/// A region whose addresses never change again. It is never unmapped.
#[derive(Debug)]
pub struct Sealed<K: Kind>(std::mem::ManuallyDrop<Region<K>>);

impl<K: Slices> Sealed<K> {
    /// The bytes, for as long as the process lives.
    #[must_use]
    pub fn leak(self) -> &'static [u8] {
        let bytes: &[u8] = &self.0;
        let (start, len) = (bytes.as_ptr(), bytes.len());
        // SAFETY: the region is never unmapped nor changed: it is sealed, and its owner, consumed here, is never dropped.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl<K: Slices> std::ops::Deref for Sealed<K> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<K: SlicesMut> std::ops::DerefMut for Sealed<K> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
