//! Lets a vision transformer learn which blocks of its weights to change: few at first, then more, the weakest giving way. Merges the result.
//!
//!     cargo run --release --example learn_where

use std::path::Path;

use graftwork::adapters::block_sparse::{
    Allocation, BlockSparseConfig, Family, Patterns, Score, Sparsity, carry_blocks,
};
use graftwork::adapters::{HeadInit, Trunk, merge_all, parse_targets, train_head};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::models::vit::Vit;
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::optim::{AdamW, AdamWConfig, Carry, DensitySchedule};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::testing::normal;
use graftwork::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    let device = Device::cpu();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits/trunk");
    let mut trunk = Vit::load(&dir, &device, DType::F32)?;
    let family = BlockSparseConfig {
        targets: parse_targets("all-linear")?,
        block: 16,
        allocation: Allocation::Global,
        low_rank: None,
    };
    let schedule = DensitySchedule::new(0.01, 0.05, 5, 30, 5)?;
    let sparsity = Sparsity { score: Score::Gradient, schedule, regrow: 0.1, lasso: 0.0, preconditioned: false };

    let pixels = Var::constant(Tensor::from_slice(&device, &[6, 1, 8, 8], &normal("pixels", 6 * 64))?);
    let targets = Tensor::from_slice(&device, &[6], &[0i64, 1, 2, 0, 1, 2])?;
    let backward = |trunk: &Vit, params: &ParamSet, grads: &mut Grads| {
        let mut tape = Tape::deterministic(params);
        let logits = trunk.forward(&mut tape, &pixels)?;
        let loss = cross_entropy(&mut tape, &logits, &targets, &CrossEntropyOptions::default())?;
        tape.backward(&loss, grads)?;
        loss.tensor().to_scalar()
    };

    let mut patterns = family.start(&mut trunk, &device)?;
    let mut params = build(&mut trunk, |trunk, builder| family.attach(trunk, &patterns, None, builder).map(drop))?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params)?;
    for step in 0..40 {
        if sparsity.is_due(step) {
            let sites = family.sites(&mut trunk, &patterns, &params)?;
            let mut scores = None;
            if let Some(probe) = sparsity.probe(&device, &family, &sites, step)? {
                let attach = |trunk: &mut dyn Trunk, builder: &mut ParamSetBuilder| {
                    family.attach(trunk, &patterns, Some(&probe), builder).map(drop)
                };
                let probed = build(&mut trunk, attach)?;
                Carry::whole().values(&params, &probed)?;
                let mut grads = Grads::zeros(&probed)?;
                backward(&trunk, &probed, &mut grads)?;
                scores = Some(probe.read(&grads)?);
            }
            let next = sparsity.next(step, 0, &family, &sites, &patterns, &params, scores)?;
            let grown = build(&mut trunk, |trunk, builder| family.attach(trunk, &next, None, builder).map(drop))?;
            let carry = carry_blocks(&patterns, &next);
            carry.values(&params, &grown)?;
            optimizer = carry.optimizer(&params, &grown, &optimizer)?;
            (patterns, params) = (next, grown);
            println!("step {step:>2}  {} blocks, {} trainable numbers", count(&patterns), params.numel());
        }
        let mut grads = Grads::zeros(&params)?;
        let loss = backward(&trunk, &params, &mut grads)?;
        optimizer.step(&params, &grads, 1e-2)?;
        if step % 10 == 9 {
            println!("step {step:>2}  loss {loss:.4}");
        }
    }
    for report in merge_all(&mut trunk, &params)? {
        println!("{report}");
    }
    Ok(())
}

/// A fresh classifier and whatever `attach` adds, with their starting values.
fn build(trunk: &mut Vit, attach: impl FnOnce(&mut dyn Trunk, &mut ParamSetBuilder) -> Result<()>) -> Result<ParamSet> {
    let mut builder = ParamSetBuilder::new();
    train_head(trunk, "classifier", HeadInit::Fresh { classes: 3 }, &mut builder)?;
    attach(trunk, &mut builder)?;
    builder.build(&Device::cpu(), DType::F32, 0)
}

fn count(patterns: &Patterns) -> usize {
    patterns.values().map(|p| p.nnz()).sum()
}
