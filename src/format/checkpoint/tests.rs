use serde_json::json;

use super::*;
use crate::format::atomic::Faulty;
use crate::format::peft::{AdapterFile, LoraPair, Modules, PeftConfig};
use crate::format::scratch::Scratch;
use crate::tensor::{Init, ParamSetBuilder};

fn params(dtype: DType) -> ParamSet {
    let mut builder = ParamSetBuilder::new();
    builder.add("q.lora_A", &[2, 3], Init::Normal { std: 1.0 }).unwrap();
    builder.add("q.lora_B", &[5, 2], Init::Normal { std: 1.0 }).unwrap();
    builder.build(&Device::cpu(), dtype, 7).unwrap()
}

fn checkpoint(step: u64) -> Checkpoint {
    let (params, cpu) = (params(DType::F32), Device::cpu());
    let flat = |value: f32| Tensor::from_slice(&cpu, &[params.flat_len()], &vec![value; params.flat_len()]).unwrap();
    let progress = Progress { step, micro_step: 2 * step, seed: u64::MAX, epoch: 1, index: 3 };
    let config = json!({"method": "lora", "lr": 0.1 + 0.2, "nested": {"rank": 2, "lr32": f64::from(0.1f32)}});
    let tensor = |id| params.tensor(id).unwrap();
    let [a, b] = params.ids().collect::<Vec<_>>()[..] else { unreachable!() };
    let pair = LoraPair { a: tensor(a), b: tensor(b) };
    let adapter = AdapterFile {
        config: PeftConfig { r: 2, ..PeftConfig::new(Modules::Names(vec!["q".into()])) },
        lora: BTreeMap::from([("q".to_owned(), pair)]),
        full: BTreeMap::new(),
    };
    Checkpoint {
        state: State::new(&params, progress, json!({"warmup": 1e-3}), config),
        adapter: adapter.into(),
        master: params.master().duplicate().unwrap(),
        first_moment: flat(f32::MIN_POSITIVE / 8.0),
        second_moment: flat(1e30 / 3.0),
        springs: Some([flat(0.25), flat(7.0)]),
        losses: vec![1.0 / 3.0, f64::NAN, f64::NEG_INFINITY, -0.0, f64::from(0.1f32)],
    }
}

#[test]
fn everything_comes_back_bit_for_bit() {
    let scratch = Scratch::new("checkpoint");
    let saved = checkpoint(12);
    let path = saved.save(scratch.path()).unwrap();
    assert!(path.ends_with("step-000012"));
    let cpu = Device::cpu();
    let read = Checkpoint::load(&path, &cpu).unwrap();
    assert_eq!(read.state, saved.state);
    let bits = |losses: &[f64]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&read.losses), bits(&saved.losses));
    for ((_, a), (_, b)) in read.flat().zip(saved.flat()) {
        assert_eq!((a.dtype(), a.to_bytes().unwrap()), (b.dtype(), b.to_bytes().unwrap()));
        a.zero().unwrap();
    }
    let again = Checkpoint::load(&path, &cpu).unwrap();
    assert_eq!(again.master.to_bytes().unwrap(), saved.master.to_bytes().unwrap(), "the file is untouched by writes");
    let b = |checkpoint: &Checkpoint| match &checkpoint.adapter {
        SavedAdapter::Peft(file) => file.lora["q"].b.to_bytes().unwrap(),
        SavedAdapter::Native(_) => panic!("not PEFT's"),
    };
    assert_eq!(b(&again), b(&saved));
    saved.save(scratch.path()).unwrap();
    assert_eq!(scratch.names(), ["step-000012"]);
    let free = Checkpoint { springs: None, ..saved };
    free.save(scratch.path()).unwrap();
    assert!(read.springs.is_some() && Checkpoint::load(&path, &cpu).unwrap().springs.is_none());
}

#[test]
fn master_and_working_values_are_restored() {
    for dtype in [DType::F32, DType::BF16] {
        let (target, source) = (params(dtype), checkpoint(1));
        target.master().zero().unwrap();
        target.working().zero().unwrap();
        source.restore(Path::new("c"), &target).unwrap();
        assert_eq!(target.master().to_bytes().unwrap(), source.master.to_bytes().unwrap());
        let rounded = source.master.cast(dtype).unwrap().to_bytes().unwrap();
        assert_eq!(target.working().to_bytes().unwrap(), rounded);
    }
}

#[test]
fn another_trunk_or_configuration_is_refused_by_name() {
    let saved = checkpoint(1);
    let build = |names: &[(&str, &[usize])]| {
        let mut builder = ParamSetBuilder::new();
        for (name, dims) in names {
            builder.add(*name, dims, Init::Zeros).unwrap();
        }
        builder.build(&Device::cpu(), DType::F32, 0).unwrap()
    };
    let error = saved.restore(Path::new("run/c"), &build(&[("q.lora_A", &[2, 4]), ("v.lora_B", &[5, 2])])).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::AdapterMismatch { .. }));
    for part in ["run/c", "v.lora_B", "q.lora_B", "[2, 3], expected [2, 4]"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = saved.restore(Path::new("c"), &build(&[("q.lora_B", &[5, 2]), ("q.lora_A", &[2, 3])])).unwrap_err();
    assert!(error.to_string().contains("another way, from `q.lora_A`"), "{error}");

    let mut config = saved.state.config.clone();
    saved.state.require_config(Path::new("c"), &config).unwrap();
    config["nested"]["rank"] = json!(4);
    config["seed"] = json!(1);
    let error = saved.state.require_config(Path::new("c"), &config).unwrap_err().to_string();
    assert!(error.contains("`nested.rank` was 2 and is now 4; `seed` was null and is now 1"), "{error}");
}

#[test]
fn the_newest_complete_one_is_found_and_older_ones_go() {
    let scratch = Scratch::new("latest");
    let run = scratch.path().join("run");
    assert!(latest(&run).unwrap().is_none());
    for step in [8, 9, 10, 1_000_000] {
        checkpoint(step).save(&run).unwrap();
    }
    std::fs::create_dir(run.join("step-2000000.partial")).unwrap();
    std::fs::create_dir(run.join("step-best")).unwrap();
    assert_eq!(latest(&run).unwrap().unwrap().step, 1_000_000);
    // A crash between the two renames of a replacement.
    std::fs::rename(run.join("step-1000000"), run.join("step-1000000.old")).unwrap();
    let found = latest(&run).unwrap().unwrap();
    assert_eq!(found.step, 1_000_000);
    assert_eq!(Checkpoint::load(&found.path, &Device::cpu()).unwrap().state.progress.step, 1_000_000);
    let tensors = run.join("step-1000000.old/state.safetensors");
    let bytes = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
    let found = latest(&run).unwrap().unwrap();
    assert_eq!((found.step, found.passed_over.len()), (10, 1));
    assert!(found.passed_over[0].to_string().contains("truncated"));
    prune(&run, 2).unwrap();
    let left: Vec<_> = steps(&run).unwrap().into_keys().collect();
    assert_eq!(left, [9, 10, 1_000_000], "the damaged one is kept for its owner");
    assert!(!run.join("step-2000000.partial").exists() && run.join("step-best").exists());
    prune(&run, 0).unwrap();
    assert_eq!(latest(&run).unwrap().unwrap().step, 10);
    std::fs::remove_file(run.join("step-000010/state.json")).unwrap();
    assert!(latest(&run).is_err());
}

#[test]
fn a_flipped_bit_in_any_tensor_is_noticed() {
    let scratch = Scratch::new("flipped");
    let path = checkpoint(3).save(scratch.path()).unwrap();
    for name in [TENSORS_FILE, "adapter_model.safetensors"] {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        let data = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        for at in (data..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, damaged).unwrap();
            if let Err(error) = Checkpoint::load(&path, &Device::cpu()) {
                assert!(matches!(error, Error::File { .. }) && error.to_string().contains("digest"), "{error}");
            } else {
                panic!("byte {at} of {name}, {data} on");
            }
        }
        std::fs::write(&file, whole).unwrap();
    }
    Checkpoint::load(&path, &Device::cpu()).unwrap();
}

#[test]
fn files_of_two_steps_are_not_mixed() {
    let scratch = Scratch::new("mixed");
    let [a, b] = [1, 2].map(|step| checkpoint(step).save(scratch.path()).unwrap());
    std::fs::copy(a.join(TENSORS_FILE), b.join(TENSORS_FILE)).unwrap();
    let error = Checkpoint::load(&b, &Device::cpu()).unwrap_err().to_string();
    assert!(error.contains("not of step 2"), "{error}");
}

#[test]
fn a_failed_save_leaves_the_previous_checkpoint() {
    let scratch = Scratch::new("failed");
    let good = checkpoint(5);
    let path = good.save(scratch.path()).unwrap();
    let mut bad = checkpoint(5);
    if let SavedAdapter::Peft(file) = &mut bad.adapter {
        file.config.r = 3;
    }
    assert!(bad.save(scratch.path()).is_err(), "an adapter that fits no configuration");
    bad = checkpoint(5);
    bad.second_moment = bad.second_moment.slice(0, 0, 1).unwrap();
    assert!(bad.save(scratch.path()).is_err());
    // A file where the directory of checkpoints should be.
    let file = scratch.path().join("file");
    std::fs::write(&file, []).unwrap();
    assert!(good.save(&file).unwrap_err().to_string().contains("file/step-000005"));
    Checkpoint::load(&path, &Device::cpu()).unwrap();
    assert_eq!(scratch.names(), ["file", "step-000005"]);
}

/// Every step of the writer fails once, and once the process dies there: the step's old checkpoint loads, or the new one.
#[test]
fn wherever_a_save_breaks_off_a_whole_checkpoint_is_there() {
    for dead in [false, true] {
        for at in 0.. {
            let scratch = Scratch::new(&format!("broken-{dead}-{at}"));
            let path = checkpoint(5).save(scratch.path()).unwrap();
            let mut next = checkpoint(5);
            next.losses = vec![at as f64];
            let gate = Faulty::new(at, dead);
            let result = next.save_by(&path, || Transaction::begin_directory(&path, &gate));
            let read = Checkpoint::load(&path, &Device::cpu()).unwrap();
            let is_new = read.losses == next.losses;
            assert!(is_new || read.losses.len() == checkpoint(5).losses.len());
            assert!(is_new || result.is_err());
            assert_eq!(latest(scratch.path()).unwrap().unwrap().step, 5);
            if gate.seen.get() <= at {
                assert!(result.is_ok() && at > 20, "every step was reached");
                break;
            }
        }
    }
}

#[test]
fn hostile_states_are_refused() {
    let good = checkpoint(1).state;
    let parse = |state: &State| State::parse(Path::new("state.json"), &serde_json::to_vec(state).unwrap());
    assert_eq!(parse(&good).unwrap(), good);
    let refused = |change: &dyn Fn(&mut State), part: &str| {
        let mut state = good.clone();
        change(&mut state);
        let error = parse(&state).unwrap_err().to_string();
        assert!(error.starts_with("state.json") && error.contains(part), "{part}: {error}");
    };
    refused(&|s| s.version = 2, "version 2, this build reads 1");
    refused(&|s| s.layout[1].offset = 1, "does not fit");
    refused(&|s| s.layout[1].name = s.layout[0].name.clone(), "does not fit");
    refused(&|s| s.layout[0].dims = vec![usize::MAX, 2], "does not fit");
    refused(&|s| s.layout[1].offset = usize::MAX, "does not fit");
    refused(&|s| s.flat_len = 3, "does not fit");
    let text = String::from_utf8(serde_json::to_vec(&good).unwrap()).unwrap();
    let twice = text.replacen("\"progress\"", "\"flat_len\":1,\"progress\"", 1);
    for bad in [twice.as_str(), &text[..text.len() - 1], "{}", "", "[1]", "{\"version\":-1}"] {
        assert!(State::parse(Path::new("state.json"), bad.as_bytes()).is_err(), "{bad}");
    }
}
