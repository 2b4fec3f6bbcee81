//! What the parser hands to the decoder: the module as written, names not yet resolved.

use std::collections::HashMap;

/// A fundamental type, or one of the alternative floating-point formats an instruction can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F32x2,
    F64,
    Pred,
    Tf32,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    U16x2,
    S16x2,
}

impl Ty {
    pub fn parse(s: &str) -> Option<Ty> {
        use Ty::*;
        Some(match s {
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "f32" => F32,
            "f32x2" => F32x2,
            "f64" => F64,
            "pred" => Pred,
            "tf32" => Tf32,
            "e4m3" => E4m3,
            "e5m2" => E5m2,
            "e4m3x2" => E4m3x2,
            "e5m2x2" => E5m2x2,
            "u16x2" => U16x2,
            "s16x2" => S16x2,
            _ => return None,
        })
    }

    pub fn bytes(self) -> u32 {
        use Ty::*;
        match self {
            Pred | B8 | U8 | S8 | E4m3 | E5m2 => 1,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => 2,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 | U16x2 | S16x2 => 4,
            B64 | U64 | S64 | F64 | F32x2 => 8,
            B128 => 16,
        }
    }

    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub fn float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
    }

    pub fn integer(self) -> bool {
        use Ty::*;
        matches!(self, U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Name(String),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `!p`
    Not(Box<Operand>),
    /// `-x`, for immediates and mma negation.
    Neg(Box<Operand>),
    /// `{a, b, …}`
    Vector(Vec<Operand>),
    /// `[a]`, `[a, {…}]`: the address and what follows it inside the brackets.
    Address(Box<Operand>, Vec<Operand>),
    /// `a+b`
    Sum(Box<Operand>, i64),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`
    List(Vec<Operand>),
    /// `_`
    Sink,
}

/// Where an instruction was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub line: u32,
    pub column: u32,
    /// File index and line of the innermost `.loc`; zero when unknown.
    pub file: u32,
    pub source_line: u32,
    /// Index of the chain of calls it was inlined through; zero for none.
    pub inlined: u32,
}

#[derive(Debug, Clone)]
pub struct Inst {
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
    pub place: Place,
    /// Bytes of the next load that are really used (`.pragma "used_bytes_mask N"`).
    pub used_bytes: Option<u32>,
}

#[derive(Debug, Clone)]
pub enum Init {
    Int(u64),
    F32(u32),
    F64(u64),
    /// The address of a symbol plus an offset, as a generic address or not.
    Symbol {
        name: String,
        offset: i64,
        generic: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Var {
    pub space: Space,
    pub name: String,
    pub align: u32,
    pub ty: Ty,
    /// Total size in bytes; zero for an `extern` array without a length.
    pub bytes: u64,
    pub init: Vec<Init>,
    pub external: bool,
    /// `%p<19>` declares `%p0` … `%p18`.
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Stmt {
    Inst(Inst),
    Label(String),
    Reg {
        name: String,
        ty: Ty,
        count: Option<u32>,
    },
    Var(Var),
    /// `name: .branchtargets a, b;`
    Targets {
        name: String,
        labels: Vec<String>,
    },
    /// `name: .callprototype …;`
    Prototype,
    Open,
    Close,
}

#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub max_threads: Option<[u32; 3]>,
    pub exact_threads: Option<[u32; 3]>,
    pub cluster: Option<[u32; 3]>,
    pub max_registers: Option<u32>,
    /// Blocks that a multiprocessor must be able to hold.
    pub min_blocks: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub entry: bool,
    pub returns: Vec<Var>,
    pub params: Vec<Var>,
    pub body: Option<Vec<Stmt>>,
    pub limits: Limits,
    pub place: Place,
}

#[derive(Debug, Clone, Default)]
pub struct Ast {
    pub version: (u32, u32),
    pub target: String,
    pub files: HashMap<u32, String>,
    /// Chains of call sites, as file and line, innermost first. The first chain is empty.
    pub inlines: Vec<Vec<(u32, u32)>>,
    pub vars: Vec<Var>,
    pub functions: Vec<Function>,
}
