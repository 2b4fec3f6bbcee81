//! The launch plans: one launch forward; backward one over the queries, which also leaves D for one over the keys.

use super::{Desc, K, MAX_HEAD_DIM, OP, Operands, Q, V};
use crate::autograd::Sinks;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/attention.cu`. What a pass does not touch is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub mask: u64,
    pub y: u64,
    /// `[b, t, h]`, f32
    pub lse: u64,
    pub dy: u64,
    /// `[b, t, h]`, f32: D, a workspace between the two launches of backward.
    pub mean: u64,
    pub dq: u64,
    pub dk: u64,
    pub dv: u64,
    pub items: u64,
    pub mask_item_stride: u64,
    pub mask_head_stride: u64,
    pub t: i32,
    pub s: i32,
    pub heads: u32,
    pub d: i32,
    pub scale: f32,
    pub causal: u32,
    /// 0 none, 1 bytes that keep, 2 f32 to add, 3 the operands' own dtype to add.
    pub mask_kind: u32,
    pub vector: u32,
    pub dq_flags: u32,
    pub dk_flags: u32,
    pub dv_flags: u32,
    pub reserved: u32,
}

const _: () = assert!(
    size_of::<Params>() == 160
        && std::mem::offset_of!(Params, items) == 88
        && std::mem::offset_of!(Params, t) == 112
        && std::mem::offset_of!(Params, dq_flags) == 144
);

/// The three passes of one head width.
struct Kernels {
    width: usize,
    forward: PerDType,
    dq: PerDType,
    dkv: PerDType,
}

macro_rules! kernels {
    ($width:literal) => {
        Kernels {
            width: $width,
            forward: kernels!("fwd", $width),
            dq: kernels!("dq", $width),
            dkv: kernels!("dkv", $width),
        }
    };
    ($pass:literal, $width:literal) => {
        [
            KernelId::of(concat!("attention_", $pass, "_f32_d", $width, "_sm80")),
            KernelId::of(concat!("attention_", $pass, "_f16_d", $width, "_sm80")),
            KernelId::of(concat!("attention_", $pass, "_bf16_d", $width, "_sm80")),
        ]
    };
}

/// By rising width: a head takes the first that holds it.
const KERNELS: [Kernels; 3] = [kernels!(32), kernels!(64), kernels!(128)];

fn kernels(desc: &Desc) -> Result<&'static Kernels> {
    KERNELS.iter().find(|k| desc.d <= k.width).ok_or_else(|| Error::Unsupported {
        op: OP,
        what: format!("a head of {} columns on a GPU", desc.d),
        hint: format!("its kernels take up to {MAX_HEAD_DIM}; use more heads"),
    })
}

/// One block for each tile of rows of each head.
fn spec(kernel: KernelId, desc: &Desc, n: usize, params: &Params) -> LaunchSpec {
    // Four threads a row: 16 threads share 4 rows.
    let rows = u64::from(kernel.row().threads / 4);
    let heads = (desc.b as u64).saturating_mul(desc.h as u64);
    launch(kernel, blocks((n as u64).div_ceil(rows).saturating_mul(heads), 1), params)
}

fn params(desc: &Desc, operands: &Operands, lse: &Tensor) -> Result<Params> {
    let small = |n: usize| {
        // Places in a sequence are counted in 32 bits, with room for a tile beyond its end.
        i32::try_from(n).ok().filter(|&n| n < 1 << 30).ok_or_else(|| Error::Unsupported {
            op: OP,
            what: format!("{} queries and {} keys in {} heads", desc.t, desc.s, desc.h),
            hint: "on a GPU each must stay below 2^30".into(),
        })
    };
    let addresses = [operands.q.address()?, operands.k.address()?, operands.v.address()?];
    let mask_kind = match desc.mask {
        None => 0,
        Some(mask) if mask.dtype == DType::U8 => 1,
        Some(mask) if mask.dtype == DType::F32 => 2,
        Some(_) => 3,
    };
    Ok(Params {
        q: addresses[0],
        k: addresses[1],
        v: addresses[2],
        mask: operands.mask.map_or(Ok(0), Tensor::address)?,
        y: 0,
        lse: lse.address()?,
        dy: 0,
        mean: 0,
        dq: 0,
        dk: 0,
        dv: 0,
        items: desc.b as u64,
        mask_item_stride: desc.mask.map_or(0, |m| m.batch_stride as u64),
        mask_head_stride: desc.mask.map_or(0, |m| m.head_stride as u64),
        t: small(desc.t)?,
        s: small(desc.s)?,
        heads: small(desc.h)? as u32,
        d: small(desc.d)?,
        scale: desc.scale as f32,
        causal: u32::from(desc.causal),
        mask_kind,
        vector: u32::from(aligned(&addresses) && desc.d.is_multiple_of(pack(desc.dtype))),
        dq_flags: 0,
        dk_flags: 0,
        dv_flags: 0,
        reserved: 0,
    })
}

pub(crate) fn forward(desc: &Desc, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &kernels(desc)?.forward)?;
    let params = Params { y: y.address()?, ..params(desc, operands, lse)? };
    Ok(Plan::from_iter([spec(kernel, desc, desc.t, &params)]))
}

/// Makes and carries out the plan of backward. It opens the sinks itself, since one launch fills two of them.
pub(crate) fn backward(
    desc: &Desc,
    operands: &Operands,
    dy: &Tensor,
    lse: &Tensor,
    sinks: &mut Sinks<'_>,
) -> Result<()> {
    let mean = Tensor::empty(dy.device(), &[desc.b, desc.t, desc.h], DType::F32)?;
    let mut params = Params { dy: dy.address()?, mean: mean.address()?, ..params(desc, operands, lse)? };
    params.vector &= u32::from(aligned(&[params.dy]));
    // One input opened, then the next: where two are one value, the second finds the first's target and adds to it. The kernels
    // write in this order too, each element by one thread.
    if let Some(target) = sinks.open(Q)? {
        (params.dq, params.dq_flags) = address_and_flags(OP, desc.dtype, &target)?;
    }
    if let Some(target) = sinks.open(K)? {
        (params.dk, params.dk_flags) = address_and_flags(OP, desc.dtype, &target)?;
    }
    if let Some(target) = sinks.open(V)? {
        (params.dv, params.dv_flags) = address_and_flags(OP, desc.dtype, &target)?;
    }
    dy.device().run(&plan(desc, &params)?)
}

fn plan(desc: &Desc, params: &Params) -> Result<Plan> {
    let kernels = kernels(desc)?;
    let (dq, dkv) = (by_dtype(OP, desc.dtype, &kernels.dq)?, by_dtype(OP, desc.dtype, &kernels.dkv)?);
    let mut plan = Plan::new();
    // D comes with the first launch; dv alone does without.
    if desc.t > 0 && (params.dq != 0 || params.dk != 0) {
        plan.push(spec(dq, desc, desc.t, params));
    }
    if desc.s > 0 && (params.dk != 0 || params.dv != 0) {
        plan.push(spec(dkv, desc, desc.s, params));
    }
    plan.retain(|spec| spec.grid[0] > 0);
    Ok(plan)
}
