//! Text of an SVG.
//!
//! Everything has a class, so that the page that holds a plot says how it looks in the light, in the dark, on a phone and on
//! paper. A file of its own brings [`STYLE`].

use std::fmt::Write;

/// Where a plot is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// In a page, which has its title, its legend and its style.
    Page,
    /// Likewise, one of several side by side.
    Small,
    /// As a file of its own.
    File,
}

/// Family of the embedded font.
pub(crate) const FONT: &str = "DejaVu Sans";

/// How a file looks. Colours of series are attributes, since they are the same everywhere.
const STYLE: &str = "text{font-size:12px;fill:#1a1a1a}.title{font-size:17px}.axis{font-size:14px}.name{font-size:11px}\
.grid{stroke:#e6e6e6}.frame{stroke:#1a1a1a}.guide{stroke:#8c8c8c;stroke-dasharray:6 4}\
.line{stroke-width:2}.bar{opacity:0.6}.faintline{opacity:0.25}.hollow{stroke-width:1.5}polygon.hollow{stroke:#1a1a1a}";

/// The page of a plot; `width` and `height` in pixels.
pub(crate) fn page(look: Look, (width, height): (f64, f64), label: &str, body: &str) -> String {
    let label = escape(label);
    match look {
        Look::Page | Look::Small => format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"group\" aria-label=\"{label}\">{body}</svg>"
        ),
        Look::File => format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"{FONT}, sans-serif\"><title>{label}</title><style>{STYLE}</style>\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>{body}</svg>\n"
        ),
    }
}

/// Text as it stands in markup.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Allowed in no XML file.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Tenths of a pixel are fine enough.
pub(crate) fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some("-0") => "0".to_owned(),
        Some(whole) => whole.to_owned(),
        None => text,
    }
}

/// Which point of a text stands at its place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

pub(crate) fn text(class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let (x, y, text) = (px(x), px(y), escape(text));
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>")
}

/// A text that is read from below, around its middle.
pub(crate) fn upright(class: &str, (x, y): (f64, f64), text: &str) -> String {
    let (x, y, text) = (px(x), px(y), escape(text));
    format!(
        "<text class=\"{class}\" transform=\"translate({x} {y}) rotate(-90)\" text-anchor=\"middle\">{text}</text>"
    )
}

/// Lines from corner to corner. `style`: attributes.
pub(crate) fn line(class: &str, style: &str, corners: &[(f64, f64)]) -> String {
    format!(
        "<path class=\"{class}\" fill=\"none\" {style} d=\"{}\"/>",
        path(corners)
    )
}

pub(crate) fn polygon(class: &str, fill: &str, corners: &[(f64, f64)]) -> String {
    let corners: Vec<String> = corners
        .iter()
        .map(|&(x, y)| format!("{},{}", px(x), px(y)))
        .collect();
    format!(
        "<polygon class=\"{class}\" fill=\"{fill}\" points=\"{}\"/>",
        corners.join(" ")
    )
}

/// `M`oves to the first corner and draws `L`ines to the others.
fn path(corners: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (index, &(x, y)) in corners.iter().enumerate() {
        let step = if index == 0 { 'M' } else { 'L' };
        // Writing to a string does not fail.
        let _ = write!(path, "{step}{} {}", px(x), px(y));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_text_is_escaped() {
        assert_eq!([1.0, -0.04, 2.25, 10.06].map(px), ["1", "0", "2.2", "10.1"]);
        assert_eq!(escape("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot; ");
    }
}
