//! Bytes owned by a device, shared by the tensors that look at them, freed when the last one goes.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::host::Line;
use super::{Backend, Device};
use crate::dtype::Element;
use crate::error::{Error, Result};

#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    device: Device,
    bytes: usize,
    memory: Memory,
}

enum Memory {
    /// The lock only guards against a caller who uses one buffer from two threads; ops take it for one call at a time.
    Host(RwLock<Vec<Line>>),
    /// Part of a read-only mapped file.
    Mapped {
        map: Arc<memmap2::Mmap>,
        offset: usize,
    },
    Gpu(u64),
}

impl Buffer {
    pub(super) fn host(device: Device, bytes: usize, block: Vec<Line>) -> Self {
        Buffer(Arc::new(Inner { device, bytes, memory: Memory::Host(RwLock::new(block)) }))
    }

    pub(super) fn gpu(device: Device, bytes: usize, address: u64) -> Self {
        Buffer(Arc::new(Inner { device, bytes, memory: Memory::Gpu(address) }))
    }

    pub(super) fn mapped(device: Device, map: Arc<memmap2::Mmap>, offset: usize, bytes: usize) -> Self {
        Buffer(Arc::new(Inner { device, bytes, memory: Memory::Mapped { map, offset } }))
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// The same for all views of one buffer, different for any two buffers alive at once.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Whether this handle is the only one, so that writing cannot be seen through another tensor.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Device address; `None` on the CPU.
    pub fn address(&self) -> Option<u64> {
        match self.0.memory {
            Memory::Gpu(address) => Some(address),
            _ => None,
        }
    }

    /// `len` elements from `offset` (counted in elements), on the CPU.
    pub fn read<T: Element>(&self, op: &'static str, offset: usize, len: usize) -> Result<HostRead<'_, T>> {
        let span = self.span::<T>(op, offset, len)?;
        let bytes = match &self.0.memory {
            Memory::Host(lock) => HostBytes::Locked(lock.try_read().map_err(|_| Error::Busy { op })?),
            Memory::Mapped { map, offset } => HostBytes::Mapped(&map[*offset..*offset + self.0.bytes]),
            Memory::Gpu(_) => return Err(self.not_on_host(op)),
        };
        let all = match &bytes {
            HostBytes::Locked(guard) => bytemuck::cast_slice::<Line, u8>(guard),
            HostBytes::Mapped(slice) => slice,
        };
        let misaligned = Error::Misaligned { op, argument: "tensor", offset: span.0, alignment: size_of::<T>() };
        bytemuck::try_cast_slice::<u8, T>(&all[span.0..span.1]).map_err(|_| misaligned)?;
        Ok(HostRead { bytes, span, element: PhantomData })
    }

    pub fn write<T: Element>(&self, op: &'static str, offset: usize, len: usize) -> Result<HostWrite<'_, T>> {
        let span = self.span::<T>(op, offset, len)?;
        match &self.0.memory {
            Memory::Host(lock) => {
                let guard = lock.try_write().map_err(|_| Error::Busy { op })?;
                Ok(HostWrite { guard, span, element: PhantomData })
            }
            Memory::Mapped { .. } => Err(Error::Unsupported {
                op,
                what: "the target is a read-only mapped file".into(),
                hint: "copy it with Tensor::to_device first".into(),
            }),
            Memory::Gpu(_) => Err(self.not_on_host(op)),
        }
    }

    fn span<T>(&self, op: &'static str, offset: usize, len: usize) -> Result<(usize, usize)> {
        let size = size_of::<T>();
        let end = offset.checked_add(len).and_then(|e| e.checked_mul(size));
        match end {
            Some(end) if end <= self.0.bytes => Ok((offset * size, end)),
            _ => {
                let expected = format!("elements within {} bytes", self.0.bytes);
                Err(Error::value(op, "view", expected, format!("{len} of {size} bytes from {offset}")))
            }
        }
    }

    fn not_on_host(&self, op: &'static str) -> Error {
        let got = self.0.device.name();
        Error::DeviceMismatch { op, argument: "tensor", expected: "cpu".into(), got }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let memory = match &mut self.memory {
            Memory::Host(lock) => Freed::Host(std::mem::take(lock.get_mut().unwrap_or_else(|e| e.into_inner()))),
            Memory::Mapped { .. } => return,
            Memory::Gpu(address) => Freed::Gpu(*address),
        };
        self.device.counted(-(self.bytes as isize));
        match (memory, self.device.backend()) {
            (Freed::Host(block), Backend::Cpu(pool)) => pool.give_back(block),
            (Freed::Gpu(address), Backend::Gpu(launcher)) => launcher.release(address, self.bytes),
            _ => unreachable!("memory belongs to the device that made it"),
        }
    }
}

enum Freed {
    Host(Vec<Line>),
    Gpu(u64),
}

enum HostBytes<'a> {
    Locked(RwLockReadGuard<'a, Vec<Line>>),
    Mapped(&'a [u8]),
}

/// Elements being read; dereferences to a slice.
pub struct HostRead<'a, T> {
    bytes: HostBytes<'a>,
    span: (usize, usize),
    element: PhantomData<T>,
}

impl<T: Element> Deref for HostRead<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let all = match &self.bytes {
            HostBytes::Locked(guard) => bytemuck::cast_slice::<Line, u8>(guard),
            HostBytes::Mapped(slice) => slice,
        };
        bytemuck::cast_slice(&all[self.span.0..self.span.1])
    }
}

/// Elements being written; dereferences to a mutable slice.
pub struct HostWrite<'a, T> {
    guard: RwLockWriteGuard<'a, Vec<Line>>,
    span: (usize, usize),
    element: PhantomData<T>,
}

impl<T: Element> Deref for HostWrite<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<Line, u8>(&self.guard)[self.span.0..self.span.1])
    }
}

impl<T: Element> DerefMut for HostWrite<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<Line, u8>(&mut self.guard)[self.span.0..self.span.1])
    }
}
