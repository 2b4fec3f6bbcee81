//! The index arrays of a pattern on the host, and the checks that make one.

use super::{BLOCKS, OP};
use crate::error::{Error, Result};

/// Which blocks exist, and the same by columns. A value of this type is valid: sorted, unique, in range, consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    shape: [usize; 2],
    block: usize,
    index: Index,
}

/// The arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub row_offsets: Vec<u32>,
    pub columns: Vec<u32>,
    pub rows: Vec<u32>,
    pub t_offsets: Vec<u32>,
    pub t_rows: Vec<u32>,
    pub t_blocks: Vec<u32>,
}

/// `[⌈n/b⌉, ⌈k/b⌉]`, when b is a block's edge and blocks can be counted in 31 bits.
pub(crate) fn grid([n, k]: [usize; 2], block: usize) -> Result<[usize; 2]> {
    if !BLOCKS.contains(&block) {
        return Err(Error::value(OP, "block", "16, 32, 64 or 128", block));
    }
    let [rows, columns] = [n.div_ceil(block), k.div_ceil(block)];
    let counted = rows.checked_mul(columns).filter(|&c| c < 1 << 31 && rows < 1 << 31 && columns < 1 << 31);
    counted.map(|_| [rows, columns]).ok_or_else(|| Error::SizeOverflow { op: OP, dims: vec![n, k, block] })
}

impl Topology {
    /// From (row, column) of every block, sorted by row, then column, each once.
    pub fn from_blocks(shape: [usize; 2], block: usize, blocks: &[(u32, u32)]) -> Result<Self> {
        let [rows, _] = grid(shape, block)?;
        let mut row_offsets = vec![0u32; rows + 1];
        for (e, &(row, column)) in blocks.iter().enumerate() {
            if row as usize >= rows {
                let got = format!("block {e} at ({row}, {column})");
                return Err(Error::value(OP, "blocks", format!("rows below {rows}"), got));
            }
            if e > 0 && blocks[e - 1].0 > row {
                let got = format!("{:?} before ({row}, {column})", blocks[e - 1]);
                return Err(Error::value(OP, "blocks", "blocks sorted by row, then column", got));
            }
            row_offsets[row as usize + 1] += 1;
        }
        accumulate(&mut row_offsets);
        Topology::from_offsets(shape, block, row_offsets, blocks.iter().map(|b| b.1).collect())
    }

    /// From one flag per block of the grid, row-major.
    pub fn from_mask(shape: [usize; 2], block: usize, mask: &[bool]) -> Result<Self> {
        let [rows, columns] = grid(shape, block)?;
        if mask.len() != rows * columns {
            let expected = format!("{rows} x {columns} flags for {shape:?} in blocks of {block}");
            return Err(Error::shape(OP, "mask", expected, &[mask.len()]));
        }
        let (mut row_offsets, mut taken) = (vec![0u32], Vec::new());
        for row in 0..rows {
            for column in 0..columns {
                if mask[row * columns + column] {
                    taken.push(column as u32);
                }
            }
            row_offsets.push(taken.len() as u32);
        }
        Topology::from_offsets(shape, block, row_offsets, taken)
    }

    /// From offsets and columns: everything else follows from them.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first row whose offsets fall or whose columns are out of range, unsorted or repeated.
    pub fn from_offsets(shape: [usize; 2], block: usize, row_offsets: Vec<u32>, columns: Vec<u32>) -> Result<Self> {
        let [grid_rows, grid_columns] = grid(shape, block)?;
        let nnz = columns.len();
        if row_offsets.len() != grid_rows + 1 {
            let expected = format!("{} offsets for {grid_rows} rows of blocks", grid_rows + 1);
            return Err(Error::shape(OP, "row_offsets", expected, &[row_offsets.len()]));
        }
        let (first, last) = (row_offsets[0], row_offsets[grid_rows]);
        if first != 0 || last as usize != nnz {
            let got = format!("from {first} to {last}");
            return Err(Error::value(OP, "row_offsets", format!("offsets from 0 to {nnz}, the number of blocks"), got));
        }
        if let Some(row) = (0..grid_rows).find(|&r| row_offsets[r] > row_offsets[r + 1]) {
            let got = format!("{} after {} at row {row}", row_offsets[row + 1], row_offsets[row]);
            return Err(Error::value(OP, "row_offsets", "offsets that never fall", got));
        }
        let mut rows = Vec::with_capacity(nnz);
        let mut t_offsets = vec![0u32; grid_columns + 1];
        for row in 0..grid_rows {
            // Offsets lie between 0 and nnz, since they rise from one to the other.
            let own = &columns[row_offsets[row] as usize..row_offsets[row + 1] as usize];
            for (i, &column) in own.iter().enumerate() {
                if column as usize >= grid_columns {
                    let expected = format!("columns below {grid_columns}");
                    return Err(Error::value(OP, "columns", expected, format!("{column} in row {row}")));
                }
                if i > 0 && own[i - 1] >= column {
                    let got = format!("{column} after {} in row {row}", own[i - 1]);
                    return Err(Error::value(OP, "columns", "columns that rise within a row, each once", got));
                }
                rows.push(row as u32);
                t_offsets[column as usize + 1] += 1;
            }
        }
        accumulate(&mut t_offsets);
        let (mut t_rows, mut t_blocks) = (vec![0u32; nnz], vec![0u32; nnz]);
        let mut next = t_offsets.clone();
        for e in 0..nnz {
            // Blocks come by rising row, so each column's are found in that order.
            let place = &mut next[columns[e] as usize];
            t_rows[*place as usize] = rows[e];
            t_blocks[*place as usize] = e as u32;
            *place += 1;
        }
        Ok(Topology { shape, block, index: Index { row_offsets, columns, rows, t_offsets, t_rows, t_blocks } })
    }

    /// From arrays that a kernel made. They are held against the host's: a pattern is valid wherever it comes from.
    pub(crate) fn of_index(shape: [usize; 2], block: usize, index: Index) -> Result<Self> {
        let own = Topology::from_offsets(shape, block, index.row_offsets.clone(), index.columns.clone())?;
        if own.index == index {
            return Ok(own);
        }
        Err(Error::value(OP, "index", "arrays that agree with each other", "a transpose index of other blocks"))
    }

    /// `[n, k]`
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn block(&self) -> usize {
        self.block
    }

    /// `[⌈n/b⌉, ⌈k/b⌉]`
    pub fn grid(&self) -> [usize; 2] {
        [self.index.row_offsets.len() - 1, self.index.t_offsets.len() - 1]
    }

    pub fn nnz(&self) -> usize {
        self.index.columns.len()
    }

    /// Share of the blocks that exist; 0 for a matrix of none.
    pub fn density(&self) -> f64 {
        let [rows, columns] = self.grid();
        self.nnz() as f64 / ((rows * columns) as f64).max(1.0)
    }

    pub fn row_offsets(&self) -> &[u32] {
        &self.index.row_offsets
    }

    pub fn columns(&self) -> &[u32] {
        &self.index.columns
    }

    pub fn rows(&self) -> &[u32] {
        &self.index.rows
    }

    pub fn t_offsets(&self) -> &[u32] {
        &self.index.t_offsets
    }

    pub fn t_rows(&self) -> &[u32] {
        &self.index.t_rows
    }

    pub fn t_blocks(&self) -> &[u32] {
        &self.index.t_blocks
    }

    /// (row, column) of every block, in order.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.index.rows.iter().copied().zip(self.index.columns.iter().copied())
    }

    /// One flag per block of the grid, row-major.
    pub fn mask(&self) -> Vec<bool> {
        let [rows, columns] = self.grid();
        let mut mask = vec![false; rows * columns];
        for (row, column) in self.blocks() {
            mask[row as usize * columns + column as usize] = true;
        }
        mask
    }

    /// Elements of the matrix that the blocks cover. A parameter of their values has more where a block reaches beyond the edge.
    pub fn covered(&self) -> usize {
        let [n, k] = self.shape;
        let edge = |i: u32, extent: usize| self.block.min(extent - i as usize * self.block);
        self.blocks().map(|(row, column)| edge(row, n) * edge(column, k)).sum()
    }

    /// Calls `body(at, place, len)` for every row of every block: `len` elements at `at` of the values lie at `place` of the matrix.
    pub(crate) fn for_row_pieces(&self, mut body: impl FnMut(usize, usize, usize)) {
        let ([n, k], b) = (self.shape, self.block);
        for (e, (row, column)) in self.blocks().enumerate() {
            let (top, left) = (row as usize * b, column as usize * b);
            for i in 0..b.min(n - top) {
                body((e * b + i) * b, (top + i) * k + left, b.min(k - left));
            }
        }
    }
}

fn accumulate(counts: &mut [u32]) {
    for i in 1..counts.len() {
        counts[i] += counts[i - 1];
    }
}
