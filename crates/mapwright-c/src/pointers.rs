//! Everything that C hands over by address, and all unsafe code of this crate.
//!
//! A value of one of these types comes into being only when C calls: the fields are private and there is no constructor. So
//! the rules of the header are promises that the caller made for each value: what is not NULL is valid for what the function's
//! comment says, until the call returns, and nobody writes it meanwhile. Handles are not here: they are numbers, and looked up
//! (`handles.rs`). Outputs are not either: `Option<&mut MaybeUninit<T>>` is a pointer that may be NULL.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Failure, Result};

/// A string of C, or NULL.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The bytes before the zero.
    ///
    /// # Errors
    /// `EFAULT` for NULL.
    pub fn bytes(&self, what: &str) -> Result<&[u8]> {
        if self.0.is_null() {
            return Err(Failure::null(what));
        }
        // SAFETY: not NULL, and by the header a string that ends with a zero and lives as long as the call, as `self` does.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_bytes())
    }

    /// As a path.
    ///
    /// # Errors
    /// `EFAULT` for NULL.
    pub fn path(&self) -> Result<&Path> {
        Ok(Path::new(OsStr::from_bytes(self.bytes("the path")?)))
    }

    /// As text.
    ///
    /// # Errors
    /// `EFAULT` for NULL, `EILSEQ` for what is not UTF-8.
    pub fn utf8(&self, what: &str) -> Result<&str> {
        std::str::from_utf8(self.bytes(what)?)
            .map_err(|_| Failure::new(libc::EILSEQ, format!("{what} is not UTF-8")))
    }
}

/// Bytes of C that are read, or NULL.
#[repr(transparent)]
pub struct Input(*const c_void);

impl Input {
    /// `len` bytes. None are none, also at NULL.
    ///
    /// # Errors
    /// `EFAULT` for NULL, `EINVAL` for more bytes than there are addresses.
    pub fn bytes(&self, len: usize) -> Result<&[u8]> {
        if check(self.0, len)? == 0 {
            return Ok(&[]);
        }
        // SAFETY: not NULL; by the header `len` bytes, at most `isize::MAX`, that are readable and unchanged during the call.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast(), len) })
    }
}

/// Bytes of C that are written, or NULL.
#[repr(transparent)]
pub struct Output(*mut c_void);

impl Output {
    /// Room for `len` bytes. None are none, also at NULL.
    ///
    /// # Errors
    /// `EFAULT` for NULL, `EINVAL` for more bytes than there are addresses.
    pub fn bytes(&mut self, len: usize) -> Result<&mut [u8]> {
        if check(self.0, len)? == 0 {
            return Ok(&mut []);
        }
        // SAFETY: not NULL; by the header `len` bytes, at most `isize::MAX`, that are writable and nobody else's during the call.
        // What C allocated and did not write is bytes of unknown value to us, who only write them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len) })
    }
}

/// An array of C that is read, or NULL.
#[repr(transparent)]
pub struct Items<T>(*const T);

/// What C hands over in arrays.
///
/// # Safety
/// `repr(C)`, without padding, and every pattern of bits is a value.
pub unsafe trait Plain: Copy {}

// SAFETY: `repr(C)`, of two fields of eight bytes, both of which are numbers.
unsafe impl Plain for crate::pins::RangeOf {}

impl<T: Plain> Items<T> {
    /// `count` of them. None are none, also at NULL.
    ///
    /// # Errors
    /// `EFAULT` for NULL, `EINVAL` for more than there are addresses, and for an address that is not aligned.
    pub fn items(&self, what: &str, count: usize) -> Result<&[T]> {
        if check_array(self.0, what, count)? == 0 {
            return Ok(&[]);
        }
        // SAFETY: not NULL, and aligned; by the header `count` structures, at most `isize::MAX` bytes, that are readable and unchanged
        // during the call; by `Plain` all of them are values.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) })
    }
}

/// An array of C that is written, or NULL.
#[repr(transparent)]
pub struct Room<T>(*mut T);

impl<T: Copy> Room<T> {
    /// Room for `count` of them. None are none, also at NULL.
    ///
    /// # Errors
    /// As for [`Items::items`].
    pub fn items(&mut self, what: &str, count: usize) -> Result<&mut [MaybeUninit<T>]> {
        if check_array(self.0, what, count)? == 0 {
            return Ok(&mut []);
        }
        // SAFETY: not NULL, and aligned; by the header room for `count` structures, at most `isize::MAX` bytes, that are writable and
        // nobody else's during the call. What they hold is not looked at.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), count) })
    }
}

fn check_array<T>(start: *const T, what: &str, count: usize) -> Result<usize> {
    if count.checked_mul(size_of::<T>()).is_none_or(|len| len > isize::MAX as usize) {
        return Err(Failure::invalid(format!("{what}, {count} of them: that is more than memory has")));
    }
    if count > 0 && start.is_null() {
        return Err(Failure::null(what));
    }
    if !start.is_aligned() {
        return Err(Failure::invalid(format!("{what}: the address {:#x} is not aligned", start.addr())));
    }
    Ok(count)
}

fn check(start: *const c_void, len: usize) -> Result<usize> {
    if len > isize::MAX as usize {
        return Err(Failure::new(
            libc::EINVAL,
            format!("a buffer of {len} bytes: that is more than memory has"),
        ));
    }
    if len > 0 && start.is_null() {
        return Err(Failure::null("the buffer"));
    }
    Ok(len)
}

/// A structure that C says the size of in its first field, a `size_t`: it may be of another version than ours.
#[repr(transparent)]
pub struct Record<T>(*mut T);

/// What is written by [`Record::fill`].
///
/// # Safety
/// `repr(C)`, whose first field is the `usize` that `set_size` sets, and without padding.
pub unsafe trait Versioned: Copy {
    /// Sets the first field.
    fn set_size(&mut self, size: usize);
}

// SAFETY: `repr(C)`, its first field is `size`, and all others are of eight bytes as well.
unsafe impl Versioned for crate::stats::Stats {
    fn set_size(&mut self, size: usize) {
        self.size = size;
    }
}

// SAFETY: as above.
unsafe impl Versioned for crate::cache::CacheStat {
    fn set_size(&mut self, size: usize) {
        self.size = size;
    }
}

impl<T: Versioned> Record<T> {
    /// Writes as much of `value` as C has room for, and sets the size to the number of bytes that were written.
    ///
    /// # Errors
    /// `EFAULT` for NULL; `EINVAL` where the first field is not the size of any such structure.
    pub fn fill(&mut self, mut value: T) -> Result<()> {
        if self.0.is_null() {
            return Err(Failure::null("the structure"));
        }
        // SAFETY: not NULL; by the header a structure whose first field, at any rate, is there and was set.
        let theirs = unsafe { self.0.cast::<usize>().read() };
        let ours = size_of::<T>();
        if theirs < 2 * size_of::<usize>() || theirs > 1 << 16 || !theirs.is_multiple_of(align_of::<usize>())
        {
            let what = format!("a structure of {theirs} bytes: set its field size to sizeof of it first");
            return Err(Failure::new(libc::EINVAL, what));
        }
        let written = ours.min(theirs);
        value.set_size(written);
        // SAFETY: both have `written` bytes, by the caller's word and ours; `value` is a local that overlaps nothing.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), self.0.cast::<u8>(), written)
        };
        Ok(())
    }
}

/// A copy of a descriptor of C, which the program may close meanwhile.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn duplicate(fd: c_int) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Failure::new(libc::EBADF, format!("{fd} is no file descriptor")));
    }
    // SAFETY: not -1; it is used for one system call, which fails if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .map_err(|error| Failure::new(error.raw_os_error(), format!("descriptor {fd}: {error}")))
}

/// Sets `errno`.
pub fn set_errno(errno: c_int) {
    // SAFETY: no preconditions; the pointer is to this thread's own variable, which lives as long as the thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else has this thread's variable.
    unsafe { place.write(errno) };
}

/// Has `work` run when the program ends by exit(3).
pub fn at_exit(work: extern "C" fn()) {
    // SAFETY: `work` is a function for the whole life of the program; this library says in its header that it is not for dlclose.
    // Where the list is full, what is not flushed is lost at exit, as the header says of other ends.
    let _ = unsafe { libc::atexit(work) };
}

#[cfg(test)]
impl Text {
    pub fn of(text: Option<&'static CStr>) -> Self {
        Self(text.map_or(std::ptr::null(), CStr::as_ptr))
    }
}
