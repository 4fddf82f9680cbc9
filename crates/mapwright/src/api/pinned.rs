//! Pinned bytes, with and without the map they are borrowed from.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::engine::file::File;
use crate::remote::served::ServedPin;

/// Bytes of a map that stay resident while this value lives: reading them never faults and never fails.
///
/// Pinned blocks count against the budget and can't be evicted: hold them briefly. A `get` or a touched slice that finds no
/// room because everything is pinned waits until the map's deadline, and then fails: a thread that holds the pins itself
/// waits for nothing.
///
/// # Threads
/// `Send` and `Sync`.
pub struct Pinned<'m> {
    bytes: &'m [u8],
    _pins: Option<Pins<'m>>,
}

/// Keeps ranges of a map resident while it lives, without borrowing the map: for bindings to other languages, whose objects
/// know no lifetimes. Made by `hold` and `hold_many` of [`Map`](crate::Map) and [`MapMut`](crate::MapMut).
///
/// It does not give the bytes: those are the map's, and end with it. What is held counts as [`Pinned`] does, also once the map
/// is closed: the file then stays open in its pager. Cutting a [`MapMut`](crate::MapMut) below what is held waits until the map's
/// deadline, and is [`TimedOut`](crate::Error::TimedOut) then.
///
/// # Threads
/// `Send` and `Sync`.
pub struct Held(Holding);

/// What holds the range.
enum Holding {
    /// Nothing has to.
    Nothing,
    /// One pin on each of a run of blocks.
    Own(Arc<File>, Range<u64>),
    /// One pin on each block of each of these runs, which may overlap.
    Many(Arc<File>, Vec<Range<u64>>),
    /// A pin of a server.
    Server(#[expect(dead_code, reason = "held, not looked at")] Arc<ServedPin>),
}

impl Held {
    /// Takes pins over; none for what needs none.
    pub(crate) fn new(pins: Option<Pins<'_>>) -> Self {
        let Some(pins) = pins else { return Self(Holding::Nothing) };
        let held = match &pins {
            Pins::Own { file, blocks } => Holding::Own(Arc::clone(file), blocks.clone()),
            Pins::Server(pin) => return Self(Holding::Server(Arc::clone(pin))),
        };
        std::mem::forget(pins); // they are given back once: below
        Self(held)
    }

    /// Takes the pins of many ranges over, all of one map.
    pub(crate) fn all(pins: Vec<Option<Pins<'_>>>) -> Self {
        let mut runs = Vec::with_capacity(pins.len());
        let mut of = None;
        for pins in pins.into_iter().flatten() {
            match &pins {
                Pins::Own { file, blocks } => {
                    of.get_or_insert_with(|| Arc::clone(file));
                    runs.push(blocks.clone());
                }
                // One for all of them.
                Pins::Server(pin) => return Self(Holding::Server(Arc::clone(pin))),
            }
            std::mem::forget(pins); // as in `new`
        }
        Self(of.map_or(Holding::Nothing, |file| Holding::Many(file, runs)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match &self.0 {
            Holding::Own(file, blocks) => blocks.clone().for_each(|block| file.unpin(block)),
            Holding::Many(file, runs) => runs.iter().cloned().flatten().for_each(|block| file.unpin(block)),
            Holding::Nothing | Holding::Server(_) => {}
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

/// What holds the blocks.
pub(crate) enum Pins<'m> {
    /// One pin on each of a run of blocks.
    Own {
        /// Of this file.
        file: &'m Arc<File>,
        /// These.
        blocks: Range<u64>,
    },
    /// A pin of a server, which many ranges may share.
    Server(Arc<ServedPin>),
}

impl<'m> Pinned<'m> {
    pub(crate) fn new(bytes: &'m [u8], pins: Option<Pins<'m>>) -> Self {
        Self { bytes, _pins: pins }
    }
}

impl Drop for Pins<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Self::Own { file, blocks } = self {
            blocks.clone().for_each(|block| file.unpin(block));
        }
    }
}

impl Deref for Pinned<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl AsRef<[u8]> for Pinned<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Pinned<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}
