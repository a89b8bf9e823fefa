//! The axes of a plot: from values to places, and the grid with its numbers.

use crate::svg::{self, Anchor};
use std::ops::Range;

/// Numbers along an axis, about.
const TICKS: f64 = 6.0;

/// An axis.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) range: Range<f64>,
    pub(crate) label: String,
    /// Equal factors are equally far apart.
    pub(crate) is_log: bool,
    /// The smallest value stands where the largest would.
    pub(crate) is_turned: bool,
}

impl Axis {
    pub(crate) fn new(range: Range<f64>, label: &str) -> Self {
        Self {
            range,
            label: label.to_owned(),
            is_log: false,
            is_turned: false,
        }
    }

    /// How far along the axis a value stands, 0 to 1; what lies beyond an end stands at the end.
    fn share(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_log { value.ln() } else { value };
        let (start, end) = (scale(self.range.start), scale(self.range.end));
        let share = ((scale(value) - start) / (end - start)).clamp(0.0, 1.0);
        match self.is_turned {
            true => 1.0 - share,
            false => share,
        }
    }

    /// Round values within the range, as they are written.
    fn ticks(&self) -> Vec<(f64, String)> {
        let Range { start, end } = self.range;
        if self.is_log {
            let decades = start.log10().floor() as i32..=end.log10().ceil() as i32;
            let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|d| d * 10f64.powi(decade)));
            return all
                .filter(|value| self.range.contains(value))
                .map(|value| (value, format!("{value}")))
                .collect();
        }
        let step = round_step((end - start) / TICKS);
        let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize
            + usize::from(step / 10f64.powf(step.log10().floor()) == 2.5);
        let first = (start / step - 1e-9).ceil() as i64;
        let last = (end / step + 1e-9).floor() as i64;
        (first..=last)
            .map(|index| {
                let value = index as f64 * step;
                (value, format!("{value:.digits$}"))
            })
            .collect()
    }
}

/// The next of 1, 2, 2.5, 5 and 10 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|&step| step >= least * 0.999)
        .unwrap_or(10.0 * power)
}

/// Where a plot stands, pixels, between its axes.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
}

impl Frame {
    /// The place of a point; what lies outside stands on the edge.
    pub(crate) fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            self.left + self.width * self.x.share(x),
            self.top + self.height * (1.0 - self.y.share(y)),
        )
    }

    pub(crate) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(crate) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, axes, numbers and labels.
    pub(crate) fn draw(&self) -> String {
        let mut body = String::new();
        for (value, label) in self.x.ticks() {
            let x = self.at((value, self.y.range.start)).0;
            let line = [(x, self.top), (x, self.bottom())];
            body += &svg::line("grid", "", &line);
            body += &svg::text("tick", (x, self.bottom() + 17.0), Anchor::Middle, &label);
        }
        for (value, label) in self.y.ticks() {
            let y = self.at((self.x.range.start, value)).1;
            let line = [(self.left, y), (self.right(), y)];
            body += &svg::line("grid", "", &line);
            body += &svg::text("tick", (self.left - 7.0, y + 4.0), Anchor::End, &label);
        }
        let corners = [
            (self.left, self.top),
            (self.left, self.bottom()),
            (self.right(), self.bottom()),
        ];
        body += &svg::line("frame", "", &corners);
        let below = (self.left + self.width / 2.0, self.bottom() + 38.0);
        body += &svg::text("axis", below, Anchor::Middle, &self.x.label);
        let beside = (self.left - 48.0, self.top + self.height / 2.0);
        body += &svg::upright("axis", beside, &self.y.label);
        body
    }
}

/// Of the width of all values, how far the ends of intervals may widen an axis. One that is hardly known would squeeze all
/// others; its bar ends at the edge.
const WIDENED: f64 = 0.25;

/// The range of an axis: all values, and the ends of their intervals as far as they are not far away.
pub(crate) fn range(
    values: impl Iterator<Item = f64>,
    ends: impl Iterator<Item = f64>,
) -> Range<f64> {
    let values: Vec<f64> = values.collect();
    let inner = padded(values.iter().copied());
    let room = WIDENED * (inner.end - inner.start);
    let ends = ends.map(|end| end.clamp(inner.start - room, inner.end + room));
    padded(values.iter().copied().chain(ends))
}

/// A range that holds all values with a margin, and is never empty.
pub(crate) fn padded(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (lo, hi) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), value| {
            (lo.min(value), hi.max(value))
        });
    if lo > hi {
        return 0.0..1.0;
    }
    let margin = ((hi - lo) * 0.06).max(hi.abs() * 0.02).max(1e-3);
    let low = lo - margin;
    // A margin below zero would suggest that less than nothing is possible.
    (if lo >= 0.0 { low.max(0.0) } else { low })..hi + margin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_that_says_nothing_does_not_squeeze_the_rest() {
        let points = [1.0, 2.0];
        let near = range(points.into_iter(), [0.9, 2.1].into_iter());
        assert!(
            near.start < 0.9 && (2.1..2.3).contains(&near.end),
            "{near:?}"
        );
        let far = range(points.into_iter(), [0.9, 16.0, f64::NAN].into_iter());
        assert!(far.start < 0.9 && (2.1..2.6).contains(&far.end), "{far:?}");
        assert_eq!(range([].into_iter(), [].into_iter()), 0.0..1.0);
    }

    fn labels(range: Range<f64>) -> Vec<String> {
        let ticks = Axis::new(range, "").ticks();
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn numbers_on_an_axis_are_round_and_within_it() {
        assert_eq!(
            labels(0.0..1.2),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]
        );
        assert_eq!(labels(0.93..1.02), ["0.94", "0.96", "0.98", "1.00", "1.02"]);
        assert_eq!(
            labels(0.0..14.0),
            ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]
        );
        assert_eq!(labels(10.0..59.0), ["10", "20", "30", "40", "50"]);
        let log = Axis {
            is_log: true,
            ..Axis::new(0.04..3.0, "")
        };
        let ticks: Vec<f64> = log.ticks().into_iter().map(|(value, _)| value).collect();
        assert_eq!(ticks, [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]);
    }

    #[test]
    fn a_turned_axis_has_its_smallest_value_on_top() {
        let mut axis = Axis::new(0.0..10.0, "");
        assert_eq!((axis.share(2.0), axis.share(99.0)), (0.2, 1.0));
        axis.is_turned = true;
        assert_eq!(axis.share(2.0), 0.8);
    }
}
