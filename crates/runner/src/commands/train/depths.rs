//! Depths drawn for the batches of skip-aware fine-tuning.

#[cfg(test)]
mod tests;

use anyhow::{Context, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use skipbench_strategy::{BatchShape, KvFill, LayerSet, Prefill, PromptSignal, StrategySpec};
use skipbench_train::{Batch, Depths, Fill, Net, Pair};

/// A depth drawn for each batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct DepthEntry {
    /// Strategies, one of which is drawn for each batch.
    strategies: Vec<StrategySpec>,
    /// Speedups, one of which is drawn for each batch whose strategy has none of its own.
    #[serde(default)]
    speedups: Vec<f64>,
    /// Percent of batches at full depth.
    #[serde(default)]
    full_percent: u32,
}

/// A [`DepthEntry`] of which everything is known that can be drawn.
pub(super) struct DepthPlan {
    /// `[strategy][speedup][member]`: a strategy that stands for several has several members.
    choices: Vec<Vec<Vec<Choice>>>,
    full_percent: u32,
    n_layers: usize,
    seed: u64,
}

/// What a batch can be trained under.
enum Choice {
    /// A strategy whose layers are known once the batch is.
    Planned(StrategySpec),
    /// Tokens that leave after some layer.
    Exits(Exits),
}

/// Where a token leaves is decided by its state when it is decoded, so training draws it, around the mean that the speedup
/// asks for.
struct Exits {
    /// Layers that a token may have run when it leaves, ascending; all layers are the last.
    depths: Vec<usize>,
    mean: f64,
    fill: Fill,
}

impl DepthEntry {
    /// One strategy at some speedups.
    pub(super) fn of(strategy: StrategySpec, speedups: Vec<f64>, full_percent: u32) -> Self {
        Self {
            strategies: vec![strategy],
            speedups,
            full_percent,
        }
    }

    /// Resolves every strategy at every speedup.
    ///
    /// # Errors
    /// One that is impossible, or whose layers training cannot know.
    pub(super) fn resolve(&self, n_layers: usize, seed: u64) -> anyhow::Result<DepthPlan> {
        if self.strategies.is_empty() {
            bail!("`depths.strategies` is empty; name one, or leave `depths` out for full depth");
        }
        self.resolve_as("depths", "depths.strategies", n_layers, seed)
    }

    /// The same for the depths of an objective; `key` and `strategy_key` are what messages call them and their strategies.
    pub(super) fn resolve_as(
        &self,
        key: &str,
        strategy_key: &str,
        n_layers: usize,
        seed: u64,
    ) -> anyhow::Result<DepthPlan> {
        if self.full_percent >= 100 {
            bail!(
                "`{key}.full-percent` is {}, which leaves nothing to the strategies; it must be below 100",
                self.full_percent
            );
        }
        let too_small = |speedup: &&f64| speedup.is_nan() || **speedup < 1.0;
        if let Some(speedup) = self.speedups.iter().find(too_small) {
            bail!("`{key}.speedups` holds {speedup:e}; a speedup is at least 1");
        }
        let resolve = |spec: StrategySpec| -> anyhow::Result<Vec<Choice>> {
            let choices = || -> anyhow::Result<Vec<Choice>> {
                spec.validate(n_layers)?;
                let members = spec.members().unwrap_or_else(|| vec![spec.clone()]);
                members
                    .into_iter()
                    .map(|member| Choice::of(member, n_layers))
                    .collect()
            };
            choices().with_context(|| format!("`{strategy_key}`: `{spec}` cannot be trained"))
        };
        let of_strategy =
            |spec: &StrategySpec| self.targets(spec).into_iter().map(resolve).collect();
        Ok(DepthPlan {
            choices: self
                .strategies
                .iter()
                .map(of_strategy)
                .collect::<anyhow::Result<_>>()?,
            full_percent: self.full_percent,
            n_layers,
            seed,
        })
    }

    /// The strategy at each speedup, or as it is where it has one of its own.
    fn targets(&self, spec: &StrategySpec) -> Vec<StrategySpec> {
        match spec.target_speedup() {
            None if !self.speedups.is_empty() => self
                .speedups
                .iter()
                .map(|&speedup| spec.with_target(speedup))
                .collect(),
            _ => vec![spec.clone()],
        }
    }
}

impl Choice {
    fn of(spec: StrategySpec, n_layers: usize) -> anyhow::Result<Self> {
        if let Some(draft) = spec.draft() {
            bail!("its tokens are the full network's; to train what drafts them, list `{draft}`");
        }
        if spec.is_oracle() {
            bail!("an oracle knows the answer; list the strategy that it is the bound of");
        }
        if spec.wants_expected_length() {
            bail!(
                "the expected length is not measured in training; give `schedule-length` in tokens"
            );
        }
        if spec.scoring(n_layers).is_some() {
            bail!(
                "its layers follow from scores on calibration text, which training does not compute; give the layers to \
                 drop as `order` (`skipbench layers --model DIR --calibration FILE` finds them), or a `preset` where it has one"
            );
        }
        let has_knob = spec.knob().is_some();
        let known = match has_knob {
            true => spec.with_threshold(0.5),
            false => spec.clone(),
        };
        let mut strategy = known.build(n_layers)?;
        let needs = strategy.needs();
        if let Some(PromptSignal::Confidence(_)) = needs.prompt_signal {
            bail!(
                "its threshold turns how sure the model is of a prompt into a depth only once it is calibrated on the trained \
                 model; list the depths of its menu, as in `unified` with `speedups`"
            );
        }
        if needs.signal.is_none() {
            return Ok(Self::Planned(spec));
        }
        let (true, Some(speedup)) = (has_knob, spec.target_speedup()) else {
            bail!(
                "its threshold decides where tokens leave only in decoding; leave it out, so that depths are drawn around the \
                 mean of a speedup"
            );
        };
        let fill = match needs.kv_fill {
            KvFill::None | KvFill::Propagate => Fill::Passed,
            KvFill::Deferred => Fill::Deferred,
            KvFill::Copy | KvFill::Mask => bail!(
                "training computes no keys and values as `kv-fill: {}` does; train with `propagate` or `deferred`",
                needs.kv_fill
            ),
        };
        strategy.begin(&BatchShape {
            prompt_lens: vec![1],
            n_layers,
            max_new_tokens: 2,
        })?;
        let checks = strategy.plan(1).checks;
        let depths = checks.iter().map(|layer| layer + 1);
        Ok(Self::Exits(Exits {
            depths: depths.chain([n_layers]).collect(),
            mean: n_layers as f64 / speedup,
            fill,
        }))
    }
}

impl Exits {
    fn draw(&self, rng: &mut ChaCha8Rng) -> usize {
        let (lowest, n_layers) = (self.depths[0], self.depths[self.depths.len() - 1]);
        let spread = (self.mean - lowest as f64)
            .max(0.0)
            .min(n_layers as f64 - self.mean);
        let at = self.mean + spread * (2.0 * rng.random::<f64>() - 1.0);
        let above = self.depths.partition_point(|&depth| (depth as f64) < at);
        let (Some(&high), Some(&low)) = (
            self.depths.get(above),
            above
                .checked_sub(1)
                .and_then(|below| self.depths.get(below)),
        ) else {
            return if above == 0 { lowest } else { n_layers };
        };
        let is_high = match high - low {
            1 => at.round() as usize >= high,
            // Of two that lie apart the nearest would shift the mean.
            apart => rng.random_bool((at - low as f64) / apart as f64),
        };
        if is_high { high } else { low }
    }
}

impl DepthPlan {
    /// Which layers the tokens of a batch run; `None` for full depth.
    ///
    /// # Errors
    /// A strategy that cannot serve the batch.
    pub(super) fn draw(
        &self,
        step: u64,
        pairs: &[Pair],
        batch: &Batch,
        net: &Net,
    ) -> anyhow::Result<Option<Depths>> {
        // The stream is fixed: the shipped checkpoints are its results.
        let mut rng =
            ChaCha8Rng::seed_from_u64(self.seed ^ 0xdee9_0000 ^ step.wrapping_mul(0x9e37_79b9));
        if rng.random_range(0..100) < self.full_percent {
            return Ok(None);
        }
        let speedups = &self.choices[rng.random_range(0..self.choices.len())];
        let members = &speedups[rng.random_range(0..speedups.len())];
        let choice = match members.len() {
            1 => &members[0],
            several => &members[rng.random_range(0..several)],
        };
        Ok(Some(match choice {
            Choice::Planned(spec) => planned(spec, self.n_layers, pairs, batch, net)?,
            Choice::Exits(exits) => {
                let response = |pair: &Pair| {
                    let drawn = pair.response.iter().map(|_| exits.draw(&mut rng));
                    let mut layers: Vec<LayerSet> = drawn.map(LayerSet::full).collect();
                    // Token 0 is the prompt's.
                    layers.drain(..layers.len().min(1));
                    layers
                };
                Depths {
                    prompts: vec![LayerSet::full(self.n_layers); pairs.len()],
                    responses: pairs.iter().map(response).collect(),
                    fill: exits.fill,
                }
            }
        }))
    }
}

/// The layers that the strategy decodes the batch with.
fn planned(
    spec: &StrategySpec,
    n_layers: usize,
    pairs: &[Pair],
    batch: &Batch,
    net: &Net,
) -> anyhow::Result<Depths> {
    let mut strategy = spec.build(n_layers)?;
    let longest = pairs.iter().map(|pair| pair.response.len()).max();
    strategy.begin(&BatchShape {
        prompt_lens: pairs.iter().map(|pair| pair.prompt.len()).collect(),
        n_layers,
        max_new_tokens: longest.unwrap_or(0),
    })?;
    if strategy.needs().prompt_signal == Some(PromptSignal::Similarity) {
        for (row, signal) in net.prompt_similarity(batch)?.iter().enumerate() {
            strategy.observe_prompt(row, signal);
        }
    }
    let prompt = match strategy.needs().prefill {
        Prefill::Full => LayerSet::full(n_layers),
        Prefill::Skip => strategy.reachable(),
    };
    let mut responses = vec![Vec::new(); pairs.len()];
    for t in 1..longest.unwrap_or(0) {
        let layers = strategy.plan(t).layers;
        for (row, response) in responses.iter_mut().enumerate() {
            response.push(strategy.row_layers(row).unwrap_or(layers));
        }
    }
    Ok(Depths {
        prompts: vec![prompt; pairs.len()],
        responses,
        fill: Fill::Passed,
    })
}
