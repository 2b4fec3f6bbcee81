use super::*;
use crate::ops::check::{device, on_each_device};
use crate::rng::Stream;

on_each_device! {
    patterns_are_the_hosts_to_the_bit,
    masks_that_do_not_fit_are_refused,
}

fn patterns_are_the_hosts_to_the_bit() {
    for (rows, columns) in [(1, 1), (3, 70), (70, 3), (33, 32), (300, 5), (1, 257), (32, 64)] {
        for kept in [0, 1, 9, 32] {
            let stream = Stream { seed: 3, step: kept, site: 0 };
            let mask: Vec<u8> = (0..rows * columns)
                .map(|i| u8::from(stream.bits(i as u64) % 32 < kept) * (1 + (i % 200) as u8))
                .collect();
            let shape = [rows * 16 - 3, columns * 16];
            let tensor = Tensor::from_slice(&device(), &[rows, columns], &mask).unwrap();
            let got = pattern_from_mask(&tensor, shape, 16).unwrap();
            let flags: Vec<bool> = mask.iter().map(|&v| v != 0).collect();
            assert_eq!(*got.topology(), Topology::from_mask(shape, 16, &flags).unwrap(), "{rows} {columns} {kept}");
        }
    }
}

fn masks_that_do_not_fit_are_refused() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(&device(), dims, dtype).unwrap();
    let refused = pattern_from_mask(&zeros(&[2, 3], DType::U8), [48, 32], 16);
    assert!(matches!(refused, Err(Error::Shape { argument: "mask", .. })), "{refused:?}");
    let refused = pattern_from_mask(&zeros(&[3, 2], DType::I32), [48, 32], 16);
    assert!(matches!(refused, Err(Error::DType { argument: "mask", .. })), "{refused:?}");
    let refused = pattern_from_mask(&zeros(&[3, 2], DType::U8), [48, 32], 20);
    assert!(matches!(refused, Err(Error::Value { argument: "block", .. })), "{refused:?}");
}
