//! Accuracy by threshold and by noise, side by side.

use std::path::Path;

use graftwork::{Error, Result};
use plotters::prelude::*;

use super::Point;

const SIZE: (u32, u32) = (1080, 420);
const WITH: RGBColor = RGBColor(46, 98, 140);
const WITHOUT: RGBColor = RGBColor(214, 150, 60);

pub fn write(path: &Path, labels: usize, thresholds: &[Point], noises: &[Point]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, labels, thresholds, noises).map_err(|reason| Error::File { path: path.into(), reason })?;
    crate::output::write(path, svg.as_bytes())
}

fn draw(svg: &mut String, labels: usize, thresholds: &[Point], noises: &[Point]) -> std::result::Result<(), String> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(text)?;
    let (left, right) = area.split_horizontally(SIZE.0 as i32 / 2);
    let title = |what: &str| format!("accuracy by {what}, {labels} labels a class");
    for (area, points, title, name) in [
        (left, thresholds, title("threshold"), "similarity threshold"),
        (right, noises, title("noise in the text"), "share of words replaced"),
    ] {
        let (low, high) =
            points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p.at), b.max(p.at)));
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(low..high, 0.0..100.0)
            .map_err(text)?;
        chart.configure_mesh().x_desc(name).y_desc("%").light_line_style(TRANSPARENT).draw().map_err(text)?;
        for (colour, label, of) in [
            (WITH, "with graph", (|p: &Point| &p.with_graph) as fn(&Point) -> &super::Cell),
            (WITHOUT, "without", |p: &Point| &p.without),
        ] {
            let line = points.iter().map(|p| (p.at, 100.0 * of(p).mean));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))
                .map_err(text)?
                .label(label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
            // From the lowest to the highest seed.
            let spread = points.iter().map(|p| {
                let ends = vec![(p.at, 100.0 * of(p).lowest), (p.at, 100.0 * of(p).highest)];
                PathElement::new(ends, colour.mix(0.5).stroke_width(1))
            });
            chart.draw_series(spread).map_err(text)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(text)?;
    }
    area.present().map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    format!("cannot be drawn: {error}")
}
