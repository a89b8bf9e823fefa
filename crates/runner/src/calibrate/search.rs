//! The setting whose outcome is nearest to a target.

use skipbench_strategy::Knob;

/// Halvings at the most: a confidence may be so near to 1 that only the last digits of a threshold tell tokens apart.
const MOST_TRIALS: usize = 24;
/// A miss larger than this share of the target is said in the table.
const WORTH_A_NOTE: f64 = 0.05;
/// A target is out of reach if the fastest setting falls short of it by this share.
pub(super) const OUT_OF_REACH: f64 = 0.02;

/// What becomes of a measure as a knob goes from its fastest setting to its slowest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trend {
    Grows,
    Shrinks,
}

/// Settings of a knob and what `measure` gave for each: the fastest and the slowest, and between them by halving until one
/// is `close` to `wanted`, as a share of it, or `trials` have been made and one needs no note.
pub(super) fn bisect(
    knob: Knob,
    wanted: f64,
    trend: Trend,
    (close, trials): (f64, usize),
    mut measure: impl FnMut(f64) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let (mut fast, mut slow) = match knob.rises_with_depth {
        true => (knob.lo, knob.hi),
        false => (knob.hi, knob.lo),
    };
    let too_fast = |value: f64| (value < wanted) == (trend == Trend::Grows) && value != wanted;
    let mut points = vec![(fast, measure(fast)?)];
    // A target beyond an end is met best by that end.
    if !too_fast(points[0].1) {
        return Ok(points);
    }
    points.push((slow, measure(slow)?));
    if too_fast(points[1].1) {
        return Ok(points);
    }
    for trial in 0..MOST_TRIALS {
        let (_, best) = nearest(&points, wanted);
        let miss = (best / wanted - 1.0).abs();
        if miss < close || trial >= trials && miss <= WORTH_A_NOTE {
            break;
        }
        let middle = 0.5 * (fast + slow);
        let value = measure(middle)?;
        points.push((middle, value));
        match too_fast(value) {
            true => fast = middle,
            false => slow = middle,
        }
    }
    Ok(points)
}

/// Of (setting, outcome) the one whose outcome is nearest.
pub(super) fn nearest(points: &[(f64, f64)], wanted: f64) -> (f64, f64) {
    let apart = |point: &(f64, f64)| (point.1 - wanted).abs();
    let best = points.iter().min_by(|a, b| apart(a).total_cmp(&apart(b)));
    best.copied().unwrap_or((f64::NAN, f64::NAN))
}

pub(super) fn is_missed(found: f64, wanted: f64) -> bool {
    (found / wanted - 1.0).abs() > WORTH_A_NOTE
}

pub(super) fn out_of_reach(target: f64, fastest: f64) -> Option<String> {
    (fastest < target * (1.0 - OUT_OF_REACH)).then(|| {
        format!(
            "{target}x cannot be reached on this machine; the fastest setting gave {fastest:.2}x in calibration"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RISING: Knob = Knob {
        lo: 0.0,
        hi: 1.0,
        rises_with_depth: true,
    };

    fn found(knob: Knob, wanted: f64, trend: Trend, of: fn(f64) -> f64) -> (f64, f64, usize) {
        let points = bisect(knob, wanted, trend, (0.01, 7), |setting| Ok(of(setting))).unwrap();
        let (setting, value) = nearest(&points, wanted);
        (setting, value, points.len())
    }

    #[test]
    fn the_setting_that_meets_a_target_is_found() {
        let (setting, ..) = found(RISING, 8.0, Trend::Grows, |t| 2.0 + 14.0 * t);
        assert!((setting - 6.0 / 14.0).abs() < 0.01);
        let (setting, ..) = found(RISING, 2.0, Trend::Shrinks, |t| 4.0 - 3.0 * t);
        assert!((setting - 2.0 / 3.0).abs() < 0.01);
        let falling = Knob {
            rises_with_depth: false,
            ..RISING
        };
        let (setting, ..) = found(falling, 8.0, Trend::Grows, |t| 16.0 - 14.0 * t);
        assert!((setting - 8.0 / 14.0).abs() < 0.01);
    }

    #[test]
    fn an_end_meets_what_lies_beyond_it() {
        let (setting, value, trials) = found(RISING, 2.0, Trend::Grows, |t| 4.0 + 12.0 * t);
        assert_eq!((setting, value, trials), (0.0, 4.0, 1));
        // Confidences that only the last setting can beat.
        let saturated = |t: f64| if t < 1.0 { 6.0 } else { 16.0 };
        let (setting, value, trials) = found(RISING, 16.0, Trend::Grows, saturated);
        assert_eq!((setting, value, trials), (1.0, 16.0, 2));
    }

    #[test]
    fn a_steep_place_is_looked_at_closely() {
        let steep = |t: f64| 3.3 - 2.3 * ((t - 0.99) / 0.01).clamp(0.0, 1.0);
        let (_, speed, trials) = found(RISING, 1.3, Trend::Shrinks, steep);
        assert!((speed / 1.3 - 1.0).abs() <= WORTH_A_NOTE, "{speed}");
        assert!(trials > 7);
    }
}
