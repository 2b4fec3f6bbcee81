//! Faults planted on purpose: one program for each tool of compute-sanitizer, so that a run which reports nothing is known to mean something.

use super::support::program::{Param, Program, header};

/// The tools whose programs [`program`] knows.
pub const TOOLS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];

/// The program that `tool` must complain of.
pub fn program(tool: &str) -> Option<Program> {
    let body = match tool {
        // Past the end of the buffer.
        "memcheck" => "st.global.u32 [%rd2+128], %r1;",
        // The second warp reads what the first writes for the second time, with no barrier between.
        "racecheck" => {
            "@%p0 st.shared.u32 [s], %r1;
bar.sync 0;
@%p0 st.shared.u32 [s], %r4;
@%p1 bra DONE;
ld.shared.u32 %r3, [s];
st.global.u32 [%rd2], %r3;
DONE:"
        }
        // Nobody has written the words of the first buffer.
        "initcheck" => "ld.global.u32 %r3, [%rd1]; st.global.u32 [%rd2], %r3;",
        // The halves of a warp meet barriers in two places.
        "synccheck" => {
            "@%p2 bra OTHER;\nbar.sync 0;\nbra DONE;\nOTHER:\nbar.sync 0;\nDONE:\nst.global.u32 [%rd2], %r1;"
        }
        _ => return None,
    };
    let text = format!(
        "{}.visible .entry k(.param .u64 fresh, .param .u64 out)\n{{
.reg .b64 %rd<4>; .reg .b32 %r<6>; .reg .pred %p<3>; .shared .align 4 .b32 s;
ld.param.u64 %rd1, [fresh]; ld.param.u64 %rd2, [out];
mov.u32 %r1, %tid.x; setp.eq.u32 %p0, %r1, 0; setp.lt.u32 %p1, %r1, 32; setp.lt.u32 %p2, %r1, 16;
and.b32 %r4, %r1, 31; mad.wide.u32 %rd1, %r4, 4, %rd1; mad.wide.u32 %rd2, %r4, 4, %rd2;
{body}\nret;\n}}\n",
        header("sm_80")
    );
    let block = if tool == "racecheck" { 64 } else { 32 };
    let params = vec![Param::Fresh(128), Param::Output(vec![0; 128])];
    Some(Program { text, grid: 1, block, cluster: 1, shared: 0, params })
}
