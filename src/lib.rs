#![doc = include_str!("../README.md")]
//!
//! # The API on one screen
//!
//! | where | what |
//! |---|---|
//! | [`Device`] | the CPU, a GPU, a trainer's own stream, or a launcher of your own |
//! | [`Tensor`] | views of a device's bytes: runtime dtype and shape |
//! | [`FrozenWeight`](tensor::FrozenWeight) | a weight whose gradient cannot be asked for |
//! | [`ParamSet`](tensor::ParamSet) | what learns: one flat buffer |
//! | [`Tape`](autograd::Tape), [`Var`](autograd::Var), [`Grads`](autograd::Grads) | autograd that remembers only what adapters need, with a [`Ledger`](autograd::Ledger) of what that costs |
//! | [`graph`] | graphs between rows of tensors: made and changed on the host, read by ops on a device |
//! | [`ops`] | frozen linear with low-rank update, linear, norms, activations, attention, embeddings, pooling, block-sparse products, gates, sums over graphs, loss, AdamW |
//! | [`adapters`] | the low-rank family and heads on a trunk, by module names; to and from PEFT files; merging |
//! | [`adapters::block_sparse`] | updates by blocks, and learning which; [`adapters::sora`]: ranks with gates |
//! | [`optim`] | AdamW, schedules of rates and densities, and carrying on with parameters of another form |
//! | [`models`] | frozen trunks |
//! | [`mod@format`] | safetensors, PEFT, checkpoints, graphs; atomic writes |
//! | [`kernels`] | the compiled kernels and what they take |
//! | [`testing`] | the checks that decide what is right |

pub mod adapters;
pub mod autograd;
pub mod device;
pub mod dtype;
pub mod error;
pub mod format;
pub mod graph;
pub mod kernels;
pub mod models;
pub mod ops;
pub mod optim;
pub mod rng;
pub mod shape;
pub mod tensor;
pub mod testing;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::Tensor;
