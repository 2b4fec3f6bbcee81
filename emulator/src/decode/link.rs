//! Lays out memory and joins a kernel with the functions it reaches.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use super::context::{Context, Res, Symbol};
use super::program::*;
use super::wmma::Wmma;
use crate::parse::ParseError;
use crate::parse::ast::{Ast, Function, Init, Operand, Space, Stmt, Var};

/// Module variables of every process-wide module get their own range, far above ordinary allocations.
static NEXT_MODULE: AtomicU64 = AtomicU64::new(0);
const MODULE_BASE: u64 = 0x00F0_0000_0000_0000;
const MODULE_STRIDE: u64 = 1 << 32;

/// The initial contents of a module's global and constant variables.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub global_base: u64,
    pub global: Vec<u8>,
    pub constant: Vec<u8>,
    /// Name, address, size.
    pub symbols: HashMap<String, (u64, u64)>,
}

pub fn link(ast: &Ast) -> Res<(HashMap<String, Program>, Image)> {
    let base = MODULE_BASE + NEXT_MODULE.fetch_add(1, Ordering::Relaxed) % (1 << 16) * MODULE_STRIDE;
    let mut image = Image { global_base: base, ..Image::default() };
    let mut globals = HashMap::new();
    let mut vars: Vec<&Var> = ast.vars.iter().collect();
    // Function-scope globals and constants live as long as the module.
    for f in &ast.functions {
        for s in f.body.iter().flatten() {
            if let Stmt::Var(v) = s
                && matches!(v.space, Space::Global | Space::Const)
            {
                vars.push(v);
            }
        }
    }
    for v in &vars {
        let (bytes, window) = match v.space {
            Space::Global => (&mut image.global, base),
            Space::Const => (&mut image.constant, 0),
            _ => continue,
        };
        let at = bytes.len().next_multiple_of(v.align.max(1) as usize);
        let end = at as u64 + v.bytes;
        if end > 1 << 30 {
            return Err(ParseError::at(v.place, "module variables exceed 1 GiB"));
        }
        bytes.resize(end as usize, 0);
        let address = window + at as u64;
        image.symbols.insert(v.name.clone(), (address, v.bytes));
        globals.insert(v.name.clone(), Symbol::Fixed { space: v.space, address });
    }
    for v in &vars {
        initialise(v, &mut image, base)?;
    }
    let function_names: HashMap<String, u32> =
        ast.functions.iter().enumerate().filter(|(_, f)| !f.entry).map(|(i, f)| (f.name.clone(), i as u32)).collect();
    let mut programs = HashMap::new();
    let mut seen = BTreeSet::new();
    for (i, f) in ast.functions.iter().enumerate() {
        if f.entry && f.body.is_some() {
            let reached = reach(ast, i, &function_names);
            seen.extend(reached.iter().copied());
            programs.insert(f.name.clone(), program(ast, &reached, &globals, &function_names)?);
        }
    }
    // Functions no kernel calls are checked all the same.
    for (i, f) in ast.functions.iter().enumerate() {
        if !f.entry && f.body.is_some() && !seen.contains(&i) {
            program(ast, &reach(ast, i, &function_names), &globals, &function_names)?;
        }
    }
    Ok((programs, image))
}

fn initialise(v: &Var, image: &mut Image, base: u64) -> Res<()> {
    let Some(&(address, _)) = image.symbols.get(&v.name) else { return Ok(()) };
    let element = v.ty.bytes() as usize;
    let start = if v.space == Space::Global { address - base } else { address } as usize;
    if (v.init.len() * element) as u64 > v.bytes {
        return Err(ParseError::at(v.place, format!("too many initial values for `{}`", v.name)));
    }
    for (i, init) in v.init.iter().enumerate() {
        let value = match init {
            Init::Int(x) => *x,
            Init::F32(b) => u64::from(*b),
            Init::F64(b) if element == 4 => u64::from((f64::from_bits(*b) as f32).to_bits()),
            Init::F64(b) => *b,
            Init::Symbol { name, offset, generic } => {
                let Some(&(a, _)) = image.symbols.get(name) else {
                    return Err(ParseError::at(v.place, format!("`{name}` is not a variable of this module")));
                };
                let tag = if *generic && a < MODULE_BASE { CONST_WINDOW } else { 0 };
                a.wrapping_add(*offset as u64) | tag
            }
        };
        let bytes = if v.space == Space::Global { &mut image.global } else { &mut image.constant };
        let at = start + i * element;
        let n = element.min(8);
        bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
    }
    Ok(())
}

/// The function and all it can call, itself first.
fn reach(ast: &Ast, start: usize, names: &HashMap<String, u32>) -> Vec<usize> {
    let mut order = vec![start];
    let mut next = 0;
    while next < order.len() {
        let f = &ast.functions[order[next]];
        next += 1;
        for s in f.body.iter().flatten() {
            let Stmt::Inst(inst) = s else { continue };
            for o in &inst.operands {
                if let Operand::Name(n) = o
                    && let Some(&g) = names.get(n)
                    && !order.contains(&(g as usize))
                {
                    order.push(g as usize);
                }
            }
        }
    }
    order
}

/// A variable declared inside a function body.
pub(super) fn local_variable(c: &mut Context, v: &Var) -> Res<()> {
    match v.space {
        Space::Local | Space::Param => {
            let offset = c.frame(v.bytes, v.align)?;
            let symbol = Symbol::Frame { offset, bytes: v.bytes as u32, param: v.space == Space::Param };
            c.declare(&v.name, symbol)
        }
        // Shared, global and constant variables were laid out with the module.
        _ => Ok(()),
    }
}

fn program(
    ast: &Ast,
    reached: &[usize],
    globals: &HashMap<String, Symbol>,
    names: &HashMap<String, u32>,
) -> Res<Program> {
    let main = &ast.functions[reached[0]];
    let mut symbols = globals.clone();
    let (static_end, dynamic) = shared_layout(ast, reached, &mut symbols)?;
    let mut param_bytes = 0u64;
    if main.entry {
        for p in &main.params {
            let at = param_bytes.next_multiple_of(u64::from(p.align.max(1)));
            symbols.insert(p.name.clone(), Symbol::Fixed { space: Space::Param, address: at });
            param_bytes = at + p.bytes;
        }
        if param_bytes > 32764 {
            return Err(ParseError::at(main.place, "kernel parameters exceed 32764 bytes"));
        }
    }
    // Functions are numbered in order of reach within the program.
    let local_names: HashMap<String, u32> = names
        .iter()
        .filter_map(|(n, i)| reached.iter().position(|r| *r as u32 == *i).map(|p| (n.clone(), p as u32)))
        .collect();
    let mut out = Program {
        name: main.name.clone(),
        code: Vec::new(),
        deps: Vec::new(),
        places: Vec::new(),
        funcs: Vec::new(),
        tables: Vec::new(),
        limits: main.limits.clone(),
        param_bytes: param_bytes as u32,
        static_shared: static_end,
        dynamic_shared: dynamic,
        shared_granule: 2,
        global_granule: 2,
        communicates: false,
        needs_sm90: false,
        warpgroups: false,
    };
    for &i in reached {
        function(&ast.functions[i], &symbols, &local_names, super::target::parse(&ast.target), &mut out)?;
    }
    classify(&mut out);
    super::track::analyse(&mut out);
    super::track::watch(&mut out);
    Ok(out)
}

fn shared_layout(ast: &Ast, reached: &[usize], symbols: &mut HashMap<String, Symbol>) -> Res<(u32, u32)> {
    let mut end = u64::from(SHARED_START);
    let mut dynamic_align = 16u32;
    let mut dynamic = Vec::new();
    let inner = reached.iter().flat_map(|&i| ast.functions[i].body.iter().flatten()).filter_map(|s| match s {
        Stmt::Var(v) => Some(v),
        _ => None,
    });
    for v in ast.vars.iter().chain(inner).filter(|v| v.space == Space::Shared) {
        if v.external && v.bytes == 0 {
            dynamic_align = dynamic_align.max(v.align);
            dynamic.push(v.name.clone());
            continue;
        }
        end = end.next_multiple_of(u64::from(v.align.max(1)));
        symbols.insert(v.name.clone(), Symbol::Fixed { space: Space::Shared, address: end });
        end += v.bytes;
        if end > 1 << 24 {
            return Err(ParseError::at(v.place, "static shared memory exceeds 16 MiB"));
        }
    }
    let start = end.next_multiple_of(u64::from(dynamic_align));
    for name in dynamic {
        symbols.insert(name, Symbol::Fixed { space: Space::Shared, address: start });
    }
    Ok((end as u32, start as u32))
}

fn function(
    f: &Function,
    symbols: &HashMap<String, Symbol>,
    names: &HashMap<String, u32>,
    target: super::target::Target,
    out: &mut Program,
) -> Res<()> {
    let mut c = Context::new(symbols, names, f.entry, target);
    let frame_vars = |c: &mut Context, vars: &[Var]| -> Res<Vec<(u32, u32)>> {
        let mut list = Vec::new();
        for v in vars {
            let offset = c.frame(v.bytes, v.align)?;
            c.declare(&v.name, Symbol::Frame { offset, bytes: v.bytes as u32, param: true })?;
            list.push((offset, v.bytes as u32));
        }
        Ok(list)
    };
    let (mut params, mut returns) = (Vec::new(), Vec::new());
    if !f.entry {
        params = frame_vars(&mut c, &f.params)?;
        returns = frame_vars(&mut c, &f.returns)?;
    }
    match &f.body {
        Some(stmts) => super::body(&mut c, stmts)?,
        None if matches!(f.name.as_str(), "vprintf" | "__assertfail") => {}
        None => return Err(ParseError::at(f.place, format!("the function `{}` has no body", f.name))),
    }
    // Control that runs off the end returns.
    c.begin(&crate::parse::ast::Inst {
        guard: None,
        opcode: String::new(),
        operands: Vec::new(),
        place: c.places.last().copied().unwrap_or(f.place),
        used_bytes: None,
    })?;
    c.emit(if f.entry { Op::Exit } else { Op::Ret }, Kind::Control);
    let start = out.code.len() as u32;
    let first_table = out.tables.len() as u32;
    for i in &mut c.code {
        match &mut i.op {
            Op::Bra { target } => *target += start,
            Op::Brx { table, .. } => *table += first_table,
            _ => {}
        }
    }
    out.tables.extend(c.tables.iter().map(|t| t.iter().map(|x| x + start).collect()));
    let frame_bytes = c.frame_bytes.next_multiple_of(16);
    out.needs_sm90 |= c.needs_sm90;
    out.code.append(&mut c.code);
    out.deps.append(&mut c.deps);
    out.places.append(&mut c.places);
    c.names.sort();
    out.funcs.push(Func {
        name: f.name.clone(),
        start,
        end: out.code.len() as u32,
        template: c.template,
        tracked: Vec::new(),
        names: c.names,
        frame_bytes,
        params,
        returns,
    });
    Ok(())
}

/// Finds the smallest shared and global access, and whether blocks can exchange data.
fn classify(p: &mut Program) {
    let mut smallest = [16u32; 2];
    let mut note = |space: Space, bytes: u32| {
        if matches!(space, Space::Shared | Space::Generic) {
            smallest[0] = smallest[0].min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic) {
            smallest[1] = smallest[1].min(bytes);
        }
    };
    let mut communicates = false;
    p.warpgroups =
        p.code.iter().any(|i| matches!(&i.op, Op::Hopper(h) if matches!(**h, super::hopper::Hopper::Wgmma(_))));
    for i in &p.code {
        match &i.op {
            Op::Ld(m) | Op::St(m) => {
                note(m.space, u32::from(m.elem) * u32::from(m.count));
                communicates |= m.order.strong && matches!(m.space, Space::Global | Space::Generic);
            }
            Op::Atom(a) => {
                note(a.space, a.ty.bytes());
                let commutes = !a.ty.float()
                    && a.ty.bytes() >= 4
                    && a.a.len() == 1
                    && !matches!(a.ty, crate::parse::ast::Ty::F16x2 | crate::parse::ast::Ty::Bf16x2)
                    && !matches!(a.op, AtomOp::Exch | AtomOp::Cas | AtomOp::Inc | AtomOp::Dec);
                let unordered = a.d.is_empty() && commutes;
                communicates |= !unordered && a.space != Space::Shared;
            }
            Op::CpAsync { bytes, .. } => {
                note(Space::Generic, u32::from(*bytes));
            }
            Op::Wmma(w) => {
                if let Wmma::Load { fragment, space, .. } | Wmma::Store { fragment, space, .. } = &**w {
                    note(*space, fragment.bits.max(8) as u32 / 8);
                }
            }
            Op::Hopper(h) => {
                if let super::hopper::Hopper::AsyncStore { ty, values, .. } = &**h {
                    note(Space::Shared, ty.bytes() * values.len() as u32);
                }
            }
            Op::Fence(Fence::Gpu) => communicates = true,
            _ => {}
        }
    }
    p.communicates = communicates;
    p.shared_granule = smallest[0].trailing_zeros();
    p.global_granule = smallest[1].trailing_zeros();
}
