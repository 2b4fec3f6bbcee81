//! What is timed: the calls that `verify` judges, at sizes of real use, with the work that no implementation can avoid.

use graftwork::ops::norm::Kind;
use graftwork::ops::{
    Activation, BlockNorm, CrossEntropyOptions, Pooling, Reduce, Threshold, Transposed, block_norms, shrink_blocks,
};
use graftwork::ops::{
    activation, attention, cross_entropy, dual_rank, edge_softmax, embedding, frozen_linear, graph_attention, linear,
    magnitude, norm, patch_embedding, pool, scale_add, sddmm, spmm,
};
use graftwork::tensor::BlockPattern;
use graftwork::testing::normal;
use graftwork::{DType, Device, Result, Tensor};

use super::timing::{Call, Job, Plain, Step};
use crate::verify::case::{Case, Judge};
use crate::verify::cases;
use cases::attention::Form;
use cases::gate::Form as Gate;
use cases::graph::Shape;
use cases::low_rank::Maps;
use cases::tokens::Image;

/// One pass's unavoidable work, and what it is measured against.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub flops: u64,
    pub bytes: u64,
    pub baseline: Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The bare matrix product `[m, k] × [k, n]`.
    Product { m: usize, n: usize, k: usize },
    /// A memory copy that reads and writes as many bytes as the op.
    Copy,
}

impl Cost {
    fn copy(flops: u64, bytes: u64) -> Self {
        Cost { flops, bytes, baseline: Baseline::Copy }
    }

    fn product(flops: u64, bytes: u64, [m, n, k]: [usize; 3]) -> Self {
        Cost { flops, bytes, baseline: Baseline::Product { m, n, k } }
    }
}

/// How large an entry's shape is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Size {
    /// As the shipped trunk at batch 32
    Small,
    /// ViT-B and language models
    Model,
    /// What a CPU takes seconds for
    Gpu,
}

pub type Place = Box<dyn Fn(&Device, DType) -> Result<Plain>>;

pub enum Subject {
    Call {
        case: Case,
        forward: Cost,
        backward: Cost,
    },
    /// A call that has no tape, on operands that `place` makes.
    Plain {
        op: &'static str,
        shape: String,
        cost: Cost,
        place: Place,
    },
    /// AdamW over so many parameters.
    Step {
        n: usize,
        cost: Cost,
    },
}

pub struct Entry {
    pub size: Size,
    pub subject: Subject,
}

impl Entry {
    pub fn op(&self) -> &'static str {
        match &self.subject {
            Subject::Call { case, .. } => case.op,
            Subject::Plain { op, .. } => op,
            Subject::Step { .. } => "adamw",
        }
    }
}

/// One pass of an entry.
pub struct Pass<'a> {
    pub op: &'static str,
    pub name: &'static str,
    pub shape: String,
    pub cost: &'a Cost,
    subject: &'a Subject,
}

impl Entry {
    pub fn passes(&self) -> Vec<Pass<'_>> {
        let subject = &self.subject;
        let pass = |name, shape: &str, cost| Pass { op: self.op(), name, shape: shape.into(), cost, subject };
        match subject {
            Subject::Call { case, forward, backward } => {
                let both = [pass("forward", &case.shape, forward), pass("backward", &case.shape, backward)];
                // One that only hands on what it is given is not timed.
                both.into_iter().filter(|pass| pass.cost.bytes > 0).collect()
            }
            Subject::Plain { shape, cost, .. } => vec![pass("call", shape, cost)],
            Subject::Step { n, cost } => vec![pass("step", &n.to_string(), cost)],
        }
    }
}

impl<'a> Pass<'a> {
    /// Made ready on a device, with so many sets of operands to go round.
    pub fn job(&self, device: &Device, dtype: DType, sets: usize) -> Result<Box<dyn Job + 'a>> {
        Ok(match self.subject {
            Subject::Call { case, .. } => Box::new(Call::new(case, device, dtype, sets, self.name == "backward")?),
            Subject::Plain { place, .. } => Box::new(place(device, dtype)?),
            Subject::Step { n, .. } => Box::new(Step::new(device, dtype, *n)?),
        })
    }
}

/// Every entry, for values of `dtype`.
pub fn all(dtype: DType) -> Vec<Entry> {
    use Size::{Gpu, Model, Small};
    let t = Table { dtype, size: dtype.size() as u64 };
    let entry = |size, subject| Entry { size, subject };
    vec![
        entry(Small, t.frozen([544, 64, 64, 8])),
        entry(Small, t.frozen([544, 128, 64, 8])),
        entry(Small, t.frozen([256, 512, 256, 16])),
        entry(Model, t.frozen([512, 768, 768, 8])),
        entry(Model, t.frozen([512, 3072, 768, 16])),
        entry(Gpu, t.frozen([2048, 4096, 4096, 16])),
        entry(Gpu, t.frozen([2048, 14336, 4096, 16])),
        entry(Gpu, t.frozen([2048, 4096, 14336, 16])),
        entry(Gpu, t.frozen([8192, 4096, 4096, 16])),
        entry(Gpu, t.frozen([8192, 4096, 4096, 64])),
        entry(Gpu, t.frozen([8192, 14336, 4096, 16])),
        entry(Gpu, t.frozen([8192, 4096, 14336, 16])),
        entry(Small, t.segmented(&[136; 4], [64, 64, 8])),
        entry(Model, t.segmented(&[700, 1, 512, 0, 363], [768, 768, 16])),
        entry(Gpu, t.segmented(&[1024; 8], [4096, 4096, 16])),
        entry(Small, t.block_sparse([544, 64, 64], 16, 0.25)),
        entry(Model, t.block_sparse([1024, 1024, 1024], 16, 0.25)),
        entry(Model, t.block_sparse([1024, 1024, 1024], 32, 0.25)),
        entry(Model, t.block_sparse([1024, 1024, 1024], 64, 0.25)),
        entry(Model, t.block_sparse([1024, 1024, 1024], 128, 0.25)),
        entry(Gpu, t.block_sparse([8192, 4096, 4096], 16, 0.25)),
        entry(Gpu, t.block_sparse([8192, 4096, 4096], 32, 0.25)),
        entry(Gpu, t.block_sparse([8192, 4096, 4096], 64, 0.25)),
        entry(Gpu, t.block_sparse([8192, 4096, 4096], 128, 0.25)),
        entry(Small, t.block_product(true, [544, 64, 64], 16, 0.25)),
        entry(Model, t.block_product(true, [1024, 1024, 1024], 64, 0.25)),
        entry(Gpu, t.block_product(true, [8192, 4096, 4096], 128, 0.25)),
        entry(Small, t.block_product(false, [544, 64, 64], 16, 0.25)),
        entry(Model, t.block_product(false, [1024, 1024, 1024], 64, 0.25)),
        entry(Gpu, t.block_product(false, [8192, 4096, 4096], 128, 0.25)),
        entry(Small, t.block_sdd([544, 64, 64], 16, 0.25)),
        entry(Model, t.block_sdd([1024, 1024, 1024], 64, 0.25)),
        entry(Gpu, t.block_sdd([8192, 4096, 4096], 128, 0.25)),
        entry(Small, t.gradient_scores([544, 64, 64], 16)),
        entry(Model, t.gradient_scores([1024, 1024, 1024], 64)),
        entry(Gpu, t.gradient_scores([8192, 4096, 4096], 64)),
        entry(Small, t.block_norms([64, 64], 16)),
        entry(Model, t.block_norms([1024, 1024], 64)),
        entry(Gpu, t.block_norms([16384, 16384], 64)),
        entry(Small, t.proximal(16, 256)),
        entry(Model, t.proximal(64, 4096)),
        entry(Gpu, t.proximal(16384, 4096)),
        entry(Small, t.linear([32, 5, 64])),
        entry(Model, t.linear([512, 768, 768])),
        entry(Small, t.norm(Kind::Layer, 544, 64)),
        entry(Model, t.norm(Kind::Layer, 1576, 768)),
        entry(Gpu, t.norm(Kind::Layer, 8192, 4096)),
        entry(Small, t.norm(Kind::Rms, 544, 64)),
        entry(Model, t.norm(Kind::Rms, 512, 4096)),
        entry(Small, t.activation(Activation::Gelu, 544, 128)),
        entry(Model, t.activation(Activation::Gelu, 1576, 3072)),
        entry(Small, t.activation(Activation::Relu, 544, 128)),
        entry(Model, t.activation(Activation::Relu, 1576, 3072)),
        entry(Small, t.activation(Activation::GeluTanh, 544, 128)),
        entry(Model, t.activation(Activation::GeluTanh, 1576, 3072)),
        entry(Small, t.activation(Activation::QuickGelu, 544, 128)),
        entry(Model, t.activation(Activation::QuickGelu, 1576, 3072)),
        entry(Small, t.activation(Activation::Silu, 544, 128)),
        entry(Model, t.activation(Activation::Silu, 1576, 3072)),
        entry(Small, t.attention([32, 4, 17, 17, 16], Form::Plain)),
        entry(Model, t.attention([4, 12, 197, 197, 64], Form::Plain)),
        entry(Model, t.attention([1, 12, 512, 512, 64], Form::Causal)),
        entry(Gpu, t.attention([4, 32, 2048, 2048, 128], Form::Causal)),
        entry(Small, t.scale_add(544, 64, false)),
        entry(Model, t.scale_add(1576, 768, false)),
        entry(Model, t.scale_add(1576, 768, true)),
        entry(Gpu, t.scale_add(16384, 4096, false)),
        entry(Small, t.scale(544, 64)),
        entry(Model, t.scale(1576, 768)),
        entry(Small, t.gate(Gate::Large, [32, 17, 64])),
        entry(Model, t.gate(Gate::Large, [8, 197, 768])),
        entry(Model, t.gate(Gate::MiddleX, [8, 197, 768])),
        entry(Model, t.gate(Gate::MiddleY, [8, 197, 768])),
        entry(Model, t.gate(Gate::Small, [8, 197, 768])),
        entry(Gpu, t.gate(Gate::Large, [16, 512, 4096])),
        entry(Gpu, t.gate(Gate::MiddleY, [16, 512, 4096])),
        entry(Small, t.dual_rank([544, 64, 8])),
        entry(Model, t.dual_rank([1576, 768, 32])),
        entry(Gpu, t.dual_rank([8192, 4096, 32])),
        entry(Small, t.magnitude([64, 64, 8])),
        entry(Model, t.magnitude([768, 768, 16])),
        entry(Gpu, t.magnitude([4096, 4096, 16])),
        entry(Small, t.deformable(Maps([32, 17, 4, 16], 4, 4))),
        entry(Gpu, t.deformable(Maps([8, 577, 16, 64], 4, 4))),
        entry(Small, t.embedding([544, 256, 64])),
        entry(Model, t.embedding([2048, 8192, 768])),
        entry(Small, t.patch(Image(32, 1, [4, 4], 2, 64))),
        entry(Model, t.patch(Image(4, 3, [14, 14], 16, 768))),
        entry(Small, t.pool(Pooling::ClassToken, [32, 17, 64])),
        entry(Small, t.pool(Pooling::Mean, [32, 17, 64])),
        entry(Model, t.pool(Pooling::Mean, [8, 197, 768])),
        entry(Small, t.join((32, [16, 9], 64))),
        entry(Model, t.join((256, [40, 1], 768))),
        entry(Small, t.cross_entropy(32, 5)),
        entry(Model, t.cross_entropy(256, 32_000)),
        entry(Small, t.adamw(8_192)),
        entry(Small, t.spmm(Shape(500, 500, 8, 0), 64, Reduce::Sum)),
        entry(Model, t.spmm(Shape(100_000, 100_000, 16, 0), 64, Reduce::Sum)),
        entry(Model, t.spmm(Shape(100_000, 100_000, 16, 0), 64, Reduce::Max)),
        entry(Gpu, t.spmm(Shape(2_000_000, 2_000_000, 16, 0), 128, Reduce::Sum)),
        entry(Gpu, t.spmm(Shape(2_000_000, 2_000_000, 16, 1_000_000), 128, Reduce::Sum)),
        entry(Small, t.spmm(Shape(500, 500, 8, 0), 64, Reduce::Max)),
        entry(Small, t.sddmm(Shape(500, 500, 8, 0), 64)),
        entry(Small, t.edge_softmax(Shape(500, 500, 8, 0), 4)),
        entry(Small, t.graph_attention(Shape(500, 500, 8, 0), 64, 4)),
        entry(Model, t.sddmm(Shape(100_000, 100_000, 16, 0), 64)),
        entry(Model, t.edge_softmax(Shape(100_000, 100_000, 16, 0), 8)),
        entry(Gpu, t.edge_softmax(Shape(2_000_000, 2_000_000, 16, 1_000_000), 4)),
        entry(Model, t.graph_attention(Shape(100_000, 100_000, 16, 0), 64, 4)),
        entry(Model, t.adamw(2_000_000)),
    ]
}

/// Bytes of an f32 number: a parameter's gradient.
const F32: u64 = 4;

struct Table {
    dtype: DType,
    /// Bytes of a value.
    size: u64,
}

fn product(numbers: &[usize]) -> u64 {
    numbers.iter().map(|&n| n as u64).product()
}

impl Table {
    /// u = dy B, both parts of dx, dA and dB; the frozen weight has no gradient.
    fn frozen(&self, [m, n, k, r]: [usize; 4]) -> Subject {
        let desc = frozen_linear::Desc { m, n, k, r, dtype: self.dtype, z_scale: 2.0, h_scale: 1.0, dropout: None };
        let flops = 2 * product(&[m, n, k]) + 4 * product(&[m, r, n + k]);
        let read = product(&[m, n + k + r]) + product(&[n, k]) + product(&[r, n + k]);
        let bytes = (read + product(&[m, k])) * self.size + product(&[r, n + k]) * F32;
        Subject::Call {
            case: cases::linear::frozen(cases::linear::Frozen(m, n, k, r, true, 0.0), Judge::Bound),
            forward: Cost::product(desc.flops(), desc.bytes(), [m, n, k]),
            backward: Cost::product(flops, bytes, [m, k, n]),
        }
    }

    /// As one adapter of the same rank on all rows, beside the bare product; each slot has factors of its own.
    fn segmented(&self, lengths: &'static [usize], sides: [usize; 3]) -> Subject {
        let ([n, k, r], m, slots) = (sides, lengths.iter().sum(), lengths.len());
        let factors = product(&[slots, r, n + k]);
        let forward = product(&[m, n + k]) + product(&[n, k]) + factors;
        let backward = product(&[m, n + 2 * k + r]) + product(&[n, k]) + factors;
        let update = 2 * product(&[m, r, n + k]);
        Subject::Call {
            case: cases::linear::segmented((lengths, sides, 0.0), Judge::Bound),
            forward: Cost::product(2 * product(&[m, n, k]) + update, forward * self.size, [m, n, k]),
            backward: Cost::product(
                2 * product(&[m, n, k]) + 2 * update,
                backward * self.size + factors * F32,
                [m, k, n],
            ),
        }
    }

    /// Against the dense product of the same shape: what it costs to mask instead.
    fn block_sparse(&self, [m, n, k]: [usize; 3], b: usize, density: f64) -> Subject {
        let shape = cases::block_sparse::Shape(m, n, k, b, cases::block_sparse::Blocks::Random(density));
        let values = (product(&[n, k]) as f64 * density) as u64;
        let flops = 2 * product(&[m]) * values;
        let forward = (product(&[m, n + k]) + values) * self.size;
        let backward = (product(&[m, n + 2 * k]) + values) * self.size + values * F32;
        Subject::Call {
            case: cases::block_sparse::linear(shape, Judge::Bound),
            forward: Cost::product(flops, forward, [m, n, k]),
            backward: Cost::product(2 * flops, backward, [m, 2 * k, n]),
        }
    }

    /// dsd (`left`), `S D` with D `[k, m]`, or dds, `D S` with D `[m, n]`; backward is the other product and the sampled one.
    fn block_product(&self, left: bool, [m, n, k]: [usize; 3], b: usize, density: f64) -> Subject {
        let shape = cases::block_sparse::Shape(m, n, k, b, cases::block_sparse::Blocks::Random(density));
        let stored = Transposed { sparse: false, dense: false };
        let values = (product(&[n, k]) as f64 * density) as u64;
        let flops = 2 * product(&[m]) * values;
        let (depth, lines) = if left { (k, n) } else { (n, k) };
        let forward = (product(&[m, n + k]) + values) * self.size;
        let backward = (product(&[m, lines + 2 * depth]) + values) * self.size + values * F32;
        Subject::Call {
            case: cases::block_sparse::product(shape, left, stored, Judge::Bound),
            forward: Cost::product(flops, forward, [m, lines, depth]),
            backward: Cost::product(2 * flops, backward, [m, 2 * depth, lines]),
        }
    }

    /// Backward is dsd and dds.
    fn block_sdd(&self, [m, n, k]: [usize; 3], b: usize, density: f64) -> Subject {
        let shape = cases::block_sparse::Shape(m, n, k, b, cases::block_sparse::Blocks::Random(density));
        let values = (product(&[n, k]) as f64 * density) as u64;
        let flops = 2 * product(&[m]) * values;
        let operands = product(&[m, n + k]);
        Subject::Call {
            case: cases::block_sparse::sampled(shape, [false, false], Judge::Bound),
            forward: Cost::product(flops, (operands + values) * self.size, [n, k, m]),
            backward: Cost::product(2 * flops, (2 * operands + values) * self.size, [n, 2 * k, m]),
        }
    }

    /// Forward hands y on; backward multiplies for every block and keeps a number of each.
    fn gradient_scores(&self, [m, n, k]: [usize; 3], b: usize) -> Subject {
        let shape = cases::block_sparse::Shape(m, n, k, b, cases::block_sparse::Blocks::Random(1.0));
        let flops = 2 * product(&[m, n, k]);
        Subject::Call {
            case: cases::block_sparse::scored_on_tape(shape),
            forward: Cost::copy(0, 0),
            backward: Cost::product(flops, product(&[m, n + k]) * self.size, [n, k, m]),
        }
    }

    fn block_norms(&self, dims: [usize; 2], b: usize) -> Subject {
        let numbers = product(&dims);
        let place = move |device: &Device, dtype| {
            let pattern = BlockPattern::full(device, dims, b)?;
            let matrix = Tensor::from_f32(device, &dims, &normal("matrix", dims.iter().product()), dtype)?;
            Ok(Plain(Box::new(move || block_norms(&pattern, &matrix, BlockNorm::Frobenius).map(drop))))
        };
        let [n, k] = dims;
        Subject::Plain {
            op: "block_norms",
            shape: format!("{n}x{k} b={b}"),
            cost: Cost::copy(2 * numbers, numbers * self.size),
            place: Box::new(place),
        }
    }

    /// In place, on f32 values. The threshold is so small that they stay what they are from call to call.
    fn proximal(&self, blocks: usize, each: usize) -> Subject {
        let numbers = product(&[blocks, each]);
        let place = move |device: &Device, dtype: DType| {
            let drawn = normal("values", blocks * each);
            let values = Tensor::from_f32(device, &[blocks, each], &drawn, dtype.accumulator())?;
            Ok(Plain(Box::new(move || shrink_blocks(&values, None, Threshold::Uniform(1e-6)))))
        };
        Subject::Plain {
            op: "proximal",
            shape: format!("{blocks}x{each}"),
            cost: Cost::copy(3 * numbers, 2 * numbers * F32),
            place: Box::new(place),
        }
    }

    fn linear(&self, [m, n, k]: [usize; 3]) -> Subject {
        let desc = linear::Desc { m, n, k, dtype: self.dtype };
        let bytes = (product(&[m, n + 2 * k]) + product(&[n, k])) * self.size + product(&[n, k]) * F32;
        Subject::Call {
            case: cases::linear::trainable((m, n, k), Judge::Bound),
            forward: Cost::product(desc.flops(), desc.bytes(), [m, n, k]),
            // dx and dW.
            backward: Cost::product(2 * desc.flops(), bytes, [m, 2 * k, n]),
        }
    }

    fn norm(&self, kind: Kind, m: usize, d: usize) -> Subject {
        let desc = norm::Desc { m, d, kind, bias: kind == Kind::Layer, eps: 1e-5, dtype: self.dtype };
        let form = if kind == Kind::Layer { cases::norm::Form::Layer } else { cases::norm::Form::Rms };
        Subject::Call {
            case: cases::norm::normed(form, (m, d), 1e-5),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            // x and dy in, dx out.
            backward: Cost::copy(2 * desc.flops(), 3 * product(&[m, d]) * self.size),
        }
    }

    fn activation(&self, function: Activation, m: usize, n: usize) -> Subject {
        let desc = activation::Desc { n: m * n, activation: function, dtype: self.dtype };
        Subject::Call {
            case: cases::elementwise::activated(function, (m, n)),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(2 * desc.flops(), 3 * product(&[m, n]) * self.size),
        }
    }

    /// Forward is two products, backward five; q, k, v and dy come in, dq, dk and dv go out.
    fn attention(&self, shape: cases::attention::Shape, form: Form) -> Subject {
        let [b, h, t, s, d] = shape;
        let causal = form == Form::Causal;
        let desc = attention::Desc { b, t, s, h, d, dtype: self.dtype, causal, scale: 1.0, mask: None };
        // A causal mask over a square leaves half of the products.
        let flops = if causal { desc.flops() / 2 } else { desc.flops() };
        let bytes = product(&[b, h, d, 3 * t + 4 * s]) * self.size;
        let rows = if causal { b * h * t / 2 } else { b * h * t };
        Subject::Call {
            case: cases::attention::attended(shape, form),
            forward: Cost::product(flops, desc.bytes(), [rows, s, 2 * d]),
            backward: Cost::product(flops / 2 * 5, bytes, [rows, s, 5 * d]),
        }
    }

    /// dx is dy itself and costs nothing.
    fn scale_add(&self, m: usize, n: usize, broadcast: bool) -> Subject {
        let (outer, inner) = if broadcast { (m, n) } else { (1, m * n) };
        let desc = scale_add::Desc { outer, inner, scale: 0.5, dtype: self.dtype };
        let out = if broadcast { n as u64 * F32 } else { product(&[m, n]) * self.size };
        Subject::Call {
            case: cases::elementwise::added((m, n), broadcast, Judge::Bound),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(product(&[m, n]), product(&[m, n]) * self.size + out),
        }
    }

    fn scale(&self, m: usize, n: usize) -> Subject {
        let cost = Cost::copy(product(&[m, n]), 2 * product(&[m, n]) * self.size);
        Subject::Call { case: cases::elementwise::scaled((m, n), Judge::Bound), forward: cost, backward: cost }
    }

    /// Forward reads H, ΔH and R, and L where values have gates of their own; backward reads dy, H and ΔH again and L or R, and writes dU,
    /// and dL or dR. An exponential counts as ten.
    fn gate(&self, form: Gate, shape: [usize; 3]) -> Subject {
        let whole = product(&shape);
        let arrays = |count: u64| count * whole * self.size;
        let (flops, forward, backward) = match form {
            Gate::Large => (16, 5, 6),
            Gate::MiddleX => (6, 4, 6),
            Gate::MiddleY => (4, 4, 4),
            Gate::Small => (7, 4, 6),
        };
        Subject::Call {
            case: cases::gate::gated(form, shape, cases::gate::Made::Given, 0.0),
            forward: Cost::copy(flops * whole, arrays(forward)),
            backward: Cost::copy(2 * flops * whole, arrays(backward)),
        }
    }

    /// The product with x is most of it, forward once and backward twice.
    fn dual_rank(&self, shape: [usize; 3]) -> Subject {
        let [m, k, r] = shape;
        let desc = dual_rank::Desc { m, k, r, eps: 1e-5, dtype: self.dtype, dropout: None };
        Subject::Call {
            case: cases::low_rank::gated(shape, 0.0),
            forward: Cost::product(desc.flops(), desc.bytes(), [m, 2 * r, k]),
            backward: Cost::product(2 * desc.flops(), 2 * desc.bytes(), [m, k, 4 * r]),
        }
    }

    /// Backward is one division a row.
    fn magnitude(&self, shape: [usize; 3]) -> Subject {
        let [n, k, r] = shape;
        let desc = magnitude::Desc { n, k, r, scale: 0.5, dtype: self.dtype };
        Subject::Call {
            case: cases::low_rank::lengths(shape),
            forward: Cost::product(desc.flops(), desc.bytes(), [n, k, r]),
            backward: Cost::copy(n as u64, n as u64 * (self.size + 2 * F32)),
        }
    }

    /// Backward reads what forward does, and dy, and writes three gradients.
    fn deformable(&self, maps: Maps) -> Subject {
        let Maps([b, q, h, d], l, p) = maps;
        let samples = (3 * b * q * h * l * p) as u64;
        let (values, results) = (product(&[b, maps.tokens(), h * d]), product(&[b, q, h * d]));
        let flops = 12 * results * (l * p) as u64;
        Subject::Call {
            case: cases::low_rank::sampled(maps),
            forward: Cost::copy(flops, (values + results + samples) * self.size),
            backward: Cost::copy(2 * flops, (2 * values + results + 2 * samples) * self.size),
        }
    }

    fn embedding(&self, [m, v, d]: [usize; 3]) -> Subject {
        let desc = embedding::Desc { m, v, d, dtype: self.dtype, id_dtype: DType::I64 };
        Subject::Call {
            case: cases::tokens::looked_up((m, v, d), DType::I64, Judge::Bound),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            // dy in; the rows that occur are read and written.
            backward: Cost::copy(product(&[m, d]), product(&[m, d]) * self.size + 2 * product(&[m.min(v), d]) * F32),
        }
    }

    fn patch(&self, image: Image) -> Subject {
        let Image(b, c, grid, patch, d) = image;
        let desc = patch_embedding::Desc { b, c, grid, patch, d, class_token: true, dtype: self.dtype };
        let rows = b * desc.patches();
        Subject::Call {
            case: cases::tokens::patched(image, true, Judge::Bound),
            forward: Cost::product(desc.flops(), desc.bytes(), [rows, d, desc.k()]),
            backward: Cost::product(desc.flops(), desc.bytes(), [rows, desc.k(), d]),
        }
    }

    fn pool(&self, pooling: Pooling, [b, t, d]: [usize; 3]) -> Subject {
        let desc = pool::Desc { b, t, d, pooling, dtype: self.dtype };
        Subject::Call {
            case: cases::tokens::pooled((b, t, d), pooling, Judge::Bound),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(product(&[b, d]), product(&[b, t + 1, d]) * self.size),
        }
    }

    fn join(&self, parts: (usize, [usize; 2], usize)) -> Subject {
        let (b, [t, s], d) = parts;
        let cost = Cost::copy(0, 2 * product(&[b, t + s, d]) * self.size);
        Subject::Call { case: cases::tokens::joined(parts), forward: cost, backward: cost }
    }

    fn cross_entropy(&self, m: usize, c: usize) -> Subject {
        let options = CrossEntropyOptions { ignore_index: Some(-100), ..CrossEntropyOptions::default() };
        let desc = cross_entropy::Desc {
            m,
            c,
            dtype: self.dtype,
            target_dtype: DType::I64,
            ignore_index: options.ignore_index,
            label_smoothing: 0.0,
            denominator: None,
        };
        Subject::Call {
            case: cases::loss::entropy((m, c), DType::I64, options, false),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(desc.flops(), 2 * product(&[m, c]) * self.size),
        }
    }

    /// What is gathered, with no row found in a cache; backward gathers for x and for the weights.
    fn spmm(&self, shape: Shape, f: usize, reduce: Reduce) -> Subject {
        let desc = spmm::Desc { v: shape.0, e: shape.edges(), f, heads: 1, reduce, dtype: self.dtype };
        Subject::Call {
            case: cases::graph::summed(shape, f, 1, reduce, Judge::Bound),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(2 * desc.flops(), 2 * desc.bytes()),
        }
    }

    fn sddmm(&self, shape: Shape, f: usize) -> Subject {
        let desc = sddmm::Desc { v: shape.0, e: shape.edges(), f, heads: 1, dtype: self.dtype };
        Subject::Call {
            case: cases::graph::dotted(shape, f, 1, Judge::Bound),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(2 * desc.flops(), 2 * desc.bytes()),
        }
    }

    fn edge_softmax(&self, shape: Shape, heads: usize) -> Subject {
        let desc = edge_softmax::Desc { v: shape.0, e: shape.edges(), heads, dtype: self.dtype };
        Subject::Call {
            case: cases::graph::softened(shape, heads),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(desc.flops(), desc.bytes() / 2 * 3),
        }
    }

    /// Backward gathers rows of x for the edges, then rows of dy.
    fn graph_attention(&self, shape: Shape, f: usize, heads: usize) -> Subject {
        let (e, slope) = (shape.edges(), 0.2);
        let desc = graph_attention::Desc { v: shape.0, e, f, heads, slope, dtype: self.dtype };
        Subject::Call {
            case: cases::graph::attended(shape, f, heads),
            forward: Cost::copy(desc.flops(), desc.bytes()),
            backward: Cost::copy(2 * desc.flops(), 2 * desc.bytes()),
        }
    }

    /// Parameters and both moments in and out, gradients in and zeroed, and the working copy where it is another tensor.
    fn adamw(&self, n: usize) -> Subject {
        let working = if self.dtype == DType::F32 { 0 } else { self.size };
        Subject::Step { n, cost: Cost::copy(16 * n as u64, n as u64 * (8 * F32 + working)) }
    }
}
