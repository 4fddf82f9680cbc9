//! Checked scopes: a slice whose failed pages read as zeros, and whose error comes back at the end of the scope.
//!
//! Scopes look at a view of their own, so that zeros are never seen by anybody who will not get the error: every thread
//! that touches a zeroed page does so through the view, and so inside a scope; a scope during which anything was or became
//! zero returns the error, even if it did not touch that page. When the last scope ends, the zeros are taken away.
//!
//! `failures` is counted before the zeros are shown, so a scope that saw them sees the count.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::block::MAPPED_CHECKED;
use super::file::File;
use super::fill::{self, Patience};
use super::kernel::View;
use super::lock;
use super::sabotage::{self, Sabotage};
use crate::error::{Error, Result};

/// The checked scopes of a file.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    /// Whether the view was ever made.
    pub(crate) view_exists: bool,
    active: usize,
    /// Counts the times that `active` became zero: a fault that began before is of a scope that has ended.
    epoch: u64,
    failures: u64,
    error: Option<Error>,
    zeroed: Vec<Range<u64>>,
    /// Threads that are about to show zeros, which `zeroed` has already.
    zeroing: usize,
    /// The last scope has ended and takes the zeros away: new scopes wait.
    restoring: bool,
}

/// One checked scope. Ends when dropped; [`end`](Scope::end) tells how it went.
pub struct Scope {
    file: Arc<File>,
    failures_before: u64,
    ended: bool,
}

impl Scope {
    /// Enters a scope.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the view can't be made. The error of a page that reads as zeros for scopes that have not ended:
    /// this one would return it in any case, and scopes that always overlap would keep the zeros for ever.
    pub fn enter(file: &Arc<File>) -> Result<Self> {
        if !lock(&file.scopes).view_exists {
            let address = file.frames.address(View::Checked)?;
            file.pager.register_checked(file, address);
        }
        loop {
            let seen = file.scopes_changed.load(Ordering::Acquire);
            {
                let mut scopes = lock(&file.scopes);
                scopes.view_exists = true;
                if scopes.active > 0
                    && !scopes.zeroed.is_empty()
                    && let Some(error) = scopes.error.clone()
                {
                    return Err(error);
                }
                if !scopes.restoring && (scopes.active > 0 || scopes.zeroing == 0) {
                    scopes.active += 1;
                    let failures_before = scopes.failures;
                    return Ok(Self { file: Arc::clone(file), failures_before, ended: false });
                }
            }
            file.pager.kernel.wait(&file.scopes_changed, seen, None);
        }
    }

    /// Leaves the scope.
    ///
    /// # Errors
    /// The error of the first page that read as zeros while this scope was active.
    pub fn end(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let file = &self.file;
        let (outcome, zeroed) = {
            let mut scopes = lock(&file.scopes);
            scopes.active -= 1;
            scopes.epoch += u64::from(scopes.active == 0);
            let failed = scopes.failures > self.failures_before || !scopes.zeroed.is_empty();
            let outcome = scopes.error.clone().filter(|_| failed).map_or(Ok(()), Err);
            (outcome, scopes.begin_restoring())
        };
        file.restore(zeroed);
        outcome
    }
}

impl Scopes {
    /// What is to be restored now: nothing while somebody looks at zeros or is about to show some.
    fn begin_restoring(&mut self) -> Vec<Range<u64>> {
        if self.active > 0 || self.zeroing > 0 {
            return Vec::new();
        }
        self.restoring = !self.zeroed.is_empty();
        std::mem::take(&mut self.zeroed)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // The closure panicked: that is reported already.
        let _ = self.leave();
    }
}

impl File {
    /// Charges a pinned block for its copy in the checked view, if it needs one and has none yet. Does not wait for room: whoever
    /// waits with a pin held keeps others from the room that they wait for.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`].
    pub(crate) fn charge_copy(&self, view: View, block: u64) -> Result<()> {
        let has_copy = || self.word(block).bits() & MAPPED_CHECKED != 0;
        if view != View::Checked || !self.frames.has_copies() || has_copy() {
            return Ok(());
        }
        if !sabotage::is(Sabotage::FreeCopy) {
            fill::reserve(self, self.block_size(), Patience::Never)?;
        }
        if self.word(block).set(MAPPED_CHECKED) & MAPPED_CHECKED == 0 {
            self.charges.copies.fetch_add(1, Ordering::Relaxed);
        } else {
            self.pager.budget.release(&*self.pager.kernel, self.block_size()); // another thread was faster
        }
        Ok(())
    }

    /// Waits until there is room for a copy in the checked view, which others may take first. The caller holds no pin.
    ///
    /// # Errors
    /// [`Error::BudgetExhausted`]; what a write-back meets that was to make room.
    pub(crate) fn wait_for_copy(&self, deadline: Duration) -> Result<()> {
        fill::reserve(self, self.block_size(), Patience::Until(deadline))?;
        self.pager.budget.release(&*self.pager.kernel, self.block_size());
        Ok(())
    }

    /// Which scopes are active, for [`latch_in_scope`](Self::latch_in_scope) of a fault in a view.
    pub(super) fn scope_epoch(&self, view: View) -> u64 {
        if view == View::Checked { lock(&self.scopes).epoch } else { 0 }
    }

    /// Records the error of a page touched in a scope, then lets the page read as zeros. Does nothing if all scopes that were
    /// active at `epoch`, when the service of the fault began, have ended: it was told twice, and its thread has gone on.
    pub(super) fn latch_in_scope(&self, bytes: Range<u64>, error: &Error, epoch: u64) -> std::io::Result<()> {
        {
            let mut scopes = lock(&self.scopes);
            if scopes.active == 0 || scopes.epoch != epoch {
                drop(scopes);
                self.frames.wake(bytes); // whoever waits there now asks again
                return Ok(());
            }
            scopes.failures += 1;
            scopes.zeroing += 1;
            scopes.error.get_or_insert_with(|| error.clone());
            scopes.zeroed.push(bytes.clone());
        }
        let shown = self.frames.zero(bytes);
        let zeroed = {
            let mut scopes = lock(&self.scopes);
            scopes.zeroing -= 1;
            scopes.begin_restoring()
        };
        if zeroed.is_empty() {
            self.scopes_may_go_on();
        }
        self.restore(zeroed);
        shown
    }

    fn scopes_may_go_on(&self) {
        self.scopes_changed.fetch_add(1, Ordering::AcqRel);
        self.pager.kernel.wake(&self.scopes_changed);
    }

    /// Takes zeros away.
    fn restore(&self, zeroed: Vec<Range<u64>>) {
        if zeroed.is_empty() {
            return;
        }
        let lost = zeroed.clone();
        let kept: Vec<_> =
            zeroed.into_iter().filter(|range| self.frames.restore(range.clone()).is_err()).collect();
        if self.writable {
            // Page tables without an entry look written: nobody wrote to zeros that are gone.
            let restored = lost.iter().filter(|range| !kept.contains(range));
            restored.for_each(|range| {
                _ = self.frames.take_written(View::Checked, range.clone(), &mut Vec::new())
            });
        }
        {
            let mut scopes = lock(&self.scopes);
            scopes.restoring = false;
            if kept.is_empty() {
                scopes.error = None;
            }
            // Zeros that could not be taken away: later scopes must fail until they are.
            scopes.zeroed = kept;
        }
        self.scopes_may_go_on();
    }
}
