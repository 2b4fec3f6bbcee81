//! The syntax tree to programs: names resolved, every opcode and modifier known or refused.

mod bitfield;
mod compare;
mod context;
mod convert;
mod float;
mod flow;
mod half;
pub mod hopper;
mod integer;
mod link;
pub mod matrix;
pub mod mbarrier;
mod memory;
mod mods;
mod moves;
pub mod program;
mod sync;
pub mod target;
pub mod tensormap;
mod track;
pub mod wmma;

use context::{Context, Res};
use mods::Mods;
use program::*;

use crate::parse::ParseError;
use crate::parse::ast::{Inst, Stmt, Ty};

pub use link::{Image, link};

/// Decodes the statements of one function body.
fn body(c: &mut Context, stmts: &[Stmt]) -> Res<()> {
    // Lists of branch targets may follow their use.
    for s in stmts {
        if let Stmt::Targets { name, labels } = s {
            c.table_labels.insert(name.clone(), labels.clone());
        }
    }
    for s in stmts {
        match s {
            Stmt::Open => c.open(),
            Stmt::Close => c.close(),
            Stmt::Label(name) => {
                let here = c.code.len() as u32;
                let scope = c.path.last().copied().unwrap_or(0);
                if c.labels.insert((scope, name.clone()), here).is_some() {
                    return c.err(format!("label `{name}` is defined twice"));
                }
            }
            Stmt::Reg { name, ty, count } => c.register(name, *ty, *count)?,
            Stmt::Var(v) => link::local_variable(c, v)?,
            Stmt::Targets { .. } | Stmt::Prototype => {}
            Stmt::Inst(inst) => instruction(c, inst)?,
        }
    }
    for fix in std::mem::take(&mut c.fixups) {
        let to = c.label(&fix, &fix.name)?;
        if let Op::Bra { target } = &mut c.code[fix.at].op {
            *target = to;
        }
    }
    for fix in std::mem::take(&mut c.table_fixups) {
        let labels = c.table_labels.get(&fix.name).cloned().unwrap_or_default();
        let table = labels.iter().map(|l| c.label(&fix, l)).collect::<Res<Vec<u32>>>()?;
        if table.is_empty() {
            return Err(ParseError::at(fix.place, format!("the target list `{}` is not defined", fix.name)));
        }
        let index = c.tables.len() as u32;
        c.tables.push(table);
        if let Op::Brx { table, .. } = &mut c.code[fix.at].op {
            *table = index;
        }
    }
    Ok(())
}

fn instruction(c: &mut Context, inst: &Inst) -> Res<()> {
    c.begin(inst)?;
    let mut m = Mods::new(&inst.opcode);
    // The first type named decides the family; it is consumed by the family.
    let peek = inst.opcode.split('.').skip(1).find_map(Ty::parse);
    target::check(c, inst)?;
    family(c, inst, &mut m, peek)?;
    c.reads.clear();
    c.writes.clear();
    match m.left() {
        None => Ok(()),
        Some(left) => c.err(format!("unknown modifier `.{left}` in `{}`", inst.opcode)),
    }
}

fn family(c: &mut Context, inst: &Inst, m: &mut Mods, peek: Option<Ty>) -> Res<()> {
    let name = m.name;
    match name {
        "mov" => return moves::mov(c, inst, m),
        "cvta" => return moves::cvta(c, inst, m),
        "isspacep" => return moves::isspacep(c, inst, m),
        "cvt" => return convert::decode(c, inst, m),
        "ld" | "ldu" | "st" => return memory::load_store(c, inst, m),
        "atom" | "red" => return memory::atomic(c, inst, m),
        "cp" => return memory::cp(c, inst, m),
        "prefetch" | "prefetchu" | "applypriority" | "discard" => return memory::hint(c, inst, m),
        "createpolicy" => return memory::policy(c, inst, m),
        "barrier" if m.has("cluster") => return hopper::cluster(c, inst, m),
        "mapa" | "getctarank" => return hopper::cluster(c, inst, m),
        "mbarrier" => return mbarrier::mbarrier(c, inst, m),
        "wgmma" => return hopper::wgmma(c, inst, m),
        "setmaxnreg" => return hopper::setmaxnreg(c, inst, m),
        "bar" | "barrier" => return sync::bar(c, inst, m),
        "membar" | "fence" => return sync::fence(c, inst, m),
        "shfl" => return sync::shfl(c, inst, m),
        "vote" => return sync::vote(c, inst, m),
        "match" => return sync::matching(c, inst, m),
        "redux" => return sync::redux(c, inst, m),
        "elect" => return sync::elect(c, inst, m),
        "activemask" => return sync::activemask(c, inst, m),
        "ldmatrix" => return matrix::ldmatrix(c, inst, m),
        "stmatrix" => return matrix::stmatrix(c, inst, m),
        "movmatrix" => return matrix::movmatrix(c, inst, m),
        "tensormap" => return tensormap::decode(c, inst, m),
        "mma" => return matrix::mma(c, inst, m),
        "wmma" => return wmma::decode(c, inst, m),
        "bra" => return flow::bra(c, inst, m),
        "brx" => return flow::brx(c, inst, m),
        "call" => return flow::call(c, inst, m),
        "ret" | "exit" => {
            m.has("uni");
            let op = if name == "ret" && !c.entry { Op::Ret } else { Op::Exit };
            c.emit(op, Kind::Control);
            return Ok(());
        }
        "trap" | "brkpt" => {
            c.emit(Op::Trap, Kind::Control);
            return Ok(());
        }
        "nanosleep" => {
            m.ty();
            c.src(&inst.operands.first().cloned().unwrap_or(crate::parse::ast::Operand::Int(0)), Ty::U32)?;
            c.emit(Op::Sleep, Kind::Other);
            return Ok(());
        }
        "pmevent" => {
            m.has("mask");
            c.emit(Op::Hint, Kind::Other);
            return Ok(());
        }
        "griddepcontrol" => {
            m.has("launch_dependents");
            m.has("wait");
            c.needs_sm90 = true;
            c.emit(Op::Hopper(Box::new(hopper::Hopper::GridDependency)), Kind::Other);
            return Ok(());
        }
        _ => {}
    }
    if compare::decode(c, inst, m)?
        || integer::decode(c, inst, m, peek)?
        || float::decode(c, inst, m, peek)?
        || half::decode(c, inst, m, peek)?
    {
        return Ok(());
    }
    c.err(target::reason(&inst.opcode))
}
