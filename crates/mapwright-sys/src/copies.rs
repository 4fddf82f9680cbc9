//! Pages of a private mapping that the program has changed, and how they get into another private mapping of the same file.
//!
//! They are taken out of the one mapping with all others ([`Aside::take`]), which stays where it is, empty: whoever touches it waits for its
//! userfaultfd. So nobody changes them while they are copied. The kernel takes no page of a file's mapping into another by itself.
//!
//! What the other mapping can't take is told apart by its last page. Where that is gone too the file was cut: the kernel would have thrown the
//! program's pages there away, and so does this. Otherwise the file can't be read there, and memory of its own takes the page's place.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed, munmap};

use crate::pagemap::Pagemap;
use crate::{PAGE_SIZE, check};

/// Bytes copied by one call.
const PART: usize = 1 << 20;

/// Address space for the pages of a mapping, and then those pages.
pub(crate) struct Aside {
    start: usize,
    len: usize,
}

impl Aside {
    /// Room for `len` bytes, whole pages. It counts as what comes there does, against all limits of the process.
    pub(crate) fn reserve(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection(), flags) }?;
        Ok(Self { start: start as usize, len })
    }

    /// Takes all pages out of a private mapping of the same length, in one step. The mapping stays, registered as it was with its userfaultfd:
    /// whoever touches it from then on meets an absent page.
    ///
    /// # Errors
    /// What mremap(2) says; the pages are where they were.
    ///
    /// # Safety
    /// The mapping is registered, and who holds references into it can wait for its pages until something with the same bytes is there.
    pub(crate) unsafe fn take(&mut self, from: usize) -> io::Result<()> {
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        // SAFETY: it moves over this one's own memory, of which nobody knows; the rest is the caller's promise.
        let moved = unsafe { mremap_fixed(from as *mut _, self.len, self.len, flags, self.start as *mut _) };
        if let Err(error) = moved {
            self.len = 0; // it may be somebody else's by now
            return Err(error.into());
        }
        Ok(())
    }

    /// Copies those pages that are the program's own into `to`, a private mapping of the same bytes of the file, which may be written. How
    /// many pages that were.
    ///
    /// # Errors
    /// What reading the page map says (`ENOTTY` before Linux 6.7); what process_vm_writev(2) says; `EFAULT` where memory is short.
    ///
    /// # Safety
    /// `to` is the caller's own, and nobody holds a reference into it.
    pub(crate) unsafe fn copy_to(&self, to: usize, pagemap: &Pagemap) -> io::Result<usize> {
        let mut owned = Vec::new();
        pagemap.owned(self.start..self.start + self.len, &mut owned)?;
        let end = to + self.len;
        for run in &owned {
            let to = to + (run.start - self.start);
            for at in (0..run.len()).step_by(PART) {
                let part = run.start + at..(run.start + at + PART).min(run.end);
                // SAFETY: passed on to the caller.
                unsafe { copy(part, to + at, end) }?;
            }
        }
        Ok(owned.iter().map(|run| run.len() / PAGE_SIZE).sum())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: this one's own memory, or what was taken there; nobody else knows of it.
            let _ = unsafe { munmap(self.start as *mut _, self.len) };
        }
    }
}

fn protection() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}

/// Whether a copy into this process's own memory by process_vm_writev(2) can be had, which a filter of system calls may forbid.
pub(crate) fn can_copy() -> bool {
    let (from, mut to) = ([7_u8; 8], [0_u8; 8]);
    let (from, into) = (from.as_ptr() as usize, to.as_mut_ptr() as usize);
    // SAFETY: both are arrays of eight bytes that live across the call; nobody else has a reference to the second.
    let copied = unsafe { write_own(from..from + 8, into) };
    matches!(copied, Ok(8)) && to == [7; 8]
}

/// Copies bytes of this process; how many. What can't be had is an error and no signal: `EFAULT`.
///
/// # Safety
/// What lies at `to` is the caller's own, as far as anything does.
unsafe fn write_own(from: Range<usize>, to: usize) -> io::Result<usize> {
    let own = libc::iovec { iov_base: from.start as *mut _, iov_len: from.len() };
    let other = libc::iovec { iov_base: to as *mut _, iov_len: from.len() };
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: two vectors of one element each; the kernel checks both ranges, and the second is the caller's to be written.
    let copied = unsafe { libc::process_vm_writev(pid, &own, 1, &other, 1, 0) };
    check(copied as libc::c_long).map(|copied| copied as usize)
}

/// Copies whole pages to a place in a mapping of a file that ends at `end`.
///
/// # Safety
/// As for [`Aside::copy_to`].
unsafe fn copy(from: Range<usize>, to: usize, end: usize) -> io::Result<()> {
    let mut done = 0;
    while done < from.len() {
        // SAFETY: passed on to the caller.
        match unsafe { write_own(from.start + done..from.end, to + done) } {
            Ok(step) if step > 0 => done += step,
            Err(error) if error.raw_os_error() != Some(libc::EFAULT) => return Err(error),
            _ => {
                let page = done / PAGE_SIZE * PAGE_SIZE;
                let source = from.start + page..from.start + page + PAGE_SIZE;
                // SAFETY: passed on to the caller.
                unsafe { copy_to_what_cannot_be_read(source, to + page, end) }?;
                done = page + PAGE_SIZE;
            }
        }
    }
    Ok(())
}

/// Copies one page to where the file has none any more, or can't be read.
///
/// # Safety
/// As for [`Aside::copy_to`].
unsafe fn copy_to_what_cannot_be_read(from: Range<usize>, to: usize, end: usize) -> io::Result<()> {
    let last = (end - PAGE_SIZE) as *mut _;
    // SAFETY: the advice changes nothing, and the page is the caller's own.
    if unsafe { madvise(last, PAGE_SIZE, Advice::LinuxPopulateRead) }.is_err() {
        return Ok(()); // the file was cut
    }
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller's own page, into which nobody holds a reference.
    unsafe { mmap_anonymous(to as *mut _, PAGE_SIZE, protection(), flags) }?;
    // SAFETY: passed on to the caller.
    match unsafe { write_own(from, to) }? {
        PAGE_SIZE => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::mmap;

    use super::*;
    use crate::uffd::{Features, Uffd};

    const PAGES: usize = 8;
    const LEN: usize = PAGES * PAGE_SIZE;

    fn file() -> OwnedFd {
        let made = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|at| (at / PAGE_SIZE) as u8).collect();
        rustix::io::pwrite(&made, &bytes, 0).unwrap();
        made
    }

    fn map(file: &OwnedFd) -> usize {
        // SAFETY: a new mapping disturbs nothing.
        unsafe { mmap(std::ptr::null_mut(), LEN, protection(), MapFlags::PRIVATE, file.as_fd(), 0) }.unwrap()
            as usize
    }

    fn set(map: usize, page: usize, byte: u8) {
        // SAFETY: inside a mapping of the test's own.
        unsafe { ((map + page * PAGE_SIZE) as *mut u8).write_volatile(byte) }
    }

    /// The first byte of a page, if it can be read.
    fn get(map: usize, page: usize) -> Option<u8> {
        let from = map + page * PAGE_SIZE;
        let mut byte = [0];
        let to = byte.as_mut_ptr() as usize;
        // SAFETY: one byte of the test's own.
        unsafe { write_own(from..from + 1, to) }.ok()?;
        Some(byte[0])
    }

    /// What two maps of a file of the program's say after some pages of the first were moved to the second.
    fn moved(before: impl FnOnce(&OwnedFd, usize)) -> (usize, Vec<Option<u8>>) {
        let (frames, file) = (file(), file());
        let (first, second) = (map(&frames), map(&file));
        [1, 2, 5, 6].into_iter().for_each(|page| set(first, page, 100 + page as u8));
        get(first, 3);
        before(&file, second);
        let mut aside = Aside::reserve(LEN).unwrap();
        // SAFETY: nobody else has the maps, and nobody waits.
        unsafe { aside.take(first) }.unwrap();
        assert_eq!(get(first, 1), Some(1), "its pages are gone, and it maps the file");
        // SAFETY: as above.
        let copied = unsafe { aside.copy_to(second, &Pagemap::open().unwrap()) }.unwrap();
        (copied, (0..PAGES).map(|page| get(second, page)).collect())
    }

    #[test]
    fn changed_pages_are_copied_and_no_others() {
        assert!(can_copy());
        let own = |page: u8| Some(100 + page);
        let expected = vec![Some(0), own(1), own(2), Some(77), Some(4), own(5), own(6), Some(7)];
        let change = |file: &OwnedFd, _| _ = rustix::io::pwrite(file, &[77], 3 * PAGE_SIZE as u64).unwrap();
        assert_eq!(moved(change), (4, expected));
    }

    #[test]
    fn of_a_file_that_was_cut_the_rest_is_gone() {
        let cut = |file: &OwnedFd, _| ftruncate(file, 5 * PAGE_SIZE as u64).unwrap();
        let (_, found) = moved(cut);
        assert_eq!(found[..5], [Some(0), Some(101), Some(102), Some(3), Some(4)]);
        assert_eq!(found[5..], [None; 3]);
    }

    #[test]
    fn where_the_file_can_not_be_read_changes_are_kept() {
        let features = Features::MISSING_SHMEM.with(Features::MINOR_SHMEM).with(Features::POISON);
        let uffd = match Uffd::open(features) {
            Ok(uffd) => uffd,
            Err(error) => {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must not skip this: {error}");
                return eprintln!("######## SKIPPED: userfaultfd: {error} ########");
            }
        };
        let (_, found) = moved(|_, second| {
            // As a page that the disk does not give.
            for page in [2, 4, 5] {
                let at = second + page * PAGE_SIZE..second + (page + 1) * PAGE_SIZE;
                uffd.register(at.clone(), false).unwrap();
                uffd.poison(at, false).unwrap();
            }
        });
        let own = |page: u8| Some(100 + page);
        assert_eq!(found, [Some(0), own(1), own(2), Some(3), None, own(5), own(6), Some(7)]);
    }
}
