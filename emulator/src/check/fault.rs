//! Faults: what went wrong, where in the launch, and where in the source.

use std::fmt;

/// A state space, as named in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    Global,
    Shared,
    Local,
    Constant,
    Parameter,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Memory::Global => "global",
            Memory::Shared => "shared",
            Memory::Local => "local",
            Memory::Constant => "constant",
            Memory::Parameter => "parameter",
        })
    }
}

/// The other side of a race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherAccess {
    pub block: [u32; 3],
    /// Unknown when several warps had read.
    pub warp: Option<u32>,
    /// Known when it was another lane of the same warp.
    pub lane: Option<u32>,
    pub wrote: bool,
    /// PTX line and CUDA source place, when known.
    pub line: Option<u32>,
    pub source: Option<(String, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    #[error("{} of {bytes} bytes at {address:#x} is outside {memory} memory", verb(*.write))]
    OutOfBounds { memory: Memory, address: u64, bytes: u32, write: bool },
    #[error("{} of {bytes} bytes at {address:#x} in {memory} memory is not aligned", verb(*.write))]
    Misaligned { memory: Memory, address: u64, bytes: u32, write: bool },
    #[error("read of {bytes} bytes at {address:#x} in {memory} memory that was never written")]
    UninitialisedMemory { memory: Memory, address: u64, bytes: u32 },
    #[error("register {register} is used before anything was written to it")]
    UninitialisedRegister { register: String },
    #[error("{} of {memory} memory at {address:#x} races with {}", verb(*.write), show_other(.other))]
    Race { memory: Memory, address: u64, write: bool, other: Box<OtherAccess> },
    #[error("lanes {} and {} write different values to {memory} memory at {address:#x} in one instruction", .lanes.0, .lanes.1)]
    LaneCollision { memory: Memory, address: u64, lanes: (u32, u32) },
    #[error(
        "{} of shared memory at {address:#x} of block ({}, {}, {}), which may have ended by then",
        verb(*.write), .block[0], .block[1], .block[2]
    )]
    BlockEnded { address: u64, write: bool, block: [u32; 3] },
    #[error("{} of {memory} memory at {address:#x} while an asynchronous copy to it has not been waited for", verb(*.write))]
    AsyncNotWaited { memory: Memory, address: u64, write: bool },
    #[error("write of {memory} memory at {address:#x} while an asynchronous operation still reads it")]
    AsyncOverwrite { memory: Memory, address: u64 },
    #[error("the async proxy reads shared memory at {address:#x}, written by warp {warp} without a proxy fence since")]
    MissingProxyFence { address: u64, warp: u32 },
    #[error("register {register} was accessed since the last wgmma.fence, or by a matrix operation of another shape")]
    MissingMatrixFence { register: String },
    #[error("register {register} is used before its asynchronous matrix operation was waited for")]
    RegisterInFlight { register: String },
    #[error(
        "not all threads of the warp reach this instruction together: lanes {arrived:#010x} arrived, {expected:#010x} were expected"
    )]
    Divergent { arrived: u32, expected: u32 },
    #[error("barrier {barrier}: {reason}")]
    BarrierMisuse { barrier: u32, reason: String },
    #[error("deadlock: {waiting}")]
    Deadlock { waiting: String },
    #[error("no progress after {instructions} warp instructions")]
    InstructionLimit { instructions: u64 },
    #[error("the kernel executed trap")]
    Trap,
    #[error("device assertion `{message}` failed in {function} ({file}:{line})")]
    Assertion { message: String, file: String, line: u32, function: String },
    #[error("store to {memory} memory at {address:#x}, which a kernel cannot write")]
    ReadOnly { memory: Memory, address: u64 },
    #[error("branch index {index} is outside a table of {entries} targets")]
    BranchIndex { index: u32, entries: u32 },
    #[error("call through {pointer:#x}, which is not a function")]
    BadCall { pointer: u64 },
    #[error("local memory of a thread exceeds {limit} bytes")]
    StackOverflow { limit: u32 },
    #[error("{0}")]
    Misuse(String),
    #[error("the launch is refused: {0}")]
    Launch(String),
}

fn verb(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

fn show_other(o: &OtherAccess) -> String {
    let mut s = format!("a {} by block ({}, {}, {})", verb(o.wrote), o.block[0], o.block[1], o.block[2]);
    match o.warp {
        Some(w) => s += &format!(" warp {w}"),
        None => s += ", several warps",
    }
    if let Some(l) = o.lane {
        s += &format!(" lane {l}");
    }
    if let Some(line) = o.line {
        s += &format!(" at PTX line {line}");
    }
    if let Some((file, line)) = &o.source {
        s += &format!(" ({file}:{line})");
    }
    s
}

/// A launch that ended early, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub kernel: String,
    pub block: Option<[u32; 3]>,
    pub warp: Option<u32>,
    pub lane: Option<u32>,
    /// Line of the PTX text.
    pub line: Option<u32>,
    /// CUDA source file and line, when the PTX was made with `-lineinfo`.
    pub source: Option<(String, u32)>,
    /// The calls that were inlined around that line, innermost first.
    pub inlined_at: Vec<(String, u32)>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kernel, self.kind)?;
        if let Some(b) = self.block {
            write!(f, "\n  block ({}, {}, {})", b[0], b[1], b[2])?;
        }
        if let Some(w) = self.warp {
            write!(f, " warp {w}")?;
        }
        if let Some(l) = self.lane {
            write!(f, " lane {l}")?;
        }
        if let Some(l) = self.line {
            write!(f, "\n  PTX line {l}")?;
        }
        if let Some((file, line)) = &self.source {
            write!(f, "\n  {file}:{line}")?;
        }
        for (file, line) in &self.inlined_at {
            write!(f, "\n  inlined at {file}:{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
