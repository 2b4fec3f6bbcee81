//! Broken kernels: each gives its own fault, at the right source line, whatever the order of warps and blocks.

mod support;
use ptx_emulator::{Arch, Device, Fault, FaultKind, LaunchConfig, Memory, Module};
use support::*;

/// A source of broken kernels, and the PTX made from it.
struct Gallery {
    name: &'static str,
    arch: &'static str,
    source: &'static str,
}

const GALLERIES: [Gallery; 2] = [
    Gallery { name: "gallery", arch: "compute_80", source: include_str!("kernels/gallery.cu") },
    Gallery { name: "hopper_gallery", arch: "compute_90a", source: include_str!("kernels/hopper_gallery.cu") },
];

/// Lines of the source that a fault of this kernel may name.
fn marked(source: &str, name: &str) -> Vec<u32> {
    let marker = format!("fault: {name}");
    let at = |l: &str| l.find(&marker).is_some_and(|i| l[i + marker.len()..].trim().is_empty());
    source.lines().enumerate().filter(|(_, l)| at(l)).map(|(i, _)| i as u32 + 1).collect()
}

fn run(module: &Module, name: &str, seed: u64) -> Option<Box<Fault>> {
    let hopper = module.target().starts_with("sm_90");
    let mut d = Device::new(if hopper { Arch::Sm90a } else { Arch::Sm80 });
    d.set_seed(seed);
    d.set_instruction_limit(200_000);
    let x = put(&mut d, &bytes_f32(&vec![5.0; 256]));
    // Exactly the first n floats of x are in reach of the kernels that overrun it.
    let n = 64;
    let small = put(&mut d, &bytes_f32(&vec![5.0; n]));
    let y = d.alloc(1024).unwrap();
    let x = if name.starts_with("async") || name.starts_with("flag") { x } else { small };
    let p = Params::new().u64(x).u64(y).i32(n as i32);
    let two = ["race_global_blocks", "race_global_read", "flag_without_fence", "tail_off_by_one"].contains(&name);
    let config = LaunchConfig::new([if two { 2 } else { 1 }, 1, 1], [64, 1, 1]).shared(256);
    launch(&mut d, module, name, config, &p).err()
}

/// The kind of fault of each kernel, and how the instruction at its PTX line begins (one of several).
fn expected(name: &str, kind: &FaultKind) -> (bool, &'static [&'static str]) {
    use FaultKind as K;
    let shared_race = matches!(kind, K::Race { memory: Memory::Shared, .. });
    let global_race = matches!(kind, K::Race { memory: Memory::Global, .. });
    match name {
        "oob_read" | "tail_off_by_one" => {
            (matches!(kind, K::OutOfBounds { memory: Memory::Global, write: false, bytes: 4, .. }), &["ld.global"])
        }
        "oob_write" | "null_pointer" => {
            (matches!(kind, K::OutOfBounds { memory: Memory::Global, write: true, .. }), &["st.global", "st.u32"])
        }
        "misaligned" => (matches!(kind, K::Misaligned { memory: Memory::Global, bytes: 16, .. }), &["ld.global.v4"]),
        "uninit_global" => (matches!(kind, K::UninitialisedMemory { memory: Memory::Global, .. }), &["ld.global"]),
        "uninit_shared" => (matches!(kind, K::UninitialisedMemory { memory: Memory::Shared, .. }), &["ld.shared"]),
        "uninit_register" | "uninit_local" => (matches!(kind, K::UninitialisedRegister { .. }), &["st.global"]),
        "race_shared" | "race_shared_reuse" => (shared_race, &["ld.shared", "st.shared"]),
        // Beyond the warp's reach lies another's number, or the end of what was written.
        "reduction_off_by_one" => (
            shared_race
                || matches!(kind, K::UninitialisedMemory { .. } | K::OutOfBounds { memory: Memory::Shared, .. }),
            &["ld.shared", "st.shared"],
        ),
        "atomic_and_plain" => (shared_race, &["ld.shared", "atom.shared"]),
        "async_no_barrier" => (shared_race, &["ld.shared", "cp.async.wait_all", "cp.async.cg"]),
        "async_stage_reused" => (shared_race, &["ld.shared", "cp.async"]),
        "race_global_warps" | "race_global_blocks" | "race_global_read" | "flag_without_fence" => {
            (global_race, &["ld.global", "st.global"])
        }
        "divergent_barrier" => (matches!(kind, K::Divergent { .. }), &["bar"]),
        "shuffle_divergent" => (matches!(kind, K::Divergent { .. }), &["shfl.sync"]),
        "barrier_deadlock" | "barrier_split" => (matches!(kind, K::Deadlock { .. }), &["bar.sync"]),
        "barrier_mismatch" => (matches!(kind, K::BarrierMisuse { barrier: 1, .. }), &["bar.sync"]),
        "async_no_wait" | "async_wrong_count" | "wait_left_out" => {
            (matches!(kind, K::AsyncNotWaited { memory: Memory::Shared, write: false, .. }), &["ld.shared"])
        }
        "shuffle_own_mask" | "shuffle_absent" => (matches!(kind, K::Misuse(_)), &["shfl.sync"]),
        "trapped" => (*kind == K::Trap, &["trap"]),
        "asserted" => (matches!(kind, K::Assertion { message, .. } if message.contains("5.0f")), &["call"]),
        "shared_oob" => (matches!(kind, K::OutOfBounds { memory: Memory::Shared, write: true, .. }), &["st.shared"]),
        "ldmatrix_misaligned" => {
            (matches!(kind, K::Misaligned { memory: Memory::Shared, bytes: 16, .. }), &["ldmatrix"])
        }
        "hang" => (matches!(kind, K::InstructionLimit { .. }), &["ld.volatile", "setp", "@%p", "bra"]),
        "stack" => (matches!(kind, K::StackOverflow { .. }), &["call"]),
        // The phase it waits for is the one after the last.
        "stale_parity" => {
            (matches!(kind, K::Deadlock { waiting } if waiting.contains("phase 1")), &["mbarrier.try_wait"])
        }
        "expects_too_much" => {
            (matches!(kind, K::Deadlock { waiting } if waiting.contains("16 bytes missing")), &["mbarrier.try_wait"])
        }
        "expects_too_little" => (
            matches!(kind, K::Misuse(text) if text.contains("bytes more")),
            &["cp.async.bulk.shared", "mbarrier.try_wait"],
        ),
        "barrier_never_initialised" => {
            (matches!(kind, K::Misuse(text) if text.contains("no mbarrier")), &["mbarrier.arrive", "mbarrier.try_wait"])
        }
        "destination_misaligned" => {
            (matches!(kind, K::Misuse(text) if text.contains("multiples of 16")), &["cp.async.bulk"])
        }
        "stage_loaded_again_too_early" => {
            (shared_race || matches!(kind, K::AsyncNotWaited { .. }), &["cp.async.bulk.shared", "ld.shared"])
        }
        "proxy_fence_left_out" => (matches!(kind, K::MissingProxyFence { .. }), &["cp.async.bulk.global"]),
        "tile_overwritten_while_read" => {
            (matches!(kind, K::AsyncOverwrite { memory: Memory::Shared, .. }), &["st.shared"])
        }
        "store_before_the_barrier" => (
            shared_race || matches!(kind, K::UninitialisedMemory { memory: Memory::Shared, .. }),
            &["cp.async.bulk.global", "st.shared"],
        ),
        "block_ends_too_early" => {
            (matches!(kind, K::Misuse(text) if text.contains("the block ends")), &["cp.async.bulk.shared"])
        }
        _ => (false, &[]),
    }
}

/// Is the fault where it belongs: at a marked line of the source, and at a line of the PTX that holds an instruction of the right
/// name whose `.loc` is the source line that the fault tells?
fn placed(f: &Fault, text: &str, file: &str, lines: &[u32], begins: &[&str]) -> Result<(), String> {
    let named = f.source.iter().chain(&f.inlined_at);
    if !named.into_iter().any(|s| s.0.ends_with(file) && lines.contains(&s.1)) {
        return Err(format!("not at lines {lines:?}"));
    }
    let line = f.line.ok_or("no PTX line")? as usize;
    let ptx: Vec<&str> = text.lines().collect();
    let instruction = ptx[line - 1].trim();
    let bare = instruction
        .strip_prefix('@')
        .and_then(|i| i.split_once(char::is_whitespace))
        .map_or(instruction, |p| p.1.trim());
    if !begins
        .iter()
        .any(|b| bare.starts_with(b) || instruction.starts_with(b) || instruction.contains(&format!("; {b}")))
    {
        return Err(format!("PTX line {line} holds {instruction:?}, expected one of {begins:?}"));
    }
    let loc = ptx[..line].iter().rev().find_map(|l| l.trim().strip_prefix(".loc")).ok_or("no .loc")?;
    let at: Option<u32> = loc.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    if at != f.source.as_ref().map(|s| s.1) {
        return Err(format!("the .loc before PTX line {line} says {at:?}"));
    }
    Ok(())
}

#[test]
fn every_fault_is_found_at_its_line_for_every_seed() {
    let mut wrong = Vec::new();
    let mut kernels = 0;
    for g in &GALLERIES {
        let text = ptx(g.name, g.arch);
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        for name in module.entries() {
            kernels += 1;
            let lines = marked(g.source, name);
            assert!(!lines.is_empty(), "{name} marks no line");
            for seed in 0..10 {
                let Some(f) = run(&module, name, seed) else {
                    wrong.push(format!("{name} (seed {seed}) ran to its end"));
                    break;
                };
                let (kind, begins) = expected(name, &f.kind);
                let place = placed(&f, &text, &format!("{}.cu", g.name), &lines, begins);
                if !kind || place.is_err() {
                    wrong.push(format!("{name} (seed {seed}): {place:?}: {f}"));
                    break;
                }
            }
        }
    }
    assert!(kernels >= 40, "{kernels} kernels");
    assert!(wrong.is_empty(), "{} of {kernels}\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn the_right_twin_of_every_broken_kernel_runs() {
    let mut wrong = Vec::new();
    for g in &GALLERIES {
        let module = Module::parse(&mended(g.name, g.arch)).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        for name in module.entries() {
            wrong.extend((0..10).find_map(|seed| run(&module, name, seed)).map(|f| f.to_string()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let module = module("gallery");
    let mut d = device();
    let refused = |d: &mut ptx_emulator::Device, entry: &str, c: LaunchConfig, bytes: usize| {
        let f = d.launch(&module, entry, &c, &vec![0; bytes]).expect_err("refused");
        assert!(matches!(f.kind, FaultKind::Launch(_)), "{f}");
    };
    let good = LaunchConfig::new([1; 3], [32, 1, 1]);
    refused(&mut d, "nothing", good, 20);
    refused(&mut d, "trapped", good, 24);
    refused(&mut d, "trapped", good.shared(200 << 10), 20);
    refused(&mut d, "trapped", LaunchConfig::new([1; 3], [1025, 1, 1]), 20);
    refused(&mut d, "trapped", LaunchConfig::new([1; 3], [64, 32, 1]), 20);
    refused(&mut d, "trapped", LaunchConfig::new([0, 1, 1], [32, 1, 1]), 20);
    refused(&mut d, "trapped", LaunchConfig::new([1, 70000, 1], [32, 1, 1]), 20);
}

/// Addresses at the ends of the address space are faults, not panics.
#[test]
fn extreme_addresses_are_out_of_bounds() {
    for (access, wide) in [
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];", true),
        ("st.global.u32 [%rd1], %r1;", true),
        ("ld.u64 %rd2, [%rd1];", true),
        ("ld.shared.u64 %rd2, [%rd1];", true),
        ("ld.const.u32 %r2, [%rd1];", true),
        ("ld.local.u32 %r2, [%rd1];", true),
        ("atom.shared.add.u32 %r2, [%r5], %r1;", false),
        ("atom.global.add.u32 %r2, [%rd1], %r1;", true),
        ("cp.async.ca.shared.global [%r5], [%rd1], 4;", false),
    ] {
        for address in [0u64, u64::MAX - 15, u64::MAX - 3, 1 << 63, 0x0100_0000_0000_0000, 0xFFFF_FFF0] {
            let address = if wide { address & !15 } else { address & 0xFFFF_FFF0 };
            let text = format!(
                ".version 9.0\n.target sm_80\n.address_size 64\n.entry k() {{ .reg .b32 %r<9>; .reg .b64 %rd<9>;
.shared .b32 s; mov.u32 %r1, 1; mov.u64 %rd1, {address}; cvt.u32.u64 %r5, %rd1;\n{access} ret; }}"
            );
            let module = Module::parse(&text).unwrap_or_else(|e| panic!("{access}: {e}"));
            let f = launch(&mut device(), &module, "k", LaunchConfig::new([1; 3], [1; 3]), &Params::new())
                .expect_err("out of bounds");
            assert!(matches!(f.kind, FaultKind::OutOfBounds { .. }), "{access} {address:#x}: {f}");
        }
    }
}
