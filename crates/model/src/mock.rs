//! A model without weights whose every number can be worked out by hand, for testing what drives a model.

use crate::batch::{Span, token_count};
use crate::cache::{CacheShape, KvCache, Provenance};
use crate::causal_lm::{CausalLm, Part};
use crate::error::{ModelError, Result};
use crate::host_kv::KvType;
use crate::sizes::{LayerBytes, ModelSizes};
use candle_core::{Device, Tensor};

/// The hidden state `[tokens, 1]` starts as the token id and every sub-layer adds a half to it, so the state before the
/// head tells how many layers ran; the head votes for `state % vocab_size`.
#[derive(Debug)]
pub struct MockModel {
    sizes: ModelSizes,
}

impl MockModel {
    /// A mock of `n_layers` layers over `vocab_size` tokens.
    pub fn new(n_layers: usize, vocab_size: usize) -> Self {
        Self {
            sizes: ModelSizes {
                n_layers,
                d_model: 1,
                vocab_size,
                n_kv_heads: 1,
                head_dim: 1,
                max_positions: Some(4096),
                switch_length: None,
                windows: Vec::new(),
                parallel: false,
                q_width: 1,
                attention_weights: 10,
                kv_projection_weights: 2,
                mlp_weights: 15,
                head_weights: 12,
                layer_bytes: vec![
                    LayerBytes {
                        attention: 40,
                        kv_projection: 8,
                        mlp: 60,
                    };
                    n_layers
                ],
                head_bytes: 48,
                screen_bytes: 48,
                state_bytes: 4,
                kv_bytes: 4,
            },
        }
    }
}

impl CausalLm for MockModel {
    fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> Result<KvCache> {
        let shape = CacheShape {
            rows,
            n_kv_heads: 1,
            head_dim: 1,
            capacity,
            windows: Vec::new(),
        };
        Ok(KvCache::host(shape, KvType::F32))
    }

    fn embed(&self, ids: &[u32], _: &[Span]) -> Result<Tensor> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.sizes.vocab_size) {
            return Err(ModelError::TokenOutOfRange {
                id,
                vocab_size: self.sizes.vocab_size,
            });
        }
        let values: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
        Ok(Tensor::from_vec(values, (ids.len(), 1), &Device::Cpu)?)
    }

    fn layer_part(
        &self,
        index: usize,
        part: Part,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor> {
        debug_assert_eq!(hidden.dim(0)?, token_count(spans));
        if part.has_attention() {
            cache.claim(index, spans, Provenance::Computed)?;
        }
        Ok((hidden + if part == Part::Whole { 1.0 } else { 0.5 })?)
    }

    fn fill_kv(
        &self,
        index: usize,
        _hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<()> {
        cache.claim(index, spans, Provenance::Propagated)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let states = hidden.flatten_all()?.to_vec1::<f32>()?;
        let vocab = self.sizes.vocab_size;
        let mut logits = vec![0f32; states.len() * vocab];
        for (state, logits) in states.iter().zip(logits.chunks_exact_mut(vocab)) {
            logits[*state as usize % vocab] = 10.0;
        }
        Ok(Tensor::from_vec(
            logits,
            (states.len(), vocab),
            &Device::Cpu,
        )?)
    }
}
