//! What holds for any bytes whatever. Shared by the fuzz targets and by `tests/hostile_files.rs`; each returns whether the
//! input was accepted.

use std::path::Path;

use graftwork::format::checkpoint::State;
use graftwork::format::graph::{parse_edge_list, parse_matrix_market};
use graftwork::format::peft::{Matcher, PeftConfig};
use graftwork::format::safetensors::Header;
use graftwork::graph::Adjacency;

/// An accepted header describes ranges of its own data that tile it.
pub fn safetensors_header(bytes: &[u8]) -> bool {
    let Ok(header) = Header::parse(Path::new("input"), bytes) else { return false };
    let mut ranges = Vec::new();
    for name in header.names() {
        let info = header.get(name).expect("listed");
        assert!(info.begin <= info.end && info.end <= bytes.len());
        if let Some(dtype) = info.dtype {
            assert_eq!(info.dims.iter().product::<usize>() * dtype.size(), info.end - info.begin);
        }
        ranges.push((info.begin, info.end));
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0));
    true
}

/// An accepted configuration is usable, or says why it is not.
pub fn adapter_config(bytes: &[u8]) -> bool {
    let Ok(config) = PeftConfig::parse(Path::new("input"), bytes) else { return false };
    assert!(config.r > 0 && config.lora_alpha.is_finite() && (0.0..1.0).contains(&config.lora_dropout));
    if let Ok(matcher) = Matcher::new(&config) {
        for module in ["", ".", "vit.layers.0.attention.q_proj", "é.ü", "a.1.b"] {
            assert!(matcher.rank(module) > 0 && matcher.scale(module).is_finite());
            let _ = (matcher.targets(module), matcher.saves(module));
        }
    }
    true
}

/// An accepted state comes back the same after another round.
pub fn checkpoint_state(bytes: &[u8]) -> bool {
    let Ok(state) = State::parse(Path::new("input"), bytes) else { return false };
    for slot in &state.layout {
        assert!(slot.offset + slot.dims.iter().product::<usize>() <= state.flat_len);
    }
    let again = serde_json::to_vec(&state).expect("a state serialises");
    assert_eq!(State::parse(Path::new("again"), &again).expect("accepted once"), state);
    true
}

/// An accepted matrix is a graph whose transpose's transpose it is.
pub fn matrix_market(bytes: &[u8]) -> bool {
    parse_matrix_market(Path::new("input"), bytes).is_ok_and(|graph| holds_together(&graph))
}

/// As [`matrix_market`], of a list of edges.
pub fn edge_list(bytes: &[u8]) -> bool {
    parse_edge_list(Path::new("input"), bytes).is_ok_and(|graph| holds_together(&graph))
}

fn holds_together(graph: &Adjacency) -> bool {
    assert_eq!(graph.offsets().len(), graph.rows() + 1);
    assert!(graph.indices().iter().all(|&j| j < graph.cols()));
    assert!(graph.values().is_none_or(|v| v.len() == graph.edges() && v.iter().all(|v| v.is_finite())));
    assert_eq!(graph.transpose().0.transpose().0, *graph);
    true
}
