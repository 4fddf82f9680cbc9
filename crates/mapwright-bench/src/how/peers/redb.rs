//! redb: a B-tree with a page cache of its own.

use std::ops::Range;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Cursor, Source, Updater};
use redb::{Database, ReadOnlyTable, ReadableTable, TableDefinition};

use super::{Increments, Pages, failed, no_value};
use crate::task::Task;

const VALUES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");
const FILE: &str = "values.redb";

struct Redb(Database);

pub fn load(task: &Task, pages: &Pages<'_>) -> Result<()> {
    let database = Database::create(task.path.join(FILE)).map_err(failed)?;
    pages.batches(|batch| {
        let transaction = database.begin_write().map_err(failed)?;
        let mut table = transaction.open_table(VALUES).map_err(failed)?;
        for value in batch {
            let (page, bytes) = value?;
            table.insert(page, bytes.as_slice()).map_err(failed)?;
        }
        drop(table);
        transaction.commit().map_err(failed)
    })
}

pub fn open(task: &Task) -> Result<Box<dyn Source>> {
    let mut builder = Database::builder();
    let database = builder.set_cache_size(task.budget as usize).open(task.path.join(FILE));
    Ok(Box::new(Redb(database.map_err(failed)?)))
}

impl Source for Redb {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        let transaction = self.0.begin_read().map_err(failed)?;
        Ok(Box::new(Reader(transaction.open_table(VALUES).map_err(failed)?)))
    }
}

struct Writer {
    database: Database,
    noted: Increments,
}

/// Commits are of redb's default durability, which is immediate.
pub fn open_mut(task: &Task) -> Result<Box<dyn Updater>> {
    let mut builder = Database::builder();
    let database = builder.set_cache_size(task.budget as usize).open(task.path.join(FILE)).map_err(failed)?;
    Ok(Box::new(Writer { database, noted: Increments::default() }))
}

impl Updater for Writer {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        self.noted.note(offsets);
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let mut table = transaction.open_table(VALUES).map_err(failed)?;
        for (page, change) in self.noted.take() {
            let new = change(table.get(page).map_err(failed)?.ok_or_else(|| no_value(page))?.value());
            table.insert(page, new.as_slice()).map_err(failed)?;
        }
        drop(table);
        transaction.commit().map_err(failed)
    }

    fn warm_up(&mut self) -> Result<()> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = transaction.open_table(VALUES).map_err(failed)?;
        let all = table.iter().map_err(failed)?;
        all.map(|value| value.map(|(_, bytes)| sum(bytes.value())))
            .try_for_each(|sum| sum.map(drop))
            .map_err(failed)
    }
}

struct Reader(ReadOnlyTable<u64, &'static [u8]>);

impl Cursor for Reader {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        pages.iter().try_fold(0u64, |total, page| {
            let value = self.0.get(page).map_err(failed)?.ok_or_else(|| no_value(*page))?;
            Ok(total.wrapping_add(sum(value.value())))
        })
    }

    fn range(&mut self, _range: Range<u64>) -> Result<u64> {
        Err(Failure::Unsupported("databases are here for single values only".to_owned()))
    }
}
