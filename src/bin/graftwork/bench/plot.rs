//! Each op's time beside its floor, as bars on a logarithmic axis.

use std::path::Path;

use graftwork::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::Row;

/// Pixels.
const LINE: i32 = 26;
const BAR: i32 = 9;
const LABELS: i32 = 410;
const TOP: i32 = 64;
const BOTTOM: i32 = 44;
const WIDTH: i32 = 1240;
const TIME: RGBColor = RGBColor(46, 98, 140);
const FLOOR: RGBColor = RGBColor(214, 150, 60);
const FAINT: RGBColor = RGBColor(222, 222, 222);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes the plot of the rows that have a time.
pub fn write(path: &Path, title: &str, rows: &[Row]) -> Result<()> {
    let rows: Vec<(&Row, f64)> = rows.iter().filter_map(|r| Some((r, r.seconds?))).collect();
    let mut svg = String::new();
    draw(&mut svg, title, &rows).map_err(|reason| Error::File { path: path.into(), reason })?;
    crate::output::write(path, svg.as_bytes())
}

fn draw(svg: &mut String, title: &str, rows: &[(&Row, f64)]) -> std::result::Result<(), String> {
    let bottom = TOP + LINE * rows.len() as i32;
    let area = SVGBackend::with_string(svg, (WIDTH as u32, (bottom + BOTTOM) as u32)).into_drawing_area();
    let axis = Axis::over(rows);
    area.fill(&WHITE).map_err(text)?;
    write_at(&area, title, (16, 12), 22)?;
    legend(&area)?;
    for decade in axis.first..=axis.last {
        let x = axis.x(10f64.powi(decade));
        area.draw(&PathElement::new(vec![(x, TOP), (x, bottom)], FAINT)).map_err(text)?;
        write_at(&area, &decade_name(decade), (x - 16, bottom + 8), 14)?;
    }
    for (i, (row, seconds)) in rows.iter().enumerate() {
        let y = TOP + LINE * i as i32 + 4;
        let label = format!("{} {}  {}  {}", row.op, row.pass, row.dtype, row.shape);
        write_at(&area, &label, (16, y + 2), 14)?;
        let bar = |value: f64, y: i32, colour: RGBColor| {
            let corners = [(LABELS, y), (axis.x(value).max(LABELS + 1), y + BAR)];
            area.draw(&Rectangle::new(corners, colour.filled())).map_err(text)
        };
        bar(*seconds, y, TIME)?;
        if let Some(floor) = row.floor_seconds {
            bar(floor, y + BAR, FLOOR)?;
        }
        write_at(&area, &super::seconds(*seconds), (axis.x(*seconds).max(LABELS) + 5, y - 2), 13)?;
    }
    area.present().map_err(text)
}

fn legend(area: &Area) -> std::result::Result<(), String> {
    for (x, colour, name) in [(LABELS, TIME, "time"), (LABELS + 80, FLOOR, "floor")] {
        area.draw(&Rectangle::new([(x, 44), (x + 14, 53)], colour.filled())).map_err(text)?;
        write_at(area, name, (x + 20, 41), 14)?;
    }
    Ok(())
}

fn write_at(area: &Area, words: &str, at: (i32, i32), size: i32) -> std::result::Result<(), String> {
    let style = ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(words.to_string(), at, style)).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    format!("cannot be drawn: {error}")
}

/// Seconds to pixels, over whole decades.
struct Axis {
    first: i32,
    last: i32,
}

impl Axis {
    fn over(rows: &[(&Row, f64)]) -> Self {
        let all = rows.iter().flat_map(|(row, seconds)| [Some(*seconds), row.floor_seconds]).flatten();
        let (low, high) = all.filter(|v| *v > 0.0).fold((1.0f64, 1e-9f64), |(a, b), v| (a.min(v), b.max(v)));
        Axis {
            first: low.log10().floor() as i32,
            last: (high.log10().ceil() as i32).max(low.log10().floor() as i32 + 1),
        }
    }

    fn x(&self, seconds: f64) -> i32 {
        let share = (seconds.max(1e-12).log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        // Room for the number beside the longest bar.
        LABELS + (share * f64::from(WIDTH - LABELS - 80)) as i32
    }
}

fn decade_name(decade: i32) -> String {
    // A power of ten has nothing behind its point.
    super::seconds(10f64.powi(decade)).replace(".00", "").replace(".0", "")
}
