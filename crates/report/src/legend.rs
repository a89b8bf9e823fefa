//! The legend of a plot that is a file of its own: every name whole, on as many lines as it needs.

use crate::svg::{self, Anchor};

/// Width of a legend, pixels.
pub(crate) const WIDTH: f64 = 240.0;
/// Characters that a line holds, and where text begins.
const FITS: usize = 29;
const INDENT: f64 = 40.0;
/// From one line of a name to its next, and what lies between names, pixels.
const LINE: f64 = 15.0;
const GAP: f64 = 7.0;

/// An entry: its key, drawn around a place, and its name.
pub(crate) struct Entry {
    pub(crate) key: Box<dyn Fn((f64, f64)) -> String>,
    pub(crate) name: String,
}

/// Draws a legend whose upper left corner is given; gives how high it is.
pub(crate) fn draw(entries: &[Entry], (left, top): (f64, f64)) -> (String, f64) {
    let mut body = String::new();
    let mut y = top;
    for entry in entries {
        body += &(entry.key)((left + 20.0, y));
        for line in wrap(&entry.name, FITS) {
            body += &svg::text("key", (left + INDENT, y + 4.0), Anchor::Start, &line);
            y += LINE;
        }
        y += GAP;
    }
    (body, y - top)
}

/// A name on lines of at most `fits` characters, broken before its settings and between them; where that is not enough
/// between words, and within a word that is longer.
fn wrap(name: &str, fits: usize) -> Vec<String> {
    let length = |text: &str| text.trim_end().chars().count();
    let parts = name.split_inclusive(", ").flat_map(|part| {
        let (name, settings) = part.split_at(part.find('{').unwrap_or(part.len()));
        [name, settings]
    });
    let pieces = parts.flat_map(|part| match length(part) > fits {
        true => part.split_inclusive(' ').collect::<Vec<&str>>(),
        false => vec![part],
    });
    let mut lines = vec![String::new()];
    for piece in pieces {
        let last = lines.last().map_or(0, |line| line.chars().count());
        if last > 0 && last + length(piece) > fits {
            lines.push(String::new());
        }
        for c in piece.chars() {
            let is_full = |line: &String| line.chars().count() == fits && c != ' ';
            if lines.last().is_some_and(is_full) {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
            }
        }
    }
    lines.retain(|line| !line.trim().is_empty());
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_cut() {
        assert_eq!(wrap("early-exit", 28), ["early-exit"]);
        assert_eq!(
            wrap("early-exit {kv-fill: copy}", 28),
            ["early-exit {kv-fill: copy}"]
        );
        assert_eq!(
            wrap("early-exit {kv-fill: deferred, batch-mode: sync}", 28),
            ["early-exit", "{kv-fill: deferred,", "batch-mode: sync}"]
        );
        assert_eq!(
            wrap("grey: better in both", 12),
            ["grey: better", "in both"]
        );
        assert_eq!(
            wrap("a-name-that-is-too-long", 8),
            ["a-name-t", "hat-is-t", "oo-long"]
        );
    }

    #[test]
    fn a_legend_is_as_high_as_its_names() {
        let entry = || Entry {
            key: Box::new(|_| String::new()),
            name: "early-exit {kv-fill: deferred, batch-mode: sync}".to_owned(),
        };
        let (_, one) = draw(&[entry()], (0.0, 0.0));
        let (body, two) = draw(&[entry(), entry()], (0.0, 0.0));
        assert_eq!(two, 2.0 * one);
        assert_eq!(body.matches("<text").count(), 6);
    }
}
