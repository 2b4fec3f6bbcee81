//! Graphs as text: Matrix Market coordinate files, and plain lists of edges.
//!
//! Matrix Market: a header `%%MatrixMarket matrix coordinate KIND SYMMETRY`, comments, a line `ROWS COLUMNS ENTRIES`, then an entry a line,
//! `ROW COLUMN [VALUE]`, counted from 1. KIND is `real`, `integer` or `pattern` (no values); SYMMETRY is `general`, `symmetric` or
//! `skew-symmetric`, of which the file holds one half. Row i of the matrix is row i of the graph: the edges that arrive at i.
//!
//! List of edges: a line `FROM TO [WEIGHT]` for each, counted from 0, parted by blanks, tabs or commas; lines that begin with `#` or `%` are
//! comments. All lines have a weight or none has. There are as many nodes as the largest number asks for.
//!
//! A bad line is an error that gives its number. A file may name nodes without edges, but not so many more than it has bytes that it
//! could only be meant to exhaust memory.

use std::path::Path;

use super::file_len;
use crate::error::{Error, Result};
use crate::graph::Adjacency;

/// Nodes that a file may name whatever its length.
const FREE_NODES: usize = 1 << 17;
/// Nodes for each byte of the file beyond.
const NODES_PER_BYTE: usize = 4;

/// Reads a graph: as Matrix Market if the file begins with that header, else as a list of edges.
///
/// # Errors
/// [`Error::File`] with the number of the line, [`Error::Io`].
pub fn read(path: &Path) -> Result<Adjacency> {
    file_len(path)?;
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    if bytes.starts_with(b"%%MatrixMarket") { parse_matrix_market(path, &bytes) } else { parse_edge_list(path, &bytes) }
}

/// The text of a Matrix Market file; `path` is for messages.
pub fn parse_matrix_market(path: &Path, bytes: &[u8]) -> Result<Adjacency> {
    let mut lines = Lines::of(path, bytes)?;
    let header = lines.next().unwrap_or_default();
    let form = Form::parse(header).ok_or_else(|| {
        lines.bad(
            "is no header `%%MatrixMarket matrix coordinate real|integer|pattern general|symmetric|skew-symmetric`",
        )
    })?;
    let size = lines.next_entry(b"%").ok_or_else(|| lines.bad("ends before the line of sizes"))?;
    let sizes: Vec<usize> = size.split_ascii_whitespace().map_while(|w| w.parse().ok()).collect();
    let &[rows, cols, entries] = &sizes[..] else {
        return Err(lines.bad("is no line of sizes: rows, columns, entries"));
    };
    lines.require_plausible(rows.max(cols))?;
    if form.half && rows != cols {
        return Err(lines.bad("claims symmetry of a matrix that is not square"));
    }
    let mut list = List::default();
    while let Some(line) = lines.next_entry(b"%") {
        let mut words = line.split_ascii_whitespace();
        let i = lines.index(words.next(), rows)?;
        let j = lines.index(words.next(), cols)?;
        let value = if form.values { Some(lines.value(words.next())?) } else { None };
        if words.next().is_some() {
            return Err(lines.bad("has more words than an entry"));
        }
        list.push((i, j), value);
        if form.half && i != j {
            list.push((j, i), value.map(|v| if form.skew { -v } else { v }));
        }
        lines.entries += 1;
        if lines.entries > entries {
            return Err(lines.bad(format!("is one entry more than the {entries} announced")));
        }
    }
    if lines.entries < entries {
        return Err(lines.bad(format!("is the last, after {} of {entries} entries", lines.entries)));
    }
    list.finish((rows, cols), form.values)
}

/// The text of a list of edges; `path` is for messages.
pub fn parse_edge_list(path: &Path, bytes: &[u8]) -> Result<Adjacency> {
    let mut lines = Lines::of(path, bytes)?;
    let (mut list, mut weighted, mut nodes) = (List::default(), None, 0);
    while let Some(line) = lines.next_entry(b"#%") {
        let mut words = line.split([' ', '\t', ',']).filter(|w| !w.is_empty());
        let (from, to) = (lines.node(words.next())?, lines.node(words.next())?);
        let value = words.next().map(|w| lines.value(Some(w))).transpose()?;
        if words.next().is_some() {
            return Err(lines.bad("has more words than an edge"));
        }
        if *weighted.get_or_insert(value.is_some()) != value.is_some() {
            return Err(lines.bad("has a weight where others have none, or lacks one"));
        }
        // A node is below usize::MAX, which `node` has checked.
        nodes = nodes.max(from + 1).max(to + 1);
        list.push((to, from), value);
    }
    list.finish((nodes, nodes), weighted == Some(true))
}

#[derive(Default)]
struct List {
    edges: Vec<(usize, usize)>,
    values: Vec<f32>,
}

impl List {
    fn push(&mut self, edge: (usize, usize), value: Option<f32>) {
        self.edges.push(edge);
        self.values.extend(value);
    }

    fn finish(self, shape: (usize, usize), weighted: bool) -> Result<Adjacency> {
        Adjacency::from_edges(shape, &self.edges, weighted.then_some(&self.values))
    }
}

/// What a Matrix Market header promises.
struct Form {
    values: bool,
    half: bool,
    skew: bool,
}

impl Form {
    fn parse(header: &str) -> Option<Form> {
        let lower = header.to_ascii_lowercase();
        let words: Vec<&str> = lower.split_ascii_whitespace().collect();
        let &["%%matrixmarket", "matrix", "coordinate", kind, symmetry] = &words[..] else { return None };
        let known = matches!(kind, "real" | "integer" | "pattern")
            && matches!(symmetry, "general" | "symmetric" | "skew-symmetric")
            && !(kind == "pattern" && symmetry == "skew-symmetric");
        known.then(|| Form {
            values: kind != "pattern",
            half: symmetry != "general",
            skew: symmetry == "skew-symmetric",
        })
    }
}

/// Lines with their numbers, for messages.
struct Lines<'a> {
    path: &'a Path,
    inner: std::str::Lines<'a>,
    bytes: usize,
    number: usize,
    entries: usize,
}

impl<'a> Lines<'a> {
    fn of(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            Error::file(path, format!("line {line} is no text"))
        })?;
        Ok(Lines { path, inner: text.lines(), bytes: bytes.len(), number: 0, entries: 0 })
    }

    fn next(&mut self) -> Option<&'a str> {
        self.number += 1;
        self.inner.next()
    }

    /// The next line that is neither blank nor a comment.
    fn next_entry(&mut self, comments: &[u8]) -> Option<&'a str> {
        loop {
            let line = self.next()?.trim();
            if line.as_bytes().first().is_some_and(|b| !comments.contains(b)) {
                return Some(line);
            }
        }
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("line {} {what}", self.number))
    }

    fn require_plausible(&self, nodes: usize) -> Result<()> {
        if nodes <= FREE_NODES.saturating_add(self.bytes.saturating_mul(NODES_PER_BYTE)) {
            return Ok(());
        }
        Err(self.bad(format!("asks for {nodes} nodes in a file of {} bytes", self.bytes)))
    }

    /// A number from 1 to `count`, counted from 0.
    fn index(&self, word: Option<&str>, count: usize) -> Result<usize> {
        match word.and_then(|w| w.parse::<usize>().ok()) {
            Some(i) if (1..=count).contains(&i) => Ok(i - 1),
            _ => Err(self.bad(format!("lacks a number from 1 to {count} where one is due"))),
        }
    }

    fn node(&self, word: Option<&str>) -> Result<usize> {
        let node = word.and_then(|w| w.parse::<usize>().ok()).filter(|&n| n < usize::MAX);
        let node = node.ok_or_else(|| self.bad("lacks two whole numbers from 0"))?;
        self.require_plausible(node + 1)?;
        Ok(node)
    }

    fn value(&self, word: Option<&str>) -> Result<f32> {
        let value = word.and_then(|w| w.parse::<f32>().ok()).filter(|v| v.is_finite());
        value.ok_or_else(|| self.bad("lacks a finite value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn market(text: &str) -> Result<Adjacency> {
        parse_matrix_market(Path::new("g.mtx"), text.as_bytes())
    }

    fn list(text: &str) -> Result<Adjacency> {
        parse_edge_list(Path::new("g.txt"), text.as_bytes())
    }

    #[test]
    fn both_forms_are_read() {
        let head = "%%MatrixMarket matrix coordinate";
        let g = market(&format!("{head} real general\n% note\n\n2 3 2\n2 1 0.5\n1 3 -2e0\n")).unwrap();
        assert_eq!(g.to_dense(), [0.0, 0.0, -2.0, 0.5, 0.0, 0.0]);
        let g = market(&format!("{head} Pattern Symmetric\n3 3 2\n2 1\n3 3\n")).unwrap();
        assert_eq!((g.to_dense(), g.values()), (vec![0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], None));
        let g = market(&format!("{head} integer skew-symmetric\n2 2 1\n2 1 3")).unwrap();
        assert_eq!(g.to_dense(), [0.0, -3.0, 3.0, 0.0]);
        // From 0 to 2: it arrives at 2.
        let g = list("# from to\r\n0 2 0.5\r\n1,\t0,1\r\n").unwrap();
        assert_eq!((g.rows(), g.neighbours(2), g.value(1)), (3, &[0][..], 0.5));
        assert_eq!(list("").unwrap(), Adjacency::empty(0, 0).unwrap());
    }

    #[test]
    fn the_bad_line_is_named() {
        let refused = |made: Result<Adjacency>, part: &str| {
            let text = made.unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        };
        let head = "%%MatrixMarket matrix coordinate real general";
        refused(market(""), "g.mtx: line 1 is no header");
        refused(market("%%MatrixMarket matrix array real general\n"), "line 1 is no header");
        refused(market(&format!("{head}\n% only\n")), "ends before the line of sizes");
        refused(market(&format!("{head}\n2 2\n")), "line 2 is no line of sizes");
        refused(market(&format!("{head}\n2 2 1\n3 1 1\n")), "line 3 lacks a number from 1 to 2");
        refused(market(&format!("{head}\n2 2 1\n0 1 1\n")), "line 3 lacks a number from 1 to 2");
        refused(market(&format!("{head}\n2 2 1\n1 1 nan\n")), "line 3 lacks a finite value");
        refused(market(&format!("{head}\n2 2 1\n1 1 1 1\n")), "line 3 has more words");
        refused(market(&format!("{head}\n2 2 1\n1 1 1\n2 2 1\n")), "line 4 is one entry more");
        refused(market(&format!("{head}\n2 2 2\n1 1 1\n")), "after 1 of 2 entries");
        refused(market(&format!("{head}\n99999999999999 2 0\n")), "asks for 99999999999999 nodes");
        refused(list("0 1\n\n0 x\n"), "g.txt: line 3 lacks two whole numbers");
        refused(list("0 1\n0 1 2\n"), "line 2 has a weight");
        refused(list("0 1 2 3\n"), "line 1 has more words");
        refused(list("0 1 inf\n"), "line 1 lacks a finite value");
        refused(list("0 18446744073709551615\n"), "line 1");
        refused(parse_edge_list(Path::new("g.txt"), b"0 1\n\xff\n"), "line 2 is no text");
    }
}
