//! A model that gives NaN or infinity somewhere: an error that names prompt and token, whoever looks.

use crate::support::{Hooked, fixed, long, spec};
use candle_core::{Device, Tensor};
use skipbench_engine::{Beam, Engine, Generation, Options, Sampling};
use skipbench_model::MockModel;
use skipbench_strategy::{
    BatchShape, ExitSignal, LayerSet, Needs, PromptSignal, StepPlan, Strategy, StrategyError,
};

/// A mock of 4 layers, each of which adds one to the state, with one logit replaced where the state in front of the head is
/// `state`, and states replaced behind `layer`.
#[derive(Clone, Copy)]
struct Broken {
    state: f32,
    logit: f32,
    layer: Option<usize>,
}

fn broken(state: f32, logit: f32) -> Broken {
    Broken {
        state,
        logit,
        layer: None,
    }
}

/// Prompt 1 comes through the states 34, 38 and 42 to its tokens, prompt 0 through 14, 18 and 22.
fn run(
    broken: Broken,
    strategy: &mut dyn Strategy,
    options: &Options,
) -> Result<Generation, String> {
    let model = Hooked {
        inner: &MockModel::new(4, 100),
        layer: &|index, _, output| match broken.layer == Some(index) {
            true => Ok((output * f64::from(broken.logit))?),
            false => Ok(output),
        },
        head: &|hidden, logits| {
            let states = hidden.flatten_all()?.to_vec1::<f32>()?;
            let mut logits = logits.to_vec2::<f32>()?;
            for (state, logits) in states.iter().zip(&mut logits) {
                if *state == broken.state || !state.is_finite() {
                    logits[7] = broken.logit;
                }
            }
            Ok(Tensor::new(logits, &Device::Cpu)?)
        },
    };
    Engine::new(&model)
        .generate(&[vec![10], vec![5, 30]], strategy, options)
        .map_err(|error| error.to_string())
}

#[test]
fn greedy_drawn_and_searched_tokens() {
    let searches = [
        fixed(3),
        Options {
            no_repeat_ngram: 3,
            ..fixed(3)
        },
        Options {
            sampling: Some(Sampling {
                temperature: 0.01,
                top_p: None,
                top_k: None,
                seed: 1,
                first_row: 0,
            }),
            ..fixed(3)
        },
        Options {
            beam: Some(Beam {
                beams: 2,
                length_penalty: 1.0,
            }),
            ..fixed(3)
        },
    ];
    for options in &searches {
        for logit in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for (state, token) in [(34.0, 1), (38.0, 2), (42.0, 3)] {
                let model = broken(state, logit);
                let mut full = spec("full").build(4).unwrap();
                let error = run(model, full.as_mut(), options).unwrap_err();
                assert!(
                    error.contains(&format!(
                        "gives logits that are not numbers at token {token} of prompt 1:"
                    )),
                    "{options:?}: {error}"
                );
            }
        }
        // Minus infinity is how a model says never.
        let mut full = spec("full").build(4).unwrap();
        let generation = run(broken(38.0, f32::NEG_INFINITY), full.as_mut(), options).unwrap();
        assert_eq!(generation.rows[1].tokens, [34, 38, 42]);
    }
}

#[test]
fn a_rule_that_leaves_no_token_is_not_called_a_broken_model() {
    let options = Options {
        no_repeat_ngram: 1,
        ..fixed(200)
    };
    let mut full = spec("full").build(4).unwrap();
    let error = run(broken(-1.0, 0.0), full.as_mut(), &options).unwrap_err();
    assert!(error.contains("no-repeat-ngram"), "{error}");
}

#[test]
fn drafts_verifications_and_oracles() {
    // Two layers draft 36 and 38 behind 34, and all of them verify from the states 38, 40 and 42.
    let draft = || spec("self-speculative@2").build(4).unwrap();
    let error = |state| run(broken(state, f32::NAN), draft().as_mut(), &fixed(4)).unwrap_err();
    for (state, token) in [(36.0, 2), (38.0, 3), (40.0, 3), (42.0, 4)] {
        let message = error(state);
        assert!(
            message.contains(&format!("token {token} of prompt 1:")),
            "{state}: {message}"
        );
    }
    let mut oracle = long(r#"{"oracle-exit": {}}"#).build(4).unwrap();
    let error = run(broken(38.0, f32::NAN), oracle.as_mut(), &fixed(4)).unwrap_err();
    assert!(error.contains("token 2 of prompt 1:"), "{error}");
    // Behind layer 1 the second token's state is 36: all that an oracle asks is whether it could have left there.
    let error = run(broken(36.0, f32::NAN), oracle.as_mut(), &fixed(4)).unwrap_err();
    assert!(
        error.contains("token 2 of prompt 1, after layer 1:"),
        "{error}"
    );
}

/// Looks after layer 1 and never leaves.
struct Looker(Needs);

impl Strategy for Looker {
    fn needs(&self) -> Needs {
        self.0
    }
    fn begin(&mut self, _: &BatchShape) -> Result<(), StrategyError> {
        Ok(())
    }
    fn plan(&mut self, _: usize) -> StepPlan {
        StepPlan {
            layers: LayerSet::full(4),
            checks: LayerSet::from_layers([1]),
        }
    }
    fn reachable(&self) -> LayerSet {
        LayerSet::full(4)
    }
}

#[test]
fn signals_of_exits_and_of_prompts() {
    let exit = |signal| Needs {
        signal: Some(signal),
        ..Needs::default()
    };
    for signal in [
        ExitSignal::MaxProb,
        ExitSignal::SoftmaxMargin,
        ExitSignal::Entropy,
        ExitSignal::Patience,
    ] {
        // The state behind layer 1 of the step after token 34.
        let mut strategy = Looker(exit(signal));
        let error = run(broken(36.0, f32::NAN), &mut strategy, &fixed(3)).unwrap_err();
        assert!(
            error.contains("logits that are not numbers at token 2 of prompt 1, after layer 1:"),
            "{signal:?}: {error}"
        );
        assert!(run(broken(-1.0, 0.0), &mut strategy, &fixed(3)).is_ok());
    }
    let mut model = broken(-1.0, f32::INFINITY);
    model.layer = Some(1);
    // Under a strategy that looks at nothing the prefill says so by itself.
    let error = run(model, &mut Looker(Needs::default()), &fixed(3)).unwrap_err();
    assert!(error.contains("token 1 of prompt 0:"), "{error}");
    let similarity = Needs {
        prompt_signal: Some(PromptSignal::Similarity),
        ..Needs::default()
    };
    let error = run(model, &mut Looker(similarity), &fixed(3)).unwrap_err();
    assert!(
        error.contains("hidden states that are not numbers at token 1 of prompt 0, after layer 1:"),
        "{error}"
    );
    let confidence = Needs {
        prompt_signal: Some(PromptSignal::Confidence(ExitSignal::MaxProb)),
        ..Needs::default()
    };
    let error = run(broken(34.0, f32::NAN), &mut Looker(confidence), &fixed(3)).unwrap_err();
    assert!(error.contains("token 1 of prompt 1:"), "{error}");
}
