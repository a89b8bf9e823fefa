//! Weights in the layout that the products of [`crate::kernels`] read.

use crate::checkpoint::Checkpoint;
use crate::element::Element;
use crate::error::Result;
use crate::kernels::{PANEL, Panels};
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// A weight `[m, k]` of some element type.
pub(crate) struct Packed(Box<dyn Matrix>);

trait Matrix: Send + Sync {
    fn shape(&self) -> (usize, usize);
    fn row(&self, row: usize, values: &mut Vec<f32>);
    fn matmul(&self, x: &[f32], y: &mut [f32]);
}

impl Packed {
    /// Whether weights of this type can be packed.
    pub(crate) fn takes(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
    }

    /// Packs weights of the same input, `[_, k]` on the CPU, one below the other.
    pub(crate) fn stack(parts: &[&Tensor]) -> Result<Self> {
        Ok(Self(match parts[0].dtype() {
            DType::BF16 => Box::new(Panels::<bf16>::stack(parts)?),
            DType::F16 => Box::new(Panels::<f16>::stack(parts)?),
            _ => Box::new(Panels::<f32>::stack(parts)?),
        }))
    }

    /// Packs the tensor `name`, `[m, k]`, while it is read, so that it is there once only.
    pub(crate) fn read(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Self> {
        Ok(Self(match checkpoint.dtype() {
            DType::BF16 => Box::new(Panels::<bf16>::read(checkpoint, name, shape)?),
            DType::F16 => Box::new(Panels::<f16>::read(checkpoint, name, shape)?),
            _ => Box::new(Panels::<f32>::read(checkpoint, name, shape)?),
        }))
    }

    /// Inputs of the product.
    pub(crate) fn in_width(&self) -> usize {
        self.0.shape().1
    }

    /// Outputs of the product.
    pub(crate) fn out_width(&self) -> usize {
        self.0.shape().0
    }

    /// The values of these rows: `[rows, k]`.
    pub(crate) fn rows(&self, rows: &[u32]) -> Vec<f32> {
        let mut values = Vec::with_capacity(rows.len() * self.in_width());
        for &row in rows {
            self.0.row(row as usize, &mut values);
        }
        values
    }

    /// `y = x w^T`; `x`: `[n, k]`, `y`: `[n, m]`.
    pub(crate) fn matmul(&self, x: &[f32], y: &mut [f32]) {
        self.0.matmul(x, y);
    }
}

impl<T: Element> Matrix for Panels<T> {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let panel = &self.data[row / PANEL * PANEL * self.k..][..PANEL * self.k];
        let row = panel.iter().skip(row % PANEL).step_by(PANEL);
        values.extend(row.map(|value| value.widen()));
    }

    fn matmul(&self, x: &[f32], y: &mut [f32]) {
        Panels::matmul(self, x, y);
    }
}

/// Values that a thread packs at a time.
const BLOCK: usize = 1 << 18;

impl<T: Element> Panels<T> {
    fn stack(parts: &[&Tensor]) -> Result<Self> {
        let k = parts[0].dim(1)?;
        let parts = parts.iter().map(|part| part.contiguous());
        let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
        let held: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
        let mut rows = Vec::new();
        for (storage, layout) in &held {
            let candle_core::Storage::Cpu(values) = &**storage else {
                unreachable!("what is packed was loaded to the CPU");
            };
            let values = &values.as_slice::<T>()?[layout.start_offset()..];
            rows.extend(values[..layout.shape().elem_count()].chunks_exact(k));
        }
        Ok(Self::of(&rows, k))
    }

    /// Packs rows of `k` values each.
    pub(crate) fn of(rows: &[&[T]], k: usize) -> Self {
        let mut panels = Self::zeros(rows.len(), k);
        let each = panels.data.par_chunks_exact_mut(PANEL * k);
        each.zip(rows.par_chunks(PANEL))
            .for_each(|(panel, rows)| fill(panel, rows));
        panels
    }

    fn read(checkpoint: &Checkpoint, name: &str, [m, k]: [usize; 2]) -> Result<Self> {
        let mut panels = Self::zeros(m, k);
        let height = (BLOCK / (PANEL * k)).max(1) * PANEL;
        let blocks = panels.data.par_chunks_mut(height * k).enumerate();
        blocks.try_for_each(|(index, block)| -> Result<()> {
            let first = index * height;
            let rows = first..m.min(first + height);
            let rows = checkpoint.rows::<T>(name, &[m, k], rows)?;
            let rows: Vec<&[T]> = rows.chunks_exact(k).collect();
            for (panel, rows) in block.chunks_exact_mut(PANEL * k).zip(rows.chunks(PANEL)) {
                fill(panel, rows);
            }
            Ok(())
        })?;
        Ok(panels)
    }

    fn zeros(m: usize, k: usize) -> Self {
        let data = T::zeros(m.div_ceil(PANEL) * PANEL * k);
        Self { data, k, m }
    }
}

/// Writes up to 16 rows to their panel, `[k, 16]`.
fn fill<T: Copy>(panel: &mut [T], rows: &[&[T]]) {
    for (lane, row) in rows.iter().enumerate() {
        for (to, value) in panel.iter_mut().skip(lane).step_by(PANEL).zip(*row) {
            *to = *value;
        }
    }
}
