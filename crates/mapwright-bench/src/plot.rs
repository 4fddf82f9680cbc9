//! Plots, as small SVG files.

use std::error::Error;
use std::path::Path;

use mapwright_measure::failure::{Failure, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::case::Entry;
use crate::run::{Outcome, median};
use crate::task::{How, Under};

const WIDTH: u32 = 760;
const BAR: i32 = 22;
const LEFT: i32 = 270;
const RIGHT: i32 = 70;
const TOP: i32 = 44;
const LINES_HEIGHT: u32 = 360;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), Box<dyn Error>>;

/// Draws a comparison: bars, or lines where it is over a quantity.
pub fn draw(path: &Path, outcome: &Outcome) -> Result<()> {
    let mut svg = String::new();
    let drawn = if outcome.case.over.is_some() { lines(&mut svg, outcome) } else { bars(&mut svg, outcome) };
    drawn.map_err(|error| Failure::Message(format!("{}: {error}", path.display())))?;
    std::fs::write(path, svg).map_err(|error| Failure::io("write", path, error))
}

/// Contenders with their medians, in their order.
fn medians(outcome: &Outcome) -> Vec<(&Entry, f64)> {
    let entries = outcome.case.entries.iter().zip(&outcome.measured);
    entries
        .filter_map(|(entry, rounds)| {
            let values: Option<Vec<f64>> = rounds.iter().map(|round| outcome.case.shown.of(round)).collect();
            values.filter(|values| !values.is_empty()).map(|values| (entry, median(&values)))
        })
        .collect()
}

fn heading(outcome: &Outcome) -> String {
    format!("{} ({})", outcome.case.title, outcome.case.shown.unit())
}

fn text(area: &Area<'_>, words: &str, at: (i32, i32), size: u32, h: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(h, VPos::Center));
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}

fn bars(svg: &mut String, outcome: &Outcome) -> Drawn {
    let medians = medians(outcome);
    let height = TOP + medians.len() as i32 * BAR + 12;
    let area = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    text(&area, &heading(outcome), (12, 20), 18, HPos::Left)?;
    let most = medians.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    for (index, (entry, value)) in medians.iter().enumerate() {
        let top = TOP + index as i32 * BAR;
        let len = (value / most * f64::from(WIDTH as i32 - LEFT - RIGHT)).round() as i32;
        area.draw(&Rectangle::new([(LEFT, top + 2), (LEFT + len, top + BAR - 4)], color(entry).filled()))?;
        text(&area, &entry.name, (LEFT - 8, top + BAR / 2 - 1), 14, HPos::Right)?;
        text(&area, &short(*value), (LEFT + len + 5, top + BAR / 2 - 1), 13, HPos::Left)?;
    }
    area.present()?;
    drop(area);
    Ok(())
}

fn lines(svg: &mut String, outcome: &Outcome) -> Drawn {
    let medians = medians(outcome);
    let points: Vec<(&Entry, f64, f64)> =
        medians.iter().filter_map(|(entry, value)| Some((*entry, entry.x?, *value))).collect();
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values
            .fold((f64::INFINITY, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)))
    };
    let x = bounds(&mut points.iter().map(|point| point.1));
    let y = bounds(&mut points.iter().map(|point| point.2));
    if points.is_empty() {
        return Err("nothing was measured".into());
    }
    let area = SVGBackend::with_string(svg, (WIDTH, LINES_HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    text(&area, &heading(outcome), (12, 20), 18, HPos::Left)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .margin_top(64)
        .x_label_area_size(36)
        .y_label_area_size(60)
        // A ratio is the same distance everywhere.
        .build_cartesian_2d((x.0..x.1 * 1.02).log_scale(), 0.0..y.1 * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 14))
        .x_desc(outcome.case.over.unwrap_or_default())
        .y_desc(outcome.case.shown.unit())
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    let mut names: Vec<&str> = Vec::new();
    for (entry, ..) in &points {
        if names.contains(&entry.name.as_str()) {
            continue;
        }
        let (color, at) = (color(entry), 20 + 240 * names.len() as i32);
        names.push(&entry.name);
        area.draw(&Rectangle::new([(at, 44), (at + 16, 50)], color.filled()))?;
        text(&area, &entry.name, (at + 22, 47), 14, HPos::Left)?;
        let line = points.iter().filter(|point| point.0.name == entry.name).map(|point| (point.1, point.2));
        chart.draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?;
        chart.draw_series(line.map(|point| Circle::new(point, 3, color.filled())))?;
    }
    drop(chart);
    area.present()?;
    drop(area);
    Ok(())
}

/// A quantity that was chosen, not measured.
pub fn plain(value: f64) -> String {
    ((value * 1000.0).round() / 1000.0).to_string()
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1000.0 => {
            let whole = format!("{value:.0}");
            let (head, tail) = whole.split_at(whole.len() - 3);
            format!("{head},{tail}")
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.095 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The kernel's ways in blues, mapwright's in warm colours, others in greys: told apart without a legend.
fn color(entry: &Entry) -> RGBColor {
    use mapwright_measure::ways::pager::Way;
    match entry.task.how {
        How::Mmap(_) | How::MmapIo | How::Rayon => RGBColor(60, 120, 185),
        How::Read(_) | How::FsRead => RGBColor(150, 190, 225),
        How::Pager(Way::Thread, _) => RGBColor(225, 125, 60),
        How::Pager(Way::InThread, _) => RGBColor(245, 180, 90),
        How::Pager(Way::Explicit, _) | How::Atomic(_) => RGBColor(190, 60, 45),
        How::Ring { .. } | How::Fio | How::Eventfd | How::Futex | How::Signal => RGBColor(110, 118, 128),
        How::Program(_, Under::Kernel) => RGBColor(60, 120, 185),
        How::Program(_, Under::Run(_)) => RGBColor(225, 125, 60),
        How::Peer(_) | How::MappedPeer(_) => RGBColor(170, 160, 180),
        How::Direct(_) => RGBColor(120, 120, 120),
        How::Journal => RGBColor(200, 90, 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.0156, "0.0156"),
            (1.5, "1.50"),
            (22.25, "22.2"),
            (999.0, "999"),
            (18_700.4, "18,700"),
            (2_340_000.0, "2.34 M"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!([plain(16.0), plain(1.5625)], ["16", "1.563"]);
    }
}
