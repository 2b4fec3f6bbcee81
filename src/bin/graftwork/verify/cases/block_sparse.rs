//! The block-sparse family: every member, block edge and way of storing an operand; the update on a frozen product; scores of blocks
//! and proximal steps.

use std::sync::Mutex;

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::ops::{
    After, BlockNorm, BlockUpdate, GradientScore, LowRank, Mid, Threshold, Transposed, Updates, block_norms,
    block_sparse_linear, dds, dsd, frozen_linear_with, gradient_scores, pattern_from_mask, sdd, shrink_blocks,
    soft_threshold,
};
use graftwork::rng::Stream;
use graftwork::tensor::{BlockPattern, Init, ParamSetBuilder};
use graftwork::testing::{integers, normal};
use graftwork::{DType, Device, Result, Tensor};

use crate::verify::case::{Arithmetic, Case, Judge, Output, Run};

/// Which blocks there are.
#[derive(Clone, Copy, Debug)]
pub enum Blocks {
    Random(f64),
    /// The second row and the second column have all, the others one: the long lines are cut.
    Uneven,
    None,
}

/// m, n, k, b and which blocks.
#[derive(Clone, Copy)]
pub struct Shape(pub usize, pub usize, pub usize, pub usize, pub Blocks);

use Blocks::{None as Empty, Random, Uneven};

const SHAPES: [Shape; 10] = [
    Shape(33, 39, 43, 16, Random(0.5)),
    Shape(20, 1100, 1090, 16, Uneven),
    Shape(130, 72, 136, 32, Random(0.4)),
    Shape(7, 1100, 1130, 32, Uneven),
    Shape(40, 129, 190, 64, Random(0.6)),
    Shape(3, 1110, 1160, 64, Uneven),
    Shape(17, 135, 250, 128, Random(0.7)),
    Shape(2, 1200, 1160, 128, Uneven),
    Shape(5, 40, 40, 16, Empty),
    Shape(0, 40, 40, 16, Random(0.5)),
];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for judge in [Judge::Exact, Judge::Bound] {
        if judge == Judge::Exact {
            // Enough tiles of 128 by 128, forward and backward, that the large kernels are taken.
            cases.push(riding(Shape(1300, 1160, 40, 16, Random(0.5)), false, judge));
            cases.push(riding(Shape(1300, 40, 1160, 16, Random(0.5)), false, judge));
        }
        for (i, &shape) in SHAPES.iter().enumerate() {
            cases.push(linear(shape, judge));
            if i < 8 {
                cases.push(riding(shape, i % 2 == 0, judge));
            }
            // The members differ in how operands are read, which integers show.
            if judge == Judge::Bound {
                continue;
            }
            for sparse in [false, true] {
                for dense in [false, true] {
                    let t = Transposed { sparse, dense };
                    // Both sides where lines are even, one of them where they are cut.
                    if i % 2 == 0 || sparse == dense {
                        cases.push(product(shape, true, t, judge));
                    }
                    if i % 2 == 0 || sparse != dense {
                        cases.push(product(shape, false, t, judge));
                    }
                    cases.push(sampled(shape, [sparse, dense], judge));
                }
            }
        }
        cases.push(linear(SHAPES[2], judge).all_inputs());
        cases.push(linear(SHAPES[4], judge).unaligned());
        cases.push(linear(Shape(600, 40, 70, 16, Random(0.5)), judge));
        // Whole 16-byte rows and more than a few tokens: what the Hopper kernels take.
        for (n, k, b) in [(136, 264, 16), (136, 200, 32), (136, 328, 64), (264, 392, 128)] {
            cases.push(linear(Shape(72, n, k, b, Random(0.5)), judge));
        }
    }
    for b in [16, 32, 64, 128] {
        let shape = Shape(72, 2 * b + 8, 4 * b, b, Random(0.9));
        for (sparse, dense) in [(false, false), (false, true), (true, false), (true, true)] {
            let t = Transposed { sparse, dense };
            cases.push(product(shape, true, t, Judge::Exact));
            cases.push(product(shape, false, t, Judge::Exact));
            cases.push(sampled(shape, [sparse, dense], Judge::Exact));
        }
        // The wide tile of the frozen product, and the narrow one.
        cases.push(riding(Shape(72, 264, 264, b, Random(0.5)), false, Judge::Exact));
        cases.push(riding(Shape(136, 104, 104, b, Random(0.7)), false, Judge::Exact));
    }
    for (n, k, b) in [(40, 70, 16), (33, 129, 32), (130, 65, 64), (200, 140, 128)] {
        cases.push(normed(n, k, b));
        cases.push(scored(33, n, k, b, false));
        cases.push(scored(300, n, k, b, true));
    }
    for (rows, columns) in [(1, 1), (3, 70), (33, 5), (300, 40)] {
        cases.push(built(rows, columns));
    }
    for (blocks, each) in [(1, 4), (7, 256), (3, 4096), (5, 33)] {
        cases.push(shrunk(blocks, each));
    }
    cases
}

/// A pattern on whatever device asks for it.
struct Patterns {
    host: BlockPattern,
    placed: Mutex<Vec<BlockPattern>>,
}

impl Patterns {
    fn new(Shape(_, n, k, b, blocks): Shape) -> Self {
        let device = Device::cpu();
        let stream = Stream { seed: 5, step: 0, site: 1 };
        let [rows, columns] = [n.div_ceil(b), k.div_ceil(b)];
        let uneven = |i: usize| i / columns == 1 || i % columns == 1;
        let host = match blocks {
            Random(density) => BlockPattern::random(&device, [n, k], b, density, stream),
            Empty => BlockPattern::empty(&device, [n, k], b),
            Uneven => BlockPattern::from_mask(&device, [n, k], b, &(0..rows * columns).map(uneven).collect::<Vec<_>>()),
        };
        Patterns { host: host.expect("the table's shapes are patterns"), placed: Mutex::default() }
    }

    /// Copied there when it is first asked for, so that timing sees no copies.
    fn on(&self, device: &Device) -> Result<BlockPattern> {
        let mut placed = self.placed.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(pattern) = placed.iter().find(|p| p.device() == device) {
            return Ok(pattern.clone());
        }
        let pattern = self.host.to_device(device)?;
        placed.push(pattern.clone());
        Ok(pattern)
    }

    /// Longest sums along rows and along columns of blocks, in elements.
    fn depths(&self) -> [usize; 2] {
        let (t, b) = (self.host.topology(), self.host.block());
        let longest = |offsets: &[u32]| offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0) * b;
        [longest(t.row_offsets()), longest(t.t_offsets())]
    }

    fn note(&self) -> String {
        format!("b={} {} blocks", self.host.block(), self.host.nnz())
    }
}

const SCALE: f64 = -2.0;
/// Beyond the sums: the scale, and pieces that are added.
const EXTRA: usize = 40;

pub fn linear(shape: Shape, judge: Judge) -> Case {
    let (Shape(m, n, k, ..), patterns) = (shape, Patterns::new(shape));
    let [along_rows, along_columns] = patterns.depths();
    Case::new("block_sparse_linear", format!("{m}x{n}x{k} {}", patterns.note()), judge)
        .limit(1)
        .input("x", &[m, k], Arithmetic::depth(along_columns + EXTRA))
        .param("values", &patterns.host.value_dims(), Arithmetic::depth(m + EXTRA))
        .call(Arithmetic::depth(along_rows + EXTRA), move |tape, given| {
            let x = given.var("x")?;
            let pattern = patterns.on(x.tensor().device())?;
            block_sparse_linear(tape, x, &pattern, given.var("values")?, given.factor(SCALE))
        })
}

pub fn product(shape: Shape, left: bool, t: Transposed, judge: Judge) -> Case {
    let (Shape(m, n, k, ..), patterns) = (shape, Patterns::new(shape));
    let [along_rows, along_columns] = patterns.depths();
    let (own, other) = if left == t.sparse { (along_columns, along_rows) } else { (along_rows, along_columns) };
    let depth = if left == t.sparse { n } else { k };
    let dims = if left == t.dense { [m, depth] } else { [depth, m] };
    let stored = match (t.sparse, t.dense) {
        (false, false) => "",
        (true, false) => " Sᵀ",
        (false, true) => " Dᵀ",
        (true, true) => " Sᵀ Dᵀ",
    };
    let op = if left { "dsd" } else { "dds" };
    Case::new(op, format!("{m}x{n}x{k} {}{stored}", patterns.note()), judge)
        .limit(1)
        .input("dense", &dims, Arithmetic::depth(other + EXTRA))
        .param("values", &patterns.host.value_dims(), Arithmetic::depth(m + EXTRA))
        .call(Arithmetic::depth(own + EXTRA), move |tape, given| {
            let (dense, values, scale) = (given.var("dense")?, given.var("values")?, given.factor(SCALE));
            let pattern = patterns.on(dense.tensor().device())?;
            if left {
                dsd(tape, &pattern, values, dense, t, scale)
            } else {
                dds(tape, dense, &pattern, values, t, scale)
            }
        })
}

pub fn sampled(shape: Shape, [a_t, b_t]: [bool; 2], judge: Judge) -> Case {
    let (Shape(m, n, k, ..), patterns) = (shape, Patterns::new(shape));
    let [along_rows, along_columns] = patterns.depths();
    let stored = match (a_t, b_t) {
        (false, false) => "",
        (true, false) => " Aᵀ",
        (false, true) => " Bᵀ",
        (true, true) => " Aᵀ Bᵀ",
    };
    Case::new("sdd", format!("{m}x{n}x{k} {}{stored}", patterns.note()), judge)
        .limit(1)
        .input("a", &if a_t { [m, n] } else { [n, m] }, Arithmetic::depth(along_rows + EXTRA))
        .input("b", &if b_t { [k, m] } else { [m, k] }, Arithmetic::depth(along_columns + EXTRA))
        .call(Arithmetic::depth(m + EXTRA), move |tape, given| {
            let (a, b) = (given.var("a")?, given.var("b")?);
            let pattern = patterns.on(a.tensor().device())?;
            sdd(tape, a, b, &pattern, [a_t, b_t], given.factor(SCALE))
        })
}

/// On top of a frozen product, with a low-rank update and dropout or without.
fn riding(shape: Shape, with_low_rank: bool, judge: Judge) -> Case {
    let (Shape(m, n, k, ..), patterns) = (shape, Patterns::new(shape));
    let [along_rows, along_columns] = patterns.depths();
    let r = if with_low_rank { 5 } else { 0 };
    let inner = usize::from(with_low_rank);
    let note = if with_low_rank { " r=5 bias dropout" } else { "" };
    let mut case = Case::new("frozen_linear", format!("{m}x{n}x{k} {}{note}", patterns.note()), judge)
        .limit(1)
        .dropout(with_low_rank)
        .input("x", &[m, k], Arithmetic::depth(n + along_columns + r + EXTRA).inner(inner))
        .frozen("weight", &[n, k])
        .param("values", &patterns.host.value_dims(), Arithmetic::depth(m + EXTRA));
    if with_low_rank {
        case = case.param("bias", &[n], Arithmetic::depth(m));
        case = case.param("a", &[r, k], Arithmetic::depth(m + n + EXTRA).inner(1));
        case = case.param("b", &[n, r], Arithmetic::depth(m + k + EXTRA).inner(1));
    }
    case.call(Arithmetic::depth(k + along_rows + r + EXTRA).inner(inner), move |tape, given| {
        let low_rank = match (given.maybe("a"), given.maybe("b")) {
            (Some(a), Some(b)) => {
                Some(LowRank { a, b, mid: Mid::Identity, scale: given.factor(SCALE), dropout: 0.5, site: 3 })
            }
            _ => None,
        };
        let x = given.var("x")?;
        let pattern = patterns.on(x.tensor().device())?;
        let sparse = Some(BlockUpdate { pattern: &pattern, values: given.var("values")?, scale: given.factor(4.0) });
        frozen_linear_with(
            tape,
            x,
            given.frozen("weight")?,
            given.maybe("bias"),
            Updates { low_rank, sparse },
            After::default(),
        )
    })
}

/// Results that have no tape: named, with so many operations one after the other behind them.
fn output(pass: &str, tensor: &Tensor, depth: usize) -> Result<Output> {
    Ok(Output {
        pass: pass.into(),
        dtype: tensor.dtype(),
        cols: tensor.cols(),
        arithmetic: Arithmetic::depth(depth),
        values: tensor.to_f64_vec()?,
    })
}

fn values(run: &Run, name: &str, dims: &[usize]) -> Result<Tensor> {
    let drawn: Vec<f32> = normal(name, dims.iter().product()).into_iter().map(|v| run.value(v)).collect();
    Tensor::from_f32(&run.device, dims, &drawn, run.dtype)
}

fn normed(n: usize, k: usize, b: usize) -> Case {
    let patterns = Patterns::new(Shape(0, n, k, b, Random(0.6)));
    Case::new("block_norms", format!("{n}x{k} {}", patterns.note()), Judge::Smooth).steps(move |run| {
        let pattern = patterns.on(&run.device)?;
        let (matrix, blocks) = (values(run, "matrix", &[n, k])?, values(run, "blocks", &pattern.value_dims())?);
        let mut out = Vec::new();
        for norm in [BlockNorm::Frobenius, BlockNorm::MeanAbsolute] {
            out.push(output(&format!("matrix {norm:?}"), &block_norms(&pattern, &matrix, norm)?, b * b)?);
            out.push(output(&format!("blocks {norm:?}"), &block_norms(&pattern, &blocks, norm)?, b * b)?);
        }
        Ok(out)
    })
}

fn scored(m: usize, n: usize, k: usize, b: usize, saliency: bool) -> Case {
    let patterns = Patterns::new(Shape(m, n, k, b, Random(0.6)));
    let note = if saliency { " saliency" } else { "" };
    Case::new("gradient_scores", format!("{m}x{n}x{k} {}{note}", patterns.note()), Judge::Smooth).steps(move |run| {
        let pattern = patterns.on(&run.device)?;
        let (x, dy, weight) = (values(run, "x", &[m, k])?, values(run, "dy", &[m, n])?, values(run, "w", &[n, k])?);
        let mut builder = ParamSetBuilder::new();
        let id = builder.add("scores", &[pattern.nnz()], Init::Values(vec![0.0; pattern.nnz()]))?;
        let params = builder.build(&run.device, run.dtype, 0)?;
        let mut grads = Grads::zeros(&params)?;
        for _ in 0..2 {
            let mut tape = Tape::deterministic(&params);
            let (y, scores) = (tape.input(dy.clone()), tape.param(id)?);
            let score = if saliency { GradientScore::Saliency(&weight) } else { GradientScore::Squares };
            let y = gradient_scores(&mut tape, &y, &Var::constant(x.clone()), &pattern, score, &scores)?;
            tape.backward_with(&y, dy.clone(), &mut grads)?;
        }
        Ok(vec![output("backward scores", &grads.view(id)?, m + b * b)?])
    })
}

/// The same on a tape that is given: forward passes y on, backward makes the scores.
pub fn scored_on_tape(shape: Shape) -> Case {
    let (Shape(m, n, k, ..), patterns) = (shape, Patterns::new(shape));
    Case::new("gradient_scores", format!("{m}x{n}x{k} {}", patterns.note()), Judge::Smooth)
        .input("y", &[m, n], Arithmetic::NONE)
        .input("x", &[m, k], Arithmetic::NONE)
        .param("scores", &[patterns.host.nnz()], Arithmetic::NONE)
        .call(Arithmetic::NONE, move |tape, given| {
            let (y, x) = (given.var("y")?, given.var("x")?);
            let pattern = patterns.on(y.tensor().device())?;
            gradient_scores(tape, y, x, &pattern, GradientScore::Squares, given.var("scores")?)
        })
}

/// A pattern from a mask on the device, all arrays end to end.
fn built(rows: usize, columns: usize) -> Case {
    Case::new("topology", format!("{rows}x{columns}"), Judge::Exact).steps(move |run| {
        let mask: Vec<u8> = integers("mask", rows * columns, 1).iter().map(|&v| u8::from(v > 0.0)).collect();
        let mask = Tensor::from_slice(&run.device, &[rows, columns], &mask)?;
        let pattern = pattern_from_mask(&mask, [rows * 16, columns * 16], 16)?;
        let t = pattern.topology();
        let arrays = [t.row_offsets(), t.columns(), t.rows(), t.t_offsets(), t.t_rows(), t.t_blocks()];
        let values: Vec<f64> = arrays.iter().flat_map(|a| a.iter().map(|&v| f64::from(v))).collect();
        let cols = values.len();
        Ok(vec![Output { pass: "index".into(), dtype: DType::I32, cols, arithmetic: Arithmetic::NONE, values }])
    })
}

/// Blocks by one threshold and by their own, then elements.
fn shrunk(blocks: usize, each: usize) -> Case {
    Case::new("proximal", format!("{blocks}x{each}"), Judge::Smooth).steps(move |run| {
        let dtype = run.dtype.accumulator();
        let dims = [blocks, each];
        let drawn = normal("w", blocks * each);
        // Norms are about √each: some blocks vanish, some shrink.
        let t = (each as f64).sqrt();
        let thresholds: Vec<f32> =
            integers("t", blocks, 2).iter().map(|&i| (t * f64::from(i.abs()) * 0.6) as f32).collect();
        let mut out = Vec::new();
        for step in ["uniform", "per block", "soft"] {
            let master = Tensor::from_f32(&run.device, &dims, &drawn, dtype)?;
            let narrow = matches!(run.dtype, DType::F16 | DType::BF16);
            let working = narrow.then(|| Tensor::zeros(&run.device, &dims, run.dtype)).transpose()?;
            let own = Tensor::from_f32(&run.device, &[blocks], &thresholds, DType::F32)?;
            match step {
                "uniform" => shrink_blocks(&master, working.as_ref(), Threshold::Uniform(0.5 * t))?,
                "per block" => shrink_blocks(&master, working.as_ref(), Threshold::PerBlock(&own))?,
                _ => soft_threshold(&master, working.as_ref(), 0.5)?,
            }
            out.push(output(step, &master, each)?);
            // The reference has no narrow copy: its values stand for it.
            out.push(output(&format!("{step} working"), working.as_ref().unwrap_or(&master), each)?);
        }
        Ok(out)
    })
}
