//! What a plot shows, read back from its SVG.

use resvg::usvg::roxmltree::{Document, Node};

/// An axis and the points of a colour, in the units of the axes.
pub(crate) struct Drawing<'a> {
    document: Document<'a>,
}

impl<'a> Drawing<'a> {
    pub(crate) fn read(svg: &'a str) -> Self {
        Self {
            document: Document::parse(svg).unwrap(),
        }
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.texts_at().into_iter().map(|(text, ..)| text).collect()
    }

    /// Texts with the x and y of their anchors.
    fn texts_at(&self) -> Vec<(String, f64, f64)> {
        let text = |node: Node<'_, '_>| {
            let text = node.text().unwrap_or_default().trim().to_owned();
            (text, number(node, "x"), number(node, "y"))
        };
        let texts = self
            .document
            .descendants()
            .filter(|node| node.has_tag_name("text"));
        texts.map(text).collect()
    }

    /// (position, value) of the labels of an axis, which share their other coordinate: those of x stand in the lowest line,
    /// those of y furthest left.
    fn ticks(&self, is_x: bool) -> Vec<(f64, f64)> {
        let texts = self.texts_at();
        let numbers = texts.iter().filter_map(|(text, x, y)| {
            // The base line of a number beside an axis is four pixels below its place.
            let (along, across) = if is_x { (*x, -*y) } else { (*y - 4.0, *x) };
            Some((across, along, text.parse::<f64>().ok()?))
        });
        let numbers: Vec<(f64, f64, f64)> = numbers.collect();
        let line = numbers
            .iter()
            .map(|number| number.0)
            .fold(f64::MAX, f64::min);
        let on_line = numbers
            .iter()
            .filter(|number| (number.0 - line).abs() < 1.0);
        let mut ticks: Vec<(f64, f64)> = on_line.map(|number| (number.1, number.2)).collect();
        ticks.sort_by(|a, b| a.1.total_cmp(&b.1));
        assert!(ticks.len() > 1, "{ticks:?}");
        ticks
    }

    /// The smallest number on an axis.
    pub(crate) fn lowest_label(&self, is_x: bool) -> f64 {
        self.ticks(is_x)[0].1
    }

    /// From a position to a value.
    fn axis(&self, is_x: bool) -> impl Fn(f64) -> f64 {
        let ticks = self.ticks(is_x);
        let ((from, low), (to, high)) = (ticks[0], ticks[ticks.len() - 1]);
        move |at| low + (at - from) / (to - from) * (high - low)
    }

    /// The centres of the markers of a colour, the one of the legend left out; from left to right.
    pub(crate) fn points(&self, color: &str) -> Vec<(f64, f64)> {
        let (x, y) = (self.axis(true), self.axis(false));
        let right_of_plot = self.legend_edge();
        let markers = self
            .document
            .descendants()
            .filter(|node| node.has_tag_name("polygon") && node.attribute("fill") == Some(color));
        let mut points: Vec<(f64, f64)> = markers
            .map(|marker| centre(marker.attribute("points").unwrap()))
            .filter(|&(at, _)| at < right_of_plot)
            .map(|(at_x, at_y)| (x(at_x), y(at_y)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    fn legend_edge(&self) -> f64 {
        let view = self.document.root_element().attribute("viewBox").unwrap();
        let width: f64 = view.split(' ').nth(2).unwrap().parse().unwrap();
        width - 240.0
    }
}

fn number(node: Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap_or("0").parse().unwrap()
}

/// The middle of the smallest box around some corners.
fn centre(corners: &str) -> (f64, f64) {
    let mut low = (f64::MAX, f64::MAX);
    let mut high = (f64::MIN, f64::MIN);
    for corner in corners.split_whitespace() {
        let (x, y) = corner.split_once(',').unwrap();
        let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
        low = (low.0.min(x), low.1.min(y));
        high = (high.0.max(x), high.1.max(y));
    }
    ((low.0 + high.0) / 2.0, (low.1 + high.1) / 2.0)
}
