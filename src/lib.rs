//! graftwork: adapters on frozen models.

pub mod autograd;
pub mod device;
pub mod dtype;
pub mod error;
pub mod optim;
pub mod models;
pub mod adapters;
pub mod format;
pub mod kernels;
pub mod ops;
pub mod rng;
pub mod shape;
pub mod tensor;
pub mod testing;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::Tensor;
