//! The dump of a residency: which byte ranges of which files are cached, to be read in again later.
//!
//! The format, version 1, is text, a line each: docs/residency-format.md.
//!
//! What is not understood is refused, whole: another version, an unknown line, a missing end, a wrong checksum.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use mapwright_measure::failure::{Failure, Result};

/// The first line.
const MAGIC: &str = "mapwright-residency";
/// The only version there is.
const VERSION: u32 = 1;

/// One file of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Absolute.
    pub path: PathBuf,
    /// The length that it had, in bytes.
    pub len: u64,
    /// What was cached, in bytes, in order, not touching.
    pub ranges: Vec<Range<u64>>,
}

/// Writes a dump to a file, which appears whole or not at all, or to stdout for `-`.
pub fn write(to: &Path, entries: &[Entry]) -> Result<()> {
    let text = encode(entries);
    if to.as_os_str() == "-" {
        return crate::text::print(&text);
    }
    replace(to, text.as_bytes()).map_err(|error| Failure::io("cannot write the dump", to, error))
}

/// Reads a dump from a file, or from stdin for `-`.
pub fn read(from: &Path) -> Result<Vec<Entry>> {
    let mut bytes = Vec::new();
    let read = if from.as_os_str() == "-" {
        io::stdin().read_to_end(&mut bytes)
    } else {
        File::open(from).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::io("cannot read the dump", from, error))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is no text".to_owned());
    text.and_then(decode).map_err(|why| {
        let what = "nothing was restored; make a new one with `mapwright cache --dump`";
        Failure::Message(format!("{}: not a dump that this version can read: {why}; {what}", from.display()))
    })
}

fn encode(entries: &[Entry]) -> String {
    let mut text = format!("{MAGIC} {VERSION}\n");
    for entry in entries {
        text += &format!("file {} {}\n", entry.len, quote(&entry.path));
        for range in &entry.ranges {
            text += &format!("{} {}\n", range.start, range.end - range.start);
        }
    }
    let ranges: usize = entries.iter().map(|entry| entry.ranges.len()).sum();
    let sum = checksum(text.as_bytes());
    text + &format!("end {} {ranges} {sum:016x}\n", entries.len())
}

fn decode(text: &str) -> std::result::Result<Vec<Entry>, String> {
    let version =
        text.lines().next().and_then(|line| line.strip_prefix(MAGIC)).ok_or("its first line is another's")?;
    if version.trim() != VERSION.to_string() {
        return Err(format!("it has version{version}, this is {VERSION}"));
    }
    let body_len = text.rfind("\nend ").ok_or("its end is missing")? + 1;
    let (body, end) = text.split_at(body_len);
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in (1..).zip(body.lines()).skip(1) {
        let wrong = |what: &str| format!("line {number}: {what}");
        if let Some(rest) = line.strip_prefix("file ") {
            let (len, path) = rest.split_once(' ').ok_or_else(|| wrong("a path is missing"))?;
            let len = parse(len).ok_or_else(|| wrong("no length"))?;
            let path =
                unquote(path).filter(|path| path.is_absolute()).ok_or_else(|| wrong("no absolute path"))?;
            entries.push(Entry { path, len, ranges: Vec::new() });
            continue;
        }
        let range = line.split_once(' ').and_then(|(start, len)| {
            let (start, len) = (parse(start)?, parse(len)?);
            Some(start..start.checked_add(len).filter(|end| *end > start)?)
        });
        let range = range.ok_or_else(|| wrong("neither a file nor a range"))?;
        let entry = entries.last_mut().ok_or_else(|| wrong("a range without a file"))?;
        if entry.ranges.last().is_some_and(|last| last.end >= range.start) {
            return Err(wrong("its ranges are not in order"));
        }
        entry.ranges.push(range);
    }
    let ranges: usize = entries.iter().map(|entry| entry.ranges.len()).sum();
    let expected = format!("end {} {ranges} {:016x}\n", entries.len(), checksum(body.as_bytes()));
    if end == expected {
        Ok(entries)
    } else {
        Err("it was cut or changed: its last line does not fit".to_owned())
    }
}

/// Digits only: `parse` of the standard library also takes a `+`.
fn parse(number: &str) -> Option<u64> {
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

/// FNV-1a of 64 bits (draft-eastlake-fnv): finds what was cut or changed by mistake, which is all that it is for.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Percent-encodes everything but printable ASCII, and the percent sign and the space.
fn quote(path: &Path) -> String {
    let mut quoted = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            quoted.push(byte.into());
        } else {
            quoted += &format!("%{byte:02x}");
        }
    }
    quoted
}

fn unquote(quoted: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = quoted.as_bytes();
    while let [first, after @ ..] = rest {
        match first {
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok().filter(|byte| *byte != 0)?);
                rest = &after[2..];
            }
            byte if byte.is_ascii_graphic() => {
                bytes.push(*byte);
                rest = after;
            }
            _ => return None,
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// Puts a file in its place by a rename, so that what was there stays until all of the new one is there.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What failed is told; that this fails too would tell nothing more.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn entries() -> Vec<Entry> {
        let odd = OsStr::from_bytes(b"/a b/%\xff\n");
        vec![
            Entry { path: "/x".into(), len: 10_000, ranges: vec![0..4096, 8192..12_288] },
            Entry { path: odd.into(), len: 0, ranges: Vec::new() },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(&entries())), Ok(entries()));
        assert_eq!(decode(&encode(&[])), Ok(Vec::new()));
    }

    #[test]
    fn the_documented_example_is_read() {
        let document = include_str!("../../../../docs/residency-format.md");
        let example = document.split("```").nth(1).and_then(|block| block.strip_prefix("text\n")).unwrap();
        let entries = decode(example).unwrap();
        assert_eq!(entries[0].path, Path::new("/srv/data one.bin"));
        assert_eq!(entries[0].ranges, [0..49_152, 163_840..176_128]);
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_refused() {
        let text = encode(&entries());
        for len in 0..text.len() {
            assert!(decode(&text[..len]).is_err(), "{len}");
            let mut changed = text.clone().into_bytes();
            changed[len] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert!(decode(&changed).is_err(), "{changed}");
        }
        assert!(decode(&(text + "0 4096\n")).is_err());
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let sealed = |body: &str, files: usize, ranges: usize| {
            format!("{body}end {files} {ranges} {:016x}\n", checksum(body.as_bytes()))
        };
        let head = "mapwright-residency 1\n";
        for (body, files, ranges, why) in [
            ("mapwright-residency 2\n".to_owned(), 0, 0, "version"),
            ("something 1\n".to_owned(), 0, 0, "first line"),
            (format!("{head}0 4096\n"), 0, 1, "without a file"),
            (format!("{head}file 5 relative\n"), 1, 0, "absolute"),
            (format!("{head}file x /a\n"), 1, 0, "length"),
            (format!("{head}file 5 /a\nlink /b\n"), 1, 0, "neither"),
            (format!("{head}file 5 /a\n0 0\n"), 1, 1, "neither"),
            (format!("{head}file 5 /a\n4096 1\n0 1\n"), 1, 2, "order"),
            (format!("{head}file 5 /a\n1 18446744073709551615\n"), 1, 1, "neither"),
        ] {
            let error = decode(&sealed(&body, files, ranges)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert!(decode(&sealed(&format!("{head}file 5 /a\n0 1\n"), 1, 1)).is_ok());
    }
}
