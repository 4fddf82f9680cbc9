//! Looks keys up in a sorted index on disk, many at a time.
//!
//! Shows what `get_many` is for. A binary search waits for the disk once a step. Searching for a batch of keys level by
//! level, the steps of all of them go to the store in one submission, so the disk sees a queue instead of one read at a
//! time; no thread faults, and every error is a value. The same keys are then looked up one by one, for comparison.
//!
//! The index is an array of records, sorted by key: key and value, each a `u64` in little-endian order.
//!
//! ```text
//! cargo run --release -p mapwright --example index_lookup -- [--records N] [--lookups N] [--batch N | --record TRACE]
//! ```

use std::error::Error;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use mapwright::{Advice, Map, MapOptions, Pager, Strategy};

const USAGE: &str = "usage: index_lookup [--records N] [--lookups N] [--batch N | --record TRACE]";
/// Bytes in a record.
const RECORD: u64 = 16;
/// Memory for a pager that records what it misses, in bytes, besides 1/1024 of the file for tables: a few pages.
const RECORDING_BUDGET: u64 = 64 << 10;
/// Records that are read at once as soon as a search has come down to so few.
const LEAF: u64 = 4096 / RECORD;

struct Arguments {
    records: u64,
    lookups: u64,
    batch: u64,
    /// Where to record what is missed, one key at a time.
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    if std::env::args_os().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("index_lookup: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let index = make_index(arguments.records)?;
    let keys: Vec<u64> = random(arguments.records * 3).take(arguments.lookups as usize).collect();
    let passes = [("one at a time", 1), ("in batches", arguments.batch)];
    let passes = if arguments.trace.is_some() { &passes[..1] } else { &passes };
    for &(name, batch) in passes {
        // A pager of its own for each, so that the second finds nothing in memory that the first has read.
        let budget = (arguments.records * RECORD / 8).max(8 << 20);
        let (builder, strategy) = match &arguments.trace {
            Some(trace) => {
                let budget = RECORDING_BUDGET + arguments.records * RECORD / 1024;
                (Pager::builder().budget(budget).record(trace), Strategy::Pager)
            }
            None => (Pager::builder().budget(budget), Strategy::Auto),
        };
        let pager = builder.build()?;
        let options = MapOptions::new().pager(&pager).strategy(strategy).advice(Advice::Random).direct(true);
        let map = options.open(index.path())?;
        let started = Instant::now();
        let mut found = 0;
        for keys in keys.chunks(batch as usize) {
            for (key, value) in keys.iter().zip(look_up(&map, keys)?) {
                let expected = key.is_multiple_of(3).then(|| value_of(*key));
                if value != expected {
                    return Err(format!("key {key}: found {value:?} instead of {expected:?}").into());
                }
                found += u64::from(value.is_some());
            }
        }
        let took = started.elapsed();
        println!(
            "{name:>13}: {} lookups, {found} found, in {took:.2?}: {:.0}/s; {} blocks read, up to {} at once",
            keys.len(),
            keys.len() as f64 / took.as_secs_f64(),
            pager.stats().fills,
            pager.stats().max_queue_depth
        );
        if arguments.trace.is_some() {
            println!("{} references recorded", pager.end_recording()?);
        }
    }
    Ok(())
}

/// The values of keys, where there are any: a binary search for each, all going down together.
fn look_up(map: &Map, keys: &[u64]) -> Result<Vec<Option<u64>>, mapwright::Error> {
    let count = map.len() as u64 / RECORD;
    // Where each key must be if it is there at all, in records.
    let mut places = vec![0..count; keys.len()];
    loop {
        let searching: Vec<usize> = (0..keys.len()).filter(|&at| len(&places[at]) > LEAF).collect();
        if searching.is_empty() {
            break;
        }
        let middles: Vec<Range<u64>> = searching.iter().map(|&at| bytes(middle(&places[at]), 1)).collect();
        let records = map.get_many(&middles)?; // one submission for this level of all searches
        for (&at, record) in searching.iter().zip(&records) {
            let middle = middle(&places[at]);
            if keys[at] < number(record, 0) {
                places[at].end = middle;
            } else {
                places[at].start = middle;
            }
        }
    }
    let leaves: Vec<Range<u64>> = places.iter().map(|place| bytes(place.start, len(place))).collect();
    let leaves = map.get_many(&leaves)?;
    let find = |(key, leaf): (&u64, &mapwright::Pinned<'_>)| {
        let mut records = leaf.chunks_exact(RECORD as usize);
        records.find(|record| number(record, 0) == *key).map(|record| number(record, 8))
    };
    Ok(keys.iter().zip(&leaves).map(find).collect())
}

fn len(place: &Range<u64>) -> u64 {
    place.end - place.start
}

fn middle(place: &Range<u64>) -> u64 {
    place.start + len(place) / 2
}

fn bytes(record: u64, count: u64) -> Range<u64> {
    record * RECORD..(record + count) * RECORD
}

fn number(record: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn value_of(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// An index of every third number, in a file that is removed when it is dropped.
fn make_index(records: u64) -> std::io::Result<tempfile::NamedTempFile> {
    // Not in a memory file system if it can be helped: there is no disk to wait for.
    let file = tempfile::NamedTempFile::new_in(".").or_else(|_| tempfile::NamedTempFile::new())?;
    let mut writer = std::io::BufWriter::new(file.as_file());
    for key in (0..records).map(|record| record * 3) {
        writer.write_all(&key.to_le_bytes())?;
        writer.write_all(&value_of(key).to_le_bytes())?;
    }
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    Ok(file)
}

/// Numbers below `end`, in no order (xorshift64: Marsaglia, 2003).
fn random(end: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    })
}

/// `None` if they are wrong.
fn arguments() -> Option<Arguments> {
    let mut parsed = Arguments { records: 4 << 20, lookups: 20_000, batch: 256, trace: None };
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next();
        if argument == "--record" {
            parsed.trace = Some(value?.into());
            continue;
        }
        let value = value.and_then(|value| value.to_str()?.parse::<u64>().ok());
        let value = value.filter(|value| (1..1 << 32).contains(value))?;
        match argument.to_str()? {
            "--records" => parsed.records = value,
            "--lookups" => parsed.lookups = value,
            "--batch" => parsed.batch = value,
            _ => return None,
        }
    }
    Some(parsed)
}
