//! Every strategy on weights in blocks of 8 and of 4 bits.

use crate::parity::strategies;
use crate::speculate::drafts;
use crate::support::{fixed, fixture, generate, ragged, spec, tokens};
use candle_core::Device;
use skipbench_model::{Backend, Decoder, WeightType};

/// All widths of this fixture are whole blocks.
fn load(weights: WeightType) -> Decoder {
    Decoder::load(
        &fixture("bloom"),
        &Device::Cpu,
        Some(weights),
        Backend::Auto,
    )
    .unwrap()
}

const BLOCKS: [WeightType; 3] = [WeightType::Q8_0, WeightType::Q4_1, WeightType::Q4_0];

#[test]
fn a_row_of_a_batch_is_the_row_alone_in_blocks_too() {
    let prompts = &ragged()[..4];
    for weights in BLOCKS {
        let model = load(weights);
        for spec in strategies() {
            let batch = generate(&model, prompts, &spec, &fixed(10));
            for (prompt, row) in prompts.iter().zip(&batch.rows) {
                let alone = generate(&model, std::slice::from_ref(prompt), &spec, &fixed(10));
                assert_eq!(&alone.rows[0], row, "{weights} {spec}");
            }
        }
    }
}

#[test]
fn drafts_lose_nothing_in_blocks_either() {
    let prompts = &ragged()[..4];
    for weights in BLOCKS {
        let model = load(weights);
        let full = generate(&model, prompts, &spec("full"), &fixed(16));
        for draft in drafts() {
            let found = generate(&model, prompts, &draft, &fixed(16));
            assert_eq!(tokens(&found), tokens(&full), "{weights} {draft}");
        }
    }
}

/// A layer of fewer bytes beside an LM head that stays makes skipping pay less.
#[test]
fn the_bound_knows_the_bytes_of_each_matrix() {
    let bound = |weights| {
        let found = generate(
            &load(weights),
            &ragged()[..1],
            &spec("unified@2"),
            &fixed(4),
        );
        found.ledger.bound_speedup().unwrap()
    };
    let [eight, four] = [WeightType::Q8_0, WeightType::Q4_0].map(bound);
    assert!(eight > four + 0.02, "{eight} {four}");
}
