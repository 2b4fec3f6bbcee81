//! Why a frozen linear takes the kernels it takes, and what their plans foretell. Operands are taken to be aligned.

use super::OP;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::product::one_launch::OneLaunch;
pub use crate::ops::product::{Candidate, Forecast, Gpu};
use crate::ops::product::{Layout, LowRankFactors, Product};

/// The kernels for the large product of each pass, in order of preference up to the one that is taken, with the reason against each
/// that is not.
pub fn candidates(gpu: Gpu, dtype: DType, [m, n, k]: [usize; 3]) -> [(&'static str, Vec<Candidate>); 2] {
    let product = |layout, shape| Product { gpu, ..Product::new(OP, layout, dtype, shape, [0; 3]) }.candidates();
    [("forward", product(Layout::Nt, [m, n, k])), ("backward", product(Layout::Nn, [m, k, n]))]
}

/// Whether a low-rank update is made by the launch of y that uses it, or why it has one of its own.
pub fn one_launch(gpu: Gpu, dtype: DType, shape: [usize; 4]) -> Candidate {
    let (down, base) = forward(gpu, dtype, shape);
    Candidate { name: "h in the launch of y", refusal: OneLaunch::new(down, base).err() }
}

/// `h = x Aᵀ`, and y that takes it in.
fn forward(gpu: Gpu, dtype: DType, [m, n, k, r]: [usize; 4]) -> (Product, Product) {
    let product = |n| Product { gpu, ..Product::new(OP, Layout::Nt, dtype, [m, n, k], [0; 3]) };
    let low_rank = Some(LowRankFactors { a: 0, b: 0, rank: r, scale: 1.0 });
    (Product { gpu: Gpu::ANY, ..product(r) }, Product { low_rank, ..product(n) })
}

/// The launches of a step, forward and backward, without an update if the rank is 0, on the rates of an H200.
pub fn forecast(gpu: Gpu, dtype: DType, shape: [usize; 4]) -> Result<[(&'static str, Vec<Forecast>); 2]> {
    let [m, n, k, r] = shape;
    let small = |layout, shape| Product::new(OP, layout, dtype, shape, [0; 3]);
    let dx = Product { gpu, ..small(Layout::Nn, [m, k, n]) };
    if r == 0 {
        let y = Product { gpu, ..small(Layout::Nt, [m, n, k]) };
        return Ok([("forward", vec![y.forecast("y")?]), ("backward", vec![dx.forecast("dx")?])]);
    }
    let (down, base) = forward(gpu, dtype, shape);
    let y = match OneLaunch::new(down, base) {
        Ok(both) => vec![both.forecast("h and y")?],
        Err(_) => vec![down.forecast("h")?, base.forecast("y")?],
    };
    let low_rank = Some(LowRankFactors { a: 0, b: 0, rank: r, scale: 1.0 });
    let backward = vec![
        small(Layout::Nn, [m, r, n]).forecast("u")?,
        small(Layout::Tn, [r, k, m]).forecast("dA")?,
        small(Layout::Tn, [n, r, m]).forecast("dB")?,
        Product { low_rank, ..dx }.forecast("dx")?,
    ];
    Ok([("forward", y), ("backward", backward)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Gpu = Gpu { capability: 90, multiprocessors: 132 };

    fn microseconds(shape: [usize; 4]) -> [f64; 2] {
        forecast(H200, DType::BF16, shape).unwrap().map(|(_, all)| all.iter().map(|f| f.microseconds).sum())
    }

    /// 512 turns of 66 clusters, eight rounds: 8 · 66 / 512 of 2 · 8192 · 4096² / 790 TFLOP/s.
    #[test]
    fn a_plain_product_takes_its_rounds() {
        let exact = 2.0 * 8192.0 * 4096.0 * 4096.0 / 790e6 * (8.0 * 66.0 / 512.0);
        assert!(microseconds([8192, 4096, 4096, 0]).iter().all(|t| (t - exact).abs() < 1e-6 * exact));
    }

    #[test]
    fn an_update_costs_little_forward_and_three_reads_backward() {
        let [plain, _] = microseconds([8192, 4096, 4096, 0]);
        let [forward, backward] = microseconds([8192, 4096, 4096, 16]);
        assert!(forward > plain && forward < 1.01 * plain, "{forward}");
        // dy twice and x once, 64 MiB each.
        let reads = 3.0 * 8192.0 * 4096.0 * 2.0 / 4.3e6;
        assert!(backward > plain + reads && backward < 1.02 * (plain + reads), "{backward}");
    }

    #[test]
    fn the_one_launch_says_why_not() {
        let verdict = |gpu, dtype, r| one_launch(gpu, dtype, [8192, 4096, 4096, r]).refusal;
        assert_eq!(verdict(H200, DType::BF16, 64), None);
        assert!(verdict(H200, DType::BF16, 72).unwrap().contains("up to 64"));
        assert!(verdict(H200, DType::BF16, 12).unwrap().contains("portable"));
        assert!(verdict(Gpu { capability: 80, ..H200 }, DType::BF16, 16).unwrap().contains("portable"));
        assert!(verdict(H200, DType::F32, 16).unwrap().contains("portable"));
    }
}
