//! The one error type. Every variant says where (op or call), what (argument), what would have been accepted and what came.

use std::path::PathBuf;

use crate::dtype::DType;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{op}: `{argument}` has shape {got}, expected {expected}")]
    Shape { op: &'static str, argument: &'static str, expected: String, got: String },

    #[error("{op}: `{argument}` has dtype {got}, expected {expected}")]
    DType { op: &'static str, argument: &'static str, expected: String, got: DType },

    #[error("{op}: `{argument}` lives on {got}, expected {expected}; copy it there with Tensor::to_device")]
    DeviceMismatch { op: &'static str, argument: &'static str, expected: String, got: String },

    #[error(
        "{op}: `{argument}` with shape {dims:?} and strides {strides:?} is not contiguous; call Tensor::contiguous first"
    )]
    NotContiguous { op: &'static str, argument: &'static str, dims: Vec<usize>, strides: Vec<usize> },

    #[error("{op}: `{argument}` starts at byte offset {offset}, which is no multiple of {alignment}; copy it first")]
    Misaligned { op: &'static str, argument: &'static str, offset: usize, alignment: usize },

    #[error("{op}: the size of shape {dims:?} does not fit in memory (its product or byte count overflows)")]
    SizeOverflow { op: &'static str, dims: Vec<usize> },

    #[error("{op}: `{argument}` is {got}, expected {expected}")]
    Value { op: &'static str, argument: &'static str, expected: String, got: String },

    #[error("{op}: {what}; {hint}")]
    Unsupported { op: &'static str, what: String, hint: String },

    #[error("{op}: a tensor it writes is being read or written elsewhere at the same time; finish that use first")]
    Busy { op: &'static str },

    #[error("{device}: out of memory, {requested} bytes requested{}", free.map(|f| format!(", {f} free")).unwrap_or_default())]
    OutOfMemory { device: String, requested: usize, free: Option<usize> },

    #[error("no CUDA driver: {reason}; use --device cpu, or install the NVIDIA driver")]
    DriverUnavailable { reason: String },

    #[error("{call} failed with CUDA error {code}: {message}")]
    Cuda { call: &'static str, code: u32, message: String },

    #[error("{device} is lost since `{first}` failed ({reason}); make a new Device in a new process")]
    Poisoned { device: String, first: String, reason: String },

    #[error("this build holds no CUDA kernels ({reason}); run `make cuda` or set CUDA_HOME, then build again")]
    KernelsMissing { reason: String },

    #[error("launch of {kernel} refused: {reason}")]
    Launch { kernel: &'static str, reason: String },

    #[error("the emulator stopped at {place}: {report}")]
    Emulated { place: &'static str, report: String },

    #[error("{device} records launches and runs none, so `{op}` has no values to read")]
    NotExecuted { device: String, op: &'static str },

    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },

    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{}: the field `{field}` = {value} changes the forward pass and is not supported; {hint}", path.display())]
    ConfigField { path: PathBuf, field: String, value: String, hint: String },

    #[error("{}: the adapter does not fit this trunk\n{report}", path.display())]
    AdapterMismatch { path: PathBuf, report: String },

    #[error("no module matches {patterns:?}; the trunk has: {available}")]
    NoMatch { patterns: Vec<String>, available: String },

    #[error("autograd: {what}; {hint}")]
    Autograd { what: String, hint: String },

    #[error("{place}: {source}")]
    Within { place: String, source: Box<Error> },
}

impl Error {
    /// The same error with what led to it before it: an option of a command, a file that named something.
    pub fn within(self, place: impl Into<String>) -> Self {
        Error::Within { place: place.into(), source: Box::new(self) }
    }

    pub(crate) fn shape(
        op: &'static str,
        argument: &'static str,
        expected: impl std::fmt::Display,
        got: &[usize],
    ) -> Self {
        Error::Shape { op, argument, expected: expected.to_string(), got: format!("{got:?}") }
    }

    pub(crate) fn value(
        op: &'static str,
        argument: &'static str,
        expected: impl std::fmt::Display,
        got: impl std::fmt::Display,
    ) -> Self {
        Error::Value { op, argument, expected: expected.to_string(), got: got.to_string() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Error::File { path: path.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }
}
