//! Rows about single costs: writes, commits, faults, gets, memory, opening.

use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::size::show;
use mapwright_measure::ways::pager::Way;

use super::reads::{EXPLICIT, IN_THREAD, MMAP, THREAD};
use super::{Sizes, pager, task};
use crate::case::{Case, Figure, Shown, Want};
use crate::materials::Materials;
use crate::task::{Advice, How, Peer, Task, Work};

pub fn update(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let len = sizes.file / 4;
    let (path, limit) = (materials.another(len)?, (len / 8).max(1 << 20));
    let count = len / PAGE / 10;
    let about = format!(
        "1 added to a word of {count} random pages (a tenth) of {}, cold, then made durable, on one thread; limit {}. What is in \
         the file afterwards is read back and checked.",
        show(len),
        show(limit)
    );
    let mut case = Case::new("Random writes, then a flush", about, Shown::Speed("pages"));
    let mut add = |name: &str, batch, how| {
        let task = task(Work::Update { count }, how, &path, len, limit);
        case.entry(name, Task { batch, ..task }, Some(limit));
    };
    let kernel = ["memmap2, no advice + msync", "memmap2, Random + msync"];
    add(kernel[0], 1, How::Mmap(Advice::None));
    add(kernel[1], 1, How::Mmap(Advice::Random));
    add(THREAD, 1, pager(Way::Thread));
    add(IN_THREAD, 1, pager(Way::InThread));
    add(EXPLICIT, 64, pager(Way::Explicit));
    for ours in [THREAD, IN_THREAD, EXPLICIT] {
        case.goal(ours, &kernel, Figure::Speed, Want::AtLeast(1.2));
    }
    Ok(vec![case])
}

pub fn commits(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    const MMAP: &str = "memmap2 + msync";
    const ATOMIC: &str = "mapwright, commit";
    let len = (sizes.file / 16).clamp(4 << 20, 256 << 20);
    let (path, sample) = (materials.another(len)?, materials.sample(sizes.file)?);
    let mut cases = Vec::new();
    for (dirty, count) in [(1, 400), (16, 400), (256, 100), (4096, 12)] {
        let folder = materials.folder(&format!("commits-{dirty}"))?;
        let dirty = if sizes.quick { dirty.min(len / PAGE / 4) } else { dirty };
        let count = sizes.scaled(count).max(2);
        let about = format!(
            "1 added to a word of {dirty} random page(s) of {} that are all in memory, then a commit, {count} times on one thread; \
             databases hold the pages as values. No memory limit. What is in the file afterwards is read back and checked.",
            show(len)
        );
        let mut case = Case::new(format!("Commits of {dirty} pages"), about, Shown::Speed("commits"));
        let mut add = |name: &str, path: &std::path::Path, how| {
            let task = task(Work::Commits { dirty, count }, how, path, len, 2 * len + (64 << 20));
            case.entry(name, Task { batch: dirty as usize, sample: Some(sample.clone()), ..task }, None);
        };
        add(MMAP, &path, How::Mmap(Advice::None));
        add("mapwright, flush", &path, pager(Way::Explicit));
        add(ATOMIC, &path, How::Atomic(Way::Explicit));
        // What was changed through slices is logged as whole pages.
        add("mapwright, commit of slices", &path, How::Atomic(Way::Thread));
        let databases =
            [("LMDB (heed)", Peer::Lmdb), ("redb", Peer::Redb), ("SQLite (rusqlite)", Peer::Sqlite)];
        for (name, peer) in databases {
            add(name, &folder.folder(name)?, How::Peer(peer));
        }
        case.goal(ATOMIC, &[MMAP], Figure::Speed, Want::AtLeast(0.7));
        if dirty <= 16 {
            case.goal(ATOMIC, &databases.map(|(name, _)| name), Figure::Speed, Want::AtLeast(1.5));
        }
        case.goal(ATOMIC, &[], Figure::Extra("commit of nothing, ns"), Want::AtMost(5000.0));
        cases.push(case);
    }
    Ok(cases)
}

pub fn faults(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    const LEN: u64 = 16 << 20;
    const BLOCK: u64 = 64 << 10;
    // Too small for regions: pages that are taken out of the page tables behind the engine's back must not be put on huge ones
    // meanwhile, and a fault of a whole region is not what is compared here.
    const BUDGET: u64 = LEN + (8 << 20);
    let path = materials.another(LEN)?;
    let about = format!(
        "Touches of {} that are in memory and not mapped, one in every 64 KiB (the kernel maps the 16 pages around a fault on a \
         file) or in every page; and round trips between two threads that sleep until the other wakes them, by eventfd(2) and \
         futex(2): the least that a fault served by another thread can cost here. A signal is the least that a fault served in the \
         thread can cost.",
        show(LEN)
    );
    let mut case = Case::new("Faults", about, Shown::Median);
    let passes = sizes.scaled(50).max(1);
    let mut add = |name: &str, work, how| case.entry(name, task(work, how, &path, LEN, BUDGET), None);
    let wide = Work::Faults { stride: BLOCK, passes };
    let kernel = "memmap2, minor fault, 64 KiB";
    let [in_thread, thread] =
        ["mapwright, in-thread, blocks of 64 KiB", "mapwright, pager thread, blocks of 64 KiB"];
    add(kernel, wide.clone(), How::Mmap(Advice::None));
    add(in_thread, wide.clone(), How::Pager(Way::InThread, BLOCK as usize));
    add(thread, wide, How::Pager(Way::Thread, BLOCK as usize));
    let narrow = Work::Faults { stride: PAGE, passes: passes.div_ceil(4) };
    add(IN_THREAD, narrow.clone(), pager(Way::InThread));
    add(THREAD, narrow, pager(Way::Thread));
    add("eventfd, round trip", Work::Wake { count: sizes.scaled(50_000) }, How::Eventfd);
    add("futex, round trip", Work::Wake { count: sizes.scaled(50_000) }, How::Futex);
    add("signal, delivered and returned from", Work::Wake { count: sizes.scaled(50_000) }, How::Signal);
    case.goal(in_thread, &[kernel], Figure::Median, Want::AtMost(1.5));
    case.goal(thread, &["eventfd, round trip"], Figure::Median, Want::AtMost(1.3));
    Ok(vec![case])
}

pub fn get(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    const LEN: u64 = 16 << 20;
    let path = materials.another(LEN)?;
    let work = Work::Hot { count: sizes.scaled(10_000_000) };
    let about = "A resident page, got, pinned, one byte of it read, let go; timed by the thousand. Two threads each have a page \
                 of their own. memmap2 shows what two threads of this machine are worth when they share nothing.";
    let mut case = Case::new("A get of a resident page", about, Shown::Speed("gets"));
    for (name, how) in [("memmap2", How::Mmap(Advice::None)), ("mapwright", pager(Way::Explicit))] {
        for threads in [1, 2] {
            let task = task(work.clone(), how, &path, LEN, 4 * LEN);
            case.entry(
                format!("{name}, {threads} thread{}", if threads == 1 { "" } else { "s" }),
                Task { threads, ..task },
                None,
            );
        }
    }
    case.goal("mapwright, 1 thread", &[], Figure::Median, Want::AtMost(20.0));
    case.goal("mapwright, 2 threads", &["mapwright, 1 thread"], Figure::Speed, Want::AtLeast(1.8));
    Ok(vec![case])
}

pub fn memory(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let path = materials.sample(sizes.file)?;
    let about = format!(
        "{} scanned, budget {}. Anonymous memory of the process since the pager was made, and frames of shared memory: what they \
         are more than the budget. Allowed are 0.4 % of the budget and 4 bytes for each block that is not resident.",
        show(sizes.file),
        show(sizes.limit)
    );
    let mut case = Case::new("Memory beyond the budget", about, Shown::Extra("beyond the budget, KiB"));
    for (name, way) in [(THREAD, Way::Thread), (IN_THREAD, Way::InThread)] {
        case.entry(name, task(Work::Memory, pager(way), &path, sizes.file, sizes.limit), Some(sizes.limit));
        case.goal(name, &[], Figure::Extra("beyond, of what is allowed"), Want::AtMost(1.0));
    }
    Ok(vec![case])
}

pub fn opening(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    const SPARSE: u64 = 1 << 40;
    let sparse = materials.sparse(SPARSE)?;
    let about = "A sparse file of 1 TiB, mapped and unmapped; the median of many.";
    let mut large = Case::new("Opening a file of 1 TiB", about, Shown::Median);
    let work = Work::Open { count: sizes.scaled(2000) };
    large.entry(MMAP, task(work.clone(), How::Mmap(Advice::None), &sparse, SPARSE, 64 << 20), None);
    for (name, way) in [(THREAD, Way::Thread), (IN_THREAD, Way::InThread)] {
        large.entry(name, task(work.clone(), pager(way), &sparse, SPARSE, 64 << 20), None);
        large.goal(name, &[], Figure::Median, Want::AtMost(1e6));
    }

    let sample = materials.sample(sizes.file)?;
    let count = sizes.scaled(10_000).min(sizes.file / PAGE);
    let pieces = materials.pieces("small-files", &sample, count, PAGE)?;
    let about = format!("{count} files of 4 KiB, all in the page cache: opened, summed up and closed.");
    let mut small = Case::new("Many small files", about, Shown::Speed("files"));
    let whole = "std::fs::read";
    for (name, how) in [
        (whole, How::FsRead),
        ("memmap2", How::Mmap(Advice::None)),
        ("mapwright, as it chooses", pager(Way::Thread)),
    ] {
        small.entry(name, task(Work::SmallFiles, how, &pieces, PAGE, 64 << 20), None);
    }
    small.goal("mapwright, as it chooses", &[whole], Figure::Time, Want::AtMost(1.1));
    Ok(vec![large, small])
}
