//! What the steps of a training run train.
//!
//! An objective resolves to an [`Objective`] before the first step: how the layers of a batch are drawn, which exits have a
//! loss, and what is compared with the whole network. A new one is a variant of [`Recipe`] and its arm in
//! [`Objective::resolve`].

mod recipes;
#[cfg(test)]
mod tests;

pub(super) use recipes::{Distil, Recipe};

use super::depths::{DepthEntry, DepthPlan};
use anyhow::{Context, bail};
use recipes::{
    CurriculumName, DropoutName, EarlyExit, LayerDrop, LayerSkip, PruningOnDemand, SkipDecode,
    Unified,
};
use serde_json::{Value, json};
use skipbench_strategy::StrategySpec;
use skipbench_train::objective::drops::{Drops, Per, prefix, rising};
use skipbench_train::objective::exits::{Curriculum, ExitPlan, ExitWeights};
use skipbench_train::objective::{Loss, Measure, Side, Step, Term};
use skipbench_train::{Batch, Depths, Net, Pair};

/// An objective of which everything is known but the batches.
pub(super) struct Objective {
    draw: Draw,
    exits: ExitPlan,
    /// Weight of the whole network's cross-entropy.
    full_loss: f64,
    /// Weight of one minus the cosine between the states that the layers of a batch read in both passes.
    state_cosine: f64,
    distil: Option<Distil>,
    size: Size,
}

/// What an objective is resolved for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) n_layers: usize,
    /// Steps of the training.
    pub(super) steps: u64,
    pub(super) seed: u64,
}

/// How the layers of a batch are found.
enum Draw {
    /// All of them.
    Full,
    /// Those of a strategy.
    Strategies(DepthPlan),
    /// Some are left out at random; more and more of them over the steps, or not.
    Drops { drops: Drops, rises: bool },
    /// The lowest, as many as are drawn.
    Prefix { lowest: usize },
}

impl Objective {
    /// # Errors
    /// A setting that is impossible, or means nothing beside another.
    pub(super) fn resolve(
        recipe: &Recipe,
        depths: Option<&DepthEntry>,
        distil: Option<&Distil>,
        size: Size,
    ) -> anyhow::Result<Self> {
        if depths.is_some() && !matches!(recipe, Recipe::Plain(_)) {
            bail!(
                "`depths` has no place beside `objective: {}`, which says itself which layers run; leave one of them out",
                recipe.name()
            );
        }
        let mut objective = Self {
            draw: Draw::Full,
            exits: ExitPlan::last(size.n_layers),
            full_loss: 0.0,
            state_cosine: 0.0,
            distil: distil.cloned(),
            size,
        };
        match recipe {
            Recipe::Plain(_) => {
                if let Some(depths) = depths {
                    let plan = depths.resolve(size.n_layers, size.seed)?;
                    objective.draw = Draw::Strategies(plan);
                }
            }
            Recipe::Unified(settings) => objective.unified(settings)?,
            Recipe::SkipDecode(settings) => objective.skip_decode(settings)?,
            Recipe::EarlyExit(settings) => objective.early_exit(settings)?,
            Recipe::LayerSkip(settings) => objective.layer_skip(settings)?,
            Recipe::LayerDrop(settings) => objective.layer_drop(settings)?,
            Recipe::PruningOnDemand(settings) => objective.pruning_on_demand(settings)?,
            Recipe::LayerConsistency(settings) => {
                let key = "objective.layer-consistency.min-layers";
                check_layers(key, &[settings.min_layers], size.n_layers)?;
                objective.draw = Draw::Prefix {
                    lowest: settings.min_layers,
                };
            }
        }
        objective.check_distil()?;
        Ok(objective)
    }

    /// What the step trains on these pairs.
    ///
    /// # Errors
    /// A strategy that cannot serve the batch.
    pub(super) fn step(
        &self,
        step: u64,
        pairs: &[Pair],
        batch: &Batch,
        net: &Net,
    ) -> anyhow::Result<Step> {
        let Size {
            n_layers,
            steps,
            seed,
        } = self.size;
        let depths = match &self.draw {
            Draw::Full => None,
            Draw::Strategies(plan) => plan.draw(step, pairs, batch, net)?,
            Draw::Drops { drops, rises } => {
                let scale = if *rises { rising(step, steps) } else { 1.0 };
                Some(drops.draw(pairs, scale, seed, step))
            }
            Draw::Prefix { lowest } => Some(prefix(pairs, *lowest, n_layers, seed, step)),
        };
        let terms = self.terms(step, depths.as_ref());
        Ok(Step { depths, terms })
    }

    /// The losses of a step; what compares the whole network with itself is left out.
    fn terms(&self, step: u64, depths: Option<&Depths>) -> Vec<Term> {
        let skips = depths.is_some();
        let no_distil = Distil {
            logits: 0.0,
            ..Distil::default()
        };
        let distil = self.distil.as_ref().unwrap_or(&no_distil);
        let mut terms = Vec::new();
        for (layers, weight) in self.exits.at(step) {
            terms.push((weight * distil.cross_entropy, Loss::Exit { layers }));
            if skips || layers < self.size.n_layers {
                let temperature = distil.temperature;
                let logits = Loss::Logits {
                    layers,
                    temperature,
                };
                terms.push((weight * distil.logits, logits));
            }
        }
        if skips {
            let states = |measure, at, trains_full| Loss::States {
                measure,
                at,
                trains_full,
            };
            let cosine = states(Measure::Cosine, Side::Input, true);
            let taught = states(distil.measure, Side::Output, false);
            terms.push((self.full_loss, Loss::Full));
            terms.push((self.state_cosine, cosine));
            terms.push((distil.states, taught));
        }
        let has_place = |(weight, loss): &(f64, Loss)| {
            *weight > 0.0 || matches!(loss, Loss::Exit { layers } if *layers == self.size.n_layers)
        };
        let terms = terms.into_iter().filter(has_place);
        terms.map(|(weight, loss)| Term { weight, loss }).collect()
    }

    fn unified(&mut self, settings: &Unified) -> anyhow::Result<()> {
        let key = "objective.unified";
        let spec: StrategySpec = format!("unified:{}", settings.rule)
            .parse()
            .with_context(|| format!("`{key}.rule`"))?;
        for (name, weight) in [
            ("full-loss", settings.full_loss),
            ("state-cosine", settings.state_cosine),
        ] {
            check_weight(&format!("{key}.{name}"), weight)?;
        }
        (self.full_loss, self.state_cosine) = (settings.full_loss, settings.state_cosine);
        let targets = (settings.speedup, &settings.speedups[..]);
        self.draw = self.of_strategy(key, spec, targets, true, settings.full_percent)?;
        Ok(())
    }

    fn skip_decode(&mut self, settings: &SkipDecode) -> anyhow::Result<()> {
        let key = "objective.skip-decode";
        let given = [
            ("warmup-layers", settings.warmup_layers),
            ("max-layers", settings.max_layers),
            ("min-layers", settings.min_layers),
            ("schedule-length", settings.schedule_length),
        ];
        let given = given.into_iter();
        let schedule: serde_json::Map<String, Value> = given
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value?))))
            .collect();
        let spec: StrategySpec = serde_json::from_value(json!({"skip-decode": schedule}))
            .with_context(|| format!("`{key}`"))?;
        let targets = (settings.speedup, &settings.speedups[..]);
        let needs_target = settings.max_layers.is_none();
        self.draw = self.of_strategy(key, spec, targets, needs_target, settings.full_percent)?;
        Ok(())
    }

    /// The layers of a strategy, at one target or at one of several for each batch.
    fn of_strategy(
        &self,
        key: &str,
        spec: StrategySpec,
        (speedup, speedups): (Option<f64>, &[f64]),
        needs_target: bool,
        full_percent: u32,
    ) -> anyhow::Result<Draw> {
        let (name, targets) = match (speedup, speedups) {
            (Some(speedup), []) => ("speedup", vec![speedup]),
            (None, []) if needs_target => bail!(
                "`{key}` has no target; give `speedup`, or `speedups` for one that is drawn for each batch"
            ),
            (None, speedups) => ("speedups", speedups.to_vec()),
            (Some(_), _) => bail!("`{key}` has both `speedup` and `speedups`; leave one out"),
        };
        if let Some(target) = targets
            .iter()
            .find(|target| target.is_nan() || **target < 1.0)
        {
            bail!("`{key}.{name}` holds {target:e}; a speedup is at least 1");
        }
        let entry = DepthEntry::of(spec, targets, full_percent);
        let plan = entry.resolve_as(key, key, self.size.n_layers, self.size.seed)?;
        Ok(Draw::Strategies(plan))
    }

    fn early_exit(&mut self, settings: &EarlyExit) -> anyhow::Result<()> {
        let exits = self.exits_of("objective.early-exit.exits", settings.exits.as_deref())?;
        self.exits = self.exit_plan(&exits, settings.weights.into(), Curriculum::None);
        Ok(())
    }

    fn layer_skip(&mut self, settings: &LayerSkip) -> anyhow::Result<()> {
        let key = |name: &str| format!("objective.layer-skip.{name}");
        check_share(&key("p-max"), settings.p_max)?;
        check_weight(&key("e-scale"), settings.e_scale)?;
        let n_layers = self.size.n_layers;
        let rotation = match (settings.curriculum, settings.rotation) {
            (CurriculumName::Rotational, None) => bail!(
                "`{}` needs `rotation`, the steps in which each exit has one turn",
                key("curriculum: rotational")
            ),
            (CurriculumName::Rotational, Some(every)) if !(1..=n_layers).contains(&every) => bail!(
                "`{}` is {every}; it must be 1 to the {n_layers} layers of the model",
                key("rotation")
            ),
            (CurriculumName::Rotational, Some(every)) => every,
            (_, Some(_)) => bail!(
                "`{}` is for `curriculum: rotational` alone; leave it out",
                key("rotation")
            ),
            (_, None) => 1,
        };
        let exits = self.exits_of(&key("exits"), settings.exits.as_deref())?;
        let weights = ExitWeights::Rising {
            scale: settings.e_scale,
        };
        self.exits = self.exit_plan(&exits, weights, settings.curriculum.with(rotation));
        self.draw = Draw::Drops {
            drops: Drops::exponential(n_layers, settings.p_max, Per::Sample),
            rises: settings.dropout == DropoutName::Rising,
        };
        Ok(())
    }

    fn layer_drop(&mut self, settings: &LayerDrop) -> anyhow::Result<()> {
        check_share("objective.layer-drop.p", settings.p)?;
        self.draw = Draw::Drops {
            drops: Drops::uniform(self.size.n_layers, settings.p, settings.per),
            rises: false,
        };
        Ok(())
    }

    fn pruning_on_demand(&mut self, settings: &PruningOnDemand) -> anyhow::Result<()> {
        let key = |name: &str| format!("objective.pruning-on-demand.{name}");
        check_share(&key("p"), settings.p)?;
        check_share(&key("weight"), settings.weight)?;
        let n_layers = self.size.n_layers;
        let quarters = [1, 2, 3].map(|part| (part * n_layers / 4).max(1));
        let given = settings.exits.as_deref().unwrap_or(&quarters);
        let exits = self.exits_of(&key("exits"), Some(given))?;
        let weights = ExitWeights::Inner {
            inner: settings.weight,
        };
        self.exits = self.exit_plan(&exits, weights, Curriculum::None);
        self.draw = Draw::Drops {
            drops: Drops::linear(n_layers, settings.p, settings.per),
            rises: false,
        };
        Ok(())
    }

    /// The exits that are given, or all.
    fn exits_of(&self, key: &str, given: Option<&[usize]>) -> anyhow::Result<Vec<usize>> {
        let Some(given) = given else {
            return Ok((1..=self.size.n_layers).collect());
        };
        if given.is_empty() {
            bail!(
                "`{key}` is empty; list the layers below each exit, or leave it out for its default"
            );
        }
        check_layers(key, given, self.size.n_layers)?;
        Ok(given.to_vec())
    }

    fn exit_plan(&self, exits: &[usize], weights: ExitWeights, curriculum: Curriculum) -> ExitPlan {
        ExitPlan::new(
            self.size.n_layers,
            exits,
            weights,
            curriculum,
            self.size.steps,
        )
    }

    /// Refuses a teacher that has nothing to teach.
    fn check_distil(&self) -> anyhow::Result<()> {
        let Some(distil) = &self.distil else {
            return Ok(());
        };
        for (name, weight) in [
            ("cross-entropy", distil.cross_entropy),
            ("logits", distil.logits),
            ("states", distil.states),
        ] {
            check_weight(&format!("distil.{name}"), weight)?;
        }
        if !(distil.temperature.is_finite() && distil.temperature > 0.0) {
            bail!(
                "`distil.temperature` is {:e}; it must be a finite number above 0",
                distil.temperature
            );
        }
        if distil.logits + distil.states <= 0.0 {
            bail!("`distil` has neither `logits` nor `states` above 0; leave it out");
        }
        let runs_all = matches!(self.draw, Draw::Full);
        let has_inner_exits = self.exits.at(self.size.steps).len() > 1;
        if distil.logits > 0.0 && runs_all && !has_inner_exits {
            bail!(
                "`distil.logits` teaches nothing where every batch runs all layers to the last exit; give `depths`, or an `objective` that skips layers or has exits"
            );
        }
        if distil.states > 0.0 && runs_all {
            bail!(
                "`distil.states` teaches nothing where every batch runs all layers; give `depths`, or an `objective` that skips layers"
            );
        }
        Ok(())
    }
}

fn check_share(key: &str, value: f64) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&value) {
        bail!("`{key}` is {value:e}; it must be 0 to 1");
    }
    Ok(())
}

fn check_weight(key: &str, value: f64) -> anyhow::Result<()> {
    if !(value.is_finite() && value >= 0.0) {
        bail!("`{key}` is {value:e}; it must be a finite number, at least 0");
    }
    Ok(())
}

fn check_layers(key: &str, layers: &[usize], n_layers: usize) -> anyhow::Result<()> {
    match layers
        .iter()
        .find(|layers| !(1..=n_layers).contains(*layers))
    {
        Some(layers) => bail!(
            "`{key}` holds {layers}; the model has {n_layers} layers, so it must be 1 to {n_layers}"
        ),
        None => Ok(()),
    }
}
