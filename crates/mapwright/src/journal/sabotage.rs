//! Ways to break the protocol of commits on purpose, one for each of its ordering steps, to show that the power-failure
//! simulator finds every one. Off, and compiled away, without the feature `sabotage`.

use std::sync::atomic::{AtomicU32, Ordering};

/// Which step to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sabotage {
    /// A commit is acknowledged without a sync of the journal.
    NoCommitSync = 1,
    /// A spill does not sync.
    NoSpillSync,
    /// After a failed sync the next attempt syncs again and does not write again.
    SyncAgainOnly,
    /// A checkpoint writes the file without asking whether what it writes is committed.
    CheckpointUncommitted,
    /// A checkpoint writes commits that no durable entry names as durable.
    CheckpointUnclaimed,
    /// A checkpoint does not sync the file before its anchor is due.
    NoFileSync,
    /// Space is free as soon as a checkpoint has ended, before its anchor is durable.
    EarlyReuse,
    /// Both anchors lie in one place.
    OneAnchor,
    /// Sequence numbers start again from the last durable entry.
    ReuseSequence,
    /// Entries claim commits as durable that were only written.
    EarlyClaim,
    /// A rollback leaves a commit that is in doubt on the disk.
    ForgetDoubt,
    /// Changes of length are not recorded but for the result.
    ForgetCut,
    /// The journal is renamed before it is synced.
    RenameFirst,
    /// The directory is not synced after the journal got its name.
    NoNameSync,
    /// The directory is not synced after the journal was removed.
    NoRemovalSync,
    /// What the file held when it was opened is not synced.
    NoBaseSync,
    /// Recovery removes the journal before the file is synced.
    RetireFirst,
    /// Recovery replays what may be in the kernel's cache only.
    TrustCache,
    /// Recovery replays transactions that have no commit entry.
    ReplayTail,
    /// Recovery does not look at the checksums of records.
    TrustRecords,
    /// Recovery takes damage in the middle for a torn tail.
    BlindToDamage,
    /// A checkpoint that goes on after an error leaves out what it could not write.
    ResumeAfterError,
    /// A checkpoint that goes on after writes got lost on their way to the disk does not write them again.
    ResumeAfterLoss,
    /// A commit of nothing is acknowledged while another is in doubt.
    EmptyInDoubt,
    /// Recovery writes the file before the name of the journal that it found is durable.
    NoFoundNameSync,
    /// Records smaller than a page are replayed alone beyond what the file has had durably.
    SmallBeyondEnd,
    /// Recovery trusts an entry that names a commit as durable, though it may be in the kernel's cache only.
    NoFoundSync,
    /// Recovery that finds no journal does not make sure that it is gone for good.
    NoGoneSync,
    /// Recovery puts another journal in the place of the first before the file has what only the first has.
    NoClaimedSync,
    /// Recovery names the journal that it writes before it is synced.
    NoAnewSync,
    /// Recovery writes the file before the name of the journal that it has written is durable.
    NoReplaceSync,
    /// What was cut off and has grown again is not made zeros.
    NoCut,
}

/// All of them.
pub const ALL: [Sabotage; 32] = [
    Sabotage::NoCommitSync,
    Sabotage::NoSpillSync,
    Sabotage::SyncAgainOnly,
    Sabotage::CheckpointUncommitted,
    Sabotage::CheckpointUnclaimed,
    Sabotage::NoFileSync,
    Sabotage::EarlyReuse,
    Sabotage::OneAnchor,
    Sabotage::ReuseSequence,
    Sabotage::EarlyClaim,
    Sabotage::ForgetDoubt,
    Sabotage::ForgetCut,
    Sabotage::RenameFirst,
    Sabotage::NoNameSync,
    Sabotage::NoRemovalSync,
    Sabotage::NoBaseSync,
    Sabotage::RetireFirst,
    Sabotage::TrustCache,
    Sabotage::ReplayTail,
    Sabotage::TrustRecords,
    Sabotage::BlindToDamage,
    Sabotage::ResumeAfterError,
    Sabotage::ResumeAfterLoss,
    Sabotage::EmptyInDoubt,
    Sabotage::NoFoundNameSync,
    Sabotage::SmallBeyondEnd,
    Sabotage::NoFoundSync,
    Sabotage::NoGoneSync,
    Sabotage::NoClaimedSync,
    Sabotage::NoAnewSync,
    Sabotage::NoReplaceSync,
    Sabotage::NoCut,
];

static CHOSEN: AtomicU32 = AtomicU32::new(0);

/// Chooses what to leave out from now on, in the whole process.
pub fn choose(what: Option<Sabotage>) {
    CHOSEN.store(what.map_or(0, |what| what as u32), Ordering::SeqCst);
}

/// Whether to leave this out now.
#[inline]
pub(crate) fn is(what: Sabotage) -> bool {
    cfg!(feature = "sabotage") && CHOSEN.load(Ordering::Relaxed) == what as u32
}
