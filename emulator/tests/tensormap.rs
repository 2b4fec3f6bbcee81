//! A kernel changes a tensor map and uses it.

mod support;
use ptx_emulator::{Arch, Device, Fault, FaultKind, LaunchConfig, Module, Swizzle, TensorMap, TensorType};
use support::*;

/// The map names the first tensor; the kernel turns it to the second, and reverses nothing else.
fn run(changes: &str, acquire: &str, seed: u64) -> Result<Vec<u32>, Box<Fault>> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 m, .param .u64 x, .param .u64 y) {{
.reg .pred %p<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>;
.shared .align 128 .b8 s[128]; .shared .align 128 .b8 t[128]; .shared .align 8 .b64 bar;
ld.param.u64 %rd1, [m]; ld.param.u64 %rd2, [x]; ld.param.u64 %rd3, [y]; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0;
mad.wide.u32 %rd4, %r1, 4, %rd1; ld.global.u32 %r2, [%rd4]; mov.u32 %r3, s; mad.lo.u32 %r4, %r1, 4, %r3; st.shared.u32 [%r4], %r2;
@%p1 mbarrier.init.shared.b64 [bar], 1;
bar.warp.sync 0xffffffff;
{changes}
bar.warp.sync 0xffffffff;
tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%rd1], [s], 128;
{acquire}
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
@%p1 cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [t], [%rd1, {{0}}], [bar];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0;
@!%p2 bra WAIT;
mov.u32 %r5, t; mad.lo.u32 %r5, %r1, 4, %r5; ld.shared.u32 %r6, [%r5];
mad.wide.u32 %rd5, %r1, 4, %rd3; st.global.u32 [%rd5], %r6; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut d = Device::new(Arch::Sm90a);
    d.set_seed(seed);
    let first = put(&mut d, &bytes_u32(&(0..32).collect::<Vec<_>>()));
    let second = put(&mut d, &bytes_u32(&(100..132).collect::<Vec<_>>()));
    let map = TensorMap::tiled(TensorType::U32, first, &[32], &[], &[32], &[1], Swizzle::None, false).unwrap();
    let m = put(&mut d, &map.to_bytes());
    let y = d.alloc(128).unwrap();
    let p = Params::new().u64(m).u64(second).u64(y);
    launch(&mut d, &module, "k", LaunchConfig::new([1; 3], [32, 1, 1]), &p)?;
    Ok(get_u32(&d, y, 32))
}

const ADDRESS: &str = "@%p1 tensormap.replace.tile.global_address.shared::cta.b1024.b64 [s], %rd2;";
const ACQUIRE: &str = "fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128;";

#[test]
fn a_changed_map_is_used() {
    for seed in 0..10 {
        assert_eq!(run("", ACQUIRE, seed).unwrap(), (0..32).collect::<Vec<_>>());
        assert_eq!(run(ADDRESS, ACQUIRE, seed).unwrap(), (100..132).collect::<Vec<_>>());
        // A shorter tensor: what lies outside is filled with zeros.
        let shorter = format!("{ADDRESS}\n@%p1 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [s], 0, 20;");
        let want: Vec<u32> = (100..132).map(|i| if i < 120 { i } else { 0 }).collect();
        assert_eq!(run(&shorter, ACQUIRE, seed).unwrap(), want);
    }
}

#[test]
fn a_map_that_nobody_acquired_is_stale() {
    for seed in 0..10 {
        let f = run(ADDRESS, "", seed).expect_err("a fault");
        assert!(matches!(&f.kind, FaultKind::Misuse(t) if t.contains("acquired")), "{f}");
        assert_eq!(f.lane, Some(0));
        let f = run("@%p1 tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [s], 4;", ACQUIRE, seed);
        assert!(matches!(&f.expect_err("no such swizzle").kind, FaultKind::Misuse(t) if t.contains("Swizzle")));
    }
}
