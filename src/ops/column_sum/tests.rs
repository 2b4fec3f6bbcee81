use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, TAILS, device, draw, draw_integers, on_each_device};
use crate::testing::compare;

on_each_device!(
    integers_are_summed_exactly_in_every_split_of_the_work,
    random_sums_are_within_their_bound_and_a_lost_row_is_not,
    no_rows_give_zero_or_what_was_there,
);

fn sums(x: &Tensor, batch: usize, cols: usize, scale: f64, before: Option<&[f64]>, dtype: DType) -> Vec<f64> {
    let before32: Vec<f32> = before.unwrap_or(&vec![7.0; batch * cols]).iter().map(|&v| v as f32).collect();
    let tensor = Tensor::from_f32(&device(), &[batch, cols], &before32, dtype).unwrap();
    let target = Target { tensor, accumulate: before.is_some() };
    column_sum(x, batch, cols, scale, &target).unwrap();
    target.tensor.to_f64_vec().unwrap()
}

fn plain(x: &[f64], batch: usize, cols: usize, term: impl Fn(f64) -> f64) -> Vec<f64> {
    let rows = x.len() / (batch * cols);
    let at = |b: usize, c: usize| (0..rows).map(|r| term(x[(b * rows + r) * cols + c])).sum();
    (0..batch * cols).map(|i| at(i / cols, i % cols)).collect()
}

fn integers_are_summed_exactly_in_every_split_of_the_work() {
    // Few rows of many columns, many rows of few, one block, one tile, and several of each.
    for (batch, rows, cols) in
        [(1, 1, 1), (3, 7, 33), (1, 256, 40), (1, 257, 40), (1, 3000, 17), (2, 5, 5000), (1, 600, 2100)]
    {
        for dtype in STORED {
            let (x, values) = draw_integers("x", &[batch, rows, cols], 3, dtype);
            let (_, before) = draw_integers("before", &[batch, cols], 9, DType::F32);
            let want = plain(&values, batch, cols, |v| v);
            assert!(compare::exact(&sums(&x, batch, cols, 1.0, None, DType::F32), &want).ok());
            let more: Vec<f64> = want.iter().zip(&before).map(|(s, b)| 2.0 * s + b).collect();
            assert!(compare::exact(&sums(&x, batch, cols, 2.0, Some(&before), DType::F32), &more).ok());
        }
    }
}

fn random_sums_are_within_their_bound_and_a_lost_row_is_not() {
    for dtype in STORED {
        for rows in TAILS {
            let (x, values) = draw("x", &[rows, 5], dtype);
            let (want, size) = (plain(&values, 1, 5, |v| v), plain(&values, 1, 5, f64::abs));
            let got = sums(&x, 1, 5, 1.0, None, DType::F32);
            assert!(compare::bound(&got, &want, &size, rows, DType::F32).ok());
            let lost: Vec<f64> = want.iter().zip(&values).map(|(w, v)| w - v).collect();
            assert!(!compare::bound(&got, &lost, &size, rows, DType::F32).ok());
        }
    }
}

fn no_rows_give_zero_or_what_was_there() {
    let x = Tensor::empty(&device(), &[2, 0, 3], DType::F32).unwrap();
    assert_eq!(sums(&x, 2, 3, 1.0, None, DType::F32), [0.0; 6]);
    let before = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    assert_eq!(sums(&x, 2, 3, 1.0, Some(&before), DType::F32), before);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (x, _) = draw("x", &[2000, 48], DType::F32);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| sums(&x, 1, 48, 0.3, None, DType::F32))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, _) = draw("x", &[4, 3], DType::F32);
    let target =
        |dims: &[usize]| Target { tensor: Tensor::empty(&device(), dims, DType::F32).unwrap(), accumulate: false };
    assert!(matches!(column_sum(&x, 1, 5, 1.0, &target(&[5])), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(column_sum(&x, 1, 3, 1.0, &target(&[4])), Err(Error::Shape { argument: "target", .. })));
    let turned = x.transpose(0, 1).unwrap();
    assert!(matches!(column_sum(&turned, 1, 4, 1.0, &target(&[4])), Err(Error::NotContiguous { .. })));
}

#[test]
fn many_rows_are_planned_in_two_stages() {
    let device = Device::trace(80);
    let plan = |rows: usize, cols: usize, from: DType, to: DType| -> Vec<gpu::Params> {
        let x = Tensor::empty(&device, &[rows, cols], from).unwrap();
        let target = Target { tensor: Tensor::empty(&device, &[cols], to).unwrap(), accumulate: true };
        let before = device.launcher().unwrap().recorded().len();
        column_sum(&x, 1, cols, 0.5, &target).unwrap();
        let specs = device.launcher().unwrap().recorded().split_off(before);
        specs.iter().map(|s| s.params.read().unwrap()).collect()
    };
    let one = plan(100, 64, DType::BF16, DType::F32);
    assert_eq!((one.len(), one[0].pieces, one[0].scale, one[0].accumulate, one[0].vector), (1, 1, 0.5, 1, 1));
    let two = plan(1000, 61, DType::F16, DType::F16);
    assert_eq!((two.len(), two[0].pieces, two[0].accumulate, two[0].scale, two[0].vector), (2, 8, 0, 1.0, 0));
    assert_eq!((two[1].rows, two[1].accumulate, two[1].scale, two[1].x), (8, 1, 0.5, two[0].out));
    let empty = plan(0, 8, DType::F32, DType::F32);
    assert_eq!((empty.len(), empty[0].rows, empty[0].pieces), (1, 0, 1));
}
