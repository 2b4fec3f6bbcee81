//! Adapters written by Hugging Face PEFT are read, and what we write has their keys, shapes and values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use graftwork::format::peft::{AdapterFile, LoraPair, Matcher, Modules, PeftConfig, lora_keys, vit_names};
use graftwork::format::safetensors::{self, SafeTensors};
use graftwork::{DType, Device, Error, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name).join("adapter")
}

fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peft").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Name, shape and bit patterns of every tensor of a file.
fn contents(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let file = SafeTensors::open(path).unwrap();
    let read = |name: &str| {
        let tensor = file.tensor(name, &Device::cpu()).unwrap();
        assert_eq!(tensor.dtype(), DType::F32);
        (tensor.dims().to_vec(), tensor.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect())
    };
    file.names().map(|name| (name.to_owned(), read(name))).collect()
}

#[test]
fn configurations_of_peft_are_read() {
    let lora = PeftConfig::load(&fixture("lora").join("adapter_config.json")).unwrap();
    assert_eq!((lora.r, lora.lora_alpha, lora.lora_dropout, lora.use_rslora), (4, 8.0, 0.0, false));
    assert_eq!(lora.target_modules, Modules::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(lora.modules_to_save, ["classifier"]);
    assert!(lora.inference_mode && lora.auto_mapping.is_some() && lora.task_type.is_none());
    assert_eq!(Matcher::new(&lora).unwrap().scale("vit.layers.0.attention.q_proj"), 2.0);

    let rslora = PeftConfig::load(&fixture("rslora").join("adapter_config.json")).unwrap();
    assert!(rslora.use_rslora && rslora.modules_to_save.is_empty());
    assert_eq!(Matcher::new(&rslora).unwrap().scale("vit.layers.1.mlp.fc2"), 4.0);
}

#[test]
fn every_tensor_of_peft_is_read_and_written_back_under_the_same_key() {
    for (name, modules, full) in [("lora", 4, 2), ("rslora", 12, 0)] {
        let adapter = AdapterFile::load(fixture(name)).unwrap();
        assert_eq!((adapter.lora.len(), adapter.full.len()), (modules, full));
        let theirs = contents(&fixture(name).join("adapter_model.safetensors"));
        assert_eq!(theirs.len(), 2 * modules + full);
        for (key, tensor) in adapter.tensors() {
            let (dims, bits) = &theirs[&key];
            let ours: Vec<_> = tensor.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
            assert_eq!((tensor.dims(), &ours), (dims.as_slice(), bits), "{key}");
        }
        let dir = scratch(name);
        adapter.save(&dir).unwrap();
        let written = dir.join("adapter_model.safetensors");
        assert_eq!(contents(&written), theirs);
        let original = fixture(name).join("adapter_model.safetensors");
        assert_eq!(std::fs::read(&written).unwrap(), std::fs::read(original).unwrap(), "byte for byte, in fact");
        let again = AdapterFile::load(&dir).unwrap();
        assert_eq!(again.config, adapter.config);
        let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing is left aside: {names:?}");
    }
}

#[test]
fn a_trunk_is_compared_key_by_key() {
    let adapter = AdapterFile::load(fixture("lora")).unwrap();
    let held: Vec<_> = adapter.tensors().into_iter().map(|(key, t)| (key, t.dims().to_vec())).collect();
    let expected =
        |list: &[(String, Vec<usize>)]| adapter.compare(list.iter().map(|(key, dims)| (key.as_str(), dims.as_slice())));
    assert!(expected(&held).is_clean());
    let mut other = held.clone();
    other[0].1 = vec![10];
    other.remove(1);
    other.push((lora_keys("vit.layers.2.attention.q_proj")[0].clone(), vec![4, 32]));
    let report = expected(&other);
    assert_eq!((report.misshapen.len(), report.unexpected.len(), report.missing.len()), (1, 1, 1));
    let error = report.into_result(Path::new("adapter")).unwrap_err();
    assert!(matches!(error, Error::AdapterMismatch { .. }));
    let text = error.to_string();
    for part in
        ["missing (1)", "layers.2.", "unexpected (1)", "classifier.weight", "misshapen (1)", "[5], expected [10]"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The fixture under the names that transformers 4 gave its modules.
#[test]
fn adapters_under_the_old_names_of_a_vit_are_read_and_written_under_the_new() {
    let new = AdapterFile::load(fixture("rslora")).unwrap();
    let dir = scratch("old-names");
    let tensors: Vec<_> = new
        .tensors()
        .into_iter()
        .map(|(key, tensor)| {
            let name = vit_names::to_old(key.strip_prefix("base_model.model.").unwrap()).into_owned();
            assert!(name.starts_with("vit.encoder.layer."), "{name}");
            (format!("base_model.model.{name}"), tensor)
        })
        .collect();
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor));
    safetensors::write(&dir.join("adapter_model.safetensors"), tensors, &BTreeMap::new()).unwrap();
    let config = r#"{"peft_type":"LORA","r":9,"lora_alpha":8,"use_rslora":true,
        "target_modules":["query","key","value","dense"],"rank_pattern":{"query|key|value|dense":4},
        "alpha_pattern":{"attention.output.dense":3}}"#;
    std::fs::write(dir.join("adapter_config.json"), config).unwrap();

    let read = AdapterFile::load(&dir).unwrap();
    assert_eq!(read.lora.keys().collect::<Vec<_>>(), new.lora.keys().collect::<Vec<_>>());
    let out = scratch("old-names-out");
    read.save(&out).unwrap();
    assert_eq!(
        contents(&out.join("adapter_model.safetensors")),
        contents(&fixture("rslora").join("adapter_model.safetensors"))
    );
    let again = AdapterFile::load(&out).unwrap();
    let matcher = Matcher::new(&again.config).unwrap();
    for module in new.lora.keys() {
        assert!(matcher.targets(module));
        assert_eq!(
            (matcher.rank(module), matcher.alpha(module)),
            (4, if module.ends_with("o_proj") { 3.0 } else { 8.0 })
        );
    }
}

#[test]
fn incomplete_and_foreign_adapters_are_refused_with_a_list() {
    let base = AdapterFile::load(fixture("lora")).unwrap();
    let dir = scratch("foreign");
    let save = |keep: &dyn Fn(&str) -> Option<String>| {
        base.save(&dir).unwrap();
        let tensors: Vec<_> = base.tensors().into_iter().filter_map(|(key, t)| Some((keep(&key)?, t))).collect();
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor));
        safetensors::write(&dir.join("adapter_model.safetensors"), tensors, &BTreeMap::new()).unwrap();
        AdapterFile::load(&dir).unwrap_err().to_string()
    };
    let error = save(&|key| (!key.contains("1.attention.q_proj.lora_B")).then(|| key.into()));
    assert!(error.contains("missing (1)") && error.contains("layers.1.attention.q_proj.lora_B.weight"), "{error}");
    let error = save(&|key| Some(key.replace("q_proj", "k_proj")));
    assert!(error.contains("unexpected (4)") && error.contains("k_proj"), "{error}");
    let error = save(&|key| Some(key.replace("lora_A.weight", "lora_magnitude_vector")));
    assert!(error.contains("lora_magnitude_vector"), "{error}");
    let error = save(&|key| Some(key.replace("base_model.model.", "")));
    assert!(error.contains("unexpected (10)"), "{error}");
    let error = save(&|key| {
        let swapped = key.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B");
        Some(swapped)
    });
    assert!(error.contains("misshapen (8)") && error.contains("[32, 4], expected [4, k]"), "{error}");
    std::fs::remove_file(dir.join("adapter_model.safetensors")).unwrap();
    std::fs::write(dir.join("adapter_model.bin"), []).unwrap();
    assert!(AdapterFile::load(&dir).unwrap_err().to_string().contains("pickle"));
}

#[test]
fn an_adapter_that_peft_would_read_in_part_is_not_written() {
    let mut adapter = AdapterFile::load(fixture("lora")).unwrap();
    let cpu = Device::cpu();
    let tensor = |dims: &[usize]| Tensor::zeros(&cpu, dims, DType::F32).unwrap();
    let dir = scratch("partial");
    adapter.lora.insert("vit.layers.0.attention.q_proj".into(), LoraPair { a: tensor(&[3, 32]), b: tensor(&[32, 3]) });
    assert!(adapter.save(&dir).unwrap_err().to_string().contains("misshapen (2)"));
    adapter.config.rank_pattern = vec![("0.attention.q_proj".into(), 3)];
    adapter.save(&dir).unwrap();
    adapter.full.insert("pooler.weight".into(), tensor(&[2]));
    assert!(adapter.save(&dir).unwrap_err().to_string().contains("pooler.weight"));
    assert_eq!(
        AdapterFile::load(&dir).unwrap().lora["vit.layers.0.attention.q_proj"].rank(),
        3,
        "the old one is still there"
    );
}
