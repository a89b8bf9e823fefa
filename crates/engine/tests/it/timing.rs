//! The timing pass on a mock model.

use crate::support::spec;
use skipbench_engine::{Engine, TimingPlan, measure};
use skipbench_model::MockModel;

fn plan() -> TimingPlan {
    TimingPlan {
        batches: vec![vec![vec![1, 2], vec![3]], vec![vec![4], vec![5]]],
        new_tokens: 4,
        planned_tokens: 4,
        repeats: 3,
        precision: None,
        max_repeats: 3,
        warm_up: 1,
        seed: 7,
        beam: None,
        no_repeat_ngram: 0,
    }
}

#[test]
fn a_block_says_what_both_did() {
    let model = MockModel::new(8, 1000);
    let mut progress = Vec::new();
    let blocks = measure(
        Engine::new(&model),
        &spec("unified@2"),
        &plan(),
        &mut |done, most| progress.push((done, most)),
    )
    .unwrap();
    assert_eq!(progress, [1, 2, 3, 4, 5, 6].map(|done| (done, 6)));
    for block in &blocks {
        assert_eq!((block.rows, block.decoded_tokens), (2, 6));
        assert_eq!(block.prompt_tokens, if block.batch == 0 { 3 } else { 2 });
        assert!(block.bytes < block.full_bytes);
        for times in [&block.full, &block.strategy] {
            assert_eq!(times.step_s.len(), 3);
            assert!(times.prefill_s > 0.0);
        }
    }
}

#[test]
fn what_cannot_be_run_is_an_error() {
    let model = MockModel::new(8, 1000);
    let mut plan = plan();
    plan.batches[1].clear();
    let error = measure(Engine::new(&model), &spec("full"), &plan, &mut |_, _| ());
    assert!(error.unwrap_err().to_string().contains("batch"));
}
