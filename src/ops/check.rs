//! What the ops' unit tests share: data, and the devices that a test runs on.

use std::cell::RefCell;

use crate::autograd::{Grads, Tape, Var};
use crate::device::{Counters, Device};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::Adjacency;
use crate::ops::product::Traffic;
use crate::tensor::{ParamSet, Tensor};
use crate::testing::{integers, normal};

thread_local! {
    /// The device of the test that runs on this thread.
    static DEVICE: RefCell<Option<Device>> = const { RefCell::new(None) };
}

/// Where the running test computes: the CPU, unless [`on_each_device`] says otherwise.
pub(crate) fn device() -> Device {
    DEVICE.with_borrow(Option::clone).unwrap_or_else(Device::cpu)
}

/// Runs a test on the named device.
pub(crate) fn on(name: &str, test: fn()) {
    /// Whatever the test does, the next one on this thread starts on the CPU.
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            DEVICE.set(None);
        }
    }
    let _leave = Leave;
    DEVICE.set(Some(Device::parse(name).unwrap()));
    test();
}

/// Makes three tests of each function: on the CPU, on the emulator, and on a GPU. What a build or a machine lacks is ignored with its
/// reason; `GRAFTWORK_REQUIRE` turns that into a failure in tests/kernels.rs.
macro_rules! on_each_device {
    ($($test:ident),+ $(,)?) => {
        mod on_cpu {
            $(#[test]
            fn $test() {
                $crate::ops::check::on("cpu", super::$test);
            })+
        }
        mod on_emulated {
            $(#[test]
            #[cfg_attr(
                not(all(graftwork_kernels, feature = "emulator")),
                ignore = "this build has no kernels, or not the feature `emulator`"
            )]
            fn $test() {
                $crate::ops::check::on("emulated", super::$test);
            })+
        }
        mod on_cuda {
            $(#[test]
            #[ignore = "needs a GPU: make test REQUIRE=emulated,cuda"]
            fn $test() {
                $crate::ops::check::on("cuda", super::$test);
            })+
        }
    };
}
pub(crate) use on_each_device;

/// The float types that the device computes in: f64 on the CPU alone.
pub(crate) fn floats() -> Vec<DType> {
    let wide = device().is_cpu().then_some(DType::F64);
    wide.into_iter().chain(STORED).collect()
}

/// The storage types that kernels know.
pub(crate) const STORED: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Lengths that miss every vector width, and one that meets them.
pub(crate) const TAILS: [usize; 7] = [1, 3, 7, 16, 33, 130, 1030];

/// Normal draws rounded to `dtype`: a tensor on the device, and its values.
pub(crate) fn draw(name: &str, dims: &[usize], dtype: DType) -> (Tensor, Vec<f64>) {
    let tensor = Tensor::from_f32(&device(), dims, &normal(name, dims.iter().product()), dtype).unwrap();
    let values = tensor.to_f64_vec().unwrap();
    (tensor, values)
}

/// Integers from `-limit ..= limit`: a tensor on the device, and its values.
pub(crate) fn draw_integers(name: &str, dims: &[usize], limit: u32, dtype: DType) -> (Tensor, Vec<f64>) {
    let values = integers(name, dims.iter().product(), limit);
    let tensor = Tensor::from_f32(&device(), dims, &values, dtype).unwrap();
    (tensor, values.iter().map(|&v| f64::from(v)).collect())
}

pub(crate) fn wide(name: &str, len: usize) -> Vec<f64> {
    normal(name, len).into_iter().map(f64::from).collect()
}

pub(crate) fn params(dtype: DType) -> ParamSet {
    ParamSet::none(&device(), dtype).unwrap()
}

pub(crate) fn constant(dims: &[usize], values: &[f64], dtype: DType) -> Var {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Var::constant(Tensor::from_f32(&device(), dims, &values, dtype).unwrap())
}

/// The output of `function` on `inputs`, and the gradient of every input against the output's gradient `dy`.
pub(crate) fn run(
    inputs: &[&Tensor],
    dy: &Tensor,
    function: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let params = params(dy.dtype());
    let mut tape = Tape::deterministic(&params);
    let vars: Vec<Var> = inputs.iter().map(|&t| tape.input(t.clone())).collect();
    let y = function(&mut tape, &vars).unwrap();
    let dy = dy.reshape(y.dims()).unwrap();
    let done = tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let gradients = vars.iter().map(|v| done.input_gradient(v).unwrap().to_f64_vec().unwrap()).collect();
    (y.tensor().to_f64_vec().unwrap(), gradients)
}

/// The output alone.
pub(crate) fn forward(inputs: &[&Tensor], function: impl Fn(&mut Tape, &[Var]) -> Result<Var>) -> Result<Tensor> {
    let mut tape = Tape::inference(&params(DType::F32));
    let vars: Vec<Var> = inputs.iter().map(|&t| Var::constant(t.clone())).collect();
    Ok(function(&mut tape, &vars)?.tensor().clone())
}

/// As [`run`], on a device that the inputs and the gradient are copied to.
pub(crate) fn run_on(
    device: &Device,
    inputs: &[&Tensor],
    dy: &Tensor,
    function: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let params = ParamSet::none(device, dy.dtype()).unwrap();
    let mut tape = Tape::deterministic(&params);
    let vars: Vec<Var> = inputs.iter().map(|&t| tape.input(t.to_device(device).unwrap())).collect();
    let y = function(&mut tape, &vars).unwrap();
    let dy = dy.reshape(y.dims()).unwrap().to_device(device).unwrap();
    let done = tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let gradients = vars.iter().map(|v| done.input_gradient(v).unwrap().to_f64_vec().unwrap()).collect();
    (y.tensor().to_f64_vec().unwrap(), gradients)
}

/// Does the same work on a device that records and on the emulator: the parameters of the first launch, and what was counted of its kernel.
pub(crate) fn planned_and_counted<P: bytemuck::AnyBitPattern>(work: impl Fn(&Device)) -> (P, Counters) {
    let trace = Device::trace(80);
    work(&trace);
    let first = trace.recorded().swap_remove(0);
    let device = Device::parse("emulated").unwrap();
    device.take_counters();
    work(&device);
    let counted = device.take_counters().unwrap();
    let (_, counters) = counted.into_iter().find(|(kernel, _)| *kernel == first.kernel).unwrap();
    (first.params.read().unwrap(), counters)
}

/// Whether the emulator counted what a plan foretells. Lanes that part at a condition, as the one that stores a sum, need not meet again at once;
/// in two groups a request reaches at most one sector more, and two or three requests are an edge's 17 or 18 sectors: a sixth at most.
pub(crate) fn is_as_foretold(told: Traffic, counted: &Counters) -> bool {
    let within = |told: u64, counted: u64| (told..=told + told / 6).contains(&counted);
    within(told.loaded, counted.load_sectors) && within(told.stored, counted.store_sectors)
}

/// Values as `dtype` holds them.
pub(crate) fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Tensor::from_f32(&Device::cpu(), &[values.len()], &values, dtype).unwrap().to_f64_vec().unwrap()
}

/// Random sources: `degree` edges a row, and so many more in the last.
pub(crate) fn irregular(v: usize, degree: usize, hub: usize) -> Adjacency {
    let dice = crate::rng::Stream::named(0, 0, "irregular");
    let ends = (0..v * degree + hub).map(|e| ((e / degree).min(v - 1), dice.bits(e as u64) as usize % v));
    Adjacency::from_edges((v, v), &ends.collect::<Vec<_>>(), None).unwrap()
}

/// A graph without edges, a small one with an empty row, one of short rows, and one whose long rows are cut on a GPU.
pub(crate) fn graphs() -> Vec<Adjacency> {
    let random = |name: &str, len: usize, n: usize| -> Vec<usize> {
        integers(name, len, 1 << 20).iter().map(|v| (v + (1 << 20) as f32) as usize % n).collect()
    };
    let short: Vec<(usize, usize)> =
        random("short to", 160, 60).into_iter().zip(random("short from", 160, 30)).collect();
    let hub = |i: usize, n: usize| random(&format!("hub {i}"), n, 50).into_iter().map(move |j| (i, j));
    let long: Vec<(usize, usize)> = hub(0, 300).chain(hub(1, 2)).chain(hub(4, 900)).chain(hub(6, 45)).collect();
    vec![
        Adjacency::empty(3, 4).unwrap(),
        Adjacency::from_edges((4, 5), &[(0, 1), (0, 4), (1, 0), (3, 2), (3, 3), (3, 1)], None).unwrap(),
        Adjacency::from_edges((60, 30), &short, None).unwrap(),
        Adjacency::from_edges((9, 50), &long, None).unwrap(),
    ]
}
