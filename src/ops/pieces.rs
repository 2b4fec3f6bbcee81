//! Tensors read and written a piece at a time: 16-bit values become the type that the reference computes in when they are met, not before, so
//! that no tensor is ever held twice.

use half::{bf16, f16};

use super::host::Real;
use super::lanes;
use crate::autograd::Target;
use crate::device::{HostRead, HostWrite};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Elements that are widened together.
pub(crate) const PIECE: usize = 64;

fn not_a_float(op: &'static str, argument: &'static str, got: DType) -> Error {
    Error::DType { op, argument, expected: "a float type".into(), got }
}

/// A tensor held for reading.
pub(crate) enum Held<'a, T: Element> {
    Own(HostRead<'a, T>),
    Single(HostRead<'a, f32>),
    Half(HostRead<'a, f16>),
    Brain(HostRead<'a, bf16>),
}

impl<'a, T: Real> Held<'a, T> {
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            own if own == T::DTYPE => Held::Own(tensor.read(op)?),
            DType::F32 => Held::Single(tensor.read(op)?),
            DType::F16 => Held::Half(tensor.read(op)?),
            DType::BF16 => Held::Brain(tensor.read(op)?),
            got => return Err(not_a_float(op, "tensor", got)),
        })
    }

    pub fn values(&self) -> Values<'_, T> {
        match self {
            Held::Own(read) => Values::Own(read),
            Held::Single(read) => Values::Single(read),
            Held::Half(read) => Values::Half(read),
            Held::Brain(read) => Values::Brain(read),
        }
    }
}

/// A tensor's elements, as they are stored.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a, T> {
    Own(&'a [T]),
    Single(&'a [f32]),
    Half(&'a [f16]),
    Brain(&'a [bf16]),
}

impl<'a, T: Real> Values<'a, T> {
    #[inline(always)]
    pub fn at(self, i: usize) -> T {
        match self {
            Values::Own(values) => values[i],
            Values::Single(values) => T::of(f64::from(values[i])),
            Values::Half(values) => T::of(values[i].to_f64()),
            Values::Brain(values) => T::of(values[i].to_f64()),
        }
    }

    /// As many elements from `first` on as `room` has: where they lie, or widened into `room`.
    #[inline(always)]
    pub fn piece<'r>(self, first: usize, room: &'r mut [T]) -> &'r [T]
    where
        'a: 'r,
    {
        let range = first..first + room.len();
        match self {
            Values::Own(values) => return &values[range],
            Values::Single(values) => {
                for (to, &from) in room.iter_mut().zip(&values[range]) {
                    *to = T::of(f64::from(from));
                }
            }
            Values::Half(values) => T::widen_f16(&values[range], room),
            Values::Brain(values) => T::widen_bf16(&values[range], room),
        }
        room
    }

    /// `Σ self[first + i] · other[second + i]` over `len` elements, in an order that `len` alone decides.
    #[inline(always)]
    pub fn dot(self, first: usize, other: Values<'_, T>, second: usize, len: usize) -> T {
        if let (Values::Own(a), Values::Own(b)) = (self, other) {
            return lanes::dot(&a[first..first + len], &b[second..second + len]);
        }
        let (mut a, mut b) = ([T::of(0.0); PIECE], [T::of(0.0); PIECE]);
        let (mut sum, mut done) = (T::of(0.0), 0);
        while done < len {
            let some = PIECE.min(len - done);
            sum += lanes::dot(self.piece(first + done, &mut a[..some]), other.piece(second + done, &mut b[..some]));
            done += some;
        }
        sum
    }
}

/// Somewhere that results go, which can be cut in two.
pub(crate) trait Panel: Send + Sized {
    type Item: Send;

    fn cut(self, at: usize) -> (Self, Self);

    /// Lets `fill` write the elements.
    fn fill(self, fill: impl FnOnce(&mut [Self::Item]));
}

/// Elements that are stored as they are computed.
impl<T: Send> Panel for &mut [T] {
    type Item = T;

    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }

    #[inline(always)]
    fn fill(self, fill: impl FnOnce(&mut [T])) {
        fill(self);
    }
}

/// A tensor held for writing.
pub(crate) struct Written<'a, T: Element> {
    guard: Guard<'a, T>,
    adds: bool,
}

enum Guard<'a, T: Element> {
    Own(HostWrite<'a, T>),
    Single(HostWrite<'a, f32>),
    Half(HostWrite<'a, f16>),
    Brain(HostWrite<'a, bf16>),
}

impl<'a, T: Real> Written<'a, T> {
    /// Contents are unspecified until written.
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        let guard = match tensor.dtype() {
            own if own == T::DTYPE => Guard::Own(tensor.write(op)?),
            DType::F32 => Guard::Single(tensor.write(op)?),
            DType::F16 => Guard::Half(tensor.write(op)?),
            DType::BF16 => Guard::Brain(tensor.write(op)?),
            got => return Err(not_a_float(op, "output", got)),
        };
        Ok(Written { guard, adds: false })
    }

    /// Where a gradient goes: with the present values, when it is to be added to them.
    pub fn into(op: &'static str, target: &'a Target) -> Result<Self> {
        Ok(Written { adds: target.accumulate, ..Written::of(op, &target.tensor)? })
    }

    pub fn panel(&mut self) -> Stored<'_, T> {
        let slice = match &mut self.guard {
            Guard::Own(write) => Slice::Own(write),
            Guard::Single(write) => Slice::Single(write),
            Guard::Half(write) => Slice::Half(write),
            Guard::Brain(write) => Slice::Brain(write),
        };
        Stored { slice, adds: self.adds }
    }
}

/// A part of a tensor being written.
pub(crate) struct Stored<'a, T> {
    slice: Slice<'a, T>,
    /// The present values are read first.
    adds: bool,
}

enum Slice<'a, T> {
    Own(&'a mut [T]),
    Single(&'a mut [f32]),
    Half(&'a mut [f16]),
    Brain(&'a mut [bf16]),
}

impl<T: Real> Panel for Stored<'_, T> {
    type Item = T;

    fn cut(self, at: usize) -> (Self, Self) {
        let (low, high) = match self.slice {
            Slice::Own(all) => {
                let (low, high) = all.split_at_mut(at);
                (Slice::Own(low), Slice::Own(high))
            }
            Slice::Single(all) => {
                let (low, high) = all.split_at_mut(at);
                (Slice::Single(low), Slice::Single(high))
            }
            Slice::Half(all) => {
                let (low, high) = all.split_at_mut(at);
                (Slice::Half(low), Slice::Half(high))
            }
            Slice::Brain(all) => {
                let (low, high) = all.split_at_mut(at);
                (Slice::Brain(low), Slice::Brain(high))
            }
        };
        (Stored { slice: low, ..self }, Stored { slice: high, adds: self.adds })
    }

    #[inline(always)]
    fn fill(self, fill: impl FnOnce(&mut [T])) {
        let adds = self.adds;
        match self.slice {
            Slice::Own(all) => fill(all),
            Slice::Single(all) => {
                let mut wide = room(all.len(), adds.then_some(Values::Single(all)));
                fill(&mut wide);
                for (to, from) in all.iter_mut().zip(wide) {
                    *to = from.to_f64() as f32;
                }
            }
            Slice::Half(all) => {
                let mut wide = room(all.len(), adds.then_some(Values::Half(all)));
                fill(&mut wide);
                T::narrow_f16(&wide, all);
            }
            Slice::Brain(all) => {
                let mut wide = room(all.len(), adds.then_some(Values::Brain(all)));
                fill(&mut wide);
                T::narrow_bf16(&wide, all);
            }
        }
    }
}

/// Room for a panel in the compute type, with the values that it has.
fn room<T: Real>(len: usize, present: Option<Values<T>>) -> Vec<T> {
    let mut room = vec![T::of(0.0); len];
    if let Some(present) = present {
        present.piece(0, &mut room);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::testing::normal;

    #[test]
    fn pieces_are_the_tensor_in_every_dtype() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let tensor = Tensor::from_f32(&Device::cpu(), &[150], &normal("x", 150), DType::F32).unwrap();
            let tensor = tensor.cast(dtype).unwrap();
            let wanted = tensor.to_f64_vec().unwrap();
            let held = Held::<f64>::of("test", &tensor).unwrap();
            let mut room = [0.0; 100];
            assert_eq!(held.values().piece(30, &mut room), &wanted[30..130]);
            assert_eq!(held.values().at(149), wanted[149]);
            let product: f64 = (0..100).map(|i| wanted[i] * wanted[50 + i]).sum();
            assert!((held.values().dot(0, held.values(), 50, 100) - product).abs() < 1e-12);
        }
        let words = Tensor::zeros(&Device::cpu(), &[2], DType::I32).unwrap();
        assert!(matches!(Held::<f32>::of("test", &words), Err(Error::DType { .. })));
    }

    #[test]
    fn a_panel_is_written_where_it_lies_and_added_to_when_asked() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            for accumulate in [false, true] {
                let tensor = Tensor::from_f32(&Device::cpu(), &[4], &[1.0; 4], DType::F32).unwrap();
                let target = Target { tensor: tensor.cast(dtype).unwrap(), accumulate };
                let mut written = Written::<f64>::into("test", &target).unwrap();
                let (low, high) = written.panel().cut(1);
                low.fill(|values| values[0] = 7.0);
                let add = |v: &mut f64, by: f64| *v = if accumulate { *v + by } else { by };
                high.fill(|values| values.iter_mut().zip([2.0, 3.0, 4.0]).for_each(|(v, by)| add(v, by)));
                drop(written);
                let wanted = if accumulate { [7.0, 3.0, 4.0, 5.0] } else { [7.0, 2.0, 3.0, 4.0] };
                assert_eq!(target.tensor.to_f64_vec().unwrap(), wanted);
            }
        }
    }
}
