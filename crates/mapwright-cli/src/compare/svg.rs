//! The plot: a group of bars for each table, as ratio to mmap with advice.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{ratio_to_advised, title};
use super::rows::{Report, Row};
use crate::methods::Method;
use mapwright_measure::failure::{Failure, Result};

const HEIGHT: i32 = 460;
const LEFT: i32 = 60;
const RIGHT: i32 = 190;
const TOP: i32 = 50;
const BOTTOM: i32 = 60;
const BAR: i32 = 22;
const GAP: i32 = 36;

/// Draws the rows. Tables without mmap-advised have no ratio and are left out.
pub fn draw(path: &Path, report: &Report) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Failure::Message(format!("{}: {error}", path.display()));
    let svg = render(report).map_err(|error| failed(&error))?;
    std::fs::write(path, svg).map_err(|error| failed(&error))
}

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn render(report: &Report) -> Outcome<String> {
    let groups: Vec<Vec<(&Row, f64)>> = report
        .rows
        .chunk_by(|a, b| (a.pattern, a.threads) == (b.pattern, b.threads))
        .map(|rows| rows.iter().filter_map(|row| Some((row, ratio_to_advised(rows, row)?))).collect())
        .filter(|rows: &Vec<_>| !rows.is_empty())
        .collect();
    let bars: i32 = groups.iter().map(|rows| rows.len() as i32 * BAR + GAP).sum();
    let width = LEFT + bars.max(240) + RIGHT;
    let highest = groups.iter().flatten().map(|(_, ratio)| *ratio).fold(1.0, f64::max) * 1.1;

    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width as u32, HEIGHT as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let scale = Scale { highest };
        axes(&area, &scale, width, report)?;
        let mut left = LEFT + GAP / 2;
        for rows in &groups {
            left = group(&area, &scale, rows, left)?;
        }
        legend(&area, width, &groups)?;
        area.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

struct Scale {
    highest: f64,
}

impl Scale {
    fn y(&self, ratio: f64) -> i32 {
        HEIGHT - BOTTOM - (ratio / self.highest * f64::from(HEIGHT - TOP - BOTTOM)) as i32
    }

    /// A round distance between lines, for about six of them.
    fn step(&self) -> f64 {
        let rough = self.highest / 6.0;
        let unit = 10f64.powf(rough.log10().floor());
        [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * unit)
            .find(|step| *step >= rough)
            .unwrap_or(unit)
    }
}

fn text(area: &Area<'_>, words: &str, at: (i32, i32), size: u32, h: HPos, v: VPos) -> Outcome<()> {
    let style = ("sans-serif", size).into_font().color(&BLACK).pos(Pos::new(h, v));
    area.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

fn axes(area: &Area<'_>, scale: &Scale, width: i32, report: &Report) -> Outcome<()> {
    let heading = format!(
        "Speed as a multiple of mmap with advice (limit {}, {})",
        mapwright_measure::size::show(report.machine.limit_bytes),
        report.machine.kernel
    );
    text(area, &heading, (LEFT, 22), 15, HPos::Left, VPos::Center)?;
    let step = scale.step();
    let mut ratio = 0.0;
    while ratio <= scale.highest {
        let y = scale.y(ratio);
        area.draw(&PathElement::new(vec![(LEFT, y), (width - RIGHT, y)], BLACK.mix(0.15)))?;
        let digits = if step < 1.0 { 1 } else { 0 };
        text(area, &format!("{ratio:.digits$}×"), (LEFT - 8, y), 12, HPos::Right, VPos::Center)?;
        ratio += step;
    }
    let one = scale.y(1.0);
    area.draw(&PathElement::new(vec![(LEFT, one), (width - RIGHT, one)], BLACK.stroke_width(1)))?;
    Ok(())
}

fn group(area: &Area<'_>, scale: &Scale, rows: &[(&Row, f64)], left: i32) -> Outcome<i32> {
    let mut x = left;
    for (row, ratio) in rows {
        let top = scale.y(*ratio);
        area.draw(&Rectangle::new([(x, top), (x + BAR - 3, scale.y(0.0))], color(row.method).filled()))?;
        text(area, &format!("{ratio:.1}"), (x + BAR / 2 - 1, top - 3), 9, HPos::Center, VPos::Bottom)?;
        x += BAR;
    }
    let name = title(rows[0].0.pattern, rows[0].0.threads);
    text(area, &name, ((left + x) / 2, HEIGHT - BOTTOM + 12), 13, HPos::Center, VPos::Top)?;
    Ok(x + GAP)
}

fn legend(area: &Area<'_>, width: i32, groups: &[Vec<(&Row, f64)>]) -> Outcome<()> {
    let drawn = |method: &Method| groups.iter().flatten().any(|(row, _)| row.method == *method);
    for (index, method) in Method::ALL.into_iter().filter(drawn).enumerate() {
        let (x, y) = (width - RIGHT + 20, TOP + 10 + index as i32 * 22);
        area.draw(&Rectangle::new([(x, y), (x + 14, y + 14)], color(method).filled()))?;
        let label = match method {
            Method::Mapwright => "mapwright (default)",
            _ => method.name(),
        };
        text(area, label, (x + 22, y + 7), 13, HPos::Left, VPos::Center)?;
    }
    Ok(())
}

/// The kernel's ways in greys and blues, mapwright's in warm colours: told apart without a legend.
fn color(method: Method) -> RGBColor {
    match method {
        Method::Read => RGBColor(200, 200, 205),
        Method::Pread | Method::Pwrite => RGBColor(160, 165, 172),
        Method::Direct => RGBColor(110, 118, 128),
        Method::Mmap => RGBColor(150, 190, 225),
        Method::MmapAdvised => RGBColor(60, 120, 185),
        Method::Mapwright => RGBColor(245, 180, 90),
        Method::MapwrightInThread => RGBColor(225, 125, 60),
        Method::MapwrightExplicit => RGBColor(190, 60, 45),
    }
}
