//! What the layers of a step share: tables that depend on where its tokens stand, made and uploaded once.

use crate::batch::Span;
use crate::cache_layer::LayerKv;
use crate::composed::QUERIES;
use crate::error::Result;
use crate::ops;
use crate::rope::Rope;
use candle_core::{DType, Device, Tensor};

/// Sets of spans whose tables are kept: rows of a step may run different layers, and come together again.
const KEPT: usize = 8;

/// Tables by the spans that they are for, the latest last.
#[derive(Debug, Default)]
pub(crate) struct StepTables(Vec<SpanTables>);

impl StepTables {
    /// The tables of `spans`, empty at first.
    pub(crate) fn of(&mut self, spans: &[Span]) -> &mut SpanTables {
        let place = self.0.iter().rposition(|tables| tables.spans == spans);
        let place = place.unwrap_or_else(|| {
            if self.0.len() == KEPT {
                self.0.remove(0);
            }
            self.0.push(SpanTables::new(spans));
            self.0.len() - 1
        });
        &mut self.0[place]
    }
}

/// The tables of one set of spans, each made when the first layer asks for it.
#[derive(Debug, Default)]
pub(crate) struct SpanTables {
    spans: Vec<Span>,
    /// A token for each of some rows.
    one_each: bool,
    /// By the place of their scheme among the model's.
    turns: Vec<(usize, Turns)>,
    /// By the place of their scheme among the model's.
    rope: Vec<(usize, (Tensor, Tensor))>,
    alibi: Option<Tensor>,
    rows: Option<Tensor>,
    sources: Option<Tensor>,
    slots: Option<Tensor>,
    masks: Vec<(Sight, Tensor)>,
}

/// RoPE on the host: `[tokens, pairs]` each.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

/// What queries see: so many positions from 0 on each, of these the last `window`, but those that are hidden there,
/// `[queries, longest]`; empty where none is.
#[derive(Debug, PartialEq)]
struct Sight {
    lens: Vec<usize>,
    /// `None` as well where no query has more positions than the window.
    window: Option<usize>,
    hidden: Vec<bool>,
}

impl SpanTables {
    fn new(spans: &[Span]) -> Self {
        let mut rows: Vec<usize> = spans.iter().map(|span| span.row).collect();
        rows.sort_unstable();
        rows.dedup();
        Self {
            spans: spans.to_vec(),
            one_each: rows.len() == spans.len() && spans.iter().all(|span| span.len == 1),
            ..Self::default()
        }
    }

    /// Whether the spans are single tokens of several rows.
    pub(crate) fn are_one_each(&self) -> bool {
        self.one_each && self.spans.len() > 1
    }

    /// Cosines and sines of every token's angles, for the fused layers; `scheme`: the place of `rope` among the model's.
    pub(crate) fn turns(&mut self, scheme: usize, rope: &Rope) -> &Turns {
        let place = self.turns.iter().position(|(made, _)| *made == scheme);
        let place = place.unwrap_or_else(|| {
            let (cos, sin) = rope.turns(&self.spans);
            self.turns.push((scheme, Turns { cos, sin }));
            self.turns.len() - 1
        });
        &self.turns[place].1
    }

    /// The same as tensors, `[tokens, pairs]` each.
    pub(crate) fn rope(
        &mut self,
        scheme: usize,
        rope: &Rope,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        if let Some((_, made)) = self.rope.iter().find(|(made, _)| *made == scheme) {
            return Ok(made.clone());
        }
        let (mut turns, sin) = rope.turns(&self.spans);
        let pairs = rope.inv_freq.len();
        let shape = (2, turns.len() / pairs, pairs);
        turns.extend(sin);
        let turns = ops::cast(&ops::upload(turns, shape, device)?, dtype)?;
        let made = (turns.get(0)?, turns.get(1)?);
        self.rope.push((scheme, made.clone()));
        Ok(made)
    }

    /// `slope * key position`: `[1, n_kv_heads, group, 1, longest]`; `slopes`: `[n_kv_heads, group, 1, 1]`. The distance form
    /// differs by a constant per query, which softmax does not see.
    pub(crate) fn alibi(&mut self, slopes: &Tensor) -> Result<Tensor> {
        if let Some(alibi) = &self.alibi {
            return Ok(alibi.clone());
        }
        let ends = self.spans.iter().map(|span| span.start + span.len);
        let longest = ends.max().unwrap_or(0);
        let keys = (0..longest).map(|at| at as f32).collect();
        let keys = ops::upload(keys, (1, 1, 1, longest), slopes.device())?;
        let alibi = ops::zip(slopes, &keys, Tensor::broadcast_mul)?.unsqueeze(0)?;
        Ok(self.alibi.insert(alibi).clone())
    }

    /// The cache row of each span, `[spans]`; `None` where they are all `n_rows` rows of the cache in order.
    pub(crate) fn rows(&mut self, n_rows: usize, device: &Device) -> Result<Option<Tensor>> {
        if self.are_all(n_rows) {
            return Ok(None);
        }
        if self.rows.is_none() {
            let rows: Vec<u32> = self.spans.iter().map(|span| span.row as u32).collect();
            self.rows = Some(ops::upload(rows, self.spans.len(), device)?);
        }
        Ok(self.rows.clone())
    }

    /// The span of each of the `n_rows` rows of the cache, `[n_rows]`, and any other for a row that has none; `None` where they
    /// are all rows in order.
    pub(crate) fn sources(&mut self, n_rows: usize, device: &Device) -> Result<Option<Tensor>> {
        if self.are_all(n_rows) {
            return Ok(None);
        }
        if self.sources.is_none() {
            let mut sources = vec![0u32; n_rows];
            for (place, span) in self.spans.iter().enumerate() {
                sources[span.row] = place as u32;
            }
            self.sources = Some(ops::upload(sources, n_rows, device)?);
        }
        Ok(self.sources.clone())
    }

    /// Where [`are_one_each`](Self::are_one_each), the position of each row's token, and none for a row without one:
    /// `[n_rows, heads, 1, head_dim]`.
    pub(crate) fn slots(
        &mut self,
        (n_rows, heads, head_dim): (usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        if let Some(slots) = &self.slots {
            return Ok(slots.clone());
        }
        let mut slots = vec![u32::MAX; n_rows];
        for span in &self.spans {
            slots[span.row] = span.start as u32;
        }
        let slots = ops::upload(slots, (n_rows, 1, 1, 1), device)?;
        let slots = ops::packed(&slots.broadcast_as((n_rows, heads, 1, head_dim))?)?;
        Ok(self.slots.insert(slots).clone())
    }

    /// Whether there is a span for each row of a cache, in order.
    fn are_all(&self, n_rows: usize) -> bool {
        let mut rows = self.spans.iter().enumerate();
        self.spans.len() == n_rows && rows.all(|(place, span)| span.row == place)
    }

    /// What is added to the scores of one token per span: 0 where it sees a key of `kv` and minus infinity elsewhere,
    /// `[spans, longest]`; `None` where each sees every key that one of them sees.
    pub(crate) fn token_mask(&mut self, kv: &LayerKv, device: &Device) -> Result<Option<Tensor>> {
        let queries = self.spans.iter().map(|span| (span.row, span.start + 1));
        let sight = Sight::of(kv, queries.collect());
        match sight.is_even() {
            true => Ok(None),
            false => self.mask(sight, device).map(Some),
        }
    }

    /// The same for the tokens of a part of one of the spans, no more than [`QUERIES`]: `[part.len, part.start + part.len]`.
    pub(crate) fn span_mask(
        &mut self,
        part: Span,
        kv: &LayerKv,
        device: &Device,
    ) -> Result<Tensor> {
        let len = part.start + part.len;
        let queries = (part.start..len).map(|at| (part.row, at + 1));
        let sight = Sight::of(kv, queries.collect());
        if !sight.hidden.is_empty() {
            return self.mask(sight, device);
        }
        // Without holes it is the distance that counts, so all parts are corners of one band.
        let ends = self.spans.iter().map(|span| span.start + span.len);
        let longest = ends.max().unwrap_or(len);
        let rows = self.spans.iter().map(|span| span.len).max();
        let rows = rows.unwrap_or(part.len).min(QUERIES);
        let band = Sight {
            lens: (longest + 1 - rows..=longest).collect(),
            window: kv.window.filter(|&window| window < longest),
            hidden: Vec::new(),
        };
        let band = self
            .mask(band, device)?
            .narrow(0, rows - part.len, part.len)?;
        Ok(band.narrow(1, longest - len, len)?)
    }

    fn mask(&mut self, sight: Sight, device: &Device) -> Result<Tensor> {
        if let Some((_, mask)) = self.masks.iter().find(|(seen, _)| *seen == sight) {
            return Ok(mask.clone());
        }
        let longest = sight.lens.iter().max().copied().unwrap_or(0);
        let mut values = vec![f32::NEG_INFINITY; sight.lens.len() * longest];
        for (values, &len) in values.chunks_exact_mut(longest.max(1)).zip(&sight.lens) {
            let first = sight.window.map_or(0, |window| len.saturating_sub(window));
            values[first..len].fill(0.0);
        }
        for (value, &hidden) in values.iter_mut().zip(&sight.hidden) {
            if hidden {
                *value = f32::NEG_INFINITY;
            }
        }
        let mask = ops::upload(values, (sight.lens.len(), longest), device)?;
        self.masks.push((sight, mask.clone()));
        Ok(mask)
    }
}

impl Sight {
    /// `queries`: (row, positions that it may see).
    fn of(kv: &LayerKv, queries: Vec<(usize, usize)>) -> Self {
        let longest = queries.iter().map(|&(_, len)| len).max().unwrap_or(0);
        let mut hidden = Vec::new();
        // A layer without room holds no holes either.
        let holes = |&(row, len): &(usize, usize)| !kv.masked(row, len).is_empty();
        if kv.capacity > 0 && queries.iter().any(holes) {
            hidden.resize(queries.len() * longest, false);
            for (&(row, len), hidden) in queries.iter().zip(hidden.chunks_exact_mut(longest)) {
                let masked = kv.masked(row, len);
                hidden[..masked.len()].copy_from_slice(masked);
            }
        }
        Self {
            lens: queries.into_iter().map(|(_, len)| len).collect(),
            window: kv.window.filter(|&window| window < longest),
            hidden,
        }
    }

    /// Whether all queries see the same positions, none of them hidden.
    fn is_even(&self) -> bool {
        self.hidden.is_empty() && self.lens.windows(2).all(|pair| pair[0] == pair[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, CausalLm, Decoder, KvCache, WeightType};
    use candle_core::TensorId;
    use std::path::Path;

    fn load(name: &str) -> Decoder {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let (device, weights) = (Device::Cpu, Some(WeightType::F32));
        Decoder::load(&fixtures.join(name), &device, weights, Backend::Composed).unwrap()
    }

    /// The tables that have been made for `spans`.
    fn made(cache: &mut KvCache, spans: &[Span]) -> Vec<TensorId> {
        let (_, tables) = cache.layer_mut(0, spans);
        let rope = tables.rope.iter().flat_map(|(_, (cos, sin))| [cos, sin]);
        let single = tables.alibi.iter().chain(&tables.rows);
        let single = single.chain(&tables.sources).chain(&tables.slots);
        let masks = tables.masks.iter().map(|(_, mask)| mask);
        rope.chain(single).chain(masks).map(Tensor::id).collect()
    }

    /// Runs a pass and gives the tables that there are after each layer.
    fn pass(model: &Decoder, cache: &mut KvCache, spans: &[Span]) -> Vec<Vec<TensorId>> {
        let tokens = crate::token_count(spans);
        let ids: Vec<u32> = (0..tokens as u32).map(|id| 3 + id).collect();
        let mut hidden = model.embed(&ids, spans).unwrap();
        let layers = 0..model.sizes().n_layers;
        layers
            .map(|layer| {
                hidden = model.layer(layer, &hidden, cache, spans).unwrap();
                made(cache, spans)
            })
            .collect()
    }

    /// What the first layer has made is what the last one reads, in a prefill, in a step of some of the rows and behind a hole.
    #[test]
    fn a_step_makes_its_tables_once() {
        // RoPE has a cosine and a sine, ALiBi a bias; then the mask, and in a step of some rows where they are read and written.
        for (name, position) in [("llama1", 2), ("bloom", 1)] {
            let model = load(name);
            let n_layers = model.sizes().n_layers;
            let mut cache = model.new_cache(3, vec![20; n_layers]).unwrap();
            let step = |position| [Span::token(0, position), Span::token(2, position + 2)];
            for (spans, count) in [
                (Span::prompts([4, 2, 6]), position + 1),
                (step(4).to_vec(), position + 4),
            ] {
                let tables = pass(&model, &mut cache, &spans);
                assert_eq!(tables[0].len(), count, "{name}");
                assert!(tables.iter().all(|now| *now == tables[0]), "{name}");
            }
            // A position that two layers hide from row 0 takes one more mask for both.
            let hole = [Span::token(0, 5)];
            for layer in 0..n_layers {
                match layer {
                    2 | 3 => cache.mask(layer, &hole).unwrap(),
                    _ => cache
                        .claim(layer, &hole, crate::Provenance::Computed)
                        .unwrap(),
                }
            }
            let spans = [Span::token(0, 6), Span::token(2, 7)];
            let tables = pass(&model, &mut cache, &spans);
            let counts: Vec<usize> = tables.iter().map(Vec::len).collect();
            let (plain, holed) = (position + 4, position + 5);
            assert_eq!(counts, [plain, plain, holed, holed, holed, holed], "{name}");
            assert!(
                tables.iter().all(|now| now[..plain] == tables[0][..]),
                "{name}"
            );
        }
    }

    /// A row has one slot in a step, so tokens of one row that come apart are written one by one.
    #[test]
    fn two_tokens_of_one_row_are_both_kept() {
        let model = load("llama1");
        let first_keys = |spans: &[Span]| {
            let n_layers = model.sizes().n_layers;
            let mut cache = model.new_cache(1, vec![4; n_layers]).unwrap();
            pass(&model, &mut cache, spans);
            [0, 1].map(|position| cache.key_value(0, 0, position).unwrap())
        };
        let together = Span {
            row: 0,
            start: 0,
            len: 2,
        };
        let apart = [Span::token(0, 0), Span::token(0, 1)];
        assert_eq!(first_keys(&apart), first_keys(&[together]));
    }

    #[test]
    fn tables_of_steps_long_past_are_let_go() {
        let mut tables = StepTables::default();
        for position in 0..100 {
            let spans = [Span::token(0, position)];
            assert_eq!(tables.of(&spans).spans, spans);
            tables.of(&[Span::token(1, position)]);
            assert_eq!(tables.of(&spans).spans, spans);
        }
        assert_eq!(tables.0.len(), KEPT);
    }
}
