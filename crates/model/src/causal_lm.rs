//! What the engine needs of a model: its layers one at a time.

use crate::batch::Span;
use crate::cache::KvCache;
use crate::error::Result;
use crate::shortlist::{Shortlist, likeliest};
use crate::sizes::ModelSizes;
use candle_core::{Device, Tensor};

/// A decoder-only language model that can be run one layer at a time.
///
/// `hidden` is always `[tokens, d_model]`: the spans of the step laid end to end.
pub trait CausalLm: Send + Sync {
    /// Shapes and sizes.
    fn sizes(&self) -> &ModelSizes;

    /// Where the tensors live.
    fn device(&self) -> &Device;

    /// An empty cache that may grow to `capacity[layer]` positions per row.
    ///
    /// # Errors
    /// The device has not enough memory.
    fn new_cache(&self, rows: usize, capacity: Vec<usize>) -> Result<KvCache>;

    /// Embeds the token ids of `spans`: `[tokens, d_model]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a position that the model has no vector for.
    fn embed(&self, ids: &[u32], spans: &[Span]) -> Result<Tensor>;

    /// Runs `part` of layer `index` over `hidden`. Attention writes the keys and values of `spans` to the cache.
    ///
    /// # Errors
    /// The cache has no room, or attention would read a hole.
    fn layer_part(
        &self,
        index: usize,
        part: Part,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor>;

    /// Runs both sub-layers of layer `index`.
    ///
    /// # Errors
    /// As [`layer_part`](Self::layer_part).
    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<Tensor> {
        self.layer_part(index, Part::Whole, hidden, cache, spans)
    }

    /// Writes only the keys and values that layer `index` projects from `hidden`: CALM's state propagation
    /// for a layer that `spans` skip (arXiv 2207.07061, section 3.4).
    ///
    /// # Errors
    /// The cache has no room.
    fn fill_kv(
        &self,
        index: usize,
        hidden: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
    ) -> Result<()>;

    /// Final norm and LM head: f32 logits `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn head(&self, hidden: &Tensor) -> Result<Tensor>;

    /// `count` tokens for each row of `hidden`, `[rows, d_model]`, the likeliest by the LM head or by a coarse copy of it,
    /// whose reading is [`ModelSizes::screen_bytes`].
    ///
    /// # Errors
    /// A failed tensor operation; no memory for the copy.
    fn shortlists(&self, hidden: &Tensor, count: usize) -> Result<Vec<Shortlist>> {
        let lists = likeliest(&self.head(hidden)?, count)?;
        Ok(lists.into_iter().map(Shortlist::of_ids).collect())
    }

    /// Final norm and LM head of the tokens of a list alone, one for each row of `hidden`: `[rows, d_model]`. All lists are of
    /// one length, and so are the rows of what comes back: f32 logits `[rows, count]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn head_of(&self, hidden: &Tensor, lists: &[&Shortlist]) -> Result<Tensor> {
        let logits = self.head(hidden)?;
        let picked = lists.iter().enumerate().map(|(row, list)| {
            let ids = Tensor::new(list.ids(), logits.device())?;
            Ok(logits.get(row)?.index_select(&ids, 0)?)
        });
        Ok(Tensor::stack(&picked.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// What to run of a layer.
///
/// Attention followed by the MLP is the whole layer, but for a model whose sub-layers read the same state
/// ([`ModelSizes::parallel`]). Its whole layer is `x + attention(x) + mlp(x)`; a part that is left out of it leaves
/// `x + attention(x)` or `x + mlp(x)`, and one part behind the other is another network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Attention and the MLP.
    Whole,
    /// Attention alone with its norms, added to the state.
    Attention,
    /// The MLP alone with its norms, added to the state: reads and writes no cache.
    Mlp,
}

impl Part {
    /// Whether attention is in it.
    pub const fn has_attention(self) -> bool {
        matches!(self, Part::Whole | Part::Attention)
    }

    /// Whether the MLP is in it.
    pub const fn has_mlp(self) -> bool {
        matches!(self, Part::Whole | Part::Mlp)
    }
}
