//! Where the newest bytes of each page are: in which records of the journal, or in the file.
//!
//! Plain data, without locks or I/O. What a page is at a commit: its bytes in the file, with the changes up to that commit
//! laid over them in their order. A change is a run of bytes, or a cut of the file's length, which zeros what lies beyond.
//! `fold` drops what later changes hide; whatever is left may be applied any number of times, in any state that an
//! earlier application left half done, and gives the same bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::format::PAGE;

/// Where a record is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAt {
    /// Position of its head, in bytes.
    pub position: u64,
    /// Number of its entry, which its checksum covers.
    pub sequence: u64,
    /// Bytes of data it has.
    pub data_len: u32,
}

/// A run of bytes of the file that a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes; less than the record has if a cut came after it.
    pub len: u32,
    /// The record.
    pub at: RecordAt,
}

impl Piece {
    /// The bytes of the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

/// A change with its place in time.
#[derive(Clone, Copy, Debug)]
struct Timed<T> {
    order: u64,
    commit: u64,
    what: T,
}

/// Changes, by page, and cuts.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pages: BTreeMap<u64, Vec<Timed<Piece>>>,
    cuts: Vec<Timed<u64>>,
    next_order: u64,
}

/// What to do to a file to bring it to a commit.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The shortest the file was on the way: it is cut to this first.
    pub cut: Option<u64>,
    /// The shortest it was since the first change that the index has; `u64::MAX` if it was never cut.
    pub shortest: u64,
    /// What to write, in the order of the file.
    pub pieces: Vec<Piece>,
}

impl Index {
    /// Adds a run of bytes as the newest change.
    pub fn data(&mut self, piece: Piece, commit: u64) {
        let order = self.tick();
        self.pages.entry(piece.offset / PAGE).or_default().push(Timed { order, commit, what: piece });
    }

    /// Adds a cut to `len` bytes as the newest change.
    pub fn cut(&mut self, len: u64, commit: u64) {
        let order = self.tick();
        self.cuts.push(Timed { order, commit, what: len });
    }

    fn tick(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.cuts.is_empty()
    }

    /// Adds all changes of `later`, as part of `commit`. Nobody will ask for a commit before `oldest` any more: what is hidden
    /// from then on is dropped.
    pub fn absorb(&mut self, later: Index, commit: u64, oldest: u64) {
        let offset = self.next_order;
        self.next_order += later.next_order;
        let retimed = |order| offset + order;
        let cuts = later.cuts.into_iter();
        self.cuts.extend(cuts.map(|cut| Timed { order: retimed(cut.order), commit, what: cut.what }));
        for (page, pieces) in later.pages {
            let list = self.pages.entry(page).or_default();
            let pieces = pieces.into_iter();
            list.extend(pieces.map(|piece| Timed { order: retimed(piece.order), commit, what: piece.what }));
            if let Some(last) = list.iter().rposition(|piece| piece.commit <= oldest && is_whole(&piece.what))
            {
                list.drain(..last);
            }
        }
    }

    /// Forgets what the file has: everything up to a commit.
    pub fn forget(&mut self, commit: u64) {
        self.cuts.retain(|cut| cut.commit > commit);
        self.pages.retain(|_, pieces| {
            pieces.retain(|piece| piece.commit > commit);
            !pieces.is_empty()
        });
    }

    /// What brings the file to a commit. Commits are numbered from 1.
    pub fn plan(&self, commit: u64) -> Plan {
        self.plan_between(0, commit)
    }

    /// What brings the file from one commit to another: the pages that were changed between them, with all of their pieces.
    pub fn plan_between(&self, from: u64, to: u64) -> Plan {
        let cuts: Vec<Timed<u64>> = self.cuts.iter().copied().filter(|cut| cut.commit <= to).collect();
        let mut pieces = Vec::new();
        for list in self.pages.values() {
            if list.iter().any(|piece| piece.commit > from && piece.commit <= to) {
                let list = list.iter().copied().filter(|piece| piece.commit <= to);
                pieces.extend(fold(list.collect(), &cuts).1);
            }
        }
        let new = cuts.iter().filter(|cut| cut.commit > from);
        Plan {
            cut: new.map(|cut| cut.what).min(),
            shortest: cuts.iter().map(|cut| cut.what).min().unwrap_or(u64::MAX),
            pieces,
        }
    }

    /// What to lay over one page of the file to get the page of a commit: from where on its old bytes are zeros, and the
    /// pieces, in order.
    pub fn page(&self, page: u64, commit: u64) -> (u64, Vec<Piece>) {
        let list = self.pages.get(&page).map_or(&[][..], Vec::as_slice);
        let visible = list.iter().copied().filter(|piece| piece.commit <= commit);
        let cuts: Vec<Timed<u64>> = self.cuts.iter().copied().filter(|cut| cut.commit <= commit).collect();
        fold(visible.collect(), &cuts)
    }
}

/// Whether a piece is a page from its first byte to its last.
fn is_whole(piece: &Piece) -> bool {
    u64::from(piece.len) == PAGE
}

/// The least length that a cut left, and the pieces that count, in order, those that are hidden left out.
fn fold(pieces: Vec<Timed<Piece>>, cuts: &[Timed<u64>]) -> (u64, Vec<Piece>) {
    let mut kept: Vec<Piece> = Vec::new();
    let mut cuts = cuts.iter().peekable();
    let mut zeros_from = u64::MAX;
    let mut cut_to = |kept: &mut Vec<Piece>, len: u64| {
        zeros_from = zeros_from.min(len);
        kept.retain_mut(|piece| {
            piece.len = piece.len.min(len.saturating_sub(piece.offset).min(PAGE) as u32);
            piece.len > 0
        });
    };
    for timed in pieces {
        while let Some(cut) = cuts.next_if(|cut| cut.order < timed.order) {
            cut_to(&mut kept, cut.what);
        }
        let new = timed.what.range();
        kept.retain(|old| old.offset < new.start || old.range().end > new.end);
        kept.push(timed.what);
    }
    cuts.for_each(|cut| cut_to(&mut kept, cut.what));
    (zeros_from, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a plain array: random changes of a small file, looked at page by page and applied by plan.
    #[test]
    fn behaves_as_an_array() {
        const PAGES: u64 = 3;
        let mut seed = 3u64;
        let mut random = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        for _ in 0..300 {
            let mut index = Index::default();
            let base: Vec<u8> = (0..PAGES * PAGE).map(|_| 1).collect();
            // Every record's data is one value; the position stands for it.
            let mut states = vec![base.clone()];
            for commit in 1..=6u64 {
                let mut pending = Index::default();
                let mut state = states[commit as usize - 1].clone();
                for change in 0..random(5) {
                    let value = commit * 10 + change;
                    if random(4) == 0 {
                        let len = random(PAGES * PAGE);
                        pending.cut(len, u64::MAX);
                        state[len as usize..].fill(0);
                        continue;
                    }
                    let page = random(PAGES);
                    let (from, to) = if random(2) == 0 {
                        (0, PAGE)
                    } else {
                        (random(PAGE / 2), PAGE / 2 + random(PAGE / 2) + 1)
                    };
                    let len = (to - from) as u32;
                    let at = RecordAt { position: value, sequence: 0, data_len: len };
                    pending.data(Piece { offset: page * PAGE + from, len, at }, u64::MAX);
                    state[(page * PAGE + from) as usize..(page * PAGE + to) as usize].fill(value as u8);
                }
                index.absorb(pending, commit, 0);
                states.push(state);
            }
            let lay = |image: &mut Vec<u8>, pieces: &[Piece]| {
                for piece in pieces {
                    image[piece.range().start as usize..piece.range().end as usize]
                        .fill(piece.at.position as u8);
                }
            };
            for (commit, state) in states.iter().enumerate().skip(1) {
                let mut by_page = base.clone();
                for page in 0..PAGES {
                    let (zeros_from, pieces) = index.page(page, commit as u64);
                    let range = page * PAGE..(page + 1) * PAGE;
                    by_page[zeros_from.clamp(range.start, range.end) as usize..range.end as usize].fill(0);
                    lay(&mut by_page, &pieces);
                }
                assert_eq!(by_page, *state, "by page");
                // The file may hold any mixture of what the plan gives and was before.
                let plan = index.plan(commit as u64);
                let mut planned = base.clone();
                lay(&mut planned, &plan.pieces[..plan.pieces.len() / 2]);
                planned[plan.cut.unwrap_or(PAGES * PAGE) as usize..].fill(0);
                lay(&mut planned, &plan.pieces);
                assert_eq!(planned, *state, "by plan");
            }
            index.forget(6);
            assert!(index.is_empty());
        }
    }

    #[test]
    fn whole_pages_hide_what_was_before_them() {
        let piece =
            |position| Piece { offset: 0, len: 4096, at: RecordAt { position, sequence: 1, data_len: 4096 } };
        let mut index = Index::default();
        for commit in 1..=100 {
            let mut later = Index::default();
            later.data(piece(commit), u64::MAX);
            index.absorb(later, commit, commit - 1);
        }
        assert_eq!((index.pages[&0].len(), index.page(0, 100).1), (2, vec![piece(100)]));
        assert_eq!(index.page(0, 99).1, [piece(99)]);
    }
}
