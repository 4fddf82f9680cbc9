//! What of this module the kernel has, found by asking it.

use mapwright_sys::mmap::Advice;

use super::memory_file::MemoryFile;

/// What the kernel that runs now supports. A seccomp profile that refuses a call counts as a kernel without it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Support {
    /// Each advice, and whether it is known.
    pub advice: Vec<(Advice, bool)>,
    /// [`Mapping::seal`](super::Mapping::seal): mseal(2), Linux 6.10.
    pub mseal: bool,
    /// [`cache_stat`](super::cache_stat) and [`dirty_ranges`](super::dirty_ranges): cachestat(2), Linux 6.5.
    pub cachestat: bool,
    /// Guard pages without mappings of their own: MADV_GUARD_INSTALL, Linux 6.13.
    pub guard_markers: bool,
    /// [`Mapping::own_pages`](super::Mapping::own_pages): PAGEMAP_SCAN, Linux 6.7.
    pub pagemap_scan: bool,
    /// [`Mapping::bind`](super::Mapping::bind): a kernel with NUMA.
    pub numa: bool,
}

impl Support {
    /// Asks the kernel: changes nothing.
    ///
    /// ```
    /// let support = mapwright::mmap::Support::probe();
    /// println!("mseal: {}, cachestat: {}", support.mseal, support.cachestat);
    /// ```
    pub fn probe() -> Self {
        let advice = Advice::ALL.into_iter().map(|advice| (advice, advice.is_supported())).collect();
        let cachestat =
            MemoryFile::create("mapwright-probe", 1).is_ok_and(|file| super::cache_stat(&file, 0..1).is_ok());
        Self {
            advice,
            mseal: mapwright_sys::mmap::is_mseal_supported(),
            cachestat,
            guard_markers: mapwright_sys::mmap::is_guard_supported(),
            pagemap_scan: mapwright_sys::pagemap::Pagemap::open().and_then(|map| map.probe()).is_ok(),
            numa: mapwright_sys::mmap::is_numa_supported(),
        }
    }
}
