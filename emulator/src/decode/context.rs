//! Names to planes and addresses while one function is decoded.

use std::collections::HashMap;

use super::program::*;
use crate::exec::lanes::{AluFn, Args, LANES, Plane};
use crate::parse::ParseError;
use crate::parse::ast::{Inst, Operand, Place, Space, Ty};

pub type Res<T> = Result<T, ParseError>;

/// What a name means.
#[derive(Debug, Clone)]
pub enum Symbol {
    Reg {
        plane: u32,
        ty: Ty,
    },
    /// A module variable or kernel parameter: space and address within it.
    Fixed {
        space: Space,
        address: u64,
    },
    /// Something in the frame: local variable, call parameter, function parameter or result.
    Frame {
        offset: u32,
        bytes: u32,
        param: bool,
    },
    Function(u32),
}

/// Registers as declared: `%r<45>` is one entry, not forty-five.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub names: HashMap<String, Symbol>,
    pub families: HashMap<String, (Ty, u32)>,
}

/// A branch or table waiting for its labels.
#[derive(Debug, Clone)]
pub struct Fixup {
    pub at: usize,
    pub name: String,
    pub place: Place,
    pub path: Vec<u32>,
}

/// The decoder of one function.
pub struct Context<'a> {
    pub globals: &'a HashMap<String, Symbol>,
    pub entry: bool,
    pub scopes: Vec<Scope>,
    pub template: Vec<Plane>,
    pub names: Vec<(u32, String)>,
    constants: HashMap<(u64, u8), u32>,
    pub frame_bytes: u32,
    pub code: Vec<Instr>,
    pub deps: Vec<Deps>,
    pub places: Vec<Place>,
    /// Labels are scoped as registers are: inline assembly repeats them.
    pub labels: HashMap<(u32, String), u32>,
    pub path: Vec<u32>,
    pub next_scope: u32,
    /// Branches waiting for their label: index of the instruction, name.
    pub fixups: Vec<Fixup>,
    pub tables: Vec<Vec<u32>>,
    pub table_labels: HashMap<String, Vec<String>>,
    pub table_fixups: Vec<Fixup>,
    pub function_names: &'a HashMap<String, u32>,
    pub needs_sm90: bool,
    /// What the module was compiled for.
    pub target: super::target::Target,
    pub reads: Vec<u32>,
    pub writes: Vec<u32>,
    guard: (u32, bool),
    place: Place,
    pub cc: u32,
}

impl<'a> Context<'a> {
    pub fn new(
        globals: &'a HashMap<String, Symbol>,
        function_names: &'a HashMap<String, u32>,
        entry: bool,
        target: super::target::Target,
    ) -> Self {
        let mut c = Context {
            globals,
            entry,
            scopes: vec![Scope::default()],
            template: Vec::new(),
            names: Vec::new(),
            constants: HashMap::new(),
            frame_bytes: 0,
            code: Vec::new(),
            deps: Vec::new(),
            places: Vec::new(),
            labels: HashMap::new(),
            path: vec![0],
            next_scope: 1,
            fixups: Vec::new(),
            tables: Vec::new(),
            table_labels: HashMap::new(),
            table_fixups: Vec::new(),
            function_names,
            needs_sm90: false,
            target,
            reads: Vec::new(),
            writes: Vec::new(),
            guard: (NONE, false),
            place: Place::default(),
            cc: 0,
        };
        c.cc = c.planes(1);
        c
    }

    pub fn err<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(ParseError::at(self.place, message))
    }

    pub fn begin(&mut self, inst: &Inst) -> Res<()> {
        self.place = inst.place;
        self.guard = (NONE, false);
        if let Some((name, negated)) = &inst.guard {
            let p = self.pred_name(name)?;
            self.guard = (p, *negated);
        }
        Ok(())
    }

    pub fn planes(&mut self, n: u32) -> u32 {
        let at = self.template.len() as u32;
        self.template.resize(self.template.len() + n as usize, [0; LANES]);
        at
    }

    pub fn frame(&mut self, bytes: u64, align: u32) -> Res<u32> {
        let at = u64::from(self.frame_bytes).next_multiple_of(u64::from(align.max(1)));
        let end = at + bytes;
        if end > 1 << 20 {
            return self.err("more than 1 MiB of local memory in one function");
        }
        self.frame_bytes = end as u32;
        Ok(at as u32)
    }

    pub fn open(&mut self) {
        self.scopes.push(Scope::default());
        self.path.push(self.next_scope);
        self.next_scope += 1;
    }

    pub fn close(&mut self) {
        self.scopes.pop();
        self.path.pop();
    }

    pub fn fixup(&self, name: String) -> Fixup {
        Fixup { at: self.code.len(), name, place: self.place, path: self.path.clone() }
    }

    /// The position of a label as seen from a scope: innermost first.
    pub fn label(&self, fix: &Fixup, name: &str) -> Res<u32> {
        for &scope in fix.path.iter().rev() {
            if let Some(&at) = self.labels.get(&(scope, name.to_string())) {
                return Ok(at);
            }
        }
        Err(ParseError::at(fix.place, format!("label `{name}` is not defined")))
    }

    pub fn declare(&mut self, name: &str, symbol: Symbol) -> Res<()> {
        let scope = self.scopes.last_mut().expect("a function has at least one scope");
        if scope.names.insert(name.to_string(), symbol).is_some() {
            return self.err(format!("`{name}` is declared twice"));
        }
        Ok(())
    }

    pub fn register(&mut self, name: &str, ty: Ty, count: Option<u32>) -> Res<()> {
        if self.template.len() > 1 << 17 {
            return self.err("too many registers");
        }
        match count {
            None => {
                let plane = self.new_register(name, ty);
                self.declare(name, Symbol::Reg { plane, ty })
            }
            Some(n) => {
                let scope = self.scopes.last_mut().expect("a function has at least one scope");
                scope.families.insert(name.to_string(), (ty, n));
                Ok(())
            }
        }
    }

    fn new_register(&mut self, name: &str, ty: Ty) -> u32 {
        let plane = self.planes(planes_of(ty));
        self.names.push((plane, name.to_string()));
        plane
    }

    pub fn lookup(&mut self, name: &str) -> Option<Symbol> {
        for s in (0..self.scopes.len()).rev() {
            if let Some(sym) = self.scopes[s].names.get(name) {
                return Some(sym.clone());
            }
            // `%r12` of the family `%r`, made at its first use.
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            if stem.len() < name.len()
                && let Some(&(ty, n)) = self.scopes[s].families.get(stem)
                && let Ok(i) = name[stem.len()..].parse::<u32>()
                && i < n
            {
                let plane = self.new_register(name, ty);
                let sym = Symbol::Reg { plane, ty };
                self.scopes[s].names.insert(name.to_string(), sym.clone());
                return Some(sym);
            }
        }
        if let Some(&f) = self.function_names.get(name) {
            return Some(Symbol::Function(f));
        }
        self.globals.get(name).cloned()
    }

    fn reg(&mut self, name: &str) -> Res<(u32, Ty)> {
        match self.lookup(name) {
            Some(Symbol::Reg { plane, ty }) => Ok((plane, ty)),
            Some(_) => self.err(format!("`{name}` is not a register")),
            None => self.err(format!("`{name}` is not declared")),
        }
    }

    pub fn pred_name(&mut self, name: &str) -> Res<u32> {
        let (plane, ty) = self.reg(name)?;
        if ty != Ty::Pred {
            return self.err(format!("`{name}` is not a predicate"));
        }
        self.reads.push(plane);
        Ok(plane)
    }

    pub fn constant(&mut self, value: u64, planes: u8) -> u32 {
        if let Some(&p) = self.constants.get(&(value, planes)) {
            return p;
        }
        let at = self.planes(u32::from(planes));
        self.template[at as usize] = [value as u32; LANES];
        if planes >= 2 {
            self.template[at as usize + 1] = [(value >> 32) as u32; LANES];
        }
        self.constants.insert((value, planes), at);
        at
    }

    /// A source operand of a type.
    pub fn src(&mut self, op: &Operand, ty: Ty) -> Res<u32> {
        let planes = planes_of(ty) as u8;
        match op {
            Operand::Name(name) => {
                if let Some(special) = special_register(name) {
                    let d = self.planes(2);
                    self.part(Op::Special { d, which: special, planes }, Kind::Move);
                    return Ok(d);
                }
                if name == "WARP_SZ" {
                    return Ok(self.constant(32, planes));
                }
                match self.lookup(name) {
                    Some(Symbol::Reg { plane, ty: declared }) => {
                        if (declared == Ty::Pred) != (ty == Ty::Pred) || planes_of(declared) < u32::from(planes) {
                            return self.err(format!("`{name}` is .{declared:?}, the instruction wants .{ty:?}"));
                        }
                        self.reads.push(plane);
                        if planes_of(declared) >= 2 && planes >= 2 {
                            self.reads.push(plane + 1);
                        }
                        Ok(plane)
                    }
                    Some(_) if ty == Ty::Pred => self.err(format!("`{name}` is not a predicate")),
                    Some(_) => self.symbol_address(op, planes),
                    None => self.err(format!("`{name}` is not declared")),
                }
            }
            Operand::Sum(..) => self.symbol_address(op, planes),
            Operand::Int(v) => {
                if ty == Ty::Pred {
                    return Ok(self.constant(if *v != 0 { u64::from(u32::MAX) } else { 0 }, 1));
                }
                let v = match ty {
                    Ty::F32 | Ty::Tf32 => u64::from((*v as i64 as f32).to_bits()),
                    Ty::F64 => (*v as i64 as f64).to_bits(),
                    _ => *v,
                };
                Ok(self.constant(v, planes))
            }
            Operand::F32(bits) => match ty {
                Ty::F32 | Ty::B32 | Ty::Tf32 | Ty::U32 | Ty::S32 => Ok(self.constant(u64::from(*bits), 1)),
                Ty::F64 => Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits(), 2)),
                _ => self.err("a 32-bit float literal does not fit this operand"),
            },
            Operand::F64(bits) => match ty {
                Ty::F64 | Ty::B64 => Ok(self.constant(*bits, 2)),
                Ty::F32 | Ty::B32 => Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), 1)),
                _ => self.err("a 64-bit float literal does not fit this operand"),
            },
            Operand::Not(inner) if ty == Ty::Pred => {
                let p = self.src(inner, Ty::Pred)?;
                let d = self.planes(1);
                let f: AluFn = |p, x, active| p.set_mask(x.d[0], !p.mask(x.s[0]), active);
                self.part(Op::Alu { f, x: Args { d: [d, 0], s: [p, 0, 0, 0], imm: 0 } }, Kind::Compare);
                self.note_part(&[p], &[d]);
                Ok(d)
            }
            _ => self.err("this operand is not a value"),
        }
    }

    /// The address of a variable as a value.
    fn symbol_address(&mut self, op: &Operand, planes: u8) -> Res<u32> {
        let (name, offset) = match op {
            Operand::Name(n) => (n.as_str(), 0),
            Operand::Sum(base, offset) => match &**base {
                Operand::Name(n) => (n.as_str(), *offset),
                Operand::Int(v) => return Ok(self.constant(v.wrapping_add(*offset as u64), planes)),
                _ => return self.err("this operand is not a value"),
            },
            _ => return self.err("this operand is not a value"),
        };
        match self.lookup(name) {
            Some(Symbol::Fixed { address, .. }) => Ok(self.constant(address.wrapping_add(offset as u64), planes)),
            Some(Symbol::Frame { offset: at, .. }) => {
                let d = self.planes(2);
                let offset = (i64::from(at) + offset) as u32;
                self.part(Op::FrameAddress { d, offset }, Kind::Move);
                Ok(d)
            }
            Some(Symbol::Function(f)) => {
                let d = self.planes(2);
                self.part(Op::FunctionAddress { d, function: f }, Kind::Move);
                Ok(d)
            }
            Some(Symbol::Reg { .. }) => self.err(format!("`{name}` is a register, not a variable")),
            None => self.err(format!("`{name}` is not declared")),
        }
    }

    /// A destination register that holds values of a type; a sink gets a plane nobody reads.
    pub fn dst(&mut self, op: &Operand, ty: Ty) -> Res<u32> {
        match op {
            Operand::Sink => Ok(self.planes(planes_of(ty).max(2))),
            Operand::Name(name) => {
                let (plane, declared) = self.reg(name)?;
                if (declared == Ty::Pred) != (ty == Ty::Pred) || planes_of(declared) < planes_of(ty) {
                    return self.err(format!("`{name}` is .{declared:?}, the result is .{ty:?}"));
                }
                self.writes.push(plane);
                for i in 1..planes_of(declared) {
                    self.writes.push(plane + i);
                }
                Ok(plane)
            }
            _ => self.err("this operand cannot be written"),
        }
    }

    /// Planes of a destination as declared, which may be wider than the instruction's type.
    pub fn declared_planes(&mut self, op: &Operand) -> u32 {
        match op {
            Operand::Name(name) => match self.lookup(name) {
                Some(Symbol::Reg { ty, .. }) => planes_of(ty),
                _ => 1,
            },
            _ => 1,
        }
    }

    /// The address operand `[…]`, with the space it names if it names a variable.
    pub fn address(&mut self, op: &Operand) -> Res<(Addr, Option<Symbol>)> {
        let Operand::Address(inner, rest) = op else {
            return self.err("expected an address in brackets");
        };
        if !rest.is_empty() {
            return self.err("unexpected coordinates in this address");
        }
        self.address_of(&inner.clone())
    }

    pub fn address_of(&mut self, inner: &Operand) -> Res<(Addr, Option<Symbol>)> {
        let (base, offset) = match inner {
            Operand::Sum(b, o) => ((**b).clone(), *o),
            other => (other.clone(), 0),
        };
        match base {
            Operand::Name(name) => match self.lookup(&name) {
                Some(Symbol::Reg { plane, ty }) => {
                    let n = planes_of(ty);
                    if ty == Ty::Pred || n > 2 || ty.bytes() < 4 {
                        return self.err(format!("`{name}` cannot hold an address"));
                    }
                    self.reads.push(plane);
                    if n == 2 {
                        self.reads.push(plane + 1);
                    }
                    Ok((Addr { base: plane, wide: n == 2, offset, frame: false }, None))
                }
                Some(s @ Symbol::Fixed { address, .. }) => {
                    let offset = (address as i64).wrapping_add(offset);
                    Ok((Addr { base: NONE, wide: true, offset, frame: false }, Some(s)))
                }
                Some(s @ Symbol::Frame { offset: at, .. }) => Ok((
                    Addr { base: NONE, wide: true, offset: i64::from(at).wrapping_add(offset), frame: true },
                    Some(s),
                )),
                _ => self.err(format!("`{name}` is not an address")),
            },
            Operand::Int(v) => {
                Ok((Addr { base: NONE, wide: true, offset: (v as i64).wrapping_add(offset), frame: false }, None))
            }
            _ => self.err("this operand is not an address"),
        }
    }

    /// Emits the instruction.
    pub fn emit(&mut self, op: Op, kind: Kind) {
        let deps = Deps { reads: std::mem::take(&mut self.reads), writes: std::mem::take(&mut self.writes) };
        self.push(op, kind, false, deps);
    }

    /// Emits a helper that is part of the instruction and runs unguarded.
    pub fn part(&mut self, op: Op, kind: Kind) {
        let d = match &op {
            Op::Special { d, .. } | Op::FrameAddress { d, .. } | Op::FunctionAddress { d, .. } => vec![*d, *d + 1],
            _ => Vec::new(),
        };
        let guard = std::mem::replace(&mut self.guard, (NONE, false));
        self.push(op, kind, true, Deps { reads: Vec::new(), writes: d });
        self.guard = guard;
    }

    pub fn note_part(&mut self, reads: &[u32], writes: &[u32]) {
        if let Some(d) = self.deps.last_mut() {
            d.reads.extend_from_slice(reads);
            d.writes.extend_from_slice(writes);
        }
    }

    fn push(&mut self, op: Op, kind: Kind, part: bool, deps: Deps) {
        self.code.push(Instr {
            op,
            guard: self.guard.0,
            guard_negated: self.guard.1,
            kind,
            part,
            track: true,
            watched: false,
        });
        self.deps.push(deps);
        self.places.push(self.place);
    }

    pub fn alu(&mut self, f: AluFn, d: &[u32], s: &[u32], imm: u32, kind: Kind) {
        let mut x = Args { imm, ..Args::default() };
        x.d[..d.len()].copy_from_slice(d);
        x.s[..s.len()].copy_from_slice(s);
        self.emit(Op::Alu { f, x }, kind);
    }
}

pub fn planes_of(ty: Ty) -> u32 {
    match ty.bytes() {
        0..=4 => 1,
        8 => 2,
        _ => 4,
    }
}

fn axis(name: &str) -> Option<u8> {
    match name {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    }
}

pub fn special_register(name: &str) -> Option<Special> {
    let name = name.strip_prefix('%')?;
    if let Some((stem, dim)) = name.split_once('.') {
        let a = axis(dim)?;
        return Some(match stem {
            "tid" => Special::Tid(a),
            "ntid" => Special::Ntid(a),
            "ctaid" => Special::Ctaid(a),
            "nctaid" => Special::Nctaid(a),
            "clusterid" => Special::ClusterId(a),
            "nclusterid" => Special::NClusterId(a),
            "cluster_ctaid" => Special::ClusterCtaId(a),
            "cluster_nctaid" => Special::ClusterNCtaId(a),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::LaneId,
        "warpid" => Special::WarpId,
        "nwarpid" => Special::NWarpId,
        "smid" => Special::SmId,
        "nsmid" => Special::NSmId,
        "gridid" => Special::GridId,
        "lanemask_eq" => Special::LaneMaskEq,
        "lanemask_le" => Special::LaneMaskLe,
        "lanemask_lt" => Special::LaneMaskLt,
        "lanemask_ge" => Special::LaneMaskGe,
        "lanemask_gt" => Special::LaneMaskGt,
        "clock" => Special::Clock,
        "clock_hi" => Special::ClockHi,
        "clock64" => Special::Clock64,
        "globaltimer" => Special::GlobalTimer,
        "globaltimer_lo" => Special::GlobalTimerLo,
        "globaltimer_hi" => Special::GlobalTimerHi,
        "dynamic_smem_size" => Special::DynamicSmem,
        "total_smem_size" => Special::TotalSmem,
        "cluster_ctarank" => Special::ClusterCtaRank,
        "cluster_nctarank" => Special::ClusterNCtaRank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        "reserved_smem_offset_begin" | "reserved_smem_offset_0" | "reserved_smem_offset_1" => Special::Fixed(0),
        "reserved_smem_offset_end" | "reserved_smem_offset_cap" => Special::Fixed(SHARED_START),
        _ => return None,
    })
}
