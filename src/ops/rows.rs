//! What ops over the rows of a graph share: on the CPU, rows dealt to threads by their edges; on a GPU, the graph as `kernels/tile/csr.cuh` reads
//! it, and how it is cut into chunks.

use rayon::prelude::*;

use super::host::vectorised;
use super::pieces::Panel;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Csr, Ints, Pattern};
use crate::tensor::Tensor;

/// Mirrors `struct Graph` in `kernels/tile/csr.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct GraphParams {
    pub offsets: u64,
    /// 0: edges gather from themselves.
    pub indices: u64,
    /// 0: the number of an edge is its place.
    pub order: u64,
    pub rows: u64,
    pub edges: u64,
    pub chunk: u64,
    pub wide_offsets: u32,
    pub wide_indices: u32,
}

const _: () = assert!(size_of::<GraphParams>() == 56 && std::mem::offset_of!(GraphParams, wide_offsets) == 48);

impl GraphParams {
    pub fn new(pattern: &Pattern, deal: &Deal) -> Result<Self> {
        Ok(GraphParams {
            offsets: pattern.offsets.address()?,
            indices: pattern.indices.address()?,
            order: pattern.order.as_ref().map_or(Ok(0), Tensor::address)?,
            rows: pattern.rows as u64,
            edges: pattern.edges as u64,
            chunk: deal.chunk,
            wide_offsets: u32::from(pattern.offsets.dtype() == DType::I64),
            wide_indices: u32::from(pattern.indices.dtype() == DType::I64),
        })
    }
}

/// How the rows of a graph are cut into chunks. A function of the graph's shape and the results' width alone, so that the order of a sum is
/// the same on every GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deal {
    /// Edges and ends of rows in a chunk.
    pub chunk: u64,
    pub chunks: u64,
    /// Whether chunks cut rows.
    pub split: bool,
}

/// Positions of a chunk where memory does not ask for more.
const CHUNK: u64 = 256;
/// Rows at most this long are left whole: a chunk then takes at most a sixth more than its share.
const WHOLE: u64 = CHUNK / 6;
/// Bytes that the parts of cut rows may take.
const PARTS: u64 = 32 << 20;

impl Deal {
    /// For parts of `part_bytes` each.
    pub fn new(pattern: &Pattern, part_bytes: u64) -> Self {
        let all = pattern.rows as u64 + pattern.edges as u64;
        let split = pattern.max_degree as u64 > WHOLE;
        let most = (PARTS / (2 * part_bytes.max(1))).max(1);
        let chunk = if split { CHUNK.max(all.div_ceil(most)) } else { CHUNK };
        Deal { chunk, chunks: all.div_ceil(chunk), split }
    }

    /// What the team of `chunk` does in `tile::walk` of a graph of these offsets.
    #[cfg_attr(not(test), allow(dead_code))]
    pub fn stretch(&self, offsets: &[usize], chunk: u64) -> Stretch {
        let (rows, all) = (offsets.len() - 1, offsets.len() - 1 + offsets[offsets.len() - 1]);
        let from = (chunk * self.chunk) as usize;
        let to = all.min(from + self.chunk as usize);
        let mut probes = 0;
        let mut before = |position: usize| {
            let boundary = usize::from(self.split);
            bisect(0, rows, |row| {
                probes += 1;
                offsets[row + boundary] + row < position
            })
        };
        let (first, last) = (before(from), before(to));
        let edges = if self.split { (to - last) - (from - first) } else { offsets[last] - offsets[first] };
        let begun = self.split && last < rows && to - last > offsets[last].max(from - first);
        let cut = self.split && first < last && offsets[first] + first < from;
        let (rows, cut) = (last - first, usize::from(cut));
        Stretch { rows, written: rows - cut, edges, parts: usize::from(begun) + cut, probes }
    }

    /// What the teams of one head do together, whatever their rows hold: each looks up offsets to find its way, one sector at a time.
    #[cfg_attr(not(test), allow(dead_code))]
    pub fn walked(&self, offsets: &[usize]) -> Walked {
        let mut all = Walked::default();
        for chunk in 0..self.chunks {
            let Stretch { rows, written, edges, parts, probes } = self.stretch(offsets, chunk);
            // Of rows that may be cut the end is read, and of a chunk's first row the beginning, too.
            let ends = if self.split { rows + rows.min(1) } else { 2 * rows };
            all.lookups += (probes + ends) as u64;
            all.begun += (written + parts) as u64;
            all.written += written as u64;
            all.parts += parts as u64;
            all.edges += edges as u64;
        }
        all
    }

    /// Parts that chunks may leave.
    pub fn slots(&self) -> usize {
        if self.split { 2 * self.chunks as usize } else { 0 }
    }
}

/// A team's share of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) struct Stretch {
    /// Rows that end in it, or, where rows stay whole, begin in it.
    pub rows: usize,
    /// Of those, rows whose result it writes itself.
    pub written: usize,
    pub edges: usize,
    /// Parts of rows that it leaves to be joined.
    pub parts: usize,
    /// Offsets that bisection reads.
    pub probes: usize,
}

/// All teams' shares, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) struct Walked {
    /// Offsets that are read.
    pub lookups: u64,
    /// Rows and parts of rows.
    pub begun: u64,
    pub written: u64,
    pub parts: u64,
    pub edges: u64,
}

/// Lanes of a team for rows of `units`: enough for one each, at most a warp.
pub(crate) fn lanes(units: usize) -> u32 {
    units.clamp(1, 32).next_power_of_two() as u32
}

/// Refuses a graph on another device than its operand.
pub(crate) fn require_graph(op: &'static str, graph: &Csr, x: &Tensor) -> Result<()> {
    if graph.device() == x.device() {
        return Ok(());
    }
    let (expected, got) = (x.device().name(), graph.device().name());
    Err(Error::DeviceMismatch { op, argument: "graph", expected, got })
}

/// Work below this, in elements, stays on one thread.
const PARALLEL_FROM: usize = 64 * 1024;
/// Elements of work that a thread takes at a time.
const SHARE: usize = 64 * 1024;

/// The outputs of rows: row r has the elements `begins(r) .. begins(r + 1)`.
pub(crate) struct RowPanels<P, F> {
    pub panel: P,
    pub begins: F,
}

/// The rows of a graph on the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub offsets: Ints<'a>,
    pub rows: usize,
    pub edges: usize,
}

/// Calls `body(row, a, b)` with each row's elements of two outputs, several rows at a time on several threads. `cost` is the work of an edge, in
/// elements: threads take rows of about the same number of edges. Rows are independent, so results do not depend on the number of threads.
pub(crate) fn for_graph_rows<A: Panel, B: Panel>(
    graph: Rows<'_>,
    cost: usize,
    a: RowPanels<A, impl Fn(usize) -> usize + Sync>,
    b: RowPanels<B, impl Fn(usize) -> usize + Sync>,
    body: impl Fn(usize, &mut [A::Item], &mut [B::Item]) + Sync,
) {
    let Rows { offsets, rows, edges } = graph;
    let (a_begins, b_begins) = (a.begins, b.begins);
    let some = |first: usize, last: usize, mut a_rest: &mut [A::Item], mut b_rest: &mut [B::Item]| {
        vectorised(
            #[inline(always)]
            || {
                for row in first..last {
                    let (a_row, a_next) = std::mem::take(&mut a_rest).split_at_mut(a_begins(row + 1) - a_begins(row));
                    let (b_row, b_next) = std::mem::take(&mut b_rest).split_at_mut(b_begins(row + 1) - b_begins(row));
                    (a_rest, b_rest) = (a_next, b_next);
                    body(row, a_row, b_row);
                }
            },
        )
    };
    let group = |(first, last, a, b): (usize, usize, A, B)| a.fill(|a| b.fill(|b| some(first, last, a, b)));
    let share = (SHARE / cost.max(1)).max(1);
    let (mut groups, mut first) = (Vec::new(), 0);
    let (mut a_rest, mut b_rest) = (a.panel, b.panel);
    while first < rows {
        let wanted = offsets.at(first) + first + share;
        // The rows whose ends come before `wanted`, and at least one.
        let last = bisect(first + 1, rows, |row| offsets.at(row) + row < wanted);
        let (a_own, a_next) = a_rest.cut(a_begins(last) - a_begins(first));
        let (b_own, b_next) = b_rest.cut(b_begins(last) - b_begins(first));
        (a_rest, b_rest) = (a_next, b_next);
        groups.push((first, last, a_own, b_own));
        first = last;
    }
    if (rows + edges).saturating_mul(cost.max(1)) < PARALLEL_FROM {
        groups.into_iter().for_each(group);
    } else {
        groups.into_par_iter().for_each(group);
    }
}

/// The first of `low ..= high` for which `below` is false, `high` if it is for none.
fn bisect(mut low: usize, mut high: usize, mut below: impl FnMut(usize) -> bool) -> usize {
    while low < high {
        let middle = low + (high - low) / 2;
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// No second output.
pub(crate) fn nothing<'a>() -> RowPanels<&'a mut [()], impl Fn(usize) -> usize + Sync> {
    RowPanels { panel: &mut [], begins: |_| 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::graph::{Adjacency, HeldInts};

    #[test]
    fn every_row_is_visited_once_with_its_own_slices() {
        let degrees = [0usize, 3, 100_000, 1, 0, 0, 7];
        let edges: Vec<(usize, usize)> =
            degrees.iter().enumerate().flat_map(|(i, &d)| (0..d).map(move |j| (i, j % 7))).collect();
        let graph = Csr::new(&Adjacency::from_edges((7, 7), &edges, None).unwrap(), &Device::cpu()).unwrap();
        let held = HeldInts::of("test", graph.offsets()).unwrap();
        let offsets = held.values();
        let (mut by_row, mut by_edge) = (vec![0usize; 14], vec![0usize; graph.edges()]);
        let a = RowPanels { panel: &mut by_row[..], begins: |r| 2 * r };
        let b = RowPanels { panel: &mut by_edge[..], begins: |r: usize| offsets.at(r) };
        for_graph_rows(Rows { offsets, rows: 7, edges: graph.edges() }, 8, a, b, |row, a, b| {
            a.fill(row + 1);
            b.iter_mut().for_each(|v| *v += row);
            assert_eq!(b.len(), degrees[row]);
        });
        assert_eq!(by_row, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]);
        assert!(edges.iter().zip(&by_edge).all(|(&(i, _), &got)| i == got));
    }

    #[test]
    fn short_rows_stay_whole_and_parts_stay_small() {
        let of = |rows: usize, edges: usize, max_degree: usize| {
            let none = Tensor::zeros(&Device::cpu(), &[0], DType::I32).unwrap();
            Pattern { rows, edges, max_degree, offsets: none.clone(), indices: none, order: None }
        };
        let small = Deal::new(&of(16, 64, 16), 512);
        assert_eq!((small.chunks, small.split, small.slots()), (1, false, 0));
        let hub = Deal::new(&of(2_000_000, 32_000_000, 1_000_000), 512);
        assert!(hub.split && hub.slots() as u64 * 512 <= PARTS && hub.chunk * hub.chunks >= 34_000_000);
        assert_eq!(Deal::new(&of(100, 10_000, 1000), 512).chunk, CHUNK);
        assert_eq!((lanes(1), lanes(3), lanes(16), lanes(300)), (1, 4, 16, 32));
    }

    /// 2³¹ edges and nodes are an ordinary size: only arithmetic is done here, the arrays are not there.
    #[test]
    fn counts_beyond_32_bits_are_dealt_out_whole() {
        let device = Device::trace(80);
        let array = |dtype| Tensor::zeros(&device, &[1], dtype).unwrap();
        for (rows, edges, max_degree) in [
            (5usize, (1usize << 31) + 7, 1usize << 30),
            ((1 << 31) + 1, 1 << 35, 30),
            ((1 << 33) + 1, 1 << 36, 1 << 32),
        ] {
            let (offsets, indices) = (array(DType::I64), array(DType::I64));
            let pattern = Pattern { rows, edges, max_degree, offsets, indices, order: None };
            let all = (rows + edges) as u64;
            for part in [4, 512, 1 << 20] {
                let deal = Deal::new(&pattern, part);
                assert!(deal.chunks * deal.chunk >= all && (deal.chunks - 1) * deal.chunk < all);
                assert_eq!(deal.split, max_degree as u64 > WHOLE);
                assert!(deal.slots() as u64 * part <= PARTS.max(4 * part));
                // Every chunk of every head has its team, however many the grid holds at once.
                assert!(crate::ops::plan::blocks(deal.chunks * 64, 8) >= 1);
                let params = GraphParams::new(&pattern, &deal).unwrap();
                assert_eq!((params.rows, params.edges, params.chunk), (rows as u64, edges as u64, deal.chunk));
                assert_eq!((params.wide_offsets, params.wide_indices), (1, 1));
            }
        }
    }
}
