//! The second seam: what a plan asks for, and who carries it out.

use smallvec::SmallVec;

use crate::device::counters::KernelCounters;
use crate::device::tensor_map::TensorMap;
use crate::error::{Error, Result};
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
    /// The launcher encodes these in front of the parameters, where a Hopper kernel has them.
    pub maps: TensorMaps,
    pub params: Params,
}

/// The largest parameters that a kernel can have on every GPU and driver we serve.
pub const MAX_PARAMS: usize = 4096;

impl LaunchSpec {
    /// Holds the launch against what the kernel was compiled for. Every launcher calls this first, so that what a GPU would refuse is
    /// refused where there is none, too.
    ///
    /// # Errors
    /// [`Error::Launch`] with the reason.
    pub fn check(&self) -> Result<()> {
        let row = self.kernel.row();
        let refuse = |reason: String| Err(Error::Launch { kernel: row.symbol, reason });
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return refuse(format!("a grid of {:?}; from 1 to [2147483647, 65535, 65535] is possible", self.grid));
        }
        let threads = self.block.iter().try_fold(1u32, |product, &b| product.checked_mul(b));
        if threads.is_none_or(|t| t == 0 || t > row.threads) || self.block[2] > 64 {
            return refuse(format!("a block of {:?}; it is compiled for {} threads", self.block, row.threads));
        }
        let cluster = self.cluster.iter().try_fold(1u32, |product, &c| product.checked_mul(c));
        let divides = || self.grid.iter().zip(self.cluster).all(|(&g, c)| g.is_multiple_of(c));
        if cluster.is_none_or(|c| c == 0 || c > 8) || !divides() {
            return refuse(format!("clusters of {:?} in a grid of {:?}", self.cluster, self.grid));
        }
        if self.shared_bytes > row.shared_bytes {
            return refuse(format!(
                "{} bytes of shared memory; the table allows {}",
                self.shared_bytes, row.shared_bytes
            ));
        }
        if let Some(reason) = self.maps.iter().find_map(TensorMap::refusal) {
            return refuse(format!("a tensor map of {reason}"));
        }
        let got = self.maps.len() * TensorMap::BYTES + self.params.bytes().len();
        if got > MAX_PARAMS {
            return refuse(format!("parameters of {got} bytes; {MAX_PARAMS} are possible"));
        }
        match self.kernel.param_bytes() {
            Some(wanted) if wanted as usize != got => {
                refuse(format!("parameters of {got} bytes; it was compiled for {wanted}"))
            }
            _ => Ok(()),
        }
    }
}

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability times ten: 80, 90.
    pub capability: u32,
    /// Newest CUDA version that the driver knows: (13, 0).
    pub driver_version: (u32, u32),
    pub multiprocessors: u32,
    pub free_bytes: usize,
    pub total_bytes: usize,
}

/// The few that one kernel takes stay on the stack.
pub type TensorMaps = SmallVec<[TensorMap; 8]>;

/// Launches in order. The few that one op needs stay on the stack.
pub type Plan = SmallVec<[LaunchSpec; 2]>;

/// The one argument of a kernel, or what follows the tensor maps in it: a `#[repr(C)]` struct, by value.
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
/// Every address that a launcher is given came from its own `allocate` and is not yet released, and a kernel's parameters hold no
/// others: only this crate calls a launcher, through tensors, so a launcher made elsewhere may rely on that as the driver's does.
///
/// Work is carried out in the order of the calls. `read` waits for what was asked before it; nothing else has to.
pub trait Launcher: Send + Sync {
    /// As the user writes it: `cuda:0`, `trace`, `emulated:sm_80`.
    fn name(&self) -> String;
    /// Compute capability times ten: 80, 90.
    fn capability(&self) -> u32;
    /// How many multiprocessors share the blocks of a launch.
    fn multiprocessors(&self) -> u32;
    /// An address of at least `bytes` bytes, aligned to 256. Contents are unspecified.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    fn release(&self, address: u64, bytes: usize);
    fn write(&self, address: u64, data: &[u8]) -> Result<()>;
    fn read(&self, address: u64, data: &mut [u8]) -> Result<()>;
    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()>;
    fn zero(&self, address: u64, bytes: usize) -> Result<()>;
    fn launch(&self, spec: &LaunchSpec) -> Result<()>;
    fn synchronize(&self) -> Result<()>;
    /// What the hardware says of itself; `None` where there is none.
    fn gpu_info(&self) -> Result<Option<GpuInfo>> {
        Ok(None)
    }
    /// What the kernels did since the last call, where the launcher counts (`emulated`).
    fn take_counters(&self) -> Option<KernelCounters> {
        None
    }
    /// The specs launched so far, where the launcher keeps them (`trace`).
    fn recorded(&self) -> Vec<LaunchSpec> {
        Vec::new()
    }
}
