//! The small costs, each beside the kernel's own way: `cargo bench -p mapwright-bench`. Ratios inside one group count; absolute
//! times drift with the machine. `MAPWRIGHT_BENCH_BYTES` sets the size of the resident file (default 256 MiB).

#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mapwright::engine::Engine;
use mapwright::engine::file::{FileSpec, Keep};
use mapwright::engine::host::Host;
use mapwright::stores::{FileOptions, FileStore};
use mapwright::{Advice, FaultMode, FrameKind, Map, MapOptions, Pager, Strategy};
use mapwright_sys::window::Reader;

const PAGE: u64 = 4096;

/// A file that is removed at the end.
struct Sample(PathBuf, u64);

impl Sample {
    fn new(name: &str, len: u64) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let mut file =
            std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&path).expect("create"));
        let mut random = Random(len | 1);
        for _ in 0..len / 8 {
            file.write_all(&random.next().to_le_bytes()).expect("write");
        }
        file.into_inner().expect("flush").sync_all().expect("sync");
        Self(path, len)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |total, word| total.wrapping_add(u64::from_le_bytes(*word)))
}

fn loads(bytes: &[u8], random: &mut Random, count: u64) -> u64 {
    let words = bytes.len() as u64 / 8;
    (0..count).fold(0, |total, _| {
        let at = (random.next() % words * 8) as usize;
        let word = bytes[at..at + 8].try_into().unwrap_or_default();
        u64::wrapping_add(total, u64::from_le_bytes(word))
    })
}

fn paged(path: &Path, budget: u64, mode: FaultMode) -> Map {
    let pager = Pager::builder().budget(budget).build().expect("pager");
    MapOptions::new().pager(&pager).strategy(Strategy::Pager).fault_mode(mode).open(path).expect("open")
}

fn kernel_mapped(path: &Path) -> memmap2::Mmap {
    let file = std::fs::File::open(path).expect("open");
    // SAFETY: the sample is this program's own, and nobody changes it.
    unsafe { memmap2::MmapOptions::new().populate().map(&file) }.expect("mmap")
}

fn resident(c: &mut Criterion) {
    let len = std::env::var("MAPWRIGHT_BENCH_BYTES").ok().and_then(|v| v.parse().ok()).unwrap_or(256 << 20);
    let sample = Sample::new("resident", len);
    let ours = paged(&sample.0, len + len / 4 + (64 << 20), FaultMode::Thread);
    let kernel = kernel_mapped(&sample.0);
    assert_eq!(sum(&ours), sum(&kernel)); // everything is resident after this
    let mut group = c.benchmark_group("resident-sum");
    group.throughput(Throughput::Bytes(sample.1)).sample_size(10);
    group.bench_function("kernel", |b| b.iter(|| sum(black_box(&kernel))));
    group.bench_function("mapwright", |b| b.iter(|| sum(black_box(&ours))));
    group.finish();
    let mut group = c.benchmark_group("resident-random-8-bytes");
    group.throughput(Throughput::Elements(100_000)).sample_size(20);
    group.bench_function("kernel", |b| b.iter(|| loads(black_box(&kernel), &mut Random(7), 100_000)));
    group.bench_function("mapwright", |b| b.iter(|| loads(black_box(&ours), &mut Random(7), 100_000)));
    group.finish();
    let mut group = c.benchmark_group("get-resident");
    let pages = sample.1 / PAGE;
    group.bench_function("one-page", |b| b.iter(|| black_box(ours.get(4096..8192).expect("get")[0])));
    let mut random = Random(9);
    group.bench_function("random-page", |b| {
        b.iter(|| {
            let at = random.next() % pages * PAGE;
            black_box(ours.get(at..at + PAGE).expect("get").len())
        });
    });
    group.finish();
}

/// Touches every page of `bytes`, `stride` pages apart; the time for one touch.
fn touch(bytes: &[u8], stride: usize) -> Duration {
    let started = Instant::now();
    let touched =
        bytes.iter().step_by(stride * PAGE as usize).fold(0u64, |total, byte| total + u64::from(*byte));
    black_box(touched);
    started.elapsed() / (bytes.len() / (stride * PAGE as usize)) as u32
}

/// Faults on pages that are cached but not mapped. The kernel maps 16 pages around a fault on a file, so one page in 16 is
/// touched there; an anonymous page takes one fault each, and is zeroed.
fn cached_fault(c: &mut Criterion) {
    const LEN: u64 = 16 << 20;
    let sample = Sample::new("faults", LEN);
    let mut group = c.benchmark_group("cached-fault");
    group.sample_size(20);
    // Read page by page: in large folios, as it was written, many pages would be mapped by one fault.
    let file = std::fs::File::open(&sample.0).expect("open");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("drop caches");
    // SAFETY: the sample is this program's own, and nobody changes it.
    let kernel = unsafe { memmap2::Mmap::map(&file) }.expect("mmap");
    kernel.advise(memmap2::Advice::Random).expect("advise");
    touch(&kernel, 1);
    group.bench_function("kernel-file", |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| {
                    // SAFETY: a shared file mapping keeps its contents.
                    unsafe { kernel.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.expect("advise");
                    touch(&kernel, 16)
                })
                .sum()
        });
    });
    group.bench_function("kernel-anonymous", |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| {
                    let mut memory = memmap2::MmapMut::map_anon(LEN as usize).expect("map");
                    let started = Instant::now();
                    memory.iter_mut().step_by(PAGE as usize).for_each(|byte| *byte = 1);
                    started.elapsed() / (LEN / PAGE) as u32
                })
                .sum()
        });
    });
    for (name, mode, block_size) in [
        ("mapwright-in-thread", FaultMode::InThread, PAGE),
        ("mapwright-in-thread-64k", FaultMode::InThread, 16 * PAGE),
        ("mapwright-thread", FaultMode::Thread, PAGE),
    ] {
        // Too small for regions, which the engine would collapse while it does not know that they are unmapped.
        let engine = Engine::open(Arc::new(Host::new()), LEN + (8 << 20)).expect("engine");
        let store = Arc::new(FileStore::open(&sample.0, &FileOptions::default()).expect("open"));
        let deadline = Duration::from_secs(30);
        let advice = Advice::Random;
        let frames = FrameKind::Auto;
        let spec = FileSpec {
            store,
            writable: false,
            mode,
            frames,
            block_size,
            reserve: 0,
            deadline,
            advice,
            keep: Keep::Flushed,
        };
        let file = Engine::open_file(&engine, spec).expect("open");
        let bytes =
            Reader::claim(file.frames().memory().expect("memory")).expect("reader").fix(0..LEN as usize);
        touch(&bytes, 1); // fills
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        file.frames().unmap(std::slice::from_ref(&(0..LEN))).expect("unmap");
                        touch(&bytes, 1)
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

fn small_file(c: &mut Criterion) {
    let sample = Sample::new("small", PAGE);
    let mut group = c.benchmark_group("small-file-open-sum-close");
    group.bench_function("std-fs-read", |b| {
        b.iter(|| sum(&std::fs::read(black_box(&sample.0)).expect("read")))
    });
    group.bench_function("mapwright", |b| b.iter(|| sum(&Map::open(black_box(&sample.0)).expect("open"))));
    group.bench_function("mmap", |b| b.iter(|| sum(&kernel_mapped(black_box(&sample.0)))));
    group.finish();
}

/// Batches of 64 random pages of a file that is not in memory: the disk's own rate, the kernel's mmap page by page, ours.
fn cold_batches(c: &mut Criterion) {
    const LEN: u64 = 1 << 30;
    const BATCH: usize = 64;
    let sample = Sample::new("cold", LEN);
    let mut group = c.benchmark_group("cold-batch-of-64");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(60);
    let store = FileStore::open(&sample.0, &FileOptions { write: false, direct: true }).expect("open");
    let mut random = Random(77);
    let mut pages = move || (0..BATCH).map(|_| random.next() % (LEN / PAGE) * PAGE).collect::<Vec<_>>();
    let mut buffers: Vec<_> =
        (0..BATCH).map(|_| mapwright_sys::buffer::Buffer::zeroed(PAGE as usize)).collect();
    group.bench_function("disk-io_uring", |b| {
        b.iter_batched(
            &mut pages,
            |pages| {
                use mapwright::stores::{Read, Store};
                let mut reads: Vec<_> = pages
                    .iter()
                    .zip(&mut buffers)
                    .map(|(&offset, buf)| Read { offset, buf: &mut buf[..] })
                    .collect();
                store.read_many(&mut reads, &mut |_, bytes, _| _ = black_box(bytes[0]));
            },
            BatchSize::PerIteration,
        );
    });
    let map = paged(&sample.0, 64 << 20, FaultMode::Thread);
    group.bench_function("mapwright-get_many", |b| {
        b.iter_batched(
            &mut pages,
            |pages| {
                let ranges: Vec<_> = pages.into_iter().map(|page| page..page + PAGE).collect();
                map.get_many(&ranges)
                    .expect("get_many")
                    .iter()
                    .fold(0u64, |total, page| total + u64::from(page[0]))
            },
            BatchSize::PerIteration,
        );
    });
    let file = std::fs::File::open(&sample.0).expect("open");
    // SAFETY: the sample is this program's own, and nobody changes it.
    let kernel = unsafe { memmap2::Mmap::map(&file) }.expect("mmap");
    kernel.advise(memmap2::Advice::Random).expect("advise");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("drop caches");
    group.bench_function("mmap-random", |b| {
        b.iter_batched(
            &mut pages,
            |pages| pages.into_iter().fold(0u64, |total, page| total + u64::from(kernel[page as usize])),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(goals, resident, cached_fault, small_file, cold_batches);
criterion_main!(goals);
