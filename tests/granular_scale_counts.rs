//! What the gate's kernels do to memory, counted by the emulator: every input is read once and every output written once, 16 bytes at a
//! time, and nothing goes through local memory. A vector of `[k]` is read once for each row, from a cache by then.
#![cfg(all(feature = "emulator", graftwork_kernels))]

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::device::Counters;
use graftwork::ops::{Gate, GranularScale, Update, granular_scale};
use graftwork::tensor::ParamSet;
use graftwork::testing::normal;
use graftwork::{DType, Device, Tensor};

const M: usize = 24;
const K: usize = 768;
/// Bytes of `[m, k]` and of `[k]` in bf16.
const WHOLE: u64 = (M * K * 2) as u64;
const VECTOR: u64 = (K * 2) as u64;

/// What the gate's kernels did forward, and backward for ΔH, b and the gate's operands.
fn count(gate: &str) -> [(&'static str, Counters); 2] {
    let device = Device::emulated("sm_80").unwrap();
    let make = |name: &str, dims: &[usize]| {
        Tensor::from_f32(&device, dims, &normal(name, dims.iter().product()), DType::BF16).unwrap()
    };
    let params = ParamSet::none(&device, DType::BF16).unwrap();
    let mut tape = Tape::deterministic(&params);
    let (hidden, residual) = (Var::constant(make("h", &[M, K])), Var::constant(make("r", &[M, K])));
    let update = tape.input(make("d", &[M, K]));
    let weight = tape.input(make("w", &[K]));
    let logits = tape.input(make("l", &[M, K]));
    let gate = match gate {
        "large" => Gate::Large { logits: &logits },
        _ => Gate::MiddleY { offset: &weight, sigmoid: false },
    };
    let update = Update::Given(&update);
    let options = GranularScale {
        update: Some(update),
        residual: Some(&residual),
        add_residual: true,
        ..GranularScale::new(gate)
    };
    let y = granular_scale(&mut tape, &hidden, &options).unwrap();
    tape.backward_with(&y, make("dy", &[M, K]), &mut Grads::zeros(&params).unwrap()).unwrap();
    let all = device.take_counters().unwrap();
    ["granular_scale_fwd", "granular_scale_bwd"].map(|start| {
        let of = all.iter().find(|(kernel, _)| kernel.symbol().starts_with(start)).unwrap();
        (of.0.symbol(), of.1.clone())
    })
}

fn hold((symbol, counters): &(&'static str, Counters), loads: u64, stores: u64) {
    let bytes = |sectors: u64| 32 * sectors;
    assert_eq!(bytes(counters.load_sectors), loads, "{symbol} loads");
    assert_eq!(bytes(counters.store_sectors), stores, "{symbol} stores");
    assert_eq!(
        counters.load_sectors + counters.store_sectors,
        counters.ideal_sectors,
        "{symbol} asks for whole sectors"
    );
    assert_eq!(counters.local_accesses, 0, "{symbol}");
}

#[test]
fn each_input_is_read_once_and_each_output_written_once() {
    let rows = M as u64;
    let pieces = 3 * (K * 4) as u64;
    let large = count("large");
    // H, ΔH, R, L; then dy, H, ΔH, L.
    hold(&large[0], 4 * WHOLE, WHOLE);
    hold(&large[1], 4 * WHOLE, 2 * WHOLE);
    let middle_y = count("middle-y");
    hold(&middle_y[0], 3 * WHOLE + rows * VECTOR, WHOLE);
    // One row of partial sums of z for each of three blocks: eight f32 of a thread go out in two stores, half a sector each.
    let backward = &middle_y[1].1;
    assert_eq!(32 * backward.load_sectors, 3 * WHOLE + rows * VECTOR);
    assert_eq!(32 * backward.store_sectors, WHOLE + 2 * pieces);
    assert_eq!(backward.local_accesses, 0);
}
