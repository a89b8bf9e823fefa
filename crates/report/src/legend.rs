//! Where the labels of a legend go: as large as they fit, settings on lines of their own.

use crate::image::PX;

/// Height of a legend, drawing units.
const HEIGHT: i32 = 425 * PX;
/// Width of a label, drawing units.
const WIDTH: i32 = 195 * PX;
/// Largest and smallest letters, pixels.
const LETTERS: (i32, i32) = (13, 7);
/// From one label to the next where there is room, drawing units.
const PITCH: i32 = 22 * PX;

/// Labels of a legend from top to bottom.
pub(crate) struct Legend {
    /// Height of the letters, drawing units.
    pub(crate) letters: i32,
    /// From one line of a label to its next, drawing units.
    pub(crate) line: i32,
    /// For each label its lines, and how far its first lies below the first of all.
    pub(crate) labels: Vec<(Vec<String>, i32)>,
}

impl Legend {
    pub(crate) fn new<'a>(labels: impl Iterator<Item = &'a str> + Clone) -> Self {
        let in_letters = |pixels: i32| {
            let letters = pixels * PX;
            let chars = (WIDTH * 25 / (letters * 13)) as usize;
            let labels: Vec<_> = labels.clone().map(|label| wrap(label, chars)).collect();
            let text: i32 = labels.iter().map(|lines| height(lines, letters)).sum();
            (letters, labels, text)
        };
        let (letters, labels, text) = (LETTERS.1..=LETTERS.0)
            .rev()
            .map(in_letters)
            .find(|(_, labels, text)| {
                let cut = labels.iter().flatten().any(|line| line.ends_with('…'));
                *text <= HEIGHT && !cut
            })
            .unwrap_or_else(|| in_letters(LETTERS.1));
        // Where even the smallest are too many they overlap rather than leave the picture.
        let gaps = labels.len().saturating_sub(1).max(1) as i32;
        let gap = (HEIGHT - text)
            .div_euclid(gaps)
            .min(PITCH - height(&[String::new()], letters));
        let mut y = 0;
        Self {
            letters,
            line: line(letters),
            labels: labels
                .into_iter()
                .map(|lines| {
                    let at = y;
                    y += height(&lines, letters) + gap;
                    (lines, at)
                })
                .collect(),
        }
    }
}

/// From one line to the next.
fn line(letters: i32) -> i32 {
    letters * 5 / 4
}

/// Height of a label with the least distance to the next.
fn height(lines: &[String], letters: i32) -> i32 {
    lines.len() as i32 * line(letters) + letters / 10
}

/// A label on lines of at most `fits` characters, broken before its settings and between them.
fn wrap(label: &str, fits: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let parts = label.split_inclusive(", ").flat_map(|part| {
        let (name, settings) = part.split_at(part.find('{').unwrap_or(part.len()));
        [name, settings].into_iter().filter(|part| !part.is_empty())
    });
    for part in parts {
        let last = lines.last().map_or(0, |line| line.chars().count());
        if last > 0 && last + part.trim_end().chars().count() > fits {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(part);
        }
    }
    lines
        .into_iter()
        .map(|line| cut(line.trim_end(), fits))
        .collect()
}

fn cut(line: &str, fits: usize) -> String {
    match line.chars().count() > fits {
        true => line.chars().take(fits - 1).chain(['…']).collect(),
        false => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_on_lines_of_their_own_where_the_line_is_full() {
        assert_eq!(wrap("early-exit", 28), ["early-exit"]);
        assert_eq!(
            wrap("early-exit {kv-fill: copy}", 28),
            ["early-exit {kv-fill: copy}"]
        );
        assert_eq!(
            wrap("early-exit {kv-fill: deferred, batch-mode: sync}", 28),
            ["early-exit", "{kv-fill: deferred,", "batch-mode: sync}"]
        );
        assert_eq!(wrap("a-name-that-is-too-long", 8), ["a-name-…"]);
    }

    #[test]
    fn few_labels_are_large_and_many_stay_within_the_legend() {
        let few = Legend::new(["full", "unified", "top"].into_iter());
        assert_eq!(few.letters, LETTERS.0 * PX);
        assert_eq!(few.labels[1].1, PITCH);
        for count in [10, 20, 30] {
            let name = "early-exit {kv-fill: deferred, batch-mode: sync}";
            let many = Legend::new((0..count).map(|_| name));
            let (lines, at) = &many.labels[count - 1];
            assert!(at + height(lines, many.letters) <= HEIGHT, "{count}");
            assert!(!lines.iter().any(|line| line.ends_with('…')), "{count}");
        }
        let crowd = Legend::new((0..70).map(|_| "early-exit"));
        let (lines, at) = &crowd.labels[69];
        assert!(at + height(lines, crowd.letters) <= HEIGHT);
    }
}
