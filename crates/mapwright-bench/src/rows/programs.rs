//! Programs as they are, under `mapwright run` and under the kernel.

use std::path::Path;

use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::size::show;

use super::{Sizes, task};
use crate::case::{Case, Figure, Shown, Want};
use crate::materials::Materials;
use crate::task::{Advice, How, Peer, Program, Task, Under, Work};

const KERNEL: &str = "the kernel";
const KERNEL_RANDOM: &str = "the kernel, Random";
const RUN: &str = "mapwright run";
const RUN_RANDOM: &str = "mapwright run, Random";
/// The blocks that `run` has by itself.
const BLOCK: u32 = 4096;
/// Processes at a time that map one file.
const PROCESSES: usize = 10;
/// What every table says.
const SAME: &str = "The same program in turns, by itself and under mapwright run, both with all they start in one memory group.";

/// All of them.
pub fn cases(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let mut cases = vec![
        start(sizes, materials, false)?,
        start(sizes, materials, true)?,
        resident(sizes, materials)?,
        scan(sizes, materials)?,
        random(sizes, materials)?,
    ];
    let text = materials.text(sizes.file / 4)?;
    cases.extend([false, true].map(|warm| search(&text, sizes.file / 4, warm)));
    cases.extend(databases(sizes, materials)?);
    cases.extend(together(sizes, materials)?);
    Ok(cases)
}

fn program(program: Program, under: Under) -> How {
    How::Program(program, under)
}

fn mapped(under: Under) -> How {
    program(Program::Mmap(Advice::None), under)
}

/// A limit for all of so many bytes and the tables for them.
fn room_for(len: u64) -> u64 {
    len + len / 8 + (64 << 20)
}

fn start(sizes: &Sizes, materials: &mut Materials, maps: bool) -> Result<Case> {
    const LEN: u64 = 16 << 20;
    let path = materials.another(LEN)?;
    let count = if sizes.quick { 3 } else { 20 };
    let (title, what) = match maps {
        true => ("run: start and end of a program that maps", "reads one page of a file that it maps"),
        false => ("run: start and end of a program", "maps nothing"),
    };
    let about = format!(
        "A small program that {what}, from its start to its end, {count} times. What is added is the difference of the medians; under run \
         each start is beside one without."
    );
    let mut case = Case::new(title, about, Shown::Each);
    for (name, under) in [(KERNEL, Under::Kernel), (RUN, Under::Run(BLOCK))] {
        case.entry(name, task(Work::Start { count, maps }, mapped(under), &path, LEN, room_for(LEN)), None);
    }
    case.goal(RUN, &[], Figure::Extra("added to a start, ms"), Want::AtMost(30.0));
    Ok(case)
}

fn resident(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.sample(sizes.file)?;
    let len = sizes.file / 4;
    let work = Work::Resident { passes: 4, loads: sizes.scaled(10_000_000) };
    let about = format!(
        "The first {} of a file, all in memory before the clock starts: summed up 4 times, then words loaded at random. {SAME}",
        show(len)
    );
    let mut case = Case::new("run: resident data", about, Shown::Throughput);
    for (name, under) in [(KERNEL, Under::Kernel), (RUN, Under::Run(BLOCK))] {
        case.entry(name, task(work.clone(), mapped(under), &path, len, room_for(sizes.file)), None);
    }
    case.goal(RUN, &[KERNEL], Figure::Speed, Want::AtLeast(1.0));
    case.goal(RUN, &[KERNEL], Figure::Extra("load, ns"), Want::AtMost(1.0));
    Ok(case)
}

fn scan(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.sample(sizes.file)?;
    let about = format!(
        "All of {}, cold, from its start; limit {}. Latencies are of steps of 1 MiB. {SAME}",
        show(sizes.file),
        show(sizes.limit)
    );
    let mut case = Case::new("run: sequential", about, Shown::Throughput);
    let entries = [
        (KERNEL, Advice::None, Under::Kernel),
        ("the kernel, Sequential", Advice::Sequential, Under::Kernel),
        (RUN, Advice::None, Under::Run(BLOCK)),
        ("mapwright run, Sequential", Advice::Sequential, Under::Run(BLOCK)),
        ("mapwright run, blocks of 64 KiB", Advice::None, Under::Run(64 << 10)),
    ];
    for (name, advice, under) in entries {
        let how = program(Program::Mmap(advice), under);
        case.entry(name, task(Work::Scan, how, &path, sizes.file, sizes.limit), Some(sizes.limit));
    }
    case.goal(RUN, &[KERNEL], Figure::Speed, Want::AtLeast(0.8));
    case.goal("mapwright run, Sequential", &["the kernel, Sequential"], Figure::Speed, Want::AtLeast(0.8));
    Ok(case)
}

fn random(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.sample(sizes.file)?;
    let count = sizes.limit_pages() * 5 / 4;
    let about = format!(
        "{count} random pages of {}, cold; limit {}, an eighth of that. {SAME}",
        show(sizes.file),
        show(sizes.limit)
    );
    let mut case = Case::new("run: random 4 KiB", about, Shown::Speed("pages"));
    let entries = [
        (KERNEL_RANDOM, Advice::Random, Under::Kernel),
        (RUN, Advice::None, Under::Run(BLOCK)),
        (RUN_RANDOM, Advice::Random, Under::Run(BLOCK)),
    ];
    for (name, advice, under) in entries {
        let how = program(Program::Mmap(advice), under);
        let work = Work::Pages { count, zipf: false };
        case.entry(name, task(work, how, &path, sizes.file, sizes.limit), Some(sizes.limit));
    }
    for ours in [RUN, RUN_RANDOM] {
        case.goal(ours, &[KERNEL_RANDOM], Figure::Speed, Want::AtLeast(0.8));
    }
    Ok(case)
}

fn search(path: &Path, len: u64, warm: bool) -> Case {
    let (title, how) = match warm {
        true => (
            "run: ripgrep, file in the page cache",
            "that is in the page cache before, so that the kernel has nothing to read",
        ),
        false => ("run: ripgrep", "cold"),
    };
    let about = format!(
        "rg --mmap --count for a fixed string in {} of text, {how}, from its start to its end; no memory limit but that of run, which has room \
         for all of it. {SAME}",
        show(len)
    );
    let mut case = Case::new(title, about, Shown::Throughput);
    for (name, under) in [(KERNEL, Under::Kernel), (RUN, Under::Run(BLOCK))] {
        let how = program(Program::Ripgrep, under);
        case.entry(name, task(Work::Search { warm }, how, path, len, room_for(len)), None);
    }
    if !warm {
        case.goal(RUN, &[KERNEL], Figure::Speed, Want::AtLeast(0.8));
    }
    case
}

/// Values of a page are two pages in either database: how large its file is, of the values' bytes.
const IN_A_DATABASE: u64 = 2;

fn databases(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let sample = materials.sample(sizes.file)?;
    let len = (sizes.file / 8).max(4 << 20);
    let file = len * IN_A_DATABASE;
    let mut cases = Vec::new();
    for (name, peer) in [("SQLite", Peer::Sqlite), ("LMDB", Peer::Lmdb)] {
        let folder = materials.folder(&format!("run-{}", name.to_lowercase()))?.folder(name)?;
        for in_memory in [true, false] {
            cases.push(database(sizes, &sample, &folder, len, file, (name, peer), in_memory));
        }
    }
    Ok(cases)
}

fn database(
    sizes: &Sizes,
    sample: &Path,
    folder: &Path,
    len: u64,
    file: u64,
    (name, peer): (&str, Peer),
    in_memory: bool,
) -> Case {
    let (limit, count, want) = match in_memory {
        true => (room_for(file + file / 4), sizes.scaled(2_000_000), 0.95),
        false => (file / 4, (file / 4 / PAGE).min(100_000), 0.9),
    };
    let (title, how) = match in_memory {
        true => (format!("run: {name} in memory"), "after all of them were read once".to_owned()),
        false => (format!("run: {name}, four times the limit"), format!("cold; limit {}", show(limit))),
    };
    let with = match peer {
        Peer::Lmdb => "LMDB (heed), opened for reading, with NO_READ_AHEAD,",
        _ => "SQLite (rusqlite), opened for reading, with mmap_size,",
    };
    let about = format!(
        "{count} random values of 4 KiB by {with} out of a database of about {}, {how}. A database that somebody has open for writing is the \
         kernel's under run, too. {SAME}",
        show(file)
    );
    let work = if in_memory { Work::Warm { count } } else { Work::Pages { count, zipf: false } };
    let mut case = Case::new(title, about, Shown::Speed("values"));
    for (name, under) in [(KERNEL, Under::Kernel), (RUN, Under::Run(BLOCK))] {
        let task = Task {
            sample: Some(sample.to_owned()),
            ..task(work.clone(), program(Program::Peer(peer), under), folder, len, limit)
        };
        case.entry(name, task, (!in_memory).then_some(limit));
    }
    case.goal(RUN, &[KERNEL], Figure::Speed, Want::AtLeast(want));
    case
}

fn together(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    let (all, part) = (sizes.file / 4, (sizes.file / 16).max(4 << 20));
    let (whole, small) = (materials.another(all)?, materials.another(part)?);
    let eighth = (part / 8).max(1 << 20);
    let mut cases = Vec::new();
    for (title, path, len, budget, group) in [
        ("run: ten processes, one file", &whole, all, room_for(all), all * 2 + (64 << 20)),
        // What ten processes have beside it is the same, however small the limit is.
        ("run: ten processes, an eighth of the file", &small, part, eighth, eighth + (64 << 20)),
    ] {
        let about = format!(
            "{PROCESSES} processes map one file of {} and read all of it twice at a time, each from a place of its own on; limit {}. Memory is the \
             most that the group had, page tables, page cache and server included, less what it had before; the group may have {}. {SAME}",
            show(len),
            show(budget),
            show(group)
        );
        let mut case = Case::new(title, about, Shown::Throughput);
        for (name, under) in [(KERNEL, Under::Kernel), (RUN, Under::Run(BLOCK))] {
            let work = Work::Together { processes: PROCESSES };
            case.entry(name, task(work, mapped(under), path, len, budget), Some(group));
        }
        if budget > len {
            case.goal(RUN, &[], Figure::Extra("memory, of the file"), Want::AtMost(1.05));
        }
        cases.push(case);
    }
    Ok(cases)
}
