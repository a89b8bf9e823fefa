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
    let mut bench = Bench::new(engine, spec, plan)?;
    run_passes(plan, &mut |place| bench.block(place), progress)
}

/// Where in the run a block stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) batch: usize,
    pub(super) pass: usize,
    pub(super) strategy_first: bool,
}

/// Runs the blocks of `plan` by `block`, in the order and as often as [`measure`] says.
pub(super) fn run_passes(
    plan: &TimingPlan,
    block: &mut dyn FnMut(Place) -> Result<Block>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Block>> {
    let passes = match plan.precision {
        Some(_) => plan.repeats.max(plan.max_repeats),
        None => plan.repeats,
    };
    let most = passes.saturating_mul(plan.batches.len());
    for index in 0..plan.warm_up.min(most) {
        block(Place {
            batch: index % plan.batches.len(),
            pass: 0,
            strategy_first: false,
        })?;
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
            blocks.push(block(Place {
                batch,
                pass,
                strategy_first: begins_with_strategy[batch] ^ (pass % 2 == 1),
            })?);
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

    fn block(&mut self, place: Place) -> Result<Block> {
        let Place {
            batch,
            pass,
            strategy_first,
        } = place;
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
            extra_bytes: (generation.ledger.checks + generation.ledger.kv_fill).bytes,
            full_bytes: generation.ledger.full.bytes,
            full,
            strategy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EngineError;
    use crate::timing::simulation::{Machine, NOISES, plan};

    fn places(plan: &TimingPlan) -> Vec<Block> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        Machine::new(&NOISES[0].1, plan).run(plan, 2.0, &mut rng)
    }

    #[test]
    fn every_pass_times_every_batch_and_the_order_is_balanced() {
        let blocks = places(&plan(6, 4));
        for (pass, blocks) in blocks.chunks(6).enumerate() {
            let mut batches: Vec<usize> = blocks.iter().map(|block| block.batch).collect();
            batches.sort_unstable();
            assert_eq!(batches, [0, 1, 2, 3, 4, 5]);
            assert!(blocks.iter().all(|block| block.pass == pass));
            let strategy_first = blocks.iter().filter(|block| block.strategy_first);
            assert_eq!(strategy_first.count(), 3);
        }
        for batch in 0..6 {
            let of_batch = blocks.iter().filter(|block| block.batch == batch);
            let first: Vec<bool> = of_batch.map(|block| block.strategy_first).collect();
            assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
        }
        let orders: Vec<Vec<usize>> = blocks
            .chunks(6)
            .map(|pass| pass.iter().map(|block| block.batch).collect())
            .collect();
        assert!(orders.iter().any(|order| *order != orders[0]));
    }

    #[test]
    fn a_precision_ends_the_run_once_it_is_met() {
        let until = |precision, max_repeats| {
            let blocks = places(&TimingPlan {
                precision: Some(precision),
                max_repeats,
                ..plan(12, 2)
            });
            let half_width = crate::timing::speedup(&blocks)
                .unwrap()
                .half_width()
                .unwrap();
            (blocks.len() / 12, half_width)
        };
        let (passes, half_width) = until(0.05, 100);
        assert_eq!(passes, FIRST_LOOK, "+-{half_width}");
        let (passes, half_width) = until(0.003, usize::MAX);
        assert!(passes > FIRST_LOOK && half_width <= 0.003, "{passes}");
        let (passes, half_width) = until(1e-6, 10);
        assert!(passes == 10 && half_width > 1e-6);
    }

    #[test]
    fn nothing_is_laid_out_by_the_number_of_passes() {
        let endless = TimingPlan {
            warm_up: 1,
            ..plan(2, usize::MAX)
        };
        let (mut left, mut seen) = (5, Vec::new());
        let blocks = places(&plan(2, 1));
        let error = run_passes(
            &endless,
            &mut |_| {
                left -= 1;
                if left == 0 {
                    Err(EngineError::NoTokens)
                } else {
                    Ok(blocks[0].clone())
                }
            },
            &mut |done, most| seen.push((done, most)),
        );
        assert!(matches!(error, Err(EngineError::NoTokens)));
        assert_eq!(
            seen,
            [(1, usize::MAX), (2, usize::MAX), (3, usize::MAX)],
            "one was the warm-up"
        );
        assert_eq!(places(&plan(0, usize::MAX)).len(), 0);
    }
}
