//! A few tokens of the vocabulary in place of all: a list of the likeliest, and the LM head for them alone.

use crate::element::Element;
use crate::error::Result;
use crate::kernels::{Columns, PANEL, Panels};
use crate::memory;
use crate::ops;
use crate::packed::Packed;
use candle_core::Tensor;
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A few tokens of the vocabulary, with what the LM head needs to read them alone.
pub struct Shortlist {
    ids: Vec<u32>,
    rows: Rows,
}

/// The rows of the LM head of a list's tokens, `[ids.len(), d_embed]`.
enum Rows {
    /// The whole head is read instead.
    None,
    /// For the fused head, in f32.
    Panels(Panels<f32>),
    /// For the composed head.
    Tensor(Tensor),
}

impl Shortlist {
    /// These tokens, for a model that always reads the whole head.
    pub(crate) fn of_ids(ids: Vec<u32>) -> Self {
        let rows = Rows::None;
        Self { ids, rows }
    }

    /// These tokens with their rows of a composed head.
    pub(crate) fn of_tensor(ids: Vec<u32>, rows: Tensor) -> Self {
        let rows = Rows::Tensor(rows);
        Self { ids, rows }
    }

    /// The tokens, no two alike.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows of a composed head.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match &self.rows {
            Rows::Tensor(rows) => Some(rows),
            _ => None,
        }
    }

    /// Products of the fused head with `state`, `[d_embed]`: bit for bit those that the whole head gives.
    pub(crate) fn products(&self, state: &[f32]) -> Vec<f32> {
        let mut products = vec![0.0; self.ids.len()];
        if let Rows::Panels(rows) = &self.rows {
            rows.matmul(state, columns(&mut products, rows.m));
        }
        products
    }
}

/// A copy of the LM head in a byte a weight, which tells most of the likeliest tokens from the others at a quarter of
/// the reading of f32. What it says of them is read again from the head itself.
pub(crate) struct Screen {
    /// `[vocab_size, d_embed]`: [`ZERO`] stands for 0.
    codes: Panels<u8>,
    /// `[vocab_size]`: what one step of a row's codes is worth.
    steps: Vec<f32>,
}

/// The code of a weight of 0.
const ZERO: f32 = 128.0;

impl Screen {
    pub(crate) fn of(head: &Packed) -> Result<Self> {
        let (m, k) = (head.out_width(), head.in_width());
        memory::require(
            "the list of candidates of an early exit",
            (m as u128).saturating_mul(k as u128),
            "memory that other programs use, or give `check: full`",
        )?;
        let data = vec![0; m.div_ceil(PANEL) * PANEL * k];
        let mut codes = Panels::<u8> { data, k, m };
        let mut steps = vec![0f32; m];
        let panels = codes.data.par_chunks_exact_mut(PANEL * k);
        let panels = panels.zip(steps.par_chunks_mut(PANEL)).enumerate();
        panels.try_for_each(|(panel, (codes, steps))| -> Result<()> {
            let first = (panel * PANEL) as u32;
            let ids: Vec<u32> = (first..first + steps.len() as u32).collect();
            let rows = values(head, &ids)?;
            for (lane, row) in rows.chunks_exact(k).enumerate() {
                let largest = row.iter().fold(0f32, |max, weight| max.max(weight.abs()));
                steps[lane] = largest / 127.0;
                let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                let column = codes.iter_mut().skip(lane).step_by(PANEL);
                for (code, weight) in column.zip(row) {
                    *code = (weight * scale + ZERO).round() as u8;
                }
            }
            Ok(())
        })?;
        Ok(Self { codes, steps })
    }

    /// The `count` likeliest tokens of each state by this copy, with their rows of `head`; `states`: `[rows, d_embed]`.
    pub(crate) fn lists(
        &self,
        head: &Packed,
        states: &[f32],
        count: usize,
    ) -> Result<Vec<Shortlist>> {
        let (m, k) = (self.codes.m, self.codes.k);
        let mut logits = vec![0.0; states.len() / k * m];
        self.codes.matmul(states, columns(&mut logits, m));
        let rows = states.chunks_exact(k).zip(logits.chunks_exact_mut(m));
        rows.map(|(state, logits)| {
            let zero = ZERO * state.iter().sum::<f32>();
            for (logit, step) in logits.iter_mut().zip(&self.steps) {
                *logit = (*logit - zero) * step;
            }
            let ids = largest(logits, count);
            Ok(Shortlist {
                rows: Rows::Panels(packed(&values(head, &ids)?, k)),
                ids,
            })
        })
        .collect()
    }
}

/// The values of some rows: `[rows.len(), k]`.
fn values(head: &Packed, rows: &[u32]) -> Result<Vec<f32>> {
    Ok(head.rows(rows)?.flatten_all()?.to_vec1()?)
}

/// All columns of a result that is `width` wide.
fn columns(values: &mut [f32], width: usize) -> Columns<'_> {
    Columns {
        values,
        stride: width,
    }
}

/// Rows `[_, k]` as panels, on this thread: they are too few to wake another one for.
fn packed(rows: &[f32], k: usize) -> Panels<f32> {
    let m = rows.len() / k;
    let mut data = vec![0.0; m.div_ceil(PANEL) * PANEL * k];
    let panels = data.chunks_exact_mut(PANEL * k);
    for (panel, rows) in panels.zip(rows.chunks(PANEL * k)) {
        for (lane, row) in rows.chunks_exact(k).enumerate() {
            let to = panel.iter_mut().skip(lane).step_by(PANEL);
            to.zip(row).for_each(|(to, weight)| *to = *weight);
        }
    }
    Panels { data, k, m }
}

/// The `count` likeliest tokens of each row of `logits`: `[rows, vocab_size]`.
pub(crate) fn likeliest(logits: &Tensor, count: usize) -> Result<Vec<Vec<u32>>> {
    let width = logits.dim(1)?.max(1);
    let logits = ops::read::<f32>(logits)?;
    let rows = logits.chunks_exact(width);
    Ok(rows.map(|logits| largest(logits, count)).collect())
}

/// Values that are looked at together.
const CHUNK: usize = 64;

/// The indices of the `count` largest values, the largest first; of equal ones those of lower index. What is not a number
/// counts as larger than any.
pub(crate) fn largest(values: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(values.len());
    let rank = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
    let mut found: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (chunk, values) in values.chunks(CHUNK).enumerate() {
        let beyond = |value: &f32| *value > least || value.is_nan();
        let any = values.iter().fold(false, |any, value| any | beyond(value));
        if !any && found.len() == count {
            continue;
        }
        for (at, &value) in values.iter().enumerate() {
            let value = rank(value);
            if found.len() == count && value <= least {
                continue;
            }
            let place = found.partition_point(|&(other, _)| other >= value);
            found.insert(place, (value, (chunk * CHUNK + at) as u32));
            found.truncate(count);
            if found.len() == count {
                least = found.last().map_or(least, |&(value, _)| value);
            }
        }
    }
    found.into_iter().map(|(_, index)| index).collect()
}

impl Element for u8 {
    fn zeros(len: usize) -> Vec<Self> {
        vec![0; len]
    }

    fn narrow(values: &[f32], to: &mut [Self]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = value.round() as u8;
        }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_avx512(at: *const Self) -> __m512 {
        // SAFETY: the caller's.
        let bytes = unsafe { _mm_loadu_si128(at.cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load_avx2(at: *const Self) -> __m256 {
        // SAFETY: the caller's.
        let bytes = unsafe { _mm_loadl_epi64(at.cast()) };
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_largest_are_those_of_a_sort(values in proptest::collection::vec(-9i8..9, 0..300), count in 0usize..80) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let mut order: Vec<u32> = (0..values.len() as u32).collect();
            order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
            order.truncate(count);
            prop_assert_eq!(largest(&values, count), order);
        }
    }

    #[test]
    fn what_is_no_number_is_in_every_list() {
        let mut values = vec![1.0; 200];
        (values[150], values[170]) = (f32::NAN, -f32::NAN);
        assert_eq!(largest(&values, 3), [150, 170, 0]);
        assert_eq!(largest(&[f32::NEG_INFINITY; 3], 2), [0, 1]);
    }

    /// Rows of very different size, one of them zero: each list is the head's own, and so is each logit of it.
    #[test]
    fn a_list_holds_the_likeliest_tokens_and_their_own_logits() {
        let (m, k, rows) = (500, 24, 3);
        let weights = Tensor::randn(0f32, 1.0, (m, k), &Device::Cpu).unwrap();
        let sizes: Vec<f32> = (0..m).map(|row| (row % 7) as f32 * 0.3).collect();
        let sizes = Tensor::from_vec(sizes, (m, 1), &Device::Cpu).unwrap();
        let weights = weights.broadcast_mul(&sizes).unwrap();
        let weights = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let head = Packed::of(packed(&weights, k));
        let states = Tensor::randn(0f32, 1.0, (rows, k), &Device::Cpu).unwrap();
        let states = states.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut logits = vec![0.0; rows * m];
        head.matmul(&states, &mut logits);
        let screen = Screen::of(&head).unwrap();
        let lists = screen.lists(&head, &states, 32).unwrap();
        for ((list, state), logits) in lists.iter().zip(states.chunks(k)).zip(logits.chunks(m)) {
            let best = largest(logits, 16);
            assert!(best.iter().all(|id| list.ids().contains(id)));
            let wanted: Vec<f32> = list.ids().iter().map(|&id| logits[id as usize]).collect();
            assert_eq!(list.products(state), wanted);
        }
    }

    /// Each weight of the coarse copy is the head's within half a step of its row.
    #[test]
    fn a_screen_is_the_head_within_half_a_step() {
        let (m, k) = (40, 24);
        let weights = Tensor::randn(0f32, 1.0, (m, k), &Device::Cpu).unwrap();
        let weights = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let screen = Screen::of(&Packed::of(packed(&weights, k))).unwrap();
        for (row, weights) in weights.chunks(k).enumerate() {
            let panel = &screen.codes.data[row / PANEL * PANEL * k..];
            let codes = panel.iter().skip(row % PANEL).step_by(PANEL);
            let step = screen.steps[row];
            for (code, weight) in codes.zip(weights) {
                let found = (f32::from(*code) - ZERO) * step;
                assert!((found - weight).abs() <= step * 0.501, "{found} {weight}");
            }
        }
    }
}
