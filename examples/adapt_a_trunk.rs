//! Puts a LoRA on a vision transformer, trains it for a few steps on made-up images, saves it as PEFT would, and loads it back.
//!
//!     cargo run --release --example adapt_a_trunk

use std::path::Path;

use graftwork::adapters::{HeadInit, LoraConfig, load_adapter, save_adapter, train_head};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::models::vit::Vit;
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::optim::{AdamW, AdamWConfig, Decay, Schedule};
use graftwork::tensor::ParamSetBuilder;
use graftwork::testing::normal;
use graftwork::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    let device = Device::cpu();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits/trunk");

    // The trunk is frozen: its weights stay in the mapped file. Adapters declare what learns, and leave a slot in each linear they touch.
    let mut trunk = Vit::load(&dir, &device, DType::F32)?;
    let mut builder = ParamSetBuilder::new();
    train_head(&mut trunk, "classifier", HeadInit::Fresh { classes: 3 }, &mut builder)?;
    let lora = LoraConfig { rank: 4, alpha: 8.0, dropout: 0.1, ..LoraConfig::default() };
    println!("{}", lora.attach(&mut trunk, &mut builder)?);
    let params = builder.build(&device, DType::F32, 0)?;

    let pixels = Var::constant(Tensor::from_slice(&device, &[6, 1, 8, 8], &normal("pixels", 6 * 64))?);
    let targets = Tensor::from_slice(&device, &[6], &[0i64, 1, 2, 0, 1, 2])?;
    let schedule = Schedule::new(1e-2, Decay::Cosine, 5, 40)?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params)?;
    let mut grads = Grads::zeros(&params)?;
    for step in 0..40 {
        let mut tape = Tape::training(&params, 0, step);
        let logits = trunk.forward(&mut tape, &pixels)?;
        let loss = cross_entropy(&mut tape, &logits, &targets, &CrossEntropyOptions::default())?;
        if step == 0 {
            println!("{}", tape.ledger());
        }
        if step % 10 == 9 {
            println!("step {step:>2}  loss {:.4}", loss.tensor().to_scalar()?);
        }
        tape.backward(&loss, &mut grads)?;
        if step == 0 {
            grads.audit()?.require_learning()?;
        }
        optimizer.step(&params, &grads, schedule.lr_at(u64::from(step)))?;
    }

    let out = std::env::temp_dir().join("graftwork-example-adapter");
    save_adapter(&out, &lora.to_peft(&["classifier"]), &params)?;
    let mut fresh = Vit::load(&dir, &device, DType::F32)?;
    let (reloaded, _) = load_adapter(&mut fresh, &out, &device, DType::F32)?;
    let before = trunk.forward(&mut Tape::inference(&params), &pixels)?;
    let after = fresh.forward(&mut Tape::inference(&reloaded), &pixels)?;
    println!("saved to {}; logits equal after loading: {}", out.display(), same(&before, &after)?);
    Ok(())
}

fn same(a: &Var, b: &Var) -> Result<bool> {
    Ok(a.tensor().to_vec::<f32>()? == b.tensor().to_vec::<f32>()?)
}
