//! Stop texts: whatever decodes, the answer is the unstopped one up to the first stop.

use crate::support::{generate, load, long, ragged, spec};
use skipbench_engine::{Beam, End, Options, Sampling, StopTexts};
use skipbench_model::{Backend, Result, Tokenize};
use skipbench_strategy::StrategySpec;
use std::sync::Arc;

const EOS: [u32; 2] = [2, 10];

/// Two or three letters of four for each id, so that texts repeat and most stops lie across the borders of tokens.
struct Pieces;

impl Tokenize for Pieces {
    fn encode_with(&self, _: &str, _: bool) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let letter = |digit: u32| ['a', 'b', 'é', '\n'][(digit % 4) as usize];
        let piece = |&id: &u32| {
            let third = (id % 3 == 0).then(|| letter(id / 16));
            [Some(letter(id)), Some(letter(id / 4)), third]
        };
        // A special token has no text.
        let shown = ids.iter().filter(|id| !EOS.contains(id));
        Ok(shown.flat_map(piece).flatten().collect())
    }

    fn eos_ids(&self) -> &[u32] {
        &[]
    }
}

fn strategies() -> Vec<StrategySpec> {
    let mut specs: Vec<StrategySpec> = ["full", "unified@2", "oracle-exit", "skip-decode@2"]
        .map(spec)
        .into();
    specs.extend(
        [
            r#"{"early-exit": {"threshold": 0.4}}"#,
            r#"{"early-exit": {"threshold": 0.4, "kv-fill": "deferred", "batch-mode": "sync"}}"#,
            r#"{"self-speculative": {"draft": "top@2"}}"#,
            r#"{"self-speculative": {"draft": "unified:even@2", "draft-length": 9}}"#,
        ]
        .map(long),
    );
    specs
}

const STOPS: [&[&str]; 7] = [
    &["\n"],
    &["ab"],
    &["éa", "\n\n"],
    &["ba\n"],
    &["b", "abéé\nbbab"],
    &["a", "éé", "\nb"],
    &["never found"],
];

fn check(specs: &[StrategySpec], options: &Options) {
    let model = load("qwen2", Backend::Auto);
    let prompts = ragged();
    let mut stopped_rows = 0;
    for spec in specs {
        let whole = generate(&model, &prompts, spec, options);
        for texts in STOPS {
            let texts = texts.iter().map(|&text| text.to_owned());
            let stop = StopTexts::new(Arc::new(Pieces), texts);
            let options = Options {
                stop: Some(stop.clone()),
                ..options.clone()
            };
            let stopped = generate(&model, &prompts, spec, &options);
            for (row, whole) in stopped.rows.iter().zip(&whole.rows) {
                let about = format!("{spec} {stop:?} {:?}", options.beam);
                assert!(whole.tokens.starts_with(&row.tokens), "{about}");
                assert_eq!(row.tokens.len(), row.layers.len(), "{about}");
                let text = Pieces.decode(&whole.tokens).unwrap();
                let cut = Pieces.decode(&row.tokens).unwrap();
                assert_eq!(stop.cut(&cut), stop.cut(&text), "{about}");
                let found = stop.cut(&text) != text;
                assert_eq!(row.end == End::Stop, found, "{about}");
                // It ends as soon as it can, unless a longer stop had to be waited for.
                let before = &row.tokens[..row.tokens.len() - 1];
                let before = Pieces.decode(before).unwrap();
                let waits = format!("{stop:?}").contains("bbab");
                assert!(waits || stop.cut(&before) == before, "{about}");
                if !found {
                    assert_eq!(
                        (&row.tokens, row.end),
                        (&whole.tokens, whole.end),
                        "{about}"
                    );
                }
                stopped_rows += usize::from(row.tokens.len() < whole.tokens.len());
            }
        }
    }
    assert!(
        stopped_rows > 10 * specs.len(),
        "only {stopped_rows} ended early"
    );
}

fn greedy() -> Options {
    Options {
        max_new_tokens: 16,
        eos_ids: EOS.to_vec(),
        ..Options::default()
    }
}

#[test]
fn greedy_answers_end_at_the_first_stop() {
    check(&strategies(), &greedy());
}

#[test]
fn drawn_answers_end_at_the_first_stop() {
    let sampling = Some(Sampling {
        temperature: 2.0,
        top_p: None,
        top_k: None,
        seed: 5,
        first_row: 0,
    });
    check(
        &[spec("full"), spec("unified@2")],
        &Options {
            sampling,
            ..greedy()
        },
    );
}

#[test]
fn what_a_beam_search_finds_is_cut_at_the_first_stop() {
    for length_penalty in [0.0, 1.0] {
        let beam = Some(Beam {
            beams: 3,
            length_penalty,
        });
        let specs = [
            spec("full"),
            spec("unified@2"),
            long(r#"{"early-exit": {"threshold": 0.4}}"#),
        ];
        check(&specs, &Options { beam, ..greedy() });
    }
}

/// A search whose beams have all come to the same stop has nothing left to find.
#[test]
fn a_row_that_has_ended_costs_nothing_more() {
    let model = load("qwen2", Backend::Auto);
    let prompts = &ragged()[..1];
    let steps = |stop: Option<StopTexts>, beam: Option<Beam>| {
        let options = Options {
            max_new_tokens: 24,
            stop,
            beam,
            ..Options::default()
        };
        generate(&model, prompts, &spec("full"), &options)
            .step_s
            .len()
    };
    // Every piece has two letters at least, so one of these is in the first or the second.
    let stop = || StopTexts::new(Arc::new(Pieces), ["a", "b", "é", "\n"].map(str::to_owned));
    assert_eq!(steps(None, None), 23);
    assert_eq!(steps(Some(stop()), None), 0);
    let beam = Some(Beam {
        beams: 2,
        length_penalty: 1.0,
    });
    assert_eq!(steps(None, beam), 23);
    let stopped = steps(Some(stop()), beam);
    assert!(stopped < 23, "{stopped} steps");
}
