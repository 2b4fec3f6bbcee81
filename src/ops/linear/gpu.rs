//! The launch plans: the products of the frozen layer, and the gradient of the weight as a sum over tokens.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::column_sum::column_sum;
use crate::ops::product::{Layout, Product};
use crate::tensor::Tensor;

pub fn forward(desc: &Desc, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<Plan> {
    let Desc { m, n, k, dtype } = *desc;
    if m == 0 {
        return Ok(Plan::new());
    }
    let addresses = [x.address()?, weight.address()?, y.address()?];
    let product = Product::new(OP, Layout::Nt, dtype, [m, n, k], addresses).on(x.device());
    let bias = bias.map_or(Ok(0), Tensor::address)?;
    Ok(Plan::from_iter([Product { bias, ..product }.spec()?]))
}

/// `dW += dyᵀ x`.
pub fn weight_gradient(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, dtype } = *desc;
    Product::new(OP, Layout::Tn, dtype, [n, k, m], [dy.address()?, x.address()?, 0]).sum_into(dy.device(), target)
}

/// `db += Σ_rows dy`.
pub fn bias_gradient(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    column_sum(dy, 1, desc.n, 1.0, target)
}

/// `dx (+)= dy W`.
pub fn input_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, dtype } = *desc;
    Product::new(OP, Layout::Nn, dtype, [m, k, n], [dy.address()?, weight.address()?, 0])
        .write_into(dy.device(), target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::ops::product::GemmParams;

    fn launched(pass: impl FnOnce(&Device) -> Result<()>) -> Vec<(&'static str, u32, GemmParams)> {
        let device = Device::trace(80);
        pass(&device).unwrap();
        let specs = device.launcher().map(|l| l.recorded()).unwrap_or_default();
        let product = |s: &crate::device::LaunchSpec| Some((s.kernel.symbol(), s.grid[0], s.params.read()?));
        specs.iter().filter_map(product).collect()
    }

    #[test]
    fn the_three_products_are_those_of_the_frozen_layer_without_an_update() {
        let desc = Desc { m: 512, n: 10, k: 64, dtype: DType::F32 };
        let empty = |d: &Device, rows: usize, cols: usize| Tensor::empty(d, &[rows, cols], desc.dtype).unwrap();
        let y = launched(|d| {
            let bias = Tensor::empty(d, &[10], desc.dtype)?;
            d.run(&forward(&desc, &empty(d, 512, 64), &empty(d, 10, 64), Some(&bias), &empty(d, 512, 10))?)
        });
        assert_eq!((y[0].0, y[0].1, y.len()), ("frozen_linear_nt_f32_64x64x16_sm80", 8, 1));
        assert_eq!((y[0].2.m, y[0].2.n, y[0].2.k1, y[0].2.k2, y[0].2.bias != 0), (512, 10, 0, 64, true));
        let dx = launched(|d| {
            let target = Target { tensor: empty(d, 512, 64), accumulate: true };
            input_gradient(&desc, &empty(d, 512, 10), &empty(d, 10, 64), &target)
        });
        assert_eq!((dx[0].0, dx[0].2.m, dx[0].2.n, dx[0].2.k2), ("frozen_linear_nn_f32_64x64x16_sm80", 512, 64, 10));
        assert_eq!(dx[0].2.held, dx[0].2.out);
        // 512 tokens are two pieces, added into the gradient by a second launch.
        let dw = launched(|d| {
            let target = Target { tensor: empty(d, 10, 64), accumulate: true };
            weight_gradient(&desc, &empty(d, 512, 10), &empty(d, 512, 64), &target)
        });
        assert_eq!((dw[0].0, dw[0].1, dw[0].2.split), ("frozen_linear_tn_f32_64x64x16_sm80", 2, 256));
        assert_eq!((dw[0].2.m, dw[0].2.n, dw[0].2.k2, dw[0].2.held), (10, 64, 512, 0));
    }

    #[test]
    fn no_tokens_launch_nothing_and_leave_no_garbage() {
        let desc = Desc { m: 0, n: 3, k: 5, dtype: DType::BF16 };
        let specs = launched(|d| {
            let empty = |rows: usize, cols: usize, dtype| Tensor::empty(d, &[rows, cols], dtype).unwrap();
            d.run(&forward(
                &desc,
                &empty(0, 5, DType::BF16),
                &empty(3, 5, DType::BF16),
                None,
                &empty(0, 3, DType::BF16),
            )?)?;
            let target = Target { tensor: empty(3, 5, DType::F32), accumulate: false };
            weight_gradient(&desc, &empty(0, 3, DType::BF16), &empty(0, 5, DType::BF16), &target)
        });
        assert!(specs.is_empty());
    }
}
