//! The weights of a checkpoint by what they do, for a program that computes with them in a way of its own, such as training.

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, config_json};
use crate::error::Result;
use crate::form::WeightType;
use crate::kept::KeptMatrix;
use crate::matrix::Matrix;
use crate::weights::{Frame, LayerWeights, Linear, Norm};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// An open checkpoint: its layers as data, their matrices still in its files.
pub struct Parts {
    path: PathBuf,
    checkpoint: Checkpoint,
    config: ModelConfig,
    frame: Frame,
    layers: Vec<LayerWeights>,
}

impl Parts {
    /// Opens a Hugging Face folder or a `.gguf` file.
    ///
    /// # Errors
    /// As of [`Decoder::load`](crate::Decoder::load).
    pub fn open(model: &Path) -> Result<Self> {
        let config = ModelConfig::open(model)?;
        let checkpoint = Checkpoint::open(model, WeightType::F32, DType::F32, &Device::Cpu)?;
        let frame = config.family.frame(&checkpoint, &config)?;
        let layers = (0..config.n_layers)
            .map(|index| config.family.layer(&checkpoint, &config, index))
            .collect::<Result<_>>()?;
        Ok(Self {
            path: model.to_path_buf(),
            checkpoint,
            config,
            frame,
            layers,
        })
    }

    /// What the arithmetic follows from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Embedding, final norm and LM head.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The decoder layers, in order.
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// A matrix in f32, `[rows, columns]`.
    ///
    /// # Errors
    /// A file that cannot be read, no memory.
    pub fn tensor(&self, matrix: &Matrix) -> Result<Tensor> {
        self.checkpoint.matrix(matrix)
    }

    /// A matrix in the bits of `keep`.
    ///
    /// # Errors
    /// As of [`tensor`](Self::tensor); rows that are no whole number of blocks.
    pub fn keep(&self, matrix: &Matrix, keep: WeightType) -> Result<KeptMatrix> {
        KeptMatrix::read(&self.checkpoint, matrix, keep)
    }

    /// `config.json` of the folder, or what would say the same of a GGUF file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn config_json(&self) -> Result<Value> {
        config_json(&self.path)
    }

    /// The name of a tensor, or of what belongs to one, within a model that has an LM head, as transformers calls it: base
    /// models are written without the prefix that they have there.
    pub fn module_name(&self, name: &str) -> String {
        self.config.family.module_name(name)
    }

    /// Every tensor that the model computes with, by Hugging Face's name, with its values in f32 as Hugging Face stores them.
    /// `each` gets one after the other.
    ///
    /// # Errors
    /// A file that cannot be read; what `each` gives.
    pub fn for_each_tensor<E: From<crate::ModelError>>(
        &self,
        mut each: impl FnMut(&str, Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut seen = std::collections::HashSet::new();
        for (name, shape) in self.tensors() {
            if seen.insert(name.clone()) {
                let tensor = self.checkpoint.tensor(&name, &shape)?;
                each(&name, tensor)?;
            }
        }
        Ok(())
    }

    /// Names and shapes, in order; a tensor that several matrices are rows of comes more than once.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut found = Vec::new();
        let matrix = |matrix: &Matrix| (matrix.name.clone(), matrix.whole.to_vec());
        let norm = |norm: &Norm| {
            let width = vec![norm.width()];
            match norm {
                Norm::Rms { name, .. } => vec![(name.clone(), width)],
                Norm::Layer { names, .. } => names
                    .iter()
                    .map(|name| (name.clone(), width.clone()))
                    .collect(),
            }
        };
        let linear = |linear: &Linear| {
            let bias = linear.bias_at.as_ref();
            let bias = bias.map(|bias| (bias.name.clone(), vec![bias.whole[0]]));
            [matrix(&linear.weight)]
                .into_iter()
                .chain(bias)
                .collect::<Vec<_>>()
        };
        let frame = &self.frame;
        found.push(matrix(&frame.embedding(&self.config)));
        found.extend(frame.embedding_norm.iter().flat_map(norm));
        found.extend(frame.project_in.iter().flat_map(linear));
        found.extend(frame.positions_at.iter().map(matrix));
        for layer in &self.layers {
            let attention = &layer.attention;
            let norms = [&layer.attention_norms, &layer.mlp_norms];
            let norms = norms
                .into_iter()
                .flat_map(|norms| [&norms.before, &norms.after, &norms.sum])
                .chain([&attention.q_norm, &attention.k_norm]);
            found.extend(norms.flatten().flat_map(norm));
            found.extend(layer.linears().flat_map(linear));
        }
        found.extend(frame.final_norm.iter().flat_map(norm));
        found.extend(frame.project_out.iter().flat_map(linear));
        found.push(matrix(&frame.head(&self.config)));
        found
    }
}
