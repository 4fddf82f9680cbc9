//! Everything that `compare` and `doctor` use of the library: the three mapwright methods and the facts about the machine.

use std::ops::Range;

use mapwright::{FaultMode, Map, MapMut, MapOptions, Pager, Strategy};

use crate::compare::checksum::sum;
use crate::failure::{Failure, Result};
use crate::methods::kernel_mmap::Slice;
use crate::methods::{Cursor, Method, Setup, Source, Updater, increment_word, page_range};
use crate::probe::{Probed, UserfaultFacts};

/// How far ahead of the reader a sequential scan of the explicit method fetches, at most.
const AHEAD: u64 = 8 << 20;

fn failed(error: mapwright::Error) -> Failure {
    match error {
        mapwright::Error::Unsupported { .. } => Failure::Unsupported(error.to_string()),
        _ => Failure::Message(error.to_string()),
    }
}

fn options(method: Method, pager: &Pager) -> MapOptions {
    let options = MapOptions::new().pager(pager).strategy(Strategy::Pager);
    match method {
        Method::MapwrightInThread => options.fault_mode(FaultMode::InThread),
        _ => options,
    }
}

fn pager(setup: &Setup<'_>) -> Result<Pager> {
    Pager::builder().budget(setup.limit).build().map_err(failed)
}

/// What the library finds when it tries the calls it needs.
pub fn uffd_probe() -> Option<Probed> {
    let machine = mapwright::Machine::probe();
    Some(Probed {
        userfaultfd: machine.userfaultfd.map_err(|error| error.to_string()).map(|facts| UserfaultFacts {
            features: facts.features,
            user_mode_only: facts.user_mode_only,
            source: facts.source.to_string(),
        }),
        pagemap_scan: machine.pagemap_scan.map(|_| ()).map_err(|error| error.to_string()),
        io_uring: machine.io_uring.map_err(|error| error.to_string()),
    })
}

struct Opened {
    map: Map,
    pager: Pager,
    explicit: bool,
    ahead: u64,
    /// Pinned at a time, in bytes: well within the budget, and whole pages.
    most_pinned: u64,
    file_len: u64,
}

/// Opens the file with a pager whose budget is the limit.
pub fn open(method: Method, setup: &Setup<'_>) -> Result<Box<dyn Source>> {
    let pager = pager(setup)?;
    let map = options(method, &pager).open(setup.path).map_err(failed)?;
    let explicit = method == Method::MapwrightExplicit;
    let ahead = AHEAD.min(setup.limit / 4);
    let most_pinned = (setup.limit / 8).max(4096) / 4096 * 4096;
    Ok(Box::new(Opened { map, pager, explicit, ahead, most_pinned, file_len: setup.file_len }))
}

impl Source for Opened {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(if self.explicit {
            Box::new(Explicit { opened: self, fetched: 0, ranges: Vec::new() })
        } else {
            Box::new(Slice(&self.map))
        })
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
    /// How far a scan has asked for, in bytes.
    fetched: u64,
    ranges: Vec<Range<u64>>,
}

impl Cursor for Explicit<'_> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        self.ranges.clear();
        self.ranges.extend(pages.iter().map(|page| page_range(*page, self.opened.file_len)));
        let pinned = self.opened.map.get_many(&self.ranges).map_err(failed)?;
        Ok(pinned.iter().fold(0, |total, bytes| total.wrapping_add(sum(bytes))))
    }

    fn range(&mut self, range: Range<u64>) -> Result<u64> {
        let ahead = (range.end + self.opened.ahead).min(self.opened.file_len);
        if ahead > self.fetched {
            // Only a hint: what it could not fetch, `get` fetches, and reports when it fails.
            let _ = self.opened.map.will_need(self.fetched.max(range.end)..ahead);
            self.fetched = ahead;
        }
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

/// Opens the file for updates with a pager whose budget is the limit.
pub fn open_mut(method: Method, setup: &Setup<'_>) -> Result<Box<dyn Updater>> {
    let pager = pager(setup)?;
    let map = options(method, &pager).open_mut(setup.path).map_err(failed)?;
    Ok(Box::new(Updating { map, explicit: method == Method::MapwrightExplicit, _pager: pager }))
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
}
