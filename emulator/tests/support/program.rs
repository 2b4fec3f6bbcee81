//! Small programs in PTX, made by the tests, that run alike on the emulator and through a driver.

use ptx_emulator::{Arch, Device, Fault, FaultKind, LaunchConfig, Module, Numerics, Swizzle, TensorMap, TensorType};

use super::layout::Tile;

/// A tensor map over the buffer of another parameter.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub buffer: usize,
    pub ty: TensorType,
    pub dims: Vec<u64>,
    pub strides: Vec<u64>,
    pub tile: Vec<u32>,
    pub steps: Vec<u32>,
    pub span: u32,
    pub nan_fill: bool,
}

impl Tensor {
    pub fn swizzle(&self) -> Swizzle {
        match self.span {
            32 => Swizzle::B32,
            64 => Swizzle::B64,
            128 => Swizzle::B128,
            _ => Swizzle::None,
        }
    }
}

#[derive(Debug, Clone)]
pub enum Param {
    /// A buffer with these bytes.
    Buffer(Vec<u8>),
    /// A buffer of so many bytes that nobody has written.
    Fresh(usize),
    /// The buffer that is read back, with what it holds before.
    Output(Vec<u8>),
    Word(u32),
    Long(u64),
    Map(Tensor),
}

/// One kernel `k` and its launch: one dimension each of blocks, threads and cluster.
#[derive(Debug, Clone)]
pub struct Program {
    pub text: String,
    pub grid: u32,
    pub block: u32,
    pub cluster: u32,
    pub shared: u32,
    pub params: Vec<Param>,
}

impl Program {
    /// A Hopper program runs on sm_90a only.
    pub fn hopper(&self) -> bool {
        self.text.contains(".target sm_90a")
    }

    pub fn output(&self) -> &[u8] {
        self.params.iter().find_map(|p| if let Param::Output(b) = p { Some(b.as_slice()) } else { None }).unwrap_or(&[])
    }
}

/// Runs a program on the emulator: what its output holds afterwards.
pub fn emulate(p: &Program, numerics: Numerics, seed: u64) -> Result<Vec<u8>, Box<Fault>> {
    let refuse = |text: String| {
        Box::new(Fault {
            kind: FaultKind::Misuse(text),
            kernel: "k".into(),
            block: None,
            warp: None,
            lane: None,
            line: None,
            source: None,
            inlined_at: Vec::new(),
        })
    };
    let module = Module::parse(&p.text).map_err(|e| refuse(format!("{e}\n{}", p.text)))?;
    let mut d = Device::new(if p.hopper() { Arch::Sm90a } else { Arch::Sm80 });
    d.set_numerics(numerics);
    d.set_seed(seed);
    let mut addresses = Vec::new();
    for param in &p.params {
        addresses.push(match param {
            Param::Buffer(b) | Param::Output(b) => {
                let a = d.alloc(b.len() as u64).map_err(|e| refuse(e.to_string()))?;
                d.copy_in(a, b).map_err(|e| refuse(e.to_string()))?;
                a
            }
            Param::Fresh(bytes) => d.alloc(*bytes as u64).map_err(|e| refuse(e.to_string()))?,
            _ => 0,
        });
    }
    let mut bytes: Vec<u8> = Vec::new();
    for (param, address) in p.params.iter().zip(&addresses) {
        let (piece, align) = match param {
            Param::Buffer(_) | Param::Fresh(_) | Param::Output(_) => (address.to_le_bytes().to_vec(), 8),
            Param::Word(w) => (w.to_le_bytes().to_vec(), 4),
            Param::Long(w) => (w.to_le_bytes().to_vec(), 8),
            Param::Map(t) => {
                let base = addresses[t.buffer];
                let map = TensorMap::tiled(t.ty, base, &t.dims, &t.strides, &t.tile, &t.steps, t.swizzle(), t.nan_fill)
                    .map_err(|e| refuse(e.to_string()))?;
                (map.to_bytes().to_vec(), 64)
            }
        };
        bytes.resize(bytes.len().next_multiple_of(align), 0);
        bytes.extend(piece);
    }
    let config = LaunchConfig::new([p.grid, 1, 1], [p.block, 1, 1]).cluster([p.cluster, 1, 1]).shared(p.shared);
    d.launch(&module, "k", &config, &bytes)?;
    let at = p.params.iter().position(|x| matches!(x, Param::Output(_))).unwrap_or(0);
    let mut out = vec![0; p.output().len()];
    d.copy_out(&mut out, addresses[at]).map_err(|e| refuse(e.to_string()))?;
    Ok(out)
}

pub fn run(p: &Program) -> Vec<u8> {
    emulate(p, Numerics::Ascending, 0).unwrap_or_else(|f| panic!("{f}\n{}", p.text))
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

pub fn longs(bytes: &[u8]) -> Vec<u64> {
    words(bytes).chunks_exact(2).map(|c| u64::from(c[0]) | u64::from(c[1]) << 32).collect()
}

pub fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn header(target: &str) -> String {
    format!(".version 9.0\n.target {target}\n.address_size 64\n")
}

/// PTX that puts one instruction (or a few) between loads and a store of 64 bits for each thread.
///
/// Inputs a, b, c are in %rd1..3 (64 bits), %r1..3 (their low 32 bits), %h1..3 (low 16), %f1..3 and %d1..3 (their bits as
/// floats), %p1..3 (low 32 bits not zero). The result is taken from %rd9, %r9, %h9, %f9, %d9 or %p9, as `out` says.
pub fn elementwise_text(target: &str, body: &str, out: &str) -> String {
    let result = match out {
        "rd" => "",
        "r" => "cvt.u64.u32 %rd9, %r9;",
        "h" => "cvt.u64.u16 %rd9, %h9;",
        "f" => "mov.b32 %r9, %f9; cvt.u64.u32 %rd9, %r9;",
        "d" => "mov.b64 %rd9, %d9;",
        _ => "selp.b64 %rd9, 1, 0, %p9;",
    };
    format!(
        "{}.visible .entry k(.param .u64 in, .param .u64 out)\n{{
.reg .b64 %rd<20>; .reg .b32 %r<30>; .reg .b16 %h<20>; .reg .f32 %f<20>; .reg .f64 %d<20>; .reg .pred %p<20>;
ld.param.u64 %rd7, [in]; ld.param.u64 %rd8, [out];
mov.u32 %r20, %ctaid.x; mov.u32 %r21, %ntid.x; mov.u32 %r22, %tid.x; mad.lo.u32 %r20, %r20, %r21, %r22;
mad.wide.u32 %rd7, %r20, 24, %rd7; mad.wide.u32 %rd8, %r20, 8, %rd8;
ld.global.b64 %rd1, [%rd7]; ld.global.b64 %rd2, [%rd7+8]; ld.global.b64 %rd3, [%rd7+16];
cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; cvt.u32.u64 %r3, %rd3;
cvt.u16.u64 %h1, %rd1; cvt.u16.u64 %h2, %rd2; cvt.u16.u64 %h3, %rd3;
mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; mov.b64 %d1, %rd1; mov.b64 %d2, %rd2; mov.b64 %d3, %rd3;
setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r2, 0; setp.ne.u32 %p3, %r3, 0;
{body}\n{result} st.global.b64 [%rd8], %rd9;\nret;\n}}\n",
        header(target)
    )
}

/// The inputs are padded to whole blocks of 64 threads with copies of the last.
pub fn elementwise(target: &str, body: &str, out: &str, inputs: &[[u64; 3]]) -> Program {
    let block = 64.min(inputs.len().max(1));
    let mut padded = inputs.to_vec();
    padded.resize(inputs.len().next_multiple_of(block), inputs.last().copied().unwrap_or([0; 3]));
    let bytes = padded.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    Program {
        text: elementwise_text(target, body, out),
        grid: (padded.len() / block) as u32,
        block: block as u32,
        cluster: 1,
        shared: 0,
        params: vec![Param::Buffer(bytes), Param::Output(vec![0; padded.len() * 8])],
    }
}

fn registers(name: &str, n: usize) -> String {
    (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ")
}

/// One `mma.sync`: fragments come from memory, lane by lane. `counts`: registers of D, A, B, C; `wide`: of 64 bits.
pub fn mma(target: &str, instruction: &str, counts: [usize; 4], wide: bool, inputs: [&[u32]; 3]) -> Program {
    let (size, ty) = if wide { (8, "b64") } else { (4, "b32") };
    let mut body = String::new();
    for (name, n, base) in [("a", counts[1], "%rd1"), ("b", counts[2], "%rd2"), ("c", counts[3], "%rd3")] {
        body += &format!("mad.wide.u32 %rd9, %lane, {}, {base};\n", n * size);
        for i in 0..n {
            body += &format!("ld.global.{ty} %{name}{i}, [%rd9+{}];\n", i * size);
        }
    }
    let [d, a, b, c] =
        [("d", counts[0]), ("a", counts[1]), ("b", counts[2]), ("c", counts[3])].map(|(name, n)| registers(name, n));
    body += &format!("{instruction} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n");
    body += &format!("mad.wide.u32 %rd9, %lane, {}, %rd4;\n", counts[0] * size);
    for i in 0..counts[0] {
        body += &format!("st.global.{ty} [%rd9+{}], %d{i};\n", i * size);
    }
    let text = format!(
        "{}.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)\n{{
.reg .b64 %rd<10>; .reg .b32 %lane; .reg .{ty} %a<16>; .reg .{ty} %b<16>; .reg .{ty} %c<16>; .reg .{ty} %d<16>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd4, [d]; mov.u32 %lane, %laneid;
{body}ret;\n}}\n",
        header(target)
    );
    let [a, b, c] = inputs.map(|x| Param::Buffer(bytes_of(x)));
    let out = Param::Output(vec![0; 32 * counts[0] * size]);
    Program { text, grid: 1, block: 32, cluster: 1, shared: 0, params: vec![a, b, c, out] }
}

/// What a `wgmma` program does beside its operands.
#[derive(Debug, Clone, Copy)]
pub struct Wgmma<'a> {
    /// As in `m64n16k16.f32.bf16.bf16`, after `wgmma.mma_async.sync.aligned.`.
    pub form: &'a str,
    /// Accumulator registers of a thread.
    pub accumulators: usize,
    /// Immediate operands after `scale-d`.
    pub immediates: &'a str,
    pub scale_d: bool,
}

/// One `wgmma` of one warpgroup. A is a tile in shared memory or four registers of each thread; the accumulators' registers come
/// from `c` and go to the output, thread by thread.
pub fn wgmma(w: Wgmma, a: Result<(Tile, Vec<u8>), Vec<u32>>, b: (Tile, Vec<u8>), c: &[u32]) -> Program {
    let n = w.accumulators;
    let (a_bytes, in_registers) = match &a {
        Ok((_, image)) => (image.clone(), false),
        Err(registers) => (bytes_of(registers), true),
    };
    let b_at = if in_registers { 0 } else { a_bytes.len() };
    let fill = |base: &str, at: usize, bytes: usize, label: &str| {
        format!(
            "mov.u32 %r5, %r1;\n{label}:\nsetp.ge.u32 %p1, %r5, {}; @%p1 bra {label}_DONE;
mad.wide.u32 %rd9, %r5, 16, {base};\nld.global.v4.b32 {{%r6, %r7, %r8, %r9}}, [%rd9];
shl.b32 %r10, %r5, 4; add.u32 %r10, %r10, %r2;\nst.shared.v4.b32 [%r10+{at}], {{%r6, %r7, %r8, %r9}};
add.u32 %r5, %r5, 128; bra {label};\n{label}_DONE:\n",
            bytes / 16
        )
    };
    let mut body = String::new();
    let a_operand = if in_registers {
        body += "mad.wide.u32 %rd9, %r1, 16, %rd1; ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd9];\n";
        "{%a0, %a1, %a2, %a3}"
    } else {
        body += &fill("%rd1", 0, a_bytes.len(), "FILL_A");
        body +=
            "cvt.u64.u32 %rd10, %r2; shr.u64 %rd10, %rd10, 4; ld.param.u64 %rd11, [da]; add.u64 %rd10, %rd10, %rd11;\n";
        "%rd10"
    };
    body += &fill("%rd2", b_at, b.1.len(), "FILL_B");
    body += &format!(
        "add.u32 %r11, %r2, {b_at}; cvt.u64.u32 %rd12, %r11; shr.u64 %rd12, %rd12, 4; ld.param.u64 %rd13, [db];
add.u64 %rd12, %rd12, %rd13;\nmad.wide.u32 %rd9, %r1, {}, %rd3;\n",
        4 * n
    );
    for i in 0..n {
        body += &format!("ld.global.b32 %d{i}, [%rd9+{}];\n", 4 * i);
    }
    body += &format!(
        "ld.param.u32 %r12, [sd]; setp.ne.u32 %p2, %r12, 0;\nfence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.{} {{{}}}, {a_operand}, %rd12, %p2{};\nwgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;\nmad.wide.u32 %rd9, %r1, {}, %rd4;\n",
        w.form,
        registers("d", n),
        w.immediates,
        4 * n
    );
    for i in 0..n {
        body += &format!("st.global.b32 [%rd9+{}], %d{i};\n", 4 * i);
    }
    let float = if w.form.contains(".f32.") { "f32" } else { "b32" };
    let text = format!(
        "{}.extern .shared .align 1024 .b8 buffer[];
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d, .param .u64 da, .param .u64 db, .param .u32 sd)\n{{
.reg .b64 %rd<20>; .reg .b32 %r<20>; .reg .b32 %a<4>; .reg .{float} %d<{}>; .reg .pred %p<4>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd4, [d];
mov.u32 %r1, %tid.x; mov.u32 %r2, buffer;\n{body}ret;\n}}\n",
        header("sm_90a"),
        n.max(1)
    );
    let da = a.as_ref().map_or(0, |(t, _)| t.descriptor());
    let shared = (b_at + b.1.len()) as u32;
    let params = vec![
        Param::Buffer(a_bytes),
        Param::Buffer(b.1),
        Param::Buffer(bytes_of(c)),
        Param::Output(vec![0; 128 * n * 4]),
        Param::Long(da),
        Param::Long(b.0.descriptor()),
        Param::Word(u32::from(w.scale_d)),
    ];
    Program { text, grid: 1, block: 128, cluster: 1, shared, params }
}

fn coordinates(rank: usize) -> String {
    (0..rank).map(|i| format!("%c{i}")).collect::<Vec<_>>().join(", ")
}

/// A tensor load into shared memory; the output is the tile as it lies there, `bytes` long.
pub fn tensor_load(map: Tensor, data: Vec<u8>, at: &[i32], bytes: usize) -> Program {
    let rank = at.len();
    let loads: String = (0..rank).map(|i| format!("mov.b32 %c{i}, {};\n", at[i])).collect();
    let text = format!(
        "{}.extern .shared .align 1024 .b8 buffer[];
.visible .entry k(.param .u64 in, .param .align 64 .b8 map[128], .param .u64 out)\n{{
.reg .b64 %rd<20>; .reg .b32 %r<20>; .reg .b32 %c<6>; .reg .pred %p<4>; .shared .align 8 .b64 bar;
ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, buffer; mov.u32 %r3, bar; mov.b64 %rd2, map; cvta.param.u64 %rd2, %rd2;\n{loads}
setp.ne.u32 %p1, %r1, 0; @%p1 bra START;
mbarrier.init.shared::cta.b64 [%r3], 1;
fence.mbarrier_init.release.cluster;
fence.proxy.async;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};
cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd2, {{{}}}], [%r3];
START:
bar.sync 0;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
@!%p2 bra WAIT;
shl.b32 %r5, %r1, 2;
LOOP:
setp.ge.u32 %p3, %r5, {bytes}; @%p3 bra DONE;
add.u32 %r6, %r2, %r5; ld.shared.b32 %r7, [%r6]; cvt.u64.u32 %rd3, %r5; add.u64 %rd4, %rd1, %rd3; st.global.b32 [%rd4], %r7;
add.u32 %r5, %r5, 128; bra LOOP;
DONE:
ret;\n}}\n",
        header("sm_90a"),
        coordinates(rank)
    );
    let shared = (bytes as u32).next_multiple_of(1024);
    let params = vec![Param::Buffer(data), Param::Map(map), Param::Output(vec![0; bytes])];
    Program { text, grid: 1, block: 32, cluster: 1, shared, params }
}

/// A tensor store, or a reduction (`.add` and so on), of a tile that lies in shared memory as `image` says.
pub fn tensor_store(map: Tensor, before: Vec<u8>, image: Vec<u8>, at: &[i32], reduce: &str) -> Program {
    let rank = at.len();
    let loads: String = (0..rank).map(|i| format!("mov.b32 %c{i}, {};\n", at[i])).collect();
    let start = if reduce.is_empty() { "cp" } else { "cp.reduce" };
    let mode = if reduce.is_empty() { ".tile.bulk_group".to_string() } else { format!("{reduce}.tile.bulk_group") };
    let text = format!(
        "{}.extern .shared .align 1024 .b8 buffer[];
.visible .entry k(.param .u64 in, .param .u64 out, .param .align 64 .b8 map[128])\n{{
.reg .b64 %rd<20>; .reg .b32 %r<20>; .reg .b32 %c<6>; .reg .pred %p<4>;
ld.param.u64 %rd1, [in]; mov.u32 %r1, %tid.x; mov.u32 %r2, buffer; mov.b64 %rd2, map; cvta.param.u64 %rd2, %rd2;\n{loads}
shl.b32 %r5, %r1, 2;
LOOP:
setp.ge.u32 %p3, %r5, {}; @%p3 bra DONE;
add.u32 %r6, %r2, %r5; cvt.u64.u32 %rd3, %r5; add.u64 %rd4, %rd1, %rd3; ld.global.b32 %r7, [%rd4]; st.shared.b32 [%r6], %r7;
add.u32 %r5, %r5, 128; bra LOOP;
DONE:
fence.proxy.async.shared::cta;
bar.sync 0;
setp.ne.u32 %p1, %r1, 0; @%p1 bra END;
{start}.async.bulk.tensor.{rank}d.global.shared::cta{mode} [%rd2, {{{}}}], [%r2];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
END:
ret;\n}}\n",
        header("sm_90a"),
        image.len(),
        coordinates(rank)
    );
    let shared = (image.len() as u32).next_multiple_of(1024);
    let params = vec![Param::Buffer(image), Param::Output(before), Param::Map(map)];
    Program { text, grid: 1, block: 32, cluster: 1, shared, params }
}
