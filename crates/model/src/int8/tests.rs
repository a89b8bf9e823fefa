//! Every instruction set against the same sums written out, bit for bit, and against the arithmetic in f32 on the same
//! weights within what 8 bits of activations cost.

use super::*;
use crate::blocks::{Q4_0, Q4_1, Q8_0};
use crate::scratch::Pool;
use crate::stored::Stored;
use proptest::prelude::*;

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// Blocks as llama.cpp's files hold them, with every code that there can be.
fn any_blocks(values: usize, dtype: candle_core::quantized::GgmlDType, seed: u32) -> Vec<u8> {
    let stored = Stored::of(dtype);
    let noise = self::values(stored.bytes(values), seed);
    let mut bytes: Vec<u8> = noise.iter().map(|x| (x * 1e6) as i32 as u8).collect();
    // Scales and minima that are numbers.
    for (block, bytes) in bytes.chunks_mut(stored.bytes(BLOCK)).enumerate() {
        let number = |at: usize| half::f16::from_f32(noise[(7 * block + at) % noise.len()] * 0.1);
        bytes[..2].copy_from_slice(&number(1).to_le_bytes());
        if dtype == candle_core::quantized::GgmlDType::Q4_1 {
            bytes[2..4].copy_from_slice(&number(2).to_le_bytes());
        }
    }
    bytes
}

/// A weight with its values.
fn weight<K: Kind>(m: usize, k: usize, seed: u32) -> (BlockPanels<K>, Vec<f32>) {
    let bytes = any_blocks(m * k, K::TYPE, seed);
    let wide = Stored::of(K::TYPE).widen(&bytes).unwrap();
    let row = bytes.len() / m;
    let packed = BlockPanels::pack(m, k, &Pool::default(), |rows, scratch| {
        scratch.blocks.clear();
        let rows = &bytes[rows.start * row..rows.end * row];
        scratch.blocks.extend_from_slice(rows);
        Ok(())
    });
    (packed.unwrap(), wide)
}

/// The product by one instruction set, on one thread.
fn product_by<K: Kind>(isa: Isa, x: &[f32], w: &BlockPanels<K>) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / w.k * w.m];
    let product = Product {
        x: &Activations::new(x),
        w,
        y: y.as_mut_ptr(),
        stride: w.m,
    };
    product.panels(isa, 0..w.m.div_ceil(PANEL));
    y
}

/// The instruction sets that this machine has.
fn isas() -> Vec<Isa> {
    let mut isas = vec![Isa::Portable, isa()];
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Vnni {
        isas.push(Isa::Avx2);
    }
    isas
}

/// A row of activations, written out: its codes and scales.
fn quantised(x: &[f32]) -> Vec<(Vec<i32>, f32)> {
    let blocks = x.chunks(BLOCK).map(|block| {
        let largest = block.iter().fold(0f32, |max, x| max.max(x.abs()));
        let codes = block
            .iter()
            .map(|x| (x * (127.0 / largest)).round_ties_even() as i32);
        (codes.collect(), largest / 127.0)
    });
    blocks.collect()
}

/// An output, written out.
fn reference<K: Kind>(x: &[f32], w: &BlockPanels<K>, output: usize) -> f32 {
    let mut sum = 0f32;
    for (block, (codes, scale)) in quantised(x).into_iter().enumerate() {
        let at = output / PANEL * (w.k / BLOCK) + block;
        let lines = &w.lines[at * K::BITS..][..K::BITS];
        let code = |input: usize| code::<K>(lines, output % PANEL, input) - K::OFFSET;
        let whole: i32 = codes
            .iter()
            .enumerate()
            .map(|(input, x)| code(input) * x)
            .sum();
        sum += whole as f32 * (w.scales[at][output % PANEL].to_f32() * scale);
        if K::HAS_MIN {
            let all: i32 = codes.iter().sum();
            sum += w.mins[at][output % PANEL].to_f32() * (scale * all as f32);
        }
    }
    sum
}

fn is_exact_everywhere<K: Kind>(n: usize, m: usize, blocks: usize, seed: u32) {
    let k = blocks * BLOCK;
    let x = values(n * k, seed);
    let (w, wide) = weight::<K>(m, k, seed ^ 7);
    for isa in isas() {
        let y = product_by(isa, &x, &w);
        for row in 0..n {
            let x = &x[row * k..][..k];
            assert_eq!(
                product_by(isa, x, &w),
                y[row * m..][..m],
                "a row alone, {isa:?}"
            );
            for output in 0..m {
                let found = y[row * m + output];
                assert_eq!(found, reference(x, &w, output), "{isa:?}");
                // Each code of x is within half a step of what it stands for.
                let weights = &wide[output * k..][..k];
                let pairs = x.iter().zip(weights);
                let exact: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let steps = x.chunks(BLOCK).zip(weights.chunks(BLOCK)).map(|(x, w)| {
                    let step = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
                    f64::from(step / 2.0) * w.iter().map(|w| f64::from(w.abs())).sum::<f64>()
                });
                let bound = steps.sum::<f64>() * 1.001 + 1e-4;
                assert!(
                    (f64::from(found) - exact).abs() <= bound,
                    "{found} {exact} {bound}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_are_the_same_sums_everywhere(n in 1usize..10, m in 1usize..100, blocks in 1usize..5, seed: u32) {
        is_exact_everywhere::<Q8_0>(n, m, blocks, seed);
        is_exact_everywhere::<Q4_0>(n, m, blocks, seed);
        is_exact_everywhere::<Q4_1>(n, m, blocks, seed);
    }
}

#[test]
fn the_largest_codes_do_not_overflow() {
    let k = 4 * BLOCK;
    let mut bytes = Vec::new();
    for _ in 0..PANEL * 4 {
        bytes.extend(half::f16::ONE.to_le_bytes());
        bytes.extend([0x80; BLOCK]);
    }
    let packed = BlockPanels::<Q8_0>::pack(PANEL, k, &Pool::default(), |_, scratch| {
        scratch.blocks.clone_from(&bytes);
        Ok(())
    })
    .unwrap();
    for isa in isas() {
        let y = product_by(isa, &vec![-1.0; k], &packed);
        // -128 times -127 codes of 1 / 127.
        assert_eq!(y, [reference(&vec![-1.0; k], &packed, 0); PANEL], "{isa:?}");
        assert!((y[0] - 128.0 * k as f32).abs() < 0.01, "{}", y[0]);
    }
}

#[test]
fn threads_do_not_change_a_product() {
    let (n, m, k) = (9, 700, 320);
    let x = values(n * k, 1);
    let (w, _) = weight::<Q4_1>(m, k, 2);
    let mut y = vec![0.0; n * m];
    let columns = Columns {
        values: &mut y,
        stride: m,
    };
    w.matmul(&Activations::new(&x), columns);
    assert_eq!(y, product_by(isa(), &x, &w));
}

#[test]
fn rows_are_what_the_file_says() {
    fn check<K: Kind>() {
        let (w, wide) = weight::<K>(37, 96, 5);
        let mut found = Vec::new();
        (0..37).for_each(|row| w.row(row, &mut found));
        assert_eq!(found, wide);
    }
    check::<Q8_0>();
    check::<Q4_0>();
    check::<Q4_1>();
}

#[test]
fn what_is_no_number_stays_none() {
    let (w, _) = weight::<Q8_0>(PANEL, 64, 3);
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(64, 4);
        x[40] = wrong;
        for isa in isas() {
            let y = product_by(isa, &x, &w);
            assert!(y.iter().all(|y| !y.is_finite()), "{isa:?} {wrong}: {y:?}");
        }
    }
    assert_eq!(product_by(isa(), &[0.0; 64], &w), [0.0; PANEL]);
}
