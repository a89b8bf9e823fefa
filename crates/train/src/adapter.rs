//! Low-rank adapters (LoRA, arXiv 2106.09685) over weights that stay as they are.

use crate::error::{Result, TrainError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use skipbench_model::WeightType;

/// No matrix is so small that more would be of use.
const MAX_RANK: usize = 4096;

/// A low-rank adapter: `W x` becomes `W x + alpha / rank * B A x` with `W` as it is (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdapterConfig {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Factor of what is added, over the rank; if not given, twice the rank.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// Which matrices of a layer have one; if not given, all that a layer has.
    #[serde(default)]
    pub matrices: Option<Vec<AdaptedMatrix>>,
    /// What the other weights are kept in.
    #[serde(default)]
    pub base: BaseType,
}

/// A matrix of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdaptedMatrix {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The output of attention.
    O,
    /// The gate of the MLP.
    Gate,
    /// Into the MLP.
    Up,
    /// Out of the MLP.
    Down,
}

/// What the weights beside an adapter are kept in. Products are in f32 whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseType {
    /// What the file has, matrix by matrix.
    #[default]
    Stored,
    /// 32 bits.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// IEEE half, 16 bits.
    F16,
    /// Blocks of 32 weights of 8 bits with a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl From<BaseType> for WeightType {
    fn from(base: BaseType) -> Self {
        match base {
            BaseType::Stored => WeightType::Stored,
            BaseType::F32 => WeightType::F32,
            BaseType::Bf16 => WeightType::Bf16,
            BaseType::F16 => WeightType::F16,
            BaseType::Q8_0 => WeightType::Q8_0,
        }
    }
}

impl AdaptedMatrix {
    /// As it is written in a config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl AdapterConfig {
    /// Factor of what is added.
    pub fn scale(&self) -> f64 {
        self.alpha() / self.rank as f64
    }

    /// The factor over the rank.
    pub(crate) fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.rank as f64)
    }

    /// Whether a matrix of a layer has an adapter.
    pub(crate) fn adapts(&self, matrix: AdaptedMatrix) -> bool {
        match &self.matrices {
            None => true,
            Some(matrices) => matrices.contains(&matrix),
        }
    }

    /// # Errors
    /// A rank, a factor or a list of matrices that cannot work.
    pub fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(TrainError::Config(message));
        if !(1..=MAX_RANK).contains(&self.rank) {
            return wrong(format!(
                "`adapter.rank` is {}; it must be 1 to {MAX_RANK}",
                self.rank
            ));
        }
        if let Some(alpha) = self.alpha
            && !(alpha.is_finite() && alpha > 0.0)
        {
            return wrong(format!(
                "`adapter.alpha` is {alpha:e}; it must be a finite number above 0"
            ));
        }
        let Some(matrices) = &self.matrices else {
            return Ok(());
        };
        if matrices.is_empty() {
            return wrong(
                "`adapter.matrices` is empty; name one, or leave it out for all".to_owned(),
            );
        }
        for (place, matrix) in matrices.iter().enumerate() {
            if matrices[..place].contains(matrix) {
                return wrong(format!(
                    "`adapter.matrices` names `{}` twice",
                    matrix.name()
                ));
            }
        }
        Ok(())
    }
}

/// First values of the two halves of an adapter: `A` uniform within `1 / sqrt(columns)`, which is PEFT's, and `B` zero, so that
/// nothing is added at first. They follow from the seed and the name of the matrix.
pub(crate) fn first_values(
    name: &str,
    seed: u64,
    rank: usize,
    [rows, columns]: [usize; 2],
) -> (Vec<f32>, Vec<f32>) {
    let mixed = name
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mut rng = ChaCha8Rng::seed_from_u64(mixed);
    let bound = 1.0 / (columns.max(1) as f64).sqrt();
    let a = (0..rank * columns)
        .map(|_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32)
        .collect();
    (a, vec![0.0; rows * rank])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        let good = AdapterConfig {
            rank: 4,
            alpha: None,
            matrices: Some(vec![AdaptedMatrix::Q, AdaptedMatrix::Gate]),
            base: BaseType::Stored,
        };
        assert!(good.check().is_ok());
        assert!((good.scale() - 2.0).abs() < 1e-12);
        type Spoil = fn(&mut AdapterConfig);
        let spoilt: [(&str, Spoil); 4] = [
            ("`adapter.rank` is 0", |config| config.rank = 0),
            ("`adapter.alpha` is NaN", |config| {
                config.alpha = Some(f64::NAN)
            }),
            ("`adapter.matrices` is empty", |config| {
                config.matrices = Some(Vec::new())
            }),
            ("`gate` twice", |config| {
                config.matrices = Some(vec![AdaptedMatrix::Gate; 2])
            }),
        ];
        for (named, spoil) in spoilt {
            let mut config = good.clone();
            spoil(&mut config);
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }
}
