//! Batches of token ids, and the layers that each of their tokens runs.

use crate::config::LossOn;

/// A prompt and its answer, as token ids; the answer ends with the end of sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// With the beginning of sequence in front.
    pub prompt: Vec<u32>,
    /// With the end of sequence behind.
    pub response: Vec<u32>,
}

/// Whether response token `t` (0 is the token that the prompt predicts) of `row` runs `layer`:
/// `runs(layer, row, t)`. Token 0 is always full depth and never asked for.
pub type Depths<'a> = &'a dyn Fn(usize, usize, usize) -> bool;

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

    /// Tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// For `layer`, whether each of `[rows * seq]` positions runs it; `None` where all do. Prompts run every layer;
    /// so does padding, which no result depends on.
    pub(crate) fn mask(&self, layer: usize, depths: Depths<'_>) -> Option<Vec<bool>> {
        let mut mask = vec![true; self.rows * self.seq];
        let mut skipped = false;
        for row in 0..self.rows {
            // The input at `prompt_len - 1 + t` is the state that predicts response token `t`.
            let last_prompt = self.prompt_lens[row].saturating_sub(1);
            for position in last_prompt + 1..self.lens[row] {
                let runs = depths(layer, row, position - last_prompt);
                mask[row * self.seq + position] = runs;
                skipped |= !runs;
            }
        }
        skipped.then_some(mask)
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
    fn only_response_tokens_after_the_first_can_skip() {
        let batch = Batch::new(
            &[pair(&[1, 5, 6], &[7, 2]), pair(&[1], &[9, 8, 2])],
            LossOn::Response,
        );
        let never = |_, _, _| false;
        let mask = batch.mask(0, &never).unwrap();
        assert_eq!(mask, [true, true, true, false, true, false, false, true]);
        assert_eq!(batch.mask(0, &|_, _, _| true), None);
    }
}
