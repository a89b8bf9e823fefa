//! `MockModel` adds one to the token id per layer, so every token and every byte can be told beforehand.

use crate::support::{fixed, generate, spec};
use skipbench_engine::{Beam, Engine, Generation, Options};
use skipbench_model::MockModel;
use skipbench_strategy::{
    BatchMode, BatchShape, ExitSignal, KvFill, LayerSet, Needs, StepPlan, Strategy, StrategyError,
    Verdict,
};

fn error(prompts: &[Vec<u32>], options: &Options) -> String {
    let model = MockModel::new(4, 10);
    let mut strategy = spec("full").build(4).unwrap();
    Engine::new(&model)
        .generate(prompts, strategy.as_mut(), options)
        .unwrap_err()
        .to_string()
}

#[test]
fn prefill_runs_all_layers_and_decode_the_plan() {
    let model = MockModel::new(8, 1000);
    let generation = generate(&model, &[vec![5, 100]], &spec("unified@2"), &fixed(4));
    let row = &generation.rows[0];
    assert_eq!(row.tokens, [108, 112, 116, 120]);
    assert_eq!(row.layers, [8.0, 4.0, 4.0, 4.0]);
    assert_eq!(generation.step_s.len(), 3);
    assert_eq!(generation.decoded_tokens(), 3);
}

#[test]
fn each_row_ends_at_its_own_end_of_sequence() {
    let model = MockModel::new(4, 10);
    let options = Options {
        max_new_tokens: 6,
        eos_ids: vec![9, 2],
        ..Options::default()
    };
    let prompts = [vec![3], vec![5], vec![4, 4, 4], vec![8]];
    let generation = generate(&model, &prompts, &spec("full"), &options);
    let tokens: Vec<_> = generation.rows.iter().map(|row| &row.tokens[..]).collect();
    assert_eq!(
        tokens,
        [&[7, 1, 5, 9][..], &[9], &[8, 2], &[2]],
        "4 is added, modulo 10"
    );
    assert_eq!(
        generation.step_s.len(),
        3,
        "no step after the last row has ended"
    );
}

#[test]
fn fixed_length_mode_goes_on_behind_the_end_of_sequence() {
    let model = MockModel::new(4, 10);
    let generation = generate(&model, &[vec![3], vec![5]], &spec("full"), &fixed(6));
    assert!(generation.rows.iter().all(|row| row.tokens.len() == 6));
    assert_eq!(generation.rows[0].tokens, [7, 1, 5, 9, 3, 7]);
}

#[test]
fn layers_that_no_decode_step_runs_get_no_cache() {
    let model = MockModel::new(8, 100);
    let bytes = |text: &str, new_tokens| {
        generate(&model, &[vec![1; 10]], &spec(text), &fixed(new_tokens)).peak_kv_bytes
    };
    // 8 bytes a position; the last generated token is never fed back.
    assert_eq!(bytes("full", 4), 8 * 13 * 8);
    assert_eq!(bytes("top@2", 4), 4 * 13 * 8);
    assert_eq!(bytes("full", 1), 0);
}

#[test]
fn the_ledger_counts_the_bytes_that_were_read() {
    let model = MockModel::new(8, 100);
    let ledger = generate(&model, &[vec![1; 10]], &spec("unified@2"), &fixed(3)).ledger;
    // Two steps that read 11 and 12 cached positions of 8 bytes in each layer of 100, and the head of 48.
    assert_eq!(
        ledger.full.bytes,
        8 * (100 + 11 * 8) + 8 * (100 + 12 * 8) + 2 * 48
    );
    assert_eq!(
        ledger.total().bytes,
        4 * (100 + 11 * 8) + 4 * (100 + 12 * 8) + 2 * 48
    );
    let batch = generate(&model, &[vec![1; 10], vec![1]], &spec("full"), &fixed(2)).ledger;
    assert_eq!(batch.total(), batch.full);
    assert_eq!(
        batch.total().bytes,
        8 * (100 + (11 + 2) * 8) + 48,
        "weights are read once a batch"
    );
    // 25 weights a layer and 12 of the head for each of two rows, and attention over 11 and 2 positions of one channel.
    assert_eq!(
        batch.full.flops,
        8 * (2 * 25 * 2 + 4 * (11 + 2)) + 2 * 12 * 2
    );
    assert_eq!(batch.bound_speedup(), Some(1.0));
}

/// Answers that end with their first token are the prefill's alone: no step has a cost, and nothing bounds its speedup.
#[test]
fn where_nothing_was_decoded_there_is_no_bound() {
    let model = MockModel::new(4, 10);
    for (strategy, beam) in [("full", None), ("unified@2", None), ("top@2", Some(2))] {
        let options = Options {
            max_new_tokens: 6,
            eos_ids: vec![7, 9],
            beam: beam.map(|beams| Beam {
                beams,
                length_penalty: 1.0,
            }),
            ..Options::default()
        };
        let generation = generate(&model, &[vec![3], vec![5]], &spec(strategy), &options);
        assert_eq!(generation.decoded_tokens(), 0, "{strategy}");
        // A beam search goes on until no other beam can win, which costs steps.
        if beam.is_none() {
            assert_eq!(generation.ledger.bound_speedup(), None, "{strategy}");
            assert!(generation.step_s.is_empty(), "{strategy}");
        }
    }
}

#[test]
fn input_that_cannot_be_generated_from() {
    assert!(error(&[], &fixed(1)).contains("batch is empty"));
    assert!(error(&[vec![1], vec![]], &fixed(1)).contains("prompt 1 is empty"));
    assert!(error(&[vec![1]], &fixed(0)).contains("max-new-tokens"));
    let message = error(&[vec![1; 4000]], &fixed(98));
    assert!(
        message.contains("4097") && message.contains("4096"),
        "{message}"
    );
    assert!(
        error(&[vec![11]], &fixed(1)).contains("11"),
        "outside the vocabulary"
    );
}

#[test]
fn a_prompt_may_fill_all_positions() {
    let model = MockModel::new(2, 10);
    let generation = generate(&model, &[vec![1; 4000]], &spec("full"), &fixed(97));
    assert_eq!(generation.rows[0].tokens.len(), 97);
}

/// A strategy of another crate that breaks its word is refused; silently it would attend to nothing but itself.
#[test]
fn layers_that_were_not_announced_are_refused() {
    struct Liar {
        announced: usize,
        run: usize,
    }
    impl Strategy for Liar {
        fn needs(&self) -> Needs {
            Needs::default()
        }
        fn begin(&mut self, _: &BatchShape) -> Result<(), StrategyError> {
            Ok(())
        }
        fn plan(&mut self, _: usize) -> StepPlan {
            StepPlan::fixed(LayerSet::full(self.run))
        }
        fn reachable(&self) -> LayerSet {
            LayerSet::full(self.announced)
        }
    }
    let model = MockModel::new(4, 100);
    let error = |announced, run| {
        Engine::new(&model)
            .generate(&[vec![1]], &mut Liar { announced, run }, &fixed(3))
            .unwrap_err()
            .to_string()
    };
    assert!(error(3, 4).contains("layer 3"));
    assert!(error(9, 4).contains("layer 4"));
    let mut honest = Liar {
        announced: 4,
        run: 3,
    };
    assert!(
        Engine::new(&model)
            .generate(&[vec![1]], &mut honest, &fixed(3))
            .is_ok()
    );
}

/// Row 0 leaves step 1 after layer 1; which layers a step runs alternates where `alternates`.
struct Leaver {
    needs: Needs,
    alternates: bool,
    step: usize,
}

impl Strategy for Leaver {
    fn needs(&self) -> Needs {
        Needs {
            signal: Some(ExitSignal::MaxProb),
            ..self.needs
        }
    }
    fn begin(&mut self, _: &BatchShape) -> Result<(), StrategyError> {
        Ok(())
    }
    fn plan(&mut self, step: usize) -> StepPlan {
        self.step = step;
        let mut layers = LayerSet::full(4);
        if self.alternates && step % 2 == 1 {
            layers.remove(2);
        }
        StepPlan {
            layers,
            checks: LayerSet::from_layers([1]),
        }
    }
    fn observe(&mut self, _: usize, row: usize, _: f64) -> Verdict {
        match (self.step, row) {
            (1, 0) => Verdict::Exit,
            _ => Verdict::Continue,
        }
    }
    fn reachable(&self) -> LayerSet {
        LayerSet::full(4)
    }
}

fn leave(kv_fill: KvFill, batch_mode: BatchMode, alternates: bool) -> Result<Generation, String> {
    let mut strategy = Leaver {
        needs: Needs {
            kv_fill,
            batch_mode,
            ..Needs::default()
        },
        alternates,
        step: 0,
    };
    let prompts = [vec![1, 2], vec![3]];
    Engine::new(&MockModel::new(4, 100))
        .generate(&prompts, &mut strategy, &fixed(4))
        .map_err(|error| error.to_string())
}

/// Without a fill the layers above an exit are a hole, whether or not the row ran along with others.
#[test]
fn a_hole_that_nobody_filled_is_not_read() {
    for mode in [BatchMode::Compact, BatchMode::Sync] {
        let error = leave(KvFill::None, mode, false).unwrap_err();
        assert!(error.contains("layer 2"), "{mode:?}: {error}");
        for fill in [
            KvFill::Propagate,
            KvFill::Copy,
            KvFill::Mask,
            KvFill::Deferred,
        ] {
            assert!(leave(fill, mode, false).is_ok(), "{fill} {mode:?}");
        }
    }
}

/// A layer that the step of an exit does not plan may be one of the next step.
#[test]
fn layers_of_later_steps_are_filled_at_an_exit_too() {
    for mode in [BatchMode::Compact, BatchMode::Sync] {
        let error = leave(KvFill::Deferred, mode, true).unwrap_err();
        assert!(
            error.contains("`deferred` is for tokens that leave"),
            "{error}"
        );
        for fill in [KvFill::Propagate, KvFill::Copy, KvFill::Mask] {
            let generation = leave(fill, mode, true).unwrap();
            assert_eq!(
                generation.rows[0].layers,
                [4.0, 2.0, 4.0, 3.0],
                "{fill} {mode:?}"
            );
        }
    }
}
