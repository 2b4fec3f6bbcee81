//! A graph in host memory.

use crate::error::{Error, Result};

const OP: &str = "graph";

/// A validated graph in host memory: `rows` destinations, `cols` sources, the edges of each row together.
#[derive(Clone, Debug, PartialEq)]
pub struct Adjacency {
    rows: usize,
    cols: usize,
    offsets: Vec<usize>,
    indices: Vec<usize>,
    values: Option<Vec<f32>>,
}

impl Adjacency {
    /// From compressed rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for lengths that disagree, [`Error::Value`] for offsets that do not rise from 0 to the number of edges, for
    /// a column out of range, and for a value that is not finite; each names the place.
    pub fn new(
        (rows, cols): (usize, usize),
        offsets: Vec<usize>,
        indices: Vec<usize>,
        values: Option<Vec<f32>>,
    ) -> Result<Self> {
        require_countable(rows, cols)?;
        if offsets.len() != rows + 1 {
            return Err(Error::shape(OP, "offsets", format!("one more than {rows} rows"), &[offsets.len()]));
        }
        let edges = indices.len();
        if offsets[0] != 0 || offsets[rows] != edges {
            let got = format!("{} to {}", offsets[0], offsets[rows]);
            return Err(Error::value(OP, "offsets", format!("from 0 to {edges}, the number of indices"), got));
        }
        if let Some(i) = (0..rows).find(|&i| offsets[i] > offsets[i + 1]) {
            let got = format!("{} after {} at row {i}", offsets[i + 1], offsets[i]);
            return Err(Error::value(OP, "offsets", "rising offsets", got));
        }
        if let Some(e) = indices.iter().position(|&j| j >= cols) {
            return Err(Error::value(OP, "indices", format!("columns below {cols}"), at(indices[e], e)));
        }
        if let Some(values) = &values {
            if values.len() != edges {
                return Err(Error::shape(OP, "values", format!("one for each of {edges} edges"), &[values.len()]));
            }
            if let Some(e) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::value(OP, "values", "finite numbers", at(values[e], e)));
            }
        }
        Ok(Adjacency { rows, cols, offsets, indices, values })
    }

    /// No edges.
    pub fn empty(rows: usize, cols: usize) -> Result<Self> {
        require_countable(rows, cols)?;
        Ok(Adjacency { rows, cols, offsets: vec![0; rows + 1], indices: Vec::new(), values: None })
    }

    /// From a list of edges (destination, source) in any order. Those of a row are sorted by source; parallel edges stay, in the
    /// order of the list.
    pub fn from_edges((rows, cols): (usize, usize), edges: &[(usize, usize)], values: Option<&[f32]>) -> Result<Self> {
        require_countable(rows, cols)?;
        if let Some(e) = edges.iter().position(|&(i, j)| i >= rows || j >= cols) {
            let expected = format!("pairs below ({rows}, {cols})");
            return Err(Error::value(OP, "edges", expected, at(format!("{:?}", edges[e]), e)));
        }
        if values.is_some_and(|v| v.len() != edges.len()) {
            let got = values.map_or(0, <[f32]>::len);
            return Err(Error::shape(OP, "values", format!("one for each of {} edges", edges.len()), &[got]));
        }
        let mut order: Vec<usize> = (0..edges.len()).collect();
        order.sort_by_key(|&e| (edges[e], e));
        let mut offsets = vec![0; rows + 1];
        for &(i, _) in edges {
            offsets[i + 1] += 1;
        }
        for i in 0..rows {
            offsets[i + 1] += offsets[i];
        }
        let indices = order.iter().map(|&e| edges[e].1).collect();
        let values = values.map(|v| order.iter().map(|&e| v[e]).collect());
        Adjacency::new((rows, cols), offsets, indices, values)
    }

    /// The elements of a row-major matrix that are not zero, with their values.
    pub fn from_dense((rows, cols): (usize, usize), matrix: &[f32]) -> Result<Self> {
        if rows.checked_mul(cols) != Some(matrix.len()) {
            return Err(Error::shape(OP, "matrix", format!("[{rows}, {cols}]"), &[matrix.len()]));
        }
        let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in matrix.chunks(cols.max(1)).take(rows) {
            for (j, &v) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
                indices.push(j);
                values.push(v);
            }
            offsets.push(indices.len());
        }
        offsets.resize(rows + 1, indices.len());
        Adjacency::new((rows, cols), offsets, indices, Some(values))
    }

    /// Of parts that keep each other's proof: only for transformations of a validated graph.
    pub(super) fn trusted(
        (rows, cols): (usize, usize),
        offsets: Vec<usize>,
        indices: Vec<usize>,
        values: Option<Vec<f32>>,
    ) -> Self {
        debug_assert!(offsets.len() == rows + 1 && offsets[rows] == indices.len());
        Adjacency { rows, cols, offsets, indices, values }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn edges(&self) -> usize {
        self.indices.len()
    }

    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    pub fn values(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    pub fn degree(&self, row: usize) -> usize {
        self.offsets[row + 1] - self.offsets[row]
    }

    pub fn max_degree(&self) -> usize {
        self.offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Sources of row `row`.
    pub fn neighbours(&self, row: usize) -> &[usize] {
        &self.indices[self.offsets[row]..self.offsets[row + 1]]
    }

    /// Weight of edge `e`: 1 where edges have no values.
    pub fn value(&self, e: usize) -> f32 {
        self.values.as_ref().map_or(1.0, |v| v[e])
    }

    /// Whether the sources of every row rise strictly: sorted, and no parallel edges.
    pub fn is_simple(&self) -> bool {
        (0..self.rows).all(|i| self.neighbours(i).windows(2).all(|w| w[0] < w[1]))
    }

    /// This graph if it is sorted and without parallel edges.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first row where it is not.
    pub fn require_simple(self) -> Result<Self> {
        match (0..self.rows).find(|&i| self.neighbours(i).windows(2).any(|w| w[0] >= w[1])) {
            None => Ok(self),
            Some(i) => {
                Err(Error::value(OP, "indices", "sources that rise within each row", format!("not so in row {i}")))
            }
        }
    }

    /// The same edges without values.
    pub fn without_values(mut self) -> Self {
        self.values = None;
        self
    }

    /// The same edges with these values.
    pub fn with_values(self, values: Vec<f32>) -> Result<Self> {
        Adjacency::new((self.rows, self.cols), self.offsets, self.indices, Some(values))
    }

    /// Every edge turned round, and for each new edge the number it had before.
    pub fn transpose(&self) -> (Adjacency, Vec<usize>) {
        let mut offsets = vec![0; self.cols + 1];
        for &j in &self.indices {
            offsets[j + 1] += 1;
        }
        for j in 0..self.cols {
            offsets[j + 1] += offsets[j];
        }
        let mut next = offsets.clone();
        let (mut indices, mut order) = (vec![0; self.edges()], vec![0; self.edges()]);
        for i in 0..self.rows {
            for e in self.offsets[i]..self.offsets[i + 1] {
                let to = &mut next[self.indices[e]];
                (indices[*to], order[*to]) = (i, e);
                *to += 1;
            }
        }
        let values = self.values.as_ref().map(|v| order.iter().map(|&e| v[e]).collect());
        (Adjacency::trusted((self.cols, self.rows), offsets, indices, values), order)
    }

    /// The matrix, row-major; parallel edges add up.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for i in 0..self.rows {
            for e in self.offsets[i]..self.offsets[i + 1] {
                out[i * self.cols + self.indices[e]] += self.value(e);
            }
        }
        out
    }
}

/// More nodes than this have no place in memory, and their offsets could not be counted.
const MOST_NODES: usize = 1 << 40;

fn require_countable(rows: usize, cols: usize) -> Result<()> {
    if rows.max(cols) <= MOST_NODES { Ok(()) } else { Err(Error::SizeOverflow { op: OP, dims: vec![rows, cols] }) }
}

fn at(what: impl std::fmt::Display, place: usize) -> String {
    format!("{what} at place {place}")
}
