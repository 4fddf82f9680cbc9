//! Checks of a store against the contract of [`Store`].
//!
//! Call [`check`] in a test of your own store. It makes many fresh stores, does to them what the pager does, and panics at
//! the first violation with the number of the clause. What one process can't see from inside is left to the store's own
//! tests: durability after a crash (3), what another program's changes do to the version (5), which calls may hang (8),
//! and whether a lock keeps others out (10).
//!
//! ```
//! use mapwright::stores::{MemoryStore, conformance};
//! conformance::check(|contents| Box::new(MemoryStore::new(contents.to_vec())));
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use mapwright_sys::PAGE_SIZE;
use mapwright_sys::buffer::Buffer;

use super::{Read, Store, Version, Write};

/// Lengths of the contents that reads are checked with: nothing, less than a page, whole pages, and a bit more.
const LENGTHS: [usize; 7] = [0, 1, 4095, 4096, 4097, 3 * 4096, 37 * 4096 + 1234];

/// Longest time that transient errors are taken for an answer.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(30) };

/// Longer than the clock tick (at most 10 ms) that coarse modification times are rounded to.
const TICK: Duration = Duration::from_millis(25);

/// Runs every clause that can be checked from inside one process against stores that `make` creates with the given
/// contents. Clauses about writing are left out for stores that say they can't be written. Takes a second or two for a
/// local store.
///
/// # Panics
/// At the first violation, with the clause's number and the values; and if `make` panics.
pub fn check(make: impl Fn(&[u8]) -> Box<dyn Store>) {
    for len in LENGTHS {
        let contents = pattern(len, 1);
        check_reads(&*make(&contents), &contents);
        for count in [1, 7, 200] {
            check_batch(1, &*make(&contents), &contents, count);
        }
        check_looking(&*make(&contents), &contents);
    }
    let contents = pattern(5 * PAGE_SIZE + 100, 1);
    check_concurrent_reads(&*make(&contents), &contents);
    if !make(&contents).is_writable() {
        check_read_only(&*make(&contents), &contents);
        return check_sync(&*make(&contents), &contents);
    }
    check_writes(&*make(&contents), &contents);
    check_sync(&*make(&contents), &contents);
    check_writes_past_the_end(&*make(&contents), &contents);
    check_lengths(&*make(&contents), &contents);
    for count in [1, 7, 200] {
        // Over nothing, over a part, and over bytes that are all there.
        for len in [0, contents.len(), 600 * PAGE_SIZE] {
            let contents = pattern(len, 1);
            check_write_batch(2, &*make(&contents), &contents, count);
        }
    }
    check_versions(&*make(&contents), &contents);
    check_concurrent_writes(&*make(&contents), &contents);
    check_concurrent_growth(&*make(&[]));
    check_lock(&*make(&contents), &contents);
}

/// Clause 1, one read at a time.
fn check_reads(store: &dyn Store, contents: &[u8]) {
    let len = contents.len() as u64;
    let edges =
        [0, 1, 511, 512, 4095, 4096, 4097, 8191, 12288, len / 2, len - len.min(1), len, len + 1, len + 4096];
    let far = [u64::from(u32::MAX) + len, i64::MAX as u64 - 1, i64::MAX as u64, u64::MAX - 4096, u64::MAX];
    for offset in edges.into_iter().chain(far) {
        for size in [0, 1, 3, 511, 4095, 4096, 4097, 16384, 20001] {
            check_read(1, store, contents, offset, size);
        }
    }
    check_contents(1, store, contents, "after all those reads");
}

/// One position: the right bytes, and 0 exactly at and past the end. What goes wrong violates clause `number`: 1, or 6 when
/// it went right in a single thread.
fn check_read(number: u8, store: &dyn Store, contents: &[u8], offset: u64, size: usize) {
    let mut buf = vec![0xA5; size];
    let read =
        calmly(number, &format!("read_at({offset}, {size} bytes)"), || store.read_at(offset, &mut buf));
    check_result(number, &format!("read_at({offset}, {size} bytes)"), contents, offset, &buf, read);
}

fn check_result(number: u8, what: &str, contents: &[u8], offset: u64, buf: &[u8], read: usize) {
    let rest = usize::try_from(offset).ok().and_then(|start| contents.get(start..)).unwrap_or(&[]);
    let most = rest.len().min(buf.len());
    clause(number, read <= most, || format!("{what} read {read} bytes where {most} are"));
    clause(number, read > 0 || most == 0, || {
        format!("{what} read 0 bytes, which means the end, but the end is at {}", contents.len())
    });
    if let Some(at) = first_difference(&buf[..read], &rest[..read]) {
        let (is, should) = (buf[at], rest[at]);
        violated(number, &format!("{what}: byte {at} of {read} is {is:#04x}, not {should:#04x}"));
    }
}

/// Clause 1, many reads at a time: in order and out of order, with gaps, repeated, and past the end.
fn check_batch(number: u8, store: &dyn Store, contents: &[u8], count: usize) {
    const SIZE: usize = 2 * PAGE_SIZE;
    let mut memory = Buffer::zeroed(count * SIZE);
    memory.fill(0xA5);
    // 17 is coprime to all counts: every page comes up, in no order, and the last ones are past the end.
    let pages = contents.len() / PAGE_SIZE + 4;
    let offset = |index: usize| (index * 17 % pages * PAGE_SIZE) as u64;
    let mut reads: Vec<Read<'_>> = (memory.chunks_exact_mut(SIZE).enumerate())
        // Buffers of one and of two pages.
        .map(|(index, buf)| Read { offset: offset(index), buf: &mut buf[..PAGE_SIZE * (1 + index % 2)] })
        .collect();
    let buffers: Vec<(*const u8, usize)> =
        reads.iter().map(|read| (read.buf.as_ptr(), read.buf.len())).collect();
    let mut again = Vec::new();
    let mut calls = vec![0; count];
    let mut seen = vec![Vec::new(); count];
    store.read_many(&mut reads, &mut |index, buf, result| {
        let what =
            format!("read {index} of a batch of {count} (offset {}, {} bytes)", offset(index), buf.len());
        clause(number, index < count, || format!("read_many of {count} called done for read {index}"));
        calls[index] += 1;
        clause(number, (buf.as_ptr(), buf.len()) == buffers[index], || {
            format!("{what}: done got another buffer")
        });
        match result {
            Ok(read) => {
                check_result(number, &what, contents, offset(index), buf, read);
                seen[index].extend_from_slice(&buf[..read]);
            }
            Err(error) if is_transient(&error) => again.push((offset(index), buf.len())),
            Err(error) => violated(number, &format!("{what} failed: {error}")),
        }
    });
    for (index, calls) in calls.into_iter().enumerate() {
        clause(number, calls == 1, || {
            format!("read_many called done {calls} times for read {index} of {count}")
        });
    }
    for (offset, size) in again {
        check_read(number, store, contents, offset, size);
    }
    for (index, seen) in seen.into_iter().enumerate() {
        clause(number, reads[index].buf.starts_with(&seen), || {
            format!(
                "the buffer of read {index} of a batch of {count} was written to after done had been called"
            )
        });
    }
}

/// Clause 5, and `len` of clause 4, while nobody changes anything.
fn check_looking(store: &dyn Store, contents: &[u8]) {
    let first = version(store);
    clause(5, first.len == contents.len() as u64, || {
        format!("version says {} bytes where {} are", first.len, contents.len())
    });
    std::thread::sleep(TICK / LENGTHS.len() as u32);
    check_contents(1, store, contents, "while looking");
    let second = version(store);
    clause(5, first == second, || format!("reading changed the version from {first:?} to {second:?}"));
}

/// Clause 6 for readers.
fn check_concurrent_reads(store: &dyn Store, contents: &[u8]) {
    at_once(4, |thread| {
        for round in 0..20 {
            check_read(6, store, contents, (thread * 1000 + round * 97) as u64, 6000);
            check_batch(6, store, contents, 7);
            let version = version(store);
            clause(6, version.len == contents.len() as u64, || {
                format!("version in thread {thread}: {version:?}")
            });
        }
    });
}

/// Clause 3, as far as it goes without pulling the plug.
fn check_sync(store: &dyn Store, contents: &[u8]) {
    calmly(3, "sync with nothing written", || store.sync());
    check_contents(3, store, contents, "after a sync with nothing written");
    if store.is_writable() {
        write_all(3, store, 10, b"durable");
        calmly(3, "sync after a write", || store.sync());
        calmly(3, "a second sync", || store.sync());
        check_contents(3, store, &written(contents, 10, b"durable"), "after a write and a sync");
    }
}

/// Clause 9.
fn check_read_only(store: &dyn Store, contents: &[u8]) {
    for (what, result) in [
        ("write_at", store.write_at(0, b"x").map(|_| ())),
        ("set_len", store.set_len(contents.len() as u64 + 1)),
    ] {
        match result {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => violated(9, &format!("{what} of a store that is not writable returned {other:?}")),
        }
    }
    let memory = Buffer::zeroed(2 * PAGE_SIZE);
    let write = |index: usize| Write { offset: (index * PAGE_SIZE) as u64, buf: &memory[..PAGE_SIZE] };
    store.write_many(&[write(0), write(1)], &mut |_, result| {
        clause(9, result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied), || {
            "write_many of a store that is not writable did not say PermissionDenied".to_owned()
        });
    });
    check_contents(9, store, contents, "after refused writes");
}

/// Clause 2.
fn check_writes(store: &dyn Store, contents: &[u8]) {
    let mut model = contents.to_vec();
    let mut seed = 2;
    for offset in [0, 1, 4095, 4096, 5000, 12288] {
        for size in [1, 2, 511, 4096, 4097, 8000] {
            seed += 1;
            let bytes = pattern(size, seed);
            write_all(2, store, offset, &bytes);
            model = written(&model, offset as usize, &bytes);
            // Around the write, both with an aligned and with a misaligned read: they may take different ways.
            for start in [offset - offset % 4096, offset.saturating_sub(3)] {
                check_range(2, store, &model, start, 16384, "after a write");
            }
        }
    }
    let wrote = calmly(2, "write_at of nothing", || store.write_at(3, &[]));
    clause(2, wrote == 0, || format!("write_at of 0 bytes returned {wrote}"));
    let before = version(store).len;
    calmly(2, "write_at of nothing past the end", || store.write_at(before + 9000, &[]));
    check_contents(2, store, &model, "after all those writes");
}

/// Clause 2, many writes at a time: of one page and of two, with gaps, the last one past the end and not whole pages.
fn check_write_batch(number: u8, store: &dyn Store, contents: &[u8], count: usize) {
    const PLACE: usize = 3 * PAGE_SIZE;
    let mut model = contents.to_vec();
    let mut memory = Buffer::zeroed(count * PLACE);
    memory.copy_from_slice(&pattern(count * PLACE, count as u8));
    let ends_at = count * PLACE - PAGE_SIZE - 123;
    let len = |index: usize| match index + 1 == count {
        true => ends_at - index * PLACE,
        false => PAGE_SIZE * (1 + index % 2),
    };
    let writes: Vec<Write<'_>> = (memory.chunks_exact(PLACE).enumerate().rev())
        .map(|(index, buf)| Write { offset: (index * PLACE) as u64, buf: &buf[..len(index)] })
        .collect();
    let mut calls = vec![0; count];
    let mut rest = Vec::new();
    store.write_many(&writes, &mut |index, result| {
        clause(number, index < count, || format!("write_many of {count} called done for write {index}"));
        calls[index] += 1;
        let Write { offset, buf } = writes[index];
        let what = format!("write {index} of a batch of {count} (offset {offset}, {} bytes)", buf.len());
        match result {
            Ok(written) => {
                clause(number, written > 0 && written <= buf.len(), || format!("{what} returned {written}"));
                rest.push((index, written));
            }
            Err(error) if is_transient(&error) => rest.push((index, 0)),
            Err(error) => violated(number, &format!("{what} failed: {error}")),
        }
    });
    for (index, calls) in calls.into_iter().enumerate() {
        clause(number, calls == 1, || {
            format!("write_many called done {calls} times for write {index} of {count}")
        });
    }
    for (index, done) in rest {
        write_all(number, store, writes[index].offset + done as u64, &writes[index].buf[done..]);
    }
    for write in writes.iter().rev() {
        model = written(&model, write.offset as usize, write.buf);
    }
    check_contents(number, store, &model, &format!("after a batch of {count} writes"));
    for range in [0..0, 0..model.len() as u64, 1..PAGE_SIZE as u64 + 1, model.len() as u64..u64::MAX] {
        let written = store.write_out(range.clone());
        clause(number, written.is_ok(), || format!("write_out of {range:?} failed: {written:?}"));
    }
    check_contents(number, store, &model, "after write_out");
}

/// Clause 4, for writes.
fn check_writes_past_the_end(store: &dyn Store, contents: &[u8]) {
    let mut model = contents.to_vec();
    // Exactly at the end, across it, after a gap within the page, after a gap of pages.
    for gap in [0, -5, 7, 3 * PAGE_SIZE as i64 + 11] {
        let offset = (model.len() as i64 + gap) as usize;
        let bytes = pattern(100, 40 + (gap & 7) as u8);
        write_all(4, store, offset as u64, &bytes);
        model = written(&model, offset, &bytes);
        check_contents(4, store, &model, &format!("after a write {gap} bytes behind the end"));
    }
}

/// Clause 4, for `set_len`.
fn check_lengths(store: &dyn Store, contents: &[u8]) {
    let mut model = contents.to_vec();
    let len = contents.len();
    // Cut within a page, and grow again: what was cut must not come back.
    for new in [len - 50, len, 4096 + 7, 4096 + 4000, 4096, 20 * 4096 + 1, 1, 5, 0, 4097] {
        set_len(4, store, new as u64);
        model.resize(new, 0);
        check_contents(4, store, &model, &format!("after set_len({new})"));
    }
    write_all(4, store, 4000, b"in the middle of zeros");
    check_contents(4, store, &written(&model, 4000, b"in the middle of zeros"), "after a write to new bytes");
}

/// Clause 5, for changes.
fn check_versions(store: &dyn Store, contents: &[u8]) {
    let len = contents.len() as u64;
    let mut before = version(store);
    let changes: [(&str, &dyn Fn()); 4] = [
        ("a write", &|| write_all(5, store, 100, b"changed")),
        ("a write of one byte", &|| write_all(5, store, 5000, b" ")),
        ("growing", &|| set_len(5, store, len + 10)),
        ("cutting", &|| set_len(5, store, len - 10)),
    ];
    for (what, change) in changes {
        std::thread::sleep(TICK);
        change();
        calmly(5, "sync", || store.sync());
        let after = version(store);
        clause(5, after != before, || format!("{what} did not change the version {after:?}"));
        clause(5, after.identity == before.identity, || {
            format!("{what} changed the identity from {:#x} to {:#x}", before.identity, after.identity)
        });
        before = after;
    }
    clause(5, before.len == len - 10, || {
        format!("version says {} bytes after set_len({})", before.len, len - 10)
    });
}

/// Clause 6: writers and readers of disjoint ranges that share pages.
fn check_concurrent_writes(store: &dyn Store, contents: &[u8]) {
    const THREADS: usize = 4;
    const STRIPE: usize = 1000;
    at_once(THREADS, |thread| {
        let offset = (thread * STRIPE) as u64;
        for round in 0..30 {
            let bytes = pattern(STRIPE, (thread * 50 + round) as u8);
            write_all(6, store, offset, &bytes);
            let mut back = vec![0; STRIPE];
            read_all(6, store, offset, &mut back);
            if let Some(at) = first_difference(&back, &bytes) {
                violated(
                    6,
                    &format!("thread {thread} wrote {STRIPE} bytes at {offset} and read others back at {at}"),
                );
            }
            if round % 10 == 0 {
                calmly(6, "sync while others write", || store.sync());
            }
        }
    });
    let mut model = contents.to_vec();
    for thread in 0..THREADS {
        model = written(&model, thread * STRIPE, &pattern(STRIPE, (thread * 50 + 29) as u8));
    }
    check_contents(6, store, &model, "after concurrent writes");
}

/// Clause 6: writers that each extend the store.
fn check_concurrent_growth(store: &dyn Store) {
    const THREADS: usize = 4;
    const ROUNDS: usize = 16;
    const SIZE: usize = 700;
    at_once(THREADS, |thread| {
        for round in 0..ROUNDS {
            let place = round * THREADS + thread;
            write_all(6, store, (place * SIZE) as u64, &pattern(SIZE, place as u8));
        }
    });
    let model: Vec<u8> = (0..THREADS * ROUNDS).flat_map(|place| pattern(SIZE, place as u8)).collect();
    check_contents(6, store, &model, "after concurrent writes past the end");
}

/// Clause 10, from the holder's side.
fn check_lock(store: &dyn Store, contents: &[u8]) {
    for time in ["first", "second"] {
        if let Err(error) = store.lock() {
            violated(10, &format!("the {time} lock of a fresh store failed: {error}"));
        }
    }
    write_all(10, store, 0, b"locked");
    check_contents(10, store, &written(contents, 0, b"locked"), "under the lock");
}

/// The whole store and its length, against a model; `number` is the clause that the step before was about.
fn check_contents(number: u8, store: &dyn Store, model: &[u8], when: &str) {
    check_range(number, store, model, 0, model.len() + 1, when);
    let len = version(store).len;
    clause(5, len == model.len() as u64, || {
        format!("version says {len} bytes where {} are, {when}", model.len())
    });
}

/// Up to `len` bytes at `offset`, against a model, with as many reads as it takes.
fn check_range(number: u8, store: &dyn Store, model: &[u8], offset: u64, len: usize, when: &str) {
    let rest = model.get(offset as usize..).unwrap_or(&[]);
    let rest = &rest[..rest.len().min(len)];
    let mut bytes = vec![0xA5; len];
    let read = read_all(number, store, offset, &mut bytes);
    clause(number, read == rest.len(), || {
        format!("{read} of {len} bytes at {offset} could be read where {} are, {when}", rest.len())
    });
    if let Some(at) = first_difference(&bytes[..read], rest) {
        let (is, should) = (bytes[at], rest[at]);
        violated(number, &format!("byte {} is {is:#04x}, not {should:#04x}, {when}", offset + at as u64));
    }
}

/// Reads until the buffer is full or the end is reached; returns how much.
fn read_all(number: u8, store: &dyn Store, offset: u64, buf: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let rest = &mut buf[done..];
        let asked = rest.len();
        let read = calmly(number, &format!("read_at({at}, {asked} bytes)"), || store.read_at(at, rest));
        clause(1, read <= asked, || format!("read_at({at}, {asked} bytes) read {read}"));
        if read == 0 {
            break;
        }
        done += read;
    }
    done
}

fn write_all(number: u8, store: &dyn Store, offset: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let (at, rest) = (offset + done as u64, &bytes[done..]);
        let what = format!("write_at({at}, {} bytes)", rest.len());
        let wrote = calmly(number, &what, || store.write_at(at, rest));
        clause(2, wrote > 0 && wrote <= rest.len(), || format!("{what} returned {wrote}"));
        done += wrote;
    }
}

fn set_len(number: u8, store: &dyn Store, len: u64) {
    calmly(number, &format!("set_len({len})"), || store.set_len(len));
}

fn version(store: &dyn Store) -> Version {
    calmly(5, "version", || store.version())
}

/// Calls again after transient errors (clause 7) for a while; any other error violates the clause at hand.
fn calmly<T>(number: u8, what: &str, mut call: impl FnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match catch_unwind(AssertUnwindSafe(&mut call)) {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) if is_transient(&error) && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(Err(error)) if is_transient(&error) => {
                violated(7, &format!("{what} still fails after {PATIENCE:?}: {error}"));
            }
            Ok(Err(error)) => violated(number, &format!("{what} failed: {error}")),
            Err(_) => violated(7, &format!("{what} panicked")),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock | TimedOut)
}

/// Runs `work` in several threads that start together, and passes the first panic on with its message.
fn at_once(threads: usize, work: impl Fn(usize) + Sync) {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let run = |thread| {
            start.wait();
            work(thread);
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        for thread in running {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
}

fn written(model: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut model = model.to_vec();
    model.resize(model.len().max(offset + bytes.len()), 0);
    model[offset..offset + bytes.len()].copy_from_slice(bytes);
    model
}

/// Bytes that repeat neither by page nor by sector, and are never zero: a zero is always a mistake.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64)
        .map(|at| {
            let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(seed) << 40;
            (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8 | 1
        })
        .collect()
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    left.iter().zip(right).position(|(left, right)| left != right)
}

#[track_caller]
fn clause(number: u8, holds: bool, message: impl FnOnce() -> String) {
    if !holds {
        violated(number, &message());
    }
}

#[track_caller]
fn violated(number: u8, message: &str) -> ! {
    panic!("clause {number} of the Store contract is violated: {message}");
}

#[cfg(test)]
mod tests;
