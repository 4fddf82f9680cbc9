//! Errors as C sees them: a negative number, and a text for each thread. The guard around every entry is here too.
//!
//! Codes down to -4095 are negated error numbers of the kernel; the library's own begin below `MAPWRIGHT_ERROR_BASE`, where no
//! kernel has any. Their numbers never change.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use mapwright::{Error, JournalError};

use crate::pointers::set_errno;

/// The library's own codes are -(MAPWRIGHT_ERROR_BASE + n); codes above -4096 are negated errno values.
pub const MAPWRIGHT_ERROR_BASE: c_int = 10_000;
/// The file was changed by somebody else since it was opened.
pub const MAPWRIGHT_ERR_CHANGED: c_int = -MAPWRIGHT_ERROR_BASE - 1;
/// Everything in the pager's budget is pinned, or could not be written back.
pub const MAPWRIGHT_ERR_BUDGET: c_int = -MAPWRIGHT_ERROR_BASE - 2;
/// An earlier write-back failed and was not acknowledged yet.
pub const MAPWRIGHT_ERR_LATCHED: c_int = -MAPWRIGHT_ERROR_BASE - 3;
/// A limit of the system or the process is met; mapwright_last_error names it.
pub const MAPWRIGHT_ERR_LIMIT: c_int = -MAPWRIGHT_ERROR_BASE - 4;
/// Something that others prepared is not what it must be to be used.
pub const MAPWRIGHT_ERR_NOT_TRUSTED: c_int = -MAPWRIGHT_ERROR_BASE - 5;
/// The library made a mistake: please report it. Objects that the call concerned should be closed.
pub const MAPWRIGHT_ERR_PANIC: c_int = -MAPWRIGHT_ERROR_BASE - 6;
/// Another error, of a kind that this version of the header does not know.
pub const MAPWRIGHT_ERR_OTHER: c_int = -MAPWRIGHT_ERROR_BASE - 7;
/// A program that committed was killed, and what it committed last is in the file's journal only: open the file for writing once.
pub const MAPWRIGHT_ERR_UNRECOVERED: c_int = -MAPWRIGHT_ERROR_BASE - 8;
/// The file can't have a journal, or the journal there is damaged, another file's or not to be trusted. Nothing was changed.
pub const MAPWRIGHT_ERR_JOURNAL: c_int = -MAPWRIGHT_ERROR_BASE - 9;

/// Result of what an entry does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    /// What is returned.
    pub code: c_int,
    /// The error number that the functions shaped like mmap(2) set.
    pub errno: c_int,
    text: String,
}

impl Failure {
    /// An error number of the kernel.
    pub fn new(errno: c_int, text: impl Into<String>) -> Self {
        Self { code: -errno, errno, text: text.into() }
    }

    /// A pointer that must not be NULL.
    pub fn null(what: &str) -> Self {
        Self::new(libc::EFAULT, format!("{what} is NULL"))
    }

    /// An argument that makes no sense.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(libc::EINVAL, text)
    }

    /// In words.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn own(code: c_int, errno: c_int, text: String) -> Self {
        Self { code, errno, text }
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = format!("a mistake in libmapwright: {}", message.unwrap_or("a panic"));
        Self::own(MAPWRIGHT_ERR_PANIC, libc::ENOTRECOVERABLE, text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let errno = error.errno();
        match error {
            Error::Io { .. } => Self::new(errno.unwrap_or(libc::EIO), text),
            Error::TimedOut { .. } => Self::new(libc::ETIMEDOUT, text),
            Error::OutOfRange { .. } => Self::new(libc::ERANGE, text),
            Error::Invalid { .. } => Self::new(libc::EINVAL, text),
            Error::Unsupported { .. } => Self::new(libc::EOPNOTSUPP, text),
            Error::Locked { .. } => Self::new(libc::EBUSY, text),
            Error::ReadOnly { .. } => Self::new(libc::EACCES, text),
            Error::NotMappable { .. } => Self::new(libc::ENODEV, text),
            Error::Changed { .. } => Self::own(MAPWRIGHT_ERR_CHANGED, libc::ESTALE, text),
            Error::BudgetExhausted { .. } => Self::own(MAPWRIGHT_ERR_BUDGET, libc::ENOMEM, text),
            Error::Latched { .. } => Self::own(MAPWRIGHT_ERR_LATCHED, errno.unwrap_or(libc::EIO), text),
            Error::LimitReached { .. } => Self::own(MAPWRIGHT_ERR_LIMIT, errno.unwrap_or(libc::ENOMEM), text),
            Error::NotTrusted { .. } => Self::own(MAPWRIGHT_ERR_NOT_TRUSTED, libc::EPERM, text),
            Error::Journal(source) if matches!(*source, JournalError::Unrecovered { .. }) => {
                Self::own(MAPWRIGHT_ERR_UNRECOVERED, libc::EUCLEAN, text)
            }
            Error::Journal(_) => Self::own(MAPWRIGHT_ERR_JOURNAL, libc::EUCLEAN, text),
            _ => Self::own(MAPWRIGHT_ERR_OTHER, errno.unwrap_or(libc::EIO), text),
        }
    }
}

impl<M> From<mapwright::mmap::Refused<M>> for Failure {
    fn from(refused: mapwright::mmap::Refused<M>) -> Self {
        Error::from(refused).into()
    }
}

thread_local! {
    /// The last failure of this thread.
    static LAST: RefCell<Option<(c_int, CString)>> = const { RefCell::new(None) };
}

/// Text with a zero at its end, whatever is in it.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// Runs what an entry does: no panic gets past here, and a failure is remembered.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        tests::panic_if_told();
        work()
    }));
    let result = caught.unwrap_or_else(|payload| Err(Failure::panicked(&*payload)));
    result.inspect_err(remember)
}

/// Makes a failure the last one of this thread.
pub fn remember(failure: &Failure) {
    let text = c_text(&failure.text);
    // A thread that is ending has no locals any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Some((failure.code, text)));
}

/// For functions that return 0 or a negative code.
pub fn status(work: impl FnOnce() -> Result<()>) -> c_int {
    guarded(work).map_or_else(|failure| failure.code, |()| 0)
}

/// For functions that return a number or a negative code.
pub fn number(work: impl FnOnce() -> Result<u64>) -> i64 {
    guarded(work).map_or_else(|failure| failure.code.into(), |n| i64::try_from(n).unwrap_or(i64::MAX))
}

/// For functions that return what mmap(2) and its like do: -1 as a failure, and `errno`.
pub fn like_the_kernel(work: impl FnOnce() -> Result<usize>) -> usize {
    guarded(work).unwrap_or_else(|failure| {
        set_errno(failure.errno);
        usize::MAX
    })
}

/// For functions that can't fail in a way that is told.
pub fn quietly<T>(otherwise: T, work: impl FnOnce() -> T) -> T {
    guarded(|| Ok(work())).unwrap_or(otherwise)
}

/// The text of the last failure in this thread: what failed, with its values, and what to do about it.
///
/// Never NULL: an empty string if nothing has failed. It stays valid until the next call of this library that fails in the same
/// thread, or the end of the thread. A call that succeeds leaves it alone. UTF-8.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_last_error() -> *const c_char {
    quietly(c"".as_ptr(), || {
        let text = LAST.try_with(|last| last.borrow().as_ref().map(|(_, text)| text.as_ptr()));
        text.ok().flatten().unwrap_or(c"".as_ptr())
    })
}

/// The code of the last failure in this thread, negative; 0 if nothing has failed. For functions shaped like mmap(2), whose
/// errno may stand for several codes.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_last_error_code() -> c_int {
    quietly(0, || LAST.try_with(|last| last.borrow().as_ref().map_or(0, |(code, _)| *code)).unwrap_or(0))
}

/// What a code means, in a few words: for the details of one failure see mapwright_last_error.
///
/// code: what a function returned, or the same without its sign. Never NULL; the string is never freed. Any thread may call it.
#[unsafe(no_mangle)]
pub extern "C" fn mapwright_strerror(code: c_int) -> *const c_char {
    quietly(c"unknown".as_ptr(), || {
        let text = match -code.saturating_abs() {
            0 => c"success",
            MAPWRIGHT_ERR_CHANGED => c"the file was changed while it was mapped",
            MAPWRIGHT_ERR_BUDGET => c"the pager's budget is exhausted",
            MAPWRIGHT_ERR_LATCHED => c"an earlier write-back failed and is not acknowledged",
            MAPWRIGHT_ERR_LIMIT => c"a limit of the system or the process is reached",
            MAPWRIGHT_ERR_NOT_TRUSTED => c"not what it must be to be used",
            MAPWRIGHT_ERR_PANIC => c"a mistake in libmapwright",
            MAPWRIGHT_ERR_OTHER => c"another error",
            MAPWRIGHT_ERR_UNRECOVERED => c"what was committed last is in the file's journal only",
            MAPWRIGHT_ERR_JOURNAL => c"a journal that can't be had or used",
            errno => return of_errno(-errno).as_ptr(),
        };
        text.as_ptr()
    })
}

/// The C library's words for an error number, made once.
fn of_errno(errno: c_int) -> &'static CString {
    /// One more than the largest of Linux (EHWPOISON).
    const COUNT: usize = 134;
    static TEXTS: OnceLock<Vec<CString>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        let text = |errno| {
            let text = std::io::Error::from_raw_os_error(errno).to_string();
            c_text(text.split(" (os error").next().unwrap_or_default())
        };
        (1..COUNT as c_int).map(text).chain([c_text("unknown error")]).collect()
    });
    usize::try_from(errno - 1).ok().and_then(|at| texts.get(at)).unwrap_or(&texts[COUNT - 1])
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ffi::CStr;

    use super::*;

    thread_local!(static PANIC: Cell<bool> = const { Cell::new(false) });

    /// A panic at the start of the next entry of this thread, if a test wants one.
    pub(super) fn panic_if_told() {
        assert!(!PANIC.take(), "forced");
    }

    /// Runs an entry that panics inside; what it returns.
    fn forced<T>(entry: impl FnOnce() -> T) -> T {
        PANIC.set(true);
        let returned = entry();
        assert!(!PANIC.get(), "the entry has no guard");
        returned
    }

    /// Entries are `extern "C"`: a panic that left one would abort this process.
    #[test]
    fn no_panic_leaves_an_entry() {
        use crate::{map, options, pager, shaped, version};
        assert_eq!(forced(|| options::mapwright_options_new(None)), MAPWRIGHT_ERR_PANIC);
        assert_eq!(forced(|| pager::mapwright_pager_new(0, None)), MAPWRIGHT_ERR_PANIC);
        assert_eq!(forced(|| map::mapwright_map_length(std::ptr::null_mut())), MAPWRIGHT_ERR_PANIC.into());
        assert_eq!(forced(|| version::mapwright_abi_version()), 0);
        assert_eq!(forced(|| shaped::mapwright_munmap(std::ptr::null_mut(), 0)), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOTRECOVERABLE));
        assert_eq!(mapwright_last_error_code(), MAPWRIGHT_ERR_PANIC);
        LAST.with(|last| {
            let last = last.borrow();
            assert!(last.as_ref().unwrap().1.to_str().unwrap().contains("forced"));
        });
    }

    /// What a function of the source looks like that C calls: attribute, signature, and a body that begins with the guard.
    #[test]
    fn every_entry_has_a_guard() {
        let guards = ["status(|| ", "number(|| ", "quietly(", "like_the_kernel(|| "];
        let mut entries = 0;
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for entry in text.split("\npub extern \"C\" fn ").skip(1) {
                let (signature, body) = entry.split_once(" {\n    ").unwrap();
                assert!(guards.iter().any(|guard| body.starts_with(guard)), "{signature}");
                entries += 1;
            }
            assert_eq!(
                text.matches("#[unsafe(no_mangle)]\npub extern").count(),
                text.matches("\npub extern \"C\" fn ").count()
            );
        }
        assert!(entries > 60, "{entries}");
    }

    #[test]
    fn codes_have_words_of_their_own() {
        let codes = (-10_009..=-10_001).chain((1..134).map(|errno| -errno));
        for code in codes.clone() {
            assert_ne!(mapwright_strerror(code), std::ptr::null());
            assert_eq!(mapwright_strerror(code), mapwright_strerror(-code));
        }
        let text = |code: c_int| of_errno(code).as_c_str();
        assert_eq!(text(libc::ENOENT), c"No such file or directory");
        assert_eq!([text(0), text(-5), text(100_000)], [c"unknown error"; 3] as [&CStr; 3]);
    }
}
