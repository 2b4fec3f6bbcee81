//! The reference: one pass, each function in a loop of its own. Constants stand inside the functions: captured, they would be
//! reloaded after every store, and the loops would not vectorise.

use std::f64::consts::FRAC_1_SQRT_2;

use super::{Activation, Desc, OP};
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

/// Elements that one step of the loop takes.
const CHUNK: usize = 2048;

/// √(2/π).
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;
const QUICK: f64 = 1.702;
/// 1/√(2π).
const DENSITY: f64 = 0.398_942_280_401_432_7;

pub fn forward<T: Real>(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<()> {
    let x = In::<T>::of(OP, x)?;
    let mut out = Out::<T>::of(OP, y)?;
    match desc.activation {
        // Written so that NaN passes.
        Activation::Relu => map(
            &x,
            &mut out,
            #[inline(always)]
            |x| if x < T::of(0.0) { T::of(0.0) } else { x },
        ),
        Activation::Gelu => {
            map(
                &x,
                &mut out,
                #[inline(always)]
                |x| T::of(0.5) * x * (T::of(1.0) + (x * T::of(FRAC_1_SQRT_2)).erf()),
            );
        }
        Activation::GeluTanh => map(
            &x,
            &mut out,
            #[inline(always)]
            |x| T::of(0.5) * x * (T::of(1.0) + inner(x).tanh()),
        ),
        Activation::QuickGelu => map(
            &x,
            &mut out,
            #[inline(always)]
            |x| x * sigmoid(T::of(QUICK) * x),
        ),
        Activation::Silu => map(
            &x,
            &mut out,
            #[inline(always)]
            |x| x * sigmoid(x),
        ),
    }
    out.finish()
}

pub fn backward<T: Real>(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let (dy, x) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let add = target.accumulate;
    match desc.activation {
        Activation::Relu => {
            zip(
                &dy,
                &x,
                &mut out,
                add,
                #[inline(always)]
                |dy, x| if x <= T::of(0.0) { T::of(0.0) } else { dy },
            );
        }
        Activation::Gelu => {
            zip(
                &dy,
                &x,
                &mut out,
                add,
                #[inline(always)]
                |dy, x| {
                    let density = T::of(DENSITY) * (-T::of(0.5) * x * x).exp();
                    dy * (T::of(0.5) * (T::of(1.0) + (x * T::of(FRAC_1_SQRT_2)).erf()) + x * density)
                },
            );
        }
        Activation::GeluTanh => zip(
            &dy,
            &x,
            &mut out,
            add,
            #[inline(always)]
            |dy, x| {
                let t = inner(x).tanh();
                let slope = T::of(ROOT) * (T::of(1.0) + T::of(3.0 * CUBIC) * x * x);
                dy * (T::of(0.5) * (T::of(1.0) + t) + T::of(0.5) * x * (T::of(1.0) - t * t) * slope)
            },
        ),
        Activation::QuickGelu => zip(
            &dy,
            &x,
            &mut out,
            add,
            #[inline(always)]
            |dy, x| {
                let u = T::of(QUICK) * x;
                let s = sigmoid(u);
                dy * (s + u * s * (T::of(1.0) - s))
            },
        ),
        Activation::Silu => zip(
            &dy,
            &x,
            &mut out,
            add,
            #[inline(always)]
            |dy, x| {
                let s = sigmoid(x);
                dy * (s + x * s * (T::of(1.0) - s))
            },
        ),
    }
    out.finish()
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::of(1.0) / (T::of(1.0) + (-x).exp())
}

/// The argument of tanh in the tanh form.
#[inline(always)]
fn inner<T: Real>(x: T) -> T {
    T::of(ROOT) * (x + T::of(CUBIC) * x * x * x)
}

#[inline(always)]
fn map<T: Real>(x: &[T], out: &mut [T], f: impl Fn(T) -> T + Sync) {
    for_rows(
        out,
        CHUNK,
        #[inline(always)]
        |i, row| {
            for (o, &x) in row.iter_mut().zip(&x[i * CHUNK..]) {
                *o = f(x);
            }
        },
    );
}

#[inline(always)]
fn zip<T: Real>(dy: &[T], x: &[T], out: &mut [T], accumulate: bool, f: impl Fn(T, T) -> T + Sync) {
    for_rows(
        out,
        CHUNK,
        #[inline(always)]
        |i, row| {
            let values = row.iter_mut().zip(&dy[i * CHUNK..]).zip(&x[i * CHUNK..]);
            if accumulate {
                for ((o, &dy), &x) in values {
                    *o += f(dy, x);
                }
            } else {
                for ((o, &dy), &x) in values {
                    *o = f(dy, x);
                }
            }
        },
    );
}
