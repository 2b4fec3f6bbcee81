//! Damaged programs: each still parses or is refused, and what parses may fail when launched but never panics or runs on.
//!
//! `PTX_EMULATOR_CORPUS` may name a folder of further PTX files to damage.

mod support;
use proptest::prelude::*;
use ptx_emulator::{Arch, Device, LaunchConfig, Module, Swizzle, TensorMap, TensorType};
use std::sync::LazyLock;
use support::formats::Bits;

static CORPUS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx")];
    folders.extend(std::env::var_os("PTX_EMULATOR_CORPUS").map(Into::into));
    let mut out: Vec<_> = folders
        .iter()
        .flat_map(|f| std::fs::read_dir(f).into_iter().flatten().flatten())
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "ptx"))
        .collect();
    out.sort();
    out.iter().map(|p| std::fs::read_to_string(p).expect("readable")).collect()
});

/// Changes a few lines: removed, doubled, exchanged, or one word of them replaced by a word from elsewhere.
fn damage(text: &str, r: &mut Bits) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    let n = lines.len() as u64;
    let word = |line: &str, r: &mut Bits| -> Option<(usize, usize)> {
        let stop = |c: char| c.is_whitespace() || ",;[]{}()+|".contains(c);
        let starts: Vec<usize> = line
            .char_indices()
            .filter(|(i, c)| !stop(*c) && (*i == 0 || line[..*i].chars().next_back().is_some_and(stop)))
            .map(|x| x.0)
            .collect();
        let from = *starts.get(r.below(starts.len().max(1) as u64) as usize)?;
        Some((from, line[from..].find(stop).map_or(line.len(), |e| from + e)))
    };
    for _ in 0..1 + r.below(3) {
        let at = r.below(n) as usize;
        match r.below(8) {
            0 => lines[at].clear(),
            1 => lines[at] = lines[at].repeat(2),
            2 => lines.swap(at, (at + 1 + r.below(5) as usize) % n as usize),
            3 => {
                let numbers = ["0", "1", "-1", "4294967295", "0x7FFFFFFFFFFFFFFF", "255", "65536", "0f7FC00000"];
                if let Some((a, b)) = word(&lines[at], r) {
                    lines[at].replace_range(a..b, numbers[r.below(8) as usize]);
                }
            }
            _ => {
                let other = lines[r.below(n) as usize].clone();
                if let (Some((a, b)), Some((x, y))) = (word(&lines[at], r), word(&other, r)) {
                    lines[at].replace_range(a..b, &other[x..y]);
                }
            }
        }
    }
    lines.join("\n")
}

/// Launches every kernel with parameters that are addresses, small numbers and tensor maps by chance.
fn launch_all(module: &Module, r: &mut Bits) {
    for name in module.entries().into_iter().take(3) {
        let Some(entry) = module.entry(name) else { continue };
        let mut d = Device::new(Arch::Sm90a);
        d.set_instruction_limit(4_000);
        d.set_seed(r.next());
        let a = d.alloc(1 << 16).expect("memory");
        d.copy_in(a, &vec![1; 1 << 15]).expect("a copy");
        let mut params = Vec::new();
        while params.len() < entry.param_bytes as usize {
            match r.below(3) {
                0 => params.extend([r.below(70) as u32, r.below(70) as u32].iter().flat_map(|x| x.to_le_bytes())),
                _ => params.extend((a + r.below(64) * 256).to_le_bytes()),
            }
        }
        let map = TensorMap::tiled(TensorType::Bf16, a, &[64, 64], &[128], &[64, 64], &[1, 1], Swizzle::B128, false);
        for (i, b) in map.expect("a legal map").to_bytes().iter().cycle().enumerate().take(384) {
            if params.len() >= 384 {
                params[i] = *b;
            }
        }
        params.truncate(entry.param_bytes as usize);
        let threads = entry.max_threads.unwrap_or(32 << r.below(3));
        let cluster = if r.below(2) == 0 { [2, 1, 1] } else { [1; 3] };
        let config = LaunchConfig::new([2, 1, 1], [threads, 1, 1]).cluster(cluster).shared(r.below(220) as u32 * 1024);
        let _ = d.launch(module, name, &config, &params);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_kernels_fail_without_panicking(which in any::<prop::sample::Index>(), seed in any::<u64>()) {
        let mut r = Bits(seed);
        let text = damage(&CORPUS[which.index(CORPUS.len())], &mut r);
        if let Ok(module) = Module::parse(&text) {
            launch_all(&module, &mut r);
        }
    }
}
