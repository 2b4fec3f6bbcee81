//! Tensors are views: a buffer, a dtype and a layout. Cloning one copies no element.

pub mod block_sparse;
mod frozen;
mod params;

pub use block_sparse::{BlockPattern, BlockSparse, blocks_of};
pub use frozen::{FrozenWeight, Packing};
pub use params::{Init, Param, ParamId, ParamSet, ParamSetBuilder};

use half::{bf16, f16};

use crate::device::{Buffer, Device, HostRead, HostWrite};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::{Layout, checked_numel};

#[derive(Clone)]
pub struct Tensor {
    buffer: Buffer,
    dtype: DType,
    layout: Layout,
}

impl Tensor {
    /// Unspecified contents: for ops that write every element.
    pub fn empty(device: &Device, dims: &[usize], dtype: DType) -> Result<Self> {
        let numel = checked_numel("tensor", dims, dtype.size())?;
        let buffer = device.allocate(numel * dtype.size())?;
        Ok(Tensor { buffer, dtype, layout: Layout::contiguous(dims) })
    }

    pub fn zeros(device: &Device, dims: &[usize], dtype: DType) -> Result<Self> {
        let out = Tensor::empty(device, dims, dtype)?;
        out.zero()?;
        Ok(out)
    }

    /// `[dims]` from row-major `values`.
    pub fn from_slice<T: Element>(device: &Device, dims: &[usize], values: &[T]) -> Result<Self> {
        let numel = checked_numel("tensor", dims, size_of::<T>())?;
        if numel != values.len() {
            return Err(Error::shape("tensor", "values", format!("{numel} values for {dims:?}"), &[values.len()]));
        }
        let out = Tensor::empty(device, dims, T::DTYPE)?;
        out.overwrite(values)?;
        Ok(out)
    }

    /// `[dims]` of any float dtype from `f32` values, each rounded to nearest, ties to even.
    pub fn from_f32(device: &Device, dims: &[usize], values: &[f32], dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Tensor::from_slice(device, dims, values),
            DType::F64 => Tensor::from_slice(device, dims, &values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
            DType::F16 => {
                Tensor::from_slice(device, dims, &values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())
            }
            DType::BF16 => {
                Tensor::from_slice(device, dims, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>())
            }
            got => Err(Error::DType { op: "tensor", argument: "dtype", expected: "a float type".into(), got }),
        }
    }

    /// A view of `buffer`. The layout must lie inside it.
    pub(crate) fn view_of(buffer: &Buffer, dtype: DType, layout: Layout) -> Result<Self> {
        let fits = layout.end().checked_mul(dtype.size()).is_some_and(|end| end <= buffer.bytes());
        if !fits {
            let expected = format!("a layout within {} bytes", buffer.bytes());
            return Err(Error::value("view", "layout", expected, format!("{layout:?} of {dtype}")));
        }
        Ok(Tensor { buffer: buffer.clone(), dtype, layout })
    }

    pub fn dims(&self) -> &[usize] {
        &self.layout.dims
    }

    /// In elements.
    pub fn strides(&self) -> &[usize] {
        &self.layout.strides
    }

    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Product of all dimensions but the last: the rows that row-wise ops see.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, front)| Layout::contiguous(front).numel())
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The same elements under other dimensions.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        self.require_contiguous("reshape", "tensor")?;
        let numel = checked_numel("reshape", dims, self.dtype.size())?;
        if numel != self.numel() {
            return Err(Error::shape("reshape", "dims", format!("{} elements", self.numel()), dims));
        }
        let layout = Layout { offset: self.layout.offset, ..Layout::contiguous(dims) };
        Ok(Tensor { buffer: self.buffer.clone(), dtype: self.dtype, layout })
    }

    /// `start .. start + len` of dimension `dim`.
    pub fn slice(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        Ok(Tensor { layout: self.layout.slice(dim, start, len)?, ..self.clone() })
    }

    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        Ok(Tensor { layout: self.layout.transpose(a, b)?, ..self.clone() })
    }

    /// This tensor if it is contiguous already, else a copy that is. The copy of a strided GPU tensor passes through the host.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let out = Tensor::empty(self.device(), self.dims(), self.dtype)?;
        out.set_bytes(&self.to_bytes()?)?;
        Ok(out)
    }

    /// The same values on another device (or in a buffer of their own on this one).
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let out = Tensor::empty(device, self.dims(), self.dtype)?;
        out.set_bytes(&self.to_bytes()?)?;
        Ok(out)
    }

    /// A copy in a buffer of its own, made on the device.
    pub fn duplicate(&self) -> Result<Self> {
        let out = Tensor::empty(self.device(), self.dims(), self.dtype)?;
        out.copy_from(self)?;
        Ok(out)
    }

    /// Overwrites this tensor with one of the same dtype, dimensions and device, both contiguous.
    pub fn copy_from(&self, source: &Tensor) -> Result<()> {
        const OP: &str = "copy_from";
        source.require_dtype(OP, "source", self.dtype)?;
        source.require_dims(OP, "source", self.dims())?;
        source.require_device(OP, "source", self.device())?;
        source.require_contiguous(OP, "source")?;
        self.require_contiguous(OP, "target")?;
        match self.device().launcher() {
            Some(launcher) => launcher.copy(self.address()?, source.address()?, self.byte_len()),
            None => self.set_bytes(&source.to_bytes()?),
        }
    }

    /// The same values rounded to `dtype` (to nearest, ties to even), through the host.
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if self.dtype == DType::F64 || dtype == DType::F64 {
            let values = self.to_f64_vec()?;
            if dtype == DType::F64 {
                return Tensor::from_slice(self.device(), self.dims(), &values);
            }
            let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            return Tensor::from_f32(self.device(), self.dims(), &narrow, dtype);
        }
        Tensor::from_f32(self.device(), self.dims(), &self.to_f32_vec()?, dtype)
    }

    /// All elements, row-major, in their own type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.require_dtype("to_vec", "tensor", T::DTYPE)?;
        Ok(bytemuck::pod_collect_to_vec(&self.to_bytes()?))
    }

    /// All elements as `f32`, whatever the float dtype.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        match self.dtype {
            DType::F32 => self.to_vec::<f32>(),
            DType::F16 => Ok(self.to_vec::<f16>()?.iter().map(|v| v.to_f32()).collect()),
            DType::BF16 => Ok(self.to_vec::<bf16>()?.iter().map(|v| v.to_f32()).collect()),
            DType::F64 => Ok(self.to_vec::<f64>()?.iter().map(|&v| v as f32).collect()),
            got => Err(Error::DType { op: "to_f32_vec", argument: "tensor", expected: "a float type".into(), got }),
        }
    }

    /// All elements as `f64`, whatever the float dtype.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        match self.dtype {
            DType::F64 => self.to_vec::<f64>(),
            _ => Ok(self.to_f32_vec()?.iter().map(|&v| f64::from(v)).collect()),
        }
    }

    /// The one element of a tensor that has one.
    pub fn to_scalar(&self) -> Result<f64> {
        if self.numel() != 1 {
            return Err(Error::shape("to_scalar", "tensor", "one element", self.dims()));
        }
        Ok(self.to_f64_vec()?[0])
    }

    /// Replaces all elements.
    pub fn overwrite<T: Element>(&self, values: &[T]) -> Result<()> {
        self.require_dtype("overwrite", "tensor", T::DTYPE)?;
        self.set_bytes(bytemuck::cast_slice(values))
    }

    pub fn zero(&self) -> Result<()> {
        self.require_contiguous("zero", "tensor")?;
        match self.device().launcher() {
            Some(launcher) => launcher.zero(self.address()?, self.byte_len()),
            None => {
                self.host_bytes_mut("zero")?.fill(0);
                Ok(())
            }
        }
    }

    /// Address of the first element on a GPU; 0 on the CPU.
    pub fn address(&self) -> Result<u64> {
        Ok(self.buffer.address().map_or(0, |a| a + (self.layout.offset * self.dtype.size()) as u64))
    }

    pub fn byte_len(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// The elements of a contiguous CPU tensor.
    pub fn read<T: Element>(&self, op: &'static str) -> Result<HostRead<'_, T>> {
        self.require_dtype(op, "tensor", T::DTYPE)?;
        self.require_contiguous(op, "tensor")?;
        self.buffer.read(op, self.layout.offset, self.numel())
    }

    /// The elements of a contiguous CPU tensor, to write.
    pub fn write<T: Element>(&self, op: &'static str) -> Result<HostWrite<'_, T>> {
        self.require_dtype(op, "tensor", T::DTYPE)?;
        self.require_contiguous(op, "tensor")?;
        self.buffer.write(op, self.layout.offset, self.numel())
    }

    pub fn require_dtype(&self, op: &'static str, argument: &'static str, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::DType { op, argument, expected: dtype.to_string(), got: self.dtype })
    }

    pub fn require_contiguous(&self, op: &'static str, argument: &'static str) -> Result<()> {
        if self.is_contiguous() {
            return Ok(());
        }
        Err(Error::NotContiguous { op, argument, dims: self.dims().to_vec(), strides: self.strides().to_vec() })
    }

    pub fn require_device(&self, op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
        if self.device() == device {
            return Ok(());
        }
        Err(Error::DeviceMismatch { op, argument, expected: device.name(), got: self.device().name() })
    }

    pub fn require_dims(&self, op: &'static str, argument: &'static str, dims: &[usize]) -> Result<()> {
        if self.dims() == dims {
            return Ok(());
        }
        Err(Error::shape(op, argument, format!("{dims:?}"), self.dims()))
    }

    fn host_bytes_mut(&self, op: &'static str) -> Result<HostWrite<'_, u8>> {
        self.buffer.write(op, self.layout.offset * self.dtype.size(), self.byte_len())
    }

    /// Replaces all elements by raw ones, row-major.
    pub(crate) fn set_bytes(&self, data: &[u8]) -> Result<()> {
        self.require_contiguous("overwrite", "tensor")?;
        if data.len() != self.byte_len() {
            let size = self.dtype.size();
            return Err(Error::shape(
                "overwrite",
                "values",
                format!("{} elements", self.numel()),
                &[data.len() / size],
            ));
        }
        match self.device().launcher() {
            Some(launcher) => launcher.write(self.address()?, data),
            None => {
                self.host_bytes_mut("overwrite")?.copy_from_slice(data);
                Ok(())
            }
        }
    }

    /// All elements, row-major, whatever the strides.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let size = self.dtype.size();
        if let Some(launcher) = self.device().launcher() {
            let reach = self.layout.end() - self.layout.offset;
            let mut raw = vec![0u8; reach * size];
            launcher.read(self.address()?, &mut raw)?;
            return Ok(self.gather(&raw, self.layout.offset));
        }
        let all = self.buffer.read::<u8>("read", 0, self.layout.end() * size)?;
        Ok(self.gather(&all, 0))
    }

    fn gather(&self, raw: &[u8], first: usize) -> Vec<u8> {
        let size = self.dtype.size();
        if self.is_contiguous() {
            let start = (self.layout.offset - first) * size;
            return raw[start..start + self.byte_len()].to_vec();
        }
        let mut out = Vec::with_capacity(self.byte_len());
        for position in self.layout.positions() {
            let at = (position - first) * size;
            out.extend_from_slice(&raw[at..at + size]);
        }
        out
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.dims(), self.device().name())
    }
}
