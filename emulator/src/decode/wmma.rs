//! `wmma`: matrices as fragments whose layout is the machine's own affair.

use super::context::{Context, Res};
use super::matrix::{elem, elem_bits, shape};
use super::mods::Mods;
use super::moves::space_of;
use super::program::*;
use crate::numerics::format::Rnd;
use crate::parse::ast::{Inst, Operand, Space, Ty};

/// A fragment: `rows` × `cols` elements of `bits` bits in these registers.
#[derive(Debug, Clone)]
pub struct Fragment {
    pub rows: usize,
    pub cols: usize,
    pub bits: usize,
    pub regs: Vec<u32>,
}

#[derive(Debug, Clone)]
pub enum Wmma {
    Load {
        fragment: Fragment,
        row: bool,
        space: Space,
        addr: Addr,
        stride: u32,
    },
    Store {
        fragment: Fragment,
        row: bool,
        space: Space,
        addr: Addr,
        stride: u32,
    },
    Multiply {
        d: Fragment,
        a: Fragment,
        b: Fragment,
        c: Fragment,
        elem: Elem,
        d_acc: Acc,
        c_acc: Acc,
        satfinite: bool,
        xor: bool,
        rnd: Rnd,
    },
}

type Shape = (usize, usize, usize);

fn list(op: &Operand) -> Vec<Operand> {
    match op {
        Operand::Vector(v) => v.clone(),
        o => vec![o.clone()],
    }
}

fn acc_bits(acc: &str) -> Option<(Acc, usize)> {
    Some(match acc {
        "f32" => (Acc::F32, 32),
        "f16" => (Acc::F16, 16),
        "s32" => (Acc::S32, 32),
        "f64" => (Acc::F64, 64),
        _ => return None,
    })
}

fn multiplicand_legal(e: Elem, s: Shape) -> bool {
    match e {
        Elem::F16 | Elem::Bf16 | Elem::S8 | Elem::U8 => matches!(s, (16, 16, 16) | (8, 32, 16) | (32, 8, 16)),
        Elem::Tf32 => s == (16, 16, 8),
        Elem::F64 => s == (8, 8, 4),
        Elem::S4 | Elem::U4 => s == (8, 8, 32),
        Elem::B1 => s == (8, 8, 128),
        _ => false,
    }
}

fn accumulator_legal(acc: Acc, s: Shape) -> bool {
    match acc {
        Acc::F16 => matches!(s, (16, 16, 16) | (8, 32, 16) | (32, 8, 16)),
        Acc::F32 => matches!(s, (16, 16, 16) | (8, 32, 16) | (32, 8, 16) | (16, 16, 8)),
        Acc::S32 => matches!(s, (16, 16, 16) | (8, 32, 16) | (32, 8, 16) | (8, 8, 32) | (8, 8, 128)),
        Acc::F64 => s == (8, 8, 4),
    }
}

/// The registers of a fragment. Matrices A and B of f16 fill eight, whatever their size.
fn fragment(
    c: &mut Context,
    op: &Operand,
    (rows, cols): (usize, usize),
    bits: usize,
    wide16: bool,
    load: bool,
) -> Res<Fragment> {
    let reg_bits = if bits == 64 { 64 } else { 32 };
    let want = if wide16 { 8 } else { rows * cols * bits / 32 / reg_bits };
    let regs = list(op);
    if regs.len() != want {
        return c.err(format!("this fragment takes {want} registers, found {}", regs.len()));
    }
    let ty = if bits == 64 { Ty::F64 } else { Ty::B32 };
    let regs = regs.iter().map(|r| if load { c.dst(r, ty) } else { c.src(r, ty) }).collect::<Res<Vec<u32>>>()?;
    Ok(Fragment { rows, cols, bits, regs })
}

pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let refuse = |c: &Context| c.err(format!("`{}` does not exist in this form", inst.opcode));
    let (load, store, multiply) = (m.has("load"), m.has("store"), m.has("mma"));
    if !(m.has("sync") & m.has("aligned")) {
        return refuse(c);
    }
    if multiply {
        return product(c, inst, m);
    }
    let named = space_of(m);
    let mut which = None;
    let (mut row, mut s, mut kind) = (None, None, None);
    while let Some(p) = m.next() {
        match p {
            "a" | "b" | "c" | "d" => which = Some(p),
            "row" | "col" => row = Some(p == "row"),
            p if shape(p).is_some() => s = shape(p),
            p => kind = Some(p),
        }
    }
    let (Some(which), Some(row), Some(s), Some(kind)) = (which, row, s, kind) else { return refuse(c) };
    let multiplicand = matches!(which, "a" | "b");
    let bits = if multiplicand {
        elem(kind).filter(|e| multiplicand_legal(*e, s)).map(elem_bits)
    } else {
        acc_bits(kind).filter(|a| accumulator_legal(a.0, s)).map(|a| a.1)
    };
    let dims = match which {
        "a" => (s.0, s.2),
        "b" => (s.2, s.1),
        _ => (s.0, s.1),
    };
    let Some(bits) = bits else { return refuse(c) };
    // Bits and nibbles lie along k.
    if (bits < 8 && row != (which == "a")) || store == load || store != (which == "d") {
        return refuse(c);
    }
    let (value, address) = (usize::from(store), usize::from(load));
    if !(2..=3).contains(&inst.operands.len()) {
        return refuse(c);
    }
    let (addr, symbol) = c.address(&inst.operands[address])?;
    let space = super::memory::settle(c, named, addr, symbol.as_ref())?;
    if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return c.err("matrices live in global or shared memory");
    }
    let stride = match inst.operands.get(2) {
        Some(o) => c.src(o, Ty::U32)?,
        None => {
            let default = if row { dims.1 } else { dims.0 };
            c.constant(default as u64, 1)
        }
    };
    let fragment = fragment(c, &inst.operands[value], dims, bits, kind == "f16" && multiplicand, load)?;
    let (op, kind) = match (load, space == Space::Shared) {
        (true, true) => (Wmma::Load { fragment, row, space, addr, stride }, Kind::LoadShared),
        (true, false) => (Wmma::Load { fragment, row, space, addr, stride }, Kind::LoadGlobal),
        (false, true) => (Wmma::Store { fragment, row, space, addr, stride }, Kind::StoreShared),
        (false, false) => (Wmma::Store { fragment, row, space, addr, stride }, Kind::StoreGlobal),
    };
    c.emit(Op::Wmma(Box::new(op)), kind);
    Ok(())
}

fn product(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let refuse = |c: &Context| c.err(format!("`{}` does not exist in this form", inst.opcode));
    let satfinite = m.has("satfinite");
    let (xor, and, popc) = (m.has("xor"), m.has("and"), m.has("popc"));
    let rnd = m.rnd();
    let mut layouts = Vec::new();
    let (mut s, mut types) = (None, Vec::new());
    while let Some(p) = m.next() {
        match p {
            "row" | "col" => layouts.push(p),
            p if shape(p).is_some() => s = shape(p),
            p => types.push(p),
        }
    }
    let (d_name, a_name, b_name, c_name) = match types[..] {
        [d, c] => (d, "f16", "f16", c),
        [d, a, b, c] => (d, a, b, c),
        _ => return refuse(c),
    };
    let (Some(s), Some(e), Some((d_acc, d_bits)), Some((c_acc, c_bits))) =
        (s, elem(a_name), acc_bits(d_name), acc_bits(c_name))
    else {
        return refuse(c);
    };
    let float = |a| matches!(a, Acc::F16 | Acc::F32);
    let accumulators = match e {
        Elem::F16 => float(d_acc) && float(c_acc),
        Elem::Bf16 | Elem::Tf32 => (d_acc, c_acc) == (Acc::F32, Acc::F32),
        Elem::F64 => (d_acc, c_acc) == (Acc::F64, Acc::F64),
        _ => (d_acc, c_acc) == (Acc::S32, Acc::S32),
    };
    let small = elem_bits(e) < 8;
    let bitwise = if e == Elem::B1 { xor != and && popc } else { !xor && !and && !popc };
    if a_name != b_name
        || !multiplicand_legal(e, s)
        || !accumulators
        || !bitwise
        || layouts.len() != 2
        || (small && layouts != ["row", "col"])
        || (satfinite && d_acc != Acc::S32)
        || (rnd.is_some() && e != Elem::F64)
        || inst.operands.len() != 4
    {
        return refuse(c);
    }
    let (bits, wide16) = (elem_bits(e), e == Elem::F16);
    let a = fragment(c, &inst.operands[1], (s.0, s.2), bits, wide16, false)?;
    let b = fragment(c, &inst.operands[2], (s.2, s.1), bits, wide16, false)?;
    let cc = fragment(c, &inst.operands[3], (s.0, s.1), c_bits, false, false)?;
    let d = fragment(c, &inst.operands[0], (s.0, s.1), d_bits, false, true)?;
    let rnd = rnd.unwrap_or(Rnd::Near);
    let op = Wmma::Multiply { d, a, b, c: cc, elem: e, d_acc, c_acc, satfinite, xor, rnd };
    c.emit(Op::Wmma(Box::new(op)), Kind::Matrix);
    Ok(())
}
