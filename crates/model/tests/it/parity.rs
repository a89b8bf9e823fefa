//! Equal to transformers, on a tiny random checkpoint of every family.

use crate::support::{argmax, assert_close, expected, fixture, fixtures, greedy, load, logits};
use skipbench_model::{Backend, CausalLm, Span};
use std::collections::HashSet;
use std::path::Path;

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Composed];

/// The script lists what it makes, so no folder is forgotten and none is left behind.
#[test]
fn every_case_of_the_script_has_its_fixture() {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/fixtures/model_cases.py");
    let script = std::fs::read_to_string(script).unwrap();
    let mut cases: Vec<&str> = script
        .lines()
        .skip_while(|line| !line.starts_with("CASES"))
        .filter_map(|line| line.strip_prefix("    \"")?.split_once("\": ("))
        .map(|(name, _)| name)
        .collect();
    cases.sort_unstable();
    assert_eq!(fixtures(), cases);
    let families: HashSet<String> = fixtures()
        .iter()
        .map(|name| format!("{:?}", load(&fixture(name), Backend::Auto).config().family))
        .collect();
    assert_eq!(families.len(), 11, "{families:?}");
}

#[test]
fn logits_are_within_1e_4_alone_and_in_a_ragged_batch() {
    for name in fixtures() {
        for backend in BACKENDS {
            let model = load(&fixture(&name), backend);
            let rows = expected(&name);
            let n_layers = model.sizes().n_layers;
            let all: Vec<usize> = (0..n_layers).collect();
            let capacity = vec![rows.iter().map(|row| row.prompt.len()).max().unwrap(); n_layers];

            let ids: Vec<u32> = rows.iter().flat_map(|row| row.prompt.clone()).collect();
            let spans = Span::prompts(rows.iter().map(|row| row.prompt.len()));
            let mut cache = model.new_cache(rows.len(), capacity.clone()).unwrap();
            let batch = logits(&model, &ids, &mut cache, &spans, &all);
            let mut end = 0;
            for row in &rows {
                end += row.prompt.len();
                let what = format!("{name}, {backend:?}, prompt of {}", row.prompt.len());
                assert_close(&batch[end - 1], &row.logits, 1e-4, &what);

                let spans = Span::prompts([row.prompt.len()]);
                let mut cache = model.new_cache(1, capacity.clone()).unwrap();
                let alone = logits(&model, &row.prompt, &mut cache, &spans, &all);
                assert_close(alone.last().unwrap(), &row.logits, 1e-4, &what);
            }
        }
    }
}

#[test]
fn greedy_continuations_are_equal_at_full_depth_and_under_unified_skipping() {
    for name in fixtures() {
        for backend in BACKENDS {
            let model = load(&fixture(&name), backend);
            let all: Vec<usize> = (0..model.sizes().n_layers).collect();
            for row in expected(&name) {
                let what = format!("{name}, {backend:?}, prompt {:?}", row.prompt);
                let full = greedy(&model, &row.prompt, &all, row.full.len());
                assert_eq!(full, row.full, "{what}");
                for skip in &row.unified {
                    let tokens = greedy(&model, &row.prompt, &skip.layers, skip.tokens.len());
                    assert_eq!(tokens, skip.tokens, "{what}, layers {:?}", skip.layers);
                }
            }
        }
    }
}

/// Prefill in one piece, in two pieces, and token by token leave the same state.
#[test]
fn a_prompt_may_be_fed_in_pieces() {
    for (name, backend) in fixtures()
        .iter()
        .flat_map(|name| BACKENDS.map(|backend| (name, backend)))
    {
        // A prompt in pieces is no prompt to dynamic RoPE, which goes by its length.
        if name == "llama-dynamic" {
            continue;
        }
        let model = load(&fixture(name), backend);
        let row = expected(name).pop().unwrap();
        let n_layers = model.sizes().n_layers;
        let all: Vec<usize> = (0..n_layers).collect();
        for piece in [1, 5, row.prompt.len()] {
            // LongRoPE goes by the length of a piece at the beginning.
            if name == "phi3-longrope" && piece < row.prompt.len() {
                continue;
            }
            let mut cache = model.new_cache(1, vec![32; n_layers]).unwrap();
            let mut last = Vec::new();
            for (index, ids) in row.prompt.chunks(piece).enumerate() {
                let span = Span {
                    row: 0,
                    start: index * piece,
                    len: ids.len(),
                };
                last = logits(&model, ids, &mut cache, &[span], &all)
                    .pop()
                    .unwrap();
            }
            assert_close(
                &last,
                &row.logits,
                1e-4,
                &format!("{name}, pieces of {piece}"),
            );
        }
    }
}

/// What truncation leaves is what was there before the truncated tokens came.
#[test]
fn truncate_takes_tokens_back() {
    for backend in BACKENDS {
        let model = load(&fixture("qwen2"), backend);
        let row = expected("qwen2").pop().unwrap();
        let n_layers = model.sizes().n_layers;
        let all: Vec<usize> = (0..n_layers).collect();
        let len = row.prompt.len();
        let mut cache = model.new_cache(1, vec![32; n_layers]).unwrap();
        logits(&model, &row.prompt, &mut cache, &Span::prompts([len]), &all);
        for wrong in 0..3 {
            let span = Span::token(0, len + wrong);
            logits(&model, &[wrong as u32 + 7], &mut cache, &[span], &all);
        }
        cache.truncate(0, len);
        let mut tokens = vec![row.full[0]];
        while tokens.len() < row.full.len() {
            let span = Span::token(0, len + tokens.len() - 1);
            let id = *tokens.last().unwrap();
            tokens.push(argmax(&logits(&model, &[id], &mut cache, &[span], &all)[0]));
        }
        assert_eq!(tokens, row.full, "{backend:?}");
    }
}

/// A cache that makes room as its rows grow gives the bits of one that had it from the start.
#[test]
fn a_cache_that_grows_changes_nothing() {
    for (name, backend) in [
        ("bloom", Backend::Auto),
        ("bloom", Backend::Composed),
        ("llama2-gqa-tied", Backend::Auto),
        ("llama2-gqa-tied", Backend::Composed),
    ] {
        let model = load(&fixture(name), backend);
        let n_layers = model.sizes().n_layers;
        let all: Vec<usize> = (0..n_layers).collect();
        let prompts = [5, 60].map(|len: usize| (3..3 + len as u32).collect::<Vec<u32>>());
        let lens = [5, 60];
        let run = |reserved: usize| {
            let mut cache = model.new_cache(2, vec![200; n_layers]).unwrap();
            cache.reserve(reserved).unwrap();
            let spans = Span::prompts(lens);
            let mut steps = vec![logits(&model, &prompts.concat(), &mut cache, &spans, &all)];
            for step in 0..10 {
                // Row 0 comes to 75 positions and row 1 to 70, so 64 are not enough for both.
                let spans = [(0, 7), (1, 1)].map(|(row, len)| Span {
                    row,
                    start: lens[row] + len * step,
                    len,
                });
                let ids: Vec<u32> = (0..8).map(|id| 3 + (id + step as u32) % 90).collect();
                steps.push(logits(&model, &ids, &mut cache, &spans, &all));
            }
            (steps, cache.bytes())
        };
        let ((grown, small), (reserved, large)) = (run(0), run(200));
        assert!(small < large, "{small} {large}");
        assert!(grown == reserved, "{name} {backend:?}");
    }
}
