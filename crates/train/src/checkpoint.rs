//! State of an unfinished training: written whole or not at all, so that a cut-off loses steps but no run.

use crate::error::{Result, TrainError};
use crate::net::Net;
use crate::optimizer::{AdamW, Moments};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::Path;

const PARTS: [&str; 4] = ["value", "first", "second", "average"];

/// Writes weights, moments and average after `step` updates. `run` names the run, so that another is not resumed.
pub(crate) fn save(path: &Path, net: &Net, optimizer: &AdamW, step: u64, run: u64) -> Result<()> {
    let mut tensors = HashMap::new();
    for (name, weight) in net.names().iter().zip(&optimizer.weights) {
        for (part, values) in PARTS.into_iter().zip(weight.parts()) {
            if !values.is_empty() {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{part}/{name}"), tensor);
            }
        }
    }
    for (key, number) in [("step", step), ("run", run)] {
        let halves = [(number >> 32) as u32, number as u32];
        tensors.insert(key.to_owned(), Tensor::new(&halves, &Device::Cpu)?);
    }
    write_whole(path, |temporary| {
        Ok(candle_core::safetensors::save(&tensors, temporary)?)
    })
}

/// Loads what [`save`] wrote into `net` and `optimizer`; gives the number of updates done.
pub(crate) fn load(path: &Path, net: &Net, optimizer: &mut AdamW, run: u64) -> Result<u64> {
    let fail = |message: String| TrainError::Checkpoint {
        path: path.to_path_buf(),
        message,
    };
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| {
        fail(format!(
            "not a complete checkpoint ({error}); delete it to start over"
        ))
    })?;
    let number = |key: &str| -> Result<u64> {
        let halves = tensors
            .get(key)
            .and_then(|tensor| tensor.to_vec1::<u32>().ok());
        match halves.as_deref() {
            Some([high, low]) => Ok((u64::from(*high) << 32) | u64::from(*low)),
            _ => Err(fail(format!("holds no `{key}`; delete it to start over"))),
        }
    };
    if number("run")? != run {
        return Err(fail(
            "belongs to a run with another config; use another output folder, or delete it to start over"
                .to_owned(),
        ));
    }
    for (name, weight) in net.names().iter().zip(&mut optimizer.weights) {
        for (part, values) in PARTS.into_iter().zip(weight.parts_mut()) {
            if values.is_empty() {
                continue;
            }
            *values = tensors
                .get(&format!("{part}/{name}"))
                .and_then(|tensor| tensor.to_vec1::<f32>().ok())
                .filter(|loaded| loaded.len() == values.len())
                .ok_or_else(|| fail(format!("`{part}/{name}` is missing or of another size")))?;
        }
        let var = net.var(name);
        var.set(&Tensor::from_slice(
            &weight.value,
            var.shape(),
            &Device::Cpu,
        )?)?;
    }
    number("step")
}

/// Writes to a temporary name in the same folder, then renames.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    write(&temporary)?;
    std::fs::rename(&temporary, path).map_err(TrainError::io(path))
}

impl Moments {
    fn parts(&self) -> [&Vec<f32>; 4] {
        [&self.value, &self.first, &self.second, &self.average]
    }

    fn parts_mut(&mut self) -> [&mut Vec<f32>; 4] {
        [
            &mut self.value,
            &mut self.first,
            &mut self.second,
            &mut self.average,
        ]
    }
}
