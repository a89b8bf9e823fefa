//! Causal grouped-query attention over whole sequences, fused, with its backward pass: positions by RoPE or ALiBi, windows,
//! soft caps.

use crate::ops::{floats, softmax_body, values};
use crate::products::{Sizes, Strided, alone};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use skipbench_model::Rope as Frequencies;
use skipbench_model::simd::dot;
use skipbench_model::threads::SideBySide;
use skipbench_model::vectorised;
use std::ops::Range;
use std::sync::Arc;

/// Rows of queries, over all heads that read the same keys, whose weights are there at a time.
const ROWS: usize = 96;

/// `q`: `[rows * seq, n_heads * head_dim]`, `k` and `v`: `[rows * seq, n_kv_heads * head_dim]`, straight from their
/// projections; the output has the shape of `q`.
#[derive(Clone)]
pub(crate) struct Attention {
    pub(crate) seq: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Factor of the products of queries and keys.
    pub(crate) scale: f32,
    /// `cap * tanh(score / cap)` of scores (arXiv 2408.00118).
    pub(crate) cap: Option<f32>,
    /// Positions that a token sees, its own among them.
    pub(crate) window: Option<usize>,
    /// `None` where queries and keys do not turn.
    pub(crate) rope: Option<Arc<Rope>>,
    /// ALiBi's slope of each query head (arXiv 2108.12409).
    pub(crate) slopes: Option<Arc<[f32]>>,
}

/// Cosines and sines of the channels that turn, `[positions, half]`: channel `i` together with channel `i + half`.
pub(crate) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Whole heads turn with nothing but a base.
    pub(crate) fn plain(positions: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angles = (0..positions).flat_map(|position| {
            (0..half).map(move |pair| {
                position as f64 * theta.powf(-((2 * pair) as f64) / head_dim as f64)
            })
        });
        Self {
            cos: angles.clone().map(|angle| angle.cos() as f32).collect(),
            sin: angles.map(|angle| angle.sin() as f32).collect(),
            half,
        }
    }

    /// As a checkpoint's layers turn in sequences up to the trained length.
    pub(crate) fn of(frequencies: &Frequencies, positions: usize) -> Self {
        let factor = frequencies.attention_factor;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for freq in &frequencies.inv_freq {
                let (s, c) = (position as f32 * freq).sin_cos();
                cos.push(c * factor);
                sin.push(s * factor);
            }
        }
        let half = frequencies.inv_freq.len();
        Self { cos, sin, half }
    }

    /// Turns `x`: `[seq, heads, head_dim]` in place; `sign` -1 turns back. With an attention factor it stretches too, both ways:
    /// what is turned back is a gradient.
    fn rotate(&self, x: &mut [f32], heads: usize, head_dim: usize, sign: f32) {
        let half = self.half;
        for (position, x) in x.chunks_exact_mut(heads * head_dim).enumerate() {
            let at = position * half..(position + 1) * half;
            let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
            for x in x.chunks_exact_mut(head_dim) {
                let (low, high) = x[..2 * half].split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (low[i], high[i]);
                    low[i] = a * cos[i] - sign * b * sin[i];
                    high[i] = b * cos[i] + sign * a * sin[i];
                }
            }
        }
    }
}

impl Attention {
    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Query heads that read one head of keys and values.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The first key that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.window {
            None => 0,
            Some(window) => (position + 1).saturating_sub(window),
        }
    }

    /// Those heads of `x`, `[seq, width]`, that belong to head `kv_head` of the keys and values, turned where `turns`:
    /// `[seq, heads, head_dim]`.
    fn gather(&self, x: &[f32], heads: usize, kv_head: usize, turns: bool) -> Vec<f32> {
        let (width, part) = (x.len() / self.seq, heads * self.head_dim);
        let mut found = Vec::with_capacity(self.seq * part);
        for x in x.chunks_exact(width) {
            found.extend_from_slice(&x[kv_head * part..(kv_head + 1) * part]);
        }
        if let (true, Some(rope)) = (turns, &self.rope) {
            rope.rotate(&mut found, heads, self.head_dim, 1.0);
        }
        found
    }

    /// Puts `[seq, heads, head_dim]` of each row and head of the keys and values into their places in `out`.
    fn scatter(&self, out: &mut [f32], parts: &[Vec<f32>], heads: usize) {
        let part = heads * self.head_dim;
        let width = self.n_kv_heads * part;
        out.chunks_exact_mut(self.seq * width)
            .zip(parts.chunks_exact(self.n_kv_heads))
            .on_all_threads(|(out, parts)| {
                for (position, out) in out.chunks_exact_mut(width).enumerate() {
                    for (out, from) in out.chunks_exact_mut(part).zip(parts) {
                        out.copy_from_slice(&from[position * part..(position + 1) * part]);
                    }
                }
            });
    }

    /// Blocks of queries: positions, and the keys that any of them sees.
    fn blocks(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let height = (ROWS / self.group()).max(8);
        (0..self.seq).step_by(height).map(move |first| {
            let positions = first..self.seq.min(first + height);
            let keys = self.first_seen(first)..positions.end;
            (positions, keys)
        })
    }

    /// Scores of the queries of a block before they are weights, `[positions, heads, keys]`.
    fn scores(
        &self,
        q: &[f32],
        k: &[f32],
        block: &(Range<usize>, Range<usize>),
        to: &mut Vec<f32>,
    ) {
        let (positions, keys) = block;
        let (d, part) = (self.head_dim, self.group() * self.head_dim);
        let sizes = Sizes {
            m: positions.len() * self.group(),
            k: d,
            n: keys.len(),
        };
        to.resize(sizes.m * sizes.n, 0.0);
        let q = Strided::rows_of(&q[positions.start * part..positions.end * part], d);
        let k = Strided::rows_of(&k[keys.start * d..keys.end * d], d);
        alone(to, q, k.turned(), sizes, false);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "train-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            floats(q, q_layout)?,
            floats(k, k_layout)?,
            floats(v, v_layout)?,
        );
        let (q_row, kv_row) = (self.seq * self.q_width(), self.seq * self.kv_width());
        let heads = 0..q.len() / q_row * self.n_kv_heads;
        let heads = heads.map_on_all_threads(|at| {
            let (row, head) = (at / self.n_kv_heads, at % self.n_kv_heads);
            let kv = row * kv_row..(row + 1) * kv_row;
            let q = &q[row * q_row..(row + 1) * q_row];
            forward(self, head, q, &k[kv.clone()], &v[kv])
        });
        let mut out = vec![0.0; q.len()];
        self.scatter(&mut out, &heads, self.group());
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (qs, ks, vs, grads) = (values(q)?, values(k)?, values(v)?, values(grad)?);
        let (q_row, kv_row) = (self.seq * self.q_width(), self.seq * self.kv_width());
        let heads = 0..qs.len() / q_row * self.n_kv_heads;
        let heads = heads.map_on_all_threads(|at| {
            let (row, head) = (at / self.n_kv_heads, at % self.n_kv_heads);
            let (q, kv) = (
                row * q_row..(row + 1) * q_row,
                row * kv_row..(row + 1) * kv_row,
            );
            let inputs = [&qs[q.clone()], &ks[kv.clone()], &vs[kv], &grads[q]];
            backward(self, head, inputs)
        });
        let mut of_q = Vec::new();
        let mut of_k = Vec::new();
        let mut of_v = Vec::new();
        for [dq, dk, dv] in heads {
            of_q.push(dq);
            of_k.push(dk);
            of_v.push(dv);
        }
        let (mut dq, mut dk, mut dv) = (
            vec![0.0; qs.len()],
            vec![0.0; ks.len()],
            vec![0.0; vs.len()],
        );
        self.scatter(&mut dq, &of_q, self.group());
        self.scatter(&mut dk, &of_k, 1);
        self.scatter(&mut dv, &of_v, 1);
        let tensor = |data: Vec<f32>, like: &Tensor| -> Result<Option<Tensor>> {
            Ok(Some(Tensor::from_vec(data, like.shape(), like.device())?))
        };
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

/// What the query heads that read head `head` of the keys make of a row, `[seq, heads, head_dim]`.
fn forward(shape: &Attention, head: usize, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let (d, group) = (shape.head_dim, shape.group());
    let q = shape.gather(q, group, head, true);
    let (k, v) = (
        shape.gather(k, 1, head, true),
        shape.gather(v, 1, head, false),
    );
    let mut out = vec![0.0; q.len()];
    let (mut weights, mut capped) = (Vec::new(), Vec::new());
    for block in shape.blocks() {
        shape.scores(&q, &k, &block, &mut weights);
        weigh(shape, head, &block, &mut weights, &mut capped);
        let (positions, keys) = block;
        let sizes = Sizes {
            m: positions.len() * group,
            k: keys.len(),
            n: d,
        };
        let out = &mut out[positions.start * group * d..positions.end * group * d];
        let weights = Strided::rows_of(&weights, keys.len());
        alone(
            out,
            weights,
            Strided::rows_of(&v[keys.start * d..keys.end * d], d),
            sizes,
            false,
        );
    }
    out
}

/// Gradients of q, `[seq, heads, head_dim]`, k and v, `[seq, head_dim]`, of the query heads that read head `head` of the keys.
/// `inputs`: q, k, v and the gradient of the output of a row. The weights are computed again rather than kept: a pass over them
/// is cheaper than the memory.
fn backward(shape: &Attention, head: usize, inputs: [&[f32]; 4]) -> [Vec<f32>; 3] {
    let [q, k, v, grad] = inputs;
    let (d, group) = (shape.head_dim, shape.group());
    let q = shape.gather(q, group, head, true);
    let grad = shape.gather(grad, group, head, false);
    let (k, v) = (
        shape.gather(k, 1, head, true),
        shape.gather(v, 1, head, false),
    );
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (mut weights, mut capped, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for block in shape.blocks() {
        shape.scores(&q, &k, &block, &mut weights);
        weigh(shape, head, &block, &mut weights, &mut capped);
        // With G the gradient of the output and P the weights: of the weights G V^T, of the values P^T G.
        shape.scores(&grad, &v, &block, &mut slopes);
        let (positions, keys) = block;
        let (rows, columns) = (positions.len() * group, keys.len());
        let of_rows = positions.start * group * d..positions.end * group * d;
        let of_keys = keys.start * d..keys.end * d;
        let (q, grad) = (&q[of_rows.clone()], &grad[of_rows.clone()]);
        let to_keys = Sizes {
            m: columns,
            k: rows,
            n: d,
        };
        let by_key = Strided::rows_of(&weights, columns).turned();
        alone(
            &mut dv[of_keys.clone()],
            by_key,
            Strided::rows_of(grad, d),
            to_keys,
            true,
        );
        slope(shape, columns, &weights, &capped, &mut slopes);
        // With S what is now in `slopes`: of the queries S K, of the keys S^T Q.
        let slopes = Strided::rows_of(&slopes, columns);
        let to_rows = Sizes {
            m: rows,
            k: columns,
            n: d,
        };
        alone(
            &mut dq[of_rows],
            slopes,
            Strided::rows_of(&k[of_keys.clone()], d),
            to_rows,
            false,
        );
        alone(
            &mut dk[of_keys],
            slopes.turned(),
            Strided::rows_of(q, d),
            to_keys,
            true,
        );
    }
    if let Some(rope) = &shape.rope {
        rope.rotate(&mut dq, group, d, -1.0);
        rope.rotate(&mut dk, 1, d, -1.0);
    }
    [dq, dk, dv]
}

vectorised! {
    /// Makes weights of the scores of a block, `[positions, heads, keys]`: zero where a query does not see a key. `capped` gets the
    /// scores behind the cap, where there is one.
    fn weigh(shape: &Attention, head: usize, block: &(Range<usize>, Range<usize>), scores: &mut [f32], capped: &mut Vec<f32>) = weigh_body
}

#[inline(always)]
fn weigh_body<const FMA: bool>(
    shape: &Attention,
    head: usize,
    (positions, keys): &(Range<usize>, Range<usize>),
    scores: &mut [f32],
    capped: &mut Vec<f32>,
) {
    let group = shape.group();
    for score in scores.iter_mut() {
        *score *= shape.scale;
    }
    if let Some(cap) = shape.cap {
        for score in scores.iter_mut() {
            *score = cap * (*score / cap).tanh();
        }
        capped.clear();
        capped.extend_from_slice(scores);
    }
    for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
        let position = positions.start + row / group;
        let first = shape.first_seen(position) - keys.start;
        let end = position + 1 - keys.start;
        scores[..first].fill(0.0);
        scores[end..].fill(0.0);
        let seen = &mut scores[first..end];
        if let Some(slopes) = &shape.slopes {
            let slope = slopes[head * group + row % group];
            for (back, score) in seen.iter_mut().rev().enumerate() {
                *score -= slope * back as f32;
            }
        }
        softmax_body::<FMA>(seen, 1.0);
    }
}

vectorised! {
    /// Makes gradients of scores, before the scale and the cap, of those of the weights: `[rows, keys]`.
    fn slope(shape: &Attention, keys: usize, weights: &[f32], capped: &[f32], grads: &mut [f32]) = slope_body
}

#[inline(always)]
fn slope_body<const FMA: bool>(
    shape: &Attention,
    keys: usize,
    weights: &[f32],
    capped: &[f32],
    grads: &mut [f32],
) {
    for (weights, grads) in weights.chunks_exact(keys).zip(grads.chunks_exact_mut(keys)) {
        let inner = dot::<FMA>(weights, grads);
        for (weight, grad) in weights.iter().zip(grads) {
            *grad = weight * (*grad - inner) * shape.scale;
        }
    }
    if let Some(cap) = shape.cap {
        for (grad, capped) in grads.iter_mut().zip(capped) {
            // The slope of the cap where the score stands.
            *grad *= 1.0 - (capped / cap) * (capped / cap);
        }
    }
}

#[cfg(test)]
mod tests;
