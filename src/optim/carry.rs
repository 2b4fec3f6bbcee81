//! Training goes on with parameters of another form: values and optimizer state follow what moved.
//!
//! A parameter set never changes its layout. When an adapter changes its form (blocks move, ranks are pruned), a new set is built, and what both
//! sets have goes over by name: elements as a map says, or all of them where dimensions agree. What is new starts as its
//! declaration says, with no history.

use std::collections::BTreeMap;

use super::{AdamW, Ewc};
use crate::error::{Error, Result};
use crate::tensor::{ParamSet, Tensor};

const OP: &str = "carry";

/// Where each element of a new parameter comes from.
#[derive(Clone, Debug, Default)]
pub struct Carry(BTreeMap<String, Vec<Option<usize>>>);

impl Carry {
    /// Everything by name and dimensions.
    pub fn whole() -> Self {
        Carry::default()
    }

    /// Element i of the new `name` is element `map[i]` of the old one; `None` is zero.
    pub fn elements(&mut self, name: impl Into<String>, map: Vec<Option<usize>>) {
        self.0.insert(name.into(), map);
    }

    /// Copies the values of `old` into `new`, masters and working copies.
    pub fn values(&self, old: &ParamSet, new: &ParamSet) -> Result<()> {
        let from = old.master().to_f32_vec()?;
        let start = new.master().to_f32_vec()?;
        for id in new.ids() {
            let param = new.get(id)?;
            let own = param.offset..param.offset + param.numel();
            let mut values = start[own].to_vec();
            self.fill(old, &param.name, &param.dims, &from, &mut values)?;
            new.set(id, &values)?;
        }
        Ok(())
    }

    /// An optimizer for `new` that goes on where `optimizer` of `old` is.
    pub fn optimizer(&self, old: &ParamSet, new: &ParamSet, optimizer: &AdamW) -> Result<AdamW> {
        let mut next = AdamW::new(*optimizer.config(), new)?;
        let (m, v) = optimizer.moments();
        next.restore(&self.flat(old, new, m)?, &self.flat(old, new, v)?, optimizer.steps())?;
        Ok(next)
    }

    /// The springs of `ewc` for `new`. What is new is held by none.
    pub fn ewc(&self, old: &ParamSet, new: &ParamSet, ewc: &Ewc) -> Result<Ewc> {
        let [anchor, squares] = [ewc.anchor(), ewc.squares()].map(|flat| self.flat(old, new, flat));
        Ewc::restore(*ewc.config(), anchor?, squares?, ewc.observations())
    }

    /// `flat`, laid out as `old` is, as `new` lays it out; zero where it comes from nowhere.
    fn flat(&self, old: &ParamSet, new: &ParamSet, flat: &Tensor) -> Result<Tensor> {
        flat.require_dims(OP, "moments", old.master().dims())?;
        let from = flat.to_f32_vec()?;
        let mut to = vec![0.0; new.flat_len()];
        for param in new.params() {
            let own = param.offset..param.offset + param.numel();
            self.fill(old, &param.name, &param.dims, &from, &mut to[own])?;
        }
        Tensor::from_f32(new.device(), &[to.len()], &to, flat.dtype())
    }

    /// Writes what `name` had in `from`; leaves `to` alone if `old` has no such parameter.
    fn fill(&self, old: &ParamSet, name: &str, dims: &[usize], from: &[f32], to: &mut [f32]) -> Result<()> {
        let Some(before) = old.find(name).map(|id| old.get(id)).transpose()? else { return Ok(()) };
        let from = &from[before.offset..before.offset + before.numel()];
        match self.0.get(name) {
            Some(map) => {
                if map.len() != to.len() || map.iter().flatten().any(|&at| at >= from.len()) {
                    let expected = format!("{} elements below {} for `{name}`", to.len(), from.len());
                    return Err(Error::shape(OP, "map", expected, &[map.len()]));
                }
                for (value, at) in to.iter_mut().zip(map) {
                    *value = at.map_or(0.0, |at| from[at]);
                }
            }
            None if &*before.dims == dims => to.copy_from_slice(from),
            None => {
                let expected = format!("{dims:?}, or a map of elements, for `{name}`");
                return Err(Error::shape(OP, "old", expected, &before.dims));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Grads;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::optim::AdamWConfig;
    use crate::tensor::{Init, ParamSetBuilder};

    fn set(dtype: DType, params: &[(&str, &[usize], Init)]) -> ParamSet {
        let mut builder = ParamSetBuilder::new();
        for (name, dims, init) in params {
            builder.add(*name, dims, init.clone()).unwrap();
        }
        builder.build(&Device::cpu(), dtype, 3).unwrap()
    }

    fn of(set: &ParamSet, flat: &Tensor, name: &str) -> Vec<f32> {
        set.view(flat, set.find(name).unwrap()).unwrap().contiguous().unwrap().to_f32_vec().unwrap()
    }

    #[test]
    fn values_and_moments_follow_by_name_and_by_element() {
        for dtype in [DType::F32, DType::BF16] {
            let old =
                set(dtype, &[("same", &[3], Init::Normal { std: 1.0 }), ("moved", &[4], Init::Normal { std: 1.0 })]);
            let mut optimizer = AdamW::new(AdamWConfig::default(), &old).unwrap();
            let grads = Grads::zeros(&old).unwrap();
            for _ in 0..2 {
                let values: Vec<f32> = (0..old.flat_len()).map(|i| i as f32).collect();
                let filled = Tensor::from_slice(&Device::cpu(), &[values.len()], &values).unwrap();
                grads.flat().set_bytes(&filled.to_bytes().unwrap()).unwrap();
                optimizer.step(&old, &grads, 0.1).unwrap();
            }
            let new =
                set(dtype, &[("moved", &[3], Init::Ones), ("fresh", &[2], Init::Ones), ("same", &[3], Init::Ones)]);
            let mut carry = Carry::whole();
            carry.elements("moved", vec![Some(2), None, Some(0)]);
            carry.values(&old, &new).unwrap();
            let next = carry.optimizer(&old, &new, &optimizer).unwrap();
            assert_eq!(next.steps(), 2);
            let ((m, v), (next_m, next_v)) = (optimizer.moments(), next.moments());
            for (from, to) in [(old.master(), new.master()), (old.working(), new.working()), (m, next_m), (v, next_v)] {
                assert_eq!(of(&new, to, "same"), of(&old, from, "same"));
                let moved = of(&old, from, "moved");
                assert_eq!(of(&new, to, "moved"), [moved[2], 0.0, moved[0]]);
            }
            assert_eq!(of(&new, new.master(), "fresh"), [1.0, 1.0]);
            assert_eq!(of(&new, next_m, "fresh"), [0.0, 0.0]);
        }
    }

    #[test]
    fn a_parameter_of_another_shape_needs_a_map_that_fits() {
        let old = set(DType::F32, &[("p", &[4], Init::Ones)]);
        let new = set(DType::F32, &[("p", &[2], Init::Ones)]);
        assert!(Carry::whole().values(&old, &new).is_err());
        for map in [vec![None], vec![Some(4), None]] {
            let mut carry = Carry::whole();
            carry.elements("p", map);
            assert!(carry.values(&old, &new).unwrap_err().to_string().contains("`p`"));
        }
    }
}
