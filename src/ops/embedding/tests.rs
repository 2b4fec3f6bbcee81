use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{device, floats, on_each_device};
use crate::tensor::{Init, ParamSet, ParamSetBuilder};
use crate::testing::{compare, gradient, integers, normal};

on_each_device!(
    rows_and_their_sums_are_exact,
    sums_stay_within_the_bound_of_their_length,
    a_parameter_adds_up_in_f32_and_rows_not_used_stay,
    a_frozen_table_leaves_no_trace,
    empty_sides_nan_and_i32_ids_are_fine,
);

fn numbers(ids: &[i64], dims: &[usize]) -> Tensor {
    Tensor::from_slice(&device(), dims, ids).unwrap()
}

/// Ids with many repeats, some rows never used.
fn ids(m: usize, v: usize) -> Vec<i64> {
    integers("ids", m, (v as u32 - 1) / 2).iter().map(|&i| (i + ((v - 1) / 2) as f32) as i64).collect()
}

fn run(ids: &Tensor, table: &Tensor, dy: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let params = ParamSet::none(table.device(), table.dtype())?;
    let mut tape = Tape::deterministic(&params);
    let table = tape.input(table.clone());
    let y = embedding(&mut tape, ids, &table)?;
    let out = y.tensor().to_f64_vec()?;
    let done = tape.backward_with(&y, dy.clone(), &mut Grads::zeros(&params)?)?;
    Ok((out, done.input_gradient(&table).unwrap().to_f64_vec()?))
}

#[test]
fn gradients_agree_with_central_differences() {
    let places = numbers(&[2, 0, 2, 4, 2, 0], &[2, 3]);
    let table: Vec<f64> = normal("table", 15).into_iter().map(f64::from).collect();
    gradient::check(&[(&[5, 3][..], table)], None, |tape, x| embedding(tape, &places, &x[0])).unwrap();
}

fn rows_and_their_sums_are_exact() {
    for dtype in floats() {
        for (m, v, d) in [(1, 1, 1), (3, 7, 3), (33, 5, 7), (200, 31, 33), (1, 9, 64)] {
            let places = ids(m, v);
            let table = Tensor::from_f32(&device(), &[v, d], &integers("table", v * d, 100), dtype).unwrap();
            let dy = Tensor::from_f32(&device(), &[m, d], &integers("dy", m * d, 1), dtype).unwrap();
            let (y, slope) = run(&numbers(&places, &[m]), &table, &dy).unwrap();
            let (table, dy) = (table.to_f64_vec().unwrap(), dy.to_f64_vec().unwrap());
            let (mut want, mut sums) = (Vec::new(), vec![0.0; v * d]);
            for (i, &id) in places.iter().enumerate() {
                want.extend_from_slice(&table[id as usize * d..][..d]);
                (0..d).for_each(|j| sums[id as usize * d + j] += dy[i * d + j]);
            }
            assert!(compare::exact(&y, &want).ok() && compare::exact(&slope, &sums).ok(), "{dtype} {m} {v} {d}");
            want[0] += 1.0;
            sums[places[0] as usize * d] += 1.0;
            assert!(!compare::exact(&y, &want).ok() && !compare::exact(&slope, &sums).ok());
        }
    }
}

fn sums_stay_within_the_bound_of_their_length() {
    let (m, v, d) = (500, 7, 5);
    let places = ids(m, v);
    let table = Tensor::zeros(&device(), &[v, d], DType::BF16).unwrap();
    let dy = Tensor::from_f32(&device(), &[m, d], &normal("dy", m * d), DType::BF16).unwrap();
    let (_, slope) = run(&numbers(&places, &[m]), &table, &dy).unwrap();
    let dy = dy.to_f64_vec().unwrap();
    let (mut want, mut magnitude) = (vec![0.0; v * d], vec![0.0; v * d]);
    for (i, &id) in places.iter().enumerate() {
        for j in 0..d {
            want[id as usize * d + j] += dy[i * d + j];
            magnitude[id as usize * d + j] += dy[i * d + j].abs();
        }
    }
    let outcome = compare::bound(&slope, &want, &magnitude, m, DType::BF16);
    assert!(outcome.ok(), "{outcome:?}");
}

fn a_parameter_adds_up_in_f32_and_rows_not_used_stay() {
    let mut builder = ParamSetBuilder::new();
    let id = builder.add("table", &[4, 3], Init::Zeros).unwrap();
    let params = builder.build(&device(), DType::F16, 0).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let dy = Tensor::from_f32(&device(), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], DType::F16).unwrap();
    for _ in 0..2 {
        let mut tape = Tape::deterministic(&params);
        let table = tape.param(id).unwrap();
        let y = embedding(&mut tape, &numbers(&[1, 1], &[2]), &table).unwrap();
        assert_eq!(y.dims(), [2, 3]);
        tape.backward_with(&y, dy.clone(), &mut grads).unwrap();
    }
    let got = grads.view(id).unwrap().to_f64_vec().unwrap();
    assert_eq!(got, [0.0, 0.0, 0.0, 10.0, 14.0, 18.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

fn a_frozen_table_leaves_no_trace() {
    let params = ParamSet::none(&device(), DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let table = Var::constant(Tensor::zeros(&device(), &[4, 3], DType::F32).unwrap());
    let y = embedding(&mut tape, &numbers(&[1, 3], &[2, 1]), &table).unwrap();
    assert!(tape.is_empty() && !y.needs_grad() && y.dims() == [2, 1, 3]);
}

fn empty_sides_nan_and_i32_ids_are_fine() {
    let device = device();
    let table = Tensor::from_slice(&device, &[2, 2], &[1.0f32, f32::NAN, 3.0, 4.0]).unwrap();
    let none = Tensor::zeros(&device, &[0, 2], DType::F32).unwrap();
    assert_eq!(run(&numbers(&[], &[0]), &table, &none).unwrap().1, [0.0; 4]);
    // A table of no columns may have more rows than memory has bytes.
    let thin = Tensor::zeros(&device, &[usize::MAX, 0], DType::F32).unwrap();
    let flat = Tensor::zeros(&device, &[1, 0], DType::F32).unwrap();
    assert_eq!(run(&numbers(&[7], &[1]), &thin, &flat).unwrap(), (Vec::new(), Vec::new()));
    let dy = Tensor::from_slice(&device, &[1, 2], &[f32::NAN, 1.0]).unwrap();
    let one = Tensor::from_slice(&device, &[1], &[0i32]).unwrap();
    let (y, slope) = run(&one, &table, &dy).unwrap();
    assert!(y[0] == 1.0 && y[1].is_nan() && slope[0].is_nan() && slope[1..] == [1.0, 0.0, 0.0]);
}

#[test]
fn what_does_not_fit_is_named() {
    let device = device();
    let table = Tensor::zeros(&device, &[4, 3], DType::F32).unwrap();
    let refused = |ids: &Tensor, table: &Tensor, part: &str| {
        let params = ParamSet::none(&device, DType::F32).unwrap();
        let made = embedding(&mut Tape::deterministic(&params), ids, &Var::constant(table.clone()));
        let text = made.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    refused(&numbers(&[0, 4], &[2]), &table, "4 at place 1");
    refused(&numbers(&[-1], &[1]), &table, "-1 at place 0");
    refused(&Tensor::zeros(&device, &[2], DType::F32).unwrap(), &table, "i32 or i64");
    refused(&numbers(&[0], &[1]), &Tensor::zeros(&device, &[4], DType::F32).unwrap(), "`table`");
    refused(&numbers(&[0], &[1]), &Tensor::zeros(&device, &[4, 3], DType::U8).unwrap(), "`table`");
    refused(&numbers(&[0], &[1]), &table.slice(1, 0, 2).unwrap(), "not contiguous");
}

#[test]
fn the_plans_fit_the_table() {
    let device = Device::trace(80);
    for (d, vector) in [(768, 1), (30, 0)] {
        let before = device.launcher().unwrap().recorded().len();
        let mut builder = ParamSetBuilder::new();
        let id = builder.add("table", &[100, d], Init::Zeros).unwrap();
        let params = builder.build(&device, DType::F16, 0).unwrap();
        let mut tape = Tape::deterministic(&params);
        let table = tape.param(id).unwrap();
        let y = embedding(&mut tape, &Tensor::zeros(&device, &[2, 9], DType::I32).unwrap(), &table).unwrap();
        let dy = Tensor::zeros(&device, &[2, 9, d], DType::F16).unwrap();
        tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
        let specs = device.launcher().unwrap().recorded().split_off(before);
        assert_eq!(specs.len(), 2);
        let forward: gpu::Params = specs[0].params.read().unwrap();
        assert_eq!((forward.m, forward.v, forward.d), (18, 100, d as u64));
        assert_eq!((forward.vector, forward.wide_ids), (vector, 0));
        let units = if vector == 1 { 18 * d / 8 } else { 18 * d };
        assert_eq!(specs[0].grid, [units.div_ceil(256) as u32, 1, 1]);
        let backward: gpu::GradientParams = specs[1].params.read().unwrap();
        // A parameter's target: f32, added to.
        assert_eq!((backward.flags, specs[1].grid[0]), (3, 18 * (d as u32).div_ceil(512)));
    }
}
