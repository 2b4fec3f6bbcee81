//! The images of this build: every symbol is there, nothing spills, and the build is of the kind that was asked for.

#[path = "../build/ptxas.rs"]
mod ptxas;

use std::collections::{HashMap, HashSet};

use graftwork::Error;
use graftwork::kernels::{self, Class, FAMILIES, KernelId};

#[test]
fn the_build_is_of_the_kind_that_was_asked_for() {
    let required = std::env::var("GRAFTWORK_REQUIRE_KERNELS").is_ok_and(|v| !v.is_empty() && v != "0");
    let built_with_kernels = cfg!(graftwork_kernels);
    match kernels::available() {
        Ok(()) => {
            assert!(built_with_kernels);
            assert_eq!(kernels::images().len(), FAMILIES.len());
        }
        Err(Error::KernelsMissing { reason }) => {
            assert!(!required, "kernels are required, and missing: {reason}");
            assert!(!built_with_kernels && !reason.is_empty());
            assert!(kernels::images().is_empty() && kernels::resources().is_empty());
            assert!(KernelId::all().all(|id| id.image().is_err()));
        }
        Err(other) => panic!("{other}"),
    }
}

/// Without the variable, what is not here is ignored; with it, it is a failure.
#[test]
fn every_device_that_is_required_is_here() {
    let required = std::env::var("GRAFTWORK_REQUIRE").unwrap_or_default();
    for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(error) = graftwork::Device::parse(name) {
            panic!("GRAFTWORK_REQUIRE asks for {name}, which is not here: {error}");
        }
    }
}

#[test]
fn symbols_are_unique_and_well_formed() {
    let mut seen = HashSet::new();
    for (position, id) in KernelId::all().enumerate() {
        let row = id.row();
        assert!(seen.insert(row.symbol), "{} stands twice in the table", row.symbol);
        assert_eq!((id.index(), KernelId::of_symbol(row.symbol)), (position, Some(id)));
        let arch = match id.family().class {
            Class::Portable => "_sm80",
            Class::Hopper => "_sm90a",
        };
        assert!(row.symbol.ends_with(arch), "{} must end in {arch}", row.symbol);
        assert!((1..=1024).contains(&row.threads) && row.max_registers <= 255, "{row:?}");
        // 64 Ki registers serve a block; more would make every launch fail.
        assert!(row.threads * row.max_registers.next_multiple_of(8) <= 65536, "{row:?}");
        assert!(row.shared_bytes <= 227 * 1024, "{row:?}");
    }
    assert_eq!(seen.len(), KernelId::COUNT);
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn every_symbol_has_its_images_and_keeps_within_its_limits() {
    let (mut complaints, mut texts) = (Vec::new(), HashMap::new());
    for id in KernelId::all() {
        let (row, image) = (id.row(), id.image().unwrap());
        let ptx = texts.entry(image.family).or_insert_with(|| image.ptx.unpack_text().unwrap());
        assert!(ptx.contains(row.symbol));
        let wanted: &[&str] = match id.family().class {
            Class::Portable => &["sm_80", "sm_90"],
            Class::Hopper => &["sm_90a"],
        };
        for arch in wanted {
            assert!(image.cubins.iter().any(|c| c.arch == *arch && c.code.bytes() > 0), "{} for {arch}", row.symbol);
        }
        for cubin in image.cubins {
            let report = kernels::resources().iter().find(|r| r.symbol == row.symbol && r.arch == cubin.arch);
            let Some(r) = report else { panic!("ptxas reported nothing on {} for {}", row.symbol, cubin.arch) };
            if r.spilled_bytes > 0 || r.stack_bytes > 0 || r.registers > row.max_registers {
                complaints.push(format!("{r:?}, at most {} registers allowed", row.max_registers));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Machine code by kernel, as nvdisasm prints it.
#[cfg(graftwork_disassembler)]
fn disassembled(cubin: &[u8], name: &str) -> HashMap<String, String> {
    let path = std::env::temp_dir().join(format!("graftwork-{}-{name}.cubin", std::process::id()));
    std::fs::write(&path, cubin).unwrap();
    let output = std::process::Command::new(env!("GRAFTWORK_NVDISASM")).arg("-c").arg(&path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, sections) = text.split_once(".text.").expect("a section of code");
    sections
        .split("\n.text.")
        .filter_map(|s| s.split_once(':'))
        .map(|(name, code)| (name.into(), code.into()))
        .collect()
}

/// The instruction of every line: `/*0170*/  @P0 HGMMA.64x256x16.F32 R24, … ;`.
#[cfg(graftwork_disassembler)]
fn counts(code: &str, wanted: &[&str]) -> Vec<usize> {
    let instruction = |line: &str| {
        let (_, rest) = line.trim().strip_prefix("/*")?.split_once("*/")?;
        rest.split_whitespace()
            .find(|word| !word.starts_with('@'))
            .map(|word| word.split('.').next().unwrap_or("").to_string())
    };
    let all: Vec<String> = code.lines().filter_map(instruction).collect();
    wanted.iter().map(|w| all.iter().filter(|i| i == w).count()).collect()
}

#[test]
#[cfg(graftwork_disassembler)]
fn hopper_kernels_multiply_by_warpgroups_and_keep_everything_in_registers() {
    for (position, family) in FAMILIES.iter().enumerate().filter(|(_, f)| f.class == Class::Hopper) {
        for cubin in kernels::images()[position].cubins {
            let code = disassembled(&cubin.code.unpack().unwrap(), &format!("{position}"));
            for row in family.kernels {
                let found = counts(&code[row.symbol], &["HGMMA", "UTMALDG", "HMMA", "LDL", "STL"]);
                let [hgmma, loads, by_warps, local @ ..] = &found[..] else { unreachable!() };
                // The last columns of a strip may be fewer than a warpgroup multiplies, where blocks are narrow.
                let narrow = ["_b16_", "_b32_"].iter().any(|edge| row.symbol.contains(edge));
                let apart = narrow && row.symbol.contains("_strips_");
                let multiplies = *hgmma > 0 && (*by_warps > 0) == apart;
                assert!(multiplies && *loads > 0 && local.iter().all(|&n| n == 0), "{}: {found:?}", row.symbol);
            }
        }
    }
}

#[test]
#[cfg(not(graftwork_disassembler))]
#[ignore = "there was no nvdisasm when this was built"]
fn hopper_kernels_multiply_by_warpgroups_and_keep_everything_in_registers() {}

#[test]
fn the_report_of_ptxas_is_read() {
    let report = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'one_sm80' for 'sm_80'\n\
        ptxas info    : Function properties for one_sm80\n    \
        16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem, 400 bytes cmem[0]\n\
        ptxas info    : Compiling entry function 'two_sm80' for 'sm_80'\n\
        ptxas info    : Function properties for two_sm80\n    \
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 8 registers, used 0 barriers\n";
    let one = ptxas::Usage {
        symbol: "one_sm80".into(),
        registers: 40,
        spilled_bytes: 16,
        stack_bytes: 16,
        shared_bytes: 2048,
    };
    let two = ptxas::Usage { symbol: "two_sm80".into(), registers: 8, ..ptxas::Usage::default() };
    assert_eq!(ptxas::parse(report), [one, two]);
}
