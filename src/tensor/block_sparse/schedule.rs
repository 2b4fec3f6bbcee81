//! How the blocks of a pattern are shared out: evenly, however unequal the rows are.
//!
//! A product that sums along rows computes one line of output tiles for each row of blocks. A line of more than `limit` blocks is
//! cut into pieces of at most that many; pieces go to a workspace and are added in their order. The limit depends on the pattern
//! alone, so that a sum has one order on every machine.

/// The piece of an item that computes its whole line.
pub(crate) const DIRECT: u32 = u32::MAX;

/// `count` blocks of `line` from `first` on (a position in row order, or in column order).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub line: u32,
    pub first: u32,
    pub count: u32,
    /// Number of the piece in the workspace, or [`DIRECT`].
    pub piece: u32,
}

/// A line that was cut: the sum of pieces `first .. first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joint {
    pub line: u32,
    pub first: u32,
    pub count: u32,
}

impl Item {
    /// Of its blocks.
    pub fn positions(&self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }

    pub fn words(&self) -> [u32; 4] {
        [self.line, self.first, self.count, self.piece]
    }
}

impl Joint {
    pub fn words(&self) -> [u32; 4] {
        [self.line, self.first, self.count, 0]
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Longest first, so that the last to start are short. Every line has at least one, those without blocks too.
    pub items: Vec<Item>,
    /// All lines whole, longest first.
    pub lines: Vec<Item>,
    pub joints: Vec<Joint>,
    /// Pieces in the workspace.
    pub pieces: usize,
}

/// Elements along the sum below which a piece is not worth its trip through the workspace.
const SHORTEST_PIECE: usize = 1024;

impl Schedule {
    pub fn new(offsets: &[u32], block: usize) -> Self {
        let nnz = offsets.last().copied().unwrap_or(0) as usize;
        let lines = offsets.windows(2).filter(|w| w[0] < w[1]).count().max(1);
        let limit = (2 * nnz.div_ceil(lines)).max(SHORTEST_PIECE / block);
        let mut out = Schedule { items: Vec::new(), lines: Vec::new(), joints: Vec::new(), pieces: 0 };
        for (line, w) in offsets.windows(2).enumerate() {
            let (first, count, line) = (w[0], (w[1] - w[0]) as usize, line as u32);
            let pieces = count.div_ceil(limit);
            let whole = Item { line, first, count: count as u32, piece: DIRECT };
            out.lines.push(whole);
            if pieces <= 1 {
                out.items.push(whole);
                continue;
            }
            out.joints.push(Joint { line, first: out.pieces as u32, count: pieces as u32 });
            for p in 0..pieces {
                // Equal to within one block.
                let (begin, end) = (count * p / pieces, count * (p + 1) / pieces);
                let piece = (out.pieces + p) as u32;
                out.items.push(Item { line, first: first + begin as u32, count: (end - begin) as u32, piece });
            }
            out.pieces += pieces;
        }
        for items in [&mut out.items, &mut out.lines] {
            items.sort_by_key(|item| std::cmp::Reverse(item.count));
        }
        out
    }
}

/// Elements of a row of blocks that a strip gathers at most.
pub(crate) const STRIP: usize = 256;

/// Neighbouring blocks of one row, as many as fit into a strip: what a sampled product computes together.
pub(crate) fn strips(row_offsets: &[u32], block: usize) -> Vec<Item> {
    let each = (STRIP / block) as u32;
    let mut out = Vec::new();
    for (line, w) in row_offsets.windows(2).enumerate() {
        let mut first = w[0];
        while first < w[1] {
            let count = each.min(w[1] - first);
            out.push(Item { line: line as u32, first, count, piece: DIRECT });
            first += count;
        }
    }
    out
}
