//! Which addresses belong to which file: what the functions shaped like mmap(2) need, who are told addresses and not handles.
//!
//! A file has one *owner*, the map of all of it, shared by all its *views*: address ranges that `mapwright_mmap` gave out. Two views
//! of one place have the same addresses, so ranges may overlap; what is unmapped is taken from the newest first. An owner lives as long as it has views.
//!
//! Lock: that of the table, held while a file is opened, closed or resized, and for looking addresses up otherwise; never while pages are
//! read or written, but for the flush of the last view's file.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Failure, Result};
use crate::map::Map;

/// What addresses and lengths are counted in, in bytes.
pub const PAGE: usize = 4096;

/// A file that is mapped.
pub struct Owner {
    /// Device and inode.
    pub file: (u64, u64),
    /// All of it.
    pub map: Map,
    pub writable: bool,
    /// Address of its first byte.
    pub base: usize,
}

/// Addresses that were given out; whole pages.
#[derive(Clone)]
pub struct View {
    pub addresses: Range<usize>,
    pub owner: Arc<Owner>,
}

/// Newest last.
#[derive(Default)]
pub struct Views(Vec<View>);

static VIEWS: Mutex<Views> = Mutex::new(Views(Vec::new()));

/// All views.
pub fn lock() -> MutexGuard<'static, Views> {
    VIEWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rounded up to whole pages.
///
/// # Errors
/// `ENOMEM` for more than there is.
pub fn whole_pages(length: usize) -> Result<usize> {
    let too_long = || Failure::new(libc::ENOMEM, format!("{length} bytes: that is more than memory has"));
    length.checked_next_multiple_of(PAGE).ok_or_else(too_long)
}

/// An address range as the kernel takes it: from a page on, and whole pages.
///
/// # Errors
/// `EINVAL`, `ENOMEM`.
pub fn pages(address: usize, length: usize) -> Result<Range<usize>> {
    if !address.is_multiple_of(PAGE) {
        return Err(Failure::invalid(format!("the address {address:#x} is not that of a page")));
    }
    let end = address.checked_add(whole_pages(length)?);
    end.map(|end| address..end)
        .ok_or_else(|| Failure::new(libc::ENOMEM, "the range ends beyond all addresses"))
}

impl Owner {
    /// Bytes of the file at addresses of it: cut where the file ends.
    pub fn bytes(&self, addresses: &Range<usize>) -> Result<Range<u64>> {
        let length = self.map.using()?.length()?;
        let at = |address: usize| ((address - self.base) as u64).min(length);
        Ok(at(addresses.start)..at(addresses.end))
    }
}

impl Views {
    /// The owner of a file.
    pub fn owner(&self, file: (u64, u64)) -> Option<Arc<Owner>> {
        self.0.iter().rev().find(|view| view.owner.file == file).map(|view| Arc::clone(&view.owner))
    }

    /// Owners that are written.
    pub fn writers(&self) -> Vec<Arc<Owner>> {
        let mut writers: Vec<Arc<Owner>> = Vec::new();
        for view in self.0.iter().filter(|view| view.owner.writable) {
            if !writers.iter().any(|writer| Arc::ptr_eq(writer, &view.owner)) {
                writers.push(Arc::clone(&view.owner));
            }
        }
        writers
    }

    pub fn add(&mut self, view: View) {
        self.0.push(view);
    }

    /// The view that begins at an address and has that length, the newest.
    pub fn find(&self, addresses: &Range<usize>) -> Option<View> {
        self.0.iter().rev().find(|view| view.addresses == *addresses).cloned()
    }

    /// Gives a view other addresses.
    pub fn replace(&mut self, old: &Range<usize>, new: Range<usize>) {
        if let Some(view) = self.0.iter_mut().rev().find(|view| view.addresses == *old) {
            view.addresses = new;
        }
    }

    /// The parts of a range, in order, each with its owner.
    ///
    /// # Errors
    /// `ENOMEM` if some page of it is not mapped here.
    pub fn cover(&self, addresses: &Range<usize>) -> Result<Vec<View>> {
        let mut parts = Vec::new();
        let mut at = addresses.start;
        while at < addresses.end {
            let view = self.0.iter().rev().find(|view| view.addresses.contains(&at));
            let view = view.ok_or_else(|| {
                Failure::new(libc::ENOMEM, format!("the address {at:#x} was not given out by mapwright_mmap"))
            })?;
            let end = view.addresses.end.min(addresses.end);
            parts.push(View { addresses: at..end, owner: Arc::clone(&view.owner) });
            at = end;
        }
        Ok(parts)
    }

    /// The views that are left when a range is taken away, and whether anything was taken.
    pub fn without(&self, addresses: &Range<usize>) -> (Self, bool) {
        let exact = self.0.iter().rposition(|view| view.addresses == *addresses);
        let mut missing = vec![addresses.clone()];
        let mut left: Vec<View> = Vec::new();
        // From the newest to the oldest: each byte is taken from one view.
        for (at, view) in self.0.iter().enumerate().rev() {
            if exact.is_some_and(|exact| exact != at) {
                left.push(view.clone());
                continue;
            }
            let (kept, rest) = cut(&view.addresses, &missing);
            missing = rest;
            left.extend(kept.into_iter().map(|addresses| View { addresses, owner: Arc::clone(&view.owner) }));
        }
        left.reverse();
        let is_changed = missing != [addresses.clone()];
        (Self(left), is_changed)
    }

    /// Owners that have views here and none in `left`.
    pub fn ended(&self, left: &Self) -> Vec<Arc<Owner>> {
        let has = |owner: &Arc<Owner>| left.0.iter().any(|view| Arc::ptr_eq(&view.owner, owner));
        let mut ended: Vec<Arc<Owner>> = Vec::new();
        for view in self.0.iter().filter(|view| !has(&view.owner)) {
            if !ended.iter().any(|owner| Arc::ptr_eq(owner, &view.owner)) {
                ended.push(Arc::clone(&view.owner));
            }
        }
        ended
    }
}

/// What is left of a range when others are taken from it, and what is left of those.
fn cut(range: &Range<usize>, others: &[Range<usize>]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let minus = |from: &Range<usize>, of: &Range<usize>| {
        let sides = [from.start..from.end.min(of.start), from.start.max(of.end)..from.end];
        sides.into_iter().filter(|side| !side.is_empty()).collect::<Vec<_>>()
    };
    let mut kept = vec![range.clone()];
    for other in others {
        kept = kept.iter().flat_map(|part| minus(part, other)).collect();
    }
    (kept, others.iter().flat_map(|other| minus(other, range)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_both_sides() {
        let ranges = |of: &[(usize, usize)]| of.iter().map(|(start, end)| *start..*end).collect::<Vec<_>>();
        let case = |others: &[(usize, usize)], kept: &[(usize, usize)], rest: &[(usize, usize)]| {
            assert_eq!(cut(&(10..20), &ranges(others)), (ranges(kept), ranges(rest)), "{others:?}");
        };
        case(&[(12, 14)], &[(10, 12), (14, 20)], &[]);
        case(&[(5, 12), (18, 30)], &[(12, 18)], &[(5, 10), (20, 30)]);
        case(&[(0, 40)], &[], &[(0, 10), (20, 40)]);
        case(&[(20, 30)], &[(10, 20)], &[(20, 30)]);
    }

    #[test]
    fn ranges_are_whole_pages() {
        assert_eq!(pages(8192, 1).unwrap(), 8192..12288);
        assert_eq!(pages(8192, 0).unwrap(), 8192..8192);
        assert_eq!(pages(8193, 1).unwrap_err().errno, libc::EINVAL);
        assert_eq!(pages(8192, usize::MAX).unwrap_err().errno, libc::ENOMEM);
        assert_eq!(pages(usize::MAX - 4095, 8192).unwrap_err().errno, libc::ENOMEM);
    }
}
