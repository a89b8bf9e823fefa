//! Attention over the cache, in f32 on the CPU, for a block of tokens at a time: keys and values come to the processor once for
//! all of the block. No more scores are held than those of a block, so memory grows with the length and not with its square.
//!
//! What a token gets is computed in one order, from the first position that it sees to the last, whatever the block: it is
//! bit for bit the same decoded alone, in a batch and in a prompt.

use crate::batch::{Span, token_count};
use crate::cache_layer::{LayerKv, Storage};
use crate::element::Element;
use crate::host_kv::{HostKv, Pair};
use crate::pointwise::soft_cap_body;
use crate::simd::{Isa, dot_with, exp_below, isa, largest, multiply_add};
use crate::threads;
use std::ops::Range;

/// Consecutive tokens of one row, and of their heads those that share a key head.
struct Block<'a, T> {
    /// The queries, from the first of the first token on: a token's stand behind one another, the next token's `stride` further.
    q: &'a [f32],
    stride: usize,
    /// The first of the heads.
    head: usize,
    tokens: usize,
    /// Where the first token stands.
    start: usize,
    /// Positions that a token sees, its own among them.
    window: Option<usize>,
    /// Keys and values of the row in the key head: `[positions, head_dim]`.
    k: &'a [T],
    v: &'a [T],
    head_dim: usize,
    /// Of the positions up to the last token's, those that nobody sees; empty if all are seen.
    masked: &'a [bool],
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

/// Attention of every token of `spans`, whose keys and values lie in `layer`; `q` and the result: `[tokens, n_heads, head_dim]`.
pub(crate) fn attend(
    q: &[f32],
    layer: &LayerKv,
    spans: &[Span],
    heads: (usize, usize),
    how: &Scoring,
) -> Vec<f32> {
    let Storage::Host(kept) = &layer.storage else {
        unreachable!("a fused layer is given the cache that its model made");
    };
    match kept {
        HostKv::F32(kept) => attend_over(q, layer, kept, spans, heads, how),
        HostKv::Bf16(kept) => attend_over(q, layer, kept, spans, heads, how),
        HostKv::F16(kept) => attend_over(q, layer, kept, spans, heads, how),
    }
}

fn attend_over<T: Element>(
    q: &[f32],
    layer: &LayerKv,
    Pair { k, v }: &Pair<T>,
    spans: &[Span],
    (n_kv_heads, head_dim): (usize, usize),
    how: &Scoring,
) -> Vec<f32> {
    let (group, capacity) = (how.group * head_dim, layer.capacity);
    let stride = n_kv_heads * group;
    let mut out = vec![0.0; token_count(spans) * stride];
    let blocks = blocks(spans, how.group);
    let seen = |span: &Span| {
        let end = span.start + span.len;
        span.len * (end - layer.first_seen(end - 1))
    };
    let products: usize = blocks.iter().map(|(_, span)| seen(span)).sum();
    let to = Out(out.as_mut_ptr());
    // The blocks that see most come first, so that no thread is left with them in the end.
    threads::share(blocks.len() * n_kv_heads, 2 * products * stride, |tasks| {
        let mut scratch = Scratch::default();
        for task in tasks {
            let (first, span) = blocks[blocks.len() - 1 - task / n_kv_heads];
            let head = task % n_kv_heads;
            let offset = first * stride + head * group;
            let keys = (span.row * n_kv_heads + head) * capacity * head_dim..;
            let block = Block {
                q: &q[offset..],
                stride,
                head: head * how.group,
                tokens: span.len,
                start: span.start,
                window: layer.window,
                k: &k[keys.clone()],
                v: &v[keys],
                head_dim,
                masked: layer.masked(span.row, span.start + span.len),
            };
            let found = attend_block(&block, how, &mut scratch);
            for (token, found) in found.chunks_exact(group).enumerate() {
                // SAFETY: these heads of these tokens are in no other task, and they lie in `out`, which is there until all
                // tasks are done.
                unsafe {
                    let to = to.at(offset + token * stride);
                    std::ptr::copy_nonoverlapping(found.as_ptr(), to, group);
                }
            }
        }
    });
    out
}

/// Where threads write, each elsewhere.
struct Out(*mut f32);

// SAFETY: no two threads write to the same place.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// So many values lie behind the first.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

/// The spans in blocks, each with the place of its first token among all.
fn blocks(spans: &[Span], group: usize) -> Vec<(usize, Span)> {
    let mut blocks = Vec::new();
    let mut place = 0;
    for span in spans {
        let (mut start, end) = (span.start, span.start + span.len);
        while start < end {
            let room = SCORES / ((start + TOKENS) * group);
            let len = room.clamp(1, TOKENS).min(end - start);
            blocks.push((
                place,
                Span {
                    start,
                    len,
                    ..*span
                },
            ));
            place += len;
            start += len;
        }
    }
    blocks
}

/// Memory that one block after the other uses.
#[derive(Default)]
struct Scratch {
    /// `[tokens, group, positions]`
    scores: Vec<f32>,
    /// `[tokens, group]`: what the weights of the values sum to.
    sums: Vec<f32>,
    /// `[tokens, group, head_dim]`
    out: Vec<f32>,
}

/// Positions whose keys or values stay close while the queries of a block pass over them.
const NEAR: usize = 64;

/// Scores that a block may have.
const SCORES: usize = 1 << 16;

/// Tokens of a block at most.
const TOKENS: usize = 16;

impl<T> Block<'_, T> {
    /// The positions that a token sees.
    fn sight(&self, token: usize) -> Range<usize> {
        let end = self.start + token + 1;
        end - self.window.unwrap_or(end).min(end)..end
    }

    /// The positions that any token sees.
    fn all_sight(&self) -> Range<usize> {
        self.sight(0).start..self.start + self.tokens
    }

    /// Of the positions that a token sees, those in `part`.
    fn sight_in(&self, token: usize, part: &Range<usize>) -> Range<usize> {
        let sight = self.sight(token);
        let from = sight.start.max(part.start);
        from..sight.end.min(part.end).max(from)
    }
}

/// Attention of a block: `[tokens, group, head_dim]`.
fn attend_block<'s, T: Element>(
    block: &Block<'_, T>,
    how: &Scoring,
    scratch: &'s mut Scratch,
) -> &'s [f32] {
    match isa() {
        // SAFETY: the features were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::attend(block, how, scratch) },
        // SAFETY: the features were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(block, how, scratch) },
        Isa::Portable => body::<T, Plain<false>, false, 2, 1>(block, how, scratch),
    }
    &scratch.out
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<T: Element>(block: &Block<'_, T>, how: &Scoring, scratch: &mut Scratch) {
    body::<T, Plain<true>, true, 2, 2>(block, how, scratch);
}

/// The two products of attention by some instruction set, each sum in one order whatever the set.
trait Products {
    /// Products of a query, `[head_dim]`, with keys, `[positions, head_dim]`.
    fn with_keys<T: Element>(q: &[f32], keys: &[T], out: &mut [f32]);

    /// Adds `C` registers, from `column` on, of weighted values, `[positions, head_dim]`, to `R` rows of `out`.
    fn add_values<T: Element, const R: usize, const C: usize>(
        weights: [&[f32]; R],
        values: &[T],
        head_dim: usize,
        column: usize,
        out: &mut [f32],
    );
}

/// Loops that the compiler vectorises.
struct Plain<const FMA: bool>;

impl<const FMA: bool> Products for Plain<FMA> {
    #[inline(always)]
    fn with_keys<T: Element>(q: &[f32], keys: &[T], out: &mut [f32]) {
        products_body::<FMA, T>(q, keys, out);
    }

    #[inline(always)]
    fn add_values<T: Element, const R: usize, const C: usize>(
        weights: [&[f32]; R],
        values: &[T],
        head_dim: usize,
        column: usize,
        out: &mut [f32],
    ) {
        add_columns::<FMA, T, R, C>(weights, values, head_dim, column, out);
    }
}

/// `R` queries and `C` registers of a value at a time.
#[inline(always)]
fn body<T: Element, P: Products, const FMA: bool, const R: usize, const C: usize>(
    block: &Block<'_, T>,
    how: &Scoring,
    scratch: &mut Scratch,
) {
    let (group, head_dim, all) = (how.group, block.head_dim, block.all_sight());
    let queries = block.tokens * group;
    let Scratch { scores, sums, out } = scratch;
    scores.resize(queries * all.len(), 0.0);
    sums.resize(queries, 0.0);
    out.clear();
    out.resize(queries * head_dim, 0.0);

    let parts = || {
        all.clone()
            .step_by(NEAR)
            .map(|at| at..all.end.min(at + NEAR))
    };
    for part in parts() {
        for query in 0..queries {
            let (token, head) = (query / group, query % group);
            let seen = block.sight_in(token, &part);
            let q = &block.q[token * block.stride + head * head_dim..][..head_dim];
            let keys = &block.k[seen.start * head_dim..seen.end * head_dim];
            let row = &mut scores[query * all.len()..][seen.start - all.start..][..seen.len()];
            P::with_keys(q, keys, row);
        }
    }
    for query in 0..queries {
        let (token, head) = (query / group, block.head + query % group);
        let seen = block.sight(token);
        let row = &mut scores[query * all.len()..][seen.start - all.start..][..seen.len()];
        let masked = block.masked.get(seen.clone()).unwrap_or_default();
        sums[query] = weigh::<FMA>(row, how, head, seen.start, masked);
    }
    let values = Values {
        scores,
        width: all.len(),
        first: all.start,
        v: block.v,
        head_dim,
    };
    for part in parts() {
        for first in (0..queries).step_by(R) {
            let rows = first..queries.min(first + R);
            let seen = |query: usize| block.sight_in(query / group, &part);
            // What all of them see is between what the last begins with and the first ends with.
            let from = seen(rows.end - 1).start;
            let to = seen(first).end.max(from);
            if rows.len() < R || to == from {
                for query in rows {
                    values.add::<P, FMA, 1, C>(query, seen(query), out);
                }
                continue;
            }
            for query in rows.clone() {
                values.add::<P, FMA, 1, C>(query, seen(query).start..from, out);
            }
            values.add::<P, FMA, R, C>(first, from..to, out);
            for query in rows {
                values.add::<P, FMA, 1, C>(query, to..seen(query).end, out);
            }
        }
    }
    for (out, sum) in out.chunks_exact_mut(head_dim).zip(sums) {
        let scale = 1.0 / *sum;
        out.iter_mut().for_each(|out| *out *= scale);
    }
}

/// Products of a query, `[head_dim]`, with keys, `[positions, head_dim]`.
#[inline(always)]
fn products_body<const FMA: bool, T: Element>(q: &[f32], keys: &[T], out: &mut [f32]) {
    for (out, key) in out.iter_mut().zip(keys.chunks_exact(q.len())) {
        *out = dot_with::<FMA, T>(q, key);
    }
}

const LANES: usize = 16;

/// Turns the products of a query of `head` with the keys from `first` on into weights; gives their sum.
#[inline(always)]
fn weigh<const FMA: bool>(
    scores: &mut [f32],
    how: &Scoring,
    head: usize,
    first: usize,
    masked: &[bool],
) -> f32 {
    for score in scores.iter_mut() {
        *score *= how.scale;
    }
    if let Some(cap) = how.cap {
        soft_cap_body::<FMA>(scores, cap);
    }
    if let Some(slope) = how.slopes.get(head) {
        for (position, score) in (first..).zip(scores.iter_mut()) {
            *score += slope * position as f32;
        }
    }
    for (score, masked) in scores.iter_mut().zip(masked) {
        // Its weight comes out as nothing beside any other.
        if *masked {
            *score = f32::NEG_INFINITY;
        }
    }
    let highest = largest(scores);
    let sum = exp_below::<FMA>(scores, highest);
    if masked.is_empty() {
        return sum;
    }
    let mut sum = 0.0;
    for (score, masked) in scores.iter_mut().zip(masked) {
        *score = if *masked { 0.0 } else { *score };
        sum += *score;
    }
    sum
}

/// The values of a block with the weights that its queries give them.
struct Values<'a, T> {
    /// `[queries, width]`, from position `first` on.
    scores: &'a [f32],
    width: usize,
    first: usize,
    v: &'a [T],
    head_dim: usize,
}

impl<T: Element> Values<'_, T> {
    /// Adds the weighted values of `positions` to the `R` rows of `out` from `query` on, one position after the other. Not a
    /// closure: one that is not inlined would be compiled for another instruction set.
    #[inline(always)]
    fn add<P: Products, const FMA: bool, const R: usize, const C: usize>(
        &self,
        query: usize,
        positions: Range<usize>,
        out: &mut [f32],
    ) {
        if positions.is_empty() {
            return;
        }
        let d = self.head_dim;
        let mut weights: [&[f32]; R] = [&[]; R];
        for (row, weights) in weights.iter_mut().enumerate() {
            let at = (query + row) * self.width + positions.start - self.first;
            *weights = &self.scores[at..at + positions.len()];
        }
        let values = &self.v[positions.start * d..positions.end * d];
        let out = &mut out[query * d..(query + R) * d];
        let mut column = 0;
        while column + C * LANES <= d {
            P::add_values::<T, R, C>(weights, values, d, column, out);
            column += C * LANES;
        }
        while column + LANES <= d {
            P::add_values::<T, R, 1>(weights, values, d, column, out);
            column += LANES;
        }
        if column == d {
            return;
        }
        for (row, weights) in weights.iter().enumerate() {
            let out = &mut out[row * d..(row + 1) * d];
            for (weight, value) in weights.iter().zip(values.chunks_exact(d)) {
                for (out, value) in out[column..].iter_mut().zip(&value[column..]) {
                    *out = multiply_add::<FMA>(*weight, value.widen(), *out);
                }
            }
        }
    }
}

#[inline(always)]
fn add_columns<const FMA: bool, T: Element, const R: usize, const C: usize>(
    weights: [&[f32]; R],
    values: &[T],
    head_dim: usize,
    column: usize,
    out: &mut [f32],
) {
    let mut sums = [[[0f32; LANES]; C]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        let out = &out[row * head_dim + column..][..C * LANES];
        for (sums, out) in sums.iter_mut().zip(out.as_chunks::<LANES>().0) {
            *sums = *out;
        }
    }
    let positions = values.len() / head_dim;
    let weights = weights.map(|weights| &weights[..positions]);
    for at in 0..positions {
        let value = &values[at * head_dim + column..][..C * LANES];
        let value = value.as_chunks::<LANES>().0;
        let mut wide = [[0f32; LANES]; C];
        for register in 0..C {
            // SAFETY: `FMA` is given where the features were detected.
            wide[register] = unsafe { T::lanes::<FMA>(&value[register]) };
        }
        for row in 0..R {
            let weight = weights[row][at];
            for register in 0..C {
                for lane in 0..LANES {
                    let sum = &mut sums[row][register][lane];
                    *sum = multiply_add::<FMA>(weight, wide[register][lane], *sum);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let out = &mut out[row * head_dim + column..][..C * LANES];
        for (sums, out) in sums.iter().zip(out.as_chunks_mut::<LANES>().0) {
            *out = *sums;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;
