//! Differentiable distances between what two passes make of the same tokens.

use super::Measure;
use crate::error::Result as TrainResult;
use crate::ops::{exp_sum, floats, softmax, to_vec};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use skipbench_model::threads::SideBySide;
use std::sync::Arc;

/// Squared norms of states are far above this.
const TINY: f64 = 1e-20;

/// How far each row of `a` is from that of `b`, both `[n, d]`: `[n]`.
pub(super) fn distances(a: &Tensor, b: &Tensor, measure: Measure) -> TrainResult<Tensor> {
    Ok(match measure {
        Measure::SquaredError => (a - b)?.sqr()?.mean(1)?,
        Measure::Cosine => {
            let dot = |a: &Tensor, b: &Tensor| -> Result<Tensor> { (a * b)?.sum(1) };
            let norms = ((dot(a, a)? * dot(b, b)?)? + TINY)?.sqrt()?;
            (dot(a, b)? / norms)?.affine(-1.0, 1.0)?
        }
    })
}

/// Mean over rows of the Kullback-Leibler divergence of `softmax(logits / T)` from `softmax(teacher / T)`, times T squared;
/// both `[rows, vocab_size]`. With p the teacher's and q the other's, the gradient is T (q - p).
pub(super) struct Divergence {
    pub(super) teacher: Arc<Vec<f32>>,
    pub(super) temperature: f32,
}

impl Divergence {
    fn scaled(&self, logits: &[f32]) -> Vec<f32> {
        logits.iter().map(|x| x / self.temperature).collect()
    }

    fn of_row(&self, teacher: &[f32], logits: &[f32]) -> f64 {
        let (mut p, z) = (self.scaled(teacher), self.scaled(logits));
        let log_sum = |x: &[f32]| {
            let (largest, sum) = exp_sum(x);
            f64::from(largest) + f64::from(sum).ln()
        };
        let apart = log_sum(&z) - log_sum(&p);
        let differences: Vec<f32> = p.iter().zip(&z).map(|(p, z)| p - z).collect();
        softmax(&mut p, 1.0);
        let products = p.iter().zip(&differences);
        let expected: f64 = products.map(|(p, d)| f64::from(*p) * f64::from(*d)).sum();
        expected + apart
    }
}

impl CustomOp1 for Divergence {
    fn name(&self) -> &'static str {
        "train-divergence"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = floats(logits, layout)?;
        let (rows, vocab) = layout.shape().dims2()?;
        let of_rows: Vec<f64> = logits
            .chunks_exact(vocab)
            .zip(self.teacher.chunks_exact(vocab))
            .map_on_all_threads(|(logits, teacher)| self.of_row(teacher, logits));
        let mean = of_rows.iter().sum::<f64>() / rows as f64;
        let squared = f64::from(self.temperature).powi(2);
        Ok((
            CpuStorage::F32(vec![(squared * mean) as f32]),
            Shape::from(()),
        ))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, vocab) = logits.dims2()?;
        let grad = grad.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let scale = grad * self.temperature / rows as f32;
        let mut values = to_vec(logits)?;
        values
            .chunks_exact_mut(vocab)
            .zip(self.teacher.chunks_exact(vocab))
            .on_all_threads(|(logits, teacher)| {
                let (mut p, mut q) = (self.scaled(teacher), self.scaled(logits));
                softmax(&mut p, scale);
                softmax(&mut q, scale);
                for ((value, p), q) in logits.iter_mut().zip(p).zip(q) {
                    *value = q - p;
                }
            });
        Ok(Some(Tensor::from_vec(
            values,
            logits.shape(),
            logits.device(),
        )?))
    }
}
