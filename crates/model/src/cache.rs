//! The KV cache: pre-allocated per layer, addressed by absolute position, holes known.

use crate::batch::Span;
use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Tensor};

/// How the key and value of a (layer, position) came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Provenance {
    /// Never written: a hole.
    #[default]
    Empty,
    /// The layer ran on this position.
    Computed,
    /// The layer was skipped; key and value were projected from the exit hidden state
    /// (CALM state propagation, arXiv 2207.07061).
    Propagated,
}

/// Shape of a cache, the same for every layer but for the number of positions.
#[derive(Debug, Clone)]
pub struct CacheShape {
    /// Rows of the batch.
    pub rows: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions to allocate in each layer; 0 for a layer that no decode step will run.
    pub capacity: Vec<usize>,
}

/// Where a layer's keys and values lie.
#[derive(Debug)]
pub(crate) enum Storage {
    /// `[rows, n_kv_heads, capacity, head_dim]` in plain memory, for the fused CPU layer.
    Host {
        /// Keys.
        k: Vec<f32>,
        /// Values.
        v: Vec<f32>,
    },
    /// `[rows, n_kv_heads, capacity, head_dim]` tensors on the model's device.
    Device {
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
    },
}

#[derive(Debug)]
pub(crate) struct LayerKv {
    pub(crate) capacity: usize,
    pub(crate) storage: Storage,
    /// `[rows]`: positions `0..filled` of the row hold a key.
    filled: Vec<usize>,
    /// `[rows, capacity]`.
    provenance: Vec<Provenance>,
}

/// Keys and values of all layers for a batch. Slot equals absolute position in every layer, so RoPE
/// and ALiBi never see a layer's own count, and a layer that was skipped simply has a gap.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerKv>,
    shape: CacheShape,
    bytes: u64,
}

impl KvCache {
    /// A cache in plain memory for the fused CPU layers.
    pub(crate) fn host(shape: CacheShape) -> Self {
        let width = shape.n_kv_heads * shape.head_dim;
        let layers = shape
            .capacity
            .iter()
            .map(|&capacity| LayerKv::host(shape.rows, capacity, width))
            .collect();
        let bytes = shape.elements() * 4;
        Self {
            layers,
            shape,
            bytes,
        }
    }

    /// A cache of tensors on `device`.
    pub(crate) fn device(shape: CacheShape, dtype: DType, device: &Device) -> Result<Self> {
        let mut layers = Vec::with_capacity(shape.capacity.len());
        for &capacity in &shape.capacity {
            // candle refuses empty tensors in places, so an unused layer holds one position nobody reads.
            let dims = (
                shape.rows,
                shape.n_kv_heads,
                capacity.max(1),
                shape.head_dim,
            );
            let storage = Storage::Device {
                k: Tensor::zeros(dims, dtype, device)?,
                v: Tensor::zeros(dims, dtype, device)?,
            };
            layers.push(LayerKv::new(shape.rows, capacity, storage));
        }
        let bytes = shape.elements() * dtype.size_in_bytes() as u64;
        Ok(Self {
            layers,
            shape,
            bytes,
        })
    }

    /// Bytes allocated for keys and values.
    pub fn bytes(&self) -> u64 {
        self.bytes
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

    /// Forgets positions `len..` of `row` in every layer (a rejected draft, a cut-off).
    pub fn truncate(&mut self, row: usize, len: usize) {
        for kv in &mut self.layers {
            kv.filled[row] = kv.filled[row].min(len);
            let first = row * kv.capacity + len.min(kv.capacity);
            kv.provenance[first..(row + 1) * kv.capacity].fill(Provenance::Empty);
        }
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerKv {
        &mut self.layers[layer]
    }

    /// Makes room for `spans` in `layer` and marks them. Refuses a span that would leave a hole below it:
    /// every later token of the row would read that hole.
    pub(crate) fn claim(&mut self, layer: usize, spans: &[Span], how: Provenance) -> Result<()> {
        let kv = &mut self.layers[layer];
        if kv.capacity == 0 {
            return Ok(());
        }
        for span in spans {
            let end = span.start + span.len;
            if end > kv.capacity {
                return Err(ModelError::CacheFull {
                    layer,
                    capacity: kv.capacity,
                    position: end - 1,
                });
            }
            if kv.filled[span.row] < span.start {
                return Err(ModelError::Hole {
                    layer,
                    row: span.row,
                    position: kv.filled[span.row],
                });
            }
            kv.filled[span.row] = end;
            let base = span.row * kv.capacity;
            kv.provenance[base + span.start..base + end].fill(how);
        }
        Ok(())
    }
}

impl LayerKv {
    /// In plain memory; `width` is `n_kv_heads * head_dim`.
    pub(crate) fn host(rows: usize, capacity: usize, width: usize) -> Self {
        let len = rows * capacity * width;
        let storage = Storage::Host {
            k: vec![0.0; len],
            v: vec![0.0; len],
        };
        Self::new(rows, capacity, storage)
    }

    fn new(rows: usize, capacity: usize, storage: Storage) -> Self {
        Self {
            capacity,
            storage,
            filled: vec![0; rows],
            provenance: vec![Provenance::Empty; rows * capacity],
        }
    }
}

impl CacheShape {
    fn elements(&self) -> u64 {
        let per_position = 2 * self.rows * self.n_kv_heads * self.head_dim;
        self.capacity
            .iter()
            .map(|&positions| (per_position * positions) as u64)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> KvCache {
        KvCache::host(CacheShape {
            rows: 2,
            n_kv_heads: 1,
            head_dim: 4,
            capacity: vec![8, 0],
        })
    }

    #[test]
    fn a_gap_below_a_span_is_refused() {
        let mut cache = cache();
        cache
            .claim(0, &Span::prompts([3, 2]), Provenance::Computed)
            .unwrap();
        let error = cache.claim(0, &[Span::token(1, 3)], Provenance::Computed);
        assert!(matches!(
            error,
            Err(ModelError::Hole {
                layer: 0,
                row: 1,
                position: 2
            })
        ));
    }

    #[test]
    fn truncate_forgets_only_the_tail_of_one_row() {
        let mut cache = cache();
        cache
            .claim(0, &Span::prompts([5, 5]), Provenance::Computed)
            .unwrap();
        cache.truncate(1, 2);
        assert_eq!(cache.provenance(0, 1, 1), Provenance::Computed);
        assert_eq!(cache.provenance(0, 1, 2), Provenance::Empty);
        assert_eq!(cache.provenance(0, 0, 4), Provenance::Computed);
        cache
            .claim(0, &[Span::token(1, 2)], Provenance::Propagated)
            .unwrap();
        assert_eq!(cache.provenance(0, 1, 2), Provenance::Propagated);
    }

    #[test]
    fn a_layer_without_capacity_takes_no_memory() {
        assert_eq!(cache().bytes(), 2 * 2 * 4 * 8 * 4);
    }

    #[test]
    fn a_full_cache_names_the_position() {
        let error = cache().claim(0, &Span::prompts([9]), Provenance::Computed);
        assert!(matches!(
            error,
            Err(ModelError::CacheFull { position: 8, .. })
        ));
    }
}
