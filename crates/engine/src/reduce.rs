//! Sums and largest values over a row of logits, in lanes.

use skipbench_model::simd::exp;
use skipbench_model::vectorised;

const LANES: usize = 16;

/// Values that are summed in f32 before they are added to a sum in f64.
const SUMMED: usize = 1024;

vectorised! {
    /// The largest and the second largest value, NaN left out.
    fn two_largest(values: &[f32]) -> [f32; 2] = two_largest_body
}

#[inline(always)]
fn two_largest_body<const FMA: bool>(values: &[f32]) -> [f32; 2] {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let smaller = |a: f32, b: f32| if a > b { b } else { a };
    let mut first = [f32::NEG_INFINITY; LANES];
    let mut second = first;
    let (body, tail) = values.as_chunks::<LANES>();
    for values in body {
        for lane in 0..LANES {
            second[lane] = larger(smaller(values[lane], first[lane]), second[lane]);
            first[lane] = larger(values[lane], first[lane]);
        }
    }
    let mut two = [f32::NEG_INFINITY; 2];
    for &value in first.iter().chain(&second).chain(tail) {
        if value > two[0] {
            two = [value, two[0]];
        } else if value > two[1] {
            two[1] = value;
        }
    }
    two
}

vectorised! {
    fn has_nan(values: &[f32]) -> bool = has_nan_body
}

#[inline(always)]
fn has_nan_body<const FMA: bool>(values: &[f32]) -> bool {
    values.iter().fold(false, |nan, value| nan | value.is_nan())
}

vectorised! {
    /// Sums of `e^(x - largest)`, and of it times `x - largest`. Not numbers where one is not.
    fn sums(values: &[f32], largest: f32) -> [f64; 2] = sums_body
}

#[inline(always)]
fn terms<const FMA: bool>(below: f32) -> [f32; 2] {
    // What is so far below the largest adds nothing to either sum.
    let below = if below < -80.0 { -80.0 } else { below };
    let exp = exp::<FMA>(below);
    [exp, exp * below]
}

#[inline(always)]
fn sums_body<const FMA: bool>(values: &[f32], largest: f32) -> [f64; 2] {
    let (mut sum, mut weighted) = (0f64, 0f64);
    for values in values.chunks(SUMMED) {
        let mut lanes = [[0f32; LANES]; 2];
        let (body, tail) = values.as_chunks::<LANES>();
        for values in body {
            for lane in 0..LANES {
                let [exp, product] = terms::<FMA>(values[lane] - largest);
                lanes[0][lane] += exp;
                lanes[1][lane] += product;
            }
        }
        for &value in tail {
            let [exp, product] = terms::<FMA>(value - largest);
            lanes[0][0] += exp;
            lanes[1][0] += product;
        }
        sum += f64::from(lanes[0].iter().sum::<f32>());
        weighted += f64::from(lanes[1].iter().sum::<f32>());
    }
    [sum, weighted]
}

vectorised! {
    /// The largest logit, NaN left out.
    fn largest(logits: &[f32]) -> f32 = largest_body
}

#[inline(always)]
fn largest_body<const FMA: bool>(logits: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (body, tail) = logits.as_chunks::<LANES>();
    for values in body {
        for lane in 0..LANES {
            largest[lane] = if values[lane] > largest[lane] {
                values[lane]
            } else {
                largest[lane]
            };
        }
    }
    let mut of_all = f32::NEG_INFINITY;
    for value in largest.iter().chain(tail) {
        if *value > of_all {
            of_all = *value;
        }
    }
    of_all
}

/// What an exponential that is taken for zero is below: [`exp`] gives no less than `exp(-87)`.
const NEXT_TO_NOTHING: f32 = 1e-37;

vectorised! {
    /// The sum of `exp(x) (x - y)` with `x` and `y` the logits of both below the largest of their own.
    fn weighted_differences(full: &[f32], full_largest: f32, logits: &[f32], largest: f32) -> f64 = weighted_differences_body
}

#[inline(always)]
fn weighted_differences_body<const FMA: bool>(
    full: &[f32],
    full_largest: f32,
    logits: &[f32],
    largest: f32,
) -> f64 {
    let mut sum = 0f64;
    for (full, logits) in full.chunks(SUMMED).zip(logits.chunks(SUMMED)) {
        let mut lanes = [0f32; LANES];
        let (full, full_tail) = full.as_chunks::<LANES>();
        let (logits, tail) = logits.as_chunks::<LANES>();
        for (full, logits) in full.iter().zip(logits) {
            for lane in 0..LANES {
                let (x, y) = (full[lane] - full_largest, logits[lane] - largest);
                lanes[lane] += weighted_difference::<FMA>(x, y);
            }
        }
        for (x, y) in full_tail.iter().zip(tail) {
            lanes[0] += weighted_difference::<FMA>(x - full_largest, y - largest);
        }
        sum += f64::from(lanes.iter().sum::<f32>());
    }
    sum
}

#[inline(always)]
fn weighted_difference<const FMA: bool>(x: f32, y: f32) -> f32 {
    let weight = exp::<FMA>(x);
    // Of what cannot be, no difference counts, an infinite one included.
    if weight < NEXT_TO_NOTHING {
        0.0
    } else {
        weight * (x - y)
    }
}
