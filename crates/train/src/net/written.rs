//! A network as the tensors of a checkpoint.

use super::Net;
use crate::adapter::AdapterConfig;
use crate::assemble::Home;
use crate::error::Result;
use crate::ops::to_vec;
use crate::products::product;
use candle_core::{DType, Device, Tensor};
use skipbench_model::Matrix;
use std::collections::HashMap;

/// What becomes of a tensor of the checkpoint.
enum Change<'a> {
    /// These rows have other values, to which something was added.
    Rows(&'a Matrix, &'a [f32], f32),
    /// The product of the two halves of an adapter is added.
    LowRank(&'a Matrix, &'a [f32], &'a [f32]),
}

impl Change<'_> {
    fn apply(&self, all: &mut [f32], adapter: Option<&AdapterConfig>) -> Result<()> {
        match self {
            Change::Rows(rows, values, add) => {
                let columns = rows.columns();
                for (row, values) in values.chunks_exact(columns).enumerate() {
                    let to = &mut all[rows.place(row) * columns..][..columns];
                    to.iter_mut()
                        .zip(values)
                        .for_each(|(to, value)| *to = value - add);
                }
            }
            Change::LowRank(matrix, lower, upper) => {
                let scale = adapter.map_or(0.0, AdapterConfig::scale);
                let rank = lower.len() / matrix.columns();
                let sum = product(upper, lower, [rank, matrix.columns()], true);
                all.iter_mut()
                    .zip(sum)
                    .for_each(|(to, sum)| *to += scale as f32 * sum);
            }
        }
        Ok(())
    }
}

impl Net {
    /// Every weight under its name in a checkpoint, with `values` for what is trained, in the order of [`Self::names`].
    ///
    /// # Errors
    /// A checkpoint that can no longer be read.
    pub(crate) fn tensors(
        &self,
        values: &[&[f32]],
        dtype: DType,
    ) -> Result<HashMap<String, Tensor>> {
        let changes = self.changes(values);
        let mut tensors = HashMap::new();
        let Some(base) = &self.base else {
            // Every weight of a new model is trained.
            for (name, values) in self.names().iter().zip(values) {
                let tensor = Tensor::from_slice(values, self.var(name).shape(), &Device::Cpu)?;
                tensors.insert(name.clone(), tensor.to_dtype(dtype)?);
            }
            return Ok(tensors);
        };
        base.for_each_tensor(|name, tensor| -> Result<()> {
            let shape = tensor.shape().clone();
            let mut all = to_vec(&tensor)?;
            for change in changes.get(name).into_iter().flatten() {
                change.apply(&mut all, self.adapter.as_ref())?;
            }
            let tensor = Tensor::from_vec(all, shape, &Device::Cpu)?;
            tensors.insert(name.to_owned(), tensor.to_dtype(dtype)?);
            Ok(())
        })?;
        Ok(tensors)
    }

    /// What training has made of the tensors of the checkpoint, by their names.
    fn changes<'a>(&'a self, values: &[&'a [f32]]) -> HashMap<&'a str, Vec<Change<'a>>> {
        let mut changes: HashMap<&str, Vec<Change<'_>>> = HashMap::new();
        let mut homes = self.variables().homes.iter().zip(values);
        while let Some((home, values)) = homes.next() {
            match home {
                Home::Rows { rows, add } => {
                    let change = Change::Rows(rows, values, *add as f32);
                    changes.entry(&rows.name).or_default().push(change);
                }
                Home::Lower(matrix) => {
                    if let Some((_, upper)) = homes.next() {
                        let change = Change::LowRank(matrix, values, upper);
                        changes.entry(&matrix.name).or_default().push(change);
                    }
                }
                Home::Upper => {}
            }
        }
        changes
    }
}
