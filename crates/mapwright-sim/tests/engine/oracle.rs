//! An oracle too simple to be wrong: for each byte a count of the writes that have begun, ended, and been made durable.
//!
//! Write number `k` of byte `x` puts `base[x] + 37 k` there, so a byte tells which write it comes from. A read that began
//! when `ended[x]` was `a` and ended when `begun[x]` was `b` must find a write of `a..=b`; a disk that is looked at must
//! hold one of `durable[x]..=begun[x]`. A byte has one writer at a time.
//!
//! The lock is never held over a call into the simulation.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

const STRIDE: u8 = 37;

#[derive(Clone, Default)]
struct State {
    base: Vec<u8>,
    begun: Vec<u8>,
    ended: Vec<u8>,
    durable: Vec<u8>,
    /// From here on the disk may hold anything: the file was cut and is not flushed since.
    unsettled_from: usize,
    /// Changes of length that no flush has ended since.
    length_changed: bool,
}

/// What a file should be.
pub struct Oracle(Mutex<State>);

/// What had ended at some time.
pub struct Before {
    from: usize,
    ended: Vec<u8>,
}

impl Oracle {
    pub fn new(contents: Vec<u8>) -> Self {
        let zeros = vec![0; contents.len()];
        Self(Mutex::new(State {
            begun: zeros.clone(),
            ended: zeros.clone(),
            durable: zeros,
            unsettled_from: usize::MAX,
            base: contents,
            length_changed: false,
        }))
    }

    /// Contents to begin with: no two blocks are alike.
    pub fn pattern(len: u64) -> Vec<u8> {
        (0..len).map(|at| (at / 4096 * 7 + at % 251 + 1) as u8).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn len(&self) -> u64 {
        self.lock().base.len() as u64
    }

    /// The bytes to write next to a range.
    pub fn begin_write(&self, bytes: Range<u64>) -> Vec<u8> {
        let state = &mut *self.lock();
        (bytes.start as usize..bytes.end as usize)
            .map(|at| {
                assert!(state.begun[at] < 200, "too many writes of one byte to tell them apart");
                state.begun[at] += 1;
                value(state, at, state.begun[at])
            })
            .collect()
    }

    /// The write that began last has succeeded.
    pub fn end_write(&self, bytes: Range<u64>) {
        let state = &mut *self.lock();
        for at in bytes.start as usize..bytes.end as usize {
            state.ended[at] = state.begun[at];
        }
    }

    /// What a read or flush that begins now has to respect.
    pub fn before(&self, bytes: Range<u64>) -> Before {
        let state = self.lock();
        Before {
            from: bytes.start as usize,
            ended: state.ended[bytes.start as usize..bytes.end as usize].to_vec(),
        }
    }

    /// Checks what a read has found that ends now.
    pub fn check_read(&self, before: &Before, found: &[u8], how: &str) {
        let state = self.lock();
        assert_eq!(found.len(), before.ended.len());
        for (index, (&byte, &ended)) in found.iter().zip(&before.ended).enumerate() {
            let at = before.from + index;
            check(&state, at, byte, ended, how);
        }
    }

    /// A flush that began at `before` has ended well.
    pub fn flushed(&self, before: &Before) {
        let state = &mut *self.lock();
        for (index, &ended) in before.ended.iter().enumerate() {
            let durable = &mut state.durable[before.from + index];
            *durable = ended.max(*durable);
        }
    }

    /// A flush of everything, with nobody else at work, has ended well.
    pub fn settled(&self) {
        let state = &mut *self.lock();
        state.durable = state.ended.clone();
        state.unsettled_from = usize::MAX;
        state.length_changed = false;
    }

    /// Whether everything that was written is durable, and the length too.
    pub fn is_settled(&self) -> bool {
        let state = self.lock();
        state.unsettled_from == usize::MAX && !state.length_changed && state.durable == state.begun
    }

    /// Checks what is on the disk, or what a crash may leave there.
    pub fn check_disk(&self, image: &[u8], how: &str) {
        let state = self.lock();
        let len = state.base.len().min(state.unsettled_from);
        if !state.length_changed {
            assert_eq!(image.len(), len, "{how}: the length");
        }
        assert!(image.len() >= len, "{how}: only {} of {len} bytes", image.len());
        for (at, &byte) in image[..len].iter().enumerate() {
            check(&state, at, byte, state.durable[at], how);
        }
    }

    /// The file was cut or has grown; nobody else is at work.
    pub fn resize(&self, len: u64) {
        let state = &mut *self.lock();
        let len = len as usize;
        state.unsettled_from = state.unsettled_from.min(len).min(state.base.len());
        state.length_changed = true;
        for list in [&mut state.base, &mut state.begun, &mut state.ended, &mut state.durable] {
            list.resize(len, 0);
        }
    }
}

fn value(state: &State, at: usize, write: u8) -> u8 {
    state.base[at].wrapping_add(STRIDE.wrapping_mul(write))
}

fn check(state: &State, at: usize, byte: u8, oldest: u8, how: &str) {
    let newest = state.begun[at];
    if (oldest..=newest).any(|write| value(state, at, write) == byte) {
        return;
    }
    let from = (0..=u8::MAX).find(|&write| value(state, at, write) == byte);
    let which = match from {
        Some(write) if write < 220 => format!("that of write {write}"),
        _ => "of no write".to_owned(),
    };
    panic!(
        "{how}: byte {at:#x} is {byte:#x}, {which}, not of the writes {oldest}..={newest} (base {:#x})",
        state.base[at]
    );
}
