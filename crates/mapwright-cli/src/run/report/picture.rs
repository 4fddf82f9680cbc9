//! The report as a picture, in SVG: for each file bars of what was mapped and read and of how long its faults took; below, bars of how long each
//! process waited.
//!
//! Written as text: these are rectangles with words beside them, of which a plotting library would save nothing.

use std::fmt::Write as _;
use std::path::Path;

use mapwright_measure::size;

use super::{File, Report, words};
use crate::text;

const WIDTH: u32 = 960;
const LEFT: u32 = 20;
/// Of the longest bar.
const BAR: f64 = 300.0;
const ROW: u32 = 18;
/// Files, and processes, that are drawn. JSON has all.
const MOST: usize = 40;
/// Characters of a line: what is longer would leave the picture.
const LINE: usize = 120;

struct Picture {
    rows: String,
    y: u32,
}

/// Text between tags, at most as long as a line.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for (at, c) in text.chars().enumerate() {
        match c {
            _ if at == LINE => {
                escaped.push('…');
                break;
            }
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

impl Picture {
    fn text(&mut self, x: u32, class: &str, words: &str) {
        let y = self.y + ROW - 5;
        let _ = writeln!(self.rows, r#"<text x="{x}" y="{y}" class="{class}">{}</text>"#, escape(words));
    }

    fn line(&mut self, class: &str, words: &str) {
        self.text(LEFT, class, words);
        self.y += ROW;
    }

    fn bar(&mut self, class: &str, part: f64, most: f64, words: &str) {
        let width = if most > 0.0 { part / most * BAR } else { 0.0 };
        let (y, height) = (self.y + 3, ROW - 6);
        let _ = writeln!(
            self.rows,
            r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{height}" class="{class}"/>"#
        );
        self.text(LEFT + BAR as u32 + 8, "plain", words);
        self.y += ROW;
    }

    fn gap(&mut self) {
        self.y += ROW / 2;
    }
}

/// The whole picture.
pub(super) fn draw(report: &Report) -> String {
    let shown = |path: &str| text::show_path(Path::new(path));
    let mut picture = Picture { rows: String::new(), y: 10 };
    let end = match (report.exit_code, report.signal) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, signal) => format!("was ended by signal {}", signal.unwrap_or(0)),
    };
    picture.line("title", &format!("mapwright run: {} {end}", shown(&report.program)));
    if let Some(why) = &report.not_served {
        picture.line("plain", &format!("on the kernel's mmap: {why}"));
    }
    if let (Some(totals), Some(limit)) = (&report.totals, report.limit_bytes) {
        let (limit, read) = (size::show(limit), size::show(totals.read_bytes));
        let (faults, evictions) = (totals.faults, totals.evictions);
        let all = format!("with a limit of {limit}: faults {faults}, read {read}, evictions {evictions}");
        picture.line("plain", &all);
    }
    files(&mut picture, report);
    processes(&mut picture, report);
    let height = picture.y + 10;
    let style = "text{font:13px sans-serif;fill:#222}.title{font-weight:bold;font-size:15px}.name{font-weight:bold}\
                 .mapped{fill:#8fb8de}.read{fill:#5f9e6e}.faults{fill:#cc8963}.process{fill:#b55d60}";
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n\
         <style>{style}</style>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{}</svg>\n",
        picture.rows
    )
}

fn files(picture: &mut Picture, report: &Report) {
    let most = |of: fn(&File) -> f64| report.files.iter().map(of).fold(0.0, f64::max);
    let most_bytes = most(|file| file.mapped_bytes.max(file.pager.read_bytes) as f64);
    let most_waited = most(|file| file.pager.faults.total_microseconds);
    for file in report.files.iter().take(MOST) {
        let (mapped, pager) = (file.mapped_bytes, &file.pager);
        picture.gap();
        let name = text::show_path(Path::new(&file.path));
        picture.line("name", &format!("{name} ({})", size::show(file.length)));
        if file.maps > 0 {
            let (maps, processes) = (file.maps, file.processes.len());
            let words = format!("served {}, maps {maps}, processes {processes}", size::show(mapped));
            picture.bar("mapped", mapped as f64, most_bytes, &words);
            let (read, ahead) = (size::show(pager.read_bytes), size::show(pager.read_ahead_bytes));
            let (back, evictions) = (size::show(pager.written_back_bytes), pager.evictions);
            let words = format!("read {read} ({ahead} ahead), evictions {evictions}, written back {back}");
            picture.bar("read", pager.read_bytes as f64, most_bytes, &words);
            let waited = pager.faults.total_microseconds;
            picture.bar("faults", waited, most_waited, &words::faults(&pager.faults));
        }
        for (why, count) in &file.given_back {
            picture.line("plain", &format!("given back to the kernel, maps {count}: {why}"));
        }
        for why in &file.kernel {
            picture.line("plain", &format!("the kernel's: {why}"));
        }
    }
    if report.files.len() > MOST {
        picture.line("plain", &format!("and {} files more", report.files.len() - MOST));
    }
}

fn processes(picture: &mut Picture, report: &Report) {
    let (listed, more) = words::busiest(report, MOST);
    let shares = || listed.iter().flat_map(|process| &process.files);
    let most = shares().map(|share| share.faults.total_microseconds).fold(0.0, f64::max);
    for process in &listed {
        picture.gap();
        picture.line("name", &words::name(process));
        for share in process.files.iter().filter(|share| share.maps + share.faults.count > 0) {
            let words =
                format!("{}: {}", words::faults(&share.faults), text::show_path(Path::new(&share.path)));
            picture.bar("process", share.faults.total_microseconds, most, &words);
        }
    }
    if more > 0 {
        picture.line("plain", &format!("and {more} processes more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_well_formed_and_names_all_of_it() {
        let svg = draw(&super::super::tests::example());
        for part in [
            "exit code 3",
            "/a\\x09b&lt;&amp; (8 KiB)",
            "served 12 KiB",
            "faults 100",
            "process 7",
            "the kernel's: less",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        // Every tag is closed, in order.
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.trim_start_matches('/').split(' ').next().unwrap();
            match tag {
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "{svg}"),
                _ if tag.ends_with('/') => {}
                _ => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
        // The longest bars have the whole width.
        assert!(svg.contains(r#"width="300.0""#) && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn long_lines_are_cut() {
        let cut = escape(&"&".repeat(LINE + 1));
        assert_eq!(cut.matches("&amp;").count(), LINE);
        assert!(cut.ends_with('…'));
    }
}
