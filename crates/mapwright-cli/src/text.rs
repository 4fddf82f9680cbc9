//! Text that several commands print or take: tables, names that are safe on a terminal, byte ranges, JSON.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use mapwright_measure::failure::{Failure, Result};
use mapwright_measure::size;
use serde::Serialize;

/// Writes to stdout. A reader that has gone away, such as `head`, is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Message(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a warning to stderr.
pub fn warn(text: impl std::fmt::Display) {
    // Who has closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "mapwright: {text}");
}

/// `value` as indented JSON with a line end.
pub fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|error| Failure::Message(format!("cannot write JSON: {error}")))
}

/// A path for people: what could steer a terminal or is no UTF-8 is written as `\xHH`.
pub fn show_path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                let mut buffer = [0; 4];
                escape(&mut shown, c.encode_utf8(&mut buffer).as_bytes());
            } else {
                shown.push(c);
            }
        }
        escape(&mut shown, chunk.invalid());
    }
    shown
}

fn escape(into: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(into, "\\x{byte:02x}");
    }
}

/// The bytes of a path, for JSON, where the text alone would not name it.
pub fn path_bytes(path: &Path) -> Option<Vec<u8>> {
    path.to_str().is_none().then(|| path.as_os_str().as_bytes().to_vec())
}

/// Parses a byte range: `START..END`, either side optional, in bytes or with a unit.
pub fn parse_range(text: &str) -> std::result::Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not a range of bytes; write it like 0..64M, 4096.. or ..1GiB");
    let (start, end) = text.split_once("..").ok_or_else(wrong)?;
    let side = |side: &str, otherwise| match side.trim() {
        "" => Ok(otherwise),
        "0" => Ok(0),
        side => size::parse(side).map_err(|_| wrong()),
    };
    let range = side(start, 0)?..side(end, u64::MAX)?;
    if range.is_empty() { Err(format!("the range `{text}` is empty")) } else { Ok(range) }
}

/// Whether text that is drawn anew in place makes sense.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Lines that take the place of what is on the terminal, cut to its size.
pub fn in_place(lines: &[String]) -> String {
    let size = rustix::termios::tcgetwinsize(io::stdout()).map_or((0, 0), |size| (size.ws_row, size.ws_col));
    // Terminals that know no size say 0.
    let limit = |cells: u16| if cells == 0 { usize::MAX } else { cells.into() };
    let (rows, columns) = (limit(size.0), limit(size.1));
    let mut text = "\x1b[H".to_owned();
    for (index, line) in lines.iter().take(rows).enumerate() {
        let line: String = line.chars().take(columns).collect();
        let _ = write!(text, "{}{line}\x1b[K", if index > 0 { "\r\n" } else { "" });
    }
    text + "\x1b[J"
}

/// A table: cells with the side they are aligned to.
#[derive(Default)]
pub struct Table {
    /// One for each column.
    pub columns: Vec<Heading>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

/// The head of a column.
pub struct Heading {
    /// What it says.
    pub name: String,
    /// Whether cells are aligned right, as numbers are.
    pub right: bool,
}

impl Table {
    /// The lines of the table; cells are two spaces apart. The last column is not padded.
    pub fn lines(&self, headings: bool) -> Vec<String> {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let all = || headings.then_some(&names).into_iter().chain(&self.rows);
        let mut widths = vec![0; self.columns.len()];
        for row in all() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        all().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (index, ((cell, column), &width)) in row.iter().zip(&self.columns).zip(widths).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            let _ =
                if column.right { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// The lines for programs: cells one space apart, empty ones as `-`.
    pub fn raw_lines(&self, headings: bool) -> Vec<String> {
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            cells.map(|cell| if cell.is_empty() { "-" } else { cell }).collect::<Vec<_>>().join(" ")
        };
        let head = headings.then(|| line(&mut self.columns.iter().map(|column| column.name.as_str())));
        head.into_iter()
            .chain(self.rows.iter().map(|row| line(&mut row.iter().map(String::as_str))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn ranges_are_parsed_or_refused() {
        assert_eq!(parse_range("0..64M"), Ok(0..64 << 20));
        assert_eq!(parse_range("4K.."), Ok(4096..u64::MAX));
        assert_eq!(parse_range("..1GiB"), Ok(0..1 << 30));
        for text in ["", "5", "1..1", "2..1", "a..b", "-1..2"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_cannot_steer_a_terminal() {
        let path = Path::new(OsStr::from_bytes(b"a\x1b[2Jb\xff c\\\xc3\xa4"));
        assert_eq!(show_path(path), "a\\x1b[2Jb\\xff c\\x5c\u{e4}");
        assert!(path_bytes(path).is_some() && path_bytes(Path::new("a")).is_none());
    }

    #[test]
    fn lines_are_drawn_in_place() {
        let text = in_place(&["a".to_owned(), "b".to_owned()]);
        assert!(text.starts_with("\x1b[Ha\x1b[K") && text.ends_with("\x1b[J"), "{text:?}");
    }

    #[test]
    fn tables_are_aligned() {
        let heading = |name: &str, right| Heading { name: name.to_owned(), right };
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let table = Table {
            columns: vec![heading("N", true), heading("NAME", false)],
            rows: vec![row("10", "a"), row("5", "")],
        };
        assert_eq!(table.lines(true), [" N  NAME", "10  a", " 5"]);
        assert_eq!(table.raw_lines(false), ["10 a", "5 -"]);
    }
}
