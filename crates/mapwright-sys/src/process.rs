//! Which process this is: to know what a child of fork(2) has not got.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::PAGE_SIZE;

/// A page that the kernel wipes in children, whose first word is this process's number.
static OWN: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
/// The last number that was given, by this process or, before it was made, by one that it descends from.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A number that this process has, and that none of those that it descends from had; not zero. A process id would not do: it may be
/// the same in another namespace. Allocates nothing and takes no lock.
pub(crate) fn number() -> u64 {
    let Some(own) = own() else {
        // Linux before 4.14. The bit keeps it apart from what is counted.
        return u64::from(std::process::id()) | 1 << 63;
    };
    match own.load(Ordering::Acquire) {
        0 => {
            let next = LAST.fetch_add(1, Ordering::AcqRel) + 1;
            own.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire)
                .map_or_else(|other| other, |_| next)
        }
        number => number,
    }
}

fn own() -> Option<&'static AtomicU64> {
    let mut page = OWN.load(Ordering::Acquire);
    if page.is_null() {
        let made = wiped_page()?;
        match OWN.compare_exchange(page, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page = made,
            Err(other) => {
                page = other;
                // SAFETY: made above, and nobody knows of it.
                let _ = unsafe { munmap(made.cast(), PAGE_SIZE) };
            }
        }
    }
    // SAFETY: mapped for good, aligned, zero at first, and reached by atomic accesses only; the kernel wipes a child's copy before
    // the child runs.
    Some(unsafe { &*page })
}

fn wiped_page() -> Option<*mut AtomicU64> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
    let page =
        unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE, protection, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: the page is new, and nobody has a reference to it.
    if unsafe { madvise(page, PAGE_SIZE, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: as above.
        let _ = unsafe { munmap(page, PAGE_SIZE) };
        return None;
    }
    Some(page.cast())
}

/// The process that some memory is in, if it is kept from children.
#[derive(Debug, Default)]
pub(crate) struct Owner(AtomicU64);

impl Owner {
    /// The memory is kept from children from now on.
    pub(crate) fn keep(&self) {
        self.0.store(number(), Ordering::Release);
    }

    /// The memory is there in children again.
    pub(crate) fn share(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Whether the memory is this process's: what lies at its addresses in a child is nothing, or somebody else's.
    pub(crate) fn is_here(&self) -> bool {
        let owner = self.0.load(Ordering::Acquire);
        owner == 0 || owner == number()
    }
}

impl Clone for Owner {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Acquire)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_another_number_and_so_has_its_child() {
        let (mine, owner) = (number(), Owner::default());
        assert!(mine != 0 && number() == mine && owner.is_here());
        owner.keep();
        assert!(owner.is_here());
        // SAFETY: the child makes system calls and ends by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let theirs = number();
            let mut right = theirs != mine && number() == theirs && !owner.is_here();
            // SAFETY: as above.
            let grandchild = unsafe { libc::fork() };
            if grandchild == 0 {
                let right = ![mine, theirs].contains(&number()) && !owner.is_here();
                // SAFETY: ends the process without running anything of its parent's.
                unsafe { libc::_exit(i32::from(!right)) };
            }
            let mut status = 0;
            // SAFETY: waits for the child made above.
            right &= unsafe { libc::waitpid(grandchild, &raw mut status, 0) } == grandchild && status == 0;
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(number(), mine);
    }
}
