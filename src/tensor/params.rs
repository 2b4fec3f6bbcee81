//! What learns. All trainable parameters of a run lie in one flat buffer, so that the optimizer is one launch.

use std::sync::Arc;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::shape::{Dims, Layout, checked_numel};
use crate::tensor::Tensor;

/// Index of a parameter in its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

/// Starting values. Draws are keyed by (seed, parameter name, element): adding a parameter leaves the others as they were.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// U(−1/√fan_in, 1/√fan_in): what PyTorch calls kaiming with a = √5.
    KaimingUniform {
        fan_in: usize,
    },
    /// U(−bound, bound).
    Uniform {
        bound: f64,
    },
    Normal {
        std: f64,
    },
    Values(Vec<f32>),
}

/// One trainable parameter: a named part of the flat buffer.
#[derive(Clone, Debug)]
pub struct Param {
    pub name: String,
    pub dims: Dims,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Whether an all-zero first gradient is what the mathematics says (LoRA's A while B is zero) rather than a defect.
    pub first_gradient_may_vanish: bool,
    /// Multiplies the optimizer's learning rate.
    pub rate: f64,
}

impl Param {
    pub fn numel(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Parameters start at multiples of this many elements, so that every view is aligned for vector and bulk loads.
const ALIGNMENT: usize = 64;

#[derive(Default)]
pub struct ParamSetBuilder {
    params: Vec<Param>,
    inits: Vec<Init>,
    len: usize,
}

impl ParamSetBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a parameter. Names are unique within a set.
    pub fn add(&mut self, name: impl Into<String>, dims: &[usize], init: Init) -> Result<ParamId> {
        let name = name.into();
        let numel = checked_numel("params", dims, DType::F64.size())?;
        if self.params.iter().any(|p| p.name == name) {
            return Err(Error::value("params", "name", "a name not used before", name));
        }
        if let Init::Values(values) = &init
            && values.len() != numel
        {
            return Err(Error::shape("params", "values", format!("{numel} values for {dims:?}"), &[values.len()]));
        }
        let end = self.len.checked_add(numel).and_then(|e| e.checked_next_multiple_of(ALIGNMENT));
        let end = end.ok_or(Error::SizeOverflow { op: "params", dims: dims.to_vec() })?;
        let id = ParamId(self.params.len() as u32);
        let dims = Dims::from_slice(dims);
        self.params.push(Param { name, dims, offset: self.len, first_gradient_may_vanish: false, rate: 1.0 });
        self.inits.push(init);
        self.len = end;
        Ok(id)
    }

    /// Tells the audit that this parameter's first gradient is zero by design.
    pub fn first_gradient_may_vanish(&mut self, id: ParamId) {
        self.params[id.0 as usize].first_gradient_may_vanish = true;
    }

    /// Gives this parameter `rate` times the optimizer's learning rate. Parameters of one rate are laid out together.
    ///
    /// # Errors
    /// [`Error::Value`] for a rate that is negative or not finite.
    pub fn rate(&mut self, id: ParamId, rate: f64) -> Result<()> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(Error::value("params", "rate", "a finite number, 0 or more", rate));
        }
        self.params[id.0 as usize].rate = rate;
        Ok(())
    }

    /// Moves parameters of one rate together, in the order in which the rates first come; the others stay in order.
    fn group_by_rate(&mut self) {
        let mut rates: Vec<f64> = Vec::new();
        for param in &self.params {
            if !rates.contains(&param.rate) {
                rates.push(param.rate);
            }
        }
        let mut offset = 0;
        for rate in rates {
            for param in self.params.iter_mut().filter(|p| p.rate == rate) {
                param.offset = offset;
                offset += param.numel().next_multiple_of(ALIGNMENT);
            }
        }
    }

    /// Draws the starting values and lays everything out on `device`. `dtype` is what the forward pass computes in; masters are
    /// kept in f32 (f64 for f64).
    pub fn build(mut self, device: &Device, dtype: DType, seed: u64) -> Result<ParamSet> {
        if !dtype.is_float() {
            return Err(Error::DType { op: "params", argument: "dtype", expected: "a float type".into(), got: dtype });
        }
        self.group_by_rate();
        let mut values = vec![0.0f32; self.len];
        for (param, init) in self.params.iter().zip(&self.inits) {
            draw(init, Stream::named(seed, 0, &param.name), &mut values[param.offset..param.offset + param.numel()]);
        }
        let master = Tensor::from_f32(device, &[self.len], &values, dtype.accumulator())?;
        let working = if dtype == master.dtype() {
            master.clone()
        } else {
            Tensor::from_f32(device, &[self.len], &values, dtype)?
        };
        Ok(ParamSet(Arc::new(Inner { params: self.params, master, working })))
    }
}

impl Init {
    /// The values that a parameter called `name` starts with in a set of this seed: for what is drawn and then stays as it is.
    pub fn values(&self, seed: u64, name: &str, numel: usize) -> Result<Vec<f32>> {
        if let Init::Values(values) = self
            && values.len() != numel
        {
            return Err(Error::shape("params", "values", format!("{numel} values"), &[values.len()]));
        }
        let mut out = vec![0.0; numel];
        draw(self, Stream::named(seed, 0, name), &mut out);
        Ok(out)
    }
}

fn draw(init: &Init, stream: Stream, out: &mut [f32]) {
    match init {
        Init::Zeros => out.fill(0.0),
        Init::Ones => out.fill(1.0),
        Init::Values(values) => out.copy_from_slice(values),
        Init::Normal { std } => (0..).zip(out).for_each(|(e, v)| *v = (stream.normal(e) * std) as f32),
        Init::KaimingUniform { fan_in } => {
            let bound = 1.0 / (*fan_in.max(&1) as f64).sqrt();
            draw(&Init::Uniform { bound }, stream, out);
        }
        Init::Uniform { bound } => {
            (0..).zip(out).for_each(|(e, v)| *v = ((2.0 * stream.uniform(e) - 1.0) * bound) as f32);
        }
    }
}

/// The trainable parameters of one run. Clones share the values.
#[derive(Clone)]
pub struct ParamSet(Arc<Inner>);

struct Inner {
    params: Vec<Param>,
    /// `[len]`, f32 (or f64): what the optimizer updates.
    master: Tensor,
    /// `[len]`, the forward pass's dtype; the master itself where the dtypes agree.
    working: Tensor,
}

impl ParamSet {
    /// A set with nothing in it, for inference without adapters.
    pub fn none(device: &Device, dtype: DType) -> Result<Self> {
        ParamSetBuilder::new().build(device, dtype, 0)
    }

    pub fn params(&self) -> &[Param] {
        &self.0.params
    }

    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.0.params.len() as u32).map(ParamId)
    }

    /// Where the rates of learning change in the flat buffer: the end of each run of parameters of one rate, and that rate.
    pub fn rates(&self) -> Vec<(usize, f64)> {
        let mut order: Vec<&Param> = self.0.params.iter().collect();
        order.sort_by_key(|p| p.offset);
        let mut rates = vec![(self.flat_len(), order.first().map_or(1.0, |p| p.rate))];
        for param in order {
            if let Some(last) = rates.last_mut()
                && last.1 != param.rate
            {
                last.0 = param.offset;
                rates.push((self.flat_len(), param.rate));
            }
        }
        rates
    }

    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.0.params.iter().position(|p| p.name == name).map(|i| ParamId(i as u32))
    }

    /// The id must come from the builder that made this set; a foreign one is refused.
    pub fn get(&self, id: ParamId) -> Result<&Param> {
        self.0
            .params
            .get(id.0 as usize)
            .ok_or_else(|| Error::value("params", "id", format!("below {}", self.0.params.len()), format!("{}", id.0)))
    }

    /// Trainable numbers, alignment gaps not counted.
    pub fn numel(&self) -> usize {
        self.0.params.iter().map(Param::numel).sum()
    }

    /// Length of the flat buffer, alignment gaps included.
    pub fn flat_len(&self) -> usize {
        self.0.master.numel()
    }

    pub fn device(&self) -> &Device {
        self.0.master.device()
    }

    /// What the forward pass computes in.
    pub fn dtype(&self) -> DType {
        self.0.working.dtype()
    }

    /// The flat master values, `[flat_len]`.
    pub fn master(&self) -> &Tensor {
        &self.0.master
    }

    /// The flat working values, `[flat_len]`: the master itself where the dtypes agree.
    pub fn working(&self) -> &Tensor {
        &self.0.working
    }

    /// A parameter as the forward pass reads it.
    pub fn tensor(&self, id: ParamId) -> Result<Tensor> {
        self.view(&self.0.working, id)
    }

    /// The part of `flat` (this set's layout) that belongs to a parameter.
    pub fn view(&self, flat: &Tensor, id: ParamId) -> Result<Tensor> {
        flat.require_dims("params", "flat", self.master().dims())?;
        let param = self.get(id)?;
        let layout = Layout { offset: param.offset, ..Layout::contiguous(&param.dims) };
        Tensor::view_of(flat.buffer(), flat.dtype(), layout)
    }

    /// Replaces a parameter's values, master and working copy.
    pub fn set(&self, id: ParamId, values: &[f32]) -> Result<()> {
        let dims = self.get(id)?.dims.clone();
        self.replace(id, &dims, values, Ok)
    }

    /// Replaces the values `[index]` of a parameter, of which its first dimension counts, and leaves the others.
    pub fn set_at(&self, id: ParamId, index: usize, values: &[f32]) -> Result<()> {
        let dims = self.get(id)?.dims.clone();
        self.replace(id, dims.get(1..).unwrap_or_default(), values, |whole| whole.slice(0, index, 1))
    }

    fn replace(
        &self,
        id: ParamId,
        dims: &[usize],
        values: &[f32],
        part: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let source = Tensor::from_f32(&Device::cpu(), dims, values, DType::F32)?;
        for flat in [&self.0.master, &self.0.working] {
            let cast = source.cast(flat.dtype())?;
            part(self.view(flat, id)?)?.set_bytes(&cast.to_bytes()?)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for ParamSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ParamSet({} parameters, {} values, {})", self.params().len(), self.numel(), self.dtype())
    }
}
