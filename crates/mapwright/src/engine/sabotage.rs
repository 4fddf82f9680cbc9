//! Ways to break the engine on purpose, to show that its tests can fail. Off, and compiled away, without the feature
//! `sabotage`, which only the simulator's tests ask for.

use std::sync::atomic::{AtomicU32, Ordering};

/// What to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sabotage {
    /// Write-back gives its pins back before it writes.
    UnpinnedWriteBack = 1,
    /// MAPPED is set after the page tables show the block.
    LateMappedBit,
    /// Pages become clean after they were written, whatever was written to them meanwhile.
    CleanAfterWrite,
    /// Eviction does not look what was written before it unmapped.
    BlindEviction,
    /// Pages stay clean when their write-back fails.
    ForgetFailedWrite,
    /// Nobody is woken when a block settles.
    SilentSettle,
    /// Shrinking leaves the rest of the last block.
    KeepTail,
    /// Flush does not sync.
    NoSync,
    /// A sync that failed for a moment is asked again, and nothing is written again.
    SyncAgainOnly,
    /// The blocks of a region that was split are not given to the policy.
    ForgetSplit,
    /// A page of a region is shown while another thread splits that.
    HastyShow,
    /// A copy in the checked view is not charged.
    FreeCopy,
    /// A lock is held over a call of the store.
    LockOverCall,
    /// Pages that were asked about with others, and found dirty, count as clean.
    ForgetBridges,
    /// A call that wrote while a commit looked notes the bytes as if it had not.
    LateNote,
    /// Of a page that the dirty set has, only the part that calls have noted is logged.
    PartOfDirty,
}

static CHOSEN: AtomicU32 = AtomicU32::new(0);

/// Chooses what to do wrong from now on, in the whole process.
pub fn choose(what: Option<Sabotage>) {
    CHOSEN.store(what.map_or(0, |what| what as u32), Ordering::SeqCst);
}

/// Whether to do this wrong now.
#[inline]
pub(crate) fn is(what: Sabotage) -> bool {
    cfg!(feature = "sabotage") && CHOSEN.load(Ordering::Relaxed) == what as u32
}
