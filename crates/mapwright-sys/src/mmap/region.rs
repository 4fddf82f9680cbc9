//! A range of addresses with an owner: made, seen and unmapped here; changed in [`super::change`].
//!
//! Sizes of pages are powers of two: `page_of` makes sure.
//!
//! Invariants of [`Inner`]: (1) `outer` is mapped and nobody else's, or empty. (2) The bytes `start..start + len` lie
//! inside `outer`, after its front guard and before its back guard. (3) Without bytes nothing is mapped. (4) `home`, if
//! any, has `outer` as one taken part. In a child of fork, a region that is kept from children has no addresses: (5) nothing is
//! done to them there.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::assumed::Promise;
use super::kind::{Copies, CopiesMut, Kind, Read, Slices, SlicesMut, Stable, may_write, protection};
use super::refused;
use super::sealed_fd::SealedFd;
use super::seen::Seen;
use super::space::AddressSpace;
use crate::mapping::Reservation;
use crate::process::Owner;
use crate::{PAGE_SIZE, check, copy};

pub(crate) const MADV_GUARD_INSTALL: libc::c_int = 102; // include/uapi/asm-generic/mman-common.h, Linux 6.13

/// Whether guard pages need no mappings of their own.
#[must_use]
pub fn is_guard_supported() -> bool {
    super::is_advice_supported(MADV_GUARD_INSTALL)
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Zeros, private.
    Anonymous,
    /// Zeros, shared with children of fork.
    AnonymousShared,
    /// A file from an offset in bytes, which need not be a multiple of a page.
    File {
        /// The file.
        fd: BorrowedFd<'a>,
        /// First byte.
        offset: u64,
        /// Whether writes reach the file.
        shared: bool,
    },
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Where bytes come from.
    pub source: Source<'a>,
    /// Length in bytes.
    pub len: usize,
    /// Size of the pages in bytes: 4096, or that of the huge pages of the file or of `huge`. Another is refused with `EINVAL`.
    pub page: usize,
    /// Inaccessible pages on each side.
    pub guard_pages: usize,
    /// MAP_POPULATE.
    pub populate: bool,
    /// MAP_NORESERVE.
    pub no_reserve: bool,
    /// MAP_STACK.
    pub stack: bool,
    /// MAP_HUGETLB with pages of two to this power.
    pub huge: Option<u8>,
    /// The file of the source, where it was looked at already.
    pub seen: Option<&'a Seen<'a>>,
    /// Where: an address space and an offset in it. The kernel chooses otherwise.
    pub place: Option<(&'a Arc<AddressSpace>, usize)>,
}

impl<'a> Request<'a> {
    /// Anonymous private memory or the like, with no options.
    #[must_use]
    pub fn new(source: Source<'a>, len: usize) -> Self {
        Self {
            source,
            len,
            page: PAGE_SIZE,
            guard_pages: 0,
            populate: false,
            no_reserve: false,
            stack: false,
            huge: None,
            seen: None,
            place: None,
        }
    }
}

/// How the pages around a mapping are kept inaccessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardKind {
    /// There are none.
    None,
    /// Markers in the page tables (MADV_GUARD_INSTALL, Linux 6.13): they cost no mapping of their own.
    Markers,
    /// Mappings without access (PROT_NONE).
    Mappings,
}

/// What may be made of a region later.
#[derive(Clone, Copy)]
struct Leave {
    write: bool,
    grow: bool,
}

/// What a region is, apart from its kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) page: usize,
    pub(super) anonymous: bool,
    pub(super) shared: bool,
    /// Whether it may become writable and remain [`Stable`].
    pub(super) may_write: bool,
    /// Whether it may show more of its file than now: a promise was for the bytes that were asked for.
    pub(super) may_grow: bool,
    /// Offset in the file of the first byte.
    pub(super) offset: u64,
    pub(super) guard: GuardKind,
    pub(super) huge: Option<u8>,
    pub(super) no_reserve: bool,
}

/// Where a placed region lives, and what it grows with.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) space: Arc<AddressSpace>,
    pub(super) file: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) outer: Range<usize>,
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) facts: Facts,
    pub(super) home: Option<Home>,
    /// Where some of it is kept from children, the process that it is in.
    pub(super) owner: Owner,
}

/// A mapping of one kind.
#[derive(Debug)]
pub struct Region<K: Kind> {
    pub(super) inner: Inner,
    pub(super) kind: PhantomData<K>,
}

impl<K: Stable> Region<K> {
    /// Private anonymous memory.
    ///
    /// # Errors
    /// What mmap(2) says; `EINVAL` for another source.
    pub fn anonymous(request: &Request<'_>) -> io::Result<Self> {
        match request.source {
            Source::Anonymous => Self::create(request, Leave { write: true, grow: true }),
            Source::AnonymousShared | Source::File { .. } => Err(refused(Errno::INVAL)),
        }
    }

    /// A file, on the caller's promise. Not writable later if it is shared and `K` is not writable now: another mapping
    /// may have been made on the same promise.
    ///
    /// # Errors
    /// What mmap(2) says; `EINVAL` for another source than the file that the promise is about, and for more access than it
    /// was given for.
    pub fn promised(request: &Request<'_>, promise: Promise<'_>) -> io::Result<Self> {
        match request.source {
            Source::File { fd, .. } if fd.as_raw_fd() != promise.file().as_raw_fd() => {
                Err(refused(Errno::INVAL))
            }
            Source::File { shared, .. } if !promise.allows(shared, may_write::<K>()) => {
                Err(refused(Errno::INVAL))
            }
            Source::File { shared, .. } => {
                Self::create(request, Leave { write: !shared || may_write::<K>(), grow: false })
            }
            Source::Anonymous | Source::AnonymousShared => Err(refused(Errno::INVAL)),
        }
    }
}

impl Region<Read> {
    /// `len` bytes of a sealed memfd from `offset` on.
    ///
    /// # Errors
    /// What mmap(2) says; `ENXIO` past the end.
    pub fn sealed(fd: &SealedFd, offset: u64, len: usize, page: usize) -> io::Result<Self> {
        if offset.checked_add(len as u64).is_none_or(|end| end > fd.len()) {
            return Err(refused(Errno::NXIO));
        }
        let map = |shared| {
            let source = Source::File { fd: fd.as_fd(), offset, shared };
            Self::create(&Request { page, ..Request::new(source, len) }, Leave { write: false, grow: false })
        };
        // Before Linux 6.7 a write seal refused shared mappings even for reading. A private one shows the same bytes.
        map(true).or_else(
            |error| {
                if error.raw_os_error() == Some(libc::EPERM) { map(false) } else { Err(error) }
            },
        )
    }
}

impl<K: Copies> Region<K> {
    /// Any memory, whoever else may change it.
    ///
    /// # Errors
    /// What mmap(2) says; `Unsupported` on architectures where a copy does not come back from SIGBUS.
    pub fn volatile(request: &Request<'_>) -> io::Result<Self> {
        if !copy::COMES_BACK {
            let what = "copies that come back from SIGBUS are there for x86-64 and AArch64 only";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        crate::signals::install()?;
        Self::create(request, Leave { write: true, grow: true })
    }
}

impl<K: Kind> Region<K> {
    fn create(request: &Request<'_>, leave: Leave) -> io::Result<Self> {
        let inner = Inner::create(request, protection::<K>(), leave)?;
        Ok(Self { inner, kind: PhantomData })
    }

    /// Address of the first byte. An empty region has some address.
    #[must_use]
    pub fn start(&self) -> usize {
        self.inner.start
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Whether the length is zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.len == 0
    }

    /// Size of its pages in bytes.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.inner.facts.page
    }

    /// Whether it is memory without a file.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.inner.facts.anonymous
    }

    /// Whether writes are seen by others.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.inner.facts.shared
    }

    /// Offset in the file of the first byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.inner.facts.offset
    }

    /// How it is guarded.
    #[must_use]
    pub fn guard(&self) -> GuardKind {
        self.inner.facts.guard
    }

    /// Unmaps, and says whether that failed.
    ///
    /// # Errors
    /// What munmap(2) says: `ENOMEM` at vm.max_map_count, if this splits a mapping in two. The memory is freed all the
    /// same; its addresses are not.
    pub fn unmap(mut self) -> io::Result<()> {
        self.inner.unmap()
    }
}

impl Inner {
    #[inline]
    fn create(request: &Request<'_>, protection: ProtFlags, leave: Leave) -> io::Result<Self> {
        super::check_page_size(crate::kernel_page_size())?;
        let page = request.page;
        if page != page_of(request)? {
            return Err(refused(Errno::INVAL));
        }
        let (offset, anonymous, shared) = match request.source {
            Source::Anonymous => (0, true, false),
            Source::AnonymousShared => (0, true, true),
            Source::File { offset, shared, .. } => (offset, false, shared),
        };
        let (huge, no_reserve) = (request.huge, request.no_reserve);
        let guard = GuardKind::None;
        let Leave { write: may_write, grow: may_grow } = leave;
        let facts = Facts { page, anonymous, shared, may_write, may_grow, offset, guard, huge, no_reserve };
        if request.len == 0 {
            let owner = Owner::default();
            return Ok(Self { outer: 0..0, start: page, len: 0, facts, home: None, owner });
        }
        // By masks: a division takes as long as some of the call.
        let lead = offset as usize & (page - 1);
        let overflow = || refused(Errno::OVERFLOW);
        let mapped = lead
            .checked_add(request.len)
            .and_then(|len| len.checked_add(page - 1))
            .map(|len| len & !(page - 1))
            .filter(|len| *len <= 1 << 56)
            .ok_or_else(overflow)?;
        // The kernel counts pages in a signed 64-bit offset.
        offset.checked_add(mapped as u64).filter(|end| *end <= i64::MAX as u64).ok_or_else(overflow)?;
        let guards =
            request.guard_pages.checked_mul(page).filter(|len| *len <= 1 << 56).ok_or_else(overflow)?;
        let map = Map { request, protection, offset: offset - lead as u64, len: mapped, guards };
        let (outer, guard, home) = map.run()?;
        let start = outer.start + guards + lead;
        debug_assert!(outer.start.is_multiple_of(page), "the kernel aligns what it maps");
        let owner = Owner::default();
        Ok(Self { outer, start, len: request.len, facts: Facts { guard, ..facts }, home, owner })
    }

    /// The pages that hold the bytes: `outer` without guards.
    pub(super) fn pages(&self) -> Range<usize> {
        let page = self.facts.page;
        if self.len == 0 {
            return 0..0;
        }
        self.start & !(page - 1)..(self.start + self.len + page - 1) & !(page - 1)
    }

    #[inline]
    pub(super) fn unmap(&mut self) -> io::Result<()> {
        let outer = std::mem::replace(&mut self.outer, 0..0);
        self.len = 0;
        if !self.owner.is_here() {
            return Ok(()); // nothing, or somebody else's
        }
        unmap_part(self.home.as_ref(), outer)
    }

    /// Refuses to change what is not there in this child of fork.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn check_here(&self) -> io::Result<()> {
        if self.owner.is_here() { Ok(()) } else { Err(refused(Errno::FAULT)) }
    }
}

/// The size of the pages that the kernel will map a request with. It rounds lengths up to them by itself, so that a wrong one
/// would leave mapped, or map over, what nobody here knows of.
#[inline]
fn page_of(request: &Request<'_>) -> io::Result<usize> {
    match (request.source, request.huge) {
        (Source::File { .. }, Some(_)) => Err(refused(Errno::INVAL)),
        (_, Some(bits)) if (13..48).contains(&bits) => Ok(1 << bits),
        (_, Some(_)) => Err(refused(Errno::INVAL)),
        (Source::File { fd, .. }, None) => match request.seen.and_then(|seen| seen.page_of(fd)) {
            Some(page) => Ok(page),
            None => Ok(Seen::look(fd)?.page_size()),
        },
        (Source::Anonymous | Source::AnonymousShared, None) => Ok(PAGE_SIZE),
    }
}

/// Unmaps a range that its owner gives up; at `ENOMEM` frees the memory at least.
#[inline]
pub(super) fn unmap_part(home: Option<&Home>, range: Range<usize>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    if let Some(home) = home {
        return home.space.release(range);
    }
    // SAFETY: by invariant (1) the range is this owner's, who gives it up; slices borrow from the owner and are gone.
    let unmapped = unsafe { munmap(range.start as *mut _, range.len()) };
    if unmapped == Err(Errno::NOMEM) {
        // SAFETY: as above; the range stays mapped, but nobody reads it any more.
        let _ = unsafe { madvise(range.start as *mut _, range.len(), Advice::LinuxDontNeed) };
    }
    Ok(unmapped?)
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.unmap();
    }
}

/// One call of mmap(2), with what belongs around it.
struct Map<'a> {
    request: &'a Request<'a>,
    protection: ProtFlags,
    /// Offset in the file, a multiple of the page size.
    offset: u64,
    /// Bytes to map, whole pages.
    len: usize,
    /// Bytes of guard on each side.
    guards: usize,
}

impl Map<'_> {
    #[inline]
    fn run(&self) -> io::Result<(Range<usize>, GuardKind, Option<Home>)> {
        let total = self.guards.checked_mul(2).and_then(|both| both.checked_add(self.len));
        let total = total.ok_or_else(|| refused(Errno::OVERFLOW))?;
        if let Some((space, at)) = self.request.place {
            return self.run_in(space, at, total);
        }
        if self.guards == 0 {
            let start = self.map()?;
            return Ok((start..start + total, GuardKind::None, None));
        }
        if self.request.page == PAGE_SIZE && matches!(self.request.source, Source::Anonymous) {
            let wide = Map { request: self.request, len: total, guards: 0, ..*self };
            let start = wide.map()?;
            let outer = start..start + total;
            if guard_ends(&outer, self.guards).is_ok() {
                return Ok((outer, GuardKind::Markers, None));
            }
            unmap_part(None, outer)?;
        }
        let memory = Reservation::aligned(total, self.request.page)?;
        let at = memory.start() + self.guards;
        // SAFETY: the range is new, this function's own, and large enough; the mapping is new too.
        unsafe { memory.place(at..at + self.len, || self.map()) }?;
        let outer = memory.start()..memory.start() + total;
        std::mem::forget(memory); // the region owns the range now
        Ok((outer, GuardKind::Mappings, None))
    }

    /// In an address space, what lies on both sides is inaccessible already: that is the guard.
    fn run_in(
        &self,
        space: &Arc<AddressSpace>,
        at: usize,
        total: usize,
    ) -> io::Result<(Range<usize>, GuardKind, Option<Home>)> {
        let all = space.addresses();
        let start = all.start.checked_add(at).filter(|start| start.is_multiple_of(self.request.page));
        let start = start.ok_or_else(|| refused(Errno::INVAL))?;
        let end = start.checked_add(total).ok_or_else(|| refused(Errno::NOMEM))?;
        let outer = start..end;
        let file = match self.request.source {
            Source::File { fd, .. } => Some(Arc::new(fd.try_clone_to_owned()?)),
            Source::Anonymous | Source::AnonymousShared => None,
        };
        space.claim(outer.clone())?;
        let at = start + self.guards;
        space.place(&outer, at..at + self.len, || self.map())?;
        let guard = if self.guards == 0 { GuardKind::None } else { GuardKind::Mappings };
        Ok((outer, guard, Some(Home { space: Arc::clone(space), file })))
    }

    /// Maps where the kernel likes.
    #[inline]
    fn map(&self) -> io::Result<usize> {
        let request = self.request;
        let mut flags = match request.source {
            Source::Anonymous | Source::File { shared: false, .. } => MapFlags::PRIVATE,
            Source::AnonymousShared | Source::File { shared: true, .. } => MapFlags::SHARED,
        };
        flags.set(MapFlags::POPULATE, request.populate);
        flags.set(MapFlags::NORESERVE, request.no_reserve);
        flags.set(MapFlags::STACK, request.stack);
        if let Some(log2) = request.huge {
            flags |= MapFlags::HUGETLB | MapFlags::from_bits_retain(u32::from(log2) << libc::MAP_HUGE_SHIFT);
        }
        map_anywhere(request.source, self.offset, self.len, self.protection, flags)
    }
}

/// mmap(2) at an address of the kernel's choice.
#[inline]
pub(super) fn map_anywhere(
    source: Source<'_>,
    offset: u64,
    len: usize,
    protection: ProtFlags,
    flags: MapFlags,
) -> io::Result<usize> {
    let anywhere = std::ptr::null_mut();
    let start = match source {
        Source::File { fd, .. } => {
            // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
            unsafe { mmap(anywhere, len, protection, flags, fd, offset) }
        }
        Source::Anonymous | Source::AnonymousShared => {
            // SAFETY: as above.
            unsafe { mmap_anonymous(anywhere, len, protection, flags) }
        }
    }?;
    Ok(start as usize)
}

fn guard_ends(outer: &Range<usize>, guards: usize) -> io::Result<()> {
    for start in [outer.start, outer.end - guards] {
        // SAFETY: a part of a new mapping of the caller's, to which nobody has a reference; it becomes inaccessible.
        let guarded = unsafe { libc::madvise(start as *mut _, guards, MADV_GUARD_INSTALL) };
        check(guarded.into())?;
    }
    Ok(())
}

impl<K: Slices> Deref for Region<K> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: by the invariants the bytes are mapped while `self` is; by `Slices` they are readable and nobody changes
        // them but through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.inner.start as *const u8, self.inner.len) }
    }
}

impl<K: SlicesMut> DerefMut for Region<K> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and by `SlicesMut` they are writable; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.inner.start as *mut u8, self.inner.len) }
    }
}

impl<K: Copies> Region<K> {
    /// Copies bytes out of the region.
    ///
    /// # Errors
    /// The index in `into` of a byte at or before the first that could not be read, at most 16 before it.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) -> Result<(), usize> {
        let from = self.locate(at, into.len());
        // SAFETY: the source lies in this region, which stays mapped and readable while it is borrowed; the destination is
        // a slice of the caller's, which can't overlap it, because no slice of a `Copies` region exists.
        unsafe { copy::copy(into.as_mut_ptr(), from as *const u8, into.len(), self.inner.pages()) }
    }

    fn locate(&self, at: usize, len: usize) -> usize {
        assert!(
            at <= self.inner.len && len <= self.inner.len - at,
            "{len} bytes at {at} of {}",
            self.inner.len
        );
        self.inner.start + at
    }
}

impl<K: CopiesMut> Region<K> {
    /// Copies bytes into the region. What two threads write to one place at the same time ends as some mixture.
    ///
    /// # Errors
    /// The index in `bytes` of a byte at or before the first that could not be written, at most 16 before it.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) -> Result<(), usize> {
        let to = self.locate(at, bytes.len());
        // SAFETY: as in `copy_out`, and the kind is writable.
        unsafe { copy::copy(to as *mut u8, bytes.as_ptr(), bytes.len(), self.inner.pages()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{Region, Request, Source};
    use crate::mmap::{Volatile, Write};

    #[test]
    fn pages_of_another_size_than_the_kernels_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let of_file = Source::File { fd: file.as_fd(), offset: 0, shared: true };
        for page in [0, 1, 100, 8192, 2 << 20] {
            let request = |source| Request { page, ..Request::new(source, 4096) };
            let errors = [
                Region::<Write>::anonymous(&request(Source::Anonymous)).unwrap_err(),
                Region::<Volatile>::volatile(&request(of_file)).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{page}");
            }
        }
        for (bits, page) in [(0, 1), (0, 2 << 20), (21, 4096), (21, 1 << 30), (64, 1), (12, 4096)] {
            let request = Request { page, huge: Some(bits), ..Request::new(Source::Anonymous, 4096) };
            let error = Region::<Write>::anonymous(&request).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "2^{bits}, {page}");
        }
    }
}
