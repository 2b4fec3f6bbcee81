//! Tables for people, JSON for programs.

use std::path::Path;

use graftwork::{Error, Result};
use serde::Serialize;

/// Rows under a header, columns as wide as their widest cell; numbers (cells that start with a digit or sign) to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([header[c].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<String>| cells.join("  ").trim_end().to_string() + "\n";
    let pad = |text: &str, c: usize| {
        let numeric = text.starts_with(|ch: char| ch.is_ascii_digit() || ch == '-' || ch == '+');
        if numeric { format!("{text:>0$}", widths[c]) } else { format!("{text:<0$}", widths[c]) }
    };
    let mut out = line(header.iter().enumerate().map(|(c, h)| format!("{h:<0$}", widths[c])).collect());
    out += &line(widths.iter().map(|w| "─".repeat(*w)).collect());
    for row in rows {
        out += &line(row.iter().enumerate().map(|(c, cell)| pad(cell, c)).collect());
    }
    out
}

/// Bytes with a binary unit.
pub fn bytes(n: usize) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Writes `value` to `path`, aside first, so that a full disk leaves no half file.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::File { path: path.into(), reason: format!("cannot be written as JSON: {e}") })?;
    text.push(b'\n');
    graftwork::format::atomic::write_file(path, &text)
}
