//! graftwork: adapters on frozen models.

pub mod adapters;
pub mod autograd;
pub mod device;
pub mod dtype;
pub mod error;
pub mod format;
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
