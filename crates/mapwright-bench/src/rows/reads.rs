//! Rows that read.

use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::size::show;
use mapwright_measure::ways::pager::Way;

use super::{Sizes, pager, task};
use crate::case::{Case, Figure, Shown, Want};
use crate::materials::Materials;
use crate::task::{Advice, How, Peer, Task, Work};

/// Names that several rows use.
pub const THREAD: &str = "mapwright, pager thread";
pub const IN_THREAD: &str = "mapwright, in-thread";
pub const EXPLICIT: &str = "mapwright, explicit";
pub const MMAP_RANDOM: &str = "memmap2, Random";
pub const MMAP: &str = "memmap2, no advice";

pub fn resident(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    // No limit: the file and a little more fit the budget.
    let budget = sizes.file + sizes.file / 8 + (64 << 20);
    let work = Work::Resident { passes: 2, loads: sizes.scaled(10_000_000) };
    let about = format!(
        "{} that are all in memory before the clock starts, on one thread: summed up twice, then words loaded at random.",
        show(sizes.file)
    );
    let mut case = Case::new("A resident file", about, Shown::Throughput);
    let mut add =
        |name: &str, how| case.entry(name, task(work.clone(), how, &path, sizes.file, budget), None);
    add("memmap2, populated", How::Mmap(Advice::PopulateRead));
    add(THREAD, pager(Way::Thread));
    add("mapwright, blocks of 2 MiB", How::Pager(Way::Thread, 2 << 20));
    for ours in [THREAD, "mapwright, blocks of 2 MiB"] {
        case.goal(ours, &["memmap2, populated"], Figure::Speed, Want::AtLeast(1.0));
        // 1.1 times the speed is 0.91 of the time.
        case.goal(ours, &["memmap2, populated"], Figure::Extra("load, ns"), Want::AtMost(1.0 / 1.1));
    }
    Ok(vec![case])
}

pub fn scan(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let about = format!(
        "All of {}, cold, from its start; limit {}. Latencies are of steps of 1 MiB.",
        show(sizes.file),
        show(sizes.limit)
    );
    let mut case = Case::new("Cold sequential scan", about, Shown::Throughput);
    let kernel = [
        (MMAP, How::Mmap(Advice::None)),
        ("memmap2, Sequential", How::Mmap(Advice::Sequential)),
        ("memmap2, WillNeed", How::Mmap(Advice::WillNeed)),
        ("memmap2, PopulateRead in windows", How::Mmap(Advice::PopulateRead)),
        ("read(2), 64 KiB", How::Read(64 << 10)),
        ("read(2), 256 KiB", How::Read(256 << 10)),
        ("read(2), 1 MiB", How::Read(1 << 20)),
        ("read(2), 4 MiB", How::Read(4 << 20)),
    ];
    let context = [("mmap-io, Sequential", How::MmapIo), ("rayon over memmap2", How::Rayon)];
    let ours = [
        (THREAD, pager(Way::Thread)),
        (IN_THREAD, pager(Way::InThread)),
        ("mapwright, in-thread, blocks of 64 KiB", How::Pager(Way::InThread, 64 << 10)),
        (EXPLICIT, pager(Way::Explicit)),
    ];
    for (name, how) in kernel.into_iter().chain(context).chain(ours) {
        case.entry(name, task(Work::Scan, how, &path, sizes.file, sizes.limit), Some(sizes.limit));
    }
    let kernel = kernel.map(|(name, _)| name);
    for (name, _) in ours {
        case.goal(name, &kernel, Figure::Speed, Want::AtLeast(1.1));
        case.goal(name, &kernel, Figure::Cpu, Want::AtMost(1.0));
    }
    Ok(vec![case])
}

pub fn random(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let count = sizes.limit_pages() * 5 / 4;
    let mut cases = Vec::new();
    for (threads, unadvised) in [(1, 3.0), (4, 4.5), (16, 7.0)] {
        let about = format!(
            "{count} random pages of {}, cold, without hints, on {threads} thread(s); limit {}. memmap2 without advice reads an \
             eighth of the pages, or it would take most of the run.",
            show(sizes.file),
            show(sizes.limit)
        );
        let title = format!("Random 4 KiB, {threads} thread{}", if threads == 1 { "" } else { "s" });
        let mut case = Case::new(title, about, Shown::Speed("pages"));
        let mut add = |name: &str, count, how| {
            let task = task(Work::Pages { count, zipf: false }, how, &path, sizes.file, sizes.limit);
            case.entry(name, Task { threads, ..task }, Some(sizes.limit));
        };
        add(MMAP, count / 8, How::Mmap(Advice::None));
        add(MMAP_RANDOM, count, How::Mmap(Advice::Random));
        add(THREAD, count, pager(Way::Thread));
        add(IN_THREAD, count, pager(Way::InThread));
        for ours in [THREAD, IN_THREAD] {
            case.goal(ours, &[MMAP_RANDOM], Figure::Speed, Want::AtLeast(1.0));
            case.goal(ours, &[MMAP], Figure::Speed, Want::AtLeast(unadvised));
        }
        cases.push(case);
    }
    Ok(cases)
}

pub fn batches(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let count = sizes.limit_pages() * 5 / 4;
    let about = format!(
        "{count} random pages of {}, cold, on one thread; limit {}. io_uring and fio read past the page cache and keep that many \
         reads in flight; \"drained\" waits for a batch before it asks for the next, as get_many does.",
        show(sizes.file),
        show(sizes.limit)
    );
    let mut case = Case::new("Random 4 KiB in batches", about, Shown::Speed("pages"));
    let mut add = |name: String, batch, how| {
        let task = task(Work::Pages { count, zipf: false }, how, &path, sizes.file, sizes.limit);
        case.entry(name, Task { batch, ..task }, Some(sizes.limit));
    };
    add(MMAP_RANDOM.to_owned(), 1, How::Mmap(Advice::Random));
    for depth in [64, 256] {
        add(format!("io_uring, {depth}"), depth, How::Ring { drained: false });
        add(format!("io_uring, {depth}, drained"), depth, How::Ring { drained: true });
        add(format!("fio, {depth}"), depth, How::Fio);
        add(format!("{EXPLICIT}, {depth}"), depth, pager(Way::Explicit));
    }
    for depth in [64, 256] {
        let ours = format!("{EXPLICIT}, {depth}");
        case.goal(&ours, &[MMAP_RANDOM], Figure::Speed, Want::AtLeast(5.0));
        case.goal(&ours, &[&format!("io_uring, {depth}")], Figure::Speed, Want::AtLeast(0.95));
        case.goal(&ours, &[&format!("fio, {depth}")], Figure::Speed, Want::AtLeast(0.95));
    }
    Ok(vec![case])
}

pub fn zipf(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let len = sizes.file / 4;
    let budget = len / 4;
    // Twice as many as there are pages: what is popular is known, and the budget is full, for most of the time.
    let count = len / PAGE * 2;
    let about = format!(
        "{count} zipf-distributed pages (skew 0.99) of {}, cold, on one thread; limit {}, a quarter of that. Hits are touches that \
         did not have the disk read: of the kernel all but its major faults, of mapwright all but the pages filled on demand. \
         memmap2 without advice reads the first eighth of the pages, or it would take most of the run.",
        show(len),
        show(budget)
    );
    let mut case = Case::new("Zipf 0.99", about, Shown::Speed("pages"));
    let mut add = |name: &str, count, batch, how| {
        let task = task(Work::Pages { count, zipf: true }, how, &path, len, budget);
        case.entry(name, Task { batch, ..task }, Some(budget));
    };
    add(MMAP, count / 8, 1, How::Mmap(Advice::None));
    add(MMAP_RANDOM, count, 1, How::Mmap(Advice::Random));
    add(THREAD, count, 1, pager(Way::Thread));
    add(IN_THREAD, count, 1, pager(Way::InThread));
    add(EXPLICIT, count, 64, pager(Way::Explicit));
    for ours in [THREAD, IN_THREAD, EXPLICIT] {
        case.goal(ours, &[MMAP, MMAP_RANDOM], Figure::Speed, Want::AtLeast(1.3));
    }
    Ok(vec![case])
}

pub fn beside(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let len = sizes.file / 4;
    let limit = len / 8;
    let count = limit / PAGE;
    let about = format!(
        "{count} zipf-distributed pages of one half of {}, after as many to warm up, by themselves and beside a thread that scans \
         the other half again and again; limit {}. Misses are those of the zipf thread alone: for the kernel its major faults \
         (ru_majflt, field 12 of /proc/thread-self/stat), for mapwright the pages that it had the disk read (read_bytes of \
         /proc/thread-self/io; its misses are O_DIRECT reads of one page in the thread that faults or calls).",
        show(len),
        show(limit)
    );
    let mut case = Case::new("A scan beside zipf", about, Shown::Speed("pages"));
    for (name, batch, how) in [
        (MMAP_RANDOM, 1, How::Mmap(Advice::Random)),
        (IN_THREAD, 1, pager(Way::InThread)),
        (EXPLICIT, 16, pager(Way::Explicit)),
    ] {
        let (alone, together) = (format!("{name}, alone"), format!("{name}, beside a scan"));
        for (name, beside_scan) in [(&alone, false), (&together, true)] {
            let task = task(Work::Zipf { count, beside_scan }, how, &path, len, limit);
            case.entry(name, Task { batch, ..task }, Some(limit));
        }
        case.goal(&together, &[&alone], Figure::Hits, Want::AtLeast(0.9));
    }
    Ok(vec![case])
}

pub fn databases(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let len = sizes.file / 4;
    let limit = len / 8;
    let count = limit / PAGE * 5 / 4;
    let folder = materials.folder("databases")?;
    let about = format!(
        "{count} random values of 4 KiB out of {} (the pages of the sample, by number), cold, in batches of 64 on one thread; limit \
         {}, caches of databases included. Databases do more than this for their users: context, no goals.",
        show(len),
        show(limit)
    );
    let mut case = Case::new("Databases", about, Shown::Speed("values"));
    let mut add = |name: &str, folder: &std::path::Path, budget, how| {
        let task = task(Work::Pages { count, zipf: false }, how, folder, len, budget);
        case.entry(name, Task { batch: 64, sample: Some(path.clone()), ..task }, Some(limit));
    };
    add(MMAP_RANDOM, &path, limit, How::Mmap(Advice::Random));
    add("mmap-io, Random", &path, limit, How::MmapIo);
    add(EXPLICIT, &path, limit, pager(Way::Explicit));
    for (name, peer) in [
        ("LMDB (heed)", Peer::Lmdb),
        ("redb", Peer::Redb),
        ("SQLite (rusqlite)", Peer::Sqlite),
        ("RocksDB", Peer::Rocksdb),
    ] {
        // Half of the limit: they need memory beside their caches, which nothing charges to them.
        add(name, &folder.folder(name)?, limit / 2, How::Peer(peer));
    }
    Ok(vec![case])
}
