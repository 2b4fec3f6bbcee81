//! Rows of a table, looked up by number.
//!
//! ```text
//! y[i, :] = table[ids[i], :]
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `ids` | any, m numbers | i32 or i64 |
//! | `table` | `[v, d]` | f32, f16, bf16 (f64 on the CPU) |
//! | `y` | the ids' shape, then d | as the table |
//!
//! Backward, if the table learns: `dtable[w, :] = Σ_{i: ids[i] = w} dy[i, :]`, added in the order of i, so that two runs give the
//! same bits. Kept for it: the ids alone.
//!
//! An id outside `0..v` is an error on the CPU that names its place. A GPU reads nothing out of bounds for it: the row is NaN,
//! and its gradient goes nowhere.
//!
//! Cost: no arithmetic forward; `m·d` elements read and written. Backward on a GPU compares up to m²/2 pairs of ids, and needs
//! neither sorting nor atomic additions.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for an id outside the table (on the CPU).

mod cpu;
pub mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::shape::Dims;
use crate::tensor::Tensor;

const OP: &str = "embedding";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    /// Ids.
    pub m: usize,
    /// Rows of the table.
    pub v: usize,
    pub d: usize,
    pub dtype: DType,
    pub id_dtype: DType,
}

impl Desc {
    pub fn new(ids: &Tensor, table: &Tensor) -> Result<Self> {
        let &[v, d] = table.dims() else {
            return Err(Error::shape(OP, "table", "[v, d]", table.dims()));
        };
        if !table.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "table", expected, got: table.dtype() });
        }
        if !matches!(ids.dtype(), DType::I32 | DType::I64) {
            return Err(Error::DType { op: OP, argument: "ids", expected: "i32 or i64".into(), got: ids.dtype() });
        }
        ids.require_device(OP, "ids", table.device())?;
        ids.require_contiguous(OP, "ids")?;
        table.require_contiguous(OP, "table")?;
        Ok(Desc { m: ids.numel(), v, d, dtype: table.dtype(), id_dtype: ids.dtype() })
    }

    pub fn flops(&self) -> u64 {
        0
    }

    /// Bytes that the forward pass must move at least: the ids, and every row once in and once out.
    pub fn bytes(&self) -> u64 {
        (self.m * self.id_dtype.size() + 2 * self.m * self.d * self.dtype.size()) as u64
    }
}

/// `table[ids]`, `[.., d]`; see the module for ids out of range.
pub fn embedding(tape: &mut Tape, ids: &Tensor, table: &Var) -> Result<Var> {
    let desc = Desc::new(ids, table.tensor())?;
    let mut dims = Dims::from_slice(ids.dims());
    dims.push(desc.d);
    let y = Tensor::empty(table.tensor().device(), &dims, desc.dtype)?;
    forward(&desc, ids, table.tensor(), &y)?;
    Ok(tape.record(y, &[table], |_| Node { desc, ids: Saved::Held(ids.clone()) }))
}

fn forward(desc: &Desc, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<()> {
    if y.device().is_cpu() {
        return cpu::forward(desc, ids, table, y);
    }
    if y.numel() == 0 {
        return Ok(());
    }
    y.device().run(&gpu::forward(desc, ids, table, y)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    ids: Saved,
}

const TABLE: usize = 0;

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.ids]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let Some(target) = sinks.open(TABLE)? else { return Ok(()) };
        table_gradient(&self.desc, &self.ids.get()?, dy, &target)
    }
}

fn table_gradient(desc: &Desc, ids: &Tensor, dy: &Tensor, target: &Target) -> Result<()> {
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::table_gradient::<T>(desc, ids, dy, target));
    }
    // The kernel writes only rows that occur, and adds to what is there.
    if !target.accumulate {
        target.tensor.zero()?;
    }
    if dy.numel() == 0 {
        return Ok(());
    }
    dy.device().run(&gpu::table_gradient(desc, ids, dy, target)?)
}
