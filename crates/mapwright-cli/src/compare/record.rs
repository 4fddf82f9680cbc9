//! `--record`: the pages of the patterns as a trace, for the simulator of policies. Nothing is measured here: a pager with a
//! budget of a few pages reads what a round reads, so that it misses nearly every page, and writes down what it misses.

use std::path::Path;

use mapwright::{MapOptions, Pager, Strategy};
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::pages::{self, PAGE};
use mapwright_measure::signals;
use mapwright_measure::ways::page_range;

use super::Pattern;

/// The part of the file's length that the pager's tables may take when every page was touched: one of so many.
const TABLES: u64 = 1024;

/// Reads the pages of each pattern, one pattern after the other, and records them. Returns how many were recorded.
pub fn record(trace: &Path, file: &Path, file_len: u64, rounds: &[(Pattern, u64)], seed: u64) -> Result<u64> {
    let failed = |error: mapwright::Error| Failure::Message(format!("--record: {error}"));
    let budget = super::LEAST_LIMIT + file_len / TABLES;
    let pager = Pager::builder().budget(budget).record(trace).build().map_err(failed)?;
    let map = MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(file).map_err(failed)?;
    for &(pattern, ops) in rounds {
        for page in pages_of(pattern, file_len, ops, seed) {
            signals::check()?;
            map.get(page_range(page, file_len)).map_err(failed)?;
        }
    }
    pager.end_recording().map_err(failed)
}

/// The pages of a round in their order.
fn pages_of(pattern: Pattern, file_len: u64, ops: u64, seed: u64) -> Vec<u64> {
    let pages = file_len.div_ceil(PAGE);
    match pattern {
        Pattern::Sequential => (0..ops.min(pages)).collect(),
        Pattern::Random => pages::uniform(pages, ops, seed),
        Pattern::Zipf => pages::zipf(pages, ops, seed),
        Pattern::Update => {
            pages::update_offsets(file_len, ops, seed).into_iter().map(|offset| offset / PAGE).collect()
        }
    }
}
