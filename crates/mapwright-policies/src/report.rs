//! The document: tables in Markdown, with the words around them.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::Path;

use mapwright::Error;
use mapwright::engine::policy::Key;
use mapwright::engine::record::Trace;
use mapwright_policies::Policy;
use mapwright_policies::read_ahead::{Outcome, Reader, Stream, replay, streams_and_hot_set};
use mapwright_policies::shipped::{Access, Shipped};
use mapwright_policies::workloads::Workload;

/// Blocks of the file that the workloads read.
const FOOTPRINT: u64 = 1 << 14;
/// Accesses of a workload.
const LENGTH: usize = 300_000;
/// Sizes of the cache: the footprint divided by these.
const DIVISORS: [u64; 6] = [64, 32, 16, 8, 4, 2];
/// Caches below so many times the recording pager's budget can't be judged by what it recorded.
const FILTERS: u64 = 4;

/// A trace of a real program.
pub struct Recorded {
    name: String,
    filter_pages: u64,
    blocks: Vec<u64>,
    distinct: u64,
}

impl Recorded {
    /// Reads a trace; its name is the file's.
    ///
    /// # Errors
    /// Those of [`Trace::read`]; [`Error::Invalid`] if it has more files or larger ones than a pager can.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let trace = Trace::read(path)?;
        let mut slots = HashMap::new();
        let mut blocks = Vec::with_capacity(trace.references.len());
        for reference in &trace.references {
            let next = slots.len() as u32;
            let slot = *slots.entry(reference.file).or_insert(next);
            if slot >= Key::SLOTS || reference.page >> 40 != 0 {
                let what = format!("{}: page {} of file {slot}", path.display(), reference.page);
                return Err(Error::invalid(what, "record it again: no pager has so many files or pages"));
            }
            blocks.push(Key::new(slot, reference.page).0);
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let distinct = blocks.iter().collect::<HashSet<_>>().len() as u64;
        Ok(Self { name, filter_pages: trace.filter_pages, blocks, distinct })
    }
}

/// Hit ratios of all policies in the columns of a table; NaN where there is nothing to say.
struct Table {
    columns: Vec<String>,
    rows: Vec<(Policy, Vec<f64>)>,
}

impl Table {
    fn workload(workload: Workload) -> Self {
        let ratio = |policy: Policy, divisor: &u64| {
            let capacity = FOOTPRINT / divisor;
            policy.hit_ratio(&workload.trace(FOOTPRINT, capacity, LENGTH), capacity as usize)
        };
        Self::new(DIVISORS.iter().map(|divisor| format!("1/{divisor}")).collect(), |policy| {
            DIVISORS.iter().map(|divisor| ratio(policy, divisor)).collect()
        })
    }

    fn recorded(trace: &Recorded) -> Self {
        let ratio = |policy: Policy, divisor: &u64| match trace.distinct / divisor {
            capacity if capacity < FILTERS * trace.filter_pages => f64::NAN,
            capacity => policy.hit_ratio(&trace.blocks, capacity as usize),
        };
        Self::new(DIVISORS.iter().map(|divisor| format!("1/{divisor}")).collect(), |policy| {
            DIVISORS.iter().map(|divisor| ratio(policy, divisor)).collect()
        })
    }

    fn new(columns: Vec<String>, row: impl Fn(Policy) -> Vec<f64>) -> Self {
        Self { columns, rows: Policy::ALL.map(|policy| (policy, row(policy))).into() }
    }

    /// The mean of each row, of what there is.
    fn means(&self) -> Vec<f64> {
        let mean = |row: &Vec<f64>| {
            let there: Vec<f64> = row.iter().copied().filter(|ratio| !ratio.is_nan()).collect();
            there.iter().sum::<f64>() / there.len() as f64
        };
        self.rows.iter().map(|(_, row)| mean(row)).collect()
    }

    /// The best that a program can have in a column.
    fn best(&self, column: usize) -> f64 {
        let rows = self.rows.iter().filter(|(policy, _)| policy.is_realizable());
        rows.map(|(_, row)| row[column]).fold(f64::NAN, f64::max)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "| | {} |", self.columns.join(" | "))?;
        writeln!(f, "| --- {}|", "| ---: ".repeat(self.columns.len()))?;
        for (policy, row) in &self.rows {
            write!(f, "| {} |", policy.name())?;
            for (column, ratio) in row.iter().enumerate() {
                match percent(*ratio) {
                    _ if ratio.is_nan() => write!(f, " – |")?,
                    text if policy.is_realizable() && *ratio > 0.0 && text == percent(self.best(column)) => {
                        write!(f, " **{text}** |")?;
                    }
                    text => write!(f, " {text} |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.1}", 100.0 * ratio)
}

/// The whole document.
pub fn document(traces: &[Recorded]) -> String {
    let workloads = Workload::ALL.map(|workload| (workload.name(), Table::workload(workload)));
    let recorded: Vec<(String, Table)> =
        traces.iter().map(|trace| (trace.name.clone(), Table::recorded(trace))).collect();
    let mut text = INTRODUCTION.to_owned();
    let columns = workloads.iter().chain(&recorded).filter(|(_, table)| !table.means()[0].is_nan());
    let columns: Vec<(&String, Vec<f64>)> = columns.map(|(name, table)| (name, table.means())).collect();
    let summary = Table {
        columns: columns.iter().map(|(name, _)| (*name).clone()).collect(),
        rows: (Policy::ALL.into_iter().enumerate())
            .map(|(row, policy)| (policy, columns.iter().map(|(_, means)| means[row]).collect()))
            .collect(),
    };
    let _ = writeln!(text, "### All, mean over the sizes\n\n{summary}");
    for (name, table) in &workloads {
        let _ = writeln!(text, "### {name}\n\n{table}");
    }
    if !traces.is_empty() {
        text += RECORDED;
        for (trace, (name, table)) in traces.iter().zip(&recorded) {
            let Recorded { blocks, distinct, filter_pages, .. } = trace;
            let count = blocks.len();
            let _ = writeln!(
                text,
                "### {name}\n\n{count} references to {distinct} pages, recorded by a pager of {filter_pages} pages.\n\n{table}"
            );
        }
    }
    let _ = write!(text, "{READ_AHEAD}{}\n{STREAMS}{}\n{SOURCES}", patterns(), beside_a_hot_set());
    text
}

/// What read-ahead spares and wastes where nothing is evicted.
fn patterns() -> String {
    let readers = [Reader::Kernel(32), Reader::Shipped(32), Reader::Kernel(512), Reader::Shipped(512)];
    let mut text = "| | on-demand, 32 | mapwright, 32 | on-demand, 512 | mapwright, 512 |\n".to_owned();
    text += "| --- | ---: | ---: | ---: | ---: |\n";
    for stream in Stream::ALL {
        let trace = stream.trace();
        let run = |reader| replay(&trace, Stream::FILE, reader, &mut Shipped::new(1 << 20, Access::Slices));
        let none = run(Reader::None);
        let cells = readers.map(|reader| cell(&run(reader), &none));
        let _ = writeln!(text, "| {} | {} |", stream.name(), cells.join(" | "));
    }
    text
}

/// The same in a cache that is full of other things.
fn beside_a_hot_set() -> String {
    let mut text = "| cache | streams | on-demand, 32 | a sixteenth each | mapwright |\n".to_owned();
    text += "| ---: | ---: | ---: | ---: | ---: |\n";
    for capacity in [2048, 16_384] {
        for streams in [1, 2, 4, 8, 16] {
            let (trace, file_blocks) = streams_and_hot_set(streams, capacity, 100_000);
            let run = |reader| {
                replay(&trace, file_blocks, reader, &mut Shipped::new(capacity as usize, Access::Explicit))
            };
            let none = run(Reader::None);
            let readers = [
                Reader::Kernel(32),
                Reader::Unshared((capacity / 16).min(1024)),
                Reader::Shipped((capacity / 32).min(1024)),
            ];
            let cells = readers.map(|reader| cell(&run(reader), &none));
            let _ = writeln!(text, "| {capacity} | {streams} | {} |", cells.join(" | "));
        }
    }
    text
}

fn cell(outcome: &Outcome, none: &Outcome) -> String {
    let useful = if outcome.ahead == 0 { "–".to_owned() } else { percent(outcome.precision()) };
    format!("{} / {useful}", percent(outcome.coverage(none)))
}

const INTRODUCTION: &str = "\
# Policies, compared

What mapwright evicts (`engine/policy.rs`) and reads ahead (`engine/read_ahead.rs`), against what the textbook offers. This page
is the output of a command; its numbers follow from seeds and traces, and not from a machine or a clock:

```text
cargo run --release -p mapwright --example count_lines -- --record count-lines.trace FILE
cargo run --release -p mapwright --example sort_in_place -- --mib 16 --budget-mib 1 --record sort.trace
cargo run --release -p mapwright --example index_lookup -- --records 1000000 --record lookup.trace
cargo run --release -- compare --patterns zipf --methods mapwright --rounds 1 --ops 200000 --sample-size 64M --record compare-zipf.trace
cargo xtask policies --trace count-lines.trace --trace sort.trace --trace lookup.trace --trace compare-zipf.trace > docs/policies.md
```

The traces are not kept: the commands make them again, but for the file whose lines are counted (here 8 MiB).

## Eviction

Hit ratios in percent, the first access to each block included, at cache sizes from 1/64 to 1/2 of a file of 16,384 blocks; 300,000
accesses. Bold is the best that a program can have. *Shipped* is the pager's own policy, driven as `engine/evict.rs` does: *explicit* sees
every access, *slices* sees a touch only where a block was unmapped before. It also pays for what the textbook does without:
room is made in batches of 1/32 of the cache, which costs about 0.3 points. The others see all and evict one block at a time.

What they say: on zipf, on a scan beside zipf, and on the lookups, mapwright is within a point of the best of the others nearly
everywhere (`tests/margin.rs` holds it to one), and where blocks are touched in bursts it is ahead of S3-FIFO, which takes a burst
for popularity. Slices, whose hits are hardly seen, cost next to nothing with shared frames, where whole
regions are unmapped to see them; with moved frames only victims are (an interrupt of every processor a page), which costs two to five
points. It loses the loop to 2Q and S3-FIFO by 2 to 11 points; the
sort, where the cache is a quarter of the file, to all but SIEVE, by up to 6; and it follows a hot set that moves more slowly than
ARC does and, in large caches, LRU, which both have nothing for the loop at all. By the mean of all columns of the next table the
order is S3-FIFO (52.5), mapwright (52.1), 2Q (51.8, and one to two points behind on zipf), then a gap of seven points. So what
ships is S3-FIFO, less what it costs to evict in batches and not to see hits.

What they decided: the small queue has 1/20 of the cache and limbo 1/16. With a tenth and an eighth, which is what the paper's
tenth had become with limbo behind it, newcomers stayed for twice as long as they should, at the cost of about a point on
zipf and 12 on the loop. With 1/20 each, a hot set that moved was followed more slowly than by LRU.

- zipf: skews as given; popular blocks are scattered over the file.
- scan + zipf: by turns zipf 0.99 on one half of the file, and a step of a scan through the other.
- shifting hot set: zipf 0.99; seven times the popular blocks become others.
- loop: over and over through a tenth more than the cache holds, so the file depends on the column.
- scan with reuse: through the whole file, and after each step back to one of the last 64 blocks.

";

const RECORDED: &str = "\
## Eviction, recorded traces

Sizes are parts of the number of distinct pages. Where a cache would be less than four times the pager that recorded, a dash
stands: what that pager hit is not in the trace.

- count-lines: two passes over a file. compare-zipf: the zipf pattern of `compare`. lookup: binary searches in a sorted index.
  sort: `sort_unstable` on a mapped slice; a checking pass before and one after it.

";

const READ_AHEAD: &str = "\
## Read-ahead

Two numbers a cell: the percentage of misses that it spared, and of the blocks read ahead the percentage that was then asked
for. 32,000 accesses, nothing is evicted. *On-demand* is what Linux does for read(2), with largest windows of 32 blocks (128
KiB, its default) and 512; it sees every access and asks the page cache. mapwright sees misses and the touch of one
block a plan. Without read-ahead the first number is 0.

";

const STREAMS: &str = "\
### Streams beside a hot set

Sequential streams by turns, and after each of their accesses one to a hot set as large as the cache (zipf 0.99); explicit
access, the shipped eviction, caches in blocks. Misses of the hot set count too, which no read-ahead spares. *A sixteenth each*: every
stream has a window of 1/16 of the cache, as mapwright had before; from the second stream on, what was read ahead was evicted
before it was used. Now all streams of a file share 1/32 (`ReadAhead::within`).

";

const SOURCES: &str = "\
## Sources

- LRU and the optimum: Belady, \"A study of replacement algorithms for a virtual-storage computer\", IBM Systems Journal 5(2), 1966.
- CLOCK: Corbató, \"A paging experiment with the Multics system\", MIT Project MAC Report M-384, 1968.
- 2Q, full version, Kin 25 %, Kout 50 %: Johnson and Shasha, \"2Q: a low overhead high performance buffer management replacement
  algorithm\", VLDB 1994.
- ARC: Megiddo and Modha, \"ARC: a self-tuning, low overhead replacement cache\", FAST 2003.
- S3-FIFO, small queue 10 %: Yang, Zhang, Qiu, Yue, Rashmi, \"FIFO queues are all you need for cache eviction\", SOSP 2023.
- SIEVE: Zhang, Yang, Yue, Vigfusson, Rashmi, \"SIEVE is simpler than LRU\", NSDI 2024.
- On-demand read-ahead: Wu, Xi, Xu, \"On the design of a new Linux readahead framework\", ACM SIGOPS Operating Systems Review 42(5),
  2008; windows as in Linux 6.6.
- Recording misses only: Smith, \"Two methods for the efficient analysis of memory address trace data\", IEEE TSE 3(1), 1977.
";
