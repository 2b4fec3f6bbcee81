//! The least architecture that an instruction needs, and why others are refused.

use super::context::{Context, Res};
use crate::parse::ast::{Inst, Operand};

/// An architecture: its number, and whether its own features (the `a` of `sm_90a`) are needed.
pub type Target = (u32, bool);

/// Reads `sm_90a`.
pub fn parse(name: &str) -> Target {
    let digits: String = name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    (digits.parse().unwrap_or(0), name.ends_with('a'))
}

/// What an instruction needs beyond sm_80.
fn needed(inst: &Inst) -> Target {
    let mut parts = inst.opcode.split('.');
    let name = parts.next().unwrap_or("");
    let parts: Vec<&str> = parts.collect();
    let has = |p: &str| parts.contains(&p);
    let any = |list: &[&str]| list.iter().any(|p| has(p));
    let bf16 = any(&["bf16", "bf16x2"]);
    let cluster = any(&["cluster", "shared::cluster"]);
    let newest = match name {
        "wgmma" | "setmaxnreg" => return (90, true),
        "tensormap" if has("replace") => return (90, true),
        "mapa" | "getctarank" | "elect" | "stmatrix" | "griddepcontrol" | "tensormap" => 90,
        "barrier" if has("cluster") => 90,
        "mbarrier" if any(&["try_wait", "expect_tx", "complete_tx"]) => 90,
        // A count of arrivals, unless the phase is promised not to end.
        "mbarrier" if any(&["arrive", "arrive_drop"]) && !has("noComplete") && counted(inst) => 90,
        "cp" if has("bulk") => 90,
        "st" | "red" if has("async") => 90,
        "fence" if any(&["acquire", "release", "mbarrier_init", "async", "tensormap::generic"]) => 90,
        "fence" if has("async::global") || has("async::shared::cta") || has("async::shared::cluster") => 90,
        "atom" | "red" if any(&["b128", "v2", "v4", "v8"]) || (bf16 && has("add")) => 90,
        "add" | "sub" | "mul" | "ex2" | "setp" | "set" if bf16 => 90,
        "tanh" if bf16 => 90,
        "add" | "sub" | "min" | "max" | "neg" if any(&["u16x2", "s16x2"]) => 90,
        "min" | "max" if has("relu") && any(&["s32", "s16x2"]) => 90,
        "min" | "max" if has("xorsign") => 86,
        "cvt" if any(&["e4m3x2", "e5m2x2"]) => 89,
        "cvt" if has("tf32") && any(&["rn", "rz"]) => 90,
        "mma" if any(&["e4m3", "e5m2"]) => 89,
        "mma" if has("f64") && parts.iter().any(|p| p.starts_with("m16")) => 90,
        "ld" | "st" if has("v8") || (has("v4") && any(&["b64", "u64", "s64", "f64"])) => 100,
        _ => 0,
    };
    (newest.max(if cluster { 90 } else { 0 }), false)
}

fn counted(inst: &Inst) -> bool {
    let first = matches!(inst.operands.first(), Some(Operand::Address(..)));
    inst.operands.len() > 1 + usize::from(!first)
}

/// Registers of clusters are as young as clusters.
fn special(inst: &Inst) -> bool {
    let young = |o: &Operand| match o {
        Operand::Name(n) => {
            n.starts_with("%cluster") || n.starts_with("%nclusterid") || n.starts_with("%is_explicit_cluster")
        }
        _ => false,
    };
    inst.operands.iter().any(young)
}

/// The instruction must belong to the architecture the module was compiled for.
pub fn check(c: &mut Context, inst: &Inst) -> Res<()> {
    let (mut number, own) = needed(inst);
    if special(inst) {
        number = number.max(90);
    }
    if number > 90 {
        return c.err(format!("`{}` exists from sm_{number} on", inst.opcode));
    }
    c.needs_sm90 |= number == 90;
    let (target, has_own) = c.target;
    if target < number || (own && !has_own) {
        let a = if own { "a" } else { "" };
        let at = if has_own { "a" } else { "" };
        return c.err(format!("`{}` needs .target sm_{number}{a}, the module is for sm_{target}{at}", inst.opcode));
    }
    Ok(())
}

/// Why an opcode is not there.
pub fn reason(opcode: &str) -> String {
    let name = opcode.split('.').next().unwrap_or("");
    let why = match name {
        "tcgen05" | "clusterlaunchcontrol" => "exists from sm_100 on",
        "tex" | "txq" | "tld4" | "suld" | "sust" | "sured" | "suq" | "istypep" => {
            "textures and surfaces are not covered"
        }
        "multimem" => "multimem addresses are not covered",
        "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vshl" | "vshr" | "vmad" | "vset" | "vadd2" | "vsub2"
        | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vset2" | "vadd4" | "vsub4" | "vavrg4" | "vabsdiff4"
        | "vmin4" | "vmax4" | "vset4" => "video instructions are not covered",
        "alloca" | "stacksave" | "stackrestore" => "stacks of variable size are not covered",
        _ => return format!("unknown instruction `{opcode}`"),
    };
    format!("`{opcode}`: {why}")
}
