//! Tables for people, JSON for programs.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// Prints a line. A reader that has gone away, or a full disk behind stdout, must not end a run whose files are still to be written: the
/// command goes on, and [`all_said`] tells at its end.
macro_rules! say {
    ($($part:tt)*) => { $crate::output::print(format_args!($($part)*)) };
}
pub(crate) use say;

/// The first failure of standard output.
static UNSAID: OnceLock<std::io::Error> = OnceLock::new();

pub fn print(line: std::fmt::Arguments<'_>) {
    shown(writeln!(std::io::stdout(), "{line}"));
}

/// Takes note of how writing to standard output went.
pub fn shown(written: std::io::Result<()>) {
    if let Err(error) = written {
        let _ = UNSAID.set(error);
    }
}

/// A line on standard error. Where that takes nothing, there is nobody left to tell.
pub fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether standard output took everything. A reader that has seen enough is no failure.
pub fn all_said() -> std::io::Result<()> {
    let flushed = std::io::stdout().flush();
    let failure = UNSAID.get().map(|e| std::io::Error::new(e.kind(), e.to_string())).or(flushed.err());
    failure.filter(|e| e.kind() != ErrorKind::BrokenPipe).map_or(Ok(()), Err)
}

/// An option that names what a command writes, as far as it was given.
pub type Written<'a> = (&'static str, Option<&'a Path>);

/// Fails now where a file that is to be written when the work is done could not be, and where two options name the same place. `dir`
/// becomes a directory. Parents of files are made.
pub fn prepare(files: &[Written<'_>], dir: Written<'_>) -> Result<()> {
    let given = files.iter().chain([&dir]).filter_map(|(option, path)| path.map(|path| (*option, path)));
    let places: Vec<_> = given.map(|(option, path)| (option, path, absolute(path))).collect();
    for (i, (option, path, place)) in places.iter().enumerate() {
        let is_file = *option != dir.0;
        if let Some((other, ..)) =
            places[i + 1..].iter().find(|(.., b)| b == place || (is_file && b.starts_with(place)))
        {
            let reason = format!("is for {other} already");
            return Err(Error::File { path: path.to_path_buf(), reason }.within(*option));
        }
        if is_file {
            prepare_file(path).map_err(|e| e.within(*option))?;
        }
    }
    Ok(())
}

/// What two spellings of one place have in common, whether it is there yet or not.
fn absolute(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for known in path.ancestors() {
        let known_or_here = if known.as_os_str().is_empty() { Path::new(".") } else { known };
        if let Ok(found) = std::fs::canonicalize(known_or_here) {
            return rest.iter().rev().fold(found, |whole, part| whole.join(part));
        }
        rest.extend(known.file_name());
    }
    path.to_path_buf()
}

/// Makes the directories that `path` lies in, and fails if [`write`] could not write it.
fn prepare_file(path: &Path) -> Result<()> {
    if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(Error::File { path: path.into(), reason: "is a directory, expected a file".into() });
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let possible = std::fs::create_dir_all(parent).and_then(|()| match path.exists() {
        true => std::fs::OpenOptions::new().append(true).open(path).map(drop),
        false => create_in(parent),
    });
    possible.map_err(|source| Error::Io { path: path.into(), source })
}

/// Fails if no file can be made in `dir`.
pub fn create_in(dir: &Path) -> std::io::Result<()> {
    let trial = dir.join(format!(".graftwork-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&trial);
    made.and_then(|_| std::fs::remove_file(&trial))
}

/// Writes a file: a regular one aside first, so that a full disk leaves no half of it; a pipe or device straight.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    match std::fs::canonicalize(path) {
        Ok(target) if target.is_file() => graftwork::format::atomic::write_file(&target, bytes),
        Ok(target) => {
            let mut file = std::fs::OpenOptions::new().write(true).open(target).map_err(io)?;
            file.write_all(bytes).and_then(|()| file.flush()).map_err(io)
        }
        Err(_) => graftwork::format::atomic::write_file(path, bytes),
    }
}

/// Writes what a command found to the file of its `--json`, if that was given.
pub fn report(json: Option<&Path>, found: &impl Serialize) -> Result<()> {
    json.map_or(Ok(()), |path| write_json(path, found).map_err(|e| e.within("--json")))
}

/// Writes `value` to `path` as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::File { path: path.into(), reason: format!("cannot be written as JSON: {e}") })?;
    text.push(b'\n');
    write(path, &text)
}
