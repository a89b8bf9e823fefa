//! The timing pass.

use super::block::{Block, Times};
use super::speedup::speedup;
use crate::error::Result;
use crate::generate::Engine;
use crate::options::{Beam, Options};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skipbench_machine::EnergyMeter;
use skipbench_strategy::{Strategy, StrategySpec};

/// What to time.
#[derive(Debug, Clone)]
pub struct TimingPlan {
    /// Batches of prompts (token ids); each is timed once a pass, under both.
    pub batches: Vec<Vec<Vec<u32>>>,
    /// Tokens generated per row, always exactly this many.
    pub new_tokens: usize,
    /// Tokens that a schedule by position is laid over: those of a whole answer.
    pub planned_tokens: usize,
    /// Passes over `batches`; the fewest, where a precision is asked for.
    pub repeats: usize,
    /// Half the width of the speedup's interval, as a share of the speedup, at which to stop.
    pub precision: Option<f64>,
    /// Passes after which to stop whatever the precision is; counts only where one is asked for.
    pub max_repeats: usize,
    /// Blocks run before the clock counts.
    pub warm_up: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Search with several beams, both.
    pub beam: Option<Beam>,
    /// No n-gram of this length occurs twice, for both; 0 for no such rule.
    pub no_repeat_ngram: usize,
}

/// Passes after which the precision is looked at first; half as many again each time after that. Few looks, and only after whole pairs of
/// passes, which cancel what running first or second does: at any look the interval may be narrow by chance.
const FIRST_LOOK: usize = 4;

/// Times `spec` against the full network: for each batch both run, one right after the other, so that a slow second of the
/// machine hits both. Half the batches of a pass begin with the strategy, and each batch begins with the other one in the
/// next pass. Fixed length, so speed is not confused with the length of the answers. `progress` is told how many blocks are
/// done and how many there are at most.
///
/// # Errors
/// What [`Engine::generate`] refuses.
pub fn measure(
    engine: Engine<'_>,
    spec: &StrategySpec,
    plan: &TimingPlan,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Block>> {
    let passes = match plan.precision {
        Some(_) => plan.repeats.max(plan.max_repeats),
        None => plan.repeats,
    };
    let most = passes.saturating_mul(plan.batches.len());
    let mut bench = Bench::new(engine, spec, plan)?;
    for index in 0..plan.warm_up.min(most) {
        bench.block(index % plan.batches.len(), 0, false)?;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut order: Vec<usize> = (0..plan.batches.len()).collect();
    let mut begins_with_strategy = vec![false; plan.batches.len()];
    let mut look = plan.repeats.max(FIRST_LOOK);
    let mut blocks = Vec::new();
    for pass in 0..passes.min(most) {
        order.shuffle(&mut rng);
        if pass == 0 {
            let coin = usize::from(rng.random_bool(0.5));
            for (place, &batch) in order.iter().enumerate() {
                begins_with_strategy[batch] = (place + coin) % 2 == 1;
            }
        }
        for &batch in &order {
            let strategy_first = begins_with_strategy[batch] ^ (pass % 2 == 1);
            blocks.push(bench.block(batch, pass, strategy_first)?);
            progress(blocks.len(), most);
        }
        if let Some(precision) = plan.precision
            && pass + 1 == look
        {
            let half_width = speedup(&blocks).and_then(|speedup| speedup.half_width());
            if half_width.is_some_and(|half_width| half_width <= precision) {
                break;
            }
            look = (look + look.div_ceil(2)).next_multiple_of(2);
        }
    }
    Ok(blocks)
}

/// Runs blocks.
struct Bench<'a> {
    engine: Engine<'a>,
    plan: &'a TimingPlan,
    options: Options,
    full: Box<dyn Strategy>,
    strategy: Box<dyn Strategy>,
    meter: EnergyMeter,
}

impl<'a> Bench<'a> {
    fn new(engine: Engine<'a>, spec: &StrategySpec, plan: &'a TimingPlan) -> Result<Self> {
        let n_layers = engine.model().sizes().n_layers;
        Ok(Self {
            engine,
            plan,
            options: Options {
                max_new_tokens: plan.new_tokens,
                eos_ids: Vec::new(),
                planned_tokens: Some(plan.planned_tokens),
                beam: plan.beam,
                no_repeat_ngram: plan.no_repeat_ngram,
                ..Options::default()
            },
            full: StrategySpec::full().build(n_layers)?,
            strategy: spec.build(n_layers)?,
            meter: EnergyMeter::new(engine.model().device().is_cuda()),
        })
    }

    fn block(&mut self, batch: usize, pass: usize, strategy_first: bool) -> Result<Block> {
        let prompts = &self.plan.batches[batch];
        let run = |strategy: &mut Box<dyn Strategy>| {
            let generate = || {
                self.engine
                    .generate(prompts, strategy.as_mut(), &self.options)
            };
            let (generation, energy) = self.meter.span(generate);
            generation.map(|generation| (Times::of(&generation, energy), generation))
        };
        let ((full, _), (strategy, generation)) = if strategy_first {
            let strategy = run(&mut self.strategy)?;
            (run(&mut self.full)?, strategy)
        } else {
            let full = run(&mut self.full)?;
            (full, run(&mut self.strategy)?)
        };
        Ok(Block {
            batch,
            pass,
            strategy_first,
            rows: prompts.len(),
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            decoded_tokens: generation.decoded_tokens(),
            bytes: generation.ledger.total().bytes,
            full_bytes: generation.ledger.full.bytes,
            full,
            strategy,
        })
    }
}
