//! Batches of token ids, and the layers that each of their tokens runs.

use crate::config::LossOn;
use crate::error::{Result, TrainError};
use skipbench_strategy::LayerSet;
use std::ops::Range;

/// A prompt and its answer, as token ids; the answer ends with the end of sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// With the beginning of sequence in front.
    pub prompt: Vec<u32>,
    /// With the end of sequence behind.
    pub response: Vec<u32>,
}

/// Which sub-layers each token of a batch runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    /// `[row]`: those that the prompt runs; it gives response token 0.
    pub prompts: Vec<LayerSet>,
    /// `[row][t - 1]`: those that the state which predicts response token `t` runs.
    pub responses: Vec<Vec<LayerSet>>,
    /// Where the keys and values come from that a later token finds at a layer which this one skipped.
    pub fill: Fill,
}

impl Depths {
    /// Those of some rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        Self {
            prompts: self.prompts[rows.clone()].to_vec(),
            responses: self.responses[rows].to_vec(),
            fill: self.fill,
        }
    }

    /// The set of each row for all of its tokens, the prompt's too: layers that the network goes without.
    pub fn of_rows(pairs: &[Pair], sets: Vec<LayerSet>) -> Self {
        let response =
            |(pair, set): (&Pair, &LayerSet)| vec![*set; pair.response.len().saturating_sub(1)];
        Self {
            responses: pairs.iter().zip(&sets).map(response).collect(),
            prompts: sets,
            fill: Fill::Passed,
        }
    }
}

/// Keys and values of skipped layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// The state that passes the layer by gives them, as in CALM (arXiv 2207.07061); nothing else is possible, and nothing
    /// is filled, where no later token runs a layer that an earlier one skipped.
    Passed,
    /// The layer runs on the token after all, for its keys and values alone, as in FREE (arXiv 2310.05424). For tokens that
    /// leave: what one runs are the layers up to some layer.
    Deferred,
}

/// Which tokens of a batch run a sub-layer; padding, which no result depends on, goes with the others.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// All of them.
    All,
    /// None of them.
    None,
    /// `[rows * seq]`: these.
    Some(Vec<bool>),
}

/// Pairs laid out as `[rows, seq]`, padded on the right.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Number of pairs.
    pub rows: usize,
    /// Input positions of the longest pair.
    pub seq: usize,
    /// Input ids, `[rows * seq]`.
    pub inputs: Vec<u32>,
    /// Positions `row * seq + i` whose next token counts in the loss.
    pub counted: Vec<u32>,
    /// The next token at each counted position.
    pub targets: Vec<u32>,
    prompt_lens: Vec<usize>,
    lens: Vec<usize>,
}

impl Batch {
    /// Lays out `pairs`; a pair of `n` tokens has `n - 1` inputs, each predicting the next.
    pub fn new(pairs: &[Pair], loss_on: LossOn) -> Self {
        let lens: Vec<usize> = pairs
            .iter()
            .map(|pair| (pair.prompt.len() + pair.response.len()).saturating_sub(1))
            .collect();
        let seq = lens.iter().max().copied().unwrap_or(0);
        let mut batch = Batch {
            rows: pairs.len(),
            seq,
            inputs: vec![0; pairs.len() * seq],
            counted: Vec::new(),
            targets: Vec::new(),
            prompt_lens: pairs.iter().map(|pair| pair.prompt.len()).collect(),
            lens,
        };
        for (row, pair) in pairs.iter().enumerate() {
            let tokens: Vec<u32> = pair.prompt.iter().chain(&pair.response).copied().collect();
            let first = row * seq;
            batch.inputs[first..first + batch.lens[row]]
                .copy_from_slice(&tokens[..batch.lens[row]]);
            let from = match loss_on {
                LossOn::Response => pair.prompt.len().saturating_sub(1),
                LossOn::All => 0,
            };
            for position in from..batch.lens[row] {
                batch.counted.push((first + position) as u32);
                batch.targets.push(tokens[position + 1]);
            }
        }
        batch
    }

    /// Some of its rows, without the padding that they do not need.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        let lens = self.lens[rows.clone()].to_vec();
        let seq = lens.iter().max().copied().unwrap_or(0);
        let mut part = Batch {
            rows: rows.len(),
            seq,
            inputs: Vec::with_capacity(rows.len() * seq),
            counted: Vec::new(),
            targets: Vec::new(),
            prompt_lens: self.prompt_lens[rows.clone()].to_vec(),
            lens,
        };
        for row in rows.clone() {
            part.inputs.extend(&self.inputs[row * self.seq..][..seq]);
        }
        for (&position, &target) in self.counted.iter().zip(&self.targets) {
            let (row, at) = (position as usize / self.seq, position as usize % self.seq);
            if rows.contains(&row) {
                part.counted.push(((row - rows.start) * seq + at) as u32);
                part.targets.push(target);
            }
        }
        part
    }

    /// Tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Prompt tokens of each row.
    pub fn prompt_lens(&self) -> &[usize] {
        &self.prompt_lens
    }

    /// The tokens for which `runs` holds of the layers that they run, and their number.
    pub(crate) fn tokens_where(
        &self,
        depths: &Depths,
        runs: impl Fn(&LayerSet) -> bool,
    ) -> (Runs, usize) {
        let mut mask = vec![true; self.rows * self.seq];
        let mut running = 0;
        let rows = depths.prompts.iter().zip(&depths.responses);
        for (row, (prompt, responses)) in rows.enumerate() {
            let first = row * self.seq;
            // The input at `prompt_len - 1 + t` is the state that predicts response token `t`.
            let prompt_len = self.prompt_lens[row].min(self.lens[row]);
            mask[first..first + prompt_len].fill(runs(prompt));
            let tokens = &mut mask[first + prompt_len..first + self.lens[row]];
            for (token, layers) in tokens.iter_mut().zip(responses) {
                *token = runs(layers);
            }
            let tokens = &mask[first..first + self.lens[row]];
            running += tokens.iter().filter(|runs| **runs).count();
        }
        let runs = match running {
            0 => Runs::None,
            _ if running == self.tokens() => Runs::All,
            _ => Runs::Some(mask),
        };
        (runs, running)
    }

    /// Positions `row * seq + i` of response tokens that run the whole of a layer: those whose own state can be compared
    /// with that of a network that runs more.
    pub(crate) fn responses_through(&self, depths: &Depths, layer: usize) -> Vec<u32> {
        let mut positions = Vec::new();
        for (row, responses) in depths.responses.iter().enumerate() {
            let first = row * self.seq + self.prompt_lens[row];
            let tokens = self.lens[row].saturating_sub(self.prompt_lens[row]);
            let running = responses.iter().take(tokens).enumerate();
            let running = running.filter(|(_, layers)| layers.contains(layer));
            positions.extend(running.map(|(t, _)| (first + t) as u32));
        }
        positions
    }

    /// Refuses depths of another batch, and those that no token can run.
    pub(crate) fn check(&self, depths: &Depths) -> Result<()> {
        let wrong = |message: String| Err(TrainError::Config(message));
        for rows in [depths.prompts.len(), depths.responses.len()] {
            if rows != self.rows {
                return wrong(format!(
                    "depths of {rows} rows for a batch of {}",
                    self.rows
                ));
            }
        }
        for (row, responses) in depths.responses.iter().enumerate() {
            let tokens = self.lens[row].saturating_sub(self.prompt_lens[row]);
            if responses.len() < tokens {
                return wrong(format!(
                    "row {row} has depths for {} of {tokens} response tokens",
                    responses.len()
                ));
            }
            let is_exit = |layers: &LayerSet| *layers == LayerSet::full(layers.len());
            if depths.fill == Fill::Deferred && !responses.iter().all(is_exit) {
                return wrong(format!(
                    "row {row} skips layers below one that it runs, which `deferred` does not cover"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &[u32], response: &[u32]) -> Pair {
        Pair {
            prompt: prompt.to_vec(),
            response: response.to_vec(),
        }
    }

    #[test]
    fn the_loss_counts_the_response_from_its_first_token() {
        let batch = Batch::new(
            &[pair(&[1, 5, 6], &[7, 2]), pair(&[1], &[9, 8, 2])],
            LossOn::Response,
        );
        assert_eq!((batch.rows, batch.seq), (2, 4));
        assert_eq!(batch.inputs, [1, 5, 6, 7, 1, 9, 8, 0]);
        assert_eq!(batch.counted, [2, 3, 4, 5, 6]);
        assert_eq!(batch.targets, [7, 2, 9, 8, 2]);
    }

    #[test]
    fn prompts_and_responses_run_what_the_depths_say() {
        let batch = Batch::new(
            &[pair(&[1, 5, 6], &[7, 2]), pair(&[1], &[9, 8, 2])],
            LossOn::Response,
        );
        let [none, both] = [LayerSet::empty(), LayerSet::full(1)];
        let depths = |prompt, first: &[LayerSet], second: &[LayerSet]| Depths {
            prompts: vec![prompt; 2],
            responses: vec![first.to_vec(), second.to_vec()],
            fill: Fill::Passed,
        };
        let runs = |depths: &Depths| batch.tokens_where(depths, |layers| layers.has_mlp(0));
        let (mask, running) = runs(&depths(both, &[none], &[both, none]));
        let wanted = [true, true, true, false, true, true, false, true];
        assert_eq!((mask, running), (Runs::Some(wanted.to_vec()), 5));
        let (mask, running) = runs(&depths(none, &[both], &[none, both]));
        let wanted = [false, false, false, true, false, false, true, true];
        assert_eq!((mask, running), (Runs::Some(wanted.to_vec()), 2));
        assert_eq!(runs(&depths(both, &[both], &[both, both])), (Runs::All, 7));
        assert_eq!(runs(&depths(none, &[none], &[none, none])), (Runs::None, 0));
        let by_row = Depths {
            prompts: vec![none, both],
            ..depths(both, &[both], &[none, both])
        };
        let wanted = [false, false, false, true, true, false, true, true];
        assert_eq!(runs(&by_row), (Runs::Some(wanted.to_vec()), 3));
        assert_eq!(batch.responses_through(&by_row, 0), [3, 6]);
        assert_eq!(batch.responses_through(&by_row, 1), [0; 0]);
    }

    #[test]
    fn depths_of_another_batch_are_refused() {
        let batch = Batch::new(&[pair(&[1, 5], &[7, 8, 2])], LossOn::Response);
        let error = |responses: Vec<Vec<LayerSet>>, fill| {
            let depths = Depths {
                prompts: vec![LayerSet::full(3); responses.len()],
                responses,
                fill,
            };
            batch.check(&depths).err().map(|error| error.to_string())
        };
        let sets = |layers: &[usize]| vec![LayerSet::from_layers(layers.iter().copied()); 2];
        assert_eq!(error(vec![sets(&[0, 2])], Fill::Passed), None);
        assert_eq!(error(vec![sets(&[0, 1])], Fill::Deferred), None);
        assert!(error(vec![sets(&[0, 2])], Fill::Deferred).is_some_and(|e| e.contains("row 0")));
        assert!(error(Vec::new(), Fill::Passed).is_some_and(|e| e.contains("0 rows")));
        let short = vec![sets(&[0])[..1].to_vec()];
        assert!(error(short, Fill::Passed).is_some_and(|e| e.contains("1 of 2")));
    }
}
