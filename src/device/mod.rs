//! Where tensors live and ops run: the CPU, or a GPU behind a [`Launcher`].
//!
//! One stream per device: what is asked of a device happens in the order asked. That invariant is stated here and relied
//! on everywhere: buffers are freed in stream order, and no op waits for another.

mod buffer;
pub mod counters;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "emulator")]
mod emulated;
mod gemm;
mod host;
pub mod launch;
mod tensor_map;
mod trace;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

pub use buffer::{Buffer, HostRead, HostWrite};
pub use counters::{Counters, KernelCounters};
#[cfg(all(test, feature = "emulator"))]
pub(crate) use emulated::Emulated;
pub(crate) use gemm::{Mat, MatMut, Product, gemm, gemm_alone};
pub use launch::{GpuInfo, LaunchSpec, Launcher, Params, Plan, TensorMaps};
pub use tensor_map::{Swizzle, TensorMap};

use crate::error::{Error, Result};
use host::HostPool;

/// A handle; clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    backend: Backend,
    /// Bytes of live buffers. Signed, because threads may add and take away in any order.
    allocated: AtomicIsize,
}

pub(crate) enum Backend {
    Cpu(HostPool),
    Gpu(Box<dyn Launcher>),
}

/// Runs `work` on one of the CPU's worker threads. Ops called from there share their loops with the other workers at once; called
/// from any other thread, each op is first handed over, which costs more than a small op itself. Worth it around a training loop.
pub fn on_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

impl Device {
    fn of(backend: Backend) -> Self {
        Device(Arc::new(Inner { backend, allocated: AtomicIsize::new(0) }))
    }

    /// The reference. Results do not depend on the number of threads.
    pub fn cpu() -> Self {
        Device::of(Backend::Cpu(HostPool::default()))
    }

    /// A device that plans for compute capability `capability` (80, 90), records every launch and runs none.
    pub fn trace(capability: u32) -> Self {
        Device::with_launcher(Box::new(trace::Trace::new(capability)))
    }

    /// A device on someone else's launcher: the seam through which the emulator comes.
    pub fn with_launcher(launcher: Box<dyn Launcher>) -> Self {
        Device::of(Backend::Gpu(launcher))
    }

    /// GPU number `ordinal`, on a stream of its own.
    ///
    /// # Errors
    /// [`Error::DriverUnavailable`] without a driver or such a GPU, [`Error::KernelsMissing`] when this build has none.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Device::with_launcher(Box::new(cuda::Cuda::new(ordinal)?)));
        #[cfg(not(feature = "cuda"))]
        return Err(no_cuda(ordinal));
    }

    /// GPU number `ordinal`, on a stream that the caller owns and keeps alive for as long as this device lives.
    ///
    /// # Safety
    /// 1. `stream` is a live `CUstream` of the primary context of GPU `ordinal`; 2. it outlives the device and every buffer of it;
    /// 3. it is not being captured while tensors are read back.
    pub unsafe fn cuda_on_stream(ordinal: usize, stream: *mut std::ffi::c_void) -> Result<Self> {
        #[cfg(feature = "cuda")]
        // SAFETY: the caller's promise is handed on unchanged.
        return Ok(Device::with_launcher(Box::new(unsafe { cuda::Cuda::borrowing(ordinal, stream)? })));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = stream;
            return Err(no_cuda(ordinal));
        }
    }

    /// A device that runs the kernels' PTX on the CPU, strictly and slowly: `arch` is `sm_80` or `sm_90a`.
    ///
    /// # Errors
    /// [`Error::KernelsMissing`] when this build has none, [`Error::Unsupported`] without the feature `emulator`.
    pub fn emulated(arch: &str) -> Result<Self> {
        #[cfg(feature = "emulator")]
        return Ok(Device::with_launcher(Box::new(emulated::Emulated::new(arch)?)));
        #[cfg(not(feature = "emulator"))]
        return Err(Error::Unsupported {
            op: "device",
            what: format!("emulated:{arch} asked of a build without the emulator"),
            hint: "build with the feature `emulator`".into(),
        });
    }

    /// `cpu`, `cuda`, `cuda:N`, `emulated`, `emulated:ARCH` or `trace`, as on the command line.
    pub fn parse(text: &str) -> Result<Self> {
        let accepted = "cpu, cuda, cuda:N, emulated, emulated:sm_80, emulated:sm_90a or trace";
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::cpu()),
            None if text == "cuda" => Device::cuda(0),
            None if text == "trace" => Ok(Device::trace(80)),
            None if text == "emulated" => Device::emulated("sm_80"),
            Some(("emulated", arch)) => Device::emulated(arch),
            Some(("cuda", n)) => Device::cuda(n.parse().map_err(|_| Error::value("device", "name", accepted, text))?),
            _ => Err(Error::value("device", "name", accepted, text)),
        }
    }

    pub fn name(&self) -> String {
        match &self.0.backend {
            Backend::Cpu(_) => "cpu".into(),
            Backend::Gpu(launcher) => launcher.name(),
        }
    }

    pub fn is_cpu(&self) -> bool {
        matches!(self.0.backend, Backend::Cpu(_))
    }

    /// The launcher, or `None` on the CPU. It believes the addresses that it is given, so nobody outside the crate gets hold of it.
    pub(crate) fn launcher(&self) -> Option<&dyn Launcher> {
        match &self.0.backend {
            Backend::Cpu(_) => None,
            Backend::Gpu(launcher) => Some(launcher.as_ref()),
        }
    }

    /// Carries out a plan. The CPU has no launches: a plan for it is a defect of the op that made it.
    pub(crate) fn run(&self, plan: &Plan) -> Result<()> {
        let launcher = self.launcher().ok_or_else(|| Error::Unsupported {
            op: "run",
            what: "the CPU runs no launch plans".into(),
            hint: "an op runs its cpu.rs there".into(),
        })?;
        plan.iter().try_for_each(|spec| launcher.launch(spec))
    }

    /// `bytes` bytes, contents unspecified.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer> {
        let buffer = match &self.0.backend {
            Backend::Cpu(pool) => Buffer::host(self.clone(), bytes, pool.take(bytes)?),
            Backend::Gpu(launcher) => Buffer::gpu(self.clone(), bytes, launcher.allocate(bytes)?),
        };
        self.counted(bytes as isize);
        Ok(buffer)
    }

    /// Bytes of all live buffers of this device (mapped files excluded).
    pub fn allocated_bytes(&self) -> usize {
        self.0.allocated.load(Ordering::Relaxed).max(0) as usize
    }

    /// What the GPU says of itself; `None` for the CPU and for what only stands for a GPU.
    pub fn gpu_info(&self) -> Result<Option<GpuInfo>> {
        self.launcher().map_or(Ok(None), |l| l.gpu_info())
    }

    /// The launches so far, where the device keeps them (`trace`).
    pub fn recorded(&self) -> Vec<LaunchSpec> {
        self.launcher().map(|l| l.recorded()).unwrap_or_default()
    }

    /// What its kernels did since the last call, kernel by kernel; `None` for a device that counts nothing. See [`counters`].
    pub fn take_counters(&self) -> Option<KernelCounters> {
        self.launcher().and_then(|l| l.take_counters())
    }

    /// Waits until everything asked of this device is done.
    pub fn synchronize(&self) -> Result<()> {
        self.launcher().map_or(Ok(()), |l| l.synchronize())
    }

    /// A whole file, mapped read-only.
    ///
    /// The file must not be changed while it is mapped; nothing this crate writes changes a file in place.
    pub(crate) fn map_file(path: &Path) -> Result<Arc<memmap2::Mmap>> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: 1. the map is read-only and lives behind an Arc for as long as any slice of it; 2. bytes are read as plain
        // data after validation, so that a file changed from outside can give wrong numbers but no invalid value;
        // 3. a file truncated from outside may raise SIGBUS: the documented duty of the caller, as for every mapping.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Arc::new(map))
    }

    /// `bytes` bytes from `offset` of a mapped file, as a CPU buffer with no copy.
    pub(crate) fn mapped(&self, map: &Arc<memmap2::Mmap>, offset: usize, bytes: usize) -> Result<Buffer> {
        if !self.is_cpu() || offset.checked_add(bytes).is_none_or(|end| end > map.len()) {
            let expected = format!("bytes within a file of {} on the cpu", map.len());
            return Err(Error::value("map", "range", expected, format!("{bytes} from {offset} on {}", self.name())));
        }
        Ok(Buffer::mapped(self.clone(), map.clone(), offset, bytes))
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    pub(crate) fn counted(&self, bytes: isize) {
        self.0.allocated.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(not(feature = "cuda"))]
fn no_cuda(ordinal: usize) -> Error {
    Error::DriverUnavailable { reason: format!("cuda:{ordinal} asked of a build without the feature `cuda`") }
}

/// Host memory is one place, however many handles were made for it; two GPU devices are equal only as clones of one.
impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.is_cpu() && other.is_cpu())
    }
}

impl Eq for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}
