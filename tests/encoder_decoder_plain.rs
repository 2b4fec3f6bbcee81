//! The encoder-decoder against a plain one: loops over numbers in f64, written from the papers and sharing nothing with the library but the
//! weights' file and the sizes in its configuration. Rounded after every operation, the plain one says what a 16-bit trunk may be off by.

use std::path::PathBuf;

use graftwork::autograd::{Tape, Var};
use graftwork::format::safetensors::SafeTensors;
use graftwork::models::encoder_decoder::{EncoderDecoder, EncoderDecoderConfig, Order, Places, Source};
use graftwork::tensor::ParamSet;
use graftwork::{DType, Device, Tensor};
use half::{bf16, f16};

const FORMS: [&str; 3] = ["bart", "t5", "t5_gated"];
const ENCODER: usize = 0;
const DECODER: usize = 1;

/// Rows of numbers: tokens of one sample.
type Rows = Vec<Vec<f64>>;

struct Plain {
    file: SafeTensors,
    config: EncoderDecoderConfig,
    /// What happens to the result of every operation.
    round: fn(f64) -> f64,
}

/// One sample of a fixture.
struct Sample {
    features: Rows,
    ids: Vec<usize>,
    keep: Vec<bool>,
    given: Vec<usize>,
}

/// Which keys a query sees, and what is added to its scores.
type See<'a> = &'a dyn Fn(usize, usize) -> bool;
type Add<'a> = &'a dyn Fn(usize, usize, usize) -> f64;

impl Plain {
    fn is_bart(&self) -> bool {
        self.config.order == Order::PostNorm
    }

    fn numbers(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let tensor = self.file.contains(name).then(|| self.file.tensor(name, &Device::cpu()).unwrap())?;
        let values = tensor.to_f64_vec().unwrap().into_iter().map(self.round).collect();
        Some((tensor.dims().to_vec(), values))
    }

    fn rounded(&self, mut rows: Rows) -> Rows {
        rows.iter_mut().flatten().for_each(|v| *v = (self.round)(*v));
        rows
    }

    /// `x Wᵀ + b`
    fn linear(&self, x: &Rows, path: &str) -> Rows {
        let (dims, weight) = self.numbers(&format!("{path}.weight")).unwrap();
        let bias = self.numbers(&format!("{path}.bias")).map_or(vec![0.0; dims[0]], |(_, bias)| bias);
        let one = |row: &Vec<f64>, j: usize| (0..dims[1]).map(|c| row[c] * weight[j * dims[1] + c]).sum::<f64>();
        self.rounded(x.iter().map(|row| (0..dims[0]).map(|j| one(row, j) + bias[j]).collect()).collect())
    }

    fn norm(&self, x: &Rows, path: &str) -> Rows {
        let gamma = self.numbers(&format!("{path}.weight")).unwrap().1;
        let beta = self.numbers(&format!("{path}.bias")).map(|(_, beta)| beta);
        let one = |row: &Vec<f64>| -> Vec<f64> {
            let n = row.len() as f64;
            let mean = if self.is_bart() { row.iter().sum::<f64>() / n } else { 0.0 };
            let spread = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let scale = 1.0 / (spread + self.config.eps).sqrt();
            let shift = |c: usize| beta.as_ref().map_or(0.0, |beta| beta[c]);
            row.iter().enumerate().map(|(c, v)| (v - mean) * scale * gamma[c] + shift(c)).collect()
        };
        self.rounded(x.iter().map(one).collect())
    }

    fn add(&self, a: &Rows, b: &Rows) -> Rows {
        let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
        self.rounded(a.iter().zip(b).map(row).collect())
    }

    fn times(&self, x: Rows, factor: f64) -> Rows {
        if factor == 1.0 { x } else { self.rounded(x.iter().map(|r| r.iter().map(|v| v * factor).collect()).collect()) }
    }

    /// Queries from `x`, keys and values from `seen`.
    fn attention(&self, x: &Rows, seen: &Rows, path: &str, side: usize, see: See, add: Add) -> Rows {
        let names = if self.is_bart() { ["q_proj", "k_proj", "v_proj", "out_proj"] } else { ["q", "k", "v", "o"] };
        let [q, k, v] = [(x, names[0]), (seen, names[1]), (seen, names[2])]
            .map(|(rows, name)| self.linear(rows, &format!("{path}.{name}")));
        let (heads, d) = (self.config.heads[side], self.config.head_width);
        let scale = if self.is_bart() { 1.0 / (d as f64).sqrt() } else { 1.0 };
        let mut mixed = vec![vec![0.0; heads * d]; x.len()];
        for (i, mixed) in mixed.iter_mut().enumerate() {
            for head in 0..heads {
                let part = head * d..(head + 1) * d;
                let score = |j: usize| -> f64 {
                    let dot: f64 = part.clone().map(|c| q[i][c] * k[j][c]).sum();
                    if see(i, j) { scale * dot + add(head, i, j) } else { f64::NEG_INFINITY }
                };
                let scores: Vec<f64> = (0..seen.len()).map(score).collect();
                let most = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
                let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let total: f64 = shares.iter().sum();
                for c in part {
                    mixed[c] = shares.iter().zip(&v).map(|(share, v)| share * v[c]).sum::<f64>() / total;
                }
            }
        }
        self.linear(&self.rounded(mixed), &format!("{path}.{}", names[3]))
    }

    fn feed_forward(&self, x: &Rows, path: &str) -> Rows {
        let erf = |v: f64| 0.5 * v * (1.0 + libm::erf(v / 2.0f64.sqrt()));
        let tanh = |v: f64| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh());
        let relu = |v: f64| v.max(0.0);
        let through = |rows: Rows, f: &dyn Fn(f64) -> f64| {
            self.rounded(rows.iter().map(|row| row.iter().map(|&v| f(v)).collect()).collect())
        };
        if self.is_bart() {
            let wide = through(self.linear(x, &format!("{path}.fc1")), &erf);
            return self.linear(&wide, &format!("{path}.fc2"));
        }
        let path = format!("{path}.DenseReluDense");
        if !self.config.gated {
            let wide = through(self.linear(x, &format!("{path}.wi")), &relu);
            return self.linear(&wide, &format!("{path}.wo"));
        }
        let wide = through(self.linear(x, &format!("{path}.wi_0")), &tanh);
        let gate = self.linear(x, &format!("{path}.wi_1"));
        let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a * b).collect();
        let gated = self.rounded(wide.iter().zip(&gate).map(row).collect());
        self.linear(&gated, &format!("{path}.wo"))
    }

    /// A sub-layer with its norm and its residual connection.
    fn around(&self, x: &Rows, norm: &str, sub_layer: impl Fn(&Rows) -> Rows) -> Rows {
        if self.is_bart() {
            return self.norm(&self.add(x, &sub_layer(x)), norm);
        }
        self.add(x, &sub_layer(&self.norm(x, norm)))
    }

    fn words(&self, ids: &[usize]) -> Rows {
        let name = if self.is_bart() { "model.shared.weight" } else { "shared.weight" };
        let (dims, table) = self.numbers(name).unwrap();
        let rows = ids.iter().map(|id| table[id * dims[1]..(id + 1) * dims[1]].to_vec()).collect();
        self.times(rows, self.config.embedding_scale)
    }

    /// BART: adds the learned positions, the first two of which are never used, and a norm.
    fn enter(&self, x: Rows, side: &str) -> Rows {
        if !self.is_bart() {
            return x;
        }
        let (dims, table) = self.numbers(&format!("model.{side}.embed_positions.weight")).unwrap();
        let place = |i: usize| table[(i + 2) * dims[1]..(i + 3) * dims[1]].to_vec();
        let placed = self.add(&x, &(0..x.len()).map(place).collect());
        self.norm(&placed, &format!("model.{side}.layernorm_embedding"))
    }

    fn leave(&self, x: Rows, side: &str) -> Rows {
        if self.is_bart() { x } else { self.norm(&x, &format!("{side}.final_layer_norm")) }
    }

    /// T5's bias of head, query and key.
    fn distances(&self, side: &str) -> impl Fn(usize, usize, usize) -> f64 {
        let name = format!("{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let table = if self.is_bart() { None } else { self.numbers(&name) };
        let places = self.config.places;
        let both = side == "encoder";
        move |head, query, key| match (&table, places) {
            (Some((dims, table)), Places::Relative { buckets, distance }) => {
                table[bucket(query, key, buckets, distance, both) * dims[1] + head]
            }
            _ => 0.0,
        }
    }

    /// Logits of one sample, token by token.
    fn logits(&self, sample: &Sample) -> Rows {
        let root = if self.is_bart() { "model.encoder" } else { "encoder" };
        let visual = format!("{root}.visual_embedding.feat_embedding");
        let projected = self.linear(&sample.features, &format!("{visual}.0"));
        let mut x = self.norm(&projected, &format!("{visual}.1"));
        x.extend(self.words(&sample.ids));
        let kept = |key: usize| key < sample.features.len() || sample.keep[key - sample.features.len()];
        x = self.enter(x, "encoder");
        let bias = self.distances("encoder");
        for i in 0..self.config.layers[ENCODER] {
            let [attention, attention_norm, ff, ff_norm] = self.names(ENCODER, i);
            x = self.around(&x, &attention_norm, |inner| {
                self.attention(inner, inner, &attention, ENCODER, &|_, key| kept(key), &bias)
            });
            x = self.around(&x, &ff_norm, |inner| self.feed_forward(inner, &ff));
        }
        let source = self.leave(x, "encoder");

        let mut x = self.enter(self.words(&sample.given), "decoder");
        let bias = self.distances("decoder");
        for i in 0..self.config.layers[DECODER] {
            let [attention, attention_norm, ff, ff_norm] = self.names(DECODER, i);
            let [cross, cross_norm] = if self.is_bart() {
                [format!("{ff}.encoder_attn"), format!("{ff}.encoder_attn_layer_norm")]
            } else {
                [1, 1].map(|part| format!("decoder.block.{i}.layer.{part}"))
            };
            let (cross, cross_norm) = match self.is_bart() {
                true => (cross, cross_norm),
                false => (format!("{cross}.EncDecAttention"), format!("{cross_norm}.layer_norm")),
            };
            x = self.around(&x, &attention_norm, |inner| {
                self.attention(inner, inner, &attention, DECODER, &|query, key| key <= query, &bias)
            });
            x = self.around(&x, &cross_norm, |inner| {
                self.attention(inner, &source, &cross, DECODER, &|_, key| kept(key), &|_, _, _| 0.0)
            });
            x = self.around(&x, &ff_norm, |inner| self.feed_forward(inner, &ff));
        }
        let x = self.times(self.leave(x, "decoder"), self.config.output_scale);
        let name = if self.is_bart() { "model.shared.weight" } else { "shared.weight" };
        let (dims, table) = self.numbers(name).unwrap();
        let shift = self.numbers("final_logits_bias").map_or(vec![0.0; dims[0]], |(_, bias)| bias);
        let one = |row: &Vec<f64>, w: usize| (0..dims[1]).map(|c| row[c] * table[w * dims[1] + c]).sum::<f64>();
        self.rounded(x.iter().map(|row| (0..dims[0]).map(|w| one(row, w) + shift[w]).collect()).collect())
    }

    /// Paths of layer i: self-attention and its norm, what the feed-forward is in, and its norm.
    fn names(&self, side: usize, i: usize) -> [String; 4] {
        let half = ["encoder", "decoder"][side];
        if self.is_bart() {
            let layer = format!("model.{half}.layers.{i}");
            return ["self_attn", "self_attn_layer_norm", "", "final_layer_norm"]
                .map(|part| if part.is_empty() { layer.clone() } else { format!("{layer}.{part}") });
        }
        let layer = format!("{half}.block.{i}.layer");
        let last = 1 + side;
        [
            format!("{layer}.0.SelfAttention"),
            format!("{layer}.0.layer_norm"),
            format!("{layer}.{last}"),
            format!("{layer}.{last}.layer_norm"),
        ]
    }
}

/// Raffel et al., 2020: half of a side's buckets are single distances, the rest grow logarithmically up to the largest.
fn bucket(query: usize, key: usize, buckets: usize, distance: usize, both: bool) -> usize {
    let side = if both { buckets / 2 } else { buckets };
    let (first, away) = match (both, key as i64 - query as i64) {
        (true, ahead) if ahead > 0 => (side, ahead as f64),
        (true, behind) => (0, -behind as f64),
        (false, ahead) => (0, (-ahead).max(0) as f64),
    };
    let single = (side / 2) as f64;
    if away < single {
        return first + away as usize;
    }
    let share = (away / single).ln() / (distance as f64 / single).ln();
    first + ((single + (share * (side as f64 - single)).floor()) as usize).min(side - 1)
}

/// A fixture's samples, its library inputs, and the model's folder.
struct Fixture {
    folder: PathBuf,
    io: SafeTensors,
}

impl Fixture {
    fn open(form: &str) -> Fixture {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("tests/fixtures/encoder_decoder").join(form);
        Fixture { io: SafeTensors::open(folder.join("io.safetensors")).unwrap(), folder }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.io.tensor(name, &Device::cpu()).unwrap()
    }

    fn samples(&self, round: fn(f64) -> f64) -> Vec<Sample> {
        let (features, ids, given) = (self.tensor("features"), self.tensor("ids"), self.tensor("decoder_ids"));
        let &[b, v, width] = features.dims() else { panic!("{:?}", features.dims()) };
        let whole: Vec<f64> = features.to_f64_vec().unwrap().into_iter().map(round).collect();
        let numbers = |tensor: &Tensor, i: usize| -> Vec<usize> {
            let all: Vec<i64> = tensor.to_vec().unwrap();
            all[i * all.len() / b..(i + 1) * all.len() / b].iter().map(|&id| id as usize).collect()
        };
        let keep: Vec<u8> = self.tensor("keep").to_vec().unwrap();
        let sample = |i: usize| Sample {
            features: whole[i * v * width..(i + 1) * v * width].chunks(width).map(<[f64]>::to_vec).collect(),
            ids: numbers(&ids, i),
            keep: keep[i * keep.len() / b..(i + 1) * keep.len() / b].iter().map(|&k| k != 0).collect(),
            given: numbers(&given, i),
        };
        (0..b).map(sample).collect()
    }

    fn plain(&self, round: fn(f64) -> f64) -> Vec<f64> {
        let config = EncoderDecoderConfig::load(&self.folder.join("config.json")).unwrap();
        let file = SafeTensors::open(self.folder.join("model.safetensors")).unwrap();
        let plain = Plain { file, config, round };
        self.samples(round).iter().flat_map(|sample| plain.logits(sample)).flatten().collect()
    }

    fn library(&self, dtype: DType) -> Vec<f64> {
        let device = Device::cpu();
        let model = EncoderDecoder::load(&self.folder, &device, dtype).unwrap();
        let features = Var::constant(self.tensor("features").cast(dtype).unwrap());
        let (ids, keep): (Tensor, Vec<u8>) = (self.tensor("ids"), self.tensor("keep").to_vec().unwrap());
        let source = Source { features: Some(&features), ids: &ids, keep: Some(&keep) };
        let mut tape = Tape::inference(&ParamSet::none(&device, dtype).unwrap());
        let logits = model.forward(&mut tape, &source, &self.tensor("decoder_ids")).unwrap();
        logits.tensor().to_f64_vec().unwrap()
    }
}

/// Largest difference over the largest value.
fn apart(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / most
}

/// Root of the mean squared difference over that of the values.
fn spread(got: &[f64], want: &[f64]) -> f64 {
    let squares = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    squares(&mut got.iter().zip(want).map(|(g, w)| g - w)) / squares(&mut want.iter().copied())
}

#[test]
fn logits_are_those_of_plain_loops() {
    for form in FORMS {
        let fixture = Fixture::open(form);
        let want = fixture.plain(|v| v);
        let wide = apart(&fixture.library(DType::F64), &want);
        assert!(wide < 1e-11, "{form} in f64: {wide}");
        let narrow = apart(&fixture.library(DType::F32), &want);
        assert!(narrow < 2e-5, "{form} in f32: {narrow}");
        // And of transformers, which made the fixture in f32.
        let off = apart(&want, &fixture.tensor("logits").to_f64_vec().unwrap());
        assert!(off < 2e-5, "{form} and transformers: {off}");
        // One sub-layer less is far away.
        let mut config = EncoderDecoderConfig::load(&fixture.folder.join("config.json")).unwrap();
        config.layers[DECODER] -= 1;
        let file = SafeTensors::open(fixture.folder.join("model.safetensors")).unwrap();
        let plain = Plain { file, config, round: |v| v };
        let less: Vec<f64> = fixture.samples(|v| v).iter().flat_map(|s| plain.logits(s)).flatten().collect();
        assert!(apart(&less, &want) > 1e-2, "{form}");
    }
}

/// What a 16-bit trunk is off by is what rounding every operation's result comes to: these weights, drawn from N(0, 1), let it grow.
#[test]
fn a_16_bit_trunk_is_off_by_its_roundings_and_no_more() {
    let to_bf16: fn(f64) -> f64 = |v| bf16::from_f64(v).to_f64();
    let to_f16: fn(f64) -> f64 = |v| f16::from_f64(v).to_f64();
    for form in FORMS {
        for (dtype, round) in [(DType::BF16, to_bf16), (DType::F16, to_f16)] {
            let fixture = Fixture::open(form);
            let (exact, rounded, got) = (fixture.plain(|v| v), fixture.plain(round), fixture.library(dtype));
            let (allowed, off) = (spread(&rounded, &exact), spread(&got, &exact));
            println!(
                "{form} {dtype}: off by {off:.4}, plain loops rounded alike by {allowed:.4}, one from the other {:.4}, largest {:.4} and {:.4}",
                spread(&got, &rounded),
                apart(&got, &exact),
                apart(&rounded, &exact)
            );
            // Two walks through the same roundings, some of which fall the other way.
            assert!(off <= 2.0 * allowed, "{form} {dtype}: {off} where rounding alone comes to {allowed}");
        }
    }
}
