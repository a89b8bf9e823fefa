//! Finds the threshold at which a dynamic strategy runs as many layers as its target asks for.

use anyhow::Context;
use skipbench_engine::{Engine, Options};
use skipbench_strategy::StrategySpec;

/// Halvings of the interval.
const TRIALS: usize = 12;
/// Rows run together; a row's result does not depend on it.
const BATCH: usize = 8;
/// Mean layers this close to the target are taken as meeting it.
const TOLERANCE: f64 = 0.05;

/// A strategy with its threshold, and how it was found.
pub(crate) struct Calibrated {
    pub(crate) spec: StrategySpec,
    /// (threshold, mean layers per decoded token) in the order tried.
    pub(crate) trace: Vec<(f64, f64)>,
    pub(crate) note: Option<String>,
}

/// Bisection on `prompts` (token ids) for `n_layers / target` mean layers. A strategy without a knob comes back as it
/// is.
///
/// # Errors
/// A strategy that cannot be built, a prompt that cannot be run.
pub(crate) fn calibrate(
    engine: Engine<'_>,
    spec: &StrategySpec,
    prompts: &[Vec<u32>],
    options: &Options,
) -> anyhow::Result<Calibrated> {
    let (Some(knob), Some(target)) = (spec.knob(), spec.target_speedup()) else {
        return Ok(Calibrated {
            spec: spec.clone(),
            trace: Vec::new(),
            note: None,
        });
    };
    // A speculative strategy's own layers include those that verify; its threshold is the drafting strategy's.
    let tried = spec.draft().unwrap_or(spec);
    let wanted = engine.model().sizes().n_layers as f64 / target;
    let layers_at = |threshold: f64| -> anyhow::Result<f64> {
        let (mut layers, mut tokens) = (0, 0);
        let mut strategy = tried
            .with_threshold(threshold)
            .build(engine.model().sizes().n_layers)?;
        for batch in prompts.chunks(BATCH) {
            let generation = engine.generate(batch, strategy.as_mut(), options)?;
            for row in &generation.rows {
                layers += row.layers.iter().skip(1).sum::<usize>();
                tokens += row.layers.len().saturating_sub(1);
            }
        }
        Ok(layers as f64 / tokens.max(1) as f64)
    };
    // The end of the interval where fewest layers run tells whether the target can be met at all.
    let (mut shallow, mut deep) = match knob.rises_with_depth {
        true => (knob.lo, knob.hi),
        false => (knob.hi, knob.lo),
    };
    let fewest = layers_at(shallow).context("calibration")?;
    let mut trace = vec![(shallow, fewest)];
    let mut best = (shallow, fewest);
    if fewest < wanted {
        for _ in 0..TRIALS {
            let middle = 0.5 * (shallow + deep);
            let layers = layers_at(middle)?;
            trace.push((middle, layers));
            if (layers - wanted).abs() < (best.1 - wanted).abs() {
                best = (middle, layers);
            }
            if (layers - wanted).abs() < TOLERANCE {
                break;
            }
            if layers < wanted {
                shallow = middle;
            } else {
                deep = middle;
            }
        }
    }
    let miss = (best.1 / wanted - 1.0).abs();
    let note = (miss > 0.1).then(|| {
        format!(
            "asked for {wanted:.1} layers per token; the nearest threshold gives {:.1}",
            best.1
        )
    });
    Ok(Calibrated {
        spec: spec.with_threshold(best.0),
        trace,
        note,
    })
}
