//! Views against a model that knows no strides, and ops against operands that do not fit.

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::ops::{
    AttentionOptions, CrossEntropyOptions, LowRank, Mid, attention, cross_entropy, frozen_linear, layer_norm, linear,
    scale_add,
};
use graftwork::tensor::{FrozenWeight, ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Error, Result, Tensor};
use proptest::prelude::*;

/// A view as plain data: its elements in order. They are their own positions in the buffer, so that contiguity shows in them.
#[derive(Clone, Debug)]
struct Model {
    dims: Vec<usize>,
    values: Vec<i32>,
}

impl Model {
    fn new(dims: &[usize]) -> Self {
        Model { dims: dims.to_vec(), values: (0..dims.iter().product::<usize>() as i32).collect() }
    }

    /// All indices of a shape, the last one fastest.
    fn indices(dims: &[usize]) -> Vec<Vec<usize>> {
        dims.iter().fold(vec![vec![]], |all, &d| {
            all.iter().flat_map(|front| (0..d).map(move |i| [&front[..], &[i]].concat())).collect()
        })
    }

    fn at(&self, index: &[usize]) -> i32 {
        let position = self.dims.iter().zip(index).fold(0, |position, (d, i)| position * d + i);
        self.values[position]
    }

    /// The elements that `source` names for each index of a view of shape `dims`.
    fn view(&self, dims: Vec<usize>, source: impl Fn(Vec<usize>) -> Vec<usize>) -> Self {
        let values = Model::indices(&dims).into_iter().map(|index| self.at(&source(index))).collect();
        Model { dims, values }
    }

    fn slice(&self, dim: usize, start: usize, len: usize) -> Option<Self> {
        let fits = dim < self.dims.len() && start.checked_add(len)? <= self.dims[dim];
        let mut dims = self.dims.clone();
        *dims.get_mut(dim)? = len;
        fits.then(|| {
            self.view(dims, |mut index| {
                index[dim] += start;
                index
            })
        })
    }

    fn transpose(&self, a: usize, b: usize) -> Option<Self> {
        let mut dims = self.dims.clone();
        (a < dims.len() && b < dims.len()).then(|| {
            dims.swap(a, b);
            self.view(dims, |mut index| {
                index.swap(a, b);
                index
            })
        })
    }

    fn reshape(&self, dims: &[usize]) -> Option<Self> {
        let fits = self.is_contiguous() && dims.iter().product::<usize>() == self.values.len();
        fits.then(|| Model { dims: dims.to_vec(), values: self.values.clone() })
    }

    fn is_contiguous(&self) -> bool {
        self.values.windows(2).all(|pair| pair[1] == pair[0] + 1)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Slice(usize, usize, usize),
    Transpose(usize, usize),
    Reshape(Vec<usize>),
    /// To two dimensions, split before this one: fits whenever the view is contiguous.
    Fold(usize),
    Contiguous,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extreme = prop_oneof![9 => 0usize..5, 1 => Just(usize::MAX)];
    let step = prop_oneof![
        4 => (0usize..5, extreme.clone(), extreme).prop_map(|(d, s, l)| Step::Slice(d, s, l)),
        4 => (0usize..5, 0usize..5).prop_map(|(a, b)| Step::Transpose(a, b)),
        1 => prop::collection::vec(0usize..5, 0..4).prop_map(Step::Reshape),
        2 => (0usize..5).prop_map(Step::Fold),
        1 => Just(Step::Contiguous),
    ];
    prop::collection::vec(step, 0..8)
}

fn apply(step: &Step, tensor: &Tensor, model: &Model) -> (Result<Tensor>, Option<Model>) {
    match step {
        Step::Slice(dim, start, len) => (tensor.slice(*dim, *start, *len), model.slice(*dim, *start, *len)),
        Step::Transpose(a, b) => (tensor.transpose(*a, *b), model.transpose(*a, *b)),
        Step::Reshape(dims) => (tensor.reshape(dims), model.reshape(dims)),
        Step::Fold(at) => {
            let (front, back) = model.dims.split_at((*at).min(model.dims.len()));
            let dims = [front.iter().product(), back.iter().product()];
            (tensor.reshape(&dims), model.reshape(&dims))
        }
        // The copy has a buffer of its own, in which positions start anew.
        Step::Contiguous => {
            let copy = tensor.contiguous().and_then(|copy| {
                copy.to_vec::<i32>().map(|values| assert_eq!(values, model.values))?;
                let fresh: Vec<i32> = (0..model.values.len() as i32).collect();
                Tensor::from_slice(&Device::cpu(), copy.dims(), &fresh)
            });
            (copy, Some(Model::new(&model.dims)))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_agree_with_a_model(dims in prop::collection::vec(0usize..5, 0..5), steps in steps()) {
        let mut model = Model::new(&dims);
        let mut tensor = Tensor::from_slice(&Device::cpu(), &dims, &model.values).unwrap();
        for step in &steps {
            match apply(step, &tensor, &model) {
                (Ok(t), Some(m)) => (tensor, model) = (t, m),
                // A refused view leaves everything as it was.
                (Err(_), None) => {}
                (got, expected) => prop_assert!(false, "{step:?} of {tensor:?}: {got:?}, expected {expected:?}"),
            }
            prop_assert_eq!(tensor.dims(), &model.dims[..]);
            prop_assert_eq!(tensor.numel(), model.values.len());
            prop_assert_eq!(tensor.is_contiguous(), model.is_contiguous(), "{:?} {:?}", tensor, tensor.strides());
            prop_assert_eq!(&tensor.to_vec::<i32>().unwrap(), &model.values);
            let copy = tensor.contiguous().unwrap();
            prop_assert!(copy.is_contiguous());
            prop_assert_eq!(&copy.to_vec::<i32>().unwrap(), &model.values);
            prop_assert_eq!(tensor.rows() * tensor.cols(), tensor.numel());
            prop_assert!(tensor.to_vec::<f32>().is_err());
        }
    }

    #[test]
    fn sizes_that_overflow_are_refused(
        small in prop::collection::vec(1usize..5, 0..3),
        large in prop::collection::vec(1usize << 40.., 2..4),
        zero in any::<bool>(),
    ) {
        let cpu = Device::cpu();
        let mut dims = [small, large].concat();
        if zero {
            dims.push(0);
        }
        let small = Tensor::zeros(&cpu, &[0], DType::F32).unwrap();
        let results = [
            Tensor::zeros(&cpu, &dims, DType::F32),
            Tensor::empty(&cpu, &dims, DType::U8),
            Tensor::from_slice::<f32>(&cpu, &dims, &[]),
            small.reshape(&dims),
        ];
        for result in results {
            match result {
                Ok(tensor) => {
                    prop_assert!(zero);
                    prop_assert_eq!((tensor.numel(), tensor.cols(), tensor.byte_len()), (0, 0, 0));
                    prop_assert!(tensor.is_contiguous() && tensor.rows() > 0);
                    prop_assert!(tensor.cast(DType::F16).is_ok() == tensor.dtype().is_float());
                }
                Err(error) => prop_assert!(!zero && matches!(error, Error::SizeOverflow { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn what_no_machine_can_hold_is_out_of_memory() {
    let error = Tensor::zeros(&Device::cpu(), &[1 << 60], DType::F32).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

/// One operand of a call: what it must be, and what else it may be.
#[derive(Clone, Debug)]
struct Operand {
    dims: Vec<usize>,
    dtype: DType,
    also: &'static [DType],
    /// Nothing else fixes its last dimension.
    free: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    ScaleAdd,
    Linear,
    FrozenLinear,
    LayerNorm,
    Attention,
    CrossEntropy,
}

/// What is done to one operand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    None,
    Strided,
    Longer,
    Half,
    Bytes,
    Elsewhere,
}

const HEADS: usize = 2;

/// Operands that fit, for sizes `a b c d`; `true` if none of the sizes that must not be 0 is.
fn operands(op: Op, dtype: DType, [a, b, c, d]: [usize; 4]) -> (Vec<Operand>, bool) {
    let plain = |dims: &[usize]| Operand { dims: dims.to_vec(), dtype, also: &[], free: false };
    match op {
        Op::ScaleAdd => (vec![plain(&[a, b, c]), plain(&[b, c])], true),
        Op::Linear => (vec![plain(&[a, b, c]), plain(&[d, c]), plain(&[d])], c * d > 0),
        Op::FrozenLinear => {
            (vec![plain(&[a, c]), plain(&[d, c]), plain(&[d]), plain(&[b, c]), plain(&[d, b])], b * c * d > 0)
        }
        Op::LayerNorm => (vec![plain(&[a, b, c]), plain(&[c]), plain(&[c])], c > 0),
        Op::Attention => {
            let mask = Operand { also: &[DType::U8], ..plain(&[b, c]) };
            (vec![plain(&[a, b, HEADS * d]), plain(&[a, c, HEADS * d]), plain(&[a, c, HEADS * d]), mask], d > 0)
        }
        Op::CrossEntropy => {
            let logits = Operand { also: &[DType::F16], free: true, ..plain(&[a, b, c]) };
            (vec![logits, Operand { dtype: DType::I64, ..plain(&[a, b]) }], c > 0)
        }
    }
}

fn filled(dims: &[usize], dtype: DType) -> Tensor {
    let (cpu, numel) = (Device::cpu(), dims.iter().product::<usize>());
    match dtype {
        DType::I64 => Tensor::from_slice(&cpu, dims, &vec![0i64; numel]).unwrap(),
        DType::U8 => Tensor::from_slice(&cpu, dims, &vec![1u8; numel]).unwrap(),
        _ => {
            let values: Vec<f32> = (0..numel).map(|i| (i % 7) as f32 / 4.0 - 0.75).collect();
            Tensor::from_f32(&cpu, dims, &values, dtype).unwrap()
        }
    }
}

fn make(operand: &Operand, damage: Damage) -> Tensor {
    let mut dims = operand.dims.clone();
    match damage {
        Damage::None => filled(&dims, operand.dtype),
        Damage::Half => filled(&dims, DType::F16),
        Damage::Bytes => filled(&dims, DType::U8),
        Damage::Elsewhere => Tensor::empty(&Device::trace(80), &dims, operand.dtype).unwrap(),
        Damage::Longer | Damage::Strided => {
            let last = dims.len() - 1;
            dims[last] += 1;
            let longer = filled(&dims, operand.dtype);
            if damage == Damage::Longer { longer } else { longer.slice(last, 0, dims[last] - 1).unwrap() }
        }
    }
}

fn no_params(dtype: DType) -> ParamSet {
    ParamSetBuilder::new().build(&Device::cpu(), dtype, 0).unwrap()
}

/// The op forward, and backward from ones; the shapes of the result and of the first operand's gradient.
fn call(op: Op, tensors: &[Tensor]) -> Result<(Vec<usize>, Vec<usize>)> {
    let params = no_params(DType::F32);
    let mut tape = Tape::deterministic(&params);
    let first = tape.input(tensors[0].clone());
    // Targets and masks are no Vars; the others want gradients, the frozen weight excepted.
    let vars: Vec<Var> = tensors.iter().skip(1).map(|t| tape.input(t.clone())).collect();
    let y = match op {
        Op::ScaleAdd => scale_add(&mut tape, &first, &vars[0], 0.5),
        Op::Linear => linear(&mut tape, &first, &vars[0], Some(&vars[1])),
        Op::FrozenLinear => {
            let weight = FrozenWeight::new(tensors[1].clone())?;
            let update = LowRank { a: &vars[2], b: &vars[3], mid: Mid::Identity, scale: 2.0, dropout: 0.0, site: 1 };
            frozen_linear(&mut tape, &first, &weight, Some(&vars[1]), Some(update))
        }
        Op::LayerNorm => layer_norm(&mut tape, &first, &vars[0], Some(&vars[1]), 1e-5),
        Op::Attention => {
            let options = AttentionOptions { heads: HEADS, mask: Some(&tensors[3]), ..AttentionOptions::default() };
            attention(&mut tape, &first, &vars[0], &vars[1], &options)
        }
        Op::CrossEntropy => cross_entropy(&mut tape, &first, &tensors[1], &CrossEntropyOptions::default()),
    }?;
    let dims = y.dims().to_vec();
    let ones = Tensor::from_f32(&Device::cpu(), &dims, &vec![1.0; y.tensor().numel()], y.tensor().dtype())?;
    let backward = tape.backward_with(&y, ones, &mut Grads::zeros(&params)?)?;
    let gradient = backward.input_gradient(&first).map_or(tensors[0].dims(), Tensor::dims).to_vec();
    Ok((dims, gradient))
}

fn result_dims(op: Op, operands: &[Operand]) -> Vec<usize> {
    let mut dims = operands[0].dims.clone();
    match op {
        Op::CrossEntropy => vec![1],
        Op::Linear | Op::FrozenLinear => {
            *dims.last_mut().unwrap() = operands[1].dims[0];
            dims
        }
        _ => dims,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ops_take_what_fits_and_refuse_the_rest_with_the_right_error(
        op in prop::sample::select(vec![
            Op::ScaleAdd, Op::Linear, Op::FrozenLinear, Op::LayerNorm, Op::Attention, Op::CrossEntropy,
        ]),
        dtype in prop::sample::select(vec![DType::F32, DType::F64, DType::BF16]),
        sizes in prop::array::uniform4(0usize..5),
        damage in prop::sample::select(vec![
            Damage::None, Damage::Strided, Damage::Longer, Damage::Half, Damage::Bytes, Damage::Elsewhere,
        ]),
        which in any::<prop::sample::Index>(),
    ) {
        let (operands, sound) = operands(op, dtype, sizes);
        let which = which.index(operands.len());
        let hit = &operands[which];
        let tensors: Vec<Tensor> = operands
            .iter()
            .enumerate()
            .map(|(i, operand)| make(operand, if i == which { damage } else { Damage::None }))
            .collect();
        let fits = match damage {
            Damage::None => true,
            Damage::Strided => tensors[which].is_contiguous(),
            Damage::Longer => hit.free,
            Damage::Elsewhere => false,
            Damage::Half => hit.also.contains(&DType::F16),
            Damage::Bytes => hit.also.contains(&DType::U8),
        };
        let result = call(op, &tensors);
        if !sound {
            // Longer by one, an operand may have become sound: all that matters is that nothing panics.
            prop_assert!(damage == Damage::Longer || result.is_err(), "{result:?}");
            return Ok(());
        }
        match (&result, damage) {
            (Ok((dims, gradient)), _) if fits => {
                prop_assert_eq!(dims, &result_dims(op, &operands));
                prop_assert_eq!(gradient, tensors[0].dims());
            }
            (Err(Error::NotContiguous { .. }), Damage::Strided) if !fits => {}
            (Err(Error::Shape { .. } | Error::Value { .. }), Damage::Longer) if !fits => {}
            (Err(Error::DeviceMismatch { .. }), Damage::Elsewhere) => {}
            (Err(Error::DType { .. }), Damage::Half | Damage::Bytes) if !fits => {}
            _ => prop_assert!(false, "operand {which} {damage:?} of {tensors:?}: {result:?}"),
        }
    }
}

/// Nothing is in them, so they are valid, whatever the product of their other dimensions.
#[test]
fn empty_operands_with_huge_dimensions_do_not_overflow() {
    let cpu = Device::cpu();
    let empty = |dims: &[usize], dtype| Tensor::empty(&cpu, dims, dtype).unwrap();
    let (max, f32) = (usize::MAX, DType::F32);
    let x = empty(&[max, 2, 0, 3], f32);
    assert_eq!((x.rows(), empty(&[max, 2, 0], f32).numel()), (0, 0));
    let [weight, vector] = [filled(&[3, 3], f32), filled(&[3], f32)];
    let cases: [(Op, Vec<Tensor>); 5] = [
        (Op::ScaleAdd, vec![x.clone(), x.clone()]),
        (Op::Linear, vec![x.clone(), weight.clone(), vector.clone()]),
        (Op::FrozenLinear, vec![x.clone(), weight.clone(), vector.clone(), weight.clone(), weight]),
        (Op::LayerNorm, vec![x.clone(), vector.clone(), vector]),
        (Op::CrossEntropy, vec![x.clone(), empty(&[max, 2, 0], DType::I64)]),
    ];
    for (op, tensors) in cases {
        let (dims, _) = call(op, &tensors).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        assert!(op == Op::CrossEntropy || dims == x.dims());
    }
    // Batch items without queries and keys, and no item at all.
    for (b, t, mask) in [(max, 0, [0, 0]), (0, 5, [5, 5])] {
        let q = empty(&[b, t, 4], f32);
        let (dims, _) = call(Op::Attention, &[q.clone(), q.clone(), q.clone(), empty(&mask, f32)]).unwrap();
        assert_eq!(dims, q.dims());
    }
}
