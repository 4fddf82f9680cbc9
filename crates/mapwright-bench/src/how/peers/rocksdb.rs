//! RocksDB, with direct reads into a block cache of the budget.

use std::ops::Range;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Cursor, Source};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch};

use super::{Pages, failed, no_value};
use crate::task::Task;

struct Rocksdb(DB);

fn options(task: &Task) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(task.budget as usize));
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_use_direct_reads(true);
    // The values are pseudo-random: there is nothing to compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&blocks);
    options
}

pub fn load(task: &Task, pages: &Pages<'_>) -> Result<()> {
    let database = DB::open(&options(task), &task.path).map_err(failed)?;
    pages.batches(|batch| {
        let mut writes = WriteBatch::default();
        for value in batch {
            let (page, bytes) = value?;
            writes.put(page.to_be_bytes(), bytes);
        }
        database.write(writes).map_err(failed)
    })?;
    database.compact_range(None::<&[u8]>, None::<&[u8]>);
    database.flush().map_err(failed)
}

pub fn open(task: &Task) -> Result<Box<dyn Source>> {
    Ok(Box::new(Rocksdb(DB::open_for_read_only(&options(task), &task.path, false).map_err(failed)?)))
}

impl Source for Rocksdb {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        Ok(Box::new(self))
    }
}

impl Cursor for &Rocksdb {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        let values = self.0.multi_get(pages.iter().map(|page| page.to_be_bytes()));
        pages.iter().zip(values).try_fold(0u64, |total, (page, value)| {
            let value = value.map_err(failed)?.ok_or_else(|| no_value(*page))?;
            Ok(total.wrapping_add(sum(&value)))
        })
    }

    fn range(&mut self, _range: Range<u64>) -> Result<u64> {
        Err(Failure::Unsupported("databases are here for single values only".to_owned()))
    }
}
