//! Rows of tensors, and parts of layers.

use crate::error::Result;
use candle_core::Tensor;
use skipbench_model::Part;
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

/// Rows `indices` of `x`: `[rows, _]`.
pub(crate) fn select(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    let all = indices.len() == x.dim(0)? && indices.iter().enumerate().all(|(a, &b)| a == b);
    if all {
        return Ok(x.clone());
    }
    let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, 0)?)
}

/// The rows of all pieces, (key of each row, `[rows, _]`), by ascending key.
pub(crate) fn in_order(pieces: &[(Vec<usize>, Tensor)]) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = pieces.iter().map(|(_, tensor)| tensor).collect();
    let joined = match tensors[..] {
        [one] => one.clone(),
        _ => Tensor::cat(&tensors, 0)?,
    };
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
