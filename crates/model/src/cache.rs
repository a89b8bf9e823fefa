//! The KV cache: a block per layer that grows with its rows, addressed by absolute position, holes known.

use crate::batch::Span;
use crate::cache_layer::{KV_CACHE, KV_CACHE_LOWER, LayerKv, Storage};
use crate::error::{ModelError, Result};
use crate::host_kv::{HostKv, KvType};
use crate::memory;
use crate::ops;
use crate::tables::{SpanTables, StepTables};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

/// How the key and value of a (layer, position) came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Provenance {
    /// Never written: a hole.
    #[default]
    Empty,
    /// The layer ran on this position.
    Computed,
    /// The layer was skipped; key and value were projected from the state that passed it by
    /// (CALM state propagation, arXiv 2207.07061).
    Propagated,
    /// The layer was skipped; key and value are those of the nearest lower layer that has them.
    Copied,
    /// The layer was skipped; no later position sees this one here.
    Masked,
    /// The layer ran on this position in a later step, when a later position needed it. Exact.
    Deferred,
}

impl Provenance {
    /// One character for a trace: `.` never written, `c` computed, `p` propagated, `y` copied, `m` masked, `d` deferred.
    pub const fn letter(self) -> char {
        match self {
            Self::Empty => '.',
            Self::Computed => 'c',
            Self::Propagated => 'p',
            Self::Copied => 'y',
            Self::Masked => 'm',
            Self::Deferred => 'd',
        }
    }

    /// Whether key and value are there, but not what the layer would have computed.
    pub const fn is_approximate(self) -> bool {
        matches!(self, Self::Propagated | Self::Copied)
    }

    /// Whether it stands for a layer that was skipped and not made up for.
    pub const fn is_hole(self) -> bool {
        self.is_approximate() || matches!(self, Self::Masked)
    }
}

/// Reads of a (layer, position) that was skipped: one for each query and layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoleReads {
    /// Keys and values read that are not what the layer would have computed.
    pub approximate: u64,
    /// Positions that a query should have seen and did not.
    pub masked: u64,
}

/// Positions that a layer gets memory for at least.
const FIRST_ROOM: usize = 64;

/// Shape of a cache, the same for every layer but for the number of positions.
#[derive(Debug, Clone)]
pub struct CacheShape {
    /// Rows of the batch.
    pub rows: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions that a row may come to hold in each layer; 0 for a layer that no decode step will run.
    pub capacity: Vec<usize>,
    /// Positions that a query of each layer sees, its own among them; shorter than `capacity` where the last layers see all.
    pub windows: Vec<Option<usize>>,
}

/// Keys and values of all layers for a batch. Slot equals absolute position in every layer, so RoPE
/// and ALiBi never see a layer's own count, and a layer that was skipped simply has a gap.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerKv>,
    shape: CacheShape,
    element_bytes: usize,
    hole_reads: HoleReads,
    tables: StepTables,
}

impl KvCache {
    /// A cache in plain memory for the fused CPU layers.
    pub(crate) fn host(shape: CacheShape, kept: KvType) -> Self {
        let bytes = kept.dtype().size_in_bytes();
        Self::new(shape, bytes, || Storage::Host(HostKv::new(kept)))
    }

    /// A cache of tensors on `device`.
    pub(crate) fn device(shape: CacheShape, dtype: DType, device: &Device) -> Result<Self> {
        // candle refuses empty tensors in places, so a layer without room holds one position nobody reads.
        let dims = (shape.rows, shape.n_kv_heads, 1, shape.head_dim);
        let unused = ops::zeros(dims, dtype, device)?;
        Ok(Self::new(shape, dtype.size_in_bytes(), || {
            Storage::Device {
                k: unused.clone(),
                v: unused.clone(),
            }
        }))
    }

    fn new(shape: CacheShape, element_bytes: usize, storage: impl Fn() -> Storage) -> Self {
        Self {
            layers: shape
                .capacity
                .iter()
                .enumerate()
                .map(|(layer, &limit)| LayerKv {
                    window: shape.windows.get(layer).copied().flatten(),
                    ..LayerKv::new(shape.rows, limit, storage())
                })
                .collect(),
            shape,
            element_bytes,
            hole_reads: HoleReads::default(),
            tables: StepTables::default(),
        }
    }

    /// Takes memory for `positions` of each row, or as many as a layer may come to hold. What is claimed beyond is made room
    /// for as it comes, at the price of a copy.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn reserve(&mut self, positions: usize) -> Result<()> {
        let wanted = |kv: &LayerKv| positions.min(kv.limit).max(kv.capacity);
        let more = self.layers.iter().map(|kv| wanted(kv) - kv.capacity);
        let more = self.bytes_of(more);
        if self.layers.iter().all(LayerKv::on_host) {
            memory::require(KV_CACHE, more, KV_CACHE_LOWER)?;
        }
        let width = (self.shape.n_kv_heads, self.shape.head_dim);
        for kv in &mut self.layers {
            let capacity = wanted(kv);
            if capacity > kv.capacity {
                kv.grow(capacity, width)?;
            }
        }
        Ok(())
    }

    /// Bytes of keys and values that there is memory for.
    pub fn bytes(&self) -> u64 {
        let bytes = self.bytes_of(self.layers.iter().map(|kv| kv.capacity));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Bytes of so many positions in each layer.
    fn bytes_of(&self, positions: impl Iterator<Item = usize>) -> u128 {
        let shape = &self.shape;
        let row = 2 * shape.n_kv_heads * shape.head_dim * self.element_bytes;
        let rows = row as u128 * shape.rows as u128;
        positions.fold(0, |sum: u128, positions| {
            sum.saturating_add(rows.saturating_mul(positions as u128))
        })
    }

    /// The shape it was made with.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// How `position` of `row` in `layer` was filled.
    pub fn provenance(&self, layer: usize, row: usize, position: usize) -> Provenance {
        let kv = &self.layers[layer];
        if position < kv.capacity {
            kv.provenance[row * kv.capacity + position]
        } else {
            Provenance::Empty
        }
    }

    /// Holes that attention has read, or should have.
    pub fn hole_reads(&self) -> HoleReads {
        self.hole_reads
    }

    /// Takes back the reads that a layer has just counted for `span`, whose outcome nobody uses.
    pub fn discount_reads(&mut self, layer: usize, span: Span) {
        let reads = self.layers[layer].hole_reads(span);
        self.hole_reads.approximate -= reads.approximate;
        self.hole_reads.masked -= reads.masked;
    }

    /// How many positions of `row` hold something in `layer`, from 0 on.
    pub fn filled(&self, layer: usize, row: usize) -> usize {
        self.layers[layer].filled[row]
    }

    /// Whether `layer` has room for anything.
    pub fn has_layer(&self, layer: usize) -> bool {
        self.layers[layer].limit > 0
    }

    /// Forgets positions `len..` of `row` in every layer (a rejected draft, a cut-off).
    pub fn truncate(&mut self, row: usize, len: usize) {
        for layer in 0..self.layers.len() {
            self.truncate_layer(layer, row, len);
        }
    }

    /// Forgets positions `len..` of `row` in `layer`.
    pub fn truncate_layer(&mut self, layer: usize, row: usize, len: usize) {
        self.layers[layer].truncate(row, len);
    }

    /// Says how `position` of `row` in `layer`, which is written already, came to be.
    pub fn mark(&mut self, layer: usize, row: usize, position: usize, how: Provenance) {
        let kv = &mut self.layers[layer];
        if position < kv.filled[row] {
            let at = row * kv.capacity + position;
            kv.set(row, at..at + 1, how);
        }
    }

    /// Hides the positions of `spans` from every later query of `layer`.
    ///
    /// # Errors
    /// The cache has no room, or there is a hole below.
    pub fn mask(&mut self, layer: usize, spans: &[Span]) -> Result<()> {
        self.claim(layer, spans, Provenance::Masked)?;
        let kv = &mut self.layers[layer];
        if kv.capacity > 0 && kv.masked.is_empty() {
            kv.masked = kv
                .provenance
                .iter()
                .map(|&how| how == Provenance::Masked)
                .collect();
        }
        Ok(())
    }

    /// Gives `layer` the keys and values that the nearest lower layer holds for the positions of `spans`, as the
    /// released code of arXiv 2404.06954 does for the layers that it skips.
    ///
    /// # Errors
    /// No lower layer holds them, the cache has no room, or there is a hole below.
    pub fn copy_below(&mut self, layer: usize, spans: &[Span]) -> Result<()> {
        self.claim(layer, spans, Provenance::Copied)?;
        if self.layers[layer].capacity == 0 {
            return Ok(());
        }
        let width = (self.shape.n_kv_heads, self.shape.head_dim);
        for &span in spans {
            let source = (0..layer).rev().find(|&below| {
                let how = self.provenance(below, span.row, span.start);
                how != Provenance::Empty && how != Provenance::Masked
            });
            let (Some(source), true) = (source, span.len == 1) else {
                return Err(ModelError::Hole {
                    layer,
                    row: span.row,
                    position: span.start,
                });
            };
            let (below, above) = self.layers.split_at_mut(layer);
            above[0].copy_position(&below[source], span, width)?;
        }
        Ok(())
    }

    /// Makes row `i` hold what row `parents[i]` held, as a beam search asks for. Layers that hold nothing are not
    /// touched; gives the number of positions that were copied.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn reorder(&mut self, parents: &[usize]) -> Result<u64> {
        let moved: Vec<(usize, usize)> = parents
            .iter()
            .copied()
            .enumerate()
            .filter(|(row, parent)| row != parent)
            .collect();
        let mut copied = 0;
        if moved.is_empty() {
            return Ok(copied);
        }
        let width = (self.shape.n_kv_heads, self.shape.head_dim);
        let device = self.layers.iter().find_map(LayerKv::device);
        let order = device.map(|device| {
            let mut order: Vec<u32> = (0..self.shape.rows as u32).collect();
            for &(row, parent) in &moved {
                order[row] = parent as u32;
            }
            ops::upload(order, self.shape.rows, device)
        });
        let order = order.transpose()?;
        for kv in self.layers.iter_mut().filter(|kv| kv.capacity > 0) {
            copied += kv.reorder(&moved, order.as_ref(), width)?;
        }
        Ok(copied)
    }

    /// Key and value at `position` of `row` in `layer`, in f32: `[n_kv_heads * head_dim]` each.
    ///
    /// # Errors
    /// Nothing is held there.
    pub fn key_value(
        &self,
        layer: usize,
        row: usize,
        position: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let kv = &self.layers[layer];
        if position >= kv.filled[row] {
            return Err(ModelError::Hole {
                layer,
                row,
                position,
            });
        }
        let (heads, head_dim) = (self.shape.n_kv_heads, self.shape.head_dim);
        match &kv.storage {
            Storage::Host(kept) => {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for head in 0..heads {
                    let at = ((row * heads + head) * kv.capacity + position) * head_dim;
                    let [key, value] = kept.read(at..at + head_dim);
                    keys.extend(key);
                    values.extend(value);
                }
                Ok((keys, values))
            }
            Storage::Device { k, v } => {
                let read = |x: &Tensor| -> Result<Vec<f32>> {
                    let values = x.get(row)?.narrow(1, position, 1)?;
                    Ok(ops::read(&ops::cast(&values, DType::F32)?)?)
                };
                Ok((read(k)?, read(v)?))
            }
        }
    }

    /// A layer, and what it shares with the other layers that `spans` run through.
    pub(crate) fn layer_mut(
        &mut self,
        layer: usize,
        spans: &[Span],
    ) -> (&mut LayerKv, &mut SpanTables) {
        (&mut self.layers[layer], self.tables.of(spans))
    }

    /// Makes room for `spans` in `layer` and marks them. Refuses a span that would leave a hole below it:
    /// every later token of the row would read that hole.
    pub(crate) fn claim(&mut self, layer: usize, spans: &[Span], how: Provenance) -> Result<()> {
        let kv = &self.layers[layer];
        if kv.limit == 0 {
            return Ok(());
        }
        let ends = spans.iter().map(|span| span.start + span.len);
        let end = ends.max().unwrap_or(0);
        if end > kv.limit {
            return Err(ModelError::CacheFull {
                layer,
                capacity: kv.limit,
                position: end - 1,
            });
        }
        if end > kv.capacity {
            self.reserve(end.max(kv.capacity.saturating_mul(2)).max(FIRST_ROOM))?;
        }
        let kv = &mut self.layers[layer];
        for span in spans {
            let end = span.start + span.len;
            if kv.filled[span.row] < span.start {
                return Err(ModelError::Hole {
                    layer,
                    row: span.row,
                    position: kv.filled[span.row],
                });
            }
            // What stands behind the start was computed from what is replaced.
            kv.truncate(span.row, span.start);
            if how == Provenance::Computed {
                let reads = kv.hole_reads(*span);
                self.hole_reads.approximate += reads.approximate;
                self.hole_reads.masked += reads.masked;
            }
            kv.filled[span.row] = end;
            let base = span.row * kv.capacity;
            kv.set(span.row, base + span.start..base + end, how);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
