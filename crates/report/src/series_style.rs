//! Colours and shapes that tell the series of a plot apart.

use crate::svg;

/// Okabe and Ito's palette, told apart by colour-blind readers; black is kept for the full network. Behind it each colour is
/// as far in Oklab from all before it as any that is neither pale nor dark.
#[rustfmt::skip]
const PALETTE: [&str; 48] = [
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#94673C", "#9600FF", "#870F69",
    "#0000FF", "#FF0FFF", "#006900", "#78C300", "#D20096", "#7878FF", "#5A1EB4", "#B4000F", "#875A96",
    "#FF1E5A", "#D278FF", "#3C4B78", "#783C00", "#96961E", "#FF7869", "#3CC3A5", "#FF4BB4", "#B44BD2",
    "#2D5AF0", "#7887B4", "#007869", "#9600B4", "#C34B69", "#B48769", "#00A500", "#004BB4", "#784BD2",
    "#697800", "#5A00FF", "#A596E1", "#0096FF", "#784B5A", "#0F5A4B", "#0FA5B4", "#E10000", "#5A5A0F",
    "#C30FFF", "#B4005A", "#A5B45A",
];
/// What a point is drawn in where another one is better in everything.
pub(crate) const FAINT: &str = "#B4B4B4";
const SHAPES: usize = 6;

/// How a series looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// The full network, to which all others are compared.
    Full,
    /// The series of that number.
    Nth(usize),
    /// What a paper printed of the series of that number: hollow markers of its shape and colour.
    Printed(usize),
}

impl Style {
    /// Class of what is drawn in its colour: in the dark, the full network is white.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Nth(_) | Self::Printed(_) => "series",
        }
    }

    /// A colour of its own for each of 48 series.
    pub(crate) fn color(self) -> &'static str {
        match self {
            Self::Full => "#000000",
            Self::Nth(index) | Self::Printed(index) => PALETTE[index % PALETTE.len()],
        }
    }

    /// A shape that its neighbours do not have, so that colour is not needed to tell them apart.
    pub(crate) fn marker(self, class: &str, fill: &str, (x, y): (f64, f64)) -> String {
        let corners = self.corners();
        let scaled = |scale: f64| -> Vec<(f64, f64)> {
            let corners = corners.iter();
            corners
                .map(|&(dx, dy)| (x + scale * dx, y + scale * dy))
                .collect()
        };
        let marker = svg::polygon(class, fill, &scaled(1.0));
        match self {
            Self::Printed(_) => marker + &svg::polygon("hole", "#FFFFFF", &scaled(0.55)),
            Self::Full | Self::Nth(_) => marker,
        }
    }

    /// Corners of the marker around its centre, pixels.
    fn corners(self) -> Vec<(f64, f64)> {
        let (Self::Nth(index) | Self::Printed(index)) = self else {
            return polygon(10, |i| if i % 2 == 0 { 7.2 } else { 3.0 });
        };
        match index % SHAPES {
            0 => polygon(24, |_| 4.6),
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

    #[test]
    fn no_two_of_forty_eight_series_share_a_colour() {
        let channels = |index: usize| {
            let color = Style::Nth(index).color();
            [1, 3, 5].map(|at| i32::from_str_radix(&color[at..at + 2], 16).unwrap())
        };
        for one in 0..48 {
            for other in 0..one {
                let apart: i32 = std::iter::zip(channels(one), channels(other))
                    .map(|(a, b)| (a - b).abs())
                    .sum();
                assert!(apart >= 24, "{one} {other}: {apart}");
            }
        }
    }
}
