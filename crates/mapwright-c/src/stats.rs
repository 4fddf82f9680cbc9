//! Counters, in a structure that may grow.

/// What a pager did since it was made, and what it holds now. Counters only grow.
///
/// The caller sets size to sizeof(mapwright_stats) before the call. A library that is newer than the program writes that much
/// and no more; one that is older writes less, and size says how many bytes: what is beyond was left alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Bytes of this structure: set by the caller, and then what was written.
    pub size: usize,
    /// Touches that found no page.
    pub faults: u64,
    /// Blocks that explicit access found resident.
    pub hits: u64,
    /// Blocks read from files, read-ahead included.
    pub fills: u64,
    /// Bytes read from files.
    pub filled_bytes: u64,
    /// Bytes of filled_bytes that were read ahead.
    pub read_ahead_bytes: u64,
    /// Fills that failed.
    pub failed_fills: u64,
    /// Calls that were tried again after a transient error.
    pub retries: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// Fills of blocks that had been evicted a short time before.
    pub refaults: u64,
    /// Runs of 2 MiB that were put on a huge page.
    pub collapses: u64,
    /// Runs of pages written to files.
    pub write_backs: u64,
    /// Bytes written to files.
    pub written_back_bytes: u64,
    /// Blocks being filled now.
    pub queue_depth: u64,
    /// The most blocks that were being filled at one time.
    pub max_queue_depth: u64,
    /// Bytes of frames and metadata in use now.
    pub used_bytes: u64,
    /// The budget in bytes.
    pub budget_bytes: u64,
    /// Faults by the time they took: entry i counts those of 2^i to 2^(i+1) nanoseconds.
    pub fault_latency: [u64; 40],
}

impl From<mapwright::Stats> for Stats {
    fn from(stats: mapwright::Stats) -> Self {
        Self {
            size: size_of::<Self>(),
            faults: stats.faults,
            hits: stats.hits,
            fills: stats.fills,
            filled_bytes: stats.filled_bytes,
            read_ahead_bytes: stats.read_ahead_bytes,
            failed_fills: stats.failed_fills,
            retries: stats.retries,
            evictions: stats.evictions,
            refaults: stats.refaults,
            collapses: stats.collapses,
            write_backs: stats.write_backs,
            written_back_bytes: stats.written_back_bytes,
            queue_depth: stats.queue_depth,
            max_queue_depth: stats.max_queue_depth,
            used_bytes: stats.used_bytes,
            budget_bytes: stats.budget_bytes,
            fault_latency: stats.fault_latency,
        }
    }
}
