//! mapwright itself: its slice with each way to serve faults, and explicit access.

use std::ops::Range;
use std::path::Path;

use mapwright::{Durability, FaultMode, Map, MapMut, MapOptions, Pager, Stats, Strategy};
use serde::{Deserialize, Serialize};

use super::kernel_mmap::Slice;
use super::{Cursor, Source, Updater, increment_word, page_range};
use crate::checksum::sum;
use crate::failure::{Failure, Result};
use crate::pages::PAGE;

/// How the bytes of a map are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The slice, faults served in the thread that faults.
    InThread,
    /// The slice, faults served by the pager's thread.
    Thread,
    /// get and get_many: no faults.
    Explicit,
}

impl Way {
    /// The options of a map in a pager.
    pub fn options(self, pager: &Pager) -> MapOptions {
        let mode = if self == Self::InThread { FaultMode::InThread } else { FaultMode::Thread };
        MapOptions::new().pager(pager).strategy(Strategy::Pager).fault_mode(mode)
    }
}

/// An error of the library, as one of ours.
pub fn failed(error: mapwright::Error) -> Failure {
    match error {
        mapwright::Error::Unsupported { .. } => Failure::Unsupported(error.to_string()),
        _ => Failure::Message(error.to_string()),
    }
}

/// A pager with a budget in bytes.
pub fn pager(budget: u64) -> Result<Pager> {
    Pager::builder().budget(budget).build().map_err(failed)
}

/// A map in a pager of its own.
pub struct Opened {
    map: Map,
    pager: Pager,
    explicit: bool,
    /// Pinned at a time, in bytes: well within the budget, and whole pages.
    most_pinned: u64,
}

/// Opens the file with a pager of that budget; `adjust` has the last word on the options.
pub fn open(
    way: Way,
    path: &Path,
    budget: u64,
    adjust: impl FnOnce(MapOptions) -> MapOptions,
) -> Result<Opened> {
    let pager = pager(budget)?;
    let map = adjust(way.options(&pager)).open(path).map_err(failed)?;
    let most_pinned = (budget / 8).max(PAGE) / PAGE * PAGE;
    Ok(Opened { map, pager, explicit: way == Way::Explicit, most_pinned })
}

impl Opened {
    /// The map.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// What the pager counted.
    pub fn stats(&self) -> Stats {
        self.pager.stats()
    }

    fn len(&self) -> u64 {
        self.map.len() as u64
    }
}

impl Source for Opened {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(if self.explicit {
            Box::new(Explicit { opened: self, ranges: Vec::new() })
        } else {
            Box::new(Slice(&self.map))
        })
    }

    fn misses(&self) -> Option<u64> {
        let stats = self.pager.stats();
        Some((stats.filled_bytes - stats.read_ahead_bytes) / PAGE)
    }

    fn note(&self) -> Option<String> {
        let stats = self.pager.stats();
        Some(format!(
            "{}; {} faults, {} fills, {} evictions",
            self.map.strategy(),
            stats.faults,
            stats.fills,
            stats.evictions
        ))
    }
}

struct Explicit<'a> {
    opened: &'a Opened,
    ranges: Vec<Range<u64>>,
}

impl Cursor for Explicit<'_> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        self.ranges.clear();
        self.ranges.extend(pages.iter().map(|page| page_range(*page, self.opened.len())));
        let pinned = self.opened.map.get_many(&self.ranges).map_err(failed)?;
        Ok(pinned.iter().fold(0, |total, bytes| total.wrapping_add(sum(bytes))))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        let mut total = 0u64;
        let mut start = range.start;
        while start < range.end {
            let end = (start + self.opened.most_pinned).min(range.end);
            total = total.wrapping_add(sum(&self.opened.map.get(start..end).map_err(failed)?));
            start = end;
        }
        Ok(total)
    }
}

struct Updating {
    map: MapMut,
    explicit: bool,
    _pager: Pager,
}

/// Opens the file for updates with a pager of that budget.
pub fn open_mut(way: Way, path: &Path, budget: u64, durability: Durability) -> Result<Box<dyn Updater>> {
    let pager = pager(budget)?;
    let map = way.options(&pager).durability(durability).open_mut(path).map_err(failed)?;
    Ok(Box::new(Updating { map, explicit: way == Way::Explicit, _pager: pager }))
}

impl Updater for Updating {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        if !self.explicit {
            offsets.iter().for_each(|offset| increment_word(&mut self.map, *offset));
            return Ok(());
        }
        // One submission brings the batch in; each word is read after the update before it, as an offset may repeat.
        let ranges: Vec<_> = offsets.iter().map(|offset| *offset..*offset + 8).collect();
        drop(self.map.get_many(&ranges).map_err(failed)?);
        for range in ranges {
            let mut word = [0; 8];
            word.copy_from_slice(&self.map.get(range.clone()).map_err(failed)?);
            let value = u64::from_le_bytes(word).wrapping_add(1);
            self.map.write_at(range.start, &value.to_le_bytes()).map_err(failed)?;
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        self.map.flush().map_err(failed)
    }

    fn warm_up(&mut self) -> Result<()> {
        self.map.prefetch(..).map_err(failed)?;
        std::hint::black_box(sum(&self.map));
        Ok(())
    }
}
