//! What the emulator is stricter about than a machine: each program runs broken and mended, for ten seeds.
//!
//! A line that ends in `//fix` exists only in the mended program, one in `//broken` only in the broken one, which must stop at
//! a line that ends in `//fault`.

mod support;
use ptx_emulator::{Arch, Device, Fault, FaultKind, LaunchConfig, Memory, Module};
use support::*;

struct Case {
    name: &'static str,
    blocks: u32,
    threads: u32,
    /// Blocks of the cluster.
    cluster: u32,
    /// Directives of the kernel.
    limits: &'static str,
    body: &'static str,
    expected: fn(&FaultKind) -> bool,
}

const SIMPLE: Case = Case { name: "", blocks: 1, threads: 32, cluster: 1, limits: "", body: "", expected: |_| false };
const PAIR: Case = Case { blocks: 2, cluster: 2, ..SIMPLE };

fn program(case: &Case, mended: bool) -> String {
    let unwanted = if mended { "//broken" } else { "//fix" };
    let body: Vec<&str> = case.body.lines().filter(|l| !l.contains(unwanted)).collect();
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 x, .param .u64 y) {}
{{
.reg .pred %p<20>; .reg .b16 %h<9>; .reg .b32 %r<60>; .reg .b64 %rd<30>; .reg .f32 %f<40>;
.shared .align 1024 .b8 s[8192]; .shared .align 8 .b64 bar[4];
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.u32 %r3, bar;
mov.u32 %r4, %cluster_ctarank; xor.b32 %r5, %r4, 1; mad.lo.u32 %r6, %r1, 4, %r2; setp.eq.u32 %p1, %r1, 0;
setp.eq.u32 %p2, %r4, 0; mad.wide.u32 %rd3, %r1, 16, %rd1; mad.lo.u32 %r7, %r1, 16, %r2; setp.lt.u32 %p3, %r1, 128;
{}
ret;
}}\n",
        case.limits,
        body.join("\n")
    )
}

fn run(case: &Case, text: &str, seed: u64) -> Result<(), Box<Fault>> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut d = Device::new(Arch::Sm90a);
    d.set_seed(seed);
    d.set_instruction_limit(100_000);
    let x = put(&mut d, &vec![0; 8192]);
    let y = put(&mut d, &vec![0; 8192]);
    let config = LaunchConfig::new([case.blocks, 1, 1], [case.threads, 1, 1]).cluster([case.cluster, 1, 1]);
    launch(&mut d, &module, "k", config, &Params::new().u64(x).u64(y)).map(|_| ())
}

fn check(case: &Case) {
    let (broken, mended) = (program(case, false), program(case, true));
    for seed in 0..10 {
        if let Err(f) = run(case, &mended, seed) {
            panic!("{} (mended, seed {seed}): {f}", case.name);
        }
        let Err(f) = run(case, &broken, seed) else { panic!("{} (seed {seed}) ran to its end", case.name) };
        let line = f.line.and_then(|l| broken.lines().nth(l as usize - 1)).unwrap_or("");
        assert!((case.expected)(&f.kind) && line.contains("//fault"), "{} (seed {seed}): {f}\n{line}", case.name);
        assert!(f.block.is_some() && f.warp.is_some(), "{}: {f}", case.name);
    }
}

fn shared_race(k: &FaultKind) -> bool {
    matches!(k, FaultKind::Race { memory: Memory::Shared, .. })
}

#[test]
fn blocks_of_a_cluster_race() {
    check(&Case {
        name: "a peer's memory is read without a barrier after it was written",
        body: "st.shared.u32 [%r6], %r1;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
st.shared.u32 [%r6], %r2; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; //fix
mapa.shared::cluster.u32 %r10, %r6, %r5;
ld.shared::cluster.u32 %r11, [%r10]; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        expected: shared_race,
        ..PAIR
    });
    check(&Case {
        name: "an arrival that releases nothing",
        body: "st.shared.u32 [%r6], %r1;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
st.shared.u32 [%r6], %r2; //fault
barrier.cluster.arrive.relaxed.aligned; //broken
barrier.cluster.arrive.release.aligned; //fix
barrier.cluster.wait.aligned;
mapa.shared::cluster.u32 %r10, %r6, %r5;
ld.shared::cluster.u32 %r11, [%r10]; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        expected: shared_race,
        ..PAIR
    });
    check(&Case {
        name: "a peer's memory is written while it writes it itself",
        body: "st.shared.u32 [%r6], %r1;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
st.shared.u32 [%r6], %r2; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; //fix
mapa.shared::cluster.u32 %r10, %r6, %r5;
st.shared::cluster.u32 [%r10], %r1; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        expected: shared_race,
        ..PAIR
    });
}

#[test]
fn a_block_ends_while_another_reads_its_memory() {
    check(&Case {
        name: "no barrier before the end",
        body: "st.shared.u32 [%r6], %r1;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
mapa.shared::cluster.u32 %r10, %r6, %r5;
ld.shared::cluster.u32 %r11, [%r10]; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; //fix",
        expected: |k| matches!(k, FaultKind::BlockEnded { .. }),
        ..PAIR
    });
}

#[test]
fn arrivals_at_another_block_need_the_cluster_as_scope() {
    check(&Case {
        name: "an arrival of scope block does not release to another block",
        body: "st.shared.u32 [%r6], %r1;
@%p1 mbarrier.init.shared.b64 [bar], 32;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
@%p2 bra WAIT;
mapa.shared::cluster.u32 %r10, %r6, 0; mapa.shared::cluster.u32 %r11, %r3, 0;
st.shared::cluster.u32 [%r10], 7;
mbarrier.arrive.release.cta.shared::cluster.b64 _, [%r11]; //broken
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r11]; //fix
bra DONE;
WAIT:
mbarrier.try_wait.parity.acquire.cluster.shared.b64 %p5, [bar], 0;
@!%p5 bra WAIT;
ld.shared.u32 %r12, [%r6]; //fault
DONE:
barrier.cluster.arrive; barrier.cluster.wait;",
        expected: shared_race,
        ..PAIR
    });
    check(&Case {
        name: "a barrier of another block is used before anything orders its initialisation",
        body: "@%p1 mbarrier.init.shared.b64 [bar], 32;
fence.mbarrier_init.release.cluster; //fix
barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;
mapa.shared::cluster.u32 %r11, %r3, %r5;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r11]; //fault
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        expected: shared_race,
        ..PAIR
    });
}

#[test]
fn lanes_of_one_warp() {
    check(&Case {
        name: "two values for one word",
        body: "mov.u32 %r10, %r1; //broken
mov.u32 %r10, 5; //fix
st.shared.u32 [s], %r10; //fault",
        expected: |k| matches!(k, FaultKind::LaneCollision { memory: Memory::Shared, .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "two values for one word of global memory",
        body: "and.b32 %r11, %r1, 15; //broken
mov.u32 %r11, %r1; //fix
mad.wide.u32 %rd4, %r11, 4, %rd2;
st.global.u32 [%rd4], %r1; //fault",
        expected: |k| matches!(k, FaultKind::LaneCollision { memory: Memory::Global, .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "a neighbour's word without bar.warp.sync",
        body: "st.shared.u32 [%r6], %r1;
bar.warp.sync 0xffffffff; //fix
xor.b32 %r10, %r6, 4;
ld.shared.u32 %r11, [%r10]; //fault",
        expected: |k| matches!(k, FaultKind::Race { other, .. } if other.lane.is_some()),
        ..SIMPLE
    });
    check(&Case {
        name: "a neighbour's asynchronous copy, waited for by the neighbour alone",
        body: "cp.async.ca.shared.global [%r7], [%rd3], 16;
cp.async.wait_all;
bar.warp.sync 0xffffffff; //fix
xor.b32 %r10, %r7, 16;
ld.shared.u32 %r11, [%r10]; //fault",
        expected: |k| matches!(k, FaultKind::Race { other, .. } if other.lane.is_some()),
        ..SIMPLE
    });
}

#[test]
fn sources_of_copies_must_not_change() {
    check(&Case {
        name: "cp.async",
        body: "cp.async.cg.shared.global [%r7], [%rd3], 16;
cp.async.wait_all; //fix
st.global.u32 [%rd3], %r1; //fault
cp.async.wait_all;",
        expected: |k| matches!(k, FaultKind::AsyncOverwrite { memory: Memory::Global, .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "a bulk copy",
        body: "@!%p1 bra DONE;
mbarrier.init.shared.b64 [bar], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared.b64 _, [bar], 512;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%rd1], 512, [bar];
st.global.u32 [%rd1+64], %r1; //fault //broken
WAIT:
mbarrier.try_wait.parity.shared.b64 %p5, [bar], 0;
@!%p5 bra WAIT;
st.global.u32 [%rd1+64], %r1; //fix
DONE:",
        expected: |k| matches!(k, FaultKind::AsyncOverwrite { memory: Memory::Global, .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "the tile of a bulk store",
        body: "st.shared.v4.u32 [%r7], {%r1, %r1, %r1, %r1};
fence.proxy.async.shared::cta; bar.warp.sync 0xffffffff;
@!%p1 bra DONE;
cp.async.bulk.global.shared::cta.bulk_group [%rd2], [s], 512;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0; //fix
st.shared.u32 [s+16], %r1; //fault
cp.async.bulk.wait_group 0;
DONE:",
        expected: |k| matches!(k, FaultKind::AsyncOverwrite { memory: Memory::Shared, .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "the end of a thread whose bulk store still reads",
        body: "st.shared.v4.u32 [%r7], {%r1, %r1, %r1, %r1};
fence.proxy.async.shared::cta; bar.warp.sync 0xffffffff;
@!%p1 bra DONE;
cp.async.bulk.global.shared::cta.bulk_group [%rd2], [s], 512;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0; //fix
DONE:
exit; //fault",
        expected: |k| matches!(k, FaultKind::Misuse(t) if t.contains("ends")),
        ..SIMPLE
    });
}

#[test]
fn waits_may_come_back_empty_handed() {
    check(&Case {
        name: "one try is not a wait",
        body: "@%p1 mbarrier.init.shared.b64 [bar], 1;
bar.sync 0;
@%p1 mbarrier.arrive.expect_tx.shared.b64 _, [bar], 512;
@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%rd1], 512, [bar];
WAIT:
mbarrier.try_wait.parity.shared.b64 %p5, [bar], 0, 1000;
@!%p5 bra WAIT; //fix
ld.shared.u32 %r10, [%r6]; //fault",
        expected: |k| matches!(k, FaultKind::AsyncNotWaited { .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "copies that an mbarrier follows land when it is waited for",
        body: "@%p1 mbarrier.init.shared.b64 [bar], 32;
bar.sync 0;
cp.async.ca.shared.global [%r7], [%rd3], 16;
cp.async.mbarrier.arrive.noinc.shared.b64 [bar];
WAIT: //fix
mbarrier.test_wait.parity.shared.b64 %p5, [bar], 0; //fix
@!%p5 bra WAIT; //fix
xor.b32 %r10, %r7, 16;
ld.shared.u32 %r11, [%r10]; //fault",
        expected: |k| matches!(k, FaultKind::AsyncNotWaited { .. }),
        ..SIMPLE
    });
    check(&Case {
        name: "the same, the arrival counted when it is asked for",
        body: "@%p1 mbarrier.init.shared.b64 [bar], 32;
bar.sync 0;
cp.async.ca.shared.global [%r7], [%rd3], 16;
cp.async.mbarrier.arrive.shared.b64 [bar]; //fix
mbarrier.arrive.shared.b64 %rd5, [bar];
WAIT:
mbarrier.test_wait.shared.b64 %p5, [bar], %rd5;
@!%p5 bra WAIT;
xor.b32 %r10, %r7, 16;
ld.shared.u32 %r11, [%r10]; //fault",
        expected: |k| matches!(k, FaultKind::AsyncNotWaited { .. }),
        ..SIMPLE
    });
}

#[test]
fn matrix_registers_need_a_fence_each_time() {
    let zero = "mov.u64 %rd9, 0x4000004000010000; shr.u32 %r20, %r2, 4; cvt.u64.u32 %rd10, %r20; or.b64 %rd9, %rd9, %rd10;
st.shared.v4.u32 [%r7], {0, 0, 0, 0}; st.shared.v4.u32 [%r7+2048], {0, 0, 0, 0}; st.shared.v4.u32 [%r7+4096], {0, 0, 0, 0};
st.shared.v4.u32 [%r7+6144], {0, 0, 0, 0}; fence.proxy.async.shared::cta; bar.sync 0;
mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1; mov.b32 %r30, 0; mov.b32 %r31, 0;
";
    let case = |name, body: &str| Case {
        name,
        threads: 128,
        body: Box::leak(format!("{zero}{body}").into_boxed_str()),
        expected: |k| matches!(k, FaultKind::MissingMatrixFence { .. }),
        ..SIMPLE
    };
    check(&case(
        "an accumulator changed between two products",
        "wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd9, %rd9, 1, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
add.f32 %f2, %f2, %f2;
wgmma.fence.sync.aligned; //fix
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd9, %rd9, 1, 1, 1, 0, 0; //fault
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
    ));
    check(&case(
        "A computed after the fence",
        "wgmma.fence.sync.aligned; //broken
cvt.rn.bf16x2.f32 %r30, %f1, %f2; mov.b32 %r31, %r30;
wgmma.fence.sync.aligned; //fix
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, {%r30, %r31, %r30, %r31}, %rd9, 0, 1, 1, 0; //fault
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
    ));
}

#[test]
fn registers_are_moved_between_warps() {
    check(&Case {
        name: "more registers than anyone gives back",
        threads: 256,
        limits: ".maxntid 256",
        body: "@%p3 bra PRODUCER;
setmaxnreg.inc.sync.aligned.u32 256; //fault
bra DONE;
PRODUCER:
setmaxnreg.dec.sync.aligned.u32 40; //fix
DONE:",
        expected: |k| matches!(k, FaultKind::Deadlock { waiting } if waiting.contains("registers")),
        ..SIMPLE
    });
    check(&Case {
        name: "one warp of the warpgroup stays away",
        threads: 128,
        limits: ".maxntid 128",
        body: "setp.lt.u32 %p6, %r1, 96; //broken
setp.lt.u32 %p6, %r1, 128; //fix
@!%p6 bra DONE;
setmaxnreg.dec.sync.aligned.u32 40; //fault
DONE:",
        expected: |k| matches!(k, FaultKind::Misuse(t) if t.contains("warpgroup")),
        ..SIMPLE
    });
    check(&Case {
        name: "an increase that is a decrease",
        threads: 128,
        limits: ".maxntid 128",
        body: "setmaxnreg.inc.sync.aligned.u32 40; //broken //fault
setmaxnreg.dec.sync.aligned.u32 40; //fix",
        expected: |k| matches!(k, FaultKind::Misuse(t) if t.contains("owns")),
        ..SIMPLE
    });
}

#[test]
fn registers_of_a_launch_are_limited() {
    let text = program(&Case { limits: ".maxnreg 128", ..SIMPLE }, true);
    let module = Module::parse(&text).unwrap();
    let mut d = Device::new(Arch::Sm90a);
    let p = Params::new().u64(0).u64(0);
    let mut go = |threads, registers| {
        let config = LaunchConfig::new([1; 3], [threads, 1, 1]).registers(registers);
        launch(&mut d, &module, "k", config, &p).is_ok()
    };
    // 65536 registers, handed to warps in pieces of 256: 8 for each thread.
    assert!(go(1024, 64) && !go(1024, 65) && go(512, 121) && go(512, 128) && !go(128, 129) && !go(1024, 0));
}

#[test]
fn a_hang_has_a_place() {
    check(&Case {
        name: "a loop without end",
        body: "HERE: //broken
add.u32 %r10, %r1, 1; //fault
bra HERE; //broken //fault",
        expected: |k| matches!(k, FaultKind::InstructionLimit { .. }),
        ..SIMPLE
    });
}

#[test]
fn instructions_younger_than_the_target_are_refused() {
    for (target, instruction, needs) in [
        ("sm_80", "mbarrier.try_wait.shared.b64 %p1, [%r1], %rd1;", "sm_90"),
        ("sm_80", "elect.sync %r1|%p1, 0xffffffff;", "sm_90"),
        ("sm_80", "mov.u32 %r1, %cluster_ctarank;", "sm_90"),
        ("sm_80", "add.rn.bf16x2 %r1, %r1, %r1;", "sm_90"),
        ("sm_80", "fence.proxy.async;", "sm_90"),
        ("sm_90", "wgmma.fence.sync.aligned;", "sm_90a"),
        ("sm_90", "setmaxnreg.dec.sync.aligned.u32 40;", "sm_90a"),
        ("sm_90a", "tcgen05.fence::before_thread_sync;", "sm_100"),
        ("sm_90a", "tex.1d.v4.f32.s32 {%r1, %r1, %r1, %r1}, [%rd1, {%r1}];", "not covered"),
    ] {
        let text = format!(
            ".version 9.0\n.target {target}\n.address_size 64\n.entry k() {{ .reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p<4>;
{instruction}\nret; }}"
        );
        let e = Module::parse(&text).expect_err(instruction).to_string();
        assert!(e.contains(needs) && e.contains('5'), "{instruction}: {e}");
    }
}
