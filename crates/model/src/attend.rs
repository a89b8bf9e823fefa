//! Attention of one token over the cache, in f32 on the CPU.

use crate::pointwise::soft_cap_body;
use crate::simd::{dot, exp, multiply_add};
use crate::vectorised;

/// One row's keys and values: `[n_kv_heads, stride, head_dim]`, of which a query reads a range of positions.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// Positions allocated per head.
    pub(crate) stride: usize,
    /// The first position that the query reads.
    pub(crate) first: usize,
    /// The position behind the last one.
    pub(crate) end: usize,
    pub(crate) head_dim: usize,
    /// Of the positions up to `end`, those that the query does not see; empty if it sees all.
    pub(crate) masked: &'a [bool],
}

vectorised! {
    /// Attention of one token. `q`, `out`: `[n_heads, head_dim]`; `scores`: scratch of at least `kv.end`.
    fn attend(q: &[f32], kv: KeysValues<'_>, how: &Scoring, scores: &mut [f32], out: &mut [f32]) = attend_body
}

/// How attention makes its scores.
#[derive(Debug, Clone)]
pub(crate) struct Scoring {
    /// Query heads per key head.
    pub(crate) group: usize,
    /// Factor of the products.
    pub(crate) scale: f32,
    /// `cap * tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
    /// ALiBi, one slope per head, or empty.
    pub(crate) slopes: Vec<f32>,
}

#[inline(always)]
fn attend_body<const FMA: bool>(
    q: &[f32],
    kv: KeysValues<'_>,
    how: &Scoring,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let KeysValues {
        first,
        end,
        head_dim,
        ..
    } = kv;
    let masked = kv.masked.get(first..).unwrap_or_default();
    let heads = q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
    for (head, (q, out)) in heads.enumerate() {
        let base = head / how.group * kv.stride;
        let read = (base + first) * head_dim..(base + end) * head_dim;
        let (keys, values) = (&kv.k[read.clone()], &kv.v[read]);
        let scores = &mut scores[..end - first];
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(head_dim)) {
            *score = dot::<FMA>(q, key) * how.scale;
        }
        if let Some(cap) = how.cap {
            soft_cap_body::<FMA>(scores, cap);
        }
        if let Some(slope) = how.slopes.get(head) {
            for (position, score) in (first..).zip(scores.iter_mut()) {
                *score += slope * position as f32;
            }
        }
        let mut largest = scores
            .iter()
            .fold(f32::NEG_INFINITY, |max, score| max.max(*score));
        if !masked.is_empty() {
            let seen = scores.iter().zip(masked).filter(|(_, masked)| !**masked);
            largest = seen.fold(f32::NEG_INFINITY, |max, (score, _)| max.max(*score));
        }
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - largest);
            sum += *score;
        }
        if !masked.is_empty() {
            sum = 0.0;
            for (score, masked) in scores.iter_mut().zip(masked) {
                *score = if *masked { 0.0 } else { *score };
                sum += *score;
            }
        }
        out.fill(0.0);
        for (score, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
            for (out, value) in out.iter_mut().zip(value) {
                *out = multiply_add::<FMA>(*score, *value, *out);
            }
        }
        let scale = 1.0 / sum;
        out.iter_mut().for_each(|out| *out *= scale);
    }
}
