//! State of an unfinished training: written whole or not at all, so that a cut-off loses steps but no run.

use crate::error::{Result, TrainError, first_line};
use crate::net::Net;
use crate::optimizer::{AdamW, Moments};
use crate::settings::differences;
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

const PARTS: [&str; 4] = ["value", "first", "second", "average"];

/// Writes weights, moments and average after `step` updates, with the settings of the run, so that another is not
/// resumed.
pub(crate) fn save(
    path: &Path,
    net: &Net,
    optimizer: &AdamW,
    step: u64,
    settings: &Value,
) -> Result<()> {
    let mut tensors = HashMap::new();
    for (name, weight) in net.names().iter().zip(&optimizer.weights) {
        for (part, values) in PARTS.into_iter().zip(weight.parts()) {
            if !values.is_empty() {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{part}/{name}"), tensor);
            }
        }
    }
    let halves = [(step >> 32) as u32, step as u32];
    tensors.insert("step".to_owned(), Tensor::new(&halves, &Device::Cpu)?);
    let text = settings.to_string();
    tensors.insert(
        "settings".to_owned(),
        Tensor::new(text.as_bytes(), &Device::Cpu)?,
    );
    skipbench_fs::write_whole_with(path, |temporary| {
        candle_core::safetensors::save(&tensors, temporary).map_err(|error| {
            TrainError::Checkpoint {
                path: path.to_path_buf(),
                message: format!("cannot be written: {}", first_line(&error)),
            }
        })
    })
}

/// Loads what [`save`] wrote into `net` and `optimizer`; gives the number of updates done.
pub(crate) fn load(path: &Path, net: &Net, optimizer: &mut AdamW, settings: &Value) -> Result<u64> {
    let fail = |message: String| TrainError::Checkpoint {
        path: path.to_path_buf(),
        message,
    };
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| {
        fail(format!(
            "not a complete checkpoint ({}); delete it to start over",
            first_line(&error)
        ))
    })?;
    let then = tensors
        .get("settings")
        .and_then(|tensor| tensor.to_vec1::<u8>().ok())
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .ok_or_else(|| {
            fail("does not say which settings it was made with, as those of older versions do not; delete it to start over".to_owned())
        })?;
    let different = differences(&then, settings);
    if !different.is_empty() {
        return Err(fail(format!(
            "holds an unfinished run with other settings: {}; set them back to go on, use another output folder, or delete the file to start over",
            different.join(", ")
        )));
    }
    let step = tensors
        .get("step")
        .and_then(|tensor| tensor.to_vec1::<u32>().ok());
    let Some([high, low]) = step.as_deref() else {
        return Err(fail("holds no `step`; delete it to start over".to_owned()));
    };
    for (name, weight) in net.names().iter().zip(&mut optimizer.weights) {
        for (part, values) in PARTS.into_iter().zip(weight.parts_mut()) {
            if values.is_empty() {
                continue;
            }
            *values = tensors
                .get(&format!("{part}/{name}"))
                .and_then(|tensor| tensor.to_vec1::<f32>().ok())
                .filter(|loaded| loaded.len() == values.len())
                .ok_or_else(|| {
                    fail(format!(
                        "`{part}/{name}` is missing or of another size; delete the file to start over"
                    ))
                })?;
        }
        let var = net.var(name);
        var.set(&Tensor::from_slice(
            &weight.value,
            var.shape(),
            &Device::Cpu,
        )?)?;
    }
    Ok((u64::from(*high) << 32) | u64::from(*low))
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
