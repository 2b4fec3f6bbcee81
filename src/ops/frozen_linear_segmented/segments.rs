//! Which rows belong to which adapter.

use super::OP;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Rows of a batch in runs, one for each slot of a bank in order; any run may be empty.
#[derive(Clone, Debug)]
pub struct Segments {
    /// Slot g has rows `offsets[g] .. offsets[g + 1]`.
    offsets: Vec<usize>,
    /// The same for kernels, as 32-bit numbers.
    on_device: Tensor,
}

impl Segments {
    /// From the number of rows of each slot.
    ///
    /// # Errors
    /// [`Error::Value`] for no slot at all, [`Error::SizeOverflow`] for more than 2³¹ - 1 rows.
    pub fn new(device: &Device, lengths: &[usize]) -> Result<Self> {
        if lengths.is_empty() {
            return Err(Error::value(OP, "lengths", "the rows of at least one slot", "none"));
        }
        let mut offsets = vec![0];
        for &length in lengths {
            let before: usize = offsets[offsets.len() - 1];
            let end = before.checked_add(length).filter(|&end| end <= i32::MAX as usize);
            offsets.push(end.ok_or_else(|| Error::SizeOverflow { op: OP, dims: vec![before, length] })?);
        }
        let numbers: Vec<i32> = offsets.iter().map(|&o| o as i32).collect();
        let on_device = Tensor::from_slice(device, &[numbers.len()], &numbers)?;
        debug_assert_eq!(on_device.dtype(), DType::I32);
        Ok(Segments { offsets, on_device })
    }

    /// From the slot of each row, in ascending order.
    ///
    /// # Errors
    /// [`Error::Value`] for a slot that is not below `slots`, or that is less than the one before.
    pub fn from_ids(device: &Device, ids: &[usize], slots: usize) -> Result<Self> {
        let mut lengths = vec![0; slots];
        let mut before = 0;
        for (row, &id) in ids.iter().enumerate() {
            if id >= slots {
                return Err(Error::value(OP, "ids", format!("slots below {slots}"), format!("{id} at row {row}")));
            }
            if id < before {
                let got = format!("{id} at row {row}, after {before}");
                return Err(Error::value(OP, "ids", "rows sorted by their slot", got));
            }
            lengths[id] += 1;
            before = id;
        }
        Segments::new(device, &lengths)
    }

    pub fn slots(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all slots.
    pub fn rows(&self) -> usize {
        self.offsets[self.slots()]
    }

    /// `(slot, first row, number of rows)` of the slots that have rows.
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let run = |(slot, ends): (usize, &[usize])| (slot, ends[0], ends[1] - ends[0]);
        self.offsets.windows(2).enumerate().map(run).filter(|&(_, _, rows)| rows > 0)
    }

    pub(crate) fn on_device(&self) -> &Tensor {
        &self.on_device
    }
}
