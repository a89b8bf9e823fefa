//! Tests of the cache.

use super::*;

fn cache() -> KvCache {
    KvCache::host(
        CacheShape {
            rows: 2,
            n_kv_heads: 1,
            head_dim: 4,
            capacity: vec![8, 0],
            windows: Vec::new(),
        },
        KvType::F32,
    )
}

#[test]
fn a_gap_below_a_span_is_refused() {
    let mut cache = cache();
    cache
        .claim(0, &Span::prompts([3, 2]), Provenance::Computed)
        .unwrap();
    let error = cache.claim(0, &[Span::token(1, 3)], Provenance::Computed);
    assert!(matches!(
        error,
        Err(ModelError::Hole {
            layer: 0,
            row: 1,
            position: 2
        })
    ));
}

#[test]
fn truncate_forgets_only_the_tail_of_one_row() {
    let mut cache = cache();
    cache
        .claim(0, &Span::prompts([5, 5]), Provenance::Computed)
        .unwrap();
    cache.truncate(1, 2);
    assert_eq!(cache.provenance(0, 1, 1), Provenance::Computed);
    assert_eq!(cache.provenance(0, 1, 2), Provenance::Empty);
    assert_eq!(cache.provenance(0, 0, 4), Provenance::Computed);
    cache
        .claim(0, &[Span::token(1, 2)], Provenance::Propagated)
        .unwrap();
    assert_eq!(cache.provenance(0, 1, 2), Provenance::Propagated);
}

#[test]
fn memory_is_taken_as_rows_grow_and_none_without_capacity() {
    let mut cache = KvCache::host(
        CacheShape {
            rows: 2,
            n_kv_heads: 3,
            head_dim: 4,
            capacity: vec![usize::MAX, 0, 100],
            windows: Vec::new(),
        },
        KvType::F32,
    );
    assert_eq!(cache.bytes(), 0);
    let position = 2 * 2 * 3 * 4 * 4;
    cache.reserve(10).unwrap();
    assert_eq!(cache.bytes(), 2 * 10 * position);
    let spans = Span::prompts([11, 3]);
    cache.claim(0, &spans, Provenance::Computed).unwrap();
    assert_eq!(cache.bytes(), 2 * 64 * position);
    cache
        .claim(
            0,
            &[Span {
                row: 1,
                start: 3,
                len: 70,
            }],
            Provenance::Computed,
        )
        .unwrap();
    assert_eq!(cache.bytes(), (128 + 100) * position);
    let error = cache.reserve(usize::MAX).unwrap_err().to_string();
    assert!(
        error.contains("the KV cache would take") && error.contains("lower"),
        "{error}"
    );
    assert_eq!(cache.bytes(), (128 + 100) * position);
}

/// Growing moves every row and head to another place.
#[test]
fn what_is_held_stays_as_room_is_made() {
    let shape = || CacheShape {
        rows: 2,
        n_kv_heads: 2,
        head_dim: 3,
        capacity: vec![1000],
        windows: Vec::new(),
    };
    let device = KvCache::device(shape(), DType::F32, &Device::Cpu).unwrap();
    let host = [KvType::F32, KvType::Bf16, KvType::F16].map(|kept| KvCache::host(shape(), kept));
    for mut cache in host.into_iter().chain([device]) {
        cache.reserve(5).unwrap();
        cache
            .claim(0, &Span::prompts([4, 2]), Provenance::Computed)
            .unwrap();
        let values: Vec<f32> = (0..2 * 2 * 5 * 3).map(|value| value as f32).collect();
        let (kv, _) = cache.layer_mut(0, &[]);
        match &mut kv.storage {
            // Whole numbers of six bits are what they are in any type.
            Storage::Host(kept) => kept.write(0, &values, &values),
            Storage::Device { k, v } => {
                *k = Tensor::new(values, &Device::Cpu)
                    .unwrap()
                    .reshape((2, 2, 5, 3))
                    .unwrap();
                *v = k.copy().unwrap();
            }
        }
        cache.mask(0, &[Span::token(0, 4)]).unwrap();
        let held = |cache: &KvCache, row, position| {
            let (k, v) = cache.key_value(0, row, position).unwrap();
            (k, v, cache.provenance(0, row, position))
        };
        let places = [(0, 0), (0, 3), (0, 4), (1, 0), (1, 1)];
        let before = places.map(|(row, position)| held(&cache, row, position));
        assert_eq!(before[3].0, [30.0, 31.0, 32.0, 45.0, 46.0, 47.0]);
        cache
            .claim(
                0,
                &[Span {
                    row: 1,
                    start: 2,
                    len: 9,
                }],
                Provenance::Propagated,
            )
            .unwrap();
        assert!(cache.bytes() > 2 * 2 * 2 * 5 * 3 * 4);
        let after = places.map(|(row, position)| held(&cache, row, position));
        assert_eq!(before, after);
        assert_eq!(
            cache.layer_mut(0, &[]).0.masked(0, 5),
            [false, false, false, false, true]
        );
        assert_eq!(cache.provenance(0, 1, 10), Provenance::Propagated);
        assert_eq!(cache.provenance(0, 0, 5), Provenance::Empty);
    }
}

/// A query reads the holes that lie in its window, and no others.
#[test]
fn holes_behind_the_window_are_not_read() {
    let mut cache = KvCache::host(
        CacheShape {
            rows: 1,
            n_kv_heads: 1,
            head_dim: 4,
            capacity: vec![20, 20],
            windows: vec![Some(3)],
        },
        KvType::F32,
    );
    for layer in 0..2 {
        for (position, how) in [
            Provenance::Computed,
            Provenance::Propagated,
            Provenance::Masked,
            Provenance::Computed,
        ]
        .into_iter()
        .enumerate()
        {
            cache
                .claim(layer, &[Span::token(0, position)], how)
                .unwrap();
        }
    }
    let mut before = cache.hole_reads();
    let mut reads = |cache: &mut KvCache, layer, span: Span| {
        cache.claim(layer, &[span], Provenance::Computed).unwrap();
        let after = cache.hole_reads();
        let reads = (
            after.approximate - before.approximate,
            after.masked - before.masked,
        );
        before = after;
        reads
    };
    // Positions 4 and 5 see 2 to 4 and 3 to 5.
    let span = Span {
        row: 0,
        start: 4,
        len: 2,
    };
    assert_eq!(reads(&mut cache, 0, span), (0, 1));
    assert_eq!(reads(&mut cache, 1, span), (2, 2));
    let counted = cache.hole_reads();
    cache.discount_reads(0, span);
    assert_eq!(cache.hole_reads().masked + 1, counted.masked);
}

#[test]
fn a_full_cache_names_the_position() {
    let error = cache().claim(0, &Span::prompts([9]), Provenance::Computed);
    assert!(matches!(
        error,
        Err(ModelError::CacheFull { position: 8, .. })
    ));
}

/// A cache of two layers, three rows of two heads, of which row `r` holds keys `100 r + ...` and values behind them in layer 0.
fn filled(kept: KvType) -> KvCache {
    let shape = CacheShape {
        rows: 3,
        n_kv_heads: 2,
        head_dim: 4,
        capacity: vec![5, 7],
        windows: Vec::new(),
    };
    let mut cache = KvCache::host(shape, kept);
    cache.reserve(5).unwrap();
    for layer in 0..2 {
        let spans = Span::prompts([4, 2, 3]);
        cache.claim(layer, &spans, Provenance::Computed).unwrap();
    }
    let per_row = 2 * 5 * 4;
    let keys: Vec<f32> = (0..3 * per_row)
        .map(|at| (100 * (at / per_row) + at % per_row) as f32 / 8.0)
        .collect();
    let values: Vec<f32> = keys.iter().map(|key| -key).collect();
    let Storage::Host(kv) = &mut cache.layer_mut(0, &[]).0.storage else {
        unreachable!()
    };
    kv.write(0, &keys, &values);
    cache
}

/// Whatever order the rows are in: each is read before any is written.
#[test]
fn beams_take_over_what_their_parents_held() {
    for kept in [KvType::F32, KvType::Bf16, KvType::F16] {
        let before = filled(kept);
        let mut cache = filled(kept);
        let parents = [2, 0, 1];
        assert_eq!(cache.reorder(&parents).unwrap(), 2 * (3 + 4 + 2));
        for (row, parent) in parents.into_iter().enumerate() {
            assert_eq!(cache.filled(0, row), before.filled(0, parent));
            for position in 0..cache.filled(0, row) {
                let found = cache.key_value(0, row, position).unwrap();
                assert_eq!(found, before.key_value(0, parent, position).unwrap());
            }
        }
        assert_ne!(
            cache.key_value(0, 0, 0).unwrap(),
            before.key_value(0, 0, 0).unwrap()
        );
    }
}

#[test]
fn a_layer_copies_keys_and_values_of_the_one_below() {
    for kept in [KvType::F32, KvType::Bf16, KvType::F16] {
        let mut cache = filled(kept);
        let span = [Span::token(2, 3)];
        cache.claim(0, &span, Provenance::Computed).unwrap();
        cache.copy_below(1, &span).unwrap();
        let (keys, values) = cache.key_value(1, 2, 3).unwrap();
        assert_eq!(cache.key_value(0, 2, 3).unwrap(), (keys.clone(), values));
        assert_eq!(keys[0], (200.0 + 12.0) / 8.0);
        assert_eq!(cache.provenance(1, 2, 3), Provenance::Copied);
    }
}
