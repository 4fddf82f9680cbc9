//! What is run: the programs, their steps, what each makes of the file, how calls fail and what is done then.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use mapwright::{Durability, MapMut, MapOptions, Result, Strategy};

use crate::common::{PAGE, Rng, contents, pager};

pub const P: u64 = PAGE as u64;
pub const LEN: usize = 24 * PAGE + 100;
pub const BUDGET: u64 = 64 << 10;

/// What the program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Atomic,
    /// The same after a program that was killed.
    Recovery,
    Flush,
    Scratch,
    /// Flushes, of what the kernel has mapped.
    Kernel,
    /// Flushes, of a buffer.
    Buffer,
}

/// How calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One does.
    Once,
    /// One does, which is done all the same.
    DoneOnce,
    /// That one and all after it: all reads, or else all that change something.
    ForGood,
}

/// What the program does when it has met an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It tries again, and gives up where that fails too.
    GoesOn,
    /// It rolls back what could not be committed.
    RollsBack,
    /// It is killed.
    Dies,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub kind: Kind,
    pub fault: Fault,
    pub errno: i32,
    pub then: Then,
    pub at: u64,
    /// With io_uring, whose writes and reads are not seen.
    pub ring: bool,
}

fn named<T: Copy + Debug>(all: &[T], name: &str) -> T {
    *all.iter().find(|one| format!("{one:?}") == name).unwrap_or_else(|| panic!("{name}?"))
}

impl Order {
    pub fn new(kind: Kind, at: u64, errno: i32, fault: Fault, then: Then) -> Self {
        Self { kind, fault, errno, then, at, ring: false }
    }

    pub fn text(&self) -> String {
        let Self { kind, fault, errno, then, at, ring } = self;
        format!("{kind:?} {fault:?} {errno} {then:?} {at} {ring}")
    }

    /// An order and what follows it.
    pub fn parse(text: &str) -> (Self, &str) {
        let words: Vec<&str> = text.splitn(7, ' ').collect();
        let kinds = [Kind::Atomic, Kind::Recovery, Kind::Flush, Kind::Scratch, Kind::Kernel, Kind::Buffer];
        let order = Self {
            kind: named(&kinds, words[0]),
            fault: named(&[Fault::Once, Fault::DoneOnce, Fault::ForGood], words[1]),
            errno: words[2].parse().unwrap(),
            then: named(&[Then::GoesOn, Then::RollsBack, Then::Dies], words[3]),
            at: words[4].parse().unwrap(),
            ring: words[5].parse().unwrap(),
        };
        (order, words.get(6).copied().unwrap_or_default())
    }
}

/// A step of the program. What it writes follows from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Through slices, at an offset, so many bytes.
    Slices(u64, usize),
    Call(u64, usize),
    Overwrite(u64, usize),
    Append(usize),
    Resize(u64),
    /// Flush or commit.
    Flush,
    Rollback,
    Snapshot,
    /// Reads the snapshot, and drops it.
    LookBack,
    Look,
    Evict,
    Close,
}

impl Kind {
    pub fn is_atomic(self) -> bool {
        matches!(self, Self::Atomic | Self::Recovery)
    }

    pub fn steps(self) -> Vec<Step> {
        use Step::*;
        let steps = match self {
            Self::Recovery => {
                vec![Look, Call(9 * P + 1, 5000), Flush, Overwrite(0, 2 * PAGE), Close]
            }
            _ => vec![
                Slices(3 * P + 5, 2 * PAGE),
                Call(12 * P + 7, 3 * PAGE),
                Flush,
                Overwrite(18 * P, 4 * PAGE),
                Append(5000),
                Flush,
                Slices(0, 9000),
                Resize(10 * P + 9),
                Rollback,
                Snapshot,
                // More than the budget: pages are spilled, or written back, before the flush.
                Slices(0, LEN),
                Flush,
                LookBack,
                Look,
                Resize(15 * P + 1),
                Resize(20 * P),
                Call(18 * P, 10),
                Flush,
                Slices(P, 18 * PAGE),
                Rollback,
                Evict,
                Look,
                Call(9 * P, 100),
                Close,
            ],
        };
        let here = |step: Step| match step {
            Snapshot | LookBack if !self.is_atomic() => None,
            Rollback if !self.is_atomic() => Some(Resize(LEN as u64 + 5000)),
            _ => Some(step),
        };
        steps.into_iter().filter_map(here).collect()
    }

    /// What a program does before that, which is killed.
    pub fn prelude(self) -> Vec<Step> {
        use Step::*;
        match self {
            Self::Recovery => vec![
                Slices(0, LEN),
                Flush,
                Slices(P, 18 * PAGE),
                Rollback,
                Resize(15 * P),
                Resize(20 * P),
                Call(18 * P, 10),
                Flush,
            ],
            _ => Vec::new(),
        }
    }

    pub fn open(self, path: &Path, budget: u64, deadline: Duration) -> Result<MapMut> {
        let pager = pager(budget);
        let options = MapOptions::new().pager(&pager).reserve(1 << 20).deadline(deadline);
        let options = match self {
            Self::Atomic | Self::Recovery => options.durability(Durability::Atomic),
            Self::Flush => options.strategy(Strategy::Pager),
            Self::Scratch => options.strategy(Strategy::Pager).durability(Durability::None),
            Self::Kernel => options.strategy(Strategy::Kernel),
            Self::Buffer => options.strategy(Strategy::Buffer),
        };
        options.open_mut(path)
    }
}

/// What program and parent expect the file to be.
#[derive(Clone)]
pub struct Model {
    pub now: Vec<u8>,
    /// What was flushed or committed last.
    pub durable: Vec<u8>,
}

impl Model {
    /// The file before the program, or what killed it, has begun, and what the latter has committed.
    pub fn new(kind: Kind) -> Self {
        let bytes = contents(LEN);
        let mut model = Self { now: bytes.clone(), durable: bytes };
        kind.prelude().into_iter().enumerate().for_each(|(nth, step)| model.apply(1000 + nth, step));
        model.now = model.durable.clone();
        model
    }

    pub fn apply(&mut self, number: usize, step: Step) {
        match step {
            Step::Slices(at, len) | Step::Call(at, len) | Step::Overwrite(at, len) => {
                self.now[at as usize..][..len].copy_from_slice(&written(number, len));
            }
            Step::Append(len) => self.now.extend(written(number, len)),
            Step::Resize(len) => self.now.resize(len as usize, 0),
            Step::Flush | Step::Close => self.durable = self.now.clone(),
            Step::Rollback => self.now = self.durable.clone(),
            Step::Snapshot | Step::LookBack | Step::Look | Step::Evict => {}
        }
    }
}

pub fn written(number: usize, len: usize) -> Vec<u8> {
    Rng(number as u64).bytes(len)
}
