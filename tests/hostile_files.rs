//! Thousands of mutated files through every parser: none panics, hangs, or allocates far beyond the size of its input. The same
//! checks as in `fuzz/`, deterministic and with the stable compiler.

#[path = "hostile/checks.rs"]
mod checks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use graftwork::rng::Stream;

/// Bytes live and at most live, per thread.
struct Counting;

thread_local! {
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // No destructor and a constant start: usable at any time, in an allocator too.
    let _ = LIVE.try_with(|live| {
        let (now, peak) = live.get();
        live.set((now + bytes, peak.max(now + bytes)));
    });
}

// SAFETY: both calls go to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Dice(u64);

impl Dice {
    /// Below `n`.
    fn roll(&mut self, n: usize) -> usize {
        self.0 += 1;
        Stream { seed: 11, step: 0, site: 0 }.bits(self.0) as usize % n.max(1)
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.roll(list.len())]
    }
}

/// Pieces that parsers stumble over.
const PIECES: [&str; 28] = [
    "0",
    "1",
    "-1",
    "1e999",
    "1.5",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "4294967296",
    "null",
    "true",
    "\"\"",
    "\"F32\"",
    "\"I64\"",
    "\"Q\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "[0,0]",
    "\\ud800",
    "\u{0}",
    "é",
    "NaN",
    "{\"a\":{\"a\":1}}",
    "[[[[[[[[[[[[[[[[[[[[",
];

fn mutate(input: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 + dice.roll(3) {
        let at = dice.roll(out.len() + 1);
        let end = (at + dice.roll(24)).min(out.len());
        match dice.roll(8) {
            0 if at < out.len() => out[at] ^= 1 << dice.roll(8),
            1 if at < out.len() => out[at] = dice.roll(256) as u8,
            2 => drop(out.drain(at..end)),
            3 => out.truncate(at),
            4 => {
                let copy = out[at..end].to_vec();
                let to = dice.roll(out.len() + 1);
                out.splice(to..to, copy);
            }
            // A number or a word replaced by something else is what gets furthest into a parser.
            5 | 6 => {
                let word = |b: &u8| b.is_ascii_alphanumeric();
                let start = at - out[..at].iter().rev().take_while(|b| word(b)).count();
                let stop = at + out[at..].iter().take_while(|b| word(b)).count();
                out.splice(start..stop, dice.pick(&PIECES).bytes());
            }
            _ => drop(out.splice(at..at, dice.pick(&PIECES).bytes())),
        }
    }
    out
}

/// The header of a safetensors file mutated, and its length made to fit in most cases.
fn mutate_safetensors(input: &[u8], dice: &mut Dice) -> Vec<u8> {
    if dice.roll(6) == 0 {
        return mutate(input, dice);
    }
    let len = u64::from_le_bytes(input[..8].try_into().unwrap()) as usize;
    let header = mutate(&input[8..8 + len], dice);
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(&input[8 + len..]);
    out
}

fn hold(check: fn(&[u8]) -> bool, seeds: &[Vec<u8>], mutate: fn(&[u8], &mut Dice) -> Vec<u8>) {
    const ROUNDS: usize = 20_000;
    let (mut dice, mut accepted) = (Dice(0), 0);
    for seed in seeds {
        assert!(check(seed), "an unharmed file is accepted: {:?}", String::from_utf8_lossy(seed));
    }
    for round in 0..ROUNDS {
        let input = mutate(&seeds[round % seeds.len()], &mut dice);
        let before = LIVE.get().0;
        LIVE.set((before, before));
        let start = Instant::now();
        accepted += usize::from(check(&input));
        let (took, peak) = (start.elapsed(), LIVE.get().1 - before);
        let text = || String::from_utf8_lossy(&input).into_owned();
        assert!(took < Duration::from_secs(5), "{took:?} for {}", text());
        assert!(peak < 128 * input.len() as isize + (4 << 20), "{peak} bytes for {}", text());
    }
    assert!(accepted > 0 && accepted < ROUNDS, "{accepted} of {ROUNDS} accepted: the mutations miss their aim");
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/peft/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.bytes());
    out.resize(out.len() + data, 0);
    out
}

#[test]
fn safetensors_headers() {
    let small = r#"{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"I16","shape":[0],"data_offsets":[8,8]}}"#;
    let seeds = [safetensors(small, 8), safetensors("{}", 0), fixture("lora/adapter/adapter_model.safetensors")];
    hold(checks::safetensors_header, &seeds, mutate_safetensors);
}

#[test]
fn adapter_configurations() {
    let small = r#"{"peft_type":"LORA","target_modules":".*\\.(q|v)_proj","rank_pattern":{"^a.b$":2,"c":3},"alpha_pattern":{"x+":1.5},"layers_to_transform":[1],"layers_pattern":"l","modules_to_save":["a","b.c"]}"#;
    let names = small.replace(r#"".*\\.(q|v)_proj""#, r#"["q_proj","b"]"#);
    let seeds = [small.into(), names.into(), fixture("rslora/adapter/adapter_config.json")];
    hold(checks::adapter_config, &seeds, mutate);
}

#[test]
fn checkpoint_states() {
    let seed = r#"{"version":1,"progress":{"step":3,"micro_step":6,"seed":18446744073709551615,"epoch":0,"index":9},"schedule":{"kind":"cosine","lr":0.001},"config":{"rank":4,"nested":[1,{"a":null}]},"layout":[{"name":"a","dims":[2,3],"offset":0},{"name":"b","dims":[],"offset":64}],"flat_len":128}"#;
    hold(checks::checkpoint_state, &[seed.into()], mutate);
}

#[test]
fn graphs() {
    let head = "%%MatrixMarket matrix coordinate";
    let real = format!("{head} real general\n% a note\n3 4 3\n1 4 0.5\n3 1 -2e-3\n2 2 7\n");
    let pattern = format!("{head} pattern symmetric\n5 5 3\n2 1\n5 5\n4 2\n");
    hold(checks::matrix_market, &[real.into(), pattern.into()], mutate);
    hold(checks::edge_list, &["# from to\n0 1\n2,0\n3\t3\n".into(), "0 1 0.5\n4 2 -1e3\n".into()], mutate);
}

/// Inputs that aim at time and memory: large, and regular where a careless parser is quadratic or worse.
#[test]
fn large_inputs_are_refused_or_read_in_bounded_time_and_memory() {
    let bounded = |what: &str, check: fn(&[u8]) -> bool, input: Vec<u8>| {
        let before = LIVE.get().0;
        LIVE.set((before, before));
        let start = Instant::now();
        check(&input);
        let (took, peak) = (start.elapsed(), LIVE.get().1 - before);
        assert!(took < Duration::from_secs(20), "{what}: {took:?}");
        assert!(peak < 128 * input.len() as isize + (4 << 20), "{what}: {peak} bytes for {} of input", input.len());
    };
    let many = |n: usize, item: &dyn Fn(usize) -> String| (0..n).map(item).collect::<Vec<_>>().join(",");
    let tensor = |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    bounded(
        "a million tensors",
        checks::safetensors_header,
        safetensors(&format!("{{{}}}", many(1_000_000, &tensor)), 0),
    );
    let metadata = format!(r#"{{"__metadata__":{{{}}}}}"#, many(1_000_000, &|i| format!(r#""{i}":"""#)));
    bounded("a million texts", checks::safetensors_header, safetensors(&metadata, 0));
    let dims =
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}}"#, many(1_000_000, &|_| "1".into()));
    bounded("a million dimensions", checks::safetensors_header, safetensors(&dims, 1));
    bounded("deep nesting", checks::safetensors_header, safetensors(&format!("{{\"a\":{}", "[".repeat(1_000_000)), 0));
    bounded(
        "a long name",
        checks::safetensors_header,
        safetensors(&format!("{{\"{}\":1}}", "n".repeat(10_000_000)), 0),
    );

    let head = "%%MatrixMarket matrix coordinate pattern general";
    bounded("nodes alone", checks::matrix_market, format!("{head}\n131000 131000 0\n").into());
    bounded(
        "many entries",
        checks::matrix_market,
        format!("{head}\n1 1 1000000\n{}", "1 1\n".repeat(1_000_000)).into(),
    );
    bounded("many edges", checks::edge_list, "0 1\n".repeat(1_000_000).into());
    bounded("blank lines", checks::edge_list, "\n".repeat(10_000_000).into());

    let config = |fields: &str| format!(r#"{{"peft_type":"LORA","target_modules":["q"],{fields}}}"#).into_bytes();
    let ranks = format!(r#""rank_pattern":{{{}}}"#, many(200_000, &|i| format!(r#""m{i}":1"#)));
    bounded("many patterns", checks::adapter_config, config(&ranks));
    let expressions = format!(r#""rank_pattern":{{{}}}"#, many(1000, &|i| format!(r#""(x+x+)+{i}":1"#)));
    bounded("many expressions", checks::adapter_config, config(&expressions));
    bounded(
        "a remark of numbers",
        checks::adapter_config,
        config(&format!("\"x\":[{}]", many(1_000_000, &|_| "0".into()))),
    );
    let nest = br#"{"peft_type":"LORA","target_modules":"((((a{99}){99}){99}){99})*"}"#.to_vec();
    bounded("a growing expression", checks::adapter_config, nest);
    let state = format!(
        r#"{{"version":1,"progress":{{"step":0,"micro_step":0,"seed":0,"epoch":0,"index":0}},"schedule":null,"config":[{}],"layout":[{}],"flat_len":0}}"#,
        many(1_000_000, &|_| "[]".into()),
        many(100_000, &|i| format!(r#"{{"name":"{i}","dims":[0],"offset":0}}"#))
    );
    bounded("a large state", checks::checkpoint_state, state.into_bytes());
}
