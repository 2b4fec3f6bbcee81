//! Tables for people, JSON for programs.

use std::path::Path;

use graftwork::{Error, Result};
use indicatif::ProgressBar;
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

/// Says on a terminal what goes on, for as long as it lives.
pub struct Working(ProgressBar);

pub fn working(what: &'static str) -> Working {
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    Working(bar)
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a line. A reader that has gone away, or a full disk behind stdout, must not end a run whose files are still to be written.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}
pub(crate) use say;

/// Makes the directories that `path` lies in, and fails now if [`write`] could not write it later, when the work is done.
pub fn prepare(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|source| Error::Io { path: path.into(), source })?;
    }
    if path.is_dir() {
        return Err(Error::File { path: path.into(), reason: "is a directory, expected a file".into() });
    }
    if !path.exists() {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return probe_directory(parent).map_err(|error| match error {
            Error::Io { source, .. } => Error::Io { path: path.into(), source },
            other => other,
        });
    }
    std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .map(drop)
        .map_err(|source| Error::Io { path: path.into(), source })
}

/// Fails now if no file could be made in `dir` later.
pub fn probe_directory(dir: &Path) -> Result<()> {
    let trial = dir.join(format!(".graftwork-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&trial);
    made.and_then(|_| std::fs::remove_file(&trial)).map_err(|source| Error::Io { path: dir.into(), source })
}

/// Writes a file: a regular one aside first, so that a full disk leaves no half of it; a pipe or device straight.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    match std::fs::canonicalize(path) {
        Ok(target) if target.is_file() => graftwork::format::atomic::write_file(&target, bytes),
        Ok(target) => {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().write(true).open(target).map_err(io)?;
            file.write_all(bytes).and_then(|()| file.flush()).map_err(io)
        }
        Err(_) => graftwork::format::atomic::write_file(path, bytes),
    }
}

/// Writes `value` to `path` as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::File { path: path.into(), reason: format!("cannot be written as JSON: {e}") })?;
    text.push(b'\n');
    write(path, &text)
}
