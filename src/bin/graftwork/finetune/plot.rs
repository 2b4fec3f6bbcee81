//! Scores and densities over steps, and the blocks that were chosen in the end.

use std::path::Path;

use graftwork::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::methods::Picture;
use super::report::RunReport;
use super::train::Point;

/// Pixels.
const WIDTH: i32 = 1100;
const MARGIN: i32 = 60;
const CHART: i32 = 260;
const TITLE: i32 = 48;
/// Of a picture: its longest side, its label, and the room around it.
const SIDE: i32 = 96;
const LABEL: i32 = 18;
const GAP: i32 = 20;
const COLOURS: [RGBColor; 6] = [
    RGBColor(46, 98, 140),
    RGBColor(214, 120, 40),
    RGBColor(70, 140, 80),
    RGBColor(150, 80, 150),
    RGBColor(120, 120, 120),
    RGBColor(180, 50, 60),
];
const FAINT: RGBColor = RGBColor(222, 222, 222);
const EMPTY: RGBColor = RGBColor(240, 240, 240);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), String>;

/// Writes the plot of all runs.
pub fn write(path: &Path, title: &str, runs: &[RunReport]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, title, runs).map_err(|reason| Error::File { path: path.into(), reason })?;
    crate::output::write(path, svg.as_bytes())
}

fn draw(svg: &mut String, title: &str, runs: &[RunReport]) -> Drawn {
    let dense = runs.iter().any(|r| r.density.is_some());
    let charts = TITLE + (1 + i32::from(dense)) * (CHART + MARGIN);
    let rows: i32 = runs.iter().map(|run| gallery_height(&run.pictures)).sum();
    let area = SVGBackend::with_string(svg, (WIDTH as u32, (charts + rows + GAP) as u32)).into_drawing_area();
    area.fill(&WHITE).map_err(text)?;
    write_at(&area, title, (16, 12), 22)?;
    let score = runs.first().map_or("score", |r| &r.score);
    chart(&area, TITLE, &format!("{score} on held-out samples"), runs, |p| Some(p.score))?;
    if dense {
        chart(&area, TITLE + CHART + MARGIN, "density", runs, |p| p.density)?;
    }
    let mut top = charts;
    for run in runs {
        gallery(&area, top, run)?;
        top += gallery_height(&run.pictures);
    }
    area.present().map_err(text)
}

/// One value over steps, a line for each run.
fn chart(area: &Area, top: i32, title: &str, runs: &[RunReport], value: impl Fn(&Point) -> Option<f64>) -> Drawn {
    let steps = runs.iter().flat_map(|r| &r.history).map(|p| p.step).max().unwrap_or(1).max(1);
    let values = runs.iter().flat_map(|r| &r.history).filter_map(&value);
    let (low, high) = values.fold((1.0f64, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
    let span = (high - low).max(0.01);
    let (low, high) = ((low - 0.1 * span).max(0.0), high + 0.1 * span);
    let (left, right, bottom) = (MARGIN + 20, WIDTH - 200, top + CHART);
    let x = |step: u64| left + ((right - left) as f64 * step as f64 / steps as f64) as i32;
    let y = |v: f64| bottom - ((CHART - 30) as f64 * (v - low) / (high - low)) as i32;
    write_at(area, title, (left, top), 15)?;
    for i in 0..=4 {
        let v = low + (high - low) * f64::from(i) / 4.0;
        area.draw(&PathElement::new(vec![(left, y(v)), (right, y(v))], FAINT)).map_err(text)?;
        write_at(area, &format!("{:.1} %", 100.0 * v), (left - 58, y(v) - 8), 13)?;
        let step = steps * i as u64 / 4;
        write_at(area, &step.to_string(), (x(step) - 8, bottom + 6), 13)?;
    }
    for (i, run) in runs.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let line: Vec<(i32, i32)> = run.history.iter().filter_map(|p| Some((x(p.step), y(value(p)?)))).collect();
        if line.is_empty() {
            continue;
        }
        area.draw(&PathElement::new(line, colour.stroke_width(2))).map_err(text)?;
        let at = top + 30 + 22 * i as i32;
        area.draw(&Rectangle::new([(right + 20, at), (right + 34, at + 9)], colour.filled())).map_err(text)?;
        write_at(area, &run.method, (right + 40, at - 4), 14)?;
    }
    Ok(())
}

fn columns() -> i32 {
    (WIDTH - 2 * GAP) / (SIDE + GAP)
}

fn gallery_height(pictures: &[Picture]) -> i32 {
    if pictures.is_empty() {
        return 0;
    }
    LABEL + 10 + (pictures.len() as i32 + columns() - 1) / columns() * (SIDE + LABEL + GAP)
}

/// The blocks of every matrix: dark where one learns.
fn gallery(area: &Area, top: i32, run: &RunReport) -> Drawn {
    if run.pictures.is_empty() {
        return Ok(());
    }
    write_at(area, &format!("{}: {}", run.method, run.adapter), (GAP, top), 15)?;
    for (i, picture) in run.pictures.iter().enumerate() {
        let (row, column) = (i as i32 / columns(), i as i32 % columns());
        let (left, top) = (GAP + column * (SIDE + GAP), top + LABEL + 10 + row * (SIDE + LABEL + GAP));
        write_at(area, &short(&picture.name), (left, top), 11)?;
        blocks(area, left, top + LABEL, picture)?;
    }
    Ok(())
}

fn blocks(area: &Area, left: i32, top: i32, picture: &Picture) -> Drawn {
    let most = picture.rows.max(picture.columns).max(1) as i32;
    // Whole pixels: a grid of more blocks than that shows one in that many.
    let cell = (SIDE / most).max(1);
    let stride = (most as usize).div_ceil(SIDE as usize).max(1);
    let shown = |n: usize| n.div_ceil(stride) as i32 * cell;
    let corners = [(left, top), (left + shown(picture.columns), top + shown(picture.rows))];
    area.draw(&Rectangle::new(corners, EMPTY.filled())).map_err(text)?;
    for row in (0..picture.rows).step_by(stride) {
        for column in (0..picture.columns).step_by(stride) {
            if picture.filled[row * picture.columns + column] {
                let (x, y) = (left + (column / stride) as i32 * cell, top + (row / stride) as i32 * cell);
                let inner = (cell - 1).max(1);
                area.draw(&Rectangle::new([(x, y), (x + inner, y + inner)], COLOURS[0].filled())).map_err(text)?;
            }
        }
    }
    Ok(())
}

/// `vit.layers.3.attention.q_proj.block_sparse` as `3.q_proj`.
fn short(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let number = parts.iter().find(|p| p.bytes().all(|b| b.is_ascii_digit())).copied();
    parts.retain(|p| *p != "block_sparse");
    let last = parts.last().copied().unwrap_or(name);
    number.map_or_else(|| last.to_string(), |number| format!("{number}.{last}"))
}

fn write_at(area: &Area, words: &str, at: (i32, i32), size: i32) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(words.to_string(), at, style)).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    format!("cannot be drawn: {error}")
}
