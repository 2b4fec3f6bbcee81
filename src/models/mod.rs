//! Small frozen trunks, loaded from safetensors.

pub mod vit;
