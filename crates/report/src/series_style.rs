//! Colours and shapes that tell the series of a plot apart.

use crate::image::PX;
use plotters::prelude::*;

/// Okabe and Ito's palette, told apart by colour-blind readers; black is kept for the full network.
const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(148, 103, 60),
    RGBColor(110, 110, 110),
];
const SHAPES: usize = 6;

/// How a series looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// The full network, to which all others are compared.
    Full,
    /// The series of that number.
    Nth(usize),
}

impl Style {
    pub(crate) fn color(self) -> RGBColor {
        match self {
            Self::Full => BLACK,
            Self::Nth(index) => PALETTE[index % PALETTE.len()],
        }
    }

    /// A shape of its own for each series, so that colour is not needed to tell them apart.
    pub(crate) fn marker(self, (x, y): (i32, i32)) -> Polygon<(i32, i32)> {
        let at = |offset: f64| (offset * f64::from(PX)).round() as i32;
        let corners = self.corners().into_iter();
        let corners: Vec<(i32, i32)> = corners.map(|(dx, dy)| (x + at(dx), y + at(dy))).collect();
        Polygon::new(corners, self.color().filled())
    }

    /// Corners of the marker around its centre, pixels.
    fn corners(self) -> Vec<(f64, f64)> {
        let Self::Nth(index) = self else {
            return polygon(10, |i| if i % 2 == 0 { 7.2 } else { 3.0 });
        };
        match shape(index) {
            0 => polygon(32, |_| 4.6),
            1 => vec![(-4.0, -4.0), (4.0, -4.0), (4.0, 4.0), (-4.0, 4.0)],
            2 => vec![(0.0, -6.0), (5.0, 4.0), (-5.0, 4.0)],
            3 => polygon(4, |_| 6.0),
            4 => vec![(-5.0, -4.0), (5.0, -4.0), (0.0, 6.0)],
            // A plus: an arm's three corners, turned by quarters.
            _ => [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)]
                .into_iter()
                .flat_map(|(c, s)| {
                    [(5.0, -2.0), (5.0, 2.0), (2.0, 2.0)]
                        .map(|(x, y)| (c * x - s * y, s * x + c * y))
                })
                .collect(),
        }
    }
}

/// Colours and shapes come round together after 24 series; from there on they meet in the other way.
fn shape(index: usize) -> usize {
    (index + index / 24) % SHAPES
}

/// Corners around the origin from the top, each at its own radius, pixels.
fn polygon(corners: usize, radius: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    (0..corners)
        .map(|i| {
            let angle = std::f64::consts::TAU * i as f64 / corners as f64;
            (radius(i) * angle.sin(), -radius(i) * angle.cos())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn forty_eight_series_look_different() {
        let looks: HashSet<_> = (0..48)
            .map(|i| {
                let RGBColor(red, green, blue) = Style::Nth(i).color();
                (red, green, blue, shape(i))
            })
            .collect();
        assert_eq!(looks.len(), 48);
    }
}
