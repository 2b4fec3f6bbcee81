//! The parser takes anything: it answers with a module or an error that has a place, and never panics or hangs.

mod support;
use proptest::prelude::*;
use ptx_emulator::Module;

const SEEDS: [&str; 2] = [include_str!("ptx/simt_matmul.ptx"), include_str!("ptx/hopper_matmul.ptx")];

/// Cuts a text at a character boundary.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

fn parses_or_says_where(text: &str) {
    if let Err(e) = Module::parse(text) {
        let lines = text.lines().count() as u32 + 1;
        assert!(e.line <= lines, "line {} of {lines}", e.line);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in "\\PC{0,400}") {
        parses_or_says_where(&text);
    }

    #[test]
    fn ptx_like_text(words in prop::collection::vec(prop::sample::select(vec![
        ".version", "9.0", ".target", "sm_80", ".entry", "k", "(", ")", "{", "}", ".reg", ".b32", "%r<4>", "%r", "<", ">", ";",
        ",", "add.s32", "%r1", "[", "]", "+", "-", "!", "|", "@", "L:", "bra", "0f3F800000", "0x", "1", "\"", ".param", ".align",
        "4294967296", ".shared", "=", "mov.b64", "ld.global.v4.f32", "call", "_", ".loc", "1 2 3", "inlined_at", "mma.sync",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16", "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group",
    ]), 0..120)) {
        parses_or_says_where(&words.join(" "));
    }

    #[test]
    fn cut_and_spliced_modules(which in 0usize..2, at in 0usize..60_000, len in 0usize..200, junk in "[\\PC\n]{0,20}") {
        let text = SEEDS[which];
        let from = boundary(text, at % text.len());
        let to = boundary(text, from + len);
        parses_or_says_where(&format!("{}{junk}{}", &text[..from], &text[to..]));
    }
}

#[test]
fn deep_nesting_is_refused() {
    for (open, n) in [("{", 100_000), ("[", 100_000), ("-", 100_000), ("!", 100_000), ("(", 100_000)] {
        let body = open.repeat(n);
        let text = format!(".version 9.0\n.target sm_80\n.address_size 64\n.entry k() {{ mov.u32 %r1, {body} ; }}");
        assert!(Module::parse(&text).is_err());
        let text = format!(".version 9.0\n.target sm_80\n.address_size 64\n.entry k() {{ {body} }}");
        assert!(Module::parse(&text).is_err());
    }
}

#[test]
fn huge_declarations_are_refused() {
    for line in [
        ".global .b8 a[99999999999];",
        ".global .b8 a[65536][65536];",
        ".global .align 3 .b8 a[4];",
        ".entry k() { .reg .b32 %r<4294967295>; }",
        ".entry k() { .local .b8 a[99999999]; }",
        ".entry k(.param .b8 a[99999]) { ret; }",
    ] {
        assert!(Module::parse(&format!(".version 9.0\n.target sm_80\n.address_size 64\n{line}\n")).is_err(), "{line}");
    }
}
