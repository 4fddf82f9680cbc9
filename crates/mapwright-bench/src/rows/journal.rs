//! What of the row of commits is about the journal alone: commits beside checkpoints, and recovery.

use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::size::show;

use super::{Sizes, task};
use crate::case::{Case, Figure, Shown, Want};
use crate::materials::Materials;
use crate::task::{How, Task, Work};

pub fn checkpoints(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    const OURS: &str = "mapwright, commits of one page";
    let len = (sizes.file / 16).clamp(4 << 20, 256 << 20);
    let (path, rounds) = (materials.another(len)?, if sizes.quick { 1 } else { 12 });
    let about = format!(
        "A transaction of 32 MiB to random pages of {}, then commits of one page each while a checkpoint brings the 32 MiB to the \
         file, and as many when it has, {rounds} times.",
        show(len)
    );
    let mut case =
        Case::new("Commits beside a checkpoint", about, Shown::Extra("p99 beside a checkpoint, µs"));
    case.entry(OURS, task(Work::Checkpoints { rounds }, How::Journal, &path, len, 0), None);
    case.goal(OURS, &[], Figure::Extra("p99 beside a checkpoint, of that without"), Want::AtMost(3.0));
    Ok(case)
}

pub fn recovery(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    const BUFFER: usize = 1 << 20;
    const CHECKED: &str = "mapwright, read and checked";
    let len = (sizes.file / 16).clamp(4 << 20, 256 << 20);
    let path = materials.another(len)?;
    let about = format!(
        "A journal of {} in transactions of 1 MiB, left by a program that was killed, cold: read from its start to its end; read and \
         checked, as before every recovery; and the whole recovery, which also writes the {} pages of the file that were changed, and \
         syncs.",
        show(len),
        len / PAGE
    );
    let mut case = Case::new("Recovery", about, Shown::Throughput);
    let mut add = |name: &str, recovers, how| {
        let task = Task { batch: 1, ..task(Work::Journal { bytes: len, recovers }, how, &path, len, 0) };
        case.entry(name, task, None);
    };
    let disk = ["read(2), 1 MiB", "O_DIRECT, 1 MiB"];
    add(disk[0], false, How::Read(BUFFER));
    add(disk[1], false, How::Direct(BUFFER));
    add(CHECKED, false, How::Journal);
    add("mapwright, recovered", true, How::Journal);
    case.goal(CHECKED, &disk, Figure::Speed, Want::AtLeast(0.5));
    Ok(case)
}
