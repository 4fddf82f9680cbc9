//! Random reading of several files with whole regions, on a budget that holds few of them, from several threads.
//!
//! The oracle is the pattern of each file: nobody writes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mapwright::engine::checked::Scope;
use mapwright::engine::file::File;
use mapwright::engine::kernel::{FaultMode, FrameKind, View};
use mapwright::engine::read_ahead::Advice;
use mapwright::engine::request::{self, Acquire, Held, Request};
use mapwright::engine::{Handle, evict};
use mapwright::{Error, Result};
use mapwright_sim::{Op, Options, Rng, SimHandle, SimStore, StoreOptions};

use crate::engine::{EIO, ENOMEM, Opening, PAGE, block_on, frame_limit, pager, pick};

/// Bytes of a simulated region.
pub const REGION: u64 = 4 * PAGE;

/// What a workload is like; the rest is drawn from the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// Stores give errors.
    pub errors: bool,
    /// The kernel is short of memory now and then: to be asked for by `options`.
    pub short_memory: bool,
}

impl Kind {
    pub fn options(self) -> Options {
        Options { frame_errors_per_1000: if self.short_memory { 20 } else { 0 }, ..Options::default() }
    }
}

/// A file and what it holds.
#[derive(Clone)]
struct Book {
    file: Arc<File>,
    store: Arc<SimStore>,
    contents: Arc<Vec<u8>>,
}

#[derive(Clone)]
struct Reader {
    sim: SimHandle,
    books: Vec<Book>,
    kind: Kind,
    /// Bytes that one thread may hold pinned.
    may_hold: u64,
}

/// Runs one workload: threads that read, then a look at everything, at rest.
pub fn run(sim: &SimHandle, told: &AtomicU64, kind: Kind) {
    let mut rng = sim.rng(0);
    // The least for which there are buffers of regions is 64 pages.
    let budget = PAGE * rng.within(64..101);
    told.store(frame_limit(budget), Ordering::SeqCst);
    let pager = pager(sim, budget);
    let block_size = pick(&mut rng, &[PAGE, PAGE, PAGE, 2 * PAGE, REGION]);
    let base = if rng.per_1000(500) { StoreOptions::nasty() } else { StoreOptions::default() };
    let books: Vec<Book> = (0..rng.within(1..4))
        .map(|number| {
            let len = rng.within(1..60 * PAGE);
            let contents: Vec<u8> = (0..len).map(|at| (at / 4096 * 7 + at % 251 + number) as u8).collect();
            let options = StoreOptions { local: rng.per_1000(700), ..base.clone() };
            let store = SimStore::new(sim, contents.clone(), options);
            let opening = Opening {
                writable: false,
                mode: pick(&mut rng, &[FaultMode::Thread, FaultMode::InThread]),
                frames: FrameKind::Moved,
                block_size,
                advice: pick(&mut rng, &[Advice::Normal, Advice::Random, Advice::Sequential]),
                ..Opening::default()
            };
            let file = opening.open(&pager, &store).expect("open");
            Book { file, store, contents: Arc::new(contents) }
        })
        .collect();
    if kind.errors {
        books.iter().for_each(|book| plan_errors(&mut rng, &book.store));
    }
    let threads = rng.within(1..6);
    // A block that is pinned keeps its copy too, and every thread may need a block and a copy beside.
    let may_hold = frame_limit(budget) / 3 / threads;
    let reader = Reader { sim: sim.clone(), books, kind, may_hold };
    let operations = rng.within(4..30);
    let readers: Vec<_> = (0..threads)
        .map(|number| {
            let reader = reader.clone();
            sim.spawn("reader", move || reader.live(number, operations))
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join());
    reader.books.iter().for_each(|book| {
        book.store.heal();
        book.store.set_options(|options| options.error_per_1000 = 0);
    });
    reader.look_at_everything();
    reader.take_all_room(&pager, frame_limit(budget));
    reader.let_everything_go(&pager);
}

fn plan_errors(rng: &mut Rng, store: &SimStore) {
    (0..rng.below(4)).for_each(|_| store.fail_nth(Op::Read, rng.below(20), EIO));
    if rng.per_1000(300) {
        store.set_options(|options| options.error_per_1000 = 100);
    }
}

impl Book {
    fn any_range(&self, rng: &mut Rng, most: u64) -> Range<u64> {
        let len = self.contents.len() as u64;
        let start = rng.below(len);
        start..start + rng.within(1..most.min(len - start) + 1)
    }

    fn blocks(&self, bytes: &Range<u64>) -> Range<u64> {
        let size = self.file.block_size();
        bytes.start / size..bytes.end.div_ceil(size)
    }

    fn check(&self, found: &[u8], at: u64, how: &str) {
        let expected = &self.contents[at as usize..][..found.len()];
        let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
        if let Some(index) = wrong {
            let (found, expected) = (found[index], expected[index]);
            panic!("{how}: byte {:#x} is {found:#x}, not {expected:#x}", at + index as u64);
        }
    }

    /// Touches a slice; `None` if that was SIGBUS.
    fn touch(&self, sim: &SimHandle, view: View, bytes: &Range<u64>) -> Option<Vec<u8>> {
        let address = self.file.frames().address(view).expect("both views can be made");
        sim.read_slice(address + bytes.start as usize, (bytes.end - bytes.start) as usize).ok()
    }
}

/// Blocks of a book that a reader has pinned.
struct Hold {
    book: Book,
    bytes: Range<u64>,
    held: Held,
}

impl Reader {
    fn live(&self, number: u64, operations: u64) {
        let mut rng = self.sim.rng(1 + number);
        let mut hold = None;
        for _ in 0..operations {
            let book = self.books[rng.index(self.books.len())].clone();
            self.act(&mut rng, &book, &mut hold);
            if rng.per_1000(300)
                && let Some(Hold { book, bytes, held }) = hold.take()
            {
                self.read_held(&book, &bytes);
                drop(held);
            }
        }
    }

    fn act(&self, rng: &mut Rng, book: &Book, hold: &mut Option<Hold>) {
        let most = pick(rng, &[PAGE, 2 * REGION, 10 * REGION]);
        let bytes = book.any_range(rng, most);
        match rng.below(9) {
            0 => match book.touch(&self.sim, View::Plain, &bytes) {
                Some(found) => book.check(&found, bytes.start, "slice"),
                None => assert!(self.kind.errors || self.kind.short_memory, "SIGBUS, and nothing failed"),
            },
            1 | 2 => self.checked(book, &bytes),
            3 => {
                let mut found = vec![0xaa; (bytes.end - bytes.start) as usize];
                if self.expect("read", book.file.read_at(bytes.start, &mut found)).is_some() {
                    book.check(&found, bytes.start, "read_at");
                }
            }
            4 => _ = self.expect("prefetch", request::prefetch(&book.file, bytes)),
            5 => _ = evict::drop_clean(&book.file, book.blocks(&bytes)),
            6 => book.file.advise(pick(rng, &[Advice::Normal, Advice::Random, Advice::Sequential])),
            _ => self.pin(rng, book, hold),
        }
    }

    fn checked(&self, book: &Book, bytes: &Range<u64>) {
        let Some(scope) = self.expect("checked", Scope::enter(&book.file)) else { return };
        let found = book.touch(&self.sim, View::Checked, bytes).expect("no SIGBUS in a checked scope");
        if self.expect("checked", scope.end()).is_some() {
            book.check(&found, bytes.start, "checked");
        }
    }

    /// Pins a range, or blocks all over, in place of what was pinned before.
    fn pin(&self, rng: &mut Rng, book: &Book, hold: &mut Option<Hold>) {
        *hold = None;
        let size = book.file.block_size();
        let most = (self.may_hold / size).max(1);
        let (bytes, blocks) = if rng.per_1000(500) {
            let bytes = book.any_range(rng, ((most - 1) * size).max(1));
            (bytes.clone(), book.blocks(&bytes).collect::<Vec<_>>())
        } else {
            let count = (book.contents.len() as u64).div_ceil(size);
            let blocks: Vec<_> = (0..rng.within(1..most + 1)).map(|_| rng.below(count)).collect();
            let start = blocks[0] * size;
            (start..(start + size).min(book.contents.len() as u64), blocks)
        };
        let request = Request::new(&book.file, blocks, rng.per_1000(500)).expect("within the budget");
        let held = match rng.per_1000(500) {
            true => request.wait(),
            false => block_on(&self.sim, Acquire::new(request)),
        };
        let Some(held) = self.expect("get", held) else { return };
        self.read_held(book, &bytes);
        *hold = Some(Hold { book: book.clone(), bytes, held });
    }

    /// Reads what is pinned: that can't fail.
    fn read_held(&self, book: &Book, bytes: &Range<u64>) {
        let found = book.touch(&self.sim, View::Plain, bytes).expect("what is pinned can be read");
        book.check(&found, bytes.start, "pinned");
    }

    /// With good stores and nobody else at work every byte is there, in every way.
    fn look_at_everything(&self) {
        for book in &self.books {
            let all = 0..book.contents.len() as u64;
            let mut found = vec![0xaa; all.end as usize];
            self.patiently(|| book.file.read_at(0, &mut found));
            book.check(&found, 0, "read_at at rest");
            self.patiently(|| {
                let scope = Scope::enter(&book.file)?;
                found = book.touch(&self.sim, View::Checked, &all).expect("no SIGBUS in a checked scope");
                scope.end()
            });
            book.check(&found, 0, "checked at rest");
        }
    }

    /// There is nothing that could not be evicted in favour of another file.
    fn take_all_room(&self, pager: &Arc<Handle>, limit: u64) {
        let block_size = self.books[0].file.block_size();
        let count = (limit - PAGE * (self.books.len() as u64 + 1)) / (block_size + 16);
        let store = SimStore::new(&self.sim, vec![1; (count * block_size) as usize], StoreOptions::default());
        let opening = Opening { writable: false, block_size, ..Opening::default() };
        let file = opening.open(pager, &store).expect("open");
        self.patiently(|| Request::new(&file, (0..count).collect(), false)?.wait().map(drop));
        evict::drop_clean(&file, 0..count);
    }

    /// Tries again what short memory may spoil, and a fault that was told twice.
    fn patiently(&self, mut act: impl FnMut() -> Result<()>) {
        while self.expect("at rest", act()).is_none() {}
    }

    /// Nothing is pinned, so all of it can be evicted, once read-ahead has ended; what is charged then are the block tables.
    fn let_everything_go(&self, pager: &Handle) {
        let tables = PAGE * self.books.len() as u64;
        for attempt in 0.. {
            self.books.iter().for_each(|book| {
                let blocks = book.blocks(&(0..book.contents.len() as u64));
                evict::drop_clean(&book.file, blocks);
            });
            let (used, resident) = (pager.stats().used_bytes, self.sim.resident_bytes());
            if (used, resident) == (tables, 0) {
                break;
            }
            assert!(
                attempt < 100,
                "{used} bytes are charged, not {tables}, {resident} are in use, and nobody reads"
            );
            self.sim.sleep(Duration::from_millis(1));
        }
    }

    /// What came of it; otherwise checks how it failed.
    fn expect<T>(&self, what: &str, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let Error::Io { ref source, .. } = error else { panic!("{what}: {error}") };
        match source.raw_os_error() {
            Some(EIO) => assert!(self.kind.errors, "{what}: {error}"),
            Some(ENOMEM) => assert!(self.kind.short_memory, "{what}: {error}"),
            _ => panic!("{what}: {error}"),
        }
        None
    }
}
