use super::*;
use candle_core::{Device, Var};

/// Numbers between -1 and 1.
fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|at| ((at * 37 + seed * 11) % 101) as f64 / 50.0 - 1.0)
        .collect()
}

/// Query by query, in f64; without RoPE.
fn plainly(shape: &Attention, [q, k, v]: [&[f64]; 3]) -> Vec<f64> {
    let (d, rows) = (shape.head_dim, q.len() / shape.q_width());
    let mut out = Vec::new();
    for query in 0..rows {
        let (first_row, position) = (query / shape.seq * shape.seq, query % shape.seq);
        for head in 0..shape.n_heads {
            let kv = |key: usize| ((first_row + key) * shape.n_kv_heads + head / shape.group()) * d;
            let q = &q[(query * shape.n_heads + head) * d..][..d];
            let scores = (shape.first_seen(position)..=position).map(|key| {
                let k = &k[kv(key)..][..d];
                let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                let score = dot * f64::from(shape.scale);
                let cap = shape.cap.map(f64::from);
                let score = cap.map_or(score, |cap| cap * (score / cap).tanh());
                let slope = shape.slopes.as_ref().map_or(0.0, |slopes| slopes[head]);
                (
                    key,
                    (score - f64::from(slope) * (position - key) as f64).exp(),
                )
            });
            let scores: Vec<(usize, f64)> = scores.collect();
            let sum: f64 = scores.iter().map(|(_, weight)| weight).sum();
            out.extend((0..d).map(|i| {
                let terms = scores.iter().map(|(key, weight)| weight * v[kv(*key) + i]);
                terms.sum::<f64>() / sum
            }));
        }
    }
    out
}

/// Sequences of several blocks, with a rest, and windows that begin within a block.
#[test]
fn blocks_and_their_gradients_are_those_of_single_queries() {
    let plain = Attention {
        seq: 2 * ROWS + 7,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        scale: 0.4,
        cap: None,
        window: None,
        rope: None,
        slopes: None,
    };
    let windowed = Attention {
        window: Some(21),
        cap: Some(1.5),
        ..plain.clone()
    };
    let sloped = Attention {
        slopes: Some(vec![0.5, 0.25, 0.1, 0.01].into()),
        ..plain.clone()
    };
    for shape in [plain, windowed, sloped] {
        let tokens = 2 * shape.seq;
        let widths = [shape.q_width(), shape.kv_width(), shape.kv_width()];
        let inputs = [0, 1, 2].map(|i| numbers(tokens * widths[i], i));
        let vars = [0, 1, 2].map(|i| {
            let values = inputs[i].iter().map(|x| *x as f32).collect();
            let tensor = Tensor::from_vec(values, (tokens, widths[i]), &Device::Cpu);
            Var::from_tensor(&tensor.unwrap()).unwrap()
        });
        let out = vars[0]
            .apply_op3(&vars[1], &vars[2], shape.clone())
            .unwrap();
        let wanted = plainly(&shape, [&inputs[0], &inputs[1], &inputs[2]]);
        for (found, wanted) in values(&out).unwrap().iter().zip(&wanted) {
            assert!(
                (f64::from(*found) - wanted).abs() < 1e-5,
                "{found} {wanted}"
            );
        }

        let grad = numbers(wanted.len(), 5);
        let weights = grad.iter().map(|x| *x as f32).collect();
        let weights = Tensor::from_vec(weights, out.shape(), &Device::Cpu).unwrap();
        let grads = (out * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for i in 0..3 {
            let direction = numbers(inputs[i].len(), 9);
            let loss = |step: f64| -> f64 {
                let mut moved = inputs.clone();
                let along = moved[i].iter_mut().zip(&direction);
                along.for_each(|(x, along)| *x += step * along);
                let out = plainly(&shape, [&moved[0], &moved[1], &moved[2]]);
                out.iter().zip(&grad).map(|(out, grad)| out * grad).sum()
            };
            let wanted = (loss(1e-4) - loss(-1e-4)) / 2e-4;
            let found = values(grads.get(&vars[i]).unwrap()).unwrap();
            let found = found.iter().zip(&direction);
            let found: f64 = found.map(|(grad, along)| f64::from(*grad) * along).sum();
            assert!(
                (found - wanted).abs() < 1e-3 * wanted.abs().max(1.0),
                "{i}: {found} {wanted}"
            );
        }
    }
}
