//! Small frozen trunks, loaded from safetensors.

pub mod encoder_decoder;
pub mod vit;
