//! What the wrappers of mmap(2) and its kin cost, beside the same calls by rustix: `cargo bench -p mapwright-bench --bench wrappers`.
//!
//! The goal is 1.02 of the raw calls. Times of two runs differ by more than that, so the ratios that are printed first are of
//! rounds in turns: the median over all rounds of mapwright's time by the raw one's in the same round. Criterion's figures follow.
//! `MAPWRIGHT_BENCH_ROUNDS` sets the number of rounds (default 2000).
//!
//! The raw calls stand in functions of their own, which are not inlined, as they do in any program that doesn't call the kernel from the
//! body of its loop, and in the C library: to return from a function after a system call alone takes hundreds of nanoseconds on
//! machines whose kernel empties the processor's return predictor on the way out. `called-and-inlined` shows how many.
//!
//! A wrapper makes the calls that the raw side makes, and no others, with these exceptions, which the bound is not for:
//! - a file that is empty or a page long, mapped as a whole, costs an fstatfs(2): file systems of the kernel's own make such lengths
//!   up, and what would be mapped has nothing to do with what is read;
//! - so does a file whose preferred block is 64 KiB or more (NFS, ZFS): it may be of huge pages (hugetlbfs), and the kernel would round
//!   its length up to what nobody here knows of, and unmap as much;
//! - the length of a part that is mapped by promise is compared with the file's, by fstat(2): past the end a slice would be SIGBUS.

#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use mapwright::alloc::MappedAlloc;
use mapwright::mmap::{Advice, MapAssumedWith, MmapMut, MmapOptions, MmapRaw, Resize};
use rustix::mm::{Advice as RawAdvice, MprotectFlags, MsyncFlags};

/// The system calls, each in a function. All are safe here: what they are given is this benchmark's own and nobody has a reference.
mod raw {
    #![allow(clippy::inline_always)]
    use std::ffi::c_void;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::ptr::null_mut;

    use rustix::mm::{
        Advice, MapFlags, MprotectFlags, MremapFlags, MsyncFlags, ProtFlags, madvise, mmap_anonymous,
        mprotect, mremap, msync, munmap,
    };

    #[inline(always)]
    pub fn anonymous_inlined(len: usize) -> *mut c_void {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        unsafe { mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE) }.expect("mmap")
    }

    #[inline(always)]
    pub fn unmap_inlined(start: *mut c_void, len: usize) {
        // SAFETY: every caller made the mapping and gives it up.
        unsafe { munmap(start, len) }.expect("munmap");
    }

    #[inline(never)]
    pub fn anonymous(len: usize) -> *mut c_void {
        anonymous_inlined(len)
    }

    #[inline(never)]
    pub fn unmap(start: *mut c_void, len: usize) {
        unmap_inlined(start, len);
    }

    #[inline(never)]
    pub fn mmap(file: &File, len: usize) -> *mut c_void {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        unsafe { rustix::mm::mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), 0) }
            .expect("mmap")
    }

    #[inline(never)]
    pub fn len(file: &File) -> usize {
        rustix::fs::fstat(file).expect("fstat").st_size as usize
    }

    #[inline(never)]
    pub fn protect(start: *mut c_void, len: usize, access: MprotectFlags) {
        // SAFETY: the benchmark's own, and nobody has a reference.
        unsafe { mprotect(start, len, access) }.expect("mprotect");
    }

    #[inline(never)]
    pub fn advise(start: *mut c_void, len: usize, advice: Advice) {
        // SAFETY: advice that changes nothing, of the benchmark's own memory.
        unsafe { madvise(start, len, advice) }.expect("madvise");
    }

    #[inline(never)]
    pub fn sync(start: *mut c_void, len: usize, flags: MsyncFlags) {
        // SAFETY: changes no contents.
        unsafe { msync(start, len, flags) }.expect("msync");
    }

    #[inline(never)]
    pub fn residency(start: *mut c_void, len: usize, pages: &mut [u8]) {
        assert!(pages.len() >= len.div_ceil(super::PAGE));
        // SAFETY: a byte for each page, for which there is room.
        assert_eq!(unsafe { libc::mincore(start, len, pages.as_mut_ptr()) }, 0);
    }

    #[inline(never)]
    pub fn remap(start: *mut c_void, from: usize, to: usize) -> *mut c_void {
        // SAFETY: the benchmark's own, and nobody has a reference.
        unsafe { mremap(start, from, to, MremapFlags::MAYMOVE) }.expect("mremap")
    }
}

const LEN: usize = 64 << 10;
const PAGE: usize = 4096;
/// Calls in a round.
const CALLS: u32 = 64;

/// Two ways to the same thing, each called once for each timing.
struct Pair {
    name: &'static str,
    raw: Box<dyn FnMut()>,
    ours: Box<dyn FnMut()>,
}

fn pair(name: &'static str, raw: impl FnMut() + 'static, ours: impl FnMut() + 'static) -> Pair {
    Pair { name, raw: Box::new(raw), ours: Box::new(ours) }
}

fn sample() -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; LEN], 0).expect("write");
    file.sync_all().expect("sync");
    file
}

/// Memory of each side's own, touched.
fn memory() -> (*mut c_void, MmapMut) {
    let raw = raw::anonymous(LEN);
    // SAFETY: mapped just now, of that length, and nobody else's.
    unsafe { raw.cast::<u8>().write_bytes(1, LEN) };
    let mut ours = MmapMut::map_anon(LEN).expect("map_anon");
    ours.fill(1);
    (raw, ours)
}

fn map_and_unmap() {
    raw::unmap(black_box(raw::anonymous(LEN)), LEN);
}

fn pairs() -> Vec<Pair> {
    vec![
        // How far two of the same may be apart.
        pair("raw-and-raw", map_and_unmap, map_and_unmap),
        pair("called-and-inlined", map_and_unmap, || {
            raw::unmap_inlined(black_box(raw::anonymous_inlined(LEN)), LEN);
        }),
        pair("map-anonymous-and-unmap", map_and_unmap, || {
            drop(black_box(MmapMut::map_anon(LEN).expect("map_anon")));
        }),
        map_file(),
        protect(),
        advise(),
        sync(),
        residency(),
        remap(),
        allocate(),
    ]
}

/// Of a file whose length is asked, as everybody must who maps all of it.
fn map_file() -> Pair {
    let (file, same) = (sample(), sample());
    let raw = move || {
        let len = raw::len(&file);
        raw::unmap(black_box(raw::mmap(&file, len)), len);
    };
    pair("map-file-and-unmap", raw, move || {
        // SAFETY: the file is this program's own, has no name, and is not written.
        let map = unsafe { MmapOptions::new().map(&same) };
        drop(black_box(map.expect("map")));
    })
}

fn protect() -> Pair {
    let (raw, ours) = memory();
    let mut ours = Some(ours);
    pair(
        "protect-twice",
        move || {
            for access in [MprotectFlags::READ, MprotectFlags::READ | MprotectFlags::WRITE] {
                raw::protect(raw, LEN, access);
            }
        },
        move || {
            let read_only = ours.take().map(|map| map.make_read_only().expect("protect"));
            ours = read_only.map(|map| map.make_mut().expect("protect"));
        },
    )
}

fn advise() -> Pair {
    let (raw, ours) = memory();
    pair(
        "advise",
        move || raw::advise(raw, LEN, RawAdvice::WillNeed),
        move || ours.advise(Advice::WillNeed).expect("advise"),
    )
}

fn sync() -> Pair {
    let (file, same) = (sample(), sample());
    let raw = raw::mmap(&file, LEN);
    let ours: MmapRaw = MmapOptions::new().map_raw(&same).expect("map_raw");
    pair(
        "flush-without-waiting",
        move || raw::sync(raw, LEN, MsyncFlags::ASYNC),
        move || ours.flush_async().expect("flush"),
    )
}

fn residency() -> Pair {
    let (raw, ours) = memory();
    pair(
        "residency",
        move || {
            let mut pages = vec![0_u8; LEN / PAGE];
            raw::residency(raw, LEN, &mut pages);
            assert_eq!(pages.iter().filter(|page| **page & 1 == 1).count(), LEN / PAGE);
        },
        move || assert_eq!(ours.residency(..).expect("mincore").resident_pages(), (LEN / PAGE) as u64),
    )
}

fn remap() -> Pair {
    let (mut raw, mut ours) = memory();
    pair(
        "grow-and-shrink",
        move || {
            for (from, to) in [(LEN, 2 * LEN), (2 * LEN, LEN)] {
                raw = raw::remap(raw, from, to);
            }
        },
        move || {
            for len in [2 * LEN, LEN] {
                ours.resize(len, Resize::MayMove).expect("resize");
            }
        },
    )
}

fn allocate() -> Pair {
    const ALLOCATOR: MappedAlloc = MappedAlloc::new().threshold(LEN);
    let layout = Layout::from_size_align(LEN, 8).expect("a layout");
    pair("allocate-and-free", map_and_unmap, move || {
        // SAFETY: the size is not zero.
        let start = black_box(unsafe { ALLOCATOR.alloc(layout) });
        // SAFETY: allocated just now, with that layout.
        unsafe { ALLOCATOR.dealloc(start, layout) };
    })
}

fn time(work: &mut dyn FnMut()) -> Duration {
    let started = Instant::now();
    (0..CALLS).for_each(|_| work());
    started.elapsed()
}

/// Rounds in turns, each side first in every second one.
fn ratios() {
    let rounds =
        std::env::var("MAPWRIGHT_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2000_usize);
    println!("{:<28}{:>12}{:>12}{:>9}", "call", "raw, ns", "ours, ns", "ratio");
    for mut pair in pairs() {
        let mut of: [Vec<f64>; 3] = Default::default();
        for round in 0..rounds {
            let (raw, ours) = if round % 2 == 0 {
                let raw = time(&mut pair.raw);
                (raw, time(&mut pair.ours))
            } else {
                let ours = time(&mut pair.ours);
                (time(&mut pair.raw), ours)
            };
            let each = |time: Duration| time.as_nanos() as f64 / f64::from(CALLS);
            of[0].push(each(raw));
            of[1].push(each(ours));
            of[2].push(each(ours) / each(raw));
        }
        let [raw, ours, ratio] = of.map(|mut values| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        });
        println!("{:<28}{raw:>12.0}{ours:>12.0}{ratio:>9.3}", pair.name);
    }
}

fn wrappers(c: &mut Criterion) {
    // Asked to list or to test, criterion is called with other arguments.
    if std::env::args().any(|argument| argument == "--bench") {
        ratios();
    }
    for mut pair in pairs() {
        let mut group = c.benchmark_group(pair.name);
        group.bench_function("rustix", |b| b.iter(&mut pair.raw));
        group.bench_function("mapwright", |b| b.iter(&mut pair.ours));
        group.finish();
    }
}

criterion_group!(benches, wrappers);
criterion_main!(benches);
