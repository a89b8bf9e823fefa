use super::*;
use crate::host_kv::KvType;
use half::{bf16, f16};
use proptest::prelude::*;

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// What a row of keys and values gives to its last tokens.
struct Case {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    head_dim: usize,
    positions: usize,
    window: Option<usize>,
    masked: Vec<bool>,
    how: Scoring,
}

impl Case {
    /// Attention of the tokens from `start` on in one block.
    fn block(&self, start: usize, tokens: usize) -> Vec<f32> {
        self.over(&self.k, &self.v, start, tokens)
    }

    /// The same with keys and values that are kept in `T`.
    fn block_in<T: Element>(&self, start: usize, tokens: usize) -> Vec<f32> {
        let [k, v] = [&self.k, &self.v].map(|wide| {
            let mut kept = T::zeros(wide.len());
            T::narrow(wide, &mut kept);
            kept
        });
        self.over(&k, &v, start, tokens)
    }

    /// With keys and values rounded to `T`, in f32.
    fn rounded<T: Element>(&self) -> Self {
        let [k, v] = [&self.k, &self.v].map(|wide| {
            let mut kept = T::zeros(wide.len());
            T::narrow(wide, &mut kept);
            kept.into_iter().map(T::widen).collect()
        });
        Self {
            q: self.q.clone(),
            k,
            v,
            masked: self.masked.clone(),
            how: self.how.clone(),
            ..*self
        }
    }

    fn over<T: Element>(&self, k: &[T], v: &[T], start: usize, tokens: usize) -> Vec<f32> {
        let width = self.how.group * self.head_dim;
        let block = Block {
            q: &self.q[start * width..],
            stride: width,
            head: 0,
            tokens,
            start,
            window: self.window,
            k,
            v,
            head_dim: self.head_dim,
            masked: self.masked.get(..start + tokens).unwrap_or_default(),
        };
        attend_block(&block, &self.how, &mut Scratch::default()).to_vec()
    }

    /// One query by the definition, in f64.
    fn plain(&self, token: usize, head: usize) -> Vec<f64> {
        let d = self.head_dim;
        let q = &self.q[(token * self.how.group + head) * d..][..d];
        let first = (token + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
        let seen: Vec<usize> = (first..=token)
            .filter(|&at| !self.masked.get(at).is_some_and(|&masked| masked))
            .collect();
        let scores: Vec<f64> = seen
            .iter()
            .map(|&at| {
                let key = &self.k[at * d..][..d];
                let product: f64 = q.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum();
                let mut score = product * f64::from(self.how.scale);
                if let Some(cap) = self.how.cap.map(f64::from) {
                    score = cap * (score / cap).tanh();
                }
                let slope = self.how.slopes.get(head).copied().unwrap_or(0.0);
                score + f64::from(slope) * at as f64
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (0..d)
            .map(|channel| {
                let values = seen.iter().map(|&at| f64::from(self.v[at * d + channel]));
                values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn blocks_of_any_size_give_a_token_the_same_bits_and_the_right_values(
        head_dim in prop_oneof![Just(64usize), Just(16), Just(80), Just(12), Just(40)],
        group in 1usize..4,
        positions in 1usize..150,
        window in proptest::option::of(1usize..90),
        tokens in 1usize..20,
        cap in proptest::option::of(2f32..20.0),
        alibi in any::<bool>(),
        holes in any::<bool>(),
        seed in 1u32..1000,
    ) {
        let tokens = tokens.min(positions);
        let case = Case {
            q: values(positions * group * head_dim, seed),
            k: values(positions * head_dim, seed + 1),
            v: values(positions * head_dim, seed + 2),
            head_dim,
            positions,
            window,
            // Every token sees itself.
            masked: if holes { (0..positions).map(|at| at % 3 == 1 && at + tokens < positions).collect() } else { Vec::new() },
            how: Scoring {
                group,
                scale: 0.5,
                cap,
                slopes: if alibi { (0..group).map(|head| 0.1 * (head + 1) as f32).collect() } else { Vec::new() },
            },
        };
        let start = case.positions - tokens;
        let together = case.block(start, tokens);
        let alone: Vec<f32> = (start..positions).flat_map(|at| case.block(at, 1)).collect();
        prop_assert_eq!(&together, &alone);
        // Keys and values of 16 bits give what their values give in 32, bit for bit.
        for (found, rounded) in [
            (case.block_in::<bf16>(start, tokens), case.rounded::<bf16>()),
            (case.block_in::<f16>(start, tokens), case.rounded::<f16>()),
        ] {
            prop_assert_eq!(&found, &rounded.block(start, tokens));
            prop_assert!(found != together);
        }
        for (query, found) in together.chunks_exact(head_dim).enumerate() {
            for (found, wanted) in found.iter().zip(case.plain(start + query / group, query % group)) {
                prop_assert!((f64::from(*found) - wanted).abs() < 2e-5, "{found} {wanted}");
            }
        }
    }
}

/// Two rows of a batch, of which the second has holes: each sees its own alone.
#[test]
fn holes_are_those_of_the_row() {
    let (head_dim, positions, hidden) = (16, 9, [2, 5]);
    let how = Scoring {
        group: 2,
        scale: 0.5,
        cap: None,
        slopes: Vec::new(),
    };
    let rows = [1, 2].map(|seed| Case {
        q: values(positions * how.group * head_dim, seed),
        k: values(positions * head_dim, seed + 10),
        v: values(positions * head_dim, seed + 20),
        head_dim,
        positions,
        window: None,
        masked: match seed {
            1 => Vec::new(),
            _ => (0..positions).map(|at| hidden.contains(&at)).collect(),
        },
        how: how.clone(),
    });
    let mut layer = LayerKv::new(2, positions, Storage::Host(HostKv::new(KvType::F32)));
    layer.grow(positions, (1, head_dim)).unwrap();
    let Storage::Host(kept) = &mut layer.storage else {
        unreachable!()
    };
    for (row, case) in rows.iter().enumerate() {
        kept.write(row * positions * head_dim, &case.k, &case.v);
    }
    layer.masked = vec![false; 2 * positions];
    for at in hidden {
        layer.masked[positions + at] = true;
    }
    layer.holes[1].masked = hidden.len() as u64;
    let last = positions - 1;
    let q = rows.each_ref().map(|case| {
        let width = how.group * head_dim;
        case.q[last * width..].to_vec()
    });
    let spans = [Span::token(0, last), Span::token(1, last)];
    let found = attend(&q.concat(), &layer, &spans, (1, head_dim), &how);
    let wanted = rows.each_ref().map(|case| case.block(last, 1));
    assert_eq!(found, wanted.concat());
    let seen = Case {
        masked: Vec::new(),
        q: rows[1].q.clone(),
        k: rows[1].k.clone(),
        v: rows[1].v.clone(),
        how: how.clone(),
        ..rows[1]
    };
    assert_ne!(
        wanted[1],
        seen.block(last, 1),
        "the holes make a difference"
    );
}
