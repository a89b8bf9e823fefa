//! Where the names of points go: beside them, over nothing else.

/// About the width of a letter and the height of a line, pixels.
const LETTER: f64 = 6.1;
const LINE: f64 = 12.0;
/// What a marker takes around its middle, pixels.
const MARKER: f64 = 6.0;

#[derive(Clone, Copy)]
struct Rect {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Rect {
    fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

/// Places for the names of `points`, as the left ends of their base lines; a name for which there is none is left out.
/// `edges`: left, top, right and bottom of what may be written on.
pub(crate) fn place<'a>(
    points: &[((f64, f64), &'a str)],
    markers: &[(f64, f64)],
    edges: (f64, f64, f64, f64),
) -> Vec<((f64, f64), &'a str)> {
    let mut taken: Vec<Rect> = markers
        .iter()
        .map(|&(x, y)| Rect {
            left: x - MARKER,
            top: y - MARKER,
            right: x + MARKER,
            bottom: y + MARKER,
        })
        .collect();
    let mut placed = Vec::new();
    for &((x, y), name) in points {
        let width = LETTER * name.chars().count() as f64;
        let (right, left) = (x + MARKER + 2.0, x - MARKER - 2.0 - width);
        let starts = [
            (right, y - 4.0),
            (right, y + 12.0),
            (left, y - 4.0),
            (left, y + 12.0),
            (x - width / 2.0, y - 10.0),
            (x - width / 2.0, y + 19.0),
            (x - width / 4.0, y - 10.0),
            (x - width / 4.0, y + 19.0),
            (x - width * 0.75, y - 10.0),
            (x - width * 0.75, y + 19.0),
            (right, y - 16.0),
            (right, y + 25.0),
            (left, y - 16.0),
            (left, y + 25.0),
        ];
        let free = starts.into_iter().find_map(|(x, y)| {
            let rect = Rect {
                left: x,
                top: y - LINE + 2.0,
                right: x + width,
                bottom: y + 2.0,
            };
            let is_inside = rect.left >= edges.0
                && rect.top >= edges.1
                && rect.right <= edges.2
                && rect.bottom <= edges.3;
            let is_free = is_inside && !taken.iter().any(|other| other.overlaps(&rect));
            is_free.then_some(((x, y), rect))
        });
        if let Some((place, rect)) = free {
            taken.push(rect);
            placed.push((place, name));
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cover_neither_points_nor_each_other() {
        let points = [
            ((50.0, 50.0), "one"),
            ((52.0, 52.0), "two"),
            ((95.0, 5.0), "edge"),
        ];
        let markers: Vec<(f64, f64)> = points.iter().map(|(at, _)| *at).collect();
        let placed = place(&points, &markers, (0.0, 0.0, 100.0, 100.0));
        assert_eq!(placed.len(), 3);
        assert_ne!(placed[0].0, placed[1].0);
        assert!(placed[2].0.0 < 95.0, "to the left of the edge");
        let crowded = place(&points[..1], &markers, (49.0, 49.0, 51.0, 51.0));
        assert!(crowded.is_empty());
    }
}
