//! One call of an op as data: operands, what their arithmetic costs in accuracy, and the call itself. A case runs on any device, in
//! the storage type or in f64, so that the same public function gives the result and what it is held against.

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};
use graftwork::testing::{integers, normal};
use graftwork::{DType, Device, Error, Result, Tensor};
use half::{bf16, f16};

/// How a result is held against the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// Small integers: every partial sum is representable, so the reference rounded once is the only right answer.
    Exact,
    /// Multilinear: the a-priori bound, its magnitude from the same call on absolute values.
    Bound,
    /// Not linear: on a GPU against the CPU's own error in the same dtype, on the CPU by relative norms.
    Smooth,
}

/// Roundings between the operands and an element of a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arithmetic {
    /// Operations in f32, one after the other, a sum counted by its terms.
    pub depth: usize,
    /// Values on the way that are rounded to the storage type.
    pub inner: usize,
    /// How much an error of the operands grows on the way, where that is more than the values themselves do.
    pub condition: f64,
}

impl Arithmetic {
    /// No arithmetic: copies.
    pub const NONE: Arithmetic = Arithmetic::depth(0);

    pub const fn depth(depth: usize) -> Self {
        Arithmetic { depth, inner: 0, condition: 1.0 }
    }

    pub const fn inner(self, inner: usize) -> Self {
        Arithmetic { inner, ..self }
    }

    pub const fn condition(self, condition: f64) -> Self {
        Arithmetic { condition, ..self }
    }
}

/// How an operand enters the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An activation: its gradient has its dtype.
    Input,
    /// A trainable parameter: its gradient is accumulated in f32.
    Param,
    /// No gradient.
    Constant,
    /// As [`FrozenWeight`].
    Frozen,
    /// Stored in this type as it is: ids, targets, masks.
    Stored(DType),
}

/// Values are made when they are placed: a table of cases costs nothing.
struct Operand {
    name: &'static str,
    role: Role,
    dims: Vec<usize>,
    /// Element by element, from its index and what the data of the case has there.
    value: Box<dyn Fn(usize, f32) -> f32 + Send + Sync>,
    gradient: Arithmetic,
}

/// What the call sees.
pub struct Given {
    values: Vec<(&'static str, Value)>,
    absolute: bool,
}

#[derive(Clone)]
enum Value {
    Var(Var),
    Frozen(FrozenWeight),
}

impl Given {
    fn find(&self, name: &'static str) -> Result<&Value> {
        let found = self.values.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value).ok_or_else(|| no_operand(name))
    }

    pub fn var(&self, name: &'static str) -> Result<&Var> {
        match self.find(name)? {
            Value::Var(var) => Ok(var),
            Value::Frozen(_) => Err(no_operand(name)),
        }
    }

    /// An operand that not every case of the op has.
    pub fn maybe(&self, name: &'static str) -> Option<&Var> {
        self.var(name).ok()
    }

    pub fn tensor(&self, name: &'static str) -> Result<&Tensor> {
        Ok(self.var(name)?.tensor())
    }

    pub fn frozen(&self, name: &'static str) -> Result<&FrozenWeight> {
        match self.find(name)? {
            Value::Frozen(weight) => Ok(weight),
            Value::Var(_) => Err(no_operand(name)),
        }
    }

    /// A factor of the call: without its sign where magnitudes are computed.
    pub fn factor(&self, s: f64) -> f64 {
        if self.absolute { s.abs() } else { s }
    }
}

fn no_operand(name: &'static str) -> Error {
    Error::Value { op: "verify", argument: "operand", expected: "one that the case has".into(), got: name.into() }
}

type Call = Box<dyn Fn(&mut Tape, &Given) -> Result<Var> + Send + Sync>;
type Steps = Box<dyn Fn(&Run) -> Result<Vec<Output>> + Send + Sync>;

/// What a case does.
enum Work {
    Call(Call),
    /// Not on a tape: the optimizer.
    Steps(Steps),
}

pub struct Case {
    pub op: &'static str,
    pub shape: String,
    pub judge: Judge,
    operands: Vec<Operand>,
    forward: Arithmetic,
    dropout: bool,
    limit: u32,
    cotangent_scale: f32,
    /// Operands start one element into their buffers, where no 16-byte access is allowed.
    unaligned: bool,
    work: Work,
}

/// Where and in what a case runs.
#[derive(Clone)]
pub struct Run {
    pub device: Device,
    /// Values are rounded to this first.
    pub storage: DType,
    /// What they are stored and computed in: `storage`, or f64 for the reference.
    pub dtype: DType,
    /// Absolute values everywhere: the magnitudes of the terms.
    pub absolute: bool,
}

/// One result of a case, whatever its type, in f64.
#[derive(Clone, Debug)]
pub struct Output {
    pub pass: String,
    pub dtype: DType,
    pub cols: usize,
    pub arithmetic: Arithmetic,
    pub values: Vec<f64>,
}

/// `v` rounded to nearest in `dtype`.
pub fn round(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(v).to_f64(),
        DType::BF16 => bf16::from_f64(v).to_f64(),
        DType::F32 => f64::from(v as f32),
        _ => v,
    }
}

/// Seed of every dropout mask here.
const SEED: u64 = 7;
/// Longer data repeat themselves, which only timing sees. Odd, so that rows differ all the same.
const DIFFERENT: usize = (1 << 20) - 1;
/// Largest integer of exact data, unless a case says otherwise.
const LIMIT: u32 = 2;

impl Case {
    pub fn new(op: &'static str, shape: impl Into<String>, judge: Judge) -> Self {
        let work = Work::Steps(Box::new(|_| Ok(Vec::new())));
        let (operands, forward) = (Vec::new(), Arithmetic::NONE);
        Case {
            op,
            shape: shape.into(),
            judge,
            operands,
            forward,
            dropout: false,
            limit: LIMIT,
            cotangent_scale: 1.0,
            unaligned: false,
            work,
        }
    }

    /// Integers of exact data lie in `-limit ..= limit`. To be said before the operands.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }

    /// Dropout is drawn.
    pub fn dropout(mut self, on: bool) -> Self {
        self.dropout = on;
        self
    }

    /// Backward starts from gradients so much larger: loss scaling.
    pub fn cotangent_scale(mut self, scale: f32) -> Self {
        self.cotangent_scale = scale;
        self
    }

    /// Operands and the gradient that backward starts from lie at odd addresses.
    pub fn unaligned(mut self) -> Self {
        self.unaligned = true;
        self.shape += " unaligned";
        self
    }

    /// Nothing is a parameter: each gradient has the dtype of the values and is written, not added.
    pub fn all_inputs(mut self) -> Self {
        let params = self.operands.iter_mut().filter(|o| o.role == Role::Param);
        params.for_each(|o| o.role = Role::Input);
        self.shape += " all inputs";
        self
    }

    fn generate(&self, name: &str, len: usize) -> Vec<f32> {
        let different = len.min(DIFFERENT);
        let values = match self.judge {
            Judge::Exact => integers(name, different, self.limit),
            Judge::Bound | Judge::Smooth => normal(name, different),
        };
        if different == len { values } else { values.into_iter().cycle().take(len).collect() }
    }

    fn operand(mut self, name: &'static str, role: Role, dims: &[usize], gradient: Arithmetic) -> Self {
        self.operands.push(Operand { name, role, dims: dims.to_vec(), value: Box::new(|_, v| v), gradient });
        self
    }

    pub fn input(self, name: &'static str, dims: &[usize], gradient: Arithmetic) -> Self {
        self.operand(name, Role::Input, dims, gradient)
    }

    pub fn param(self, name: &'static str, dims: &[usize], gradient: Arithmetic) -> Self {
        self.operand(name, Role::Param, dims, gradient)
    }

    pub fn constant(self, name: &'static str, dims: &[usize]) -> Self {
        self.operand(name, Role::Constant, dims, Arithmetic::NONE)
    }

    pub fn frozen(self, name: &'static str, dims: &[usize]) -> Self {
        self.operand(name, Role::Frozen, dims, Arithmetic::NONE)
    }

    /// Values of a type of their own.
    pub fn stored(
        self,
        name: &'static str,
        dtype: DType,
        dims: &[usize],
        value: impl Fn(usize) -> f32 + Send + Sync + 'static,
    ) -> Self {
        self.operand(name, Role::Stored(dtype), dims, Arithmetic::NONE).shaped(move |i, _| value(i))
    }

    /// Changes the values of the last operand, element by element.
    pub fn shaped(mut self, change: impl Fn(usize, f32) -> f32 + Send + Sync + 'static) -> Self {
        if let Some(operand) = self.operands.last_mut() {
            operand.value = Box::new(change);
        }
        self
    }

    pub fn call(
        mut self,
        forward: Arithmetic,
        call: impl Fn(&mut Tape, &Given) -> Result<Var> + Send + Sync + 'static,
    ) -> Self {
        self.forward = forward;
        self.work = Work::Call(Box::new(call));
        self
    }

    pub fn steps(mut self, steps: impl Fn(&Run) -> Result<Vec<Output>> + Send + Sync + 'static) -> Self {
        self.work = Work::Steps(Box::new(steps));
        self
    }

    /// Every result: forward, then each gradient.
    pub fn run(&self, run: &Run) -> Result<Vec<Output>> {
        self.run_with(run, |_, _| {})
    }

    /// As [`Case::run`], on operands that `tamper` has changed.
    pub fn run_with(&self, run: &Run, tamper: impl Fn(&str, &mut [f32])) -> Result<Vec<Output>> {
        let call = match &self.work {
            Work::Steps(steps) => return steps(run),
            Work::Call(call) => call,
        };
        let placed = self.place_with(run, tamper)?;
        let mut tape = placed.tape();
        let given = placed.given(&mut tape)?;
        let y = call(&mut tape, &given)?;
        let output = |pass: &str, tensor: &Tensor, arithmetic| {
            let (cols, dtype) = (tensor.cols(), tensor.dtype());
            Ok::<_, Error>(Output { pass: pass.into(), dtype, cols, arithmetic, values: tensor.to_f64_vec()? })
        };
        let mut out = vec![output("forward", y.tensor(), self.forward)?];
        if !y.needs_grad() {
            return Ok(out);
        }
        let gradient = self.cotangent(&y, run)?;
        let mut grads = Grads::zeros(&placed.params)?;
        let done = tape.backward_with(&y, gradient, &mut grads)?;
        for (operand, slot) in self.operands.iter().zip(&placed.slots) {
            let pass = format!("backward {}", operand.name);
            match (operand.role, slot) {
                (Role::Input, _) => {
                    let gradient = done.input_gradient(given.var(operand.name)?).ok_or_else(|| Error::Autograd {
                        what: format!("no gradient reached `{}`", operand.name),
                        hint: "the op's backward never opened it".into(),
                    })?;
                    out.push(output(&pass, gradient, operand.gradient)?);
                }
                (_, Slot::Param(id)) => out.push(output(&pass, &grads.view(*id)?, operand.gradient)?),
                _ => {}
            }
        }
        Ok(out)
    }

    /// The gradient that backward starts from: data like any other.
    pub fn cotangent(&self, y: &Var, run: &Run) -> Result<Tensor> {
        let values = self.generate("dy", y.tensor().numel());
        let values: Vec<f32> = values.into_iter().map(|v| run.value(self.cotangent_scale * v)).collect();
        placed(&run.device, y.dims(), &values, y.tensor().dtype(), self.unaligned)
    }

    /// The operands on a device.
    pub fn place(&self, run: &Run) -> Result<Placed> {
        self.place_with(run, |_, _| {})
    }

    fn place_with(&self, run: &Run, tamper: impl Fn(&str, &mut [f32])) -> Result<Placed> {
        let mut builder = ParamSetBuilder::new();
        let mut slots = Vec::new();
        for operand in &self.operands {
            let data = self.generate(operand.name, operand.dims.iter().product());
            let mut values: Vec<f32> = data.into_iter().enumerate().map(|(i, v)| (operand.value)(i, v)).collect();
            tamper(operand.name, &mut values);
            let slot = place_one(operand, values, run, self.unaligned, &mut builder)?;
            slots.push(slot);
        }
        let params = builder.build(&run.device, run.dtype, 0)?;
        let names = self.operands.iter().map(|o| o.name).collect();
        Ok(Placed { params, names, slots, dropout: self.dropout, absolute: run.absolute })
    }

    /// The call alone, for who times it.
    pub fn forward(&self, tape: &mut Tape, given: &Given) -> Result<Option<Var>> {
        match &self.work {
            Work::Call(call) => call(tape, given).map(Some),
            Work::Steps(_) => Ok(None),
        }
    }
}

fn place_one(
    operand: &Operand,
    values: Vec<f32>,
    run: &Run,
    unaligned: bool,
    builder: &mut ParamSetBuilder,
) -> Result<Slot> {
    let (device, dims) = (&run.device, &operand.dims);
    if let Role::Stored(dtype) = operand.role {
        return Ok(Slot::Constant(placed(device, dims, &values, dtype, unaligned)?));
    }
    let values: Vec<f32> = values.into_iter().map(|v| run.value(v)).collect();
    if operand.role == Role::Param {
        return Ok(Slot::Param(builder.add(operand.name, dims, Init::Values(values))?));
    }
    let tensor = placed(device, dims, &values, run.dtype, unaligned)?;
    Ok(match operand.role {
        Role::Input => Slot::Input(tensor),
        Role::Frozen => Slot::Frozen(FrozenWeight::new(tensor)?),
        _ => Slot::Constant(tensor),
    })
}

/// The values at the start of a buffer, or one element into it.
fn placed(device: &Device, dims: &[usize], values: &[f32], dtype: DType, unaligned: bool) -> Result<Tensor> {
    if !unaligned {
        return stored(device, dims, values, dtype);
    }
    let buffer = stored(device, &[values.len() + 1], &[&[0.0], values].concat(), dtype)?;
    buffer.slice(0, 1, values.len())?.reshape(dims)
}

fn stored(device: &Device, dims: &[usize], values: &[f32], dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::I64 => Tensor::from_slice(device, dims, &values.iter().map(|&v| v as i64).collect::<Vec<_>>()),
        DType::I32 => Tensor::from_slice(device, dims, &values.iter().map(|&v| v as i32).collect::<Vec<_>>()),
        DType::U8 => Tensor::from_slice(device, dims, &values.iter().map(|&v| v as u8).collect::<Vec<_>>()),
        _ => Tensor::from_f32(device, dims, values, dtype),
    }
}

impl Run {
    /// On `device`, stored and computed in `dtype`.
    pub fn on(device: &Device, dtype: DType) -> Self {
        Run { device: device.clone(), storage: dtype, dtype, absolute: false }
    }

    /// The reference for values of `storage`.
    pub fn reference(storage: DType) -> Self {
        Run { device: Device::cpu(), storage, dtype: DType::F64, absolute: false }
    }

    /// A number as this run sees it.
    pub fn value(&self, v: f32) -> f32 {
        let v = round(self.storage, f64::from(v)) as f32;
        if self.absolute { v.abs() } else { v }
    }
}

enum Slot {
    Input(Tensor),
    Constant(Tensor),
    Frozen(FrozenWeight),
    Param(ParamId),
}

/// Operands on a device, ready for any number of calls.
pub struct Placed {
    pub params: ParamSet,
    names: Vec<&'static str>,
    slots: Vec<Slot>,
    dropout: bool,
    absolute: bool,
}

impl Placed {
    pub fn tape(&self) -> Tape {
        if self.dropout { Tape::training(&self.params, SEED, 0) } else { Tape::deterministic(&self.params) }
    }

    /// The operands as values of `tape`.
    pub fn given(&self, tape: &mut Tape) -> Result<Given> {
        let mut values = Vec::with_capacity(self.slots.len());
        for (name, slot) in self.names.iter().zip(&self.slots) {
            let value = match slot {
                Slot::Input(tensor) => Value::Var(tape.input(tensor.clone())),
                Slot::Constant(tensor) => Value::Var(Var::constant(tensor.clone())),
                Slot::Frozen(weight) => Value::Frozen(weight.clone()),
                Slot::Param(id) => Value::Var(tape.param(*id)?),
            };
            values.push((*name, value));
        }
        Ok(Given { values, absolute: self.absolute })
    }
}
