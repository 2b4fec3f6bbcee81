//! The decoded form: what the interpreter runs.

use crate::exec::lanes::{AluFn, Args, Plane};
use crate::parse::ast::{Limits, Place, Space, Ty};

/// No plane: an absent guard, base register or destination.
pub const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    Clock,
    ClockHi,
    Clock64,
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    DynamicSmem,
    TotalSmem,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaId(u8),
    ClusterNCtaId(u8),
    ClusterCtaRank,
    ClusterNCtaRank,
    IsExplicitCluster,
    /// A register whose value is the same everywhere.
    Fixed(u32),
}

/// `[base + offset]`; `frame` adds the function's own part of local memory.
#[derive(Debug, Clone, Copy)]
pub struct Addr {
    pub base: u32,
    pub wide: bool,
    pub offset: i64,
    pub frame: bool,
}

/// How strongly an access is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub acquire: bool,
    pub release: bool,
    /// Volatile, relaxed or stronger: takes part in synchronisation and never races with its kind.
    pub strong: bool,
    /// The scope is the block alone.
    pub cta: bool,
}

pub const WEAK: Order = Order { acquire: false, release: false, strong: false, cta: false };

#[derive(Debug, Clone, Copy)]
pub struct Mem {
    pub space: Space,
    pub addr: Addr,
    /// Bytes of one element, elements of the vector, planes of each register.
    pub elem: u8,
    pub count: u8,
    pub planes: u8,
    pub signed: bool,
    pub regs: [u32; 8],
    /// Bytes of the whole access whose value is used.
    pub used: u32,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone)]
pub struct Atom {
    pub space: Space,
    pub addr: Addr,
    pub op: AtomOp,
    pub ty: Ty,
    /// Destinations; empty for `red`. One for each element of a vector.
    pub d: Vec<u32>,
    pub a: Vec<u32>,
    pub b: u32,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarOp {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub op: BarOp,
    pub aligned: bool,
    pub id: u32,
    /// Expected threads; NONE: all of the block.
    pub count: u32,
    /// Destination and predicate of a reduction.
    pub d: u32,
    pub p: u32,
}

/// A matrix operand's element format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elem {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
    B1,
    F64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acc {
    F32,
    F16,
    S32,
    F64,
}

#[derive(Debug, Clone)]
pub struct Mma {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a_elem: Elem,
    pub b_elem: Elem,
    pub d_acc: Acc,
    pub c_acc: Acc,
    pub satfinite: bool,
    /// Column-major A, row-major B: only in the form of four small products.
    pub a_col: bool,
    pub b_row: bool,
    /// Bits are combined with exclusive or, not and.
    pub xor: bool,
    pub rnd: crate::numerics::format::Rnd,
    pub d: Vec<u32>,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
    pub c: Vec<u32>,
}

#[derive(Debug, Clone)]
pub struct CallSite {
    /// Index of the function, or NONE for an indirect call through `pointer`.
    pub function: u32,
    pub pointer: u32,
    /// Offsets in the caller's frame of the arguments and of the results, with sizes.
    pub args: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
    pub builtin: Option<Builtin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    Printf,
    AssertFail,
}

#[derive(Debug, Clone)]
pub enum Op {
    Alu {
        f: AluFn,
        x: Args,
    },
    Special {
        d: u32,
        which: Special,
        planes: u8,
    },
    /// The local address of something in this function's frame.
    FrameAddress {
        d: u32,
        offset: u32,
    },
    FunctionAddress {
        d: u32,
        function: u32,
    },
    Bra {
        target: u32,
    },
    Brx {
        index: u32,
        table: u32,
    },
    Call(Box<CallSite>),
    Ret,
    Exit,
    Ld(Box<Mem>),
    St(Box<Mem>),
    Atom(Box<Atom>),
    IsSpace {
        d: u32,
        a: u32,
        space: Space,
    },
    Cvta {
        d: u32,
        a: u32,
        space: Space,
        to: bool,
    },
    Shfl {
        mode: ShflMode,
        d: u32,
        p: u32,
        a: u32,
        b: u32,
        c: u32,
        mask: u32,
    },
    Vote {
        mode: VoteMode,
        d: u32,
        p: u32,
        negate: bool,
        mask: u32,
    },
    Match {
        all: bool,
        wide: bool,
        d: u32,
        p: u32,
        a: u32,
        mask: u32,
    },
    Redux {
        op: ReduxOp,
        signed: bool,
        d: u32,
        a: u32,
        mask: u32,
    },
    Elect {
        d: u32,
        p: u32,
        mask: u32,
    },
    ActiveMask {
        d: u32,
    },
    WarpSync {
        mask: u32,
    },
    Bar(Box<Bar>),
    Fence(Fence),
    CpAsync {
        dst: Addr,
        src: Addr,
        bytes: u8,
        src_bytes: u32,
        ignore: u32,
    },
    CpCommit,
    CpWait {
        pending: u32,
    },
    LdMatrix {
        count: u8,
        trans: bool,
        d: [u32; 4],
        addr: Addr,
        space: Space,
    },
    StMatrix {
        count: u8,
        trans: bool,
        s: [u32; 4],
        addr: Addr,
        space: Space,
    },
    MovMatrix {
        d: u32,
        a: u32,
    },
    Mma(Box<Mma>),
    Wmma(Box<super::wmma::Wmma>),
    Trap,
    Sleep,
    /// A hint that changes no state (prefetch, discard of nothing, scheduling).
    Hint,
    Hopper(Box<super::hopper::Hopper>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    Cta,
    Cluster,
    Gpu,
    /// Makes generic-proxy accesses visible to the async proxy.
    ProxyAsync,
    /// `fence.mbarrier_init`
    MbarrierInit,
    /// A fence between proxies that have no separate state here (alias, tensor map).
    Other,
}

/// Classes that the counters distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Integer,
    Float,
    Half,
    Double,
    Convert,
    Compare,
    Move,
    Control,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    Local,
    Param,
    Atomic,
    Warp,
    Barrier,
    Async,
    Matrix,
    Other,
}

pub const KINDS: usize = 20;

pub const KIND_NAMES: [&str; KINDS] = [
    "integer",
    "float",
    "half",
    "double",
    "convert",
    "compare",
    "move",
    "control",
    "ld.global",
    "st.global",
    "ld.shared",
    "st.shared",
    "local",
    "param",
    "atomic",
    "warp",
    "barrier",
    "async",
    "matrix",
    "other",
];

#[derive(Debug, Clone)]
pub struct Instr {
    pub op: Op,
    /// Guard predicate, or NONE.
    pub guard: u32,
    pub guard_negated: bool,
    pub kind: Kind,
    /// Part of a longer PTX instruction: not counted.
    pub part: bool,
    /// Some operand may be uninitialised here: the careful path runs.
    pub track: bool,
    /// It touches registers that asynchronous matrix operations use.
    pub watched: bool,
}

/// Which planes an instruction reads and writes; parallel to the code.
#[derive(Debug, Clone, Default)]
pub struct Deps {
    pub reads: Vec<u32>,
    pub writes: Vec<u32>,
}

#[derive(Debug, Clone)]
pub struct Func {
    pub name: String,
    pub start: u32,
    pub end: u32,
    /// Initial planes: zero for registers, values for immediates.
    pub template: Vec<Plane>,
    /// Planes that some path may read before writing them, or that may hold what was never initialised.
    pub tracked: Vec<u32>,
    /// The PTX name of each plane, for messages.
    pub names: Vec<(u32, String)>,
    /// Bytes of local memory for each lane: depot, call parameters, own parameters and results.
    pub frame_bytes: u32,
    /// Offsets in the own frame, with sizes.
    pub params: Vec<(u32, u32)>,
    pub returns: Vec<(u32, u32)>,
}

/// A kernel with every function it can reach.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: String,
    pub code: Vec<Instr>,
    pub deps: Vec<Deps>,
    pub places: Vec<Place>,
    pub funcs: Vec<Func>,
    pub tables: Vec<Vec<u32>>,
    pub limits: Limits,
    /// Bytes and alignment of each kernel parameter.
    pub param_bytes: u32,
    /// Shared memory: end of the static part, where the dynamic part starts.
    pub static_shared: u32,
    pub dynamic_shared: u32,
    /// log2 of the smallest piece of shared or global memory that two accesses can share.
    pub shared_granule: u32,
    pub global_granule: u32,
    /// Blocks may exchange data during the launch, so they run in one fixed order on one core.
    pub communicates: bool,
    pub needs_sm90: bool,
    /// It has matrix operations of warpgroups.
    pub warpgroups: bool,
}

/// Address windows. Generic addresses of shared, local, constant and parameter memory carry these tags; the rest is global.
pub const SHARED_WINDOW: u64 = 0x0100_0000_0000_0000;
pub const LOCAL_WINDOW: u64 = 0x0200_0000_0000_0000;
pub const CONST_WINDOW: u64 = 0x0300_0000_0000_0000;
pub const PARAM_WINDOW: u64 = 0x0400_0000_0000_0000;
pub const WINDOW_MASK: u64 = 0xFF00_0000_0000_0000;
/// The first bytes of shared memory belong to the system, as on the architecture; address 0 is therefore a fault.
pub const SHARED_START: u32 = 1024;
