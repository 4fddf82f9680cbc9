//! From error numbers to typed errors: which limit was met, what is missing, what to do.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// What was being done, for an error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) operation: &'static str,
    /// What it was done to: a path, or words.
    pub(super) name: &'a str,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Huge pages were asked for.
    pub(super) huge: bool,
}

impl Attempt<'_> {
    pub(super) fn failed(&self, error: io::Error) -> Error {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOMEM) => self.no_memory(error),
            Some(Errno::AGAIN | Errno::PERM) if self.operation == "mlock" => self.lock_limit(error),
            Some(Errno::AGAIN) if self.operation == "mmap" => self.lock_limit(error),
            Some(Errno::ACCESS | Errno::PERM) if self.operation == "mmap" => self.denied(error),
            Some(Errno::NODEV) => Error::NotMappable {
                path: self.name.to_owned(),
                kind: "a file whose file system or device has no mappings",
                remedy: "read it, or copy it to a file",
            },
            Some(Errno::NOSYS) => Error::unsupported(
                self.operation,
                "the kernel is older than the call, or a seccomp profile refuses it: see mapwright doctor",
                error,
            ),
            _ => Error::io(self.operation, self.name, self.offset, self.len, error),
        }
    }

    fn denied(&self, error: io::Error) -> Error {
        if error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) {
            return Error::ReadOnly { path: self.name.to_owned() };
        }
        Error::io(self.operation, self.name, self.offset, self.len, error)
    }

    fn no_memory(&self, error: io::Error) -> Error {
        let error = Arc::new(error);
        let limit = |limit, value, remedy| Error::LimitReached {
            operation: self.operation,
            path: self.name.to_owned(),
            limit,
            value,
            remedy,
            source: Arc::clone(&error),
        };
        if self.huge {
            let reserved = number("/proc/sys/vm/nr_hugepages").unwrap_or(0);
            return limit("vm.nr_hugepages", reserved, "sysctl vm.nr_hugepages=N reserves more huge pages");
        }
        // mremap(2) wants to stay five below the limit.
        if let Some((count, most)) = mappings()
            && count + 6 >= most
        {
            return limit(
                "vm.max_map_count",
                most,
                "drop mappings, make them neighbours of the same kind, or raise it by sysctl vm.max_map_count",
            );
        }
        if self.operation == "mlock"
            && let Some(most) = getrlimit(Resource::Memlock).current
        {
            return limit("RLIMIT_MEMLOCK", most, "ulimit -l, or the capability CAP_IPC_LOCK");
        }
        if let Some(most) = getrlimit(Resource::As).current {
            return limit(
                "RLIMIT_AS",
                most,
                "ulimit -v unlimited: a mapping needs address space for all of its bytes",
            );
        }
        let (operation, path) = (self.operation, self.name.to_owned());
        Error::Io { operation, path, offset: self.offset, len: self.len, source: error }
    }

    fn lock_limit(&self, error: io::Error) -> Error {
        Error::LimitReached {
            operation: self.operation,
            path: self.name.to_owned(),
            limit: "RLIMIT_MEMLOCK",
            value: getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX),
            remedy: "ulimit -l, or the capability CAP_IPC_LOCK",
            source: Arc::new(error),
        }
    }
}

/// Mappings that this process has, and how many it may have.
fn mappings() -> Option<(u64, u64)> {
    let most = number("/proc/sys/vm/max_map_count")?;
    Some((mapwright_sys::mmap::count_mappings().ok()?, most))
}

fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Turns an error of the unsafe layer into a typed one.
pub(super) trait OrFailed<T> {
    fn or_failed(self, attempt: Attempt<'_>) -> Result<T>;
}

impl<T> OrFailed<T> for io::Result<T> {
    fn or_failed(self, attempt: Attempt<'_>) -> Result<T> {
        self.map_err(|error| attempt.failed(error))
    }
}
