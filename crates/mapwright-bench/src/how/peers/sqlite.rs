//! SQLite, through rusqlite.

use std::ops::Range;

use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Cursor, Source};
use rusqlite::{CachedStatement, Connection, OpenFlags};

use super::{Pages, failed};
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
