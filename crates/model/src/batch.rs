//! Which tokens a forward step works on: a ragged batch, no padding anywhere.

/// A run of consecutive tokens of one row. A step's hidden states are the spans laid end to end:
/// `hidden`: `[tokens, d_model]` with `tokens = sum of span.len`. Rows of different length therefore
/// cost what they hold, and a row's result cannot depend on its neighbours' padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Row of the KV cache.
    pub row: usize,
    /// Absolute position of the first token of the span.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
}

impl Span {
    /// Whole prompts: row `i` is prompt `i`, from position 0.
    pub fn prompts(lens: impl IntoIterator<Item = usize>) -> Vec<Span> {
        lens.into_iter()
            .enumerate()
            .map(|(row, len)| Span { row, start: 0, len })
            .collect()
    }

    /// One token of `row` at absolute `position`.
    pub fn token(row: usize, position: usize) -> Span {
        Span {
            row,
            start: position,
            len: 1,
        }
    }
}

/// Number of tokens in all spans together.
pub fn token_count(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.len).sum()
}

/// The absolute position of every token, in order: `[tokens]`.
pub fn positions(spans: &[Span]) -> impl Iterator<Item = usize> + '_ {
    spans
        .iter()
        .flat_map(|span| span.start..span.start + span.len)
}
