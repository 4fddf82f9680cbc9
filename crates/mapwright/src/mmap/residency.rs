//! Which pages are in memory: as a list of runs that can be kept, printed and read back.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};

const PAGE: u64 = mapwright_sys::PAGE_SIZE as u64;
/// First line of a dump. The number changes with the format.
const HEADER: &str = "mapwright residency 1";
/// Runs in a dump, at most: more than any file can have pages for that is worth warming up.
const MOST_RUNS: usize = 16 << 20;

/// Pages of a range, in memory or not. Pages are 4096 bytes.
///
/// As text, a residency is a header line, `mapwright residency 1`; a line `pages N`, the number of pages of 4096 bytes; and
/// for each run of pages in memory a line `FIRST-END`, in pages, the end not included, ascending, not touching. Nothing
/// else is accepted.
///
/// ```
/// use mapwright::mmap::{MmapMut, Residency};
///
/// let mut memory = MmapMut::map_anon(16 * 4096)?;
/// memory[5 * 4096] = 1;
/// let residency = memory.residency(..)?;
/// assert!(residency.is_resident(5) && residency.pages() == 16);
/// assert_eq!(residency.to_string().parse::<Residency>()?, residency);
/// # Ok::<(), mapwright::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residency {
    pages: u64,
    /// In pages, ascending, not touching.
    runs: Vec<Range<u64>>,
}

impl Residency {
    /// From the bytes of mincore(2).
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut start = 0;
        while let Some(absent) = bytes[start..].iter().position(|byte| byte & 1 == 1) {
            start += absent;
            let resident = bytes[start..].iter().position(|byte| byte & 1 == 0);
            let end = resident.map_or(bytes.len(), |resident| start + resident);
            runs.push(start as u64..end as u64);
            start = end;
        }
        Self { pages: bytes.len() as u64, runs }
    }

    /// From runs of pages.
    pub(super) fn from_runs(pages: u64, runs: Vec<Range<u64>>) -> Self {
        Self { pages, runs }
    }

    /// Pages that were looked at.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages in memory.
    pub fn resident_pages(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether a page is in memory. Those past the end are not.
    pub fn is_resident(&self, page: u64) -> bool {
        let after = self.runs.partition_point(|run| run.start <= page);
        after > 0 && page < self.runs[after - 1].end
    }

    /// The runs of pages in memory, in pages.
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// The same runs in bytes.
    pub fn byte_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|run| run.start * PAGE..run.end * PAGE)
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\npages {}", self.pages)?;
        self.runs.iter().try_for_each(|run| writeln!(f, "{}-{}", run.start, run.end))
    }
}

impl FromStr for Residency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |line: usize, what: &str| {
            Error::invalid(
                format!("a residency dump, line {}: {what}", line + 1),
                "make it anew: it was not written by this version",
            )
        };
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, line)| line != HEADER) {
            return Err(bad(0, "not the header"));
        }
        let pages = lines.next().and_then(|(_, line)| number(line.strip_prefix("pages ")?));
        // Beyond that, bytes could not be counted.
        let pages =
            pages.filter(|pages| *pages <= u64::MAX / PAGE).ok_or_else(|| bad(1, "no number of pages"))?;
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (at, line) in lines {
            let run = line.split_once('-').and_then(|(start, end)| Some(number(start)?..number(end)?));
            let run = run.ok_or_else(|| bad(at, "not a run of pages"))?;
            let follows = runs.last().is_none_or(|last| last.end < run.start);
            if run.is_empty() || run.end > pages || !follows {
                return Err(bad(at, "a run that is empty, out of order or past the end"));
            }
            if runs.len() == MOST_RUNS {
                return Err(bad(at, "too many runs"));
            }
            runs.push(run);
        }
        Ok(Self { pages, runs })
    }
}

/// Digits only: no sign, no blanks.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_merged_and_found() {
        let residency = Residency::new(&[1, 1, 0, 0x81, 0xfe, 1]);
        assert_eq!(residency.runs(), [0..2, 3..4, 5..6]);
        assert_eq!((residency.pages(), residency.resident_pages()), (6, 4));
        let resident: Vec<u64> = (0..9).filter(|page| residency.is_resident(*page)).collect();
        assert_eq!(resident, [0, 1, 3, 5]);
        assert_eq!(residency.byte_ranges().nth(1), Some(12288..16384));
    }

    #[test]
    fn a_dump_is_read_back_and_nothing_else_is() {
        let residency = Residency::new(&[1, 1, 0, 1]);
        let text = residency.to_string();
        assert_eq!(text, "mapwright residency 1\npages 4\n0-2\n3-4\n");
        assert_eq!(text.parse::<Residency>().unwrap(), residency);
        for bad in [
            "",
            "mapwright residency 2\npages 4\n",
            "mapwright residency 1\n",
            "mapwright residency 1\npages -4\n",
            "mapwright residency 1\npages 4503599627370496\n",
            "mapwright residency 1\npages 4\n0-5\n",
            "mapwright residency 1\npages 4\n2-2\n",
            "mapwright residency 1\npages 4\n3-1\n",
            "mapwright residency 1\npages 4\n2-3\n0-1\n",
            "mapwright residency 1\npages 4\n0-1\n1-2\n",
            "mapwright residency 1\npages 4\n0-+1\n",
            "mapwright residency 1\npages 4\n0- 1\n",
            "mapwright residency 1\npages 4\n\n",
            "mapwright residency 1\npages 4\n0-18446744073709551616\n",
        ] {
            let error = bad.parse::<Residency>().unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{bad:?}: {error:?}");
        }
    }
}
