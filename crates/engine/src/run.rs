//! The state of one call of [`Engine::generate`](crate::Engine::generate).

use crate::error::{EngineError, Result};
use crate::exact::Exact;
use crate::generation::{Generation, RowOutput};
use crate::laps::{Lap, Laps};
use crate::options::Options;
use candle_core::Tensor;
use skipbench_model::{CausalLm, KvCache, ops};
use skipbench_strategy::{BatchMode, BatchShape, KvFill, LayerSet, Needs, Prefill, Strategy};
use std::ops::ControlFlow;
use std::time::Instant;

/// Generated tokens for which the KV cache has room from the start. Beyond, it grows as rows do: answers may end long before
/// the tokens that they may have.
const FIRST_TOKENS: usize = 512;

/// Takes what a row has so far, its newest token last.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(usize, &RowOutput) -> ControlFlow<()>;

/// One call of [`Engine::generate`](crate::Engine::generate).
pub(crate) struct Run<'a> {
    pub(crate) model: &'a dyn CausalLm,
    pub(crate) strategy: &'a mut dyn Strategy,
    /// Prompt `i` is row `i` of the cache, or its beams are the rows from `i * beams` on.
    pub(crate) prompts: &'a [Vec<u32>],
    pub(crate) options: &'a Options,
    /// Of each row, where rows have options of their own.
    pub(crate) rows: Option<&'a [Options]>,
    /// Hears of each token, and says whether the row goes on.
    pub(crate) listener: Option<Listener<'a>>,
    pub(crate) needs: Needs,
    /// The layers that the strategy has announced.
    pub(crate) reachable: LayerSet,
    pub(crate) cache: KvCache,
    /// Per row of the cache, in the order of their positions.
    pub(crate) pending: Vec<Vec<Pending>>,
    /// Per row of the cache and layer: positions that the layer ran ahead of need since the row itself last ran it; empty
    /// unless rows wait and layers are deferred.
    pub(crate) ahead: Vec<Vec<u64>>,
    pub(crate) exact: Exact,
    pub(crate) laps: Laps,
    pub(crate) out: Generation,
}

/// A position that a row left before its last layer, under [`KvFill::Deferred`].
#[derive(Clone)]
pub(crate) struct Pending {
    /// The layer that it runs next.
    pub(crate) next: usize,
    /// `[1, d_model]`.
    pub(crate) state: Tensor,
}

impl<'a> Run<'a> {
    /// Before the prompts have gone in.
    pub(crate) fn new(
        model: &'a dyn CausalLm,
        prompts: &'a [Vec<u32>],
        strategy: &'a mut dyn Strategy,
        options: &'a Options,
    ) -> Result<Self> {
        let n_layers = model.sizes().n_layers;
        let shape = BatchShape {
            prompt_lens: prompts
                .iter()
                .flat_map(|prompt| std::iter::repeat_n(prompt.len(), options.beams()))
                .collect(),
            n_layers,
            max_new_tokens: options.planned_tokens.unwrap_or(options.max_new_tokens),
        };
        strategy.begin(&shape)?;
        let rows = shape.prompt_lens.len();
        let reachable = strategy.reachable();
        if let Some(layer) = reachable.iter().find(|&layer| layer >= n_layers) {
            return Err(EngineError::NotReachable { layer });
        }
        let needs = strategy.needs();
        // Room for the longest row in the layers whose attention decode steps may run, none in the others.
        let longest = shape.prompt_lens.iter().max().copied().unwrap_or(0);
        let decodes = options.max_new_tokens > 1;
        let capacity = (0..n_layers)
            .map(|layer| match decodes && reachable.has_attention(layer) {
                true => longest.saturating_add(options.max_new_tokens - 1),
                false => 0,
            })
            .collect();
        let mut cache = model.new_cache(rows, capacity)?;
        cache.reserve(longest.saturating_add(FIRST_TOKENS))?;
        Ok(Self {
            model,
            strategy,
            prompts,
            options,
            rows: None,
            listener: None,
            needs,
            reachable,
            pending: vec![Vec::new(); rows],
            ahead: match (needs.batch_mode, needs.kv_fill) {
                (BatchMode::Sync, KvFill::Deferred) => vec![vec![0; n_layers]; rows],
                _ => Vec::new(),
            },
            exact: Exact::default(),
            laps: Laps::default(),
            out: Generation {
                rows: vec![RowOutput::default(); prompts.len()],
                ..Generation::default()
            },
            cache,
        })
    }

    /// What was asked of a row.
    pub(crate) fn asked(&self, row: usize) -> &'a Options {
        self.rows.map_or(self.options, |rows| &rows[row])
    }

    /// The layers that the prompts run through.
    pub(crate) fn prompt_layers(&self) -> LayerSet {
        match self.needs.prefill {
            Prefill::Full => LayerSet::full(self.model.sizes().n_layers),
            Prefill::Skip => self.reachable,
        }
    }

    /// Logits `[rows, vocab_size]` of `hidden`: `[rows, d_model]`.
    pub(crate) fn head(&mut self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.dim(0)?;
        self.out.ledger.head(self.model.sizes(), rows);
        self.laps.end(Lap::Rows);
        let logits = self.model.head(hidden)?;
        self.laps.end(Lap::Head);
        Ok(logits)
    }

    /// What the logits behind each of `places`, (row of the cache, position), gave, or an error where they were no numbers.
    pub(crate) fn numbers<T>(
        &self,
        values: Vec<Option<T>>,
        places: impl IntoIterator<Item = (usize, usize)>,
        layer: Option<usize>,
    ) -> Result<Vec<T>> {
        let values = values.into_iter().zip(places);
        values
            .map(|(value, place)| value.ok_or_else(|| self.not_numbers("logits", place, layer)))
            .collect()
    }

    pub(crate) fn not_numbers(
        &self,
        what: &'static str,
        (row, position): (usize, usize),
        layer: Option<usize>,
    ) -> EngineError {
        let row = row / self.options.beams();
        EngineError::NotNumbers {
            what,
            row,
            token: position + 2 - self.prompts[row].len(),
            layer,
        }
    }

    pub(crate) fn last_token(&self, row: usize) -> u32 {
        self.out.rows[row].tokens.last().copied().unwrap_or(0)
    }

    /// What was generated and what it cost.
    pub(crate) fn finish(mut self) -> Generation {
        self.out.peak_kv_bytes = self.cache.bytes();
        self.out.hole_reads = self.cache.hole_reads();
        self.out.spent = self.laps.spent;
        // What was never needed after all.
        self.out.ledger.waste(self.ahead.iter().flatten().sum());
        self.out
    }
}

/// Wall-clock time with the device idle at both ends.
pub(crate) struct Clock(Instant);

impl Clock {
    /// As soon as the device is idle.
    pub(crate) fn start(model: &dyn CausalLm) -> Result<Self> {
        ops::wait(model.device())?;
        Ok(Self::resume())
    }

    /// At once: a clock has just been stopped, and nothing was asked of the device since.
    pub(crate) fn resume() -> Self {
        Self(Instant::now())
    }

    /// As soon as the device is idle.
    pub(crate) fn stop(self, model: &dyn CausalLm) -> Result<f64> {
        ops::wait(model.device())?;
        Ok(self.stop_idle())
    }

    /// At once: the last that the device was asked for has been read, so it is idle.
    pub(crate) fn stop_idle(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
