//! Rows of tensors, and parts of layers.

use crate::error::Result;
use candle_core::Tensor;
use skipbench_model::{CausalLm, KvCache, Part, Span, ops};
use skipbench_strategy::LayerSet;

/// Which part of a layer a set holds.
pub(crate) fn part_of(set: &LayerSet, layer: usize) -> Option<Part> {
    match (set.has_attention(layer), set.has_mlp(layer)) {
        (true, true) => Some(Part::Whole),
        (true, false) => Some(Part::Attention),
        (false, true) => Some(Part::Mlp),
        (false, false) => None,
    }
}

/// A layer whose parts ran one by one.
pub(crate) struct Apart {
    /// Each part with the states in front of it and behind it, `[tokens, d_model]`.
    pub(crate) parts: [(Part, Tensor, Tensor); 2],
    /// What the whole layer gives, but for the last bit where its parts read the same state.
    pub(crate) output: Tensor,
}

/// Runs attention and MLP of a layer apart.
pub(crate) fn apart(
    model: &dyn CausalLm,
    layer: usize,
    hidden: &Tensor,
    cache: &mut KvCache,
    spans: &[Span],
) -> Result<Apart> {
    let attended = model.layer_part(layer, Part::Attention, hidden, cache, spans)?;
    let parallel = model.sizes().parallel;
    let input = if parallel { hidden } else { &attended };
    let behind = model.layer_part(layer, Part::Mlp, input, cache, spans)?;
    let output = match parallel {
        true => {
            let added = ops::zip(&behind, hidden, |a, b| a - b)?;
            ops::zip(&attended, &added, |a, b| a + b)?
        }
        false => behind.clone(),
    };
    Ok(Apart {
        parts: [
            (Part::Attention, hidden.clone(), attended.clone()),
            (Part::Mlp, input.clone(), behind),
        ],
        output,
    })
}

/// Rows `indices` of `x`, `[rows, _]`; a view where they follow one another.
pub(crate) fn select(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    let first = indices.first().copied().unwrap_or(0);
    if indices.iter().copied().eq(first..first + indices.len()) {
        return Ok(x.narrow(0, first, indices.len())?);
    }
    let places = indices.iter().map(|&index| index as u32).collect();
    let places = ops::upload(places, indices.len(), x.device())?;
    Ok(ops::rows(x, &places)?)
}

/// The rows of all pieces, (key of each row, `[rows, _]`), by ascending key.
pub(crate) fn in_order(pieces: &[(Vec<usize>, Tensor)]) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = pieces.iter().map(|(_, tensor)| tensor).collect();
    let joined = ops::cat(&tensors, 0)?;
    let mut order: Vec<(usize, usize)> = pieces
        .iter()
        .flat_map(|(keys, _)| keys.iter().copied())
        .enumerate()
        .map(|(place, key)| (key, place))
        .collect();
    order.sort_unstable();
    let places: Vec<usize> = order.into_iter().map(|(_, place)| place).collect();
    select(&joined, &places)
}
