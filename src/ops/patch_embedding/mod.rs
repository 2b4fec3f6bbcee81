//! An image as tokens: its patches through one frozen linear map, a class token in front, positions added.
//!
//! ```text
//! y[b, first + i, :] = W · patch_i(pixels[b]) + bias + positions[first + i]
//! y[b, 0, :]         = cls + positions[0]                                        with a class token: first = 1, else 0
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `pixels` | `[b, c, H, W]` | f32, f16, bf16 (f64 on the CPU) |
//! | `weight` | `[d, c·p·p]`, frozen, columns in the order (channel, row, column) of a convolution's kernel | as pixels |
//! | `bias` | `[d]` | as pixels |
//! | `cls` | `[d]` or `[1, 1, d]` | as pixels |
//! | `positions` | `[1, t, d]` | as pixels |
//! | `y` | `[b, t, d]`, `t = first + (H/p)(W/p)` | as pixels |
//!
//! Patches are counted row by row of the image. Backward: `dpixels` are the columns of `dy W` put back in their places (patches do
//! not overlap, so nothing is added up), `dbias = Σ_{b,i} dy[b, first + i]`, `dcls = Σ_b dy[b, 0]`, `dpositions = Σ_b dy[b]`, all in
//! a fixed order. Nothing is kept for it.
//!
//! Source: Dosovitskiy et al., "An image is worth 16×16 words", 2020.
//!
//! Cost: `2·b·(H/p)(W/p)·d·c·p²` floating-point operations forward.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a patch that is 0 or does not divide the image.

mod cpu;
pub mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var, Wants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::{FrozenWeight, Tensor};

const OP: &str = "patch_embedding";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub b: usize,
    pub c: usize,
    /// Patches down and across.
    pub grid: [usize; 2],
    pub patch: usize,
    pub d: usize,
    /// Whether token 0 is a class token.
    pub class_token: bool,
    pub dtype: DType,
}

impl Desc {
    pub fn new(
        pixels: &Tensor,
        weight: &FrozenWeight,
        bias: Option<&Tensor>,
        cls: Option<&Tensor>,
        positions: Option<&Tensor>,
        patch: usize,
    ) -> Result<Self> {
        let &[b, c, height, width] = pixels.dims() else {
            return Err(Error::shape(OP, "pixels", "[b, c, H, W]", pixels.dims()));
        };
        if patch == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            let expected = format!("a divisor of the image's {height} rows and {width} columns");
            return Err(Error::value(OP, "patch", expected, patch));
        }
        if !pixels.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "pixels", expected, got: pixels.dtype() });
        }
        pixels.require_contiguous(OP, "pixels")?;
        let grid = [height / patch, width / patch];
        // With no image in the batch nothing else has bounded the number of its patches.
        if grid[0].checked_mul(grid[1]).is_none_or(|patches| patches == usize::MAX) {
            return Err(Error::SizeOverflow { op: OP, dims: pixels.dims().to_vec() });
        }
        let d = weight.n();
        let desc = Desc { b, c, grid, patch, d, class_token: cls.is_some(), dtype: pixels.dtype() };
        let matches = |name: &'static str, other: &Tensor, shapes: &[&[usize]]| {
            if !shapes.iter().any(|dims| *dims == other.dims()) {
                let expected = shapes.iter().map(|dims| format!("{dims:?}")).collect::<Vec<_>>().join(" or ");
                return Err(Error::shape(OP, name, expected, other.dims()));
            }
            other.require_dtype(OP, name, desc.dtype)?;
            other.require_device(OP, name, pixels.device())?;
            other.require_contiguous(OP, name)
        };
        // A patch so large that its area overflows cannot divide an image that exists.
        matches("weight", weight.tensor(), &[&[d, c.saturating_mul(patch.saturating_mul(patch))]])?;
        if let Some(bias) = bias {
            matches("bias", bias, &[&[d]])?;
        }
        if let Some(cls) = cls {
            matches("cls", cls, &[&[d], &[1, 1, d]])?;
        }
        if let Some(positions) = positions {
            matches("positions", positions, &[&[1, desc.t(), d]])?;
        }
        Ok(desc)
    }

    /// Patches of one image.
    pub fn patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// The token of the first patch: 1 behind a class token.
    pub fn first(&self) -> usize {
        usize::from(self.class_token)
    }

    /// Tokens of one image.
    pub fn t(&self) -> usize {
        self.first() + self.patches()
    }

    /// Pixel values of one patch.
    pub fn k(&self) -> usize {
        self.c * self.patch * self.patch
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        [self.b, self.patches(), self.d, self.k()].iter().fold(2u64, |n, &size| n.saturating_mul(size as u64))
    }

    /// Bytes that the forward pass must move at least: pixels, weight and tokens once.
    pub fn bytes(&self) -> u64 {
        let product = |sizes: [usize; 3]| sizes.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        [[self.b, self.patches(), self.k()], [1, self.d, self.k()], [self.b, self.t(), self.d]]
            .into_iter()
            .fold(0u64, |n, sizes| n.saturating_add(product(sizes)))
            .saturating_mul(self.dtype.size() as u64)
    }
}

/// `[b, t, d]` from `[b, c, H, W]`; see the module for shapes and errors.
pub fn patch_embedding(
    tape: &mut Tape,
    pixels: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    cls: Option<&Var>,
    positions: Option<&Var>,
    patch: usize,
) -> Result<Var> {
    let operands = Operands {
        weight: weight.tensor(),
        bias: bias.map(Var::tensor),
        cls: cls.map(Var::tensor),
        positions: positions.map(Var::tensor),
    };
    let desc = Desc::new(pixels.tensor(), weight, operands.bias, operands.cls, operands.positions, patch)?;
    let y = Tensor::empty(pixels.tensor().device(), &[desc.b, desc.t(), desc.d], desc.dtype)?;
    forward(&desc, pixels.tensor(), &operands, &y)?;
    let none = Var::constant(y.clone());
    let inputs = [pixels, bias.unwrap_or(&none), cls.unwrap_or(&none), positions.unwrap_or(&none)];
    Ok(tape.record(y, &inputs, |wants| Node {
        desc,
        weight: weight.clone(),
        pixels: needs_pixels(wants).then(|| pixels.save()),
    }))
}

/// Positions of the inputs on the tape.
const PIXELS: usize = 0;
const BIAS: usize = 1;
const CLS: usize = 2;
const POSITIONS: usize = 3;

/// The pixels would be kept only for the gradient of the weight.
fn needs_pixels(wants: Wants) -> bool {
    wants.weights
}

/// What forward reads besides the pixels.
pub(crate) struct Operands<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub cls: Option<&'a Tensor>,
    pub positions: Option<&'a Tensor>,
}

fn forward(desc: &Desc, pixels: &Tensor, operands: &Operands, y: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    if y.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, pixels, operands, y));
    }
    y.device().run(&gpu::forward(desc, pixels, operands, y)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    weight: FrozenWeight,
    pixels: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.pixels.iter().collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let desc = &self.desc;
        for (input, sum) in [(BIAS, Sum::bias(desc)), (CLS, Sum::cls(desc)), (POSITIONS, Sum::positions(desc))] {
            // An operand that was not given has no gradient to open.
            if let Some(target) = sinks.open(input)? {
                token_sums(desc, &sum, dy, &target)?;
            }
        }
        if let Some(target) = sinks.open(PIXELS)? {
            pixel_gradient(desc, dy, self.weight.tensor(), &target)?;
        }
        Ok(())
    }
}

/// A sum over tokens of `dy [b, t, d]`: `out[g] = Σ_{item < b} Σ_{i < inner} dy[item, base + g + i]` for g below `groups`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    pub groups: usize,
    pub inner: usize,
    pub base: usize,
}

impl Sum {
    fn bias(desc: &Desc) -> Self {
        Sum { groups: 1, inner: desc.patches(), base: desc.first() }
    }

    fn cls(_: &Desc) -> Self {
        Sum { groups: 1, inner: 1, base: 0 }
    }

    fn positions(desc: &Desc) -> Self {
        Sum { groups: desc.t(), inner: 1, base: 0 }
    }
}

fn token_sums(desc: &Desc, sum: &Sum, dy: &Tensor, target: &Target) -> Result<()> {
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::token_sums::<T>(desc, sum, dy, target));
    }
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    dy.device().run(&gpu::token_sums(desc, sum, dy, target)?)
}

fn pixel_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::pixel_gradient::<T>(desc, dy, weight, target));
    }
    dy.device().run(&gpu::pixel_gradient(desc, dy, weight, target)?)
}
