//! The second seam: what a plan asks for, and who carries it out.

use smallvec::SmallVec;

use crate::error::Result;
use crate::kernels::KernelId;

/// One kernel launch as plain data: built by an op's `gpu.rs`, testable with no GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchSpec {
    pub kernel: KernelId,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes, beyond what the kernel declares statically.
    pub shared_bytes: u32,
    pub params: Params,
}

/// Launches in order. The few that one op needs stay on the stack.
pub type Plan = SmallVec<[LaunchSpec; 2]>;

/// The one argument of a kernel: a `#[repr(C)]` struct, by value.
#[derive(Clone, PartialEq)]
pub struct Params(SmallVec<[u8; 256]>);

impl Params {
    pub fn of<T: bytemuck::NoUninit>(value: &T) -> Self {
        Params(SmallVec::from_slice(bytemuck::bytes_of(value)))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The struct back again, for tests that look at a plan.
    pub fn read<T: bytemuck::AnyBitPattern>(&self) -> Option<T> {
        bytemuck::try_pod_read_unaligned(&self.0).ok()
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Params({} bytes)", self.0.len())
    }
}

/// A GPU, or what stands for one. Addresses are the device's own, as plain numbers.
///
/// Work is carried out in the order of the calls. `read` waits for what was asked before it; nothing else has to.
pub trait Launcher: Send + Sync {
    /// As the user writes it: `cuda:0`, `trace`, `emulated:sm_80`.
    fn name(&self) -> String;
    /// Compute capability times ten: 80, 90.
    fn capability(&self) -> u32;
    /// An address of at least `bytes` bytes, aligned to 256. Contents are unspecified.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    fn release(&self, address: u64, bytes: usize);
    fn write(&self, address: u64, data: &[u8]) -> Result<()>;
    fn read(&self, address: u64, data: &mut [u8]) -> Result<()>;
    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()>;
    fn zero(&self, address: u64, bytes: usize) -> Result<()>;
    fn launch(&self, spec: &LaunchSpec) -> Result<()>;
    fn synchronize(&self) -> Result<()>;
    /// The specs launched so far, where the launcher keeps them (`trace`).
    fn recorded(&self) -> Vec<LaunchSpec> {
        Vec::new()
    }
}
