//! The reference: copies forward; backward, the ids sorted once by counting, then each row of the table on its own.

use half::{bf16, f16};

use super::{Desc, OP};
use crate::autograd::Target;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

pub fn forward(desc: &Desc, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<()> {
    let ids = checked_ids(desc, ids)?;
    match desc.dtype {
        DType::F16 => copy_rows::<f16>(desc, &ids, table, y),
        DType::BF16 => copy_rows::<bf16>(desc, &ids, table, y),
        DType::F64 => copy_rows::<f64>(desc, &ids, table, y),
        _ => copy_rows::<f32>(desc, &ids, table, y),
    }
}

fn copy_rows<E: Element>(desc: &Desc, ids: &[usize], table: &Tensor, y: &Tensor) -> Result<()> {
    let (table, mut out) = (table.read::<E>(OP)?, y.write::<E>(OP)?);
    let table: &[E] = &table;
    for_rows(&mut out, desc.d, |i, row| row.copy_from_slice(&table[ids[i] * desc.d..][..desc.d]));
    Ok(())
}

pub fn table_gradient<T: Real>(desc: &Desc, ids: &Tensor, dy: &Tensor, target: &Target) -> Result<()> {
    let ids = checked_ids(desc, ids)?;
    // starts[w] .. starts[w + 1] of `order` are the places of id w, in order: a counting sort is stable.
    let mut starts = vec![0usize; desc.v + 1];
    for &w in ids.iter() {
        starts[w + 1] += 1;
    }
    for w in 0..desc.v {
        starts[w + 1] += starts[w];
    }
    let mut next = starts.clone();
    let mut order = vec![0usize; ids.len()];
    for (i, &w) in ids.iter().enumerate() {
        order[next[w]] = i;
        next[w] += 1;
    }
    let dy = In::<T>::of(OP, dy)?;
    let dy: &[T] = &dy;
    let mut out = Out::<T>::into(OP, target)?;
    let add = target.accumulate;
    for_rows(
        &mut out,
        desc.d,
        #[inline(always)]
        |w, row| {
            if !add {
                row.fill(T::of(0.0));
            }
            for &i in &order[starts[w]..starts[w + 1]] {
                for (o, &g) in row.iter_mut().zip(&dy[i * desc.d..][..desc.d]) {
                    *o += g;
                }
            }
        },
    );
    out.finish()
}

fn checked_ids(desc: &Desc, ids: &Tensor) -> Result<Vec<usize>> {
    let check = |(i, id): (usize, i64)| match usize::try_from(id) {
        Ok(id) if id < desc.v => Ok(id),
        _ => Err(Error::value(OP, "ids", format!("numbers in 0..{}", desc.v), format!("{id} at place {i}"))),
    };
    match desc.id_dtype {
        DType::I32 => ids.read::<i32>(OP)?.iter().map(|&id| i64::from(id)).enumerate().map(check).collect(),
        _ => ids.read::<i64>(OP)?.iter().copied().enumerate().map(check).collect(),
    }
}
