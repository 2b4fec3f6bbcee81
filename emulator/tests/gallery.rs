//! Broken kernels: each gives its own fault, at the right source line, whatever the order of warps and blocks.

mod support;
use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Module};
use support::*;

const SOURCE: &str = include_str!("kernels/gallery.cu");

/// Lines of the source that a fault of this kernel may name.
fn marked(name: &str) -> Vec<u32> {
    let marker = format!("fault: {name}");
    let at = |l: &str| l.find(&marker).is_some_and(|i| l[i + marker.len()..].trim().is_empty());
    SOURCE.lines().enumerate().filter(|(_, l)| at(l)).map(|(i, _)| i as u32 + 1).collect()
}

fn fault(module: &Module, name: &str, seed: u64) -> Option<Box<Fault>> {
    let mut d = device();
    d.set_seed(seed);
    d.set_instruction_limit(200_000);
    let x = put(&mut d, &bytes_f32(&vec![5.0; 256]));
    // Exactly the first n floats of x are in reach of the kernels that overrun it.
    let n = 64;
    let small = put(&mut d, &bytes_f32(&vec![5.0; n]));
    let y = d.alloc(1024).unwrap();
    let x = if name.starts_with("async") || name.starts_with("flag") { x } else { small };
    let p = Params::new().u64(x).u64(y).i32(n as i32);
    let blocks =
        if name.contains("block") || name == "race_global_read" || name == "flag_without_fence" { 2 } else { 1 };
    let config = LaunchConfig::new([blocks, 1, 1], [64, 1, 1]).shared(128);
    launch(&mut d, module, name, config, &p).err()
}

fn expected(name: &str, kind: &FaultKind) -> bool {
    use FaultKind as K;
    match name {
        "oob_read" => matches!(kind, K::OutOfBounds { memory: Memory::Global, write: false, bytes: 4, .. }),
        "oob_write" | "null_pointer" => matches!(kind, K::OutOfBounds { memory: Memory::Global, write: true, .. }),
        "misaligned" => matches!(kind, K::Misaligned { memory: Memory::Global, bytes: 16, .. }),
        "uninit_global" => matches!(kind, K::UninitialisedMemory { memory: Memory::Global, .. }),
        "uninit_shared" => matches!(kind, K::UninitialisedMemory { memory: Memory::Shared, .. }),
        "uninit_register" | "uninit_local" => matches!(kind, K::UninitialisedRegister { .. }),
        "race_shared" | "race_shared_reuse" | "atomic_and_plain" | "async_no_barrier" | "async_stage_reused" => {
            matches!(kind, K::Race { memory: Memory::Shared, .. })
        }
        "race_global_warps" | "race_global_blocks" | "race_global_read" | "flag_without_fence" => {
            matches!(kind, K::Race { memory: Memory::Global, .. })
        }
        "divergent_barrier" | "shuffle_divergent" => matches!(kind, K::Divergent { .. }),
        "barrier_deadlock" | "barrier_split" => matches!(kind, K::Deadlock { .. }),
        "barrier_mismatch" => matches!(kind, K::BarrierMisuse { barrier: 1, .. }),
        "async_no_wait" | "async_wrong_count" => {
            matches!(kind, K::AsyncNotWaited { memory: Memory::Shared, write: false, .. })
        }
        "shuffle_own_mask" | "shuffle_absent" => matches!(kind, K::Misuse(_)),
        "trapped" => *kind == K::Trap,
        "asserted" => matches!(kind, K::Assertion { message, .. } if message.contains("5.0f")),
        "shared_oob" => matches!(kind, K::OutOfBounds { memory: Memory::Shared, write: true, .. }),
        "ldmatrix_misaligned" => matches!(kind, K::Misaligned { memory: Memory::Shared, bytes: 16, .. }),
        "hang" => matches!(kind, K::InstructionLimit { .. }),
        "stack" => matches!(kind, K::StackOverflow { .. }),
        _ => false,
    }
}

#[test]
fn every_fault_is_found_at_its_line_for_every_seed() {
    let module = module("gallery");
    let names = module.entries();
    assert!(names.len() >= 25, "{} kernels", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let lines = marked(name);
        assert!(!lines.is_empty(), "{name} marks no line");
        for seed in 0..10 {
            let Some(f) = fault(&module, name, seed) else {
                wrong.push(format!("{name} (seed {seed}) ran to its end"));
                break;
            };
            // A limit of instructions has no place of its own.
            let placed = name == "hang"
                || name == "asserted"
                || f.source.iter().chain(&f.inlined_at).any(|s| s.0.ends_with("gallery.cu") && lines.contains(&s.1));
            if !expected(name, &f.kind) || !placed {
                wrong.push(format!("{name} (seed {seed}, lines {lines:?}): {f}"));
                break;
            }
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
