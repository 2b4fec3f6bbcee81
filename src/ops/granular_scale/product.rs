//! `ΔH = D Wuᵀ`, dense or block-diagonal, and its gradients: one product for each head, on columns of the wider matrices.

use super::node::{UP, UPDATE};
use super::{Desc, OP, Product};
use crate::autograd::{Sinks, Target};
use crate::device::{Mat, MatMut, Plan, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, with_real};
use crate::ops::product::{Layout, Product as Gemm};
use crate::ops::scale_add::into_dtype;
use crate::ops::thin::{self, Lies};
use crate::tensor::Tensor;

/// Where one head lies: its number, columns of ΔH and of D.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub j: usize,
    pub n: usize,
    pub r: usize,
}

/// The heads of a product, one after the other.
pub(super) fn heads(desc: &Desc, product: Product) -> impl Iterator<Item = Head> + use<> {
    let (n, r) = (desc.k / product.heads, product.r / product.heads);
    (0..product.heads).map(move |j| Head { j, n, r })
}

/// Columns `j·cols ..` of row-major rows of `width`.
pub(super) fn columns<T>(data: &[T], j: usize, rows: usize, cols: usize, width: usize) -> Mat<'_, T> {
    Mat { data: &data[j * cols..], rows, cols, row_stride: width, col_stride: 1 }
}

/// Whether one dense product is what [`thin`] is for. Heads lie between columns of others.
fn is_thin(product: Product) -> bool {
    product.heads == 1 && thin::is_narrow(product.r)
}

/// ΔH of one head on a GPU.
pub(super) fn on_gpu(desc: &Desc, product: Product, head: Head, [x, weight, out]: [u64; 3]) -> Gemm {
    let Head { j, n, r } = head;
    let size = desc.dtype.size();
    let addresses = [x + (j * r * size) as u64, weight + (j * n * r * size) as u64, out + (j * n * size) as u64];
    let gemm = Gemm::new(OP, Layout::Nt, desc.dtype, [desc.m, n, r], addresses);
    Gemm { strides: Some([product.r, r, desc.k]), ..gemm }
}

/// `ΔH [m, k]` in a tensor of its own.
pub(super) fn whole(desc: &Desc, product: Product, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let out = Tensor::empty(x.device(), &[desc.m, desc.k], desc.dtype)?;
    if desc.m == 0 {
        return Ok(out);
    }
    if x.device().is_cpu() {
        with_real!(desc.dtype, OP, T => on_cpu::<T>(desc, product, x, weight, &out))?;
    } else {
        let addresses = [x.address()?, weight.address()?, out.address()?];
        let specs = heads(desc, product).map(|head| on_gpu(desc, product, head, addresses).spec());
        out.device().run(&specs.collect::<Result<Plan>>()?)?;
    }
    Ok(out)
}

fn on_cpu<T: Real>(desc: &Desc, product: Product, x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
    let (x, weight) = (In::<T>::of(OP, x)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::of(OP, out)?;
    let (m, k) = (desc.m, desc.k);
    if is_thin(product) {
        out.fill(T::of(0.0));
        thin::expand(&mut out, &x, Mat::new(&weight, k, product.r).t(), T::of(1.0));
        return out.finish();
    }
    for Head { j, n, r } in heads(desc, product) {
        let to = MatMut { data: &mut out[j * n..], rows: m, cols: n, row_stride: k };
        let up = Mat::new(&weight[j * n * r..], n, r).t();
        gemm(to, None, columns(&x, j, m, r, product.r), up, T::of(1.0));
    }
    out.finish()
}

/// `dD (+)= dU Wu` and `dWu (+)= dUᵀ D`, those that are wanted. `x` is D, kept if Wu learns.
pub(super) fn gradients(
    desc: &Desc,
    du: &Tensor,
    x: Option<&Tensor>,
    weight: &Tensor,
    sinks: &mut Sinks<'_>,
) -> Result<()> {
    let Some(product) = desc.product else { return Ok(()) };
    if let Some(target) = sinks.open(UPDATE)? {
        input_gradient(desc, product, du, weight, &target)?;
    }
    if let Some(x) = x
        && let Some(target) = sinks.open(UP)?
    {
        weight_gradient(desc, product, du, x, &target)?;
    }
    Ok(())
}

fn input_gradient(desc: &Desc, product: Product, du: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if du.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => input_on_cpu::<T>(desc, product, du, weight, target));
    }
    into_dtype(target, desc.dtype, |target| {
        let (du, weight, out) = (du.address()?, weight.address()?, target.tensor.address()?);
        let size = desc.dtype.size();
        let specs = heads(desc, product).map(|Head { j, n, r }| {
            let at = |first: u64, elements: usize| first + (elements * size) as u64;
            let addresses = [at(du, j * n), at(weight, j * n * r), at(out, j * r)];
            let gemm = Gemm::new(OP, Layout::Nn, desc.dtype, [desc.m, r, n], addresses);
            Gemm { strides: Some([desc.k, r, product.r]), held: if target.accumulate { gemm.out } else { 0 }, ..gemm }
                .spec()
        });
        target.tensor.device().run(&specs.collect::<Result<Plan>>()?)
    })
}

fn input_on_cpu<T: Real>(desc: &Desc, product: Product, du: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let (du, weight) = (In::<T>::of(OP, du)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::into(OP, target)?;
    if is_thin(product) && !target.accumulate {
        thin::project(&mut out, &du, Mat::new(&weight, desc.k, product.r).t());
        return out.finish();
    }
    let keep = target.accumulate.then(|| T::of(1.0));
    for Head { j, n, r } in heads(desc, product) {
        let to = MatMut { data: &mut out[j * r..], rows: desc.m, cols: r, row_stride: product.r };
        gemm(to, keep, columns(&du, j, desc.m, n, desc.k), Mat::new(&weight[j * n * r..], n, r), T::of(1.0));
    }
    out.finish()
}

fn weight_gradient(desc: &Desc, product: Product, du: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    if du.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => weight_on_cpu::<T>(desc, product, du, x, target));
    }
    let size = desc.dtype.size();
    for Head { j, n, r } in heads(desc, product) {
        let addresses = [du.address()? + (j * n * size) as u64, x.address()? + (j * r * size) as u64, 0];
        let gemm = Gemm::new(OP, Layout::Tn, desc.dtype, [n, r, desc.m], addresses);
        let rows = Target { tensor: target.tensor.slice(0, j * n, n)?, accumulate: target.accumulate };
        Gemm { strides: Some([desc.k, product.r, r]), ..gemm }.sum_into(du.device(), &rows)?;
    }
    Ok(())
}

fn weight_on_cpu<T: Real>(desc: &Desc, product: Product, du: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let (du, x) = (In::<T>::of(OP, du)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (m, k) = (desc.m, desc.k);
    if is_thin(product) {
        let (x, du) = (Mat::new(&x, m, product.r), Mat::new(&du, m, k));
        thin::gather(&mut out, Lies::Transposed, target.accumulate, x, du, T::of(1.0));
        return out.finish();
    }
    let keep = target.accumulate.then(|| T::of(1.0));
    for Head { j, n, r } in heads(desc, product) {
        let to = MatMut::new(&mut out[j * n * r..(j + 1) * n * r], n, r);
        gemm(to, keep, columns(&du, j, m, n, k).t(), columns(&x, j, m, r, product.r), T::of(1.0));
    }
    out.finish()
}
