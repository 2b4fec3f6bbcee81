//! The two namings of a Hugging Face ViT. transformers 4, and to this day the files of trunks, say
//! `vit.encoder.layer.0.attention.attention.query`; transformers 5 says `vit.layers.0.attention.q_proj` in memory, and PEFT
//! names adapter keys after memory. Both are read, the new one is written.

use std::borrow::Cow;

const OLD: &str = "vit.encoder.layer.";
const NEW: &str = "vit.layers.";

/// (old, new) below one layer.
const MODULES: [(&str, &str); 8] = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "layernorm_before"),
    ("layernorm_after", "layernorm_after"),
];

/// The new name of a module, or of a parameter below one. Any other name is returned as it is.
pub fn to_new(name: &str) -> Cow<'_, str> {
    renamed(name, OLD, NEW, |(old, new)| (old, new))
}

/// The old name of a module, or of a parameter below one. Any other name is returned as it is.
pub fn to_old(name: &str) -> Cow<'_, str> {
    renamed(name, NEW, OLD, |(old, new)| (new, old))
}

type Pair = (&'static str, &'static str);

fn renamed<'a>(name: &'a str, from: &str, to: &str, direction: fn(Pair) -> Pair) -> Cow<'a, str> {
    let parts = name.strip_prefix(from).and_then(|rest| rest.split_once('.'));
    let Some((layer, module)) =
        parts.filter(|(layer, _)| !layer.is_empty() && layer.bytes().all(|b| b.is_ascii_digit()))
    else {
        return Cow::Borrowed(name);
    };
    for (before, after) in MODULES.map(direction) {
        match module.strip_prefix(before) {
            Some(tail) if tail.is_empty() || tail.starts_with('.') => {
                return Cow::Owned(format!("{to}{layer}.{after}{tail}"));
            }
            _ => {}
        }
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (old, new) in MODULES {
            for tail in ["", ".weight", ".lora_A.weight"] {
                let (old, new) = (format!("{OLD}11.{old}{tail}"), format!("{NEW}11.{new}{tail}"));
                assert_eq!((to_new(&old).as_ref(), to_old(&new).as_ref()), (new.as_str(), old.as_str()));
                assert_eq!((to_new(&new).as_ref(), to_old(&old).as_ref()), (new.as_str(), old.as_str()));
            }
        }
    }

    #[test]
    fn other_names_stay() {
        for name in [
            "classifier.weight",
            "vit.encoder.layer.x.output.dense",
            "vit.encoder.layer.0.output.denser",
            "vit.layernorm",
        ] {
            assert_eq!(to_new(name), name);
        }
    }
}
