//! Where the newest bytes of each page are: in which records of the journal, or in the file.
//!
//! Plain data, without locks or I/O. What a page is at a commit: its bytes in the file, with the changes up to that commit
//! laid over them in their order. A change is a run of bytes, or a cut of the file's length, which zeros what lies beyond.
//! `fold` drops what later changes hide; whatever is left may be applied any number of times, in any state that an
//! earlier application left half done, and gives the same bytes.
//!
//! However many changes are added, a page keeps about as many as it has bytes, and adding one takes the same time: when a list
//! has doubled, what is hidden in it is dropped.

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

/// A list that says when it has doubled.
#[derive(Clone, Debug)]
struct Doubling<T> {
    list: Vec<T>,
    /// How long it was after what is hidden was dropped.
    kept: usize,
}

/// Changes, by page, and cuts.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pages: BTreeMap<u64, Doubling<Timed<Piece>>>,
    cuts: Doubling<Timed<u64>>,
    next_order: u64,
    /// Number of all runs in `pages`.
    pieces: usize,
    /// The file has what is of this commit or earlier: such pieces are not looked at, and removed by and by.
    floor: u64,
}

/// What to do to a file to bring it to a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The shortest the file was on the way: it is cut to this first.
    pub cut: Option<u64>,
    /// The shortest it was since the first change that the index has; `u64::MAX` if it was never cut.
    pub shortest: u64,
    /// What to write, in the order of the file.
    pub pieces: Vec<Piece>,
}

impl<T> Default for Doubling<T> {
    fn default() -> Self {
        Self { list: Vec::new(), kept: 0 }
    }
}

impl<T> Doubling<T> {
    /// Shortens the list where it has doubled.
    fn shorten(&mut self, drop_hidden: impl FnOnce(&mut Vec<T>)) {
        if self.list.len() >= 2 * self.kept + 4 {
            drop_hidden(&mut self.list);
            self.list.shrink_to_fit();
            self.kept = self.list.len();
        }
    }

    fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.list.retain(keep);
        self.kept = self.kept.min(self.list.len());
    }
}

impl Index {
    /// Adds a run of bytes as the newest change.
    pub fn data(&mut self, piece: Piece, commit: u64) {
        let order = self.tick();
        let page = self.pages.entry(piece.offset / PAGE).or_default();
        let before = page.list.len();
        if page.list.is_empty() {
            page.list.reserve_exact(1);
        }
        page.list.push(Timed { order, commit, what: piece });
        page.shorten(|list| drop_hidden_pieces(list, 0));
        self.pieces = self.pieces + page.list.len() - before;
    }

    /// Adds a cut to `len` bytes as the newest change.
    pub fn cut(&mut self, len: u64, commit: u64) {
        let order = self.tick();
        self.cuts.list.push(Timed { order, commit, what: len });
        self.cuts.shorten(|list| drop_hidden_cuts(list, 0));
    }

    fn tick(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    /// Number of runs of bytes that it has.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The pages that were changed, in order.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// The least length that any cut left; `u64::MAX` if there was none.
    pub fn shortest(&self) -> u64 {
        self.cuts.list.iter().map(|cut| cut.what).min().unwrap_or(u64::MAX)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.cuts.list.is_empty()
    }

    /// Adds all changes of `later`, as part of `commit`. Nobody will ask for a commit before `oldest` any more: what is hidden
    /// from then on may be dropped.
    pub fn absorb(&mut self, later: Index, commit: u64, oldest: u64) {
        let offset = self.next_order;
        self.next_order += later.next_order;
        let retimed = |order| offset + order;
        let cuts = later.cuts.list.into_iter();
        self.cuts.list.extend(cuts.map(|cut| Timed { order: retimed(cut.order), commit, what: cut.what }));
        self.cuts.shorten(|list| drop_hidden_cuts(list, oldest));
        for (page, pieces) in later.pages {
            let page = self.pages.entry(page).or_default();
            let before = page.list.len();
            page.list.reserve_exact(pieces.list.len());
            let pieces = pieces.list.into_iter();
            page.list.extend(pieces.map(|piece| Timed {
                order: retimed(piece.order),
                commit,
                what: piece.what,
            }));
            page.shorten(|list| drop_hidden_pieces(list, oldest));
            self.pieces = self.pieces + page.list.len() - before;
        }
    }

    /// Forgets what the file has: everything up to a commit. What that leaves without use is removed by [`sweep`](Self::sweep), a
    /// part at a time: this may be done under a lock that readers wait for.
    pub fn forget(&mut self, commit: u64) {
        self.floor = commit;
        self.cuts.retain(|cut| cut.commit > commit);
    }

    /// Removes what is forgotten of up to `count` pages from `page` on; the page to go on from, if there are more.
    pub fn sweep(&mut self, page: u64, count: usize) -> Option<u64> {
        let (floor, all) = (self.floor, &mut self.pieces);
        let mut pages = self.pages.range_mut(page..);
        let mut empty = Vec::new();
        for (page, pieces) in pages.by_ref().take(count) {
            *all -= pieces.list.len();
            pieces.retain(|piece| piece.commit > floor);
            *all += pieces.list.len();
            empty.extend(pieces.list.is_empty().then_some(*page));
        }
        let next = pages.next().map(|(page, _)| *page);
        for page in empty {
            self.pages.remove(&page);
        }
        next
    }

    /// What [`plan`](Self::plan) gives, but for the pieces.
    pub fn plan_lengths(&self, commit: u64) -> Plan {
        let new = self.cuts.list.iter().filter(|cut| cut.commit <= commit);
        let cut = new.map(|cut| cut.what).min();
        Plan { cut, shortest: cut.unwrap_or(u64::MAX), pieces: Vec::new() }
    }

    /// Adds the pieces of a [`plan`](Self::plan) for up to `count` pages from `page` on; the page to go on from, if there are more.
    /// What is absorbed between two parts must not hide anything of the commit.
    pub fn plan_part(&self, commit: u64, page: u64, count: usize, pieces: &mut Vec<Piece>) -> Option<u64> {
        let cuts = Cuts::new(&self.cuts.list, commit);
        let mut pages = self.pages.range(page..);
        for (_, page) in pages.by_ref().take(count) {
            pieces.extend(fold(&page.list, self.floor, commit, &cuts));
        }
        pages.next().map(|(page, _)| *page)
    }

    /// What brings the file to a commit. Commits are numbered from 1.
    pub fn plan(&self, commit: u64) -> Plan {
        self.plan_between(0, commit)
    }

    /// What brings the file from one commit to another: the pages that were changed between them, with all of their pieces.
    pub fn plan_between(&self, from: u64, to: u64) -> Plan {
        let cuts = Cuts::new(&self.cuts.list, to);
        let mut pieces = Vec::new();
        for page in self.pages.values() {
            if page.list.iter().any(|piece| piece.commit > from && piece.commit <= to) {
                pieces.extend(fold(&page.list, self.floor, to, &cuts));
            }
        }
        let new = self.cuts.list.iter().filter(|cut| cut.commit > from && cut.commit <= to);
        Plan { cut: new.map(|cut| cut.what).min(), shortest: cuts.least(), pieces }
    }

    /// What to lay over one page of the file to get the page of a commit: from where on its old bytes are zeros, and the
    /// pieces, in order.
    pub fn page(&self, page: u64, commit: u64) -> (u64, Vec<Piece>) {
        let cuts = Cuts::new(&self.cuts.list, commit);
        let pieces = self.pages.get(&page).map_or(&[][..], |page| page.list.as_slice());
        (cuts.least(), fold(pieces, self.floor, commit, &cuts))
    }
}

/// The cuts that a commit knows of, to be asked what came after a piece.
struct Cuts(Vec<(u64, u64)>);

impl Cuts {
    /// Of those in `cuts`, which are in order, up to a commit.
    fn new(cuts: &[Timed<u64>], commit: u64) -> Self {
        let seen = cuts.iter().filter(|cut| cut.commit <= commit);
        let mut least_from: Vec<(u64, u64)> = seen.map(|cut| (cut.order, cut.what)).collect();
        let mut least = u64::MAX;
        for (_, len) in least_from.iter_mut().rev() {
            least = least.min(*len);
            *len = least;
        }
        Self(least_from)
    }

    /// The least length that a cut after `order` left.
    fn least_after(&self, order: u64) -> u64 {
        let later = self.0.partition_point(|(at, _)| *at <= order);
        self.0.get(later).map_or(u64::MAX, |(_, least)| *least)
    }

    fn least(&self) -> u64 {
        self.least_after(0)
    }
}

/// Which bytes of a page are hidden.
struct Hidden([u64; PAGE as usize / 64]);

impl Default for Hidden {
    fn default() -> Self {
        Self([0; PAGE as usize / 64])
    }
}

impl Hidden {
    /// Hides the bytes of a piece; whether one of them was not hidden.
    fn hide(&mut self, piece: &Piece) -> bool {
        let (mut at, mut is_new) = ((piece.offset % PAGE) as usize, false);
        let end = at + piece.len as usize;
        while at < end {
            let bits = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << (at % 64);
            is_new |= self.0[at / 64] & mask != mask;
            self.0[at / 64] |= mask;
            at += bits;
        }
        is_new
    }
}

/// The pieces of a page that count at a commit, of later ones than `floor`, in order: those that are hidden or cut off left out, others cut to what is
/// left.
fn fold(pieces: &[Timed<Piece>], floor: u64, commit: u64, cuts: &Cuts) -> Vec<Piece> {
    let mut hidden = Hidden::default();
    let mut kept: Vec<Piece> = Vec::new();
    for timed in pieces.iter().rev().filter(|timed| timed.commit > floor && timed.commit <= commit) {
        let mut piece = timed.what;
        let room = cuts.least_after(timed.order).saturating_sub(piece.offset);
        piece.len = u64::from(piece.len).min(room) as u32;
        if hidden.hide(&piece) {
            kept.push(piece);
        }
    }
    kept.reverse();
    kept
}

/// Drops pieces of a page that nobody will see who asks for a commit from `oldest` on: what hides them is of their own commit,
/// or of one that everybody sees. Cuts need not be looked at: what is cut off of the piece that hides is cut off of the hidden
/// one.
fn drop_hidden_pieces(list: &mut Vec<Timed<Piece>>, oldest: u64) {
    let mut hidden = Hidden::default();
    let mut of = None;
    let mut kept: Vec<Timed<Piece>> = Vec::new();
    for timed in list.iter().rev() {
        // All that everybody sees counts as one commit.
        let group = timed.commit.max(oldest);
        if of != Some(group) {
            (hidden, of) = (Hidden::default(), Some(group));
        }
        if hidden.hide(&timed.what) {
            kept.push(*timed);
        }
    }
    kept.reverse();
    *list = kept;
}

/// The same for cuts: a later one that is no longer hides them.
fn drop_hidden_cuts(list: &mut Vec<Timed<u64>>, oldest: u64) {
    let mut of = None;
    let mut kept: Vec<Timed<u64>> = Vec::new();
    for timed in list.iter().rev() {
        let group = timed.commit.max(oldest);
        let is_hidden = of == Some(group) && kept.last().is_some_and(|later| later.what <= timed.what);
        if !is_hidden {
            kept.push(*timed);
        }
        of = Some(group);
    }
    kept.reverse();
    *list = kept;
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
            // One that everything is asked of, and one of which only the last two commits are.
            let (mut index, mut folded) = (Index::default(), Index::default());
            let base: Vec<u8> = (0..PAGES * PAGE).map(|_| 1).collect();
            // Every record's data is one value; the position stands for it.
            let mut states = vec![base.clone()];
            for commit in 1..=6u64 {
                let mut pending = Index::default();
                let mut state = states[commit as usize - 1].clone();
                for change in 0..random(9) {
                    let value = commit * 20 + change;
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
                folded.absorb(pending.clone(), commit, commit.saturating_sub(1));
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
                for index in [&index, &folded].into_iter().take(if commit >= 5 { 2 } else { 1 }) {
                    let mut by_page = base.clone();
                    for page in 0..PAGES {
                        let (zeros_from, pieces) = index.page(page, commit as u64);
                        let range = page * PAGE..(page + 1) * PAGE;
                        by_page[zeros_from.clamp(range.start, range.end) as usize..range.end as usize]
                            .fill(0);
                        lay(&mut by_page, &pieces);
                    }
                    assert_eq!(by_page, *state, "by page");
                }
                // The file may hold any mixture of what the plan gives and was before.
                let plan = index.plan(commit as u64);
                let mut parts = index.plan_lengths(commit as u64);
                let mut page = Some(0);
                while let Some(from) = page {
                    page = index.plan_part(commit as u64, from, 2, &mut parts.pieces);
                }
                assert_eq!(parts, plan);
                let mut planned = base.clone();
                lay(&mut planned, &plan.pieces[..plan.pieces.len() / 2]);
                planned[plan.cut.unwrap_or(PAGES * PAGE) as usize..].fill(0);
                lay(&mut planned, &plan.pieces);
                assert_eq!(planned, *state, "by plan");
            }
            index.forget(6);
            assert_eq!(index.page(0, 6), (u64::MAX, Vec::new()));
            let mut page = Some(0);
            while let Some(from) = page {
                page = index.sweep(from, 2);
            }
            assert!(index.is_empty());
        }
    }

    fn piece(offset: u64, len: u32, position: u64) -> Piece {
        Piece { offset, len, at: RecordAt { position, sequence: 1, data_len: len } }
    }

    #[test]
    fn whole_pages_hide_what_was_before_them() {
        let mut index = Index::default();
        for commit in 1..=100 {
            let mut later = Index::default();
            later.data(piece(0, 4096, commit), u64::MAX);
            index.absorb(later, commit, commit - 1);
        }
        assert!(index.pages[&0].list.len() <= 8);
        assert_eq!(index.page(0, 100).1, [piece(0, 4096, 100)]);
        assert_eq!(index.page(0, 99).1, [piece(0, 4096, 99)]);
    }

    /// What many together hide is dropped, and the time does not grow with the square of their number: the loop would take
    /// minutes.
    #[test]
    fn a_page_keeps_about_as_many_pieces_as_it_has_bytes() {
        let mut index = Index::default();
        for n in 0..400_000 {
            index.data(piece(n * 7919 % 4095, 2, n), u64::MAX);
            index.cut(5000 + n % 13, u64::MAX);
        }
        assert!(index.pages[&0].list.len() < 2 * 4096 + 4, "{}", index.pages[&0].list.len());
        assert!(index.cuts.list.len() < 40);
        let mut all = Index::default();
        for commit in 1..=40_000u64 {
            let mut later = Index::default();
            later.data(piece(commit * 7919 % 4095, 2, commit), u64::MAX);
            later.cut(5000 - commit % 3, u64::MAX);
            all.absorb(later, commit, commit - 1);
        }
        assert!(all.pages[&0].list.len() < 2 * 4096 + 6 && all.cuts.list.len() < 40);
        assert_eq!(all.page(0, 40_000).0, 4998);
    }

    /// What a snapshot sees stays, however much comes after it.
    #[test]
    fn what_somebody_may_ask_for_is_not_dropped() {
        let mut index = Index::default();
        for commit in 1..=100 {
            let mut later = Index::default();
            later.data(piece(0, 4096, commit), u64::MAX);
            later.cut(10 + commit, u64::MAX);
            index.absorb(later, commit, 5);
        }
        for commit in 5..=100 {
            let (zeros_from, pieces) = index.page(0, commit);
            assert_eq!(
                (zeros_from <= 16, pieces),
                (true, vec![Piece { len: 10 + commit as u32, ..piece(0, 4096, commit) }])
            );
        }
    }
}
