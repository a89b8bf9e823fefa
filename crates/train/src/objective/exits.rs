//! Losses at several exits: their weights, and which of them a step has.

use super::{Loss, Term};

/// How the losses of exits are weighed before the weights are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExitWeights {
    /// Each exit as much as it has layers below it: CALM (arXiv 2207.07061), in its released code too.
    ByLayer,
    /// All alike: LITE (arXiv 2310.18581).
    Uniform,
    /// LayerSkip (arXiv 2404.16710): layer l of L, counted from 0, weighs `scale` times 0 + 1 + ... + l, and the last one
    /// L - 1 plus `scale` times 0 + 1 + ... + (L - 2).
    Rising {
        /// Its e_scale.
        scale: f64,
    },
    /// The last layer weighs one minus `inner`, and the others share `inner`: intermediate losses (arXiv 2102.03216).
    Inner {
        /// What the others weigh together, 0 to 1.
        inner: f64,
    },
}

/// Which exits have a loss at a step; the last layer always has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curriculum {
    /// All of them.
    None,
    /// LayerSkip's rotation (arXiv 2404.16710): every so many layers, one further at each step.
    Rotational {
        /// Steps in which each exit has one turn.
        every: usize,
    },
    /// LayerSkip's gradual one (arXiv 2404.16710): from the last layer down, one more each 1 / (2 L) of the steps, so that all
    /// of L are there at half of them.
    Gradual,
}

/// Exits of a model, with a weight for each step.
#[derive(Debug, Clone, PartialEq)]
pub struct ExitPlan {
    /// Layers below each exit, ascending, all layers last.
    exits: Vec<usize>,
    weights: ExitWeights,
    curriculum: Curriculum,
    /// Steps of the training.
    steps: u64,
}

impl ExitPlan {
    /// The last layer alone.
    pub fn last(n_layers: usize) -> Self {
        Self::new(n_layers, &[], ExitWeights::Uniform, Curriculum::None, 1)
    }

    /// Exits behind so many layers, and behind all `n_layers`, over `steps` steps.
    pub fn new(
        n_layers: usize,
        exits: &[usize],
        weights: ExitWeights,
        curriculum: Curriculum,
        steps: u64,
    ) -> Self {
        let inner = exits.iter().copied();
        let inner = inner.filter(|layers| (1..n_layers).contains(layers));
        let mut exits: Vec<usize> = inner.chain([n_layers]).collect();
        exits.sort_unstable();
        exits.dedup();
        Self {
            exits,
            weights,
            curriculum,
            steps,
        }
    }

    /// Exit and weight of those that have a loss at `step`; the weights add up to 1.
    pub fn at(&self, step: u64) -> Vec<(usize, f64)> {
        let n_layers = self.n_layers();
        let on = self.exits.iter().copied();
        let on: Vec<usize> = on
            .filter(|&layers| {
                self.curriculum
                    .is_on(layers - 1, n_layers, step, self.steps)
            })
            .collect();
        let raw: Vec<f64> = on
            .iter()
            .map(|&layers| self.weights.of(layers - 1, n_layers, on.len()))
            .collect();
        let sum: f64 = raw.iter().sum();
        if sum <= 0.0 {
            return vec![(n_layers, 1.0)];
        }
        let weighed = on
            .into_iter()
            .zip(raw.into_iter().map(|weight| weight / sum));
        weighed
            .filter(|(layers, weight)| *weight > 0.0 || *layers == n_layers)
            .collect()
    }

    /// Cross-entropy of each exit of `step`.
    pub fn terms(&self, step: u64) -> Vec<Term> {
        let exits = self.at(step).into_iter();
        exits
            .map(|(layers, weight)| Term {
                weight,
                loss: Loss::Exit { layers },
            })
            .collect()
    }

    fn n_layers(&self) -> usize {
        self.exits.last().copied().unwrap_or(1)
    }
}

impl ExitWeights {
    /// Of layer `layer`, counted from 0, one of `exits` that have a loss.
    fn of(self, layer: usize, n_layers: usize, exits: usize) -> f64 {
        let is_last = layer + 1 == n_layers;
        // 0 + 1 + ... + layer
        let up_to = |layer: usize| (layer * (layer + 1) / 2) as f64;
        match self {
            Self::ByLayer => (layer + 1) as f64,
            Self::Uniform => 1.0,
            Self::Rising { scale } if is_last => {
                (n_layers - 1) as f64 + scale * up_to(n_layers.saturating_sub(2))
            }
            Self::Rising { scale } => scale * up_to(layer),
            Self::Inner { inner } if is_last => 1.0 - inner,
            Self::Inner { inner } => inner / (exits.max(2) - 1) as f64,
        }
    }
}

impl Curriculum {
    /// Whether layer `layer`, counted from 0, has a loss at `step` of `steps`, counted from 0.
    fn is_on(self, layer: usize, n_layers: usize, step: u64, steps: u64) -> bool {
        if layer + 1 == n_layers {
            return true;
        }
        match self {
            Self::None => true,
            Self::Rotational { every } => {
                let every = every.max(1) as u64;
                layer as u64 % every == step % every
            }
            Self::Gradual => {
                let (n_layers, above) = (n_layers as u128, (n_layers - layer) as u128);
                2 * n_layers * u128::from(step) >= above * u128::from(steps)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[(usize, f64)], wanted: &[(usize, f64)]) {
        let same = found.len() == wanted.len()
            && found
                .iter()
                .zip(wanted)
                .all(|(found, wanted)| found.0 == wanted.0 && (found.1 - wanted.1).abs() < 1e-12);
        assert!(same, "{found:?} is not {wanted:?}");
    }

    #[test]
    fn exits_weigh_what_the_papers_say() {
        let at =
            |exits: &[usize], weights| ExitPlan::new(4, exits, weights, Curriculum::None, 10).at(0);
        let all = [1, 2, 3, 4];
        close(
            &at(&all, ExitWeights::ByLayer),
            &[(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)],
        );
        // The last layer has a loss though it is not listed, and what is listed twice has one.
        close(
            &at(&[3, 2, 2], ExitWeights::ByLayer),
            &[(2, 2.0 / 9.0), (3, 3.0 / 9.0), (4, 4.0 / 9.0)],
        );
        close(&at(&[2], ExitWeights::Uniform), &[(2, 0.5), (4, 0.5)]);
        // e(0..3) = 0, 0.5, 1.5, 3 + 0.5 * 3 = 4.5 of 6.5; the first has none.
        close(
            &at(&all, ExitWeights::Rising { scale: 0.5 }),
            &[(2, 0.5 / 6.5), (3, 1.5 / 6.5), (4, 4.5 / 6.5)],
        );
        close(
            &at(&[1, 2], ExitWeights::Inner { inner: 0.3 }),
            &[(1, 0.15), (2, 0.15), (4, 0.7)],
        );
        close(&at(&[], ExitWeights::ByLayer), &[(4, 1.0)]);
        close(&at(&all, ExitWeights::Rising { scale: 0.0 }), &[(4, 1.0)]);
        let one = ExitPlan::new(
            1,
            &[1],
            ExitWeights::Rising { scale: 1.0 },
            Curriculum::None,
            1,
        );
        close(&one.at(0), &[(1, 1.0)]);
    }

    #[test]
    fn a_rotation_gives_each_exit_its_turn_and_the_last_layer_all_of_them() {
        let plan = ExitPlan::new(
            6,
            &[1, 2, 3, 4, 5],
            ExitWeights::ByLayer,
            Curriculum::Rotational { every: 3 },
            100,
        );
        let exits = |step| -> Vec<usize> {
            let at = plan.at(step);
            assert!((at.iter().map(|exit| exit.1).sum::<f64>() - 1.0).abs() < 1e-12);
            at.into_iter().map(|exit| exit.0).collect()
        };
        let turns: Vec<Vec<usize>> = (0..4).map(exits).collect();
        assert_eq!(
            turns,
            [vec![1, 4, 6], vec![2, 5, 6], vec![3, 6], vec![1, 4, 6]]
        );
        close(
            &plan.at(0),
            &[(1, 1.0 / 11.0), (4, 4.0 / 11.0), (6, 6.0 / 11.0)],
        );
    }

    #[test]
    fn a_gradual_curriculum_has_all_exits_at_half_of_the_steps() {
        let plan = ExitPlan::new(4, &[1, 2, 3], ExitWeights::Uniform, Curriculum::Gradual, 80);
        let first_step_of =
            |layers: usize| (0..80).find(|&step| plan.at(step).iter().any(|exit| exit.0 == layers));
        // Layer l of 4 comes at (4 - l) / 8 of the steps.
        assert_eq!(
            [1, 2, 3, 4].map(first_step_of),
            [Some(40), Some(30), Some(20), Some(0)]
        );
        assert_eq!(plan.at(0), [(4, 1.0)]);
        assert_eq!(plan.at(79).len(), 4);
    }
}
