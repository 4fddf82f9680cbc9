//! How costs grow: with the file, the budget, the threads and the number of mappings. No goals: lines to look at.

use mapwright_measure::failure::Result;
use mapwright_measure::pages::PAGE;
use mapwright_measure::size::show;
use mapwright_measure::ways::pager::Way;

use super::reads::{EXPLICIT, IN_THREAD, MMAP_RANDOM};
use super::{Sizes, pager, task};
use crate::case::{Case, Entry, Shown};
use crate::materials::Materials;
use crate::task::{Advice, How, Task, Work};

/// The largest file is so many times the sample; the smallest a quarter of it.
pub const LARGEST: u64 = 4;

const GIB: f64 = (1u64 << 30) as f64;

pub fn growth(sizes: &Sizes, materials: &mut Materials) -> Result<Vec<Case>> {
    Ok(vec![
        files(sizes, materials)?,
        budgets(sizes, materials)?,
        threads(sizes, materials)?,
        mappings(sizes, materials)?,
    ])
}

fn ways() -> [(&'static str, usize, How); 3] {
    [
        (MMAP_RANDOM, 1, How::Mmap(Advice::Random)),
        (IN_THREAD, 1, pager(Way::InThread)),
        (EXPLICIT, 64, pager(Way::Explicit)),
    ]
}

fn case(title: &str, about: String, over: &'static str, shown: Shown) -> Case {
    Case { over: Some(over), ..Case::new(title, about, shown) }
}

fn add(case: &mut Case, name: &str, x: f64, limit: u64, task: Task) {
    case.entries.push(Entry { name: name.to_owned(), x: Some(x), task, limit: Some(limit) });
}

fn files(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.another(sizes.file * LARGEST)?;
    let count = sizes.limit_pages() / 4;
    let limit = sizes.limit;
    let about = format!(
        "{count} random pages, cold, on one thread, of a file from {} to {}; limit {} throughout.",
        show(sizes.file / 4),
        show(sizes.file * LARGEST),
        show(limit)
    );
    let mut case = case("Growth of the file", about, "file, GiB", Shown::Each);
    for doubled in 0..=4 {
        let len = (sizes.file / 4) << doubled;
        for (name, batch, how) in ways() {
            let task = task(Work::Pages { count, zipf: false }, how, &path, len, limit);
            add(&mut case, name, len as f64 / GIB, limit, Task { batch, ..task });
        }
    }
    Ok(case)
}

fn budgets(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.sample(sizes.file)?;
    let len = sizes.file / 4;
    let count = len / PAGE / 3;
    let about = format!(
        "{count} zipf-distributed pages of {}, cold, on one thread; limit a half to a 64th of the file. The memory group has \
         12 MiB and 2 % more for the process itself: much, for the kernel's page cache, where the limit is small.",
        show(len)
    );
    let mut case = case("Growth of the budget", about, "limit, % of the file", Shown::Each);
    for part in [64, 32, 16, 8, 4, 2] {
        let limit = (len / part).max(128 << 10);
        for (name, batch, how) in ways() {
            let task = task(Work::Pages { count, zipf: true }, how, &path, len, limit);
            // What a batch pins must fit several times.
            let batch = batch.min((limit / PAGE / 8) as usize);
            add(&mut case, name, 100.0 / part as f64, limit, Task { batch, ..task });
        }
    }
    Ok(case)
}

fn threads(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let path = materials.sample(sizes.file)?;
    let (count, limit) = (sizes.limit_pages() / 4, sizes.limit);
    let about = format!(
        "{count} random pages of {}, cold, shared by 1 to 16 threads; limit {}.",
        show(sizes.file),
        show(limit)
    );
    let mut case = case("Growth of the threads", about, "threads", Shown::Speed("pages"));
    for threads in [1, 2, 4, 8, 16] {
        for (name, batch, how) in ways() {
            let task = task(Work::Pages { count, zipf: false }, how, &path, sizes.file, limit);
            add(&mut case, name, threads as f64, limit, Task { batch, threads, ..task });
        }
    }
    Ok(case)
}

fn mappings(sizes: &Sizes, materials: &mut Materials) -> Result<Case> {
    let sample = materials.sample(sizes.file)?;
    let total = sizes.file / 16;
    // What a pager keeps of a thousand files is more than a very small budget.
    let (count, limit) = (sizes.limit_pages() / 8, (total / 4).max(8 << 20));
    let about = format!(
        "{count} random pages of 1 to 1,000 files of {} together, each mapped by itself, all in one pager, cold, on one thread; \
         opening them included; limit {}.",
        show(total),
        show(limit)
    );
    let mut case = case("Growth of the mappings", about, "mappings", Shown::Each);
    for files in [1, 10, 100, 1000] {
        let len = (total / files / PAGE * PAGE).max(PAGE);
        let folder = materials.pieces(&format!("pieces-{files}"), &sample, files, len)?;
        for (name, _, how) in &ways()[..2] {
            let task = task(Work::ManyMaps { count }, *how, &folder, len, limit);
            add(&mut case, name, files as f64, limit, task);
        }
    }
    Ok(case)
}
