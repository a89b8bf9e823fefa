//! Depths drawn for the batches of skip-aware fine-tuning.

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

#[cfg(test)]
mod tests {
    use super::*;
    use skipbench_train::objective::Step;
    use skipbench_train::{LayerUse, LossOn, ModelShape};

    const LAYERS: usize = 6;

    fn pair(prompt: u32, response: u32) -> Pair {
        Pair {
            prompt: (0..prompt).collect(),
            response: (0..response).map(|token| token % 16).collect(),
        }
    }

    fn net(n_layers: usize) -> Net {
        let shape = ModelShape {
            vocab_size: 16,
            d_model: 8,
            n_layers,
            n_heads: 2,
            n_kv_heads: 1,
            d_ff: 12,
            rope_theta: 100.0,
            norm_eps: 1e-5,
            max_positions: 64,
            tied_head: true,
        };
        Net::new(&shape, 5).unwrap()
    }

    fn entry(yaml: &str) -> DepthEntry {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// A list of one strategy, in its short or its long form.
    fn one(strategy: &str) -> String {
        match strategy.contains('{') {
            true => format!("strategies: [{{{strategy}}}]"),
            false => format!("strategies: [{strategy}]"),
        }
    }

    /// What a step under `yaml` says that it ran, and what it was told to.
    fn step(yaml: &str, step: u64, pairs: &[Pair]) -> (Vec<LayerUse>, Depths) {
        let net = net(LAYERS);
        let batch = Batch::new(pairs, LossOn::Response);
        let plan = entry(yaml).resolve(LAYERS, 3).unwrap();
        let depths = plan.draw(step, pairs, &batch, &net).unwrap().unwrap();
        let step = Step::plain(Some(depths.clone()), LAYERS);
        (net.losses(&batch, &step).unwrap().ran, depths)
    }

    /// The sets of each layer: `prompt` for 5 + 3 tokens of prompts, `response` for the 3 + 1 tokens behind them.
    fn runs(prompt: &LayerSet, response: &LayerSet) -> Vec<LayerUse> {
        let tokens =
            |in_prompt, in_response| 8 * usize::from(in_prompt) + 4 * usize::from(in_response);
        (0..LAYERS)
            .map(|layer| LayerUse {
                attention: tokens(prompt.has_attention(layer), response.has_attention(layer)),
                mlp: tokens(prompt.has_mlp(layer), response.has_mlp(layer)),
            })
            .collect()
    }

    #[test]
    fn a_step_runs_the_layers_of_its_strategy() {
        let pairs = [pair(5, 4), pair(3, 2)];
        let full = LayerSet::full(LAYERS);
        let of = |layers: &[usize]| LayerSet::from_layers(layers.iter().copied());
        let without = |attention: &[usize], mlp: &[usize]| {
            let mut set = full;
            attention
                .iter()
                .for_each(|&layer| set.remove_attention(layer));
            mlp.iter().for_each(|&layer| set.remove_mlp(layer));
            set
        };
        let cases = [
            ("full", full, full),
            ("top@2", full, of(&[0, 1, 2])),
            ("bottom@2", full, of(&[3, 4, 5])),
            ("middle@1.5", full, of(&[0, 1, 4, 5])),
            ("drop-list: {drop: [1], drop-mlp: [3]}", full, {
                let mut set = without(&[1], &[1]);
                set.remove_mlp(3);
                set
            }),
            // Cut out, so prompts go without them too.
            (
                "block-influence: {speedup: 1.5, order: [3, 1, 2, 0]}",
                of(&[0, 2, 4, 5]),
                of(&[0, 2, 4, 5]),
            ),
            (
                "sleb: {speedup: 2, order: [4, 1, 2], prefill: full}",
                full,
                of(&[0, 3, 5]),
            ),
            (
                "sublayer-drop@1.5",
                without(&[1, 2, 3, 4], &[]),
                without(&[1, 2, 3, 4], &[]),
            ),
            (
                "sublayer-drop: {drop: mlp, speedup: 1.2, prefill: full}",
                full,
                without(&[], &[3, 4]),
            ),
        ];
        for (strategy, prompt, response) in cases {
            let (ran, _) = step(&one(strategy), 0, &pairs);
            assert_eq!(ran, runs(&prompt, &response), "{strategy}");
        }
    }

    #[test]
    fn layers_by_position_and_by_prompt() {
        let pairs = [pair(5, 12), pair(3, 4)];
        let (ran, depths) = step("strategies: [skip-decode@1.5]", 0, &pairs);
        let layers = |t: usize| depths.responses[0][t - 1].len();
        assert!(layers(1) > layers(11) && (1..11).all(|t| layers(t) >= layers(t + 1)));
        let total: usize = (1..12).map(layers).sum::<usize>() + (1..4).map(layers).sum::<usize>();
        let counted: usize = ran.iter().map(|ran| ran.mlp - 8).sum();
        assert_eq!(counted, total);

        let (ran, depths) = step("strategies: [adaskip@1.5]", 0, &pairs);
        let similarity = net(LAYERS)
            .prompt_similarity(&Batch::new(&pairs, LossOn::Response))
            .unwrap();
        for (row, signal) in similarity.iter().enumerate() {
            let set = depths.responses[row][0];
            assert_eq!(set.sub_layers(), 8, "12 / 1.5");
            let has = |part: usize| match part % 2 {
                0 => set.has_attention(part / 2),
                _ => set.has_mlp(part / 2),
            };
            let most = |kept: bool| {
                let of = (0..12)
                    .filter(|&part| has(part) == kept)
                    .map(|part| signal[part]);
                of.fold(f64::NEG_INFINITY, f64::max)
            };
            assert!((0..12).all(|part| has(part) || signal[part] >= most(true)));
            assert!(depths.responses[row].iter().all(|layers| *layers == set));
        }
        let sub_layers: usize = ran.iter().map(|ran| ran.attention + ran.mlp).sum();
        assert_eq!(sub_layers, 8 * 12 + (11 + 3) * 8);
    }

    #[test]
    fn tokens_leave_only_where_they_can_and_the_mean_is_the_target() {
        let pairs = [pair(2, 60), pair(2, 60), pair(2, 60)];
        let cases: [(&str, &[usize], Fill, f64); 4] = [
            ("early-exit@2", &[2, 3, 4], Fill::Passed, 3.0),
            (
                "early-exit: {speedup: 1.5, check-every: 2, kv-fill: deferred}",
                &[2, 4, 6],
                Fill::Deferred,
                4.0,
            ),
            ("shallow-deep@1.5", &[2, 6], Fill::Deferred, 4.0),
            (
                "shallow-deep: {speedup: 1.2, shallow-layers: 3, kv-fill: propagate}",
                &[3, 6],
                Fill::Passed,
                5.0,
            ),
        ];
        for (strategy, allowed, fill, mean) in cases {
            let strategy = one(strategy);
            let mut drawn = Vec::new();
            for seed in 0..20 {
                let (ran, depths) = step(&strategy, seed, &pairs);
                assert_eq!(depths.fill, fill, "{strategy}");
                let of_step: Vec<usize> = depths
                    .responses
                    .iter()
                    .flatten()
                    .map(LayerSet::len)
                    .collect();
                let counted: usize = ran.iter().map(|ran| ran.mlp - 6).sum();
                assert_eq!(counted, of_step.iter().sum::<usize>(), "{strategy}");
                drawn.extend(of_step);
            }
            let seen = |depth: &usize| drawn.contains(depth);
            assert!(allowed.iter().all(seen) && drawn.iter().all(|depth| allowed.contains(depth)));
            let found = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
            assert!((found - mean).abs() < 0.1, "{strategy}: {found}");
        }
    }

    #[test]
    fn a_strategy_with_a_speedup_keeps_it_and_a_band_is_drawn_from() {
        let pairs = [pair(5, 4), pair(3, 2)];
        let layers = |yaml: &str, seed| step(yaml, seed, &pairs).1.responses[0][0];
        let own = (0..20).map(|seed| layers("{strategies: [top@3], speedups: [1.5]}", seed).len());
        assert!(own.into_iter().all(|layers| layers == 2));
        let band = "strategies: [{random: {speedup: 2, seeds: 3}}]";
        let sets: std::collections::HashSet<LayerSet> =
            (0..60).map(|seed| layers(band, seed)).collect();
        let one = |seed: u64| {
            layers(
                &format!("strategies: [{{random: {{speedup: 2, seed: {seed}}}}}]"),
                0,
            )
        };
        assert_eq!(sets, (0..3).map(one).collect());
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_what_to_do() {
        let cases = [
            (
                "{strategies: [block-influence], speedups: [2]}",
                "`block-influence@2`",
                "`order`",
            ),
            ("strategies: [angular@1.5]", "`angular@1.5`", "`order`"),
            (
                "strategies: [{sublayer-drop: {rule: similarity, speedup: 1.5}}]",
                "`sublayer-drop@1.5",
                "`order`",
            ),
            (
                "strategies: [{early-exit: {threshold: 0.9}}]",
                "`early-exit",
                "leave it out",
            ),
            (
                "strategies: [{early-exit: {speedup: 2, threshold: 0.9}}]",
                "`early-exit@2",
                "leave it out",
            ),
            (
                "strategies: [{shallow-deep: {speedup: 2, kv-fill: copy}}]",
                "`shallow-deep@2",
                "`deferred`",
            ),
            (
                "strategies: [prompt-depth@2]",
                "`prompt-depth@2`",
                "`unified`",
            ),
            (
                "strategies: [self-speculative@2]",
                "`self-speculative@2`",
                "list `unified@2`",
            ),
            ("strategies: [oracle-exit]", "`oracle-exit`", "oracle"),
            (
                "strategies: [{skip-decode: {speedup: 2, schedule-length: expected}}]",
                "`skip-decode@2",
                "`schedule-length`",
            ),
            (
                "{strategies: [unified, top], speedups: [2, 4]}",
                "`unified@4`",
                "largest possible speedup",
            ),
            ("strategies: [unified]", "`unified`", "needs a target"),
            (
                "{strategies: [full], speedups: [.nan]}",
                "`depths.speedups`",
                "at least 1",
            ),
            (
                "{strategies: [top@2], full-percent: 100}",
                "`depths.full-percent`",
                "below 100",
            ),
            (
                "strategies: []",
                "`depths.strategies` is empty",
                "full depth",
            ),
        ];
        for (yaml, named, advice) in cases {
            let error = entry(yaml).resolve(LAYERS, 3).err();
            let message = format!("{:#}", error.expect(yaml));
            assert!(
                message.contains(named) && message.contains(advice),
                "{yaml}: {message}"
            );
        }
    }

    /// The layers that `experiments/train/adapted.yaml` draws, as they were drawn when the shipped checkpoint was made.
    #[test]
    fn the_stream_of_the_shipped_recipe_is_fixed() {
        let recipe = "{strategies: [unified, \"unified:even\", top, bottom, middle, random, skip-decode, early-exit], speedups: [1.5, 2, 3, 5], full-percent: 15}";
        let n_layers = 16;
        let plan = entry(recipe).resolve(n_layers, 2).unwrap();
        let pairs = [pair(5, 9), pair(3, 12), pair(8, 1)];
        let batch = Batch::new(&pairs, LossOn::Response);
        let net = net(n_layers);
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut full = 0;
        for step in 0..200 {
            let depths = plan.draw(step, &pairs, &batch, &net).unwrap();
            full += usize::from(depths.is_none());
            for (row, pair) in pairs.iter().enumerate() {
                for t in 1..pair.response.len() {
                    for layer in 0..n_layers {
                        let runs = depths
                            .as_ref()
                            .is_none_or(|depths| depths.responses[row][t - 1].contains(layer));
                        hash = (hash ^ u64::from(runs)).wrapping_mul(0x0100_0000_01b3);
                    }
                }
            }
        }
        assert_eq!((hash, full), (0x91b5_50c8_6e1e_d062, 30));
    }
}
