//! What the gate's kernels do to memory, counted by the emulator: every input is read once and every output written once, 16 bytes at a
//! time, and nothing goes through local memory. A vector of `[k]` is read once for each row, from a cache by then. On a product ΔH is
//! neither written nor read.
#![cfg(all(feature = "emulator", graftwork_kernels))]

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::device::Counters;
use graftwork::ops::{Gate, GateInput, GranularScale, Update, granular_scale};
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

/// Rank of the product.
const R: usize = 64;
/// Columns of a tile of it.
const TILE: usize = 64;

/// Every kernel that the forward pass of a gate on a product launches, in the order of their names.
fn count_on_a_product(gate: &str) -> Vec<(&'static str, Counters)> {
    let device = Device::emulated("sm_80").unwrap();
    let make = |name: &str, dims: &[usize]| {
        let values = normal(name, dims.iter().product());
        Var::constant(Tensor::from_f32(&device, dims, &values, DType::BF16).unwrap())
    };
    let (hidden, residual, x) = (make("h", &[2, M / 2, K]), make("r", &[2, M / 2, K]), make("d", &[2, M / 2, R]));
    let (up, logits, bias) = (make("up", &[K, R]), make("l", &[2, M / 2, K]), make("c", &[1]));
    let weight = make("w", &[if gate == "small" { 2 * K } else { K }]);
    let (weight, input) = (&weight, GateInput::Updated);
    let gate = match gate {
        "large" => Gate::Large { logits: &logits },
        "middle-x" => Gate::MiddleX { weight, bias: &bias, input },
        "middle-y" => Gate::MiddleY { offset: weight, sigmoid: false },
        _ => Gate::Small { weight, bias: &bias, input, tokens: None },
    };
    let update = Some(Update::Product { x: &x, weight: &up, heads: 1 });
    let options = GranularScale { update, residual: Some(&residual), ..GranularScale::new(gate) };
    device.take_counters().unwrap();
    granular_scale(&mut Tape::inference(&ParamSet::none(&device, DType::BF16).unwrap()), &hidden, &options).unwrap();
    device.take_counters().unwrap().into_iter().map(|(kernel, c)| (kernel.symbol(), c.clone())).collect()
}

#[test]
fn on_a_product_the_update_is_neither_written_nor_read() {
    let rows = M as u64;
    // What the product itself reads: D for each tile of columns, Wu once, for one tile of rows.
    let product = (M * R * 2 * (K / TILE) + K * R * 2) as u64;
    for (gate, looks, gated) in [
        ("large", false, 2 * WHOLE),
        // The four rows of a warp read the same columns of z.
        ("middle-y", false, WHOLE + rows / 4 * VECTOR),
        ("middle-x", true, WHOLE),
        ("small", true, WHOLE),
    ] {
        let all = count_on_a_product(gate);
        let of = |start: &str| all.iter().find(|(symbol, _)| symbol.starts_with(start));
        let names: Vec<&str> = all.iter().map(|(symbol, _)| *symbol).collect();
        assert!(of("frozen_linear_nt").is_none(), "{gate}: {names:?}");
        for (symbol, counters) in &all {
            assert_eq!(counters.local_accesses, 0, "{gate} {symbol}");
            // None of them, the one that writes y excepted, writes anything of the size of ΔH.
            let stored = 32 * counters.store_sectors;
            let is_up = symbol.starts_with("granular_scale_up");
            assert_eq!(stored >= WHOLE, is_up, "{gate} {symbol}: {stored} bytes written");
        }
        let up = &of("granular_scale_up").unwrap().1;
        assert_eq!(32 * up.store_sectors, WHOLE, "{gate}");
        // A warp asks for the gates of its four rows, one or two sectors of them.
        let of_rows = if looks { (M * K / 8 / 32) as u64 } else { 0 };
        let rest = 32 * up.load_sectors - gated - product;
        assert!((32 * of_rows..=64 * of_rows).contains(&rest), "{gate}: {rest} bytes beside what is expected");
        let Some((_, pass)) = of("granular_scale_fwd").filter(|_| looks) else { continue };
        // H and R once; w from a cache, where Small has one for each; a row of D, and Wuᵀw in halves of sectors; c for each of two warps.
        let weights = if gate == "small" { 2 } else { 1 };
        let once = 2 * WHOLE + weights * rows * VECTOR + (M * R * 2) as u64 + rows * (2 * R * 4 + 2 * 32) as u64;
        assert_eq!(32 * pass.load_sectors, once, "{gate}");
        assert_eq!(32 * pass.store_sectors, 32 * rows, "{gate}: one logit a row");
    }
}
