//! The state of a block: one word, changed by compare-and-swap only.
//!
//! ```text
//!            claim                 filled
//!  Absent ──────────▶ Filling ──────────────▶ Resident ◀───────────┐
//!    ▲                   │                       │  claim_eviction  │ kept
//!    ├───────────────────┘ failed                ▼                  │
//!    └──────────────────────────────────────── Evicting ────────────┘
//!                         dropped
//! ```
//!
//! | from | to | by | who may |
//! | --- | --- | --- | --- |
//! | Absent | Filling | [`Word::claim`] | anybody; the winner alone fills |
//! | Filling | Resident | `File::settle` after the frame is stored | the claimant |
//! | Filling | Absent | `settle` after a failed fill | the claimant |
//! | Resident | Evicting | [`Word::claim_eviction`], with no pins | evict, discard |
//! | Absent | Evicting | [`Word::claim_idle`] | evict, while it unmaps a region; back to Absent by `settle` |
//! | Evicting | Resident | `settle`: it was dirty, or only unmapped | the claimant |
//! | Evicting | Absent | `settle` after the frame is released | the claimant |
//!
//! Invariants: (1) pins are above zero only in Resident; (2) a pinned block is not unmapped and not released;
//! (3) MAPPED is set before the page tables show the block, so who sees a written page also sees the bit; SHOWN is set after
//! all of them do, by one who holds a pin or the claim, and cleared with the claim that unmaps: who has a pin may rely on it;
//! (4) DIRTY is set exactly when the file's dirty set holds a page of the block, and changes under that set's lock;
//! (5) QUEUED is set exactly when the policy holds an entry of the block, QUEUED_WHOLE when it holds one of the region that begins
//! with it, and both change under the policy's lock;
//! (6) who sets WAITERS has seen Filling or Evicting in the same compare-and-swap, so the settling thread sees it.

use std::sync::atomic::{AtomicU32, Ordering};

const PINS: u32 = (1 << 14) - 1;
const STATE: u32 = 3 << 14;
/// Perhaps shown in the plain view: its page tables are to be asked what was written.
pub const MAPPED: u32 = 1 << 16;
/// As `MAPPED`, for the checked view.
pub const MAPPED_CHECKED: u32 = 1 << 17;
/// The file's dirty set holds pages of this block.
pub const DIRTY: u32 = 1 << 18;
/// Touched since the policy last looked.
pub const TOUCHED: u32 = 1 << 19;
/// The policy holds an entry for this block.
pub const QUEUED: u32 = 1 << 20;
/// The policy holds an entry for the region that begins with this block.
pub const QUEUED_WHOLE: u32 = 1 << 24;
/// The first touch asks for the next read-ahead.
pub const TRIGGER: u32 = 1 << 21;
/// Shown in the plain view for as long as it is pinned.
pub const SHOWN: u32 = 1 << 23;
/// Somebody waits for the state to settle.
pub const WAITERS: u32 = 1 << 22;

/// Where a block is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// No frame.
    Absent = 0,
    /// One thread is filling it.
    Filling = 1 << 14,
    /// It has a frame with valid contents.
    Resident = 2 << 14,
    /// One thread is unmapping or dropping it.
    Evicting = 3 << 14,
}

/// What a try to pin a block found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Pinned; these were the bits before.
    Held(u32),
    /// It is absent: claim it.
    Absent,
    /// It is being filled or evicted: wait.
    Busy,
    /// It has as many pins as can be counted.
    Overflow,
}

/// The word of one block.
#[derive(Clone, Copy)]
pub struct Word<'a>(pub &'a AtomicU32);

/// The state in a word's bits.
pub fn state(bits: u32) -> State {
    match bits & STATE {
        0 => State::Absent,
        bits if bits == State::Filling as u32 => State::Filling,
        bits if bits == State::Resident as u32 => State::Resident,
        _ => State::Evicting,
    }
}

/// The number of pins in a word's bits.
pub fn pins(bits: u32) -> u32 {
    bits & PINS
}

impl Word<'_> {
    /// The bits now.
    pub fn bits(self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn update(self, change: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
    }

    /// Pins the block if it is resident, shown in the plain view and no trigger: the path of a hit.
    #[inline]
    pub fn pin_hit(self) -> bool {
        const READY: u32 = STATE | SHOWN | TRIGGER;
        let mut bits = self.0.load(Ordering::Relaxed);
        while bits & READY == State::Resident as u32 | SHOWN && bits & PINS < PINS {
            match self.0.compare_exchange_weak(
                bits,
                (bits + 1) | TOUCHED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => bits = now,
            }
        }
        false
    }

    /// Pins the block if it is resident; counts as a touch.
    pub fn pin(self) -> Pin {
        self.pin_with(TOUCHED)
    }

    /// Pins the block if it is resident, without counting as a touch.
    pub fn pin_untouched(self) -> Pin {
        self.pin_with(0)
    }

    fn pin_with(self, touched: u32) -> Pin {
        let pinned = self.update(|bits| {
            (state(bits) == State::Resident && pins(bits) < PINS).then_some((bits + 1) | touched)
        });
        match pinned {
            Ok(bits) => Pin::Held(bits),
            Err(bits) => match state(bits) {
                State::Absent => Pin::Absent,
                State::Filling | State::Evicting => Pin::Busy,
                State::Resident => Pin::Overflow,
            },
        }
    }

    /// Gives one pin back; whether it was the last.
    pub fn unpin(self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(pins(before) > 0 && state(before) == State::Resident, "unpin of {before:#x}");
        pins(before) == 1
    }

    /// Absent → Filling; whether this thread won.
    pub fn claim(self) -> bool {
        self.update(|bits| (state(bits) == State::Absent).then_some((bits & !STATE) | State::Filling as u32))
            .is_ok()
    }

    /// Whether it is resident and nobody has a pin on it.
    pub fn is_idle(self) -> bool {
        let bits = self.bits();
        state(bits) == State::Resident && pins(bits) == 0
    }

    /// Resident with no pins → Evicting; the bits before if this thread won.
    pub fn claim_eviction(self) -> Option<u32> {
        self.update(|bits| {
            (state(bits) == State::Resident && pins(bits) == 0).then_some(bits | State::Evicting as u32)
        })
        .ok()
    }

    /// Resident with no pins, or Absent → Evicting; the bits before if this thread won.
    pub fn claim_idle(self) -> Option<u32> {
        self.update(|bits| {
            let idle = matches!(state(bits), State::Absent | State::Resident) && pins(bits) == 0;
            idle.then_some(bits | State::Evicting as u32)
        })
        .ok()
    }

    /// Asks the thread that fills or evicts this block to wake waiters; the bits to wait on, or `None` if it has settled.
    pub fn announce_waiter(self) -> Option<u32> {
        self.update(|bits| matches!(state(bits), State::Filling | State::Evicting).then_some(bits | WAITERS))
            .ok()
            .map(|bits| bits | WAITERS)
    }

    /// Leaves Filling or Evicting, with `set` added and `clear` removed; the bits before.
    pub(super) fn settle(self, to: State, pins: u32, set: u32, clear: u32) -> u32 {
        debug_assert!(pins == 0 || to == State::Resident, "only resident blocks are pinned");
        let before =
            self.update(|bits| Some((((bits & !(STATE | PINS | WAITERS | clear)) | to as u32) + pins) | set));
        let before = before.unwrap_or_else(|bits| bits);
        debug_assert!(
            matches!(state(before), State::Filling | State::Evicting),
            "settled from {:?}",
            state(before)
        );
        before
    }

    /// Sets bits; the bits before.
    pub fn set(self, bits: u32) -> u32 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }

    /// Clears bits; the bits before.
    pub fn clear(self, bits: u32) -> u32 {
        self.0.fetch_and(!bits, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lives_its_life() {
        let atomic = AtomicU32::new(0);
        let word = Word(&atomic);
        assert_eq!(word.pin(), Pin::Absent);
        assert!(word.claim() && !word.claim(), "one filler only");
        assert_eq!(word.pin(), Pin::Busy);
        assert!(word.claim_eviction().is_none(), "a block being filled is not evicted");
        let waiting = word.announce_waiter().expect("filling can be waited for");
        assert_eq!(waiting, word.bits());
        let before = word.settle(State::Resident, 1, MAPPED | SHOWN, 0);
        assert_ne!(before & WAITERS, 0, "the filler learns of the waiter");
        assert!(word.announce_waiter().is_none(), "settled blocks are not waited for");
        assert!(word.claim_eviction().is_none(), "pinned");
        assert!(word.pin_hit());
        assert!(!word.unpin());
        assert!(word.unpin(), "the last pin");
        assert!(word.claim_eviction().is_some());
        assert_eq!(word.pin(), Pin::Busy);
        word.settle(State::Absent, 0, 0, MAPPED | SHOWN | TOUCHED);
        assert_eq!(word.bits(), 0);
    }

    #[test]
    fn pins_do_not_overflow_into_the_state() {
        let atomic = AtomicU32::new(State::Resident as u32 | SHOWN | PINS);
        let word = Word(&atomic);
        assert!(!word.pin_hit());
        assert_eq!(word.pin(), Pin::Overflow);
        assert_eq!(state(word.bits()), State::Resident);
    }
}
