//! SQLite, through rusqlite.

use std::ops::Range;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Cursor, Source, Updater};
use rusqlite::{CachedStatement, Connection, OpenFlags};

use super::{Increments, Pages, failed};
use crate::task::Task;

const FILE: &str = "values.sqlite";

struct Sqlite(Task);

pub fn load(task: &Task, pages: &Pages<'_>) -> Result<()> {
    let mut connection = Connection::open(task.path.join(FILE)).map_err(failed)?;
    // A value and its header fit one page of 8 KiB: one read for each.
    let schema =
        "PRAGMA page_size = 8192; CREATE TABLE pages (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL)";
    connection.execute_batch(schema).map_err(failed)?;
    pages.batches(|batch| {
        let transaction = connection.transaction().map_err(failed)?;
        let mut insert = transaction.prepare_cached("INSERT INTO pages VALUES (?1, ?2)").map_err(failed)?;
        for value in batch {
            let (page, bytes) = value?;
            insert.execute((page as i64, bytes)).map_err(failed)?;
        }
        drop(insert);
        transaction.commit().map_err(failed)
    })
}

pub fn open(task: &Task) -> Result<Box<dyn Source>> {
    Ok(Box::new(Sqlite(task.clone())))
}

impl Source for Sqlite {
    /// A connection of its own: they are not for several threads.
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.0.path.join(FILE), flags).map_err(failed)?;
        // Negative: in KiB. The transaction spares a lock of the file for every value.
        let kib = self.0.budget / self.0.threads as u64 / 1024;
        connection.execute_batch(&format!("PRAGMA cache_size = -{kib}; BEGIN")).map_err(failed)?;
        Ok(Box::new(Reader(connection)))
    }
}

/// Readers that map the file: their cache holds nothing but what the map does not show.
struct Mapped(Task);

pub fn open_mapped(task: &Task) -> Result<Box<dyn Source>> {
    Ok(Box::new(Mapped(task.clone())))
}

impl Source for Mapped {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = self.0.path.join(FILE);
        let len = path.metadata().map_err(|error| Failure::io("stat", &path, error))?.len();
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.execute_batch(&format!("PRAGMA mmap_size = {len}; BEGIN")).map_err(failed)?;
        Ok(Box::new(Reader(connection)))
    }
}

struct Writer {
    connection: Connection,
    noted: Increments,
}

/// A write-ahead log that every commit syncs.
pub fn open_mut(task: &Task) -> Result<Box<dyn Updater>> {
    let connection = Connection::open(task.path.join(FILE)).map_err(failed)?;
    let kib = task.budget / 1024;
    let settings =
        format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -{kib}");
    connection.execute_batch(&settings).map_err(failed)?;
    Ok(Box::new(Writer { connection, noted: Increments::default() }))
}

impl Updater for Writer {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        self.noted.note(offsets);
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        let transaction = self.connection.transaction().map_err(failed)?;
        {
            let select = transaction.prepare_cached("SELECT bytes FROM pages WHERE number = ?1");
            let update = transaction.prepare_cached("UPDATE pages SET bytes = ?2 WHERE number = ?1");
            let (mut select, mut update) = (select.map_err(failed)?, update.map_err(failed)?);
            for (page, change) in self.noted.take() {
                let new = select.query_row((page as i64,), |row| Ok(change(row.get_ref(0)?.as_blob()?)));
                update.execute((page as i64, new.map_err(failed)?)).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn warm_up(&mut self) -> Result<()> {
        let mut all = self.connection.prepare("SELECT bytes FROM pages").map_err(failed)?;
        let mut rows = all.query(()).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let bytes = row.get_ref(0).map_err(failed)?.as_blob().map_err(failed)?;
            std::hint::black_box(sum(bytes));
        }
        Ok(())
    }
}

struct Reader(Connection);

impl Cursor for Reader {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        let query = self.0.prepare_cached("SELECT bytes FROM pages WHERE number = ?1");
        let mut query: CachedStatement<'_> = query.map_err(failed)?;
        pages.iter().try_fold(0u64, |total, page| {
            let value = query.query_row((*page as i64,), |row| Ok(sum(row.get_ref(0)?.as_blob()?)));
            Ok(total.wrapping_add(value.map_err(failed)?))
        })
    }

    fn range(&mut self, _range: Range<u64>) -> Result<u64> {
        Err(Failure::Unsupported("databases are here for single values only".to_owned()))
    }
}
