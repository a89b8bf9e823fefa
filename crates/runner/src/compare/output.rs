//! A comparison as a table, as Markdown, as JUnit XML and as GitHub annotations.

use super::{CellComparison, Check, Comparison, Dimension, Verdict};
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use skipbench_metrics::{Metric, Unit};

/// For a terminal: a row for each thing that was compared, and below it what the numbers do not say.
pub fn table(comparison: &Comparison) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        .remove_style(TableComponent::LeftBorderIntersections)
        .remove_style(TableComponent::RightBorderIntersections)
        .set_header(columns(comparison));
    for cell in &comparison.cells {
        for (index, check) in cell.checks.iter().enumerate() {
            let mut row = row(cell, check);
            if index > 0 {
                // Said in the line above.
                row[0].clear();
            }
            table.add_row(row);
        }
    }
    for column in 2..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in sides(comparison) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(&format!("\n{}\n", table.trim_fmt()));
    let reasons = reasons(comparison);
    if !reasons.is_empty() {
        text.push('\n');
    }
    for reason in reasons {
        text.push_str(&format!("- {reason}\n"));
    }
    text.push_str(&format!("\n{}\n", summary(comparison)));
    text
}

/// For a pull request: what is not the same first, the rest folded away.
pub fn markdown(comparison: &Comparison) -> String {
    let of = |keep: fn(&Check) -> bool| -> Vec<[String; 7]> {
        comparison
            .checks()
            .filter(|(_, check)| keep(check))
            .map(|(cell, check)| row(cell, check))
            .collect()
    };
    let is_same = |check: &Check| check.verdict == Verdict::Same;
    let (changed, same) = (of(|check| check.verdict != Verdict::Same), of(is_same));
    let mut text = format!("### skipbench compare: {}\n\n", summary(comparison));
    for line in sides(comparison) {
        text.push_str(&format!("- {}\n", markdown_text(&line)));
    }
    if !changed.is_empty() {
        text.push_str(&markdown_table(comparison, &changed));
        text.push('\n');
        for reason in reasons(comparison) {
            text.push_str(&format!("- {}\n", markdown_text(&reason)));
        }
    }
    if !same.is_empty() {
        let rows = markdown_table(comparison, &same);
        let count = same.len();
        text.push_str(&format!(
            "\n<details><summary>{count} the same</summary>\n{rows}\n</details>\n"
        ));
    }
    text
}

/// JUnit XML: a test case for each thing that was compared. What is worse has failed, what cannot be told was skipped.
pub fn junit(comparison: &Comparison) -> String {
    let mut suites: Vec<(String, Vec<(&CellComparison, &Check)>)> = Vec::new();
    for (cell, check) in comparison.checks() {
        let suite = format!("{} {}", cell.model, cell.task);
        match suites.iter_mut().find(|(name, _)| *name == suite) {
            Some((_, cases)) => cases.push((cell, check)),
            None => suites.push((suite, vec![(cell, check)])),
        }
    }
    let counts = |checks: &[(&CellComparison, &Check)]| {
        let count = |verdict| {
            checks
                .iter()
                .filter(|case| case.1.verdict == verdict)
                .count()
        };
        format!(
            "tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\"",
            checks.len(),
            count(Verdict::Worse),
            count(Verdict::CannotTell)
        )
    };
    let all: Vec<_> = comparison.checks().collect();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"skipbench compare\" {}>\n",
        counts(&all)
    );
    for (name, cases) in &suites {
        let name = xml_text(name);
        xml.push_str(&format!(
            "  <testsuite name=\"{name}\" {}>\n",
            counts(cases)
        ));
        for (cell, check) in cases {
            let class = xml_text(&cell.name);
            let name = xml_text(&check.title());
            let outcome = xml_text(&check.outcome());
            xml.push_str(&format!(
                "    <testcase classname=\"{class}\" name=\"{name}\">\n"
            ));
            xml.push_str(&match check.verdict {
                Verdict::Worse => {
                    format!("      <failure type=\"worse\" message=\"{outcome}\"/>\n")
                }
                Verdict::CannotTell => format!("      <skipped message=\"{outcome}\"/>\n"),
                Verdict::Same | Verdict::Better => {
                    let verdict = check.verdict.words();
                    format!("      <system-out>{verdict}: {outcome}</system-out>\n")
                }
            });
            xml.push_str("    </testcase>\n");
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

/// GitHub's workflow commands: an error for what is worse, a warning for what cannot be told.
pub fn annotations(comparison: &Comparison) -> String {
    let data = |text: &str| {
        text.replace('%', "%25")
            .replace('\r', "%0D")
            .replace('\n', "%0A")
    };
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let line = |(cell, check): (&CellComparison, &Check)| {
        let level = match check.verdict {
            Verdict::Worse => "error",
            Verdict::CannotTell => "warning",
            Verdict::Same | Verdict::Better => return None,
        };
        let (verdict, title) = (check.verdict.words(), check.title());
        let title = property(&format!("{title}, {verdict}: {}", cell.name));
        Some(format!(
            "::{level} title={title}::{}\n",
            data(&check.outcome())
        ))
    };
    comparison.checks().filter_map(line).collect()
}

impl Check {
    /// `quality (bleu)`.
    fn title(&self) -> String {
        match self.dimension.name() {
            name if name == self.measure => name.to_owned(),
            name => format!("{name} ({})", self.measure),
        }
    }

    /// Both values, the change, and why.
    fn outcome(&self) -> String {
        let mut parts = Vec::new();
        if let (Some(baseline), Some(new)) = (self.baseline, self.new) {
            parts.push(format!("{} -> {}", self.value(baseline), self.value(new)));
        }
        if self.change.is_some() {
            parts.push(
                format!("{} {}", self.change_text(), self.p_text())
                    .trim_end()
                    .to_owned(),
            );
        }
        parts.extend(self.reason.clone());
        parts.join("; ")
    }

    fn value(&self, value: f64) -> String {
        match self.dimension {
            Dimension::Speed => format!("{value:.2}x"),
            Dimension::TokensPerSecond => format!("{value:.0}"),
            Dimension::Quality | Dimension::Result => match self.measure.parse::<Metric>() {
                Ok(metric) if metric.unit() == Unit::Percent => format!("{value:.2}"),
                _ => format!("{value:.4}"),
            },
        }
    }

    fn change_text(&self) -> String {
        let shown = |value: f64| match self.dimension {
            Dimension::Speed | Dimension::TokensPerSecond => format!("{:+.1}%", 100.0 * value),
            Dimension::Quality | Dimension::Result => format!("{value:+.2}"),
        };
        self.change.map_or("-".to_owned(), |change| {
            format!(
                "{} [{}, {}]",
                shown(change.value),
                shown(change.lo),
                shown(change.hi)
            )
        })
    }

    fn p_text(&self) -> String {
        match self.p_worse {
            None => String::new(),
            Some(p) if p < 0.001 => "p < 0.001".to_owned(),
            Some(p) => format!("p = {p:.3}"),
        }
    }
}

fn columns(comparison: &Comparison) -> [String; 7] {
    let level = 100.0 * (1.0 - comparison.limits.alpha);
    let change = format!("change [{}%]", (level * 1e6).round() / 1e6);
    [
        "cell", "measure", "baseline", "new", &change, "p", "verdict",
    ]
    .map(str::to_owned)
}

fn row(cell: &CellComparison, check: &Check) -> [String; 7] {
    let value = |value: Option<f64>| value.map_or("-".to_owned(), |value| check.value(value));
    [
        cell.name.clone(),
        check.measure.clone(),
        value(check.baseline),
        value(check.new),
        check.change_text(),
        check.p_text().replace("p ", "").replace("= ", ""),
        check.verdict.words().to_owned(),
    ]
}

/// What the numbers do not say of everything that is not the same, a line each.
fn reasons(comparison: &Comparison) -> Vec<String> {
    let checks = comparison.checks();
    checks
        .filter(|(_, check)| check.verdict != Verdict::Same)
        .filter_map(|(cell, check)| {
            let reason = check.reason.as_ref()?;
            Some(format!("{}, {}: {reason}", cell.name, check.measure))
        })
        .collect()
}

/// `1 worse, 2 the same`, and what the verdicts mean.
fn summary(comparison: &Comparison) -> String {
    let limits = &comparison.limits;
    let counts: Vec<String> = [
        Verdict::Worse,
        Verdict::CannotTell,
        Verdict::Better,
        Verdict::Same,
    ]
    .into_iter()
    .map(|verdict| (comparison.count(verdict), verdict))
    .filter(|(count, verdict)| *count > 0 || *verdict == Verdict::Worse)
    .map(|(count, verdict)| match (count, verdict) {
        (0, _) => "nothing worse".to_owned(),
        (count, verdict) => format!("{count} {}", verdict.words()),
    })
    .collect();
    let added = match comparison.added.len() {
        0 => String::new(),
        count => format!("; {count} in NEW alone: {}", comparison.added.join(", ")),
    };
    format!(
        "{} (limits: {}% more time, {} points of quality, alpha {}){added}",
        counts.join(", "),
        (limits.max_slowdown * 1e8).round() / 1e6,
        limits.max_quality_drop,
        limits.alpha
    )
}

fn sides(comparison: &Comparison) -> [String; 2] {
    [("BASELINE", &comparison.baseline), ("NEW", &comparison.new)].map(|(name, side)| {
        format!(
            "{name}: {} ({}; {}; {})",
            side.dir,
            side.experiment,
            side.binaries.join(" and "),
            side.machines.join(" and ")
        )
    })
}

fn markdown_table(comparison: &Comparison, rows: &[[String; 7]]) -> String {
    let line = |cells: &[String; 7]| {
        let cells: Vec<String> = cells.iter().map(|cell| markdown_text(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = format!("\n{}", line(&columns(comparison)));
    text.push_str("| --- | --- | ---: | ---: | ---: | ---: | --- |\n");
    for row in rows {
        let mut row = row.clone();
        if row[6] == Verdict::Worse.words() {
            row[6] = format!("**{}**", row[6]);
        }
        text.push_str(&line(&row));
    }
    text
}

/// A text that stays in its cell and means nothing to Markdown's tables or HTML.
fn markdown_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('|', "\\|")
        .replace(['\n', '\r'], " ")
}

/// A text for an attribute or an element; what XML cannot hold is replaced.
fn xml_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            '\r' => out.push_str("&#13;"),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_an_attribute() {
        assert_eq!(
            xml_text("a\"<b> & 'c'\n\u{1}"),
            "a&quot;&lt;b&gt; &amp; 'c'&#10;\u{fffd}"
        );
    }

    #[test]
    fn nothing_breaks_out_of_a_table() {
        assert_eq!(markdown_text("a|b\n<i>"), "a\\|b &lt;i>");
    }
}
