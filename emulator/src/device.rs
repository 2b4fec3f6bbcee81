//! The public face: modules, devices, launches.

use std::collections::{HashMap, HashSet};

use crate::check::counters::Report;
use crate::check::fault::{Fault, FaultKind};
use crate::decode::program::{Program, SHARED_START};
use crate::decode::{Image, link};
use crate::exec::grid::{Launch, Numerics, run};
use crate::exec::registers::{REGISTER_FILE, block_registers};
use crate::memory::global::{Global, MemoryError, View};
use crate::parse::{ParseError, parse};

/// A parsed and decoded PTX module.
#[derive(Debug)]
pub struct Module {
    programs: HashMap<String, Program>,
    image: Image,
    files: HashMap<u32, String>,
    inlines: Vec<Vec<(u32, u32)>>,
    target: String,
}

/// What a kernel asks of its launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Bytes of parameters, and of static shared memory.
    pub param_bytes: u32,
    pub static_shared: u32,
    pub max_threads: Option<u32>,
    /// Instructions in the decoded form.
    pub instructions: usize,
}

impl Module {
    /// Parses PTX text. Every instruction of every function is decoded: an unknown one is an error that names its line.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let ast = parse(text)?;
        let (programs, image) = link(&ast)?;
        Ok(Module { programs, image, files: ast.files, inlines: ast.inlines, target: ast.target })
    }

    /// The names of its kernels, sorted.
    pub fn entries(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.programs.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub fn entry(&self, name: &str) -> Option<Entry> {
        let p = self.programs.get(name)?;
        Some(Entry {
            param_bytes: p.param_bytes,
            static_shared: p.static_shared - SHARED_START,
            max_threads: p.limits.max_threads.map(|t| t.iter().product()),
            instructions: p.code.len(),
        })
    }

    /// The `.target` it was compiled for.
    pub fn target(&self) -> &str {
        &self.target
    }
}

/// The architecture whose instructions and limits a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    Sm80,
    Sm90a,
}

impl Arch {
    /// Shared memory that one block may use.
    pub fn max_shared(self) -> u32 {
        match self {
            Arch::Sm80 => 163 << 10,
            Arch::Sm90a => 227 << 10,
        }
    }

    fn number(self) -> u32 {
        match self {
            Arch::Sm80 => 80,
            Arch::Sm90a => 90,
        }
    }
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Registers of each thread, as the compiler reports them; 0 when nobody knows.
    pub registers: u32,
}

impl LaunchConfig {
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> LaunchConfig {
        LaunchConfig { grid, block, cluster: [1; 3], shared_bytes: 0, registers: 0 }
    }

    pub fn shared(self, bytes: u32) -> LaunchConfig {
        LaunchConfig { shared_bytes: bytes, ..self }
    }

    /// Registers of each thread: the launch is refused if a block of so many does not fit.
    pub fn registers(self, registers: u32) -> LaunchConfig {
        LaunchConfig { registers, ..self }
    }

    pub fn cluster(self, cluster: [u32; 3]) -> LaunchConfig {
        LaunchConfig { cluster, ..self }
    }
}

/// A device: an architecture, its memory, and how launches are ordered.
#[derive(Debug)]
pub struct Device {
    arch: Arch,
    memory: Global,
    loaded: HashSet<u64>,
    seed: u64,
    limit: u64,
    numerics: Numerics,
}

impl Device {
    /// A device with 16 GiB of memory, of which only what is allocated costs anything.
    pub fn new(arch: Arch) -> Device {
        Device {
            arch,
            memory: Global::new(16 << 30),
            loaded: HashSet::new(),
            seed: 0,
            limit: 1 << 30,
            numerics: Numerics::default(),
        }
    }

    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The seed that decides the order of warps and blocks. No correct result depends on it.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// Warp instructions of one block (of all blocks, if they wait for each other) after which a launch counts as hanging.
    /// 2^30 at first.
    pub fn set_instruction_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The order in which matrix instructions add.
    pub fn set_numerics(&mut self, numerics: Numerics) {
        self.numerics = numerics;
    }

    /// How much memory the device has.
    pub fn set_memory(&mut self, bytes: u64) {
        self.memory.total = bytes.max(self.memory.used);
    }

    pub fn memory_used(&self) -> u64 {
        self.memory.used
    }

    /// Allocates global memory, aligned to 256 bytes. It counts as never written.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        self.memory.alloc(bytes)
    }

    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        self.memory.free(address)
    }

    /// Copies from the host to the device.
    pub fn copy_in(&self, dst: u64, data: &[u8]) -> Result<(), MemoryError> {
        if data.is_empty() {
            return Ok(());
        }
        let a = self.memory.find(dst, data.len() as u64)?;
        a.copy_in(dst - a.base, data);
        Ok(())
    }

    /// Copies from the device to the host. Bytes never written read as 0xFF.
    pub fn copy_out(&self, data: &mut [u8], src: u64) -> Result<(), MemoryError> {
        if data.is_empty() {
            return Ok(());
        }
        let a = self.memory.find(src, data.len() as u64)?;
        a.copy_out(data, src - a.base);
        Ok(())
    }

    /// Were all these bytes written?
    pub fn is_initialised(&self, address: u64, bytes: u64) -> Result<bool, MemoryError> {
        let a = self.memory.find(address, bytes)?;
        let start = address - a.base;
        Ok((start..start + bytes).all(|i| a.initialised(i, 1) == 1))
    }

    /// Address and size of a module's variable. Loads the module.
    pub fn symbol(&mut self, module: &Module, name: &str) -> Option<(u64, u64)> {
        self.load(module);
        let &(address, bytes) = module.image.symbols.get(name)?;
        (address >= module.image.global_base).then_some((address, bytes))
    }

    /// Gives the module's variables their initial values, once for each device.
    fn load(&mut self, module: &Module) {
        if !module.image.global.is_empty() && self.loaded.insert(module.image.global_base) {
            self.memory.insert(module.image.global_base, &module.image.global);
        }
    }

    /// Runs a kernel to its end. `params` are the bytes of its parameters, laid out as the kernel declares them.
    pub fn launch(
        &mut self,
        module: &Module,
        entry: &str,
        config: &LaunchConfig,
        params: &[u8],
    ) -> Result<Report, Box<Fault>> {
        let refuse = |text: String| {
            Box::new(Fault {
                kind: FaultKind::Launch(text),
                kernel: entry.to_string(),
                block: None,
                warp: None,
                lane: None,
                line: None,
                source: None,
                inlined_at: Vec::new(),
            })
        };
        let Some(program) = module.programs.get(entry) else {
            return Err(refuse(format!(
                "the module has no kernel of this name; it has {}",
                module.entries().join(", ")
            )));
        };
        self.check(module, program, config, params).map_err(refuse)?;
        self.load(module);
        let launch = Launch {
            program,
            view: View::new(self.memory.map.values().cloned().collect(), program.global_granule),
            files: &module.files,
            inlines: &module.inlines,
            constants: &module.image.constant,
            params,
            grid: config.grid,
            block: config.block,
            cluster: config.cluster,
            shared_bytes: config.shared_bytes,
            registers: config.registers,
            seed: self.seed,
            limit: self.limit,
            numerics: self.numerics,
        };
        run(&launch)
    }

    fn check(&self, module: &Module, p: &Program, c: &LaunchConfig, params: &[u8]) -> Result<(), String> {
        let wanted: u32 =
            module.target.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_alphabetic()).parse().unwrap_or(0);
        if wanted > self.arch.number() || (p.needs_sm90 && self.arch == Arch::Sm80) {
            return Err(format!("a kernel for {} does not run on {:?}", module.target, self.arch));
        }
        if params.len() != p.param_bytes as usize {
            return Err(format!("{} bytes of parameters, the kernel takes {}", params.len(), p.param_bytes));
        }
        let limits = [(c.grid, [i32::MAX as u32, 65535, 65535], "grid"), (c.block, [1024, 1024, 64], "block")];
        for (got, most, what) in limits {
            if got.iter().zip(most).any(|(&g, m)| g == 0 || g > m) {
                return Err(format!("{what} {got:?} is outside 1 to {most:?}"));
            }
        }
        let threads: u32 = c.block.iter().product();
        if threads > 1024 {
            return Err(format!("{threads} threads in a block, at most 1024"));
        }
        if let Some(most) = p.limits.max_threads
            && threads > most.iter().product::<u32>()
        {
            return Err(format!("{threads} threads in a block, the kernel was compiled for at most {most:?}"));
        }
        if let Some(exact) = p.limits.exact_threads
            && c.block != exact
        {
            return Err(format!("block {:?}, the kernel was compiled for exactly {exact:?}", c.block));
        }
        if let Some(exact) = p.limits.cluster
            && c.cluster != exact
        {
            return Err(format!("cluster {:?}, the kernel was compiled for exactly {exact:?}", c.cluster));
        }
        let in_cluster = c.cluster.iter().fold(1u32, |n, &c| n.saturating_mul(c));
        if in_cluster != 1 && self.arch == Arch::Sm80 {
            return Err("clusters exist from sm_90 on".into());
        }
        if !(1..=16).contains(&in_cluster) || c.grid.iter().zip(c.cluster).any(|(g, c)| g % c != 0) {
            return Err(format!(
                "grid {:?} does not divide into clusters {:?} of at most 16 blocks",
                c.grid, c.cluster
            ));
        }
        let blocks: u64 = c.grid.iter().map(|&g| u64::from(g)).product();
        if blocks > 0xFF_FFF0 {
            return Err(format!("{blocks} blocks, the emulator runs at most {}", 0xFF_FFF0));
        }
        self.check_registers(p, c, threads)?;
        let shared = p.dynamic_shared.max(p.static_shared) - SHARED_START + c.shared_bytes;
        if shared > self.arch.max_shared() {
            return Err(format!("{shared} bytes of shared memory, at most {}", self.arch.max_shared()));
        }
        Ok(())
    }

    fn check_registers(&self, p: &Program, c: &LaunchConfig, threads: u32) -> Result<(), String> {
        if let Some(most) = p.limits.max_registers
            && c.registers > most
        {
            return Err(format!(
                "{} registers for each thread, the kernel was compiled for at most {most}",
                c.registers
            ));
        }
        if c.registers > 255 {
            return Err(format!("{} registers for each thread, at most 255", c.registers));
        }
        let each = if c.registers == 0 { p.limits.max_registers.unwrap_or(0).min(255) } else { c.registers };
        let all = block_registers(each, threads);
        if all > REGISTER_FILE {
            return Err(format!("{threads} threads of {each} registers take {all}, a block has {REGISTER_FILE}"));
        }
        Ok(())
    }
}
