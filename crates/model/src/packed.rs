//! Weights in the layout that the products of [`crate::kernels`] and [`crate::int8`] read.

use crate::blocks::{BlockPanels, Kind, Q4_0, Q4_1, Q8_0};
use crate::checkpoint::{Checkpoint, Source};
use crate::element::Element;
use crate::error::Result;
use crate::form::Form;
use crate::int8::Activations;
use crate::kernels::{Columns, PANEL, Panels};
use crate::matrix::Matrix;
use crate::scratch::{Pool, Scratch};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::OnceLock;

/// A weight `[m, k]`: matrices of the same input, one below the other, each in its own form.
pub(crate) struct Packed {
    /// With the first of its outputs.
    parts: Vec<(usize, Box<dyn Weight>)>,
    m: usize,
    k: usize,
}

/// A weight of one form.
trait Weight: Send + Sync {
    /// Appends the values of an output.
    fn row(&self, row: usize, values: &mut Vec<f32>);

    fn matmul(&self, x: &Input<'_>, y: Columns<'_>);
}

/// Rows `[n, k]` that are multiplied with a weight, quantised once if any part of it asks for that.
struct Input<'a> {
    x: &'a [f32],
    quantised: OnceLock<Activations>,
}

impl Packed {
    /// Packs matrices of the same input while they are read, so that they are there once only. `embeds`: it is the embedding or
    /// the LM head.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn read(
        checkpoint: &Checkpoint,
        matrices: &[&Matrix],
        embeds: bool,
    ) -> Result<Self> {
        let mut stacks: Vec<(Form, Stack<'_>)> = Vec::new();
        for &matrix in matrices {
            let form = checkpoint.form(matrix, embeds)?;
            let part = (checkpoint.source_of(matrix)?, matrix);
            match stacks.last_mut() {
                // What has one form is one weight, whose panels are all full but the last.
                Some((last, stack)) if *last == form => stack.parts.push(part),
                _ => stacks.push((form, Stack { parts: vec![part] })),
            }
        }
        let mut packed = Self {
            parts: Vec::new(),
            m: 0,
            k: matrices.first().map_or(0, |matrix| matrix.columns()),
        };
        for (form, stack) in stacks {
            let rows = stack.rows();
            packed
                .parts
                .push((packed.m, stack.pack(form, packed.k, checkpoint.pool())?));
            packed.m += rows;
        }
        Ok(packed)
    }

    /// One weight of one form.
    #[cfg(test)]
    pub(crate) fn of<T: Element>(panels: Panels<T>) -> Self {
        Self {
            m: panels.m,
            k: panels.k,
            parts: vec![(0, Box::new(panels))],
        }
    }

    /// Inputs of the product.
    pub(crate) fn in_width(&self) -> usize {
        self.k
    }

    /// Outputs of the product.
    pub(crate) fn out_width(&self) -> usize {
        self.m
    }

    /// The values of these rows, which exist, in f32: `[rows, k]`.
    pub(crate) fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        let mut values = Vec::with_capacity(rows.len() * self.k);
        for &row in rows {
            let row = row as usize;
            let part = self.parts.iter().rfind(|(first, _)| *first <= row);
            if let Some((first, weight)) = part {
                weight.row(row - first, &mut values);
            }
        }
        Ok(Tensor::from_vec(
            values,
            (rows.len(), self.k),
            &Device::Cpu,
        )?)
    }

    /// `y = x w^T`; `x`: `[n, k]`, `y`: `[n, m]`.
    pub(crate) fn matmul(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len() / self.k * self.m, y.len());
        if y.is_empty() {
            return;
        }
        let x = Input {
            x,
            quantised: OnceLock::new(),
        };
        for (first, weight) in &self.parts {
            let columns = Columns {
                values: &mut y[*first..],
                stride: self.m,
            };
            weight.matmul(&x, columns);
        }
    }
}

impl<T: Element> Weight for Panels<T> {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let panel = &self.data[row / PANEL * PANEL * self.k..][..PANEL * self.k];
        let row = panel.iter().skip(row % PANEL).step_by(PANEL);
        values.extend(row.map(|value| value.widen()));
    }

    fn matmul(&self, x: &Input<'_>, y: Columns<'_>) {
        Panels::matmul(self, x.x, y);
    }
}

impl<K: Kind> Weight for BlockPanels<K> {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        BlockPanels::row(self, row, values);
    }

    fn matmul(&self, x: &Input<'_>, y: Columns<'_>) {
        let quantised = x.quantised.get_or_init(|| Activations::new(x.x));
        BlockPanels::matmul(self, quantised, y);
    }
}

/// Matrices of the same input in their file, one below the other.
struct Stack<'a> {
    parts: Vec<(Source<'a>, &'a Matrix)>,
}

impl Stack<'_> {
    fn rows(&self) -> usize {
        self.parts.iter().map(|(_, matrix)| matrix.rows()).sum()
    }

    fn pack(&self, form: Form, k: usize, pool: &Pool) -> Result<Box<dyn Weight>> {
        Ok(match form {
            Form::F32 => Box::new(self.panels::<f32>(k, pool)?),
            Form::Bf16 => Box::new(self.panels::<bf16>(k, pool)?),
            Form::F16 => Box::new(self.panels::<f16>(k, pool)?),
            Form::Q8_0 => Box::new(self.blocks::<Q8_0>(k, pool)?),
            Form::Q4_1 => Box::new(self.blocks::<Q4_1>(k, pool)?),
            Form::Q4_0 => Box::new(self.blocks::<Q4_0>(k, pool)?),
        })
    }

    /// Has those of `rows` that lie in each part read, one part after the other.
    fn gather(
        &self,
        rows: Range<usize>,
        mut read: impl FnMut(&Source<'_>, &Matrix, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        for (source, matrix) in &self.parts {
            let end = first + matrix.rows();
            let (from, to) = (rows.start.max(first), rows.end.min(end));
            if from < to {
                read(source, matrix, from - first..to - first)?;
            }
            first = end;
        }
        Ok(())
    }

    fn panels<T: Element>(&self, k: usize, pool: &Pool) -> Result<Panels<T>> {
        Panels::pack(self.rows(), k, pool, |rows, scratch| {
            scratch.wide.clear();
            self.gather(rows, |source, matrix, rows| {
                source.widen(rows, |row| matrix.place(row), scratch)
            })
        })
    }

    fn blocks<K: Kind>(&self, k: usize, pool: &Pool) -> Result<BlockPanels<K>> {
        BlockPanels::pack(self.rows(), k, pool, |rows, scratch| {
            scratch.blocks.clear();
            self.gather(rows, |source, matrix, rows| {
                source.requantise::<K>(rows, |row| matrix.place(row), scratch)
            })
        })
    }
}

/// Values that a thread packs at a time.
const BLOCK: usize = 1 << 16;

impl<T: Element> Panels<T> {
    /// Packs `m` rows of `k` values, which `read` leaves in the scratch.
    ///
    /// # Errors
    /// What `read` gives.
    pub(crate) fn pack(
        m: usize,
        k: usize,
        pool: &Pool,
        read: impl Fn(Range<usize>, &mut Scratch) -> Result<()> + Sync,
    ) -> Result<Self> {
        let mut data = T::zeros(m.div_ceil(PANEL) * PANEL * k);
        let height = (BLOCK / (PANEL * k)).max(1) * PANEL;
        let blocks = data.par_chunks_mut(height * k).enumerate();
        blocks.try_for_each(|(index, block)| -> Result<()> {
            let first = index * height;
            pool.with(|scratch| {
                read(first..m.min(first + height), scratch)?;
                let panels = block.chunks_exact_mut(PANEL * k);
                for (panel, rows) in panels.zip(scratch.wide.chunks(PANEL * k)) {
                    scatter(rows, k, panel);
                }
                Ok(())
            })
        })?;
        Ok(Self { data, k, m })
    }
}

/// Inputs of a panel that are rounded at a time.
const WIDTH: usize = 64;

/// Puts rows of `k` values, 16 or fewer, into a panel.
fn scatter<T: Element>(rows: &[f32], k: usize, panel: &mut [T]) {
    let panel = panel.as_chunks_mut::<PANEL>().0;
    for first in (0..k).step_by(WIDTH) {
        let width = WIDTH.min(k - first);
        // A column of the panel at a time, all 16 of it.
        let mut columns = [[0f32; PANEL]; WIDTH];
        for (lane, row) in rows.chunks_exact(k).enumerate() {
            for (column, value) in columns.iter_mut().zip(&row[first..first + width]) {
                column[lane] = *value;
            }
        }
        let columns = columns[..width].as_flattened();
        T::narrow(columns, panel[first..first + width].as_flattened_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, which are what they are in any type and of which all sums are exact.
    fn values(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * step) % 17) as f32 - 8.0).collect()
    }

    fn panels<T: Element>(values: &[f32], k: usize) -> Panels<T> {
        let read = |rows: Range<usize>, scratch: &mut Scratch| {
            scratch.wide.clear();
            let rows = &values[rows.start * k..rows.end * k];
            scratch.wide.extend_from_slice(rows);
            Ok(())
        };
        Panels::pack(values.len() / k, k, &Pool::default(), read).unwrap()
    }

    /// Parts that are kept in different types, the first of which ends within a panel.
    #[test]
    fn parts_of_different_forms_stand_below_one_another() {
        let (k, first, second) = (70, 21, 40);
        let weights = values((first + second) * k, 7);
        let (above, below) = weights.split_at(first * k);
        let packed = Packed {
            parts: vec![
                (0, Box::new(panels::<f32>(above, k))),
                (first, Box::new(panels::<bf16>(below, k))),
            ],
            m: first + second,
            k,
        };
        let x = values(3 * k, 5);
        let mut y = vec![0.0; 3 * packed.m];
        packed.matmul(&x, &mut y);
        let product = |x: &[f32], row: &[f32]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>();
        let rows = || weights.chunks(k);
        let wanted = x
            .chunks(k)
            .flat_map(|x| rows().map(move |row| product(x, row)));
        assert_eq!(y, wanted.collect::<Vec<_>>());
        for ids in [[0, 20], [21, 60]] {
            let found = packed.rows(&ids).unwrap().to_vec2::<f32>().unwrap();
            for (found, id) in found.iter().zip(ids) {
                assert_eq!(found, &weights[id as usize * k..][..k], "row {id}");
            }
        }
    }
}
