//! What the blocks of a cluster do to each other's shared memory besides loads and stores.

mod support;
use ptx_emulator::{Arch, Device, LaunchConfig, Module};
use support::*;

/// A cluster of two blocks of one warp; what each thread leaves in %r20.
fn run(body: &str, seed: u64) -> Vec<u32> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 y) {{
.reg .pred %p<20>; .reg .b32 %r<60>; .reg .b64 %rd<30>; .shared .align 16 .b8 s[1024]; .shared .align 8 .b64 bar[4];
ld.param.u64 %rd2, [y]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.u32 %r3, bar; mov.u32 %r4, %cluster_ctarank;
xor.b32 %r5, %r4, 1; mad.lo.u32 %r6, %r1, 4, %r2; setp.eq.u32 %p1, %r1, 0; mapa.shared::cluster.u32 %r7, %r6, %r5;
mapa.shared::cluster.u32 %r8, %r2, 0; mapa.shared::cluster.u32 %r9, %r3, %r5;
{body}
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
mad.lo.u32 %r50, %r4, 32, %r1; mad.wide.u32 %rd3, %r50, 4, %rd2; st.global.u32 [%rd3], %r20; ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut d = Device::new(Arch::Sm90a);
    d.set_seed(seed);
    let y = d.alloc(256).unwrap();
    let config = LaunchConfig::new([2, 1, 1], [32, 1, 1]).cluster([2, 1, 1]);
    launch(&mut d, &module, "k", config, &Params::new().u64(y)).unwrap_or_else(|f| panic!("seed {seed}: {f}"));
    get_u32(&d, y, 64)
}

const ALL: &str = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";

#[test]
fn atomics_reach_other_blocks() {
    for seed in 0..10 {
        // Both blocks count in block 0: 64 threads, each its own number of 0 to 63, plus one.
        let got = run(
            &format!(
                "@%p1 st.shared.u32 [s], 0; mov.u32 %r20, 0;\n{ALL}
mad.lo.u32 %r10, %r4, 32, %r1; add.u32 %r10, %r10, 1;
red.relaxed.cluster.shared::cluster.add.u32 [%r8], %r10;\n{ALL}
atom.relaxed.cluster.shared::cluster.max.u32 %r20, [%r8], 3;"
            ),
            seed,
        );
        assert_eq!(got, [64 * 65 / 2; 64]);
        // A generic address works as well, and the own rank is the block itself.
        let got = run(
            &format!(
                "st.shared.u32 [%r6], %r1;\n{ALL}
cvt.u64.u32 %rd5, %r6; cvta.shared.u64 %rd5, %rd5; mapa.u64 %rd6, %rd5, %r4; mapa.u64 %rd7, %rd5, %r5;
atom.add.u32 %r11, [%rd6], 100;\n{ALL}
atom.exch.b32 %r20, [%rd7], %r4;"
            ),
            seed,
        );
        assert_eq!(got, (0..64).map(|i| i % 32 + 100).collect::<Vec<_>>());
    }
}

#[test]
fn stores_that_count_at_an_mbarrier() {
    let wait = "WAIT:\nmbarrier.try_wait.parity.shared.b64 %p5, [bar], 0;\n@!%p5 bra WAIT;\n";
    for seed in 0..10 {
        let got = run(
            &format!(
                "@%p1 mbarrier.init.shared.b64 [bar], 1;\n{ALL}
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
mad.lo.u32 %r10, %r4, 1000, %r1;
st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r7], %r10, [%r9];
{wait}ld.shared.u32 %r20, [%r6];"
            ),
            seed,
        );
        assert_eq!(got, (0..64).map(|i| i % 32 + if i < 32 { 1000 } else { 0 }).collect::<Vec<_>>());
        // A pair for each lane.
        let got = run(
            &format!(
                "@%p1 mbarrier.init.shared.b64 [bar], 1;\n{ALL}
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 256;
mad.lo.u32 %r11, %r1, 8, %r2; mapa.shared::cluster.u32 %r12, %r11, %r5;
st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r12], {{%r1, %r4}}, [%r9];
{wait}ld.shared.v2.u32 {{%r13, %r14}}, [%r11]; mad.lo.u32 %r20, %r13, 10, %r14;"
            ),
            seed,
        );
        assert_eq!(got, (0..64).map(|i| i % 32 * 10 + if i < 32 { 1 } else { 0 }).collect::<Vec<_>>());
        // All lanes of one block reduce into one word of the other.
        for (op, want) in [("add.u32", 5 + 31 * 16), ("max.s32", 31), ("min.u32", 0), ("or.b32", 31), ("inc.u32", 0)] {
            let value = if op == "inc.u32" { "36" } else { "%r1" };
            let got = run(
                &format!(
                    "@%p1 mbarrier.init.shared.b64 [bar], 1; @%p1 st.shared.u32 [s], 5;\n{ALL}
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
mapa.shared::cluster.u32 %r12, %r2, %r5;
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.{op} [%r12], {value}, [%r9];
{wait}ld.shared.u32 %r20, [s];"
                ),
                seed,
            );
            // 5 counts up to 36, then one step more is 0.
            assert_eq!(got, [want; 64], "{op}");
        }
    }
}

#[test]
fn a_block_sends_a_tile_to_its_neighbour() {
    for seed in 0..10 {
        let got = run(
            &format!(
                "@%p1 mbarrier.init.shared.b64 [bar], 1; mad.lo.u32 %r10, %r4, 100, %r1; st.shared.u32 [%r6], %r10;
fence.proxy.async.shared::cta;\n{ALL}
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
mapa.shared::cluster.u32 %r11, %r2, %r5; add.u32 %r11, %r11, 512;
@%p1 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r11], [%r2], 128, [%r9];
WAIT:\nmbarrier.try_wait.parity.shared.b64 %p5, [bar], 0;\n@!%p5 bra WAIT;
ld.shared.u32 %r20, [%r6+512];"
            ),
            seed,
        );
        assert_eq!(got, (0..64).map(|i| i % 32 + if i < 32 { 100 } else { 0 }).collect::<Vec<_>>());
    }
}
