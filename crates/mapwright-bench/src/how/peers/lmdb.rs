//! LMDB, through heed: a B-tree in a file that the kernel maps.

use std::ops::Range;

use heed::types::Bytes;
use heed::{Database, Env, RoTxn, WithoutTls};
use mapwright_measure::checksum::sum;
use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::ways::{Cursor, Source, Updater};

use super::{Increments, Pages, failed, no_value};
use crate::raw::open_lmdb;
use crate::task::Task;

/// Values of a page take two pages each in LMDB: the header of an overflow page is in the way.
const GROWTH: usize = 3;
/// The smallest map that can be asked for, in bytes.
const LEAST_MAP: usize = 64 << 10;

struct Lmdb {
    env: Env<WithoutTls>,
    values: Database<Bytes, Bytes>,
}

fn env(task: &Task) -> Result<Env<WithoutTls>> {
    open_lmdb(&task.path, task.len as usize * GROWTH + (64 << 20), false).map_err(failed)
}

pub fn load(task: &Task, pages: &Pages<'_>) -> Result<()> {
    let env = env(task)?;
    pages.batches(|batch| {
        let mut transaction = env.write_txn().map_err(failed)?;
        let values: Database<Bytes, Bytes> = env.create_database(&mut transaction, None).map_err(failed)?;
        for value in batch {
            let (page, bytes) = value?;
            values.put(&mut transaction, &page.to_be_bytes(), &bytes).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    })
}

pub fn open(task: &Task) -> Result<Box<dyn Source>> {
    Ok(Box::new(database(task)?))
}

/// A reader maps as much as the file has, if it asks for less.
pub fn open_mapped(task: &Task) -> Result<Box<dyn Source>> {
    let env = open_lmdb(&task.path, LEAST_MAP, true).map_err(failed)?;
    Ok(Box::new(database_in(env)?))
}

fn database(task: &Task) -> Result<Lmdb> {
    database_in(env(task)?)
}

fn database_in(env: Env<WithoutTls>) -> Result<Lmdb> {
    let transaction = env.read_txn().map_err(failed)?;
    let values = env.open_database(&transaction, None).map_err(failed)?;
    drop(transaction);
    let missing = || Failure::Message("the database has no values".to_owned());
    Ok(Lmdb { env: env.clone(), values: values.ok_or_else(missing)? })
}

impl Source for Lmdb {
    fn cursor(&self) -> Result<Box<dyn Cursor + '_>> {
        let transaction = self.env.read_txn().map_err(failed)?;
        Ok(Box::new(Reader { values: self.values, transaction }))
    }
}

struct Writer {
    database: Lmdb,
    noted: Increments,
}

pub fn open_mut(task: &Task) -> Result<Box<dyn Updater>> {
    Ok(Box::new(Writer { database: database(task)?, noted: Increments::default() }))
}

impl Updater for Writer {
    fn increment(&mut self, offsets: &[u64]) -> Result<()> {
        self.noted.note(offsets);
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        let mut transaction = self.database.env.write_txn().map_err(failed)?;
        for (page, change) in self.noted.take() {
            let old = self.database.values.get(&transaction, &page.to_be_bytes()).map_err(failed)?;
            let new = change(old.ok_or_else(|| no_value(page))?);
            self.database.values.put(&mut transaction, &page.to_be_bytes(), &new).map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    fn warm_up(&mut self) -> Result<()> {
        let transaction = self.database.env.read_txn().map_err(failed)?;
        let all = self.database.values.iter(&transaction).map_err(failed)?;
        all.map(|value| value.map(|(_, bytes)| sum(bytes))).try_for_each(|sum| sum.map(drop)).map_err(failed)
    }
}

struct Reader<'a> {
    values: Database<Bytes, Bytes>,
    transaction: RoTxn<'a, WithoutTls>,
}

impl Cursor for Reader<'_> {
    fn pages(&mut self, pages: &[u64]) -> Result<u64> {
        pages.iter().try_fold(0u64, |total, page| {
            let value = self.values.get(&self.transaction, &page.to_be_bytes()).map_err(failed)?;
            Ok(total.wrapping_add(sum(value.ok_or_else(|| no_value(*page))?)))
        })
    }

    fn range(&mut self, _range: Range<u64>) -> Result<u64> {
        Err(Failure::Unsupported("databases are here for single values only".to_owned()))
    }
}
