//! The report as a picture, in SVG: for each file bars of what was mapped and read and of how long its faults took; below, bars of how long each
//! process waited.

use std::path::Path;

use mapwright_measure::size;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{File, Report, words};
use crate::text;

const WIDTH: i32 = 960;
const LEFT: i32 = 20;
/// Of the longest bar.
const BAR: f64 = 300.0;
const ROW: i32 = 18;
/// Files, and processes, that are drawn. JSON has all.
const MOST: usize = 40;
/// Characters of a line: what is longer would leave the picture.
const LINE: usize = 120;

const MAPPED: RGBColor = RGBColor(143, 184, 222);
const READ: RGBColor = RGBColor(95, 158, 110);
const FAULTS: RGBColor = RGBColor(204, 137, 99);
const PROCESS: RGBColor = RGBColor(181, 93, 96);

/// What is to be drawn: how high the picture is follows from it.
#[derive(Default)]
struct Picture {
    rows: Vec<Row>,
    y: i32,
}

struct Row {
    y: i32,
    /// Pixels, and the colour.
    bar: Option<(i32, RGBColor)>,
    words: String,
    style: FontStyle,
}

/// At most as long as a line.
fn cut(words: &str) -> String {
    match words.char_indices().nth(LINE) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words.to_owned(),
    }
}

impl Picture {
    fn row(&mut self, bar: Option<(i32, RGBColor)>, style: FontStyle, words: &str) {
        self.rows.push(Row { y: self.y, bar, words: cut(words), style });
        self.y += ROW;
    }

    fn name(&mut self, words: &str) {
        self.row(None, FontStyle::Bold, words);
    }

    fn line(&mut self, words: &str) {
        self.row(None, FontStyle::Normal, words);
    }

    fn bar(&mut self, color: RGBColor, part: f64, most: f64, words: &str) {
        let width = if most > 0.0 { part / most * BAR } else { 0.0 };
        self.row(Some((width.ceil() as i32, color)), FontStyle::Normal, words);
    }

    fn gap(&mut self) {
        self.y += ROW / 2;
    }

    fn draw(&self) -> Outcome {
        let mut svg = String::new();
        {
            let size = (WIDTH as u32, (self.y + ROW).unsigned_abs());
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&WHITE)?;
            for Row { y, bar, words, style } in &self.rows {
                let (top, bottom) = (y + ROW / 2 + 3, y + ROW + ROW / 2 - 3);
                let mut left = LEFT;
                if let Some((width, color)) = bar {
                    area.draw(&Rectangle::new([(LEFT, top), (LEFT + width, bottom)], color.filled()))?;
                    left += BAR as i32 + 8;
                }
                let font = ("sans-serif", 13).into_font().style(*style).color(&BLACK);
                let place = (left, (top + bottom) / 2);
                area.draw(&Text::new(words.as_str(), place, font.pos(Pos::new(HPos::Left, VPos::Center))))?;
            }
            area.present()?;
        }
        Ok(svg)
    }
}

type Outcome = std::result::Result<String, Box<dyn std::error::Error>>;

/// The whole picture.
pub(super) fn draw(report: &Report) -> Outcome {
    let shown = |path: &str| text::show_path(Path::new(path));
    let mut picture = Picture::default();
    let end = match (report.exit_code, report.signal) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    };
    picture.name(&format!("mapwright run: {} {end}", shown(&report.program)));
    if let Some(why) = &report.not_served {
        picture.line(&format!("on the kernel's mmap: {why}"));
    }
    if let (Some(totals), Some(limit)) = (&report.totals, report.limit_bytes) {
        let (limit, read) = (size::show(limit), size::show(totals.read_bytes));
        let (faults, evictions) = (totals.faults, totals.evictions);
        let all = format!("with a limit of {limit}: faults {faults}, read {read}, evictions {evictions}");
        picture.line(&all);
    }
    files(&mut picture, report);
    processes(&mut picture, report);
    picture.draw()
}

fn files(picture: &mut Picture, report: &Report) {
    let most = |of: fn(&File) -> f64| report.files.iter().map(of).fold(0.0, f64::max);
    let most_bytes = most(|file| file.mapped_bytes.max(file.pager.read_bytes) as f64);
    let most_waited = most(|file| file.pager.faults.total_microseconds);
    for file in report.files.iter().take(MOST) {
        let (mapped, pager) = (file.mapped_bytes, &file.pager);
        picture.gap();
        let name = text::show_path(Path::new(&file.path));
        picture.name(&format!("{name} ({})", size::show(file.length)));
        if file.maps > 0 {
            let (maps, processes) = (file.maps, file.processes.len());
            let words = format!("served {}, maps {maps}, processes {processes}", size::show(mapped));
            picture.bar(MAPPED, mapped as f64, most_bytes, &words);
            let (read, ahead) = (size::show(pager.read_bytes), size::show(pager.read_ahead_bytes));
            let (back, evictions) = (size::show(pager.written_back_bytes), pager.evictions);
            let words = format!("read {read} ({ahead} ahead), evictions {evictions}, written back {back}");
            picture.bar(READ, pager.read_bytes as f64, most_bytes, &words);
            let waited = pager.faults.total_microseconds;
            picture.bar(FAULTS, waited, most_waited, &words::faults(&pager.faults));
        }
        for (why, count) in &file.given_back {
            picture.line(&format!("given back to the kernel, maps {count}: {why}"));
        }
        for why in &file.kernel {
            picture.line(&format!("the kernel's: {why}"));
        }
    }
    if report.files.len() > MOST {
        picture.line(&format!("and {} files more", report.files.len() - MOST));
    }
}

fn processes(picture: &mut Picture, report: &Report) {
    let (listed, more) = words::busiest(report, MOST);
    let shares = || listed.iter().flat_map(|process| &process.files);
    let most = shares().map(|share| share.faults.total_microseconds).fold(0.0, f64::max);
    for process in &listed {
        picture.gap();
        picture.name(&words::name(process));
        for share in process.files.iter().filter(|share| share.maps + share.faults.count > 0) {
            let words =
                format!("{}: {}", words::faults(&share.faults), text::show_path(Path::new(&share.path)));
            picture.bar(PROCESS, share.faults.total_microseconds, most, &words);
        }
    }
    if more > 0 {
        picture.line(&format!("and {more} processes more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_names_all_of_it() {
        let svg = draw(&super::super::tests::example()).unwrap();
        for part in [
            "exit code 3",
            "/a\\x09b&lt;&amp; (8 KiB)",
            "served 12 KiB",
            "faults 100",
            "process 7",
            "the kernel&apos;s: less",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // The longest bars have the whole width.
        assert!(svg.contains(r#"width="300""#) && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn long_lines_are_cut() {
        let line = cut(&"é".repeat(LINE + 1));
        assert_eq!(line.chars().count(), LINE + 1);
        assert!(line.ends_with('…'));
        assert_eq!(cut("short"), "short");
    }
}
