//! A graph on a device.

use std::sync::{Arc, OnceLock};

use super::Adjacency;
use crate::device::{Device, HostRead};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "graph";

/// How wide offsets and indices are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits wherever they suffice.
    #[default]
    Fitting,
    /// 64 bits throughout.
    Wide,
}

impl Width {
    pub(crate) fn dtype(self, largest: usize) -> DType {
        match self {
            Width::Fitting if largest <= i32::MAX as usize => DType::I32,
            _ => DType::I64,
        }
    }
}

/// A validated graph on a device. Clones share the arrays.
#[derive(Clone)]
pub struct Csr {
    shared: Arc<Shared>,
    values: Option<Tensor>,
}

/// One direction of a graph as kernels read it: for each row the nodes whose features it gathers, and the numbers of its edges.
#[derive(Clone)]
pub(crate) struct Pattern {
    pub rows: usize,
    pub edges: usize,
    /// Largest number of edges of a row.
    pub max_degree: usize,
    /// `[rows + 1]`
    pub offsets: Tensor,
    /// `[edges]`: the gathered nodes.
    pub indices: Tensor,
    /// `[edges]`: the number of each edge in the graph; in the order of the graph itself where absent.
    pub order: Option<Tensor>,
}

struct Shared {
    cols: usize,
    own: Pattern,
    width: Width,
    simple: bool,
    transpose: OnceLock<Pattern>,
}

impl Csr {
    /// The graph on `device`.
    pub fn new(graph: &Adjacency, device: &Device) -> Result<Self> {
        Csr::with_width(graph, device, Width::Fitting)
    }

    pub fn with_width(graph: &Adjacency, device: &Device, width: Width) -> Result<Self> {
        let own = upload(graph, None, device, width)?;
        let values = graph.values().map(|v| Tensor::from_slice(device, &[v.len()], v)).transpose()?;
        let simple = graph.is_simple();
        let shared = Shared { cols: graph.cols(), own, width, simple, transpose: OnceLock::new() };
        Ok(Csr { shared: Arc::new(shared), values })
    }

    /// From arrays that lie on a device already: offsets `[rows + 1]` and indices `[edges]` in i32 or i64, values `[edges]` in f32.
    /// They are read back once, to be validated.
    pub fn from_tensors(cols: usize, offsets: Tensor, indices: Tensor, values: Option<Tensor>) -> Result<Self> {
        let device = offsets.device().clone();
        for (name, tensor) in [("indices", Some(&indices)), ("values", values.as_ref())] {
            if let Some(tensor) = tensor {
                tensor.require_device(OP, name, &device)?;
                tensor.require_contiguous(OP, name)?;
            }
        }
        offsets.require_contiguous(OP, "offsets")?;
        let rows = offsets.numel().checked_sub(1).ok_or_else(|| Error::shape(OP, "offsets", "[rows + 1]", &[0]))?;
        let host = Adjacency::new(
            (rows, cols),
            counts(&offsets, "offsets")?,
            counts(&indices, "indices")?,
            values.as_ref().map(|v| v.to_vec::<f32>()).transpose()?,
        )?;
        let own = Pattern { rows, edges: host.edges(), max_degree: host.max_degree(), offsets, indices, order: None };
        let width = if own.offsets.dtype() == DType::I64 { Width::Wide } else { Width::Fitting };
        let shared = Shared { cols, own, width, simple: host.is_simple(), transpose: OnceLock::new() };
        Ok(Csr { shared: Arc::new(shared), values })
    }

    /// Of arrays whose maker vouches for them: offsets rise, columns lie below `cols` and rise strictly in every row.
    pub(crate) fn trusted(cols: usize, own: Pattern, values: Option<Tensor>) -> Self {
        let width = if own.indices.dtype() == DType::I64 { Width::Wide } else { Width::Fitting };
        Csr { shared: Arc::new(Shared { cols, own, width, simple: true, transpose: OnceLock::new() }), values }
    }

    pub fn rows(&self) -> usize {
        self.shared.own.rows
    }

    pub fn cols(&self) -> usize {
        self.shared.cols
    }

    pub fn edges(&self) -> usize {
        self.shared.own.edges
    }

    pub fn max_degree(&self) -> usize {
        self.shared.own.max_degree
    }

    /// Whether the sources of every row rise strictly.
    pub fn is_simple(&self) -> bool {
        self.shared.simple
    }

    pub fn device(&self) -> &Device {
        self.shared.own.offsets.device()
    }

    /// `[rows + 1]`, i32 or i64.
    pub fn offsets(&self) -> &Tensor {
        &self.shared.own.offsets
    }

    /// `[edges]`, i32 or i64.
    pub fn indices(&self) -> &Tensor {
        &self.shared.own.indices
    }

    /// `[edges]`, f32.
    pub fn values(&self) -> Option<&Tensor> {
        self.values.as_ref()
    }

    pub fn without_values(&self) -> Csr {
        Csr { shared: self.shared.clone(), values: None }
    }

    /// The same edges with these values, `[edges]` in f32.
    pub fn with_values(&self, values: Tensor) -> Result<Csr> {
        values.require_dims(OP, "values", &[self.edges()])?;
        values.require_dtype(OP, "values", DType::F32)?;
        values.require_device(OP, "values", self.device())?;
        values.require_contiguous(OP, "values")?;
        Ok(Csr { shared: self.shared.clone(), values: Some(values) })
    }

    /// A copy in host memory.
    pub fn to_host(&self) -> Result<Adjacency> {
        Ok(Adjacency::trusted(
            (self.rows(), self.cols()),
            counts(self.offsets(), "offsets")?,
            counts(self.indices(), "indices")?,
            self.values.as_ref().map(|v| v.to_vec::<f32>()).transpose()?,
        ))
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.shared.own
    }

    /// Every edge turned round, built at the first call and kept.
    pub(crate) fn transposed(&self) -> Result<&Pattern> {
        if let Some(there) = self.shared.transpose.get() {
            return Ok(there);
        }
        let (turned, order) = self.without_values().to_host()?.transpose();
        let made = upload(&turned, Some(&order), self.device(), self.shared.width)?;
        Ok(self.shared.transpose.get_or_init(|| made))
    }

    /// Builds what backward needs now rather than at its first use.
    pub fn prepare(&self) -> Result<()> {
        self.transposed().map(|_| ())
    }
}

impl std::fmt::Debug for Csr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = if self.values.is_some() { ", weighted" } else { "" };
        write!(f, "Csr({} x {}, {} edges{values} on {})", self.rows(), self.cols(), self.edges(), self.device().name())
    }
}

fn upload(graph: &Adjacency, order: Option<&[usize]>, device: &Device, width: Width) -> Result<Pattern> {
    let by_edge = width.dtype(graph.edges());
    let by_node = width.dtype(graph.rows().max(graph.cols()));
    Ok(Pattern {
        rows: graph.rows(),
        edges: graph.edges(),
        max_degree: graph.max_degree(),
        offsets: integers(device, graph.offsets(), by_edge)?,
        indices: integers(device, graph.indices(), by_node)?,
        order: order.map(|o| integers(device, o, by_edge)).transpose()?,
    })
}

fn integers(device: &Device, values: &[usize], dtype: DType) -> Result<Tensor> {
    if dtype == DType::I32 {
        let narrow: Vec<i32> = values.iter().map(|&v| v as i32).collect();
        return Tensor::from_slice(device, &[values.len()], &narrow);
    }
    let wide: Vec<i64> = values.iter().map(|&v| v as i64).collect();
    Tensor::from_slice(device, &[values.len()], &wide)
}

fn counts(tensor: &Tensor, argument: &'static str) -> Result<Vec<usize>> {
    let values: Vec<i64> = match tensor.dtype() {
        DType::I32 => tensor.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        DType::I64 => tensor.to_vec::<i64>()?,
        got => return Err(Error::DType { op: OP, argument, expected: "i32 or i64".into(), got }),
    };
    let count = |(place, v): (usize, i64)| {
        usize::try_from(v).map_err(|_| Error::value(OP, argument, "numbers from 0", format!("{v} at place {place}")))
    };
    values.into_iter().enumerate().map(count).collect()
}

/// Offsets or indices of a CPU graph, held for reading.
pub(crate) enum HeldInts<'a> {
    Narrow(HostRead<'a, i32>),
    Wide(HostRead<'a, i64>),
}

impl<'a> HeldInts<'a> {
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        match tensor.dtype() {
            DType::I32 => Ok(HeldInts::Narrow(tensor.read(op)?)),
            _ => Ok(HeldInts::Wide(tensor.read(op)?)),
        }
    }

    pub fn values(&self) -> Ints<'_> {
        match self {
            HeldInts::Narrow(values) => Ints::Narrow(values),
            HeldInts::Wide(values) => Ints::Wide(values),
        }
    }
}

/// Offsets or indices of either width.
#[derive(Clone, Copy)]
pub(crate) enum Ints<'a> {
    Narrow(&'a [i32]),
    Wide(&'a [i64]),
}

impl Ints<'_> {
    #[inline(always)]
    pub fn at(self, i: usize) -> usize {
        match self {
            Ints::Narrow(values) => values[i] as usize,
            Ints::Wide(values) => values[i] as usize,
        }
    }
}
