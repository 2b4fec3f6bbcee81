// The table of kernels: pure data, compiled into the crate and included by build.rs. It is the single source of tile constants:
// build.rs passes each family's defines to nvcc, and a kernel source refuses to compile without them.

/// Which GPUs a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// compute_80 and later, also through its PTX.
    Portable,
    /// sm_90a alone.
    Hopper,
}

/// One source file in `kernels/` and the entry points it must define.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub source: &'static str,
    pub class: Class,
    pub defines: &'static [(&'static str, u32)],
    pub kernels: &'static [Row],
}

/// One entry point: `{op}_{pass}_{dtype}_{tile}_{arch}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub symbol: &'static str,
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// More registers than this fail a test.
    pub max_registers: u32,
}

pub const FAMILIES: &[Family] = &[];
