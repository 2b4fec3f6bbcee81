//! The launch plans. Forward is one launch where [`OneLaunch`] takes it, else two: `h = s · dropout(x) Aᵀ`, a skinny product that
//! reads x once and applies what function lies between A and B, then the base product, which takes `h Bᵀ` as its first steps of k on
//! the same accumulators, `t · x Sᵀ` as the next ones, and bias, residual and φ at the end. Backward takes `u = dy B` likewise into dx. Gradients of parameters are sums over tokens, cut into
//! pieces of fixed size that are added in order.

use super::{Backward, Desc, OP, Operands, Sparse};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::activation::{self, Activation};
use crate::ops::block_sparse::rider;
use crate::ops::column_sum::column_sum;
use crate::ops::product::one_launch::OneLaunch;
use crate::ops::product::{Activated, Layout, LowRankFactors, Product};
use crate::tensor::Tensor;

pub fn forward(desc: &Desc, x: &Tensor, operands: &Operands, y: &Tensor) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    let (down, mut base) = forward_products(desc, x, operands, y)?;
    let apart = operands.sparse.filter(|s| !rides(desc, s));
    let fused = operands.activated.filter(|_| apart.is_none() && base.activates());
    if let Some((activation, to)) = fused {
        base.activated = Some(Activated { activation, to: to.address()? });
    }
    match down.map(|down| OneLaunch::new(down, base)) {
        Some(Ok(both)) => both.run(y.device())?,
        _ => y.device().run(&one_after_the_other(down, base)?)?,
    }
    if let Some(sparse) = apart {
        sparse.update.forward(&sparse.values, x, &Target { tensor: y.clone(), accumulate: true })?;
    }
    match operands.activated.filter(|_| fused.is_none()) {
        Some((f, to)) => activation::forward(&activation::Desc::new(y, f)?, y, to),
        None => Ok(()),
    }
}

/// Whether an update's steps go along with the frozen product; otherwise it is added to what that wrote.
fn rides(desc: &Desc, sparse: &Sparse) -> bool {
    desc.m > 0 && rider(sparse.update.product(), &sparse.values).is_ok_and(|r| r.can_ride())
}

/// `z = s · dropout(x) Aᵀ`.
fn down(desc: &Desc, x: &Tensor, a: &Tensor, z: &Tensor) -> Result<Product> {
    let Desc { m, k, r, dtype, .. } = *desc;
    let product = Product::new(OP, Layout::Nt, dtype, [m, r, k], [x.address()?, a.address()?, z.address()?]);
    Ok(Product { dropout: desc.dropout, scale: desc.z_scale, ..product })
}

/// `z = dropout(x) Aᵀ + c` and `h = φ(z)`.
pub fn activated_low(
    desc: &Desc,
    x: &Tensor,
    (a, bias): (&Tensor, Option<&Tensor>),
    activation: Activation,
    [z, h]: [&Tensor; 2],
) -> Result<Plan> {
    let bias = bias.map_or(Ok(0), Tensor::address)?;
    let activated = Some(Activated { activation, to: h.address()? });
    Ok(Plan::from_iter([Product { bias, activated, ..down(desc, x, a, z)? }.spec()?]))
}

/// h, if there is an update and it is still to be made, and the product that takes it in.
fn forward_products(desc: &Desc, x: &Tensor, operands: &Operands, y: &Tensor) -> Result<(Option<Product>, Product)> {
    let Desc { m, n, k, r, dtype, .. } = *desc;
    let addresses = [x.address()?, operands.weight.address()?, y.address()?];
    let mut base = Product::new(OP, Layout::Nt, dtype, [m, n, k], addresses).on(x.device());
    base.bias = operands.bias.map_or(Ok(0), Tensor::address)?;
    base.held = operands.residual.map_or(Ok(0), Tensor::address)?;
    let mut makes_h = None;
    if let (Some(b), Some(h)) = (operands.b, operands.h) {
        makes_h = operands.a.map(|a| down(desc, x, a, h)).transpose()?;
        base.low_rank = Some(LowRankFactors { a: h.address()?, b: b.address()?, rank: r, scale: desc.h_scale });
    }
    if let Some(sparse) = operands.sparse.filter(|s| rides(desc, s)) {
        base.rider = Some(rider(sparse.update.product(), &sparse.values)?);
    }
    Ok((makes_h, base))
}

fn one_after_the_other(down: Option<Product>, base: Product) -> Result<Plan> {
    down.iter().chain([&base]).map(Product::spec).collect()
}

/// `u = s · dy B`.
pub fn project(desc: &Desc, dy: &Tensor, b: &Tensor, u: &Tensor) -> Result<Plan> {
    if desc.m == 0 {
        return Ok(Plan::new());
    }
    let addresses = [dy.address()?, b.address()?, u.address()?];
    let product = Product::new(OP, Layout::Nn, desc.dtype, [desc.m, desc.r, desc.n], addresses);
    Ok(Plan::from_iter([Product { scale: desc.h_scale, ..product }.spec()?]))
}

/// `dx (+)= dy W₀ + s · mask ⊙ (u A)`.
pub fn input_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, updates: Backward, target: &Target) -> Result<()> {
    let Desc { m, n, k, dtype, .. } = *desc;
    let mut product = Product::new(OP, Layout::Nn, dtype, [m, k, n], [dy.address()?, weight.address()?, 0]);
    if let Some((a, u)) = updates.low_rank {
        let (rank, scale) = (u.cols(), desc.z_scale);
        product.low_rank = Some(LowRankFactors { a: u.address()?, b: a.address()?, rank, scale });
        product.dropout = desc.dropout;
    }
    if let Some(sparse) = updates.sparse.filter(|s| rides(desc, s)) {
        product.rider = Some(rider(&sparse.update.back_product(), &sparse.values)?);
    }
    product.write_into(dy.device(), target)?;
    match updates.sparse.filter(|s| !rides(desc, s)) {
        Some(sparse) => {
            let added = Target { tensor: target.tensor.clone(), accumulate: true };
            sparse.update.input_gradient(&sparse.values, dy, &added)
        }
        None => Ok(()),
    }
}

/// `dA += s · uᵀ dropout(x)`.
pub fn a_gradient(desc: &Desc, u: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, k, dtype, .. } = *desc;
    let product = Product::new(OP, Layout::Tn, dtype, [u.cols(), k, m], [u.address()?, x.address()?, 0]);
    Product { dropout: desc.dropout, scale: desc.z_scale, ..product }.sum_into(u.device(), target)
}

/// `dB += s · dyᵀ h`.
pub fn b_gradient(desc: &Desc, dy: &Tensor, h: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, r, dtype, .. } = *desc;
    let product = Product::new(OP, Layout::Tn, dtype, [n, r, m], [dy.address()?, h.address()?, 0]);
    Product { scale: desc.h_scale, ..product }.sum_into(dy.device(), target)
}

/// `db += Σ_rows dy`.
pub fn bias_gradient(dy: &Tensor, target: &Target) -> Result<()> {
    column_sum(dy, 1, dy.cols(), 1.0, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, LaunchSpec};
    use crate::dtype::DType;
    use crate::error::Error;
    use crate::ops::product::{Candidate, DROPOUT, GemmParams, Gpu, PAIRS, VECTOR_A1, VECTOR_A2, VECTOR_B1, VECTOR_B2};
    use crate::rng::{Dropout, Stream};

    const VECTORS: u32 = VECTOR_A1 | VECTOR_B1 | VECTOR_A2 | VECTOR_B2;

    fn desc([m, n, k, r]: [usize; 4], dtype: DType, p: Option<f64>) -> Desc {
        let dropout = p.map(|p| Dropout::new(p, Stream { seed: 5 << 40, step: 3, site: 9 }));
        Desc { m, n, k, r, dtype, z_scale: 2.0, h_scale: 1.0, dropout }
    }

    fn empty(device: &Device, dims: &[usize], dtype: DType) -> Tensor {
        Tensor::empty(device, dims, dtype).unwrap()
    }

    fn params(spec: &LaunchSpec) -> GemmParams {
        spec.params.read().unwrap()
    }

    /// Runs one pass on a trace device and returns what it launched; the device holds every launch against its kernel.
    fn traced(pass: impl FnOnce(&Device) -> Result<()>) -> Result<Vec<LaunchSpec>> {
        let device = Device::trace(80);
        pass(&device)?;
        Ok(device.launcher().map(|l| l.recorded()).unwrap_or_default())
    }

    fn traced_forward(desc: &Desc) -> Result<Vec<LaunchSpec>> {
        let Desc { m, n, k, r, dtype, .. } = *desc;
        traced(|d| {
            let [x, w, y] = [[m, k], [n, k], [m, n]].map(|dims| empty(d, &dims, dtype));
            let bias = empty(d, &[n], dtype);
            let [a, b, h] = [[r, k], [n, r], [m, r]].map(|dims| empty(d, &dims, dtype));
            let update = (r > 0).then_some(());
            let operands = Operands {
                weight: &w,
                bias: Some(&bias),
                a: update.map(|()| &a),
                b: update.map(|()| &b),
                h: update.map(|()| &h),
                sparse: None,
                residual: None,
                activated: None,
            };
            forward(desc, &x, &operands, &y)
        })
    }

    fn traced_backward(desc: &Desc, target_dtype: DType, accumulate: bool) -> Result<[Vec<LaunchSpec>; 5]> {
        let Desc { m, n, k, r, dtype, .. } = *desc;
        let target = |d: &Device, dims: &[usize]| Target { tensor: empty(d, dims, target_dtype), accumulate };
        let matrix = |d: &Device, rows: usize, cols: usize| empty(d, &[rows, cols], dtype);
        Ok([
            traced(|d| d.run(&project(desc, &matrix(d, m, n), &matrix(d, n, r), &matrix(d, m, r))?))?,
            traced(|d| {
                let (a, u) = (matrix(d, r, k), matrix(d, m, r));
                let updates = Backward { low_rank: Some((&a, &u)), sparse: None };
                input_gradient(desc, &matrix(d, m, n), &matrix(d, n, k), updates, &target(d, &[m, k]))
            })?,
            traced(|d| a_gradient(desc, &matrix(d, m, r), &matrix(d, m, k), &target(d, &[r, k])))?,
            traced(|d| b_gradient(desc, &matrix(d, m, n), &matrix(d, m, r), &target(d, &[n, r])))?,
            traced(|d| bias_gradient(&matrix(d, m, n), &target(d, &[n])))?,
        ])
    }

    #[test]
    fn forward_is_the_skinny_product_and_the_fused_one() {
        let specs = traced_forward(&desc([2048, 768, 512, 16], DType::BF16, Some(0.25))).unwrap();
        let symbols: Vec<_> = specs.iter().map(|s| (s.kernel.symbol(), s.grid)).collect();
        assert_eq!(
            symbols,
            [
                ("frozen_linear_nt_bf16_64x64x32_sm80", [32, 1, 1]),
                ("frozen_linear_nt_bf16_128x128x32_sm80", [96, 1, 1])
            ]
        );
        let (down, base) = (params(&specs[0]), params(&specs[1]));
        assert_eq!((down.m, down.n, down.k1, down.k2), (2048, 16, 0, 512));
        assert_eq!((base.m, base.n, base.k1, base.k2), (2048, 768, 16, 512));
        // h of the first launch is what the second reads, and the mask is the first one's alone.
        assert_eq!((base.a1, base.a2), (down.out, down.a2));
        assert_eq!((down.flags & DROPOUT, base.flags & DROPOUT), (DROPOUT, 0));
        assert_eq!((down.seed, down.step, down.site, down.threshold), (5 << 40, 3, 9, 1 << 30));
        // The mask drops without scaling: 1 / (1 - p) multiplies the sum.
        assert_eq!((down.out_scale, base.low_scale, base.out_scale), (8.0 / 3.0, 1.0, 1.0));
        assert!(base.bias != 0 && down.bias == 0);
        assert_eq!(base.flags & (VECTORS | PAIRS), VECTORS | PAIRS);
        let alone = traced_forward(&desc([2048, 768, 512, 0], DType::BF16, None)).unwrap();
        assert_eq!((alone.len(), params(&alone[0]).k1), (1, 0));
    }

    #[test]
    fn backward_masks_the_update_and_scales_what_it_kept() {
        let desc = desc([300, 96, 64, 8], DType::F16, Some(0.5));
        let [u, dx, da, db, _] = traced_backward(&desc, DType::F32, true).unwrap();
        let (u, da, db) = (params(&u[0]), params(&da[0]), params(&db[0]));
        assert_eq!((u.m, u.n, u.k2, u.flags & DROPOUT), (300, 8, 96, 0));
        assert_eq!((da.m, da.n, da.k2, da.out_scale, da.flags & DROPOUT), (8, 64, 300, 4.0, DROPOUT));
        assert_eq!((db.m, db.n, db.k2, db.out_scale, db.flags & DROPOUT), (96, 8, 300, 1.0, 0));
        // An f16 product into an f32 gradient goes by way of a copy, which is then added.
        let first = params(&dx[0]);
        assert_eq!((first.m, first.n, first.k1, first.k2, first.low_scale), (300, 64, 8, 96, 4.0));
        assert_eq!((first.held, first.flags & DROPOUT, dx.len()), (0, DROPOUT, 2));
        assert_eq!(dx[1].kernel.symbol(), "scale_add_widen_f16_t256_sm80");
        let [_, dx, ..] = traced_backward(&desc, DType::F16, true).unwrap();
        assert_eq!((dx.len(), params(&dx[0]).held), (1, params(&dx[0]).out));
    }

    #[test]
    fn sums_over_tokens_are_cut_by_shape_alone_and_added_in_order() {
        // One tile of dA, 4096 tokens: sixteen pieces of 256.
        let [_, _, da, ..] = traced_backward(&desc([4096, 64, 64, 8], DType::BF16, None), DType::F32, true).unwrap();
        assert_eq!((da.len(), da[0].grid, params(&da[0]).split), (2, [16, 1, 1], 256));
        assert_eq!(params(&da[0]).held, 0);
        // Few tokens: one piece, straight into the gradient.
        let [_, _, da, db, _] = traced_backward(&desc([200, 64, 64, 8], DType::F32, None), DType::F32, true).unwrap();
        for specs in [da, db] {
            assert_eq!((specs.len(), params(&specs[0]).held), (1, params(&specs[0]).out));
        }
        // A 16-bit gradient is rounded once, after all pieces.
        let [_, _, da, ..] = traced_backward(&desc([200, 64, 64, 8], DType::BF16, None), DType::BF16, false).unwrap();
        assert_eq!((da.len(), da[1].kernel.symbol()), (2, "column_sum_narrow_bf16_t256_sm80"));
    }

    #[test]
    fn odd_sizes_and_odd_addresses_take_the_scalar_path() {
        let specs = traced_forward(&desc([5, 7, 9, 3], DType::F16, None)).unwrap();
        assert!(specs.iter().all(|s| params(s).flags & (VECTORS | PAIRS) == 0));
        let device = Device::trace(80);
        let [x, w, y] = [[8, 64], [64, 64], [8, 64]].map(|dims| empty(&device, &dims, DType::F16));
        // A view that starts one element into its buffer.
        let shifted = empty(&device, &[8 * 64 + 1], DType::F16).slice(0, 1, 8 * 64).unwrap().reshape(&[8, 64]).unwrap();
        let operands = Operands {
            weight: &w,
            bias: None,
            a: None,
            b: None,
            h: None,
            sparse: None,
            residual: None,
            activated: None,
        };
        let flags = |x: &Tensor, y: &Tensor| {
            let desc = desc([8, 64, 64, 0], DType::F16, None);
            let (_, base) = forward_products(&desc, x, &operands, y).unwrap();
            params(&base.spec().unwrap()).flags & (VECTOR_A2 | VECTOR_B2 | PAIRS)
        };
        assert_eq!(flags(&x, &y), VECTOR_A2 | VECTOR_B2 | PAIRS);
        assert_eq!(flags(&shifted, &y), VECTOR_B2 | PAIRS);
        assert_eq!(flags(&x, &shifted), VECTOR_A2 | VECTOR_B2);
    }

    #[test]
    fn no_tokens_launch_nothing() {
        let desc = desc([0, 64, 64, 8], DType::F32, Some(0.1));
        assert!(traced_forward(&desc).unwrap().is_empty());
        for (pass, specs) in traced_backward(&desc, DType::F32, true).unwrap().iter().take(4).enumerate() {
            assert!(specs.is_empty(), "pass {pass}");
        }
    }

    #[test]
    fn huge_sizes_are_planned_or_refused_without_overflow() {
        // 2³² tokens of 2048 features: more elements than 32 bits count.
        let huge = desc([1 << 32, 2048, 2048, 256], DType::BF16, Some(0.1));
        let specs = traced_forward(&huge).unwrap();
        assert_eq!((specs[1].grid, params(&specs[1]).m), ([(1 << 25) * 16, 1, 1], 1 << 32));
        let [_, _, da, ..] = traced_backward(&huge, DType::F32, true).unwrap();
        let p = params(&da[0]);
        assert_eq!(u64::from(da[0].grid[0]), 32 * p.k2.div_ceil(p.split));
        assert!(p.split * (p.k2.div_ceil(p.split)) >= 1 << 32);
        // More tiles than a grid has blocks.
        let refused = traced_forward(&desc([1 << 38, 1 << 10, 1, 0], DType::BF16, None));
        assert!(matches!(refused, Err(Error::SizeOverflow { .. })), "{refused:?}");
        assert!(matches!(traced_forward(&desc([4, 4, 4, 0], DType::F64, None)), Err(Error::DType { .. })));
    }

    #[test]
    fn the_choice_of_a_tile_explains_itself() {
        let (a100, h200) = (Gpu { capability: 80, multiprocessors: 108 }, Gpu { capability: 90, multiprocessors: 132 });
        let explain = |[m, n, k]: [usize; 3], dtype, gpu| {
            let product = Product::new(OP, Layout::Nt, dtype, [m, n, k], [0; 3]);
            let line = |c: Candidate| format!("{}: {}", c.name, c.refusal.unwrap_or("taken".into()));
            Product { gpu, ..product }.candidates().into_iter().map(line).collect::<Vec<_>>().join("; ")
        };
        let cases = [
            ([4096, 4096, 64], DType::BF16, a100, ["needs sm_90", "128x128x32: taken"]),
            ([4096, 8, 64], DType::BF16, a100, ["half of each tile", "64x64: taken"]),
            ([256, 256, 64], DType::F16, a100, ["too few blocks", "64x64: taken"]),
            ([4096, 4096, 64], DType::F32, h200, ["for f16 and bf16", "f32 has one tile"]),
            ([4096, 4096, 64], DType::BF16, h200, ["128x256x64 sm90a: taken", ""]),
            ([4096, 4095, 64], DType::BF16, h200, ["n = 4095 is no multiple of 8", "128x128x32: taken"]),
            ([256, 256, 64], DType::BF16, h200, ["pairs of tiles are too few", "64x64: taken"]),
            ([8192, 16, 4096], DType::BF16, h200, ["half of each tile", "64x64: taken"]),
        ];
        for (shape, dtype, gpu, parts) in cases {
            let text = explain(shape, dtype, gpu);
            assert!(parts.iter().all(|part| text.contains(part)), "{shape:?}: {text}");
        }
    }
}
