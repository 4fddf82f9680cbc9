//! What this machine allows.

use mapwright_sys::pagemap::Pagemap;
use mapwright_sys::ring::Ring;
use mapwright_sys::uffd::{Features, Source, Uffd};

use crate::error::Error;

/// What this process may use of the kernel: `mapwright doctor` prints it.
#[derive(Debug)]
pub struct Machine {
    /// userfaultfd: its features, or why there is none.
    pub userfaultfd: Result<UserfaultFacts, Error>,
    /// PAGEMAP_SCAN, which finds written pages.
    pub pagemap_scan: Result<(), Error>,
    /// io_uring, which keeps many reads in flight.
    pub io_uring: Result<(), Error>,
}

/// What userfaultfd offers here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserfaultFacts {
    /// `UFFD_FEATURE_*` bits.
    pub features: u64,
    /// Only faults of user code are served: a system call that meets an absent page gets EFAULT.
    pub user_mode_only: bool,
    /// How it was obtained.
    pub source: &'static str,
}

impl Machine {
    /// Tries each facility.
    pub fn probe() -> Self {
        let unsupported = |feature, remedy| {
            move |source: std::io::Error| Error::Unsupported { feature, remedy, source: source.into() }
        };
        let userfaultfd = Uffd::offered().map(|(Features(features), source)| UserfaultFacts {
            features,
            user_mode_only: source == Source::UserModeOnly,
            source: match source {
                Source::SystemCall => "userfaultfd(2)",
                Source::Device => "/dev/userfaultfd",
                Source::UserModeOnly => "userfaultfd(2), user mode only",
            },
        });
        Self {
            userfaultfd: userfaultfd.map_err(unsupported(
                "userfaultfd",
                "allow it in the container's seccomp profile, or give the process /dev/userfaultfd",
            )),
            pagemap_scan: Pagemap::open()
                .and_then(|pagemap| pagemap.probe())
                .map_err(unsupported("PAGEMAP_SCAN", "run Linux 6.7 or newer with /proc mounted")),
            io_uring: Ring::new(1)
                .map(drop)
                .map_err(unsupported("io_uring", "set kernel.io_uring_disabled=0 and allow it in seccomp")),
        }
    }
}
