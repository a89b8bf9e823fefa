//! What the weights of a model take in memory, known before any of them is read.

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::form::WeightType;
use crate::matrix::Matrix;
use crate::memory;
use crate::sizes::LayerBytes;
use crate::weights::{Frame, LayerWeights, Linear};
use candle_core::Tensor;
use std::path::Path;

/// Types that are tried where a model does not fit, the finest first.
const SMALLER: [WeightType; 4] = [
    WeightType::Bf16,
    WeightType::Q8_0,
    WeightType::Q4_1,
    WeightType::Q4_0,
];

/// The matrices of a model with what they would take in a type of weights.
#[derive(Clone, Copy)]
pub(crate) struct WeightBytes<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a ModelConfig,
    pub(crate) frame: &'a Frame,
    pub(crate) layers: &'a [LayerWeights],
    /// Bytes of an element of the state, and of a bias.
    pub(crate) state: u64,
    pub(crate) keep: WeightType,
}

impl WeightBytes<'_> {
    fn matrix(&self, matrix: &Matrix, embeds: bool) -> Result<u64> {
        let form = self.checkpoint.form_in(self.keep, matrix, embeds)?;
        Ok(form.bytes(matrix.elements()))
    }

    fn linear(&self, linear: &Linear) -> Result<u64> {
        let bias = linear.bias.as_ref().map_or(0, Tensor::elem_count) as u64;
        Ok(self.matrix(&linear.weight, false)? + self.state * bias)
    }

    fn sum<'a>(&self, parts: impl IntoIterator<Item = &'a Linear>) -> Result<u64> {
        parts.into_iter().map(|part| self.linear(part)).sum()
    }

    /// Of each layer.
    ///
    /// # Errors
    /// Rows that are no whole number of blocks.
    pub(crate) fn of_layers(&self) -> Result<Vec<LayerBytes>> {
        let layer = |layer: &LayerWeights| {
            let (attention, mlp) = (&layer.attention, &layer.mlp);
            let [k, v] = [&attention.k.weight, &attention.v.weight];
            Ok(LayerBytes {
                attention: self.sum([&attention.q, &attention.k, &attention.v, &attention.o])?,
                kv_projection: self.matrix(k, false)? + self.matrix(v, false)?,
                mlp: self.sum(mlp.gate.iter().chain([&mlp.up, &mlp.down]))?,
            })
        };
        self.layers.iter().map(layer).collect()
    }

    /// Between the last layer and the logits.
    ///
    /// # Errors
    /// As [`of_layers`](Self::of_layers).
    pub(crate) fn of_head(&self) -> Result<u64> {
        Ok(
            self.matrix(&self.frame.head(self.config), true)?
                + self.sum(&self.frame.project_out)?,
        )
    }

    fn of_all(&self) -> Result<u128> {
        let layers = self.of_layers()?;
        let layers = layers.iter().map(|layer| layer.attention + layer.mlp);
        let embedding = match self.frame.is_tied() {
            true => 0,
            false => self.matrix(&self.frame.embedding(self.config), true)?,
        };
        let rest = embedding + self.of_head()? + self.sum(&self.frame.project_in)?;
        Ok(layers.chain([rest]).map(u128::from).sum())
    }

    /// Refuses a model that the memory of the host does not hold. `may_shrink`: weights can be kept in blocks.
    ///
    /// # Errors
    /// [`ModelError::TooLarge`] with what would fit; as [`of_layers`](Self::of_layers).
    pub(crate) fn require(&self, model: &Path, may_shrink: bool) -> Result<()> {
        let bytes = self.of_all()?;
        let Err(free) = memory::take(bytes) else {
            return Ok(());
        };
        let smaller = |keep: WeightType| {
            let all = Self { keep, ..*self }.of_all().ok()?;
            let can = may_shrink || !keep.is_quantised();
            (can && all < bytes && memory::take(all).is_ok()).then_some((keep, all))
        };
        Err(ModelError::TooLarge {
            path: model.to_path_buf(),
            dtype: self.keep,
            bytes,
            free,
            fits: SMALLER.into_iter().find_map(smaller),
        })
    }
}
