//! How a call is timed: whole batches between two waits for the device, its baseline in turn with it, the median of the repeats.

use std::cell::{OnceCell, RefCell};
use std::time::Instant;

use graftwork::autograd::Grads;
use graftwork::optim::{AdamW, AdamWConfig};
use graftwork::tensor::{Init, ParamSet, ParamSetBuilder};
use graftwork::testing::{bare_product, normal};
use graftwork::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::cublas::{Blas, Product};
use super::table::{Baseline, Cost};
use crate::verify::case::{Case, Placed, Run};

/// A call made ready, so that what it needs beforehand is not timed.
pub type Ready<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// Something that can be timed again and again.
pub trait Job {
    /// The call number `turn`.
    fn ready(&self, turn: usize) -> Result<Ready<'_>>;
}

/// How long and how often.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Seconds that a batch should take.
    pub batch: f64,
    pub repeats: usize,
}

pub struct Timing {
    pub seconds: f64,
    pub baseline_seconds: Option<f64>,
    pub ratio: Option<f64>,
    /// From the first to the third quartile of the repeats, as a share of the median.
    pub spread: f64,
    pub calls: usize,
}

/// Most calls of a batch: backward passes are prepared beforehand and hold memory.
const MOST_CALLS: usize = 64;

pub fn time(device: &Device, job: &dyn Job, baseline: Option<&dyn Job>, effort: Effort) -> Result<Timing> {
    let calls = calls(device, job, effort)?;
    let baseline_calls = baseline.map(|b| self::calls(device, b, effort)).transpose()?.unwrap_or(0);
    let (mut own, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repeats {
        let seconds = batch(device, job, calls)?;
        own.push(seconds);
        if let Some(baseline) = baseline {
            let other = batch(device, baseline, baseline_calls)?;
            theirs.push(other);
            ratios.push(seconds / other);
        }
    }
    let seconds = quantile(&mut own, 0.5);
    let spread = (quantile(&mut own, 0.75) - quantile(&mut own, 0.25)) / seconds;
    let median = |values: &mut Vec<f64>| (!values.is_empty()).then(|| quantile(values, 0.5));
    Ok(Timing { seconds, baseline_seconds: median(&mut theirs), ratio: median(&mut ratios), spread, calls })
}

/// Calls that fill a batch, after one that warms up.
fn calls(device: &Device, job: &dyn Job, effort: Effort) -> Result<usize> {
    batch(device, job, 1)?;
    let once = batch(device, job, 1)?;
    Ok(((effort.batch / once.max(1e-9)).ceil() as usize).clamp(1, MOST_CALLS))
}

/// Seconds of one call.
fn batch(device: &Device, job: &dyn Job, calls: usize) -> Result<f64> {
    let ready = (0..calls).map(|turn| job.ready(turn)).collect::<Result<Vec<_>>>()?;
    device.synchronize()?;
    let start = Instant::now();
    for call in ready {
        call()?;
    }
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / calls as f64)
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((q * values.len().saturating_sub(1) as f64).round() as usize).copied().unwrap_or(f64::NAN)
}

/// More than the second-level cache of any GPU so far, so that rotating over this much reads memory anew each time.
const PAST_CACHE: u64 = 256 << 20;
const MOST_SETS: u64 = 16;

/// How many sets of buffers a job of `bytes` goes round on `device`. A CPU keeps one: there, the op before has just written the operands.
pub fn sets(device: &Device, bytes: u64) -> usize {
    if device.is_cpu() { 1 } else { PAST_CACHE.div_ceil(bytes.max(1)).clamp(1, MOST_SETS) as usize }
}

/// A case on the device, in so many copies of its operands.
pub struct Call<'a> {
    case: &'a Case,
    run: Run,
    sets: Vec<Set>,
    backward: bool,
}

struct Set {
    placed: Placed,
    grads: RefCell<Grads>,
    /// What backward starts from, once the shape of y is known.
    gradient: OnceCell<Tensor>,
}

impl<'a> Call<'a> {
    pub fn new(case: &'a Case, device: &Device, dtype: DType, sets: usize, backward: bool) -> Result<Self> {
        let run = Run::on(device, dtype);
        let set = |_| {
            let placed = case.place(&run)?;
            let grads = RefCell::new(Grads::zeros(&placed.params)?);
            Ok(Set { placed, grads, gradient: OnceCell::new() })
        };
        let sets = (0..sets.max(1)).map(set).collect::<Result<_>>()?;
        Ok(Call { case, run, sets, backward })
    }
}

impl Job for Call<'_> {
    fn ready(&self, turn: usize) -> Result<Ready<'_>> {
        let Set { placed, grads, gradient } = &self.sets[turn % self.sets.len()];
        let mut tape = placed.tape();
        let given = placed.given(&mut tape)?;
        if !self.backward {
            return Ok(Box::new(move || self.case.forward(&mut tape, &given).map(drop)));
        }
        let Some(y) = self.case.forward(&mut tape, &given)? else { return Ok(Box::new(|| Ok(()))) };
        let gradient = match gradient.get() {
            Some(known) => known.clone(),
            None => {
                let made = self.case.cotangent(&y, &self.run)?;
                gradient.get_or_init(|| made).clone()
            }
        };
        Ok(Box::new(move || tape.backward_with(&y, gradient, &mut grads.borrow_mut()).map(drop)))
    }
}

/// AdamW steps.
pub struct Step {
    params: ParamSet,
    grads: Grads,
    optimizer: RefCell<AdamW>,
}

impl Step {
    pub fn new(device: &Device, dtype: DType, n: usize) -> Result<Self> {
        let mut builder = ParamSetBuilder::new();
        builder.add("all", &[n], Init::Normal { std: 0.02 })?;
        let params = builder.build(device, dtype, 0)?;
        let optimizer = RefCell::new(AdamW::new(AdamWConfig::default(), &params)?);
        Ok(Step { grads: Grads::zeros(&params)?, params, optimizer })
    }
}

impl Job for Step {
    fn ready(&self, _: usize) -> Result<Ready<'_>> {
        Ok(Box::new(|| self.optimizer.borrow_mut().step(&self.params, &self.grads, 1e-3)))
    }
}

/// A call that has no tape, on operands of its own.
pub struct Plain(pub Box<dyn Fn() -> Result<()>>);

impl Job for Plain {
    fn ready(&self, _: usize) -> Result<Ready<'_>> {
        Ok(Box::new(&self.0))
    }
}

/// What cannot be beaten: the bare product, the bare copy.
pub enum Bare<'a> {
    Product { sizes: [usize; 3], x: Vec<f32>, w: Vec<f32>, out: RefCell<Vec<f32>> },
    HostCopy { from: Vec<u8>, to: RefCell<Vec<u8>> },
    DeviceProduct(Product<'a>),
    DeviceCopy { sets: Vec<[Tensor; 2]> },
}

impl<'a> Bare<'a> {
    /// `None` where the device has no such thing to compare with: the crate brings no other product for a GPU.
    pub fn new(device: &Device, blas: Option<&'a Blas>, cost: &Cost, dtype: DType) -> Result<Option<Self>> {
        let Cost { baseline, bytes, .. } = *cost;
        // Read once and written once: half of the bytes each.
        let half = (bytes / 2).max(1) as usize;
        Ok(match baseline {
            Baseline::Product { m, n, k } if device.is_cpu() => Some(Bare::Product {
                sizes: [m, n, k],
                x: normal("x", m * k),
                w: normal("w", n * k),
                out: RefCell::new(vec![0.0; m * n]),
            }),
            Baseline::Product { m, n, k } => {
                let product = |blas: &'a Blas| blas.product([m, n, k], dtype, sets(device, bytes));
                blas.map(product).transpose()?.map(Bare::DeviceProduct)
            }
            Baseline::Copy if device.is_cpu() => {
                Some(Bare::HostCopy { from: vec![1; half], to: RefCell::new(vec![2; half]) })
            }
            Baseline::Copy => {
                let tensor = || Tensor::zeros(device, &[half], DType::U8);
                let set = |_| Ok([tensor()?, tensor()?]);
                Some(Bare::DeviceCopy { sets: (0..sets(device, bytes)).map(set).collect::<Result<_>>()? })
            }
        })
    }
}

impl Job for Bare<'_> {
    fn ready(&self, turn: usize) -> Result<Ready<'_>> {
        Ok(match self {
            Bare::Product { sizes, x, w, out } => Box::new(move || bare_product(*sizes, x, w, &mut out.borrow_mut())),
            Bare::HostCopy { from, to } => Box::new(move || {
                copy(from, &mut to.borrow_mut());
                Ok(())
            }),
            Bare::DeviceProduct(product) => Box::new(move || product.run(turn)),
            Bare::DeviceCopy { sets } => {
                let [from, to] = &sets[turn % sets.len()];
                Box::new(move || to.copy_from(from))
            }
        })
    }
}

/// On every thread where that pays.
fn copy(from: &[u8], to: &mut [u8]) {
    const PIECE: usize = 256 * 1024;
    if from.len() < 2 * PIECE {
        to.copy_from_slice(from);
    } else {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
    }
}

/// What the machine can do: floating-point operations and bytes in a second.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    pub flops: f64,
    pub bandwidth: f64,
}

impl Peak {
    /// Measured on the CPU; known for the GPUs in the list below; unknown otherwise.
    pub fn of(device: &Device, dtype: DType, quick: bool) -> Result<Option<Self>> {
        if device.is_cpu() {
            return Peak::measured(device, quick).map(Some);
        }
        let name = device.gpu_info()?.map(|gpu| gpu.name).unwrap_or_default();
        Ok(name.contains("H200").then_some(Peak {
            // Tensor cores without sparsity; f32 on the ordinary units.
            flops: if dtype == DType::F32 { 67e12 } else { 989e12 },
            bandwidth: 4.8e12,
        }))
    }

    /// By bare products of several sizes (no one size suits every cache) and a copy larger than any cache: the best of many
    /// tries, for nothing is faster than it can be.
    fn measured(device: &Device, quick: bool) -> Result<Self> {
        const TRIES: usize = 12;
        let best = |baseline, bytes| {
            let cost = Cost { flops: 0, bytes, baseline };
            let Some(bare) = Bare::new(device, None, &cost, DType::F32)? else { return Ok(f64::INFINITY) };
            batch(device, &bare, 1)?;
            let tries = (0..TRIES).map(|_| batch(device, &bare, 1)).collect::<Result<Vec<_>>>()?;
            Ok::<_, graftwork::Error>(tries.into_iter().fold(f64::INFINITY, f64::min))
        };
        let sizes: &[usize] = if quick { &[384] } else { &[384, 600, 768, 1024] };
        let rate = |&n: &usize| Ok(2.0 * (n as f64).powi(3) / best(Baseline::Product { m: n, n, k: n }, 0)?);
        let rates = sizes.iter().map(rate).collect::<Result<Vec<f64>>>()?;
        let bytes = if quick { 64 << 20 } else { 512 << 20 };
        let bandwidth = bytes as f64 / best(Baseline::Copy, bytes)?;
        Ok(Peak { flops: rates.into_iter().fold(0.0, f64::max), bandwidth })
    }

    pub fn floor(&self, flops: u64, bytes: u64) -> f64 {
        (flops as f64 / self.flops).max(bytes as f64 / self.bandwidth)
    }
}
