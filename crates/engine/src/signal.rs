//! The few numbers that a dynamic strategy may ask for after a layer.

use crate::error::{EngineError, Result};
use candle_core::{D, DType, Tensor};
use skipbench_strategy::ExitSignal;

/// Most likely token of each row. `logits`: `[rows, vocab_size]`; ties go to the lower id.
pub(crate) fn argmax(logits: &Tensor) -> Result<Vec<u32>> {
    if !logits.device().is_cpu() {
        let largest = logits.max(D::Minus1)?.to_vec1::<f32>()?;
        return match largest.iter().position(|logit| !logit.is_finite()) {
            Some(row) => Err(EngineError::NotFinite { row }),
            None => Ok(logits.argmax(D::Minus1)?.to_vec1()?),
        };
    }
    let vocab = logits.dim(1)?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    values
        .chunks_exact(vocab)
        .enumerate()
        .map(|(row, logits)| {
            let mut best = (0, f32::NEG_INFINITY);
            for (id, &logit) in logits.iter().enumerate() {
                if logit > best.1 {
                    best = (id, logit);
                }
            }
            match best.1.is_finite() {
                true => Ok(best.0 as u32),
                false => Err(EngineError::NotFinite { row }),
            }
        })
        .collect()
}

/// A signal that is read off the LM head, per row of `logits`: `[rows, vocab_size]`.
pub(crate) fn from_logits(signal: ExitSignal, logits: &Tensor) -> Result<Vec<f64>> {
    if signal == ExitSignal::Patience {
        return Ok(argmax(logits)?.into_iter().map(f64::from).collect());
    }
    let vocab = logits.dim(1)?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    Ok(values
        .chunks_exact(vocab)
        .map(|logits| confidence(signal, logits))
        .collect())
}

/// Natural logarithm of every token's probability, in the arithmetic of transformers: f32.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|&x| (x - largest).exp()).sum();
    let log_sum = sum.ln();
    logits.iter().map(|&x| x - largest - log_sum).collect()
}

/// Natural logarithm of the probability of `token`.
pub(crate) fn log_probability(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let own = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    f64::from(own - largest) - sum.ln()
}

fn confidence(signal: ExitSignal, logits: &[f32]) -> f64 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        if logit > first {
            (first, second) = (logit, first);
        } else if logit > second {
            second = logit;
        }
    }
    let exps = logits.iter().map(|&logit| f64::from(logit - first).exp());
    let sum: f64 = exps.clone().sum();
    match signal {
        ExitSignal::MaxProb => 1.0 / sum,
        ExitSignal::SoftmaxMargin => (1.0 - f64::from(second - first).exp()) / sum,
        // H = ln Z - sum p (x - max), over the largest value ln V that it can have.
        ExitSignal::Entropy => {
            let weighted: f64 = logits
                .iter()
                .zip(exps)
                .filter(|(_, exp)| *exp > 0.0)
                .map(|(&logit, exp)| exp * f64::from(logit - first))
                .sum();
            (sum.ln() - weighted / sum) / (logits.len() as f64).ln().max(f64::MIN_POSITIVE)
        }
        ExitSignal::Cosine | ExitSignal::Patience => f64::NAN,
    }
}

/// Cosine of each row's state before and after a layer; both `[rows, d_model]`.
pub(crate) fn cosine(before: &Tensor, after: &Tensor) -> Result<Vec<f64>> {
    let before = before.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let after = after.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    Ok(before
        .iter()
        .zip(&after)
        .map(|(a, b)| {
            let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                ab += a * b;
                aa += a * a;
                bb += b * b;
            }
            ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_two_equal_tokens() {
        let logits = [3.0, 3.0, -40.0, -40.0];
        assert!((confidence(ExitSignal::MaxProb, &logits) - 0.5).abs() < 1e-9);
        assert!(confidence(ExitSignal::SoftmaxMargin, &logits).abs() < 1e-9);
        assert!((confidence(ExitSignal::Entropy, &logits) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_certain_token_has_no_entropy() {
        let logits = [100.0, f32::NEG_INFINITY, 0.0];
        assert!(confidence(ExitSignal::Entropy, &logits).abs() < 1e-9);
        assert!((confidence(ExitSignal::SoftmaxMargin, &logits) - 1.0).abs() < 1e-9);
    }
}
