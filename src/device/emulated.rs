//! The launcher that runs the kernels' PTX on the CPU, strictly: every fault names kernel, block, lane and source line.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock};

use ptx_emulator::{Arch, Device as Emulator, LaunchConfig, Module, Swizzle as Span, TensorMap as Encoded, TensorType};

use crate::device::counters::{Counters, KernelCounters};
use crate::device::launch::{LaunchSpec, Launcher};
use crate::device::tensor_map::{Swizzle, TensorMap};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{FAMILIES, KernelId, available, resources};

pub struct Emulated {
    arch: &'static str,
    capability: u32,
    /// One launch or copy at a time, as on one stream.
    emulator: Mutex<Emulator>,
    /// Parsed when a kernel of the family is launched for the first time.
    modules: [OnceLock<Module>; FAMILIES.len()],
    /// By position in the table.
    counters: Mutex<BTreeMap<usize, (KernelId, Counters)>>,
}

impl Emulated {
    /// `arch` is `sm_80` or `sm_90a`.
    pub fn new(arch: &str) -> Result<Self> {
        Emulated::with_seed(arch, 0)
    }

    /// The seed decides in what order warps and blocks run. No result depends on it.
    pub fn with_seed(arch: &str, seed: u64) -> Result<Self> {
        available()?;
        let (arch, capability, kind) = match arch {
            "sm_80" => ("sm_80", 80, Arch::Sm80),
            "sm_90a" => ("sm_90a", 90, Arch::Sm90a),
            other => return Err(Error::value("device", "name", "emulated, emulated:sm_80 or emulated:sm_90a", other)),
        };
        let modules = std::array::from_fn(|_| OnceLock::new());
        let mut emulator = Emulator::new(kind);
        emulator.set_seed(seed);
        let (emulator, counters) = (Mutex::new(emulator), Mutex::default());
        Ok(Emulated { arch, capability, emulator, modules, counters })
    }

    fn count(&self, kernel: KernelId, counters: &ptx_emulator::Counters) {
        let mut all = self.counters.lock().unwrap_or_else(|e| e.into_inner());
        all.entry(kernel.index()).or_insert_with(|| (kernel, Counters::default())).1.add(&of_one_launch(counters));
    }

    /// What ptxas gave each thread of a kernel on this architecture; 0 where it did not say.
    fn registers(&self, symbol: &str) -> u32 {
        // A portable kernel has an image for sm_90, a Hopper one for sm_90a.
        let fits = |arch: &str| self.arch.starts_with(arch);
        resources().iter().find(|r| r.symbol == symbol && fits(r.arch)).map_or(0, |r| r.registers)
    }

    fn emulator(&self) -> MutexGuard<'_, Emulator> {
        self.emulator.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn module(&self, kernel: KernelId) -> Result<&Module> {
        let image = kernel.image()?;
        let slot = &self.modules[image.family];
        if let Some(module) = slot.get() {
            return Ok(module);
        }
        let module = Module::parse(&image.ptx.unpack_text()?).map_err(|e| fault(kernel.symbol(), e))?;
        Ok(slot.get_or_init(|| module))
    }
}

fn of_one_launch(counted: &ptx_emulator::Counters) -> Counters {
    Counters {
        launches: 1,
        instructions: counted.total(),
        classes: counted.kinds().collect(),
        load_sectors: counted.load_sectors,
        store_sectors: counted.store_sectors,
        ideal_sectors: counted.ideal_sectors,
        shared_wavefronts: counted.shared_wavefronts,
        bank_conflicts: counted.bank_conflicts,
        local_accesses: counted.local_accesses,
        tensor_macs: counted.tensor_macs,
        barriers: counted.barriers,
        divergent_branches: counted.divergent_branches,
    }
}

/// As the driver encodes it for a GPU.
fn encode(map: &TensorMap) -> std::result::Result<[u8; TensorMap::BYTES], String> {
    let kind = match map.dtype {
        DType::F16 => TensorType::F16,
        DType::BF16 => TensorType::Bf16,
        DType::F32 => TensorType::F32,
        other => return Err(format!("no tensor map of {other}")),
    };
    let span = match map.swizzle {
        Swizzle::B32 => Span::B32,
        Swizzle::B64 => Span::B64,
        Swizzle::B128 => Span::B128,
    };
    let (dims, tile) = ([map.cols, map.rows], [map.tile_cols(), map.tile_rows]);
    let encoded = Encoded::tiled(kind, map.address, &dims, &[map.stride()], &tile, &[1, 1], span, false);
    encoded.map(|e| e.to_bytes()).map_err(|e| e.to_string())
}

fn fault(place: &'static str, report: impl std::fmt::Display) -> Error {
    Error::Emulated { place, report: report.to_string() }
}

impl Launcher for Emulated {
    fn name(&self) -> String {
        format!("emulated:{}", self.arch)
    }

    fn capability(&self) -> u32 {
        self.capability
    }

    /// Few, so that persistent kernels go around more than once on small problems.
    fn multiprocessors(&self) -> u32 {
        4
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.emulator().alloc(bytes.max(1) as u64).map_err(|_| Error::OutOfMemory {
            device: self.name(),
            requested: bytes,
            free: None,
        })
    }

    fn release(&self, address: u64, _: usize) {
        // The address came from `allocate`, which is the only error that freeing knows.
        let _ = self.emulator().free(address);
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.emulator().copy_in(address, data).map_err(|e| fault("write", e))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.emulator().copy_out(data, address).map_err(|e| fault("read", e))
    }

    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        let mut through = vec![0; bytes];
        self.read(source, &mut through)?;
        self.write(target, &through)
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.write(address, &vec![0; bytes])
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<()> {
        spec.check()?;
        let symbol = spec.kernel.symbol();
        let config = LaunchConfig::new(spec.grid, spec.block).shared(spec.shared_bytes).cluster(spec.cluster);
        let config = config.registers(self.registers(symbol));
        let module = self.module(spec.kernel)?;
        let mut params = Vec::with_capacity(spec.maps.len() * TensorMap::BYTES + spec.params.bytes().len());
        for map in &spec.maps {
            params.extend(encode(map).map_err(|e| fault(symbol, e))?);
        }
        params.extend_from_slice(spec.params.bytes());
        let launched = self.emulator().launch(module, symbol, &config, &params);
        let report = launched.map_err(|e| fault(symbol, e))?;
        self.count(spec.kernel, &report.counters);
        Ok(())
    }

    fn take_counters(&self) -> Option<KernelCounters> {
        let mut all = self.counters.lock().unwrap_or_else(|e| e.into_inner());
        Some(std::mem::take(&mut *all).into_values().collect())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
