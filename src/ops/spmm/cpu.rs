//! The reference: each row edge by edge, in registers for blocks of columns. 16-bit features are widened as they are gathered.

use super::{By, Divide, Gather, OP, Reduce};
use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{HeldInts, Ints};
use crate::ops::host::Real;
use crate::ops::pieces::{Held, PIECE, Values, Written};
use crate::ops::rows::{RowPanels, Rows, for_graph_rows, nothing};
use crate::tensor::Tensor;

/// Columns that are added up side by side: four of the widest registers for `f32`.
const BLOCK: usize = PIECE;

/// Edges that are looked up together.
const AHEAD: usize = 16;

/// The operands of a gather, held for reading.
struct Operands<'a, T: Real> {
    offsets: HeldInts<'a>,
    indices: HeldInts<'a>,
    order: Option<HeldInts<'a>>,
    weights: Option<Held<'a, T>>,
    degrees: Option<HeldInts<'a>>,
    x: Held<'a, T>,
}

impl<'a, T: Real> Operands<'a, T> {
    fn of(gather: &'a Gather) -> Result<Self> {
        let pattern = gather.pattern;
        let degrees = match gather.divide {
            Divide::Gathered(offsets) => Some(HeldInts::of(OP, offsets)?),
            _ => None,
        };
        Ok(Operands {
            offsets: HeldInts::of(OP, &pattern.offsets)?,
            indices: HeldInts::of(OP, &pattern.indices)?,
            order: pattern.order.as_ref().map(|o| HeldInts::of(OP, o)).transpose()?,
            weights: gather.weights.map(|w| Held::of(OP, w)).transpose()?,
            degrees,
            x: Held::of(OP, gather.x)?,
        })
    }

    fn edges(&self, gather: &Gather) -> Edges<'_, T> {
        Edges {
            offsets: self.offsets.values(),
            indices: self.indices.values(),
            order: self.order.as_ref().map(HeldInts::values),
            weights: self.weights.as_ref().map(Held::values),
            degrees: self.degrees.as_ref().map(HeldInts::values),
            x: self.x.values(),
            f: gather.f(),
            heads: gather.heads,
            by: gather.by,
        }
    }
}

/// What an edge gathers, and its factor.
#[derive(Clone, Copy)]
struct Edges<'a, T> {
    offsets: Ints<'a>,
    indices: Ints<'a>,
    order: Option<Ints<'a>>,
    weights: Option<Values<'a, T>>,
    degrees: Option<Ints<'a>>,
    x: Values<'a, T>,
    f: usize,
    heads: usize,
    by: By,
}

impl<T: Real> Edges<'_, T> {
    #[inline(always)]
    fn number(&self, e: usize) -> usize {
        self.order.map_or(e, |order| order.at(e))
    }

    /// The row of x that edge e gathers.
    #[inline(always)]
    fn gathered(&self, e: usize) -> usize {
        match self.by {
            By::Nodes => self.indices.at(e),
            By::Edges => self.number(e),
        }
    }

    /// Factor of edge e, which gathers row j.
    #[inline(always)]
    fn factor(&self, e: usize, j: usize, head: usize) -> T {
        let s = self.weights.map_or(T::of(1.0), |w| w.at(self.number(e) * self.heads + head));
        self.degrees.map_or(s, |offsets| s / T::of((offsets.at(j + 1) - offsets.at(j)) as f64))
    }

    /// The sums of a whole block of columns: loops of known length over an array that nothing else indexes, which stays in registers.
    #[inline(always)]
    fn whole_block(&self, (head, column): (usize, usize), edges: std::ops::Range<usize>) -> [T; BLOCK] {
        // One loop for features that lie ready and one for those to be widened: a choice within would cost the registers.
        if let Values::Own(x) = self.x {
            return self.add_up(
                head,
                edges,
                #[inline(always)]
                |j, s, sums| {
                    let Some(from) = x[j * self.f + column..].first_chunk::<BLOCK>() else {
                        unreachable!("a whole block of columns lies within a row")
                    };
                    for c in 0..BLOCK {
                        sums[c] += s * from[c];
                    }
                },
            );
        }
        self.add_up(
            head,
            edges,
            #[inline(always)]
            |j, s, sums| {
                let mut room = [T::of(0.0); BLOCK];
                let from = self.x.piece(j * self.f + column, &mut room);
                for c in 0..BLOCK {
                    sums[c] += s * from[c];
                }
            },
        )
    }

    /// Edges are looked up some time before their rows are added: the fewer instructions lie between two rows, the more of them the processor
    /// fetches at once.
    #[inline(always)]
    fn add_up(
        &self,
        head: usize,
        edges: std::ops::Range<usize>,
        add: impl Fn(usize, T, &mut [T; BLOCK]),
    ) -> [T; BLOCK] {
        let mut sums = [T::of(0.0); BLOCK];
        let mut terms = [(0, T::of(1.0)); AHEAD];
        let mut first = edges.start;
        while first < edges.end {
            let terms = &mut terms[..AHEAD.min(edges.end - first)];
            self.look_up(head, first, terms);
            for &mut (j, s) in terms.iter_mut() {
                add(j, s, &mut sums);
            }
            first += terms.len();
        }
        sums
    }

    /// Row and factor of the edges from `first` on.
    #[inline(always)]
    fn look_up(&self, head: usize, first: usize, terms: &mut [(usize, T)]) {
        let plain = self.weights.is_none() && self.degrees.is_none();
        match (self.by, self.indices) {
            (By::Nodes, Ints::Narrow(indices)) if plain => {
                for (term, &j) in terms.iter_mut().zip(&indices[first..]) {
                    *term = (j as usize, T::of(1.0));
                }
            }
            _ => {
                for (i, term) in terms.iter_mut().enumerate() {
                    let j = self.gathered(first + i);
                    *term = (j, self.factor(first + i, j, head));
                }
            }
        }
    }

    /// The sums of `sums.len()` columns, at most a block; only terms whose edge was picked count, where `picked` is given.
    #[inline(always)]
    fn part_of_block(
        &self,
        (head, column): (usize, usize),
        edges: std::ops::Range<usize>,
        picked: Option<Ints>,
        sums: &mut [T],
    ) {
        let mut room = [T::of(0.0); BLOCK];
        sums.fill(T::of(0.0));
        for e in edges {
            let j = self.gathered(e);
            let s = self.factor(e, j, head);
            let at = j * self.f + column;
            let from = self.x.piece(at, &mut room[..sums.len()]);
            for c in 0..from.len() {
                if picked.is_none_or(|picked| picked.at(at + c) == self.number(e)) {
                    sums[c] += s * from[c];
                }
            }
        }
    }
}

pub fn sum<T: Real>(gather: &Gather, target: &Target) -> Result<()> {
    let operands = Operands::<T>::of(gather)?;
    let edges = operands.edges(gather);
    let picked = gather.picked.map(|p| HeldInts::of(OP, p)).transpose()?;
    let picked = picked.as_ref().map(HeldInts::values);
    let mut out = Written::<T>::into(OP, target)?;
    let (f, d, add) = (gather.f(), gather.f() / gather.heads, target.accumulate);
    let mean = matches!(gather.divide, Divide::Row);
    for_graph_rows(
        rows_of(gather, edges.offsets),
        f,
        RowPanels { panel: out.panel(), begins: |row| row * f },
        nothing(),
        #[inline(always)]
        |row, y, _| {
            let range = edges.offsets.at(row)..edges.offsets.at(row + 1);
            let by = if mean { T::of(range.len().max(1) as f64) } else { T::of(1.0) };
            let finish = |y: &mut T, sum: T| {
                let value = if mean { sum / by } else { sum };
                *y = if add { *y + value } else { value };
            };
            for (head, y) in y.chunks_mut(d.max(1)).enumerate() {
                for (block, y) in y.chunks_mut(BLOCK).enumerate() {
                    let place = (head, head * d + block * BLOCK);
                    if let (Ok(y), None) = (<&mut [T; BLOCK]>::try_from(&mut *y), picked) {
                        let sums = edges.whole_block(place, range.clone());
                        for c in 0..BLOCK {
                            finish(&mut y[c], sums[c]);
                        }
                        continue;
                    }
                    let mut sums = [T::of(0.0); BLOCK];
                    let sums = &mut sums[..y.len()];
                    edges.part_of_block(place, range.clone(), picked, sums);
                    for c in 0..y.len() {
                        finish(&mut y[c], sums[c]);
                    }
                }
            }
        },
    );
    Ok(())
}

fn rows_of<'a>(gather: &Gather, offsets: Ints<'a>) -> Rows<'a> {
    Rows { offsets, rows: gather.pattern.rows, edges: gather.pattern.edges }
}

pub fn extremum<T: Real>(gather: &Gather, reduce: Reduce, y: &Tensor, picked: &Tensor) -> Result<()> {
    if picked.dtype() == DType::I64 {
        return extremum_into::<T, i64>(gather, reduce, y, &mut picked.write::<i64>(OP)?, -1, |e| e as i64);
    }
    extremum_into::<T, i32>(gather, reduce, y, &mut picked.write::<i32>(OP)?, -1, |e| e as i32)
}

fn extremum_into<T: Real, I: Copy + Send + Sync + PartialEq>(
    gather: &Gather,
    reduce: Reduce,
    y: &Tensor,
    picked: &mut [I],
    none: I,
    number: impl Fn(usize) -> I + Sync,
) -> Result<()> {
    let operands = Operands::<T>::of(gather)?;
    let edges = operands.edges(gather);
    let mut out = Written::<T>::of(OP, y)?;
    let (f, d) = (gather.f(), gather.f() / gather.heads);
    let lowest = reduce == Reduce::Min;
    for_graph_rows(
        rows_of(gather, edges.offsets),
        f,
        RowPanels { panel: out.panel(), begins: |row| row * f },
        RowPanels { panel: picked, begins: |row| row * f },
        #[inline(always)]
        |row, y, args| {
            y.fill(T::of(0.0));
            args.fill(none);
            let mut room = [T::of(0.0); BLOCK];
            for e in edges.offsets.at(row)..edges.offsets.at(row + 1) {
                let j = edges.gathered(e);
                let own = number(edges.number(e));
                for head in 0..edges.heads {
                    let s = edges.factor(e, j, head);
                    let columns = head * d..(head + 1) * d;
                    let (y, args) = (&mut y[columns.clone()], &mut args[columns.clone()]);
                    for (block, (y, args)) in y.chunks_mut(BLOCK).zip(args.chunks_mut(BLOCK)).enumerate() {
                        let from = edges.x.piece(j * f + columns.start + block * BLOCK, &mut room[..y.len()]);
                        for ((y, arg), &from) in y.iter_mut().zip(args).zip(from) {
                            let v = s * from;
                            let better = if lowest { v < *y } else { v > *y };
                            // The first of equals stays, and so does a NaN, which alone is not equal to itself. Without a branch, so that
                            // many columns are compared at once.
                            let takes = (*arg == none) | (is_number(*y) & (better | !is_number(v)));
                            *y = if takes { v } else { *y };
                            *arg = if takes { own } else { *arg };
                        }
                    }
                }
            }
        },
    );
    Ok(())
}

#[inline(always)]
fn is_number<T: Real>(v: T) -> bool {
    v.partial_cmp(&v).is_some()
}
