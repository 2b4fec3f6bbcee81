//! Branches, calls and the end of a thread.

use super::context::{Context, Res, Symbol};
use super::integer::arity;
use super::mods::Mods;
use super::program::*;
use crate::parse::ast::{Inst, Operand, Ty};

fn label(c: &Context, op: &Operand) -> Res<String> {
    match op {
        Operand::Name(n) => Ok(n.clone()),
        _ => c.err("expected a label"),
    }
}

pub fn bra(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("uni");
    arity(c, inst, 1)?;
    let target = label(c, &inst.operands[0])?;
    let fix = c.fixup(target);
    c.fixups.push(fix);
    c.emit(Op::Bra { target: 0 }, Kind::Control);
    Ok(())
}

pub fn brx(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("uni");
    if !m.has("idx") {
        return c.err(format!("`{}` is not supported", inst.opcode));
    }
    arity(c, inst, 2)?;
    let index = c.src(&inst.operands[0], Ty::U32)?;
    let list = label(c, &inst.operands[1])?;
    let fix = c.fixup(list);
    c.table_fixups.push(fix);
    c.emit(Op::Brx { index, table: 0 }, Kind::Control);
    Ok(())
}

fn frame_list(c: &mut Context, op: &Operand) -> Res<Vec<(u32, u32)>> {
    let Operand::List(items) = op else {
        return c.err("expected a list of parameters");
    };
    let mut out = Vec::new();
    for i in items {
        let symbol = match i {
            Operand::Name(n) => c.lookup(n),
            _ => None,
        };
        match symbol {
            Some(Symbol::Frame { offset, bytes, param: true }) => out.push((offset, bytes)),
            _ => return c.err("only `.param` variables can be passed to a call"),
        }
    }
    Ok(out)
}

pub fn call(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("uni");
    let mut ops = inst.operands.as_slice();
    let mut results = Vec::new();
    if let Some(first @ Operand::List(_)) = ops.first() {
        results = frame_list(c, first)?;
        ops = &ops[1..];
    }
    let Some(Operand::Name(name)) = ops.first() else {
        return c.err("expected the function to call");
    };
    let mut args = Vec::new();
    if let Some(list @ Operand::List(_)) = ops.get(1) {
        args = frame_list(c, list)?;
    }
    let builtin = match name.as_str() {
        "vprintf" => Some(Builtin::Printf),
        "__assertfail" => Some(Builtin::AssertFail),
        _ => None,
    };
    let mut site = CallSite { function: NONE, pointer: NONE, args, results, builtin };
    if builtin.is_none() {
        match c.lookup(name) {
            Some(Symbol::Function(f)) => site.function = f,
            Some(Symbol::Reg { .. }) => site.pointer = c.src(&ops[0], Ty::U64)?,
            _ => return c.err(format!("the function `{name}` is not defined in this module")),
        }
    }
    c.emit(Op::Call(Box::new(site)), Kind::Control);
    Ok(())
}
